"""ONE table: fairseq's parameter names <-> paths of the Flax tree, with what happens to the values.

Names are those that fairseq's main branch writes; older ones are brought to these first (`modernize`). `{i}` stands
for a layer's number and `{head}` for a head's name, on both sides.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from convert.torch_file import Tensor


class Transform(Enum):
    """What happens to a tensor's values on the way from fairseq; each is its own inverse."""

    SAME = "as it is"
    TRANSPOSE = "transposed"  # torch's Linear keeps [outputs, inputs], Flax's [inputs, outputs]


SAME, TRANSPOSE = Transform.SAME, Transform.TRANSPOSE

_ENCODER = "encoder.sentence_encoder"
_LAYER = f"{_ENCODER}.layers.{{i}}"
_LM_HEAD = "encoder.lm_head"
_HEAD = "classification_heads.{head}"


def _linear(source: str, path: str) -> list[tuple[str, str, Transform]]:
    return [(f"{source}.weight", f"{path}.kernel", TRANSPOSE), (f"{source}.bias", f"{path}.bias", SAME)]


def _layer_norm(source: str, path: str) -> list[tuple[str, str, Transform]]:
    return [(f"{source}.weight", f"{path}.scale", SAME), (f"{source}.bias", f"{path}.bias", SAME)]


TABLE: list[tuple[str, str, Transform]] = [
    (f"{_ENCODER}.embed_tokens.weight", "embeddings.token.embedding", SAME),
    (f"{_ENCODER}.embed_positions.weight", "embeddings.position.embedding", SAME),
    *_layer_norm(f"{_ENCODER}.layernorm_embedding", "embeddings.layer_norm"),
    *_linear(f"{_LAYER}.self_attn.q_proj", "layers.{i}.attention.query"),
    *_linear(f"{_LAYER}.self_attn.k_proj", "layers.{i}.attention.key"),
    *_linear(f"{_LAYER}.self_attn.v_proj", "layers.{i}.attention.value"),
    *_linear(f"{_LAYER}.self_attn.out_proj", "layers.{i}.attention.output"),
    *_layer_norm(f"{_LAYER}.self_attn_layer_norm", "layers.{i}.attention_layer_norm"),
    *_linear(f"{_LAYER}.fc1", "layers.{i}.feed_forward.intermediate"),
    *_linear(f"{_LAYER}.fc2", "layers.{i}.feed_forward.output"),
    *_layer_norm(f"{_LAYER}.final_layer_norm", "layers.{i}.feed_forward_layer_norm"),
    *_layer_norm(f"{_ENCODER}.layer_norm", "layer_norm"),
    *_linear(f"{_LM_HEAD}.dense", "lm_head.dense"),
    *_layer_norm(f"{_LM_HEAD}.layer_norm", "lm_head.layer_norm"),
    (f"{_LM_HEAD}.weight", "lm_head.embedding", SAME),  # of its own only where the weights are untied
    (f"{_LM_HEAD}.bias", "lm_head.bias", SAME),
    *_linear(f"{_HEAD}.dense", "heads.{head}.dense"),
    *_linear(f"{_HEAD}.out_proj", "heads.{head}.output"),
]

# Tensors that carry nothing a network needs.
NOTHING_IN_THEM: list[tuple[str, str]] = [
    (f"{_ENCODER}.version", "a format number: TransformerEncoderBase's buffer"),
    (f"{_ENCODER}.embed_positions._float_tensor", "a marker of device and dtype, always one number"),
    ("_float_tensor", "RobertaHubInterface's marker of the device"),
]

EMBED_TOKENS = f"{_ENCODER}.embed_tokens.weight"
LM_HEAD_WEIGHT = f"{_LM_HEAD}.weight"


@dataclass(frozen=True)
class Place:
    """Where a tensor goes: a path of the tree, its parts joined by dots, and what happens to its values."""

    path: str
    transform: Transform


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{head\}", r"(?P<head>[^.]+)"))


_FROM_FAIRSEQ = [(_pattern(source), path, transform) for source, path, transform in TABLE]
_TO_FAIRSEQ = [(_pattern(path), source, transform) for source, path, transform in TABLE]


def place_of(name: str) -> Place | None:
    """The place of a tensor of fairseq's, by its (modern) name; None for a name that is not in the table."""
    return _look_up(name, _FROM_FAIRSEQ)


def source_of(path: str) -> Place | None:
    """The other direction: fairseq's name, as a Place, for a path of the tree."""
    return _look_up(path, _TO_FAIRSEQ)


def _look_up(name: str, rules: list[tuple[re.Pattern[str], str, Transform]]) -> Place | None:
    for pattern, template, transform in rules:
        if match := pattern.fullmatch(name):
            return Place(template.format(**match.groupdict()), transform)
    return None


def why_ignored(name: str) -> str | None:
    """Why a tensor of this (modern) name is left out, or None where it is not."""
    return dict(NOTHING_IN_THEM).get(name)


# Older names -> today's, in the order in which fairseq's upgrade_state_dict_named renames them.
_RENAMED = [
    (re.compile(r"^decoder\."), "encoder."),  # RoBERTa's encoder was called decoder in 2019
    (re.compile(r"\.emb_layer_norm\."), ".layernorm_embedding."),
    (re.compile(r"\.layer_norms\.0\."), ".self_attn_layer_norm."),
    (re.compile(r"\.layer_norms\.1\."), ".final_layer_norm."),
]
_FUSED = re.compile(r"(.*\.self_attn\.)in_proj_(weight|bias)")


def modernize(name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """One tensor under today's names: itself, or the three that a fused in_proj_weight or in_proj_bias holds."""
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    match = _FUSED.fullmatch(name)
    if match is None or len(tensor.shape) == 0 or tensor.shape[0] % 3:
        return [(name, tensor)]
    prefix, kind = match.groups()
    size = tensor.shape[0] // 3
    return [(f"{prefix}{part}_proj.{kind}", tensor.rows(n * size, (n + 1) * size)) for n, part in enumerate("qkv")]
