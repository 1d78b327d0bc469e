"""roberta-flax features INPUT -o OUTPUT; or of one text: features --text TEXT [--text TEXT] -o FILE"""

from __future__ import annotations

from typing import Annotated

import typer

from roberta_flax.cli import jobs
from roberta_flax.cli.groups import ADVANCED, grouped
from roberta_flax.cli.options import Json, Text, print_result
from roberta_flax.errors import InputError


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
    options: jobs.JobOptions = jobs.JobOptions(),
    as_json: Json = False,
) -> None:
    """Write features in float32: a vector for each row of a file, or all features of one text.

    Of a file, a .npy output has [rows, hidden] and np.load can map it into memory. Of one text, features have the shape
    [1, time, hidden], with --all-layers [layers + 1, 1, time, hidden]; with --words [words, hidden], <s> and </s> among
    the words, or [layers + 1, words, hidden].

    Rerun the command to resume a run over a file.
    """
    file, texts = jobs.file_or_texts(inputs, text, options.input.format)
    output = options.output.output
    if output is None and not by_word:
        raise typer.BadParameter("name the file to write; or with one text give --words", param_hint="--output")
    if by_word and (file is not None or len(texts) != 1):
        raise InputError("--words takes one text; of a file, --pooling tokens writes one vector a token")
    if file is not None:
        from roberta_flax.tasks.embed import Embed

        jobs.run(file, lambda _: Embed(pooling, prompt, prompt_name), options, as_json=as_json)
        return
    from roberta_flax.inference.features import check_suffix, text_features

    if output is not None:
        check_suffix(output)
    found = text_features(options.model.load(), texts, all_layers=all_layers, words=by_word)
    inputs_of = {found.of: found.inputs.tolist()}
    if output is None:
        result = {**inputs_of, "features": found.features.tolist()} if as_json else None
        lines = (
            f"{word!r:12} {' '.join(str(found.features[..., place, :5]).split())} (...)"
            for place, word in enumerate(found.inputs.tolist())
        )
        print_result(result, lines, as_json=as_json)
        return
    found.save(output)
    shape = list(found.features.shape)
    result = {"output": str(output), **inputs_of, "shape": shape, "dtype": "float32"}
    print_result(result, [f"{output}: float32 {shape}"], as_json=as_json)
