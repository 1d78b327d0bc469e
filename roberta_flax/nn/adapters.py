"""Low-rank adapters of the layers' linear maps (LoRA), which are trained in the place of the network.

A linear map x W + b becomes x W + b + s (x A) B, where s is alpha / rank (Hu et al., 2021) or, rank-stabilized,
alpha / sqrt(rank) (Kalajdzievski, 2023). With magnitudes (DoRA; Liu et al., 2024), the columns of W + s A B are scaled
to norms that are trained too. The computation is that of PEFT's layers: dropout acts on the adapter's input alone, and
the norms of W + s A B are constants to the gradient.

The two products are computed one after the other, and not as W + s A B: so no gradient of the size of W is computed,
and nothing is kept for one.

An adapter's parameters stand in the tree beside those of its linear map:

  layers.0.attention.query.kernel          [inputs, outputs]   W, frozen
  layers.0.attention.query.lora_a          [inputs, rank]      A, PEFT's lora_A transposed
  layers.0.attention.query.lora_b          [rank, outputs]     B, PEFT's lora_B transposed
  layers.0.attention.query.lora_magnitude  [outputs]           of DoRA
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util
from jax import lax
from jax.sharding import NamedSharding

from roberta_flax.errors import InputError, require_positive
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.nn.forward import network
from roberta_flax.nn.model import Linear, RobertaModel, dropout
from roberta_flax.nn.numerics import Numerics
from roberta_flax.nn.products import broadcast_like, product
from roberta_flax.nn.tree import Params, flatten

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Key

LINEAR_MAPS = (
    "attention.query", "attention.key", "attention.value", "attention.output", "feed_forward.intermediate",
    "feed_forward.output",
)  # fmt: skip
A, B, MAGNITUDE = "lora_a", "lora_b", "lora_magnitude"
ALL_TARGETS = "all-linear"  # as PEFT calls all linear maps


@dataclass(frozen=True)
class LoRA:
    """Which linear maps have adapters, and of what kind.

    Attributes:
      rank: of each adapter's product, PEFT's r.
      alpha: the product is multiplied by alpha / rank, PEFT's lora_alpha.
      targets: the linear maps, each a regular expression of a path (docs/parameters.md) or of its end: "query",
        "feed_forward.output", r"layers\\.(10|11)\\..*\\.value". "all-linear" is all six of every layer.
      dropout: of the adapters' inputs in training, PEFT's lora_dropout.
      rslora: whether to multiply by alpha / sqrt(rank) instead (rank-stabilized), PEFT's use_rslora.
      dora: whether to train the norms of the columns too (weight-decomposed), PEFT's use_dora.

    Raises:
      InputError: a number is out of range, or a target is not a regular expression.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("query", "value")
    dropout: float = 0.0
    rslora: bool = False
    dora: bool = False

    def __post_init__(self) -> None:
        require_positive(rank=self.rank)
        if not 0 < self.alpha < math.inf:
            raise InputError(f"alpha must be over 0 and finite, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"the adapters' dropout must be from 0 to under 1, got {self.dropout}")
        given: Any = self.targets
        targets = (given,) if isinstance(given, str) else tuple(given)
        object.__setattr__(self, "targets", targets)
        if not targets:
            raise InputError(f"name the linear maps that get adapters, of {', '.join(LINEAR_MAPS)}, or {ALL_TARGETS}")
        for target in targets:
            try:
                re.compile(target)
            except re.error as error:
                raise InputError(f"the target {target!r} is not a regular expression: {error}") from None

    @property
    def scaling(self) -> float:
        """The factor of each adapter's product."""
        return self.alpha / math.sqrt(self.rank) if self.rslora else self.alpha / self.rank

    def paths(self, config: RobertaConfig) -> tuple[str, ...]:
        """The paths of the linear maps that get adapters, in the network's order.

        Raises:
          InputError: a target is none of the network's linear maps, or the rank is no lower than the network's width.
        """
        if self.rank > config.hidden_size:
            raise InputError(f"the rank must be at most the model's hidden size, {config.hidden_size}, got {self.rank}")
        every = [f"layers.{layer}.{name}" for layer in range(config.num_layers) for name in LINEAR_MAPS]
        chosen: set[str] = set()
        for target in self.targets:
            pattern = ".*" if target == ALL_TARGETS else rf"(.*\.)?({target})"
            found = {path for path in every if re.fullmatch(pattern, path)}
            if not found:
                raise InputError(
                    f"no linear map has a path that ends with {target!r}; targets are {', '.join(LINEAR_MAPS)} of the "
                    f"layers 0 to {config.num_layers - 1}, or {ALL_TARGETS}"
                )
            chosen |= found
        return tuple(path for path in every if path in chosen)

    def init(self, params: Params, config: RobertaConfig, key: Key[Array, ""]) -> dict[str, Any]:
        """Initializes adapters that change nothing yet: B is zero, and A uniform within 1 / sqrt(inputs), as in PEFT.

        Args:
          params: the network's parameters. The adapters get the dtype of their kernels.
          config: the network's configuration.
          key: a PRNG key.

        Returns:
          A tree of the adapters alone.
        """
        leaves, paths = flatten(params), self.paths(config)
        kernels = {path: leaves[f"{path}.kernel"] for path in paths}
        return nested(_init(kernels, key, rank=self.rank, dora=self.dora))

    def merge(self, params: Params, trained: Params) -> dict[str, Any]:
        """Merges adapters into kernels, for functions that know nothing of adapters.

        Args:
          params: the network's parameters. Its arrays stay as they are.
          trained: the adapters, and other parameters that take the place of those in `params`, such as a head's.

        Returns:
          The network's tree, with new kernels. The other arrays are those that were given.
        """
        leaves, adapters = split(joined(params, trained))
        for path, adapter in adapters.items():
            kernel = leaves[f"{path}.kernel"]
            merged = _merged(kernel, adapter, scaling=self.scaling)
            divided = getattr(kernel, "sharding", None)
            if isinstance(divided, NamedSharding) and not isinstance(kernel, jax.core.Tracer):
                merged = jax.device_put(merged, divided)
            leaves[f"{path}.kernel"] = merged
        return nested(leaves)


def joined(params: Params, others: Params) -> dict[str, Any]:
    """One tree of the leaves of two; where both have one, that of `others`."""
    return nested({**flatten(params), **flatten(others)})


def split(params: Params) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The leaves without adapters by path, and the parameters of each adapter by the path of its linear map."""
    leaves: dict[str, Any] = {}
    adapters: dict[str, dict[str, Any]] = {}
    for path, leaf in flatten(params).items():
        parent, _, name = path.rpartition(".")
        if name in (A, B, MAGNITUDE):
            adapters.setdefault(parent, {})[name] = leaf
        else:
            leaves[path] = leaf
    return leaves, adapters


def adapted_network(
    params: Params, config: RobertaConfig, numerics: Numerics, lora: LoRA | None, key: Key[Array, ""] | None
) -> tuple[RobertaModel, Key[Array, ""] | None]:
    """The network with adapters, for use inside a traced function.

    Args:
      params: the network's parameters, with those of the adapters beside them.
      config, numerics: what to compute, and how.
      lora: the adapters' settings; None for a network without adapters.
      key: for dropout; None evaluates.

    Returns:
      The network, and the key for its own dropout.

    Raises:
      InputError: the parameters do not fit the configuration or the settings. The message names the leaves.
    """
    if lora is None:
        return network(params, config, numerics), key
    leaves, adapters = split(params)
    if missing := set(lora.paths(config)) ^ adapters.keys():
        raise InputError(f"the adapters do not fit the targets {', '.join(lora.targets)}: {', '.join(sorted(missing))}")
    model = network(nested(leaves), config, numerics)
    keys: dict[str, Key[Array, ""] | None] = dict.fromkeys(adapters)
    if key is not None and lora.dropout:
        key, of_adapters = jax.random.split(key)
        keys = dict(zip(lora.paths(config), jax.random.split(of_adapters, len(adapters)), strict=True))
    for path, adapter in adapters.items():
        _, layer, block, name = path.split(".")
        part = getattr(model.layers[int(layer)], block)
        setattr(part, name, AdaptedLinear(getattr(part, name), adapter, lora, keys[path]))
    return model, key


class AdaptedLinear(nnx.Module):
    """A linear map and its adapter, in one call: PEFT's lora.Linear, and DoraLinearLayer with magnitudes."""

    def __init__(self, base: Linear, adapter: Mapping[str, Array], lora: LoRA, key: Key[Array, ""] | None) -> None:
        self.base = base
        self.adapter = nnx.data(dict(adapter))
        self.lora = lora
        self.key = nnx.data(key)

    def __call__(self, x: Float[Array, "*tokens inputs"]) -> Float[Array, "*tokens outputs"]:
        """The result is in the accumulation dtype."""
        base, adapter, numerics = self.base, self.adapter, self.base.numerics
        multiply = partial(product, dtype=numerics.dtype, precision=numerics.precision)
        dropped = dropout(x, self.lora.dropout, self.key, barrier=not numerics.remat)
        update = multiply("...r,ro->...o", multiply("...i,ir->...r", dropped, adapter[A]), adapter[B])
        update = update * self.lora.scaling
        projected = multiply("...i,io->...o", x, base.kernel[...])
        result = projected + broadcast_like(base.bias[...], projected)
        if MAGNITUDE not in adapter:
            return result + update
        norms = _norms(base.kernel[...], adapter[A], adapter[B], self.lora.scaling)
        factor = broadcast_like(adapter[MAGNITUDE] / lax.stop_gradient(norms), result)
        if dropped is not x:  # PEFT's factor changes what the kernel makes of the input after dropout
            projected = multiply("...i,io->...o", dropped, base.kernel[...])
        return result + (factor - 1) * projected + factor * update


@partial(jax.jit, static_argnames=("rank", "dora"))
def _init(kernels: Mapping[str, Array], key: Key[Array, ""], *, rank: int, dora: bool) -> dict[str, Array]:
    adapters = {}
    for (path, kernel), own_key in zip(kernels.items(), jax.random.split(key, len(kernels)), strict=True):
        inputs, outputs = kernel.shape
        bound = inputs**-0.5  # kaiming_uniform_(a=sqrt(5)), as in torch.nn.Linear.reset_parameters
        adapters[f"{path}.{A}"] = jax.random.uniform(own_key, (inputs, rank), kernel.dtype, -bound, bound)
        adapters[f"{path}.{B}"] = jnp.zeros((rank, outputs), kernel.dtype)
        if dora:
            adapters[f"{path}.{MAGNITUDE}"] = jnp.sqrt(jnp.square(kernel).sum(axis=0))
    return adapters


@partial(jax.jit, static_argnames="scaling")
def _merged(
    kernel: Float[Array, "inputs outputs"], adapter: Mapping[str, Array], *, scaling: float
) -> Float[Array, "inputs outputs"]:
    weights = _sum(kernel, adapter[A], adapter[B], scaling)
    if MAGNITUDE in adapter:
        norms = _norms(kernel, adapter[A], adapter[B], scaling)
        weights = weights * broadcast_like(adapter[MAGNITUDE] / norms, weights)
    return weights.astype(kernel.dtype)


def _sum(
    kernel: Float[Array, "inputs outputs"],
    a: Float[Array, "inputs rank"],
    b: Float[Array, "rank outputs"],
    scaling: float,
) -> Float[Array, "inputs outputs"]:
    """The kernel and its adapter's product, in float32 or float64."""
    wide = jnp.promote_types(kernel.dtype, jnp.float32)
    added = product("ir,ro->io", a, b, dtype=wide, precision=lax.Precision.HIGHEST)
    return kernel.astype(wide) + added * scaling


def _norms(
    kernel: Float[Array, "inputs outputs"],
    a: Float[Array, "inputs rank"],
    b: Float[Array, "rank outputs"],
    scaling: float,
) -> Float[Array, " outputs"]:
    """The Euclidean norm of each column of the sum: of the weights of each output."""
    return jnp.sqrt(jnp.square(_sum(kernel, a, b, scaling)).sum(axis=0)).astype(a.dtype)


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of leaves by dotted name."""
    tree: dict[str, Any] = traverse_util.unflatten_dict(leaves, sep=".")  # type: ignore[no-untyped-call]
    return tree
