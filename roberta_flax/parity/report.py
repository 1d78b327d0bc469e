"""The result of a comparison, as dataclasses and as report.json. docs/parity.md documents the format."""

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

SCHEMA = 2  # raised when a field is removed, renamed or changes its meaning, but not when one is added


@dataclass(frozen=True)
class Element:
    """One number of a tensor: its position, and its value on both sides.

    Attributes:
      batch, row: the batch and the row in it, counted from 0. The row is None for a tensor that belongs to no single
        row (a loss or a gradient).
      token: the position in the row. None if the element does not belong to a single token. For attention scores and
        weights, the position of the query.
      token_id, text: the id and the text of that token, if there is one.
      index: the index of the element in the tensor.
      reference: the value in the reference.
      actual: the value in the Flax model, which may be NaN or infinite.
      error: the absolute difference. Infinite if `actual` is not finite.
    """

    batch: int
    row: int | None
    token: int | None
    token_id: int | None
    text: str | None
    index: tuple[int, ...]
    reference: float
    actual: float
    error: float


@dataclass(frozen=True)
class TensorResult:
    """One tensor, compared over all batches.

    Attributes:
      name: the name of the tensor (roberta_flax.parity.tensor_names lists all names).
      count: number of elements compared.
      max_abs, mean_abs, rms: the largest absolute error, the mean, and the root mean square.
      relative: the norm of the errors over the norm of the reference.
      max_ulps, mean_ulps: errors in units in the last place of the compute dtype, at the reference's value or at the
        root mean square of the tensor, whichever is larger: a value near zero is often a sum whose terms canceled.
      cosine: the cosine similarity of both tensors as vectors.
      reference_max: the largest absolute value in the reference.
      not_finite: number of elements of the Flax model's tensor that are NaN or infinite.
      max_abs_tolerance, rms_tolerance: the tolerances of `max_abs` and `rms`: the largest of any batch.
      tolerance_ratio: the largest ratio, in any batch, of `max_abs` or `rms` to its tolerance.
      passed: whether `tolerance_ratio` is at most 1.
      worst: the element with the largest error.
      worst_by_ratio: the element with the largest error in the batch with the largest ratio.
      histogram: for each exponent, the number of errors from 2^exponent to just under twice that.
    """

    name: str
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
    max_abs_tolerance: float
    rms_tolerance: float
    tolerance_ratio: float
    passed: bool
    worst: Element | None
    worst_by_ratio: Element | None
    histogram: Mapping[int, int]


@dataclass(frozen=True)
class DecisionResult:
    """The decisions that logits make: the class that a head predicts, the entities or the answer that it finds in a
    row, or the five most likely tokens at a position.

    Attributes:
      tensor: the name of the logits.
      decision: "argmax", "entities", "answer" or "top5".
      count: number of decisions.
      agreed: number of decisions that are the same on both sides.
      ties: number of the others with a margin in the reference so small that rounding may change the decision.
      smallest_margin: the smallest margin in the reference. A margin is the difference between the last chosen logit
        and the first one not chosen; of an answer, the sums of two logits.
      tie_margin: the largest change of a margin that rounding explains: twice the tolerance of the logits, or four
        times for an answer.
      passed: whether all decisions that differ are ties.
      disagreements: the first decisions that differ and are not ties.
    """

    tensor: str
    decision: str
    count: int
    agreed: int
    ties: int
    smallest_margin: float
    tie_margin: float
    passed: bool
    disagreements: tuple[Element, ...]

    @property
    def differing(self) -> int:
        """Number of decisions that differ and are not ties."""
        return self.count - self.agreed - self.ties


@dataclass(frozen=True)
class TokenError:
    """A token with a large error in its features.

    Attributes:
      batch, row, token, token_id, text: the position, the id and the text of the token.
      error: the largest absolute error of its features.
    """

    batch: int
    row: int
    token: int
    token_id: int
    text: str | None
    error: float


@dataclass(frozen=True)
class Run:
    """The comparison of the Flax model in one dtype.

    Attributes:
      dtype, precision, backend, attention: how the Flax model computes.
      tensors: the compared tensors, in the order of computation.
      not_compared: names of the tensors that one of the two sides does not expose.
      decisions: the decisions of the classification heads and of the LM head.
      diverges_at: the name of the first tensor that exceeds its tolerance, or None.
      worst_tokens: the tokens with the largest feature errors, worst first.
      passed: whether every tensor and every decision passes.
      seconds: the time that the Flax model took, compilation included.
    """

    dtype: str
    precision: str | None
    backend: str
    attention: str | None
    tensors: tuple[TensorResult, ...]
    not_compared: tuple[str, ...]
    decisions: tuple[DecisionResult, ...]
    diverges_at: str | None
    worst_tokens: tuple[TokenError, ...]
    passed: bool
    seconds: float

    def tensor(self, name: str) -> TensorResult:
        """Returns the result of the tensor called `name`.

        Raises:
          KeyError: it was not compared.
        """
        for tensor in self.tensors:
            if tensor.name == name:
                return tensor
        raise KeyError(name)


@dataclass(frozen=True)
class Report:
    """A comparison of one model with the reference.

    Attributes:
      source: the model, as the caller named it.
      model: sizes of the model: layers, hidden, heads, intermediate, vocabulary, parameters, names of its heads.
      reference: name, version, and where its parameters came from.
      inputs: the lengths of the rows, one list for each batch, and whether the inputs are the built-in ones.
      gradients: whether gradients were compared.
      runs: one run for each dtype.
      versions: versions of Python, JAX, Flax, numpy and this package, and the platform.
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
        """Returns the text of report.json: these fields and "schema". NaN and infinities are written as strings."""
        return json.dumps({"schema": SCHEMA, **_to_plain(dataclasses.asdict(self))}, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Reads what `to_json` wrote. Ignores fields that a later version added.

        Raises:
          InputError: the text is not a report, or its schema is another one.
        """
        try:
            fields = json.loads(text)
            if fields["schema"] != SCHEMA:
                raise InputError(
                    f"the report has schema {fields['schema']!r}, but this version of roberta-flax reads schema "
                    f"{SCHEMA}; run the comparison again with this version"
                )
            report: Report = _from_plain(cls, fields)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"this is not a report of a comparison ({type(error).__name__}: {error})") from None
        return report

    def run(self, dtype: str) -> Run:
        """Returns the run in a dtype.

        Raises:
          KeyError: there is none.
        """
        for run in self.runs:
            if run.dtype == dtype:
                return run
        raise KeyError(dtype)


def read_report(path: str | os.PathLike[str]) -> Report:
    """Reads a report.json.

    Raises:
      InputError: the file cannot be read, or does not hold a report of this schema.
    """
    try:
        return Report.from_json(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:  # InputError is one; so is a file that is not UTF-8
        raise InputError(f"{path}: {error}") from None


def failures(run: Run) -> Sequence[TensorResult]:
    """Returns the tensors that exceed their tolerance, in the order of computation."""
    return [tensor for tensor in run.tensors if not tensor.passed]


def divergence(run: Run) -> str | None:
    """Describes in one line where a run diverges: the first tensor over its tolerance, or else the first decision."""
    for tensor in failures(run):
        element = tensor.worst_by_ratio
        where = f" at {describe_position(element)}, {describe_values(element)}" if element else ""
        return f"{run.dtype} diverges at {tensor.name}{where}, {tensor.tolerance_ratio:.3g} times its tolerance"
    for decision in run.decisions:
        if not decision.passed:
            where = f"; the first at {describe_position(decision.disagreements[0])}" if decision.disagreements else ""
            what = (
                f"{decision.differing} of {decision.count} decisions ({decision.decision}) of {decision.tensor} differ"
            )
            return f"{run.dtype}: {what}{where}"
    return None


def describe_position(element: Element) -> str:
    """Formats batch, row, token and index of an element on one line; the text of the token is quoted as in Python."""
    parts = [f"batch {element.batch}"]
    if element.row is not None:
        parts.append(f"row {element.row}")
    if element.token is not None:
        parts.append(f"token {element.token} (id {element.token_id}, {element.text!r})")
    return ", ".join([*parts, f"index [{', '.join(map(str, element.index))}]"])


def describe_values(element: Element) -> str:
    """Formats both values of an element and their difference."""
    return f"torch {element.reference:.9g}, Flax {element.actual:.9g}, error {element.error:.3g}"


def _from_plain(hint: Any, value: Any) -> Any:
    """Converts a value from JSON to the type that `hint` names."""
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return hint(**{name: _from_plain(hints[name], value[name]) for name in hints})  # type: ignore[operator]
    if origin is types.UnionType:
        return None if value is None else _from_plain(arguments[0], value)
    if origin is tuple:
        return tuple(_from_plain(arguments[0], item) for item in value)
    if origin is Mapping:
        return {_from_plain(arguments[0], key): _from_plain(arguments[1], item) for key, item in value.items()}
    if hint in (int, float):  # "inf" and "nan" are strings in JSON
        return hint(value)
    if hint is not Any and not isinstance(value, hint):
        raise TypeError(f"expected {hint.__name__}, got {value!r:.40}")
    return value


def _to_plain(value: Any) -> Any:
    """Converts a value to what JSON can hold: string keys, lists, and strings for NaN and infinities."""
    if isinstance(value, Mapping):
        return {str(key): _to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain(item) for item in value]
    if isinstance(value, float) and value - value != 0:  # NaN or infinite
        return str(value)
    return value
