"""The modules that turn the features of a sequence's tokens into one vector, as sentence-transformers has them.

The vector is as wide as the features or the last Dense; a sparse encoder's, as the vocabulary. A multi-vector encoder
keeps a vector of each token. Each class is a module's settings, without its parameters; `sentence_vectors` computes a
chain of them in one jitted function. The computations are those of sentence-transformers 5.1
(sentence_transformers/models), and for a multi-vector encoder those of 6.2 (sentence_transformers/base/modules,
sentence_transformers/multi_vector_encoder).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from roberta_flax.errors import InputError, require_positive
from roberta_flax.nn import forward
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.nn.forward import Params
from roberta_flax.nn.model import FIRST_TOKEN, RobertaModel
from roberta_flax.nn.numerics import Numerics
from roberta_flax.nn.quantize import numerics_for

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, Key

# Pooling.POOLING_MODES, in the order in which Pooling.forward concatenates several
POOLING_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
_MASKED = -1e9  # Pooling.forward, the value of a token that "max" leaves out
_FEWEST_TOKENS = 1e-9  # Pooling.forward, where a mean is over no token
_NORMALIZE_EPSILON = 1e-12  # torch.nn.functional.normalize
_LAYER_NORM_EPSILON = 1e-5  # torch.nn.LayerNorm
SPLADE_STRATEGIES = ("max", "sum")  # SpladePooling.SPLADE_POOLING_MODES
SPLADE_LOGARITHMS = {"relu": 1, "log1p_relu": 2}  # SpladePooling.SPLADE_ACTIVATION: how often log1p is applied
ROLES = ("query", "document")  # the `task` of MultiVectorEncoder.encode
EXPANSIONS = ("fixed", "min")  # QueryExpansionConfig, "strategy"
_LOGITS_AT_ONCE = 1 << 26  # numbers; 256 MB in float32

# torch.nn's modules without arguments, by the names of their classes in lower case
ACTIVATIONS: Mapping[str, Callable[[Any], Any]] = {
    "identity": lambda x: x,
    "celu": jax.nn.celu,
    "elu": jax.nn.elu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "hardsigmoid": jax.nn.hard_sigmoid,
    "hardswish": jax.nn.hard_swish,
    "hardtanh": jax.nn.hard_tanh,
    "leakyrelu": jax.nn.leaky_relu,
    "logsigmoid": jax.nn.log_sigmoid,
    "mish": jax.nn.mish,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "selu": jax.nn.selu,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "softmax": partial(jax.nn.softmax, axis=-1),
    "softplus": jax.nn.softplus,
    "softsign": jax.nn.soft_sign,
    "tanh": jnp.tanh,
}

ModuleParams = Mapping[str, Any]  # arrays, by the names that `param_shapes` gives


def check_activation(name: str) -> None:
    """Raises InputError unless `name` is one of ACTIVATIONS."""
    if name not in ACTIVATIONS:
        raise InputError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {str(name)[:80]!r}")


@dataclass(frozen=True)
class Pooling:
    """Pools the features of a sequence's tokens, `<s>` and `</s>` included.

    Attributes:
      modes: of POOLING_MODES; the vectors of several are concatenated in this order.
      include_prompt: whether the prompt's tokens, `<s>` among them, are pooled too. "cls" is `<s>` in any case.
    """

    modes: tuple[str, ...] = ("mean",)
    include_prompt: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "modes", tuple(self.modes))
        unknown = [str(mode)[:80] for mode in self.modes if mode not in POOLING_MODES]
        if unknown or not self.modes:
            raise InputError(f"pooling must be one or several of {', '.join(POOLING_MODES)}, got {unknown or 'none'}")

    def size(self, size: int) -> int:
        return size * len(self.modes)

    def shapes(self, size: int) -> dict[str, tuple[int, ...]]:
        return {}


@dataclass(frozen=True)
class Dense:
    """A linear layer and an activation. Its kernel is [inputs, outputs].

    Attributes:
      outputs: width of the result.
      activation: one of ACTIVATIONS.
      bias: whether it has one.
      residual: whether its input is added to the result, projected by a matrix of its own where the widths differ.
    """

    outputs: int
    activation: str = "tanh"
    bias: bool = True
    residual: bool = False

    def __post_init__(self) -> None:
        require_positive(outputs=self.outputs)
        check_activation(self.activation)

    def size(self, size: int) -> int:
        return self.outputs

    def shapes(self, size: int) -> dict[str, tuple[int, ...]]:
        kernel = {"kernel": (size, self.outputs)}
        bias = {"bias": (self.outputs,)} if self.bias else {}
        residual = {"residual": (size, self.outputs)} if self.residual and size != self.outputs else {}
        return {**kernel, **bias, **residual}


@dataclass(frozen=True)
class LayerNorm:
    """A LayerNorm with a scale and a bias."""

    def size(self, size: int) -> int:
        return size

    def shapes(self, size: int) -> dict[str, tuple[int, ...]]:
        return {"scale": (size,), "bias": (size,)}


@dataclass(frozen=True)
class Normalize:
    """Divides a vector by its Euclidean norm."""

    def size(self, size: int) -> int:
        return size

    def shapes(self, size: int) -> dict[str, tuple[int, ...]]:
        return {}


@dataclass(frozen=True)
class SpladePooling:
    """Pools the masked LM's logits of a sequence's tokens to a weight for each token of the vocabulary.

    Attributes:
      vocab_size: of the masked LM.
      strategy: "max" or "sum", over the sequence's tokens.
      activation: "relu" for log(1 + relu(logit)), or "log1p_relu" for log(1 + log(1 + relu(logit))).
    """

    vocab_size: int
    strategy: str = "max"
    activation: str = "relu"

    def __post_init__(self) -> None:
        require_positive(vocab_size=self.vocab_size)
        if self.strategy not in SPLADE_STRATEGIES:
            raise InputError(f"strategy must be one of {', '.join(SPLADE_STRATEGIES)}, got {self.strategy!r:.80}")
        if self.activation not in SPLADE_LOGARITHMS:
            raise InputError(f"activation must be one of {', '.join(SPLADE_LOGARITHMS)}, got {self.activation!r:.80}")

    def size(self, size: int) -> int:
        return self.vocab_size

    def shapes(self, size: int) -> dict[str, tuple[int, ...]]:
        return {}


@dataclass(frozen=True)
class QueryExpansion:
    """Mask tokens after a query, up to a length; each has a vector (Khattab and Zaharia, 2020, section 3.2).

    Attributes:
      strategy: "fixed" truncates longer queries to the length, "min" leaves them as they are.
      length: in tokens.
      attend: whether the network's tokens attend to them.
      token: as the vocabulary writes it; None for the mask.
    """

    strategy: str
    length: int
    attend: bool = False
    token: str | None = None

    def __post_init__(self) -> None:
        if self.strategy not in EXPANSIONS:
            raise InputError(
                f"the strategy of a query expansion must be one of {', '.join(EXPANSIONS)}, got {self.strategy!r:.80}"
            )
        require_positive(length=self.length)
        if not isinstance(self.attend, bool) or not isinstance(self.token, str | None):
            raise InputError(f"attend must be true or false and token a text, got {self.attend!r}, {self.token!r:.80}")


@dataclass(frozen=True)
class MultiVectorMask:
    """Keeps a vector of each token of a query or a document, as late interaction takes them.

    Attributes:
      query_length, document_length: the maximum length of either in tokens; None for the model's.
      expansion: of queries.
      skiplist: tokens without a vector, as the vocabulary writes them.
      skiplist_roles: of ROLES, the texts for which the skiplist counts. A text without a role counts as a document.
    """

    query_length: int | None = None
    document_length: int | None = None
    expansion: QueryExpansion | None = None
    skiplist: tuple[str, ...] = ()
    skiplist_roles: tuple[str, ...] = ("document",)

    def __post_init__(self) -> None:
        for name, texts in (("skiplist", self.skiplist), ("skiplist_roles", self.skiplist_roles)):
            if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
                raise InputError(f"{name} must be a list of texts, got {texts!r:.80}")
            object.__setattr__(self, name, tuple(texts))
        lengths = {"query_length": self.query_length, "document_length": self.document_length}
        require_positive(**{name: length for name, length in lengths.items() if length is not None})
        if self.expansion is not None and self.expansion.length > (self.query_length or self.expansion.length):
            raise InputError(
                f"query_length {self.query_length} is below the {self.expansion.length} tokens of the query expansion"
            )

    def size(self, size: int) -> int:
        return size

    def shapes(self, size: int) -> dict[str, tuple[int, ...]]:
        return {}


Module = Pooling | SpladePooling | MultiVectorMask | Dense | LayerNorm | Normalize
MODULES: Mapping[str, type[Module]] = {
    kind.__name__: kind for kind in (Pooling, SpladePooling, MultiVectorMask, Dense, LayerNorm, Normalize)
}


def vector_size(modules: Sequence[Module], hidden_size: int) -> int:
    """The width of the vectors that modules make of features of `hidden_size`."""
    size = hidden_size
    for module in modules:
        size = module.size(size)
    return size


def param_shapes(modules: Sequence[Module], hidden_size: int) -> list[dict[str, tuple[int, ...]]]:
    """For each module, the shapes of its parameters by name."""
    shapes, size = [], hidden_size
    for module in modules:
        shapes.append(module.shapes(size))
        size = module.size(size)
    return shapes


@partial(jax.jit, static_argnames=("modules", "config", "numerics"))
def sentence_vectors(
    params: Params,
    module_params: Sequence[ModuleParams],
    tokens: Int[Array, "batch time"],
    segments: Int[Array, "batch time"] | None = None,
    starts: Int[Array, "batch segment"] | None = None,
    *,
    prompt_length: int | Int[Array, ""] = 0,
    attended: Int[Array, " batch"] | None = None,
    modules: tuple[Module, ...],
    config: RobertaConfig,
    numerics: Numerics = Numerics(),
    key: Key[Array, ""] | None = None,
) -> Float[Array, "batch size"] | Float[Array, "batch segment size"] | Float[Array, "batch time size"]:
    """One vector for each sequence, or for each token, in the accumulation dtype, in which all modules compute.

    Args:
      params, tokens, segments, starts: see nn.forward.
      module_params: for each module its parameters by name (`param_shapes`).
      prompt_length: how many tokens at the beginning of each sequence a Pooling without include_prompt leaves out.
      attended: for a MultiVectorMask, to how many tokens at the beginning of each row its tokens attend; by default to
        all. One sequence a row.
      modules: a Pooling, a SpladePooling or a MultiVectorMask, and then any modules. A SpladePooling takes one sequence
        a row.
      config, numerics: see nn.forward.
      key: for the network's dropout; None evaluates.

    Returns:
      [batch, size], or [batch, segment, size] with `starts`; of a MultiVectorMask [batch, time, size].
    """
    network = forward.network(params, config, numerics_for(params, numerics))
    pooling, *others = modules
    if isinstance(pooling, MultiVectorMask):
        mask = None if attended is None else jnp.arange(tokens.shape[1])[None] < attended[:, None]
        x = network.features(tokens, segments, key, attention_mask=mask)
    elif isinstance(pooling, SpladePooling):
        if starts is not None:
            raise InputError("a SpladePooling takes one sequence a row")
        x = _token_weights(pooling, network, network.features(tokens, key=key), tokens != config.pad_id)[:, None]
    elif not isinstance(pooling, Pooling):
        raise InputError(f"the first module must be a Pooling, got {type(pooling).__name__}")
    elif pooling.modes == ("cls",):
        x = network.features(tokens, segments, key, FIRST_TOKEN if starts is None else starts)
    else:
        features = network.features(tokens, segments, key)
        is_first = jnp.zeros((tokens.shape[0], 1), jnp.int32) if starts is None else starts
        if segments is None or starts is None:
            member = (tokens != config.pad_id)[:, None, :]
        else:
            member = segments[:, None, :] == jnp.arange(starts.shape[1], dtype=segments.dtype)[None, :, None]
        x = _pooled(pooling, features, member, is_first, prompt_length)
    for module, parameters in zip(others, module_params[1:], strict=True):
        x = _applied(module, x, {name: value.astype(x.dtype) for name, value in parameters.items()})
    has_one = starts is None and not isinstance(pooling, MultiVectorMask)
    return x[:, 0] if has_one else x


@partial(jax.jit, static_argnames=("head", "config", "numerics"))
def token_vectors(
    params: Params,
    head_params: ModuleParams,
    tokens: Int[Array, "batch time"],
    segments: Int[Array, "batch time"] | None = None,
    *,
    head: str,
    config: RobertaConfig,
    numerics: Numerics = Numerics(),
) -> Float[Array, "batch time size"]:
    """A linear layer over the features of each token: "sparse" with a ReLU, "colbert" divided by the norm.

    Args:
      params, tokens, segments, config, numerics: see nn.forward.
      head_params: "kernel" [hidden, size] and "bias".
      head: "sparse" or "colbert".
    """
    network = forward.network(params, config, numerics_for(params, numerics))
    x = network.features(tokens, segments)
    dense = Dense(head_params["kernel"].shape[1], "relu" if head == "sparse" else "identity")
    y = _applied(dense, x, {name: value.astype(x.dtype) for name, value in head_params.items()})
    return y if head == "sparse" else _applied(Normalize(), y, {})


def _token_weights(
    pooling: SpladePooling,
    network: RobertaModel,
    features: Float[Array, "batch time hidden"],
    is_token: Bool[Array, "batch time"],
) -> Float[Array, "batch vocab"]:
    """The logits are there for some positions at a time only: those of all would be [batch, time, vocab]."""
    batch, time, hidden = features.shape
    length = min(time, max(1, _LOGITS_AT_ONCE // (batch * pooling.vocab_size)))
    padding = -time % length
    parts = jnp.pad(features, ((0, 0), (0, padding), (0, 0))).reshape(batch, -1, length, hidden).swapaxes(0, 1)
    kept = jnp.pad(is_token, ((0, 0), (0, padding))).reshape(batch, -1, length, 1).swapaxes(0, 1)

    def logarithms(x: Array) -> Array:
        for _ in range(SPLADE_LOGARITHMS[pooling.activation]):
            x = jnp.log1p(x)
        return x

    def add(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        positive = jnp.where(part[1], jax.nn.relu(network.lm_logits(part[0])), 0)
        if pooling.strategy == "max":  # of what grows with the logit, so the logarithms are those of the maximum
            return jnp.maximum(total, positive.max(axis=1)), None
        return total + logarithms(positive).sum(axis=1), None

    total, _ = jax.lax.scan(add, jnp.zeros((batch, pooling.vocab_size), features.dtype), (parts, kept))
    return logarithms(total) if pooling.strategy == "max" else total


def _pooled(
    pooling: Pooling,
    features: Float[Array, "batch time hidden"],
    member: Bool[Array, "batch segment time"],
    starts: Int[Array, "batch segment"],
    prompt_length: int | Int[Array, ""],
) -> Float[Array, "batch segment size"]:
    """Sums are multiplications and sums, so that no matrix product rounds the features to its operands' dtype."""
    position = jnp.arange(features.shape[1])[None, None, :] - starts[:, :, None]
    kept = member if pooling.include_prompt else member & (position >= prompt_length)
    x = features[:, None]

    def total(weights: Array) -> Array:
        summed: Array = (weights.astype(x.dtype)[..., None] * x).sum(axis=2)
        return summed

    def count(weights: Array) -> Array:
        return jnp.maximum(weights.astype(x.dtype).sum(axis=2), _FEWEST_TOKENS)[..., None]

    def vector(mode: str) -> Array:
        match mode:
            case "cls":
                return total(member & (position == 0))
            case "max":
                return jnp.where(kept[..., None], x, _MASKED).max(axis=2)
            case "mean":
                return total(kept) / count(kept)
            case "mean_sqrt_len_tokens":
                return total(kept) / jnp.sqrt(count(kept))
            case "weightedmean":
                weights = kept * (position + 1)
                return total(weights) / count(weights)
            case _:  # lasttoken
                last = jnp.where(kept, position, -1).max(axis=2, keepdims=True)
                return total(kept & (position == last))

    return jnp.concatenate([vector(mode) for mode in pooling.modes], axis=-1)


def _applied(
    module: Module, x: Float[Array, "batch segment inputs"], params: ModuleParams
) -> Float[Array, "batch segment outputs"]:
    y: Array
    match module:
        case Dense(activation=activation, bias=bias, residual=residual):
            product = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
            linear = product(x, params["kernel"])
            y = ACTIVATIONS[activation](linear + params["bias"] if bias else linear)
            if residual:
                y = y + (product(x, params["residual"]) if "residual" in params else x)
        case LayerNorm():
            centered = x - x.mean(axis=-1, keepdims=True)
            variance = jnp.square(centered).mean(axis=-1, keepdims=True)
            y = centered / jnp.sqrt(variance + _LAYER_NORM_EPSILON) * params["scale"] + params["bias"]
        case Normalize():
            norm = jnp.sqrt(jnp.square(x).sum(axis=-1, keepdims=True))
            y = x / jnp.maximum(norm, _NORMALIZE_EPSILON)
        case _:
            raise InputError(f"{type(module).__name__} cannot stand after the first module")
    return y
