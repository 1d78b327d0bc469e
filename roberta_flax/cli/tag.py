"""roberta-flax tag TEXT; or of a file: tag INPUT -o OUTPUT"""

from __future__ import annotations

from typing import Annotated

import typer

from roberta_flax.cli import jobs
from roberta_flax.cli.groups import grouped
from roberta_flax.cli.options import (
    STRIDE,
    BatchingOptions,
    Head,
    InferenceOptions,
    Json,
    Text,
    print_json,
    print_line,
)
from roberta_flax.errors import InputError


@grouped
def command(
    inputs: jobs.Inputs = None,
    text: Text = None,
    aggregation: Annotated[
        str,
        typer.Option(
            metavar="none|simple|first|average|max",
            help="What is found: each token by itself; neighbors with the same label; or words, labeled by their first "
            "token, the average of their tokens, or the one with the highest score.",
        ),
    ] = "simple",
    ignore: Annotated[
        list[str] | None, typer.Option(help="Label to leave out. Repeat it for several.", show_default="O")
    ] = None,
    stride: Annotated[int | None, STRIDE] = None,
    head: Head = None,
    input: jobs.InputOptions = jobs.InputOptions(),
    output: jobs.OutputOptions = jobs.OutputOptions(),
    batching: BatchingOptions = BatchingOptions(),
    devices: jobs.JobDevices = jobs.JobDevices(),
    engine: jobs.EngineOptions = jobs.EngineOptions(),
    model: InferenceOptions = InferenceOptions(),
    as_json: Json = False,
) -> None:
    """Find the entities of each row of a file, or of one text: label, score, word, and where it begins and ends.

    Rerun the command to resume a run over a file.
    """
    from roberta_flax.tasks.entities import Tag

    file, texts = jobs.file_or_texts(inputs, text, input.format)
    task = Tag(head, stride, aggregation, tuple(ignore or ("O",)))
    options = jobs.JobOptions(input, output, batching, devices, engine, model)
    if file is not None:
        jobs.run(file, lambda _: task, options, as_json=as_json)
        return
    if len(texts) != 1:
        raise InputError(f"entities are found in one text, got {len(texts)}")
    entities = jobs.result_of(texts[0], task, options)
    if as_json:
        print_json(entities)
        return
    for entity in entities:
        label = entity.get("entity_group", entity.get("entity"))
        print_line(f"{entity['score']:.4f}  {label}  {entity['word']!r}  {entity['start']}:{entity['end']}")
