"""docs/parameters.md, from the code: python -m convert.parameters > docs/parameters.md"""

from __future__ import annotations

import re

from convert.names import source_of
from roberta_flax.checkpoint import flatten
from roberta_flax.config import HeadConfig, RobertaConfig
from roberta_flax.forward import abstract_params

_HEADER = """\
# The parameter tree

Written by `python -m convert.parameters > docs/parameters.md`; a test compares it with the code.

`roberta.params` is nested dicts; a path's parts are joined with dots here and in `model.safetensors`
(`layers.0.attention.query.kernel` is `params["layers"][0]["attention"]["query"]["kernel"]`, the layer's number an int).
`{i}` is a layer's number, from 0; `{head}` a classification head's name. In memory every array has the dtype that
`load(param_dtype=...)` names, float32 by default; on disk the dtype of the source.

The sizes: `vocab`, `hidden`, `intermediate`, `positions` = max_positions + 2, and each head's `inner` and `classes`.
A kernel is [inputs, outputs], the transpose of torch's weight; everything else is as it is in fairseq.
"""
_ONLY_WHERE = {
    "embeddings.layer_norm": "layernorm_embedding",
    "layer_norm": "normalize_before",
    "lm_head.embedding": "not tie_word_embeddings",
    "heads": "the model has heads",
}


def markdown() -> str:
    """The page: every path of the tree with its shape, its name in fairseq, and when it is there."""
    # Sizes that are all different stand for their names.
    sizes = {"vocab": 11, "hidden": 6, "intermediate": 13, "positions": 19, "inner": 7, "classes": 5}
    config = RobertaConfig(
        vocab_size=sizes["vocab"],
        num_layers=1,
        hidden_size=sizes["hidden"],
        num_heads=2,
        intermediate_size=sizes["intermediate"],
        max_positions=sizes["positions"] - 2,
        normalize_before=True,
        tie_word_embeddings=False,
        heads=(HeadConfig("HEAD", sizes["classes"], sizes["inner"]),),
    )
    name_of = {size: name for name, size in sizes.items()}
    rows = []
    for path, leaf in flatten(abstract_params(config)).items():
        source = source_of(path)
        assert source is not None, f"{path} is not in convert.names.TABLE"
        where = next((when for prefix, when in _ONLY_WHERE.items() if path.startswith(f"{prefix}.")), None)
        where = _ONLY_WHERE.get(path, where) or "always"
        shape = ", ".join(name_of[size] for size in leaf.shape)
        rows.append(
            f"| `{_general(path)}` | [{shape}] | {leaf.dtype} | `{_general(source.path)}` "
            f"| {source.transform.value} | {where} |"
        )
    header = ["| path | shape | dtype | fairseq | values | there where |", "| --- | --- | --- | --- | --- | --- |"]
    return _HEADER + "\n" + "\n".join(header + rows) + "\n"


def _general(name: str) -> str:
    return re.sub(r"layers\.0\.", "layers.{i}.", name).replace("HEAD", "{head}")


if __name__ == "__main__":
    print(markdown(), end="")
