"""Joins a fairseq model that was saved in several files.

There are three ways (fairseq/checkpoint_utils.py, trainer.py, distributed/utils.py):
  NAME-shard0.pt, ...       fully sharded training: all tensors are slices of flat tensors (fairscale's FSDP)
  NAME-model_part-0.pt, ... tensor parallel training: each part has some rows or columns of most tensors (Megatron)
  NAME_part0.pt, ...        each part has some of the tensors, undivided
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

# The axis along which Megatron's layers divide a tensor (fairseq/model_parallel). Every part has all other tensors.
_ROWS = re.compile(
    r"(.*\.)?(embed_tokens\.weight|(q_proj|k_proj|v_proj|fc1)\.(weight|bias)|lm_head\.(weight|dense\.(weight|bias))"
    r"|classification_heads\.[^.]+\.dense\.(weight|bias))"
)
_COLUMNS = re.compile(r"(.*\.)?(out_proj|fc2)\.weight")
_MAX_PATH = 1000  # characters of a module's path in the model
_NOT_DIVIDED = re.compile(r"(.*\.)?classification_heads\.[^.]+\.out_proj\.(weight|bias)")


def files_of(model: Path) -> list[Path]:
    """The files of the checkpoint that `model` names.

    Returns:
      All parts in order, if `model` is one of them, or if it is not a file but its parts are. Otherwise `model` alone,
      even if there is no such file, or its name is too long for one.

    Raises:
      CheckpointError: the parts are not numbered from 0 without a gap.
    """
    match = _PART.fullmatch(model.name)
    if match is None and os.path.isfile(model):
        return [model]
    stem, styles = (match["stem"], [match["way"]]) if match else (model.stem, ["-shard", "-model_part-", "_part"])
    for style in styles:
        parts = {
            int(found["number"]): file
            for file in model.parent.glob("*.pt")
            if (found := _PART.fullmatch(file.name)) and found["way"] == style and found["stem"] == stem
        }
        if parts and sorted(parts) != list(range(len(parts))):
            raise CheckpointError(
                f"{model.parent} has parts {', '.join(map(str, sorted(parts)))} of {stem}{style}N.pt; expected all "
                "parts from 0: copy the others there"
            )
        if parts:
            return [parts[i] for i in range(len(parts))]
    return [model]


def join(files: Sequence[Path], checkpoints: Sequence[Mapping[str, Any]]) -> dict[str, LazyTensor]:
    """Joins the tensors of a model's parts.

    Args:
      files: the files of the parts, for messages.
      checkpoints: the content of each file.

    Returns:
      The tensors of the model, by name.

    Raises:
      CheckpointError: the parts do not fit together.
    """
    parts = [
        dict(torch_file.tensors(checkpoint["model"], file)) for file, checkpoint in zip(files, checkpoints, strict=True)
    ]
    for file, part in zip(files, parts, strict=True):
        check_fits_files(str(file), [file], part)
    if all("fsdp_metadata" in checkpoint for checkpoint in checkpoints):
        metadata = [torch_file.plain(checkpoint["fsdp_metadata"]) for checkpoint in checkpoints]
        try:
            return _unflatten(parts, metadata)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{files[0]} and the other shards have metadata that do not match their tensors ({error!r:.200})"
            ) from None
    joined_tensors: dict[str, LazyTensor] = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        pieces = [part[name] for part in parts if name in part]
        joined_tensors[name] = _join_pieces(files, name, pieces, len(parts)) if len(pieces) > 1 else pieces[0]
    return joined_tensors


def _join_pieces(files: Sequence[Path], name: str, pieces: Sequence[LazyTensor], count: int) -> LazyTensor:
    if len(pieces) != count:
        raise CheckpointError(f"{files[0]} and the other parts do not fit: only some of them have {name[:200]}")
    axes = {len(piece.shape) for piece in pieces}
    divided = not _NOT_DIVIDED.fullmatch(name)
    axis = 0 if divided and _ROWS.fullmatch(name) else 1 if divided and _COLUMNS.fullmatch(name) else None
    if axis is None:
        if not all(same_values(pieces[0], piece) for piece in pieces[1:]):
            raise CheckpointError(f"{files[0]} and the other parts do not fit: {name[:200]} differs among them")
        return pieces[0]
    remaining_axes = {(piece.dtype, piece.shape[:axis], piece.shape[axis + 1 :]) for piece in pieces}
    if (axes != {axis + 1} and axes != {2}) or len(remaining_axes) != 1:
        raise CheckpointError(f"{files[0]} and the other parts do not fit: {name[:200]} has shapes that do not join")
    return joined(pieces, axis)


def _unflatten(parts: Sequence[Mapping[str, LazyTensor]], metadata: Sequence[Any]) -> dict[str, LazyTensor]:
    """Does what fairscale's FullyShardedDataParallel.consolidate_shard_weights does, without reading values.

    A name may occur only once. So metadata that contain the same object many times fail at its second occurrence.
    """
    joined_tensors: dict[str, LazyTensor] = {}
    flat_names: set[str] = set()

    def add(name: str, tensor: LazyTensor) -> None:
        if name in joined_tensors:
            raise ValueError(f"{name} occurs twice")
        joined_tensors[name] = tensor

    for index, module in enumerate(metadata[0]["param_metadata"]):
        fsdp_path = module["fsdp_path"] or ""
        if len(fsdp_path) > _MAX_PATH:
            raise ValueError(f"a path of {len(fsdp_path)} characters")
        prefix = f"{fsdp_path}." if fsdp_path else ""
        for flat_name, contents in module["params"].items():
            if prefix + flat_name in flat_names:
                raise ValueError(f"{flat_name} occurs twice")
            flat_names.add(prefix + flat_name)
            flat: list[LazyTensor] = []
            for part, part_metadata in zip(parts, metadata, strict=True):
                tensor = part[prefix + flat_name]
                padding = part_metadata["param_metadata"][index]["params"][flat_name]["padding"]
                if len(tensor.shape) != 1 or type(padding) is not int or not 0 <= padding <= tensor.shape[0]:
                    raise ValueError(f"{flat_name} is not flat")
                flat.append(rows(tensor, 0, tensor.shape[0] - padding))
                if module["no_broadcast_optim_state"]:  # not divided: every shard has all of it
                    break
            start, length = 0, sum(tensor.shape[0] for tensor in flat)
            for name, shape in zip(contents["names"], contents["shapes"], strict=True):
                if len(shape) > MAX_AXES or not all(type(size) is int and 0 <= size < 1 << 40 for size in shape):
                    raise ValueError(f"{name} has no shape")
                add(prefix + name, reshaped_slice(flat, start, tuple(shape)))
                start += math.prod(shape)
            if start != length:
                raise ValueError(f"{flat_name} has {length} elements, but its tensors have {start}")
        for source, destination in module["shared_param_info"]:
            add(prefix + destination, joined_tensors[prefix + source])
    joined_tensors |= {name: parts[0][name] for name in metadata[0]["buffer_names"] if name in parts[0]}
    return joined_tensors
