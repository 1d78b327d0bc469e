"""load(), which loads a model, and Roberta, the object that it returns: a thin interface over the other modules.

The methods of Roberta have the names and meanings of those of fairseq's RobertaHubInterface.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, overload

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from roberta_flax.checkpoint import converted
from roberta_flax.checkpoint import usage as usages
from roberta_flax.checkpoint.tensors import NonFinite
from roberta_flax.checkpoint.usage import Usage
from roberta_flax.convert.cache import resolve
from roberta_flax.datasets.readers import TrainedOn
from roberta_flax.errors import CheckpointError, InputError, did_you_mean, shortened
from roberta_flax.files import PathLike
from roberta_flax.nn import forward
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from roberta_flax.nn.forward import Params
from roberta_flax.nn.model import Head
from roberta_flax.nn.numerics import DTypeLike, Numerics, PrecisionLike
from roberta_flax.nn.quantize import check_method, is_quantized
from roberta_flax.nn.quantize import quantize as quantized
from roberta_flax.nn.tree import flatten, to_dict
from roberta_flax.remote import called, is_url, to_path
from roberta_flax.tasks.base import check_finite
from roberta_flax.tasks.classify import predicted_labels
from roberta_flax.tasks.fill_mask import check_topk, encode_masked, filled_texts
from roberta_flax.text import alignment, batching, words
from roberta_flax.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from jaxtyping import Array, Float

logger = logging.getLogger(__name__)

_MAX_NAMED = 5  # parameters named in a warning
# Attributes that scripts use of fairseq's hub interface and of torch's modules, and what there is in their place
_LOADED_SO = "give load() what to compute with: load(..., dtype=...)"
_ON_DEVICES = "JAX computes on its default device; choose another with JAX_PLATFORMS or jax.default_device"
_IN_PLACE_OF = {
    "model": "the network is functions of roberta.params: roberta_flax.forward, or RobertaModel as a Flax NNX module",
    "task": "roberta.tokenizer has the ids: vocab_size, bos_id, pad_id, eos_id, unk_id, mask_id",
    "bpe": "use roberta.tokenizer: encode_text(text) encodes without special tokens, and decode(ids) decodes",
    "args": "use roberta.config",
    "cfg": "use roberta.config",
    "parameters": "use roberta.params, a tree of arrays",
    "named_parameters": "use roberta.params, a tree of arrays",
    "state_dict": "use roberta.params, a tree of arrays, or save()",
    "load_state_dict": "assign a tree of arrays to roberta.params",
    **dict.fromkeys(("half", "float", "bfloat16", "double"), _LOADED_SO),
    **dict.fromkeys(("cuda", "cpu", "to", "device"), _ON_DEVICES),
    "forward": "use extract_features() or predict(), or the functions of roberta_flax.forward",
    "generate": "an encoder does not generate; fill_mask() fills a mask",
    "predict_proba": "use predict(), which gives log-probabilities",
    "embed": "use extract_features(), or roberta_flax.SentenceEncoder",
}
_DROPOUT_KEY_LOCK = threading.Lock()  # of all models: a lock of its own would keep a model from being pickled


@dataclass(frozen=True)
class WordFeatures:
    """The words of a text and their features.

    Attributes:
      words: the words, with `<s>` first and `</s>` last, or the special tokens that take their places.
      features: [words, hidden] from the last layer, or [layers + 1, words, hidden] from the embedding and all layers.
    """

    words: tuple[str, ...]
    features: Float[Array, "words hidden"] | Float[Array, "layers words hidden"]


class Roberta:
    """A RoBERTa model with its tokenizer.

    Token ids are passed as one sequence, [time], or as rows of the same length, [batch, time]: a list, or a numpy or
    JAX array. Results are JAX arrays. A model starts in eval mode, without dropout; fairseq's starts in train mode.

    Attributes:
      config: sizes and heads of the network.
      params: the parameter tree, nested dicts of arrays (docs/parameters.md).
      tokenizer: the tokenizer.
      trained_on: what one of the heads was fine-tuned on (datasets.readers.TrainedOn), if that is known. evaluate takes
        columns, classes and the maximum length from it.
      numerics: how the model computes: dtype, precision, attention implementation.
      usage: how the model's repository says that it is used: pooling, prompts, activation of scores.
      source: the name or path that it was loaded from, if it was.
    """

    def __init__(
        self,
        config: RobertaConfig,
        params: Params,
        tokenizer: Tokenizer,
        *,
        trained_on: TrainedOn | None = None,
        numerics: Numerics = Numerics(),
        usage: Usage = Usage(),
        source: str | None = None,
    ) -> None:
        usage.check(config)
        if tokenizer.vocab_size != config.vocab_size:
            raise CheckpointError(
                f"the tokenizer has {tokenizer.vocab_size} ids, but the model has {config.vocab_size}; use the "
                "tokenizer that belongs to the model"
            )
        self.config = config
        self.params = params
        self.tokenizer = tokenizer
        self.trained_on = trained_on
        self.numerics = numerics
        self.usage = usage
        self.source = source
        self._dropout_key: jax.Array | None = None

    def __repr__(self) -> str:
        leaves = jax.tree.leaves(self.params)
        size = sum(leaf.size for leaf in leaves)
        stored = ", ".join(dict.fromkeys(str(leaf.dtype) for leaf in leaves))
        heads = ", ".join(f"{head.name} ({head.num_classes})" for head in self.config.heads) or "none"
        devices = {device.platform for leaf in leaves if isinstance(leaf, jax.Array) for device in leaf.devices()}
        where = f" on {', '.join(sorted(devices))}" if devices else ""
        return (
            f"<Roberta {shortened(self.source or '', 100)!r}: {self.config.num_layers} layers of "
            f"{self.config.hidden_size}, {size / 1e6:.1f} M parameters in {stored}, {self.max_positions} positions; "
            f"heads: {heads}; computes in {self.numerics.dtype}{where}{', training' if self.training else ''}>"
        )

    if not TYPE_CHECKING:  # which would let every name pass

        def __getattr__(self, name: str) -> Any:
            """Says what there is in place of an attribute of fairseq's or torch's models, or of a misspelled one."""
            if name in _IN_PLACE_OF:
                raise AttributeError(f"Roberta has no {name!r}, as other libraries' models have; {_IN_PLACE_OF[name]}")
            close = "" if name.startswith("_") else did_you_mean(name, dir(type(self)))
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute {name!r}{close}", name=name, obj=self
            )

    def encode(self, text: str, *more: str, no_separator: bool = False) -> npt.NDArray[np.int32]:
        """Encodes a sentence, or several, as token ids, int32 [length]. See Tokenizer.encode."""
        return self.tokenizer.encode(text, *more, no_separator=no_separator)

    def decode(self, tokens: npt.ArrayLike) -> str | list[str]:
        """Decodes one sequence of token ids to its text, or to a list of several texts. See Tokenizer.decode."""
        return self.tokenizer.decode(tokens)

    @overload
    def extract_features(
        self, tokens: npt.ArrayLike, return_all_hiddens: Literal[False] = False
    ) -> Float[Array, "batch time hidden"]: ...
    @overload
    def extract_features(
        self, tokens: npt.ArrayLike, return_all_hiddens: Literal[True]
    ) -> list[Float[Array, "batch time hidden"]]: ...
    def extract_features(self, tokens: npt.ArrayLike, return_all_hiddens: bool = False) -> Any:
        """Extracts the features of each token from the last layer or, with return_all_hiddens, from all layers.

        A text, or a list of texts or of pairs of them, stands for its token ids, padded on the right to one length.

        Returns:
          [batch, time, hidden] in the compute dtype; with return_all_hiddens, a list of num_layers + 1 such arrays, the
          embedding output first.

        Raises:
          InputError: the token ids are invalid (see text.batching.check_tokens).
        """
        padded, (batch, time) = self._padded(tokens)
        if return_all_hiddens:
            states = self._computed(forward.hidden_states, padded, key=self._next_key())
            return [_first(state, (batch, time)) for state in states]
        return _first(self._computed(forward.features, padded, key=self._next_key()), (batch, time))

    def word_features(
        self, text: str, spans: npt.ArrayLike | None = None, return_all_hiddens: bool = False
    ) -> WordFeatures:
        """Extracts the features of each word of a text, as split by spaCy's English tokenizer or by `spans`.

        The features of a token that covers several words are divided among them (see roberta_flax.text.alignment).

        Args:
          text: the text.
          spans: [words, 2], the begin (inclusive) and the end (exclusive) of each word in characters, in order. By
            default spaCy finds the words.
          return_all_hiddens: whether to return the features from the embedding and all layers, not just the last.

        Raises:
          InputError: the text is not a str or too long; the spans are out of order or outside the text; or spaCy is not
            installed.
        """
        borders, features = self._word_features(text, spans, return_all_hiddens)
        before, after = self._special_words()
        return WordFeatures((*before, *(text[begin:end] for begin, end in borders), *after), jax.device_put(features))

    def extract_features_aligned_to_words(self, sentence: str, return_all_hiddens: bool = False) -> Any:
        """Extracts the features of each word of a sentence, as split by spaCy's English tokenizer, as a spaCy Doc.

        The result is that of fairseq's hub, with `<s>` and `</s>` as the first and last word. (fairseq fails if a
        character is encoded as several tokens, at most double spaces, and with return_all_hiddens.)

        Returns:
          spacy.tokens.Doc. The `.vector` of each token is a numpy array, as spaCy's own methods need it: [hidden], or
          with return_all_hiddens [layers + 1, hidden], in float32, or in float64 if that is the compute dtype.

        Raises:
          InputError: as `word_features`.
        """
        borders, features = self._word_features(sentence, None, return_all_hiddens)
        before, after = self._special_words()
        texts = [*before, *(sentence[begin:end] for begin, end in borders), *after]
        spaces_inside = [sentence[end : end + 1] == " " for _, end in borders[:-1]]
        spaces = [*[True] * len(before), *spaces_inside, *([True] if borders else []), *[False] * len(after)]
        return words.make_doc(texts, spaces, features)

    def _special_words(self) -> tuple[list[str], list[str]]:
        """The special tokens before and after a text."""
        ids = self.tokenizer.join([[]]).tolist()
        before = self.tokenizer.special_lengths(1)[0]
        texts = [self.tokenizer.token_text(token_id) for token_id in ids]
        return texts[:before], texts[before:]

    def _word_features(
        self, text: str, spans: npt.ArrayLike | None, return_all_hiddens: bool
    ) -> tuple[list[tuple[int, int]], npt.NDArray[Any]]:
        """The begin and end of each word, and the features, as in `word_features`."""
        token_spans = self.tokenizer.spans(text)
        ids = self.encode(text)
        outputs = jnp.stack(self.extract_features(ids, True)) if return_all_hiddens else self.extract_features(ids)
        word_spans = words.spans(text) if spans is None else alignment.check_spans(spans, text)
        weights = alignment.word_weights(word_spans, token_spans)
        before = self.tokenizer.special_lengths(1)[0]
        features = alignment.features_of_words(jax.device_get(outputs).squeeze(-3), weights, before)
        return [(begin, end) for begin, end in word_spans.tolist()], features

    def predict(
        self, head: str, tokens: npt.ArrayLike, return_logits: bool = False
    ) -> Float[Array, "batch classes"] | Float[Array, "batch time classes"]:
        """Predicts with a head: log-probabilities for each row or, with return_logits, the head's outputs.

        A text, or a list of texts or of pairs of them, stands for its token ids, padded on the right to one length.

        The result depends on the head's kind and problem (see HeadConfig):
          sentence  [batch, classes]: log-probabilities of the classes, independent of each other in a multi-label head.
            A regression returns its values; fairseq returns the logarithm of a softmax over one number, zero.
          token     [batch, time, classes]: log-probabilities of the classes of each token.
          span      [batch, time, 2]: log-probabilities that each token is the start, and the end, of the answer.
          choice    [batch, choices] from tokens [batch, choices, time], or [1, choices] from [choices, time]:
            log-probabilities of the choices. A row of padding alone is no choice, and gets -inf.
          pooler    [batch, hidden]: the pooled features.

        Raises:
          InputError: the model has no such head, or the token ids are invalid.
        """
        config = self.config.head(head)
        choices = None
        if config.kind == "choice":
            tokens, choices = _flatten_choices(tokens)
        padded, (batch, time) = self._padded(tokens)
        function = forward.head_logits if return_logits else forward.head_log_probs
        predicted: Array = self._computed(function, padded, head=head, key=self._next_key())
        if choices is not None:
            is_choice = jax.device_put((padded[:batch] != self.config.pad_id).any(axis=-1).reshape(-1, choices))
            scores: Array = _of_choices(_first(predicted, (batch,)), is_choice, as_log_probs=not return_logits)
            return scores
        first: Array = _first(predicted, (batch,) if predicted.ndim == 2 else (batch, time))
        return first

    def predict_labels(self, head: str, tokens: npt.ArrayLike) -> list[Any]:
        """Predicts with a sentence or token head, and returns the names of the predicted classes of each row.

        The names are the head's labels or, if it has none, the indices of the classes as text.

        Returns:
          For each row, from a sentence head the name of the most likely class, or from a multi-label one a list of all
          classes with a probability over one half; from a token head a list with the most likely class of each token.

        Raises:
          InputError: as `predict`; the head has no classes (a regression, span, choice or pooler head); or its outputs
            are NaN or infinite.
        """
        config = self.config.head(head)
        if config.kind not in ("sentence", "token") or config.problem == "regression":
            what = "is a regression" if config.kind == "sentence" else f"is of kind {config.kind}"
            raise InputError(f"head {head!r} {what} and has no classes; use predict()")
        scores = jax.device_get(self.predict(head, tokens))
        check_finite(scores)
        return [predicted_labels(config, row) for row in scores]

    def register_classification_head(
        self, name: str, num_classes: int, inner_dim: int | None = None, *, seed: int | None = None
    ) -> None:
        """Adds a newly initialized sentence head, which replaces one of the same name.

        Weights and biases are initialized as in fairseq, uniformly within 1 / sqrt(inputs). A head with one class is a
        regression.

        Args:
          name: name of the head, for `predict`.
          num_classes: number of outputs.
          inner_dim: width of the hidden layer; by default hidden_size.
          seed: seed of the initialization; by default a new one for each call.

        Raises:
          InputError: the name is empty or contains a dot, or a size is not a positive integer.
        """
        head = HeadConfig(name, num_classes, self.config.hidden_size if inner_dim is None else inner_dim)
        seed = int.from_bytes(os.urandom(4)) if seed is None else seed
        param_dtype = jax.tree.leaves(self.params)[0].dtype
        params = Head.init_params(self.config, head, Numerics(param_dtype=param_dtype), jax.random.key(seed))
        self.config = self.config.with_head(head)
        self.params = {**self.params, "heads": {**self.params.get("heads", {}), name: params}}

    @overload
    def fill_mask(
        self, masked_input: str, topk: int = 5, *, top_k: int | None = None
    ) -> list[tuple[str, float, str]]: ...
    @overload
    def fill_mask(
        self, masked_input: list[str], topk: int = 5, *, top_k: int | None = None
    ) -> list[list[tuple[str, float, str]]]: ...
    def fill_mask(self, masked_input: str | list[str], topk: int = 5, *, top_k: int | None = None) -> Any:
        """Finds the most likely tokens for the one `<mask>` in a text. Never uses dropout.

        As in fairseq, whitespace before `<mask>` and at the end of the text is removed before the model sees it, and a
        space before `<mask>` is replaced together with it, because a token includes the space before it.

        Args:
          masked_input: a text with exactly one `<mask>`, or a list of them.
          topk: how many tokens to find.
          top_k: the same, as Transformers spells it.

        Returns:
          (filled text, probability, token's text) for each token, the most likely first. There may be fewer than topk,
          because `<s>`, `</s>` and `<pad>`, which have no text, are left out. Of a list of texts, a list of such lists.

        Raises:
          InputError: the text does not have exactly one `<mask>` or is too long, topk is not from 1 to the size of the
            vocabulary, or the probabilities are NaN.
        """
        topk = topk if top_k is None else top_k
        check_topk(topk, self.config)
        if isinstance(masked_input, list):
            return [self.fill_mask(text, topk) for text in masked_input]
        tokens, position = encode_masked(self.tokenizer, masked_input)
        padded, _ = self._padded(tokens)
        positions = np.full((len(padded), 1), position, np.int32)
        probabilities, ids = jax.device_get(self._computed(forward.top_tokens, padded, positions, topk=topk))
        check_finite(probabilities)
        return filled_texts(self.tokenizer, masked_input, probabilities[0, 0], ids[0, 0])

    def disambiguate_pronoun(
        self,
        sentence: str,
        *,
        candidates: Sequence[str] | None = None,
        nlp: str | Callable[[str], Any] | None = None,
    ) -> bool | str:
        """Finds the noun phrase that a pronoun refers to, with roberta.large.wsc. Never uses dropout.

        >>> roberta.disambiguate_pronoun("The _trophy_ would not fit in the suitcase because [it] was too big.")
        True
        >>> roberta.disambiguate_pronoun("The trophy would not fit in the suitcase because [it] was too big.")
        'The trophy'

        Args:
          sentence: a sentence with the pronoun in [brackets] and, optionally, a query between _underscores_.
          candidates: phrases that the pronoun may refer to; by default the noun phrases that spaCy finds in the
            sentence.
          nlp: the spaCy pipeline that finds them, or its name; by default en_core_web_lg, as in fairseq.

        Returns:
          With a query, whether no candidate has a higher score; otherwise the candidate with the highest score.
          roberta_flax.tasks.pronouns.disambiguate also returns the scores.

        Raises:
          InputError: as roberta_flax.tasks.pronouns.disambiguate.
        """
        from roberta_flax.tasks import pronouns

        return pronouns.disambiguate(self, sentence, candidates, nlp).answer

    def save(self, directory: PathLike, *, dtype: DTypeLike | None = None) -> None:
        """Saves the model, with its heads and tokenizer, as a directory that load() accepts.

        `roberta-flax export` converts the directory to a checkpoint for fairseq or Transformers. Values are kept bit
        for bit, unless another dtype is given.

        Args:
          directory: the directory to write. It must not exist, and appears only when it is complete.
          dtype: dtype to store the parameters in: float32, bfloat16, float16 or float64; by default their own.

        Raises:
          InputError: the parameters do not fit the configuration or are quantized, or the dtype is another one.
          CheckpointError: the directory exists or cannot be written.
        """
        if is_quantized(self.params):
            raise InputError(
                "quantized parameters cannot be saved; save the model without quantize=, and load it with quantize="
            )
        not_finite = converted.save(
            to_path(directory),
            self.config,
            self.params,
            self.tokenizer,
            dtype,
            trained_on=self.trained_on,
            usage=self.usage,
        )
        for name, counts in not_finite.items():
            logger.warning("%s: %s has values that are not finite: %s", directory, name, counts)

    def eval(self) -> Self:
        """Turns dropout and LayerDrop off, and returns the object itself."""
        self._dropout_key = None
        return self

    def train(self, mode: bool = True, *, seed: int = 0) -> Self:
        """Turns dropout and LayerDrop on, or off with mode=False, and returns the object itself.

        Every call of extract_features and predict then draws new random numbers, in a sequence that `seed` determines.
        """
        with jax.transfer_guard("allow"):  # the seed goes to the device
            self._dropout_key = jax.random.key(seed) if mode else None
        return self

    @property
    def params(self) -> Params:
        """The parameter tree: nested dicts of arrays with string keys."""
        return self._params

    @params.setter
    def params(self, params: Params) -> None:
        self._params = to_dict(params)

    @property
    def training(self) -> bool:
        """Whether dropout and LayerDrop are on."""
        return self._dropout_key is not None

    @property
    def max_positions(self) -> int:
        """The maximum length of a sequence, in tokens."""
        return self.config.max_positions

    def _padded(self, tokens: npt.ArrayLike) -> tuple[npt.NDArray[np.int32], tuple[int, int]]:
        ids = batching.check_tokens(self._encoded(tokens), self.config.vocab_size, self.config.max_positions)
        return batching.pad_to_bucket(ids, self.config.pad_id, self.config.max_positions), (
            ids.shape[0],
            ids.shape[1],
        )

    def _encoded(self, tokens: Any) -> Any:
        """The token ids of a text, or of a list of texts or of tuples of texts; anything else is token ids already."""
        if isinstance(tokens, str):
            return self.encode(tokens)
        if isinstance(tokens, list | tuple) and tokens and all(isinstance(each, str) for each in tokens):
            return batching.collate_tokens([self.encode(text) for text in tokens], self.config.pad_id)
        pairs = isinstance(tokens, list) and all(isinstance(each, tuple) and each for each in tokens)
        if pairs and tokens and all(isinstance(text, str) for pair in tokens for text in pair):
            return batching.collate_tokens([self.encode(*pair) for pair in tokens], self.config.pad_id)
        return tokens

    def _computed(self, function: Callable[..., Any], *arrays: npt.NDArray[Any], **options: Any) -> Any:
        """Computes a function of nn.forward for arrays of the host, which are sent as jax.transfer_guard asks."""
        return function(self.params, *jax.device_put(arrays), config=self.config, numerics=self.numerics, **options)

    def _next_key(self) -> jax.Array | None:
        with _DROPOUT_KEY_LOCK:  # threads that share a model draw different keys
            if self._dropout_key is None:
                return None
            keys: tuple[jax.Array, jax.Array] = tuple(jax.random.split(self._dropout_key))
            self._dropout_key = keys[0]
            return keys[1]


def load(
    name_or_path: PathLike,
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    precision: PrecisionLike = None,
    attention: str | None = None,
    quantize: str | None = None,
    cache_dir: PathLike | None = None,
    sha256: str | None = None,
    checkpoint_file: str = "model.pt",
    bpe_dir: PathLike | None = None,
) -> Roberta:
    """Loads a RoBERTa model: a released one by name, a checkpoint of fairseq or Transformers, or a converted directory.

    The first time, a released model is downloaded and a checkpoint converted; later loads read it from the cache.
    PyTorch is not needed. If parameters are NaN or infinite, or become so in param_dtype or in dtype, a warning names
    them.

    Args:
      name_or_path: a released name of checkpoint.download.MODELS, such as "roberta.large.mnli"; a fairseq directory, a
        .tar.gz of one, or a checkpoint file; a directory saved by Transformers or PEFT, or "hf:org/name" for one on the
        Hugging Face Hub; or a directory made by `roberta-flax convert`. A path may be a URL, such as gs://bucket/model.
      dtype: compute dtype: float32, bfloat16, float16, or float64 with jax_enable_x64.
      param_dtype: dtype of the parameters in memory.
      precision: precision of matrix products, as in jax.lax.Precision. Use "highest" for float32 parity on TPU and GPU.
      attention: attention implementation, one of nn.attention.IMPLEMENTATIONS; by default the backend's.
      quantize: "int8" to compute the layers' matrix products in int8 (see roberta_flax.nn.quantize).
      cache_dir: directory of downloads and conversions; by default ROBERTA_FLAX_CACHE, then the user's cache directory.
      sha256: expected SHA-256 of the archive or checkpoint, in hex.
      checkpoint_file: name of the checkpoint in a fairseq directory or archive.
      bpe_dir: directory of the tokenizer's files, if they are neither beside the checkpoint nor GPT-2's.

    Raises:
      InputError: dtype, precision, attention or quantize has an unknown value, or bpe_dir is not a directory.
      CheckpointError: the files are not a RoBERTa model, are damaged, or are incomplete.
      DownloadError: a file could not be downloaded. The message says which file to put where.
    """
    numerics = Numerics(dtype, precision=precision, attention=attention)
    if attention == "cudnn" and jax.default_backend() != "gpu":
        raise InputError(f"attention 'cudnn' needs an NVIDIA GPU, but JAX's backend is {jax.default_backend()}")
    if attention == "flash" and jax.default_backend() != "tpu":
        raise InputError(f"attention 'flash' needs a TPU, but JAX's backend is {jax.default_backend()}")
    parameters = Numerics(param_dtype=param_dtype).param_dtype
    if quantize is not None:
        check_method(quantize)
    directory = resolve(
        name_or_path, cache_dir=cache_dir, sha256=sha256, checkpoint_file=checkpoint_file, bpe_dir=bpe_dir
    )
    with called(directory, to_path(name_or_path) if is_url(name_or_path) else directory):
        config, params = converted.read(directory, parameters)
    _warn_if_not_finite(directory, params, numerics.dtype)
    if quantize is not None:
        params = quantized(params, quantize)
    tokenizer = Tokenizer.from_directory(directory)
    return Roberta(
        config,
        params,
        tokenizer,
        trained_on=converted.read_trained_on(directory),
        numerics=numerics,
        usage=usages.read(directory, config),
        source=str(name_or_path),
    )


def load_tokenizer(
    name_or_path: PathLike,
    *,
    cache_dir: PathLike | None = None,
    checkpoint_file: str = "model.pt",
    bpe_dir: PathLike | None = None,
) -> Tokenizer:
    """Loads the tokenizer of a model, without its parameters. Arguments and errors are those of `load`."""
    directory = resolve(name_or_path, cache_dir=cache_dir, checkpoint_file=checkpoint_file, bpe_dir=bpe_dir)
    converted.check_files(directory)
    return Tokenizer.from_directory(directory)


@partial(jax.jit, static_argnames="sizes")
def _first(x: Array, sizes: tuple[int, ...]) -> Array:
    """The first elements along the first axes. (Outside of jit, x[:2] sends its bounds to the device.)"""
    return jax.lax.slice(x, [0] * x.ndim, [*sizes, *x.shape[len(sizes) :]])


@partial(jax.jit, static_argnames="as_log_probs")
def _of_choices(outputs: Array, is_choice: Array, *, as_log_probs: bool) -> Array:
    """The scores of choices, or their log-probabilities, [batch, choices], of a choice head's outputs for each row."""
    scores = jnp.where(is_choice, outputs.reshape(is_choice.shape), -jnp.inf)
    return jax.nn.log_softmax(scores, axis=-1) if as_log_probs else scores


def _warn_if_not_finite(directory: Path, params: Params, dtype: np.dtype[Any]) -> None:
    """Logs one warning if parameters are NaN or infinite, in memory or in the dtype that products take them in."""
    leaves = flatten(params)
    operands = flatten(jax.eval_shape(partial(forward.operands, dtype=dtype), params))
    dtypes = {  # the narrower one of each parameter
        name: min(leaf.dtype, operands[name].dtype, key=lambda dtype: float(jnp.finfo(dtype).max))  # type: ignore[no-untyped-call]
        for name, leaf in leaves.items()
    }
    with np.errstate(over="ignore"):
        names = [name for name, leaf in leaves.items() if not np.isfinite(_largest(leaf).astype(dtypes[name]))]
    if not names:
        return
    _, stored = converted.read_stored(directory)
    described = []
    for name in names[:_MAX_NAMED]:
        counts = NonFinite.of(stored[name].load(stored[name].dtype), dtypes[name])
        described.append(f"{name} ({counts})")
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    logger.warning(
        "%s: parameters are not finite: %s%s; inputs whose outputs are NaN or infinite get no answer",
        directory,
        ", ".join(described),
        more,
    )


def _largest(leaf: jax.Array) -> npt.NDArray[Any]:
    """The largest magnitude in an array, a scalar; NaN if one is in it.

    On CPUs it is found without compilation or a copy, and in 16 bits as fast as in 32. Without their sign bits, IEEE
    754's numbers have the order of the integers with the same bits, and NaN is above infinity. As signed integers the
    positive numbers are the largest; as unsigned ones, the negative numbers.
    """
    if next(iter(leaf.devices())).platform != "cpu":
        return np.asarray(jnp.abs(leaf).max(initial=0))
    values = np.asarray(leaf)
    size = values.dtype.itemsize
    positive, negative = (int(values.view(f"{sign}{size}").max(initial=0)) for sign in "iu")
    without_sign = (1 << 8 * size - 1) - 1
    return np.array(max(positive, negative & without_sign), f"u{size}").view(values.dtype)


def _flatten_choices(tokens: npt.ArrayLike) -> tuple[npt.NDArray[Any], int]:
    """Reshapes [batch, choices, time] or [choices, time] to [batch * choices, time]; also returns `choices`."""
    try:
        ids = np.asarray(tokens)
    except ValueError:
        ids = np.empty(0)
    if ids.ndim not in (2, 3) or ids.size == 0:
        raise InputError(
            "a choice head takes rows of equal length, [choices, time] or [batch, choices, time]; got shape "
            f"{ids.shape}; pad the choices with collate_tokens()"
        )
    return ids.reshape(-1, ids.shape[-1]), ids.shape[-2]
