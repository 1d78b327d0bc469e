"""int8 for the linear maps of the transformer layers: a quarter of their memory, and a faster product on some devices.

Weights are quantized once, per output channel; activations as they are computed, per token. Both are symmetric, scaled
by the absolute maximum to 127 steps each way (as in Dettmers et al., 2022, section 2, without its outliers). Sums are
int32 and exact. Everything else stays floating point: embeddings, LayerNorm, attention's scores and softmax, heads.

Derivatives pass straight through the rounding of activations: they are those of the network with the rounded weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.custom_derivatives import SymbolicZero

from roberta_flax.errors import InputError
from roberta_flax.nn.products import broadcast_like
from roberta_flax.nn.tree import Params, flatten, to_dict

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

    def __call__(self, x: Float[Array, "*tokens inputs"]) -> Float[Array, "*tokens outputs"]:
        """The result is in the accumulation dtype."""
        product = _int8_product(x.astype(self.dtype), self.kernel[...], self.kernel_scale[...].astype(self.dtype))
        return product + broadcast_like(self.bias[...], product)


def quantize(params: Params, method: str = "int8") -> Params:
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
    params = to_dict(params)
    if is_quantized(params):
        raise InputError("these parameters are quantized already")

    def quantize_block(block: dict[str, Any], linear_maps: tuple[str, ...]) -> dict[str, Any]:
        return block | {name: block[name] | _quantize_kernel(block[name]["kernel"]) for name in linear_maps}

    def quantize_layer(layer: dict[str, Any]) -> dict[str, Any]:
        return layer | {block: quantize_block(layer[block], names) for block, names in _LINEAR_MAPS.items()}

    return params | {"layers": {number: quantize_layer(layer) for number, layer in params["layers"].items()}}


@jax.custom_jvp
def _int8_product(
    x: Float[Array, "*tokens inputs"], kernel: Int8[Array, "inputs outputs"], kernel_scale: Float[Array, " outputs"]
) -> Float[Array, "*tokens outputs"]:
    """x, rounded to int8, times kernel * kernel_scale.

    The derivative is the straight-through estimate (Bengio et al., 2013): that of the product without rounding x, since
    rounding itself has none but zero. The kernel, of integers, has no derivative.
    """
    rounded, scale = _round_to_int8(x, axis=-1)
    total = jnp.einsum("...i,io->...o", rounded, kernel, preferred_element_type=jnp.int32)
    scaled = total.astype(x.dtype) * scale
    return scaled * broadcast_like(kernel_scale, scaled)


def _int8_product_jvp(primals: tuple[Array, Array, Array], tangents: tuple[Any, Any, Any]) -> tuple[Array, Array]:
    x, kernel, kernel_scale = primals
    x_dot, _, kernel_scale_dot = tangents
    result = _int8_product(x, kernel, kernel_scale)
    weights = kernel.astype(x.dtype)
    tangent = jnp.zeros_like(result)
    if not isinstance(x_dot, SymbolicZero):
        tangent = (x_dot @ weights) * broadcast_like(kernel_scale, result)
    if not isinstance(kernel_scale_dot, SymbolicZero):
        tangent = tangent + (x @ weights) * broadcast_like(kernel_scale_dot, result)
    return result, tangent


_int8_product.defjvp(_int8_product_jvp, symbolic_zeros=True)


def check_method(method: str) -> None:
    """Raises InputError unless `method` is one of METHODS."""
    if method not in METHODS:
        raise InputError(f"quantize must be one of {', '.join(METHODS)}, got {method!r}")


def is_quantized(params: Params) -> bool:
    """Whether `quantize` returned this tree."""
    return any(name.endswith(".kernel_scale") for name in flatten(params))


@jax.jit
def _quantize_kernel(kernel: Float[Array, "inputs outputs"]) -> dict[str, Array]:
    rounded, scale = _round_to_int8(kernel.astype(jnp.float32), axis=0)
    return {"kernel": rounded, "kernel_scale": scale[0]}


def _round_to_int8(x: Float[Array, "*axes"], axis: int) -> tuple[Int8[Array, "*axes"], Float[Array, "*#axes"]]:
    """x as a number of steps, and the size of a step, the same along `axis`. Zeros are zero steps."""
    largest = jnp.abs(x).max(axis=axis, keepdims=True)
    # The smallest step keeps its reciprocal finite; numbers below it vanish in the sum they are part of.
    scale = jnp.maximum(largest / _STEPS, float(np.finfo(np.float32).tiny) * _STEPS)
    return jnp.round(x / scale).astype(jnp.int8), scale
