"""roberta-flax tag TEXT; or of a file: tag INPUT -o OUTPUT"""

from __future__ import annotations

from typing import Annotated

import typer

from roberta_flax.cli import jobs
from roberta_flax.cli.groups import ADVANCED, grouped
from roberta_flax.cli.options import STRIDE, Head, Json, Text, print_result
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
        list[str] | None, typer.Option(help="Label to leave out. Repeat it for several.", show_default="O"), ADVANCED
    ] = None,
    stride: Annotated[int | None, STRIDE, ADVANCED] = None,
    head: Head = None,
    options: jobs.JobOptions = jobs.JobOptions(),
    as_json: Json = False,
) -> None:
    """Find the entities of each row of a file, or of one text: label, score, word, and where it begins and ends.

    Rerun the command to resume a run over a file.
    """
    from roberta_flax.tasks.entities import Tag

    file, texts = jobs.file_or_texts(inputs, text, options.input.format)
    task = Tag(head, stride, aggregation, tuple(ignore or ("O",)))
    if file is not None:
        jobs.run(file, lambda _: task, options, as_json=as_json)
        return
    if len(texts) != 1:
        raise InputError(f"entities are found in one text, got {len(texts)}")
    entities = jobs.result_of(texts[0], task, options)
    lines = (
        f"{each['score']:.4f}  {each.get('entity_group', each.get('entity'))}  {each['word']!r}  "
        f"{each['start']}:{each['end']}"
        for each in entities
    )
    print_result(entities, lines, as_json=as_json)
