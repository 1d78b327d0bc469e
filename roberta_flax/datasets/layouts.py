"""Where labeled files keep their texts and labels (GLUE, SNLI, SICK), and how a task is scored."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from roberta_flax import metrics
from roberta_flax.errors import InputError
from roberta_flax.metrics import VALUE_METRICS
from roberta_flax.nn.config import HeadConfig


@dataclass(frozen=True)
class Layout:
    """A labeled file's layout and how it is judged. The columns of GLUE's files are parted by tabs, without quoting.

    Attributes:
      name: the name that layout_of() takes.
      texts: names of the one or two text columns, by the file's header; 0-based indices ("3") where `header` is False.
      label: the gold column, named likewise.
      labels: the gold strings, in the order of a head's classes; () for a regression. Only MNLI's order is a released
        fairseq head's. fairseq's README.glue.md numbers the others by their frequency in the training file, so a head
        fine-tuned so may have any order; these are in the order of datasets' glue.py. See resolve_labels().
      metrics: of METRICS, the task's main one first.
      header: whether the file's first line names the columns.
      problem: what the head's outputs are, as HeadConfig.problem.
      meanings: what datasets' glue.py calls the classes, in the order of `labels`, where the file has only numbers.
      unlabeled: gold strings of rows that are left out: "-" where annotators did not agree (SNLI's README.txt).
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


_SENTENCES = ("sentence1", "sentence2")


_NLI = ("contradiction", "neutral", "entailment")  # roberta.large.mnli; fairseq/examples/roberta/README.md, label_map


_RTE = ("entailment", "not_entailment")


_BINARY = ("0", "1")


_F1 = ("accuracy", "f1")


_SICK = ("sentence_A", "sentence_B")


# Columns: fairseq/examples/roberta/preprocess_GLUE_tasks.sh. Metrics: Wang et al., 2019 (GLUE), table 1; SICK's:
# Marelli et al., 2014 (SemEval task 1). No mse for sts-b: fairseq's heads are trained on its scores divided by 5.
# GLUE's diagnostic set (ax) is not here, as its gold labels are not public.
_LAYOUTS = (
    Layout("mnli", _SENTENCES, "gold_label", _NLI, ("accuracy",), unlabeled=("-",)),
    Layout("snli", _SENTENCES, "gold_label", _NLI, ("accuracy",), unlabeled=("-",)),
    Layout("qnli", ("question", "sentence"), "label", _RTE, ("accuracy",)),
    Layout("rte", _SENTENCES, "label", _RTE, ("accuracy",)),
    Layout("wnli", _SENTENCES, "label", _BINARY, ("accuracy",), meanings=("not_entailment", "entailment")),
    Layout("qqp", ("question1", "question2"), "is_duplicate", _BINARY, _F1, meanings=("not_duplicate", "duplicate")),
    Layout("mrpc", ("#1 String", "#2 String"), "Quality", _BINARY, _F1, meanings=("not_equivalent", "equivalent")),
    Layout("sst-2", ("sentence",), "label", _BINARY, ("accuracy",), meanings=("negative", "positive")),
    Layout("cola", ("3",), "1", _BINARY, ("matthews", "accuracy"), False, meanings=("unacceptable", "acceptable")),
    Layout("sts-b", _SENTENCES, "score", (), ("pearson", "spearman"), problem="regression"),
    Layout("sick", _SICK, "entailment_judgment", tuple(map(str.upper, _NLI)), ("accuracy",)),
    Layout("sick-relatedness", _SICK, "relatedness_score", (), VALUE_METRICS, problem="regression"),
)


LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in _LAYOUTS}


# Names in the paths of released files; a dash stands for itself, "_", a blank or nothing.
_SPELLINGS = {name: name for name in LAYOUTS} | {"multi-nli": "mnli", "msr-paraphrase": "mrpc"}


_SPELLINGS |= {"dev-matched": "mnli", "dev-mismatched": "mnli"}
_BY_LETTERS = {spelling.replace("-", ""): name for spelling, name in _SPELLINGS.items()}


_ANY = "|".join(sorted(_SPELLINGS, key=len, reverse=True)).replace("-", "[-_ ]?")


_SPELLING = re.compile(f"(?<![a-z0-9])(?:{_ANY})(?![a-z0-9])")


def layout_of(name_or_path: str | os.PathLike[str]) -> Layout:
    """The task of a name, "mnli" or "SST2", or of a path that has one in it: glue_data/MNLI/dev_matched.tsv.

    Of a path, the part nearest to the file's name that has a task's name in it counts.

    Raises:
      InputError: no task's name is there, or two in one part; names those there are.
    """
    text = os.fspath(name_or_path)
    for part in reversed(re.split(r"[/\\]", text.casefold())):
        found = {_BY_LETTERS[re.sub("[-_ ]", "", spelling)] for spelling in _SPELLING.findall(part)}
        if len(found) == 1:
            return LAYOUTS[found.pop()]
        if found:
            break
    raise InputError(f"no one task is named in {text!r}; give one by its name: {', '.join(LAYOUTS)}")


def class_of(label: str, names: Sequence[str]) -> int | None:
    """The class that a gold string names: as spelled, in other case, or by its number ("1"); None for any other."""
    folded = [name.casefold() for name in names]
    for text, known in ((label, names), (label.casefold(), folded), (label, list(map(str, range(len(names)))))):
        if text in known:
            return known.index(text)
    return None


def resolve_labels(
    layout: Layout, head_labels: Sequence[str], num_classes: int, given: Sequence[str] | None
) -> tuple[str, ...]:
    """The gold string of each of a head's classes, for class_of() and metrics.ClassCounts.

    Those given by the user; or else the head's own, where they are the task's labels (or their meanings) in some
    order; or else the task's, in its order. Names that are the task's come back as the file spells them: a head's
    ("positive", "negative") for sst-2 is ("1", "0").

    Args:
      head_labels, num_classes: HeadConfig.labels, which may be (), and HeadConfig.num_classes.
      given: by the user, in the order of the head's classes; or None.

    Returns:
      num_classes names, or () for a regression.

    Raises:
      InputError: the counts do not fit, or two classes are given one name.
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
    return _in_gold_strings(layout, head_labels) or layout.labels


def _in_gold_strings(layout: Layout, names: Sequence[str]) -> tuple[str, ...] | None:
    """`names` as the file spells them, where they are the task's labels or their meanings in some order."""
    folded = [name.casefold() for name in names]
    for known in (layout.labels, layout.meanings):
        gold = {name.casefold(): label for name, label in zip(known, layout.labels, strict=False)}
        if gold and sorted(folded) == sorted(gold):
            return tuple(gold[name] for name in folded)
    return None


def default_metrics(head: HeadConfig) -> tuple[str, ...]:
    """What a head is judged by where its task does not say, the main one first.

    sentence: accuracy, macro_f1 of classes; pearson, spearman, mse of values; f1, accuracy of any number of labels,
    over all decisions together (micro-averaged). token: entity_f1, entity_precision, entity_recall, accuracy where the
    labels mark entities (metrics.marks_entities), macro_f1, accuracy else. span: f1, exact_match. choice: accuracy.
    """
    if head.problem == "regression" and head.kind == "sentence":
        return metrics.VALUE_METRICS
    if head.problem == "multi_label":
        return ("f1", "accuracy")
    if head.kind == "token" and metrics.marks_entities(head.label_names):
        return (*metrics.ENTITY_METRICS, "accuracy")
    by_kind = {"sentence": ("accuracy", "macro_f1"), "token": ("macro_f1", "accuracy"), "span": ("f1", "exact_match")}
    return by_kind.get(head.kind, ("accuracy",))
