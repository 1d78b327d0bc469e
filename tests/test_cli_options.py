"""The options of the command line: groups, one vocabulary for all commands, and help that shows what is written."""

from __future__ import annotations

import json
import os
import runpy
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import jax
import pytest
import typer
from typer.testing import CliRunner

import roberta_flax
from roberta_flax import cli
from roberta_flax.checkpoint import tensors
from roberta_flax.cli import groups, options, progress
from roberta_flax.datasets import readers
from roberta_flax.datasets.layouts import LAYOUTS
from roberta_flax.datasets.recipes import PRETRAINING
from roberta_flax.nn.attention import IMPLEMENTATIONS
from roberta_flax.train.pretraining import Pretraining
from roberta_flax.train.samples import Samples
from tests.conftest import ROOT

# --- groups -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Colors(groups.Group, panel="Colors"):
    """A color, and another."""

    ink: Annotated[str, typer.Option("--ink", "-k", help="Color of [the ink].")] = "black"
    paper: Annotated[str | None, typer.Option(help="Color of the paper.", show_default="none")] = None


@dataclass(frozen=True)
class Drawing(Colors, panel="Drawing"):
    """What is drawn."""

    shape: Annotated[list[str] | None, typer.Option(help="A shape."), groups.Formerly(("--form", "-f"))] = None
    filled: Annotated[bool, typer.Option(help="Fill it.")] = False


@dataclass(frozen=True)
class Sheet(groups.Group, panel="Sheet"):
    """What is drawn on."""

    width: Annotated[int, typer.Option(help="Its width.")] = 21


@dataclass(frozen=True)
class Work(groups.Group):
    """Groups, and no option of its own."""

    drawing: Drawing = Drawing(ink="blue")
    sheet: Sheet = Sheet()


@pytest.fixture
def draw():
    """Runs a command with such options: what it was given, or what it printed."""
    given: list[Any] = []

    @groups.grouped
    def command(
        file: Annotated[str, typer.Argument(metavar="FILE", help="A file."), groups.Formerly(("--file",))],
        work: Work = Work(sheet=Sheet(width=30)),
        copies: Annotated[int, typer.Option(help="How many.")] = 1,
    ) -> None:
        """Draw something [to a file]."""
        given.append((file, work, copies))

    app = typer.Typer(add_completion=False)
    groups.add(app, "draw", command, "draw a.png")

    def draw(*arguments: str) -> Any:
        given.clear()
        result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "120"})
        return given[0] if given else (result.exit_code, result.output)

    return draw


def test_a_command_gets_its_groups_filled_and_its_own_options(draw):
    assert draw("a.png") == ("a.png", Work(sheet=Sheet(30)), 1)
    options = ["-k", "red", "--shape", "disk", "--shape", "box", "--filled", "--width", "10", "--copies", "2"]
    drawing = Drawing(ink="red", shape=["disk", "box"], filled=True)
    assert draw("a.png", *options) == ("a.png", Work(drawing, Sheet(10)), 2)


def test_former_names_are_read_as_the_present_ones(draw):
    now = draw("a.png", "--shape", "disk", "--shape", "box")
    assert draw("--file", "a.png", "--form", "disk", "-f", "box") == now
    assert draw("--file=a.png", "--form=disk", "--shape", "box") == now
    assert draw("--shape", "disk", "--shape", "box", "--", "--file")[0] == "--file"


def test_help_has_a_panel_for_each_group_and_no_former_names(draw):
    status, text = draw("--help")
    assert status == 0
    panels = [line.strip("╭─╮ \n") for line in text.splitlines() if line.startswith("╭")]
    assert panels == ["Arguments", "Options", "Drawing", "Colors", "Sheet"]
    assert "Color of [the ink]. [default: blue]" in text
    assert "Color of the paper. [default: (none)]" in text
    assert "Draw something [to a file]." in text
    assert "--no-filled" not in text
    assert "--form" not in text


def test_wrong_usage_names_the_present_name(draw):
    status, text = draw("--form", "disk")
    assert status == 2
    assert "FILE" in text


def test_an_option_that_is_declared_twice_is_a_mistake():
    def command(work: Work, ink: Annotated[str, typer.Option(help="Again.")] = "") -> None: ...

    with pytest.raises(ValueError, match="declares ink twice"):
        groups.grouped(command)


# --- all commands -----------------------------------------------------------------------------------------------------

COMMANDS = typer.main.get_command(cli.app).commands
ENCODERS = ("train-encoder", "train-reranker")
LOADING = (
    "predict",
    "evaluate",
    "mnli",
    "features",
    "fill-mask",
    "disambiguate",
    "finetune",
    "pretrain",
    "perplexity",
    *ENCODERS,
)
TRAINING = ("finetune", "pretrain", "perplexity", *ENCODERS)  # an int8 network has no loss
# what a flag says that has another meaning in one command
OTHERWISE = {
    ("convert", "--dtype"), ("parity", "--dtype"), ("finetune", "--seed"), ("perplexity", "--batch-size"),
    ("export", "--head"), ("finetune", "--output"), ("pretrain", "--output"), ("preprocess", "--output"),
    ("parity", "--output"), ("convert", "--strict"), ("mnli", "--labels"), ("train-encoder", "--output"),
    ("train-reranker", "--output"), ("features", "--prompt"), ("features", "--pooling"),
    ("train-encoder", "--best-metric"), ("train-reranker", "--best-metric"),
}  # fmt: skip


def parsed(command: str, *arguments: str) -> dict[str, Any]:
    """What the command line makes of arguments, without running the command."""
    return dict(COMMANDS[command].make_context(command, list(arguments)).params)


def written_help(command: Any) -> list[str]:
    """All that a command's help is to show, without the backslashes that say that a bracket is no markup."""
    texts = [
        command.help,
        *(
            text
            for param in command.params
            if not getattr(param, "hidden", False)
            for text in (param.help, param.metavar)
        ),
    ]
    return [text.replace("\\[", "[") for text in texts if text]


@pytest.mark.slow
def test_every_help_page_shows_what_is_written_and_waits_for_no_jax(tmp_path):
    program = """
import json, sys
import typer
from typer.testing import CliRunner
from roberta_flax import cli
pages = {name: CliRunner().invoke(cli.app, [name, "--help"]).output for name in cli.COMMANDS}
pages[""] = CliRunner().invoke(cli.app, ["--help"]).output
print(json.dumps({"pages": pages, "modules": sorted({"jax", "flax", "torch"}.intersection(sys.modules))}))
"""
    environment = {**os.environ, "TERMINAL_WIDTH": "2000", "COLUMNS": "2000"}  # no line of help is broken
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, check=True)
    result = json.loads(done.stdout)
    assert result["modules"] == []
    for name, command in COMMANDS.items():
        shown = " ".join(result["pages"][name].split())
        assert f"{name} [OPTIONS]" in shown
        for text in written_help(command):
            assert " ".join(text.split()) in shown, name
        assert written_help(command)[0].partition("\n")[0] in result["pages"][""]


def test_brackets_are_shown():
    page = CliRunner().invoke(cli.app, ["disambiguate", "--help"], env={"COLUMNS": "200"}).output
    assert "pronoun in [brackets]" in page
    page = CliRunner().invoke(cli.app, ["features", "--help"], env={"COLUMNS": "200"}).output
    assert "[layers + 1, 1, time, hidden]" in page


def test_a_flag_means_the_same_in_every_command():
    helps: dict[str, set[str]] = {}
    for name, command in COMMANDS.items():
        for param in command.params:
            for flag in param.opts:
                if flag.startswith("--") and (name, flag) not in OTHERWISE:
                    helps.setdefault(flag, set()).add(str(param.help))
    assert {flag: texts for flag, texts in helps.items() if len(texts) > 1} == {}


def test_every_command_that_loads_a_model_says_how_it_computes():
    for name in LOADING:
        flags = {flag for param in COMMANDS[name].params for flag in param.opts}
        assert {"--model", "--dtype", "--precision", "--attention", "--cache-dir", "--json"} <= flags, name
        assert ("--quantize" in flags) == (name not in TRAINING), name


def test_files_that_are_read_come_first_as_input():
    for name in ("predict", "evaluate", "zero-shot", "tag", "answer", "rank", "features", "fill-mask", "finetune", "preprocess",
                 "pretrain", "perplexity", *ENCODERS):  # fmt: skip
        first = COMMANDS[name].params[0]
        assert str(first.metavar).startswith("INPUT"), name


@pytest.mark.parametrize(
    ("command", "former", "now"),
    [
        ("finetune", "--train a --valid b --task rte -o c --text x --text y --label z --updates 3 --warmup-updates 1 --lr 2",
         "a --valid b --task rte -o c -c x --text-column y --label-column z --steps 3 --warmup-steps 1 --learning-rate 2"),
        ("pretrain", "--data a --valid b -o c --max-update 9 --warmup-updates 1 --keep 2 --lr 2",
         "a --valid b -o c --steps 9 --warmup-steps 1 --keep-checkpoints 2 --learning-rate 2"),
        ("predict", "a.csv -o b --column x --column=y --keep z", "a.csv -o b -c x -c y --keep z"),
        ("evaluate", "a --text x --label y", "a --text-column x --label-column y"),
        ("features", "--input a.txt -o b", "a.txt -o b"),
        ("features", "-i a.txt -o b", "a.txt -o b"),
        ("fill-mask", "--input=a.txt -o b --column x", "a.txt -o b --text-column x"),
        ("parity", "a --texts b --column x", "a --texts b --text-column x"),
        ("parity", "a --device cpu", "a --backend cpu"),
        ("finetune", "a --validation b --task rte -o c --max_steps 3 --num_train_epochs 2 --learning_rate 1e-5",
         "a --valid b --task rte -o c --steps 3 --epochs 2 --learning-rate 1e-5"),
    ],
)  # fmt: skip
def test_commands_of_yesterday_are_understood(command, former, now):
    assert parsed(command, *former.split()) == parsed(command, *now.split())


def test_help_comes_in_a_page_of_60_lines_before_what_few_people_need():
    for name in ["", *COMMANDS]:
        page = CliRunner().invoke(cli.app, [*name.split(), "-h"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
        assert page.exit_code == 0
        lines = page.output.splitlines()
        assert next((n for n, line in enumerate(lines) if " (advanced) " in line), len(lines)) <= 60, name
        assert not name or f"Example: roberta-flax {name}" in page.output


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_a_command_is_one_that_it_takes(name):
    _, command, *arguments = shlex.split(COMMANDS[name].help.rpartition("Example: ")[2].replace("\\[", "["))
    assert command == name
    parsed(command, *arguments)


def test_help_shows_the_hyperparameters_of_the_task_that_is_named():
    def page(*task: str) -> str:
        result = CliRunner().invoke(cli.app, ["finetune", *task, "--help"], env={"COLUMNS": "200"})
        return " ".join(result.output.split())

    assert "Peak learning rate. [default: (2e-05)]" in page("--task", "rte")  # config/finetuning/rte.yaml: lr [2e-05]
    assert "Number of steps. [default: (2036)]" in page("--task=RTE")
    for task in ((), ("--task", "none")):
        assert "Peak learning rate. [default: (the recipe's)]" in page(*task)


@pytest.mark.parametrize(
    ("command", "given", "meant"),
    [
        ("predict", "a --dtype bf16", {"dtype": "bfloat16"}),
        ("predict", "a --dtype FP32 --precision HIGHEST", {"dtype": "float32", "precision": "highest"}),
        ("finetune", "a --valid b --task custom -o c --kind multi_label", {"kind": "multi-label"}),
        ("parity", "a --dtype bf16 --dtype fp32", {"dtype": ["bfloat16", "float32"]}),
        ("features", "a --on_long=Truncate", {"on_long": "truncate"}),
    ],
)
def test_choices_are_taken_in_any_spelling(command, given, meant):
    shown = parsed(command, *given.split())
    assert {name: shown[name] for name in meant} == meant


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "predict a --dtype bflot16",
            "'bflot16' is not one of float32, bfloat16, float16, float64; did you mean 'bfloat16'?",
        ),
        ("predict a --strategy x", "'x' is not one of auto, buckets, packing, fixed"),
        ("predict a --engine spark", "'spark' is not one of local, ray"),
        ("predict a --on-long cut", "'cut' is not one of error, truncate, window"),
        ("predict a --framing swag", "'swag' is not one of choice, race, commonsenseqa"),
        ("features a --pooling max", "'max' is not one of mean, first, tokens"),
        ("export a b --to onnx", "'onnx' is not one of fairseq, huggingface, sentence-transformers, stablehlo"),
        ("export a b --to stablehlo --platform abacus", "'abacus' is not one of cpu, cuda, rocm, tpu"),
        ("finetune a --valid b -o c --task custom --kind tokens", "did you mean 'token'?"),
        ("pretrain a --valid b -o c --size huge", "'huge' is not one of base, large"),
        ("pretrain a --valid b -o c --sample-break-mode doc", "'doc' is not one of complete, complete_doc, eos, none"),
        ("predict a --quantize int4", "'int4' can only be int8; did you mean 'int8'?"),
        ("predict a --batch-size 4", "No such option: --batch-size"),
        ("predict a --batch-size 4", "Batches are laid out by tokens: use --tokens-per-batch."),
    ],
)
def test_what_is_no_choice_and_no_option_is_wrong_usage_that_says_what_is(command, message):
    result = CliRunner().invoke(cli.app, command.split(), env={"COLUMNS": "300", "TERMINAL_WIDTH": "300"})
    assert result.exit_code == 2
    assert message in result.output


def test_choices_are_completed():
    (dtype,) = (param for param in COMMANDS["predict"].params if param.name == "dtype")
    context = COMMANDS["predict"].make_context("predict", ["a"])
    assert [item.value for item in dtype.shell_complete(context, "b")] == ["bfloat16"]


def test_a_device_is_chosen_before_jax_opens_any(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "")
    monkeypatch.setattr(jax.config, "update", lambda *setting: settings.append(setting))
    settings: list[tuple[str, str]] = []
    assert parsed("predict", "a", "--device", "gpu")["device"] == "gpu"
    assert (os.environ["JAX_PLATFORMS"], settings) == ("cuda", [("jax_platforms", "cuda")])


def test_the_version_is_that_of_the_package_and_python_m_runs_the_program(monkeypatch, capsys):
    for arguments, shown in (
        (["--version"], f"roberta-flax {roberta_flax.__version__}\n"),
        (["decode", "-h"], "ID..."),
    ):
        monkeypatch.setattr(sys, "argv", ["roberta-flax", *arguments])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_module("roberta_flax", run_name="__main__")
        assert not stopped.value.code
        assert shown in capsys.readouterr().out


def test_help_names_every_task_attention_and_hyperparameter_as_the_code_has_them():
    task = next(param for param in COMMANDS["finetune"].params if "--task" in param.opts)
    for name in (*LAYOUTS, *readers.CHOICE_TASKS, readers.CUSTOM):
        assert f" {name}" in task.help, name
    kind = next(param for param in COMMANDS["finetune"].params if "--kind" in param.opts)
    assert tuple(kind.metavar.split("|")) == readers.KINDS
    attention = next(param for param in COMMANDS["mnli"].params if "--attention" in param.opts)
    assert tuple(attention.metavar.split("|")) == IMPLEMENTATIONS


def test_defaults_are_those_of_the_functions():
    assert asdict(options.SampleOptions().samples(seed=1)) == asdict(Samples())
    assert options.TrainingOptions.of(PRETRAINING).recipe(PRETRAINING) == PRETRAINING
    assert options.TrainingOptions().recipe(PRETRAINING) == PRETRAINING
    shown = parsed("pretrain", "a", "--valid", "b", "-o", "c")
    python = {field.name: field.default for field in fields(Pretraining)}
    for option, name in {"keep_checkpoints": "keep"}.items() | {
        (name, name) for name in ("validate_every", "save_every", "log_every", "patience")
    }:
        assert shown[option] == python[name], option
    assert (shown["steps"], shown["warmup_steps"]) == (PRETRAINING.total_steps, PRETRAINING.warmup_steps)


# --- INPUT of features and fill-mask: a file, or as before a text -----------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "format", "expected"),
    [
        (["a.txt"], None, (Path("a.txt"), [])),
        (["dir/a.jsonl.gz"], None, (Path("dir/a.jsonl.gz"), [])),
        (["A.PARQUET"], None, (Path("A.PARQUET"), [])),
        (["notes"], "txt", (Path("notes"), [])),
        (["Hello world!"], None, (None, ["Hello world!"])),
        (["Read e.g. this."], None, (None, ["Read e.g. this."])),
        (["a", "b"], None, (None, ["a", "b"])),
    ],
)
def test_an_input_is_a_file_by_its_name_and_otherwise_a_text(inputs, format, expected):
    assert cli.jobs.file_or_texts(inputs, None, format) == expected


def test_a_directory_is_a_file_of_texts_and_a_text_named_like_a_file_is_given_with_text(tmp_path):
    assert cli.jobs.file_or_texts([str(tmp_path)], None, None) == (tmp_path, [])
    assert cli.jobs.file_or_texts(None, ["a.txt"], None) == (None, ["a.txt"])
    with pytest.raises(roberta_flax.InputError, match="of which 'b.txt' is a file"):
        cli.jobs.file_or_texts(["a", "b.txt"], None, None)


# --- the package ------------------------------------------------------------------------------------------------------


def test_every_public_name_is_there_when_it_is_asked_for():
    for name in roberta_flax.__all__:
        assert getattr(roberta_flax, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        roberta_flax.laod  # noqa: B018


# --- long work --------------------------------------------------------------------------------------------------------


def test_where_stderr_is_no_terminal_long_work_says_a_line_now_and_then(capsys, monkeypatch):
    moments = iter([0.0, 10.0, 31.0, 31.0, 40.0, 62.0, 62.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(moments))
    with progress.spoken("begins") as speak:
        for number in range(4):
            speak(f"batch {number}\x1b[2J")
    assert capsys.readouterr().err == "batch 1\\x1b[2J\nbatch 3\\x1b[2J\n"


def test_a_file_of_parameters_that_takes_long_to_write_says_how_far_it_is(tiny, tmp_path, monkeypatch, caplog):
    tiny.save(tmp_path / "soon")
    assert caplog.messages == []
    monkeypatch.setattr(tensors, "_REPORT_SECONDS", 0)
    caplog.set_level("INFO", "roberta_flax")
    tiny.save(tmp_path / "late")
    count = len(jax.tree.leaves(tiny.params))
    assert caplog.messages == [f"model.safetensors: {n} of {count} tensors are written" for n in range(1, count + 1)]
