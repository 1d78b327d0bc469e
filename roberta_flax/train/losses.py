"""Training losses: for each batch a sum, and the weight to divide it by.

A loss is a function of (params, batch, key). A PRNG key turns on dropout and LayerDrop; `key=None` evaluates. The loss
returns the sum over the batch, in nats or squared error, and the sum of the batch's weights. A mean over several
batches or devices is therefore weighted correctly, as with the sample sizes of fairseq's criteria.

A batch is a dict of arrays, padded on the right. Items that do not count have weight 0. Without weights, all items
count, but no padding:

  sentence   tokens int32 [batch, time], weights float32 [batch], targets int32 [batch]; for a regression with one
             output float32 [batch], with several outputs or several labels float32 [batch, outputs]
  token      tokens int32 [batch, time], targets int32 [batch, time], weights float32 [batch, time]
  span       tokens int32 [batch, time], targets int32 [batch, 2] (first and last token), weights float32 [batch]
  choice     tokens int32 [batch, choices, time], targets int32 [batch], weights float32 [batch]
  masked LM  tokens int32 [batch, time] (masked), positions and targets int32 [batch, masked], weights float32
             [batch, masked]
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from roberta_flax.errors import InputError
from roberta_flax.nn.adapters import LoRA, adapted_network
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from roberta_flax.nn.forward import Params, check_lm_head, head_outputs
from roberta_flax.nn.meshes import in_auto_mode
from roberta_flax.nn.numerics import Numerics

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, Key

Batch = Mapping[str, "Array"]
HostBatch = Mapping[str, npt.NDArray[Any]]  # a batch that is not on a device yet
Loss = Callable[[Params, Batch, "Key[Array, ''] | None"], "tuple[Float[Array, ''], Float[Array, '']]"]


@dataclass(frozen=True)
class NetworkLoss:
    """A loss that declares which parameters it does not read. A step leaves them unchanged, without weight decay.

    fairseq's Adam does the same, because it skips parameters without a gradient: the LM head while a classifier is
    trained, for example.

    Attributes:
      function: the loss.
      unread: regular expressions that match the beginnings of these parameters' paths.
    """

    function: Loss
    unread: tuple[str, ...]

    def __call__(
        self, params: Params, batch: Batch, key: Key[Array, ""] | None
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Returns the sum over the batch, and the sum of its weights."""
        return in_auto_mode(self.function)(params, batch, key)


def head_loss(
    head: str,
    *,
    config: RobertaConfig,
    numerics: Numerics = Numerics(),
    lora: LoRA | None = None,
) -> NetworkLoss:
    """Returns the loss of a head, which depends on its kind and problem.

    - sentence and token, with one label: the label's negative log-probability (fairseq's sentence_prediction); with
      several labels: the sum of the binary cross-entropies; for a regression: the squared error
    - span: the mean of the negative log-probabilities of the first and the last token, among the row's tokens
    - choice, and a sentence head with one output if the tokens have three axes: the negative log-probability of the
      correct choice, among the choices (fairseq's sentence_ranking, for RACE and CommonsenseQA). A choice that is only
      padding is ignored.

    Args:
      head: name of a head in `config.heads`.
      config: the network's configuration.
      numerics: how to compute. With dtype bfloat16, the computation is in bfloat16 and the parameters keep their dtype,
        so float32 parameters are the master weights. `remat` needs less memory and a quarter more computation.
      lora: the settings of the adapters that the parameters hold, if they hold any.

    Raises:
      InputError: there is no such head, it has no loss (a pooler), or gradients would vanish in the dtype (float16).
    """
    kind = config.head(head)
    if kind.kind == "pooler":
        raise InputError(f"head {head!r} is a pooler: it has no loss to train with; register a head of another kind")
    check_trainable(numerics)

    def loss(params: Params, batch: Batch, key: Key[Array, ""] | None) -> tuple[Float[Array, ""], Float[Array, ""]]:
        tokens = batch["tokens"]
        rows = tokens.reshape(-1, tokens.shape[-1])
        model, key = adapted_network(params, config, numerics, lora, key)
        return loss_of_outputs(kind, head_outputs(model, kind, rows, key=key), batch, config.pad_id)

    return NetworkLoss(loss, (r"lm_head\.", rf"heads\.(?!{re.escape(head)}\.)"))


def masked_lm_loss(
    *,
    config: RobertaConfig,
    numerics: Numerics = Numerics(),
    lora: LoRA | None = None,
) -> NetworkLoss:
    """Returns the masked-LM loss: the negative log-probability of the original tokens (fairseq's masked_lm).

    Args:
      config, numerics, lora: as in head_loss.

    Raises:
      InputError: the model has no masked-LM head, or gradients would vanish in the dtype (float16).
    """
    check_lm_head(config)
    check_trainable(numerics)

    def loss(params: Params, batch: Batch, key: Key[Array, ""] | None) -> tuple[Float[Array, ""], Float[Array, ""]]:
        model, key = adapted_network(params, config, numerics, lora, key)
        features = model.features(batch["tokens"], key=key, positions=batch["positions"])
        losses = _cross_entropy(model.lm_logits(features), batch["targets"])
        return _weighted(losses, batch.get("weights", jnp.ones_like(losses)))

    return NetworkLoss(loss, (r"heads\.",))


def loss_of_outputs(
    head: HeadConfig, outputs: Float[Array, "rows ..."], batch: Batch, pad_id: int
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """What head_loss makes of a head's outputs, for use inside a traced function."""
    tokens, targets = batch["tokens"], batch["targets"]
    is_token = tokens != pad_id
    if tokens.ndim == 3:
        is_choice = is_token.any(axis=-1)
        losses = _cross_entropy(_excluding_padding(is_choice, outputs.reshape(is_choice.shape)), targets)
    else:
        losses = _item_losses(head, outputs, targets, is_token)
    default = is_token if head.kind == "token" else jnp.ones_like(losses)
    return _weighted(losses, batch.get("weights", default))


def _weighted(losses: Float[Array, "..."], weights: Array) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The sum of the losses, and the sum of their weights."""
    weights = weights if jnp.issubdtype(weights.dtype, jnp.floating) else weights.astype(losses.dtype)
    return (losses * weights).sum(), weights.sum()


def check_trainable(numerics: Numerics) -> None:
    """Raises InputError if gradients would vanish in the dtype."""
    if numerics.dtype == jnp.float16:
        raise InputError("float16 has too small a range of exponents for gradients; train in bfloat16 or float32")


def _item_losses(
    head: HeadConfig,
    outputs: Float[Array, "batch ..."],
    targets: Array,
    is_token: Array,
) -> Float[Array, "batch ..."]:
    """Returns the loss of each weighted item."""
    if head.kind == "span":
        return _cross_entropy(_excluding_padding(is_token[:, :, None], outputs).swapaxes(1, 2), targets).mean(axis=-1)
    if head.problem == "regression":
        errors = jnp.square(outputs - targets.reshape(outputs.shape))
        return errors.mean(axis=-1)
    if head.problem == "multi_label":
        return -(targets * jax.nn.log_sigmoid(outputs) + (1 - targets) * jax.nn.log_sigmoid(-outputs)).sum(axis=-1)
    return _cross_entropy(outputs, targets)


def _excluding_padding(is_real: Bool[Array, "..."], scores: Float[Array, "..."]) -> Float[Array, "..."]:
    """Replaces the scores of padding, so that its probability is zero."""
    return jnp.where(is_real, scores, float(np.finfo(scores.dtype).min))


def _cross_entropy(logits: Float[Array, "*rows classes"], targets: Int[Array, "*rows"]) -> Float[Array, "*rows"]:
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    return -jnp.take_along_axis(log_probabilities, targets[..., None], axis=-1)[..., 0]
