"""Scores of texts and pairs from a sentence head, tokenized as Transformers does: of cross-encoders and classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import jax

from roberta_flax.errors import InputError
from roberta_flax.nn import forward
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.nn.sentence import ACTIVATIONS, check_activation
from roberta_flax.tasks.base import Model, unpack_vectors
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

if TYPE_CHECKING:
    from jaxtyping import Array, Float

Truncation = Literal["longest_first", "only_first"]


@partial(jax.jit, static_argnames=("activation",))
def activated(outputs: Float[Array, "*shape classes"], activation: str) -> Float[Array, "*shape classes"]:
    """A head's outputs after one of nn.sentence.ACTIVATIONS."""
    scores: Array = ACTIVATIONS[activation](outputs)
    return scores


@dataclass(frozen=True)
class SentenceScores:
    """Scores each text or pair of texts with a sentence head: the activation of its outputs, float32 [classes].

    Attributes:
      head: name of the head.
      activation: one of nn.sentence.ACTIVATIONS.
      truncation: which text of a pair over the maximum length is truncated: "longest_first", or "only_first".
      max_length: the default maximum length of an input in tokens; None for the model's.
    """

    head: str
    activation: str = "identity"
    truncation: Truncation = "longest_first"
    max_length: int | None = None

    def check(self, config: RobertaConfig) -> None:
        check_activation(self.activation)
        if (kind := config.head(self.head).kind) != "sentence":
            raise InputError(f"head {self.head!r} is of kind {kind}, expected a sentence head")

    def encode(
        self, tokenizer: Tokenizer, inputs: Sequence[Any], max_length: int, on_long: OnLong
    ) -> list[EncodedInput]:
        if on_long == "window":
            raise InputError("scores of long texts are those of truncated texts: on_long window is not for them")

        def encode(texts: Any) -> list[EncodedSequence]:
            return [_encode(tokenizer, texts, max_length, on_long, self.truncation)]

        return [encode_or_reject(encode, texts) for texts in inputs]

    def run(
        self, model: Model, params: Any, batch: TokenBatch, arrays: Sequence[Any], sequences: Sequence[EncodedSequence]
    ) -> Any:
        logits = forward.head_logits(params, *arrays, head=self.head, config=model.config, numerics=model.numerics)
        return activated(logits, self.activation)

    def unpack(
        self, batch: TokenBatch, sequences: Sequence[EncodedSequence], outputs: Any, config: RobertaConfig
    ) -> list[Any]:
        return unpack_vectors(batch, outputs)

    def result(
        self, text_input: Any, sequences: Sequence[EncodedSequence], results: Sequence[Any], model: Model
    ) -> Any:
        return results[0]

    def can_pack(self) -> bool:
        return True


def _encode(
    tokenizer: Tokenizer, texts: Any, max_length: int, on_long: OnLong, truncation: Truncation
) -> EncodedSequence:
    """Encodes a text or a pair, truncated as Transformers' fast tokenizers do.

    Raises:
      InputError: `texts` are not one or two texts; or they are too long and `on_long` is "error", or even the longest
        truncation does not suffice.
    """
    pieces = [tokenizer.pieces(text) for text in one_or_two_texts(texts)]
    lengths = [len(each) for each in pieces]
    specials = len(tokenizer.join([[] for _ in pieces]))
    room = max_length - specials
    if sum(lengths) <= room:
        return EncodedSequence(tokenizer.join(pieces))
    if on_long == "error":
        raise too_long(sum(lengths) + specials, max_length)
    if len(lengths) == 1:
        kept = [room]
    elif truncation == "only_first":
        if lengths[1] >= room:
            raise InputError(
                f"the second text has {lengths[1]} tokens, which leaves no room for the first within the maximum "
                f"length of {max_length}"
            )
        kept = [room - lengths[1], lengths[1]]
    else:
        kept = [*kept_lengths(lengths[0], lengths[1], room)]
    ids = tokenizer.join([each[:length] for each, length in zip(pieces, kept, strict=True)])
    return EncodedSequence(ids, truncated=True)


def kept_lengths(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of each text of a pair are kept, so that together they have at most `room`.

    This is "longest_first" of the tokenizers package (utils/truncation.rs, truncate_encodings). Where both texts are
    shortened, the longer one, or the second of two of one length, has the odd token; in Transformers' slow tokenizers,
    and in text.encoding.longest_first, it is the first.
    """
    if first + second <= room:
        return first, second
    shorter, longer = sorted((first, second))
    longer = shorter if shorter > room else max(shorter, room - shorter)
    if shorter + longer > room:
        shorter = room // 2
        longer = shorter + room % 2
    return (longer, shorter) if first > second else (shorter, longer)
