"""A run's directory: its files, its configuration, and a lock that keeps other runs out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
import jax
import numpy as np
from jax.experimental import multihost_utils

from roberta_flax.checkpoint import converted
from roberta_flax.checkpoint.usage import Usage
from roberta_flax.convert import adapters
from roberta_flax.datasets.readers import TrainedOn
from roberta_flax.errors import InputError
from roberta_flax.files import differences, remove_partial, replacing
from roberta_flax.hub import Roberta
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.nn.forward import Params
from roberta_flax.nn.numerics import Numerics
from roberta_flax.nn.tree import flatten
from roberta_flax.text.tokenizer import Tokenizer

RUN_FILE, SEEDS_FILE = "run.json", "seeds.json"  # of a run, and of a directory with runs of several seeds
LOCK_FILE = "run.lock"
CHECKPOINTS, BEST, METRICS_FILE, SPEED_FILE = "checkpoints", "best", "metrics.jsonl", "speed.jsonl"
CURVES_FILE, TENSORBOARD, SUMMARY_FILE = "curves.png", "tensorboard", "summary.json"
_MESSAGE_BYTES = 2048


@contextmanager
def open_run(directory: Path, run_config: Mapping[str, Any], file: str = RUN_FILE) -> Iterator[None]:
    """Creates a run's directory, or opens that of a stopped run, and locks it for the duration of the context.

    With several processes, the first does this, and an error is raised in all of them.

    Args:
      directory: the directory to create or to resume in.
      run_config: everything that the run's results depend on, as a JSON object. It must be the same to resume.
      file: the file that holds it: RUN_FILE, or SEEDS_FILE for a directory with the runs of several seeds in it.

    Raises:
      InputError: another process is training in the directory, it has a run with another configuration, or it cannot
        be written.
    """
    lock = filelock.FileLock(directory / LOCK_FILE)
    try:
        checked_by_first_process(lambda: _lock_and_check(directory, run_config, file, lock))
        yield
    finally:
        with suppress(OSError):  # the directory may be gone
            lock.release()


def checked_by_first_process(check: Callable[[], None]) -> None:
    """Calls a function in the first process, and raises its InputError in all of them."""
    problem = None
    if jax.process_index() == 0:
        try:
            check()
        except InputError as error:
            problem = str(error)
    if problem := _broadcast_message(problem):
        raise InputError(problem)


def unwritable(path: Path, error: Exception) -> InputError:
    """Returns the error for a file in a run's directory that cannot be written."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else _first_line(error)
    return InputError(
        f"cannot write {path}: {reason}; saved checkpoints are kept; make room or fix the cause, and rerun the command "
        "to resume"
    )


def unreadable(path: Path, error: Exception, advice: str) -> InputError:
    """Returns the error for a checkpoint that cannot be read."""
    return InputError(f"cannot read {path}: {_first_line(error)}; {advice}")


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _lock_and_check(directory: Path, run_config: Mapping[str, Any], file: str, lock: filelock.BaseFileLock) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise InputError(f"another process is training in {directory} already; wait for it, or stop it") from None
    except OSError as error:
        raise InputError(f"cannot write {directory}: {error.strerror or error}; choose another directory") from None
    text = json.dumps(run_config, indent=2, sort_keys=True) + "\n"
    for other, runs in ((RUN_FILE, "a run of one seed"), (SEEDS_FILE, "runs of several seeds")):
        if other != file and (directory / other).is_file():
            raise InputError(f"{directory} has {runs}; give the same seeds to resume, or choose another directory")
    run = directory / file
    if run.is_file():
        _require_same(directory, run, json.loads(text))
        return
    for name in (CHECKPOINTS, BEST, METRICS_FILE):
        if (directory / name).exists():
            raise InputError(f"{directory / name} exists already; remove it or choose another directory")
    with replacing(run) as content:
        content.write(text.encode())


def _require_same(directory: Path, run: Path, now: Mapping[str, Any]) -> None:
    try:
        before = json.loads(run.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {run}: {error}; remove {directory} or choose another directory") from None
    if (changes := differences(before, now)) is not None:
        raise InputError(
            f"{directory} has another run ({changes}); pass the same options to resume it, or choose another directory"
        )


def numerics_note(numerics: Numerics) -> dict[str, str | None]:
    """Returns the numerics that a run's numbers depend on, as a JSON object."""
    return {
        "dtype": numerics.dtype.name,
        "precision": None if numerics.precision is None else numerics.precision.name.lower(),
        "attention": numerics.attention,
    }


def model_fingerprint(roberta: Roberta) -> str:
    """Returns a hash of a model's content: its configuration, parameters and tokenizer, as 16 hex digits."""
    digest = hashlib.sha256(f"{roberta.config.to_json()}{roberta.tokenizer.fingerprint()}".encode())
    for path, leaf in sorted(flatten(roberta.params).items()):
        values = np.asarray(leaf)
        digest.update(f"{path} {values.dtype} {values.shape}".encode() + values.tobytes())
    return digest.hexdigest()[:16]


def save_best(
    directory: Path,
    config: RobertaConfig,
    params: Params,
    tokenizer: Tokenizer,
    trained_on: TrainedOn | None = None,
    usage: Usage = Usage(),
) -> None:
    """Writes a run's best model as a converted directory, and replaces the previous one."""
    best = directory / BEST
    remove_partial(best)
    converted.save(best, config, params, tokenizer, replace=True, trained_on=trained_on, usage=usage)


def check_best(directory: Path, *, is_adapter: bool = False) -> None:
    """Raises InputError if a run's best model, or adapter, is gone or lacks files."""
    best = directory / BEST
    of_adapter = (adapters.CONFIG_FILE, adapters.WEIGHT_FILES[0])
    missing = [name for name in of_adapter if not (best / name).is_file()]
    if missing := missing if is_adapter else converted.missing_files(best):
        lost = f"lacks {', '.join(missing)}" if best.is_dir() else "is gone"
        raise InputError(
            f"{best}, the best model so far, {lost}; put it back to resume, or choose another directory to start over"
        )


def require_unfinished(directory: Path) -> None:
    """Raises InputError if a run has its summary, so that it has ended, but no checkpoint any more."""
    if (directory / SUMMARY_FILE).exists():
        raise InputError(
            f"{directory} has the {SUMMARY_FILE} of a run that ended, but its {CHECKPOINTS} are gone; put them back, "
            "or choose another directory to start over"
        )


def seeds_in(directory: Path) -> set[int]:
    """Returns the seeds that have runs in a directory of several."""
    names = (path.parent.name.removeprefix("seed-") for path in directory.glob(f"seed-*/{RUN_FILE}"))
    return {int(name) for name in names if name.isdecimal()}


def write_summary(directory: Path, summary: Mapping[str, Any]) -> None:
    """Writes summary.json, which says how one or several runs ended."""
    with replacing(directory / SUMMARY_FILE) as file:
        file.write((json.dumps(summary, indent=2) + "\n").encode())


def _broadcast_message(message: str | None) -> str | None:
    """Broadcasts a message from the first process to all."""
    if jax.process_count() == 1:
        return message
    sent = np.zeros(_MESSAGE_BYTES, np.uint8)
    content = (message or "").encode()[:_MESSAGE_BYTES]
    sent[: len(content)] = np.frombuffer(content, np.uint8)
    received = bytes(np.asarray(multihost_utils.broadcast_one_to_all(sent)))
    return received.rstrip(b"\0").decode(errors="ignore") or None
