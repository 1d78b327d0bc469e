"""Named tensors in safetensors files, which are written and read one at a time."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import jax
import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from roberta_flax.errors import CheckpointError, InputError

logger = logging.getLogger(__name__)

STORED_DTYPES: dict[str, np.dtype[Any]] = {  # the dtypes of parameters, by their names in safetensors
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
DTYPE_NAMES = {dtype: name for name, dtype in STORED_DTYPES.items()}
_READ_DTYPES: dict[str, np.dtype[Any]] = {  # also those of buffers, which are not parameters
    **STORED_DTYPES,
    "BOOL": np.dtype(np.bool_),
    **{f"I{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
}

_ALIGNMENT = 64  # bytes; XLA's CPU backend uses an array without a copy if it begins at a multiple of this
_REPORT_SECONDS = 5  # between two lines about a file that takes long to write
_CHUNK = 1 << 22  # elements written at a time
MAX_AXES = 8  # the most axes of a tensor in a file; a RoBERTa's tensors have two
_MAX_HEADER = 1 << 24  # bytes of a safetensors file's header, which has about 120 per tensor
_TILE = 128  # rows and columns of a transpose copied at a time, so that both sides stay in the cache


class LazyTensor(Protocol):
    """A tensor with a shape and a dtype, whose values are read on demand."""

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self) -> npt.NDArray[Any]:
        """Returns the values, as a view of the file where possible."""


@dataclass(frozen=True, eq=False)
class Values:
    """A tensor whose values are in memory, or on a device."""

    values: npt.NDArray[Any] | jax.Array

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.values.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def read(self) -> npt.NDArray[Any]:
        return np.asarray(self.values)


@dataclass
class NonFinite:
    """The number of a tensor's values that are not finite.

    Attributes:
      nan: values that are NaN.
      infinite: values that are infinite in the source.
      overflowed: values that are finite in the source but exceed the range of the stored dtype.
    """

    nan: int = 0
    infinite: int = 0
    overflowed: int = 0

    @classmethod
    def of(cls, values: npt.NDArray[Any], dtype: np.dtype[Any]) -> NonFinite:
        """Counts them in `values`, to be stored in `dtype`."""
        with np.errstate(over="ignore", invalid="ignore"):
            stored = values.astype(dtype)
        infinite = int(np.isinf(values).sum())
        return cls(int(np.isnan(values).sum()), infinite, int(np.isinf(stored).sum()) - infinite)

    def __bool__(self) -> bool:
        return bool(self.nan or self.infinite or self.overflowed)

    def __str__(self) -> str:
        counts = {"NaN": self.nan, "infinite": self.infinite, "too large for the dtype": self.overflowed}
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


def stored_dtype(name: str) -> np.dtype[Any]:
    """The dtype called `name`. Raises InputError if parameters cannot be stored in it."""
    for dtype in STORED_DTYPES.values():
        if dtype.name == name:
            return dtype
    raise InputError(f"parameters are stored in {', '.join(map(str, STORED_DTYPES.values()))}; got {name!r}")


def write_tensors(
    path: Path,
    tensors: Mapping[str, LazyTensor],
    dtype: np.dtype[Any] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> dict[str, NonFinite]:
    """Writes a safetensors file, one tensor at a time, in chunks.

    Args:
      path: the file to create.
      tensors: floating-point tensors, by name.
      dtype: the dtype to store, rounding to nearest; by default, each tensor keeps its own.
      metadata: the metadata of the file.

    Returns:
      The counts for each tensor that has values that are not finite, by name.
    """
    # tensors whose length keeps the next one aligned come first
    names = sorted(tensors, key=lambda name: (_stored_size(tensors[name], dtype) % _ALIGNMENT != 0, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        tensor = tensors[name]
        begin, end = end, end + _stored_size(tensor, dtype)
        code = DTYPE_NAMES[np.dtype(dtype or tensor.dtype)]
        header[name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    non_finite: dict[str, NonFinite] = {}
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        last = time.monotonic()
        for number, name in enumerate(names, 1):
            if counts := _write_values(file, tensors[name].read(), dtype):
                non_finite[name] = counts
            if time.monotonic() - last >= _REPORT_SECONDS:
                last = time.monotonic()
                logger.info("%s: %d of %d tensors are written", path.name, number, len(names))
        file.flush()
        os.fsync(file.fileno())
    return non_finite


def _stored_size(tensor: LazyTensor, dtype: np.dtype[Any] | None) -> int:
    return math.prod(tensor.shape) * np.dtype(dtype or tensor.dtype).itemsize


def _write_values(file: IO[bytes], values: npt.NDArray[Any], dtype: np.dtype[Any] | None) -> NonFinite:
    counts = NonFinite()
    rows = values.reshape(1) if values.ndim == 0 else values
    step = max(1, _CHUNK // max(1, math.prod(rows.shape[1:])))
    for start in range(0, len(rows), step):
        block = _row_major(rows[start : start + step])
        with np.errstate(over="ignore", invalid="ignore"):
            stored = block if dtype is None else block.astype(dtype)
        if not np.isfinite(stored).all():
            infinite = int(np.isinf(block).sum())
            counts.nan += int(np.isnan(block).sum())
            counts.infinite += infinite
            counts.overflowed += int(np.isinf(stored).sum()) - infinite
        file.write(stored.reshape(-1).view(np.uint8).data)
    return counts


def _row_major(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns the values in row-major order. A transpose is copied by tiles, several times faster than numpy does."""
    if values.ndim != 2 or values.flags.c_contiguous:
        return np.ascontiguousarray(values)
    result = np.empty(values.shape, values.dtype)
    for i in range(0, values.shape[0], _TILE):
        for j in range(0, values.shape[1], _TILE):
            result[i : i + _TILE, j : j + _TILE] = values[i : i + _TILE, j : j + _TILE]
    return result


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file."""

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    def read(self) -> npt.NDArray[Any]:
        """The values, memory-mapped."""
        if math.prod(self.shape) == 0:
            return np.empty(self.shape, self.dtype)
        return np.memmap(self.path, self.dtype, mode="r", offset=self.offset, shape=self.shape)

    def load(self, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Reads the values into memory, in `dtype`, aligned so that JAX can use them without another copy."""
        size = math.prod(self.shape) * self.dtype.itemsize
        buffer = np.empty(size + _ALIGNMENT, np.uint8)
        begin = -buffer.ctypes.data % _ALIGNMENT
        raw = buffer[begin : begin + size]
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset)
            view, bytes_read = raw.data, 0
            while bytes_read < size:  # one read returns at most 2 GiB
                count = file.readinto(view[bytes_read:])
                if not count:
                    raise CheckpointError(f"{self.path} is damaged or cut short; convert the model again")
                bytes_read += count
        with np.errstate(over="ignore"):  # who loads a model is told (hub.load)
            return raw.view(self.dtype).reshape(self.shape).astype(dtype, copy=False)


def is_countable(shape: Sequence[int]) -> bool:
    """Whether numpy can represent arrays of a shape or, if they have no elements, whether its other sizes are small."""
    elements = math.prod(shape)
    return elements < 1 << 56 if elements else math.prod(size or 1 for size in shape) <= 1 << 20


def read_tensors(path: Path) -> dict[str, StoredTensor]:
    """Opens a safetensors file and returns its tensors by name. Their values are not read yet.

    Raises:
      CheckpointError: the file is missing or damaged, or has tensors of an unsupported dtype or of more than 8 axes.
    """
    try:
        with path.open("rb") as raw:
            length = int.from_bytes(raw.read(8), "little")
            if _MAX_HEADER < length < path.stat().st_size:
                raise CheckpointError(
                    f"{path} is damaged or malicious: its header has {length} bytes, over the limit of {_MAX_HEADER}"
                )
            with safe_open(path, framework="numpy") as file:  # checks offsets and sizes: no gap, no overlap
                names = list(file.keys())
            header = json.loads(raw.read(length))
    except CheckpointError:
        raise
    except (SafetensorError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged or cut short ({error}); convert or copy it again") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    tensors = {}
    for name in names:
        entry = header[name]
        if (dtype := _READ_DTYPES.get(entry["dtype"])) is None:
            raise CheckpointError(f"{path} has {name[:200]} in {entry['dtype']}; expected {', '.join(STORED_DTYPES)}")
        shape = tuple(entry["shape"])
        if len(shape) > MAX_AXES or not is_countable(shape):
            raise CheckpointError(
                f"{path} is damaged: {name[:200]} has {len(shape)} axes, {str(shape[:MAX_AXES])[:200]}"
            )
        tensors[name] = StoredTensor(path, dtype, shape, 8 + length + entry["data_offsets"][0])
    return tensors
