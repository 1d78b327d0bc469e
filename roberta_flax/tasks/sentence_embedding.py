"""Sentence vectors, as sentence-transformers makes them: prompts, truncation, pooling and the modules after it.

Those of a sparse encoder, with a weight for each token of the vocabulary, are dicts of the weights that are not zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from roberta_flax.checkpoint.usage import Embedding
from roberta_flax.errors import InputError
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.nn.sentence import sentence_vectors
from roberta_flax.tasks.base import Model, unpack_vectors
from roberta_flax.text.batching import TokenBatch
from roberta_flax.text.encoding import EncodedInput, EncodedSequence, OnLong, Rejected, encode_batch
from roberta_flax.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class SentenceEmbedding:
    """Makes a vector of each text, float32 [size] (float64 where that is the compute dtype).

    The parameters of the modules are the model's (`usage.module_params`). Texts over the maximum length are truncated
    by default, as in sentence-transformers.

    Attributes:
      embedding: how the vectors are made.
      prompt: the text to put before each text.
      max_length: the default maximum length of a text in tokens; None for the model's.
    """

    embedding: Embedding
    prompt: str = ""
    max_length: int | None = None

    def check(self, config: RobertaConfig) -> None:
        pass

    def encode(
        self, tokenizer: Tokenizer, inputs: Sequence[Any], max_length: int, on_long: OnLong
    ) -> list[EncodedInput]:
        if on_long == "window":
            raise InputError("a sentence encoder truncates long texts: on_long (--on-long) window is not for them")
        prepared = [self.prepared(text) for text in inputs]
        usable = [text for text in prepared if not isinstance(text, Rejected)]
        encoded = iter(encode_batch(tokenizer, usable, max_length, on_long))
        return [text if isinstance(text, Rejected) else next(encoded) for text in prepared]

    def prepared(self, text: Any) -> str | Rejected:
        """The text that the tokenizer sees (Transformer.tokenize of sentence-transformers), or why there is none."""
        if isinstance(text, Rejected):
            return text
        if not isinstance(text, str):
            return Rejected(f"a sentence encoder takes one text an input, got {type(text).__name__}: {text!r:.60}")
        whole = self.prompt + text
        if self.embedding.strip:
            whole = whole.strip()
        return whole.lower() if self.embedding.lower_case else whole

    def run(
        self, model: Model, params: Any, batch: TokenBatch, arrays: Sequence[Any], sequences: Sequence[EncodedSequence]
    ) -> Any:
        return sentence_vectors(
            params,
            model.usage.module_params,
            *arrays,
            prompt_length=self._prompt_length(model.tokenizer),
            modules=self.embedding.modules,
            config=model.config,
            numerics=model.numerics,
        )

    def _prompt_length(self, tokenizer: Tokenizer) -> int:
        """The number of the prompt's tokens, `<s>` included (SentenceTransformer._get_prompt_length)."""
        if not self.prompt:
            return 0
        prompt = self.prepared("")
        return len(tokenizer.encode(str(prompt))) - 1

    def unpack(
        self, batch: TokenBatch, sequences: Sequence[EncodedSequence], outputs: Any, config: RobertaConfig
    ) -> list[Any]:
        return unpack_vectors(batch, outputs)

    def result(
        self, text_input: Any, sequences: Sequence[EncodedSequence], results: Sequence[Any], model: Model
    ) -> Any:
        return results[0][: self.embedding.truncate_dim]

    def can_pack(self) -> bool:
        return True


@dataclass(frozen=True)
class SparseEmbedding(SentenceEmbedding):
    """Makes a sparse vector of each text: {token id: weight}, by id, without the weights that are zero.

    Attributes:
      max_active_dims: how many weights to keep, the highest; None for all.
    """

    max_active_dims: int | None = None

    def unpack(
        self, batch: TokenBatch, sequences: Sequence[EncodedSequence], outputs: Any, config: RobertaConfig
    ) -> list[Any]:
        return [self._weights(vector) for vector in unpack_vectors(batch, outputs)]

    def _weights(self, vector: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        ids = np.flatnonzero(vector)
        if self.max_active_dims is not None and len(ids) > self.max_active_dims:
            ids = np.sort(ids[np.argsort(-vector[ids], kind="stable")[: self.max_active_dims]])
        return ids, vector[ids]

    def result(
        self, text_input: Any, sequences: Sequence[EncodedSequence], results: Sequence[Any], model: Model
    ) -> Any:
        ids, weights = results[0]
        return dict(zip(ids.tolist(), weights.tolist(), strict=True))

    def can_pack(self) -> bool:
        return False


def sentence_task(
    embedding: Embedding, prompt: str = "", max_length: int | None = None
) -> SentenceEmbedding | SparseEmbedding:
    """The task that makes vectors as `embedding` says, dense or sparse."""
    if embedding.is_sparse:
        return SparseEmbedding(embedding, prompt, max_length, embedding.max_active_dims)
    return SentenceEmbedding(embedding, prompt, max_length)
