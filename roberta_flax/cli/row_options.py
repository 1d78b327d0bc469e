"""The options of train-encoder and train-reranker: where files have their rows, and the run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from roberta_flax.cli.groups import ADVANCED, Formerly, Group
from roberta_flax.cli.options import (
    EVALUATION,
    LABEL_COLUMN_HELP,
    Epochs,
    Freeze,
    LayerDecay,
    ModelOptions,
    RunOptions,
    TextOptions,
    TrainingDevices,
    TrainingOptions,
    print_result,
)
from roberta_flax.datasets.recipes import ENCODER

if TYPE_CHECKING:
    from collections.abc import Callable

    from roberta_flax.datasets.readers import Columns
    from roberta_flax.hub import Roberta
    from roberta_flax.train.encoder_training import EncoderTraining

TRAINING = TrainingOptions.of(ENCODER)
Rows = Annotated[
    Path, typer.Argument(metavar="INPUT", help="File of rows to train on: .tsv, .csv, .jsonl or .parquet.")
]


@dataclass(frozen=True)
class RowOptions(TextOptions, panel="Input"):
    """Where files have their texts and labels, and what validations measure."""

    label_column: Annotated[
        list[str] | None,
        typer.Option("--label-column", help=LABEL_COLUMN_HELP, show_default="label, score and such"),
        Formerly(("--label",)),
    ] = None
    label_range: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="LOW HIGH", help="Labels that stand for 0 and 1, such as 1 5.", show_default="0 1"),
        ADVANCED,
    ] = None
    valid_text_column: Annotated[
        list[str] | None,
        typer.Option(help="Column with text of the validation file.", show_default="as --text-column"),
        ADVANCED,
    ] = None
    valid_label_column: Annotated[
        list[str] | None,
        typer.Option(help="Column with the label of the validation file.", show_default="as --label-column"),
        ADVANCED,
    ] = None
    evaluation: Annotated[str | None, EVALUATION, ADVANCED] = None

    def arguments(self) -> dict[str, Any]:
        """The same as arguments of EncoderTraining.of_files."""
        from roberta_flax.datasets.readers import Columns

        def columns(texts: list[str] | None, labels: list[str] | None) -> Columns:
            return Columns(tuple(texts or ()), tuple(labels or ()), header=not self.no_header)

        valid = self.valid_text_column or self.valid_label_column
        return {
            "columns": columns(self.text_column, self.label_column),
            "validation_columns": columns(self.valid_text_column, self.valid_label_column) if valid else None,
            **self.given("label_range", "evaluation", "max_length"),
        }


@dataclass(frozen=True)
class ScheduleOptions(Group, panel="Training"):
    """How long to train, and what."""

    epochs: Epochs = None
    mini_batch_size: Annotated[
        int | None,
        typer.Option(
            help="Encode N rows of a batch at a time, in the memory of N rows (cached losses).",
            metavar="N",
            show_default="the whole batch",
        ),
        ADVANCED,
    ] = None
    freeze: Freeze = None
    layer_decay: LayerDecay = 1.0
    best_metric: Annotated[
        str | None,
        typer.Option(help="Metric that chooses the best model: one of the evaluation's.", show_default="the first"),
        ADVANCED,
    ] = None


def train(
    of_files: Callable[..., EncoderTraining],
    files: tuple[Path, Path],
    output: Path,
    rows: RowOptions,
    schedule: ScheduleOptions,
    training: TrainingOptions,
    run: RunOptions,
    devices: TrainingDevices,
    model: ModelOptions,
    *,
    seed: int,
    as_json: bool,
    **arguments: Any,
) -> None:
    """Trains a model and prints the result.

    Args:
      of_files: a function of the model, the files and the options that makes the job.
      files: to train on and to validate with.
      output: the run's directory.
      arguments: others of `of_files`.
    """
    from roberta_flax.train.progress import is_first_process, report

    recipe = training.recipe(ENCODER)
    mesh = devices.mesh(recipe.batch_size)
    roberta: Roberta = model.load()
    job = of_files(
        roberta,
        *files,
        **rows.arguments(),
        **arguments,
        **schedule.given("epochs", "mini_batch_size", "layer_decay"),
        **run.given("validate_every", "save_every", "log_every", "patience"),
        recipe=recipe,
        steps=training.steps,
        warmup_steps=training.warmup_steps,
        best=schedule.best_metric,
        freeze=schedule.freeze or (),
        keep=run.keep_checkpoints,
        numerics=model.numerics(remat=training.remat),
    )
    report(job.to_text())
    result = job.run(
        roberta, output, seed=seed, mesh=mesh, fully_sharded=devices.fully_sharded, tensorboard=run.tensorboard,
        plot=run.plot,
    )  # fmt: skip
    if is_first_process():
        found = {**job.to_json(), **result.to_json()}
        print_result(found, result.to_text().split("\n"), as_json=as_json)
