"""Evaluates a head on a file with gold labels.

For a sentence head, the file streams through a Predictor, in memory that does not grow with the file. Files for token,
span and choice heads, and files with several label columns, are read as a whole, as in fine-tuning.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from roberta_flax.datasets import readers, tables
from roberta_flax.datasets.examples import Tally
from roberta_flax.datasets.layouts import (
    Layout,
    Match,
    class_of,
    default_metrics,
    gold_value,
    layout_of,
    resolve_labels,
)
from roberta_flax.datasets.readers import Columns, TrainedOn
from roberta_flax.errors import InputError
from roberta_flax.files import PathLike
from roberta_flax.hub import Roberta
from roberta_flax.inference.heads import head_of
from roberta_flax.inference.predictor import WINDOW, Predictor
from roberta_flax.metrics import Evaluation
from roberta_flax.nn import sharding
from roberta_flax.nn.config import HeadConfig
from roberta_flax.nn.quantize import is_quantized
from roberta_flax.remote import to_path
from roberta_flax.tasks import judging
from roberta_flax.tasks.classify import Classify
from roberta_flax.text.batching import Strategy
from roberta_flax.text.encoding import OnLong, Rejected
from roberta_flax.train.validation import Validation

_ROWS_PER_DEVICE = 16  # batch size on each device, for files that are read as a whole


@dataclass(frozen=True)
class FileEvaluation:
    """The evaluation of a head on a file.

    Attributes:
      task, head: the names of the task and the head.
      evaluation: the metrics, their confidence intervals, and the confusion matrix.
      tally: counts of the file's rows.
    """

    task: str
    head: str
    evaluation: Evaluation
    tally: Tally

    def to_json(self) -> dict[str, Any]:
        """Returns the fields by name, for json.dumps. "skipped" is the number of rows that were skipped."""
        skipped = self.tally.unusable + self.tally.unlabeled
        return {"task": self.task, "head": self.head, "skipped": skipped, **self.evaluation.to_json()}

    def to_text(self) -> str:
        """Returns lines for a terminal."""
        return f"{self.evaluation.to_text()}\n{self.tally.to_text()}"


def evaluate(
    roberta: Roberta,
    path: PathLike,
    head: str | None = None,
    *,
    task: str | None = None,
    columns: Columns = Columns(),
    max_length: int | None = None,
    on_long: OnLong = "truncate",
    strategy: Strategy | None = None,
    tokens_per_batch: int | None = None,
    tensor_parallel: int = 1,
) -> FileEvaluation:
    """Evaluates a head on a file with gold labels.

    >>> evaluate(roberta, "glue_data/MNLI/dev_matched.tsv").evaluation.metrics
    {"accuracy": 0.902}

    Args:
      roberta: the model.
      path: the file.
      head: the head's name; the default is the only one.
      task: the name of the file's task (readers.task_name). The default is the one that the head was fine-tuned on
        (Roberta.trained_on), if the file has its text columns. Otherwise it is the one that the path names for a
        sentence head, and "custom" for other heads.
      columns: columns that differ from the task's, or from those that the head was fine-tuned on. With the task
        "custom" and a sentence head, the default is the label column "label" and the usual text columns. Its labels are
        the gold strings in the order of the head's classes.
      max_length: the maximum length of an input, in tokens; the default is the one that the head was fine-tuned with,
        or else the model's max_positions.
      on_long, strategy, tokens_per_batch: for sentence heads, as in Predictor.
      tensor_parallel: number of devices that share each layer.

    Raises:
      InputError: there is no such head or file, the layout or labels do not match the head, a gold label is unknown, an
        option is not for this kind of head, the model's outputs are NaN or infinite, or with on_long="error" an input
        is too long.
    """
    path = to_path(path)
    check_file(path)
    chosen = head_of(roberta.config, head)
    match: Match = "number" if columns.labels else "case"
    if (trained_on := roberta.trained_on) is not None and trained_on.head == chosen.name:
        max_length = trained_on.max_length if max_length is None else max_length
        if _is_laid_out_as(path, trained_on, chosen, task):
            task, match = trained_on.task, match if columns.labels else trained_on.match
            columns = columns.or_else(trained_on.columns)
    if chosen.kind != "sentence" or (chosen.problem == "multi_label" and len(columns.label) > 1):
        given = {"on_long": on_long != "truncate", "strategy": strategy, "tokens_per_batch": tokens_per_batch}
        given["quantize"] = is_quantized(roberta.params)
        if option := next((name for name, value in given.items() if value), None):
            raise InputError(
                f"{option} is for sentence heads of one label; {chosen.name!r} is of kind {chosen.kind}, "
                f"{chosen.problem}"
            )
        return _evaluate_whole_file(roberta, path, chosen, task, columns, match, max_length, tensor_parallel)
    layout = replace(_layout_with_columns(path, chosen, task, columns), match=match)
    readers.require_distinct(Columns(layout.texts, (layout.label,)))
    if (chosen.problem == "regression") != (layout.problem == "regression"):
        raise InputError(f"head {chosen.name!r} is of {chosen.problem}; {layout.name} is {layout.problem}")
    own_labels = None if layout.name == readers.CUSTOM else chosen.labels  # a custom layout's labels are the head's
    labels = resolve_labels(layout, own_labels, chosen.num_classes, columns.labels or None)
    predictor = Predictor(
        roberta,
        Classify(chosen.name, logits=True),
        on_long=on_long,
        strategy=strategy,
        tokens_per_batch=tokens_per_batch,
        tensor_parallel=tensor_parallel,
        max_length=max_length,
    )
    return _evaluate_stream(path, layout, labels, predictor, chosen)


def check_file(path: Path) -> None:
    """Raises InputError if there is no file. Call it before loading a model."""
    if not path.exists():
        raise InputError(f"{path} does not exist; name a file with gold labels, such as GLUE's")


def _is_laid_out_as(path: Path, trained_on: TrainedOn, head: HeadConfig, task: str | None) -> bool:
    """Whether to read a file as those that the head was fine-tuned on."""
    if task is not None:
        return readers.task_name(task) == trained_on.task == readers.CUSTOM
    if head.kind != "sentence" or trained_on.texts_are_in(path):
        return True
    try:
        layout_of(path)
    except InputError:
        return True  # so that a message names the columns
    return False


def _layout_with_columns(path: Path, head: HeadConfig, task: str | None, columns: Columns) -> Layout:
    """Returns the layout of a sentence head's file, with the columns that the user names."""
    if task is not None and readers.task_name(task) == readers.CUSTOM:
        texts = columns.texts or tables.usual_columns(path, None if columns.header else False, _format(path))
        label, metrics = (*columns.label, "label")[0], default_metrics(head)
        if head.problem == "regression":
            return Layout(readers.CUSTOM, texts, label, (), metrics, columns.header, "regression")
        return Layout(readers.CUSTOM, texts, label, columns.labels or head.label_names, metrics, columns.header)
    layout = layout_of(task or path)
    header = layout.header and columns.header
    label = columns.label[0] if columns.label else layout.label
    return replace(layout, texts=columns.texts or layout.texts, label=label, header=header)


def _evaluate_stream(
    path: Path, layout: Layout, labels: tuple[str, ...], predictor: Predictor, head: HeadConfig
) -> FileEvaluation:
    judge: judging.Judge = judging.Classes(labels, layout.metrics) if labels else judging.Values(layout.metrics)
    tally = Tally(path)

    def gold_of(label: Any) -> float | int | None:
        return class_of(str(label), labels, layout.match) if labels else gold_value(layout.label, label)

    windows = _windows(path, layout, gold_of, tally)
    pending: deque[tuple[Sequence[float | int], Sequence[int]]] = deque()

    def texts() -> Iterator[list[Any]]:
        for inputs, gold, lines in windows:
            pending.append((gold, lines))
            yield inputs

    for results in predictor.windows(texts()):
        gold, lines = pending.popleft()
        for line, result in zip(lines, results, strict=True):
            if isinstance(result, Rejected):
                raise InputError(f"{path}, line {line}: {result.reason}")
        if results:
            judge.add(np.array(results, np.float64), np.array(gold))
            tally.examples += len(results)
    tally.truncated = predictor.stats.truncated
    if not tally.examples:
        raise tally.nothing_usable()
    return FileEvaluation(layout.name, head.name, judge.evaluation(), tally)


def _windows(
    path: Path, layout: Layout, gold_of: Callable[[Any], float | int | None], tally: Tally
) -> Iterator[tuple[list[Any], list[float | int], list[int]]]:
    """Yields the inputs, the gold values and the lines of each window's usable rows. The tally counts the others."""
    header = None if layout.header else False
    rows = tables.read_rows(path, layout.texts, keep=(layout.label,), header=header, format=_format(path))
    while window := list(islice(rows, WINDOW)):
        inputs: list[Any] = []
        golds: list[float | int] = []
        lines: list[int] = []
        for row in window:
            if isinstance(row, tables.BadRow):
                tally.leave_out(f"{path}, line {row.line}", row.reason)
                continue
            *texts, label = row.values
            if layout.is_unlabeled(label):
                tally.unlabeled += 1
                continue
            try:
                gold = gold_of(label)
            except InputError as error:
                tally.leave_out(f"{path}, line {row.line}", str(error))
                continue
            if gold is None:
                raise InputError(
                    f"{path}, line {row.line}: {label!r} is not a label of {layout.name}; "
                    "name the head's classes in order with --labels"
                )
            inputs.append(tuple(texts))
            golds.append(gold)
            lines.append(row.line)
        yield inputs, golds, lines


def _evaluate_whole_file(
    roberta: Roberta,
    path: Path,
    head: HeadConfig,
    task: str | None,
    columns: Columns,
    match: Match,
    max_length: int | None,
    tensor_parallel: int,
) -> FileEvaluation:
    """Evaluates a head on a file that is read as a whole, as in fine-tuning."""
    name = readers.CUSTOM if task is None else readers.task_name(task)
    labels = columns.labels or (head.label_names if head.kind == "token" else ())
    if len(labels) not in (0, head.num_classes) or name not in (readers.CUSTOM, *readers.CHOICE_TASKS):
        raise InputError(
            f"head {head.name!r} is of kind {head.kind}, with {head.num_classes} outputs; got the task {name} and "
            f"{len(labels)} labels"
        )
    kind = "multi-label" if head.kind == "sentence" else head.kind
    reader = readers.task_reader(
        name, path, roberta.config, roberta.tokenizer,
        kind=kind if name == readers.CUSTOM else None,
        columns=replace(columns, labels=labels), head=head.name, max_length=max_length, match=match,
    )  # fmt: skip
    examples = reader.read(path)
    mesh = sharding.mesh(tensor_parallel=tensor_parallel)
    validation = Validation(
        examples,
        head.name,
        config=roberta.config,
        tokenizer=roberta.tokenizer,
        labels=reader.labels,
        metrics=reader.metrics,
        batch_size=_ROWS_PER_DEVICE * mesh.shape[sharding.DATA],
        numerics=roberta.numerics,
        mesh=mesh,
    )
    evaluation, _ = validation.evaluate(sharding.place(roberta.params, roberta.config, mesh))
    return FileEvaluation(name, head.name, evaluation, examples.tally)


def _format(path: Path) -> str | None:
    return "tsv" if path.suffix == ".txt" else None  # a line of text has no gold label
