"""Predictor: runs a model over many inputs, in order, in a few compiled shapes, on all local devices.

Inputs are processed one window at a time. Host threads encode a window ahead of the devices; its sequences are laid out
in batches (batching.lay_out) and run, and the results are returned in the order of the inputs. The results of a window
depend on its inputs alone, and the memory in use on its size.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, get_args

import jax
import numpy as np
import numpy.typing as npt

from roberta_flax.errors import InputError, require_positive, shortened
from roberta_flax.hub import Roberta
from roberta_flax.inference.compilations import Compilations
from roberta_flax.nn import forward, sharding
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.nn.meshes import own_mesh
from roberta_flax.nn.quantize import is_quantized
from roberta_flax.prefetch import prefetched
from roberta_flax.tasks.base import NOT_FINITE, Task, TaskOfModel, as_done_by, is_finite, sequences_per_input
from roberta_flax.text import batching
from roberta_flax.text.batching import Strategy, TokenBatch
from roberta_flax.text.encoding import EncodedInput, EncodedSequence, OnLong, Rejected, TextInput, resolve_max_length
from roberta_flax.text.tokenizer import Tokenizer

WINDOW = 8192  # inputs
# Roughly where throughput levels off: on CPUs as measured by `python -m benchmarks.inference --sweep`, on TPU as
# estimated by its compiler for v5e (docs/performance.md). Not measured elsewhere.
TOKENS_PER_BATCH = {"cpu": 1024, "tpu": 4096}
_TOKENS_PER_BATCH_ELSEWHERE = 32768
# "auto" estimates costs by what was measured on CPUs (batching.estimated_cost). Nothing was measured elsewhere.
STRATEGY: dict[str, Strategy] = {"cpu": "auto"}
_STRATEGY_ELSEWHERE: Strategy = "buckets"
# A TPU keeps 16-bit numbers in tiles of 16 tokens, so that rows of 24 tokens take as long as rows of 32. Without the
# odd multiples of 8 there are 16 lengths to compile a program for instead of 20 (docs/performance.md).
LENGTH_MULTIPLE = {"tpu": 16}
_LENGTH_MULTIPLE_ELSEWHERE = 8
# Programs that are compiled at the same time. libtpu needs half a minute of one core for 24 layers, and a TPU's host
# has dozens of cores; XLA's CPU backend takes a second and uses all cores.
COMPILED_AT_ONCE = {"tpu": 8}
# Settings that JAX's context managers change for one thread alone; a program is compiled for their values.
_SETTINGS_OF_THREAD = (
    "jax_enable_x64", "jax_default_matmul_precision", "jax_numpy_rank_promotion", "jax_numpy_dtype_promotion",
    "jax_default_prng_impl", "jax_default_device", "jax_transfer_guard", "jax_debug_nans", "jax_debug_infs",
    "jax_disable_jit",
)  # fmt: skip
_WINDOWS_AHEAD = 2  # windows that are encoded and laid out ahead of the devices
_BATCHES_IN_FLIGHT = 2  # one runs while the next one waits, so that the device is never idle
TEXTS_PER_CHUNK = 256  # inputs that a host thread encodes in one call


@dataclass
class Stats:
    """Counts of what a Predictor has done, updated after each batch that the devices finish unless stated otherwise.

    Attributes:
      texts: inputs that are done: rejected, or with a result for each of their sequences.
      rejected: inputs without a result; updated after each window.
      truncated: inputs over the maximum length that were truncated or split into windows; updated after each window.
      sequences: sequences that the model has processed.
      tokens: tokens of these sequences, without padding.
      slots: tokens in the batches, with padding.
      batches: batches that were run.
      shapes: the different shapes of batches. One program is compiled for each.
      compilations: the programs that this process had not compiled before.
      laid_out_texts, laid_out_slots: inputs and slots of all windows that have been laid out, whether done or not.
      seconds: time from the first input to the last result.
      device_seconds: time in which the host only waited for the device; the device worked at least this long.
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
        """The fraction of slots that hold padding."""
        return 1 - self.tokens / self.slots if self.slots else 0.0

    def share_done(self, texts: int) -> float:
        """Estimates the fraction of the computation for `texts` inputs that is done, from 0 to 1.

        It is counted in slots, because the longest sequences of a window run first. Inputs that have not been laid out
        count as many slots as the others do on average.
        """
        if not self.laid_out_slots:
            return 0.0
        return self.slots / self.laid_out_slots * min(self.laid_out_texts / max(texts, 1), 1.0)

    def to_json(self) -> dict[str, Any]:
        """The counts, with rates and shares derived from them, as values that JSON can hold."""
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


class Results(list[Any]):
    """The results of a window, one for each input: the task's, or a Rejected.

    Attributes:
      truncated: the indices of the inputs with a result that were truncated or split into windows.
    """

    def __init__(self) -> None:
        super().__init__()
        self.truncated: list[int] = []


@dataclass
class _Window:
    """A window of inputs on its way through the model.

    Attributes:
      inputs: the inputs.
      sequences: the sequences of all inputs.
      sequences_of_input: for each input, the indices of its sequences; none if it was rejected.
      input_of_sequence: for each sequence, the index of its input.
      pending_sequences: for each input, the number of its sequences that have no result yet.
      results: for each sequence, its result, or None as long as it has none.
      rejected: the rejected inputs, by index.
      batches: the batches that the sequences are laid out in.
      pending_batches: the number of batches that are not finished.
    """

    inputs: Sequence[Any]
    sequences: list[EncodedSequence]
    sequences_of_input: list[list[int]]
    input_of_sequence: list[int]
    pending_sequences: list[int]
    results: list[Any]
    rejected: dict[int, Rejected]
    batches: list[TokenBatch]
    pending_batches: int

    def sequences_of(self, batch: TokenBatch) -> list[EncodedSequence]:
        """The sequences of a batch, in the order of `batch.indices`."""
        return [self.sequences[i] for i in batch.indices]


class Predictor:
    """Runs a task over many inputs.

    >>> predictor = roberta_flax.Predictor(roberta, roberta_flax.Classify("mnli"))
    >>> for log_probabilities in predictor(pairs): ...

    Attributes:
      task: what is asked of the model for each input.
      stats: counts of what has been done so far.
    """

    def __init__(
        self,
        roberta: Roberta,
        task: Task | TaskOfModel,
        *,
        on_long: OnLong | None = None,
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
          roberta: the model. Its numerics are used; dropout never is.
          task: Classify, Embed, FillMask, Tag, Answer, ZeroShot, Score, Rank or Choose, or an object with the methods
            of tasks.base.Task; it follows what the model's repository says of its use.
          on_long: how to handle inputs over the maximum length: "truncate" removes tokens from the end of whichever
            text is longest, and `stats` counts these inputs; "window" slides windows over the last text and combines
            their results (see text.encoding.encode_texts); "error" rejects them. The default is the task's: "window"
            for Answer, "truncate" for all others.
          strategy: "buckets" for one sequence per row; "packing" for several short sequences per row; "auto" for
            whichever of the two should be faster by the lengths of a window's sequences; or "fixed" for one sequence
            per row and one number of rows for each length, so that the bits of an input's result do not depend on other
            inputs. By default auto on CPUs and buckets elsewhere.
          window: number of inputs that are sorted by length together; fewer if the task makes several sequences of
            each.
          tokens_per_batch: approximate number of tokens in a batch on each data-parallel device. The default depends on
            the backend.
          devices: by default, all local devices.
          tensor_parallel: number of devices that share each layer's matrices. If there are more devices, the model is
            replicated over them, and they divide the rows of a batch.
          threads: number of threads that encode text.
          max_length: maximum length of an input in tokens, at least SMALLEST_MAX_LENGTH; by default the model's
            max_positions, or for a sentence encoder or a cross-encoder the one that its repository defines.

        Raises:
          InputError: an option is invalid, the model cannot do the task, or it cannot be divided over the devices.
        """
        for name, value, known in (("on_long", on_long, get_args(OnLong)), ("strategy", strategy, get_args(Strategy))):
            if value not in known and value is not None:
                raise InputError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        require_positive(window=window, threads=threads, tokens_per_batch=tokens_per_batch or 1)
        self._roberta, self._most_sequences, self._threads = roberta, window, threads
        self._take(task, on_long, max_length)
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
            "length_multiple": LENGTH_MULTIPLE.get(backend, _LENGTH_MULTIPLE_ELSEWHERE),
            "attention_cost": batching.relative_attention_cost(
                roberta.config.hidden_size, roberta.config.intermediate_size
            ),
        }
        self._strategy: Strategy = strategy or STRATEGY.get(backend, _STRATEGY_ELSEWHERE)
        # Programs that communicate between devices must reach all of them in one order, so one thread starts them.
        self._compiled_at_once = 1 if tensor_parallel > 1 else COMPILED_AT_ONCE.get(backend, 1)
        self.stats = Stats()

    def _take(self, task: Task | TaskOfModel, on_long: OnLong | None, max_length: int | None) -> None:
        """Takes on a task, with its own defaults for the other two."""
        task = as_done_by(self._roberta, task)
        task.check(self._roberta.config)
        default = getattr(task, "max_length", None) if max_length is None else max_length
        self._max_length = resolve_max_length(self._roberta.config, default)
        of_task: OnLong = getattr(task, "on_long", "truncate")
        self._on_long: OnLong = of_task if on_long is None else on_long
        self.task = task

    def with_task(
        self, task: Task | TaskOfModel, *, on_long: OnLong | None = None, max_length: int | None = None
    ) -> Predictor:
        """A predictor for another task over the same parameters, which are already on the devices.

        Arguments and errors are those of the constructor.
        """
        other = copy.copy(self)
        other._take(task, on_long, max_length)
        other.stats = Stats()
        return other

    def __repr__(self) -> str:
        devices = self._mesh.devices
        layout = f"{self._strategy}, {self._layout['tokens_per_batch']} tokens a batch"
        return (
            f"<Predictor: {shortened(repr(self.task), 200)}; on_long {self._on_long}, max_length {self._max_length}; "
            f"{layout}, on {devices.size} x {devices.flat[0].platform}; {self._roberta!r}>"
        )

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._roberta.tokenizer

    @property
    def config(self) -> RobertaConfig:
        """The model's configuration."""
        return self._roberta.config

    @property
    def window(self) -> int:
        """The number of inputs that are sorted by length together."""
        return max(1, self._most_sequences // sequences_per_input(self.task))

    @property
    def _batch_layout(self) -> dict[str, Any]:
        can_follow = self._strategy == "fixed" or self.task.can_pack()
        return {**self._layout, "strategy": self._strategy if can_follow else "buckets"}

    def describe(self) -> dict[str, Any]:
        """Everything that the bits of the results depend on, except the model's parameters and the task."""
        return {
            "on_long": self._on_long,
            "max_length": self._max_length,
            "dtype": str(self._roberta.numerics.dtype),
            "precision": str(self._roberta.numerics.precision),
            "attention": self._roberta.numerics.attention,
            "quantized": is_quantized(self._roberta.params),
            "backend": self._mesh.devices.flat[0].platform,
            "devices": list(self._mesh.devices.shape),
            "layout": self._batch_layout,
            "jax": jax.__version__,
        }

    def __call__(self, inputs: Iterable[TextInput]) -> Iterator[Any]:
        """Yields a result for each input, in order. The task defines what a result is.

        Inputs are read a few windows ahead, so `inputs` may be endless.

        Raises:
          InputError: an input is not text or too long, or the model's outputs for it are NaN or infinite. The message
            gives its index, from 0.
        """
        number = 0
        for results in self.windows(windows_of(inputs, self.window)):
            for result in results:
                if isinstance(result, Rejected):
                    raise InputError(f"input {number}: {result.reason}")
                yield result
                number += 1

    def result(self, given: Any) -> Any:
        """The result of one input. Raises InputError as a call does, without an index."""
        ((result,),) = self.windows([[given]])
        if isinstance(result, Rejected):
            raise InputError(result.reason)
        return result

    def windows(
        self, windows: Iterable[Sequence[Any]], after_batch: Callable[[], None] = lambda: None
    ) -> Iterator[Results]:
        """Yields the results of each window of inputs, with a Rejected for each input that has none.

        An input that is a Rejected already stays one. The results of a window do not depend on other windows.

        Args:
          windows: the inputs, in windows of any size.
          after_batch: called after each batch that the devices finish, when `stats` includes it.
        """
        begin = time.perf_counter() - self.stats.seconds
        unfinished: deque[_Window] = deque()
        in_flight: deque[tuple[_Window, TokenBatch, Any]] = deque()

        def finish_oldest_batch() -> None:
            self._finish_batch(*in_flight.popleft())
            self.stats.seconds = time.perf_counter() - begin
            after_batch()

        def finish_oldest_window() -> Results:
            results = self._finish_window(unfinished.popleft())
            self.stats.seconds = time.perf_counter() - begin
            return results

        with closing(prefetched(map(self._prepare, windows), ahead=_WINDOWS_AHEAD)) as prepared:
            for window in prepared:
                unfinished.append(window)
                self.stats.laid_out_texts += len(window.inputs)
                self.stats.laid_out_slots += sum(batch.tokens.size for batch in window.batches)
                self._compile(window)
                for batch in window.batches:
                    in_flight.append((window, batch, self._start_batch(batch, window.sequences_of(batch))))
                    if len(in_flight) > _BATCHES_IN_FLIGHT:
                        finish_oldest_batch()
                while unfinished and not unfinished[0].pending_batches:
                    yield finish_oldest_window()
            while in_flight:
                finish_oldest_batch()
            while unfinished:
                yield finish_oldest_window()

    def _prepare(self, inputs: Sequence[Any]) -> _Window:
        """Encodes the inputs of a window and lays them out in batches, on the host and ahead of the devices."""
        chunks = [inputs[i : i + TEXTS_PER_CHUNK] for i in range(0, len(inputs), TEXTS_PER_CHUNK)]
        with ThreadPoolExecutor(self._threads) as pool:
            encoded = list(itertools.chain.from_iterable(pool.map(self._encode, chunks)))
        sequences: list[EncodedSequence] = []
        sequences_of_input: list[list[int]] = []
        rejected: dict[int, Rejected] = {}
        for number, encoded_input in enumerate(encoded):
            if isinstance(encoded_input, Rejected):
                rejected[number] = encoded_input
                sequences_of_input.append([])
            else:
                sequences_of_input.append(list(range(len(sequences), len(sequences) + len(encoded_input))))
                sequences += encoded_input
        batches = list(batching.lay_out([sequence.ids for sequence in sequences], **self._batch_layout))
        return _Window(
            inputs,
            sequences,
            sequences_of_input,
            input_of_sequence=[number for number, indices in enumerate(sequences_of_input) for _ in indices],
            pending_sequences=list(map(len, sequences_of_input)),
            results=[None] * len(sequences),
            rejected=rejected,
            batches=batches,
            pending_batches=len(batches),
        )

    def _encode(self, inputs: Sequence[Any]) -> list[EncodedInput]:
        return self.task.encode(self._roberta.tokenizer, inputs, self._max_length, self._on_long)

    def _compile(self, window: _Window) -> None:
        """Compiles the programs of a window's new shapes at the same time, by running one batch of each.

        Their results are dropped: to keep those of all shapes until their turn could take too much memory.
        """
        first_of_shape: dict[tuple[int, ...], TokenBatch] = {}
        for batch in window.batches:
            if _shape(batch) not in self.stats.shapes:
                first_of_shape.setdefault(_shape(batch), batch)
        if len(first_of_shape) == 1 or self._compiled_at_once == 1:
            return

        def run(batch: TokenBatch) -> None:
            outputs = self._start_batch(batch, window.sequences_of(batch))
            jax.block_until_ready(outputs)  # type: ignore[no-untyped-call]

        with ThreadPoolExecutor(self._compiled_at_once) as pool:
            if pool.submit(_settings).result() == _settings():
                list(pool.map(run, first_of_shape.values()))

    def _start_batch(self, batch: TokenBatch, sequences: Sequence[EncodedSequence]) -> Any:
        """Starts the computation for a batch of these sequences, in the order of `batch.indices`."""
        placed = [sharding.place_rows(array, self._mesh) for array in _arrays(batch)]
        self.stats.shapes.add(_shape(batch))
        with own_mesh(self._mesh), self.stats.compilations.counted():
            return self.task.run(self._roberta, self._params, batch, placed, sequences)

    def _results(self, batch: TokenBatch, sequences: Sequence[EncodedSequence], outputs: Any) -> list[Any]:
        """Waits for the outputs of a batch, and returns the result of each of its sequences."""
        begin = time.perf_counter()
        arrays = jax.tree.map(lambda array: _widen(jax.device_get(array)), outputs)
        self.stats.device_seconds += time.perf_counter() - begin
        return self.task.unpack(batch, sequences, arrays, self._roberta.config)

    def _finish_batch(self, window: _Window, batch: TokenBatch, outputs: Any) -> None:
        """Stores the result of each sequence of a batch, when its outputs are there."""
        sequences = window.sequences_of(batch)
        results = self._results(batch, sequences, outputs)
        for index, result in zip(batch.indices, results, strict=True):
            window.results[index] = result
            number = window.input_of_sequence[index]
            window.pending_sequences[number] -= 1
            self.stats.texts += not window.pending_sequences[number]
        window.pending_batches -= 1
        self.stats.batches += 1
        self.stats.sequences += len(sequences)
        self.stats.tokens += sum(len(sequence.ids) for sequence in sequences)
        self.stats.slots += batch.tokens.size

    def _repeat_alone(self, window: _Window) -> None:
        """Runs sequences without a finite result again, each in a row of its own if it has shared one.

        A masked neighbor's weight is zero, but zero times NaN is NaN: one input that overflows takes its row with it.
        """
        numbers = [i for i, result in enumerate(window.results) if not is_finite(result)]
        sequences = [window.sequences[i] for i in numbers]
        for batch in batching.lay_out([sequence.ids for sequence in sequences], **self._layout):
            some = [sequences[i] for i in batch.indices]
            results = self._results(batch, some, self._start_batch(batch, some))
            for index, result in zip(batch.indices, results, strict=True):
                window.results[numbers[index]] = result

    def _finish_window(self, window: _Window) -> Results:
        """The result of each input of a window whose batches are all finished."""
        if any(batch.segments is not None for batch in window.batches):
            self._repeat_alone(window)
        results = Results()
        for number, indices in enumerate(window.sequences_of_input):
            sequences = [window.sequences[i] for i in indices]
            sequence_results = [window.results[i] for i in indices]
            if number in window.rejected:
                results.append(window.rejected[number])
            elif not all(map(is_finite, sequence_results)):
                results.append(Rejected(NOT_FINITE))
            else:
                results.append(self.task.result(window.inputs[number], sequences, sequence_results, self._roberta))
                if any(sequence.truncated for sequence in sequences):
                    results.truncated.append(number)
        self.stats.truncated += len(results.truncated)
        self.stats.texts += len(window.rejected)
        self.stats.rejected += sum(isinstance(result, Rejected) for result in results)
        return results


def _settings() -> list[Any]:
    return [getattr(jax.config, name) for name in _SETTINGS_OF_THREAD]


def _arrays(batch: TokenBatch) -> list[npt.NDArray[np.int32]]:
    return [array for array in (batch.tokens, batch.segments, batch.starts) if array is not None]


def _shape(batch: TokenBatch) -> tuple[int, ...]:
    """What a program is compiled for: the tokens' shape, and the number of arrays."""
    return (*batch.tokens.shape, len(_arrays(batch)))


def _widen(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Converts bfloat16 and float16 to float32, which every program can read."""
    return array.astype(np.float32) if array.dtype.itemsize == 2 else array


def windows_of(inputs: Iterable[TextInput], size: int) -> Iterator[list[TextInput]]:
    """The inputs in windows of `size`, of which the last may be smaller. Raises InputError for one text."""
    if isinstance(inputs, str):
        raise InputError("expected texts, got one text; give a list of texts")
    iterator = iter(inputs)
    while window := list(itertools.islice(iterator, size)):
        yield window
