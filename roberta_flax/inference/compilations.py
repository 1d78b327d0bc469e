"""Compilations: how many programs JAX compiled, how many came from its persistent cache, and how long that took."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import jax.monitoring

# jax._src.interpreters.pxla, around each compilation, those that the cache answers included; jax._src.compiler
_COMPILED = "/jax/core/compile/backend_compile_duration"
_FROM_CACHE = "/jax/compilation_cache/cache_hits"


@dataclass
class Compilations:
    """What was compiled in `counted` blocks.

    Attributes:
      programs: that were not compiled yet in this process.
      from_cache: how many of them were read from JAX's persistent cache.
      seconds: spent in compiling and reading them; tracing, which no cache saves, is not in it.
    """

    programs: int = 0
    from_cache: int = 0
    seconds: float = 0.0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Counts what this thread compiles in the block, and nothing of what other threads do."""
        token = _counting.set(self)
        try:
            yield
        finally:
            _counting.reset(token)


_counting: ContextVar[Compilations | None] = ContextVar("counting", default=None)


def _on_duration(event: str, duration_secs: float, **_: str | int) -> None:
    if event == _COMPILED and (counting := _counting.get()) is not None:
        counting.programs += 1
        counting.seconds += duration_secs


def _on_event(event: str, **_: str | int) -> None:
    if event == _FROM_CACHE and (counting := _counting.get()) is not None:
        counting.from_cache += 1


jax.monitoring.register_event_duration_secs_listener(_on_duration)
jax.monitoring.register_event_listener(_on_event)
