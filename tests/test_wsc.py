"""Pronouns: what is read of a sentence, which phrases are candidates, what they score, and what cannot be done."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest

import roberta_flax
from roberta_flax import InputError
from roberta_flax.inference.compilations import Compilations
from roberta_flax.nn import forward
from roberta_flax.tasks import pronouns
from roberta_flax.tasks.pronouns import Schema
from tests import winograd

SENTENCE = winograd.SENTENCES[0]
CANDIDATES = ["the brown suitcase", "the sheriff", "a worm", "The race", "The trophy", "every young lawyer"]


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("The _cat_ sat as [it] was big.", Schema("The cat sat as", " ", "it", " ", "was big.", "cat")),
        ("The cat sat as [it] was big.", Schema("The cat sat as", " ", "it", " ", "was big.")),
        ("As [it] was big, the _old cat,_ sat.", Schema("As", " ", "it", " ", "was big, the old cat, sat.", "old cat")),
        # as fairseq reads them: what stands at the pronoun is left out, words are put together, one space between them
        ("Tom saw [him].", Schema("Tom saw", " ", "him", "", "")),
        ("Tom saw [him.]", Schema("Tom saw", " ", "him", "", "")),
        ('"Tom saw [him]," she said', Schema('"Tom saw', " ", "him", " ", "she said")),
        ("Tom saw [him] , Jane 's dog ( a pug ) .", Schema("Tom saw", " ", "him", "", ", Jane's dog (a pug).")),
        ("Tom  saw\n me [him]  today ", Schema("Tom saw me", " ", "him", " ", "today")),
        ("Tom saw [him] ", Schema("Tom saw", " ", "him", " ", "")),
        ("AT&amp;T said [it] won", Schema("AT&T said", " ", "it", " ", "won")),
        # at which fairseq stops
        ("[It] was big.", Schema("", "", "It", " ", "was big.")),
        ("[It]", Schema("", "", "It", "", "")),
        ('"[It]\'s big", said Tom', Schema('"', "", "It", "", "'s big\", said Tom")),
        ("Tom saw [him]! So", Schema("Tom saw", " ", "him", "", "! So")),
        ("Tom saw\n[him]\nthere", Schema("Tom saw", " ", "him", " ", "there")),
        ("so [the man] won", Schema("so", " ", "the man", " ", "won")),
    ],
)  # fmt: skip
def test_a_sentence_is_read_as_text_around_its_pronoun(sentence, expected):
    assert pronouns.read_schema(sentence) == expected
    assert expected.text() == expected.text(expected.pronoun)


@pytest.mark.parametrize(
    ("sentence", "message"),
    [
        ("It was big.", "mark one pronoun with"),
        ("", "mark one pronoun with"),
        ("[He] saw [him].", "mark one pronoun with"),
        ("He] saw [him.", "mark one pronoun with"),
        ("He saw [him.", "mark one pronoun with"),
        ("[He saw] him]", "mark one pronoun with"),
        ("The _cat sat as [it] was", "mark at most one query"),
        ("The _cat_ and _dog_ sat as [it] was", "mark at most one query"),
        ("The _cat sat as [it] was_", "the query and the pronoun must not overlap"),
        ("The cat sat as [_it_] was", "the query and the pronoun must not overlap"),
        ("The cat sat as _[it]_ was", "the query and the pronoun must not overlap"),
        ("The cat sat as [ ] was", "the pronoun is empty"),
        ("The cat sat as [.] was", "the pronoun is empty"),
        ("The __ sat as [it] was", "the query is empty"),
        ("The\n_,_ sat as [it] was", "the query is empty"),
        (None, "as str, got NoneType"),
        (["[it]"], "as str, got list"),
    ],
)
def test_a_sentence_that_cannot_be_read_is_refused_in_one_line(sentence, message):
    with pytest.raises(InputError, match=message) as error:
        pronouns.read_schema(sentence)
    assert "\n" not in str(error.value)


def test_candidates_are_noun_chunks_and_runs_of_one_kind_of_noun_without_pronouns_and_the_query():
    doc = winograd.pipeline()("The New York school bus zoomed past the red truck when it saw Paul.")
    phrases = ["The New York school bus", "New York", "school bus", "the red truck", "truck", "Paul"]
    assert pronouns.noun_phrases(doc) == phrases
    assert pronouns.noun_phrases(doc, "School bus") == ["New York", "the red truck", "truck", "Paul"]
    assert pronouns.noun_phrases(doc, "that truck, and Paul") == [p for p in phrases[:4] if p != "truck"]


@pytest.mark.slow
def test_a_score_is_the_mean_log_probability_of_the_masked_tokens_alone_in_the_sentence(tiny):
    """Beside lm_logits of each sentence by itself, unpadded, at every position."""
    schema = pronouns.read_schema(SENTENCE)
    phrases = [
        f"{a} {b}".strip()
        for a in ("the", "a big old", "")
        for b in ["worm", "lawyer", "x", "city", "fish", "pie", "lamp", "bus", "oven", "table", "sheriff", "delivery"]
    ]
    sequences = [pronouns.encode_with_phrase(schema, phrase, tiny.tokenizer) for phrase in phrases]
    assert len({len(positions) for _, positions in sequences}) > 4
    assert len(phrases) > pronouns._PHRASES_PER_BATCH
    for (ids, positions), score in zip(sequences, pronouns.score_masked(tiny.train(seed=1), sequences), strict=True):
        assert ids[-1] == tiny.tokenizer.eos_id
        assert tiny.decode(ids) == schema.text(tiny.decode(ids[positions]).strip())
        seen = ids.copy()
        seen[positions] = tiny.tokenizer.mask_id
        logits = np.asarray(forward.lm_logits(tiny.params, seen[None], config=tiny.config), np.float64)[0, positions]
        log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        assert score == pytest.approx(log_probs[range(len(positions)), ids[positions]].mean(), abs=1e-5)


def test_sentences_of_many_lengths_and_numbers_of_candidates_compile_few_programs(tiny):
    compilations = Compilations()
    with compilations.counted():
        for count in range(2, 9):
            for sentence in winograd.SENTENCES[:6]:
                tiny.disambiguate_pronoun(sentence, candidates=CANDIDATES * 2 + [f"the {i}" for i in range(count)])
    assert compilations.programs <= 8  # two numbers of rows, lengths of 32, 48, 64, of masks 4 and 8


def test_a_query_is_right_where_no_candidate_scores_more_and_ties_with_itself(tiny):
    found = pronouns.disambiguate(tiny, SENTENCE, CANDIDATES)
    assert list(found.scores) == ["trophy", *CANDIDATES]
    better = [phrase for phrase in CANDIDATES if found.scores[phrase] > found.scores["trophy"]]
    worse = [phrase for phrase in CANDIDATES if found.scores[phrase] < found.scores["trophy"]]
    assert better
    assert worse
    assert tiny.disambiguate_pronoun(SENTENCE, candidates=worse) is True
    assert tiny.disambiguate_pronoun(SENTENCE, candidates=[*worse, better[0]]) is False
    assert tiny.disambiguate_pronoun(SENTENCE, candidates=["trophy", *worse]) is True


def test_candidates_are_found_by_a_pipeline_or_given_and_the_answer_is_one_of_them(tiny):
    sentence = SENTENCE.replace("_", "")
    found = pronouns.disambiguate(tiny, sentence, nlp=winograd.pipeline())
    assert list(found.scores) == ["The trophy", "trophy", "the brown suitcase", "suitcase"]
    assert found.answer == max(found.scores, key=found.scores.__getitem__)
    assert found.query is None
    assert tiny.train(seed=0).disambiguate_pronoun(sentence, candidates=list(found.scores)) == found.answer


def test_what_cannot_be_disambiguated_is_refused_in_one_line(tiny, monkeypatch):
    from spacy.lang.en import English

    nlp = winograd.pipeline()
    headless = roberta_flax.Roberta(dataclasses.replace(tiny.config, lm_head=False), tiny.params, tiny.tokenizer)
    for roberta, sentence, options, message in (
        (tiny, SENTENCE, {}, "python -m spacy download en_core_web_lg; or give the candidates"),
        (tiny, SENTENCE, {"nlp": "no_such_pipeline"}, "cannot load the spaCy pipeline 'no_such_pipeline'"),
        (tiny, SENTENCE, {"nlp": English()}, "finds no noun phrases"),
        (tiny, SENTENCE, {"nlp": str.split}, "finds no noun phrases"),
        (tiny, "The _sheriff_ won when [he] won", {"nlp": nlp}, "no noun phrase but 'sheriff' in 'The sheriff won"),
        (tiny, "She won when [he] won", {"nlp": nlp}, "no noun phrase in 'She won when he won'"),
        (tiny, SENTENCE, {"candidates": []}, "a non-empty list of str"),
        (tiny, SENTENCE, {"candidates": "the suitcase"}, "a non-empty list of str"),
        (tiny, SENTENCE, {"candidates": ["a", " "]}, "a non-empty list of str"),
        (tiny, SENTENCE, {"candidates": [1]}, "a non-empty list of str"),
        (tiny, SENTENCE + " and so on" * 300, {"candidates": ["a"]}, "exceed the model's maximum length of 512"),
        (headless, SENTENCE, {"candidates": ["a"]}, "no masked-LM head"),
    ):
        with pytest.raises(InputError, match=message) as error:
            roberta.disambiguate_pronoun(sentence, **options)
        assert "\n" not in str(error.value)
    for module in ("sacremoses", "spacy"):
        pronouns._detokenizer.cache_clear()
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            with pytest.raises(InputError, match=rf"needs {module} .*pip install 'roberta-flax\[wsc\]'"):
                tiny.disambiguate_pronoun(SENTENCE)
            if module == "spacy":
                assert tiny.disambiguate_pronoun(SENTENCE, candidates=CANDIDATES) in (True, False)
