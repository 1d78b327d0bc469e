"""Fine-tunes a model's network and one head, and saves the best model in a directory.

>>> tuning = FineTuning.of_files(roberta_flax.load("roberta.large"), "rte", "RTE/train.tsv", "RTE/dev.tsv")
>>> tuning.run(roberta_flax.load("roberta.large"), Path("runs/rte"), seed=1).evaluation.metrics
{"accuracy": 0.86}
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import jax
from jax.sharding import Mesh

from roberta_flax.checkpoint import converted
from roberta_flax.convert.cache import released_name
from roberta_flax.datasets import readers
from roberta_flax.datasets.examples import Examples
from roberta_flax.datasets.layouts import lookalikes
from roberta_flax.datasets.readers import Columns, TrainedOn
from roberta_flax.datasets.recipes import PublishedScore, Recipe, published_score, recipe_of
from roberta_flax.errors import InputError, printable
from roberta_flax.files import PathLike
from roberta_flax.hub import Roberta
from roberta_flax.metrics import LESS_IS_BETTER, Evaluation
from roberta_flax.nn.adapters import LoRA
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from roberta_flax.nn.forward import Params
from roberta_flax.nn.meshes import with_own_mesh
from roberta_flax.nn.model import Head
from roberta_flax.nn.numerics import Numerics
from roberta_flax.train import directory as run_directory
from roberta_flax.train.batches import training_batches
from roberta_flax.train.devices import place
from roberta_flax.train.losses import head_loss
from roberta_flax.train.mirror import Mirror, as_given, mirrored
from roberta_flax.train.progress import is_first_process, report
from roberta_flax.train.step import make_train_step
from roberta_flax.train.trained import ApartAdapter, Trained, check_apart, lora_note
from roberta_flax.train.training_job import RunLength, TrainingJob, best_metric, frozen_paths
from roberta_flax.train.validation import Validation

_MAX_SHOWN = 50  # number of classes that are named at the start


@dataclass(frozen=True, kw_only=True)
class FineTuning(TrainingJob["Result"]):
    """A fine-tuning job: the data, the head and the hyperparameters, for any seed (see TrainingJob).

    Attributes:
      head: the head to train.
      training, validation: examples for the head.
      labels: the gold string of each class (see Validation).
      metrics: the validation metrics. The best model is selected by one of them, or by "loss".
      lora: settings of adapters to train, with the head, in the place of the network; None trains the network.
      lora_apart: whether best/ is the adapter and the head alone, in PEFT's files; otherwise they are merged into the
        network.
      task: the task's name, for the records.
      trained_on: what best/ says that the head was trained on.
      published: the score that fairseq publishes for this task and the released model that is trained, if there is one.
    """

    head: HeadConfig
    training: Examples
    validation: Examples
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    lora: LoRA | None = None
    lora_apart: bool = False
    task: str = readers.CUSTOM
    trained_on: TrainedOn | None = None
    published: PublishedScore | None = None

    def __post_init__(self) -> None:
        check_apart(self.lora, self.lora_apart)
        if self.lora is not None and self.freeze:
            raise InputError(
                "with adapters nothing of the network is trained; leave out freeze, and choose layers by the adapters' "
                "targets"
            )

    @classmethod
    def of_files(
        cls,
        roberta: Roberta,
        task: str,
        training: PathLike,
        validation: PathLike,
        *,
        kind: str | None = None,
        columns: Columns = Columns(),
        head: str | None = None,
        max_length: int | None = None,
        recipe: Recipe | None = None,
        epochs: int | None = None,
        steps: int | None = None,
        warmup_steps: int | None = None,
        best: str | None = None,
        validate_every: int | None = None,
        save_every: int | None = None,
        freeze: Sequence[str] = (),
        **options: Any,
    ) -> Self:
        """Reads labeled files, and takes defaults from the task's recipe.

        Args:
          roberta: the model to train. It is not changed.
          task: "rte", "sst-2", ... (readers.task_name), or "custom".
          training, validation: the files.
          kind, columns, head, max_length: as in readers.task_reader.
          recipe: the hyperparameters; the default is the task's (recipes.recipe_of).
          epochs, steps, warmup_steps, validate_every, save_every: as in training_job.RunLength.
          best: the metric that selects the best model, or "loss"; the default is the task's main metric.
          freeze: parameters to leave unchanged: "embeddings"; a number of layers from the bottom ("2"), which includes
            the embeddings; or patterns of paths (see make_train_step).
          options: other attributes of this class.

        Raises:
          InputError: the options contradict each other or do not match the files, or a file cannot be read.
        """
        task = readers.task_name(task)
        recipe = recipe or recipe_of(task)
        length = RunLength(epochs, steps, warmup_steps, validate_every, save_every)
        reader = readers.task_reader(
            task, training, roberta.config, roberta.tokenizer, kind=kind, columns=columns, head=head,
            max_length=max_length,
        )  # fmt: skip
        examples = reader.read(training)
        per_epoch = -(-len(examples) // (recipe.batch_size * recipe.update_freq))
        return cls(
            head=reader.head,
            recipe=recipe,
            training=examples,
            validation=reader.read(validation),
            labels=reader.labels,
            metrics=reader.metrics,
            best=best_metric(best, (*reader.metrics, "loss")),
            freeze=frozen_paths(freeze, roberta.config),
            task=task,
            trained_on=reader.trained_on,
            published=published_score(released_name(roberta.source, roberta.config), task),
            **length.attributes(recipe, per_epoch),
            **options,
        )

    @with_own_mesh
    def _run(
        self,
        roberta: Roberta,
        directory: Path,
        seed: int,
        *,
        mesh: Mesh | None = None,
        fully_sharded: bool = False,
        progress: bool = True,
        **options: Any,
    ) -> Result:
        recipe, name, note = self.recipe, self.head.name, self._note(roberta, seed)
        config, params = trained_part(roberta, self.head, recipe, seed)
        untrained = {part: roberta.params[part] for part in ("lm_head",) if part in roberta.params}
        apart = ApartAdapter.of(roberta, self.lora, config, self.head) if self.lora and self.lora_apart else None
        trained = Trained.of(params, config, self.lora, seed, lambda tree: place(tree, config, mesh, fully_sharded))
        schedule, optimizer = self._optimizer(config)
        loss = head_loss(name, config=config, numerics=self.numerics, lora=self.lora)
        train_step = make_train_step(loss, optimizer, accumulate=recipe.update_freq, freeze=self.freeze)
        validation = Validation(
            self.validation, name, config=config, tokenizer=roberta.tokenizer, labels=self.labels,
            metrics=self.metrics, batch_size=recipe.batch_size, mesh=mesh, numerics=self.numerics,
        )  # fmt: skip

        def save_best(params: Params) -> None:
            if apart is not None:
                apart.save(directory / run_directory.BEST, params, self.trained_on)
                return
            saved_config = dataclasses.replace(config, lm_head=roberta.config.lm_head)
            # the scores of the head that was trained are those of the recipe, and no longer the source's
            usage = (
                roberta.usage
                if roberta.usage.scoring_of(name) is None
                else dataclasses.replace(roberta.usage, scoring=None)
            )
            run_directory.save_best(
                directory, saved_config, {**trained.merged_to_save(params), **untrained}, roberta.tokenizer,
                self.trained_on, usage,
            )  # fmt: skip

        if trained.lora is not None and progress:
            report(trained.to_text())

        steps, stopped, best_step = self._loop(
            trained.step(train_step),
            trained.params,
            train_step.init(trained.params),
            training_batches(
                self.training, batch_size=recipe.batch_size, update_freq=recipe.update_freq, pad_id=config.pad_id,
                max_positions=config.max_positions, seed=seed,
            ),
            pad_id=config.pad_id,
            seed=seed,
            directory=directory,
            config_note=note,
            schedule=schedule,
            validate=lambda params: validation(trained.merged(params)),
            save_best=save_best,
            check_best=lambda: run_directory.check_best(directory, is_adapter=apart is not None),
            mesh=mesh,
            progress=progress,
            **options,
        )  # fmt: skip
        best = directory / run_directory.BEST
        if apart is None:
            saved = _network_and_head(converted.read(best)[1], self.head)
        else:
            saved = apart.lora.merge(trained.loaded, apart.load(best))
        evaluation, mean_loss = validation.evaluate(place(saved, config, mesh, fully_sharded))
        result = Result(seed, steps, stopped, best_step, self.best, mean_loss, evaluation)
        if is_first_process():
            run_directory.write_summary(directory, {**self.to_json(), **result.to_json()})
        return result

    def run_seeds(
        self, load: Callable[[], Roberta], directory: Path, seeds: Sequence[int] = (1,), **options: Any
    ) -> SeedResults:
        """Runs once for each seed, and summarizes the results.

        Args:
          load: loads the initial model. It is called for each run, because a run donates the parameters.
          directory: the run's directory. With several seeds, each run is in its subdirectory `seed-N`, and the summary
            in its `summary.json`.
          seeds: distinct numbers from 0 to 2**32 - 1.
          options: arguments of `run`.

        Raises:
          InputError: the seeds are not distinct or out of range, the directory has runs of other seeds or settings, or
            as in `run`.
          DivergedError, StoppedError: as in loop.run.
        """
        if not seeds or len(set(seeds)) != len(seeds) or not all(0 <= number < 2**32 for number in seeds):
            raise InputError(
                f"seeds must be distinct numbers from 0 to 2**32 - 1, got {', '.join(map(str, seeds)) or 'none'}"
            )
        with mirrored(directory) as (local, mirror):
            return self._run_seeds(load, local, seeds, mirror=mirror, **options)

    def _run_seeds(
        self, load: Callable[[], Roberta], directory: Path, seeds: Sequence[int], *, mirror: Mirror | None,
        **options: Any,
    ) -> SeedResults:  # fmt: skip
        """The same in a directory of this machine, which `mirror` uploads."""
        where, options = as_given(directory, mirror), {**options, "mirror": mirror}
        if len(seeds) == 1:
            return SeedResults(where, (self._run(load(), directory, seeds[0], **options),), self.published)
        loaded = [load()]
        with run_directory.open_run(directory, self._common_note(loaded[0]), run_directory.SEEDS_FILE):
            run_directory.checked_by_first_process(lambda: _require_seeds(directory, seeds))
            found = [
                self._run(loaded.pop() if loaded else load(), directory / f"seed-{seed}", seed, **options)
                for seed in seeds
            ]
            results = SeedResults(where, tuple(found), self.published)
            if is_first_process():
                run_directory.write_summary(directory, {**self.to_json(), **results.to_json()})
        return results

    def to_json(self) -> dict[str, Any]:
        """Returns the job and the counts of its files' rows, for json.dumps."""
        return {
            "task": self.task,
            "head": self.head.name,
            **super().to_json(),
            **lora_note(self.lora, self.lora_apart),
            "classes": self.training.class_counts(self.labels),
            **({} if self.published is None else {"published": asdict(self.published)}),
        }

    def to_text(self) -> str:
        """Describes the job in lines: the rows of both files, the classes, and the length of a run."""
        size = self.recipe.batch_size * self.recipe.update_freq
        return "\n".join(
            (
                self.training.tally.to_text(),
                self.validation.tally.to_text(),
                *self._classes_to_text(),
                f"{self.recipe.source}: {self.total_steps} steps of {size} examples, {self.warmup_steps} of them "
                f"warmup; {-(-len(self.training) // size)} steps per epoch",
            )
        )

    def _classes_to_text(self) -> Iterator[str]:
        """Yields a line about the classes and how often each occurs in training, and one for names that look alike."""
        counts = self.training.class_counts(self.labels)
        if not counts:
            return
        what = "words" if self.head.kind == "token" else "rows"
        shown = ", ".join(f"{name!r} {count}" for name, count in list(counts.items())[:_MAX_SHOWN])
        more = f", and {len(counts) - _MAX_SHOWN} more" if len(counts) > _MAX_SHOWN else ""
        yield f"{len(counts)} classes, and the {what} of each in training: {shown}{more}"
        for group in lookalikes(tuple(counts)):
            yield (
                f"warning: {' and '.join(map(repr, group))} are {len(group)} classes whose names differ only in case, "
                "spaces, or how a number or character is written; if they are one class, spell them alike in both files"
            )

    def _note(self, roberta: Roberta, seed: int) -> dict[str, Any]:
        return {
            **super()._note(roberta, seed),
            "task": self.task,
            "head": asdict(self.head),
            "labels": list(self.labels),
            "metrics": list(self.metrics),
            **lora_note(self.lora, self.lora_apart),
        }

    def _common_note(self, roberta: Roberta) -> dict[str, Any]:
        """Returns what the runs of all seeds have in common, as a JSON object."""
        plan = ("validate_every", "log_every", "patience", "best")
        note = {**self._note(roberta, 0), **{name: getattr(self, name) for name in plan}}
        return {name: value for name, value in note.items() if name != "seed"}


@dataclass(frozen=True)
class Result:
    """How a run ended, and the validation of its best model as it is on disk.

    Attributes:
      seed: the run's seed.
      steps: number of steps done.
      stopped: "done" after the last step, "patience" if the run stopped early.
      best_step: number of steps after which the model was best.
      best_metric: the metric that selected it.
      loss: the best model's validation loss.
      evaluation: the best model's validation metrics.
    """

    seed: int
    steps: int
    stopped: str
    best_step: int
    best_metric: str
    loss: float
    evaluation: Evaluation

    @property
    def best(self) -> float:
        """The best model's value of the best metric."""
        return self.loss if self.best_metric == "loss" else self.evaluation.metrics[self.best_metric]

    def to_json(self) -> dict[str, Any]:
        """Returns the fields by name, for json.dumps."""
        return {
            "seed": self.seed,
            "steps": self.steps,
            "stopped": self.stopped,
            "best_step": self.best_step,
            "best_metric": self.best_metric,
            "best": self.best,
            "loss": self.loss,
            **self.evaluation.to_json(),
        }


@dataclass(frozen=True)
class SeedResults:
    """The results of runs that differ only in their seed. Liu et al. (2019), table 5, report medians of five.

    Attributes:
      directory: the directory of all runs.
      results: the result of each run, in the order of the seeds.
      published: the score to compare them with, if there is one.
    """

    directory: Path
    results: tuple[Result, ...]
    published: PublishedScore | None = None

    @property
    def best(self) -> Result:
        """The result of the run with the best model."""
        choose = min if self.results[0].best_metric in LESS_IS_BETTER else max
        return choose(self.results, key=lambda result: result.best)

    @property
    def best_model(self) -> Path:
        """The directory of the best model."""
        several = len(self.results) > 1
        return (self.directory / f"seed-{self.best.seed}" if several else self.directory) / run_directory.BEST

    def to_json(self) -> dict[str, Any]:
        """Returns the result of one run, or of each run with the medians and the best, for json.dumps."""
        if len(self.results) == 1:
            return self.results[0].to_json()
        best = self.best
        names = list(best.evaluation.metrics)
        return {
            "seeds": [result.to_json() for result in self.results],
            "median": {name: self.median(name) for name in names},
            "best_metric": best.best_metric,
            "best": best.best,
            "best_seed": best.seed,
            "best_model": str(self.best_model),
        }

    def to_text(self) -> str:
        """Returns lines for a terminal."""
        best, lines = self.best, []
        if len(self.results) > 1:
            lines = [f"seed {r.seed}: {r.best_metric} {r.best:.4f} after {r.best_step} steps" for r in self.results]
            lines.append(f"median {best.best_metric} {statistics.median(r.best for r in self.results):.4f}")
        ended = "" if best.stopped == "done" else ", stopped early"
        lines.append(
            f"{printable(str(self.best_model))}: best model, from step {best.best_step} of {best.steps}{ended}; "
            f"validation loss {best.loss:.4f}"
        )
        return "\n".join((*lines, best.evaluation.to_text(), *self._comparison()))

    def median(self, metric: str) -> float:
        """The median of a metric of the best models."""
        return statistics.median(result.evaluation.metrics[metric] for result in self.results)

    def _comparison(self) -> Iterator[str]:
        """Yields a line with the result beside the published score, if there is one."""
        if self.published is not None:
            median = "median " if len(self.results) > 1 else ""
            value = self.median(self.published.metric)
            yield f"{median}{self.published.metric} {value:.4f} ({self.published.to_text()})"


def _require_seeds(directory: Path, seeds: Sequence[int]) -> None:
    """Raises InputError if a directory has runs of other seeds, whose results a new summary would leave out."""
    if others := sorted(run_directory.seeds_in(directory) - set(seeds)):
        raise InputError(
            f"{directory} has a run of seed {others[0]}, too, which the new summary would leave out; give --seed "
            f"{others[0]} as well, or choose another directory"
        )


def trained_part(roberta: Roberta, head: HeadConfig, recipe: Recipe, seed: int) -> tuple[RobertaConfig, Params]:
    """Returns the part of a model to train: the network and one head, with the recipe's dropout.

    The masked-LM head and other heads are left out, because the loss does not use them. fairseq's Adam does not change
    parameters without a gradient, and they would only take memory.

    Args:
      roberta: the model. Its arrays are returned, not copies.
      head: the head to train. It continues from the model's head if `continues` is true; otherwise it is initialized,
        as in Roberta.register_classification_head.
      recipe: the hyperparameters.
      seed: the seed that initializes a new head.
    """
    config = recipe.with_dropout(dataclasses.replace(roberta.config, lm_head=False, heads=(head,)))
    if continues(roberta.config, head):
        return config, _network_and_head(roberta.params, head)
    param_dtype = roberta.params["embeddings"]["token"]["embedding"].dtype
    new = Head.init_params(config, head, Numerics(param_dtype=param_dtype), jax.random.key(seed))
    return config, {**_network_and_head(roberta.params, None), "heads": {head.name: new}}


def continues(config: RobertaConfig, head: HeadConfig) -> bool:
    """Whether a model has this head already, so that training continues from it. Its labels may be missing."""
    candidates = (other for other in config.heads if other.labels in ((), head.labels))
    return any(dataclasses.replace(head, labels=other.labels) == other for other in candidates)


def _network_and_head(params: Params, head: HeadConfig | None) -> Params:
    """Returns the parameters of the network and of one head."""
    body = {name: part for name, part in params.items() if name not in ("lm_head", "heads")}
    return body if head is None else {**body, "heads": {head.name: params["heads"][head.name]}}
