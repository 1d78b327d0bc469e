"""roberta-flax finetune INPUT --valid FILE --task TASK -o DIR"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from roberta_flax.cli.groups import ADVANCED, Formerly, grouped, value_of
from roberta_flax.cli.options import (
    TASK,
    AdapterOptions,
    Epochs,
    Freeze,
    Head,
    Json,
    LabeledOptions,
    LayerDecay,
    ModelOptions,
    RunDirectory,
    RunOptions,
    TrainingDevices,
    TrainingOptions,
    Valid,
    print_result,
)
from roberta_flax.errors import InputError


def shown_defaults(arguments: list[str]) -> dict[str, Any]:
    """The hyperparameters of the task that arguments name, which `--help` then shows as defaults."""
    from roberta_flax.datasets.readers import task_name
    from roberta_flax.datasets.recipes import recipe_of

    task = value_of("--task", arguments)
    if task is None:
        return {}
    try:
        recipe = recipe_of(task_name(task))
    except InputError:
        return {}
    values = {**asdict(recipe), "steps": recipe.total_steps}
    return {name: value for name, value in values.items() if value is not None}


@grouped
def command(
    train: Annotated[
        Path,
        typer.Argument(metavar="INPUT", help="Labeled file to train on: .tsv, .csv, .jsonl or .parquet."),
        Formerly(("--train",)),
    ],
    task: Annotated[str, TASK],
    valid: Valid,
    output: RunDirectory,
    kind: Annotated[
        str | None,
        typer.Option(
            metavar="classification|regression|multi-label|token|span|choice",
            help="With --task custom: what the head is for.",
            show_default="classification",
        ),
        ADVANCED,
    ] = None,
    head: Head = None,
    labeled: LabeledOptions = LabeledOptions(),
    epochs: Epochs = None,
    freeze: Freeze = None,
    layer_decay: LayerDecay = 1.0,
    seeds: Annotated[
        list[int] | None,
        typer.Option(
            "--seed",
            help="Random seed of the head, the order and dropout. Repeat it for one run each, their median and best.",
            show_default="1",
        ),
        ADVANCED,
    ] = None,
    best_metric: Annotated[
        str | None,
        typer.Option(help="Metric that chooses the best model: one of the task's, or loss.", show_default="the first"),
        ADVANCED,
    ] = None,
    training: TrainingOptions = TrainingOptions(),
    adapters: AdapterOptions = AdapterOptions(),
    run: RunOptions = RunOptions(),
    devices: TrainingDevices = TrainingDevices(),
    model: ModelOptions = ModelOptions(),
    as_json: Json = False,
) -> None:
    """Train a head, and the model with it, on a labeled file, by fairseq's recipe for the task.

    With --task, --help shows the recipe's values. Rerun the command to resume.
    """
    from roberta_flax.datasets.readers import task_name
    from roberta_flax.datasets.recipes import recipe_of
    from roberta_flax.train.finetuning import FineTuning, continues
    from roberta_flax.train.progress import is_first_process, report

    recipe = training.recipe(recipe_of(task_name(task)))
    mesh = devices.mesh(recipe.batch_size)
    models = [model.load()]
    roberta = models[0]
    tuning = FineTuning.of_files(
        roberta,
        task,
        train,
        valid,
        kind=kind,
        columns=labeled.columns(),
        head=head,
        max_length=labeled.max_length,
        recipe=recipe,
        epochs=epochs,
        steps=training.steps,
        warmup_steps=training.warmup_steps,
        best=best_metric,
        validate_every=run.validate_every,
        save_every=run.save_every,
        freeze=freeze or (),
        keep=run.keep_checkpoints,
        log_every=run.log_every,
        patience=run.patience,
        layer_decay=layer_decay,
        numerics=model.numerics(remat=training.remat),
        lora=adapters.lora(),
        lora_apart=adapters.lora_apart,
    )
    report(tuning.to_text())
    if continues(roberta.config, tuning.head):
        report(f"{model.model} has a head {tuning.head.name!r} for this task, which is trained further")
    results = tuning.run_seeds(
        lambda: models.pop() if models else model.load(),  # a run uses its model up
        output,
        seeds or (1,),
        mesh=mesh,
        fully_sharded=devices.fully_sharded,
        tensorboard=run.tensorboard,
        plot=run.plot,
    )
    if is_first_process():
        found = {**tuning.to_json(), **results.to_json()}
        print_result(found, results.to_text().split("\n"), as_json=as_json)
