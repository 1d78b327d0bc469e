"""Files that are whole or absent, and what a file is known by."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from roberta_flax.errors import InputError
from roberta_flax.files import Contents, replacing, require_rereadable
from roberta_flax.inference.features import TextFeatures


def contents(name: str, **files: str) -> Contents:
    return Contents(name, files)


def test_contents_are_the_sha256_of_each_file(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 3_000_000)
    (tmp_path / "b").write_bytes(b"")
    found = Contents.of("both", [tmp_path / "a", tmp_path / "b"])
    assert found.sha256 == {
        "a": hashlib.sha256(b"x" * 3_000_000).hexdigest(),
        "b": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    }
    with pytest.raises(InputError, match=r"cannot read .*none: No such file"):
        Contents.of("none", [tmp_path / "none"])


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ({"a": "1"}, {"a": "1"}, None),
        ({"a": "1"}, {"b": "1"}, None),
        ({"a": "1"}, {"a": "2"}, "it has other contents"),
        ({"a": "1", "b": "2"}, {"a": "1", "b": "2"}, None),
        ({"a": "1", "b": "2"}, {"a": "2", "b": "1"}, "it has other contents in a, b"),
        ({"a": "1"}, {"a": "1", "b": "2"}, "it now has b"),
        ({"a": "1", "b": "2"}, {"a": "3"}, "it has other contents in a, it no longer has b"),
        ({}, dict.fromkeys("abcdef", "1"), "it now has a, b, c and 3 more files"),
    ],
)
def test_contents_that_differ_are_told_in_words(before, now, expected):
    assert contents("it", **now).differences(contents("before", **before)) == expected


def test_what_can_be_read_once_is_refused_without_opening_it(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for path, kind in ((tmp_path / "fifo", "pipe"), (tmp_path / "socket", "socket"), (Path("/dev/zero"), "device")):
            with pytest.raises(InputError, match=f"is a {kind}, and an input is read more than once"):
                require_rereadable(path)
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    with pytest.raises(InputError, match="is a pipe"):
        require_rereadable(tmp_path / "link")
    for path in (tmp_path, tmp_path / "none", Path(__file__)):
        require_rereadable(path)


def test_replacing_a_file_leaves_its_neighbors_alone(tmp_path):
    for name in ("f.npy", "f.npy.tmp", "f.npy~"):
        (tmp_path / name).write_text("mine")
    with replacing(tmp_path / "f.npy") as file:
        file.write(b"new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "f.npy": "new", "f.npy.tmp": "mine", "f.npy~": "mine",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_features_that_do_not_fit_on_the_disk_leave_the_file_that_was_there(tmp_path, suffix):
    """RLIMIT_FSIZE stands for the disk."""
    path = tmp_path / f"features{suffix}"
    TextFeatures("tokens", np.arange(2, dtype=np.int32), np.zeros((1, 2, 4), np.float32)).save(path)
    good = path.read_bytes()
    code = """if True:
        import pathlib, resource, signal, sys
        import numpy as np
        from roberta_flax.errors import InputError
        from roberta_flax.inference.features import TextFeatures
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        features = np.random.default_rng(0).random((1, 100, 64), np.float32)
        try:
            TextFeatures("tokens", np.arange(100, dtype=np.int32), features).save(pathlib.Path(sys.argv[1]))
        except InputError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == f"cannot write {path}: File too large\n"
    assert path.read_bytes() == good
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


# on the command line


@pytest.mark.parametrize(
    "command", [("predict",), ("features", "-o", "o.npy"), ("fill-mask",), ("evaluate", "--task", "custom")]
)
def test_a_command_takes_no_pipe_and_no_device(run, tiny_directory, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("rows.jsonl")
    read, write = os.pipe()
    os.write(write, json.dumps({"text": "a <mask>"}).encode() + b"\n")
    name, *more = command
    if name != "evaluate":
        more = more or ["-o", "o.jsonl"]
    for source in ("rows.jsonl", f"/dev/fd/{read}", "/dev/zero"):
        arguments = [name, source, *more, "-m", tiny_directory]
        if source != "rows.jsonl" and name != "evaluate":
            arguments += ["--format", "jsonl"]
        status, out, err = run(*arguments)
        assert (status, out) == (1, "")
        assert "and an input is read more than once; write it to a file" in err
    os.close(write)
    os.close(read)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_file_whose_name_shows_no_format_is_not_taken_for_a_text(run, tiny_directory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("texts.json").write_text('{"text": "a"}\n')
    status, _, err = run("features", "texts.json", "-o", "f.npy", "-m", tiny_directory)
    assert (status, "texts.json is a file, and its name does not show its format; give --format" in err) == (1, True)
    assert run("features", "--text", "texts.json", "-o", "f.npy", "-m", tiny_directory)[0] == 0
    assert run("features", "texts.json", "--format", "jsonl", "-o", "g.npy", "-m", tiny_directory)[0] == 0
    assert np.load("g.npy").shape == (1, 64)


def test_the_last_line_of_a_run_says_first_how_many_rows_were_rejected(run, tiny_directory, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("a", 5, "w " * 600, "b")))
    output = tmp_path / "out.jsonl"
    status, out, _ = run("features", source, "-o", output, "-m", tiny_directory)
    first, last = out.splitlines()
    assert (status, first.startswith(f"{output}: 4 rows, 1 rejected, 1 truncated; ")) == (0, True)
    assert last == f"1 of 4 rows rejected and not in the output; reasons: {output}.rejects.jsonl"
    status, out, _ = run("features", source, "-o", tmp_path / "out.npy", "-m", tiny_directory)
    assert out.splitlines()[-1].startswith("1 of 4 rows rejected and NaN in the output; ")
    assert np.isnan(np.load(tmp_path / "out.npy")).all(axis=1).tolist() == [False, True, False, False]
    source.write_text(json.dumps({"text": "a"}) + "\n")
    status, out, _ = run("features", source, "-o", tmp_path / "good.jsonl", "-m", tiny_directory)
    assert out.count("\n") == 1
