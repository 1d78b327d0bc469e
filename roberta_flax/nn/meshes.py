"""Any mesh, for functions inside jax.jit: the one that arguments are on, whatever the caller has set, with Auto axes.

JAX has two kinds of mesh axes for arrays of all devices (and a third, of jax.shard_map). Along Auto axes the compiler
divides what is computed. Along Explicit axes, which jax.make_mesh makes by default, every operation says how its result
is divided, and refuses what is ambiguous. The network's functions are written for the first kind; under the second they
run in Auto mode, and only their arguments and results are explicit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec, auto_axes

from roberta_flax.nn.sharding import DATA, MODEL

P = ParamSpec("P")
R = TypeVar("R")

_NO_MESH = Mesh(np.empty((), object), ())


def own_mesh(mesh: Mesh | None) -> AbstractContextManager[Any]:
    """Outside of jax.jit: takes the place of the caller's jax.set_mesh; None for no mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return nullcontext()
    return jax.set_mesh(_NO_MESH if mesh is None else mesh)


def with_own_mesh(function: Callable[P, R]) -> Callable[P, R]:
    """Has a function with a keyword argument `mesh` run on that mesh, whatever the caller has set."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with own_mesh(kwargs.get("mesh")):  # type: ignore[arg-type]
            return function(*args, **kwargs)

    return run


def on_mesh_of_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """Has a function run on the mesh of its arrays where that is another than the one of jax.set_mesh."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with _using(_mesh_of(jax.tree.leaves((args, kwargs)))):
            return function(*args, **kwargs)

    return run


def in_auto_mode(function: Callable[P, R]) -> Callable[P, R]:
    """Has a function run on the mesh of its arrays, all of whose axes are Auto for it.

    Results, but scalars, are divided by rows as the second argument, `tokens` or `inputs_embeds` is; without such an
    array they are whole.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        leaves, tree = jax.tree.flatten((args, kwargs))
        places = [i for i, leaf in enumerate(leaves) if _is_array(leaf)]

        def of_arrays(*arrays: Any) -> R:
            changed = dict(zip(places, arrays, strict=True))
            args, kwargs = jax.tree.unflatten(tree, [changed.get(i, leaf) for i, leaf in enumerate(leaves)])
            return function(*args, **kwargs)

        arrays = [leaves[i] for i in places]
        with _using(_mesh_of(arrays)):
            mesh, explicit = _explicit_axes(arrays)
            if not explicit:
                return function(*args, **kwargs)
            rows = _rows(*args[1:2], kwargs.get("tokens"), kwargs.get("inputs_embeds"))
            shapes = jax.eval_shape(auto_axes(of_arrays, axes=explicit, out_sharding=_spec()), *arrays)
            specs = jax.tree.map(lambda x: NamedSharding(mesh, _spec(rows) if x.ndim else _spec()), shapes)
            result: R = auto_axes(of_arrays, axes=explicit, out_sharding=specs)(*arrays)
            return result

    return run


def with_rows_divided(x: jax.Array) -> jax.Array:
    """Keeps the rows of an array [batch, ...] divided along DATA, on a mesh of the axes of sharding.mesh, in Auto mode.

    Along Auto axes the compiler divides activations as it likes. Where DATA divides parameters too (fully sharded), it
    may gather the rows of all devices instead of the parameters. A mesh with other axes may divide rows along those too
    and is left to the compiler.
    """
    mesh = _mesh_of([x])
    mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    if not kinds.keys() <= {DATA, MODEL} or kinds.get(DATA) != AxisType.Auto or mesh.shape[DATA] == 1:
        return x
    if x.shape[0] % mesh.shape[DATA]:
        return x
    rows = NamedSharding(mesh, _spec(DATA, *[PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)))
    kept: jax.Array = jax.lax.with_sharding_constraint(x, rows)  # type: ignore[no-untyped-call]
    return kept


def has_explicit_axes(tree: Any) -> bool:
    """Whether the mesh of a tree's arrays, or else the caller's, has an Explicit axis."""
    return bool(_explicit_axes(jax.tree.leaves(tree))[1])


def _explicit_axes(leaves: Iterable[Any]) -> tuple[AbstractMesh, tuple[str, ...]]:
    """The mesh of arrays, or else the caller's, and its Explicit axes."""
    mesh = _mesh_of(leaves)
    mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    axes = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return mesh, tuple(name for name, kind in axes if kind == AxisType.Explicit)


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def _mesh_of(leaves: Iterable[Any]) -> AbstractMesh | None:
    """The mesh that arrays are on, or None where they are on none."""
    meshes = (jax.typeof(leaf).sharding.mesh for leaf in leaves if _is_array(leaf))
    return next((mesh for mesh in meshes if not mesh.empty), None)


def _using(mesh: AbstractMesh | None) -> AbstractContextManager[Any]:
    context = jax.sharding.get_abstract_mesh()
    if mesh is None or mesh == context:
        return nullcontext()
    return jax.sharding.use_abstract_mesh(mesh)


def _rows(*arrays: Any) -> Any:
    """The mesh axes that divide the rows of the first of these that is an array, or None."""
    specs = [jax.typeof(array).sharding.spec for array in arrays if _is_array(array)]
    return specs[0][0] if specs and len(specs[0]) else None


def _spec(*axes: Any) -> PartitionSpec:
    return PartitionSpec(*axes)  # type: ignore[no-untyped-call]
