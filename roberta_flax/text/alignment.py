"""Features of tokens as features of words: which tokens stand for a word, and how much of each is the word's.

The rule is fairseq's (fairseq/models/roberta/alignment_utils.py): a token that reaches over several words is divided
evenly among them, and a word's features are the sum of its shares, so that the words' features add up to the tokens'.
fairseq compares strings, and stops where they differ or where a token belongs to no word. Here characters are
compared, and every text has an answer; where fairseq has one too, it is the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from roberta_flax.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def check_spans(spans: npt.ArrayLike, text: str) -> Int[np.ndarray, "words 2"]:
    """Words' places in a text as int64, checked.

    Args:
      spans: for each word its first character and the one after its last, [words, 2].
      text: that they are in.

    Raises:
      InputError: another shape, not integers, an empty word, words outside the text, that overlap or are out of order.
    """
    try:
        found = np.asarray(spans)
    except ValueError:
        found = np.asarray(None)
    if found.size == 0:
        return np.zeros((0, 2), np.int64)
    if found.ndim != 2 or found.shape[1] != 2 or not np.issubdtype(found.dtype, np.integer):
        raise InputError(
            f"words' places are integers [words, 2], first character and the one after the last; got {found.dtype} "
            f"of shape {found.shape}"
        )
    borders = found.ravel().astype(np.int64)
    if borders[0] < 0 or borders[-1] > len(text) or (np.diff(borders) < np.arange(1, len(borders)) % 2).any():
        raise InputError(
            f"words' places must be non-empty, in order and apart, within the text's {len(text)} characters; got "
            f"{str(found.tolist())[:80]}"
        )
    return borders.reshape(-1, 2)


def word_weights(
    words: Int[np.ndarray, "words 2"], tokens: Int[np.ndarray, "tokens 2"]
) -> Float[np.ndarray, "words tokens"]:
    """Which share of each token's features each word has. Columns add up to 1.

    A token belongs to each word of which it covers a character. One that covers none (a space, between words or at
    the end) belongs to the word that follows, and to the last where none does. A word that no token covers (characters
    that sentencepiece drops) shares the token that follows, and the last where none does.

    Args:
      words: in order and apart: each word's first character, and the one after its last.
      tokens: the same of each token, in order; they may overlap, where a character is several tokens, and be empty.

    Returns:
      float64; of no tokens, or no words, an empty matrix.
    """
    member = (tokens[None, :, 0] < words[:, None, 1]) & (words[:, None, 0] < tokens[None, :, 1])
    if member.size:
        orphans = np.flatnonzero(~member.any(axis=0))
        following = np.searchsorted(words[:, 1], tokens[orphans, 0], side="right")
        member[np.minimum(following, len(words) - 1), orphans] = True
        bare = np.flatnonzero(~member.any(axis=1))
        following = np.searchsorted(tokens[:, 1], words[bare, 0], side="right")
        member[bare, np.minimum(following, len(tokens) - 1)] = True
    weights: npt.NDArray[np.float64] = member / np.maximum(member.sum(axis=0), 1)
    return weights


def features_of_words(
    features: npt.NDArray[Any], weights: Float[np.ndarray, "words tokens"]
) -> Float[np.ndarray, "*layers words_and_2 hidden"]:
    """Words' features, `<s>` and `</s>` at the ends as they are, in the dtype of the tokens'.

    Sums are made in float32 at least, on the host: an accelerator would round the factors of a product first.

    Args:
      features: of `<s>`, the tokens and `</s>`, [tokens + 2, hidden]; or [layers, tokens + 2, hidden].
      weights: as word_weights gives them.
    """
    wide = features.astype(np.promote_types(np.float32, features.dtype))
    shares: npt.NDArray[Any] = weights.astype(wide.dtype) @ wide[..., 1:-1, :]
    return np.concatenate([wide[..., :1, :], shares, wide[..., -1:, :]], axis=-2).astype(features.dtype)
