"""How a multiple-choice question and its choices become sequences, as in fairseq for RACE and CommonsenseQA."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from roberta_flax.datasets import tables
from roberta_flax.errors import InputError
from roberta_flax.files import PathLike
from roberta_flax.remote import to_path
from roberta_flax.text.encoding import Ids, encode_texts
from roberta_flax.text.tokenizer import Tokenizer

MAX_OPTION_LENGTH = 128  # tokens in an option of RACE: fairseq/examples/roberta/README.race.md, --max-option-length


# For each row, its location for messages, and its values or a BadRow.
Rows = Iterable[tuple[str, Any]]


def choice_inputs(
    framing: str, given: Sequence[Any], choices: Sequence[Any], tokenizer: Tokenizer, limit: int
) -> list[tuple[Ids, bool]]:
    """Returns the sequence that a choice head scores for each choice, and whether it was truncated.

    Args:
      framing: one of FRAMINGS, as in choice_examples.
      given: the texts before the choices: a text, a question, or RACE's article and question.
      choices: one text for each choice.
      tokenizer: the model's tokenizer.
      limit: the maximum length of a sequence, in tokens.

    Raises:
      InputError: a value is not text, the framing is unknown, or it takes another number of given texts.
    """
    chosen = framing_of(framing)
    if len(given) != len(chosen.given):
        raise InputError(f"the framing {framing} takes {' and '.join(chosen.given)}, got {len(given)} texts")
    if not all(map(_is_text, (*given, *choices))):
        raise InputError("a question or choice that is not text")
    return [chosen.join(chosen.pair(*given, choice), tokenizer, limit) for choice in choices]


def objects(path: PathLike) -> Rows:
    """Yields the location and the object of each row of a JSONL file."""
    for row in tables.read_objects(path):
        yield f"{path}, line {row.line}", row.values[0] if isinstance(row, tables.Row) else row


def _race_objects(path: PathLike) -> Rows:
    """Yields the objects in one of RACE's directories, which have one file per article, or in a JSONL file."""
    folder = to_path(path)
    if not folder.is_dir():
        yield from objects(path)
        return
    files = sorted(folder.rglob("*.txt"))
    if not files:
        raise InputError(f"{path} is a directory without .txt files; give one of RACE's, such as train or dev")
    for number, file in enumerate(files):
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            record = tables.BadRow(number, 1, f"not JSON: {error}")
        yield str(file), record


_Questions = Iterator[tuple[Sequence[Any], Sequence[Any], Any]]  # the given texts, the choices, and the correct one


def _read_choice(record: dict[str, Any], names: tuple[str, str, str]) -> _Questions:
    given, choices, label = names
    yield [text_of(record, given)], list_of(record, choices), record.get(label)


def _join_pair(texts: tuple[str, str], tokenizer: Tokenizer, limit: int) -> tuple[Ids, bool]:
    sequence = encode_texts(tokenizer, texts, limit, "truncate")[0]
    return sequence.ids, sequence.truncated


def _read_commonsenseqa(record: dict[str, Any], _: tuple[str, str, str]) -> _Questions:
    question = record.get("question")
    if not isinstance(question, dict):
        raise InputError("question is missing or not an object, as CommonsenseQA's are")
    choices = [choice.get("text") for choice in list_of(question, "choices") if isinstance(choice, dict)]
    yield [text_of(question, "stem")], choices, record.get("answerKey")


def _join_with_one_separator(texts: tuple[str, str], tokenizer: Tokenizer, limit: int) -> tuple[Ids, bool]:
    parts = tokenizer.pieces_of(texts)
    kept = tokenizer.truncate(parts, limit - tokenizer.special_lengths(2, no_separator=True)[2])
    return tokenizer.join(kept, no_separator=True), kept != parts


def _read_race(record: dict[str, Any], _: tuple[str, str, str]) -> _Questions:
    article = text_of(record, "article")
    if "questions" in record:
        lists = [list_of(record, name) for name in ("questions", "options", "answers")]
        if len(set(map(len, lists))) > 1:
            raise InputError("questions, options and answers differ in number")
        rows = list(zip(*lists, strict=True))
    else:
        rows = [(text_of(record, "question"), list_of(record, "options"), record.get("answer"))]
    for question, options, answer in rows:
        if not isinstance(options, list):
            raise InputError("options is not a list")
        yield [article, question], options, answer


def _pair_race(article: str, question: str, option: str) -> tuple[str, str]:
    answered = question.replace("_", option) if "_" in question else f"{question} {option}"
    return _one_line(answered), _one_line(article)


def _join_race(texts: tuple[str, str], tokenizer: Tokenizer, limit: int) -> tuple[Ids, bool]:
    option, article = tokenizer.pieces_of(texts)
    answered, second = tokenizer.join([option]), tokenizer.join([[], article])[tokenizer.special_lengths(1)[2] :]
    ids = np.concatenate([answered[:MAX_OPTION_LENGTH], second])
    return ids[:limit], len(answered) > MAX_OPTION_LENGTH or len(ids) > limit


@dataclass(frozen=True)
class Framing:
    """How a multiple-choice question and its choices become sequences.

    Attributes:
      given: descriptions of the texts before the choices, for messages.
      rows: reads the rows of a file.
      read: yields the questions of a row, given the keys of the text, the choices and the correct choice.
      pair: makes a pair of texts from the given texts and a choice.
      join: encodes a pair as a sequence of at most `limit` tokens, and says whether it was truncated.
    """

    given: tuple[str, ...]
    rows: Callable[[PathLike], Rows]
    read: Callable[[dict[str, Any], tuple[str, str, str]], _Questions]
    pair: Callable[..., tuple[str, str]]
    join: Callable[[tuple[str, str], Tokenizer, int], tuple[Ids, bool]]


FRAMINGS = {
    "choice": Framing(("a text",), objects, _read_choice, lambda text, choice: (text, choice), _join_pair),
    "commonsenseqa": Framing(
        ("a question",),
        objects,
        _read_commonsenseqa,
        lambda question, choice: (f"Q: {question}", f"A: {choice}"),
        _join_with_one_separator,
    ),
    "race": Framing(("an article", "a question"), _race_objects, _read_race, _pair_race, _join_race),
}


def framing_of(name: str) -> Framing:
    """Returns the framing with this name; raises InputError, which lists the names, if there is none."""
    if name not in FRAMINGS:
        raise InputError(f"framing must be one of {', '.join(FRAMINGS)}, got {name!r}")
    return FRAMINGS[name]


def _one_line(text: str) -> str:
    """Joins lines into one, as preprocess_RACE.py and multiprocessing_bpe_encoder.py do."""
    return re.sub(r"\s+", " ", text).strip()


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def text_of(record: dict[str, Any], name: str) -> str:
    """Returns the text under a key; raises InputError if it is missing or not text."""
    if not isinstance(value := record.get(name), str):
        raise InputError(f"{name} is missing or not text")
    return value


def list_of(record: dict[str, Any], name: str) -> list[Any]:
    """Returns the list under a key; raises InputError if it is missing, empty or not a list."""
    if not isinstance(value := record.get(name), list) or not value:
        raise InputError(f"{name} is missing, empty or not a list")
    return value
