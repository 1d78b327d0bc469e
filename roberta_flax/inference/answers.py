"""One input, answered in full by a head of whatever kind: labels by name, with probabilities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from roberta_flax.datasets.framing import FRAMINGS, choice_inputs, framing_of
from roberta_flax.errors import InputError
from roberta_flax.hub import Roberta
from roberta_flax.inference.heads import head_of, mnli_head
from roberta_flax.nn.config import HeadConfig
from roberta_flax.tasks.spans import best_span
from roberta_flax.text.batching import collate_tokens


def answer(
    roberta: Roberta, texts: Sequence[str], head: str | None = None, *, framing: str | None = None
) -> dict[str, Any]:
    """What a head says of one input.

    Args:
      roberta: the model.
      texts: a sentence, or a pair; of a span head a question and what it asks of; of a choice head what stands before
        the choices, as `framing` has it, and each choice.
      head: its name; the only one if not given.
      framing: of a choice head, one of datasets.framing.FRAMINGS; the head's name or "choice" if not given.

    Returns:
      "head", its name, and by its kind
        sentence  label and probabilities by label; values by label of a regression
        token     token: for each token its text, label and probability
        span      answer, probability; no_answer, the probability of `<s>`, to which a head points where there is none
        choice    label, probabilities by choice, and truncated: how many choices lost tokens

    Raises:
      InputError: no such head, texts that the head or its framing does not take, or a framing without a choice head.
    """
    chosen = head_of(roberta.config, head)
    if chosen.kind == "choice":
        return {"head": chosen.name, **_choice(roberta, chosen, texts, framing)}
    if framing is not None:
        raise InputError(f"framing (--framing) is for choice heads; {chosen.name!r} is of kind {chosen.kind}")
    return {"head": chosen.name, **_BY_KIND[chosen.kind](roberta, chosen, texts)}


def entailment(roberta: Roberta, premise: str, hypothesis: str) -> dict[str, Any]:
    """Whether a hypothesis follows from a premise, by an MNLI head.

    Returns:
      label: contradiction, neutral or entailment, or as the head names its classes; log_probabilities, by label.

    Raises:
      InputError: as heads.mnli_head, or texts that are too long.
    """
    head, labels = mnli_head(roberta.config)
    outputs = np.asarray(roberta.predict(head.name, roberta.encode(premise, hypothesis)), np.float64)[0]
    log_probabilities = dict(zip(labels, outputs.tolist(), strict=True))
    return {
        "label": max(log_probabilities, key=log_probabilities.__getitem__),
        "log_probabilities": log_probabilities,
    }


def _sentence(roberta: Roberta, head: HeadConfig, texts: Sequence[str]) -> dict[str, Any]:
    tokens = roberta.encode(*texts)
    outputs = np.asarray(roberta.predict(head.name, tokens), np.float64)[0]
    if head.problem == "regression":
        return {"values": dict(zip(_distinct(head.label_names), outputs.tolist(), strict=True))}
    label = roberta.predict_labels(head.name, tokens)[0]
    probabilities = dict(zip(_distinct(head.label_names), np.exp(outputs).tolist(), strict=True))
    return {"label": label if isinstance(label, str) else ", ".join(label) or "none", "probabilities": probabilities}


def _token(roberta: Roberta, head: HeadConfig, texts: Sequence[str]) -> dict[str, Any]:
    tokens = roberta.encode(*texts)
    best = np.exp(np.asarray(roberta.predict(head.name, tokens), np.float64)[0].max(axis=-1)).tolist()
    labels = roberta.predict_labels(head.name, tokens)[0]
    pieces = [roberta.tokenizer.token_text(int(token)) for token in tokens]
    return {
        "token": [
            {"text": piece, "label": label, "probability": probability}
            for piece, label, probability in zip(pieces, labels, best, strict=True)
        ]
    }


def _span(roberta: Roberta, head: HeadConfig, texts: Sequence[str]) -> dict[str, Any]:
    """The likeliest span of the last text."""
    tokens = roberta.encode(*texts)
    last = len(tokens) - 1 - len(roberta.tokenizer.encode_text(texts[-1]))
    whole = np.asarray(roberta.predict(head.name, tokens), np.float64)[0]
    scores = whole[last:-1]
    if not len(scores):
        raise InputError("an answer is a span of the last text, which is empty")
    start, end = best_span(scores)
    found = str(roberta.decode(tokens[last + start : last + end + 1])).strip()
    probability, no_answer = np.exp([scores[start, 0] + scores[end, 1], whole[0].sum()]).tolist()
    return {"answer": found, "probability": probability, "no_answer": no_answer}


_BY_KIND: Mapping[str, Callable[[Roberta, HeadConfig, Sequence[str]], dict[str, Any]]] = {
    "sentence": _sentence,
    "token": _token,
    "span": _span,
}


def _choice(roberta: Roberta, head: HeadConfig, texts: Sequence[str], framing: str | None) -> dict[str, Any]:
    framing = framing or (head.name if head.name in FRAMINGS else "choice")
    given = framing_of(framing).given
    choices = texts[len(given) :]
    if len(choices) < 2:
        raise InputError(
            f"the framing {framing} takes {' and '.join(given)}, and at least two choices, got {len(texts)} texts"
        )
    rows = choice_inputs(framing, texts[: len(given)], choices, roberta.tokenizer, roberta.config.max_positions)
    tokens = collate_tokens([ids for ids, _ in rows])
    probabilities = np.exp(np.asarray(roberta.predict(head.name, tokens), np.float64))[0].tolist()
    best = max(range(len(choices)), key=probabilities.__getitem__)
    return {
        "label": choices[best],
        "probabilities": dict(zip(_distinct(choices), probabilities, strict=True)),
        "truncated": sum(truncated for _, truncated in rows),
    }


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, with its number behind each that comes more than once, so that they can be keys."""
    return [f"{name} ({i})" if names.count(name) > 1 else name for i, name in enumerate(names)]
