"""roberta-flax train-encoder INPUT --valid FILE --loss LOSS -o DIR"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeVar

import typer

from roberta_flax.cli.groups import ADVANCED, grouped
from roberta_flax.cli.options import (
    LOSS,
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
from roberta_flax.errors import InputError

Number = TypeVar("Number", int, float)


@grouped
def command(
    rows: Rows,
    valid: Valid,
    output: RunDirectory,
    loss: Annotated[
        str, LOSS("multiple-negatives-ranking|cosent|cosine|triplet|margin-mse|kl-divergence")
    ] = "multiple-negatives-ranking",
    matryoshka_dims: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...", help="Train the first N values of each vector, too, for each N.", show_default="none"
        ),
        ADVANCED,
    ] = None,
    matryoshka_weights: Annotated[
        str | None,
        typer.Option(metavar="W,W,...", help="Weight of each of --matryoshka-dims.", show_default="1 each"),
        ADVANCED,
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option(help="Factor of similarities, the inverse of the temperature.", show_default="20"),
        ADVANCED,
    ] = None,
    margin: Annotated[
        float | None, typer.Option(help="Margin of the loss triplet.", show_default="5"), ADVANCED
    ] = None,
    distance: Annotated[
        str | None,
        typer.Option(
            metavar="euclidean|cosine|manhattan", help="Distance of the loss triplet.", show_default="euclidean"
        ),
        ADVANCED,
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Temperature of the loss kl-divergence.", show_default="1"), ADVANCED
    ] = None,
    similarity: Annotated[
        str | None,
        typer.Option(metavar="cosine|dot", help="Similarity in the loss.", show_default="the loss's"),
        ADVANCED,
    ] = None,
    pooling: Annotated[
        str | None,
        typer.Option(
            metavar="mean|cls|max|lasttoken|weightedmean|mean_sqrt_len_tokens",
            help="How features become a vector, in place of the model's way.",
            show_default="as the model's repository says, or mean",
        ),
        ADVANCED,
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="Text to put before each text. Repeat it: one for the first column, and one for the others.",
            show_default="none",
        ),
        ADVANCED,
    ] = None,
    columns: RowOptions = RowOptions(),
    schedule: ScheduleOptions = ScheduleOptions(),
    seed: Annotated[Seed, ADVANCED] = 1,
    training: TrainingOptions = TRAINING,
    run: RunOptions = RunOptions(),
    devices: TrainingDevices = TrainingDevices(),
    model: ModelOptions = ModelOptions(),
    as_json: Json = False,
) -> None:
    """Train a sentence encoder on pairs, triplets or scored pairs.

    The losses are those of sentence-transformers, and DIR/sentence-transformers is the best model for that library.
    Rerun the command to resume.
    """
    from roberta_flax.train.encoder_losses import SentenceLoss
    from roberta_flax.train.encoder_training import SentenceEncoderTraining

    chosen = SentenceLoss(
        loss, scale, margin, distance, temperature, similarity,
        matryoshka_dims=_numbers("--matryoshka-dims", matryoshka_dims, int),
        matryoshka_weights=_numbers("--matryoshka-weights", matryoshka_weights, float),
    )  # fmt: skip
    train(
        lambda roberta, *files, **options: SentenceEncoderTraining.of_files(roberta, chosen, *files, **options),
        (rows, valid), output, columns, schedule, training, run, devices, model,
        seed=seed, as_json=as_json, pooling=pooling, prompts=prompt or (),
    )  # fmt: skip


def _numbers(option: str, given: str | None, kind: Callable[[str], Number]) -> tuple[Number, ...]:
    try:
        return tuple(map(kind, given.split(","))) if given else ()
    except ValueError:
        raise InputError(f"{option} takes numbers separated by commas, such as 768,256,64; got {given!r}") from None
