"""roberta-flax train-reranker INPUT --valid FILE --loss LOSS -o DIR"""

from __future__ import annotations

from typing import Annotated

from roberta_flax.cli.groups import ADVANCED, grouped
from roberta_flax.cli.options import (
    LOSS,
    Head,
    Json,
    ModelOptions,
    RunDirectory,
    RunOptions,
    Seed,
    TrainingDevices,
    TrainingOptions,
    Valid,
)
from roberta_flax.cli.row_options import TRAINING, RowOptions, Rows, ScheduleOptions, train


@grouped
def command(
    rows: Rows,
    valid: Valid,
    output: RunDirectory,
    loss: Annotated[str, LOSS("binary-cross-entropy|mse|margin-mse")] = "binary-cross-entropy",
    head: Annotated[Head, ADVANCED] = None,
    columns: RowOptions = RowOptions(),
    schedule: ScheduleOptions = ScheduleOptions(),
    seed: Annotated[Seed, ADVANCED] = 1,
    training: TrainingOptions = TRAINING,
    run: RunOptions = RunOptions(),
    devices: TrainingDevices = TrainingDevices(),
    model: ModelOptions = ModelOptions(),
    as_json: Json = False,
) -> None:
    """Train a cross-encoder, which scores pairs of texts.

    The losses are those of sentence-transformers, and DIR/sentence-transformers is the best model for that library.
    Rerun the command to resume.
    """
    from roberta_flax.train.encoder_losses import ScoreLoss
    from roberta_flax.train.encoder_training import CrossEncoderTraining

    chosen = ScoreLoss(loss)
    train(
        lambda roberta, *files, **options: CrossEncoderTraining.of_files(roberta, chosen, *files, **options),
        (rows, valid), output, columns, schedule, training, run, devices, model,
        seed=seed, as_json=as_json, head=head,
    )  # fmt: skip
