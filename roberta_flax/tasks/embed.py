"""Embeddings: features pooled to one vector per text, or per token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from roberta_flax.errors import InputError
from roberta_flax.nn import forward
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.tasks.base import Model, stitched, tokens_of, vectors_of
from roberta_flax.text.batching import TokenBatch
from roberta_flax.text.encoding import Encoded, OnLong, Piece, encode_batch
from roberta_flax.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Embed:
    """Features: float32 [hidden] of the "first" token or the "mean" of all, or [tokens, hidden] of all "tokens".

    The mean is over every token of the sequence, `<s>` and `</s>` included.
    """

    pooling: str = "mean"

    def check(self, config: RobertaConfig) -> None:
        if self.pooling not in (*forward.POOLINGS, "tokens"):
            raise InputError(f"pooling must be one of {', '.join(forward.POOLINGS)}, tokens; got {self.pooling!r}")

    def encode(self, tokenizer: Tokenizer, items: Sequence[Any], limit: int, on_long: OnLong) -> list[Encoded]:
        return encode_batch(tokenizer, items, limit, on_long)

    def run(self, model: Model, params: Any, batch: TokenBatch, tokens: Sequence[Any], pieces: Sequence[Piece]) -> Any:
        if self.pooling == "tokens":
            return forward.features(params, *tokens[:2], config=model.config, numerics=model.numerics)
        return forward.pooled_features(
            params, *tokens, pooling=self.pooling, config=model.config, numerics=model.numerics
        )

    def unpack(self, batch: TokenBatch, pieces: Sequence[Piece], arrays: Any, config: RobertaConfig) -> list[Any]:
        return tokens_of(batch, pieces, arrays) if self.pooling == "tokens" else vectors_of(batch, arrays)

    def result(self, item: Any, pieces: Sequence[Piece], results: Sequence[Any], model: Model) -> Any:
        if len(results) == 1:
            return results[0]
        if self.pooling == "tokens":
            return stitched(pieces, results)
        weights = [len(piece.ids) if self.pooling == "mean" else 1 for piece in pieces]
        return np.average(results, axis=0, weights=weights).astype(np.float32)

    def can_pack(self) -> bool:
        return True
