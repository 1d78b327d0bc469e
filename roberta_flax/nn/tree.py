"""Parameter trees by path: a leaf is identified by its dotted name, never by its position.

The public form of a tree is nested dicts with string keys ("layers" -> "0", "1", ...). Checkpointers, flax's
traverse_util and older versions of this package produce other forms of the same tree: integer keys or lists of layers,
FrozenDict, nnx.State. All of them have the same names, and `to_dict` converts them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from roberta_flax.errors import InputError

Params = Any  # a parameter tree: nested dicts of arrays, or another form that to_dict takes

_MAX_PROBLEMS = 100  # named in a message


def to_dict(params: Params) -> dict[str, Any]:
    """Converts a parameter tree to nested dicts with string keys; the leaves stay as they are.

    Args:
      params: nested mappings (dict, FrozenDict) with string or integer keys, lists or tuples of subtrees, or an
        nnx.State.

    Raises:
      InputError: something else, or two keys of the same name, such as 1 and "1".
    """
    if isinstance(params, nnx.State):
        params = nnx.to_pure_dict(params)
    if isinstance(params, Sequence) and not isinstance(params, str):
        params = dict(enumerate(params))
    if not isinstance(params, Mapping):
        raise InputError(
            f"expected a parameter tree (nested dicts of arrays, FrozenDict or nnx.State), got {type(params).__name__}"
        )
    tree = {str(key): to_dict(node) if _is_subtree(node) else node for key, node in params.items()}
    if len(tree) != len(params):
        raise InputError(f"a parameter tree has two keys of the same name: {', '.join(map(repr, params))}")
    return tree


def path_name(path: tuple[Any, ...]) -> str:
    """The dotted name of a leaf, from its path as jax.tree_util.tree_flatten_with_path returns it."""
    return ".".join(str(getattr(part, "key", getattr(part, "idx", part))) for part in path)


def flatten(params: Params) -> dict[str, Any]:
    """The leaves of a parameter tree by dotted name."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(to_dict(params))[0]}


def unflatten(leaves: Mapping[str, Any], like: Params) -> Params:
    """The tree of `like`'s structure with these leaves, by dotted name: the inverse of `flatten`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: leaves[path_name(path)], like)


def mismatches(shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Describes each leaf that is missing, unexpected or of another shape; shapes are by dotted name."""
    return [
        *(f"missing: {name} {list(expected[name])}" for name in expected.keys() - shapes.keys()),
        *(f"unexpected: {name} {list(shapes[name])}" for name in shapes.keys() - expected.keys()),
        *(
            f"wrong shape: {name} is {list(shapes[name])}, expected {list(expected[name])}"
            for name in expected.keys() & shapes.keys()
            if tuple(shapes[name]) != tuple(expected[name])
        ),
    ]


def describe_problems(problems: Sequence[str]) -> str:
    """Joins the problems, sorted, into one line. At most 100 are listed; the rest are counted."""
    some = sorted(problems)[:_MAX_PROBLEMS]
    return "; ".join(some) + (f"; and {len(problems) - len(some)} more" if len(problems) > len(some) else "")


def arranged(params: Params, like: Params) -> Params:
    """The leaves of `params`, matched by name, in the structure of `like`.

    Raises:
      InputError: a leaf is missing, unexpected or of another shape than `like`'s. The message names all of them.
    """
    leaves, expected = flatten(params), flatten(like)
    shapes = {name: tuple(getattr(leaf, "shape", ())) for name, leaf in leaves.items()}
    if problems := mismatches(shapes, {name: leaf.shape for name, leaf in expected.items()}):
        raise InputError(f"the parameters do not fit the configuration: {describe_problems(problems)}")
    return unflatten(leaves, like)


def _is_subtree(node: Any) -> bool:
    return isinstance(node, (Mapping, nnx.State, list, tuple))
