"""Adapters that are trained here, in the files of PEFT: written for it, and read to be trained further.

An adapter of PEFT of any kind is merged into its network by module adapters.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

from roberta_flax.checkpoint.converted import TRAINED_ON_FILE
from roberta_flax.checkpoint.tensors import LazyTensor, Values, write_tensors
from roberta_flax.convert import adapters
from roberta_flax.convert.adapters import Adapter, Tensors
from roberta_flax.convert.huggingface import CLASS_PREFIXES, CLASS_SUFFIXES, HUB_PREFIX, check_sentence_head
from roberta_flax.convert.names import (
    from_huggingface,
    localize_huggingface,
    modernize_huggingface,
    to_huggingface,
    transformed,
)
from roberta_flax.convert.source import integer, interpret, number
from roberta_flax.convert.views import transposed
from roberta_flax.datasets.readers import TrainedOn
from roberta_flax.errors import CheckpointError
from roberta_flax.files import new_directory, write_bytes
from roberta_flax.nn.adapters import LINEAR_MAPS, MAGNITUDE, A, B, LoRA, nested, split
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from roberta_flax.nn.forward import abstract_params
from roberta_flax.nn.tree import Params, describe_problems, flatten, mismatches

_SUFFIXES = {A: "lora_A.weight", B: "lora_B.weight", MAGNITUDE: "lora_magnitude_vector"}
_PARTS = {"A": A, "B": B, "magnitude": MAGNITUDE}  # as module adapters calls what it reads
_TASK_TYPES = {"sentence": "SEQ_CLS", "token": "TOKEN_CLS", "span": "QUESTION_ANS"}
_SAVED_MODULES = {  # what PEFT trains whole, by the kind of the head
    "sentence": ["classifier", "score"],
    "token": ["classifier", "score"],
    "span": ["qa_outputs"],
    "choice": ["classifier", "pooler"],
}


def save_adapter(
    destination: str | os.PathLike[str],
    lora: LoRA,
    params: Params,
    config: RobertaConfig,
    *,
    model_type: str = "roberta",
    head: HeadConfig | None = None,
    base_model: str | None = None,
    trained_on: TrainedOn | None = None,
    replace: bool = False,
) -> None:
    """Writes adapters, and a head that was trained with them, as a directory that PEFT loads.

    Args:
      destination: the directory to create: adapter_config.json and adapter_model.safetensors, and beside them head.json
        and trained_on.json, which convert() reads.
      lora: the adapters' settings.
      params: a tree of the adapters and the head. Other parameters are left out.
      config: the network's configuration.
      model_type: the network's in Transformers (see huggingface.model_type_of).
      head: the head; None for an adapter of the masked-LM network.
      base_model: the network's name or path: "hf:org/name", "hf:org/name@revision" or a directory.
      trained_on: what the head was trained on, if that is known.
      replace: whether to replace an existing directory.

    Raises:
      CheckpointError: Transformers has no such head, or the directory exists or cannot be written.
    """
    if head is not None:
        check_sentence_head(config, head)
    _, trained = split(params)
    tensors = {
        f"{_module_name(path, model_type)}.{_SUFFIXES[part]}": Values(leaf) if part == MAGNITUDE else _transposed(leaf)
        for path, adapter in trained.items()
        for part, leaf in adapter.items()
    }
    tensors |= _head_tensors(params, head, model_type)
    settings = _settings(lora, [*trained], model_type, head, base_model)
    with new_directory(Path(destination), replace=replace) as folder:
        content = json.dumps(settings, indent=2, sort_keys=True) + "\n"
        write_bytes(folder / adapters.CONFIG_FILE, content.encode())
        prefixed = {f"{adapters.PREFIX}{name}": tensor for name, tensor in tensors.items()}
        write_tensors(folder / adapters.WEIGHT_FILES[0], prefixed, metadata={"format": "pt"})
        if head is not None:
            write_bytes(folder / adapters.HEAD_FILE, (json.dumps(asdict(head), indent=2) + "\n").encode())
        if trained_on is not None:
            write_bytes(folder / TRAINED_ON_FILE, trained_on.to_json().encode())


def _module_name(path: str, model_type: str) -> str:
    """What Transformers calls a linear map of the layers."""
    place = to_huggingface(f"{path}.kernel", {})
    assert place is not None, path
    return localize_huggingface(place.path, model_type).removesuffix(".weight")


def _transposed(leaf: Any) -> LazyTensor:
    return transposed(Values(leaf))


def _head_tensors(params: Params, head: HeadConfig | None, model_type: str) -> dict[str, LazyTensor]:
    tensors: dict[str, LazyTensor] = {}
    for path, leaf in flatten(params).items():
        if head is not None and path.startswith(f"heads.{head.name}."):
            place = to_huggingface(path, {head.name: head.kind})
            assert place is not None, path
            tensors[localize_huggingface(place.path, model_type)] = transformed(Values(leaf), place.transform)
    return tensors


def _settings(
    lora: LoRA, paths: list[str], model_type: str, head: HeadConfig | None, base_model: str | None
) -> dict[str, Any]:
    """The content of adapter_config.json."""
    name, _, revision = (base_model or "").partition("@") if _is_on_hub(base_model) else (base_model or "", "", "")
    settings: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": None,
        "auto_mapping": None,
        "base_model_name_or_path": name.removeprefix(HUB_PREFIX) or None,
        "revision": revision or None,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rslora,
        "use_dora": lora.dora,
        "target_modules": [_module_name(path, model_type) for path in paths],
        "modules_to_save": None if head is None else _SAVED_MODULES[head.kind],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
    }
    if head is not None and head.kind in _TASK_TYPES:
        return {**settings, "task_type": _TASK_TYPES[head.kind]}
    package = model_type.replace("-", "_")
    named = CLASS_PREFIXES[model_type] + ("ForMaskedLM" if head is None else CLASS_SUFFIXES[head.kind])
    library = f"transformers.models.{package}.modeling_{package}"
    return {**settings, "auto_mapping": {"base_model_class": named, "parent_library": library}}


def _is_on_hub(base_model: str | None) -> bool:
    return base_model is not None and base_model.startswith(HUB_PREFIX)


def load_adapter(
    directory: str | os.PathLike[str], config: RobertaConfig, head: HeadConfig | None = None
) -> tuple[LoRA, dict[str, Any]]:
    """Reads a LoRA that PEFT or `save_adapter` wrote, to be trained further or merged with LoRA.merge.

    Args:
      directory: the adapter's directory.
      config: the configuration of the network that it is for.
      head: the head that was trained with it; None if there is none.

    Returns:
      The settings, and a tree of the adapters and the head: nested dicts of jax.Array.

    Raises:
      CheckpointError: the adapter is damaged, is none that is trained here (ranks by pattern, adapted embeddings,
        trained biases), or does not fit the network or the head.
    """
    adapter = Adapter.open(Path(directory))
    if adapter is None:
        raise CheckpointError(f"{directory} is no adapter of PEFT: it has no {adapters.CONFIG_FILE}")
    adapters.check(adapter)
    contents = adapters.read(adapter)
    lora = interpret(str(adapter.folder), lambda: _lora(adapter, contents.modules, config))
    tensors: dict[str, LazyTensor] = {}
    for name, module in contents.modules.items():
        path = _path(name, head)
        for key, (_, tensor) in module.items():
            tensors[f"{path}.{_PARTS[key]}"] = tensor if key == "magnitude" else transposed(tensor)
    for name, (source, tensor) in contents.others.items():
        place = _place(name, head)
        if place is None or not place.path.startswith("heads."):
            raise CheckpointError(
                f"{adapter.file} has {source}, which is of no adapter and not of the head to train; "
                "merge the adapter: `roberta-flax convert`"
            )
        tensors[place.path] = transformed(tensor, place.transform)
    expected = interpret(str(adapter.folder), lambda: _shapes(lora, config, head))
    if problems := mismatches({path: tensor.shape for path, tensor in tensors.items()}, expected):
        raise CheckpointError(f"{adapter.file} does not fit the network: {describe_problems(problems)}")
    leaves = {path: jax.device_put(np.ascontiguousarray(tensor.read())) for path, tensor in tensors.items()}
    return lora, nested(leaves)


def _lora(adapter: Adapter, modules: Mapping[str, Tensors], config: RobertaConfig) -> LoRA:
    settings = adapter.settings
    for name in ("rank_pattern", "alpha_pattern"):
        if settings.get(name):
            raise CheckpointError(
                f"{adapter.folder} has a {name}; only adapters of one rank and alpha are trained further"
            )
    for name, module in modules.items():
        path = _path(name, None)
        if path is None or not module.keys() <= _PARTS.keys():
            raise CheckpointError(f"{adapter.file} adapts {name} in a way that is not trained here; merge it instead")
    paths = [str(_path(name, None)) for name in modules]
    targets = [name for name in LINEAR_MAPS if any(path.endswith(name) for path in paths)]
    if len(paths) != len(targets) * config.num_layers:
        targets = paths
    return LoRA(
        rank=integer(settings.get("r", 8)),
        alpha=number(settings.get("lora_alpha", 8)),
        targets=tuple(targets),
        dropout=number(settings.get("lora_dropout", 0)),
        rslora=bool(settings.get("use_rslora")),
        dora=bool(settings.get("use_dora")),
    )


def _path(name: str, head: HeadConfig | None) -> str | None:
    """The path of the linear map of a layer that PEFT calls `name`; None if it is none of these."""
    place = _place(f"{name}.weight", head)
    path = "" if place is None else place.path.removesuffix(".kernel")
    return path if path.endswith(LINEAR_MAPS) and path.startswith("layers.") else None


def _place(name: str, head: HeadConfig | None) -> Any:
    """The place of a tensor in the tree, by its name in any of Transformers' classes."""
    named = (head.name, head.kind) if head is not None else None
    places = (from_huggingface(modernize_huggingface(name, model_type), named) for model_type in CLASS_PREFIXES)
    return next((place for place in places if place is not None), None)


def _shapes(lora: LoRA, config: RobertaConfig, head: HeadConfig | None) -> dict[str, tuple[int, ...]]:
    leaves = flatten(abstract_params(config))
    shapes = {
        path: leaf.shape for path, leaf in leaves.items() if head is not None and path.startswith(f"heads.{head.name}.")
    }
    for path in lora.paths(config):
        inputs, outputs = leaves[f"{path}.kernel"].shape
        shapes |= {f"{path}.{A}": (inputs, lora.rank), f"{path}.{B}": (lora.rank, outputs)}
        shapes |= {f"{path}.{MAGNITUDE}": (outputs,)} if lora.dora else {}
    return shapes
