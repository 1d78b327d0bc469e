"""A converted directory for any model name or path: downloaded and converted once, then cached."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from roberta_flax.checkpoint import converted
from roberta_flax.errors import CheckpointError
from roberta_flax.files import PathLike, reading, remove_partial

# of the files that a conversion may read, beside a checkpoint's own
_READ_SUFFIXES = (".txt", ".json", ".bpe", ".model", ".safetensors", ".bin", ".msgpack")


def resolve(
    name_or_path: PathLike,
    *,
    cache_dir: PathLike | None = None,
    sha256: str | None = None,
    checkpoint_file: str = "model.pt",
    bpe_dir: PathLike | None = None,
) -> Path:
    """The converted directory of a model, made in the cache where there is none yet. Arguments and errors as load's."""
    from roberta_flax.checkpoint import download

    converted.check_directory(bpe_dir)
    if (name := str(name_or_path)) in download.MODELS:
        cache = download.cache_dir(cache_dir)
        directory = cache / "converted" / download.archive_name(name)

        def source() -> PathLike:
            return download.fetch_model_archive(name, cache, sha256=sha256)

    elif name.startswith("hf:"):
        cache = download.cache_dir(cache_dir)
        mark = hashlib.sha256(repr(name).encode()).hexdigest()[:16]
        directory = cache / "converted" / _cached_name(re.sub(r"[^\w.@-]+", "--", name), mark)

        def source() -> PathLike:
            return name

    else:
        path = Path(name_or_path)
        if not os.path.exists(path):  # which is false of names that are too long, too
            raise CheckpointError(
                f"{name[:200]!r} is neither a file or directory, nor hf:org/name, nor a released model "
                f"({', '.join(download.MODELS)})"
            )
        if path.is_dir() and converted.is_converted(path):
            return _with_sha256(path, sha256)
        cache = download.cache_dir(cache_dir)
        with reading(path):
            mark = _fingerprint(path, checkpoint_file, bpe_dir)
        directory = cache / "converted" / _cached_name(path.resolve().name, mark)

        def source() -> PathLike:
            return path

    if not os.path.isdir(directory):
        from roberta_flax.convert import convert

        with download.locked(directory):
            if not directory.is_dir():
                remove_partial(directory)
                convert(
                    source(),
                    directory,
                    checkpoint_file=checkpoint_file,
                    bpe_dir=bpe_dir,
                    cache_dir=cache_dir,
                    sha256=sha256,
                )
    return _with_sha256(directory, sha256)


def _with_sha256(directory: Path, sha256: str | None) -> Path:
    if sha256 is not None:
        try:
            recorded = converted.read_conversion(directory).get("sha256") or "nothing recorded"
        except CheckpointError:
            recorded = "nothing recorded"
        if recorded != sha256.lower():
            raise CheckpointError(f"{directory} was made from a file of sha256 {recorded}, expected {sha256.lower()}")
    return directory


def _cached_name(name: str, mark: str) -> str:
    """A directory's name in the cache: no longer than file systems take, and told from others of its name by `mark`."""
    return f"{name.encode(errors='ignore')[:150].decode(errors='ignore')}-{mark}"


def _fingerprint(path: Path, checkpoint_file: str, bpe_dir: PathLike | None) -> str:
    """Changes when the files that a conversion reads do: their places, sizes and times of change."""
    from roberta_flax.convert import shards
    from roberta_flax.convert.conversion import ARCHIVE_SUFFIXES

    folders = [] if bpe_dir is None else [Path(bpe_dir)]
    if path.is_file() and path.name.endswith(ARCHIVE_SUFFIXES):
        files = [path]
    else:
        files = shards.files_of(path / checkpoint_file if path.is_dir() else path)
        beside = path if path.is_dir() else path.parent
        folders = [beside, *([files[0].parent] if files[0].parent != beside else []), *folders]
    files += [file for folder in folders for file in sorted(folder.iterdir()) if file.suffix in _READ_SUFFIXES]
    stats = [
        (str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) if file.is_file() else str(file)
        for file in files
    ]
    return hashlib.sha256(repr((path.name, checkpoint_file, stats)).encode()).hexdigest()[:16]
