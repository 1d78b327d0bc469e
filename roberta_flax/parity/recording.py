"""A torch side on disk: recorded where torch is, compared where it is not.

recording.json          what it is of, the bounds by rounding and point, the format's number
batch-000.safetensors   a batch's inputs ("inputs.tokens", ...) and the exact values of its points, float64
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from roberta_flax.checkpoint import converted
from roberta_flax.errors import InputError
from roberta_flax.files import new_directory
from roberta_flax.parity.inputs import ParityBatch
from roberta_flax.parity.reference import Observed, Reference, Spread
from roberta_flax.parity.rounding import Rounding

FORMAT = 1
_FILE = "recording.json"
_INPUTS = ("tokens", "positions", "targets", "weights")
_HEADS = "inputs.heads."


def record(
    reference: Reference,
    destination: Path,
    directory: Path,
    roundings: Collection[Rounding],
    *,
    gradients: bool,
    built_in: bool,
) -> None:
    """Writes everything that a reference computes; a batch at a time.

    Args:
      reference: the torch side.
      destination: the directory to make; it must not exist, and appears when it is whole.
      directory: the converted model, by whose parameters a replay knows that it is of the same.
      roundings: of the computations that it will be compared with.
      gradients: whether gradients are in it.
      built_in: whether the inputs are the built-in ones.

    Raises:
      CheckpointError: the destination exists or cannot be written.
    """
    with new_directory(destination) as folder:
        bounds = []
        for number, observed in enumerate(reference.observations()):
            batch = observed.batch
            tensors = {f"inputs.{name}": np.asarray(getattr(batch, name)) for name in _INPUTS}
            tensors |= {_HEADS + name: np.asarray(values) for name, values in batch.head_targets.items()}
            tensors |= observed.values
            tensors = {name: np.asarray(value, order="C") for name, value in tensors.items()}  # scalars too
            save_file(tensors, folder / _batch_file(number))
            bounds.append({rounding.name: _plain(observed.spreads(rounding)) for rounding in roundings})
        note = {
            "format": FORMAT,
            "reference": dict(reference.description),
            "parameters": fingerprint(directory),
            "gradients": gradients,
            "built_in": built_in,
            "bounds": bounds,
            "versions": converted.versions(),
        }
        (folder / _FILE).write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")


class Recording:
    """A Reference that reads what `record` wrote.

    Attributes:
      description: the reference's that was recorded.
      gradients: whether gradients are in it.
      built_in: whether its inputs are the built-in ones.

    Raises:
      InputError: no recording, a damaged one, one of another format or another model.
    """

    def __init__(self, folder: Path, directory: Path) -> None:
        self._folder = folder
        try:
            note = json.loads((folder / _FILE).read_text(encoding="utf-8"))
            if note["format"] != FORMAT:
                raise InputError(
                    f"{folder} is of format {note['format']}, this version reads {FORMAT}: record it again"
                )
            self.description: Mapping[str, str] = note["reference"]
            self.gradients: bool = note["gradients"]
            self.built_in: bool = note["built_in"]
            self._bounds: list[dict[str, dict[str, list[float]]]] = note["bounds"]
            recorded = note["parameters"]
        except OSError as error:
            raise InputError(f"{folder} is no recording: cannot read {folder / _FILE}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{folder / _FILE} is damaged ({error}); record it again") from None
        if recorded != fingerprint(directory):
            raise InputError(f"{folder} was recorded of a model with other parameters than {directory}")

    @property
    def batches(self) -> int:
        """How many there are."""
        return len(self._bounds)

    def observations(self) -> Iterator[Observed]:
        """Each batch in turn."""
        for number, bounds in enumerate(self._bounds):
            path = self._folder / _batch_file(number)
            try:
                tensors = load_file(path)
                inputs = {name: tensors.pop(f"inputs.{name}") for name in _INPUTS}
            except (OSError, SafetensorError, KeyError) as error:
                raise InputError(f"{path} is damaged ({error}); record it again") from None
            heads = {name.removeprefix(_HEADS): tensors.pop(name) for name in list(tensors) if name.startswith(_HEADS)}
            yield Observed(
                ParityBatch(head_targets=heads, **inputs), tensors, partial(self._spreads, bounds, frozenset(tensors))
            )

    def _spreads(
        self, bounds: Mapping[str, Mapping[str, list[float]]], points: Collection[str], rounding: Rounding
    ) -> dict[str, Spread]:
        if rounding.name not in bounds:
            raise InputError(
                f"{self._folder} has no bounds for this computation's rounding ({rounding.name}), only for "
                f"{', '.join(bounds)}; record it with --dtype for every dtype that is to be replayed"
            )
        try:
            found = bounds[rounding.name]
            return {
                point: Spread(float(found[point][0]), float(found[point][1]), int(found[point][2])) for point in points
            }
        except (LookupError, TypeError, ValueError) as error:
            raise InputError(f"{self._folder / _FILE} is damaged (bounds: {error!r}); record it again") from None


def fingerprint(directory: Path) -> str:
    """The sha256 of a converted model's parameters: names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(converted.read_stored(directory)[1].items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
        digest.update(np.ascontiguousarray(tensor.read()).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _plain(spreads: Mapping[str, Spread]) -> dict[str, list[float]]:
    return {point: [spread.largest, spread.squares, spread.count] for point, spread in spreads.items()}


def _batch_file(number: int) -> str:
    return f"batch-{number:03}.safetensors"
