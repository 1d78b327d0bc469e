"""Masked-LM batches for pretraining and its validation, by grain.

A batch is a dict of numpy arrays: `tokens`, int32 [batch, time], with masks in them, padded on the right; `positions`
and `targets`, int32 [batch, masked], of the tokens to be predicted; `weights`, float32 [batch, masked], 1 for these and
0 for what fills a row up. With accumulation each has one axis more, [accumulate, batch, ...].
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from roberta_flax.errors import InputError
from roberta_flax.extras import require
from roberta_flax.text import batching
from roberta_flax.text.tokenizer import PAD_ID
from roberta_flax.train.corpus import Blocks
from roberta_flax.train.losses import HostBatch
from roberta_flax.train.masking import Block, Masking, mask_block, stream

if TYPE_CHECKING:
    import grain

_PREFETCH = 4  # steps made ahead


class MaskedBatches:
    """The batch of every step, made from its number alone.

    An epoch has every block once. Blocks of about one length share a batch, as in fairseq, where they are sorted by
    length; which of them, and in which order batches come, is drawn anew for each epoch. The last rows of an epoch's
    last batch may be padding.
    """

    def __init__(
        self,
        blocks: Blocks,
        masking: Masking,
        *,
        rows: int,
        max_positions: int,
        seed: int,
        accumulate: int | None = None,
        pad_id: int = PAD_ID,
    ) -> None:
        """Describes the batches.

        Args:
          blocks: of a corpus.
          masking: what is masked.
          rows: of a batch.
          max_positions: of the model; no block is longer.
          seed: of order and masks.
          accumulate: batches of a step, which arrays have as a first axis; None for one without that axis.
          pad_id: of the model.

        Raises:
          InputError: rows or accumulate that are not positive, a seed that is negative, or a block that is too long.
        """
        for name, value in (("batch size", rows), ("update_freq", accumulate or 1)):
            if value < 1:
                raise InputError(f"{name} must be 1 or more, got {value}")
        if seed < 0:
            raise InputError(f"seed must be 0 or more, got {seed}")
        lengths = blocks.lengths
        longest = int(lengths.max())
        if longest > max_positions:
            raise InputError(
                f"blocks of up to {longest} tokens are longer than the model's {max_positions} positions; make them "
                "shorter with tokens_per_sample"
            )
        self._blocks, self._masking, self._seed, self._pad_id = blocks, masking, seed, pad_id
        self._shape = (rows,) if accumulate is None else (accumulate, rows)
        self._buckets = _buckets(longest, max_positions)[lengths]
        self._rows = rows * (accumulate or 1)
        self.steps_per_epoch = -(-len(blocks) // self._rows)
        self._shuffled = lru_cache(maxsize=2)(self._shuffle)

    def shuffled(self, step: int) -> HostBatch:
        """The batch of step `step`, from 0, of an endless training."""
        epoch, number = divmod(step, self.steps_per_epoch)
        order, steps = self._shuffled(epoch)
        first = int(steps[number]) * self._rows
        return self._batch(order[first : first + self._rows], epoch)

    def in_order(self) -> Iterator[HostBatch]:
        """Every block once, always with the same masks: those of epoch 0."""
        order = self._buckets.argsort(kind="stable")
        for first in range(0, len(order), self._rows):
            yield self._batch(order[first : first + self._rows], 0)

    def _shuffle(self, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """An epoch's blocks, shuffled within lengths, and the order in which its steps come."""
        random = stream(self._seed, epoch)
        order = random.permutation(len(self._buckets))
        order = order[self._buckets[order].argsort(kind="stable")]
        return order, random.permutation(self.steps_per_epoch)

    def _batch(self, chosen: npt.NDArray[np.int64], epoch: int) -> HostBatch:
        time = int(self._buckets[chosen].max())
        blocks = [self._blocks[index] for index in chosen]
        masked = [
            mask_block(block, self._masking, seed=self._seed, epoch=epoch, index=index)
            for index, block in zip(chosen.tolist(), blocks, strict=True)
        ]
        most = self._width(time, max(len(positions) for _, positions in masked))
        batch = batch_of(blocks, masked, (self._rows, time, most), self._pad_id)
        return {name: array.reshape(*self._shape, -1) for name, array in batch.items()}

    def _width(self, time: int, longest: int) -> int:
        """The number of positions of a batch's rows, of which `longest` are masked in one.

        By `time` alone if tokens are masked. Whole words may have any number: half as many again, or twice that, and so
        on until all fit, so that few shapes are compiled.
        """
        most = self._masking.most(time)
        if self._masking.word_begins is not None:
            most += most // 2
            while most < longest:
                most *= 2
        return min(most, time)


def batch_of(
    blocks: Sequence[Block],
    masked: Sequence[tuple[Block, npt.NDArray[np.int64]]],
    shape: tuple[int, int, int],
    pad_id: int = PAD_ID,
) -> HostBatch:
    """The batch of some sequences.

    Args:
      blocks: token ids [length] of each.
      masked: of each, with masks in it, and the positions that are to be predicted (Masking.apply).
      shape: rows, tokens of a row, and positions of a row; no fewer than there are.
      pad_id: of the model.
    """
    rows, time, most = shape
    tokens, positions = zip(*masked, strict=True)
    targets = [block[chosen] for block, chosen in zip(blocks, positions, strict=True)]
    return {
        "tokens": batching.pad_rows(tokens, (rows, time), pad_id),
        "positions": batching.pad_rows(positions, (rows, most), 0),
        "targets": batching.pad_rows(targets, (rows, most), pad_id),
        "weights": batching.pad_rows([np.ones(len(chosen)) for chosen in positions], (rows, most), 0, np.float32),
    }


def _buckets(longest: int, max_positions: int) -> npt.NDArray[np.int32]:
    """What a batch is padded to by the length of its longest block, for lengths from 0 to `longest`.

    Coarser than batching.length_bucket: a training step takes longer to compile than a forward pass.
    """
    lengths = np.arange(longest + 1)
    steps = np.array([*batching.LENGTH_BUCKETS, max(longest, max_positions)], np.int32)
    return np.minimum(steps[np.searchsorted(steps[:-1], lengths)], max_positions)


def training_batches(batches: MaskedBatches) -> grain.DatasetIterator[HostBatch]:
    """The batches of an endless training, made ahead of it; get_state() and set_state() go on exactly.

    Raises:
      InputError: grain is not installed.
    """
    grain = require("grain", "train")
    steps = grain.MapDataset.range(sys.maxsize).map(batches.shuffled)
    # one thread: numpy holds Python's lock for most of the time
    return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=_PREFETCH)))
