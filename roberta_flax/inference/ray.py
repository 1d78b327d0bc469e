"""Batch inference on a Ray cluster: a model in every worker, over a Ray Data dataset. Needs the extra `ray`.

>>> from roberta_flax.inference.ray import Predict
>>> dataset = ray.data.read_parquet("texts/")
>>> options = {
...     "model": "/shared/mnli",
...     "task": roberta_flax.Classify("mnli"),
...     "text_columns": ["premise", "hypothesis"],
... }
>>> pool = ray.data.ActorPoolStrategy(size=8)
>>> results = dataset.map_batches(Predict, fn_constructor_kwargs=options, compute=pool, batch_format="pyarrow")
>>> results.write_parquet("predictions/")

`predict_parquet` does this from one directory of Parquet files to another.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from roberta_flax import hub
from roberta_flax.convert import cache
from roberta_flax.datasets import tables
from roberta_flax.errors import InputError
from roberta_flax.extras import require
from roberta_flax.inference import jobs
from roberta_flax.inference.predictor import Predictor, windows_of
from roberta_flax.remote import to_path
from roberta_flax.tasks.base import Task, TaskOfModel
from roberta_flax.text.encoding import Rejected

__all__ = ["Predict", "predict_parquet"]

ROWS_PER_BATCH = 4096
_FILES = ("cache_dir", "sha256", "checkpoint_file", "bpe_dir")  # arguments of load that find a model's files
REASON = "rejected"  # the column with the reason why a row has no result
TRUNCATED = "truncated"  # the column that tells whether an input was over the maximum length and lost tokens


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
        others = dict(load or {})
        directory = cache.resolve(model, **{name: others.pop(name) for name in _FILES if name in others})
        self._predictor = Predictor(hub.load(directory, **others), task, **options)
        self._schema, self._to_record = jobs.result_format(self._predictor)
        settings = jobs.settings_of(self._predictor, jobs.model_contents(str(model), directory))
        self._metadata = {jobs.METADATA: json.dumps(settings, sort_keys=True)}

    def __call__(self, batch: Any) -> Any:
        """Returns a table with the kept columns, the result columns, "rejected" and "truncated"."""
        import pyarrow

        texts = [batch.column(name).to_pylist() for name in self._text_columns]
        inputs = texts[0] if len(texts) == 1 else list(zip(*texts, strict=True))
        results, is_truncated = self._results(inputs)
        no_result = dict.fromkeys(self._schema)
        records = [no_result if isinstance(result, Rejected) else self._to_record(result) for result in results]
        reasons = [result.reason if isinstance(result, Rejected) else None for result in results]
        keep = batch.column_names if self._keep is None else list(self._keep)
        output = batch.select(keep)
        output = output.rename_columns([*jobs.kept_names(keep, {REASON, TRUNCATED, *self._schema}).values()])
        result_columns = tables.arrow_table("results", records, self._schema)
        for name in result_columns.column_names:
            output = output.append_column(name, result_columns.column(name))
        output = output.append_column(REASON, pyarrow.array(reasons, pyarrow.string()))
        output = output.append_column(TRUNCATED, pyarrow.array(is_truncated))
        return output.replace_schema_metadata({**(output.schema.metadata or {}), **self._metadata})

    def _results(self, inputs: Sequence[Any]) -> tuple[list[Any], npt.NDArray[np.bool_]]:
        """The results of a batch's inputs, and which of these were over the maximum length."""
        found: list[Any] = []
        is_truncated = np.zeros(len(inputs), bool)
        for results in self._predictor.windows(windows_of(inputs, self._predictor.window)):
            is_truncated[[len(found) + number for number in results.truncated]] = True
            found += results
        return found, is_truncated


def predict_parquet(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    workers: int | None = None,
    rows_per_batch: int = ROWS_PER_BATCH,
    num_gpus: float = 0,
    **options: Any,
) -> dict[str, int]:
    """Runs Predict over a Parquet file, or a directory of them, and writes a directory of Parquet files.

    Workers write batches as they finish them, so the rows come in no particular order: keep a column that identifies
    them. If a worker dies, it is replaced and its batches are repeated. The destination appears when every row is in it
    exactly once. Ray starts on this machine, or the cluster named in RAY_ADDRESS is joined.

    Args:
      source: the Parquet file or directory, on a file system that all workers share.
      destination: the directory to write, on a file system that all workers share. It must not exist.
      workers: number of workers, each with its own copy of the model. The default is one less than Ray's number of
        CPUs, or as many as its GPUs allow with num_gpus.
      rows_per_batch: number of rows that a worker processes at a time.
      num_gpus: number of GPUs that each worker needs.
      options: arguments of Predict.

    Returns:
      The number of "rows", and how many of them were "rejected" and "truncated".

    Raises:
      InputError: Ray is not installed, there are no Parquet files, a column is missing, the destination exists, or all
        rows were rejected.
    """
    ray = require("ray", "ray")
    require("ray.data", "ray")
    source, destination = (Path(to_path(path)).resolve() for path in (source, destination))
    if destination.exists():
        raise InputError(f"{destination} exists already; remove it or choose another name")
    names = tables.column_names(source, format="parquet") or []
    if missing := [name for name in (*options["text_columns"], *(options.get("keep") or ())) if name not in names]:
        raise InputError(f"{source} has no column {missing[0]!r}; its columns are {', '.join(map(repr, names))}")
    ray.init(ignore_reinit_error=True, logging_level="warning")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    resources = ray.cluster_resources()
    cpus = resources.get("CPU", 1)
    workers = workers or max(1, int(resources.get("GPU", 0) / num_gpus if num_gpus else cpus - 1))
    partial = destination.with_name(f".{destination.name}-{uuid.uuid4().hex[:8]}.partial")
    try:
        ray.data.read_parquet(str(source)).map_batches(
            Predict,
            fn_constructor_kwargs=options,
            compute=ray.data.ActorPoolStrategy(size=workers),
            batch_size=rows_per_batch,
            batch_format="pyarrow",
            num_cpus=min(1.0, max(0.1, (cpus - 1) / workers)),  # the rest is left for reading and writing
            num_gpus=num_gpus,
        ).write_parquet(str(partial))
        written = ray.data.read_parquet(str(partial)).select_columns([REASON, TRUNCATED])
        rejected = written.filter(_is_rejected)
        counts = {"rows": written.count(), "rejected": rejected.count(), "truncated": int(written.sum(TRUNCATED) or 0)}
        if counts["rejected"] == counts["rows"] > 0:
            raise InputError(
                f"all {counts['rows']} rows of {source} were rejected, so {destination} was not written; one of them: "
                f"{rejected.take(1)[0][REASON]}"
            )
        partial.rename(destination)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return counts


def _is_rejected(row: Mapping[str, Any]) -> bool:
    return row[REASON] is not None


def __dir__() -> list[str]:
    return __all__
