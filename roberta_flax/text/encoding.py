"""Texts to token sequences of a length that the model takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from roberta_flax.errors import InputError
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.text.tokenizer import Tokenizer

OnLong = Literal["error", "truncate", "window"]


Ids = npt.NDArray[np.int32]


Item = str | Sequence[str]  # a text, or several of one input: a pair


SHORTEST_LIMIT = 8  # tokens that an input may have, at the least: two texts of two, and what joins them


@dataclass(frozen=True)
class Rejected:
    """In the place of a result: why a text has none."""

    reason: str


class Piece(NamedTuple):
    """A sequence that the model sees: a whole input, or a part of one that is too long.

    Attributes:
      ids: with special tokens.
      prefix: how many of them stand before the text that was truncated, or before the mask.
      begin, end: which of that text's tokens are in it.
      truncated: whether anything of the input is missing in it.
    """

    ids: Ids
    prefix: int = 0
    begin: int = 0
    end: int = 0
    truncated: bool = False


Encoded = list[Piece] | Rejected  # what an input becomes


def encode_texts(tokenizer: Tokenizer, item: Item, limit: int, on_long: OnLong) -> list[Piece]:
    """The sequences of a text or of several, as Tokenizer.encode joins them.

    Of an input of over `limit` tokens, by `on_long`: none ("error"); one, truncated token by token at the end of
    whichever text is the longest then ("truncate"); or several, that slide over the last text by half of what there is
    room for ("window").

    Raises:
      InputError: not text, or too long.
    """
    (found,) = encode_batch(tokenizer, [item], limit, on_long)
    if isinstance(found, Rejected):
        raise InputError(found.reason)
    return found


def encode_batch(tokenizer: Tokenizer, items: Iterable[Item], limit: int, on_long: OnLong) -> list[Encoded]:
    """`encode_texts` of each, or why it raises: one look-up for all that are not too long."""
    whole: list[list[list[int]]] = []

    def shortened(item: Item) -> list[Piece]:
        """The sequences of an input that is too long; none of one that is joined with the others."""
        texts = [item] if isinstance(item, str) else item
        if not isinstance(texts, (list, tuple)) or not texts:
            raise InputError(f"expected a text or several, got {type(item).__name__}: {str(item)[:60]!r}")
        parts = list(map(tokenizer.pieces, texts))
        if sum(map(len, parts)) + _specials(parts) > limit:
            return _shortened(tokenizer, parts, limit, on_long)
        whole.append(parts)
        return []

    encoded = [or_rejected(shortened, item) for item in items]
    joined = iter(tokenizer.join_all(whole))
    return [found or [Piece(next(joined))] for found in encoded]


def or_rejected(encode: Callable[[Any], list[Piece]], item: Any) -> Encoded:
    if isinstance(item, Rejected):
        return item
    try:
        return encode(item)
    except InputError as error:
        return Rejected(str(error))


def _specials(parts: Sequence[list[int]]) -> int:
    return 2 * len(parts)  # <s> a </s></s> b </s>


def _shortened(tokenizer: Tokenizer, parts: Sequence[list[int]], limit: int, on_long: OnLong) -> list[Piece]:
    specials = _specials(parts)
    length = sum(map(len, parts)) + specials
    refuse_long(length, limit, on_long)
    if on_long == "truncate":
        kept = longest_first([len(part) for part in parts], limit - specials)
        return [Piece(tokenizer.join([part[:n] for part, n in zip(parts, kept, strict=True)]), truncated=True)]
    *given, last = parts
    room = limit - specials - sum(map(len, given))
    if room < 2:
        raise InputError(f"{length} tokens, and the texts before the last leave no room in {limit} to slide over it")
    prefix = length - len(last) - 1
    begins = [*range(0, len(last) - room, max(room // 2, 1)), len(last) - room]
    return [
        Piece(tokenizer.join([*given, last[begin : begin + room]]), prefix, begin, begin + room, truncated=True)
        for begin in begins
    ]


def longest_first(lengths: Sequence[int], room: int) -> list[int]:
    """How much of each text `room` holds: a token at a time goes from the longest, from the last of equals."""
    kept, excess = list(lengths), sum(lengths) - room
    while excess > 0:
        longest = max(range(len(kept)), key=lambda i: (kept[i], i))
        others = [length for i, length in enumerate(kept) if i != longest]
        surplus = kept[longest] - max(others, default=0)
        dropped = min(excess, max(surplus, 1))
        kept[longest] -= dropped
        excess -= dropped
    return kept


def refuse_long(length: int, limit: int, on_long: OnLong) -> None:
    if on_long == "error":
        raise InputError(f"{length} tokens, over the limit of {limit}; see on_long (--on-long truncate or window)")


def limit_of(config: RobertaConfig, max_length: int | None) -> int:
    """How many tokens an input may have: max_length, or the model's max_positions.

    Raises:
      InputError: a max_length below SHORTEST_LIMIT, or more than the model has positions.
    """
    limit = config.max_positions if max_length is None else max_length
    if isinstance(limit, bool) or not isinstance(limit, int) or not SHORTEST_LIMIT <= limit <= config.max_positions:
        raise InputError(
            f"max_length must be from {SHORTEST_LIMIT} to the model's {config.max_positions}, got {limit!r}"
        )
    return limit
