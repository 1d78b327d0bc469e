"""What sentence-transformers makes of a network's outputs, in torch and in any arithmetic: vectors and scores.

Written from sentence_transformers/models, and independent of nn.sentence but for the modules' settings. Modules compute
in the dtype of results: their products do not round their operands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from roberta_flax.checkpoint.usage import Embedding
from roberta_flax.nn.sentence import Dense, LayerNorm, Module, ModuleParams, Normalize, Pooling, SpladePooling
from roberta_flax.parity.torch_network import FUNCTION_UNITS, Arithmetic

_LAYER_NORM_EPSILON = 1e-5  # torch.nn.LayerNorm
_NORMALIZE_EPSILON = 1e-12  # torch.nn.functional.normalize
_POSITIONS_AT_ONCE = 32  # of which there are logits over the vocabulary
_CLASSES: Mapping[str, type[nn.Module]] = {
    name.lower(): getattr(nn, name)
    for name in (
        "Identity", "CELU", "ELU", "GELU", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyReLU", "LogSigmoid", "Mish",
        "ReLU", "ReLU6", "SELU", "Sigmoid", "SiLU", "Softplus", "Softsign", "Tanh",
    )
}  # fmt: skip


def activate(name: str, x: Tensor, arithmetic: Arithmetic) -> Tensor:
    """Applies one of nn.sentence.ACTIVATIONS."""
    if name == "softmax":
        shifted = arithmetic.round(x - x.amax(-1, keepdim=True).detach())
        exponentials = arithmetic.round(shifted.exp(), FUNCTION_UNITS)
        return arithmetic.round(exponentials / arithmetic.sum(exponentials))
    return arithmetic.activate(_CLASSES[name](), x)


def sentence_vectors(
    embedding: Embedding,
    module_params: Sequence[ModuleParams],
    features: Tensor,
    is_token: Tensor,
    lm_logits: Callable[[Tensor], Tensor],
    arithmetic: Arithmetic,
) -> Tensor:
    """Returns one vector for each row, [batch, size].

    Args:
      embedding, module_params: as a converted directory keeps them (checkpoint.usage).
      features: the network's, [batch, time, hidden].
      is_token: which positions are no padding, [batch, time].
      lm_logits: the masked-LM head, a function of features.
      arithmetic: what computes.
    """
    pooling, *others = embedding.modules
    if isinstance(pooling, SpladePooling):
        x = _token_weights(pooling, features, is_token, lm_logits, arithmetic)
    else:
        assert isinstance(pooling, Pooling)
        x = torch.cat([_pooled(mode, features, is_token, arithmetic) for mode in pooling.modes], dim=-1)
    for module, arrays in zip(others, module_params[1:], strict=True):
        params = {name: torch.from_numpy(np.asarray(value, np.float64)) for name, value in arrays.items()}
        x = _applied(module, x, params, arithmetic)
    return x[:, : embedding.truncate_dim]


def _pooled(mode: str, features: Tensor, is_token: Tensor, arithmetic: Arithmetic) -> Tensor:
    if mode == "cls":
        return features[:, 0]
    if mode == "max":
        return features.masked_fill(~is_token[..., None], -torch.inf).amax(1)
    positions = torch.arange(1, is_token.shape[1] + 1)
    if mode == "lasttoken":
        last = (is_token * positions).argmax(1)
        return features[torch.arange(len(features)), last]
    weights = (is_token * (positions if mode == "weightedmean" else 1)).to(features.dtype)
    terms = features * weights[..., None]
    terms = arithmetic.round(terms) if mode == "weightedmean" else terms
    total, count = arithmetic.sum(terms.transpose(1, 2))[..., 0], weights.sum(1, keepdim=True)
    return arithmetic.round(total / (count.sqrt() if mode == "mean_sqrt_len_tokens" else count), 2)


def _token_weights(
    pooling: SpladePooling,
    features: Tensor,
    is_token: Tensor,
    lm_logits: Callable[[Tensor], Tensor],
    arithmetic: Arithmetic,
) -> Tensor:
    """The logits of all positions would be the largest tensor by far: they are computed for a few at a time."""
    total = features.new_zeros(len(features), pooling.vocab_size)
    for begin in range(0, features.shape[1], _POSITIONS_AT_ONCE):
        part = slice(begin, begin + _POSITIONS_AT_ONCE)
        x = lm_logits(features[:, part]).relu() * is_token[:, part, None]
        for _ in range(2 if pooling.activation == "log1p_relu" else 1):
            x = arithmetic.round(x.log1p(), FUNCTION_UNITS)
        if pooling.strategy == "max":
            total = torch.maximum(total, x.amax(1))
        else:
            total = arithmetic.round(total + arithmetic.sum(x.transpose(1, 2))[..., 0])
    return total


def _applied(module: Module, x: Tensor, params: Mapping[str, Tensor], arithmetic: Arithmetic) -> Tensor:
    match module:
        case Dense(activation=activation):
            y = _product(x, params["kernel"], arithmetic)
            y = arithmetic.round(y + params["bias"]) if "bias" in params else y
            y = activate(activation, y, arithmetic)
            if module.residual:
                residual = _product(x, params["residual"], arithmetic) if "residual" in params else x
                y = arithmetic.round(y + residual)
            return y
        case LayerNorm():
            centered = arithmetic.round(x - arithmetic.sum(x) / x.shape[-1])
            variance = arithmetic.sum(centered**2) / x.shape[-1]
            scale = arithmetic.round((variance + _LAYER_NORM_EPSILON).rsqrt(), FUNCTION_UNITS)
            return arithmetic.round(arithmetic.round(centered * scale) * params["scale"] + params["bias"], 2)
        case Normalize():
            norm = arithmetic.round(arithmetic.sum(x**2).sqrt(), 2)
            return arithmetic.round(x / norm.clamp_min(_NORMALIZE_EPSILON))
    raise AssertionError(module)


def _product(x: Tensor, kernel: Any, arithmetic: Arithmetic) -> Tensor:
    """x [batch, inputs] by kernel [inputs, outputs], as sums of products whose operands are not rounded."""
    return torch.cat([arithmetic.sum(row * kernel.T)[..., 0][None] for row in x])
