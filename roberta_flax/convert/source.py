"""The common form of every source: a configuration, parameters by path of the Flax tree, and the tokenizer's files."""

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

from roberta_flax.checkpoint.converted import check_tensors
from roberta_flax.checkpoint.tensors import STORED_DTYPES, LazyTensor
from roberta_flax.checkpoint.usage import Usage
from roberta_flax.convert.names import TRANSPOSE, Place, transformed
from roberta_flax.convert.views import View, size_in_bytes
from roberta_flax.errors import CheckpointError, InputError, shortened
from roberta_flax.files import read_text
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.nn.tree import describe_problems
from roberta_flax.text.fairseq_tokenizer import Dictionary

_CHUNK = 1 << 22  # elements compared at a time
_MAX_SHARING = 4  # tensors may have this many times the size of their file; a tied LM head at most doubles it

_WRAPPER = "module."  # the prefix that torch.nn.DataParallel and DistributedDataParallel add

_Result = TypeVar("_Result")


@dataclass(frozen=True, eq=False)
class Parameter(View):
    """A tensor as the Flax tree contains it. `source` is its name in the source."""

    source: str


@dataclass(frozen=True)
class Source:
    """A model from another library, read and translated.

    Attributes:
      kind: "fairseq" or "huggingface".
      config: the configuration, from the source's arguments and the shapes of its tensors.
      parameters: dotted path of the tree -> Parameter; exactly the paths that `config` requires.
      provenance: for every tensor of the source, the paths of the tree that it goes to, or the reason it is left out.
      tokenizer_files: file name in the converted directory -> a file to copy, or the content to write.
      notes: messages for the user, one line each.
      usage: how the model is used, where the source says.
      repository: the files of the source's directory that were "read", and those "not read" with the reasons; empty if
        the source is no repository.
    """

    kind: str
    config: RobertaConfig
    parameters: dict[str, Parameter]
    provenance: dict[str, list[str] | str]
    tokenizer_files: Mapping[str, Path | str | bytes]
    notes: list[str]
    usage: Usage = Usage()
    repository: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class TreeBuilder:
    """Collects tensors at their paths in the Flax tree, and all problems with them."""

    parameters: dict[str, Parameter] = field(default_factory=dict)
    provenance: dict[str, list[str] | str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def put(self, name: str, tensor: LazyTensor, place: Place | None) -> None:
        """Puts the tensor that the source calls `name` at its place in the tree, or records the problem with it."""
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
            in_tree = transformed(tensor, place.transform)
            self.parameters[place.path] = Parameter(in_tree.dtype, in_tree.shape, in_tree.read, name)
            paths = self.provenance.setdefault(name, [])
            if isinstance(paths, list):
                paths.append(place.path)

    def leave_out(self, name: str, reason: str) -> None:
        """Records why a tensor is left out."""
        self.provenance[name] = reason

    def size(self, path: str, axis: int, declared: Any, surplus: int = 0) -> int:
        """Returns the size of an axis of the parameter at `path`.

        If there is no such parameter, returns the declared size plus `surplus`, so that `check` can list all problems.
        """
        shape = self.parameters[path].shape if path in self.parameters else ()
        return shape[axis] if len(shape) == 2 else integer(declared) + surplus

    @property
    def num_layers(self) -> int:
        return len({match[1] for path in self.parameters if (match := re.match(r"layers\.([0-9]+)\.", path))})

    def has(self, part: str) -> bool:
        """Whether a part of the tree contains parameters."""
        return any(path.startswith(f"{part}.") for path in self.parameters)

    def check(self, source_name: str, files: Iterable[Path], config: RobertaConfig, added: int = 0) -> None:
        """Raises CheckpointError, which lists all problems, unless the parameters are those that `config` requires.

        Args:
          source_name: the name of the source, for the message.
          files: the files that contain the tensors, whose total size the parameters cannot exceed.
          config: the source's configuration.
          added: bytes of parameters that are not in the files but were added to them.
        """
        self.problems += check_tensors(config, {path: each.shape for path, each in self.parameters.items()})
        if self.problems:
            raise CheckpointError(f"{source_name} does not fit a RoBERTa: {describe_problems(self.problems)}")
        _check_total_size(source_name, self.parameters.values(), _total_file_size(files) + added)


def check_fits_files(source_name: str, files: Iterable[Path], tensors: Mapping[str, LazyTensor]) -> None:
    """Raises CheckpointError if tensors are larger than their files can hold. Reads no values.

    Strides of zero turn a small file into a huge array. So do many tensors that share their values.

    Args:
      source_name: the name of the source, for the message.
      files: the files that contain the tensors.
      tensors: the tensors, by their names in the source.
    """
    file_size = _total_file_size(files)
    oversized = [
        f"larger than its file: {shortened(name)} {list(tensor.shape)}"
        for name, tensor in tensors.items()
        if size_in_bytes(tensor) > file_size
    ]
    if oversized:
        raise CheckpointError(f"{source_name} does not fit a RoBERTa: {describe_problems(oversized)}")
    _check_total_size(source_name, tensors.values(), file_size, _MAX_SHARING)


def _total_file_size(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _check_total_size(source_name: str, tensors: Iterable[LazyTensor], file_size: int, max_sharing: int = 1) -> None:
    """Raises CheckpointError if the tensors together exceed `max_sharing` times the size of their files."""
    if (total := sum(map(size_in_bytes, tensors))) > max_sharing * file_size:
        raise CheckpointError(
            f"{source_name} is not an intact checkpoint: its tensors share their values, {total} bytes of parameters "
            f"in {file_size} bytes of files"
        )


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file that contains one object. Raises CheckpointError if it does not."""
    try:
        value = json.loads(read_text(path))
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({shortened(str(error))})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} should contain one JSON object")
    return value


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Whether parameters may be stored in this dtype."""
    return dtype in STORED_DTYPES.values()


def integer(value: Any) -> int:
    """Converts an argument to a nonnegative integer. Raises ValueError if it is not one."""
    if isinstance(value, bool) or not isinstance(value, int | str | float):
        raise ValueError(f"expected an integer, got {type(value).__name__}")
    number = int(value)
    if not 0 <= number < 1 << 31 or number != float(value):
        raise ValueError(f"expected an integer, got {shortened(str(value))}")
    return number


def number(value: Any) -> float:
    """Converts an argument to a finite number. Raises ValueError if it is not one."""
    if isinstance(value, bool) or not isinstance(value, int | str | float):
        raise ValueError(f"expected a number, got {type(value).__name__}")
    result = float(value)
    if not math.isfinite(result):
        raise ValueError(f"expected a number, got {result}")
    return result


def boolean(value: Any) -> bool:
    """Converts an argument, or its text, to true or false. Raises ValueError if it is neither."""
    named = {"true": True, "1": True, "false": False, "0": False}
    if (found := named.get(str(value).lower())) is None:
        raise ValueError(f"expected true or false, got {shortened(str(value))}")
    return found


def interpret(source_name: str, parse: Callable[[], _Result]) -> _Result:
    """Calls `parse`, which interprets a source's arguments. Raises CheckpointError if they make no sense."""
    try:
        return parse()
    except CheckpointError:
        raise
    except (InputError, TypeError, ValueError, OverflowError, KeyError) as error:
        raise CheckpointError(
            f"{source_name} has arguments that do not describe a RoBERTa: {shortened(str(error))}"
        ) from None


def wrapper_prefix(names: Iterable[str]) -> str:
    """The prefix that torch's DataParallel adds to a model's names, if all of them have it; otherwise empty."""
    names = list(names)
    return _WRAPPER if names and all(name.startswith(_WRAPPER) for name in names) else ""


def same_values(a: LazyTensor, b: LazyTensor) -> bool:
    """Whether two tensors have the same shape and values. NaNs are equal. Values are compared a block at a time."""
    return a.shape == b.shape and _blocks_equal(a.read(), b.read())


def _blocks_equal(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> bool:
    """Compares two arrays of one shape, of any strides, without copying either as a whole."""
    if left.size <= _CHUNK:
        return bool(((left == right) | ((left != left) & (right != right))).all())
    if len(left) == 1:
        return _blocks_equal(left[0], right[0])
    step = max(1, _CHUNK // (left.size // len(left)))
    return all(_blocks_equal(left[i : i + step], right[i : i + step]) for i in range(0, len(left), step))


def padded_dictionary(symbols: Sequence[str], size: int) -> str:
    """Returns the text of a dict.txt, padded as fairseq pads it.

    Args:
      symbols: the symbols after the four special ones, including `<mask>`.
      size: the number of symbols in all, with the special ones.
    """
    fillers = (f"madeupword{i:04d}" for i in range(size - 4 - len(symbols)))
    return Dictionary([*symbols, *fillers]).to_text()
