"""roberta-flax finetune: every kind of head learns a pattern, the best model is one that the other commands take."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
import shutil
import signal
import statistics
import time
from pathlib import Path
from typing import Any

import fsspec
import jax
import numpy as np
import pytest

import roberta_flax
from roberta_flax.checkpoint import converted
from roberta_flax.cli import finetune as finetune_command
from roberta_flax.datasets import readers
from roberta_flax.datasets.readers import Columns, TrainedOn
from roberta_flax.datasets.recipes import CUSTOM, RECIPES
from roberta_flax.errors import CheckpointError, InputError
from roberta_flax.files import differences
from roberta_flax.inference.evaluation import evaluate
from roberta_flax.metrics import Evaluation, evaluate_answers
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from roberta_flax.nn.tree import flatten
from roberta_flax.remote import to_path
from roberta_flax.tasks import judging
from roberta_flax.train import directory as run_directory
from roberta_flax.train.finetuning import FineTuning, Result, SeedResults, continues, trained_part
from roberta_flax.train.validation import Validation
from tests import processes
from tests.conftest import EIGHT_DEVICES, ROOT

# learns in seconds: no dropout, no warm-up of any length, and a learning rate for a random network of two layers
FAST = ("--lr", "2e-3", "--dropout", "0", "--attention-dropout", "0", "--batch-size", "8", "--update-freq", "1",
        "--weight-decay", "0", "--validate-every", "20")  # fmt: skip


@pytest.fixture
def finetune(run, one_layer):
    """Fine-tunes a network of one layer, unless another model is given; gives the summary and stderr."""

    def finetune(
        train: Path, output: Path, *arguments: object, model: Path | None = None
    ) -> tuple[dict[str, Any], str]:
        files = (train, "--valid", train, "-o", output)
        status, out, err = run("finetune", *files, *FAST, "--model", model or one_layer, *arguments, "--json")
        assert status == 0, err
        return json.loads(out), err

    return finetune


def written(path: Path, *lines: Any) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


NOUNS = ("dog", "cat", "man", "woman", "table", "house", "garden", "train")


@pytest.fixture(scope="module")
def sentiment(tmp_path_factory) -> Path:
    """SST-2's layout: what is good is 1."""
    rows = [f"the {noun} is {word}\t{label}" for noun in NOUNS for word, label in (("good", 1), ("bad", 0))]
    return written(tmp_path_factory.mktemp("sentiment") / "train.tsv", "sentence\tlabel", *rows)


@pytest.fixture(scope="module")
def runs() -> dict[Any, tuple[Path, dict[str, Any], str]]:
    return {}


# Runs with these options share a compiled step, in which the schedule is. Ten steps are enough to learn `sentiment`; after
# three, some seeds have and some have not.
SST2 = ("--task", "sst2", "--steps", "20", "--validate-every", "10")
SEEDS = ("--task", "sst2", "--steps", "3", "--seed", "3", "--seed", "1", "--seed", "2")


@pytest.fixture
def finished(finetune, sentiment, runs, tmp_path_factory):
    """A run on `sentiment`, which is done once for the module: its directory, summary and stderr."""

    def finished(*options: str) -> tuple[Path, dict[str, Any], str]:
        if options not in runs:
            directory = tmp_path_factory.mktemp("finished") / "run"
            runs[options] = directory, *finetune(sentiment, directory, *options)
        return runs[options]

    return finished


# --- every kind of head -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_sst2_learns_and_predict_and_evaluate_take_the_best_model(finished, run, sentiment):
    directory, summary, err = finished(*SST2)
    assert summary["metrics"] == {"accuracy": 1.0}
    assert (summary["task"], summary["head"], summary["steps"]) == ("sst-2", "sst-2", 20)
    assert "config/finetuning/sst_2.yaml: 20 steps of 8 examples, 1 of them warmup; 2 steps per epoch" in err
    best = directory / "best"
    config = converted.read_config(best)
    assert config.heads == (HeadConfig("sst-2", 2, 64, labels=("negative", "positive")),)
    assert config.lm_head
    status, out, _ = run("predict", "--text", "the garden is bad", "--model", best, "--json")
    assert (status, json.loads(out)["label"]) == (0, "negative")
    status, out, _ = run("evaluate", sentiment, "--task", "sst-2", "--model", best, "--json")
    assert status == 0
    judged = json.loads(out)
    assert judged["metrics"] == summary["metrics"]
    assert judged["confusion"] == summary["confusion"]


@pytest.mark.slow
def test_a_regression_learns_and_is_judged_by_correlations(finetune, tmp_path):
    words = ("no", "one", "two", "some", "many")
    rows = [{"a": f"the {noun}", "b": f"{word} dogs", "y": i + 1} for noun in NOUNS for i, word in enumerate(words)]
    train = written(tmp_path / "r.jsonl", *rows)
    columns = ("-c", "a", "-c", "b", "--label-column", "y")
    options = (
        "--task",
        "custom",
        "--kind",
        "regression",
        *columns,
        "--steps",
        "70",
        "--lr",
        "5e-3",
        "--head",
        "degree",
    )
    summary, _ = finetune(train, tmp_path / "o", *options)
    assert summary["metrics"]["pearson"] > 0.99
    assert summary["metrics"]["mse"] < 0.1
    assert converted.read_config(tmp_path / "o" / "best").head("degree").problem == "regression"


@pytest.mark.slow
def test_several_labels_learn(finetune, run, tmp_path):
    rows = [
        f"the {noun} is {a} and {b},{int(a == 'red')},{int(b == 'old')}"
        for noun in NOUNS
        for a in ("red", "green")
        for b in ("old", "small")
    ]
    train = written(tmp_path / "m.csv", "text,red,old", *rows)
    options = (
        "--task",
        "custom",
        "--kind",
        "multi-label",
        "--label-column",
        "red",
        "--label-column",
        "old",
        "--steps",
        "30",
    )
    summary, _ = finetune(train, tmp_path / "o", *options)
    assert summary["metrics"] == {"f1": 1.0, "accuracy": 1.0}
    _, out, _ = run("predict", "--text", "the dog is red and small", "--model", tmp_path / "o" / "best", "--json")
    assert json.loads(out)["label"] == "red"


@pytest.mark.slow
def test_tokens_learn(finetune, run, tmp_path):
    rows = [
        {"words": ["the", noun, verb, "the", other], "tags": ["O", "SUBJECT", "O", "O", "OBJECT"]}
        for noun, other in zip(NOUNS, reversed(NOUNS), strict=True)
        for verb in ("sees", "hears")
    ]
    train = written(tmp_path / "t.jsonl", *rows)
    summary, _ = finetune(train, tmp_path / "o", "--task", "custom", "--kind", "token", "--steps", "40")
    assert summary["metrics"] == {"macro_f1": 1.0, "accuracy": 1.0}
    assert summary["labels"] == ["O", "OBJECT", "SUBJECT"]
    _, out, _ = run("predict", "--text", "the dog sees the train", "--model", tmp_path / "o" / "best", "--json")
    assert {token["label"] for token in json.loads(out)["token"] if token["text"].strip() in ("dog", "d")} == {
        "SUBJECT"
    }


@pytest.mark.slow
def test_entities_are_judged_whole_where_labels_mark_them(finetune, run, tmp_path):
    rows = [
        {"tokens": ["the", noun, "sees", "old", other], "ner": ["O", "B-ONE", "O", "B-TWO", "I-TWO"]}
        for noun in NOUNS
        for other in ("park", "street", "ball")
    ]
    train = written(tmp_path / "t.jsonl", *rows)
    options = (
        "--task",
        "custom",
        "--kind",
        "token",
        "--text-column",
        "tokens",
        "--label-column",
        "ner",
        "--steps",
        "30",
    )
    summary, _ = finetune(train, tmp_path / "o", *options)
    ones = {"entity_f1": 1.0, "entity_precision": 1.0, "entity_recall": 1.0, "accuracy": 1.0}
    assert (summary["metrics"], summary["best_metric"]) == (ones, "entity_f1")
    # a row with another second entity: of its 2 the model finds 1, and 1 that is not there
    other = {"tokens": ["the", "dog", "sees", "old", "park"], "ner": ["O", "B-ONE", "O", "O", "B-TWO"]}
    dev = written(tmp_path / "dev.jsonl", rows[0], other, {"tokens": ["no", "tags"]})
    command = ("evaluate", dev, "--model", tmp_path / "o" / "best", "--text-column", "tokens", "--label-column", "ner")
    status, out, err = run(*command, "--json")
    assert status == 0, err
    judged = json.loads(out)
    assert judged["metrics"] == pytest.approx(
        {"entity_f1": 3 / 4, "entity_precision": 3 / 4, "entity_recall": 3 / 4, "accuracy": 8 / 10}
    )
    assert (judged["count"], judged["skipped"], judged["labels"]) == (10, 1, summary["labels"])
    for wrong, message in (
        (("--on-long", "window"), "on_long is for sentence heads of one label; 'custom' is of kind token"),
        (("--task", "mnli"), "head 'custom' is of kind token, with 4 outputs; got the task mnli"),
        (("--labels", "a,b"), "got the task custom and 2 labels"),
    ):
        status, _, err = run(*command, *wrong)
        assert (status, err.count("\n"), message in err) == (1, 1, True), err


@pytest.mark.slow
def test_spans_learn_over_windows_and_where_there_is_none(finetune, run, tmp_path):
    rows = []
    for noun in NOUNS:
        for place in ("garden", "park", "street"):
            context = (
                f"It rains and the sun is away. The {noun} lives in the {place} by day. It rains again, and again."
            )
            answers = {"text": [f"the {place}"], "answer_start": [context.index(f"the {place}")]}
            rows.append({"question": f"Where is the {noun}?", "context": context, "answers": answers})
        nowhere = "It rains and the sun is away. It rains again, and again."
        rows.append(
            {"question": f"Where is the {noun}?", "context": nowhere, "answers": {"text": [], "answer_start": []}}
        )
    train = written(tmp_path / "s.jsonl", *rows)
    options = ("--task", "custom", "--kind", "span", "--steps", "60", "--max-length", "44")
    summary, err = finetune(train, tmp_path / "o", *options)
    assert summary["count"] == len(rows)
    assert summary["training"]["examples"] > len(rows)
    tally = re.search(r"\d+ examples; \d+ truncated", err)
    assert tally
    assert summary["metrics"] == {"exact_match": 1.0, "f1": 1.0}
    status, out, err = run("evaluate", train, "--model", tmp_path / "o" / "best", "--json")
    assert status == 0, err
    assert json.loads(out)["metrics"] == summary["metrics"]
    _, out, _ = run("evaluate", train, "--model", tmp_path / "o" / "best", "--max-length", "44")
    assert tally[0] in out
    question = ("predict", "--model", tmp_path / "o" / "best", "--json", "--text", rows[0]["question"], "--text")
    there, nowhere = (json.loads(run(*question, text)[1]) for text in (rows[0]["context"], nowhere))
    assert there["answer"] == "the garden"
    assert there["probability"] > there["no_answer"]
    assert nowhere["probability"] < nowhere["no_answer"]


@pytest.mark.slow
def test_choices_learn(finetune, run, tmp_path):
    rows = [
        {"text": f"What does the {noun} drink?", "choices": [*other, "tea", *more], "label": len(other)}
        for noun in NOUNS
        for other, more in (([], ["a chair", "rain"]), (["a table"], ["war"]), (["grass", "a cat"], []), (["rain"], []))
    ]
    train = written(tmp_path / "c.jsonl", *rows)
    summary, _ = finetune(train, tmp_path / "o", "--task", "custom", "--kind", "choice", "--steps", "20")
    assert summary["metrics"] == {"accuracy": 1.0}
    texts = ("--text", "What does the man drink?", "--text", "a house", "--text", "tea")
    _, out, _ = run("predict", *texts, "--model", tmp_path / "o" / "best", "--json")
    assert json.loads(out)["label"] == "tea"


@pytest.mark.slow
def test_multiple_choice_as_fairseq_frames_race_learns(finetune, tmp_path):
    rows = []
    for i, noun in enumerate(NOUNS * 2):
        options = [f"the {other}" for other in ("chair", "news", "war", "price")]
        options[i % 4] = "tea"
        rows.append({"article": f"A {noun}.", "question": "It drinks _.", "options": options, "answer": "ABCD"[i % 4]})
    train = written(tmp_path / "q.jsonl", *rows)
    summary, _ = finetune(train, tmp_path / "o", "--task", "race", "--steps", "20")
    assert summary["metrics"] == {"accuracy": 1.0}
    assert summary["recipe"]["source"].endswith("README.race.md")


# --- runs -----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_sts_b_is_trained_on_fifths_and_evaluate_agrees(finetune, run, tmp_path):
    words = ("no", "one", "two", "some", "many")
    rows = [f"the {noun}\t{word} dogs\t{i + 1}.0" for noun in NOUNS for i, word in enumerate(words)]
    train = written(tmp_path / "dev.tsv", "sentence1\tsentence2\tscore", *rows)
    summary, _ = finetune(train, tmp_path / "o", "--task", "stsb", "--steps", "60")
    best = tmp_path / "o" / "best"
    values = [
        roberta_flax.load(best).predict("sts-b", roberta_flax.load(best).encode("the dog", f"{word} dogs")).item()
        for word in words
    ]
    assert max(values) < 1.5
    _, out, _ = run("evaluate", train, "--task", "sts-b", "--model", best, "--json")
    assert json.loads(out)["metrics"] == pytest.approx(summary["metrics"], abs=1e-5)


@pytest.mark.slow
def test_fine_tuning_from_python_is_the_commands(finished, sentiment, one_layer, tmp_path):
    """The same bytes of records; and evaluation reads the file as validation does."""
    command, summary, _ = finished(*SST2)
    recipe = dataclasses.replace(
        RECIPES["sst-2"], learning_rate=2e-3, dropout=0.0, attention_dropout=0.0, batch_size=8, weight_decay=0.0
    )
    roberta = roberta_flax.load(one_layer)
    tuning = FineTuning.of_files(roberta, "SST-2", sentiment, sentiment, recipe=recipe, steps=20, validate_every=10)
    result = tuning.run(roberta, tmp_path / "python", seed=1, progress=False)
    assert json.loads(json.dumps({**tuning.to_json(), **result.to_json()})) == summary
    assert json.loads((tmp_path / "python" / "summary.json").read_text()) == summary
    assert (tmp_path / "python" / "metrics.jsonl").read_bytes() == (command / "metrics.jsonl").read_bytes()
    judged = evaluate(roberta_flax.load(tmp_path / "python" / "best"), sentiment, task="sst-2")
    assert judged.evaluation == result.evaluation


@pytest.mark.slow
def test_several_seeds_give_a_run_each_their_median_and_the_best(finished):
    directory, summary, _ = finished(*SEEDS)
    each = [json.loads((directory / f"seed-{i}" / "summary.json").read_text()) for i in (3, 1, 2)]
    accuracies = [run["metrics"]["accuracy"] for run in each]
    assert summary["median"]["accuracy"] == statistics.median(accuracies)
    assert summary["best"] == max(accuracies)
    assert [run["seed"] for run in summary["seeds"]] == [3, 1, 2]
    assert Path(summary["best_model"]) == directory / f"seed-{summary['best_seed']}" / "best"
    trees = [converted.read(directory / f"seed-{i}" / "best")[1] for i in (1, 2)]
    heads = [tree["heads"]["sst-2"]["output"]["kernel"] for tree in trees]
    assert not np.array_equal(*heads)


@pytest.mark.slow
def test_files_run_and_model_may_all_be_at_urls(run, finetune, finished, sentiment):
    """And give the bits that they give here."""
    fsspec.filesystem("memory").rm("/", recursive=True)
    bucket = to_path("memory://bucket")
    (bucket / "train.tsv").put(sentiment)
    directory, here, _ = finished(*SEEDS)
    there, _ = finetune(bucket / "train.tsv", bucket / "run", *SEEDS)
    assert there["best_model"] == f"memory://bucket/run/seed-{there['best_seed']}/best"
    assert there["seeds"] == here["seeds"]
    best = f"seed-{here['best_seed']}/best/model.safetensors"
    assert (bucket / "run" / best).read_bytes() == (directory / best).read_bytes()
    summary = json.loads((bucket / "run" / "summary.json").read_text())
    assert (summary["median"], summary["best_model"]) == (here["median"], there["best_model"])
    status, out, err = run("evaluate", bucket / "train.tsv", "--model", there["best_model"], "--json")
    assert status == 0, err
    assert json.loads(out)["metrics"]["accuracy"] == there["best"]


@pytest.mark.slow
def test_a_finished_run_started_again_says_the_same(finetune, finished, sentiment):
    directory, summary, _ = finished(*SST2)
    assert finetune(sentiment, directory, *SST2)[0] == summary


@pytest.mark.slow
def test_a_run_that_is_killed_and_started_again_ends_with_the_bits_of_one_that_was_not(
    finetune, start, one_layer, sentiment, tmp_path
):
    options = ("--steps", "60", "--validate-every", "20", "--save-every", "10", "--dropout", "0.1")
    finetune(sentiment, tmp_path / "whole", "--task", "sst-2", *options)
    files = (sentiment, "--valid", sentiment, "-o", tmp_path / "killed")
    command = ("finetune", "--task", "sst-2", "--model", one_layer, *files, *FAST, *options)
    killed = start(processes.program, *command)
    while not (tmp_path / "killed" / "checkpoints" / "30").exists():
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    resumed = start(processes.program, *command)
    _, err = resumed.communicate()
    assert resumed.returncode == 0, err
    assert "resuming after step" in err
    for file in ("summary.json", "metrics.jsonl", "best/model.safetensors", "best/config.json"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


@pytest.mark.slow
def test_other_hyper_parameters_in_the_same_directory_are_refused(finished, run, sentiment, one_layer):
    files = (sentiment, "--valid", sentiment, "-o", finished(*SST2)[0])
    status, _, err = run("finetune", "--model", one_layer, *SST2, *files)
    assert status == 1
    assert "has another run (" in err
    assert "batch_size was 8 and is 32" in err


@pytest.mark.slow
def test_a_run_is_its_contents_and_not_paths_or_times(finished, run, sentiment, one_layer, tmp_path, monkeypatch):
    directory, first, _ = finished(*SST2)
    shutil.copytree(directory, tmp_path / "o")
    copy = shutil.copytree(one_layer, tmp_path / "copy")
    os.utime(copy / "model.safetensors", (1, 1))
    monkeypatch.chdir(tmp_path)
    moved = shutil.copy(sentiment, "moved.tsv")
    command = ("finetune", moved, "--valid", moved, "-o", "o", *FAST, *SST2)
    status, out, err = run(*command, "--model", copy.name, "--json")
    assert status == 0, err
    assert json.loads(out)["metrics"] == first["metrics"]
    # a model of the same size and time
    stat = (copy / "model.safetensors").stat()
    config, params = converted.read(copy)
    params["embeddings"]["token"]["embedding"] = params["embeddings"]["token"]["embedding"].at[5, 5].add(0.01)
    shutil.rmtree(copy)
    converted.save(copy, config, params, roberta_flax.load(one_layer).tokenizer)
    os.utime(copy / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    status, _, err = run(*command, "--model", copy)
    assert status == 1
    differs = r"model was '[0-9a-f]{16}' and is '[0-9a-f]{16}'"
    assert re.search(rf"o has another run \({differs}\); pass the same options to resume it", err.splitlines()[-1])
    # data with one label changed
    text = sentiment.read_text()
    Path(moved).write_text(text.replace("good\t1", "good\t0", 1))
    status, _, err = run(*command, "--model", one_layer)
    assert (status, "(training was '" in err, "validation was '" in err) == (1, True, True), err


def test_gold_answers_edited_under_a_run_make_it_another(shallow, tmp_path):
    context = "The dog lives in the garden by day."
    row = {"question": "Where?", "context": context, "answers": {"text": ["the garden"], "answer_start": [17]}}
    other = {**row, "answers": {"text": ["the garden", "garden"], "answer_start": [17, 21]}}
    train = written(tmp_path / "s.jsonl", row)

    def note(valid: Path) -> dict[str, Any]:
        return FineTuning.of_files(shallow, "custom", train, valid, kind="span")._note(shallow, 1)

    before, after = note(train), note(written(tmp_path / "t.jsonl", other))
    assert differences(before, before) is None
    assert re.fullmatch("validation was '[0-9a-f]{16}' and is '[0-9a-f]{16}'", differences(before, after))


def test_runs_of_one_seed_and_of_several_keep_out_of_each_others_directories(sentiment, shallow, tmp_path, monkeypatch):
    tuning = FineTuning.of_files(shallow, "sst-2", sentiment, sentiment, steps=2)
    ran: list[tuple[str, int]] = []

    def run(self, roberta, directory, seed, **_):  # what matters is where
        with run_directory.open_run(directory, self._note(roberta, seed)):
            ran.append((directory.name, seed))
        return Result(seed, 2, "done", 2, "f1", 0.5, evaluate_answers(["a"], [("a",)]))

    monkeypatch.setattr(FineTuning, "_run", run)
    tuning.run_seeds(lambda: shallow, tmp_path / "one", (4,))
    tuning.run_seeds(lambda: shallow, tmp_path / "two", (1, 2))
    assert ran == [("one", 4), ("seed-1", 1), ("seed-2", 2)]
    summary = (tmp_path / "two" / "summary.json").read_text()
    other = dataclasses.replace(tuning, patience=3)
    for directory, seeds, asked, message in (
        ("one", (4, 5), tuning, "one has a run of one seed; give the same seeds to resume, or choose another"),
        ("two", (1,), tuning, "two has runs of several seeds; give the same seeds to resume"),
        ("two", (3, 2), tuning, "two has a run of seed 1, too, which the new summary would leave out; give --seed 1"),
        ("two", (1, 2), other, r"two has another run \(patience was None and is 3\)"),
    ):
        with pytest.raises(InputError, match=message):
            asked.run_seeds(lambda: shallow, tmp_path / directory, seeds)
    assert (tmp_path / "two" / "summary.json").read_text() == summary
    assert len(ran) == 3
    tuning.run_seeds(lambda: shallow, tmp_path / "two", (1, 2, 3))
    assert [seed["seed"] for seed in json.loads((tmp_path / "two" / "summary.json").read_text())["seeds"]] == [1, 2, 3]


def test_the_classes_are_told_at_the_start_and_names_that_look_alike(shallow, tmp_path):
    labels = ("pos", "neg", "pos", "POS", "1", "1.0", "", "neg", "pos")
    train = written(tmp_path / "t.tsv", "text\tlabel", *(f"a\t{label}" for label in labels))
    tuning = FineTuning.of_files(shallow, "custom", train, train)
    counts = {"1": 1, "1.0": 1, "POS": 1, "neg": 2, "pos": 3}
    assert tuning.head.labels == tuple(counts)
    assert tuning.to_json()["classes"] == counts
    assert tuning.to_text().splitlines()[:5] == [
        f"{train}: 8 examples; 1 without a label left out",
        f"{train}: 8 examples; 1 without a label left out",
        "5 classes, and the rows of each in training: '1' 1, '1.0' 1, 'POS' 1, 'neg' 2, 'pos' 3",
        "warning: '1' and '1.0' are 2 classes whose names differ only in case, spaces, or how a number or character is "
        "written; if they are one class, spell them alike in both files",
        "warning: 'POS' and 'pos' are 2 classes whose names differ only in case, spaces, or how a number or character "
        "is written; if they are one class, spell them alike in both files",
    ]


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        (Columns(("text", "text"), ("label",)), "the column 'text' is named twice"),
        (Columns(("text", "label")), "the column 'label' is named twice"),
        (Columns(("text",), ("label",), ("a", "b", "a")), "give each class a name of its own"),
    ],
)
def test_a_column_or_class_named_twice_is_refused(columns, named, shallow, tmp_path):
    train = written(tmp_path / "t.tsv", "text\tlabel", "x\ta", "y\tb")
    with pytest.raises(InputError, match=named):
        readers.task_reader("custom", train, shallow.config, shallow.tokenizer, columns=columns)
    several = Columns(("text",), ("a", "a"))
    with pytest.raises(InputError, match="the column 'a' is named twice"):
        readers.task_reader("custom", train, shallow.config, shallow.tokenizer, kind="multi-label", columns=several)
    for words, what in (
        (Columns(("words",), ("words",), ("a", "b")), "column 'words'"),
        (Columns(("words",), ("tags",), ("a", "b", "a")), "class 'a'"),
    ):
        with pytest.raises(InputError, match=f"the {what} is named twice"):
            readers.task_reader("custom", train, shallow.config, shallow.tokenizer, kind="token", columns=words)


@pytest.mark.slow
def test_a_model_says_what_it_was_trained_on_and_the_commands_need_no_more(finetune, run, tmp_path):
    rows = [f"the {noun} is {word},{label},a{i}" for i, noun in enumerate(NOUNS)
            for word, label in (("good", "up"), ("bad", "down"))]  # fmt: skip
    train = written(tmp_path / "r.csv", "review,stars,text", *rows)
    columns = ("--text-column", "review", "--label-column", "stars", "--max-length", "16")
    summary, _ = finetune(train, tmp_path / "o", "--task", "custom", *columns, "--steps", "20")
    best = tmp_path / "o" / "best"
    expected = TrainedOn(
        "custom", "custom", "classification", Columns(("review",), ("stars",), ("down", "up")), "exact", 16
    )
    assert roberta_flax.load(best).trained_on == converted.read_trained_on(best) == expected
    status, out, err = run("evaluate", train, "--model", best, "--json")
    assert status == 0, err
    assert {**json.loads(out), **summary} == {**summary, "skipped": 0}
    # what is given comes first
    status, _, err = run("evaluate", train, "--model", best, "--label-column", "text")
    assert (status, "line 2: 'a0' is not a label of custom" in err) == (1, True)
    # predict reads `review`, though `text` is a usual name
    assert run("predict", train, "-o", tmp_path / "p.jsonl", "--model", best, "--keep", "stars")[0] == 0
    predicted = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    right = sum(row["label"] == row["stars"] for row in predicted)
    assert right / len(predicted) == pytest.approx(summary["metrics"]["accuracy"])
    # a label that training never saw, though it is the number of a class
    written(train, "review,stars", "the dog is good,up", "the dog is bad,1")
    status, _, err = run("evaluate", train, "--model", best)
    assert (status, err.count("\n"), "r.csv, line 3: '1' is not a label of custom" in err) == (1, 1, True), err
    # saved again, it still says so; and what is damaged is refused
    roberta_flax.load(best).save(tmp_path / "saved")
    assert converted.read_trained_on(tmp_path / "saved") == expected
    for damaged in ("{", "[]", '{"columns": {}}', expected.to_json().replace("16", '"16"')):
        (tmp_path / "saved" / "trained_on.json").write_text(damaged)
        with pytest.raises(CheckpointError, match=r"trained_on\.json is damaged"):
            converted.read_trained_on(tmp_path / "saved")


@pytest.mark.slow
def test_frozen_parameters_stay_bit_for_bit_and_others_move(finetune, sentiment, tiny_directory, tmp_path):
    finetune(sentiment, tmp_path / "o", "--task", "sst-2", "--steps", "3", "--freeze", "1", model=tiny_directory)
    before, after = (flatten(converted.read(path)[1]) for path in (tiny_directory, tmp_path / "o" / "best"))
    for path, leaf in before.items():
        if path.startswith("heads."):
            continue
        same = np.array_equal(leaf, after[path])
        assert same == path.startswith(("embeddings.", "layers.0.", "lm_head.")), path


@pytest.mark.slow
def test_updates_of_several_batches_are_those_of_one_large_batch(finetune, sentiment, tmp_path):
    for name, batch, freq in (("one", 8, 1), ("two", 4, 2)):
        options = ("--task", "sst-2", "--steps", "4", "--batch-size", batch, "--update-freq", freq, "--lr", "1e-4")
        finetune(sentiment, tmp_path / name, *options, "--adam-eps", "1e-4")
    one, two = (flatten(converted.read(tmp_path / name / "best")[1]) for name in ("one", "two"))
    for path, leaf in one.items():
        np.testing.assert_allclose(leaf, two[path], rtol=0, atol=2e-6, err_msg=path)


@pytest.mark.slow
def test_training_ends_when_patience_does(finetune, sentiment, tmp_path):
    summary, _ = finetune(sentiment, tmp_path / "o", *SST2, "--validate-every", "2", "--patience", "3")
    assert summary["stopped"] == "patience"
    assert summary["steps"] == summary["best_step"] + 6


@pytest.mark.slow
def test_columns_and_labels_of_ones_own_for_a_known_task(finetune, run, tmp_path):
    pairs = [(f"the {noun} is red", f"the {noun} is {word}", label) for noun in NOUNS
             for word, label in (("red", "yes"), ("green", "no"))]  # fmt: skip
    rows = [{"premise": a, "hypothesis": b, "gold": label} for a, b, label in pairs]
    train = written(tmp_path / "n.jsonl", *rows)
    columns = ("-c", "premise", "-c", "hypothesis", "--label-column", "gold", "--labels", "no,yes")
    finetune(train, tmp_path / "o", "--task", "mnli", *columns, "--steps", "3", "--head", "nli2")
    assert converted.read_config(tmp_path / "o" / "best").head("nli2").labels == ("no", "yes")


@pytest.mark.slow
def test_dtype_remat_plot_and_tensorboard_go_through(finetune, sentiment, tmp_path):
    options = ("--task", "sst-2", "--steps", "4", "--dtype", "bfloat16", "--remat", "--plot", "--tensorboard")
    summary, _ = finetune(sentiment, tmp_path / "o", *options, "--layer-decay", "0.9", "--clip-norm", "1")
    assert summary["steps"] == 4
    assert (tmp_path / "o" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "o" / "tensorboard").iterdir())


# --- adapters -------------------------------------------------------------------------------------------------------------

ADAPTERS = ("--task", "sst-2", "--lr", "2e-2", "--lora-rank", "4", "--lora-targets", "all-linear", "--steps", "20")


@pytest.mark.slow
def test_adapters_learn_and_the_merged_model_is_one_that_the_other_commands_take(
    finetune, run, sentiment, one_layer, tmp_path
):
    summary, err = finetune(sentiment, tmp_path / "o", *ADAPTERS)
    assert summary["metrics"] == {"accuracy": 1.0}
    assert summary["lora"]["rank"] == 4
    # six adapters of rank 4, and the head
    adapters = 4 * (4 * (64 + 64) + 2 * (64 + 128))
    head = 64 * 64 + 64 + 64 * 2 + 2
    assert f"{adapters + head:,} parameters are trained" in err
    best = tmp_path / "o" / "best"
    before, after = (flatten(converted.read(path)[1]) for path in (one_layer, best))
    kernels = {name for name in before if re.match(r"layers\.\d+\.(attention|feed_forward)\.\w+\.kernel", name)}
    assert len(kernels) == 6
    for name in before.keys() & after.keys():
        assert np.array_equal(before[name], after[name]) == (name not in kernels), name
    status, out, _ = run("evaluate", sentiment, "--model", best, "--json")
    assert (status, json.loads(out)["metrics"]) == (0, {"accuracy": 1.0})
    # a checkpoint holds what is trained, with its moments and orbax's own files: less than the network alone
    stored = sum(file.stat().st_size for file in (tmp_path / "o" / "checkpoints" / "20" / "state").rglob("*"))
    everything = sum(leaf.size for leaf in before.values())
    assert stored < 4 * everything


@pytest.mark.slow
def test_an_adapter_kept_apart_is_loaded_as_the_model_that_it_would_be_merged_into(
    finetune, run, sentiment, one_layer, tmp_path
):
    options = (*ADAPTERS, "--dora", "--rslora", "--lora-dropout", "0.1")
    merged, _ = finetune(sentiment, tmp_path / "merged", *options)
    apart, _ = finetune(sentiment, tmp_path / "apart", *options, "--lora-apart")
    best = tmp_path / "apart" / "best"
    assert sorted(path.name for path in best.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "head.json", "trained_on.json"
    ]  # fmt: skip
    assert json.loads((best / "adapter_config.json").read_text())["base_model_name_or_path"] == str(one_layer)
    assert apart["loss"] == merged["loss"]
    one, other = (roberta_flax.load(tmp_path / name / "best") for name in ("merged", "apart"))
    assert one.config.heads == other.config.heads
    assert one.trained_on == other.trained_on
    tokens = one.encode("the garden is bad")
    assert np.array_equal(tokens, other.encode("the garden is bad"))
    # merged in float32 on the one side, in float64 on the other
    np.testing.assert_allclose(one.predict("sst-2", tokens), other.predict("sst-2", tokens), rtol=0, atol=1e-4)
    status, out, err = run("evaluate", sentiment, "--model", best, "--json")
    assert (status, json.loads(out)["metrics"]) == (0, merged["metrics"]), err
    status, _, err = run("convert", best, tmp_path / "converted")
    assert status == 0, err
    status, _, err = run("verify", tmp_path / "converted", "--against", best)
    assert status == 0, err
    # another run, unless it is asked for in the same way
    status, _, err = run(
        "finetune",
        sentiment,
        "--valid",
        sentiment,
        "--model",
        one_layer,
        "-o",
        tmp_path / "apart",
        *FAST,
        *options,
    )
    assert (status, "lora.apart was True and is False" in err) == (1, True), err


@pytest.mark.slow
def test_a_run_of_adapters_that_was_stopped_ends_with_the_bits_of_one_that_was_not(finetune, sentiment, tmp_path):
    """As if it had been killed after the last save but one: with dropout of both kinds."""
    options = (*ADAPTERS, "--save-every", "10", "--dropout", "0.1", "--lora-dropout", "0.2", "--validate-every", "5")
    whole, _ = finetune(sentiment, tmp_path / "whole", *options)
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    shutil.rmtree(tmp_path / "stopped" / "checkpoints" / "20")
    (tmp_path / "stopped" / "summary.json").unlink()
    resumed, err = finetune(sentiment, tmp_path / "stopped", *options)
    assert "resuming after step 10 of 20" in err
    assert resumed == whole
    for file in ("metrics.jsonl", "best/model.safetensors"):
        assert (tmp_path / "stopped" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task", "nothing"), "'nothing' does not name exactly one task"),
        (("--task", "sst-2", "--kind", "token"), "--kind is for --task custom"),
        (("--task", "sst-2", "--epochs", "0"), "epochs must be 1 or more, got 0"),
        (("--task", "sst-2", "--epochs", "1", "--steps", "2"), "give epochs or steps, not both"),
        (("--task", "sst-2", "--seed", "1", "--seed", "1"), "seeds must be distinct numbers"),
        (("--task", "sst-2", "--freeze", "9"), "freeze: 9 is more than the 2 layers"),
        (("--task", "sst-2", "--freeze", "("), "is not a regular expression"),
        (("--task", "sst-2", "--freeze", "nowhere"), "no parameter's path begins with 'nowhere'"),
        (("--task", "sst-2", "--best-metric", "f1"), "the best metric must be one of accuracy, loss, got 'f1'"),
        (("--task", "sst-2", "--max-length", "1000"), "max_length must be from 8 to the model's 512, got 1000"),
        (("--task", "sst-2", "--dtype", "float16"), "train in bfloat16 or float32"),
        (("--task", "sst-2", "--batch-size", "0"), "batch_size must be a positive integer, got 0"),
        (("--task", "sst-2", "--data-parallel", "4096"), "data_parallel times tensor_parallel must be from 1 to"),
        (("--task", "sst-2", "--data-parallel", "1", "--distributed"), "data_parallel is for one host"),
        (("--task", "sst-2", "--distributed"), "jax.distributed: "),
        (("--task", "mnli"), "has no column 'sentence1'"),
        (("--task", "sst-2", "--labels", "a"), "a classification has two or more classes, got a"),
        (("--task", "sst-2", "--lora-alpha", "8"), "options of adapters need their rank: give --lora-rank"),
        (("--task", "sst-2", "--lora-rank", "0"), "rank must be a positive integer, got 0"),
        (("--task", "sst-2", "--lora-rank", "65"), "the rank must be at most the model's hidden size, 64, got 65"),
        (("--task", "sst-2", "--lora-rank", "4", "--lora-alpha", "nan"), "alpha must be over 0 and finite, got nan"),
        (("--task", "sst-2", "--lora-rank", "4", "--lora-dropout", "1"), "dropout must be from 0 to under 1, got 1.0"),
        (("--task", "sst-2", "--lora-rank", "4", "--lora-targets", ","), "name the linear maps that get adapters"),
        (("--task", "sst-2", "--lora-rank", "4", "--lora-targets", "("), "target '(' is not a regular expression"),
        (
            ("--task", "sst-2", "--lora-rank", "4", "--lora-targets", "query,dense"),
            "no linear map has a path that ends with 'dense'; targets are attention.query, attention.key",
        ),
        (("--task", "sst-2", "--lora-rank", "4", "--freeze", "1"), "leave out freeze, and choose layers by"),
        (
            ("--task", "custom", "--label-column", "a", "--label-column", "b"),
            "several label columns are for --kind multi-label",
        ),
    ],
)
def test_what_the_user_can_mend_is_one_line(arguments, message, run, sentiment, tiny_directory, tmp_path):
    files = (sentiment, "--valid", sentiment, "-o", tmp_path / "o")
    status, out, err = run("finetune", "--model", tiny_directory, *files, *arguments)
    assert (status, out) == (1, "")
    assert message in err.splitlines()[-1]
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
def test_eight_devices_agree_with_one(run, start, one_layer, sentiment, tmp_path):
    """Tensor parallel and fully sharded, in a process of eight CPU devices; validation and the best model included."""
    options = (*FAST, "--steps", "4", "--lr", "1e-4", "--adam-eps", "1e-4", "--json")

    def asked(name: str, *devices: str) -> tuple[Any, ...]:
        files = (sentiment, "--valid", sentiment, "-o", tmp_path / name)
        return "finetune", "--model", one_layer, "--task", "sst-2", *files, *options, *devices

    status, summary, err = run(*asked("one", "--data-parallel", "1"))
    assert status == 0, err
    process = start(processes.program, *asked("eight", "--tensor-parallel", "2", "--fully-sharded"), **EIGHT_DEVICES)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert json.loads(summary)["loss"] == pytest.approx(json.loads(out)["loss"], abs=1e-5)
    one, eight = (flatten(converted.read(tmp_path / name / "best")[1]) for name in ("one", "eight"))
    for path, leaf in one.items():
        np.testing.assert_allclose(leaf, eight[path], rtol=0, atol=1e-5, err_msg=path)


@pytest.mark.slow
def test_two_hosts_that_are_killed_and_started_again_agree_with_one(
    finetune, two_hosts, one_layer, sentiment, tmp_path
):
    """Dropout and an epoch's last batch, of 4 rows where others have 6, included."""
    options = ("--task", "sst-2", "--steps", "12", "--validate-every", "6", "--save-every", "3", "--batch-size", "6",
               "--dropout", "0.1", "--lr", "1e-4", "--adam-eps", "1e-4", "--best-metric", "loss")  # fmt: skip
    one, said = finetune(sentiment, tmp_path / "one", *options)
    files = (sentiment, "--valid", sentiment, "-o", tmp_path / "two")
    command = ("finetune", "--model", one_layer, *files, *FAST, *options, "--json", "--distributed")
    hosts = two_hosts(*command)
    while not (tmp_path / "two" / "checkpoints" / "3").exists():
        assert [host.poll() for host in hosts] == [None, None], [host.communicate() for host in hosts]
        time.sleep(0.01)
    for host in hosts:
        host.kill()
    assert [host.wait() for host in hosts] == [-signal.SIGKILL] * 2
    assert not (tmp_path / "two" / "summary.json").exists()
    hosts = two_hosts(*command)
    (out, err), others = (host.communicate(timeout=300) for host in hosts)
    assert [host.returncode for host in hosts] == [0, 0], (err, others)
    assert "metrics" not in others[0]
    assert "examples" not in others[1]
    assert all(line in err for line in said.splitlines()[:3])
    two = json.loads(out.splitlines()[-1])  # after what gloo, which connects the two, has to say
    assert (two["steps"], two["best_step"], two["count"]) == (12, one["best_step"], 16)
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
    best, theirs = (flatten(converted.read(tmp_path / name / "best")[1]) for name in ("one", "two"))
    # A sum over the rows in another order differs in float32's last bits, 1e-7 of the gradient. Adam divides by the
    # gradient's size or adam_eps, whichever is more: of 12 updates of at most 1e-4, less than 1e-3 of each.
    for path, leaf in best.items():
        np.testing.assert_allclose(leaf, theirs[path], rtol=0, atol=1.2e-6, err_msg=path)


# --- the parts ------------------------------------------------------------------------------------------------------------


def test_a_head_of_the_same_name_and_form_is_trained_further_and_others_begin_anew(shallow):
    mnli = readers.task_reader("mnli", "unread", shallow.config, shallow.tokenizer).head
    assert continues(shallow.config, mnli)
    config, params = trained_part(shallow, mnli, CUSTOM, seed=1)
    assert params["heads"]["mnli"] is shallow.params["heads"]["mnli"]
    assert config.heads == (mnli,)
    assert "lm_head" not in params
    new = HeadConfig("mnli", 2, 64, labels=("no", "yes"))
    assert not continues(shallow.config, new)
    fresh = [
        trained_part(shallow, new, CUSTOM, seed=seed)[1]["heads"]["mnli"]["output"]["kernel"] for seed in (1, 1, 2)
    ]
    assert np.array_equal(fresh[0], fresh[1])
    assert not np.array_equal(fresh[0], fresh[2])
    assert jax.tree.leaves(shallow.params)[0] is jax.tree.leaves({**params, "lm_head": 0})[0]


def test_commonsenseqas_own_files_are_read_for_its_task(shallow, tmp_path):
    choices = [{"label": letter, "text": letter.lower()} for letter in "ABCDE"]
    path = written(tmp_path / "q.jsonl", {"answerKey": "C", "question": {"stem": "Which?", "choices": choices}})
    reader = readers.task_reader(readers.task_name("CommonsenseQA"), path, shallow.config, shallow.tokenizer)
    assert reader.head == HeadConfig("commonsenseqa", 1, 64, "choice")
    assert reader.metrics == ("accuracy",)
    assert reader.read(path).targets.tolist() == [2]


def test_the_recipes_dropouts_are_the_trained_networks(shallow):
    config, _ = trained_part(shallow, HeadConfig("a", 2, 64), CUSTOM, seed=1)
    assert isinstance(config, RobertaConfig)
    assert (config.dropout, config.attention_dropout) == (CUSTOM.dropout, CUSTOM.attention_dropout)


@pytest.mark.slow
def test_the_validations_loss_is_the_mean_negative_log_probability(shallow, sentiment):
    reader = readers.task_reader("sst-2", sentiment, shallow.config, shallow.tokenizer)
    shallow.register_classification_head("sst-2", 2, seed=1)
    examples = reader.read(sentiment)
    validation = Validation(
        examples, "sst-2", config=shallow.config, tokenizer=shallow.tokenizer, labels=reader.labels, batch_size=5
    )
    found = validation(shallow.params)
    log_probabilities = [
        float(shallow.predict("sst-2", examples.sequences([i])[0])[0, examples.targets[i]])
        for i in range(len(examples))
    ]
    assert found["loss"] == pytest.approx(-np.mean(log_probabilities), rel=1e-5)
    gold = [float(value > np.log(0.5)) for value in log_probabilities]
    assert found["accuracy"] == pytest.approx(np.mean(gold))


def test_answers_are_judged_as_squads_script_does():
    """Against transformers' copy of it."""
    from transformers.data.metrics.squad_metrics import compute_exact, compute_f1

    predicted = ["The Eiffel Tower", "in 1887", "a red, old house!", "nothing", "a man"]
    gold = [("Eiffel tower.",), ("1887", "in the year 1887"), ("old house",), ("everything",), ("man", "the man there")]
    found = evaluate_answers(predicted, gold)
    pairs = list(zip(predicted, gold, strict=True))
    exact = [max(compute_exact(one, answer) for one in golds) for answer, golds in pairs]
    f1 = [max(compute_f1(one, answer) for one in golds) for answer, golds in pairs]
    assert found.metrics == pytest.approx({"exact_match": np.mean(exact), "f1": np.mean(f1)})


def test_questions_without_an_answer_are_judged_as_squad_2_does():
    # by hand: right to say nothing; an answer where there is none; nothing where there is one; 1 of 2 words, F1 2/3
    predicted, gold = ["", "a dog", "", "the old house"], [(), (), ("Rome",), ("house",)]
    metrics = evaluate_answers(predicted, gold).metrics
    assert metrics == pytest.approx({"exact_match": 1 / 4, "f1": (1 + 0 + 0 + 2 / 3) / 4})
    # evaluate-v2.0.py leaves out gold answers of which nothing is left without articles and punctuation
    assert evaluate_answers(["", "the"], [("the",), ("the", "dog")]).metrics == {"exact_match": 1 / 2, "f1": 1 / 2}


def test_no_answer_is_given_where_every_window_says_so(shallow, tmp_path):
    """Scores made by hand, in the place of a network's."""
    answers = {"text": ["cat"], "answer_start": [4]}
    asked = [{"question": "Who?", "context": "the cat", "answers": what} for what in (answers, answers, [])]
    config = dataclasses.replace(shallow.config, heads=(HeadConfig("span", 2, 0, "span"),))

    def judged(*rows: dict[str, Any]) -> dict[str, float]:
        reader = readers.task_reader(
            "custom", written(tmp_path / "s.jsonl", *rows), config, shallow.tokenizer, kind="span", head="span"
        )
        found = reader.read(tmp_path / "s.jsonl")
        judge = judging.Answers(found.questions, shallow.tokenizer)
        for number, (none, cat) in enumerate([(1.0, 3.0), (3.0, 1.0), (2.0, 1.0)][: len(rows)]):
            ((first, _),) = found.targets[[0]].tolist()
            scores = np.full((1, len(found.sequences([number])[0]), 2), -9.0)
            scores[0, 0], scores[0, first] = none / 2, cat / 2
            judge.add(scores, found.windows[[number]])
        return judge.evaluation().metrics

    # of three, the second is not answered though it could be, and the third rightly so
    assert judged(*asked) == pytest.approx({"exact_match": 2 / 3, "f1": 2 / 3})
    # where every question has an answer, one is always given
    assert judged(*asked[:2]) == {"exact_match": 1.0, "f1": 1.0}


@pytest.mark.slow
def test_the_documentations_python_runs(shallow, tmp_path, monkeypatch):
    """Its section on fine-tuning, on the embedded model and a file of a few rows."""
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    (program,) = re.findall(
        r"```python\n(.*?)```", page.partition("### Fine-tune from Python")[2].partition("\n## ")[0], re.DOTALL
    )
    rows = [f"{i}\tA {noun}.\tA {noun} sleeps.\tentailment" for i, noun in enumerate(NOUNS)]
    (tmp_path / "RTE").mkdir()
    for name in ("train.tsv", "dev.tsv"):
        written(tmp_path / "RTE" / name, "index\tsentence1\tsentence2\tlabel", *rows)
    monkeypatch.setattr("roberta_flax.load", lambda *_, **__: shallow)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(program, scope)  # noqa: S102 -- the page's own text
    assert scope["step"] == 9
    assert set(scope["validation"](scope["params"])) == {"loss", "accuracy"}


def test_the_documentations_table_has_the_recipes_numbers():
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    shown = {row[0]: row for row in rows if len(row) == 6}
    for name, recipe in RECIPES.items():
        _, batch, rate, steps, decay, source = shown[{"sst-2": "sst2", "sts-b": "stsb"}.get(name, name)]
        sizes = [recipe.batch_size, *([recipe.update_freq] if recipe.update_freq > 1 else [])]
        assert batch == " x ".join(map(str, sizes)), name
        assert float(rate.partition(",")[0]) == recipe.learning_rate, name
        if recipe.total_steps:
            assert steps == f"{recipe.total_steps:,} ({recipe.warmup_steps:,})", name
        assert float(decay) == recipe.weight_decay, name
        assert recipe.source.endswith(source), name


def test_the_documentation_names_every_option():
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    hyper_parameters = {field.name for field in dataclasses.fields(CUSTOM)}
    # of every command
    elsewhere = {"checkpoint_file", "bpe_dir", "cache_dir", "precision", "attention", "as_json", "model", "train"}
    for name in inspect.signature(finetune_command.command).parameters.keys() - hyper_parameters - elsewhere:
        option = {"output": "-o", "seeds": "--seed"}.get(name, f"--{name.replace('_', '-')}")
        assert option in page, name


def test_a_run_from_a_released_model_ends_with_its_score_beside_the_published_one(shallow, sentiment, tmp_path):
    def results(*accuracies: float) -> SeedResults:
        evaluations = [Evaluation(20, {"accuracy": accuracy}, {}) for accuracy in accuracies]
        runs = [Result(seed, 40, "done", 20, "accuracy", 0.1, found) for seed, found in enumerate(evaluations)]
        return SeedResults(tmp_path, tuple(runs), tuning.published)

    shallow.source = "roberta.large"
    tuning = FineTuning.of_files(shallow, "sst2", sentiment, sentiment)
    published = tuning.to_json()["published"]
    assert (published["percent"], published["model"], published["metric"]) == (96.4, "roberta.large", "accuracy")
    line = "accuracy 0.9500 (fairseq's README: 96.4 for roberta.large on the dev set)"
    assert results(0.95).to_text().split("\n")[-1] == line
    assert results(0.9, 1.0, 0.95).to_text().split("\n")[-1] == f"median {line}"

    shallow.source = str(tmp_path)
    tuning = FineTuning.of_files(shallow, "sst2", sentiment, sentiment)
    assert "published" not in tuning.to_json()
    assert "fairseq's README" not in results(0.95).to_text()
