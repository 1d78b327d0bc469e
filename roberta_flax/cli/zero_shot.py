"""roberta-flax zero-shot TEXT --label LABEL ...; or of a file: zero-shot INPUT -o OUTPUT --label LABEL ..."""

from __future__ import annotations

from typing import Annotated

import typer

from roberta_flax.cli import jobs
from roberta_flax.cli.groups import grouped
from roberta_flax.cli.options import Head, InferenceOptions, Json, Text, print_result
from roberta_flax.errors import InputError


@grouped
def command(
    inputs: jobs.Inputs = None,
    text: Text = None,
    label: Annotated[
        list[str] | None, typer.Option(help="Label to choose from. Repeat it for several.", show_default=False)
    ] = None,
    template: Annotated[str, typer.Option(help="Hypothesis, with {} where the label goes.")] = "This example is {}.",
    multi_label: Annotated[bool, typer.Option("--multi-label", help="Any number of labels may apply.")] = False,
    entailment: Annotated[
        int | None,
        typer.Option(help="Number of the head's class of entailment, from 0.", show_default="the class of that name"),
    ] = None,
    head: Head = None,
    options: jobs.JobOptions = jobs.JobOptions(model=InferenceOptions(model="roberta.large.mnli")),
    as_json: Json = False,
) -> None:
    """Classify each row of a file, or one text, by labels of your own, with a model of entailment (MNLI).

    Rerun the command to resume a run over a file.
    """
    from roberta_flax.tasks.zero_shot import ZeroShot

    file, texts = jobs.file_or_texts(inputs, text, options.input.format)
    task = ZeroShot(tuple(label or ()), template, multi_label, head, entailment)
    if file is not None:
        jobs.run(file, lambda _: task, options, as_json=as_json)
        return
    if len(texts) != 1:
        raise InputError(f"labels are chosen for one text, got {len(texts)}")
    probabilities = jobs.result_of(texts[0], task, options).tolist()
    ranked = sorted(zip(task.labels, probabilities, strict=True), key=lambda each: each[1], reverse=True)
    result = {"label": ranked[0][0], "score": ranked[0][1], "probabilities": dict(ranked)}
    print_result(result, (f"{probability:.4f}  {name}" for name, probability in ranked), as_json=as_json)
