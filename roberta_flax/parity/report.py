"""What a comparison found, as data, and as report.json: documented in docs/parity.md, stable."""

from __future__ import annotations

import dataclasses
import json
import os
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roberta_flax.errors import InputError
from roberta_flax.files import reading

SCHEMA = 1  # changes when a field goes or changes its meaning; new fields do not change it


@dataclass(frozen=True)
class Place:
    """One number of a point.

    Attributes:
      batch, row: which, from 0; row None of what no row has of its own (a loss, a gradient).
      token: its position in the row; None where the value is not of one token. Of attention, the query's.
      token_id, text: that token's, where there is one.
      index: the number's index in the value.
      reference, ours: the two values; ours may be NaN or infinite.
      error: their distance.
    """

    batch: int
    row: int | None
    token: int | None
    token_id: int | None
    text: str | None
    index: tuple[int, ...]
    reference: float
    ours: float
    error: float


@dataclass(frozen=True)
class PointResult:
    """A point over all batches.

    Attributes:
      point: its name (roberta_flax.parity.points).
      count: numbers compared.
      max_abs, mean_abs, rms: of the absolute errors.
      relative: the errors' norm over the reference's.
      max_ulps, mean_ulps: errors in units of the last place, in the computing dtype, of the reference's number, or of
        the root mean square of all where that is larger: what is near zero is a sum whose terms cancelled.
      cosine: of the two values as vectors.
      reference_max: the reference's largest number.
      not_finite: how many of ours are NaN or infinite.
      bound_max, bound_rms: what rounding explains, of max_abs and rms; the largest batch's.
      of_bound: the largest part of its bound that a batch's max_abs or rms takes up.
      passed: whether of_bound is at most 1.
      worst: the number with the largest error.
      furthest_over: that of the batch which takes up most of its bound.
      histogram: how many errors are from 2^exponent to under twice that, by exponent.
    """

    point: str
    count: int
    max_abs: float
    mean_abs: float
    rms: float
    relative: float
    max_ulps: float
    mean_ulps: float
    cosine: float
    reference_max: float
    not_finite: int
    bound_max: float
    bound_rms: float
    of_bound: float
    passed: bool
    worst: Place | None
    furthest_over: Place | None
    histogram: Mapping[int, int]


@dataclass(frozen=True)
class DecisionResult:
    """What is decided by a point: a head's class of each row, or the five likeliest tokens at each position.

    Attributes:
      point: which logits decide.
      decision: "argmax" or "top5".
      count: decisions.
      agreed: how many are the same.
      ties: how many of the others the reference itself decides by less than rounding may change.
      smallest_margin: the smallest distance between the last number that is chosen and the first that is not.
      flips_at: the largest change of a margin that rounding explains: twice the logits' bound.
      passed: whether all that do not agree are ties.
      places: the first of those that do not agree and are no ties.
    """

    point: str
    decision: str
    count: int
    agreed: int
    ties: int
    smallest_margin: float
    flips_at: float
    passed: bool
    places: tuple[Place, ...]


@dataclass(frozen=True)
class TokenError:
    """A token whose features are far off.

    Attributes:
      batch, row, token, token_id, text: which.
      error: its largest error.
    """

    batch: int
    row: int
    token: int
    token_id: int
    text: str | None
    error: float


@dataclass(frozen=True)
class Run:
    """The Flax side in one dtype.

    Attributes:
      dtype, precision, backend, attention: of the computation.
      points: in the order of computation.
      not_compared: points that one of the two sides does not show.
      decisions: of the heads and the LM head.
      diverges_at: the first point that exceeds its bound; None where none does.
      worst_tokens: by their features, the worst first.
      passed: whether every point and every decision passes.
      seconds: that the Flax side took, compilation included.
    """

    dtype: str
    precision: str | None
    backend: str
    attention: str | None
    points: tuple[PointResult, ...]
    not_compared: tuple[str, ...]
    decisions: tuple[DecisionResult, ...]
    diverges_at: str | None
    worst_tokens: tuple[TokenError, ...]
    passed: bool
    seconds: float

    def point(self, name: str) -> PointResult:
        """The point called `name`; KeyError where it was not compared."""
        for each in self.points:
            if each.point == name:
                return each
        raise KeyError(name)


@dataclass(frozen=True)
class Report:
    """A comparison.

    Attributes:
      source: the model, as it was named.
      model: sizes: layers, hidden, heads, intermediate, vocabulary, parameters, head names.
      reference: name, version, and where its parameters came from.
      inputs: the rows' lengths, a list a batch; and whether they are the built-in ones.
      gradients: whether gradients were compared.
      runs: one a dtype.
      versions: of Python, JAX, Flax, numpy, this package; and "platform".
      passed: whether every run passes.
    """

    source: str
    model: Mapping[str, Any]
    reference: Mapping[str, str]
    inputs: Mapping[str, Any]
    gradients: bool
    runs: tuple[Run, ...]
    versions: Mapping[str, str]
    passed: bool

    def to_json(self) -> str:
        """report.json: these fields by their names, and "schema". NaN and infinities are strings."""
        return json.dumps({"schema": SCHEMA, **_plain(dataclasses.asdict(self))}, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Report:
        """What to_json wrote. Fields of later versions are left out.

        Raises:
          InputError: it is no report, or of another schema.
        """
        try:
            given = json.loads(text)
            if given["schema"] != SCHEMA:
                raise InputError(f"it is a report of schema {given['schema']!r}; this version reads {SCHEMA}")
            report: Report = _typed(cls, given)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"it is no report of a comparison ({type(error).__name__}: {error})") from None
        return report

    def run(self, dtype: str) -> Run:
        """The run in a dtype; KeyError where there is none."""
        for each in self.runs:
            if each.dtype == dtype:
                return each
        raise KeyError(dtype)


def read_report(path: str | os.PathLike[str]) -> Report:
    """The report in a report.json; InputError where it cannot be read or is none."""
    with reading(path, InputError):
        content = Path(path).read_bytes()
    try:
        return Report.from_json(content.decode())
    except ValueError as error:  # InputError too; or not UTF-8
        raise InputError(f"{path}: {error}") from None


def failures(run: Run) -> Sequence[PointResult]:
    """The points that exceed their bounds, in the order of computation."""
    return [point for point in run.points if not point.passed]


def divergence(run: Run) -> str | None:
    """Where a run diverges, in one line: the first point over its bound, else a decision; None where it does not."""
    for point in failures(run):
        place = point.furthest_over
        where = f" at {described(place)}, {values(place)}" if place else ""
        return f"{run.dtype} diverges at {point.point}{where}, {point.of_bound:.3g} times its bound"
    for decision in run.decisions:
        if not decision.passed:
            count = decision.count - decision.agreed - decision.ties
            where = f"; the first at {described(decision.places[0])}" if decision.places else ""
            what = f"{count} of {decision.count} decisions ({decision.decision}) of {decision.point} differ"
            return f"{run.dtype}: {what}{where}"
    return None


def described(place: Place) -> str:
    """Where a number is: batch, row, token, index. A token's text is quoted as Python quotes it, on one line."""
    parts = [f"batch {place.batch}"]
    if place.row is not None:
        parts.append(f"row {place.row}")
    if place.token is not None:
        parts.append(f"token {place.token} (id {place.token_id}, {place.text!r})")
    return ", ".join([*parts, f"index [{', '.join(map(str, place.index))}]"])


def values(place: Place) -> str:
    """Both values, and how far apart they are."""
    return f"torch {place.reference:.9g}, Flax {place.ours:.9g}, error {place.error:.3g}"


def _typed(hint: Any, value: Any) -> Any:
    """A value of JSON as the type that it was of."""
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return hint(**{name: _typed(hints[name], value[name]) for name in hints})  # type: ignore[operator]
    if origin is types.UnionType:
        return None if value is None else _typed(arguments[0], value)
    if origin is tuple:
        return tuple(_typed(arguments[0], each) for each in value)
    if origin is Mapping:
        return {_typed(arguments[0], key): _typed(arguments[1], each) for key, each in value.items()}
    if hint in (int, float):  # "inf" and "nan" are written as strings
        return hint(value)
    if hint is not Any and not isinstance(value, hint):
        raise TypeError(f"expected {hint.__name__}, got {value!r:.40}")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and value - value != 0:  # NaN or infinite, for which JSON has no number
        return str(value)
    return value
