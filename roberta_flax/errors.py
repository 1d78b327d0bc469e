"""Errors that a user can fix. Each is one line that says what was given, what was expected and what to do.

The command line prints them without a traceback and exits with status 1. Any other exception is a bug and keeps its
traceback.
"""

from __future__ import annotations


class RobertaFlaxError(Exception):
    """Base class of all errors that roberta_flax and convert raise on purpose."""

    def __str__(self) -> str:
        """The message in one line: unprintable characters, which a file may contribute, are escaped."""
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in super().__str__())


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
