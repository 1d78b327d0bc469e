"""What tests run in processes that they kill; conftest.forked starts them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import tests.stores  # noqa: F401  (their scheme)
from roberta_flax import cli
from roberta_flax.convert import convert


def command_line(*arguments: str) -> None:
    """roberta-flax with these arguments, saying nothing."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    sys.argv = ["roberta-flax", *arguments]
    cli.main()


def convert_again_and_again(source: Path, folder: Path, started: Any) -> None:
    """Converts into one directory in `folder` after the other; says when the first, which takes longer, is there."""
    for number in range(1000):
        convert(source, folder / f"converted-{number}")
        started.set()
