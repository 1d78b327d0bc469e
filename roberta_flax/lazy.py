"""Public names of a package that are imported when they are first used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def attach(
    package: str, names: Sequence[str], homes: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], Sequence[str]]]:
    """A package's `__getattr__` and `__dir__` (PEP 562).

    `dir()` of the package, and so completion, then shows its public names and not every module that it consists of.

    Args:
      package: its `__name__`.
      names: its `__all__`, of which it defines some and imports the others late.
      homes: the module in the package that defines a name, or that the name stands for where it ends in it; a name
        without an entry is that of a module directly in the package.
    """
    known = homes or {}

    def getattribute(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = known.get(name, name)
        module = importlib.import_module(f"{package}.{home}")
        value = module if home.rpartition(".")[2] == name else getattr(module, name)
        setattr(sys.modules[package], name, value)
        return value

    return getattribute, lambda: names
