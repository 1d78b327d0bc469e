"""A model that transformers saved, in torch or in Flax: its RobertaConfig, and its tensors by path of the Flax tree.

Neither transformers nor torch is needed, and nothing in the files is executed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from roberta_flax.checkpoint import converted
from roberta_flax.checkpoint.tensors import Tensor, read_tensors
from roberta_flax.convert import hf_tokenizer, msgpack_file, torch_file
from roberta_flax.convert.names import (
    HF_DECODER_BIAS,
    HF_LM_HEAD_BIAS,
    HF_LM_HEAD_WEIGHT,
    HF_TOKEN_TYPES,
    HF_WORD_EMBEDDINGS,
    from_huggingface,
    modernize_huggingface,
    why_ignored,
)
from roberta_flax.convert.source import (
    Placing,
    Source,
    check_stored,
    equal,
    integer,
    number,
    read_json,
    understood,
    unwrapped,
)
from roberta_flax.convert.torch_file import shortened
from roberta_flax.errors import CheckpointError, DownloadError
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from roberta_flax.text.tokenizer import PAD_ID

HUB_PREFIX = "hf:"
CONFIG_FILE = "config.json"
_INDEX_SUFFIX = ".index.json"  # of a file that names the parts of a model in several
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "flax_model.msgpack")  # in the order of preference
_MAX_PARTS = 1000  # files of weights; the largest model has nine
INDEX_FILES = tuple(f"{name}{_INDEX_SUFFIX}" for name in WEIGHT_FILES)
_SUFFIXES = tuple(Path(name).suffix for name in WEIGHT_FILES)

CLASS_PREFIXES = {  # model_type -> how the names of its classes begin
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "camembert": "Camembert",
    "xlm-roberta-xl": "XLMRobertaXL",
    "roberta-prelayernorm": "RobertaPreLayerNorm",
}
MODEL_TYPES = tuple(CLASS_PREFIXES)
PRE_NORM_TYPES = ("xlm-roberta-xl", "roberta-prelayernorm")
# transformers/activations.py, ACT2FN -> roberta_flax.config.ACTIVATIONS
ACTIVATIONS = {
    "gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_accurate", "gelu_fast": "gelu_accurate",
    "gelu_pytorch_tanh": "gelu_accurate", "relu": "relu", "relu2": "relu_squared", "tanh": "tanh", "linear": "linear",
}  # fmt: skip
# What a head is called where the user gives it no name; fairseq's name for the first (sentence_prediction task).
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
# configuration_roberta.py and its like: what a setting is where config.json does not say
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
# Settings that change the network in a way this one does not have, and the values that leave it as it is.
_FIXED: dict[str, tuple[Any, ...]] = {
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "position_embedding_type": ("absolute", None),
    "pad_token_id": (PAD_ID, None),
    "pruned_heads": ({}, None),
}


def fetch(name: str, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The directory of a model on Hugging Face's hub, "hf:org/name" or "hf:org/name@revision", downloaded.

    Only its configuration, its tokenizer's files and one set of weights are. They are kept in `cache_dir`, otherwise
    in huggingface_hub's own cache, which other programs share.

    Raises:
      DownloadError: it could not be fetched, or huggingface_hub is not installed.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise DownloadError(
            f"{name}: models on Hugging Face's hub need huggingface_hub; pip install 'roberta-flax[huggingface]'"
        ) from None
    repository, _, revision = name.removeprefix(HUB_PREFIX).partition("@")
    folder = None if cache_dir is None else Path(cache_dir) / "huggingface"

    def snapshot(patterns: Sequence[str]) -> Path:
        return Path(
            huggingface_hub.snapshot_download(
                repository, revision=revision or None, cache_dir=folder, allow_patterns=list(patterns)
            )
        )

    try:
        for weights in WEIGHT_FILES:
            stem, suffix = Path(weights).stem, Path(weights).suffix
            parts = [weights, f"{weights}{_INDEX_SUFFIX}", f"{stem}-*-of-*{suffix}"]
            directory = snapshot([CONFIG_FILE, *hf_tokenizer.FILES, *parts])
            if weight_files(directory):
                return directory
    except CheckpointError:
        raise
    except Exception as error:  # its own, and those of requests or httpx, by its version
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        raise DownloadError(f"cannot fetch {name}: {reason}") from None
    raise DownloadError(f"{name} has none of {', '.join(WEIGHT_FILES)}")


class ConfigError(CheckpointError):
    """A config.json that is not transformers', or is damaged."""


def _config_json(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / CONFIG_FILE)
    except CheckpointError as error:
        raise ConfigError(str(error)) from None


def is_weight_file(path: Path) -> bool:
    """Whether a file has the name of one of transformers' files of weights."""
    return path.suffix in _SUFFIXES


def weight_files(path: Path) -> list[Path]:
    """The files of weights of a directory that transformers wrote (or of one file in one); none where it is no such.

    Raises:
      ConfigError: its config.json cannot be read.
      CheckpointError: an index that names files which are missing, or elsewhere.
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
                raise CheckpointError(f"{index} is damaged: it should name the files of weights beside it")
            if missing := [shortened(part) for part in names if not os.path.isfile(path / part)]:
                raise CheckpointError(f"{index} names {', '.join(missing[:5])}, not there: copy the missing files too")
            return [path / part for part in names]
        if (path / name).is_file():
            return [path / name]
    return []


def read(files: Sequence[Path], bpe_dir: str | os.PathLike[str] | None = None, head_name: str | None = None) -> Source:
    """Reads a model that transformers saved.

    Args:
      files: its files of weights; config.json and the tokenizer's files are beside them.
      bpe_dir: where the tokenizer's files are, if not there.
      head_name: what its head is called here; see HEAD_NAMES for what it is called otherwise.

    Raises:
      CheckpointError: not a RoBERTa, or tensors that are missing, unknown or of a wrong shape (all of them are listed).
    """
    folder = files[0].parent
    what = str(folder)
    given = read_json(folder / CONFIG_FILE)
    model_type = _model_type(given)
    if model_type not in MODEL_TYPES:
        raise CheckpointError(
            f"{what} holds a model of type {model_type[:80]!r}, not a RoBERTa: expected {', '.join(MODEL_TYPES)}"
        )
    for key, values in _FIXED.items():
        if given.get(key) not in values:
            raise CheckpointError(f"{what} has {key}={str(given[key])[:80]}, which RoBERTa here does not have")
    given = {**DEFAULTS[model_type], **given}

    modern = _modern(what, files, model_type)
    placing, notes = Placing(), list[str]()
    kind = _head_kind(given, modern, notes)
    head = None if kind is None else (head_name or HEAD_NAMES[kind], kind)
    pooler = POOLER if kind != "choice" else None
    tied = given["tie_word_embeddings"] is not False
    modern = _with_one_bias(modern, placing, notes)
    for name, (source, tensor) in modern.items():
        if tied and name == HF_LM_HEAD_WEIGHT:
            if not equal(tensor, modern[HF_WORD_EMBEDDINGS][1]):
                notes.append(
                    f"{shortened(source)} differs from the embedding that it is tied to; transformers drops it too"
                )
            placing.leave_out(source, "the same as the token embedding, which the LM head is tied to")
        elif name == HF_TOKEN_TYPES and not tensor.read().any():
            placing.leave_out(source, "zero: token types add nothing")
        elif (reason := why_ignored(name)) is not None:
            placing.leave_out(source, reason)
        else:
            placing.put(source, tensor, from_huggingface(name, head, pooler))

    config = understood(what, lambda: _config(given, model_type, placing, head, tied))
    placing.check(what, files, config)
    folders = [Path(bpe_dir), folder] if bpe_dir is not None else [folder]
    tokenizer_files = hf_tokenizer.read(folders, model_type, config.vocab_size, notes)
    return Source("huggingface", config, placing.parameters, placing.went, tokenizer_files, notes)


def _model_type(given: Mapping[str, Any]) -> str:
    """model_type; before transformers 2.2 wrote it, what the name of the model's class says."""
    if "model_type" in given:
        return str(given["model_type"])
    named = _architecture(given) or "unnamed"
    return next((kind for kind, prefix in CLASS_PREFIXES.items() if re.match(f"{prefix}(For|Model)", named)), named)


def _modern(what: str, files: Sequence[Path], model_type: str) -> dict[str, tuple[str, Tensor]]:
    """today's name -> (name in the file, tensor)."""
    parts = [(name, tensor) for file in files for name, tensor in _tensors(file).items()]
    prefix = unwrapped(name for name, _ in parts)
    modern: dict[str, tuple[str, Tensor]] = {}
    for name, tensor in parts:
        modern_name = modernize_huggingface(name.removeprefix(prefix), model_type)
        if modern_name in modern:
            other = shortened(modern[modern_name][0])
            raise CheckpointError(f"{what}: {other} and {shortened(name)} are the same tensor by two names")
        modern[modern_name] = (name, tensor)
    # Of tensors that share their values a file may keep one alone, whichever.
    for kept, wanted in ((HF_DECODER_BIAS, HF_LM_HEAD_BIAS), (HF_LM_HEAD_WEIGHT, HF_WORD_EMBEDDINGS)):
        if wanted not in modern and kept in modern:
            modern[wanted] = modern.pop(kept)
    if HF_WORD_EMBEDDINGS not in modern:
        some = ", ".join(map(shortened, sorted(modern)[:2])) or "no tensors"
        raise CheckpointError(f"{what} does not hold a RoBERTa: expected {HF_WORD_EMBEDDINGS}, got {some}, ...")
    return modern


def _with_one_bias(
    modern: dict[str, tuple[str, Tensor]], placing: Placing, notes: list[str]
) -> dict[str, tuple[str, Tensor]]:
    """The LM head's bias once, where a file has it by both of its names.

    Where the two differ, transformers 4.57 takes the decoder's (RobertaLMHead._tie_weights).
    """
    if HF_DECODER_BIAS not in modern:
        return modern
    (bias, mine), (decoder_bias, decoders) = modern[HF_LM_HEAD_BIAS], modern[HF_DECODER_BIAS]
    rest = {name: part for name, part in modern.items() if name != HF_DECODER_BIAS}
    if equal(mine, decoders):
        placing.leave_out(decoder_bias, f"the same as {HF_LM_HEAD_BIAS}")
        return rest
    notes.append(f"{shortened(bias)} and {shortened(decoder_bias)} differ; the latter is taken, as transformers does")
    placing.leave_out(bias, f"not the same as {HF_DECODER_BIAS}, which transformers takes")
    return {**rest, HF_LM_HEAD_BIAS: (decoder_bias, decoders)}


def _tensors(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        return dict(read_tensors(file))
    if file.suffix == ".msgpack":
        return msgpack_file.tensors(file)
    state = torch_file.load(file)
    if not isinstance(state, dict):
        raise CheckpointError(f"{file} is a PyTorch file but not a state dict")
    tensors: dict[str, Tensor] = dict(torch_file.tensors(state))
    check_stored(str(file), [file], tensors)
    return tensors


def _head_kind(given: Mapping[str, Any], modern: Mapping[str, tuple[str, Tensor]], notes: list[str]) -> str | None:
    """Which of HEAD_NAMES' kinds of head there is, if one."""
    if "classifier.dense.weight" in modern:
        return "sentence"
    if "qa_outputs.weight" in modern:
        return "span"
    if "classifier.weight" not in modern:
        return None
    architecture = _architecture(given)
    if architecture.endswith("ForMultipleChoice"):
        return "choice"
    # RobertaForTokenClassification has no pooler today; that of years ago had, and was seldom of one class
    one_output = modern["classifier.weight"][1].shape[:1] == (1,)
    if architecture.endswith("ForTokenClassification") or "roberta.pooler.dense.weight" not in modern or not one_output:
        return "token"
    notes.append(
        "config.json does not say whether its head is of multiple choice or of tokens (architectures); it has a pooler "
        "and one output, and is taken for multiple choice"
    )
    return "choice"


def _architecture(given: Mapping[str, Any]) -> str:
    """The name of the model's class; empty where config.json has none."""
    architectures = given.get("architectures")
    return str(architectures[0]) if isinstance(architectures, list) and architectures else ""


def _config(
    given: Mapping[str, Any], model_type: str, placing: Placing, head: tuple[str, str] | None, tied: bool
) -> RobertaConfig:
    activation = given["hidden_act"]
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(f"hidden_act must be one of {', '.join(ACTIVATIONS)}, got {str(activation)[:80]!r}")
    layers = placing.num_layers
    if (declared := integer(given["num_hidden_layers"])) != layers:
        placing.problems.append(f"its config.json says {declared} layers, and it has {layers}")
    dropout = number(given["hidden_dropout_prob"])
    classifier_dropout = given["classifier_dropout"]
    return RobertaConfig(
        vocab_size=placing.size("embeddings.token.embedding", 0, given["vocab_size"]),
        num_layers=layers,
        hidden_size=placing.size("embeddings.token.embedding", 1, given["hidden_size"]),
        num_heads=integer(given["num_attention_heads"]),
        intermediate_size=placing.size("layers.0.feed_forward.intermediate.kernel", 1, given["intermediate_size"]),
        max_positions=placing.size("embeddings.position.embedding", 0, given["max_position_embeddings"]) - PAD_ID - 1,
        pad_id=PAD_ID,
        activation=ACTIVATIONS[activation],
        lm_head_activation="gelu",  # RobertaLMHead, whatever hidden_act is
        pooler_activation="tanh",
        dropout=dropout,
        attention_dropout=number(given["attention_probs_dropout_prob"]),
        pooler_dropout=dropout if classifier_dropout is None else number(classifier_dropout),
        normalize_before=model_type in PRE_NORM_TYPES,
        layernorm_embedding=model_type != "xlm-roberta-xl",
        layer_norm_epsilon=number(given["layer_norm_eps"]),
        type_vocab_size=placing.size("embeddings.token_type.embedding", 0, 0),
        lm_head=placing.has("lm_head"),
        tie_word_embeddings=tied,
        heads=tuple(_heads(given, placing, head)),
    )


def _heads(given: Mapping[str, Any], placing: Placing, head: tuple[str, str] | None) -> Iterable[HeadConfig]:
    if head is not None:
        name, kind = head
        classes = placing.size(f"heads.{name}.output.kernel", 1, 1)
        inner = placing.size(f"heads.{name}.dense.kernel", 1, 0)
        problem = PROBLEM_TYPES.get(str(given.get("problem_type")), "") if kind == "sentence" else "single_label"
        yield HeadConfig(name, classes, inner, kind, problem, _labels(given, classes) if kind != "choice" else ())
    if placing.has(f"heads.{POOLER}") and (head is None or head[0] != POOLER):
        size = placing.size(f"heads.{POOLER}.dense.kernel", 1, 0)
        yield HeadConfig(POOLER, size, size, "pooler", "regression")


def _labels(given: Mapping[str, Any], classes: int) -> tuple[str, ...]:
    """id2label in order; none where it only counts them, as transformers does where nobody named them."""
    id2label = given.get("id2label")
    if not isinstance(id2label, dict):
        return ()
    by_id = {int(key): str(label) for key, label in id2label.items() if re.fullmatch("[0-9]{1,6}", str(key))}
    labels = tuple(by_id.get(i, f"LABEL_{i}") for i in range(classes))
    return () if all(label == f"LABEL_{i}" for i, label in enumerate(labels)) else labels
