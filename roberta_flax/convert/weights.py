"""The weights of a Transformers model in the forms in which they are found: their files, and the network's tensors.

Transformers' own files come first. Else there is one obvious file: a variant (model.fp16.safetensors), a state dict
under another name, or a trainer's checkpoint with a state dict in it. Wrappers put prefixes before the names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from roberta_flax.checkpoint.tensors import LazyTensor, read_tensors
from roberta_flax.convert import adapters, msgpack_file, torch_file
from roberta_flax.convert.source import check_fits_files, read_json
from roberta_flax.errors import CheckpointError, shortened

CONFIG_FILE = "config.json"
INDEX_SUFFIX = ".index.json"  # of a file that lists the parts of a model saved in several files
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "flax_model.msgpack")  # in the order of preference
INDEX_FILES = tuple(f"{name}{INDEX_SUFFIX}" for name in WEIGHT_FILES)
_OWN_FILES = (*WEIGHT_FILES, *INDEX_FILES)
_MAX_PARTS = 1000  # weights files; the largest model has nine
_TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
_SUFFIXES = (".safetensors", ".msgpack", *_TORCH_SUFFIXES)
# What Transformers adds to the names of files for save_pretrained(variant=...): modeling_utils._add_variant
_VARIANT = re.compile(
    r"(?P<stem>model|pytorch_model|flax_model)(?:\.(?P<before>[^.]+))?\.(?P<suffix>safetensors|bin|msgpack)"
    r"(?:\.index(?:\.(?P<after>[^.]+))?\.json)?"
)
_INDEX = re.compile(r".+\.index(\.[^.]+)?\.json")
_PART = re.compile(r".+-[0-9]{5}-of-[0-9]{5}\.[a-z]+")
# Files that trainers and libraries write beside the network's weights
_BESIDE_WEIGHTS = re.compile(
    r"(optimizer|scheduler|scaler|rng_state|random_states|training_args|trainer_state|adapter_model|sparse_linear"
    r"|colbert_linear|modules)\b.*|optimizer_.*|(rng_state|random_states)_.*",
    re.IGNORECASE,
)
_OTHER_PROGRAMS = {  # suffix of a file -> what it is, and what to do with it
    ".h5": "TensorFlow's: load it in Transformers 4 with from_tf=True and save it with save_pretrained()",
    ".onnx": "ONNX's: use the model that it was exported from",
    ".ot": "rust-bert's: use the model that it was converted from",
    ".gguf": "llama.cpp's: use the model that it was converted from",
}
_WORD_EMBEDDINGS = "embeddings.word_embeddings.weight"
_DECODERS = ("lm_head.decoder.weight", "cls.predictions.decoder.weight")
# What torch.compile, activation checkpointing, FSDP and DeepSpeed put into names, at any place
_INNER_WRAPPERS = re.compile(r"\b(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module|_forward_module)\.")
_OF_A_LOSS = re.compile(r"(criterion|loss|loss_fn|loss_func|loss_function)\b.*")
_UNMERGED = re.compile(r"(.*\.)?(lora_[A-Za-z_]+|base_layer|modules_to_save|original_module)(\..*)?")


# Files


def is_weight_file(path: Path) -> bool:
    """Whether a file has the suffix of a Transformers weights file, or of a checkpoint that may have such weights."""
    return path.suffix in _SUFFIXES


def is_fairseq(path: Path) -> bool:
    """Whether a file may be a checkpoint of fairseq's: it has a model and arguments, or cannot be read."""
    if path.suffix not in _TORCH_SUFFIXES:
        return False
    try:
        content = torch_file.load(path)
    except CheckpointError:
        return path.suffix == ".pt"
    return isinstance(content, dict) and "model" in content and not {"args", "cfg"}.isdisjoint(content)


def is_state_dict(path: Path) -> bool:
    """Whether a file is a checkpoint of PyTorch with the tensors of a Transformers model."""
    try:
        content = torch_file.load(path)
        return isinstance(content, dict) and any(map(_is_embedding, _state_dict(path, content)[1]))
    except CheckpointError:
        return False


def find(folder: Path, checkpoint_file: Path | None = None) -> list[Path]:
    """The weights files in a directory with a config.json of Transformers, in the order of their names; may be empty.

    Args:
      folder: the directory.
      checkpoint_file: the file to take if there are none by the names that Transformers gives them; it may be missing.

    Raises:
      CheckpointError: an index lists files that are missing or in another folder, or there are several files of which
        each may be the model.
    """
    if own := own_files(folder):
        return own
    if checkpoint_file is not None and os.path.isfile(checkpoint_file):
        return [] if is_fairseq(checkpoint_file) else [checkpoint_file]
    chosen = choose(str(folder), [path.name for path in folder.iterdir() if path.is_file()])
    for name in filter(_INDEX.fullmatch, chosen):
        return parts_of(folder / name)
    return [folder / name for name in chosen]


def own_files(folder: Path) -> list[Path]:
    """The weights files in a directory that have the names that Transformers gives them; may be empty.

    Raises:
      CheckpointError: an index lists files that are missing or in another folder.
    """
    for name in WEIGHT_FILES:
        if (index := folder / f"{name}{INDEX_SUFFIX}").is_file():
            return parts_of(index)
        if (folder / name).is_file():
            return [folder / name]
    return []


def choose(source_name: str, names: Sequence[str]) -> list[str]:
    """The files to read of those in a directory that has none by the names that Transformers gives them; may be empty.

    Returns:
      One file; or, of a model in several files, the index and all its parts.

    Raises:
      CheckpointError: several of them may be the model.
    """
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        is_candidate = _INDEX.fullmatch(name) or (is_weight_file(Path(name)) and not _PART.fullmatch(name))
        if is_candidate and not _BESIDE_WEIGHTS.fullmatch(name):
            match = _VARIANT.fullmatch(name)
            variant = match and (match["before"] or match["after"])
            found.setdefault(f".{variant}." if variant else name, []).append(name)
    if len(found) > 1:
        candidates = sorted(name for group in found.values() for name in group)
        raise CheckpointError(
            f"{source_name} has no {WEIGHT_FILES[0]} but several files that may be the model ({_some(candidates)}); "
            "name one of them as the source, from a local copy"
        )
    for group in found.values():
        stems = [Path(name).stem for name in WEIGHT_FILES]
        first = min(group, key=lambda name: stems.index(stem) if (stem := name.split(".")[0]) in stems else 0)
        parts = [name for name in names if _PART.fullmatch(name)] if _INDEX.fullmatch(first) else []
        return [first, *parts]
    return []


def parts_of(index: Path) -> list[Path]:
    """The files that an index lists. Raises CheckpointError if it is damaged, or one of them is missing."""
    weight_map = read_json(index).get("weight_map")
    values = weight_map.values() if isinstance(weight_map, dict) else []
    names = sorted({str(name) for name in values})
    if not 0 < len(names) <= _MAX_PARTS or any("/" in part or "\\" in part or part == ".." for part in names):
        raise CheckpointError(f"{index} is damaged: it should list the weights files beside it")
    if missing := [shortened(part) for part in names if not os.path.isfile(index.parent / part)]:
        raise CheckpointError(f"{index} lists {', '.join(missing[:5])}, not found: copy the missing files too")
    return [index.parent / part for part in names]


def is_index(path: Path) -> bool:
    """Whether a file has the name of an index of weights files."""
    return _INDEX.fullmatch(path.name) is not None


def no_weights(folder: Path, what: str) -> CheckpointError:
    """The error for a directory without weights: `what` is missing, and what is there instead."""
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    for name in names:
        if (reason := _OTHER_PROGRAMS.get(Path(name).suffix)) is not None:
            return CheckpointError(f"no {what} in {folder}; {shortened(name)} is {reason}")
    files = [name for name in names if is_weight_file(Path(name)) and not _BESIDE_WEIGHTS.fullmatch(name)]
    if files and not (folder / CONFIG_FILE).is_file():
        return CheckpointError(
            f"no {what} in {folder} (found: {_some(files)}) and no {CONFIG_FILE}: for a model of Transformers, copy "
            f"its {CONFIG_FILE} and its tokenizer's files there; name a fairseq checkpoint with checkpoint_file "
            "(--checkpoint-file)"
        )
    if models := [name for name in names if _has_weights(folder / name)]:
        return CheckpointError(f"no {what} in {folder}, but in its folders {_some(models)}; name one of them")
    return CheckpointError(
        f"no {what} in {folder} (found: {', '.join(map(shortened, names[:8])) or 'nothing'}); name the checkpoint with "
        "checkpoint_file (--checkpoint-file)"
    )


def _has_weights(folder: Path) -> bool:
    is_network = (folder / CONFIG_FILE).is_file() and any(map(os.path.isfile, map(folder.joinpath, _OWN_FILES)))
    return is_network or (folder / adapters.CONFIG_FILE).is_file()


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(shortened(name) for name in names[:5])
    return f"{shown}, ..." if len(names) > 5 else shown


# Tensors


@dataclass(frozen=True)
class Network:
    """The tensors of a network in its weights files.

    Attributes:
      tensors: by their names without wrappers' prefixes: the name in the file, and the tensor.
      left_out: the name in the file of each other tensor -> why it is left out.
      entry: the entry of the checkpoint that is the state dict; empty if the file is one itself.
      prefix: what wrappers put before all names.
      passed_over: the checkpoint's other entries.
    """

    tensors: dict[str, tuple[str, LazyTensor]]
    left_out: dict[str, str]
    entry: str = ""
    prefix: str = ""
    passed_over: list[str] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """What conversion.json says of the form; empty if it is Transformers' own."""
        found = {"entry": self.entry, "prefix": self.prefix, "entries not read": self.passed_over}
        return {name: value for name, value in found.items() if value}


def read(source_name: str, files: Sequence[Path], roots: Sequence[str]) -> Network:
    """Reads the tensors of a network.

    Args:
      source_name: the name of the source, for messages.
      files: its weights files.
      roots: the names that the network may have in a model with a head (base_model_prefix).

    Raises:
      CheckpointError: a file is damaged, or has several networks, an adapter that is not merged, or tensors beside the
        network that may be a part of the model.
    """
    parts: list[tuple[str, LazyTensor]] = []
    entries: set[str] = set()
    passed_over: set[str] = set()
    for file in files:
        entry, others, tensors = _read_file(file)
        parts += tensors.items()
        entries.add(entry)
        passed_over.update(others)
    if unmerged := next((name for name, _ in parts if _UNMERGED.fullmatch(name)), None):
        raise CheckpointError(
            f"{source_name} has an adapter of PEFT that is not merged into the network ({shortened(unmerged)}): save "
            "the model after merge_and_unload(), or give the directory that PEFT's save_pretrained() writes"
        )
    plain = {name: _INNER_WRAPPERS.sub("", name) for name, _ in parts}
    prefix = _prefix(source_name, plain.values(), roots)
    found: dict[str, tuple[str, LazyTensor]] = {}
    left_out: dict[str, str] = {}
    outside = []
    for name, tensor in parts:
        inner = plain[name].removeprefix(prefix)
        if _OF_A_LOSS.fullmatch(inner):
            left_out[name] = "of a loss"
        elif not plain[name].startswith(prefix):
            outside.append(name)
        elif inner in found:
            raise CheckpointError(
                f"{source_name}: {shortened(found[inner][0])} and {shortened(name)} are two names of the same tensor"
            )
        else:
            found[inner] = (name, tensor)
    if outside:
        raise CheckpointError(
            f"{source_name} has tensors beside the network {shortened(prefix)!r} that no model of Transformers has "
            f"({_some(outside)}): save the Transformers model in it with save_pretrained()"
        )
    return Network(found, left_out, "".join(sorted(entries)[-1:]), prefix, sorted(passed_over))


def _read_file(file: Path) -> tuple[str, list[str], dict[str, LazyTensor]]:
    """The entry of a file that is the state dict, the names of the others, and the tensors."""
    if file.suffix == ".safetensors":
        return "", [], dict(read_tensors(file))
    if file.suffix == ".msgpack":
        return "", [], msgpack_file.tensors(file)
    content = torch_file.load(file)
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} is a PyTorch file but not a state dict")
    entry, state = _state_dict(file, content)
    tensors: dict[str, LazyTensor] = dict(torch_file.tensors(state, file))
    check_fits_files(str(file), [file], tensors)
    others = [shortened(str(key)) for key in content if key != entry] if entry else []
    return entry, others, tensors


def _state_dict(file: Path, content: Mapping[Any, Any]) -> tuple[str, Mapping[Any, Any]]:
    """The state dict in a file: an entry of it, with its name, or all of it."""
    if any(map(_is_embedding, content)):
        return "", content
    found = [
        key for key, value in content.items() if isinstance(key, str) and isinstance(value, dict)
        if any(map(_is_embedding, value))
    ]  # fmt: skip
    if len(found) > 1:
        raise CheckpointError(
            f"{file} has several state dicts ({_some(found)}): save the one that you mean in a file of its own"
        )
    return (found[0], content[found[0]]) if found else ("", content)


def _is_embedding(name: Any) -> bool:
    return isinstance(name, str) and name.endswith((_WORD_EMBEDDINGS, *_DECODERS))


def _prefix(source_name: str, names: Iterable[str], roots: Sequence[str]) -> str:
    """What wrappers put before the names of the network, which is before the name of its token embedding."""
    names = list(names)
    root = "|".join(map(re.escape, roots))
    decoders = "|".join(map(re.escape, _DECODERS))
    for pattern in (rf"((?:.+?\.)??)(?:(?:{root})\.)?{re.escape(_WORD_EMBEDDINGS)}", rf"((?:.+?\.)??)(?:{decoders})"):
        prefixes = sorted({match[1] for match in _matches(pattern, names)})
        if len(prefixes) > 1:
            raise CheckpointError(
                f"{source_name} has several networks ({_some([repr(prefix) for prefix in prefixes])}): save the one "
                "that you mean with save_pretrained()"
            )
        if prefixes:
            return prefixes[0]
    return ""


def _matches(pattern: str, names: Iterable[str]) -> Iterator[re.Match[str]]:
    return filter(None, (re.fullmatch(pattern, name) for name in names if _is_embedding(name)))
