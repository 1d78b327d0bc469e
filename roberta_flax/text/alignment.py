"""Alignment of tokens with words, and the features of words computed from those of their tokens.

The rule is fairseq's (fairseq/models/roberta/alignment_utils.py): a token that covers several words is divided evenly
among them, and the features of a word are the sum of its shares, so that the features of all words add up to those of
all tokens. fairseq compares strings, and fails if they differ or if a token belongs to no word. This module compares
character positions, which works for every text; where fairseq gives an answer, it is the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from roberta_flax.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def check_spans(spans: npt.ArrayLike, text: str) -> Int[np.ndarray, "words 2"]:
    """Checks the character spans of the words of a text, and returns them as int64.

    Args:
      spans: [words, 2], the begin (inclusive) and the end (exclusive) of each word.
      text: the text that the spans refer to.

    Raises:
      InputError: the spans have another shape, are not integers, are empty, lie outside the text, overlap or are out
        of order.
    """
    try:
        array = np.asarray(spans)
    except ValueError:  # rows of different lengths
        array = np.asarray(None)
    if array.size == 0:
        return np.zeros((0, 2), np.int64)
    if array.ndim != 2 or array.shape[1] != 2 or not np.issubdtype(array.dtype, np.integer):
        raise InputError(
            f"word spans must be integers of shape [words, 2], the begin and end of each word in characters; got "
            f"{array.dtype} of shape {array.shape}"
        )
    borders = array.ravel().astype(np.int64)
    if borders[0] < 0 or borders[-1] > len(text) or (np.diff(borders) < np.arange(1, len(borders)) % 2).any():
        raise InputError(
            f"word spans must not be empty, overlap or be out of order, and must lie within the {len(text)} characters "
            f"of the text; got {str(array.tolist())[:80]}"
        )
    return borders.reshape(-1, 2)


def word_weights(
    words: Int[np.ndarray, "words 2"], tokens: Int[np.ndarray, "tokens 2"]
) -> Float[np.ndarray, "words tokens"]:
    """Returns the share of each token's features that goes to each word. Each column adds up to 1.

    A token belongs to every word that it shares a character with. A token that shares none (a space between words or
    at the end) belongs to the next word, or to the last word if there is no next one. A word without tokens
    (characters that sentencepiece drops) gets a share of the next token, or of the last token if there is no next one.

    Args:
      words: [words, 2], the begin (inclusive) and the end (exclusive) of each word in characters, in order and without
        overlap.
      tokens: [tokens, 2], the same for each token, in order. Token spans may be empty, and they overlap where several
        tokens encode one character.

    Returns:
      float64 [words, tokens]; an empty matrix if there are no words or no tokens.
    """
    belongs = (tokens[None, :, 0] < words[:, None, 1]) & (words[:, None, 0] < tokens[None, :, 1])
    if belongs.size:
        without_word = np.flatnonzero(~belongs.any(axis=0))
        next_word = np.searchsorted(words[:, 1], tokens[without_word, 0], side="right")
        belongs[np.minimum(next_word, len(words) - 1), without_word] = True
        without_token = np.flatnonzero(~belongs.any(axis=1))
        next_token = np.searchsorted(tokens[:, 1], words[without_token, 0], side="right")
        belongs[without_token, np.minimum(next_token, len(tokens) - 1)] = True
    weights: npt.NDArray[np.float64] = belongs / np.maximum(belongs.sum(axis=0), 1)
    return weights


def features_of_words(
    features: npt.NDArray[Any], weights: Float[np.ndarray, "words tokens"], before: int = 1
) -> Float[np.ndarray, "*layers words_and_specials hidden"]:
    """Sums the features of tokens over each word; special tokens such as `<s>` and `</s>` keep theirs.

    The sums are computed in float32 or wider, and on the host, because an accelerator would round the operands first.

    Args:
      features: features of the text's tokens, and of the special tokens before and after them: [specials + tokens,
        hidden], or [layers, specials + tokens, hidden].
      weights: the result of `word_weights`.
      before: the number of special tokens before the text.

    Returns:
      Features of the special tokens before the text, the words, and the special tokens after it, in the dtype of
      `features`.
    """
    wide = features.astype(np.promote_types(np.float32, features.dtype))
    after = before + weights.shape[1]
    sums: npt.NDArray[Any] = weights.astype(wide.dtype) @ wide[..., before:after, :]
    return np.concatenate([wide[..., :before, :], sums, wide[..., after:, :]], axis=-2).astype(features.dtype)
