"""Reads and writes the files with which sentence-transformers says how a model is used, versions 2 to 6.

  modules.json                          the modules, in order: a Transformer, a Pooling, ...
  sentence_bert_config.json             the Transformer's settings, beside its config.json
  1_Pooling/config.json, 2_Dense/...    the other modules' settings and weights
  config_sentence_transformers.json     prompts, similarity, the kind of model; what PyLate says of its models
  config.json                           a cross-encoder's activation, with the network's settings

Multi-vector encoders are those of version 6, and those that PyLate wrote, which version 6 reads too.

Nothing that these files name is imported. A setting that would change the answers, and that nothing here computes, is
a CheckpointError with its name.
"""

from __future__ import annotations

import json
import math
import os
import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from roberta_flax.checkpoint.tensors import LazyTensor, Values, read_tensors, write_tensors
from roberta_flax.checkpoint.usage import (
    MULTI_VECTOR_SIMILARITIES,
    SIMILARITIES,
    TOKEN_HEADS,
    Embedding,
    Scoring,
    Usage,
)
from roberta_flax.convert import torch_file
from roberta_flax.convert.source import check_fits_files, is_floating, read_json
from roberta_flax.errors import CheckpointError, InputError, shortened
from roberta_flax.files import read_text
from roberta_flax.nn.config import NO_LM_HEAD, HeadConfig, RobertaConfig
from roberta_flax.nn.sentence import (
    ACTIVATIONS,
    POOLING_MODES,
    Dense,
    LayerNorm,
    Module,
    ModuleParams,
    MultiVectorMask,
    Normalize,
    Pooling,
    QueryExpansion,
    SpladePooling,
)
from roberta_flax.text.huggingface_tokenizer import parse

MODULES_FILE = "modules.json"
SETTINGS_FILE = "config_sentence_transformers.json"
# Transformer.load_config, in the order of preference
TRANSFORMER_FILES = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
_CONFIG_FILE = "config.json"
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # Module.load_torch_weights
_TOKEN_HEAD_FILES = {head: f"{head}_linear.pt" for head in TOKEN_HEADS}  # of BGE-M3
# Patterns of what to download beside the network's own files. A module's folder is its number and its class.
PATTERNS = (
    MODULES_FILE, SETTINGS_FILE, *TRANSFORMER_FILES, "adapter_config.json", *_TOKEN_HEAD_FILES.values(),
    "[0-9]*_*/config.json", *(f"[1-9]*_*/{name}" for name in _WEIGHT_FILES),
)  # fmt: skip
_OWN_MODULES = ("sentence_transformers.", "pylate.models.Dense.")
_EARLY_TRANSFORMERS = ("BERT", "RoBERTa", "XLMRoBERTa", "CamemBERT")  # the Transformer's names before version 0.3
_MAX_MODULES = 32
_POOLING_KEYS = {  # Pooling.config_keys until version 5
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# Arguments that a repository may pass on to transformers, and that do not change the answers
_HARMLESS_ARGUMENTS = (
    "add_pooling_layer", "attn_implementation", "device_map", "dtype", "low_cpu_mem_usage", "torch_dtype",
    "trust_remote_code", "use_fast", "use_safetensors",
)  # fmt: skip
_ARGUMENTS = ("model_args", "model_kwargs", "config_args", "config_kwargs", "tokenizer_args", "processor_kwargs")
_TOKENIZER_ARGUMENTS = ("tokenizer_args", "processor_kwargs")
_MULTI_VECTOR = "MultiVectorEncoder"
_KINDS = ("SentenceTransformer", "SparseEncoder", "CrossEncoder", _MULTI_VECTOR)
_PYLATE = "ColBERT"  # the kind that PyLate writes; before its version 1.2, none
_PYLATE_PREFIXES = {"query_prefix": "query", "document_prefix": "document"}  # MultiVectorEncoder._parse_model_config
_PYLATE_LENGTHS = ("query_length", "document_length", "query_expansion")  # _LegacyStash._PYLATE_TRANSFORMER_KEYS
_PYLATE_MARKERS = (
    *_PYLATE_LENGTHS, "do_query_expansion", "attend_to_expansion_tokens", "attend_to_mask_tokens", *_PYLATE_PREFIXES,
    "skiplist_words",
)  # fmt: skip
_PYLATE_QUERY_LENGTH = 32
_SENTENCE, _TOKENS = "sentence_embedding", "token_embeddings"  # what a module reads and writes (module_input_name)
_MASKED_LM = "MLMTransformer"  # the class of a Transformer with its masked-LM head, until version 5.4
# By the task of a Transformer, the method's output that it takes and what it calls it (TRANSFORMER_TASK_DEFAULTS)
_FEATURES_TASK, _LM_TASK, _SCORES_TASK = "feature-extraction", "fill-mask", "sequence-classification"
_OUTPUTS = {
    _FEATURES_TASK: ("last_hidden_state", "token_embeddings"),
    _LM_TASK: ("logits", "token_embeddings"),
    _SCORES_TASK: ("logits", "scores"),
}
_WITH_SETTINGS = ("Pooling", "Dense", "LayerNorm")  # modules that sentence-transformers does not make without
_HARMLESS_SETTINGS = ("unpad_inputs",)
_FIRST_WITHOUT_STRIP = (5, 4)  # Transformer.preprocess; Transformer.tokenize stripped texts until 5.3
_DEFAULT_PROMPTS = {"query": "", "document": ""}  # SentenceTransformer.__init__
_TORCH_CLASSES = {
    "celu": "CELU", "elu": "ELU", "gelu": "GELU", "hardsigmoid": "Hardsigmoid", "hardswish": "Hardswish",
    "hardtanh": "Hardtanh", "leakyrelu": "LeakyReLU", "logsigmoid": "LogSigmoid", "mish": "Mish", "relu": "ReLU",
    "relu6": "ReLU6", "selu": "SELU", "sigmoid": "Sigmoid", "silu": "SiLU", "softmax": "Softmax",
    "softplus": "Softplus", "softsign": "Softsign", "tanh": "Tanh",
}  # fmt: skip


# Where the files are


def transformer_folder(path: Path) -> Path:
    """The folder of a repository's Transformer: `path` itself, or as in early versions a folder in it.

    Args:
      path: a file, or a directory of any kind.

    Raises:
      CheckpointError: modules.json is damaged.
    """
    if not path.is_dir() or not (path / MODULES_FILE).is_file():
        return path
    return path / _entries(path / MODULES_FILE)[0].folder


def repository_root(folder: Path) -> Path:
    """The repository of a Transformer's folder."""
    parent = folder.parent
    if not (folder / MODULES_FILE).is_file() and (parent / MODULES_FILE).is_file():
        return parent if transformer_folder(parent) == folder else folder
    return folder


@dataclass(frozen=True)
class _Entry:
    """A module in modules.json: its class, without the path of the class, and its folder in the repository."""

    kind: str
    folder: str


def _entries(path: Path) -> list[_Entry]:
    try:
        listed = json.loads(read_text(path))
        entries = [(module["type"], module.get("path", "")) for module in listed]
    except CheckpointError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise CheckpointError(
            f"{path} is damaged: it should be a list of modules, each with a type and a path"
        ) from None
    if not 0 < len(entries) <= _MAX_MODULES:
        raise CheckpointError(f"{path} lists {len(entries)} modules, expected from 1 to {_MAX_MODULES}")
    found = []
    for kind, folder in entries:
        if not isinstance(kind, str) or not isinstance(folder, str) or not _is_inside(folder):
            raise CheckpointError(f"{path} is damaged: {shortened(str(folder))} is not a folder of the repository")
        if not kind.startswith(_OWN_MODULES):
            raise CheckpointError(
                f"{path} has a module of its own code, {shortened(kind)}, which is never run; without {MODULES_FILE} "
                "the network alone can be converted"
            )
        name = kind.rpartition(".")[2]
        found.append(_Entry("Transformer" if name in _EARLY_TRANSFORMERS else name, folder))
    return found


def _is_inside(folder: str) -> bool:
    parts = PurePosixPath(folder).parts
    return ".." not in parts and not folder.startswith("/") and "\\" not in folder and ":" not in folder


# Reading


@dataclass(frozen=True)
class Reading:
    """What a repository says of the use of its model.

    Attributes:
      usage: the same in our terms.
      files: the files that were read, relative to `root`.
      root: the repository's directory.
    """

    usage: Usage
    files: tuple[str, ...]
    root: Path


@dataclass
class _Repository:
    """The repository that is read, and what has been read of it."""

    root: Path
    folder: Path
    notes: list[str]
    files: list[Path] = field(default_factory=list)

    def json(self, path: Path) -> dict[str, Any]:
        """The content of a file; empty if there is none."""
        if not path.is_file():
            return {}
        self.files.append(path)
        return read_json(path)


def read(
    folder: Path,
    settings: Mapping[str, Any],
    *,
    config: RobertaConfig,
    head: HeadConfig | None,
    notes: list[str],
    tokenizer_json: str | None = None,
) -> Reading:
    """Reads how a model that Transformers saved is used.

    Args:
      folder: the directory of its weights and config.json.
      settings: the content of config.json, with Transformers' defaults.
      config: of the network.
      head: its sentence head; None if it has none.
      notes: a list to which messages for the user are appended.
      tokenizer_json: the tokenizer, as `tokenizers` writes it; None for a model without one.

    Raises:
      CheckpointError: the files are damaged, or ask for what nothing here computes.
    """
    repository = _Repository(repository_root(folder), folder, notes)
    model = repository.json(repository.root / SETTINGS_FILE)
    entries = _entries(repository.root / MODULES_FILE) if (repository.root / MODULES_FILE).is_file() else []
    kind = str(model.get("model_type", "SentenceTransformer"))
    is_of_pylate = _is_of_pylate(kind, model, entries)
    kind = _MULTI_VECTOR if is_of_pylate else kind
    if entries:
        repository.files.append(repository.root / MODULES_FILE)
        if kind not in _KINDS:
            raise CheckpointError(
                f"{repository.root} is a {shortened(kind)} of sentence-transformers; only "
                f"{', '.join(_KINDS)} are supported"
            )
        if entries[0].kind not in ("Transformer", _MASKED_LM):
            raise _unsupported(repository, entries[0])
    task = _task(kind, entries)
    transformer = _transformer(repository, task, kind == _MULTI_VECTOR) if entries else {}
    tokenizer = repository.json(folder / TOKENIZER_CONFIG_FILE)
    limit = _max_length(settings, tokenizer, transformer)
    scoring = None if head is None else _scoring(settings, model, head, notes)
    embedding: Embedding | None = None
    params: tuple[ModuleParams, ...] = ()
    if entries and kind != "CrossEncoder":
        if kind == _MULTI_VECTOR:
            modules, params = _multi_vector_modules(
                repository, entries[1:], config, _pylate_lengths(model) | transformer, model if is_of_pylate else None
            )
            splitter = None if tokenizer_json is None else parse(tokenizer_json)
            model = {**model, "prompts": _with_prefixes(repository, model, splitter)}
            _note_unknown_tokens(modules[0], splitter, notes)
        else:
            modules, params = _modules(repository, entries[1:], config, task)
        embedding = _embedding(repository, modules, transformer, model)
    elif len(entries) > 1:
        raise _unsupported(repository, entries[1])
    elif model.get("default_prompt_name"):
        raise CheckpointError(f"{repository.root} is a cross-encoder with a default prompt, which is not supported")
    token_params = {
        head: _linear(repository, path, config.hidden_size)
        for head, name in _TOKEN_HEAD_FILES.items()
        if (path := repository.root / name).is_file()
    }
    files = sorted({os.path.relpath(path, repository.root) for path in repository.files})
    length = None if math.isinf(limit) else min(int(limit), config.max_positions)
    usage = Usage(length, embedding, scoring, params, token_params)
    try:
        usage.check(config)
    except InputError as error:
        raise CheckpointError(f"{repository.root}: {error}") from None
    return Reading(usage, tuple(files), repository.root)


def _unsupported(repository: _Repository, entry: _Entry) -> CheckpointError:
    return CheckpointError(
        f"{repository.root / MODULES_FILE} has a module {shortened(entry.kind)} that nothing here computes; "
        "supported are Transformer, Pooling or SpladePooling, and then Dense, LayerNorm, Normalize and Dropout; or "
        "Transformer, Dense, Normalize and MultiVectorMask. "
        f"Without {MODULES_FILE} the network alone can be converted"
    )


def _task(kind: str, entries: Sequence[_Entry]) -> str:
    """What the Transformer gives, a key of _OUTPUTS."""
    if kind == "CrossEncoder":
        return _SCORES_TASK
    return _LM_TASK if any(entry.kind == "SpladePooling" for entry in entries) else _FEATURES_TASK


def _transformer(repository: _Repository, task: str, is_multi_vector: bool) -> dict[str, Any]:
    """The settings of the Transformer: max_seq_length, do_lower_case, model_max_length.

    Of a multi-vector encoder also those that there are of query_length, document_length and query_expansion.
    """
    path = next((path for name in TRANSFORMER_FILES if (path := repository.folder / name).is_file()), None)
    settings = {} if path is None else repository.json(path)
    found = {
        "max_seq_length": settings.pop("max_seq_length", None),
        "do_lower_case": settings.pop("do_lower_case", None),
    }
    refused = []
    if is_multi_vector:
        found |= {key: settings.pop(key) for key in _PYLATE_LENGTHS if key in settings}
        refused += ["do_lower_case"] if found["do_lower_case"] else []
    for key in _ARGUMENTS:
        given = settings.pop(key, None) or {}
        if not isinstance(given, dict):
            refused.append(key)
            continue
        if key in _TOKENIZER_ARGUMENTS and "model_max_length" in given:
            found["model_max_length"] = given.pop("model_max_length")
        refused += [f"{key}.{name}" for name in given if name not in _HARMLESS_ARGUMENTS]
    if settings.pop("transformer_task", task) != task:
        refused.append("transformer_task")
    method_output, output = _OUTPUTS[task]
    if settings.pop("module_output_name", output) != output:
        refused.append("module_output_name")
    expected = {"method": "forward", "method_output_name": method_output}
    modalities = settings.pop("modality_config", {"text": expected})
    text = modalities.get("text") if isinstance(modalities, dict) else None
    if not isinstance(text, dict) or any(text.get(name, value) != value for name, value in expected.items()):
        refused.append("modality_config")
    refused += [key for key, value in settings.items() if value is not None and key not in _HARMLESS_SETTINGS]
    if refused:
        raise CheckpointError(f"{path} has {', '.join(map(shortened, refused[:5]))}, which is not supported")
    return found


def _max_length(settings: Mapping[str, Any], tokenizer: Mapping[str, Any], transformer: Mapping[str, Any]) -> float:
    """The maximum length of an input in tokens; infinite if no file gives one (Transformer.__init__)."""
    explicit = transformer.get("max_seq_length")
    if explicit is not None:
        limits = [explicit]
    else:
        limits = [
            settings.get("max_position_embeddings"),
            transformer.get("model_max_length", tokenizer.get("model_max_length")),
        ]
    numbers = [limit for limit in limits if isinstance(limit, int | float) and not isinstance(limit, bool)]
    if len(numbers) < sum(limit is not None for limit in limits) or any(not limit >= 1 for limit in numbers):
        raise CheckpointError(f"the maximum length of the model should be a positive number, got {limits}")
    return min(numbers, default=math.inf)


def _embedding(
    repository: _Repository, modules: tuple[Module, ...], transformer: Mapping[str, Any], model: Mapping[str, Any]
) -> Embedding:
    is_sparse, is_multi_vector = (isinstance(modules[0], kind) for kind in (SpladePooling, MultiVectorMask))
    similarity = model.get("similarity_fn_name") or ("dot" if is_sparse else SIMILARITIES[0])
    if is_multi_vector and similarity not in MULTI_VECTOR_SIMILARITIES:
        similarity = MULTI_VECTOR_SIMILARITIES[0]
    prompts = model.get("prompts") or {}
    try:
        return Embedding(
            modules,
            lower_case=bool(transformer.get("do_lower_case")),
            prompts={**_DEFAULT_PROMPTS, **{name: text or "" for name, text in prompts.items()}},
            default_prompt=model.get("default_prompt_name"),
            similarity=similarity,
            truncate_dim=None if is_multi_vector else model.get("truncate_dim"),
            max_active_dims=model.get("max_active_dims") if is_sparse else None,
            strip=not is_multi_vector and _version(model) < _FIRST_WITHOUT_STRIP,
        )
    except (InputError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{repository.root / SETTINGS_FILE}: {error}") from None


def _version(model: Mapping[str, Any]) -> tuple[int, ...]:
    """The version of sentence-transformers that wrote a repository; () if it does not say."""
    versions = model.get("__version__")
    named = versions.get("sentence_transformers") if isinstance(versions, dict) else None
    return tuple(int(number) for number in re.findall("[0-9]{1,9}", str(named or ""))[:2])


def _scoring(settings: Mapping[str, Any], model: Mapping[str, Any], head: HeadConfig, notes: list[str]) -> Scoring:
    """The activation of a cross-encoder (CrossEncoder.get_default_activation_fn)."""
    own = settings.get("sentence_transformers")
    named = own.get("activation_fn") if isinstance(own, dict) else None
    named = model.get("activation_fn") or named or settings.get("sbert_ce_default_activation_function")
    is_regression = settings.get("problem_type") == "regression"
    if named is None:
        return Scoring(head.name, None, is_regression)
    if not str(named).startswith("torch."):
        notes.append(
            f"the activation {shortened(str(named))} is not one of torch's: as in sentence-transformers, it is not "
            "imported, and the default takes its place"
        )
        return Scoring(head.name, None, is_regression)
    return Scoring(head.name, _activation(named), is_regression)


def _activation(path: Any) -> str:
    """The name of an activation, from the path of its class in torch."""
    name = str(path).rpartition(".")[2].lower()
    if not str(path).startswith("torch.nn.") or name not in ACTIVATIONS:
        raise CheckpointError(
            f"the activation {shortened(str(path))} is not supported; supported are torch.nn's {', '.join(ACTIVATIONS)}"
        )
    return name


# The modules after the Transformer


def _modules(
    repository: _Repository, entries: Sequence[_Entry], config: RobertaConfig, task: str
) -> tuple[tuple[Module, ...], tuple[ModuleParams, ...]]:
    expected = "SpladePooling" if task == _LM_TASK else "Pooling"
    if not entries or entries[0].kind != expected:
        raise CheckpointError(f"{repository.root / MODULES_FILE} should have a {expected} after the Transformer")
    if task == _LM_TASK and not config.lm_head:
        raise CheckpointError(f"{repository.root / MODULES_FILE} has a SpladePooling, but {NO_LM_HEAD}")
    modules: list[Module] = []
    params: list[ModuleParams] = []
    size = config.vocab_size if task == _LM_TASK else config.hidden_size
    for entry in entries:
        if entry.kind == "Dropout":  # without effect in evaluation
            repository.json(repository.root / entry.folder / _CONFIG_FILE)
            continue
        if entry.kind not in _READERS or (entry.kind.endswith("Pooling") and modules):
            raise _unsupported(repository, entry)
        module, arrays = _module(repository, entry, size, _SENTENCE)
        modules.append(module)
        params.append(arrays)
        size = module.size(size)
    return tuple(modules), tuple(params)


def _module(repository: _Repository, entry: _Entry, size: int, name: str) -> tuple[Module, ModuleParams]:
    """A module that reads and writes what is called `name`, and its parameters."""
    folder = repository.root / entry.folder
    if entry.kind in _WITH_SETTINGS and not (folder / _CONFIG_FILE).is_file():
        raise CheckpointError(f"{folder / _CONFIG_FILE} is missing, which says what {entry.kind} does; copy it too")
    try:
        settings = repository.json(folder / _CONFIG_FILE)
        if entry.kind in ("Dense", "Normalize"):
            _require_name(entry.kind, settings, name)
        module = _READERS[entry.kind](folder, settings, size)
    except (InputError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / _CONFIG_FILE}: {shortened(str(error))}") from None
    return module, _module_params(repository, folder, module, size)


def _pooling(folder: Path, settings: Mapping[str, Any], size: int) -> Pooling:
    given = dict(settings)
    _require_size(folder, [given.pop(key, size) for key in ("word_embedding_dimension", "embedding_dimension")], size)
    include_prompt = given.pop("include_prompt", True)
    flags = {mode: given.pop(key, None) for key, mode in _POOLING_KEYS.items()}
    named = given.pop("pooling_mode", None)
    if given:
        raise InputError(f"the setting {shortened(min(given))} is not supported")
    if named is None:
        flags["mean"] = True if flags["mean"] is None else flags["mean"]
        named = [mode for mode in POOLING_MODES if flags[mode]]
    modes = [named] if isinstance(named, str) else named
    return Pooling(tuple(str(mode).lower() for mode in modes), bool(include_prompt))


def _splade_pooling(folder: Path, settings: Mapping[str, Any], size: int) -> SpladePooling:
    given = dict(settings)
    sizes = [given.pop(key, None) for key in ("word_embedding_dimension", "embedding_dimension")]
    _require_size(folder, [each for each in sizes if each is not None], size)
    strategy, activation = given.pop("pooling_strategy", "max"), given.pop("activation_function", "relu")
    if given:
        raise InputError(f"the setting {shortened(min(given))} is not supported")
    return SpladePooling(size, strategy, activation)


def _dense(folder: Path, settings: Mapping[str, Any], size: int) -> Dense:
    _require_size(folder, [settings.get("in_features")], size)
    return Dense(
        settings.get("out_features", 0),
        _activation(settings.get("activation_function", "torch.nn.modules.activation.Tanh")),
        bool(settings.get("bias", True)),
        bool(settings.get("use_residual", False)),
    )


def _layer_norm(folder: Path, settings: Mapping[str, Any], size: int) -> LayerNorm:
    _require_size(folder, [settings.get("dimension")], size)
    return LayerNorm()


def _normalize(folder: Path, settings: Mapping[str, Any], size: int) -> Normalize:
    return Normalize()


_READERS: dict[str, Callable[[Path, Mapping[str, Any], int], Module]] = {
    "Pooling": _pooling,
    "SpladePooling": _splade_pooling,
    "Dense": _dense,
    "LayerNorm": _layer_norm,
    "Normalize": _normalize,
}


def _require_size(folder: Path, given: Sequence[Any], size: int) -> None:
    if wrong := [each for each in given if each != size]:
        raise InputError(f"it takes vectors of {shortened(str(wrong[0]))} numbers, but gets {size}")


def _require_name(kind: str, settings: Mapping[str, Any], name: str) -> None:
    """Requires that a Dense or Normalize reads and writes what is called `name`.

    A Dense of a multi-vector encoder reads vectors of tokens if nothing is said (_get_module_init_defaults).
    """
    given = settings.get("module_input_name") or (name if kind == "Dense" else _SENTENCE)
    for key, value in (("module_input_name", given), ("module_output_name", settings.get("module_output_name"))):
        if value not in (None, name):
            raise InputError(f"{key} must be {name}, got {shortened(str(value))}")


def _tensor_names(module: Module) -> dict[str, str]:
    """The names of a module's tensors in sentence-transformers, by our names of its parameters."""
    if isinstance(module, LayerNorm):
        return {"scale": "norm.weight", "bias": "norm.bias"}
    return {"kernel": "linear.weight", "bias": "linear.bias", "residual": "residual.weight"}


def _module_params(repository: _Repository, folder: Path, module: Module, size: int) -> ModuleParams:
    shapes = module.shapes(size)
    if not shapes:
        return {}
    path = next((path for name in _WEIGHT_FILES if (path := folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(f"{folder} has no weights ({' or '.join(_WEIGHT_FILES)}), which its module needs")
    repository.files.append(path)
    tensors = _tensors(path)
    names = {name: _tensor_names(module)[name] for name in shapes}
    if tensors.keys() != set(names.values()):
        found = ", ".join(map(shortened, sorted(tensors)[:5])) or "none"
        raise CheckpointError(f"{path} should have the tensors {', '.join(names.values())}, it has {found}")
    params = {}
    for name, shape in shapes.items():
        tensor = tensors[names[name]]
        expected = shape[::-1]  # torch's Linear is [outputs, inputs]
        if tensor.shape != expected or not is_floating(tensor.dtype):
            raise CheckpointError(
                f"{path}: {names[name]} is {tensor.dtype} {list(tensor.shape)}, expected floating point of shape "
                f"{list(expected)}"
            )
        params[name] = np.ascontiguousarray(tensor.read().T)
    return params


def _linear(repository: _Repository, path: Path, size: int) -> ModuleParams:
    """The parameters of a linear layer that a PyTorch file has alone."""
    repository.files.append(path)
    tensors = _tensors(path)
    weight, bias = tensors.get("weight"), tensors.get("bias")
    if weight is None or bias is None or len(weight.shape) != 2 or weight.shape != (*bias.shape, size):
        raise CheckpointError(f"{path} should have a weight of {size} columns and a bias")
    if not is_floating(weight.dtype) or not is_floating(bias.dtype):
        raise CheckpointError(f"{path} has {weight.dtype} and {bias.dtype}, expected floating point")
    return {"kernel": np.ascontiguousarray(weight.read().T), "bias": np.array(bias.read())}


def _tensors(path: Path) -> dict[str, LazyTensor]:
    if path.suffix == ".safetensors":
        return dict(read_tensors(path))
    state = torch_file.load(path)
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} is a PyTorch file but not a state dict")
    tensors: dict[str, LazyTensor] = dict(torch_file.tensors(state))
    check_fits_files(str(path), [path], tensors)
    return tensors


# Multi-vector encoders


def _is_of_pylate(kind: str, model: Mapping[str, Any], entries: Sequence[_Entry]) -> bool:
    is_projected = [entry.kind for entry in entries[1:2]] == ["Dense"]
    has_prefix = any(key in model for key in _PYLATE_PREFIXES)
    return kind == _PYLATE or (kind == "SentenceTransformer" and is_projected and has_prefix)


def _multi_vector_modules(
    repository: _Repository,
    entries: Sequence[_Entry],
    config: RobertaConfig,
    lengths: Mapping[str, Any],
    pylate: Mapping[str, Any] | None,
) -> tuple[tuple[Module, ...], tuple[ModuleParams, ...]]:
    """The modules after the Transformer, the MultiVectorMask first: the others do not read what it writes.

    Args:
      repository, entries, config: as in `_modules`.
      lengths: query_length, document_length and query_expansion, where they are given.
      pylate: SETTINGS_FILE of a repository that PyLate wrote, whose last two modules are not listed.
    """
    path = repository.root / MODULES_FILE
    settings: dict[str, Any] | None = None
    modules: list[Module] = []
    params: list[ModuleParams] = []
    size = config.hidden_size
    for entry in entries:
        if entry.kind == MultiVectorMask.__name__ and settings is None:
            path = repository.root / entry.folder / _CONFIG_FILE
            settings = repository.json(path)
        elif entry.kind in ("Dense", "Normalize"):
            module, arrays = _module(repository, entry, size, _TOKENS)
            modules.append(module)
            params.append(arrays)
            size = module.size(size)
        else:
            raise _unsupported(repository, entry)
    if pylate is not None:
        path, words = repository.root / SETTINGS_FILE, pylate.get("skiplist_words")
        settings = {"skiplist_words": list(string.punctuation) if words is None else words}
        modules.append(Normalize())
        params.append({})
    try:
        mask = _multi_vector_mask(settings, lengths)
    except (InputError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {shortened(str(error))}") from None
    return (mask, *modules), ({}, *params)


def _multi_vector_mask(settings: Mapping[str, Any] | None, lengths: Mapping[str, Any]) -> MultiVectorMask:
    """The MultiVectorMask of these settings, None if a repository has none, and of the Transformer's lengths."""
    given = dict(settings or {})
    words, tasks = given.pop("skiplist_words", None), given.pop("skiplist_tasks", None)
    if unknown := [key for key, value in given.items() if value]:
        raise InputError(f"the setting {shortened(min(unknown))} is not supported")
    expansion = lengths.get("query_expansion")
    if not isinstance(expansion, Mapping | None):
        raise InputError(f"query_expansion must be an object, got {shortened(str(expansion))}")
    expansion = None if expansion is None else QueryExpansion(**expansion)
    if settings is None and expansion is not None and not expansion.attend:
        raise InputError("query_expansion without attention needs a MultiVectorMask, which is not listed")
    return MultiVectorMask(
        lengths.get("query_length"),
        lengths.get("document_length"),
        expansion,
        () if words is None else words,
        ("document",) if tasks is None else (tasks,) if isinstance(tasks, str) else tasks,
    )


def _pylate_lengths(model: Mapping[str, Any]) -> dict[str, Any]:
    """What SETTINGS_FILE says in place of the Transformer's settings (MultiVectorEncoder._parse_model_config)."""
    found = {key: model[key] for key in _PYLATE_LENGTHS if model.get(key) is not None}
    if not any(key in model for key in _PYLATE_MARKERS):
        return found
    if "query_expansion" in model:
        found["query_expansion"] = model["query_expansion"]
    elif model.get("do_query_expansion") is False:
        found["query_expansion"] = None
    else:
        attend = model.get("attend_to_expansion_tokens", model.get("attend_to_mask_tokens"))
        length = found.pop("query_length", None) or _PYLATE_QUERY_LENGTH
        found["query_expansion"] = {"strategy": "fixed", "attend": bool(attend), "length": length}
    return found


def _with_prefixes(repository: _Repository, model: Mapping[str, Any], tokenizer: Any) -> dict[str, str | None]:
    """The prompts, with PyLate's prefixes before them.

    Raises:
      CheckpointError: a prefix is a token that the tokenizer does not find in text.
    """
    prompts = dict(model.get("prompts") or {})
    for key, role in _PYLATE_PREFIXES.items():
        if key in model:
            prefix = model[key] or ""
            prompts[role] = prefix + (prompts.get(role) or "").removeprefix(prefix)
            if tokenizer is not None and (token := _split_token(prefix, tokenizer)) is not None:
                raise CheckpointError(
                    f"{repository.root / SETTINGS_FILE} has the {key} {shortened(repr(prefix))}: the token {token!r} "
                    "is split by the tokenizer where a text begins with it, and nothing here inserts it by its id"
                )
    return prompts


def _split_token(prefix: str, tokenizer: Any) -> str | None:
    """The token that a prefix is, or begins with, if text is not encoded as it (_register_prefix_tokens)."""
    for token in (prefix, *prefix.split(None, 1)[:1]):
        if prefix.split() and tokenizer.token_to_id(token) is not None:
            return None if tokenizer.encode(token, add_special_tokens=False).tokens == [token] else token
    return None


def _note_unknown_tokens(mask: Module, tokenizer: Any, notes: list[str]) -> None:
    if isinstance(mask, MultiVectorMask) and tokenizer is not None:
        unknown = [repr(token) for token in mask.skiplist if tokenizer.token_to_id(token) is None]
        if unknown:
            listed = shortened(", ".join(unknown))
            notes.append(f"the vocabulary does not have all tokens of the skiplist; left out are: {listed}")


# What else is in a repository

_UNREAD = (  # the reasons why files are not read, by what their paths match
    (r"(README|LICENSE|NOTICE|\.git)[^/]*|.*\.(md|txt|pdf|png|jpe?g|svg|gif)", "documentation"),
    (r"(onnx|openvino|coreml)/.*|.*\.(onnx|onnx_data|xml|ot|tflite|gguf|mlmodel)", "the model for another program"),
    (r".*\.(safetensors|bin|msgpack|h5|pt|pth|ckpt)(\.index\.json)?", "weights that are not needed, or a copy"),
    (r"(training_args|trainer_state|optimizer|scheduler|rng_state|eval|.*results).*|.*\.(csv|tsv|log)", "of training"),
    (r".*\.py", "code, which is never run"),
    (r"special_tokens_map\.json|vocab\.txt|spiece\.model|.*\.model", "the tokenizer is read from its other files"),
)  # fmt: skip
_MAX_LISTED = 1000  # files


def unread(root: Path, read: Sequence[str]) -> dict[str, str]:
    """The files of a repository that were not read, each with the reason.

    Args:
      root: the repository's directory.
      read: the files that were read, relative to it.
    """
    known = set(read)
    return {name: _reason(name) for name in _files(root) if name not in known}


def _files(root: Path) -> Iterator[str]:
    count = 0
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                count += 1
                if count > _MAX_LISTED:
                    return
                yield Path(folder, name).relative_to(root).as_posix()


def _reason(name: str) -> str:
    return next((reason for pattern, reason in _UNREAD if re.fullmatch(pattern, name)), "nothing here reads it")


# Writing


_WRITTEN_VERSION, _WRITTEN_WITHOUT_STRIP = "5.1.2", "5.4.0"
_WRITTEN_MULTI_VECTOR = "6.2.0"
_DENSE_MODULES, _SPARSE_MODULES = "sentence_transformers.models", "sentence_transformers.sparse_encoder.models"
_BASE_MODULES = "sentence_transformers.base.modules"  # since 5.4
_MULTI_VECTOR_MODULES = "sentence_transformers.multi_vector_encoder.modules"


def write_limits(usage: Usage, directory: Path, head: HeadConfig | None, max_positions: int) -> None:
    """Adds the maximum length, and a cross-encoder's activation, to the files that Transformers reads.

    Files that give this maximum length already, as a source's own do, stay as they are.

    Args:
      usage: how the model is used.
      directory: with config.json and, if the model has a tokenizer, tokenizer_config.json.
      head: the head that the directory has.
      max_positions: length of the longest input that the network takes.
    """
    tokenizer = directory / TOKENIZER_CONFIG_FILE
    if usage.max_length is not None and tokenizer.is_file():
        limit = _max_length(read_json(directory / _CONFIG_FILE), read_json(tokenizer), {})
        if min(limit, max_positions) != usage.max_length:
            _update(tokenizer, model_max_length=usage.max_length)
    scoring = None if head is None else usage.scoring_of(head.name)
    if head is None or scoring is None:
        return
    if head.problem == "regression" and not scoring.is_regression:
        _update(directory / _CONFIG_FILE, problem_type=None)
    if scoring.activation is not None:
        own = {"activation_fn": _torch_path(scoring.activation), "version": _WRITTEN_VERSION}
        _update(directory / _CONFIG_FILE, sentence_transformers=own)


def write(usage: Usage, directory: Path, config: RobertaConfig) -> None:
    """Adds a sentence encoder's files to a directory that Transformers can load.

    They are as version 5.1 writes them, or for a multi-vector encoder 6.2.
    """
    embedding = usage.embedding or Embedding()
    mask = embedding.modules[0]
    lengths = _lengths(mask) if isinstance(mask, MultiVectorMask) else {}
    kind, version = "SentenceTransformer", _WRITTEN_VERSION if embedding.strip else _WRITTEN_WITHOUT_STRIP
    if embedding.is_sparse:
        kind = "SparseEncoder"
    elif embedding.is_multi_vector:
        kind, version = _MULTI_VECTOR, _WRITTEN_MULTI_VECTOR
    _write_json(
        directory / TRANSFORMER_FILES[0],
        {"max_seq_length": usage.max_length, "do_lower_case": embedding.lower_case, **lengths},
    )
    _write_json(
        directory / SETTINGS_FILE,
        {
            "model_type": kind,
            "__version__": {"sentence_transformers": version},
            "prompts": dict(embedding.prompts),
            "default_prompt_name": embedding.default_prompt,
            "similarity_fn_name": embedding.similarity,
            **({} if embedding.truncate_dim is None else {"truncate_dim": embedding.truncate_dim}),
            **({} if embedding.max_active_dims is None else {"max_active_dims": embedding.max_active_dims}),
        },
    )
    first = f"{_SPARSE_MODULES}.{_MASKED_LM}" if embedding.is_sparse else _path("Transformer", embedding)
    entries = [{"idx": 0, "name": "0", "path": "", "type": first}]
    size = config.hidden_size
    for number, (module, params) in enumerate(zip(embedding.modules, usage.module_params or ({},), strict=True), 1):
        kind = type(module).__name__
        folder = directory / f"{number}_{kind}"
        folder.mkdir()
        settings = _settings(module, size)
        if embedding.is_multi_vector and kind in ("Dense", "Normalize"):
            settings |= {"module_input_name": _TOKENS, "module_output_name": _TOKENS}
        if settings:
            _write_json(folder / _CONFIG_FILE, settings)
        if params:
            names = _tensor_names(module)
            tensors = {names[name]: Values(np.ascontiguousarray(np.asarray(value).T)) for name, value in params.items()}
            write_tensors(folder / _WEIGHT_FILES[0], tensors, metadata={"format": "pt"})
        entries.append({"idx": number, "name": str(number), "path": folder.name, "type": _path(kind, embedding)})
        size = module.size(size)
    _write_json(directory / MODULES_FILE, entries)


def _path(kind: str, embedding: Embedding) -> str:
    """The path of a module's class, in the version that writes such an encoder."""
    if kind == MultiVectorMask.__name__:
        return f"{_MULTI_VECTOR_MODULES}.multi_vector_mask.{kind}"
    if embedding.is_multi_vector:
        return f"{_BASE_MODULES}.{kind.lower()}.{kind}"
    return f"{_SPARSE_MODULES if kind == SpladePooling.__name__ else _DENSE_MODULES}.{kind}"


def _lengths(mask: MultiVectorMask) -> dict[str, Any]:
    """What a Transformer's settings say of queries and documents."""
    expansion = None if mask.expansion is None else asdict(mask.expansion)
    given = {
        "query_length": mask.query_length, "document_length": mask.document_length, "query_expansion": expansion
    }  # fmt: skip
    return {key: value for key, value in given.items() if value is not None}


def _settings(module: Module, size: int) -> dict[str, Any]:
    match module:
        case Pooling(modes, include_prompt):
            if list(modes) != [mode for mode in POOLING_MODES if mode in modes]:
                raise CheckpointError(
                    f"sentence-transformers 5.1 concatenates poolings in the order {', '.join(POOLING_MODES)}; this "
                    f"model has {', '.join(modes)}"
                )
            flags = {key: mode in modes for key, mode in _POOLING_KEYS.items()}
            return {"word_embedding_dimension": size, **flags, "include_prompt": include_prompt}
        case SpladePooling(vocab_size, strategy, activation):
            settings = {"pooling_strategy": strategy, "activation_function": activation}
            return {**settings, "word_embedding_dimension": vocab_size}
        case MultiVectorMask(skiplist=words, skiplist_roles=roles):
            return {"skiplist_words": list(words), "skiplist_tasks": list(roles), "keep_only_token_ids": None}
        case Dense(outputs, activation, bias, residual):
            if residual:
                raise CheckpointError("sentence-transformers 5.1 has no Dense with a residual connection")
            sizes = {"in_features": size, "out_features": outputs}
            return {**sizes, "bias": bias, "activation_function": _torch_path(activation)}
        case LayerNorm():
            return {"dimension": size}
    return {}


def _torch_path(activation: str) -> str:
    """The path of an activation's class in torch, as sentence-transformers writes it."""
    if activation == "identity":
        return "torch.nn.modules.linear.Identity"
    return f"torch.nn.modules.activation.{_TORCH_CLASSES[activation]}"


def _update(path: Path, **settings: Any) -> None:
    _write_json(path, {**(read_json(path) if path.is_file() else {}), **settings})


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
