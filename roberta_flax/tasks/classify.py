"""Classification of sentences and of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from roberta_flax.errors import InputError
from roberta_flax.nn import forward
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from roberta_flax.tasks.base import Model, Task, merge_windows, unpack_tokens, unpack_vectors
from roberta_flax.tasks.sentence_scores import activated
from roberta_flax.text.batching import TokenBatch
from roberta_flax.text.encoding import EncodedInput, EncodedSequence, OnLong, encode_batch
from roberta_flax.text.tokenizer import Tokenizer


def predicted_labels(head: HeadConfig, scores: npt.NDArray[Any], *, logits: bool = False) -> str | list[str]:
    """Names the classes that a sentence or token head predicts for one input.

    Args:
      head: a head with classes, not a regression.
      scores: log-probabilities, float [classes], or [tokens, classes] from a token head.
      logits: whether the scores are the head's outputs instead.

    Returns:
      The name of the most likely class; a list with that of each token from a token head; or from a multi-label head,
      a list of all classes whose probability is over one half.
    """
    names = head.label_names
    if head.kind == "token":
        return [names[i] for i in scores.argmax(axis=-1)]
    if head.problem == "multi_label":
        threshold = 0.0 if logits else np.log(0.5)
        return [name for name, score in zip(names, scores, strict=True) if score > threshold]
    return names[int(scores.argmax())]


def label_scores(head: HeadConfig, scores: npt.NDArray[Any], *, logits: bool = False) -> npt.NDArray[np.float32]:
    """The probability of each class that `predicted_labels` names, float32 [] or [names]; arguments as there."""
    if head.problem == "multi_label" and head.kind == "sentence":
        chosen = scores[scores > (0.0 if logits else np.log(0.5))]
        return np.asarray(np.exp(-np.logaddexp(0, -chosen) if logits else chosen), np.float32)
    best = scores.max(axis=-1)
    if logits and head.problem == "multi_label":
        best = -np.logaddexp(0, -best)
    elif logits:
        best = best - np.logaddexp.reduce(scores, axis=-1)
    return np.asarray(np.exp(best), np.float32)


def distinct_names(names: Sequence[str]) -> tuple[str, ...]:
    """Makes names usable as keys: names that occur more than once get their number appended."""
    return tuple(f"{name} ({i})" if names.count(name) > 1 else name for i, name in enumerate(names))


def score_activation(model: Model, head: HeadConfig) -> str | None:
    """The activation of a regression's values, as the model's source defines it; None for values as they are.

    A head with one output that Transformers saved is a regression, whose values are the answer, if its problem_type
    says so. Otherwise the answer is a score between 0 and 1, as from Transformers' text-classification pipeline, or a
    cross-encoder's, with the activation that its repository names.
    """
    scoring = model.usage.scoring_of(head.name)
    if scoring is None or (head.kind, head.problem) != ("sentence", "regression"):
        return None
    if scoring.activation is None and (scoring.is_regression or head.num_classes > 1):
        return None
    return scoring.activation or "sigmoid"


@dataclass(frozen=True)
class Classify:
    """Classifies each input with a sentence head, or each of its tokens with a token head.

    The result is float32 [classes], or [tokens, classes] from a token head.

    Attributes:
      head: name of the head.
      logits: whether to return the head's outputs instead of log-probabilities or, from a regression, values. (See
        Roberta.predict.)
      activation: of a regression's values, one of nn.sentence.ACTIVATIONS; by default the one that the model's
        repository defines for its scores.
    """

    head: str
    logits: bool = False
    activation: str | None = None

    def of(self, model: Model) -> Task:
        """The task as `model` does it, with the activation of its scores."""
        activation = self.activation or score_activation(model, model.config.head(self.head))
        return self if self.logits else replace(self, activation=activation)

    def check(self, config: RobertaConfig) -> None:
        kind = config.head(self.head).kind
        if kind not in ("sentence", "token"):
            raise InputError(f"head {self.head!r} is of kind {kind}; Classify takes sentence and token heads")

    def encode(
        self, tokenizer: Tokenizer, inputs: Sequence[Any], max_length: int, on_long: OnLong
    ) -> list[EncodedInput]:
        return encode_batch(tokenizer, inputs, max_length, on_long)

    def run(
        self, model: Model, params: Any, batch: TokenBatch, arrays: Sequence[Any], sequences: Sequence[EncodedSequence]
    ) -> Any:
        function = forward.head_logits if self.logits else forward.head_log_probs
        outputs = function(params, *arrays, head=self.head, config=model.config, numerics=model.numerics)
        return outputs if self.activation is None else activated(outputs, self.activation)

    def unpack(
        self, batch: TokenBatch, sequences: Sequence[EncodedSequence], outputs: Any, config: RobertaConfig
    ) -> list[Any]:
        if config.head(self.head).kind == "token":
            return unpack_tokens(batch, sequences, outputs)
        return unpack_vectors(batch, outputs)

    def result(
        self, text_input: Any, sequences: Sequence[EncodedSequence], results: Sequence[Any], model: Model
    ) -> Any:
        """Combines windows: the results of a token head are merged; probabilities, logits or values are averaged."""
        head = model.config.head(self.head)
        if len(results) == 1:
            return results[0]
        if head.kind == "token":
            return merge_windows(sequences, results)
        mean = partial(np.mean, axis=0, dtype=np.float32)
        if self.logits or head.problem == "regression":
            return mean(results)
        return np.logaddexp.reduce(results, axis=0) - np.float32(np.log(len(results)))  # also where exp() would be 0

    def can_pack(self) -> bool:
        return True
