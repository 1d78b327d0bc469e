"""evaluate(): a head judged by a labeled file, whichever way the file is read."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import roberta_flax
from roberta_flax import InputError, Roberta
from roberta_flax.datasets import readers
from roberta_flax.datasets.readers import Columns, TrainedOn
from roberta_flax.inference import evaluation
from roberta_flax.inference.answers import answer
from roberta_flax.inference.evaluation import evaluate
from roberta_flax.metrics import ClassCounts, evaluate_values
from roberta_flax.nn.config import HeadConfig
from roberta_flax.train.validation import Validation
from tests.params import random_params

LABELS = ("contradiction", "neutral", "entailment")
NOUNS = ("dog", "cat", "man", "woman", "table", "house", "garden", "train")
PAIRS = [(f"The {a} is near the {b}.", f"The {b} sleeps.") for a in NOUNS for b in NOUNS[:3]]
GOLD = [LABELS[i % 3] for i in range(len(PAIRS))]


def with_head(roberta: roberta_flax.Roberta, head: HeadConfig) -> roberta_flax.Roberta:
    config = dataclasses.replace(roberta.config, heads=(head,))
    heads = random_params(config)["heads"]
    return roberta_flax.Roberta(config, {**roberta.params, "heads": heads}, roberta.tokenizer)


@pytest.fixture
def mnli(tmp_path) -> Path:
    """MNLI's columns, with a row that has no label, one that has no second sentence, and one of a wrong width."""
    rows = [f"{a}\t{b}\t{label}" for (a, b), label in zip(PAIRS, GOLD, strict=True)]
    rows[5:5] = ["a\tb\t-", "\t".join(("a", "b", "neutral", "more"))]
    path = tmp_path / "dev_matched.tsv"
    path.write_text("\n".join(("sentence1\tsentence2\tgold_label", *rows)) + "\n")
    return path


def test_a_sentence_head_is_judged_by_what_it_predicts(tiny, mnli):
    found = evaluate(tiny, mnli)
    predicted = [int(np.asarray(tiny.predict("mnli", tiny.encode(*pair))).argmax()) for pair in PAIRS]
    counts = ClassCounts(LABELS)
    counts.add(predicted, [LABELS.index(label) for label in GOLD])
    assert found.evaluation == counts.evaluation()
    assert (found.task, found.head, found.to_json()["skipped"]) == ("mnli", "mnli", 2)
    assert (found.tally.examples, found.tally.unlabeled, found.tally.unusable) == (len(PAIRS), 1, 1)
    assert "line 8: " in found.tally.first


def test_a_file_of_many_windows_is_judged_as_one(tiny, mnli, monkeypatch):
    whole = evaluate(tiny, mnli)
    monkeypatch.setattr(evaluation, "WINDOW", 3)
    windows = evaluate(tiny, mnli)
    assert windows.evaluation == whole.evaluation
    assert windows.tally == whole.tally


def test_streaming_agrees_with_the_validation_of_training(tiny, mnli):
    reader = readers.task_reader("mnli", mnli, tiny.config, tiny.tokenizer)
    examples = reader.read(mnli)
    validation = Validation(
        examples, "mnli", config=tiny.config, tokenizer=tiny.tokenizer, labels=reader.labels, metrics=reader.metrics
    )
    found = evaluate(tiny, mnli)
    assert validation.evaluate(tiny.params)[0] == found.evaluation
    assert examples.tally == found.tally


def test_a_file_of_ones_own_is_judged_by_its_columns_and_the_heads_labels(tiny, tmp_path):
    rows = [{"a": a, "b": b, "gold": label} for (a, b), label in zip(PAIRS, GOLD, strict=True)]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = evaluate(tiny, path, task="custom", columns=Columns(("a", "b"), ("gold",)))
    assert list(own.evaluation.metrics) == ["accuracy", "macro_f1"]
    renamed = evaluate(tiny, path, task="mnli", columns=Columns(("a", "b"), ("gold",)))
    assert own.evaluation.confusion == renamed.evaluation.confusion
    turned = Columns(("a", "b"), ("gold",), tuple(reversed(LABELS)))
    assert evaluate(tiny, path, task="custom", columns=turned).evaluation.labels == tuple(reversed(LABELS))


def test_a_regression_is_judged_by_its_values(tiny, tmp_path):
    model = with_head(tiny, HeadConfig("degree", 1, 64))
    gold = [float(i % 5) for i in range(len(PAIRS))]
    path = tmp_path / "own.csv"
    path.write_text("text,score\n" + "".join(f"{a},{value}\n" for (a, _), value in zip(PAIRS, gold, strict=True)))
    found = evaluate(model, path, task="custom", columns=Columns(label=("score",)))
    values = [float(np.asarray(model.predict("degree", model.encode(a)))[0, 0]) for a, _ in PAIRS]
    expected = evaluate_values(values, gold, ("pearson", "spearman", "mse"))
    assert found.evaluation.metrics == pytest.approx(expected.metrics, abs=1e-5)  # float32, in batches of another shape
    assert found.evaluation.count == len(PAIRS)


def test_values_that_are_no_finite_numbers_are_left_out_and_told(tiny, tmp_path):
    model = with_head(tiny, HeadConfig("degree", 1, 64))
    values = ("1", "2", "3", "nan", "1e400", "1_000", "", "4")
    path = tmp_path / "own.csv"
    path.write_text("text,score\n" + "".join(f"{a},{value}\n" for (a, _), value in zip(PAIRS, values, strict=False)))
    found = evaluate(model, path, task="custom", columns=Columns(label=("score",)))
    assert (found.tally.examples, found.tally.unusable, found.tally.unlabeled) == (4, 3, 1)
    assert found.tally.first == f"{path}, line 5: score 'nan' is not a number"
    assert found.evaluation.count == 4


@pytest.mark.parametrize("rows", ["", "A dog.,\n"])
def test_a_file_without_rows_or_labels_says_so(tiny, tmp_path, rows):
    path = tmp_path / "own.csv"
    path.write_text("text,label\n" + rows)
    says = "no usable row: .* 1 without a label left out" if rows else r"own\.csv has no rows; expected at least one"
    with pytest.raises(InputError, match=says):
        evaluate(tiny, path, task="custom")


def test_a_pair_is_not_given_to_a_head_that_was_trained_on_one_text(tiny):
    one = TrainedOn("mnli", "custom", "classification", Columns(("review",), ("stars",), LABELS), "exact", 16)
    trained = Roberta(tiny.config, tiny.params, tiny.tokenizer, trained_on=one)
    assert answer(trained, ["A man sleeps."])["label"] in LABELS
    with pytest.raises(
        InputError, match=r"'mnli' was trained on one text \(review\), and 2 texts would be read as a pair"
    ):
        answer(trained, ["A man sleeps.", "A dog runs."])


def test_a_model_is_judged_on_files_as_it_was_trained_on_them(tiny, mnli, tmp_path):
    """Columns and gold strings of the file that it was trained on come before those that a path names."""
    classes = tuple(label.upper() for label in LABELS)
    own = Columns(("a", "b"), ("gold",), classes)
    trained = Roberta(
        tiny.config,
        tiny.params,
        tiny.tokenizer,
        trained_on=TrainedOn("mnli", "custom", "classification", own, "exact", 16),
    )
    folder = tmp_path / "SICK"  # which names a task
    folder.mkdir()
    path = folder / "own.jsonl"
    rows = [{"a": a, "b": b, "gold": label.upper()} for (a, b), label in zip(PAIRS, GOLD, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = evaluate(trained, path)
    assert (found.task, found.evaluation.labels) == ("custom", classes)
    said = evaluate(tiny, path, task="custom", columns=own, max_length=16)
    assert found.evaluation == said.evaluation
    assert found.tally == said.tally
    # given for this file
    assert evaluate(trained, path, columns=Columns(labels=classes[::-1])).evaluation.labels == classes[::-1]
    # another spelling is not a class of the training file; for a model that does not say, it is
    path.write_text(json.dumps({**rows[0], "gold": LABELS[0]}) + "\n")
    with pytest.raises(InputError, match="line 1: 'contradiction' is not a label of custom"):
        evaluate(trained, path)
    assert evaluate(tiny, path, task="custom", columns=own).evaluation.count == 1
    # a file without its columns is what its path says that it is, and an unknown one is to have them
    assert evaluate(trained, mnli).task == "mnli"
    other = shutil.copy(mnli, tmp_path / "other.tsv")
    with pytest.raises(InputError, match=r"other\.tsv has no column 'a'; its columns are 'sentence1'"):
        evaluate(trained, other)
    # what another head was trained on is no matter
    renamed = TrainedOn("another", "custom", "classification", own, "exact", 16)
    with pytest.raises(InputError, match="does not name exactly one task"):
        evaluate(Roberta(tiny.config, tiny.params, tiny.tokenizer, trained_on=renamed), other)


@pytest.mark.slow
def test_several_labels_are_judged_by_the_column_of_each(tiny, tmp_path):
    model = with_head(tiny, HeadConfig("topics", 2, 64, problem="multi_label", labels=("red", "old")))
    path = tmp_path / "own.csv"
    gold = [(i % 2, i % 3 == 0) for i in range(len(PAIRS))]
    path.write_text(
        "text,red,old\n" + "".join(f"{a},{int(r)},{int(o)}\n" for (a, _), (r, o) in zip(PAIRS, gold, strict=True))
    )
    found = evaluate(model, path, columns=Columns(label=("red", "old")))
    held = [model.predict_labels("topics", model.encode(a))[0] for a, _ in PAIRS]
    predicted = [int(name in names) for names in held for name in ("red", "old")]
    counts = ClassCounts(("0", "1"))
    counts.add(predicted, np.array(gold, int).ravel())
    assert found.evaluation == counts.evaluation(("f1", "accuracy"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "none"}, "no head called 'none'"),
        ({"task": "sts-b"}, "head 'mnli' is of single_label; sts-b is regression"),
        ({"task": "rte"}, "rte has 2 classes"),
        ({"task": "nothing"}, "'nothing' does not name exactly one task"),
        ({"columns": Columns(labels=("a", "b", "c"))}, "line 2: 'contradiction' is not a label of mnli; name the head's classes"),
        ({"on_long": "error", "max_length": 8}, "over the maximum length of 8"),
        ({"strategy": "piles"}, "strategy must be one of auto, buckets, packing, fixed"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_in_one_line(tiny, mnli, options, message):
    with pytest.raises(InputError) as error:
        evaluate(tiny, mnli, **options)
    assert message in str(error.value)


def test_options_of_sentence_heads_are_refused_for_others(tiny, tmp_path):
    model = with_head(tiny, HeadConfig("span", 2, 0, "span"))
    with pytest.raises(InputError, match="does not exist; name a file with gold labels"):
        evaluate(model, tmp_path / "none.jsonl")
    path = tmp_path / "questions.jsonl"
    path.write_text("{}\n")
    for options, name in (({"on_long": "window"}, "on_long"), ({"strategy": "packing"}, "strategy")):
        with pytest.raises(InputError, match=f"{name} is for sentence heads of one label; 'span' is of kind span"):
            evaluate(model, path, **options)
