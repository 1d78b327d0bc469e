"""The words of a sentence, and whether it is negated."""

from __future__ import annotations

import re

NEGATIONS = {"no", "not", "nobody", "none", "without", "nothing", "n", "isn", "aren"}


def words(text: str) -> list[str]:
    """Returns the words of a text in lower case."""
    return re.findall(r"[a-z]+", text.lower())


def is_negated(text: str) -> bool:
    """Whether a text contains a negation."""
    return bool(set(words(text)) & NEGATIONS)
