"""Files and directories that are whole or absent."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from roberta_flax.errors import CheckpointError, InputError, RobertaFlaxError

PathLike = str | os.PathLike[str]

PARTIAL_SUFFIX = ".partial"  # of the temporary name


_REPLACED = "replaced"  # a directory on its way out, inside the one that takes its place


def remove_partial(destination: Path) -> None:
    """Removes what killed conversions to `destination` left; only for who knows that none is running."""
    for partial in destination.parent.glob(f".{glob.escape(destination.name)}-*{PARTIAL_SUFFIX}"):
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def new_directory(destination: Path, *, replace: bool = False) -> Iterator[Path]:
    """Gives a temporary directory beside `destination`, and renames it to `destination` if the block succeeds.

    Whatever happens, `destination` is either absent or whole.

    Args:
      destination: the directory to make.
      replace: whether it takes the place of one that is there, which is removed then.

    Raises:
      CheckpointError: `destination` exists and is not to be replaced, or cannot be made there.
    """
    try:
        if not replace and (destination.exists() or destination.is_symlink()):
            raise CheckpointError(f"{destination} exists already; remove it or choose another name")
        destination.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(
            tempfile.mkdtemp(prefix=f".{destination.name}-", suffix=PARTIAL_SUFFIX, dir=destination.parent)
        )
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"cannot write {destination}: {reason}") from None
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if replace and destination.is_dir():
            destination.rename(temporary / _REPLACED)
        temporary.rename(destination)
        shutil.rmtree(destination / _REPLACED, ignore_errors=True)
    except RobertaFlaxError:  # DownloadError is an OSError too, and says more
        raise
    except OSError as error:
        at_fault = Path(str(error.filename2 or error.filename or destination))  # the source's file, say, and not ours
        ours = any(at_fault.is_relative_to(path) for path in (temporary, destination))
        what = f"write {destination}" if ours else f"read or write {at_fault}"
        raise CheckpointError(f"cannot {what}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
    """The text of a UTF-8 file; CheckpointError where it cannot be read, or is something else."""
    try:
        with reading(path):
            return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None


def write_bytes(path: Path, content: bytes) -> None:
    """Makes a file, which is on the disk when this returns."""
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
    """A file beside `path` to write, which takes its place if the block succeeds and is removed if not."""
    temporary = path.with_name(path.name + ".tmp")
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
    """How a configuration differs from an earlier one, three keys at most, for an error's line; None where it does not.

    Empty text of what is no record, or an empty one.
    """
    keys = sorted({*before, *now}) if isinstance(before, dict) else []
    differ = [key for key in keys if before.get(key) != now.get(key)]
    if keys and not differ:
        return None
    return ", ".join(f"{key} was {before.get(key)!r} and is {now.get(key)!r}" for key in differ[:3])
