"""What spaCy does for features of words: it finds the words, and its Doc holds the result. An optional extra."""

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
    """spaCy's blank English pipeline, whose tokenizer needs no model (alignment_utils.spacy_nlp)."""
    return require("spacy.lang.en", "words").English()


def spans(text: str) -> Int[np.ndarray, "words 2"]:
    """Of each of a text's words by spaCy's English tokenizer the first character, and the one after the last.

    The space after a word is not one of its characters; further whitespace is a word of its own.
    """
    found = [(word.idx, word.idx + len(word)) for word in english().tokenizer(text)]
    return np.array(found, np.int64).reshape(-1, 2)


def doc(words: Sequence[str], spaces: Sequence[bool], vectors: Float[np.ndarray, "*layers words hidden"]) -> Any:
    """A spaCy Doc of these words, each with a space after it or none, whose tokens' `.vector` is theirs, float32."""
    wide = vectors.astype(np.promote_types(np.float32, vectors.dtype))
    made = require("spacy.tokens", "words").Doc(english().vocab, words=list(words), spaces=list(spaces))
    made.user_token_hooks["vector"] = lambda token: wide[..., token.i, :]
    return made
