"""What the extra `train` installs, imported where it is used."""

from __future__ import annotations

import importlib
from typing import Any

from roberta_flax.errors import InputError


def require(module: str) -> Any:
    """The module, imported; InputError, saying what to install, where it cannot be."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"training needs {module} ({error}); install it with: pip install 'roberta-flax[train]'"
        ) from None
