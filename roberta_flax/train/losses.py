"""What a network is trained to make small: sums over a batch, and what to divide them by.

A loss is a function of (params, batch, key); `key=None` evaluates, a PRNG key turns on dropout and LayerDrop. It
returns the sum over the batch, in nats or squared error, and the sum of the batch's weights, so that means over several
batches or devices are means over all that counts, as fairseq's criteria with their sample sizes.

A batch is a dict of arrays, padded on the right, in which what does not count has weight 0:

  sentence   tokens int32 [batch, time], weights float32 [batch], targets int32 [batch]; of a regression with one output
             float32 [batch], of several outputs or of any number of labels float32 [batch, outputs]
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
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from roberta_flax.errors import InputError
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from roberta_flax.nn.forward import Params, check_lm_head, head_outputs, network
from roberta_flax.nn.numerics import Numerics

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, Key

Batch = Mapping[str, "Array"]
Loss = Callable[[Params, Batch, "Key[Array, ''] | None"], "tuple[Float[Array, ''], Float[Array, '']]"]


@dataclass(frozen=True)
class NetworkLoss:
    """A loss that says which parameters it does not read: an update leaves them as they are, without weight decay.

    As in fairseq, whose Adam passes over parameters without a gradient: the LM head while a classifier is trained.

    Attributes:
      function: the loss.
      unread: patterns that match the beginnings of those parameters' paths.
    """

    function: Loss
    unread: tuple[str, ...]

    def __call__(
        self, params: Params, batch: Batch, key: Key[Array, ""] | None
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The sum over the batch, and the sum of its weights."""
        return self.function(params, batch, key)


def head_loss(
    head: str,
    *,
    config: RobertaConfig,
    numerics: Numerics = Numerics(),
) -> NetworkLoss:
    """The loss of the head called `head`, by its kind and problem.

    - sentence and token, of one label: the label's negative log-probability (fairseq's sentence_prediction); of any
      number of labels: the binary cross-entropies' sum; a regression: the squared error
    - span: the mean of the first and the last token's negative log-probabilities among the row's tokens
    - choice, and a sentence head of one output on tokens of three axes: the right choice's negative log-probability
      among the choices' scores (fairseq's sentence_ranking, of RACE and CommonsenseQA); padding alone is no choice

    Args:
      head: of `config.heads`.
      config: the network's.
      numerics: how to compute. bfloat16 computes in bfloat16 with the parameters as they are: float32 parameters are
        the master weights. `remat` takes less memory and a third more work.

    Raises:
      InputError: no such head, a head without a loss (a pooler), or a dtype in which gradients vanish (float16).
    """
    kind = config.head(head)
    if kind.kind == "pooler":
        raise InputError(f"head {head!r} is a pooler: it has no outputs to train on; register a head of another kind")
    _check_trainable(numerics)

    def loss(params: Params, batch: Batch, key: Key[Array, ""] | None) -> tuple[Float[Array, ""], Float[Array, ""]]:
        tokens, targets, weights = batch["tokens"], batch["targets"], batch["weights"]
        rows = tokens.reshape(-1, tokens.shape[-1])
        outputs = head_outputs(network(params, config, numerics), kind, rows, key=key)
        if tokens.ndim == 3:
            is_choice = (tokens != config.pad_id).any(axis=-1)
            each = _cross_entropy(_among(is_choice, outputs.reshape(is_choice.shape)), targets)
        else:
            each = _each_loss(kind, outputs, targets, tokens != config.pad_id)
        return (each * weights).sum(), weights.sum()

    return NetworkLoss(loss, (r"lm_head\.", rf"heads\.(?!{re.escape(head)}\.)"))


def masked_lm_loss(
    *,
    config: RobertaConfig,
    numerics: Numerics = Numerics(),
) -> NetworkLoss:
    """The negative log-probability of the original tokens at the masked positions (fairseq's masked_lm).

    Args and errors: as head_loss; also InputError where there is no masked-LM head.
    """
    check_lm_head(config)
    _check_trainable(numerics)

    def loss(params: Params, batch: Batch, key: Key[Array, ""] | None) -> tuple[Float[Array, ""], Float[Array, ""]]:
        model, weights = network(params, config, numerics), batch["weights"]
        features = model.features(batch["tokens"], key=key, positions=batch["positions"])
        logits = model.lm_logits(features.reshape(-1, config.hidden_size))
        each = _cross_entropy(logits, batch["targets"].reshape(-1))
        return (each * weights.reshape(-1)).sum(), weights.sum()

    return NetworkLoss(loss, (r"heads\.",))


def _check_trainable(numerics: Numerics) -> None:
    if numerics.dtype == jnp.float16:
        raise InputError("float16 has too few exponents for gradients; train in bfloat16 or float32")


def _each_loss(
    head: HeadConfig,
    outputs: Float[Array, "batch ..."],
    targets: Array,
    is_token: Array,
) -> Float[Array, "batch ..."]:
    """The loss of each thing that has a weight."""
    if head.kind == "span":
        return _cross_entropy(_among(is_token[:, :, None], outputs).swapaxes(1, 2), targets).mean(axis=-1)
    if head.problem == "regression":
        errors = jnp.square(outputs - targets.reshape(outputs.shape))
        return errors.mean(axis=-1)
    if head.problem == "multi_label":
        return -(targets * jax.nn.log_sigmoid(outputs) + (1 - targets) * jax.nn.log_sigmoid(-outputs)).sum(axis=-1)
    return _cross_entropy(outputs, targets)


def _among(there: Bool[Array, "..."], scores: Float[Array, "..."]) -> Float[Array, "..."]:
    """The scores of those that are there; the others' probability is zero."""
    return jnp.where(there, scores, float(np.finfo(scores.dtype).min))


def _cross_entropy(logits: Float[Array, "*rows classes"], targets: Int[Array, "*rows"]) -> Float[Array, "*rows"]:
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    return -jnp.take_along_axis(log_probabilities, targets[..., None], axis=-1)[..., 0]
