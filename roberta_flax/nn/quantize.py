"""int8 for the products of the transformer layers: a quarter of their memory, and a faster product where there is one.

Weights are quantised once, per output channel; activations as they come, per token: symmetric, absolute maximum, 127
steps each way (as in Dettmers et al., 2022, section 2, without its outliers). Sums are int32 and exact. Everything else
stays floating point: embeddings, LayerNorm, the products and softmax of attention, heads.
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
_STEPS = 127  # and not 128, so that both signs have as many
_PRODUCTS = {"attention": ("query", "key", "value", "output"), "feed_forward": ("intermediate", "output")}


class QuantizedLinear(nnx.Module):
    """kernel int8 [inputs, outputs], kernel_scale [outputs]: the size of each output's steps; bias [outputs]."""

    def __init__(self, inputs: int, outputs: int, dtype: jnp.dtype, param_dtype: jnp.dtype) -> None:
        self.dtype = dtype  # of the result
        self.kernel = nnx.Param(jnp.zeros((inputs, outputs), jnp.int8))
        self.kernel_scale = nnx.Param(jnp.ones(outputs, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(outputs, param_dtype))

    def __call__(self, x: Float[Array, "tokens inputs"]) -> Float[Array, "tokens outputs"]:
        """The result is in the accumulation dtype."""
        rounded, scale = _rounded(x.astype(self.dtype), axis=-1)
        total = lax.dot_general(
            rounded, self.kernel[...], (((1,), (0,)), ((), ())), preferred_element_type=jnp.int32
        ).astype(self.dtype)
        return total * scale * self.kernel_scale[...].astype(self.dtype) + self.bias[...].astype(self.dtype)


def quantize(params: Any, method: str = "int8") -> Any:
    """The parameters with each layer's six products in int8.

    Args:
      params: the parameter tree, in any float dtype.
      method: one of METHODS.

    Returns:
      The tree with `kernel` int8 [inputs, outputs] and a `kernel_scale`, float32 [outputs], beside it, for the
      functions of roberta_flax.forward and for Roberta.

    Raises:
      InputError: another method, or parameters that are quantised.
    """
    check_method(method)
    if is_quantized(params):
        raise InputError("these parameters are quantised already")

    def of_block(block: dict[str, Any], products: tuple[str, ...]) -> dict[str, Any]:
        return block | {name: block[name] | _quantized(block[name]["kernel"]) for name in products}

    def of_layer(layer: dict[str, Any]) -> dict[str, Any]:
        return layer | {block: of_block(layer[block], products) for block, products in _PRODUCTS.items()}

    return params | {"layers": {number: of_layer(layer) for number, layer in params["layers"].items()}}


def check_method(method: str) -> None:
    """Raises InputError unless `quantize` takes it."""
    if method not in METHODS:
        raise InputError(f"quantize must be one of {', '.join(METHODS)}, got {method!r}")


def is_quantized(params: Any) -> bool:
    """Whether `quantize` made this tree."""
    return any("kernel_scale" in layer["attention"]["query"] for layer in params["layers"].values())


@jax.jit
def _quantized(kernel: Float[Array, "inputs outputs"]) -> dict[str, Array]:
    rounded, scale = _rounded(kernel.astype(jnp.float32), axis=0)
    return {"kernel": rounded, "kernel_scale": scale[0]}


def _rounded(x: Float[Array, "rows columns"], axis: int) -> tuple[Int8[Array, "rows columns"], Array]:
    """x in steps of an int8, and what a step is along `axis`; the nearest step of all zeros is zero."""
    largest = jnp.abs(x).max(axis=axis, keepdims=True)
    # the smallest step keeps its reciprocal finite, and numbers below it are zero to what they are added to
    scale = jnp.maximum(largest / _STEPS, float(np.finfo(np.float32).tiny) * _STEPS)
    return jnp.round(x / scale).astype(jnp.int8), scale
