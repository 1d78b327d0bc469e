"""Counts the programs that JAX compiles or reads from its persistent cache, and measures how long that takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from threading import Lock

import jax.monitoring

# Events of jax._src.interpreters.pxla, for each compilation, including those read from the cache; and of
# jax._src.compiler.
_COMPILED = "/jax/core/compile/backend_compile_duration"
_FROM_CACHE = "/jax/compilation_cache/cache_hits"


@dataclass
class Compilations:
    """What was compiled in `counted` blocks.

    Attributes:
      programs: number of programs that this process had not compiled before.
      from_cache: how many of them were read from JAX's persistent cache.
      seconds: time spent compiling and reading them, without tracing, which the cache does not save. Programs that are
        compiled at the same time count with all of their time.
    """

    programs: int = 0
    from_cache: int = 0
    seconds: float = 0.0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Counts what this thread compiles inside the block. Compilations of other threads are not counted."""
        token = _active.set(self)
        try:
            yield
        finally:
            _active.reset(token)


_active: ContextVar[Compilations | None] = ContextVar("active", default=None)
_lock = Lock()  # several threads may count in one object


def _on_duration(event: str, duration_secs: float, **_: str | int) -> None:
    if event == _COMPILED and (compilations := _active.get()) is not None:
        with _lock:
            compilations.programs += 1
            compilations.seconds += duration_secs


def _on_event(event: str, **_: str | int) -> None:
    if event == _FROM_CACHE and (compilations := _active.get()) is not None:
        with _lock:
            compilations.from_cache += 1


jax.monitoring.register_event_duration_secs_listener(_on_duration)
jax.monitoring.register_event_listener(_on_event)
