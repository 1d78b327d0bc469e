"""Timing, memory and output, shared by all benchmarks."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

_SETTLE_SECONDS = 0.2  # until the threads of torch and onnxruntime stop spinning after a call


def run_in_fresh_process(module: str, *arguments: str, **environment: str) -> dict[str, Any]:
    """Runs `python -m module` in a process of its own, and returns its last line of output, which is JSON."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def medians(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Returns the median over all runs of each number."""
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def median_seconds(
    rounds: int, functions: Mapping[str, Callable[[], Any]], *, warm_up: bool = False
) -> dict[str, float]:
    """Times each function once per round, in turn, and returns the medians in seconds.

    Args:
      rounds: number of rounds.
      functions: the functions by name.
      warm_up: whether to call a function once before each timed call, so that threads and caches are its own.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            if warm_up:
                time.sleep(_SETTLE_SECONDS)
                function()
            begin = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(times) for name, times in seconds.items()}


def elapsed_and_cpu_seconds(
    rounds: int, functions: Mapping[str, Callable[[], Any]]
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Times each function once per round, in turn: the seconds that pass, and those of CPU time, of all threads."""
    elapsed: dict[str, list[float]] = {name: [] for name in functions}
    busy: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            begin, begin_busy = time.perf_counter(), time.process_time()
            function()
            elapsed[name].append(time.perf_counter() - begin)
            busy[name].append(time.process_time() - begin_busy)
    return elapsed, busy


def peak_memory() -> int:
    """Returns the peak resident memory of this process in bytes, imports included."""
    # VmHWM, and not ru_maxrss of getrusage, which a process inherits from its parent.
    return _memory("VmHWM")


def resident_memory() -> int:
    """Returns the resident memory of this process in bytes."""
    return _memory("VmRSS")


def _memory(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(name))


def print_record(**values: Any) -> None:
    """Prints a line of JSON, with floats rounded to four decimals."""
    rounded = {key: round(value, 4) if isinstance(value, float) else value for key, value in values.items()}
    print(json.dumps(rounded), flush=True)
