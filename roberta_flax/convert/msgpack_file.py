"""Reads files that flax.serialization.to_bytes wrote: flax_model.msgpack, which Transformers 5 no longer reads.

An array is an extension object of type 1, which contains a packed (shape, name of the dtype, bytes). An array of over
1 GiB is a map of chunks (flax/serialization.py: _ndarray_to_bytes, _chunk). Nothing in such a file can run. Names, maps
and shapes are limited, so that the memory needed is at most a few times the size of the file.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from roberta_flax.checkpoint.tensors import MAX_AXES, STORED_DTYPES, LazyTensor, Values, is_countable
from roberta_flax.convert.views import transposed
from roberta_flax.errors import CheckpointError, shortened

_NDARRAY = 1  # flax.serialization._MsgpackExtType.ndarray
_CHUNKED = "__msgpack_chunked_array__"
_MAX_DEPTH = 32
_MAX_NAME = 1000  # characters of a tensor's name, including the names of its maps
_MAX_MAP = 4096  # entries of a map, which are usually layers
_MAX_ENTRIES = 1 << 16  # entries of all maps together
_DTYPES = {dtype.name: dtype for dtype in [*STORED_DTYPES.values(), np.dtype(np.int32), np.dtype(np.int64)]}


def tensors(path: Path) -> dict[str, LazyTensor]:
    """Reads the tensors of a Flax model that Transformers saved, in the form of its torch models.

    The values are read at once, because a msgpack file has no table of contents.

    Returns:
      The tensors by their names in torch, with kernels transposed.

    Raises:
      CheckpointError: the file is not such a file, or is damaged or truncated.
    """
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
            memoryview(content) as view,
        ):
            tree = msgpack.unpackb(
                view, ext_hook=_decode_array, object_pairs_hook=_bounded_map_builder(), strict_map_key=True, raw=False,
                max_str_len=_MAX_NAME, max_bin_len=0, max_array_len=0, max_map_len=_MAX_MAP,
            )  # fmt: skip
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except MemoryError:
        raise CheckpointError(f"{path} needs more memory than is available") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception as error:  # msgpack raises many: ExtraData, StackError, FormatError, UnicodeDecodeError...
        raise CheckpointError(
            f"{path} is not a complete flax_model.msgpack ({shortened(str(error)) or type(error).__name__}); "
            "copy it again"
        ) from None
    return dict(_named_leaves(path, tree, (), 0))


def _bounded_map_builder() -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """Returns a function that makes a dict of a map's entries, up to _MAX_ENTRIES in all."""
    entries_left = _MAX_ENTRIES

    def build_map(entries: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal entries_left
        entries_left -= 1 + len(entries)
        if entries_left < 0:
            raise CheckpointError(f"it is damaged or malicious: it has over {_MAX_ENTRIES} entries")
        return dict(entries)

    return build_map


def _decode_array(code: int, data: bytes) -> npt.NDArray[Any]:
    if code != _NDARRAY:
        raise CheckpointError("it is damaged: it contains an object that is not an array")
    shape, dtype_name, content = msgpack.unpackb(
        data, raw=False, max_array_len=MAX_AXES, max_map_len=0, max_str_len=80, max_ext_len=0
    )
    dtype = _DTYPES.get(dtype_name)
    if dtype is None or not all(type(size) is int and size >= 0 for size in shape):
        raise CheckpointError(f"it is damaged: an array of {str(dtype_name)[:80]}")
    if math.prod(shape) * dtype.itemsize != len(content) or not is_countable(shape):
        raise CheckpointError(f"it is damaged: an array of shape {str(shape)[:80]} in {len(content)} bytes")
    return np.frombuffer(content, dtype).reshape(shape)


def _named_leaves(path: Path, tree: Any, names: tuple[str, ...], depth: int) -> Iterator[tuple[str, LazyTensor]]:
    """Yields the leaves by their names in torch, where kernels, embeddings and scales are all called weight."""
    if isinstance(tree, dict) and tree.get(_CHUNKED) is True:
        tree = _join_chunks(path, tree)
    if isinstance(tree, np.ndarray):
        *parents, leaf = names or ("",)
        torch_name = {"kernel": "weight", "embedding": "weight", "scale": "weight"}.get(leaf, leaf)
        values: LazyTensor = Values(tree)
        yield ".".join([*parents, torch_name]), transposed(values) if leaf == "kernel" and tree.ndim == 2 else values
    elif isinstance(tree, dict) and depth < _MAX_DEPTH and sum(map(len, names)) < _MAX_NAME:
        for name, part in tree.items():
            yield from _named_leaves(path, part, (*names, str(name)), depth + 1)
    else:
        raise CheckpointError(f"{path} is not a Flax model: {shortened('.'.join(names))} is neither an array nor a map")


def _join_chunks(path: Path, chunked: dict[str, Any]) -> npt.NDArray[Any]:
    """Joins an array of over 1 GiB, which Flax stores in flat chunks."""
    try:
        shape, chunks = ([part[str(i)] for i in range(len(part))] for part in (chunked["shape"], chunked["chunks"]))
        if not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError("a shape with sizes that are not counts")
        if not all(isinstance(chunk, np.ndarray) for chunk in chunks) or len({chunk.dtype for chunk in chunks}) != 1:
            raise ValueError("chunks that are not arrays of one dtype")
        return np.concatenate(chunks).reshape(shape)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: an array in chunks that do not join ({error!r:.100})") from None
