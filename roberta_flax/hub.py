"""Roberta, the object a user holds, and load(), which makes one. A thin shell over the other modules.

Methods have the names and meanings of fairseq's RobertaHubInterface.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, overload

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from roberta_flax.checkpoint import converted
from roberta_flax.convert.cache import resolve
from roberta_flax.errors import CheckpointError, InputError
from roberta_flax.files import PathLike
from roberta_flax.nn import forward
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from roberta_flax.nn.forward import Params
from roberta_flax.nn.model import Head
from roberta_flax.nn.numerics import DTypeLike, Numerics, PrecisionLike
from roberta_flax.nn.quantize import check_method, is_quantized
from roberta_flax.nn.quantize import quantize as quantized
from roberta_flax.tasks.classify import labels_of
from roberta_flax.tasks.fill_mask import check_topk, fills, masked_ids
from roberta_flax.text import alignment, batching, words
from roberta_flax.text.tokenizer import BOS, EOS, Tokenizer

if TYPE_CHECKING:
    from jaxtyping import Array, Float

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WordFeatures:
    """Features of a text's words.

    Attributes:
      words: their text, with `<s>` first and `</s>` last.
      features: of each, [words, hidden]; or of the embedding and of every layer, [layers + 1, words, hidden].
    """

    words: tuple[str, ...]
    features: Float[Array, "words hidden"] | Float[Array, "layers words hidden"]


class Roberta:
    """A RoBERTa with its tokenizer.

    Token arguments are one sequence, [time], or rows of one length, [batch, time]: lists, numpy or JAX arrays.
    Results are JAX arrays. A new object evaluates (no dropout) until `train` is called; fairseq's begins in
    train mode.

    Attributes:
      config: RobertaConfig.
      params: the parameter tree, nested dicts of arrays (docs/parameters.md).
      tokenizer: Tokenizer.
      numerics: Numerics, how the model computes.
    """

    def __init__(
        self,
        config: RobertaConfig,
        params: Params,
        tokenizer: Tokenizer,
        *,
        numerics: Numerics = Numerics(),
    ) -> None:
        if tokenizer.vocab_size != config.vocab_size:
            raise CheckpointError(
                f"the tokenizer has {tokenizer.vocab_size} ids and the model {config.vocab_size}: not of one model"
            )
        self.config = config
        self.params = params
        self.tokenizer = tokenizer
        self.numerics = numerics
        self._dropout_key: jax.Array | None = None

    def encode(self, text: str, *more: str, no_separator: bool = False) -> npt.NDArray[np.int32]:
        """Token ids, int32 [length], of a sentence or of several; see Tokenizer.encode."""
        return self.tokenizer.encode(text, *more, no_separator=no_separator)

    def decode(self, tokens: npt.ArrayLike) -> str | list[str]:
        """The text of one sequence of token ids, or a list where it holds several; see Tokenizer.decode."""
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
        """Features of the last layer, or with return_all_hiddens of the embedding and of every layer.

        Returns:
          [batch, time, hidden] in `dtype`; or a list of num_layers + 1 of them, first the embedding output.

        Raises:
          InputError: token ids that the model cannot take (see batching.check_tokens).
        """
        padded, (batch, time) = self._padded(tokens)
        if return_all_hiddens:
            states = forward.hidden_states(
                self.params, padded, config=self.config, numerics=self.numerics, key=self._next_key()
            )
            return [state[:batch, :time] for state in states]
        return forward.features(self.params, padded, config=self.config, numerics=self.numerics, key=self._next_key())[
            :batch, :time
        ]

    def word_features(
        self, text: str, spans: npt.ArrayLike | None = None, return_all_hiddens: bool = False
    ) -> WordFeatures:
        """Features of a text's words: of spaCy's English tokenizer, or of any other's.

        A token that reaches over several words is divided among them (see roberta_flax.text.alignment).

        Args:
          text: as `encode` takes it.
          spans: where its words are: of each the first character and the one after the last, [words, 2], in order. By
            spaCy if not given.
          return_all_hiddens: the embedding's and every layer's output, not just the last.

        Raises:
          InputError: not text, or one that is too long; spans that are not in order and inside it; or spaCy is not
            installed.
        """
        places, features = self._word_features(text, spans, return_all_hiddens)
        return WordFeatures((BOS, *(text[begin:end] for begin, end in places), EOS), jnp.asarray(features))

    def extract_features_aligned_to_words(self, sentence: str, return_all_hiddens: bool = False) -> Any:
        """Features of a sentence's words by spaCy's English tokenizer, as a spaCy Doc; see word_features.

        As fairseq's hub gives them, `<s>` and `</s>` for words at the ends. (fairseq's stops with an error where a
        character is several tokens, at most double spaces, and with return_all_hiddens.)

        Returns:
          spacy.tokens.Doc. Each token's `.vector` is a numpy array, which spaCy's own methods take: float32 (float64
          where `dtype` is) [hidden], or with return_all_hiddens [layers + 1, hidden].

        Raises:
          InputError: as word_features.
        """
        places, features = self._word_features(sentence, None, return_all_hiddens)
        texts = [BOS, *(sentence[begin:end] for begin, end in places), EOS]
        spaces = [True, *(sentence[end : end + 1] == " " for _, end in places[:-1]), *([True] if places else []), False]
        return words.doc(texts, spaces, features)

    def _word_features(
        self, text: str, spans: npt.ArrayLike | None, return_all_hiddens: bool
    ) -> tuple[list[tuple[int, int]], npt.NDArray[Any]]:
        """The words' places in the text, and their features: word_features, which see."""
        tokens = self.tokenizer.spans(text)
        ids = self.encode(text)
        found = jnp.stack(self.extract_features(ids, True)) if return_all_hiddens else self.extract_features(ids)
        places = words.spans(text) if spans is None else alignment.check_spans(spans, text)
        weights = alignment.word_weights(places, tokens)
        features = alignment.features_of_words(np.asarray(found).squeeze(-3), weights)
        return [(begin, end) for begin, end in places.tolist()], features

    def predict(
        self, head: str, tokens: npt.ArrayLike, return_logits: bool = False
    ) -> Float[Array, "batch classes"] | Float[Array, "batch time classes"]:
        """What a head says of each row: log-probabilities of its classes, or with return_logits its outputs.

        By the head's kind and problem (see HeadConfig):
          sentence  [batch, classes]: log-probabilities; each class's own where any number of them may hold; values as
            they are of a regression, where fairseq gives the logarithm of a softmax over one number, zero
          token     [batch, time, classes]: log-probabilities
          span      [batch, time, 2]: log-probabilities of each token to be the start and to be the end
          choice    [batch, choices] from tokens [batch, choices, time], or [1, choices] from [choices, time]:
            log-probabilities of the choices; -inf of rows of padding alone, which are none
          pooler    [batch, hidden], as it is

        Raises:
          InputError: no such head (those there are are named), or token ids that the model cannot take.
        """
        config = self.config.head(head)
        choices = None
        if config.kind == "choice":
            tokens, choices = _as_rows_of_choices(tokens)
        padded, (batch, time) = self._padded(tokens)
        function = forward.head_logits if return_logits else forward.head_log_probs
        predicted: Array = function(
            self.params, padded, head=head, config=self.config, numerics=self.numerics, key=self._next_key()
        )
        if choices is not None:
            is_choice = jnp.asarray((padded[:batch] != self.config.pad_id).any(axis=-1))
            scores = jnp.where(is_choice, predicted[:batch, 0], -jnp.inf).reshape(-1, choices)
            return scores if return_logits else jax.nn.log_softmax(scores, axis=-1)
        return predicted[:batch] if predicted.ndim == 2 else predicted[:batch, :time]

    def predict_labels(self, head: str, tokens: npt.ArrayLike) -> list[Any]:
        """The names of the classes that a sentence or token head finds, of each row.

        Names are the head's labels, or the classes' numbers as text where it has none.

        Returns:
          For each row, of a sentence head the likeliest class's name, or the names of all that are likelier than not
          where any number of classes may hold; of a token head the likeliest class's name for each token.

        Raises:
          InputError: as predict; and a head without classes: a regression, span, choice or pooler.
        """
        config = self.config.head(head)
        if config.kind not in ("sentence", "token") or config.problem == "regression":
            what = "is a regression" if config.kind == "sentence" else f"is of kind {config.kind}"
            raise InputError(f"head {head!r} {what} and has no classes to name; use predict()")
        return [labels_of(config, scores) for scores in np.asarray(self.predict(head, tokens))]

    def register_classification_head(
        self, name: str, num_classes: int, inner_dim: int | None = None, *, seed: int | None = None
    ) -> None:
        """Adds a freshly initialized sentence head, in the place of one of the same name.

        Initialized as fairseq's are: uniform within 1 / sqrt(inputs), weights and biases. With one class it is a
        regression.

        Args:
          name: what predict() is to call it.
          num_classes: number of outputs.
          inner_dim: width of its hidden layer; hidden_size if not given.
          seed: of the initialization; a fresh one each time if not given.

        Raises:
          InputError: a name with a dot in it, or sizes that are not positive integers.
        """
        head = HeadConfig(name, num_classes, self.config.hidden_size if inner_dim is None else inner_dim)
        seed = int.from_bytes(os.urandom(4)) if seed is None else seed
        param_dtype = jax.tree.leaves(self.params)[0].dtype
        params = Head.init_params(self.config, head, Numerics(param_dtype=param_dtype), jax.random.key(seed))
        self.config = self.config.with_head(head)
        self.params = {**self.params, "heads": {**self.params.get("heads", {}), name: params}}

    def fill_mask(self, masked_input: str, topk: int = 5) -> list[tuple[str, float, str]]:
        """The likeliest tokens for the one `<mask>` in a text. Never uses dropout.

        As fairseq does it: whitespace before `<mask>` and at the end of the text is not seen by the model, and a
        space before `<mask>` gives way to the token, which brings its own.

        Args:
          masked_input: text with exactly one `<mask>`.
          topk: how many tokens, likeliest first.

        Returns:
          (text with the token in it, probability, token's text) for each. `<s>`, `</s>` and `<pad>` have no text
          and are left out where they are among the topk, so that there may be fewer.

        Raises:
          InputError: not exactly one `<mask>`, a text that is too long, or topk outside the vocabulary.
        """
        check_topk(topk, self.config)
        tokens, position = masked_ids(self.tokenizer, masked_input)
        padded, _ = self._padded(tokens)
        positions = np.full((len(padded), 1), position, np.int32)
        probabilities, ids = forward.top_tokens(
            self.params, padded, positions, topk=topk, config=self.config, numerics=self.numerics
        )
        return fills(self.tokenizer, masked_input, np.asarray(probabilities)[0, 0], np.asarray(ids)[0, 0])

    def disambiguate_pronoun(
        self,
        sentence: str,
        *,
        candidates: Sequence[str] | None = None,
        nlp: str | Callable[[str], Any] | None = None,
    ) -> bool | str:
        """Which noun phrase a pronoun stands for; for roberta.large.wsc. Never uses dropout.

        >>> roberta.disambiguate_pronoun("The _trophy_ would not fit in the suitcase because [it] was too big.")
        True
        >>> roberta.disambiguate_pronoun("The trophy would not fit in the suitcase because [it] was too big.")
        'The trophy'

        Args:
          sentence: with its pronoun in [brackets], and maybe a query between _underscores_.
          candidates: what the pronoun may stand for; the sentence's noun phrases if not given, found by spaCy.
          nlp: the spaCy pipeline that finds them, or its name; en_core_web_lg, as in fairseq, if not given.

        Returns:
          Whether the query scores at least as much as every candidate; without a query the best candidate's text.
          roberta_flax.tasks.pronouns.disambiguate gives the scores, too.

        Raises:
          InputError: as roberta_flax.tasks.pronouns.disambiguate.
        """
        from roberta_flax.tasks import pronouns

        return pronouns.disambiguate(self, sentence, candidates, nlp).answer

    def save(self, directory: PathLike, *, dtype: DTypeLike | None = None) -> None:
        """Writes the model, heads and tokenizer included, as a directory that load() takes.

        `roberta-flax export` makes a checkpoint for fairseq or transformers of it. Values are kept bit for bit.

        Args:
          directory: to make; it must not exist. It appears when it is whole.
          dtype: to store the parameters in: float32, bfloat16, float16, float64; their own if not given.

        Raises:
          InputError: parameters that do not fit the configuration or are quantized, or a dtype that they are not
            stored in.
          CheckpointError: the directory exists or cannot be written.
        """
        if is_quantized(self.params):
            raise InputError("quantized parameters are not stored; save the model before, and load it with quantize=")
        found = converted.save(Path(directory), self.config, self.params, self.tokenizer, dtype)
        for name, counts in found.items():
            logger.warning("%s: %s has values that are not finite: %s", directory, name, counts)

    def eval(self) -> Self:
        """Turns dropout and LayerDrop off; returns the object itself."""
        self._dropout_key = None
        return self

    def train(self, mode: bool = True, *, seed: int = 0) -> Self:
        """Turns dropout and LayerDrop on, or off with mode=False; returns the object itself.

        Each call of extract_features and predict then draws anew, from a sequence that `seed` determines.
        """
        self._dropout_key = jax.random.key(seed) if mode else None
        return self

    @property
    def training(self) -> bool:
        """Whether dropout is on."""
        return self._dropout_key is not None

    @property
    def max_positions(self) -> int:
        """The longest sequence, in tokens."""
        return self.config.max_positions

    def _padded(self, tokens: npt.ArrayLike) -> tuple[npt.NDArray[np.int32], tuple[int, int]]:
        ids = batching.check_tokens(tokens, self.config.vocab_size, self.config.max_positions)
        return batching.pad_to_bucket(ids, self.config.pad_id, self.config.max_positions), (
            ids.shape[0],
            ids.shape[1],
        )

    def _next_key(self) -> jax.Array | None:
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
    """Loads a RoBERTa: a released one by name, one from fairseq's or transformers' files, or a converted one.

    The first time, a released model is downloaded, and what is not converted yet is; the result is kept in the cache
    and loaded from there ever after. Neither needs torch.

    Args:
      name_or_path: a released name of download.MODELS, "roberta.large.mnli" say; or a fairseq directory, a .tar.gz of
        one, a checkpoint file; a directory that transformers wrote, or "hf:org/name" for one on Hugging Face's hub; or
        a directory made by `roberta-flax convert`.
      dtype: of the computation's operands: float32, bfloat16, float16, float64 (with jax_enable_x64).
      param_dtype: of the parameters in memory.
      precision: of matrix products, as in jax.lax.Precision; "highest" for float32 parity on TPU and GPU.
      attention: how attention is computed, one of attention.IMPLEMENTATIONS; the backend's default if not given.
      quantize: "int8" for the products of the layers in int8 (see roberta_flax.nn.quantize).
      cache_dir: the cache; otherwise ROBERTA_FLAX_CACHE, otherwise the platform's user cache.
      sha256: what the archive or checkpoint must hash to, in hex.
      checkpoint_file: the checkpoint's name in a fairseq directory or archive.
      bpe_dir: where the tokenizer's files are, if not beside the checkpoint and not GPT-2's.

    Raises:
      InputError: a dtype, precision, attention or quantize that is not known, or a bpe_dir that is no directory.
      CheckpointError: the files are not a RoBERTa, are damaged, or something is missing.
      DownloadError: a file could not be fetched; the message says which files to put where.
    """
    numerics = Numerics(dtype, precision=precision, attention=attention)
    if attention == "cudnn" and jax.default_backend() != "gpu":
        raise InputError(f"attention 'cudnn' needs an NVIDIA GPU, and JAX's backend is {jax.default_backend()}")
    parameters = Numerics(param_dtype=param_dtype).param_dtype
    if quantize is not None:
        check_method(quantize)
    directory = resolve(
        name_or_path, cache_dir=cache_dir, sha256=sha256, checkpoint_file=checkpoint_file, bpe_dir=bpe_dir
    )
    config, params = converted.read(directory, parameters)
    if quantize is not None:
        params = quantized(params, quantize)
    tokenizer = Tokenizer.from_directory(directory)
    return Roberta(config, params, tokenizer, numerics=numerics)


def load_tokenizer(
    name_or_path: PathLike,
    *,
    cache_dir: PathLike | None = None,
    checkpoint_file: str = "model.pt",
    bpe_dir: PathLike | None = None,
) -> Tokenizer:
    """The tokenizer that load() would give the model; arguments and errors as there."""
    return Tokenizer.from_directory(
        resolve(name_or_path, cache_dir=cache_dir, checkpoint_file=checkpoint_file, bpe_dir=bpe_dir)
    )


def _as_rows_of_choices(tokens: npt.ArrayLike) -> tuple[npt.NDArray[Any], int]:
    """[batch * choices, time] and the number of choices, from [batch, choices, time] or [choices, time]."""
    try:
        ids = np.asarray(tokens)
    except ValueError:
        ids = np.empty(0)
    if ids.ndim not in (2, 3) or ids.size == 0:
        raise InputError(
            "a choice head takes rows of one length, [choices, time] or [batch, choices, time]; got shape "
            f"{ids.shape}; pad the choices with collate_tokens()"
        )
    return ids.reshape(-1, ids.shape[-1]), ids.shape[-2]
