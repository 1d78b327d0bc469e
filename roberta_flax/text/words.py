"""Words as spaCy's English tokenizer splits them, and features of words as a spaCy Doc. Needs the extra `words`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from roberta_flax.extras import require

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@lru_cache(maxsize=1)
def english() -> Any:
    """spaCy's blank English pipeline, which tokenizes without a model (alignment_utils.spacy_nlp in fairseq)."""
    return require("spacy.lang.en", "words").English()


def spans(text: str) -> Int[np.ndarray, "words 2"]:
    """Splits a text into words and returns the begin (inclusive) and end (exclusive) of each, in characters.

    The single space after a word does not belong to it; any further whitespace is a word of its own.
    """
    borders = [(word.idx, word.idx + len(word)) for word in english().tokenizer(text)]
    return np.array(borders, np.int64).reshape(-1, 2)


def make_doc(words: Sequence[str], spaces: Sequence[bool], vectors: Float[np.ndarray, "*layers words hidden"]) -> Any:
    """Makes a spaCy Doc whose tokens have these vectors.

    Args:
      words: the text of each word.
      spaces: whether a space follows each word.
      vectors: for each word, the value of its `.vector`; float32 in the Doc, or float64 if these are.
    """
    wide = vectors.astype(np.promote_types(np.float32, vectors.dtype))
    made = require("spacy.tokens", "words").Doc(english().vocab, words=list(words), spaces=list(spaces))
    made.user_token_hooks["vector"] = lambda token: wide[..., token.i, :]
    return made
