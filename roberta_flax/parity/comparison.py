"""Two values of a tensor, number by number: how far they are apart, and how far rounding may bring them apart."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from roberta_flax.parity.inputs import ParityBatch
from roberta_flax.parity.points import GRADIENTS
from roberta_flax.parity.reference import SAMPLES, Spread
from roberta_flax.parity.report import DecisionResult, Place, PointResult, TokenError
from roberta_flax.parity.rounding import spacing_exponent

MARGIN = 3.0  # a bound is at least this many times the largest deviation of the runs with simulated rounding
_PROBABILITY = 1e-6  # with which errors that are normal exceed it
TOP = 5  # tokens that a mask's answer is about
_LOWEST_EXPONENT = -60  # of the histogram; smaller differences are counted there


def bounds(spread: Spread) -> tuple[float, float]:
    """The tolerances of a value's largest error and of its errors' root mean square."""
    factor = margin(spread.count)
    return factor * spread.largest, factor * math.sqrt(spread.squares / max(spread.count, 1))


@lru_cache(maxsize=1024)
def margin(count: int) -> float:
    """How many times the largest of `count` errors a bound is, the errors of SAMPLES computations.

    That many of another computation's errors, of normal ones of one size, exceed it with a probability of _PROBABILITY:
    7.7 times the largest of nine, 3.0 times that of 46. For more it stays MARGIN: errors are not quite normal.
    """
    x = np.linspace(0, 8, 2001)
    under = np.array([math.erf(each / math.sqrt(2)) for each in x]) ** max(count, 1)

    def is_exceeded(factor: float) -> bool:
        by_one = np.array([math.erfc(factor * each / math.sqrt(2)) for each in (x[1:] + x[:-1]) / 2])
        return count / SAMPLES * float(np.diff(under) @ by_one) > _PROBABILITY

    low, high = MARGIN, 1024.0
    if not is_exceeded(low):
        return low
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if is_exceeded(middle) else (low, middle)
    return high


@dataclass(frozen=True)
class ValuePair:
    """Both sides' values of a point in one batch.

    Attributes:
      point: its name.
      number, batch: which batch, from 0, and its inputs.
      ours, reference: the values, of one shape.
      spread: of the reference's computations with simulated rounding.
      counted: which of the numbers are compared; to be broadcast from the left.
    """

    point: str
    number: int
    batch: ParityBatch
    ours: npt.NDArray[Any]
    reference: npt.NDArray[Any]
    spread: Spread
    counted: npt.NDArray[np.bool_]

    def place(self, index: tuple[int, ...]) -> Place:
        """One of the numbers, and the row and token that it belongs to."""
        row = token = None
        if not (self.point.startswith(GRADIENTS) or self.point.endswith(".loss")):
            row = index[0]
            part = self.point.rpartition(".")[2]
            if self.point.startswith("lm_head."):
                token = int(self.batch.positions[row, index[1]])
            elif part in ("scores", "weights"):
                token = index[2]
            elif self.reference.ndim == 3:
                token = index[1]
        ours, reference = float(self.ours[index]), float(self.reference[index])
        error = abs(ours - reference) if math.isfinite(ours) else math.inf
        token_id = None if row is None or token is None else int(self.batch.tokens[row, token])
        return Place(self.number, row, token, token_id, None, index, reference, ours, error)


@dataclass
class PointSums:
    """A point over all batches, as far as they have been seen."""

    point: str
    dtype: str
    count: int = 0
    absolute: float = 0.0
    squares: float = 0.0
    reference_squares: float = 0.0
    our_squares: float = 0.0
    products: float = 0.0
    ulps: float = 0.0
    largest_ulps: float = 0.0
    largest_reference: float = 0.0
    not_finite: int = 0
    over: float = -math.inf  # the largest part of a bound that an error takes up; 1 is all of it
    bound_max: float = 0.0
    bound_rms: float = 0.0
    worst: Place | None = None
    worst_over: Place | None = None
    histogram: dict[int, int] = field(default_factory=dict)

    def add(self, pair: ValuePair) -> npt.NDArray[np.float64]:
        """Takes a batch in; returns the absolute errors, zero where nothing is compared, in the value's shape."""
        ours, reference = pair.ours.astype(np.float64), pair.reference.astype(np.float64)
        chosen = np.broadcast_to(_from_the_left(pair.counted, reference.ndim), reference.shape)
        errors = np.where(chosen, np.abs(ours - reference), 0.0)
        bad = chosen & ~np.isfinite(ours)
        errors[bad] = np.inf
        self.not_finite += int(bad.sum())
        a, b, e = ours[chosen], reference[chosen], errors[chosen]
        self.count += e.size
        ulps = e / _spacing(np.maximum(np.abs(b), np.sqrt(np.mean(np.square(b)))) if b.size else b, self.dtype)
        largest = float(e.max(initial=0.0))
        squares = float(np.square(e).sum())
        at = tuple(int(i) for i in np.unravel_index(int(errors.argmax()), errors.shape))
        place = pair.place(at)
        if self.worst is None or largest > self.worst.error:
            self.worst = place
        self.absolute += float(e.sum())
        self.squares += squares
        self.reference_squares += float(np.square(b).sum())
        self.our_squares += float(np.square(a).sum())
        self.products += float((a * b).sum())
        self.ulps += float(ulps.sum())
        self.largest_ulps = max(self.largest_ulps, float(ulps.max(initial=0.0)))
        self.largest_reference = max(self.largest_reference, float(np.abs(b).max(initial=0.0)))
        bound_max, bound_rms = bounds(pair.spread)
        self.bound_max, self.bound_rms = max(self.bound_max, bound_max), max(self.bound_rms, bound_rms)
        over = max(_part(largest, bound_max), _part(math.sqrt(squares / max(e.size, 1)), bound_rms))
        if over > self.over:
            self.over, self.worst_over = over, place
        self._count(e)
        return errors

    def result(self) -> PointResult:
        """The point's row of the report."""
        root = math.sqrt(self.our_squares * self.reference_squares)
        return PointResult(
            point=self.point,
            count=self.count,
            max_abs=self.worst.error if self.worst else 0.0,
            mean_abs=self.absolute / max(self.count, 1),
            rms=math.sqrt(self.squares / max(self.count, 1)),
            relative=_part(math.sqrt(self.squares), math.sqrt(self.reference_squares)),
            max_ulps=self.largest_ulps,
            mean_ulps=self.ulps / max(self.count, 1),
            cosine=self.products / root if root else 1.0,
            reference_max=self.largest_reference,
            not_finite=self.not_finite,
            bound_max=self.bound_max,
            bound_rms=self.bound_rms,
            of_bound=self.over,
            passed=self.over <= 1.0,
            worst=self.worst,
            furthest_over=self.worst_over,
            histogram=dict(sorted(self.histogram.items())),
        )

    def _count(self, errors: npt.NDArray[np.float64]) -> None:
        with np.errstate(divide="ignore"):
            exponents = np.floor(np.log2(errors[np.isfinite(errors)]))
        exponents = np.maximum(exponents, _LOWEST_EXPONENT).astype(int)
        for exponent, count in zip(*np.unique(exponents, return_counts=True), strict=True):
            self.histogram[int(exponent)] = self.histogram.get(int(exponent), 0) + int(count)


@dataclass
class Decisions:
    """What is decided by a point's logits over all batches: the largest, or the TOP largest of the LM head's."""

    point: str
    count: int = 0
    agreed: int = 0
    ties: int = 0
    smallest_margin: float = math.inf
    flips_at: float = 0.0
    places: list[Place] = field(default_factory=list)

    @property
    def taken(self) -> int:
        """How many of the logits are taken."""
        return TOP if self.point.startswith("lm_head.") else 1

    def add(self, pair: ValuePair) -> None:
        """Takes a batch in. Two logits may each move by the bound, so that a margin may shrink by twice that."""
        flips_at = 2 * bounds(pair.spread)[0]
        self.flips_at = max(self.flips_at, flips_at)
        for index in zip(*np.nonzero(pair.counted), strict=True):
            theirs, mine = pair.reference[index].astype(np.float64), pair.ours[index].astype(np.float64)
            if theirs.size <= self.taken:
                continue
            order = np.argsort(-theirs, kind="stable")
            margin = float(theirs[order[self.taken - 1]] - theirs[order[self.taken]])
            same = set(order[: self.taken]) == set(np.argsort(-mine, kind="stable")[: self.taken])
            self.count += 1
            self.agreed += same
            self.smallest_margin = min(self.smallest_margin, margin)
            if not same and margin <= flips_at:
                self.ties += 1
            elif not same:
                first = (*map(int, index), int(order[0]))
                self.places.append(pair.place(first))

    def result(self) -> DecisionResult:
        """The decisions' row of the report."""
        return DecisionResult(
            point=self.point,
            decision="argmax" if self.taken == 1 else f"top{TOP}",
            count=self.count,
            agreed=self.agreed,
            ties=self.ties,
            smallest_margin=self.smallest_margin,
            flips_at=self.flips_at,
            passed=self.agreed + self.ties == self.count,
            places=tuple(self.places[:TOP]),
        )


def worst_tokens(pair: ValuePair, errors: npt.NDArray[np.float64], count: int) -> list[TokenError]:
    """The tokens whose features, of which `errors` are the errors, [batch, time, hidden], are furthest off."""
    number, tokens = pair.number, pair.batch.tokens
    of_tokens = errors.max(axis=-1)
    order = np.argsort(-of_tokens, axis=None, kind="stable")[:count]
    places = (np.unravel_index(int(place), of_tokens.shape) for place in order)
    return [
        TokenError(number, int(row), int(token), int(tokens[row, token]), None, float(of_tokens[row, token]))
        for row, token in places
        if of_tokens[row, token] > 0
    ]


def _spacing(values: npt.NDArray[np.float64], dtype: str) -> npt.NDArray[np.float64]:
    """The distance between neighboring numbers of a dtype at these values."""
    smallest = {"float64": -1074, "float16": -24}.get(dtype, -149)
    with np.errstate(divide="ignore"):
        exponent = np.frexp(values)[1]  # values are below 2^exponent, and at least half of it
    return np.ldexp(1.0, np.maximum(np.where(values == 0, smallest, exponent - spacing_exponent(dtype)), smallest))


def _part(error: float, bound: float) -> float:
    """How much of a bound an error is."""
    if error == 0:
        return 0.0
    return math.inf if bound == 0 or not math.isfinite(error) else error / bound


def _from_the_left(mask: npt.NDArray[np.bool_], dimensions: int) -> npt.NDArray[np.bool_]:
    return mask.reshape(mask.shape + (1,) * (dimensions - mask.ndim))
