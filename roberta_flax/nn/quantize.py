"""int8 for the linear maps of the transformer layers: a quarter of their memory, and a faster product on some devices.

Weights are quantized once, per output channel; activations as they are computed, per token. Both are symmetric, scaled
by the absolute maximum to 127 steps each way (as in Dettmers et al., 2022, section 2, without its outliers). Sums are
int32 and exact. Everything else stays floating point: embeddings, LayerNorm, attention's scores and softmax, heads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from roberta_flax.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int8

METHODS = ("int8",)
_STEPS = 127  # not 128: the same number for both signs
_LINEAR_MAPS = {"attention": ("query", "key", "value", "output"), "feed_forward": ("intermediate", "output")}


class QuantizedLinear(nnx.Module):
    """kernel int8 [inputs, outputs]; kernel_scale [outputs], the size of a step of each output; bias [outputs]."""

    def __init__(self, inputs: int, outputs: int, dtype: jnp.dtype, param_dtype: jnp.dtype) -> None:
        self.dtype = dtype  # of the result
        self.kernel = nnx.Param(jnp.zeros((inputs, outputs), jnp.int8))
        self.kernel_scale = nnx.Param(jnp.ones(outputs, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(outputs, param_dtype))

    def __call__(self, x: Float[Array, "tokens inputs"]) -> Float[Array, "tokens outputs"]:
        """The result is in the accumulation dtype."""
        rounded, scale = _round_to_int8(x.astype(self.dtype), axis=1)
        total = lax.dot_general(
            rounded, self.kernel[...], (((1,), (0,)), ((), ())), preferred_element_type=jnp.int32
        ).astype(self.dtype)
        return total * scale * self.kernel_scale[...].astype(self.dtype) + self.bias[...].astype(self.dtype)


def quantize(params: Any, method: str = "int8") -> Any:
    """Converts the kernels of each layer's six linear maps to int8.

    Args:
      params: the parameter tree, in any float dtype.
      method: one of METHODS.

    Returns:
      The tree with each such `kernel` in int8, [inputs, outputs], and a `kernel_scale`, float32 [outputs], beside it,
      for the functions of roberta_flax.forward and for Roberta.

    Raises:
      InputError: another method, or parameters that are quantized.
    """
    check_method(method)
    if is_quantized(params):
        raise InputError("these parameters are quantized already")

    def quantize_block(block: dict[str, Any], linear_maps: tuple[str, ...]) -> dict[str, Any]:
        return block | {name: block[name] | _quantize_kernel(block[name]["kernel"]) for name in linear_maps}

    def quantize_layer(layer: dict[str, Any]) -> dict[str, Any]:
        return layer | {block: quantize_block(layer[block], names) for block, names in _LINEAR_MAPS.items()}

    return params | {"layers": {number: quantize_layer(layer) for number, layer in params["layers"].items()}}


def check_method(method: str) -> None:
    """Raises InputError unless `method` is one of METHODS."""
    if method not in METHODS:
        raise InputError(f"quantize must be one of {', '.join(METHODS)}, got {method!r}")


def is_quantized(params: Any) -> bool:
    """Whether `quantize` returned this tree."""
    return any("kernel_scale" in layer["attention"]["query"] for layer in params["layers"].values())


@jax.jit
def _quantize_kernel(kernel: Float[Array, "inputs outputs"]) -> dict[str, Array]:
    rounded, scale = _round_to_int8(kernel.astype(jnp.float32), axis=0)
    return {"kernel": rounded, "kernel_scale": scale[0]}


def _round_to_int8(
    x: Float[Array, "rows columns"], axis: int
) -> tuple[Int8[Array, "rows columns"], Float[Array, "#rows #columns"]]:
    """x as a number of steps, and the size of a step, the same along `axis`. Zeros are zero steps."""
    largest = jnp.abs(x).max(axis=axis, keepdims=True)
    # The smallest step keeps its reciprocal finite; numbers below it vanish in the sum they are part of.
    scale = jnp.maximum(largest / _STEPS, float(np.finfo(np.float32).tiny) * _STEPS)
    return jnp.round(x / scale).astype(jnp.int8), scale
