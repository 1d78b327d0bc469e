"""Pretrains a masked language model, saves the best one in a directory, and computes perplexity.

>>> tokenizer = Tokenizer.from_directory("gpt2_bpe")
>>> corpus.write(["wiki.train.raw"], "train.bin", tokenizer)
>>> corpus.write(["wiki.valid.raw"], "valid.bin", tokenizer)
>>> pretraining = Pretraining(Path("train.bin"), Path("valid.bin"), total_steps=10_000, warmup_steps=500)
>>> pretraining.run(new_model(tokenizer, "base", seed=1), Path("run"))
>>> perplexity(roberta_flax.load("run/best"), Path("valid.bin"))
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from roberta_flax.datasets.recipes import PRETRAINING, Recipe
from roberta_flax.errors import InputError
from roberta_flax.hub import Roberta
from roberta_flax.nn import forward, sharding
from roberta_flax.nn.adapters import LoRA
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.nn.forward import Params
from roberta_flax.nn.meshes import with_own_mesh
from roberta_flax.nn.numerics import Numerics
from roberta_flax.tasks.base import check_finite
from roberta_flax.text.tokenizer import Tokenizer
from roberta_flax.train import directory as run_directory
from roberta_flax.train import loop
from roberta_flax.train.devices import place
from roberta_flax.train.losses import HostBatch, masked_lm_loss
from roberta_flax.train.masked_batches import training_batches
from roberta_flax.train.mirror import Mirror, as_given, mirrored
from roberta_flax.train.optimizer import recipe_optimizer
from roberta_flax.train.progress import is_first_process, report
from roberta_flax.train.samples import Samples
from roberta_flax.train.step import make_eval_step, make_train_step
from roberta_flax.train.trained import ApartAdapter, Trained, check_apart, lora_note

SIZES: Mapping[str, Callable[..., RobertaConfig]] = {"base": RobertaConfig.base, "large": RobertaConfig.large}


def new_model(tokenizer: Tokenizer, size: str = "base", *, seed: int = 1, **sizes: int) -> Roberta:
    """Initializes a model to pretrain from scratch, with fairseq's distributions.

    Args:
      tokenizer: the model's tokenizer.
      size: one of SIZES.
      seed: the seed that initializes the parameters.
      sizes: fields of RobertaConfig that replace those of `size`: num_layers=4, hidden_size=256, ...

    Raises:
      InputError: the size is unknown, or the fields contradict each other.
    """
    if size not in SIZES:
        raise InputError(
            f"size must be one of {', '.join(SIZES)}, got {size!r}; change it with num_layers, hidden_size and so on"
        )
    config = SIZES[size](vocab_size=tokenizer.vocab_size, **sizes)
    return Roberta(config, forward.init_params(config, jax.random.key(seed)), tokenizer)


@dataclass(frozen=True)
class Pretraining:
    """A pretraining job: the data and the hyperparameters, for any initial model.

    Attributes:
      training, validation: files of token ids, written by corpus.write.
      total_steps, warmup_steps: the length of a run; the default is the recipe's.
      samples: how the files become samples, and which tokens are masked. Its seed is also that of dropout.
      recipe: the hyperparameters.
      validate_every, save_every: number of steps between validations, and between checkpoints.
      keep: number of checkpoints to keep, the newest ones.
      log_every: log metrics every N steps.
      patience: stop after N validations in a row without improvement; None never stops early.
      numerics: how to compute.
      lora: settings of adapters to train in the place of the network; None trains the network.
      lora_apart: whether best/ is the adapter alone, in PEFT's files; otherwise it is merged into the network.
      note: anything else that a run's numbers depend on, as a JSON object. The content of the initial model and of the
        files is part of it in any case.
    """

    training: Path
    validation: Path
    total_steps: int | None = None
    warmup_steps: int | None = None
    samples: Samples = field(default_factory=Samples)
    recipe: Recipe = PRETRAINING
    validate_every: int = 1000
    save_every: int = 1000
    keep: int = 3
    log_every: int = 100
    patience: int | None = None
    numerics: Numerics = field(default_factory=Numerics)
    lora: LoRA | None = None
    lora_apart: bool = False
    note: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_apart(self.lora, self.lora_apart)

    def run(
        self,
        roberta: Roberta,
        directory: Path,
        *,
        mesh: Mesh | None = None,
        fully_sharded: bool = False,
        tensorboard: bool = False,
        plot: bool = False,
        progress: bool = True,
    ) -> Result:
        """Pretrains a model, or resumes a run that was stopped (see loop.run).

        The model's classification heads are dropped, because masked language modeling does not train them.

        Args:
          roberta: the initial model, from new_model or roberta_flax.load. Its parameters are donated, except with
            adapters.
          directory: the run's directory, also at a URL (module mirror). The best model is saved in its `best`, and the
            result in its `summary.json`.
          mesh: devices that share a batch's rows and each layer (devices.mesh_for); the default is one device.
          fully_sharded: whether to also divide the parameters over the devices that share the rows.
          tensorboard, plot, progress: as in loop.run.

        Raises:
          InputError: as in loop.run, or the files do not match the model.
          DivergedError, StoppedError: as in loop.run.
        """
        with mirrored(directory) as (local, mirror):
            return self._run(
                roberta, local, mesh=mesh, fully_sharded=fully_sharded, tensorboard=tensorboard, plot=plot,
                progress=progress, mirror=mirror,
            )  # fmt: skip

    @with_own_mesh
    def _run(
        self,
        roberta: Roberta,
        directory: Path,
        *,
        mesh: Mesh | None,
        fully_sharded: bool,
        progress: bool,
        mirror: Mirror | None,
        **options: Any,
    ) -> Result:
        """The same in a directory of this machine, which `mirror` uploads; `options` are those of loop.run."""
        recipe, tokenizer = self.recipe, roberta.tokenizer
        fingerprint = run_directory.model_fingerprint(roberta)
        config = recipe.with_dropout(dataclasses.replace(roberta.config, heads=()))
        params = {name: tree for name, tree in roberta.params.items() if name != "heads"}
        accumulate = recipe.update_freq if recipe.update_freq > 1 else None
        training_samples, training_note = self.samples.batches(
            self.training, tokenizer, config, recipe.batch_size, accumulate
        )
        validation_samples, validation_note = self.samples.batches(
            self.validation, tokenizer, config, recipe.batch_size
        )
        total, warmup = self._steps()
        schedule, optimizer = recipe_optimizer(recipe, config=config, warmup_steps=warmup, total_steps=total)
        loss = masked_lm_loss(config=config, numerics=self.numerics, lora=self.lora)
        train_step = make_train_step(loss, optimizer, accumulate=recipe.update_freq)
        eval_step = make_eval_step(
            masked_lm_loss(config=config, numerics=dataclasses.replace(self.numerics, remat=False))
        )
        apart = ApartAdapter.of(roberta, self.lora, config, None) if self.lora and self.lora_apart else None

        trained = Trained.of(
            params, config, self.lora, self.samples.seed, lambda tree: place(tree, config, mesh, fully_sharded)
        )
        if trained.lora is not None and progress:
            report(trained.to_text())

        def save_best(params: Params) -> None:
            if apart is not None:
                apart.save(directory / run_directory.BEST, params)
            else:
                run_directory.save_best(directory, config, trained.merged_to_save(params), tokenizer)

        outcome = loop.run(
            trained.step(train_step),
            trained.params,
            train_step.init(trained.params),
            training_batches(training_samples),
            plan=loop.Plan(
                total, self.validate_every, self.save_every, self.keep, self.log_every, self.patience,
                seed=self.samples.seed,
            ),
            directory=directory,
            config_note={
                **self.note,
                "model": fingerprint,
                "training": training_note,
                "validation": validation_note,
                "config": json.loads(config.to_json()),
                "samples": asdict(self.samples),
                **asdict(recipe),
                "warmup_steps": warmup,
                **lora_note(self.lora, self.lora_apart),
                **run_directory.numerics_note(self.numerics),
            },
            schedule=schedule,
            validate=lambda params: mean_loss(
                eval_step, trained.merged(params), validation_samples.in_order(), mesh
            ),
            save_best=save_best,
            check_best=lambda: run_directory.check_best(directory, is_adapter=apart is not None),
            mesh=mesh,
            accumulate=recipe.update_freq,
            tokens_of=lambda batch: int((batch["tokens"] != config.pad_id).sum()),
            progress=progress,
            mirror=mirror,
            **options,
        )  # fmt: skip
        best = as_given(directory, mirror) / run_directory.BEST
        result = Result(
            best, outcome.steps, outcome.stopped, outcome.best_step, outcome.best, training_samples.steps_per_epoch
        )
        if is_first_process():
            run_directory.write_summary(directory, result.to_json())
        return result

    def _steps(self) -> tuple[int, int]:
        """Returns the total number of steps and the number of warmup steps."""
        total = self.recipe.total_steps if self.total_steps is None else self.total_steps
        warmup = self.recipe.warmup_steps if self.warmup_steps is None else self.warmup_steps
        if total is None or warmup is None:
            raise InputError(f"{self.recipe.source} does not say how long to train; give total_steps and warmup_steps")
        return total, warmup


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
      model: the directory of the best model.
      steps: number of steps done.
      stopped: "done" after the last step, "patience" if the run stopped early.
      best_step: number of steps after which the model was best; None if no validation loss was a number.
      loss: the best model's validation loss, in nats per masked token.
      steps_per_epoch: number of steps in one pass over the training file.
    """

    model: Path
    steps: int
    stopped: Literal["done", "patience"]
    best_step: int | None
    loss: float | None
    steps_per_epoch: int

    @property
    def perplexity(self) -> float | None:
        """The exponential of the loss; None without a loss."""
        return None if self.loss is None else _exponential(self.loss)

    def to_json(self) -> dict[str, Any]:
        """Returns the fields by name, and the perplexity, for json.dumps."""
        return {**asdict(self), "model": str(self.model), "perplexity": self.perplexity}

    def to_text(self) -> str:
        """Returns one line for a terminal."""
        if self.loss is None:
            return (
                f"{self.model.parent}: {self.steps} steps; no validation loss was a number, so there is no best model"
            )
        return (
            f"{self.model}: validation loss {self.loss:.4f}, perplexity {self.perplexity:.2f}, from step "
            f"{self.best_step} of {self.steps}"
        )


@with_own_mesh
def perplexity(
    roberta: Roberta,
    path: Path,
    samples: Samples = Samples(),
    *,
    batch_size: int = 16,
    mesh: Mesh | None = None,
    numerics: Numerics | None = None,
) -> dict[str, float]:
    """Computes a model's masked-LM loss and perplexity on a file. Each sample is masked once, as the seed determines.

    Args:
      roberta: the model.
      path: a file of token ids, written by corpus.write.
      samples: how the file becomes samples, and which tokens are masked.
      batch_size: number of samples that all devices compute together.
      mesh: devices that share a batch (devices.mesh_for); the default is one device.
      numerics: how to compute; the default is the model's.

    Returns:
      The values of mean_loss, and "bits", the loss in bits, as fairseq prints it.

    Raises:
      InputError: the loss is NaN or infinite, no token is masked, or as in Samples.batches.
    """
    batches, _ = samples.batches(path, roberta.tokenizer, roberta.config, batch_size)
    params = roberta.params if mesh is None else sharding.place(roberta.params, roberta.config, mesh)
    step = make_eval_step(masked_lm_loss(config=roberta.config, numerics=numerics or roberta.numerics))
    found = mean_loss(step, params, batches.in_order(), mesh)
    if not found["size"]:
        raise InputError(f"{path}: no token was masked, so there is no loss; raise mask_prob, or give more text")
    check_finite(found["loss"])
    return {**found, "bits": found["loss"] / math.log(2)}


def mean_loss(
    eval_step: Callable[[Params, Any], tuple[Any, Any]],
    params: Params,
    batches: Iterable[HostBatch],
    mesh: Mesh | None = None,
) -> dict[str, float]:
    """Computes the mean masked-LM loss over batches, and the perplexity.

    Args:
      eval_step: a function of step.make_eval_step.
      params: the model's parameters.
      batches: the batches, such as MaskedBatches.in_order().
      mesh: the mesh of the parameters, if they are on several devices. Its DATA axis divides a batch's rows.

    Returns:
      "loss", in nats per predicted token; "perplexity", its exponential; and "size", the number of predicted tokens.
    """
    total = size = 0.0
    pending: deque[tuple[Any, Any]] = deque()

    def fetch_oldest() -> tuple[float, float]:
        loss, count = pending.popleft()
        return total + float(loss), size + float(count)

    for batch in batches:
        placed = jax.device_put(dict(batch)) if mesh is None else sharding.place_batch(batch, mesh)
        pending.append(eval_step(params, placed))
        if len(pending) > 1:
            total, size = fetch_oldest()
    while pending:
        total, size = fetch_oldest()
    loss = total / size if size else math.nan
    return {"loss": loss, "perplexity": _exponential(loss), "size": size}


def _exponential(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
