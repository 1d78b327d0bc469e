"""RoBERTa in torch, from the paper and fairseq's names, as something independent to compare with.

It reads a fairseq checkpoint with torch.load and computes on the state dict as it stands, so that neither our reader of
checkpoints, nor the table of names, nor the Flax network is taken on trust. Every choice of RobertaConfig is there. Of
a model in another form the parameters are those of the converted directory, under fairseq's names.

Each named value (roberta_flax.parity.points) is handed to `on_value` as it is computed. How numbers are added,
multiplied and rounded is the Arithmetic's: torch's own here, with simulated rounding errors in torch_noise.
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
TOKEN_TYPES = f"{_ENCODER}.embed_token_types.weight"  # transformers' alone; named as fairseq would have named it
_FAIRSEQ_EPSILON = 1e-5  # fairseq/modules/layer_norm.py
# what checkpoints hold beside tensors: arguments, and numpy's scalars in the optimizer's history
_INERT: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")),
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),  # as numpy 1 wrote it
    np.float64(0).__reduce__()[0],
    _codecs.encode,
]

OnValue = Callable[[str, Tensor], None]


class Arithmetic:
    """What the network is computed with; this one leaves everything to torch."""

    def product(
        self, equation: str, left: Tensor, right: Tensor, plus: Tensor | None = None, *, of_layer: bool = False
    ) -> Tensor:
        """The einsum of two tensors, plus another; of_layer: one of the six of a layer's that have weights."""
        result = torch.einsum(equation, left, right)
        return result if plus is None else result + plus

    def total(self, x: Tensor) -> Tensor:
        """The sum over the last axis, which stays."""
        return x.sum(-1, keepdim=True)

    def rounded(self, x: Tensor, units: float = 1.0) -> Tensor:
        """The result of one operation, from which an implementation may be `units` units of roundoff."""
        return x

    def activated(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """A function of each number."""
        return function(x)

    def repeated(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """A vector for every token of a batch: its gradient is a sum over them."""
        return x.expand(*shape)

    def rows(self, table: Tensor, ids: Tensor) -> Tensor:
        """Rows of a table: a row's gradient is a sum over the places where it is used."""
        return table[ids]


# units of roundoff of exp, erf and tanh in the libraries in use (SVML's, SLEEF's and Eigen's vector functions: under 4)
FUNCTION_UNITS = 4.0

# fairseq.utils.get_activation_fn
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
    """Log-probabilities along an axis."""
    arithmetic = Arithmetic() if arithmetic is None else arithmetic
    x = logits.movedim(dim, -1)
    shifted = arithmetic.rounded(x - x.amax(-1, keepdim=True).detach())
    exponentials = arithmetic.rounded(shifted.exp(), FUNCTION_UNITS)
    logarithm = arithmetic.rounded(arithmetic.total(exponentials).log(), FUNCTION_UNITS)
    return arithmetic.rounded(shifted - logarithm).movedim(-1, dim)


class TorchReference:
    """A RoBERTa in torch, evaluation only.

    Attributes:
      config: its sizes and choices.
      state: its parameters under the names that fairseq writes today, in the dtype that it computes in.
    """

    def __init__(
        self, config: RobertaConfig, state: Mapping[str, Tensor], arithmetic: Arithmetic | None = None
    ) -> None:
        self.config = config
        self.state = dict(state)
        self.arithmetic = Arithmetic() if arithmetic is None else arithmetic

    @classmethod
    def from_checkpoint(cls, checkpoint: Path, dtype: torch.dtype = torch.float32) -> TorchReference:
        """Reads a fairseq checkpoint with plain arguments; weights_only, so that nothing in it is executed.

        Raises:
          CheckpointError: torch refuses the file, as it does objects of omegaconf, or it holds no arguments.
        """
        try:
            with torch.serialization.safe_globals(_INERT):
                loaded = torch.load(checkpoint, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever its unpickler makes of the file
            first = re.sub(r"\x1b\[\d*m", "", str(error)).splitlines()[0].split(". ")[0]
            raise CheckpointError(f"torch.load does not take {checkpoint}: {first}") from None
        try:
            args = loaded["args"] or argparse.Namespace(**loaded["cfg"]["model"])
            state = {name: value.to(dtype) for name, value in _todays_names(loaded["model"]).items()}
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{checkpoint} holds no arguments and parameters: {error!r}") from None
        return cls(_config(args, state), state)

    @classmethod
    def from_tensors(
        cls, config: RobertaConfig, tensors: Mapping[str, StoredTensor], dtype: torch.dtype = torch.float32
    ) -> TorchReference:
        """The parameters of a converted directory, by path of the tree."""
        from roberta_flax.convert.names import TRANSPOSE, to_fairseq

        state = {}
        for path, tensor in tensors.items():
            values = torch.from_numpy(tensor.read().astype("float64")).to(dtype)
            place = to_fairseq(path)
            if place is None:
                state[TOKEN_TYPES] = values
            else:
                state[place.path] = values.T.contiguous() if place.transform is TRANSPOSE else values
        return cls(config, state)

    def features(self, tokens: Tensor, on_value: OnValue = lambda name, value: None) -> Tensor:
        """The last layer's features: [batch, time, hidden] from token ids [batch, time]."""
        config, arithmetic = self.config, self.arithmetic
        is_padding = tokens == config.pad_id
        positions = torch.cumsum(~is_padding, dim=1) * ~is_padding + config.pad_id
        x = arithmetic.rows(self.state[f"{_ENCODER}.embed_tokens.weight"], tokens)
        if config.type_vocab_size:
            x = arithmetic.rounded(x + arithmetic.rows(self.state[TOKEN_TYPES], torch.zeros_like(tokens)))
        x = arithmetic.rounded(x + arithmetic.rows(self.state[f"{_ENCODER}.embed_positions.weight"], positions))
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

    def lm_logits(self, features: Tensor, on_value: OnValue = lambda name, value: None) -> Tensor:
        """Masked-LM logits, [..., vocab], of features, [..., hidden]."""
        activation = _ACTIVATIONS[self.config.lm_head_activation]
        dense = self._linear("encoder.lm_head.dense", features)
        x = self._layer_norm("encoder.lm_head.layer_norm", self.arithmetic.activated(activation, dense))
        on_value("lm_head.layer_norm", x)
        tied = self.config.tie_word_embeddings
        rows = self.state[f"{_ENCODER}.embed_tokens.weight" if tied else "encoder.lm_head.weight"]
        return self._product("th,vh->tv", x, rows, self.state["encoder.lm_head.bias"])

    def head_logits(self, head: str, features: Tensor, on_value: OnValue = lambda name, value: None) -> Tensor:
        """A head's outputs of features [batch, time, hidden]: [batch, classes], or [batch, time, classes]."""
        kind, name = self.config.head(head), f"classification_heads.{head}"
        x = features[:, 0] if kind.has_dense else features
        if kind.has_dense:
            activation = _ACTIVATIONS[self.config.pooler_activation if kind.kind == "sentence" else "tanh"]
            x = self.arithmetic.activated(activation, self._linear(f"{name}.dense", x))
            on_value(f"heads.{head}.dense", x)
        return self._linear(f"{name}.out_proj", x) if kind.has_output else x

    def _layer(self, i: int, x: Tensor, is_padding: Tensor, on_value: OnValue) -> Tensor:
        name, point, arithmetic = f"{_ENCODER}.layers.{i}", f"layers.{i}", self.arithmetic
        activation, pre_norm = _ACTIVATIONS[self.config.activation], self.config.normalize_before

        def normalized(part: str, which: str, x: Tensor) -> Tensor:
            x = self._layer_norm(f"{name}.{which}", x)
            on_value(f"{point}.{part}", x)
            return x

        def attention_norm(x: Tensor) -> Tensor:
            return normalized("attention_layer_norm", "self_attn_layer_norm", x)

        def feed_forward_norm(x: Tensor) -> Tensor:
            return normalized("feed_forward_layer_norm", "final_layer_norm", x)

        context = attention_norm(x) if pre_norm else x
        attn_output = self._attention(
            f"{name}.self_attn", context, is_padding, lambda n, v: on_value(f"{point}.attention.{n}", v)
        )
        x = arithmetic.rounded(x + attn_output)
        x = x if pre_norm else attention_norm(x)

        intermediate = self._linear(f"{name}.fc1", feed_forward_norm(x) if pre_norm else x)
        on_value(f"{point}.feed_forward.intermediate", intermediate)
        activated = arithmetic.activated(activation, intermediate)
        on_value(f"{point}.feed_forward.activation", activated)
        mlp_output = self._linear(f"{name}.fc2", activated)
        on_value(f"{point}.feed_forward.output", mlp_output)
        x = arithmetic.rounded(x + mlp_output)
        x = x if pre_norm else feed_forward_norm(x)
        on_value(f"{point}.output", x)
        return x

    def _attention(self, name: str, x: Tensor, is_padding: Tensor, on_value: OnValue) -> Tensor:
        batch, time, hidden = x.shape
        heads, arithmetic = self.config.num_heads, self.arithmetic
        projected = {}
        for part in ("query", "key", "value"):
            projected[part] = self._linear(f"{name}.{part[0]}_proj", x)
            on_value(part, projected[part])
        query, key, value = (each.view(batch, time, heads, -1) for each in projected.values())
        scores = arithmetic.product("bqhd,bkhd->bhqk", arithmetic.rounded(query / query.shape[-1] ** 0.5), key)
        on_value("scores", scores)
        scores = scores.masked_fill(is_padding[:, None, None, :], torch.finfo(scores.dtype).min)
        shifted = arithmetic.rounded(scores - scores.amax(-1, keepdim=True).detach())
        exponentials = arithmetic.rounded(shifted.exp(), FUNCTION_UNITS)
        weights = arithmetic.rounded(exponentials / arithmetic.total(exponentials))
        on_value("weights", weights)
        context = arithmetic.product("bhqk,bkhd->bqhd", weights, value).reshape(batch, time, hidden)
        on_value("context", context)
        attn_output = self._linear(f"{name}.out_proj", context)
        on_value("output", attn_output)
        return attn_output

    def _linear(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return self._product("ti,oi->to", x, weight, bias, of_layer=".layers." in name)

    def _product(self, equation: str, x: Tensor, weight: Tensor, bias: Tensor, of_layer: bool = False) -> Tensor:
        """x [..., inputs] by weight [outputs, inputs], plus bias [outputs]."""
        rows = x.reshape(-1, x.shape[-1])
        plus = self.arithmetic.repeated(bias, (len(rows), len(bias)))
        return self.arithmetic.product(equation, rows, weight, plus, of_layer=of_layer).view(*x.shape[:-1], -1)

    def _layer_norm(self, name: str, x: Tensor) -> Tensor:
        arithmetic, size = self.arithmetic, x.shape[-1]
        weight, bias = (arithmetic.repeated(self.state[f"{name}.{part}"], x.shape) for part in ("weight", "bias"))
        centered = arithmetic.rounded(x - arithmetic.total(x) / size)
        variance = arithmetic.total(centered**2) / size
        scale = arithmetic.rounded((variance + self.config.layer_norm_epsilon).rsqrt(), FUNCTION_UNITS)
        return arithmetic.rounded(arithmetic.rounded(centered * scale) * weight + bias, 2)


def _todays_names(model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """fairseq's state dict as it is written today, of whatever year (RobertaModel.upgrade_state_dict_named)."""
    state: dict[str, Tensor] = {}
    for name, tensor in model.items():
        name = re.sub(r"^decoder\.", "encoder.", name).replace(".emb_layer_norm.", ".layernorm_embedding.")
        if match := re.fullmatch(r"(.*self_attn\.)in_proj_(weight|bias)", name):
            for part, values in zip("qkv", tensor.chunk(3), strict=True):
                state[f"{match[1]}{part}_proj.{match[2]}"] = values
        else:
            state[name] = tensor
    return state


def _config(args: Any, state: Mapping[str, Tensor]) -> RobertaConfig:
    """A checkpoint's sizes and choices; what `args` does not say is as fairseq's base_architecture has it."""

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
