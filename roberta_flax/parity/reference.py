"""What a comparison needs of the torch side: exact values, and how far from them rounding may lead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from roberta_flax.parity.inputs import ParityBatch
from roberta_flax.parity.rounding import Rounding

REFERENCES = ("builtin", "fairseq", "transformers")
SAMPLES = 3  # computations with random errors, of which the largest ones count


@dataclass(frozen=True)
class Spread:
    """How far computations with random errors went from the exact values of a point.

    Attributes:
      largest: the largest distance of a number.
      squares: the sum of all squared distances.
      count: how many distances.
    """

    largest: float
    squares: float
    count: int

    def scaled(self, factor: float) -> Spread:
        """Of errors that are `factor` times as large."""
        return Spread(self.largest * factor, self.squares * factor**2, self.count)

    def __add__(self, other: Spread) -> Spread:
        return Spread(max(self.largest, other.largest), self.squares + other.squares, self.count + other.count)


@dataclass(frozen=True)
class Observed:
    """A batch as the reference computes it.

    Attributes:
      batch: the inputs.
      values: by point, float64, in the shapes that points.py gives; points that the reference does not show are absent.
      spreads: by point, of computations with an arithmetic's errors.
    """

    batch: ParityBatch
    values: Mapping[str, npt.NDArray[Any]]
    spreads: Callable[[Rounding], Mapping[str, Spread]]


class Reference(Protocol):
    """The torch side, or a recording of it.

    Attributes:
      description: "name", "version", and "parameters": where they came from.
    """

    description: Mapping[str, str]

    def observations(self) -> Iterator[Observed]:
        """Each batch in turn; a batch's values need not be kept for the next."""
