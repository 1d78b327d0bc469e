"""A fairseq checkpoint's meaning: the RobertaConfig of its arguments, and its tensors by path of the Flax tree."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from convert import torch_file
from convert.names import EMBED_TOKENS, LM_HEAD_WEIGHT, TRANSPOSE, modernize, place_of, why_ignored
from convert.torch_file import Tensor
from roberta_flax.checkpoint import check_tensors, describe_problems
from roberta_flax.config import HeadConfig, RobertaConfig
from roberta_flax.errors import CheckpointError, InputError
from roberta_flax.tokenizer import PAD_ID

# fairseq/models/roberta/model.py, base_architecture: what an argument is where a checkpoint does not say
_DEFAULTS: dict[str, Any] = {
    "encoder_embed_dim": 768,
    "encoder_ffn_embed_dim": 3072,
    "encoder_attention_heads": 12,
    "tokens_per_sample": 512,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.0,
    "relu_dropout": 0.0,  # activation_dropout's older name (TransformerEncoderLayerBase)
    "pooler_dropout": 0.0,
    "encoder_layerdrop": 0.0,
    "activation_fn": "gelu",
    "pooler_activation_fn": "tanh",
    "encoder_normalize_before": False,
    "layernorm_embedding": True,
    "untie_weights_roberta": False,
}
# roberta_large_architecture, roberta_prenorm_architecture and xlm_architecture change these
_ARCHITECTURE_DEFAULTS: dict[str, dict[str, Any]] = {
    "roberta_large": {"encoder_embed_dim": 1024, "encoder_ffn_embed_dim": 4096, "encoder_attention_heads": 16},
    "roberta_prenorm": {"layernorm_embedding": False, "encoder_normalize_before": True},
    "xlm": {"encoder_embed_dim": 1280, "encoder_ffn_embed_dim": 5120, "encoder_attention_heads": 16},
}
# Arguments that change the network in a way this one does not have, and the one value that leaves it as it is.
_FIXED = {
    "encoder_learned_pos": True,
    "no_token_positional_embeddings": False,
    "no_scale_embedding": True,
    "adaptive_input": False,
}


@dataclass(frozen=True)
class Parameter:
    """A tensor of the source and where it goes in the tree."""

    source: str
    tensor: Tensor
    transposed: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape in the tree."""
        return self.tensor.shape[::-1] if self.transposed else self.tensor.shape

    def read(self) -> npt.NDArray[Any]:
        """Its values as they stand in the tree; a view of the file."""
        values = self.tensor.read()
        return values.T if self.transposed else values


@dataclass(frozen=True)
class FairseqCheckpoint:
    """A fairseq RoBERTa checkpoint, read and understood.

    Attributes:
      config: sizes and choices, from its arguments and its tensors' shapes.
      parameters: dotted path of the tree -> Parameter; exactly the paths that `config` asks for.
      went: for every tensor of the source, the paths it went to, or why it went nowhere.
    """

    config: RobertaConfig
    parameters: dict[str, Parameter]
    went: dict[str, list[str] | str]


def read(path: Path, vocab_size: int) -> FairseqCheckpoint:
    """Reads a fairseq checkpoint file.

    Args:
      path: what fairseq's trainer or torch.save wrote.
      vocab_size: token ids in the model's dictionary, `<mask>` included.

    Raises:
      CheckpointError: not a checkpoint, not a RoBERTa, or tensors that are missing, unknown or of a wrong shape
        (all of them are listed).
    """
    checkpoint = torch_file.load(path)
    state = checkpoint.get("model") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} has no 'model' in it: it is a PyTorch file but not a fairseq checkpoint")
    arguments = read_arguments(checkpoint)
    if not arguments:
        raise CheckpointError(f"{path} has neither 'args' nor 'cfg': without them its attention heads are unknown")
    tensors = dict(torch_file.tensors(state))

    parts = [(name, *part) for name, tensor in tensors.items() for part in modernize(name, tensor)]
    if EMBED_TOKENS not in {modern_name for _, modern_name, _ in parts}:
        raise CheckpointError(_not_a_roberta(path, arguments, tensors))
    modern: dict[str, tuple[str, Tensor]] = {}
    for name, modern_name, part in parts:
        if modern_name in modern:
            raise CheckpointError(f"{path}: {modern[modern_name][0]} and {name} are the same tensor by two names")
        modern[modern_name] = (name, part)

    parameters: dict[str, Parameter] = {}
    went: dict[str, list[str] | str] = {}
    unknown: list[str] = []
    tied = not arguments["untie_weights_roberta"]
    for modern_name, (name, tensor) in modern.items():
        place = place_of(modern_name)
        if tied and modern_name == LM_HEAD_WEIGHT:
            _check_tied(path, name, tensor, modern[EMBED_TOKENS][1])
            went[name] = "the same as the token embedding, which the LM head is tied to"
        elif place is not None:
            if place.transform is TRANSPOSE and len(tensor.shape) != 2:
                unknown.append(f"wrong shape: {name} is {list(tensor.shape)}, expected two axes")
                continue
            if math.prod(tensor.shape) > tensor.storage.count:  # strides of zero: a small file, a huge array
                unknown.append(f"not stored whole: {name} {list(tensor.shape)} of {tensor.storage.count} elements")
                continue
            parameters[place.path] = Parameter(name, tensor, place.transform is TRANSPOSE)
            paths = went.setdefault(name, [])
            assert isinstance(paths, list)
            paths.append(place.path)
        elif reason := why_ignored(modern_name):
            went[name] = reason
        else:
            unknown.append(f"unknown: {name} {list(tensor.shape)}")

    config = _config(path, arguments, parameters, vocab_size, unknown)
    problems = unknown + check_tensors(config, {name: parameter.shape for name, parameter in parameters.items()})
    if problems:
        raise CheckpointError(f"{path} does not fit a RoBERTa: {describe_problems(problems)}")
    if config.vocab_size != vocab_size:
        raise CheckpointError(
            f"{path} embeds {config.vocab_size} tokens but its dictionary has {vocab_size} (four specials, dict.txt's "
            "lines, and <mask>): give the dict.txt it was trained with"
        )
    return FairseqCheckpoint(config, parameters, went)


def read_arguments(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The model's arguments from `args` (argparse.Namespace) or `cfg` (OmegaConf or dict), defaults filled in."""
    given = torch_file.plain(checkpoint.get("args"))
    if not isinstance(given, dict):
        cfg = torch_file.plain(checkpoint.get("cfg"))
        given = cfg.get("model") if isinstance(cfg, dict) else None
    if not isinstance(given, dict):
        return {}
    # hydra runs name the architecture _name
    architecture = given.get("arch") or given.get("_name") or ""
    defaults = {**_DEFAULTS, **_ARCHITECTURE_DEFAULTS.get(str(architecture), {})}
    return {
        **defaults,
        "arch": architecture,
        **{key: value for key, value in given.items() if value is not None},
    }


def _config(
    path: Path, arguments: Mapping[str, Any], parameters: Mapping[str, Parameter], vocab_size: int, problems: list[str]
) -> RobertaConfig:
    """The configuration that arguments and shapes agree on; what they disagree on is appended to `problems`."""
    for name, value in _FIXED.items():
        if arguments.get(name, value) != value:
            raise CheckpointError(
                f"{path} was trained with {name}={arguments[name]!r}, which RoBERTa here does not have"
            )

    def size(name: str, axis: int, declared: Any) -> int:
        """A size from a tensor's shape, or what the arguments say where there is none: then all problems are listed."""
        shape = parameters[name].shape if name in parameters else ()
        return shape[axis] if len(shape) == 2 else int(declared)

    layers = {int(match[1]) for name in parameters if (match := re.match(r"layers\.(\d+)\.", name))}
    kept = arguments.get("encoder_layers_to_keep")
    declared = len(str(kept).split(",")) if kept else arguments.get("encoder_layers", len(layers))
    if declared != len(layers):
        problems.append(f"its arguments say {declared} layers, and it has {len(layers)}")
    heads = sorted(name.split(".")[1] for name in parameters if re.fullmatch(r"heads\.[^.]+\.output\.kernel", name))
    try:
        positions = int(arguments.get("max_positions") or arguments["tokens_per_sample"]) + PAD_ID + 1
        return RobertaConfig(
            vocab_size=size("embeddings.token.embedding", 0, vocab_size),
            num_layers=len(layers),
            hidden_size=size("embeddings.token.embedding", 1, arguments["encoder_embed_dim"]),
            num_heads=int(arguments["encoder_attention_heads"]),
            intermediate_size=size("layers.0.feed_forward.intermediate.kernel", 1, arguments["encoder_ffn_embed_dim"]),
            max_positions=size("embeddings.position.embedding", 0, positions) - PAD_ID - 1,
            pad_id=PAD_ID,
            activation=arguments["activation_fn"],
            pooler_activation=arguments["pooler_activation_fn"],
            dropout=float(arguments["dropout"]),
            attention_dropout=float(arguments["attention_dropout"]),
            activation_dropout=float(arguments["activation_dropout"] or arguments["relu_dropout"]),
            pooler_dropout=float(arguments["pooler_dropout"]),
            layer_drop=float(arguments["encoder_layerdrop"]),
            normalize_before=bool(arguments["encoder_normalize_before"]),
            layernorm_embedding=bool(arguments["layernorm_embedding"]),
            tie_word_embeddings=not arguments["untie_weights_roberta"],
            heads=tuple(HeadConfig(head, *reversed(parameters[f"heads.{head}.output.kernel"].shape)) for head in heads),
        )
    except (InputError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} has arguments that do not make a RoBERTa: {error}") from None


def _check_tied(path: Path, name: str, weight: Tensor, embedding: Tensor) -> None:
    if weight.storage is embedding.storage and weight.offset == embedding.offset and weight.shape == embedding.shape:
        return
    if weight.shape != embedding.shape or not np.array_equal(weight.read(), embedding.read()):
        raise CheckpointError(
            f"{path}: {name} differs from {EMBED_TOKENS} although its arguments tie the two (untie_weights_roberta "
            "is not set); fairseq would let one overwrite the other"
        )


def _not_a_roberta(path: Path, arguments: Mapping[str, Any], names: Mapping[str, Any]) -> str:
    architecture = arguments.get("arch") or "unnamed"
    some = ", ".join(sorted(names)[:2]) or "no tensors"
    return (
        f"{path} holds a model of architecture {architecture!r}, not a RoBERTa: expected {EMBED_TOKENS} "
        f"(or its 2019 name, with decoder.), got {some}, ..."
    )
