"""roberta_flax.prefetch: results in order, a bounded number ahead, and threads that end."""

from __future__ import annotations

import itertools
import threading
from contextlib import closing
from functools import partial

import pytest

from roberta_flax.prefetch import computed_ahead, prefetched


def test_results_come_in_the_order_of_the_calls_whichever_is_computed_first():
    second_is_done = threading.Event()

    def first() -> str:
        assert second_is_done.wait(timeout=60)
        return "first"

    def second() -> str:
        second_is_done.set()
        return "second"

    assert list(computed_ahead([first, second], threads=2, ahead=2)) == ["first", "second"]


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_no_more_calls_are_made_ahead_than_asked_for(ahead):
    called = itertools.count()
    with closing(computed_ahead(itertools.repeat(partial(next, called)), threads=1, ahead=ahead)) as results:
        assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert next(called) <= 5 + ahead  # closed: no thread calls any more


def test_an_error_is_raised_where_its_result_would_be():
    def items():
        yield 1
        yield 2
        raise OSError("the disk is gone")

    results = prefetched(items(), ahead=2)
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(OSError, match="the disk is gone"):
        next(results)


def test_items_are_made_on_one_other_thread_which_ends_with_the_iterator():
    def names():
        while True:
            yield threading.current_thread()

    with closing(prefetched(names(), ahead=2)) as results:
        threads = {next(results) for _ in range(5)}
    (thread,) = threads
    assert thread is not threading.current_thread()
    assert not thread.is_alive()


def test_none_is_an_item_like_any_other():
    assert list(prefetched(iter([None, 0, None]), ahead=1)) == [None, 0, None]
