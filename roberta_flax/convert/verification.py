"""verify(): compares a converted directory with its checksums, or with its source, tensor by tensor."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from roberta_flax.checkpoint import checksums, converted
from roberta_flax.checkpoint import usage as usages
from roberta_flax.checkpoint.checksums import FileComparison
from roberta_flax.checkpoint.tensors import LazyTensor, StoredTensor
from roberta_flax.convert import fairseq_files, remote_models
from roberta_flax.convert.adapters import Adapter
from roberta_flax.convert.conversion import open_source, write_files
from roberta_flax.convert.source import Parameter
from roberta_flax.errors import CheckpointError, InputError
from roberta_flax.files import reading
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from roberta_flax.remote import is_url, to_path
from roberta_flax.text.huggingface_tokenizer import HuggingFaceTokenizer
from roberta_flax.text.tokenizer import NoTokenizer, Tokenizer

_LM_HEAD_SETTINGS = ("lm_head_activation", "tie_word_embeddings")  # settings without effect if the model has no LM head
_TOKEN_TYPES, _POSITIONS = "embeddings.token_type.embedding", "embeddings.position.embedding"


@dataclass(frozen=True)
class Comparison:
    """A parameter compared with the source's.

    Attributes:
      path: its path in the tree.
      source: its name in the source.
      shape: its shape in the tree.
      dtype, source_dtype: its dtype in the directory, and in the source.
      identical: whether every bit is what conversion makes of the source, including NaNs and signs of zero.
      largest_difference: the largest absolute difference; 0 if the source was not rounded to another dtype.
    """

    path: str
    source: str
    shape: tuple[int, ...]
    dtype: str
    source_dtype: str
    identical: bool
    largest_difference: float


@dataclass(frozen=True)
class Verification:
    """The result of verify().

    Attributes:
      comparisons: one for every parameter; empty if the directory was compared with its checksums.
      problems: one line for each difference; empty if the directory is what a conversion of the source gives, or what
        was written.
      files: one for every file; empty if the directory was compared with a source.
    """

    comparisons: list[Comparison]
    problems: list[str]
    files: list[FileComparison]


def verify(
    directory: str | os.PathLike[str],
    against: str | os.PathLike[str] | None = None,
    *,
    checkpoint_file: str | None = None,
    bpe_dir: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    head_name: str | None = None,
    base_model: str | os.PathLike[str] | None = None,
) -> Verification:
    """Compares a converted model with its checksums, byte by byte; or with its source, read again.

    With a source, the settings, every parameter and the tokenizer are compared.

    Args:
      directory: the converted model.
      against: its source, in any form that convert takes, or a directory that export wrote; by default, the checksums
        in conversion.json.
      checkpoint_file: as in convert. By default, the name in conversion.json if the model came from fairseq.
      bpe_dir, cache_dir: as in convert.
      head_name: as in convert. By default, the name of the directory's only head, or else the one in conversion.json.
      base_model: as in convert. By default, the one in conversion.json if the source is an adapter.

    Returns:
      All comparisons, and all differences. A difference is not an error.

    Raises:
      InputError: bpe_dir is not a readable directory, or an option is given that is for a source.
      CheckpointError: the directory or the source cannot be read, or there are no checksums: the directory was
        converted by an older version.
    """
    converted.check_directory(bpe_dir)
    folder = remote_models.local_copy(directory, cache_dir)
    if against is None:
        if checkpoint_file or bpe_dir or head_name or base_model:
            raise InputError(
                "checkpoint_file, bpe_dir, head_name and base_model are for a source; name it with against (--against)"
            )
        return _verify_files(folder)
    config, stored = converted.read_stored(folder)
    conversion = checksums.read_conversion(folder)
    checkpoint_file = checkpoint_file or _recorded_checkpoint_file(conversion)
    base_model = base_model or _recorded_base_model(conversion, against)
    with open_source(against, checkpoint_file, cache_dir, base_model) as source_files:
        tokenizer = Tokenizer.from_directory(folder)
        source = source_files.read(
            bpe_dir,
            cache_dir,
            head_name or _only_head(config) or conversion.get("head_name"),
            not isinstance(tokenizer.backend, NoTokenizer),
        )
        comparisons = [
            _compare(path, stored[path], source.parameters[path])
            for path in sorted(stored.keys() & source.parameters.keys())
        ]
        is_folded = _is_folded(stored, source.parameters)
        problems = [
            *_setting_differences(config, source.config, is_folded),
            *_tensor_differences(stored, source.parameters, comparisons, is_folded),
        ]
        if not _same_tokenizer(tokenizer, source.tokenizer_files):
            problems.append("the tokenizer differs from the source's")
        if conversion.get("kind") == source.kind == "huggingface" and usages.read(folder, config) != source.usage:
            problems.append("how the model is used (pooling, prompts, activation, ...) differs from the source's")
    return Verification(comparisons, problems, [])


def _verify_files(folder: Path) -> Verification:
    """Compares every byte with the checksums; where all are the same, also checks that the parameters fit."""
    files = converted.compare_files(folder)
    if files is None:
        raise CheckpointError(
            f"{folder} has no checksums, because an older version converted it: compare it with its source (against, "
            "--against), or convert it again"
        )
    problems = [f"{file.name}: {file.problem}" for file in files if file.problem is not None]
    if not problems:
        converted.read_stored(folder)
    return Verification([], problems, files)


def _recorded_checkpoint_file(conversion: Mapping[str, Any]) -> str:
    name = conversion.get("checkpoint_file")
    return name if isinstance(name, str) and name and conversion.get("kind") == "fairseq" else "model.pt"


def _recorded_base_model(conversion: Mapping[str, Any], against: str | os.PathLike[str]) -> str | None:
    """The model that an adapter was merged into, if `against` is the adapter."""
    name, path = conversion.get("base_model"), to_path(against)
    is_here = not is_url(path) and path.exists()
    is_adapter = Adapter.open(path) is not None if is_here else conversion.get("source") == path.name
    return name if isinstance(name, str) and name and is_adapter else None


def _only_head(config: RobertaConfig) -> str | None:
    """The name of the model's only head, not counting poolers; None if it has none or several."""
    names = [head.name for head in config.heads if head.kind != "pooler"]
    return names[0] if len(names) == 1 else None


def _setting_differences(mine: RobertaConfig, theirs: RobertaConfig, is_folded: bool) -> Iterator[str]:
    """Yields one line for each setting that differs and has an effect, except for token types that are folded."""
    heads = {head.name: head for head in mine.heads}, {head.name: head for head in theirs.heads}
    for name in sorted(heads[0].keys() | heads[1].keys()):
        if name not in heads[1]:
            yield f"config.json has a head {name!r}, which is not in the source"
        elif name not in heads[0]:
            yield f"the source has a head {name!r}, which is not in config.json"
        else:
            for key, ours, others in _differing_fields(heads[0][name], heads[1][name]):
                yield f"config.json has {key} {ours!r} of head {name!r}, the source {others!r}"
    ignored = {"heads", *(() if mine.lm_head or theirs.lm_head else _LM_HEAD_SETTINGS)}
    for key, ours, others in _differing_fields(mine, theirs):
        if key not in ignored and not (is_folded and key == "type_vocab_size"):
            yield f"config.json has {key} {ours!r}, the source {others!r}"


def _differing_fields(
    mine: RobertaConfig | HeadConfig, theirs: RobertaConfig | HeadConfig
) -> Iterator[tuple[str, Any, Any]]:
    for field in dataclasses.fields(mine):
        ours, others = getattr(mine, field.name), getattr(theirs, field.name)
        if ours != others:
            yield field.name, ours, others


def _tensor_differences(
    stored: Mapping[str, LazyTensor],
    source: Mapping[str, Parameter],
    comparisons: Sequence[Comparison],
    is_folded: bool,
) -> Iterator[str]:
    """Yields one line for each parameter that differs or that only one side has, and one if token types are folded."""
    expected = {_TOKEN_TYPES, _POSITIONS} if is_folded else set()
    if is_folded:
        yield (
            f"{_TOKEN_TYPES} is not in the source: its row 0 is added to the source's {_POSITIONS}, and rounded, as "
            "export to fairseq does"
        )
    for path in sorted(stored.keys() - source.keys() - expected):
        yield f"{path} is not in the source"
    for path in sorted(source.keys() - stored.keys()):
        yield f"the source has {path}, which is not in {converted.PARAMS_FILE}"
    for each in comparisons:
        if not each.identical and each.path not in expected:
            yield f"{each.path} differs from {each.source}, by {each.largest_difference:.3g}"


def _is_folded(stored: Mapping[str, LazyTensor], source: Mapping[str, Parameter]) -> bool:
    """Whether the source's position embedding is ours with the embedding of token type 0 added, as export adds it."""
    if not {_TOKEN_TYPES, _POSITIONS} <= stored.keys() or _TOKEN_TYPES in source or _POSITIONS not in source:
        return False
    positions, theirs = stored[_POSITIONS], source[_POSITIONS]
    summed = (positions.read() + stored[_TOKEN_TYPES].read()[:1]).astype(positions.dtype)
    return np.array_equal(summed, theirs.read())


def _compare(path: str, stored: StoredTensor, parameter: Parameter) -> Comparison:
    same_shape = stored.shape == parameter.shape
    identical, difference = same_shape, 0.0 if same_shape else float("inf")
    if same_shape and stored.shape:
        mine, theirs = stored.read(), parameter.read()
        step = max(1, (1 << 22) // max(1, int(np.prod(stored.shape[1:]))))
        for start in range(0, len(mine), step):
            a, b = mine[start : start + step], np.ascontiguousarray(theirs[start : start + step])
            with np.errstate(over="ignore", invalid="ignore"):
                identical &= np.ascontiguousarray(a).tobytes() == b.astype(stored.dtype).tobytes()
                apart = np.abs(a.astype(np.float64) - b.astype(np.float64))
            difference = max(difference, float(np.nanmax(apart, initial=0.0)))
    return Comparison(
        path, parameter.source, stored.shape, stored.dtype.name, parameter.dtype.name, bool(identical), difference
    )


def _same_tokenizer(tokenizer: Tokenizer, files: Mapping[str, Path | str | bytes]) -> bool:
    """Compares a tokenizer with that of files, by fairseq's rules where one of the two is fairseq's."""
    other = _read_tokenizer(files)
    if type(tokenizer.backend) is type(other.backend):
        return tokenizer.is_same_as(other)
    try:
        return _as_fairseq(tokenizer).is_same_as(_as_fairseq(other))
    except CheckpointError:
        return False


def _as_fairseq(tokenizer: Tokenizer) -> Tokenizer:
    if not isinstance(tokenizer.backend, HuggingFaceTokenizer):
        return tokenizer
    return _read_tokenizer(fairseq_files.translate(tokenizer.backend, []))


def _read_tokenizer(files: Mapping[str, Path | str | bytes]) -> Tokenizer:
    with tempfile.TemporaryDirectory(prefix="roberta-flax-") as temporary, reading(temporary):
        write_files(files, Path(temporary))
        return Tokenizer.from_directory(temporary)
