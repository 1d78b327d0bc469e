"""The inputs of both sides: batches of token ids, and the targets of the losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from roberta_flax.datasets import tables
from roberta_flax.errors import InputError
from roberta_flax.files import PathLike
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from roberta_flax.text.batching import check_tokens, collate_tokens
from roberta_flax.text.tokenizer import Tokenizer

_RAGGED_LENGTHS = ((1, 2, 3, 5, 8, 13, 21, 34), (64, 65, 127))  # of the rows, for each batch
_BUILT_IN_SEED = 0
_POSITIONS_PER_ROW = 8  # at which the LM head is evaluated
_ROWS_PER_BATCH = 8


@dataclass(frozen=True)
class ParityBatch:
    """Rows of token ids, and targets for every loss. The targets are arbitrary, and the same every time.

    Attributes:
      tokens: int32 [batch, time].
      positions: int32 [batch, selected], where the LM head is evaluated: the first token, the last one, the masks, and
        some in between.
      targets: int32 [batch, selected], the target tokens of the LM head.
      weights: float32 [batch, selected]: 1, or 0 for the rest of a row with fewer positions.
      head_targets: targets by name of a sentence head, as roberta_flax.train.losses takes them.
    """

    tokens: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int32]
    targets: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    head_targets: Mapping[str, npt.NDArray[np.generic]]


def built_in_batches(config: RobertaConfig, special_ids: Sequence[int]) -> list[ParityBatch]:
    """Returns ragged rows of 1 to max_positions random tokens, with and without padding, and every special id.

    Args:
      config: configuration of the model.
      special_ids: ids that the rows must contain; the padding id is ignored.
    """
    random = np.random.default_rng(_BUILT_IN_SEED)
    longest = config.max_positions
    specials = [i for i in special_ids if i != config.pad_id]
    vocabulary = np.array([i for i in range(config.vocab_size) if i != config.pad_id], np.int32)
    batches = []
    for lengths in (*_RAGGED_LENGTHS, (longest - 1,), (longest,)):
        rows = []
        for length in sorted({max(1, min(length, longest)) for length in lengths}):
            row = random.choice(vocabulary, length)
            special_positions = random.permutation(length)[: len(specials)]
            row[special_positions] = specials[: len(special_positions)]
            rows.append(row)
        if lengths == (longest - 1,):  # the longest row that has padding
            rows = [np.append(rows[0], config.pad_id)[:longest]]
        batches.append(make_batch(collate_tokens(rows, config.pad_id), config, mask_id=None))
    return batches


def batches_from_texts(rows: Sequence[Sequence[str]], tokenizer: Tokenizer, config: RobertaConfig) -> list[ParityBatch]:
    """Encodes texts, or pairs of texts, as users of the model do, and groups them into batches in order.

    Raises:
      InputError: a text is too long for the model.
    """
    encoded = [tokenizer.encode(*row) for row in rows]
    return batches_from_tokens(encoded, config, tokenizer.backend.mask_id)


def batches_from_tokens(
    sequences: Sequence[npt.ArrayLike], config: RobertaConfig, mask_id: int | None = None
) -> list[ParityBatch]:
    """Groups sequences of token ids, [length] each, into batches in order.

    Raises:
      InputError: the model cannot take a sequence. The message says which one, counted from 1.
    """
    checked = []
    for number, row in enumerate(sequences, 1):
        try:
            checked.append(check_tokens(row, config.vocab_size, config.max_positions)[0])
        except InputError as error:
            raise InputError(f"input {number} of {len(sequences)}: {error}") from None
    groups = [checked[first : first + _ROWS_PER_BATCH] for first in range(0, len(checked), _ROWS_PER_BATCH)]
    return [make_batch(collate_tokens(group, config.pad_id), config, mask_id) for group in groups]


def make_batch(tokens: npt.NDArray[np.int32], config: RobertaConfig, mask_id: int | None) -> ParityBatch:
    """Returns a batch with targets for token ids [batch, time]."""
    selected = [_select_positions(row, config.pad_id, mask_id) for row in tokens]
    width = max(map(len, selected))
    positions = np.zeros((len(tokens), width), np.int32)
    weights = np.zeros(positions.shape, np.float32)
    for row, row_positions in enumerate(selected):
        positions[row, : len(row_positions)] = row_positions
        weights[row, : len(row_positions)] = 1
    numbers = np.arange(positions.size, dtype=np.int64).reshape(positions.shape)
    targets = (numbers * 7919 + 11) % config.vocab_size  # steps of a prime spread over the whole vocabulary
    heads = {head.name: _head_targets(head, len(tokens)) for head in config.heads if head.kind == "sentence"}
    return ParityBatch(tokens, positions, targets.astype(np.int32), weights, heads)


def _select_positions(row: npt.NDArray[np.int32], pad_id: int, mask_id: int | None) -> list[int]:
    """Returns evenly spaced positions of a row from its first token to its last, and the positions of its masks."""
    not_padding = np.flatnonzero(row != pad_id)
    if not not_padding.size:
        return [0]
    count = min(_POSITIONS_PER_ROW, not_padding.size)
    even = not_padding[np.linspace(0, not_padding.size - 1, count).round().astype(int)]
    masks = [] if mask_id is None else np.flatnonzero(row == mask_id)[: 2 * _POSITIONS_PER_ROW].tolist()
    return sorted({*even.tolist(), *masks})


def _head_targets(head: HeadConfig, rows: int) -> npt.NDArray[np.generic]:
    numbers = np.arange(rows)
    if head.problem == "regression":
        values = (numbers % 5 - 2) / np.float32(2)
        shape = (rows,) if head.num_classes == 1 else (rows, head.num_classes)
        return np.broadcast_to(values if head.num_classes == 1 else values[:, None], shape).astype(np.float32)
    if head.problem == "multi_label":
        return ((numbers[:, None] + np.arange(head.num_classes)) % 2).astype(np.float32)
    return (numbers % head.num_classes).astype(np.int32)


def read_texts(path: PathLike, columns: Sequence[str] = ()) -> list[tuple[str, ...]]:
    """Reads the texts of a file, one or two per row, as `compare` takes them.

    Args:
      path: a .jsonl, .csv, .tsv or .parquet file with text columns. Any other file has one text per line, or two
        separated by a tab.
      columns: the text columns, one or two; by default the usual ones.

    Raises:
      InputError: the file cannot be read, or a row has no text or more than two. The message names the row.
    """
    path = Path(path)
    is_lines = not columns and path.suffix.lower() not in (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
    names = ("text",) if is_lines else tuple(columns or tables.usual_columns(path))
    if len(names) > 2:
        raise InputError(f"a row has one or two texts, got {len(names)} columns: {', '.join(names)}")
    rows = []
    for row in tables.read_rows(path, names, format="txt" if is_lines else None):
        if isinstance(row, tables.BadRow):
            raise InputError(f"{path}, line {row.line}: {row.reason}")
        texts = tuple(row.values[0].split("\t")) if is_lines else row.values
        if len(texts) > 2:
            raise InputError(f"{path}, line {row.line}: one text, or two with a tab between them; got {len(texts)}")
        rows.append(texts)
    return rows
