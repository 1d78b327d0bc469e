"""Fine-tuning: which part of a model is trained, and a run that leaves the best model in a directory."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from roberta_flax.checkpoint import converted
from roberta_flax.datasets.examples import Examples
from roberta_flax.datasets.recipes import Recipe
from roberta_flax.errors import InputError
from roberta_flax.hub import Roberta
from roberta_flax.metrics import LESS_IS_BETTER, Evaluation
from roberta_flax.nn import sharding
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from roberta_flax.nn.forward import Params
from roberta_flax.nn.model import Head
from roberta_flax.nn.numerics import Numerics
from roberta_flax.train import directory as layout
from roberta_flax.train import loop
from roberta_flax.train.batches import training_batches
from roberta_flax.train.losses import head_loss
from roberta_flax.train.optimizer import adam, polynomial_decay
from roberta_flax.train.step import init_optimizer, make_train_step
from roberta_flax.train.validation import Validation


@dataclass(frozen=True)
class FineTuning:
    """What is asked, whatever the seed.

    Attributes:
      head: to train.
      recipe: the hyper-parameters.
      warmup_steps, total_steps: how long (see Recipe.steps).
      training, validation: examples for the head.
      labels: the gold string of each class (see Validation).
      metrics: of the validation.
      best: of these or "loss": what says which parameters are the best.
      validate_every, save_every: steps between validations, and between checkpoints.
      patience: validations without a better one after which a run ends; None for none.
      freeze: patterns of parameters that stay as they are (see make_train_step).
      layer_decay: of the learning rate from each layer to the one below; 1 for none.
      numerics: of the computation (see head_loss).
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
    ) -> Result:
        """Fine-tunes a model, or goes on with a run that was stopped (see loop.run).

        Args:
          roberta: the model to begin with. Its parameters are given up.
          directory: the run's; the best model will be in its best.
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
        optimizer = self._optimizer(config)
        loss = head_loss(name, config=config, numerics=self.numerics)
        validation = Validation(
            self.validation, name, config=config, tokenizer=roberta.tokenizer, labels=self.labels,
            metrics=self.metrics, batch_size=recipe.batch_size, mesh=mesh, numerics=self.numerics,
        )  # fmt: skip

        def save_best(params: Params) -> None:
            whole = dataclasses.replace(config, lm_head=roberta.config.lm_head)
            layout.save_best(directory, whole, {**params, **rest}, roberta.tokenizer)

        outcome = loop.run(
            make_train_step(loss, optimizer, accumulate=recipe.update_freq, freeze=self.freeze),
            placed,
            init_optimizer(optimizer, placed, self.freeze),
            training_batches(
                self.training, batch_size=recipe.batch_size, update_freq=recipe.update_freq, pad_id=config.pad_id,
                max_positions=config.max_positions, seed=seed,
            ),
            plan=loop.Plan(
                self.total_steps, self.validate_every, self.save_every, patience=self.patience, best=self.best,
                maximize=self.best not in LESS_IS_BETTER, seed=seed,
            ),
            directory=directory,
            config_note=self._note(seed),
            schedule=self._schedule(),
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
        saved = _reached(converted.read(directory / layout.BEST)[1], self.head)
        judged, mean_loss = validation.evaluate(_placed(saved, config, mesh, fully_sharded))
        return Result(seed, outcome.steps, outcome.stopped, outcome.best_step, self.best, mean_loss, judged)

    def _schedule(self) -> optax.Schedule:
        return polynomial_decay(
            self.recipe.learning_rate,
            warmup_steps=self.warmup_steps,
            total_steps=self.total_steps,
            end_learning_rate=self.recipe.end_learning_rate,
        )

    def _optimizer(self, config: RobertaConfig) -> optax.GradientTransformation:
        return adam(
            self._schedule(),
            config=config,
            betas=self.recipe.adam_betas,
            eps=self.recipe.adam_eps,
            weight_decay=self.recipe.weight_decay,
            clip_norm=self.recipe.clip_norm,
            layer_decay=self.layer_decay,
        )

    def _note(self, seed: int) -> dict[str, Any]:
        """What the run's numbers depend on, as JSON has it."""
        plain = {
            "head": asdict(self.head),
            **asdict(self.recipe),
            "warmup_steps": self.warmup_steps,
            "total_steps": self.total_steps,
            "training": self.training.fingerprint(),
            "validation": self.validation.fingerprint(),
            "freeze": list(self.freeze),
            "layer_decay": self.layer_decay,
            "dtype": self.numerics.dtype.name,
            "precision": None if self.numerics.precision is None else self.numerics.precision.name.lower(),
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


def trained_part(roberta: Roberta, head: HeadConfig, recipe: Recipe, seed: int) -> tuple[RobertaConfig, Params]:
    """What is trained of a model: the network and one head, with the recipe's dropouts.

    Without the masked-LM head and other heads, which the loss does not reach: fairseq's Adam leaves parameters without
    a gradient alone, and they would only take memory.

    Args:
      roberta: the model. The arrays are its own, not copies.
      head: if the model has one of the same name and form, that goes on; any other begins anew, as in
        Roberta.register_classification_head.
      recipe: the hyper-parameters.
      seed: of a new head.
    """
    config = dataclasses.replace(
        roberta.config,
        dropout=recipe.dropout,
        attention_dropout=recipe.attention_dropout,
        lm_head=False,
        heads=(head,),
    )
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
