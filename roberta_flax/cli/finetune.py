"""roberta-flax finetune --model MODEL --task TASK --train FILE --valid FILE -o DIR"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from roberta_flax.cli.options import (
    BpeDir,
    CacheDir,
    CheckpointFile,
    Dtype,
    Json,
    Loading,
    MaxLength,
    Model,
    Precision,
    print_json,
)
from roberta_flax.cli.training import (
    DataParallel,
    Distributed,
    FullySharded,
    Plot,
    Remat,
    TensorBoard,
    TensorParallel,
    mesh_of,
)
from roberta_flax.train.progress import is_first_process, report

if TYPE_CHECKING:
    from roberta_flax.datasets.examples import Examples, Tally
    from roberta_flax.datasets.readers import TaskReader
    from roberta_flax.nn.config import RobertaConfig
    from roberta_flax.train.finetuning import FineTuning, Result

_SAVE_EVERY = (100, 1000)  # steps: no less and no more, whatever an epoch has


def command(
    task: Annotated[
        str,
        typer.Option(help="mnli, qnli, qqp, rte, sst2, mrpc, cola, stsb, ..., race, commonsenseqa, or custom."),
    ],
    train: Annotated[Path, typer.Option(help="The training file: .tsv, .csv, .jsonl, .parquet, ...")],
    valid: Annotated[Path, typer.Option(help="The validation file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The directory of the run; the model is in its best.")],
    text: Annotated[
        list[str] | None,
        typer.Option(help="A column with text; twice for pairs. [default: the task's, or by its name]"),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(help="The column with the label. Of several labels, the column of each: 0 or 1."),
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="The classes in order, as the files call them, with commas between.")
    ] = None,
    choices: Annotated[str, typer.Option(help="With --kind choice: the key of the list of choices.")] = "choices",
    no_header: Annotated[bool, typer.Option("--no-header", help="CSV and TSV: columns are numbers, from 0.")] = False,
    kind: Annotated[
        str | None, typer.Option(help="Of custom: classification, regression, multi-label, token, span, choice.")
    ] = None,
    head: Annotated[str | None, typer.Option(help="The head's name. [default: the task's]")] = None,
    max_length: MaxLength = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training file.")] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", "--updates", help="Steps in all, in the place of epochs.")
    ] = None,
    warmup_steps: Annotated[
        int | None,
        typer.Option("--warmup-steps", "--warmup-updates", help="Steps in which the learning rate rises."),
    ] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", "--lr", help="Its highest.")] = None,
    end_learning_rate: Annotated[float | None, typer.Option(help="After the last step.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples that are computed together.")] = None,
    update_freq: Annotated[int | None, typer.Option(help="Batches whose gradients make one step.")] = None,
    adam_betas: Annotated[tuple[float, float] | None, typer.Option(help="Of Adam.")] = None,
    adam_eps: Annotated[float | None, typer.Option(help="Of Adam.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of Adam.")] = None,
    clip_norm: Annotated[float | None, typer.Option(help="The largest norm of all gradients; 0 for any.")] = None,
    dropout: Annotated[float | None, typer.Option(help="Of the embeddings and of each block's output.")] = None,
    attention_dropout: Annotated[float | None, typer.Option(help="Of the attention weights.")] = None,
    freeze: Annotated[
        list[str] | None,
        typer.Option(help="What stays as it is: embeddings; N, these and the first N layers; or a pattern of paths."),
    ] = None,
    layer_decay: Annotated[float, typer.Option(help="Of the learning rate from each layer to the one below.")] = 1.0,
    seed: Annotated[
        list[int] | None, typer.Option(help="Of head, order and dropout; several for a run each. [default: 1]")
    ] = None,
    patience: Annotated[int | None, typer.Option(help="End after so many validations without a better one.")] = None,
    best_metric: Annotated[
        str | None, typer.Option(help="By which the best is kept: the task's, or loss. [default: the task's first]")
    ] = None,
    validate_every: Annotated[int | None, typer.Option(help="Steps. [default: an epoch's]")] = None,
    save_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints. [default: an epoch's, from 100 to 1000]")
    ] = None,
    remat: Remat = False,
    data_parallel: DataParallel = None,
    tensor_parallel: TensorParallel = 1,
    fully_sharded: FullySharded = False,
    distributed: Distributed = False,
    plot: Plot = False,
    tensorboard: TensorBoard = False,
    model: Model = "roberta.base",
    dtype: Dtype = "float32",
    precision: Precision = None,
    checkpoint_file: CheckpointFile = "model.pt",
    bpe_dir: BpeDir = None,
    cache_dir: CacheDir = None,
    as_json: Json = False,
) -> None:
    """Trains a head, and the model with it, on a labelled file, by fairseq's recipe for the task.

    A run that was stopped goes on where it was: start it again with the same command.
    """
    from roberta_flax.datasets import readers
    from roberta_flax.datasets.recipes import recipe_of
    from roberta_flax.errors import InputError
    from roberta_flax.nn.numerics import Numerics
    from roberta_flax.train import directory as layout
    from roberta_flax.train.finetuning import FineTuning, continues

    name = readers.task_name(task)
    given: dict[str, Any] = {
        "learning_rate": learning_rate, "end_learning_rate": end_learning_rate, "batch_size": batch_size,
        "update_freq": update_freq, "adam_betas": adam_betas, "adam_eps": adam_eps, "weight_decay": weight_decay,
        "clip_norm": clip_norm, "dropout": dropout, "attention_dropout": attention_dropout,
    }  # fmt: skip
    recipe = replace(recipe_of(name), **{field: value for field, value in given.items() if value is not None})
    seeds = _checked_seeds(seed)
    counts = {"epochs": epochs, "steps": steps, "validate-every": validate_every, "save-every": save_every}
    for option, count in counts.items():
        if count is not None and count < 1:
            raise InputError(f"--{option} must be 1 or more, got {count}")
    if epochs is not None and steps is not None:
        raise InputError("give --epochs or --steps, not both")
    mesh = mesh_of(recipe.batch_size, tensor_parallel, data_parallel=data_parallel, distributed=distributed)
    loading = Loading(model, dtype, precision, None, checkpoint_file, bpe_dir, cache_dir)
    roberta = loading.load()
    columns = readers.Columns(
        tuple(text or ()), tuple(label or ()), tuple(labels.split(",") if labels else ()), choices, not no_header
    )
    reader = readers.task_reader(
        name, train, roberta.config, roberta.tokenizer, kind=kind, columns=columns, head=head, max_length=max_length
    )
    training, validation = (_read(reader, file) for file in (train, valid))
    per_epoch = -(-len(training) // (recipe.batch_size * recipe.update_freq))
    warmup, total = recipe.steps(per_epoch, epochs=epochs, steps=steps)
    if warmup_steps is not None:
        warmup = warmup_steps
    tuning = FineTuning(
        head=reader.head,
        recipe=recipe,
        warmup_steps=warmup,
        total_steps=total,
        training=training,
        validation=validation,
        labels=reader.labels,
        metrics=reader.metrics,
        best=_best_metric(best_metric, reader.metrics),
        validate_every=validate_every or per_epoch,
        save_every=save_every or min(max(per_epoch, _SAVE_EVERY[0]), _SAVE_EVERY[1]),
        patience=patience,
        freeze=_frozen(freeze or (), roberta.config),
        layer_decay=layer_decay,
        numerics=Numerics(dtype, precision=precision, remat=remat),
        note={"task": name, **loading.note()},
    )
    report(
        f"{recipe.source}: {total} steps of {recipe.batch_size * recipe.update_freq} examples, {warmup} of them "
        f"warm-up; {per_epoch} make an epoch"
    )
    if continues(roberta.config, reader.head):
        report(f"{model} has a head {reader.head.name!r} for this: it is trained on")
    asked = _asked(tuning, name)
    results: list[Result] = []
    for number in seeds:
        directory = output / f"seed-{number}" if len(seeds) > 1 else output
        roberta = loading.load() if results else roberta  # a run gives its parameters up
        result = tuning.run(
            roberta, directory, seed=number, mesh=mesh, fully_sharded=fully_sharded, tensorboard=tensorboard, plot=plot
        )
        results.append(result)
        if is_first_process():
            layout.write_summary(directory, {**asked, **result.to_json()})
    if not is_first_process():
        return
    if len(seeds) > 1:
        layout.write_summary(output, {**asked, **_of_seeds(output, results)})
    if as_json:
        print_json(json.loads((output / layout.SUMMARY_FILE).read_text(encoding="utf-8")))
    else:
        print("\n".join(_lines(output, results)))


def _checked_seeds(given: Sequence[int] | None) -> list[int]:
    from roberta_flax.errors import InputError

    seeds = list(given or (1,))
    if len(set(seeds)) != len(seeds) or not all(0 <= number < 2**32 for number in seeds):
        raise InputError(f"--seed must be different numbers from 0 to 2**32 - 1, got {', '.join(map(str, seeds))}")
    return seeds


def _read(reader: TaskReader, file: Path) -> Examples:
    """The examples of a file; what became of its rows is said on stderr."""
    examples = reader.read(file)
    report(examples.tally.to_text())
    return examples


def _best_metric(given: str | None, metrics: Sequence[str]) -> str:
    from roberta_flax.errors import InputError

    if given is not None and given not in (*metrics, "loss"):
        raise InputError(f"--best-metric must be one of {', '.join((*metrics, 'loss'))}, got {given!r}")
    return given or metrics[0]


def _frozen(given: Sequence[str], config: RobertaConfig) -> tuple[str, ...]:
    """Patterns of parameters' paths: of a number the embeddings and so many layers, anything else as it is."""
    from roberta_flax.errors import InputError

    patterns: list[str] = []
    for what in given:
        if not what.isdecimal():
            patterns.append(what)
        elif int(what) <= config.num_layers:
            patterns += ["embeddings", *(rf"layers\.{layer}\." for layer in range(int(what)))]
        else:
            raise InputError(f"--freeze {what} is more than the {config.num_layers} layers of the model")
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise InputError(f"--freeze {pattern!r} is no regular expression: {error}") from None
    return tuple(dict.fromkeys(patterns))


def _asked(tuning: FineTuning, task: str) -> dict[str, Any]:
    """What is asked of each run, and of which files, for the summary."""

    def rows(tally: Tally) -> dict[str, Any]:
        return {**asdict(tally), "path": str(tally.path)}

    return {
        "task": task,
        "head": tuning.head.name,
        "total_steps": tuning.total_steps,
        "warmup_steps": tuning.warmup_steps,
        "recipe": asdict(tuning.recipe),
        "training": rows(tuning.training.tally),
        "validation": rows(tuning.validation.tally),
    }


def _of_seeds(output: Path, results: Sequence[Result]) -> dict[str, Any]:
    """The median and the best of runs that differ in their seed; Liu et al. (2019), table 5, has medians of five."""
    best = _best(results)
    names = list(best.evaluation.metrics)
    return {
        "seeds": [result.to_json() for result in results],
        "median": {name: statistics.median(r.evaluation.metrics[name] for r in results) for name in names},
        "best_metric": best.best_metric,
        "best": best.best,
        "best_seed": best.seed,
        "best_model": str(output / f"seed-{best.seed}" / "best"),
    }


def _best(results: Sequence[Result]) -> Result:
    from roberta_flax.metrics import LESS_IS_BETTER

    choose = min if results[0].best_metric in LESS_IS_BETTER else max
    return choose(results, key=lambda result: result.best)


def _lines(output: Path, results: Sequence[Result]) -> list[str]:
    best, lines = _best(results), []
    if len(results) > 1:
        output = output / f"seed-{best.seed}"
        lines = [f"seed {r.seed}: {r.best_metric} {r.best:.4f} after {r.best_step} steps" for r in results]
        lines.append(f"median {best.best_metric} {statistics.median(r.best for r in results):.4f}")
    ended = "" if best.stopped == "done" else ", stopped early"
    return [
        *lines,
        f"{output / 'best'}: the best of {best.steps} steps{ended}, after {best.best_step}; loss {best.loss:.4f}",
        best.evaluation.to_text(),
    ]
