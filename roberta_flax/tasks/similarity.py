"""The similarity of vectors, dense or sparse, as sentence-transformers has it (util/similarity.py)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse
import scipy.spatial.distance

from roberta_flax.checkpoint.usage import SIMILARITIES
from roberta_flax.errors import InputError


def similarities(embeddings1: Any, embeddings2: Any, name: str) -> npt.NDArray[Any]:
    """Compares all vectors of one set with all of another.

    Args:
      embeddings1, embeddings2: [n, size] and [m, size], of numpy, JAX or scipy.sparse; one vector, [size], is a set of
        one.
      name: one of SIMILARITIES.

    Returns:
      [n, m]: the cosine, the dot product, or the negative Euclidean or Manhattan distance.

    Raises:
      InputError: there is no such similarity.
    """
    are_sparse = scipy.sparse.issparse(embeddings1) and scipy.sparse.issparse(embeddings2)
    if are_sparse and name == "dot":
        return np.asarray((embeddings1 @ embeddings2.T).toarray())
    a, b = (_dense_rows(each) for each in (embeddings1, embeddings2))
    match name:
        case "cosine":
            return np.asarray(normalized(a) @ normalized(b).T)
        case "dot":
            return np.asarray(a @ b.T)
        case "euclidean" | "manhattan":
            metric = "euclidean" if name == "euclidean" else "cityblock"
            distances = scipy.spatial.distance.cdist(a, b, metric)
            return np.asarray(-distances.astype(np.result_type(a, b)))
    raise _unknown(name)


def pairwise_similarities(embeddings1: Any, embeddings2: Any, name: str) -> npt.NDArray[Any]:
    """Compares each vector with the one at the same place in another set: [n], with the values of `similarities`."""
    a, b = (_dense_rows(each) for each in (embeddings1, embeddings2))
    match name:
        case "cosine":
            return np.asarray((normalized(a) * normalized(b)).sum(axis=-1))
        case "dot":
            return np.asarray((a * b).sum(axis=-1))
        case "euclidean":
            return np.asarray(-np.sqrt(np.square(a - b).sum(axis=-1)))
        case "manhattan":
            return np.asarray(-np.abs(a - b).sum(axis=-1))
    raise _unknown(name)


def normalized(vectors: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The vectors, [..., size], divided by their norms."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, 1e-12))  # torch.nn.functional.normalize


def _unknown(name: str) -> InputError:
    return InputError(f"similarity_fn_name must be one of {', '.join(SIMILARITIES)}, got {name!r}")


def _dense_rows(vectors: Any) -> npt.NDArray[Any]:
    return np.atleast_2d(vectors.toarray() if scipy.sparse.issparse(vectors) else np.asarray(vectors))
