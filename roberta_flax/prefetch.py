"""Work that threads do ahead of whoever takes its results."""

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
    """The result of each call, in order; computed on threads, at most `ahead` results before they are taken.

    The calls themselves come from the thread that takes the results. What a call raises is raised where its result
    would be. The threads end with the iterator: close it (contextlib.closing) where it may not be taken to its end.
    """
    waiting: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for call in calls:
            waiting.append(pool.submit(call))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def prefetched(items: Iterator[T], *, ahead: int) -> Generator[T, None, None]:
    """The same items, made on one thread, at most `ahead` before they are taken; otherwise as computed_ahead."""
    end: Any = object()
    calls = itertools.repeat(partial(next, items, end))
    with closing(computed_ahead(calls, threads=1, ahead=ahead)) as made:
        yield from itertools.takewhile(lambda item: item is not end, made)
