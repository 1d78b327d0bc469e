"""Unpacking of an untrusted .tar.gz: it writes no links and nothing outside the destination, within fixed limits."""

from __future__ import annotations

import gzip
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from roberta_flax.errors import CheckpointError

# Weights hardly compress, and text compresses to about a third. Only a decompression bomb expands a hundredfold.
_MAX_EXPANSION = 100
_MAX_EXPANSION_FLOOR = 1 << 30
_MAX_ENTRIES = 5000  # files and folders; a model has about ten, a directory of code beside it a thousand
_MAX_DEPTH = 64  # nested folders; pathlib creates them recursively
_MAX_HEADERS = 1 << 23  # bytes of all headers together
_MAX_EXTENDED_HEADER = 1 << 16  # bytes of a header that contains a long name or attributes

_BLOCK = 512  # bytes in a block of a tar file
_CHUNK = 1 << 20  # bytes copied at a time
_LONG_NAME, _ATTRIBUTES = (tarfile.GNUTYPE_LONGNAME,), (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_IGNORED = (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK)
_FILE_TYPES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


def extract_archive(archive: Path, destination: Path) -> None:
    """Unpacks a model's .tar.gz into `destination`, which must not exist.

    Only files inside `destination`, and the directories that contain them, are written. An archive is refused if it
    contains links, devices or paths that lead out of it, if it expands more than a hundredfold (and to over 1 GiB), or
    if it has over 5000 entries. The size of headers is limited too.

    Raises:
      CheckpointError: the archive is refused, damaged or truncated. Nothing of it is left behind.
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
                f"{archive} is not a complete .tar.gz ({error}); remove it, and copy or download it again"
            ) from None
        raise


class _DamagedError(Exception):
    """The file is not a tar file, or is incomplete."""


def _unsafe(archive: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{archive} is not safe to unpack: {why}")


def _extract(archive: Path, stream: gzip.GzipFile, destination: Path, limit: int) -> None:
    total = 0
    for path, size in _iterate_files(archive, stream):
        total += size
        if total > limit:
            raise _unsafe(archive, f"it expands to over {limit} bytes")
        target = destination / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            _copy(stream, file, size)
    while block := stream.read(_CHUNK):  # to the end, which holds gzip's checksum
        total += len(block)
        if total > limit:
            raise _unsafe(archive, f"it expands to over {limit} bytes")


def _iterate_files(archive: Path, stream: gzip.GzipFile) -> Iterator[tuple[PurePosixPath, int]]:
    """Yields the path and the size of each file. Read its content from `stream` before the next file."""
    extended: dict[str, str] = {}  # the extended headers of the next member
    entries: set[PurePosixPath] = set()
    header_bytes_left = _MAX_HEADERS
    while any(block := stream.read(_BLOCK)):
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        is_extended = header.type in (*_LONG_NAME, *_ATTRIBUTES, *_IGNORED)
        if is_extended and not 0 <= header.size <= _MAX_EXTENDED_HEADER:
            raise _unsafe(archive, f"a header of {header.size} bytes exceeds {_MAX_EXTENDED_HEADER}")
        header_bytes_left -= _BLOCK + (header.size if is_extended else 0)
        if header_bytes_left < 0:
            raise _unsafe(archive, f"its headers together exceed {_MAX_HEADERS} bytes")
        if is_extended:
            content = _read(stream, header.size)
            if header.type in _LONG_NAME:
                extended["path"] = _decode_name(content.split(b"\0")[0])
            elif header.type in _ATTRIBUTES:
                extended |= _parse_attributes(content)
            continue
        header.name = extended.get("path", header.name)
        header.size = _member_size(header, extended)
        path = _safe_path(archive, header, sparse=any(name.startswith("GNU.sparse.") for name in extended))
        entries.update((path, *path.parents))
        if len(entries) > _MAX_ENTRIES:
            raise _unsafe(archive, f"it has over {_MAX_ENTRIES} files and folders")
        if not header.isdir():
            yield path, header.size
            _read(stream, -header.size % _BLOCK, padded=False)
        extended = {}
    if len(block) % _BLOCK or (not block and header_bytes_left == _MAX_HEADERS):
        raise _DamagedError("it ends in the middle of a header" if block else "it is empty")


def _safe_path(archive: Path, header: tarfile.TarInfo, sparse: bool) -> PurePosixPath:
    """A member's path in the archive. Raises CheckpointError if it is not safe to unpack."""
    name, path = header.name, PurePosixPath(header.name)
    if sparse or header.type == tarfile.GNUTYPE_SPARSE:
        raise CheckpointError(f"{archive} contains the sparse file {name[:200]!r}: pack it again without --sparse")
    if header.type not in _FILE_TYPES and not header.isdir():
        raise _unsafe(archive, f"{name[:200]!r} is a link or a device")
    if any(each.is_absolute() or ".." in each.parts for each in (path, Path(name))):
        raise _unsafe(archive, f"{name[:200]!r} leads out of it")
    if len(path.parts) > _MAX_DEPTH:
        raise _unsafe(archive, f"{name[:200]!r} is {len(path.parts)} folders deep")
    if "\0" in name or not (path.parts or header.isdir()):
        raise _DamagedError("it has a file without a name")
    return path


def _member_size(header: tarfile.TarInfo, extended: dict[str, str]) -> int:
    if header.isdir():
        return 0  # no content follows, whatever size the header gives
    size = extended.get("size", str(header.size))
    if not size.isdecimal() or len(size) > 20:
        raise _DamagedError(f"it has a file of {size[:20]} bytes")
    return int(size)


def _parse_attributes(content: bytes) -> dict[str, str]:
    """Parses an extended header of POSIX's pax format. Each record is `length key=value`, a line of `length` bytes."""
    records: dict[str, str] = {}
    content = content.rstrip(b"\0")
    start = 0
    while start < len(content):
        length, space, _ = content[start : start + 20].partition(b" ")
        end = start + int(length) if space and length.isdigit() else 0
        if not start + len(length) + 3 <= end <= len(content) or content[end - 1 : end] != b"\n":
            raise _DamagedError("it has a malformed extended header")
        key, _, value = content[start + len(length) + 1 : end - 1].partition(b"=")
        records[_decode_name(key)] = _decode_name(value)
        start = end
    return records


def _decode_name(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _read(stream: gzip.GzipFile, size: int, padded: bool = True) -> bytes:
    """Reads `size` bytes and returns them. If `padded`, also reads past the padding of their last block."""
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
