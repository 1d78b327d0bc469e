"""What the extra `train` installs, imported where it is used."""

from __future__ import annotations

from typing import Any

from roberta_flax import extras


def require(module: str) -> Any:
    """The module, imported; InputError, saying what to install, where it cannot be."""
    return extras.require(module, "training", "train")
