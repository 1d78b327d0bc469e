"""Reads rows of texts, with or without labels: what sentence encoders and cross-encoders are trained and evaluated on.

A row is a pair (anchor and positive, two sentences, query and document) or a pair with negatives. Labels are numbers:
how similar a pair is, how relevant a document, or what a teacher scored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from roberta_flax.datasets import tables
from roberta_flax.datasets.examples import Tally, table_rows
from roberta_flax.datasets.layouts import gold_value, is_missing
from roberta_flax.datasets.readers import Columns, require_distinct
from roberta_flax.errors import InputError
from roberta_flax.files import PathLike
from roberta_flax.remote import to_path

_ANCHORS, _POSITIVE, _NEGATIVE = ("anchor", "query"), "positive", "negative"  # "negative_1" and so on, too
_LABELS = ("label", "score", "similarity_score", "relatedness_score")


@dataclass(frozen=True, eq=False)
class TextRows:
    """The rows of one file.

    Attributes:
      texts: the different texts of the file.
      numbers: int32 [rows, columns]: each row's texts, by their number in `texts`.
      labels: float32 [rows, labels].
      tally: counts of the file's rows.
    """

    texts: tuple[str, ...]
    numbers: npt.NDArray[np.int32]
    labels: npt.NDArray[np.float32]
    tally: Tally

    def __len__(self) -> int:
        return len(self.numbers)

    def fingerprint(self) -> str:
        """Returns a hash of the rows and their order, as 16 hex digits."""
        digest = hashlib.sha256(repr(self.texts).encode(errors="surrogatepass"))
        for array in (self.numbers, self.labels):
            digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
        return digest.hexdigest()[:16]


def with_usual_columns(path: PathLike, columns: Columns, *, labeled: bool | None = None) -> Columns:
    """Returns columns with those that the user does not name.

    The usual text columns are anchor or query, positive, and all whose names begin with negative; or else those of
    tables.usual_columns. The usual label column is the first of label, score, similarity_score and relatedness_score.

    Args:
      path: the file.
      columns: the text columns, in order, and the label columns.
      labeled: whether the rows have a label: False takes none, and None takes one if the file has a usual one.

    Raises:
      InputError: no text column was found, or a label column is named twice.
    """
    header = None if columns.header else False
    names = tables.column_names(path, header, _format(path)) or []
    if not columns.texts:
        columns = replace(columns, texts=_usual_texts(names) or tables.usual_columns(path, header, _format(path)))
    if not columns.label and labeled is not False:
        columns = replace(columns, label=tuple(name for name in _LABELS if name in names)[:1])
    require_distinct(Columns((), columns.label))  # a text column may be there twice (SimCSE)
    return columns


def _usual_texts(names: Sequence[str]) -> tuple[str, ...]:
    anchor = next((name for name in _ANCHORS if name in names), None)
    if anchor is None or _POSITIVE not in names:
        return ()
    return (anchor, _POSITIVE, *(name for name in names if name.startswith(_NEGATIVE)))


def read(path: PathLike, columns: Columns, *, label_range: tuple[float, float] | None = None) -> TextRows:
    """Reads a file's rows.

    A row with a text that is missing, empty or not text, or a label that is not a number, is skipped, and so is one
    without labels; the tally counts them.

    Args:
      path: a file that tables.read_rows reads. A .txt file has tabs between its columns.
      columns: its text and label columns.
      label_range: the labels that stand for 0 and 1; the others are scaled likewise. None keeps them.

    Raises:
      InputError: the file cannot be read, has no such column, or no row can be used; or the range is empty.
    """
    low, high = label_range or (0.0, 1.0)
    if not high > low:
        raise InputError(f"label_range must be two numbers, the lower first, got {low} and {high}")
    known: dict[str, int] = {}
    numbers: list[list[int]] = []
    labels: list[list[float]] = []
    tally = Tally(to_path(path))
    for where, values in table_rows(path, columns.texts, columns.label, columns.header):
        if isinstance(values, tables.BadRow):
            tally.leave_out(where, values.reason)
            continue
        texts, given = values[: len(columns.texts)], values[len(columns.texts) :]
        if any(map(is_missing, given)):
            tally.unlabeled += 1
            continue
        if not all(text.strip() for text in texts):
            tally.leave_out(where, "a text is empty")
            continue
        try:
            gold = [gold_value(name, value) for name, value in zip(columns.label, given, strict=True)]
        except InputError as error:
            tally.leave_out(where, str(error))
            continue
        numbers.append([known.setdefault(text, len(known)) for text in texts])
        labels.append([(value - low) / (high - low) for value in gold])
    tally.examples = len(numbers)
    if not numbers:
        raise tally.nothing_usable()
    return TextRows(
        tuple(known),
        np.array(numbers, np.int32),
        np.array(labels, np.float32).reshape(len(labels), len(columns.label)),
        tally,
    )


def require_labels_in(rows: TextRows, low: float, high: float, loss: str) -> None:
    """Raises InputError if a label is outside a range, which a loss needs."""
    outside = rows.labels[(rows.labels < low) | (rows.labels > high)]
    if outside.size:
        raise InputError(
            f"{rows.tally.path}: the loss {loss} takes labels from {low:g} to {high:g}, but {outside.size} are not; "
            f"the first is {outside[0]:g}; scale them with label_range (--label-range LOW HIGH)"
        )


def _format(path: PathLike) -> str | None:
    return "tsv" if to_path(path).suffix == ".txt" else None  # a line of text has no columns
