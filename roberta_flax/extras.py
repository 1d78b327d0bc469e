"""Optional packages, imported where they are used."""

from __future__ import annotations

import importlib
from typing import Any

from roberta_flax.errors import InputError

# of each extra of this package, what needs it
_PURPOSES = {
    "convert": "writing a fairseq checkpoint",
    "huggingface": "loading a model from Hugging Face's hub",
    "parity": "the parity report",
    "parquet": "reading and writing Parquet files",
    "ray": "predicting on Ray",
    "train": "training",
    "words": "splitting text into words",
    "wsc": "disambiguating pronouns",
}


def require(module: str, extra: str, instead: str = "") -> Any:
    """A module that one of this package's extras installs, imported.

    Args:
      module: its dotted name.
      extra: which installs it.
      instead: what to do where it cannot be installed.

    Raises:
      InputError: it cannot be imported. The line says what needs it, and how to install it.
    """
    return imported(module, _PURPOSES[extra], f"pip install 'roberta-flax[{extra}]'", instead)


def imported(module: str, purpose: str, command: str, instead: str = "") -> Any:
    """A module that no extra installs but a `command` does; other arguments and errors as in `require`."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        otherwise = f", or {instead}" if instead else ""
        raise InputError(f"{purpose} needs {module} ({error}); install it with: {command}{otherwise}") from None
