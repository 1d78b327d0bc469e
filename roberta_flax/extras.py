"""Imports optional packages where they are used, and says how to install a missing one."""

from __future__ import annotations

import importlib
from typing import Any

from roberta_flax.errors import InputError

# For each extra of this package, the feature that needs it.
_PURPOSES = {
    "beam": "predicting in an Apache Beam pipeline",
    "convert": "writing a fairseq checkpoint",
    "gs": "a file at gs://",
    "huggingface": "loading a model from Hugging Face's hub",
    "parity": "the parity report",
    "parquet": "reading and writing Parquet files",
    "ray": "predicting on Ray",
    "s3": "a file at s3://",
    "spark": "predicting on Apache Spark",
    "train": "training",
    "words": "splitting text into words",
    "wsc": "disambiguating pronouns",
}


def require(module: str, extra: str, instead: str = "") -> Any:
    """Imports a module that one of this package's extras installs.

    Args:
      module: the module's dotted name.
      extra: the extra that installs it.
      instead: what to do if it cannot be installed.

    Raises:
      InputError: the module cannot be imported. The message says what needs it and how to install it.
    """
    return imported(module, _PURPOSES[extra], f"pip install 'roberta-flax[{extra}]'", instead)


def imported(module: str, purpose: str, command: str, instead: str = "") -> Any:
    """Imports a module that `command` installs; other arguments and errors as in `require`."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        otherwise = f", or {instead}" if instead else ""
        raise InputError(f"{purpose} needs {module} ({error}); install it with: {command}{otherwise}") from None
