"""Zero-shot classification: labels that nobody trained, by a head that knows entailment, as Transformers' pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.special

from roberta_flax.errors import InputError
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from roberta_flax.tasks.base import Model, SequenceLogits, Task, one_head
from roberta_flax.tasks.sentence_scores import encode_with_each, refuse_windows
from roberta_flax.text.encoding import EncodedInput, EncodedSequence, OnLong
from roberta_flax.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class ZeroShot(SequenceLogits):
    """Finds how likely each of several labels is for each text, by whether the text entails a hypothesis of it.

    The result is float32 [labels]: probabilities that add up to 1, or with `multi_label` those of each label. A text
    over the maximum length is truncated, a hypothesis is not. Text and hypotheses are tokenized once, not once a pair.

    Attributes:
      labels: the labels.
      template: the hypothesis, with {} where the label goes.
      multi_label: whether any number of labels may apply.
      head: name of a sentence head; by default the only one.
      entailment: the number of the head's class of entailment; by default the class whose name begins so.
      max_length: the default maximum length of a pair in tokens; None for the model's.
    """

    labels: tuple[str, ...]
    template: str = "This example is {}."
    multi_label: bool = False
    head: str | None = None
    entailment: int | None = None
    max_length: int | None = None

    def of(self, model: Model) -> Task:
        """The task as `model` does it."""
        return self if self.max_length else replace(self, max_length=model.usage.max_length)

    @property
    def sequences_per_input(self) -> int:
        return len(self.labels)

    def check(self, config: RobertaConfig) -> None:
        labels: Any = self.labels
        if isinstance(labels, str) or not labels or not all(isinstance(label, str) for label in labels):
            raise InputError(f"labels (--label) must be a list of at least one text, got {labels!r:.80}")
        self._hypotheses()
        entailment_class(one_head(config, "sentence", self.head), self.entailment)

    def _hypotheses(self) -> list[str]:
        try:
            hypotheses = [self.template.format(label) for label in self.labels]
        except (IndexError, KeyError, ValueError):
            hypotheses = []
        if not hypotheses or hypotheses[0] == self.template:
            raise InputError(f"the template (--template) must have {{}} where the label goes, got {self.template!r}")
        return hypotheses

    def encode(
        self, tokenizer: Tokenizer, inputs: Sequence[Any], max_length: int, on_long: OnLong
    ) -> list[EncodedInput]:
        refuse_windows(on_long)
        hypotheses = tokenizer.pieces_of(self._hypotheses())
        return encode_with_each(tokenizer, inputs, hypotheses, max_length, on_long, "only_first", "a text to classify")

    def result(
        self, text_input: Any, sequences: Sequence[EncodedSequence], results: Sequence[Any], model: Model
    ) -> Any:
        logits = np.stack(results)
        entailment = entailment_class(one_head(model.config, "sentence", self.head), self.entailment)
        if self.multi_label or len(self.labels) == 1:
            contradiction = -1 if entailment == 0 else 0  # as in Transformers
            return scipy.special.softmax(logits[:, [contradiction, entailment]], axis=-1)[:, 1]
        return scipy.special.softmax(logits[:, entailment])


def entailment_class(head: HeadConfig, number: int | None = None) -> int:
    """The number of a head's class of entailment, as given or by its name.

    Raises:
      InputError: no class has such a name and no number is given, or the head has no such class.
    """
    if number is not None:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < head.num_classes:
            raise InputError(
                f"entailment (--entailment) must be a class from 0 to {head.num_classes - 1}, got {number!r}"
            )
        return number
    labels = [label.lower() for label in head.label_names]
    found = [i for i, label in enumerate(labels) if label.startswith("entail")]
    if not found:
        raise InputError(
            f"zero-shot classification needs a head with a class entailment; this one's are {', '.join(labels)}: if "
            "one of them is, give its number, from 0, with entailment (--entailment)"
        )
    return found[0]
