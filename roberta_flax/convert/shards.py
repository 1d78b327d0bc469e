"""A fairseq model that was saved in several files, as one.

Three ways (fairseq/checkpoint_utils.py, trainer.py, distributed/utils.py):
  NAME-shard0.pt, ...       fully sharded training: every tensor is cut out of flat ones (fairscale's FSDP)
  NAME-model_part-0.pt, ... tensor parallel training: each part has some rows or columns of most tensors (Megatron)
  NAME_part0.pt, ...        each part has some of the tensors, whole
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from roberta_flax.checkpoint.tensors import MAX_AXES, LazyTensor
from roberta_flax.convert import torch_file
from roberta_flax.convert.source import check_fits_files, same_values
from roberta_flax.convert.views import joined, reshaped_slice, rows
from roberta_flax.errors import CheckpointError

_PART = re.compile(r"(?P<stem>.*)(?P<way>-shard|-model_part-|_part)(?P<number>[0-9]+)\.pt")

# Megatron's layers in fairseq/model_parallel: which axis of a tensor the parts divide. Others are in every part, whole.
_ROWS = re.compile(
    r"(.*\.)?(embed_tokens\.weight|(q_proj|k_proj|v_proj|fc1)\.(weight|bias)|lm_head\.(weight|dense\.(weight|bias))"
    r"|classification_heads\.[^.]+\.dense\.(weight|bias))"
)
_COLUMNS = re.compile(r"(.*\.)?(out_proj|fc2)\.weight")
_MAX_PATH = 1000  # characters of a module's place in the model
_NOT_DIVIDED = re.compile(r"(.*\.)?classification_heads\.[^.]+\.out_proj\.(weight|bias)")


def files_of(model: Path) -> list[Path]:
    """The files of a checkpoint by this name: itself, or all its parts in order, where it is one or there are some.

    A name that is no file's, however long, is given back.

    Raises:
      CheckpointError: parts that are not numbered from 0 on without a gap.
    """
    match = _PART.fullmatch(model.name)
    if match is None and os.path.isfile(model):
        return [model]
    stem, ways = (match["stem"], [match["way"]]) if match else (model.stem, ["-shard", "-model_part-", "_part"])
    for way in ways:
        parts = {
            int(found["number"]): file
            for file in model.parent.glob("*.pt")
            if (found := _PART.fullmatch(file.name)) and found["way"] == way and found["stem"] == stem
        }
        if parts and sorted(parts) != list(range(len(parts))):
            raise CheckpointError(
                f"{model.parent} has parts {', '.join(map(str, sorted(parts)))} of {stem}{way}N.pt; expected every one "
                "from 0 on: copy the others there"
            )
        if parts:
            return [parts[i] for i in range(len(parts))]
    return [model]


def join(files: Sequence[Path], checkpoints: Sequence[Mapping[str, Any]]) -> dict[str, LazyTensor]:
    """The tensors of a model's parts, joined.

    Args:
      files: the parts, for messages.
      checkpoints: what is in each.

    Raises:
      CheckpointError: parts that do not fit together.
    """
    parts = [dict(torch_file.tensors(checkpoint["model"])) for checkpoint in checkpoints]
    for file, part in zip(files, parts, strict=True):
        check_fits_files(str(file), [file], part)
    if all("fsdp_metadata" in checkpoint for checkpoint in checkpoints):
        metadata = [torch_file.plain(checkpoint["fsdp_metadata"]) for checkpoint in checkpoints]
        try:
            return _unflattened(parts, metadata)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{files[0]} and the other shards have metadata that do not fit their tensors ({error!r:.200})"
            ) from None
    whole: dict[str, LazyTensor] = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        pieces = [part[name] for part in parts if name in part]
        whole[name] = _joined(files, name, pieces, len(parts)) if len(pieces) > 1 else pieces[0]
    return whole


def _joined(files: Sequence[Path], name: str, pieces: Sequence[LazyTensor], count: int) -> LazyTensor:
    if len(pieces) != count:
        raise CheckpointError(f"{files[0]} and the other parts do not fit: only some of them have {name[:200]}")
    axes = {len(piece.shape) for piece in pieces}
    divided = not _NOT_DIVIDED.fullmatch(name)
    axis = 0 if divided and _ROWS.fullmatch(name) else 1 if divided and _COLUMNS.fullmatch(name) else None
    if axis is None:
        if not all(same_values(pieces[0], piece) for piece in pieces[1:]):
            raise CheckpointError(f"{files[0]} and the other parts do not fit: {name[:200]} differs among them")
        return pieces[0]
    others = {(piece.dtype, piece.shape[:axis], piece.shape[axis + 1 :]) for piece in pieces}
    if (axes != {axis + 1} and axes != {2}) or len(others) != 1:
        raise CheckpointError(f"{files[0]} and the other parts do not fit: {name[:200]} has shapes that do not join")
    return joined(pieces, axis)


def _unflattened(parts: Sequence[Mapping[str, LazyTensor]], metadata: Sequence[Any]) -> dict[str, LazyTensor]:
    """fairscale's FullyShardedDataParallel.consolidate_shard_weights, without reading a value.

    Every name may come once: metadata whose parts are the same object many times over end at the first that does twice.
    """
    whole: dict[str, LazyTensor] = {}
    flat_names: set[str] = set()

    def add(name: str, tensor: LazyTensor) -> None:
        if name in whole:
            raise ValueError(f"{name} is there twice")
        whole[name] = tensor

    for index, module in enumerate(metadata[0]["param_metadata"]):
        fsdp_path = module["fsdp_path"] or ""
        if len(fsdp_path) > _MAX_PATH:
            raise ValueError(f"a path of {len(fsdp_path)} characters")
        prefix = f"{fsdp_path}." if fsdp_path else ""
        for flat_name, described in module["params"].items():
            if prefix + flat_name in flat_names:
                raise ValueError(f"{flat_name} is there twice")
            flat_names.add(prefix + flat_name)
            flat: list[LazyTensor] = []
            for part, part_metadata in zip(parts, metadata, strict=True):
                tensor = part[prefix + flat_name]
                padding = part_metadata["param_metadata"][index]["params"][flat_name]["padding"]
                if len(tensor.shape) != 1 or type(padding) is not int or not 0 <= padding <= tensor.shape[0]:
                    raise ValueError(f"{flat_name} is not flat")
                flat.append(rows(tensor, 0, tensor.shape[0] - padding))
                if module["no_broadcast_optim_state"]:  # not divided: every shard has it whole
                    break
            start, length = 0, sum(tensor.shape[0] for tensor in flat)
            for name, shape in zip(described["names"], described["shapes"], strict=True):
                if len(shape) > MAX_AXES or not all(type(size) is int and 0 <= size < 1 << 40 for size in shape):
                    raise ValueError(f"{name} has no shape")
                add(prefix + name, reshaped_slice(flat, start, tuple(shape)))
                start += math.prod(shape)
            if start != length:
                raise ValueError(f"{flat_name} has {length} elements and its tensors {start}")
        for source, destination in module["shared_param_info"]:
            add(prefix + destination, whole[prefix + source])
    whole |= {name: parts[0][name] for name in metadata[0]["buffer_names"] if name in parts[0]}
    return whole
