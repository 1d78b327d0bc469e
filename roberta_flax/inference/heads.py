"""Which head of a model is meant."""

from __future__ import annotations

from roberta_flax.errors import InputError
from roberta_flax.nn.config import MNLI_LABELS, HeadConfig, RobertaConfig


def head_of(config: RobertaConfig, name: str | None = None) -> HeadConfig:
    """The head called `name`, or the only one.

    Raises:
      InputError: no such head, several and no name (those there are are named), or a pooler, which gives features.
    """
    heads = [head for head in config.heads if head.kind != "pooler"]
    if name is None and len(heads) != 1:
        names = ", ".join(head.name for head in heads) or "none"
        raise InputError(f"the model has these heads: {names}; say which with head (--head)")
    chosen = heads[0] if name is None else config.head(name)
    if chosen.kind == "pooler":
        raise InputError(f"head {chosen.name!r} is a pooler, whose outputs are features; use extract_features")
    return chosen


def mnli_head(config: RobertaConfig) -> tuple[HeadConfig, tuple[str, ...]]:
    """The head that tells whether a hypothesis follows, and its classes' names: "mnli", or the only sentence head.

    Raises:
      InputError: no such head, or one of other than three classes.
    """
    heads = {head.name: head for head in config.heads if head.kind == "sentence"}
    head = heads.get("mnli") or (next(iter(heads.values())) if len(heads) == 1 else config.head("mnli"))
    if head.num_classes != len(MNLI_LABELS):
        raise InputError(f"head {head.name!r} has {head.num_classes} classes, expected {', '.join(MNLI_LABELS)}")
    return head, tuple(name.lower() for name in head.labels) or MNLI_LABELS
