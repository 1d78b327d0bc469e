"""Answers one input with any kind of head: labels by name, with their probabilities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from roberta_flax.datasets.framing import choice_inputs, framing_of
from roberta_flax.errors import InputError
from roberta_flax.hub import Roberta
from roberta_flax.inference.heads import head_of, mnli_head
from roberta_flax.nn.config import HeadConfig
from roberta_flax.tasks.base import check_finite
from roberta_flax.tasks.choose import default_framing
from roberta_flax.tasks.classify import distinct_names, score_activation
from roberta_flax.tasks.sentence_scores import activated
from roberta_flax.tasks.spans import best_span
from roberta_flax.text.batching import collate_tokens


def answer(
    roberta: Roberta, texts: Sequence[str], head: str | None = None, *, framing: str | None = None
) -> dict[str, Any]:
    """Answers one input with a head.

    Args:
      roberta: the model.
      texts: a sentence or a pair of sentences; for a span head, a question and its context; for a choice head, the
        texts before the choices, as the framing requires, and then the choices.
      head: the head's name; the default is the only one.
      framing: for a choice head, one of datasets.framing.FRAMINGS; the default is the one named like the head, or else
        "choice".

    Returns:
      A dict with "head", the head's name, and depending on its kind:
        sentence  "label" and "probabilities" by label; for a regression, "values" by label
        token     "token": the text, label and probability of each token
        span      "answer" and "probability"; "no_answer", the probability of `<s>`, which stands for no answer
        choice    "label", "probabilities" by choice, and "truncated", the number of choices that lost tokens

    Raises:
      InputError: there is no such head, the texts do not match the head or its framing, a framing is given for
        another kind of head, or the model's outputs are NaN or infinite.
    """
    chosen = head_of(roberta.config, head)
    if chosen.kind == "choice":
        return {"head": chosen.name, **_answer_choice(roberta, chosen, texts, framing)}
    if framing is not None:
        raise InputError(f"framing (--framing) is for choice heads; {chosen.name!r} is of kind {chosen.kind}")
    trained_on = roberta.trained_on
    if trained_on is not None and trained_on.head == chosen.name and len(texts) > len(trained_on.columns.texts) == 1:
        raise InputError(
            f"the head {chosen.name!r} was trained on one text ({trained_on.columns.texts[0]}), and {len(texts)} texts "
            "would be read as a pair; give one text at a time, or a file of them"
        )
    return {"head": chosen.name, **_ANSWER_BY_KIND[chosen.kind](roberta, chosen, texts)}


def entailment(roberta: Roberta, premise: str, hypothesis: str, *, labels: Sequence[str] = ()) -> dict[str, Any]:
    """Classifies whether a hypothesis follows from a premise, with an MNLI head.

    Args:
      roberta: the model.
      premise, hypothesis: the texts.
      labels: the names of the head's classes in their order; by default the head's own.

    Returns:
      A dict with "label": contradiction, neutral or entailment, or the head's own names; and "log_probabilities" by
      label.

    Raises:
      InputError: as in heads.mnli_head, the texts are too long, or the model's outputs are NaN or infinite.
    """
    head, names = mnli_head(roberta.config, labels)
    outputs = _outputs(roberta, head, roberta.encode(premise, hypothesis))
    log_probabilities = dict(zip(names, outputs.tolist(), strict=True))
    return {
        "label": max(log_probabilities, key=log_probabilities.__getitem__),
        "log_probabilities": log_probabilities,
    }


def _outputs(roberta: Roberta, head: HeadConfig, tokens: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """What Roberta.predict returns for one input, if it is finite."""
    outputs = np.asarray(roberta.predict(head.name, tokens), np.float64)
    check_finite(outputs)
    return np.asarray(outputs[0])


def _answer_sentence(roberta: Roberta, head: HeadConfig, texts: Sequence[str]) -> dict[str, Any]:
    tokens = roberta.encode(*texts)
    outputs = _outputs(roberta, head, tokens)
    if (activation := score_activation(roberta, head)) is not None:
        outputs = np.asarray(activated(outputs, activation))
    if head.problem == "regression":
        return {"values": dict(zip(distinct_names(head.label_names), outputs.tolist(), strict=True))}
    label = roberta.predict_labels(head.name, tokens)[0]
    probabilities = dict(zip(distinct_names(head.label_names), np.exp(outputs).tolist(), strict=True))
    return {"label": label if isinstance(label, str) else ", ".join(label) or "none", "probabilities": probabilities}


def _answer_token(roberta: Roberta, head: HeadConfig, texts: Sequence[str]) -> dict[str, Any]:
    tokens = roberta.encode(*texts)
    best = np.exp(_outputs(roberta, head, tokens).max(axis=-1)).tolist()
    labels = roberta.predict_labels(head.name, tokens)[0]
    pieces = [roberta.tokenizer.token_text(int(token)) for token in tokens]
    return {
        "token": [
            {"text": piece, "label": label, "probability": probability}
            for piece, label, probability in zip(pieces, labels, best, strict=True)
        ]
    }


def _answer_span(roberta: Roberta, head: HeadConfig, texts: Sequence[str]) -> dict[str, Any]:
    """Returns the most likely span of the last text."""
    tokens = roberta.encode(*texts)
    end = len(tokens) - roberta.tokenizer.special_lengths(len(texts))[1]
    first = end - len(roberta.tokenizer.pieces(texts[-1]))
    log_probabilities = _outputs(roberta, head, tokens)
    scores = log_probabilities[first:end]
    if not len(scores):
        raise InputError("an answer is a span of the last text, which is empty")
    start, end = best_span(scores)
    span_text = str(roberta.decode(tokens[first + start : first + end + 1])).strip()
    probability, no_answer = np.exp([scores[start, 0] + scores[end, 1], log_probabilities[0].sum()]).tolist()
    return {"answer": span_text, "probability": probability, "no_answer": no_answer}


_ANSWER_BY_KIND: Mapping[str, Callable[[Roberta, HeadConfig, Sequence[str]], dict[str, Any]]] = {
    "sentence": _answer_sentence,
    "token": _answer_token,
    "span": _answer_span,
}


def _answer_choice(roberta: Roberta, head: HeadConfig, texts: Sequence[str], framing: str | None) -> dict[str, Any]:
    framing = framing or default_framing(head.name)
    given = framing_of(framing).given
    choices = texts[len(given) :]
    if len(choices) < 2:
        raise InputError(
            f"the framing {framing} takes {' and '.join(given)}, and at least two choices, got {len(texts)} texts"
        )
    rows = choice_inputs(framing, texts[: len(given)], choices, roberta.tokenizer, roberta.config.max_positions)
    tokens = collate_tokens([ids for ids, _ in rows])
    probabilities = np.exp(_outputs(roberta, head, tokens)).tolist()
    best = max(range(len(choices)), key=probabilities.__getitem__)
    return {
        "label": choices[best],
        "probabilities": dict(zip(distinct_names(choices), probabilities, strict=True)),
        "truncated": sum(truncated for _, truncated in rows),
    }
