"""Train the embedded model with roberta_flax.train, on masked words and on the labels of pairs.

Every step sees new pairs (recipes.tiny.pairs), so the model cannot memorize them and needs no dropout. Both losses are
used to the end, because this one model fills masks and classifies pairs, unlike the released models.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import numpy.typing as npt

from recipes.tiny.generators import Pair
from recipes.tiny.pairs import generate_pairs
from roberta_flax.nn import forward
from roberta_flax.nn.config import MNLI_LABELS, HeadConfig, RobertaConfig
from roberta_flax.nn.forward import Params
from roberta_flax.text.batching import length_bucket
from roberta_flax.text.fairseq_tokenizer import PAD_ID
from roberta_flax.text.tokenizer import Tokenizer
from roberta_flax.train import adam, head_loss, init_optimizer, make_train_step, masked_lm_loss, polynomial_decay
from roberta_flax.train.masked_batches import batch_of
from roberta_flax.train.masking import Masking

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Key

    from roberta_flax.train import Loss

ROWS = 64  # of each kind in a batch
WINDOW = 64  # batches whose pairs are sorted by length together
STEPS, WARMUP_STEPS, LEARNING_RATE = 4000, 400, 1e-3
MAX_LENGTH = 128
LONG_TEXT_PROBABILITY = 1 / 64
SENTENCES_PER_LONG_TEXT = 12
PAIR_SEED, MODEL_SEED = 1, 2

Batch = Mapping[str, Any]
OnStep = Callable[[int, Mapping[str, Any]], None]  # called with the number of steps and the metrics of make_train_step


def config(vocab_size: int) -> RobertaConfig:
    """Returns a configuration that makes an archive under 4 MB and trains in minutes on a CPU."""
    return RobertaConfig(
        vocab_size=vocab_size, num_layers=4, hidden_size=160, num_heads=5, intermediate_size=480,
        max_positions=MAX_LENGTH, heads=(HeadConfig("mnli", 3, 160, labels=MNLI_LABELS),),
    )  # fmt: skip


def train(tokenizer: Tokenizer, steps: int = STEPS, on_step: OnStep | None = None) -> Params:
    """Returns the trained parameters in float32. They are the same every time on the same machine."""
    model_config = config(tokenizer.vocab_size)
    schedule = polynomial_decay(LEARNING_RATE, warmup_steps=min(WARMUP_STEPS, steps), total_steps=steps)
    optimizer = adam(schedule, config=model_config, weight_decay=0.01, clip_norm=1.0)
    params = forward.init_params(model_config, jax.random.key(MODEL_SEED))
    train_step = make_train_step(joint_loss(model_config), optimizer)
    opt_state = init_optimizer(optimizer, params)
    for step, batch in enumerate(itertools.islice(batches(tokenizer, PAIR_SEED), steps)):
        params, opt_state, metrics = train_step(params, opt_state, batch, jax.random.key(0))
        if on_step is not None:
            on_step(step + 1, metrics)
    return params


def joint_loss(model_config: RobertaConfig) -> Loss:
    """Returns the sum of the masked-LM loss of batch["text"] and the loss of the mnli head on batch["pairs"].

    Both are means, and without dropout.
    """
    lm_loss, pair_loss = masked_lm_loss(config=model_config), head_loss("mnli", config=model_config)

    def loss(params: Params, batch: Batch, key: Key[Array, ""] | None) -> tuple[Float[Array, ""], Float[Array, ""]]:
        del key
        lm_total, lm_weight = lm_loss(params, batch["text"], None)
        pair_total, pair_weight = pair_loss(params, batch["pairs"], None)
        return lm_total / lm_weight + pair_total / pair_weight, jax.numpy.ones(())

    return loss


def batches(tokenizer: Tokenizer, seed: int) -> Iterator[Batch]:
    """Yields batches for `joint_loss` without end: "pairs" with their labels, and "text" with masks.

    The rows of a batch have similar lengths, and so do its two parts, so that there are few shapes to compile. The
    batches of a window come in random order.
    """
    random = np.random.default_rng(seed)
    source = generate_pairs(seed)
    masking = Masking.of(tokenizer)
    while True:
        window = list(itertools.islice(source, ROWS * WINDOW))
        labels = np.array([pair.label for pair in window], np.int32)
        pair_rows = [tokenizer.encode(pair.premise, pair.hypothesis) for pair in window]
        text_rows = [
            _encode_text(window, number, pair_rows[number], tokenizer, random.random()) for number in range(len(window))
        ]
        pair_order, text_order = (_order_by_length(rows) for rows in (pair_rows, text_rows))
        for i in random.permutation(WINDOW):
            yield {
                "pairs": {
                    "tokens": _pad([pair_rows[j] for j in pair_order[i]]),
                    "targets": labels[pair_order[i]],
                    "weights": np.ones(ROWS, np.float32),
                },
                "text": _mask([text_rows[j] for j in text_order[i]], masking, random),
            }


def _order_by_length(rows: Sequence[npt.NDArray[np.int32]]) -> npt.NDArray[np.intp]:
    """Returns the numbers of the rows of each batch, [WINDOW, ROWS], sorted by length."""
    return np.argsort([len(row) for row in rows], kind="stable").reshape(WINDOW, ROWS)


def _encode_text(
    window: Sequence[Pair], number: int, pair_row: npt.NDArray[np.int32], tokenizer: Tokenizer, chance: float
) -> npt.NDArray[np.int32]:
    """Returns a text to mask: a pair, its premise, or now and then many sentences, to train the later positions."""
    if chance < LONG_TEXT_PROBABILITY:
        sentences = " ".join(pair.premise for pair in window[number : number + SENTENCES_PER_LONG_TEXT])
        return tokenizer.encode(sentences)[:MAX_LENGTH]
    return tokenizer.encode(window[number].premise) if chance < 0.5 else pair_row


def _pad(rows: Sequence[npt.NDArray[np.int32]]) -> npt.NDArray[np.int32]:
    tokens = np.full((len(rows), _padded_length(rows)), PAD_ID, np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    return tokens


def _mask(rows: Sequence[npt.NDArray[np.int32]], masking: Masking, random: np.random.Generator) -> Batch:
    """Masks rows of token ids as fairseq does, and returns a batch for the masked-LM loss."""
    length = _padded_length(rows)
    masked = [masking.apply(row, random) for row in rows]
    return batch_of(rows, masked, (len(rows), length, masking.most(length)))


def _padded_length(rows: Sequence[npt.NDArray[np.int32]]) -> int:
    return length_bucket(max(map(len, rows)), MAX_LENGTH)
