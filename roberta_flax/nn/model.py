"""The network: RoBERTa (Liu et al., 2019) as fairseq computes it, in Flax NNX.

Reading order: embeddings, attention, feed-forward, layer, heads, the whole network, and what they are built from.

Shapes: `batch` rows of `time` tokens, `hidden` features of each. These axes stay as they are inside a layer: with the
tokens of all rows in one axis, the TPU's compiler would pad and copy queries, keys and values (docs/performance.md). Of
the last layer only some tokens may be wanted; `queries` are those of each row whose output is computed.

Numbers: a matrix product takes its operands in `dtype` and returns its result in the accumulation dtype (float32, or
float64 where `dtype` is float64). Everything between two products (bias, gelu, residual, LayerNorm, softmax) stays in
that dtype. In int8 a layer's linear maps are quantize.QuantizedLinear.

Dropout takes explicit keys: `key=None` evaluates, a PRNG key trains. RobertaModel.train has the model draw them.

Intermediate values are the outputs of methods: `nnx.capture(run, nnx.Intermediate, method_outputs=nnx.Intermediate)`
returns them by path, "layers.0.attention.query.__call__" for one (see roberta_flax.parity.subject).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from roberta_flax.errors import InputError
from roberta_flax.nn.attention import attend
from roberta_flax.nn.config import NO_LM_HEAD, HeadConfig, RobertaConfig
from roberta_flax.nn.meshes import has_explicit_axes, in_auto_mode, with_rows_divided
from roberta_flax.nn.numerics import Numerics
from roberta_flax.nn.products import broadcast_like, product
from roberta_flax.nn.quantize import QuantizedLinear, smooth, smoothing
from roberta_flax.nn.residuals import (
    LayerNorm,
    RecomputedLayerNorm,
    optimization_barrier,
    with_low_precision_residual,
)

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, Key, Shaped

    # Tokens of each row, by their positions; or a slice of positions, the same for all rows.
    Positions = Int[Array, "batch selected"] | slice

FIRST_TOKEN = slice(0, 1)
_NORMAL = nnx.initializers.normal(0.02)  # fairseq's init_bert_params
_Result = TypeVar("_Result")

# From this many tokens on, the stream is stored after each layer. The TPU's compiler would rather keep what each layer
# adds to it, 32 MiB in 8,192 tokens of 1,024 features, until the end (docs/performance.md).
_LONG_ROW = 2048


class MoreInputs(TypedDict, total=False):
    """What may take the place of, or be given beside, token ids: arguments of all functions of roberta_flax.forward.

    Attributes:
      inputs_embeds: Float [batch, time, hidden], in place of the rows of the token embedding: before the embeddings of
        positions and token types are added. Token ids beside it say where padding is, and so which positions count;
        with `tokens=None` there is none.
      token_types: Int [batch, time], rows of the token type embedding; by default 0 for every token.
      head_mask: Float [layers, heads] or [layers, batch, heads], factors of what each attention head adds: 0 leaves a
        head out (Michel et al., 2019). With Transformers' `head_mask` it multiplies the weights, to the same effect.
      attention_mask: Bool [batch, time], which tokens the others of their row attend to; never padding. A token that
        none attends to has a position and features still. For one sequence a row, without segments.
    """

    inputs_embeds: Array | None
    token_types: Array | None
    head_mask: Array | None
    attention_mask: Array | None


def given_tokens(tokens: Array | None, config: RobertaConfig, inputs: MoreInputs) -> Array:
    """The token ids or, for `inputs_embeds` without them, ids that are not padding.

    Raises:
      InputError: neither is given, or an array has another shape than the model takes.
    """
    embeds, types, of_heads = (inputs.get(name) for name in ("inputs_embeds", "token_types", "head_mask"))
    attended = inputs.get("attention_mask")
    given: Any = embeds if tokens is None else tokens
    if given is None:
        raise InputError("give tokens or inputs_embeds, got neither")
    if tokens is not None and tokens.ndim != 2:
        raise InputError(f"tokens must be [batch, time], got {[*tokens.shape]}; pass one sequence as tokens[None]")
    batch, time = given.shape[:2]
    layers, heads = config.num_layers, config.num_heads
    _check_shape("inputs_embeds", embeds, (batch, time, config.hidden_size))
    _check_shape("token_types", types, (batch, time))
    _check_shape("head_mask", of_heads, (layers, heads), (layers, batch, heads))
    _check_shape("attention_mask", attended, (batch, time))
    if types is not None and config.type_vocab_size < 2:
        raise InputError(f"the model has {config.type_vocab_size} token types, so there are none to choose")
    return jnp.full((batch, time), config.pad_id + 1, jnp.int32) if tokens is None else tokens


def _check_shape(name: str, array: Any, *possible: tuple[int, ...]) -> None:
    if array is not None and tuple(array.shape) not in possible:
        described = " or ".join(str([*shape]) for shape in possible)
        raise InputError(f"{name} must be {described} here, got {[*array.shape]}")


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x times the standard normal distribution function of x, by erf, as torch.nn.functional.gelu computes it.

    (jax.nn.gelu takes erfc, which is more exact far below zero: within 4e-7 where this is within 1.2e-6. For the TPU's
    compiler, erfc makes a feed-forward layer a quarter slower; see docs/performance.md.)
    """
    return 0.5 * x * (1 + lax.erf(x * np.sqrt(0.5).astype(x.dtype)))


# fairseq.utils.get_activation_fn. gelu_fast is gelu_accurate's old name.
ACTIVATION_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "relu_squared": lambda x: jnp.square(jax.nn.relu(x)),
    "gelu": gelu,
    "gelu_fast": partial(jax.nn.gelu, approximate=True),
    "gelu_accurate": partial(jax.nn.gelu, approximate=True),
    "tanh": jnp.tanh,
    "linear": lambda x: x,
}


def dropout(
    x: Float[Array, "*shape"], rate: float, key: Key[Array, ""] | None, barrier: bool = True
) -> Float[Array, "*shape"]:
    """Zeroes each element with probability `rate` and scales the others by 1 / (1 - rate); no-op without a key.

    With `barrier`, what is kept for the gradient is the mask, and not the random bits that it is made of.
    """
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, np.float32(1.0 - rate), x.shape)  # the same bits with jax_enable_x64
    keep = optimization_barrier(keep) if barrier else keep
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def position_ids(
    token_ids: Int[Array, "batch time"], pad_id: int, segments: Int[Array, "batch time"] | None = None
) -> Int[Array, "batch time"]:
    """Numbers the tokens that are not padding from pad_id + 1; padding gets pad_id (fairseq.utils.make_positions).

    With `segments`, numbers start again in each segment.
    """
    not_padding = (token_ids != pad_id).astype(jnp.int32)
    count = jnp.cumsum(not_padding, axis=1)
    if segments is not None:
        begins = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
        count -= lax.cummax(jnp.where(begins, count - not_padding, 0), axis=1)
    return count * not_padding + pad_id


def attention_mask(
    is_padding: Bool[Array, "batch time"],
    segments: Int[Array, "batch time"] | None,
    given: Bool[Array, "batch time"] | None = None,
) -> Bool[Array, "batch #time time"]:
    """The keys that each query sees: [batch, 1, time], those that are not padding, the same for all queries.

    With `given`, those of them that it has. With `segments`, [batch, time, time]: those of the query's own segment.

    Raises:
      InputError: both are given.
    """
    if segments is None:
        return ~is_padding[:, None, :] if given is None else (~is_padding & given.astype(bool))[:, None, :]
    if given is not None:
        raise InputError("attention_mask is for one sequence a row, and segments were given too")
    return segments[:, :, None] == segments[:, None, :]


def tokens_at(x: Shaped[Array, "batch time n"], positions: Positions) -> Shaped[Array, "batch selected n"]:
    """The tokens of each row at `positions`."""
    if isinstance(positions, slice):
        return x[:, positions]
    return jnp.take_along_axis(x, positions[:, :, None], axis=1)


class Part(nnx.Module):
    """A part of the network: what it is built from, and how it computes."""

    def __init__(self, config: RobertaConfig, numerics: Numerics) -> None:
        self.config = config
        self.numerics = numerics

    def train(self, **attributes: Any) -> None:
        """Raises InputError: a part has no mode; a PRNG key turns its dropout on."""
        raise InputError(
            "this part of the network has no train mode; call train() of the RobertaModel, or pass "
            "key=jax.random.key(...)"
        )


class Embeddings(Part):
    """Token plus position (plus token type 0) embedding, LayerNorm, dropout; padding becomes zero."""

    def __init__(self, config: RobertaConfig, numerics: Numerics, rngs: nnx.Rngs) -> None:
        super().__init__(config, numerics)
        embed = partial(nnx.Embed, features=config.hidden_size, param_dtype=numerics.param_dtype, rngs=rngs)
        init = _normal_with_zero_row(config.pad_id)
        self.token = embed(config.vocab_size, embedding_init=init)
        self.position = embed(config.max_positions + config.pad_id + 1, embedding_init=init)
        self.token_type = embed(config.type_vocab_size, embedding_init=_NORMAL) if config.type_vocab_size else None
        self.layer_norm = layer_norm(config, numerics, rngs) if config.layernorm_embedding else None

    def __call__(
        self,
        token_ids: Int[Array, "batch time"],
        segments: Int[Array, "batch time"] | None,
        key: Key[Array, ""] | None,
        inputs_embeds: Float[Array, "batch time hidden"] | None = None,
        token_types: Int[Array, "batch time"] | None = None,
    ) -> Float[Array, "batch time hidden"]:
        x = self.sum(token_ids, segments, inputs_embeds, token_types)
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        x = dropout(x, self.config.dropout, key)
        is_padding = token_ids == self.config.pad_id
        return jnp.where(is_padding[..., None], jnp.zeros_like(x), x)

    def sum(
        self,
        token_ids: Int[Array, "batch time"],
        segments: Int[Array, "batch time"] | None,
        inputs_embeds: Float[Array, "batch time hidden"] | None,
        token_types: Int[Array, "batch time"] | None,
    ) -> Float[Array, "batch time hidden"]:
        """The sum of the embeddings, before LayerNorm, in the accumulation dtype."""
        if inputs_embeds is None:
            x = self._rows(self.token, token_ids)
        else:
            x = inputs_embeds.astype(self.numerics.accumulation_dtype)
        if self.token_type is not None:
            x = x + self._rows(self.token_type, jnp.zeros_like(token_ids) if token_types is None else token_types)
        return x + self._rows(self.position, position_ids(token_ids, self.config.pad_id, segments))

    def _rows(self, table: nnx.Embed, ids: Int[Array, "batch time"]) -> Float[Array, "batch time hidden"]:
        """Rows of a table. (Calling nnx.Embed would first cast the whole table.)"""
        return jnp.take(table.embedding[...], ids, axis=0).astype(self.numerics.accumulation_dtype)


class SelfAttention(Part):
    """Multi-head self-attention with padding masked (fairseq/modules/multihead_attention.py)."""

    def __init__(self, config: RobertaConfig, numerics: Numerics, rngs: nnx.Rngs) -> None:
        super().__init__(config, numerics)
        size = config.hidden_size
        unsmoothed = dataclasses.replace(numerics, smoothed=False)  # the three read the same features
        self.query, self.key, self.value = (layer_linear(size, size, unsmoothed, rngs) for _ in range(3))
        self.output = layer_linear(size, size, numerics, rngs)
        self.smoothing = smoothing(size) if numerics.smoothed else None

    def __call__(
        self,
        x: Float[Array, "batch queries hidden"],
        tokens: Float[Array, "batch time hidden"],
        mask: Bool[Array, "batch #queries time"],
        key: Key[Array, ""] | None,
        head_mask: Float[Array, " heads"] | Float[Array, "batch heads"] | None = None,
    ) -> Float[Array, "batch queries hidden"]:
        """What each token of `x` takes from `tokens`."""
        x, tokens = smooth(x, self.smoothing), smooth(tokens, self.smoothing)
        return self.output(self.context(self.query(x), self.key(tokens), self.value(tokens), mask, key, head_mask))

    def context(
        self,
        query: Float[Array, "batch queries hidden"],
        key: Float[Array, "batch time hidden"],
        value: Float[Array, "batch time hidden"],
        mask: Bool[Array, "batch #queries time"],
        dropout_key: Key[Array, ""] | None,
        head_mask: Float[Array, " heads"] | Float[Array, "batch heads"] | None,
    ) -> Float[Array, "batch queries hidden"]:
        """The mean of the values, weighted for each query by head, before the output projection."""
        num_heads = self.config.num_heads
        depth = self.config.hidden_size // num_heads

        def heads(projected: Float[Array, "batch tokens hidden"]) -> Float[Array, "batch tokens heads depth"]:
            return projected.astype(self.numerics.dtype).reshape(*projected.shape[:2], num_heads, depth)

        rate = self.config.attention_dropout
        context = attend(
            heads(query * depth**-0.5),
            heads(key),
            heads(value),
            mask,
            implementation=self.numerics.attention,
            precision=self.numerics.precision,
            # remat keeps nothing of a layer; with tensor parallelism, libtpu 0.0.42.1 crashes at this barrier under it
            dropout=None
            if dropout_key is None or rate == 0.0
            else partial(dropout, rate=rate, key=dropout_key, barrier=not self.numerics.remat),
            record=partial(self.sow, nnx.Intermediate) if self.numerics.observed else None,
        )
        if head_mask is not None:
            context = context * head_mask.reshape(-1, 1, num_heads, 1).astype(context.dtype)
        return context.reshape(query.shape)


class FeedForward(Part):
    """Two projections with an activation between them."""

    def __init__(self, config: RobertaConfig, numerics: Numerics, rngs: nnx.Rngs) -> None:
        super().__init__(config, numerics)
        self.intermediate = layer_linear(config.hidden_size, config.intermediate_size, numerics, rngs)
        self.output = layer_linear(config.intermediate_size, config.hidden_size, numerics, rngs)

    def __call__(
        self, x: Float[Array, "batch time hidden"], key: Key[Array, ""] | None
    ) -> Float[Array, "batch time hidden"]:
        activated = self.activation(self.intermediate(x))
        return self.output(dropout(activated, self.config.activation_dropout, key))

    def activation(self, x: Float[Array, "batch time intermediate"]) -> Float[Array, "batch time intermediate"]:
        """The configured activation function, element by element."""
        function = ACTIVATION_FUNCTIONS[self.config.activation]
        return with_low_precision_residual(function, self.numerics.dtype)(x)


class TransformerLayer(Part):
    """Attention and feed-forward, each with a residual; LayerNorm after (post-norm) or before (pre-norm) each."""

    def __init__(self, config: RobertaConfig, numerics: Numerics, rngs: nnx.Rngs) -> None:
        super().__init__(config, numerics)
        # remat recomputes all of a layer; to recompute a LayerNorm in that once more would take passes of its own
        norm = partial(layer_norm, config, numerics, rngs, recomputed=not numerics.remat)
        self.attention = SelfAttention(config, numerics, rngs)
        self.attention_layer_norm = norm()
        self.feed_forward = FeedForward(config, numerics, rngs)
        self.feed_forward_layer_norm = norm()

    def __call__(
        self,
        x: Float[Array, "batch time hidden"],
        mask: Bool[Array, "batch #time time"],
        key: Key[Array, ""] | None,
        positions: Positions | None = None,
        head_mask: Float[Array, " heads"] | Float[Array, "batch heads"] | None = None,
    ) -> Float[Array, "batch queries hidden"]:
        """The layer's output for every token, or for those of each row at `positions`."""
        return self.last_norm(self.residual_sum(x, mask, key, positions, head_mask))

    def last_norm(self, x: Float[Array, "batch queries hidden"]) -> Float[Array, "batch queries hidden"]:
        """The LayerNorm that ends a post-norm layer; in a pre-norm network, the array itself."""
        return x if self.config.normalize_before else self.feed_forward_layer_norm(x)

    def residual_sum(
        self,
        x: Float[Array, "batch time hidden"],
        mask: Bool[Array, "batch #time time"],
        key: Key[Array, ""] | None,
        positions: Positions | None = None,
        head_mask: Float[Array, " heads"] | Float[Array, "batch heads"] | None = None,
    ) -> Float[Array, "batch queries hidden"]:
        """The layer's output before `last_norm`."""
        keys = _split(key, 4)
        pre_norm = self.config.normalize_before

        tokens = self.attention_layer_norm(x) if pre_norm else x
        queries = tokens
        if positions is not None:
            x, queries = tokens_at(x, positions), tokens_at(tokens, positions)
            mask = mask if mask.shape[1] == 1 else tokens_at(mask, positions)
        attn_output = self.attention(queries, tokens, mask, keys[0], head_mask)
        x = x + dropout(attn_output, self.config.dropout, keys[1])
        x = x if pre_norm else self.attention_layer_norm(x)

        mlp_output = self.feed_forward(self.feed_forward_layer_norm(x) if pre_norm else x, keys[2])
        return x + dropout(mlp_output, self.config.dropout, keys[3])


class LMHead(Part):
    """A logit for every token of the vocabulary, from features (fairseq's RobertaLMHead)."""

    def __init__(self, config: RobertaConfig, numerics: Numerics, rngs: nnx.Rngs) -> None:
        super().__init__(config, numerics)
        self.dense = Linear(config.hidden_size, config.hidden_size, numerics, rngs)
        self.layer_norm = layer_norm(config, numerics, rngs)
        self.bias = nnx.Param(jnp.zeros(config.vocab_size, numerics.param_dtype))
        if config.tie_word_embeddings:
            self.embedding = None
        else:  # a bare nn.Linear's weight, which init_bert_params does not reach
            shape = (config.vocab_size, config.hidden_size)
            self.embedding = nnx.Param(_torch_linear_init(shape, config.hidden_size, numerics, rngs))

    def __call__(
        self, features: Float[Array, "*tokens hidden"], token_embedding: Float[Array, "vocab hidden"]
    ) -> Float[Array, "*tokens vocab"]:
        x = self.layer_norm(ACTIVATION_FUNCTIONS[self.config.lm_head_activation](self.dense(features)))
        rows = token_embedding if self.embedding is None else self.embedding[...]
        logits = product("...h,vh->...v", x, rows, dtype=self.numerics.dtype, precision=self.numerics.precision)
        return with_rows_divided(logits + broadcast_like(self.bias[...], logits))


class Head(Part):
    """The outputs of a head of any kind, from features (see HeadConfig).

    A new head is initialized as torch initializes nn.Linear, uniformly within 1 / sqrt(inputs): fairseq registers heads
    after it has applied init_bert_params to the rest.
    """

    def __init__(self, config: RobertaConfig, head: HeadConfig, numerics: Numerics, rngs: nnx.Rngs) -> None:
        super().__init__(config, numerics)
        self.head = head
        init = partial(_torch_linear_init, numerics=numerics, rngs=rngs)
        inputs = config.hidden_size
        unset = nnx.initializers.zeros
        self.dense = Linear(inputs, head.inner_size, numerics, rngs, unset) if head.has_dense else None
        inputs = head.inner_size if head.has_dense else inputs
        self.output = Linear(inputs, head.num_classes, numerics, rngs, unset) if head.has_output else None
        for layer in (self.dense, self.output):
            if layer is not None:
                inputs, outputs = layer.kernel.shape
                layer.kernel = nnx.Param(init((inputs, outputs), inputs))
                layer.bias = nnx.Param(init((outputs,), inputs))

    @classmethod
    def init_params(
        cls, config: RobertaConfig, head: HeadConfig, numerics: Numerics, key: Key[Array, ""]
    ) -> dict[str, Any]:
        """Initializes the parameters of a new head: its part of the parameter tree."""
        return nnx.to_pure_dict(nnx.state(cls(config, head, numerics, nnx.Rngs(key)), nnx.Param))

    def __call__(
        self, features: Float[Array, "batch time hidden"], key: Key[Array, ""] | None
    ) -> Float[Array, "batch classes"] | Float[Array, "batch time classes"]:
        """[batch, classes], for the first token; [batch, time, classes] where the kind sees every token."""
        first_token_only = self.head.has_dense
        x = features[:, 0, :] if first_token_only else features
        keys = _split(key, 2)
        if self.dense is not None:
            if self.head.kind == "sentence":
                x = dropout(x, self.config.pooler_dropout, keys[0])
            x = self.activation(self.dense(x))
        if self.output is not None:
            rate = 0.0 if self.head.kind == "span" else self.config.pooler_dropout
            x = self.output(dropout(x, rate, keys[1]))
        return x

    def activation(self, x: Float[Array, "batch inner"]) -> Float[Array, "batch inner"]:
        """The activation of the dense layer: the configured one in a sentence head, tanh in others."""
        activation = self.config.pooler_activation if self.head.kind == "sentence" else "tanh"
        return ACTIVATION_FUNCTIONS[activation](x)


class RobertaModel(Part):
    """The whole network. docs/parameters.md lists its parameters.

    Called with token ids it returns their features. It starts in eval mode; `train` turns dropout and LayerDrop on.

    Attributes:
      rngs: in train mode, what draws a key for every call that is given none.
    """

    def __init__(
        self,
        config: RobertaConfig,
        numerics: Numerics,
        rngs: nnx.Rngs,
        layers: Iterable[TransformerLayer] | None = None,
    ) -> None:
        """Builds the network, initialized as fairseq does (init_bert_params: normal, 0.02; biases zero).

        Args:
          config, numerics: what to compute, and how.
          rngs: for the initial parameters.
          layers: the transformer layers; None initializes config.num_layers new ones.
        """
        super().__init__(config, numerics)
        self.embeddings = Embeddings(config, numerics, rngs)
        if layers is None:
            layers = [TransformerLayer(config, numerics, rngs) for _ in range(config.num_layers)]
        self.layers = nnx.List(layers)
        self.layer_norm = layer_norm(config, numerics, rngs) if config.normalize_before else None
        self.lm_head = LMHead(config, numerics, rngs) if config.lm_head else None
        self.heads = nnx.Dict({head.name: Head(config, head, numerics, rngs) for head in config.heads})
        self.rngs: nnx.Rngs | None = nnx.data(None)

    def __call__(
        self,
        token_ids: Int[Array, "batch time"] | None,
        segments: Int[Array, "batch time"] | None = None,
        key: Key[Array, ""] | None = None,
        positions: Positions | None = None,
        **inputs: Unpack[MoreInputs],
    ) -> Float[Array, "batch selected hidden"]:
        """See `features`."""
        return self.features(token_ids, segments, key, positions, **inputs)

    def train(self, rngs: nnx.Rngs | int = 0, **attributes: Any) -> None:
        """Turns dropout and LayerDrop on, with keys from the stream `dropout` of `rngs`, or of a seed."""
        super(Part, self).train(**attributes)  # type: ignore[no-untyped-call]
        self.rngs = nnx.Rngs(dropout=rngs) if isinstance(rngs, int) else rngs

    def eval(self, **attributes: Any) -> None:
        """Turns dropout and LayerDrop off."""
        super().eval(**attributes)  # type: ignore[no-untyped-call]
        self.rngs = nnx.data(None)

    def _key(self, key: Key[Array, ""] | None) -> Key[Array, ""] | None:
        return self.rngs.dropout() if key is None and self.rngs is not None else key

    def features(
        self,
        token_ids: Int[Array, "batch time"] | None,
        segments: Int[Array, "batch time"] | None = None,
        key: Key[Array, ""] | None = None,
        positions: Positions | None = None,
        **inputs: Unpack[MoreInputs],
    ) -> Float[Array, "batch selected hidden"]:
        """The last layer's output, with the final LayerNorm where the network is pre-norm, in the accumulation dtype.

        Args:
          token_ids: in the vocabulary, at most max_positions a row.
          segments: where several sequences stand in a row, one after the other, the number of each token's sequence,
            and another number for padding: none sees the others, and each has positions of its own.
          key: for dropout and LayerDrop; None evaluates, or draws one in train mode.
          positions: of the tokens of each row whose features are wanted: one array a row, or one slice for all rows.
            The last layer is computed for these only: the others' keys and values, but not their queries, output
            projection and feed-forward. None for all tokens.
          **inputs: see MoreInputs.

        Raises:
          InputError: an array of `inputs` has another shape than the model takes.
        """

        def features(model: RobertaModel, *arrays: Any, **inputs: Any) -> Array:
            x = model._layer_outputs(*arrays, **inputs)[-1]
            return x if model.layer_norm is None else model.layer_norm(x)

        return self._on_any_mesh(features, token_ids, segments, self._key(key), positions, **inputs)

    def hidden_states(
        self,
        token_ids: Int[Array, "batch time"] | None,
        segments: Int[Array, "batch time"] | None = None,
        key: Key[Array, ""] | None = None,
        **inputs: Unpack[MoreInputs],
    ) -> list[Float[Array, "batch time hidden"]]:
        """The embedding output and each layer's output: num_layers + 1 arrays, in the accumulation dtype.

        The final LayerNorm of a pre-norm network is in `features` and not in the last of these. Arguments as of
        `features`.
        """
        return self._on_any_mesh(RobertaModel._layer_outputs, token_ids, segments, self._key(key), **inputs)

    def _on_any_mesh(self, function: Callable[..., _Result], rows: Any, *others: Any, **inputs: Any) -> _Result:
        """A function of the model, of an array whose rows divide its results, and of others; on Explicit axes too.

        There it runs on a copy of the model, in Auto mode (see nn.meshes). Values inside are those of the copy:
        forward.intermediates returns them on any mesh, and nnx.capture only on others.
        """
        if not has_explicit_axes((self.embeddings.token.embedding[...], rows, others, inputs)):
            return function(self, rows, *others, **inputs)
        graphdef, state = nnx.split(self)

        def of_arrays(state: Any, *arrays: Any, **inputs: Any) -> _Result:
            return function(nnx.merge(graphdef, state), *arrays, **inputs)

        return in_auto_mode(of_arrays)(state, rows, *others, **inputs)

    def _layer_outputs(
        self,
        token_ids: Int[Array, "batch time"] | None,
        segments: Int[Array, "batch time"] | None,
        key: Key[Array, ""] | None,
        positions: Positions | None = None,
        **inputs: Unpack[MoreInputs],
    ) -> list[Float[Array, "batch _ hidden"]]:
        """The embedding output and each layer's; the last of the tokens at `positions` only."""
        token_ids = given_tokens(token_ids, self.config, inputs)
        head_mask = inputs.get("head_mask")
        mask = attention_mask(token_ids == self.config.pad_id, segments, inputs.get("attention_mask"))
        keys = _split(key, 1 + 2 * len(self.layers))
        x = self.embeddings(token_ids, segments, keys[0], inputs.get("inputs_embeds"), inputs.get("token_types"))
        x = with_rows_divided(x)
        outputs = [x]
        # With remat, a layer's last LayerNorm is computed in the next one: what is kept is then the sum that it reads,
        # and the product before that sum does not have to be computed again.
        defers_norm = self.numerics.remat and (key is None or self.config.layer_drop == 0.0)
        norm: Callable[[Array], Array] = _unchanged
        for i, layer in enumerate(self.layers):
            layer_key, drop_key = keys[1 + 2 * i], keys[2 + 2 * i]
            wanted = positions if i == len(self.layers) - 1 else None
            of_heads = None if head_mask is None else head_mask[i]
            arguments: dict[str, Any] = {"mask": mask, "key": layer_key, "positions": wanted, "head_mask": of_heads}
            part: Callable[..., Array] = layer.residual_sum if defers_norm else layer
            run: Callable[[Array], Array] = partial(_run_after, norm, part, **arguments)
            run = jax.checkpoint(run) if self.numerics.remat else run
            if drop_key is None or self.config.layer_drop == 0.0:
                x = run(x)
            else:  # fairseq/modules/layer_drop.py: a layer runs where a uniform number exceeds layer_drop
                skip = partial(tokens_at, positions=slice(None) if wanted is None else wanted)
                x = lax.cond(jax.random.uniform(drop_key, dtype=np.float32) > self.config.layer_drop, run, skip, x)
            is_long = isinstance(token_ids.shape[1], int) and token_ids.shape[1] >= _LONG_ROW
            x = with_rows_divided(optimization_barrier(x) if is_long else x)
            norm = layer.last_norm if defers_norm else _unchanged
            outputs.append(norm(x))
        return outputs

    def lm_logits(self, features: Float[Array, "*tokens hidden"]) -> Float[Array, "*tokens vocab"]:
        """A logit for every token of the vocabulary, in the accumulation dtype.

        Raises:
          InputError: the network has no masked-LM head.
        """
        if self.lm_head is None:
            raise InputError(NO_LM_HEAD)

        def logits(model: RobertaModel, features: Array) -> Array:
            assert model.lm_head is not None, "checked above"
            return model.lm_head(features, model.embeddings.token.embedding[...])

        return self._on_any_mesh(logits, features)

    def head_logits(
        self, head: str, features: Float[Array, "batch time hidden"], key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch classes"] | Float[Array, "batch time classes"]:
        """The outputs of the head called `head`, in the accumulation dtype."""

        def logits(model: RobertaModel, features: Array, key: Any) -> Array:
            outputs: Array = model.heads[head](features, key)
            return outputs

        return self._on_any_mesh(logits, features, self._key(key))


class Linear(nnx.Module):
    """kernel [inputs, outputs] and bias [outputs], initialized as init_bert_params does, unless `init` is given.

    The bias is added to the product's result, in the accumulation dtype. (nnx.Linear rounds it to the operands' dtype,
    and derives its gradients from the casts and the product: see products.product.)
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        numerics: Numerics,
        rngs: nnx.Rngs,
        init: nnx.Initializer = _NORMAL,
    ) -> None:
        self.numerics = numerics
        self.kernel = nnx.Param(init(rngs.params(), (inputs, outputs), numerics.param_dtype))
        self.bias = nnx.Param(jnp.zeros(outputs, numerics.param_dtype))

    def __call__(self, x: Float[Array, "*tokens inputs"]) -> Float[Array, "*tokens outputs"]:
        """The result is in the accumulation dtype."""
        numerics = self.numerics
        result = product("...i,io->...o", x, self.kernel[...], dtype=numerics.dtype, precision=numerics.precision)
        return with_rows_divided(result + broadcast_like(self.bias[...], result))


def _unchanged(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return x


def _run_after(norm: Callable[[Array], Array], run: Callable[..., Array], x: Array, **arguments: Any) -> Array:
    """Runs a part of the network on a LayerNorm's result."""
    return run(norm(x), **arguments)


def layer_linear(inputs: int, outputs: int, numerics: Numerics, rngs: nnx.Rngs) -> Linear | QuantizedLinear:
    """`Linear`, or its quantized form."""
    if numerics.quantized:
        return QuantizedLinear(inputs, outputs, numerics.accumulation_dtype, numerics.param_dtype, numerics.smoothed)
    return Linear(inputs, outputs, numerics, rngs)


def layer_norm(config: RobertaConfig, numerics: Numerics, rngs: nnx.Rngs, recomputed: bool = True) -> nnx.LayerNorm:
    """LayerNorm over the features, in the accumulation dtype; `recomputed` for its gradient under a 16-bit `dtype`.

    The variance is computed in two passes, as torch does, but under a 16-bit `dtype` in one (the mean of squares less
    the square of the mean): what that loses is far below what rounding the operands loses, and an accelerator reads the
    features once.
    """
    kind = RecomputedLayerNorm if recomputed and numerics.dtype.itemsize == 2 else LayerNorm
    return kind(
        config.hidden_size,
        epsilon=config.layer_norm_epsilon,
        dtype=numerics.accumulation_dtype,
        param_dtype=numerics.param_dtype,
        use_fast_variance=numerics.dtype.itemsize == 2,
        rngs=rngs,
    )


def _split(key: Key[Array, ""] | None, count: int) -> list[Key[Array, ""] | None]:
    return [None] * count if key is None else list(jax.random.split(key, count))


def _normal_with_zero_row(row: int) -> Callable[..., Array]:
    def init(key: Key[Array, ""], shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> Float[Array, "..."]:
        array: Array = _NORMAL(key, shape, dtype)
        return array.at[row].set(0)

    return init


def _torch_linear_init(shape: tuple[int, ...], inputs: int, numerics: Numerics, rngs: nnx.Rngs) -> Float[Array, "..."]:
    """torch.nn.Linear.reset_parameters: kaiming_uniform_(a=sqrt(5)) is uniform within 1 / sqrt(inputs)."""
    bound = inputs**-0.5
    return jax.random.uniform(rngs.params(), shape, numerics.param_dtype, -bound, bound)
