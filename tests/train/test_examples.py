"""Labeled files as examples: ids against fairseq's tasks, places of words and answers against transformers, batches."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import importlib.util
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from roberta_flax import Tokenizer
from roberta_flax.datasets import examples as reading
from roberta_flax.datasets.examples import (
    choice_examples,
    label_names,
    multi_label_examples,
    sentence_examples,
    span_examples,
    tag_names,
    token_examples,
)
from roberta_flax.datasets.layouts import LAYOUTS, Layout, gold_value, lookalikes
from roberta_flax.errors import InputError
from roberta_flax.text.encoding import encode_texts
from roberta_flax.train.batches import training_batches, validation_batches
from tests.conftest import SHARED, skip_or_fail

LIMIT = 512


@pytest.fixture(scope="module")
def tokenizer(tiny_source) -> Tokenizer:
    return Tokenizer.from_directory(tiny_source)


def written(path: Path, *lines: Any) -> Path:
    """A file with these lines; what is not text is JSON."""
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


# --- sentences --------------------------------------------------------------------------------------------------------


def test_sicks_pairs_are_encoded_as_encode_does_and_have_its_labels(gpt2_tokenizer):
    path = SHARED / "sick" / "SICK_train.txt"
    if not path.is_file():
        skip_or_fail(f"{path} is not there")
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    found = sentence_examples(path, LAYOUTS["sick"], LAYOUTS["sick"].labels, gpt2_tokenizer, LIMIT)
    assert len(found) == found.tally.examples == len(rows)
    assert (found.tally.truncated, found.tally.unusable, found.tally.unlabeled) == (0, 0, 0)
    order = ("CONTRADICTION", "NEUTRAL", "ENTAILMENT")
    assert found.targets.tolist() == [order.index(row[4]) for row in rows]
    for number in (0, 7, 4000):
        (tokens,) = found.sequences([number])
        assert tokens.tolist() == gpt2_tokenizer.encode(rows[number][1], rows[number][2]).tolist()
    values = sentence_examples(path, LAYOUTS["sick-relatedness"], (), gpt2_tokenizer, LIMIT)
    assert values.targets.dtype == np.float32
    assert values.targets[:3].tolist() == pytest.approx([4.5, 3.2, 4.7])


def test_rows_without_agreement_and_malformed_ones_are_left_out_and_told(tokenizer, tmp_path):
    path = written(
        tmp_path / "dev.tsv",
        "sentence1\tsentence2\tgold_label",
        "A man plays.\tNobody plays.\tcontradiction",
        "A man plays.\tIt rains.\t-",
        "one column",
        "A dog.\tA cat.\tneutral",
        "two\tcolumns",
    )
    found = sentence_examples(path, LAYOUTS["mnli"], LAYOUTS["mnli"].labels, tokenizer, LIMIT)
    assert found.targets.tolist() == [0, 1]
    assert (found.tally.unlabeled, found.tally.unusable) == (1, 2)
    assert f"2 unusable rows left out; the first is {path}, line 4: 1 column" in found.tally.to_text()


def test_a_label_that_is_none_of_the_tasks_is_an_error_with_its_line(tokenizer, tmp_path):
    path = written(tmp_path / "a.tsv", "question\tsentence\tlabel", "q\ts\tentailment", "q\ts\tentailed")
    with pytest.raises(
        InputError, match=r"a\.tsv, line 3: 'entailed' is not one of the labels entailment, not_entailment"
    ):
        sentence_examples(path, LAYOUTS["qnli"], LAYOUTS["qnli"].labels, tokenizer, LIMIT)


STARS = ("1", "2", "3", "4", "5")


def custom(labels: tuple[str, ...], match: Any = "exact") -> Layout:
    return Layout("custom", ("text",), "label", labels, ("accuracy",), match=match)


@pytest.mark.parametrize(
    ("label", "labels", "match"),
    [
        ("0", STARS, "exact"),
        ("0", STARS, "number"),  # numbers that are names are not places too
        ("0", ("1", "none"), "number"),
        ("1", ("neg", "neutral", "pos"), "exact"),  # no name of the training file
        ("POS", ("neg", "pos"), "exact"),
        ("1", ("contradiction", "neutral", "entailment"), "case"),  # of which the order is not known
        ("1.0", STARS, "number"),
    ],
)
def test_a_label_that_training_never_saw_is_no_other_class(label, labels, match, tokenizer, tmp_path):
    path = written(tmp_path / "a.tsv", "text\tlabel", f"seen\t{labels[-1]}", f"new\t{label}")
    with pytest.raises(InputError, match=rf"a\.tsv, line 3: '{label}' is not one of the labels {', '.join(labels)};"):
        sentence_examples(path, custom(labels, match), labels, tokenizer, LIMIT)


@pytest.mark.parametrize("empty", ["", " ", None, math.nan])
def test_a_row_without_a_label_is_left_out_and_counted_in_every_format(empty, tokenizer, tmp_path):
    rows = [{"text": "x", "label": "up"}, {"text": "y", "label": empty}, {"text": "z", "label": "down"}]
    files = [written(tmp_path / "a.jsonl", *rows)]
    if isinstance(empty, str):
        files.append(written(tmp_path / "a.csv", "text,label", *(f"{row['text']},{row['label']}" for row in rows)))
    for path in files:
        assert label_names(path, "label") == ("down", "up")
        found = sentence_examples(path, custom(("down", "up")), ("down", "up"), tokenizer, LIMIT)
        assert found.targets.tolist() == [1, 0]
        assert found.tally.to_text() == f"{path}: 2 examples; 1 without a label left out"


def test_rows_without_a_value_or_with_one_of_several_labels_missing_are_left_out_too(tokenizer, tmp_path):
    path = written(tmp_path / "v.csv", "text,label", "a,1", "b,", "c,2.5")
    found = sentence_examples(path, dataclasses.replace(custom(()), problem="regression"), (), tokenizer, LIMIT)
    assert (found.targets.tolist(), found.tally.unlabeled) == ([1, 2.5], 1)
    path = written(tmp_path / "m.csv", "text,toxic,insult", "a,1,0", "b,,1", "c,0,0")
    found = multi_label_examples(path, ("text",), ("toxic", "insult"), tokenizer, LIMIT)
    assert (found.targets.tolist(), found.tally.unlabeled) == ([[1, 0], [0, 0]], 1)


@pytest.mark.parametrize(
    "value", ["1e400", "-1e400", "1e39", "inf", "-Infinity", "nan", "1_000", "0x10", "1,5", "five", "\u0661", True]
)
def test_a_value_that_is_no_finite_number_is_a_bad_row_with_its_line(value, tokenizer, tmp_path):
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": value}]
    path = written(tmp_path / "v.jsonl", *rows)
    found = sentence_examples(path, dataclasses.replace(custom(()), problem="regression"), (), tokenizer, LIMIT)
    assert (found.targets.tolist(), found.tally.unusable) == ([1], 1)
    assert found.tally.first.startswith(f"{path}, line 2: label {str(value)[:40]!r} is not a ")


def test_values_that_json_writes_as_huge_numbers_are_bad_rows(tokenizer, tmp_path):
    path = tmp_path / "v.jsonl"
    huge = ("1e400", "1" + "0" * 400, "Infinity")
    path.write_text("".join(f'{{"text": "a", "label": {value}}}\n' for value in ("2", *huge)))
    found = sentence_examples(path, dataclasses.replace(custom(()), problem="regression"), (), tokenizer, LIMIT)
    assert (found.targets.tolist(), found.tally.unusable) == ([2], 3)
    assert "is not a finite number in the range of float32" in found.tally.first


@pytest.mark.parametrize(
    ("value", "number"), [("3", 3.0), (" -2.5 ", -2.5), ("+.5", 0.5), ("1e-3", 0.001), ("3.4e38", 3.4e38), (7, 7.0)]
)
def test_numbers_are_read_as_they_are_written(value, number):
    assert gold_value("label", value) == number


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        (("pos", "pos ", "POS", "neg"), [("pos", "pos ", "POS")]),
        (("1", "1.0", "2", "01", "+1"), [("1", "1.0", "01", "+1")]),
        (("not  good", "not good"), [("not  good", "not good")]),
        (("caf\u00e9", "cafe\u0301", "\uff11", "1"), [("caf\u00e9", "cafe\u0301"), ("\uff11", "1")]),
        (("a", "b", "1", "10"), []),
    ],
)
def test_names_that_differ_only_in_how_they_are_written_are_found(names, groups):
    assert lookalikes(names) == groups


def test_sts_b_scores_are_divided_by_five_as_in_fairseqs_preprocessing(tokenizer, tmp_path):
    path = written(tmp_path / "s.tsv", "sentence1\tsentence2\tscore", "a\tb\t5.000", "a\tb\t2.5", "a\tb\tnan")
    found = sentence_examples(path, LAYOUTS["sts-b"], (), tokenizer, LIMIT, divisor=5.0)
    assert found.targets.tolist() == [1.0, 0.5]
    assert "line 4: score 'nan' is not a number" in found.tally.first


def test_texts_that_are_too_long_are_cut_as_in_inference_and_counted(tokenizer, tmp_path):
    pair = ["the dog " * 30, "a cat " * 5]
    path = written(tmp_path / "l.jsonl", {"a": pair[0], "b": pair[1], "y": 1}, {"a": "short", "b": "", "y": 0})
    task = Layout("custom", ("a", "b"), "y", ("0", "1"), ("accuracy",))
    found = sentence_examples(path, task, ("0", "1"), tokenizer, 40)
    assert found.tally.truncated == 1
    assert found.tally.to_text() == f"{path}: 2 examples; 1 truncated"
    assert found.sequences([0])[0].tolist() == encode_texts(tokenizer, pair, 40, "truncate")[0].ids.tolist()


def test_files_without_a_usable_row_are_an_error_that_says_why(tokenizer, tmp_path):
    for lines, reason in (
        (("text,label", "hello,"), r"no usable row.*: 0 examples; 1 without a label left out"),
        (("text,label",), r"e\.csv has no rows; expected at least one with a label"),
    ):
        path = written(tmp_path / "e.csv", *lines)
        with pytest.raises(InputError, match=reason):
            sentence_examples(
                path, Layout("custom", ("text",), "label", ("a", "b"), ("accuracy",)), ("a", "b"), tokenizer, LIMIT
            )
    path = written(tmp_path / "f.jsonl", {"text": 5, "label": "a"})
    with pytest.raises(InputError, match=r"no usable row.* the first is .*f\.jsonl, line 1: column 'text'"):
        sentence_examples(
            path, Layout("custom", ("text",), "label", ("a", "b"), ("accuracy",)), ("a", "b"), tokenizer, LIMIT
        )


def test_several_labels_are_columns_of_zero_and_one(tokenizer, tmp_path):
    path = written(tmp_path / "m.csv", "text,toxic,insult", "you!,1,0", "hello,0,0", "both,1,True")
    found = multi_label_examples(path, ("text",), ("toxic", "insult"), tokenizer, LIMIT)
    assert found.targets.tolist() == [[1, 0], [0, 0], [1, 1]]
    bad = written(tmp_path / "n.csv", "text,toxic,insult", "you!,1,maybe")
    with pytest.raises(InputError, match=r"n\.csv, line 2: column 'insult' is 'maybe', expected 0 or 1"):
        multi_label_examples(bad, ("text",), ("toxic", "insult"), tokenizer, LIMIT)


def test_labels_that_are_not_named_are_those_of_the_file_in_order(tmp_path):
    path = written(tmp_path / "a.tsv", "text\tlabel", "x\t10", "x\t9", "x\t10")
    assert label_names(path, "label") == ("9", "10")
    path = written(tmp_path / "b.tsv", "text\tlabel", "x\tpos", "x\tneg", "x\tneutral")
    assert label_names(path, "label") == ("neg", "neutral", "pos")
    values = written(tmp_path / "c.tsv", "text\tlabel", *(f"x\t{i / 7}" for i in range(1500)))
    with pytest.raises(InputError, match="more than 1000 different labels; is it a regression"):
        label_names(values, "label")


# --- where tokens are in the text -------------------------------------------------------------------------------------

TEXTS = [
    "Hello world!", " two  spaces ", "naïve café, 日本語 テキスト", "emoji 👩‍👩‍👧 and 🤖!", "don't we're I'll", "a\tb\n\nc   d", "", "x",
]  # fmt: skip


@pytest.fixture(scope="module")
def huggingface(gpt2_bpe):
    """transformers' byte-level BPE with offsets, with GPT-2's vocabulary."""
    from transformers import RobertaTokenizerFast

    files = {"vocab_file": str(gpt2_bpe / "encoder.json"), "merges_file": str(gpt2_bpe / "vocab.bpe")}
    return RobertaTokenizerFast(**files, trim_offsets=False)


@pytest.mark.parametrize("text", TEXTS)
def test_characters_of_byte_level_tokens_are_transformers_offsets(text, gpt2_tokenizer, huggingface):
    theirs = huggingface(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    assert gpt2_tokenizer.spans(text).tolist() == [list(pair) for pair in theirs]


def test_characters_of_real_sentences_are_transformers_offsets(gpt2_tokenizer, huggingface, sick_pairs):
    for text, _ in sick_pairs[:200]:
        theirs = huggingface(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        assert gpt2_tokenizer.spans(text).tolist() == [list(pair) for pair in theirs]


def test_characters_of_sentencepieces_are_where_its_pieces_are(sentencepiece_model):
    from roberta_flax.text.fairseq_tokenizer import SentencePiece

    bpe = SentencePiece(sentencepiece_model)
    for text in ("A man plays a guitar", "Ça va très bien, naïve Zoë?", "日本語 テキスト", "  two  spaces ", ""):
        pieces = bpe._processor.Encode(text, out_type=str)
        spans = bpe.spans(text).tolist()
        assert len(spans) == len(pieces)
        for piece, (begin, end) in zip(pieces, spans, strict=True):
            assert text[begin:end].strip() == piece.replace("▁", "").strip()


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_the_first_token_of_each_word_has_its_tag(gpt2_tokenizer, tmp_path):
    words = ["Wolfgang", "lebt", "in", "Berlin", ".", "naïveté", "日本語", "don't"]
    tags = ["PER", "O", "O", "LOC", "O", "O", "LOC", "O"]
    path = written(tmp_path / "t.jsonl", {"words": words, "tags": tags})
    labels = ("LOC", "O", "PER")
    found = token_examples(path, "words", "tags", labels, gpt2_tokenizer, LIMIT)
    (tokens,) = found.sequences([0])
    assert tokens.tolist() == gpt2_tokenizer.encode(" ".join(words)).tolist()
    places = np.flatnonzero(found.targets != -1)
    assert [labels[i] for i in found.targets[places]] == tags
    # each place is where a word begins: the tokens from there up to the next one are the word
    for word, (begin, end) in zip(words, itertools.pairwise([*places.tolist(), len(tokens) - 1]), strict=True):
        assert str(gpt2_tokenizer.decode(tokens[begin:end])).strip() == word


def test_tags_of_words_beyond_the_limit_are_left_out_and_counted(tokenizer, tmp_path):
    path = written(tmp_path / "t.jsonl", {"words": ["dog"] * 60, "tags": [0, 1] * 30}, {"words": ["a"], "tags": [1]})
    found = token_examples(path, "words", "tags", ("B", "I"), tokenizer, 20)
    assert found.tally.truncated == 1
    assert len(found.sequences([0])[0]) == 20
    assert found.targets[found.offsets[1] :].tolist()[:2] == [-1, 1]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"words": ["a", "b"], "tags": ["X"]}, "2 words but 1 tags"),
        ({"words": ["a", " "], "tags": ["X", "X"]}, "words has an item that is empty or not text"),
        ({"words": "a b", "tags": ["X", "X"]}, "words is missing, empty or not a list"),
        ({"words": ["a", "b"], "tags": ["X", ""]}, "tags has an item that is empty, or neither text nor a number"),
        ({"words": ["a", "b"], "tags": ["X", None]}, "tags has an item that is empty, or neither text nor a number"),
        ({"words": ["a", "b"], "tags": ["X", ["X"]]}, "tags has an item that is empty, or neither text nor a number"),
        ("{not JSON", "not JSON"),
    ],
)
def test_rows_of_words_that_cannot_be_used_are_told(row, reason, tokenizer, tmp_path):
    path = written(tmp_path / "t.jsonl", {"words": ["a"], "tags": ["X"]}, row)
    found = token_examples(path, "words", "tags", ("X", "Y"), tokenizer, LIMIT)
    assert found.tally.unusable == 1
    assert found.tally.first.startswith(f"{path}, line 2: ")
    assert reason in found.tally.first


def test_tags_that_are_not_named_are_those_of_the_file(tmp_path):
    rows = [{"words": ["a", "b"], "tags": ["O", "B-PER"]}, {"words": ["c", "d"], "tags": ["I", ""]}]
    path = written(tmp_path / "t.jsonl", *rows, {"words": ["e"], "tags": [["I"]]})
    assert tag_names(path, "tags") == ("B-PER", "I", "O")


def test_a_tag_that_training_never_saw_is_an_error_with_its_line(tokenizer, tmp_path):
    path = written(tmp_path / "t.jsonl", {"words": ["a"], "tags": ["O"]}, {"words": ["a"], "tags": [1]})
    with pytest.raises(InputError, match=r"t\.jsonl, line 2: '1' is not one of the labels B, O"):
        token_examples(path, "words", "tags", ("B", "O"), tokenizer, LIMIT, match="exact")


def test_a_file_without_rows_or_labels_says_so(tmp_path):
    path = written(tmp_path / "a.tsv", "text\tlabel")
    with pytest.raises(InputError, match=r"a\.tsv has no rows; expected at least two classes"):
        label_names(path, "label")
    written(path, "text\tlabel", "x\t", "y\t")
    with pytest.raises(InputError, match=r"has 2 rows, and none has a label in 'label'; expected at least two classes"):
        label_names(path, "label")
    path = written(tmp_path / "t.jsonl")
    with pytest.raises(InputError, match=r"t\.jsonl has no rows"):
        tag_names(path, "tags")


def test_classes_are_counted_as_they_are_trained_on(tokenizer, tmp_path):
    path = written(tmp_path / "a.tsv", "text\tlabel", "x\tup", "y\tdown", "z\tup")
    labels = ("down", "flat", "up")
    found = sentence_examples(path, custom(labels), labels, tokenizer, LIMIT)
    assert found.class_counts(labels) == {"down": 1, "flat": 0, "up": 2}
    path = written(tmp_path / "m.csv", "text,red,old", "a,1,0", "b,1,1")
    several = multi_label_examples(path, ("text",), ("red", "old"), tokenizer, LIMIT)
    assert several.class_counts(("red", "old")) == {"red": 2, "old": 1}
    path = written(tmp_path / "t.jsonl", {"words": ["a", "b", "c"], "tags": ["O", "O", "X"]})
    tags = token_examples(path, "words", "tags", ("O", "X"), tokenizer, LIMIT)
    assert tags.class_counts(("O", "X")) == {"O": 2, "X": 1}
    assert found.class_counts(()) == {}


# --- spans ------------------------------------------------------------------------------------------------------------

CONTEXT = "The Größe of São Paulo is 1,521 km². Its mayor lives at Parque Ibirapuera, in the south of the city."


def squad(question: str, answer: str, context: str = CONTEXT) -> dict[str, Any]:
    return {
        "question": question,
        "context": context,
        "answers": {"text": [answer], "answer_start": [context.index(answer)]},
    }


@pytest.mark.parametrize(
    "answer", ["São Paulo", "1,521 km²", "The", "city", "Parque Ibirapuera", "the south of the city"]
)
def test_a_spans_tokens_are_those_of_the_answer(answer, gpt2_tokenizer, tmp_path):
    path = written(tmp_path / "s.jsonl", squad("Where is it?", answer))
    found = span_examples(path, gpt2_tokenizer, LIMIT)
    (tokens,) = found.sequences([0])
    assert tokens.tolist() == gpt2_tokenizer.encode("Where is it?", CONTEXT).tolist()
    start, end = found.targets[0].tolist()
    assert str(gpt2_tokenizer.decode(tokens[start : end + 1])).strip() == answer


def test_both_forms_of_squads_answers_are_read_alike(tokenizer, tmp_path):
    other = {**squad("q", "mayor"), "answers": [{"text": "mayor", "answer_start": CONTEXT.index("mayor")}]}
    path = written(tmp_path / "s.jsonl", squad("q", "mayor"), other)
    found = span_examples(path, tokenizer, LIMIT)
    assert found.targets[0].tolist() == found.targets[1].tolist()
    assert found.questions[0] == found.questions[1] == (CONTEXT, ("mayor",))


def test_a_long_context_slides_by_and_the_answer_is_found_in_its_windows(tokenizer, tmp_path):
    context = "a dog and a cat. " * 20 + "The answer is Ibirapuera. " + "a horse and a cow. " * 20
    path = written(tmp_path / "s.jsonl", squad("What?", "Ibirapuera", context))
    found = span_examples(path, tokenizer, 64)
    assert len(found) > 5
    assert found.tally.truncated == len(found)
    inside = 0
    for number, (start, end) in enumerate(found.targets.tolist()):
        (tokens,) = found.sequences([number])
        assert len(tokens) <= 64
        if (start, end) == (0, 0):
            assert "Ibirapuera" not in str(tokenizer.decode(tokens[3:]))
        else:
            assert str(tokenizer.decode(tokens[start : end + 1])).strip() == "Ibirapuera"
            inside += 1
    assert inside >= 1
    covered = [range(begin, end) for _, _, begin, end in found.windows.tolist()]
    assert sorted(set(itertools.chain(*covered))) == list(range(len(tokenizer.encode_text(context))))


def test_gold_answers_and_windows_are_part_of_the_fingerprint(tokenizer, tmp_path):
    """A second answer is no target, but validation compares with it."""
    path = written(tmp_path / "s.jsonl", squad("q", "mayor"))
    before = span_examples(path, tokenizer, LIMIT).fingerprint()
    assert span_examples(path, tokenizer, LIMIT).fingerprint() == before
    second = {"text": ["mayor", "Its mayor"], "answer_start": [CONTEXT.index("mayor"), CONTEXT.index("Its mayor")]}
    written(path, {**squad("q", "mayor"), "answers": second})
    assert span_examples(path, tokenizer, LIMIT).fingerprint() != before


@pytest.mark.parametrize("answers", [{"text": [], "answer_start": []}, []])
def test_a_question_without_an_answer_points_at_the_first_token_in_every_window(answers, tokenizer, tmp_path):
    context = "a dog and a cat. " * 20
    unanswerable = {"question": "Where?", "context": context, "answers": answers}
    found = span_examples(written(tmp_path / "s.jsonl", unanswerable, squad("q", "mayor")), tokenizer, 64)
    of_first = found.windows[:, 0] == 0
    assert of_first.sum() > 1
    assert (found.targets[of_first] == 0).all()
    assert found.targets[~of_first].any()
    assert [question.answers for question in found.questions] == [(), ("mayor",)]
    assert found.tally.unusable == 0


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({"text": ["mayor"], "answer_start": [3]}, "answer 'mayor' is not at character 3 of the context"),
        ({"text": ["mayor"]}, "as many text as answer_start"),
        ("mayor", "answers is missing, or not in SQuAD's form"),
    ],
)
def test_answers_that_are_not_in_the_context_are_told(answers, reason, tokenizer, tmp_path):
    path = written(tmp_path / "s.jsonl", {**squad("q", "mayor"), "answers": answers}, squad("q", "mayor"))
    found = span_examples(path, tokenizer, LIMIT)
    assert (len(found), found.tally.unusable) == (1, 1)
    assert reason in found.tally.first


# --- choices, against fairseq's own tasks -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fairseq_examples() -> Path:
    spec = importlib.util.find_spec("fairseq")
    if spec is None or spec.origin is None:
        skip_or_fail("fairseq is not installed")
    return Path(spec.origin).parent / "examples" / "roberta"  # type: ignore[union-attr]


def module_at(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


QUESTIONS = [
    ("Where would I not want a fox?", ["hen house", "england", "mountains", "english hunt", "california"], "A"),
    ("What do all people like? ", ["sleep", "the naïve café", " rain", "war", "a red chair"], "E"),
]


def commonsenseqa(stem: str, choices: list[str], answer: str) -> dict[str, Any]:
    labeled = [{"label": letter, "text": text} for letter, text in zip("ABCDE", choices, strict=True)]
    return {"answerKey": answer, "id": "1", "question": {"question_concept": "x", "choices": labeled, "stem": stem}}


def test_commonsenseqas_ids_are_fairseqs(fairseq_examples, tiny_source, tokenizer, tmp_path):
    written(tmp_path / "train.jsonl", *itertools.starmap(commonsenseqa, QUESTIONS))
    (tmp_path / "dict.txt").write_bytes((tiny_source / "dict.txt").read_bytes())
    theirs = module_at(fairseq_examples / "commonsense_qa" / "commonsense_qa_task.py").CommonsenseQATask
    args = argparse.Namespace(
        data=str(tmp_path), init_token=0, num_classes=5, seed=1, criterion="sentence_ranking", bpe="gpt2",
        gpt2_encoder_json=str(tiny_source / "encoder.json"), gpt2_vocab_bpe=str(tiny_source / "vocab.bpe"),
    )  # fmt: skip
    task = theirs.setup_task(args)
    task.load_dataset("train")
    rows = task.datasets["train"].dataset
    ours = choice_examples(tmp_path / "train.jsonl", "commonsenseqa", tokenizer, LIMIT)
    assert (len(ours), ours.choices) == (len(rows), 5)
    for number in range(len(rows)):
        expected = [rows[number][f"net_input{i + 1}.src_tokens"].tolist() for i in range(5)]
        assert [sequence.tolist() for sequence in ours.sequences([number])] == expected
        assert ours.targets[number] == int(rows[number]["target"])


RACE = [
    {
        "answers": ["B", "D"],
        "questions": ["What is  it about ?", "The dog likes _ ."],
        "options": [["a dog", "a cat\nand more", "rain", "war"], ["to sleep", "tea", " the park", "its mother"]],
        "article": "A dog is sleeping.\nA cat  is sitting\n\non the chair. ",
        "id": "high1.txt",
    },
    {
        "answers": ["A"],
        "questions": ["Which long one " + "is it of them all " * 30 + "?"],
        "options": [["this one", "that one " * 60, "x", "y"]],
        "article": "The grass is green and the garden is full of children. " * 60,
        "id": "high2.txt",
    },
]


@pytest.fixture
def race(tmp_path) -> Path:
    """A directory as RACE's own."""
    for level, article in zip(("middle", "high"), RACE, strict=True):
        (tmp_path / "RACE" / "train" / level).mkdir(parents=True)
        written(tmp_path / "RACE" / "train" / level / article["id"], article)
    return tmp_path / "RACE"


def test_a_question_without_a_right_choice_is_left_out_and_counted(tokenizer, race, tmp_path):
    rows = [{"text": "q", "choices": ["a", "b"], "label": label} for label in (1, None, "", "A")]
    found = choice_examples(written(tmp_path / "c.jsonl", *rows), "choice", tokenizer, LIMIT)
    assert (found.targets.tolist(), found.tally.unlabeled, found.tally.unusable) == ([1, 0], 2, 0)
    written(race / "train" / "middle" / "high1.txt", {**RACE[0], "answers": ["B", ""]})
    found = choice_examples(race, "race", tokenizer, LIMIT)
    assert (found.targets.tolist(), found.tally.unusable) == ([0], 1)
    assert "1 of 2 questions have no answer" in found.tally.first


def test_races_ids_are_fairseqs(fairseq_examples, race, tiny_source, tokenizer, tmp_path, monkeypatch):
    """Through preprocess_RACE.py, multiprocessing_bpe_encoder.py, the dictionary and the task sentence_ranking."""
    torch = pytest.importorskip("torch")
    from fairseq.data import Dictionary, ListDataset
    from fairseq.tasks import sentence_ranking

    script = module_at(fairseq_examples / "preprocess_RACE.py")
    rows = script.get_examples(str(race), "train")
    encoder = module_at(fairseq_examples / "multiprocessing_bpe_encoder.py").MultiprocessingEncoder(
        argparse.Namespace(
            encoder_json=str(tiny_source / "encoder.json"), vocab_bpe=str(tiny_source / "vocab.bpe"), keep_empty=True
        )
    )
    encoder.initializer()
    dictionary = Dictionary.load(str(tiny_source / "dict.txt"))

    def load_indexed_dataset(path: str, *_: Any, **__: Any) -> ListDataset:
        number = int(Path(path).parent.name.removeprefix("input"))
        lines = [row.paragraph if number == 0 else row.qa_list[number - 1] for row in rows]
        ((_, encoded),) = [encoder.encode_lines(lines)]
        tensors = [dictionary.encode_line(line, append_eos=True, add_if_not_exist=False).long() for line in encoded]
        return ListDataset(tensors, np.array([len(tensor) for tensor in tensors]))

    monkeypatch.setattr(sentence_ranking.data_utils, "load_indexed_dataset", load_indexed_dataset)
    (tmp_path / "label").mkdir()
    (tmp_path / "label" / "train.label").write_text("".join(f"{row.label}\n" for row in rows))
    task = sentence_ranking.SentenceRankingTask(
        argparse.Namespace(
            data=str(tmp_path), dataset_impl=None, num_classes=4, init_token=0, separator_token=2, seed=1,
            max_option_length=128, shorten_method="truncate", shorten_data_split_list="", max_positions=LIMIT,
            no_shuffle=True,
        ),
        dictionary,
    )  # fmt: skip
    theirs = task.load_dataset("train")
    expected = collections.Counter()
    for number in range(len(theirs)):
        row = theirs[number]
        assert isinstance(row["net_input1.src_tokens"], torch.Tensor)
        choices = tuple(tuple(row[f"net_input{i + 1}.src_tokens"].tolist()) for i in range(4))
        expected[choices, int(row["target"])] += 1

    ours = choice_examples(race / "train", "race", tokenizer, LIMIT)
    found = collections.Counter(
        (tuple(tuple(sequence.tolist()) for sequence in ours.sequences([number])), int(ours.targets[number]))
        for number in range(len(ours))
    )
    assert found == expected
    assert len(ours) == 3
    assert ours.tally.truncated == 1
    assert max(len(sequence) for choices, _ in found for sequence in choices) == LIMIT
    # the same articles as JSONL, and with one question an object
    (tmp_path / "lines").mkdir()
    whole = written(tmp_path / "lines" / "whole.jsonl", *RACE)
    single = written(
        tmp_path / "lines" / "single.jsonl",
        *(
            {"article": row["article"], "question": question, "options": options, "answer": answer}
            for row in RACE
            for question, options, answer in zip(row["questions"], row["options"], row["answers"], strict=True)
        ),
    )
    for path in (whole, single):
        again = choice_examples(path, "race", tokenizer, LIMIT)
        assert sorted(again.tokens.tolist()) == sorted(ours.tokens.tolist())
        assert again.targets.tolist() == [1, 3, 0]


def test_choices_of_ones_own_are_what_predict_encodes(tokenizer, tmp_path):
    row = {"question": "What sleeps?", "options": ["A dog.", "A table."], "answer": 0}
    path = written(tmp_path / "c.jsonl", row, {**row, "answer": "B"}, {**row, "answer": "1"})
    names = {"given": "question", "choices": "options", "label": "answer"}
    found = choice_examples(path, "choice", tokenizer, LIMIT, **names)
    assert found.targets.tolist() == [0, 1, 1]
    expected = [tokenizer.encode("What sleeps?", choice).tolist() for choice in row["options"]]
    assert [sequence.tolist() for sequence in found.sequences([1])] == expected


def test_rows_have_choices_of_their_own_number_and_wrong_answers_are_errors(tokenizer, tmp_path):
    row = {"text": "What?", "choices": ["a", "b", "c"], "label": 0}
    two = {**row, "choices": ["a", "b"], "label": "B"}
    found = choice_examples(
        written(tmp_path / "c.jsonl", two, row, {**row, "choices": ["a"]}), "choice", tokenizer, LIMIT
    )
    assert (len(found), found.choices) == (2, 3)
    assert [len(sequence) > 0 for sequence in found.sequences([0, 1])] == [True, True, False, True, True, True]
    assert found.tally.first.endswith("line 3: 1 choices, expected two or more")
    ((_, batch),) = validation_batches(found, batch_size=2, pad_id=1, max_positions=LIMIT)
    assert (batch["tokens"][0, 2] == 1).all()
    with pytest.raises(InputError, match=r"d\.jsonl, line 1: 'C' is not one of 2 choices"):
        choice_examples(written(tmp_path / "d.jsonl", {**two, "label": "C"}, row), "choice", tokenizer, LIMIT)
    for label in (3, "D", True):
        bad = written(tmp_path / "d.jsonl", {**row, "label": label})
        with pytest.raises(InputError, match=r"d\.jsonl, line 1: .* is not one of 3 choices"):
            choice_examples(bad, "choice", tokenizer, LIMIT)


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def numbered(tokenizer, tmp_path) -> reading.Examples:
    """Examples whose target is their number, of several lengths."""
    rows = ({"text": "a dog " * (1 + i % 7), "label": i} for i in range(23))
    path = written(tmp_path / "n.jsonl", *rows)
    labels = tuple(map(str, range(23)))
    return sentence_examples(
        path, Layout("custom", ("text",), "label", labels, ("accuracy",)), labels, tokenizer, LIMIT
    )


def batches(examples: reading.Examples, **changes: Any) -> Any:
    options = {"batch_size": 4, "pad_id": 1, "max_positions": LIMIT, "seed": 1}
    return training_batches(examples, **{**options, **changes})


def order(iterator: Any, updates: int) -> list[int]:
    """The numbers of the examples of some updates, without the rows of padding."""
    found = []
    for _ in range(updates):
        batch = next(iterator)
        found += batch["targets"][batch["weights"] > 0].tolist()
    return found


def test_every_epoch_has_each_example_once_in_an_order_of_its_own(numbered):
    iterator = batches(numbered)
    epochs = [order(iterator, 6) for _ in range(4)]
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_the_order_depends_on_the_seed_alone_and_seeds_do_not_shift_it(numbered):
    first = [order(batches(numbered, seed=seed), 24) for seed in range(4)]
    assert first == [order(batches(numbered, seed=seed), 24) for seed in range(4)]
    # no seed's second epoch is another's first
    epochs = {tuple(run[i * 23 : (i + 1) * 23]) for run in first for i in range(4)}
    assert len(epochs) == 16


@pytest.mark.parametrize("update_freq", [1, 3])
def test_a_pipeline_goes_on_exactly_where_its_state_says(update_freq, numbered):
    iterator = batches(numbered, update_freq=update_freq)
    for _ in range(7):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = [next(iterator) for _ in range(9)]
    other = batches(numbered, update_freq=update_freq)
    other.set_state(state)
    for batch in expected:
        for name, array in next(other).items():
            np.testing.assert_array_equal(array, batch[name])


def test_batches_of_one_update_are_stacked_and_padded_to_one_bucket(numbered):
    iterator = batches(numbered, update_freq=3)
    update = next(iterator)
    assert update["tokens"].shape[:2] == (3, 4)
    assert update["targets"].shape == update["weights"].shape == (3, 4)
    assert update["tokens"].dtype == np.int32
    last = next(iterator)
    assert last["weights"].sum() == 11
    (padding,) = last["tokens"][last["weights"] == 0]
    assert (padding == 1).all()
    for row, target in zip(update["tokens"].reshape(12, -1), update["targets"].ravel(), strict=True):
        (expected,) = numbered.sequences([int(target)])
        assert row[: len(expected)].tolist() == expected.tolist()
        assert (row[len(expected) :] == 1).all()


def test_few_lengths_occur(numbered):
    iterator = batches(numbered)
    assert {next(iterator)["tokens"].shape[1] % 8 for _ in range(40)} == {0}


def test_one_example_is_enough(tokenizer, tmp_path):
    path = written(tmp_path / "one.jsonl", {"text": "a", "label": "x"})
    one = sentence_examples(
        path, Layout("custom", ("text",), "label", ("x", "y"), ("accuracy",)), ("x", "y"), tokenizer, LIMIT
    )
    iterator = batches(one, batch_size=2)
    for _ in range(3):
        assert next(iterator)["weights"].tolist() == [1, 0]


def test_validation_has_every_example_in_the_files_order(numbered):
    found = list(validation_batches(numbered, batch_size=5, pad_id=1, max_positions=LIMIT))
    assert list(itertools.chain(*(numbers for numbers, _ in found))) == list(range(23))
    assert np.concatenate([b["targets"][b["weights"] > 0] for _, b in found]).tolist() == list(range(23))
    assert {batch["tokens"].shape[0] for _, batch in found} == {5}


def test_batches_of_tokens_spans_and_choices_have_the_shapes_of_the_losses(tokenizer, tmp_path):
    tokens = token_examples(
        written(tmp_path / "t.jsonl", {"words": ["a", "dog"], "tags": ["Y", "X"]}, {"words": ["a"], "tags": ["X"]}),
        "words", "tags", ("X", "Y"), tokenizer, LIMIT,
    )  # fmt: skip
    ((_, batch),) = validation_batches(tokens, batch_size=3, pad_id=1, max_positions=LIMIT)
    assert batch["tokens"].shape == batch["targets"].shape == batch["weights"].shape == (3, 8)
    assert batch["weights"].sum() == 3
    assert batch["targets"][batch["weights"] > 0].tolist() == [1, 0, 0]
    spans = span_examples(written(tmp_path / "s.jsonl", squad("q", "mayor")), tokenizer, LIMIT)
    ((_, batch),) = validation_batches(spans, batch_size=2, pad_id=1, max_positions=LIMIT)
    assert batch["targets"].shape == (2, 2)
    assert batch["weights"].tolist() == [1, 0]
    row = {"text": "What?", "choices": ["a", "b", "c"], "label": 2}
    choices = choice_examples(written(tmp_path / "c.jsonl", row), "choice", tokenizer, LIMIT)
    ((_, batch),) = validation_batches(choices, batch_size=2, pad_id=1, max_positions=LIMIT)
    assert batch["tokens"].shape[:2] == (2, 3)
    assert batch["targets"].tolist() == [2, 0]


def test_fingerprints_tell_files_apart(numbered, tokenizer, tmp_path):
    path = written(tmp_path / "o.jsonl", {"text": "a dog", "label": "1"})
    other = sentence_examples(
        path, Layout("custom", ("text",), "label", ("0", "1"), ("accuracy",)), ("0", "1"), tokenizer, LIMIT
    )
    assert numbered.fingerprint() == numbered.fingerprint() != other.fingerprint()
