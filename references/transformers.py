"""A configuration in transformers' words, written down from transformers' documentation and not by our exporter."""

from __future__ import annotations

from typing import Any

import transformers

from roberta_flax import RobertaConfig


def configuration(config: RobertaConfig, **others: Any) -> transformers.RobertaConfig:
    """The same sizes as a transformers.RobertaConfig, without token types; `others` are transformers' own options."""
    return transformers.RobertaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=config.intermediate_size,
        max_position_embeddings=config.max_positions + config.pad_id + 1,
        pad_token_id=config.pad_id,
        type_vocab_size=1,
        layer_norm_eps=config.layer_norm_epsilon,
        **others,
    )
