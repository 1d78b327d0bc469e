"""Reads labeled files for fine-tuning: a task name and options give a head to train and a reader of its files.

The task names are those of the layouts (GLUE and similar), two multiple-choice tasks, and "custom", for which the user
names the kind and the columns.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self, get_args

from roberta_flax import metrics
from roberta_flax.datasets import examples, tables
from roberta_flax.datasets.examples import Examples
from roberta_flax.datasets.layouts import LAYOUTS, Layout, Match, default_metrics, layout_of, resolve_labels
from roberta_flax.datasets.recipes import recipe_of
from roberta_flax.errors import InputError
from roberta_flax.files import PathLike
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from roberta_flax.remote import to_path
from roberta_flax.text.encoding import resolve_max_length
from roberta_flax.text.tokenizer import Tokenizer

CUSTOM = "custom"
CHOICE_TASKS = ("race", "commonsenseqa")  # also names of framings (framing.FRAMINGS)
KINDS = ("classification", "regression", "multi-label", "token", "span", "choice")


@dataclass(frozen=True)
class Columns:
    """The columns that the user names. The task's own columns are the default.

    Attributes:
      texts: the one or two text columns; for a token head the key of the words, for a choice head that of the text.
      label: the label column; with several labels, one column for each; for a token head the key of the tags.
      labels: the gold strings of the classes, in the order of the head.
      choices: for a choice head, the key of the list of choices.
      header: whether the first line of a CSV or TSV file names the columns.
    """

    texts: tuple[str, ...] = ()
    label: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    choices: str = "choices"
    header: bool = True

    def or_else(self, other: Columns) -> Columns:
        """Returns these columns, and those of `other` where none are named."""
        return Columns(
            self.texts or other.texts,
            self.label or other.label,
            self.labels or other.labels,
            self.choices if self.choices != Columns.choices else other.choices,
            self.header and other.header,
        )


@dataclass(frozen=True)
class TrainedOn:
    """What a head was fine-tuned on: how its files are laid out, and how they were read.

    Attributes:
      head: the head's name.
      task: the task's name, as task_name() returns it.
      kind: for the task "custom", one of KINDS; otherwise None.
      columns: the columns and the gold strings of the classes, none of them left to a default.
      match: how a label names a class, as in layouts.class_of.
      max_length: the maximum length of a sequence, in tokens.
    """

    head: str
    task: str
    kind: str | None
    columns: Columns
    match: Match
    max_length: int

    def to_json(self) -> str:
        """Returns the content of trained_on.json: one object, the fields by name."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parses what `to_json` returned; raises ValueError for anything else."""
        fields = json.loads(text)
        if not isinstance(fields, dict) or not isinstance(fields.get("columns"), dict):
            raise ValueError("not the fields of TrainedOn")
        columns: dict[str, Any] = fields.pop("columns")
        columns |= {name: tuple(value) for name, value in columns.items() if isinstance(value, list)}
        try:
            found = cls(**fields, columns=Columns(**columns))
        except TypeError as error:
            raise ValueError(str(error)) from None
        named = found.columns
        names = (found.head, found.task, named.choices, *named.texts, *named.label, *named.labels)
        if not all(isinstance(name, str) for name in names) or not isinstance(named.header, bool):
            raise ValueError("a field has a wrong type")
        if (
            found.kind not in (None, *KINDS)
            or found.match not in get_args(Match)
            or not isinstance(found.max_length, int)
        ):
            raise ValueError("a field has a wrong value")
        return found

    def texts_are_in(self, path: PathLike) -> bool:
        """Whether a file has the text columns. One that cannot be read has none."""
        try:
            names = tables.column_names(path, None if self.columns.header else False, _format(to_path(path))) or []
        except InputError:
            return False
        numbers = map(str, range(len(names)))  # which name columns, too
        return set(self.columns.texts) <= {*names, *numbers}


@dataclass(frozen=True)
class TaskReader:
    """A head to train, and a function that reads files as examples for it.

    Attributes:
      head: the head's configuration, with the names that its classes will have.
      labels: the gold strings of its classes.
      metrics: the head's metrics, the main one first.
      read: reads the examples in a file.
      trained_on: how the files are read, to be kept beside the trained model.
    """

    head: HeadConfig
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    read: Callable[[PathLike], Examples]
    trained_on: TrainedOn


def task_name(task: str) -> str:
    """Returns a task's name in layouts.LAYOUTS ("sst-2" for "sst2"), in CHOICE_TASKS, or "custom".

    Raises:
      InputError: there is no such task. The message lists the names.
    """
    name = re.sub(r"[\s_-]", "", task.casefold())
    name = {"csqa": "commonsenseqa", "racemiddle": "race", "racehigh": "race"}.get(name, name)
    if name in (*CHOICE_TASKS, CUSTOM):
        return name
    try:
        return layout_of(task).name
    except InputError as error:
        raise InputError(f"{error}; or {', '.join((*CHOICE_TASKS, CUSTOM))}") from None


def task_reader(
    task: str,
    train: PathLike,
    config: RobertaConfig,
    tokenizer: Tokenizer,
    *,
    kind: str | None = None,
    columns: Columns = Columns(),
    head: str | None = None,
    max_length: int | None = None,
    match: Match | None = None,
) -> TaskReader:
    """Returns the head of a task, and the function that reads its files.

    Args:
      task: a name that task_name() returns.
      train: the training file. If the classes are not given, they are the labels that occur in it.
      config: the model's configuration.
      tokenizer: the model's tokenizer.
      kind: for the task "custom", one of KINDS; the default is "classification".
      columns: the columns that the user names.
      head: the head's name; the default is the task's.
      max_length: the maximum length of a sequence, in tokens; the default is the model's max_positions.
      match: how a label names a class, as in layouts.class_of. The default is "number" if the user names the classes,
        "exact" if they are those of the training file, and "case" if they are the task's.

    Raises:
      InputError: the options contradict each other or do not match the file, or a column is named twice.
    """
    if kind is not None and task != CUSTOM:
        raise InputError(f"--kind is for --task {CUSTOM}; {task} has its own")
    if kind is not None and kind not in KINDS:
        raise InputError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    limit = resolve_max_length(config, max_length)
    kind = "choice" if task in CHOICE_TASKS else kind or "classification"
    if len(columns.label) > 1 and kind != "multi-label":
        raise InputError("several label columns are for --kind multi-label; give one")
    match = match or ("number" if columns.labels else "exact" if task == CUSTOM else "case")
    builder = _ReaderBuilder(
        task, kind if task == CUSTOM else None, to_path(train), config, tokenizer, columns, head or task, limit, match
    )
    if task not in (CUSTOM, *CHOICE_TASKS):
        return builder.sentence_reader(LAYOUTS[task])
    return {
        "classification": builder.classification,
        "regression": builder.regression,
        "multi-label": builder.multi_label,
        "token": builder.tokens,
        "span": builder.spans,
        "choice": builder.choices,
    }[kind]()


@dataclass(frozen=True)
class _ReaderBuilder:
    """The arguments of `task_reader`, and one method for each kind of reader."""

    task: str
    kind: str | None
    train: Path
    config: RobertaConfig
    tokenizer: Tokenizer
    columns: Columns
    name: str
    limit: int
    match: Match

    def sentence_reader(self, layout: Layout) -> TaskReader:
        """Builds the reader of a layout whose labels are known."""
        columns = self.columns
        given_labels = columns.labels or None
        labels = resolve_labels(layout, None, len(given_labels or layout.labels) or 1, given_labels)
        if columns.texts or columns.label or not columns.header:
            label = columns.label[0] if columns.label else layout.label
            layout = replace(layout, texts=columns.texts or layout.texts, label=label, header=columns.header)
        layout = replace(layout, match=self.match)
        found = self._columns(layout.texts, (layout.label,), labels, layout.header)
        if layout.problem == "single_label" and len(labels) < 2:
            raise InputError(f"a classification has two or more classes, got {', '.join(labels) or 'none'}")
        divisor = recipe_of(self.task).target_divisor

        def read(path: PathLike) -> Examples:
            return examples.sentence_examples(path, layout, labels, self.tokenizer, self.limit, divisor=divisor)

        class_names = columns.labels or layout.meanings or labels
        head = self._head("sentence", len(labels) or 1, layout.problem, class_names)
        return self._reader(head, found, layout.metrics, read)

    def classification(self) -> TaskReader:
        label = (*self.columns.label, "label")[0]
        labels = self.columns.labels or examples.label_names(self.train, label, header=self.columns.header)
        return self.sentence_reader(Layout(self.task, self._texts(), label, labels, ("accuracy", "macro_f1")))

    def regression(self) -> TaskReader:
        label = (*self.columns.label, "label")[0]
        layout = Layout(self.task, self._texts(), label, (), metrics.VALUE_METRICS, problem="regression")
        return self.sentence_reader(layout)

    def multi_label(self) -> TaskReader:
        labels, texts = self.columns.label, self._texts()
        if len(labels) < 2 or self.columns.labels:
            raise InputError(
                "--kind multi-label takes one column for each label, with 0 or 1 in it: --label-column A "
                "--label-column B"
            )
        columns = self._columns(texts, labels)

        def read(path: PathLike) -> Examples:
            return examples.multi_label_examples(
                path, texts, labels, self.tokenizer, self.limit, header=self.columns.header
            )

        head = self._head("sentence", len(labels), "multi_label", labels)
        return self._reader(head, columns, default_metrics(head), read)

    def tokens(self) -> TaskReader:
        words, tags = (*self.columns.texts, "words")[0], (*self.columns.label, "tags")[0]
        columns = self._columns((words,), (tags,), self.columns.labels or examples.tag_names(self.train, tags))
        labels = columns.labels
        if len(labels) < 2:
            raise InputError(f"{self.train} has {len(labels)} different tags in {tags!r}, expected two or more")

        def read(path: PathLike) -> Examples:
            return examples.token_examples(path, words, tags, labels, self.tokenizer, self.limit, match=self.match)

        head = self._head("token", len(labels), "single_label", labels)
        return self._reader(head, columns, default_metrics(head), read)

    def spans(self) -> TaskReader:
        def read(path: PathLike) -> Examples:
            return examples.span_examples(path, self.tokenizer, self.limit)

        head = self._head("span", 2)
        return self._reader(head, Columns(), default_metrics(head), read)

    def choices(self) -> TaskReader:
        framing = self.task if self.task in CHOICE_TASKS else "choice"
        given, label = (*self.columns.texts, "text")[0], (*self.columns.label, "label")[0]
        columns = self._columns((given,), (label,)) if framing == "choice" else Columns()

        def read(path: PathLike) -> Examples:
            return examples.choice_examples(
                path, framing, self.tokenizer, self.limit, given=given, choices=self.columns.choices, label=label
            )

        head = self._head("choice", 1)
        return self._reader(head, columns, default_metrics(head), read)

    def _reader(
        self, head: HeadConfig, columns: Columns, metrics: tuple[str, ...], read: Callable[[PathLike], Examples]
    ) -> TaskReader:
        trained_on = TrainedOn(head.name, self.task, self.kind, columns, self.match, self.limit)
        labels = columns.label if head.problem == "multi_label" else columns.labels
        return TaskReader(head, labels, metrics, read, trained_on)

    def _columns(
        self, texts: tuple[str, ...], label: tuple[str, ...], labels: tuple[str, ...] = (), header: bool | None = None
    ) -> Columns:
        """Returns the columns of the files; raises InputError if one of them, or a class, is named twice."""
        header = self.columns.header if header is None else header
        columns = Columns(texts, label, labels, self.columns.choices, header)
        require_distinct(columns)
        return columns

    def _head(self, kind: str, outputs: int, problem: str = "", labels: Sequence[str] = ()) -> HeadConfig:
        """Returns the head's configuration, as wide as a head of this name and kind that the model already has."""
        widths = (head.inner_size for head in self.config.heads if (head.name, head.kind) == (self.name, kind))
        width = next(widths, self.config.hidden_size) if kind in ("sentence", "choice") else 0
        return HeadConfig(self.name, outputs, width, kind, problem, tuple(labels))

    def _texts(self) -> tuple[str, ...]:
        if self.columns.texts:
            return self.columns.texts
        return tables.usual_columns(self.train, None if self.columns.header else False, _format(self.train))


def require_distinct(columns: Columns) -> None:
    """Raises InputError if a column or a class is named twice."""
    for what, names in (("column", (*columns.texts, *columns.label)), ("class", columns.labels)):
        if repeated := [name for name, count in Counter(names).items() if count > 1]:
            raise InputError(f"the {what} {repeated[0]!r} is named twice; name each {what} once")


def _format(path: Path) -> str | None:
    return "tsv" if path.suffix == ".txt" else None  # a line of text has no label
