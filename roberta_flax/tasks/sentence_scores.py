"""Scores of texts and pairs from a sentence head, tokenized as Transformers does: of cross-encoders and classifiers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import jax

from roberta_flax.errors import InputError
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from roberta_flax.nn.sentence import ACTIVATIONS, check_activation
from roberta_flax.tasks.base import Model, SequenceLogits, Task, one_head
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
class SentenceScores(SequenceLogits):
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
        one_head(config, "sentence", self.head)

    def encode(
        self, tokenizer: Tokenizer, inputs: Sequence[Any], max_length: int, on_long: OnLong
    ) -> list[EncodedInput]:
        refuse_windows(on_long)

        pieces_of = _shared_pieces(tokenizer, inputs)

        def encode(texts: Any) -> list[EncodedSequence]:
            pieces = [pieces_of(text) for text in one_or_two_texts(texts)]
            return [join_within(tokenizer, pieces, max_length, on_long, self.truncation)]

        return [encode_or_reject(encode, texts) for texts in inputs]

    def run(
        self, model: Model, params: Any, batch: TokenBatch, arrays: Sequence[Any], sequences: Sequence[EncodedSequence]
    ) -> Any:
        return activated(super().run(model, params, batch, arrays, sequences), self.activation)

    def result(
        self, text_input: Any, sequences: Sequence[EncodedSequence], results: Sequence[Any], model: Model
    ) -> Any:
        return results[0]


@dataclass(frozen=True)
class Score:
    """Scores each text or pair of texts as a cross-encoder does: SentenceScores by what the model's repository says.

    Attributes:
      head: name of the sentence head; by default the only one.
      activation: one of nn.sentence.ACTIVATIONS; by default the repository's, or else the sigmoid for a head with one
        output and none for a head with several, as in sentence-transformers.
    """

    head: str | None = None
    activation: str | None = None

    def of(self, model: Model) -> Task:
        """The task as `model` does it."""
        head = one_head(model.config, "sentence", self.head)
        activation = self.activation or cross_encoder_activation(model, head)
        return SentenceScores(head.name, activation, max_length=model.usage.max_length)


def cross_encoder_activation(model: Model, head: HeadConfig) -> str:
    """The activation of a cross-encoder's scores: its repository's, or sentence-transformers' default."""
    scoring = model.usage.scoring_of(head.name)
    named = None if scoring is None else scoring.activation
    return named or ("sigmoid" if head.num_classes == 1 else "identity")


def _shared_pieces(tokenizer: Tokenizer, inputs: Sequence[Any]) -> Callable[[str], list[int]]:
    """A function like Tokenizer.pieces, for texts of which each is split once, however many pairs have it."""
    several = [[given] if isinstance(given, str) else given for given in inputs]
    texts = dict.fromkeys(
        text for given in several if isinstance(given, list | tuple) for text in given if isinstance(text, str)
    )
    try:
        known = dict(zip(texts, tokenizer.pieces_of(list(texts)), strict=True))
    except InputError:
        known = {}

    def pieces(text: str) -> list[int]:
        if not isinstance(text, str) or text not in known:
            known[text] = tokenizer.pieces(text)  # which refuses what is no text
        return known[text]

    return pieces


def refuse_windows(on_long: OnLong) -> None:
    """Raises InputError if long texts are to become several windows, for which there is no one score."""
    if on_long == "window":
        raise InputError(
            "scores of long texts are those of truncated texts: on_long (--on-long) window is not for them"
        )


def encode_with_each(
    tokenizer: Tokenizer,
    texts: Sequence[Any],
    others: Sequence[list[int]],
    max_length: int,
    on_long: OnLong,
    truncation: Truncation,
    what: str,
) -> list[EncodedInput]:
    """Encodes pairs of each text with each of the others, which are pieces; all pairs of a text are one input.

    Args:
      what: what a text is called in the error for an input that is not one.
    """

    def encode(text: Any) -> list[EncodedSequence]:
        if not isinstance(text, str):
            raise InputError(f"expected {what}, got {type(text).__name__}: {text!r:.80}")
        pieces = tokenizer.pieces(text)
        return [join_within(tokenizer, [pieces, other], max_length, on_long, truncation) for other in others]

    return [encode_or_reject(encode, text) for text in texts]


def join_within(
    tokenizer: Tokenizer, pieces: Sequence[list[int]], max_length: int, on_long: OnLong, truncation: Truncation
) -> EncodedSequence:
    """Joins the pieces of a text or a pair, truncated as Transformers' fast tokenizers do.

    Raises:
      InputError: they are too long and `on_long` is "error", or even the longest truncation does not suffice.
    """
    lengths = [len(each) for each in pieces]
    specials = tokenizer.special_lengths(len(pieces))[2]
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
