"""Makes batches of rows of texts for roberta_flax.train.encoder_losses.

Each different text is encoded once. Training uses an endless iterator, which shuffles anew in each epoch and can be
saved and restored exactly.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from roberta_flax.datasets.examples import Tally
from roberta_flax.datasets.text_rows import TextRows
from roberta_flax.tasks.base import Task
from roberta_flax.text.batching import length_bucket, pad_rows
from roberta_flax.text.encoding import Ids, Rejected
from roberta_flax.text.tokenizer import Tokenizer
from roberta_flax.train.losses import HostBatch


@dataclass(frozen=True, eq=False)
class EncodedRows:
    """Rows of texts, and the sequences that a network sees of them: texts, or pairs of them.

    Attributes:
      rows: the texts and labels.
      tokens: int32 [tokens]: all different sequences, concatenated.
      offsets: int64 [sequences + 1]: the start of each sequence in `tokens`, and the end of the last.
      numbers: int32 [rows, items]: the sequences of each row.
      tally: counts of the file's rows.
    """

    rows: TextRows
    tokens: Ids
    offsets: npt.NDArray[np.int64]
    numbers: npt.NDArray[np.int32]
    tally: Tally

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def count(self) -> int:
        """The number of sequences."""
        return len(self.offsets) - 1

    def sequences(self, numbers: Iterable[int]) -> list[Ids]:
        """Returns the token ids of the sequences with these numbers, int32 [length] each."""
        return [self.tokens[self.offsets[i] : self.offsets[i + 1]] for i in numbers]

    def lengths(self) -> npt.NDArray[np.int64]:
        """Returns the length of each sequence."""
        return np.diff(self.offsets)

    def fingerprint(self) -> str:
        """Returns a hash of the rows, their sequences and their order, as 16 hex digits."""
        digest = hashlib.sha256(self.rows.fingerprint().encode())
        for array in (self.tokens, self.offsets, self.numbers):
            digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
        return digest.hexdigest()[:16]

    @classmethod
    def of_texts(cls, rows: TextRows, tasks: Sequence[Task], tokenizer: Tokenizer, limit: int) -> Self:
        """Encodes each text of each column by the column's task, which may put a prompt before it."""
        inputs: dict[tuple[int, str], Any] = {}
        first_of = [tasks.index(task) for task in tasks]  # columns with one task share their sequences
        keys = [
            [(first_of[column], rows.texts[number]) for column, number in enumerate(row)]
            for row in rows.numbers.tolist()
        ]
        for row in keys:
            inputs |= {key: key[1] for key in row}
        grouped: dict[int, list[tuple[int, str]]] = {}
        for key in inputs:
            grouped.setdefault(key[0], []).append(key)
        encoded: dict[Any, Any] = {}
        for column, group in grouped.items():
            found = tasks[column].encode(tokenizer, [text for _, text in group], limit, "truncate")
            encoded |= dict(zip(group, found, strict=True))
        return cls._collected(rows, keys, encoded)

    @classmethod
    def of_pairs(cls, rows: TextRows, task: Task, tokenizer: Tokenizer, limit: int) -> Self:
        """Encodes the pairs of each row's first text and each other one."""
        keys = [
            [(rows.texts[anchor], rows.texts[other]) for other in others] for anchor, *others in rows.numbers.tolist()
        ]
        inputs = list(dict.fromkeys(key for row in keys for key in row))
        found = task.encode(tokenizer, inputs, limit, "truncate")
        return cls._collected(rows, keys, dict(zip(inputs, found, strict=True)))

    @classmethod
    def _collected(cls, rows: TextRows, keys: list[list[Any]], encoded: dict[Any, Any]) -> Self:
        """Leaves out the rows of which a text cannot be encoded, and concatenates the sequences."""
        tally = dataclasses.replace(rows.tally)
        kept = []
        for row, row_keys in enumerate(keys):
            if rejected := [encoded[key] for key in row_keys if isinstance(encoded[key], Rejected)]:
                tally.examples -= 1
                tally.leave_out(f"{tally.path}, example {row + 1}", rejected[0].reason)
                continue
            kept.append(row)
            tally.truncated += any(encoded[key][0].truncated for key in row_keys)
        if not kept:
            raise tally.nothing_usable()
        places: dict[Any, int] = {}
        numbers = [[places.setdefault(key, len(places)) for key in keys[row]] for row in kept]
        ids = [encoded[key][0].ids for key in places]
        usable = TextRows(rows.texts, rows.numbers[kept], rows.labels[kept], tally)
        return cls(usable, np.concatenate(ids), np.cumsum([0, *map(len, ids)]), np.array(numbers, np.int32), tally)


def without_duplicates(order: Iterable[int], texts: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    """Yields batches of rows of which no two have a text in common, in any column.

    A row that must wait comes first in the next batch, so batches near the end may have fewer rows. These are the
    batches of sentence_transformers.sampler.NoDuplicatesBatchSampler.

    Args:
      order: the rows.
      texts: the texts of each row, as numbers that are equal for equal texts.
      batch_size: the most rows of a batch.
    """
    waiting = deque(order)
    while waiting:
        batch: list[int] = []
        passed_over: list[int] = []
        seen: set[int] = set()
        while waiting and len(batch) < batch_size:
            row = waiting.popleft()
            if seen.isdisjoint(texts[row]):
                batch.append(row)
                seen.update(texts[row])
            else:
                passed_over.append(row)
        waiting.extendleft(reversed(passed_over))
        yield batch


class RowBatches:
    """An endless iterator of batches: every row once per epoch, in an order that depends on seed and epoch.

    A batch has tokens, int32 [batch, items, time]; labels, float32 [batch, labels]; and weights, float32 [batch]. Where
    it has too few rows, it repeats the first with weight 0. All sequences in a step are padded to the same length, one
    of batching.length_bucket.
    """

    def __init__(
        self,
        encoded: EncodedRows,
        *,
        batch_size: int,
        update_freq: int = 1,
        no_duplicates: bool = False,
        pad_id: int,
        max_positions: int,
        seed: int,
    ) -> None:
        """Begins with the first epoch.

        Args:
          encoded: the rows.
          batch_size: number of rows in a batch.
          update_freq: number of batches in a step. If it is more than 1, they are stacked along a leading axis.
          no_duplicates: whether no two rows of a batch may share a text (without_duplicates). In-batch negatives need
            this, because an anchor's own positive would otherwise be a negative, too.
          pad_id, max_positions: the model's padding id and maximum length.
          seed: the seed of the order.
        """
        self._encoded, self._batch_size, self._update_freq = encoded, batch_size, update_freq
        self._texts = encoded.rows.numbers.tolist() if no_duplicates else None
        self._lengths = encoded.lengths()
        self._pad_id, self._max_positions, self._seed = pad_id, max_positions, seed
        self._begin(0)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> HostBatch:
        parts = [self._next_rows() for _ in range(self._update_freq)]
        longest = max(int(self._lengths[self._encoded.numbers[part]].max()) for part in parts)
        time = length_bucket(longest, self._max_positions)
        batches = [self._batch(part, time) for part in parts]
        if self._update_freq == 1:
            return batches[0]
        return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}

    def get_state(self) -> dict[str, Any]:
        """Returns the position as a JSON object."""
        return {"epoch": self._epoch, "batch": self._next}

    def set_state(self, state: dict[str, Any]) -> None:
        """Moves to a position that get_state() returned."""
        self._begin(state["epoch"])
        self._next = state["batch"]

    @property
    def batches_per_epoch(self) -> int:
        """The number of batches in this epoch; without duplicates, epochs may differ by some."""
        return len(self._batches)

    def _begin(self, epoch: int) -> None:
        order = np.random.default_rng((self._seed, epoch)).permutation(len(self._encoded)).tolist()
        self._epoch, self._next = epoch, 0
        self._batches: list[list[int]]
        if self._texts is None:
            starts = range(0, len(order), self._batch_size)
            self._batches = [order[start : start + self._batch_size] for start in starts]
        else:
            self._batches = list(without_duplicates(order, self._texts, self._batch_size))

    def _next_rows(self) -> list[int]:
        if self._next == len(self._batches):
            self._begin(self._epoch + 1)
        self._next += 1
        return self._batches[self._next - 1]

    def _batch(self, rows: list[int], time: int) -> HostBatch:
        """Collates at most a batch's rows."""
        filled = rows + rows[:1] * (self._batch_size - len(rows))
        numbers = self._encoded.numbers[filled]
        tokens = pad_rows(self._encoded.sequences(numbers.ravel()), (numbers.size, time), self._pad_id)
        return {
            "tokens": tokens.reshape(*numbers.shape, time),
            "labels": self._encoded.rows.labels[filled],
            "weights": (np.arange(self._batch_size) < len(rows)).astype(np.float32),
        }


def sequence_batches(
    encoded: EncodedRows, *, batch_size: int, pad_id: int, max_positions: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]]:
    """Yields all sequences once, sorted by length: the numbers of a batch's, and their tokens, [batch_size, time].

    Rows that are left over repeat the first.
    """
    lengths = encoded.lengths()
    order = np.argsort(-lengths, kind="stable")
    for first in range(0, len(order), batch_size):
        numbers = order[first : first + batch_size]
        time = length_bucket(int(lengths[numbers].max()), max_positions)
        filled = [*numbers, *[numbers[0]] * (batch_size - len(numbers))]
        yield numbers, pad_rows(encoded.sequences(filled), (batch_size, time), pad_id)
