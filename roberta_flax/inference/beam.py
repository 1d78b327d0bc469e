"""Batch inference in an Apache Beam pipeline: a ModelHandler for RunInference. Needs the extra `beam`.

>>> import apache_beam as beam
>>> from apache_beam.ml.inference.base import KeyedModelHandler, RunInference
>>> from roberta_flax import Classify
>>> from roberta_flax.inference.beam import RobertaModelHandler
>>> handler = KeyedModelHandler(RobertaModelHandler("/models/mnli", Classify("mnli")))
>>> with beam.Pipeline() as pipeline:
...     rows = pipeline | beam.Create([(7, ("A man is asleep.", "A man is awake."))])
...     results = rows | RunInference(handler)  # (7, PredictionResult(example, {"label": "contradiction", ...}))
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from roberta_flax import hub
from roberta_flax.errors import InputError, require_positive
from roberta_flax.extras import require
from roberta_flax.inference.workers import Assignment, Worker
from roberta_flax.tasks.base import Task, TaskOfModel, sequences_per_input
from roberta_flax.text.tokenizer import Tokenizer

try:
    from apache_beam.ml.inference.base import ModelHandler, PredictionResult
except ImportError:  # the constructor says how to install it
    ModelHandler = PredictionResult = object

__all__ = ["RobertaModelHandler"]

BATCH_TOKENS = 1 << 16  # two batches of Predictor's default on GPUs, 16 on TPUs, 64 on CPUs


class RobertaModelHandler(ModelHandler):  # type: ignore[misc]
    """Runs a task in a pipeline, as apache_beam.ml.inference.base.RunInference(handler) or with a KeyedModelHandler.

    An element is an input of the task: a text, or a tuple of texts. Its PredictionResult has as `inference` a dict with
    the fields that a job writes for a row, and two more: "rejected", the reason why there is no result (the other
    fields are then None), or None if there is one; and "truncated", whether the input was over the maximum length and
    was truncated or split. Vectors are float32 arrays, and everything else is plain Python.

    Beam collects elements until they have `batch_tokens` tokens, however many elements these are, and a Predictor sorts
    them by length and lays them out for the devices. Each worker process loads the model once, and its threads share
    it.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        task: Task | TaskOfModel,
        *,
        batch_tokens: int = BATCH_TOKENS,
        load: Mapping[str, Any] | None = None,
        large_model: bool = False,
        model_copies: int | None = None,
        env_vars: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        """Loads nothing: the handler is sent to the workers.

        Args:
          model: a model that roberta_flax.load accepts. A path must exist on every worker.
          task: a task whose results can be written to a file, as all of roberta_flax's can.
          batch_tokens: the most tokens in a batch, of one element or several, without special tokens and padding.
          load: options of roberta_flax.load.
          large_model: whether the processes of a machine share one copy of the model, as in Beam's own handlers.
          model_copies: the number of copies that they share.
          env_vars: environment variables to set before the model is loaded.
          options: options of roberta_flax.Predictor.

        Raises:
          InputError: Beam is not installed, or an option does not exist or is invalid.
        """
        require("apache_beam.ml.inference.base", "beam")
        require_positive(batch_tokens=batch_tokens)
        self._assignment = Assignment.of(model, task, load, options)
        super().__init__(
            min_batch_size=batch_tokens,  # in the unit of element_size_fn
            max_batch_size=batch_tokens,
            element_size_fn=_TokenCount(self._assignment, batch_tokens),
            large_model=large_model,
            model_copies=model_copies,
            env_vars=dict(env_vars or {}),
        )

    def load_model(self) -> Worker:
        """Loads the model. Beam calls this once in each worker process."""
        return Worker(self._assignment)

    def run_inference(
        self, batch: Sequence[Any], model: Worker, inference_args: dict[str, Any] | None = None
    ) -> list[PredictionResult]:
        """The PredictionResult of each element, in order."""
        records = model.plain_records(batch)
        return [
            PredictionResult(element, record, self._assignment.model)
            for element, record in zip(batch, records, strict=True)
        ]

    def validate_inference_args(self, inference_args: dict[str, Any] | None) -> None:
        """Raises InputError if there are any."""
        if inference_args:
            raise InputError(f"there are no inference_args, got {inference_args!r:.80}; give options to the handler")

    def update_model_path(self, model_path: str | None = None) -> None:
        """Has the next `load_model` load another model, which RunInference's model_metadata_pcoll names."""
        if model_path:
            self._assignment = replace(self._assignment, model=model_path)

    def get_metrics_namespace(self) -> str:
        return "RobertaFlax"


@dataclass(frozen=True)
class _TokenCount:
    """The tokens of an element, for BatchElements. It never exceeds `most`, since Beam would emit an empty batch first.

    The element of a KeyedModelHandler has a key beside the texts, which counts as one if it is text itself.
    """

    assignment: Assignment
    most: int

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return hub.load_tokenizer(self.assignment.directory())

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles it without the tokenizer, which is loaded where it is used."""
        return _TokenCount, (self.assignment, self.most)

    def __call__(self, element: Any) -> int:
        try:
            pieces = self._tokenizer.pieces_of(list(_texts_in(element)))
        except InputError:  # of an input that will be rejected
            return 1
        tokens = sum(map(len, pieces)) * sequences_per_input(self.assignment.task)
        return max(1, min(tokens, self.most))


def _texts_in(element: Any) -> Iterator[str]:
    if isinstance(element, str):
        yield element
    elif isinstance(element, (list, tuple)):
        for part in element:
            yield from _texts_in(part)


def __dir__() -> list[str]:
    return __all__
