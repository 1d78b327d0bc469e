"""Metrics: predicted and gold classes, entities, values or answers in, an Evaluation out.

No JAX: numpy arrays and Python's numbers. scipy.stats, which takes a second to import, is imported where it is used.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from roberta_flax.errors import InputError, printable

CLASS_METRICS = ("accuracy", "matthews", "f1", "macro_f1")
VALUE_METRICS = ("pearson", "spearman", "mse")
ENTITY_METRICS = ("entity_f1", "entity_precision", "entity_recall")
LESS_IS_BETTER = ("loss", "mse")

_Z = NormalDist().inv_cdf(0.975)  # 1.96: two-sided, 95 %


@dataclass(frozen=True)
class Evaluation:
    """What came out.

    Attributes:
      count: rows judged.
      metrics: by name, in the order asked for. accuracy; matthews (Gorodkin, 2004; 0 where gold or predicted classes
        are all one); f1, of the class called "1" or else class 1 where there are two classes, macro_f1 where there
        are others; macro_f1, over the classes that occur in gold or predicted. As scikit-learn's, an F1 of 0 / 0 is 0.
        pearson and spearman, NaN where gold or predicted values are all one; mse. ENTITY_METRICS: see EntityCounts.
      intervals: 95 %, by metric. accuracy: the score interval of Wilson (1927). pearson: Fisher's z; spearman: the
        same with the standard error of Bonett and Wright (2000); both only from 4 rows and within -1 and 1.
      confusion: rows [gold][predicted]; None for values.
      labels: names of the classes; () for values.
    """

    count: int
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    confusion: list[list[int]] | None = None
    labels: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The fields by name, for json.dumps: NaN and infinity, which JSON lacks, are None."""
        return {
            "count": self.count,
            "metrics": {name: value if math.isfinite(value) else None for name, value in self.metrics.items()},
            "intervals": {name: list(interval) for name, interval in self.intervals.items()},
            "labels": list(self.labels),
            "confusion": self.confusion,
        }

    def to_text(self) -> str:
        """Lines for a terminal: the metrics; of classes also the confusion matrix, and each one's precision and so on.

        A precision or recall of 0 / 0 is "-".
        """
        lines = [self._metric_line(name) for name in self.metrics]
        lines[0] += f", {self.count} row{'' if self.count == 1 else 's'}"
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
            line += f" (of class {printable(self.labels[_positive(self.labels)])})"
        if name in self.intervals:
            line += " (95 % interval {:.4f} to {:.4f})".format(*self.intervals[name])
        return line


class ClassCounts:
    """A confusion matrix that rows are added to, so that a file of any length is judged in the memory of one batch."""

    def __init__(self, labels: Sequence[str]) -> None:
        """Args: labels, the names of the classes, in the order of their numbers; at least one."""
        if not labels:
            raise InputError("no labels: name the classes that predictions are judged by")
        self.labels = tuple(labels)
        self.counts = np.zeros((len(self.labels), len(self.labels)), np.int64)  # [gold, predicted]

    def add(self, predicted: npt.ArrayLike, gold: npt.ArrayLike) -> None:
        """Counts rows: classes as integers, [rows] each, which may be none.

        Raises:
          InputError: not integers, lengths that differ, or a class outside the labels; nothing is counted then.
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
        """Judges the rows added so far by `metrics`, of CLASS_METRICS; InputError where there are no rows."""
        _check_metrics(metrics, CLASS_METRICS)
        confusion: list[list[int]] = self.counts.tolist()
        count = _checked_count(sum(map(sum, confusion)))
        correct = sum(row[i] for i, row in enumerate(confusion))
        f1 = [score for _, _, score in _class_scores(confusion)]
        of_positive = f1[_positive(self.labels)] if len(f1) == 2 else math.nan
        macro_f1 = float(np.nanmean(f1))
        values = {
            "accuracy": correct / count,
            "matthews": _matthews(confusion),
            "f1": macro_f1 if len(f1) != 2 else 0.0 if math.isnan(of_positive) else of_positive,
            "macro_f1": macro_f1,
        }
        intervals = {"accuracy": _wilson(correct, count)} if "accuracy" in metrics else {}
        return Evaluation(count, {name: values[name] for name in metrics}, intervals, confusion, self.labels)


class EntityCounts(ClassCounts):
    """ClassCounts of the words of sentences whose labels mark entities; and of entities, how many are found.

    The metrics of CoNLL-2003 (Tjong Kim Sang and De Meulder, 2003; its conlleval): a predicted one is right if a gold
    one of its type has the same words. entity_precision: of the predicted ones, how many are right; entity_recall: of
    the gold ones, how many are found; entity_f1: their harmonic mean; all 0 where none is right.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        """Args: labels, as in ClassCounts; see marks_entities()."""
        super().__init__(labels)
        self.predicted = self.gold = self.right = 0  # entities

    def add(self, predicted: npt.ArrayLike, gold: npt.ArrayLike) -> None:
        """Counts the words of one sentence, and its entities; arguments and errors as of ClassCounts."""
        super().add(predicted, gold)
        found, there = (entities([self.labels[i] for i in np.asarray(classes)]) for classes in (predicted, gold))
        self.predicted += len(found)
        self.gold += len(there)
        self.right += len(found & there)

    def evaluation(self, metrics: Sequence[str] = ENTITY_METRICS) -> Evaluation:
        """Judges the sentences added so far by `metrics`, of ENTITY_METRICS and CLASS_METRICS."""
        _check_metrics(metrics, ENTITY_METRICS + CLASS_METRICS)
        of_words = super().evaluation(CLASS_METRICS)
        pairs = ((2 * self.right, self.predicted + self.gold), (self.right, self.predicted), (self.right, self.gold))
        of_entities = (above / below if below else 0.0 for above, below in pairs)
        values = {**of_words.metrics, **dict(zip(ENTITY_METRICS, of_entities, strict=True))}
        intervals = {name: interval for name, interval in of_words.intervals.items() if name in metrics}
        return replace(of_words, metrics={name: values[name] for name in metrics}, intervals=intervals)


_ENTITY_LABEL = re.compile("[BI]-(.+)", re.DOTALL)


def marks_entities(labels: Sequence[str]) -> bool:
    """Whether labels mark entities: O of no entity, B-X and I-X of entities of types X, as in CoNLL-2003."""
    others = [label for label in labels if label != "O"]
    return 0 < len(others) < len(labels) and all(map(_ENTITY_LABEL.fullmatch, others))


def entities(labels: Sequence[str]) -> set[tuple[str, int, int]]:
    """The entities that a sentence's labels mark: their type, first word, and the one after the last.

    As conlleval: B-X begins one; I-X goes on with the X that ends before it, or else begins one. So labels are read
    right where B- begins every entity (IOB2) and where it only parts two that touch (IOB1, CoNLL-2003's own files).
    """
    found: set[tuple[str, int, int]] = set()
    type, first = "", 0
    for word, label in enumerate([*labels, "O"]):
        match = _ENTITY_LABEL.fullmatch(label)
        of = match[1] if match else ""
        if type and (of != type or label.startswith("B")):
            found.add((type, first, word))
            type = ""
        if of and not type:
            type, first = of, word
    return found


def evaluate_values(
    predicted: npt.ArrayLike, gold: npt.ArrayLike, metrics: Sequence[str] = ("pearson", "spearman")
) -> Evaluation:
    """Judges predicted values, floats [rows], by gold ones, floats [rows], in float64.

    Args:
      metrics: of VALUE_METRICS.

    Raises:
      InputError: no rows, lengths that differ, values that are not finite numbers, or no such metric.
    """
    _check_metrics(metrics, VALUE_METRICS)
    arrays = {"predicted": _as_floats(predicted, "predicted"), "gold": _as_floats(gold, "gold")}
    _check_shapes(arrays)
    for what, values in arrays.items():
        if bad := int((~np.isfinite(values)).sum()):
            raise InputError(f"{bad} of {values.size} {what} values are NaN or infinite; mend or leave out those rows")
    ours, theirs = arrays["predicted"], arrays["gold"]
    count = _checked_count(len(ours))
    values_of: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    for name in metrics:
        if name == "mse":
            with np.errstate(over="ignore"):
                values_of[name] = float(np.mean((ours - theirs) ** 2))
            continue
        r = values_of[name] = _correlation(name, ours, theirs)
        if count > 3 and abs(r) < 1 - 1e-12:  # what a sum's rounding leaves of 1
            error = math.sqrt((1 + (r * r / 2 if name == "spearman" else 0)) / (count - 3))
            intervals[name] = (math.tanh(math.atanh(r) - _Z * error), math.tanh(math.atanh(r) + _Z * error))
    return Evaluation(count, values_of, intervals)


def evaluate_answers(predicted: Sequence[str], gold: Sequence[Sequence[str]]) -> Evaluation:
    """Judges answers by gold ones as SQuAD does (Rajpurkar et al., 2016 and 2018).

    As its evaluate-v2.0.py, but from 0 to 1: answers are compared without case, punctuation and articles, with the gold
    answer that is the nearest. Metrics: exact_match; f1, of the words that answer and gold answer have in common.

    Args:
      predicted: an answer to each question; "" says that there is none.
      gold: those of each question; none where it cannot be answered.

    Raises:
      InputError: no questions, or lengths that differ.
    """
    if len(predicted) != len(gold):
        raise InputError(f"{len(predicted)} predicted and {len(gold)} gold rows; each row needs one of both")
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
    """normalize_answer of evaluate-v2.0.py."""
    return re.sub(r"\b(a|an|the)\b", " ", answer.lower().translate(_NO_PUNCTUATION)).split()


def _overlap(words: list[str], others: list[str]) -> float:
    """compute_f1 of evaluate-v2.0.py."""
    if not words or not others:
        return float(words == others)
    common = sum((Counter(words) & Counter(others)).values())
    return 2 * common / (len(words) + len(others)) if common else 0.0


def _check_metrics(metrics: Sequence[str], known: tuple[str, ...]) -> None:
    wrong = [name for name in metrics if name not in known]
    if wrong or not metrics:
        raise InputError(f"no such metric here: {', '.join(wrong) or '(none given)'}; there are {', '.join(known)}")


def _check_shapes(arrays: dict[str, npt.NDArray[Any]]) -> None:
    for what, array in arrays.items():
        if array.ndim != 1:
            raise InputError(f"{what} must be one for each row, of shape [rows], got shape {list(array.shape)}")
    predicted, gold = (len(array) for array in arrays.values())
    if predicted != gold:
        raise InputError(f"{predicted} predicted and {gold} gold rows; each row needs one of both")


def _checked_count(count: int) -> int:
    if not count:
        raise InputError("no rows to judge: the file has none, or none with a gold label")
    return count


def _as_floats(values: npt.ArrayLike, what: str) -> npt.NDArray[np.float64]:
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{what} values must be numbers, one for each row") from None


def _positive(labels: tuple[str, ...]) -> int:
    """The class that the F1 of two is of: GLUE's is of "1", wherever in its order a head has that."""
    return labels.index("1") if "1" in labels else 1


def _class_scores(confusion: list[list[int]]) -> list[tuple[float, float, float]]:
    """Precision, recall and F1 of each class; NaN for 0 / 0."""
    scores = []
    for i, row in enumerate(confusion):
        hits, gold, predicted = row[i], sum(row), sum(other[i] for other in confusion)
        pairs = ((hits, predicted), (hits, gold), (2 * hits, predicted + gold))
        precision, recall, f1 = (above / below if below else math.nan for above, below in pairs)
        scores.append((precision, recall, f1))
    return scores


def _matthews(confusion: list[list[int]]) -> float:
    """R_K of Gorodkin (2004), in Python's integers: the products of a million rows overflow 64 bits."""
    gold = [sum(row) for row in confusion]
    predicted = [sum(column) for column in zip(*confusion, strict=True)]
    count, correct = sum(gold), sum(row[i] for i, row in enumerate(confusion))
    covariance = correct * count - sum(g * p for g, p in zip(gold, predicted, strict=True))
    variances = (count**2 - sum(g * g for g in gold)) * (count**2 - sum(p * p for p in predicted))
    return covariance / math.sqrt(variances) if variances else 0.0


def _wilson(correct: int, count: int) -> tuple[float, float]:
    """Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927), 209-212."""
    from scipy import stats

    interval = stats.binomtest(correct, count).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def _correlation(name: str, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> float:
    """Pearson's or Spearman's; NaN where x or y is constant."""
    from scipy import stats

    if any(values.min() == values.max() for values in (x, y)):
        return math.nan
    if name == "spearman":
        return float(stats.spearmanr(x, y).statistic)
    return float(stats.pearsonr(*(values / np.abs(values).max() for values in (x, y))).statistic)  # no sum overflows


def _aligned(rows: list[list[str]]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
