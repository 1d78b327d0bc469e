"""Labeled files as tokenized examples, for every kind of head.

A file is read once and kept in a few arrays (Examples). Rows that cannot be used are left out, and inputs that are too
long are truncated; Examples.tally says how many. roberta_flax.train.batches makes batches of them.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from roberta_flax.datasets import tables
from roberta_flax.datasets.framing import Rows, choice_inputs, framing_of, list_of, objects, text_of
from roberta_flax.datasets.layouts import Layout, class_of
from roberta_flax.errors import InputError
from roberta_flax.files import PathLike
from roberta_flax.text.encoding import Ids, encode_texts
from roberta_flax.text.tokenizer import Tokenizer

_MAX_CLASSES = 1000  # that a file's labels are taken for; more are more likely values
NO_TAG = -1  # of a token with which no word begins


@dataclass
class Tally:
    """What became of a file's rows.

    Attributes:
      path: the file.
      examples: that were made of them.
      truncated: of these, those that were too long and lost tokens; of spans, windows of a context that was too long.
      unlabeled: rows left out because they say that they have no label (layouts.Layout.unlabeled).
      unusable: rows left out because of what is in them.
      first: where the first of the unusable is, and why it is unusable.
    """

    path: Path
    examples: int = 0
    truncated: int = 0
    unlabeled: int = 0
    unusable: int = 0
    first: str = ""

    def leave_out(self, where: str, reason: str) -> None:
        """Counts a row that cannot be used."""
        self.unusable += 1
        self.first = self.first or f"{where}: {reason}"

    def to_text(self) -> str:
        """One line."""
        parts = [f"{self.path}: {self.examples} examples"]
        if self.truncated:
            parts.append(f"{self.truncated} truncated")
        if self.unlabeled:
            parts.append(f"{self.unlabeled} without a label left out")
        if self.unusable:
            parts.append(f"{self.unusable} unusable rows left out; the first is {self.first}")
        return "; ".join(parts)


class Question(NamedTuple):
    """What is asked of a span head: where the answer is, and the right ones; () where there is none."""

    context: str
    answers: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Examples:
    """Tokenized examples of one file, for one kind of head.

    Attributes:
      kind: of the head, as in HeadConfig.
      tokens: int32 [tokens]: all sequences, one after another.
      offsets: int64 [sequences + 1]: where in `tokens` each begins, and where the last ends.
      targets: by the kind:
        sentence  int32 [examples]; float32 [examples] of a regression; float32 [examples, classes] of several labels
        token     int32 [tokens], aligned with `tokens`; -1 where no word begins
        span      int32 [examples, 2]: first and last token of the answer in the sequence; 0, 0 where it is not there
        choice    int32 [examples]
      tally: what became of the file's rows.
      choices: sequences of each example; 1 but for the kind choice, where those of an example with fewer choices are
        empty at the end.
      questions: of spans.
      windows: of spans, int64 [examples, 4]: the question's number, how many tokens stand before the context, and which
        of the context's tokens are there: the first, and the one after the last.
    """

    kind: str
    tokens: Ids
    offsets: npt.NDArray[np.int64]
    targets: npt.NDArray[Any]
    tally: Tally
    choices: int = 1
    questions: tuple[Question, ...] = ()
    windows: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 4), np.int64))

    def __len__(self) -> int:
        return (len(self.offsets) - 1) // self.choices

    def sequences(self, numbers: Iterable[int]) -> list[Ids]:
        """The token ids of some examples, int32 [length] each; of each example one for each choice."""
        return [
            self.tokens[self.offsets[i] : self.offsets[i + 1]]
            for number in numbers
            for i in range(number * self.choices, (number + 1) * self.choices)
        ]

    def fingerprint(self) -> str:
        """Hex digits that other examples, or the same in another order, do not have."""
        digest = hashlib.sha256()
        for array in (self.tokens, self.offsets, self.targets):
            digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
        return digest.hexdigest()[:16]


# Reading


class _Example(NamedTuple):
    """One example: its sequences, its target, and whether tokens are missing."""

    sequences: list[Ids]
    target: Any
    truncated: bool = False


class _UnknownLabel(Exception):  # noqa: N818
    """A label that is none of those that were named."""


def sentence_examples(
    path: PathLike, layout: Layout, labels: Sequence[str], tokenizer: Tokenizer, limit: int, *, divisor: float = 1.0
) -> Examples:
    """Of each row a text or several, and a class or value.

    Args:
      path: a file that tables.read_rows reads; a .txt file has tabs between its columns.
      layout: the file's layout.
      labels: the gold string of each class, in their order (see layouts.class_of); () for a regression.
      tokenizer: of the model.
      limit: the longest sequence; of longer ones the longest text is truncated, as in encoding.encode_texts.
      divisor: what a regression's values are divided by.

    Raises:
      InputError: a file that cannot be read, a label that is not one of `labels`, or no row that can be used.
    """

    def encode(values: tuple[Any, ...]) -> list[_Example]:
        *texts, label = values
        if str(label) in layout.unlabeled:
            return []
        target = _class(label, labels) if labels else _number(layout.label, label) / divisor
        sequence = encode_texts(tokenizer, texts, limit, "truncate")[0]
        return [_Example([sequence.ids], target, sequence.truncated)]

    rows = _table(path, layout.texts, (layout.label,), layout.header)
    return _collect("sentence", Tally(Path(path)), rows, encode, np.int32 if labels else np.float32)


def multi_label_examples(
    path: PathLike,
    texts: Sequence[str],
    labels: Sequence[str],
    tokenizer: Tokenizer,
    limit: int,
    *,
    header: bool = True,
) -> Examples:
    """Of each row a text or several, and for each of `labels`, which are columns, whether it holds: 0 or 1.

    Other arguments and errors as sentence_examples.
    """

    def encode(values: tuple[Any, ...]) -> list[_Example]:
        sequence = encode_texts(tokenizer, values[: len(texts)], limit, "truncate")[0]
        held = [_holds(label, value) for label, value in zip(labels, values[len(texts) :], strict=True)]
        return [_Example([sequence.ids], held, sequence.truncated)]

    return _collect("sentence", Tally(Path(path)), _table(path, texts, labels, header), encode, np.float32)


def token_examples(
    path: PathLike, words: str, tags: str, labels: Sequence[str], tokenizer: Tokenizer, limit: int
) -> Examples:
    """Of each object of a JSONL file its words, and a tag for each.

    The words are encoded as one text, with a space between each two, and the first token of each has its tag.

    Args:
      path: the file.
      words, tags: the keys of the two lists.
      labels: the tags in the order of their classes (see layouts.class_of).
      tokenizer: of the model.
      limit: the longest sequence; words beyond it have no part.

    Raises:
      InputError: as sentence_examples.
    """

    def encode(record: dict[str, Any]) -> list[_Example]:
        given, gold = (list_of(record, name) for name in (words, tags))
        if len(given) != len(gold):
            raise InputError(f"{len(given)} {words} and {len(gold)} {tags}")
        if any(not isinstance(word, str) or not word.strip() for word in given):
            raise InputError(f"{words} that are not text, or empty")
        text = " ".join(given)
        begins = np.cumsum([0, *(len(word) + 1 for word in given[:-1])])
        first = np.searchsorted(tokenizer.spans(text)[:, 1], begins, side="right")
        if len(set(first.tolist())) != len(given):
            raise InputError(f"{words} that begin within one token")
        ids = tokenizer.join([tokenizer.pieces(text)[: limit - 2]])
        target = np.full(len(ids), NO_TAG, np.int32)
        inside = first < len(ids) - 2
        target[first[inside] + 1] = [_class(tag, labels) for tag, kept in zip(gold, inside, strict=True) if kept]
        return [_Example([ids], target, not inside.all())]

    return _collect("token", Tally(Path(path)), objects(path), encode, np.int32)


def span_examples(path: PathLike, tokenizer: Tokenizer, limit: int) -> Examples:
    """Of each object of a JSONL file a question, a context, and answers with the characters where they begin there.

    As SQuAD has them: {"question": ..., "context": ..., "answers": {"text": [...], "answer_start": [...]}}, or the
    answers as a list of {"text": ..., "answer_start": ...}. The target is the first answer. A context that is too long
    slides by in windows, as in encoding.encode_texts; where the answer is not in one, or there is none (no answers, as
    SQuAD 2.0 has), its target is the first token, `<s>`, as in BERT's run_squad.py.

    Args:
      path: the file.
      tokenizer: of the model.
      limit: the longest sequence.

    Raises:
      InputError: as sentence_examples.
    """
    questions: list[Question] = []
    windows: list[tuple[int, int, int, int]] = []

    def encode(record: dict[str, Any]) -> list[_Example]:
        question, context = (text_of(record, name) for name in ("question", "context"))
        answers = _answers(record, context)
        spans = tokenizer.spans(context)
        text, begin = answers[0] if answers else ("", 0)
        first = int(np.searchsorted(spans[:, 1], begin, side="right"))
        last = int(np.searchsorted(spans[:, 0], begin + len(text), side="left")) - 1
        found = []
        for sequence in encode_texts(tokenizer, (question, context), limit, "window"):
            prefix, inside = sequence.prefix_length, (sequence.begin, sequence.end)
            if not sequence.truncated:
                prefix, inside = len(sequence.ids) - 1 - len(spans), (0, len(spans))
            there = bool(answers) and inside[0] <= first and last < inside[1]
            moved = prefix - inside[0]
            found.append(
                _Example([sequence.ids], (first + moved, last + moved) if there else (0, 0), sequence.truncated)
            )
            windows.append((len(questions), prefix, *inside))
        questions.append(Question(context, tuple(text for text, _ in answers)))
        return found

    examples = _collect("span", Tally(Path(path)), objects(path), encode, np.int32)
    return Examples(
        "span", examples.tokens, examples.offsets, examples.targets, examples.tally, 1, tuple(questions),
        np.array(windows, np.int64),
    )  # fmt: skip


def choice_examples(
    path: PathLike,
    framing: str,
    tokenizer: Tokenizer,
    limit: int,
    *,
    given: str = "text",
    choices: str = "choices",
    label: str = "label",
) -> Examples:
    """Of each row two or more candidates, of which one is right, by its number from 0 or its letter from A.

    By `framing`:
      choice         objects of a JSONL file with a text, a list of choices, and the right one's number or letter, under
                     the names given: `<s> text </s></s> choice </s>`, truncated as in encoding.encode_texts
      commonsenseqa  CommonsenseQA's own files: `<s> Q: question </s> A: choice </s>`
                     (fairseq/examples/roberta/commonsense_qa/commonsense_qa_task.py), truncated likewise
      race           a directory of RACE's own files, or JSONL of their objects or of objects with one question each
                     (article, question, options, answer): `<s> question option </s></s> article </s>`, an option
                     truncated after MAX_OPTION_LENGTH tokens and the whole at its end, `</s>` with it
                     (fairseq/examples/roberta/preprocess_RACE.py, fairseq/tasks/sentence_ranking.py)

    Args:
      path: the file or directory.
      framing: one of these.
      tokenizer: of the model.
      limit: the longest sequence.
      given, choices, label: the keys, of the framing choice.

    Raises:
      InputError: as sentence_examples.
    """
    found = framing_of(framing)
    names = (given, choices, label)

    def encode(record: dict[str, Any]) -> list[_Example]:
        made = []
        for before, candidates, answer in found.read(record, names):
            if len(candidates) < 2:
                raise InputError(f"{len(candidates)} choices, expected two or more")
            number = _choice(answer, len(candidates))
            sequences, truncated = zip(*choice_inputs(framing, before, candidates, tokenizer, limit), strict=True)
            made.append(_Example(list(sequences), number, any(truncated)))
        return made

    return _collect("choice", Tally(Path(path)), found.rows(path), encode, np.int32)


def label_names(path: PathLike, label: str, *, header: bool = True) -> tuple[str, ...]:
    """The different labels of a column, in the order of numbers, or else of the alphabet.

    Raises:
      InputError: a file that cannot be read, or so many of them that they are rather values.
    """
    rows = (values for _, values in _table(path, (), (label,), header) if not isinstance(values, tables.BadRow))
    return _sorted_names(path, (str(values[0]) for values in rows if values[0] is not None))


def tag_names(path: PathLike, tags: str) -> tuple[str, ...]:
    """The different tags in the lists called `tags` of a JSONL file's objects; order and errors as label_names."""
    records = (record for _, record in objects(path) if not isinstance(record, tables.BadRow))
    lists = (record.get(tags) for record in records)
    return _sorted_names(path, (str(tag) for found in lists if isinstance(found, list) for tag in found))


def _sorted_names(path: PathLike, found: Iterable[str]) -> tuple[str, ...]:
    names: set[str] = set()
    for name in found:
        names.add(name)
        if len(names) > _MAX_CLASSES:
            raise InputError(f"{path} has more than {_MAX_CLASSES} different labels; is it a regression?")
    numbers = all(re.fullmatch(r"\d+", name, re.ASCII) for name in names)
    return tuple(sorted(names, key=int if numbers else None))


def _collect(
    kind: str,
    tally: Tally,
    rows: Rows,
    encode: Callable[[Any], list[_Example]],
    dtype: npt.DTypeLike,
) -> Examples:
    """The examples that `encode` makes of each row; a row of which it makes none has no label."""
    examples: list[_Example] = []
    for where, values in rows:
        try:
            if isinstance(values, tables.BadRow):
                raise InputError(values.reason)
            found = encode(values)
        except _UnknownLabel as error:
            raise InputError(f"{where}: {error}") from None
        except InputError as error:
            tally.leave_out(where, str(error))
            continue
        tally.unlabeled += not found
        tally.truncated += sum(example.truncated for example in found)
        examples += found
    tally.examples = len(examples)
    if not examples:
        raise InputError(f"no row to learn from or to judge by: {tally.to_text()}")
    width = max(len(example.sequences) for example in examples)
    sequences: list[Ids] = []
    for example in examples:
        sequences += example.sequences + [np.empty(0, np.int32)] * (width - len(example.sequences))
    targets = [example.target for example in examples]
    return Examples(
        kind,
        np.concatenate(sequences),
        np.cumsum([0, *map(len, sequences)]),
        np.concatenate(targets) if kind == "token" else np.array(targets, dtype),
        tally,
        width,
    )


def _table(path: PathLike, texts: Sequence[str], keep: Sequence[str], header: bool) -> Rows:
    format = "tsv" if Path(path).suffix == ".txt" else None  # a line of text has no label
    for row in tables.read_rows(path, texts, keep=keep, header=None if header else False, format=format):
        yield f"{path}, line {row.line}", row.values if isinstance(row, tables.Row) else row


def _answers(record: dict[str, Any], context: str) -> list[tuple[str, int]]:
    """SQuAD's answers, which may be none: their texts, and the characters of the context where they begin."""
    found = record.get("answers")
    if isinstance(found, dict):
        texts, starts = (found.get(name) for name in ("text", "answer_start"))
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            raise InputError("answers without as many text as answer_start")
        answers = list(zip(texts, starts, strict=True))
    elif isinstance(found, list) and all(isinstance(answer, dict) for answer in found):
        answers = [(answer.get("text"), answer.get("answer_start")) for answer in found]
    else:
        raise InputError("answers is missing, or not as SQuAD's are")
    for text, start in answers:
        there = isinstance(text, str) and isinstance(start, int) and start >= 0
        if not there or not text.strip() or context[start : start + len(text)] != text:
            raise InputError(f"answer {str(text)[:40]!r} is not at character {start} of the context")
    return answers


def _class(label: Any, labels: Sequence[str]) -> int:
    if label is None:
        raise InputError("no label")
    if (number := class_of(str(label), labels)) is None:
        known = ", ".join(labels[:20]) + (", ..." if len(labels) > 20 else "")
        raise _UnknownLabel(f"{str(label)[:80]!r} is none of the labels {known}; name them all with --labels")
    return number


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{name} {str(value)[:40]!r} is no number")
    return number


def _holds(label: str, value: Any) -> float:
    if str(value).strip().casefold() not in ("0", "1", "false", "true"):
        raise _UnknownLabel(f"column {label!r} is {str(value)[:40]!r}, expected 0 or 1")
    return float(str(value).strip().casefold() in ("1", "true"))


def _choice(answer: Any, choices: int) -> int:
    """A choice's number, of its number or its letter."""
    letter = isinstance(answer, str) and re.fullmatch("[A-Z]", answer.strip().upper(), re.ASCII)
    number = ord(str(answer).strip().upper()) - ord("A") if letter else answer
    if isinstance(number, str) and re.fullmatch(r"\d+", number, re.ASCII):
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < choices:
        raise _UnknownLabel(
            f"{str(answer)[:40]!r} is none of {choices} choices; give a number from 0, or a letter from A"
        )
    return number
