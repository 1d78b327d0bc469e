"""How many tokens each of several texts keeps if together they are too long."""

from __future__ import annotations

from collections.abc import Sequence


def longest_first(lengths: Sequence[int], room: int) -> list[int]:
    """The lengths to truncate texts to so that together they have at most `room` tokens.

    Tokens are removed one at a time from the text that is then the longest, or from the last of several such texts.
    This is the truncation strategy "longest_first" of transformers' slow tokenizers.
    """
    kept, excess = list(lengths), sum(lengths) - room
    while excess > 0:
        longest = max(range(len(kept)), key=lambda i: (kept[i], i))
        others = [length for i, length in enumerate(kept) if i != longest]
        surplus = kept[longest] - max(others, default=0)
        removed = min(excess, max(surplus, 1))
        kept[longest] -= removed
        excess -= removed
    return kept


def longest_first_of_two(lengths: Sequence[int], room: int) -> list[int]:
    """Like `longest_first` for one text or two, but the longer text keeps the odd token.

    This is the strategy of the tokenizers package (truncate_encodings in tokenizers/src/utils/truncation.rs), and so of
    transformers' fast tokenizers.
    """
    if len(lengths) == 1 or sum(lengths) <= room:
        return [min(length, room) for length in lengths]
    shorter, longer = sorted(lengths)
    if shorter > room // 2:
        shorter, longer = room // 2, room - room // 2
    else:
        longer = room - shorter
    return [longer, shorter] if lengths[0] > lengths[1] else [shorter, longer]
