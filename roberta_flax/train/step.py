"""One update: gradients of a loss, and what an optimiser makes of them, as one jitted function.

optimizer = adam(polynomial_decay(1e-5, warmup_updates=7432, total_updates=123873), config=config)
train_step = make_train_step(head_loss("mnli", config=config), optimizer)
opt_state = init_optimizer(optimizer, params)
for update, batch in enumerate(batches):
    params, opt_state, metrics = train_step(params, opt_state, batch, jax.random.fold_in(key, update))
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import NamedSharding

from roberta_flax.errors import InputError
from roberta_flax.nn.cpu import KEEP_BARRIERS
from roberta_flax.nn.forward import Params
from roberta_flax.nn.tree import path_name
from roberta_flax.train.losses import Batch, Loss

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Key

    Metrics = dict[str, Float[Array, ""]]


def make_train_step(
    loss: Loss, optimizer: optax.GradientTransformation, *, accumulate: int = 1, freeze: Sequence[str] = ()
) -> TrainStep:
    """A function (params, opt_state, batch, key) -> (params, opt_state, metrics), jitted.

    The gradient is that of the mean over all that has weight in the update. Parameters that the loss says it does not
    read (losses.NetworkLoss) stay as they are. The arrays of params and opt_state that are
    given are donated: use those that come back.

    Args:
      loss: of losses, or a function like it.
      optimizer: any optax transformation; `init_optimizer` makes its state.
      accumulate: batches in an update (fairseq's update_freq), worked off one after the other; over 1, every array of
        the batch has them along a first axis of its own. Each draws dropout of its own.
      freeze: patterns of the paths of parameters (docs/parameters.md) that stay as they are: regular expressions that
        match a path's beginning, "embeddings" or r"layers\\.[0-5]\\.".

    Returns:
      The function. Its metrics, float32 []: loss, the mean; size, what it is the mean of; gradient_norm, of all
      gradients together before clipping.

    Raises:
      InputError: accumulate under 1; from the function, patterns that match no parameter, or all.
    """
    if accumulate < 1:
        raise InputError(f"accumulate must be 1 or more, got {accumulate}")

    unread = getattr(loss, "unread", ())

    def summed(trained: Params, frozen: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Array, Array, Params]:
        """Loss, size and gradients of one batch."""

        def of_trained(trained: Params) -> tuple[Array, Array]:
            return loss(_merged(trained, frozen), batch, key)

        (total, size), gradients = jax.value_and_grad(of_trained, has_aux=True)(trained)
        return total, size, gradients

    def train_step(
        params: Params, opt_state: optax.OptState, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Params, optax.OptState, Metrics]:
        trained, frozen = partition(params, freeze)
        if accumulate == 1:
            total, size, gradients = summed(trained, frozen, batch, key)
        else:

            def add(sums: Any, one: tuple[Batch, Key[Array, ""]]) -> tuple[Any, None]:
                return optax.tree.add(sums, summed(trained, frozen, *one)), None

            each = batch, jax.random.split(key, accumulate)
            shapes = jax.eval_shape(summed, trained, frozen, *jax.tree.map(lambda x: x[0], each))
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            (total, size, gradients), _ = lax.scan(add, zeros, each)
        scale = 1 / jnp.where(size == 0, 1, size)
        gradients = jax.tree.map(lambda g: g * scale.astype(g.dtype), gradients)
        updates, opt_state = optimizer.update(gradients, opt_state, trained)
        metrics = {"loss": total * scale, "size": size, "gradient_norm": optax.tree.norm(gradients)}
        updated = jax.tree_util.tree_map_with_path(
            lambda path, old, new: old if _matches(path, unread) else new,
            trained,
            optax.apply_updates(trained, updates),
        )
        return _merged(updated, frozen), opt_state, metrics

    return TrainStep(train_step)


class TrainStep:
    """(params, opt_state, batch, key) -> (params, opt_state, metrics), compiled for each shape and each placing.

    What comes back is divided over devices as what went in: left to the compiler, some arrays would not be.
    """

    def __init__(self, function: Callable[..., tuple[Params, optax.OptState, Metrics]]) -> None:
        self._function = function
        self._compiled = lru_cache(maxsize=None)(self._jitted)

    def __call__(
        self, params: Params, opt_state: optax.OptState, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Params, optax.OptState, Metrics]:
        """One update; params and opt_state are donated."""
        updated: tuple[Params, optax.OptState, Metrics] = self._of(params, opt_state)(params, opt_state, batch, key)
        return updated

    def lower(self, params: Params, opt_state: optax.OptState, batch: Batch, key: Any) -> jax.stages.Lowered:
        """For arrays or jax.ShapeDtypeStructs, to be compiled ahead of time."""
        lowered: jax.stages.Lowered = self._of(params, opt_state).lower(params, opt_state, batch, key)
        return lowered

    def _of(self, *kept: Any) -> Any:
        leaves, tree = jax.tree.flatten(kept)
        return self._compiled(tree, tuple(map(_named_sharding, leaves)), _platforms(leaves) == {"cpu"})

    def _jitted(self, tree: Any, shardings: tuple[NamedSharding | None, ...], on_cpu: bool) -> Any:
        kept = jax.tree.unflatten(tree, shardings)
        options = KEEP_BARRIERS if on_cpu else None
        return jax.jit(self._function, donate_argnums=(0, 1), out_shardings=(*kept, None), compiler_options=options)


def _platforms(leaves: Sequence[Any]) -> set[str]:
    """Of the devices that arrays are on, or are said to be; the default backend's where nothing is said."""
    shardings = [leaf.sharding for leaf in leaves if getattr(leaf, "sharding", None) is not None]
    return {device.platform for one in set(shardings) for device in one.device_set} or {jax.default_backend()}


def _named_sharding(leaf: Any) -> NamedSharding | None:
    sharding = getattr(leaf, "sharding", None)
    return sharding if isinstance(sharding, NamedSharding) else None


def make_eval_step(loss: Loss) -> Callable[[Params, Batch], tuple[Float[Array, ""], Float[Array, ""]]]:
    """A jitted function (params, batch) -> (sum, size) of a loss without dropout."""
    return jax.jit(lambda params, batch: loss(params, batch, None))


def init_optimizer(
    optimizer: optax.GradientTransformation, params: Params, freeze: Sequence[str] = ()
) -> optax.OptState:
    """An optimiser's state for the parameters that make_train_step(freeze=freeze) trains; frozen ones take no memory.

    Moments are divided over devices as the parameters are: zeros_like, outside of jit, keeps an array's sharding.
    """
    return optimizer.init(partition(params, freeze)[0])


def partition(params: Params, freeze: Sequence[str] = ()) -> tuple[Params, Params]:
    """Two trees like `params`, what is trained and what is frozen: None, no leaf, where the other has an array.

    Raises:
      InputError: a pattern that matches no parameter's path, or patterns that match all.
    """
    if not freeze:
        return params, jax.tree.map(lambda _: None, params)
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for pattern in freeze:
        if not any(re.match(pattern, path) for path in paths):
            raise InputError(f"freeze: no parameter's path begins with {pattern!r}; paths are as in docs/parameters.md")

    def keep(frozen: bool) -> Params:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf if _matches(path, freeze) == frozen else None, params
        )

    trained = keep(False)
    if not jax.tree.leaves(trained):
        raise InputError(f"freeze leaves no parameter to train: {', '.join(freeze)}")
    return trained, keep(True)


def _matches(path: Any, patterns: Sequence[str]) -> bool:
    return any(re.match(pattern, path_name(path)) for pattern in patterns)


def _merged(trained: Params, frozen: Params) -> Params:
    return jax.tree.map(lambda a, b: b if a is None else a, trained, frozen, is_leaf=lambda leaf: leaf is None)
