"""The command line: `roberta-flax`. One module a subcommand; each imports what it needs when it runs.

Results go to stdout, progress and logs to stderr. Exit status: 0; 1 for an error that the user can mend, in one
line; 2 for wrong usage; 128 and the signal's number where a signal stopped the program.

Here is the one place where errors become lines. It imports next to nothing before it is ready for them.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from roberta_flax import lazy
from roberta_flax.errors import InputError, RobertaFlaxError, StoppedError, printable

if TYPE_CHECKING:
    from roberta_flax.cli.program import COMMANDS, app

__all__ = ["COMMANDS", "app", "main", "run"]

_PROGRAM = "roberta-flax"
_ending = threading.Event()  # set when the program ends: then it is not interrupted again
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EPIPE, errno.EBADF)
_REASON = 300  # characters
_MORE_MEMORY = (
    "compute less at once (--tokens-per-batch, --batch-size, --max-length), or use a machine with more memory"
)
# What other libraries raise, by the beginning of the text, where the machine or its settings are at fault.
_MENDABLE = {
    r"Unable to initialize backend|Unknown backend": "JAX cannot use the devices that it is asked for; run this on a "
    "machine that has them, or set JAX_PLATFORMS=cpu",  # jax/_src/xla_bridge.py
    r"invalid truth value .* for environment|Invalid value .* for JAX flag": "JAX refuses the value of an environment "
    "variable",  # jax/_src/config.py
    r"RESOURCE_EXHAUSTED": f"there is not enough memory on the device; {_MORE_MEMORY}",
    r"can't start new thread": "this process may not start another thread; raise its limits (ulimit -u, ulimit -v)",
}


def main() -> None:
    """Runs the program; the entry point of the console script."""
    gc.set_threshold(50_000)  # by its defaults, the collector takes a tenth of the start: imports leave little to free
    with _errors_as_lines(_PROGRAM):
        from roberta_flax.cli.program import app

        app(prog_name=_PROGRAM)


def run(app: Any, program: str) -> None:
    """Runs the commands of a typer.Typer under a program's name, which usage and messages begin with."""
    with _errors_as_lines(program):
        app(prog_name=program)


@contextmanager
def _errors_as_lines(program: str) -> Iterator[None]:
    """Ends the process as a command line does: with one line on stderr for what the user can mend."""
    _ending.clear()
    try:
        if sys.unraisablehook is sys.__unraisablehook__:
            sys.unraisablehook = _interrupt_again
        _prepare_streams()
        with _output_written():
            yield
        _ending.set()
    except StoppedError as stopped:
        _end(program, str(stopped), 128 + stopped.signal)  # as a shell says it of a process that a signal ended
    except (KeyboardInterrupt, SystemExit) as stopped:
        _ending.set()
        if isinstance(stopped, SystemExit) and stopped.code != 128 + signal.SIGINT:  # typer makes it of Ctrl-C
            raise
        _end(program, "interrupted; rerun the command to resume a run over a file", 128 + signal.SIGINT)
    except Exception as error:
        if (line := message(error)) is None:
            raise
        _end(program, line, 1)


def _interrupt_again(unraisable: Any) -> None:
    """A sys.unraisablehook: Python loses an interruption that falls into a destructor or the collector's callbacks."""
    if not isinstance(unraisable.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
        return
    main_thread = threading.main_thread().ident or 0

    def interrupt() -> None:
        while not _ending.wait(0.05):  # the callback has returned by then
            signal.pthread_kill(main_thread, signal.SIGINT)

    with suppress(RuntimeError):  # no thread starts while Python shuts down, where there is nothing to interrupt
        threading.Thread(target=interrupt, daemon=True).start()


def message(error: Exception) -> str | None:
    """The line for an error that a user can mend; None for a bug, which keeps its traceback."""
    if isinstance(error, RobertaFlaxError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"there is not enough memory; {_MORE_MEMORY}"
    if isinstance(error, OSError):
        return printable(_describe(error))
    if isinstance(error, ImportError) and not (error.name or "").startswith("roberta_flax"):
        package = (error.name or "a package").partition(".")[0]
        reason = " ".join(str(error).split())[:_REASON]
        return printable(f"cannot import {package} ({reason}); install roberta-flax again, with what it needs")
    text = str(error)
    for pattern, line in _MENDABLE.items():
        if isinstance(error, RuntimeError | ValueError) and re.match(pattern, text):
            return printable(f"{line} ({' '.join(text.split())[:_REASON]})")
    return None


def _describe(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    files = [
        os.fsdecode(file) for file in (error.filename, error.filename2) if isinstance(file, str | bytes | os.PathLike)
    ]
    return f"cannot read or write {' or '.join(files)}: {reason}" if files else f"cannot read or write a file: {reason}"


def _end(program: str, line: str, status: int) -> None:
    with suppress(OSError):  # of a stderr that is full or closed
        print(f"{program}: {line}", file=sys.stderr, flush=True)
    sys.exit(status)


def _prepare_streams() -> None:
    """Has stdout and stderr escape what they cannot encode, and log lines what would steer a terminal."""
    if sys.stderr is None:  # closed, as by 2>&-; print would write to stdout
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if sys.stdout is None:
        raise InputError("cannot write the output: stdout is closed")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines("%(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.captureWarnings(True)
    logging.getLogger("roberta_flax").setLevel(logging.INFO)


class _Lines(logging.Formatter):
    """Formats records with unprintable characters escaped; those of this package in one line."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.name.startswith("roberta_flax"):
            return printable(text)
        return "\n".join(map(printable, text.rstrip("\n").split("\n")))


@contextmanager
def _output_written() -> Iterator[None]:
    """Writes out what was printed; InputError where that cannot be, as on a full disk."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:
        if isinstance(error, RobertaFlaxError) or error.errno not in _CANNOT_WRITE or error.filename is not None:
            raise
        with suppress(OSError, ValueError):  # which has no descriptor in a test
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where Python's last flush goes
        if error.errno == errno.EPIPE:  # nobody reads any more: no fault
            sys.exit(1)
        raise InputError(f"cannot write the output: {error.strerror}") from None


if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy.attach(__name__, __all__, {"COMMANDS": "program", "app": "program"})
