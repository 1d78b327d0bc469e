"""Errors that a user can fix. Each is one line that says what was given, what was expected and what to do.

The command line prints them without a traceback and exits with status 1. Any other exception is a bug and keeps its
traceback.
"""

from __future__ import annotations

from typing import Any


def printable(text: str) -> str:
    """Text of somebody else's files, with whatever would steer a terminal or break a line escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shortened(text: str, length: int = 300) -> str:
    """Text of somebody else's files, of a length that a message can hold."""
    return text if len(text) <= length else text[:length] + "..."


class RobertaFlaxError(Exception):
    """Base class of all errors that roberta_flax and convert raise on purpose."""

    def __str__(self) -> str:
        """The message in one line: unprintable characters, which a file may contribute, are escaped."""
        return printable(super().__str__())


class InputError(RobertaFlaxError, ValueError):
    """Text, token ids, arguments or files are invalid."""


class CheckpointError(RobertaFlaxError, ValueError):
    """A file or directory is not the checkpoint that it should be, or cannot be written."""


class DownloadError(RobertaFlaxError, OSError):
    """A released file could not be downloaded completely."""


class ParityError(RobertaFlaxError):
    """Two implementations of a model differ by more than rounding explains."""


class DivergedError(RobertaFlaxError, FloatingPointError):
    """The loss, gradient or state of a training run is no longer finite."""


class StoppedError(RobertaFlaxError):
    """A signal stopped a training run. Its state is saved.

    Attributes:
      signal: number of the signal.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


def require_positive(**numbers: Any) -> None:
    """Raises InputError, which names the first that is not, unless all are positive integers."""
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise InputError(f"{name} must be a positive integer, got {number!r}")
