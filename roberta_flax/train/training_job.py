"""What fine-tuning and the training of encoders have in common: a job of two files, and a run of it in a directory."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import optax
from jax.sharding import Mesh

from roberta_flax.datasets.examples import Tally
from roberta_flax.datasets.recipes import Recipe
from roberta_flax.errors import InputError
from roberta_flax.hub import Roberta
from roberta_flax.metrics import LESS_IS_BETTER
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.nn.forward import Params
from roberta_flax.nn.numerics import Numerics
from roberta_flax.train import directory as run_directory
from roberta_flax.train import loop
from roberta_flax.train.mirror import mirrored
from roberta_flax.train.optimizer import recipe_optimizer

_SAVE_EVERY_RANGE = (100, 1000)  # limits of the default interval between checkpoints, which is an epoch, in steps

_Result = TypeVar("_Result")


class Rows(Protocol):
    """The rows of a file as the network sees them: datasets.examples.Examples or encoder_batches.EncodedRows."""

    @property
    def tally(self) -> Tally:
        """Counts of the file's rows."""

    def fingerprint(self) -> str:
        """Returns a hash of the rows and their order, as 16 hex digits."""


@dataclass(frozen=True, kw_only=True)
class TrainingJob(ABC, Generic[_Result]):
    """A training job: the data and the hyperparameters, for any seed.

    Attributes:
      recipe: the hyperparameters.
      warmup_steps, total_steps: the length of a run (see Recipe.steps).
      training, validation: the rows of both files.
      best: the validation metric that selects the best model.
      validate_every, save_every: number of steps between validations, and between checkpoints.
      keep: number of checkpoints to keep, the newest ones.
      log_every: log metrics every N steps.
      patience: stop after N validations in a row without improvement; None never stops early.
      freeze: patterns of parameters to leave unchanged (see make_train_step).
      layer_decay: factor of the learning rate from each layer to the one below; 1 disables it.
      numerics: how to compute.
      note: anything else that a run's numbers depend on, as a JSON object. The content of the initial model and of the
        rows is part of it in any case.
    """

    recipe: Recipe
    warmup_steps: int
    total_steps: int
    training: Rows
    validation: Rows
    best: str
    validate_every: int
    save_every: int
    keep: int = 3
    log_every: int = 10
    patience: int | None = None
    freeze: tuple[str, ...] = ()
    layer_decay: float = 1.0
    numerics: Numerics = field(default_factory=Numerics)
    note: Mapping[str, Any] = field(default_factory=dict)

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
    ) -> _Result:
        """Trains a model, or resumes a run that was stopped (see loop.run).

        Args:
          roberta: the initial model. Its parameters are donated, but with adapters only those of its head.
          directory: the run's directory, also at a URL (module mirror). The best model is saved in its `best`, and the
            result in its `summary.json`.
          seed: the seed that initializes a new head, orders the rows, and draws dropout.
          mesh: devices that share a batch's rows and each layer; the default is one device.
          fully_sharded: whether to also divide the parameters over the devices that share the rows.
          tensorboard, plot, progress: as in loop.run.

        Raises:
          InputError: as in loop.run, or the best metric was not a number in any validation.
          DivergedError, StoppedError: as in loop.run.
        """
        with mirrored(directory) as (local, mirror):
            return self._run(
                roberta, local, seed, mesh=mesh, fully_sharded=fully_sharded, tensorboard=tensorboard, plot=plot,
                progress=progress, mirror=mirror,
            )  # fmt: skip

    @abstractmethod
    def _run(self, roberta: Roberta, directory: Path, seed: int, **options: Any) -> _Result:
        """Does what `run` does in a directory of this machine; `options` are the others of `run`, and the mirror."""

    def _optimizer(self, config: RobertaConfig) -> tuple[optax.Schedule, optax.GradientTransformation]:
        return recipe_optimizer(
            self.recipe, config=config, warmup_steps=self.warmup_steps, total_steps=self.total_steps,
            layer_decay=self.layer_decay,
        )  # fmt: skip

    def _loop(
        self, train_step: loop.StepFunction, params: Params, opt_state: Any, batches: loop.Batches, *, pad_id: int,
        seed: int, **options: Any,
    ) -> tuple[int, str, int]:  # fmt: skip
        """Runs the loop by this job's numbers; `options` are the others of loop.run.

        Returns:
          The number of steps done, why the run stopped, and the number of steps at the best validation (Outcome).

        Raises:
          InputError: as in loop.run, or the best metric was not a number in any validation.
          DivergedError, StoppedError: as in loop.run.
        """
        outcome = loop.run(
            train_step,
            params,
            opt_state,
            batches,
            plan=loop.Plan(
                self.total_steps, self.validate_every, self.save_every, self.keep, self.log_every, self.patience,
                self.best, maximize=self.best not in LESS_IS_BETTER, seed=seed,
            ),
            accumulate=self.recipe.update_freq,
            tokens_of=lambda batch: int((batch["tokens"] != pad_id).sum()),
            **options,
        )  # fmt: skip
        if outcome.best_step is None:
            raise InputError(
                f"{self.best} was not a number in any validation on {self.validation.tally.path}, so there is no best "
                "model; choose another metric or train longer"
            )
        return outcome.steps, outcome.stopped, outcome.best_step

    def to_json(self) -> dict[str, Any]:
        """Returns the job and the counts of its files' rows, for json.dumps."""
        tallies = {"training": self.training.tally, "validation": self.validation.tally}
        return {
            "total_steps": self.total_steps,
            "warmup_steps": self.warmup_steps,
            "recipe": asdict(self.recipe),
            **{name: {**asdict(tally), "path": str(tally.path)} for name, tally in tallies.items()},
        }

    def _note(self, roberta: Roberta, seed: int) -> dict[str, Any]:
        """Returns everything that the run's numbers depend on, as a JSON object."""
        return {
            **self.note,
            "model": run_directory.model_fingerprint(roberta),
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


@dataclass(frozen=True)
class RunLength:
    """How long a run is and how often it validates and saves; None takes the default.

    Attributes:
      epochs, steps: the length, given by one of the two; the default is the recipe's.
      warmup_steps: number of warmup steps; the default is the recipe's share.
      validate_every: number of steps between validations; the default is an epoch.
      save_every: number of steps between checkpoints; the default is an epoch, but at least 100 and at most 1000.

    Raises:
      InputError: epochs, steps, validate_every or save_every is less than 1, or epochs and steps are both given.
    """

    epochs: int | None = None
    steps: int | None = None
    warmup_steps: int | None = None
    validate_every: int | None = None
    save_every: int | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "steps", "validate_every", "save_every"):
            if (count := getattr(self, name)) is not None and count < 1:
                raise InputError(f"{name} must be 1 or more, got {count}")
        if self.epochs is not None and self.steps is not None:
            raise InputError("give epochs or steps, not both")

    def attributes(self, recipe: Recipe, steps_per_epoch: int) -> dict[str, Any]:
        """Returns the matching attributes of TrainingJob."""
        warmup, total = recipe.steps(steps_per_epoch, epochs=self.epochs, steps=self.steps)
        least, most = _SAVE_EVERY_RANGE
        return {
            "warmup_steps": warmup if self.warmup_steps is None else self.warmup_steps,
            "total_steps": total,
            "validate_every": self.validate_every or steps_per_epoch,
            "save_every": self.save_every or min(max(steps_per_epoch, least), most),
        }


def best_metric(given: str | None, metrics: Sequence[str]) -> str:
    """Returns the metric that selects the best model: the one that is given, or else the first.

    Raises:
      InputError: there is no such metric.
    """
    if given is not None and given not in metrics:
        raise InputError(f"the best metric must be one of {', '.join(metrics)}, got {given!r}")
    return given or metrics[0]


def frozen_paths(freeze: Sequence[str], config: RobertaConfig) -> tuple[str, ...]:
    """Returns patterns of paths. A number becomes the embeddings and that many layers; others are already patterns.

    Raises:
      InputError: the model has fewer layers, or a pattern is not a regular expression.
    """
    patterns: list[str] = []
    for item in freeze:
        if not item.isdecimal():
            patterns.append(item)
        elif int(item) <= config.num_layers:
            patterns += ["embeddings", *(rf"layers\.{layer}\." for layer in range(int(item)))]
        else:
            raise InputError(f"freeze: {item} is more than the {config.num_layers} layers of the model")
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise InputError(f"freeze: {pattern!r} is not a regular expression: {error}") from None
    return tuple(dict.fromkeys(patterns))
