"""A Ray cluster on this machine: Parquet in, Parquet out, each row once, also where a worker is killed."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import roberta_flax
from roberta_flax import Classify, InputError
from tests.conftest import skip_or_fail

try:
    import pyarrow
    import pyarrow.parquet
    import ray
    import ray.data
    from ray.data.exceptions import omit_traceback_stdout
except ImportError as error:
    skip_or_fail(f"Ray cannot be imported ({error}); the README's test command installs it")
    pytest.skip("no ray", allow_module_level=True)

pytestmark = pytest.mark.slow
ROWS, FILES = 600, 12
OBJECT_STORE = 80 << 20  # bytes
PADDING = "x" * 250_000  # a column that is only carried along: in memory, all rows are 1.8 times the object store
TEXTS = ["id", "premise", "hypothesis"]

DRIVER = """
import json, signal, sys, threading, time
from pathlib import Path
import psutil, ray
import roberta_flax.inference.ray
from roberta_flax import Classify

source, destination, model, object_store = sys.argv[1:]
ray.init(
    num_cpus=2, resources={"TPU": 4}, object_store_memory=int(object_store),
    logging_level="error", log_to_driver=False, include_dashboard=False,
)
ray.data.DataContext.get_current().target_max_block_size = 4 << 20  # of 128 MiB, which the object store cannot hold
killed, chips_left = [], []

def workers():
    for process in psutil.process_iter(["cmdline"]):
        if (process.info["cmdline"] or [""])[0].startswith("ray::MapWorker"):
            yield process

def kill_one():
    while not list(Path(destination).parent.glob(".out-*.partial/*.parquet")):
        time.sleep(0.02)  # until there are results to lose, and more to come
    chips_left.append(ray.available_resources().get("TPU", 0))
    worker = next(workers())
    worker.send_signal(signal.SIGKILL)
    killed.append(worker.pid)

threading.Thread(target=kill_one, daemon=True).start()
counts = roberta_flax.inference.ray.predict_parquet(
    source, destination, model=model, task=Classify("mnli"), text_columns=["premise", "hypothesis"], rows_per_batch=25,
    resources={"TPU": 2},
)
print(json.dumps({**counts, "killed": len(killed), "chips left": chips_left}))
"""


def environment() -> dict[str, str]:
    """Of drivers and their clusters: on CPUs, and what one worker has compiled is there for the others."""
    changes = {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir or "",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "RAY_prestart_worker_first_driver": "0",  # workers for tasks that never come
        "RAY_local_fs_capacity_threshold": "1",  # what else is on this machine's disk says nothing about the run
    }
    return {**os.environ, **changes}


@pytest.fixture(scope="module")
def source(tmp_path_factory, sick_pairs) -> Path:
    folder = tmp_path_factory.mktemp("ray") / "texts"
    folder.mkdir()
    rows = [(i, *sick_pairs[i]) if i % 100 else (i, None, "x") for i in range(ROWS)]
    for number in range(FILES):
        some = rows[number * ROWS // FILES : (number + 1) * ROWS // FILES]
        columns = dict(zip(TEXTS, map(list, zip(*some, strict=True)), strict=True))
        pyarrow.parquet.write_table(
            pyarrow.table({**columns, "padding": [PADDING] * len(some)}), folder / f"{number}.parquet"
        )
    return folder


def assert_every_row_is_there_once(output: Path, roberta: roberta_flax.Roberta, source: Path) -> None:
    texts = {row["id"]: row for row in pyarrow.parquet.read_table(source, columns=TEXTS).to_pylist()}
    results = ["id", "label", "log_probabilities", "rejected"]
    found = pyarrow.parquet.read_table(output, columns=results).to_pylist()
    assert sorted(row["id"] for row in found) == list(range(ROWS))
    found.sort(key=lambda row: row["id"])
    for row in found[::37]:
        if row["id"] % 100:
            text = texts[row["id"]]
            tokens = roberta.encode(text["premise"], text["hypothesis"])
            expected = np.asarray(roberta.predict("mnli", tokens))[0]
            assert np.abs(np.array(list(row["log_probabilities"].values())) - expected).max() <= 5e-5
            assert row["rejected"] is None
    assert all(row["label"] is None and "NoneType" in row["rejected"] for row in found[::100])


def test_more_rows_than_memory_holds_are_there_once_also_where_one_of_two_workers_is_killed(
    source, tiny, tiny_directory, tmp_path
):
    """Each worker takes two of four TPU chips, so there are two; JAX_PLATFORMS has them compute on CPUs."""
    arguments = [sys.executable, "-c", DRIVER, source, tmp_path / "out", tiny_directory, OBJECT_STORE]
    done = subprocess.run(
        [*map(str, arguments)], capture_output=True, text=True, check=False, timeout=400, env=environment()
    )
    assert done.returncode == 0, done.stderr[-3000:]
    counts = {"rows": ROWS, "rejected": ROWS // 100, "truncated": 0, "killed": 1, "chips left": [0]}
    assert json.loads(done.stdout.splitlines()[-1]) == counts
    assert_every_row_is_there_once(tmp_path / "out", tiny, source)
    assert not list(tmp_path.glob(".*.partial"))


class OneBatch:
    """What a run does with a dataset of Ray's, in this process: a file is one batch."""

    def __init__(self, source: str, columns: list[str] | None) -> None:
        self._table = pyarrow.parquet.read_table(source, columns=columns)

    def map_batches(self, predict, *, fn_constructor_kwargs, **_) -> OneBatch:
        self._table = predict(**fn_constructor_kwargs)(self._table)
        return self

    def write_parquet(self, path: str) -> None:
        Path(path).mkdir()
        pyarrow.parquet.write_table(self._table, Path(path) / "0.parquet")


@pytest.fixture
def without_cluster(monkeypatch) -> None:
    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(ray.data, "read_parquet", OneBatch)


@pytest.mark.usefixtures("without_cluster")
def test_a_run_whose_rows_are_all_rejected_fails_and_writes_nothing(tiny_directory, tmp_path):
    import roberta_flax.inference.ray

    nulls = tmp_path / "nulls.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([None, None], "string")}), nulls)
    options = {"model": tiny_directory, "task": Classify("mnli"), "text_columns": ["text"]}
    reason = "all 2 rows of .*nulls.parquet were rejected, so .*nothing was not written; one of them: .* NoneType"
    with pytest.raises(InputError, match=reason):
        roberta_flax.inference.ray.predict_parquet(nulls, tmp_path / "nothing", **options)
    assert [*tmp_path.iterdir()] == [nulls]
    pyarrow.parquet.write_table(pyarrow.table({"text": [None, "a"]}), nulls)
    counts = roberta_flax.inference.ray.predict_parquet(nulls, tmp_path / "something", **options)
    assert counts == {"rows": 2, "rejected": 1, "truncated": 0}


def test_what_cannot_be_done_is_one_line(source, tmp_path, tiny_directory, run):
    import roberta_flax.inference.ray

    options = {"model": tiny_directory, "task": Classify("mnli"), "text_columns": ["text"]}
    with pytest.raises(
        InputError, match="has no column 'text'; its columns are 'id', 'premise', 'hypothesis', 'padding'"
    ):
        roberta_flax.inference.ray.predict_parquet(source, tmp_path / "out", **options)
    with pytest.raises(
        InputError, match="has no column 'ids'; its columns are 'id', 'premise', 'hypothesis', 'padding'"
    ):
        roberta_flax.inference.ray.predict_parquet(
            source, tmp_path / "out", **{**options, "text_columns": ["premise"], "keep": ["ids"]}
        )
    with pytest.raises(
        InputError, match="Predictor has no option 'on_lng'; it has on_long, .*; did you mean 'on_long'"
    ):
        roberta_flax.inference.ray.predict_parquet(
            source, tmp_path / "out", **{**options, "text_columns": ["premise"], "on_lng": "error"}
        )
    with pytest.raises(InputError, match="exists already"):
        roberta_flax.inference.ray.predict_parquet(source, tmp_path, **options)
    for values, problem in ([], "has no rows"), ([1], "column 'premise' is int64, expected text"):
        column = pyarrow.array(values, "int64" if values else "string")
        pyarrow.parquet.write_table(pyarrow.table({"premise": column}), tmp_path / "in.parquet")
        with pytest.raises(InputError, match=problem):
            roberta_flax.inference.ray.predict_parquet(
                tmp_path / "in.parquet", tmp_path / "out", **{**options, "text_columns": ["premise"]}
            )
    arguments = ["predict", source, "-o", tmp_path / "out", "-m", tiny_directory, "--engine", "ray"]
    status, _, err = run(*arguments, "--tpus-per-worker", "3")
    assert (status, err) == (1, "roberta-flax: --tpus-per-worker must be 1, 2, 4 or 8, got 3\n")


@pytest.mark.usefixtures("without_cluster")
@pytest.mark.parametrize("is_disk", [True, False])
def test_a_full_disk_is_one_line_and_leaves_nothing(source, tmp_path, tiny_directory, monkeypatch, request, is_disk):
    """Where Ray raises it, and logs it as a bug. Another error of Ray's stays as it is."""
    import roberta_flax.inference.ray

    reason = ray.exceptions.OutOfDiskError("Local disk is full") if is_disk else ValueError("another")

    class Failing(OneBatch):
        @omit_traceback_stdout
        def write_parquet(self, path: str) -> None:
            super().write_parquet(path)
            error = ray.exceptions.RayTaskError("ReadFilesParquetV2", "the trace", reason).as_instanceof_cause()
            log.error("An exception was raised from a task", exc_info=error)  # as its executor does
            raise error

    log, console = logging.getLogger("ray.data.executor"), logging.StreamHandler(io.StringIO())
    logging.getLogger("ray.data").addHandler(console)
    request.addfinalizer(lambda: logging.getLogger("ray.data").removeHandler(console))
    monkeypatch.setattr(ray.data, "read_parquet", Failing)
    with pytest.raises((InputError, ray.exceptions.RayTaskError)) as error:
        roberta_flax.inference.ray.predict_parquet(
            source / "0.parquet",
            tmp_path / "out",
            model=tiny_directory,
            task=Classify("mnli"),
            text_columns=["premise"],
        )
    one_line = "Ray's object store is full, and so is the disk .* RAY_TMPDIR"
    assert bool(re.match(one_line, str(error.value))) == is_disk
    assert not list(tmp_path.iterdir())
    said = console.stream.getvalue()
    assert said == "" if is_disk else said.count("Traceback") == 1 and "from a task" in said


def test_the_command_line_runs_on_ray(source, tiny, tiny_directory, tmp_path):
    program = Path(sys.executable).parent / "roberta-flax"
    arguments = [
        "predict",
        source,
        "-o",
        tmp_path / "out",
        "--engine",
        "ray",
        "-m",
        tiny_directory,
        "--keep",
        "id",
        "--json",
    ]
    done = subprocess.run(
        [program, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=300, env=environment()
    )
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["rows"], summary["rejected"]) == (ROWS, ROWS // 100)
    assert_every_row_is_there_once(tmp_path / "out", tiny, source)
    for file in (tmp_path / "out").glob("*.parquet"):
        assert b"roberta_flax" in pyarrow.parquet.read_schema(file).metadata
    names = pyarrow.parquet.read_table(tmp_path / "out").column_names
    assert names == ["id", "label", "score", "log_probabilities", "rejected", "truncated"]


def test_what_a_worker_takes_of_a_cluster_decides_how_many_there_are():
    from roberta_flax.inference.ray import _environment, _workers

    cluster = {"CPU": 16.0, "GPU": 4.0, "TPU": 8.0}
    assert _workers(cluster, {"GPU": 0}) == 15
    assert _workers(cluster, {"GPU": 0.5}) == 8
    assert _workers(cluster, {"GPU": 0, "TPU": 4}) == 2
    assert _workers(cluster, {"GPU": 1, "TPU": 4}) == 2
    with pytest.raises(InputError, match="each worker takes 4 of TPU, and the cluster has 0; .* with workers"):
        _workers({"CPU": 16.0}, {"GPU": 0, "TPU": 4})
    assert _environment(1) == {}
    assert _environment(0.5) == {"env_vars": {"XLA_CLIENT_MEM_FRACTION": "0.375"}}


def test_a_batch_says_which_rows_were_truncated_and_keeps_columns_of_the_results_names(tiny_directory):
    import roberta_flax.inference.ray

    predict = roberta_flax.inference.ray.Predict(tiny_directory, Classify("mnli"), ["text"], max_length=16)
    batch = pyarrow.table({"text": ["a", None, "w " * 20], "label": ["x", "y", "z"], "truncated": [1, 2, 3]})
    output = predict(batch)
    assert output.column("truncated").to_pylist() == [False, False, True]
    assert output.column("input_label").to_pylist() == ["x", "y", "z"]
    assert output.column("input_truncated").to_pylist() == [1, 2, 3]
    assert [reason is None for reason in output.column("rejected").to_pylist()] == [True, False, True]
    assert predict(batch.slice(0, 0)).num_rows == 0
    settings = json.loads(output.schema.metadata[b"roberta_flax"])
    sha256 = hashlib.sha256((tiny_directory / "model.safetensors").read_bytes()).hexdigest()
    assert settings["model"]["sha256"]["model.safetensors"] == sha256
    assert settings["task"] == ["Classify", {"activation": None, "head": "mnli", "logits": False}]
