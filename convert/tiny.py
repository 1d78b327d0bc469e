"""Writes the embedded default, roberta_flax/data/roberta.tiny.tar.gz, from fixed seeds: python -m convert.tiny

A RoBERTa in the form in which the real ones were released in 2019: an archive with one directory, in it model.pt in
torch's legacy format, with `decoder.` names, fused in_proj_weight and an `mnli` head, and dict.txt; and its own small
byte-level BPE beside them. Its weights are random: it shows that everything works, and knows nothing.
"""

from __future__ import annotations

import argparse
import collections
import gzip
import io
import itertools
import json
import tarfile
from pathlib import Path

import numpy as np
import regex
import torch

from roberta_flax.tokenizer import byte_alphabet

ARCHIVE = Path(__file__).parent.parent / "roberta_flax" / "data" / "roberta.tiny.tar.gz"
MERGES = 320
LAYERS, HIDDEN, HEADS, INTERMEDIATE, POSITIONS, CLASSES = 2, 64, 4, 128, 512, 3

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


def train_bpe(text: str, merges: int) -> list[tuple[str, str]]:
    """Byte-level BPE by the book (Sennrich et al., 2016): merge the most frequent pair, again and again."""
    alphabet = byte_alphabet()
    words = collections.Counter(
        tuple(alphabet[byte] for byte in word.encode())
        for word in regex.findall(r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+", text)
    )
    learned: list[tuple[str, str]] = []
    while len(learned) < merges:
        pairs: collections.Counter[tuple[str, str]] = collections.Counter()
        for word, count in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += count
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        learned.append(best)
        words = collections.Counter({_merged(word, best): count for word, count in words.items()})
    return learned


def _merged(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    parts: list[str] = []
    for part in word:
        # the pair's second half joins a first half that stands alone
        if parts and (parts[-1], part) == pair:
            parts[-1] += part
        else:
            parts.append(part)
    return tuple(parts)


def state_dict(vocab_size: int) -> dict[str, torch.Tensor]:
    """Random weights under the names of the released checkpoints; no bias is zero and no scale is one."""
    random = np.random.default_rng(2019)

    def normal(*shape: int, mean: float = 0.0, deviation: float = 0.1) -> torch.Tensor:
        return torch.from_numpy(random.normal(mean, deviation, shape).astype(np.float32))

    def linear(name: str, inputs: int, outputs: int) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": normal(outputs, inputs), f"{name}.bias": normal(outputs)}

    def layer_norm(name: str) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": normal(HIDDEN, mean=1.0), f"{name}.bias": normal(HIDDEN)}

    encoder = "decoder.sentence_encoder"
    tokens, positions = normal(vocab_size, HIDDEN), normal(POSITIONS + 2, HIDDEN)
    tokens[1] = positions[1] = 0.0  # padding
    state = {f"{encoder}.embed_tokens.weight": tokens, f"{encoder}.embed_positions.weight": positions}
    for i in range(LAYERS):
        layer = f"{encoder}.layers.{i}"
        state[f"{layer}.self_attn.in_proj_weight"] = normal(3 * HIDDEN, HIDDEN)
        state[f"{layer}.self_attn.in_proj_bias"] = normal(3 * HIDDEN)
        state |= linear(f"{layer}.self_attn.out_proj", HIDDEN, HIDDEN) | layer_norm(f"{layer}.self_attn_layer_norm")
        state |= linear(f"{layer}.fc1", HIDDEN, INTERMEDIATE) | linear(f"{layer}.fc2", INTERMEDIATE, HIDDEN)
        state |= layer_norm(f"{layer}.final_layer_norm")
    state |= layer_norm(f"{encoder}.emb_layer_norm")
    state |= {"decoder.lm_head.weight": tokens, "decoder.lm_head.bias": normal(vocab_size)}
    state |= linear("decoder.lm_head.dense", HIDDEN, HIDDEN) | layer_norm("decoder.lm_head.layer_norm")
    head = "classification_heads.mnli"
    return state | linear(f"{head}.dense", HIDDEN, HIDDEN) | linear(f"{head}.out_proj", HIDDEN, CLASSES)


def arguments() -> argparse.Namespace:
    """The arguments of a masked-LM training of 2019, as far as a model and its task are made from them."""
    return argparse.Namespace(
        arch="roberta_base", task="masked_lm", criterion="masked_lm", data=".", seed=1, no_seed_provided=False,
        sample_break_mode="complete", tokens_per_sample=POSITIONS, max_positions=POSITIONS, mask_prob=0.15,
        leave_unmasked_prob=0.1, random_token_prob=0.1, freq_weighted_replacement=False, mask_whole_words=False,
        encoder_layers=LAYERS, encoder_embed_dim=HIDDEN, encoder_ffn_embed_dim=INTERMEDIATE,
        encoder_attention_heads=HEADS, activation_fn="gelu", pooler_activation_fn="tanh", dropout=0.1,
        attention_dropout=0.1, activation_dropout=0.0, pooler_dropout=0.0, encoder_layerdrop=0.0,
        encoder_layers_to_keep=None, num_classes=CLASSES,
    )  # fmt: skip


def files() -> dict[str, bytes]:
    """The files of the archive by name."""
    merges = train_bpe(TEXT, MERGES)
    pieces = [*sorted(byte_alphabet()), *(left + right for left, right in merges)]
    encoder = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    dictionary = "".join(f"{i} {len(encoder) - i}\n" for i in range(len(encoder)))
    checkpoint = {
        "args": arguments(),
        "model": state_dict(vocab_size=len(encoder) + 5),
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
        "optimizer_history": [
            {
                "criterion_name": "MaskedLmLoss",
                "optimizer_name": "FairseqAdam",
                "lr_scheduler_state": {},
                "num_updates": 0,
            }
        ],
        "last_optimizer_state": None,
    }
    model = io.BytesIO()
    torch.save(checkpoint, model, _use_new_zipfile_serialization=False)
    return {
        "model.pt": model.getvalue(),
        "dict.txt": dictionary.encode(),
        "encoder.json": json.dumps(encoder, ensure_ascii=False).encode(),
        "vocab.bpe": "".join(["#version: 0.2\n", *(f"{left} {right}\n" for left, right in merges)]).encode(),
    }


def write(path: Path) -> None:
    """Writes the archive; times and owners in it are fixed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.GzipFile(path, "wb", mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in files().items():
            member = tarfile.TarInfo(f"roberta.tiny/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


if __name__ == "__main__":
    write(ARCHIVE)
    print(f"{ARCHIVE.name}: {ARCHIVE.stat().st_size} bytes")
