"""Metrics: compares predicted and gold classes, entities, values or answers, and returns an Evaluation.

This module uses numpy and not JAX. scipy.stats, which takes a second to import, is imported where it is used.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from roberta_flax.errors import InputError, printable

CLASS_METRICS = ("accuracy", "matthews", "f1", "macro_f1")
VALUE_METRICS = ("pearson", "spearman", "mse")
ENTITY_METRICS = ("entity_f1", "entity_precision", "entity_recall")
RANKING_METRICS = ("ndcg@10", "mrr@10")
LESS_IS_BETTER = ("loss", "mse")

_RANKED = 10  # documents that RANKING_METRICS look at
_Z = NormalDist().inv_cdf(0.975)  # 1.96: two-sided, 95%


@dataclass(frozen=True)
class Evaluation:
    """The metrics of predictions.

    Attributes:
      count: number of rows.
      metrics: values by name, in the requested order:
        accuracy           the share of correct rows
        matthews           the Matthews correlation (Gorodkin, 2004); 0 if all gold or all predicted classes are equal
        f1                 with two classes, the F1 of the class named "1", or else of class 1; otherwise macro_f1; an
                           F1 of 0 / 0 is 0, as in scikit-learn
        macro_f1           the mean F1 of the classes that occur in gold or predicted
        pearson, spearman  correlations; NaN if all gold or all predicted values are the same
        mse                the mean squared error
        ENTITY_METRICS     see EntityCounts
        ndcg@10, mrr@10    see evaluate_rankings
      intervals: 95% confidence intervals by metric. accuracy has the score interval of Wilson (1927). pearson has
        Fisher's z, and spearman the same with the standard error of Bonett and Wright (2000). These two need at least 4
        rows and a correlation between -1 and 1.
      confusion: the confusion matrix, as rows [gold][predicted]; None for values.
      labels: the names of the classes; () for values.
      counted: what `count` counts.
    """

    count: int
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    confusion: list[list[int]] | None = None
    labels: tuple[str, ...] = ()
    counted: str = "row"

    def to_json(self) -> dict[str, Any]:
        """Returns the fields by name, for json.dumps. NaN and infinity, which JSON lacks, are None."""
        return {
            "count": self.count,
            "metrics": {name: value if math.isfinite(value) else None for name, value in self.metrics.items()},
            "intervals": {name: list(interval) for name, interval in self.intervals.items()},
            "labels": list(self.labels),
            "confusion": self.confusion,
        }

    def to_text(self) -> str:
        """Returns lines for a terminal: the metrics, and for classes the confusion matrix, precision, recall and F1.

        A precision or recall of 0 / 0 is "-".
        """
        lines = [self._metric_line(name) for name in self.metrics]
        lines[0] += f", {self.count} {self.counted if self.count == 1 else _plural(self.counted)}"
        if self.confusion is not None:
            names = [printable(label) for label in self.labels]
            matrix = [[name, *map(str, row)] for name, row in zip(names, self.confusion, strict=True)]
            scores = [
                [name, *("-" if math.isnan(score) else f"{score:.4f}" for score in row), str(sum(gold))]
                for name, row, gold in zip(names, _class_scores(self.confusion), self.confusion, strict=True)
            ]
            lines += ["", *_aligned([["gold \\ predicted", *names], *matrix])]
            lines += ["", *_aligned([["class", "precision", "recall", "f1", "rows"], *scores])]
        return "\n".join(lines)

    def _metric_line(self, name: str) -> str:
        value = self.metrics[name]
        if math.isnan(value):
            return f"{name} undefined (the gold or the predicted values are all the same)"
        line = f"{name} {value:.4f}"
        if name == "f1" and len(self.labels) == 2:
            line += f" (for class {printable(self.labels[_positive(self.labels)])})"
        if name in self.intervals:
            line += " (95% interval {:.4f} to {:.4f})".format(*self.intervals[name])
        return line


class ClassCounts:
    """A confusion matrix that rows are added to, so that a file of any length is scored in the memory of one batch."""

    def __init__(self, labels: Sequence[str]) -> None:
        """Creates an empty matrix.

        Args:
          labels: the names of the classes, in the order of their numbers; at least one.
        """
        if not labels:
            raise InputError("no labels: name the classes of the predictions")
        self.labels = tuple(labels)
        self.counts = np.zeros((len(self.labels), len(self.labels)), np.int64)  # [gold, predicted]

    def add(self, predicted: npt.ArrayLike, gold: npt.ArrayLike) -> None:
        """Counts rows.

        Args:
          predicted, gold: classes, integers [rows]. There may be no rows.

        Raises:
          InputError: the classes are not integers, the lengths differ, or a class is out of range. Nothing is counted.
        """
        size = len(self.labels)
        arrays = {"predicted": np.asarray(predicted), "gold": np.asarray(gold)}
        _check_shapes(arrays)
        for what, classes in arrays.items():
            if classes.size and not np.issubdtype(classes.dtype, np.integer):
                raise InputError(f"{what} classes must be integers, got {classes.dtype}; class_of() takes names")
            outside = classes[(classes < 0) | (classes >= size)]
            if outside.size:
                raise InputError(
                    f"{outside.size} {what} classes are outside the {size} labels, the first is {outside[0]};"
                    f" classes go from 0 to {size - 1}"
                )
        cells = arrays["gold"].astype(np.int64) * size + arrays["predicted"].astype(np.int64)
        self.counts += np.bincount(cells, minlength=size * size).reshape(size, size)

    def evaluation(self, metrics: Sequence[str] = ("accuracy",)) -> Evaluation:
        """Returns `metrics`, from CLASS_METRICS, of the rows added so far; raises InputError if there are none."""
        _check_metrics(metrics, CLASS_METRICS)
        confusion: list[list[int]] = self.counts.tolist()
        count = _checked_count(sum(map(sum, confusion)))
        correct = sum(row[i] for i, row in enumerate(confusion))
        f1 = [score for _, _, score in _class_scores(confusion)]
        positive_f1 = f1[_positive(self.labels)] if len(f1) == 2 else math.nan
        macro_f1 = float(np.nanmean(f1))
        values = {
            "accuracy": correct / count,
            "matthews": _matthews(confusion),
            "f1": macro_f1 if len(f1) != 2 else 0.0 if math.isnan(positive_f1) else positive_f1,
            "macro_f1": macro_f1,
        }
        intervals = {"accuracy": _wilson(correct, count)} if "accuracy" in metrics else {}
        return Evaluation(count, {name: values[name] for name in metrics}, intervals, confusion, self.labels)


class EntityCounts(ClassCounts):
    """Counts the words of sentences, as ClassCounts does, and the entities that their labels mark.

    The metrics are those of CoNLL-2003 (Tjong Kim Sang and De Meulder, 2003; its script conlleval). A predicted entity
    is correct if a gold entity of the same type has the same words. entity_precision is the share of predicted entities
    that are correct, entity_recall the share of gold entities that are found, and entity_f1 their harmonic mean. All
    are 0 if no entity is correct.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        """Creates empty counts.

        Args:
          labels: the names of the classes, as in ClassCounts; see marks_entities().
        """
        super().__init__(labels)
        self.predicted = self.gold = self.right = 0  # numbers of entities

    def add(self, predicted: npt.ArrayLike, gold: npt.ArrayLike) -> None:
        """Counts the words of one sentence, and its entities; arguments and errors as in ClassCounts."""
        super().add(predicted, gold)
        predicted_entities, gold_entities = (
            entities([self.labels[i] for i in np.asarray(classes)]) for classes in (predicted, gold)
        )
        self.predicted += len(predicted_entities)
        self.gold += len(gold_entities)
        self.right += len(predicted_entities & gold_entities)

    def evaluation(self, metrics: Sequence[str] = ENTITY_METRICS) -> Evaluation:
        """Returns `metrics`, from ENTITY_METRICS and CLASS_METRICS, of the sentences added so far."""
        _check_metrics(metrics, ENTITY_METRICS + CLASS_METRICS)
        word_metrics = super().evaluation(CLASS_METRICS)
        pairs = (
            (2 * self.right, self.predicted + self.gold),
            (self.right, self.predicted),
            (self.right, self.gold),
        )
        entity_values = (above / below if below else 0.0 for above, below in pairs)
        values = {**word_metrics.metrics, **dict(zip(ENTITY_METRICS, entity_values, strict=True))}
        intervals = {name: interval for name, interval in word_metrics.intervals.items() if name in metrics}
        return replace(word_metrics, metrics={name: values[name] for name in metrics}, intervals=intervals)


_ENTITY_LABEL = re.compile("[BI]-(.+)", re.DOTALL)


def marks_entities(labels: Sequence[str]) -> bool:
    """Whether labels mark entities as in CoNLL-2003: O outside entities, B-X and I-X in an entity of type X."""
    others = [label for label in labels if label != "O"]
    return 0 < len(others) < len(labels) and all(map(_ENTITY_LABEL.fullmatch, others))


def entities(labels: Sequence[str]) -> set[tuple[str, int, int]]:
    """Returns the entities that a sentence's labels mark: type, first word, and one past the last word.

    As in conlleval, B-X begins an entity. I-X continues an entity of type X that ends before it, or else begins one.
    Labels are therefore read correctly both if B- begins every entity (IOB2) and if it only separates two adjacent ones
    (IOB1, as in CoNLL-2003's own files).
    """
    found: set[tuple[str, int, int]] = set()
    type, first = "", 0
    for word, label in enumerate([*labels, "O"]):
        match = _ENTITY_LABEL.fullmatch(label)
        label_type = match[1] if match else ""
        if type and (label_type != type or label.startswith("B")):
            found.add((type, first, word))
            type = ""
        if label_type and not type:
            type, first = label_type, word
    return found


def evaluate_values(
    predicted: npt.ArrayLike, gold: npt.ArrayLike, metrics: Sequence[str] = ("pearson", "spearman")
) -> Evaluation:
    """Compares predicted values with gold values, in float64.

    Args:
      predicted, gold: floats [rows].
      metrics: names from VALUE_METRICS.

    Raises:
      InputError: there are no rows, the lengths differ, a value is not a finite number, or a metric is unknown.
    """
    _check_metrics(metrics, VALUE_METRICS)
    arrays = {"predicted": _as_floats(predicted, "predicted"), "gold": _as_floats(gold, "gold")}
    _check_shapes(arrays)
    for what, values in arrays.items():
        if bad := int((~np.isfinite(values)).sum()):
            raise InputError(f"{bad} of {values.size} {what} values are NaN or infinite; correct or remove those rows")
    predicted_values, gold_values = arrays["predicted"], arrays["gold"]
    count = _checked_count(len(predicted_values))
    values_of: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    for name in metrics:
        if name == "mse":
            with np.errstate(over="ignore"):
                values_of[name] = float(np.mean((predicted_values - gold_values) ** 2))
            continue
        r = values_of[name] = _correlation(name, predicted_values, gold_values)
        if count > 3 and abs(r) < 1 - 1e-12:  # 1 may be off by the rounding of a sum
            error = math.sqrt((1 + (r * r / 2 if name == "spearman" else 0)) / (count - 3))
            intervals[name] = (math.tanh(math.atanh(r) - _Z * error), math.tanh(math.atanh(r) + _Z * error))
    return Evaluation(count, values_of, intervals)


def evaluate_rankings(rankings: Iterable[tuple[npt.ArrayLike, npt.ArrayLike]]) -> Evaluation:
    """Judges how well documents are ranked for each query, by the first 10 of each.

    ndcg@10 is the discounted cumulative gain divided by the best possible one (Järvelin and Kekäläinen, 2002): the sum
    of a document's relevance, divided by the binary logarithm of its rank plus one. mrr@10 is one divided by the rank
    of the first relevant document; 0 if there is none among 10. Both are means over queries. Of documents with equal
    scores, the less relevant rank first, so that a model that scores all alike gains nothing from their order.

    Args:
      rankings: for each query the documents' scores and relevances, floats [documents] each. A document is relevant if
        its relevance is over 0. Queries without a relevant document do not count.

    Raises:
      InputError: no query has a relevant document, the lengths differ, a value is not a finite number, or a relevance
        is negative.
    """
    gains: list[float] = []
    reciprocals: list[float] = []
    for given, relevances in rankings:
        arrays = {"scores": _as_floats(given, "scores"), "relevances": _as_floats(relevances, "relevances")}
        scores, relevance = arrays["scores"], arrays["relevances"]
        _check_shapes({"predicted": scores, "gold": relevance})
        if not all(np.isfinite(array).all() for array in arrays.values()) or (relevance < 0).any():
            raise InputError("scores and relevances must be finite, and relevances 0 or more")
        if not (relevance > 0).any():
            continue
        ranked = relevance[_best(scores, relevance)]
        ideal = -np.sort(-relevance)[:_RANKED]
        gains.append(_discounted(ranked) / _discounted(ideal))
        first = np.flatnonzero(ranked > 0)
        reciprocals.append(1 / (first[0] + 1) if first.size else 0.0)
    if not gains:
        raise InputError("no query has a relevant document, so there is no ranking to judge")
    values = (float(np.mean(gains)), float(np.mean(reciprocals)))
    return Evaluation(len(gains), dict(zip(RANKING_METRICS, values, strict=True)), {}, counted="query")


def _best(scores: npt.NDArray[np.float64], relevance: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Returns the indices of the first 10, the best first."""
    candidates = np.arange(len(scores))
    if len(scores) > _RANKED:
        candidates = np.flatnonzero(scores >= np.partition(scores, -_RANKED)[-_RANKED])
    order = np.lexsort((relevance[candidates], -scores[candidates]))
    return candidates[order[:_RANKED]]


def _discounted(relevance: npt.NDArray[np.float64]) -> float:
    return float((relevance / np.log2(np.arange(len(relevance)) + 2)).sum())


def _plural(noun: str) -> str:
    return f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"


def evaluate_answers(predicted: Sequence[str], gold: Sequence[Sequence[str]]) -> Evaluation:
    """Compares answers with gold answers as SQuAD does (Rajpurkar et al., 2016 and 2018).

    The metrics are those of SQuAD's evaluate-v2.0.py, but from 0 to 1. Case, punctuation and articles are ignored, and
    the closest gold answer counts. exact_match is the share of equal answers. f1 is the mean F1 of the words that an
    answer shares with the gold answer.

    Args:
      predicted: one answer for each question; "" says that it has no answer.
      gold: the gold answers of each question; none if it has no answer.

    Raises:
      InputError: there are no questions, or the lengths differ.
    """
    if len(predicted) != len(gold):
        raise InputError(f"{len(predicted)} predicted and {len(gold)} gold rows; each row needs one of each")
    count = _checked_count(len(gold))
    answers = [
        (_words(answer), [words for words in map(_words, golds) if words] or [[]])
        for answer, golds in zip(predicted, gold, strict=True)
    ]
    exact = sum(words in golds for words, golds in answers) / count
    f1 = sum(max(_overlap(words, other) for other in golds) for words, golds in answers) / count
    return Evaluation(count, {"exact_match": exact, "f1": f1}, {})


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _words(answer: str) -> list[str]:
    """Splits an answer into words, as normalize_answer of evaluate-v2.0.py does."""
    return re.sub(r"\b(a|an|the)\b", " ", answer.lower().translate(_NO_PUNCTUATION)).split()


def _overlap(words: list[str], others: list[str]) -> float:
    """Returns the F1 of two answers' words, as compute_f1 of evaluate-v2.0.py does."""
    if not words or not others:
        return float(words == others)
    common = sum((Counter(words) & Counter(others)).values())
    return 2 * common / (len(words) + len(others)) if common else 0.0


def _check_metrics(metrics: Sequence[str], known: tuple[str, ...]) -> None:
    wrong = [name for name in metrics if name not in known]
    if wrong or not metrics:
        raise InputError(f"unknown metrics: {', '.join(wrong) or '(none given)'}; choose from {', '.join(known)}")


def _check_shapes(arrays: dict[str, npt.NDArray[Any]]) -> None:
    for what, array in arrays.items():
        if array.ndim != 1:
            raise InputError(f"{what} must have one item for each row, shape [rows], got shape {list(array.shape)}")
    predicted, gold = (len(array) for array in arrays.values())
    if predicted != gold:
        raise InputError(f"{predicted} predicted and {gold} gold rows; each row needs one of each")


def _checked_count(count: int) -> int:
    if not count:
        raise InputError("no rows to evaluate: the file has no rows, or none with a gold label")
    return count


def _as_floats(values: npt.ArrayLike, what: str) -> npt.NDArray[np.float64]:
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{what} values must be numbers, one for each row") from None


def _positive(labels: tuple[str, ...]) -> int:
    """Returns the class that the F1 of two classes refers to: the one named "1", as in GLUE, or else class 1."""
    return labels.index("1") if "1" in labels else 1


def _class_scores(confusion: list[list[int]]) -> list[tuple[float, float, float]]:
    """Returns precision, recall and F1 of each class; NaN for 0 / 0."""
    scores = []
    for i, row in enumerate(confusion):
        hits, gold, predicted = row[i], sum(row), sum(other[i] for other in confusion)
        pairs = ((hits, predicted), (hits, gold), (2 * hits, predicted + gold))
        precision, recall, f1 = (above / below if below else math.nan for above, below in pairs)
        scores.append((precision, recall, f1))
    return scores


def _matthews(confusion: list[list[int]]) -> float:
    """Returns R_K of Gorodkin (2004), in Python's integers, because products of a million rows overflow 64 bits."""
    gold = [sum(row) for row in confusion]
    predicted = [sum(column) for column in zip(*confusion, strict=True)]
    count, correct = sum(gold), sum(row[i] for i, row in enumerate(confusion))
    covariance = correct * count - sum(g * p for g, p in zip(gold, predicted, strict=True))
    variances = (count**2 - sum(g * g for g in gold)) * (count**2 - sum(p * p for p in predicted))
    return covariance / math.sqrt(variances) if variances else 0.0


def _wilson(correct: int, count: int) -> tuple[float, float]:
    """Wilson's 95% interval: Probable inference, the law of succession, and statistical inference, JASA 22 (1927)."""
    from scipy import stats

    interval = stats.binomtest(correct, count).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def _correlation(name: str, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> float:
    """Returns Pearson's or Spearman's correlation; NaN if x or y is constant."""
    from scipy import stats

    if any(values.min() == values.max() for values in (x, y)):
        return math.nan
    if name == "spearman":
        return float(stats.spearmanr(x, y).statistic)
    return float(
        stats.pearsonr(*(values / np.abs(values).max() for values in (x, y))).statistic
    )  # scaled so that no sum overflows


def _aligned(rows: list[list[str]]) -> list[str]:
    """Formats a table as lines: the first column is left-aligned, the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
