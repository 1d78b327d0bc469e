"""Turns SIGINT and SIGTERM into a stop request that the loop checks after each step, so that it can save and end."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequests:
    """A context that records the first SIGINT or SIGTERM. A second one has its usual effect.

    Several processes have to stop after the same step. JAX's preemption service handles this: it receives SIGTERM in
    any process and agrees on a step shortly after. SIGINT is forwarded to it as SIGTERM.

    Outside the main thread, where Python allows no signal handlers, signals are not recorded.
    """

    def __init__(self) -> None:
        self._multi_process = jax.process_count() > 1
        self._received: signal.Signals | None = None
        self._previous_handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():
            handled, handler = (
                ((signal.SIGINT,), self._forward) if self._multi_process else (_STOP_SIGNALS, self._record)
            )
            self._previous_handlers = {number: signal.signal(number, handler) for number in handled}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore_handlers()

    def received(self, step: int) -> signal.Signals | None:
        """Returns the signal that requests a stop after `step` steps, or None. Every process must call it each step."""
        if self._multi_process:
            return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else None
        return self._received

    def _record(self, number: int, frame: FrameType | None) -> None:
        self._received = signal.Signals(number)
        self._restore_handlers()

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self._restore_handlers()
        os.kill(os.getpid(), signal.SIGTERM)

    def _restore_handlers(self) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        self._previous_handlers = {}
