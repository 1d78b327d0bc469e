"""Tensors made of a source's tensors, whose values are computed when they are read.

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
    """A LazyTensor by its parts."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    read: Callable[[], npt.NDArray[Any]]


def size_in_bytes(tensor: LazyTensor) -> int:
    """Of its values, each counted once, however they are stored."""
    return math.prod(tensor.shape) * tensor.dtype.itemsize


def rows(tensor: LazyTensor, start: int, stop: int) -> LazyTensor:
    """Rows [start, stop) of a tensor's first axis."""
    return View(tensor.dtype, (stop - start, *tensor.shape[1:]), lambda: tensor.read()[start:stop])


def transposed(tensor: LazyTensor) -> LazyTensor:
    """A tensor of two axes, these exchanged."""
    return View(tensor.dtype, tensor.shape[::-1], lambda: tensor.read().T)


def joined(tensors: Sequence[LazyTensor], axis: int) -> LazyTensor:
    """Tensors of one dtype, joined along an axis."""
    shape = list(tensors[0].shape)
    shape[axis] = sum(tensor.shape[axis] for tensor in tensors)
    return View(
        tensors[0].dtype, tuple(shape), lambda: np.concatenate([tensor.read() for tensor in tensors], axis=axis)
    )


def reshaped_slice(tensors: Sequence[LazyTensor], start: int, shape: tuple[int, ...]) -> LazyTensor:
    """Elements from `start` on of several flat tensors, [length] each, one after the other, in a shape of its own."""

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
