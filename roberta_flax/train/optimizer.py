"""fairseq's Adam and learning rate schedule for RoBERTa, as optax transformations with fairseq's names."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from roberta_flax.datasets.recipes import Recipe
from roberta_flax.errors import InputError
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.nn.forward import Params
from roberta_flax.nn.tree import path_name

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


def polynomial_decay(
    learning_rate: float,
    *,
    warmup_steps: int,
    total_steps: int,
    end_learning_rate: float = 0.0,
    power: float = 1.0,
) -> optax.Schedule:
    """A schedule that rises linearly from 0, decays to `end_learning_rate` at `total_steps`, and stays there.

    It is fairseq's PolynomialDecayLRSchedule. A step's learning rate depends on the number of steps before it, so the
    first step of a warmup has the learning rate 0.

    Args:
      learning_rate: the peak learning rate, reached after `warmup_steps`.
      warmup_steps: number of warmup steps.
      total_steps: number of steps, warmup included.
      end_learning_rate: the learning rate at and after `total_steps`.
      power: power of the polynomial; 1 decays linearly.

    Raises:
      InputError: a number is out of range.
    """
    if not 0 <= warmup_steps <= total_steps or total_steps < 1:
        raise InputError(f"warmup_steps must be from 0 to total_steps, got {warmup_steps} of {total_steps}")
    if not (0 <= end_learning_rate <= learning_rate and 0 < learning_rate < math.inf and 0 < power < math.inf):
        raise InputError(
            "learning_rate and power must be over 0 and finite, and end_learning_rate from 0 to learning_rate,"
            f" got {learning_rate}, {power} and {end_learning_rate}"
        )

    def schedule(steps: Int[Array, ""]) -> Float[Array, ""]:
        done = jnp.asarray(steps, jnp.result_type(float))
        left = 1 - (done - warmup_steps) / max(total_steps - warmup_steps, 1)
        decayed = (learning_rate - end_learning_rate) * jnp.maximum(left, 0) ** power + end_learning_rate
        if warmup_steps == 0:
            return jnp.where(done >= total_steps, end_learning_rate, decayed)
        rising = learning_rate * (done / warmup_steps)
        return jnp.where(done <= warmup_steps, rising, jnp.where(done >= total_steps, end_learning_rate, decayed))

    return schedule


class AdamState(NamedTuple):
    """The number of steps, int32 [], and the first and second moments, trees like the parameters."""

    steps: Int[Array, ""]
    mean: Params
    square: Params


def scale_by_adam(beta1: float, beta2: float, eps: float) -> optax.GradientTransformation:
    """Computes Adam's direction as fairseq does: `eps` is added before the second moment's bias is corrected.

    optax.scale_by_adam adds it afterwards, which makes a difference in the first steps.
    """

    def init(params: Params) -> AdamState:
        return AdamState(jnp.zeros([], jnp.int32), optax.tree.zeros_like(params), optax.tree.zeros_like(params))

    def update(gradients: Params, state: AdamState, params: Params | None = None) -> tuple[Params, AdamState]:
        del params
        steps = optax.safe_increment(state.steps)
        count = steps.astype(jnp.result_type(float))
        # 1 - beta ** count, without cancellation
        corrections = [-jnp.expm1(count * math.log(beta)) if beta else jnp.ones_like(count) for beta in (beta1, beta2)]
        scale = jnp.sqrt(corrections[1]) / corrections[0]
        mean = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, state.mean, gradients)
        square = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, state.square, gradients)
        direction = jax.tree.map(lambda m, v: scale.astype(m.dtype) * m / (jnp.sqrt(v) + eps), mean, square)
        return direction, AdamState(steps, mean, square)

    return optax.GradientTransformation(init, update)


def clip_by_norm(largest: float) -> optax.GradientTransformation:
    """Scales gradients by largest / (norm + 1e-6) if that is less than 1 (fairseq.utils.clip_grad_norm_)."""

    def update(gradients: Params, state: optax.EmptyState, params: Params | None = None) -> tuple[Params, Any]:
        del params
        scale = jnp.minimum(largest / (optax.tree.norm(gradients) + 1e-6), 1.0)
        return jax.tree.map(lambda g: g * scale.astype(g.dtype), gradients), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def scale_by_layer(decay: float, config: RobertaConfig) -> optax.GradientTransformation:
    """Scales updates by `decay` to the power of the number of layers above: heads by 1, the last layer by `decay`.

    This is layer-wise learning rate decay (Clark et al., 2020, ELECTRA). It scales a parameter's learning rate and
    its weight decay. Embeddings have the smallest factor.
    """
    layers = config.num_layers

    def layers_above(path: str) -> int:
        if (layer := re.match(r"layers\.(\d+)\.", path)) is not None:
            return layers - int(layer[1])
        return layers + 1 if path.startswith("embeddings.") else 0

    def update(updates: Params, state: optax.EmptyState, params: Params | None = None) -> tuple[Params, Any]:
        del params
        scaled = jax.tree_util.tree_map_with_path(lambda path, u: u * decay ** layers_above(path_name(path)), updates)
        return scaled, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def adam(
    schedule: optax.ScalarOrSchedule,
    *,
    config: RobertaConfig,
    betas: tuple[float, float] = (0.9, 0.98),
    eps: float = 1e-6,
    weight_decay: float = 0.1,
    clip_norm: float = 0.0,
    layer_decay: float = 1.0,
) -> optax.GradientTransformation:
    """fairseq's FairseqAdam, with the defaults of its GLUE recipes.

    A step subtracts learning rate * (direction + weight_decay * parameter) from each parameter, including biases and
    LayerNorm.

    Args:
      schedule: polynomial_decay(...), any optax schedule, or a constant learning rate.
      config: the network's configuration.
      betas, eps, weight_decay: Adam's parameters.
      clip_norm: the maximum norm of all gradients together; 0 disables clipping.
      layer_decay: see scale_by_layer; 1 disables it.

    Raises:
      InputError: a number is out of range.
    """
    if not (0 <= betas[0] < 1 and 0 <= betas[1] < 1):
        raise InputError(f"betas must be from 0 to under 1, got {betas}")
    if not (0 < eps < math.inf and 0 <= weight_decay < math.inf and 0 <= clip_norm < math.inf):
        raise InputError(
            "eps must be over 0, weight_decay and clip_norm 0 or more, and all finite,"
            f" got {eps}, {weight_decay} and {clip_norm}"
        )
    if not 0 < layer_decay <= 1:
        raise InputError(f"layer_decay must be over 0 and at most 1, got {layer_decay}")
    parts = [clip_by_norm(clip_norm)] if clip_norm else []
    parts += [scale_by_adam(*betas, eps)]
    parts += [optax.add_decayed_weights(weight_decay)] if weight_decay else []
    parts += [scale_by_layer(layer_decay, config)] if layer_decay != 1 else []
    return optax.chain(*parts, optax.scale_by_learning_rate(schedule))


def recipe_optimizer(
    recipe: Recipe, *, config: RobertaConfig, warmup_steps: int, total_steps: int, layer_decay: float = 1.0
) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """Returns a recipe's learning rate schedule and optimizer.

    Arguments and errors are those of polynomial_decay and adam.
    """
    schedule = polynomial_decay(
        recipe.learning_rate,
        warmup_steps=warmup_steps,
        total_steps=total_steps,
        end_learning_rate=recipe.end_learning_rate,
    )
    optimizer = adam(
        schedule,
        config=config,
        betas=recipe.adam_betas,
        eps=recipe.adam_eps,
        weight_decay=recipe.weight_decay,
        clip_norm=recipe.clip_norm,
        layer_decay=layer_decay,
    )
    return schedule, optimizer
