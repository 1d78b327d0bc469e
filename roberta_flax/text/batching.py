"""Token ids on the host: checking and collating them, and laying out sequences in batches of a few fixed shapes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from roberta_flax.errors import InputError
from roberta_flax.text.fairseq_tokenizer import PAD_ID
from roberta_flax.text.tokenizer import check_token_ids

# A single call is padded to one of these lengths. Beyond the first, at most a third of a row is padding.
LENGTH_BUCKETS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
# Sequences up to this length are packed into rows of this length. Attention would cost more in longer rows.
PACK_LENGTH = 256
_SEGMENTS_PER_ROW = PACK_LENGTH // 8  # the most sequences that share a row: a fixed number, as compiled shapes need
# Both as `python -m benchmarks.layout` measures them on CPUs: 1.8 and 0.06 in float32, 1.5 and 0.04 in bfloat16.
_ATTENTION_SLOWNESS = 1.6  # time of an operation of attention, its softmax included, over one of a layer's products
_PACKING_COST = 0.05  # of a slot: masks by segment, positions, and the gathering of first tokens

Strategy = Literal["auto", "buckets", "packing", "fixed"]


def check_tokens(tokens: Any, vocab_size: int, max_positions: int) -> npt.NDArray[np.int32]:
    """Checks token ids and returns them as int32 [batch, time].

    JAX does not check them: it silently clamps an id or a position outside its embedding table.

    Args:
      tokens: one sequence, [time], or several of the same length, [batch, time]: a list, or a numpy or JAX array.
      vocab_size: the model's vocabulary size.
      max_positions: the model's maximum length.

    Raises:
      InputError: the ids have another shape, are none, are not integers, are outside the vocabulary, or are too many.
    """
    try:
        ids = np.asarray(tokens)
    except ValueError:
        ids = np.asarray(None)
    if ids.dtype == object:
        raise InputError("token ids must be one sequence or rows of equal length; pad rows with collate_tokens()")
    if ids.ndim == 1:
        ids = ids[None, :]
    if ids.ndim != 2:
        raise InputError(f"token ids must be [time] or [batch, time], got shape {ids.shape}")
    if ids.size == 0:
        raise InputError(f"no token ids: got shape {np.shape(tokens)}; an empty text encodes to <s> </s>")
    check_token_ids(ids, vocab_size)
    if ids.shape[1] > max_positions:
        raise InputError(f"{ids.shape[1]} tokens exceed the model's maximum length of {max_positions}")
    return ids.astype(np.int32)


def collate_tokens(
    sequences: Iterable[npt.ArrayLike], pad_idx: int = PAD_ID, *, max_positions: int | None = None
) -> npt.NDArray[np.int32]:
    """Collates sequences of token ids, [length] each, into one batch, padded on the right.

    The name and the first two arguments are those of fairseq.data.data_utils.collate_tokens.

    Args:
      sequences: token ids.
      pad_idx: the model's id of `<pad>`.
      max_positions: the model's maximum length, to pad to one of a few lengths: the next of LENGTH_BUCKETS (16, 24, 32,
        48, ...) up to this one. A jitted function is compiled anew for every shape. None for the longest length.

    Returns:
      int32 [batch, length].

    Raises:
      InputError: there are no sequences, one is not a sequence of integers, or one is longer than max_positions.
    """
    rows = [np.asarray(sequence) for sequence in sequences]
    if not rows:
        raise InputError("collate_tokens got no sequences")
    for row in rows:
        if row.ndim != 1 or not np.issubdtype(row.dtype, np.integer):
            raise InputError(
                f"collate_tokens takes sequences of integers, [length] each; got {row.dtype} of shape {row.shape}"
            )
    longest = max(map(len, rows))
    if max_positions is None:
        return pad_rows(rows, (len(rows), longest), pad_idx)
    if longest > max_positions:
        raise InputError(f"{longest} tokens exceed the model's maximum length of {max_positions}")
    return pad_rows(rows, (len(rows), _bucket(longest, max_positions)), pad_idx)


def pad_rows(
    rows: Sequence[npt.ArrayLike], shape: tuple[int, int], fill: float, dtype: npt.DTypeLike = np.int32
) -> npt.NDArray[Any]:
    """An array whose first rows begin with these, [length] each; what they do not reach is filled.

    Args:
      rows: at most shape[0] of them, each at most shape[1] long.
      shape: of the array.
      fill: the value of everything else.
      dtype: of the array.
    """
    padded = np.full(shape, fill, dtype)
    for number, row in enumerate(rows):
        padded[number, : np.size(row)] = row
    return padded


def pad_to_bucket(tokens: npt.NDArray[np.int32], pad_id: int, max_positions: int) -> npt.NDArray[np.int32]:
    """Pads [batch, time] with rows and columns of padding to one of a few shapes, so that few programs are compiled.

    Rows are padded to the next power of two, columns to the next of LENGTH_BUCKETS (at most max_positions). The
    original ids stay in the upper left corner.
    """
    batch, time = tokens.shape
    rows = 1 << (batch - 1).bit_length()
    columns = _bucket(time, max_positions)
    return np.pad(tokens, ((0, rows - batch), (0, columns - time)), constant_values=pad_id)


def _bucket(length: int, max_positions: int) -> int:
    """The next of LENGTH_BUCKETS, at most max_positions."""
    bucket = next((each for each in LENGTH_BUCKETS if each >= length), length)
    return max(length, min(bucket, max_positions))


@dataclass(frozen=True)
class TokenBatch:
    """Sequences laid out in one array, which has one of a few shapes.

    Attributes:
      indices: [n], the index of each sequence in the list that was passed to `lay_out`.
      tokens: int32 [rows, length].
      row, segment, column: [n], where each sequence is: its row, its number within the row, and the column of its
        first token.
      segments, starts: the arguments of the same name of the functions in roberta_flax.forward if rows hold several
        sequences; otherwise None.
    """

    indices: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int32]
    row: npt.NDArray[np.int64]
    segment: npt.NDArray[np.int64]
    column: npt.NDArray[np.int64]
    segments: npt.NDArray[np.int32] | None = None
    starts: npt.NDArray[np.int32] | None = None


@dataclass(frozen=True)
class _Plan:
    """What a batch will hold.

    Attributes:
      rows: for each row, the indices of its sequences.
      shape: the number of rows, which may be more, and their length.
      is_packed: whether rows may hold several sequences.
    """

    rows: Sequence[Sequence[int]]
    shape: tuple[int, int]
    is_packed: bool = False


@dataclass(frozen=True)
class _Sizes:
    """What the shape of a batch follows from, beside the lengths of its sequences; as the arguments of `lay_out`."""

    tokens_per_batch: int
    max_positions: int
    rows_multiple: int
    length_multiple: int

    def bucket(self, length: int) -> int:
        """The length of rows for a sequence of this length."""
        return length_bucket(length, self.max_positions, self.length_multiple)

    def rows(self, length: int) -> int:
        """The number of rows of this length in a full batch."""
        return rows_per_batch(length, self.tokens_per_batch, self.rows_multiple)


def lay_out(
    sequences: Sequence[npt.NDArray[np.int32]],
    *,
    tokens_per_batch: int,
    pad_id: int,
    max_positions: int,
    rows_multiple: int = 1,
    strategy: Strategy = "buckets",
    attention_cost: float = 0.0,
    length_multiple: int = 8,
) -> Iterator[TokenBatch]:
    """Lays out all of `sequences` in batches of few shapes, longest first, so that running out of memory shows at once.

    With "buckets", each batch takes the longest sequences that remain and is padded to the length bucket of the first
    one: long sequences form small batches, short ones large batches. Only the last batch may have unused rows. With
    "packing", the sequences of up to PACK_LENGTH tokens share rows of that length, unless together they would not fill
    half a row. "auto" is whichever of the two costs less by `estimated_cost`, so it depends on the lengths alone.

    With "fixed", a sequence is padded to its own length bucket, and every batch of a bucket has the same number of
    rows. The shape of the batch that a sequence is in then depends on its own length alone, and so does its result: one
    program computes each row without regard to the others.

    Args:
      sequences: token ids, [length] each, at most max_positions long.
      tokens_per_batch: the approximate number of tokens in a batch, including padding.
      pad_id: the model's id of `<pad>`.
      max_positions: the model's maximum length.
      rows_multiple: the number of data-parallel devices; the number of rows is a multiple of it.
      strategy: how, as above.
      attention_cost: for "auto", as in `estimated_cost`.
      length_multiple: as in `length_bucket`.
    """
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    sizes = _Sizes(tokens_per_batch, max_positions, rows_multiple, length_multiple)
    for plan in _plans(lengths, strategy, attention_cost, sizes):
        build = _packed_batch if plan.is_packed else _unpacked_batch
        yield build(sequences, plan.rows, plan.shape, pad_id)


def _plans(lengths: npt.NDArray[np.int64], strategy: Strategy, attention_cost: float, sizes: _Sizes) -> Sequence[_Plan]:
    order = np.argsort(-lengths, kind="stable")
    if strategy == "fixed":
        return list(_plan_fixed(order, lengths, sizes))
    plans = []
    if strategy != "packing":
        plans.append(list(_plan_buckets(order, lengths, sizes)))
    if strategy != "buckets":
        plans.append(list(_plan_packing(order, lengths, sizes)))
    return min(plans, key=lambda plan: estimated_cost([(*each.shape, each.is_packed) for each in plan], attention_cost))


def estimated_cost(batches: Iterable[tuple[int, int, bool]], attention_cost: float) -> float:
    """Estimates what batches cost, in units of the matrix products of one slot (a token, or padding).

    Args:
      batches: the number of rows, their length, and whether sequences share rows, of each batch.
      attention_cost: the cost of a slot's attention to one position (`relative_attention_cost`).
    """
    return sum(
        rows * length * (1 + attention_cost * length + _PACKING_COST * is_packed) for rows, length, is_packed in batches
    )


def relative_attention_cost(hidden_size: int, intermediate_size: int) -> float:
    """The cost of a token's attention to one position, in units of a token's matrix products in a layer.

    A token's products with the layer's matrices take 8 h^2 + 4 h i operations, and its attention to one position 4 h:
    1 / (2 h + i) of these, at a lower speed (_ATTENTION_SLOWNESS).
    """
    return _ATTENTION_SLOWNESS / (2 * hidden_size + intermediate_size)


def _plan_fixed(order: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], sizes: _Sizes) -> Iterator[_Plan]:
    for length, group in itertools.groupby(order, lambda index: sizes.bucket(int(lengths[index]))):
        members, full = [[int(index)] for index in group], sizes.rows(length)
        for start in range(0, len(members), full):
            yield _Plan(members[start : start + full], (full, length))


def _plan_buckets(order: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], sizes: _Sizes) -> Iterator[_Plan]:
    done = 0
    while done < len(order):
        length = sizes.bucket(int(lengths[order[done]]))
        full = sizes.rows(length)
        members = [[int(index)] for index in order[done : done + full]]
        yield _Plan(members, (_row_bucket(len(members), full, sizes.rows_multiple), length))
        done += len(members)


def _plan_packing(order: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], sizes: _Sizes) -> Iterator[_Plan]:
    fills_rows = lengths.sum() > PACK_LENGTH // 2
    num_unpacked = int(np.searchsorted(-lengths[order], -PACK_LENGTH)) if fills_rows else len(order)
    yield from _plan_buckets(order[:num_unpacked], lengths, sizes)
    full = sizes.rows(PACK_LENGTH)
    rows = _best_fit(order[num_unpacked:], lengths)
    for first in range(0, len(rows), full):
        chosen = rows[first : first + full]
        # in finer steps, because the length is always the same
        num_rows = _row_bucket(len(chosen), full, sizes.rows_multiple, step=2)
        yield _Plan(chosen, (num_rows, PACK_LENGTH), is_packed=True)


def length_bucket(length: int, max_positions: int, multiple: int = 8) -> int:
    """The length that `lay_out` pads to: a multiple of `multiple`, and of an eighth of the next power of two."""
    step = max(multiple, (1 << (length - 1).bit_length()) // 8)
    return max(length, min(-(-length // step) * step, max_positions))


def rows_per_batch(length: int, tokens_per_batch: int, rows_multiple: int) -> int:
    """The number of rows in a full batch of rows of `length` tokens."""
    rows = tokens_per_batch // length
    multiple = 8 * rows_multiple if rows >= 8 * rows_multiple else rows_multiple  # accelerators tile by 8 rows
    return max(rows // multiple * multiple, rows_multiple)


def _row_bucket(rows: int, full: int, rows_multiple: int, step: int = 4) -> int:
    """The number of rows to pad a batch to: `full`, or the smallest of a quarter, a sixteenth, ... of it that fits."""
    while full // step >= rows and full // step >= rows_multiple:
        full //= step
    return -(-full // rows_multiple) * rows_multiple


def _unpacked_batch(
    sequences: Sequence[npt.NDArray[np.int32]], rows: Sequence[Sequence[int]], shape: tuple[int, int], pad_id: int
) -> TokenBatch:
    indices = np.array([index for (index,) in rows], np.int64)
    tokens = pad_rows([sequences[index] for index in indices], shape, pad_id)
    row = np.arange(len(indices))
    return TokenBatch(indices, tokens, row, np.zeros_like(row), np.zeros_like(row))


def _best_fit(order: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> list[list[int]]:
    """Assigns sequences to rows: each, in this order, goes to the fullest row that has room for it (best fit).

    Returns:
      For each row, the indices of its sequences.
    """
    rows: list[list[int]] = []
    rows_by_room: list[list[int]] = [[] for _ in range(PACK_LENGTH + 1)]  # the rows with exactly this many free tokens
    for index in order.tolist():
        length = int(lengths[index])
        room = next((room for room in range(length, PACK_LENGTH + 1) if rows_by_room[room]), None)
        if room is None:
            rows.append([])
            row, room = len(rows) - 1, PACK_LENGTH
        else:
            row = rows_by_room[room].pop()
        rows[row].append(index)
        if len(rows[row]) < _SEGMENTS_PER_ROW:
            rows_by_room[room - length].append(row)
    return rows


def _packed_batch(
    sequences: Sequence[npt.NDArray[np.int32]], rows: Sequence[Sequence[int]], shape: tuple[int, int], pad_id: int
) -> TokenBatch:
    tokens = np.full(shape, pad_id, np.int32)
    segments = np.full(shape, -1, np.int32)
    starts = np.zeros((shape[0], _SEGMENTS_PER_ROW), np.int32)
    positions = []
    for row, row_indices in enumerate(rows):
        column = 0
        for segment, index in enumerate(row_indices):
            end = column + len(sequences[index])
            tokens[row, column:end] = sequences[index]
            segments[row, column:end] = segment
            starts[row, segment] = column
            positions.append((index, row, segment, column))
            column = end
    indices, row_of, segment_of, column_of = np.array(positions, np.int64).T
    return TokenBatch(indices, tokens, row_of, segment_of, column_of, segments, starts)
