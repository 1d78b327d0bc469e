"""Runs over files: in order, nothing lost, resumed with the same bytes, and what they say of bad rows and full disks."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import roberta_flax
from roberta_flax import Choose, Classify, Embed, FillMask, HeadConfig, InputError, Predictor
from roberta_flax.files import Contents
from roberta_flax.inference import jobs
from tests import processes
from tests.params import random_params

TOLERANCE = 5e-5
PROGRAM = Path(sys.executable).parent / "roberta-flax"


def write_rows(path: Path, rows: list) -> Path:
    path.write_bytes(b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows))
    return path


@pytest.fixture
def pairs(tmp_path, sick_pairs) -> Path:
    """300 pairs of SICK, with a number that is kept."""
    rows = [{"id": f"x{i}", "premise": a, "hypothesis": b} for i, (a, b) in enumerate(sick_pairs[:300])]
    return write_rows(tmp_path / "pairs.jsonl", rows)


def run(roberta, task, source: Path, output: Path, texts=("premise", "hypothesis"), **options) -> dict:
    options = {"rows_per_part": 64, **options}
    return jobs.run(jobs.Job(source, output, texts, **options), Predictor(roberta, task))


@pytest.fixture
def command_line(request):
    """conftest's `run`."""
    return request.getfixturevalue("run")


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "parquet"])
def test_predictions_are_those_of_each_row_and_in_order(shallow, pairs, tmp_path, suffix):
    output = tmp_path / f"out.{suffix}"
    summary = run(shallow, Classify("mnli"), pairs, output, keep=("id",))
    assert (summary["rows"], summary["rejected"], summary["joined"], summary["rejects"]) == (300, 0, True, None)
    if suffix == "jsonl":
        found = records(output)
    elif suffix == "parquet":
        pytest.importorskip("pyarrow")
        import pyarrow.parquet

        found = pyarrow.parquet.read_table(output).to_pylist()
    else:
        with output.open(newline="") as file:
            found = list(csv.DictReader(file, delimiter="\t" if suffix == "tsv" else ","))
        found = [
            {
                **row,
                "row": int(row["row"]),
                "score": float(row["score"]),
                "log_probabilities": json.loads(row["log_probabilities"]),
            }
            for row in found
        ]
    assert [row["row"] for row in found] == list(range(300))
    for row, given in zip(found, records(pairs), strict=True):
        assert row["id"] == given["id"]
        if row["row"] % 29 == 0:
            expected = np.asarray(shallow.predict("mnli", shallow.encode(given["premise"], given["hypothesis"])))[0]
            assert tuple(row["log_probabilities"]) == ("contradiction", "neutral", "entailment")
            assert np.abs(np.array(list(row["log_probabilities"].values())) - expected).max() <= TOLERANCE
            assert row["label"] == shallow.config.head("mnli").label_names[expected.argmax()]
            assert row["score"] == pytest.approx(np.exp(expected.max()), abs=TOLERANCE)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["pairs.jsonl", output.name])


def test_features_are_a_memory_map_in_which_a_bad_row_is_nan(shallow, tmp_path):
    source = write_rows(
        tmp_path / "in.jsonl", [{"text": "a dog"}, {"text": None}, {"text": ""}, b"\n", {"text": "x " * 20}]
    )
    summary = run(shallow, Embed("mean"), source, tmp_path / "f.npy", ("text",), rows_per_part=2)
    features = np.load(tmp_path / "f.npy", mmap_mode="r")
    assert (features.shape, features.dtype, summary["rejected"]) == ((4, 64), np.float32, 1)
    assert np.isnan(features).all(axis=1).tolist() == [False, True, False, False]
    expected = np.asarray(shallow.extract_features(shallow.encode("a dog")))[0].mean(axis=0)
    assert np.abs(features[0] - expected).max() <= TOLERANCE
    with pytest.raises(InputError, match="a .npy file holds one vector per row"):
        run(shallow, Embed("tokens"), source, tmp_path / "g.npy", ("text",))


def test_token_features_and_filled_masks_are_written(shallow, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    source = write_rows(tmp_path / "in.jsonl", [{"text": "a dog"}, {"text": "b"}, {"text": "a <mask> b"}])
    run(shallow, Embed("tokens"), source, tmp_path / "t.parquet", ("text",))
    tokens = parquet.read_table(tmp_path / "t.parquet").to_pylist()
    expected = np.asarray(shallow.extract_features(shallow.encode("a dog")))[0]
    assert np.abs(np.array(tokens[0]["features"], np.float32) - expected).max() <= TOLERANCE
    summary = run(shallow, FillMask(3), source, tmp_path / "m.jsonl", ("text",))
    (filled,) = records(tmp_path / "m.jsonl")
    expected = shallow.fill_mask("a <mask> b", topk=3)
    assert filled["row"] == 2
    assert filled["texts"] == [text for text, _, _ in expected]
    assert filled["probabilities"] == pytest.approx([p for _, p, _ in expected], abs=TOLERANCE)
    assert summary["rejected"] == 2
    assert "exactly one <mask>" in records(tmp_path / "m.jsonl.rejects.jsonl")[0]["reason"]


BAD_ROWS = [
    {"premise": "a", "hypothesis": 5}, {"premise": "a"}, {"premise": None, "hypothesis": "b"}, b'{"premise": "\xff", "hypothesis": "b"}\n',
    b"not json\n", b'{"premise": "\\ud800", "hypothesis": "b"}\n', {"premise": "w " * 600, "hypothesis": "b"}, [1],
]  # fmt: skip


def test_bad_rows_go_to_a_file_with_line_and_reason_and_do_not_stop_a_run(shallow, tmp_path):
    good = {"premise": "a", "hypothesis": "b"}
    rows = [row for bad in BAD_ROWS for row in (good, bad)]
    source = write_rows(tmp_path / "in.jsonl", rows)
    job = jobs.Job(source, tmp_path / "out.jsonl", ("premise", "hypothesis"), rows_per_part=3)
    summary = jobs.run(job, Predictor(shallow, Classify("mnli"), on_long="error"))
    assert (summary["rows"], summary["rejected"]) == (16, 8)
    assert [row["row"] for row in records(tmp_path / "out.jsonl")] == list(range(0, 16, 2))
    rejects = records(Path(summary["rejects"]))
    assert [(row["row"], row["line"]) for row in rejects] == [(i, i + 1) for i in range(1, 16, 2)]
    for reject, word in zip(
        rejects, ["5", "missing", "null", "UTF-8", "JSON", "surrogate", "tokens, over", ""], strict=True
    ):
        assert word in reject["reason"]
    with pytest.raises(InputError, match=r"in.jsonl, line 2: column 'hypothesis'.*5.*because strict is set"):
        run(shallow, Classify("mnli"), source, tmp_path / "strict.jsonl", rows_per_part=3, strict=True)


@pytest.mark.slow
def test_texts_that_are_too_long_are_shortened_and_counted(shallow, tmp_path):
    source = write_rows(tmp_path / "in.jsonl", [{"text": "w " * n} for n in (5, 600, 7, 700)])
    for options in ({}, {"on_long": "truncate"}, {"on_long": "window"}):
        for task in (Classify("mnli"), Embed("mean")):
            output = tmp_path / f"{options.get('on_long')}-{type(task).__name__}.jsonl"
            job = jobs.Job(source, output, ("text",), rows_per_part=1)
            summary = jobs.run(job, Predictor(shallow, task, **options))
            assert (summary["rows"], summary["rejected"], summary["truncated"]) == (4, 0, 2)
    assert (tmp_path / "None-Embed.jsonl").read_bytes() == (tmp_path / "truncate-Embed.jsonl").read_bytes()


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_nothing_in_is_a_valid_file_with_nothing_in_it(shallow, tmp_path, content):
    (tmp_path / "in.jsonl").write_bytes(content)
    assert run(shallow, Classify("mnli"), tmp_path / "in.jsonl", tmp_path / "out.csv", ("text",))["rows"] == 0
    assert (tmp_path / "out.csv").read_text() == "row,label,score,log_probabilities\n"
    run(shallow, Embed("mean"), tmp_path / "in.jsonl", tmp_path / "out.npy", ("text",))
    assert np.load(tmp_path / "out.npy").shape == (0, 64)


@pytest.mark.parametrize("framing", ["choice", "commonsenseqa"])
def test_the_choice_of_a_row_is_the_one_that_the_model_predicts(shallow, tmp_path, framing):
    head = HeadConfig("best", 1, 64, "choice")
    config = dataclasses.replace(shallow.config, heads=(head,))
    heads = random_params(config)["heads"]
    roberta = roberta_flax.Roberta(config, {**shallow.params, "heads": heads}, shallow.tokenizer)
    rows = [
        {"q": "a man", "a": "is playing", "b": "sleeps."},
        {"q": "x", "a": "y " * 12, "b": ""},
        {"q": "x", "a": "y"},
    ]
    source = write_rows(tmp_path / "in.jsonl", rows)
    summary = run(roberta, Choose(framing=framing), source, tmp_path / "out.jsonl", ("q", "a", "b"))
    assert (summary["rows"], summary["rejected"]) == (3, 1)
    for row, found in zip(rows, records(tmp_path / "out.jsonl"), strict=False):
        marks = ("Q: ", "A: ") if framing == "commonsenseqa" else ("", "")
        pairs = [(marks[0] + row["q"], marks[1] + row[choice]) for choice in "ab"]
        ids = [roberta.encode(*pair, no_separator=framing == "commonsenseqa") for pair in pairs]
        expected = np.asarray(roberta.predict("best", roberta_flax.collate_tokens(ids)))[0]
        assert found["log_probabilities"] == pytest.approx(expected.tolist(), abs=TOLERANCE)
        assert found["choice"] == expected.argmax()
        assert found["score"] == pytest.approx(np.exp(expected.max()), abs=TOLERANCE)
    with pytest.raises(InputError, match="the framing choice takes a text, and at least two choices"):
        Predictor(roberta, Choose(framing="choice")).result(["x", "y"])
    with pytest.raises(InputError, match="framing must be one of"):
        Predictor(roberta, Choose(framing="swag"))


HEADS = [
    HeadConfig("one", 3, 64, labels=("A", "B", "C")),
    HeadConfig("several", 4, 64, problem="multi_label"),
    HeadConfig("tags", 3, 0, "token", labels=("A", "B", "C")),
    HeadConfig("several_tags", 3, 0, "token", problem="multi_label"),
]


@pytest.fixture(scope="module")
def of_heads(one_layer) -> roberta_flax.Roberta:
    """The random model with these heads."""
    shallow = roberta_flax.load(one_layer)
    config = dataclasses.replace(shallow.config, heads=tuple(HEADS))
    heads = random_params(config)["heads"]
    return roberta_flax.Roberta(config, {**shallow.params, "heads": heads}, shallow.tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.name)
@pytest.mark.parametrize("logits", [False, True])
def test_labels_in_a_file_are_those_that_the_model_gives_one_text(of_heads, tmp_path, head, logits):
    roberta = of_heads
    texts = ["a dog", "Nobody sleeps.", "x y z"]
    source = write_rows(tmp_path / "in.jsonl", [{"text": text} for text in texts])
    run(roberta, Classify(head.name, logits), source, tmp_path / "out.jsonl", ("text",))
    name = "label" if head.name == "one" else "labels"
    for text, found in zip(texts, records(tmp_path / "out.jsonl"), strict=True):
        assert [found[name]] == roberta.predict_labels(head.name, roberta.encode(text))


# going on


def test_a_run_that_stopped_goes_on_and_only_with_the_same_question(shallow, pairs, tmp_path):
    whole = tmp_path / "whole.jsonl"
    run(shallow, Classify("mnli"), pairs, whole, keep=("id",))

    class StoppedError(Exception):
        pass

    output = tmp_path / "out.jsonl"

    def stop(*_) -> None:
        if len(list(tmp_path.glob("out.jsonl.parts/*.part"))) == 2:
            raise StoppedError

    job = jobs.Job(pairs, output, ("premise", "hypothesis"), ("id",), rows_per_part=64)
    with pytest.raises(StoppedError):
        jobs.run(job, Predictor(shallow, Classify("mnli")), stop)
    assert not output.exists()
    for change, message in (
        ({"rows_per_part": 32}, "rows_per_part was 64 and is 32"), ({"keep": ()}, r"keep was \['id'\] and is \[\]"),
        ({"keep": ("id",), "model": Contents("another", {"a": "0"})}, "the model is another"),
    ):  # fmt: skip
        with pytest.raises(
            InputError, match=f"has parts of a different job .*{message}.*; remove that directory to start over"
        ):
            run(shallow, Classify("mnli"), pairs, output, **{"keep": ("id",), **change})
    with pytest.raises(InputError, match="max_length was 512 and is 64"):
        jobs.run(job, Predictor(shallow, Classify("mnli"), max_length=64))
    summary = run(shallow, Classify("mnli"), pairs, output, keep=("id",))
    assert summary["this_run"]["parts_resumed"] == 2
    assert summary["this_run"]["texts"] == 300 - 128
    assert summary["rows"] == 300
    assert output.read_bytes() == whole.read_bytes()
    with pytest.raises(InputError, match="out.jsonl exists already; remove it or choose another name"):
        run(shallow, Classify("mnli"), pairs, output, keep=("id",))


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "npy"])
def test_a_run_that_is_killed_at_any_moment_goes_on_and_ends_with_the_same_bytes(
    suffix, forked, tmp_path, one_layer, sick_pairs
):
    """SIGKILL, at least twenty times in all three formats, from the start of the program to the joining of parts."""
    texts = [first.split()[1] for first, _ in sick_pairs[:1500]]  # of few lengths: few programs to compile
    source = write_rows(
        tmp_path / "in.jsonl", [{"text": text} if i % 50 else {"text": None} for i, text in enumerate(texts)]
    )
    command = [
        "features",
        "-i",
        source,
        "-m",
        one_layer,
        "--rows-per-part",
        100,
        "--cache-dir",
        tmp_path / "cache",
        "--json",
    ]

    def start(output: Path):
        process = forked.Process(target=processes.command_line, args=[*map(str, command), "-o", str(output)])
        process.start()
        return process

    expected, output = tmp_path / f"whole.{suffix}", tmp_path / f"out.{suffix}"
    whole = start(expected)
    whole.join(300)
    assert whole.exitcode == 0
    random = np.random.default_rng(0)
    kills = 0
    parts = output.with_name(output.name + ".parts")
    while not output.exists():
        assert kills < 60, "it does not come to an end"
        process = start(output)
        seen = len(list(parts.glob("*.part")))
        deadline = time.monotonic() + 60
        while process.is_alive() and time.monotonic() < deadline and len(list(parts.glob("*.part"))) <= seen:
            time.sleep(0.005)  # until it has begun to write
        time.sleep(float(random.uniform(0, 0.01)))  # as long as a part takes
        if process.is_alive():
            process.kill()
            kills += 1
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
    assert kills >= 7
    assert output.read_bytes() == expected.read_bytes()
    rejects = [path.with_name(path.name + ".rejects.jsonl") for path in (output, expected)]
    assert rejects[0].read_bytes() == rejects[1].read_bytes()
    shutil.rmtree(parts, ignore_errors=True)


@pytest.mark.slow
def test_ten_thousand_texts_have_the_same_bits_in_any_order_file_and_run(shallow, forked, tmp_path, one_layer):
    """In fixed batches: shuffled, in a run that is killed, in files that are cut elsewhere, and alone."""
    random = np.random.default_rng(0)
    lengths = np.clip(np.exp(random.normal(np.log(8), 1.0, 10_000)), 1, 60).astype(int)
    texts = [" ".join(random.choice(["a", "dog", "runs", "home"], length)) for length in lengths]
    order = random.permutation(len(texts))
    predictor = Predictor(shallow, Embed("mean"), strategy="fixed")

    def features(name: str, rows, rows_per_part: int) -> np.ndarray:
        source = write_rows(tmp_path / f"{name}.jsonl", [{"text": texts[i]} for i in rows])
        output = tmp_path / f"{name}.npy"
        jobs.run(jobs.Job(source, output, ("text",), rows_per_part=rows_per_part), predictor)
        return np.load(output)

    expected = features("whole", range(len(texts)), 8192)
    cut = [features(f"cut-{n}", rows, 3000) for n, rows in enumerate(np.split(order, [17, 4500, 9999]))]
    np.testing.assert_array_equal(np.concatenate(cut), expected[order])

    output = tmp_path / "killed.npy"
    arguments = ["features", tmp_path / "whole.jsonl", "-o", output, "-m", one_layer, "--strategy", "fixed"]
    arguments += ["--pooling", "mean", "--rows-per-part", 1000]
    parts = output.with_name(output.name + ".parts")
    for finished in (2, 5, None):  # parts, and then it is killed
        process = forked.Process(target=processes.command_line, args=[*map(str, arguments)])
        process.start()
        while process.is_alive() and (finished is None or len(list(parts.glob("*.part"))) < finished):
            time.sleep(0.01)
        if finished:
            assert process.is_alive()
            process.kill()
        process.join()
    np.testing.assert_array_equal(np.load(output), expected)

    for i in random.choice(len(texts), 50):  # each is a whole batch for itself
        (result,) = predictor([texts[i]])
        np.testing.assert_array_equal(result, expected[i])


def test_processes_share_a_job_and_the_last_joins_it(shallow, pairs, tmp_path):
    run(shallow, Classify("mnli"), pairs, tmp_path / "whole.jsonl")
    for process in (2, 0):
        summary = run(shallow, Classify("mnli"), pairs, tmp_path / "out.jsonl", share=(process, 3))
        assert not summary["joined"]
    assert not (tmp_path / "out.jsonl").exists()
    assert run(shallow, Classify("mnli"), pairs, tmp_path / "out.jsonl", share=(1, 3))["joined"]
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.slow
def test_processes_of_jax_distributed_share_a_job(shallow, forked, one_layer, pairs, tmp_path):
    """Two, over a coordinator on this machine; each reads its own share of the rows."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers = forked.SimpleQueue()
    arguments = (port, 2, str(one_layer), str(pairs), str(tmp_path / "out.jsonl"), answers)
    hosts = [forked.Process(target=processes.share_of_a_job, args=(host, *arguments)) for host in range(2)]
    for host in hosts:
        host.start()
    for host in hosts:
        host.join(200)
    assert [host.exitcode for host in hosts] == [0, 0]
    texts = dict(answers.get() for _ in hosts)
    assert texts == {0: 64 * 2 + 44, 1: 64 * 2}
    run(shallow, Classify("mnli"), pairs, tmp_path / "whole.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_two_runs_of_the_same_job_do_not_write_into_each_other(shallow, pairs, tmp_path):
    job = jobs.Job(pairs, tmp_path / "out.jsonl", ("premise", "hypothesis"), rows_per_part=64)

    def second(*_) -> None:
        with pytest.raises(InputError, match="another process is already writing .*out.jsonl"):
            jobs.run(job, Predictor(shallow, Classify("mnli")))

    jobs.run(job, Predictor(shallow, Classify("mnli")), second)


# how far it is


@pytest.mark.slow
def test_progress_is_of_rows_that_the_device_has_done_while_a_part_is_under_way(shallow, pairs, tmp_path):
    told: list[int] = []
    parts_there: list[int] = []
    batches: list[int] = []

    def progress(rows: int, predictor: Predictor) -> None:
        told.append(rows)
        parts_there.append(len(list(tmp_path.glob("out.jsonl.parts/*.part"))))
        batches.append(predictor.stats.batches)

    predictor = Predictor(shallow, Classify("mnli"), tokens_per_batch=256)
    jobs.run(jobs.Job(pairs, tmp_path / "out.jsonl", ("premise", "hypothesis"), rows_per_part=200), predictor, progress)
    assert (told[0], told[-1], sorted(told)) == (0, 300, told)
    assert sorted(set(batches)) == list(range(predictor.stats.batches + 1))
    assert len(told) == 1 + predictor.stats.batches + 2, "at the beginning, after each batch, after each part"
    inside = [rows for rows, there in zip(told, parts_there, strict=True) if there == 0]
    assert len(set(inside)) > 5
    assert max(inside) >= 200, "all of the first part counts before it is written"


def test_progress_of_a_share_begins_with_what_that_share_has(shallow, pairs, tmp_path):
    job = jobs.Job(pairs, tmp_path / "out.jsonl", ("premise", "hypothesis"), rows_per_part=64, share=(0, 2))
    assert [jobs.rows_in(dataclasses.replace(job, share=share)) for share in ((0, 2), (1, 2), (4, 7), (6, 7))] == [
        64 * 2 + 44, 64 * 2, 44, 0,
    ]  # fmt: skip
    run(shallow, Classify("mnli"), pairs, tmp_path / "out.jsonl", share=(1, 2))
    told: list[int] = []
    jobs.run(job, Predictor(shallow, Classify("mnli")), lambda rows, _: told.append(rows))
    assert (told[0], told[-1]) == (0, 64 * 2 + 44)


def test_a_run_that_goes_on_begins_its_progress_with_the_rows_that_are_there(shallow, pairs, tmp_path):
    class StoppedError(Exception):
        pass

    def stop(*_) -> None:
        if list(tmp_path.glob("out.jsonl.parts/*.part")):
            raise StoppedError

    job = jobs.Job(pairs, tmp_path / "out.jsonl", ("premise", "hypothesis"), rows_per_part=64)
    with pytest.raises(StoppedError):
        jobs.run(job, Predictor(shallow, Classify("mnli")), stop)
    told: list[int] = []
    jobs.run(job, Predictor(shallow, Classify("mnli")), lambda rows, _: told.append(rows))
    assert (told[0], told[-1]) == (64, 300)


@pytest.mark.slow
def test_a_terminal_shows_how_far_a_part_is_and_stdout_has_the_summary_alone(on_a_terminal, tiny_directory, tmp_path):
    source = write_rows(tmp_path / "in.jsonl", [{"text": "w " * (i % 60)} for i in range(400)])
    text, stdout = on_a_terminal(
        [PROGRAM, "features", "-i", source, "-o", tmp_path / "out.npy", "-m", tiny_directory, "--json"]
    )
    summary = json.loads(stdout)
    assert (summary["rows"], summary["this_run"]["compilations"]) == (400, summary["this_run"]["shapes"])
    steps = re.findall(r"(\d+)/400 [\d.]+ rows/s \d+ tokens/s padding [\d.]+%( \d:\d\d:\d\d left)?", text)
    assert len({int(rows) for rows, left in steps if left and 0 < int(rows) < 400}) >= 2
    assert int(steps[-1][0]) == 400


# disks


@pytest.mark.slow
def test_a_disk_that_is_full_ends_in_one_line_and_keeps_what_was_done(command_line, forked, one_layer, pairs, tmp_path):
    """RLIMIT_FSIZE stands for the disk: writing past it fails as a full disk does, part by part."""
    arguments = [
        "predict",
        str(pairs),
        "-o",
        str(tmp_path / "out.jsonl"),
        "-m",
        str(one_layer),
        "--rows-per-part",
        "64",
    ]
    said_to = tmp_path / "said"
    os.mkfifo(said_to)  # which may be of any size
    process = forked.Process(target=processes.command_line_with_room_for_parts, args=(2, said_to, *arguments))
    process.start()
    said = said_to.read_text()
    process.join(200)
    assert process.exitcode == 1
    assert said.count("\n") == 1
    assert "cannot write" in said
    assert "File too large" in said
    parts = tmp_path / "out.jsonl.parts"
    assert sorted(path.name for path in parts.glob("*.part")) == ["00000000.part", "00000001.part"]
    assert not list(parts.glob("*.tmp"))
    status, out, err = command_line(*arguments)
    assert (status, "\n2 parts kept from an earlier run; " in out) == (0, True), err
    assert len(records(tmp_path / "out.jsonl")) == 300


def test_outputs_that_cannot_be_written_say_so(shallow, pairs, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*Not a directory"):
        run(shallow, Classify("mnli"), pairs, tmp_path / "file" / "out.jsonl")
    with pytest.raises(InputError, match=r"predictions are written to .jsonl"):
        run(shallow, Classify("mnli"), pairs, tmp_path / "out.xlsx")
    with pytest.raises(InputError, match="has no column 'nothing'|column 'nothing'"):
        run(shallow, Classify("mnli"), pairs, tmp_path / "o.csv", ("nothing",), strict=True)
    with pytest.raises(InputError, match=r"none.jsonl"):
        run(shallow, Classify("mnli"), tmp_path / "none.jsonl", tmp_path / "p.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "pairs.jsonl"]


@pytest.mark.slow
def test_processes_that_begin_at_one_moment_share_the_job(shallow, pairs, tmp_path):
    """Neither takes the other's parts for those of a stopped run, and both find the same settings."""
    run(shallow, Classify("mnli"), pairs, tmp_path / "whole.jsonl")
    start = threading.Barrier(2)

    def one(process: int, output: Path) -> dict:
        job = jobs.Job(pairs, output, ("premise", "hypothesis"), rows_per_part=64, share=(process, 2))
        predictor = Predictor(shallow, Classify("mnli"))
        start.wait()
        return jobs.run(job, predictor)

    with ThreadPoolExecutor(2) as both:
        for attempt in range(5):
            output = tmp_path / f"out-{attempt}.jsonl"
            summaries = list(both.map(one, range(2), [output] * 2))
            assert any(summary["joined"] for summary in summaries)
            assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


# memory


@pytest.mark.slow
def test_memory_stays_flat_however_long_the_input(in_a_process, one_layer):
    """The peak after eight times the rows is higher by less than a tenth of what their results hold, and a little noise."""
    program = """
import roberta_flax
from roberta_flax import Embed, Predictor

def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))

few, many, held = 1_000, 8_000, 0
texts = ("a dog and a cat " * 8 + str(i % 100) for i in range(many))
for number, features in enumerate(Predictor(roberta_flax.load(MODEL), Embed("tokens"), window=256)(texts), 1):
    if number == few:
        warm = status("VmHWM")
    held += features.nbytes if number > few else 0
assert number == many
print(1024 * warm, 1024 * status("VmHWM"), held)
"""
    warm, peak, held = map(int, in_a_process(program.replace("MODEL", repr(str(one_layer)))).split())
    assert held > 4 * (16 << 20)
    assert peak - warm < 0.1 * held + (16 << 20)


# what a run is of


@pytest.fixture
def stopped_after():
    """Runs a job until it has so many parts; what stands for a kill."""

    class StoppedError(Exception):
        pass

    def start(job: jobs.Job, predictor: Predictor, parts: int = 2) -> None:
        def stop(*_) -> None:
            if len(list(job.parts.glob("*.part"))) == parts:
                raise StoppedError

        with pytest.raises(StoppedError):
            jobs.run(job, predictor, stop)

    return start


def test_an_input_is_what_it_contains_whatever_its_name_and_time(shallow, pairs, tmp_path, stopped_after):
    """Other bytes of the same size and time are another input; the same bytes in another file are the same."""
    predictor = Predictor(shallow, Classify("mnli"))
    run(shallow, Classify("mnli"), pairs, tmp_path / "whole.jsonl")
    job = jobs.Job(pairs, tmp_path / "out.jsonl", ("premise", "hypothesis"), rows_per_part=64)
    stopped_after(job, predictor)
    content, before = pairs.read_bytes(), pairs.stat()
    pairs.write_bytes(content.replace(b'"x17"', b'"y17"'))
    os.utime(pairs, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (pairs.stat().st_size, pairs.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    with pytest.raises(
        InputError, match=r"parts of a different job \(pairs.jsonl has other contents\); remove that directory"
    ):
        jobs.run(job, predictor)
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(content)
    summary = jobs.run(dataclasses.replace(job, input=copy), predictor)
    assert summary["this_run"]["parts_resumed"] == 2
    assert job.output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_the_files_of_a_parquet_directory_are_known_by_what_they_contain(shallow, tmp_path, stopped_after):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    folder = tmp_path / "texts"
    folder.mkdir()

    def write(number: int, word: str) -> None:
        texts = [f"{word} text {i}" for i in range(100)]
        parquet.write_table(pyarrow.table({"text": texts}), folder / f"{number}.parquet")

    write(0, "old")
    write(1, "old")
    job = jobs.Job(folder, tmp_path / "out.jsonl", ("text",), rows_per_part=20)
    predictor = Predictor(shallow, Embed("mean"))
    stopped_after(job, predictor)
    write(1, "NEW")
    with pytest.raises(InputError, match=r"\(texts has other contents in 1.parquet\)"):
        jobs.run(job, predictor)
    write(1, "old")
    write(2, "old")
    with pytest.raises(InputError, match=r"\(texts now has 2.parquet\)"):
        jobs.run(job, predictor)
    (folder / "2.parquet").unlink()
    (folder / "1.parquet").unlink()
    with pytest.raises(InputError, match=r"\(texts no longer has 1.parquet\)"):
        jobs.run(job, predictor)
    write(1, "old")
    assert jobs.run(job, predictor)["this_run"]["parts_resumed"] == 2


def test_a_model_is_its_files_except_where_it_came_from(one_layer, pairs, tmp_path, stopped_after):
    model = tmp_path / "model"
    shutil.copytree(one_layer, model)
    job = jobs.Job(pairs, tmp_path / "out.jsonl", ("premise", "hypothesis"), rows_per_part=64)

    def current() -> tuple[jobs.Job, Predictor]:
        given = dataclasses.replace(job, model=jobs.model_contents("mine", model))
        return given, Predictor(roberta_flax.load(model), Classify("mnli"))

    stopped_after(*current())
    for name, changed in (
        ("config.json", lambda text: text.replace(b'"mnli"', b'"mnli" ')),
        ("dict.txt", lambda text: text + b"\n"),
        ("model.safetensors", lambda content: content[:-1] + bytes([content[-1] ^ 1])),
    ):
        content = (model / name).read_bytes()
        (model / name).write_bytes(changed(content))
        given = dataclasses.replace(job, model=jobs.model_contents("mine", model))
        with pytest.raises(InputError, match=rf"\(mine has other contents in {re.escape(name)}\)"):
            jobs.run(given, Predictor(roberta_flax.load(one_layer), Classify("mnli")))
        (model / name).write_bytes(content)
    (model / "conversion.json").write_text("{}")
    os.utime(model / "model.safetensors")
    assert jobs.run(*current())["this_run"]["parts_resumed"] == 2


def test_an_input_that_changes_during_a_run_does_not_get_into_a_part(shallow, pairs, tmp_path):
    job = jobs.Job(pairs, tmp_path / "out.jsonl", ("premise", "hypothesis"), rows_per_part=64)
    content = pairs.read_bytes()

    def change(rows: int, predictor: Predictor) -> None:
        if len(list(job.parts.glob("*.part"))) == 1:
            pairs.write_bytes(content.replace(b"a", b"b"))

    with pytest.raises(InputError, match=r"the input changed while it was read \(pairs.jsonl has other contents\)"):
        jobs.run(job, Predictor(shallow, Classify("mnli")), change)
    assert [path.name for path in job.parts.glob("*.part")] == ["00000000.part"]
    pairs.write_bytes(content)
    touch = iter(range(10))
    summary = jobs.run(
        job, Predictor(shallow, Classify("mnli")), lambda *_: os.utime(pairs, (next(touch, 0), next(touch, 0)))
    )
    assert (summary["rows"], summary["this_run"]["parts_resumed"]) == (300, 1)


def test_what_is_wrong_is_found_before_anything_is_written(shallow, pairs, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    table = tmp_path / "in.csv"
    table.write_text("premise,hypothesis\na,b\n")
    arrow = tmp_path / "in.parquet"
    parquet.write_table(pyarrow.table({"premise": ["a"], "hypothesis": ["b"]}), arrow)
    there = sorted(tmp_path.iterdir())
    for source in (pairs, table, arrow):
        for options in ({"texts": ("premises", "hypothesis")}, {"keep": ("ids",)}):
            with pytest.raises(InputError, match=r"has no column '(premises|ids)'; its columns are .*'premise'"):
                run(shallow, Classify("mnli"), source, tmp_path / "out.jsonl", **options)
    with pytest.raises(InputError, match="holds one vector per row"):
        run(shallow, Classify("mnli"), pairs, tmp_path / "out.npy")
    assert sorted(tmp_path.iterdir()) == there
    assert run(shallow, Classify("mnli"), pairs, tmp_path / "out.jsonl")["rows"] == 300


def test_damaged_settings_beside_results_are_those_of_another_job(shallow, pairs, tmp_path, stopped_after):
    job = jobs.Job(pairs, tmp_path / "out.jsonl", ("premise", "hypothesis"), rows_per_part=64)
    stopped_after(job, Predictor(shallow, Classify("mnli")))
    (job.parts / "job.json").write_text('{"input": ')
    with pytest.raises(
        InputError, match=r"parts of a different job \(its job.json is damaged\); remove that directory"
    ):
        jobs.run(job, Predictor(shallow, Classify("mnli")))


def test_a_column_of_some_rows_is_a_column(shallow, tmp_path):
    source = write_rows(tmp_path / "in.jsonl", [{"text": "a"}] * 3 + [b"not json\n", {"text": "b", "id": 1}])
    summary = run(shallow, Classify("mnli"), source, tmp_path / "out.jsonl", ("text",), keep=("id",))
    assert (summary["rows"], summary["rejected"]) == (5, 4)


def test_a_run_whose_rows_are_all_rejected_fails_and_binds_nobody(shallow, tmp_path):
    source, output = write_rows(tmp_path / "in.jsonl", [{"text": "a " * 20}] * 5), tmp_path / "out.jsonl"
    job = jobs.Job(source, output, ("text",), rows_per_part=2)
    strict = Predictor(shallow, Classify("mnli"), on_long="error", max_length=8)
    for _ in range(2):
        with pytest.raises(
            InputError,
            match=r"all 5 rows of .*in.jsonl were rejected, so .*out.jsonl was not written; .*line 1: .*over",
        ):
            jobs.run(job, strict)
        assert not output.exists()
        assert [json.loads(line)["row"] for line in (job.parts / "00000001.rejects.jsonl").open()] == [2, 3]
    assert jobs.run(job, Predictor(shallow, Classify("mnli")))["rejected"] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_a_run_with_other_settings_does_not_clear_the_parts_of_one_that_is_running(shallow, pairs, tmp_path):
    job = jobs.Job(pairs, tmp_path / "out.jsonl", ("premise", "hypothesis"), rows_per_part=64, share=(0, 2))
    other = dataclasses.replace(job, share=(1, 2), rows_per_part=32)
    refused = []

    def second(*_) -> None:
        if not refused:
            with pytest.raises(InputError, match="another process is already writing") as error:
                jobs.run(other, Predictor(shallow, Classify("mnli")))
            refused.append(error)

    assert jobs.run(job, Predictor(shallow, Classify("mnli")), second)["rows"] == 64 * 2 + 44
    assert refused


def test_rows_with_scores_that_are_not_finite_are_rejected(shallow, tmp_path):
    """One token's embedding is too large; the other rows have their labels."""
    token = min(
        set(shallow.encode("a horse").tolist()) - {*shallow.encode("a dog").tolist(), *shallow.encode("a cat").tolist()}
    )
    table = shallow.params["embeddings"]["token"]["embedding"]
    embeddings = {**shallow.params["embeddings"], "token": {"embedding": table.at[token].set(np.nan)}}
    shallow.params = {**shallow.params, "embeddings": embeddings}
    source = write_rows(tmp_path / "in.jsonl", [{"text": f"a {animal}"} for animal in ("dog", "horse", "cat")])
    job = jobs.Job(source, tmp_path / "out.jsonl", ("text",))
    summary = jobs.run(job, Predictor(shallow, Classify("mnli"), strategy="buckets"))
    assert (summary["rows"], summary["rejected"]) == (3, 1)
    assert [row["row"] for row in records(job.output)] == [0, 2]
    (reject,) = records(job.rejects)
    assert (reject["row"], "NaN or infinite" in reject["reason"]) == (1, True)


def test_counts_are_of_all_parts_there_are_while_others_are_missing(shallow, tmp_path):
    source = write_rows(tmp_path / "in.jsonl", [{"text": "a"}, {"text": 5}, {"text": "w " * 600}, {"text": "b"}] * 4)
    summary = run(shallow, Classify("mnli"), source, tmp_path / "out.jsonl", ("text",), rows_per_part=4, share=(0, 2))
    assert {key: summary[key] for key in ("joined", "rows", "rejected", "truncated", "rejects")} == {
        "joined": False, "rows": 8, "rejected": 2, "truncated": 2, "rejects": None,
    }  # fmt: skip


# what an output says of itself


def test_a_kept_column_gives_way_to_a_result_of_its_name(shallow, tmp_path):
    rows = [{"text": "a dog", "label": "gold", "row": 7, "input_row": 8, "score": None}]
    source = write_rows(tmp_path / "in.jsonl", rows)
    keep = ("label", "row", "input_row", "score", "text")
    run(shallow, Classify("mnli"), source, tmp_path / "out.jsonl", ("text",), keep=keep)
    (found,) = records(tmp_path / "out.jsonl")
    assert list(found)[:6] == ["row", "input_label", "input_input_row", "input_row", "input_score", "text"]
    assert [found[name] for name in list(found)[:6]] == [0, "gold", 7, 8, None, "a dog"]
    assert found["label"] == shallow.predict_labels("mnli", shallow.encode("a dog"))[0]


def test_kept_columns_of_parquet_keep_their_types(shallow, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    columns = {
        "text": ["a", "b"], "id": pa.array([2**53 + 1, None], pa.int64()), "small": pa.array([1, 2], pa.uint8()),
        "big": pa.array([2**64 - 1, 0], pa.uint64()), "score": [0.1, float("nan")], "ok": [True, None],
        "name": pa.array(["x", None]).dictionary_encode(), "none": pa.nulls(2),
    }  # fmt: skip
    keep = tuple(columns)[1:]
    parquet.write_table(pa.table(columns), tmp_path / "in.parquet")
    run(shallow, Embed("mean"), tmp_path / "in.parquet", tmp_path / "out.parquet", ("text",), keep=keep)
    found = parquet.read_table(tmp_path / "out.parquet")
    types = {name: str(found.schema.field(name).type) for name in keep}
    assert types == {
        "id": "int64", "small": "int64", "big": "string", "score": "double", "ok": "bool", "name": "string",
        "none": "string",
    }  # fmt: skip
    assert found.column("id").to_pylist() == [2**53 + 1, None]
    assert found.column("big").to_pylist() == [str(2**64 - 1), "0"]
    first, second = found.column("score").to_pylist()
    assert (first, np.isnan(second)) == (0.1, True)
    assert found.column("name").to_pylist() == ["x", None]
    folder = tmp_path / "folder"
    folder.mkdir()
    parquet.write_table(pa.table({"text": ["a"], "id": [1]}), folder / "0.parquet")
    parquet.write_table(pa.table({"text": ["a"], "id": ["x"]}), folder / "1.parquet")
    run(shallow, Embed("mean"), folder, tmp_path / "both.parquet", ("text",), keep=("id",))
    assert parquet.read_table(tmp_path / "both.parquet").column("id").to_pylist() == ["1", "x"]


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.name)
@pytest.mark.parametrize("logits", [False, True])
def test_numbers_of_a_file_are_named_by_class_and_a_score_is_the_probability_of_its_label(
    of_heads, tmp_path, head, logits
):
    parquet, roberta = pytest.importorskip("pyarrow.parquet"), of_heads
    source = write_rows(tmp_path / "in.jsonl", [{"text": "a dog"}])
    run(roberta, Classify(head.name, logits), source, tmp_path / "out.jsonl", ("text",))
    run(roberta, Classify(head.name, logits), source, tmp_path / "out.parquet", ("text",))
    (line,), (row,) = records(tmp_path / "out.jsonl"), parquet.read_table(tmp_path / "out.parquet").to_pylist()
    tokens = roberta.encode("a dog")
    expected = np.asarray(roberta.predict(head.name, tokens, return_logits=logits))[0]
    log_probabilities = np.asarray(roberta.predict(head.name, tokens))[0]
    for found in (line, row):
        by_name = found["logits" if logits else "log_probabilities"]
        several = by_name if head.kind == "token" else [by_name]
        assert all(tuple(numbers) == head.label_names for numbers in several)
        numbers = np.array([list(numbers.values()) for numbers in several])
        assert np.abs(numbers - expected.reshape(numbers.shape)).max() <= TOLERANCE
        if "label" in found:
            index = head.label_names.index(found["label"])
            assert found["score"] == pytest.approx(np.exp(log_probabilities[index]), abs=TOLERANCE)
        else:
            rows = log_probabilities if head.kind == "token" else [log_probabilities] * len(found["labels"])
            chosen = [head.label_names.index(label) for label in found["labels"]]
            probabilities = [np.exp(row[index]) for row, index in zip(rows, chosen, strict=True)]
            assert found["scores"] == pytest.approx(probabilities, abs=TOLERANCE)


def test_parquet_says_which_model_made_it_and_of_what(shallow, one_layer, pairs, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    model = jobs.model_contents("mine", one_layer)
    run(shallow, Classify("mnli"), pairs, tmp_path / "out.parquet", model=model)
    settings = json.loads(parquet.read_schema(tmp_path / "out.parquet").metadata[b"roberta_flax"])
    sha256 = hashlib.sha256((one_layer / "model.safetensors").read_bytes()).hexdigest()
    assert settings["model"]["name"] == "mine"
    assert settings["model"]["sha256"]["model.safetensors"] == sha256
    assert settings["input"]["sha256"] == {"pairs.jsonl": hashlib.sha256(pairs.read_bytes()).hexdigest()}
    assert settings["task"] == ["Classify", {"activation": None, "head": "mnli", "logits": False}]
    assert settings["dtype"] == "float32"
    columns = parquet.read_table(tmp_path / "out.parquet").flatten().column_names
    assert [f"log_probabilities.{name}" for name in ("contradiction", "neutral", "entailment")] == columns[-3:]


def test_two_classes_of_one_name_have_a_column_each(shallow, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    head = HeadConfig("twice", 3, 64, labels=("A", "A", "C"))
    config = dataclasses.replace(shallow.config, heads=(head,))
    heads = random_params(config)["heads"]
    roberta = roberta_flax.Roberta(config, {**shallow.params, "heads": heads}, shallow.tokenizer)
    source = write_rows(tmp_path / "in.jsonl", [{"text": "a dog"}])
    run(roberta, Classify("twice"), source, tmp_path / "out.parquet", ("text",))
    (row,) = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert list(row["log_probabilities"]) == ["A (0)", "A (1)", "C"]
