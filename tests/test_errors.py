"""What a user can mend is one line, whatever raised it; and what others wrote is shown, and does nothing else."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from roberta_flax import cli, parity
from roberta_flax.checkpoint import download
from roberta_flax.cli import options
from roberta_flax.datasets.examples import Tally
from roberta_flax.errors import InputError, printable
from roberta_flax.parity import output, report_html, report_plots
from tests import processes
from tests.conftest import ROOT

STEERING = "\x1b[2J\r\n\t\x07\x9b1m\u202e\u2066\u2028\ud800\x00[red]"
SHOWN = r"\x1b[2J\r\n\t\x07\x9b1m\u202e\u2066\u2028\ud800\x00[red]"


def program(*arguments: object, shell: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own; `shell` is what a shell does with its streams."""
    command = [sys.executable, "-c", "from roberta_flax.cli import main; main()", *map(str, arguments)]
    return subprocess.run(["bash", "-c", f'"$@" {shell}', "bash", *command], cwd=ROOT, capture_output=True, text=True)


# Text of others


def test_everything_that_is_not_printable_is_escaped():
    assert printable(STEERING) == SHOWN
    readable = "naïve café №5 日本語\u3000テキスト\u00a0ok 👨\u200d👩\u200d👧 می\u200cخواهم"
    assert printable(readable) == readable


@pytest.fixture
def steering(one_layer: Path, tmp_path: Path) -> Path:
    """A model whose labels would steer a terminal."""
    model = Path(shutil.copytree(one_layer, tmp_path / "m"))
    config = json.loads((model / "config.json").read_text())
    config["heads"][0]["labels"] = [STEERING, "a\nb", "c"]
    (model / "config.json").write_text(json.dumps(config))
    return model


def test_labels_are_shown_by_every_command_that_prints_them(run, steering, tmp_path):
    pair = ("a man", "a dog")
    (tmp_path / "dev.csv").write_text("sentence1,sentence2,label\na,b,c\n")
    columns = ("-c", "sentence1", "-c", "sentence2")
    for command in (
        ("predict", "--text", pair[0], "--text", pair[1]),
        ("mnli", *pair),
        ("evaluate", tmp_path / "dev.csv", "--task", "custom", *columns),
    ):
        status, out, err = run(*command, "-m", steering)
        assert status == 0, err
        assert SHOWN.casefold() in out.casefold()
        assert re.fullmatch(r"[^\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u2066\u2028\ud800]*", out + err)
    labels = json.loads(run("predict", "--text", *pair[:1], "-m", steering, "--json")[1])["probabilities"]
    assert list(labels)[:2] == [STEERING, "a\nb"]


def test_json_is_the_text_itself_and_has_nothing_in_it_that_is_not_printable(capsys):
    value = {STEERING: ["日本語 naïve", "\U000e0041"]}
    options.print_json(value)
    text = capsys.readouterr().out
    assert json.loads(text) == value
    assert "日本語 naïve" in text
    assert text.rstrip("\n").isprintable()


def test_names_of_files_are_shown(run, tiny_directory, tmp_path):
    strange = tmp_path / f"{os.fsdecode(b'x')}\x1b[2J\n[red]"
    status, out, _ = run("convert", tiny_directory, strange)
    assert (status, out) == (1, "")
    shutil.copytree(tiny_directory, strange)
    (strange / "dict.txt").unlink()
    for command in (
        ("verify", strange),
        ("encode", "a", "-m", strange),
        ("export", strange, tmp_path / "x", "--to", "fairseq"),
    ):
        status, out, err = run(*command)
        assert status == 1
        assert r"\x1b[2J\n[red]" in err
        assert err.count("\n") == 1
        assert "\x1b" not in out + err
    assert Tally(strange).to_text().startswith(printable(str(strange)))


def test_a_filled_or_decoded_text_stays_on_its_line(run, tiny_directory, tiny):
    out = run("fill-mask", "a\n\x1b[2J <mask>", "-m", tiny_directory, "-k", 2)[1]
    assert out.count("\n") == 2
    assert all(r"  a\n\x1b[2J" in line for line in out.splitlines())
    ids = tiny.encode("a\nb\x1b[2J").tolist()
    assert run("decode", "-m", tiny_directory, "--", *ids)[1] == "a\\nb\\x1b[2J\n"


def test_log_lines_and_warnings_are_shown():
    """A line of this package's log is one; of Python's warnings, which have two, each is shown."""
    say = r"""
import logging, warnings
from roberta_flax import cli
def app(prog_name):
    logging.getLogger("roberta_flax.test").warning("a head called %s", "\x1b[2J\nx")
    warnings.warn("a font lacks \x1b[2J")
cli.run(app, "p")
"""
    done = subprocess.run([sys.executable, "-c", say], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.startswith("a head called \\x1b[2J\\nx\n")
    assert "a font lacks \\x1b[2J\n" in done.stderr
    assert "\x1b" not in done.stderr


def test_wrong_usage_is_shown(run):
    status, out, err = run("encode", "a", "--\x1b[2J")
    assert status == 2
    assert "\x1b[2J" not in out + err


def test_the_name_of_a_download_is_text_on_its_progress_bar(monkeypatch):
    class Terminal:
        def __init__(self) -> None:
            self.text = ""

        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> int:
            self.text += text
            return len(text)

        def flush(self) -> None: ...

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with download._progress("https://host/a[red]b\x07.tar.gz", 0, 10) as advance:
        advance(10)
    assert r"a[red]b\x07.tar.gz" in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.text)


# Streams


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["encode", "hi"], ["encode", "hi", "--json"], ["verify"]])
def test_a_closed_or_full_stdout_is_one_line(arguments, tiny_directory):
    model = [tiny_directory] if arguments == ["verify"] else ["-m", tiny_directory]
    closed = program(*arguments, *model, shell=">&-")
    assert (closed.returncode, closed.stderr) == (1, "roberta-flax: cannot write the output: stdout is closed\n")
    full = program(*arguments, *model, shell="> /dev/full")
    assert (full.returncode, full.stderr) == (1, "roberta-flax: cannot write the output: No space left on device\n")


@pytest.mark.slow
def test_a_closed_stderr_puts_no_message_among_the_results(tiny_directory, tiny):
    done = program("encode", "hi", "-m", "nowhere", shell="2>&-")
    assert (done.returncode, done.stdout) == (1, "")
    done = program("encode", "hi", "-m", tiny_directory, shell="2>&-")
    assert (done.returncode, done.stdout) == (0, " ".join(map(str, tiny.encode("hi"))) + "\n")


@pytest.mark.slow
def test_what_stdout_cannot_encode_is_escaped_and_json_stays_json(tiny_directory):
    each = [["fill-mask", "é <mask>", "-m", str(tiny_directory), *more] for more in ([], ["--json"])]
    both = f"""
import sys
from roberta_flax.cli import main
for arguments in {each!r}:
    sys.argv = ["roberta-flax", *arguments]
    try:
        main()
    except SystemExit as ended:
        print("status", ended.code or 0)
"""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", both], cwd=ROOT, env=environment, capture_output=True, text=True)
    text, as_json, rest = done.stdout.split("status 0\n")
    assert (rest, r"\xe9" in text) == ("", True), done.stderr
    assert json.loads(as_json)[0]["text"].startswith("é"), done.stderr


# Errors that others raise


class _CrashingApp:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __call__(self, prog_name: str) -> None:
        raise self.error


def ended_by(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stopped:
        cli.run(_CrashingApp(error), "p")
    return int(stopped.value.code or 0), capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FileNotFoundError(2, "No such file or directory", "a\x1bb"), r"p: cannot read or write a\x1bb: No such file or directory"),
        (IsADirectoryError(21, "Is a directory", "d"), "p: cannot read or write d: Is a directory"),
        (PermissionError(13, "Permission denied", "a", None, "b"), "p: cannot read or write a or b: Permission denied"),
        (OSError(24, "Too many open files"), "p: cannot read or write a file: Too many open files"),
        (OSError(28, "No space left on device"), "p: cannot write the output: No space left on device"),
        (OSError(28, "No space left on device", "f"), "p: cannot read or write f: No space left on device"),
        (OSError("odd"), "p: cannot read or write a file: odd"),
        (MemoryError(), "p: there is not enough memory; compute less at once"),
        (MemoryError("Unable to allocate 9 GiB"), "p: there is not enough memory; compute less at once"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nwhile"), "p: there is not enough memory on the device;"),
        (RuntimeError("Unable to initialize backend 'tpu': x"), "p: JAX cannot use the devices that it is asked for"),
        (RuntimeError("can't start new thread"), "p: this process may not start another thread"),
        (ValueError("invalid truth value 'x' for environment 'JAX_ENABLE_X64'"), "p: JAX refuses the value of an environment"),
        (ValueError('Invalid value "x" for JAX flag jax_y'), "p: JAX refuses the value of an environment variable (Invalid"),
        (ModuleNotFoundError("No module named 'jax'", name="jax"), "p: cannot import jax (No module named 'jax'); install"),
        (ImportError("libgomp.so.1:\ncannot open"), "p: cannot import a package (libgomp.so.1: cannot open); install"),
        (InputError("a\nb"), r"p: a\nb"),
    ],
)  # fmt: skip
def test_an_error_that_a_user_can_mend_is_one_line(error, line, capsys):
    status, err = ended_by(error, capsys)
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith(line)


@pytest.mark.parametrize(
    "error", [ValueError("x"), RuntimeError("x"), ImportError("x", name="roberta_flax.nn"), KeyError("x")]
)
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        cli.run(_CrashingApp(error), "p")


def test_an_interruption_is_one_line_and_its_exit_status(capsys):
    for error in (KeyboardInterrupt(), SystemExit(130)):  # typer makes the second of the first
        assert ended_by(error, capsys) == (130, "p: interrupted; rerun the command to resume a run over a file\n")
    for status in (0, 2):
        assert ended_by(SystemExit(status), capsys) == (status, "")


@pytest.mark.slow
def test_an_interruption_at_any_moment_of_the_start_is_no_traceback(tiny_directory):
    command = """
import signal
from roberta_flax import cli
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have what runs in the background ignore it
prepare = cli._prepare_streams
def begin():  # the first step of _errors_as_lines that can take time
    print(flush=True)
    prepare()
cli._prepare_streams = begin
cli.main()
"""
    interrupted = ("roberta-flax: interrupted; rerun the command to resume a run over a file\n", 130)
    said = set()
    for seconds in np.linspace(0, 2.5, 6):
        arguments = ["mnli", "a", "b", "-m", str(tiny_directory)]
        process = subprocess.Popen(
            [sys.executable, "-c", command, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        answer, error = process.communicate()
        # Python gives SIGINT back to the system while it shuts down: who answered in time may still be killed by it.
        said.add((error, 0 if process.returncode == -signal.SIGINT and answer else process.returncode))
    assert interrupted in said
    assert said <= {interrupted, ("", 0)}


def test_an_interruption_inside_a_destructor_is_not_lost():
    program_text = """
import os, signal, time, roberta_flax.cli as cli
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have what runs in the background ignore it
class Destroyed:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
def program(prog_name):
    Destroyed()
    time.sleep(10)
    print("went on")
cli.run(program, "program")
"""
    done = subprocess.run([sys.executable, "-c", program_text], cwd=ROOT, capture_output=True, text=True)
    line = "program: interrupted; rerun the command to resume a run over a file\n"
    assert (done.returncode, done.stdout, done.stderr) == (130, "", line)


def test_the_program_is_ready_for_errors_before_it_imports_what_takes_time():
    program_text = "import sys, roberta_flax.cli; print({'typer', 'rich', 'jax', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program_text], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["tpu", "cuda", "abacus"])
def test_an_accelerator_that_is_not_there_is_one_line(platform, start, tiny_directory):
    done = start(processes.program, "mnli", "a", "b", "-m", tiny_directory, JAX_PLATFORMS=platform)
    _, err = done.communicate()
    if done.returncode == 0:
        pytest.skip(f"this machine has {platform}")
    assert (done.returncode, err.count("\n")) == (1, 1), err
    assert f"JAX cannot use the devices that JAX_PLATFORMS={platform} names" in err


# Files that are none


@pytest.mark.parametrize("kind", ["device", "pipe", "loop", "broken", "nothing", "directory"])
def test_what_is_no_model_is_said_to_be_none(kind, run, tiny_directory, tmp_path):
    path = tmp_path / kind
    match kind:
        case "device":
            path = Path("/dev/null")
        case "pipe":
            os.mkfifo(path)
        case "loop" | "broken":
            path.symlink_to({"loop": path, "broken": tmp_path / "nowhere"}[kind])
        case "directory":
            path.mkdir()
    source = "" if kind == "nothing" else path
    for command in (
        ("convert", source, tmp_path / "made"),
        ("encode", "a", "-m", source),
        ("verify", tiny_directory, "--against", source),
    ):
        status, out, err = run(*command)
        assert (status, out, err.count("\n")) == (1, "", 1)
    assert not (tmp_path / "made").exists()


def test_a_cache_that_cannot_be_written_keeps_no_programs_and_says_so(run, tiny_directory, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    status, out, _ = run("mnli", "a", "b", "-m", tiny_directory, "--cache-dir", tmp_path / "file")
    assert (status, out != "") == (0, True)
    assert [message.partition(",")[0] for message in caplog.messages] == ["compiled programs are not kept"]


# The report of a comparison


@pytest.fixture(scope="module")
def report(one_layer: Path) -> parity.Report:
    points = ["heads.*", "features", "layers.*.output", "embeddings.output"]
    return parity.compare(one_layer, texts=["a b"], only=points)


@pytest.mark.slow
@pytest.mark.parametrize("names", [("$", "$x$", "a$_b"), (r"\alpha$", "a[red]b")])
def test_a_heads_name_is_no_formula_in_a_plot(names, report):
    def with_heads(run: parity.Run) -> parity.Run:
        """The run of a model with a head of each name."""
        tensors = [dataclasses.replace(each, name=each.name.replace(".mnli.", f".{name}."))
                   for name in names for each in run.tensors if ".mnli." in each.name or name == names[0]]  # fmt: skip
        return dataclasses.replace(run, tensors=tuple(tensors))

    page = report_html.render(dataclasses.replace(report, runs=tuple(map(with_heads, report.runs))))
    assert page.count("<svg") == 3
    for name in names:
        assert f">heads.{name}.logits</text>" in page


@pytest.mark.slow
def test_a_plot_that_fails_loses_no_report(report, tmp_path, monkeypatch, caplog):
    def fail(*_: object) -> None:
        raise ValueError("no font")

    monkeypatch.setattr(report_plots, "_plot_histograms", fail)
    assert output.write(report, tmp_path / "a") is None
    assert (tmp_path / "a" / "report.html").read_text().count("<svg") == 2
    assert caplog.messages == ["the plot 'Histogram of errors' is left out of the report: ValueError: no font"]
    monkeypatch.setattr(report_html, "render", fail)
    assert output.write(report, tmp_path / "b") == "ValueError: no font"
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["report.json"]
