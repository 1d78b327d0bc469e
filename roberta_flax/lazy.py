"""Imports the public names of a package when they are first used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def attach(
    package: str, names: Sequence[str], homes: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], Sequence[str]]]:
    """Returns a package's `__getattr__` and `__dir__` (PEP 562).

    With them, `dir()` and completion show the package's public names instead of all its modules.

    Args:
      package: the package's `__name__`.
      names: the package's `__all__`. Names that it does not define are imported when they are first used.
      homes: for each name, the module in the package that defines it. If the module's last part is the name, the name
        is the module itself. A name without an entry is a module directly in the package.
    """
    module_of = homes or {}

    def getattribute(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = module_of.get(name, name)
        module = importlib.import_module(f"{package}.{home}")
        value = module if home.rpartition(".")[2] == name else getattr(module, name)
        setattr(sys.modules[package], name, value)
        return value

    return getattribute, lambda: names
