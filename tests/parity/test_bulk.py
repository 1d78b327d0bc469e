"""Files of texts through each task, beside what Transformers and sentence-transformers answer row by row."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from roberta_flax import Answer, InputError, Predictor, Rank, Score, Tag, ZeroShot, convert, load
from roberta_flax.inference import jobs
from tests.conftest import skip_or_fail

if find_spec("sentence_transformers") is None:
    skip_or_fail("sentence-transformers, the reference, is not installed; the README's test command installs it")

import sentence_transformers
import transformers

from references.sentence_transformers import TEXTS, body

TOLERANCE = 1e-5  # float32: a unit in the last place of a score is 6e-8, through a layer
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
LABELS = ("music", "animals", "food and drink")
LONG = "The children are playing outside in the yard, and " * 14  # over the maximum length
ROWS = [text for text in TEXTS if text.strip()] + [LONG, "Zoë's dogs"]
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "tags": ("RobertaForTokenClassification", {"id2label": dict(enumerate(TAGS))}),
    "spans": ("RobertaForQuestionAnswering", {}),
    "entailment": (
        "RobertaForSequenceClassification",
        {
            "id2label": {0: "contradiction", 1: "neutral", 2: "entailment"},
            "label2id": {"contradiction": 0, "neutral": 1, "entailment": 2},
        },
    ),
    "scores": ("RobertaForSequenceClassification", {"num_labels": 1}),
}
Find = Callable[[str], tuple[Path, Any]]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Find:
    """For each kind of model, the directory that Transformers wrote, and the converted model."""
    folder, known = tmp_path_factory.mktemp("models"), {}

    def find(kind: str) -> tuple[Path, Any]:
        if kind not in known:
            name, settings = KINDS[kind]
            source = body(folder / kind, name, **settings)
            known[kind] = source, load(convert.convert(source, folder / f"{kind}-converted"))
        return known[kind]

    return find


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def texts_file(folder: Path) -> Path:
    """Texts, with a row that has none after the first."""
    return write(folder / "texts.jsonl", [{"text": text} for text in (ROWS[0], None, *ROWS[1:])])


def run(
    predictor: Predictor, source: Path, output: Path, columns=("text",), **options: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The records that a job writes, and its summary."""
    job = jobs.Job(source, output, columns, rows_per_part=3, **options)
    summary = jobs.run(job, predictor)
    return records(output) if output.suffix == ".jsonl" else [], summary


def agree(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> bool:
    return len(ours) == len(theirs) and all(
        one[key] == pytest.approx(value.item() if isinstance(value, np.generic) else value, abs=TOLERANCE)
        if not isinstance(value, str)
        else one[key] == value
        for one, other in zip(ours, theirs, strict=True)
        for key, value in other.items()
    )


@pytest.mark.parametrize(("aggregation", "strategy"), [("none", "buckets"), ("simple", "packing")])
def test_entities_of_a_file_are_those_of_transformers(models, tmp_path, aggregation, strategy):
    source, model = models("tags")
    theirs = transformers.pipeline("token-classification", str(source), device="cpu", aggregation_strategy=aggregation)
    predictor = Predictor(model, Tag(aggregation=aggregation), strategy=strategy, max_length=128)
    found, summary = run(predictor, texts_file(tmp_path), tmp_path / "out.jsonl")
    assert [row["row"] for row in found] == [0, *range(2, len(ROWS) + 1)]
    for text, row in zip(ROWS, found, strict=True):
        expected = theirs(text)
        assert expected
        assert agree(row["entities"], expected), (text, row, expected)
    assert (summary["rejected"], summary["truncated"]) == (1, 1)
    (reject,) = records(Path(summary["rejects"]))
    assert (reject["row"], reject["reason"]) == (1, "column 'text' is null")


def test_entities_of_a_long_text_are_found_in_windows(models):
    source, model = models("tags")
    theirs = transformers.pipeline("token-classification", str(source), device="cpu", aggregation_strategy="simple")
    ours = Predictor(model, Tag(stride=16), on_long="window", max_length=128).result(LONG)
    assert agree(ours, theirs(LONG, stride=16))
    assert max(entity["end"] for entity in ours) > len(LONG) * 3 // 4
    with pytest.raises(InputError, match="this takes a span head, and the model has none; its heads: "):
        Predictor(model, Answer())
    with pytest.raises(InputError, match=r"aggregation \(--aggregation\) must be one of .*, got 'longest'"):
        Predictor(model, Tag(aggregation="longest"))


@pytest.mark.parametrize("strategy", ["buckets", "packing"])
def test_answers_to_the_questions_of_a_file_are_those_of_transformers(models, tmp_path, strategy):
    source, model = models("spans")
    theirs = transformers.pipeline("question-answering", str(source), device="cpu")
    rows = [{"question": "Who plays?", "context": text} for text in ROWS] + [{"question": "", "context": "x"}]
    file = write(tmp_path / "in.jsonl", rows)
    task = Answer(top_k=3, handle_impossible_answer=True, max_length=64)
    predictor = Predictor(model, task, strategy=strategy)
    found, summary = run(predictor, file, tmp_path / "out.jsonl", ("question", "context"))
    long = [text for text in ROWS if len(model.encode("Who plays?", text)) > 64]
    for given, row in zip(rows, found, strict=False):
        expected = theirs(**given, top_k=3, handle_impossible_answer=True, max_seq_len=64)
        assert agree(row["answers"], expected), (given, row, expected)
    assert (summary["rejected"], summary["truncated"]) == (1, len(long))
    assert records(Path(summary["rejects"]))[0]["reason"] == "the question must be a text that is not empty, got ''"
    best, _ = run(Predictor(model, Answer(max_length=64)), file, tmp_path / "best.jsonl", ("question", "context"))
    assert list(best[0]) == ["row", "answer", "score", "start", "end"]
    assert best[0]["answer"] == ROWS[0][best[0]["start"] : best[0]["end"]]


@pytest.mark.parametrize("multi_label", [False, True])
def test_labels_of_a_file_are_those_that_transformers_ranks_first(models, tmp_path, multi_label):
    source, model = models("entailment")
    theirs = transformers.pipeline("zero-shot-classification", str(source), device="cpu")
    predictor = Predictor(model, ZeroShot(LABELS, multi_label=multi_label), max_length=128)
    found, summary = run(predictor, texts_file(tmp_path), tmp_path / "out.jsonl")
    for text, row in zip(ROWS, found, strict=True):
        expected = theirs(text, list(LABELS), multi_label=multi_label)
        assert row["label"] == expected["labels"][0]
        assert row["score"] == pytest.approx(expected["scores"][0], abs=TOLERANCE)
        assert row["probabilities"] == pytest.approx(
            dict(zip(expected["labels"], expected["scores"], strict=True)), abs=TOLERANCE
        )
    assert (summary["rejected"], summary["truncated"], summary["this_run"]["sequences"]) == (1, 1, 3 * len(ROWS))


def test_what_zero_shot_cannot_use_is_refused(models):
    _, model = models("entailment")
    refused = [
        (ZeroShot(()), r"labels \(--label\) must be a list of at least one text, got \(\)"),
        (ZeroShot(("a",), "It is."), r"the template \(--template\) must have {} where the label goes, got 'It is.'"),
        (ZeroShot(("a",), entailment=3), r"entailment \(--entailment\) must be a class from 0 to 2, got 3"),
        (ZeroShot(("a",), head="none"), "none"),
    ]
    for task, message in refused:
        with pytest.raises(InputError, match=message):
            Predictor(model, task)
    head = dataclasses.replace(model.config.heads[0], labels=("a", "b", "c"))
    nameless = dataclasses.replace(model.config, heads=(head,))
    with pytest.raises(InputError, match="give its number, from 0, with entailment"):
        ZeroShot(("a",)).check(nameless)
    ZeroShot(("a",), entailment=2).check(nameless)


@pytest.mark.slow
def test_documents_are_ranked_as_by_sentence_transformers(models, tmp_path):
    source, model = models("scores")
    theirs = sentence_transformers.CrossEncoder(str(source), device="cpu")
    documents, queries = [*ROWS, ROWS[0]], ["a man", LONG]
    file = write(tmp_path / "queries.jsonl", [{"query": query} for query in queries])
    read = jobs.read_documents(write(tmp_path / "documents.jsonl", [{"text": text} for text in documents]))
    found, summary = run(Predictor(model, Rank(read, top_k=3)), file, tmp_path / "out.jsonl", ("query",))
    for query, row in zip(queries, found, strict=True):
        expected = theirs.rank(query, documents, top_k=3)
        assert [each["document"] for each in row["ranking"]] == [each["corpus_id"] for each in expected]
        assert [each["score"] for each in row["ranking"]] == pytest.approx(
            [float(each["score"]) for each in expected], abs=TOLERANCE
        )
    assert summary["this_run"]["sequences"] == len(documents) * len(queries)
    pairs = write(tmp_path / "pairs.jsonl", [{"query": "a man", "document": text} for text in documents])
    scored, _ = run(Predictor(model, Score()), pairs, tmp_path / "scores.jsonl", ("query", "document"))
    expected = theirs.predict([("a man", text) for text in documents])
    assert [row["score"] for row in scored] == pytest.approx(expected.tolist(), abs=TOLERANCE)


def test_documents_must_all_be_there(models, tmp_path):
    _, model = models("scores")
    file = write(tmp_path / "documents.jsonl", [{"text": "a"}, {"text": None}])
    with pytest.raises(InputError, match=r"documents.jsonl, line 2: column 'text' is null"):
        jobs.read_documents(file)
    with pytest.raises(InputError, match="has no documents"):
        jobs.read_documents(write(tmp_path / "empty.jsonl", []), "text")
    with pytest.raises(InputError, match="give at least one document to rank"):
        Predictor(model, Rank(()))
    _, classifier = models("entailment")
    with pytest.raises(InputError, match="documents are ranked by a head with one output; .* has 3: score pairs"):
        Predictor(classifier, Rank(("a",)))


@pytest.mark.parametrize(
    ("kind", "task", "expected"),
    [("scores", Rank(("a",)), "expected a query"), ("entailment", ZeroShot(("a",)), "expected a text to classify")],
)
def test_what_is_no_text_is_rejected_and_windows_are_refused_before_anything_is_tokenized(models, kind, task, expected):
    _, model = models(kind)
    with pytest.raises(InputError, match=rf"{expected}, got tuple: \('a', 'b'\)"):
        Predictor(model, task).result(("a", "b"))
    with pytest.raises(InputError, match=r"on_long \(--on-long\) window is not for them"):
        task.encode(None, ["a"], 16, "window")


TASKS = {"tags": Tag(), "spans": Answer(top_k=2), "entailment": ZeroShot(LABELS), "scores": Rank(tuple(ROWS))}


@pytest.mark.parametrize(
    ("kind", "suffix"), [("tags", "csv"), ("spans", "parquet"), ("entailment", "jsonl"), ("scores", "parquet")]
)
def test_a_run_that_was_stopped_ends_with_the_bytes_of_one_that_was_not(models, tmp_path, kind, suffix):
    _, model = models(kind)
    rows = [{"question": "Who?", "context": text, "text": text} for text in ROWS * 2]
    columns = ("question", "context") if kind == "spans" else ("text",)
    predictor = Predictor(model, TASKS[kind])
    whole = jobs.Job(write(tmp_path / "in.jsonl", rows), tmp_path / f"whole.{suffix}", columns, rows_per_part=4)
    jobs.run(whole, predictor)

    class StoppedError(Exception):
        pass

    job = dataclasses.replace(whole, output=tmp_path / f"out.{suffix}")

    def stop(*_: Any) -> None:
        if len(list(job.parts.glob("*.part"))) == 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        jobs.run(job, predictor, stop)
    summary = jobs.run(job, predictor)
    assert summary["this_run"]["parts_resumed"] == 2
    assert job.output.read_bytes() == whole.output.read_bytes()


def test_results_are_columns_that_tables_can_be_joined_by(models, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    expected = {
        "tags": {"entities": "list<element: struct<entity_group: string, score: float, word: string, start: int64, "
                 "end: int64>>"},
        "spans": {"answers": "list<element: struct<answer: string, score: float, start: int64, end: int64>>"},
        "entailment": {"label": "string", "score": "float",
                       "probabilities": "struct<music: float, animals: float, food and drink: float>"},
        "scores": {"ranking": "list<element: struct<document: int64, score: float>>"},
    }  # fmt: skip
    for kind, task in TASKS.items():
        _, model = models(kind)
        columns = ("question", "context") if kind == "spans" else ("text",)
        file = write(tmp_path / "in.jsonl", [{"question": "Who?", "context": "A man.", "text": "A man."}])
        run(Predictor(model, task), file, tmp_path / f"{kind}.parquet", columns)
        schema = parquet.read_schema(tmp_path / f"{kind}.parquet")
        found = {name: str(schema.field(name).type).replace(" not null", "") for name in schema.names}
        assert {name: type.replace("item: ", "element: ") for name, type in found.items()} == {
            "row": "int64",
            **expected[kind],
        }
        settings = json.loads(schema.metadata[b"roberta_flax"])
        assert settings["task"][0] == type(task).__name__
    assert settings["task"][1]["documents"]["count"] == len(ROWS)


@pytest.mark.slow
def test_a_ray_worker_does_each_task(models, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from roberta_flax.inference.ray import Predict

    for kind, task in TASKS.items():
        source, model = models(kind)
        columns = ["question", "context"] if kind == "spans" else ["context"]
        predict = Predict(source.with_name(f"{kind}-converted"), task, columns, window=4)
        batch = pyarrow.table({"question": ["Who?"] * 6, "context": [*ROWS, None][:6]})
        output = predict(batch).to_pylist()
        assert [row["rejected"] is None for row in output] == [text is not None for text in [*ROWS, None][:6]]
        if kind != "scores":  # of which a document is too long for every query
            assert [row["truncated"] for row in output] == [text == LONG for text in [*ROWS, None][:6]]
        predictor = Predictor(model, task)
        for row in output:
            if row["context"] is not None:
                given = ["Who?", row["context"]] if kind == "spans" else row["context"]
                result = jobs.result_format(predictor)[1](predictor.result(given))
                assert agree_in_json(result, {name: row[name] for name in result})


def agree_in_json(ours: Any, theirs: Any) -> bool:
    """Whether two records have the same names, texts and numbers, the latter within the tolerance."""
    if isinstance(theirs, dict):
        values = dict(zip(LABELS, ours, strict=True)) if isinstance(ours, np.ndarray) else ours
        return all(agree_in_json(values[key], theirs[key]) for key in theirs)
    if isinstance(theirs, list):
        return len(ours) == len(theirs) and all(agree_in_json(*pair) for pair in zip(ours, theirs, strict=True))
    return bool(ours == theirs if isinstance(theirs, str) else ours == pytest.approx(theirs, abs=TOLERANCE))


@pytest.mark.slow
def test_the_command_line_does_each_task(models, tmp_path, run):
    names = {kind: models(kind)[0].with_name(f"{kind}-converted") for kind in KINDS}
    status, out, _ = run("tag", ROWS[0], "-m", names["tags"], "--json")
    assert status == 0
    assert json.loads(out) == Predictor(models("tags")[1], Tag()).result(ROWS[0])
    status, out, _ = run("answer", "Who?", ROWS[0], "-m", names["spans"])
    assert status == 0
    (answer,) = Predictor(models("spans")[1], Answer()).result(["Who?", ROWS[0]])
    assert out == f"{answer['score']:.4f}  {answer['answer']!r}  {answer['start']}:{answer['end']}\n"
    labels = [option for label in LABELS for option in ("--label", label)]
    status, out, _ = run("zero-shot", ROWS[0], *labels, "-m", names["entailment"], "--json")
    assert status == 0
    found = json.loads(out)
    assert sorted(found["probabilities"]) == sorted(LABELS)
    assert found["score"] == max(found["probabilities"].values()) == found["probabilities"][found["label"]]
    status, out, _ = run("rank", "a man", *ROWS[:2], "-m", names["scores"], "--json")
    assert status == 0
    assert [each["text"] for each in json.loads(out)] == [ROWS[i] for i, _ in Predictor(
        models("scores")[1], Rank(tuple(ROWS[:2]))).result("a man")]  # fmt: skip
    file = texts_file(tmp_path)
    documents = write(tmp_path / "documents.jsonl", [{"document": text} for text in ROWS[:2]])
    for command, *arguments in (
        ["tag", file, "-m", names["tags"], "--aggregation", "none"],
        ["zero-shot", file, "-m", names["entailment"], *labels],
        ["rank", file, "-m", names["scores"], "--documents", documents, "--topk", "1"],
    ):
        status, out, err = run(command, *arguments, "-o", tmp_path / f"{command}.jsonl")
        assert status == 0, err
        assert out.splitlines()[-1].startswith(f"1 of {len(ROWS) + 1} rows rejected")
        assert len(records(tmp_path / f"{command}.jsonl")) == len(ROWS)
    assert [len(row["ranking"]) for row in records(tmp_path / "rank.jsonl")] == [1] * len(ROWS)
