"""Iterators whose items threads compute in advance."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


def computed_ahead(calls: Iterable[Callable[[], T]], *, threads: int, ahead: int) -> Generator[T, None, None]:
    """Yields the result of each call, in order. Threads compute at most `ahead` results in advance.

    The thread that consumes the results also iterates over `calls`. An exception in a call is raised in place of its
    result. The threads end with the iterator: close it (contextlib.closing) if it may not be exhausted.
    """
    pending: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for call in calls:
            pending.append(pool.submit(call))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def prefetched(items: Iterator[T], *, ahead: int) -> Generator[T, None, None]:
    """Yields the same items. One thread makes at most `ahead` items in advance; otherwise as in computed_ahead."""
    end: Any = object()
    calls = itertools.repeat(partial(next, items, end))
    with closing(computed_ahead(calls, threads=1, ahead=ahead)) as results:
        yield from itertools.takewhile(lambda item: item is not end, results)
