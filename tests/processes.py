"""What tests run in processes of their own; conftest.forked starts them."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

import tests.stores  # noqa: F401  (their scheme)
from roberta_flax import cli
from roberta_flax.convert import convert


def command_line(*arguments: str) -> None:
    """roberta-flax with these arguments, saying nothing."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    program(*arguments)


def convert_again_and_again(source: Path, folder: Path, started: Any) -> None:
    """Converts into one directory in `folder` after the other; says when the first, which takes longer, is there."""
    for number in range(1000):
        convert(source, folder / f"converted-{number}")
        started.set()


def begun(
    said: Sequence[Path],
    environment: Mapping[str, str],
    programs: str | None,
    function: Callable[..., None],
    *arguments: str,
) -> None:
    """Calls a function as if its process had been started for it: with an environment, and a file for each stream."""
    for stream, path in enumerate(said, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    os.environ.clear()
    os.environ.update(environment)
    for name, value in (("platforms", environment["JAX_PLATFORMS"]), ("compilation_cache_dir", programs)):
        jax.config.update(f"jax_{name}", value)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    try:
        function(*arguments)
    finally:
        atexit._run_exitfuncs()  # as an interpreter does, and a forked process does not


def python(program: str, *arguments: str) -> None:
    """As python -c."""
    sys.argv = ["-c", *arguments]
    exec(program, {"__name__": "__main__"})  # noqa: S102


def program(*arguments: str) -> None:
    """roberta-flax with these arguments."""
    sys.argv = ["roberta-flax", *arguments]
    cli.main()
