"""Matrix products: operands in one dtype, results in the accumulation dtype, in the forward and the backward pass."""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from roberta_flax.nn.cpu import kernel_gradient
from roberta_flax.nn.residuals import optimization_barrier

if TYPE_CHECKING:
    from jaxtyping import Array, Float


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
    Tangents are cast in the same way.

    Args:
      subscripts: as jnp.einsum's, explicit, each index in at least two of the three terms. An ellipsis stands for the
        same axes of `left` and of the result.
      left, right: in any floating-point dtype.
      dtype: of the operands.
      precision: as in jax.lax.Precision.
    """
    dtype = jnp.dtype(dtype)
    named_axes = len(subscripts.partition(",")[0].removeprefix("..."))
    if dtype.itemsize == 2:
        subscripts = subscripts.replace("...", string.ascii_uppercase[: left.ndim - named_axes])
        left, right = _varying_alike(left, right)
        return _product_in_16_bits(left, right, subscripts=subscripts, dtype=dtype, precision=precision)
    if "..." not in subscripts:
        return _einsum(precision, subscripts, left.astype(dtype), right.astype(dtype))
    # With several axes of tokens, JAX's gradient of `right` is transposed, which XLA's CPU backend does not fold into
    # the product: an update takes a twentieth longer. For TPUs the two are the same program.
    tokens, named = left.shape[: left.ndim - named_axes], left.shape[left.ndim - named_axes :]
    rows = left.astype(dtype).reshape(-1, *named)
    result = _einsum(precision, subscripts.replace("...", "A"), rows, right.astype(dtype))
    return result.reshape(*tokens, *result.shape[1:])


def _einsum(
    precision: lax.Precision | None, subscripts: str, left: Float[Array, "..."], right: Float[Array, "..."]
) -> Float[Array, "..."]:
    result: Array = jnp.einsum(
        subscripts, left, right, precision=precision, preferred_element_type=accumulation_dtype(left.dtype)
    )
    return result


def _varying_alike(
    left: Float[Array, "..."], right: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The operands, both marked as varying along the mesh axes of jax.shard_map along which either does."""

    def cast_to_vary(x: Array, axes: frozenset[Any]) -> Array:
        missing = tuple(axes - jax.typeof(x).manual_axis_type.varying)
        return cast("Array", lax.pcast(x, missing, to="varying")) if missing else x

    axes = jax.typeof(left).manual_axis_type.varying | jax.typeof(right).manual_axis_type.varying
    return cast_to_vary(left, axes), cast_to_vary(right, axes)


# The product in 16 bits as an operation that JAX transforms: it is linear in each operand, and its derivatives are such
# products again. jax.custom_vjp would have no forward mode, jax.custom_jvp would differentiate the casts, and
# custom_derivatives.linear_call has neither a batching rule nor a second derivative.

_primitive = Primitive("roberta_flax_product")


def _product_in_16_bits(
    left: Float[Array, "..."],
    right: Float[Array, "..."],
    *,
    subscripts: str,
    dtype: jnp.dtype,
    precision: lax.Precision | None,
) -> Float[Array, "..."]:
    """The product as one operation."""
    options = {"subscripts": subscripts, "dtype": dtype, "precision": precision}
    result: Array = _primitive.bind(left, right, **options)  # type: ignore[no-untyped-call]
    return result


def _compute(
    left: Float[Array, "..."],
    right: Float[Array, "..."],
    *,
    subscripts: str,
    dtype: jnp.dtype,
    precision: lax.Precision | None,
) -> Float[Array, "..."]:
    """The einsum with that operand first that has the first of the result's axes that the two do not share.

    In the other order the product's result would have to be transposed, for which XLA's CPU backend has no kernel with
    16-bit operands. (The TPU's compiler counts 0.5 % more bytes for a training step in the other order.)
    """
    left, right = left.astype(dtype), right.astype(dtype)
    first, second, result = _terms(subscripts)
    leading = next((axis for axis in result if (axis in first) != (axis in second)), "")
    if leading not in first:
        first, second, left, right = second, first, right, left
    subscripts, tokens = f"{first},{second}->{result}", first[:-1]
    if second.startswith(tokens) and result == first[-1] + second[len(tokens) :]:
        return kernel_gradient(partial(_einsum, precision), subscripts, left, right)
    return _einsum(precision, subscripts, left, right)


@lru_cache(maxsize=1024)
def _abstract(left: Any, right: Any, **options: Any) -> Any:
    """What the result is: its shape, and how it lies on a mesh."""
    return jax.make_jaxpr(partial(_compute, **options))(left, right).out_avals[0]


def _jvp(
    primals: tuple[Array, Array], tangents: tuple[Any, Any], *, dtype: jnp.dtype, **options: Any
) -> tuple[Array, Any]:
    """The operands are cast first, so that what is kept for a gradient are the casts."""
    multiply: Callable[..., Array] = partial(_product_in_16_bits, dtype=dtype, **options)
    left, right = (x.astype(dtype) for x in primals)
    result = multiply(left, right)
    total: Any = ad.Zero(jax.typeof(result))
    for one, other in ((tangents[0], right), (left, tangents[1])):
        if not isinstance(one, ad.Zero) and not isinstance(other, ad.Zero):
            total = ad.add_tangents(total, multiply(one, other))  # type: ignore[no-untyped-call]
    return result, total


def _transpose(gradient: Any, left: Any, right: Any, *, subscripts: str, dtype: jnp.dtype, **options: Any) -> list[Any]:
    """The gradient of the operand in which the product is linear, in the dtype that this operand had."""
    of_left, of_right, of_result = _terms(subscripts)
    is_of_left = isinstance(left, ad.UndefinedPrimal)
    wanted = (left if is_of_left else right).aval
    if isinstance(gradient, ad.Zero):
        found: Any = ad.Zero(wanted)
    else:
        # stored once: in each of the two products that read it, what makes it would take as long again on TPUs
        gradient = optimization_barrier(gradient.astype(dtype))
        pair = (gradient, right) if is_of_left else (left, gradient)
        subscripts = f"{of_result},{of_right}->{of_left}" if is_of_left else f"{of_left},{of_result}->{of_right}"
        found = _product_in_16_bits(*pair, subscripts=subscripts, dtype=dtype, **options).astype(wanted.dtype)
    return [found, None] if is_of_left else [None, found]


def _batch(
    operands: tuple[Array, Array], axes: tuple[int | None, int | None], *, subscripts: str, **options: Any
) -> tuple[Array, int]:
    """A letter more for the mapped axis: where both operands have it in front; else where a product returns it.

    That is before the first axis that its operand does not share. (With the letter elsewhere the result would be
    transposed: see _compute.)
    """
    letter = next(letter for letter in string.ascii_letters if letter not in subscripts)
    *terms, result = _terms(subscripts)
    unshared = [axis for axis in result if (axis in terms[0]) != (axis in terms[1])]
    places = [None if None not in axes else next((axis for axis in unshared if axis in term), None) for term in terms]
    moved = list(operands)
    for i, axis in enumerate(axes):
        if axis is not None:
            terms[i] = _with_letter(terms[i], letter, places[i])
            moved[i] = jnp.moveaxis(operands[i], axis, terms[i].index(letter))
    result = _with_letter(result, letter, places[0 if axes[1] is None else 1])
    multiply: Callable[..., Array] = partial(
        _product_in_16_bits, subscripts=f"{terms[0]},{terms[1]}->{result}", **options
    )
    return multiply(moved[0], moved[1]), result.index(letter)


def _with_letter(term: str, letter: str, before: str | None) -> str:
    """The term with a letter more, in front or before another."""
    place = 0 if before is None else term.index(before)
    return term[:place] + letter + term[place:]


def _terms(subscripts: str) -> list[str]:
    """The letters of the left operand, of the right one and of the result."""
    return re.split(",|->", subscripts)


_primitive.def_impl(jax.jit(_compute, static_argnames=("subscripts", "dtype", "precision")))  # type: ignore[no-untyped-call]
_primitive.def_abstract_eval(_abstract)  # type: ignore[no-untyped-call]
ad.primitive_jvps[_primitive] = _jvp
ad.primitive_transposes[_primitive] = _transpose
batching.primitive_batchers[_primitive] = _batch
mlir.register_lowering(_primitive, mlir.lower_fun(_compute, multiple_results=False))
