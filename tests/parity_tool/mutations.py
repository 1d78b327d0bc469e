"""Networks that are wrong on purpose: a text of the source replaced by another, a parameter or a choice changed.

Each says at which point a comparison must find it.
"""

from __future__ import annotations
import __future__

import dataclasses
import inspect
import sys
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from roberta_flax.nn import attention, forward, model, products
from roberta_flax.nn.tree import flatten, unflatten
from roberta_flax.parity.observation import Subject
from roberta_flax.train import losses
from tests.parity_tool.networks import GAP_ROW, LONGEST_ROW, PADDED_ROWS

Change = Callable[[pytest.MonkeyPatch, Subject], None]
ALL = ("float64", "float32", "bfloat16")
# What bfloat16 cannot find, operands being rounded within 2^-9 to 2^-8 of their size, 2e-3 to 4e-3: its own rounding, put in
# where float32 computes; the two gelus, at most 5e-4 apart; a mask that leaves e^-10 = 5e-5 of a weight; one weight of 48
# in a sum off by 1e-2 where they are all 0.1 large, so that the others' rounding moves the sum as far.
FLOAT32 = ("float64", "float32")
# A weight of 0.1 off by 1e-8 is as far off as float32 may round it: 0.1 * 2^-24 = 6e-9.
FLOAT64 = ("float64",)


@dataclass(frozen=True)
class Mutation:
    """A wrong network.

    Attributes:
      name: what is wrong.
      at: the first point that diverges.
      change: makes a subject, or the package, wrong.
      dtypes: of the computations in which it must be found at that point.
      pre_norm: whether it is one of networks.PRE_NORM, and not of POST_NORM.
      rows: those that it changes; None for all.
    """

    name: str
    at: str
    change: Change
    dtypes: tuple[str, ...] = ALL
    pre_norm: bool = False
    rows: frozenset[int] | None = None

    @property
    def of_gradients(self) -> bool:
        """Whether only gradients are wrong."""
        return self.at.startswith("gradients.")


class _Norm(nnx.LayerNorm):
    """LayerNorm written out, so that parts of it can be wrong."""

    def __call__(self, x: jax.Array, *, mask: Any = None) -> jax.Array:
        scale, bias = (each[...].astype(x.dtype) for each in (self.scale, self.bias))
        return self.normalised(x) * scale + bias

    def normalised(self, x: jax.Array) -> jax.Array:
        return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + self.epsilon)


class _Unbiased(_Norm):
    def normalised(self, x: jax.Array) -> jax.Array:
        return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True, ddof=1) + self.epsilon)


class _NotCentred(_Norm):
    def normalised(self, x: jax.Array) -> jax.Array:
        return x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + self.epsilon)


class _EpsilonOutside(_Norm):
    def normalised(self, x: jax.Array) -> jax.Array:
        return (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + self.epsilon)


class _ConstantStatistics(_Norm):
    """Right, but its mean and variance have no gradient."""

    def normalised(self, x: jax.Array) -> jax.Array:
        mean, variance = (lax.stop_gradient(of(x, -1, keepdims=True)) for of in (jnp.mean, jnp.var))
        return (x - mean) / jnp.sqrt(variance + self.epsilon)


class _ConstantScale(_Norm):
    """Right, but its scale has no gradient."""

    def __call__(self, x: jax.Array, *, mask: Any = None) -> jax.Array:
        scale, bias = (each[...].astype(x.dtype) for each in (self.scale, self.bias))
        return self.normalised(x) * lax.stop_gradient(scale) + bias


def _half_gradient(x: jax.Array) -> jax.Array:
    return 0.5 * x + lax.stop_gradient(0.5 * x)


def _gelu_with_the_slope_of_tanh_gelu(x: jax.Array) -> jax.Array:
    approximate = jax.nn.gelu(x, approximate=True)
    return approximate + lax.stop_gradient(jax.nn.gelu(x, approximate=False) - approximate)


_HELPERS = {
    name: value
    for name, value in globals().items()
    if name.startswith("_") and getattr(value, "__module__", "") == __name__
}


def mutated(function: Any, old: str, new: str) -> Any:
    """The function with `old`, which its source must have once, replaced by `new`."""
    function = inspect.unwrap(function)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{function.__qualname__} has {old!r} {source.count(old)} times"
    module = sys.modules[function.__module__]
    names = vars(module) | _HELPERS | {"jax": jax, "jnp": jnp, "lax": lax}
    code = compile(
        source.replace(old, new), inspect.getsourcefile(function), "exec", __future__.annotations.compiler_flag
    )
    exec(code, names)  # noqa: S102 - the source is ours
    return names[function.__name__]


def source(function: Any, old: str, new: str) -> Change:
    """Another text in a function's source, wherever the package knows the function."""

    def change(patch: pytest.MonkeyPatch, subject: Subject) -> None:
        wrong = mutated(function, old, new)
        name, of_class, _ = function.__qualname__.rpartition(".")[2], *function.__qualname__.rpartition(".")[:2]
        if of_class:
            patch.setattr(getattr(sys.modules[function.__module__], of_class), name, wrong)
            return
        for known, module in list(sys.modules.items()):
            if known.startswith("roberta_flax.") and vars(module).get(name) is function:
                patch.setattr(module, name, wrong)

    return change


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


def activation(name: str, function: Callable[[jax.Array], jax.Array]) -> Change:
    """Another function under an activation's name."""
    return lambda patch, subject: patch.setitem(model.ACTIVATION_FUNCTIONS, name, function)


def backward_of_16_bits(old: str, new: str) -> Change:
    """Another gradient of the products in 16 bits."""
    return lambda patch, subject: patch.setattr(products._in_16_bits, "bwd", mutated(products._backward, old, new))


def norm(kind: str) -> Change:
    """Another LayerNorm."""
    return source(model.layer_norm, "return kind(\n", f"return {kind}(\n")


def _layer_exchanged_heads(leaves: dict[str, Any]) -> dict[str, Any]:
    path = "layers.1.attention.query"
    order = np.r_[8:16, 0:8, 16:32]  # heads are 8 wide
    return {f"{path}.kernel": leaves[f"{path}.kernel"][:, order], f"{path}.bias": leaves[f"{path}.bias"][order]}


def _one_weight(change: float) -> Change:
    path = "layers.1.feed_forward.output.kernel"
    return params(lambda leaves: {path: leaves[path].at[3, 5].add(change)})


def _every_weight(of: Callable[[jax.Array], jax.Array]) -> Change:
    return params(lambda leaves: {path: of(leaf) for path, leaf in leaves.items()})


_positions, _embed = model.position_ids, model.Embeddings.__call__
_attend, _feed = model.SelfAttention.__call__, model.FeedForward.__call__
_layer, _head, _lm = model.TransformerLayer.__call__, model.Head.__call__, model.LMHead.__call__
_SUM, _OUT = "embeddings.sum", "embeddings.output"
_L0, _L1 = "layers.0", "layers.1"

MUTATIONS = [
    # embeddings
    Mutation("positions from 0", _SUM, source(_positions, "count * not_padding", "(count - 1) * not_padding")),
    Mutation("positions one too far", _SUM, source(_positions, "count * not_padding", "(count + 1) * not_padding")),
    Mutation("positions without the offset of padding", _SUM, source(_positions, " + pad_id", "")),
    Mutation(
        "positions that count padding",
        _SUM,
        source(_positions, "jnp.cumsum(not_padding,", "jnp.cumsum(jnp.ones_like(not_padding),"),
        rows=frozenset({GAP_ROW}),
    ),
    Mutation(
        "token ids one off",
        _SUM,
        source(_embed, "self._rows(self.token, token_ids)", "self._rows(self.token, token_ids - 1)"),
    ),
    Mutation(
        "rows of the position table one off",
        _SUM,
        params(
            lambda leaves: {"embeddings.position.embedding": jnp.roll(leaves["embeddings.position.embedding"], 1, 0)}
        ),
    ),
    Mutation(
        "embeddings scaled by the root of their size",
        _SUM,
        source(
            _embed,
            "x = self._rows(self.token, token_ids)",
            "x = self._rows(self.token, token_ids) * self.config.hidden_size**0.5",
        ),
    ),
    Mutation("positions left out", _SUM, source(_embed, "x = x + self._rows(self.position,", "_ = (")),
    Mutation(
        "token type 1 for 0",
        _SUM,
        source(_embed, "jnp.zeros_like(token_ids)", "jnp.ones_like(token_ids)"),
        pre_norm=True,
    ),
    Mutation(
        "token types left out", _SUM, source(_embed, "if self.token_type is not None:", "if False:"), pre_norm=True
    ),
    Mutation("embeddings not normalised", _OUT, source(_embed, "if self.layer_norm is not None:", "if False:")),
    Mutation(
        "dropout left on",
        _OUT,
        source(model.dropout, "if key is None or rate == 0.0:\n        return x", "key = jax.random.key(0)"),
    ),
    Mutation("embeddings' bias missing", _OUT, zero("embeddings.layer_norm.bias")),
    Mutation(
        "parameters stored in float16",
        _SUM,
        _every_weight(lambda leaf: leaf.astype(jnp.float16).astype(leaf.dtype)),
    ),
    # LayerNorm
    Mutation("epsilon 1e-12", _OUT, config(layer_norm_epsilon=1e-12)),
    Mutation("epsilon outside of the root", _OUT, norm("_EpsilonOutside")),
    Mutation("variance of n - 1", _OUT, norm("_Unbiased")),
    Mutation("norm without a mean", _OUT, norm("_NotCentred")),
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
    Mutation("scale dropped", f"{_L0}.attention.scores", source(_attend, "query * depth**-0.5", "query")),
    Mutation(
        "scale without the root", f"{_L0}.attention.scores", source(_attend, "query * depth**-0.5", "query / depth")
    ),
    Mutation(
        "scale of the hidden size",
        f"{_L0}.attention.scores",
        source(_attend, "query * depth**-0.5", "query * self.config.hidden_size**-0.5"),
    ),
    Mutation(
        "query and key exchanged",
        f"{_L0}.attention.query",
        source(_attend, "self.query(x), self.key(context)", "self.key(x), self.query(context)"),
    ),
    Mutation(
        "products of keys with queries",
        f"{_L0}.attention.scores",
        source(
            attention._whole,
            '"bqhd,bkhd->bhqk", query, key',
            '"bqhd,bkhd->bhqk", *((key, query) if query.shape == key.shape else (query, key))',
        ),
    ),
    Mutation(
        "values from the keys' projection",
        f"{_L0}.attention.value",
        source(_attend, "self.value(context)", "self.key(context)"),
    ),
    Mutation(
        "heads split as depth, heads",
        f"{_L0}.attention.scores",
        source(_attend, "reshape(batch, -1, num_heads, depth)", "reshape(batch, -1, depth, num_heads).swapaxes(2, 3)"),
    ),
    Mutation(
        "heads joined as depth, heads",
        f"{_L0}.attention.context",
        source(_attend, ").reshape(x.shape)", ").swapaxes(2, 3).reshape(x.shape)"),
    ),
    Mutation(
        "heads joined in the wrong order",
        f"{_L0}.attention.context",
        source(_attend, ").reshape(x.shape)", ")[:, :, ::-1].reshape(x.shape)"),
    ),
    Mutation("softmax over queries", f"{_L0}.attention.weights", source(attention._weights, "axis=-1", "axis=-2")),
    Mutation(
        "softmax in bfloat16",
        f"{_L0}.attention.weights",
        source(
            attention._weights,
            "jnp.where(mask, scores, float(np.finfo(scores.dtype).min))",
            "jnp.where(mask, scores, float(np.finfo(scores.dtype).min)).astype(jnp.bfloat16)",
        ),
        FLOAT32,
    ),
    Mutation(
        "mask off",
        f"{_L0}.attention.weights",
        source(model.attention_mask, "~is_padding[:, None, :]", "jnp.ones_like(is_padding)[:, None, :]"),
        rows=PADDED_ROWS,
    ),
    Mutation(
        "mask upside down",
        f"{_L0}.attention.weights",
        source(model.attention_mask, "~is_padding[:, None, :]", "is_padding[:, None, :]"),
    ),
    Mutation(
        "mask hides the last column",
        f"{_L0}.attention.weights",
        source(
            model.attention_mask,
            "~is_padding[:, None, :]",
            "~is_padding[:, None, :] & (jnp.arange(is_padding.shape[1]) < is_padding.shape[1] - 1)",
        ),
        rows=frozenset({LONGEST_ROW}),
    ),
    Mutation(
        "mask lets one padding in",
        f"{_L0}.attention.weights",
        source(
            model.attention_mask, "~is_padding[:, None, :]", "(~is_padding | jnp.roll(~is_padding, 1, 1))[:, None, :]"
        ),
        rows=PADDED_ROWS,
    ),
    Mutation(
        "mask of -10 added",
        f"{_L0}.attention.weights",
        source(attention._weights, "float(np.finfo(scores.dtype).min)", "scores - 10.0"),
        FLOAT32,
        rows=PADDED_ROWS,
    ),
    Mutation(
        "attention to the left only",
        f"{_L0}.attention.weights",
        source(attention._whole, "mask[:, None])", "mask[:, None] & jnp.tri(*scores.shape[-2:], dtype=bool))"),
    ),
    Mutation(
        "attention dropout left on",
        f"{_L0}.attention.context",
        source(
            _attend,
            "None if key is None or rate == 0.0 else partial(dropout, rate=rate, key=key)",
            "partial(dropout, rate=rate, key=jax.random.key(1))",
        ),
    ),
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
        source(_layer, "x = x + dropout(attended,", "x = dropout(attended,"),
    ),
    Mutation(
        "residual around feed-forward missing",
        f"{_L0}.feed_forward_layer_norm",
        source(_layer, "x = x + dropout(fed,", "x = dropout(fed,"),
    ),
    Mutation(
        "residual added twice",
        f"{_L0}.attention_layer_norm",
        source(_layer, "x = x + dropout(attended,", "x = x + x + dropout(attended,"),
    ),
    Mutation(
        "pre-norm for post-norm",
        f"{_L0}.attention.query",
        source(_layer, "pre_norm = self.config.normalize_before", "pre_norm = True"),
    ),
    Mutation(
        "post-norm for pre-norm",
        f"{_L0}.attention_layer_norm",
        source(_layer, "pre_norm = self.config.normalize_before", "pre_norm = False"),
        pre_norm=True,
    ),
    Mutation(
        "residual from after the norm",
        f"{_L0}.feed_forward_layer_norm",
        source(_layer, "context = attention_norm(x)", "context = x = attention_norm(x)"),
        pre_norm=True,
    ),
    Mutation(
        "last LayerNorm missing",
        "features",
        source(model.RobertaModel.hidden_states, "x if self.layer_norm is None else self.layer_norm(x)", "x"),
        pre_norm=True,
    ),
    Mutation("layers exchanged", f"{_L0}.attention.query", exchanged(f"{_L0}.", f"{_L1}.")),
    Mutation(
        "last layer missing",
        "features",
        source(
            model.RobertaModel.hidden_states,
            "x = run(x)\n        else",
            "x = run(x) if i == 0 else x if selected is None else select_tokens(selected, x, mask)\n        else",
        ),
    ),
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
        source(_feed, "self.activation(intermediate)", "intermediate"),
    ),
    Mutation(
        "activation dropout left on",
        f"{_L0}.feed_forward.output",
        source(_feed, "self.config.activation_dropout, key", "self.config.activation_dropout, jax.random.key(2)"),
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
        source(model.Linear.__call__, "self.bias[...].astype", "self.bias[...].astype(jnp.bfloat16).astype"),
        FLOAT32,
    ),
    Mutation(
        "products in bfloat16",
        f"{_L0}.attention.query",
        source(products.product, "dtype = jnp.dtype(dtype)", "dtype = jnp.dtype(jnp.bfloat16)"),
        FLOAT32,
    ),
    # LM head
    Mutation("LM head's bias missing", "lm_head.logits", zero("lm_head.bias")),
    Mutation("LM head's tanh gelu for erf", "lm_head.layer_norm", config(lm_head_activation="gelu_accurate"), FLOAT32),
    Mutation(
        "LM head normalises before it activates",
        "lm_head.layer_norm",
        source(
            _lm,
            "self.layer_norm(ACTIVATION_FUNCTIONS[self.config.lm_head_activation](self.dense(features)))",
            "ACTIVATION_FUNCTIONS[self.config.lm_head_activation](self.layer_norm(self.dense(features)))",
        ),
    ),
    Mutation(
        "tied embedding one row off",
        "lm_head.logits",
        source(_lm, "rows = token_embedding if", "rows = jnp.roll(token_embedding, 1, axis=0) if"),
    ),
    Mutation(
        "tied embedding without padding's row",
        "lm_head.logits",
        source(_lm, "rows = token_embedding if", "rows = token_embedding.at[self.config.pad_id].set(0) if"),
    ),
    Mutation(
        "tied where it is not", "lm_head.logits", source(_lm, "if self.embedding is None", "if True"), pre_norm=True
    ),
    Mutation(
        "LM head asked one position too early",
        "lm_head.logits",
        source(forward.lm_logits, "tokens_at(positions))[1]", "tokens_at(jnp.maximum(positions - 1, 0)))[1]"),
    ),
    Mutation(
        "selection one token off",
        "lm_head.layer_norm",
        source(model.tokens_at, "positions[:, :, None]", "jnp.maximum(positions[:, :, None] - 1, 0)"),
    ),
    # heads
    Mutation("a head of the last token", "heads.topic.dense", source(_head, "features[:, 0, :]", "features[:, -1, :]")),
    Mutation(
        "a head of the second token",
        "heads.topic.logits",
        source(forward.head_outputs, "_first_tokens(starts))[1]", "lambda x: x[:, 1:2])[1]"),
    ),
    Mutation(
        "a head without tanh",
        "heads.topic.dense",
        source(_head, "ACTIVATION_FUNCTIONS[activation](self.dense(x))", "self.dense(x)"),
    ),
    Mutation("a head's relu for tanh", "heads.topic.dense", config(pooler_activation="relu")),
    Mutation("a head's dense bias missing", "heads.topic.dense", zero("heads.topic.dense.bias")),
    Mutation(
        "a head's dropout left on",
        "heads.topic.logits",
        source(_head, "self.output(dropout(x, rate, keys[1]))", "self.output(dropout(x, rate, jax.random.key(0)))"),
    ),
    Mutation(
        "classes in another order",
        "heads.topic.logits",
        params(
            lambda leaves: {
                f"heads.topic.output.{each}": leaves[f"heads.topic.output.{each}"][..., ::-1]
                for each in ("kernel", "bias")
            }
        ),
    ),
    Mutation(
        "log-softmax over rows",
        "heads.topic.log_probabilities",
        source(forward.head_log_probs, "log_softmax(logits, axis=-1)", "log_softmax(logits, axis=0)"),
    ),
    Mutation(
        "probabilities for their logarithms",
        "heads.topic.log_probabilities",
        source(forward.head_log_probs, "log_softmax(logits, axis=-1)", "softmax(logits, axis=-1)"),
    ),
    Mutation(
        "start for end",
        "heads.answer.logits",
        params(
            lambda leaves: {
                f"heads.answer.output.{each}": leaves[f"heads.answer.output.{each}"][..., ::-1]
                for each in ("kernel", "bias")
            }
        ),
    ),
    Mutation(
        "padding among the answers",
        "heads.answer.log_probabilities",
        source(forward.head_log_probs, "jnp.where(is_padding, float(np.finfo(logits.dtype).min), logits)", "logits"),
        rows=PADDED_ROWS,
    ),
    Mutation(
        "start against end",
        "heads.answer.log_probabilities",
        source(forward.head_log_probs, "logits), axis=1)", "logits), axis=2)"),
    ),
    Mutation(
        "several labels as one",
        "heads.topics.log_probabilities",
        source(forward.head_log_probs, "jax.nn.log_sigmoid(logits)", "jax.nn.log_softmax(logits)"),
        pre_norm=True,
    ),
    # losses
    Mutation(
        "masked-LM's mean over all places",
        "lm_head.loss",
        source(losses.masked_lm_loss, "weights.sum()\n\n", "jnp.float32(weights.size)\n\n"),
    ),
    Mutation(
        "masked-LM's weights not used",
        "lm_head.loss",
        source(losses.masked_lm_loss, "(losses * weights.reshape(-1)).sum()", "losses.sum()"),
    ),
    Mutation(
        "label smoothing",
        "lm_head.loss",
        source(losses._cross_entropy, "return -", "return -0.1 * log_probabilities.mean(-1) - 0.9 * "),
    ),
    Mutation(
        "losses in bits",
        "lm_head.loss",
        source(losses._cross_entropy, "axis=-1)[..., 0]", "axis=-1)[..., 0] / jnp.log(2.0)"),
    ),
    Mutation(
        "another token's loss",
        "lm_head.loss",
        source(losses._cross_entropy, "targets[..., None]", "targets[..., None] - 1"),
    ),
    Mutation(
        "a head's mean of n - 1 rows",
        "heads.topic.loss",
        source(losses.head_loss, "weights.sum()\n\n", "weights.sum() - 1\n\n"),
    ),
    Mutation(
        "a regression's sum for its mean",
        "heads.score.loss",
        source(losses._item_losses, "errors.mean(axis=-1)", "errors.sum(axis=-1)"),
        pre_norm=True,
    ),
    Mutation(
        "a regression's absolute error",
        "heads.score.loss",
        source(losses._item_losses, "jnp.square(", "jnp.abs("),
        pre_norm=True,
    ),
    Mutation(
        "labels that do not hold left out",
        "heads.topics.loss",
        source(losses._item_losses, " + (1 - targets) * jax.nn.log_sigmoid(-outputs)", ""),
        pre_norm=True,
    ),
    # gradients
    Mutation(
        "no gradient through attention's residual",
        f"gradients.{_L0}.feed_forward_layer_norm.bias",
        source(_layer, "x = x + dropout(attended,", "x = lax.stop_gradient(x) + dropout(attended,"),
    ),
    Mutation(
        "no gradient through feed-forward's residual",
        f"gradients.{_L1}.attention_layer_norm.bias",
        source(_layer, "x = x + dropout(fed,", "x = lax.stop_gradient(x) + dropout(fed,"),
    ),
    Mutation(
        "half a gradient of values",
        f"gradients.{_L1}.attention.value.bias",
        source(_attend, "heads(value)", "heads(_half_gradient(value))"),
    ),
    Mutation(
        "no gradient of the attention weights",
        f"gradients.{_L1}.attention.key.kernel",
        source(attention._whole, '"bhqk,bkhd->bqhd", weights', '"bhqk,bkhd->bqhd", lax.stop_gradient(weights)'),
    ),
    Mutation("no gradient of a scale", "gradients.lm_head.layer_norm.scale", norm("_ConstantScale")),
    Mutation("LayerNorm's statistics constant", "gradients.lm_head.dense.bias", norm("_ConstantStatistics")),
    Mutation(
        "no gradient of the embedding by the LM head",
        "gradients.embeddings.token.embedding",
        source(_lm, "rows = token_embedding if", "rows = lax.stop_gradient(token_embedding) if"),
    ),
    Mutation(
        "no gradient of a head by the network",
        f"gradients.{_L1}.feed_forward_layer_norm.bias",
        source(_head, "features[:, 0, :]", "lax.stop_gradient(features[:, 0, :])"),
    ),
    Mutation(
        "slope of tanh gelu",
        f"gradients.{_L1}.feed_forward.intermediate.bias",
        source(_feed, "self.activation", "_gelu_with_the_slope_of_tanh_gelu"),
        FLOAT32,
    ),
    Mutation(
        "no gradient of positions",
        "gradients.embeddings.position.embedding",
        source(
            _embed,
            "self._rows(self.position, position_ids(token_ids, self.config.pad_id, segments))",
            "lax.stop_gradient(self._rows(self.position, position_ids(token_ids, self.config.pad_id, segments)))",
        ),
    ),
    Mutation(
        "half a gradient of 16-bit products",
        "gradients.heads.topic.output.kernel",
        backward_of_16_bits("result = gradient.astype(dtype)", "result = (gradient / 2).astype(dtype)"),
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


def _set(module: Any, name: str, value: Any) -> Change:
    return lambda patch, subject: patch.setattr(module, name, value)


def _in_halves(subscripts: str, x: jax.Array, kernel: jax.Array, **static: Any) -> jax.Array:
    """A product as the sum of two."""
    half = x.shape[-1] // 2
    first = products.product(subscripts, x[:, :half], kernel[:half], **static)
    return first + products.product(subscripts, x[:, half:], kernel[half:], **static)


def _fused(parts: Any, x: jax.Array) -> list[jax.Array]:
    """Several linear layers of one input as one product."""
    kernel = jnp.concatenate([part.kernel[...] for part in parts], axis=1)
    bias = jnp.concatenate([part.bias[...] for part in parts])
    numerics = parts[0].numerics
    result = products.product("ti,io->to", x, kernel, dtype=numerics.dtype, precision=numerics.precision)
    return jnp.split(result + bias.astype(result.dtype), len(parts), axis=1)


_HELPERS |= {"_in_halves": _in_halves, "_fused": _fused}
_MASKED = "jax.nn.softmax(jnp.where(mask, scores, float(np.finfo(scores.dtype).min)), axis=-1)"
_EXPONENTIALS = "jnp.where(mask, jnp.exp(scores), 0)"

EQUIVALENTS = [
    Equivalent(
        "attention in chunks", (_set(attention, "_WHOLE_BYTES", 0), _set(attention, "_CHUNK_BYTES", 20_000)), "chunked"
    ),
    Equivalent(
        "query, key and value as one product",
        (
            source(
                _attend,
                "self.query(x), self.key(context), self.value(context)",
                "_fused((self.query, self.key, self.value), x) if x is context else (self.query(x), *_fused((self.key, self.value), context))",
            ),
        ),
    ),
    Equivalent(
        "scores scaled and not queries",
        (
            source(_attend, "query * depth**-0.5", "query"),
            source(
                attention._whole,
                '"bqhd,bkhd->bhqk", query, key)',
                '"bqhd,bkhd->bhqk", query, key) * query.shape[-1]**-0.5',
            ),
        ),
    ),
    Equivalent(
        "softmax without subtracting the largest",
        (source(attention._weights, _MASKED, f"{_EXPONENTIALS} / {_EXPONENTIALS}.sum(-1, keepdims=True)"),),
    ),
    Equivalent("a mask of -10000", (source(attention._weights, "float(np.finfo(scores.dtype).min)", "-10000.0"),)),
    Equivalent("LayerNorm written out", (norm("_Norm"),)),
    Equivalent(
        "LayerNorm's variance in one pass",
        (source(model.layer_norm, "variance=numerics.dtype.itemsize == 2", "variance=True"),),
    ),
    Equivalent(
        "gelu by erf and not by its complement",
        (activation("gelu", lambda x: 0.5 * x * (1 + lax.erf(x / np.sqrt(2).astype(x.dtype)))),),
    ),
    Equivalent(
        "products in two halves", (source(model.Linear.__call__, 'product("ti,io->to"', '_in_halves("ti,io->to"'),)
    ),
    Equivalent(
        "log-softmax by a logarithm of a sum",
        (
            source(
                losses._cross_entropy,
                "jax.nn.log_softmax(logits, axis=-1)",
                "logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)",
            ),
        ),
    ),
    # no effect that anybody sees: attention does not look at padding, and what padding holds is nobody's
    Equivalent(
        "embeddings of padding not zero",
        (source(_embed, "jnp.where(is_padding[..., None], jnp.zeros_like(x), x)", "x"),),
    ),
    Equivalent(
        "positions of padding that go on", (source(_positions, "count * not_padding + pad_id", "count + pad_id"),)
    ),
]
