"""The named values of a network that two implementations are compared at, in the order in which they are computed.

  embeddings.sum, embeddings.output                   before and after LayerNorm            [batch, time, hidden]
  layers.N.attention.query, key, value                projected                             [batch, time, hidden]
  layers.N.attention.scores                           products, scaled, not masked          [batch, heads, time, time]
  layers.N.attention.weights                          after mask and softmax                [batch, heads, time, time]
  layers.N.attention.context                          weighted values                       [batch, time, hidden]
  layers.N.attention.output                           projected, before the residual        [batch, time, hidden]
  layers.N.attention_layer_norm                       its output                            [batch, time, hidden]
  layers.N.feed_forward.intermediate, activation      before and after the activation       [batch, time, intermediate]
  layers.N.feed_forward.output                        before the residual                   [batch, time, hidden]
  layers.N.feed_forward_layer_norm                    its output                            [batch, time, hidden]
  layers.N.output                                     the layer's                           [batch, time, hidden]
  features                                            after a pre-norm's last LayerNorm     [batch, time, hidden]
  lm_head.layer_norm, lm_head.logits                  at chosen positions                   [batch, selected, ...]
  lm_head.loss                                        masked-LM, mean                       []
  heads.NAME.dense, logits, log_probabilities         of each head                          [batch, ...]
  heads.NAME.loss                                     of a sentence head, mean              []
  gradients.PATH                                      of the sum of all losses, by each parameter (docs/parameters.md)

A LayerNorm comes before its block where the network is pre-norm. Gradients come as they are computed, from the heads
back to the embeddings, so that the first that is off is next to the fault. What padding holds is not compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import numpy as np
import numpy.typing as npt

from roberta_flax.errors import InputError
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from roberta_flax.nn.forward import abstract_params
from roberta_flax.nn.tree import flatten
from roberta_flax.parity.inputs import ParityBatch

_ATTENTION = tuple(f"attention.{part}" for part in ("query", "key", "value", "scores", "weights", "context", "output"))
_FEED_FORWARD = tuple(f"feed_forward.{part}" for part in ("intermediate", "activation", "output"))
GRADIENTS = "gradients."


def all_points(config: RobertaConfig, gradients: bool = False) -> list[str]:
    """The points of a network, in order."""
    norms = ("attention_layer_norm",), ("feed_forward_layer_norm",)
    if config.normalize_before:
        layer = (*norms[0], *_ATTENTION, *norms[1], *_FEED_FORWARD, "output")
    else:
        layer = (*_ATTENTION, *norms[0], *_FEED_FORWARD, *norms[1], "output")
    points = ["embeddings.sum", "embeddings.output"]
    points += [f"layers.{i}.{part}" for i in range(config.num_layers) for part in layer]
    points += ["features"]
    if config.lm_head:
        points += ["lm_head.layer_norm", "lm_head.logits", "lm_head.loss"]
    points += [f"heads.{head.name}.{part}" for head in config.heads for part in _parts(head)]
    if gradients:
        points += [GRADIENTS + path for path in _backwards(flatten(abstract_params(config)), points)]
    return points


def chosen_points(config: RobertaConfig, gradients: bool, patterns: Sequence[str]) -> list[str]:
    """Those that match one of the patterns ("layers.*.output"), in order; all without a pattern.

    Raises:
      InputError: a pattern that matches none.
    """
    points = all_points(config, gradients)
    for pattern in patterns:
        if not any(fnmatchcase(point, pattern) for point in points):
            raise InputError(f"no tensor matches {pattern!r}; this model's are {', '.join(points[:12])}, ...")
    return [point for point in points if not patterns or any(fnmatchcase(point, each) for each in patterns)]


def has_log_probabilities(head: HeadConfig) -> bool:
    """Whether forward.head_log_probs gives log-probabilities of a head, and not its outputs as they are."""
    return head.kind not in ("choice", "pooler") and head.problem != "regression"


def counted(point: str, batch: ParityBatch, config: RobertaConfig) -> npt.NDArray[np.bool_]:
    """Which numbers of a point's value are compared; to be broadcast from the left against its shape."""
    is_token: npt.NDArray[np.bool_] = np.not_equal(batch.tokens, config.pad_id)
    part = point.rpartition(".")[2]
    if part == "loss" or point.startswith(GRADIENTS):
        return np.array(True)
    if point.startswith("lm_head."):
        return np.asarray(batch.weights > 0)
    if point.startswith("heads."):
        sees_every_token = not config.head(point.split(".")[1]).has_dense
        return is_token if sees_every_token else np.ones(len(batch.tokens), bool)
    if part == "scores":
        return np.repeat((is_token[:, :, None] & is_token[:, None, :])[:, None], config.num_heads, axis=1)
    if part == "weights":
        return np.repeat(is_token[:, None], config.num_heads, axis=1)
    return is_token


def _backwards(paths: Iterable[str], points: Sequence[str]) -> list[str]:
    """Parameters, the last first that the network meets."""
    return sorted(paths, key=lambda path: -points.index(_met_at(path.rpartition(".")[0])))


def _met_at(module: str) -> str:
    """The point whose value a module's parameters make."""
    if module == "layer_norm":
        return "features"
    if module == "lm_head.dense":
        return "lm_head.layer_norm"
    if module == "lm_head":
        return "lm_head.logits"
    if module == "embeddings.layer_norm":
        return "embeddings.output"
    if module.startswith("embeddings."):
        return "embeddings.sum"
    if module.startswith("heads.") and module.endswith(".output"):
        return module.removesuffix("output") + "logits"
    return module


def _parts(head: HeadConfig) -> list[str]:
    parts = ["dense"] if head.has_dense else []
    parts += ["logits"]
    parts += ["log_probabilities"] if has_log_probabilities(head) else []
    return parts + (["loss"] if head.kind == "sentence" else [])
