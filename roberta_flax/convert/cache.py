"""The cache of converted models: a model is downloaded and converted once, by name or path."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from roberta_flax.checkpoint import checksums, converted
from roberta_flax.errors import CheckpointError, DownloadError, InputError, did_you_mean
from roberta_flax.files import PathLike, reading, remove_partial
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.remote import called, is_url, to_path

# The suffixes of files that a conversion may read in addition to the checkpoint itself.
_READ_SUFFIXES = (
    ".txt",
    ".json",
    ".bpe",
    ".codes",
    ".model",
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".msgpack",
)
# Names of repositories that Transformers and sentence-transformers also know without an organization
_HUB_NAMES = {
    **{
        name: f"FacebookAI/{name}"
        for name in ("roberta-base", "roberta-large", "roberta-large-mnli", "xlm-roberta-base", "xlm-roberta-large")
    },
    "distilroberta-base": "distilbert/distilroberta-base",
    "roberta-base-openai-detector": "openai-community/roberta-base-openai-detector",
    "roberta-large-openai-detector": "openai-community/roberta-large-openai-detector",
}
# Copies of released models on the Hub
_RELEASED_ON_HUB = {
    "hf:FacebookAI/roberta-base": "roberta.base",
    "hf:FacebookAI/roberta-large": "roberta.large",
    "hf:FacebookAI/roberta-large-mnli": "roberta.large.mnli",
}
# Their layers and hidden size: roberta_base and roberta_large in fairseq/models/roberta/model.py
_RELEASED_SIZES = {"roberta.base": (12, 768), "roberta.large": (24, 1024), "roberta.large.mnli": (24, 1024)}
_VERSION = 3  # of what a conversion makes of a source; directories of earlier versions stay unused in the cache


def resolve(
    name_or_path: PathLike,
    *,
    cache_dir: PathLike | None = None,
    sha256: str | None = None,
    checkpoint_file: str = "model.pt",
    bpe_dir: PathLike | None = None,
) -> Path:
    """Returns the converted directory of a model, and creates it in the cache if necessary.

    Arguments and errors are those of `roberta_flax.load`.
    """
    from roberta_flax.checkpoint import download
    from roberta_flax.convert import remote_models

    converted.check_directory(bpe_dir)
    name = canonical(str(name_or_path))
    if is_url(name):
        copy = remote_models.local_copy(name, cache_dir, checkpoint_file)
        with called(copy, to_path(name)):
            return resolve(copy, cache_dir=cache_dir, sha256=sha256, checkpoint_file=checkpoint_file, bpe_dir=bpe_dir)
    if name in download.MODELS:
        cache = download.cache_dir(cache_dir)
        directory = cache / "converted" / download.archive_name(name)

        def get_source() -> PathLike:
            return download.fetch_model_archive(name, cache, sha256=sha256)

    elif name.startswith("hf:"):
        cache = download.cache_dir(cache_dir)
        fingerprint = hashlib.sha256(repr((_VERSION, name)).encode()).hexdigest()[:16]
        directory = cache / "converted" / _cached_name(re.sub(r"[^\w.@-]+", "--", name), fingerprint)

        def get_source() -> PathLike:
            return name

    else:
        path = Path(name_or_path)
        if not name or not os.path.exists(path):  # False for names that are too long, too
            raise CheckpointError(
                f"{name[:200]!r} is neither a file or directory, nor hf:org/name, nor a released model "
                f"({', '.join(download.MODELS)}){did_you_mean(name, (*download.MODELS, *_HUB_NAMES))}"
            )
        if path.is_dir() and converted.is_converted(path):
            return _check_sha256(path, sha256)
        cache = download.cache_dir(cache_dir)
        with reading(path):
            fingerprint = _fingerprint(path, checkpoint_file, bpe_dir)
        directory = cache / "converted" / _cached_name(path.resolve().name, fingerprint)

        def get_source() -> PathLike:
            return path

    if not os.path.isdir(directory):
        from roberta_flax.convert import convert

        with download.locked(directory):
            if not directory.is_dir():
                remove_partial(directory)
                with _as_given(str(name_or_path), name):
                    base_model = _converted_base(name_or_path, cache_dir)
                    convert(
                        get_source(),
                        directory,
                        checkpoint_file=checkpoint_file,
                        bpe_dir=bpe_dir,
                        cache_dir=cache_dir,
                        sha256=sha256,
                        base_model=base_model,
                    )
    return _check_sha256(directory, sha256)


def _converted_base(source: PathLike, cache_dir: PathLike | None) -> Path | None:
    """The converted directory of an adapter's model that is fairseq's; None of any other source."""
    from roberta_flax.checkpoint import download
    from roberta_flax.convert import huggingface
    from roberta_flax.convert.adapters import Adapter

    adapter = Adapter.open(Path(source)) if os.path.exists(source) else None
    if adapter is None or (base := adapter.base_model()).startswith("hf:"):
        return None
    if base in download.MODELS:
        return resolve(base, cache_dir=cache_dir)
    with reading(base):
        is_theirs = Adapter.open(Path(base)) is not None or huggingface.weight_files(Path(base))
    return None if is_theirs else resolve(base, cache_dir=cache_dir)  # convert refuses an adapter


def canonical(name: str) -> str:
    """A name that can only be one of the Hub's, as hf:org/name: "org/name", or "roberta-base"; others as they are."""
    from roberta_flax.convert import remote_models

    if (on_hub := remote_models.hub_name(name)) is not None:
        return on_hub
    if name in _HUB_NAMES and not os.path.exists(name):
        return f"hf:{_HUB_NAMES[name]}"
    is_on_hub = re.fullmatch(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(@[\w./-]{1,100})?", name)
    if is_on_hub and not os.path.exists(name) and not os.path.isdir(name.partition("/")[0]):
        return f"hf:{name}"
    return name


def released_name(name_or_path: str | None, config: RobertaConfig) -> str | None:
    """Returns which of the models that fairseq publishes scores for a model is; None if it is none of them.

    A released name or its copy on the Hub is the model itself. A path is taken for it if the archive or directory that
    was converted is called so and the network has its size.

    Args:
      name_or_path: what the model was loaded from, if it was.
      config: its configuration.
    """
    if name_or_path is None:
        return None
    name = canonical(name_or_path)
    if (released := _RELEASED_ON_HUB.get(name, name)) in _RELEASED_SIZES:
        return released
    path = to_path(name)
    source = path.name
    if not is_url(name) and converted.is_converted(path):
        source = str(checksums.read_conversion(path).get("source") or "")
    source = source.removesuffix(".tar.gz")
    return source if _RELEASED_SIZES.get(source) == (config.num_layers, config.hidden_size) else None


@contextmanager
def _as_given(given: str, name: str) -> Iterator[None]:
    """Says of an error that what was given is no file, where it was taken for a name on the Hub."""
    try:
        yield
    except (DownloadError, InputError) as error:
        if given == name or not name.startswith("hf:"):
            raise
        raise type(error)(f"{given!r} is no file or directory, and as {name}: {error}") from None


def _check_sha256(directory: Path, sha256: str | None) -> Path:
    if sha256 is not None:
        try:
            recorded = checksums.read_conversion(directory).get("sha256") or "nothing recorded"
        except CheckpointError:
            recorded = "nothing recorded"
        if recorded != sha256.lower():
            raise CheckpointError(
                f"{directory} was converted from a file with sha256 {recorded}, expected {sha256.lower()}"
            )
    return directory


def _cached_name(name: str, fingerprint: str) -> str:
    """The name of a directory in the cache: short enough for file systems, and unique by its fingerprint."""
    return f"{name.encode(errors='ignore')[:150].decode(errors='ignore')}-{fingerprint}"


def _fingerprint(path: Path, checkpoint_file: str, bpe_dir: PathLike | None) -> str:
    """A hash of the paths, sizes and modification times of all files that a conversion reads."""
    from roberta_flax.convert import shards
    from roberta_flax.convert.adapters import Adapter
    from roberta_flax.convert.remote_models import ARCHIVE_SUFFIXES

    folders = [] if bpe_dir is None else [Path(bpe_dir)]
    if path.is_file() and path.name.endswith(ARCHIVE_SUFFIXES):
        files = [path]
    else:
        files = shards.files_of(path / checkpoint_file if path.is_dir() else path)
        folder_of_path = path if path.is_dir() else path.parent
        modules = sorted(folder_of_path.glob("[0-9]*_*/"))  # of sentence-transformers
        adapter = Adapter.open(path)
        base = [] if adapter is None or not os.path.isdir(name := adapter.base_model()) else [Path(name)]
        folders = [
            folder_of_path, *([files[0].parent] if files[0].parent != folder_of_path else []), *modules, *base, *folders
        ]  # fmt: skip
    files += [file for folder in folders for file in sorted(folder.iterdir()) if file.suffix in _READ_SUFFIXES]
    stats = [
        (str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) if file.is_file() else str(file)
        for file in files
    ]
    return hashlib.sha256(repr((_VERSION, path.name, checkpoint_file, stats)).encode()).hexdigest()[:16]
