"""Windows over an input that is too long, with the places of their tokens in its texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from roberta_flax.errors import InputError


class TokenWindow(NamedTuple):
    """The tokens of an input, or of a window of an input over the maximum length, with their places in its texts.

    Attributes:
      ids: int32 [length], special tokens included.
      texts: int64 [length], the number of the text that each token is of; -1 for special tokens around texts.
      spans: int64 [length, 2], the begin (inclusive) and the end (exclusive) of each token in its text, in characters.
      words: int64 [length], the number of each token's word in its text; -1 where it is in none.
    """

    ids: npt.NDArray[np.int32]
    texts: npt.NDArray[np.int64]
    spans: npt.NDArray[np.int64]
    words: npt.NDArray[np.int64]


def check_windows_advance(room: int, stride: int, max_length: int, num_texts: int) -> None:
    """Raises InputError unless windows that share `stride` tokens, with room for `room` of the last text, advance."""
    if stride >= room:
        before = " beside the texts before the last" if num_texts > 1 else ""
        raise InputError(
            f"windows that overlap by {stride} tokens do not advance, because the maximum length of {max_length} "
            f"leaves room for {max(room, 0)} tokens{before}; use a smaller stride or a larger maximum length"
        )


def window_ranges(length: int, room: int, stride: int) -> Iterator[tuple[int, int]]:
    """The begin and end of windows of `room` tokens that share `stride`, as Encoding.truncate of tokenizers."""
    begin = 0
    while begin + room < length:
        yield begin, begin + room
        begin += room - stride
    yield begin, length


def joined_window(
    around: Sequence[Sequence[int]],
    ids: Sequence[Sequence[int]],
    spans: Sequence[npt.NDArray[np.int64]],
    words: Sequence[npt.NDArray[np.int64]],
) -> TokenWindow:
    """Joins texts, each given by the ids, places and words of its tokens, with the special tokens around them."""
    first, *others = around
    all_ids, texts = [*first], [-1] * len(first)
    for number, (of_text, specials) in enumerate(zip(ids, others, strict=True)):
        all_ids += [*of_text, *specials]
        texts += [number] * len(of_text) + [-1] * len(specials)
    text_of_token = np.array(texts, np.int64)
    all_spans, all_words = np.zeros((len(texts), 2), np.int64), np.full(len(texts), -1, np.int64)
    all_spans[text_of_token >= 0], all_words[text_of_token >= 0] = np.concatenate(spans), np.concatenate(words)
    return TokenWindow(np.array(all_ids, np.int32), text_of_token, all_spans, all_words)
