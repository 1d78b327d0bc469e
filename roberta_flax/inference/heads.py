"""Selects a head of a model."""

from __future__ import annotations

from roberta_flax.errors import InputError
from roberta_flax.nn.config import MNLI_LABELS, HeadConfig, RobertaConfig


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


def mnli_head(config: RobertaConfig) -> tuple[HeadConfig, tuple[str, ...]]:
    """Returns the MNLI head and the names of its classes. The head is "mnli", or else the only sentence head.

    Raises:
      InputError: there is no such head, or it does not have three classes.
    """
    heads = {head.name: head for head in config.heads if head.kind == "sentence"}
    head = heads.get("mnli") or (next(iter(heads.values())) if len(heads) == 1 else config.head("mnli"))
    if head.num_classes != len(MNLI_LABELS):
        raise InputError(f"head {head.name!r} has {head.num_classes} classes, expected {', '.join(MNLI_LABELS)}")
    return head, tuple(name.lower() for name in head.labels) or MNLI_LABELS
