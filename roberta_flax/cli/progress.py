"""How long work speaks: a line on a terminal that changes, or else a line on stderr now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from roberta_flax.errors import printable

SECONDS = 30  # between two lines, where stderr is no terminal


@contextmanager
def spoken(first: str) -> Iterator[Callable[[str], None]]:
    """A function that shows what is being done: `first`, and then what it is called with."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.text import Text

        with Console(stderr=True).status(Text(first)) as status:
            yield lambda text: status.update(Text(printable(text)))
        return
    last = time.monotonic()

    def line(text: str) -> None:
        nonlocal last
        if time.monotonic() - last >= SECONDS:
            last = time.monotonic()
            print(printable(text), file=sys.stderr, flush=True)

    yield line
