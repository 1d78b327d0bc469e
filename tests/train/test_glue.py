"""python -m recipes.glue: all of GLUE from end to end, on a small model and generated files in GLUE's own layouts."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from recipes.glue import runs
from recipes.glue.__main__ import main
from recipes.glue.files import FOLDERS, chosen_tasks, files_of
from recipes.glue.runs import Suite
from recipes.glue.table import to_markdown
from roberta_flax.cli import options
from roberta_flax.cli.options import MeshOptions, ModelOptions
from roberta_flax.datasets.recipes import RECIPES, published_score
from roberta_flax.errors import InputError
from roberta_flax.train import finetuning

ROWS = 80  # more than three steps take: the only validation is the last
NLI, RTE = ("contradiction", "neutral", "entailment"), ("entailment", "not_entailment")
MNLI = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse\t"
    "sentence1\tsentence2\tlabel1\tgold_label"
)
# a header, or none, and a row, of what GLUE's download script leaves
LAYOUTS: dict[str, tuple[str | None, Callable[[int, str, str], str]]] = {
    "mnli": (MNLI, lambda i, a, b: f"{i}\t{i}\t{i}n\tfiction\t( a )\t( b )\t(ROOT a)\t(ROOT b)\t{a}\t{b}\t-\t{NLI[i % 3]}"),
    "qnli": ("index\tquestion\tsentence\tlabel", lambda i, a, b: f"{i}\t{a}\t{b}\t{RTE[i % 2]}"),
    "qqp": ("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", lambda i, a, b: f"{i}\t1\t2\t{a}\t{b}\t{i % 2}"),
    "rte": ("index\tsentence1\tsentence2\tlabel", lambda i, a, b: f"{i}\t{a}\t{b}\t{RTE[i % 2]}"),
    "sst-2": ("sentence\tlabel", lambda i, a, b: f"{a} {b} {a} \t{i % 2}"),
    "mrpc": ("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", lambda i, a, b: f"{i % 2}\t7\t8\t{a}\t{b}"),
    "cola": (None, lambda i, a, b: f"gj04\t{i % 2}\t{'*' * (1 - i % 2)}\t{a} {b} {a}"),
    "sts-b": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        lambda i, a, b: f"{i}\tmain\tMSRvid\t2012test\t{i:04}\tnone\tnone\t{a}\t{b}\t{i % 6}.000",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def glue(tmp_path_factory) -> Path:
    data = tmp_path_factory.mktemp("glue_data")
    for task, (header, row) in LAYOUTS.items():
        rows = [row(i, f"dog {i % 7} .", f"cat {i % 5} .") for i in range(ROWS)]  # of one length: few programs
        for path in filter(None, files_of(data, task)):
            path.parent.mkdir(exist_ok=True)
            path.write_text("\n".join([*([header] if header else []), *rows]) + "\n", encoding="utf-8")
    return data


@pytest.fixture
def run_glue(capsys, monkeypatch, one_layer):
    """Runs the program in this process: (exit status, stdout, stderr)."""

    for module in (options, runs):  # programs stay where conftest keeps them: most tasks share theirs
        monkeypatch.setattr(module, "keep_programs", lambda _: None)

    def run_glue(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["glue", *map(str, arguments), "--model", str(one_layer)])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    return run_glue


class Batches:
    """The batches of a run; a signal comes before one of them."""

    def __init__(self, batches: Any, stop_before: int | None) -> None:
        self.batches, self.get_state, self.set_state = batches, batches.get_state, batches.set_state
        self.stop_before, self.taken = stop_before, 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self.taken == self.stop_before:
            signal.raise_signal(signal.SIGTERM)
        self.taken += 1
        return next(self.batches)


@pytest.mark.slow
def test_a_stopped_run_of_all_tasks_resumes_and_leaves_the_table(run_glue, glue, tmp_path, monkeypatch):
    trained: list[str] = []
    stop_in = "SST-2"
    make_batches = finetuning.training_batches

    def training_batches(examples: Any, **arguments: Any) -> Batches:
        task = examples.tally.path.parent.name
        trained.append(task)
        return Batches(make_batches(examples, **arguments), 1 if task == stop_in else None)

    monkeypatch.setattr(finetuning, "training_batches", training_batches)
    output = tmp_path / "runs"
    arguments = (glue, "-o", output, "--steps", "3", "--seed", "1", "--after-mnli")
    status, _, err = run_glue(*arguments)
    assert status == 128 + signal.SIGTERM, err
    assert trained == ["MNLI", "QNLI", "QQP", "RTE", "SST-2"]
    assert [row["task"] for row in json.loads((output / "table.json").read_text())["rows"]] == [
        "mnli", "mnli-mm", "qnli", "qqp", "rte",
    ]  # fmt: skip

    trained.clear()
    stop_in = ""
    status, out, err = run_glue(*arguments)
    assert status == 0, err
    assert trained == ["SST-2", "MRPC", "CoLA", "STS-B"]
    rows = {row["task"]: row for row in json.loads((output / "table.json").read_text())["rows"]}
    assert set(rows) == {*FOLDERS, "mnli-mm"}
    assert {task: row["metric"] for task, row in rows.items() if row["metric"] != "accuracy"} == {
        "cola": "matthews", "sts-b": "pearson",
    }  # fmt: skip
    for task, folder in FOLDERS.items():
        summary = json.loads((output / task / "seed-1" / "summary.json").read_text())
        assert rows[task]["median"] == summary["metrics"][rows[task]["metric"]]
        assert (output / task / "seed-1" / "best" / "model.safetensors").exists()
        assert not (output / task / "seed-1" / "checkpoints").exists()  # gigabytes of a large model
        assert rows[task]["published"] is None  # of a model that fairseq has not released
        assert summary["steps"] == 3
        assert summary["training"]["path"] == str(glue / folder / "train.tsv")
    assert rows["mnli-mm"]["median"] == rows["mnli"]["median"]  # the same rows, through another reader
    table = (output / "table.md").read_text()
    assert out.strip() == table.strip()
    assert [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| ")][2:] == [
        "| MNLI-m", "| MNLI-mm", "| QNLI", "| QQP", "| RTE", "| SST-2", "| MRPC", "| CoLA", "| STS-B",
    ]  # fmt: skip

    starts = {task: json.loads((output / task / "seed-1" / "run.json").read_text())["model"] for task in FOLDERS}
    assert starts["qnli"] == starts["mnli"] == starts["cola"]
    assert starts["rte"] == starts["mrpc"] == starts["sts-b"] != starts["mnli"]

    trained.clear()
    status, _, err = run_glue(glue, "-o", output, "--steps", "4", "--seed", "1")
    assert (status, trained) == (1, [])
    assert "has another run (after_mnli was True and is False, steps was 3 and is 4)" in err

    data = tmp_path / "glue_data"
    shutil.copytree(glue, data)
    status, again, err = run_glue(data, *arguments[1:])
    assert (status, again, trained) == (0, out, [])  # the same files elsewhere
    (data / "RTE" / "dev.tsv").write_text((data / "RTE" / "train.tsv").read_text() + "80\tdog .\tcat .\tentailment\n")
    status, _, err = run_glue(data, *arguments[1:])
    assert (status, trained) == (1, [])
    assert re.search("rte/seed-1.json is of other files than those in .*RTE; give the same files", err)


def test_missing_files_are_named_in_one_line_before_any_work(run_glue, glue, tmp_path):
    data = tmp_path / "glue_data"
    shutil.copytree(glue, data)
    (data / "MNLI" / "dev_mismatched.tsv").unlink()
    shutil.rmtree(data / "CoLA")
    status, _, err = run_glue(data, "-o", tmp_path / "runs")
    assert (status, len(err.splitlines())) == (1, 1)
    assert "lacks MNLI/dev_mismatched.tsv, CoLA/train.tsv, CoLA/dev.tsv" in err
    assert not (tmp_path / "runs").exists()


def test_a_file_of_another_layout_is_named_in_one_line_before_any_work(run_glue, glue, tmp_path):
    data = tmp_path / "glue_data"
    shutil.copytree(glue, data)
    shutil.copyfile(glue / "SST-2" / "dev.tsv", data / "RTE" / "dev.tsv")
    status, _, err = run_glue(data, "-o", tmp_path / "runs")
    assert (status, len(err.splitlines())) == (1, 1)
    assert "RTE/dev.tsv has no column 'sentence1', 'sentence2'" in err


def test_a_task_that_starts_from_mnli_needs_the_mnli_model(run_glue, glue, tmp_path):
    status, _, err = run_glue(glue, "-o", tmp_path / "runs", "--task", "rte", "--after-mnli")
    assert (status, len(err.splitlines())) == (1, 1)
    assert "has no MNLI model of seed 1; add --task mnli" in err


def test_a_step_has_the_recipes_examples_in_batches_of_any_size(tmp_path):
    def sizes(task: str, batch_size: int | None) -> tuple[int, int]:
        suite = Suite(tmp_path, tmp_path, ModelOptions(), MeshOptions(), batch_size=batch_size)
        recipe = suite.recipe(task)
        assert dataclasses.replace(recipe, batch_size=RECIPES[task].batch_size, update_freq=1) == RECIPES[task]
        return recipe.batch_size, recipe.update_freq

    assert [sizes("mnli", size) for size in (None, 4, 16, 32, 64)] == [(32, 1), (4, 8), (16, 2), (32, 1), (32, 1)]
    assert [sizes("rte", size) for size in (None, 4, 16, 32)] == [(16, 1), (4, 4), (16, 1), (16, 1)]


def test_a_batch_that_does_not_divide_a_step_is_refused(run_glue, glue, tmp_path):
    status, _, err = run_glue(glue, "-o", tmp_path / "runs", "--batch-size", "12")
    assert (status, len(err.splitlines())) == (1, 1)
    assert "--batch-size must divide the 32 examples of a step, got 12" in err


def test_a_seed_that_is_given_twice_is_refused(run_glue, glue, tmp_path):
    status, _, err = run_glue(glue, "-o", tmp_path / "runs", "--seed", "3", "--seed", "3")
    assert (status, len(err.splitlines())) == (1, 1)
    assert "seeds must be distinct numbers from 0 to 2**32 - 1, got 3, 3" in err


def test_tasks_have_the_names_of_their_folders_and_mnli_is_first():
    assert chosen_tasks(["SST2", "RTE", "mnli"]) == ("mnli", "rte", "sst-2")
    assert chosen_tasks([]) == tuple(FOLDERS)
    with pytest.raises(InputError, match="no figure for WNLI"):
        chosen_tasks(["WNLI"])


def test_the_table_has_percents_beside_the_published_score():
    score = published_score("roberta.large", "rte")
    assert score is not None
    row = {
        "task": "rte", "metric": "accuracy", "median": 0.8628, "values": {"1": 0.8592, "2": 0.8628, "3": 0.87},
        "published": score.__dict__,
    }  # fmt: skip
    table = to_markdown("roberta.large", {"dtype": "bfloat16", "steps": None}, [row])
    assert "- dtype: bfloat16\n\n" in table
    assert "| RTE | accuracy | 86.28 | 85.92 | 87.00 | 3 | 86.6 | fairseq's README, roberta.large |" in table
