"""A run's checkpoints, saved by orbax in the background. Each is complete or absent, and the newest few are kept."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from roberta_flax.errors import InputError
from roberta_flax.extras import require
from roberta_flax.nn.forward import Params
from roberta_flax.train.directory import unreadable, unwritable

# Errors that orbax and tensorstore raise if a disk fails or, in reading, if a file has unexpected content.
_WRITE_ERRORS = (OSError, ValueError, RuntimeError)
_READ_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError)


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
    options = ocp.CheckpointManagerOptions(
        preservation_policy=managers.LatestN(n=keep),
        cleanup_tmp_directories=True,  # left by a run that was killed while saving
        lightweight_initialize=True,  # lists directories instead of reading metadata
    )
    with _silenced_orbax():
        try:
            manager = ocp.CheckpointManager(directory.resolve(), options=options)
            if jax.process_count() > 1:  # every process lists the checkpoints before any is deleted
                multihost_utils.sync_global_devices("checkpoints")
            for step in sorted(manager.all_steps())[:-keep]:  # left by a run that was killed before deleting
                manager.delete(step)
        except OSError as error:
            raise unwritable(directory, error) from None
        checkpoints = Checkpoints(directory, manager)
        try:
            yield checkpoints
        except BaseException:
            with suppress(InputError):  # the first error is the one to report
                checkpoints.close()
            raise
        checkpoints.close()


class Checkpoints:
    """The checkpoints of a run, each named by its number of steps.

      40/state      {"params", "opt_state"}, in orbax's format for trees of arrays
      40/progress   JSON: the state of the run, and the position in the data

    With several processes, each writes the shards on its own devices.
    """

    def __init__(self, directory: Path, manager: Any) -> None:
        self.directory = directory
        self._manager = manager

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
          InputError: the checkpoint cannot be read.
        """
        ocp = require("orbax.checkpoint", "train")
        wanted = jax.tree.map(ocp.tree.to_shape_dtype_struct, {"params": params, "opt_state": opt_state})
        items = ocp.args.Composite(state=ocp.args.StandardRestore(wanted), progress=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=items)
        except _READ_ERRORS as error:
            raise unreadable(self.directory / str(step), error) from None
        return restored.state["params"], restored.state["opt_state"], restored.progress

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
