"""Writing of files and directories that are either complete or absent; files by their contents."""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from roberta_flax.errors import CheckpointError, InputError, RobertaFlaxError
from roberta_flax.remote import RemotePath, to_path

PathLike = str | os.PathLike[str]

_MAX_TEXT = 1 << 26  # bytes of a tokenizer.json of a million pieces, which become objects of twenty times their size

PARTIAL_SUFFIX = ".partial"  # of the temporary directory that is renamed when it is complete
_REPLACED = "replaced"  # the name of an old directory inside the new one, until it is removed
MANIFEST_FILE = "conversion.json"  # says what is in a directory; of a directory at a URL, it is written last


def remove_partial(destination: Path) -> None:
    """Removes the temporary directories that killed processes left beside `destination`.

    Call this only if no process is writing `destination`.
    """
    for partial in destination.parent.glob(f".{glob.escape(destination.name)}-*{PARTIAL_SUFFIX}"):
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def new_directory(destination: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yields a temporary directory beside `destination`, and renames it to `destination` if the block succeeds.

    Whatever happens, `destination` is either complete or absent. At a URL, where no directory can be renamed, its files
    are written one by one, MANIFEST_FILE last: without that file it is not complete.

    Args:
      destination: the directory to make.
      replace: whether to replace an existing directory.

    Raises:
      CheckpointError: `destination` exists and `replace` is false, or it cannot be written.
    """
    if isinstance(destination, RemotePath):
        with _new_remote_directory(destination) as temporary:
            yield temporary
        return
    try:
        _require_absent(destination, replace)
        destination.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(
            tempfile.mkdtemp(prefix=f".{destination.name}-", suffix=PARTIAL_SUFFIX, dir=destination.parent)
        )
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:  # ValueError: the name contains a null byte
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"cannot write {destination}: {reason}") from None
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if replace and destination.is_dir():
            destination.rename(temporary / _REPLACED)
        temporary.rename(destination)
        shutil.rmtree(destination / _REPLACED, ignore_errors=True)
    except RobertaFlaxError:  # DownloadError is also an OSError, and its message says more
        raise
    except OSError as error:
        at_fault = Path(str(error.filename2 or error.filename or destination))  # may be a file that the block reads
        is_inside = any(at_fault.is_relative_to(path) for path in (temporary, destination))
        action = f"write {destination}" if is_inside else f"read or write {at_fault}"
        raise CheckpointError(f"cannot {action}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _require_absent(destination: Path, replace: bool = False) -> None:
    if not replace and (destination.exists() or destination.is_symlink()):
        raise CheckpointError(f"{destination} exists already; remove it or choose another name")


@contextmanager
def _new_remote_directory(destination: RemotePath) -> Iterator[Path]:
    try:
        _require_absent(destination)
        with tempfile.TemporaryDirectory(prefix="roberta-flax-") as folder:
            temporary = Path(folder) / destination.name
            temporary.mkdir()
            yield temporary
            destination.put_tree(temporary, last=(MANIFEST_FILE,))
    except RobertaFlaxError:
        raise
    except OSError as error:
        raise CheckpointError(f"cannot write {error.filename or destination}: {error.strerror or error}") from None


@contextmanager
def reading(path: PathLike, kind: type[RobertaFlaxError] = CheckpointError) -> Iterator[None]:
    """Raises an error of this kind, which names the file at fault (`path` if none is), where the block cannot read."""
    try:
        yield
    except RobertaFlaxError:  # DownloadError is an OSError too, and says more
        raise
    except OSError as error:
        raise kind(f"cannot read {error.filename or path}: {error.strerror or error}") from None


def read_text(path: PathLike) -> str:
    """The text of a model's UTF-8 file; CheckpointError if it is unreadable, something else, or larger than any is."""
    try:
        with reading(path):
            if (size := to_path(path).stat().st_size) > _MAX_TEXT:
                raise CheckpointError(f"{path} has {size} bytes, more than the {_MAX_TEXT} allowed for such a file")
            return to_path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None


def file_sha256(path: Path, kind: type[RobertaFlaxError] = CheckpointError) -> str:
    """The SHA-256 of a file, in hex. Raises an error of this kind if it cannot be read."""
    with reading(path, kind), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_rereadable(path: Path) -> None:
    """Raises InputError for a pipe, a device or a socket: each byte comes once, and perhaps without end."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return  # whoever opens it says why it cannot be read
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        kind = "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
        raise InputError(f"{path} is {kind}, and an input is read more than once; write it to a file and name that")


@dataclass(frozen=True)
class Contents:
    """What some files contain.

    Attributes:
      name: what the files are called together, for messages and records.
      sha256: the SHA-256 of each file, in hex, by the file's name.
    """

    name: str
    sha256: Mapping[str, str]

    @classmethod
    def of(cls, name: str, paths: Sequence[Path]) -> Contents:
        """Reads the files, at some gigabytes a second. Raises InputError if one cannot be read."""
        return cls(name, {path.name: file_sha256(path, InputError) for path in paths})

    def differences(self, before: Contents) -> str | None:
        """Describes how files that were read before differ; None if they do not. The name of a single file may."""
        old, new = before.sha256, self.sha256
        if old == new or (len(old) == len(new) == 1 and [*old.values()] == [*new.values()]):
            return None
        if len(old) == len(new) == 1:
            return f"{self.name} has other contents"
        changes = {
            "has other contents in": [name for name in new if name in old and old[name] != new[name]],
            "now has": [name for name in new if name not in old],
            "no longer has": [name for name in old if name not in new],
        }
        return ", ".join(f"{self.name} {verb} {_some(names)}" for verb, names in changes.items() if names)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more files" if len(names) > 3 else "")


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a new file, and returns when its content is on the disk."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Yields a temporary file beside `path`, which replaces `path` if the block succeeds and is removed otherwise.

    For a URL, it is a file of this machine, and is uploaded.
    """
    if isinstance(path, RemotePath):
        try:
            with path.replacing() as file:
                yield file
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror or error}") from None
        return
    temporary = path.with_name(f".{path.name}.tmp")  # hidden: nobody's own file has this name
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def differences(before: Any, now: Mapping[str, Any]) -> str | None:
    """Describes how a configuration differs from an earlier one, for an error message.

    Args:
      before: the earlier configuration, as JSON stored it.
      now: the configuration.

    Returns:
      Text about the first three values that differ, and how many others do; None if the two are equal. A value inside
      a nested object is named by its path: plan.seed. Empty text if `before` is not a dict, or both are empty.
    """
    if not isinstance(before, dict) or not (before or now):
        return ""
    earlier, later = _by_path(before), _by_path(now)
    differing = [path for path in sorted({*earlier, *later}) if earlier.get(path) != later.get(path)]
    if not differing:
        return None
    described = [
        f"{path} {_value(earlier, path, 'was', 'was not set')} and {_value(later, path, 'is', 'is not set')}"
        for path in differing[:3]
    ]
    return ", ".join(described) + (f", and {len(differing) - 3} more" if len(differing) > 3 else "")


def _by_path(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of nested mappings by their keys joined with dots."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= {f"{key}.{path}": inner for path, inner in _by_path(value).items()}
        else:
            found[key] = value
    return found


def _value(values: Mapping[str, Any], path: str, verb: str, absent: str) -> str:
    return f"{verb} {values[path]!r}" if path in values else absent
