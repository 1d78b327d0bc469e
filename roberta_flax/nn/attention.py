"""Attention of queries over keys: one function, several implementations with the same result.

Shapes: `queries` and `keys` are numbers of tokens in a row; `heads` * `depth` is the hidden size. A mask has one row
for each query, or one row for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from roberta_flax.nn.products import accumulation_dtype, product

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

    Dropout = Callable[[Float[Array, "..."]], Float[Array, "..."]]
    Record = Callable[[str, Float[Array, "..."]], object]

# "xla": all scores at once, as the compiler arranges it. "chunked": some heads at a time, which keeps the scores in a
# CPU's cache. "cudnn": cuDNN's fused kernel, on NVIDIA GPUs from Ampere on, in bfloat16 or float16.
IMPLEMENTATIONS = ("xla", "chunked", "cudnn")

# For 4 x 512 tokens and 12 heads, 50 MB of float32 scores, chunks of 2 to 4 MiB were the fastest on a CPU with 1 MiB of
# L2 and 32 MiB of L3; for 8 x 128 and 32 x 64, 6.3 MB, all scores at once were (docs/performance.md).
_CHUNK_BYTES = 4 * 2**20
_WHOLE_BYTES = 8 * 2**20


def attend(
    query: Float[Array, "batch queries heads depth"],
    key: Float[Array, "batch keys heads depth"],
    value: Float[Array, "batch keys heads depth"],
    mask: Bool[Array, "batch #queries keys"],
    *,
    implementation: str | None = None,
    precision: lax.Precision | None = None,
    dropout: Dropout | None = None,
    record: Record | None = None,
) -> Float[Array, "batch queries heads depth"]:
    """The mean of the values for each query, weighted by the softmax of its products with the keys.

    Products take their operands as they are and return the accumulation dtype (float32, or float64 for float64), in
    which the softmax is computed too. A query that sees no key (in a row that is all padding) has even weights, not
    NaN.

    Args:
      query: scaled by depth**-0.5.
      key, value: in the query's dtype.
      mask: the keys that each query sees.
      implementation: one of IMPLEMENTATIONS. None means "chunked" on CPUs, "xla" elsewhere. Small scores are never
        chunked; "cudnn" leaves queries that are only some of a row's tokens to "xla".
      precision: of the products; "cudnn" ignores it.
      dropout: applied to the weights; all scores are then computed at once, by "xla".
      record: called as record("scores", scores) and record("weights", weights), [batch, heads, queries, keys], where
        all scores are computed at once.

    Returns:
      In the accumulation dtype; from "cudnn" in the operands' dtype.
    """
    if implementation == "cudnn" and dropout is None and query.shape[1] == key.shape[1]:
        return jax.nn.dot_product_attention(query, key, value, mask=mask[:, None], scale=1.0, implementation="cudnn")
    whole = partial(_whole, precision=precision, dropout=dropout)
    may_chunk = dropout is None and implementation in ("chunked", None)
    chunk = _heads_per_chunk(query, key) if may_chunk else None
    if chunk is None:
        return whole(query, key, value, mask, record=record)
    chunked = partial(_chunked, chunk=chunk, precision=precision)
    if implementation == "chunked":
        return chunked(query, key, value, mask)
    context: Array = lax.platform_dependent(query, key, value, mask, cpu=chunked, default=whole)
    return context


def _weights(
    scores: Float[Array, "*rows queries keys"], mask: Bool[Array, "*#rows #queries keys"]
) -> Float[Array, "*rows queries keys"]:
    # The lowest finite number and not -inf: a row that is all padding gets even weights, not NaN.
    return jax.nn.softmax(jnp.where(mask, scores, float(np.finfo(scores.dtype).min)), axis=-1)


def _whole(
    query: Float[Array, "batch queries heads depth"],
    key: Float[Array, "batch keys heads depth"],
    value: Float[Array, "batch keys heads depth"],
    mask: Bool[Array, "batch #queries keys"],
    precision: lax.Precision | None,
    dropout: Dropout | None,
    record: Record | None = None,
) -> Float[Array, "batch queries heads depth"]:
    """All scores at once."""
    multiply = partial(product, dtype=value.dtype, precision=precision)
    scores = multiply("bqhd,bkhd->bhqk", query, key)
    weights = _weights(scores, mask[:, None])
    if record is not None:
        record("scores", scores)
        record("weights", weights)
    weights = weights if dropout is None else dropout(weights)
    return multiply("bhqk,bkhd->bqhd", weights, value)


def _chunked(
    query: Float[Array, "batch queries heads depth"],
    key: Float[Array, "batch keys heads depth"],
    value: Float[Array, "batch keys heads depth"],
    mask: Bool[Array, "batch #queries keys"],
    chunk: int,
    precision: lax.Precision | None,
) -> Float[Array, "batch queries heads depth"]:
    """`chunk` heads of a row at a time, sequentially."""
    multiply = partial(product, dtype=value.dtype, precision=precision)
    batch, queries, heads, depth = query.shape

    def chunks(x: Float[Array, "batch tokens heads depth"]) -> Float[Array, "chunks chunk tokens depth"]:
        return x.transpose(0, 2, 1, 3).reshape(batch * heads // chunk, chunk, x.shape[1], depth)

    def attend_in_chunk(of_chunk: tuple[Array, Array, Array, Array]) -> Float[Array, "chunk queries depth"]:
        query, key, value, mask = of_chunk
        weights = _weights(multiply("hqd,hkd->hqk", query, key), mask)
        return multiply("hqk,hkd->hqd", weights, value)

    masks = jnp.repeat(mask[:, None], heads // chunk, axis=0)
    context: Array = lax.map(attend_in_chunk, (chunks(query), chunks(key), chunks(value), masks))
    return context.reshape(batch, heads, queries, depth).transpose(0, 2, 1, 3)


def _heads_per_chunk(
    query: Float[Array, "batch queries heads depth"], key: Float[Array, "batch keys heads depth"]
) -> int | None:
    """The number of heads whose scores fit into a chunk, a divisor of all heads.

    None where the scores of all heads are small, or of unknown size (jax.export's symbolic dimensions).
    """
    batch, queries, heads, _ = query.shape
    keys = key.shape[1]
    if not all(isinstance(size, int) for size in (batch, queries, keys)):
        return None
    head_bytes = queries * keys * accumulation_dtype(query.dtype).itemsize
    if batch * heads * head_bytes <= _WHOLE_BYTES:
        return None
    return max(n for n in range(1, heads + 1) if heads % n == 0 and (n == 1 or n * head_bytes <= _CHUNK_BYTES))
