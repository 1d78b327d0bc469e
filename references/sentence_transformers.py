"""Small repositories as sentence-transformers and Transformers write them, with random weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import sentence_transformers
import torch
import transformers
from sentence_transformers import models
from tokenizers import ByteLevelBPETokenizer

HIDDEN_SIZE = 32
MAX_LENGTH = 128  # of the tokenizer
TEXTS = [
    "A man is playing a guitar.",
    "  Two dogs are running across a field of grass, and a CHILD is watching them from afar. ",
    "naïve café №5 — ﬁn",
    "",
    "The children are playing outside in the yard, and " * 3,
]


def tokenizer(directory: Path, **settings: Any) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE of RoBERTa's form, saved in `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    bpe = ByteLevelBPETokenizer()
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe.train_from_iterator(TEXTS * 20, vocab_size=420, min_frequency=1, show_progress=False, special_tokens=specials)
    bpe.save_model(str(directory))
    files = (str(directory / "vocab.json"), str(directory / "merges.txt"))
    fast = transformers.RobertaTokenizerFast(*files, **{"model_max_length": MAX_LENGTH, **settings})
    fast.save_pretrained(directory)
    return fast


def shaken(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """The module with random parameters: no bias is zero, and no scale one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
            parameter.add_(0.2 * noise) if parameter.dim() == 1 else parameter.copy_(0.2 * noise)
    return module.eval()


def body(directory: Path, kind: str = "RobertaModel", seed: int = 0, **settings: Any) -> Path:
    """A directory with a small model of Transformers' class `kind`, and its tokenizer."""
    vocabulary = len(tokenizer(directory))
    shape = {
        "vocab_size": vocabulary, "hidden_size": HIDDEN_SIZE, "num_hidden_layers": 1, "num_attention_heads": 4,
        "intermediate_size": 48, "max_position_embeddings": MAX_LENGTH + 2, "layer_norm_eps": 1e-5,
        "type_vocab_size": 1,
    }  # fmt: skip
    model_class = getattr(transformers, kind)
    shaken(model_class(model_class.config_class(**{**shape, **settings})), seed).save_pretrained(directory)
    return directory


def repository(
    directory: Path,
    network: Path,
    modules: Callable[[Any], Sequence[torch.nn.Module]],
    *,
    transformer: dict[str, Any] | None = None,
    safe_serialization: bool = True,
    **settings: Any,
) -> Path:
    """A directory that sentence-transformers wrote.

    Args:
      directory: to make.
      network: what `body` made.
      modules: those after the Transformer, from sentence_transformers.models.
      transformer: arguments of the Transformer.
      safe_serialization: whether weights are safetensors.
      settings: arguments of the SentenceTransformer.
    """
    first = models.Transformer(str(network), **(transformer or {}))
    others = [shaken(module, seed) for seed, module in enumerate(modules(models), 1)]
    built = sentence_transformers.SentenceTransformer(modules=[first, *others], device="cpu", **settings)
    built.save(str(directory), create_model_card=False, safe_serialization=safe_serialization)
    return directory


def sparse_repository(
    directory: Path,
    network: Path,
    strategy: str = "max",
    activation: str = "relu",
    *,
    transformer: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """A directory of a sparse encoder that sentence-transformers wrote.

    Args:
      directory: to make.
      network: what `body` made, with a masked-LM head.
      strategy, activation: of the SpladePooling.
      transformer: arguments of the MLMTransformer.
      settings: arguments of the SparseEncoder.
    """
    modules = sentence_transformers.sparse_encoder.models
    first = modules.MLMTransformer(str(network), **(transformer or {}))
    pooling = modules.SpladePooling(strategy, activation, first.get_sentence_embedding_dimension())
    built = sentence_transformers.SparseEncoder(modules=[first, pooling], device="cpu", **settings)
    built.save(str(directory), create_model_card=False)
    return directory


def edit(path: Path, **changes: Any) -> None:
    """Sets keys of a JSON file, or removes them where the value is None."""
    values = json.loads(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        values.pop(key, None) if value is None else values.__setitem__(key, value)
    path.write_text(json.dumps(values), encoding="utf-8")
