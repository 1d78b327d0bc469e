"""Losses of sentence encoders and cross-encoders, as sentence-transformers 5.1 has them.

A loss of vectors or scores is a pure function of a batch: vectors [batch, texts, size], of which the first text is the
anchor and the second its positive, or scores. Like the losses in `losses`, it returns the sum over the rows and the sum
of their weights; rows of weight 0 do not count, as negatives either. `SentenceLoss` and `ScoreLoss` choose one by name,
and `sentence_encoder_loss` and `cross_encoder_loss` put it on a network.

>>> loss = sentence_encoder_loss(SentenceLoss("multiple-negatives-ranking", scale=20.0), config=roberta.config)
>>> train_step = make_train_step(loss, optax.adamw(2e-5))
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from roberta_flax.errors import InputError, did_you_mean
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.nn.forward import Params, head_outputs, network
from roberta_flax.nn.numerics import Numerics
from roberta_flax.nn.sentence import Module, Pooling, sentence_vectors
from roberta_flax.train.losses import Batch, NetworkLoss, check_trainable

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Key

    Sums = tuple[Float[Array, ""], Float[Array, ""]]

MODULES = "modules"  # the key, beside the network's parameters, of those of a sentence encoder's modules, by number
SIMILARITIES = ("cosine", "dot")
DISTANCES = ("euclidean", "cosine", "manhattan")
_NORMALIZE_EPSILON = 1e-12  # torch.nn.functional.normalize


# Of vectors


def multiple_negatives_ranking(
    vectors: Float[Array, "batch texts size"],
    weights: Float[Array, " batch"],
    *,
    scale: float = 20.0,
    similarity: str = "cosine",
) -> Sums:
    """The negative log-probability of an anchor's positive among the positives and negatives of all rows.

    The probabilities are the softmax of `scale` times the similarities. The source is MultipleNegativesRankingLoss
    (Henderson et al., 2017, section 4.4; InfoNCE).

    Args:
      vectors: anchors, positives, and any number of negatives, float.
      weights: of the rows, float.
      scale: the inverse of the temperature.
      similarity: one of SIMILARITIES.
    """
    batch, texts, size = vectors.shape
    candidates = vectors[:, 1:].swapaxes(0, 1).reshape(-1, size)  # the positives of all rows come first
    scores = scale * _products(_compared(vectors[:, 0], similarity), _compared(candidates, similarity))
    counts = jnp.tile(weights > 0, texts - 1)
    scores = jnp.where(counts[None, :], scores, _lowest(scores))
    losses = jax.nn.logsumexp(scores, axis=1) - jnp.diagonal(scores[:, :batch])
    return _weighted(losses, weights)


def triplet(
    vectors: Float[Array, "batch 3 size"],
    weights: Float[Array, " batch"],
    *,
    margin: float = 5.0,
    distance: str = "euclidean",
) -> Sums:
    """How far the positive is from being closer to the anchor than the negative by a margin: relu(d+ - d- + margin).

    The source is TripletLoss. Distances are never negative here; those of sentence-transformers 5.1 are, for euclidean
    and manhattan (pairwise_euclidean_sim), so that its loss moves anchors away from their positives.

    Args:
      vectors: anchors, positives and negatives, float.
      weights: of the rows, float.
      margin: the margin.
      distance: one of DISTANCES; cosine is one minus the cosine.
    """
    anchor, positive, negative = vectors[:, 0], vectors[:, 1], vectors[:, 2]
    difference = _distances(anchor, positive, distance) - _distances(anchor, negative, distance)
    return _weighted(jax.nn.relu(difference + margin), weights)


def matryoshka(
    loss: Callable[[Float[Array, "batch texts size"]], Sums],
    vectors: Float[Array, "batch texts size"],
    dims: Sequence[int],
    weights: Sequence[float] | None = None,
) -> Sums:
    """The sum of a loss over the beginnings of the vectors, each divided by its norm.

    The source is MatryoshkaLoss (Kusupati et al., 2022).

    Args:
      loss: a function of vectors, such as a partial application of the ones here.
      vectors: float.
      dims: how many values of each vector to keep.
      weights: of each of `dims`; by default 1.
    """
    total = jnp.zeros((), vectors.dtype)
    for dim, weight in zip(dims, weights or (1.0,) * len(dims), strict=True):
        value, rows = loss(_normalized(vectors[..., :dim]))
        total = total + weight * value
    return total, rows


# Of scores and labels


def cosent(
    scores: Float[Array, " batch"],
    labels: Float[Array, " batch"],
    weights: Float[Array, " batch"],
    *,
    scale: float = 20.0,
) -> Sums:
    """log(1 + the sum of exp(scale * (score - other score)) over the pairs of rows whose other label is higher).

    It depends on the order of the labels alone. The source is CoSENTLoss. It is one loss of the whole batch, so the
    second result is 1.

    Args:
      scores: such as the similarities of pairs, float.
      labels: float.
      weights: of the rows, float; only whether one is 0 counts.
      scale: the inverse of the temperature.
    """
    scores = scale * scores
    differences = scores[:, None] - scores[None, :]
    counts = (labels[:, None] < labels[None, :]) & (weights > 0)[:, None] & (weights > 0)[None, :]
    terms = jnp.where(counts, differences, _lowest(scores)).ravel()
    loss = jax.nn.logsumexp(jnp.concatenate([jnp.zeros((1,), scores.dtype), terms]))
    return loss, jnp.ones((), scores.dtype)


def squared_error(
    scores: Float[Array, " batch"], labels: Float[Array, " batch"], weights: Float[Array, " batch"]
) -> Sums:
    """The squared difference of a score and its label: CosineSimilarityLoss, and the MSELoss of cross-encoders."""
    return _weighted(jnp.square(scores - labels), weights)


def binary_cross_entropy(
    scores: Float[Array, " batch"], labels: Float[Array, " batch"], weights: Float[Array, " batch"]
) -> Sums:
    """The cross-entropy of a label from 0 to 1 and the sigmoid of a score, in nats: BinaryCrossEntropyLoss."""
    losses = -(labels * jax.nn.log_sigmoid(scores) + (1 - labels) * jax.nn.log_sigmoid(-scores))
    return _weighted(losses, weights)


def margin_mse(
    scores: Float[Array, "batch candidates"], labels: Float[Array, "batch labels"], weights: Float[Array, " batch"]
) -> Sums:
    """The squared difference of a model's and its teacher's margins between the positive and each negative.

    The source is MarginMSELoss (Hofstätter et al., 2020), of sentence encoders and of cross-encoders.

    Args:
      scores: of the positive and of each negative, float.
      labels: the teacher's margins, one for each negative; or its scores, one for each candidate.
      weights: of the rows, float.
    """
    if labels.shape == scores.shape:
        labels = labels[:, :1] - labels[:, 1:]
    errors = jnp.square(scores[:, :1] - scores[:, 1:] - labels)
    return _weighted(errors.mean(axis=1), weights)


def kl_divergence(
    scores: Float[Array, "batch candidates"],
    labels: Float[Array, "batch candidates"],
    weights: Float[Array, " batch"],
    *,
    temperature: float = 1.0,
) -> Sums:
    """The Kullback-Leibler divergence of a model's candidates from its teacher's, times the temperature squared.

    Both are softmaxes of scores divided by the temperature. The source is DistillKLDivLoss.

    Args:
      scores, labels: the model's and its teacher's scores of each candidate, float.
      weights: of the rows, float.
      temperature: the temperature.
    """
    student = jax.nn.log_softmax(scores / temperature, axis=1)
    teacher = jax.nn.log_softmax(labels / temperature, axis=1)
    losses = (jnp.exp(teacher) * (teacher - student)).sum(axis=1) * temperature**2
    return _weighted(losses, weights)


def _weighted(losses: Float[Array, " batch"], weights: Float[Array, " batch"]) -> Sums:
    return (losses * weights).sum(), weights.sum()


def _lowest(scores: Array) -> float:
    return float(np.finfo(scores.dtype).min)


def _products(a: Float[Array, "n size"], b: Float[Array, "m size"]) -> Float[Array, "n m"]:
    return jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)


def _norm(squares: Float[Array, "..."], smallest: float) -> Float[Array, "..."]:
    """The square root, at least `smallest`; its gradient at 0 is 0 and not infinite."""
    is_positive = squares > 0
    return jnp.maximum(jnp.where(is_positive, jnp.sqrt(jnp.where(is_positive, squares, 1)), 0), smallest)


def _normalized(vectors: Float[Array, "... size"]) -> Float[Array, "... size"]:
    return vectors / _norm(jnp.square(vectors).sum(axis=-1, keepdims=True), _NORMALIZE_EPSILON)


def _compared(vectors: Float[Array, "... size"], similarity: str) -> Float[Array, "... size"]:
    """The vectors whose dot products are similarities."""
    return _normalized(vectors) if similarity == "cosine" else vectors


def _distances(a: Float[Array, "batch size"], b: Float[Array, "batch size"], name: str) -> Float[Array, " batch"]:
    match name:
        case "cosine":
            return 1 - (_normalized(a) * _normalized(b)).sum(axis=-1)
        case "manhattan":
            return jnp.abs(a - b).sum(axis=-1)
    return _norm(jnp.square(a - b).sum(axis=-1), 0.0)


# By name


@dataclass(frozen=True)
class _Rows:
    """What a loss takes of each row.

    Attributes:
      texts: the fewest and the most text columns; None for any number.
      labels: the numbers of label columns that it takes, for a number of text columns.
      words: the same in words.
    """

    texts: tuple[int, int | None]
    labels: Callable[[int], tuple[int, ...]]
    words: str


_UNLABELED = _Rows((2, None), lambda texts: (0,), "an anchor, a positive and any negatives, and no label")
_TRIPLETS = _Rows((3, 3), lambda texts: (0,), "an anchor, a positive and a negative, and no label")
_SCORED_PAIRS = _Rows((2, 2), lambda texts: (1,), "two texts and a label")
_MARGINS = _Rows(
    (3, None),
    lambda texts: (texts - 2, texts - 1),
    "an anchor, a positive, and one or more negatives; and a margin for each negative, or a score for each of positive "
    "and negatives",
)
_SCORED_CANDIDATES = _Rows(
    (3, None), lambda texts: (texts - 1,), "an anchor, two or more candidates, and a score for each"
)


def loss_name(name: str, known: Sequence[str]) -> str:
    """Returns a loss's name, which may also be that of sentence-transformers' class: "CoSENTLoss" is "cosent".

    Raises:
      InputError: there is no such loss. The message lists the names.
    """
    plain = re.sub(r"[\s_-]", "", name.casefold()).removesuffix("loss")
    if plain.startswith("cached"):
        raise InputError(f"{name}: any loss is cached with mini_batch_size (--mini-batch-size); name it without Cached")
    plain = {"cosinesimilarity": "cosine", "distillkldiv": "kldivergence"}.get(plain, plain)
    found = next((each for each in known if each.replace("-", "") == plain), None)
    if found is None:
        raise InputError(f"the loss must be one of {', '.join(known)}; got {name!r}{did_you_mean(name, known)}")
    return found


def _check_rows(name: str, rows: _Rows, texts: Sequence[str], labels: Sequence[str]) -> None:
    fewest, most = rows.texts
    if len(texts) < fewest or (most is not None and len(texts) > most) or len(labels) not in rows.labels(len(texts)):
        given = [
            f"{len(each)} {what} ({', '.join(each)})" if each else f"no {what}"
            for what, each in (("text columns", texts), ("label columns", labels))
        ]
        raise InputError(f"the loss {name} takes {rows.words}; got {' and '.join(given)}")


@dataclass(frozen=True)
class SentenceLoss:
    """A loss of a sentence encoder's vectors, by name.

    >>> total, rows = SentenceLoss("cosent")(vectors, labels, weights)

    Attributes:
      name: one of NAMES, or the name of a class in sentence_transformers.losses.
      scale: of multiple-negatives-ranking and cosent; by default 20.
      margin: of triplet; by default 5.
      distance: of triplet, one of DISTANCES; by default euclidean.
      temperature: of kl-divergence; by default 1.
      similarity: one of SIMILARITIES, of multiple-negatives-ranking and cosent by default cosine, of margin-mse and
        kl-divergence dot.
      matryoshka_dims: the numbers of values that a shortened vector may have (see `matryoshka`); none by default.
      matryoshka_weights: of each of them; by default 1.

    Raises:
      InputError: the loss is unknown, a setting is not for this loss, or is out of range.
    """

    NAMES: ClassVar = ("multiple-negatives-ranking", "cosent", "cosine", "triplet", "margin-mse", "kl-divergence")
    name: str = NAMES[0]
    scale: float | None = None
    margin: float | None = None
    distance: str | None = None
    temperature: float | None = None
    similarity: str | None = None
    matryoshka_dims: tuple[int, ...] = ()
    matryoshka_weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", loss_name(self.name, self.NAMES))
        for setting, (names, valid, expected) in _SETTINGS.items():
            value = getattr(self, setting)
            if value is not None and self.name not in names:
                raise InputError(f"{setting} is for the loss {' or '.join(names)}, not for {self.name}")
            if value is not None and not valid(value):
                raise InputError(f"{setting} must be {expected}, got {value!r}")
        if len(set(self.matryoshka_dims)) != len(self.matryoshka_dims) or any(dim < 1 for dim in self.matryoshka_dims):
            raise InputError(f"matryoshka_dims must be different numbers from 1, got {self.matryoshka_dims}")
        if self.matryoshka_weights and len(self.matryoshka_weights) != len(self.matryoshka_dims):
            raise InputError(
                f"matryoshka_weights must be one for each of {len(self.matryoshka_dims)} matryoshka_dims, got "
                f"{len(self.matryoshka_weights)}"
            )

    @property
    def is_in_batch(self) -> bool:
        """Whether the texts of other rows are negatives."""
        return self.name == "multiple-negatives-ranking"

    @property
    def compared_by(self) -> str:
        """How vectors that it trains are compared, one of checkpoint.usage.SIMILARITIES."""
        if self.name == "triplet":
            return self.distance or "euclidean"
        default = "dot" if self.name in ("margin-mse", "kl-divergence") else "cosine"
        return "cosine" if self.matryoshka_dims else self.similarity or default  # which divides vectors by their norms

    @property
    def label_range(self) -> tuple[float, float] | None:
        """The range of the labels, if there is one."""
        return (-1.0, 1.0) if self.name == "cosine" else None

    @property
    def is_labeled(self) -> bool:
        """Whether rows have labels."""
        return _SENTENCE_ROWS[self.name] not in (_UNLABELED, _TRIPLETS)

    def check(self, texts: Sequence[str], labels: Sequence[str], batch_size: int) -> None:
        """Raises InputError unless the loss takes rows of these text and label columns, in batches of this size."""
        _check_rows(self.name, _SENTENCE_ROWS[self.name], texts, labels)
        if batch_size < 2 and (self.name == "cosent" or (self.is_in_batch and len(texts) == 2)):
            raise InputError(
                f"the loss {self.name} compares the rows of a batch, so batch_size must be 2 or more, got {batch_size}"
            )

    def check_size(self, size: int) -> None:
        """Raises InputError if vectors of this size are too short for `matryoshka_dims`."""
        if self.matryoshka_dims and max(self.matryoshka_dims) > size:
            raise InputError(
                f"matryoshka_dims must be at most the {size} values of a vector, got {self.matryoshka_dims}"
            )

    def __call__(
        self,
        vectors: Float[Array, "batch texts size"],
        labels: Float[Array, "batch labels"],
        weights: Float[Array, " batch"],
    ) -> Sums:
        """Returns the sum of the loss over a batch's rows, and the sum of their weights."""

        def loss(vectors: Float[Array, "batch texts size"]) -> Sums:
            return self._of(vectors, labels, weights)

        if not self.matryoshka_dims:
            return loss(vectors)
        return matryoshka(loss, vectors, self.matryoshka_dims, self.matryoshka_weights or None)

    def _of(self, vectors: Array, labels: Array, weights: Array) -> Sums:
        given = {name: getattr(self, name) for name in _SETTINGS if getattr(self, name) is not None}
        match self.name:
            case "multiple-negatives-ranking":
                return multiple_negatives_ranking(vectors, weights, **given)
            case "triplet":
                return triplet(vectors, weights, **given)
        given.pop("similarity", None)
        compared = _compared(vectors, self.compared_by)
        scores = (compared[:, :1] * compared[:, 1:]).sum(axis=-1)
        labels = labels.astype(scores.dtype)
        match self.name:
            case "cosent":
                return cosent(scores[:, 0], labels[:, 0], weights, **given)
            case "cosine":
                return squared_error(scores[:, 0], labels[:, 0], weights)
            case "margin-mse":
                return margin_mse(scores, labels, weights)
        return kl_divergence(scores, labels, weights, **given)


_SENTENCE_ROWS = {
    "multiple-negatives-ranking": _UNLABELED, "cosent": _SCORED_PAIRS, "cosine": _SCORED_PAIRS, "triplet": _TRIPLETS,
    "margin-mse": _MARGINS, "kl-divergence": _SCORED_CANDIDATES,
}  # fmt: skip


def _is_positive(value: float) -> bool:
    return 0 < value < float("inf")


# For each setting the losses that have it, a test of its value, and what passes.
_SETTINGS: dict[str, tuple[tuple[str, ...], Callable[[Any], bool], str]] = {
    "scale": (("multiple-negatives-ranking", "cosent"), _is_positive, "over 0 and finite"),
    "margin": (("triplet",), _is_positive, "over 0 and finite"),
    "distance": (("triplet",), lambda name: name in DISTANCES, f"one of {', '.join(DISTANCES)}"),
    "temperature": (("kl-divergence",), _is_positive, "over 0 and finite"),
    "similarity": (
        ("multiple-negatives-ranking", "cosent", "margin-mse", "kl-divergence"),
        lambda name: name in SIMILARITIES,
        f"one of {', '.join(SIMILARITIES)}",
    ),
}


@dataclass(frozen=True)
class ScoreLoss:
    """A loss of a cross-encoder's scores, by name. A score is the head's one output, without an activation.

    >>> total, rows = ScoreLoss("binary-cross-entropy")(scores, labels, weights)

    Attributes:
      name: one of NAMES, or the name of a class in sentence_transformers.cross_encoder.losses.

    Raises:
      InputError: the loss is unknown.
    """

    NAMES: ClassVar = ("binary-cross-entropy", "mse", "margin-mse")
    name: str = NAMES[0]

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", loss_name(self.name, self.NAMES))

    @property
    def activation(self) -> str:
        """What makes scores of outputs after training, of nn.sentence.ACTIVATIONS."""
        return "sigmoid" if self.name == "binary-cross-entropy" else "identity"

    @property
    def label_range(self) -> tuple[float, float] | None:
        """The range of the labels, if there is one."""
        return (0.0, 1.0) if self.name == "binary-cross-entropy" else None

    @property
    def is_labeled(self) -> bool:
        """Whether rows have labels."""
        return True

    def check(self, texts: Sequence[str], labels: Sequence[str], batch_size: int) -> None:
        """Raises InputError unless the loss takes rows of these text and label columns."""
        _check_rows(self.name, _MARGINS if self.name == "margin-mse" else _SCORED_PAIRS, texts, labels)

    def __call__(
        self,
        scores: Float[Array, "batch pairs"],
        labels: Float[Array, "batch labels"],
        weights: Float[Array, " batch"],
    ) -> Sums:
        """Returns the sum of the loss over a batch's rows, and the sum of their weights."""
        labels = labels.astype(scores.dtype)
        if self.name == "margin-mse":
            return margin_mse(scores, labels, weights)
        loss = squared_error if self.name == "mse" else binary_cross_entropy
        return loss(scores[:, 0], labels[:, 0], weights)


# On a network


def sentence_encoder_loss(
    loss: SentenceLoss | Callable[[Array, Array, Array], Sums],
    *,
    modules: tuple[Module, ...] = (Pooling(),),
    config: RobertaConfig,
    numerics: Numerics = Numerics(),
    mini_batch_size: int | None = None,
) -> NetworkLoss:
    """Returns a loss of a sentence encoder's parameters, for make_train_step.

    A batch has tokens, int32 [batch, texts, time]; and labels, float [batch, labels], and weights, float [batch], if
    the loss takes labels or rows are filled up. The parameters are the network's and, under the key MODULES, those of
    modules that have some, by their number: {"embeddings": ..., "layers": ..., "modules": {"1": {"kernel": ...}}}.

    Args:
      loss: a function of (vectors, labels, weights).
      modules: how vectors are made (see nn.sentence).
      config, numerics: as in losses.head_loss.
      mini_batch_size: number of rows that are encoded at a time. A batch then takes the memory of so many rows and of
        all vectors, for one more forward pass, and the gradient is the same (GradCache, Gao et al., 2021, as in
        CachedMultipleNegativesRankingLoss). It must divide the batch. None for all at once.

    Raises:
      InputError: gradients would vanish in the dtype (float16).
    """
    check_trainable(numerics)

    def vectors(params: Params, tokens: Array, key: Any) -> Array:
        return encoder_vectors(params, tokens, modules=modules, config=config, numerics=numerics, key=key)

    return _network_loss(loss, vectors, mini_batch_size, (r"lm_head\.", r"heads\."))


def cross_encoder_loss(
    loss: ScoreLoss | Callable[[Array, Array, Array], Sums],
    head: str,
    *,
    config: RobertaConfig,
    numerics: Numerics = Numerics(),
    mini_batch_size: int | None = None,
) -> NetworkLoss:
    """Returns a loss of a cross-encoder's parameters, for make_train_step.

    A batch has tokens, int32 [batch, pairs, time], the anchor with the positive and with each negative; labels, float
    [batch, labels]; and weights, float [batch], if rows are filled up.

    Args:
      loss: a function of (scores, labels, weights), scores float [batch, pairs].
      head: name of a sentence head with one output.
      config, numerics: as in losses.head_loss.
      mini_batch_size: as in sentence_encoder_loss.

    Raises:
      InputError: there is no such head, it has several outputs, or gradients would vanish in the dtype (float16).
    """
    check_trainable(numerics)
    if config.head(head).num_classes != 1:
        raise InputError(
            f"a cross-encoder is trained with one output; head {head!r} has {config.head(head).num_classes}"
        )

    def outputs(params: Params, tokens: Array, key: Any) -> Array:
        return pair_scores(params, tokens, head=head, config=config, numerics=numerics, key=key)

    return _network_loss(loss, outputs, mini_batch_size, (r"lm_head\.", rf"heads\.(?!{re.escape(head)}\.)"))


def encoder_vectors(
    params: Params,
    tokens: Int[Array, "batch time"],
    *,
    modules: tuple[Module, ...],
    config: RobertaConfig,
    numerics: Numerics,
    key: Key[Array, ""] | None = None,
) -> Float[Array, "batch size"]:
    """Returns the vectors of parameters as sentence_encoder_loss takes them."""
    own = params.get(MODULES, {})
    module_params = tuple(own.get(str(number), {}) for number in range(len(modules)))
    body = {name: tree for name, tree in params.items() if name != MODULES}
    vectors: Array = sentence_vectors(
        body, module_params, tokens, modules=modules, config=config, numerics=numerics, key=key
    )
    return vectors


def pair_scores(
    params: Params,
    tokens: Int[Array, "batch time"],
    *,
    head: str,
    config: RobertaConfig,
    numerics: Numerics,
    key: Key[Array, ""] | None = None,
) -> Float[Array, " batch"]:
    """Returns the outputs of a head with one output."""
    outputs: Array = head_outputs(network(params, config, numerics), config.head(head), tokens, key=key)
    return outputs[:, 0]


def _network_loss(
    loss: Callable[[Array, Array, Array], Sums],
    outputs: Callable[[Params, Array, Any], Array],
    mini_batch_size: int | None,
    unread: tuple[str, ...],
) -> NetworkLoss:
    def function(params: Params, batch: Batch, key: Key[Array, ""] | None) -> Sums:
        tokens = batch["tokens"]
        rows = _encoded(lambda tokens, key: outputs(params, tokens, key), tokens, key, mini_batch_size)
        weights = batch.get("weights", jnp.ones(tokens.shape[:1], rows.dtype)).astype(rows.dtype)
        labels = batch.get("labels", jnp.zeros((tokens.shape[0], 0), rows.dtype))
        return loss(rows, labels, weights)

    return NetworkLoss(function, unread)


def _encoded(
    outputs: Callable[[Array, Any], Array],
    tokens: Int[Array, "batch texts time"],
    key: Key[Array, ""] | None,
    mini_batch_size: int | None,
) -> Float[Array, "batch texts ..."]:
    """Returns what a network makes of each text, `mini_batch_size` rows at a time."""

    def of_rows(tokens: Array, key: Any) -> Array:
        found = outputs(tokens.reshape(-1, tokens.shape[-1]), key)
        by_row: Array = found.reshape(*tokens.shape[:2], *found.shape[1:])
        return by_row

    if mini_batch_size is None:
        return of_rows(tokens, key)
    if mini_batch_size < 1 or len(tokens) % mini_batch_size:
        raise InputError(f"mini_batch_size must divide the {len(tokens)} rows of a batch, got {mini_batch_size}")
    # Part i has the rows i, i + parts, ...: where devices divide the rows, each has its share of every part.
    parts = len(tokens) // mini_batch_size
    split = tokens.reshape(mini_batch_size, parts, *tokens.shape[1:]).swapaxes(0, 1)
    keys = None if key is None else jax.random.split(key, parts)
    of_part = jax.checkpoint(lambda part_and_key: of_rows(*part_and_key))
    found = jax.lax.map(of_part, (split, keys)).swapaxes(0, 1)
    whole: Array = found.reshape(len(tokens), *found.shape[2:])
    return whole
