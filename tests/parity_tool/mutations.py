"""Networks that are wrong on purpose: a function or a method replaced by another, a parameter or a choice changed.

Each says at which tensor a comparison must find it.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.interpreters import ad

from roberta_flax.nn import attention, forward, model, products
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.nn.tree import flatten, unflatten
from roberta_flax.parity.subject import Subject
from roberta_flax.train import losses
from tests.parity_tool.networks import GAP_ROW, LONGEST_ROW, PADDED_ROWS, POST_NORM, PRE_NORM, one_layer

Change = Callable[[pytest.MonkeyPatch, Subject], None]
# A function that is given the one whose place it takes, and that one's arguments.
Wrong = Callable[..., Any]
ALL = ("float64", "float32", "bfloat16")
# What bfloat16 cannot find, operands being rounded within 2^-9 to 2^-8 of their size, 2e-3 to 4e-3: its own rounding, put in
# where float32 computes; the two gelus, at most 5e-4 apart; a mask that leaves e^-10 = 5e-5 of a weight; one weight of 48
# in a sum off by 1e-2 where they are all 0.1 large, so that the others' rounding moves the sum as far.
FLOAT32 = ("float64", "float32")
# A weight of 0.1 off by 1e-8 is as far off as float32 may round it: 0.1 * 2^-24 = 6e-9.
FLOAT64 = ("float64",)
_L0, _L1 = "layers.0", "layers.1"


@dataclass(frozen=True)
class Mutation:
    """A wrong network.

    Attributes:
      name: what is wrong.
      at: the first tensor that diverges.
      change: makes a subject, or the package, wrong.
      dtypes: of the computations in which it must be found at that tensor.
      pre_norm: whether it is one of networks.PRE_NORM, and not of POST_NORM.
      two_layers: whether it takes two layers, though it is not found in the second.
      rows: those that it changes; None for all.
    """

    name: str
    at: str
    change: Change
    dtypes: tuple[str, ...] = ALL
    pre_norm: bool = False
    two_layers: bool = False
    rows: frozenset[int] | None = None

    @property
    def right(self) -> RobertaConfig:
        """The network that is made wrong: of one layer where a second says nothing."""
        config = PRE_NORM if self.pre_norm else POST_NORM
        return config if self.two_layers or f"{_L1}." in self.at else one_layer(config)

    @property
    def of_gradients(self) -> bool:
        """Whether only gradients are wrong."""
        return self.at.startswith("gradients.")


# changes


def replaced(owner: Any, name: str, wrong: Wrong, *, everywhere: bool = True) -> Change:
    """`wrong` in the place of a method of a class, or of a function wherever the package knows it.

    Args:
      owner: the class, or the function's module.
      name: of the method or function.
      wrong: called as wrong(original, *args, **kwargs).
      everywhere: whether modules that imported the function get the wrong one too; else only `owner` does.
    """

    def change(patch: pytest.MonkeyPatch, subject: Subject) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def instead(*args: Any, **kwargs: Any) -> Any:
            return wrong(original, *args, **kwargs)

        owners = [owner]
        if everywhere and isinstance(owner, ModuleType):
            modules = [module for known, module in sys.modules.items() if known.startswith("roberta_flax.")]
            owners = [module for module in modules if vars(module).get(name) is original]
        for each in owners:
            patch.setattr(each, name, instead)

    return change


def value(owner: Any, name: str, wrong: Any) -> Change:
    """Another value of a module or a class."""
    return lambda patch, subject: patch.setattr(owner, name, wrong)


def params(of: Callable[[dict[str, Any]], Mapping[str, Any]]) -> Change:
    """Other parameters: `of` gives those that change, by path."""

    def change(patch: pytest.MonkeyPatch, subject: Subject) -> None:
        leaves = flatten(subject.params)
        with jax.enable_x64(subject.dtype == "float64"):
            wrong = of(leaves)
            assert any(np.any(leaves[path] != value) for path, value in wrong.items())
        patch.setattr(subject, "params", unflatten(leaves | dict(wrong), subject.params))

    return change


def config(**changes: Any) -> Change:
    """Another configuration of the same parameters."""

    def change(patch: pytest.MonkeyPatch, subject: Subject) -> None:
        patch.setattr(subject, "config", dataclasses.replace(subject.config, **changes))

    return change


def zero(path: str) -> Change:
    """A parameter that is all zeros."""
    return params(lambda leaves: {path: jnp.zeros_like(leaves[path])})


def exchanged(one: str, other: str) -> Change:
    """The parameters under two beginnings of paths, one for the other."""

    def of(leaves: dict[str, Any]) -> dict[str, Any]:
        pairs = [(path, other + path.removeprefix(one)) for path in leaves if path.startswith(one)]
        return {a: leaves[b] for a, b in pairs} | {b: leaves[a] for a, b in pairs}

    return params(of)


def reversed_classes(head: str) -> Change:
    """A head's classes, the last first."""
    paths = [f"heads.{head}.output.{each}" for each in ("kernel", "bias")]
    return params(lambda leaves: {path: leaves[path][..., ::-1] for path in paths})


def activation(name: str, function: Callable[[jax.Array], jax.Array]) -> Change:
    """Another function under an activation's name."""
    return lambda patch, subject: patch.setitem(model.ACTIVATION_FUNCTIONS, name, function)


# embeddings


def positions(of: Callable[[Any, Any, int], Any]) -> Change:
    """Other position ids: of (the right ones, whether there is a token, pad_id)."""
    return replaced(
        model,
        "position_ids",
        lambda right, ids, pad, segments=None: of(right(ids, pad, segments), (ids != pad).astype(jnp.int32), pad),
    )


def table(name: str, of: Callable[[Callable[[Any], Any], Any], Any]) -> Change:
    """Other rows of an embedding's table: of (the right ones of ids, ids)."""

    def wrong(right: Any, self: Any, table: nnx.Embed, ids: jax.Array) -> jax.Array:
        if table is not getattr(self, name):
            return right(self, table, ids)
        return of(functools.partial(right, self, table), ids)

    return replaced(model.Embeddings, "_rows", wrong)


def _without_norm(right: Any, self: Any, ids: jax.Array, segments: Any, key: Any, *others: Any) -> jax.Array:
    return jnp.where((ids == self.config.pad_id)[..., None], 0, self.sum(ids, segments, *others))


def _padding_kept(right: Any, self: Any, ids: jax.Array, segments: Any, key: Any, *others: Any) -> jax.Array:
    return self.layer_norm(self.sum(ids, segments, *others))


def _dropout_without_key(right: Any, x: jax.Array, rate: float, key: Any) -> jax.Array:
    return right(x, rate, jax.random.key(0) if key is None else key)


# LayerNorm


def _standardized(x: jax.Array, epsilon: float) -> jax.Array:
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + epsilon)


def _unbiased(x: jax.Array, epsilon: float) -> jax.Array:
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True, ddof=1) + epsilon)


def _not_centered(x: jax.Array, epsilon: float) -> jax.Array:
    return x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + epsilon)


def _epsilon_outside(x: jax.Array, epsilon: float) -> jax.Array:
    return (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + epsilon)


def _constant_statistics(x: jax.Array, epsilon: float) -> jax.Array:
    """Right, but the mean and the variance have no gradient."""
    mean, variance = (lax.stop_gradient(of(x, -1, keepdims=True)) for of in (jnp.mean, jnp.var))
    return (x - mean) / jnp.sqrt(variance + epsilon)


def norm(
    of: Callable[[jax.Array, float], jax.Array] = _standardized, scaled: Callable[[jax.Array], jax.Array] = lambda x: x
) -> Change:
    """LayerNorm written out, so that parts of it can be wrong."""

    class WrittenOut(nnx.LayerNorm):
        def __call__(self, x: jax.Array, *, mask: Any = None) -> jax.Array:
            scale, bias = (each[...].astype(x.dtype) for each in (self.scale, self.bias))
            return of(x, self.epsilon) * scaled(scale) + bias

    def wrong(right: Any, config: Any, numerics: Any, rngs: nnx.Rngs, **options: Any) -> nnx.LayerNorm:
        dtypes = {"dtype": numerics.accumulation_dtype, "param_dtype": numerics.param_dtype}
        return WrittenOut(config.hidden_size, epsilon=config.layer_norm_epsilon, rngs=rngs, **dtypes)

    return replaced(model, "layer_norm", wrong)


def _variance_in_one_pass(right: Any, *args: Any, **options: Any) -> nnx.LayerNorm:
    made = right(*args, **options)
    made.use_fast_variance = True
    return made


# attention

_HEADS, _DEPTH, _HIDDEN = 4, 8, 32  # of networks.SIZES


def context(
    query: Callable[[Any], Any] = lambda x: x,
    key: Callable[[Any], Any] = lambda x: x,
    value: Callable[[Any], Any] = lambda x: x,
    result: Callable[[Any], Any] = lambda x: x,
    dropout_key: int | None = None,
) -> Change:
    """Attention of other queries, keys and values, with another result, or with dropout."""

    def wrong(right: Any, self: Any, q: Any, k: Any, v: Any, mask: Any, random: Any, *others: Any) -> Any:
        random = random if dropout_key is None else jax.random.key(dropout_key)
        return result(right(self, query(q), key(k), value(v), mask, random, *others))

    return replaced(model.SelfAttention, "context", wrong)


def _depth_first(x: jax.Array) -> jax.Array:
    """The numbers of [depth, heads] in the order of [heads, depth]."""
    return x.reshape(-1, _DEPTH, _HEADS).swapaxes(1, 2).reshape(x.shape)


def _heads_first(x: jax.Array) -> jax.Array:
    """The numbers of [heads, depth] in the order of [depth, heads]."""
    return x.reshape(-1, _HEADS, _DEPTH).swapaxes(1, 2).reshape(x.shape)


def _heads_reversed(x: jax.Array) -> jax.Array:
    return x.reshape(-1, _HEADS, _DEPTH)[:, ::-1].reshape(x.shape)


def _half_gradient(x: jax.Array) -> jax.Array:
    return 0.5 * x + lax.stop_gradient(0.5 * x)


def _keys_for_queries(right: Any, query: jax.Array, key: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
    return right(*((key, query) if query.shape == key.shape else (query, key)), *args, **kwargs)


def weights(of: Callable[..., jax.Array]) -> Change:
    """Other attention weights: of (the right function, scores, mask)."""
    return replaced(attention, "_weights", of)


def _masked(scores: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.where(mask, scores, float(np.finfo(scores.dtype).min))


def _exponentials_over_their_sum(right: Any, scores: jax.Array, mask: jax.Array) -> jax.Array:
    exponentials = jnp.where(mask, jnp.exp(scores), 0)
    return exponentials / exponentials.sum(-1, keepdims=True)


def mask(of: Callable[[jax.Array], jax.Array]) -> Change:
    """Another mask: of the right one."""
    return replaced(model, "attention_mask", lambda right, *given: of(right(*given)))


# layers


def block(kind: type, of: Callable[[Any, Any], Any]) -> Change:
    """Another output of attention or feed-forward: of (the right one, the block's input).

    In a post-norm layer the input is what the residual adds too.
    """
    return replaced(kind, "__call__", lambda right, self, x, *args: of(right(self, x, *args), x))


def _layer_with(**changes: Any) -> Change:
    """Layers of another configuration; what surrounds them keeps its own."""

    def wrong(right: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        self.config = dataclasses.replace(self.config, **changes)
        return right(self, *args, **kwargs)

    return replaced(model.TransformerLayer, "__call__", wrong)


def _residual_after_the_norm(right: Any, self: Any, x: jax.Array, *args: Any, **kwargs: Any) -> Any:
    layer_norm = self.attention_layer_norm
    x = layer_norm(x)
    self.attention_layer_norm = lambda x: x
    try:
        return right(self, x, *args, **kwargs)
    finally:
        self.attention_layer_norm = layer_norm


def _first_layer_alone(right: Any, *args: Any) -> model.RobertaModel:
    network = right(*args)
    network.layers = nnx.List([network.layers[0]])
    return network


def _without_last_norm(right: Any, self: Any, *args: Any, **kwargs: Any) -> jax.Array:
    layer_norm, self.layer_norm = self.layer_norm, None
    try:
        return right(self, *args, **kwargs)
    finally:
        self.layer_norm = layer_norm


def _rounded_bias(right: Any, self: Any, x: jax.Array) -> jax.Array:
    bias = self.bias[...]
    return model.product("...i,io->...o", x, self.kernel[...], dtype=self.numerics.dtype) + bias.astype(
        jnp.bfloat16
    ).astype(self.numerics.accumulation_dtype)


def _in_bfloat16(right: Any, *args: Any, dtype: Any, **kwargs: Any) -> jax.Array:
    return right(*args, dtype=jnp.bfloat16, **kwargs)


def _gelu_with_the_slope_of_tanh_gelu(right: Any, self: Any, x: jax.Array) -> jax.Array:
    approximate = jax.nn.gelu(x, approximate=True)
    return approximate + lax.stop_gradient(jax.nn.gelu(x, approximate=False) - approximate)


# the LM head and heads


def lm_embedding(of: Callable[[Any, Any], Any]) -> Change:
    """Another embedding that the LM head is tied to: of (the right one, the head)."""
    return replaced(model.LMHead, "__call__", lambda right, self, features, rows: right(self, features, of(rows, self)))


def _norm_before_activation(right: Any, self: Any, features: jax.Array, rows: jax.Array) -> jax.Array:
    activate = model.ACTIVATION_FUNCTIONS[self.config.lm_head_activation]
    x = activate(self.layer_norm(self.dense(features)))
    return model.product("...h,vh->...v", x, rows, dtype=self.numerics.dtype) + self.bias[...]


def _tied(right: Any, self: Any, features: jax.Array, rows: jax.Array) -> jax.Array:
    self.embedding[...] = rows
    return right(self, features, rows)


def _positions_one_less(right: Any, params: Any, tokens: Any, positions: jax.Array, **options: Any) -> jax.Array:
    return right(params, tokens, jnp.maximum(positions - 1, 0), **options)


def _tokens_one_less(right: Any, x: jax.Array, positions: Any) -> jax.Array:
    return right(x, positions if isinstance(positions, slice) else jnp.maximum(positions - 1, 0))


def dense_head(of: Callable[[jax.Array], jax.Array]) -> Change:
    """Other features for the heads that see the first token."""
    return replaced(
        model.Head,
        "__call__",
        lambda right, self, x, key: right(self, of(x) if self.head.has_dense else x, key),
    )


def _head_with_dropout(right: Any, self: Any, features: jax.Array, key: Any) -> jax.Array:
    if not self.head.has_dense:
        return right(self, features, key)
    x = self.activation(self.dense(features[:, 0]))
    return self.output(model.dropout(x, self.config.pooler_dropout, jax.random.key(0)))


def log_probs(kind: str, of: Callable[..., jax.Array]) -> Change:
    """Other log-probabilities of heads of a kind: of (logits, whether there is a token)."""

    def wrong(right: Any, params: Any, tokens: Any, *, head: str, config: Any, numerics: Any) -> jax.Array:
        options = {"head": head, "config": config, "numerics": numerics}
        if config.head(head).kind != kind:
            return right(params, tokens, **options)
        return of(forward.head_logits(params, tokens, **options), tokens != config.pad_id)

    return replaced(forward, "head_log_probs", wrong)


def _start_against_end(logits: jax.Array, is_token: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(_masked(logits, is_token[..., None]), axis=2)


# losses


def loss(name: str, of: Callable[..., tuple[Any, Any]]) -> Change:
    """Another loss: of (the right function, params, batch) its sum and size."""

    def wrong(right: Any, *args: Any, **kwargs: Any) -> Any:
        right_loss = right(*args, **kwargs)
        return lambda params, batch, key: of(functools.partial(right_loss, key=key), params, batch)

    return replaced(losses, name, wrong)


def _mean_over_all_places(right: Any, params: Any, batch: Any) -> tuple[Any, Any]:
    return right(params, batch)[0], jnp.float32(batch["weights"].size)


def _unweighted(right: Any, params: Any, batch: Any) -> tuple[Any, Any]:
    return right(params, {**batch, "weights": jnp.ones_like(batch["weights"])})[0], batch["weights"].sum()


def _one_row_less(right: Any, params: Any, batch: Any) -> tuple[Any, Any]:
    total, size = right(params, batch)
    return total, size - 1


def cross_entropy(of: Callable[..., jax.Array]) -> Change:
    """Another cross-entropy: of (the right function, logits, targets)."""
    return replaced(losses, "_cross_entropy", of)


def _smoothed(right: Any, logits: jax.Array, targets: jax.Array) -> jax.Array:
    """By half: to a network that has learned nothing all tokens are much the same, and the usual tenth changes little."""
    return 0.5 * right(logits, targets) - 0.5 * jax.nn.log_softmax(logits, axis=-1).mean(-1)


def _by_logsumexp(right: Any, logits: jax.Array, targets: jax.Array) -> jax.Array:
    log_probabilities = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    return -jnp.take_along_axis(log_probabilities, targets[..., None], axis=-1)[..., 0]


def each_loss(problem: str, of: Callable[[Any, Any], Any]) -> Change:
    """Another loss of each row of the heads of a problem: of (outputs, targets)."""

    def wrong(right: Any, head: Any, outputs: jax.Array, targets: jax.Array, is_token: jax.Array) -> jax.Array:
        if head.problem != problem:
            return right(head, outputs, targets, is_token)
        return of(outputs, targets.reshape(outputs.shape))

    return replaced(losses, "_item_losses", wrong)


def _half_gradient_of_products(gradient: Any, *operands: Any, **options: Any) -> Any:
    return products._transpose(gradient / 2, *operands, **options)


def _layer_exchanged_heads(leaves: dict[str, Any]) -> dict[str, Any]:
    path = "layers.1.attention.query"
    order = np.r_[8:16, 0:8, 16:32]  # heads are 8 wide
    return {f"{path}.kernel": leaves[f"{path}.kernel"][:, order], f"{path}.bias": leaves[f"{path}.bias"][order]}


def _one_weight(change: float) -> Change:
    path = "layers.1.feed_forward.output.kernel"
    return params(lambda leaves: {path: leaves[path].at[3, 5].add(change)})


def _every_weight(of: Callable[[jax.Array], jax.Array]) -> Change:
    return params(lambda leaves: {path: of(leaf) for path, leaf in leaves.items()})


def _keys_as_values(leaves: dict[str, Any]) -> dict[str, Any]:
    return {f"layers.0.attention.value.{each}": leaves[f"layers.0.attention.key.{each}"] for each in ("kernel", "bias")}


_SUM, _OUT = "embeddings.sum", "embeddings.output"

MUTATIONS = [
    # embeddings
    Mutation("positions from 0", _SUM, positions(lambda right, is_token, pad: right - is_token)),
    Mutation("positions one too far", _SUM, positions(lambda right, is_token, pad: right + is_token)),
    Mutation("positions without the offset of padding", _SUM, positions(lambda right, is_token, pad: right - pad)),
    Mutation(
        "positions that count padding",
        _SUM,
        positions(lambda right, is_token, pad: jnp.cumsum(jnp.ones_like(is_token), axis=1) * is_token + pad),
        rows=frozenset({GAP_ROW}),
    ),
    Mutation("token ids one off", _SUM, table("token", lambda rows, ids: rows(ids - 1))),
    Mutation(
        "rows of the position table one off",
        _SUM,
        params(
            lambda leaves: {"embeddings.position.embedding": jnp.roll(leaves["embeddings.position.embedding"], 1, 0)}
        ),
    ),
    Mutation(
        "embeddings scaled by the root of their size", _SUM, table("token", lambda rows, ids: rows(ids) * _HIDDEN**0.5)
    ),
    Mutation("positions left out", _SUM, table("position", lambda rows, ids: 0 * rows(ids))),
    Mutation("token type 1 for 0", _SUM, table("token_type", lambda rows, ids: rows(ids + 1)), pre_norm=True),
    Mutation("token types left out", _SUM, table("token_type", lambda rows, ids: 0 * rows(ids)), pre_norm=True),
    Mutation("embeddings not normalized", _OUT, replaced(model.Embeddings, "__call__", _without_norm)),
    Mutation("dropout left on", _OUT, replaced(model, "dropout", _dropout_without_key)),
    Mutation("embeddings' bias missing", _OUT, zero("embeddings.layer_norm.bias")),
    Mutation(
        "parameters stored in float16",
        _SUM,
        _every_weight(lambda leaf: leaf.astype(jnp.float16).astype(leaf.dtype)),
    ),
    # LayerNorm
    Mutation("epsilon 1e-12", _OUT, config(layer_norm_epsilon=1e-12)),
    Mutation("epsilon outside of the root", _OUT, norm(_epsilon_outside)),
    Mutation("variance of n - 1", _OUT, norm(_unbiased)),
    Mutation("norm without a mean", _OUT, norm(_not_centered)),
    Mutation(
        "a scale missing",
        f"{_L1}.attention_layer_norm",
        params(
            lambda leaves: {
                f"{_L1}.attention_layer_norm.scale": jnp.ones_like(leaves[f"{_L1}.attention_layer_norm.scale"])
            }
        ),
    ),
    Mutation(
        "a LayerNorm's bias missing", f"{_L0}.feed_forward_layer_norm", zero(f"{_L0}.feed_forward_layer_norm.bias")
    ),
    Mutation(
        "a layer's two LayerNorms exchanged",
        f"{_L0}.attention_layer_norm",
        exchanged(f"{_L0}.attention_layer_norm.", f"{_L0}.feed_forward_layer_norm."),
    ),
    # attention
    Mutation("scale dropped", f"{_L0}.attention.scores", context(query=lambda x: x * _DEPTH**0.5)),
    Mutation("scale without the root", f"{_L0}.attention.scores", context(query=lambda x: x * _DEPTH**-0.5)),
    Mutation(
        "scale of the hidden size", f"{_L0}.attention.scores", context(query=lambda x: x * (_DEPTH / _HIDDEN) ** 0.5)
    ),
    Mutation(
        "query and key exchanged",
        f"{_L0}.attention.query",
        exchanged(f"{_L0}.attention.query.", f"{_L0}.attention.key."),
    ),
    Mutation(
        "products of keys with queries", f"{_L0}.attention.scores", replaced(attention, "_whole", _keys_for_queries)
    ),
    Mutation("values from the keys' projection", f"{_L0}.attention.value", params(_keys_as_values)),
    Mutation(
        "heads split as depth, heads",
        f"{_L0}.attention.scores",
        context(query=_depth_first, key=_depth_first, value=_depth_first),
    ),
    Mutation("heads joined as depth, heads", f"{_L0}.attention.context", context(result=_heads_first)),
    Mutation("heads joined in the wrong order", f"{_L0}.attention.context", context(result=_heads_reversed)),
    Mutation(
        "softmax over queries",
        f"{_L0}.attention.weights",
        weights(lambda right, scores, mask: jax.nn.softmax(_masked(scores, mask), axis=-2)),
    ),
    Mutation(
        "softmax in bfloat16",
        f"{_L0}.attention.weights",
        weights(lambda right, scores, mask: jax.nn.softmax(_masked(scores, mask).astype(jnp.bfloat16), axis=-1)),
        FLOAT32,
    ),
    Mutation("mask off", f"{_L0}.attention.weights", mask(jnp.ones_like), rows=PADDED_ROWS),
    Mutation("mask upside down", f"{_L0}.attention.weights", mask(jnp.logical_not)),
    Mutation(
        "mask hides the last column",
        f"{_L0}.attention.weights",
        mask(lambda right: right & (jnp.arange(right.shape[-1]) < right.shape[-1] - 1)),
        rows=frozenset({LONGEST_ROW}),
    ),
    Mutation(
        "mask lets one padding in",
        f"{_L0}.attention.weights",
        mask(lambda right: right | jnp.roll(right, 1, axis=-1)),
        rows=PADDED_ROWS,
    ),
    Mutation(
        "mask of -10 added",
        f"{_L0}.attention.weights",
        weights(lambda right, scores, mask: jax.nn.softmax(jnp.where(mask, scores, scores - 10.0), axis=-1)),
        FLOAT32,
        rows=PADDED_ROWS,
    ),
    Mutation(
        "attention to the left only",
        f"{_L0}.attention.weights",
        weights(lambda right, scores, mask: right(scores, mask & jnp.tri(*scores.shape[-2:], dtype=bool))),
    ),
    Mutation("attention dropout left on", f"{_L0}.attention.context", context(dropout_key=1)),
    Mutation(
        "a square matrix transposed",
        f"{_L0}.attention.value",
        params(lambda leaves: {f"{_L0}.attention.value.kernel": leaves[f"{_L0}.attention.value.kernel"].T}),
    ),
    Mutation(
        "the output's matrix transposed",
        f"{_L1}.attention.output",
        params(lambda leaves: {f"{_L1}.attention.output.kernel": leaves[f"{_L1}.attention.output.kernel"].T}),
    ),
    Mutation(
        "query's and key's matrices exchanged",
        f"{_L1}.attention.query",
        exchanged(f"{_L1}.attention.query.", f"{_L1}.attention.key."),
    ),
    Mutation(
        "value's and output's matrices exchanged",
        f"{_L1}.attention.value",
        exchanged(f"{_L1}.attention.value.", f"{_L1}.attention.output."),
    ),
    Mutation("two heads of the query exchanged", f"{_L1}.attention.query", params(_layer_exchanged_heads)),
    Mutation("the key's bias missing", f"{_L1}.attention.key", zero(f"{_L1}.attention.key.bias")),
    Mutation("the output's bias missing", f"{_L1}.attention.output", zero(f"{_L1}.attention.output.bias")),
    # layers
    Mutation(
        "residual around attention missing",
        f"{_L0}.attention_layer_norm",
        block(model.SelfAttention, lambda right, x: right - x),
    ),
    Mutation(
        "residual around feed-forward missing",
        f"{_L0}.feed_forward_layer_norm",
        block(model.FeedForward, lambda right, x: right - x),
    ),
    Mutation(
        "residual added twice",
        f"{_L0}.attention_layer_norm",
        block(model.SelfAttention, lambda right, x: right + x),
    ),
    Mutation("pre-norm for post-norm", f"{_L0}.attention.query", _layer_with(normalize_before=True)),
    Mutation(
        "post-norm for pre-norm", f"{_L0}.attention_layer_norm", _layer_with(normalize_before=False), pre_norm=True
    ),
    Mutation(
        "residual from after the norm",
        f"{_L0}.feed_forward_layer_norm",
        replaced(model.TransformerLayer, "__call__", _residual_after_the_norm),
        pre_norm=True,
    ),
    Mutation(
        "last LayerNorm missing",
        "features",
        replaced(model.RobertaModel, "features", _without_last_norm),
        pre_norm=True,
    ),
    Mutation("layers exchanged", f"{_L0}.attention.query", exchanged(f"{_L0}.", f"{_L1}."), two_layers=True),
    Mutation("last layer missing", "features", replaced(forward, "network", _first_layer_alone), two_layers=True),
    Mutation("tanh gelu for erf", f"{_L0}.feed_forward.activation", config(activation="gelu_accurate"), FLOAT32),
    Mutation("relu for gelu", f"{_L0}.feed_forward.activation", config(activation="relu")),
    Mutation(
        "sigmoid gelu for erf",
        f"{_L0}.feed_forward.activation",
        activation("gelu", lambda x: x * jax.nn.sigmoid(1.702 * x)),
    ),
    Mutation(
        "activation left out",
        f"{_L0}.feed_forward.activation",
        replaced(model.FeedForward, "activation", lambda right, self, x: x),
    ),
    Mutation(
        "activation dropout left on",
        f"{_L0}.feed_forward.output",
        replaced(model.FeedForward, "__call__", lambda right, self, x, key: right(self, x, jax.random.key(2))),
    ),
    Mutation(
        "feed-forward's bias missing", f"{_L1}.feed_forward.intermediate", zero(f"{_L1}.feed_forward.intermediate.bias")
    ),
    Mutation("one weight off by 1e-2", f"{_L1}.feed_forward.output", _one_weight(1e-2), FLOAT32),
    Mutation("one weight off by 1e-3", f"{_L1}.feed_forward.output", _one_weight(1e-3), FLOAT32),
    Mutation("one weight off by 1e-8", f"{_L1}.feed_forward.output", _one_weight(1e-8), FLOAT64),
    Mutation(
        "biases rounded to bfloat16",
        f"{_L0}.attention.query",
        replaced(model.Linear, "__call__", _rounded_bias),
        FLOAT32,
    ),
    Mutation("products in bfloat16", f"{_L0}.attention.query", replaced(products, "product", _in_bfloat16), FLOAT32),
    # LM head
    Mutation("LM head's bias missing", "lm_head.logits", zero("lm_head.bias")),
    Mutation("LM head's tanh gelu for erf", "lm_head.layer_norm", config(lm_head_activation="gelu_accurate"), FLOAT32),
    Mutation(
        "LM head normalizes before it activates",
        "lm_head.layer_norm",
        replaced(model.LMHead, "__call__", _norm_before_activation),
    ),
    Mutation(
        "tied embedding one row off", "lm_head.logits", lm_embedding(lambda rows, head: jnp.roll(rows, 1, axis=0))
    ),
    Mutation(
        "tied embedding without padding's row",
        "lm_head.logits",
        lm_embedding(lambda rows, head: rows.at[head.config.pad_id].set(0)),
    ),
    Mutation("tied where it is not", "lm_head.logits", replaced(model.LMHead, "__call__", _tied), pre_norm=True),
    Mutation(
        "LM head asked one position too early", "lm_head.logits", replaced(forward, "lm_logits", _positions_one_less)
    ),
    Mutation("selection one token off", "lm_head.layer_norm", replaced(model, "tokens_at", _tokens_one_less)),
    # heads
    Mutation("a head of the last token", "heads.topic.dense", dense_head(lambda features: features[:, ::-1])),
    Mutation("a head of the second token", "heads.topic.logits", value(forward, "FIRST_TOKEN", slice(1, 2))),
    Mutation("a head without tanh", "heads.topic.dense", replaced(model.Head, "activation", lambda right, self, x: x)),
    Mutation("a head's relu for tanh", "heads.topic.dense", config(pooler_activation="relu")),
    Mutation("a head's dense bias missing", "heads.topic.dense", zero("heads.topic.dense.bias")),
    Mutation("a head's dropout left on", "heads.topic.logits", replaced(model.Head, "__call__", _head_with_dropout)),
    Mutation("classes in another order", "heads.topic.logits", reversed_classes("topic")),
    Mutation(
        "log-softmax over rows",
        "heads.topic.log_probabilities",
        log_probs("sentence", lambda logits, is_token: jax.nn.log_softmax(logits, axis=0)),
    ),
    Mutation(
        "probabilities for their logarithms",
        "heads.topic.log_probabilities",
        log_probs("sentence", lambda logits, is_token: jax.nn.softmax(logits, axis=-1)),
    ),
    Mutation("start for end", "heads.answer.logits", reversed_classes("answer")),
    Mutation(
        "padding among the answers",
        "heads.answer.log_probabilities",
        log_probs("span", lambda logits, is_token: jax.nn.log_softmax(logits, axis=1)),
        rows=PADDED_ROWS,
    ),
    Mutation("start against end", "heads.answer.log_probabilities", log_probs("span", _start_against_end)),
    Mutation(
        "several labels as one",
        "heads.topics.log_probabilities",
        log_probs("sentence", lambda logits, is_token: jax.nn.log_softmax(logits)),
        pre_norm=True,
    ),
    # losses
    Mutation("masked-LM's mean over all places", "lm_head.loss", loss("masked_lm_loss", _mean_over_all_places)),
    Mutation("masked-LM's weights not used", "lm_head.loss", loss("masked_lm_loss", _unweighted)),
    Mutation("label smoothing", "lm_head.loss", cross_entropy(_smoothed)),
    Mutation("losses in bits", "lm_head.loss", cross_entropy(lambda right, *args: right(*args) / jnp.log(2.0))),
    Mutation(
        "another token's loss", "lm_head.loss", cross_entropy(lambda right, logits, targets: right(logits, targets - 1))
    ),
    Mutation("a head's mean of n - 1 rows", "heads.topic.loss", loss("head_loss", _one_row_less)),
    Mutation(
        "a regression's sum for its mean",
        "heads.score.loss",
        each_loss("regression", lambda outputs, targets: jnp.square(outputs - targets).sum(axis=-1)),
        pre_norm=True,
    ),
    Mutation(
        "a regression's absolute error",
        "heads.score.loss",
        each_loss("regression", lambda outputs, targets: jnp.abs(outputs - targets).mean(axis=-1)),
        pre_norm=True,
    ),
    Mutation(
        "labels that do not hold left out",
        "heads.topics.loss",
        each_loss("multi_label", lambda outputs, targets: -(targets * jax.nn.log_sigmoid(outputs)).sum(axis=-1)),
        pre_norm=True,
    ),
    # gradients
    Mutation(
        "no gradient through attention's residual",
        f"gradients.{_L0}.feed_forward_layer_norm.bias",
        block(model.SelfAttention, lambda right, x: right + (lax.stop_gradient(x) - x)),
        two_layers=True,
    ),
    Mutation(
        "no gradient through feed-forward's residual",
        f"gradients.{_L1}.attention_layer_norm.bias",
        block(model.FeedForward, lambda right, x: right + (lax.stop_gradient(x) - x)),
    ),
    Mutation("half a gradient of values", f"gradients.{_L1}.attention.value.bias", context(value=_half_gradient)),
    Mutation(
        "no gradient of the attention weights",
        f"gradients.{_L1}.attention.key.kernel",
        weights(lambda right, scores, mask: lax.stop_gradient(right(scores, mask))),
    ),
    Mutation("no gradient of a scale", "gradients.lm_head.layer_norm.scale", norm(scaled=lax.stop_gradient)),
    Mutation("LayerNorm's statistics constant", "gradients.lm_head.dense.bias", norm(_constant_statistics)),
    Mutation(
        "no gradient of the embedding by the LM head",
        "gradients.embeddings.token.embedding",
        lm_embedding(lambda rows, head: lax.stop_gradient(rows)),
    ),
    Mutation(
        "no gradient of a head by the network",
        f"gradients.{_L1}.feed_forward_layer_norm.bias",
        dense_head(lax.stop_gradient),
    ),
    Mutation(
        "slope of tanh gelu",
        f"gradients.{_L1}.feed_forward.intermediate.bias",
        replaced(model.FeedForward, "activation", _gelu_with_the_slope_of_tanh_gelu),
        FLOAT32,
    ),
    Mutation(
        "no gradient of positions",
        "gradients.embeddings.position.embedding",
        table("position", lambda rows, ids: lax.stop_gradient(rows(ids))),
    ),
    Mutation(
        "half a gradient of 16-bit products",
        "gradients.heads.topic.output.kernel",
        lambda patch, subject: patch.setitem(ad.primitive_transposes, products._primitive, _half_gradient_of_products),
        ("bfloat16",),
    ),
]


@dataclass(frozen=True)
class Equivalent:
    """A network that computes the same otherwise.

    Attributes:
      name: how.
      changes: of a subject or the package.
      attention: one of attention.IMPLEMENTATIONS.
    """

    name: str
    changes: tuple[Change, ...]
    attention: str | None = None


def _in_halves(right: Any, subscripts: str, x: jax.Array, kernel: jax.Array, **static: Any) -> jax.Array:
    """A linear layer's product as the sum of two."""
    if subscripts != "...i,io->...o":
        return right(subscripts, x, kernel, **static)
    half = x.shape[-1] // 2
    return right(subscripts, x[..., :half], kernel[:half], **static) + right(
        subscripts, x[..., half:], kernel[half:], **static
    )


def _scaled_scores(right: Any, subscripts: str, *operands: jax.Array, **static: Any) -> jax.Array:
    result = right(subscripts, *operands, **static)
    return result * _DEPTH**-0.5 if subscripts == "bqhd,bkhd->bhqk" else result


def _fused(parts: Any, x: jax.Array) -> list[jax.Array]:
    """Several linear layers of one input as one product."""
    kernel = jnp.concatenate([part.kernel[...] for part in parts], axis=1)
    bias = jnp.concatenate([part.bias[...] for part in parts])
    numerics = parts[0].numerics
    result = products.product("...i,io->...o", x, kernel, dtype=numerics.dtype, precision=numerics.precision)
    return jnp.split(result + bias.astype(result.dtype), len(parts), axis=-1)


def _fused_projections(right: Any, self: Any, x: jax.Array, tokens: jax.Array, *others: Any) -> jax.Array:
    """What is compared of them is what follows: nothing returns queries, keys and values by themselves."""
    if x is tokens:
        projected = _fused((self.query, self.key, self.value), x)
    else:
        projected = [self.query(x), *_fused((self.key, self.value), tokens)]
    return self.output(self.context(*projected, *others))


EQUIVALENTS = [
    Equivalent(
        "attention in chunks",
        (value(attention, "_WHOLE_BYTES", 0), value(attention, "_CHUNK_BYTES", 20_000)),
        "chunked",
    ),
    Equivalent("query, key and value as one product", (replaced(model.SelfAttention, "__call__", _fused_projections),)),
    Equivalent(
        "scores scaled and not queries",
        (context(query=lambda x: x * _DEPTH**0.5), replaced(attention, "product", _scaled_scores, everywhere=False)),
    ),
    Equivalent("softmax without subtracting the largest", (weights(_exponentials_over_their_sum),)),
    Equivalent(
        "a mask of -10000",
        (weights(lambda right, scores, mask: jax.nn.softmax(jnp.where(mask, scores, -10000.0), axis=-1)),),
    ),
    Equivalent("LayerNorm written out", (norm(),)),
    Equivalent("LayerNorm's variance in one pass", (replaced(model, "layer_norm", _variance_in_one_pass),)),
    Equivalent(
        "gelu by the complement of erf",
        (activation("gelu", functools.partial(jax.nn.gelu, approximate=False)),),
    ),
    Equivalent("products in two halves", (replaced(model, "product", _in_halves, everywhere=False),)),
    Equivalent("log-softmax by a logarithm of a sum", (cross_entropy(_by_logsumexp),)),
    # no effect that anybody sees: attention does not look at padding, and what padding holds is nobody's
    Equivalent("embeddings of padding not zero", (replaced(model.Embeddings, "__call__", _padding_kept),)),
    Equivalent(
        "positions of padding that go on",
        (positions(lambda right, is_token, pad: jnp.cumsum(is_token, axis=1) + pad),),
    ),
]
