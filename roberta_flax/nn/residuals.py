"""What stands for the gradients between the forward and the backward pass.

Products keep their operands as they were cast (products.product). Between two products everything is float32, and so is
what differentiation would keep there: three arrays of an activation, four of a LayerNorm. Under a 16-bit dtype the
functions here keep one. They round nothing that the forward pass gives, and change nothing under other dtypes.

What is kept is behind an optimization barrier: the compiler would else keep what it is made of, and make it again.
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
    from jaxtyping import Array, Bool, Float

Activation = Callable[["Float[Array, '...']"], "Float[Array, '...']"]

# XLA's CPU backend takes barriers out before it fuses and orders operations, and with them all that they are for. This
# is the pass that does it; a backend that has no pass of this name passes over the option.
KEEP_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}


def made_once(x: Bool[Array, "..."]) -> Bool[Array, "..."]:
    """The array as it is, which stands from where it is made to where it is used last."""
    return cast("Array", lax.optimization_barrier(x))  # type: ignore[no-untyped-call]


@cache
def keeping_rounded(function: Activation, dtype: jnp.dtype) -> Activation:
    """The function, element by element, whose derivative is taken at its argument rounded to a 16-bit `dtype`.

    (torch's autocast rounds the argument forwards too.) Of another dtype it is the function given. There is no
    forward-mode derivative.
    """
    if dtype.itemsize != 2:
        return function
    rounded = jax.custom_vjp(function)

    def forward(x: Array) -> tuple[Array, tuple[Array, Array]]:
        return function(x), (made_once(x.astype(dtype)), jnp.empty(0, x.dtype))

    def backward(residuals: tuple[Array, Array], gradient: Array) -> tuple[Array]:
        kept, like = residuals
        (of_x,) = jax.vjp(function, kept.astype(like.dtype))[1](gradient)
        return (of_x,)

    rounded.defvjp(forward, backward)
    return cast("Activation", rounded)


class RecomputedLayerNorm(nnx.LayerNorm):
    """LayerNorm that keeps its input alone for the gradient, and computes means, variances and what follows again."""

    def __call__(self, x: Float[Array, "... n"], *, mask: Array | None = None) -> Float[Array, "... n"]:
        normalised: Array = jax.checkpoint(super().__call__)(x, mask=mask)
        return normalised
