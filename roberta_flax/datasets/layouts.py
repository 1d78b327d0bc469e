"""Layouts of labeled files (GLUE, SNLI, SICK): the columns of texts and labels, the classes, and the metrics."""

from __future__ import annotations

import math
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from roberta_flax import metrics
from roberta_flax.errors import InputError, did_you_mean
from roberta_flax.metrics import VALUE_METRICS
from roberta_flax.nn.config import HeadConfig

Match: TypeAlias = Literal["exact", "case", "number"]
"""How a gold string names a class; see class_of()."""


@dataclass(frozen=True)
class Layout:
    """How a labeled file is laid out, and which metrics score predictions on it.

    The columns of GLUE's files are separated by tabs, without quoting.

    Attributes:
      name: the name that layout_of() accepts.
      texts: names of the one or two text columns, from the file's header; 0-based indices ("3") if `header` is False.
      label: the label column, named in the same way.
      labels: the gold strings, in the order of a head's classes; () for a regression. Only MNLI's order is that of a
        released fairseq head. fairseq's README.glue.md numbers the others by their frequency in the training file, so a
        head fine-tuned with it may have any order. These are in the order of glue.py in Hugging Face's datasets. See
        resolve_labels().
      metrics: names of metrics (roberta_flax.metrics), the main one first.
      header: whether the file's first line names the columns.
      problem: the kind of the head's outputs, as in HeadConfig.problem.
      meanings: the names of the classes in glue.py, in the order of `labels`, if the file has only numbers.
      unlabeled: gold strings of rows to skip: "-" marks pairs whose annotators did not agree (SNLI's README.txt). Rows
        whose label is missing or empty (is_missing) are skipped in any layout.
      match: how a gold string names one of `labels`, as in class_of().
    """

    name: str
    texts: tuple[str, ...]
    label: str
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    header: bool = True
    problem: Literal["single_label", "regression"] = "single_label"
    meanings: tuple[str, ...] = ()
    unlabeled: tuple[str, ...] = ()
    match: Match = "case"

    def is_unlabeled(self, label: Any) -> bool:
        """Whether a row with this gold label is to be skipped."""
        return is_missing(label) or str(label) in self.unlabeled


_WHOLE_NUMBER = re.compile(r"\d+", re.ASCII)
_MAX_VALUE = float(np.finfo(np.float32).max)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


_SENTENCE_PAIR = ("sentence1", "sentence2")


_NLI_LABELS = (
    "contradiction",
    "neutral",
    "entailment",
)  # roberta.large.mnli; fairseq/examples/roberta/README.md, label_map


_RTE_LABELS = ("entailment", "not_entailment")


_BINARY_LABELS = ("0", "1")


_ACCURACY_F1 = ("accuracy", "f1")


_SICK_PAIR = ("sentence_A", "sentence_B")


# Columns: fairseq/examples/roberta/preprocess_GLUE_tasks.sh. Metrics: Wang et al., 2019 (GLUE), table 1; SICK's:
# Marelli et al., 2014 (SemEval task 1). No mse for sts-b: fairseq's heads are trained on its scores divided by 5.
# GLUE's diagnostic set (ax) is not here, as its gold labels are not public.
_LAYOUTS = (
    Layout("mnli", _SENTENCE_PAIR, "gold_label", _NLI_LABELS, ("accuracy",), unlabeled=("-",)),
    Layout("snli", _SENTENCE_PAIR, "gold_label", _NLI_LABELS, ("accuracy",), unlabeled=("-",)),
    Layout("qnli", ("question", "sentence"), "label", _RTE_LABELS, ("accuracy",)),
    Layout("rte", _SENTENCE_PAIR, "label", _RTE_LABELS, ("accuracy",)),
    Layout("wnli", _SENTENCE_PAIR, "label", _BINARY_LABELS, ("accuracy",), meanings=("not_entailment", "entailment")),
    Layout(
        "qqp",
        ("question1", "question2"),
        "is_duplicate",
        _BINARY_LABELS,
        _ACCURACY_F1,
        meanings=("not_duplicate", "duplicate"),
    ),
    Layout(
        "mrpc",
        ("#1 String", "#2 String"),
        "Quality",
        _BINARY_LABELS,
        _ACCURACY_F1,
        meanings=("not_equivalent", "equivalent"),
    ),
    Layout("sst-2", ("sentence",), "label", _BINARY_LABELS, ("accuracy",), meanings=("negative", "positive")),
    Layout(
        "cola", ("3",), "1", _BINARY_LABELS, ("matthews", "accuracy"), False, meanings=("unacceptable", "acceptable")
    ),
    Layout("sts-b", _SENTENCE_PAIR, "score", (), ("pearson", "spearman"), problem="regression"),
    Layout("sick", _SICK_PAIR, "entailment_judgment", tuple(map(str.upper, _NLI_LABELS)), ("accuracy",)),
    Layout("sick-relatedness", _SICK_PAIR, "relatedness_score", (), VALUE_METRICS, problem="regression"),
)


LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in _LAYOUTS}


# Names that occur in the paths of released files. A dash also matches "_", a space or nothing.
_PATH_NAMES = {name: name for name in LAYOUTS} | {
    "multi-nli": "mnli",
    "msr-paraphrase": "mrpc",
    "sick-e": "sick",  # SentEval's names
    "sick-r": "sick-relatedness",
}


_PATH_NAMES |= {"dev-matched": "mnli", "dev-mismatched": "mnli"}
_NAME_BY_LETTERS = {path_name.replace("-", ""): name for path_name, name in _PATH_NAMES.items()}


_ANY_NAME = "|".join(sorted(_PATH_NAMES, key=len, reverse=True)).replace("-", "[-_ ]?")


_NAME_PATTERN = re.compile(f"(?<![a-z0-9])(?:{_ANY_NAME})(?![a-z0-9])")


def layout_of(name_or_path: str | os.PathLike[str]) -> Layout:
    """Returns the layout with this name ("mnli", "SST2"), or the one that a path names: glue_data/MNLI/dev_matched.tsv.

    In a path, the last part that contains a name decides.

    Raises:
      InputError: there is no such name, or one part contains two. The message lists the names.
    """
    text = str(name_or_path)
    for part in reversed(re.split(r"[/\\]", text.casefold())):
        found = {_NAME_BY_LETTERS[re.sub("[-_ ]", "", match)] for match in _NAME_PATTERN.findall(part)}
        if len(found) == 1:
            return LAYOUTS[found.pop()]
        if found:
            break
    close = did_you_mean(text, LAYOUTS)
    raise InputError(f"{text!r} does not name exactly one task; name one of {', '.join(LAYOUTS)}{close}")


def class_of(label: str, names: Sequence[str], match: Match = "number") -> int | None:
    """Returns the class that a gold string names; None if it names none.

    Args:
      label: the gold string.
      names: the classes, in order.
      match: "exact" if the string must be a name as it is spelled; "case" if it may differ in case; "number" if it may
        also be the number of a class, from 0, where no name is a number. Only whoever gives the order of the classes
        can mean a number: other libraries' orders differ (MNLI's 0 is contradiction in fairseq, and entailment in
        Hugging Face's datasets).
    """
    if label in names:
        return names.index(label)
    folded = [name.casefold() for name in names]
    if match != "exact" and label.casefold() in folded:
        return folded.index(label.casefold())
    if match == "number" and _WHOLE_NUMBER.fullmatch(label) and not any(map(_WHOLE_NUMBER.fullmatch, names)):
        return int(label) if str(int(label)) == label and int(label) < len(names) else None
    return None


def is_missing(label: Any) -> bool:
    """Whether a cell has no label: it is null, NaN or empty."""
    return label is None or (isinstance(label, float) and math.isnan(label)) or not str(label).strip()


def gold_value(name: str, value: Any) -> float:
    """Returns the gold value of a regression in column `name`, as a number or as text that spells one.

    Raises:
      InputError: it is not a number (Python's "1_000" is none, and nan, inf, true and false are none), or it is outside
        the range of float32.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number and not (isinstance(value, str) and _NUMBER.fullmatch(value.strip())):
        raise InputError(f"{name} {str(value)[:40]!r} is not a number")
    try:
        number = float(value)
    except OverflowError:  # an integer of hundreds of digits
        number = math.inf
    if not abs(number) <= _MAX_VALUE:
        raise InputError(f"{name} {str(value)[:40]!r} is not a finite number in the range of float32")
    return number


def lookalikes(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Returns the groups of names that differ only in case, spaces, Unicode form or the spelling of a number."""
    groups: dict[Any, list[str]] = {}
    for name in names:
        text = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        groups.setdefault(float(text) if _NUMBER.fullmatch(text) else text, []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def resolve_labels(
    layout: Layout, head_labels: Sequence[str] | None, num_classes: int, given: Sequence[str] | None
) -> tuple[str, ...]:
    """Returns the gold string of each of a head's classes, for class_of() and metrics.ClassCounts.

    The labels that the user gives come first. Otherwise they are the head's own, which are the layout's labels or
    meanings in any order. A new head has the layout's, in its order. Names that the layout knows are returned as the
    file spells them: ("positive", "negative") of a head for sst-2 becomes ("1", "0").

    The order of classes without names is never guessed: fairseq's, GLUE's and that of other training scripts differ.

    Args:
      layout: the file's layout.
      head_labels: HeadConfig.labels, which may be (); None where the layout's labels are the head's, as for a new head.
      num_classes: HeadConfig.num_classes.
      given: labels from the user, in the order of the head's classes; or None.

    Returns:
      num_classes names, or () for a regression.

    Raises:
      InputError: the number of labels does not match the head, two classes have the same name, or nobody says which
        class of the head is which of the layout's.
    """
    if layout.problem == "regression":
        if given or num_classes != 1:
            raise InputError(
                f"{layout.name} is a regression: it takes a head of 1 output and no labels,"
                f" got {num_classes} outputs and {len(given or ())} labels"
            )
        return ()
    if given is not None:
        if len(given) != num_classes or len({name.casefold() for name in given}) != num_classes:
            raise InputError(
                f"the head has {num_classes} classes, got the labels {', '.join(given) or '(none)'};"
                " give each class a name of its own, in the order of the head"
            )
        return _in_gold_strings(layout, given) or tuple(given)
    if len(layout.labels) != num_classes:
        raise InputError(
            f"{layout.name} has {len(layout.labels)} classes ({', '.join(layout.labels)}), the head {num_classes};"
            " take another head, or name each of its classes with --labels"
        )
    if head_labels is None:
        return layout.labels
    if (labels := _in_gold_strings(layout, head_labels)) is None:
        called = f"are called {', '.join(head_labels)}" if head_labels else "have no names"
        raise InputError(
            f"the head's classes {called}, so it is not known which of them are {layout.name}'s; give the label of "
            f"each in the order of the head with --labels, such as --labels {','.join(layout.labels)}"
        )
    return labels


def _in_gold_strings(layout: Layout, names: Sequence[str]) -> tuple[str, ...] | None:
    """Returns `names` as the file spells them, if they are the layout's labels or meanings in any order."""
    folded = [name.casefold() for name in names]
    for known in (layout.labels, layout.meanings):
        gold = {name.casefold(): label for name, label in zip(known, layout.labels, strict=False)}
        if gold and sorted(folded) == sorted(gold):
            return tuple(gold[name] for name in folded)
    return None


def default_metrics(head: HeadConfig) -> tuple[str, ...]:
    """Returns the metrics of a head whose layout names none, the main one first.

    - sentence: accuracy and macro_f1 for a classification; pearson, spearman and mse for a regression; f1 and accuracy
      for several labels, over all decisions together (micro-averaged)
    - token: entity_f1, entity_precision, entity_recall and accuracy if the labels mark entities
      (metrics.marks_entities), otherwise macro_f1 and accuracy
    - span: f1 and exact_match
    - choice: accuracy
    """
    if head.problem == "regression" and head.kind == "sentence":
        return metrics.VALUE_METRICS
    if head.problem == "multi_label":
        return ("f1", "accuracy")
    if head.kind == "token" and metrics.marks_entities(head.label_names):
        return (*metrics.ENTITY_METRICS, "accuracy")
    by_kind = {"sentence": ("accuracy", "macro_f1"), "token": ("macro_f1", "accuracy"), "span": ("f1", "exact_match")}
    return by_kind.get(head.kind, ("accuracy",))
