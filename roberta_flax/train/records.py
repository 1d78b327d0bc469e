"""What a run says of itself: lines of JSON, and TensorBoard's files where they are asked for.

metrics.jsonl   what was computed; of two runs of one command the same bytes
speed.jsonl     what time it took, also what a killed run did after its last checkpoint
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from roberta_flax.extras import require
from roberta_flax.train import directory as layout


class Records:
    """The records of a run that goes on after `step` steps: what is said of later ones is removed.

    A line of metrics.jsonl is of the steps since the line before it (step, loss, learning_rate, ...) or of a
    validation (step, valid_loss, ...).

    Args:
      directory: the run's.
      step: the number of steps done.
      tensorboard: whether TensorBoard's files are written too.

    Raises:
      InputError: a file that cannot be written, or tensorboardX is not installed.
    """

    def __init__(self, directory: Path, step: int, *, tensorboard: bool) -> None:
        self._writer: Any = None
        if tensorboard:
            board = directory / layout.TENSORBOARD
            with _writing(board):
                self._writer = require("tensorboardX", "train").SummaryWriter(str(board), purge_step=step + 1)
        self._metrics = directory / layout.METRICS_FILE
        self._speed = directory / layout.SPEED_FILE
        with _writing(self._metrics):
            self._metrics_file = self._metrics.open("ab")
            self._metrics_file.truncate(_length_until(self._metrics, step))
        with _writing(self._speed):
            self._speed_file = self._speed.open("ab")

    def __enter__(self) -> Records:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for file in (self._metrics_file, self._speed_file):
            with suppress(OSError):  # a line that could not be written has been reported
                file.close()
        if self._writer is not None:
            self._writer.close()

    def training(self, step: int, values: Mapping[str, float]) -> None:
        """Records what the steps since the last record gave; `step` counts them from the beginning."""
        self._line(step, values)
        self._scalars("train", step, values)

    def validation(self, step: int, values: Mapping[str, float], *, best: bool) -> None:
        """Records a validation, and whether it was the best so far."""
        self._line(step, {f"valid_{name}": value for name, value in values.items()} | {"best": best})
        self._scalars("valid", step, values)

    def speed(self, step: int, tokens: int, seconds: float) -> None:
        """Records in how many seconds so many tokens were trained on."""
        rate = tokens / seconds if seconds else 0.0
        line = {"step": step, "tokens": tokens, "seconds": round(seconds, 4), "tokens_per_second": round(rate, 1)}
        with _writing(self._speed):
            self._speed_file.write(json.dumps(line).encode() + b"\n")
            self._speed_file.flush()
        self._scalars("speed", step, {"tokens_per_second": rate})

    def sync(self) -> None:
        """Has the lines so far on disk, so that no checkpoint is ahead of them."""
        with _writing(self._metrics):
            os.fsync(self._metrics_file.fileno())

    def _line(self, step: int, values: Mapping[str, Any]) -> None:
        line = {"step": step} | {name: _plain(value) for name, value in values.items()}
        with _writing(self._metrics):
            self._metrics_file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
            self._metrics_file.flush()

    def _scalars(self, group: str, step: int, values: Mapping[str, float]) -> None:
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{group}/{name}", value, step)


class Stopwatch:
    """The time that steps take, without what is done between them, and the tokens trained on in it."""

    def __init__(self) -> None:
        self._tokens = 0
        self._seconds = 0.0
        self._since = time.perf_counter()

    def count(self, tokens: int) -> None:
        """Counts a step that has ended."""
        now = time.perf_counter()
        self._tokens += tokens
        self._seconds += now - self._since
        self._since = now

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Does not run in here."""
        self._seconds += time.perf_counter() - self._since
        yield
        self._since = time.perf_counter()

    def take(self) -> tuple[int, float]:
        """The tokens and seconds since it was last asked."""
        taken = self._tokens, self._seconds
        self._tokens, self._seconds = 0, 0.0
        return taken


def _plain(value: Any) -> Any:
    """A value as a line has it: a float by its shortest decimals in float32, and null where it is none."""
    if isinstance(value, bool | int):
        return value
    return float(str(np.float32(value))) if math.isfinite(value) else None


def _length_until(path: Path, step: int) -> int:
    """The bytes of the whole lines that say nothing of steps after `step`."""
    length = 0
    with path.open("rb") as file:
        for line in file:
            try:
                of = json.loads(line)["step"]
            except (ValueError, KeyError, TypeError):
                break
            if not line.endswith(b"\n") or of > step:
                break
            length += len(line)
    return length


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise layout.unwritable(path, error) from None
