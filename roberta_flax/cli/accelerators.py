"""Has JAX open its devices before anything is computed, and says in one line where it cannot."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from roberta_flax.errors import InputError

_REASON = 300  # characters


def open_devices() -> None:
    """Has JAX open its devices.

    Raises:
      InputError: JAX cannot, because the machine has none of those that JAX_PLATFORMS names, or lacks what they need.
    """
    import jax

    config: Any = jax.config
    platforms = str(config.jax_platforms or "")
    with _held_back() if "tpu" in platforms and not _has_tpu() else nullcontext():
        try:
            jax.devices()
        except (RuntimeError, AssertionError) as error:  # assert: cuda is the only one asked for, and there is no GPU
            reason = " ".join(str(error).split())[:_REASON]
            asked = f"cannot use the devices that JAX_PLATFORMS={platforms} names" if platforms else "has no device"
            said = f" ({reason})" if reason else ""
            raise InputError(f"JAX {asked}{said}; use a machine that has them, or set JAX_PLATFORMS=cpu") from None


def _has_tpu() -> bool:
    return any(Path("/dev").glob("accel*")) or any(Path("/dev").glob("vfio/[0-9]*"))


@contextmanager
def _held_back() -> Iterator[None]:
    """Holds back what libraries write to stderr, and drops it if the block fails: libtpu's is six lines long."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        stderr = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        held.seek(0)
        os.write(2, held.read())
