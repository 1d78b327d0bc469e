"""Workarounds for XLA's CPU backend, in one place; programs for other backends contain none of them.

Both are for training in bfloat16, and both were measured with jax 0.10.2. To see whether a later XLA still needs them,
remove one and run `python -m benchmarks.train`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, cast

from jax import lax

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    Einsum = Callable[[str, Float[Array, "..."], Float[Array, "..."]], Float[Array, "..."]]

# Compiler options for a training step on CPUs. The backend removes optimization barriers before it fuses and schedules
# operations, and with them all that they are for (see residuals.py). This is the name of the pass that does so; other
# backends have no such pass and ignore the option. Without it, the temporaries of a training step of six layers of
# roberta.base, 16 x 128 in bfloat16, take 1.12 GB instead of 0.70 (docs/performance.md).
KEEP_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}


def kernel_gradient(
    einsum: Einsum, subscripts: str, left: Float[Array, "*tokens inputs"], right: Float[Array, "*tokens *outputs"]
) -> Float[Array, "inputs *outputs"]:
    """Computes einsum("...i,...o->io", left, right), on CPUs with the axis i split in two.

    `outputs` is one axis, or several where a transformation (jax.vmap) has added some.

    XLA's CPU backend has a 16-bit kernel for "it,to->io" and none for this. It folds the transposition of a matrix into
    the product, and then casts both operands to float32; the transposition of three axes it performs first, in 16 bits.
    For 2,048 tokens and a kernel of 768 x 3072 the split form takes 0.5 to 0.6 times as long, and 3 MiB of temporaries
    instead of 30.

    Args:
      einsum: computes an einsum of two arrays.
      subscripts: of this form, with letters for the ellipsis.
      left, right: in a 16-bit dtype.
    """
    split = partial(_with_split_axis, einsum)
    return cast("Array", lax.platform_dependent(left, right, cpu=split, default=partial(einsum, subscripts)))


def _with_split_axis(
    einsum: Einsum, left: Float[Array, "*tokens inputs"], right: Float[Array, "*tokens *outputs"]
) -> Float[Array, "inputs *outputs"]:
    """Splits the axis by its smallest prime divisor up to 7; an axis without one stays whole."""
    inputs, outputs = left.shape[-1], right.shape[left.ndim - 1 :]
    parts = next((divisor for divisor in (2, 3, 5, 7) if inputs % divisor == 0), 1)
    left = left.reshape(-1, parts, inputs // parts)
    return einsum("tpi,to->pio", left, right.reshape(-1, math.prod(outputs))).reshape(inputs, *outputs)
