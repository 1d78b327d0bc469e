"""Where one machine is not enough: a model in every worker of a Ray cluster, over a Ray Data dataset.

>>> dataset = ray.data.read_parquet("texts/")
>>> options = {"model": "/shared/mnli", "work": roberta_flax.Classify("mnli"), "columns": ["premise", "hypothesis"]}
>>> pool = ray.data.ActorPoolStrategy(size=8)
>>> results = dataset.map_batches(
...     roberta_flax.ray.Predict, fn_constructor_kwargs=options, compute=pool, batch_format="pyarrow"
... )
>>> results.write_parquet("predictions/")

`predict_parquet` does that from one directory of Parquet files to another. Needs the extra `ray`.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from roberta_flax import hub
from roberta_flax.datasets import tables
from roberta_flax.errors import InputError
from roberta_flax.extras import require
from roberta_flax.inference import jobs
from roberta_flax.inference.predictor import Predictor
from roberta_flax.tasks.base import Work
from roberta_flax.text.encoding import Rejected

__all__ = ["Predict", "predict_parquet"]

ROWS_PER_BATCH = 4096
REASON = "rejected"  # the column that says why a row has no result


class Predict:
    """What ray.data.Dataset.map_batches takes: rows of texts in, the same rows with results out, in the same order.

    A batch is a pyarrow.Table (batch_format="pyarrow"). A row without a result has nulls, and the reason in "rejected".
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        work: Work,
        columns: Sequence[str],
        *,
        keep: Sequence[str] | None = None,
        load: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """Loads the model, in the worker.

        Args:
          model: what roberta_flax.load takes; a path must be one that every worker sees.
          work: Classify, Embed or FillMask.
          columns: of the texts, one or several of one input.
          keep: columns to keep; all if not given.
          load: options of roberta_flax.load.
          options: of roberta_flax.Predictor.
        """
        self._columns, self._keep = list(columns), keep
        self._predictor = Predictor(hub.load(model, **(load or {})), work, **options)
        self._fields, self._answer = jobs.answers(self._predictor)

    def __call__(self, batch: Any) -> Any:
        """A table with the columns that are kept, the results, and "rejected"."""
        import pyarrow

        texts = [batch.column(name).to_pylist() for name in self._columns]
        items = texts[0] if len(texts) == 1 else list(zip(*texts, strict=True))
        results = [result for window in self._predictor.windows([items]) for result in window] if len(items) else []
        nothing = dict.fromkeys(self._fields)
        records = [nothing if isinstance(result, Rejected) else self._answer(result) for result in results]
        reasons = [result.reason if isinstance(result, Rejected) else None for result in results]
        kept = batch.select(batch.column_names if self._keep is None else list(self._keep))
        found = tables.arrow_table("results", records, self._fields)
        for name in found.column_names:
            kept = kept.append_column(name, found.column(name))
        return kept.append_column(REASON, pyarrow.array(reasons, pyarrow.string()))


def predict_parquet(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    workers: int | None = None,
    rows_per_batch: int = ROWS_PER_BATCH,
    num_gpus: float = 0,
    **options: Any,
) -> dict[str, int]:
    """Predicts every row of a directory of Parquet files (or of one file) into a directory of them.

    Workers write their batches as they finish them, so rows are in no order: keep a column that identifies them. A
    worker that dies is replaced, and what it had is done again. The destination appears when all rows are in it, once
    each. Ray is started on this machine, or the cluster is joined that RAY_ADDRESS names.

    Args:
      source, destination: on a file system that every worker sees; the destination must not exist.
      workers: how many load the model; one less than Ray has CPUs, or as its GPUs allow with num_gpus, if not given.
      rows_per_batch: that a worker takes at a time.
      num_gpus: that each worker needs.
      options: of Predict.

    Returns:
      rows, rejected.

    Raises:
      InputError: ray is not installed, no Parquet files, a column that is not there, or the destination exists.
    """
    ray = require("ray", "ray")
    require("ray.data", "ray")
    source, destination = Path(source).resolve(), Path(destination).resolve()
    if destination.exists():
        raise InputError(f"{destination} exists already; remove it or choose another name")
    names = tables.column_names(source, format="parquet") or []
    if missing := [name for name in options["columns"] if name not in names]:
        raise InputError(f"{source} has no column {missing[0]!r}; its columns are {', '.join(map(repr, names))}")
    if clash := {REASON}.intersection(names):
        raise InputError(f"{source} has a column {min(clash)!r}, which results have too; rename it")
    jobs.check_kept(names if options.get("keep") is None else options["keep"])
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
            num_cpus=min(1.0, max(0.1, (cpus - 1) / workers)),  # some are left to read and write
            num_gpus=num_gpus,
        ).write_parquet(str(partial))
        written = ray.data.read_parquet(str(partial), columns=[REASON])
        counts = {"rows": written.count(), "rejected": written.filter(_is_rejected).count()}
        partial.rename(destination)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return counts


def _is_rejected(row: Mapping[str, Any]) -> bool:
    return row[REASON] is not None


def __dir__() -> list[str]:
    return __all__
