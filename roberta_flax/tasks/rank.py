"""Ranking of documents by their scores with a query, from a cross-encoder, as in sentence-transformers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from roberta_flax.errors import InputError
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.nn.sentence import check_activation
from roberta_flax.tasks.base import Model, SequenceLogits, Task, check_count, one_head
from roberta_flax.tasks.sentence_scores import activated, cross_encoder_activation, encode_with_each, refuse_windows
from roberta_flax.text.batching import TokenBatch
from roberta_flax.text.encoding import EncodedInput, EncodedSequence, OnLong
from roberta_flax.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Rank(SequenceLogits):
    """Ranks the same documents for each query, by the scores of the pairs of query and document (see Score).

    The result is a list of (number of the document, score), the best first; of documents with one score, the first.
    Queries and documents are tokenized once, not once a pair.

    Attributes:
      documents: the documents.
      top_k: how many to return; by default all.
      head, activation: as in Score. The head has one output.
      max_length: the default maximum length of a pair in tokens; None for the model's.
    """

    documents: tuple[str, ...]
    top_k: int | None = None
    head: str | None = None
    activation: str | None = None
    max_length: int | None = None
    _pieces: list[list[list[int]]] = field(default_factory=list, init=False, repr=False, compare=False)

    def of(self, model: Model) -> Task:
        """The task as `model` does it."""
        head = one_head(model.config, "sentence", self.head)
        activation = self.activation or cross_encoder_activation(model, head)
        return replace(
            self, head=head.name, activation=activation, max_length=self.max_length or model.usage.max_length
        )

    @property
    def sequences_per_input(self) -> int:
        return len(self.documents)

    def describe(self) -> dict[str, Any]:
        """The settings, in which the documents are known by what they contain."""
        digest = hashlib.sha256()
        for document in self.documents:
            content = document.encode(errors="surrogatepass")
            digest.update(len(content).to_bytes(8, "big") + content)
        settings = asdict(replace(self, documents=()))
        del settings["_pieces"]
        return {**settings, "documents": {"count": len(self.documents), "sha256": digest.hexdigest()}}

    def check(self, config: RobertaConfig) -> None:
        documents: Any = self.documents
        if isinstance(documents, str) or not documents:
            raise InputError("give at least one document to rank")
        if self.top_k is not None:
            check_count("top_k (--topk)", self.top_k)
        if self.activation is not None:
            check_activation(self.activation)
        head = one_head(config, "sentence", self.head)
        if head.num_classes != 1:
            raise InputError(
                f"documents are ranked by a head with one output; {head.name!r} has {head.num_classes}: score pairs"
            )

    def encode(
        self, tokenizer: Tokenizer, inputs: Sequence[Any], max_length: int, on_long: OnLong
    ) -> list[EncodedInput]:
        refuse_windows(on_long)
        if not self._pieces:  # two threads may both do it, with one result
            self._pieces[:] = [tokenizer.pieces_of(self.documents)]
        return encode_with_each(tokenizer, inputs, self._pieces[0], max_length, on_long, "longest_first", "a query")

    def run(
        self, model: Model, params: Any, batch: TokenBatch, arrays: Sequence[Any], sequences: Sequence[EncodedSequence]
    ) -> Any:
        return activated(super().run(model, params, batch, arrays, sequences), self.activation or "identity")

    def result(
        self, text_input: Any, sequences: Sequence[EncodedSequence], results: Sequence[Any], model: Model
    ) -> Any:
        scores = np.concatenate(results)
        order = np.argsort(-scores, kind="stable")[: self.top_k]
        return [(int(number), float(scores[number])) for number in order]
