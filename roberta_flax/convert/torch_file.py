"""Reads files that torch.save wrote, without torch and without executing anything.

A checkpoint is a pickle plus raw storages. The pickle is untrusted: only the globals named here are known, and none of
them runs code that the file chooses. Classes that carry arguments (argparse.Namespace, OmegaConf's nodes, fairseq's
enums) become inert `Record`s. So do classes of the user's own code and of other packages, which trainers put beside the
weights (callbacks, hyperparameters, optimizers): these Records are foreign, and an error names whichever is read. Any
other global of Python's own library or of torch is an error that names it.

There are two layouts, which differ in their first bytes:
  zip     torch >= 1.6: NAME/data.pkl, and one uncompressed member NAME/data/KEY per storage
  legacy  torch < 1.6 (the released models): magic, protocol and system pickles, the object, the storage
          keys, then for each key an int64 count and its elements
(torch/serialization.py: _save, _legacy_save.) Storages are memory-mapped and read on demand.

The cost of malicious files is limited too. No allocation follows a size that a file merely claims, no size comes from a
compressed member, objects that are shared or nested in a pickle are never traversed twice, and everything that a pickle
requests is charged to a `Budget` that grows with the file. tests/fuzz_reader.py searches for exceptions.
"""

from __future__ import annotations

import _compat_pickle
import io
import math
import pickle
import re
import struct
import sys
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, ItemsView, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType
from typing import IO, Any, ClassVar

import ml_dtypes
import numpy as np
import numpy.typing as npt

from roberta_flax.checkpoint.tensors import MAX_AXES, is_countable
from roberta_flax.errors import CheckpointError, shortened

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
    "ComplexFloatStorage": np.complex64,
    "ComplexDoubleStorage": np.complex128,
    "UntypedStorage": np.uint8,
}
_DTYPES: dict[str, np.dtype[Any]] = {  # by their names in torch
    **{
        name: np.dtype(name)
        for kind, sizes in (("int", (8, 16, 32, 64)), ("uint", (8, 16, 32, 64)), ("float", (16, 32, 64)))
        for name in (f"{kind}{size}" for size in sizes)
    },
    "bool": np.dtype(np.bool_),
    "complex64": np.dtype(np.complex64),
    "complex128": np.dtype(np.complex128),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    **{
        name: np.dtype(getattr(ml_dtypes, name))
        for name in ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")
    },
}

_MAX_COUNT = 1 << 62  # elements, offsets or strides; small enough to be printed and added
_MAX_LINE = 1 << 16  # bytes of a line after a pickle's text opcodes, such as a global's name or a decimal number
_MAX_PICKLE = 1 << 27  # bytes of a pickle, which contains names and numbers but no values of tensors
_MAX_DIRECTORY = 1 << 23  # bytes of a zip file's directory, which has about 80 per tensor
_MAX_INT_KEY = 2**61 - 2  # larger integers share their hashes with smaller ones (sys.hash_info.modulus)
_BLOCK = 1 << 20  # bytes read at a time for a checksum
_MAX_NAME = 300  # characters of a name from the file, in a message
_UNCOMPRESSED_ONLY = "torch writes its members uncompressed"

# Packages whose classes only hold values. They become Records, and nothing in the packages is imported or called.
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
# Packages of torch whose classes a trainer may put beside the weights; they are foreign, as those of users are.
_FOREIGN_TORCH = (
    "torch.nn",
    "torch.optim",
    "torch.utils.data",
    "torch.distributed",
    "torch.amp",
    "torch.torch_version",
    "torch._C._nn",
)
_PYTHON_2_MODULES = {name.partition(".")[0] for name in _compat_pickle.IMPORT_MAPPING}  # which protocol 2 writes
_STANDARD_LIBRARY = sys.stdlib_module_names | _PYTHON_2_MODULES
_INERT_NAMES = {
    ("torch", "device"),
    ("torch", "Size"),
    ("collections", "deque"),
    ("types", "SimpleNamespace"),
    ("decimal", "Decimal"),
    ("uuid", "UUID"),
    *(("datetime", kind) for kind in ("date", "datetime", "time", "timedelta", "timezone")),
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
            "frozenset",
            "object",
            "slice",
        )
    ),
}


@dataclass(eq=False, slots=True)
class Storage:
    """A contiguous run of elements in the file.

    Attributes:
      dtype: the dtype of the elements.
      count: the number of elements.
      path: the file.
      offset: the position of the first element, in bytes. In a legacy file it is known only after the pickle is read.
      unchecked_member: the zip member that contains the elements, until its checksum has been compared; then None.
    """

    dtype: np.dtype[Any]
    count: int
    path: Path
    offset: int | None = None
    unchecked_member: zipfile.ZipInfo | None = None

    def read(self) -> npt.NDArray[Any]:
        """Returns the elements, memory-mapped: [count]. Raises CheckpointError if the checksum does not match."""
        if self.count == 0:
            return np.empty(0, self.dtype)
        assert self.offset is not None, "a storage is placed before its tensors are given out"
        if self.unchecked_member is not None:
            with self.path.open("rb") as file:
                _check_checksum(self.path, file, self.unchecked_member, self.offset)
            self.unchecked_member = None
        return np.memmap(self.path, self.dtype, mode="r", offset=self.offset, shape=(self.count,))


@dataclass(frozen=True, eq=False, slots=True)
class StridedTensor:
    """A strided view of a storage.

    Attributes:
      storage: the storage.
      offset: the index of the first element in the storage.
      shape: the size of each axis.
      strides: the stride of each axis, in elements.
      dtype: the dtype of the values: the storage's own, or the one with which to interpret its bytes.
      conjugate, negative: whether the values are the conjugates, or the negatives, of the stored ones. torch's conj(),
        and imag of its result, create such views.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]
    conjugate: bool = False
    negative: bool = False

    def read(self) -> npt.NDArray[Any]:
        """Returns the values: a read-only view of the memory-mapped file, or a copy if they are computed."""
        elements = self.storage.read()
        if self.dtype != elements.dtype:
            elements = elements[: elements.nbytes // self.dtype.itemsize * self.dtype.itemsize].view(self.dtype)
        if math.prod(self.shape) == 0:
            return np.empty(self.shape, self.dtype)
        raw = elements[self.offset :].view(np.dtype((np.void, self.dtype.itemsize)))  # numpy does not stride float8
        # the stride of an axis of one element is never used, and may be any number
        strides = [
            stride * self.dtype.itemsize if size > 1 else 0
            for size, stride in zip(self.shape, self.strides, strict=True)
        ]
        values = np.lib.stride_tricks.as_strided(raw, self.shape, strides, writeable=False).view(self.dtype)
        if self.conjugate:
            values = np.conjugate(values)
        return np.negative(values) if self.negative else values


@dataclass(eq=False, slots=True)
class Record:
    """An object of a class that is not loaded: the name of the class, and the content that the pickle gives.

    `is_foreign` says that the class is not one of those whose content is known here: see `require_known`.
    """

    class_name: str = ""
    arguments: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)
    is_foreign: bool = False

    def append(self, item: Any) -> None:
        self.items.append(item)

    def extend(self, items: list[Any]) -> None:
        self.items.extend(items)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))


@dataclass(slots=True)
class Budget:
    """The work and memory that the pickles of a file may still use.

    Both stay within the budget whatever the opcodes are. Each opcode costs one operation (a microsecond, and at most
    about 300 bytes, for an empty set or a memoized number). Whatever an opcode creates, copies, hashes or compares
    beyond that costs bytes.

    A genuine checkpoint stays far below both limits. Its operations grow with the number of tensors, about 40 for each,
    and tensors are large. roberta.large with Adam's two moments, 1,179 tensors of 4.3 GB, uses 45 thousand operations
    of the 5.2 million allowed, and under 0.6 MB of 17. A model with as many but tiny tensors still has a million
    operations. (`pytest -s tests/test_hostile.py -k robertas_size` prints these numbers.)

    Attributes:
      operations: the opcodes left: initially 2**20, plus one for every 1024 bytes of the file.
      size: the bytes left: initially 16 MiB, plus two for each byte of pickle that is read.
    """

    operations: int
    size: int = 1 << 24

    @classmethod
    def of(cls, file_size: int) -> Budget:
        """The initial budget for a file of this size in bytes."""
        return cls((1 << 20) + file_size // 1024)

    def use(self, size: int, operations: int = 0) -> None:
        """Charges bytes and operations. Raises CheckpointError if none are left."""
        self.size -= size
        self.operations -= operations
        if self.size < 0 or self.operations < 0:
            what = "creates more" if self.size < 0 else "requests more work"
            raise CheckpointError(f"it is damaged or malicious: its pickle {what} than its size allows")


def load(path: Path) -> Any:
    """Loads the object in a file that torch.save wrote, with `StridedTensor`s for tensors.

    Raises:
      CheckpointError: the file is not such a file, is damaged or truncated, requests a global that is not allowed, or
        contains one object of a foreign class.
    """
    read = layout_of(path)
    try:
        with path.open("rb") as file:
            return require_known(read(path, file))
    except CheckpointError as error:
        raise _with_file_name(path, error) from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    except MemoryError:
        raise CheckpointError(f"{path} needs more memory than is available") from None
    except Exception as error:  # a damaged file can fail in any way: IndexError, KeyError, BadZipFile...
        raise _damaged_error(path, error) from None


def layout_of(path: Path) -> Callable[[Path, IO[bytes]], Any]:
    """Returns the reader for a file's layout. Raises CheckpointError if its first bytes are of no known layout."""
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
    size = path.stat().st_size
    storages: dict[tuple[str, np.dtype[Any], int], Storage] = {}
    with zipfile.ZipFile(_DirectoryLimit(file)) as archive:
        members = _safe_members(path, archive)
        pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise CheckpointError(f"{path} is a zip file but not a PyTorch checkpoint: it has no data.pkl")
        root = pickles[0].removesuffix("data.pkl")
        byte_order = members.get(f"{root}byteorder")
        if byte_order is not None and _read_member(path, file, byte_order, size)[:8] != b"little":
            raise CheckpointError(f"{path} was written on a big-endian machine, which is not supported")

        def storage_of(dtype: np.dtype[Any], key: str, count: int) -> Storage:
            if (known := storages.get((key, dtype, count))) is not None:
                return known
            member = members.get(f"{root}data/{key}")
            if member is None:
                raise CheckpointError(f"{path} is damaged: it has no storage {shortened(key)!r}")
            if member.file_size < count * dtype.itemsize:
                raise CheckpointError(
                    f"{path} is damaged: storage {shortened(key)!r} should contain {count} x {dtype}, but has "
                    f"{member.file_size} bytes"
                )
            offset = _member_offset(path, file, member, size)
            storages[key, dtype, count] = storage = Storage(dtype, count, path, offset, member)
            return storage

        data = _read_member(path, file, members[pickles[0]], size)
        return _unpickle(io.BytesIO(data), storage_of, Budget.of(size))


class _DirectoryLimit:
    """A file for zipfile that refuses to read a directory larger than any checkpoint's."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, count: int = -1) -> bytes:
        if count > _MAX_DIRECTORY:
            raise CheckpointError(
                f"it is damaged or malicious: its directory claims {count} bytes, over the limit of {_MAX_DIRECTORY}"
            )
        return self._file.read(count)


def _safe_members(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The members by name. Raises CheckpointError if torch cannot have written them."""
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name = member.filename
        if name.startswith(("/", "\\")) or re.match("[A-Za-z]:", name) or ".." in re.split(r"[/\\]", name):
            raise CheckpointError(f"{path} is not safe: its member {shortened(name)!r} leads out of it")
        if name in members:
            raise CheckpointError(f"{path} is damaged: it has {shortened(name)!r} twice")
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise CheckpointError(
                f"{path}: its member {shortened(name)!r} is compressed or encrypted, but {_UNCOMPRESSED_ONLY}; if "
                "another program packed it again, load it with torch and save it again"
            )
        members[name] = member
    return members


def _member_offset(path: Path, file: IO[bytes], member: zipfile.ZipInfo, size: int) -> int:
    """The position of a member's first byte, after its local header, whose name and extra field vary in length."""
    file.seek(member.header_offset)
    header = file.read(30)
    if len(header) < 30 or not header.startswith(_ZIP_MAGIC):
        raise CheckpointError(f"{path} is damaged: no local header for {shortened(member.filename)!r}")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    offset = member.header_offset + 30 + int(name_length) + int(extra_length)
    if offset + member.file_size > size:
        raise CheckpointError(f"{path} is damaged: {shortened(member.filename)!r} runs past the end of the file")
    return offset


def _read_member(path: Path, file: IO[bytes], member: zipfile.ZipInfo, size: int) -> bytes:
    """Reads a member that is not a storage. (Tensors read storages.)"""
    offset = _member_offset(path, file, member, size)
    if member.file_size > _MAX_PICKLE:
        raise CheckpointError(f"{path} is damaged: {shortened(member.filename)!r} has {member.file_size} bytes")
    _check_checksum(path, file, member, offset)
    file.seek(offset)
    return file.read(member.file_size)


def _check_checksum(path: Path, file: IO[bytes], member: zipfile.ZipInfo, offset: int) -> None:
    """Raises CheckpointError if the bytes of a member, which begin at `offset`, do not match its checksum."""
    if member.CRC == 0:  # torch.serialization.set_crc32_options(False)
        return
    file.seek(offset)
    found, left = 0, member.file_size
    while left and (block := file.read(min(left, _BLOCK))):
        found, left = zlib.crc32(block, found), left - len(block)
    if found != member.CRC:
        raise CheckpointError(
            f"{path} is damaged: {shortened(member.filename)!r} does not match its checksum; copy it again"
        )


def _load_legacy(path: Path, file: IO[bytes]) -> Any:
    storages: dict[str, Storage] = {}
    size = path.stat().st_size
    budget = Budget.of(size)

    def storage_of(dtype: np.dtype[Any], key: str, count: int) -> Storage:
        storage = storages.setdefault(key, Storage(dtype, count, path))
        if (storage.dtype, storage.count) != (dtype, count):
            raise CheckpointError(f"{path} is damaged: storage {shortened(key)!r} is described in two ways")
        return storage

    def no_storage(*_: Any) -> Storage:
        raise CheckpointError(f"{path} is damaged: it has a storage in an unexpected place")

    magic, protocol, system = (_unpickle(file, no_storage, budget) for _ in range(3))
    if magic != _LEGACY_MAGIC or protocol != _LEGACY_PROTOCOL:
        raise CheckpointError(f"{path} has an unknown version of torch's format")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError(f"{path} was written on a big-endian machine, which is not supported")
    loaded = _unpickle(file, storage_of, budget)
    keys = _unpickle(file, no_storage, budget)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(keys) != set(storages):
        raise CheckpointError(f"{path} is damaged: its storages do not match its tensors")
    if len(keys) != len(storages):
        raise CheckpointError(f"{path} is damaged: it has a storage twice")
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
            raise CheckpointError(
                f"{path} is damaged: the size of storage {shortened(key)!r} differs from that in its tensors"
            )
        file.seek(end)
    return loaded


class _BoundedReader:
    """The file that the unpickler reads, within limits: no more bytes than it has, and no endless lines."""

    def __init__(self, file: IO[bytes], budget: Budget) -> None:
        self._file = file
        self._budget = budget
        position = file.tell()
        self._bytes_left = min(file.seek(0, io.SEEK_END) - position, _MAX_PICKLE)
        file.seek(position)

    def read(self, count: int) -> bytes:
        self._consume(count)
        return self._file.read(count)

    def readline(self) -> bytes:
        line = self._file.readline(_MAX_LINE)
        if not line.endswith(b"\n"):
            raise EOFError("it contains a line without an end")
        self._consume(len(line))
        return line

    def _consume(self, count: int) -> None:
        self._bytes_left -= count
        if self._bytes_left < 0:
            raise EOFError(f"it ends early, or has over {_MAX_PICKLE} bytes of pickle")
        self._budget.size += 2 * count


# The pure-Python unpickler, for three reasons. Its memo is a dict, where the C one allocates as many slots as a number
# in the file says. It reads no byte past its end. And each opcode can be restricted to what checkpoints need.
_Machine: Any = pickle._Unpickler


def _charged(operation: Callable[[Any], None]) -> Callable[[Any], None]:
    """Makes an opcode charge its operation to the budget first."""

    def run(machine: _Unpickler) -> None:
        machine._budget.use(0, operations=1)
        operation(machine)

    return run


class _Unpickler(_Machine):  # type: ignore[misc]
    def __init__(
        self, file: IO[bytes], storage_of: Callable[[np.dtype[Any], str, int], Storage], budget: Budget
    ) -> None:
        super().__init__(_BoundedReader(file, budget), encoding="utf-8")
        self._storage_of = storage_of
        self._budget = budget

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _REBUILDERS:
            return _REBUILDERS[module, name]
        if module in ("torch", "torch.storage") and name in _STORAGE_DTYPES:
            return _StorageType(np.dtype(_STORAGE_DTYPES[name]))
        if module == "torch" and name in _DTYPES:
            return _DataType(_DTYPES[name])
        package = module.partition(".")[0]
        if package in _INERT_PACKAGES or (module, name) in _INERT_NAMES:
            self._budget.use(len(module) + len(name))
            return _RecordType(f"{module}.{name}")
        is_of_torch = f"{module}.".startswith(tuple(f"{each}." for each in _FOREIGN_TORCH))
        if is_of_torch or (package != "torch" and package not in _STANDARD_LIBRARY):
            self._budget.use(len(module) + len(name))
            return _RecordType(f"{module}.{name}", is_foreign=True)
        raise _foreign(f"{module}.{name}")

    def persistent_load(self, saved_id: Any) -> Storage | _RecordType:
        match saved_id:
            case ("storage", _StorageType(dtype), str() as key, str(), int() as count, *rest) if (
                0 <= count < _MAX_COUNT and rest in ([], [None])
            ):
                self._budget.use(len(key))
                return self._storage_of(dtype, key, count)
            case ("module", _RecordType() as kind, str() | None, str() | None):  # a class of modules, in a legacy file
                return kind
        raise CheckpointError("it is damaged: it contains a reference that is not a tensor's storage")

    def get_extension(self, code: int) -> Any:
        raise CheckpointError("it is damaged: it refers to a class by number, which torch never does")

    def load_build(self) -> None:
        """Sets the state of a Record. Nothing else can be changed, least of all a class or function of this module."""
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Record):
            target.state = state
        elif not isinstance(target, OrderedDict):  # the _metadata of a state dict is not needed
            raise CheckpointError(f"it is damaged: it sets the state of {type(target).__name__}, which has none")

    def load_setitems(self) -> None:
        items = self.pop_mark()
        _set_items(self._budget, self.stack[-1], items[::2], items[1::2])

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _set_items(self._budget, self.stack[-1], [key], [value])

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append(_set_items(self._budget, {}, items[::2], items[1::2]))

    def load_append(self) -> None:
        item = self.stack.pop()
        _extend(self.stack[-1], [item])

    def load_appends(self) -> None:
        items = self.pop_mark()
        _extend(self.stack[-1], items)

    def load_additems(self) -> None:
        items = self.pop_mark()
        target = self.stack[-1]
        if not isinstance(target, set):
            raise CheckpointError(f"it is damaged: it adds elements to {type(target).__name__}")
        target.update(_checked_key(self._budget, item) for item in items)

    def load_frozenset(self) -> None:
        items = self.pop_mark()  # first, because this changes the stack to append to
        self.append(frozenset(_checked_key(self._budget, item) for item in items))

    def load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.append(self._call(function, arguments))

    def load_newobj(self) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()
        self.append(self._make_instance(kind, arguments))

    def load_newobj_ex(self) -> None:
        keywords, arguments, kind = self.stack.pop(), self.stack.pop(), self.stack.pop()
        if not isinstance(keywords, dict):
            raise CheckpointError("it is damaged: it creates an object from arguments that are not a dict")
        self.append(self._make_instance(kind, arguments))  # an inert record needs no keyword arguments

    def _instantiate(self, kind: Any, arguments: Any) -> None:  # called for INST and OBJ
        self.append(self._call(kind, tuple(arguments)))

    def _make_instance(self, kind: Any, arguments: Any) -> Any:
        if not isinstance(kind, _RecordType):
            raise CheckpointError("it is damaged: it creates an object of something that is not a class")
        return self._call(kind, arguments)

    def _call(self, function: Any, arguments: Any) -> Any:
        """Calls a function of this module, or creates a Record of a class."""
        if not isinstance(arguments, tuple):
            raise CheckpointError("it is damaged: it contains a call without arguments")
        self._budget.use(8 * len(arguments))  # for the copy
        if isinstance(function, _RecordType):
            return Record(function.class_name, arguments, is_foreign=function.is_foreign)
        if isinstance(function, FunctionType):  # find_class returns only the functions in _REBUILDERS
            return function(self._budget, *arguments)
        raise CheckpointError(f"it is damaged: it calls {type(function).__name__}, which is not a function")

    def refuse_buffer(self) -> None:
        raise CheckpointError("it is damaged: it contains a buffer, which torch never writes")

    dispatch: ClassVar[dict[int, Any]] = {
        code: _charged(operation)
        for code, operation in {
            **_Machine.dispatch,
            pickle.BUILD[0]: load_build,
            pickle.SETITEM[0]: load_setitem,
            pickle.SETITEMS[0]: load_setitems,
            pickle.DICT[0]: load_dict,
            pickle.APPEND[0]: load_append,
            pickle.APPENDS[0]: load_appends,
            pickle.ADDITEMS[0]: load_additems,
            pickle.FROZENSET[0]: load_frozenset,
            pickle.REDUCE[0]: load_reduce,
            pickle.NEWOBJ[0]: load_newobj,
            pickle.NEWOBJ_EX[0]: load_newobj_ex,
            pickle.BYTEARRAY8[0]: refuse_buffer,  # would allocate as much as it claims
            pickle.NEXT_BUFFER[0]: refuse_buffer,
            pickle.READONLY_BUFFER[0]: refuse_buffer,
        }.items()
    }


def _set_items(budget: Budget, target: Any, keys: Any, values: Any) -> Any:
    if not isinstance(target, dict | Record):
        raise CheckpointError(f"it is damaged: it sets items of {type(target).__name__}, which has none")
    for key, value in zip(keys, values, strict=True):
        target[_checked_key(budget, key)] = value
    return target


def _extend(target: Any, items: list[Any]) -> None:
    if not isinstance(target, list | Record):
        raise CheckpointError(f"it is damaged: it appends elements to {type(target).__name__}")
    target.extend(items)


def _checked_key(budget: Budget, key: Any) -> Any:
    """Returns a key whose hash costs no more than its size and cannot be made to collide with others.

    Text is hashed once, with the process's own random seed. A number is its own hash. A tuple would be hashed again
    each time, by a known rule, so it becomes a Record, which nothing is ever looked up by.
    """
    match key:
        case str() | bytes():
            budget.use(len(key))
            return key
        case int() if abs(key) > _MAX_INT_KEY:
            raise CheckpointError("it is damaged: it has a number of over 60 bits as a key")
        case int() | float() | Record() | None:
            return key
        case tuple():
            budget.use(32 * len(key))  # for the check of each part
            if all(isinstance(part, str | bytes | int | float) for part in key):
                return Record("builtins.tuple", key)
    raise CheckpointError(f"it is damaged: it has a key of type {type(key).__name__}")


@dataclass(frozen=True)
class _StorageType:
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class _DataType:
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class _RecordType:
    """A class whose objects become Records, whatever their arguments."""

    class_name: str
    is_foreign: bool = False


def _foreign(class_name: str) -> CheckpointError:
    return CheckpointError(
        f"it requests {shortened(class_name)}, which no RoBERTa checkpoint needs; none of its code was run. Do not load"
        " this file with torch.load either, unless you trust its author; then save the model's state_dict() alone"
    )


def require_known(value: Any) -> Any:
    """Returns a value that is about to be read. Raises CheckpointError if it is of a foreign class, or is the class."""
    if isinstance(value, Record | _RecordType) and value.is_foreign:
        raise _foreign(value.class_name)
    return value


def _rebuild_tensor(
    _budget: Budget,
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    _grad: Any = None,
    _hooks: Any = None,
    metadata: Any = None,
) -> StridedTensor:
    """torch._utils._rebuild_tensor and _rebuild_tensor_v2."""
    if not isinstance(storage, Storage):
        raise CheckpointError("it is damaged: it has a tensor without a storage")
    return _tensor(storage, offset, shape, strides, storage.dtype, metadata)


def _rebuild_tensor_v3(
    _budget: Budget,
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    _grad: Any,
    _hooks: Any,
    data_type: Any,
    metadata: Any = None,
) -> StridedTensor:
    """torch._utils._rebuild_tensor_v3: interprets an untyped storage, for dtypes that have no storage type."""
    if not isinstance(storage, Storage) or storage.dtype != np.uint8 or not isinstance(data_type, _DataType):
        raise CheckpointError("it is damaged: it has a tensor without a storage or a dtype")
    return _tensor(storage, offset, shape, strides, data_type.dtype, metadata)


def _tensor(
    storage: Storage, offset: Any, shape: Any, strides: Any, dtype: np.dtype[Any], metadata: Any
) -> StridedTensor:
    """Creates a tensor, and checks that it stays within its storage."""
    if not isinstance(shape, tuple | list) or not isinstance(strides, tuple | list):
        raise CheckpointError("it is damaged: it has a tensor without a shape")
    if len(shape) > MAX_AXES or len(shape) != len(strides):
        raise CheckpointError(f"it is damaged: it has a tensor of {len(shape)} axes and {len(strides)} strides")
    numbers = (offset, *shape, *strides)
    count = storage.count * storage.dtype.itemsize // dtype.itemsize
    if not all(type(n) is int and 0 <= n < _MAX_COUNT for n in numbers):
        raise CheckpointError("it is damaged: the sizes, strides or offset of a tensor are not counts")
    if not is_countable(shape):
        raise CheckpointError(f"it is damaged: it has a tensor of shape {tuple(shape)}")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if math.prod(shape) and last >= count:
        raise CheckpointError(f"it is damaged: a tensor of shape {tuple(shape)} reaches past its {count} elements")
    return StridedTensor(storage, offset, tuple(shape), tuple(strides), dtype, *_view_flags(metadata, dtype))


def _view_flags(metadata: Any, dtype: np.dtype[Any]) -> tuple[bool, bool]:
    """Whether a tensor is a conjugate view, and whether it is a negative view (torch._utils.set_tensor_metadata)."""
    if metadata is None:
        return False, False
    if not isinstance(metadata, dict) or len(metadata) > 2 or not metadata.keys() <= {"conj", "neg"}:
        raise CheckpointError("it has a tensor with metadata other than conj and neg, which may change its values")
    conjugate, negative = (bool(metadata.get(key)) for key in ("conj", "neg"))
    if (conjugate and dtype.kind != "c") or (negative and dtype.kind == "b"):
        raise CheckpointError(f"it is damaged: it has a conjugate or negative view of {dtype}")
    return conjugate, negative


def _rebuild_parameter(_budget: Budget, tensor: Any, *_: Any) -> Any:
    return tensor


def _bytes_from_latin1(budget: Budget, text: Any, encoding: Any) -> bytes:
    """_codecs.encode, with which protocol 2 represents bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise CheckpointError("it is damaged: it has bytes in an encoding other than latin1")
    budget.use(len(text))
    return text.encode("latin1")


def _ordered_dict(budget: Budget, items: Any = ()) -> Any:
    """collections.OrderedDict."""
    pairs = _elements(budget, items.items() if isinstance(items, dict) else items)
    return _set_items(budget, OrderedDict(), [key for key, _ in pairs], [value for _, value in pairs])


def _set(budget: Budget, items: Any = ()) -> set[Any]:
    return {_checked_key(budget, item) for item in _elements(budget, items)}


def _elements(budget: Budget, items: Any) -> list[Any]:
    """The elements of a new collection, charged to the budget. An entry of a dict or set takes about 200 bytes."""
    if not isinstance(items, list | tuple | set | frozenset | ItemsView):
        raise CheckpointError(f"it is damaged: it creates a collection from {type(items).__name__}")
    budget.use(200 * len(items))
    return list(items)


_REBUILDERS: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("_codecs", "encode"): _bytes_from_latin1,
    ("collections", "OrderedDict"): _ordered_dict,
    ("collections", "defaultdict"): _RecordType("collections.defaultdict"),
    ("collections", "Counter"): _RecordType("collections.Counter"),
    ("builtins", "set"): _set,
    ("__builtin__", "set"): _set,
}


def _unpickle(file: IO[bytes], storage_of: Callable[[np.dtype[Any], str, int], Storage], budget: Budget) -> Any:
    return _Unpickler(file, storage_of, budget).load()


def _with_file_name(path: Path, error: CheckpointError) -> CheckpointError:
    """The error with the file's name in front, unless it already contains it."""
    text = str(error)
    return error if str(path) in text else CheckpointError(f"{path}: {text}")


def _damaged_error(path: Path, error: Exception) -> CheckpointError:
    reason = shortened(str(error)) or type(error).__name__
    return CheckpointError(f"{path} is damaged or cut short ({reason}); copy or download it again")


_NUMPY_SCALARS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")


def _numpy_scalar(record: Record) -> Any:
    """A numpy number from its record, scalar(dtype("f8"), bytes); the record itself if it is of another kind."""
    match record.arguments:
        case (Record(arguments=(str() as code, *_)), bytes() as data) if re.fullmatch("[iu][1248]|f[248]|b1", code):
            dtype = np.dtype(code).newbyteorder("<")
            return np.frombuffer(data, dtype)[0].item() if len(data) == dtype.itemsize else record
    return record


def plain(value: Any) -> Any:
    """Converts arguments to dicts, lists and scalars, whatever classes they were stored in.

    argparse.Namespace, OmegaConf's DictConfig, ListConfig and value nodes, enums, and numpy's numbers are converted.
    Other objects stay as they are. An object that occurs several times is converted once. An object becomes None inside
    itself, and where it is nested deeper than arguments ever are.
    """
    return _plain(value, {}, 0)


_MAX_DEPTH = 100


def _plain(value: Any, opened: dict[int, Any], depth: int) -> Any:
    if not isinstance(value, Record | dict | list | tuple):
        return value
    if id(value) in opened or depth > _MAX_DEPTH:
        return opened.get(id(value))
    opened[id(value)] = None
    opened[id(value)] = result = _open_containers(value, lambda part: _plain(part, opened, depth + 1))
    return result


def _open_containers(value: Any, inside: Callable[[Any], Any]) -> Any:
    if isinstance(value, Record) and value.is_foreign:
        return value
    if isinstance(value, Record):
        state = value.state[0] if isinstance(value.state, tuple) and value.state else value.state
        if value.class_name == "argparse.Namespace" and isinstance(state, dict):
            return inside(state)
        if value.class_name.startswith("omegaconf.") and isinstance(state, dict):
            return inside(state["_content"] if "_content" in state else state.get("_val"))
        if value.class_name in _NUMPY_SCALARS:
            return _numpy_scalar(value)
        if value.state is None and len(value.arguments) == 1:  # an enum: Class(value)
            return inside(value.arguments[0])
        return value
    if isinstance(value, dict):
        return {_plain_key(key, inside): inside(item) for key, item in value.items()}
    return [inside(item) for item in value]


def _plain_key(key: Any, inside: Callable[[Any], Any]) -> Any:
    """Converts a key that is a member of an enum to its value. Other keys stay as they are."""
    opened = inside(key) if isinstance(key, Record) else key
    return opened if isinstance(opened, str | int | float | bytes) else key


_EXTRA_STATE = "_extra_state"  # torch.nn.Module.get_extra_state, which no part of a RoBERTa has


def tensors(state: Any, path: Path | None = None) -> Iterator[tuple[str, StridedTensor]]:
    """Yields the (name, tensor) pairs of a state dict, and skips entries that are not tensors.

    Errors name the file at `path`, from which the state dict was loaded.

    Raises CheckpointError for an entry of a foreign class, which may be a tensor in a form that is not known.
    """
    for name, value in state.items():
        if not isinstance(name, str) or name.endswith(_EXTRA_STATE):
            continue
        try:
            require_known(value)
        except CheckpointError as error:
            named = "" if path is None else f"{path}: "
            raise CheckpointError(f"{named}{shortened(name)} is no tensor: {error}") from None
        if isinstance(value, StridedTensor):
            yield name, value
