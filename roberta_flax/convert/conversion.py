"""convert(): a RoBERTa in another library's form to a converted directory."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from roberta_flax.checkpoint import converted
from roberta_flax.checkpoint.archive import extract_archive
from roberta_flax.checkpoint.tensors import NonFinite, stored_dtype
from roberta_flax.convert import fairseq, hf_tokenizer, huggingface, shards
from roberta_flax.convert.source import Source
from roberta_flax.errors import CheckpointError, shortened
from roberta_flax.files import new_directory, reading
from roberta_flax.text.tokenizer import DICTIONARY_FILE, ENCODER_FILE, MERGES_FILE, Tokenizer

logger = logging.getLogger(__name__)

ARCHIVE_SUFFIXES = (".tar.gz", ".tgz")

# The most bytes of files that are read whole, and become objects of twenty times their size. A million pieces, the
# largest vocabulary that there is (XLM-V), take 20 MB as a sentencepiece model and 62 MB as a tokenizer.json.
_MAX_SIZES = {
    **dict.fromkeys((hf_tokenizer.TOKENIZER_FILE, hf_tokenizer.VOCAB_FILE, ENCODER_FILE), 1 << 26),
    **dict.fromkeys((DICTIONARY_FILE, MERGES_FILE, hf_tokenizer.HF_MERGES_FILE, *fairseq.SENTENCEPIECE_NAMES), 1 << 25),
    **dict.fromkeys((huggingface.CONFIG_FILE, *huggingface.INDEX_FILES), 1 << 23),
    **dict.fromkeys((hf_tokenizer.TOKENIZER_CONFIG_FILE, hf_tokenizer.ADDED_TOKENS_FILE), 1 << 23),
}


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    checkpoint_file: str = "model.pt",
    bpe_dir: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    sha256: str | None = None,
    dtype: str | None = None,
    strict: bool = False,
    head_name: str | None = None,
) -> Path:
    """Converts a RoBERTa to a directory that roberta_flax.load() takes and that needs nothing else.

    Values are kept bit for bit, in the dtype of the source or rounded to `dtype`; kernels are transposed. Nothing in
    the source is executed, and nothing is left behind where conversion fails. What is odd about a source, values that
    are not finite among it, is logged as a warning, a line each.

    Args:
      source: a fairseq directory, a .tar.gz of one, or a checkpoint file with dict.txt beside it; or a directory that
        transformers wrote, a file of weights in one, or "hf:org/name" for one on Hugging Face's hub.
      destination: the directory to make; it must not exist.
      checkpoint_file: the checkpoint's name, where source is a fairseq directory or archive; it may be in a folder
        there ("sub/best.pt").
      bpe_dir: where encoder.json and vocab.bpe are (and dict.txt, where it is not beside the checkpoint). Otherwise
        they are looked for beside the checkpoint, then in source, then in the cache, then downloaded: GPT-2's.
      cache_dir: the cache; see roberta_flax.checkpoint.download.cache_dir.
      sha256: what the source file (the archive, or the checkpoint) must hash to, in hex.
      dtype: of the stored parameters: "float32", "bfloat16", "float16" or "float64"; the source's if not given.
      strict: refuse values that are not finite.
      head_name: what the head of a transformers model is called here; its own libraries give it no name.

    Returns:
      The destination.

    Raises:
      InputError: a dtype that parameters are not stored in, or a bpe_dir that is no directory.
      CheckpointError: the source is not a RoBERTa, is damaged or incomplete; the destination exists or cannot be
        written.
      DownloadError: a file is needed and cannot be fetched.
    """
    converted.check_directory(bpe_dir)
    if bpe_dir is not None:
        _check_sizes(Path(bpe_dir))
    destination = Path(destination)
    stored = None if dtype is None else stored_dtype(dtype)
    with new_directory(destination) as directory, open_source(source, checkpoint_file, cache_dir) as source_files:
        hashes = {file.name: file_sha256(file) for file in source_files.hashed}
        digest = _combined(hashes)
        if sha256 is not None and digest != sha256.lower():
            raise CheckpointError(f"{source} has sha256 {digest}, expected {sha256.lower()}; download it again")
        model = source_files.read(bpe_dir, cache_dir, head_name)
        write_files(model.tokenizer_files, directory)
        vocab_size = Tokenizer.from_directory(directory).vocab_size
        if model.config.vocab_size != vocab_size:
            raise CheckpointError(
                f"{source_files.weights[0]} embeds {model.config.vocab_size} tokens but its dictionary has "
                f"{vocab_size} (four specials, dict.txt's lines, and <mask>): give the dict.txt it was trained with"
            )
        conversion = {
            "source": Path(source).name,
            "kind": model.kind,
            "checkpoint_file": source_files.checkpoint_file,
            "sha256": digest,
            "files": hashes,
            "dtype": dtype,
            "head_name": head_name,
            "versions": converted.versions(),
            "tensors": model.provenance,
        }
        found = converted.write(directory, model.config, model.parameters, conversion, stored)
        _report(str(source), model, found, strict)
    return destination


def _report(source: str, model: Source, found: Mapping[str, NonFinite], strict: bool) -> None:
    """Warns of what is odd about a source; raises CheckpointError for values that are not finite, where strict."""
    if found:
        some = [f"{model.parameters[path].source} has {counts}" for path, counts in list(found.items())[:20]]
        more = f"; and {len(found) - len(some)} more" if len(found) > len(some) else ""
        message = f"{source} has values that are not finite in {len(found)} of its tensors: {'; '.join(some)}{more}"
        if strict:
            raise CheckpointError(f"{message}. It was not converted, as strict asks")
        logger.warning("%s", " ".join(message.split()))
    for note in model.notes:
        logger.warning("%s", " ".join(note.split()))


def write_files(files: Mapping[str, Path | str | bytes], directory: Path) -> None:
    """Copies a Source's tokenizer files into a directory, or writes them there."""
    for name, content in files.items():
        if isinstance(content, str | bytes):
            (directory / name).write_bytes(content.encode() if isinstance(content, str) else content)
        elif content.is_file():
            shutil.copyfile(content, directory / name)
        else:
            raise CheckpointError(f"{content} is missing: the model's tokenizer needs it")


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in hex; CheckpointError where it cannot be read."""
    with reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _combined(hashes: Mapping[str, str]) -> str:
    """A file's sha256; of several, that of the lines `sha256  name` that sha256sum prints for them."""
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    return hashlib.sha256("".join(f"{digest}  {name}\n" for name, digest in hashes.items()).encode()).hexdigest()


@dataclass(frozen=True)
class SourceFiles:
    """A source's files, on this machine and unpacked.

    Attributes:
      kind: "fairseq" or "huggingface".
      weights: the files of weights.
      hashed: the files that its sha256 is of.
      folder: the directory that was given, or that the file was in.
    """

    kind: str
    weights: Sequence[Path]
    hashed: Sequence[Path]
    folder: Path

    @property
    def checkpoint_file(self) -> str:
        """The first file's name, from `folder` on."""
        file = self.weights[0]
        return file.relative_to(self.folder).as_posix() if file.is_relative_to(self.folder) else str(file)

    def read(
        self,
        bpe_dir: str | os.PathLike[str] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        head_name: str | None = None,
    ) -> Source:
        """Reads it. Arguments and errors as in `convert`."""
        with reading(self.weights[0]):
            if self.kind == "huggingface":
                return huggingface.read(self.weights, bpe_dir, head_name)
            return fairseq.read(self.weights, bpe_dir, cache_dir, self.folder)


@contextmanager
def open_source(
    source: str | os.PathLike[str], checkpoint_file: str, cache_dir: str | os.PathLike[str] | None = None
) -> Iterator[SourceFiles]:
    """A source's files: fetched where it is a name on the hub, unpacked while the block runs where it is an archive."""
    if str(source).startswith(huggingface.HUB_PREFIX):
        yield _source_files(huggingface.fetch(str(source), cache_dir), checkpoint_file)
        return
    path = Path(source)
    if not os.path.exists(path) and not os.path.exists(shards.files_of(path)[0]):
        raise CheckpointError(
            f"{shortened(str(path))} does not exist; expected a fairseq or transformers directory, a .tar.gz, a "
            f"checkpoint file, or {huggingface.HUB_PREFIX}org/name"
        )
    if path.is_file() and path.name.endswith(ARCHIVE_SUFFIXES):
        with tempfile.TemporaryDirectory(prefix="roberta-flax-") as temporary:
            folder = Path(temporary) / "archive"
            extract_archive(path, folder)
            inside = list(folder.iterdir())
            source_files = _source_files(
                inside[0] if len(inside) == 1 and inside[0].is_dir() else folder, checkpoint_file
            )
            yield dataclasses.replace(source_files, hashed=[path])
    else:
        yield _source_files(path, checkpoint_file)


def _source_files(path: Path, checkpoint_file: str) -> SourceFiles:
    with reading(path):
        folder = path if path.is_dir() else path.parent
        _check_sizes(folder)
        if path.is_dir() and converted.is_converted(path) and not converted.missing_files(path):
            raise CheckpointError(f"{path} is converted already: load it as it is")
        files = shards.files_of(path / checkpoint_file if path.is_dir() else path)
        _check_sizes(files[0].parent)
        is_there = os.path.isfile(files[0])
        if weights := _weight_files(path, is_there and not huggingface.is_weight_file(files[0])):
            return SourceFiles("huggingface", weights, weights, folder)
        if not is_there:
            there = ", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "nothing"
            raise CheckpointError(
                f"no {shortened(checkpoint_file)} in {path} (there is: {there}); name it with checkpoint_file or "
                "--checkpoint-file"
            )
        return SourceFiles("fairseq", files, files, folder)


def _check_sizes(folder: Path) -> None:
    """Raises CheckpointError for a file of a configuration or tokenizer that is larger than any is."""
    for name, limit in _MAX_SIZES.items():
        file = folder / name
        if file.is_file() and (size := file.stat().st_size) > limit:
            raise CheckpointError(f"{file} has {size} bytes, over the {limit} that such a file may have")


def _weight_files(path: Path, has_fairseqs: bool) -> list[Path]:
    """transformers' files of weights. A config.json that is no configuration is not its own, beside a fairseq model."""
    try:
        return huggingface.weight_files(path)
    except huggingface.ConfigError:
        if not has_fairseqs:
            raise
        return []
