"""The torch side of a comparison: the exact values of every named tensor, and how far rounding may move them.

There are three references. "builtin" is roberta_flax.parity.torch_network; "fairseq" and "transformers" are the
libraries themselves, observed with hooks. All compute in float64, so that a comparison measures the error of the Flax
model alone.
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
from roberta_flax.checkpoint import usage as usages
from roberta_flax.checkpoint.converted import read_config, read_stored
from roberta_flax.checkpoint.usage import Usage
from roberta_flax.convert.conversion import open_source
from roberta_flax.convert.huggingface import HUB_PREFIX
from roberta_flax.convert.names import TRANSPOSE, from_fairseq
from roberta_flax.errors import CheckpointError, InputError
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from roberta_flax.parity.inputs import ParityBatch
from roberta_flax.parity.reference import SIMULATED_RUNS, Deviation, ReferenceValues
from roberta_flax.parity.rounding import Rounding
from roberta_flax.parity.tensor_names import (
    GRADIENTS,
    SENTENCE_VECTOR,
    compared_mask,
    cross_encoder_activation,
    has_log_probabilities,
)
from roberta_flax.parity.torch_model import LM_HEAD, TorchModel
from roberta_flax.parity.torch_network import (
    FUNCTION_UNITS,
    TOKEN_TYPES,
    Arithmetic,
    OnValue,
    TorchRoberta,
    log_softmax,
)
from roberta_flax.parity.torch_sentence import activate, sentence_vectors
from roberta_flax.parity.torch_simulated_rounding import SimulatedRounding

logger = logging.getLogger(__name__)

# Small roundoffs are simulated with this one, and the deviations scaled: float64 could not hold the errors of float64.
_SIMULATED_ROUNDOFF = 2.0**-30


class BuiltinModel:
    """TorchRoberta as a TorchModel, in any arithmetic."""

    def __init__(self, network: TorchRoberta, parameters: str) -> None:
        self.network = network
        self.description: Mapping[str, str] = {
            "name": "builtin",
            "version": f"torch {torch.__version__}",
            "parameters": parameters,
        }

    def run(self, tokens: Tensor, positions: Tensor, on_value: OnValue) -> dict[str, Tensor]:
        """See TorchModel."""
        network, outputs = self.network, {}
        features = network.features(tokens, on_value)
        if network.config.lm_head:
            selected = torch.take_along_dim(features, positions[..., None], 1)
            outputs[LM_HEAD] = network.lm_logits(selected, on_value)
        for head in network.config.heads:
            outputs[head.name] = network.head_logits(head.name, features, on_value)
        return outputs

    def parameters(self) -> dict[str, tuple[Tensor, bool]]:
        """See TorchModel."""
        parameters = {}
        is_tied = self.network.config.tie_word_embeddings
        for name, tensor in self.network.state.items():
            if name == TOKEN_TYPES:
                parameters["embeddings.token_type.embedding"] = (tensor, False)
            elif (target := from_fairseq(name)) and not (is_tied and target.path == "lm_head.embedding"):
                parameters[target.path] = (tensor, target.transform is TRANSPOSE)
        return parameters

    def with_arithmetic(self, arithmetic: Arithmetic) -> BuiltinModel:
        """Returns the same network with the same parameters in another arithmetic."""
        network = TorchRoberta(self.network.config, self.network.state, arithmetic)
        return BuiltinModel(network, self.description["parameters"])


class TorchReference:
    """A roberta_flax.parity.reference.Reference that runs torch.

    Args:
      model: the network that gives the exact values.
      builtin: the same network, to be run with simulated rounding.
      config: configuration of the model.
      batches: the inputs.
      names: names of the tensors to compute.
      usage: what the model's repository makes of the network's outputs.
    """

    def __init__(
        self,
        model: TorchModel,
        builtin: BuiltinModel,
        config: RobertaConfig,
        batches: Sequence[ParityBatch],
        names: Sequence[str],
        usage: Usage = Usage(),
    ) -> None:
        self.description = model.description
        self._model, self._builtin, self._config, self._usage = model, builtin, config, usage
        self._batches, self._names = batches, frozenset(names)

    def evaluate(self) -> Iterator[ReferenceValues]:
        """Evaluates each batch in turn."""
        for batch in self._batches:
            exact = self._exact_values(self._model, batch)
            values = {name: _to_array(name, value) for name, value in exact.items()}
            # Another model differs from the builtin one in the last bits, and deviations are measured in smaller units.
            builtin_exact = exact if isinstance(self._model, BuiltinModel) else None
            yield ReferenceValues(batch, values, partial(self._deviations, batch, builtin_exact, {}))

    def _exact_values(self, model: TorchModel, batch: ParityBatch) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {}

        def keep(name: str, value: Tensor) -> None:
            if name in self._names:
                values[name] = value.detach()

        self._run(model, batch, keep, Arithmetic())
        return values

    def _deviations(
        self,
        batch: ParityBatch,
        exact: Mapping[str, Tensor] | None,
        cache: dict[str, dict[str, Deviation]],
        rounding: Rounding,
    ) -> dict[str, Deviation]:
        """Returns the deviations of runs with simulated rounding.

        Args:
          batch: the inputs.
          exact: the exact values of the builtin model. If None, they are computed again, so that nobody has to keep
            them.
          cache: deviations by name of a rounding. Roundings that differ only in size share one simulation.
          rounding: the rounding to simulate.
        """
        factor = 1.0
        if rounding.operand == 0.0 and not rounding.int8:
            rounding, factor = Rounding(_SIMULATED_ROUNDOFF), rounding.result / _SIMULATED_ROUNDOFF
        if rounding.name not in cache:
            exact = self._exact_values(self._builtin, batch) if exact is None else exact
            cache[rounding.name] = self._simulate(batch, exact, rounding)
        return {name: deviation.scaled(factor) for name, deviation in cache[rounding.name].items()}

    def _simulate(self, batch: ParityBatch, exact: Mapping[str, Tensor], rounding: Rounding) -> dict[str, Deviation]:
        """Runs the builtin model SIMULATED_RUNS times with simulated rounding; returns its deviations from `exact`."""
        deviations: dict[str, Deviation] = {}

        def add_deviation(name: str, value: Tensor) -> None:
            if name in exact:
                differences = (value.detach() - exact[name]).abs()
                compared = torch.from_numpy(compared_mask(name, batch, self._config))
                if compared.dim():
                    differences = differences[compared.expand(differences.shape[: compared.dim()])]
                deviation = Deviation(float(differences.max()), float((differences**2).sum()), differences.numel())
                deviations[name] = deviation + deviations[name] if name in deviations else deviation

        for seed in range(SIMULATED_RUNS):
            arithmetic = SimulatedRounding(rounding, seed)
            self._run(self._builtin.with_arithmetic(arithmetic), batch, add_deviation, arithmetic)
        for head in self._config.heads:  # the error of a mean of log-probabilities is at most their largest error
            log_probabilities, loss = f"heads.{head.name}.log_probabilities", f"heads.{head.name}.loss"
            if head.problem == "single_label" and log_probabilities in deviations and loss in deviations:
                deviations[loss] = deviations[log_probabilities]
        return deviations

    def _run(self, model: TorchModel, batch: ParityBatch, on_value: OnValue, arithmetic: Arithmetic) -> None:
        """Runs the network, its losses, and its gradients if any of them is wanted."""
        wants_gradients = any(name.startswith(GRADIENTS) for name in self._names)
        parameters = model.parameters() if wants_gradients else {}
        for parameter, _ in parameters.values():
            parameter.requires_grad_(True)
        tokens, positions = torch.from_numpy(batch.tokens).long(), torch.from_numpy(batch.positions).long()
        with torch.set_grad_enabled(wants_gradients):
            seen: dict[str, Tensor] = {}

            def on_network_value(name: str, value: Tensor) -> None:
                if name in ("features", SENTENCE_VECTOR) or name.endswith(".score"):
                    seen[name] = value
                on_value(name, value)

            outputs = model.run(tokens, positions, on_network_value)
            losses = self._losses(outputs, tokens, batch, on_value, arithmetic)
            self._use(model, outputs, seen, tokens, on_value, arithmetic)
        if wants_gradients:
            total = torch.stack([loss.mean() for loss in losses]).sum()
            gradients = torch.autograd.grad(
                total, [parameter for parameter, _ in parameters.values()], materialize_grads=True, allow_unused=True
            )
            for (path, (_, is_transposed)), gradient in zip(parameters.items(), gradients, strict=True):
                on_value(GRADIENTS + path, gradient.T if is_transposed else gradient)

    def _use(
        self,
        model: TorchModel,
        outputs: Mapping[str, Tensor],
        seen: Mapping[str, Tensor],
        tokens: Tensor,
        on_value: OnValue,
        arithmetic: Arithmetic,
    ) -> None:
        """Passes scores and sentence vectors to `on_value`, but for those that a library has given itself.

        Args:
          model: the network.
          outputs: what its heads gave.
          seen: the features, and what a library has given.
          tokens, on_value, arithmetic: as in `_run`.
        """
        for head in self._config.heads:
            activation, name = cross_encoder_activation(head, self._usage), f"heads.{head.name}.score"
            if activation is not None and name not in seen:
                on_value(name, activate(activation, outputs[head.name], arithmetic))
        embedding = self._usage.embedding
        if embedding is not None and SENTENCE_VECTOR in self._names - seen.keys():
            network = (model if isinstance(model, BuiltinModel) else self._builtin).network
            is_token, params = tokens != self._config.pad_id, self._usage.module_params
            vectors = sentence_vectors(embedding, params, seen["features"], is_token, network.lm_logits, arithmetic)
            on_value(SENTENCE_VECTOR, vectors)

    def _losses(
        self,
        outputs: Mapping[str, Tensor],
        tokens: Tensor,
        batch: ParityBatch,
        on_value: OnValue,
        arithmetic: Arithmetic,
    ) -> list[Tensor]:
        """Passes logits, log-probabilities and losses to `on_value`; returns the losses of each item."""
        losses = []
        if LM_HEAD in outputs:
            on_value("lm_head.logits", outputs[LM_HEAD])
            losses.append(_masked_lm_losses(outputs[LM_HEAD], batch, arithmetic))
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
        return losses


def _to_array(name: str, value: Tensor) -> npt.NDArray[Any]:
    """Returns a tensor as an array. Losses have one element for each item, of which the mean is compared."""
    return np.asarray((value.mean() if name.endswith(".loss") else value).numpy())


def _log_probabilities(head: HeadConfig, outputs: Tensor, is_token: Tensor, arithmetic: Arithmetic) -> Tensor:
    """Returns what forward.head_log_probs returns: log-probabilities, or the outputs of a head that has none."""
    if head.kind == "span":
        outputs = outputs.masked_fill(~is_token[..., None], torch.finfo(outputs.dtype).min)
        return log_softmax(outputs, 1, arithmetic)
    if not has_log_probabilities(head):
        return outputs
    if head.problem == "multi_label":
        return arithmetic.round(F.logsigmoid(outputs), FUNCTION_UNITS)
    return log_softmax(outputs, -1, arithmetic)


def _masked_lm_losses(logits: Tensor, batch: ParityBatch, arithmetic: Arithmetic) -> Tensor:
    """Returns the loss at each position, as fairseq's masked_lm computes it."""
    targets = torch.from_numpy(batch.targets).long()
    losses = -log_softmax(logits, -1, arithmetic).take_along_dim(targets[..., None], -1)[..., 0]
    return losses[torch.from_numpy(batch.weights) > 0]


def _head_losses(
    head: HeadConfig, outputs: Tensor, log_probabilities: Tensor, batch: ParityBatch, arithmetic: Arithmetic
) -> Tensor:
    """Returns the loss of each row: the cross-entropy, the sum of binary cross-entropies, or the squared error."""
    targets = torch.from_numpy(np.array(batch.head_targets[head.name]))
    if head.problem == "regression":
        return arithmetic.round((outputs - targets.reshape(outputs.shape)) ** 2, 2).mean(-1)
    if head.problem == "multi_label":
        negative = arithmetic.round(F.logsigmoid(-outputs), FUNCTION_UNITS)
        return -(targets * log_probabilities + (1 - targets) * negative).sum(-1)
    return -log_probabilities.take_along_dim(targets.long()[:, None], -1)[:, 0]


def make_torch_reference(
    source: str | os.PathLike[str],
    directory: Path,
    reference: str,
    batches: Sequence[ParityBatch],
    names: Sequence[str],
    *,
    checkpoint_file: str = "model.pt",
    cache_dir: str | os.PathLike[str] | None = None,
) -> TorchReference:
    """Loads a model in torch.

    Args:
      source: the model, as the caller named it. torch reads it itself if it is a fairseq checkpoint.
      directory: the converted model.
      reference: one of roberta_flax.parity.reference.REFERENCES.
      batches: the inputs.
      names: names of the tensors to compute.
      checkpoint_file, cache_dir: as in convert().

    Raises:
      InputError: the reference is not installed, or does not support this model or gradients.
      CheckpointError: the model cannot be loaded in the reference's format.
    """
    config = read_config(directory)
    usage = usages.read(directory, config)
    builtin = _load_builtin(source, directory, checkpoint_file, cache_dir)
    model: TorchModel = builtin
    if reference == "fairseq":
        from roberta_flax.parity.torch_fairseq import FairseqModel

        model = FairseqModel(builtin.network.state, config, builtin.description["parameters"])
        builtin.network.state = model.state()  # share them: large would be in memory twice
    elif reference == "transformers":
        from roberta_flax.parity.torch_transformers import TransformersModel

        if any(name.startswith(GRADIENTS) for name in names):
            raise InputError(
                "transformers has one head in a model, so it cannot be the reference for gradients; use builtin or "
                "fairseq"
            )
        model = TransformersModel(source, directory, config, cache_dir)
    elif reference == "sentence-transformers":
        from roberta_flax.parity.torch_sentence_transformers import SentenceTransformersModel

        model = SentenceTransformersModel(source, directory, builtin, config, usage, cache_dir)
    return TorchReference(model, builtin, config, batches, names, usage)


def _load_builtin(
    source: str | os.PathLike[str], directory: Path, checkpoint_file: str, cache_dir: str | os.PathLike[str] | None
) -> BuiltinModel:
    """Loads the checkpoint itself if torch.load accepts it, or else the converted directory."""
    name = str(source)
    if name in download.MODELS:
        archive = download.cache_dir(cache_dir) / "downloads" / f"{download.archive_name(name)}.tar.gz"
        source = archive if archive.is_file() else directory
    if Path(source).resolve() != directory.resolve() and not name.startswith(HUB_PREFIX):
        with open_source(source, checkpoint_file, cache_dir) as source_files:
            if source_files.kind == "fairseq" and len(source_files.weights) == 1:
                try:
                    network = TorchRoberta.from_checkpoint(source_files.weights[0], torch.float64)
                except CheckpointError as error:
                    logger.warning("%s; its parameters are taken from the converted model", error)
                else:
                    return BuiltinModel(network, "torch.load of the checkpoint")
    config, tensors = read_stored(directory)
    return BuiltinModel(TorchRoberta.from_tensors(config, tensors, torch.float64), "the converted model's")
