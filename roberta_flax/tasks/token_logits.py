"""The outputs of a token head or a span head, with the places of tokens in the text: for entities and for answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from roberta_flax.nn.config import RobertaConfig
from roberta_flax.tasks.base import HeadLogits, check_count, one_head, unpack_tokens
from roberta_flax.text.batching import TokenBatch
from roberta_flax.text.encoding import (
    EncodedInput,
    EncodedSequence,
    OnLong,
    encode_or_reject,
    one_or_two_texts,
    too_long,
)
from roberta_flax.text.tokenizer import Tokenizer
from roberta_flax.text.windows import TokenWindow


class WindowLogits(NamedTuple):
    """A head's outputs for a window of an input.

    Attributes:
      tokens: the tokens, with their places in the texts.
      logits: float32 [length, classes].
    """

    tokens: TokenWindow
    logits: npt.NDArray[np.float32]


_STRIDE = 128  # of Transformers' question-answering pipeline, where half of a window is more


@dataclass(frozen=True)
class TokenLogits(HeadLogits):
    """Computes a head's outputs for each token of a text, or of a pair of texts; a task says what they mean.

    An input is one window, or if on_long is "window", as many as it takes, which slide over the last text.

    Attributes:
      head: name of a head; by default the only one of its kind.
      stride: how many tokens two neighboring windows share; by default 128, or half of a window if that is less.
    """

    head: str | None = None
    stride: int | None = None

    def check(self, config: RobertaConfig) -> None:
        one_head(config, self.kind, self.head)
        if self.stride is not None:
            check_count("stride", self.stride, smallest=0)

    def encode(
        self, tokenizer: Tokenizer, inputs: Sequence[Any], max_length: int, on_long: OnLong
    ) -> list[EncodedInput]:
        stride = min(_STRIDE, max_length // 2) if self.stride is None else self.stride
        shared = stride if on_long == "window" else 0

        def encode_one(given: Any) -> list[EncodedSequence]:
            texts = self.texts_of(given)
            windows = tokenizer.windows(*texts, max_length=max_length, stride=shared)
            is_long = len(windows) > 1
            if is_long and on_long == "error":
                raise too_long(len(tokenizer.encode(*texts)), max_length)
            kept = windows if on_long == "window" else windows[:1]
            return [EncodedSequence(window.ids, truncated=is_long, window=window) for window in kept]

        return [encode_or_reject(encode_one, given) for given in inputs]

    def texts_of(self, given: Any) -> Sequence[str]:
        """The texts of an input. Raises InputError for what is none."""
        return one_or_two_texts(given)

    def unpack(
        self, batch: TokenBatch, sequences: Sequence[EncodedSequence], outputs: Any, config: RobertaConfig
    ) -> list[Any]:
        return unpack_tokens(batch, sequences, outputs)


def windows_of(sequences: Sequence[EncodedSequence], results: Sequence[Any]) -> list[WindowLogits]:
    """The outputs for the windows of an input."""
    return [
        WindowLogits(sequence.window, logits)
        for sequence, logits in zip(sequences, results, strict=True)
        if sequence.window is not None
    ]
