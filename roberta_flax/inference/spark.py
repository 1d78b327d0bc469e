"""Batch inference on Apache Spark: a function of text columns, over predict_batch_udf. Needs the extra `spark`.

>>> from roberta_flax import Classify
>>> from roberta_flax.inference.spark import predict_udf
>>> classify = predict_udf("/models/mnli", Classify("mnli"), texts=2)
>>> rows = spark.read.parquet("texts/").withColumn("result", classify("premise", "hypothesis"))
>>> rows.select("id", "result.*").write.parquet("predictions/")
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from roberta_flax.datasets.tables import Kind, Named, Records
from roberta_flax.errors import require_positive
from roberta_flax.extras import require
from roberta_flax.inference.workers import Assignment, Worker
from roberta_flax.tasks.base import Task, TaskOfModel

__all__ = ["predict_udf"]

BATCH_ROWS = 4096
# The types of fields with one value. predict_batch_udf takes no booleans.
_SCALARS: dict[Kind, str] = {
    "text": "StringType",
    "integer": "LongType",
    "float": "FloatType",
    "double": "DoubleType",
    "boolean": "ByteType",
}


def predict_udf(
    model: str | os.PathLike[str],
    task: Task | TaskOfModel,
    *,
    texts: int = 1,
    batch_rows: int = BATCH_ROWS,
    load: Mapping[str, Any] | None = None,
    **options: Any,
) -> Any:
    """Makes a user-defined function of text columns, which pyspark.ml.functions.predict_batch_udf runs.

    It gives a struct with the fields that a job writes for a row, and two more: "rejected", the reason why there is no
    result (the other fields are then null), or null if there is one; and "truncated", 1 if the input was over the
    maximum length and was truncated or split, or else 0. Fields with a value for each of several names are arrays of
    structs of "name" and "value", which map_from_entries makes maps of.

    Each Python worker loads the model once, if spark.python.worker.reuse is true, as it is by default. If a worker
    dies, Spark repeats its task.

    Args:
      model: a model that roberta_flax.load accepts. A path must exist here and on every worker.
      task: a task whose results can be written to a file, as all of roberta_flax's can.
      texts: the number of text columns that form an input.
      batch_rows: the most rows that a worker processes at a time.
      load: options of roberta_flax.load.
      options: options of roberta_flax.Predictor.

    Returns:
      A function of as many columns as `texts` says, which spark.udf.register also takes.

    Raises:
      InputError: PySpark is not installed, the model cannot do the task, or an option does not exist.
    """
    functions = require("pyspark.ml.functions", "spark")
    require_positive(texts=texts, batch_rows=batch_rows)
    assignment = Assignment.of(model, task, load, options)
    return functions.predict_batch_udf(
        partial(_make_predict, assignment, texts),
        return_type=_struct_type(assignment.schema()),
        batch_size=batch_rows,
    )


def _make_predict(assignment: Assignment, texts: int) -> Callable[..., dict[str, Any]]:
    """Loads the model in a Python worker; returns what Spark calls there, a function of columns, arrays [rows]."""
    _see_gpus_of_task()
    worker = Worker(assignment)

    def predict(*columns: npt.NDArray[Any]) -> dict[str, Any]:
        rows = list(zip(*([_text(value) for value in column] for column in columns), strict=True))
        records = worker.plain_records([row[0] for row in rows] if texts == 1 else rows)
        return {field: _column([record[field] for record in records], kind) for field, kind in worker.schema.items()}

    # predict_batch_udf counts the parameters.
    parameters = [inspect.Parameter(f"text_{i}", inspect.Parameter.POSITIONAL_ONLY) for i in range(texts)]
    predict.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return predict


def _see_gpus_of_task() -> None:
    """Where Spark gives GPUs to tasks, JAX, which would take all of the machine's, sees those of this task."""
    context = require("pyspark", "spark").TaskContext.get()
    gpus = None if context is None else context.resources().get("gpu")
    if gpus is not None:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", ",".join(gpus.addresses))


def _text(value: Any) -> Any:
    """A text, or None for null, which pandas makes NaN."""
    return None if value != value else value


class _Arrays(list[Any]):
    """A column of lists of any length, or null. predict_batch_udf takes it for an array of two dimensions."""

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), -1


def _column(values: Sequence[Any], kind: Kind) -> Any:
    """A field of all rows, as predict_batch_udf takes it."""
    if kind in _SCALARS:
        return np.array([int(value) if isinstance(value, bool) else value for value in values], object)
    return _Arrays([None if value is None else _list(value, kind) for value in values])


def _list(value: Any, kind: Kind) -> Any:
    """A value of several numbers or texts as a list; a dict as the list of its entries."""
    if isinstance(kind, Named) and kind.several:
        return [_list(each, "scores") for each in value]
    if isinstance(value, dict):
        return [{"name": name, "value": number} for name, number in value.items()]
    return list(value)


def _struct_type(schema: Mapping[str, Kind]) -> Any:
    """The type of a record in Spark."""
    types = require("pyspark.sql.types", "spark")
    array = types.ArrayType

    def struct(fields: Iterable[tuple[str, Kind]]) -> Any:
        return types.StructType([types.StructField(name, type_of(kind)) for name, kind in fields])

    def type_of(kind: Kind) -> Any:
        if isinstance(kind, Records):
            return array(struct(kind.fields))
        if isinstance(kind, Named):
            return array(type_of("scores")) if kind.several else type_of("scores")
        return named[kind]

    named = {kind: getattr(types, name)() for kind, name in _SCALARS.items()}
    named["floats"], named["texts"] = array(named["float"]), array(named["text"])
    named["vectors"], named["scores"] = array(named["floats"]), array(struct([("name", "text"), ("value", "float")]))
    return struct(schema.items())


def __dir__() -> list[str]:
    return __all__
