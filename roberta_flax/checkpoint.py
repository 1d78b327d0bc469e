"""The converted directory on disk.

  config.json         RobertaConfig
  model.safetensors   the parameter tree, a tensor a leaf, named by its path joined with dots
  dict.txt, encoder.json, vocab.bpe   the tokenizer's files; or dict.txt, sentencepiece.bpe.model
  conversion.json     where it came from: source, sha256, versions, and where every source tensor went

It needs nothing else to run. It is written under a temporary name and renamed when it is whole. Parameters are written
and read one at a time, so that neither takes more memory than the parameters themselves.
"""

from __future__ import annotations

import glob
import importlib.metadata
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from roberta_flax.config import RobertaConfig
from roberta_flax.errors import CheckpointError, InputError, RobertaFlaxError
from roberta_flax.forward import Params, abstract_params
from roberta_flax.tokenizer import BYTE_LEVEL_FILES, SENTENCEPIECE_FILE, SENTENCEPIECE_FILES, Tokenizer

CONFIG_FILE = "config.json"
PARAMS_FILE = "model.safetensors"
CONVERSION_FILE = "conversion.json"
PARTIAL_SUFFIX = ".partial"  # of the temporary name
STORED_DTYPES: dict[str, np.dtype[Any]] = {  # by safetensors' names
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_DTYPE_NAMES = {dtype: name for name, dtype in STORED_DTYPES.items()}
_READ_DTYPES: dict[str, np.dtype[Any]] = {  # those of buffers, which are no parameters
    **STORED_DTYPES,
    "BOOL": np.dtype(np.bool_),
    **{f"I{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
}
_ALIGNMENT = 64  # bytes; XLA's CPU backend takes an array as it is where it begins at a multiple of this
_CHUNK = 1 << 22  # elements written at a time
_READERS = 4  # threads
_TILE = 128  # rows and columns of a transpose copied at a time, so that both sides stay in the cache
_REPLACED = "replaced"  # a directory on its way out, inside the one that takes its place
_MAX_PROBLEMS = 100  # named in a message
_LAYER_TENSORS = 16  # kernel and bias of six Dense, scale and bias of two LayerNorms


class Tensor(Protocol):
    """A tensor with a shape, a dtype, and values that are read when asked for."""

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self) -> npt.NDArray[Any]:
        """The values; where it can be, a view of the file."""


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
    """How many values of a tensor are not numbers.

    Attributes:
      nan: not a number.
      infinite: infinite in the source.
      overflowed: finite in the source, and beyond the range of the dtype that is stored.
    """

    nan: int = 0
    infinite: int = 0
    overflowed: int = 0

    def __bool__(self) -> bool:
        return bool(self.nan or self.infinite or self.overflowed)

    def __str__(self) -> str:
        counts = {"NaN": self.nan, "infinite": self.infinite, "too large for the dtype": self.overflowed}
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


def path_name(path: tuple[Any, ...]) -> str:
    """The dotted name of a leaf, from its path as jax.tree_util.tree_flatten_with_path gives it."""
    return ".".join(str(part.key) for part in path)


def flatten(params: Params) -> dict[str, Any]:
    """The leaves of a parameter tree by dotted name."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}


def unflatten(leaves: Mapping[str, Any], like: Params) -> Params:
    """The tree of `like`'s structure with these leaves, by dotted name: what `flatten` takes apart."""
    return jax.tree_util.tree_map_with_path(lambda path, _: leaves[path_name(path)], like)


def is_converted(directory: Path) -> bool:
    """Whether `directory` looks like a converted one; `read` tells whether it is whole.

    transformers' directories have files of the same names.
    """
    if not (directory / CONFIG_FILE).is_file() or not (directory / PARAMS_FILE).is_file():
        return False
    try:
        config = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return True
    return not is_transformers_config(config)


def is_transformers_config(config: Any) -> bool:
    """Whether what a config.json holds is a configuration of transformers' and not a RobertaConfig."""
    return isinstance(config, dict) and not {"model_type", "num_hidden_layers"}.isdisjoint(config)


def stored_dtype(name: str) -> np.dtype[Any]:
    """The dtype called `name`; InputError where parameters are not stored in it."""
    for dtype in STORED_DTYPES.values():
        if dtype.name == name:
            return dtype
    raise InputError(f"parameters are stored in {', '.join(map(str, STORED_DTYPES.values()))}; got {name!r}")


def check_directory(bpe_dir: str | os.PathLike[str] | None) -> None:
    """Raises InputError where `bpe_dir` is given and is no directory that can be read."""
    if bpe_dir is None:
        return
    try:
        with os.scandir(bpe_dir) as entries:
            next(entries, None)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"bpe_dir should be a directory with the tokenizer's files; {bpe_dir}: {reason}") from None


def check_tensors(config: RobertaConfig, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What is wrong with a set of tensors as the parameters of `config`: one string a problem, empty if nothing.

    A depth that is merely claimed costs nothing.
    """
    if config.num_layers * _LAYER_TENSORS > len(shapes):
        return [f"it has {len(shapes)} tensors, too few for {config.num_layers} layers"]
    expected = {name: leaf.shape for name, leaf in flatten(abstract_params(config)).items()}
    return [
        *(f"missing: {name} {list(expected[name])}" for name in expected.keys() - shapes.keys()),
        *(f"unexpected: {name} {list(shapes[name])}" for name in shapes.keys() - expected.keys()),
        *(
            f"wrong shape: {name} is {list(shapes[name])}, expected {list(expected[name])}"
            for name in expected.keys() & shapes.keys()
            if tuple(shapes[name]) != tuple(expected[name])
        ),
    ]


def check_stored(config: RobertaConfig, tensors: Mapping[str, Tensor]) -> list[str]:
    """What is wrong with a converted directory's tensors as the parameters of its configuration, as check_tensors."""
    integers = [name for name, tensor in tensors.items() if tensor.dtype not in _DTYPE_NAMES]
    return [
        *check_tensors(config, {name: tensor.shape for name, tensor in tensors.items()}),
        *(f"wrong dtype: {name} is {tensors[name].dtype}, expected floating point" for name in integers),
    ]


def describe_problems(problems: list[str]) -> str:
    """All problems in one line, sorted (a hundred of them at most)."""
    some = sorted(problems)[:_MAX_PROBLEMS]
    return "; ".join(some) + (f"; and {len(problems) - len(some)} more" if len(problems) > len(some) else "")


def remove_partial(destination: Path) -> None:
    """Removes what killed conversions to `destination` left; only for who knows that none is running."""
    for partial in destination.parent.glob(f".{glob.escape(destination.name)}-*{PARTIAL_SUFFIX}"):
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def new_directory(destination: Path, *, replace: bool = False) -> Iterator[Path]:
    """Gives a temporary directory beside `destination`, and renames it to `destination` if the block succeeds.

    Whatever happens, `destination` is either absent or whole.

    Args:
      destination: the directory to make.
      replace: whether it takes the place of one that is there, which is removed then.

    Raises:
      CheckpointError: `destination` exists and is not to be replaced, or cannot be made there.
    """
    try:
        if not replace and (destination.exists() or destination.is_symlink()):
            raise CheckpointError(f"{destination} exists already; remove it or choose another name")
        destination.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(
            tempfile.mkdtemp(prefix=f".{destination.name}-", suffix=PARTIAL_SUFFIX, dir=destination.parent)
        )
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"cannot write {destination}: {reason}") from None
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if replace and destination.is_dir():
            destination.rename(temporary / _REPLACED)
        temporary.rename(destination)
        shutil.rmtree(destination / _REPLACED, ignore_errors=True)
    except RobertaFlaxError:  # DownloadError is an OSError too, and says more
        raise
    except OSError as error:
        at_fault = Path(str(error.filename2 or error.filename or destination))  # the source's file, say, and not ours
        ours = any(at_fault.is_relative_to(path) for path in (temporary, destination))
        what = f"write {destination}" if ours else f"read or write {at_fault}"
        raise CheckpointError(f"cannot {what}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def save(
    destination: Path,
    config: RobertaConfig,
    params: Params,
    tokenizer: Tokenizer,
    dtype: jax.typing.DTypeLike | None = None,
    *,
    replace: bool = False,
) -> dict[str, NonFinite]:
    """Writes a model that is in memory as a converted directory, which `read` reads.

    Args:
      destination: the directory to make.
      config, params, tokenizer: the model.
      dtype: to store parameters in; their own if not given.
      replace: whether it takes the place of a directory that is there; without it, it must not exist.

    Returns:
      What write_tensors does.

    Raises:
      InputError: parameters that do not fit the configuration, or a dtype that they are not stored in.
      CheckpointError: the destination exists or cannot be written.
    """
    leaves = flatten(params)
    if problems := check_tensors(config, {name: leaf.shape for name, leaf in leaves.items()}):
        raise InputError(f"the parameters do not fit the configuration: {describe_problems(problems)}")
    stored = None if dtype is None else stored_dtype(jnp.dtype(dtype).name)
    conversion = {"source": None, "kind": "saved", "versions": versions()}
    with new_directory(destination, replace=replace) as directory:
        for name, content in tokenizer.files().items():
            (directory / name).write_bytes(content)
        return write(directory, config, {name: Values(leaf) for name, leaf in leaves.items()}, conversion, stored)


def versions() -> dict[str, str]:
    """Of this program and what it computes with, for conversion.json."""
    return {name: importlib.metadata.version(name) for name in ("roberta-flax", "jax", "flax", "numpy")}


def write(
    directory: Path,
    config: RobertaConfig,
    tensors: Mapping[str, Tensor],
    conversion: Mapping[str, Any],
    dtype: np.dtype[Any] | None = None,
) -> dict[str, NonFinite]:
    """Writes config.json, model.safetensors and conversion.json into `directory` (see `new_directory`).

    The tokenizer's files are the caller's to put there.

    Returns:
      What write_tensors does.
    """
    found = write_tensors(directory / PARAMS_FILE, tensors, dtype)
    _write_text(directory / CONFIG_FILE, config.to_json())
    _write_text(directory / CONVERSION_FILE, json.dumps(conversion, indent=2) + "\n")
    return found


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    dtype: np.dtype[Any] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> dict[str, NonFinite]:
    """Writes a safetensors file, one tensor at a time and a part of it at a time.

    Args:
      path: the file to make.
      tensors: by name; floating point.
      dtype: to store them in, rounding to nearest; their own if not given.
      metadata: of the file.

    Returns:
      The names of tensors that have values which are not finite, with counts.
    """
    # those whose length keeps what follows aligned come first
    names = sorted(tensors, key=lambda name: (_size(tensors[name], dtype) % _ALIGNMENT != 0, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        tensor = tensors[name]
        begin, end = end, end + _size(tensor, dtype)
        code = _DTYPE_NAMES[np.dtype(dtype or tensor.dtype)]
        header[name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    found: dict[str, NonFinite] = {}
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            if counts := _write_values(file, tensors[name].read(), dtype):
                found[name] = counts
        file.flush()
        os.fsync(file.fileno())
    return found


def _size(tensor: Tensor, dtype: np.dtype[Any] | None) -> int:
    return math.prod(tensor.shape) * np.dtype(dtype or tensor.dtype).itemsize


def _write_values(file: IO[bytes], values: npt.NDArray[Any], dtype: np.dtype[Any] | None) -> NonFinite:
    counts = NonFinite()
    rows = values.reshape(1) if values.ndim == 0 else values
    step = max(1, _CHUNK // max(1, math.prod(rows.shape[1:])))
    for start in range(0, len(rows), step):
        block = _contiguous(rows[start : start + step])
        with np.errstate(over="ignore", invalid="ignore"):
            stored = block if dtype is None else block.astype(dtype)
        if not np.isfinite(stored).all():
            infinite = int(np.isinf(block).sum())
            counts.nan += int(np.isnan(block).sum())
            counts.infinite += infinite
            counts.overflowed += int(np.isinf(stored).sum()) - infinite
        file.write(stored.reshape(-1).view(np.uint8).data)
    return counts


def _contiguous(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The values in row-major order. A transpose is copied tile by tile, several times faster than numpy's own copy."""
    if values.ndim != 2 or values.flags.c_contiguous:
        return np.ascontiguousarray(values)
    result = np.empty(values.shape, values.dtype)
    for i in range(0, values.shape[0], _TILE):
        for j in range(0, values.shape[1], _TILE):
            result[i : i + _TILE, j : j + _TILE] = values[i : i + _TILE, j : j + _TILE]
    return result


def _write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Makes a file, which is on the disk when this returns."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def read_config(directory: Path) -> RobertaConfig:
    """The configuration of a converted directory; raises CheckpointError where it cannot be read."""
    try:
        return RobertaConfig.from_json((directory / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read {directory / CONFIG_FILE}: {error}") from None
    except CheckpointError as error:
        raise CheckpointError(f"{directory}: {error}") from None


def read(directory: Path, param_dtype: jax.typing.DTypeLike = jnp.float32) -> tuple[RobertaConfig, Params]:
    """Reads a converted directory.

    Args:
      directory: what convert() wrote.
      param_dtype: dtype of the parameters in memory, whatever they are stored in.

    Returns:
      The configuration, and the parameter tree: nested dicts of jax.Array.

    Raises:
      CheckpointError: a file is missing or damaged, or tensors do not fit the configuration (all are listed).
    """
    config, stored = read_stored(directory)
    try:
        arrays = _on_device(stored, jnp.dtype(param_dtype))
    except OSError as error:
        raise CheckpointError(f"cannot read {directory / PARAMS_FILE}: {error.strerror or error}") from None
    return config, unflatten(arrays, abstract_params(config))


def read_stored(directory: Path) -> tuple[RobertaConfig, dict[str, StoredTensor]]:
    """The configuration and the tensors of a converted directory; as `read`, but the values are not read yet."""
    if missing := missing_files(directory):
        raise CheckpointError(f"{directory} is not a whole converted model: it lacks {', '.join(missing)}")
    if directory.name.endswith(PARTIAL_SUFFIX):
        raise CheckpointError(f"{directory} is what a conversion that was stopped left; remove it, and convert again")
    config = read_config(directory)
    stored = read_tensors(directory / PARAMS_FILE)
    if problems := check_stored(config, stored):
        raise CheckpointError(
            f"{directory / PARAMS_FILE} does not hold the parameters of its {CONFIG_FILE}: "
            f"{describe_problems(problems)}"
        )
    return config, stored


def _on_device(stored: Mapping[str, StoredTensor], dtype: np.dtype[Any]) -> dict[str, jax.Array]:
    """The tensors as arrays on JAX's default device.

    Several are read at once, since what takes the time is that the kernel finds memory for them; some, so that a host
    never holds many that are on their way to an accelerator.
    """
    names, arrays = list(stored), {}
    with ThreadPoolExecutor(_READERS) as readers:
        for start in range(0, len(names), 4 * _READERS):
            some = names[start : start + 4 * _READERS]
            for name, values in zip(some, readers.map(lambda name: stored[name].load(dtype), some), strict=True):
                arrays[name] = jax.device_put(values)
    return arrays


def file_names(directory: Path) -> tuple[str, ...]:
    """The names of a converted directory's files, by the tokenizer that `directory` has."""
    tokenizer = SENTENCEPIECE_FILES if (directory / SENTENCEPIECE_FILE).is_file() else BYTE_LEVEL_FILES
    return (CONFIG_FILE, PARAMS_FILE, CONVERSION_FILE, *tokenizer)


def missing_files(directory: Path) -> list[str]:
    """The files of a converted directory that are not in `directory`."""
    return [name for name in file_names(directory) if not (directory / name).is_file()]


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
        """The values in memory, in `dtype`, where JAX can take them without another copy."""
        size = math.prod(self.shape) * self.dtype.itemsize
        room = np.empty(size + _ALIGNMENT, np.uint8)
        begin = -room.ctypes.data % _ALIGNMENT
        raw = room[begin : begin + size]
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset)
            view, done = raw.data, 0
            while done < size:  # one read gives at most 2 GiB
                count = file.readinto(view[done:])
                if not count:
                    raise CheckpointError(f"{self.path} is damaged or cut short; convert the model again")
                done += count
        return raw.view(self.dtype).reshape(self.shape).astype(dtype, copy=False)


def read_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name; their values are not read yet.

    Raises:
      CheckpointError: it is missing, damaged, or has tensors in a dtype that is neither floating point nor integers.
    """
    try:
        with safe_open(path, framework="numpy") as file:  # checks the header: offsets, sizes, no gap, no overlap
            names = list(file.keys())
        with path.open("rb") as raw:
            length = int.from_bytes(raw.read(8), "little")
            header = json.loads(raw.read(length))
    except (SafetensorError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged or cut short ({error}); convert or copy it again") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    tensors = {}
    for name in names:
        entry = header[name]
        if (dtype := _READ_DTYPES.get(entry["dtype"])) is None:
            raise CheckpointError(f"{path} has {name[:200]} in {entry['dtype']}; expected {', '.join(STORED_DTYPES)}")
        offset = 8 + length + entry["data_offsets"][0]
        tensors[name] = StoredTensor(path, dtype, tuple(entry["shape"]), offset)
    return tensors


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
