"""Reads what torch.save wrote, without torch and without executing anything.

A checkpoint is a pickle plus raw storages. The pickle is untrusted: only the globals named here are known, none
of them runs code of the file's choosing, and any other global is an error that names it. Classes that carry
arguments (argparse.Namespace, OmegaConf's nodes, fairseq's enums) become inert `Record`s.

Two layouts, told apart by their first bytes:
  zip     torch >= 1.6: NAME/data.pkl and one uncompressed member NAME/data/KEY a storage
  legacy  torch < 1.6 (the released models): magic, protocol and system pickles, the object, the storage
          keys, then for each key an int64 count and its elements
(torch/serialization.py: _save, _legacy_save.) Storages are memory-mapped and read when asked for.
"""

from __future__ import annotations

import math
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from roberta_flax.errors import CheckpointError

_ZIP_MAGIC = b"PK\x03\x04"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch.serialization.MAGIC_NUMBER
_LEGACY_PROTOCOL = 1001  # torch.serialization.PROTOCOL_VERSION
_LEGACY_MAGIC_PICKLED = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # that number, after the protocol's opcodes

_STORAGE_DTYPES: dict[str, npt.DTypeLike] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}

# Packages whose classes only hold values: they become Records. Nothing of theirs is imported or called.
_INERT_PACKAGES = (
    "argparse",
    "omegaconf",
    "fairseq",
    "fairseq_cli",
    "examples",
    "numpy",
    "enum",
    "pathlib",
    "typing",
)
_INERT_NAMES = {
    ("torch", "device"),
    ("torch", "Size"),
    *(
        ("torch", f"{kind}")
        for kind in ("float16", "float32", "float64", "bfloat16", "int64", "int32", "uint8", "bool")
    ),
    *(
        (module, kind)
        for module in ("builtins", "__builtin__")  # the name that protocol 2 writes
        for kind in (
            "int",
            "long",
            "float",
            "str",
            "unicode",
            "bool",
            "dict",
            "list",
            "tuple",
            "bytes",
            "complex",
            "object",
        )
    ),
}


@dataclass(eq=False)
class Storage:
    """A run of elements in the file."""

    dtype: np.dtype[Any]
    count: int
    path: Path
    offset: int | None = None  # in bytes; known for a legacy file only after its pickle has been read

    def read(self) -> npt.NDArray[Any]:
        """The elements, memory-mapped: [count]."""
        if self.count == 0:
            return np.empty(0, self.dtype)
        assert self.offset is not None, "a storage is placed before its tensors are given out"
        return np.memmap(self.path, self.dtype, mode="r", offset=self.offset, shape=(self.count,))


@dataclass(frozen=True, eq=False)
class Tensor:
    """A strided view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.storage.dtype

    def read(self) -> npt.NDArray[Any]:
        """The elements, as a read-only view of the memory-mapped file."""
        elements = self.storage.read()[self.offset :]
        strides = [stride * self.dtype.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(elements, self.shape, strides, writeable=False)

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of the first axis."""
        return Tensor(
            self.storage, self.offset + start * self.strides[0], (stop - start, *self.shape[1:]), self.strides
        )


@dataclass
class Record:
    """An object of a class that is not loaded: what it is called, and what the pickle says of it."""

    class_name: str = ""
    arguments: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, item: Any) -> None:
        self.items.append(item)

    def extend(self, items: list[Any]) -> None:
        self.items.extend(items)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def __hash__(self) -> int:
        return id(self)


def load(path: Path) -> Any:
    """The object in a file that torch.save wrote, with `Tensor`s for tensors.

    Raises:
      CheckpointError: not such a file, damaged, cut short, or it asks for a global that is not allowed.
    """
    read = layout_of(path)
    try:
        with path.open("rb") as file:
            return read(path, file)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None


def layout_of(path: Path) -> Callable[[Path, IO[bytes]], Any]:
    """The reader for a file's layout, by its first bytes; CheckpointError where it is none that torch.save writes."""
    try:
        with path.open("rb") as file:
            start = file.read(32)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    if start.startswith(_ZIP_MAGIC):
        return _load_zip
    if start.startswith(b"\x80") and _LEGACY_MAGIC_PICKLED in start:
        return _load_legacy
    if not start:
        raise CheckpointError(f"{path} is empty; expected a checkpoint written by torch.save")
    raise CheckpointError(f"{path} is not a PyTorch checkpoint: it begins with {start[:12]!r}")


def _load_zip(path: Path, file: IO[bytes]) -> Any:
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, OSError, ValueError, struct.error) as error:
        raise _damaged(path, error) from None
    with archive:
        members = {member.filename: member for member in archive.infolist()}
        pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise CheckpointError(f"{path} is a zip file but not a PyTorch checkpoint: it has no data.pkl")
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}byteorder" in members and archive.read(f"{root}byteorder") != b"little":
            raise CheckpointError(f"{path} was written on a big-endian machine, which is not supported")

        def storage_of(dtype: np.dtype[Any], key: str, count: int) -> Storage:
            member = members.get(f"{root}data/{key}")
            if member is None:
                raise CheckpointError(f"{path} is damaged: it has no storage {key!r}")
            if member.compress_type != zipfile.ZIP_STORED or member.file_size < count * dtype.itemsize:
                raise CheckpointError(
                    f"{path} is damaged: storage {key!r} should hold {count} x {dtype}, uncompressed; "
                    f"it has {member.file_size} bytes"
                )
            return Storage(dtype, count, path, _member_offset(path, file, member, count * dtype.itemsize))

        with archive.open(pickles[0]) as data:
            return _unpickle(path, data, storage_of)


def _member_offset(path: Path, file: IO[bytes], member: zipfile.ZipInfo, size: int) -> int:
    """Where a member's bytes begin: after its local header, whose name and extra field vary in length."""
    position = file.tell()
    file.seek(member.header_offset)
    header = file.read(30)
    file.seek(position)
    if len(header) < 30 or not header.startswith(_ZIP_MAGIC):
        raise CheckpointError(f"{path} is damaged: no local header for {member.filename!r}")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    offset = member.header_offset + 30 + int(name_length) + int(extra_length)
    if offset + size > path.stat().st_size:
        raise CheckpointError(f"{path} is damaged: {member.filename!r} runs past the end of the file")
    return offset


def _load_legacy(path: Path, file: IO[bytes]) -> Any:
    storages: dict[str, Storage] = {}

    def storage_of(dtype: np.dtype[Any], key: str, count: int) -> Storage:
        storage = storages.setdefault(key, Storage(dtype, count, path))
        if (storage.dtype, storage.count) != (dtype, count):
            raise CheckpointError(f"{path} is damaged: storage {key!r} is described in two ways")
        return storage

    def no_storage(*_: Any) -> Storage:
        raise CheckpointError(f"{path} is damaged: a storage where none can be")

    magic, protocol, system = (_unpickle(path, file, no_storage) for _ in range(3))
    if magic != _LEGACY_MAGIC or protocol != _LEGACY_PROTOCOL:
        raise CheckpointError(f"{path} is of an unknown version of torch's format ({protocol!r})")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError(f"{path} was written on a big-endian machine, which is not supported")
    loaded = _unpickle(path, file, storage_of)
    keys = _unpickle(path, file, no_storage)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(keys) != set(storages):
        raise CheckpointError(f"{path} is damaged: its storages do not match its tensors")
    size = path.stat().st_size
    for key in keys:
        storage = storages[key]
        header = file.read(8)
        storage.offset = file.tell()
        end = storage.offset + storage.count * storage.dtype.itemsize
        if len(header) < 8 or end > size:
            raise CheckpointError(
                f"{path} is cut short: it has {size} bytes and needs at least {end}; copy or download it again"
            )
        if struct.unpack("<q", header)[0] != storage.count:
            raise CheckpointError(f"{path} is damaged: storage {key!r} has another size than its tensors say")
        file.seek(end)
    return loaded


class _Unpickler(pickle.Unpickler):
    def __init__(self, path: Path, data: IO[bytes], storage_of: Callable[[np.dtype[Any], str, int], Storage]) -> None:
        super().__init__(data, encoding="utf-8")
        self._path = path
        self._storage_of = storage_of

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _REBUILDERS:
            return _REBUILDERS[module, name]
        if module in ("torch", "torch.storage") and name in _STORAGE_DTYPES:
            return _StorageType(np.dtype(_STORAGE_DTYPES[name]))
        package = module.partition(".")[0]
        if package in _INERT_PACKAGES or (module, name) in _INERT_NAMES:
            return _record_class(f"{module}.{name}")
        raise CheckpointError(
            f"{self._path} asks for {module}.{name}, which no RoBERTa checkpoint needs; nothing of it was run. "
            "Do not load this file with torch.load either, unless you trust who wrote it"
        )

    def persistent_load(self, saved_id: Any) -> Storage:
        match saved_id:
            case ("storage", _StorageType(dtype), str() as key, str(), int() as count, *rest) if (
                count >= 0 and rest in ([], [None])
            ):
                return self._storage_of(dtype, key, count)
        raise CheckpointError(f"{self._path} is damaged: it has a reference that is not a tensor's storage")


@dataclass(frozen=True)
class _StorageType:
    dtype: np.dtype[Any]


def _record_class(class_name: str) -> type[Record]:
    """A class of its own for each name and file, whose instances are Records whatever they are made from."""

    def new(cls: type[Record], *arguments: Any, **_: Any) -> Record:
        record = object.__new__(cls)
        Record.__init__(record, class_name, arguments)
        return record

    return type("Record", (Record,), {"__new__": new, "__init__": lambda *_, **__: None})


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    """torch._utils._rebuild_tensor and _rebuild_tensor_v2, with the bounds checked."""
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, Storage) or not all(type(n) is int and n >= 0 for n in numbers):
        raise CheckpointError("the file is damaged: a tensor's shape is not made of counts")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if math.prod(shape) and last >= storage.count:
        raise CheckpointError(
            f"the file is damaged: a tensor of shape {tuple(shape)} reaches past its {storage.count} elements"
        )
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _bytes_from_latin1(text: Any, encoding: Any) -> bytes:
    """_codecs.encode, by which protocol 2 writes bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise CheckpointError("the file is damaged: bytes in an encoding other than latin1")
    return text.encode("latin1")


_REBUILDERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("_codecs", "encode"): _bytes_from_latin1,
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): _record_class("collections.defaultdict"),
    ("collections", "Counter"): _record_class("collections.Counter"),
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
}


def _unpickle(path: Path, data: IO[bytes], storage_of: Callable[[np.dtype[Any], str, int], Storage]) -> Any:
    try:
        return _Unpickler(path, data, storage_of).load()
    except CheckpointError:
        raise
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way: IndexError, KeyError, UnicodeDecodeError...
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> CheckpointError:
    reason = str(error) or type(error).__name__
    return CheckpointError(f"{path} is damaged or cut short ({reason}); copy or download it again")


_NUMPY_SCALARS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")


def _numpy_scalar(record: Record) -> Any:
    """A numpy number from its record, scalar(dtype("f8"), bytes); the record itself where it is another kind."""
    match record.arguments:
        case (Record(arguments=(str() as code, *_)), bytes() as data) if re.fullmatch("[biuf][1248]", code):
            dtype = np.dtype(code).newbyteorder("<")
            return np.frombuffer(data, dtype)[0].item() if len(data) == dtype.itemsize else record
    return record


def plain(value: Any) -> Any:
    """Arguments as dicts, lists and scalars, whichever class they were kept in.

    argparse.Namespace, OmegaConf's DictConfig, ListConfig and value nodes, enums and numpy's numbers are opened;
    whatever else is there stays as it is.
    """
    if isinstance(value, Record):
        state = value.state[0] if isinstance(value.state, tuple) else value.state
        if value.class_name == "argparse.Namespace" and isinstance(state, dict):
            return plain(state)
        if value.class_name.startswith("omegaconf.") and isinstance(state, dict):
            return plain(state["_content"] if "_content" in state else state.get("_val"))
        if value.class_name in _NUMPY_SCALARS:
            return _numpy_scalar(value)
        if value.state is None and len(value.arguments) == 1:  # an enum: Class(value)
            return plain(value.arguments[0])
        return value
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def tensors(state: Any) -> Iterator[tuple[str, Tensor]]:
    """The (name, tensor) pairs of a state dict; what is not a tensor is passed over."""
    for name, value in state.items():
        if isinstance(name, str) and isinstance(value, Tensor):
            yield name, value
