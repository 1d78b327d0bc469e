"""Pure, jitted functions of (params, token ids).

`params` is an ordinary pytree, nested dicts of arrays with string keys: shard it, optimize it with optax, save it, map
over it. Leaves are matched by their paths, so other forms of the same tree give the same result: what a checkpointer
restored, a FrozenDict, an nnx.State (see nn.tree). A tree that does not fit the configuration is an InputError.

Every function takes the network's RobertaConfig and how to compute it (Numerics) as static arguments, and compiles once
for each [batch, time] shape. Token ids are not checked here: a compiled function cannot raise for an id outside the
table (see batching.check_tokens). With parameters from quantize.quantize, the layers' products are computed in int8.

With `key=None` the functions evaluate; a PRNG key turns on dropout and LayerDrop.

Several sequences may stand in one row, one after the other. `segments`, [batch, time], then has the number of each
token's sequence, from 0 in every row, and -1 for padding; `starts`, [batch, segment], the position of each sequence's
first token. Results are those of the sequences alone. batching.lay_out makes all three.

Most functions take more inputs by name (MoreInputs): `inputs_embeds` in place of tokens, `token_types`, `head_mask` and
`attention_mask`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Unpack, cast

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from flax import nnx

from roberta_flax.errors import InputError
from roberta_flax.nn.config import NO_LM_HEAD, HeadConfig, RobertaConfig
from roberta_flax.nn.intermediates import check_names, intermediate_names, values
from roberta_flax.nn.meshes import in_auto_mode
from roberta_flax.nn.model import FIRST_TOKEN, MoreInputs, RobertaModel, TransformerLayer, given_tokens, tokens_at
from roberta_flax.nn.numerics import DTypeLike, Numerics
from roberta_flax.nn.quantize import numerics_for, quantize
from roberta_flax.nn.tree import Params, arranged, to_dict

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Key

__all__ = [
    "MoreInputs",
    "Params",
    "abstract_params",
    "features",
    "first_layers",
    "head_log_probs",
    "head_logits",
    "head_outputs",
    "hidden_states",
    "init_params",
    "intermediate_names",
    "intermediates",
    "largest_inputs",
    "lm_logits",
    "network",
    "operands",
    "pooled_features",
    "quantize",
    "token_log_probs",
    "top_tokens",
]

_STATIC = ("config", "numerics")


@lru_cache(maxsize=64)
def _abstract(config: RobertaConfig, numerics: Numerics) -> tuple[nnx.GraphDef[RobertaModel], Params]:
    """The network without its numbers: its structure, and its parameters as jax.ShapeDtypeStruct.

    All layers have the same shapes, so one is traced and the others are clones of it: tracing each of the 24 of
    roberta.large takes ten times as long. All parameters have one key, since counting keys takes as long as the rest.
    """

    def rngs() -> nnx.Rngs:
        one_key = nnx.Rngs(params=0)
        key = one_key.params()
        one_key.params = lambda: key  # type: ignore[attr-defined]
        return one_key

    layer = nnx.eval_shape(lambda: TransformerLayer(config, numerics, rngs()))
    model = nnx.eval_shape(lambda: RobertaModel(config, numerics, rngs(), layers=[]))
    model.layers = nnx.List([nnx.clone(layer) for _ in range(config.num_layers)])
    graphdef, state = nnx.split(model)
    return graphdef, nnx.to_pure_dict(state)


def abstract_params(config: RobertaConfig, param_dtype: DTypeLike = jnp.float32) -> Params:
    """The parameter tree of `config`, with jax.ShapeDtypeStruct in place of arrays; nothing is computed."""
    return to_dict(_abstract(config, Numerics(param_dtype=param_dtype))[1])


def init_params(config: RobertaConfig, key: Key[Array, ""], param_dtype: DTypeLike = jnp.float32) -> Params:
    """Initializes a parameter tree from fairseq's distributions (see RobertaModel)."""
    model = RobertaModel(config, Numerics(param_dtype=param_dtype), nnx.Rngs(key))
    return to_dict(nnx.state(model, nnx.Param))


def operands(params: Params, dtype: DTypeLike) -> Params:
    """Casts to `dtype` the parameters that a computation in `dtype` would cast anyway: the results are the same.

    These are the kernels of linear layers, and the LM head's own matrix; not biases, embeddings and LayerNorm. It saves
    a caller who runs many batches the cast in each, and a caller who keeps only these parameters, memory.

    Args:
      params: nested dicts.
      dtype: the `dtype` of the Numerics to compute with.
    """
    params = to_dict(params)
    if "kernel" in params and "kernel_scale" not in params:
        return params | {"kernel": params["kernel"].astype(dtype)}
    tree = {name: operands(node, dtype) if isinstance(node, dict) else node for name, node in params.items()}
    if "embedding" in tree.get("lm_head", {}):
        tree["lm_head"]["embedding"] = tree["lm_head"]["embedding"].astype(dtype)
    return tree


def network(params: Params, config: RobertaConfig, numerics: Numerics) -> RobertaModel:
    """The network with these parameters, for use inside a traced function.

    Raises:
      InputError: the parameters do not fit the configuration. The message names the leaves.
    """
    graphdef, abstract = _abstract(config, numerics)
    model: RobertaModel = nnx.merge(graphdef, arranged(params, abstract))
    return model


def _network(params: Params, config: RobertaConfig, numerics: Numerics) -> RobertaModel:
    return network(params, config, numerics_for(params, numerics))


@partial(jax.jit, static_argnames=_STATIC)
@in_auto_mode
def features(
    params: Params,
    tokens: Int[Array, "batch time"] | None,
    segments: Int[Array, "batch time"] | None = None,
    *,
    config: RobertaConfig,
    numerics: Numerics = Numerics(),
    key: Key[Array, ""] | None = None,
    **inputs: Unpack[MoreInputs],
) -> Float[Array, "batch time hidden"]:
    """The last layer's features, in `dtype`."""
    return _network(params, config, numerics).features(tokens, segments, key, **inputs).astype(numerics.dtype)


POOLINGS = ("first", "mean")


@partial(jax.jit, static_argnames=("pooling", *_STATIC))
@in_auto_mode
def pooled_features(
    params: Params,
    tokens: Int[Array, "batch time"] | None,
    segments: Int[Array, "batch time"] | None = None,
    starts: Int[Array, "batch segment"] | None = None,
    *,
    pooling: str,
    config: RobertaConfig,
    numerics: Numerics = Numerics(),
    key: Key[Array, ""] | None = None,
    **inputs: Unpack[MoreInputs],
) -> Float[Array, "batch hidden"] | Float[Array, "batch segment hidden"]:
    """One vector for each sequence, in the accumulation dtype.

    Args:
      params, tokens, segments, starts: see the module's docstring.
      pooling: "first", the features of the first token; or "mean", the mean over all tokens, `<s>` and `</s>` included.
      config, numerics, key: see the module's docstring.

    Returns:
      [batch, hidden], or [batch, segment, hidden] with `starts`.

    Raises:
      InputError: another pooling.
    """
    network = _network(params, config, numerics)
    if pooling == "first":
        pooled = network.features(tokens, segments, key, FIRST_TOKEN if starts is None else starts, **inputs)
    elif pooling == "mean":
        x = network.features(tokens, segments, key, **inputs)
        if segments is None or starts is None:
            member = (given_tokens(tokens, config, inputs) != config.pad_id)[:, None, :]
        else:
            member = segments[:, None, :] == jnp.arange(starts.shape[1], dtype=segments.dtype)[None, :, None]
        # a multiplication and a sum, so that no matrix product rounds the features to its operands' dtype
        total = (member[..., None].astype(x.dtype) * x[:, None, :, :]).sum(axis=2)
        pooled = total / jnp.maximum(member.sum(axis=2), 1)[..., None].astype(x.dtype)
    else:
        raise InputError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
    return pooled[:, 0] if starts is None else pooled


@partial(jax.jit, static_argnames=_STATIC)
@in_auto_mode
def hidden_states(
    params: Params,
    tokens: Int[Array, "batch time"] | None,
    *,
    config: RobertaConfig,
    numerics: Numerics = Numerics(),
    key: Key[Array, ""] | None = None,
    **inputs: Unpack[MoreInputs],
) -> list[Float[Array, "batch time hidden"]]:
    """The embedding output and each layer's output, in `dtype`: num_layers + 1 arrays.

    As in fairseq, a pre-norm network's final LayerNorm is in `features` and not in the last of these.
    """
    states = _network(params, config, numerics).hidden_states(tokens, key=key, **inputs)
    return [state.astype(numerics.dtype) for state in states]


def intermediates(
    params: Params,
    tokens: Int[Array, "batch time"] | npt.NDArray[np.int32] | None,
    positions: Int[Array, "batch selected"] | npt.NDArray[np.int32] | None = None,
    *,
    names: Collection[str] | None = None,
    config: RobertaConfig,
    numerics: Numerics = Numerics(),
    key: Key[Array, ""] | None = None,
    **inputs: Unpack[MoreInputs],
) -> dict[str, Float[Array, "..."]]:
    """Values inside the network, by name: "layers.0.attention.weights", [batch, heads, time, time], for one.

    Differentiable, and only what is asked for is computed. Attention is computed as "xla" does, all scores at once.

    Args:
      params, tokens: see the module's docstring.
      positions: of the tokens that the masked-LM head sees; None for all.
      names: of the values (intermediate_names(config) lists them; docs/parity.md says what they are); None for all.
      config, numerics, key: see the module's docstring.
      **inputs: see MoreInputs.

    Returns:
      The values by name, in the order of computation, in the accumulation dtype.

    Raises:
      InputError: there is no value of such a name.
    """
    wanted = check_names(config, names)
    found: dict[str, Array] = _intermediates(
        params, tokens, positions, names=wanted, config=config, numerics=numerics, key=key, **inputs
    )
    return {name: found[name] for name in wanted if name in found}  # jit sorts them


@partial(jax.jit, static_argnames=("names", *_STATIC))
@in_auto_mode
def _intermediates(
    params: Params,
    tokens: Int[Array, "batch time"] | None,
    positions: Int[Array, "batch selected"] | None,
    *,
    names: tuple[str, ...],
    config: RobertaConfig,
    numerics: Numerics,
    key: Key[Array, ""] | None,
    **inputs: Unpack[MoreInputs],
) -> dict[str, Float[Array, "..."]]:
    # only "xla" computes all scores at once, so that they can be captured
    observed = dataclasses.replace(numerics, attention="xla", observed=True)

    def run(model: RobertaModel) -> None:
        features = model.features(tokens, None, key, **inputs)
        if config.lm_head:
            model.lm_logits(features if positions is None else tokens_at(features, positions))
        for head in config.heads:
            model.head_logits(head.name, features)

    return values(_network(params, config, observed), run, names)


@partial(jax.jit, static_argnames=_STATIC)
def largest_inputs(
    params: Params, tokens: Int[Array, "batch time"], *, config: RobertaConfig, numerics: Numerics = Numerics()
) -> dict[str, Float[Array, " inputs"]]:
    """The largest absolute value of each feature that the layers' linear maps read, over all tokens but padding.

    They are for quantize(params, largest_inputs=...). Of several batches, take the larger ones:
    jax.tree.map(jnp.maximum, first, second).

    Returns:
      For each layer i, float32 [inputs] by "layers.i.attention" (what query, key and value read),
      "layers.i.attention.output", "layers.i.feed_forward.intermediate" and "layers.i.feed_forward.output".
    """
    of_places = {}
    for i in range(config.num_layers):
        below = f"layers.{i - 1}.output" if i else "embeddings.output"
        norms = f"layers.{i}.attention_layer_norm", f"layers.{i}.feed_forward_layer_norm"
        of_places[f"layers.{i}.attention"] = norms[0] if config.normalize_before else below
        of_places[f"layers.{i}.attention.output"] = f"layers.{i}.attention.context"
        of_places[f"layers.{i}.feed_forward.intermediate"] = norms[1] if config.normalize_before else norms[0]
        of_places[f"layers.{i}.feed_forward.output"] = f"layers.{i}.feed_forward.activation"
    found = intermediates(params, tokens, names={*of_places.values()}, config=config, numerics=numerics)
    is_padding = (tokens == config.pad_id)[..., None]

    def largest(x: Float[Array, "batch time inputs"]) -> Float[Array, " inputs"]:
        return jnp.where(is_padding, jnp.zeros_like(x), jnp.abs(x)).max(axis=(0, 1)).astype(jnp.float32)

    return {place: largest(found[name]) for place, name in of_places.items()}


def first_layers(params: Params, config: RobertaConfig, count: int) -> tuple[Params, RobertaConfig]:
    """The network of the first `count` layers: its parameters, which are shared, and its configuration.

    All functions take it: early exit, with the final LayerNorm where there is one, and with the heads of the whole.

    Raises:
      InputError: the network does not have that many layers.
    """
    if not 0 < count <= config.num_layers:
        raise InputError(f"the network has {config.num_layers} layers; got {count}")
    params = to_dict(params)
    layers = {str(number): params["layers"][str(number)] for number in range(count)}
    return {**params, "layers": layers}, dataclasses.replace(config, num_layers=count)


def check_lm_head(config: RobertaConfig) -> None:
    """Raises InputError where there is no masked-LM head."""
    if not config.lm_head:
        raise InputError(NO_LM_HEAD)


@partial(jax.jit, static_argnames=_STATIC)
@in_auto_mode
def lm_logits(
    params: Params,
    tokens: Int[Array, "batch time"] | None,
    positions: Int[Array, "batch masked"] | None = None,
    segments: Int[Array, "batch time"] | None = None,
    *,
    config: RobertaConfig,
    numerics: Numerics = Numerics(),
    key: Key[Array, ""] | None = None,
    **inputs: Unpack[MoreInputs],
) -> Float[Array, "batch masked vocab"]:
    """Masked-LM logits, in the accumulation dtype (float32, or float64 where `dtype` is float64).

    Args:
      params: the parameter tree.
      tokens: token ids.
      positions: of the tokens to predict in each row; the product with the vocabulary, and most of the last layer, are
        computed for these only. None for all tokens.
      segments: see the module's docstring.
      config, numerics, key: see the module's docstring.

    Returns:
      [batch, time, vocab], or [batch, masked, vocab] with `positions`.

    Raises:
      InputError: the model has no masked-LM head.
    """
    check_lm_head(config)
    network = _network(params, config, numerics)
    x = network.features(tokens, segments, key, positions, **inputs)
    return network.lm_logits(x)


@partial(jax.jit, static_argnames=("topk", *_STATIC))
@in_auto_mode
def top_tokens(
    params: Params,
    tokens: Int[Array, "batch time"],
    positions: Int[Array, "batch masked"],
    *,
    topk: int,
    config: RobertaConfig,
    numerics: Numerics = Numerics(),
    key: Key[Array, ""] | None = None,
) -> tuple[Float[Array, "batch masked topk"], Int[Array, "batch masked topk"]]:
    """Probabilities and ids of the `topk` likeliest tokens at each of `positions`, likeliest first."""
    logits: Array = lm_logits(params, tokens, positions, config=config, numerics=numerics, key=key)
    probabilities, ids = jax.lax.top_k(jax.nn.softmax(logits), topk)
    return probabilities, ids


@partial(jax.jit, static_argnames=_STATIC)
@in_auto_mode
def token_log_probs(
    params: Params,
    tokens: Int[Array, "batch time"],
    positions: Int[Array, "batch masked"],
    targets: Int[Array, "batch masked"],
    *,
    config: RobertaConfig,
    numerics: Numerics = Numerics(),
    key: Key[Array, ""] | None = None,
) -> Float[Array, "batch masked"]:
    """The masked LM's log-probability that each of `targets` is the token at each of `positions`."""
    logits: Array = lm_logits(params, tokens, positions, config=config, numerics=numerics, key=key)
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    return jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]


def head_outputs(
    network: RobertaModel,
    head: HeadConfig,
    tokens: Int[Array, "batch time"] | None,
    segments: Int[Array, "batch time"] | None = None,
    starts: Int[Array, "batch segment"] | None = None,
    key: Key[Array, ""] | None = None,
    **inputs: Unpack[MoreInputs],
) -> Float[Array, "batch classes"] | Float[Array, "batch segment classes"] | Float[Array, "batch time classes"]:
    """`head_logits` inside a traced function. The last layer is computed only for the tokens that the head sees."""
    body_key, head_key = (None, None) if key is None else cast(Any, jax.random.split(key))
    if not head.has_dense:
        return network.head_logits(head.name, network.features(tokens, segments, body_key, **inputs), head_key)
    first = network.features(tokens, segments, body_key, FIRST_TOKEN if starts is None else starts, **inputs)
    logits = network.head_logits(head.name, first.reshape(-1, 1, first.shape[-1]), head_key)
    return logits if starts is None else logits.reshape(*first.shape[:2], -1)


@partial(jax.jit, static_argnames=("head", *_STATIC))
@in_auto_mode
def head_logits(
    params: Params,
    tokens: Int[Array, "batch time"] | None,
    segments: Int[Array, "batch time"] | None = None,
    starts: Int[Array, "batch segment"] | None = None,
    *,
    head: str,
    config: RobertaConfig,
    numerics: Numerics = Numerics(),
    key: Key[Array, ""] | None = None,
    **inputs: Unpack[MoreInputs],
) -> Float[Array, "batch classes"] | Float[Array, "batch segment classes"] | Float[Array, "batch time classes"]:
    """The outputs of the head called `head`, in the accumulation dtype.

    [batch, classes], or [batch, segment, classes] with `starts`; [batch, time, classes] from a head that sees every
    token. A choice head scores each row of `tokens`.

    Raises:
      InputError: the model has no such head.
    """
    network = _network(params, config, numerics)
    return head_outputs(network, config.head(head), tokens, segments, starts, key, **inputs)


@partial(jax.jit, static_argnames=("head", *_STATIC))
@in_auto_mode
def head_log_probs(
    params: Params,
    tokens: Int[Array, "batch time"] | None,
    segments: Int[Array, "batch time"] | None = None,
    starts: Int[Array, "batch segment"] | None = None,
    *,
    head: str,
    config: RobertaConfig,
    numerics: Numerics = Numerics(),
    key: Key[Array, ""] | None = None,
    **inputs: Unpack[MoreInputs],
) -> Float[Array, "batch classes"] | Float[Array, "batch segment classes"] | Float[Array, "batch time classes"]:
    """Log-probabilities from the head called `head`, in the accumulation dtype; shapes as of `head_logits`.

    By the head's kind and problem (see HeadConfig):
      single label  log-probabilities of the classes
      multi label   the log-probability of each class, independently of the others
      span          log-probabilities of each token of the row to be the start, and to be the end; padding is excluded
      regression, choice, pooler   the outputs unchanged; a choice's log-probability depends on its alternatives

    Raises:
      InputError: the model has no such head, or a span head is given `segments`.
    """
    logits: Array = head_logits(
        params, tokens, segments, starts, head=head, config=config, numerics=numerics, key=key, **inputs
    )
    match config.head(head):
        case HeadConfig(kind="span") if segments is not None:
            raise InputError(
                f"head {head!r} is of kind span, whose log-probabilities are over a whole row: unpack first"
            )
        case HeadConfig(kind="span"):
            is_padding = (given_tokens(tokens, config, inputs) == config.pad_id)[:, :, None]
            return jax.nn.log_softmax(jnp.where(is_padding, float(np.finfo(logits.dtype).min), logits), axis=1)
        case HeadConfig(kind="choice" | "pooler") | HeadConfig(problem="regression"):
            return logits
        case HeadConfig(problem="multi_label"):
            return jax.nn.log_sigmoid(logits)
    return jax.nn.log_softmax(logits, axis=-1)


def __dir__() -> list[str]:
    return __all__
