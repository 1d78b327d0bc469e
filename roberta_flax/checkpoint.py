"""The converted directory on disk.

  config.json         RobertaConfig
  model.safetensors   the parameter tree, a tensor a leaf, named by its path joined with dots
  dict.txt, encoder.json, vocab.bpe   the tokenizer's files, as they came
  conversion.json     where it came from: source, sha256, versions, and where every source tensor went

It needs nothing else to run. It is written under a temporary name and renamed when it is whole.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from roberta_flax.config import RobertaConfig
from roberta_flax.errors import CheckpointError, RobertaFlaxError
from roberta_flax.forward import Params, abstract_params
from roberta_flax.tokenizer import TOKENIZER_FILES

CONFIG_FILE = "config.json"
PARAMS_FILE = "model.safetensors"
CONVERSION_FILE = "conversion.json"
PARTIAL_SUFFIX = ".partial"  # of the temporary name
DIRECTORY_FILES = (CONFIG_FILE, PARAMS_FILE, CONVERSION_FILE, *TOKENIZER_FILES)


def path_name(path: tuple[Any, ...]) -> str:
    """The dotted name of a leaf, from its path as jax.tree_util.tree_flatten_with_path gives it."""
    return ".".join(str(part.key) for part in path)


def flatten(params: Params) -> dict[str, Any]:
    """The leaves of a parameter tree by dotted name."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}


def is_converted(directory: Path) -> bool:
    """Whether `directory` looks like a converted one; `read` tells whether it is whole."""
    return (directory / CONFIG_FILE).is_file() and (directory / PARAMS_FILE).is_file()


def check_tensors(config: RobertaConfig, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What is wrong with a set of tensors as the parameters of `config`: one string a problem, empty if nothing."""
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


def describe_problems(problems: list[str]) -> str:
    """All problems in one line, sorted."""
    return "; ".join(sorted(problems))


def remove_partial(destination: Path) -> None:
    """Removes what killed conversions to `destination` left; only for who knows that none is running."""
    for partial in destination.parent.glob(f".{glob.escape(destination.name)}-*{PARTIAL_SUFFIX}"):
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def new_directory(destination: Path) -> Iterator[Path]:
    """Gives a temporary directory beside `destination`, and renames it to `destination` if the block succeeds.

    Whatever happens, `destination` is either absent or whole.

    Raises:
      CheckpointError: `destination` exists, or cannot be made there.
    """
    if destination.exists() or destination.is_symlink():
        raise CheckpointError(f"{destination} exists already; remove it or choose another name")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(
            tempfile.mkdtemp(prefix=f".{destination.name}-", suffix=PARTIAL_SUFFIX, dir=destination.parent)
        )
    except OSError as error:
        raise CheckpointError(f"cannot write {destination}: {error.strerror}") from None
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        temporary.rename(destination)
    except RobertaFlaxError:  # DownloadError is an OSError too, and says more
        raise
    except OSError as error:
        raise CheckpointError(f"cannot write {destination}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write(
    directory: Path,
    config: RobertaConfig,
    tensors: Mapping[str, npt.NDArray[Any]],
    tokenizer_files: Mapping[str, Path],
    conversion: Mapping[str, Any],
) -> None:
    """Writes a converted directory's files into `directory`, which exists (see `new_directory`)."""
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, directory / PARAMS_FILE)
    (directory / PARAMS_FILE).chmod(0o666 & ~_umask())
    (directory / CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")
    (directory / CONVERSION_FILE).write_text(json.dumps(conversion, indent=2) + "\n", encoding="utf-8")
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer_files[name], directory / name)


def read_config(directory: Path) -> RobertaConfig:
    """The configuration of a converted directory; raises CheckpointError where it cannot be read."""
    try:
        return RobertaConfig.from_json((directory / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read {directory / CONFIG_FILE}: {error}") from None
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
    missing = [name for name in DIRECTORY_FILES if not (directory / name).is_file()]
    if missing:
        raise CheckpointError(f"{directory} is not a whole converted model: it lacks {', '.join(missing)}")
    config = read_config(directory)
    file_name = directory / PARAMS_FILE
    abstract = abstract_params(config, param_dtype)
    try:
        with safe_open(file_name, framework="numpy") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            if problems := check_tensors(config, shapes):
                raise CheckpointError(
                    f"{file_name} does not hold the parameters of its {CONFIG_FILE}: {describe_problems(problems)}"
                )
            params = jax.tree_util.tree_map_with_path(
                lambda path, leaf: jnp.asarray(file.get_tensor(path_name(path)), leaf.dtype), abstract
            )
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file_name} is damaged or cut short ({error}); convert the model again") from None
    return config, params


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
