"""Span heads: the most likely answer span."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def best_span(scores: npt.NDArray[Any]) -> tuple[int, int]:
    """Finds the most likely span, and returns its first and its last token.

    Args:
      scores: [tokens, 2], log-probabilities or logits of each token to be the start, and to be the end.
    """
    joint = scores[:, None, 0] + scores[None, :, 1]
    start, end = np.unravel_index(np.where(np.tri(len(scores), k=-1), -np.inf, joint).argmax(), joint.shape)
    return int(start), int(end)
