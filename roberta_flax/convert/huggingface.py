"""Reads a model that Transformers saved, in torch or in Flax: its RobertaConfig, and its tensors by path of the tree.

Reading needs neither transformers nor torch, and executes nothing in the files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from roberta_flax.checkpoint import converted
from roberta_flax.checkpoint.tensors import LazyTensor, read_tensors
from roberta_flax.convert import hf_tokenizer, msgpack_file, sentence_transformers, torch_file
from roberta_flax.convert.names import (
    HF_DECODER_BIAS,
    HF_LM_HEAD_BIAS,
    HF_LM_HEAD_WEIGHT,
    HF_TOKEN_TYPES,
    HF_WORD_EMBEDDINGS,
    from_huggingface,
    modernize_huggingface,
    reason_to_ignore,
)
from roberta_flax.convert.source import (
    Source,
    TreeBuilder,
    check_fits_files,
    integer,
    interpret,
    number,
    read_json,
    same_values,
    wrapper_prefix,
)
from roberta_flax.errors import CheckpointError, DownloadError, shortened
from roberta_flax.extras import require
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from roberta_flax.text.fairseq_tokenizer import PAD_ID

HUB_PREFIX = "hf:"
CONFIG_FILE = "config.json"
_INDEX_SUFFIX = ".index.json"  # of a file that lists the parts of a model saved in several files
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "flax_model.msgpack")  # in the order of preference
_MAX_PARTS = 1000  # weights files; the largest model has nine
INDEX_FILES = tuple(f"{name}{_INDEX_SUFFIX}" for name in WEIGHT_FILES)
_SUFFIXES = tuple(Path(name).suffix for name in WEIGHT_FILES)

CLASS_PREFIXES = {  # model_type -> the prefix of its classes' names
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "camembert": "Camembert",
    "xlm-roberta-xl": "XLMRobertaXL",
    "roberta-prelayernorm": "RobertaPreLayerNorm",
}
MODEL_TYPES = tuple(CLASS_PREFIXES)
PRE_NORM_TYPES = ("xlm-roberta-xl", "roberta-prelayernorm")
# transformers/activations.py, ACT2FN -> roberta_flax.nn.config.ACTIVATIONS
ACTIVATIONS = {
    "gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_accurate", "gelu_fast": "gelu_accurate",
    "gelu_pytorch_tanh": "gelu_accurate", "relu": "relu", "relu2": "relu_squared", "tanh": "tanh", "linear": "linear",
}  # fmt: skip
# Default names of heads, by kind. The first is that of fairseq's sentence_prediction task.
HEAD_NAMES = {
    "sentence": "sentence_classification_head",
    "token": "token_classification",
    "span": "question_answering",
    "choice": "multiple_choice",
}
POOLER = "pooler"
PROBLEM_TYPES = {
    "regression": "regression",
    "single_label_classification": "single_label",
    "multi_label_classification": "multi_label",
}
# The defaults of settings that config.json leaves out, from configuration_roberta.py and the like.
_BASE_DEFAULTS: dict[str, Any] = {
    "vocab_size": 50265,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "layer_norm_eps": 1e-12,
    "classifier_dropout": None,
    "tie_word_embeddings": True,
    "pad_token_id": PAD_ID,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "roberta": _BASE_DEFAULTS,
    "xlm-roberta": {**_BASE_DEFAULTS, "vocab_size": 30522},
    "camembert": {**_BASE_DEFAULTS, "vocab_size": 30522},
    "xlm-roberta-xl": {
        **_BASE_DEFAULTS,
        "vocab_size": 250880,
        "hidden_size": 2560,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "intermediate_size": 10240,
        "max_position_embeddings": 514,
        "layer_norm_eps": 1e-5,
    },
    "roberta-prelayernorm": _BASE_DEFAULTS,
}
# Settings that would change the network in an unsupported way, and the values that are accepted.
_FIXED: dict[str, tuple[Any, ...]] = {
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "position_embedding_type": ("absolute", None),
    "pruned_heads": ({}, None),
}


def fetch(name: str, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Downloads a model from the Hugging Face Hub, and returns its directory.

    Only the configuration, the tokenizer's files and one set of weights are downloaded. They are kept in `cache_dir`,
    or by default in huggingface_hub's own cache, which other programs share.

    Args:
      name: "hf:org/name" or "hf:org/name@revision".
      cache_dir: the cache.

    Raises:
      DownloadError: the model could not be fetched, or has no weights in a known file.
      InputError: huggingface_hub is not installed.
    """
    huggingface_hub = require("huggingface_hub", "huggingface")
    repository, _, revision = name.removeprefix(HUB_PREFIX).partition("@")
    folder = None if cache_dir is None else Path(cache_dir) / "huggingface"

    def download(patterns: Sequence[str]) -> Path:
        return Path(
            huggingface_hub.snapshot_download(
                repository, revision=revision or None, cache_dir=folder, allow_patterns=list(patterns)
            )
        )

    try:
        for weights in WEIGHT_FILES:
            stem, suffix = Path(weights).stem, Path(weights).suffix
            parts = [weights, f"{weights}{_INDEX_SUFFIX}", f"{stem}-*-of-*{suffix}"]
            early = [f"0_Transformer/{name}" for name in (CONFIG_FILE, *hf_tokenizer.FILES, *parts)]
            directory = download([CONFIG_FILE, *hf_tokenizer.FILES, *parts, *early, *sentence_transformers.PATTERNS])
            if weight_files(sentence_transformers.transformer_folder(directory)):
                return directory
    except CheckpointError:
        raise
    except Exception as error:  # huggingface_hub's own, or those of requests or httpx, depending on its version
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        raise DownloadError(f"cannot fetch {name}: {reason}") from None
    raise DownloadError(f"{name} has none of {', '.join(WEIGHT_FILES)}")


class ConfigError(CheckpointError):
    """A config.json is damaged, or is not one of Transformers'."""


def _config_json(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / CONFIG_FILE)
    except CheckpointError as error:
        raise ConfigError(str(error)) from None


def is_weight_file(path: Path) -> bool:
    """Whether a file has the suffix of a Transformers weights file."""
    return path.suffix in _SUFFIXES


def weight_files(path: Path) -> list[Path]:
    """The weights files of a Transformers model.

    Args:
      path: a directory that Transformers wrote, or a weights file in one.

    Returns:
      The files, in the order of their names. An empty list if `path` is not such a directory or file.

    Raises:
      ConfigError: config.json cannot be read.
      CheckpointError: an index lists files that are missing or in another folder.
    """
    folder = path if path.is_dir() else path.parent
    if not (folder / CONFIG_FILE).is_file() or not converted.is_transformers_config(_config_json(folder)):
        return []
    if path.is_file():
        return [path] if is_weight_file(path) else []
    for name in WEIGHT_FILES:
        if (index := path / f"{name}{_INDEX_SUFFIX}").is_file():
            weight_map = read_json(index).get("weight_map")
            values = weight_map.values() if isinstance(weight_map, dict) else []
            names = sorted({str(name) for name in values})
            if not 0 < len(names) <= _MAX_PARTS or any("/" in part or "\\" in part or part == ".." for part in names):
                raise CheckpointError(f"{index} is damaged: it should list the weights files beside it")
            if missing := [shortened(part) for part in names if not os.path.isfile(path / part)]:
                raise CheckpointError(f"{index} lists {', '.join(missing[:5])}, not found: copy the missing files too")
            return [path / part for part in names]
        if (path / name).is_file():
            return [path / name]
    return []


def read(
    files: Sequence[Path],
    bpe_dir: str | os.PathLike[str] | None = None,
    head_name: str | None = None,
    with_tokenizer: bool = True,
) -> Source:
    """Reads a model that Transformers saved.

    Args:
      files: the weights files, with config.json and the tokenizer's files beside them.
      bpe_dir: the directory of the tokenizer's files, if they are not beside the weights.
      head_name: the name to give the model's head; by default, the one in HEAD_NAMES.
      with_tokenizer: whether to read the tokenizer.

    Raises:
      CheckpointError: the model is not a RoBERTa, or tensors are missing, unknown or misshapen (all are listed).
    """
    folder = files[0].parent
    source_name = str(folder)
    settings = read_json(folder / CONFIG_FILE)
    model_type = _model_type(settings)
    if model_type not in MODEL_TYPES:
        raise CheckpointError(
            f"{source_name} contains a model of type {model_type[:80]!r}, not a RoBERTa: "
            f"expected {', '.join(MODEL_TYPES)}"
        )
    for key, values in _FIXED.items():
        if settings.get(key) not in values:
            raise CheckpointError(f"{source_name} has {key}={str(settings[key])[:80]}, which is not supported")
    settings = {**DEFAULTS[model_type], **settings}

    modern = _modernize_names(source_name, files, model_type)
    builder, notes = TreeBuilder(), list[str]()
    kind = _head_kind(settings, modern, notes)
    head = None if kind is None else (head_name or HEAD_NAMES[kind], kind)
    pooler = POOLER if kind != "choice" else None
    tied = settings["tie_word_embeddings"] is not False
    modern = _merge_lm_head_biases(modern, builder, notes)
    for name, (source, tensor) in modern.items():
        if tied and name == HF_LM_HEAD_WEIGHT:
            if not same_values(tensor, modern[HF_WORD_EMBEDDINGS][1]):
                notes.append(
                    f"{shortened(source)} differs from the embedding that it is tied to; it is dropped, "
                    "as in Transformers"
                )
            builder.leave_out(source, "the same as the token embedding, which the LM head is tied to")
        elif name == HF_TOKEN_TYPES and not tensor.read().any():
            builder.leave_out(source, "zero: token types add nothing")
        elif (reason := reason_to_ignore(name)) is not None:
            builder.leave_out(source, reason)
        else:
            builder.put(source, tensor, from_huggingface(name, head, pooler))

    config = interpret(source_name, lambda: _config(settings, model_type, builder, head, tied))
    builder.check(source_name, files, config)
    folders = [Path(bpe_dir), folder] if bpe_dir is not None else [folder]
    tokenizer_class = settings.get("tokenizer_class")
    if with_tokenizer:
        tokenizer_files = hf_tokenizer.read(
            folders,
            model_type,
            config.vocab_size,
            notes,
            tokenizer_class=tokenizer_class if isinstance(tokenizer_class, str) else None,
            pad_id=config.pad_id,
        )
    else:
        tokenizer_files = hf_tokenizer.none(config.vocab_size)
    sentence_head = next((each for each in config.heads if each.kind == "sentence"), None)
    usage = sentence_transformers.read(
        folder,
        settings,
        config=config,
        head=sentence_head,
        notes=notes,
    )
    read_files = _read_files(folder, files, usage)
    repository = {"read": read_files, "not read": sentence_transformers.unread(usage.root, read_files)}
    return Source(
        "huggingface", config, builder.parameters, builder.provenance, tokenizer_files, notes, usage.usage, repository
    )


def _read_files(folder: Path, weights: Sequence[Path], usage: sentence_transformers.Reading) -> list[str]:
    """The files of a repository that were read, relative to it."""
    names = [name for name in (CONFIG_FILE, *INDEX_FILES, *hf_tokenizer.FILES) if (folder / name).is_file()]
    paths = [*weights, *(folder / name for name in names)]
    return sorted({*usage.files, *(path.relative_to(usage.root).as_posix() for path in paths)})


def _model_type(settings: Mapping[str, Any]) -> str:
    """The model_type; in files from before Transformers 2.2 wrote it, derived from the name of the model's class."""
    if "model_type" in settings:
        return str(settings["model_type"])
    named = _architecture(settings) or "unnamed"
    return next((kind for kind, prefix in CLASS_PREFIXES.items() if re.match(f"{prefix}(For|Model)", named)), named)


def _modernize_names(source_name: str, files: Sequence[Path], model_type: str) -> dict[str, tuple[str, LazyTensor]]:
    """Maps the modern name of every tensor to its name in the file and the tensor."""
    parts = [(name, tensor) for file in files for name, tensor in _tensors(file).items()]
    prefix = wrapper_prefix(name for name, _ in parts)
    modern: dict[str, tuple[str, LazyTensor]] = {}
    for name, tensor in parts:
        modern_name = modernize_huggingface(name.removeprefix(prefix), model_type)
        if modern_name in modern:
            other = shortened(modern[modern_name][0])
            raise CheckpointError(f"{source_name}: {other} and {shortened(name)} are two names of the same tensor")
        modern[modern_name] = (name, tensor)
    # If tensors share their values, a file may contain any one of them alone.
    for kept, preferred in ((HF_DECODER_BIAS, HF_LM_HEAD_BIAS), (HF_LM_HEAD_WEIGHT, HF_WORD_EMBEDDINGS)):
        if preferred not in modern and kept in modern:
            modern[preferred] = modern.pop(kept)
    if HF_WORD_EMBEDDINGS not in modern:
        some = ", ".join(map(shortened, sorted(modern)[:2])) or "no tensors"
        raise CheckpointError(
            f"{source_name} does not contain a RoBERTa: expected {HF_WORD_EMBEDDINGS}, got {some}, ..."
        )
    return modern


def _merge_lm_head_biases(
    modern: dict[str, tuple[str, LazyTensor]], builder: TreeBuilder, notes: list[str]
) -> dict[str, tuple[str, LazyTensor]]:
    """Keeps one bias of the LM head if a file contains it under both of its names.

    If the two differ, the decoder's is kept, as in Transformers 4.57 (RobertaLMHead._tie_weights).
    """
    if HF_DECODER_BIAS not in modern:
        return modern
    (bias_name, bias_tensor), (decoder_bias_name, decoder_tensor) = modern[HF_LM_HEAD_BIAS], modern[HF_DECODER_BIAS]
    others = {name: part for name, part in modern.items() if name != HF_DECODER_BIAS}
    if same_values(bias_tensor, decoder_tensor):
        builder.leave_out(decoder_bias_name, f"the same as {HF_LM_HEAD_BIAS}")
        return others
    notes.append(
        f"{shortened(bias_name)} and {shortened(decoder_bias_name)} differ; the latter is used, as in Transformers"
    )
    builder.leave_out(bias_name, f"not the same as {HF_DECODER_BIAS}, which Transformers uses")
    return {**others, HF_LM_HEAD_BIAS: (decoder_bias_name, decoder_tensor)}


def _tensors(file: Path) -> dict[str, LazyTensor]:
    if file.suffix == ".safetensors":
        return dict(read_tensors(file))
    if file.suffix == ".msgpack":
        return msgpack_file.tensors(file)
    state = torch_file.load(file)
    if not isinstance(state, dict):
        raise CheckpointError(f"{file} is a PyTorch file but not a state dict")
    tensors: dict[str, LazyTensor] = dict(torch_file.tensors(state))
    check_fits_files(str(file), [file], tensors)
    return tensors


def _head_kind(
    settings: Mapping[str, Any], modern: Mapping[str, tuple[str, LazyTensor]], notes: list[str]
) -> str | None:
    """The kind of the model's head, a key of HEAD_NAMES; None if it has no head."""
    if "classifier.dense.weight" in modern:
        return "sentence"
    if "qa_outputs.weight" in modern:
        return "span"
    if "classifier.weight" not in modern:
        return None
    architecture = _architecture(settings)
    if architecture.endswith("ForMultipleChoice"):
        return "choice"
    # RobertaForTokenClassification has no pooler. Early versions had one, but seldom a single class.
    one_output = modern["classifier.weight"][1].shape[:1] == (1,)
    if architecture.endswith("ForTokenClassification") or "roberta.pooler.dense.weight" not in modern or not one_output:
        return "token"
    notes.append(
        "config.json does not say whether the head is for multiple choice or for tokens (architectures); it has a "
        "pooler and one output, and is taken to be multiple choice"
    )
    return "choice"


def _architecture(settings: Mapping[str, Any]) -> str:
    """The name of the model's class; empty if config.json does not give it."""
    architectures = settings.get("architectures")
    return str(architectures[0]) if isinstance(architectures, list) and architectures else ""


def _config(
    settings: Mapping[str, Any], model_type: str, builder: TreeBuilder, head: tuple[str, str] | None, tied: bool
) -> RobertaConfig:
    activation = settings["hidden_act"]
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(f"hidden_act must be one of {', '.join(ACTIVATIONS)}, got {str(activation)[:80]!r}")
    layers = builder.num_layers
    if (declared := integer(settings["num_hidden_layers"])) != layers:
        builder.problems.append(f"config.json declares {declared} layers, but the model has {layers}")
    dropout = number(settings["hidden_dropout_prob"])
    pad_id = PAD_ID if settings["pad_token_id"] is None else integer(settings["pad_token_id"])
    classifier_dropout = settings["classifier_dropout"]
    return RobertaConfig(
        vocab_size=builder.size("embeddings.token.embedding", 0, settings["vocab_size"]),
        num_layers=layers,
        hidden_size=builder.size("embeddings.token.embedding", 1, settings["hidden_size"]),
        num_heads=integer(settings["num_attention_heads"]),
        intermediate_size=builder.size("layers.0.feed_forward.intermediate.kernel", 1, settings["intermediate_size"]),
        max_positions=builder.size("embeddings.position.embedding", 0, settings["max_position_embeddings"])
        - pad_id
        - 1,
        pad_id=pad_id,
        activation=ACTIVATIONS[activation],
        lm_head_activation="gelu",  # RobertaLMHead, whatever hidden_act is
        pooler_activation="tanh",
        dropout=dropout,
        attention_dropout=number(settings["attention_probs_dropout_prob"]),
        pooler_dropout=dropout if classifier_dropout is None else number(classifier_dropout),
        normalize_before=model_type in PRE_NORM_TYPES,
        layernorm_embedding=model_type != "xlm-roberta-xl",
        layer_norm_epsilon=number(settings["layer_norm_eps"]),
        type_vocab_size=builder.size("embeddings.token_type.embedding", 0, 0),
        lm_head=builder.has("lm_head"),
        tie_word_embeddings=tied,
        heads=tuple(_heads(settings, builder, head)),
    )


def _heads(settings: Mapping[str, Any], builder: TreeBuilder, head: tuple[str, str] | None) -> Iterable[HeadConfig]:
    if head is not None:
        name, kind = head
        classes = builder.size(f"heads.{name}.output.kernel", 1, 1)
        inner = builder.size(f"heads.{name}.dense.kernel", 1, 0)
        problem = _problem(settings, kind, classes)
        yield HeadConfig(name, classes, inner, kind, problem, _labels(settings, classes) if kind != "choice" else ())
    if builder.has(f"heads.{POOLER}") and (head is None or head[0] != POOLER):
        size = builder.size(f"heads.{POOLER}.dense.kernel", 1, 0)
        yield HeadConfig(POOLER, size, size, "pooler", "regression")


def _problem(settings: Mapping[str, Any], kind: str, outputs: int) -> str:
    """The problem of a head, as in HeadConfig; "" for the default of a sentence head.

    One output is never a class of one, whose probability is always 1. It is a value, of which
    `classify.score_activation` makes a sentence head's score, unless config.json calls the head a regression.
    """
    if kind != "sentence":
        return "regression" if kind == "token" and outputs == 1 else "single_label"
    problem_type = settings.get("problem_type")
    if problem_type is not None and problem_type not in PROBLEM_TYPES:  # Transformers raises for it, too
        raise ValueError(f"problem_type must be one of {', '.join(PROBLEM_TYPES)}, got {str(problem_type)[:80]!r}")
    problem = PROBLEM_TYPES.get(problem_type or "", "")
    return "regression" if outputs == 1 and problem == "single_label" else problem


def _labels(settings: Mapping[str, Any], classes: int) -> tuple[str, ...]:
    """The labels of id2label in order; none if they are just the numbered defaults of Transformers."""
    id2label = settings.get("id2label")
    if not isinstance(id2label, dict):
        return ()
    by_id = {int(key): str(label) for key, label in id2label.items() if re.fullmatch("[0-9]{1,6}", str(key))}
    labels = tuple(by_id.get(i, f"LABEL_{i}") for i in range(classes))
    return () if all(label == f"LABEL_{i}" for i, label in enumerate(labels)) else labels
