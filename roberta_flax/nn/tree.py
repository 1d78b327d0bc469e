"""Leaves of parameter trees by their paths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from roberta_flax.nn.forward import Params


def path_name(path: tuple[Any, ...]) -> str:
    """The dotted name of a leaf, from its path as jax.tree_util.tree_flatten_with_path gives it."""
    return ".".join(str(part.key) for part in path)


def flatten(params: Params) -> dict[str, Any]:
    """The leaves of a parameter tree by dotted name."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}


def unflatten(leaves: Mapping[str, Any], like: Params) -> Params:
    """The tree of `like`'s structure with these leaves, by dotted name: the inverse of `flatten`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: leaves[path_name(path)], like)
