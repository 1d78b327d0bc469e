"""What fine-tuning knows of a task: the head that it trains, and how its files are read.

GLUE's tasks and their like are those of layouts; beside them stand two of multiple choice, and "custom", whose
kind and columns the user says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from roberta_flax import metrics
from roberta_flax.datasets import examples, tables
from roberta_flax.datasets.examples import Examples
from roberta_flax.datasets.layouts import LAYOUTS, Layout, default_metrics, layout_of, resolve_labels
from roberta_flax.datasets.recipes import recipe_of
from roberta_flax.errors import InputError
from roberta_flax.files import PathLike
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from roberta_flax.text.encoding import resolve_max_length
from roberta_flax.text.tokenizer import Tokenizer

CUSTOM = "custom"
CHOICE_TASKS = ("race", "commonsenseqa")  # also the names of examples.choice_examples' framings
KINDS = ("classification", "regression", "multi-label", "token", "span", "choice")


@dataclass(frozen=True)
class Columns:
    """Where files have what, as far as the user says; the task's own columns for the rest.

    Attributes:
      texts: the columns of the one or two texts; of token and choice heads the key of the words, or of the text.
      label: the column of the label; of several labels that of each. Of token heads the key of the tags.
      labels: the classes, in the order of the head, as the files call them.
      choices: of choice heads, the key of the list of choices.
      header: whether the first line of CSV and TSV names the columns.
    """

    texts: tuple[str, ...] = ()
    label: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    choices: str = "choices"
    header: bool = True


@dataclass(frozen=True)
class TaskReader:
    """A head to train, and how files become examples for it.

    Attributes:
      head: its configuration, with the names that its classes will have.
      labels: the gold strings of its classes: as the files call them.
      metrics: by which it is judged, the main one first.
      read: the examples of a file.
    """

    head: HeadConfig
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    read: Callable[[PathLike], Examples]


def task_name(task: str) -> str:
    """The name of a task in layouts.LAYOUTS ("sst2" is "sst-2"), of CHOICE_TASKS, or "custom"; else InputError."""
    name = task.casefold()
    if name in (*CHOICE_TASKS, CUSTOM):
        return name
    try:
        return layout_of(name).name
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
) -> TaskReader:
    """What a task's files are read as.

    Args:
      task: as task_name gives it.
      train: the training file: where the classes are not given, they are those that occur in it.
      config, tokenizer: of the model.
      kind: of the task "custom", one of KINDS.
      columns: what the user says of the files.
      head: the head's name; the task's if not given.
      max_length: the longest sequence, in tokens; the model's max_positions if not given.

    Raises:
      InputError: options that do not fit each other or the file.
    """
    if kind is not None and task != CUSTOM:
        raise InputError(f"--kind is for --task {CUSTOM}; {task} has its own")
    if kind is not None and kind not in KINDS:
        raise InputError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    limit = resolve_max_length(config, max_length)
    kind = "choice" if task in CHOICE_TASKS else kind or "classification"
    if len(columns.label) > 1 and kind != "multi-label":
        raise InputError("several label columns are for --kind multi-label; give one")
    make = _Maker(task, Path(train), config, tokenizer, columns, head or task, limit)
    if task not in (CUSTOM, *CHOICE_TASKS):
        return make.sentences(LAYOUTS[task])
    return {
        "classification": make.classes,
        "regression": make.values,
        "multi-label": make.several_labels,
        "token": make.tokens,
        "span": make.spans,
        "choice": make.choices,
    }[kind]()


@dataclass(frozen=True)
class _Maker:
    """The arguments of `task_reader`, and a method a kind."""

    task: str
    train: Path
    config: RobertaConfig
    tokenizer: Tokenizer
    columns: Columns
    name: str
    limit: int

    def sentences(self, layout: Layout) -> TaskReader:
        """Of a layout whose labels are known."""
        columns = self.columns
        given = columns.labels or None
        labels = resolve_labels(layout, (), len(given or layout.labels) or 1, given)
        if columns.texts or columns.label or not columns.header:
            label = columns.label[0] if columns.label else layout.label
            layout = replace(layout, texts=columns.texts or layout.texts, label=label, header=columns.header)
        if layout.problem == "single_label" and len(labels) < 2:
            raise InputError(f"a classification has two or more classes, got {', '.join(labels) or 'none'}")
        divisor = recipe_of(self.task).target_divisor

        def read(path: PathLike) -> Examples:
            return examples.sentence_examples(path, layout, labels, self.tokenizer, self.limit, divisor=divisor)

        shown = columns.labels or layout.meanings or labels
        head = self._head("sentence", len(labels) or 1, layout.problem, shown)
        return TaskReader(head, labels, layout.metrics, read)

    def classes(self) -> TaskReader:
        label = (*self.columns.label, "label")[0]
        labels = self.columns.labels or examples.label_names(self.train, label, header=self.columns.header)
        return self.sentences(Layout(self.task, self._texts(), label, labels, ("accuracy", "macro_f1")))

    def values(self) -> TaskReader:
        label = (*self.columns.label, "label")[0]
        layout = Layout(self.task, self._texts(), label, (), metrics.VALUE_METRICS, problem="regression")
        return self.sentences(layout)

    def several_labels(self) -> TaskReader:
        labels, texts = self.columns.label, self._texts()
        if len(labels) < 2 or self.columns.labels:
            raise InputError(
                "--kind multi-label takes the column of each label, with 0 or 1 in it: --label-column A "
                "--label-column B"
            )

        def read(path: PathLike) -> Examples:
            return examples.multi_label_examples(
                path, texts, labels, self.tokenizer, self.limit, header=self.columns.header
            )

        return self._reading(self._head("sentence", len(labels), "multi_label", labels), labels, read)

    def tokens(self) -> TaskReader:
        words, tags = (*self.columns.texts, "words")[0], (*self.columns.label, "tags")[0]
        labels = self.columns.labels or examples.tag_names(self.train, tags)
        if len(labels) < 2:
            raise InputError(f"{self.train} has {len(labels)} different tags in {tags!r}, expected two or more")

        def read(path: PathLike) -> Examples:
            return examples.token_examples(path, words, tags, labels, self.tokenizer, self.limit)

        return self._reading(self._head("token", len(labels), "single_label", labels), labels, read)

    def spans(self) -> TaskReader:
        def read(path: PathLike) -> Examples:
            return examples.span_examples(path, self.tokenizer, self.limit)

        return self._reading(self._head("span", 2), (), read)

    def choices(self) -> TaskReader:
        framing = self.task if self.task in CHOICE_TASKS else "choice"
        given, label = (*self.columns.texts, "text")[0], (*self.columns.label, "label")[0]

        def read(path: PathLike) -> Examples:
            return examples.choice_examples(
                path, framing, self.tokenizer, self.limit, given=given, choices=self.columns.choices, label=label
            )

        return self._reading(self._head("choice", 1), (), read)

    def _reading(self, head: HeadConfig, labels: tuple[str, ...], read: Callable[[PathLike], Examples]) -> TaskReader:
        return TaskReader(head, labels, default_metrics(head), read)

    def _head(self, kind: str, outputs: int, problem: str = "", labels: Sequence[str] = ()) -> HeadConfig:
        """The head; its dense layer is as wide as that of one which the model has."""
        there = (head.inner_size for head in self.config.heads if (head.name, head.kind) == (self.name, kind))
        width = next(there, self.config.hidden_size) if kind in ("sentence", "choice") else 0
        return HeadConfig(self.name, outputs, width, kind, problem, tuple(labels))

    def _texts(self) -> tuple[str, ...]:
        if self.columns.texts:
            return self.columns.texts
        format = "tsv" if self.train.suffix == ".txt" else None
        return tables.usual_columns(self.train, None if self.columns.header else False, format)
