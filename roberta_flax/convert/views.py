"""What a source's tensors look like to the converter: a shape, a dtype, and values that are read when asked for.

`torch_file.StridedTensor`, `tensors.StoredTensor` and `tensors.Values` are such (tensors.LazyTensor); the classes here
are made of others, and hold no values of their own, so that a checkpoint is read one tensor at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from roberta_flax.checkpoint.tensors import LazyTensor


def size_in_bytes(tensor: LazyTensor) -> int:
    """Of its values, each counted once, however they are stored."""
    return math.prod(tensor.shape) * tensor.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows [start, stop) of a tensor's first axis."""

    tensor: LazyTensor
    start: int
    stop: int

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stop - self.start, *self.tensor.shape[1:]

    def read(self) -> npt.NDArray[Any]:
        return self.tensor.read()[self.start : self.stop]


@dataclass(frozen=True, eq=False)
class Transposed:
    """A tensor of two axes, these exchanged."""

    tensor: LazyTensor

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape[::-1]

    def read(self) -> npt.NDArray[Any]:
        return self.tensor.read().T


@dataclass(frozen=True, eq=False)
class Joined:
    """Tensors of one dtype, joined along an axis."""

    tensors: Sequence[LazyTensor]
    axis: int

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.tensors[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        shape = list(self.tensors[0].shape)
        shape[self.axis] = sum(tensor.shape[self.axis] for tensor in self.tensors)
        return tuple(shape)

    def read(self) -> npt.NDArray[Any]:
        return np.concatenate([tensor.read() for tensor in self.tensors], axis=self.axis)


@dataclass(frozen=True, eq=False)
class Slice:
    """A run of elements of several flat tensors, one after the other, in a shape of its own."""

    tensors: Sequence[LazyTensor]  # [length] each
    start: int
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.tensors[0].dtype

    def read(self) -> npt.NDArray[Any]:
        first, last = self.start, self.start + math.prod(self.shape)
        parts, position = [], 0
        for tensor in self.tensors:
            length = tensor.shape[0]
            if position < last and position + length > first:
                parts.append(tensor.read()[max(0, first - position) : last - position])
            position += length
        return np.concatenate(parts or [np.empty(0, self.dtype)]).reshape(self.shape)
