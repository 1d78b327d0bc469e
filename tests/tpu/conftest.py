from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

import jax
import pytest

from references.tpu import FAST, Program, flax_compiled
from tests.conftest import skip_or_fail


@pytest.fixture(scope="session", autouse=True)
def _compiler() -> None:
    if find_spec("libtpu") is None:
        skip_or_fail("libtpu, the TPU's compiler, is not installed; the extra tpu-tests installs it")


@pytest.fixture(scope="session")
def compiled() -> Callable[[Program], jax.stages.Compiled]:
    """Compiles each program once a session."""
    return cache(lambda program: program.compiled(FAST))


@pytest.fixture(scope="session")
def compiled_of_transformers() -> Callable[[Program], jax.stages.Compiled]:
    """The same of transformers' Flax model."""
    return cache(lambda program: flax_compiled(program, FAST))
