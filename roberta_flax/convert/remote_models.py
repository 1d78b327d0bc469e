"""Models at URLs: the files that a model needs are copied to the cache, once for each content."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from roberta_flax.checkpoint import checksums, converted, download
from roberta_flax.convert import huggingface
from roberta_flax.errors import CheckpointError
from roberta_flax.files import new_directory, read_text, reading, remove_partial
from roberta_flax.remote import RemotePath, to_path

logger = logging.getLogger(__name__)

ARCHIVE_SUFFIXES = (".tar.gz", ".tgz")
_SMALL = (".txt", ".json", ".bpe", ".codes", ".model")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".msgpack")
_PART = "(-shard|-model_part-|_part|-)[0-9]+(-of-[0-9]+)?"  # ends the name of one of several files (shards.files_of)
_MAX_DEPTH = 2  # parts of a file's name: a repository's modules and an early version's network are in folders


def hub_name(name: str) -> str | None:
    """The name "hf:org/name" of a repository whose URL "hf://org/name" is given; None for any other text."""
    found = re.fullmatch(r"hf://((?!datasets/|spaces/)[^/@]+/[^/@]+(@[^/]+)?)/?", name)
    return None if found is None else f"{huggingface.HUB_PREFIX}{found[1]}"


def local_copy(
    source: str | os.PathLike[str], cache_dir: str | os.PathLike[str] | None = None, checkpoint_file: str = "model.pt"
) -> Path:
    """Returns the path of a model on this machine: `source` itself or, if it is a URL, its copy in the cache.

    What is copied are the configuration, the tokenizer's files and one set of weights. A copy is complete or absent,
    and is used again as long as the store says that the files have the same versions.

    Args:
      source: a path; or the URL of a directory, a checkpoint file in one, or a .tar.gz.
      cache_dir: the cache; see roberta_flax.checkpoint.download.cache_dir.
      checkpoint_file: the name of the checkpoint in a fairseq directory.

    Raises:
      CheckpointError: there is no such file or directory, it cannot be read, is not complete, or changes meanwhile.
      InputError: what fsspec needs for the URL's scheme is not installed.
    """
    url = to_path(source)
    if not isinstance(url, RemotePath):
        return url
    with reading(url):
        is_file = url.is_file()
        folder = url.parent if is_file else url
        is_archive = is_file and url.name.endswith(ARCHIVE_SUFFIXES)
        versions = {url.name: str(url.stat().st_ino)} if is_archive else _versions(folder)
    if not versions:
        raise CheckpointError(f"{url} does not exist, or has no file of a model; expected a directory or file of one")
    fingerprint = hashlib.sha256(repr((str(folder), checkpoint_file, versions)).encode()).hexdigest()[:16]
    copy = download.cache_dir(cache_dir) / "remote" / fingerprint / folder.name
    if not copy.is_dir():
        with download.locked(copy):
            if not copy.is_dir():
                remove_partial(copy)
                logger.info("copying %s to the cache", url)
                with new_directory(copy) as temporary, reading(url):
                    wanted = url.name if is_file else checkpoint_file
                    _Copy(folder, versions, temporary).fetch(wanted, is_file=is_file)
                    if not is_archive and _versions(folder) != versions:
                        raise CheckpointError(f"{url} changed while it was copied; try again when nobody writes it")
    return copy / url.name if is_file else copy


def _versions(folder: RemotePath) -> dict[str, str]:
    """The versions of the files that may be those of a model, by their names relative to a folder."""
    found = {}
    for name, version in folder.files().items():
        parts = PurePosixPath(name).parts
        if len(parts) <= _MAX_DEPTH and ".." not in parts and name.endswith((*_SMALL, *_WEIGHTS)):
            found[name] = version
    return found


class _Copy:
    """Copies files of a remote folder to a directory of this machine."""

    def __init__(self, folder: RemotePath, names: Collection[str], destination: Path) -> None:
        self._folder, self._names, self._destination = folder, names, destination

    def fetch(self, checkpoint_file: str, *, is_file: bool) -> None:
        """Copies what a model needs.

        Args:
          checkpoint_file: the name of its weights, if it is fairseq's or `is_file`.
          is_file: whether the user named this file.
        """
        if checkpoint_file.endswith(ARCHIVE_SUFFIXES):
            self._get([checkpoint_file])
            return
        self._get([name for name in self._names if "/" not in name and name.endswith(_SMALL)])
        if not is_file and self._is_converted():
            if checksums.CONVERSION_FILE not in self._names:
                raise CheckpointError(
                    f"{self._folder} is not complete: {checksums.CONVERSION_FILE}, which is written last, is missing; "
                    "write the model again"
                )
            self._get(["*.safetensors"])
        elif parts := self._parts(checkpoint_file):
            self._get(parts)
        elif any(PurePosixPath(name).name == converted.CONFIG_FILE for name in self._names):
            huggingface.fetch_chosen(str(self._folder), self._get, lambda: list(self._names))

    def _is_converted(self) -> bool:
        config = self._destination / converted.CONFIG_FILE
        if converted.PARAMS_FILE not in self._names or not config.is_file():
            return False
        with suppress(ValueError, RecursionError):  # CheckpointError is a ValueError
            return not converted.is_transformers_config(json.loads(read_text(config)))
        return True

    def _parts(self, checkpoint_file: str) -> list[str]:
        """The names of a checkpoint and its parts, if they are there."""
        path = PurePosixPath(checkpoint_file)
        stem = re.sub(f"{_PART}$", "", path.stem)
        parts = re.compile(f"{re.escape(stem)}({_PART})?{re.escape(path.suffix)}")
        here = [name for name in self._names if PurePosixPath(name).parent == path.parent]
        return [name for name in here if parts.fullmatch(PurePosixPath(name).name)]

    def _get(self, patterns: Sequence[str]) -> Path:
        for name in self._names:
            file = self._destination / name
            if not file.exists() and any(fnmatch(name, pattern) for pattern in patterns):
                (self._folder / name).get(file)
        return self._destination
