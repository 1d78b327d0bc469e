"""compare(): both sides over the same batches, batch by batch, so that memory holds one batch of values at a time."""

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
from roberta_flax.convert.cache import resolve
from roberta_flax.errors import InputError
from roberta_flax.extras import require
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.nn.forward import abstract_params
from roberta_flax.parity import inputs, points
from roberta_flax.parity.comparison import Decisions, PointSums, ValuePair, worst_tokens
from roberta_flax.parity.inputs import ParityBatch
from roberta_flax.parity.observation import WITHOUT_LOSS, Subject
from roberta_flax.parity.recording import Recording
from roberta_flax.parity.recording import record as write
from roberta_flax.parity.reference import REFERENCES, Observed, Reference
from roberta_flax.parity.report import DecisionResult, Place, PointResult, Report, Run, TokenError
from roberta_flax.parity.rounding import BACKENDS, DTYPES, rounding_of
from roberta_flax.text.tokenizer import Tokenizer

WORST_TOKENS = 20

Progress = Callable[[int, int, str], None]
"""Called with the batch that is computed, from 1, the number of batches, and "torch" or the dtype of the Flax side."""


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
    """Runs the same inputs through torch, in float64, and through Flax, and compares every named value.

    Args:
      source: a model, as roberta_flax.load takes it.
      texts: texts, or pairs of them; `tokens`: sequences of token ids. By default a built-in ragged set: 1 to
        max_positions tokens, with and without padding, all special ids.
      dtypes: of the Flax side's computation, some of rounding.DTYPES.
      precision, attention: as in roberta_flax.load.
      backend: "cpu", "gpu" or "tpu"; JAX's default if not given.
      reference: "builtin" (parity.torch_network), "fairseq" or "transformers", which must be installed.
      gradients: whether the gradient of the sum of all losses by every parameter is compared too; not in float16 and
        int8, which are not trained.
      only: patterns of the points that are compared, "layers.*.output"; all if empty.
      record: a directory to make, with the torch side's inputs, values and bounds for `dtypes`.
      replay: such a directory, instead of torch. With it `texts`, `tokens` and `reference` are not given, and `only`
        chooses among what was recorded.
      checkpoint_file, bpe_dir, cache_dir: as in roberta_flax.load.
      progress: called as the comparison proceeds; see Progress.

    Returns:
      The report.

    Raises:
      InputError: an argument that is not one of those named, a backend that is not there, texts that are too long, a
        reference that is not installed, a recording of another model, or nothing that both sides show.
      CheckpointError, DownloadError: as of roberta_flax.load.
    """
    _check(dtypes, reference, gradients)
    directory = resolve(source, checkpoint_file=checkpoint_file, bpe_dir=bpe_dir, cache_dir=cache_dir)
    config = converted.read_config(directory)
    tokenizer = Tokenizer.from_directory(directory)
    subjects: list[Subject] = []
    for dtype in dtypes:
        subject = Subject(directory, dtype, precision=precision, attention=attention, backend=backend, sharing=subjects)
        subjects.append(subject)
    torch_side: Reference
    if replay is not None:
        if texts is not None or tokens is not None or record is not None:
            raise InputError("a replay has its inputs from the recording: give no texts, tokens or record with it")
        torch_side = recording = Recording(Path(replay), directory)
        gradients, is_built_in = recording.gradients, recording.built_in
        names, number_of_batches = points.chosen_points(config, gradients, only), recording.batches
    else:
        names = points.chosen_points(config, gradients, only)
        batches, is_built_in = _batches(texts, tokens, tokenizer, config)
        number_of_batches = len(batches)
        torch_side = _torch_side(source, directory, reference, batches, names, checkpoint_file, cache_dir)
        if record is not None:
            backends = (*BACKENDS, *(subject.backend for subject in subjects))
            roundings = {rounding_of(dtype, precision, backend) for dtype in dtypes for backend in backends}
            torch_side = _WithProgress(torch_side, number_of_batches, progress)
            write(torch_side, Path(record), directory, roundings, gradients=gradients, built_in=is_built_in)
            torch_side = Recording(Path(record), directory)
    states = [_State(subject, names) for subject in subjects]
    lengths = []
    for number, observed in enumerate(_WithProgress(torch_side, number_of_batches, progress).observations()):
        lengths.append((observed.batch.tokens != config.pad_id).sum(axis=1).tolist())
        for state in states:
            if progress is not None:
                progress(number + 1, number_of_batches, state.subject.dtype)
            state.add(number, observed, gradients)
    runs = tuple(state.result(tokenizer) for state in states)
    for run in runs:
        if not run.points:  # which would pass, whatever the model
            raise InputError(
                f"nothing was compared in {run.dtype}: the two sides do not both show {', '.join(run.not_compared[:5])}"
            )
    return Report(
        source=str(source),
        model=_model(config),
        reference=dict(torch_side.description),
        inputs={"built_in": is_built_in, "lengths": lengths},
        gradients=gradients,
        runs=runs,
        versions={**converted.versions(), "python": platform.python_version(), "platform": platform.platform()},
        passed=all(run.passed for run in runs),
    )


class _WithProgress:
    """A reference that reports its progress."""

    def __init__(self, reference: Reference, batches: int, progress: Progress | None) -> None:
        self.description = reference.description
        self._reference, self._batches, self._progress = reference, batches, progress

    def observations(self) -> Iterator[Observed]:
        observations = self._reference.observations()
        for number in range(1, self._batches + 1):
            if self._progress is not None:
                self._progress(number, self._batches, "torch")
            yield next(observations)


def compare_subject(
    subject: Subject,
    observations: Iterable[Observed],
    points: Sequence[str],
    *,
    gradients: bool = False,
    tokenizer: Tokenizer | None = None,
) -> Run:
    """Compares one model in one computation with what the torch side has observed, or a network of one's own.

    Args:
      subject: whatever has a Subject's attributes and `observe`.
      observations: of a Reference.
      points: the names of those that are compared, in order (points.chosen_points).
      gradients: whether the subject computes gradients too.
      tokenizer: for the texts of tokens; without one they are None.

    Raises:
      InputError: a value of another shape than the torch side's.
    """
    state = _State(subject, points)
    for number, observed in enumerate(observations):
        state.add(number, observed, gradients)
    return state.result(tokenizer)


def _torch_side(
    source: str | os.PathLike[str],
    directory: Path,
    reference: str,
    batches: Sequence[ParityBatch],
    names: Sequence[str],
    checkpoint_file: str,
    cache_dir: str | os.PathLike[str] | None,
) -> Reference:
    require("torch", "parity", "replay what was recorded elsewhere")
    from roberta_flax.parity.torch_side import torch_side

    side: Reference = torch_side(
        source, directory, reference, batches, names, checkpoint_file=checkpoint_file, cache_dir=cache_dir
    )
    return side


def _check(dtypes: Sequence[str], reference: str, gradients: bool) -> None:
    if not dtypes or isinstance(dtypes, str):
        raise InputError(f"dtypes must be a list of some of {', '.join(DTYPES)}, got {dtypes!r}")
    for dtype in dtypes:
        rounding_of(dtype)
    if len(set(dtypes)) != len(dtypes):
        raise InputError(f"each dtype once, got {', '.join(dtypes)}")
    if reference not in REFERENCES:
        raise InputError(f"reference must be one of {', '.join(REFERENCES)}, got {reference!r}")
    if gradients and all(dtype in WITHOUT_LOSS for dtype in dtypes):
        raise InputError(f"there are no gradients in {' and '.join(dtypes)}; add float32, bfloat16 or float64")


def _batches(
    texts: Sequence[str | Sequence[str]] | None,
    tokens: Sequence[npt.ArrayLike] | None,
    tokenizer: Tokenizer,
    config: RobertaConfig,
) -> tuple[list[ParityBatch], bool]:
    """The inputs, and whether they are the built-in ones."""
    if texts is not None and tokens is not None:
        raise InputError("give texts or tokens, not both")
    if texts is not None:
        rows = [(row,) if isinstance(row, str) else tuple(row) for row in texts]
        batches = inputs.of_texts(rows, tokenizer, config)
    elif tokens is not None:
        batches = inputs.of_tokens(tokens, config, tokenizer.mask_id)
    else:
        specials = (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id, tokenizer.mask_id)
        return inputs.built_in(config, specials), True
    if not batches:
        raise InputError("there is nothing to compare: no texts, no tokens")
    return batches, False


@dataclass
class _State:
    """A run, as far as it has come."""

    subject: Subject
    names: Sequence[str]
    sums: dict[str, PointSums] = field(default_factory=dict)
    decisions: dict[str, Decisions] = field(default_factory=dict)
    worst: list[TokenError] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, number: int, observed: Observed, gradients: bool) -> None:
        """Computes and compares a batch."""
        subject, batch = self.subject, observed.batch
        spreads = observed.spreads(rounding_of(subject.dtype, subject.precision, subject.backend))
        begin = time.perf_counter()
        ours = subject.observe(batch, gradients, self.names)
        self.seconds += time.perf_counter() - begin
        for name in self.names:
            if name not in ours or name not in observed.values:
                continue
            reference, spread = observed.values[name], spreads[name]
            if ours[name].shape != reference.shape:
                raise InputError(
                    f"{name} is of shape {ours[name].shape} in batch {number}, and of {reference.shape} on the torch "
                    "side: these are two different networks"
                )
            counted = points.counted(name, batch, subject.config)
            pair = ValuePair(name, number, batch, ours[name], reference, spread, counted)
            errors = self.sums.setdefault(name, PointSums(name, subject.dtype)).add(pair)
            if name == "features":
                self.worst += worst_tokens(pair, errors, WORST_TOKENS)
            if name.endswith(".logits") and (name.startswith("lm_head.") or _decides(name, subject.config)):
                self.decisions.setdefault(name, Decisions(name)).add(pair)

    def result(self, tokenizer: Tokenizer | None) -> Run:
        """The run's part of the report."""
        texts = _Texts(tokenizer)
        results = tuple(texts.in_point(self.sums[name].result()) for name in self.names if name in self.sums)
        decisions: tuple[DecisionResult, ...] = tuple(
            dataclasses.replace(result, places=tuple(place for each in result.places if (place := texts.named(each))))
            for result in (each.result() for each in self.decisions.values())
        )
        worst = sorted(self.worst, key=lambda token: -token.error)[:WORST_TOKENS]
        return Run(
            dtype=self.subject.dtype,
            precision=self.subject.precision,
            backend=self.subject.backend,
            attention=self.subject.attention,
            points=results,
            not_compared=tuple(name for name in self.names if name not in self.sums),
            decisions=decisions,
            diverges_at=next((result.point for result in results if not result.passed), None),
            worst_tokens=tuple(dataclasses.replace(token, text=texts.of(token.token_id)) for token in worst),
            passed=all(result.passed for result in results) and all(result.passed for result in decisions),
            seconds=round(self.seconds, 3),
        )


@dataclass(frozen=True)
class _Texts:
    tokenizer: Tokenizer | None

    def of(self, token_id: int) -> str | None:
        """What a token stands for, for people to read."""
        return None if self.tokenizer is None else self.tokenizer.token_text(token_id)

    def in_point(self, result: PointResult) -> PointResult:
        """The point with its tokens' texts."""
        worst, furthest_over = self.named(result.worst), self.named(result.furthest_over)
        return dataclasses.replace(result, worst=worst, furthest_over=furthest_over)

    def named(self, place: Place | None) -> Place | None:
        """The place with its token's text."""
        if place is None or place.token_id is None:
            return place
        return dataclasses.replace(place, text=self.of(place.token_id))


def _decides(point: str, config: RobertaConfig) -> bool:
    """Whether the logits of this head choose between classes."""
    head = config.head(point.split(".")[1])
    return head.kind in ("sentence", "token") and head.problem == "single_label" and head.num_classes > 1


def _model(config: RobertaConfig) -> dict[str, Any]:
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
