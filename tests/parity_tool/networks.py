"""Small networks of every form, with random parameters, and what torch computes of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from roberta_flax import HeadConfig, RobertaConfig
from roberta_flax.checkpoint import converted
from roberta_flax.nn import forward
from roberta_flax.parity import inputs, points
from roberta_flax.parity.reference import Observed
from roberta_flax.parity.torch_side import torch_side
from roberta_flax.text.tokenizer import Tokenizer

SIZES = {
    "vocab_size": 61,
    "num_layers": 2,
    "hidden_size": 32,
    "num_heads": 4,
    "intermediate_size": 48,
    "max_positions": 24,
    # off where the network evaluates, which a mutation may forget
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.1,
    "pooler_dropout": 0.1,
}

POST_NORM = RobertaConfig(
    **SIZES, heads=(HeadConfig("topic", 3, 16, labels=("a", "b", "c")), HeadConfig("answer", 2, 0, kind="span"))
)
PRE_NORM = RobertaConfig(
    **SIZES,
    normalize_before=True,
    tie_word_embeddings=False,
    type_vocab_size=2,
    heads=(HeadConfig("score", 2, 16, problem="regression"), HeadConfig("topics", 3, 16, problem="multi_label")),
)

# Rows of one batch; the numbers of those below are meant by tests.
_LENGTHS = (1, 2, 5, 11, 24)
LONGEST_ROW = 4  # of max_positions tokens: no padding
GAP_ROW = 5  # padding stands between its tokens
PADDED_ROWS = frozenset({0, 1, 2, 3, GAP_ROW})


@dataclass(frozen=True)
class Network:
    """A converted model, and what torch computes of it.

    Attributes:
      directory, config: the model.
      points: all that are compared, gradients included where `gradients`.
      observations: of one batch; they keep the bounds that were once asked for.
    """

    directory: Path
    config: RobertaConfig
    points: list[str]
    observations: list[Observed]
    gradients: bool


def network(folder: Path, config: RobertaConfig, tokenizer: Tokenizer, gradients: bool = True) -> Network:
    """Writes a model with random parameters, no bias zero and no scale one, and runs it through torch."""
    random = np.random.default_rng(2019)
    params = jax.tree.map(
        lambda leaf: np.asarray(leaf) + random.normal(0, 0.1, leaf.shape).astype(np.float32),
        forward.init_params(config, jax.random.key(0)),
    )
    directory = folder / "model"
    converted.save(directory, config, params, tokenizer)
    names = points.all_points(config, gradients)
    side = torch_side(directory, directory, "builtin", inputs.of_tokens(_rows(config), config, mask_id=60), names)
    return Network(directory, config, names, list(side.observations()), gradients)


def _rows(config: RobertaConfig) -> list[np.ndarray]:
    random = np.random.default_rng(7)
    rows = [random.integers(4, config.vocab_size, length) for length in _LENGTHS]
    gap = random.integers(4, config.vocab_size, 9)
    gap[2:4] = config.pad_id
    return [*rows, gap]
