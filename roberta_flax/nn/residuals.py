"""What the forward pass keeps for the gradients.

Products keep their operands as they were cast (products.product). Between two products everything is float32, and so is
what differentiation would keep there: three arrays for an activation, four for a LayerNorm. Under a 16-bit dtype the
functions here keep one. They round nothing that the next product does not round, and change nothing under other dtypes.

What is kept is behind an optimization barrier: otherwise the compiler would keep what it is computed from, which is
larger, and compute it again in the backward pass. (On CPUs barriers need an option: see cpu.KEEP_BARRIERS.)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, TypeVar, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

_Arrays = TypeVar("_Arrays")

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    Activation = Callable[[Float[Array, "..."]], Float[Array, "..."]]


def optimization_barrier(x: _Arrays) -> _Arrays:
    """An array, or several, unchanged, but computed once and kept in memory until their last use."""
    return cast("_Arrays", lax.optimization_barrier(x))  # type: ignore[no-untyped-call]


@cache
def with_low_precision_residual(function: Activation, dtype: jnp.dtype) -> Activation:
    """An elementwise function whose derivative is taken at its argument rounded to a 16-bit `dtype`.

    The rounded argument is all that is kept for the gradient. (torch's autocast rounds the argument in the forward pass
    too.) Where there is a derivative, the value is rounded as well, as by the product that reads it: the TPU's compiler
    would otherwise keep the argument in float32 and compute the value again in that product's gradient. For any other
    dtype this is the function itself.
    """
    if dtype.itemsize != 2:
        return function

    def derivative(rounded: Float[Array, "..."], tangent: Float[Array, "..."]) -> Float[Array, "..."]:
        of_rounded: Array = jax.jvp(function, (rounded.astype(tangent.dtype),), (tangent,))[1]
        return of_rounded

    def jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
        (x,), (tangent,) = primals, tangents
        result, rounded = optimization_barrier((function(x).astype(dtype), x.astype(dtype)))
        # checkpoint, so that the argument is kept and not the factor that is computed from it
        return result.astype(x.dtype), jax.checkpoint(derivative, prevent_cse=False)(rounded, tangent)

    low_precision = jax.custom_jvp(function)
    low_precision.defjvp(jvp)
    return cast("Activation", low_precision)


class LayerNorm(nnx.LayerNorm):
    """Flax's LayerNorm, which in float64 asks JAX to promote float32, where JAX is set to promote nothing too."""

    def __call__(self, x: Float[Array, "... n"], *, mask: Array | None = None) -> Float[Array, "... n"]:
        with jax.numpy_dtype_promotion("standard"):
            normalized: Array = super().__call__(x, mask=mask)
        return normalized


class RecomputedLayerNorm(LayerNorm):
    """A LayerNorm that keeps only its input for the gradient, and recomputes the mean, the variance and the rest."""

    def __call__(self, x: Float[Array, "... n"], *, mask: Array | None = None) -> Float[Array, "... n"]:
        normalized: Array = jax.checkpoint(super().__call__)(x, mask=mask)
        return normalized
