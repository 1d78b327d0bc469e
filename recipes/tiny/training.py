"""Trains the embedded model, by the project's own steps: masked words of pairs and sentences, and the pairs' relation.

Every step sees new pairs (recipes.tiny.pairs), so that nothing is learned by heart and no dropout is needed. The
masked-LM loss goes on beside the other to the end: one model shall do both, where of the released ones one does each.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import numpy.typing as npt

from recipes.tiny.families import Pair
from recipes.tiny.pairs import pairs
from roberta_flax.nn import forward
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from roberta_flax.nn.forward import Params
from roberta_flax.text.batching import length_bucket
from roberta_flax.text.tokenizer import PAD_ID, Tokenizer
from roberta_flax.train import adam, head_loss, init_optimizer, make_train_step, masked_lm_loss, polynomial_decay
from roberta_flax.train.masked_batches import batch_of
from roberta_flax.train.masking import Masking

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Key

    from roberta_flax.train import Loss

ROWS = 64  # in a batch, of each of the two kinds
WINDOW = 64  # batches whose pairs are sorted by length together
STEPS, WARMUP, LEARNING_RATE = 4000, 400, 1e-3
POSITIONS = 128
SEVERAL = 1 / 64  # of the texts are several sentences
PAIR_SEED, MODEL_SEED = 1, 2

Batch = Mapping[str, Any]
Report = Callable[[int, Mapping[str, Any]], None]  # steps done, and make_train_step's metrics


def config(vocab_size: int) -> RobertaConfig:
    """Sizes that make an archive of under 4 MB, and that a CPU trains in minutes."""
    return RobertaConfig(
        vocab_size=vocab_size, num_layers=4, hidden_size=160, num_heads=5, intermediate_size=480,
        max_positions=POSITIONS, heads=(HeadConfig("mnli", 3, 160),),
    )  # fmt: skip


def train(tokenizer: Tokenizer, steps: int = STEPS, report: Report | None = None) -> Params:
    """The trained parameters, float32. The same numbers on the same machine."""
    sizes = config(tokenizer.vocab_size)
    optimizer = adam(
        polynomial_decay(LEARNING_RATE, warmup_steps=min(WARMUP, steps), total_steps=steps),
        config=sizes,
        weight_decay=0.01,
        clip_norm=1.0,
    )
    params = forward.init_params(sizes, jax.random.key(MODEL_SEED))
    train_step = make_train_step(two_losses(sizes), optimizer)
    opt_state = init_optimizer(optimizer, params)
    for step, batch in enumerate(itertools.islice(batches(tokenizer, PAIR_SEED), steps)):
        params, opt_state, metrics = train_step(params, opt_state, batch, jax.random.key(0))
        if report is not None:
            report(step + 1, metrics)
    return params


def two_losses(sizes: RobertaConfig) -> Loss:
    """The sum of the masked-LM loss of batch["text"] and the mnli head's of batch["pairs"], both means; no dropout."""
    of_text, of_pairs = masked_lm_loss(config=sizes), head_loss("mnli", config=sizes)

    def loss(params: Params, batch: Batch, key: Key[Array, ""] | None) -> tuple[Float[Array, ""], Float[Array, ""]]:
        del key
        (text, words), (labels, rows) = of_text(params, batch["text"], None), of_pairs(params, batch["pairs"], None)
        return text / words + labels / rows, jax.numpy.ones(())

    return loss


def batches(tokenizer: Tokenizer, seed: int) -> Iterator[Batch]:
    """What two_losses takes, without end: "pairs" with their labels, and "text", with masks.

    Rows of a batch are of about one length, and so are its two halves, so that few shapes are compiled; batches come in
    a random order.
    """
    random = np.random.default_rng(seed)
    source = pairs(seed)
    masking = Masking.of(tokenizer)
    while True:
        window = list(itertools.islice(source, ROWS * WINDOW))
        labels = np.array([pair.label for pair in window], np.int32)
        labelled = [tokenizer.encode(pair.premise, pair.hypothesis) for pair in window]
        text = [_text(window, number, labelled[number], tokenizer, random.random()) for number in range(len(window))]
        orders = [
            np.argsort([len(row) for row in rows], kind="stable").reshape(WINDOW, ROWS) for rows in (labelled, text)
        ]
        for i in random.permutation(WINDOW):
            of_pairs, of_text = orders[0][i], orders[1][i]
            yield {
                "pairs": {
                    "tokens": _padded([labelled[j] for j in of_pairs]),
                    "targets": labels[of_pairs],
                    "weights": np.ones(ROWS, np.float32),
                },
                "text": _masked([text[j] for j in of_text], masking, random),
            }


def _text(
    window: Sequence[Pair], number: int, both: npt.NDArray[np.int32], tokenizer: Tokenizer, chance: float
) -> npt.NDArray[np.int32]:
    """A text to mask: a pair, its first sentence, or now and then a row of sentences, for the later positions."""
    if chance < SEVERAL:
        sentences = " ".join(pair.premise for pair in window[number : number + 12])
        return tokenizer.encode(sentences)[:POSITIONS]
    return tokenizer.encode(window[number].premise) if chance < 0.5 else both


def _padded(rows: Sequence[npt.NDArray[np.int32]]) -> npt.NDArray[np.int32]:
    tokens = np.full((len(rows), _time(rows)), PAD_ID, np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    return tokens


def _masked(rows: Sequence[npt.NDArray[np.int32]], masking: Masking, random: np.random.Generator) -> Batch:
    """The batch of the masked-LM loss that fairseq's masking makes of rows of token ids."""
    time = _time(rows)
    return batch_of(rows, [masking.apply(row, random) for row in rows], (len(rows), time, masking.most(time)))


def _time(rows: Sequence[npt.NDArray[np.int32]]) -> int:
    return length_bucket(max(map(len, rows)), POSITIONS)
