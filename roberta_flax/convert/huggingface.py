"""Reads a model that Transformers saved, in torch or in Flax: its RobertaConfig, and its tensors by path of the tree.

Reading needs neither transformers nor torch, and executes nothing in the files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from roberta_flax.checkpoint import converted
from roberta_flax.checkpoint.tensors import LazyTensor
from roberta_flax.convert import adapters, bert, hf_tokenizer, sentence_transformers, weights
from roberta_flax.convert.adapters import Adapter
from roberta_flax.convert.hf_tokenizer import TokenizerFiles
from roberta_flax.convert.names import (
    HF_DECODER_BIAS,
    HF_LM_HEAD_BIAS,
    HF_LM_HEAD_WEIGHT,
    HF_TOKEN_TYPES,
    HF_WORD_EMBEDDINGS,
    from_huggingface,
    huggingface_roots,
    modernize_huggingface,
    reason_to_ignore,
)
from roberta_flax.convert.source import (
    Source,
    TreeBuilder,
    integer,
    interpret,
    number,
    read_json,
    same_values,
)
from roberta_flax.convert.views import size_in_bytes
from roberta_flax.convert.weights import CONFIG_FILE, INDEX_SUFFIX, WEIGHT_FILES
from roberta_flax.errors import CheckpointError, DownloadError, shortened
from roberta_flax.extras import require
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from roberta_flax.text.fairseq_tokenizer import PAD_ID, FairseqTokenizer, SentencePiece
from roberta_flax.text.huggingface_tokenizer import EFFECTIVE_FILE, HuggingFaceTokenizer
from roberta_flax.text.tokenizer import Tokenizer

HUB_PREFIX = "hf:"
CLASS_PREFIXES = {  # model_type -> the prefix of its classes' names
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "camembert": "Camembert",
    "xlm-roberta-xl": "XLMRobertaXL",
    "roberta-prelayernorm": "RobertaPreLayerNorm",
    "data2vec-text": "Data2VecText",
    bert.MODEL_TYPE: "Bert",
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
CLASS_SUFFIXES = {  # kind of a head -> the class that has it, without the prefix
    "sentence": "ForSequenceClassification",
    "token": "ForTokenClassification",
    "span": "ForQuestionAnswering",
    "choice": "ForMultipleChoice",
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
    "data2vec-text": {**_BASE_DEFAULTS, "vocab_size": 30522},
    bert.MODEL_TYPE: {**_BASE_DEFAULTS, "vocab_size": 30522, "pad_token_id": 0},
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

    def listed() -> list[str]:
        model = huggingface_hub.HfApi().model_info(repository, revision=revision or "main")
        return [file.rfilename for file in model.siblings or ()]

    try:
        return fetch_chosen(name, download, listed)
    except (CheckpointError, DownloadError):
        raise
    except Exception as error:  # huggingface_hub's own, or those of requests or httpx, depending on its version
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        raise DownloadError(f"cannot fetch {name}: {reason}") from None


def fetch_chosen(name: str, download: Callable[[Sequence[str]], Path], listed: Callable[[], list[str]]) -> Path:
    """Downloads what a model needs, and returns its directory. Weights by other names are looked up last.

    Args:
      name: the model's name, for messages.
      download: downloads the files with one of these patterns, unless they are there, and returns their directory.
      listed: lists the names of all files.

    Raises:
      DownloadError: there are no weights.
    """
    for file_name in WEIGHT_FILES:
        stem, suffix = Path(file_name).stem, Path(file_name).suffix
        parts = [file_name, f"{file_name}{INDEX_SUFFIX}", f"{stem}-*-of-*{suffix}"]
        early = [f"0_*/{each}" for each in (CONFIG_FILE, *hf_tokenizer.FILES, *parts)]
        directory = download([CONFIG_FILE, *hf_tokenizer.FILES, *parts, *early, *sentence_transformers.PATTERNS])
        folder = sentence_transformers.transformer_folder(directory)
        if (folder / adapters.CONFIG_FILE).is_file():
            for adapter_file in adapters.WEIGHT_FILES:
                if (download([adapter_file, *adapters.OWN_FILES]) / adapter_file).is_file():
                    break
            return directory
        if weights.own_files(folder) and weight_files(folder):
            return directory
    inside = folder.relative_to(directory).as_posix()
    names = [each for each in listed() if Path(each).parent.as_posix() == inside]
    found = weights.choose(name, [Path(each).name for each in names])
    if not found:
        raise DownloadError(
            f"{name} has none of {', '.join(WEIGHT_FILES)} (found: {', '.join(names[:8]) or 'nothing'})"
        )
    return download([(Path(inside) / each).as_posix() for each in found])


def model_type_of(config: RobertaConfig, tokenizer: Tokenizer) -> str:
    """The model_type under which Transformers computes what a network does.

    Raises:
      CheckpointError: there is none.
    """
    backend = tokenizer.backend
    match config.normalize_before, config.layernorm_embedding:
        case False, True if isinstance(backend, FairseqTokenizer):
            if not isinstance(backend.bpe, SentencePiece):
                return "roberta"
            return "camembert" if backend.bos_id != 0 else "xlm-roberta"
        case False, True:
            named = backend.settings.model_type if isinstance(backend, HuggingFaceTokenizer) else ""
            return named if named in ("xlm-roberta", "camembert") else "roberta"
        case True, False:
            return "xlm-roberta-xl"
        case True, True:
            return "roberta-prelayernorm"
    raise CheckpointError("Transformers has no RoBERTa with a LayerNorm after each block but none after the embedding")


def check_sentence_head(config: RobertaConfig, head: HeadConfig) -> None:
    """Raises CheckpointError unless a sentence head is built as those of Transformers."""
    if head.kind == "sentence" and (head.inner_size, config.pooler_activation) != (config.hidden_size, "tanh"):
        raise CheckpointError(
            f"Transformers' sentence heads are as wide as the features ({config.hidden_size}) and use tanh; head "
            f"{head.name!r} is {head.inner_size} wide and uses {config.pooler_activation}"
        )


class ConfigError(CheckpointError):
    """A config.json is damaged, or is not one of Transformers'."""


def _config_json(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / CONFIG_FILE)
    except CheckpointError as error:
        raise ConfigError(str(error)) from None


def weight_files(path: Path, checkpoint_file: Path | None = None) -> list[Path]:
    """The weights files of a Transformers model.

    Args:
      path: a directory that Transformers wrote, or a weights file in one, or the index of several.
      checkpoint_file: the file to take if there are none by the names that Transformers gives them.

    Returns:
      The files, in the order of their names. An empty list if `path` is not such a directory or file.

    Raises:
      ConfigError: config.json cannot be read.
      CheckpointError: an index lists files that are missing or in another folder, or one of several files may be the
        model.
    """
    folder = path if path.is_dir() else path.parent
    if not (folder / CONFIG_FILE).is_file() or not converted.is_transformers_config(_config_json(folder)):
        return []
    if path.is_file():
        if weights.is_index(path):
            return weights.parts_of(path)
        return [path] if weights.is_weight_file(path) and not weights.is_fairseq(path) else []
    return weights.find(path, checkpoint_file)


def read(
    files: Sequence[Path],
    bpe_dir: str | os.PathLike[str] | None = None,
    head_name: str | None = None,
    with_tokenizer: bool = True,
    adapter: Adapter | None = None,
) -> Source:
    """Reads a model that Transformers saved.

    Args:
      files: the weights files, with config.json and the tokenizer's files beside them.
      bpe_dir: the directory of the tokenizer's files, if they are not beside the weights.
      head_name: the name to give the model's head; by default, the one in HEAD_NAMES.
      with_tokenizer: whether to read the tokenizer.
      adapter: an adapter to merge into the model. Its directory's files come before those beside the weights.

    Raises:
      CheckpointError: the model is not a RoBERTa, or tensors are missing, unknown or misshapen (all are listed).
    """
    folder = files[0].parent
    home = folder if adapter is None else adapter.folder
    source_name = str(home)
    settings, model_type = _settings(folder)
    builder, notes = TreeBuilder(), list[str]()
    network = weights.read(str(folder), files, huggingface_roots(model_type))
    builder.provenance |= network.left_out
    modern = _modernize_names(str(folder), network.tensors, model_type)
    if adapter is not None:
        merged = adapters.merge(adapter, modern, settings, model_type, CLASS_PREFIXES[model_type])
        modern, settings = merged.tensors, merged.settings
        builder.provenance |= merged.left_out
    read_tokenizer = partial(_read_tokenizer, [bpe_dir, home, folder], settings, model_type, notes)
    kind = head_kind(settings, modern, model_type, notes)
    tokenizer_files = None
    if model_type == bert.MODEL_TYPE:
        tokenizer_files, settings, modern = _fold_bert(
            source_name, read_tokenizer, settings, modern, kind, notes, with_tokenizer
        )
    head = None if kind is None else (head_name or HEAD_NAMES[kind], kind)
    modern = _merge_lm_head_biases(modern, builder, notes, decoder_wins=model_type != bert.MODEL_TYPE)
    tied = settings["tie_word_embeddings"] is not False
    put(builder, modern, head, tied, notes)
    config = interpret(source_name, lambda: _config(settings, model_type, builder, head, tied))
    _note_labels(settings, config, notes)
    builder.check(source_name, files, config, added=max(0, _size(modern) - _size(network.tensors)))
    if not with_tokenizer:
        tokenizer_files = hf_tokenizer.none(config.vocab_size)
    elif tokenizer_files is None:
        tokenizer_files = read_tokenizer(config.vocab_size, config.pad_id)
    usage = sentence_transformers.read(
        home,
        settings,
        config=config,
        head=next((each for each in config.heads if each.kind == "sentence"), None),
        notes=notes,
        tokenizer_json=str(tokenizer_files[EFFECTIVE_FILE]) if with_tokenizer else None,
    )
    repository = _repository(usage, folder, files, adapter) | network.record()
    return Source(
        "huggingface", config, builder.parameters, builder.provenance, tokenizer_files, notes, usage.usage, repository
    )


def _settings(folder: Path) -> tuple[dict[str, Any], str]:
    """The content of config.json with Transformers' defaults, and the model_type."""
    settings = read_json(folder / CONFIG_FILE)
    model_type = _model_type(settings)
    if model_type not in MODEL_TYPES:
        raise CheckpointError(
            f"{folder} contains a model of type {model_type[:80]!r}, not a RoBERTa: expected {', '.join(MODEL_TYPES)}"
        )
    for key, values in _FIXED.items():
        if settings.get(key) not in values:
            raise CheckpointError(f"{folder} has {key}={str(settings[key])[:80]}, which is not supported")
    return {**DEFAULTS[model_type], **settings}, model_type


def _read_tokenizer(
    folders: Sequence[str | os.PathLike[str] | None],
    settings: Mapping[str, Any],
    model_type: str,
    notes: list[str],
    vocab_size: int,
    pad_id: int | None,
) -> TokenizerFiles:
    named = settings.get("tokenizer_class")
    default = bert.TOKENIZER_CLASS if model_type == bert.MODEL_TYPE else None
    return hf_tokenizer.read(
        [*dict.fromkeys(Path(folder) for folder in folders if folder is not None)],
        model_type,
        vocab_size,
        notes,
        tokenizer_class=named if isinstance(named, str) else default,
        pad_id=pad_id,
    )


def _fold_bert(
    source_name: str,
    read_tokenizer: Callable[[int, int | None], TokenizerFiles],
    settings: Mapping[str, Any],
    modern: Mapping[str, tuple[str, LazyTensor]],
    kind: str | None,
    notes: list[str],
    with_tokenizer: bool,
) -> tuple[TokenizerFiles | None, dict[str, Any], dict[str, tuple[str, LazyTensor]]]:
    """The tokenizer of a BERT, if it can be read, and settings and tensors of the RoBERTa that computes the same."""
    vocab_size = (*modern[HF_WORD_EMBEDDINGS][1].shape, 0)[0]
    said = len(notes)
    try:
        tokenizer_files = read_tokenizer(vocab_size, None)
    except CheckpointError:
        if with_tokenizer:
            raise
        tokenizer_files = None
    if not with_tokenizer:  # which is read for the id of padding alone
        del notes[said:]
    if with_tokenizer and tokenizer_files is not None:
        named = settings.get("tokenizer_class") or bert.TOKENIZER_CLASS
        bert.check_token_types(source_name, tokenizer_files, str(named), modern)
    pad_id = bert.padding_id(source_name, tokenizer_files, settings, notes)
    if any(name.startswith(bert.NEXT_SENTENCE) for name in modern):
        notes.append(f"{source_name}: BERT's prediction of the next sentence is left out")
    folded = bert.with_positions_after(pad_id, modern)
    if kind == "sentence":
        folded = bert.with_sentence_head(folded)
    return tokenizer_files, {**settings, "pad_token_id": pad_id}, folded


def put(
    builder: TreeBuilder,
    modern: Mapping[str, tuple[str, LazyTensor]],
    head: tuple[str, str] | None,
    tied: bool,
    notes: list[str],
) -> None:
    """Puts all tensors at their places in the tree, or records why they are left out."""
    pooler = POOLER if head is None or head[1] != "choice" else None
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


def _size(modern: Mapping[str, tuple[str, LazyTensor]]) -> int:
    return sum(size_in_bytes(tensor) for _, tensor in modern.values())


def _repository(
    usage: sentence_transformers.Reading, folder: Path, files: Sequence[Path], adapter: Adapter | None
) -> dict[str, Any]:
    """The files of a repository that were read and those that were not; with an adapter, also those of its model."""
    names = [name for name in (CONFIG_FILE, *hf_tokenizer.FILES) if (folder / name).is_file()]
    indices = [path for path in folder.glob("*.json") if weights.is_index(path)] if len(files) > 1 else []
    paths = {*files, *indices, *(folder / name for name in names)}
    others: dict[str, Any] = {}
    if adapter is not None:
        others["base model"] = sorted(path.name for path in paths)
        own = [adapter.folder / name for name in hf_tokenizer.FILES if (adapter.folder / name).is_file()]
        own += [adapter.folder / name for name in adapter.own_files()]
        paths = {adapter.file, adapter.folder / adapters.CONFIG_FILE, *own}
    read_files = sorted({*usage.files, *(path.relative_to(usage.root).as_posix() for path in paths)})
    return {"read": read_files, "not read": sentence_transformers.unread(usage.root, read_files), **others}


def _model_type(settings: Mapping[str, Any]) -> str:
    """The model_type; in files from before Transformers 2.2 wrote it, derived from the name of the model's class."""
    if "model_type" in settings:
        return str(settings["model_type"])
    named = _architecture(settings) or "unnamed"
    return next((kind for kind, prefix in CLASS_PREFIXES.items() if re.match(f"{prefix}(For|Model)", named)), named)


def _modernize_names(
    source_name: str, tensors: Mapping[str, tuple[str, LazyTensor]], model_type: str
) -> dict[str, tuple[str, LazyTensor]]:
    """Maps the modern name of every tensor to its name in the file and the tensor."""
    modern: dict[str, tuple[str, LazyTensor]] = {}
    for plain_name, (name, tensor) in tensors.items():
        modern_name = modernize_huggingface(plain_name, model_type)
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
    modern: dict[str, tuple[str, LazyTensor]], builder: TreeBuilder, notes: list[str], *, decoder_wins: bool
) -> dict[str, tuple[str, LazyTensor]]:
    """Keeps one bias of the LM head if a file contains it under both of its names.

    If the two differ, it is the decoder's in Transformers' RoBERTas (RobertaLMHead._tie_weights) and the head's in its
    BERT (BertLMPredictionHead._tie_weights).
    """
    if HF_DECODER_BIAS not in modern:
        return modern
    kept, dropped = (HF_DECODER_BIAS, HF_LM_HEAD_BIAS)[:: 1 if decoder_wins else -1]
    (kept_name, kept_tensor), (dropped_name, dropped_tensor) = modern[kept], modern[dropped]
    others = {name: part for name, part in modern.items() if name not in (kept, dropped)}
    if same_values(kept_tensor, dropped_tensor):
        builder.leave_out(modern[HF_DECODER_BIAS][0], f"the same as {HF_LM_HEAD_BIAS}")
        return {**others, HF_LM_HEAD_BIAS: modern[HF_LM_HEAD_BIAS]}
    notes.append(f"{shortened(dropped_name)} and {shortened(kept_name)} differ; the latter is used, as in Transformers")
    builder.leave_out(dropped_name, f"not the same as {kept}, which Transformers uses")
    return {**others, HF_LM_HEAD_BIAS: (kept_name, kept_tensor)}


def head_kind(
    settings: Mapping[str, Any], modern: Mapping[str, tuple[str, LazyTensor]], model_type: str, notes: list[str]
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
    has_pooler = "roberta.pooler.dense.weight" in modern
    if model_type == bert.MODEL_TYPE and has_pooler and not architecture.endswith("ForTokenClassification"):
        if not architecture.endswith("ForSequenceClassification"):
            notes.append(
                "config.json does not say what the head classifies (architectures); it has a pooler, and is taken to "
                "classify texts"
            )
        return "sentence"
    # RobertaForTokenClassification has no pooler. Early versions had one, but seldom a single class.
    one_output = modern["classifier.weight"][1].shape[:1] == (1,)
    if architecture.endswith("ForTokenClassification") or not has_pooler or not one_output:
        if architecture and not architecture.endswith("ForTokenClassification"):
            notes.append(
                f"config.json is that of a {shortened(architecture)}, but the weights have a classifier as "
                "ForTokenClassification has it; it is taken to classify tokens"
            )
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
        # RobertaLMHead has gelu, whatever hidden_act is
        lm_head_activation=ACTIVATIONS[activation] if model_type == bert.MODEL_TYPE else "gelu",
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
        heads=tuple(heads(settings, builder, head)),
    )


def heads(settings: Mapping[str, Any], builder: TreeBuilder, head: tuple[str, str] | None) -> Iterable[HeadConfig]:
    """The head called head[0], of kind head[1], and the pooler, as far as the parameters have them."""
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


def _note_labels(settings: Mapping[str, Any], config: RobertaConfig, notes: list[str]) -> None:
    """Says that config.json's labels are left out because they are those of another head."""
    id2label = settings.get("id2label")
    for head in config.heads:
        if head.kind in ("sentence", "token") and isinstance(id2label, dict) and len(id2label) != head.num_classes:
            notes.append(
                f"config.json names {len(id2label)} labels, but the head has {head.num_classes} classes: the names are "
                "left out"
            )


def _labels(settings: Mapping[str, Any], classes: int) -> tuple[str, ...]:
    """The labels of id2label in order; none if they are another head's or the numbered defaults of Transformers."""
    id2label = settings.get("id2label")
    if not isinstance(id2label, dict) or len(id2label) != classes:
        return ()
    by_id = {int(key): str(label) for key, label in id2label.items() if re.fullmatch("[0-9]{1,6}", str(key))}
    labels = tuple(by_id.get(i, f"LABEL_{i}") for i in range(classes))
    return () if all(label == f"LABEL_{i}" for i, label in enumerate(labels)) else labels
