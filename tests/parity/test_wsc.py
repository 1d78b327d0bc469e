"""Pronouns against fairseq's own WSC task: what it reads, what it masks, what it scores, what it answers."""

from __future__ import annotations

import argparse
import shutil
import sys
import types

import numpy as np
import pytest

import roberta_flax
from roberta_flax.convert import convert
from roberta_flax.tasks import pronouns
from tests import winograd
from tests.conftest import skip_or_fail
from tests.references import SMALL, build, torch, write

# A log-probability is a logit less the log of a sum of exponentials, which is no more sensitive than its largest term:
# twice what logits may differ by (FLOAT32 of test_network.py). A mean is no worse.
LOG_PROBABILITY = 1e-4


@pytest.fixture(scope="module")
def both(gpt2_bpe, tmp_path_factory):
    """(fairseq's task, its model, ours, the pipeline that both parse with): a small random model, GPT-2's vocabulary."""
    try:
        from fairseq.examples.roberta.wsc import wsc_task
    except ImportError as error:
        skip_or_fail(f"fairseq's WSC task cannot be imported ({error})")
    folder = tmp_path_factory.mktemp("wsc")
    model = build(**{**SMALL, "vocab": 50265})
    source = write(model, folder / "source", gpt2_bpe)
    shutil.copy(gpt2_bpe / "dict.txt", source / "dict.txt")
    args = argparse.Namespace(
        criterion="wsc", data=str(source), init_token=None, seed=1, tokenizer=None, bpe="gpt2",
        gpt2_encoder_json=str(gpt2_bpe / "encoder.json"), gpt2_vocab_bpe=str(gpt2_bpe / "vocab.bpe"),
    )  # fmt: skip
    nlp = winograd.pipeline()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "en_core_web_lg", types.SimpleNamespace(load=lambda: nlp))
        wsc_task.wsc_utils.get_spacy_nlp.cache_clear()
        task = wsc_task.WSCTask.setup_task(args)
        yield task, model, roberta_flax.load(convert(source, folder / "converted")), nlp
        wsc_task.wsc_utils.get_spacy_nlp.cache_clear()


def their_sequences(task, sentence):
    """[(token ids, positions)] of the query, where there is one, and of the candidates, as fairseq makes them."""
    from fairseq.examples.roberta.wsc import wsc_utils

    dataset = task.build_dataset_for_inference(wsc_utils.convert_sentence_to_json(sentence))
    sample = dataset.collater([dataset[0]])
    rows = list(zip(sample["candidate_tokens"][0], sample["candidate_masks"][0], strict=True))
    if sample["query_tokens"][0] is not None:
        rows.insert(0, (sample["query_tokens"][0], sample["query_masks"][0]))
    return [(tokens[tokens != 1].tolist(), mask.nonzero()[:, 0].tolist()) for tokens, mask in rows]


def their_scores(task, model, sequences):
    """WSCCriterion.get_lprobs, each sequence alone."""
    from fairseq.examples.roberta.wsc.wsc_criterion import WSCCriterion

    criterion = types.SimpleNamespace(
        task=task, get_masked_input=lambda *given: WSCCriterion.get_masked_input(criterion, *given)
    )
    found = []
    for tokens, positions in sequences:
        mask = torch.zeros(1, len(tokens), dtype=torch.bool)
        mask[0, positions] = True
        with torch.no_grad():
            found.append(WSCCriterion.get_lprobs(criterion, model, torch.tensor([tokens]), mask).item())
    return found


def with_and_without_query():
    for sentence in winograd.SENTENCES:
        yield sentence
        if "_" in sentence:
            yield sentence.replace("_", "")


@pytest.mark.slow
@pytest.mark.parametrize("sentence", with_and_without_query())
def test_candidates_masks_scores_and_answers_are_fairseqs(both, sentence):
    task, model, ours, nlp = both
    expected = their_sequences(task, sentence)
    schema = pronouns.read_schema(sentence)
    phrases = pronouns.noun_phrases(nlp(schema.text()), schema.query)
    assert len(phrases) >= 2
    found = [
        pronouns.encode_with_phrase(schema, phrase, ours.tokenizer)
        for phrase in [*([] if schema.query is None else [schema.query]), *phrases]
    ]
    assert [(ids.tolist(), positions.tolist()) for ids, positions in found] == expected
    scores = their_scores(task, model, expected)
    np.testing.assert_allclose(pronouns.score_masked(ours, found), scores, atol=LOG_PROBABILITY, rtol=0)
    top = sorted(scores)[-2:]
    assert top[1] - top[0] > 2 * LOG_PROBABILITY, "too near for the two to agree by more than luck"
    with torch.no_grad():
        answer = task.disambiguate_pronoun(model, sentence)
    assert ours.disambiguate_pronoun(sentence, nlp=nlp) == answer
    assert ours.disambiguate_pronoun(sentence, candidates=phrases) == answer
    assert type(answer) is (bool if schema.query else str)


def test_some_queries_are_right_and_some_are_wrong(both):
    _, _, ours, nlp = both
    asked = [sentence for sentence in winograd.SENTENCES if "_" in sentence]
    assert {ours.disambiguate_pronoun(sentence, nlp=nlp) for sentence in asked} == {True, False}


@pytest.mark.parametrize(
    "sentence",
    [
        "[It] was heavy, the old truck.",
        "Paul told the lawyer that [the race] was won.",
        "The car hit\n[it] and the fish.",
    ],
)
def test_pronouns_at_which_fairseq_stops_are_read_where_they_are(both, sentence):
    task, _, ours, nlp = both
    with pytest.raises(Exception, match="Misaligned pronoun|list index out of range"):
        their_sequences(task, sentence)
    phrase = "the worm"
    schema = pronouns.read_schema(sentence)
    filled = " ".join(sentence.replace(sentence[sentence.index("[") : sentence.index("]") + 1], phrase).split())
    assert schema.text(phrase) == filled
    ids, positions = pronouns.encode_with_phrase(schema, phrase, ours.tokenizer)
    assert ours.decode(ids[positions]).strip() == phrase
    assert ours.disambiguate_pronoun(sentence, nlp=nlp) in pronouns.noun_phrases(nlp(schema.text()))


@pytest.mark.network
def test_the_released_model_answers_what_fairseqs_readme_says():
    roberta = roberta_flax.load("roberta.large.wsc")
    # fairseq/examples/roberta/README.md, with the noun phrases that its spaCy pipeline finds
    sentence = "The _trophy_ would not fit in the brown suitcase because [it] was too big."
    candidates = ["the brown suitcase", "suitcase"]
    assert roberta.disambiguate_pronoun(sentence, candidates=candidates) is True
    sentence = "The trophy would not fit in the brown _suitcase_ because [it] was too big."
    assert roberta.disambiguate_pronoun(sentence, candidates=["The trophy", "trophy"]) is False
    sentence = "The city councilmen refused the demonstrators a permit because [they] feared violence."
    candidates = ["The city councilmen", "city councilmen", "the demonstrators", "demonstrators", "a permit", "permit"]
    candidates.append("violence")
    assert roberta.disambiguate_pronoun(sentence, candidates=candidates) == "The city councilmen"
    sentence = sentence.replace("feared", "advocated")
    assert roberta.disambiguate_pronoun(sentence, candidates=candidates) == "demonstrators"
