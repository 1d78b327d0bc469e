"""What tests run in processes that they kill; conftest.forked starts them."""

from __future__ import annotations

import itertools
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import jax

import roberta_flax
import roberta_flax.cli.program  # which takes a second
import tests.stores  # noqa: F401  (their scheme)
from roberta_flax import Classify, Predictor, cli
from roberta_flax.checkpoint import stablehlo
from roberta_flax.convert import convert
from roberta_flax.datasets import tables
from roberta_flax.inference import jobs


def command_line(*arguments: str, stderr: Path | str = os.devnull) -> None:
    """roberta-flax with these arguments, saying nothing but what a file takes."""
    for stream, path in ((1, os.devnull), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY), stream)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)  # which knows that it is no file
    sys.argv = ["roberta-flax", *arguments]
    cli.main()


def command_line_with_room_for_parts(parts: int, stderr: Path, *arguments: str) -> None:
    """The same where the disk is full after so many parts. A limit stands for the disk: writing past it fails alike."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    write, done = tables.write_part, itertools.count()

    def limited(path: Path, *arguments: Any, **options: Any) -> None:
        if path.suffix == ".part" and next(done) == parts:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        write(path, *arguments, **options)

    tables.write_part = limited
    command_line(*arguments, stderr=stderr)


def share_of_a_job(process: int, port: int, count: int, model: str, source: str, output: str, answers: Any) -> None:
    """One of the processes of jax.distributed that classify pairs; puts its number and how many texts it had."""
    jax.distributed.initialize(f"127.0.0.1:{port}", count, process)
    assert jax.process_count() == count
    share = (jax.process_index(), jax.process_count())
    job = jobs.Job(Path(source), Path(output), ("premise", "hypothesis"), rows_per_part=64, share=share)
    summary = jobs.run(job, Predictor(roberta_flax.load(model), Classify("mnli")))
    answers.put((process, summary["this_run"]["texts"]))


def convert_again_and_again(source: Path, folder: Path, started: Any) -> None:
    """Converts into one directory in `folder` after the other; says when the first, which takes longer, is there."""
    for number in range(1000):
        convert(source, folder / f"converted-{number}")
        started.set()


def export_stablehlo(model: Path, destination: Path) -> None:
    stablehlo.export(model, destination)
