"""Reads labeled files for fine-tuning: a task name and options give a head to train and a reader of its files.

The task names are those of the layouts (GLUE and similar), two multiple-choice tasks, and "custom", for which the user
names the kind and the columns.
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


@dataclass(frozen=True)
class TaskReader:
    """A head to train, and a function that reads files as examples for it.

    Attributes:
      head: the head's configuration, with the names that its classes will have.
      labels: the gold strings of its classes.
      metrics: the head's metrics, the main one first.
      read: reads the examples in a file.
    """

    head: HeadConfig
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    read: Callable[[PathLike], Examples]


def task_name(task: str) -> str:
    """Returns a task's name in layouts.LAYOUTS ("sst-2" for "sst2"), in CHOICE_TASKS, or "custom".

    Raises:
      InputError: there is no such task. The message lists the names.
    """
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

    Raises:
      InputError: the options contradict each other or do not match the file.
    """
    if kind is not None and task != CUSTOM:
        raise InputError(f"--kind is for --task {CUSTOM}; {task} has its own")
    if kind is not None and kind not in KINDS:
        raise InputError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    limit = resolve_max_length(config, max_length)
    kind = "choice" if task in CHOICE_TASKS else kind or "classification"
    if len(columns.label) > 1 and kind != "multi-label":
        raise InputError("several label columns are for --kind multi-label; give one")
    builder = _ReaderBuilder(task, Path(train), config, tokenizer, columns, head or task, limit)
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
    train: Path
    config: RobertaConfig
    tokenizer: Tokenizer
    columns: Columns
    name: str
    limit: int

    def sentence_reader(self, layout: Layout) -> TaskReader:
        """Builds the reader of a layout whose labels are known."""
        columns = self.columns
        given_labels = columns.labels or None
        labels = resolve_labels(layout, None, len(given_labels or layout.labels) or 1, given_labels)
        if columns.texts or columns.label or not columns.header:
            label = columns.label[0] if columns.label else layout.label
            layout = replace(layout, texts=columns.texts or layout.texts, label=label, header=columns.header)
        if layout.problem == "single_label" and len(labels) < 2:
            raise InputError(f"a classification has two or more classes, got {', '.join(labels) or 'none'}")
        divisor = recipe_of(self.task).target_divisor

        def read(path: PathLike) -> Examples:
            return examples.sentence_examples(path, layout, labels, self.tokenizer, self.limit, divisor=divisor)

        class_names = columns.labels or layout.meanings or labels
        head = self._head("sentence", len(labels) or 1, layout.problem, class_names)
        return TaskReader(head, labels, layout.metrics, read)

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

        def read(path: PathLike) -> Examples:
            return examples.multi_label_examples(
                path, texts, labels, self.tokenizer, self.limit, header=self.columns.header
            )

        return self._with_default_metrics(self._head("sentence", len(labels), "multi_label", labels), labels, read)

    def tokens(self) -> TaskReader:
        words, tags = (*self.columns.texts, "words")[0], (*self.columns.label, "tags")[0]
        labels = self.columns.labels or examples.tag_names(self.train, tags)
        if len(labels) < 2:
            raise InputError(f"{self.train} has {len(labels)} different tags in {tags!r}, expected two or more")

        def read(path: PathLike) -> Examples:
            return examples.token_examples(path, words, tags, labels, self.tokenizer, self.limit)

        return self._with_default_metrics(self._head("token", len(labels), "single_label", labels), labels, read)

    def spans(self) -> TaskReader:
        def read(path: PathLike) -> Examples:
            return examples.span_examples(path, self.tokenizer, self.limit)

        return self._with_default_metrics(self._head("span", 2), (), read)

    def choices(self) -> TaskReader:
        framing = self.task if self.task in CHOICE_TASKS else "choice"
        given, label = (*self.columns.texts, "text")[0], (*self.columns.label, "label")[0]

        def read(path: PathLike) -> Examples:
            return examples.choice_examples(
                path, framing, self.tokenizer, self.limit, given=given, choices=self.columns.choices, label=label
            )

        return self._with_default_metrics(self._head("choice", 1), (), read)

    def _with_default_metrics(
        self, head: HeadConfig, labels: tuple[str, ...], read: Callable[[PathLike], Examples]
    ) -> TaskReader:
        return TaskReader(head, labels, default_metrics(head), read)

    def _head(self, kind: str, outputs: int, problem: str = "", labels: Sequence[str] = ()) -> HeadConfig:
        """Returns the head's configuration, as wide as a head of this name and kind that the model already has."""
        widths = (head.inner_size for head in self.config.heads if (head.name, head.kind) == (self.name, kind))
        width = next(widths, self.config.hidden_size) if kind in ("sentence", "choice") else 0
        return HeadConfig(self.name, outputs, width, kind, problem, tuple(labels))

    def _texts(self) -> tuple[str, ...]:
        if self.columns.texts:
            return self.columns.texts
        format = "tsv" if self.train.suffix == ".txt" else None
        return tables.usual_columns(self.train, None if self.columns.header else False, format)
