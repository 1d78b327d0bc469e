"""Reads an adapter of PEFT whose network is a converted directory, and not a model of Transformers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roberta_flax.checkpoint import converted
from roberta_flax.checkpoint import usage as usages
from roberta_flax.convert import adapters, hf_tokenizer, huggingface
from roberta_flax.convert.adapters import Adapter, Tensors
from roberta_flax.convert.names import to_huggingface, transformed
from roberta_flax.convert.source import Source, TreeBuilder
from roberta_flax.text.tokenizer import Tokenizer


def read(adapter: Adapter, directory: Path, head_name: str | None = None, with_tokenizer: bool = True) -> Source:
    """Merges an adapter into a converted network.

    Args:
      adapter: the adapter.
      directory: the converted directory of its network. Its heads are left out: the adapter has its own.
      head_name, with_tokenizer: as in huggingface.read.

    Raises:
      CheckpointError: the adapter cannot be merged, or does not fit the network.
    """
    config, stored = converted.read_stored(directory)
    tokenizer = Tokenizer.from_directory(directory)
    model_type = huggingface.model_type_of(config, tokenizer)
    base: Tensors = {
        place.path: (path, transformed(tensor, place.transform))
        for path, tensor in stored.items()
        if (place := to_huggingface(path, {})) is not None
    }
    prefix, notes, builder = huggingface.CLASS_PREFIXES[model_type], list[str](), TreeBuilder()
    settings: Mapping[str, Any] = {
        "architectures": [prefix + ("ForMaskedLM" if config.lm_head else "Model")],
        "tie_word_embeddings": config.tie_word_embeddings,
    }
    merged = adapters.merge(adapter, base, settings, model_type, prefix)
    builder.provenance |= merged.left_out
    kind = huggingface.head_kind(merged.settings, merged.tensors, model_type, notes)
    head = None if kind is None else (head_name or huggingface.HEAD_NAMES[kind], kind)
    tied = merged.settings["tie_word_embeddings"] is not False
    huggingface.put(builder, merged.tensors, head, tied, notes)
    changed = dataclasses.replace(
        config,
        type_vocab_size=builder.size("embeddings.token_type.embedding", 0, 0),
        lm_head=builder.has("lm_head"),
        tie_word_embeddings=tied,
        heads=tuple(huggingface.heads(merged.settings, builder, head)),
    )
    builder.check(str(adapter.folder), [directory / converted.PARAMS_FILE, adapter.file], changed)
    return Source(
        "huggingface",
        changed,
        builder.parameters,
        builder.provenance,
        tokenizer.files() if with_tokenizer else hf_tokenizer.none(config.vocab_size),
        notes,
        dataclasses.replace(usages.read(directory, config), scoring=None),
        {"read": sorted([adapters.CONFIG_FILE, adapter.file.name, *adapter.own_files()]), "not read": {}},
    )
