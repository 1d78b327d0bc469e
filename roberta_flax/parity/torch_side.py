"""The torch side of a parity comparison: what a reference computes at every named point, and how sure it can be.

Three references: "builtin" is torch_network; "fairseq" and "transformers" are the libraries themselves,
watched by hooks. All compute in float64, so that what is measured is the other side's error.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from roberta_flax.checkpoint import download
from roberta_flax.checkpoint.converted import read_config, read_stored
from roberta_flax.convert.conversion import open_source
from roberta_flax.convert.huggingface import HUB_PREFIX
from roberta_flax.convert.names import TRANSPOSE, from_fairseq
from roberta_flax.errors import CheckpointError, InputError
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from roberta_flax.parity.inputs import ParityBatch
from roberta_flax.parity.points import GRADIENTS, counted, has_log_probabilities
from roberta_flax.parity.reference import SAMPLES, Observed, Spread
from roberta_flax.parity.rounding import Rounding
from roberta_flax.parity.torch_hooks import Model
from roberta_flax.parity.torch_network import (
    FUNCTION_UNITS,
    TOKEN_TYPES,
    Arithmetic,
    OnValue,
    TorchReference,
    log_softmax,
)
from roberta_flax.parity.torch_noise import Noise

logger = logging.getLogger(__name__)

_SIMULATED = 2.0**-30  # the unit roundoff by which small ones are simulated: float64 could not hold float64's errors


class Builtin:
    """torch_network.TorchReference as a Model, in any arithmetic."""

    def __init__(self, reference: TorchReference, parameters: str) -> None:
        self.reference = reference
        self.description: Mapping[str, str] = {
            "name": "builtin",
            "version": f"torch {torch.__version__}",
            "parameters": parameters,
        }

    def run(self, tokens: Tensor, positions: Tensor, on_value: OnValue) -> dict[str, Tensor]:
        """See Model."""
        reference, outputs = self.reference, {}
        features = reference.features(tokens, on_value)
        if reference.config.lm_head:
            selected = torch.take_along_dim(features, positions[..., None], 1)
            outputs[""] = reference.lm_logits(selected, on_value)
        for head in reference.config.heads:
            outputs[head.name] = reference.head_logits(head.name, features, on_value)
        return outputs

    def parameters(self) -> dict[str, tuple[Tensor, bool]]:
        """See Model."""
        found = {}
        for name, tensor in self.reference.state.items():
            if name == TOKEN_TYPES:
                found["embeddings.token_type.embedding"] = (tensor, False)
            elif (place := from_fairseq(name)) and not (
                place.path == "lm_head.embedding" and self.reference.config.tie_word_embeddings
            ):
                found[place.path] = (tensor, place.transform is TRANSPOSE)
        return found

    def with_arithmetic(self, arithmetic: Arithmetic) -> Builtin:
        """The same network and parameters, computed otherwise."""
        reference = TorchReference(self.reference.config, self.reference.state, arithmetic)
        return Builtin(reference, self.description["parameters"])


class TorchSide:
    """A roberta_flax.parity.reference.Reference that computes.

    Args:
      model: what the exact values come from.
      builtin: the same network, of which computations with errors are made.
      config: of the model.
      batches: the inputs.
      points: the names of those that are wanted.
    """

    def __init__(
        self,
        model: Model,
        builtin: Builtin,
        config: RobertaConfig,
        batches: Sequence[ParityBatch],
        points: Sequence[str],
    ) -> None:
        self.description = model.description
        self._model, self._builtin, self._config = model, builtin, config
        self._batches, self._points = batches, frozenset(points)

    def observations(self) -> Iterator[Observed]:
        """Each batch in turn."""
        for batch in self._batches:
            exact = self._observe(self._model, batch)
            values = {point: _as_numbers(point, value) for point, value in exact.items()}
            # another model's is not the builtin's to the last bit, and the errors are measured in units below that
            of_builtin = exact if isinstance(self._model, Builtin) else None
            yield Observed(batch, values, partial(self._spreads, batch, of_builtin, {}))

    def _observe(self, model: Model, batch: ParityBatch) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {}

        def on_value(point: str, value: Tensor) -> None:
            if point in self._points:
                values[point] = value.detach()

        self._compute(model, batch, on_value, Arithmetic())
        return values

    def _spreads(
        self,
        batch: ParityBatch,
        exact: Mapping[str, Tensor] | None,
        known: dict[str, dict[str, Spread]],
        rounding: Rounding,
    ) -> dict[str, Spread]:
        """Distances of computations with errors; those of roundings that differ in size alone are computed once.

        The builtin's own exact values are computed anew where they are not given, so that nobody need keep them.
        """
        factor = 1.0
        if rounding.operand == 0.0 and not rounding.int8:
            rounding, factor = Rounding(_SIMULATED), rounding.result / _SIMULATED
        if rounding.name not in known:
            spreads: dict[str, Spread] = {}
            exact = self._observe(self._builtin, batch) if exact is None else exact

            def on_value(point: str, value: Tensor, exact: Mapping[str, Tensor] = exact) -> None:
                if point in exact:
                    chosen = torch.from_numpy(counted(point, batch, self._config))
                    distance = (value.detach() - exact[point]).abs()
                    distance = distance[chosen.expand(distance.shape[: chosen.dim()])] if chosen.dim() else distance
                    found = Spread(float(distance.max()), float((distance**2).sum()), distance.numel())
                    spreads[point] = found + spreads[point] if point in spreads else found

            for seed in range(SAMPLES):
                noise = Noise(rounding, seed)
                self._compute(self._builtin.with_arithmetic(noise), batch, on_value, noise)
            for head in self._config.heads:  # the mean of some log-probabilities is off by their largest error at most
                of_classes = spreads.get(f"heads.{head.name}.log_probabilities")
                if head.problem == "single_label" and of_classes and f"heads.{head.name}.loss" in spreads:
                    spreads[f"heads.{head.name}.loss"] = of_classes
            known[rounding.name] = spreads
        return {point: spread.scaled(factor) for point, spread in known[rounding.name].items()}

    def _compute(self, model: Model, batch: ParityBatch, on_value: OnValue, arithmetic: Arithmetic) -> None:
        """Everything, losses and gradients included."""
        gradients = any(point.startswith(GRADIENTS) for point in self._points)
        parameters = model.parameters() if gradients else {}
        for parameter, _ in parameters.values():
            parameter.requires_grad_(True)
        tokens, positions = torch.from_numpy(batch.tokens).long(), torch.from_numpy(batch.positions).long()
        with torch.set_grad_enabled(gradients):
            outputs = model.run(tokens, positions, on_value)
            losses = []
            if "" in outputs:
                on_value("lm_head.logits", outputs[""])
                losses.append(_masked_lm_losses(outputs[""], batch, arithmetic))
                on_value("lm_head.loss", losses[-1])
            for head in self._config.heads:
                on_value(f"heads.{head.name}.logits", outputs[head.name])
                is_token = tokens != self._config.pad_id
                log_probabilities = _log_probabilities(head, outputs[head.name], is_token, arithmetic)
                if has_log_probabilities(head):
                    on_value(f"heads.{head.name}.log_probabilities", log_probabilities)
                if head.kind == "sentence":
                    losses.append(_head_losses(head, outputs[head.name], log_probabilities, batch, arithmetic))
                    on_value(f"heads.{head.name}.loss", losses[-1])
        if gradients:
            total = torch.stack([each.mean() for each in losses]).sum()
            found = torch.autograd.grad(
                total, [each for each, _ in parameters.values()], materialize_grads=True, allow_unused=True
            )
            for (path, (_, transposed)), gradient in zip(parameters.items(), found, strict=True):
                on_value(GRADIENTS + path, gradient.T if transposed else gradient)


def _as_numbers(point: str, value: Tensor) -> npt.NDArray[Any]:
    """A point's value; of a loss, which is shown item by item, the mean."""
    return np.asarray((value.mean() if point.endswith(".loss") else value).numpy())


def _log_probabilities(head: HeadConfig, outputs: Tensor, is_token: Tensor, arithmetic: Arithmetic) -> Tensor:
    """As forward.head_log_probs gives them; the outputs themselves where they are none."""
    if head.kind == "span":
        outputs = outputs.masked_fill(~is_token[..., None], torch.finfo(outputs.dtype).min)
        return log_softmax(outputs, 1, arithmetic)
    if not has_log_probabilities(head):
        return outputs
    if head.problem == "multi_label":
        return arithmetic.rounded(F.logsigmoid(outputs), FUNCTION_UNITS)
    return log_softmax(outputs, -1, arithmetic)


def _masked_lm_losses(logits: Tensor, batch: ParityBatch, arithmetic: Arithmetic) -> Tensor:
    """The loss of each position: fairseq's masked_lm."""
    targets = torch.from_numpy(batch.targets).long()
    each = -log_softmax(logits, -1, arithmetic).take_along_dim(targets[..., None], -1)[..., 0]
    return each[torch.from_numpy(batch.weights) > 0]


def _head_losses(
    head: HeadConfig, outputs: Tensor, log_probabilities: Tensor, batch: ParityBatch, arithmetic: Arithmetic
) -> Tensor:
    """The loss of each row: cross-entropy, the sum of binary ones, or the squared error."""
    targets = torch.from_numpy(np.array(batch.head_targets[head.name]))
    if head.problem == "regression":
        return arithmetic.rounded((outputs - targets.reshape(outputs.shape)) ** 2, 2).mean(-1)
    if head.problem == "multi_label":
        negative = arithmetic.rounded(F.logsigmoid(-outputs), FUNCTION_UNITS)
        return -(targets * log_probabilities + (1 - targets) * negative).sum(-1)
    return -log_probabilities.take_along_dim(targets.long()[:, None], -1)[:, 0]


def torch_side(
    source: str | os.PathLike[str],
    directory: Path,
    reference: str,
    batches: Sequence[ParityBatch],
    points: Sequence[str],
    *,
    checkpoint_file: str = "model.pt",
    cache_dir: str | os.PathLike[str] | None = None,
) -> TorchSide:
    """The torch side of a comparison.

    Args:
      source: the model, as it was named: torch reads it itself where it is a fairseq checkpoint.
      directory: the same, converted.
      reference: one of roberta_flax.parity.reference.REFERENCES.
      batches: the inputs.
      points: the names of those that are wanted.
      checkpoint_file, cache_dir: as in convert().

    Raises:
      InputError: the reference is not installed, or cannot show what is asked for.
      CheckpointError: the model cannot be had in the reference's form.
    """
    config = read_config(directory)
    builtin = _builtin(source, directory, checkpoint_file, cache_dir)
    model: Model = builtin
    if reference == "fairseq":
        from roberta_flax.parity.torch_fairseq import Fairseq

        model = Fairseq(builtin.reference.state, config, builtin.description["parameters"])
        builtin.reference.state = model.state()  # large's would be in memory twice
    elif reference == "transformers":
        from roberta_flax.parity.torch_transformers import Transformers

        if any(point.startswith(GRADIENTS) for point in points):
            raise InputError(
                "gradients are compared with the builtin reference or fairseq: transformers has one head a model"
            )
        model = Transformers(source, directory, config, cache_dir)
    return TorchSide(model, builtin, config, batches, points)


def _builtin(
    source: str | os.PathLike[str], directory: Path, checkpoint_file: str, cache_dir: str | os.PathLike[str] | None
) -> Builtin:
    """From the checkpoint itself where torch.load takes it, else from the converted directory."""
    name = str(source)
    if name in download.MODELS:
        archive = download.cache_dir(cache_dir) / "downloads" / f"{download.archive_name(name)}.tar.gz"
        source = archive if archive.is_file() else directory
    if Path(source).resolve() != directory.resolve() and not name.startswith(HUB_PREFIX):
        with open_source(source, checkpoint_file, cache_dir) as source_files:
            if source_files.kind == "fairseq" and len(source_files.weights) == 1:
                try:
                    reference = TorchReference.from_checkpoint(source_files.weights[0], torch.float64)
                except CheckpointError as error:
                    logger.warning("%s; its parameters are taken from the converted model", error)
                else:
                    return Builtin(reference, "torch.load of the checkpoint")
    config, tensors = read_stored(directory)
    return Builtin(TorchReference.from_tensors(config, tensors, torch.float64), "the converted model's")
