"""What tests run in processes that they kill; conftest.forked starts them."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import resource
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

import roberta_flax
import roberta_flax.cli.program  # which takes a second
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
    sys.argv = ["roberta-flax", *arguments]
    cli.main()


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


def program_on_devices(program: str, count: int, cache: str | None, stdout: Path, stderr: Path) -> None:
    """A program where JAX has so many CPU devices; `cache` is for what it compiles."""
    for stream, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", closefd=False) for stream in (1, 2))
    jax.config.update("jax_num_cpu_devices", count)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    exec(compile(program, "program", "exec"), {"__name__": "__main__"})  # noqa: S102


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
