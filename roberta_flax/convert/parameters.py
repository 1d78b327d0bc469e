"""docs/parameters.md, from the code: python -m roberta_flax.convert.parameters > docs/parameters.md"""

from __future__ import annotations

import re

from roberta_flax.convert.names import TABLE, Row
from roberta_flax.nn.config import HEAD_KINDS, HeadConfig, RobertaConfig
from roberta_flax.nn.forward import abstract_params
from roberta_flax.nn.tree import flatten

_HEADER = """\
# The parameter tree

Written by `python -m roberta_flax.convert.parameters > docs/parameters.md`; a test compares it with the code.

`roberta.params` is nested dicts; a path's parts are joined with dots here and in `model.safetensors`
(`layers.0.attention.query.kernel` is `params["layers"][0]["attention"]["query"]["kernel"]`, the layer's number an int).
`{i}` is a layer's number, from 0; `{head}` a head's name. In memory every array has the dtype that
`load(param_dtype=...)` names, float32 by default; on disk the dtype of the source, or the one that `convert --dtype`
names.

The sizes: `vocab`, `hidden`, `intermediate`, `positions` = max_positions + 2, `types` = type_vocab_size, and each
head's `inner` and `classes`. A kernel is [inputs, outputs], the transpose of torch's weight; everything else is as it
is in fairseq and in transformers.

Names are those that fairseq and transformers write today. Older ones are read too: `decoder.` and bare
`sentence_encoder.` for `encoder.sentence_encoder.`, `emb_layer_norm`, fused `in_proj_weight`, `gamma` and `beta`. In
transformers' pre-norm models a layer's two LayerNorms are called `attention.self_attn_layer_norm` and `LayerNorm`
(xlm-roberta-xl), or `attention.LayerNorm` and `intermediate.LayerNorm` (roberta-prelayernorm), and a `RobertaModel`
alone has no `roberta.` before its names.
"""
_ONLY_WHERE = {
    "embeddings.token_type": "type_vocab_size > 0",
    "embeddings.layer_norm": "layernorm_embedding",
    "layer_norm": "normalize_before",
    "lm_head.embedding": "lm_head, not tie_word_embeddings",
    "lm_head": "lm_head",
}


def markdown() -> str:
    """The page: every path of the tree with its shape, its names in fairseq and transformers, and when it is there."""
    # Sizes that are all different stand for their names.
    sizes = {"vocab": 11, "hidden": 6, "intermediate": 13, "positions": 19, "types": 3, "inner": 7, "classes": 5}
    config = RobertaConfig(
        vocab_size=sizes["vocab"],
        num_layers=1,
        hidden_size=sizes["hidden"],
        num_heads=2,
        intermediate_size=sizes["intermediate"],
        max_positions=sizes["positions"] - 2,
        type_vocab_size=sizes["types"],
        normalize_before=True,
        tie_word_embeddings=False,
        heads=tuple(_head(kind, sizes["classes"], sizes["inner"]) for kind in HEAD_KINDS),
    )
    name_of = {size: name for name, size in sizes.items()} | {1: "1", 2: "2"}
    rows = []
    for path, leaf in flatten(abstract_params(config)).items():
        row = _row(path)
        shape = ", ".join(name_of[size] for size in leaf.shape)
        names = " | ".join(f"`{name}`" if name else "" for name in (row.fairseq, row.huggingface))
        rows.append(f"| `{row.path}` | [{shape}] | {leaf.dtype} | {names} | {row.transform.value} | {_where(row)} |")
    header = [
        "| path | shape | dtype | fairseq | transformers | values | there where |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    return _HEADER + "\n" + "\n".join(header + rows) + "\n"


def _head(kind: str, classes: int, inner: int) -> HeadConfig:
    """A head of a kind, called as the kind."""
    outputs = {"span": 2, "choice": 1, "pooler": inner}.get(kind, classes)
    return HeadConfig(kind, outputs, 0 if kind in ("token", "span") else inner, kind)


def _row(path: str) -> Row:
    """The row of the table for a path; a head's name in it is its kind."""
    general = re.sub(r"^layers\.0\.", "layers.{i}.", re.sub(r"^heads\.[^.]+\.", "heads.{head}.", path))
    kind = path.split(".")[1] if path.startswith("heads.") else None
    return next(row for row in TABLE if (row.path, row.kind) == (general, kind))


def _where(row: Row) -> str:
    if row.kind is not None:
        return f"a head of kind {row.kind}"
    return next((when for prefix, when in _ONLY_WHERE.items() if f"{row.path}.".startswith(f"{prefix}.")), "always")


if __name__ == "__main__":
    print(markdown(), end="")
