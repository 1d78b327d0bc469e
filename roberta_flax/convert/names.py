"""ONE table: paths of the Flax tree <-> parameter names in fairseq and in Hugging Face's transformers.

Names are those that the two libraries write today; older ones are brought to these first (`modernize`). `{i}` stands
for a layer's number and `{head}` for a head's name. A Hugging Face model has one head, which has no name there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from roberta_flax.checkpoint.tensors import LazyTensor
from roberta_flax.convert.views import rows, transposed


class Transform(Enum):
    """What happens to a tensor's values on the way from torch; each is its own inverse."""

    SAME = "as it is"
    TRANSPOSE = "transposed"  # torch's Linear keeps [outputs, inputs], Flax's [inputs, outputs]


SAME, TRANSPOSE = Transform.SAME, Transform.TRANSPOSE


@dataclass(frozen=True)
class Row:
    """A parameter in the tree, in fairseq and in transformers; None where a library does not have it.

    `kind` is the HeadConfig.kind of a head's parameter: the tree names the parts of every kind alike.
    """

    path: str
    fairseq: str | None
    huggingface: str | None
    transform: Transform = SAME
    kind: str | None = None


_ENCODER = "encoder.sentence_encoder"
_LAYER = f"{_ENCODER}.layers.{{i}}"
_HF_LAYER = "roberta.encoder.layer.{i}"
_HEAD = "classification_heads.{head}"


def _both(path: str, fairseq: str | None, huggingface: str | None, names: dict[str, str], **changes: str) -> list[Row]:
    """A row for each parameter of a Linear or a LayerNorm."""
    return [
        Row(
            f"{path}.{ours}",
            fairseq and f"{fairseq}.{theirs}",
            huggingface and f"{huggingface}.{theirs}",
            TRANSPOSE if ours == "kernel" else SAME,
            **changes,
        )
        for ours, theirs in names.items()
    ]


def _linear(path: str, fairseq: str | None, huggingface: str | None, **changes: str) -> list[Row]:
    return _both(path, fairseq, huggingface, {"kernel": "weight", "bias": "bias"}, **changes)


def _layer_norm(path: str, fairseq: str, huggingface: str) -> list[Row]:
    return _both(path, fairseq, huggingface, {"scale": "weight", "bias": "bias"})


EMBED_TOKENS = f"{_ENCODER}.embed_tokens.weight"
LM_HEAD_WEIGHT = "encoder.lm_head.weight"
HF_WORD_EMBEDDINGS = "roberta.embeddings.word_embeddings.weight"
HF_TOKEN_TYPES = "roberta.embeddings.token_type_embeddings.weight"
HF_LM_HEAD_WEIGHT = "lm_head.decoder.weight"
HF_LM_HEAD_BIAS = "lm_head.bias"
HF_DECODER_BIAS = "lm_head.decoder.bias"  # the same parameter by another name

TABLE: list[Row] = [
    Row("embeddings.token.embedding", EMBED_TOKENS, HF_WORD_EMBEDDINGS),
    Row(
        "embeddings.position.embedding",
        f"{_ENCODER}.embed_positions.weight",
        "roberta.embeddings.position_embeddings.weight",
    ),
    Row("embeddings.token_type.embedding", None, HF_TOKEN_TYPES),
    *_layer_norm("embeddings.layer_norm", f"{_ENCODER}.layernorm_embedding", "roberta.embeddings.LayerNorm"),
    *_linear("layers.{i}.attention.query", f"{_LAYER}.self_attn.q_proj", f"{_HF_LAYER}.attention.self.query"),
    *_linear("layers.{i}.attention.key", f"{_LAYER}.self_attn.k_proj", f"{_HF_LAYER}.attention.self.key"),
    *_linear("layers.{i}.attention.value", f"{_LAYER}.self_attn.v_proj", f"{_HF_LAYER}.attention.self.value"),
    *_linear("layers.{i}.attention.output", f"{_LAYER}.self_attn.out_proj", f"{_HF_LAYER}.attention.output.dense"),
    *_layer_norm(
        "layers.{i}.attention_layer_norm",
        f"{_LAYER}.self_attn_layer_norm",
        f"{_HF_LAYER}.attention.output.LayerNorm",
    ),
    *_linear("layers.{i}.feed_forward.intermediate", f"{_LAYER}.fc1", f"{_HF_LAYER}.intermediate.dense"),
    *_linear("layers.{i}.feed_forward.output", f"{_LAYER}.fc2", f"{_HF_LAYER}.output.dense"),
    *_layer_norm("layers.{i}.feed_forward_layer_norm", f"{_LAYER}.final_layer_norm", f"{_HF_LAYER}.output.LayerNorm"),
    *_layer_norm("layer_norm", f"{_ENCODER}.layer_norm", "roberta.encoder.LayerNorm"),
    *_linear("lm_head.dense", "encoder.lm_head.dense", "lm_head.dense"),
    *_layer_norm("lm_head.layer_norm", "encoder.lm_head.layer_norm", "lm_head.layer_norm"),
    Row("lm_head.embedding", LM_HEAD_WEIGHT, HF_LM_HEAD_WEIGHT),  # of its own only where the weights are untied
    Row("lm_head.bias", "encoder.lm_head.bias", HF_LM_HEAD_BIAS),
    *_linear("heads.{head}.dense", f"{_HEAD}.dense", "classifier.dense", kind="sentence"),
    *_linear("heads.{head}.output", f"{_HEAD}.out_proj", "classifier.out_proj", kind="sentence"),
    *_linear("heads.{head}.output", None, "classifier", kind="token"),
    *_linear("heads.{head}.output", None, "qa_outputs", kind="span"),
    *_linear("heads.{head}.dense", None, "roberta.pooler.dense", kind="choice"),
    *_linear("heads.{head}.output", None, "classifier", kind="choice"),
    *_linear("heads.{head}.dense", None, "roberta.pooler.dense", kind="pooler"),
]

# Where transformers names the LayerNorms of its pre-norm models otherwise: in a layer, and after the last one.
HF_PRE_NORM_NAMES: dict[str, dict[str, str]] = {
    "xlm-roberta-xl": {
        ".attention.output.LayerNorm.": ".attention.self_attn_layer_norm.",
        ".output.LayerNorm.": ".LayerNorm.",
    },
    "roberta-prelayernorm": {
        ".attention.output.LayerNorm.": ".attention.LayerNorm.",
        ".output.LayerNorm.": ".intermediate.LayerNorm.",
        "roberta.encoder.LayerNorm.": "roberta.LayerNorm.",
    },
}

# Tensors that carry nothing a network needs.
NOTHING_IN_THEM: list[tuple[str, str]] = [
    (rf"{re.escape(_ENCODER)}\.version", "a format number: TransformerEncoderBase's buffer"),
    (
        rf"{re.escape(_ENCODER)}\.embed_positions\._float_tensor",
        "a marker of device and dtype, always one number",
    ),
    (r"_float_tensor", "RobertaHubInterface's marker of the device"),
    (r"encoder\.regression_head\..*", "data2vec's regression onto its teacher, which fairseq drops too"),
    (r"encoder\._ema(\..*)?", "data2vec's teacher, which fairseq drops too"),
    (r"roberta\.embeddings\.(position|token_type)_ids", "the numbers 0, 1, 2, ... that a position begins from"),
]


@dataclass(frozen=True)
class Place:
    """Where a tensor goes: a path of the tree, its parts joined by dots, and what happens to its values."""

    path: str
    transform: Transform


def transformed(tensor: LazyTensor, transform: Transform) -> LazyTensor:
    """A tensor of torch's as the tree has it, or the other way."""
    return transposed(tensor) if transform is TRANSPOSE else tensor


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(
        re.escape(template).replace(r"\{i\}", r"(?P<i>[0-9]{1,4})").replace(r"\{head\}", r"(?P<head>[^.]+)")
    )


def _rules(rows: Sequence[tuple[str | None, str | None, Transform]]) -> list[tuple[re.Pattern[str], str, Transform]]:
    return [(_pattern(old), new, transform) for old, new, transform in rows if old is not None and new is not None]


_FROM_FAIRSEQ = _rules([(row.fairseq, row.path, row.transform) for row in TABLE])
_TO_FAIRSEQ = _rules([(row.path, row.fairseq, row.transform) for row in TABLE])
_FROM_HUGGINGFACE = {
    kind: _rules([(row.huggingface, row.path, row.transform) for row in TABLE if row.kind == kind])
    for kind in {row.kind for row in TABLE}
}
_TO_HUGGINGFACE = {
    kind: _rules([(row.path, row.huggingface, row.transform) for row in TABLE if row.kind == kind])
    for kind in {row.kind for row in TABLE}
}


def from_fairseq(name: str) -> Place | None:
    """The place of a tensor of fairseq's, by its (modern) name; None for a name that is not in the table."""
    return _look_up(name, _FROM_FAIRSEQ)


def to_fairseq(path: str) -> Place | None:
    """The other direction: fairseq's name, as a Place, for a path of the tree."""
    return _look_up(path, _TO_FAIRSEQ)


def from_huggingface(name: str, head: tuple[str, str] | None = None, pooler: str | None = None) -> Place | None:
    """The place of a tensor of transformers', by its (modern) name; None for a name that is not in the table.

    Args:
      name: its name, with "roberta." before the parts of the encoder.
      head: the model's head as (name here, kind), where it has one.
      pooler: what a pooler that is no part of a head is called here.
    """
    place = _look_up(name, _FROM_HUGGINGFACE[None])
    for called, kind in (head or ("", ""), (pooler or "", "pooler")):
        if place is None and called and (found := _look_up(name, _FROM_HUGGINGFACE[kind])):
            place = Place(found.path.replace("{head}", called), found.transform)
    return place


def to_huggingface(path: str, kinds: dict[str, str]) -> Place | None:
    """The other direction: transformers' name, as a Place, for a path of the tree.

    Args:
      path: of the tree.
      kinds: name -> kind of the heads that go into the file.
    """
    if (place := _look_up(path, _TO_HUGGINGFACE[None])) is not None:
        return place
    head = path.split(".")[1] if path.startswith("heads.") else ""
    return _look_up(path, _TO_HUGGINGFACE[kinds[head]]) if head in kinds else None


def _look_up(name: str, rules: list[tuple[re.Pattern[str], str, Transform]]) -> Place | None:
    for pattern, template, transform in rules:
        if match := pattern.fullmatch(name):
            for key, value in match.groupdict().items():
                template = template.replace(f"{{{key}}}", value)
            return Place(template, transform)
    return None


def why_ignored(name: str) -> str | None:
    """Why a tensor of this (modern) name is left out, or None where it is not."""
    return next((why for pattern, why in NOTHING_IN_THEM if re.fullmatch(pattern, name)), None)


# fairseq's older names -> today's, in the order in which its upgrade_state_dict_named renames them.
_RENAMED_IN_FAIRSEQ = [
    (re.compile(r"^(sentence_encoder|lm_head|regression_head|_ema)\b"), r"encoder.\1"),  # an encoder saved alone
    (re.compile(r"^decoder\."), "encoder."),  # RoBERTa's encoder was called decoder in 2019
    (re.compile(r"\.emb_layer_norm\."), ".layernorm_embedding."),
    (re.compile(r"\.layer_norms\.0\."), ".self_attn_layer_norm."),
    (re.compile(r"\.layer_norms\.1\."), ".final_layer_norm."),
]
_FUSED = re.compile(r"(.*\.self_attn\.)in_proj_(weight|bias)")


def modernize_fairseq(name: str, tensor: LazyTensor) -> list[tuple[str, LazyTensor]]:
    """One tensor under today's names: itself, or the three that a fused in_proj_weight or in_proj_bias holds."""
    for pattern, replacement in _RENAMED_IN_FAIRSEQ:
        name = pattern.sub(replacement, name)
    match = _FUSED.fullmatch(name)
    if match is None or len(tensor.shape) == 0 or tensor.shape[0] % 3:
        return [(name, tensor)]
    prefix, kind = match.groups()
    size = tensor.shape[0] // 3
    return [(f"{prefix}{part}_proj.{kind}", rows(tensor, n * size, (n + 1) * size)) for n, part in enumerate("qkv")]


_HF_ENCODER_PARTS = ("embeddings.", "encoder.", "pooler.", "LayerNorm.")
_HF_PREFIXES = ("roberta_prelayernorm.",)


def modernize_huggingface(name: str, model_type: str) -> str:
    """A name as a RobertaForX of today has it, whichever class and model type it comes from."""
    name = re.sub(r"\bgamma$", "weight", re.sub(r"\bbeta$", "bias", name))  # LayerNorms that came from TensorFlow
    for prefix in _HF_PREFIXES:
        if name.startswith(prefix):
            name = "roberta." + name.removeprefix(prefix)
    if name.startswith(_HF_ENCODER_PARTS):  # a RobertaModel alone
        name = f"roberta.{name}"
    for ours, theirs in HF_PRE_NORM_NAMES.get(model_type, {}).items():
        name = _within_layer(name, theirs, ours)
    return name


def localize_huggingface(name: str, model_type: str) -> str:
    """The other direction: the name of a RobertaForX as a model type's own classes have it."""
    for ours, theirs in HF_PRE_NORM_NAMES.get(model_type, {}).items():
        if (changed := _within_layer(name, ours, theirs)) != name:
            name = changed
            break
    return re.sub(r"^roberta\.", "roberta_prelayernorm.", name) if model_type == "roberta-prelayernorm" else name


def _within_layer(name: str, old: str, new: str) -> str:
    """`name` with `old`, which follows a layer's number (or begins the name), replaced by `new`."""
    if not old.startswith("."):
        return new + name.removeprefix(old) if name.startswith(old) else name
    return re.sub(rf"^(roberta\.encoder\.layer\.[0-9]+){re.escape(old)}", rf"\g<1>{new}", name)
