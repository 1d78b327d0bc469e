"""The checksums of a converted directory's files, which conversion.json records.

`record` writes them, `check` compares what is cheap whenever a model is loaded, and `compare` compares every byte.
conversion.json has a checksum of itself too: the SHA-256 of its text with zeros in the place of that checksum.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roberta_flax.errors import CheckpointError
from roberta_flax.files import file_sha256, read_text

logger = logging.getLogger(__name__)

CONVERSION_FILE = "conversion.json"
_KEY = "checksums"
_LARGEST = 1 << 26  # bytes of a file whose every byte is read whenever a model is loaded; no tokenizer's is larger
_NO_DIGEST = "0" * 64  # stands for conversion.json's own SHA-256 while that is computed


@dataclass(frozen=True)
class FileComparison:
    """A file of a converted directory, compared with its checksum.

    Attributes:
      name: its name.
      size: its size in bytes; None if it is missing.
      problem: how it differs from what was written, in a few words; None if it does not.
    """

    name: str
    size: int | None
    problem: str | None


def record(directory: Path, conversion: Mapping[str, Any]) -> str:
    """Returns the text of conversion.json: `conversion`, and the size and SHA-256 of every file in `directory`."""
    files: dict[str, dict[str, Any]] = {
        path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in sorted(directory.iterdir())
    }
    files[CONVERSION_FILE] = {"sha256": _NO_DIGEST}  # the last, where _own_digest looks for it
    text = json.dumps({**conversion, _KEY: files}, indent=2) + "\n"
    return _with_digest(text, _NO_DIGEST, hashlib.sha256(text.encode()).hexdigest())


def read_conversion(directory: Path) -> dict[str, Any]:
    """Reads a converted directory's conversion.json. Raises CheckpointError if it is damaged."""
    path = directory / CONVERSION_FILE
    try:
        recorded = json.loads(read_text(path))
    except (ValueError, RecursionError):  # CheckpointError is a ValueError
        recorded = None
    if not isinstance(recorded, dict) or not _are_checksums(recorded.get(_KEY, {})):
        raise CheckpointError(f"{path} is damaged; convert the model again")
    return recorded


def _are_checksums(value: Any) -> bool:
    return isinstance(value, dict) and all(
        Path(name).name == name
        and isinstance(entry, dict)
        and isinstance(entry.get("sha256"), str)
        and isinstance(entry.get("bytes", 0), int)
        for name, entry in value.items()
    )


def check(directory: Path, *, by_size: Iterable[str], editable: Iterable[str], optional: Iterable[str]) -> None:
    """Compares a directory's files with their checksums, as far as that is cheap.

    A directory of an older version, without checksums, passes.

    Args:
      directory: a converted directory.
      by_size: names of large files, of which only the size is compared; as of others over 64 MiB.
      editable: names of files that people edit: one that differs is reported as a warning.
      optional: names of files that change what the model does if they are there, whether recorded or not.

    Raises:
      CheckpointError: a file is missing, is not the one that was written, or was added.
    """
    recorded = read_conversion(directory).get(_KEY)
    if recorded is None:
        return
    for name, entry in recorded.items():
        if name == CONVERSION_FILE:
            continue
        found = _compare(directory, name, entry, size_limit=0 if name in by_size else _LARGEST)
        if found.problem is not None and name in editable and found.size is not None:
            logger.warning(
                "%s is not the file that was written (%s): it was edited, or it is damaged",
                directory / name,
                found.problem,
            )
        elif found.problem is not None:
            raise CheckpointError(
                f"{directory / name} is not the file that was written: {found.problem}; copy or convert the model again"
            )
    for name in _added(directory, recorded, optional):
        raise CheckpointError(f"{directory / name} was not there when the model was written; remove it")


def compare(directory: Path, *, optional: Iterable[str]) -> list[FileComparison] | None:
    """Compares every byte of a directory's files with their checksums. Returns None if there are no checksums.

    Args:
      directory: a converted directory.
      optional: as in `check`.

    Raises:
      CheckpointError: conversion.json cannot be read.
    """
    recorded = read_conversion(directory).get(_KEY)
    if recorded is None:
        return None
    found = [_compare(directory, name, entry) for name, entry in recorded.items() if name != CONVERSION_FILE]
    added = [
        FileComparison(name, (directory / name).stat().st_size, "it was added")
        for name in _added(directory, recorded, optional)
    ]
    return [*found, *added, _compare_conversion(directory, recorded)]


def _compare(directory: Path, name: str, entry: Mapping[str, Any], *, size_limit: int | None = None) -> FileComparison:
    """Compares a file's size and, unless it is larger than `size_limit`, its bytes."""
    path = directory / name
    if not os.path.isfile(path):  # Path.is_file raises where the name is too long
        return FileComparison(name, None, "it is missing")
    size, expected = path.stat().st_size, entry.get("bytes")
    problem = None
    if size != expected:
        problem = f"it has {size} bytes, and had {expected}"
    elif (size_limit is None or size <= size_limit) and file_sha256(path) != entry["sha256"]:
        problem = "its SHA-256 is another one"
    return FileComparison(name, size, problem)


def _compare_conversion(directory: Path, recorded: Mapping[str, Any]) -> FileComparison:
    content = (directory / CONVERSION_FILE).read_bytes()
    digest = str(recorded.get(CONVERSION_FILE, {}).get("sha256") or None)
    text = _with_digest(content.decode(), digest, _NO_DIGEST)
    is_same = hashlib.sha256(text.encode()).hexdigest() == digest
    return FileComparison(CONVERSION_FILE, len(content), None if is_same else "its SHA-256 is another one")


def _with_digest(text: str, old: str, new: str) -> str:
    """Replaces the last occurrence of a digest, which is that of conversion.json itself."""
    head, _, tail = text.rpartition(old)
    return head + new + tail


def _added(directory: Path, recorded: Mapping[str, Any], optional: Iterable[str]) -> Iterator[str]:
    return (name for name in optional if name not in recorded and (directory / name).exists())
