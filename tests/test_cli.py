"""The command line: results on stdout, one line on stderr for what the user can mend, and the exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from roberta_flax import cli
from tests.conftest import TINY


@pytest.fixture
def run(capsys, monkeypatch):
    """Runs the program in this process: (exit status, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["roberta-flax", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    return run


def test_convert_writes_a_directory_that_loads(run, tmp_path):
    status, out, _ = run("convert", TINY, tmp_path / "m", "--json")
    assert status == 0
    assert json.loads(out)["heads"] == ["mnli"]
    assert run("encode", "a", "--model", tmp_path / "m")[0] == 0
    status, out, err = run("convert", TINY, tmp_path / "m")
    assert (status, out) == (1, "")
    assert err.strip().endswith("exists already; remove it or choose another name")


def test_mnli_prints_a_label_and_log_probabilities(run, tiny):
    status, out, _ = run("mnli", "A man sleeps.", "Nobody sleeps.", "-m", TINY, "--json")
    assert status == 0
    result = json.loads(out)
    expected = np.asarray(tiny.predict("mnli", tiny.encode("A man sleeps.", "Nobody sleeps.")))[0]
    assert list(result["log_probabilities"].values()) == pytest.approx(expected.tolist())
    assert result["label"] == ["contradiction", "neutral", "entailment"][expected.argmax()]
    assert run("mnli", "A man sleeps.", "Nobody sleeps.", "-m", TINY)[1].startswith(result["label"])


@pytest.mark.parametrize(
    ("name", "flags", "shape"), [("f.npy", [], (1, 4, 64)), ("f.npz", ["--all-layers"], (3, 1, 4, 64))]
)
def test_features_are_written_as_numpy_files(run, tiny, tmp_path, name, flags, shape):
    status, out, _ = run("features", "a b", "-o", tmp_path / name, "-m", TINY, "--json", *flags)
    assert status == 0
    assert json.loads(out)["shape"] == list(shape)
    saved = np.load(tmp_path / name)
    features = saved if name.endswith("npy") else saved["features"]
    assert features.shape == shape
    assert (features.reshape(-1, *shape[-3:])[-1] == tiny.extract_features(tiny.encode("a b"))).all()


def test_features_that_cannot_be_written_say_so(run, tmp_path):
    status, _, err = run("features", "a", "-o", tmp_path / "f.txt", "-m", TINY)
    assert (status, "must end in .npy or .npz" in err) == (1, True)
    status, _, err = run("features", "a", "-o", tmp_path / "none" / "f.npy", "-m", TINY)
    assert (status, "cannot write" in err) == (1, True)


def test_fill_mask_prints_what_the_object_returns(run, tiny):
    status, out, _ = run("fill-mask", "a <mask> b", "-k", 2, "-m", TINY, "--json")
    assert status == 0
    filled = [(row["text"], row["probability"], row["token"]) for row in json.loads(out)]
    assert [(text, token) for text, _, token in filled] == [
        (text, token) for text, _, token in tiny.fill_mask("a <mask> b", 2)
    ]
    assert len(run("fill-mask", "a <mask> b", "-k", 2, "-m", TINY)[1].splitlines()) >= 2


def test_encode_and_decode_are_inverse(run, tiny):
    _, out, _ = run("encode", "a b", " c", "-m", TINY)
    assert out.split() == [str(i) for i in tiny.encode("a b", " c")]
    assert run("decode", *out.split(), "-m", TINY)[1] == "a b\n c\n"
    assert json.loads(run("decode", *out.split(), "-m", TINY, "--json")[1]) == {"texts": ["a b", " c"]}
    assert json.loads(run("encode", "a", "b", "--no-separator", "-m", TINY, "--json")[1])["tokens"].count(2) == 2


def test_demo_says_that_its_weights_are_untrained_and_that_torch_agrees(run):
    status, out, _ = run("demo")
    assert status == 0
    assert "untrained" in out
    assert "agrees" in out
    result = json.loads(run("demo", "--json")[1])
    assert result["torch"]["agree"] is True
    assert set(result["seconds"]) == {"unpack", "convert", "load", "features", "mnli", "fill-mask", "torch"}


def test_demo_without_torch_says_how_to_get_it(run, monkeypatch):
    monkeypatch.setattr(cli.demo.importlib.util, "find_spec", lambda _: None)
    status, out, _ = run("demo")
    assert status == 0
    assert "roberta-flax[convert]" in out.replace("\n", "")


def test_demo_fails_where_torch_disagrees(run, monkeypatch):
    monkeypatch.setattr(cli.demo, "TOLERANCE", -1.0)
    status, out, _ = run("demo")
    assert (status, "DISAGREES" in out) == (1, True)


@pytest.mark.parametrize("arguments", [["mnli", "one"], ["nothing"], ["decode", "x"], ["encode"], ["features", "a"]])
def test_wrong_usage_exits_with_2(run, arguments):
    assert run(*arguments)[0] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fill-mask", "no mask", "-m", TINY], "exactly one <mask>"),
        (["decode", "581", "-m", TINY], "token id 581 is outside the vocabulary"),
        (["decode", str(10**30), "-m", TINY], "integers"),
        (["encode", "a", "-m", "nowhere"], "neither a file or directory, nor hf:org/name, nor a released model"),
        (["encode", "a", "-m", __file__], "is not a PyTorch checkpoint"),
        (["mnli", "a", "b", "-m", TINY, "--dtype", "int4"], "floating point"),
        (["mnli", "a", "b"], "roberta.large.mnli.tar.gz to"),
        (["convert", "nowhere", "m"], "does not exist"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_status_1(run, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(*arguments)
    assert (status, out) == (1, "")
    assert err.startswith("roberta-flax: ")
    assert message in err
    assert err.count("\n") == 1


def test_the_console_script_is_installed():
    program = Path(sys.executable).parent / "roberta-flax"
    result = subprocess.run([program, "--help"], capture_output=True, text=True, check=True)
    for name in ("convert", "mnli", "features", "fill-mask", "encode", "decode", "demo"):
        assert name in result.stdout
