"""A run's records: JSON lines, and optionally TensorBoard files.

metrics.jsonl   computed metrics; two runs of one command write the same bytes
speed.jsonl     the time that steps took, including those that a killed run did after its last checkpoint
"""

from __future__ import annotations

import json
import math
import os
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from roberta_flax.errors import InputError
from roberta_flax.extras import require
from roberta_flax.train import directory as run_directory


@dataclass(frozen=True)
class Recorded:
    """What metrics.jsonl held at a checkpoint: the number of its bytes, and their CRC-32."""

    size: int = 0
    crc32: int = 0

    def then(self, content: bytes) -> Recorded:
        """Returns what the file holds after more bytes."""
        return Recorded(self.size + len(content), zlib.crc32(content, self.crc32))

    def check(self, directory: Path) -> None:
        """Raises InputError unless metrics.jsonl begins with these bytes. It may have more, from later steps."""
        path = directory / run_directory.METRICS_FILE
        try:
            with path.open("rb") as file:
                content = file.read(self.size)
        except FileNotFoundError:
            content = b""
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}") from None
        if Recorded().then(content) != self:
            lost = "is missing" if not path.exists() else "lacks lines" if len(content) < self.size else "was changed"
            raise InputError(
                f"{path} {lost} since the run was saved; put it back as it was to resume, or choose another directory"
            )


class Records:
    """The records of a run that has done `step` steps. Records of later steps are removed.

    A line of metrics.jsonl describes the steps since the line before it (step, loss, learning_rate, ...) or a
    validation (step, valid_loss, ...).

    Args:
      directory: the run's directory.
      step: number of steps done.
      recorded: what metrics.jsonl held after these steps.
      tensorboard: whether to write TensorBoard files too.

    Raises:
      InputError: a file cannot be written, or tensorboardX is not installed.
    """

    def __init__(self, directory: Path, step: int, recorded: Recorded, *, tensorboard: bool) -> None:
        self._writer: Any = None
        if tensorboard:
            board = directory / run_directory.TENSORBOARD
            with _writing(board):
                self._writer = require("tensorboardX", "train").SummaryWriter(str(board), purge_step=step + 1)
        self._metrics = directory / run_directory.METRICS_FILE
        self._speed = directory / run_directory.SPEED_FILE
        with _writing(self._metrics):
            self._metrics_file = self._metrics.open("ab")
            self._metrics_file.truncate(recorded.size)
        self._recorded = recorded
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
        """Records the metrics of the steps since the last record. `step` is the number of steps done."""
        self._write_line(step, values)
        self._add_scalars("train", step, values)

    def validation(self, step: int, values: Mapping[str, float], *, best: bool) -> None:
        """Records the metrics of a validation, and whether it was the best so far."""
        self._write_line(step, {f"valid_{name}": value for name, value in values.items()} | {"best": best})
        self._add_scalars("valid", step, values)

    def speed(self, step: int, tokens: int, seconds: float) -> None:
        """Records the number of tokens trained on, and the seconds they took."""
        rate = tokens / seconds if seconds else 0.0
        line = {"step": step, "tokens": tokens, "seconds": round(seconds, 4), "tokens_per_second": round(rate, 1)}
        with _writing(self._speed):
            self._speed_file.write(json.dumps(line).encode() + b"\n")
            self._speed_file.flush()
        self._add_scalars("speed", step, {"tokens_per_second": rate})

    def sync(self) -> Recorded:
        """Flushes metrics.jsonl to disk, so that no checkpoint is ahead of it, and returns what it holds."""
        with _writing(self._metrics):
            os.fsync(self._metrics_file.fileno())
        return self._recorded

    def _write_line(self, step: int, values: Mapping[str, Any]) -> None:
        line = {"step": step} | {name: _json_value(value) for name, value in values.items()}
        content = json.dumps(line, allow_nan=False).encode() + b"\n"
        with _writing(self._metrics):
            self._metrics_file.write(content)
            self._metrics_file.flush()
        self._recorded = self._recorded.then(content)

    def _add_scalars(self, group: str, step: int, values: Mapping[str, float]) -> None:
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{group}/{name}", value, step)


class Stopwatch:
    """Measures the time of steps, excluding the work between them, and counts their tokens."""

    def __init__(self) -> None:
        self._tokens = 0
        self._seconds = 0.0
        self._since = time.perf_counter()

    def count(self, tokens: int) -> None:
        """Counts a step that has just ended."""
        now = time.perf_counter()
        self._tokens += tokens
        self._seconds += now - self._since
        self._since = now

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stops the watch inside this context."""
        self._seconds += time.perf_counter() - self._since
        yield
        self._since = time.perf_counter()

    def take(self) -> tuple[int, float]:
        """Returns the tokens and seconds since the last call, and resets both."""
        taken = self._tokens, self._seconds
        self._tokens, self._seconds = 0, 0.0
        return taken


def _json_value(value: Any) -> Any:
    """Converts a value for JSON: floats have the fewest digits for the same float32; NaN and infinity are null."""
    if isinstance(value, bool | int):
        return value
    return float(str(np.float32(value))) if math.isfinite(value) else None


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise run_directory.unwritable(path, error) from None
