"""The outputs of a token head or a span head, with the places of tokens in the text: for entities and for answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from roberta_flax.errors import InputError
from roberta_flax.nn import forward
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.tasks.base import Model, unpack_tokens
from roberta_flax.text.batching import TokenBatch
from roberta_flax.text.encoding import (
    EncodedInput,
    EncodedSequence,
    OnLong,
    encode_or_reject,
    one_or_two_texts,
    too_long,
)
from roberta_flax.text.huggingface_tokenizer import TokenWindow
from roberta_flax.text.tokenizer import Tokenizer


class WindowLogits(NamedTuple):
    """A head's outputs for a window of an input.

    Attributes:
      tokens: the tokens, with their places in the texts.
      logits: float32 [length, classes].
    """

    tokens: TokenWindow
    logits: npt.NDArray[np.float32]


@dataclass(frozen=True)
class TokenLogits:
    """Computes a head's outputs for each token of a text, or of a pair of texts.

    The result is a list of WindowLogits: one, or if on_long is "window", windows that slide over the last text.

    Attributes:
      head: name of a token head or a span head.
      stride: how many tokens two neighboring windows share.
    """

    head: str
    stride: int = 0

    def check(self, config: RobertaConfig) -> None:
        if (kind := config.head(self.head).kind) not in ("token", "span"):
            raise InputError(f"head {self.head!r} is of kind {kind}; TokenLogits takes token and span heads")

    def encode(
        self, tokenizer: Tokenizer, inputs: Sequence[Any], max_length: int, on_long: OnLong
    ) -> list[EncodedInput]:
        def encode_one(given: Any) -> list[EncodedSequence]:
            texts = one_or_two_texts(given)
            windows = tokenizer.windows(*texts, max_length=max_length, stride=self.stride)
            is_long = len(windows) > 1
            if is_long and on_long == "error":
                raise too_long(len(tokenizer.encode(*texts)), max_length)
            kept = windows if on_long == "window" else windows[:1]
            return [EncodedSequence(window.ids, truncated=is_long, window=window) for window in kept]

        return [encode_or_reject(encode_one, given) for given in inputs]

    def run(
        self, model: Model, params: Any, batch: TokenBatch, arrays: Sequence[Any], sequences: Sequence[EncodedSequence]
    ) -> Any:
        return forward.head_logits(params, *arrays, head=self.head, config=model.config, numerics=model.numerics)

    def unpack(
        self, batch: TokenBatch, sequences: Sequence[EncodedSequence], outputs: Any, config: RobertaConfig
    ) -> list[Any]:
        return unpack_tokens(batch, sequences, outputs)

    def result(
        self, text_input: Any, sequences: Sequence[EncodedSequence], results: Sequence[Any], model: Model
    ) -> Any:
        return [
            WindowLogits(sequence.window, logits)
            for sequence, logits in zip(sequences, results, strict=True)
            if sequence.window is not None
        ]

    def can_pack(self) -> bool:
        return True
