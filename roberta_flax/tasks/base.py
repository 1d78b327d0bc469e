"""What every task provides, and what several share."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from roberta_flax.nn.config import RobertaConfig
from roberta_flax.nn.forward import Params
from roberta_flax.nn.numerics import Numerics
from roberta_flax.text.batching import TokenBatch
from roberta_flax.text.encoding import Encoded, OnLong, Piece
from roberta_flax.text.tokenizer import Tokenizer


class Model(Protocol):
    """What a task needs of a model: a roberta_flax.Roberta, or anything with its parts."""

    @property
    def config(self) -> RobertaConfig: ...
    @property
    def params(self) -> Params: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def numerics(self) -> Numerics: ...


class Work(Protocol):
    """What is asked of the model for each text."""

    def check(self, config: RobertaConfig) -> None:
        """Raises InputError where the model cannot do it."""

    def encode(self, tokenizer: Tokenizer, items: Sequence[Any], limit: int, on_long: OnLong) -> list[Encoded]:
        """For each input its sequences, at most `limit` tokens long, or why there are none."""

    def run(self, model: Model, params: Any, batch: TokenBatch, tokens: Sequence[Any], pieces: Sequence[Piece]) -> Any:
        """Starts it on the device, on the batch's tokens, segments and starts; gives arrays that are there later."""

    def unpack(self, batch: TokenBatch, pieces: Sequence[Piece], arrays: Any, config: RobertaConfig) -> list[Any]:
        """A result for each of the batch's sequences, of which `pieces` are in the same order."""

    def result(self, item: Any, pieces: Sequence[Piece], results: Sequence[Any], model: Model) -> Any:
        """An input's result: its sequence's, or one of those of the parts of an input that is too long."""

    def can_pack(self) -> bool:
        """Whether several sequences may share a row."""


def vectors_of(batch: TokenBatch, arrays: npt.NDArray[Any]) -> list[Any]:
    """[rows, n] or [rows, segments, n] to one [n] a sequence."""
    return list(arrays[batch.row] if batch.starts is None else arrays[batch.row, batch.segment])


def tokens_of(batch: TokenBatch, pieces: Sequence[Piece], arrays: npt.NDArray[Any]) -> list[Any]:
    """[rows, length, n] to one [tokens, n] a sequence."""
    return [
        arrays[row, column : column + len(piece.ids)]
        for row, column, piece in zip(batch.row, batch.column, pieces, strict=True)
    ]


def stitched(pieces: Sequence[Piece], results: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Token results of sliding parts as those of the whole: each token's from the part where it is farthest inside."""
    first, last = pieces[0], pieces[-1]
    borders = [0, *((a.end + b.begin) // 2 for a, b in itertools.pairwise(pieces)), last.end]
    inside = [
        result[piece.prefix + begin - piece.begin : piece.prefix + end - piece.begin]
        for piece, result, (begin, end) in zip(pieces, results, itertools.pairwise(borders), strict=True)
    ]
    return np.concatenate([results[0][: first.prefix], *inside, results[-1][-1:]])
