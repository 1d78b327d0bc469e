"""Attention of queries over keys: one function, several implementations with the same result.

Shapes: `queries` and `keys` are numbers of tokens in a row; `heads` * `depth` is the hidden size. A mask has one row
for each query, or one row for all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from roberta_flax.nn.products import accumulation_dtype, product
from roberta_flax.nn.residuals import optimization_barrier
from roberta_flax.nn.sharding import DATA, MODEL

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Shaped

    Dropout = Callable[[Float[Array, "..."]], Float[Array, "..."]]
    Record = Callable[[str, Float[Array, "..."]], object]

# "xla": all scores at once, as the compiler arranges it. "chunked": some heads at a time, or some queries of one head,
# which keeps the scores in a CPU's cache. "cudnn": cuDNN's fused kernel, on NVIDIA GPUs from Ampere on, in bfloat16 or
# float16. "flash": Pallas' kernel for TPUs (Dao et al., 2022), which keeps a block of scores in a chip's vector memory.
IMPLEMENTATIONS = ("xla", "chunked", "cudnn", "flash")

# A TPU v5e has 128 MiB of vector memory, in which smaller scores stay: dividing last is then slower (12.9 and 12.2 M
# cycles for 24 layers of 16 x 128, 17 MB of float32 scores; 52.7 and 55.0 for 64 x 128, 67 MB; docs/performance.md).
_TPU_BYTES = 32 * 2**20

# From this many keys on, TPUs use the kernel. XLA's attention writes and reads the scores, some ten bytes for 256
# operations, where a v5e does 240 for a byte; at 8,192 keys they take 4 GiB a row of 16 heads.
_FLASH_KEYS = 2048
_FLASH_BLOCK = 512  # queries and keys

_AMPERE = (8, 0)  # compute capability
_MAX_CUDNN_DEPTH = 128  # of a head, before Hopper

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
      implementation: one of IMPLEMENTATIONS. None means "chunked" on CPUs, "cudnn" on NVIDIA GPUs where it is
        available and computes in the operands' dtype, "flash" on TPUs for 2,048 keys and more without a `precision`,
        and "xla" elsewhere. Small scores are never chunked; "cudnn" and "flash" leave queries that are only some of a
        row's tokens, and dropout, to "xla". "flash" has no forward-mode derivative.
      precision: of the products; "cudnn" and "flash" ignore it.
      dropout: applied to the weights; all scores are then computed at once, by "xla".
      record: called as record("scores", scores) and record("weights", weights), [batch, heads, queries, keys], where
        all scores are computed at once.

    Returns:
      In the accumulation dtype. ("cudnn" and "flash" round to the operands' dtype first.)
    """
    fused = {"cudnn": _cudnn, "flash": _flash}.get(implementation or "")
    if fused is not None and dropout is None and query.shape[1] == key.shape[1]:
        return fused(query, key, value, mask)
    if dropout is not None and record is None and query.dtype.itemsize == 2:
        return _with_dropout(query, key, value, mask, precision=precision, dropout=dropout)
    whole = partial(_whole, precision=precision, dropout=dropout)
    may_chunk = dropout is None and implementation in ("chunked", None)
    chunk = _chunk(query, key) if may_chunk else None
    chunked = whole if chunk is None else partial(_chunked, chunk=chunk, precision=precision)
    if implementation == "chunked":
        return chunked(query, key, value, mask)
    of_platform: dict[str, Callable[..., Array]] = {} if chunk is None else {"cpu": chunked}
    if dropout is None and record is None and query.dtype.itemsize == 2 and _has_static_shape(query, key):
        if _scores_bytes(query, key) > _TPU_BYTES:
            of_platform["tpu"] = partial(_divided_last, precision=precision)
        if implementation is None and _can_use_cudnn(query, key):
            of_platform["cuda"] = _cudnn
    if (
        dropout is None
        and record is None
        and implementation is None
        and precision is None
        and _prefers_flash(query, key)
    ):
        of_platform["tpu"] = _flash
    if not of_platform:
        return whole(query, key, value, mask, record=record)
    context: Array = lax.platform_dependent(query, key, value, mask, default=whole, **of_platform)
    return context


def _weights(
    scores: Float[Array, "*rows queries keys"], mask: Bool[Array, "*#rows #queries keys"]
) -> Float[Array, "*rows queries keys"]:
    return jax.nn.softmax(_masked(scores, mask), axis=-1)


def _masked(
    scores: Float[Array, "*rows queries keys"], mask: Bool[Array, "*#rows #queries keys"]
) -> Float[Array, "*rows queries keys"]:
    # The lowest finite number and not -inf: a row that is all padding gets even weights, not NaN.
    return jnp.where(mask, scores, float(np.finfo(scores.dtype).min))


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


def _divided_last(
    query: Float[Array, "batch queries heads depth"],
    key: Float[Array, "batch keys heads depth"],
    value: Float[Array, "batch keys heads depth"],
    mask: Bool[Array, "batch #queries keys"],
    precision: lax.Precision | None,
) -> Float[Array, "batch queries heads depth"]:
    """All scores at once; the weights are divided by their sum after the product with the values.

    What is stored of the softmax is then its numerators, in 16 bits, and not a float32 array of that size: it halves
    the memory traffic of attention on TPUs (docs/performance.md). To be differentiated, this is `_whole`.
    """
    attention = jax.custom_jvp(partial(_by_numerators, precision=precision))

    def jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
        *operands, mask = primals
        of_operands = partial(_whole, mask=mask, precision=precision, dropout=None)
        return jax.jvp(of_operands, tuple(operands), tuple(tangents[:3]))

    attention.defjvp(jvp)
    context: Array = attention(query, key, value, mask)
    return context


def _by_numerators(
    query: Float[Array, "batch queries heads depth"],
    key: Float[Array, "batch keys heads depth"],
    value: Float[Array, "batch keys heads depth"],
    mask: Bool[Array, "batch #queries keys"],
    precision: lax.Precision | None,
) -> Float[Array, "batch queries heads depth"]:
    multiply = partial(product, dtype=value.dtype, precision=precision)
    scores = _masked(multiply("bqhd,bkhd->bhqk", query, key), mask[:, None])
    numerators = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    # the barrier, because the compiler would otherwise keep the scores, and sum in a pass of its own
    numerators, sums = optimization_barrier((numerators.astype(value.dtype), numerators.sum(axis=-1)))
    context: Array = multiply("bhqk,bkhd->bqhd", numerators, value) / sums.swapaxes(1, 2)[..., None]
    return context


def _with_dropout(
    query: Float[Array, "batch queries heads depth"],
    key: Float[Array, "batch keys heads depth"],
    value: Float[Array, "batch keys heads depth"],
    mask: Bool[Array, "batch #queries keys"],
    precision: lax.Precision | None,
    dropout: Dropout,
) -> Float[Array, "batch queries heads depth"]:
    """All scores at once, in 16 bits; the weights are divided by their sum after the product with the values.

    A gradient then keeps the numerators and the context in 16 bits, and stores no float32 array of the scores' size:
    the sum of a query's weights times their gradients is that of its context times its gradient (Dao et al., 2022,
    appendix B.2). On TPUs it takes a fifth fewer cycles (docs/performance.md).
    """
    multiply = partial(product, dtype=value.dtype, precision=precision)
    scores = _masked(multiply("bqhd,bkhd->bhqk", query, key), mask[:, None])
    numerators, sums = _exponentials(value.dtype)(scores - lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    context = multiply("bhqk,bkhd->bqhd", dropout(numerators), value)
    divided: Array = _quotients(value.dtype)(context, sums.swapaxes(1, 2)[..., None])
    return divided


@cache
def _exponentials(dtype: jnp.dtype) -> Callable[[Array], tuple[Array, Array]]:
    """Exponentials, rounded to `dtype`, and their sums along the last axis; the derivative is of the rounded ones.

    With the barrier, the compiler sums what it rounds, and does not read it again for that.
    """

    def exponentials(x: Float[Array, "*rows n"]) -> tuple[Float[Array, "*rows n"], Float[Array, "*rows"]]:
        exponentials = jnp.exp(x)
        rounded, sums = optimization_barrier((exponentials.astype(dtype), exponentials.sum(axis=-1)))
        return rounded.astype(x.dtype), sums

    def jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        rounded, sums = exponentials(*primals)
        of_rounded = rounded * tangents[0]
        return (rounded, sums), (of_rounded, of_rounded.sum(axis=-1))

    function = jax.custom_jvp(exponentials)
    function.defjvp(jvp)
    return cast("Callable[[Array], tuple[Array, Array]]", function)


@cache
def _quotients(dtype: jnp.dtype) -> Callable[[Array, Array], Array]:
    """Quotients, rounded to `dtype`; the derivative is by the rounded ones."""

    def quotients(dividend: Float[Array, "*rows n"], divisor: Float[Array, "*rows 1"]) -> Float[Array, "*rows n"]:
        quotients: Array = (dividend * (1 / divisor)).astype(dtype)
        return optimization_barrier(quotients).astype(dividend.dtype)

    def jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
        rounded, (of_dividend, of_divisor) = quotients(*primals), tangents
        factor = 1 / primals[1]
        return rounded, of_dividend * factor - rounded * (of_divisor * factor)

    function = jax.custom_jvp(quotients)
    function.defjvp(jvp)
    return cast("Callable[[Array, Array], Array]", function)


def _chunked(
    query: Float[Array, "batch queries heads depth"],
    key: Float[Array, "batch keys heads depth"],
    value: Float[Array, "batch keys heads depth"],
    mask: Bool[Array, "batch #queries keys"],
    chunk: tuple[int, int],
    precision: lax.Precision | None,
) -> Float[Array, "batch queries heads depth"]:
    """Some heads of a row at a time, or some queries of a head, sequentially; `chunk` says how many of each."""
    multiply = partial(product, dtype=value.dtype, precision=precision)
    batch, queries, heads, depth = query.shape
    heads_at_once, queries_at_once = chunk
    groups = heads // heads_at_once

    def chunks(x: Float[Array, "batch tokens heads depth"]) -> Float[Array, "chunks chunk tokens depth"]:
        return x.transpose(0, 2, 1, 3).reshape(batch * groups, heads_at_once, x.shape[1], depth)

    def attend_in_chunk(of_chunk: tuple[Array, Array, Array, Array]) -> Float[Array, "chunk queries depth"]:
        query, key, value, row = of_chunk
        mask_of_row = lax.dynamic_index_in_dim(mask, row, keepdims=False)

        def of_queries(query_and_mask: tuple[Array, Array]) -> Float[Array, "chunk some depth"]:
            query, mask = query_and_mask
            weights = _weights(multiply("hqd,hkd->hqk", query, key), mask)
            return multiply("hqk,hkd->hqd", weights, value)

        if queries_at_once >= queries:
            return of_queries((query, mask_of_row))
        parts = _in_parts(query, 1, queries_at_once)
        if len(mask_of_row) == 1:
            masks = jnp.broadcast_to(mask_of_row, (len(parts), *mask_of_row.shape))
        else:
            masks = _in_parts(mask_of_row, 0, queries_at_once)
        # a gradient computes the weights again: they would take the memory that is saved here
        context: Array = lax.map(jax.checkpoint(of_queries), (parts, masks))
        context = context.swapaxes(0, 1).reshape(heads_at_once, -1, depth)
        return context[:, :queries]

    rows = jnp.arange(batch * groups) // groups
    context: Array = lax.map(attend_in_chunk, (chunks(query), chunks(key), chunks(value), rows))
    return context.reshape(batch, heads, queries, depth).transpose(0, 2, 1, 3)


def _in_parts(x: Shaped[Array, "..."], axis: int, size: int) -> Shaped[Array, "parts ..."]:
    """Parts of an axis, along a new first one; the last is padded with zeros."""
    padded = _padded(x, axis, size)
    shape = (*x.shape[:axis], padded.shape[axis] // size, size, *x.shape[axis + 1 :])
    return jnp.moveaxis(padded.reshape(shape), axis, 0)


def _padded(x: Shaped[Array, "..."], axis: int, multiple: int, value: int = 0) -> Shaped[Array, "..."]:
    widths = [(0, -x.shape[axis] % multiple if each == axis else 0) for each in range(x.ndim)]
    return jnp.pad(x, widths, constant_values=value)


def _flash(
    query: Float[Array, "batch queries heads depth"],
    key: Float[Array, "batch keys heads depth"],
    value: Float[Array, "batch keys heads depth"],
    mask: Bool[Array, "batch #queries keys"],
) -> Float[Array, "batch queries heads depth"]:
    """Pallas' kernel. The mask must divide a row into sequences that see themselves alone: its segments."""
    from jax.experimental.pallas.ops.tpu import flash_attention

    sizes = {field.name: _FLASH_BLOCK for field in dataclasses.fields(flash_attention.BlockSizes)}
    blocks = flash_attention.BlockSizes(**sizes | {"block_b": 1})

    def kernel(query: Array, key: Array, value: Array, of_queries: Array, of_keys: Array) -> Array:
        segments = flash_attention.SegmentIds(of_queries, of_keys)
        context: Array = flash_attention.flash_attention(query, key, value, segment_ids=segments, block_sizes=blocks)
        return context

    tokens = query.shape[1]
    # A token's segment is the first key that it sees. A query that sees none is zero and sees all: even weights.
    first, sees_any = mask.argmax(axis=-1), mask.any(axis=-1)
    query = jnp.where(sees_any[..., None, None], query, 0)
    of_queries = jnp.broadcast_to(jnp.where(sees_any, first, 0), (len(mask), tokens)).astype(jnp.int32)
    visible = mask[:, 0] | ~sees_any if mask.shape[1] == 1 else sees_any
    of_keys = jnp.where(visible, of_queries, -1)
    operands = [_padded(x.swapaxes(1, 2), 2, _FLASH_BLOCK) for x in (query, key, value)]
    segments = [_padded(of_queries, 1, _FLASH_BLOCK), _padded(of_keys, 1, _FLASH_BLOCK, -1)]
    context: Array = _by_rows_and_heads(kernel)(*operands, *segments)
    return context[:, :, :tokens].swapaxes(1, 2).astype(accumulation_dtype(query.dtype))


def _by_rows_and_heads(kernel: Callable[..., Array]) -> Callable[..., Array]:
    """Has each device of a mesh run a kernel on its own rows and heads, which XLA cannot divide by itself."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = {name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto}
    if not axes:
        return kernel
    rows, heads = (name if name in axes else None for name in (DATA, MODEL))
    operand, segments = PartitionSpec(rows, heads), PartitionSpec(rows)  # type: ignore[no-untyped-call]
    specs = (operand, operand, operand, segments, segments)
    return jax.shard_map(kernel, in_specs=specs, out_specs=operand, axis_names=axes, check_vma=False)


def _prefers_flash(
    query: Float[Array, "batch queries heads depth"], key: Float[Array, "batch keys heads depth"]
) -> bool:
    """Whether rows are so long that a TPU should compute their attention by the kernel, and it is a TPU."""
    if not _has_static_shape(query, key) or query.dtype.itemsize > 4:
        return False
    return query.shape[1] == key.shape[1] >= _FLASH_KEYS and _is_for_tpu()


def _is_for_tpu() -> bool:
    """Whether what is traced is for TPUs: those of its mesh, or of this process."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() == "tpu" if device is None else device.platform == "tpu"


def _cudnn(
    query: Float[Array, "batch queries heads depth"],
    key: Float[Array, "batch keys heads depth"],
    value: Float[Array, "batch keys heads depth"],
    mask: Bool[Array, "batch #queries keys"],
) -> Float[Array, "batch queries heads depth"]:
    """cuDNN's kernel, which skips the padding at the end of a row."""
    batch, _, keys = mask.shape
    lengths = None
    if mask.shape[1] == 1:
        last = jnp.where(mask[:, 0], jnp.arange(1, keys + 1)[None], 0).max(axis=1)
        lengths = jnp.where(last == 0, keys, last)  # a row that is all padding has even weights
    # the mask too: padding may stand elsewhere than at the end
    every_query = jnp.broadcast_to(mask[:, None], (batch, 1, query.shape[1], keys))
    context = jax.nn.dot_product_attention(
        query, key, value, mask=every_query, scale=1.0, key_value_seq_lengths=lengths, implementation="cudnn"
    )
    return context.astype(accumulation_dtype(context.dtype))


def _can_use_cudnn(
    query: Float[Array, "batch queries heads depth"], key: Float[Array, "batch keys heads depth"]
) -> bool:
    """Whether cuDNN's kernel takes these operands of 16 bits, and this process has a GPU for it."""
    _, queries, _, depth = query.shape
    return (
        queries == key.shape[1]
        and queries % 2 == 0  # for gradients
        and depth % 8 == 0
        and depth <= _MAX_CUDNN_DEPTH
        and cudnn_is_available()
    )


@cache
def cudnn_is_available() -> bool:
    """Whether JAX has NVIDIA GPUs, all from Ampere on, and a cuDNN with fused attention."""

    def attention_of_zeros() -> Array:
        x = jnp.zeros((1, 8, 1, 8), jnp.bfloat16)
        return jax.nn.dot_product_attention(x, x, x, implementation="cudnn")

    try:
        devices = jax.devices("cuda")
        jax.eval_shape(attention_of_zeros)
    except (RuntimeError, NotImplementedError):
        return False
    capabilities = (tuple(map(int, device.compute_capability.split("."))) for device in devices)
    return all(capability >= _AMPERE for capability in capabilities)


def _has_static_shape(
    query: Float[Array, "batch queries heads depth"], key: Float[Array, "batch keys heads depth"]
) -> bool:
    """Whether no size is one of jax.export's symbolic dimensions."""
    return all(isinstance(size, int) for size in (*query.shape, key.shape[1]))


def _scores_bytes(query: Float[Array, "batch queries heads depth"], key: Float[Array, "batch keys heads depth"]) -> int:
    batch, queries, heads, _ = query.shape
    return batch * heads * queries * key.shape[1] * accumulation_dtype(query.dtype).itemsize


def _chunk(
    query: Float[Array, "batch queries heads depth"], key: Float[Array, "batch keys heads depth"]
) -> tuple[int, int] | None:
    """How many heads, and how many of their queries, have scores that fit into a chunk; the heads divide all heads.

    None where the scores of all heads are small, or of unknown size (jax.export's symbolic dimensions).
    """
    batch, queries, heads, _ = query.shape
    if not _has_static_shape(query, key) or _scores_bytes(query, key) <= _WHOLE_BYTES:
        return None
    head_bytes = _scores_bytes(query, key) // (batch * heads)
    if head_bytes > _CHUNK_BYTES:
        return 1, max(1, _CHUNK_BYTES * queries // head_bytes)
    return max(n for n in range(1, heads + 1) if heads % n == 0 and n * head_bytes <= _CHUNK_BYTES), queries
