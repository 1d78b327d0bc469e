"""roberta-flax evaluate INPUT --head NAME"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from roberta_flax.cli.groups import grouped
from roberta_flax.cli.options import (
    TASK,
    BatchingOptions,
    Head,
    InferenceOptions,
    Json,
    LabeledOptions,
    LayerDevices,
    LongTextOptions,
    print_json,
    print_lines,
)


@grouped
def command(
    file: Annotated[Path, typer.Argument(metavar="INPUT", help="File with gold labels, such as dev_matched.tsv.")],
    head: Head = None,
    task: Annotated[str | None, TASK] = None,
    labeled: LabeledOptions = LabeledOptions(),
    long: LongTextOptions = LongTextOptions(),
    batching: BatchingOptions = BatchingOptions(),
    devices: LayerDevices = LayerDevices(),
    model: InferenceOptions = InferenceOptions(model="roberta.large.mnli"),
    as_json: Json = False,
) -> None:
    """Evaluate a head on a file with gold labels.

    Print the task's metrics, such as accuracy with a confidence interval and a confusion matrix, F1, or correlations.
    """
    from roberta_flax.inference.evaluation import check_file, evaluate

    check_file(file)
    found = evaluate(
        model.load(),
        file,
        head,
        task=task,
        columns=labeled.columns(),
        max_length=labeled.max_length,
        on_long=cast(Any, long.on_long),  # checked there
        strategy=cast(Any, batching.strategy),
        tokens_per_batch=batching.tokens_per_batch,
        tensor_parallel=devices.tensor_parallel,
    )
    if as_json:
        print_json(found.to_json())
    else:
        print_lines(found.to_text())
