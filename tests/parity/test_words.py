"""Features of words against fairseq's own extract_features_aligned_to_words."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

import roberta_flax
from roberta_flax.convert import convert
from tests.references import SMALL, build, write

FLOAT32 = 5e-5  # of a token's features, see test_network.py; a word's are sums of no more than its tokens'

WORDS = [
    'I said, "hello RoBERTa."', "Hello world!", "It's John's; they're, we'll, isn't, can't've, O'Brien's.",
    "Dr. Smith (born 1970) paid $1,234.56 -- or 50% of it... really?!", "naïve café, Zoë's Größe", "state-of-the-art",
    "see https://example.org/a?b=c&d=1#e or mail a.b@example.org", "1,000.5e-3 m² 3/4 12:30pm 20°C 10km",
    '"\'nested\' (quotes) [and] {brackets}", he said.', "antidisestablishmentarianism", "a", ".", "...", "?!?!", ":-) <3",
    " leading space", "the U.S.A.'s A$AP", "dashes – — and…", "x" * 60, "(о)", "a\u200bb",
    "C++/C# & R&D @ AT&T", "<s> </s> <mask> <pad>", "1" * 50, "!" * 40, "'s", "n't", "gonna wanna", "don't_snake_case",
    "\ufffd",
]  # fmt: skip
# At these fairseq's stops: a character of several tokens, a token of nothing but space, an empty text.
NO_ANSWER = [
    "", " ", "a ", "a  b", "a\nb", "a\n", "\ta", "  two", "tab\tbed", "an 😀 emoji", "👩‍👩‍👧 family", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "\u3000x",
    "日本語のテキスト、漢字", "नमस्ते", "a \n b", "line one\r\nline two", "a\xa0b", "e\u0301", "“curly” ‘quotes’",
    "и по-русски",
]  # fmt: skip


@pytest.fixture(scope="module")
def hubs(fairseq_loads, gpt2_bpe, tmp_path_factory):
    """(fairseq's, ours): one small random model with GPT-2's vocabulary."""
    from fairseq.models.roberta import alignment_utils
    from spacy.lang.en import English

    folder = tmp_path_factory.mktemp("words")
    source = write(build(**{**SMALL, "vocab": 50265}), folder / "source", gpt2_bpe)
    shutil.copy(gpt2_bpe / "dict.txt", source / "dict.txt")
    with pytest.MonkeyPatch.context() as patch:
        # spaCy 3 has no Defaults.create_tokenizer any more; what it made is this
        patch.setattr(alignment_utils.spacy_tokenizer, "_tokenizer", English().tokenizer, raising=False)
        yield fairseq_loads(source), roberta_flax.load(convert(source, folder / "converted"))


@pytest.mark.slow
def test_words_and_vectors_are_fairseqs_wherever_it_has_them(hubs, sick_pairs):
    theirs, ours = hubs
    for text in [*WORDS, *(text for pair in sick_pairs[:60] for text in pair)]:
        expected = theirs.extract_features_aligned_to_words(text)
        doc, array = ours.extract_features_aligned_to_words(text), ours.word_features(text)
        assert [str(word) for word in doc] == [str(word) for word in expected] == list(array.words)
        assert [word.whitespace_ for word in doc if str(word).strip()] == [
            word.whitespace_ for word in expected if str(word).strip()
        ]
        for word, other, features in zip(doc, expected, array.features, strict=True):
            tokens = len(ours.tokenizer.encode_text(str(word))) + 1
            assert np.abs(word.vector - other.vector.detach().numpy()).max() <= FLOAT32 * tokens, (text, word)
            assert (word.vector == np.asarray(features)).all()


@pytest.mark.parametrize("text", NO_ANSWER)
def test_where_fairseq_stops_words_are_spacys_and_features_add_up_to_the_tokens(hubs, text):
    theirs, ours = hubs
    with pytest.raises((AssertionError, TypeError, StopIteration)):
        theirs.extract_features_aligned_to_words(text)
    doc = ours.extract_features_aligned_to_words(text)
    assert doc.text == f"<s> {text.removesuffix(' ') if text != ' ' else text}{' ' if text else ''}</s>"
    total = np.asarray(ours.extract_features(ours.encode(text)), np.float64)[0].sum(axis=0)
    assert np.abs(sum(word.vector.astype(np.float64) for word in doc) - total).max() <= 1e-5


def test_all_hidden_states_of_words_of_which_fairseq_has_none(hubs):
    theirs, ours = hubs
    text = "It's unbelievable, RoBERTa."
    with pytest.raises(AttributeError, match="'list' object has no attribute 'squeeze'"):
        theirs.extract_features_aligned_to_words(text, return_all_hiddens=True)
    doc = ours.extract_features_aligned_to_words(text, return_all_hiddens=True)
    last = ours.extract_features_aligned_to_words(text)
    for word, final in zip(doc, last, strict=True):
        assert word.vector.shape == (ours.config.num_layers + 1, ours.config.hidden_size)
        assert np.abs(word.vector[-1] - final.vector).max() <= 1e-6
    ids = ours.encode(text)
    embedded = np.asarray(ours.extract_features(ids, return_all_hiddens=True)[0])[0]
    pieces = [ours.tokenizer.token_text(i) for i in ids.tolist()]
    assert pieces[1:4] == ["It", "'s", " unbelievable"]  # one token each
    for place in range(4):
        assert np.abs(doc[place].vector[0] - embedded[place]).max() <= 1e-6


def test_a_sentencepiece_models_words_are_fairseqs_wherever_it_has_them(
    hubs, sentencepiece_model, sick_pairs, tmp_path
):
    from fairseq.models.roberta import alignment_utils

    from roberta_flax.text.alignment import word_weights
    from roberta_flax.text.fairseq_tokenizer import SENTENCEPIECE_FILE, Dictionary, FairseqTokenizer, SentencePiece
    from roberta_flax.text.tokenizer import Tokenizer
    from roberta_flax.text.words import spans

    bpe = SentencePiece(sentencepiece_model)
    tokenizer = Tokenizer(FairseqTokenizer(Dictionary(bpe.pieces[3:]), bpe))
    assert SENTENCEPIECE_FILE in tokenizer.files()

    class Theirs:  # what align_bpe_to_words asks of a hub
        class task:
            class source_dictionary:
                @staticmethod
                def string(ids):
                    return "" if int(ids[0]) in (0, 2) else tokenizer.backend.dictionary.symbols[int(ids[0])]

        class bpe:
            @staticmethod
            def decode(symbol):
                return symbol.replace(" ", "").replace("\u2581", " ").strip()

    import torch

    compared = 0
    for text in [*WORDS, *NO_ANSWER, *(text for pair in sick_pairs[:400] for text in pair)]:
        ids, places = tokenizer.encode(text), spans(text)
        words = [text[begin:end] for begin, end in places.tolist()]
        ours = word_weights(places, tokenizer.spans(text))
        try:
            alignment = alignment_utils.align_bpe_to_words(Theirs, torch.from_numpy(ids).long(), words)
            expected = alignment_utils.align_features_to_words(None, torch.eye(len(ids)), alignment)
        except (AssertionError, TypeError, StopIteration):
            continue
        np.testing.assert_allclose(ours, expected.numpy()[1:-1, 1:-1], rtol=1e-6, err_msg=repr(text))
        compared += 1
    assert compared >= 100
