"""compare(): run both sides on the same inputs. Goes batch by batch, so that memory holds the values of one batch."""

from __future__ import annotations

import dataclasses
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy.typing as npt

from roberta_flax.checkpoint import converted
from roberta_flax.checkpoint import usage as usages
from roberta_flax.convert.cache import resolve
from roberta_flax.errors import InputError
from roberta_flax.extras import require
from roberta_flax.metrics import marks_entities
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.nn.forward import abstract_params
from roberta_flax.parity import inputs, tensor_names
from roberta_flax.parity.inputs import ParityBatch
from roberta_flax.parity.recording import Recording
from roberta_flax.parity.recording import record as write_recording
from roberta_flax.parity.reference import REFERENCES, Reference, ReferenceValues
from roberta_flax.parity.report import Element, Report, Run, TensorResult, TokenError
from roberta_flax.parity.rounding import BACKENDS, DTYPES, rounding_of
from roberta_flax.parity.subject import WITHOUT_LOSS, Subject
from roberta_flax.parity.tensor_comparison import (
    AnswerStatistics,
    DecisionStatistics,
    EntityStatistics,
    TensorStatistics,
    ValuePair,
    worst_tokens,
)
from roberta_flax.text.tokenizer import Tokenizer

WORST_TOKENS = 20  # in a report

Progress = Callable[[int, int, str], None]
"""Called with the number of a batch, from 1, the number of batches, and what is computed: "torch", or the dtype of the
Flax model."""


def compare(
    source: str | os.PathLike[str],
    *,
    texts: Sequence[str | Sequence[str]] | None = None,
    tokens: Sequence[npt.ArrayLike] | None = None,
    dtypes: Sequence[str] = ("float32",),
    precision: str | None = None,
    attention: str | None = None,
    backend: str | None = None,
    reference: str = "builtin",
    gradients: bool = False,
    only: Sequence[str] = (),
    record: str | os.PathLike[str] | None = None,
    replay: str | os.PathLike[str] | None = None,
    checkpoint_file: str = "model.pt",
    bpe_dir: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Runs the same inputs through torch in float64 and through Flax, and compares every named tensor.

    Args:
      source: a model, as roberta_flax.load takes it.
      texts: texts, or pairs of texts, to run. Without `texts` and `tokens`, the inputs are built-in rows of 1 to
        max_positions tokens, with and without padding, with every special id.
      tokens: sequences of token ids to run.
      dtypes: compute dtypes of the Flax model, from rounding.DTYPES.
      precision, attention: as in roberta_flax.load.
      backend: "cpu", "gpu" or "tpu"; the default is JAX's.
      reference: "builtin" (roberta_flax.parity.torch_network), or "fairseq", "transformers" or "sentence-transformers",
        which must be installed. The latter gives sentence vectors and scores; what is inside the network is then
        compared with "builtin".
      gradients: whether to compare the gradient of the sum of all losses with respect to every parameter as well.
        float16 and int8 have no gradients, because models are not trained in them.
      only: patterns of the tensors to compare, such as "layers.*.output"; all tensors if empty.
      record: a directory to create with the inputs and the values of the reference, and with its tolerances for
        `dtypes`.
      replay: a directory that `record` created, to be used instead of torch. The inputs and the reference are those of
        the recording, so do not pass `texts`, `tokens` or `reference`; `only` selects from the recorded tensors.
      checkpoint_file, bpe_dir, cache_dir: as in roberta_flax.load.
      progress: called before each computation; see Progress.

    Returns:
      The report.

    Raises:
      InputError: an argument is not one of the named values, the backend is missing, a text is too long, the reference
        is not installed, the recording belongs to another model, or there is no tensor that both sides expose.
      CheckpointError, DownloadError: as in roberta_flax.load.
    """
    _check_arguments(dtypes, reference, gradients)
    if replay is None:
        require("torch", "parity", "replay what was recorded elsewhere")  # before anything is downloaded or converted
    directory = resolve(source, checkpoint_file=checkpoint_file, bpe_dir=bpe_dir, cache_dir=cache_dir)
    config = converted.read_config(directory)
    usage = usages.read(directory, config)
    tokenizer = Tokenizer.from_directory(directory)
    subjects: list[Subject] = []
    for dtype in dtypes:
        subject = Subject(directory, dtype, precision=precision, attention=attention, backend=backend, sharing=subjects)
        subjects.append(subject)
    expected: Reference
    if replay is not None:
        if texts is not None or tokens is not None or record is not None:
            raise InputError(
                "a replay takes its inputs from the recording; do not pass texts, tokens or record with it"
            )
        expected = recording = Recording(Path(replay), directory)
        gradients, is_built_in = recording.gradients, recording.built_in
        names, num_batches = tensor_names.matching_names(config, gradients, only, usage), recording.num_batches
    else:
        names = tensor_names.matching_names(config, gradients, only, usage)
        batches, is_built_in = _make_batches(texts, tokens, tokenizer, config)
        num_batches = len(batches)
        expected = _make_torch_reference(source, directory, reference, batches, names, checkpoint_file, cache_dir)
        if record is not None:
            backends = (*BACKENDS, *(subject.backend for subject in subjects))
            roundings = {rounding_of(dtype, precision, backend) for dtype in dtypes for backend in backends}
            expected = WithProgress(expected, num_batches, progress)
            write_recording(expected, Path(record), directory, roundings, gradients=gradients, built_in=is_built_in)
            expected = Recording(Path(record), directory)
    comparisons = [_Comparison(subject, names) for subject in subjects]
    lengths = []
    for number, values in enumerate(WithProgress(expected, num_batches, progress).evaluate()):
        lengths.append((values.batch.tokens != config.pad_id).sum(axis=1).tolist())
        for comparison in comparisons:
            if progress is not None:
                progress(number + 1, num_batches, comparison.subject.dtype)
            comparison.add(number, values, gradients)
    runs = tuple(comparison.result(tokenizer) for comparison in comparisons)
    for run in runs:
        if not run.tensors:  # such a run would pass, whatever the model
            raise InputError(
                f"nothing was compared in {run.dtype}: the two sides do not both expose "
                f"{', '.join(run.not_compared[:5])}"
            )
    return Report(
        source=str(source),
        model=_summarize_model(config),
        reference=dict(expected.description),
        inputs={"built_in": is_built_in, "lengths": lengths},
        gradients=gradients,
        runs=runs,
        versions={**converted.versions(), "python": platform.python_version(), "platform": platform.platform()},
        passed=all(run.passed for run in runs),
    )


class WithProgress:
    """A Reference that reports its progress."""

    def __init__(self, reference: Reference, num_batches: int, progress: Progress | None) -> None:
        self.description = reference.description
        self._reference, self._num_batches, self._progress = reference, num_batches, progress

    def evaluate(self) -> Iterator[ReferenceValues]:
        """Evaluates each batch in turn, and reports it before."""
        values = self._reference.evaluate()
        for number in range(1, self._num_batches + 1):
            if self._progress is not None:
                self._progress(number, self._num_batches, "torch")
            yield next(values)


def compare_subject(
    subject: Subject,
    expected: Iterable[ReferenceValues],
    names: Sequence[str],
    *,
    gradients: bool = False,
    tokenizer: Tokenizer | None = None,
) -> Run:
    """Compares a Flax model, or a network of your own, with the values that a reference computed.

    Args:
      subject: anything with the attributes and the `observe` method of Subject.
      expected: the values of a Reference, one item for each batch.
      names: names of the tensors to compare, in the order of computation (tensor_names.matching_names).
      gradients: whether the subject computes gradients too.
      tokenizer: gives the texts of tokens in the result; without it, they are None.

    Raises:
      InputError: a tensor has another shape than in the reference.
    """
    comparison = _Comparison(subject, names)
    for number, values in enumerate(expected):
        comparison.add(number, values, gradients)
    return comparison.result(tokenizer)


def _make_torch_reference(
    source: str | os.PathLike[str],
    directory: Path,
    reference: str,
    batches: Sequence[ParityBatch],
    names: Sequence[str],
    checkpoint_file: str,
    cache_dir: str | os.PathLike[str] | None,
) -> Reference:
    from roberta_flax.parity.torch_reference import make_torch_reference

    made: Reference = make_torch_reference(
        source, directory, reference, batches, names, checkpoint_file=checkpoint_file, cache_dir=cache_dir
    )
    return made


def _check_arguments(dtypes: Sequence[str], reference: str, gradients: bool) -> None:
    if not dtypes or isinstance(dtypes, str):
        raise InputError(f"dtypes must be a list of some of {', '.join(DTYPES)}, got {dtypes!r}")
    for dtype in dtypes:
        rounding_of(dtype)
    if len(set(dtypes)) != len(dtypes):
        raise InputError(f"pass each dtype once, got {', '.join(dtypes)}")
    if reference not in REFERENCES:
        raise InputError(f"reference must be one of {', '.join(REFERENCES)}, got {reference!r}")
    if gradients and all(dtype in WITHOUT_LOSS for dtype in dtypes):
        raise InputError(f"there are no gradients in {' and '.join(dtypes)}; add float32, bfloat16 or float64")


def _make_batches(
    texts: Sequence[str | Sequence[str]] | None,
    tokens: Sequence[npt.ArrayLike] | None,
    tokenizer: Tokenizer,
    config: RobertaConfig,
) -> tuple[list[ParityBatch], bool]:
    """Returns the inputs, and whether they are the built-in ones."""
    if texts is not None and tokens is not None:
        raise InputError("pass texts or tokens, not both")
    if texts is not None:
        rows = [(row,) if isinstance(row, str) else tuple(row) for row in texts]
        batches = inputs.batches_from_texts(rows, tokenizer, config)
    elif tokens is not None:
        batches = inputs.batches_from_tokens(tokens, config, tokenizer.backend.mask_id)
    else:
        backend = tokenizer.backend
        specials = (backend.bos_id, backend.eos_id, backend.unk_id, backend.mask_id)
        return inputs.built_in_batches(config, [i for i in specials if i is not None]), True
    if not batches:
        raise InputError("there is nothing to compare: the list of texts or tokens is empty")
    return batches, False


@dataclass
class _Comparison:
    """The comparison of one subject, accumulated batch by batch."""

    subject: Subject
    names: Sequence[str]
    tensors: dict[str, TensorStatistics] = field(default_factory=dict)
    decisions: dict[tuple[str, str], DecisionStatistics] = field(default_factory=dict)
    worst_tokens: list[TokenError] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, number: int, expected: ReferenceValues, gradients: bool) -> None:
        """Runs the subject on a batch, and compares its tensors with the reference."""
        subject, batch = self.subject, expected.batch
        deviations = expected.deviations(rounding_of(subject.dtype, subject.precision, subject.backend))
        begin = time.perf_counter()
        actual = subject.observe(batch, gradients, self.names)
        self.seconds += time.perf_counter() - begin
        for name in self.names:
            if name not in actual or name not in expected.values:
                continue
            values, reference, deviation = actual[name], expected.values[name], deviations[name]
            if values.shape != reference.shape:
                raise InputError(
                    f"{name} has shape {values.shape} in batch {number}, but {reference.shape} in the reference: these "
                    "are two different networks"
                )
            compared = tensor_names.compared_mask(name, batch, subject.config)
            pair = ValuePair(name, number, batch, values, reference, deviation, compared)
            errors = self.tensors.setdefault(name, TensorStatistics(name, subject.dtype)).add(pair)
            if name == "features":
                self.worst_tokens += worst_tokens(pair, errors, WORST_TOKENS)
            for statistics in _decisions(name, subject.config):
                self.decisions.setdefault((name, statistics.decision), statistics).add(pair)

    def result(self, tokenizer: Tokenizer | None) -> Run:
        """Returns the run for the report."""
        texts = _TokenTexts(tokenizer)
        tensors = tuple(texts.add_to_tensor(self.tensors[name].result()) for name in self.names if name in self.tensors)
        decisions = tuple(
            dataclasses.replace(result, disagreements=tuple(map(texts.add_to_element, result.disagreements)))
            for result in (statistics.result() for statistics in self.decisions.values())
        )
        worst = sorted(self.worst_tokens, key=lambda token: -token.error)[:WORST_TOKENS]
        return Run(
            dtype=self.subject.dtype,
            precision=self.subject.precision,
            backend=self.subject.backend,
            attention=self.subject.attention,
            tensors=tensors,
            not_compared=tuple(name for name in self.names if name not in self.tensors),
            decisions=decisions,
            diverges_at=next((tensor.name for tensor in tensors if not tensor.passed), None),
            worst_tokens=tuple(dataclasses.replace(token, text=texts.text_of(token.token_id)) for token in worst),
            passed=all(tensor.passed for tensor in tensors) and all(decision.passed for decision in decisions),
            seconds=round(self.seconds, 3),
        )


@dataclass(frozen=True)
class _TokenTexts:
    """Adds the texts of tokens to results; without a tokenizer, they stay None."""

    tokenizer: Tokenizer | None

    def text_of(self, token_id: int) -> str | None:
        """Returns a readable text for a token id."""
        return None if self.tokenizer is None else self.tokenizer.token_text(token_id)

    def add_to_element(self, element: Element) -> Element:
        """Returns the element with the text of its token."""
        if element.token_id is None:
            return element
        return dataclasses.replace(element, text=self.text_of(element.token_id))

    def add_to_tensor(self, result: TensorResult) -> TensorResult:
        """Returns the result of a tensor with the texts of its worst elements."""
        return dataclasses.replace(
            result,
            worst=result.worst and self.add_to_element(result.worst),
            worst_by_ratio=result.worst_by_ratio and self.add_to_element(result.worst_by_ratio),
        )


def _decisions(name: str, config: RobertaConfig) -> Iterator[DecisionStatistics]:
    """Empty statistics of each decision that a tensor makes."""
    if name == "lm_head.logits":
        yield DecisionStatistics(name)
    if not name.startswith("heads.") or not name.endswith(".logits"):
        return
    head = config.head(name.split(".")[1])
    if head.kind in ("sentence", "token") and head.problem == "single_label" and head.num_classes > 1:
        yield DecisionStatistics(name)
        if head.kind == "token" and marks_entities(head.labels):
            yield EntityStatistics(name, labels=head.labels)
    if head.kind == "span":
        yield AnswerStatistics(name)


def _summarize_model(config: RobertaConfig) -> dict[str, Any]:
    leaves = jax.tree.leaves(abstract_params(config))
    return {
        "layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "heads": config.num_heads,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "max_positions": config.max_positions,
        "parameters": sum(leaf.size for leaf in leaves),
        "classification_heads": [head.name for head in config.heads],
    }
