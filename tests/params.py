"""Random parameters without JAX: forward.init_params compiles a program for each of its many small operations."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from roberta_flax import RobertaConfig, forward


def random_params(config: RobertaConfig, dtype: Any = np.float32, deviation: float = 0.1, seed: int = 0) -> Any:
    """Numbers around zero, and scales around one, so that no bias is zero and no scale is one."""
    random = np.random.default_rng(seed)

    def of_leaf(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return jax.numpy.asarray(random.normal(mean, deviation, leaf.shape).astype(dtype))

    return jax.tree_util.tree_map_with_path(of_leaf, forward.abstract_params(config, dtype))
