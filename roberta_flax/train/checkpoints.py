"""A run's checkpoints, saved by orbax in the background. Each is complete or absent, and the newest few are kept.

A checkpoint has the checksums of its files, which are compared before it is read.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from roberta_flax.errors import InputError
from roberta_flax.extras import require
from roberta_flax.files import file_sha256, write_bytes
from roberta_flax.nn.forward import Params
from roberta_flax.train.directory import checked_by_first_process, unreadable, unwritable

CHECKSUMS_FILE = "SHA256SUMS"  # as sha256sum writes it, so that `sha256sum -c SHA256SUMS` checks it too

_WRITE_ERRORS = (OSError, ValueError, RuntimeError)  # that orbax and tensorstore raise if a disk fails
# What orbax writes into a checkpoint after its checksums. None of it is part of the run's state.
_UNCHECKED_FILES = frozenset((CHECKSUMS_FILE, "_CHECKPOINT_METADATA", "commit_success.txt"))


@contextmanager
def open_checkpoints(directory: Path, keep: int) -> Iterator[Checkpoints]:
    """Opens a run's checkpoints. On exit, waits for the one that is being written.

    Args:
      directory: the directory of the checkpoints, which is created if it does not exist.
      keep: number of checkpoints to keep, the newest ones.

    Raises:
      InputError: the directory or a checkpoint cannot be written, or orbax is not installed.
    """
    ocp, managers = require("orbax.checkpoint", "train"), require("orbax.checkpoint.checkpoint_managers", "train")
    saving = _Saving(directory.resolve())
    options = ocp.CheckpointManagerOptions(
        preservation_policy=managers.LatestN(n=keep),
        cleanup_tmp_directories=True,  # left by a run that was killed while saving
        lightweight_initialize=True,  # lists directories instead of reading metadata
        # Called when all files are written, before the temporary directory is renamed.
        async_options=ocp.options.AsyncOptions(post_finalization_callback=saving.write_checksums),
    )
    with _silenced_orbax():
        try:
            manager = ocp.CheckpointManager(directory.resolve(), options=options)
            if jax.process_count() > 1:  # every process lists the checkpoints before any is deleted
                multihost_utils.sync_global_devices("checkpoints")
        except OSError as error:
            raise unwritable(directory, error) from None
        checkpoints = Checkpoints(directory, manager, saving, keep)
        try:
            yield checkpoints
        except BaseException:
            with suppress(InputError):  # the first error is the one to report
                checkpoints.close()
            raise
        checkpoints.close()


class _Saving:
    """The checkpoint that is being saved: its number of steps, and where orbax writes it until it is complete."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.step: int | None = None

    def write_checksums(self) -> None:
        """Writes the checksums of all files, in the first process and on orbax's thread."""
        (temporary,) = self._directory.glob(f"{self.step}.orbax-checkpoint-tmp*")
        lines = [f"{file_sha256(path)}  {name}\n" for name, path in sorted(_files(temporary).items())]
        write_bytes(temporary / CHECKSUMS_FILE, "".join(lines).encode())


class Checkpoints:
    """The checkpoints of a run, each named by its number of steps.

      40/state        {"params", "opt_state"}, in orbax's format for trees of arrays
      40/progress     JSON: the state of the run, and the position in the data
      40/SHA256SUMS   the checksums of these files

    With several processes, each writes the shards on its own devices.
    """

    def __init__(self, directory: Path, manager: Any, saving: _Saving, keep: int) -> None:
        self.directory = directory
        self._manager = manager
        self._saving = saving
        self._keep = keep

    def latest(self) -> int | None:
        """Returns the number of steps of the newest complete checkpoint; None if there is none."""
        latest: int | None = self._manager.latest_step()
        return latest

    def save(self, step: int, params: Params, opt_state: Any, progress: Mapping[str, Any]) -> None:
        """Starts to write a checkpoint, and returns when the arrays have been copied.

        Raises:
          InputError: this checkpoint or the previous one could not be written.
        """
        args = require("orbax.checkpoint", "train").args
        state = args.StandardSave({"params": params, "opt_state": opt_state})
        items = args.Composite(state=state, progress=args.JsonSave(dict(progress)))
        self.wait()
        self._saving.step = step
        try:
            self._manager.save(step, args=items, force=True)
        except _WRITE_ERRORS as error:
            raise unwritable(self.directory, error) from None

    def restore(self, step: int, params: Params, opt_state: Any) -> tuple[Params, Any, dict[str, Any]]:
        """Reads a checkpoint.

        Args:
          step: the checkpoint's number of steps.
          params, opt_state: arrays with the shapes, dtypes and shardings to restore. Their values do not matter.

        Returns:
          params, opt_state and progress, as they were saved.

        Raises:
          InputError: the checkpoint is not the one that was saved, or it cannot be read.
        """
        path, advice = self.directory / str(step), self._advice(step)
        checked_by_first_process(lambda: _require_undamaged(path, advice))
        ocp = require("orbax.checkpoint", "train")
        wanted = jax.tree.map(_wanted, {"params": params, "opt_state": opt_state})
        items = ocp.args.Composite(state=ocp.args.StandardRestore(wanted), progress=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=items)
        except Exception as error:  # orbax raises bare Exceptions, too
            raise unreadable(path, error, advice) from None
        state = jax.tree.map(lambda x: x if isinstance(x, jax.Array) else jax.device_put(x), restored.state)
        return state["params"], state["opt_state"], restored.progress

    def delete_old(self) -> None:
        """Deletes all but the newest few. Saving does, too, unless the run was killed before, or keeps fewer now.

        Raises:
          InputError: one cannot be deleted.
        """
        try:
            for step in sorted(self._manager.all_steps())[: -self._keep]:
                self._manager.delete(step)
        except OSError as error:
            raise unwritable(self.directory, error) from None

    def _advice(self, step: int) -> str:
        """Returns what to do if a checkpoint cannot be used."""
        previous = max((other for other in self._manager.all_steps() if other < step), default=None)
        return "remove it to " + ("start over" if previous is None else f"resume from step {previous}")

    def wait(self) -> None:
        """Waits until the checkpoint that is being written is on disk.

        Raises:
          InputError: it could not be written.
        """
        try:
            self._manager.wait_until_finished()
        except _WRITE_ERRORS as error:
            raise unwritable(self.directory, error) from None

    def close(self) -> None:
        """Waits for the checkpoint that is being written, and ends orbax's threads."""
        self.wait()
        self._manager.close()


def _wanted(leaf: Any) -> Any:
    """Returns what orbax should restore: a numpy array where JAX chose the device.

    Orbax commits its arrays to their devices, and JAX compiles another program for those.
    """
    if isinstance(leaf, jax.Array) and leaf.committed:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)  # type: ignore[no-untyped-call]
    return np.empty(leaf.shape, leaf.dtype)


def _require_undamaged(checkpoint: Path, advice: str) -> None:
    """Raises InputError unless a checkpoint has exactly the files that were saved."""
    try:
        damage = _damage(checkpoint)
    except OSError as error:
        raise unreadable(checkpoint, error, advice) from None
    if damage is not None:
        raise InputError(f"{checkpoint} is damaged: {damage}; {advice}")


def _damage(checkpoint: Path) -> str | None:
    """Returns the first difference between a checkpoint and its checksums; None if there is none."""
    found = _files(checkpoint)
    if not (checkpoint / CHECKSUMS_FILE).is_file():
        return f"{CHECKSUMS_FILE} is missing"
    content = (checkpoint / CHECKSUMS_FILE).read_bytes()
    lines = [re.fullmatch(rb"([0-9a-f]{64})  (.+)", line) for line in content.splitlines()]
    if not content.endswith(b"\n") or None in lines:
        return f"{CHECKSUMS_FILE} has other content than when it was saved"
    saved = {line[2].decode(errors="replace"): line[1].decode() for line in lines if line is not None}
    for name in sorted({*saved, *found}):
        if name not in found:
            return f"{name} is missing"
        if name not in saved:
            return f"{name} is not one of its files"
        if file_sha256(found[name]) != saved[name]:
            return f"{name} has other content than when it was saved"
    return None


def _files(checkpoint: Path) -> dict[str, Path]:
    """Returns the files of a checkpoint that have checksums, by their relative paths."""
    paths = {path.relative_to(checkpoint).as_posix(): path for path in checkpoint.rglob("*") if not path.is_dir()}
    return {name: path for name, path in paths.items() if name not in _UNCHECKED_FILES}


@contextmanager
def _silenced_orbax() -> Iterator[None]:
    """Silences orbax's log, which repeats with a traceback the errors that orbax also raises.

    If a file cannot be written, this also silences what tensorstore prints about the other files, for which nobody
    waits any more. That may come late, so after an error they stay silenced.
    """
    logger, hook = logging.getLogger("absl"), sys.unraisablehook
    level = logger.level

    def report(unraisable: sys.UnraisableHookArgs) -> None:
        if unraisable.object is not None or str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    logger.setLevel(logging.CRITICAL + 1)
    sys.unraisablehook = report
    try:
        yield
        sys.unraisablehook = hook
    finally:
        logger.setLevel(level)
