"""What a comparison needs from the torch side: the exact values, and how far rounding may move a result from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from roberta_flax.parity.inputs import ParityBatch
from roberta_flax.parity.rounding import Rounding

REFERENCES = ("builtin", "fairseq", "transformers", "sentence-transformers")
SIMULATED_RUNS = 3  # runs with simulated rounding, whose largest deviations count


@dataclass(frozen=True)
class Deviation:
    """How far runs with simulated rounding deviate from the exact values of a tensor.

    Attributes:
      largest: the largest absolute difference of an element.
      sum_of_squares: the sum of all squared differences.
      count: the number of differences.
    """

    largest: float
    sum_of_squares: float
    count: int

    def scaled(self, factor: float) -> Deviation:
        """Returns the deviation for differences that are `factor` times as large."""
        return Deviation(self.largest * factor, self.sum_of_squares * factor**2, self.count)

    def __add__(self, other: Deviation) -> Deviation:
        return Deviation(
            max(self.largest, other.largest), self.sum_of_squares + other.sum_of_squares, self.count + other.count
        )


@dataclass(frozen=True)
class ReferenceValues:
    """What the reference computes for one batch.

    Attributes:
      batch: the inputs.
      values: float64 arrays by tensor name, in the shapes listed in roberta_flax.parity.tensor_names. Tensors that the
        reference does not expose are missing.
      deviations: for a rounding, the deviations by tensor name.
    """

    batch: ParityBatch
    values: Mapping[str, npt.NDArray[Any]]
    deviations: Callable[[Rounding], Mapping[str, Deviation]]


class Reference(Protocol):
    """The torch side of a comparison, or a recording of it.

    Attributes:
      description: "name", "version", and "parameters": where the parameters came from.
    """

    description: Mapping[str, str]

    def evaluate(self) -> Iterator[ReferenceValues]:
        """Evaluates each batch in turn. The values of one batch need not be kept for the next."""
