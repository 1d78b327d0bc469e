"""Mask filling: the most likely tokens for one `<mask>`, or for each of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from roberta_flax.errors import InputError
from roberta_flax.nn import forward
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.tasks.base import Model
from roberta_flax.text.batching import TokenBatch
from roberta_flax.text.encoding import (
    EncodedInput,
    EncodedSequence,
    Ids,
    OnLong,
    encode_or_reject,
    encode_texts,
    too_long,
)
from roberta_flax.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


def check_topk(topk: Any, config: RobertaConfig) -> None:
    """Raises InputError unless `topk` is an integer from 1 to the size of the vocabulary."""
    if isinstance(topk, bool) or not isinstance(topk, int) or not 1 <= topk <= config.vocab_size:
        raise InputError(f"topk must be an integer from 1 to the vocabulary's {config.vocab_size}, got {topk!r}")


def encode_masked(tokenizer: Tokenizer, masked_input: Any) -> tuple[Ids, int]:
    """Encodes a text with one `<mask>`, or whatever mask the tokenizer has, as the model's own library does.

    Returns:
      The token ids, [length], and the position of the mask among them.

    Raises:
      InputError: not a text with exactly one mask, or the tokenizer has none.
    """
    mask = tokenizer.mask_token
    if isinstance(masked_input, str) and masked_input.count(mask) == 1:
        ids, positions = tokenizer.encode_masked(masked_input)
        if len(positions) == 1:
            return ids, positions[0]
    raise InputError(
        f"expected a text with exactly one {mask}, such as 'He is a {mask} guy'; got {str(masked_input)[:200]!r}"
    )


def filled_texts(
    tokenizer: Tokenizer, masked_input: str, probabilities: npt.NDArray[Any], ids: npt.NDArray[Any]
) -> list[tuple[str, float, str]]:
    """Puts each of several tokens in place of the mask.

    Args:
      tokenizer: the model's tokenizer.
      masked_input: the text with the mask.
      probabilities: [topk], of each token.
      ids: [topk], the tokens.

    Returns:
      (filled text, probability, token's text) for each token. `<s>`, `</s>` and `<pad>`, which have no text, are left
      out.
    """
    return [
        (tokenizer.fill_mask(masked_input, token_id), probability, tokenizer.token_text(token_id))
        for probability, token_id in zip(probabilities.tolist(), ids.tolist(), strict=True)
        if not tokenizer.is_silent(token_id)
    ]


@dataclass(frozen=True)
class FillMask:
    """Finds the most likely tokens for the one `<mask>` in each text.

    The result is a list of (filled text, probability, token's text), as from Roberta.fill_mask.

    Attributes:
      topk: how many tokens to find.
    """

    topk: int = 5

    def check(self, config: RobertaConfig) -> None:
        check_topk(self.topk, config)
        forward.check_lm_head(config)

    def encode(
        self, tokenizer: Tokenizer, inputs: Sequence[Any], max_length: int, on_long: OnLong
    ) -> list[EncodedInput]:
        """Encodes each text as one sequence; of a text over the maximum length, the part around the mask."""

        def encode_one(text: Any) -> list[EncodedSequence]:
            ids, position = encode_masked(tokenizer, text)
            if len(ids) <= max_length:
                return [EncodedSequence(ids, position)]
            if on_long == "error":
                raise too_long(len(ids), max_length)
            before, after, _ = tokenizer.special_lengths(1)
            return [_around_mask(ids, position, max_length, before, after)]

        return [encode_or_reject(encode_one, text) for text in inputs]

    def run(
        self, model: Model, params: Any, batch: TokenBatch, arrays: Sequence[Any], sequences: Sequence[EncodedSequence]
    ) -> Any:
        positions = np.zeros((len(batch.tokens), 1), np.int32)
        positions[batch.row, 0] = [sequence.prefix_length for sequence in sequences]
        return forward.top_tokens(
            params, arrays[0], positions, topk=self.topk, config=model.config, numerics=model.numerics
        )

    def unpack(
        self, batch: TokenBatch, sequences: Sequence[EncodedSequence], outputs: Any, config: RobertaConfig
    ) -> list[Any]:
        probabilities, ids = outputs
        return [(probabilities[row, 0], ids[row, 0]) for row in batch.row]

    def result(
        self, text_input: Any, sequences: Sequence[EncodedSequence], results: Sequence[Any], model: Model
    ) -> Any:
        return filled_texts(model.tokenizer, text_input, *results[0])

    def can_pack(self) -> bool:
        return False


def _around_mask(ids: Ids, position: int, max_length: int, before: int, after: int) -> EncodedSequence:
    """Keeps the tokens around the mask, and the special tokens before and after the text, such as `<s>` and `</s>`."""
    kept, end = max_length - before - after, len(ids) - after
    begin = min(max(position - kept // 2, before), end - kept)
    ids = np.concatenate([ids[:before], ids[begin : begin + kept], ids[end:]])
    return EncodedSequence(ids, position + before - begin, truncated=True)


class Fillings(NamedTuple):
    """The likeliest tokens for the masks of a text.

    Attributes:
      ids: int32 [length], the tokens of the text.
      positions: int64 [masks], where the masks are.
      probabilities: float32 [masks, topk], the highest first.
      tokens: int32 [masks, topk].
    """

    ids: Ids
    positions: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]
    tokens: Ids


@dataclass(frozen=True)
class FillMasks:
    """Finds the most likely tokens for each mask in a text that has any number of them, independently of the others.

    The result is Fillings.

    Attributes:
      topk: how many tokens to find for a mask.
      targets: the ids of the tokens to choose from; all if there are none.
    """

    topk: int = 5
    targets: tuple[int, ...] = ()

    def check(self, config: RobertaConfig) -> None:
        check_topk(self.topk, config)
        forward.check_lm_head(config)

    def encode(
        self, tokenizer: Tokenizer, inputs: Sequence[Any], max_length: int, on_long: OnLong
    ) -> list[EncodedInput]:
        """Encodes each text as one sequence, without what is over the maximum length if on_long is "truncate"."""
        if on_long == "window":
            raise InputError("masks are filled in one part of a text: on_long window is not for them")

        def encode_one(text: Any) -> list[EncodedSequence]:
            if not isinstance(text, str):
                raise InputError(
                    f"expected a text with {tokenizer.mask_token}, got {type(text).__name__}: {text!r:.60}"
                )
            sequence = _with_masks(tokenizer, text, max_length, on_long)
            if not (sequence.ids == tokenizer.mask_id).any():
                kept = f"the first {max_length} tokens of the text" if sequence.truncated else "the text"
                raise InputError(f"expected {tokenizer.mask_token} in {kept}: {text[:60]!r}")
            return [sequence]

        return [encode_or_reject(encode_one, text) for text in inputs]

    def run(
        self, model: Model, params: Any, batch: TokenBatch, arrays: Sequence[Any], sequences: Sequence[EncodedSequence]
    ) -> Any:
        masks = [np.flatnonzero(sequence.ids == model.tokenizer.mask_id) for sequence in sequences]
        width = 1 << (max(map(len, masks)) - 1).bit_length()  # few widths, so that few programs are compiled
        positions = np.zeros((len(batch.tokens), width), np.int32)
        for row, of_sequence in zip(batch.row, masks, strict=True):
            positions[row, : len(of_sequence)] = of_sequence
        static: dict[str, Any] = {"config": model.config, "numerics": model.numerics}
        if not self.targets:
            return forward.top_tokens(params, arrays[0], positions, topk=self.topk, **static)
        logits = forward.lm_logits(params, arrays[0], positions, **static)
        return _top_targets(logits, np.array(self.targets, np.int32), topk=min(self.topk, len(self.targets)))

    def unpack(
        self, batch: TokenBatch, sequences: Sequence[EncodedSequence], outputs: Any, config: RobertaConfig
    ) -> list[Any]:
        probabilities, tokens = outputs
        return [(probabilities[row], tokens[row]) for row in batch.row]

    def result(
        self, text_input: Any, sequences: Sequence[EncodedSequence], results: Sequence[Any], model: Model
    ) -> Any:
        ids, (probabilities, tokens) = sequences[0].ids, results[0]
        positions = np.flatnonzero(ids == model.tokenizer.mask_id)
        return Fillings(ids, positions, probabilities[: len(positions)], tokens[: len(positions)])

    def can_pack(self) -> bool:
        return False


def _with_masks(tokenizer: Tokenizer, text: str, max_length: int, on_long: OnLong) -> EncodedSequence:
    ids, _ = tokenizer.encode_masked(text)
    if len(ids) <= max_length:
        return EncodedSequence(ids)
    (sequence,) = encode_texts(tokenizer, text, max_length, on_long)
    if tokenizer.mask_id in tokenizer.encode_text(tokenizer.mask_token):
        return sequence
    # fairseq's tokenizers read no special tokens in a text, and lose its end
    _, after, _ = tokenizer.special_lengths(1)
    return EncodedSequence(np.concatenate([ids[: max_length - after], ids[len(ids) - after :]]), truncated=True)


@partial(jax.jit, static_argnames=("topk",))
def _top_targets(
    logits: Float[Array, "batch masked vocab"], targets: Int[Array, " targets"], *, topk: int
) -> tuple[Float[Array, "batch masked topk"], Int[Array, "batch masked topk"]]:
    """Probabilities and ids of the likeliest of `targets`, among all tokens of the vocabulary."""
    probabilities = jax.nn.softmax(logits)[..., targets]
    values, indices = jax.lax.top_k(probabilities, topk)
    return values, jnp.asarray(targets)[indices]
