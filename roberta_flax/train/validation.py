"""How well a head does on examples: its loss, and the metrics of its task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from roberta_flax import metrics
from roberta_flax.datasets.examples import Examples
from roberta_flax.datasets.layouts import default_metrics
from roberta_flax.errors import InputError
from roberta_flax.metrics import ClassCounts, EntityCounts, Evaluation
from roberta_flax.nn import forward
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.nn.forward import Params
from roberta_flax.nn.numerics import Numerics
from roberta_flax.nn.sharding import place_batch
from roberta_flax.tasks.spans import best_span
from roberta_flax.text.tokenizer import Tokenizer
from roberta_flax.train.batches import validation_batches
from roberta_flax.train.losses import HostBatch, head_loss


class Validation:
    """Judges parameters by examples.

    >>> validation = Validation(examples, "rte", config=config, tokenizer=tokenizer, labels=labels)
    >>> validation(params)
    {"loss": 0.41, "accuracy": 0.83}
    """

    def __init__(
        self,
        examples: Examples,
        head: str,
        *,
        config: RobertaConfig,
        tokenizer: Tokenizer,
        labels: Sequence[str] = (),
        metrics: Sequence[str] = (),
        batch_size: int = 32,
        numerics: Numerics = Numerics(),
        mesh: Mesh | None = None,
    ) -> None:
        """Prepares; nothing is computed.

        Args:
          examples: for the head's kind.
          head: of `config.heads`.
          config: of the parameters.
          tokenizer: that the examples were made with.
          labels: the gold string of each class, for sentence and token heads; the head's if not given.
          metrics: the head's, in the order asked for (see default_metrics); all of them if not given.
          batch_size: rows that are computed together; on a mesh, a multiple of its DATA axis.
          numerics: of the computation.
          mesh: of the parameters, where they are on several devices.

        Raises:
          InputError: examples for another kind of head, or metrics that it does not have.
        """
        self.examples, self.head = examples, config.head(head)
        if examples.kind != self.head.kind:
            raise InputError(f"head {head!r} is of kind {self.head.kind}, and the examples of {examples.kind}")
        self.metrics = tuple(metrics) or default_metrics(self.head)
        self.labels = tuple(labels) or self.head.label_names
        self._config, self._tokenizer, self._batch_size, self._mesh = config, tokenizer, batch_size, mesh
        loss = head_loss(head, config=config, numerics=numerics)

        def compute(params: Params, batch: Any) -> tuple[Any, Any, Any]:
            """The loss's sum, its size, and the head's outputs: one network, as the compiler finds."""
            tokens = batch["tokens"].reshape(-1, batch["tokens"].shape[-1])
            outputs = forward.head_logits(params, tokens, head=head, config=config, numerics=numerics)
            return *loss(params, batch, None), outputs

        everywhere = None if mesh is None else NamedSharding(mesh, PartitionSpec())  # type: ignore[no-untyped-call]
        self._compute = jax.jit(compute, out_shardings=everywhere)

    def __call__(self, params: Params) -> dict[str, float]:
        """The loss, a mean as in training, and the metrics by name."""
        judged, loss = self.evaluate(params)
        return {"loss": loss, **judged.metrics}

    def evaluate(self, params: Params) -> tuple[Evaluation, float]:
        """The metrics with all that Evaluation has, and the loss."""
        judge = self._judge()
        total = size = 0.0
        sizes = {"pad_id": self._config.pad_id, "max_positions": self._config.max_positions}
        for numbers, batch in validation_batches(self.examples, batch_size=self._batch_size, **sizes):
            some_loss, some_size, outputs = jax.device_get(
                self._compute(params, batch if self._mesh is None else place_batch(batch, self._mesh))
            )
            total, size = total + float(some_loss), size + float(some_size)
            judge.add(numbers, batch, np.asarray(outputs, np.float64))
        return judge.evaluation(), total / size

    def _judge(self) -> _Judge:
        if self.head.kind == "span":
            return _Answers(self.examples, self._tokenizer)
        if self.head.kind == "choice":
            return _Classes(
                [str(i) for i in range(self.examples.choices)], self.metrics, _of_choices(self._config.pad_id)
            )
        if self.head.problem == "multi_label":
            return _Classes(("0", "1"), self.metrics, _of_labels)
        if self.head.problem == "regression":
            return _Values(self.metrics)
        if not set(self.metrics).isdisjoint(metrics.ENTITY_METRICS):
            return _Entities(self.labels, self.metrics)
        return _Classes(self.labels, self.metrics, _of_tokens if self.head.kind == "token" else _of_sentences)


class _Judge(Protocol):
    """Takes in what a head says of some examples, and at the end says how good that was."""

    def add(self, numbers: range, batch: HostBatch, outputs: npt.NDArray[np.float64]) -> None:
        """Adds a batch, whose first rows are the examples `numbers`."""

    def evaluation(self) -> Evaluation: ...


_Decisions = Callable[[HostBatch, npt.NDArray[np.float64]], tuple[Any, Any]]


class _Classes:
    def __init__(
        self,
        labels: Sequence[str],
        metrics: Sequence[str],
        decisions: _Decisions,
    ) -> None:
        self._counts, self._metrics, self._decisions = ClassCounts(labels), metrics, decisions

    def add(self, numbers: range, batch: HostBatch, outputs: npt.NDArray[np.float64]) -> None:
        self._counts.add(*self._decisions(batch, outputs))

    def evaluation(self) -> Evaluation:
        return self._counts.evaluation(self._metrics)


def _of_sentences(batch: HostBatch, outputs: npt.NDArray[np.float64]) -> tuple[Any, Any]:
    counts = batch["weights"] > 0
    return outputs.argmax(axis=-1)[counts], batch["targets"][counts]


_of_tokens = _of_sentences  # [batch, time] in the place of [batch]


def _of_choices(pad_id: int) -> _Decisions:
    def decisions(batch: HostBatch, outputs: npt.NDArray[np.float64]) -> tuple[Any, Any]:
        is_choice = (batch["tokens"] != pad_id).any(axis=-1)
        return _of_sentences(batch, np.where(is_choice, outputs.reshape(is_choice.shape), -np.inf))

    return decisions


def _of_labels(batch: HostBatch, outputs: npt.NDArray[np.float64]) -> tuple[Any, Any]:
    counts = batch["weights"] > 0
    return (outputs[counts] > 0).astype(np.int32).ravel(), batch["targets"][counts].astype(np.int32).ravel()


class _Entities:
    def __init__(self, labels: Sequence[str], metrics: Sequence[str]) -> None:
        self._counts, self._metrics = EntityCounts(labels), metrics

    def add(self, numbers: range, batch: HostBatch, outputs: npt.NDArray[np.float64]) -> None:
        counts = batch["weights"] > 0
        for predicted, gold, words in zip(outputs.argmax(axis=-1), batch["targets"], counts, strict=True):
            self._counts.add(predicted[words], gold[words])

    def evaluation(self) -> Evaluation:
        return self._counts.evaluation(self._metrics)


class _Values:
    def __init__(self, metrics: Sequence[str]) -> None:
        self._metrics = metrics
        self._predicted: list[float] = []
        self._gold: list[float] = []

    def add(self, numbers: range, batch: HostBatch, outputs: npt.NDArray[np.float64]) -> None:
        self._predicted += outputs[: len(numbers), 0].tolist()
        self._gold += batch["targets"][: len(numbers)].tolist()

    def evaluation(self) -> Evaluation:
        return metrics.evaluate_values(self._predicted, self._gold, self._metrics)


class _Answers:
    """Of each question the best span of all its windows, by the sum of the logits of its ends (BERT's run_squad.py).

    Where the examples have questions without an answer: none, if in every window more speaks for `<s>` than for the
    best span of all, as in run_squad.py with --version_2_with_negative and a threshold of 0.
    """

    def __init__(self, examples: Examples, tokenizer: Tokenizer) -> None:
        self._examples, self._tokenizer = examples, tokenizer
        self._best: dict[int, tuple[float, str]] = {}
        self._none: dict[int, float] = {}  # what speaks for no answer
        self._may_be_none = not all(question.answers for question in examples.questions)

    def add(self, numbers: range, batch: HostBatch, outputs: npt.NDArray[np.float64]) -> None:
        for number, scores in zip(numbers, outputs, strict=False):
            question, prefix, begin, end = self._examples.windows[number].tolist()
            self._none[question] = min(scores[0].sum(), self._none.get(question, np.inf))
            scores = scores[prefix : prefix + end - begin]
            first, last = best_span(scores)
            score = scores[first, 0] + scores[last, 1]
            if score > self._best.get(question, (-np.inf, ""))[0]:
                context = self._examples.questions[question].context
                spans = self._tokenizer.spans(context)
                self._best[question] = score, context[spans[begin + first, 0] : spans[begin + last, 1]].strip()

    def evaluation(self) -> Evaluation:
        questions = self._examples.questions
        answers = [self._answer(number) for number in range(len(questions))]
        return metrics.evaluate_answers(answers, [question.answers for question in questions])

    def _answer(self, question: int) -> str:
        score, answer = self._best[question]
        return "" if self._may_be_none and self._none[question] > score else answer
