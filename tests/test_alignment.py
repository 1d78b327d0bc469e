"""Which tokens stand for which words: cases worked by hand, and what holds for all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roberta_flax import InputError
from roberta_flax.text.alignment import check_spans, features_of_words, word_weights


def spans(*pairs: tuple[int, int]) -> np.ndarray:
    return np.array(pairs, np.int64).reshape(-1, 2)


@pytest.mark.parametrize(
    ("words", "tokens", "expected"),
    [
        # "hello world": hel lo Ġworld
        (spans((0, 5), (6, 11)), spans((0, 3), (3, 5), (5, 11)), [[1, 1, 0], [0, 0, 1]]),
        # 'said,"hi': a token ',"' over two words
        (spans((0, 4), (4, 5), (5, 6), (6, 8)), spans((0, 4), (4, 6), (6, 8)),
         [[1, 0, 0], [0, 0.5, 0], [0, 0.5, 0], [0, 0, 1]]),
        # one token over three words, the last of which has another
        (spans((0, 1), (1, 2), (2, 4)), spans((0, 3), (3, 4)), [[1 / 3, 0], [1 / 3, 0], [1 / 3, 1]]),
        # an emoji of four tokens, which reach over the same character
        (spans((0, 1),), spans((0, 1), (0, 1), (0, 1), (0, 1)), [[1, 1, 1, 1]]),
        # "a  b": the second space is a word, the first is a token; Ġb covers the word's space, too
        (spans((0, 1), (2, 3), (3, 4)), spans((0, 1), (1, 2), (2, 4)), [[1, 0, 0], [0, 1, 0.5], [0, 0, 0.5]]),
        # " a": what fairseq answers, both words share Ġa
        (spans((0, 1), (1, 2)), spans((0, 2)), [[0.5], [0.5]]),
        # "a ": a space at the end is the last word's
        (spans((0, 1)), spans((0, 1), (1, 2)), [[1, 1]]),
        # sentencepiece: an empty token before the first word; and a word that it dropped, which shares what follows
        (spans((0, 1), (1, 2), (2, 3)), spans((0, 0), (0, 1), (2, 3)), [[1, 1, 0], [0, 0, 0.5], [0, 0, 0.5]]),
        # the same at the end
        (spans((0, 1), (2, 3)), spans((0, 1)), [[0.5], [0.5]]),
        # no text, and none that has tokens
        (spans(), spans(), np.zeros((0, 0))),
        (spans((0, 3)), spans(), np.zeros((1, 0))),
    ],
)  # fmt: skip
def test_a_token_is_divided_evenly_among_the_words_that_it_reaches_over(words, tokens, expected):
    np.testing.assert_array_equal(word_weights(words, tokens), expected)


@given(st.data())
def test_words_features_add_up_to_the_tokens_whatever_the_borders(data):
    def pieces(gaps: bool) -> np.ndarray:
        lengths = data.draw(st.lists(st.tuples(st.integers(0, 2 if gaps else 0), st.integers(1, 4)), max_size=12))
        ends = np.cumsum([gap + length for gap, length in lengths], dtype=np.int64)
        return np.stack([ends - [length for _, length in lengths], ends], axis=1).astype(np.int64).reshape(-1, 2)

    words, tokens = pieces(gaps=True), pieces(gaps=False)
    weights = word_weights(words, tokens)
    assert weights.shape == (len(words), len(tokens))
    if weights.size:
        np.testing.assert_allclose(weights.sum(axis=0), 1, rtol=1e-15)
        assert (weights.sum(axis=1) > 0).all()
    for word, row in zip(words, weights, strict=True):
        covering = np.maximum(tokens[:, 0], word[0]) < np.minimum(tokens[:, 1], word[1])
        assert (row[covering] > 0).all()


def test_features_are_summed_in_float32_and_keep_their_dtype_and_their_ends():
    import ml_dtypes

    features = np.array([[7.0], [256.0], [1.0], [1.0], [9.0]], ml_dtypes.bfloat16)  # 256 + 1 is 256 in bfloat16
    found = features_of_words(features, np.array([[1.0, 1.0, 1.0]]))
    assert (found.dtype, found.tolist()) == (ml_dtypes.bfloat16, [[7.0], [258.0], [9.0]])
    layers = features_of_words(np.stack([features, 2 * features]).astype(np.float64), np.array([[0.5, 1.0, 0.0]]))
    assert (layers.dtype, layers.tolist()) == (np.float64, [[[7.0], [129.0], [9.0]], [[14.0], [258.0], [18.0]]])


@pytest.mark.parametrize(
    ("word_spans", "message"),
    [
        ([(0, 2), (1, 3)], "overlap or be out of order"),
        ([(3, 4), (0, 2)], "overlap or be out of order"),
        ([(1, 1)], "must not be empty"),
        ([(2, 1)], "must not be empty"),
        ([(0, 6)], "must lie within the 5 characters of the text"),
        ([(-1, 2)], "must lie within"),
        ([(0.0, 1.0)], "got float64 of shape"),
        ([0, 1], r"got int64 of shape \(2,\)"),
        ([(0, 1), (2,)], "got object"),
        ("ab", "word spans must be integers"),
    ],
)
def test_invalid_word_spans_are_refused_in_one_line(word_spans, message):
    with pytest.raises(InputError, match=message) as error:
        check_spans(word_spans, "hello")
    assert "\n" not in str(error.value)


def test_word_spans_may_be_lists_arrays_or_empty():
    assert check_spans([(0, 2), (2, 5)], "hello").tolist() == [[0, 2], [2, 5]]
    assert check_spans(np.array([[1, 5]], np.uint8), "hello").dtype == np.int64
    assert check_spans([], "hello").shape == (0, 2)
