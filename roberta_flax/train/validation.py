"""Computes the loss and the metrics of a head on labeled examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh

from roberta_flax import metrics
from roberta_flax.datasets.examples import NO_TAG, Examples
from roberta_flax.datasets.layouts import default_metrics
from roberta_flax.errors import InputError
from roberta_flax.metrics import Evaluation
from roberta_flax.nn import forward
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.nn.forward import Params
from roberta_flax.nn.meshes import in_auto_mode, own_mesh
from roberta_flax.nn.numerics import Numerics
from roberta_flax.nn.sharding import everywhere, place_batch
from roberta_flax.tasks import judging
from roberta_flax.tasks.base import check_finite
from roberta_flax.text.tokenizer import Tokenizer
from roberta_flax.train.batches import validation_batches
from roberta_flax.train.losses import HostBatch, check_trainable, loss_of_outputs


class Validation:
    """Computes the validation loss and metrics of parameters.

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
        """Prepares a validation. Nothing is computed yet.

        Args:
          examples: examples for the head's kind.
          head: name of a head in `config.heads`.
          config: the configuration of the parameters.
          tokenizer: the tokenizer that encoded the examples.
          labels: the gold string of each class, for sentence and token heads; the default is the head's labels.
          metrics: the metrics to compute, in order; the default is all metrics of the head (see default_metrics).
          batch_size: number of rows that are computed together; with a mesh, a multiple of its DATA axis.
          numerics: how to compute.
          mesh: the mesh of the parameters, if they are on several devices.

        Raises:
          InputError: the examples are for another kind of head.
        """
        self.examples, self.head = examples, config.head(head)
        if examples.kind != self.head.kind:
            raise InputError(
                f"head {head!r} is a {self.head.kind} head, but the examples are for a {examples.kind} head"
            )
        self.metrics = tuple(metrics) or default_metrics(self.head)
        self.labels = tuple(labels) or self.head.label_names
        self._config, self._tokenizer, self._batch_size, self._mesh = config, tokenizer, batch_size, mesh
        check_trainable(numerics)

        @in_auto_mode
        def compute(params: Params, batch: Any) -> tuple[Any, Any, Any]:
            """Returns the loss, its size and the head's outputs."""
            tokens = batch["tokens"].reshape(-1, batch["tokens"].shape[-1])
            outputs = forward.head_logits(params, tokens, head=head, config=config, numerics=numerics)
            return *loss_of_outputs(self.head, outputs, batch, config.pad_id), outputs

        self._compute = jax.jit(compute, out_shardings=None if mesh is None else everywhere(mesh))

    def __call__(self, params: Params) -> dict[str, float]:
        """Returns the mean loss, as in training, and the metrics, by name."""
        evaluation, loss = self.evaluate(params)
        return {"loss": loss, **evaluation.metrics}

    def evaluate(self, params: Params) -> tuple[Evaluation, float]:
        """Returns the metrics as an Evaluation, and the mean loss.

        Raises:
          InputError: the model's outputs are NaN or infinite.
        """
        judge = self._make_judge()
        total = size = 0.0
        sizes = {"pad_id": self._config.pad_id, "max_positions": self._config.max_positions}
        for numbers, batch in validation_batches(self.examples, batch_size=self._batch_size, **sizes):
            with own_mesh(self._mesh):
                placed = jax.device_put(dict(batch)) if self._mesh is None else place_batch(batch, self._mesh)
                batch_loss, batch_size, outputs = jax.device_get(self._compute(params, placed))
            check_finite(outputs)
            total, size = total + float(batch_loss), size + float(batch_size)
            judge.add(*self._outputs_and_gold(numbers, batch, np.asarray(outputs, np.float64)))
        return judge.evaluation(), total / size

    def _outputs_and_gold(
        self, numbers: range, batch: HostBatch, outputs: npt.NDArray[np.float64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[Any]]:
        """Returns the outputs and gold values of a batch's examples, as a judge accepts them."""
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

    def _make_judge(self) -> judging.Judge:
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
