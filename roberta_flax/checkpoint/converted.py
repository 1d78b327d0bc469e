"""The converted directory on disk.

  config.json         RobertaConfig
  model.safetensors   the parameter tree: one tensor per leaf, named by the leaf's path joined with dots
  trained_on.json     what a head was fine-tuned on (datasets.readers.TrainedOn), if that is known
  dict.txt, encoder.json, vocab.bpe   the tokenizer's files; or dict.txt, sentencepiece.bpe.model; or
  effective_tokenizer.json, tokenizer_settings.json   those of a Hugging Face model, beside the source's own
  usage.json, modules.safetensors     how the model is used, where its source says (checkpoint/usage.py)
  conversion.json     the origin: source, sha256, versions, where every source tensor went, and checksums of all files

A model needs nothing else to run. The directory is written under a temporary name and renamed when it is complete.
Parameters are written and read one at a time, so that neither takes more memory than the parameters themselves.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from roberta_flax.checkpoint import checksums
from roberta_flax.checkpoint import usage as usages
from roberta_flax.checkpoint.checksums import CONVERSION_FILE, FileComparison, read_conversion
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
from roberta_flax.datasets.readers import TrainedOn
from roberta_flax.errors import CheckpointError, InputError, shortened
from roberta_flax.files import PARTIAL_SUFFIX, new_directory, read_text, reading, write_bytes
from roberta_flax.nn.config import MNLI_LABELS, HeadConfig, RobertaConfig
from roberta_flax.nn.forward import Params, abstract_params
from roberta_flax.nn.tree import describe_problems, flatten, mismatches, unflatten
from roberta_flax.text import tokenizer as tokenizer_files
from roberta_flax.text.tokenizer import Tokenizer

CONFIG_FILE = "config.json"
PARAMS_FILE = "model.safetensors"
_OPTIONAL_FILES = (*tokenizer_files.FILES, usages.USAGE_FILE, usages.MODULES_FILE)  # of which a directory has some
_READERS = 4  # threads
TRAINED_ON_FILE = "trained_on.json"
_LAYER_TENSORS = 16  # per layer: kernel and bias of six Dense, scale and bias of two LayerNorms


def is_converted(directory: Path) -> bool:
    """Whether `directory` looks like a converted directory. `read` checks whether it is complete.

    The check looks into config.json, because Transformers' directories contain files of the same names.
    """
    if not (directory / CONFIG_FILE).is_file() or not (directory / PARAMS_FILE).is_file():
        return False
    try:
        config = json.loads(read_text(directory / CONFIG_FILE))
    except (ValueError, RecursionError):  # CheckpointError is a ValueError
        return True
    return not is_transformers_config(config)


def is_transformers_config(config: Any) -> bool:
    """Whether `config`, the parsed content of a config.json, is a Transformers configuration, not a RobertaConfig."""
    return isinstance(config, dict) and not {"model_type", "num_hidden_layers"}.isdisjoint(config)


def check_directory(bpe_dir: str | os.PathLike[str] | None) -> None:
    """Raises InputError if `bpe_dir` is given and is not a readable directory."""
    if bpe_dir is None:
        return
    try:
        with os.scandir(bpe_dir) as entries:
            next(entries, None)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"bpe_dir should be a directory with the tokenizer's files; {bpe_dir}: {reason}") from None


def check_tensors(config: RobertaConfig, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Compares tensor shapes with the parameters that `config` requires.

    The number of layers is checked first, so that a `config` that merely claims a great depth costs nothing.

    Returns:
      A description of each problem; an empty list if the tensors fit.
    """
    if config.num_layers * _LAYER_TENSORS > len(shapes):
        return [f"it has {len(shapes)} tensors, too few for {config.num_layers} layers"]
    return mismatches(shapes, {name: leaf.shape for name, leaf in flatten(abstract_params(config)).items()})


def check_stored(config: RobertaConfig, tensors: Mapping[str, LazyTensor]) -> list[str]:
    """Like `check_tensors`, and also reports tensors that are not floating point."""
    integers = [name for name, tensor in tensors.items() if tensor.dtype not in DTYPE_NAMES]
    return [
        *check_tensors(config, {name: tensor.shape for name, tensor in tensors.items()}),
        *(f"wrong dtype: {name} is {tensors[name].dtype}, expected floating point" for name in integers),
    ]


def save(
    destination: Path,
    config: RobertaConfig,
    params: Params,
    tokenizer: Tokenizer,
    dtype: jax.typing.DTypeLike | None = None,
    *,
    trained_on: TrainedOn | None = None,
    replace: bool = False,
    usage: usages.Usage = usages.Usage(),
) -> dict[str, NonFinite]:
    """Saves a model as a converted directory, which `read` reads.

    Args:
      destination: the directory to create.
      config, params, tokenizer: the model.
      dtype: the dtype to store; by default, each parameter keeps its own.
      trained_on: what a head of the model was fine-tuned on, if that is known.
      replace: whether to replace an existing directory. If false, `destination` must not exist.
      usage: how the model is used.

    Returns:
      The counts of NaNs and infinities that `write_tensors` returns.

    Raises:
      InputError: the parameters do not fit the configuration, or cannot be stored in `dtype`.
      CheckpointError: the destination exists or cannot be written.
    """
    leaves = flatten(params)
    if problems := check_tensors(config, {name: leaf.shape for name, leaf in leaves.items()}):
        raise InputError(f"the parameters do not fit the configuration: {describe_problems(problems)}")
    stored = None if dtype is None else stored_dtype(jnp.dtype(dtype).name)
    conversion = {"source": None, "kind": "saved", "versions": versions()}
    with new_directory(destination, replace=replace) as directory:
        if trained_on is not None:
            (directory / TRAINED_ON_FILE).write_text(trained_on.to_json(), encoding="utf-8")
        for name, content in tokenizer.files().items():
            (directory / name).write_bytes(content)
        usages.write(usage, directory)
        return write(directory, config, {name: Values(leaf) for name, leaf in leaves.items()}, conversion, stored)


def versions() -> dict[str, str]:
    """The versions of this package and of the libraries that it computes with, for conversion.json."""
    return {name: importlib.metadata.version(name) for name in ("roberta-flax", "jax", "flax", "numpy")}


def write(
    directory: Path,
    config: RobertaConfig,
    tensors: Mapping[str, LazyTensor],
    conversion: Mapping[str, Any],
    dtype: np.dtype[Any] | None = None,
) -> dict[str, NonFinite]:
    """Writes config.json, model.safetensors and conversion.json into `directory` (see `new_directory`).

    The caller writes the tokenizer's files before, so that conversion.json has their checksums too.

    Returns:
      The counts of NaNs and infinities that `write_tensors` returns.
    """
    non_finite = write_tensors(directory / PARAMS_FILE, tensors, dtype)
    _write_text(directory / CONFIG_FILE, config.to_json())
    _write_text(directory / CONVERSION_FILE, checksums.record(directory, conversion))
    return non_finite


def _write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def read_config(directory: Path) -> RobertaConfig:
    """Reads the configuration of a converted directory. Raises CheckpointError if it cannot be read."""
    text = read_text(directory / CONFIG_FILE)
    try:
        config = RobertaConfig.from_json(text)
    except CheckpointError as error:
        raise CheckpointError(f"{directory}: {error}") from None
    # directories of older versions leave out the names that fairseq's classes are known to have
    return with_fairseq_labels(config) if read_conversion(directory).get("kind") == "fairseq" else config


def with_fairseq_labels(config: RobertaConfig) -> RobertaConfig:
    """Names the classes of a fairseq model's heads, as far as they are known and have no names."""
    heads = tuple(
        head if head.labels else dataclasses.replace(head, labels=fairseq_labels(head)) for head in config.heads
    )
    return dataclasses.replace(config, heads=heads)


def fairseq_labels(head: HeadConfig) -> tuple[str, ...]:
    """The names of a head's classes in fairseq, which no checkpoint has: those of roberta.large.mnli, or else none."""
    is_mnli = (head.name, head.kind, head.num_classes) == ("mnli", "sentence", len(MNLI_LABELS))
    return MNLI_LABELS if is_mnli else ()


def _not_converted(directory: Path, missing: Sequence[str]) -> CheckpointError:
    lacks = f": it lacks {', '.join(missing)}" if missing else ""
    name = shortened(str(directory))
    return CheckpointError(f"{name} is not a converted model{lacks}; convert one with `roberta-flax convert`")


def check_files(directory: Path) -> None:
    """Compares the sizes of a converted directory's files, and the checksums of all but model.safetensors.

    A config.json or model.safetensors that was edited is a warning. A directory of an older version, without checksums,
    passes.

    Raises:
      CheckpointError: a file is missing, was added, or is not the one that was written.
    """
    checksums.check(
        directory, by_size=(PARAMS_FILE,), editable=(CONFIG_FILE, PARAMS_FILE), optional=tokenizer_files.FILES
    )


def compare_files(directory: Path) -> list[FileComparison] | None:
    """Compares every byte of a converted directory with its checksums. Returns None if it has none.

    Raises:
      CheckpointError: this is no converted directory.
    """
    if not os.path.isfile(directory / CONVERSION_FILE):
        raise _not_converted(directory, [CONVERSION_FILE] if os.path.isdir(directory) else [])
    return checksums.compare(directory, optional=_OPTIONAL_FILES)


def read(directory: Path, param_dtype: jax.typing.DTypeLike = jnp.float32) -> tuple[RobertaConfig, Params]:
    """Reads a converted directory.

    Args:
      directory: a directory that convert() or save() wrote.
      param_dtype: dtype of the parameters in memory, whatever dtype they are stored in.

    Returns:
      The configuration, and the parameter tree: nested dicts of jax.Array.

    Raises:
      CheckpointError: a file is missing or damaged, or tensors do not fit the configuration (all problems are listed).
    """
    config, stored = read_stored(directory)
    with reading(directory / PARAMS_FILE):
        arrays = _on_device(stored, jnp.dtype(param_dtype))
    return config, unflatten(arrays, abstract_params(config))


def read_trained_on(directory: Path) -> TrainedOn | None:
    """Reads what a head of a converted directory was fine-tuned on; None if that is not known.

    Raises:
      CheckpointError: trained_on.json is damaged.
    """
    path = directory / TRAINED_ON_FILE
    if not path.is_file():
        return None
    try:
        return TrainedOn.from_json(read_text(path))
    except (ValueError, RecursionError) as error:  # CheckpointError is a ValueError
        raise CheckpointError(f"{path} is damaged ({error}); remove it, and name columns and labels yourself") from None


def read_stored(directory: Path) -> tuple[RobertaConfig, dict[str, StoredTensor]]:
    """Like `read`, but returns the tensors by name and does not read their values yet."""
    if not os.path.isdir(directory) or (missing := missing_files(directory)):
        raise _not_converted(directory, missing if os.path.isdir(directory) else [])
    if directory.name.endswith(PARTIAL_SUFFIX):
        raise CheckpointError(f"{directory} was left by a conversion that was interrupted; remove it and convert again")
    check_files(directory)
    config = read_config(directory)
    stored = read_tensors(directory / PARAMS_FILE)
    if problems := check_stored(config, stored):
        raise CheckpointError(
            f"{directory / PARAMS_FILE} does not contain the parameters that its {CONFIG_FILE} requires: "
            f"{describe_problems(problems)}"
        )
    return config, stored


def _on_device(stored: Mapping[str, StoredTensor], dtype: np.dtype[Any]) -> dict[str, jax.Array]:
    """Copies the tensors to JAX's default device.

    Several tensors are read at once, because most of the time goes into the kernel's allocation of memory. Their number
    is limited so that the host never holds many tensors that are on their way to an accelerator.
    """
    names, arrays = list(stored), {}
    with ThreadPoolExecutor(_READERS) as readers:
        for start in range(0, len(names), 4 * _READERS):
            some = names[start : start + 4 * _READERS]
            for name, values in zip(some, readers.map(lambda name: stored[name].load(dtype), some), strict=True):
                arrays[name] = jax.device_put(values)
    return arrays


def file_names(directory: Path) -> tuple[str, ...]:
    """The names of a converted directory's files, which depend on the tokenizer in `directory`."""
    return (CONFIG_FILE, PARAMS_FILE, CONVERSION_FILE, *tokenizer_files.file_names(directory))


def missing_files(directory: Path) -> list[str]:
    """The names of a converted directory's files that `directory` lacks."""
    return [name for name in file_names(directory) if not (directory / name).is_file()]
