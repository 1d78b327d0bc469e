"""Measurements in processes of their own, so that nothing else counts: shared by the benchmarks."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def run(module: str, *arguments: str, **environment: str) -> dict[str, Any]:
    """The last line, JSON, that `python -m module` prints in a fresh process."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def medians(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each number that the runs give."""
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def peak_memory() -> int:
    """The most that this process has had resident, in bytes, imports and all."""
    # VmHWM and not getrusage's ru_maxrss, which a process inherits from the one that started it
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
