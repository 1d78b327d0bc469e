"""The Flax side of a comparison: every named tensor of a batch, from the computation that users run."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import numpy.typing as npt

from roberta_flax.checkpoint import converted
from roberta_flax.checkpoint import usage as usages
from roberta_flax.checkpoint.usage import Embedding, Usage
from roberta_flax.errors import InputError
from roberta_flax.nn import forward
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.nn.forward import Params
from roberta_flax.nn.numerics import Numerics
from roberta_flax.nn.quantize import quantize
from roberta_flax.nn.sentence import sentence_vectors
from roberta_flax.nn.tree import flatten
from roberta_flax.parity.inputs import ParityBatch
from roberta_flax.parity.tensor_names import (
    GRADIENTS,
    SENTENCE_VECTOR,
    cross_encoder_activation,
    has_log_probabilities,
)
from roberta_flax.tasks.sentence_scores import activated
from roberta_flax.train.losses import head_loss, masked_lm_loss

if TYPE_CHECKING:
    from jaxtyping import Array

WITHOUT_LOSS = ("float16", "int8")  # nobody trains in these


class Subject:
    """A Flax model in one dtype, precision and attention implementation on one backend.

    Attributes:
      dtype: one of rounding.DTYPES.
      precision, attention: as in roberta_flax.forward.
      backend: "cpu", "gpu" or "tpu".
      usage: what the model's repository makes of the network's outputs.
    """

    def __init__(
        self,
        directory: Path,
        dtype: str,
        *,
        precision: str | None = None,
        attention: str | None = None,
        backend: str | None = None,
        sharing: Iterable[Subject] = (),
    ) -> None:
        """Reads a converted directory, or takes the parameters that one of `sharing` read of it.

        Raises:
          InputError: no such backend, or a dtype, precision or attention that cannot be had.
          CheckpointError: as of roberta_flax.load.
        """
        self.dtype, self.precision, self.attention = dtype, precision, attention
        self._device = device_of(backend)
        self.backend = self._device.platform
        with self._computing():
            compute = "float32" if dtype == "int8" else dtype
            self._numerics = Numerics(compute, precision=precision, attention=attention, quantized=dtype == "int8")
            stored = "float64" if dtype == "float64" else "float32"
            own = next((one for one in sharing if one.dtype != "int8" and one.stored == stored), None)
            config, params = (own.config, own.params) if own else converted.read(directory, stored)
            self.config: RobertaConfig = config
            self.usage: Usage = own.usage if own else usages.read(directory, config)
            self.params: Params = quantize(params) if dtype == "int8" else params
            self.stored: str = stored

    def observe(
        self, batch: ParityBatch, gradients: bool = False, names: Collection[str] | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """Computes the named tensors of a batch, in the shapes listed in tensor_names.py.

        Args:
          batch: the inputs.
          gradients: whether to compute gradients too.
          names: the tensors to compute; all if not given. Parts of the network that none of them needs do not run.
        """
        parts = None if names is None else {name.rpartition(".")[2] for name in names}
        with self._computing():
            found = self._intermediates(batch)
            if parts is None or parts & {"logits", "log_probabilities", "score"}:
                found |= self._results(batch)
            embedding = self.usage.embedding
            has_vector = embedding is not None and not embedding.is_multi_vector
            if embedding is not None and has_vector and (parts is None or SENTENCE_VECTOR in parts):
                found[SENTENCE_VECTOR] = self._sentence_vectors(embedding, batch)
            if self.dtype not in WITHOUT_LOSS and (parts is None or gradients or "loss" in parts):
                found |= self._losses(batch, gradients)
            return {name: np.asarray(value) for name, value in found.items()}

    def _intermediates(self, batch: ParityBatch) -> dict[str, Array]:
        # logits are those of the public functions
        names = [name for name in forward.intermediate_names(self.config) if not name.endswith(".logits")]
        return forward.intermediates(
            self.params, batch.tokens, batch.positions, names=names, config=self.config, numerics=self._numerics
        )

    def _results(self, batch: ParityBatch) -> dict[str, Array]:
        """Results of the public functions, with the requested attention; the last layer computes needed tokens only."""
        config, numerics = self.config, self._numerics
        found: dict[str, Array] = {}
        if config.lm_head:
            found["lm_head.logits"] = forward.lm_logits(
                self.params, batch.tokens, batch.positions, config=config, numerics=numerics
            )
        for head in self.config.heads:
            name = f"heads.{head.name}"
            found[f"{name}.logits"] = forward.head_logits(
                self.params, batch.tokens, head=head.name, config=config, numerics=numerics
            )
            if has_log_probabilities(head):
                log_probabilities = forward.head_log_probs(
                    self.params, batch.tokens, head=head.name, config=config, numerics=numerics
                )
                found[f"{name}.log_probabilities"] = log_probabilities
            if activation := cross_encoder_activation(head, self.usage):
                found[f"{name}.score"] = activated(found[f"{name}.logits"], activation)
        return found

    def _sentence_vectors(self, embedding: Embedding, batch: ParityBatch) -> Array:
        vectors: Array = sentence_vectors(
            self.params,
            self.usage.module_params,
            batch.tokens,
            modules=embedding.modules,
            config=self.config,
            numerics=self._numerics,
        )
        return vectors[:, : embedding.truncate_dim]

    def _losses(self, batch: ParityBatch, gradients: bool) -> dict[str, Array]:
        given = {
            "tokens": batch.tokens,
            "positions": batch.positions,
            "targets": batch.targets,
            "weights": batch.weights,
            "heads": dict(batch.head_targets),
        }
        found: dict[str, Array]
        if not gradients:
            _, found = _losses(self.params, given, config=self.config, numerics=self._numerics)
            return found
        (_, found), by_parameter = _gradients(self.params, given, config=self.config, numerics=self._numerics)
        return found | {GRADIENTS + path: gradient for path, gradient in flatten(by_parameter).items()}

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(jax.default_device(self._device))
            if self.dtype == "float64":
                stack.enter_context(jax.enable_x64(True))
            yield


def device_of(backend: str | None) -> jax.Device:
    """The first device of a backend, or JAX's own choice; InputError where there is none."""
    if backend is None:
        device: jax.Device = jax.devices()[0]
        return device
    try:
        device = jax.devices(backend)[0]
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"JAX has no backend {backend!r} here ({reason}); it has {jax.default_backend()!r}") from None
    return device


@partial(jax.jit, static_argnames=("config", "numerics"))
def _losses(
    params: Any, batch: dict[str, Any], *, config: RobertaConfig, numerics: Numerics
) -> tuple[Array, dict[str, Array]]:
    """The sum of all losses, each a mean; and each."""
    losses: dict[str, Array] = {}
    if config.lm_head:
        total, size = masked_lm_loss(config=config, numerics=numerics)(params, batch, None)
        losses["lm_head.loss"] = total / size
    rows = np.ones(len(batch["tokens"]), np.float32)
    for head, targets in batch["heads"].items():
        given = {"tokens": batch["tokens"], "targets": targets, "weights": rows}
        total, size = head_loss(head, config=config, numerics=numerics)(params, given, None)
        losses[f"heads.{head}.loss"] = total / size
    return sum(losses.values(), start=np.float32(0)), losses  # type: ignore[return-value]


@partial(jax.jit, static_argnames=("config", "numerics"))
def _gradients(
    params: Any, batch: dict[str, Any], *, config: RobertaConfig, numerics: Numerics
) -> tuple[tuple[Array, dict[str, Array]], Any]:
    """The results of _losses, and the gradient of their sum with respect to each parameter."""
    function = jax.value_and_grad(partial(_losses, config=config, numerics=numerics), has_aux=True)
    found: tuple[tuple[Array, dict[str, Array]], Any] = function(params, batch)
    return found
