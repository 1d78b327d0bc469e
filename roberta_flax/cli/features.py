"""roberta-flax features INPUT -o OUTPUT; or of one text: features --text TEXT [--text TEXT] -o FILE"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from roberta_flax.cli import jobs
from roberta_flax.cli.groups import ADVANCED, grouped
from roberta_flax.cli.options import BatchingOptions, InferenceOptions, Json, Text, print_json, print_line
from roberta_flax.errors import InputError

if TYPE_CHECKING:
    from roberta_flax.inference.features import TextFeatures


@grouped
def command(
    inputs: jobs.Inputs = None,
    text: Text = None,
    pooling: Annotated[
        str | None,
        typer.Option(
            metavar="mean|first|tokens",
            help="Mean or first token of each row, or one vector a token.",
            show_default="as the model's repository says, or mean",
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="Text to put before each row, for a sentence encoder.", show_default="the model's"),
        ADVANCED,
    ] = None,
    prompt_name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Prompt of the model's repository for each row; query or document for a multi-vector encoder.",
        ),
        ADVANCED,
    ] = None,
    all_layers: Annotated[
        bool,
        typer.Option(help="With one text: features of the embeddings and of every layer, not of the last alone."),
        ADVANCED,
    ] = False,
    by_word: Annotated[
        bool,
        typer.Option(
            "--words", help="With one text: one vector a word, of spaCy's words, printed if there is no --output."
        ),
    ] = False,
    input: jobs.InputOptions = jobs.InputOptions(),
    output: jobs.OutputOptions = jobs.OutputOptions(),
    batching: BatchingOptions = BatchingOptions(),
    devices: jobs.JobDevices = jobs.JobDevices(),
    engine: jobs.EngineOptions = jobs.EngineOptions(),
    model: InferenceOptions = InferenceOptions(),
    as_json: Json = False,
) -> None:
    """Write features in float32: a vector for each row of a file, or all features of one text.

    Of a file, a .npy output has [rows, hidden] and np.load can map it into memory. Of one text, features have the shape
    [1, time, hidden], with --all-layers [layers + 1, 1, time, hidden]; with --words [words, hidden], <s> and </s> among
    the words, or [layers + 1, words, hidden].

    Rerun the command to resume a run over a file.
    """
    file, texts = jobs.file_or_texts(inputs, text, input.format)
    if output.output is None and not by_word:
        raise typer.BadParameter("name the file to write; or with one text give --words", param_hint="--output")
    if by_word and (file is not None or len(texts) != 1):
        raise InputError("--words takes one text; of a file, --pooling tokens writes one vector a token")
    if file is not None:
        from roberta_flax.tasks.embed import Embed

        options = jobs.JobOptions(input, output, batching, devices, engine, model)
        jobs.run(file, lambda _: Embed(pooling, prompt, prompt_name), options, as_json=as_json)
        return
    from roberta_flax.inference.features import check_suffix, text_features

    if output.output is not None:
        check_suffix(output.output)
    found = text_features(model.load(), texts, all_layers=all_layers, words=by_word)
    if output.output is None:
        _print(found, as_json)
        return
    found.save(output.output)
    shape = list(found.features.shape)
    if as_json:
        inputs_of = {found.of: found.inputs.tolist()}
        print_json({"output": str(output.output), **inputs_of, "shape": shape, "dtype": "float32"})
    else:
        print_line(f"{output.output}: float32 {shape}")


def _print(found: TextFeatures, as_json: bool) -> None:
    """All of them as JSON, or the first of each word."""
    if as_json:
        print_json({found.of: found.inputs.tolist(), "features": found.features.tolist()})
        return
    for place, word in enumerate(found.inputs.tolist()):
        print_line(f"{word!r:12} {' '.join(str(found.features[..., place, :5]).split())} (...)")
