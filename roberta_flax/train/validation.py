"""How well a head does on examples: its loss, and the metrics of its task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from roberta_flax import metrics
from roberta_flax.datasets.examples import NO_TAG, Examples
from roberta_flax.datasets.layouts import default_metrics
from roberta_flax.errors import InputError
from roberta_flax.metrics import Evaluation
from roberta_flax.nn import forward
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.nn.forward import Params
from roberta_flax.nn.numerics import Numerics
from roberta_flax.nn.sharding import place_batch
from roberta_flax.tasks import judging
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
            judge.add(*self._judged(numbers, batch, np.asarray(outputs, np.float64)))
        return judge.evaluation(), total / size

    def _judged(
        self, numbers: range, batch: HostBatch, outputs: npt.NDArray[np.float64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[Any]]:
        """Outputs and gold, as judges take them, of the examples `numbers`, which are a batch's first rows."""
        rows = len(numbers)
        if self.head.kind == "span":
            return outputs[:rows], self.examples.windows[numbers.start : numbers.stop]
        if self.head.kind == "choice":
            is_choice = (batch["tokens"] != self._config.pad_id).any(axis=-1)
            outputs = np.where(is_choice, outputs.reshape(is_choice.shape), -np.inf)
        gold = batch["targets"]
        if self.head.kind == "token":
            gold = np.where(batch["weights"] > 0, gold, NO_TAG)
        return outputs[:rows], gold[:rows]

    def _judge(self) -> judging.Judge:
        if self.head.kind == "span":
            return judging.Answers(self.examples.questions, self._tokenizer)
        if self.head.kind == "choice":
            return judging.Classes([str(i) for i in range(self.examples.choices)], self.metrics)
        if self.head.problem == "multi_label":
            return judging.Labels(self.metrics)
        if self.head.problem == "regression":
            return judging.Values(self.metrics)
        if not set(self.metrics).isdisjoint(metrics.ENTITY_METRICS):
            return judging.Entities(self.labels, self.metrics)
        return judging.Classes(self.labels, self.metrics)
