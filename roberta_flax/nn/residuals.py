"""What the forward pass keeps for the gradients.

Products keep their operands as they were cast (products.product). Between two products everything is float32, and so is
what differentiation would keep there: three arrays for an activation, four for a LayerNorm. Under a 16-bit dtype the
functions here keep one. They round nothing that the forward pass returns, and change nothing under other dtypes.

What is kept is behind an optimization barrier: otherwise the compiler would keep what it is computed from, which is
larger, and compute it again in the backward pass. (On CPUs barriers need an option: see cpu.KEEP_BARRIERS.)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Shaped

    Activation = Callable[[Float[Array, "..."]], Float[Array, "..."]]


def optimization_barrier(x: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """The array unchanged, but computed once and kept in memory until its last use."""
    return cast("Array", lax.optimization_barrier(x))  # type: ignore[no-untyped-call]


@cache
def with_low_precision_residual(function: Activation, dtype: jnp.dtype) -> Activation:
    """An elementwise function whose derivative is taken at its argument rounded to a 16-bit `dtype`.

    The rounded argument is all that is kept for the gradient; the function's value is not rounded. (torch's autocast
    rounds the argument in the forward pass too.) For any other dtype this is the function itself.
    """
    if dtype.itemsize != 2:
        return function

    def derivative(rounded: Float[Array, "..."], tangent: Float[Array, "..."]) -> Float[Array, "..."]:
        of_rounded: Array = jax.jvp(function, (rounded.astype(tangent.dtype),), (tangent,))[1]
        return of_rounded

    def jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
        (x,), (tangent,) = primals, tangents
        rounded = optimization_barrier(x.astype(dtype))
        # checkpoint, so that the argument is kept and not the factor that is computed from it
        return function(x), jax.checkpoint(derivative, prevent_cse=False)(rounded, tangent)

    low_precision = jax.custom_jvp(function)
    low_precision.defjvp(jvp)
    return cast("Activation", low_precision)


class RecomputedLayerNorm(nnx.LayerNorm):
    """A LayerNorm that keeps only its input for the gradient, and recomputes the mean, the variance and the rest."""

    def __call__(self, x: Float[Array, "... n"], *, mask: Array | None = None) -> Float[Array, "... n"]:
        normalized: Array = jax.checkpoint(super().__call__)(x, mask=mask)
        return normalized
