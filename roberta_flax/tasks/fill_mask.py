"""Mask filling: the likeliest tokens for one `<mask>`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from roberta_flax.errors import InputError
from roberta_flax.nn import forward
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.tasks.base import Model
from roberta_flax.text.batching import Batch
from roberta_flax.text.encoding import Encoded, OnLong, Piece, or_rejected, refuse_long
from roberta_flax.text.tokenizer import BOS, EOS, MASK, PAD, Tokenizer


def check_topk(topk: Any, config: RobertaConfig) -> None:
    """Raises InputError unless `topk` is a number of tokens of the vocabulary."""
    if isinstance(topk, bool) or not isinstance(topk, int) or not 1 <= topk <= config.vocab_size:
        raise InputError(f"topk must be an integer from 1 to the vocabulary's {config.vocab_size}, got {topk!r}")


def masked_ids(tokenizer: Tokenizer, masked_input: Any) -> tuple[npt.NDArray[np.int32], int]:
    """Token ids, [length], of a text with one `<mask>`, and the mask's position (RobertaHubInterface.fill_mask)."""
    if not isinstance(masked_input, str) or masked_input.count(MASK) != 1:
        raise InputError(
            f"fill_mask takes text with exactly one {MASK}, eg. 'He is a {MASK} guy'; got {str(masked_input)[:200]!r}"
        )
    before, after = (tokenizer.encode_text(span.rstrip()) for span in masked_input.split(MASK))
    ids = np.concatenate([[tokenizer.bos_id], before, [tokenizer.mask_id], after, [tokenizer.eos_id]])
    return ids.astype(np.int32), 1 + len(before)


def fills(
    tokenizer: Tokenizer, masked_input: str, probabilities: npt.NDArray[Any], ids: npt.NDArray[Any]
) -> list[tuple[str, float, str]]:
    """(text with the token in it, probability, token's text) for each of a mask's tokens that has a text."""
    replaced = f" {MASK}" if f" {MASK}" in masked_input else MASK
    filled = []
    for probability, token_id in zip(probabilities.tolist(), ids.tolist(), strict=True):
        if tokenizer.dictionary.symbols[token_id] not in (BOS, EOS, PAD):
            token = tokenizer.token_text(token_id)
            filled.append((masked_input.replace(replaced, token), probability, token))
    return filled


@dataclass(frozen=True)
class FillMask:
    """The likeliest tokens for the one `<mask>` in a text: [(text, probability, token), ...] as Roberta.fill_mask."""

    topk: int = 5

    def check(self, config: RobertaConfig) -> None:
        check_topk(self.topk, config)
        forward.check_lm_head(config)

    def encode(self, tokenizer: Tokenizer, items: Sequence[Any], limit: int, on_long: OnLong) -> list[Encoded]:
        """One sequence each; of a text that is too long, what stands around the mask."""

        def one(item: Any) -> list[Piece]:
            ids, position = masked_ids(tokenizer, item)
            if len(ids) <= limit:
                return [Piece(ids, position)]
            refuse_long(len(ids), limit, on_long)
            inside = limit - 2
            begin = min(max(position - inside // 2, 1), len(ids) - 1 - inside)
            ids = np.concatenate([ids[:1], ids[begin : begin + inside], ids[-1:]])
            return [Piece(ids, position + 1 - begin, truncated=True)]

        return [or_rejected(one, item) for item in items]

    def run(self, model: Model, params: Any, batch: Batch, tokens: Sequence[Any], pieces: Sequence[Piece]) -> Any:
        positions = np.zeros((len(batch.tokens), 1), np.int32)
        positions[batch.row, 0] = [piece.prefix for piece in pieces]
        return forward.top_tokens(
            params, tokens[0], positions, topk=self.topk, config=model.config, numerics=model.numerics
        )

    def unpack(self, batch: Batch, pieces: Sequence[Piece], arrays: Any, config: RobertaConfig) -> list[Any]:
        probabilities, ids = arrays
        return [(probabilities[row, 0], ids[row, 0]) for row in batch.row]

    def result(self, item: Any, pieces: Sequence[Piece], results: Sequence[Any], model: Model) -> Any:
        return fills(model.tokenizer, item, *results[0])

    def can_pack(self) -> bool:
        return False
