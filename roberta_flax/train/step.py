"""A training step as one jitted function: the gradients of a loss, and the optimizer's update.

optimizer = adam(polynomial_decay(1e-5, warmup_steps=7432, total_steps=123873), config=config)
train_step = make_train_step(head_loss("mnli", config=config), optimizer)
opt_state = train_step.init(params)
for step, batch in enumerate(batches):
    params, opt_state, metrics = train_step(params, opt_state, batch, jax.random.fold_in(key, step))
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding

from roberta_flax.errors import InputError
from roberta_flax.nn.adapters import joined
from roberta_flax.nn.cpu import KEEP_BARRIERS
from roberta_flax.nn.forward import Params
from roberta_flax.nn.meshes import on_mesh_of_arguments
from roberta_flax.nn.residuals import optimization_barrier
from roberta_flax.nn.sharding import DATA, replicated
from roberta_flax.nn.tree import path_name
from roberta_flax.train.losses import Batch, Loss

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Key

    Metrics = dict[str, Float[Array, ""]]


def make_train_step(
    loss: Loss, optimizer: optax.GradientTransformation, *, accumulate: int = 1, freeze: Sequence[str] = ()
) -> TrainStep:
    """Returns a jitted function (params, opt_state, batch, key, frozen=None) -> (params, opt_state, metrics).

    `frozen` has parameters that the loss reads beside `params`, in the same form of tree. The step neither changes nor
    returns them, and they are not donated: those of a network whose adapters are trained (nn.adapters.LoRA).

    The gradient is that of the weighted mean over the whole step. Parameters that the loss does not use
    (losses.NetworkLoss) stay unchanged. The arrays in `params` and `opt_state` are donated: their memory goes to the
    returned ones, and they, and arrays that share it, cannot be used any more. To keep the parameters that a model was
    loaded with, train a copy: jax.tree.map(jnp.copy, roberta.params).

    Args:
      loss: a loss from train.losses, or a function with the same signature.
      optimizer: any optax transformation. The method `init` of the returned function makes its state.
      accumulate: number of batches in a step (fairseq's update_freq), processed sequentially. If it is more than 1,
        every array in the batch has them along a leading axis. Each batch has its own dropout.
      freeze: regular expressions that match the beginnings of paths (docs/parameters.md) of parameters to leave
        unchanged: "embeddings" or r"layers\\.[0-5]\\.", for example.

    Returns:
      The function. Its metrics are float32 []: the mean "loss"; "size", the sum of weights that it was divided by; and
      "gradient_norm", the norm of all gradients together before clipping.

    Raises:
      InputError: accumulate is less than 1; from the function, a pattern matches no parameter, or all are frozen.
    """
    if accumulate < 1:
        raise InputError(f"accumulate must be 1 or more, got {accumulate}")

    unread = getattr(loss, "unread", ())

    def sums_and_gradients(
        trained: Params, others: tuple[Params, Params | None], batch: Batch, key: Key[Array, ""], shardings: Any
    ) -> tuple[Array, Array, Params]:
        """Returns the loss, size and gradients of one batch, all as sums."""
        unchanged, frozen = others

        def loss_of_trained(trained: Params) -> tuple[Array, Array]:
            params = _merged(trained, unchanged)
            return loss(params if frozen is None else joined(params, frozen), batch, key)

        (total, size), gradients = jax.value_and_grad(loss_of_trained, has_aux=True)(trained)
        return total, size, _divided(gradients, shardings)

    def train_step(
        shardings: Any,
        params: Params,
        opt_state: optax.OptState,
        batch: Batch,
        key: Key[Array, ""],
        frozen: Params | None = None,
    ) -> tuple[Params, optax.OptState, Metrics]:
        trained, unchanged = partition(params, freeze)
        others = unchanged, frozen
        if accumulate == 1:
            total, size, gradients = sums_and_gradients(trained, others, batch, key, shardings)
        else:

            def add(sums: Any, batch_and_key: tuple[Batch, Key[Array, ""]]) -> tuple[Any, None]:
                return optax.tree.add(sums, sums_and_gradients(trained, others, *batch_and_key, shardings)), None

            batches_and_keys = batch, jax.random.split(key, accumulate)
            first = jax.tree.map(lambda x: x[0], batches_and_keys)
            *sums, _ = jax.eval_shape(partial(sums_and_gradients, shardings=shardings), trained, others, *first)
            zeros = (*(jnp.zeros(x.shape, x.dtype) for x in sums), optax.tree.zeros_like(trained))
            (total, size, gradients), _ = lax.scan(add, zeros, batches_and_keys)
        scale = 1 / jnp.where(size == 0, 1, size)
        gradients = jax.tree.map(lambda g: g * scale.astype(g.dtype), gradients)
        updates, opt_state = optimizer.update(gradients, opt_state, trained)
        metrics = {"loss": total * scale, "size": size, "gradient_norm": optax.tree.norm(gradients)}
        updated = jax.tree_util.tree_map_with_path(
            lambda path, old, new: old if _matches(path, unread) else new,
            trained,
            optax.apply_updates(trained, updates),
        )
        return _merged(updated, unchanged), opt_state, metrics

    return TrainStep(train_step, lambda params: init_optimizer(optimizer, params, freeze))


class TrainStep:
    """A function of make_train_step, compiled for each shape and sharding.

    The returned params and opt_state have the sharding of the given ones. The compiler would change it for some arrays.
    """

    def __init__(
        self,
        function: Callable[..., tuple[Params, optax.OptState, Metrics]],
        init: Callable[[Params], optax.OptState],
    ) -> None:
        self._function, self._init = function, init
        self._cached_jit = lru_cache(maxsize=None)(self._jit)

    def __call__(
        self,
        params: Params,
        opt_state: optax.OptState,
        batch: Batch,
        key: Key[Array, ""],
        frozen: Params | None = None,
    ) -> tuple[Params, optax.OptState, Metrics]:
        """Does one step. `params` and `opt_state` are donated, and `frozen` is not.

        Raises:
          InputError: an array has been donated already.
        """
        if any(isinstance(leaf, jax.Array) and leaf.is_deleted() for leaf in jax.tree.leaves((params, opt_state))):
            raise InputError(
                "these params or opt_state were donated to an earlier step, which has their memory: pass those that it "
                "returned, or give it copies (jax.tree.map(jnp.copy, params))"
            )
        updated: tuple[Params, optax.OptState, Metrics] = self._compiled_for(params, opt_state)(
            params, opt_state, batch, key, *_given(frozen)
        )
        return updated

    def init(self, params: Params) -> optax.OptState:
        """Returns the optimizer's state for the parameters that the step trains (see init_optimizer)."""
        return self._init(params)

    def lower(
        self, params: Params, opt_state: optax.OptState, batch: Batch, key: Any, frozen: Params | None = None
    ) -> jax.stages.Lowered:
        """Lowers the step for arrays or jax.ShapeDtypeStructs, for ahead-of-time compilation."""
        lowered: jax.stages.Lowered = self._compiled_for(params, opt_state).lower(
            params, opt_state, batch, key, *_given(frozen)
        )
        return lowered

    def _compiled_for(self, *kept: Any) -> Any:
        leaves, tree = jax.tree.flatten(kept)
        return self._cached_jit(tree, tuple(map(_named_sharding, leaves)), _platforms(leaves) == {"cpu"})

    def _jit(self, tree: Any, shardings: tuple[NamedSharding | None, ...], on_cpu: bool) -> Any:
        kept = jax.tree.unflatten(tree, shardings)
        options = KEEP_BARRIERS if on_cpu else None

        def train_step(*args: Any) -> tuple[Params, optax.OptState, Metrics]:
            return self._function(kept[0], *args)

        function = on_mesh_of_arguments(train_step)
        return jax.jit(function, donate_argnums=(0, 1), out_shardings=(*kept, None), compiler_options=options)


def _divided(gradients: Params, shardings: Any) -> Params:
    """Divides the gradients of parameters that DATA divides, as soon as they are summed.

    The norm of all gradients reads them all before any update, and the compiler would keep them whole on each device
    until then: it fuses the division into the update, unless a barrier is between them.
    """

    def divided(gradient: Array | None, sharding: NamedSharding | None) -> Array | None:
        if gradient is None or sharding is None or not _is_fully_sharded(sharding):
            return gradient
        gradient = lax.with_sharding_constraint(gradient, sharding)  # type: ignore[no-untyped-call]
        return optimization_barrier(gradient)

    result: Params = jax.tree.map(divided, gradients, shardings, is_leaf=lambda leaf: leaf is None)
    return result


def _is_fully_sharded(sharding: NamedSharding) -> bool:
    """Whether DATA divides an array, on Auto axes: on Explicit ones its gradient is divided as it is."""
    mesh = sharding.mesh
    if mesh.shape.get(DATA, 1) == 1 or {*mesh.axis_types} != {AxisType.Auto}:
        return False
    return DATA in jax.tree.leaves((*sharding.spec,))


def _given(frozen: Params | None) -> tuple[Params, ...]:
    return () if frozen is None else (frozen,)


def _platforms(leaves: Sequence[Any]) -> set[str]:
    """Returns the platforms of the devices that arrays are on; the default backend's if they have no sharding."""
    shardings = [leaf.sharding for leaf in leaves if getattr(leaf, "sharding", None) is not None]
    return {device.platform for one in set(shardings) for device in one.device_set} or {jax.default_backend()}


def _named_sharding(leaf: Any) -> NamedSharding | None:
    sharding = getattr(leaf, "sharding", None)
    return sharding if isinstance(sharding, NamedSharding) else None


def make_eval_step(loss: Loss) -> Callable[[Params, Batch], tuple[Float[Array, ""], Float[Array, ""]]]:
    """Returns a jitted function (params, batch) -> (sum, size) that computes a loss without dropout."""

    def evaluate(params: Params, batch: Batch) -> tuple[Array, Array]:
        return loss(params, batch, None)

    return jax.jit(on_mesh_of_arguments(evaluate))


def init_optimizer(
    optimizer: optax.GradientTransformation, params: Params, freeze: Sequence[str] = ()
) -> optax.OptState:
    """Returns an optimizer's state for the parameters that make_train_step(freeze=freeze) trains.

    Frozen parameters take no memory. Moments have the sharding of their parameters, because zeros_like keeps it outside
    jit. If the parameters are on a mesh, what is not of one of them, such as the count of steps, is replicated on it.
    """
    with jax.transfer_guard("allow"):  # the zeros are made on the host
        state = optimizer.init(partition(params, freeze)[0])
        arrays = (leaf for leaf in jax.tree.leaves(params) if isinstance(leaf, jax.Array))
        places = (array.sharding for array in arrays if not isinstance(array, jax.core.Tracer))
        mesh = next((place.mesh for place in places if isinstance(place, NamedSharding)), None)
        # the count of steps is on no mesh, and is after the first step: the second one would be compiled again
        return replicated(state, mesh) if isinstance(mesh, Mesh) else state


def partition(params: Params, freeze: Sequence[str] = ()) -> tuple[Params, Params]:
    """Splits `params` into two trees, trained and frozen. Each has None, which is no leaf, for the other's arrays.

    Raises:
      InputError: a pattern matches no parameter's path, or all parameters match.
    """
    if not freeze:
        return params, jax.tree.map(lambda _: None, params)
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for pattern in freeze:
        if not any(re.match(pattern, path) for path in paths):
            raise InputError(f"freeze: no parameter's path begins with {pattern!r}; paths are as in docs/parameters.md")

    def select(frozen: bool) -> Params:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf if _matches(path, freeze) == frozen else None, params
        )

    trained = select(False)
    if not jax.tree.leaves(trained):
        raise InputError(f"freeze leaves no parameter to train: {', '.join(freeze)}")
    return trained, select(True)


def _matches(path: Any, patterns: Sequence[str]) -> bool:
    return any(re.match(pattern, path_name(path)) for pattern in patterns)


def _merged(trained: Params, frozen: Params) -> Params:
    return jax.tree.map(lambda a, b: b if a is None else a, trained, frozen, is_leaf=lambda leaf: leaf is None)
