"""roberta_flax imported a second time, with the signatures of roberta_flax.nn checked whenever its functions are traced.

jaxtyping's import hook decorates every function and beartype checks its arguments and its result: shapes too, whose
names must mean one size within a call. roberta_flax imports jaxtyping for type checkers only, so the import is told that
it is one.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import typing
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from beartype import beartype
from jaxtyping import install_import_hook

import roberta_flax

SIGNATURES: set[str] = set()  # of functions that take or return arrays
CHECKED: set[str] = set()  # those of them that were called


def typechecker(function: Callable[..., Any]) -> Callable[..., Any]:
    """beartype where there are arrays, for the import hook: it hands over functions with the package's signatures."""
    if not any("jaxtyping." in repr(annotation) for annotation in function.__annotations__.values()):
        return function
    name = f"{function.__module__}.{function.__qualname__}"
    SIGNATURES.add(name)
    checked = beartype(function)

    @functools.wraps(checked)
    def checked_and_noted(*args: Any, **kwargs: Any) -> Any:
        CHECKED.add(name)
        return checked(*args, **kwargs)

    return checked_and_noted


def _of_package() -> dict[str, ModuleType]:
    return {name: module for name, module in sys.modules.items() if name.split(".")[0] == "roberta_flax"}


@contextlib.contextmanager
def checked_modules(*names: str) -> Iterator[SimpleNamespace]:
    """Modules of the second copy, by the last part of their names. It is forgotten at the end."""
    importlib.import_module("orbax.checkpoint")
    for name in roberta_flax.__all__:
        getattr(roberta_flax, name)  # other packages are imported before TYPE_CHECKING is said to be true
    imported = _of_package()
    for name in imported:
        del sys.modules[name]
    try:
        with pytest.MonkeyPatch.context() as patch, install_import_hook("roberta_flax.nn", "tests.shapes.typechecker"):
            patch.setattr(typing, "TYPE_CHECKING", True)
            modules = [importlib.import_module(f"roberta_flax.{name}") for name in names]
        yield SimpleNamespace(**{module.__name__.rpartition(".")[2]: module for module in modules})
    finally:
        for name in _of_package():
            del sys.modules[name]
        sys.modules.update(imported)
