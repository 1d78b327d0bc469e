"""Modules that a package lists among its public names, imported when they are first used."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from types import ModuleType


def attach(
    package: str, names: Sequence[str], **elsewhere: str
) -> tuple[Callable[[str], ModuleType], Callable[[], Sequence[str]]]:
    """A package's `__getattr__` and `__dir__` (PEP 562).

    `dir()` of the package, and so completion, then shows its public names and not every module that it consists of.

    Args:
      package: its `__name__`.
      names: its `__all__`. A name that the package does not define is that of a module in it.
      elsewhere: where that module is, from the package on, if not directly in it.
    """

    def getattribute(name: str) -> ModuleType:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return importlib.import_module(f"{package}.{elsewhere.get(name, name)}")

    return getattribute, lambda: names
