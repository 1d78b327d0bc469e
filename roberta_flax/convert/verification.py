"""verify(): a converted directory against the source it came from, tensor by tensor."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from roberta_flax.checkpoint import converted
from roberta_flax.checkpoint.tensors import LazyTensor, StoredTensor
from roberta_flax.convert.conversion import open_source, write_files
from roberta_flax.convert.source import Parameter
from roberta_flax.files import reading
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from roberta_flax.text.tokenizer import Tokenizer

_OF_LM_HEAD = ("lm_head_activation", "tie_word_embeddings")  # settings without effect where there is none
_TOKEN_TYPES, _POSITIONS = "embeddings.token_type.embedding", "embeddings.position.embedding"


@dataclass(frozen=True)
class Comparison:
    """A parameter beside the source's.

    Attributes:
      path: in the tree.
      source: what the source calls it.
      shape: in the tree.
      dtype, source_dtype: stored, and in the source.
      identical: whether every bit is what conversion makes of the source: NaNs and signs of zero too.
      largest_difference: of the two as numbers; 0 where the source was not rounded to another dtype.
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
    """What verify() found.

    Attributes:
      comparisons: of every parameter.
      problems: a line for each thing that differs; empty where the directory is what the source makes.
    """

    comparisons: list[Comparison]
    problems: list[str]


def verify(
    directory: str | os.PathLike[str],
    against: str | os.PathLike[str],
    *,
    checkpoint_file: str | None = None,
    bpe_dir: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    head_name: str | None = None,
) -> Verification:
    """Reads a converted model's source again and compares: sizes and choices, every parameter, the tokenizer.

    Args:
      directory: the converted model.
      against: its source, in any form that convert takes; what export wrote, too.
      checkpoint_file: as in convert; what conversion.json says if not given, where the model came from fairseq.
      bpe_dir, cache_dir: as in convert.
      head_name: as in convert; the name of the directory's only head (or what conversion.json says) if not given.

    Raises:
      InputError: a bpe_dir that is no directory.
      CheckpointError: one of the two cannot be read. (What differs is in the result.)
    """
    converted.check_directory(bpe_dir)
    folder = Path(directory)
    config, stored = converted.read_stored(folder)
    recorded = converted.read_conversion(folder)
    with open_source(against, checkpoint_file or _recorded_checkpoint_file(recorded), cache_dir) as source_files:
        source = source_files.read(bpe_dir, cache_dir, head_name or _only_head(config) or recorded.get("head_name"))
        comparisons = [
            _compared(path, stored[path], source.parameters[path])
            for path in sorted(stored.keys() & source.parameters.keys())
        ]
        folded = _is_folded(stored, source.parameters)
        problems = [
            *_setting_differences(config, source.config, folded),
            *_tensor_differences(stored, source.parameters, comparisons, folded),
        ]
        if not _same_tokenizer(folder, source.tokenizer_files):
            problems.append("the tokenizer is not the source's")
    return Verification(comparisons, problems)


def _recorded_checkpoint_file(recorded: Mapping[str, Any]) -> str:
    name = recorded.get("checkpoint_file")
    return name if isinstance(name, str) and name and recorded.get("kind") == "fairseq" else "model.pt"


def _only_head(config: RobertaConfig) -> str | None:
    """The name of the head that a transformers model of this configuration would have; None where there are several."""
    names = [head.name for head in config.heads if head.kind != "pooler"]
    return names[0] if len(names) == 1 else None


def _setting_differences(mine: RobertaConfig, theirs: RobertaConfig, folded: bool) -> Iterator[str]:
    """A line for each setting that differs, and has an effect; token types that are folded are not among them."""
    heads = {head.name: head for head in mine.heads}, {head.name: head for head in theirs.heads}
    for name in sorted(heads[0].keys() | heads[1].keys()):
        if name not in heads[1]:
            yield f"config.json has a head {name!r}, which is not in the source"
        elif name not in heads[0]:
            yield f"the source has a head {name!r}, which is not in config.json"
        else:
            for key, ours, others in _different(heads[0][name], heads[1][name]):
                yield f"config.json has {key} {ours!r} of head {name!r}, the source {others!r}"
    passed_over = {"heads", *(() if mine.lm_head or theirs.lm_head else _OF_LM_HEAD)}
    for key, ours, others in _different(mine, theirs):
        if key not in passed_over and not (folded and key == "type_vocab_size"):
            yield f"config.json has {key} {ours!r}, the source {others!r}"


def _different(mine: RobertaConfig | HeadConfig, theirs: RobertaConfig | HeadConfig) -> Iterator[tuple[str, Any, Any]]:
    for field in dataclasses.fields(mine):
        ours, others = getattr(mine, field.name), getattr(theirs, field.name)
        if ours != others:
            yield field.name, ours, others


def _tensor_differences(
    stored: Mapping[str, LazyTensor], source: Mapping[str, Parameter], comparisons: Sequence[Comparison], folded: bool
) -> Iterator[str]:
    """A line for each parameter that is in one of the two, or differs; one for token types that are folded."""
    explained = {_TOKEN_TYPES, _POSITIONS} if folded else set()
    if folded:
        yield (
            f"{_TOKEN_TYPES} is not in the source: its row 0 is added to the source's {_POSITIONS}, and rounded, as "
            "export to fairseq does"
        )
    for path in sorted(stored.keys() - source.keys() - explained):
        yield f"{path} is not in the source"
    for path in sorted(source.keys() - stored.keys()):
        yield f"the source has {path}, which is not in {converted.PARAMS_FILE}"
    for each in comparisons:
        if not each.identical and each.path not in explained:
            yield f"{each.path} differs from {each.source}, by {each.largest_difference:.3g}"


def _is_folded(stored: Mapping[str, LazyTensor], source: Mapping[str, Parameter]) -> bool:
    """Whether the source's positions are ours with the token type of every token added, as export adds it."""
    if not {_TOKEN_TYPES, _POSITIONS} <= stored.keys() or _TOKEN_TYPES in source or _POSITIONS not in source:
        return False
    positions, theirs = stored[_POSITIONS], source[_POSITIONS]
    summed = (positions.read() + stored[_TOKEN_TYPES].read()[:1]).astype(positions.dtype)
    return np.array_equal(summed, theirs.read())


def _compared(path: str, stored: StoredTensor, parameter: Parameter) -> Comparison:
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


def _same_tokenizer(folder: Path, files: Mapping[str, Path | str | bytes]) -> bool:
    with reading(folder), tempfile.TemporaryDirectory(prefix="roberta-flax-") as temporary:
        write_files(files, Path(temporary))
        return Tokenizer.from_directory(folder).is_same_as(Tokenizer.from_directory(temporary))
