"""Errors that the user can mend: one line each, saying what was given, what was expected, what to do.

The command line prints these without a traceback and exits with status 1; anything else is a bug and
keeps its traceback.
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
    """Base of every error that roberta_flax and convert raise on purpose."""

    def __str__(self) -> str:
        """One line, whatever names and bytes of a user's files are quoted in it."""
        return printable(super().__str__())


class InputError(RobertaFlaxError, ValueError):
    """Text, token ids or arguments that the model cannot take."""


class CheckpointError(RobertaFlaxError, ValueError):
    """A file or directory that is not the checkpoint it should be."""


class DownloadError(RobertaFlaxError, OSError):
    """A released file that could not be fetched whole."""


class ParityError(RobertaFlaxError):
    """Two implementations of a model that differ by more than rounding explains."""


class DivergedError(RobertaFlaxError, FloatingPointError):
    """A training run whose loss, gradient or state is not finite any more."""


class StoppedError(RobertaFlaxError):
    """A training run that a signal stopped; what it did is saved.

    Attributes:
      signal: its number.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


def require_positive(**numbers: Any) -> None:
    """Raises InputError, which names the first that is not, unless all are positive integers."""
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise InputError(f"{name} must be a positive integer, got {number!r}")
