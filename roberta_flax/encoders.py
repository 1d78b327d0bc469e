"""SentenceEncoder and CrossEncoder: embed, compare and rank texts, with the arguments and results of
sentence-transformers.

Both run over `Predictor`: texts are laid out in batches by their tokens, on all local devices. Results are numpy arrays
where sentence-transformers has torch's tensors.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import numpy as np
import numpy.typing as npt
import scipy.sparse

from roberta_flax import hub
from roberta_flax.checkpoint.usage import Embedding, Scoring, Usage
from roberta_flax.errors import InputError, require_positive
from roberta_flax.files import PathLike
from roberta_flax.hub import Roberta
from roberta_flax.inference.predictor import Predictor
from roberta_flax.nn.config import HeadConfig
from roberta_flax.nn.sentence import ACTIVATIONS, SpladePooling
from roberta_flax.tasks.base import Task
from roberta_flax.tasks.embed import Embed
from roberta_flax.tasks.multi_vector import multi_vector_task
from roberta_flax.tasks.sentence_embedding import SentenceEmbedding, SparseEmbedding
from roberta_flax.tasks.sentence_scores import SentenceScores
from roberta_flax.tasks.similarity import normalized, pairwise_similarities, similarities
from roberta_flax.tasks.token_vectors import TokenVectors

logger = logging.getLogger(__name__)

Precision = Literal["float32", "int8", "uint8", "binary", "ubinary"]
_FEW = 100  # quantize_embeddings warns of int8 ranges from fewer vectors
_TOKEN_OUTPUTS: dict[str, Task] = {  # the last two as BGE-M3's own library names them
    "token_embeddings": Embed("tokens"),
    "lexical_weights": TokenVectors("sparse"),
    "colbert_vecs": TokenVectors("colbert"),
}
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")  # SentenceTransformer.encode_document


def load_with_predictor(model: PathLike | Roberta, options: Mapping[str, Any], owner: str) -> tuple[Roberta, Predictor]:
    """Loads a model, unless it is loaded already, and places its parameters on the devices.

    Args:
      model: what roberta_flax.load takes, or a loaded model.
      options: of roberta_flax.load and of roberta_flax.Predictor.
      owner: who takes the options, for a message.

    Returns:
      The model, and a predictor to be asked for others with `with_task`.

    Raises:
      InputError: an option is unknown, or is for loading and the model is loaded already.
    """
    of_predictor = [name for name in _keywords(Predictor) if name not in ("on_long", "max_length")]
    known = [*_keywords(hub.load), *of_predictor]
    if unknown := [name for name in options if name not in known]:
        raise InputError(f"{owner} does not know the option {', '.join(unknown)}; it takes {', '.join(known)}")
    load = {name: value for name, value in options.items() if name not in of_predictor}
    if isinstance(model, Roberta) and load:
        raise InputError(f"{', '.join(load)}: for a model to load, but a loaded one was given")
    roberta = model if isinstance(model, Roberta) else hub.load(model, **load)
    given = {name: value for name, value in options.items() if name in of_predictor}
    return roberta, Predictor(roberta, Embed("mean"), **given)


def _keywords(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind == parameter.KEYWORD_ONLY]


class _Encoder:
    """A model, its predictor, and the maximum length of its inputs."""

    def __init__(self, model: PathLike | Roberta, options: Mapping[str, Any]) -> None:
        self.roberta, self._predictor = load_with_predictor(model, options, type(self).__name__)
        self._max_length = min(self.roberta.usage.max_length or self.roberta.max_positions, self.roberta.max_positions)

    def _run(
        self, task: Task, inputs: Sequence[Any], show_progress_bar: bool | None, max_length: int | None = None
    ) -> list[Any]:
        """Runs a task, with a maximum length in place of the encoder's if one is given."""
        length = self._max_length if max_length is None else max_length
        predictor = self._predictor.with_task(task, on_long="truncate", max_length=length)
        results = predictor(inputs)
        return list(_with_progress(results, len(inputs)) if show_progress_bar else results)


class SentenceEncoder(_Encoder):
    """Makes sentence vectors, as sentence_transformers.SentenceTransformer does.

    It makes sparse vectors as SparseEncoder does, and a vector of each token as MultiVectorEncoder does.

    >>> model = SentenceEncoder("hf:intfloat/multilingual-e5-base", dtype="bfloat16")
    >>> queries = model.encode(["how do tides work"], prompt="query: ")
    >>> model.similarity(queries, model.encode(documents, prompt="passage: "))

    Pooling, the modules after it, prompts, maximum length and similarity are those that the model's repository defines.
    A model that defines none gets mean pooling, and a warning says so.

    Attributes:
      roberta: the model.
      prompts: the text to put before each text, by name.
      default_prompt_name: the name of the prompt of calls that choose none, or None.
      similarity_fn_name: "cosine", "dot", "euclidean" or "manhattan"; of a multi-vector encoder "maxsim" or
        "meanmaxsim".
      truncate_dim: how many numbers of each vector to keep, or None for all.
    """

    def __init__(
        self,
        model_name_or_path: PathLike | Roberta,
        *,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        similarity_fn_name: str | None = None,
        truncate_dim: int | None = None,
        **options: Any,
    ) -> None:
        """Loads the model, and places its parameters on the devices.

        Args:
          model_name_or_path: what roberta_flax.load takes: "hf:org/name", a directory of sentence-transformers or
            Transformers, a converted directory, ...; or a model that is loaded already.
          prompts, default_prompt_name, similarity_fn_name, truncate_dim: in place of the repository's (see the class).
            The prompts of other names are kept.
          options: of roberta_flax.load (dtype, quantize, ...) and roberta_flax.Predictor (devices, tokens_per_batch,
            strategy, ...).

        Raises:
          InputError: an option is invalid.
          CheckpointError, DownloadError: as roberta_flax.load.
        """
        super().__init__(model_name_or_path, options)
        embedding = self.roberta.usage.embedding
        if embedding is None:
            name = "the model" if isinstance(model_name_or_path, Roberta) else model_name_or_path
            logger.warning("%s does not say how its sentence vectors are made: mean pooling is used", name)
        self._embedding = embedding or Embedding(prompts={"query": "", "document": ""})
        self.prompts: dict[str, str] = {**self._embedding.prompts, **(prompts or {})}
        self.default_prompt_name = default_prompt_name or self._embedding.default_prompt
        self.similarity_fn_name = similarity_fn_name or self._embedding.similarity
        self.truncate_dim = self._embedding.truncate_dim if truncate_dim is None else truncate_dim
        self._settings()

    def __repr__(self) -> str:
        prompts = ", ".join(self.prompts) or "none"
        return (
            f"<SentenceEncoder: vectors of {self.get_sentence_embedding_dimension()}, max_seq_length "
            f"{self.max_seq_length}, similarity {self.similarity_fn_name}, prompts: {prompts}; {self.roberta!r}>"
        )

    def _settings(self) -> Embedding:
        """The settings as they are now. Raises InputError if they contradict each other."""
        return dataclasses.replace(
            self._embedding,
            prompts=dict(self.prompts),
            default_prompt=self.default_prompt_name,
            similarity=self.similarity_fn_name,
            truncate_dim=self.truncate_dim,
        )

    @property
    def max_seq_length(self) -> int:
        """The maximum length of a text in tokens, special tokens included. Longer texts are truncated."""
        return self._max_length

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        self._predictor.with_task(Embed("mean"), max_length=value)  # which checks it
        self._max_length = value

    def get_max_seq_length(self) -> int:
        """The same as `max_seq_length`."""
        return self._max_length

    def get_sentence_embedding_dimension(self) -> int:
        """The number of values of a vector."""
        return self._settings().vector_size(self.roberta.config.hidden_size)

    def encode(
        self,
        sentences: str | Sequence[str] | npt.NDArray[Any],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        output_value: str = "sentence_embedding",
        precision: Precision = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
    ) -> Any:
        """Makes a vector of each text.

        Args:
          sentences: the texts, or one text.
          prompt_name: the name of the prompt to put before each text, one of `prompts`.
          prompt: the prompt itself, in place of a name.
          batch_size: without effect, so that calls of sentence-transformers work: batches are made by tokens
            (tokens_per_batch), and a text's vector does not depend on them.
          show_progress_bar: whether to show progress on stderr.
          output_value: "sentence_embedding"; "token_embeddings" for the features of each text's tokens; or of BGE-M3
            "lexical_weights" and "colbert_vecs" (see tasks.token_vectors).
          precision: "float32"; or "int8", "uint8", "binary" or "ubinary" for quantized vectors, int8 or uint8. The
            ranges of int8 and uint8 are those of the vectors of this call; binary has a bit for each value.
          convert_to_numpy: whether the result is one array; if not, it is a list of arrays.
          convert_to_tensor: whether the result is a JAX array.
          normalize_embeddings: whether to divide each vector by its norm.
          truncate_dim: how many values of each vector to keep; by default the attribute.

        Returns:
          float32 [texts, size], or [size] for one text; float64 if that is the compute dtype. Token embeddings are a
          list of [tokens, hidden], ColBERT vectors one of [tokens - 1, size], lexical weights one of
          {token id: weight}; for one text one of these.

        Raises:
          InputError: a text is not a str, there is no such prompt, an option is invalid, or the model is a sparse
            encoder or a multi-vector encoder.
        """
        if self._embedding.is_sparse and output_value == "sentence_embedding":
            raise InputError("this model is a sparse encoder: use encode_sparse()")
        if self._embedding.is_multi_vector and output_value == "sentence_embedding":
            raise InputError(
                "this model is a multi-vector encoder: use encode_query(), encode_document() or encode_multi_vector()"
            )
        if precision not in get_args(Precision):
            raise InputError(f"precision must be one of {', '.join(get_args(Precision))}, got {precision!r}")
        if output_value not in ("sentence_embedding", *_TOKEN_OUTPUTS):
            values = ", ".join(("sentence_embedding", *_TOKEN_OUTPUTS))
            raise InputError(f"output_value must be one of {values}, got {output_value!r}")
        if batch_size is not None:
            require_positive(batch_size=batch_size)
        texts: Sequence[Any] = [sentences] if isinstance(sentences, str) else list(sentences)
        settings = self._settings()
        if truncate_dim is not None:
            settings = dataclasses.replace(settings, truncate_dim=truncate_dim)
        task = SentenceEmbedding(settings, settings.prompt(prompt, prompt_name))
        if output_value in _TOKEN_OUTPUTS:
            prepared = [task.prepared(text) for text in texts]
            features = self._run(_TOKEN_OUTPUTS[output_value], prepared, show_progress_bar)
            return features[0] if isinstance(sentences, str) else features
        vectors = self._run(task, texts, show_progress_bar)
        size = settings.vector_size(self.roberta.config.hidden_size)
        found = np.stack(vectors) if vectors else np.empty((0, size), np.float32)
        if normalize_embeddings:
            found = normalized(found)
        if precision != "float32":
            found = quantize_embeddings(found, precision)
        return _converted(found, isinstance(sentences, str), convert_to_numpy, convert_to_tensor)

    def encode_query(
        self, sentences: str | Sequence[str], prompt_name: str | None = None, prompt: str | None = None, **options: Any
    ) -> Any:
        """Makes vectors of queries: `encode` with the prompt called "query" if none is chosen.

        For a multi-vector encoder: `encode_multi_vector` with the task "query" and this prompt.
        """
        if prompt is None and prompt_name is None and "query" in self.prompts:
            prompt_name = "query"
        if self._embedding.is_multi_vector:
            return self.encode_multi_vector(sentences, prompt_name, prompt, task="query", **options)
        return self.encode(sentences, prompt_name, prompt, **options)

    def encode_document(
        self, sentences: str | Sequence[str], prompt_name: str | None = None, prompt: str | None = None, **options: Any
    ) -> Any:
        """Makes vectors of documents: `encode` with the prompt "document", "passage" or "corpus" if none is chosen.

        As in sentence-transformers, the prompt "document" is there and empty unless the repository defines it. For a
        multi-vector encoder: `encode_multi_vector` with the task "document" and this prompt.
        """
        if prompt is None and prompt_name is None:
            prompt_name = next((name for name in _DOCUMENT_PROMPTS if name in self.prompts), None)
        if self._embedding.is_multi_vector:
            return self.encode_multi_vector(sentences, prompt_name, prompt, task="document", **options)
        return self.encode(sentences, prompt_name, prompt, **options)

    def encode_sparse(
        self,
        sentences: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        max_active_dims: int | None = None,
    ) -> scipy.sparse.csr_array:
        """Makes a sparse vector of each text, with a weight for each token of the vocabulary.

        These are the vectors of a sparse encoder (SPLADE), as sentence_transformers.SparseEncoder makes them, or the
        lexical weights of BGE-M3. A masked LM whose repository says nothing gets SPLADE's maximum, as there, and a
        warning says so. Compare them by their products, `queries @ documents.T`, or by `similarity`.

        Args:
          sentences: the texts, or one text.
          prompt_name, prompt, batch_size, show_progress_bar: as in `encode`.
          max_active_dims: how many weights of a text to keep, the highest; by default the repository's number, or all.

        Returns:
          float32 [texts, vocab], or [1, vocab] for one text; float64 if that is the compute dtype.

        Raises:
          InputError: the model makes no sparse vectors, or as in `encode`.
        """
        if batch_size is not None:
            require_positive(batch_size=batch_size)
        texts: Sequence[Any] = [sentences] if isinstance(sentences, str) else list(sentences)
        settings = self._sparse_settings()
        if max_active_dims is not None:
            settings = dataclasses.replace(settings, max_active_dims=max_active_dims)
        task = SparseEmbedding(settings, settings.prompt(prompt, prompt_name), max_active_dims=settings.max_active_dims)
        if settings.is_sparse:
            weights = self._run(task, texts, show_progress_bar)
        else:
            found = self._run(TokenVectors("sparse"), [task.prepared(text) for text in texts], show_progress_bar)
            weights = [_highest(each, settings.max_active_dims) for each in found]
        dtype = self.roberta.numerics.accumulation_dtype
        return _sparse_rows(weights, self.roberta.config.vocab_size, np.dtype(dtype))

    def _sparse_settings(self) -> Embedding:
        settings, config = self._settings(), self.roberta.config
        if settings.is_sparse or "sparse" in self.roberta.usage.token_params:
            return settings
        if self.roberta.usage.embedding is not None or not config.lm_head:
            raise InputError(
                "this model makes no sparse vectors: it is no sparse encoder (SpladePooling), it has no "
                "sparse_linear.pt, and it is no masked LM without sentence vectors of its own"
            )
        logger.warning("the model does not say how its sparse vectors are made: SPLADE's maximum is used")
        return dataclasses.replace(settings, modules=(SpladePooling(config.vocab_size),))

    def decode(
        self, embeddings: scipy.sparse.sparray | npt.NDArray[Any], top_k: int | None = None
    ) -> list[list[tuple[str, float]]]:
        """The tokens of sparse vectors, as the vocabulary writes them, with their weights, the highest first.

        Args:
          embeddings: [n, vocab], of `encode_sparse`.
          top_k: how many tokens of each vector; by default all.

        Raises:
          InputError: the vectors are not as wide as the vocabulary, or the tokenizer is a fairseq model's.
        """
        if top_k is not None:
            require_positive(top_k=top_k)
        rows = scipy.sparse.csr_array(embeddings)
        if rows.shape[1:] != (self.roberta.config.vocab_size,):
            raise InputError(f"the vectors have the shape {rows.shape}, expected [n, {self.roberta.config.vocab_size}]")
        decoded = []
        for begin, end in zip(rows.indptr[:-1], rows.indptr[1:], strict=True):
            order = begin + np.argsort(-rows.data[begin:end], kind="stable")[:top_k]
            names = [self.roberta.tokenizer.token_name(int(i)) for i in rows.indices[order]]
            decoded.append(list(zip(names, rows.data[order].tolist(), strict=True)))
        return decoded

    def encode_multi_vector(
        self,
        sentences: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        normalize_embeddings: bool = False,
        task: str | None = None,
    ) -> Any:
        """Makes a vector for each token of each text, for late interaction (`maxsim`).

        These are the vectors of a multi-vector encoder, as sentence_transformers.MultiVectorEncoder makes them
        (encode_query and encode_document choose prompt and task), or the ColBERT vectors of BGE-M3.

        Args:
          sentences, prompt_name, prompt, batch_size, show_progress_bar: as in `encode`.
          normalize_embeddings: whether to divide each vector by its norm.
          task: "query" or "document", for the maximum length, the query expansion and the skiplist that the repository
            defines for these; None for texts that are neither (see tasks.multi_vector). BGE-M3 has none.

        Returns:
          A list of float32 [tokens, size], one array for each text; for one text its array. BGE-M3's are of norm 1 and
          without `<s>`.

        Raises:
          InputError: the model makes no such vectors, or as in `encode`.
        """
        if batch_size is not None:
            require_positive(batch_size=batch_size)
        texts: Sequence[Any] = [sentences] if isinstance(sentences, str) else list(sentences)
        settings = self._settings()
        if settings.is_multi_vector:
            text_prompt = settings.prompt(prompt, prompt_name)
            of_role = multi_vector_task(self.roberta, settings, task, text_prompt, self._max_length)
            vectors = self._run(of_role, texts, show_progress_bar, of_role.max_length)
        elif task is not None:
            raise InputError(f"this model makes the same vectors of queries and documents; leave out task={task!r:.80}")
        else:
            prepared = SentenceEmbedding(settings, settings.prompt(prompt, prompt_name)).prepared
            vectors = self._run(_TOKEN_OUTPUTS["colbert_vecs"], [prepared(text) for text in texts], show_progress_bar)
        if normalize_embeddings:
            vectors = [normalized(each) for each in vectors]
        return vectors[0] if isinstance(sentences, str) else vectors

    def similarity(self, embeddings1: Any, embeddings2: Any) -> npt.NDArray[Any]:
        """Compares all vectors of one set with all of another.

        Args:
          embeddings1, embeddings2: [n, size] and [m, size], of numpy, JAX or scipy.sparse; one vector, [size], is a set
            of one. Of a multi-vector encoder lists of n and m arrays [tokens, size]; one array is a list of one.

        Returns:
          [n, m]: the cosine, the dot product, or the negative Euclidean or Manhattan distance (similarity_fn_name). Of
          a multi-vector encoder the score of `maxsim`, or its mean for "meanmaxsim".
        """
        if self._embedding.is_multi_vector:
            first, second = _arrays_of_texts(embeddings1), _arrays_of_texts(embeddings2)
            return maxsim(first, second, mean=self._settings().similarity == "meanmaxsim")
        return similarities(embeddings1, embeddings2, self.similarity_fn_name)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> npt.NDArray[Any]:
        """Compares each vector with the one at the same place in another set: [n], with the values of `similarity`.

        Of a multi-vector encoder, each text's vectors with those of the text at the same place.

        Raises:
          InputError: the numbers of texts differ.
        """
        if self._embedding.is_multi_vector:
            first, second = _arrays_of_texts(embeddings1), _arrays_of_texts(embeddings2)
            if len(first) != len(second):
                raise InputError(f"similarity_pairwise takes as many texts twice, got {len(first)} and {len(second)}")
            scores = [self.similarity(a, b)[0, 0] for a, b in zip(first, second, strict=True)]
            return np.asarray(scores, np.float32 if not scores else None)
        return pairwise_similarities(embeddings1, embeddings2, self.similarity_fn_name)

    def save(self, path: PathLike) -> None:
        """Saves the model, with the settings as they are now, as a converted directory.

        SentenceEncoder and roberta_flax.load read it; `roberta-flax export --to sentence-transformers` converts it to
        a directory of sentence-transformers. Errors are those of Roberta.save.
        """
        _save(self.roberta, path, self._max_length, embedding=self._settings())


class CrossEncoder(_Encoder):
    """Scores pairs of texts, as sentence_transformers.CrossEncoder does.

    >>> model = CrossEncoder("hf:BAAI/bge-reranker-v2-m3")
    >>> model.predict([("who wrote Faust", "Goethe wrote Faust."), ("who wrote Faust", "Faust is a fist.")])
    >>> model.rank("who wrote Faust", documents, top_k=5, return_documents=True)

    The activation is the one that the model's repository names; otherwise the sigmoid for a head with one output, and
    none for a head with several.

    Attributes:
      roberta: the model.
      activation_fn: the name of the activation, one of nn.sentence.ACTIVATIONS, or a function of an array.
    """

    def __init__(
        self,
        model_name_or_path: PathLike | Roberta,
        *,
        head: str | None = None,
        max_length: int | None = None,
        activation_fn: str | Callable[[Any], Any] | None = None,
        **options: Any,
    ) -> None:
        """Loads the model, and places its parameters on the devices.

        Args:
          model_name_or_path: as in SentenceEncoder.
          head: the name of the sentence head; by default the only one.
          max_length: the maximum length of a pair in tokens; by default the repository's.
          activation_fn: in place of the repository's (see the class).
          options: as in SentenceEncoder.

        Raises:
          InputError: an option is invalid, or the model has no sentence head or several.
          CheckpointError, DownloadError: as roberta_flax.load.
        """
        super().__init__(model_name_or_path, options)
        self.head = self._head(head)
        if max_length is not None:
            self.max_length = max_length
        scoring = self.roberta.usage.scoring_of(self.head.name)
        named = None if scoring is None else scoring.activation
        default = named or ("sigmoid" if self.num_labels == 1 else "identity")
        self.activation_fn = default if activation_fn is None else activation_fn

    def __repr__(self) -> str:
        return (
            f"<CrossEncoder: head {self.head.name!r}, num_labels {self.num_labels}, max_length {self.max_length}, "
            f"activation {self.activation_fn}; {self.roberta!r}>"
        )

    def _head(self, name: str | None) -> HeadConfig:
        heads = [head for head in self.roberta.config.heads if head.kind == "sentence"]
        if name is None and len(heads) != 1:
            names = ", ".join(head.name for head in heads) or "none"
            raise InputError(f"a cross-encoder has one sentence head, but this model's are: {names}; choose with head")
        return heads[0] if name is None else self.roberta.config.head(name)

    @property
    def num_labels(self) -> int:
        """The number of outputs."""
        return self.head.num_classes

    @property
    def max_length(self) -> int:
        """The maximum length of a pair in tokens, special tokens included. Longer pairs are truncated."""
        return self._max_length

    @max_length.setter
    def max_length(self, value: int) -> None:
        self._predictor.with_task(Embed("mean"), max_length=value)  # which checks it
        self._max_length = value

    def predict(
        self,
        sentences: Sequence[Sequence[str]] | Sequence[str],
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        activation_fn: str | Callable[[Any], Any] | None = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
    ) -> Any:
        """Scores each pair of texts.

        Args:
          sentences: pairs of texts, or one pair.
          batch_size, show_progress_bar, convert_to_numpy, convert_to_tensor: as in SentenceEncoder.encode.
          activation_fn: the activation of this call.
          apply_softmax: whether to apply the softmax, after the activation, to the scores of a head with several
            outputs.

        Returns:
          float32 [pairs] from a head with one output, [pairs, labels] from one with several; without the first axis for
          one pair.

        Raises:
          InputError: an input is not a pair of texts, or an option is invalid.
        """
        if batch_size is not None:
            require_positive(batch_size=batch_size)
        single = isinstance(sentences, list | tuple) and bool(sentences) and isinstance(sentences[0], str)
        pairs: list[Any] = [sentences] if single else list(sentences)
        for number, pair in enumerate(pairs):
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise InputError(f"input {number}: a cross-encoder takes pairs of texts, got {pair!r:.60}")
        activation = self.activation_fn if activation_fn is None else activation_fn
        named = activation if isinstance(activation, str) else "identity"
        found = self._run(SentenceScores(self.head.name, named), pairs, show_progress_bar)
        scores = np.stack(found) if found else np.empty((0, self.num_labels), np.float32)
        if callable(activation):
            scores = np.asarray(activation(scores))
        if apply_softmax:
            if self.num_labels == 1:
                raise InputError("apply_softmax is for a head with several outputs; this one has one")
            scores = jax.device_get(ACTIVATIONS["softmax"](jax.device_put(scores)))
        if self.num_labels == 1:
            scores = scores[:, 0]
        return _converted(scores, single, convert_to_numpy, convert_to_tensor)

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = False,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        activation_fn: str | Callable[[Any], Any] | None = None,
    ) -> list[dict[str, Any]]:
        """Ranks documents by their scores with a query.

        Args:
          query: the query.
          documents: the documents.
          top_k: how many to return; by default all.
          return_documents: whether to return the documents too.
          batch_size, show_progress_bar, activation_fn: as in `predict`.

        Returns:
          For each document, the best first, a dict with "corpus_id", its index in `documents`; "score"; and "text" if
          `return_documents`.

        Raises:
          InputError: the head has several outputs, or as in `predict`.
        """
        if self.num_labels != 1:
            raise InputError(f"rank() takes a head with one output; this one has {self.num_labels}: use predict()")
        documents = list(documents)
        scores = self.predict([(query, text) for text in documents], batch_size, show_progress_bar, activation_fn)
        results = [
            {"corpus_id": i, "score": score, **({"text": documents[i]} if return_documents else {})}
            for i, score in enumerate(scores)
        ]
        return sorted(results, key=lambda result: result["score"], reverse=True)[:top_k]

    def save(self, path: PathLike) -> None:
        """Saves the model, with the settings as they are now, as a converted directory (see SentenceEncoder.save).

        Raises:
          InputError: the activation is a function without a name in nn.sentence.ACTIVATIONS; or as in Roberta.save.
        """
        if not isinstance(self.activation_fn, str):
            raise InputError("a function cannot be saved; set activation_fn to a name first")
        known = self.roberta.usage.scoring_of(self.head.name)
        scoring = Scoring(self.head.name, self.activation_fn, known is not None and known.is_regression)
        _save(self.roberta, path, self._max_length, scoring=scoring)


def _save(roberta: Roberta, path: PathLike, max_length: int, **settings: Any) -> None:
    usage: Usage = dataclasses.replace(roberta.usage, max_length=max_length, **settings)
    saved = Roberta(roberta.config, roberta.params, roberta.tokenizer, numerics=roberta.numerics, usage=usage)
    saved.save(path)


def maxsim(queries: Sequence[Any], documents: Sequence[Any], *, mean: bool = False) -> npt.NDArray[Any]:
    """Scores documents by late interaction (Khattab and Zaharia, 2020, section 3.3).

    The score is the sum, over a query's vectors, of the largest dot product with any of the document's vectors.

    Args:
      queries: n arrays [tokens, size], of SentenceEncoder.encode_multi_vector.
      documents: m arrays [tokens, size].
      mean: whether to divide by the number of the query's vectors, as BGE-M3's own library does (colbert_score).

    Returns:
      [n, m].

    Raises:
      InputError: an array is not [tokens, size] with at least one token, or the sizes differ.
    """
    first, second = [np.asarray(each) for each in queries], [np.asarray(each) for each in documents]
    shapes = {each.shape for each in (*first, *second)}
    if any(len(shape) != 2 or not shape[0] for shape in shapes) or len({shape[1] for shape in shapes}) > 1:
        raise InputError(f"maxsim takes lists of arrays [tokens, size] of one size, got {sorted(shapes)!r:.80}")
    scores = np.zeros((len(first), len(second)), np.result_type(np.float32, *first, *second))
    for row, query in zip(scores, first, strict=True):
        for column, document in enumerate(second):
            highest = (query @ document.T).max(axis=1)
            row[column] = highest.mean() if mean else highest.sum()
    return scores


def _arrays_of_texts(vectors: Any) -> list[Any]:
    """The arrays [tokens, size] of several texts, of one text's array or of a sequence of them."""
    return [vectors] if getattr(vectors, "ndim", None) == 2 else list(vectors)


def _highest(weights: Mapping[int, float], count: int | None) -> Mapping[int, float]:
    return weights if count is None else dict(sorted(weights.items(), key=lambda item: -item[1])[:count])


def _sparse_rows(
    weights: Sequence[Mapping[int, float]], vocab_size: int, dtype: np.dtype[Any]
) -> scipy.sparse.csr_array:
    lengths = [0, *(len(each) for each in weights)]
    ids = np.fromiter((i for each in weights for i in each), np.int32)
    values = np.fromiter((value for each in weights for value in each.values()), dtype)
    rows = scipy.sparse.csr_array((values, ids, np.cumsum(lengths)), shape=(len(weights), vocab_size))
    rows.sort_indices()
    return rows


def quantize_embeddings(embeddings: npt.NDArray[Any], precision: Precision) -> npt.NDArray[Any]:
    """Quantizes vectors, [n, size], as sentence_transformers.quantize_embeddings does.

    Returns:
      int8 or uint8, [n, size] by ranges over these vectors; or for binary and ubinary [n, size / 8], a bit for each
      value that is positive.

    Raises:
      InputError: there are too few vectors for a range, or the size is not a multiple of 8.
    """
    if precision in ("int8", "uint8"):
        if len(embeddings) < 2:
            raise InputError(f"{precision} takes its ranges from the vectors of one call: give at least two texts")
        if len(embeddings) < _FEW:
            logger.warning("the ranges of %s come from %d vectors only", precision, len(embeddings))
        starts = embeddings.min(axis=0)
        steps = (embeddings.max(axis=0) - starts) / 255
        levels = (embeddings - starts) / np.where(steps > 0, steps, 1)
        found: npt.NDArray[Any] = levels.astype(np.uint8) if precision == "uint8" else (levels - 128).astype(np.int8)
        return found
    if embeddings.shape[1] % 8:
        raise InputError(f"{precision} vectors pack 8 values into a byte; these have {embeddings.shape[1]} values")
    packed = np.packbits(embeddings > 0, axis=1)
    return packed if precision == "ubinary" else (packed.astype(np.int16) - 128).astype(np.int8)


def _converted(results: npt.NDArray[Any], single: bool, as_numpy: bool, as_jax: bool) -> Any:
    if single:
        return jax.device_put(results[0]) if as_jax else results[0]
    if as_jax:
        return jax.device_put(results)
    return results if as_numpy else list(results)


def _with_progress(results: Iterator[Any], total: int) -> Iterable[Any]:
    """The results, with a progress bar on stderr."""
    from rich.console import Console
    from rich.progress import track

    return track(results, "Texts", total, console=Console(stderr=True))
