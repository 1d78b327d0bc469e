"""What both sides are given: batches of token ids, and what the losses are taken of."""

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
from roberta_flax.text.batching import check_tokens, collate_tokens, pad_rows
from roberta_flax.text.tokenizer import Tokenizer

_RAGGED = ((1, 2, 3, 5, 8, 13, 21, 34), (64, 65, 127))  # lengths of the rows of a batch
_BUILT_IN_SEED = 0
_SELECTED = 8  # positions of a row that meet the vocabulary
_ROWS = 8  # of a batch of texts


@dataclass(frozen=True)
class ParityBatch:
    """Rows of token ids, and targets for every loss. The targets are arbitrary, and the same every time.

    Attributes:
      tokens: int32 [batch, time].
      positions: int32 [batch, selected], where the LM head is asked: first, last, masks, and some between.
      targets: int32 [batch, selected], what the LM head is to say there.
      weights: float32 [batch, selected], 1, or 0 where a row has fewer.
      head_targets: by head, as roberta_flax.train.losses takes them; of sentence heads.
    """

    tokens: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int32]
    targets: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    head_targets: Mapping[str, npt.NDArray[np.generic]]


def built_in(config: RobertaConfig, special_ids: Sequence[int]) -> list[ParityBatch]:
    """Ragged rows of 1 to max_positions tokens, with and without padding, and every special id among them.

    Args:
      config: the model's.
      special_ids: ids that the rows contain whatever else is drawn; padding's is not among them.
    """
    random = np.random.default_rng(_BUILT_IN_SEED)
    longest = config.max_positions
    specials = [i for i in special_ids if i != config.pad_id]
    drawn = np.array([i for i in range(config.vocab_size) if i != config.pad_id], np.int32)
    batches = []
    for lengths in (*_RAGGED, (longest - 1,), (longest,)):
        rows = []
        for length in sorted({max(1, min(length, longest)) for length in lengths}):
            row = random.choice(drawn, length)
            places = random.permutation(length)[: len(specials)]
            row[places] = specials[: len(places)]
            rows.append(row)
        if lengths == (longest - 1,):  # the longest row that has padding
            rows = [np.append(rows[0], config.pad_id)[:longest]]
        batches.append(batch_of(collate_tokens(rows, config.pad_id), config, mask_id=None))
    return batches


def of_texts(rows: Sequence[Sequence[str]], tokenizer: Tokenizer, config: RobertaConfig) -> list[ParityBatch]:
    """Texts, or pairs of them, as users of the model encode them, in order, a few rows a batch.

    Raises:
      InputError: a text that is too long for the model.
    """
    encoded = [tokenizer.encode(*row) for row in rows]
    return of_tokens(encoded, config, tokenizer.mask_id)


def of_tokens(
    sequences: Sequence[npt.ArrayLike], config: RobertaConfig, mask_id: int | None = None
) -> list[ParityBatch]:
    """Sequences of token ids, [length] each, in order, a few rows a batch.

    Raises:
      InputError: ids that the model cannot take; it says which of the inputs, from 1.
    """
    checked = []
    for number, row in enumerate(sequences, 1):
        try:
            checked.append(check_tokens(row, config.vocab_size, config.max_positions)[0])
        except InputError as error:
            raise InputError(f"input {number} of {len(sequences)}: {error}") from None
    groups = [checked[first : first + _ROWS] for first in range(0, len(checked), _ROWS)]
    return [batch_of(collate_tokens(group, config.pad_id), config, mask_id) for group in groups]


def batch_of(tokens: npt.NDArray[np.int32], config: RobertaConfig, mask_id: int | None) -> ParityBatch:
    """A batch with targets, from token ids [batch, time]."""
    places = [_places(row, config.pad_id, mask_id) for row in tokens]
    shape = len(tokens), max(map(len, places))
    positions = pad_rows(places, shape, 0)
    weights = pad_rows([np.ones(len(chosen)) for chosen in places], shape, 0, np.float32)
    numbers = np.arange(positions.size, dtype=np.int64).reshape(positions.shape)
    targets = (numbers * 7919 + 11) % config.vocab_size  # a prime apart, over all of the vocabulary
    heads = {head.name: _targets(head, len(tokens)) for head in config.heads if head.kind == "sentence"}
    return ParityBatch(tokens, positions, targets.astype(np.int32), weights, heads)


def _places(row: npt.NDArray[np.int32], pad_id: int, mask_id: int | None) -> list[int]:
    filled = np.flatnonzero(row != pad_id)
    if not filled.size:
        return [0]
    even = filled[np.linspace(0, filled.size - 1, min(_SELECTED, filled.size)).round().astype(int)]
    masks = [] if mask_id is None else np.flatnonzero(row == mask_id)[: 2 * _SELECTED].tolist()
    return sorted({*even.tolist(), *masks})


def _targets(head: HeadConfig, rows: int) -> npt.NDArray[np.generic]:
    numbers = np.arange(rows)
    if head.problem == "regression":
        values = (numbers % 5 - 2) / np.float32(2)
        shape = (rows,) if head.num_classes == 1 else (rows, head.num_classes)
        return np.broadcast_to(values if head.num_classes == 1 else values[:, None], shape).astype(np.float32)
    if head.problem == "multi_label":
        return ((numbers[:, None] + np.arange(head.num_classes)) % 2).astype(np.float32)
    return (numbers % head.num_classes).astype(np.int32)


def read_texts(path: PathLike, columns: Sequence[str] = ()) -> list[tuple[str, ...]]:
    """The texts of a file, one or two a row, as `compare` takes them.

    Args:
      path: .jsonl, .csv, .tsv or .parquet with columns of text; any other file has a text a line, or two with a tab
        between them.
      columns: those with text, one or two; the usual ones if not given.

    Raises:
      InputError: a file that cannot be read, or a row without texts or with more than two, which is named.
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
