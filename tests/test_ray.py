"""A Ray cluster on this machine: Parquet in, Parquet out, each row once, also where a worker is killed."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import roberta_flax
from roberta_flax import Classify, InputError
from tests.conftest import skip_or_fail

try:
    import pyarrow
    import pyarrow.parquet
    import ray
except ImportError as error:
    skip_or_fail(f"Ray cannot be imported ({error}); the README's test command installs it")
    pytest.skip("no ray", allow_module_level=True)

pytestmark = pytest.mark.slow
ROWS, FILES = 1200, 4

DRIVER = """
import json, signal, sys, threading, time
from pathlib import Path
import psutil, ray
import roberta_flax.inference.ray
from roberta_flax import Classify

source, destination, model = sys.argv[1:]
ray.init(num_cpus=4, logging_level="error", log_to_driver=False, include_dashboard=False)
killed = []

def workers():
    for process in psutil.process_iter(["cmdline"]):
        if (process.info["cmdline"] or [""])[0].startswith("ray::MapWorker"):
            yield process

def kill_one():
    while not list(Path(destination).parent.glob(".out-*.partial/*.parquet")):
        time.sleep(0.02)  # until there are results to lose, and more to come
    worker = next(workers())
    worker.send_signal(signal.SIGKILL)
    killed.append(worker.pid)

threading.Thread(target=kill_one, daemon=True).start()
counts = roberta_flax.inference.ray.predict_parquet(
    source, destination, model=model, task=Classify("mnli"), text_columns=["premise", "hypothesis"], workers=2, rows_per_batch=25
)
print(json.dumps({**counts, "killed": len(killed)}))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory, sick_pairs) -> Path:
    folder = tmp_path_factory.mktemp("ray") / "texts"
    folder.mkdir()
    rows = [(i, *sick_pairs[i]) if i % 100 else (i, None, "x") for i in range(ROWS)]
    for number in range(FILES):
        some = rows[number * ROWS // FILES : (number + 1) * ROWS // FILES]
        columns = dict(zip(("id", "premise", "hypothesis"), map(list, zip(*some, strict=True)), strict=True))
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / f"{number}.parquet")
    return folder


def assert_every_row_is_there_once(output: Path, roberta: roberta_flax.Roberta, source: Path) -> None:
    texts = {row["id"]: row for row in pyarrow.parquet.read_table(source).to_pylist()}
    found = pyarrow.parquet.read_table(output).to_pylist()
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


def test_every_row_is_there_once_also_where_a_worker_is_killed(source, tiny, tiny_directory, tmp_path):
    arguments = [sys.executable, "-c", DRIVER, str(source), str(tmp_path / "out"), str(tiny_directory)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    counts = {"rows": ROWS, "rejected": ROWS // 100, "truncated": 0, "killed": 1}
    assert json.loads(done.stdout.splitlines()[-1]) == counts
    assert_every_row_is_there_once(tmp_path / "out", tiny, source)
    assert not list(tmp_path.glob(".*.partial"))


def test_what_cannot_be_done_is_one_line(source, tmp_path, tiny_directory):
    import roberta_flax.inference.ray

    options = {"model": tiny_directory, "task": Classify("mnli"), "text_columns": ["text"]}
    with pytest.raises(InputError, match="has no column 'text'; its columns are 'id', 'premise', 'hypothesis'"):
        roberta_flax.inference.ray.predict_parquet(source, tmp_path / "out", **options)
    with pytest.raises(InputError, match="has no column 'ids'; its columns are 'id', 'premise', 'hypothesis'"):
        roberta_flax.inference.ray.predict_parquet(
            source, tmp_path / "out", **{**options, "text_columns": ["premise"], "keep": ["ids"]}
        )
    with pytest.raises(InputError, match="exists already"):
        roberta_flax.inference.ray.predict_parquet(source, tmp_path, **options)


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
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["rows"], summary["rejected"]) == (ROWS, ROWS // 100)
    assert_every_row_is_there_once(tmp_path / "out", tiny, source)
    for file in (tmp_path / "out").glob("*.parquet"):
        assert b"roberta_flax" in pyarrow.parquet.read_schema(file).metadata
    names = pyarrow.parquet.read_table(tmp_path / "out").column_names
    assert names == ["id", "label", "score", "log_probabilities", "rejected", "truncated"]


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


def test_a_run_whose_rows_are_all_rejected_fails_and_writes_nothing(tiny_directory, tmp_path, request):
    import roberta_flax.inference.ray

    request.addfinalizer(ray.shutdown)
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([None, None], "string")}), tmp_path / "in.parquet")
    with pytest.raises(
        InputError, match="all 2 rows of .*in.parquet were rejected, so .* was not written; one of them"
    ):
        roberta_flax.inference.ray.predict_parquet(
            tmp_path / "in.parquet",
            tmp_path / "out",
            model=tiny_directory,
            task=Classify("mnli"),
            text_columns=["text"],
            workers=1,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["in.parquet"]
