"""Errors that a user can fix. Each is one line that says what was given, what was expected and what to do.

The command line prints them without a traceback and exits with status 1, as it does with what other libraries raise
where the machine is at fault (cli/__init__.py). Any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable
from typing import Any

_MAX_COMPARED = 100  # characters of an unknown name
_JOINERS = "\u200c\u200d"  # of Persian, Indic scripts and emoji; they change how their neighbors look, and no more


def is_printable(character: str) -> bool:
    """Whether a character only shows itself: it neither steers a terminal, nor breaks a line, nor turns text around."""
    return character.isprintable() or character in _JOINERS or unicodedata.category(character) == "Zs"


def printable(text: str) -> str:
    """Text of somebody else (labels, names, paths, inputs) as it is shown, with all that is not printable escaped.

    Everything that is shown goes through here: messages, log lines, what the command line prints, and report.html.
    """
    return "".join(c if is_printable(c) else c.encode("unicode_escape").decode() for c in text)


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


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Ends a message about an unknown name: "; did you mean 'x'?" if one of the known names is close, or else ""."""
    by_key = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(given[:_MAX_COMPARED].casefold(), by_key, n=1, cutoff=0.7)
    return f"; did you mean {by_key[close[0]]!r}?" if close else ""
