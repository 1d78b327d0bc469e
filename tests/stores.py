"""A store of objects in directories of this machine, for tests of files at URLs: dirstore:///tmp/a is the file /tmp/a.

An object is written whole, no object is renamed, and there are no locks, as at gs:// and s3://. The store can fail.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

import fsspec


class DirectoryStore(fsspec.AbstractFileSystem):
    protocol = "dirstore"
    cachable = False
    writes_left: int | None = None  # before the store is gone, to writing; None for ever

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + str(path).removeprefix("dirstore://").strip("/")

    @classmethod
    def count_write(cls) -> None:
        if cls.writes_left is not None:
            if cls.writes_left == 0:
                raise ConnectionError("the store is gone")
            cls.writes_left -= 1

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        file = Path(self._strip_protocol(path))
        if not file.exists():
            raise FileNotFoundError(str(file))
        stat, is_file = file.stat(), file.is_file()
        kind = "file" if is_file else "directory"
        size = stat.st_size if is_file else 0
        return {"name": str(file), "type": kind, "size": size, "etag": f"{stat.st_ino}-{stat.st_mtime_ns}"}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        file = Path(self._strip_protocol(path))
        entries = [file] if file.is_file() else [each for each in file.iterdir() if not each.name.startswith(".new-")]
        return [self.info(str(each)) if detail else str(each) for each in sorted(entries)]

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        file = Path(self._strip_protocol(path))
        if mode == "rb":
            return file.open("rb")
        self.count_write()
        return _Upload(file)

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        self.count_write()
        upload = _Upload(Path(self._strip_protocol(path2)))
        with upload:
            upload.write(Path(self._strip_protocol(path1)).read_bytes())

    def rm_file(self, path: str) -> None:
        self.count_write()
        Path(self._strip_protocol(path)).unlink()

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        for file in self.find(path):
            self.rm_file(file)
        for folder in sorted(Path(self._strip_protocol(path)).rglob("*"), reverse=True):
            folder.rmdir()  # of which a store of objects has none
        Path(self._strip_protocol(path)).rmdir()


class _Upload:
    """An object that appears when all of it was written."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file, self._new = file, file.with_name(f".new-{uuid.uuid4().hex}")
        self._content = self._new.open("wb")
        self.write = self._content.write

    def __enter__(self) -> _Upload:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._content.close()
        if kind is None:
            os.replace(self._new, self._file)


fsspec.register_implementation("dirstore", DirectoryStore, clobber=True)
