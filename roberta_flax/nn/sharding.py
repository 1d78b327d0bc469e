"""Meshes of devices, and the part of the parameters that each device holds.

A mesh has two axes. DATA divides the rows of a batch and replicates the model; MODEL divides each layer's matrices
(Shoeybi et al., 2019: the first of two products by columns, the second by rows). For training, DATA may divide the
parameters too (fully sharded; Rajbhandari et al., 2020): each is gathered where it is used.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from roberta_flax.errors import InputError
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.nn.tree import Params, path_name, to_dict

__all__ = [
    "DATA",
    "MODEL",
    "RULES",
    "fully_sharded_spec",
    "mesh",
    "place",
    "place_batch",
    "place_rows",
    "spec",
]

DATA, MODEL = "data", "model"
# Paths of the tree (docs/parameters.md) -> the mesh axis that divides each axis; other parameters are replicated.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"(embeddings\.token|lm_head)\.embedding", (None, MODEL)),
    (r"layers\.\d+\.attention\.(query|key|value)\.kernel", (None, MODEL)),
    (r"layers\.\d+\.attention\.(query|key|value)\.(bias|kernel_scale)", (MODEL,)),
    (r"layers\.\d+\.attention\.output\.kernel", (MODEL, None)),
    (r"layers\.\d+\.feed_forward\.intermediate\.kernel", (None, MODEL)),
    (r"layers\.\d+\.feed_forward\.intermediate\.(bias|kernel_scale)", (MODEL,)),
    (r"layers\.\d+\.feed_forward\.output\.kernel", (MODEL, None)),
)
# Parameters with fewer numbers are replicated: gathering them would cost more than it saves.
_SMALL = 2**14


def mesh(devices: Sequence[jax.Device] | None = None, tensor_parallel: int = 1) -> Mesh:
    """Arranges devices in a mesh of DATA x MODEL.

    Args:
      devices: None for all local devices.
      tensor_parallel: the size of the MODEL axis.

    Raises:
      InputError: there are no devices, or tensor_parallel does not divide their number.
    """
    devices = jax.local_devices() if devices is None else list(devices)
    whole = isinstance(tensor_parallel, int) and not isinstance(tensor_parallel, bool) and tensor_parallel >= 1
    if not whole or not devices or len(devices) % tensor_parallel:
        raise InputError(
            f"tensor_parallel must divide the number of devices, got {tensor_parallel!r} and {len(devices)} devices"
        )
    return Mesh(np.array(devices).reshape(-1, tensor_parallel), (DATA, MODEL))


def spec(path: str) -> PartitionSpec:
    """The mesh axes that divide the parameter at a dotted path."""
    axes = next((axes for pattern, axes in RULES if re.fullmatch(pattern, path)), ())
    return PartitionSpec(*axes)  # type: ignore[no-untyped-call]


def fully_sharded_spec(path: str, shape: Sequence[int], on: Mesh) -> PartitionSpec:
    """The same where DATA divides parameters too: their longest axis that it can divide, MODEL's if no other."""
    axes: list[Any] = [*spec(path), *[None] * (len(shape) - len(spec(path)))]
    divided = {i: (DATA,) if axis is None else (axis, DATA) for i, axis in enumerate(axes)}
    possible = [i for i, names in divided.items() if shape[i] % math.prod(on.shape[name] for name in names) == 0]
    if possible and math.prod(shape) >= _SMALL:
        longest = max(possible, key=lambda i: (axes[i] is None, shape[i]))
        axes[longest] = divided[longest]
    return PartitionSpec(*axes)  # type: ignore[no-untyped-call]


def place(params: Params, config: RobertaConfig, on: Mesh, *, fully_sharded: bool = False) -> Params:
    """Puts the parameters on a mesh's devices, divided by RULES; with fully_sharded, along DATA too.

    Raises:
      InputError: the MODEL axis does not divide the number of heads or a width.
    """
    parts = on.shape[MODEL]
    for name in ("num_heads", "hidden_size", "intermediate_size"):
        if getattr(config, name) % parts:
            raise InputError(f"tensor_parallel must divide {name}, got {parts} and {getattr(config, name)}")

    def placed(path: Any, leaf: jax.Array) -> jax.Array:
        name = path_name(path)
        parts = fully_sharded_spec(name, leaf.shape, on) if fully_sharded else spec(name)
        array: jax.Array = jax.device_put(leaf, NamedSharding(on, parts))
        return array

    return jax.tree_util.tree_map_with_path(placed, to_dict(params))


def place_rows(array: npt.NDArray[Any], on: Mesh) -> jax.Array:
    """Puts an array on a mesh's devices, its rows divided along DATA; their number must be a multiple of its size."""
    rows: jax.Array = jax.device_put(array, NamedSharding(on, PartitionSpec(DATA)))  # type: ignore[no-untyped-call]
    return rows


def place_batch(batch: Mapping[str, npt.NDArray[Any]], on: Mesh, axis: int = 0) -> dict[str, jax.Array]:
    """Puts a batch on a mesh's devices, on all hosts, divided along DATA; every process passes the whole batch.

    Args:
      batch: arrays by name; their number of rows is a multiple of DATA's size.
      on: the mesh.
      axis: the axis of the rows.
    """
    rows = NamedSharding(on, PartitionSpec(*[None] * axis, DATA))  # type: ignore[no-untyped-call]
    return {name: jax.make_array_from_callback(array.shape, rows, array.__getitem__) for name, array in batch.items()}


def __dir__() -> list[str]:
    return __all__
