"""How far a run is, on stderr: a bar on a terminal, otherwise a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

_SECONDS_BETWEEN_LINES = 30.0


class Progress(Protocol):
    """Is told what each step gave."""

    def __call__(self, step: int, loss: float, learning_rate: float | None, tokens: int) -> None:
        """`step` are done; the last had this loss, learning rate (None where it is not known) and tokens."""


@contextmanager
def shown(total: int, done: int) -> Iterator[Progress]:
    """A Progress that shows loss, learning rate, tokens a second and the time left.

    Args:
      total: the steps of the whole run.
      done: of them, those that an earlier process did.
    """
    rate = _Rate(total, done)
    if not sys.stderr.isatty():
        last = time.monotonic()

        def line(step: int, loss: float, learning_rate: float | None, tokens: int) -> None:
            nonlocal last
            rate.count(tokens)
            if time.monotonic() - last >= _SECONDS_BETWEEN_LINES or step == total:
                last = time.monotonic()
                print(f"{step} of {total} steps, {rate.text(step, loss, learning_rate)}", file=sys.stderr)

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
            bar.update(task, completed=step, description=rate.text(step, loss, learning_rate))

        yield advance


class _Rate:
    """Tokens a second, and the time left, from the first step of this process on, which compiles."""

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

    def text(self, step: int, loss: float, learning_rate: float | None) -> str:
        text = f"loss {loss:.4f}" + ("" if learning_rate is None else f" lr {learning_rate:.3g}")
        seconds = time.monotonic() - (self._begin or 0.0)
        if step == self._first or not seconds:
            return text
        left = timedelta(seconds=round(seconds / (step - self._first) * (self._total - step)))
        return f"{text} {self._tokens / seconds:.0f} tokens/s {left} left"


def is_first_process() -> bool:
    """Whether this process is the one that writes and reports."""
    import jax

    return jax.process_index() == 0


def report(text: str) -> None:
    """A line on stderr, of the first process."""
    if is_first_process():
        print(text, file=sys.stderr)
