"""convert(): a fairseq model, in any of the forms it comes in, to a converted directory."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from convert import fairseq, torch_file
from convert.fairseq import FairseqCheckpoint
from roberta_flax import checkpoint, download
from roberta_flax.errors import CheckpointError
from roberta_flax.tokenizer import DICTIONARY_FILE, ENCODER_FILE, MERGES_FILE, Tokenizer

ARCHIVE_SUFFIXES = (".tar.gz", ".tgz")
_SENTENCEPIECE_FILE = "sentencepiece.bpe.model"


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    checkpoint_file: str = "model.pt",
    bpe_dir: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    sha256: str | None = None,
) -> Path:
    """Converts a fairseq RoBERTa to a directory that roberta_flax.load() takes and that needs nothing else.

    Values are kept bit for bit, in the dtype of the source; kernels are transposed. Nothing in the source is
    executed, and nothing is left behind where conversion fails.

    Args:
      source: a fairseq directory, a .tar.gz of one, or a checkpoint file with dict.txt beside it.
      destination: the directory to make; it must not exist.
      checkpoint_file: the checkpoint's name, where source is a directory or an archive.
      bpe_dir: where encoder.json and vocab.bpe are (and dict.txt, where it is not beside the checkpoint).
        Otherwise they are looked for beside the checkpoint, then in the cache, then downloaded: GPT-2's.
      cache_dir: the cache; see roberta_flax.download.cache_dir.
      sha256: what the source file (the archive, or the checkpoint) must hash to, in hex.

    Returns:
      The destination.

    Raises:
      CheckpointError: the source is not a fairseq RoBERTa, is damaged or incomplete; the destination exists or
        cannot be written.
      DownloadError: GPT-2's BPE files are needed and cannot be fetched.
    """
    source, destination = Path(source), Path(destination)
    with checkpoint.new_directory(destination) as directory, _opened(source, checkpoint_file) as model:
        torch_file.layout_of(model)  # a wrong file is said to be one before anything is looked for beside it
        digest = file_sha256(source if source.is_file() else model)
        if sha256 is not None and digest != sha256.lower():
            raise CheckpointError(f"{source} has sha256 {digest}, expected {sha256.lower()}; download it again")
        files = find_tokenizer_files(model.parent, bpe_dir, cache_dir)
        tokenizer = Tokenizer.from_files(files[DICTIONARY_FILE], files[ENCODER_FILE], files[MERGES_FILE])
        converted = fairseq.read(model, tokenizer.vocab_size)
        checkpoint.write(
            directory,
            converted.config,
            _values(converted),
            files,
            _conversion(source, model, digest, converted),
        )
    return destination


def find_tokenizer_files(
    beside: Path, bpe_dir: str | os.PathLike[str] | None, cache_dir: str | os.PathLike[str] | None
) -> dict[str, Path]:
    """Where the tokenizer's three files are, by name. Arguments and errors as in `convert`."""
    folders = [Path(bpe_dir), beside] if bpe_dir is not None else [beside]
    dictionary = next((folder / DICTIONARY_FILE for folder in folders if (folder / DICTIONARY_FILE).is_file()), None)
    if dictionary is None:
        raise CheckpointError(
            f"no {DICTIONARY_FILE} in {' or '.join(map(str, folders))}: put the dictionary that the model was trained "
            "with there (it is in every released archive, and in fairseq's data-bin directory)"
        )
    if (beside / _SENTENCEPIECE_FILE).is_file():
        raise CheckpointError(f"{beside} has {_SENTENCEPIECE_FILE}: sentencepiece models are not supported yet")
    bpe = next((folder for folder in folders if (folder / ENCODER_FILE).is_file()), None)
    if bpe is None and bpe_dir is not None:
        raise CheckpointError(
            f"no {ENCODER_FILE} in {bpe_dir}: give the directory with {ENCODER_FILE} and {MERGES_FILE}"
        )
    if bpe is None:
        bpe = download.fetch_gpt2_bpe(download.cache_dir(cache_dir))
    return {DICTIONARY_FILE: dictionary, ENCODER_FILE: bpe / ENCODER_FILE, MERGES_FILE: bpe / MERGES_FILE}


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _opened(source: Path, checkpoint_file: str) -> Iterator[Path]:
    """The checkpoint file of a source, unpacked for as long as the block runs where it is an archive."""
    if not source.exists():
        raise CheckpointError(f"{source} does not exist; expected a fairseq directory, .tar.gz or checkpoint file")
    if source.is_dir():
        yield _checkpoint_in(source, checkpoint_file)
    elif source.name.endswith(ARCHIVE_SUFFIXES):
        with tempfile.TemporaryDirectory(prefix="roberta-flax-") as temporary:
            folder = Path(temporary) / "archive"
            download.extract_archive(source, folder)
            inside = list(folder.iterdir())
            yield _checkpoint_in(inside[0] if len(inside) == 1 and inside[0].is_dir() else folder, checkpoint_file)
    else:
        yield source


def _checkpoint_in(folder: Path, checkpoint_file: str) -> Path:
    model = folder / checkpoint_file
    if not model.is_file():
        there = ", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "nothing"
        raise CheckpointError(
            f"no {checkpoint_file} in {folder} (there is: {there}); name it with checkpoint_file or --checkpoint-file"
        )
    return model


def _values(converted: FairseqCheckpoint) -> dict[str, npt.NDArray[Any]]:
    return {name: np.ascontiguousarray(parameter.read()) for name, parameter in converted.parameters.items()}


def _conversion(source: Path, model: Path, digest: str, converted: FairseqCheckpoint) -> dict[str, Any]:
    return {
        "source": source.name,
        "checkpoint_file": model.name,
        "sha256": digest,
        "versions": {name: importlib.metadata.version(name) for name in ("roberta-flax", "jax", "flax", "numpy")},
        "tensors": converted.went,
    }
