"""Small networks with random parameters, and the values that torch computes for them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from roberta_flax import HeadConfig, RobertaConfig
from roberta_flax.checkpoint import converted
from roberta_flax.parity import inputs, tensor_names
from roberta_flax.parity.reference import ReferenceValues
from roberta_flax.parity.torch_reference import make_torch_reference
from roberta_flax.text.tokenizer import Tokenizer
from tests.params import random_params

SIZES = {
    "vocab_size": 61,
    "num_layers": 2,
    "hidden_size": 32,
    "num_heads": 4,
    "intermediate_size": 48,
    "max_positions": 24,
    # off in evaluation, which a mutation may forget
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


def one_layer(config: RobertaConfig) -> RobertaConfig:
    """The same network of one layer."""
    return dataclasses.replace(config, num_layers=1)


# Rows of one batch. Mutations refer to some of them by number.
_LENGTHS = (1, 2, 5, 11, 24)
LONGEST_ROW = 4  # has max_positions tokens, and so no padding
GAP_ROW = 5  # has padding between its tokens
PADDED_ROWS = frozenset({0, 1, 2, 3, GAP_ROW})


@dataclass(frozen=True)
class Network:
    """A converted model, and the values that torch computes for it.

    Attributes:
      directory, config: the model.
      names: the tensors to compare, in the order of computation.
      expected: the values of one batch. They cache the deviations for each rounding.
      gradients: whether gradients are among the tensors.
    """

    directory: Path
    config: RobertaConfig
    names: list[str]
    expected: list[ReferenceValues]
    gradients: bool


def network(folder: Path, config: RobertaConfig, tokenizer: Tokenizer, gradients: bool = True) -> Network:
    """Writes a model with random parameters (no bias is zero, no scale is one), and runs it in torch."""
    directory = folder / "model"
    converted.save(directory, config, random_params(config), tokenizer)
    names = tensor_names.all_names(config, gradients)
    batches = inputs.batches_from_tokens(_rows(config), config, mask_id=60)
    reference = make_torch_reference(directory, directory, "builtin", batches, names)
    return Network(directory, config, names, list(reference.evaluate()), gradients)


def _rows(config: RobertaConfig) -> list[np.ndarray]:
    random = np.random.default_rng(7)
    rows = [random.integers(4, config.vocab_size, length) for length in _LENGTHS]
    gap = random.integers(4, config.vocab_size, 9)
    gap[2:4] = config.pad_id
    return [*rows, gap]
