"""roberta-flax parity: exit statuses, files, recordings, and errors of a user."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from roberta_flax import parity
from roberta_flax.errors import InputError
from tests.conftest import TINY
from tests.parity_tool.conftest import BROKEN, ONLY, TEXTS

FEATURES = ("--only", "features")
PLOTS = ("histogram-of-errors.svg",)  # of the features alone

WITHOUT_TORCH = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ImportError("there is no torch here")

sys.meta_path.insert(0, NoTorch())
from roberta_flax.cli import main
main()
"""


@pytest.fixture
def texts(tmp_path):
    """A file of texts and pairs."""
    path = tmp_path / "texts.txt"
    path.write_text("".join("\t".join(row) + "\n" for row in TEXTS), encoding="utf-8")
    return path


def assert_one_line(err: str) -> str:
    """Asserts that stderr is one line of the program, and returns it."""
    assert err.count("\n") == 1, err
    assert err.startswith("roberta-flax: ")
    return err


@pytest.mark.slow
def test_agreement_exits_with_0_and_writes_a_report_of_every_dtype(run, texts, tmp_path):
    """Includes float64, which needs no setting of JAX."""
    status, out, err = run(
        TINY, "--texts", texts, "--dtype", "float64", "--dtype", "float32", *FEATURES, "-o", tmp_path / "report"
    )
    assert (status, err) == (0, "")
    assert "float64 on cpu: pass" in out
    assert "float32 on cpu: pass" in out
    assert out.endswith(f"{tmp_path / 'report' / 'report.html'}: the full report, with plots\n")
    files = {path.name for path in (tmp_path / "report").iterdir()}
    assert files == {"report.json", "report.html", *PLOTS}
    report = parity.read_report(tmp_path / "report" / "report.json")
    assert report.passed
    errors = {dtype: report.run(dtype).tensor("features").max_abs for dtype in ("float64", "float32")}
    assert errors["float64"] < 1e-12 < errors["float32"]
    assert [len(batch) for batch in report.inputs["lengths"]] == [2]


@pytest.mark.usefixtures("broken_flax_model")
def test_divergence_exits_with_1_and_its_position_on_one_line(run, texts, tmp_path):
    status, out, err = run(TINY, "--texts", texts, "--only", BROKEN, "--json", "-o", tmp_path / "report")
    assert status == 1
    assert f"float32 diverges at {BROKEN} at batch 0, row 1, token 2" in assert_one_line(err)
    assert parity.Report.from_json(out) == parity.read_report(tmp_path / "report" / "report.json")
    assert not json.loads(out)["passed"]


def test_texts_of_a_table_come_from_the_named_columns(run, tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text('id,one,two\n1,"A, b",C\n2,D,E\n')
    status, out, _ = run(TINY, "--texts", path, "-c", "one", "-c", "two", *FEATURES, "--json")
    assert status == 0
    lengths = json.loads(out)["inputs"]["lengths"]
    assert [len(batch) for batch in lengths] == [2]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--dtype", "float31"), "'float31' is not one of float64, float32"),
        (("--reference", "tensorflow"), "'tensorflow'"),
        (("--column", "text"), "give --texts too"),
        (("--replay", "somewhere", "--gradients"), "the recording has the inputs"),
        (("--replay", "somewhere", "--reference", "builtin"), "the recording has the inputs"),
    ],
)
def test_wrong_usage_exits_with_2(run, arguments, reason):
    status, out, err = run(TINY, *arguments)
    assert (status, out) == (2, "")
    assert reason in " ".join(err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--only", "layers.7.*"), "no tensor matches 'layers.7.*'"),
        (("--dtype", "int8", "--dtype", "int8"), "each dtype once"),
        (("--dtype", "int8", "--gradients"), "no gradients in int8"),
        (("--replay", "nowhere"), "nowhere is not a recording"),
    ],
)
def test_impossible_comparisons_exit_with_1_and_one_line(run, arguments, reason):
    status, out, err = run(TINY, *arguments)
    assert (status, out) == (1, "")
    assert reason in assert_one_line(err)


def test_a_comparison_without_tensors_does_not_pass(run, texts):
    """A model in int8 has no loss."""
    status, out, err = run(TINY, "--texts", texts, "--dtype", "int8", "--only", "lm_head.loss")
    assert (status, out) == (1, "")
    assert "nothing was compared in int8: the two sides do not both expose lm_head.loss" in assert_one_line(err)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        (b"\xff\xfe\n", "is UTF-16 text, not UTF-8 text"),
        (b"good\na\tb\tc\n", "line 2: one text, or two with a tab between them; got 3"),
        (b"", "there is nothing to compare"),
        (b"good\n" + b"x y " * 400 + b"\n", "input 2 of 2: "),
    ],
)
def test_errors_in_texts_name_the_line(run, tmp_path, content, reason):
    path = tmp_path / "texts.txt"
    if content is not None:
        path.write_bytes(content)
    status, out, err = run(TINY, "--texts", path, *FEATURES)
    assert (status, out) == (1, "")
    assert reason in assert_one_line(err)


def test_output_replaces_only_a_report_and_is_checked_before_the_comparison(run, texts, tmp_path, monkeypatch):
    output = tmp_path / "report"
    assert run(TINY, "--texts", texts, *FEATURES, "-o", output)[0] == 0
    (output / "report.html").write_text("old")
    assert run(TINY, "--texts", texts, *FEATURES, "-o", output)[0] == 0
    assert (output / "report.html").read_text() != "old"
    monkeypatch.setattr(parity, "compare", lambda *_, **__: pytest.fail("compared"))
    (output / "thesis.tex").write_text("years of work")
    for path in (output, output / "thesis.tex"):
        status, _, err = run(TINY, "--texts", texts, *FEATURES, "-o", path)
        assert status == 1
        assert "exists and is no report; remove it or choose another name" in assert_one_line(err)
    assert (output / "thesis.tex").read_text() == "years of work"


def test_without_matplotlib_only_report_json_is_written(run, texts, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    status, out, err = run(TINY, "--texts", texts, *FEATURES, "-o", tmp_path / "report")
    assert status == 0
    assert "report.html" not in out
    assert err.count("\n") == 1
    assert "report.html will not be written" in err
    assert "pip install 'roberta-flax[parity]'" in err
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["report.json"]


def test_a_report_is_shown_again_and_its_page_written_without_a_model(run, texts, tmp_path, monkeypatch):
    status, out, _ = run(TINY, "--texts", texts, *FEATURES, "-o", tmp_path / "report")
    assert status == 0
    monkeypatch.setattr(parity, "compare", lambda *_, **__: pytest.fail("compared"))
    saved = tmp_path / "report" / "report.json"
    assert run("--render", saved, "-o", tmp_path / "page") == (0, out.replace("/report/", "/page/"), "")
    for name in ("report.json", "report.html", *PLOTS):
        assert (tmp_path / "page" / name).read_bytes() == (tmp_path / "report" / name).read_bytes()
    for name in PLOTS:
        assert ElementTree.parse(tmp_path / "page" / name).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    status, _, err = run("--render", tmp_path / "absent.json")
    assert (status, err.count("\n")) == (1, 1)
    for arguments in ((), (TINY, "--render", saved)):
        status, _, err = run(*arguments)
        assert status == 2
        assert "give a model, or --render and a report.json" in " ".join(err.replace("│", " ").split())


def test_without_torch_nothing_is_converted(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    status, _, err = run(TINY, "--cache-dir", tmp_path / "cache")
    assert status == 1
    assert "pip install 'roberta-flax[parity]'" in assert_one_line(err)
    assert not (tmp_path / "cache" / "converted").exists()


def measurements(report: parity.Report) -> list[dict]:
    """The runs of a report without their time."""
    return [
        {key: value for key, value in run.items() if key != "seconds"} for run in json.loads(report.to_json())["runs"]
    ]


@pytest.mark.slow
def test_a_replay_repeats_the_measurements_of_the_recording(tiny_directory, recording):
    folder, recorded = recording
    replayed = parity.compare(tiny_directory, only=ONLY, replay=folder)
    assert measurements(replayed) == measurements(recorded)
    assert (replayed.inputs, replayed.reference) == (recorded.inputs, recorded.reference)


@pytest.mark.slow
def test_recording_does_not_change_measurements(tiny_directory, recording):
    assert measurements(parity.compare(tiny_directory, texts=TEXTS, only=ONLY)) == measurements(recording[1])


@pytest.mark.slow
def test_a_replay_does_not_need_torch(tiny_directory, recording):
    folder, recorded = recording
    program = [sys.executable, "-c", WITHOUT_TORCH, "parity", str(tiny_directory)]
    done = subprocess.run([*program, "--replay", str(folder), "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert measurements(parity.Report.from_json(done.stdout))[0]["tensors"] == measurements(recorded)[0]["tensors"]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "there is no torch here" in done.stderr
    assert "replay what was recorded elsewhere" in done.stderr


def test_a_recording_of_another_model_is_refused(tiny_directory, recording, tmp_path):
    other = shutil.copytree(tiny_directory, tmp_path / "other")
    content = bytearray((other / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (other / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="recorded from a model with other parameters"):
        parity.compare(other, replay=recording[0])


def test_errors_name_a_dtype_or_tensors_that_were_not_recorded(tiny_directory, recording):
    with pytest.raises(InputError, match="record it with --dtype for every dtype"):
        parity.compare(tiny_directory, dtypes=["float64"], replay=recording[0])
    with pytest.raises(InputError, match=r"nothing was compared in float32: .* layers\.0\.attention\.query"):
        parity.compare(tiny_directory, only=["*.query"], replay=recording[0])


@pytest.mark.parametrize(
    "damage", ["truncated tensors", "no tensors", "truncated metadata", "another format", "no deviation"]
)
def test_a_damaged_recording_is_refused_in_one_line(tiny_directory, recording, tmp_path, damage):
    folder = shutil.copytree(recording[0], tmp_path / "damaged")
    tensors, metadata = folder / "batch-000.safetensors", folder / "recording.json"
    if damage == "truncated tensors":
        tensors.write_bytes(tensors.read_bytes()[:-9])
    elif damage == "no tensors":
        tensors.unlink()
    elif damage == "truncated metadata":
        metadata.write_text(metadata.read_text()[:-9])
    elif damage == "another format":
        metadata.write_text(metadata.read_text().replace('"format": 1', '"format": 0'))
    else:
        metadata.write_text(metadata.read_text().replace('"features"', '"fetaures"'))
    with pytest.raises(InputError, match="record it again"):
        parity.compare(tiny_directory, only=["features"], replay=folder)
