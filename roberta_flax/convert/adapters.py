"""Merges an adapter that PEFT trained by low rank (LoRA) into the network that it is for.

  adapter_config.json                          how it was trained, and the name of the network (base_model_name_or_path)
  adapter_model.safetensors, adapter_model.bin its tensors, by the names of the network's modules
  head.json, trained_on.json                   of an adapter that was trained here: its head, and what it was trained on

A module's weight W becomes W + s B A, where s is alpha / r or, rank-stabilized, alpha / sqrt(r) (Hu et al., 2021;
Kalajdzievski, 2023); with magnitudes, rows are then scaled to these norms (DoRA; Liu et al., 2024). Other tensors, such
as those of a classifier, replace the network's own. What an adapter says beyond that is refused by name.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from roberta_flax.checkpoint.converted import TRAINED_ON_FILE
from roberta_flax.checkpoint.download import MODELS
from roberta_flax.checkpoint.tensors import LazyTensor, read_tensors
from roberta_flax.convert import torch_file
from roberta_flax.convert.names import HF_LM_HEAD_WEIGHT, HF_WORD_EMBEDDINGS, modernize_huggingface
from roberta_flax.convert.source import check_fits_files, integer, is_floating, number, read_json
from roberta_flax.convert.views import View
from roberta_flax.errors import CheckpointError, InputError, shortened
from roberta_flax.nn.config import HeadConfig

CONFIG_FILE = "adapter_config.json"
WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
HEAD_FILE = "head.json"  # of an adapter that was trained here: its HeadConfig
OWN_FILES = (HEAD_FILE, TRAINED_ON_FILE)

_OTHERWISE = "; where PEFT can merge it, save the model after merge_and_unload()"
PREFIX = "base_model.model."  # LoraModel in a PeftModel
_CHUNK = 1 << 22  # elements of a weight merged at a time
_READ = {
    "peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "task_type",
    "auto_mapping", "base_model_name_or_path", "revision", "init_lora_weights", "modules_to_save",
}  # fmt: skip
# Settings that choose what is trained and how, which the tensors say too, or that have no effect in evaluation. For a
# linear layer of torch, PEFT sets fan_in_fan_out to false.
_WITHOUT_EFFECT = {
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "bias", "lora_bias", "lora_dropout",
    "fan_in_fan_out", "inference_mode", "peft_version", "megatron_core", "loftq_config", "eva_config", "corda_config",
    "lora_ga_config", "qalora_group_size", "runtime_config",
}  # fmt: skip
_INITIALIZATIONS = (None, True, False, "gaussian", "orthogonal", "eva")  # that leave the network's own weights alone
_CLASS_SUFFIXES = {  # TaskType -> the class that PEFT loads
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
    "FEATURE_EXTRACTION": "Model",
}
_POOLER = "roberta.pooler."
_POOLER_WEIGHT = f"{_POOLER}dense.weight"
_HEAD_PARTS = ("lm_head.", "classifier.", "qa_outputs.", _POOLER)
_PARTS_OF_CLASS = {
    "Model": (_POOLER,),
    "ForMaskedLM": ("lm_head.",),
    "ForSequenceClassification": ("classifier.",),  # in BERT, and its pooler
    "ForTokenClassification": ("classifier.",),
    "ForQuestionAnswering": ("qa_outputs.",),
    "ForMultipleChoice": ("classifier.", _POOLER),
}
_PATTERN_CHARACTERS = re.compile(r"[\w.^$|\\\[\]()?:*+-]{1,300}")  # of a rank's or an alpha's pattern
_MAX_PATTERNS = 1024

_LINEAR = re.compile(r"(.+)\.lora_([AB])\.(weight|bias)")
_EMBEDDING = re.compile(r"(.+)\.lora_embedding_([AB])")
_MAGNITUDE = re.compile(r"(.+)\.lora_magnitude_vector(?:\.weight)?")
_SAVED_COPY = re.compile(r"\.modules_to_save\.[^.]+")
_UNKNOWN = re.compile(r"(?:.*\.)?(?:lora_|token_adapter\b|trainable_tokens|modules_to_save\b|parametrizations\b).*")

Tensors = dict[str, tuple[str, LazyTensor]]  # by a name: the name in the file, and the tensor


@dataclass(frozen=True)
class Adapter:
    """An adapter's files.

    Attributes:
      folder: its directory.
      file: its tensors.
      settings: the content of adapter_config.json.
    """

    folder: Path
    file: Path
    settings: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path) -> Adapter | None:
        """The adapter in a directory, or that a file is the tensors of; None if there is none.

        Raises:
          CheckpointError: there is an adapter_config.json, but it is damaged or another library's, or there are no
            tensors.
        """
        folder = path if path.is_dir() else path.parent
        if not (folder / CONFIG_FILE).is_file() or not (path.is_dir() or path.name in WEIGHT_FILES):
            return None
        settings = read_json(folder / CONFIG_FILE)
        if "peft_type" not in settings:
            raise CheckpointError(
                f"{folder / CONFIG_FILE} has no peft_type, so it is not PEFT's; merge the adapter with the library "
                "that wrote it, and save the model"
            )
        files = [path] if path.is_file() else [folder / name for name in WEIGHT_FILES]
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            raise CheckpointError(f"{folder} has {CONFIG_FILE} but not {' or '.join(WEIGHT_FILES)}: copy it there")
        return cls(folder, file, settings)

    def own_files(self) -> list[str]:
        """The names of the files that only adapters have that were trained here."""
        return [name for name in OWN_FILES if (self.folder / name).is_file()]

    def head(self) -> HeadConfig | None:
        """The head of an adapter that was trained here; None of another.

        Raises:
          CheckpointError: head.json is damaged.
        """
        path = self.folder / HEAD_FILE
        if not path.is_file():
            return None
        fields = read_json(path)
        labels = fields.pop("labels", None)
        try:
            return HeadConfig(**fields, labels=tuple(labels))
        except (TypeError, InputError) as error:
            raise CheckpointError(f"{path} is damaged ({shortened(str(error))}); copy it again, or remove it") from None

    def base_model(self) -> str:
        """The path of the network, or "hf:org/name"; raises CheckpointError if the adapter does not name one.

        An adapter that was trained here may name a released model of fairseq.
        """
        name = self.settings.get("base_model_name_or_path")
        what_to_do = "convert it with base_model (--base-model), which names the model that it is for"
        if not isinstance(name, str) or not name:
            raise CheckpointError(f"{self.folder / CONFIG_FILE} has no base_model_name_or_path: {what_to_do}")
        if os.path.exists(name) or name in MODELS:
            return name
        if not re.fullmatch(r"[\w.-]{1,100}(/[\w.-]{1,100})?", name):
            raise CheckpointError(f"{self.folder} is an adapter for {shortened(name)}, which is not here: {what_to_do}")
        revision = self.settings.get("revision")
        return f"hf:{name}@{revision}" if isinstance(revision, str) and revision else f"hf:{name}"


@dataclass
class Contents:
    """The tensors of an adapter.

    Attributes:
      modules: those of each adapted module, by the module's name in the network and their own, such as "A".
      others: those that replace the network's, by name in the network.
      left_out: the names of those that others repeat, or that these replace.
    """

    modules: dict[str, Tensors] = field(default_factory=dict)
    others: Tensors = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Merged:
    """A network with its adapter.

    Attributes:
      tensors: of the network.
      settings: the content of config.json as the class has it that PEFT loads.
      left_out: the name in the file of each tensor that is no tensor of the network -> what became of it.
    """

    tensors: Tensors
    settings: dict[str, Any]
    left_out: dict[str, str]


def merge(adapter: Adapter, base: Tensors, settings: Mapping[str, Any], model_type: str, class_prefix: str) -> Merged:
    """Merges an adapter into a network.

    Args:
      adapter: the adapter.
      base: the network's tensors.
      settings: the content of config.json, with Transformers' defaults.
      model_type, class_prefix: the network's model_type, and the prefix of its classes' names.

    Raises:
      CheckpointError: the adapter is not a LoRA, has a setting or tensor that nothing here computes, or does not fit
        the network.
    """
    check(adapter)
    contents = read(adapter)
    modules, others = contents.modules, contents.others
    suffix = _class_suffix(adapter, [*modules, *others], settings, class_prefix)
    merged, left_out = _of_class(base, suffix, class_prefix, keep_pooler=model_type == "bert")
    changed = dict(settings, architectures=[class_prefix + suffix])
    if changed["tie_word_embeddings"] is not False and _unties(adapter, modules, merged):
        merged.setdefault(HF_LM_HEAD_WEIGHT, merged[HF_WORD_EMBEDDINGS])
        changed["tie_word_embeddings"] = False
    for name, (source, tensor) in others.items():
        modern = modernize_huggingface(name, model_type)
        if modern in merged:
            left_out[merged[modern][0]] = f"the adapter's {source} takes its place"
        merged[modern] = (source, tensor)
    for name, module in modules.items():
        if modernize_huggingface(f"{name}.weight", model_type).startswith(_POOLER) and _POOLER_WEIGHT not in merged:
            left_out |= {source: "of a pooler that the network does not have" for source, _ in module.values()}
        else:
            left_out |= _merge_module(adapter, name, module, merged, model_type)
    left_out |= dict.fromkeys(contents.left_out, "of a module that modules_to_save replaces, or a copy of the other")
    return Merged(merged, changed, left_out)


def check(adapter: Adapter) -> None:
    """Raises CheckpointError for settings that would change the network in a way that nothing here computes."""
    path, settings = adapter.folder / CONFIG_FILE, adapter.settings
    if settings.get("peft_type") != "LORA":
        raise CheckpointError(
            f"{path} has peft_type={shortened(str(settings.get('peft_type')))}; only LORA is supported{_OTHERWISE}"
        )
    if (how := settings.get("init_lora_weights")) not in _INITIALIZATIONS:
        raise CheckpointError(
            f"{path} has init_lora_weights={shortened(str(how))}, which changes the network's own weights{_OTHERWISE}"
        )
    task = settings.get("task_type")
    if task is not None and not (isinstance(task, str) and task in _CLASS_SUFFIXES):
        raise CheckpointError(
            f"{path} has task_type={shortened(str(task))}; supported are {', '.join(_CLASS_SUFFIXES)}, and none"
        )
    for name, value in settings.items():
        if value and name not in _READ | _WITHOUT_EFFECT:
            raise CheckpointError(
                f"{path} has {shortened(name)}={shortened(str(value), 80)}, which is not supported{_OTHERWISE}"
            )


def read(adapter: Adapter) -> Contents:
    contents = Contents()
    tensors = _tensors(adapter.file)
    for full_name, tensor in tensors.items():
        name = full_name.removeprefix(PREFIX)
        if not is_floating(tensor.dtype):
            raise CheckpointError(f"{adapter.file}: {shortened(full_name)} is {tensor.dtype}, expected floating point")
        if ".original_module." in name or _SAVED_COPY.sub("", full_name) in tensors.keys() - {full_name}:
            contents.left_out.append(full_name)  # of bias="all", which has every bias in the model
            continue
        if match := _LINEAR.fullmatch(name):
            key = match[2] if match[3] == "weight" else f"{match[2]}.bias"
        elif match := _EMBEDDING.fullmatch(name):
            key = f"embedding_{match[2]}"
        elif match := _MAGNITUDE.fullmatch(name):
            key = "magnitude"
        elif name == full_name or _UNKNOWN.fullmatch(name):
            raise CheckpointError(
                f"{adapter.file} has {shortened(full_name)}, which is none of the tensors of a LoRA{_OTHERWISE}"
            )
        else:
            contents.others[name.replace(".base_layer.", ".")] = (full_name, tensor)
            continue
        contents.modules.setdefault(match[1], {})[key] = (full_name, tensor)
    return contents


def _tensors(file: Path) -> dict[str, LazyTensor]:
    if file.suffix == ".safetensors":
        return dict(read_tensors(file))
    state = torch_file.load(file)
    if not isinstance(state, dict):
        raise CheckpointError(f"{file} is a PyTorch file but not a state dict")
    tensors: dict[str, LazyTensor] = dict(torch_file.tensors(state, file))
    check_fits_files(str(file), [file], tensors)
    return tensors


def _class_suffix(adapter: Adapter, names: list[str], settings: Mapping[str, Any], class_prefix: str) -> str:
    """The class that PEFT loads, without the prefix of its model type."""
    if (task := adapter.settings.get("task_type")) is not None:
        return _CLASS_SUFFIXES[task]
    mapping = adapter.settings.get("auto_mapping")
    named = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    if not isinstance(named, str):
        architectures = settings.get("architectures")
        named = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    if any(name.startswith(("embeddings.", "encoder.", "pooler.")) for name in names):  # an AutoModel
        return "Model"
    suffix = named.removeprefix(class_prefix)
    if suffix not in _PARTS_OF_CLASS:
        raise CheckpointError(
            f"{adapter.folder} is an adapter for the class {shortened(named) or 'of no name'}; supported are "
            f"{', '.join(class_prefix + each for each in _PARTS_OF_CLASS)}"
        )
    return suffix


def _of_class(base: Tensors, suffix: str, class_prefix: str, *, keep_pooler: bool) -> tuple[Tensors, dict[str, str]]:
    """The network's tensors that a class has, and why the others are left out."""
    kept = (*_PARTS_OF_CLASS[suffix], *([_POOLER] if keep_pooler and suffix == "ForSequenceClassification" else []))
    tensors: Tensors = {}
    left_out = {}
    for name, (source, tensor) in base.items():
        if name.startswith(_HEAD_PARTS) and not name.startswith(kept):
            left_out[source] = f"{class_prefix}{suffix}, which the adapter is for, has no such part"
        else:
            tensors[name] = (source, tensor)
    return tensors, left_out


def _unties(adapter: Adapter, modules: Mapping[str, Tensors], merged: Tensors) -> bool:
    """Whether the adapter changes only one of the token embedding and the LM head, which share a matrix."""
    if "lm_head.dense.weight" not in merged:
        return False
    saved = adapter.settings.get("modules_to_save")
    is_saved = isinstance(saved, list) and any(str(each).rpartition(".")[2] == "word_embeddings" for each in saved)
    return is_saved or any(name.endswith((".word_embeddings", "lm_head.decoder")) for name in modules)


# One module


def _merge_module(adapter: Adapter, name: str, module: Tensors, merged: Tensors, model_type: str) -> dict[str, str]:
    """Replaces a module's tensors by merged ones. Returns what became of the adapter's."""
    weight, bias = (modernize_huggingface(f"{name}.{kind}", model_type) for kind in ("weight", "bias"))
    if weight not in merged or len(merged[weight][1].shape) != 2:
        raise CheckpointError(f"{adapter.file} adapts {shortened(name)}, which its network does not have")
    source, base = merged[weight]
    given = {key: tensor for key, (_, tensor) in module.items()}
    is_embedding = "embedding_A" in given
    a, b = (given.get(key) for key in (("embedding_A", "embedding_B") if is_embedding else ("A", "B")))
    outputs, inputs = base.shape[::-1] if is_embedding else base.shape
    magnitude = given.get("magnitude")
    fits = (
        a is not None
        and b is not None
        and (a.shape, b.shape) == ((*a.shape[:1], inputs), (outputs, *a.shape[:1]))
        and (magnitude is None or magnitude.shape == (outputs,))
        and (magnitude is not None) == bool(adapter.settings.get("use_dora"))
        and given.keys() <= {"A", "B", "B.bias", "embedding_A", "embedding_B", "magnitude"}
        and is_floating(base.dtype)
    )
    if a is None or b is None or not fits:
        shapes = ", ".join(f"{source_name} {list(tensor.shape)}" for source_name, tensor in module.values())
        raise CheckpointError(
            f"{adapter.file} does not fit its network: {shortened(name)} is {list(base.shape)}, but the adapter has "
            f"{shortened(shapes)}"
        )
    scaling = _scaling(adapter, name, a.shape[0])

    def read() -> npt.NDArray[Any]:
        left, right = (a.read(), b.read())
        factors = (left.T, right.T) if is_embedding else (right, left)
        return _merged(base.read(), *factors, scaling, None if magnitude is None else magnitude.read(), is_embedding)

    merged[weight] = (source, View(base.dtype, base.shape, read))
    if (extra := given.get("B.bias")) is not None:
        if bias not in merged or merged[bias][1].shape != extra.shape:
            raise CheckpointError(
                f"{adapter.file} adapts the bias of {shortened(name)}, which its network does not have"
            )
        merged[bias] = (merged[bias][0], _sum(merged[bias][1], extra, scaling))
    return {source_name: f"merged into {source}" for source_name, _ in module.values()}


def _merged(
    weight: npt.NDArray[Any],
    left: npt.NDArray[Any],
    right: npt.NDArray[Any],
    scaling: float,
    magnitude: npt.NDArray[Any] | None,
    is_embedding: bool,
) -> npt.NDArray[Any]:
    """weight + scaling * left @ right, in float64 and then in the weight's dtype.

    With magnitudes, the vectors of all weights of an output have these norms: rows, or of an embedding columns.
    """
    wide = right.astype(np.float64)
    step = max(1, _CHUNK // max(1, weight.shape[1]))

    def rows(start: int) -> npt.NDArray[np.float64]:
        product = left[start : start + step].astype(np.float64) @ wide
        return np.asarray(weight[start : start + step].astype(np.float64) + scaling * product)

    starts = range(0, len(weight), step)
    scale: npt.NDArray[np.float64] | float = 1.0
    if magnitude is not None and is_embedding:
        squares = sum(((rows(start) ** 2).sum(axis=0) for start in starts), np.zeros(weight.shape[1]))
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = magnitude / np.sqrt(squares)
    result = np.empty(weight.shape, weight.dtype)
    for start in starts:
        block = rows(start)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            if magnitude is not None and not is_embedding:
                scale = (magnitude[start : start + step] / np.sqrt((block**2).sum(axis=1)))[:, None]
            result[start : start + step] = block * scale
    return result


def _sum(bias: LazyTensor, extra: LazyTensor, scaling: float) -> LazyTensor:
    def read() -> npt.NDArray[Any]:
        return np.asarray(
            (bias.read().astype(np.float64) + scaling * extra.read().astype(np.float64)).astype(bias.dtype)
        )

    return View(bias.dtype, bias.shape, read)


def _scaling(adapter: Adapter, name: str, rank: int) -> float:
    """The factor of a module's product: its alpha / r, or alpha / sqrt(r) (LoraLayer.update_layer)."""
    path = adapter.folder / CONFIG_FILE
    declared = _of_module(adapter, "rank_pattern", "r", name, integer)
    alpha = _of_module(adapter, "alpha_pattern", "lora_alpha", name, number)
    if declared != rank or rank < 1:
        raise CheckpointError(f"{path} gives {shortened(name)} the rank {declared}, but its tensors have {rank}")
    return alpha / math.sqrt(rank) if adapter.settings.get("use_rslora") else alpha / rank


_Number = Callable[[Any], float]


def _of_module(adapter: Adapter, patterns_name: str, default_name: str, name: str, parse: _Number) -> float:
    """The value of a setting for a module: that of the first pattern that matches its name (peft's get_pattern_key)."""
    patterns = adapter.settings.get(patterns_name) or {}
    path = adapter.folder / CONFIG_FILE
    if not isinstance(patterns, dict) or len(patterns) > _MAX_PATTERNS:
        raise CheckpointError(f"{path}: {patterns_name} should be at most {_MAX_PATTERNS} patterns and numbers")
    value = adapter.settings.get(default_name, 8)  # LoraConfig's r and lora_alpha
    try:
        for pattern, own in patterns.items():
            if not _is_quick(pattern):
                raise CheckpointError(f"{path}: the pattern {shortened(pattern)} is not supported in {patterns_name}")
            if _compiled(pattern).match(name):
                value = own
                break
        return parse(value)
    except (ValueError, OverflowError, re.error) as error:
        raise CheckpointError(f"{path}: {patterns_name} or {default_name}: {shortened(str(error))}") from None


def _is_quick(pattern: str) -> bool:
    """Whether a regular expression matches any name in a short time: it repeats one character at most."""
    repeats = pattern.count("*") + pattern.count("+")
    return (
        _PATTERN_CHARACTERS.fullmatch(pattern) is not None
        and repeats <= 1
        and pattern.count("|") <= 8
        and not any(each in pattern for each in (")*", ")+"))
        and "?" not in pattern.replace("(?:", "")
    )


@lru_cache(_MAX_PATTERNS)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({pattern})$")
