"""A run whose directory is at a URL: it works in a directory of this machine, and what it saves is copied to the URL.

  URL/...          the files of the run's directory, by the same names
  URL/mirror.json  the size and SHA-256 of each of them, as of one moment from which the run can resume
  URL/mirror-new/  files that replace others of these, in a directory for each upload, which mirror.json names
  URL/mirror.owner which process may write; the last one that has begun

An upload writes files that are new to their places and those that replace others to mirror-new/; then mirror.json, in
one piece; then it copies mirror-new/ to its places, and removes what is no longer there. At every moment, mirror.json
therefore names files that are there, in one of the two places. `Mirror.download` finds them by their checksums.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
import jax

from roberta_flax.checkpoint import download
from roberta_flax.errors import InputError
from roberta_flax.files import file_sha256
from roberta_flax.remote import RemotePath, called, to_path
from roberta_flax.train.directory import BEST, CHECKPOINTS, LOCK_FILE, unwritable

MANIFEST_FILE, OWNER_FILE, NEW = "mirror.json", "mirror.owner", "mirror-new"
_SNAPSHOT = ".snapshot"
_UNCHANGING = (CHECKPOINTS, BEST)  # directories whose files are replaced, never changed
_OWN = (CHECKPOINTS, BEST, NEW)  # directories that hold nothing else
_TRANSFERS = 8  # at a time


@contextmanager
def mirrored(directory: Path) -> Iterator[tuple[Path, Mirror | None]]:
    """Yields the directory of this machine in which a run at `directory` works, and the mirror that uploads it.

    For a directory of this machine these are itself and None. For a URL, what was saved there is downloaded first, to
    the cache; at the end, with an error or without, the rest is uploaded and the local directory removed.

    Raises:
      InputError: there are several processes, whose checkpoints need a directory that they share; another process of
        this machine is training there; files of the URL are damaged or none of a run; or it cannot be read or written.
    """
    url = to_path(directory)
    if not isinstance(url, RemotePath):
        yield url, None
        return
    if jax.process_count() > 1:
        raise InputError(
            f"several processes write the checkpoints of a run to a file system that they share, and not to {url}; "
            "name a directory on one, or train with one process"
        )
    key = hashlib.sha256(str(url).encode()).hexdigest()[:16]
    local = download.cache_dir() / "runs" / key / url.name
    with called(local, url), _locked(local, url):
        mirror = Mirror(url, local)
        mirror.download()
        try:
            yield local, mirror
        except BaseException:
            with suppress(InputError):  # the first error is the one to report
                mirror.finish()
            raise
        mirror.finish()
        shutil.rmtree(local, ignore_errors=True)


def as_given(directory: Path, mirror: Mirror | None) -> Path:
    """The directory of a run as its user named it: the local one, or the URL to which it is uploaded."""
    return directory if mirror is None else mirror.url


@contextmanager
def _locked(local: Path, url: RemotePath) -> Iterator[None]:
    lock = filelock.FileLock(local.with_name(f"{local.name}.lock"))
    try:
        local.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise InputError(f"another process is training in {url} already; wait for it, or stop it") from None
    except OSError as error:
        raise unwritable(local, error) from None
    try:
        yield
    finally:
        lock.release()


class Mirror:
    """Uploads a run's directory.

    Attributes:
      url: where to.
    """

    def __init__(self, url: RemotePath, local: Path) -> None:
        self.url = url
        self._local = local
        self._owner, self._is_owner = uuid.uuid4().hex.encode(), False
        self._there: dict[str, dict[str, Any]] = {}  # what mirror.json says
        self._new = NEW  # where files are that an upload has not copied to their places
        self._unplaced: set[str] = set()
        self._thread = ThreadPoolExecutor(1, "mirror")
        self._upload: Future[None] | None = None

    def download(self) -> None:
        """Makes the local directory what was saved at the URL.

        Raises:
          InputError: files are missing or damaged, or something else is there.
        """
        try:
            self._there = self._read_manifest()
            for path in sorted(self._local.rglob("*"), reverse=True):  # what an earlier process of this machine left
                if path.is_dir() and not path.is_symlink():
                    with suppress(OSError):
                        path.rmdir()
                elif not self._is_there(path):
                    path.unlink()
            self._unplaced = {name for name in self._there if (self.url / self._new / name).is_file()}
            _in_parallel(self._fetch, self._there)
        except OSError as error:
            raise unwritable(self.url, error) from None

    def claim(self) -> None:
        """Has this process be the one that writes at the URL. A process that did so before stops when it next saves."""
        if not self._is_owner:
            try:
                self._write(OWNER_FILE, self._owner)
            except OSError as error:
                raise unwritable(self.url, error) from None
            self._is_owner = True

    def save(self) -> None:
        """Begins to upload what the directory holds now, and returns.

        Raises:
          InputError: the upload before this one failed.
        """
        self._wait()
        snapshot = self._local / _SNAPSHOT
        try:
            shutil.rmtree(snapshot, ignore_errors=True)
            files = dict(self._files())
            for name, path in files.items():
                (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
                copy = os.link if _is_of_directory(name, _UNCHANGING) else shutil.copyfile
                copy(path, snapshot / name)
        except OSError as error:
            raise unwritable(self._local, error) from None
        self._upload = self._thread.submit(self._upload_files, snapshot, list(files))

    def finish(self) -> None:
        """Uploads what there is, if this process may write at the URL, and returns when all is there."""
        try:
            if self._is_owner:
                self.save()
            self._wait()
        finally:
            self._thread.shutdown()

    def _wait(self) -> None:
        upload, self._upload = self._upload, None
        if upload is not None:
            upload.result()

    def _files(self) -> Iterator[tuple[str, Path]]:
        for path in sorted(self._local.rglob("*")):
            name = path.relative_to(self._local).as_posix()
            hidden = any(part.startswith(".") for part in name.split("/"))
            if path.is_file() and path.name != LOCK_FILE and not hidden and ".orbax-checkpoint-tmp" not in name:
                yield name, path

    def _upload_files(self, snapshot: Path, names: list[str]) -> None:
        new = f"{NEW}/{uuid.uuid4().hex}"  # so that nothing that mirror.json names is ever written over
        try:
            now = {name: _description(snapshot / name) for name in names}
            changed = [name for name in names if now[name] != self._there.get(name) or name in self._unplaced]
            replacing = [name for name in changed if name in self._there]
            self._require_owner()
            places = {name: self.url / new / name if name in replacing else self.url / name for name in changed}
            _in_parallel(lambda name: places[name].put(snapshot / name), changed)
            self._require_owner()
            self._write(MANIFEST_FILE, json.dumps({"files": now, "new": new}, indent=1).encode())
            _in_parallel(lambda name: places[name].copy_to(self.url / name, snapshot / name), replacing)
            gone = {name for name in self.url.files() if name in self._there or _is_of_directory(name, _OWN)} - set(
                names
            )
            _in_parallel(lambda name: (self.url / name).unlink(missing_ok=True), gone)
            self._there, self._unplaced = now, set()
        except OSError as error:
            raise unwritable(self.url, error) from None

    def _require_owner(self) -> None:
        """Raises InputError if another process has begun to train at the URL: there are no locks."""
        if (self.url / OWNER_FILE).read_bytes() != self._owner:
            raise InputError(f"another process has begun to train in {self.url}, so this one stops")

    def _write(self, name: str, content: bytes) -> None:
        with (self.url / name).replacing() as file:
            file.write(content)

    def _read_manifest(self) -> dict[str, dict[str, Any]]:
        path = self.url / MANIFEST_FILE
        if not path.is_file():
            begun = (self.url / OWNER_FILE).is_file()  # a run that was killed before it saved anything
            if not begun and (other := next(iter(self.url.files()), None)) is not None:
                raise InputError(f"{self.url / other} exists already; remove it or choose another directory")
            return {}
        try:
            manifest = json.loads(path.read_bytes())
            files: dict[str, dict[str, Any]] = manifest["files"]
            self._new = str(manifest["new"])
            if not _is_name(self._new) or not all(
                _is_name(name) and isinstance(entry["sha256"], str) for name, entry in files.items()
            ):
                raise ValueError("a name or checksum is none")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{path} is damaged ({error}); choose another directory") from None
        return files

    def _is_there(self, path: Path) -> bool:
        """Whether a local file is what the URL has by this name."""
        entry = self._there.get(path.relative_to(self._local).as_posix())
        return entry is not None and path.stat().st_size == entry["bytes"] and _description(path) == entry

    def _fetch(self, name: str) -> None:
        """Downloads a file, from either of its two places."""
        local = self._local / name
        for place in (self.url / name, self.url / self._new / name):
            if local.is_file() and _description(local) == self._there[name]:
                return
            with suppress(FileNotFoundError):
                place.get(local)
        if not local.is_file() or _description(local) != self._there[name]:
            raise InputError(
                f"{self.url / name} is not the file that the run saved; put it back to resume, or choose another "
                "directory"
            )


def _is_of_directory(name: str, directories: Sequence[str]) -> bool:
    """Whether a file is in one of these directories of a run, or of the run of a seed."""
    return not set(directories).isdisjoint(name.split("/")[:2])


def _description(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path, InputError)}


def _is_name(name: str) -> bool:
    return not name.startswith("/") and ".." not in name.split("/")


def _in_parallel(function: Callable[[str], object], names: Iterable[str]) -> None:
    with ThreadPoolExecutor(_TRANSFERS) as threads:
        list(threads.map(function, names))
