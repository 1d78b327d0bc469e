"""roberta-flax mnli PREMISE HYPOTHESIS"""

from __future__ import annotations

import math
from typing import Annotated

import typer

from roberta_flax.cli.groups import grouped
from roberta_flax.cli.options import InferenceOptions, Json, print_result


@grouped
def command(
    premise: Annotated[str, typer.Argument(metavar="PREMISE", help="Sentence that is given.")],
    hypothesis: Annotated[str, typer.Argument(metavar="HYPOTHESIS", help="Sentence that may follow from it.")],
    labels: Annotated[
        str | None,
        typer.Option(
            help="Classes in the order of the head, separated by commas, such as contradiction,neutral,entailment.",
            show_default="the head's own names",
        ),
    ] = None,
    model: InferenceOptions = InferenceOptions(model="roberta.large.mnli"),
    as_json: Json = False,
) -> None:
    """Tell whether a hypothesis follows from a premise.

    The answer is contradiction, neutral or entailment, with probabilities.
    """
    from roberta_flax.inference.answers import entailment

    found = entailment(model.load(), premise, hypothesis, labels=labels.split(",") if labels else ())
    shown = ", ".join(f"{name} {math.exp(value):.4f}" for name, value in found["log_probabilities"].items())
    print_result(found, [f"{found['label']}  ({shown})"], as_json=as_json)
