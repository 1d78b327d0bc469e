"""Trains the embedded model, by the project's own steps: masked words of pairs and sentences, and the pairs' relation.

Every update sees new pairs (convert.tiny.pairs), so that nothing is learned by heart and no dropout is needed. The
masked-LM loss goes on beside the other to the end: one model shall do both, where the released ones do one or the other.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import numpy.typing as npt

from convert.tiny.pairs import Pair, pairs
from roberta_flax import forward
from roberta_flax.batching import length_bucket
from roberta_flax.config import HeadConfig, RobertaConfig
from roberta_flax.forward import Params
from roberta_flax.tokenizer import PAD_ID, Tokenizer
from roberta_flax.train import adam, head_loss, init_optimizer, make_train_step, masked_lm_loss, polynomial_decay
from roberta_flax.train.masking import Masking

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Key

    from roberta_flax.train import Loss

ROWS = 64  # in a batch, of each of the two kinds
WINDOW = 64  # batches whose pairs are sorted by length together
UPDATES, WARMUP, LEARNING_RATE = 9000, 500, 1e-3
POSITIONS = 128
TEXT_SEED, PAIR_SEED, MODEL_SEED = 1, 2, 3

Batch = dict[str, Any]


def config(vocab_size: int) -> RobertaConfig:
    """Sizes that make an archive of under 4 MB, and that a CPU trains in minutes."""
    return RobertaConfig(
        vocab_size=vocab_size, num_layers=4, hidden_size=160, num_heads=5, intermediate_size=480, max_positions=POSITIONS,
        heads=(HeadConfig("mnli", 3, 160),),
    )  # fmt: skip


def train(tokenizer: Tokenizer, updates: int = UPDATES, report: Callable[[int, dict[str, float]], None] | None = None) -> Params:
    """The trained parameters, float32. The same numbers on the same machine."""
    sizes = config(tokenizer.vocab_size)
    optimizer = adam(
        polynomial_decay(LEARNING_RATE, warmup_updates=min(WARMUP, updates), total_updates=updates),
        config=sizes,
        weight_decay=0.01,
        clip_norm=1.0,
    )
    params = forward.init_params(sizes, jax.random.key(MODEL_SEED))
    train_step = make_train_step(two_losses(sizes), optimizer)
    opt_state = init_optimizer(optimizer, params)
    text = masked_batches(tokenizer, TEXT_SEED)
    labelled = labelled_batches(tokenizer, PAIR_SEED)
    for update in range(updates):
        batch = {"text": next(text), "pairs": next(labelled)}
        params, opt_state, metrics = train_step(params, opt_state, batch, jax.random.key(0))
        if report is not None:
            report(update + 1, metrics)
    return params


def two_losses(sizes: RobertaConfig) -> Loss:
    """The sum of the masked-LM loss of batch["text"] and the mnli head's of batch["pairs"], both means; no dropout."""
    of_text, of_pairs = masked_lm_loss(config=sizes), head_loss("mnli", config=sizes)

    def loss(
        params: Params, batch: Batch, key: Key[Array, ""] | None
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        del key
        (text, words), (labels, rows) = of_text(params, batch["text"], None), of_pairs(params, batch["pairs"], None)
        return text / words + labels / rows, jax.numpy.ones(())

    return loss


def by_length(
    tokenizer: Tokenizer, seed: int, ids: Callable[[Pair, np.random.Generator], list[int]]
) -> Iterator[tuple[list[Pair], npt.NDArray[np.int32], np.random.Generator]]:
    """Batches of pairs whose token ids are of about one length, in a random order: pairs, ids [batch, time]."""
    random = np.random.default_rng(seed)
    source = pairs(seed)
    while True:
        window = [(pair, ids(pair, random)) for pair in itertools.islice(source, ROWS * WINDOW)]
        window.sort(key=lambda row: len(row[1]))
        batches = [window[i : i + ROWS] for i in range(0, len(window), ROWS)]
        for i in random.permutation(len(batches)):
            longest = max(len(row) for _, row in batches[i])
            tokens = np.full((ROWS, length_bucket(longest, POSITIONS)), PAD_ID, np.int32)
            for row, (_, tokens_of_pair) in zip(tokens, batches[i], strict=True):
                row[: len(tokens_of_pair)] = tokens_of_pair
            yield [pair for pair, _ in batches[i]], tokens, random


def labelled_batches(tokenizer: Tokenizer, seed: int) -> Iterator[Batch]:
    weights = np.ones(ROWS, np.float32)
    for chosen, tokens, _ in by_length(tokenizer, seed, lambda pair, _: tokenizer.encode(pair.premise, pair.hypothesis)):
        yield {"tokens": tokens, "targets": np.array([pair.label for pair in chosen], np.int32), "weights": weights}


def masked_batches(tokenizer: Tokenizer, seed: int) -> Iterator[Batch]:
    """Single sentences and pairs, half and half, with masks."""

    def ids(pair: Pair, random: np.random.Generator) -> list[int]:
        texts = (pair.premise, pair.hypothesis) if random.random() < 0.5 else (pair.premise,)
        return tokenizer.encode(*texts)

    masking = Masking.of(tokenizer)
    for _, tokens, random in by_length(tokenizer, seed, ids):
        yield masked_batch(tokens, masking, random)


def masked_batch(tokens: npt.NDArray[np.int32], masking: Masking, random: np.random.Generator) -> Batch:
    """The batch of the masked-LM loss that fairseq's masking makes of rows of token ids."""
    masked = tokens.copy()
    shape = len(tokens), masking.most(tokens.shape[1])
    positions, weights = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    for row in range(len(tokens)):
        length = int((tokens[row] != PAD_ID).sum())
        masked[row, :length], chosen = masking.apply(tokens[row, :length], random)
        positions[row, : len(chosen)], weights[row, : len(chosen)] = chosen, 1
    return {
        "tokens": masked,
        "positions": positions,
        "targets": np.take_along_axis(tokens, positions, axis=1),
        "weights": weights,
    }
