"""RoBERTa in torch, written from the paper and with fairseq's names: an independent network to compare with.

The network reads a fairseq checkpoint with torch.load and computes with the state dict as it is. So it relies neither
on our reader of checkpoints, nor on the table of names, nor on the Flax network. It supports every option of
RobertaConfig. For a model in another format, it takes the parameters of the converted directory, under fairseq's names.

The network passes each named tensor (roberta_flax.parity.tensor_names) to a callback, `on_value`, as it computes it. An
Arithmetic adds, multiplies and rounds: the one in this module leaves that to torch, and the one in
torch_simulated_rounding adds errors on purpose.
"""

from __future__ import annotations

import _codecs
import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from roberta_flax.checkpoint.tensors import StoredTensor
from roberta_flax.errors import CheckpointError
from roberta_flax.nn.config import HeadConfig, RobertaConfig

_ENCODER = "encoder.sentence_encoder"
TOKEN_TYPES = f"{_ENCODER}.embed_token_types.weight"  # only transformers has it; named in fairseq's style
_FAIRSEQ_EPSILON = 1e-5  # fairseq/modules/layer_norm.py
# Harmless types that checkpoints hold beside tensors: arguments, and numpy scalars in the history of the optimizer.
_SAFE_TYPES: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")),
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),  # as numpy 1 writes it
    np.float64(0).__reduce__()[0],
    _codecs.encode,
]

OnValue = Callable[[str, Tensor], None]  # called with the name and the value of a tensor


def ignore_value(name: str, value: Tensor) -> None:
    """An OnValue that does nothing."""


class Arithmetic:
    """The operations that the network is made of. This class leaves all of them to torch."""

    def product(
        self, equation: str, left: Tensor, right: Tensor, bias: Tensor | None = None, *, in_layer: bool = False
    ) -> Tensor:
        """Returns the einsum of two tensors, plus a bias. `in_layer` marks the six products of a layer with weights."""
        result = torch.einsum(equation, left, right)
        return result if bias is None else result + bias

    def sum(self, x: Tensor) -> Tensor:
        """Returns the sum over the last axis, which is kept with size 1."""
        return x.sum(-1, keepdim=True)

    def round(self, x: Tensor, units: float = 1.0) -> Tensor:
        """Rounds the result of one operation, which an implementation computes to within `units` units of roundoff."""
        return x

    def activate(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Applies an activation function to each element."""
        return function(x)

    def broadcast(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """Repeats a vector for every token of a batch. Its gradient is a sum over the tokens."""
        return x.expand(*shape)

    def lookup(self, table: Tensor, ids: Tensor) -> Tensor:
        """Looks up rows of a table. The gradient of a row is a sum over all positions that use it."""
        return table[ids]


# The error of exp, erf and tanh in units of roundoff. It is under 4 in the libraries in use: the vector functions of
# SVML, SLEEF and Eigen.
FUNCTION_UNITS = 4.0

# As in fairseq.utils.get_activation_fn.
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu_squared": lambda x: F.relu(x) ** 2,
    "gelu": F.gelu,
    "gelu_fast": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_accurate": lambda x: F.gelu(x, approximate="tanh"),
    "tanh": torch.tanh,
    "linear": lambda x: x,
}


def log_softmax(logits: Tensor, dim: int = -1, arithmetic: Arithmetic | None = None) -> Tensor:
    """Returns log-probabilities along an axis."""
    arithmetic = Arithmetic() if arithmetic is None else arithmetic
    x = logits.movedim(dim, -1)
    shifted = arithmetic.round(x - x.amax(-1, keepdim=True).detach())
    exponentials = arithmetic.round(shifted.exp(), FUNCTION_UNITS)
    logarithm = arithmetic.round(arithmetic.sum(exponentials).log(), FUNCTION_UNITS)
    return arithmetic.round(shifted - logarithm).movedim(-1, dim)


class TorchRoberta:
    """RoBERTa in torch, for evaluation only.

    Attributes:
      config: the configuration.
      state: the parameters, under the names that fairseq writes today, in the dtype of the computation.
    """

    def __init__(
        self, config: RobertaConfig, state: Mapping[str, Tensor], arithmetic: Arithmetic | None = None
    ) -> None:
        self.config = config
        self.state = dict(state)
        self.arithmetic = Arithmetic() if arithmetic is None else arithmetic

    @classmethod
    def from_checkpoint(cls, checkpoint: Path, dtype: torch.dtype = torch.float32) -> TorchRoberta:
        """Reads a fairseq checkpoint with plain arguments. Loads with weights_only, so that it executes no code.

        Raises:
          CheckpointError: torch refuses the file (because it holds objects of omegaconf, for example), or the file
            holds no arguments.
        """
        try:
            with torch.serialization.safe_globals(_SAFE_TYPES):
                loaded = torch.load(checkpoint, map_location="cpu", weights_only=True)
        except Exception as error:  # torch's unpickler raises errors of any kind
            reason = re.sub(r"\x1b\[\d*m", "", str(error)).splitlines()[0].split(". ")[0]
            raise CheckpointError(f"torch.load refuses {checkpoint}: {reason}") from None
        try:
            args = loaded["args"] or argparse.Namespace(**loaded["cfg"]["model"])
            state = {name: value.to(dtype) for name, value in _upgrade_names(loaded["model"]).items()}
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{checkpoint} holds no arguments and parameters: {error!r}") from None
        return cls(_read_config(args, state), state)

    @classmethod
    def from_tensors(
        cls, config: RobertaConfig, tensors: Mapping[str, StoredTensor], dtype: torch.dtype = torch.float32
    ) -> TorchRoberta:
        """Takes the parameters of a converted directory, by path in the tree."""
        from roberta_flax.convert.names import TRANSPOSE, to_fairseq

        state = {}
        for path, tensor in tensors.items():
            values = torch.from_numpy(tensor.read().astype("float64")).to(dtype)
            target = to_fairseq(path)
            if target is None:
                state[TOKEN_TYPES] = values
            else:
                state[target.path] = values.T.contiguous() if target.transform is TRANSPOSE else values
        return cls(config, state)

    def features(self, tokens: Tensor, on_value: OnValue = ignore_value) -> Tensor:
        """Returns the features of the last layer, [batch, time, hidden], for token ids [batch, time]."""
        config, arithmetic = self.config, self.arithmetic
        is_padding = tokens == config.pad_id
        positions = torch.cumsum(~is_padding, dim=1) * ~is_padding + config.pad_id
        x = arithmetic.lookup(self.state[f"{_ENCODER}.embed_tokens.weight"], tokens)
        if config.type_vocab_size:
            x = arithmetic.round(x + arithmetic.lookup(self.state[TOKEN_TYPES], torch.zeros_like(tokens)))
        x = arithmetic.round(x + arithmetic.lookup(self.state[f"{_ENCODER}.embed_positions.weight"], positions))
        on_value("embeddings.sum", x)
        if config.layernorm_embedding:
            x = self._layer_norm(f"{_ENCODER}.layernorm_embedding", x)
        x = x * ~is_padding[..., None]
        on_value("embeddings.output", x)
        for i in range(config.num_layers):
            x = self._layer(i, x, is_padding, on_value)
        if config.normalize_before:
            x = self._layer_norm(f"{_ENCODER}.layer_norm", x)
        on_value("features", x)
        return x

    def lm_logits(self, features: Tensor, on_value: OnValue = ignore_value) -> Tensor:
        """Returns masked-LM logits, [..., vocab], for features, [..., hidden]."""
        activation = _ACTIVATIONS[self.config.lm_head_activation]
        dense = self._linear("encoder.lm_head.dense", features)
        x = self._layer_norm("encoder.lm_head.layer_norm", self.arithmetic.activate(activation, dense))
        on_value("lm_head.layer_norm", x)
        tied = self.config.tie_word_embeddings
        rows = self.state[f"{_ENCODER}.embed_tokens.weight" if tied else "encoder.lm_head.weight"]
        return self._product("th,vh->tv", x, rows, self.state["encoder.lm_head.bias"])

    def head_logits(self, head: str, features: Tensor, on_value: OnValue = ignore_value) -> Tensor:
        """Returns the outputs of a head, [batch, (time,) classes], for features [batch, time, hidden]."""
        head_config, name = self.config.head(head), f"classification_heads.{head}"
        x = features[:, 0] if head_config.has_dense else features
        if head_config.has_dense:
            activation = _ACTIVATIONS[self.config.pooler_activation if head_config.kind == "sentence" else "tanh"]
            x = self.arithmetic.activate(activation, self._linear(f"{name}.dense", x))
            on_value(f"heads.{head}.dense", x)
        return self._linear(f"{name}.out_proj", x) if head_config.has_output else x

    def _layer(self, i: int, x: Tensor, is_padding: Tensor, on_value: OnValue) -> Tensor:
        prefix, arithmetic = f"{_ENCODER}.layers.{i}", self.arithmetic
        activation, pre_norm = _ACTIVATIONS[self.config.activation], self.config.normalize_before

        def on_layer_value(name: str, value: Tensor) -> None:
            on_value(f"layers.{i}.{name}", value)

        def attention_norm(x: Tensor) -> Tensor:
            x = self._layer_norm(f"{prefix}.self_attn_layer_norm", x)
            on_layer_value("attention_layer_norm", x)
            return x

        def feed_forward_norm(x: Tensor) -> Tensor:
            x = self._layer_norm(f"{prefix}.final_layer_norm", x)
            on_layer_value("feed_forward_layer_norm", x)
            return x

        attn_input = attention_norm(x) if pre_norm else x
        attn_output = self._attention(f"{prefix}.self_attn", attn_input, is_padding, on_layer_value)
        x = arithmetic.round(x + attn_output)
        x = x if pre_norm else attention_norm(x)

        intermediate = self._linear(f"{prefix}.fc1", feed_forward_norm(x) if pre_norm else x)
        on_layer_value("feed_forward.intermediate", intermediate)
        activated = arithmetic.activate(activation, intermediate)
        on_layer_value("feed_forward.activation", activated)
        mlp_output = self._linear(f"{prefix}.fc2", activated)
        on_layer_value("feed_forward.output", mlp_output)
        x = arithmetic.round(x + mlp_output)
        x = x if pre_norm else feed_forward_norm(x)
        on_layer_value("output", x)
        return x

    def _attention(self, name: str, x: Tensor, is_padding: Tensor, on_value: OnValue) -> Tensor:
        batch, time, hidden = x.shape
        heads, arithmetic = self.config.num_heads, self.arithmetic
        projected = {}
        for part in ("query", "key", "value"):
            projected[part] = self._linear(f"{name}.{part[0]}_proj", x)
            on_value(f"attention.{part}", projected[part])
        query, key, value = (tensor.view(batch, time, heads, -1) for tensor in projected.values())
        scores = arithmetic.product("bqhd,bkhd->bhqk", arithmetic.round(query / query.shape[-1] ** 0.5), key)
        on_value("attention.scores", scores)
        scores = scores.masked_fill(is_padding[:, None, None, :], torch.finfo(scores.dtype).min)
        shifted = arithmetic.round(scores - scores.amax(-1, keepdim=True).detach())
        exponentials = arithmetic.round(shifted.exp(), FUNCTION_UNITS)
        weights = arithmetic.round(exponentials / arithmetic.sum(exponentials))
        on_value("attention.weights", weights)
        context = arithmetic.product("bhqk,bkhd->bqhd", weights, value).reshape(batch, time, hidden)
        on_value("attention.context", context)
        attn_output = self._linear(f"{name}.out_proj", context)
        on_value("attention.output", attn_output)
        return attn_output

    def _linear(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return self._product("ti,oi->to", x, weight, bias, in_layer=".layers." in name)

    def _product(self, equation: str, x: Tensor, weight: Tensor, bias: Tensor, in_layer: bool = False) -> Tensor:
        """Multiplies x [..., inputs] by weight [outputs, inputs], and adds bias [outputs]."""
        rows = x.reshape(-1, x.shape[-1])
        biases = self.arithmetic.broadcast(bias, (len(rows), len(bias)))
        return self.arithmetic.product(equation, rows, weight, biases, in_layer=in_layer).view(*x.shape[:-1], -1)

    def _layer_norm(self, name: str, x: Tensor) -> Tensor:
        arithmetic, size = self.arithmetic, x.shape[-1]
        weight, bias = (arithmetic.broadcast(self.state[f"{name}.{part}"], x.shape) for part in ("weight", "bias"))
        centered = arithmetic.round(x - arithmetic.sum(x) / size)
        variance = arithmetic.sum(centered**2) / size
        scale = arithmetic.round((variance + self.config.layer_norm_epsilon).rsqrt(), FUNCTION_UNITS)
        return arithmetic.round(arithmetic.round(centered * scale) * weight + bias, 2)


def _upgrade_names(model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a state dict of any fairseq version under today's names (RobertaModel.upgrade_state_dict_named)."""
    state: dict[str, Tensor] = {}
    for name, tensor in model.items():
        name = re.sub(r"^decoder\.", "encoder.", name).replace(".emb_layer_norm.", ".layernorm_embedding.")
        if match := re.fullmatch(r"(.*self_attn\.)in_proj_(weight|bias)", name):
            for part, values in zip("qkv", tensor.chunk(3), strict=True):
                state[f"{match[1]}{part}_proj.{match[2]}"] = values
        else:
            state[name] = tensor
    return state


def _read_config(args: Any, state: Mapping[str, Tensor]) -> RobertaConfig:
    """Returns the configuration of a checkpoint. Missing arguments default to those of fairseq's base_architecture."""

    def argument(name: str, default: Any) -> Any:
        return getattr(args, name, default)

    activation = argument("activation_fn", "gelu")
    outputs = {name.split(".")[1]: tensor for name, tensor in state.items() if name.endswith("out_proj.weight")}
    heads = [
        HeadConfig(name, len(tensor), len(state[f"classification_heads.{name}.dense.weight"]))
        for name, tensor in outputs.items()
        if f"classification_heads.{name}.dense.weight" in state
    ]
    vocab_size, hidden_size = state[f"{_ENCODER}.embed_tokens.weight"].shape
    return RobertaConfig(
        vocab_size=vocab_size,
        num_layers=argument("encoder_layers", 12),
        hidden_size=hidden_size,
        num_heads=argument("encoder_attention_heads", 12),
        intermediate_size=argument("encoder_ffn_embed_dim", 3072),
        max_positions=len(state[f"{_ENCODER}.embed_positions.weight"]) - 2,
        activation=activation,
        lm_head_activation=activation,
        pooler_activation=argument("pooler_activation_fn", "tanh"),
        normalize_before=argument("encoder_normalize_before", False),
        layernorm_embedding=f"{_ENCODER}.layernorm_embedding.weight" in state,
        layer_norm_epsilon=_FAIRSEQ_EPSILON,
        tie_word_embeddings=not argument("untie_weights_roberta", False),
        heads=tuple(heads),
    )
