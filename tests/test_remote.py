"""Files at URLs: inputs, outputs and models, of a store of objects, with what holds there and what errors say."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest

import roberta_flax
from roberta_flax import CheckpointError, Embed, InputError, Predictor
from roberta_flax.convert import convert, export, verify
from roberta_flax.datasets import tables
from roberta_flax.files import Contents, new_directory, replacing
from roberta_flax.inference import jobs
from roberta_flax.remote import RemotePath, is_url, read_all, to_path
from roberta_flax.train import corpus
from tests import processes
from tests.stores import DirectoryStore


@pytest.fixture
def store(tmp_path, monkeypatch) -> RemotePath:
    """The URL of a directory; its files are those of `tmp_path / "store"`."""
    monkeypatch.setattr(DirectoryStore, "writes_left", None)
    return to_path(f"dirstore://{tmp_path}/store")


@pytest.fixture
def memory() -> RemotePath:
    """A directory of fsspec's own file system in memory."""
    fsspec.filesystem("memory").rm("/", recursive=True)
    return to_path("memory://bucket")


def texts(count: int, start: int = 0) -> bytes:
    return b"".join(json.dumps({"text": f"a dog and {i} cats"}).encode() + b"\n" for i in range(start, count))


def written(path: RemotePath, content: bytes) -> RemotePath:
    with replacing(path) as file:
        file.write(content)
    return path


# names


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("gs://bucket/a/b.jsonl", True),
        ("memory://a", True),
        (Path("memory://a/b"), True),  # which pathlib writes with one slash
        ("file:///tmp/a", False),
        ("a/b", False),
        ("C:/texts.csv", False),
        ("hf:org/name", False),
        ("a text: with a colon", False),
        ("see https://example.com", False),
    ],
)
def test_a_url_is_told_from_a_path_and_a_text(given, expected):
    assert is_url(given) is expected


def test_a_path_at_a_url_has_the_names_of_pathlib():
    path = to_path(Path("memory://bucket/run/part.tar.gz"))
    assert str(path) == "memory://bucket/run/part.tar.gz"
    assert (path.name, path.stem, path.suffix, path.parent.name) == ("part.tar.gz", "part.tar", ".gz", "run")
    assert path.parent / "other" == path.with_name("other")
    assert to_path("file:///tmp/a b") == Path("/tmp/a b")
    with pytest.raises(InputError, match="memory://bucket/run/part.tar.gz is not a file on this machine"):
        os.fspath(path)


def test_the_files_below_a_directory_are_listed_as_pathlib_does(store):
    for name in ("b.txt", "a/c.txt", "a/d.json", "a/e/f.txt"):
        written(store / name, name.encode())
    local = Path(f"/{store._key}")
    for pattern in ("*.txt", "*/*.txt", "*/**/*.txt"):
        found = {path.relative_to(store).as_posix() for path in store.glob(pattern)}
        assert found == {path.relative_to(local).as_posix() for path in local.glob(pattern)}, pattern
    assert [path.name for path in store.iterdir()] == ["a", "b.txt"]
    assert [path.relative_to(store).as_posix() for path in store.rglob("*.txt")] == ["a/c.txt", "a/e/f.txt", "b.txt"]
    assert read_all([store / "b.txt", store / "a/d.json"]) == [b"b.txt", b"a/d.json"]
    assert ((store / "a").is_dir(), (store / "a").is_file(), (store / "none").exists()) == (True, False, False)


def test_a_file_is_read_by_ranges_wherever_one_seeks(store):
    content = np.random.default_rng(0).bytes(3_000_000)
    with written(store / "f", content).open() as file:
        assert file.read(10) == content[:10]
        assert (file.seek(-5, os.SEEK_END), file.read()) == (len(content) - 5, content[-5:])
        file.seek(1_000_000)
        assert file.read(2_000_000) == content[1_000_000:]


# errors


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nothing://bucket/a", r"nothing:// is no scheme that fsspec knows; expected gs://, s3://, hf:// or memory://"),
        ("absent://bucket/a", r"a file at absent:// needs another package \(install absent\)"),
        ("memory://", r"memory:// names no file; expected .* and a name"),
    ],
)
def test_a_url_that_cannot_be_opened_is_one_line_before_anything_else_is_done(url, message, run):
    fsspec.register_implementation("absent", "no_such_module.FileSystem", errtxt="install absent", clobber=True)
    with pytest.raises(InputError, match=message):
        to_path(url)
    status, _, err = run("predict", url, "-o", "out.jsonl", "-m", "no-model")
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith(f"roberta-flax: {url.partition(':')[0]}") or "needs another package" in err


def test_a_missing_package_names_the_extra_that_installs_it(monkeypatch):
    def not_installed(scheme):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(fsspec, "get_filesystem_class", not_installed)
    with pytest.raises(
        InputError, match=r"a file at gs:// needs .*; install it with: pip install 'roberta-flax\[gs\]'"
    ):
        to_path("gs://bucket/a")


class Refusing(fsspec.AbstractFileSystem):
    """Answers as the clients of stores do, with errors that no other library knows."""

    protocol = "refusing"

    class ClientError(Exception):
        pass

    def find(self, path, **_):
        return self.info(path)

    def info(self, path, **_):
        if "secret" in path:
            raise PermissionError("Access Denied")
        if "bucket" not in path:
            raise FileNotFoundError("The specified bucket does not exist")
        raise self.ClientError("Unable to locate\ncredentials")


def test_what_a_store_answers_is_one_line_with_the_url(run):
    fsspec.register_implementation("refusing", Refusing, clobber=True)
    for url, reason in (
        ("refusing://bucket/secret.jsonl", "Access Denied"),
        ("refusing://none/texts.jsonl", "The specified bucket does not exist"),
        ("refusing://bucket/texts.jsonl", "Unable to locate credentials"),
    ):
        with pytest.raises(InputError) as error:
            list(tables.read_rows(url, ("text",)))
        assert str(error.value) == f"cannot read {url}: {reason}"
        with pytest.raises(CheckpointError) as refused:
            roberta_flax.load(url)
        assert str(refused.value) == f"cannot read {url}: {reason}"


# inputs


@pytest.mark.parametrize("name", ["in.jsonl", "in.csv", "in.tsv", "in.txt", "in.jsonl.gz", "in.parquet", "parts"])
def test_rows_of_a_file_at_a_url_are_those_of_the_same_file_here(store, tmp_path, name):
    local = tmp_path / name
    if name.endswith(("parquet", "parts")):
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet

        local = local if name.endswith("parquet") else local / "one.parquet"
        local.parent.mkdir(exist_ok=True)
        pyarrow.parquet.write_table(pa.table({"text": [f"a {i}" for i in range(5000)]}), local, row_group_size=500)
        local = tmp_path / name
    elif name.endswith("gz"):
        local.write_bytes(gzip.compress(texts(5000)))
    else:
        local.write_bytes(texts(5000) if name.endswith("jsonl") else b"text\n" + b"a dog\n" * 5000)
    for file in [local] if local.is_file() else local.iterdir():
        (store / file.relative_to(tmp_path).as_posix()).put(file)
    url = store / name
    assert tables.usual_columns(str(url)) == tables.usual_columns(local)
    expected = list(tables.read_rows(local, ("text",)))
    assert list(tables.read_rows(str(url), ("text",))) == expected
    assert list(tables.read_rows(url, ("text",), start=4321)) == expected[4321:]
    here, there = (Contents.of("it", tables.input_files(path)) for path in (local, url))
    assert here == there


# jobs over files


def job(store: RemotePath, **options) -> jobs.Job:
    options = {"rows_per_part": 16, **options}
    return jobs.Job(store / "in.jsonl", store / "out.jsonl", ("text",), **options)


def test_a_job_writes_to_a_url_the_bytes_that_it_writes_here_and_nothing_else(tiny, store, tmp_path):
    written(store / "in.jsonl", texts(50) + b"no JSON\n")
    predictor = Predictor(tiny, Embed("mean"))
    summary = jobs.run(job(store), predictor)
    assert (summary["output"], summary["rows"], summary["rejected"]) == (f"{store}/out.jsonl", 51, 1)
    (tmp_path / "here.jsonl").write_bytes((store / "in.jsonl").read_bytes())
    here = jobs.Job(tmp_path / "here.jsonl", tmp_path / "out.jsonl", ("text",), rows_per_part=16)
    jobs.run(here, predictor)
    assert (store / "out.jsonl").read_bytes() == here.output.read_bytes()
    assert (store / "out.jsonl.rejects.jsonl").read_bytes() == here.rejects.read_bytes()
    assert [path.name for path in store.iterdir()] == ["in.jsonl", "out.jsonl", "out.jsonl.rejects.jsonl"]
    with pytest.raises(InputError, match=r"dirstore://.*/out.jsonl exists already"):
        jobs.run(job(store), predictor)


def test_a_job_is_whole_or_absent_whenever_the_store_fails_and_resumes(tiny, store, monkeypatch):
    """After each number of writes, of which a run of three parts has some fifteen."""
    written(store / "in.jsonl", texts(40) + b"no JSON\n")
    predictor = Predictor(tiny, Embed("mean"))
    jobs.run(job(store), predictor)
    expected = (store / "out.jsonl").read_bytes()
    for writes in range(100):
        (store / "out.jsonl").unlink()
        (store / "out.jsonl.rejects.jsonl").unlink()
        monkeypatch.setattr(DirectoryStore, "writes_left", writes)
        failed = False
        try:
            jobs.run(job(store), predictor)
        except InputError as error:
            failed = True
            assert "the store is gone" in str(error)  # noqa: PT017
        monkeypatch.setattr(DirectoryStore, "writes_left", None)
        if (store / "out.jsonl").exists():
            assert (store / "out.jsonl").read_bytes() == expected
        if failed and (job(store).parts / "job.json").is_file():
            done = len(list(job(store).parts.glob("*.part")))
            assert jobs.run(job(store), predictor)["this_run"]["parts_resumed"] == done
        elif failed and not (store / "out.jsonl").exists():
            jobs.run(job(store), predictor)
        assert (store / "out.jsonl").read_bytes() == expected
        job(store).parts.remove_tree()
        if not failed:
            break
    assert 10 < writes < 40


def test_processes_share_a_job_at_a_url_and_the_last_joins_it(tiny, memory):
    written(memory / "in.jsonl", texts(100))
    predictor = Predictor(tiny, Embed("mean"))
    shares = [jobs.run(job(memory, share=(i, 3)), predictor) for i in (1, 0, 2)]
    assert [(share["joined"], share["rows"]) for share in shares] == [(False, 32), (False, 68), (True, 100)]
    rows = (memory / "out.jsonl").read_bytes().splitlines()
    assert [json.loads(row)["row"] for row in rows] == list(range(100))


def test_a_run_stops_when_another_has_begun_anew_at_its_url(tiny, memory):
    written(memory / "in.jsonl", texts(100))
    predictor = Predictor(tiny, Embed("mean"))
    other = job(memory, rows_per_part=20)

    def begin_another(rows, predictor):
        written(job(memory).parts / "job.json", b"{}")

    with pytest.raises(InputError, match="out.jsonl.parts is no longer that of this run: another one has begun"):
        jobs.run(job(memory), predictor, begin_another)
    assert jobs.run(other, predictor)["rows"] == 100


def test_an_input_at_a_url_that_changes_during_a_run_does_not_get_into_a_part(tiny, store):
    written(store / "in.jsonl", texts(100))

    def change(rows, predictor):
        written(store / "in.jsonl", texts(101, 1))

    with pytest.raises(InputError, match="the input changed while it was read"):
        jobs.run(job(store), Predictor(tiny, Embed("mean")), change)
    assert not list(job(store).parts.glob("*.part"))


def test_the_command_line_takes_urls_for_input_output_and_model(run, tiny, memory):
    tiny.save(memory / "model")
    written(memory / "in.jsonl", texts(20))
    status, out, err = run("features", memory / "in.jsonl", "-o", memory / "out.npy", "-m", memory / "model")
    assert (status, out.startswith("memory://bucket/out.npy: 20 rows, 0 rejected")) == (0, True), err
    with (memory / "out.npy").open() as file:
        assert np.load(file).shape == (20, 64)
    status, out, err = run("evaluate", memory / "none.tsv", "-m", memory / "model", "--task", "rte")
    assert (status, "memory://bucket/none.tsv" in err, err.count("\n")) == (1, True, 1)


def test_token_ids_are_written_to_a_url_and_mapped_from_a_copy(tiny, store, tmp_path):
    written(store / "a.txt", b"a dog\n\na cat\n")
    (tmp_path / "a.txt").write_bytes((store / "a.txt").read_bytes())
    corpus.write([store / "a.txt"], store / "a.bin", tiny.tokenizer)
    corpus.write([tmp_path / "a.txt"], tmp_path / "a.bin", tiny.tokenizer)
    here, there = corpus.Corpus(tmp_path / "a.bin"), corpus.Corpus(str(store / "a.bin"))
    assert (here.header, here.tokens.tolist()) == (there.header, there.tokens.tolist())
    corpus.write([tmp_path / "a.txt", store / "a.txt"], store / "a.bin", tiny.tokenizer)
    assert corpus.Corpus(store / "a.bin").header.lines == 7  # not those of the copy of before
    with pytest.raises(InputError, match="cannot read .*/none.bin: No such file"):
        corpus.Corpus(store / "none.bin")


@pytest.mark.slow
def test_a_run_at_a_url_that_is_killed_at_any_moment_ends_with_the_same_bytes(forked, store, tmp_path, tiny_directory):
    """SIGKILL of processes that have nothing but the store in common."""
    written(store / "in.jsonl", texts(3000))
    command = ["features", str(store / "in.jsonl"), "-m", str(tiny_directory), "--rows-per-part", "100"]
    command += ["--cache-dir", str(tmp_path / "cache")]

    def start(output: RemotePath):
        process = forked.Process(target=processes.command_line, args=[*command, "-o", str(output)])
        process.start()
        return process

    whole = start(store / "whole.jsonl")
    whole.join(300)
    assert whole.exitcode == 0
    output, parts, random, kills = (
        store / "out.jsonl",
        tmp_path / "store" / "out.jsonl.parts",
        np.random.default_rng(0),
        0,
    )
    while not output.exists():
        assert kills < 60, "it does not come to an end"
        seen, process = len(list(parts.glob("*.part"))), start(output)
        while process.is_alive() and len(list(parts.glob("*.part"))) <= seen:
            time.sleep(0.005)
        time.sleep(float(random.uniform(0, 0.2)))
        if process.is_alive():
            process.kill()
            kills += 1
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
    assert kills >= 3
    assert output.read_bytes() == (store / "whole.jsonl").read_bytes()


def predict_on_ray(url: RemotePath, model: Path) -> None:
    roberta_flax.ray.predict_parquet(str(url), "there", model=model, task=Embed(), text_columns=())


@pytest.mark.parametrize(
    "use",
    [
        lambda url, model: roberta_flax.stablehlo.load(str(url)),
        predict_on_ray,
        lambda url, model: roberta_flax.load(model, bpe_dir=url),
        lambda url, model: url.rename("other"),
        lambda url, model: url.open("w"),
    ],
    ids=["stablehlo", "ray", "bpe_dir", "rename", "open"],
)
def test_what_needs_a_file_of_this_machine_says_so(use, memory, tiny_directory, tmp_path, monkeypatch):
    if use is predict_on_ray:
        pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="memory://bucket is not a file on this machine, which is needed here"):
        use(memory, tiny_directory)
    assert not list(tmp_path.iterdir())


# models


def test_a_model_is_saved_and_loaded_at_a_url_bit_for_bit(tiny, store, tmp_path):
    tiny.save(store / "model")
    again = roberta_flax.load(str(store / "model"))
    tokens = tiny.encode("a dog")
    assert np.array_equal(again.extract_features(tokens), tiny.extract_features(tokens))
    with pytest.raises(CheckpointError, match=r"dirstore://.*/model exists already"):
        tiny.save(store / "model")
    export(store / "model", store / "exported", to="huggingface", heads=["mnli"])
    convert(store / "exported", store / "converted")
    assert not verify(store / "converted").problems
    assert not verify(store / "converted", store / "exported").problems
    assert roberta_flax.load(store / "converted").config.num_layers == tiny.config.num_layers


def test_a_model_at_a_url_whose_writing_was_interrupted_is_not_loaded(tiny, store, monkeypatch):
    monkeypatch.setattr(DirectoryStore, "writes_left", 5)
    with pytest.raises(CheckpointError, match="cannot write .*: the store is gone"):
        tiny.save(store / "model")
    monkeypatch.setattr(DirectoryStore, "writes_left", None)
    with pytest.raises(
        CheckpointError, match=r"/model is not complete: conversion.json, which is written last, is mis"
    ):
        roberta_flax.load(store / "model")


def test_a_model_is_copied_once_for_each_content_and_without_what_it_does_not_need(tiny, store, tmp_path, monkeypatch):
    monkeypatch.setenv("ROBERTA_FLAX_CACHE", str(tmp_path / "cache"))
    tiny.save(tmp_path / "model")
    export(tmp_path / "model", tmp_path / "hf", to="huggingface", heads=["mnli"])
    (store / "hf").put_tree(tmp_path / "hf")
    for name in ("pytorch_model.bin", "optimizer.pt", "checkpoint-5/model.safetensors", "onnx/model.onnx"):
        written(store / "hf" / name, b"of no use")
    roberta_flax.load(store / "hf")
    copies = list((tmp_path / "cache" / "remote").glob("*/hf"))
    assert sorted(path.name for path in copies[0].rglob("*")) == sorted(
        path.name for path in (tmp_path / "hf").iterdir()
    )

    monkeypatch.setattr(RemotePath, "get", None)  # nothing is copied again
    roberta_flax.load(store / "hf")
    monkeypatch.undo()
    monkeypatch.setenv("ROBERTA_FLAX_CACHE", str(tmp_path / "cache"))
    (store / "hf" / "model.safetensors").put(tmp_path / "hf" / "model.safetensors")
    roberta_flax.load(store / "hf")
    assert len(list((tmp_path / "cache" / "remote").glob("*/hf"))) == 2


@pytest.mark.parametrize("what", ["directory", "checkpoint", "archive"])
def test_a_fairseq_model_at_a_url_is_converted_as_the_same_one_here(tiny, tiny_source, store, tmp_path, what):
    name = "roberta.random"
    if what == "archive":
        shutil.make_archive(str(tmp_path / name), "gztar", tiny_source.parent, tiny_source.name)
        (store / f"{name}.tar.gz").put(tmp_path / f"{name}.tar.gz")
    else:
        (store / name).put_tree(tiny_source)
    url = {"archive": store / f"{name}.tar.gz", "directory": store / name, "checkpoint": store / name / "model.pt"}[
        what
    ]
    found = roberta_flax.load(url)
    tokens = tiny.encode("a dog")
    assert np.array_equal(found.extract_features(tokens), tiny.extract_features(tokens))


def test_an_error_of_a_copied_model_names_the_url(store):
    for name, content in {"config.json": b"{}", "model.safetensors": b"x" * 20, "conversion.json": b"{}"}.items():
        written(store / "model" / name, content)
    with pytest.raises(CheckpointError) as error:
        roberta_flax.load(store / "model")
    assert str(error.value).startswith(f"{store}/model")


def test_a_repository_at_hf_is_the_one_that_hf_names(monkeypatch):
    from roberta_flax.convert import remote_models

    assert remote_models.hub_name("hf://org/name") == "hf:org/name"
    assert remote_models.hub_name("hf://org/name@main") == "hf:org/name@main"
    assert remote_models.hub_name("hf://datasets/org/name") is None
    assert remote_models.hub_name("hf://org/name/sub") is None


def test_a_new_directory_at_a_url_has_its_manifest_last(store, monkeypatch):
    order = []
    monkeypatch.setattr(RemotePath, "put", lambda self, file: order.append(self.name))
    with new_directory(store / "new") as folder:
        for name in ("conversion.json", "a", "z"):
            (folder / name).write_text(name)
    assert order == ["a", "z", "conversion.json"]
