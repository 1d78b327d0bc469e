"""Predictor: many texts through a model, in order, in a few compiled shapes, on all local devices.

A window of texts at a time: encoded on host threads ahead of the device, laid out in batches (batching.lay_out), run,
and given back in the order in which they came. What a window gives depends on its texts alone, and memory on its size.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, get_args

import jax
import numpy as np
import numpy.typing as npt

from roberta_flax import batching, forward, sharding
from roberta_flax.batching import Batch
from roberta_flax.compilations import Compilations
from roberta_flax.config import RobertaConfig
from roberta_flax.errors import InputError
from roberta_flax.hub import Roberta, check_topk, fills, masked_ids
from roberta_flax.quantize import is_quantized
from roberta_flax.tokenizer import Tokenizer

OnLong = Literal["error", "truncate", "window"]
Strategy = Literal["buckets", "packing"]
T = TypeVar("T")
Ids = npt.NDArray[np.int32]
Item = str | Sequence[str]  # a text, or several of one input: a pair

WINDOW = 8192  # texts
SHORTEST_LIMIT = 8  # tokens that an input may have, at the least: two texts of two, and what joins them
# About where throughput levels off: on CPUs by `python -m benchmarks.inference --sweep`, on TPU by what its compiler
# guesses for v5e (docs/performance.md), elsewhere not measured.
TOKENS_PER_BATCH = {"cpu": 1024, "tpu": 4096}
_TOKENS_PER_BATCH_ELSEWHERE = 32768
# Whichever is faster: on CPUs by benchmarks.inference, elsewhere not measured.
STRATEGY: dict[str, Strategy] = {"cpu": "packing"}
_STRATEGY_ELSEWHERE: Strategy = "buckets"
_IN_FLIGHT = 2  # batches: one runs, one waits, so that the device never does
TEXTS_PER_TASK = 256  # that a host thread encodes in one go


@dataclass(frozen=True)
class Rejected:
    """In the place of a result: why a text has none."""

    reason: str


class Piece(NamedTuple):
    """A sequence that the model sees: a whole input, or a part of one that is too long.

    Attributes:
      ids: with special tokens.
      prefix: how many of them stand before the text that was cut, or before the mask.
      begin, end: which of that text's tokens are in it.
      cut: whether anything of the input is missing in it.
    """

    ids: Ids
    prefix: int = 0
    begin: int = 0
    end: int = 0
    cut: bool = False


Encoded = list[Piece] | Rejected  # what an input becomes


class Work(Protocol):
    """What is asked of the model for each text."""

    def check(self, config: RobertaConfig) -> None:
        """Raises InputError where the model cannot do it."""

    def encode(self, tokenizer: Tokenizer, items: Sequence[Any], limit: int, on_long: OnLong) -> list[Encoded]:
        """For each input its sequences, at most `limit` tokens long, or why there are none."""

    def run(self, params: Any, batch: Batch, tokens: Sequence[Any], pieces: Sequence[Piece], **static: Any) -> Any:
        """Starts it on the device, on the batch's tokens, segments and starts; gives arrays that are there later."""

    def unpack(self, batch: Batch, pieces: Sequence[Piece], arrays: Any, config: RobertaConfig) -> list[Any]:
        """A result for each of the batch's sequences, of which `pieces` are in the same order."""

    def result(self, item: Any, pieces: Sequence[Piece], results: Sequence[Any], roberta: Roberta) -> Any:
        """An input's result: its sequence's, or one of those of the parts of an input that is too long."""

    def can_pack(self) -> bool:
        """Whether several sequences may share a row."""


@dataclass(frozen=True)
class Classify:
    """What a sentence or token head says: float32 [classes], or [tokens, classes].

    Attributes:
      head: its name.
      logits: its outputs; otherwise log-probabilities, or of a regression values, as in Roberta.predict.
    """

    head: str
    logits: bool = False

    def check(self, config: RobertaConfig) -> None:
        kind = config.head(self.head).kind
        if kind not in ("sentence", "token"):
            raise InputError(f"head {self.head!r} is of kind {kind}; in bulk there are sentence and token heads")

    def encode(self, tokenizer: Tokenizer, items: Sequence[Any], limit: int, on_long: OnLong) -> list[Encoded]:
        return encode_batch(tokenizer, items, limit, on_long)

    def run(self, params: Any, batch: Batch, tokens: Sequence[Any], pieces: Sequence[Piece], **static: Any) -> Any:
        function = forward.head_logits if self.logits else forward.head_log_probs
        return function(params, *tokens, head=self.head, **static)

    def unpack(self, batch: Batch, pieces: Sequence[Piece], arrays: Any, config: RobertaConfig) -> list[Any]:
        if config.head(self.head).kind == "token":
            return _tokens_of(batch, pieces, arrays)
        return _vectors_of(batch, arrays)

    def result(self, item: Any, pieces: Sequence[Piece], results: Sequence[Any], roberta: Roberta) -> Any:
        head = roberta.config.head(self.head)
        if len(results) == 1:
            return results[0]
        if head.kind == "token":
            return _stitched(pieces, results)
        mean = partial(np.mean, axis=0, dtype=np.float32)
        return mean(results) if self.logits or head.problem == "regression" else np.log(mean(np.exp(results)))

    def can_pack(self) -> bool:
        return True


@dataclass(frozen=True)
class Embed:
    """Features: float32 [hidden] of the "first" token or the "mean" of all, or [tokens, hidden] of all "tokens".

    The mean is over every token of the sequence, `<s>` and `</s>` included.
    """

    pooling: str = "mean"

    def check(self, config: RobertaConfig) -> None:
        if self.pooling not in (*forward.POOLINGS, "tokens"):
            raise InputError(f"pooling must be one of {', '.join(forward.POOLINGS)}, tokens; got {self.pooling!r}")

    def encode(self, tokenizer: Tokenizer, items: Sequence[Any], limit: int, on_long: OnLong) -> list[Encoded]:
        return encode_batch(tokenizer, items, limit, on_long)

    def run(self, params: Any, batch: Batch, tokens: Sequence[Any], pieces: Sequence[Piece], **static: Any) -> Any:
        if self.pooling == "tokens":
            return forward.features(params, *tokens[:2], **static)
        return forward.pooled_features(params, *tokens, pooling=self.pooling, **static)

    def unpack(self, batch: Batch, pieces: Sequence[Piece], arrays: Any, config: RobertaConfig) -> list[Any]:
        return _tokens_of(batch, pieces, arrays) if self.pooling == "tokens" else _vectors_of(batch, arrays)

    def result(self, item: Any, pieces: Sequence[Piece], results: Sequence[Any], roberta: Roberta) -> Any:
        if len(results) == 1:
            return results[0]
        if self.pooling == "tokens":
            return _stitched(pieces, results)
        weights = [len(piece.ids) if self.pooling == "mean" else 1 for piece in pieces]
        return np.average(results, axis=0, weights=weights).astype(np.float32)

    def can_pack(self) -> bool:
        return True


@dataclass(frozen=True)
class FillMask:
    """The likeliest tokens for the one `<mask>` in a text: [(text, probability, token), ...] as Roberta.fill_mask."""

    topk: int = 5

    def check(self, config: RobertaConfig) -> None:
        check_topk(self.topk, config)
        forward.check_lm_head(config)

    def encode(self, tokenizer: Tokenizer, items: Sequence[Any], limit: int, on_long: OnLong) -> list[Encoded]:
        """One sequence each; of a text that is too long, what stands around the mask."""

        def one(item: Any) -> list[Piece]:
            ids, position = masked_ids(tokenizer, item)
            if len(ids) <= limit:
                return [Piece(ids, position)]
            _refuse_long(len(ids), limit, on_long)
            inside = limit - 2
            begin = min(max(position - inside // 2, 1), len(ids) - 1 - inside)
            ids = np.concatenate([ids[:1], ids[begin : begin + inside], ids[-1:]])
            return [Piece(ids, position + 1 - begin, cut=True)]

        return [_or_rejected(one, item) for item in items]

    def run(self, params: Any, batch: Batch, tokens: Sequence[Any], pieces: Sequence[Piece], **static: Any) -> Any:
        positions = np.zeros((len(batch.tokens), 1), np.int32)
        positions[batch.row, 0] = [piece.prefix for piece in pieces]
        return forward.top_tokens(params, tokens[0], positions, topk=self.topk, **static)

    def unpack(self, batch: Batch, pieces: Sequence[Piece], arrays: Any, config: RobertaConfig) -> list[Any]:
        probabilities, ids = arrays
        return [(probabilities[row, 0], ids[row, 0]) for row in batch.row]

    def result(self, item: Any, pieces: Sequence[Piece], results: Sequence[Any], roberta: Roberta) -> Any:
        return fills(roberta.tokenizer, item, *results[0])

    def can_pack(self) -> bool:
        return False


def encode_texts(tokenizer: Tokenizer, item: Item, limit: int, on_long: OnLong) -> list[Piece]:
    """The sequences of a text or of several, as Tokenizer.encode joins them.

    Of an input of over `limit` tokens, by `on_long`: none ("error"); one, cut token by token at the end of whichever
    text is the longest then ("truncate"); or several, that slide over the last text by half of what there is room for
    ("window").

    Raises:
      InputError: not text, or too long.
    """
    (found,) = encode_batch(tokenizer, [item], limit, on_long)
    if isinstance(found, Rejected):
        raise InputError(found.reason)
    return found


def encode_batch(tokenizer: Tokenizer, items: Iterable[Item], limit: int, on_long: OnLong) -> list[Encoded]:
    """`encode_texts` of each, or why it raises: one look-up for all that are not too long."""
    whole: list[list[list[int]]] = []

    def shortened(item: Item) -> list[Piece]:
        """The sequences of an input that is too long; none of one that is joined with the others."""
        texts = [item] if isinstance(item, str) else item
        if not isinstance(texts, (list, tuple)) or not texts:
            raise InputError(f"expected a text or several, got {type(item).__name__}: {str(item)[:60]!r}")
        parts = list(map(tokenizer.pieces, texts))
        if sum(map(len, parts)) + _specials(parts) > limit:
            return _shortened(tokenizer, parts, limit, on_long)
        whole.append(parts)
        return []

    encoded = [_or_rejected(shortened, item) for item in items]
    joined = iter(tokenizer.join_all(whole))
    return [found or [Piece(next(joined))] for found in encoded]


def _or_rejected(encode: Callable[[Any], list[Piece]], item: Any) -> Encoded:
    if isinstance(item, Rejected):
        return item
    try:
        return encode(item)
    except InputError as error:
        return Rejected(str(error))


def _specials(parts: Sequence[list[int]]) -> int:
    return 2 * len(parts)  # <s> a </s></s> b </s>


def _shortened(tokenizer: Tokenizer, parts: Sequence[list[int]], limit: int, on_long: OnLong) -> list[Piece]:
    specials = _specials(parts)
    length = sum(map(len, parts)) + specials
    _refuse_long(length, limit, on_long)
    if on_long == "truncate":
        kept = longest_first([len(part) for part in parts], limit - specials)
        return [Piece(tokenizer.join([part[:n] for part, n in zip(parts, kept, strict=True)]), cut=True)]
    *given, last = parts
    room = limit - specials - sum(map(len, given))
    if room < 2:
        raise InputError(f"{length} tokens, and the texts before the last leave no room in {limit} to slide over it")
    prefix = length - len(last) - 1
    begins = [*range(0, len(last) - room, max(room // 2, 1)), len(last) - room]
    return [
        Piece(tokenizer.join([*given, last[begin : begin + room]]), prefix, begin, begin + room, cut=True)
        for begin in begins
    ]


def longest_first(lengths: Sequence[int], room: int) -> list[int]:
    """How much of each text `room` holds: a token at a time goes from the longest, from the last of equals."""
    kept, excess = list(lengths), sum(lengths) - room
    while excess > 0:
        longest = max(range(len(kept)), key=lambda i: (kept[i], i))
        others = [length for i, length in enumerate(kept) if i != longest]
        surplus = kept[longest] - max(others, default=0)
        cut = min(excess, max(surplus, 1))
        kept[longest] -= cut
        excess -= cut
    return kept


def _refuse_long(length: int, limit: int, on_long: OnLong) -> None:
    if on_long == "error":
        raise InputError(f"{length} tokens, over the limit of {limit}; see on_long (--on-long truncate or window)")


def _vectors_of(batch: Batch, arrays: npt.NDArray[Any]) -> list[Any]:
    """[rows, n] or [rows, segments, n] to one [n] a sequence."""
    return list(arrays[batch.row] if batch.starts is None else arrays[batch.row, batch.segment])


def _tokens_of(batch: Batch, pieces: Sequence[Piece], arrays: npt.NDArray[Any]) -> list[Any]:
    """[rows, length, n] to one [tokens, n] a sequence."""
    return [
        arrays[row, column : column + len(piece.ids)]
        for row, column, piece in zip(batch.row, batch.column, pieces, strict=True)
    ]


def _stitched(pieces: Sequence[Piece], results: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Token results of sliding parts as those of the whole: each token's from the part where it is farthest inside."""
    first, last = pieces[0], pieces[-1]
    borders = [0, *((a.end + b.begin) // 2 for a, b in itertools.pairwise(pieces)), last.end]
    inside = [
        result[piece.prefix + begin - piece.begin : piece.prefix + end - piece.begin]
        for piece, result, (begin, end) in zip(pieces, results, itertools.pairwise(borders), strict=True)
    ]
    return np.concatenate([results[0][: first.prefix], *inside, results[-1][-1:]])


@dataclass
class Stats:
    """What a Predictor has done. It grows with each batch that the devices have finished, where nothing else is said.

    Attributes:
      texts: inputs that are done: all of their sequences, or rejected.
      rejected: how many of them had no result; these are counted with their window.
      cut: inputs that were too long, and truncated or cut into parts; counted with their window.
      sequences, tokens: that the model saw.
      slots: tokens with padding.
      batches: that were run.
      shapes: of batches, each of which is compiled for.
      compilations: of them, those that this process had not compiled before.
      laid_out_texts, laid_out_slots: the same of all windows that are encoded and laid out, be they done or not.
      seconds: from the first input to the last result.
      device_seconds: of them, how many the host did nothing but wait for the device: at least so long did that work.
    """

    texts: int = 0
    rejected: int = 0
    cut: int = 0
    sequences: int = 0
    tokens: int = 0
    slots: int = 0
    batches: int = 0
    shapes: set[tuple[int, ...]] = field(default_factory=set)
    compilations: Compilations = field(default_factory=Compilations)
    laid_out_texts: int = 0
    laid_out_slots: int = 0
    seconds: float = 0.0
    device_seconds: float = 0.0

    @property
    def padding(self) -> float:
        """The share of slots that hold padding."""
        return 1 - self.tokens / self.slots if self.slots else 0.0

    def share_done(self, texts: int) -> float:
        """About which share of the work on `texts` inputs is done, from 0 to 1.

        By slots, since the longest of a window go first; inputs that are not laid out yet count as the mean of others.
        """
        if not self.laid_out_slots:
            return 0.0
        return self.slots / self.laid_out_slots * min(self.laid_out_texts / max(texts, 1), 1.0)

    def to_json(self) -> dict[str, Any]:
        """The numbers, and what follows from them."""
        rate = 1 / self.seconds if self.seconds else 0.0
        return {
            "texts": self.texts,
            "rejected": self.rejected,
            "cut": self.cut,
            "sequences": self.sequences,
            "tokens": self.tokens,
            "padding_share": round(self.padding, 4),
            "batches": self.batches,
            "shapes": len(self.shapes),
            "compilations": self.compilations.programs,
            "compilations_from_cache": self.compilations.from_cache,
            "compilation_seconds": round(self.compilations.seconds, 3),
            "seconds": round(self.seconds, 3),
            "texts_per_second": round(self.texts * rate, 2),
            "tokens_per_second": round(self.tokens * rate, 1),
            "device_share": round(self.device_seconds * rate, 4),
        }


@dataclass
class _Window:
    """Some inputs on their way: what they became, and what is known of each."""

    inputs: Sequence[Any]
    pieces: list[Piece]
    owned: list[list[int]]  # of each input, the numbers of its pieces
    owner: list[int]  # of each piece, the number of its input
    to_come: list[int]  # of each input, how many of its pieces have no result yet
    results: list[Any]  # of each piece
    rejected: dict[int, Rejected]
    batches: list[Batch]
    left: int  # batches that have no results yet


class Predictor:
    """Runs a model over many texts.

    >>> predictor = roberta_flax.Predictor(roberta, roberta_flax.Classify("mnli"))
    >>> for log_probabilities in predictor(pairs): ...

    Attributes:
      work: what it asks of the model.
      stats: what was done so far.
    """

    def __init__(
        self,
        roberta: Roberta,
        work: Work,
        *,
        on_long: OnLong = "error",
        strategy: Strategy | None = None,
        window: int = WINDOW,
        tokens_per_batch: int | None = None,
        devices: Sequence[jax.Device] | None = None,
        tensor_parallel: int = 1,
        threads: int = 2,
        max_length: int | None = None,
    ) -> None:
        """Places the parameters on the devices.

        Args:
          roberta: the model; its dtype, precision and attention are used, and never dropout.
          work: Classify, Embed or FillMask.
          on_long: what becomes of an input that is too long; see encode_texts.
          strategy: "buckets", a sequence a row, or "packing", several where they are short; packing on CPUs and buckets
            elsewhere if not given.
          window: how many inputs are looked at together, to be sorted by length.
          tokens_per_batch: about how many tokens a batch has on each data-parallel device; a value for the backend if
            not given.
          devices: all local ones if not given.
          tensor_parallel: how many devices share each layer's matrices; the others repeat the model.
          threads: that encode text.
          max_length: tokens of an input, at most, from SHORTEST_LIMIT; the model's max_positions if not given.

        Raises:
          InputError: what the model cannot do, or devices that do not divide it.
        """
        for name, value, known in (("on_long", on_long, get_args(OnLong)), ("strategy", strategy, get_args(Strategy))):
            if value not in known and not (name == "strategy" and value is None):
                raise InputError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        for name, count in (("window", window), ("threads", threads), ("tokens_per_batch", tokens_per_batch or 1)):
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise InputError(f"{name} must be a positive integer, got {count!r}")
        work.check(roberta.config)
        self._limit = limit_of(roberta.config, max_length)
        self._roberta, self.work = roberta, work
        self._on_long, self._window, self._threads = on_long, window, threads
        self._mesh = sharding.mesh(devices, tensor_parallel)
        self._params = sharding.place(forward.operands(roberta.params, roberta.dtype), roberta.config, self._mesh)
        rows = self._mesh.shape[sharding.DATA]
        backend = self._mesh.devices.flat[0].platform
        self._layout = {
            "tokens_per_batch": rows * (tokens_per_batch or TOKENS_PER_BATCH.get(backend, _TOKENS_PER_BATCH_ELSEWHERE)),
            "rows_multiple": rows,
            "pad_id": roberta.config.pad_id,
            "max_positions": roberta.config.max_positions,
            "pack": (strategy or STRATEGY.get(backend, _STRATEGY_ELSEWHERE)) == "packing" and work.can_pack(),
        }
        self.stats = Stats()

    @property
    def config(self) -> RobertaConfig:
        """The model's."""
        return self._roberta.config

    def describe(self) -> dict[str, Any]:
        """What the bits of results depend on, beside the model's parameters and what is asked of it."""
        return {
            "on_long": self._on_long,
            "max_length": self._limit,
            "dtype": str(self._roberta.dtype),
            "precision": str(self._roberta.precision),
            "attention": self._roberta.attention,
            "quantized": is_quantized(self._roberta.params),
            "backend": self._mesh.devices.flat[0].platform,
            "devices": list(self._mesh.devices.shape),
            "layout": self._layout,
            "jax": jax.__version__,
        }

    def __call__(self, inputs: Iterable[Item]) -> Iterator[Any]:
        """A result for each input, in order; what it is, `work` says.

        Inputs are taken a window ahead, so they may come without end.

        Raises:
          InputError: an input that is no text or is too long; it names its number, from 0.
        """
        number = 0
        for results in self.windows(_windows(inputs, self._window)):
            for result in results:
                if isinstance(result, Rejected):
                    raise InputError(f"input {number}: {result.reason}")
                yield result
                number += 1

    def windows(
        self, windows: Iterable[Sequence[Any]], after_batch: Callable[[], None] = lambda: None
    ) -> Iterator[list[Any]]:
        """For each window of inputs the list of their results, a Rejected for each that has none.

        An input that is a Rejected already stays one. What a window gives does not depend on the others.

        Args:
          windows: of inputs.
          after_batch: called whenever the devices have finished a batch, and `stats` has it.
        """
        begin = time.perf_counter() - self.stats.seconds
        waiting: deque[_Window] = deque()
        running: deque[tuple[_Window, Batch, Any]] = deque()

        def finish_first() -> None:
            self._finish(*running.popleft())
            self.stats.seconds = time.perf_counter() - begin
            after_batch()

        def results_of_first() -> list[Any]:
            results = self._results(waiting.popleft())
            self.stats.seconds = time.perf_counter() - begin
            return results

        with _ahead(map(self._prepare, windows)) as prepared:
            for window in prepared:
                waiting.append(window)
                self.stats.laid_out_texts += len(window.inputs)
                self.stats.laid_out_slots += sum(batch.tokens.size for batch in window.batches)
                for batch in window.batches:
                    running.append((window, batch, self._start(window, batch)))
                    if len(running) > _IN_FLIGHT:
                        finish_first()
                while waiting and not waiting[0].left:
                    yield results_of_first()
            while running:
                finish_first()
            while waiting:
                yield results_of_first()

    def _prepare(self, inputs: Sequence[Any]) -> _Window:
        """Encodes a window's inputs and lays them out; on the host, ahead of the device."""
        chunks = [inputs[i : i + TEXTS_PER_TASK] for i in range(0, len(inputs), TEXTS_PER_TASK)]
        with ThreadPoolExecutor(self._threads) as pool:
            encoded = list(itertools.chain.from_iterable(pool.map(self._encode, chunks)))
        pieces: list[Piece] = []
        owned: list[list[int]] = []
        rejected: dict[int, Rejected] = {}
        for number, found in enumerate(encoded):
            if isinstance(found, Rejected):
                rejected[number] = found
                owned.append([])
            else:
                owned.append(list(range(len(pieces), len(pieces) + len(found))))
                pieces += found
        batches = list(batching.lay_out([piece.ids for piece in pieces], **self._layout))
        owner = [number for number, numbers in enumerate(owned) for _ in numbers]
        nothing = [None] * len(pieces)
        return _Window(inputs, pieces, owned, owner, list(map(len, owned)), nothing, rejected, batches, len(batches))

    def _encode(self, inputs: Sequence[Any]) -> list[Encoded]:
        return self.work.encode(self._roberta.tokenizer, inputs, self._limit, self._on_long)

    def _start(self, window: _Window, batch: Batch) -> Any:
        arrays = [array for array in (batch.tokens, batch.segments, batch.starts) if array is not None]
        tokens = [sharding.place_rows(array, self._mesh) for array in arrays]
        self.stats.shapes.add((*batch.tokens.shape, len(arrays)))
        pieces = [window.pieces[i] for i in batch.sequences]
        with self.stats.compilations.counted():
            return self.work.run(self._params, batch, tokens, pieces, **self._roberta.static())

    def _finish(self, window: _Window, batch: Batch, started: Any) -> None:
        begin = time.perf_counter()
        arrays = jax.tree.map(lambda array: _on_host(np.asarray(array)), started)
        self.stats.device_seconds += time.perf_counter() - begin
        pieces = [window.pieces[i] for i in batch.sequences]
        results = self.work.unpack(batch, pieces, arrays, self._roberta.config)
        for number, result in zip(batch.sequences, results, strict=True):
            window.results[number] = result
            window.to_come[window.owner[number]] -= 1
            self.stats.texts += not window.to_come[window.owner[number]]
        window.left -= 1
        self.stats.batches += 1
        self.stats.sequences += len(pieces)
        self.stats.tokens += sum(len(piece.ids) for piece in pieces)
        self.stats.slots += batch.tokens.size

    def _results(self, window: _Window) -> list[Any]:
        results: list[Any] = []
        for number, owned in enumerate(window.owned):
            if not owned:
                results.append(window.rejected[number])
                continue
            parts = [window.pieces[i] for i in owned], [window.results[i] for i in owned]
            results.append(self.work.result(window.inputs[number], *parts, self._roberta))
        self.stats.texts += len(window.rejected)
        self.stats.rejected += len(window.rejected)
        self.stats.cut += sum(window.pieces[owned[0]].cut for owned in window.owned if owned)
        return results


def limit_of(config: RobertaConfig, max_length: int | None) -> int:
    """How many tokens an input may have: max_length, or the model's max_positions.

    Raises:
      InputError: a max_length below SHORTEST_LIMIT, or more than the model has positions.
    """
    limit = config.max_positions if max_length is None else max_length
    if isinstance(limit, bool) or not isinstance(limit, int) or not SHORTEST_LIMIT <= limit <= config.max_positions:
        raise InputError(
            f"max_length must be from {SHORTEST_LIMIT} to the model's {config.max_positions}, got {limit!r}"
        )
    return limit


def _on_host(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """bfloat16 and float16 as float32, which every program reads; other numbers as they are."""
    return array.astype(np.float32) if array.dtype.itemsize == 2 else array


def _windows(inputs: Iterable[Item], size: int) -> Iterator[list[Item]]:
    if isinstance(inputs, str):
        raise InputError("expected texts, got one text; give a list of texts")
    iterator = iter(inputs)
    while window := list(itertools.islice(iterator, size)):
        yield window


@contextmanager
def _ahead(items: Iterator[T]) -> Iterator[Iterator[T]]:
    """The same items, made on a thread of its own, one ahead of who takes them; it ends with the block."""
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(maxsize=1)
    stopped = threading.Event()

    def put(item: T | None, error: BaseException | None) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                ready.put((item, error), timeout=0.1)
                return

    def make() -> None:
        try:
            for item in items:
                put(item, None)
                if stopped.is_set():
                    return
            put(None, None)
        except BaseException as error:  # it is raised where the items are taken
            put(None, error)

    def taken() -> Iterator[T]:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        stopped.set()
        thread.join()
