"""convert(): converts a RoBERTa of another library to a converted directory."""

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
from roberta_flax.checkpoint import usage as usages
from roberta_flax.checkpoint.archive import extract_archive
from roberta_flax.checkpoint.tensors import NonFinite, stored_dtype
from roberta_flax.convert import (
    adapted,
    adapters,
    fairseq,
    hf_tokenizer,
    huggingface,
    remote_models,
    sentence_transformers,
    shards,
    weights,
)
from roberta_flax.convert.adapters import Adapter
from roberta_flax.convert.remote_models import ARCHIVE_SUFFIXES
from roberta_flax.convert.source import Source
from roberta_flax.errors import CheckpointError, InputError, printable, shortened
from roberta_flax.files import file_sha256, new_directory, reading
from roberta_flax.nn.config import HeadConfig
from roberta_flax.remote import called, is_url, to_path
from roberta_flax.text.fairseq_tokenizer import DICTIONARY_FILE, ENCODER_FILE, MERGES_FILE
from roberta_flax.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

# The most bytes of files that are read whole, and become objects of twenty times their size. A million pieces, the
# largest vocabulary that there is (XLM-V), take 20 MB as a sentencepiece model and 62 MB as a tokenizer.json.
_MAX_SIZES = {
    **dict.fromkeys((hf_tokenizer.TOKENIZER_FILE, hf_tokenizer.VOCAB_FILE, ENCODER_FILE), 1 << 26),
    **dict.fromkeys(
        (DICTIONARY_FILE, MERGES_FILE, *hf_tokenizer.VOCABULARY_FILES[1:], *fairseq.SENTENCEPIECE_NAMES), 1 << 25
    ),
    **dict.fromkeys((weights.CONFIG_FILE, adapters.CONFIG_FILE, *weights.INDEX_FILES), 1 << 23),
    **dict.fromkeys(
        (hf_tokenizer.TOKENIZER_CONFIG_FILE, hf_tokenizer.SPECIAL_TOKENS_FILE, hf_tokenizer.ADDED_TOKENS_FILE), 1 << 23
    ),
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
    with_tokenizer: bool = True,
    base_model: str | os.PathLike[str] | None = None,
) -> Path:
    """Converts a RoBERTa to a directory that roberta_flax.load() accepts and that needs nothing else.

    Values are kept bit for bit in the dtype of the source, or rounded to `dtype`. Kernels are transposed. Nothing in
    the source is executed, and nothing is left behind if the conversion fails. Anything unusual about the source, such
    as NaNs or infinities, is logged as a one-line warning.

    Args:
      source: a fairseq directory, a .tar.gz of one, or a checkpoint file with dict.txt beside it; or a directory that
        Transformers wrote, a weights file in one, or "hf:org/name" for a model on the Hugging Face Hub. If it is an
        adapter that PEFT wrote, it is merged into its model.
      destination: the directory to create. It must not exist.
      checkpoint_file: the name of the checkpoint if `source` is a fairseq directory or archive. It may be in a
        subfolder ("sub/best.pt").
      bpe_dir: the directory of encoder.json and vocab.bpe (and of dict.txt, if it is not beside the checkpoint). By
        default they are looked up beside the checkpoint, then in `source`. If they are in neither, GPT-2's are taken
        from the cache or downloaded.
      cache_dir: the cache; see roberta_flax.checkpoint.download.cache_dir.
      sha256: the expected SHA-256 of the source (the archive or the checkpoint), in hex.
      dtype: the dtype to store: "float32", "bfloat16", "float16" or "float64". The default is the source's dtype.
      strict: whether to refuse NaNs and infinities.
      head_name: the name to give the head of a Transformers model, which has no name there.
      with_tokenizer: whether to convert the tokenizer too. Without it, the model takes token ids only.
      base_model: the model that an adapter is for, a converted directory or any form that `source` takes for
        Transformers models; by default, the one that the adapter names.

    Returns:
      The destination.

    Raises:
      InputError: parameters cannot be stored in `dtype`, `bpe_dir` is not a readable directory, or there is a
        `base_model` but the source is no adapter.
      CheckpointError: the source is not a RoBERTa, is damaged or incomplete, or the destination exists or cannot be
        written.
      DownloadError: a file is needed but cannot be fetched.
    """
    converted.check_directory(bpe_dir)
    if bpe_dir is not None:
        _check_sizes(Path(bpe_dir))
    destination = to_path(destination)
    stored = None if dtype is None else stored_dtype(dtype)
    opened = open_source(source, checkpoint_file, cache_dir, base_model)
    with new_directory(destination) as directory, opened as source_files:
        hashes = {file.name: file_sha256(file) for file in source_files.hashed_files}
        digest = _combined_sha256(hashes)
        if sha256 is not None and digest != sha256.lower():
            raise CheckpointError(f"{source} has sha256 {digest}, expected {sha256.lower()}; download it again")
        model = source_files.read(bpe_dir, cache_dir, head_name, with_tokenizer)
        write_files(model.tokenizer_files, directory)
        if source_files.adapter is not None and converted.read_trained_on(source_files.folder) is not None:
            shutil.copyfile(source_files.folder / converted.TRAINED_ON_FILE, directory / converted.TRAINED_ON_FILE)
        usages.write(model.usage, directory)
        vocab_size = Tokenizer.from_directory(directory).vocab_size
        if model.config.vocab_size != vocab_size:
            raise CheckpointError(
                f"{source_files.weights[0]} embeds {model.config.vocab_size} tokens but its dictionary has "
                f"{vocab_size} (four special tokens, dict.txt's lines, and <mask>): use the dict.txt that the model "
                "was trained with"
            )
        conversion = {
            "source": to_path(source).name,
            "kind": model.kind,
            "checkpoint_file": source_files.checkpoint_file,
            "sha256": digest,
            "files": hashes,
            "dtype": dtype,
            "head_name": head_name,
            **({"base_model": source_files.base_model} if source_files.adapter else {}),
            "versions": converted.versions(),
            **({"repository": model.repository} if model.repository else {}),
            "tensors": model.provenance,
        }
        non_finite = converted.write(directory, model.config, model.parameters, conversion, stored)
        _report(str(source), model, non_finite, strict)
    return destination


def _report(source: str, model: Source, non_finite: Mapping[str, NonFinite], strict: bool) -> None:
    """Warns of anything unusual about a source. If `strict`, raises CheckpointError for NaNs and infinities."""
    if non_finite:
        some = [f"{model.parameters[path].source} has {counts}" for path, counts in list(non_finite.items())[:20]]
        rest = f"; and {len(non_finite) - len(some)} more" if len(non_finite) > len(some) else ""
        message = (
            f"{source} has values that are not finite in {len(non_finite)} of its tensors: {'; '.join(some)}{rest}"
        )
        if strict:
            raise CheckpointError(f"{message}. It was not converted, because strict was set")
        logger.warning("%s", printable(message))
    for note in model.notes:
        logger.warning("%s", printable(note))


def write_files(files: Mapping[str, Path | str | bytes], directory: Path) -> None:
    """Copies or writes a Source's tokenizer files into a directory."""
    for name, content in files.items():
        if isinstance(content, str | bytes):
            (directory / name).write_bytes(content.encode() if isinstance(content, str) else content)
        elif content.is_file():
            shutil.copyfile(content, directory / name)
        else:
            raise CheckpointError(f"{content} is missing: the model's tokenizer needs it")


def _combined_sha256(hashes: Mapping[str, str]) -> str:
    """The SHA-256 of one file, or for several files, of the lines that sha256sum prints for them."""
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    return hashlib.sha256("".join(f"{digest}  {name}\n" for name, digest in hashes.items()).encode()).hexdigest()


@dataclass(frozen=True)
class SourceFiles:
    """The files of a source, downloaded and unpacked.

    Attributes:
      kind: "fairseq", "huggingface" or, of an adapter's model, "converted".
      weights: the weights files.
      hashed_files: the files that the source's SHA-256 covers.
      folder: the source's directory, or the directory that contains it.
      adapter: the adapter to merge into the model; None if there is none.
      base_model: the name of the model that the adapter is for.
    """

    kind: str
    weights: Sequence[Path]
    hashed_files: Sequence[Path]
    folder: Path
    adapter: Adapter | None = None
    base_model: str = ""

    @property
    def checkpoint_file(self) -> str:
        """The path of the first weights file, or of the adapter's, relative to `folder`."""
        file = self.weights[0] if self.adapter is None else self.adapter.file
        return file.relative_to(self.folder).as_posix() if file.is_relative_to(self.folder) else str(file)

    def read(
        self,
        bpe_dir: str | os.PathLike[str] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        head_name: str | None = None,
        with_tokenizer: bool = True,
    ) -> Source:
        """Reads the source. Arguments and errors are those of `convert`."""
        head = None if self.adapter is None else self.adapter.head()
        head_name = head_name or (None if head is None else head.name)
        with reading(self.weights[0]):
            if self.kind == "converted":
                assert self.adapter is not None
                source = adapted.read(self.adapter, self.weights[0].parent, head_name, with_tokenizer)
            elif self.kind == "huggingface":
                source = huggingface.read(self.weights, bpe_dir, head_name, with_tokenizer, self.adapter)
            else:
                source = fairseq.read(self.weights, bpe_dir, cache_dir, self.folder, with_tokenizer)
        return source if head is None else _with_head(source, head)


def _with_head(source: Source, head: HeadConfig) -> Source:
    """The source with the problem and the labels of a head where it has one of this form."""

    def described(other: HeadConfig) -> HeadConfig:
        named = dataclasses.replace(head, name=other.name)
        return named if dataclasses.replace(other, problem=named.problem, labels=named.labels) == named else other

    heads = tuple(map(described, source.config.heads))
    return dataclasses.replace(source, config=dataclasses.replace(source.config, heads=heads))


@contextmanager
def open_source(
    source: str | os.PathLike[str],
    checkpoint_file: str,
    cache_dir: str | os.PathLike[str] | None = None,
    base_model: str | os.PathLike[str] | None = None,
) -> Iterator[SourceFiles]:
    """Yields the files of a source. A model on the Hub is downloaded; an archive is unpacked while the block runs.

    An adapter is yielded with the files of its model: `base_model`, or by default the one that it names.
    """
    source = remote_models.hub_name(str(source)) or source
    if is_url(source):
        copy = remote_models.local_copy(source, cache_dir, checkpoint_file)
        with called(copy, source), open_source(copy, checkpoint_file, cache_dir, base_model) as source_files:
            yield source_files
        return
    if str(source).startswith(huggingface.HUB_PREFIX):
        yield _with_adapter(huggingface.fetch(str(source), cache_dir), checkpoint_file, cache_dir, base_model)
        return
    path = Path(source)
    if not str(source):
        raise CheckpointError("the name of the source is empty; give a file, a directory, or hf:org/name")
    if os.path.exists(path) and not path.is_file() and not path.is_dir():
        raise CheckpointError(f"{shortened(str(path))} is neither a file nor a directory")
    if not os.path.exists(path) and not os.path.exists(shards.files_of(path)[0]):
        raise CheckpointError(
            f"{shortened(str(path))} does not exist; expected a fairseq or Transformers directory, a .tar.gz, a "
            f"checkpoint file, or {huggingface.HUB_PREFIX}org/name"
        )
    if path.is_file() and path.name.endswith(ARCHIVE_SUFFIXES):
        with tempfile.TemporaryDirectory(prefix="roberta-flax-") as temporary:
            folder = Path(temporary) / "archive"
            extract_archive(path, folder)
            contents = list(folder.iterdir())
            inside = contents[0] if len(contents) == 1 and contents[0].is_dir() else folder
            source_files = _with_adapter(inside, checkpoint_file, cache_dir, base_model)
            of_base_model = [file for file in source_files.hashed_files if not file.is_relative_to(folder)]
            yield dataclasses.replace(source_files, hashed_files=[*of_base_model, path])
    else:
        yield _with_adapter(path, checkpoint_file, cache_dir, base_model)


def _with_adapter(
    path: Path,
    checkpoint_file: str,
    cache_dir: str | os.PathLike[str] | None,
    base_model: str | os.PathLike[str] | None,
) -> SourceFiles:
    """The files of a source; if it is an adapter, those of its model, with the adapter."""
    with reading(path):
        folder = sentence_transformers.transformer_folder(path)
        _check_sizes(folder if folder.is_dir() else folder.parent)
        adapter = Adapter.open(folder)
    if adapter is None:
        if base_model is not None:
            raise InputError(f"base_model (--base-model) is for an adapter, and {path} has no {adapters.CONFIG_FILE}")
        return _source_files(path, checkpoint_file)
    name = adapter.base_model() if base_model is None else str(base_model)
    what = f"{shortened(name)}, the model that {path} is for,"
    base_path = huggingface.fetch(name, cache_dir) if name.startswith(huggingface.HUB_PREFIX) else Path(name)
    if not os.path.exists(base_path):
        raise CheckpointError(f"{what} does not exist")
    if Adapter.open(base_path) is not None and not os.path.samefile(base_path, adapter.folder):
        raise CheckpointError(f"{what} is an adapter itself: save it merged first, with merge_and_unload()")
    if converted.is_converted(base_path):
        weights_file = base_path / converted.PARAMS_FILE
        base = SourceFiles("converted", [weights_file], [weights_file], base_path)
    else:
        base = _source_files(base_path, checkpoint_file)
    if base.kind == "fairseq":
        raise CheckpointError(f"{what} is neither a model of Transformers nor a converted one: convert it first")
    return dataclasses.replace(
        base,
        hashed_files=[*base.hashed_files, adapter.file],
        folder=adapter.folder,
        adapter=adapter,
        base_model=name,
    )


def _source_files(path: Path, checkpoint_file: str) -> SourceFiles:
    with reading(path):
        path = sentence_transformers.transformer_folder(path)
        folder = path if path.is_dir() else path.parent
        _check_sizes(folder)
        if path.is_dir() and converted.is_converted(path) and not converted.missing_files(path):
            raise CheckpointError(f"{path} is already converted: load it as it is")
        files = shards.files_of(path / checkpoint_file if path.is_dir() else path)
        _check_sizes(files[0].parent)
        exists = os.path.isfile(files[0])
        if found := _weight_files(path, files[0]):
            return SourceFiles("huggingface", found, found, folder)
        if not exists:
            raise weights.no_weights(folder, shortened(checkpoint_file))
        if files[0].suffix in (".safetensors", ".msgpack") or weights.is_state_dict(files[0]):
            raise CheckpointError(
                f"{files[0]} is a state dict of Transformers without a {weights.CONFIG_FILE} beside it: copy the "
                f"{weights.CONFIG_FILE} and the tokenizer's files of the model there"
            )
        return SourceFiles("fairseq", files, files, folder)


def _check_sizes(folder: Path) -> None:
    """Raises CheckpointError for a configuration or tokenizer file that is larger than any real one."""
    for name, limit in _MAX_SIZES.items():
        file = folder / name
        if file.is_file() and (size := file.stat().st_size) > limit:
            raise CheckpointError(f"{file} has {size} bytes, more than the {limit} allowed for such a file")


def _weight_files(path: Path, checkpoint_file: Path) -> list[Path]:
    """The weights files of a Transformers model. An unreadable config.json beside a fairseq checkpoint is ignored."""
    try:
        return huggingface.weight_files(path, checkpoint_file)
    except huggingface.ConfigError:
        if not (os.path.isfile(checkpoint_file) and weights.is_fairseq(checkpoint_file)):
            raise
        return []
