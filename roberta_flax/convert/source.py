"""What every source becomes: a configuration, parameters by path of the Flax tree, and the tokenizer's files."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from roberta_flax.checkpoint.converted import check_tensors, describe_problems
from roberta_flax.checkpoint.tensors import STORED_DTYPES, LazyTensor
from roberta_flax.convert.names import TRANSPOSE, Place, transformed
from roberta_flax.convert.views import View, size_in_bytes
from roberta_flax.errors import CheckpointError, InputError, shortened
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.text.tokenizer import Dictionary

_CHUNK = 1 << 22  # elements compared at a time
_MAX_SHARING = 4  # times that a file's tensors are its size: an LM head tied to the embedding makes at most two

_WRAPPER = "module."  # torch.nn.DataParallel and DistributedDataParallel

_Result = TypeVar("_Result")


@dataclass(frozen=True, eq=False)
class Parameter(View):
    """A tensor as it stands in the tree; `source` is what the source calls it."""

    source: str


@dataclass(frozen=True)
class Source:
    """A model in another library's form, read and understood.

    Attributes:
      kind: "fairseq" or "huggingface".
      config: sizes and choices, from its arguments and its tensors' shapes.
      parameters: dotted path of the tree -> Parameter; exactly the paths that `config` asks for.
      provenance: for every tensor of the source, the paths of the tree that it becomes, or why it is left out.
      tokenizer_files: the converted directory's, by name: a file to copy, or what is to be in it.
      notes: what the user should hear of, a line each.
    """

    kind: str
    config: RobertaConfig
    parameters: dict[str, Parameter]
    provenance: dict[str, list[str] | str]
    tokenizer_files: Mapping[str, Path | str | bytes]
    notes: list[str]


@dataclass
class Placing:
    """Tensors on their way into the tree, and all that is wrong with them."""

    parameters: dict[str, Parameter] = field(default_factory=dict)
    provenance: dict[str, list[str] | str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def put(self, name: str, tensor: LazyTensor, place: Place | None) -> None:
        """Places the tensor that the source calls `name`."""
        shape = list(tensor.shape)
        if place is None:
            self.problems.append(f"unknown: {shortened(name)} {shape}")
        elif not is_floating(tensor.dtype):
            self.problems.append(
                f"wrong dtype: {shortened(name)} is {tensor.dtype}, expected floating point, 16 to 64 bits"
            )
        elif place.transform is TRANSPOSE and len(shape) != 2:
            self.problems.append(f"wrong shape: {shortened(name)} is {shape}, expected two axes")
        elif place.path in self.parameters:
            other = self.parameters[place.path].source
            self.problems.append(f"twice: {shortened(other)} and {shortened(name)} are the same tensor")
        else:
            moved = transformed(tensor, place.transform)
            self.parameters[place.path] = Parameter(moved.dtype, moved.shape, moved.read, name)
            paths = self.provenance.setdefault(name, [])
            if isinstance(paths, list):
                paths.append(place.path)

    def leave_out(self, name: str, why: str) -> None:
        """Notes why a tensor is left out."""
        self.provenance[name] = why

    def size(self, path: str, axis: int, declared: Any, more: int = 0) -> int:
        """A size from a tensor's shape; `more` than declared where there is none, so that all problems are listed."""
        shape = self.parameters[path].shape if path in self.parameters else ()
        return shape[axis] if len(shape) == 2 else integer(declared) + more

    @property
    def num_layers(self) -> int:
        return len({match[1] for path in self.parameters if (match := re.match(r"layers\.([0-9]+)\.", path))})

    def has(self, part: str) -> bool:
        """Whether there are parameters in a part of the tree."""
        return any(path.startswith(f"{part}.") for path in self.parameters)

    def check(self, what: str, files: Iterable[Path], config: RobertaConfig) -> None:
        """Raises CheckpointError, with all problems in it, unless the parameters are those of `config`.

        Args:
          what: the source, for the message.
          files: the files that hold the tensors, which they cannot outgrow.
          config: what the source is taken for.
        """
        self.problems += check_tensors(config, {path: each.shape for path, each in self.parameters.items()})
        if self.problems:
            raise CheckpointError(f"{what} does not fit a RoBERTa: {describe_problems(self.problems)}")
        _check_total(what, self.parameters.values(), _room(files))


def check_stored(what: str, files: Iterable[Path], tensors: Mapping[str, LazyTensor]) -> None:
    """Raises CheckpointError for tensors that their files cannot hold; before anything reads a value.

    A tensor is stretched by strides of zero: a small file, a huge array. Many that share their values are too.

    Args:
      what: the source, for the message.
      files: the files that hold the tensors.
      tensors: by the source's names.
    """
    room = _room(files)
    stretched = [
        f"not stored whole: {shortened(name)} {list(tensor.shape)}"
        for name, tensor in tensors.items()
        if size_in_bytes(tensor) > room
    ]
    if stretched:
        raise CheckpointError(f"{what} does not fit a RoBERTa: {describe_problems(stretched)}")
    _check_total(what, tensors.values(), room, _MAX_SHARING)


def _room(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _check_total(what: str, tensors: Iterable[LazyTensor], room: int, sharing: int = 1) -> None:
    """Raises CheckpointError where tensors together are over `sharing` times the size of their files."""
    if (total := sum(map(size_in_bytes, tensors))) > sharing * room:
        raise CheckpointError(
            f"{what} is not a model as it was saved: its tensors share their values, {total} bytes of parameters "
            f"in {room} bytes of file"
        )


def read_json(path: Path) -> dict[str, Any]:
    """The one object in a JSON file; CheckpointError where it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({shortened(str(error))})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} should hold one JSON object")
    return value


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Whether parameters are stored in this dtype."""
    return dtype in STORED_DTYPES.values()


def integer(value: Any) -> int:
    """An argument that is an integer; ValueError where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | str | float):
        raise ValueError(f"expected an integer, got {type(value).__name__}")
    number = int(value)
    if not 0 <= number < 1 << 31 or number != float(value):
        raise ValueError(f"expected an integer, got {shortened(str(value))}")
    return number


def number(value: Any) -> float:
    """An argument that is a number; ValueError where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | str | float):
        raise ValueError(f"expected a number, got {type(value).__name__}")
    result = float(value)
    if not math.isfinite(result):
        raise ValueError(f"expected a number, got {result}")
    return result


def boolean(value: Any) -> bool:
    """An argument that is true or false, or says so; ValueError where it is neither."""
    named = {"true": True, "1": True, "false": False, "0": False}
    if (found := named.get(str(value).lower())) is None:
        raise ValueError(f"expected true or false, got {shortened(str(value))}")
    return found


def understood(what: str, make: Callable[[], _Result]) -> _Result:
    """What `make` makes of a source's arguments; CheckpointError where these make no sense."""
    try:
        return make()
    except CheckpointError:
        raise
    except (InputError, TypeError, ValueError, OverflowError, KeyError) as error:
        raise CheckpointError(f"{what} has arguments that do not make a RoBERTa: {shortened(str(error))}") from None


def unwrapped(names: Iterable[str]) -> str:
    """The prefix that torch's DataParallel puts before the names of a model, where all have it."""
    names = list(names)
    return _WRAPPER if names and all(name.startswith(_WRAPPER) for name in names) else ""


def equal(a: LazyTensor, b: LazyTensor) -> bool:
    """Whether two tensors have the same shape and values (NaN is NaN), a part of them at a time."""
    return a.shape == b.shape and _same(a.read(), b.read())


def _same(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> bool:
    """Nothing is copied whole: what is strided is not made one row."""
    if left.size <= _CHUNK:
        return bool(((left == right) | ((left != left) & (right != right))).all())
    if len(left) == 1:
        return _same(left[0], right[0])
    step = max(1, _CHUNK // (left.size // len(left)))
    return all(_same(left[i : i + step], right[i : i + step]) for i in range(0, len(left), step))


def padded_dictionary(symbols: Sequence[str], size: int) -> str:
    """dict.txt of `symbols` (those after the four specials, with `<mask>`), filled up to `size` as fairseq fills it."""
    fillers = (f"madeupword{i:04d}" for i in range(size - 4 - len(symbols)))
    return Dictionary([*symbols, *fillers]).to_text()
