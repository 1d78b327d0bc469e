"""Token ids on the host: checks, collating rows of different lengths, and padding to a few fixed shapes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from roberta_flax.errors import InputError
from roberta_flax.tokenizer import PAD_ID, check_token_ids

# Lengths that a sequence is padded to: at most a third of a row is padding beyond the first.
LENGTH_BUCKETS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


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
    batch = np.full((len(rows), max(map(len, rows))), pad_idx, np.int32)
    for target, row in zip(batch, rows, strict=True):
        target[: len(row)] = row
    return batch


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
