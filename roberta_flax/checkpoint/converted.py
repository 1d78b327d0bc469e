"""The converted directory on disk.

  config.json         RobertaConfig
  model.safetensors   the parameter tree, a tensor a leaf, named by its path joined with dots
  dict.txt, encoder.json, vocab.bpe   the tokenizer's files; or dict.txt, sentencepiece.bpe.model
  conversion.json     where it came from: source, sha256, versions, and where every source tensor went

It needs nothing else to run. It is written under a temporary name and renamed when it is whole. Parameters are written
and read one at a time, so that neither takes more memory than the parameters themselves.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from roberta_flax.checkpoint.tensors import (
    DTYPE_NAMES,
    LazyTensor,
    NonFinite,
    StoredTensor,
    Values,
    read_tensors,
    stored_dtype,
    write_tensors,
)
from roberta_flax.errors import CheckpointError, InputError, shortened
from roberta_flax.files import PARTIAL_SUFFIX, new_directory, read_text, reading, write_bytes
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.nn.forward import Params, abstract_params
from roberta_flax.nn.tree import flatten, unflatten
from roberta_flax.text.tokenizer import BYTE_LEVEL_FILES, SENTENCEPIECE_FILE, SENTENCEPIECE_FILES, Tokenizer

CONFIG_FILE = "config.json"
PARAMS_FILE = "model.safetensors"
CONVERSION_FILE = "conversion.json"
_READERS = 4  # threads
_MAX_PROBLEMS = 100  # named in a message
_LAYER_TENSORS = 16  # kernel and bias of six Dense, scale and bias of two LayerNorms


def is_converted(directory: Path) -> bool:
    """Whether `directory` looks like a converted one; `read` tells whether it is whole.

    transformers' directories have files of the same names.
    """
    if not (directory / CONFIG_FILE).is_file() or not (directory / PARAMS_FILE).is_file():
        return False
    try:
        config = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return True
    return not is_transformers_config(config)


def is_transformers_config(config: Any) -> bool:
    """Whether what a config.json holds is a configuration of transformers' and not a RobertaConfig."""
    return isinstance(config, dict) and not {"model_type", "num_hidden_layers"}.isdisjoint(config)


def check_directory(bpe_dir: str | os.PathLike[str] | None) -> None:
    """Raises InputError where `bpe_dir` is given and is no directory that can be read."""
    if bpe_dir is None:
        return
    try:
        with os.scandir(bpe_dir) as entries:
            next(entries, None)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"bpe_dir should be a directory with the tokenizer's files; {bpe_dir}: {reason}") from None


def check_tensors(config: RobertaConfig, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What is wrong with a set of tensors as the parameters of `config`: one string a problem, empty if nothing.

    A depth that is merely claimed costs nothing.
    """
    if config.num_layers * _LAYER_TENSORS > len(shapes):
        return [f"it has {len(shapes)} tensors, too few for {config.num_layers} layers"]
    expected = {name: leaf.shape for name, leaf in flatten(abstract_params(config)).items()}
    return [
        *(f"missing: {name} {list(expected[name])}" for name in expected.keys() - shapes.keys()),
        *(f"unexpected: {name} {list(shapes[name])}" for name in shapes.keys() - expected.keys()),
        *(
            f"wrong shape: {name} is {list(shapes[name])}, expected {list(expected[name])}"
            for name in expected.keys() & shapes.keys()
            if tuple(shapes[name]) != tuple(expected[name])
        ),
    ]


def check_stored(config: RobertaConfig, tensors: Mapping[str, LazyTensor]) -> list[str]:
    """What is wrong with a converted directory's tensors as the parameters of its configuration, as check_tensors."""
    integers = [name for name, tensor in tensors.items() if tensor.dtype not in DTYPE_NAMES]
    return [
        *check_tensors(config, {name: tensor.shape for name, tensor in tensors.items()}),
        *(f"wrong dtype: {name} is {tensors[name].dtype}, expected floating point" for name in integers),
    ]


def describe_problems(problems: list[str]) -> str:
    """All problems in one line, sorted (a hundred of them at most)."""
    some = sorted(problems)[:_MAX_PROBLEMS]
    return "; ".join(some) + (f"; and {len(problems) - len(some)} more" if len(problems) > len(some) else "")


def save(
    destination: Path,
    config: RobertaConfig,
    params: Params,
    tokenizer: Tokenizer,
    dtype: jax.typing.DTypeLike | None = None,
    *,
    replace: bool = False,
) -> dict[str, NonFinite]:
    """Writes a model that is in memory as a converted directory, which `read` reads.

    Args:
      destination: the directory to make.
      config, params, tokenizer: the model.
      dtype: to store parameters in; their own if not given.
      replace: whether it takes the place of a directory that is there; without it, it must not exist.

    Returns:
      What write_tensors does.

    Raises:
      InputError: parameters that do not fit the configuration, or a dtype that they are not stored in.
      CheckpointError: the destination exists or cannot be written.
    """
    leaves = flatten(params)
    if problems := check_tensors(config, {name: leaf.shape for name, leaf in leaves.items()}):
        raise InputError(f"the parameters do not fit the configuration: {describe_problems(problems)}")
    stored = None if dtype is None else stored_dtype(jnp.dtype(dtype).name)
    conversion = {"source": None, "kind": "saved", "versions": versions()}
    with new_directory(destination, replace=replace) as directory:
        for name, content in tokenizer.files().items():
            (directory / name).write_bytes(content)
        return write(directory, config, {name: Values(leaf) for name, leaf in leaves.items()}, conversion, stored)


def versions() -> dict[str, str]:
    """Of this program and what it computes with, for conversion.json."""
    return {name: importlib.metadata.version(name) for name in ("roberta-flax", "jax", "flax", "numpy")}


def write(
    directory: Path,
    config: RobertaConfig,
    tensors: Mapping[str, LazyTensor],
    conversion: Mapping[str, Any],
    dtype: np.dtype[Any] | None = None,
) -> dict[str, NonFinite]:
    """Writes config.json, model.safetensors and conversion.json into `directory` (see `new_directory`).

    The tokenizer's files are the caller's to put there.

    Returns:
      What write_tensors does.
    """
    found = write_tensors(directory / PARAMS_FILE, tensors, dtype)
    _write_text(directory / CONFIG_FILE, config.to_json())
    _write_text(directory / CONVERSION_FILE, json.dumps(conversion, indent=2) + "\n")
    return found


def _write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def read_config(directory: Path) -> RobertaConfig:
    """The configuration of a converted directory; raises CheckpointError where it cannot be read."""
    text = read_text(directory / CONFIG_FILE)
    try:
        return RobertaConfig.from_json(text)
    except CheckpointError as error:
        raise CheckpointError(f"{directory}: {error}") from None


def read(directory: Path, param_dtype: jax.typing.DTypeLike = jnp.float32) -> tuple[RobertaConfig, Params]:
    """Reads a converted directory.

    Args:
      directory: what convert() wrote.
      param_dtype: dtype of the parameters in memory, whatever they are stored in.

    Returns:
      The configuration, and the parameter tree: nested dicts of jax.Array.

    Raises:
      CheckpointError: a file is missing or damaged, or tensors do not fit the configuration (all are listed).
    """
    config, stored = read_stored(directory)
    with reading(directory / PARAMS_FILE):
        arrays = _on_device(stored, jnp.dtype(param_dtype))
    return config, unflatten(arrays, abstract_params(config))


def read_stored(directory: Path) -> tuple[RobertaConfig, dict[str, StoredTensor]]:
    """The configuration and the tensors of a converted directory; as `read`, but the values are not read yet."""
    if not os.path.isdir(directory) or (missing := missing_files(directory)):
        lacks = f": it lacks {', '.join(missing)}" if os.path.isdir(directory) else ""
        name = shortened(str(directory))
        raise CheckpointError(f"{name} is not a converted model{lacks}; convert one with `roberta-flax convert`")
    if directory.name.endswith(PARTIAL_SUFFIX):
        raise CheckpointError(f"{directory} is what a conversion that was stopped left; remove it, and convert again")
    config = read_config(directory)
    stored = read_tensors(directory / PARAMS_FILE)
    if problems := check_stored(config, stored):
        raise CheckpointError(
            f"{directory / PARAMS_FILE} does not hold the parameters of its {CONFIG_FILE}: "
            f"{describe_problems(problems)}"
        )
    return config, stored


def read_conversion(directory: Path) -> dict[str, Any]:
    """What a converted directory's conversion.json records; CheckpointError where it is damaged."""
    try:
        recorded = json.loads((directory / CONVERSION_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        recorded = None
    if not isinstance(recorded, dict):
        raise CheckpointError(f"{directory / CONVERSION_FILE} is damaged; convert the model again")
    return recorded


def _on_device(stored: Mapping[str, StoredTensor], dtype: np.dtype[Any]) -> dict[str, jax.Array]:
    """The tensors as arrays on JAX's default device.

    Several are read at once, since what takes the time is that the kernel finds memory for them; some, so that a host
    never holds many that are on their way to an accelerator.
    """
    names, arrays = list(stored), {}
    with ThreadPoolExecutor(_READERS) as readers:
        for start in range(0, len(names), 4 * _READERS):
            some = names[start : start + 4 * _READERS]
            for name, values in zip(some, readers.map(lambda name: stored[name].load(dtype), some), strict=True):
                arrays[name] = jax.device_put(values)
    return arrays


def file_names(directory: Path) -> tuple[str, ...]:
    """The names of a converted directory's files, by the tokenizer that `directory` has."""
    tokenizer = SENTENCEPIECE_FILES if (directory / SENTENCEPIECE_FILE).is_file() else BYTE_LEVEL_FILES
    return (CONFIG_FILE, PARAMS_FILE, CONVERSION_FILE, *tokenizer)


def missing_files(directory: Path) -> list[str]:
    """The files of a converted directory that are not in `directory`."""
    return [name for name in file_names(directory) if not (directory / name).is_file()]
