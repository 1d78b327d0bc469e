"""What the subcommands that read a file of texts share: options, the model, progress, and the summary."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from roberta_flax.cli.options import Loading, print_json

if TYPE_CHECKING:
    from roberta_flax.hub import Roberta
    from roberta_flax.inference.jobs import Job, Progress
    from roberta_flax.inference.predictor import Predictor
    from roberta_flax.tasks.base import Task

Input = Annotated[
    Path | None, typer.Option("--input", "-i", help="A .jsonl, .csv, .tsv, .txt or .parquet file of texts.")
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="A .jsonl, .csv, .tsv or .parquet file; of features .npy too.")
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--column", "-c", help="A column with text; twice for pairs. [default: text, or sentence1 and 2, ...]"
    ),
]
Keep = Annotated[list[str] | None, typer.Option(help="A column to copy to the output.")]
NoHeader = Annotated[bool, typer.Option("--no-header", help="CSV and TSV: columns are numbers, from 0.")]
Format = Annotated[
    str | None, typer.Option("--format", help="INPUT's, if not by its name: jsonl, csv, tsv, txt, parquet.")
]
OnLong = Annotated[str, typer.Option(help="What becomes of texts that are too long: error, truncate, window.")]
Strategy = Annotated[
    str | None,
    typer.Option(help="buckets, a text a row; packing, several where they are short. [default: by the device]"),
]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first row that cannot be used.")]
RowsPerPart = Annotated[int, typer.Option(help="Rows that are done, or not, together.")]
TokensPerBatch = Annotated[int | None, typer.Option(help="About how many, on each device. [default: by the device]")]
TensorParallel = Annotated[int, typer.Option(help="Devices that share each layer; the others repeat the model.")]
Share = Annotated[
    str | None, typer.Option(metavar="I/N", help="Do the share of process I, from 0, of N that write to one OUTPUT.")
]
Distributed = Annotated[
    bool, typer.Option("--distributed", help="Take the share from jax.distributed, as on a TPU pod or under SLURM.")
]


@dataclass(frozen=True)
class Options:
    """The options above."""

    output: Path | None
    columns: list[str] | None
    keep: list[str] | None
    no_header: bool
    format: str | None
    on_long: str
    max_length: int | None
    strategy: str | None
    strict: bool
    rows_per_part: int
    tokens_per_batch: int | None
    tensor_parallel: int
    share: str | None
    distributed: bool
    as_json: bool


def run_job(loading: Loading, task_of: Callable[[Roberta], Task], file: Path, options: Options) -> None:
    """Runs a file through a model (jobs.run), with progress on stderr and a summary on stdout.

    Args:
      loading: which model.
      task_of: what is asked of it.
      file: of texts.
      options: how.
    """
    from roberta_flax.datasets import tables
    from roberta_flax.errors import InputError
    from roberta_flax.inference import jobs
    from roberta_flax.inference.predictor import Predictor

    if options.output is None:
        raise InputError("say where the results go with --output (-o)")
    share = _share(options.share, options.distributed)  # before JAX does anything
    header = False if options.no_header else None
    texts = tuple(options.columns or tables.usual_columns(file, header, options.format))
    roberta = loading.load()
    predictor = Predictor(
        roberta,
        task_of(roberta),
        on_long=cast(Any, options.on_long),  # checked there
        strategy=cast(Any, options.strategy),
        tokens_per_batch=options.tokens_per_batch,
        tensor_parallel=options.tensor_parallel,
        max_length=options.max_length,
    )
    job = jobs.Job(
        file, options.output, texts, tuple(options.keep or ()), header, options.format, loading.note(),
        options.rows_per_part, options.strict, share,
    )  # fmt: skip
    with progress_bar(job) as progress:
        summary = jobs.run(job, predictor, progress)
    if options.as_json:
        print_json(summary)
        return
    done = summary["this_run"]
    where = options.output if summary["joined"] else f"{job.parts} (other processes have parts to write)"
    print(
        f"{where}: {summary['rows']} rows, {summary.get('rejected', 0)} rejected, "
        f"{summary.get('truncated', 0)} truncated; "
        f"{summary['seconds']:.1f} s, {done['texts_per_second']:.1f} rows/s, {done['tokens_per_second']:.0f} tokens/s, "
        f"padding {done['padding_share']:.1%}, {done['shapes']} shapes, {done['compilations']} compiled "
        f"({done['compilations_from_cache']} from the cache) in {done['compilation_seconds']:.1f} s"
    )
    if summary["rejects"]:
        print(f"rejected rows, with reasons: {summary['rejects']}")


def run_on_ray(
    loading: Loading, task: Task, source: Path, options: Options, workers: int | None, gpus_per_worker: float
) -> None:
    """Runs a directory of Parquet files through a model on a Ray cluster (ray.predict_parquet)."""
    from roberta_flax.datasets import tables
    from roberta_flax.errors import InputError
    from roberta_flax.inference import ray

    if options.output is None:
        raise InputError("say where the results go with --output (-o)")
    local = {"--strict": options.strict, "--share": options.share, "--distributed": options.distributed}
    if given := [name for name, value in local.items() if value]:
        raise InputError(f"{given[0]} is for --engine local")
    counts = ray.predict_parquet(
        source,
        options.output,
        model=loading.directory(),
        task=task,
        text_columns=options.columns or tables.usual_columns(source, None, "parquet"),
        keep=options.keep,
        load={"dtype": loading.dtype, "precision": loading.precision, "quantize": loading.quantize},
        workers=workers,
        num_gpus=gpus_per_worker,
        on_long=options.on_long,
        strategy=options.strategy,
        tokens_per_batch=options.tokens_per_batch,
        tensor_parallel=options.tensor_parallel,
        max_length=options.max_length,
    )
    if options.as_json:
        print_json({"output": str(options.output), **counts})
    else:
        print(f"{options.output}: {counts['rows']} rows, {counts['rejected']} rejected")


def _share(share: str | None, distributed: bool) -> tuple[int, int]:
    from roberta_flax.errors import InputError

    if share is not None:
        process, _, count = share.partition("/")
        if distributed or not process.isdecimal() or not count.isdecimal() or not int(process) < int(count):
            raise InputError(f"--share is I/N with I from 0 to N - 1, without --distributed; got {share!r}")
        return int(process), int(count)
    if distributed:
        import jax

        join_hosts("; or use --share I/N")
        return jax.process_index(), jax.process_count()
    return 0, 1


def join_hosts(instead: str = "") -> None:
    """Makes this process one of several (jax.distributed); InputError, with what to do `instead`, if it fails."""
    import jax

    from roberta_flax.errors import InputError

    try:
        jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        raise InputError(f"jax.distributed: {' '.join(str(error).split())[:300]}{instead}") from None


@contextmanager
def progress_bar(job: Job) -> Iterator[Progress]:
    """On a terminal a bar with rows and tokens a second, padding and time left; otherwise a line now and then."""
    from roberta_flax.inference.jobs import rows_in

    total = rows_in(job)
    last = time.monotonic()

    def text(rows: int, predictor: Predictor) -> str:
        stats = predictor.stats
        seconds = max(stats.seconds, 1e-9)
        rates = f"{stats.texts / seconds:.1f} rows/s {stats.tokens / seconds:.0f} tokens/s padding {stats.padding:.1%}"
        share = 0.0 if total is None else stats.share_done(total - rows + stats.texts)
        return f"{rates} {timedelta(seconds=round(seconds / share - seconds))} left" if share else rates

    if not sys.stderr.isatty():

        def line(rows: int, predictor: Predictor) -> None:
            nonlocal last
            if time.monotonic() - last >= 30:
                last = time.monotonic()
                print(f"{rows} of {total or '?'} rows, {text(rows, predictor)}", file=sys.stderr)

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total)
        yield lambda rows, predictor: bar.update(task, completed=rows, description=text(rows, predictor))
        bar.update(task, total=bar.tasks[task].completed)  # which was an estimate
