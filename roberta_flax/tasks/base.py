"""The interface of a task, and functions that several tasks share."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, cast

import numpy as np
import numpy.typing as npt

from roberta_flax.checkpoint.usage import Usage
from roberta_flax.errors import InputError
from roberta_flax.nn import forward
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from roberta_flax.nn.forward import Params
from roberta_flax.nn.numerics import Numerics
from roberta_flax.text.batching import TokenBatch
from roberta_flax.text.encoding import EncodedInput, EncodedSequence, OnLong
from roberta_flax.text.tokenizer import Tokenizer

NOT_FINITE = (
    "the model's outputs are NaN or infinite, which is no answer: its parameters are, or a value exceeded the range of "
    "the dtype; check the parameters, or compute in another dtype"
)


class Model(Protocol):
    """The parts of a model that a task uses; roberta_flax.Roberta has them."""

    @property
    def config(self) -> RobertaConfig: ...
    @property
    def params(self) -> Params: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def numerics(self) -> Numerics: ...
    @property
    def usage(self) -> Usage: ...


class Task(Protocol):
    """What is asked of a model for each input.

    A Predictor encodes inputs as sequences (`encode`), runs the model on batches of sequences (`run`), splits the
    outputs of each batch (`unpack`), and makes the result of each input from those of its sequences (`result`).
    """

    def check(self, config: RobertaConfig) -> None:
        """Raises InputError if a model of this configuration cannot do the task."""

    def encode(
        self, tokenizer: Tokenizer, inputs: Sequence[Any], max_length: int, on_long: OnLong
    ) -> list[EncodedInput]:
        """Encodes each input as sequences of at most `max_length` tokens, or rejects it."""

    def run(
        self, model: Model, params: Any, batch: TokenBatch, arrays: Sequence[Any], sequences: Sequence[EncodedSequence]
    ) -> Any:
        """Starts the computation for a batch, and returns arrays that need not be ready yet.

        Args:
          model: the model.
          params: its parameters, on the devices.
          batch: where each sequence is in the arrays.
          arrays: the batch's tokens, and its segments and starts if it has them, on the devices.
          sequences: the sequences of the batch, in the order of `batch.indices`.
        """

    def unpack(
        self, batch: TokenBatch, sequences: Sequence[EncodedSequence], outputs: Any, config: RobertaConfig
    ) -> list[Any]:
        """Splits the outputs of `run`, as numpy arrays, into one result for each sequence."""

    def result(
        self, text_input: Any, sequences: Sequence[EncodedSequence], results: Sequence[Any], model: Model
    ) -> Any:
        """Makes the result of an input from those of its sequences: one, or several windows."""

    def can_pack(self) -> bool:
        """Whether several sequences may share a row."""


class TaskOfModel(Protocol):
    """A task that follows what a model's repository says of its use."""

    def of(self, model: Model) -> Task:
        """The task as `model` does it. Raises InputError if it cannot."""


class HeadLogits:
    """What tasks share that take a head's logits.

    Attributes:
      kind: of the head.
      head: its name; None for the only one of that kind.
    """

    kind: ClassVar[str]
    head: Any

    def run(
        self, model: Model, params: Any, batch: TokenBatch, arrays: Sequence[Any], sequences: Sequence[EncodedSequence]
    ) -> Any:
        head = one_head(model.config, self.kind, self.head).name
        return forward.head_logits(params, *arrays, head=head, config=model.config, numerics=model.numerics)

    def can_pack(self) -> bool:
        return True


class SequenceLogits(HeadLogits):
    """What tasks share that take one vector of each sequence, a head's logits."""

    kind: ClassVar[str] = "sentence"

    def unpack(
        self, batch: TokenBatch, sequences: Sequence[EncodedSequence], outputs: Any, config: RobertaConfig
    ) -> list[Any]:
        return unpack_vectors(batch, outputs)


def is_finite(outputs: npt.ArrayLike | tuple[npt.ArrayLike, ...]) -> bool:
    """Whether no output of a model, an array or a tuple of arrays, is NaN or infinite."""
    arrays = outputs if isinstance(outputs, tuple) else (outputs,)
    return all(bool(np.isfinite(array).all()) for array in arrays)


def check_finite(outputs: npt.ArrayLike | tuple[npt.ArrayLike, ...]) -> None:
    """Raises InputError if an output of a model is NaN or infinite. Call it before an answer is made of outputs."""
    if not is_finite(outputs):
        raise InputError(NOT_FINITE)


def one_head(config: RobertaConfig, kind: str, name: str | None = None) -> HeadConfig:
    """The head with this name, or the only one of a kind.

    Raises:
      InputError: there is no such head, or it is of another kind; or no name is given and the model has no head of the
        kind, or several.
    """
    heads = [head for head in config.heads if head.kind == kind]
    if name is None and len(heads) != 1:
        names = ", ".join(head.name for head in heads or config.heads) or "none"
        several = f"the model has several {kind} heads: {names}; choose one with head (--head)"
        raise InputError(several if heads else f"this takes a {kind} head, and the model has none; its heads: {names}")
    head = heads[0] if name is None else config.head(name)
    if head.kind != kind:
        raise InputError(f"head {head.name!r} is of kind {head.kind}, expected a {kind} head")
    return head


def check_count(name: str, value: Any, *, smallest: int = 1) -> None:
    """Raises InputError unless `value` is an integer of at least `smallest`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
        raise InputError(f"{name} must be an integer of at least {smallest}, got {value!r}")


def sequences_per_input(task: Task | TaskOfModel) -> int:
    """How many sequences a task makes of an input that is not too long: its `sequences_per_input`, by default 1."""
    return int(getattr(task, "sequences_per_input", 1))


def as_done_by(model: Model, task: Task | TaskOfModel) -> Task:
    """The task as this model does it: a task with a method `of` follows what the model's source says of its use."""
    of: Any = getattr(task, "of", None)
    resolved: Any = task if of is None else of(model)
    return cast(Task, resolved)


def unpack_vectors(batch: TokenBatch, outputs: npt.NDArray[Any]) -> list[Any]:
    """Splits [rows, n], or [rows, segments, n] of a packed batch, into [n] for each sequence."""
    return list(outputs[batch.row] if batch.starts is None else outputs[batch.row, batch.segment])


def unpack_tokens(batch: TokenBatch, sequences: Sequence[EncodedSequence], outputs: npt.NDArray[Any]) -> list[Any]:
    """Splits [rows, length, n] into [tokens, n] for each sequence."""
    return [
        outputs[row, column : column + len(sequence.ids)]
        for row, column, sequence in zip(batch.row, batch.column, sequences, strict=True)
    ]


def merge_windows(windows: Sequence[EncodedSequence], results: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Merges the token results of overlapping windows into those of the whole input.

    The result of each token comes from the window in which the token is farthest from the edge.
    """
    first, last = windows[0], windows[-1]
    tail = results[-1][last.prefix_length + last.end - last.begin :]
    borders = [0, *((a.end + b.begin) // 2 for a, b in itertools.pairwise(windows)), last.end]
    kept = [
        result[window.prefix_length + begin - window.begin : window.prefix_length + end - window.begin]
        for window, result, (begin, end) in zip(windows, results, itertools.pairwise(borders), strict=True)
    ]
    return np.concatenate([results[0][: first.prefix_length], *kept, tail])
