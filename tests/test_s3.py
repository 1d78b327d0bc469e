"""The same at s3://, by s3fs and a server of S3's interface in this process."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import roberta_flax
from roberta_flax import CheckpointError, Embed, InputError, Predictor
from roberta_flax.datasets import tables
from roberta_flax.files import replacing
from roberta_flax.inference import jobs
from roberta_flax.remote import RemotePath, to_path


@pytest.fixture(scope="module")
def endpoint() -> Any:
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server")
    running = server.ThreadedMotoServer(port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def bucket(endpoint, monkeypatch) -> RemotePath:
    settings = {"ENDPOINT_URL": endpoint, "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret"}
    for name, value in {**settings, "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    path = to_path("s3://bucket")
    path._system.makedirs("bucket", exist_ok=True)
    for file in path.rglob("*"):
        file.unlink()
    return path


def test_jobs_and_models_are_written_to_s3_and_read_from_it(tiny, bucket):
    with replacing(bucket / "in.jsonl") as file:
        file.write(b"".join(json.dumps({"text": f"a dog and {i} cats"}).encode() + b"\n" for i in range(50)))
    tiny.save(bucket / "model")
    again = roberta_flax.load("s3://bucket/model")
    tokens = tiny.encode("a dog")
    assert np.array_equal(again.extract_features(tokens), tiny.extract_features(tokens))
    job = jobs.Job(bucket / "in.jsonl", bucket / "out.jsonl", ("text",), rows_per_part=16)
    assert jobs.run(job, Predictor(again, Embed("mean")))["joined"]
    assert len(list(tables.read_rows("s3://bucket/out.jsonl", ("features",)))) == 50
    assert sorted(path.name for path in bucket.iterdir()) == ["in.jsonl", "model", "out.jsonl"]
    (bucket / "model" / "conversion.json").unlink()
    with pytest.raises(CheckpointError, match="s3://bucket/model is not complete"):
        roberta_flax.load("s3://bucket/model")


def test_a_bucket_that_is_missing_is_one_line(bucket):
    with pytest.raises(InputError, match=r"^cannot read s3://nobucket/in.jsonl: The specified bucket does not exist$"):
        list(tables.read_rows("s3://nobucket/in.jsonl", ("text",)))
    with (
        pytest.raises(InputError, match=r"^cannot write s3://nobucket/out: The specified bucket does not exist$"),
        replacing(to_path("s3://nobucket/out")) as file,
    ):
        file.write(b"a")


def test_what_is_copied_within_s3_is_the_same(bucket, tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (bucket / "one").put(tmp_path / "file")
    (bucket / "one").copy_to(bucket / "a" / "other", tmp_path / "none")
    assert (bucket / "a" / "other").read_bytes() == b"content"
    (bucket / "a").remove_tree()
    assert not (bucket / "a").exists()
