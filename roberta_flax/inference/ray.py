"""Batch inference on a Ray cluster: a model in every worker, over a Ray Data dataset. Needs the extra `ray`.

>>> from roberta_flax.inference.ray import Predict
>>> dataset = ray.data.read_parquet("texts/")
>>> options = {
...     "model": "/shared/mnli",
...     "task": roberta_flax.Classify("mnli"),
...     "text_columns": ["premise", "hypothesis"],
... }
>>> pool = ray.data.ActorPoolStrategy(size=8)
>>> results = dataset.map_batches(  # num_gpus=1 on GPUs
...     Predict, fn_constructor_kwargs=options, compute=pool, batch_format="pyarrow", resources={"TPU": 4}
... )
>>> results.write_parquet("predictions/")

`predict_parquet` does this from one directory of Parquet files to another.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from roberta_flax.datasets import tables
from roberta_flax.errors import InputError
from roberta_flax.extras import require
from roberta_flax.inference import jobs
from roberta_flax.inference.workers import REASON, TRUNCATED, Assignment, Worker
from roberta_flax.remote import to_path
from roberta_flax.tasks.base import Task, TaskOfModel

__all__ = ["Predict", "predict_parquet"]

ROWS_PER_BATCH = 4096
_MEMORY_OF_A_GPU = 0.75  # JAX's own default of XLA_CLIENT_MEM_FRACTION


class Predict:
    """A callable class for ray.data.Dataset.map_batches that adds results to rows of texts.

    Batches are pyarrow.Tables (batch_format="pyarrow"), and rows keep their order. If a row is rejected, its result
    columns are null and the column "rejected" has the reason. The column "truncated" tells whether an input was over
    the maximum length and was truncated or split. A kept column with the name of one of these columns gets the prefix
    "input_". The model, the SHA-256 of its files and all settings are in the schema's metadata.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        task: Task | TaskOfModel,
        text_columns: Sequence[str],
        *,
        keep: Sequence[str] | None = None,
        load: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """Loads the model in the worker.

        Args:
          model: a model that roberta_flax.load accepts. A path must exist on every worker.
          task: a task whose results jobs.result_format knows, as all of roberta_flax's are.
          text_columns: the columns with text, one or several that form one input.
          keep: the columns to copy to the output; by default all.
          load: options of roberta_flax.load.
          options: options of roberta_flax.Predictor.
        """
        self._text_columns, self._keep = list(text_columns), keep
        self._worker = Worker(Assignment.of(model, task, load, options))
        self._metadata = self._worker.metadata()

    def __call__(self, batch: Any) -> Any:
        """Returns a table with the kept columns, the result columns, "rejected" and "truncated"."""
        texts = [batch.column(name).to_pylist() for name in self._text_columns]
        inputs = texts[0] if len(texts) == 1 else list(zip(*texts, strict=True))
        results = tables.arrow_table("results", self._worker.records(inputs), self._worker.schema)
        keep = batch.column_names if self._keep is None else list(self._keep)
        output = batch.select(keep)
        output = output.rename_columns([*jobs.kept_names(keep, self._worker.schema).values()])
        for name in results.column_names:
            output = output.append_column(name, results.column(name))
        return output.replace_schema_metadata({**(output.schema.metadata or {}), **self._metadata})


def predict_parquet(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    workers: int | None = None,
    rows_per_batch: int = ROWS_PER_BATCH,
    num_gpus: float = 0,
    resources: Mapping[str, float] | None = None,
    **options: Any,
) -> dict[str, int]:
    """Runs Predict over a Parquet file, or a directory of them, and writes a directory of Parquet files.

    Workers write batches as they finish them, so the rows come in no particular order: keep a column that identifies
    them. Rows stream: memory holds those that are read ahead or not yet written, never the whole input. If a worker
    dies, it is replaced and its batches are repeated. The destination appears when every row is in it exactly once.
    Ray starts on this machine, or the cluster named in RAY_ADDRESS is joined.

    Args:
      source: the Parquet file or directory, on a file system that all workers share.
      destination: the directory to write, on a file system that all workers share. It must not exist.
      workers: number of workers, each with its own copy of the model. The default is one less than Ray's number of
        CPUs; with num_gpus or resources, as many as the cluster has these for.
      rows_per_batch: number of rows that a worker processes at a time.
      num_gpus: number of GPUs that each worker takes. Of a fraction, JAX takes that fraction of the GPU's memory.
      resources: what else of Ray's resources each worker takes, such as {"TPU": 4} for the four chips of a host.
      options: arguments of Predict.

    Returns:
      The number of "rows", and how many of them were "rejected" and "truncated".

    Raises:
      InputError: Ray is not installed, there are no Parquet files or no rows in them, a column is missing or is not
        text, the destination exists, an option does not exist, the cluster has none of what a worker takes, Ray's
        memory and disk are full, or all rows were rejected.
    """
    ray = require("ray", "ray")
    require("ray.data", "ray")
    source, destination = (Path(to_path(path)).resolve() for path in (source, destination))
    if destination.exists():
        raise InputError(f"{destination} exists already; remove it or choose another name")
    columns = _check(source, **options)
    ray.init(ignore_reinit_error=True, logging_level="warning")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    cluster = ray.cluster_resources()
    cpus = cluster.get("CPU", 1)
    workers = workers or _workers(cluster, {"GPU": num_gpus, **(resources or {})})
    partial = destination.with_name(f".{destination.name}-{uuid.uuid4().hex[:8]}.partial")
    try:
        with _full_disk_in_one_line(ray):
            ray.data.read_parquet(str(source), columns=columns).map_batches(
                Predict,
                fn_constructor_kwargs=options,
                compute=ray.data.ActorPoolStrategy(size=workers),
                batch_size=rows_per_batch,
                batch_format="pyarrow",
                num_cpus=min(1.0, max(0.1, (cpus - 1) / workers)),  # the rest is left for reading and writing
                num_gpus=num_gpus,
                resources=dict(resources or {}),
                runtime_env=_environment(num_gpus),
            ).write_parquet(str(partial))
        counts, reason = _counts(partial)
        if counts["rejected"] == counts["rows"] > 0:
            raise InputError(
                f"all {counts['rows']} rows of {source} were rejected, so {destination} was not written; one of them: "
                f"{reason}"
            )
        partial.rename(destination)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return counts


@contextmanager
def _full_disk_in_one_line(ray: Any) -> Iterator[None]:
    """Raises InputError where a disk is full. Ray takes that for a bug of its own; its traces go to its log file."""

    def is_another(record: logging.LogRecord) -> bool:
        return not isinstance((record.exc_info or sys.exc_info())[1], ray.exceptions.OutOfDiskError)

    handlers = logging.getLogger("ray.data").handlers
    consoles = [handler for handler in handlers if isinstance(handler, logging.StreamHandler)]
    for console in consoles:
        console.addFilter(is_another)
    try:
        yield
    except ray.exceptions.OutOfDiskError as error:
        raise InputError(
            "Ray's object store is full, and so is the disk to which Ray moves rows that do not fit in it; free space "
            "on that disk, or set RAY_TMPDIR to a directory on another disk before Ray starts. Ray counts a disk as "
            "full above RAY_local_fs_capacity_threshold, 0.95 by default"
        ) from error
    finally:
        for console in consoles:
            console.removeFilter(is_another)


def _check(
    source: Path,
    model: str | os.PathLike[str],
    task: Task | TaskOfModel,
    text_columns: Sequence[str],
    keep: Sequence[str] | None = None,
    load: Mapping[str, Any] | None = None,
    **options: Any,
) -> list[str] | None:
    """Checks what can be checked before Ray starts. Returns the columns to read; None for all."""
    Assignment.of(model, task, load, options)
    names = tables.column_names(source, format="parquet") or []
    wanted = list(dict.fromkeys((*text_columns, *(keep or ()))))
    if missing := [name for name in wanted if name not in names]:
        raise InputError(f"{source} has no column {missing[0]!r}; its columns are {', '.join(map(repr, names))}")
    if next(tables.read_rows(source, text_columns, format="parquet"), None) is None:
        raise InputError(f"{source} has no rows")
    return None if keep is None else wanted


def _workers(cluster: Mapping[str, float], needs: Mapping[str, float]) -> int:
    """How many workers fit that take `needs` of each accelerator; without any, one less than there are CPUs."""
    counts = {name: int(cluster.get(name, 0) / needed) for name, needed in needs.items() if needed}
    if short := next((name for name, count in counts.items() if not count), None):
        raise InputError(
            f"each worker takes {needs[short]:g} of {short}, and the cluster has {cluster.get(short, 0):g}; if it will "
            "grow, say with workers (--workers) how many to wait for"
        )
    return min(counts.values(), default=max(1, int(cluster.get("CPU", 1)) - 1))


def _environment(num_gpus: float) -> dict[str, Any]:
    """The runtime environment of a worker. JAX would take three quarters of a GPU's memory for the first of several."""
    if not 0 < num_gpus < 1:
        return {}
    return {"env_vars": {"XLA_CLIENT_MEM_FRACTION": f"{_MEMORY_OF_A_GPU * num_gpus:.3f}"}}


def _counts(directory: Path) -> tuple[dict[str, int], str | None]:
    """Counts the rows that were written, and those rejected or truncated; also gives the reason of one rejection."""
    datasets = require("pyarrow.dataset", "ray")
    written = datasets.dataset(directory, format="parquet")
    is_rejected, is_truncated = datasets.field(REASON).is_valid(), datasets.field(TRUNCATED)
    counts = {
        "rows": written.count_rows(),
        "rejected": written.count_rows(filter=is_rejected),
        "truncated": written.count_rows(filter=is_truncated),
    }
    reasons = written.head(1, columns=[REASON], filter=is_rejected).column(REASON).to_pylist()
    return counts, next(iter(reasons), None)


def __dir__() -> list[str]:
    return __all__
