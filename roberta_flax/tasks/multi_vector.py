"""A vector for each token of a text, for late interaction, as sentence-transformers' MultiVectorEncoder makes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from roberta_flax.checkpoint.usage import Embedding
from roberta_flax.errors import InputError
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.nn.sentence import ROLES, MultiVectorMask, QueryExpansion, sentence_vectors
from roberta_flax.tasks.base import Model, unpack_tokens
from roberta_flax.tasks.sentence_embedding import SentenceEmbedding
from roberta_flax.text.batching import TokenBatch
from roberta_flax.text.encoding import EncodedInput, EncodedSequence, OnLong, Rejected
from roberta_flax.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class MultiVectorEmbedding(SentenceEmbedding):
    """Makes a vector of each token of a text, float32 [tokens, size]: `<s>` and `</s>` too, and those of the expansion.

    Use `multi_vector_task`, which looks up the tokens of a model.

    Attributes:
      expansion: of the texts, which are queries; None for none.
      expansion_id: the token to expand them with.
      skipped: the ids of tokens without a vector.
    """

    expansion: QueryExpansion | None = None
    expansion_id: int = 0
    skipped: tuple[int, ...] = ()

    @property
    def _is_partly_attended(self) -> bool:
        return self.expansion is not None and not self.expansion.attend

    def encode(
        self, tokenizer: Tokenizer, inputs: Sequence[Any], max_length: int, on_long: OnLong
    ) -> list[EncodedInput]:
        if self.expansion is None:
            return super().encode(tokenizer, inputs, max_length, on_long)
        if self.expansion.strategy == "fixed":
            max_length = min(max_length, self.expansion.length)
        encoded = super().encode(tokenizer, inputs, max_length, on_long)
        return [each if isinstance(each, Rejected) else [self._expanded(*each)] for each in encoded]

    def _expanded(self, sequence: EncodedSequence) -> EncodedSequence:
        """The query with the tokens of its expansion; the prefix is what they attend to."""
        assert self.expansion is not None
        length = len(sequence.ids)
        missing = max(self.expansion.length - length, 0)
        ids = np.concatenate([sequence.ids, np.full(missing, self.expansion_id, np.int32)])
        return sequence._replace(ids=ids, prefix_length=length)

    def run(
        self, model: Model, params: Any, batch: TokenBatch, arrays: Sequence[Any], sequences: Sequence[EncodedSequence]
    ) -> Any:
        attended = None
        if self._is_partly_attended:
            attended = np.zeros(len(batch.tokens), np.int32)
            attended[batch.row] = [sequence.prefix_length for sequence in sequences]
        return sentence_vectors(
            params,
            model.usage.module_params,
            *arrays,
            attended=attended,
            modules=self.embedding.modules,
            config=model.config,
            numerics=model.numerics,
        )

    def unpack(
        self, batch: TokenBatch, sequences: Sequence[EncodedSequence], outputs: Any, config: RobertaConfig
    ) -> list[Any]:
        return unpack_tokens(batch, sequences, outputs)

    def result(
        self, text_input: Any, sequences: Sequence[EncodedSequence], results: Sequence[Any], model: Model
    ) -> Any:
        return results[0][~np.isin(sequences[0].ids, self.skipped)]

    def can_pack(self) -> bool:
        return not self._is_partly_attended


def multi_vector_task(
    model: Model, embedding: Embedding, role: str | None, prompt: str = "", max_length: int | None = None
) -> MultiVectorEmbedding:
    """The task that makes a vector of each token as `embedding` says.

    Args:
      model: with the tokenizer.
      embedding: of a multi-vector encoder.
      role: "query" or "document", or None for a text that is neither: it has the model's maximum length, no expansion,
        and the skiplist of a document.
      prompt: the text to put before each text.
      max_length: the maximum length in tokens of a text whose role has none; by default the model's.

    Raises:
      InputError: there is no such role, or the vocabulary does not have the token of the expansion.
    """
    if role not in (None, *ROLES):
        raise InputError(f"the task of a text must be {' or '.join(ROLES)}, got {role!r:.80}")
    mask, tokenizer = embedding.modules[0], model.tokenizer
    assert isinstance(mask, MultiVectorMask)
    expansion = mask.expansion if role == "query" else None
    words = mask.skiplist if (role or "document") in mask.skiplist_roles else ()
    # as in resolve_with_tokenizer, a word that is no token is left out; the unknown token stands for others too
    skipped = [token for token in map(tokenizer.named_token, words) if token is not None]
    # a length over the network's, which sentence-transformers fails at, is the network's, as for any encoder
    limit = _max_length(mask, role) or max_length or model.usage.max_length
    return MultiVectorEmbedding(
        embedding,
        prompt,
        None if limit is None else min(limit, model.config.max_positions),
        expansion,
        0 if expansion is None else _expansion_id(tokenizer, expansion),
        tuple(skipped),
    )


def _max_length(mask: MultiVectorMask, role: str | None) -> int | None:
    """The maximum length of a text of this role; None if it has none of its own (Transformer.preprocess)."""
    if role == "document":
        return mask.document_length
    if role is None or mask.expansion is None:
        return mask.query_length if role == "query" else None
    return mask.expansion.length if mask.expansion.strategy == "fixed" else mask.query_length


def _expansion_id(tokenizer: Tokenizer, expansion: QueryExpansion) -> int:
    if expansion.token is None:
        return tokenizer.mask_id
    found = tokenizer.named_token(expansion.token)
    if found is None:
        raise InputError(f"queries are expanded with {expansion.token!r:.80}, which the vocabulary does not have")
    return found
