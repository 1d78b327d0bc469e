"""A reference on disk: record it on a machine with torch, and compare with it on a machine without.

recording.json          the model, the deviations for each rounding and tensor, and the number of the format
batch-000.safetensors   the inputs of a batch ("inputs.tokens", ...), and the exact values of its tensors in float64
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from roberta_flax.checkpoint import converted
from roberta_flax.errors import InputError
from roberta_flax.files import new_directory
from roberta_flax.parity.inputs import ParityBatch
from roberta_flax.parity.reference import Deviation, Reference, ReferenceValues
from roberta_flax.parity.rounding import Rounding

FORMAT = 1
_METADATA_FILE = "recording.json"
_INPUTS = ("tokens", "positions", "targets", "weights")
_HEADS_PREFIX = "inputs.heads."
_DEVIATIONS_KEY = "bounds"  # the tolerances follow from them

JsonDeviations = dict[str, dict[str, list[float]]]  # by name of the rounding and by tensor: the fields of a Deviation


def record(
    reference: Reference,
    destination: Path,
    directory: Path,
    roundings: Collection[Rounding],
    *,
    gradients: bool,
    built_in: bool,
) -> None:
    """Writes everything that a reference computes, one batch at a time.

    Args:
      reference: the torch side.
      destination: the directory to create. It must not exist, and appears only when it is complete.
      directory: the converted model; a replay checks that it has the same parameters.
      roundings: the roundings of the computations to compare with later.
      gradients: whether the reference computes gradients.
      built_in: whether the inputs are the built-in ones.

    Raises:
      CheckpointError: the destination exists or cannot be written.
    """
    with new_directory(destination) as folder:
        deviations = []
        for number, computed in enumerate(reference.evaluate()):
            save_file(_tensors_to_save(computed), folder / _batch_file(number))
            deviations.append({rounding.name: _to_json(computed.deviations(rounding)) for rounding in roundings})
        metadata = {
            "format": FORMAT,
            "reference": dict(reference.description),
            "parameters": fingerprint(directory),
            "gradients": gradients,
            "built_in": built_in,
            _DEVIATIONS_KEY: deviations,
            "versions": converted.versions(),
        }
        (folder / _METADATA_FILE).write_text(json.dumps(metadata, indent=1) + "\n", encoding="utf-8")


class Recording:
    """A Reference that reads what `record` wrote.

    Attributes:
      description: the description of the recorded reference.
      gradients: whether gradients were recorded.
      built_in: whether the inputs are the built-in ones.

    Raises:
      InputError: the folder is not a recording, is damaged, has another format, or belongs to another model.
    """

    def __init__(self, folder: Path, directory: Path) -> None:
        self._folder = folder
        try:
            metadata = json.loads((folder / _METADATA_FILE).read_text(encoding="utf-8"))
            if metadata["format"] != FORMAT:
                raise InputError(
                    f"{folder} has format {metadata['format']}, but this version reads format {FORMAT}; record it again"
                )
            self.description: Mapping[str, str] = metadata["reference"]
            self.gradients: bool = metadata["gradients"]
            self.built_in: bool = metadata["built_in"]
            self._deviations_by_batch: list[JsonDeviations] = metadata[_DEVIATIONS_KEY]
            recorded_fingerprint = metadata["parameters"]
        except InputError:
            raise
        except OSError as error:
            reason = f"cannot read {folder / _METADATA_FILE}: {error.strerror}"
            raise InputError(f"{folder} is not a recording: {reason}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{folder / _METADATA_FILE} is damaged ({error}); record it again") from None
        if recorded_fingerprint != fingerprint(directory):
            raise InputError(f"{folder} was recorded from a model with other parameters than {directory}")

    @property
    def num_batches(self) -> int:
        """The number of recorded batches."""
        return len(self._deviations_by_batch)

    def evaluate(self) -> Iterator[ReferenceValues]:
        """Reads each batch in turn."""
        for number, deviations in enumerate(self._deviations_by_batch):
            path = self._folder / _batch_file(number)
            try:
                tensors = load_file(path)
                inputs = {name: tensors.pop(f"inputs.{name}") for name in _INPUTS}
            except (OSError, SafetensorError, KeyError) as error:
                raise InputError(f"{path} is damaged ({error}); record it again") from None
            heads = {
                name.removeprefix(_HEADS_PREFIX): tensors.pop(name)
                for name in list(tensors)
                if name.startswith(_HEADS_PREFIX)
            }
            yield ReferenceValues(
                ParityBatch(head_targets=heads, **inputs),
                tensors,
                partial(self._deviations, deviations, frozenset(tensors)),
            )

    def _deviations(self, recorded: JsonDeviations, names: Collection[str], rounding: Rounding) -> dict[str, Deviation]:
        if rounding.name not in recorded:
            raise InputError(
                f"{self._folder} has no tolerances for the rounding of this computation ({rounding.name}), only for "
                f"{', '.join(recorded)}; record it with --dtype for every dtype to be replayed"
            )
        try:
            fields = recorded[rounding.name]
            return {
                name: Deviation(float(fields[name][0]), float(fields[name][1]), int(fields[name][2])) for name in names
            }
        except (LookupError, TypeError, ValueError) as error:
            path = self._folder / _METADATA_FILE
            raise InputError(f"{path} is damaged ({_DEVIATIONS_KEY}: {error!r}); record it again") from None


def fingerprint(directory: Path) -> str:
    """Returns the SHA-256 of the parameters of a converted model: their names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(converted.read_stored(directory)[1].items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
        digest.update(np.ascontiguousarray(tensor.read()).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _tensors_to_save(computed: ReferenceValues) -> dict[str, npt.NDArray[Any]]:
    """Returns the inputs and the values of a batch, contiguous as safetensors wants them."""
    batch = computed.batch
    tensors = {f"inputs.{name}": np.asarray(getattr(batch, name)) for name in _INPUTS}
    tensors |= {_HEADS_PREFIX + name: np.asarray(targets) for name, targets in batch.head_targets.items()}
    tensors |= computed.values
    return {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}  # which keeps scalars scalar


def _to_json(deviations: Mapping[str, Deviation]) -> dict[str, list[float]]:
    return {
        name: [deviation.largest, deviation.sum_of_squares, deviation.count] for name, deviation in deviations.items()
    }


def _batch_file(number: int) -> str:
    return f"batch-{number:03}.safetensors"
