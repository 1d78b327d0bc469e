"""Weights and vectors of a text's tokens, as BGE-M3's two other heads give them (FlagEmbedding, BGEM3FlagModel)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from roberta_flax.checkpoint.usage import TOKEN_HEADS
from roberta_flax.errors import InputError
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.nn.sentence import token_vectors
from roberta_flax.tasks.base import Model, unpack_tokens
from roberta_flax.text.batching import TokenBatch
from roberta_flax.text.encoding import EncodedInput, EncodedSequence, OnLong, encode_batch
from roberta_flax.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenVectors:
    """Computes a head of a text's tokens.

    The result depends on the head:
      sparse   the weight of each token of the text, {token id: float}: the highest where a token occurs several times;
        without special tokens, and without weights that are not positive
      colbert  a vector of norm 1 for each token but `<s>`, float32 [tokens - 1, size]

    Attributes:
      head: "sparse" or "colbert".
    """

    head: str

    def check(self, config: RobertaConfig) -> None:
        if self.head not in TOKEN_HEADS:
            raise InputError(f"head must be one of {', '.join(TOKEN_HEADS)}, got {self.head!r}")

    def encode(
        self, tokenizer: Tokenizer, inputs: Sequence[Any], max_length: int, on_long: OnLong
    ) -> list[EncodedInput]:
        return encode_batch(tokenizer, inputs, max_length, on_long)

    def run(
        self, model: Model, params: Any, batch: TokenBatch, arrays: Sequence[Any], sequences: Sequence[EncodedSequence]
    ) -> Any:
        if self.head not in model.usage.token_params:
            raise InputError(f"the model has no {self.head}_linear.pt, as BGE-M3's repository has")
        head_params = model.usage.token_params[self.head]
        return token_vectors(
            params, head_params, *arrays[:2], head=self.head, config=model.config, numerics=model.numerics
        )

    def unpack(
        self, batch: TokenBatch, sequences: Sequence[EncodedSequence], outputs: Any, config: RobertaConfig
    ) -> list[Any]:
        return unpack_tokens(batch, sequences, outputs)

    def result(
        self, text_input: Any, sequences: Sequence[EncodedSequence], results: Sequence[Any], model: Model
    ) -> Any:
        if self.head == "colbert":
            return results[0][1:]
        tokenizer = model.tokenizer
        unused = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.unk_id}
        weights: dict[int, float] = {}
        for token, weight in zip(sequences[0].ids.tolist(), np.ravel(results[0]).tolist(), strict=True):
            if token not in unused and weight > weights.get(token, 0.0):
                weights[token] = weight
        return weights

    def can_pack(self) -> bool:
        return True
