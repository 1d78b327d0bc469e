"""SIGINT and SIGTERM as a question that is asked after each step, so that a run ends between two and saves."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequests:
    """While it is entered, the first SIGINT or SIGTERM is noted; a second does what it did before.

    Several processes have to stop after the same step. There JAX's preemption service hears SIGTERM, of whichever
    process, and agrees on a step a moment later; SIGINT is passed on to it as SIGTERM.

    Outside the main thread, where Python allows no handlers, nothing is noted.
    """

    def __init__(self) -> None:
        self._several = jax.process_count() > 1
        self._received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():
            handled, handler = ((signal.SIGINT,), self._pass_on) if self._several else (_SIGNALS, self._note)
            self._before = {number: signal.signal(number, handler) for number in handled}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()

    def received(self, step: int) -> signal.Signals | None:
        """The signal that asks for an end after `step` steps; each process must ask after each of them."""
        if self._several:
            return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else None
        return self._received

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = signal.Signals(number)
        self._restore()

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._restore()
        os.kill(os.getpid(), signal.SIGTERM)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
