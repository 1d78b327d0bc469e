"""Names of the tensors that a comparison covers, in the order in which the network computes them.

  embeddings.sum, embeddings.output                   before and after LayerNorm            [batch, time, hidden]
  layers.N.attention.query, key, value                projections                           [batch, time, hidden]
  layers.N.attention.scores                           scaled products, before the mask      [batch, heads, time, time]
  layers.N.attention.weights                          after the mask and softmax            [batch, heads, time, time]
  layers.N.attention.context                          weighted sum of the values            [batch, time, hidden]
  layers.N.attention.output                           projection, before the residual       [batch, time, hidden]
  layers.N.attention_layer_norm                       output of the LayerNorm               [batch, time, hidden]
  layers.N.feed_forward.intermediate, activation      before and after the activation       [batch, time, intermediate]
  layers.N.feed_forward.output                        before the residual                   [batch, time, hidden]
  layers.N.feed_forward_layer_norm                    output of the LayerNorm               [batch, time, hidden]
  layers.N.output                                     output of the layer                   [batch, time, hidden]
  features                                            after the last LayerNorm of a pre-norm network
                                                                                            [batch, time, hidden]
  lm_head.layer_norm, lm_head.logits                  at selected positions                 [batch, selected, ...]
  lm_head.loss                                        mean of the masked-LM loss            []
  heads.NAME.dense, logits, log_probabilities         of each head                          [batch, ...]
  heads.NAME.score                                    of a cross-encoder, where its activation changes the logits
                                                                                            [batch, classes]
  heads.NAME.loss                                     mean loss of a sentence head          []
  sentence_vector                                     of a sentence encoder, after all of its modules
                                                                                            [batch, size]
  gradients.PATH                                      of the sum of all losses with respect to each parameter
                                                      (docs/parameters.md)

In a pre-norm network a LayerNorm comes before its block. Gradients are listed as backpropagation computes them, from
the heads to the embeddings, so that the first one to diverge is the one nearest to the fault. Values at padding are not
compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import numpy as np
import numpy.typing as npt

from roberta_flax.checkpoint.usage import Usage
from roberta_flax.errors import InputError
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from roberta_flax.nn.forward import abstract_params, intermediate_names
from roberta_flax.nn.tree import flatten
from roberta_flax.parity.inputs import ParityBatch

GRADIENTS = "gradients."
SENTENCE_VECTOR = "sentence_vector"


def all_names(config: RobertaConfig, gradients: bool = False, usage: Usage = Usage()) -> list[str]:
    """All tensor names of a network and of what its repository makes of its outputs, in order of computation."""
    names: list[str] = []
    for name in intermediate_names(config):
        names += [name, *_after(name, config, usage)]
    if usage.embedding is not None and not usage.embedding.is_multi_vector:
        names.append(SENTENCE_VECTOR)
    if gradients:
        names += [GRADIENTS + path for path in _backwards(flatten(abstract_params(config)), names)]
    return names


def matching_names(
    config: RobertaConfig, gradients: bool, patterns: Sequence[str], usage: Usage = Usage()
) -> list[str]:
    """Names that match at least one glob pattern ("layers.*.output"), in order; all names if there are no patterns.

    Raises:
      InputError: a pattern matches no name.
    """
    names = all_names(config, gradients, usage)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise InputError(f"no tensor matches {pattern!r}; this model's are {', '.join(names[:12])}, ...")
    return [name for name in names if not patterns or any(fnmatchcase(name, each) for each in patterns)]


def has_log_probabilities(head: HeadConfig) -> bool:
    """Whether forward.head_log_probs returns log-probabilities for a head, rather than its raw outputs."""
    return head.kind not in ("choice", "pooler") and head.problem != "regression"


def cross_encoder_activation(head: HeadConfig, usage: Usage) -> str | None:
    """The activation that a cross-encoder applies to a head's outputs, of nn.sentence.ACTIVATIONS; None for none."""
    scoring = usage.scoring_of(head.name)
    if scoring is None or head.kind != "sentence":
        return None
    activation = scoring.activation or ("sigmoid" if head.num_classes == 1 else "identity")
    return None if activation == "identity" else activation


def compared_mask(name: str, batch: ParityBatch, config: RobertaConfig) -> npt.NDArray[np.bool_]:
    """Mask of the elements to compare. Its axes are the leading axes of the tensor."""
    is_token: npt.NDArray[np.bool_] = np.not_equal(batch.tokens, config.pad_id)
    part = name.rpartition(".")[2]
    if part == "loss" or name.startswith(GRADIENTS):
        return np.array(True)
    if name == SENTENCE_VECTOR:
        return np.ones(len(batch.tokens), bool)
    if name.startswith("lm_head."):
        return np.asarray(batch.weights > 0)
    if name.startswith("heads."):
        sees_every_token = not config.head(name.split(".")[1]).has_dense
        return is_token if sees_every_token else np.ones(len(batch.tokens), bool)
    if part == "scores":
        return np.repeat((is_token[:, :, None] & is_token[:, None, :])[:, None], config.num_heads, axis=1)
    if part == "weights":
        return np.repeat(is_token[:, None], config.num_heads, axis=1)
    return is_token


def _backwards(paths: Iterable[str], names: Sequence[str]) -> list[str]:
    """Parameter paths in the order of backpropagation: the last that the network uses comes first."""
    return sorted(paths, key=lambda path: -names.index(_computed_by(path.rpartition(".")[0])))


def _computed_by(module: str) -> str:
    """The tensor that a module's parameters compute."""
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


def _after(name: str, config: RobertaConfig, usage: Usage) -> list[str]:
    """What is computed of a head's logits."""
    module, _, part = name.rpartition(".")
    if part != "logits":
        return []
    if module == "lm_head":
        return [f"{module}.loss"]
    head = config.head(module.removeprefix("heads."))
    parts = ["log_probabilities"] if has_log_probabilities(head) else []
    parts += ["score"] if cross_encoder_activation(head, usage) else []
    parts += ["loss"] if head.kind == "sentence" else []
    return [f"{module}.{part}" for part in parts]
