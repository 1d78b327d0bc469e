"""Metrics against scikit-learn, numpy and published numbers; tasks against files in GLUE's own layouts."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from roberta_flax.datasets.layouts import LAYOUTS, class_of, layout_of, resolve_labels
from roberta_flax.errors import InputError
from roberta_flax.metrics import (
    CLASS_METRICS,
    ENTITY_METRICS,
    VALUE_METRICS,
    ClassCounts,
    EntityCounts,
    entities,
    evaluate_rankings,
    evaluate_values,
    marks_entities,
)

NLI = ("contradiction", "neutral", "entailment")
SHARED = Path(__file__).parents[2] / "shared"  # as tests/conftest.py

# --- metrics of classes -------------------------------------------------------------------------------------------


def evaluate_classes(predicted, gold, labels, metrics=("accuracy",)):
    """All rows at once."""
    counts = ClassCounts(labels)
    counts.add(predicted, gold)
    return counts.evaluation(metrics)


def counted(correct: int, wrong: int):
    """So many rows judged right and so many wrong, of two classes."""
    counts = ClassCounts(("no", "yes"))
    counts.add(np.ones(correct, int), np.ones(correct, int))
    counts.add(np.ones(wrong, int), np.zeros(wrong, int))
    return counts.evaluation()


@given(st.integers(2, 5), st.integers(1, 60), st.integers(0, 2**32 - 1))
@settings(max_examples=80, deadline=None)
def test_class_metrics_are_scikit_learns(size, rows, seed):
    draw = np.random.default_rng(seed)
    gold, predicted = draw.integers(0, size, rows), draw.integers(0, size, rows)
    ours = evaluate_classes(predicted, gold, [f"c{i}" for i in range(size)], CLASS_METRICS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that never occur
        averaged = sklearn_metrics.f1_score(gold, predicted, average="macro")
        f1 = sklearn_metrics.f1_score(gold, predicted) if size == 2 else averaged
        matthews = sklearn_metrics.matthews_corrcoef(gold, predicted)
        theirs = {
            "accuracy": sklearn_metrics.accuracy_score(gold, predicted),
            "matthews": matthews,
            "f1": f1,
            "macro_f1": averaged,
        }
    assert ours.metrics == pytest.approx(theirs, abs=1e-12)
    assert (
        ours.confusion == sklearn_metrics.confusion_matrix(gold, predicted, labels=np.arange(size)).tolist()
    )  # rows gold, columns predicted, as scikit-learn's
    assert ours.count == rows


def test_the_table_of_classes_is_scikit_learns_precision_recall_and_f1():
    draw = np.random.default_rng(5)
    gold = draw.integers(0, 3, 500)
    predicted = np.where(draw.random(500) < 0.7, gold, draw.integers(0, 3, 500))
    text = evaluate_classes(predicted, gold, NLI).to_text()
    table = [line.split() for line in text.splitlines()[-3:]]
    expected = np.stack(sklearn_metrics.precision_recall_fscore_support(gold, predicted), axis=1)
    assert [row[0] for row in table] == list(NLI)
    np.testing.assert_allclose([[float(cell) for cell in row[1:]] for row in table], expected, atol=5e-5)


@pytest.mark.parametrize(
    ("gold", "predicted", "labels", "expected"),
    [
        # by hand: of 4 said "1" 3 are, of 5 that are "1" 3 were said: F1 = 6 / 9
        ([1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 1, 0], ("0", "1"), 6 / 9),
        # a head whose class 0 is called "1": the F1 is still of "1"
        ([0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0, 1], ("1", "0"), 6 / 9),
        ([1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 1, 0], ("no", "yes"), 6 / 9),
    ],
)
def test_f1_of_two_classes_is_of_the_positive_one(gold, predicted, labels, expected):
    evaluation = evaluate_classes(predicted, gold, labels, ("f1",))
    assert evaluation.metrics["f1"] == pytest.approx(expected)
    positive = "yes" if "yes" in labels else "1"
    assert f"f1 0.6667 (for class {positive})" in evaluation.to_text()


def test_matthews_sees_the_classifier_that_always_says_yes_where_f1_does_not():
    # by hand, of TP 90, FN 1, TN 0, FP 9: (90 * 0 - 9 * 1) / sqrt(99 * 91 * 9 * 1) = -9 / 284.75; F1 180 / 190
    predicted, gold = [1] * 90 + [0] + [1] * 9, [1] * 91 + [0] * 9
    metrics = evaluate_classes(predicted, gold, ("0", "1"), ("matthews", "f1", "accuracy")).metrics
    assert metrics == pytest.approx({"matthews": -9 / 284.75, "f1": 180 / 190, "accuracy": 0.90}, rel=1e-4)


def test_matthews_of_ten_million_rows_does_not_overflow():
    # one million times a matrix has the Matthews of the matrix; its products are of 10^28, over 64 bits
    gold, predicted = [0, 0, 0, 1, 1, 1, 2, 2, 2, 2], [0, 0, 1, 1, 1, 2, 2, 2, 2, 0]
    counts = ClassCounts(NLI)
    counts.add(predicted, gold)
    counts.counts *= 10**6
    assert counts.evaluation(("matthews",)).metrics["matthews"] == pytest.approx(
        sklearn_metrics.matthews_corrcoef(gold, predicted)
    )


def test_constant_predictions_have_matthews_zero_as_in_scikit_learn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluation = evaluate_classes([1] * 6, [0, 1, 1, 0, 1, 1], ("0", "1"), CLASS_METRICS)
    assert evaluation.metrics["matthews"] == 0 == sklearn_metrics.matthews_corrcoef([0, 1, 1, 0, 1, 1], [1] * 6)


def test_a_class_that_never_occurs_keeps_its_row_and_no_say_in_the_macro_f1():
    evaluation = evaluate_classes([0, 2, 2], [0, 2, 0], NLI, ("macro_f1",))
    assert evaluation.confusion == [[1, 0, 1], [0, 0, 0], [0, 0, 1]]
    assert evaluation.metrics["macro_f1"] == pytest.approx(2 / 3)  # both classes that occur: 2 * 1 / (1 + 2)
    assert evaluation.to_text().splitlines()[-2].split() == ["neutral", "-", "-", "-", "0"]


def test_one_row_is_judged():
    right, wrong = (evaluate_classes([guess], [1], ("0", "1"), CLASS_METRICS) for guess in (1, 0))
    assert right.metrics == {"accuracy": 1, "matthews": 0, "f1": 1, "macro_f1": 1}
    assert wrong.metrics == {"accuracy": 0, "matthews": 0, "f1": 0, "macro_f1": 0}
    assert "accuracy 1.0000 (95% interval 0.2065 to 1.0000), 1 row\n" in right.to_text() + "\n"


# --- entities -----------------------------------------------------------------------------------------------------

NER = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def entity_counts(*sentences: tuple[str, str]) -> EntityCounts:
    """Of sentences as predicted and gold labels with spaces between them."""
    counts = EntityCounts(NER)
    for predicted, gold in sentences:
        counts.add(*([NER.index(label) for label in labels.split()] for labels in (predicted, gold)))
    return counts


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("O O", set()),
        ("B-PER I-PER O B-LOC", {("PER", 0, 2), ("LOC", 3, 4)}),
        ("B-PER B-PER I-PER", {("PER", 0, 1), ("PER", 1, 3)}),  # two that touch
        ("B-PER I-LOC", {("PER", 0, 1), ("LOC", 1, 2)}),
        ("O I-PER I-PER O I-PER", {("PER", 1, 3), ("PER", 4, 5)}),  # as CoNLL-2003's own files
        ("I-PER B-PER I-PER", {("PER", 0, 1), ("PER", 1, 3)}),
    ],
)
def test_entities_are_those_that_conlleval_reads_off_the_labels(labels, expected):
    assert entities(labels.split()) == expected


def test_an_entity_counts_where_its_type_and_all_its_words_are_right():
    # by hand: 5 predicted, 4 gold; right are PER 0-2 and LOC 3-4, the others are a word short, another type, or nowhere
    counts = entity_counts(
        ("B-PER I-PER O B-LOC", "B-PER I-PER O B-LOC"),
        ("B-PER O O", "B-PER I-PER O"),
        ("O B-PER B-LOC", "O B-LOC O"),
    )
    evaluation = counts.evaluation((*ENTITY_METRICS, "accuracy"))
    assert evaluation.metrics == pytest.approx(
        {"entity_f1": 4 / 9, "entity_precision": 2 / 5, "entity_recall": 2 / 4, "accuracy": 7 / 10}
    )
    assert list(evaluation.intervals) == ["accuracy"]
    assert evaluation.count == 10
    assert entity_counts(("O O", "O O")).evaluation().metrics == dict.fromkeys(ENTITY_METRICS, 0.0)


@given(st.lists(st.lists(st.tuples(*[st.sampled_from(NER)] * 2), min_size=1, max_size=8), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_entity_metrics_are_seqevals(sentences):
    from seqeval import metrics as seqeval_metrics

    counts = entity_counts(*((" ".join(a for a, _ in words), " ".join(b for _, b in words)) for words in sentences))
    predicted, gold = ([[pair[i] for pair in words] for words in sentences] for i in range(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sentences without entities
        theirs = {
            f"entity_{name}": getattr(seqeval_metrics, f"{name}_score")(gold, predicted)
            for name in ("f1", "precision", "recall")
        }
    assert counts.evaluation().metrics == pytest.approx(theirs)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (NER, True),
        (("B-PER", "I-PER", "O"), True),
        (("I-PER", "O"), True),
        (("NOUN", "VERB", "O"), False),
        (("B-PER", "I-PER"), False),
        (("O",), False),
        (("O", "B-", "I-"), False),
        (("0", "1", "2"), False),
        ((), False),
    ],
)
def test_labels_mark_entities_where_all_but_o_have_b_or_i_and_a_type(labels, expected):
    assert marks_entities(labels) is expected


# --- Wilson's interval --------------------------------------------------------------------------------------------

Z = statistics.NormalDist().inv_cdf(0.975)  # 1.96: two-sided, 95%


@pytest.mark.parametrize(
    ("correct", "count", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),  # statsmodels.stats.proportion.proportion_confint(8, 10, method="wilson")
        # Newcombe, Statistics in Medicine 17 (1998), 857-872, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        # roberta.large.mnli on dev_matched, 0.9060 in fairseq's README: by hand of the formula, z = 1.959964,
        # middle (9060 + 1.920729) / 10003.841459 = 0.905844; reach z sqrt(851.64 + 0.960365) / 10003.841459 = 0.005721
        (9060, 10000, 0.905844 - 0.005721, 0.905844 + 0.005721),
    ],
)
def test_interval_of_accuracy_is_the_published_wilson_score_interval(correct, count, low, high):
    assert counted(correct, count - correct).intervals["accuracy"] == pytest.approx((low, high), abs=5e-5)


@given(st.integers(0, 3000), st.integers(0, 3000))
@example(0, 7)
@example(7, 0)
@settings(max_examples=80, deadline=None)
def test_interval_of_accuracy_ends_where_the_score_is_1_96_and_stays_within_0_and_1(correct, wrong):
    count = correct + wrong
    if not count:
        return
    low, high = counted(correct, wrong).intervals["accuracy"]
    for end in (low, high):  # Wilson's definition: (accuracy - p)^2 = z^2 p (1 - p) / count
        assert (correct / count - end) ** 2 == pytest.approx(Z**2 * end * (1 - end) / count, abs=1e-12)
    assert 0 <= low < high <= 1
    assert low <= correct / count <= high


@pytest.mark.parametrize("truth", [0.5, 0.906, 0.95])
def test_interval_of_accuracy_holds_the_truth_in_95_of_100_samples(truth):
    # exact, instead of drawn: the probability of every count of right rows in 1,000, by whether its interval holds
    count = 1000
    chances = scipy.stats.binom.pmf(np.arange(count + 1), count, truth)
    intervals = (counted(correct, count - correct).intervals["accuracy"] for correct in range(count + 1))
    coverage = sum(chance for chance, (low, high) in zip(chances, intervals, strict=True) if low <= truth <= high)
    assert coverage == pytest.approx(0.95, abs=0.01)


# --- metrics of values --------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(-40, 40), st.integers(-40, 40)), min_size=4, max_size=40),
    st.sampled_from([1.0, 0.1, 1e-200, 1e200]),
)
@settings(max_examples=80, deadline=None)
def test_correlations_are_those_of_values_and_of_mean_ranks_at_any_scale(pairs, scale):
    predicted, gold = np.array(pairs, float).T
    ours = evaluate_values(predicted * scale, gold, ("pearson", "spearman"))
    if len(set(predicted)) == 1 or len(set(gold)) == 1:
        assert all(map(math.isnan, ours.metrics.values()))
        return
    pearson = np.corrcoef(predicted, gold)[0, 1]
    ranks = [  # those below, and half of those that are equal
        (values[:, None] > values).sum(axis=1) + (values[:, None] == values).sum(axis=1) / 2
        for values in (predicted, gold)
    ]
    assert ours.metrics["pearson"] == pytest.approx(pearson, abs=1e-9)
    assert ours.metrics["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-9)
    if abs(pearson) < 1 - 1e-6:
        interval = scipy.stats.pearsonr(predicted, gold).confidence_interval(0.95)
        assert ours.intervals["pearson"] == pytest.approx(tuple(interval), abs=1e-7)


def test_values_at_the_end_of_float64s_range_have_a_correlation():
    # the sums of these are infinite
    evaluation = evaluate_values([1e308, 1.2e308, 1.7e308], [1, 2, 3], ("pearson", "spearman"))
    assert evaluation.metrics == pytest.approx({"pearson": 0.7 / math.sqrt(2 * 0.26), "spearman": 1.0})


def test_mse_is_the_mean_of_the_squared_differences():
    assert evaluate_values([1, 2, 3.5], [1, 3, 3], ("mse",)).metrics == {"mse": pytest.approx((0 + 1 + 0.25) / 3)}


def test_interval_of_spearman_holds_the_truth_in_95_of_100_samples():
    draw, truth, rows, hits = np.random.default_rng(0), 0.9, 60, 0
    rank_truth = 6 / math.pi * math.asin(truth / 2)  # of a normal pair with Pearson's `truth` (Pearson, 1907)
    for _ in range(1000):
        x, noise = draw.standard_normal((2, rows))
        y = truth * x + math.sqrt(1 - truth**2) * noise
        low, high = evaluate_values(x, y, ("spearman",)).intervals["spearman"]
        hits += low <= rank_truth <= high
    assert 0.93 < hits / 1000 < 0.97  # Fisher's z with Pearson's error, 1 / sqrt(n - 3), holds it in under 0.91


@pytest.mark.parametrize(
    ("predicted", "gold"),
    [([0.1] * 7, [1, 2, 3, 4, 5, 6, 7]), ([1, 2, 3, 4, 5, 6, 7], [0.1] * 7), ([2], [3])],
    ids=["constant predictions", "constant gold", "one row"],
)
def test_correlation_with_a_constant_is_undefined_and_says_so(predicted, gold):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluation = evaluate_values(predicted, gold)
    assert all(map(math.isnan, evaluation.metrics.values()))
    assert evaluation.intervals == {}
    assert evaluation.to_text().startswith("pearson undefined (the gold or the predicted values are all the same), ")
    assert json.loads(json.dumps(evaluation.to_json(), allow_nan=False))["metrics"]["pearson"] is None


def test_a_correlation_of_one_or_of_three_rows_has_no_interval():
    # Fisher's z is infinite at 1, its error 1 / sqrt(n - 3) at 3 rows
    assert evaluate_values([1, 2, 3, 4, 5], [2, 3, 4, 5, 6]).intervals == {}
    assert evaluate_values([1, 2, 3], [2, 3, 1]).intervals == {}


def test_values_of_half_precision_are_judged_in_double():
    predicted = np.linspace(0, 1, 5000, dtype=np.float16)  # a sum of squares in float16 stops growing
    gold = np.linspace(0, 5, 5000)
    expected = np.corrcoef(predicted.astype(float), gold)[0, 1]
    assert evaluate_values(predicted, gold).metrics["pearson"] == pytest.approx(expected)


# --- what cannot be judged ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        (lambda: evaluate_classes([], [], NLI), "no rows to evaluate"),
        (lambda: evaluate_values([], []), "no rows to evaluate"),
        (lambda: ClassCounts(NLI).evaluation(), "no rows to evaluate"),
        (lambda: evaluate_classes([0, 1], [0], NLI), "2 predicted and 1 gold rows"),
        (lambda: evaluate_values([0, 1], [0]), "2 predicted and 1 gold rows"),
        (lambda: evaluate_classes([0, 3, 4], [0, 1, 1], NLI), "2 predicted classes are outside the 3 labels, the first is 3"),
        (lambda: evaluate_classes([0, 1], [-1, 1], NLI), "1 gold classes are outside the 3 labels, the first is -1"),
        (lambda: evaluate_classes([0.0], [0], NLI), "predicted classes must be integers, got float64"),
        (lambda: evaluate_classes(["neutral"], [0], NLI), "predicted classes must be integers"),
        (lambda: evaluate_classes([[0, 1]], [[0, 1]], NLI), "shape [rows], got shape [1, 2]"),
        (lambda: evaluate_values([[0.5], [1]], [0, 1]), "shape [rows], got shape [2, 1]"),
        (lambda: evaluate_values([1, math.nan, math.nan, math.inf], [1, 2, 3, 4]), "3 of 4 predicted values are NaN"),
        (lambda: evaluate_values([1, 2], [1, math.nan]), "1 of 2 gold values are NaN"),
        (lambda: evaluate_values(["high"], [1]), "predicted values must be numbers"),
        (lambda: evaluate_classes([0], [0], NLI, ("pearson",)), "unknown metrics: pearson; choose from accuracy"),
        (lambda: evaluate_values([0], [0], ("accuracy",)), "unknown metrics: accuracy; choose from pearson"),
        (lambda: evaluate_values([0], [0], ()), "unknown metrics: (none given)"),
        (lambda: ClassCounts(()), "no labels"),
    ],
)  # fmt: skip
def test_what_cannot_be_judged_is_named_in_one_line(judge, message):
    with pytest.raises(InputError) as error:
        judge()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_rows_added_in_batches_are_judged_as_rows_added_at_once():
    draw = np.random.default_rng(1)
    gold, predicted = draw.integers(0, 3, (2, 1000))
    counts = ClassCounts(NLI)
    for start in range(0, 1000, 64):
        counts.add(predicted[start : start + 64].astype(np.int32), gold[start : start + 64].astype(np.uint8))
    counts.add([], [])  # a batch in which no row had a gold label
    assert counts.evaluation(CLASS_METRICS) == evaluate_classes(predicted, gold, NLI, CLASS_METRICS)


def test_a_batch_that_is_refused_counts_nothing():
    counts = ClassCounts(NLI)
    counts.add([0, 1], [0, 1])
    with pytest.raises(InputError):
        counts.add([0, 7], [0, 1])
    assert counts.evaluation().count == 2


# --- how it reads -------------------------------------------------------------------------------------------------


def test_text_of_an_evaluation_reads_as_a_table():
    # matthews by hand: (7 * 8 - (2 * 2 + 1 * 2 + 5 * 4)) / sqrt((64 - 30) * (64 - 24)) = 30 / 36.88
    predicted, gold = [0, 0, 1, 1, 2, 2, 2, 2], [0, 0, 1, 2, 2, 2, 2, 2]
    assert evaluate_classes(predicted, gold, NLI, ("accuracy", "matthews")).to_text() == (
        "accuracy 0.8750 (95% interval 0.5291 to 0.9776), 8 rows\n"
        "matthews 0.8135\n"
        "\n"
        "gold \\ predicted  contradiction  neutral  entailment\n"
        "contradiction                 2        0           0\n"
        "neutral                       0        1           0\n"
        "entailment                    0        1           4\n"
        "\n"
        "class          precision  recall      f1  rows\n"
        "contradiction     1.0000  1.0000  1.0000     2\n"
        "neutral           0.5000  1.0000  0.6667     1\n"
        "entailment        1.0000  0.8000  0.8889     5"
    )


def test_text_of_values_is_a_line_for_each_metric():
    # by hand: 1 - 6 * 2 / (5 * 24) = 0.9; atanh 1.4722 less and plus 1.96 sqrt(1.405 / 2) = -0.1705 and 3.1150
    evaluation = evaluate_values([1, 2, 3, 4, 5], [1, 2, 4, 3, 5], ("spearman", "mse"))
    assert evaluation.to_text() == "spearman 0.9000 (95% interval -0.1689 to 0.9961), 5 rows\nmse 0.4000"


def test_json_of_an_evaluation_is_json():
    evaluation = evaluate_classes(np.array([0, 1, 1]), np.array([0, 1, 0]), ("0", "1"), CLASS_METRICS)
    again = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
    assert again == {
        "count": 3,
        "metrics": evaluation.metrics,
        "intervals": {"accuracy": list(evaluation.intervals["accuracy"])},
        "labels": ["0", "1"],
        "confusion": [[1, 1], [0, 1]],
    }
    assert list(again["metrics"]) == list(CLASS_METRICS)


def test_a_label_cannot_steer_the_terminal():
    text = evaluate_classes([0, 1], [0, 1], ("\x1b[2J", "a\nb"), ("f1",)).to_text()
    assert "\x1b" not in text
    assert "a\\nb" in text


# --- tasks --------------------------------------------------------------------------------------------------------

MNLI_HEADER = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse"
    "\tsentence1\tsentence2\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label\n"
)
MNLI_ROW = (
    "{index}\t63735\t63735n\tslate\t( a )\t( b )\t(ROOT a)\t(ROOT b)\tThe new rights are nice enough"
    "\tEveryone really likes the newest benefits\t{gold}\tneutral\tneutral\tneutral\tneutral\t{gold}\n"
)
SNLI_HEADER = (
    "gold_label\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse\tsentence1"
    "\tsentence2\tcaptionID\tpairID\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\n"
)
SNLI_ROW = "{gold}\t( a )\t( b )\t(ROOT a)\t(ROOT b)\tTwo women embrace.\tThe women sleep.\t4.jpg#4\t4.jpg#4r1n\tneutral\t\t\t\t\n"

# path, the file's text in the layout that GLUE's download_glue_data.py leaves, texts and gold string of its last row,
# and the 1-based columns of texts and gold in fairseq/examples/roberta/preprocess_GLUE_tasks.sh, where it has the task
FILES = {
    "mnli": (
        "glue_data/MNLI/dev_matched.tsv",
        MNLI_HEADER + MNLI_ROW.format(index=0, gold="neutral"),
        ("The new rights are nice enough", "Everyone really likes the newest benefits"),
        "neutral",
        (9, 10, 16),
    ),
    "snli": (
        "snli_1.0/snli_1.0_dev.txt",
        SNLI_HEADER + SNLI_ROW.format(gold="neutral"),
        ("Two women embrace.", "The women sleep."),
        "neutral",
        None,
    ),
    "qnli": (
        "glue_data/QNLI/dev.tsv",
        'index\tquestion\tsentence\tlabel\n0\tWhat came into force?\tAs of that day, "the constitution" did.\tentailment\n',
        ("What came into force?", 'As of that day, "the constitution" did.'),
        "entailment",
        (2, 3, 4),
    ),
    "rte": (
        "glue_data/RTE/dev.tsv",
        "index\tsentence1\tsentence2\tlabel\n0\tDana Reeve has died.\tChristopher Reeve had an accident.\tnot_entailment\n",
        ("Dana Reeve has died.", "Christopher Reeve had an accident."),
        "not_entailment",
        (2, 3, 4),
    ),
    "wnli": (
        "glue_data/WNLI/dev.tsv",
        "index\tsentence1\tsentence2\tlabel\n0\tThe drain is clogged with hair. It has to be cleaned.\tThe hair has to be cleaned.\t0\n",
        ("The drain is clogged with hair. It has to be cleaned.", "The hair has to be cleaned."),
        "0",
        None,
    ),
    "qqp": (
        "glue_data/QQP/dev.tsv",
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n201359\t303345\t303346\tWhy are African-Americans so beautiful?\tWhy are hispanics so beautiful?\t0\n",
        ("Why are African-Americans so beautiful?", "Why are hispanics so beautiful?"),
        "0",
        (4, 5, 6),
    ),
    "mrpc": (
        "glue_data/MRPC/dev.tsv",
        "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t1355540\t1355592\tHe said the foodservice pie business does not fit .\tThe foodservice pie business does not fit .\n",
        ("He said the foodservice pie business does not fit .", "The foodservice pie business does not fit ."),
        "1",
        (4, 5, 1),
    ),
    "sst-2": (
        "glue_data/SST-2/dev.tsv",
        "sentence\tlabel\nit 's a charming and often affecting journey . \t1\n",
        ("it 's a charming and often affecting journey . ",),
        "1",
        (1, 2),
    ),
    "cola": (
        "glue_data/CoLA/dev.tsv",
        "gj04\t1\t\tThe sailors rode the breeze clear of the rocks.\ngj04\t0\t*\tThe weights made the rope stretch over.\n",
        ("The weights made the rope stretch over.",),
        "0",
        (4, 2),
    ),
    "sts-b": (
        "glue_data/STS-B/dev.tsv",
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n0\tmain-captions\tMSRvid\t2012test\t0000\tnone\tnone\tA man with a hard hat is dancing.\tA man wearing a hard hat is dancing.\t5.000\n",
        ("A man with a hard hat is dancing.", "A man wearing a hard hat is dancing."),
        "5.000",
        (8, 9, 10),
    ),
    "sick": (
        "shared/sick/SICK_train.txt",
        "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n1\tKids are playing\tBoys are playing\t4.5\tNEUTRAL\n",
        ("Kids are playing", "Boys are playing"),
        "NEUTRAL",
        None,
    ),
    "sick-relatedness": (
        "sick-relatedness",
        "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n1\tKids are playing\tBoys are playing\t4.5\tNEUTRAL\n",
        ("Kids are playing", "Boys are playing"),
        "4.5",
        None,
    ),
}  # fmt: skip


def test_every_task_has_a_file_here():
    assert FILES.keys() == LAYOUTS.keys()


@pytest.mark.parametrize("name", FILES)
def test_a_tasks_columns_are_those_of_its_file(name):
    path, text, texts, gold, fairseq_columns = FILES[name]
    task = layout_of(path)
    assert task.name == name
    assert layout_of(Path(path)) == task
    lines = list(csv.reader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE))
    header = lines[0] if task.header else [str(i) for i in range(len(lines[0]))]
    columns = [header.index(column) for column in (*task.texts, task.label)]
    assert all(header.count(column) == 1 for column in (*task.texts, task.label))
    assert [lines[-1][i] for i in columns] == [*texts, gold]
    if fairseq_columns:
        assert tuple(i + 1 for i in columns) == fairseq_columns
    if task.problem == "regression":
        assert task.labels == ()
        assert float(gold) > 0
    else:
        assert class_of(gold, task.labels) == task.labels.index(gold)
    assert set(task.metrics) <= set(VALUE_METRICS if task.problem == "regression" else CLASS_METRICS)


@pytest.mark.parametrize("name", ["mnli", "snli"])
def test_a_pair_without_a_gold_label_is_left_out(name):
    assert "-" in layout_of(name).unlabeled  # SNLI's README.txt: "should not be included when evaluating"
    assert class_of("-", LAYOUTS[name].labels) is None


def test_sick_in_shared_has_the_layout_and_the_labels():
    sick = SHARED / "sick/SICK_train.txt"
    if not sick.exists():
        pytest.skip("shared/sick is not here")
    with sick.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    task = layout_of(sick)
    assert {row[task.label] for row in rows} == set(task.labels)
    assert all(1 <= float(row[LAYOUTS["sick-relatedness"].label]) <= 5 for row in rows)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("MNLI", "mnli"),
        ("sst2", "sst-2"),
        ("SST_2", "sst-2"),
        ("stsb", "sts-b"),
        ("CoLA", "cola"),
        ("sick_relatedness", "sick-relatedness"),
        ("dev_matched.tsv", "mnli"),
        ("data/dev_mismatched.tsv", "mnli"),
        ("multinli_1.0/multinli_1.0_dev_matched.txt", "mnli"),
        (r"C:\glue_data\QNLI\dev.tsv", "qnli"),
        ("runs/rte/glue_data/MRPC/dev.tsv", "mrpc"),
        ("MRPC/msr_paraphrase_test.txt", "mrpc"),
        ("/data/mnli/SICK_test_annotated.txt", "sick"),
    ],
)
def test_a_task_is_known_by_name_or_by_the_nearest_part_of_a_path(given, name):
    assert layout_of(given).name == name


@pytest.mark.parametrize("given", ["", "dev.tsv", "ax", "adobe/parterre/qnlite.tsv", "rte-or-qnli.tsv", "MNLI/snli_mnli.tsv"])  # fmt: skip
def test_a_file_of_no_one_task_names_the_tasks_there_are(given):
    with pytest.raises(InputError, match="name one of mnli, snli, qnli,") as error:
        layout_of(given)
    assert repr(given)[1:-1] in str(error.value)


# --- labels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "names", "expected"),
    [
        ("neutral", NLI, 1),
        ("ENTAILMENT", NLI, 2),
        ("2", NLI, 2),
        ("3", NLI, None),
        ("-", NLI, None),
        ("", NLI, None),
        ("-1", NLI, None),
        ("²", NLI, None),
        ("0", ("1", "0"), 1),
        ("0", ("1", "2", "3"), None),  # names that are numbers are not places
        ("2", ("1", "none"), None),
        ("a", ("A", "a"), 1),  # as spelled before other case
        ("0", (), None),
    ],
)
def test_a_gold_string_names_its_class(label, names, expected):
    assert class_of(label, names) == expected


def test_a_gold_string_is_a_number_or_in_another_case_only_where_that_is_meant():
    assert [class_of("2", NLI, match) for match in ("exact", "case", "number")] == [None, None, 2]
    assert [class_of("NEUTRAL", NLI, match) for match in ("exact", "case", "number")] == [None, 1, 1]
    assert [class_of("neutral", NLI, match) for match in ("exact", "case", "number")] == [1, 1, 1]


@pytest.mark.parametrize(
    ("task", "head", "classes", "given", "expected"),
    [
        ("mnli", None, 3, None, NLI),  # a new head
        # FacebookAI/roberta-large-mnli and a head trained on datasets' glue.py
        ("mnli", ("CONTRADICTION", "NEUTRAL", "ENTAILMENT"), 3, None, NLI),
        ("mnli", ("entailment", "neutral", "contradiction"), 3, None, NLI[::-1]),
        ("sick", NLI, 3, None, ("CONTRADICTION", "NEUTRAL", "ENTAILMENT")),
        ("rte", ("not_entailment", "entailment"), 2, None, ("not_entailment", "entailment")),
        ("mnli", ("entailment", "neutral", "contradiction"), 3, NLI, NLI),  # the user knows better
        ("sst-2", ("POSITIVE", "NEGATIVE"), 2, None, ("1", "0")),
        ("wnli", (), 2, ["entailment", "not_entailment"], ("1", "0")),
        ("rte", (), 3, ["not_entailment", "unsure", "entailment"], ("not_entailment", "unsure", "entailment")),
        ("sts-b", (), 1, None, ()),
    ],
)
def test_a_heads_classes_are_the_users_then_its_own_then_the_tasks(task, head, classes, given, expected):
    assert resolve_labels(LAYOUTS[task], head, classes, given) == expected


@pytest.mark.parametrize(
    ("task", "head", "classes", "given", "message"),
    [
        ("rte", NLI, 3, None, "rte has 2 classes (entailment, not_entailment), the head 3"),
        ("mnli", (), 3, ["entailment", "neutral"], "the head has 3 classes, got the labels entailment, neutral"),
        ("mnli", (), 3, ["a", "b", "B"], "a name of its own"),
        ("mnli", (), 3, [], "got the labels (none)"),
        ("sts-b", (), 2, None, "sts-b is a regression: it takes a head of 1 output"),
        ("sts-b", (), 1, ["low"], "no labels, got 1 outputs and 1 labels"),
        # GLUE's order is the reverse of fairseq's, and fairseq numbers the classes of other tasks by their frequency
        ("mnli", (), 3, None, "have no names, so it is not known which of them are mnli's; give the label of each"),
        ("mnli", (), 3, None, "such as --labels contradiction,neutral,entailment"),
        ("sst-2", (), 2, None, "have no names"),
        (
            "mnli",
            ("LABEL_0", "LABEL_1", "LABEL_2"),
            3,
            None,
            "are called LABEL_0, LABEL_1, LABEL_2, so it is not known",
        ),
        ("mnli", ("negative", "neutral", "positive"), 3, None, "are called negative, neutral, positive"),
    ],
)
def test_labels_that_do_not_fit_the_head_are_refused(task, head, classes, given, message):
    with pytest.raises(InputError) as error:
        resolve_labels(LAYOUTS[task], head, classes, given)
    assert message in str(error.value)


def test_a_head_with_its_classes_in_another_order_scores_the_same():
    task, gold = LAYOUTS["mrpc"], ["1", "1", "0", "1", "0"]
    scores = []
    for head in (("not_equivalent", "equivalent"), ("equivalent", "not_equivalent")):
        labels = resolve_labels(task, head, 2, None)
        predicted = [head.index(name) for name in ("equivalent", "equivalent", "equivalent", "not_equivalent", "not_equivalent")]  # fmt: skip
        scores.append(evaluate_classes(predicted, [class_of(g, labels) for g in gold], labels, task.metrics).metrics)
    assert scores[0] == scores[1] == {"accuracy": 3 / 5, "f1": pytest.approx(2 / 3)}


def test_rankings_are_judged_as_by_scikit_learn():
    random = np.random.default_rng(0)
    rankings = [(random.normal(size=n), random.integers(0, 4, n) * (random.random(n) < 0.3)) for n in (4, 10, 11, 200)]
    rankings = [(scores, relevance) for scores, relevance in rankings if relevance.any()]
    assert len(rankings) > 2
    found = evaluate_rankings(rankings)
    expected = [sklearn_metrics.ndcg_score(relevance[None], scores[None], k=10) for scores, relevance in rankings]
    assert found.metrics["ndcg@10"] == pytest.approx(np.mean(expected), rel=1e-12)


def test_a_rankings_reciprocal_rank_is_that_of_the_first_relevant_document():
    def reciprocal(scores, relevance):
        return evaluate_rankings([(scores, relevance)]).metrics["mrr@10"]

    assert reciprocal([3, 2, 1], [0, 1, 1]) == 1 / 2
    assert reciprocal(list(range(20, 0, -1)), [0] * 10 + [1] + [0] * 9) == 0  # the eleventh
    assert reciprocal([1, 1, 1], [1, 0, 0]) == 1 / 3  # equal scores say nothing
    both = evaluate_rankings([([2, 1], [1, 0]), ([2, 1], [0, 0]), ([2, 1], [0, 1])])
    assert both.metrics["mrr@10"] == 3 / 4
    assert both.to_text().endswith("2 queries\nmrr@10 0.7500")


@pytest.mark.parametrize(
    ("rankings", "message"),
    [
        ([([1, 2], [0, 0])], "no query has a relevant document"),
        ([], "no query has a relevant document"),
        ([([1, float("nan")], [0, 1])], "must be finite"),
        ([([1, 2], [-1, 1])], "relevances 0 or more"),
        ([([1, 2], [1])], "2 predicted and 1 gold rows"),
    ],
)
def test_rankings_that_cannot_be_judged_are_refused(rankings, message):
    with pytest.raises(InputError, match=message):
        evaluate_rankings(rankings)


def test_metrics_need_neither_jax_nor_torch_nor_scikit_learn():
    code = (
        "import importlib.util, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "package = type(sys)('roberta_flax'); package.__path__ = ['roberta_flax']\n"  # its __init__ imports jax
        "sys.modules['roberta_flax'] = package\n"
        "from roberta_flax.metrics import ClassCounts, evaluate_values\n"
        "evaluate_values([1, 2, 3, 4], [1, 2, 4, 3]).to_text()\n"
        "counts = ClassCounts(['a']); counts.add([0], [0]); counts.evaluation().to_text()\n"
        "print(sorted({'jax', 'torch', 'sklearn'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
