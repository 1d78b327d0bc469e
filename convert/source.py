"""What every source becomes: a configuration, parameters by path of the Flax tree, and the tokenizer's files."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from convert.names import TRANSPOSE, Place
from convert.tensors import size_in_bytes
from convert.torch_file import shortened
from roberta_flax.checkpoint import Tensor, check_tensors, describe_problems
from roberta_flax.config import RobertaConfig
from roberta_flax.errors import CheckpointError, InputError
from roberta_flax.tokenizer import Dictionary

_CHUNK = 1 << 22  # elements compared at a time


@dataclass(frozen=True)
class Parameter:
    """A tensor of the source and where it goes in the tree."""

    source: str
    tensor: Tensor
    transposed: bool

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape in the tree."""
        return self.tensor.shape[::-1] if self.transposed else self.tensor.shape

    def read(self) -> npt.NDArray[Any]:
        """Its values as they stand in the tree; a view of the file where it can be."""
        values = self.tensor.read()
        return values.T if self.transposed else values


@dataclass(frozen=True)
class Source:
    """A model in another library's form, read and understood.

    Attributes:
      kind: "fairseq" or "huggingface".
      config: sizes and choices, from its arguments and its tensors' shapes.
      parameters: dotted path of the tree -> Parameter; exactly the paths that `config` asks for.
      went: for every tensor of the source, the paths it went to, or why it went nowhere.
      tokenizer_files: the converted directory's, by name: a file to copy, or what is to be in it.
      notes: what the user should hear of, a line each.
    """

    kind: str
    config: RobertaConfig
    parameters: dict[str, Parameter]
    went: dict[str, list[str] | str]
    tokenizer_files: Mapping[str, Path | str | bytes]
    notes: list[str]


@dataclass
class Placing:
    """Tensors on their way into the tree, and all that is wrong with them."""

    parameters: dict[str, Parameter] = field(default_factory=dict)
    went: dict[str, list[str] | str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def put(self, name: str, tensor: Tensor, place: Place | None) -> None:
        """Places the tensor that the source calls `name`."""
        shape = list(tensor.shape)
        if place is None:
            self.problems.append(f"unknown: {shortened(name)} {shape}")
        elif not np.issubdtype(tensor.dtype, np.floating) and tensor.dtype.name != "bfloat16":
            self.problems.append(f"wrong dtype: {shortened(name)} is {tensor.dtype}, expected floating point")
        elif place.transform is TRANSPOSE and len(shape) != 2:
            self.problems.append(f"wrong shape: {shortened(name)} is {shape}, expected two axes")
        elif place.path in self.parameters:
            other = self.parameters[place.path].source
            self.problems.append(f"twice: {shortened(other)} and {shortened(name)} are the same tensor")
        else:
            self.parameters[place.path] = Parameter(name, tensor, place.transform is TRANSPOSE)
            paths = self.went.setdefault(name, [])
            if isinstance(paths, list):
                paths.append(place.path)

    def leave_out(self, name: str, why: str) -> None:
        """Notes that a tensor goes nowhere."""
        self.went[name] = why

    def size(self, path: str, axis: int, declared: Any) -> int:
        """A size from a tensor's shape, or as declared where there is none, so that all problems are listed."""
        shape = self.parameters[path].shape if path in self.parameters else ()
        return shape[axis] if len(shape) == 2 else integer(declared)

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
        room = sum(file.stat().st_size for file in files)
        stretched = [  # by strides of zero: a small file, a huge array
            f"not stored whole: {shortened(parameter.source)} {list(parameter.shape)}"
            for parameter in self.parameters.values()
            if size_in_bytes(parameter.tensor) > room
        ]
        self.problems += stretched
        shapes = {path: parameter.shape for path, parameter in self.parameters.items()}
        if stretched:
            pass  # sizes are made up: nothing is built of them
        elif config.num_layers * 16 > len(shapes):  # so that a claimed depth costs nothing
            self.problems.append(f"it has {len(shapes)} tensors, too few for {config.num_layers} layers")
        else:
            self.problems += check_tensors(config, shapes)
        if self.problems:
            raise CheckpointError(f"{what} does not fit a RoBERTa: {describe_problems(self.problems)}")
        if (total := sum(size_in_bytes(parameter.tensor) for parameter in self.parameters.values())) > room:
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


def understood(what: str, make: Any) -> RobertaConfig:
    """The configuration that `make` makes of a source's arguments; CheckpointError where these make no sense."""
    try:
        config: RobertaConfig = make()
    except CheckpointError:
        raise
    except (InputError, TypeError, ValueError, OverflowError, KeyError) as error:
        raise CheckpointError(f"{what} has arguments that do not make a RoBERTa: {shortened(str(error))}") from None
    return config


def equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same shape and values, a part of them at a time."""
    if a.shape != b.shape:
        return False
    left, right = a.read().reshape(-1), b.read().reshape(-1)
    parts = range(0, left.size, _CHUNK)
    return all(np.array_equal(left[i : i + _CHUNK], right[i : i + _CHUNK]) for i in parts)


def padded_dictionary(symbols: Sequence[str], size: int) -> str:
    """dict.txt of `symbols` (those after the four specials, with `<mask>`), filled up to `size` as fairseq fills it."""
    fillers = (f"madeupword{i:04d}" for i in range(size - 4 - len(symbols)))
    return Dictionary([*symbols, *fillers]).to_text()
