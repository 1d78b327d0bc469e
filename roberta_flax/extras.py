"""What the optional extras install, imported where it is used."""

from __future__ import annotations

import importlib
from typing import Any

from roberta_flax.errors import InputError


def require(module: str, purpose: str, extra: str) -> Any:
    """The module, imported; InputError, saying which of this package's extras to install, where it cannot be."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"{purpose} needs {module} ({error}); install it with: pip install 'roberta-flax[{extra}]'"
        ) from None
