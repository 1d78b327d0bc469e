"""What tests run in processes of their own; conftest.forked starts them."""

from __future__ import annotations

import atexit
import itertools
import multiprocessing
import os
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import pytest
import scipy.stats  # noqa: F401  (it takes a second, as cli.program does)

import roberta_flax
import roberta_flax.cli.program
import tests.stores  # noqa: F401  (their scheme)
from roberta_flax import CheckpointError, Classify, Predictor, cli
from roberta_flax.checkpoint import stablehlo
from roberta_flax.convert import convert, torch_file
from roberta_flax.datasets import tables
from roberta_flax.inference import jobs


def command_line(*arguments: str, stderr: Path | str = os.devnull, largest_file: int | None = None) -> None:
    """roberta-flax with these arguments, saying nothing but what a file takes; a limit in bytes stands for a full disk."""
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
    for stream, path in ((1, os.devnull), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY), stream)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)  # which knows that it is no file
    program(*arguments)


def command_line_with_room_for_parts(parts: int, stderr: Path, *arguments: str) -> None:
    """The same where the disk is full after so many parts. A limit stands for the disk: writing past it fails alike."""
    write, done = tables.write_part, itertools.count()

    def limited(path: Path, *arguments: Any, **options: Any) -> None:
        if path.suffix == ".part" and next(done) == parts:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        write(path, *arguments, **options)

    tables.write_part = limited
    command_line(*arguments, stderr=stderr)


def share_of_a_job(
    process: int,
    port: int,
    count: int,
    model: str,
    source: str,
    output: str,
    answers: multiprocessing.SimpleQueue[tuple[int, int]],
) -> None:
    """One of the processes of jax.distributed that classify pairs; puts its number and how many texts it had."""
    jax.distributed.initialize(f"127.0.0.1:{port}", count, process)
    assert jax.process_count() == count
    share = (jax.process_index(), jax.process_count())
    job = jobs.Job(Path(source), Path(output), ("premise", "hypothesis"), rows_per_part=64, share=share)
    summary = jobs.run(job, Predictor(roberta_flax.load(model), Classify("mnli")))
    answers.put((process, summary["this_run"]["texts"]))
    jax.distributed.shutdown()  # waits for the others, which end if the first is gone; a forked process does not on its own


def memory_to_refuse(path: Path, answers: multiprocessing.SimpleQueue[tuple[str, int]]) -> None:
    """Puts what is said of a torch checkpoint that is refused, and how many bytes that took."""

    def status(key: str) -> int:
        return next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))

    before = status("VmRSS")
    with pytest.raises(CheckpointError) as error:
        torch_file.load(path)
    answers.put((str(error.value), status("VmHWM") - before))


def convert_again_and_again(source: Path, folder: Path, started: Any) -> None:
    """Converts into one directory in `folder` after the other; says when the first, which takes longer, is there."""
    for number in range(1000):
        convert(source, folder / f"converted-{number}")
        started.set()


def export_stablehlo(model: Path, destination: Path) -> None:
    stablehlo.export(model, destination)


def begun(
    said: Sequence[Path],
    environment: Mapping[str, str],
    programs: str | None,
    function: Callable[..., None],
    *arguments: str,
) -> None:
    """Calls a function as if its process had been started for it: with an environment, and a file for each stream."""
    for stream, path in enumerate(said, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    os.environ.clear()
    os.environ.update(environment)
    for name, value in (("platforms", environment["JAX_PLATFORMS"]), ("compilation_cache_dir", programs)):
        jax.config.update(f"jax_{name}", value)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    try:
        function(*arguments)
    finally:
        atexit._run_exitfuncs()  # as an interpreter does, and a forked process does not


def python(program: str, *arguments: str) -> None:
    """As python -c."""
    sys.argv = ["-c", *arguments]
    exec(program, {"__name__": "__main__"})  # noqa: S102


def program(*arguments: str) -> None:
    """roberta-flax with these arguments."""
    sys.argv = ["roberta-flax", *arguments]
    cli.main()
