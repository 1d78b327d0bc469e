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
from typing import Any, Literal, TypeVar, get_args

import jax
import numpy as np
import numpy.typing as npt

from roberta_flax.errors import InputError
from roberta_flax.hub import Roberta
from roberta_flax.inference.compilations import Compilations
from roberta_flax.nn import forward, sharding
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.nn.quantize import is_quantized
from roberta_flax.tasks.base import Work
from roberta_flax.text import batching
from roberta_flax.text.batching import Batch
from roberta_flax.text.encoding import Encoded, Item, OnLong, Piece, Rejected, limit_of

Strategy = Literal["buckets", "packing"]
T = TypeVar("T")

WINDOW = 8192  # texts
# About where throughput levels off: on CPUs by `python -m benchmarks.inference --sweep`, on TPU by what its compiler
# guesses for v5e (docs/performance.md), elsewhere not measured.
TOKENS_PER_BATCH = {"cpu": 1024, "tpu": 4096}
_TOKENS_PER_BATCH_ELSEWHERE = 32768
# Whichever is faster: on CPUs by benchmarks.inference, elsewhere not measured.
STRATEGY: dict[str, Strategy] = {"cpu": "packing"}
_STRATEGY_ELSEWHERE: Strategy = "buckets"
_IN_FLIGHT = 2  # batches: one runs, one waits, so that the device never does
TEXTS_PER_TASK = 256  # that a host thread encodes in one go


@dataclass
class Stats:
    """What a Predictor has done. It grows with each batch that the devices have finished, where nothing else is said.

    Attributes:
      texts: inputs that are done: all of their sequences, or rejected.
      rejected: how many of them had no result; these are counted with their window.
      truncated: inputs that were too long, and lost tokens or became several parts; counted with their window.
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
    truncated: int = 0
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
            "truncated": self.truncated,
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
        self._params = sharding.place(
            forward.operands(roberta.params, roberta.numerics.dtype), roberta.config, self._mesh
        )
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
            "dtype": str(self._roberta.numerics.dtype),
            "precision": str(self._roberta.numerics.precision),
            "attention": self._roberta.numerics.attention,
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
            return self.work.run(self._roberta, self._params, batch, tokens, pieces)

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
        self.stats.truncated += sum(window.pieces[owned[0]].truncated for owned in window.owned if owned)
        return results


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
