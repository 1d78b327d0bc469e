"""Shows a run's progress on stderr: a bar on a terminal, otherwise a line every 30 seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

from roberta_flax.errors import printable

_SECONDS_BETWEEN_LINES = 30.0


class Progress(Protocol):
    """A callback that shows the progress after each step."""

    def __call__(self, step: int, loss: float, learning_rate: float | None, tokens: int) -> None:
        """Shows that `step` steps are done.

        Args:
          step: number of steps done.
          loss: loss of the last step.
          learning_rate: learning rate of the last step; None if it is not known.
          tokens: number of tokens in the last step.
        """


@contextmanager
def shown(total: int, done: int) -> Iterator[Progress]:
    """Returns a Progress that shows the loss, the learning rate, tokens per second and the time left.

    Args:
      total: number of steps in the whole run.
      done: number of steps that were done before the run was resumed.
    """
    rate = _Rate(total, done)
    if not sys.stderr.isatty():
        last = time.monotonic()

        def line(step: int, loss: float, learning_rate: float | None, tokens: int) -> None:
            nonlocal last
            rate.count(tokens)
            if time.monotonic() - last >= _SECONDS_BETWEEN_LINES or step == total:
                last = time.monotonic()
                print(f"{step} of {total} steps, {rate.to_text(step, loss, learning_rate)}", file=sys.stderr)

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    with Progress(
        BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), console=Console(stderr=True)
    ) as bar:
        task = bar.add_task("", total=total, completed=done)

        def advance(step: int, loss: float, learning_rate: float | None, tokens: int) -> None:
            rate.count(tokens)
            bar.update(task, completed=step, description=rate.to_text(step, loss, learning_rate))

        yield advance


class _Rate:
    """Estimates tokens per second and the time left. The first step of the process, which compiles, is not timed."""

    def __init__(self, total: int, done: int) -> None:
        self._total = total
        self._first = done + 1
        self._begin: float | None = None
        self._tokens = 0

    def count(self, tokens: int) -> None:
        if self._begin is None:
            self._begin = time.monotonic()
        else:
            self._tokens += tokens

    def to_text(self, step: int, loss: float, learning_rate: float | None) -> str:
        text = f"loss {loss:.4f}" + ("" if learning_rate is None else f" lr {learning_rate:.3g}")
        seconds = time.monotonic() - (self._begin or 0.0)
        if step == self._first or not seconds:
            return text
        left = timedelta(seconds=round(seconds / (step - self._first) * (self._total - step)))
        return f"{text} {self._tokens / seconds:.0f} tokens/s {left} left"


def is_first_process() -> bool:
    """Whether this is the process that writes files and reports."""
    import jax

    return jax.process_index() == 0


def report(text: str) -> None:
    """Prints lines on stderr, in the first process only."""
    if is_first_process():
        print("\n".join(map(printable, text.split("\n"))), file=sys.stderr)
