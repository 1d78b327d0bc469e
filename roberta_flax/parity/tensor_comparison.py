"""Compare two values of a tensor element by element: how far apart they are, and how far rounding may move them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.special

from roberta_flax.metrics import entities
from roberta_flax.parity.inputs import ParityBatch
from roberta_flax.parity.reference import SIMULATED_RUNS, Deviation
from roberta_flax.parity.report import DecisionResult, Element, TensorResult, TokenError
from roberta_flax.parity.rounding import significand_bits
from roberta_flax.parity.tensor_names import GRADIENTS
from roberta_flax.tasks.answers import EXCLUDED, likeliest_spans
from roberta_flax.tasks.entities import label_groups

MIN_TOLERANCE_FACTOR = 3.0  # a tolerance is at least this many times the largest simulated deviation
_FALSE_ALARM_PROBABILITY = 1e-6  # with which normal errors exceed a tolerance
TOP_TOKENS = 5  # the most likely tokens at a position, which are compared as a set
_LOWEST_EXPONENT = -60  # of the histogram, which counts smaller errors there
_MAX_ANSWER_LENGTH = 15  # tokens, the default of pipeline("question-answering")


def tolerances(deviation: Deviation) -> tuple[float, float]:
    """Returns the tolerances of the largest error of a tensor and of the root mean square of its errors."""
    factor = tolerance_factor(deviation.count)
    rms = math.sqrt(deviation.sum_of_squares / max(deviation.count, 1))
    return factor * deviation.largest, factor * rms


@lru_cache(maxsize=1024)
def tolerance_factor(count: int) -> float:
    """Returns the ratio of a tolerance to the largest of `count` deviations from SIMULATED_RUNS runs.

    With this factor, normal errors of one size from another run exceed the tolerance with a probability of
    _FALSE_ALARM_PROBABILITY: the factor is 7.7 for nine deviations and 3.0 for 46. It stays at MIN_TOLERANCE_FACTOR for
    more, because errors are not quite normal.
    """
    x = np.linspace(0, 8, 2001)
    largest_below = np.array([math.erf(value / math.sqrt(2)) for value in x]) ** max(count, 1)

    def false_alarms_too_likely(factor: float) -> bool:
        one_above = np.array([math.erfc(factor * value / math.sqrt(2)) for value in (x[1:] + x[:-1]) / 2])
        return count / SIMULATED_RUNS * float(np.diff(largest_below) @ one_above) > _FALSE_ALARM_PROBABILITY

    low, high = MIN_TOLERANCE_FACTOR, 1024.0
    if not false_alarms_too_likely(low):
        return low
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if false_alarms_too_likely(middle) else (low, middle)
    return high


@dataclass(frozen=True)
class ValuePair:
    """Both values of a tensor in one batch.

    Attributes:
      name: the name of the tensor.
      number: the number of the batch, from 0.
      batch: the inputs.
      actual: the value in the Flax model.
      reference: the value in the reference, of the same shape.
      deviation: the deviation of the reference's runs with simulated rounding.
      compared: which elements to compare, bool; broadcasts from the left.
    """

    name: str
    number: int
    batch: ParityBatch
    actual: npt.NDArray[Any]
    reference: npt.NDArray[Any]
    deviation: Deviation
    compared: npt.NDArray[np.bool_]

    def element(self, index: tuple[int, ...]) -> Element:
        """Returns an element, with the row and the token that it belongs to."""
        row = token = None
        if not (self.name.startswith(GRADIENTS) or self.name.endswith(".loss")):
            row = index[0]
            last_part = self.name.rpartition(".")[2]
            if self.name.startswith("lm_head."):
                token = int(self.batch.positions[row, index[1]])
            elif last_part in ("scores", "weights"):
                token = index[2]
            elif self.reference.ndim == 3:
                token = index[1]
        actual, reference = float(self.actual[index]), float(self.reference[index])
        error = abs(actual - reference) if math.isfinite(actual) else math.inf
        token_id = None if row is None or token is None else int(self.batch.tokens[row, token])
        return Element(self.number, row, token, token_id, None, index, reference, actual, error)


@dataclass
class TensorStatistics:
    """Accumulates the errors of one tensor over all batches."""

    name: str
    dtype: str
    count: int = 0
    sum_abs: float = 0.0
    sum_squares: float = 0.0
    reference_sum_squares: float = 0.0
    actual_sum_squares: float = 0.0
    dot_product: float = 0.0
    sum_ulps: float = 0.0
    max_ulps: float = 0.0
    reference_max: float = 0.0
    not_finite: int = 0
    tolerance_ratio: float = -math.inf  # the largest of any batch
    max_abs_tolerance: float = 0.0
    rms_tolerance: float = 0.0
    worst: Element | None = None
    worst_by_ratio: Element | None = None
    histogram: dict[int, int] = field(default_factory=dict)

    def add(self, pair: ValuePair) -> npt.NDArray[np.float64]:
        """Adds a batch. Returns the absolute errors in the shape of the tensor, zero for elements not compared."""
        actual, reference = pair.actual.astype(np.float64), pair.reference.astype(np.float64)
        compared = np.broadcast_to(_append_axes(pair.compared, reference.ndim), reference.shape)
        errors = np.where(compared, np.abs(actual - reference), 0.0)
        not_finite = compared & ~np.isfinite(actual)
        errors[not_finite] = np.inf
        self.not_finite += int(not_finite.sum())
        self._add_elements(actual[compared], reference[compared], errors[compared])

        index = tuple(int(i) for i in np.unravel_index(int(errors.argmax()), errors.shape))
        self._check_tolerances(pair.element(index), errors[compared], pair.deviation)
        return errors

    def result(self) -> TensorResult:
        """Returns the result for the report."""
        norms = math.sqrt(self.actual_sum_squares * self.reference_sum_squares)
        return TensorResult(
            name=self.name,
            count=self.count,
            max_abs=self.worst.error if self.worst else 0.0,
            mean_abs=self.sum_abs / max(self.count, 1),
            rms=math.sqrt(self.sum_squares / max(self.count, 1)),
            relative=_ratio(math.sqrt(self.sum_squares), math.sqrt(self.reference_sum_squares)),
            max_ulps=self.max_ulps,
            mean_ulps=self.sum_ulps / max(self.count, 1),
            cosine=self.dot_product / norms if norms else 1.0,
            reference_max=self.reference_max,
            not_finite=self.not_finite,
            max_abs_tolerance=self.max_abs_tolerance,
            rms_tolerance=self.rms_tolerance,
            tolerance_ratio=self.tolerance_ratio,
            passed=self.tolerance_ratio <= 1.0,
            worst=self.worst,
            worst_by_ratio=self.worst_by_ratio,
            histogram=dict(sorted(self.histogram.items())),
        )

    def _add_elements(
        self, actual: npt.NDArray[np.float64], reference: npt.NDArray[np.float64], errors: npt.NDArray[np.float64]
    ) -> None:
        """Adds the compared elements of a batch, each array of shape [count]."""
        magnitudes = np.abs(reference)
        if reference.size:
            magnitudes = np.maximum(magnitudes, np.sqrt(np.mean(np.square(reference))))
        ulps = errors / _spacing(magnitudes, self.dtype)
        self.count += errors.size
        self.sum_abs += float(errors.sum())
        self.sum_squares += float(np.square(errors).sum())
        self.reference_sum_squares += float(np.square(reference).sum())
        self.actual_sum_squares += float(np.square(actual).sum())
        self.dot_product += float((actual * reference).sum())
        self.sum_ulps += float(ulps.sum())
        self.max_ulps = max(self.max_ulps, float(ulps.max(initial=0.0)))
        self.reference_max = max(self.reference_max, float(np.abs(reference).max(initial=0.0)))
        self._add_to_histogram(errors)

    def _add_to_histogram(self, errors: npt.NDArray[np.float64]) -> None:
        with np.errstate(divide="ignore"):
            exponents = np.floor(np.log2(errors[np.isfinite(errors)]))
        exponents = np.maximum(exponents, _LOWEST_EXPONENT).astype(int)
        for exponent, count in zip(*np.unique(exponents, return_counts=True), strict=True):
            self.histogram[int(exponent)] = self.histogram.get(int(exponent), 0) + int(count)

    def _check_tolerances(self, worst: Element, errors: npt.NDArray[np.float64], deviation: Deviation) -> None:
        """Updates the tolerances, their ratio and the worst elements.

        Args:
          worst: the element of the batch with the largest error.
          errors: the errors of the compared elements of the batch, [count].
          deviation: the deviation of the simulated runs on the batch.
        """
        max_abs = float(errors.max(initial=0.0))
        rms = math.sqrt(float(np.square(errors).sum()) / max(errors.size, 1))
        max_abs_tolerance, rms_tolerance = tolerances(deviation)
        self.max_abs_tolerance = max(self.max_abs_tolerance, max_abs_tolerance)
        self.rms_tolerance = max(self.rms_tolerance, rms_tolerance)
        if self.worst is None or max_abs > self.worst.error:
            self.worst = worst
        ratio = max(_ratio(max_abs, max_abs_tolerance), _ratio(rms, rms_tolerance))
        if ratio > self.tolerance_ratio:
            self.tolerance_ratio, self.worst_by_ratio = ratio, worst


@dataclass
class DecisionStatistics:
    """Accumulates the decisions of logits over all batches: the largest, or the TOP_TOKENS largest of the LM head."""

    tensor: str
    count: int = 0
    agreed: int = 0
    ties: int = 0
    smallest_margin: float = math.inf
    tie_margin: float = 0.0
    disagreements: list[Element] = field(default_factory=list)

    @property
    def num_chosen(self) -> int:
        """How many of the logits a decision chooses."""
        return TOP_TOKENS if self.tensor.startswith("lm_head.") else 1

    @property
    def decision(self) -> str:
        """What is decided, in the report."""
        return "argmax" if self.num_chosen == 1 else f"top{TOP_TOKENS}"

    def margin_of_ties(self, pair: ValuePair) -> float:
        """How much a margin may shrink: by twice the tolerance, since each of its two logits may move by it."""
        tie_margin = 2 * tolerances(pair.deviation)[0]
        self.tie_margin = max(self.tie_margin, tie_margin)
        return tie_margin

    def add(self, pair: ValuePair) -> None:
        """Adds a batch."""
        tie_margin = self.margin_of_ties(pair)
        for index in zip(*np.nonzero(pair.compared), strict=True):
            expected_logits, logits = pair.reference[index].astype(np.float64), pair.actual[index].astype(np.float64)
            if expected_logits.size <= self.num_chosen:
                continue
            order = np.argsort(-expected_logits, kind="stable")
            margin = float(expected_logits[order[self.num_chosen - 1]] - expected_logits[order[self.num_chosen]])
            agree = set(order[: self.num_chosen]) == set(np.argsort(-logits, kind="stable")[: self.num_chosen])
            self.count += 1
            self.agreed += agree
            self.smallest_margin = min(self.smallest_margin, margin)
            if not agree and margin <= tie_margin:
                self.ties += 1
            elif not agree:
                most_likely = (*map(int, index), int(order[0]))
                self.disagreements.append(pair.element(most_likely))

    def result(self) -> DecisionResult:
        """Returns the result for the report."""
        return DecisionResult(
            tensor=self.tensor,
            decision=self.decision,
            count=self.count,
            agreed=self.agreed,
            ties=self.ties,
            smallest_margin=self.smallest_margin,
            tie_margin=self.tie_margin,
            passed=self.agreed + self.ties == self.count,
            disagreements=tuple(self.disagreements[:TOP_TOKENS]),
        )


@dataclass
class EntityStatistics(DecisionStatistics):
    """Accumulates the entities that a token head finds in each row: their tokens and types.

    Those of the reference follow from its labels as CoNLL-2003 has it (metrics.entities), those of the Flax model as
    its users get them (tasks.entities).
    """

    labels: tuple[str, ...] = ()

    @property
    def decision(self) -> str:
        return "entities"

    def add(self, pair: ValuePair) -> None:
        """Adds a batch. Entities differ by a tie if all labels that differ do."""
        tie_margin = self.margin_of_ties(pair)
        for row in range(len(pair.reference)):
            tokens = np.flatnonzero(pair.compared[row])
            expected_logits, logits = pair.reference[row, tokens], pair.actual[row, tokens]
            classes, actual_classes = expected_logits.argmax(-1), logits.argmax(-1)
            agree = self._expected(classes) == self._found(actual_classes)
            ordered = np.sort(expected_logits, axis=-1)
            margins = (ordered[:, -1] - ordered[:, -2]).astype(np.float64)
            differing = np.flatnonzero(classes != actual_classes)
            self.count += 1
            self.agreed += agree
            self.smallest_margin = min(self.smallest_margin, float(margins.min(initial=math.inf)))
            if not agree and differing.size and margins[differing].max() <= tie_margin:
                self.ties += 1
            elif not agree:
                token = tokens[differing[margins[differing].argmax()]] if differing.size else tokens[0]
                self.disagreements.append(pair.element((row, int(token), int(pair.reference[row, token].argmax()))))

    def _expected(self, classes: npt.NDArray[Any]) -> set[tuple[str, int, int]]:
        return entities([self.labels[i] for i in classes])

    def _found(self, classes: npt.NDArray[Any]) -> set[tuple[str, int, int]]:
        labels = [self.labels[i] for i in classes]
        groups = [(labels[group.start], group) for group in label_groups(labels)]
        return {(label.split("-", 1)[-1], group.start, group.stop) for label, group in groups if label != "O"}


@dataclass
class AnswerStatistics(DecisionStatistics):
    """Accumulates the likeliest answer in each row: the tokens from its start to its end, but never the first token.

    The reference's is found among all spans by the sum of their two logits, the Flax model's as its users get it
    (tasks.answers).
    """

    @property
    def decision(self) -> str:
        return "answer"

    def add(self, pair: ValuePair) -> None:
        """Adds a batch. Each of the four logits of two answers may move by the tolerance."""
        tie_margin = 2 * self.margin_of_ties(pair)
        self.tie_margin = max(self.tie_margin, tie_margin)
        for row in range(len(pair.reference)):
            allowed = pair.compared[row] & (np.arange(pair.compared.shape[1]) > 0)
            if not allowed.any():
                continue
            sums = _sums_of_answers(pair.reference[row].astype(np.float64), allowed)
            best = np.unravel_index(int(sums.argmax()), sums.shape)
            found = self._found(pair.actual[row], allowed)
            agree = (int(best[0]), int(best[1])) == found
            margin = math.inf if found is None else float(sums[best] - sums[found])
            others = np.delete(sums.ravel(), int(sums.argmax()))
            self.count += 1
            self.agreed += agree
            self.smallest_margin = min(self.smallest_margin, float(sums[best] - others.max(initial=-math.inf)))
            if not agree and margin <= tie_margin:
                self.ties += 1
            elif not agree:
                self.disagreements.append(pair.element((row, int(best[0]), 0)))

    def _found(self, logits: npt.NDArray[Any], allowed: npt.NDArray[np.bool_]) -> tuple[int, int] | None:
        kept = np.where(allowed[:, None], logits.astype(np.float64), EXCLUDED)
        starts, ends = scipy.special.softmax(kept, axis=0).T
        spans = likeliest_spans(starts, ends, allowed, 1, _MAX_ANSWER_LENGTH)  # none where logits are not finite
        return spans[0][:2] if spans else None


def _sums_of_answers(logits: npt.NDArray[np.float64], allowed: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """The sum of the logits of each start and each end, [time, time]; -inf where they are no answer."""
    length = np.arange(len(logits))[None, :] - np.arange(len(logits))[:, None]
    is_answer = allowed[:, None] & allowed[None, :] & (length >= 0) & (length < _MAX_ANSWER_LENGTH)
    return np.where(is_answer, logits[:, None, 0] + logits[None, :, 1], -np.inf)


def worst_tokens(pair: ValuePair, errors: npt.NDArray[np.float64], count: int) -> list[TokenError]:
    """Returns the `count` tokens with the largest errors in their features, worst first.

    Args:
      pair: both values of the features in a batch.
      errors: their absolute errors, [batch, time, hidden].
      count: the number of tokens; tokens without an error are left out.
    """
    tokens = pair.batch.tokens
    token_errors = errors.max(axis=-1)
    order = np.argsort(-token_errors, axis=None, kind="stable")[:count]
    positions = (np.unravel_index(int(flat_index), token_errors.shape) for flat_index in order)
    return [
        TokenError(pair.number, int(row), int(token), int(tokens[row, token]), None, float(token_errors[row, token]))
        for row, token in positions
        if token_errors[row, token] > 0
    ]


def _spacing(values: npt.NDArray[np.float64], dtype: str) -> npt.NDArray[np.float64]:
    """Returns the distance between neighboring numbers of a dtype at these values."""
    smallest_exponent = {"float64": -1074, "float16": -24}.get(dtype, -149)  # of a subnormal number
    with np.errstate(divide="ignore"):
        exponent = np.frexp(values)[1]  # values are below 2^exponent, and at least half of it
    exponent = np.where(values == 0, smallest_exponent, exponent - significand_bits(dtype))
    return np.ldexp(1.0, np.maximum(exponent, smallest_exponent))


def _ratio(error: float, tolerance: float) -> float:
    """Returns error / tolerance: 0 without an error, infinity for any error if the tolerance is zero."""
    if error == 0:
        return 0.0
    return math.inf if tolerance == 0 or not math.isfinite(error) else error / tolerance


def _append_axes(mask: npt.NDArray[np.bool_], ndim: int) -> npt.NDArray[np.bool_]:
    """Returns the mask with axes of size 1 appended, so that it broadcasts from the left."""
    return mask.reshape(mask.shape + (1,) * (ndim - mask.ndim))
