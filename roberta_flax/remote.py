"""Files at URLs: gs://, s3://, hf://, memory:// and whatever else fsspec opens, with the methods of a pathlib.Path.

>>> path = to_path("gs://bucket/texts.jsonl")
>>> with path.open("rb") as file:
...     file.readline()

A store of objects differs from a file system. An object is written in one request, so it is whole or absent, as a file
that `files.replacing` writes. There is no rename: a directory (the objects whose names begin alike) is written object
by object, and the one that says what is in it comes last. There are no locks.
"""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from roberta_flax.errors import InputError, RobertaFlaxError
from roberta_flax.extras import imported, require

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/{1,3}(?=[^/\s])(.+)", re.DOTALL)  # pathlib leaves one of two slashes
_LOCAL = ("file", "local")
_EXTRAS = {"gs": "gs", "gcs": "gs", "s3": "s3", "s3a": "s3", "hf": "huggingface"}  # which install their file systems
_CLIENTS = ("gcsfs", "s3fs")
_KNOWN = "gs://, s3://, hf:// or memory://"
# What file systems call the version of an object; those that one gives change whenever its content does.
_VERSIONS = (
    "etag", "ETag", "generation", "md5Hash", "crc32c", "blob_id", "oid", "mtime", "LastModified", "last_modified",
    "updated", "modified", "created",
)  # fmt: skip
_FIRST_READ, _LARGEST_READ = 1 << 18, 1 << 23  # bytes in a request; twice as many in each request that goes on
_MAX_REASON = 300  # characters of another library's message


def is_url(given: str | os.PathLike[str]) -> bool:
    """Whether a text or path is a URL of a file that is not on this machine."""
    if isinstance(given, RemotePath):
        return True
    text = os.fspath(given)
    found = _URL.fullmatch(text)
    return found is not None and found[1].lower() not in _LOCAL and ("://" in text or not os.path.exists(text))


def to_path(given: str | os.PathLike[str]) -> Path:
    """A path as the project's functions take it: a RemotePath for a URL, also one that went through pathlib.Path.

    Raises:
      InputError: fsspec, or what it needs for the URL's scheme, is not installed, or it knows no such scheme.
    """
    if isinstance(given, RemotePath):
        return given
    if is_url(given):
        return RemotePath(os.fspath(given))
    found = _URL.fullmatch(os.fspath(given))
    if str(given).endswith("://"):
        raise InputError(f"{given} names no file; expected {_KNOWN} and a name")
    return Path(f"/{found[2]}") if found and found[1].lower() in _LOCAL else Path(given)


@dataclass(frozen=True)
class _Stat:
    """What `RemotePath.stat` returns: fields of os.stat_result; st_ino stands for the version of the content."""

    st_mode: int
    st_size: int
    st_ino: int
    st_dev: int = 0
    st_mtime_ns: int = 0


if TYPE_CHECKING:
    _Base = Path  # it stands where the project reads and writes by a path's methods, of which it has these
else:
    _Base = object


class RemotePath(_Base):
    """A file or directory at a URL, with methods of pathlib's, which raise an OSError if the store does.

    Whatever needs a file of this machine (os.fspath, other methods of pathlib's) raises InputError.
    """

    def __init__(self, url: str) -> None:
        found = _URL.fullmatch(url)
        if found is None:
            raise InputError(f"{url[:_MAX_REASON]!r} is not a URL; expected {_KNOWN} and a name")
        self._scheme, self._key = found[1].lower(), PurePosixPath(found[2])
        _require_scheme(self._scheme)

    # names

    def __str__(self) -> str:
        return f"{self._scheme}://{self._key}"

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __fspath__(self) -> str:
        raise InputError(f"{self} is not a file on this machine, which is needed here; copy it, and name the copy")

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and hasattr(Path, name):
            os.fspath(self)
        raise AttributeError(name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __lt__(self, other: Any) -> bool:
        return str(self) < str(other)

    def __truediv__(self, name: Any) -> RemotePath:
        return self._at(self._key / str(name))

    def with_name(self, name: str) -> RemotePath:
        return self._at(self._key.with_name(name))

    def with_suffix(self, suffix: str) -> RemotePath:
        return self._at(self._key.with_suffix(suffix))

    def relative_to(self, *other: Any, **_: Any) -> Any:
        return self._key.relative_to(other[0]._key)

    def resolve(self, strict: bool = False) -> RemotePath:
        return self

    @property
    def name(self) -> str:
        return self._key.name

    @property
    def stem(self) -> str:
        return self._key.stem

    @property
    def suffix(self) -> str:
        return self._key.suffix

    @property
    def parent(self) -> RemotePath:
        return self._at(self._key.parent)

    def _at(self, key: PurePosixPath) -> RemotePath:
        return RemotePath(f"{self._scheme}://{key}")

    # what is there

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        with self._errors():
            return bool(self._system.exists(self._name))

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        with self._errors():
            return bool(self._system.isfile(self._name))

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        with self._errors():
            return bool(self._system.isdir(self._name))

    def is_symlink(self) -> bool:
        return False

    def samefile(self, other: Any) -> bool:
        return bool(self == other)

    def stat(self, *, follow_symlinks: bool = True) -> Any:
        with self._errors():
            info = self._system.info(self._name)
        is_file = info.get("type") != "directory"
        mode = stat.S_IFREG if is_file else stat.S_IFDIR
        return _Stat(mode, int(info.get("size") or 0), int.from_bytes(_version(info)[:8], "big"))

    def iterdir(self) -> Any:
        with self._errors():
            entries = self._system.ls(self._name, detail=False) if self._system.isdir(self._name) else []
        names = {PurePosixPath(str(entry).rstrip("/")).name for entry in entries}
        return iter([self / name for name in sorted(names - {self.name if len(entries) == 1 else ""})])

    def glob(self, pattern: str, **_: Any) -> Any:
        """The files below whose names, relative to this directory, have the pattern; `**/` there is any directory."""
        parts = re.split(r"(\*\*/|\*)", pattern)
        expression = "".join({"**/": "([^/]+/)*", "*": "[^/]*"}.get(part, re.escape(part)) for part in parts)
        return (self / name for name in self.files() if re.fullmatch(expression, name))

    def rglob(self, pattern: str, **_: Any) -> Any:
        """The files below, in any directory, whose names have the pattern, in order."""
        for name in self.files():
            if fnmatch(PurePosixPath(name).name, pattern):
                yield self / name

    def files(self) -> dict[str, str]:
        """The version of each file below, by the file's name relative to this directory, in order."""
        with self._errors():
            found = self._system.find(self._name, detail=True)
            own = str(self._system._strip_protocol(self._name)).strip("/")
        names = {str(key).strip("/").removeprefix(own).strip("/"): info for key, info in found.items()}
        return {name: _version(names[name]).hex() for name in sorted(names) if name}

    # reading and writing

    def open(self, mode: str = "rb", *_: Any, **__: Any) -> Any:
        """Opens the file for reading its bytes, which are requested as they are read."""
        if mode != "rb":
            os.fspath(self)
        return io.BufferedReader(_Reader(self), _LARGEST_READ)

    def read_bytes(self) -> bytes:
        with self._errors():
            return bytes(self._system.cat_file(self._name))

    def write_bytes(self, data: Any) -> int:
        with self.replacing() as file:
            return file.write(data)

    def write_text(
        self, data: str, encoding: str | None = None, errors: str | None = None, newline: str | None = None
    ) -> int:
        return self.write_bytes(data.encode(encoding or "utf-8", errors or "strict"))

    def read_text(self, encoding: str | None = None, errors: str | None = None, newline: str | None = None) -> str:
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    @contextmanager
    def replacing(self) -> Iterator[IO[bytes]]:
        """Yields a temporary file of this machine, which becomes this file if the block succeeds."""
        with tempfile.NamedTemporaryFile(prefix="roberta-flax-") as file:
            yield file
            file.flush()
            self.put(Path(file.name))

    def put(self, file: Path) -> None:
        """Writes the content of a file of this machine, in one piece."""
        with self._errors():
            self._system.put_file(str(file), self._name)

    def copy_to(self, other: RemotePath, file: Path) -> None:
        """Copies the content to another file of the store; from `file`, which has it too, if the store cannot."""
        try:
            with self._errors():
                self._system.cp_file(self._name, other._name)
        except OSError:
            other.put(file)

    def put_tree(self, folder: Path, last: Sequence[str] = ()) -> None:
        """Writes the files of a directory of this machine below this one; those named `last` after the others."""
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        for path in sorted(files, key=lambda path: path.name in last):
            (self / path.relative_to(folder).as_posix()).put(path)

    def get(self, file: Path) -> None:
        """Writes the content to a file of this machine. Raises OSError if it is not whole."""
        size = self.stat().st_size
        file.parent.mkdir(parents=True, exist_ok=True)
        with self._errors():
            self._system.get_file(self._name, str(file))
        if file.stat().st_size != size:
            raise OSError(errno.EIO, f"{file.stat().st_size} bytes of {size} arrived", str(self))

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing: a directory is there if a file is in it."""

    def unlink(self, missing_ok: bool = False) -> None:
        with self._errors():
            if not missing_ok or self._system.exists(self._name):
                self._system.rm_file(self._name)

    def remove_tree(self) -> None:
        """Removes all files below, if there are any."""
        with self._errors():
            if self._system.exists(self._name):
                self._system.rm(self._name, recursive=True)

    @property
    def _system(self) -> Any:
        """fsspec's file system, which it keeps for each process. Listings are not kept: other processes write, too."""
        return _fsspec(self._scheme).filesystem(self._scheme, use_listings_cache=False)

    @property
    def _name(self) -> str:
        return str(self._key)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Raises whatever a file system raises as an OSError with a reason of one line and this URL."""
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # of clients of stores, each with classes of its own
            number = getattr(error, "errno", None)
            if not isinstance(number, int):
                kinds = {FileNotFoundError: errno.ENOENT, PermissionError: errno.EACCES, FileExistsError: errno.EEXIST}
                number = next((code for kind, code in kinds.items() if isinstance(error, kind)), errno.EIO)
            raise OSError(number, _reason(error, number), str(self)) from None


@contextmanager
def called(path: Path, name: object) -> Iterator[None]:
    """Has errors name what the user named, in place of its copy on this machine."""
    try:
        yield
    except RobertaFlaxError as error:
        if error.args and isinstance(error.args[0], str) and path != name:
            error.args = (error.args[0].replace(str(path), str(name)), *error.args[1:])
        raise


def read_all(paths: Sequence[Path]) -> list[bytes]:
    """The contents of small files; of those at URLs, many requests are under way at a time."""
    if not paths or not isinstance(paths[0], RemotePath):
        return [path.read_bytes() for path in paths]
    first = paths[0]
    names = [str(first._system._strip_protocol(path._name)) for path in paths if isinstance(path, RemotePath)]
    with first._errors():
        found = first._system.cat(names) if len(names) > 1 else {names[0]: first._system.cat_file(names[0])}
    return [bytes(found[name]) for name in names]


def _fsspec(scheme: str) -> Any:
    if (extra := _EXTRAS.get(scheme)) is not None:
        return require("fsspec", extra)
    return imported("fsspec", f"a file at {scheme}://", "pip install fsspec")


def _require_scheme(scheme: str) -> None:
    """Raises InputError unless fsspec opens URLs with this scheme."""
    fsspec = _fsspec(scheme)
    for client in map(logging.getLogger, _CLIENTS):
        if client.level == logging.NOTSET:  # they log with tracebacks the errors that they also raise
            client.setLevel(logging.CRITICAL)
    try:
        fsspec.get_filesystem_class(scheme)
    except ValueError:
        raise InputError(f"{scheme}:// is no scheme that fsspec knows; expected {_KNOWN}") from None
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        how = f"; install it with: pip install 'roberta-flax[{extra}]'" if extra else ""
        raise InputError(f"a file at {scheme}:// needs another package ({_reason(error)}){how}") from None


def _reason(error: Exception, number: int | None = None) -> str:
    """What an error says, in one line; the system's words for one that only names a file."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join(text.split())[:_MAX_REASON]
    if number == errno.ENOENT and " " not in text:
        return os.strerror(errno.ENOENT)
    return text or type(error).__name__


def _version(info: dict[str, Any]) -> bytes:
    """A hash of what tells whether a file has other content than before, of what a file system says of it."""
    known = [(key, str(info[key])) for key in _VERSIONS if info.get(key) is not None]
    return hashlib.sha256(repr((info.get("size"), known)).encode()).digest()


class _Reader(io.RawIOBase):
    """Reads a remote file by ranges. A reader that goes on in order gets larger and larger ones."""

    def __init__(self, path: RemotePath) -> None:
        self._path = path
        self._size = path.stat().st_size
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        self._position, self._next, self._length = 0, 0, _FIRST_READ

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        begin = self._position
        self._length = min(2 * self._length, _LARGEST_READ) if begin == self._next else _FIRST_READ
        end = min(begin + min(len(buffer), self._length), self._size)
        if begin >= end:
            return 0
        path = self._path
        with path._errors():
            content = path._system.cat_file(path._name, start=begin, end=end)
        if len(content) != end - begin:
            raise OSError(errno.EIO, f"{len(content)} bytes of {end - begin} arrived", str(path))
        buffer[: len(content)] = content
        self._position = self._next = end
        return len(content)
