"""Tensors derived from a source's tensors. Their values are computed on reading.

They hold no values of their own, so that a checkpoint is read one tensor at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from roberta_flax.checkpoint.tensors import LazyTensor


@dataclass(frozen=True, eq=False)
class View:
    """A LazyTensor whose values a function returns."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    read: Callable[[], npt.NDArray[Any]]


def size_in_bytes(tensor: LazyTensor) -> int:
    """The number of bytes of a tensor's values, however they are stored."""
    return math.prod(tensor.shape) * tensor.dtype.itemsize


def rows(tensor: LazyTensor, start: int, stop: int) -> LazyTensor:
    """Rows [start, stop) along a tensor's first axis."""
    return View(tensor.dtype, (stop - start, *tensor.shape[1:]), lambda: tensor.read()[start:stop])


def below_zeros(tensor: LazyTensor, count: int) -> LazyTensor:
    """A tensor of two axes below `count` rows of zeros."""
    shape = (count + tensor.shape[0], *tensor.shape[1:])
    return View(tensor.dtype, shape, lambda: np.pad(tensor.read(), ((count, 0), (0, 0))))


def transposed(tensor: LazyTensor) -> LazyTensor:
    """A tensor of two axes, transposed."""
    return View(tensor.dtype, tensor.shape[::-1], lambda: tensor.read().T)


def joined(tensors: Sequence[LazyTensor], axis: int) -> LazyTensor:
    """Concatenates tensors of one dtype along an axis."""
    shape = list(tensors[0].shape)
    shape[axis] = sum(tensor.shape[axis] for tensor in tensors)
    return View(
        tensors[0].dtype, tuple(shape), lambda: np.concatenate([tensor.read() for tensor in tensors], axis=axis)
    )


def reshaped_slice(tensors: Sequence[LazyTensor], start: int, shape: tuple[int, ...]) -> LazyTensor:
    """Takes elements from the concatenation of flat tensors, [length] each, and gives them a shape.

    Args:
      tensors: the flat tensors, of one dtype.
      start: the index of the first element.
      shape: the shape of the result.
    """

    def read() -> npt.NDArray[Any]:
        last = start + math.prod(shape)
        parts, position = [], 0
        for tensor in tensors:
            length = tensor.shape[0]
            if position < last and position + length > start:
                parts.append(tensor.read()[max(0, start - position) : last - position])
            position += length
        return np.concatenate(parts or [np.empty(0, tensors[0].dtype)]).reshape(shape)

    return View(tensors[0].dtype, shape, read)
