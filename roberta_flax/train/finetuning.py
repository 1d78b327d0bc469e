"""Fine-tuning: which part of a model is trained, and a run that leaves the best model in a directory.

>>> tuning = FineTuning.of_files(roberta_flax.load("roberta.large"), "rte", "RTE/train.tsv", "RTE/dev.tsv")
>>> tuning.run(roberta_flax.load("roberta.large"), Path("runs/rte"), seed=1).evaluation.metrics
{"accuracy": 0.86}
"""

from __future__ import annotations

import dataclasses
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import jax
from jax.sharding import Mesh

from roberta_flax.checkpoint import converted
from roberta_flax.datasets import readers
from roberta_flax.datasets.examples import Examples, Tally
from roberta_flax.datasets.readers import Columns
from roberta_flax.datasets.recipes import Recipe, recipe_of
from roberta_flax.errors import InputError
from roberta_flax.files import PathLike
from roberta_flax.hub import Roberta
from roberta_flax.metrics import LESS_IS_BETTER, Evaluation
from roberta_flax.nn import sharding
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from roberta_flax.nn.forward import Params
from roberta_flax.nn.model import Head
from roberta_flax.nn.numerics import Numerics
from roberta_flax.train import directory as run_directory
from roberta_flax.train import loop
from roberta_flax.train.batches import training_batches
from roberta_flax.train.losses import head_loss
from roberta_flax.train.optimizer import recipe_optimizer
from roberta_flax.train.progress import is_first_process
from roberta_flax.train.step import init_optimizer, make_train_step
from roberta_flax.train.validation import Validation

_SAVE_EVERY = (100, 1000)  # steps: no less and no more, whatever an epoch has


@dataclass(frozen=True)
class FineTuning:
    """What is asked, whatever the seed.

    Attributes:
      head: to train.
      recipe: the hyperparameters.
      warmup_steps, total_steps: how long (see Recipe.steps).
      training, validation: examples for the head.
      labels: the gold string of each class (see Validation).
      metrics: of the validation.
      best: of these or "loss": what says which parameters are the best.
      validate_every, save_every: steps between validations, and between checkpoints.
      keep: the newest checkpoints that stay.
      log_every: steps that a line of metrics.jsonl is of.
      patience: validations without a better one after which a run ends; None for none.
      freeze: patterns of parameters that stay as they are (see make_train_step).
      layer_decay: of the learning rate from each layer to the one below; 1 for none.
      numerics: of the computation (see head_loss).
      task: the name of the task, for the records.
      note: what else a run's numbers depend on: the model it begins with.
    """

    head: HeadConfig
    recipe: Recipe
    warmup_steps: int
    total_steps: int
    training: Examples
    validation: Examples
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    best: str
    validate_every: int
    save_every: int
    keep: int = 3
    log_every: int = 10
    patience: int | None = None
    freeze: tuple[str, ...] = ()
    layer_decay: float = 1.0
    numerics: Numerics = field(default_factory=Numerics)
    task: str = readers.CUSTOM
    note: Mapping[str, Any] = field(default_factory=dict)

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
        """Reads labeled files, and fills in what is not given by the task's recipe.

        Args:
          roberta: the model that is to be trained; nothing of it is changed.
          task: "rte", "sst-2", ... (readers.task_name), or "custom".
          training, validation: the files.
          kind, columns, head, max_length: as in readers.task_reader.
          recipe: the hyperparameters; the task's (recipes.recipe_of) if not given.
          epochs, steps: how long, by one of the two; by the recipe if not given.
          warmup_steps: of these; the recipe's share if not given.
          best: the metric that says which parameters are the best, or "loss"; the task's first if not given.
          validate_every: steps between validations; an epoch's if not given.
          save_every: steps between checkpoints; an epoch's, but from 100 to 1000, if not given.
          freeze: what stays as it is: "embeddings", a number of layers from the first ("2", with the embeddings), or
            patterns of paths (see make_train_step).
          options: other attributes.

        Raises:
          InputError: options that do not fit each other or the files, or files that cannot be read.
        """
        task = readers.task_name(task)
        recipe = recipe or recipe_of(task)
        counts = {"epochs": epochs, "steps": steps, "validate_every": validate_every, "save_every": save_every}
        for name, count in counts.items():
            if count is not None and count < 1:
                raise InputError(f"{name} must be 1 or more, got {count}")
        if epochs is not None and steps is not None:
            raise InputError("give epochs or steps, not both")
        reader = readers.task_reader(
            task, training, roberta.config, roberta.tokenizer, kind=kind, columns=columns, head=head,
            max_length=max_length,
        )  # fmt: skip
        examples = reader.read(training)
        per_epoch = -(-len(examples) // (recipe.batch_size * recipe.update_freq))
        warmup, total = recipe.steps(per_epoch, epochs=epochs, steps=steps)
        return cls(
            head=reader.head,
            recipe=recipe,
            warmup_steps=warmup if warmup_steps is None else warmup_steps,
            total_steps=total,
            training=examples,
            validation=reader.read(validation),
            labels=reader.labels,
            metrics=reader.metrics,
            best=_best_metric(best, reader.metrics),
            validate_every=validate_every or per_epoch,
            save_every=save_every or min(max(per_epoch, _SAVE_EVERY[0]), _SAVE_EVERY[1]),
            freeze=frozen_paths(freeze, roberta.config),
            task=task,
            **options,
        )

    def run(
        self,
        roberta: Roberta,
        directory: Path,
        *,
        seed: int,
        mesh: Mesh | None = None,
        fully_sharded: bool = False,
        tensorboard: bool = False,
        plot: bool = False,
        progress: bool = True,
    ) -> Result:
        """Fine-tunes a model, or goes on with a run that was stopped (see loop.run).

        Args:
          roberta: the model to begin with. Its parameters are given up.
          directory: the run's; the best model will be in its best, and how the run ended in its summary.json.
          seed: of a new head, of the order of the examples, and of dropout.
          mesh: devices that share a batch's rows and each layer; one device if not given.
          fully_sharded: whether the parameters are divided over the devices that share the rows, too.
          tensorboard, plot, progress: as in loop.run.

        Raises:
          InputError, DivergedError, StoppedError: as loop.run; or no validation gave a number.
        """
        recipe, name = self.recipe, self.head.name
        config, params = trained_part(roberta, self.head, recipe, seed)
        rest = {part: roberta.params[part] for part in ("lm_head",) if part in roberta.params}
        placed = _placed(params, config, mesh, fully_sharded)
        schedule, optimizer = recipe_optimizer(
            recipe, config=config, warmup_steps=self.warmup_steps, total_steps=self.total_steps,
            layer_decay=self.layer_decay,
        )  # fmt: skip
        loss = head_loss(name, config=config, numerics=self.numerics)
        validation = Validation(
            self.validation, name, config=config, tokenizer=roberta.tokenizer, labels=self.labels,
            metrics=self.metrics, batch_size=recipe.batch_size, mesh=mesh, numerics=self.numerics,
        )  # fmt: skip

        def save_best(params: Params) -> None:
            whole = dataclasses.replace(config, lm_head=roberta.config.lm_head)
            run_directory.save_best(directory, whole, {**params, **rest}, roberta.tokenizer)

        outcome = loop.run(
            make_train_step(loss, optimizer, accumulate=recipe.update_freq, freeze=self.freeze),
            placed,
            init_optimizer(optimizer, placed, self.freeze),
            training_batches(
                self.training, batch_size=recipe.batch_size, update_freq=recipe.update_freq, pad_id=config.pad_id,
                max_positions=config.max_positions, seed=seed,
            ),
            plan=loop.Plan(
                self.total_steps, self.validate_every, self.save_every, self.keep, self.log_every, self.patience,
                self.best, maximize=self.best not in LESS_IS_BETTER, seed=seed,
            ),
            directory=directory,
            config_note=self._note(seed),
            schedule=schedule,
            validate=validation,
            save_best=save_best,
            mesh=mesh,
            accumulate=recipe.update_freq,
            tokens_of=lambda batch: int((batch["tokens"] != config.pad_id).sum()),
            tensorboard=tensorboard,
            plot=plot,
            progress=progress,
        )  # fmt: skip
        if outcome.best is None or outcome.best_step is None:
            raise InputError(
                f"{self.best} was not a number in any validation on {self.validation.tally.path}, so there is no best "
                "model; take another metric, or train for longer"
            )
        saved = _reached(converted.read(directory / run_directory.BEST)[1], self.head)
        judged, mean_loss = validation.evaluate(_placed(saved, config, mesh, fully_sharded))
        result = Result(seed, outcome.steps, outcome.stopped, outcome.best_step, self.best, mean_loss, judged)
        if is_first_process():
            run_directory.write_summary(directory, {**self.to_json(), **result.to_json()})
        return result

    def run_seeds(
        self, load: Callable[[], Roberta], directory: Path, seeds: Sequence[int] = (1,), **options: Any
    ) -> SeedResults:
        """Runs once for each seed, in directories of their own where there are several, and sums up.

        Args:
          load: gives the model to begin with, anew for each run, which uses it up.
          directory: the run's; of several, run n is in its seed-n, and how all ended in its summary.json.
          seeds: different numbers from 0 to 2**32 - 1.
          options: of `run`.

        Raises:
          InputError: other seeds; and what `run` raises.
        """
        if not seeds or len(set(seeds)) != len(seeds) or not all(0 <= number < 2**32 for number in seeds):
            raise InputError(
                f"seeds must be different numbers from 0 to 2**32 - 1, got {', '.join(map(str, seeds)) or 'none'}"
            )
        several = len(seeds) > 1
        results = [
            self.run(load(), directory / f"seed-{seed}" if several else directory, seed=seed, **options)
            for seed in seeds
        ]
        found = SeedResults(directory, tuple(results))
        if several and is_first_process():
            run_directory.write_summary(directory, {**self.to_json(), **found.to_json()})
        return found

    def to_json(self) -> dict[str, Any]:
        """What is asked, and of which files, for json.dumps."""

        def rows(tally: Tally) -> dict[str, Any]:
            return {**asdict(tally), "path": str(tally.path)}

        return {
            "task": self.task,
            "head": self.head.name,
            "total_steps": self.total_steps,
            "warmup_steps": self.warmup_steps,
            "recipe": asdict(self.recipe),
            "training": rows(self.training.tally),
            "validation": rows(self.validation.tally),
        }

    def to_text(self) -> str:
        """Lines: the rows of both files, and how long the run is."""
        size = self.recipe.batch_size * self.recipe.update_freq
        return "\n".join(
            (
                self.training.tally.to_text(),
                self.validation.tally.to_text(),
                f"{self.recipe.source}: {self.total_steps} steps of {size} examples, {self.warmup_steps} of them "
                f"warm-up; {-(-len(self.training) // size)} steps an epoch",
            )
        )

    def _note(self, seed: int) -> dict[str, Any]:
        """What the run's numbers depend on, as JSON has it."""
        plain = {
            "task": self.task,
            "head": asdict(self.head),
            **asdict(self.recipe),
            "warmup_steps": self.warmup_steps,
            "total_steps": self.total_steps,
            "training": self.training.fingerprint(),
            "validation": self.validation.fingerprint(),
            "freeze": list(self.freeze),
            "layer_decay": self.layer_decay,
            **run_directory.numerics_note(self.numerics),
            "seed": seed,
        }
        return {**self.note, **plain}


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
      seed: its.
      steps: those done.
      stopped: "done" after the last, "patience" before.
      best_step: after which the best model was.
      best_metric: by which it was.
      loss: of the best model as it is on disk, on the validation examples.
      evaluation: of it, with all metrics.
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
        """That metric of the best model."""
        return self.loss if self.best_metric == "loss" else self.evaluation.metrics[self.best_metric]

    def to_json(self) -> dict[str, Any]:
        """The fields by name, for json.dumps."""
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
    """How runs that differ in their seed ended. Liu et al. (2019), table 5, has medians of five.

    Attributes:
      directory: of all.
      results: of each, in the order of the seeds.
    """

    directory: Path
    results: tuple[Result, ...]

    @property
    def best(self) -> Result:
        """The run with the best model."""
        choose = min if self.results[0].best_metric in LESS_IS_BETTER else max
        return choose(self.results, key=lambda result: result.best)

    @property
    def best_model(self) -> Path:
        """The directory of the best model."""
        several = len(self.results) > 1
        return (self.directory / f"seed-{self.best.seed}" if several else self.directory) / run_directory.BEST

    def to_json(self) -> dict[str, Any]:
        """One run's, or each's with the medians and the best, for json.dumps."""
        if len(self.results) == 1:
            return self.results[0].to_json()
        best = self.best
        names = list(best.evaluation.metrics)
        return {
            "seeds": [result.to_json() for result in self.results],
            "median": {name: statistics.median(r.evaluation.metrics[name] for r in self.results) for name in names},
            "best_metric": best.best_metric,
            "best": best.best,
            "best_seed": best.seed,
            "best_model": str(self.best_model),
        }

    def to_text(self) -> str:
        """Lines for a terminal."""
        best, lines = self.best, []
        if len(self.results) > 1:
            lines = [f"seed {r.seed}: {r.best_metric} {r.best:.4f} after {r.best_step} steps" for r in self.results]
            lines.append(f"median {best.best_metric} {statistics.median(r.best for r in self.results):.4f}")
        ended = "" if best.stopped == "done" else ", stopped early"
        lines.append(
            f"{self.best_model}: best model, of step {best.best_step} of {best.steps}{ended}; validation loss "
            f"{best.loss:.4f}"
        )
        return "\n".join((*lines, best.evaluation.to_text()))


def frozen_paths(freeze: Sequence[str], config: RobertaConfig) -> tuple[str, ...]:
    """Patterns of parameters' paths: of a number the embeddings and that many layers, anything else as it is.

    Raises:
      InputError: more layers than there are, or a pattern that is no regular expression.
    """
    patterns: list[str] = []
    for what in freeze:
        if not what.isdecimal():
            patterns.append(what)
        elif int(what) <= config.num_layers:
            patterns += ["embeddings", *(rf"layers\.{layer}\." for layer in range(int(what)))]
        else:
            raise InputError(f"freeze: {what} is more than the {config.num_layers} layers of the model")
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise InputError(f"freeze: {pattern!r} is no regular expression: {error}") from None
    return tuple(dict.fromkeys(patterns))


def _best_metric(given: str | None, metrics: Sequence[str]) -> str:
    if given is not None and given not in (*metrics, "loss"):
        raise InputError(f"the best metric must be one of {', '.join((*metrics, 'loss'))}, got {given!r}")
    return given or metrics[0]


def trained_part(roberta: Roberta, head: HeadConfig, recipe: Recipe, seed: int) -> tuple[RobertaConfig, Params]:
    """What is trained of a model: the network and one head, with the recipe's dropouts.

    Without the masked-LM head and other heads, which the loss does not reach: fairseq's Adam leaves parameters without
    a gradient alone, and they would only take memory.

    Args:
      roberta: the model. The arrays are its own, not copies.
      head: if the model has one of the same name and form, that goes on; any other begins anew, as in
        Roberta.register_classification_head.
      recipe: the hyperparameters.
      seed: of a new head.
    """
    config = recipe.with_dropout(dataclasses.replace(roberta.config, lm_head=False, heads=(head,)))
    if continues(roberta.config, head):
        return config, _reached(roberta.params, head)
    param_dtype = roberta.params["embeddings"]["token"]["embedding"].dtype
    new = Head.init_params(config, head, Numerics(param_dtype=param_dtype), jax.random.key(seed))
    return config, {**_reached(roberta.params, None), "heads": {head.name: new}}


def continues(config: RobertaConfig, head: HeadConfig) -> bool:
    """Whether a model has a head of this name and form, with the same labels as far as it says which."""
    same = ((), head.labels)
    return any(
        dataclasses.replace(head, labels=other.labels) == other for other in config.heads if other.labels in same
    )


def _reached(params: Params, head: HeadConfig | None) -> Params:
    """The parameters without the masked-LM head, and of the heads only this one."""
    body = {name: part for name, part in params.items() if name not in ("lm_head", "heads")}
    return body if head is None else {**body, "heads": {head.name: params["heads"][head.name]}}


def _placed(params: Params, config: RobertaConfig, mesh: Mesh | None, fully_sharded: bool) -> Params:
    return params if mesh is None else sharding.place(params, config, mesh, fully_sharded=fully_sharded)
