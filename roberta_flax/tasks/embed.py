"""Embeddings: the features of an input, pooled to one vector or for each token; or a sentence encoder's vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from roberta_flax.errors import InputError
from roberta_flax.nn import forward
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.nn.sentence import ROLES
from roberta_flax.tasks.base import Model, Task, merge_windows, unpack_tokens, unpack_vectors
from roberta_flax.tasks.multi_vector import multi_vector_task
from roberta_flax.tasks.sentence_embedding import sentence_task
from roberta_flax.text.batching import TokenBatch
from roberta_flax.text.encoding import EncodedInput, EncodedSequence, OnLong, encode_batch
from roberta_flax.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Embed:
    """Extracts the features of each input.

    Attributes:
      pooling: "mean" or "first" for one vector, float32 [hidden]: the mean over all tokens, `<s>` and `</s>` included,
        or the features of the first token; "tokens" for those of all tokens, float32 [tokens, hidden]. By default the
        vectors that the model's repository defines (see SentenceEmbedding, SparseEmbedding and MultiVectorEmbedding),
        or "mean" if it defines none.
      prompt: the text to put before each text, for the vectors that the repository defines; by default the
        repository's own.
      prompt_name: the name of one of the repository's prompts, in place of `prompt`. For a multi-vector encoder,
        "query" or "document" also says what the texts are.
    """

    pooling: str | None = None
    prompt: str | None = None
    prompt_name: str | None = None

    def of(self, model: Model) -> Task:
        """The task as `model` does it, with the pooling that it has by default.

        Raises:
          InputError: a prompt is given with a pooling or for a model without prompts, or the name of another prompt.
        """
        usage = model.usage
        if self.pooling is None and usage.embedding is not None:
            prompt = usage.embedding.prompt(self.prompt, self.prompt_name)
            if usage.embedding.is_multi_vector:
                role = self.prompt_name if self.prompt_name in ROLES else None
                return multi_vector_task(model, usage.embedding, role, prompt)
            return sentence_task(usage.embedding, prompt, usage.max_length)
        if self.prompt is not None or self.prompt_name is not None:
            raise InputError("a prompt is for the vectors that a model's repository defines, without a pooling")
        return Embed("mean" if self.pooling is None else self.pooling)

    def check(self, config: RobertaConfig) -> None:
        if self.pooling not in (*forward.POOLINGS, "tokens"):
            raise InputError(f"pooling must be one of {', '.join(forward.POOLINGS)}, tokens; got {self.pooling!r}")

    def encode(
        self, tokenizer: Tokenizer, inputs: Sequence[Any], max_length: int, on_long: OnLong
    ) -> list[EncodedInput]:
        return encode_batch(tokenizer, inputs, max_length, on_long)

    def run(
        self, model: Model, params: Any, batch: TokenBatch, arrays: Sequence[Any], sequences: Sequence[EncodedSequence]
    ) -> Any:
        if self.pooling == "tokens":
            tokens_and_segments = arrays[:2]
            return forward.features(params, *tokens_and_segments, config=model.config, numerics=model.numerics)
        assert self.pooling is not None, "resolved by `of`"
        return forward.pooled_features(
            params, *arrays, pooling=self.pooling, config=model.config, numerics=model.numerics
        )

    def unpack(
        self, batch: TokenBatch, sequences: Sequence[EncodedSequence], outputs: Any, config: RobertaConfig
    ) -> list[Any]:
        return unpack_tokens(batch, sequences, outputs) if self.pooling == "tokens" else unpack_vectors(batch, outputs)

    def result(
        self, text_input: Any, sequences: Sequence[EncodedSequence], results: Sequence[Any], model: Model
    ) -> Any:
        """Combines windows: features of tokens are merged; vectors are averaged, means weighted by their tokens."""
        if len(results) == 1:
            return results[0]
        if self.pooling == "tokens":
            return merge_windows(sequences, results)
        weights = [len(sequence.ids) if self.pooling == "mean" else 1 for sequence in sequences]
        return np.average(results, axis=0, weights=weights).astype(np.float32)

    def can_pack(self) -> bool:
        return True
