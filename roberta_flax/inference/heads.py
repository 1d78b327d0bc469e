"""Selects a head of a model, and the task for it."""

from __future__ import annotations

from collections.abc import Sequence

from roberta_flax.errors import InputError
from roberta_flax.nn.config import MNLI_LABELS, HeadConfig, RobertaConfig
from roberta_flax.tasks.answers import Answer
from roberta_flax.tasks.base import Task
from roberta_flax.tasks.choose import Choose
from roberta_flax.tasks.classify import Classify


def head_of(config: RobertaConfig, name: str | None = None) -> HeadConfig:
    """Returns the head with this name, or the only one.

    Raises:
      InputError: there is no such head; no name is given and the model has several heads or none (the message lists
        them); or the head is a pooler, whose outputs are features.
    """
    heads = [head for head in config.heads if head.kind != "pooler"]
    if name is None and len(heads) != 1:
        names = ", ".join(head.name for head in heads) or "none"
        raise InputError(f"the model has these heads: {names}; choose one with head (--head)")
    chosen = heads[0] if name is None else config.head(name)
    if chosen.kind == "pooler":
        raise InputError(f"head {chosen.name!r} is a pooler, whose outputs are features; use extract_features")
    return chosen


def mnli_head(config: RobertaConfig, labels: Sequence[str] = ()) -> tuple[HeadConfig, tuple[str, ...]]:
    """Returns the MNLI head and the names of its classes. The head is "mnli", or else the only sentence head.

    Args:
      config: the model's configuration.
      labels: the names of the classes in the order of the head; by default the head's own.

    Raises:
      InputError: there is no such head, it does not have three classes, or the classes have no names: the order of
        fairseq's classes is the reverse of GLUE's, so it is not guessed.
    """
    heads = {head.name: head for head in config.heads if head.kind == "sentence"}
    head = heads.get("mnli") or (next(iter(heads.values())) if len(heads) == 1 else config.head("mnli"))
    expected = ", ".join(MNLI_LABELS)
    if head.num_classes != len(MNLI_LABELS):
        raise InputError(f"head {head.name!r} has {head.num_classes} classes, expected {expected}")
    names = tuple(name.lower() for name in labels or head.labels)
    if not names:
        raise InputError(
            f"the three classes of head {head.name!r} have no names, and their order differs from model to model; give "
            f"it with labels (--labels), such as --labels {','.join(MNLI_LABELS)}"
        )
    if len(set(names)) != len(MNLI_LABELS):
        raise InputError(f"labels should name three different classes, such as {expected}; got {', '.join(names)}")
    return head, names


def task_of_head(
    config: RobertaConfig, name: str | None = None, *, logits: bool = False, framing: str | None = None
) -> Task:
    """Returns the task of a head of any kind: Classify, Answer for a span head, or Choose for a choice head.

    Args:
      config: the model's configuration.
      name: the head's name; the default is the only one.
      logits: as in Classify.
      framing: as in Choose.

    Raises:
      InputError: as in `head_of`, or an option is for another kind of head.
    """
    head = head_of(config, name)
    if framing is not None and head.kind != "choice":
        raise InputError(f"framing (--framing) is for choice heads; {head.name!r} is of kind {head.kind}")
    if head.kind in ("sentence", "token"):
        return Classify(head.name, logits)
    if logits:
        raise InputError(f"logits (--logits) is for sentence and token heads; {head.name!r} is of kind {head.kind}")
    return Answer(head.name) if head.kind == "span" else Choose(head.name, framing)
