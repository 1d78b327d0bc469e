"""Token ids on the host: checks, collating, and laying sequences of many lengths out in a few fixed shapes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from roberta_flax.errors import InputError
from roberta_flax.text.tokenizer import PAD_ID, check_token_ids

# Lengths that a single call is padded to: at most a third of a row is padding beyond the first.
LENGTH_BUCKETS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
# Sequences of at most this length are packed, into rows this long: attention costs more in longer ones.
PACK_LENGTH = 256
_SHORTEST_SEGMENT = 8  # tokens; bounds the segments of a row, and with them the programs' shapes


def check_tokens(tokens: Any, vocab_size: int, max_positions: int) -> npt.NDArray[np.int32]:
    """Token ids as int32 [batch, time], checked: JAX would clamp an id or a position outside its table silently.

    Args:
      tokens: one sequence, [time], or several of one length, [batch, time]; a list, numpy or JAX array.
      vocab_size, max_positions: of the model.

    Raises:
      InputError: another shape, nothing in it, not integers, an id outside the vocabulary, or too long.
    """
    try:
        ids = np.asarray(tokens)
    except ValueError:
        ids = np.asarray(None)
    if ids.dtype == object:
        raise InputError("token ids must be one sequence or rows of one length; pad rows with collate_tokens()")
    if ids.ndim == 1:
        ids = ids[None, :]
    if ids.ndim != 2:
        raise InputError(f"token ids must be [time] or [batch, time], got shape {ids.shape}")
    if ids.size == 0:
        raise InputError(f"no token ids: got shape {np.shape(tokens)}; even an empty text encodes to <s> </s>")
    check_token_ids(ids, vocab_size)
    if ids.shape[1] > max_positions:
        raise InputError(f"{ids.shape[1]} tokens are longer than the {max_positions} positions of this model")
    return ids.astype(np.int32)


def collate_tokens(sequences: Iterable[npt.ArrayLike], pad_idx: int = PAD_ID) -> npt.NDArray[np.int32]:
    """Sequences of token ids, [length] each, as one batch, padded on the right.

    Named and called as fairseq.data.data_utils.collate_tokens.

    Returns:
      int32 [batch, longest].

    Raises:
      InputError: no sequences, or one that is not a sequence of integers.
    """
    rows = [np.asarray(sequence) for sequence in sequences]
    if not rows:
        raise InputError("collate_tokens got no sequences")
    for row in rows:
        if row.ndim != 1 or not np.issubdtype(row.dtype, np.integer):
            raise InputError(
                f"collate_tokens takes sequences of integers, [length] each; got {row.dtype} of shape {row.shape}"
            )
    return pad_rows(rows, (len(rows), max(map(len, rows))), pad_idx)


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
    """Pads [batch, time] with rows and columns of padding to one of a few shapes, so that few are compiled.

    Rows to the next power of two, columns to the next of LENGTH_BUCKETS (at most max_positions). What was there
    stays in the upper left corner.
    """
    batch, time = tokens.shape
    rows = 1 << (batch - 1).bit_length()
    columns = next((length for length in LENGTH_BUCKETS if length >= time), time)
    columns = max(time, min(columns, max_positions))
    return np.pad(tokens, ((0, rows - batch), (0, columns - time)), constant_values=pad_id)


@dataclass(frozen=True)
class TokenBatch:
    """Some sequences, laid out in one of a few shapes.

    Attributes:
      sequences: which they are, [n]: their places in the list that was given.
      tokens: int32 [rows, length].
      row, segment, column: of each sequence, [n]: its row, its number in the row, its first token's column.
      segments, starts: as in roberta_flax.forward, where rows hold several sequences; otherwise None.
    """

    sequences: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int32]
    row: npt.NDArray[np.int64]
    segment: npt.NDArray[np.int64]
    column: npt.NDArray[np.int64]
    segments: npt.NDArray[np.int32] | None = None
    starts: npt.NDArray[np.int32] | None = None


def lay_out(
    sequences: Sequence[npt.NDArray[np.int32]],
    *,
    tokens_per_batch: int,
    pad_id: int,
    max_positions: int,
    rows_multiple: int = 1,
    pack: bool = False,
) -> Iterator[TokenBatch]:
    """All of `sequences` in batches of few shapes, longest first, so that what does not fit in memory shows at once.

    Sorted by length, a batch is filled with the longest that are left and padded to the bucket of the first: short
    sequences go in large batches, long ones in small ones. Only the last may have rows to spare. With `pack`, those
    of at most PACK_LENGTH share rows of that length, unless all together would not fill half of one.

    Args:
      sequences: token ids, [length] each, at most max_positions long.
      tokens_per_batch: about how many tokens, padding included, a batch has.
      pad_id: of the model.
      max_positions: of the model.
      rows_multiple: what the number of rows must be a multiple of: the number of devices.
      pack: several sequences in a row.
    """
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    order = np.argsort(-lengths, kind="stable")
    pack = pack and lengths.sum() > PACK_LENGTH // 2
    shortest_first = int(np.searchsorted(-lengths[order], -PACK_LENGTH)) if pack else len(order)
    done = 0
    while done < shortest_first:
        length = length_bucket(int(lengths[order[done]]), max_positions)
        full = rows_of(length, tokens_per_batch, rows_multiple)
        chosen = order[done : min(done + full, shortest_first)]
        yield _one_a_row(sequences, chosen, (_enough(len(chosen), full, rows_multiple), length), pad_id)
        done += len(chosen)
    if done < len(order):
        full = rows_of(PACK_LENGTH, tokens_per_batch, rows_multiple)
        rows = _packed(order[done:], lengths)
        for first in range(0, len(rows), full):
            some = rows[first : first + full]
            yield _several_a_row(sequences, some, _enough(len(some), full, rows_multiple), pad_id)


def length_bucket(length: int, max_positions: int) -> int:
    """What a sequence of `length` tokens is padded to in lay_out: multiples of 8 to 64, of an eighth beyond."""
    step = max(8, (1 << (length - 1).bit_length()) // 8)
    return max(length, min(-(-length // step) * step, max_positions))


def rows_of(length: int, tokens_per_batch: int, rows_multiple: int) -> int:
    """How many rows of `length` a full batch has."""
    rows = tokens_per_batch // length
    multiple = 8 * rows_multiple if rows >= 8 * rows_multiple else rows_multiple  # accelerators tile by 8 rows
    return max(rows // multiple * multiple, rows_multiple)


def _enough(rows: int, full: int, rows_multiple: int) -> int:
    """At least `rows`: a full batch's, or a quarter, a sixteenth, ... of them, so that a last one has few shapes."""
    while full // 4 >= rows and full // 4 >= rows_multiple:
        full //= 4
    return -(-full // rows_multiple) * rows_multiple


def _one_a_row(
    sequences: Sequence[npt.NDArray[np.int32]], chosen: npt.NDArray[np.int64], shape: tuple[int, int], pad_id: int
) -> TokenBatch:
    tokens = pad_rows([sequences[number] for number in chosen], shape, pad_id)
    rows = np.arange(len(chosen))
    return TokenBatch(chosen, tokens, rows, np.zeros_like(rows), np.zeros_like(rows))


def _packed(order: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> list[list[int]]:
    """Rows of sequences' numbers: each, longest first, into the fullest row that has room for it (best fit)."""
    most = PACK_LENGTH // _SHORTEST_SEGMENT
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(PACK_LENGTH + 1)]  # rows by the room that is left in them
    for number in order.tolist():
        length = int(lengths[number])
        room = next((room for room in range(length, PACK_LENGTH + 1) if with_room[room]), None)
        if room is None:
            rows.append([])
            row, room = len(rows) - 1, PACK_LENGTH
        else:
            row = with_room[room].pop()
        rows[row].append(number)
        if len(rows[row]) < most:
            with_room[room - length].append(row)
    return rows


def _several_a_row(
    sequences: Sequence[npt.NDArray[np.int32]], rows: Sequence[Sequence[int]], count: int, pad_id: int
) -> TokenBatch:
    tokens = np.full((count, PACK_LENGTH), pad_id, np.int32)
    segments = np.full((count, PACK_LENGTH), -1, np.int32)
    starts = np.zeros((count, PACK_LENGTH // _SHORTEST_SEGMENT), np.int32)
    places = []
    for row, numbers in enumerate(rows):
        column = 0
        for segment, number in enumerate(numbers):
            end = column + len(sequences[number])
            tokens[row, column:end] = sequences[number]
            segments[row, column:end] = segment
            starts[row, segment] = column
            places.append((number, row, segment, column))
            column = end
    chosen, row_of, segment_of, column_of = np.array(places, np.int64).T
    return TokenBatch(chosen, tokens, row_of, segment_of, column_of, segments, starts)
