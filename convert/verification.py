"""verify(): a converted directory against the source it came from, tensor by tensor."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convert.conversion import opened, write_files
from convert.source import Parameter
from roberta_flax import checkpoint
from roberta_flax.errors import CheckpointError
from roberta_flax.tokenizer import Tokenizer


@dataclass(frozen=True)
class Comparison:
    """A parameter beside the source's.

    Attributes:
      path: in the tree.
      source: what the source calls it.
      shape: in the tree.
      dtype, source_dtype: stored, and in the source.
      identical: whether every bit is what conversion makes of the source: NaNs and signs of zero too.
      largest_difference: of the two as numbers; 0 where the source was not rounded to another dtype.
    """

    path: str
    source: str
    shape: tuple[int, ...]
    dtype: str
    source_dtype: str
    identical: bool
    largest_difference: float


@dataclass(frozen=True)
class Verification:
    """What verify() found.

    Attributes:
      comparisons: of every parameter.
      problems: a line for each thing that differs; empty where the directory is what the source makes.
    """

    comparisons: list[Comparison]
    problems: list[str]


def verify(
    directory: str | os.PathLike[str],
    against: str | os.PathLike[str],
    *,
    checkpoint_file: str | None = None,
    bpe_dir: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    head_name: str | None = None,
) -> Verification:
    """Reads a converted model's source again and compares: sizes and choices, every parameter, the tokenizer.

    Args:
      directory: the converted model.
      against: its source, in any form that convert takes; what export wrote, too.
      checkpoint_file, head_name: as in convert; what conversion.json says if not given.
      bpe_dir, cache_dir: as in convert.

    Raises:
      CheckpointError: one of the two cannot be read. (What differs is in the result.)
    """
    folder = Path(directory)
    if not folder.is_dir() or checkpoint.missing_files(folder):
        raise CheckpointError(f"{folder} is not a converted model; convert one with `roberta-flax convert`")
    recorded = _recorded(folder)
    name = checkpoint_file or str(recorded.get("checkpoint_file") or "model.pt")
    config = checkpoint.read_config(folder)
    stored = checkpoint.read_tensors(folder / checkpoint.PARAMS_FILE)
    comparisons, problems = [], []
    with opened(against, name if name.endswith(".pt") else "model.pt", cache_dir) as opening:
        source = opening.read(bpe_dir, cache_dir, head_name or recorded.get("head_name"))
        mine, theirs = dataclasses.asdict(config), dataclasses.asdict(source.config)
        problems += [
            f"config.json has {key} {mine[key]!r}, the source {theirs[key]!r}"
            for key in mine
            if mine[key] != theirs[key]
        ]
        problems += [f"{path} is not in the source" for path in sorted(stored.keys() - source.parameters.keys())]
        problems += [f"{path} is not in {folder}" for path in sorted(source.parameters.keys() - stored.keys())]
        for path in sorted(stored.keys() & source.parameters.keys()):
            comparison = _compared(path, stored[path], source.parameters[path])
            comparisons.append(comparison)
            if not comparison.identical:
                problems.append(f"{path} differs from {comparison.source}, by {comparison.largest_difference:.3g}")
        if not _same_tokenizer(folder, source.tokenizer_files):
            problems.append("the tokenizer is not the source's")
    return Verification(comparisons, problems)


def _recorded(folder: Path) -> dict[str, Any]:
    try:
        recorded = json.loads((folder / checkpoint.CONVERSION_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        recorded = None
    if not isinstance(recorded, dict):
        raise CheckpointError(f"{folder / checkpoint.CONVERSION_FILE} is damaged; convert the model again")
    return recorded


def _compared(path: str, stored: checkpoint.StoredTensor, parameter: Parameter) -> Comparison:
    same_shape = stored.shape == parameter.shape
    identical, difference = same_shape, 0.0 if same_shape else float("inf")
    if same_shape and stored.shape:
        mine, theirs = stored.read(), parameter.read()
        step = max(1, (1 << 22) // max(1, int(np.prod(stored.shape[1:]))))
        for start in range(0, len(mine), step):
            a, b = mine[start : start + step], np.ascontiguousarray(theirs[start : start + step])
            with np.errstate(over="ignore", invalid="ignore"):
                identical &= np.ascontiguousarray(a).tobytes() == b.astype(stored.dtype).tobytes()
                apart = np.abs(a.astype(np.float64) - b.astype(np.float64))
            difference = max(difference, float(np.nanmax(apart, initial=0.0)))
    return Comparison(
        path, parameter.source, stored.shape, stored.dtype.name, parameter.dtype.name, bool(identical), difference
    )


def _same_tokenizer(folder: Path, files: Mapping[str, Path | str | bytes]) -> bool:
    with tempfile.TemporaryDirectory(prefix="roberta-flax-") as temporary:
        write_files(files, Path(temporary))
        return Tokenizer.from_directory(folder).is_same_as(Tokenizer.from_directory(temporary))
