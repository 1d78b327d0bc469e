"""Examples as batches for roberta_flax.train.losses.

Training takes them from a grain pipeline that never ends, has another order each epoch, and goes on exactly where its
state says; validation takes them in the file's order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from roberta_flax.datasets.examples import NO_TAG, Examples
from roberta_flax.extras import require
from roberta_flax.text.batching import length_bucket, pad_rows
from roberta_flax.train.losses import HostBatch

if TYPE_CHECKING:
    import grain

_PREFETCH = 2  # steps made ahead


def training_batches(
    examples: Examples, *, batch_size: int, update_freq: int = 1, pad_id: int, max_positions: int, seed: int
) -> grain.DatasetIterator[HostBatch]:
    """Batches without an end: every example once an epoch, in an order that `seed` and the epoch's number determine.

    An epoch's last step is filled with rows of padding, of weight 0. All of a step's sequences are padded to one
    length, of batching.length_bucket.

    Args:
      examples: of the training file.
      batch_size: rows of a batch.
      update_freq: batches of a step; more than one are stacked along a first axis.
      pad_id, max_positions: of the model.
      seed: of the order.

    Returns:
      An iterator with get_state() and set_state(), which go on exactly.

    Raises:
      InputError: grain is not installed.
    """
    grain = require("grain", "train")

    def step(numbers: Sequence[int]) -> HostBatch:
        time = _bucket(examples, numbers, max_positions)
        parts = [numbers[i * batch_size : (i + 1) * batch_size] for i in range(update_freq)]
        batches = [_batch(examples, part, batch_size, time, pad_id) for part in parts]
        return batches[0] if update_freq == 1 else {name: np.stack([b[name] for b in batches]) for name in batches[0]}

    dataset = grain.MapDataset.range(len(examples)).seed(seed).shuffle()
    steps = dataset.batch(batch_size * update_freq, batch_fn=step).repeat()
    return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=_PREFETCH)))


def validation_batches(
    examples: Examples, *, batch_size: int, pad_id: int, max_positions: int
) -> Iterator[tuple[range, HostBatch]]:
    """All examples once, in the file's order: the numbers of a batch's examples, and the batch, padded likewise."""
    for first in range(0, len(examples), batch_size):
        numbers = range(first, min(first + batch_size, len(examples)))
        yield numbers, _batch(examples, numbers, batch_size, _bucket(examples, numbers, max_positions), pad_id)


def _bucket(examples: Examples, numbers: Sequence[int], max_positions: int) -> int:
    return length_bucket(max(map(len, examples.sequences(numbers))), max_positions)


def _batch(examples: Examples, numbers: Sequence[int], rows: int, time: int, pad_id: int) -> HostBatch:
    """Some examples, at most `rows`, as the arrays that losses.head_loss takes."""
    tokens = pad_rows(examples.sequences(numbers), (rows * examples.choices, time), pad_id)
    if examples.kind == "choice":
        tokens = tokens.reshape(rows, examples.choices, time)
    if examples.kind == "token":
        of_tokens = [examples.targets[examples.offsets[i] : examples.offsets[i + 1]] for i in numbers]
        targets = pad_rows(of_tokens, (rows, time), NO_TAG)
        weights = (targets != NO_TAG).astype(np.float32)
        return {"tokens": tokens, "targets": np.maximum(targets, 0), "weights": weights}
    targets = np.zeros((rows, *examples.targets.shape[1:]), examples.targets.dtype)
    targets[: len(numbers)] = examples.targets[list(numbers)]
    return {"tokens": tokens, "targets": targets, "weights": (np.arange(rows) < len(numbers)).astype(np.float32)}
