"""What the commands share that run a file of texts through a model: options, progress, and the summary."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from roberta_flax.cli.groups import ADVANCED, Formerly, Group
from roberta_flax.cli.options import (
    DISTRIBUTED,
    OUTPUT,
    BatchingOptions,
    InferenceOptions,
    LayerDevices,
    TextOptions,
    print_result,
)
from roberta_flax.errors import InputError
from roberta_flax.files import require_rereadable
from roberta_flax.remote import to_path

if TYPE_CHECKING:
    from roberta_flax.inference.jobs import Job, Progress
    from roberta_flax.inference.predictor import Predictor
    from roberta_flax.nn.config import RobertaConfig
    from roberta_flax.tasks.base import Task, TaskOfModel


@dataclass(frozen=True)
class InputOptions(TextOptions):
    """How a file of texts is read, and what to do about texts that are too long."""

    on_long: Annotated[
        str | None,
        typer.Option(
            metavar="error|truncate|window",
            help="How to handle inputs over the maximum length.",
            show_default="truncate; for questions and their contexts window",
        ),
        ADVANCED,
    ] = None

    format: Annotated[
        str | None,
        typer.Option(metavar="jsonl|csv|tsv|txt|parquet", help="Format of INPUT.", show_default="by its name"),
        ADVANCED,
    ] = None


Inputs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="INPUT",
        help="File of texts: .jsonl, .csv, .tsv, .txt or .parquet. What does not end so is a text itself, or with more "
        "words several texts of one input.",
    ),
    Formerly(("--input", "-i")),
]


def file_or_texts(
    inputs: list[str] | None, texts: list[str] | None, format: str | None
) -> tuple[Path | None, list[str]]:
    """INPUT as the file that its name says it is; or else the texts, of INPUT or of --text."""
    from roberta_flax.datasets import tables

    if bool(inputs) == bool(texts):
        raise InputError("give INPUT, a file of texts, or one text with --text")
    if texts or not inputs:
        return None, texts or []
    files = [given for given in inputs if format is not None or tables.is_named_as_input(given)]
    if not files:
        _require_texts(inputs)
        return None, inputs
    if len(inputs) > 1:
        raise InputError(
            f"give one file, got {len(inputs)} arguments, of which {files[0]!r} is a file; a text that is "
            "named like a file is given with --text"
        )
    return to_path(files[0]), []


def _require_texts(inputs: list[str]) -> None:
    """Raises InputError if one of the texts is the name of something that exists."""
    for text in inputs:
        if os.path.exists(text):
            require_rereadable(Path(text))
            raise InputError(
                f"{text} is a file, and its name does not show its format; give --format, or a text that is named so "
                "with --text"
            )


@dataclass(frozen=True)
class OutputOptions(Group, panel="Output"):
    """What is written."""

    output: Annotated[Path | None, OUTPUT] = None
    keep: Annotated[
        list[str] | None,
        typer.Option(
            help="Column to copy to the output. Repeat it for several. One named like a result is called input_NAME.",
            show_default=False,
        ),
    ] = None
    rows_per_part: Annotated[
        int | None,
        typer.Option(
            help="Rows in a part; a run resumes after its last whole part.",
            show_default="8192, divided by the labels or documents of a row",
        ),
        ADVANCED,
    ] = None
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first row that cannot be used."), ADVANCED] = (
        False
    )


@dataclass(frozen=True)
class JobDevices(LayerDevices):
    """How several processes share a file."""

    share: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Do the share of process I, from 0, of N that write to one output."),
    ] = None
    distributed: Annotated[bool, DISTRIBUTED] = False

    def part(self) -> tuple[int, int]:
        """This process, of how many. Joins the hosts, before JAX does anything."""
        if self.share is not None:
            process, _, count = self.share.partition("/")
            numbers = process.isdecimal() and count.isdecimal()
            if self.distributed or not numbers or not int(process) < int(count):
                raise InputError(f"--share is I/N with I from 0 to N - 1, without --distributed; got {self.share!r}")
            return int(process), int(count)
        if self.distributed:
            import jax

            from roberta_flax.train.devices import join_hosts

            try:
                join_hosts()
            except InputError as error:
                raise InputError(f"{error}; or use --share I/N") from None
            return jax.process_index(), jax.process_count()
        return 0, 1


@dataclass(frozen=True)
class EngineOptions(Group, panel="Devices", advanced=True):
    """What runs a file."""

    engine: Annotated[
        str,
        typer.Option(
            metavar="local|ray",
            help="This machine; or a Ray cluster, with directories of Parquet files as INPUT and output.",
        ),
    ] = "local"
    workers: Annotated[int | None, typer.Option(help="With --engine ray: number of workers that load the model.")] = (
        None
    )
    gpus_per_worker: Annotated[float, typer.Option(help="With --engine ray: GPUs that each worker takes.")] = 0
    tpus_per_worker: Annotated[
        int, typer.Option(help="With --engine ray: TPU chips that each worker takes, 1, 2, 4 or 8.")
    ] = 0


@dataclass(frozen=True)
class JobOptions(Group):
    """What every command over files takes."""

    input: InputOptions = InputOptions()
    output: OutputOptions = OutputOptions()
    batching: BatchingOptions = BatchingOptions()
    devices: JobDevices = JobDevices()
    engine: EngineOptions = EngineOptions()
    model: InferenceOptions = InferenceOptions()

    def destination(self) -> Path:
        """Where the results go."""
        if self.output.output is None:
            raise InputError("say where the results go with --output (-o)")
        return self.output.output

    def predictor(self) -> dict[str, Any]:
        """The arguments of a Predictor."""
        return {
            "on_long": self.input.on_long,
            "strategy": self.batching.strategy,
            "tokens_per_batch": self.batching.tokens_per_batch,
            "tensor_parallel": self.devices.tensor_parallel,
            "max_length": self.input.max_length,
        }


def result_of(given: Any, task: Task | TaskOfModel, options: JobOptions) -> Any:
    """The result of one input."""
    from roberta_flax.inference.predictor import Predictor

    return Predictor(options.model.load(), task, **options.predictor()).result(given)


def run(
    file: Path, task_of: Callable[[RobertaConfig], Task | TaskOfModel], options: JobOptions, *, as_json: bool
) -> None:
    """Runs a file through a model, on this machine or on a Ray cluster, and prints a summary.

    Args:
      file: of texts.
      task_of: makes the task for a model of this configuration.
      options: how.
      as_json: whether the summary is JSON.
    """
    if options.engine.engine not in ("local", "ray"):
        raise InputError(f"engine must be local or ray, got {options.engine.engine!r}")
    (_run_on_ray if options.engine.engine == "ray" else _run_here)(file, task_of, options, as_json)


def _run_here(
    file: Path, task_of: Callable[[RobertaConfig], Task | TaskOfModel], options: JobOptions, as_json: bool
) -> None:
    """Runs a file through a model (inference.jobs), with progress on stderr and a summary on stdout."""
    from roberta_flax.checkpoint import converted
    from roberta_flax.datasets import tables
    from roberta_flax.inference import jobs
    from roberta_flax.inference.predictor import Predictor

    output, given = options.output, options.input
    destination, share = options.destination(), options.devices.part()
    header = False if given.no_header else None
    texts = tuple(given.text_column or tables.usual_columns(file, header, given.format))
    job = jobs.Job(
        file, destination, texts, tuple(output.keep or ()), header, given.format,
        rows_per_part=jobs.ROWS_PER_PART if output.rows_per_part is None else output.rows_per_part,
        strict=output.strict, share=share,
    )  # fmt: skip
    jobs.check(job)
    task = task_of(converted.read_config(options.model.directory()))
    if output.rows_per_part is None:
        job = replace(job, rows_per_part=jobs.rows_per_part(task))
    job = replace(job, model=jobs.model_contents(options.model.model, options.model.directory()))
    predictor = Predictor(options.model.load(), task, **options.predictor())
    with _progress_bar(job) as progress:
        summary = jobs.run(job, predictor, progress)
    print_result(summary, _lines(summary, job), as_json=as_json)


def _lines(summary: dict[str, Any], job: Job) -> Iterator[str]:
    """A summary for a person. If rows were rejected, the last line begins with that."""
    done = summary["this_run"]
    where = job.output if summary["joined"] else f"{job.parts} (parts of other processes are missing)"
    yield (
        f"{where}: {summary['rows']} rows, {summary['rejected']} rejected, {summary['truncated']} truncated; "
        f"{summary['seconds']:.1f} s, {done['texts_per_second']:.1f} rows/s, {done['tokens_per_second']:.0f} tokens/s, "
        f"padding {done['padding_share']:.1%}, {done['shapes']} shapes, {done['compilations']} compiled "
        f"({done['compilations_from_cache']} from the cache) in {done['compilation_seconds']:.1f} s"
    )
    if kept := done["parts_resumed"]:
        yield f"{kept} part{'s' if kept > 1 else ''} kept from an earlier run; the time and the rates are of this one"
    if summary["rejected"]:
        reasons = summary["rejects"] or job.parts
        count = f"{summary['rejected']} of {summary['rows']} rows"
        where = "NaN in the output" if job.output.suffix == ".npy" else "not in the output"
        yield f"{count} rejected and {where}; reasons: {reasons}"


def _run_on_ray(
    source: Path, task_of: Callable[[RobertaConfig], Task | TaskOfModel], options: JobOptions, as_json: bool
) -> None:
    """Runs a directory of Parquet files through a model on a Ray cluster (inference.ray)."""
    from roberta_flax.checkpoint import converted
    from roberta_flax.datasets import tables
    from roberta_flax.inference import ray

    destination, devices = options.destination(), options.devices
    local = {"--strict": options.output.strict, "--share": devices.share, "--distributed": devices.distributed}
    if given := next((name for name, value in local.items() if value), None):
        raise InputError(f"{given} is for --engine local")
    if (tpus := options.engine.tpus_per_worker) not in (0, 1, 2, 4, 8):
        raise InputError(f"--tpus-per-worker must be 1, 2, 4 or 8, got {tpus}")
    counts = ray.predict_parquet(
        source,
        destination,
        model=options.model.directory(),  # converted once, before workers load it
        task=task_of(converted.read_config(options.model.directory())),
        text_columns=options.input.text_column or tables.usual_columns(source, None, "parquet"),
        keep=options.output.keep,
        load=options.model.arguments(),
        workers=options.engine.workers,
        num_gpus=options.engine.gpus_per_worker,
        resources={"TPU": tpus} if tpus else None,
        **options.predictor(),
    )
    rows, rejected = counts["rows"], counts["rejected"]
    lines = [f"{destination}: {rows} rows, {rejected} rejected, {counts['truncated']} truncated"]
    if rejected:
        lines.append(f"{rejected} of {rows} rows have no result; reasons: the column rejected")
    print_result({"output": str(destination), **counts}, lines, as_json=as_json)


@contextmanager
def _progress_bar(job: Job) -> Iterator[Progress]:
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
