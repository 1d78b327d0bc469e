"""roberta-flax evaluate INPUT --head NAME"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from roberta_flax.cli.groups import ADVANCED, grouped
from roberta_flax.cli.options import (
    EVALUATION,
    TASK,
    BatchingOptions,
    Head,
    InferenceOptions,
    Json,
    LabeledOptions,
    LayerDevices,
    LongTextOptions,
    print_result,
)


@grouped
def command(
    file: Annotated[Path, typer.Argument(metavar="INPUT", help="File with gold labels, such as dev_matched.tsv.")],
    head: Head = None,
    task: Annotated[str | None, TASK] = None,
    evaluation: Annotated[str | None, EVALUATION, ADVANCED] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="Text to put before each text. Repeat it: one for the first column, and one for the others.",
            show_default="the model's",
        ),
        ADVANCED,
    ] = None,
    truncate_dim: Annotated[
        int | None,
        typer.Option(
            help="Values of each vector of a sentence encoder to keep, the first.", metavar="N", show_default="all"
        ),
        ADVANCED,
    ] = None,
    labeled: LabeledOptions = LabeledOptions(),
    long: LongTextOptions = LongTextOptions(),
    batching: BatchingOptions = BatchingOptions(),
    devices: LayerDevices = LayerDevices(),
    model: InferenceOptions = InferenceOptions(model="roberta.large.mnli"),
    as_json: Json = False,
) -> None:
    """Evaluate a head or an encoder on a file with gold labels.

    Print the task's metrics, such as accuracy with a confidence interval and a confusion matrix, F1, or correlations.
    Of a sentence encoder, and with --evaluation of a cross-encoder: correlations, or nDCG@10 and MRR@10.
    """
    from roberta_flax.inference.encoder_evaluation import evaluate_encoder, is_encoder
    from roberta_flax.inference.evaluation import check_file, evaluate

    check_file(file)
    roberta = model.load()
    options: dict[str, Any] = {
        "task": task,
        "columns": labeled.columns(),
        "max_length": labeled.max_length,
        "on_long": cast(Any, long.on_long),
        "strategy": cast(Any, batching.strategy),  # checked there
        "tokens_per_batch": batching.tokens_per_batch,
        "tensor_parallel": devices.tensor_parallel,
    }
    of_encoder: dict[str, Any] = {"evaluation": evaluation, "prompts": prompt, "truncate_dim": truncate_dim}
    of_encoder = {name: value for name, value in of_encoder.items() if value is not None}
    if of_encoder or (head is None and task is None and is_encoder(roberta)):
        found = evaluate_encoder(roberta, file, head=head, **of_encoder, **options)
    else:
        found = evaluate(roberta, file, head, **options)
    print_result(found.to_json(), found.to_text().split("\n"), as_json=as_json)
