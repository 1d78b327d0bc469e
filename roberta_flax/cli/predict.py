"""roberta-flax predict INPUT -o OUTPUT --head NAME; or of one text: predict --text TEXT [--text TEXT]"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from roberta_flax.cli import jobs
from roberta_flax.cli.groups import ADVANCED, grouped
from roberta_flax.cli.options import Head, InferenceOptions, Json, Text, print_json
from roberta_flax.errors import InputError, printable


@grouped
def command(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="INPUT", help="File of texts or pairs: .jsonl, .csv, .tsv, .txt or .parquet."),
    ] = None,
    text: Text = None,
    head: Head = None,
    framing: Annotated[
        str | None,
        typer.Option(
            metavar="choice|race|commonsenseqa",
            help="With a choice head: how question and choice become one input.",
            show_default="the head's name, or choice",
        ),
        ADVANCED,
    ] = None,
    logits: Annotated[bool, typer.Option("--logits", help="Write logits in place of log-probabilities.")] = False,
    options: jobs.JobOptions = jobs.JobOptions(model=InferenceOptions(model="roberta.large.mnli")),
    as_json: Json = False,
) -> None:
    """Classify each row of a file, or one text: labels by name, with probabilities.

    With a span head, the columns are a question and its context; with a choice head, the texts before the choices and
    then each choice.

    Rerun the command to resume a run over a file.
    """
    if (file is None) == (not text):
        raise InputError("give INPUT, a file of texts, or one text with --text")
    if file is None:
        _predict_text(text or [], head, framing, options.model, as_json)
        return
    from roberta_flax.inference.heads import task_of_head

    options = replace(options, input=_with_trained_columns(options.input, file, head, options.model))
    jobs.run(file, lambda config: task_of_head(config, head, logits=logits, framing=framing), options, as_json=as_json)


def _with_trained_columns(
    input: jobs.InputOptions, file: Path, head: str | None, model: InferenceOptions
) -> jobs.InputOptions:
    """The text columns that the head was fine-tuned on, if none are named and the file has them."""
    from roberta_flax.checkpoint import converted

    if input.text_column or not file.exists():
        return input
    trained_on = converted.read_trained_on(model.directory())
    if trained_on is None or head not in (None, trained_on.head) or not trained_on.columns.texts:
        return input
    if not trained_on.texts_are_in(file):
        return input
    no_header = input.no_header or not trained_on.columns.header
    return replace(input, text_column=list(trained_on.columns.texts), no_header=no_header)


def _predict_text(
    texts: list[str], head: str | None, framing: str | None, model: InferenceOptions, as_json: bool
) -> None:
    from roberta_flax.inference.answers import answer

    result = answer(model.load(), texts, head, framing=framing)
    if as_json:
        print_json(result)
        return
    for key, value in result.items():
        if key != "head":
            for line in value if isinstance(value, list) else [value]:
                print(f"{key}\t{printable(_shown(line))}")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{key} {_shown(part)}" for key, part in value.items())
    return f"{value:.4f}" if isinstance(value, float) else str(value)
