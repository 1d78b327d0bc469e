"""How good a head's outputs are, by gold: a judge takes both in, some examples at a time, and gives metrics at the end.

Outputs are logits, float64. What they and the gold are, by the head's kind and problem:
  sentence  [examples, classes] and the classes, int [examples]; a regression: [examples, 1] and values, float
    [examples]; several labels: [examples, labels] and 0 or 1, [examples, labels]
  token     [examples, time, classes] and the classes, int [examples, time], NO_TAG where there is none
  choice    [examples, choices], -inf where there is none, and the right ones, int [examples]
  span      [windows, time, 2] and where these are, int [windows, 4] (Examples.windows)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from roberta_flax import metrics
from roberta_flax.datasets.examples import NO_TAG, Question
from roberta_flax.metrics import ClassCounts, EntityCounts, Evaluation
from roberta_flax.tasks.spans import best_span
from roberta_flax.text.tokenizer import Tokenizer

Outputs = npt.NDArray[np.float64]
Gold = npt.NDArray[Any]


class Judge(Protocol):
    """Takes in what a head says of some examples, and at the end says how good that was."""

    def add(self, outputs: Outputs, gold: Gold) -> None: ...

    def evaluation(self) -> Evaluation:
        """The metrics of all that was added.

        Raises:
          InputError: nothing was.
        """


class Classes:
    """Of each example the likeliest class or choice; of each tagged token, the likeliest tag."""

    def __init__(self, labels: Sequence[str], metrics: Sequence[str]) -> None:
        self._counts, self._metrics = ClassCounts(labels), metrics

    def add(self, outputs: Outputs, gold: Gold) -> None:
        is_judged = gold != NO_TAG
        self._counts.add(outputs.argmax(axis=-1)[is_judged], gold[is_judged])

    def evaluation(self) -> Evaluation:
        return self._counts.evaluation(self._metrics)


class Labels:
    """Of each example all labels that are likelier than not; every decision counts."""

    def __init__(self, metrics: Sequence[str]) -> None:
        self._counts, self._metrics = ClassCounts(("0", "1")), metrics

    def add(self, outputs: Outputs, gold: Gold) -> None:
        self._counts.add((outputs > 0).astype(np.int32).ravel(), gold.astype(np.int32).ravel())

    def evaluation(self) -> Evaluation:
        return self._counts.evaluation(self._metrics)


class Entities:
    """Of each example the likeliest tags, and the entities that they mark."""

    def __init__(self, labels: Sequence[str], metrics: Sequence[str]) -> None:
        self._counts, self._metrics = EntityCounts(labels), metrics

    def add(self, outputs: Outputs, gold: Gold) -> None:
        for predicted, tags in zip(outputs.argmax(axis=-1), gold, strict=True):
            self._counts.add(predicted[tags != NO_TAG], tags[tags != NO_TAG])

    def evaluation(self) -> Evaluation:
        return self._counts.evaluation(self._metrics)


class Values:
    """Of each example its value."""

    def __init__(self, metrics: Sequence[str]) -> None:
        self._metrics = metrics
        self._predicted: list[float] = []
        self._gold: list[float] = []

    def add(self, outputs: Outputs, gold: Gold) -> None:
        self._predicted += outputs[:, 0].tolist()
        self._gold += gold.tolist()

    def evaluation(self) -> Evaluation:
        return metrics.evaluate_values(self._predicted, self._gold, self._metrics)


class Answers:
    """Of each question the best span of all its windows, by the sum of the logits of its ends (BERT's run_squad.py).

    Where the examples have questions without an answer: none, if in every window more speaks for `<s>` than for the
    best span of all, as in run_squad.py with --version_2_with_negative and a threshold of 0.
    """

    def __init__(self, questions: Sequence[Question], tokenizer: Tokenizer) -> None:
        self._questions, self._tokenizer = questions, tokenizer
        self._best: dict[int, tuple[float, str]] = {}
        self._none: dict[int, float] = {}  # what speaks for no answer
        self._may_be_none = not all(question.answers for question in questions)

    def add(self, outputs: Outputs, gold: Gold) -> None:
        for scores, (question, prefix, begin, end) in zip(outputs, gold.tolist(), strict=True):
            self._none[question] = min(scores[0].sum(), self._none.get(question, np.inf))
            inside = scores[prefix : prefix + end - begin]
            first, last = best_span(inside)
            score = inside[first, 0] + inside[last, 1]
            if score > self._best.get(question, (-np.inf, ""))[0]:
                context = self._questions[question].context
                spans = self._tokenizer.spans(context)
                self._best[question] = score, context[spans[begin + first, 0] : spans[begin + last, 1]].strip()

    def evaluation(self) -> Evaluation:
        answers = [self._answer(number) for number in range(len(self._questions))]
        return metrics.evaluate_answers(answers, [question.answers for question in self._questions])

    def _answer(self, question: int) -> str:
        score, answer = self._best[question]
        return "" if self._may_be_none and self._none[question] > score else answer
