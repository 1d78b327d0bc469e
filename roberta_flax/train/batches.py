"""Makes batches of examples for roberta_flax.train.losses.

Training uses an endless grain pipeline, which shuffles anew in each epoch and can be saved and restored exactly.
Validation uses the order of the file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from roberta_flax.datasets.examples import NO_TAG, Examples
from roberta_flax.extras import require
from roberta_flax.text.batching import length_bucket, pad_rows
from roberta_flax.train.losses import HostBatch

if TYPE_CHECKING:
    import grain

_PREFETCH = 2  # number of steps whose batches are made in advance


def training_batches(
    examples: Examples, *, batch_size: int, update_freq: int = 1, pad_id: int, max_positions: int, seed: int
) -> grain.DatasetIterator[HostBatch]:
    """Returns an endless iterator of batches: every example once per epoch, in an order that depends on seed and epoch.

    The last step of an epoch is filled up with padding rows of weight 0. All sequences in a step are padded to the same
    length, one of batching.length_bucket.

    Args:
      examples: the training examples.
      batch_size: number of rows in a batch.
      update_freq: number of batches in a step. If it is more than 1, they are stacked along a leading axis.
      pad_id, max_positions: the model's padding id and maximum length.
      seed: the seed of the order.

    Returns:
      An iterator whose get_state() and set_state() save and restore its position exactly.

    Raises:
      InputError: grain is not installed.
    """
    rows = batch_size * update_freq
    steps_per_epoch = -(-len(examples) // rows)

    @lru_cache(maxsize=2)
    def order(epoch: int) -> list[int]:
        # grain's own shuffle searches a range of 2**16 numbers for each of a few: 4 ms for one of 64 examples
        numbers: list[int] = np.random.default_rng((seed, epoch)).permutation(len(examples)).tolist()
        return numbers

    def batch(step: int) -> HostBatch:
        epoch, number = divmod(step, steps_per_epoch)
        numbers = order(epoch)[number * rows : (number + 1) * rows]
        time = _padded_length(examples, numbers, max_positions)
        parts = [numbers[i * batch_size : (i + 1) * batch_size] for i in range(update_freq)]
        batches = [_batch(examples, part, batch_size, time, pad_id) for part in parts]
        return batches[0] if update_freq == 1 else {name: np.stack([b[name] for b in batches]) for name in batches[0]}

    return endless(batch, prefetch=_PREFETCH)


def endless(batch_of_step: Callable[[int], HostBatch], *, prefetch: int) -> grain.DatasetIterator[HostBatch]:
    """Returns an endless iterator of the batches of steps 0, 1, ..., whose state can be saved and restored exactly.

    Args:
      batch_of_step: makes the batch of a step.
      prefetch: number of batches that are made in advance.

    Raises:
      InputError: grain is not installed.
    """
    grain = require("grain", "train")
    steps = grain.MapDataset.range(sys.maxsize).map(batch_of_step)
    # One thread, because numpy holds Python's lock most of the time.
    return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch)))


def validation_batches(
    examples: Examples, *, batch_size: int, pad_id: int, max_positions: int
) -> Iterator[tuple[range, HostBatch]]:
    """Yields all examples once, in the order of the file: the indices of a batch's examples, and the batch.

    Arguments and padding are as in training_batches.
    """
    for first in range(0, len(examples), batch_size):
        numbers = range(first, min(first + batch_size, len(examples)))
        yield numbers, _batch(examples, numbers, batch_size, _padded_length(examples, numbers, max_positions), pad_id)


def _padded_length(examples: Examples, numbers: Sequence[int], max_positions: int) -> int:
    return length_bucket(max(map(len, examples.sequences(numbers))), max_positions)


def _batch(examples: Examples, numbers: Sequence[int], rows: int, time: int, pad_id: int) -> HostBatch:
    """Collates at most `rows` examples into the arrays that losses.head_loss takes."""
    tokens = pad_rows(examples.sequences(numbers), (rows * examples.choices, time), pad_id)
    if examples.kind == "choice":
        tokens = tokens.reshape(rows, examples.choices, time)
    if examples.kind == "token":
        token_targets = [examples.targets[examples.offsets[i] : examples.offsets[i + 1]] for i in numbers]
        targets = pad_rows(token_targets, (rows, time), NO_TAG)
        weights = (targets != NO_TAG).astype(np.float32)
        return {"tokens": tokens, "targets": np.maximum(targets, 0), "weights": weights}
    targets = np.zeros((rows, *examples.targets.shape[1:]), examples.targets.dtype)
    targets[: len(numbers)] = examples.targets[list(numbers)]
    return {"tokens": tokens, "targets": targets, "weights": (np.arange(rows) < len(numbers)).astype(np.float32)}
