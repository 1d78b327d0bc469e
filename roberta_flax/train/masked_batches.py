"""Masked-LM batches for pretraining and validation, with grain.

A batch is a dict of numpy arrays: `tokens`, int32 [batch, time], masked and padded on the right; `positions` and
`targets`, int32 [batch, masked], the positions and ids of the tokens to predict; `weights`, float32 [batch, masked], 1
for these and 0 for padding. With accumulation, each array has a leading axis: [accumulate, batch, ...].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from roberta_flax.errors import InputError
from roberta_flax.text import batching
from roberta_flax.text.fairseq_tokenizer import PAD_ID
from roberta_flax.train.batches import endless
from roberta_flax.train.corpus import Blocks
from roberta_flax.train.losses import HostBatch
from roberta_flax.train.masking import Block, Masking, mask_block, stream

if TYPE_CHECKING:
    import grain

_PREFETCH = 4  # number of steps whose batches are made in advance


class MaskedBatches:
    """Makes the batch of any step from the step's number alone.

    An epoch contains every block once. Blocks of similar length share a batch, as in fairseq, which sorts them by
    length. Which blocks these are, and the order of the batches, is drawn anew for each epoch. The last rows of an
    epoch's last batch may be padding.
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
        """Prepares the batches.

        Args:
          blocks: the blocks of a corpus.
          masking: how tokens are masked.
          rows: number of rows in a batch.
          max_positions: the model's maximum length. No block may be longer.
          seed: the seed of the order and the masks.
          accumulate: number of batches in a step, the leading axis of its arrays; None for one batch without this axis.
          pad_id: the model's padding id.

        Raises:
          InputError: rows or accumulate is not positive, the seed is negative, or a block is too long.
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
        self._buckets = _padded_lengths(longest, max_positions)[lengths]
        self._rows = rows * (accumulate or 1)
        self.steps_per_epoch = -(-len(blocks) // self._rows)
        self._cached_order = lru_cache(maxsize=2)(self._epoch_order)

    def shuffled(self, step: int) -> HostBatch:
        """Returns the batch of a training step, numbered from 0. There is no last step."""
        epoch, number = divmod(step, self.steps_per_epoch)
        order, steps = self._cached_order(epoch)
        first = int(steps[number]) * self._rows
        return self._batch(order[first : first + self._rows], epoch)

    def in_order(self) -> Iterator[HostBatch]:
        """Yields batches with every block once, and always with the masks of epoch 0."""
        order = self._buckets.argsort(kind="stable")
        for first in range(0, len(order), self._rows):
            yield self._batch(order[first : first + self._rows], 0)

    def _epoch_order(self, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Returns an epoch's blocks, shuffled within each length, and the order of its steps."""
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
        most = self._positions_per_row(time, max(len(positions) for _, positions in masked))
        batch = batch_of(blocks, masked, (self._rows, time, most), self._pad_id)
        return {name: array.reshape(*self._shape, -1) for name, array in batch.items()}

    def _positions_per_row(self, time: int, longest: int) -> int:
        """Returns the number of positions in each row of a batch; at most `longest` are masked in any row.

        If tokens are masked, it depends on `time` alone. With whole words any number may be masked: it is then one and
        a half times that, doubled until all fit, so that few shapes are compiled.
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
    """Makes the batch of some sequences.

    Args:
      blocks: the original token ids of each sequence, int32 [length].
      masked: for each sequence, the masked token ids and the positions to predict (Masking.apply).
      shape: number of rows, tokens per row, and positions per row, each at least what the sequences need.
      pad_id: the model's padding id.
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


def _padded_lengths(longest: int, max_positions: int) -> npt.NDArray[np.int32]:
    """Returns the padded length of a batch for each length of its longest block, from 0 to `longest`.

    The lengths are coarser than those of batching.length_bucket, because a training step takes longer to compile than a
    forward pass.
    """
    lengths = np.arange(longest + 1)
    steps = np.array([*batching.LENGTH_BUCKETS, max(longest, max_positions)], np.int32)
    return np.minimum(steps[np.searchsorted(steps[:-1], lengths)], max_positions)


def training_batches(batches: MaskedBatches) -> grain.DatasetIterator[HostBatch]:
    """Returns an endless iterator of training batches, made in advance. Its state can be saved and restored exactly.

    Raises:
      InputError: grain is not installed.
    """
    return endless(batches.shuffled, prefetch=_PREFETCH)
