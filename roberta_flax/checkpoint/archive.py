"""Unpacks a model's .tar.gz, which is somebody else's: nothing is written outside, linked, or made without bound."""

from __future__ import annotations

import gzip
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from roberta_flax.errors import CheckpointError

# Weights hardly compress, text to about a third. Only a bomb expands a hundredfold.
_MAX_EXPANSION = 100
_MAX_EXPANSION_FLOOR = 1 << 30
_MAX_ENTRIES = 5000  # files and folders; a model has some ten, a directory of code beside it a thousand
_MAX_DEPTH = 64  # folders inside each other; pathlib makes them in a recursion
_MAX_HEADERS = 1 << 23  # bytes of all headers together
_MAX_EXTENDED_HEADER = 1 << 16  # bytes of a header that holds a long name, or attributes

_BLOCK = 512  # of a tar file
_CHUNK = 1 << 20  # bytes copied at a time
_LONG_NAME, _ATTRIBUTES = (tarfile.GNUTYPE_LONGNAME,), (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_PASSED_OVER = (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK)
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


def extract_archive(archive: Path, destination: Path) -> None:
    """Unpacks a model's .tar.gz into `destination`, which must not exist.

    Only files inside `destination`, and the directories that they are in, are written. Archives with links, devices or
    paths that lead out, and archives that expand more than a hundredfold (and over 1 GiB) or have over 5000 entries,
    are refused; a header is read only where it is small.

    Raises:
      CheckpointError: such an archive, or one that is damaged or cut short; nothing of it is left behind.
    """
    limit = max(_MAX_EXPANSION_FLOOR, _MAX_EXPANSION * archive.stat().st_size)
    destination.mkdir(parents=True)
    try:
        with gzip.open(archive) as stream:
            _extract(archive, stream, destination, limit)
    except BaseException as error:
        shutil.rmtree(destination, ignore_errors=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise CheckpointError(f"cannot unpack {archive}: {error.strerror}") from None
        if isinstance(error, tarfile.TarError | EOFError | zlib.error | OSError | _DamagedError):
            raise CheckpointError(
                f"{archive} is not a whole .tar.gz ({error}); remove it, and copy or download it again"
            ) from None
        raise


class _DamagedError(Exception):
    """A tar file that is none, or not whole."""


def _unsafe(archive: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{archive} is not safe to unpack: {why}")


def _extract(archive: Path, stream: gzip.GzipFile, destination: Path, limit: int) -> None:
    total = 0
    for path, size in _files(archive, stream):
        total += size
        if total > limit:
            raise _unsafe(archive, f"it expands to over {limit} bytes")
        target = destination / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            _copy(stream, file, size)
    while block := stream.read(_CHUNK):  # to the end, where gzip's checksum is
        total += len(block)
        if total > limit:
            raise _unsafe(archive, f"it expands to over {limit} bytes")


def _files(archive: Path, stream: gzip.GzipFile) -> Iterator[tuple[PurePosixPath, int]]:
    """The files of an archive: their places in it and sizes. Each is to be read from `stream` before the next."""
    named: dict[str, str] = {}  # what extended headers say of the next member
    entries: set[PurePosixPath] = set()
    left = _MAX_HEADERS
    while any(block := stream.read(_BLOCK)):
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        extended = header.type in (*_LONG_NAME, *_ATTRIBUTES, *_PASSED_OVER)
        if extended and not 0 <= header.size <= _MAX_EXTENDED_HEADER:
            raise _unsafe(archive, f"it has a header of {header.size} bytes, over {_MAX_EXTENDED_HEADER}")
        left -= _BLOCK + (header.size if extended else 0)
        if left < 0:
            raise _unsafe(archive, f"its headers have over {_MAX_HEADERS} bytes")
        if extended:
            content = _read(stream, header.size)
            if header.type in _LONG_NAME:
                named["path"] = _text(content.split(b"\0")[0])
            elif header.type in _ATTRIBUTES:
                named |= _attributes(content)
            continue
        header.name = named.get("path", header.name)
        header.size = _size(header, named)
        path = _path(archive, header, sparse=any(name.startswith("GNU.sparse.") for name in named))
        entries.update((path, *path.parents))
        if len(entries) > _MAX_ENTRIES:
            raise _unsafe(archive, f"it has over {_MAX_ENTRIES} files and folders")
        if not header.isdir():
            yield path, header.size
            _read(stream, -header.size % _BLOCK, padded=False)
        named = {}
    if len(block) % _BLOCK or (not block and left == _MAX_HEADERS):
        raise _DamagedError("it ends in the middle of a header" if block else "it is empty")


def _path(archive: Path, header: tarfile.TarInfo, sparse: bool) -> PurePosixPath:
    """A member's place in the archive; CheckpointError where it is to be none."""
    name, path = header.name, PurePosixPath(header.name)
    if sparse or header.type == tarfile.GNUTYPE_SPARSE:
        raise CheckpointError(f"{archive} has the sparse file {name[:200]!r}: pack it again without --sparse")
    if header.type not in _FILES and not header.isdir():
        raise _unsafe(archive, f"{name[:200]!r} is a link or a device")
    if any(each.is_absolute() or ".." in each.parts for each in (path, Path(name))):
        raise _unsafe(archive, f"{name[:200]!r} leads out of it")
    if len(path.parts) > _MAX_DEPTH:
        raise _unsafe(archive, f"{name[:200]!r} is {len(path.parts)} folders deep")
    if "\0" in name or not (path.parts or header.isdir()):
        raise _DamagedError("it has a file without a name")
    return path


def _size(header: tarfile.TarInfo, named: dict[str, str]) -> int:
    if header.isdir():
        return 0  # whatever it says, no content follows
    size = named.get("size", str(header.size))
    if not size.isdecimal() or len(size) > 20:
        raise _DamagedError(f"it has a file of {size[:20]} bytes")
    return int(size)


def _attributes(content: bytes) -> dict[str, str]:
    """The records of an extended header (POSIX's pax): each `length key=value`, a line of so many bytes."""
    records: dict[str, str] = {}
    content = content.rstrip(b"\0")
    start = 0
    while start < len(content):
        length, space, _ = content[start : start + 20].partition(b" ")
        end = start + int(length) if space and length.isdigit() else 0
        if not start + len(length) + 3 <= end <= len(content) or content[end - 1 : end] != b"\n":
            raise _DamagedError("it has an extended header that cannot be read")
        key, _, value = content[start + len(length) + 1 : end - 1].partition(b"=")
        records[_text(key)] = _text(value)
        start = end
    return records


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _read(stream: gzip.GzipFile, size: int, padded: bool = True) -> bytes:
    """So many bytes, and what fills up their last block."""
    content = stream.read(size + (-size % _BLOCK if padded else 0))
    if len(content) < size:
        raise EOFError("it ends in the middle of a file")
    return content[:size]


def _copy(stream: gzip.GzipFile, file: IO[bytes], size: int) -> None:
    while size:
        chunk = stream.read(min(size, _CHUNK))
        if not chunk:
            raise EOFError("it ends in the middle of a file")
        file.write(chunk)
        size -= len(chunk)
