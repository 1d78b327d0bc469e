"""pipeline() beside Transformers' pipelines on the same files."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from roberta_flax import InputError, pipeline
from tests.conftest import skip_or_fail

if find_spec("sentence_transformers") is None:
    skip_or_fail("sentence-transformers, the reference, is not installed; the README's test command installs it")

import transformers

from references.sentence_transformers import TEXTS, body, edit

TOLERANCE = 1e-5  # float32: a unit in the last place of a score is 6e-8, through two layers
LONG = "The children are playing outside in the yard, and " * 14


def same(ours: Any, theirs: Any) -> bool:
    """Whether results have the same form and order, and their numbers agree."""
    if isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, list):
        return isinstance(ours, list) and len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(theirs, float):
        return isinstance(ours, float) and ours == pytest.approx(theirs, abs=TOLERANCE)
    return bool(ours == theirs)


HEADS: dict[str, dict[str, Any]] = {
    "three labels": {"id2label": dict(enumerate(("no", "perhaps", "yes")))},
    "labels without names": {"num_labels": 3},
    "one output": {"num_labels": 1},
    "a regression": {"num_labels": 1, "problem_type": "regression"},
    "one output of a single label": {"num_labels": 1, "problem_type": "single_label_classification"},
    "several labels at once": {"num_labels": 3, "problem_type": "multi_label_classification"},
}
PAIR = {"text": "A man is playing.", "text_pair": "Nobody plays."}
CALLS: list[tuple[Any, dict[str, Any]]] = [
    (TEXTS[0], {}),
    (TEXTS, {}),
    (TEXTS[0], {"top_k": None}),
    (TEXTS[:2], {"top_k": 2}),
    (PAIR, {}),
    ([PAIR, PAIR], {"top_k": 1}),
    (TEXTS[:2], {"function_to_apply": "none"}),
    (TEXTS[:2], {"function_to_apply": "sigmoid", "top_k": None}),
    (TEXTS[:2], {"batch_size": 2}),
    (LONG, {"truncation": True}),
    (LONG, {"truncation": True, "max_length": 20}),
    ({"text": LONG, "text_pair": "a dog " * 20}, {"truncation": True, "max_length": 33}),
]


@pytest.fixture(scope="module", params=HEADS)
def classifiers(request, tmp_path_factory) -> tuple[Any, Any]:
    """Both pipelines of a model."""
    path = body(tmp_path_factory.mktemp("head") / "model", "RobertaForSequenceClassification", **HEADS[request.param])
    theirs = transformers.pipeline("text-classification", model=str(path), device="cpu")
    return pipeline("text-classification", model=path), theirs


def test_texts_are_classified_as_by_transformers(classifiers):
    ours, theirs = classifiers
    for inputs, arguments in CALLS:
        expected = theirs(inputs, **arguments)
        found = ours(inputs, **arguments)
        assert same(found, expected), (inputs, arguments, found, expected)


@pytest.fixture(scope="module")
def nli(tmp_path_factory) -> Path:
    labels = {"id2label": dict(enumerate(("contradiction", "neutral", "ENTAILMENT")))}
    labels["label2id"] = {label: i for i, label in labels["id2label"].items()}
    return body(tmp_path_factory.mktemp("nli") / "model", "RobertaForSequenceClassification", **labels)


@pytest.mark.parametrize(
    "arguments",
    [
        {"candidate_labels": ["music", "animals", "food"]},
        {"candidate_labels": "music, animals,food"},
        {"candidate_labels": ["music"]},
        {"candidate_labels": ["music", "animals"], "multi_label": True},
        {"candidate_labels": ["music", "animals"], "hypothesis_template": "It is about {}."},
    ],
)
def test_labels_are_chosen_in_the_call_as_by_transformers(arguments, nli):
    theirs = transformers.pipeline("zero-shot-classification", model=str(nli), device="cpu")
    ours = pipeline("zero-shot-classification", model=nli)
    for inputs in (TEXTS[0], [TEXTS[0], TEXTS[1], LONG]):
        assert same(ours(inputs, **arguments), theirs(inputs, **arguments)), inputs
    labels = arguments.pop("candidate_labels")
    assert same(ours(TEXTS[0], labels, **arguments), theirs(TEXTS[0], labels, **arguments))


def test_a_class_of_entailment_that_is_the_first_is_compared_with_the_last(nli):
    labels = ("entailment", "neutral", "contradiction")
    edit(nli / "config.json", id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)})
    theirs = transformers.pipeline("zero-shot-classification", model=str(nli), device="cpu")
    arguments = {"candidate_labels": ["music", "animals"], "multi_label": True}
    assert same(pipeline("zero-shot-classification", model=nli)(TEXTS[0], **arguments), theirs(TEXTS[0], **arguments))
    edit(nli / "config.json", id2label={0: "a", 1: "b", 2: "c"}, label2id={"a": 0, "b": 1, "c": 2})
    with pytest.raises(InputError, match="needs a head with a class entailment; this one's are a, b, c"):
        pipeline("zero-shot-classification", model=nli)


def test_features_are_those_of_transformers(tmp_path):
    path = body(tmp_path / "model")
    theirs = transformers.pipeline("feature-extraction", model=str(path), device="cpu")
    ours = pipeline("feature-extraction", model=path)
    for inputs, arguments in ((TEXTS[0], {}), (TEXTS, {}), (LONG, {"truncation": True})):
        assert same(ours(inputs, **arguments), theirs(inputs, **arguments)), inputs
    expected = theirs(TEXTS[0], return_tensors=True).numpy()
    np.testing.assert_allclose(ours(TEXTS[0], return_tensors=True), expected, rtol=0, atol=TOLERANCE)


def test_an_iterator_of_inputs_gives_an_iterator_of_results(classifiers):
    ours, _ = classifiers
    results = ours(iter(TEXTS))
    assert isinstance(results, Iterator)
    assert list(results) == ours(TEXTS)


def test_what_a_pipeline_does_not_know_is_refused_by_name(classifiers):
    ours, _ = classifiers
    with pytest.raises(InputError, match="task must be one of .*, got 'summarization'"):
        pipeline("summarization", model=ours.model)
    with pytest.raises(InputError, match="TextClassificationPipeline does not know stride; its calls take"):
        ours(TEXTS, stride=2)
    with pytest.raises(InputError, match="TextClassificationPipeline does not know the option device; it takes"):
        pipeline("text-classification", model=ours.model, device=0)
    with pytest.raises(InputError, match="function_to_apply must be one of sigmoid, softmax, none, got 'tanh'"):
        ours(TEXTS, function_to_apply="tanh")
    with pytest.raises(InputError, match="over the maximum length of 128"):
        ours(LONG * 2)
    with pytest.raises(InputError, match="expected a text, or"):
        ours([("a", "b")])
