"""Sentence and token classification."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from roberta_flax.errors import InputError
from roberta_flax.nn import forward
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from roberta_flax.tasks.base import Model, stitched, tokens_of, vectors_of
from roberta_flax.text.batching import TokenBatch
from roberta_flax.text.encoding import Encoded, OnLong, Piece, encode_batch
from roberta_flax.text.tokenizer import Tokenizer


def labels_of(head: HeadConfig, scores: npt.NDArray[Any], *, logits: bool = False) -> str | list[str]:
    """The names of the classes that a sentence or token head finds in one input.

    Args:
      head: one with classes: no regression.
      scores: log-probabilities, float [classes], or of a token head [tokens, classes].
      logits: whether they are the head's outputs instead.

    Returns:
      The likeliest class's name, of a token head a list with that of each token; or a list of all that are likelier
      than not, where any number of classes may hold.
    """
    names = head.label_names
    if head.kind == "token":
        return [names[i] for i in scores.argmax(axis=-1)]
    if head.problem == "multi_label":
        even = 0.0 if logits else np.log(0.5)
        return [name for name, score in zip(names, scores, strict=True) if score > even]
    return names[int(scores.argmax())]


@dataclass(frozen=True)
class Classify:
    """What a sentence or token head says: float32 [classes], or [tokens, classes].

    Attributes:
      head: its name.
      logits: its outputs; otherwise log-probabilities, or of a regression values, as in Roberta.predict.
    """

    head: str
    logits: bool = False

    def check(self, config: RobertaConfig) -> None:
        kind = config.head(self.head).kind
        if kind not in ("sentence", "token"):
            raise InputError(f"head {self.head!r} is of kind {kind}; in bulk there are sentence and token heads")

    def encode(self, tokenizer: Tokenizer, items: Sequence[Any], limit: int, on_long: OnLong) -> list[Encoded]:
        return encode_batch(tokenizer, items, limit, on_long)

    def run(self, model: Model, params: Any, batch: TokenBatch, tokens: Sequence[Any], pieces: Sequence[Piece]) -> Any:
        function = forward.head_logits if self.logits else forward.head_log_probs
        return function(params, *tokens, head=self.head, config=model.config, numerics=model.numerics)

    def unpack(self, batch: TokenBatch, pieces: Sequence[Piece], arrays: Any, config: RobertaConfig) -> list[Any]:
        if config.head(self.head).kind == "token":
            return tokens_of(batch, pieces, arrays)
        return vectors_of(batch, arrays)

    def result(self, item: Any, pieces: Sequence[Piece], results: Sequence[Any], model: Model) -> Any:
        head = model.config.head(self.head)
        if len(results) == 1:
            return results[0]
        if head.kind == "token":
            return stitched(pieces, results)
        mean = partial(np.mean, axis=0, dtype=np.float32)
        return mean(results) if self.logits or head.problem == "regression" else np.log(mean(np.exp(results)))

    def can_pack(self) -> bool:
        return True
