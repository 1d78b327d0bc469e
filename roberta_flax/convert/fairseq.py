"""Reads a fairseq checkpoint: its RobertaConfig, from its arguments, and its tensors by path of the Flax tree."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from roberta_flax.checkpoint import converted, download
from roberta_flax.checkpoint.tensors import LazyTensor, Values
from roberta_flax.convert import hf_tokenizer, shards, torch_file
from roberta_flax.convert.fairseq_files import merges_text
from roberta_flax.convert.names import EMBED_TOKENS, LM_HEAD_WEIGHT, from_fairseq, modernize_fairseq, reason_to_ignore
from roberta_flax.convert.source import (
    Source,
    TreeBuilder,
    boolean,
    check_fits_files,
    integer,
    interpret,
    is_floating,
    number,
    padded_dictionary,
    same_values,
    wrapper_prefix,
)
from roberta_flax.errors import CheckpointError, shortened
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from roberta_flax.text.fairseq_tokenizer import (
    DICTIONARY_FILE,
    ENCODER_FILE,
    MERGES_FILE,
    PAD_ID,
    SENTENCEPIECE_FILE,
    Dictionary,
)

# The defaults of arguments that a checkpoint leaves out, from base_architecture in fairseq/models/roberta/model.py.
_DEFAULTS: dict[str, Any] = {
    "encoder_embed_dim": 768,
    "encoder_ffn_embed_dim": 3072,
    "tokens_per_sample": 512,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.0,
    "relu_dropout": 0.0,  # the older name of activation_dropout (TransformerEncoderLayerBase)
    "pooler_dropout": 0.0,
    "encoder_layerdrop": 0.0,
    "activation_fn": "gelu",
    "pooler_activation_fn": "tanh",
    "untie_weights_roberta": False,
}
_MODEL_PARALLEL = "model_parallel_roberta"
# The defaults of each architecture that fairseq registers, there and in model_parallel/models/roberta/model.py.
_BASE: dict[str, Any] = {"encoder_attention_heads": 12}
_LARGE = {"encoder_embed_dim": 1024, "encoder_ffn_embed_dim": 4096, "encoder_attention_heads": 16}
_ARCHITECTURE_DEFAULTS: dict[str, dict[str, Any]] = {
    "roberta": _BASE,
    "roberta_base": _BASE,
    "roberta_prenorm": _BASE,
    "roberta_large": _LARGE,
    "xlm": {"encoder_embed_dim": 1280, "encoder_ffn_embed_dim": 5120, "encoder_attention_heads": 16},
    _MODEL_PARALLEL: _BASE,
    f"{_MODEL_PARALLEL}_v1": _BASE,
    f"{_MODEL_PARALLEL}_postnorm": _BASE,
    f"{_MODEL_PARALLEL}_base": _BASE,
    f"{_MODEL_PARALLEL}_large": _LARGE,
}
# The defaults of TransformerConfig (fairseq/models/transformer/transformer_config.py), data2vec_text's "transformer".
_TRANSFORMER_DEFAULTS: dict[str, Any] = {
    "activation_fn": "relu",
    "attention_dropout": 0.0,
    "no_scale_embedding": False,
}
# Arguments that would change the network in an unsupported way, and the one value that is accepted.
_REQUIRED_SETTINGS = {
    "encoder_learned_pos": True,
    "no_token_positional_embeddings": False,
    "no_scale_embedding": True,
    "adaptive_input": False,
}


# The names of a BPE's files: in fairseq's released models, and in GottBERT (hf_byte_bpe).
_BYTE_LEVEL_NAMES = [(ENCODER_FILE, MERGES_FILE), ("vocab.json", "merges.txt")]
SENTENCEPIECE_NAMES = (SENTENCEPIECE_FILE, "sentencepiece.model", "spm.model", "spiece.model")


def read(
    files: Sequence[Path],
    bpe_dir: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    folder: Path | None = None,
    with_tokenizer: bool = True,
) -> Source:
    """Reads a fairseq checkpoint.

    Args:
      files: the files that fairseq's trainer or torch.save wrote; several if the model was saved in parts (see shards).
      bpe_dir, cache_dir: as in convert.convert.
      folder: another folder to search for the tokenizer's files, after that of `files`.
      with_tokenizer: whether to read the tokenizer.

    Raises:
      CheckpointError: this is not a checkpoint or not a RoBERTa, or tensors are missing, unknown or misshapen (all are
        listed).
      DownloadError: GPT-2's BPE files are needed but cannot be fetched.
    """
    path = files[0]
    torch_file.layout_of(path)  # refuses a file that is not a checkpoint before looking for other files beside it
    folders = [path.parent] if folder in (None, path.parent) else [path.parent, folder]
    tokenizer_files = find_tokenizer_files(folders, bpe_dir, cache_dir) if with_tokenizer else {}
    checkpoints = [_load_checkpoint(file) for file in files]
    arguments = read_arguments(checkpoints[0])
    if not arguments:
        raise CheckpointError(
            f"{path} has neither 'args' nor 'cfg': without them, the number of attention heads is unknown"
        )

    tensors = shards.join(files, checkpoints)
    check_fits_files(str(path), files, tensors)
    modern = _modernize_names(path, arguments, tensors)
    builder, notes = TreeBuilder(), list[str]()
    is_tied = not interpret(str(path), lambda: boolean(arguments["untie_weights_roberta"]))
    modern = _drop_pruned_layers(arguments, modern, builder)
    modern = _fold_spectral_norm(modern, builder, notes)
    for modern_name, (name, tensor) in modern.items():
        if is_tied and modern_name == LM_HEAD_WEIGHT:
            _check_tied(path, name, tensor, modern[EMBED_TOKENS][1])
            builder.leave_out(name, "the same as the token embedding, which the LM head is tied to")
        elif (reason := reason_to_ignore(modern_name)) is not None:
            builder.leave_out(name, reason)
        else:
            builder.put(name, tensor, from_fairseq(modern_name))

    dictionary = Path(str(tokenizer_files[DICTIONARY_FILE])) if with_tokenizer else None
    config = interpret(str(path), lambda: _config(path, arguments, builder, dictionary))
    builder.check(str(path), files, config)
    if not config.lm_head:
        notes.append(f"{path.name} has no masked-LM head: fill_mask and lm_logits will not be available")
    return Source(
        "fairseq",
        config,
        builder.parameters,
        builder.provenance,
        _pad_dictionary(tokenizer_files, arguments, config) if with_tokenizer else hf_tokenizer.none(config.vocab_size),
        notes,
    )


def _load_checkpoint(path: Path) -> Mapping[str, Any]:
    checkpoint = torch_file.load(path)
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("model"), dict):
        raise CheckpointError(f"{path} contains no 'model': it is a PyTorch file but not a fairseq checkpoint")
    return checkpoint


def read_arguments(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The model's arguments, from `args` (argparse.Namespace) or `cfg` (OmegaConf or dict), with defaults filled in.

    Returns:
      The arguments by name; empty if the checkpoint contains neither.
    """
    arguments = torch_file.plain(checkpoint.get("args"))
    if not isinstance(arguments, dict):
        cfg = torch_file.plain(checkpoint.get("cfg"))
        arguments = cfg.get("model") if isinstance(cfg, dict) else None
    if not isinstance(arguments, dict):
        return {}
    transformer = arguments.get("transformer")
    nested = _flatten_transformer_config(transformer) if isinstance(transformer, dict) else {}
    arguments = _scalars(arguments)
    # runs with Hydra call the architecture _name
    architecture = arguments.get("arch") or arguments.get("_name") or ""
    defaults = {**_DEFAULTS, **_ARCHITECTURE_DEFAULTS.get(str(architecture), {})}
    return {**defaults, "arch": architecture, **nested, **arguments}


def _flatten_transformer_config(transformer: Mapping[Any, Any]) -> dict[str, Any]:
    """TransformerConfig's nested settings by flat names such as encoder_layers for encoder.layers (its __getattr__)."""
    encoder = transformer.get("encoder")
    nested = _scalars(encoder) if isinstance(encoder, dict) else {}
    return {
        **_TRANSFORMER_DEFAULTS,
        **_scalars(transformer),
        **{f"encoder_{key}": value for key, value in nested.items()},
    }


def _scalars(arguments: Mapping[Any, Any]) -> dict[str, Any]:
    return {key: value for key, value in arguments.items() if isinstance(value, str | int | float)}


def find_tokenizer_files(
    folders: Sequence[Path], bpe_dir: str | os.PathLike[str] | None, cache_dir: str | os.PathLike[str] | None
) -> dict[str, Path | str | bytes]:
    """Finds the tokenizer's files: in `bpe_dir`, in the first of `folders` that has them, or in the cache.

    Other arguments and errors are those of convert.convert.

    Returns:
      File name in a converted directory -> a file to copy, or the content to write.
    """
    folders = [Path(bpe_dir), *folders] if bpe_dir is not None else folders
    dictionary = next((folder / DICTIONARY_FILE for folder in folders if (folder / DICTIONARY_FILE).is_file()), None)
    if dictionary is None:
        raise CheckpointError(
            f"no {DICTIONARY_FILE} in {' or '.join(map(str, folders))}: put the dictionary that the model was trained "
            "with there (every released archive and fairseq's data-bin directory contain one)"
        )
    for folder in folders:
        for encoder, merges in _BYTE_LEVEL_NAMES:
            if (folder / encoder).is_file():
                merges_file = folder / merges
                return {
                    DICTIONARY_FILE: dictionary,
                    ENCODER_FILE: folder / encoder,
                    MERGES_FILE: merges_file if merges == MERGES_FILE else merges_text(merges_file),
                }
        if (model := _sentencepiece_model(folder)) is not None:
            return {DICTIONARY_FILE: dictionary, SENTENCEPIECE_FILE: model}
    symbols = Dictionary.read(dictionary).symbols[4:]
    if not any(symbol.isdecimal() for symbol in symbols[:100]):
        raise CheckpointError(
            f"{dictionary} is not over GPT-2's BPE, whose pieces are numbers (it has {symbols[0][:20]!r}): put the "
            f"model's {SENTENCEPIECE_FILE}, or its vocab.json and merges.txt, into {' or '.join(map(str, folders))}"
        )
    if bpe_dir is not None:
        raise CheckpointError(
            f"no {ENCODER_FILE} in {bpe_dir}: pass the directory that contains {ENCODER_FILE} and {MERGES_FILE}"
        )
    bpe = download.fetch_gpt2_bpe(download.cache_dir(cache_dir))
    return {DICTIONARY_FILE: dictionary, ENCODER_FILE: bpe / ENCODER_FILE, MERGES_FILE: bpe / MERGES_FILE}


def _sentencepiece_model(folder: Path) -> Path | None:
    """The SentencePiece model in a folder: a file with one of the usual names, or the only *.model file."""
    for name in SENTENCEPIECE_NAMES:
        if (folder / name).is_file():
            return folder / name
    models = sorted(folder.glob("*.model"))
    return models[0] if len(models) == 1 else None


def _modernize_names(
    path: Path, arguments: Mapping[str, Any], tensors: Mapping[str, LazyTensor]
) -> dict[str, tuple[str, LazyTensor]]:
    """Maps the modern name of every tensor to its name in the file and the tensor."""
    prefix = wrapper_prefix(tensors)
    parts = [
        (name, *part)
        for name, tensor in tensors.items()
        for part in modernize_fairseq(name.removeprefix(prefix), tensor)
    ]
    if EMBED_TOKENS not in {modern_name for _, modern_name, _ in parts}:
        raise CheckpointError(_not_a_roberta_message(path, arguments, tensors))
    modern: dict[str, tuple[str, LazyTensor]] = {}
    for name, modern_name, part in parts:
        if modern_name in modern:
            raise CheckpointError(
                f"{path}: {shortened(modern[modern_name][0])} and {shortened(name)} are two names of the same tensor"
            )
        modern[modern_name] = (name, part)
    return modern


_LAYER = re.compile(r"(encoder\.sentence_encoder\.layers\.)([0-9]{1,4})(\..*)")


def _drop_pruned_layers(
    arguments: Mapping[str, Any], modern: dict[str, tuple[str, LazyTensor]], builder: TreeBuilder
) -> dict[str, tuple[str, LazyTensor]]:
    """Keeps the layers that encoder_layers_to_keep lists, and renumbers them, as fairseq does on loading.

    See prune_state_dict in fairseq/checkpoint_utils.py. A checkpoint saved after pruning contains just these layers, by
    their new numbers, and is left as it is.
    """
    text = arguments.get("encoder_layers_to_keep")
    if not text:
        return modern
    if not re.fullmatch(r"[0-9]{1,4}(,[0-9]{1,4})*", str(text)):
        builder.problems.append(f"encoder_layers_to_keep is {shortened(str(text))!r}, expected numbers and commas")
        return modern
    keep = {old: new for new, old in enumerate(sorted({int(layer) for layer in str(text).split(",")}))}
    present_layers = {int(match[2]) for name in modern if (match := _LAYER.fullmatch(name))}
    if len(present_layers) == len(keep):
        return modern
    kept: dict[str, tuple[str, LazyTensor]] = {}
    for name, (source, tensor) in modern.items():
        match = _LAYER.fullmatch(name)
        if match is None:
            kept[name] = (source, tensor)
        elif int(match[2]) in keep:
            kept[f"{match[1]}{keep[int(match[2])]}{match[3]}"] = (source, tensor)
        else:
            builder.leave_out(source, "of a layer that encoder_layers_to_keep does not list")
    return kept


def _fold_spectral_norm(
    modern: dict[str, tuple[str, LazyTensor]], builder: TreeBuilder, notes: list[str]
) -> dict[str, tuple[str, LazyTensor]]:
    """Computes the weight from the weight_orig, weight_u and weight_v of torch.nn.utils.spectral_norm."""
    folded = dict(modern)
    for name in modern:
        if not name.endswith(".weight_orig") or not name.startswith("classification_heads."):
            continue
        layer = name.removesuffix(".weight_orig")
        parts = [modern.get(f"{layer}.{part}") for part in ("weight_orig", "weight_u", "weight_v")]
        weight, u, v = (None if part is None else part[1] for part in parts)
        for part in parts:
            if part is not None:
                builder.leave_out(part[0], f"folded into {layer}.weight")
                folded.pop(f"{layer}.{part[0].rpartition('.')[2]}", None)
        if f"{layer}.weight" in modern:  # before 1.1, torch also stored the weight itself
            continue
        if weight is None or u is None or v is None or not _has_spectral_norm(weight, u, v):
            builder.problems.append(
                f"wrong shape: {shortened(layer)} has no weight_u [rows] and weight_v [columns], floating point, for "
                "its weight_orig [rows, columns]"
            )
            continue
        values = weight.read().astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            sigma = float(u.read().astype(np.float64) @ values @ v.read().astype(np.float64))
        if not 0 < sigma < math.inf:
            builder.problems.append(
                f"wrong values: {shortened(layer)} has a spectral norm of {sigma:.6g}, expected a positive number"
            )
            continue
        folded[f"{layer}.weight"] = (f"{layer}.weight_orig", Values((values / sigma).astype(weight.dtype)))
        notes.append(f"{shortened(layer)}: spectral norm {sigma:.6g} folded into its weight")
    return folded


def _has_spectral_norm(weight: LazyTensor, u: LazyTensor, v: LazyTensor) -> bool:
    """Whether the shapes are those of a matrix and its singular vectors (torch/nn/utils/spectral_norm.py)."""
    return (
        len(weight.shape) == 2
        and (u.shape, v.shape) == (weight.shape[:1], weight.shape[1:])
        and all(is_floating(tensor.dtype) for tensor in (weight, u, v))
    )


def _config(path: Path, arguments: Mapping[str, Any], builder: TreeBuilder, dictionary: Path | None) -> RobertaConfig:
    """The configuration, from the arguments and the shapes. Contradictions are added to the builder's problems."""
    for name, value in _REQUIRED_SETTINGS.items():
        if boolean(arguments.get(name, value)) != value:
            raise CheckpointError(f"{path} was trained with {name}={str(arguments[name])[:80]}, which is not supported")
    if "encoder_attention_heads" not in arguments:
        raise CheckpointError(
            f"{path} does not give the number of attention heads (encoder_attention_heads), and its architecture "
            f"{shortened(str(arguments['arch']))!r} is none of fairseq's: add the argument and save it again"
        )
    layers, parameters = builder.num_layers, builder.parameters
    declared = arguments.get("encoder_layers", layers)
    if not (arguments.get("encoder_layers_to_keep") or _is_interpolation(declared)) and integer(declared) != layers:
        builder.problems.append(f"its arguments declare {integer(declared)} layers, but it has {layers}")
    activation = arguments["activation_fn"]
    positions = arguments.get("max_positions") or arguments["tokens_per_sample"]
    intermediate = "layers.0.feed_forward.intermediate.kernel"
    config = RobertaConfig(
        vocab_size=builder.size("embeddings.token.embedding", 0, len(Dictionary.read(dictionary)) if dictionary else 0),
        num_layers=layers,
        hidden_size=builder.size("embeddings.token.embedding", 1, arguments["encoder_embed_dim"]),
        num_heads=integer(arguments["encoder_attention_heads"]),
        intermediate_size=builder.size(intermediate, 1, arguments["encoder_ffn_embed_dim"]),
        max_positions=builder.size("embeddings.position.embedding", 0, positions, PAD_ID + 1) - PAD_ID - 1,
        pad_id=PAD_ID,
        activation=activation,
        lm_head_activation=activation,
        pooler_activation=arguments["pooler_activation_fn"],
        dropout=number(arguments["dropout"]),
        attention_dropout=number(arguments["attention_dropout"]),
        activation_dropout=number(arguments["activation_dropout"] or arguments["relu_dropout"]),
        pooler_dropout=number(arguments["pooler_dropout"]),
        layer_drop=number(arguments["encoder_layerdrop"]),
        # architectures differ in these two; if the arguments leave them out, the tensors decide
        normalize_before=boolean(arguments.get("encoder_normalize_before", builder.has("layer_norm"))),
        layernorm_embedding=boolean(arguments.get("layernorm_embedding", builder.has("embeddings.layer_norm"))),
        lm_head=builder.has("lm_head"),
        tie_word_embeddings=not boolean(arguments["untie_weights_roberta"]),
        heads=tuple(
            HeadConfig(match[1], num_classes=parameters[path].shape[1], inner_size=parameters[path].shape[0])
            for path in sorted(parameters)
            if (match := re.fullmatch(r"heads\.([^.]+)\.output\.kernel", path))
        ),
    )
    return converted.with_fairseq_labels(config)


def _is_interpolation(value: Any) -> bool:
    """Whether a setting refers to another in the configuration (OmegaConf's ${task.tokens_per_sample})."""
    return isinstance(value, str) and value.startswith("${")


def _pad_dictionary(
    files: dict[str, Path | str | bytes], arguments: Mapping[str, Any], config: RobertaConfig
) -> dict[str, Path | str | bytes]:
    """Pads dict.txt to the model's size if the model was trained in parallel parts, which pads the dictionary."""
    dictionary = files[DICTIONARY_FILE]
    if not str(arguments["arch"]).startswith(_MODEL_PARALLEL) or not isinstance(dictionary, Path):
        return files
    symbols = Dictionary.read(dictionary).symbols
    if not len(symbols) < config.vocab_size < len(symbols) + 8 * 1024:
        return files
    return {**files, DICTIONARY_FILE: padded_dictionary(symbols[4:], config.vocab_size)}


def _check_tied(path: Path, name: str, weight: LazyTensor, embedding: LazyTensor) -> None:
    if weight.shape != embedding.shape or not same_values(weight, embedding):
        raise CheckpointError(
            f"{path}: {shortened(name)} differs from {EMBED_TOKENS} although its arguments tie the two "
            "(untie_weights_roberta is not set); in fairseq, one would overwrite the other"
        )


def _not_a_roberta_message(path: Path, arguments: Mapping[str, Any], names: Mapping[str, Any]) -> str:
    architecture = str(arguments.get("arch") or "unnamed")
    some = ", ".join(map(shortened, sorted(names)[:2])) or "no tensors"
    return (
        f"{path} contains a model of architecture {shortened(architecture)!r}, not a RoBERTa: expected {EMBED_TOKENS} "
        f"(or its name of 2019, with decoder.), got {some}, ..."
    )
