"""Matrix products: operands in one dtype, results in the accumulation type, forwards and backwards."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, cast

import jax
import jax.numpy as jnp
from jax import lax

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def accumulation_dtype(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """float32, or float64 of float64: what products of operands in `dtype` return."""
    return jnp.promote_types(dtype, jnp.float32)


def product(
    subscripts: str,
    left: Float[Array, "..."],
    right: Float[Array, "..."],
    *,
    dtype: jax.typing.DTypeLike,
    precision: lax.Precision | None = None,
) -> Float[Array, "..."]:
    """The einsum of two arrays, cast to `dtype`, in the accumulation type.

    In a 16-bit `dtype` what comes back is cast to it too before it meets the other operand, so that no product of a
    training step has a float32 operand; gradients keep the accumulation type where the arrays had it, unrounded.
    (Differentiating a cast and an einsum would multiply float32 by 16 bits, which has no fast path on any backend, and
    round the gradient of a float32 parameter to 16 bits.) Such a product has no forward-mode derivative.

    Args:
      subscripts: as jnp.einsum's, explicit, each index in two of the three terms at least.
      left, right: of any float dtype.
      dtype: of the operands.
      precision: as in jax.lax.Precision.
    """
    dtype = jnp.dtype(dtype)
    if dtype.itemsize == 2:
        return _in_16_bits(subscripts, dtype, precision, left, right)
    return _einsum(subscripts, precision, left.astype(dtype), right.astype(dtype))


def _einsum(subscripts: str, precision: lax.Precision | None, left: Array, right: Array) -> Array:
    result: Array = jnp.einsum(
        subscripts, left, right, precision=precision, preferred_element_type=accumulation_dtype(left.dtype)
    )
    return result


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _in_16_bits(subscripts: str, dtype: jnp.dtype, precision: lax.Precision | None, left: Array, right: Array) -> Array:
    return _einsum(subscripts, precision, left.astype(dtype), right.astype(dtype))


# the operands as they were cast, and two empty arrays of the dtypes that they had
_Residuals = tuple["Array", "Array", "Array", "Array"]


def _forward(
    subscripts: str, dtype: jnp.dtype, precision: lax.Precision | None, left: Array, right: Array
) -> tuple[Array, _Residuals]:
    cast_left, cast_right = left.astype(dtype), right.astype(dtype)
    residuals = (cast_left, cast_right, jnp.empty(0, left.dtype), jnp.empty(0, right.dtype))
    return _einsum(subscripts, precision, cast_left, cast_right), residuals


def _backward(
    subscripts: str, dtype: jnp.dtype, precision: lax.Precision | None, residuals: _Residuals, gradient: Array
) -> tuple[Array, Array]:
    left, right, like_left, like_right = residuals
    terms, of_result = subscripts.split("->")
    of_left, of_right = terms.split(",")
    result = gradient.astype(dtype)
    of_gradients = (
        _in_order((of_result, result), (of_right, right), of_left, precision),
        _in_order((of_left, left), (of_result, result), of_right, precision),
    )
    return of_gradients[0].astype(like_left.dtype), of_gradients[1].astype(like_right.dtype)


def _in_order(one: tuple[str, Array], other: tuple[str, Array], result: str, precision: lax.Precision | None) -> Array:
    """The einsum with that operand first which has the first of the result's indices that only one of them has.

    In the other order the product's result is transposed, for which XLA's CPU backend has no kernel in bfloat16.
    """
    first = next((index for index in result if (index in one[0]) != (index in other[0])), "")
    (left, a), (right, b) = (one, other) if first in one[0] else (other, one)
    plain = partial(_einsum, f"{left},{right}->{result}", precision)
    if a.ndim != 2 or left[1] not in result:
        return plain(a, b)
    split = partial(_split, left, right, result, precision)
    return cast("Array", lax.platform_dependent(a, b, cpu=split, default=plain))


def _split(left: str, right: str, result: str, precision: lax.Precision | None, a: Array, b: Array) -> Array:
    """The einsum "ki,kj->ij" (a kernel's gradient, by any letters) with the index i as two.

    XLA's CPU backend has a bfloat16 kernel for "ik,kj->ij" and none for this. A transposition of two axes it folds into
    the product, and then casts both operands to float32: half as fast, and more memory. One of three axes it works off
    first, in bfloat16. An i without a small divisor stays one index.
    """
    index, size = left[1], a.shape[1]
    parts = next((divisor for divisor in (2, 3, 5, 7) if size % divisor == 0), 1)
    part = index.upper()
    subscripts = f"{left[0]}{part}{index},{right}->{result.replace(index, part + index)}"
    return _einsum(subscripts, precision, a.reshape(a.shape[0], parts, -1), b).reshape(size, -1)


_in_16_bits.defvjp(_forward, _backward)
