"""A run's checkpoints, by orbax: written while training goes on, whole or absent, the newest few kept."""

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

# what orbax and tensorstore raise where a disk fails; reading, where a file has something else
_UNWRITABLE = (OSError, ValueError, RuntimeError)
_UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, TypeError)


@contextmanager
def open_checkpoints(directory: Path, keep: int) -> Iterator[Checkpoints]:
    """The checkpoints of a run; at the end waits for the one that is being written.

    Args:
      directory: of the checkpoints; made if it is not there.
      keep: how many of the newest stay.

    Raises:
      InputError: the directory cannot be written, a checkpoint could not be, or orbax is not installed.
    """
    ocp, managers = require("orbax.checkpoint", "train"), require("orbax.checkpoint.checkpoint_managers", "train")
    options = ocp.CheckpointManagerOptions(
        preservation_policy=managers.LatestN(n=keep),
        cleanup_tmp_directories=True,  # of a run that was killed while it saved
        lightweight_initialize=True,  # by the directories' names
    )
    with _quiet():
        try:
            manager = ocp.CheckpointManager(directory.resolve(), options=options)
            if jax.process_count() > 1:  # all have listed them before one is deleted, for which all wait
                multihost_utils.sync_global_devices("checkpoints")
            for step in sorted(manager.all_steps())[:-keep]:  # what a run left that was killed before it deleted them
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
    """Checkpoints, each named by the steps that the run has done.

      40/state      {"params", "opt_state"}, in orbax's format for trees of arrays
      40/progress   JSON: where the run is, and where in the data

    Of several processes each writes what its devices hold.
    """

    def __init__(self, directory: Path, manager: Any) -> None:
        self.directory = directory
        self._manager = manager

    def latest(self) -> int | None:
        """The steps that the newest whole one has done, if there is one."""
        latest: int | None = self._manager.latest_step()
        return latest

    def save(self, step: int, params: Params, opt_state: Any, progress: Mapping[str, Any]) -> None:
        """Begins to write a checkpoint; returns when the arrays have been copied.

        Raises:
          InputError: this one or the one before could not be written.
        """
        args = require("orbax.checkpoint", "train").args
        state = args.StandardSave({"params": params, "opt_state": opt_state})
        items = args.Composite(state=state, progress=args.JsonSave(dict(progress)))
        try:
            self._manager.save(step, args=items, force=True)
        except _UNWRITABLE as error:
            raise unwritable(self.directory, error) from None

    def restore(self, step: int, params: Params, opt_state: Any) -> tuple[Params, Any, dict[str, Any]]:
        """Reads a checkpoint.

        Args:
          step: which.
          params, opt_state: arrays of the shapes, dtypes and shardings that are wanted; their values do not matter.

        Returns:
          params, opt_state and progress, as they were saved.

        Raises:
          InputError: it cannot be read.
        """
        ocp = require("orbax.checkpoint", "train")
        wanted = jax.tree.map(ocp.tree.to_shape_dtype_struct, {"params": params, "opt_state": opt_state})
        items = ocp.args.Composite(state=ocp.args.StandardRestore(wanted), progress=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=items)
        except _UNREADABLE as error:
            raise unreadable(self.directory / str(step), error) from None
        return restored.state["params"], restored.state["opt_state"], restored.progress

    def wait(self) -> None:
        """Waits until what is being written is on disk.

        Raises:
          InputError: it could not be written.
        """
        try:
            self._manager.wait_until_finished()
        except _UNWRITABLE as error:
            raise unwritable(self.directory, error) from None

    def close(self) -> None:
        """Waits, and ends orbax's threads."""
        self.wait()
        self._manager.close()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without orbax's log, which has with a traceback what it raises as well.

    And where one file could not be written, without what tensorstore prints of the others, for which nobody waits then;
    that may come later, so after an error it stays so.
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
