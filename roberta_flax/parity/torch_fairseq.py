"""fairseq's own RoBERTa as a reference: fairseq builds it, and hooks observe its tensors."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from roberta_flax.convert.export import fairseq_arguments
from roberta_flax.convert.names import TRANSPOSE, from_fairseq
from roberta_flax.errors import CheckpointError, InputError
from roberta_flax.extras import imported
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.parity.torch_hooks import OR_BUILTIN, Hook, forward_hooks, input_hook, output_hook
from roberta_flax.parity.torch_model import LM_HEAD
from roberta_flax.parity.torch_network import OnValue

# The modules of a layer, and the tensors that they output.
_LAYER_OUTPUTS = {
    "self_attn_layer_norm": "attention_layer_norm",
    "fc1": "feed_forward.intermediate",
    "fc2": "feed_forward.output",
    "final_layer_norm": "feed_forward_layer_norm",
}


class FairseqModel:
    """A torch_model.TorchModel: fairseq.models.roberta.RobertaModel, in float64 and in eval mode.

    It does not expose the scores, the weights and the context of attention, because
    torch.nn.functional.multi_head_attention_forward computes them.

    Args:
      state: the parameters under the names that fairseq writes today, float64.
      config: configuration of the model.
      parameters: where the parameters came from.
    """

    def __init__(self, state: Mapping[str, Tensor], config: RobertaConfig, parameters: str) -> None:
        with _keep_logging():
            for module in ("fairseq", "fairseq.models.roberta"):
                imported(module, "the reference fairseq", "the README's commands (Run the tests)", OR_BUILTIN)
            import fairseq
            from fairseq.models.roberta import RobertaModel
            from fairseq.models.roberta.model import base_architecture
        if config.type_vocab_size or any(head.kind != "sentence" for head in config.heads):
            raise InputError(
                "fairseq's RoBERTa has no token types, and no heads but sentence heads; use --reference builtin"
            )
        self.description: Mapping[str, str] = {
            "name": "fairseq",
            "version": fairseq.__version__,
            "parameters": parameters,
        }
        self._config = config
        args = fairseq_arguments(config, config.heads)
        base_architecture(args)
        task = argparse.Namespace(source_dictionary=_Dictionary(config))
        self._model = RobertaModel.build_model(args, task)
        for head in config.heads:
            self._model.register_classification_head(head.name, head.num_classes, head.inner_size)
        self._model = self._model.double().eval()
        self._load(state)
        self._encoder = self._model.encoder.sentence_encoder
        if config.activation == "gelu":
            self._use_float64_gelu()

    def _load(self, state: Mapping[str, Tensor]) -> None:
        # Without a version, fairseq would drop the last LayerNorm of a pre-norm network (TransformerEncoderBase).
        state = {"encoder.sentence_encoder.version": torch.tensor([3.0]), **state}
        if self._config.lm_head and self._config.tie_word_embeddings:
            state["encoder.lm_head.weight"] = state["encoder.sentence_encoder.embed_tokens.weight"]
        try:
            self._model.load_state_dict(state)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:500]
            raise CheckpointError(f"fairseq cannot load these parameters: {reason}") from None

    def _use_float64_gelu(self) -> None:
        """Replaces fairseq's gelu, which computes in float32 whatever its input is (fairseq/modules/gelu.py)."""
        for layer in self._encoder.layers:
            layer.activation_fn = F.gelu
        if self._config.lm_head:
            self._model.encoder.lm_head.activation_fn = F.gelu

    def state(self) -> dict[str, Tensor]:
        """Returns the parameters by name."""
        return {name: parameter.detach() for name, parameter in self._model.named_parameters()}

    def parameters(self) -> dict[str, tuple[Tensor, bool]]:
        """See TorchModel."""
        parameters = {}
        for name, parameter in self._model.named_parameters():
            target = from_fairseq(name)
            assert target is not None, name
            parameters[target.path] = (parameter, target.transform is TRANSPOSE)
        return parameters

    def run(self, tokens: Tensor, positions: Tensor, on_value: OnValue) -> dict[str, Tensor]:
        """See TorchModel."""
        with forward_hooks(self._hooks(on_value)):
            features, _ = self._model(tokens, features_only=True)
            on_value("features", features)
            outputs = {}
            if self._config.lm_head:
                selected = torch.take_along_dim(features, positions[..., None], 1)
                outputs[LM_HEAD] = self._model.encoder.lm_head(selected)
            for head in self._config.heads:
                outputs[head.name] = self._model.classification_heads[head.name](features)
        return outputs

    def _hooks(self, on_value: OnValue) -> Iterator[tuple[nn.Module, Hook]]:
        """Yields modules and their hooks."""
        encoder = self._encoder
        if encoder.layernorm_embedding is not None:
            yield encoder.layernorm_embedding, input_hook(on_value, "embeddings.sum")
        yield encoder.layers[0], input_hook(on_value, "embeddings.output", _batch_first)
        for i, layer in enumerate(encoder.layers):
            prefix = f"layers.{i}"
            for module, name in _LAYER_OUTPUTS.items():
                yield getattr(layer, module), output_hook(on_value, f"{prefix}.{name}", _batch_first)
            yield layer.fc2, input_hook(on_value, f"{prefix}.feed_forward.activation", _batch_first)
            yield layer.self_attn, partial(_on_attention, on_value, f"{prefix}.attention", layer.self_attn)
            yield layer, output_hook(on_value, f"{prefix}.output", _batch_first)
        if self._config.lm_head:
            yield self._model.encoder.lm_head.layer_norm, output_hook(on_value, "lm_head.layer_norm")
        for head in self._config.heads:
            module = self._model.classification_heads[head.name].out_proj
            yield module, input_hook(on_value, f"heads.{head.name}.dense")


def _batch_first(x: Tensor) -> Tensor:
    """Returns a tensor of the encoder, [time, batch, ...], as [batch, time, ...]."""
    return x.transpose(0, 1)


def _on_attention(on_value: OnValue, prefix: str, attention: Any, inputs: Any, output: Any) -> None:
    """Applies the projections once more: attention does not call them, but hands their weights to torch."""
    for part in ("query", "key", "value"):
        on_value(f"{prefix}.{part}", _batch_first(getattr(attention, f"{part[0]}_proj")(inputs[0])))
    on_value(f"{prefix}.output", _batch_first(output[0]))


@contextmanager
def _keep_logging() -> Iterator[None]:
    """Restores the root logger, which importing fairseq configures to print every message of every library."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


class _Dictionary:
    """The part of fairseq's Dictionary that building a model needs."""

    def __init__(self, config: RobertaConfig) -> None:
        self._size, self._pad = config.vocab_size, config.pad_id

    def __len__(self) -> int:
        return self._size

    def pad(self) -> int:
        """Returns the padding id."""
        return self._pad
