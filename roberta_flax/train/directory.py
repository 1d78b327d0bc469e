"""A run's directory: its configuration, and a lock, so that two runs do not mix."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
import jax
import numpy as np
from jax.experimental import multihost_utils

from roberta_flax.checkpoint import converted
from roberta_flax.errors import InputError
from roberta_flax.files import differences, remove_partial, replacing
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.nn.forward import Params
from roberta_flax.nn.numerics import Numerics
from roberta_flax.text.tokenizer import Tokenizer

RUN_FILE = "run.json"
LOCK_FILE = "run.lock"
CHECKPOINTS, BEST, METRICS_FILE, SPEED_FILE = "checkpoints", "best", "metrics.jsonl", "speed.jsonl"
CURVES_FILE, TENSORBOARD, SUMMARY_FILE = "curves.png", "tensorboard", "summary.json"
_MESSAGE_BYTES = 2048


@contextmanager
def open_run(directory: Path, run_config: Mapping[str, Any]) -> Iterator[None]:
    """Makes a run's directory, or finds that of a run that was stopped; no other run has it meanwhile.

    Of several processes the first does it, and all learn what went wrong.

    Args:
      directory: to make, or to resume in.
      run_config: what the run's results depend on, as JSON has it; a run resumes only with the same.

    Raises:
      InputError: another run is there, running or of another configuration, or the directory cannot be written.
    """
    lock = filelock.FileLock(directory / LOCK_FILE)
    problem = None
    if jax.process_index() == 0:
        try:
            _begin(directory, run_config, lock)
        except InputError as error:
            problem = str(error)
    if problem := _of_first(problem):
        raise InputError(problem)
    try:
        yield
    finally:
        with suppress(OSError):  # the directory may be gone
            lock.release()


def unwritable(path: Path, error: Exception) -> InputError:
    """The error for a file of a run that cannot be written."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else _first_line(error)
    return InputError(
        f"cannot write {path}: {reason}; saved checkpoints are kept; make room or fix the cause, and rerun the command "
        "to resume"
    )


def unreadable(path: Path, error: Exception) -> InputError:
    """The error for a checkpoint that cannot be read."""
    return InputError(f"cannot read {path}: {_first_line(error)}; remove it to go on from the one before")


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _begin(directory: Path, run_config: Mapping[str, Any], lock: filelock.BaseFileLock) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise InputError(f"another process is training in {directory} already; wait for it, or stop it") from None
    except OSError as error:
        raise InputError(f"cannot write {directory}: {error.strerror or error}; choose another directory") from None
    text = json.dumps(run_config, indent=2, sort_keys=True) + "\n"
    run = directory / RUN_FILE
    if run.is_file():
        _require_same(directory, run, json.loads(text))
        return
    for name in (CHECKPOINTS, BEST, METRICS_FILE):
        if (directory / name).exists():
            raise InputError(f"{directory / name} exists already; remove it or choose another directory")
    with replacing(run) as file:
        file.write(text.encode())


def _require_same(directory: Path, run: Path, now: Mapping[str, Any]) -> None:
    try:
        before = json.loads(run.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {run}: {error}; remove {directory} or choose another directory") from None
    if (changes := differences(before, now)) is not None:
        raise InputError(
            f"{directory} has another run ({changes}); rerun it with the same options to resume it, or choose another "
            "directory"
        )


def numerics_note(numerics: Numerics) -> dict[str, str | None]:
    """What a run's numbers depend on of how it computes, as JSON has it."""
    return {
        "dtype": numerics.dtype.name,
        "precision": None if numerics.precision is None else numerics.precision.name.lower(),
        "attention": numerics.attention,
    }


def save_best(directory: Path, config: RobertaConfig, params: Params, tokenizer: Tokenizer) -> None:
    """Writes a run's best model, a converted directory, in the place of one that may be there."""
    best = directory / BEST
    remove_partial(best)
    converted.save(best, config, params, tokenizer, replace=True)


def write_summary(directory: Path, summary: Mapping[str, Any]) -> None:
    """Writes how a run ended, or several."""
    with replacing(directory / SUMMARY_FILE) as file:
        file.write((json.dumps(summary, indent=2) + "\n").encode())


def _of_first(message: str | None) -> str | None:
    """What the first process has to say, on every process."""
    if jax.process_count() == 1:
        return message
    sent = np.zeros(_MESSAGE_BYTES, np.uint8)
    content = (message or "").encode()[:_MESSAGE_BYTES]
    sent[: len(content)] = np.frombuffer(content, np.uint8)
    received = bytes(np.asarray(multihost_utils.broadcast_one_to_all(sent)))
    return received.rstrip(b"\0").decode(errors="ignore") or None
