"""Multiple choice: which of several choices fits, by a choice head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import scipy.special

from roberta_flax.datasets.framing import FRAMINGS, choice_inputs, framing_of
from roberta_flax.errors import InputError
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.tasks.base import Model, SequenceLogits, one_head
from roberta_flax.text.encoding import EncodedInput, EncodedSequence, OnLong, encode_or_reject, too_long
from roberta_flax.text.tokenizer import Tokenizer


def default_framing(head: str) -> str:
    """The framing of a choice head: the one called like it, or "choice"."""
    return head if head in FRAMINGS else "choice"


@dataclass(frozen=True)
class Choose(SequenceLogits):
    """Finds how likely each of several choices is, with a choice head.

    An input is a list of texts: those before the choices, as the framing takes them, and then the choices. The result
    is float32 [choices], their log-probabilities.

    Attributes:
      head: name of a choice head; by default the only one.
      framing: one of datasets.framing.FRAMINGS, how a question and a choice become one sequence; by default the one
        called like the head, or "choice".
    """

    head: str | None = None
    framing: str | None = None

    kind: ClassVar[str] = "choice"

    def check(self, config: RobertaConfig) -> None:
        one_head(config, "choice", self.head)
        if self.framing is not None:
            framing_of(self.framing)

    def encode(
        self, tokenizer: Tokenizer, inputs: Sequence[Any], max_length: int, on_long: OnLong
    ) -> list[EncodedInput]:
        if on_long == "window":
            raise InputError("choices that are too long are truncated: on_long (--on-long) window is not for them")
        framing = self.framing or default_framing(self.head or "")
        given = len(framing_of(framing).given)

        def encode(texts: Any) -> list[EncodedSequence]:
            if not isinstance(texts, list | tuple) or len(texts) < given + 2:
                raise InputError(
                    f"the framing {framing} takes {' and '.join(framing_of(framing).given)}, and at least two choices, "
                    f"got {texts!r:.80}"
                )
            rows = choice_inputs(framing, texts[:given], texts[given:], tokenizer, max_length)
            if on_long == "error" and any(truncated for _, truncated in rows):
                raise too_long(max(len(ids) for ids, truncated in rows if truncated) + 1, max_length)
            return [EncodedSequence(ids, truncated=truncated) for ids, truncated in rows]

        return [encode_or_reject(encode, texts) for texts in inputs]

    def result(
        self, text_input: Any, sequences: Sequence[EncodedSequence], results: Sequence[Any], model: Model
    ) -> Any:
        return scipy.special.log_softmax(np.concatenate(results))
