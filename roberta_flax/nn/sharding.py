"""Meshes of devices, and the part of the parameters that each device holds.

A mesh has two axes. DATA divides the rows of a batch and replicates the model; MODEL divides each layer's matrices
(Shoeybi et al., 2019: the first of two products by columns, the second by rows). For training, DATA may divide the
parameters too (fully sharded; Rajbhandari et al., 2020): each is gathered where it is used. A mesh of your own, of
jax.make_mesh too, may have other names for them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

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
    "rules",
    "spec",
]

DATA, MODEL = "data", "model"
# Paths of the tree (docs/parameters.md) -> the mesh axis that divides each axis; other parameters are replicated.
Rules: TypeAlias = Sequence[tuple[str, tuple[str | None, ...]]]
RULES: Rules = (
    (r"(embeddings\.token|lm_head)\.embedding", (None, MODEL)),
    (r"layers\.\d+\.attention\.(query|key|value)\.kernel", (None, MODEL)),
    (r"layers\.\d+\.attention\.(query|key|value)\.(bias|kernel_scale)", (MODEL,)),
    (r"layers\.\d+\.attention\.output\.kernel", (MODEL, None)),
    (r"layers\.\d+\.feed_forward\.intermediate\.kernel", (None, MODEL)),
    (r"layers\.\d+\.feed_forward\.intermediate\.(bias|kernel_scale)", (MODEL,)),
    (r"layers\.\d+\.feed_forward\.output\.kernel", (MODEL, None)),
    (r"layers\.\d+\.(attention|feed_forward)\.output\.smoothing", (MODEL,)),
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


def rules(model: str = MODEL) -> Rules:
    """RULES for a mesh that calls the MODEL axis something else."""
    return tuple((pattern, tuple(axis and model for axis in axes)) for pattern, axes in RULES)


def spec(path: str, rules: Rules = RULES) -> PartitionSpec:
    """The mesh axes that divide the parameter at a dotted path."""
    axes = next((axes for pattern, axes in rules if re.fullmatch(pattern, path)), ())
    return PartitionSpec(*axes)  # type: ignore[no-untyped-call]


def fully_sharded_spec(
    path: str, shape: Sequence[int], on: Mesh, rules: Rules = RULES, data: str = DATA
) -> PartitionSpec:
    """The same where `data` divides parameters too: their longest axis that it can divide, if possible a whole one.

    A table of embeddings is divided by columns: each device looks up its columns for the tokens of all devices. With
    the table's rows divided, each device would hold whole features of all tokens.
    """
    axes: list[Any] = [*spec(path, rules), *[None] * (len(shape) - len(spec(path, rules)))]
    divided = {i: (data,) if axis is None else (axis, data) for i, axis in enumerate(axes)}
    if re.match(r"embeddings\.\w+\.embedding", path):
        del divided[0]
    possible = [i for i, names in divided.items() if shape[i] % math.prod(on.shape[name] for name in names) == 0]
    if possible and math.prod(shape) >= _SMALL:
        longest = max(possible, key=lambda i: (axes[i] is None, shape[i]))
        axes[longest] = divided[longest]
    return PartitionSpec(*axes)  # type: ignore[no-untyped-call]


def place(
    params: Params,
    config: RobertaConfig,
    on: Mesh,
    *,
    fully_sharded: bool = False,
    rules: Rules = RULES,
    data: str = DATA,
) -> Params:
    """Puts the parameters on a mesh's devices, divided by `rules`; with fully_sharded, along `data` too.

    Args:
      params, config: the model.
      on: the mesh, of any axes, Auto or Explicit: from `mesh`, or jax.make_mesh.
      fully_sharded: whether the `data` axis divides parameters too.
      rules: regular expressions of paths, and for each the mesh axis that divides each axis of the parameter. Where the
        mesh calls MODEL something else, use rules(model="tp"); () replicates all parameters.
      data: the name of the DATA axis.

    Raises:
      InputError: the mesh has no such axis, or its size does not divide the number of heads or a width.
    """
    _check_axes(on, [*(axis for _, axes in rules for axis in axes if axis), *[data] * fully_sharded])
    _check_heads(config, on, rules)

    def placed(path: Any, leaf: jax.Array) -> jax.Array:
        name = path_name(path)
        parts = fully_sharded_spec(name, leaf.shape, on, rules, data) if fully_sharded else spec(name, rules)
        _check_divided(name, leaf.shape, on, parts)
        array: jax.Array = jax.device_put(leaf, NamedSharding(on, parts))
        return array

    return jax.tree_util.tree_map_with_path(placed, to_dict(params))


def place_rows(array: npt.NDArray[Any], on: Mesh, data: str = DATA) -> jax.Array:
    """Puts an array on a mesh's devices, its rows divided along `data`; their number must be a multiple of its size."""
    rows: jax.Array = jax.device_put(array, NamedSharding(on, PartitionSpec(data)))  # type: ignore[no-untyped-call]
    return rows


def place_batch(
    batch: Mapping[str, npt.NDArray[Any]], on: Mesh, axis: int = 0, data: str = DATA
) -> dict[str, jax.Array]:
    """Puts a batch on a mesh's devices, on all hosts, divided along `data`; every process passes the whole batch.

    Args:
      batch: arrays by name; their number of rows is a multiple of the `data` axis's size.
      on: the mesh.
      axis: the axis of the rows.
      data: the name of the DATA axis.
    """
    rows = NamedSharding(on, PartitionSpec(*[None] * axis, data))  # type: ignore[no-untyped-call]
    return {name: jax.make_array_from_callback(array.shape, rows, array.__getitem__) for name, array in batch.items()}


def everywhere(on: Mesh) -> NamedSharding:
    """The sharding of arrays that each of a mesh's devices has whole."""
    return NamedSharding(on, PartitionSpec())  # type: ignore[no-untyped-call]


def replicated(tree: Any, on: Mesh) -> Any:
    """Replicates on a mesh, on all hosts, the arrays of a tree that are not on its devices; not those of a trace."""
    devices, whole = set(on.devices.flat), everywhere(on)

    def on_mesh(leaf: Any) -> Any:
        if isinstance(leaf, jax.core.Tracer) or (isinstance(leaf, jax.Array) and leaf.sharding.device_set == devices):
            return leaf
        values = np.asarray(leaf)
        return jax.make_array_from_callback(values.shape, whole, lambda index: values[index])

    return jax.tree.map(on_mesh, tree)


def _check_axes(on: Mesh, names: Sequence[str]) -> None:
    if missing := sorted(set(names) - set(on.axis_names)):
        raise InputError(
            f"the mesh has the axes {', '.join(map(repr, on.axis_names))}, and not {', '.join(map(repr, missing))}; "
            'name yours by rules=sharding.rules(model="...") and data="...", or replicate all parameters by rules=()'
        )


def _check_heads(config: RobertaConfig, on: Mesh, rules: Rules) -> None:
    """Attention is divided by whole heads."""
    for axis in filter(None, spec("layers.0.attention.query.kernel", rules)):
        for name in ("num_heads", "hidden_size", "intermediate_size"):
            if getattr(config, name) % on.shape[axis]:
                raise InputError(
                    f"tensor_parallel must divide {name}, got {on.shape[axis]} and {getattr(config, name)}"
                )


def _check_divided(name: str, shape: Sequence[int], on: Mesh, parts: PartitionSpec) -> None:
    for size, axes in zip(shape, parts, strict=False):
        number = math.prod(on.shape[axis] for axis in ([axes] if isinstance(axes, str) else axes or ()))
        if size % number:
            raise InputError(f"the rules divide {name} {list(shape)} by {parts}, but {number} does not divide {size}")


def __dir__() -> list[str]:
    return __all__
