"""Encoding of texts as token sequences within the maximum length."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from roberta_flax.errors import InputError
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.text.tokenizer import Tokenizer
from roberta_flax.text.windows import TokenWindow

OnLong = Literal["error", "truncate", "window"]  # what to do with an input over the maximum length
TextInput = str | Sequence[str]  # a text, or several that form one input, such as a pair
Ids = npt.NDArray[np.int32]

SMALLEST_MAX_LENGTH = 8  # room for two texts of two tokens each, with their special tokens


@dataclass(frozen=True)
class Rejected:
    """Takes the place of a result if an input cannot be used.

    Attributes:
      reason: why not, in one line.
    """

    reason: str


class EncodedSequence(NamedTuple):
    """A token sequence for the model: a whole input, or a part of an input over the maximum length.

    Attributes:
      ids: int32 [length], special tokens included.
      prefix_length: how many of these tokens come before the text that windows slide over, or before the mask.
      begin, end: for a window, the range of that text's tokens that it holds.
      truncated: whether tokens of the input are missing.
      window: the places of the tokens in the input's texts, where the task needs them.
    """

    ids: Ids
    prefix_length: int = 0
    begin: int = 0
    end: int = 0
    truncated: bool = False
    window: TokenWindow | None = None


EncodedInput = list[EncodedSequence] | Rejected


def encode_texts(tokenizer: Tokenizer, texts: TextInput, max_length: int, on_long: OnLong) -> list[EncodedSequence]:
    """Encodes one input: a text, or several that are joined as in Tokenizer.encode.

    If the input has over `max_length` tokens, `on_long` decides: "error" raises; "truncate" removes tokens one at a
    time from the end of whichever text is longest; "window" returns several sequences, windows that slide over the
    last text by half of the room that is left for it.

    Raises:
      InputError: the input is not text, or it is too long.
    """
    (encoded,) = encode_batch(tokenizer, [texts], max_length, on_long)
    if isinstance(encoded, Rejected):
        raise InputError(encoded.reason)
    return encoded


def encode_batch(
    tokenizer: Tokenizer, inputs: Iterable[TextInput], max_length: int, on_long: OnLong
) -> list[EncodedInput]:
    """Encodes each input as `encode_texts` does, with a Rejected for each that `encode_texts` would raise for.

    All texts are split, and all inputs within the maximum length converted to ids, in one call each, which is faster
    than one by one.
    """
    fitting: list[list[list[int]]] = []  # the pieces of each input within the maximum length, by text

    def encode_long(pieces: list[list[int]]) -> list[EncodedSequence]:
        """Encodes an input over the maximum length; puts any other in `fitting` and returns nothing yet."""
        if _joined_length(tokenizer, pieces) > max_length:
            return _shorten(tokenizer, pieces, max_length, on_long)
        fitting.append(pieces)
        return []

    encoded = [encode_or_reject(encode_long, pieces) for pieces in _split(tokenizer, list(inputs))]
    joined = iter(tokenizer.join_all(fitting))
    return [sequences or [EncodedSequence(next(joined))] for sequences in encoded]


def encode_or_reject(encode: Callable[[Any], list[EncodedSequence]], texts: Any) -> EncodedInput:
    """Calls `encode`, and turns its InputError into a Rejected. A Rejected in place of texts is returned unchanged."""
    if isinstance(texts, Rejected):
        return texts
    try:
        return encode(texts)
    except InputError as error:
        return Rejected(str(error))


def one_or_two_texts(given: Any) -> Sequence[str]:
    """The texts of an input that is one text or a pair. Raises InputError for anything else."""
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list | tuple) or not 1 <= len(texts) <= 2:
        raise InputError(f"expected a text or a pair of texts, got {type(given).__name__}: {given!r:.60}")
    return texts


def too_long(length: int, max_length: int) -> InputError:
    """The error for an input of `length` tokens if on_long is "error"."""
    return InputError(
        f"{length} tokens, over the maximum length of {max_length}; to shorten such inputs, set on_long (--on-long) to "
        "truncate or window"
    )


def resolve_max_length(config: RobertaConfig, max_length: int | None) -> int:
    """Returns `max_length`, or the model's max_positions if it is None.

    Raises:
      InputError: max_length is below SMALLEST_MAX_LENGTH or above the model's max_positions.
    """
    resolved = config.max_positions if max_length is None else max_length
    is_integer = isinstance(resolved, int) and not isinstance(resolved, bool)
    if not is_integer or not SMALLEST_MAX_LENGTH <= resolved <= config.max_positions:
        raise InputError(
            f"max_length must be from {SMALLEST_MAX_LENGTH} to the model's {config.max_positions}, got {resolved!r}"
        )
    return resolved


def _split(tokenizer: Tokenizer, inputs: Sequence[TextInput | Rejected]) -> list[list[list[int]] | Rejected]:
    """Splits the texts of each input into pieces, all in one call unless a text cannot be used."""
    try:
        several = [() if isinstance(each, Rejected) else _texts_of(each) for each in inputs]
        pieces = iter(tokenizer.pieces_of(list(itertools.chain.from_iterable(several))))
    except InputError:
        return [_split_one(tokenizer, each) for each in inputs]
    return [
        each if isinstance(each, Rejected) else list(itertools.islice(pieces, len(texts)))
        for each, texts in zip(inputs, several, strict=True)
    ]


def _split_one(tokenizer: Tokenizer, texts: TextInput | Rejected) -> list[list[int]] | Rejected:
    if isinstance(texts, Rejected):
        return texts
    try:
        return tokenizer.pieces_of(_texts_of(texts))
    except InputError as error:
        return Rejected(str(error))


def _texts_of(texts: Any) -> Sequence[str]:
    several = [texts] if isinstance(texts, str) else texts
    if not isinstance(several, list | tuple) or not several:
        raise InputError(f"expected a text or a list of texts, got {type(texts).__name__}: {str(texts)[:60]!r}")
    return several


def _joined_length(tokenizer: Tokenizer, pieces: Sequence[list[int]]) -> int:
    return sum(map(len, pieces)) + tokenizer.special_lengths(len(pieces))[2]


def _shorten(
    tokenizer: Tokenizer, pieces: Sequence[list[int]], max_length: int, on_long: OnLong
) -> list[EncodedSequence]:
    if on_long == "error":
        raise too_long(_joined_length(tokenizer, pieces), max_length)
    if on_long == "truncate":
        return [_truncate(tokenizer, pieces, max_length)]
    return _slide(tokenizer, pieces, max_length)


def _truncate(tokenizer: Tokenizer, pieces: Sequence[list[int]], max_length: int) -> EncodedSequence:
    room = max_length - tokenizer.special_lengths(len(pieces))[2]
    return EncodedSequence(tokenizer.join(tokenizer.truncate(pieces, room)), truncated=True)


def _slide(tokenizer: Tokenizer, pieces: Sequence[list[int]], max_length: int) -> list[EncodedSequence]:
    """Windows over the last text, each with all other texts before it."""
    *others, last = pieces
    length = _joined_length(tokenizer, pieces)
    room = max_length - (length - len(last))
    if room < 2:
        raise InputError(
            f"{length} tokens, over the maximum length of {max_length}, and the texts before the last leave no room to "
            "slide windows over it"
        )
    prefix_length = length - len(last) - tokenizer.special_lengths(len(pieces))[1]
    begins = [*range(0, len(last) - room, max(room // 2, 1)), len(last) - room]
    return [
        EncodedSequence(
            tokenizer.join([*others, last[begin : begin + room]]), prefix_length, begin, begin + room, truncated=True
        )
        for begin in begins
    ]
