"""Matrix products: operands in one dtype, results in the accumulation dtype, in the forward and the backward pass."""

from __future__ import annotations

import re
import string
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from roberta_flax.nn.cpu import kernel_gradient

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    # The operands as they were cast, and two empty arrays of the dtypes that they had before.
    _Residuals = tuple[Float[Array, "..."], Float[Array, "..."], Float[Array, "0"], Float[Array, "0"]]


def accumulation_dtype(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """The dtype in which products of operands in `dtype` return: float32, or float64 for float64."""
    is_float64 = jnp.dtype(dtype) == jnp.dtype(jnp.float64)
    return jnp.dtype("float64") if is_float64 else jnp.dtype("float32")


def broadcast_like(vector: Float[Array, " size"], x: Float[Array, "*tokens size"]) -> Float[Array, "*tokens size"]:
    """Repeats a vector for every token of `x`, in its dtype.

    Broadcasting and promotion are explicit everywhere in the network, because JAX can be set to refuse them
    (jax_numpy_rank_promotion, jax_numpy_dtype_promotion).
    """
    repeated: Array = jnp.broadcast_to(vector.astype(x.dtype), x.shape)
    return repeated


def product(
    subscripts: str,
    left: Float[Array, "..."],
    right: Float[Array, "..."],
    *,
    dtype: jax.typing.DTypeLike,
    precision: lax.Precision | None = None,
) -> Float[Array, "..."]:
    """Computes the einsum of two arrays, cast to `dtype`, in the accumulation dtype.

    In a 16-bit `dtype` the gradient of the result is cast to it too before it is multiplied with the other operand, so
    that no product of a training step has a float32 operand; the gradients of `left` and `right` are in the dtypes that
    these had, so that a float32 parameter gets a float32 gradient. (Differentiating a cast and an einsum would multiply
    float32 by 16 bits, for which no backend has a fast path, and round the gradient of a float32 parameter to 16 bits.)
    Such a product has no forward-mode derivative.

    Args:
      subscripts: as jnp.einsum's, explicit, each index in at least two of the three terms. An ellipsis stands for the
        same axes of `left` and of the result.
      left, right: in any floating-point dtype.
      dtype: of the operands.
      precision: as in jax.lax.Precision.
    """
    dtype = jnp.dtype(dtype)
    named_axes = len(subscripts.partition(",")[0].removeprefix("..."))
    subscripts = subscripts.replace("...", string.ascii_uppercase[: left.ndim - named_axes])
    if dtype.itemsize == 2:
        return _in_16_bits(subscripts, dtype, precision, left, right)
    return _einsum(precision, subscripts, left.astype(dtype), right.astype(dtype))


def _einsum(
    precision: lax.Precision | None, subscripts: str, left: Float[Array, "..."], right: Float[Array, "..."]
) -> Float[Array, "..."]:
    result: Array = jnp.einsum(
        subscripts, left, right, precision=precision, preferred_element_type=accumulation_dtype(left.dtype)
    )
    return result


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _in_16_bits(
    subscripts: str,
    dtype: jnp.dtype,
    precision: lax.Precision | None,
    left: Float[Array, "..."],
    right: Float[Array, "..."],
) -> Float[Array, "..."]:
    return _einsum(precision, subscripts, left.astype(dtype), right.astype(dtype))


def _forward(
    subscripts: str,
    dtype: jnp.dtype,
    precision: lax.Precision | None,
    left: Float[Array, "..."],
    right: Float[Array, "..."],
) -> tuple[Float[Array, "..."], _Residuals]:
    cast_left, cast_right = left.astype(dtype), right.astype(dtype)
    residuals = (cast_left, cast_right, jnp.empty(0, left.dtype), jnp.empty(0, right.dtype))
    return _einsum(precision, subscripts, cast_left, cast_right), residuals


def _backward(
    subscripts: str,
    dtype: jnp.dtype,
    precision: lax.Precision | None,
    residuals: _Residuals,
    gradient: Float[Array, "..."],
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    left, right, like_left, like_right = residuals
    of_left, of_right, of_result = re.split(",|->", subscripts)
    gradient = gradient.astype(dtype)
    left_gradient = _ordered_einsum(precision, f"{of_result},{of_right}->{of_left}", gradient, right)
    right_gradient = _ordered_einsum(precision, f"{of_left},{of_result}->{of_right}", left, gradient)
    return left_gradient.astype(like_left.dtype), right_gradient.astype(like_right.dtype)


def _ordered_einsum(
    precision: lax.Precision | None, subscripts: str, left: Float[Array, "..."], right: Float[Array, "..."]
) -> Float[Array, "..."]:
    """The einsum with that operand first that has the first of the result's axes that the two do not share.

    In the other order the product's result would have to be transposed, for which XLA's CPU backend has no kernel with
    16-bit operands. (The TPU's compiler counts 0.5 % more bytes for a training step in the other order.)
    """
    first, second, result = re.split(",|->", subscripts)
    leading = next((axis for axis in result if (axis in first) != (axis in second)), "")
    if leading not in first:
        first, second, left, right = second, first, right, left
    subscripts = f"{first},{second}->{result}"
    if first[:-1] == second[:-1] and result == first[-1] + second[-1]:
        return kernel_gradient(partial(_einsum, precision), subscripts, left, right)
    return _einsum(precision, subscripts, left, right)


_in_16_bits.defvjp(_forward, _backward)
