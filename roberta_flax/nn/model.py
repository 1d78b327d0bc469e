"""The network: RoBERTa (Liu et al., 2019) as fairseq computes it, in Flax NNX.

Reading order: embeddings, attention, layer, encoder, heads, the whole. Shapes: `batch`, `time` (tokens in a
row), `hidden`; inside a layer the tokens of all rows stand in one axis, `tokens` = batch * time.

Numbers: a matrix product takes its operands in `dtype` and gives its result in the accumulation type (float32;
float64 where `dtype` is float64). Everything between two products (bias, gelu, residual, LayerNorm, softmax)
stays in that type.

In int8 a layer's products are quantize.QuantizedLinear.

Dropout takes explicit keys: `key=None` is evaluation, a PRNG key is training.

Each part shows the values that roberta_flax.parity compares (`Part.show`), where somebody looks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from roberta_flax.nn.attention import attend
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from roberta_flax.nn.numerics import Numerics
from roberta_flax.nn.products import product
from roberta_flax.nn.quantize import QuantizedLinear
from roberta_flax.nn.residuals import RecomputedLayerNorm, keeping_rounded, made_once

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, Key

# fairseq.utils.get_activation_fn. "gelu" is the exact erf form; gelu_fast is gelu_accurate's old name.
ACTIVATION_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "relu_squared": lambda x: jnp.square(jax.nn.relu(x)),
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_fast": partial(jax.nn.gelu, approximate=True),
    "gelu_accurate": partial(jax.nn.gelu, approximate=True),
    "tanh": jnp.tanh,
    "linear": lambda x: x,
}


def dropout(x: Float[Array, "..."], rate: float, key: Key[Array, ""] | None) -> Float[Array, "..."]:
    """Zeroes each element with probability `rate` and scales the others by 1 / (1 - rate); nothing without a key."""
    if key is None or rate == 0.0:
        return x
    keep = made_once(jax.random.bernoulli(key, 1.0 - rate, x.shape))
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def position_ids(
    token_ids: Int[Array, "batch time"], pad_id: int, segments: Int[Array, "batch time"] | None = None
) -> Int[Array, "batch time"]:
    """pad_id + 1 and on for the tokens that are not padding, pad_id for padding (fairseq.utils.make_positions).

    With `segments` they begin anew in each segment.
    """
    not_padding = (token_ids != pad_id).astype(jnp.int32)
    count = jnp.cumsum(not_padding, axis=1)
    if segments is not None:
        begins = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
        count -= lax.cummax(jnp.where(begins, count - not_padding, 0), axis=1)
    return count * not_padding + pad_id


def attention_mask(
    is_padding: Bool[Array, "batch time"], segments: Int[Array, "batch time"] | None
) -> Bool[Array, "batch queries key"]:
    """Which keys each query sees: all that are not padding (one row for all queries); or those of its own segment."""
    if segments is None:
        return ~is_padding[:, None, :]
    return segments[:, :, None] == segments[:, None, :]


# Takes some of each row's tokens: [batch, time, n] to [batch, selected, n].
Selection = Callable[["Float[Array, 'batch time n']"], "Float[Array, 'batch selected n']"]


def first_token(x: Float[Array, "batch time n"]) -> Float[Array, "batch 1 n"]:
    """The Selection of each row's first token."""
    return x[:, :1]


def tokens_at(positions: Int[Array, "batch selected"]) -> Selection:
    """The Selection of the tokens at these positions of each row."""
    return lambda x: jnp.take_along_axis(x, positions[:, :, None], axis=1)


def select_tokens(
    select: Selection, x: Float[Array, "tokens hidden"], mask: Bool[Array, "batch queries time"]
) -> Float[Array, "selected hidden"]:
    """`select` for tokens of all rows in one axis; the mask tells how many rows there are."""
    batch, _, time = mask.shape
    return select(x.reshape(batch, time, -1)).reshape(-1, x.shape[-1])


class Part(nnx.Module):
    """A part of the network: what it is built from, and how it computes."""

    def __init__(self, config: RobertaConfig, numerics: Numerics) -> None:
        self.config = config
        self.numerics = numerics

    def show(self, name: str, value: Float[Array, "..."]) -> None:
        """Sows an intermediate value where the network is observed; roberta_flax.parity.points has the names."""
        if self.numerics.observed:
            self.sow(nnx.Intermediate, name, value)


class Embeddings(Part):
    """Token plus position (plus token type 0) embedding, LayerNorm, dropout; padding becomes zero."""

    def __init__(self, config: RobertaConfig, numerics: Numerics, rngs: nnx.Rngs) -> None:
        super().__init__(config, numerics)
        embed = partial(nnx.Embed, features=config.hidden_size, param_dtype=numerics.param_dtype, rngs=rngs)
        init = _normal_with_zero_row(config.pad_id)
        self.token = embed(config.vocab_size, embedding_init=init)
        self.position = embed(config.max_positions + config.pad_id + 1, embedding_init=init)
        self.token_type = (
            embed(config.type_vocab_size, embedding_init=nnx.initializers.normal(0.02))
            if config.type_vocab_size
            else None
        )
        self.layer_norm = layer_norm(config, numerics, rngs) if config.layernorm_embedding else None

    def __call__(
        self,
        token_ids: Int[Array, "batch time"],
        segments: Int[Array, "batch time"] | None,
        key: Key[Array, ""] | None,
    ) -> Float[Array, "batch time hidden"]:
        x = self._rows(self.token, token_ids)
        if self.token_type is not None:
            x = x + self._rows(self.token_type, jnp.zeros_like(token_ids))
        x = x + self._rows(self.position, position_ids(token_ids, self.config.pad_id, segments))
        self.show("sum", x)
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        x = dropout(x, self.config.dropout, key)
        is_padding = token_ids == self.config.pad_id
        x = jnp.where(is_padding[..., None], jnp.zeros_like(x), x)
        self.show("output", x)
        return x

    def _rows(self, table: nnx.Embed, ids: Int[Array, "batch time"]) -> Float[Array, "batch time hidden"]:
        """Rows of a table. (Calling nnx.Embed would first cast the table, all of it.)"""
        return jnp.take(table.embedding[...], ids, axis=0).astype(self.numerics.accumulation_dtype)


class SelfAttention(Part):
    """Multi-head self-attention with padding masked (fairseq/modules/multihead_attention.py)."""

    def __init__(self, config: RobertaConfig, numerics: Numerics, rngs: nnx.Rngs) -> None:
        super().__init__(config, numerics)
        size = config.hidden_size
        self.query, self.key, self.value, self.output = (layer_linear(size, size, numerics, rngs) for _ in range(4))

    def __call__(
        self,
        x: Float[Array, "queries hidden"],
        context: Float[Array, "tokens hidden"],
        mask: Bool[Array, "batch queries time"],
        key: Key[Array, ""] | None,
    ) -> Float[Array, "queries hidden"]:
        """What each token of `x` takes from those of `context`, both all rows' tokens in one axis."""
        batch, num_heads = mask.shape[0], self.config.num_heads
        depth = self.config.hidden_size // num_heads

        def heads(projected: Float[Array, "tokens hidden"]) -> Float[Array, "batch time heads depth"]:
            return projected.astype(self.numerics.dtype).reshape(batch, -1, num_heads, depth)

        query, key_, value = self.query(x), self.key(context), self.value(context)
        for name, projected in (("query", query), ("key", key_), ("value", value)):
            self.show(name, projected)
        rate = self.config.attention_dropout
        attended = attend(
            heads(query * depth**-0.5),
            heads(key_),
            heads(value),
            mask,
            implementation=self.numerics.attention,
            precision=self.numerics.precision,
            dropout=None if key is None or rate == 0.0 else partial(dropout, rate=rate, key=key),
            show=self.show if self.numerics.observed else None,
        ).reshape(x.shape)
        output = self.output(attended)
        self.show("context", attended)
        self.show("output", output)
        return output


class FeedForward(Part):
    """Two projections with an activation between them."""

    def __init__(self, config: RobertaConfig, numerics: Numerics, rngs: nnx.Rngs) -> None:
        super().__init__(config, numerics)
        self.activation = keeping_rounded(ACTIVATION_FUNCTIONS[config.activation], numerics.dtype)
        self.intermediate = layer_linear(config.hidden_size, config.intermediate_size, numerics, rngs)
        self.output = layer_linear(config.intermediate_size, config.hidden_size, numerics, rngs)

    def __call__(self, x: Float[Array, "tokens hidden"], key: Key[Array, ""] | None) -> Float[Array, "tokens hidden"]:
        intermediate = self.intermediate(x)
        activation = self.activation(intermediate)
        output = self.output(dropout(activation, self.config.activation_dropout, key))
        for name, value in (("intermediate", intermediate), ("activation", activation), ("output", output)):
            self.show(name, value)
        return output


class TransformerLayer(Part):
    """Attention and feed-forward, each with a residual; LayerNorm after (post-norm) or before (pre-norm) each."""

    def __init__(self, config: RobertaConfig, numerics: Numerics, rngs: nnx.Rngs) -> None:
        super().__init__(config, numerics)
        self.attention = SelfAttention(config, numerics, rngs)
        self.attention_layer_norm = layer_norm(config, numerics, rngs)
        self.feed_forward = FeedForward(config, numerics, rngs)
        self.feed_forward_layer_norm = layer_norm(config, numerics, rngs)

    def __call__(
        self,
        x: Float[Array, "tokens hidden"],
        mask: Bool[Array, "batch queries time"],
        key: Key[Array, ""] | None,
        select: Selection | None = None,
    ) -> Float[Array, "selected hidden"]:
        """The layer's output for each token, or for those that `select` takes of each row."""
        keys = _split(key, 4)
        pre_norm = self.config.normalize_before

        def attention_norm(x: Float[Array, "tokens hidden"]) -> Float[Array, "tokens hidden"]:
            x = self.attention_layer_norm(x)
            self.show("attention_layer_norm", x)
            return x

        def feed_forward_norm(x: Float[Array, "tokens hidden"]) -> Float[Array, "tokens hidden"]:
            x = self.feed_forward_layer_norm(x)
            self.show("feed_forward_layer_norm", x)
            return x

        context = attention_norm(x) if pre_norm else x
        queries = context
        if select is not None:
            x, queries = select_tokens(select, x, mask), select_tokens(select, context, mask)
            mask = mask if mask.shape[1] == 1 else select(mask)
        attended = self.attention(queries, context, mask, keys[0])
        x = x + dropout(attended, self.config.dropout, keys[1])
        x = x if pre_norm else attention_norm(x)

        fed = self.feed_forward(feed_forward_norm(x) if pre_norm else x, keys[2])
        x = x + dropout(fed, self.config.dropout, keys[3])
        x = x if pre_norm else feed_forward_norm(x)
        self.show("output", x)
        return x


class LMHead(Part):
    """Features to a logit for every token of the vocabulary (fairseq's RobertaLMHead)."""

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
        self, features: Float[Array, "tokens hidden"], token_embedding: Float[Array, "vocab hidden"]
    ) -> Float[Array, "tokens vocab"]:
        x = self.layer_norm(ACTIVATION_FUNCTIONS[self.config.lm_head_activation](self.dense(features)))
        self.show("layer_norm", x)
        rows = token_embedding if self.embedding is None else self.embedding[...]
        logits = product("th,vh->tv", x, rows, dtype=self.numerics.dtype, precision=self.numerics.precision)
        return logits + self.bias[...].astype(logits.dtype)


class Head(Part):
    """Features to the outputs of a head, whichever its kind (see HeadConfig).

    A new head is initialised as torch initialises nn.Linear, uniform within 1 / sqrt(inputs): fairseq
    registers heads after it has applied init_bert_params to the rest.
    """

    def __init__(self, config: RobertaConfig, head: HeadConfig, numerics: Numerics, rngs: nnx.Rngs) -> None:
        super().__init__(config, numerics)
        self.head = head
        init = partial(_torch_linear_init, numerics=numerics, rngs=rngs)
        inputs = config.hidden_size
        self.dense = Linear(inputs, head.inner_size, numerics, rngs) if head.has_dense else None
        inputs = head.inner_size if head.has_dense else inputs
        self.output = Linear(inputs, head.num_classes, numerics, rngs) if head.has_output else None
        for layer in (self.dense, self.output):
            if layer is not None:
                inputs, outputs = layer.kernel.shape
                layer.kernel = nnx.Param(init((inputs, outputs), inputs))
                layer.bias = nnx.Param(init((outputs,), inputs))

    @classmethod
    def init_params(
        cls, config: RobertaConfig, head: HeadConfig, numerics: Numerics, key: Key[Array, ""]
    ) -> dict[str, Any]:
        """The parameters of a new head: its part of the tree."""
        return nnx.to_pure_dict(nnx.state(cls(config, head, numerics, nnx.Rngs(key)), nnx.Param))

    def __call__(
        self, features: Float[Array, "batch time hidden"], key: Key[Array, ""] | None
    ) -> Float[Array, "batch classes"] | Float[Array, "batch time classes"]:
        """Of the first token; [batch, time, classes] where the kind sees every token."""
        first_token_only = self.head.has_dense
        batch, time, size = features.shape
        x = features[:, 0, :] if first_token_only else features.reshape(batch * time, size)
        keys = _split(key, 2)
        if self.dense is not None:
            if self.head.kind == "sentence":
                x = dropout(x, self.config.pooler_dropout, keys[0])
            activation = self.config.pooler_activation if self.head.kind == "sentence" else "tanh"
            x = ACTIVATION_FUNCTIONS[activation](self.dense(x))
            self.show("dense", x)
        if self.output is not None:
            rate = 0.0 if self.head.kind == "span" else self.config.pooler_dropout
            x = self.output(dropout(x, rate, keys[1]))
        return x if first_token_only else x.reshape(batch, time, -1)


class RobertaModel(Part):
    """The whole network. Its parameter tree is documented in docs/parameters.md."""

    def __init__(self, config: RobertaConfig, numerics: Numerics, rngs: nnx.Rngs) -> None:
        """Builds the network, initialised as fairseq does (init_bert_params: normal, 0.02; biases zero)."""
        super().__init__(config, numerics)
        self.embeddings = Embeddings(config, numerics, rngs)
        self.layers = nnx.List([TransformerLayer(config, numerics, rngs) for _ in range(config.num_layers)])
        self.layer_norm = layer_norm(config, numerics, rngs) if config.normalize_before else None
        self.lm_head = LMHead(config, numerics, rngs) if config.lm_head else None
        self.heads = nnx.Dict({head.name: Head(config, head, numerics, rngs) for head in config.heads})

    def hidden_states(
        self,
        token_ids: Int[Array, "batch time"],
        segments: Int[Array, "batch time"] | None = None,
        key: Key[Array, ""] | None = None,
        select: Selection | None = None,
    ) -> tuple[list[Float[Array, "batch time hidden"]], Float[Array, "batch selected hidden"]]:
        """Every hidden state, and the features.

        Args:
          token_ids: in the vocabulary, at most max_positions a row.
          segments: where several sequences stand in a row, one after the other, the number of each token's sequence,
            and another number for padding: none sees the others, and each has positions of its own.
          key: for dropout and LayerDrop; None evaluates.
          select: the tokens whose features are wanted. The last layer is computed for these only: the others' keys and
            values, but not their queries, output projection and feed-forward. None for all tokens.

        Returns:
          The embedding output and each layer's output (num_layers + 1 arrays, the last of selected tokens), and the
          features: the last of them, with the final LayerNorm where the network is pre-norm. In the accumulation dtype.
        """
        batch, time = token_ids.shape
        mask = attention_mask(token_ids == self.config.pad_id, segments)
        keys = _split(key, 1 + 2 * len(self.layers))
        x = self.embeddings(token_ids, segments, keys[0]).reshape(batch * time, self.config.hidden_size)
        states = [x]
        for i, layer in enumerate(self.layers):
            layer_key, drop_key = keys[1 + 2 * i], keys[2 + 2 * i]
            selected = select if i == len(self.layers) - 1 else None
            run: Callable[[Array], Array] = partial(layer, mask=mask, key=layer_key, select=selected)
            run = jax.checkpoint(run) if self.numerics.remat else run
            if drop_key is None or self.config.layer_drop == 0.0:
                x = run(x)
            else:  # fairseq/modules/layer_drop.py: a layer runs where a uniform number exceeds layer_drop
                x = lax.cond(
                    jax.random.uniform(drop_key) > self.config.layer_drop,
                    run,
                    lambda x, chosen=selected: x if chosen is None else select_tokens(chosen, x, mask),
                    x,
                )
            states.append(x)
        features = x if self.layer_norm is None else self.layer_norm(x)
        *states, features = (state.reshape(batch, -1, self.config.hidden_size) for state in (*states, features))
        return states, features

    def lm_logits(self, features: Float[Array, "tokens hidden"]) -> Float[Array, "tokens vocab"]:
        """A logit for every token of the vocabulary, from features; only where config.lm_head."""
        assert self.lm_head is not None, "checked by forward.lm_logits"
        return self.lm_head(features, self.embeddings.token.embedding[...])

    def head_logits(
        self, head: str, features: Float[Array, "batch time hidden"], key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch classes"] | Float[Array, "batch time classes"]:
        """The outputs of the head called `head`."""
        return self.heads[head](features, key)


class Linear(nnx.Module):
    """kernel [inputs, outputs] and bias [outputs], initialised as init_bert_params does.

    The bias is added to the product's result, in the accumulation dtype. (nnx.Linear rounds it to the operands' dtype,
    and derives its gradients from the casts and the product: see products.product.)
    """

    def __init__(self, inputs: int, outputs: int, numerics: Numerics, rngs: nnx.Rngs) -> None:
        self.numerics = numerics
        kernel = nnx.initializers.normal(0.02)(rngs.params(), (inputs, outputs), numerics.param_dtype)
        self.kernel = nnx.Param(kernel)
        self.bias = nnx.Param(jnp.zeros(outputs, numerics.param_dtype))

    def __call__(self, x: Float[Array, "tokens inputs"]) -> Float[Array, "tokens outputs"]:
        """The result is in the accumulation dtype."""
        numerics = self.numerics
        result = product("ti,io->to", x, self.kernel[...], dtype=numerics.dtype, precision=numerics.precision)
        return result + self.bias[...].astype(result.dtype)


def layer_linear(inputs: int, outputs: int, numerics: Numerics, rngs: nnx.Rngs) -> Linear | QuantizedLinear:
    """`Linear`, or its quantised form."""
    if numerics.quantized:
        return QuantizedLinear(inputs, outputs, numerics.accumulation_dtype, numerics.param_dtype)
    return Linear(inputs, outputs, numerics, rngs)


def layer_norm(config: RobertaConfig, numerics: Numerics, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm of the features, in the accumulation dtype.

    The variance is computed in two passes, as torch does, but under a 16-bit `dtype` in one (the mean of squares less
    the mean's square): what that loses is far below what rounding the operands does, and an accelerator reads the
    features once.
    """
    kind = RecomputedLayerNorm if numerics.dtype.itemsize == 2 else nnx.LayerNorm
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
    def init(key: Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> Array:
        return nnx.initializers.normal(0.02)(key, shape, dtype).at[row].set(0)

    return init


def _torch_linear_init(shape: tuple[int, ...], inputs: int, numerics: Numerics, rngs: nnx.Rngs) -> Array:
    """torch.nn.Linear.reset_parameters: kaiming_uniform_(a=sqrt(5)) is uniform within 1 / sqrt(inputs)."""
    bound = inputs**-0.5
    return jax.random.uniform(rngs.params(), shape, numerics.param_dtype, -bound, bound)
