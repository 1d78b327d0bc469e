"""Reads labeled files as tokenized examples, for every kind of head.

A file is read once and kept in a few arrays (Examples). Rows that cannot be used are skipped, and inputs over the
maximum length are truncated. Examples.tally counts both. roberta_flax.train.batches makes batches of examples.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from roberta_flax.datasets import tables
from roberta_flax.datasets.framing import Rows, choice_inputs, framing_of, list_of, objects, text_of
from roberta_flax.datasets.layouts import Layout, Match, class_of, gold_value, is_missing
from roberta_flax.errors import InputError, printable
from roberta_flax.files import PathLike
from roberta_flax.remote import to_path
from roberta_flax.text.encoding import Ids, encode_texts
from roberta_flax.text.tokenizer import Tokenizer

_MAX_CLASSES = 1000  # a column with more distinct labels probably holds values
NO_TAG = -1  # the target of a token that does not begin a word


@dataclass
class Tally:
    """Counts of a file's rows: used, truncated and skipped.

    Attributes:
      path: the file.
      examples: number of examples.
      truncated: number of examples that were too long and lost tokens; for spans, windows of a context that was split.
      unlabeled: number of rows skipped because they have no label, or one that marks them as having none
        (layouts.Layout.is_unlabeled).
      unusable: number of rows skipped because of their content.
      first: location of the first unusable row, and the reason.
    """

    path: Path
    examples: int = 0
    truncated: int = 0
    unlabeled: int = 0
    unusable: int = 0
    first: str = ""

    def leave_out(self, where: str, reason: str) -> None:
        """Counts a row that cannot be used, and keeps the reason if it is the first."""
        self.unusable += 1
        self.first = self.first or f"{where}: {reason}"

    @property
    def rows(self) -> bool:
        """Whether the file has any row."""
        return bool(self.examples or self.unlabeled or self.unusable)

    def nothing_usable(self) -> InputError:
        """Returns the error for a file of which no row can be used."""
        if not self.rows:
            return InputError(f"{self.path} has no rows; expected at least one with a label")
        return InputError(f"the file has no usable row: {self.to_text()}")

    def to_text(self) -> str:
        """One line."""
        parts = [f"{self.path}: {self.examples} examples"]
        if self.truncated:
            parts.append(f"{self.truncated} truncated")
        if self.unlabeled:
            parts.append(f"{self.unlabeled} without a label left out")
        if self.unusable:
            parts.append(f"{self.unusable} unusable rows left out; the first is {self.first}")
        return printable("; ".join(parts))


class Question(NamedTuple):
    """A question for a span head: its context, and the correct answers; () if it has no answer."""

    context: str
    answers: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Examples:
    """Tokenized examples from one file, for one kind of head.

    Attributes:
      kind: the kind of head, as in HeadConfig.
      tokens: int32 [tokens]: all sequences, concatenated.
      offsets: int64 [sequences + 1]: the start of each sequence in `tokens`, and the end of the last.
      targets: an array that depends on the kind:
        sentence  int32 [examples]; for a regression float32 [examples]; for several labels float32 [examples, classes]
        token     int32 [tokens], aligned with `tokens`; -1 where no word begins
        span      int32 [examples, 2]: the answer's first and last token in the sequence; 0, 0 if it is not there
        choice    int32 [examples]
      tally: counts of the file's rows.
      choices: number of sequences per example: 1, except for the kind choice. If an example has fewer choices, its last
        sequences are empty.
      questions: for spans, the questions in the file.
      windows: for spans, int64 [examples, 4]: the question's index, the number of tokens before the context, and the
        range of the context's tokens in the window: the first, and one past the last.
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
        """Returns the token ids of the examples with these indices, int32 [length]: one array for each choice."""
        return [
            self.tokens[self.offsets[i] : self.offsets[i + 1]]
            for number in numbers
            for i in range(number * self.choices, (number + 1) * self.choices)
        ]

    def fingerprint(self) -> str:
        """Returns a hash of the examples and their order, gold answers included, as 16 hex digits."""
        digest = hashlib.sha256(repr((self.kind, self.choices, list(map(tuple, self.questions)))).encode())
        for array in (self.tokens, self.offsets, self.targets, self.windows):
            digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
        return digest.hexdigest()[:16]

    def class_counts(self, labels: Sequence[str]) -> dict[str, int]:
        """Returns how often each class is a target: in examples, or in words for a token head.

        Args:
          labels: the gold string of each class, in order.

        Returns:
          Counts by gold string; {} if the targets are not classes that `labels` names.
        """
        if self.kind not in ("sentence", "token") or not labels:
            return {}
        if self.targets.ndim == 2:
            counts = self.targets.sum(axis=0)
        else:
            counts = np.bincount(self.targets[self.targets != NO_TAG].astype(np.int64), minlength=len(labels))
        return dict(zip(labels, counts.astype(int).tolist(), strict=True))


# Reading


class _Example(NamedTuple):
    """One example: its sequences, its target, and whether it was truncated."""

    sequences: list[Ids]
    target: Any
    truncated: bool = False


class _UnknownLabel(Exception):  # noqa: N818
    """A label that is not one of the known ones."""


def sentence_examples(
    path: PathLike, layout: Layout, labels: Sequence[str], tokenizer: Tokenizer, limit: int, *, divisor: float = 1.0
) -> Examples:
    """Reads examples for a sentence head: each row has one or more texts, and a class or value.

    Args:
      path: a file that tables.read_rows reads. A .txt file has tabs between its columns.
      layout: the file's layout.
      labels: the gold string of each class, in order (see layouts.class_of); () for a regression.
      tokenizer: the model's tokenizer.
      limit: the maximum length of a sequence, in tokens. Longer ones lose tokens from the end of the longest text, as
        in encoding.encode_texts.
      divisor: the values of a regression are divided by this.

    Raises:
      InputError: the file cannot be read, a label is not one of `labels`, or no row can be used.
    """

    def encode(values: tuple[Any, ...]) -> list[_Example]:
        *texts, label = values
        if layout.is_unlabeled(label):
            return []
        target = _class_number(label, labels, layout.match) if labels else gold_value(layout.label, label) / divisor
        sequence = encode_texts(tokenizer, texts, limit, "truncate")[0]
        return [_Example([sequence.ids], target, sequence.truncated)]

    rows = table_rows(path, layout.texts, (layout.label,), layout.header)
    return _collect("sentence", Tally(to_path(path)), rows, encode, np.int32 if labels else np.float32)


def multi_label_examples(
    path: PathLike,
    texts: Sequence[str],
    labels: Sequence[str],
    tokenizer: Tokenizer,
    limit: int,
    *,
    header: bool = True,
) -> Examples:
    """Reads examples for a head with several labels: each row has one or more texts, and 0 or 1 for each label.

    Args:
      path, tokenizer, limit: as in sentence_examples.
      texts: the text columns.
      labels: the label columns, one for each class.
      header: whether the first line of a CSV or TSV file names the columns.

    Raises:
      InputError: as in sentence_examples.
    """

    def encode(values: tuple[Any, ...]) -> list[_Example]:
        if any(map(is_missing, values[len(texts) :])):
            return []
        sequence = encode_texts(tokenizer, values[: len(texts)], limit, "truncate")[0]
        target = [_zero_or_one(label, value) for label, value in zip(labels, values[len(texts) :], strict=True)]
        return [_Example([sequence.ids], target, sequence.truncated)]

    return _collect("sentence", Tally(to_path(path)), table_rows(path, texts, labels, header), encode, np.float32)


def token_examples(
    path: PathLike,
    words: str,
    tags: str,
    labels: Sequence[str],
    tokenizer: Tokenizer,
    limit: int,
    *,
    match: Match = "number",
) -> Examples:
    """Reads examples for a token head: each object in a JSONL file has a list of words and a list of tags.

    The words are joined with spaces and encoded as one text. The first token of each word has its tag as its target.

    Args:
      path: the file.
      words, tags: the keys of the two lists.
      labels: the tag of each class, in order (see layouts.class_of).
      tokenizer: the model's tokenizer.
      limit: the maximum length of a sequence, in tokens. Words beyond it are dropped.
      match: as in layouts.class_of.

    Raises:
      InputError: as in sentence_examples.
    """

    def encode(record: dict[str, Any]) -> list[_Example]:
        given, gold = (list_of(record, name) for name in (words, tags))
        if len(given) != len(gold):
            raise InputError(f"{len(given)} {words} but {len(gold)} {tags}")
        if any(not isinstance(word, str) or not word.strip() for word in given):
            raise InputError(f"{words} has an item that is empty or not text")
        if not all(map(_is_tag, gold)):
            raise InputError(f"{tags} has an item that is empty, or neither text nor a number")
        text = " ".join(given)
        begins = np.cumsum([0, *(len(word) + 1 for word in given[:-1])])
        first = np.searchsorted(tokenizer.spans(text)[:, 1], begins, side="right")
        if len(set(first.tolist())) != len(given):
            raise InputError(f"two {words} begin within one token")
        before, _, specials = tokenizer.special_lengths(1)
        ids = tokenizer.join([tokenizer.pieces(text)[: limit - specials]])
        target = np.full(len(ids), NO_TAG, np.int32)
        inside = first < len(ids) - specials
        target[first[inside] + before] = [
            _class_number(tag, labels, match) for tag, kept in zip(gold, inside, strict=True) if kept
        ]
        return [_Example([ids], target, not inside.all())]

    return _collect("token", Tally(to_path(path)), objects(path), encode, np.int32)


def span_examples(path: PathLike, tokenizer: Tokenizer, limit: int) -> Examples:
    """Reads examples for a span head: each object in a JSONL file has a question, a context and answers.

    The objects are SQuAD's: {"question": ..., "context": ..., "answers": {"text": [...], "answer_start": [...]}}. The
    answers may also be a list of {"text": ..., "answer_start": ...}. `answer_start` counts characters of the context.
    The target is the first answer. A context that is too long is split into overlapping windows, as in
    encoding.encode_texts. If a window does not contain the answer, or the question has none (as in SQuAD 2.0), the
    target is the first token, `<s>`, as in BERT's run_squad.py.

    Args:
      path: the file.
      tokenizer: the model's tokenizer.
      limit: the maximum length of a sequence, in tokens.

    Raises:
      InputError: as in sentence_examples.
    """
    questions: list[Question] = []
    windows: list[tuple[int, int, int, int]] = []

    def encode(record: dict[str, Any]) -> list[_Example]:
        question, context = (text_of(record, name) for name in ("question", "context"))
        answers = _squad_answers(record, context)
        spans = tokenizer.spans(context)
        text, begin = answers[0] if answers else ("", 0)
        first = int(np.searchsorted(spans[:, 1], begin, side="right"))
        last = int(np.searchsorted(spans[:, 0], begin + len(text), side="left")) - 1
        found = []
        for sequence in encode_texts(tokenizer, (question, context), limit, "window"):
            prefix, inside = sequence.prefix_length, (sequence.begin, sequence.end)
            if not sequence.truncated:
                prefix = len(sequence.ids) - tokenizer.special_lengths(2)[1] - len(spans)
                inside = (0, len(spans))
            has_answer = bool(answers) and inside[0] <= first and last < inside[1]
            shift = prefix - inside[0]
            target = (first + shift, last + shift) if has_answer else (0, 0)
            found.append(_Example([sequence.ids], target, sequence.truncated))
            windows.append((len(questions), prefix, *inside))
        questions.append(Question(context, tuple(text for text, _ in answers)))
        return found

    examples = _collect("span", Tally(to_path(path)), objects(path), encode, np.int32)
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
    """Reads examples for a choice head: two or more choices, and the number (from 0) or letter of the correct one.

    The framing determines the files and the sequences:
      choice         JSONL objects with a text, a list of choices, and the number or letter of the correct one, under
                     the given keys: `<s> text </s></s> choice </s>`, truncated as in encoding.encode_texts
      commonsenseqa  CommonsenseQA's own files: `<s> Q: question </s> A: choice </s>`, truncated in the same way
                     (fairseq/examples/roberta/commonsense_qa/commonsense_qa_task.py)
      race           a directory of RACE's own files, or JSONL with their objects or with one question per object
                     (article, question, options, answer): `<s> question option </s></s> article </s>`. The question
                     with its option is truncated to MAX_OPTION_LENGTH tokens, and the sequence to the limit, without
                     keeping its `</s>` (fairseq/examples/roberta/preprocess_RACE.py, fairseq/tasks/sentence_ranking.py)

    Args:
      path: the file or directory.
      framing: one of the above.
      tokenizer: the model's tokenizer.
      limit: the maximum length of a sequence, in tokens.
      given, choices, label: for the framing choice, the keys of the text, the choices and the correct one.

    Raises:
      InputError: as in sentence_examples.
    """
    chosen = framing_of(framing)
    names = (given, choices, label)

    def encode(record: dict[str, Any]) -> list[_Example]:
        made = []
        questions = list(chosen.read(record, names))
        missing = [is_missing(answer) for _, _, answer in questions]
        if all(missing):
            return []
        if any(missing):
            raise InputError(f"{sum(missing)} of {len(missing)} questions have no answer")
        for before, candidates, answer in questions:
            if len(candidates) < 2:
                raise InputError(f"{len(candidates)} choices, expected two or more")
            number = _choice_index(answer, len(candidates))
            sequences, truncated = zip(*choice_inputs(framing, before, candidates, tokenizer, limit), strict=True)
            made.append(_Example(list(sequences), number, any(truncated)))
        return made

    return _collect("choice", Tally(to_path(path)), chosen.rows(path), encode, np.int32)


def label_names(path: PathLike, label: str, *, header: bool = True) -> tuple[str, ...]:
    """Returns the distinct labels in a column, sorted by number if all are numbers, otherwise alphabetically.

    Cells without a label do not count.

    Raises:
      InputError: the file cannot be read, no row has a label, or there are so many that they are probably values.
    """
    rows = (values for _, values in table_rows(path, (), (label,), header))
    cells = ([] if isinstance(values, tables.BadRow) else values for values in rows)
    return _sorted_names(path, label, ([str(value) for value in row if not is_missing(value)] for row in cells))


def tag_names(path: PathLike, tags: str) -> tuple[str, ...]:
    """Returns the distinct tags in the lists under a key of a JSONL file; order and errors as in label_names."""
    lists = (None if isinstance(record, tables.BadRow) else record.get(tags) for _, record in objects(path))
    return _sorted_names(
        path, tags, ([str(tag) for tag in found if _is_tag(tag)] if isinstance(found, list) else [] for found in lists)
    )


def _sorted_names(path: PathLike, column: str, rows: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """Returns the distinct names in the rows of a file, of which each has any number."""
    names: set[str] = set()
    count = 0
    for found in rows:
        count += 1
        names.update(found)
        if len(names) > _MAX_CLASSES:
            raise InputError(f"{path} has more than {_MAX_CLASSES} different labels; is it a regression?")
    if not names:
        found_none = f"{count} rows, and none has a label in {column!r}" if count else "no rows"
        raise InputError(f"{path} has {found_none}; expected at least two classes")
    numbers = all(re.fullmatch(r"\d+", name, re.ASCII) for name in names)
    return tuple(sorted(names, key=int if numbers else None))


def _collect(
    kind: str,
    tally: Tally,
    rows: Rows,
    encode: Callable[[Any], list[_Example]],
    dtype: npt.DTypeLike,
) -> Examples:
    """Encodes all rows and concatenates the examples. A row for which `encode` returns no example is unlabeled."""
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
        raise tally.nothing_usable()
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


def table_rows(path: PathLike, texts: Sequence[str], keep: Sequence[str], header: bool) -> Rows:
    """Yields the location of each row of a file, and its values in these columns or a BadRow."""
    format = "tsv" if to_path(path).suffix == ".txt" else None  # a line of text has no label
    for row in tables.read_rows(path, texts, keep=keep, header=None if header else False, format=format):
        yield f"{path}, line {row.line}", row.values if isinstance(row, tables.Row) else row


def _squad_answers(record: dict[str, Any], context: str) -> list[tuple[str, int]]:
    """Returns the texts of SQuAD's answers and the characters of the context where they begin; there may be none."""
    found = record.get("answers")
    if isinstance(found, dict):
        texts, starts = (found.get(name) for name in ("text", "answer_start"))
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            raise InputError("answers must have as many text as answer_start")
        answers = list(zip(texts, starts, strict=True))
    elif isinstance(found, list) and all(isinstance(answer, dict) for answer in found):
        answers = [(answer.get("text"), answer.get("answer_start")) for answer in found]
    else:
        raise InputError("answers is missing, or not in SQuAD's form")
    for text, start in answers:
        is_valid = isinstance(text, str) and isinstance(start, int) and start >= 0
        if not is_valid or not text.strip() or context[start : start + len(text)] != text:
            raise InputError(f"answer {str(text)[:40]!r} is not at character {start} of the context")
    return answers


def _is_tag(tag: Any) -> bool:
    return isinstance(tag, str | int | float) and not is_missing(tag)


def _class_number(label: Any, labels: Sequence[str], match: Match) -> int:
    if (number := class_of(str(label), labels, match)) is None:
        known = ", ".join(labels[:20]) + (", ..." if len(labels) > 20 else "")
        raise _UnknownLabel(f"{str(label)[:80]!r} is not one of the labels {known}; name them all with --labels")
    return number


def _zero_or_one(label: str, value: Any) -> float:
    if str(value).strip().casefold() not in ("0", "1", "false", "true"):
        raise _UnknownLabel(f"column {label!r} is {str(value)[:40]!r}, expected 0 or 1")
    return float(str(value).strip().casefold() in ("1", "true"))


def _choice_index(answer: Any, choices: int) -> int:
    """Returns the index of a choice, given its number or its letter."""
    letter = isinstance(answer, str) and re.fullmatch("[A-Z]", answer.strip().upper(), re.ASCII)
    number = ord(str(answer).strip().upper()) - ord("A") if letter else answer
    if isinstance(number, str) and re.fullmatch(r"\d+", number, re.ASCII):
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < choices:
        raise _UnknownLabel(
            f"{str(answer)[:40]!r} is not one of {choices} choices; give a number from 0, or a letter from A"
        )
    return number
