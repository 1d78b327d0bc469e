"""The one table of parameter names: paths of the Flax tree <-> names in fairseq and in Transformers.

The names are those that the two libraries write today. Older names are translated to these first
(`modernize_fairseq`, `modernize_huggingface`). `{i}` stands for a layer number and `{head}` for the name of a head. A
Transformers model has one head, which has no name there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from roberta_flax.checkpoint.tensors import LazyTensor
from roberta_flax.convert.views import rows, transposed


class Transform(Enum):
    """How a tensor's values change on the way from torch to Flax. Each transform is its own inverse."""

    SAME = "as it is"
    TRANSPOSE = "transposed"  # torch's Linear stores [outputs, inputs], Flax's [inputs, outputs]


SAME, TRANSPOSE = Transform.SAME, Transform.TRANSPOSE


@dataclass(frozen=True)
class Row:
    """A parameter's names in the tree, in fairseq and in Transformers; None if a library does not have it.

    `kind` is the HeadConfig.kind if the parameter belongs to a head: the tree uses the same names for every kind.
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


def _rows(path: str, fairseq: str | None, huggingface: str | None, names: dict[str, str], **changes: str) -> list[Row]:
    """The rows of a Linear's or a LayerNorm's parameters."""
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
    return _rows(path, fairseq, huggingface, {"kernel": "weight", "bias": "bias"}, **changes)


def _layer_norm(path: str, fairseq: str, huggingface: str) -> list[Row]:
    return _rows(path, fairseq, huggingface, {"scale": "weight", "bias": "bias"})


EMBED_TOKENS = f"{_ENCODER}.embed_tokens.weight"
LM_HEAD_WEIGHT = "encoder.lm_head.weight"
HF_WORD_EMBEDDINGS = "roberta.embeddings.word_embeddings.weight"
HF_POSITIONS = "roberta.embeddings.position_embeddings.weight"
HF_TOKEN_TYPES = "roberta.embeddings.token_type_embeddings.weight"
HF_LM_HEAD_WEIGHT = "lm_head.decoder.weight"
HF_LM_HEAD_BIAS = "lm_head.bias"
HF_DECODER_BIAS = "lm_head.decoder.bias"  # another name of the same parameter

TABLE: list[Row] = [
    Row("embeddings.token.embedding", EMBED_TOKENS, HF_WORD_EMBEDDINGS),
    Row(
        "embeddings.position.embedding",
        f"{_ENCODER}.embed_positions.weight",
        HF_POSITIONS,
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
    Row("lm_head.embedding", LM_HEAD_WEIGHT, HF_LM_HEAD_WEIGHT),  # exists only if the weights are untied
    Row("lm_head.bias", "encoder.lm_head.bias", HF_LM_HEAD_BIAS),
    *_linear("heads.{head}.dense", f"{_HEAD}.dense", "classifier.dense", kind="sentence"),
    *_linear("heads.{head}.output", f"{_HEAD}.out_proj", "classifier.out_proj", kind="sentence"),
    *_linear("heads.{head}.output", None, "classifier", kind="token"),
    *_linear("heads.{head}.output", None, "qa_outputs", kind="span"),
    *_linear("heads.{head}.dense", None, "roberta.pooler.dense", kind="choice"),
    *_linear("heads.{head}.output", None, "classifier", kind="choice"),
    *_linear("heads.{head}.dense", None, "roberta.pooler.dense", kind="pooler"),
]

# The LayerNorms of Transformers' pre-norm models that have other names: in each layer, and after the last one.
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

# Tensors that the network does not need, by regular expression, and why.
IGNORED_TENSORS: list[tuple[str, str]] = [
    (rf"{re.escape(_ENCODER)}\.version", "a format number: TransformerEncoderBase's buffer"),
    (
        rf"{re.escape(_ENCODER)}\.embed_positions\._float_tensor",
        "a marker of device and dtype, always one number",
    ),
    (r"_float_tensor", "RobertaHubInterface's marker of the device"),
    (r"encoder\.regression_head\..*", "data2vec's regression onto its teacher, which fairseq drops too"),
    (r"encoder\._ema(\..*)?", "data2vec's teacher, which fairseq drops too"),
    (r"roberta\.embeddings\.(position|token_type)_ids", "a buffer of constant ids"),
    (r"cls\.seq_relationship\..*", "BERT's prediction of the next sentence"),
]


@dataclass(frozen=True)
class Place:
    """The destination of a tensor: its path in the tree, joined with dots, and the transform of its values."""

    path: str
    transform: Transform


def transformed(tensor: LazyTensor, transform: Transform) -> LazyTensor:
    """Converts a tensor from torch's form to the tree's, or back."""
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
    """The place of a fairseq tensor, by its modern name; None if the table does not contain the name."""
    return _look_up(name, _FROM_FAIRSEQ)


def to_fairseq(path: str) -> Place | None:
    """The reverse of `from_fairseq`: fairseq's name, as a Place, for a path of the tree."""
    return _look_up(path, _TO_FAIRSEQ)


def from_huggingface(name: str, head: tuple[str, str] | None = None, pooler: str | None = None) -> Place | None:
    """The place of a Transformers tensor, by its modern name; None if the table does not contain the name.

    Args:
      name: the tensor's name, with "roberta." before the parts of the encoder.
      head: the name in the tree and the kind of the model's head, if it has one.
      pooler: the name in the tree of a pooler that is not part of a head.
    """
    place = _look_up(name, _FROM_HUGGINGFACE[None])
    for head_name, kind in (head or ("", ""), (pooler or "", "pooler")):
        if place is None and head_name and (found := _look_up(name, _FROM_HUGGINGFACE[kind])):
            place = Place(found.path.replace("{head}", head_name), found.transform)
    return place


def to_huggingface(path: str, kinds: dict[str, str]) -> Place | None:
    """The reverse of `from_huggingface`: Transformers' name, as a Place, for a path of the tree.

    Args:
      path: a path of the tree.
      kinds: name -> kind of the heads to write.
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


def reason_to_ignore(name: str) -> str | None:
    """The reason to leave out a tensor of this modern name; None if it is needed."""
    return next((reason for pattern, reason in IGNORED_TENSORS if re.fullmatch(pattern, name)), None)


# fairseq's older names -> today's names, in the order of its upgrade_state_dict_named.
_FAIRSEQ_RENAMES = [
    (re.compile(r"^(sentence_encoder|lm_head|regression_head|_ema)\b"), r"encoder.\1"),  # an encoder saved alone
    (re.compile(r"^decoder\."), "encoder."),  # RoBERTa's encoder was called decoder in 2019
    (re.compile(r"\.emb_layer_norm\."), ".layernorm_embedding."),
    (re.compile(r"\.layer_norms\.0\."), ".self_attn_layer_norm."),
    (re.compile(r"\.layer_norms\.1\."), ".final_layer_norm."),
]
_FUSED = re.compile(r"(.*\.self_attn\.)in_proj_(weight|bias)")


def modernize_fairseq(name: str, tensor: LazyTensor) -> list[tuple[str, LazyTensor]]:
    """Returns a tensor by its modern name, or the three parts of a fused in_proj_weight or in_proj_bias by theirs."""
    for pattern, replacement in _FAIRSEQ_RENAMES:
        name = pattern.sub(replacement, name)
    match = _FUSED.fullmatch(name)
    if match is None or len(tensor.shape) == 0 or tensor.shape[0] % 3:
        return [(name, tensor)]
    prefix, kind = match.groups()
    size = tensor.shape[0] // 3
    return [(f"{prefix}{part}_proj.{kind}", rows(tensor, n * size, (n + 1) * size)) for n, part in enumerate("qkv")]


_HF_ENCODER_PARTS = ("embeddings.", "encoder.", "pooler.", "LayerNorm.")
_HF_ROOTS = {  # model_type -> base_model_prefix of its classes, where it is not "roberta"
    "roberta-prelayernorm": "roberta_prelayernorm",
    "data2vec-text": "data2vec_text",
    "bert": "bert",
}
_BERT_LM_HEAD = {  # names in BertForMaskedLM -> in RobertaForMaskedLM
    "cls.predictions.transform.dense.": "lm_head.dense.",
    "cls.predictions.transform.LayerNorm.": "lm_head.layer_norm.",
    "cls.predictions.decoder.": "lm_head.decoder.",
    "cls.predictions.bias": HF_LM_HEAD_BIAS,
}


def huggingface_roots(model_type: str) -> list[str]:
    """What the network is called in a model of this type that has a head."""
    return [*dict.fromkeys((_HF_ROOTS.get(model_type, "roberta"), "roberta"))]


def modernize_huggingface(name: str, model_type: str) -> str:
    """Translates a name of any class and model type to the name in today's RobertaForX."""
    name = re.sub(r"\bgamma$", "weight", re.sub(r"\bbeta$", "bias", name))  # LayerNorms converted from TensorFlow
    for root in huggingface_roots(model_type):
        if name.startswith(f"{root}."):
            name = "roberta." + name.removeprefix(f"{root}.")
    for theirs, ours in _BERT_LM_HEAD.items() if model_type == "bert" else ():
        if name.startswith(theirs):
            name = ours + name.removeprefix(theirs)
    if name.startswith(_HF_ENCODER_PARTS):  # a RobertaModel alone
        name = f"roberta.{name}"
    for ours, theirs in HF_PRE_NORM_NAMES.get(model_type, {}).items():
        name = _replace_in_layer(name, theirs, ours)
    return name


def localize_huggingface(name: str, model_type: str) -> str:
    """The reverse of `modernize_huggingface`: translates a name in RobertaForX to that in the model type's classes."""
    for ours, theirs in HF_PRE_NORM_NAMES.get(model_type, {}).items():
        if (changed := _replace_in_layer(name, ours, theirs)) != name:
            name = changed
            break
    return re.sub(r"^roberta\.", "roberta_prelayernorm.", name) if model_type == "roberta-prelayernorm" else name


def _replace_in_layer(name: str, old: str, new: str) -> str:
    """Replaces `old` with `new` if it follows the layer number, or, if it has no leading dot, begins the name."""
    if not old.startswith("."):
        return new + name.removeprefix(old) if name.startswith(old) else name
    return re.sub(rf"^(roberta\.encoder\.layer\.[0-9]+){re.escape(old)}", rf"\g<1>{new}", name)
