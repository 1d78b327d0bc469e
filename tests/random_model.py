"""Writes the model that most tests use, tests/data/roberta.random.tar.gz: python -m tests.random_model

In the form of the released ones, as the embedded model, and smaller than that: two layers, and weights that are random, so
that no bias is zero, no scale is one, and a test cannot pass by what a model has learned.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from recipes.tiny.fairseq_archive import model_file, tokenizer_files, train_bpe, write_archive
from roberta_flax import HeadConfig, RobertaConfig
from roberta_flax.text.fairseq_tokenizer import ENCODER_FILE

NAME = "roberta.random"
ARCHIVE = Path(__file__).parent / "data" / f"{NAME}.tar.gz"
MERGES = 320

# What the BPE is trained on; written for this file.
TEXT = """\
RoBERTa is a heavily optimized version of BERT. RoBERTa is not very optimized. RoBERTa is based on BERT.
A man is playing a guitar on the stage. A woman is playing the piano in the park. Nobody is playing anything.
The first Star wars movie came out in 1977. The first movie that I saw was about a war between two small towns.
Two children are running through the green grass while their mother watches them from the garden.
The dog is sleeping under the table. A black cat is sitting on the red chair and looking out of the window.
It's raining, so we'll stay at home; they're reading the news, and I've made some tea that you'd like.
The price of the train ticket was 25 dollars in 2019 and more than 40 dollars five years later.
Some of the people in the room were talking, others were listening to the music, and one was writing a letter.
There is no one in the house. There is someone in the house. The house is empty. The house is full of people.
He said that the model would learn from data, and she asked what it would learn when there was none.
This sentence is true. That sentence is false. Whether the other sentence follows from this one is the question.
"""


def config(vocab_size: int) -> RobertaConfig:
    return RobertaConfig(
        vocab_size=vocab_size,
        num_layers=2,
        hidden_size=64,
        num_heads=4,
        intermediate_size=128,
        heads=(HeadConfig("mnli", 3, 64),),
    )


def state_dict(config: RobertaConfig) -> dict[str, torch.Tensor]:
    """Random weights under the names of the released checkpoints; no bias is zero and no scale is one."""
    hidden, intermediate = config.hidden_size, config.intermediate_size
    random = np.random.default_rng(2019)

    def normal(*shape: int, mean: float = 0.0, deviation: float = 0.1) -> torch.Tensor:
        return torch.from_numpy(random.normal(mean, deviation, shape).astype(np.float32))

    def linear(name: str, inputs: int, outputs: int) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": normal(outputs, inputs), f"{name}.bias": normal(outputs)}

    def layer_norm(name: str) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": normal(hidden, mean=1.0), f"{name}.bias": normal(hidden)}

    encoder = "decoder.sentence_encoder"
    tokens, positions = normal(config.vocab_size, hidden), normal(config.max_positions + 2, hidden)
    tokens[1] = positions[1] = 0.0  # padding
    state = {f"{encoder}.embed_tokens.weight": tokens, f"{encoder}.embed_positions.weight": positions}
    for i in range(config.num_layers):
        layer = f"{encoder}.layers.{i}"
        state[f"{layer}.self_attn.in_proj_weight"] = normal(3 * hidden, hidden)
        state[f"{layer}.self_attn.in_proj_bias"] = normal(3 * hidden)
        state |= linear(f"{layer}.self_attn.out_proj", hidden, hidden) | layer_norm(f"{layer}.self_attn_layer_norm")
        state |= linear(f"{layer}.fc1", hidden, intermediate) | linear(f"{layer}.fc2", intermediate, hidden)
        state |= layer_norm(f"{layer}.final_layer_norm")
    state |= layer_norm(f"{encoder}.emb_layer_norm")
    state |= {"decoder.lm_head.weight": tokens, "decoder.lm_head.bias": normal(config.vocab_size)}
    state |= linear("decoder.lm_head.dense", hidden, hidden) | layer_norm("decoder.lm_head.layer_norm")
    head = "classification_heads.mnli"
    return (
        state
        | linear(f"{head}.dense", hidden, hidden)
        | linear(f"{head}.out_proj", hidden, config.heads[0].num_classes)
    )


def files() -> dict[str, bytes]:
    """The files of the archive by name."""
    tokenizer = tokenizer_files(train_bpe([TEXT], MERGES))
    sizes = config(len(json.loads(tokenizer[ENCODER_FILE])) + 5)
    return {"model.pt": model_file(state_dict(sizes), sizes), **tokenizer}


if __name__ == "__main__":
    write_archive(ARCHIVE, NAME, files())
    print(f"{ARCHIVE.name}: {ARCHIVE.stat().st_size} bytes")
