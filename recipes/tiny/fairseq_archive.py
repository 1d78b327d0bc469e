"""Archives in the format of RoBERTa's release in 2019, and a byte-level BPE to put into one.

An archive has one directory with model.pt, dict.txt and the files of the BPE. As in the release, model.pt is in torch's
legacy format and in float16, has `decoder.` names and fused in_proj_weight, and has the classification heads beside the
decoder.
"""

from __future__ import annotations

import argparse
import collections
import gzip
import io
import itertools
import json
import operator
import pickle
import re
import struct
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import regex
import torch

from roberta_flax.convert.export import fairseq_arguments
from roberta_flax.convert.names import LM_HEAD_WEIGHT, TRANSPOSE, to_fairseq
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.nn.forward import Params
from roberta_flax.nn.tree import flatten
from roberta_flax.text.fairseq_tokenizer import DICTIONARY_FILE, ENCODER_FILE, MERGES_FILE, byte_alphabet

Merges = Sequence[tuple[str, str]]
_STORAGES = {torch.float16: torch.HalfStorage, torch.float32: torch.FloatStorage}
# arguments that came after the checkpoints of 2019
_LATER_ARGUMENTS = frozenset(("encoder_normalize_before", "layernorm_embedding", "untie_weights_roberta"))
_WORD = regex.compile(r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+")


def train_bpe(texts: Iterable[str], merges: int) -> list[tuple[str, str]]:
    """Trains a byte-level BPE (Sennrich et al., 2016): merges the most frequent pair, again and again.

    Returns fewer than `merges` merges if every word has become one piece.
    """
    alphabet = byte_alphabet()
    counts = collections.Counter(word for text in texts for word in _WORD.findall(text))
    words: dict[tuple[str, ...], int] = {}
    pairs: collections.Counter[tuple[str, str]] = collections.Counter()
    words_of: dict[tuple[str, str], set[tuple[str, ...]]] = collections.defaultdict(set)
    learned: list[tuple[str, str]] = []

    def add(word: tuple[str, ...], count: int) -> None:
        words[word] = count
        for pair in itertools.pairwise(word):
            pairs[pair] += count
            words_of[pair].add(word)

    def remove(word: tuple[str, ...]) -> int:
        count = words.pop(word)
        for pair in itertools.pairwise(word):
            pairs[pair] -= count
            words_of[pair].discard(word)
            if not words_of[pair]:
                del pairs[pair], words_of[pair]
        return count

    for word, count in counts.items():
        add(tuple(alphabet[b] for b in word.encode()), count)
    while len(learned) < merges and pairs:
        best, _ = max(pairs.items(), key=operator.itemgetter(1, 0))
        learned.append(best)
        for word in list(words_of[best]):
            add(_merge(word, best), remove(word))
    return learned


def _merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """Returns the parts of a word with a pair merged wherever it occurs."""
    if pair[0] not in word:
        return word
    parts: list[str] = []
    for part in word:
        if parts and (parts[-1], part) == pair:
            parts[-1] += part
        else:
            parts.append(part)
    return tuple(parts)


def tokenizer_files(merges: Merges) -> dict[str, bytes]:
    """Returns encoder.json, vocab.bpe and dict.txt of a BPE. The id of a piece is its rank."""
    pieces = [*sorted(byte_alphabet()), *(left + right for left, right in merges)]
    encoder = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    return {
        DICTIONARY_FILE: "".join(f"{i} {len(encoder) - i}\n" for i in range(len(encoder))).encode(),
        ENCODER_FILE: json.dumps(encoder, ensure_ascii=False).encode(),
        MERGES_FILE: "".join(["#version: 0.2\n", *(f"{left} {right}\n" for left, right in merges)]).encode(),
    }


def state_dict(params: Params) -> dict[str, torch.Tensor]:
    """Returns the parameters under the names of the released checkpoints, and in their dtype, float16."""
    state: dict[str, torch.Tensor] = {}
    for path, values in flatten(params).items():
        target = to_fairseq(path)
        assert target is not None, path
        values = np.asarray(values).T if target.transform is TRANSPOSE else np.asarray(values)
        state[target.path] = torch.from_numpy(values.copy()).half()
    for name in [name for name in state if ".q_proj." in name]:
        parts = [state.pop(name.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
        state[name.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
    state[LM_HEAD_WEIGHT] = state["encoder.sentence_encoder.embed_tokens.weight"]
    return {
        re.sub("^encoder", "decoder", name).replace("layernorm_embedding", "emb_layer_norm"): tensor
        for name, tensor in state.items()
    }


def arguments(config: RobertaConfig) -> argparse.Namespace:
    """Returns the arguments of a masked-LM training in 2019: today's, without those that were added later."""
    given = vars(fairseq_arguments(config, config.heads))
    return argparse.Namespace(**{name: value for name, value in given.items() if name not in _LATER_ARGUMENTS})


def model_file(state: Mapping[str, torch.Tensor], config: RobertaConfig, steps: int = 0) -> bytes:
    """Returns model.pt as fairseq's trainer wrote it in 2019 after some steps, without the state of the optimizer."""
    saved = {
        "args": arguments(config),
        "model": dict(state),
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": steps}},
        "optimizer_history": [
            {
                "criterion_name": "MaskedLmLoss",
                "optimizer_name": "FairseqAdam",
                "lr_scheduler_state": {},
                "num_updates": steps,
            }
        ],
        "last_optimizer_state": None,
    }
    return _legacy_file(saved)


def _legacy_file(saved: object) -> bytes:
    """Returns a file in torch's format before 1.6.

    The file is the same every time, unlike one of torch.save, which names storages by their addresses.
    """
    content = io.BytesIO()
    version = torch.serialization.PROTOCOL_VERSION
    system = {"protocol_version": version, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    for header in (torch.serialization.MAGIC_NUMBER, version, system):
        pickle.dump(header, content, protocol=2)
    pickler = _LegacyPickler(content, protocol=2)
    pickler.dump(saved)
    pickle.dump([str(i) for i in range(len(pickler.storages))], content, protocol=2)
    for tensor in pickler.storages:
        content.write(struct.pack("<q", tensor.numel()) + tensor.numpy().tobytes())
    return content.getvalue()


class _Storage(NamedTuple):
    tensor: torch.Tensor


class _LegacyPickler(pickle.Pickler):
    """Pickles tensors as torch does, each with a storage of its own, whose bytes are not in the pickle but numbered."""

    def __init__(self, file: io.BytesIO, protocol: int) -> None:
        super().__init__(file, protocol)
        self.storages: list[torch.Tensor] = []

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return NotImplemented
        hooks: Mapping[str, object] = collections.OrderedDict()
        view = (0, tuple(value.shape), value.stride(), False, hooks)
        return torch._utils._rebuild_tensor_v2, (_Storage(value), *view)

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, _Storage):
            return None
        self.storages.append(value.tensor)
        key, kind = str(len(self.storages) - 1), _STORAGES[value.tensor.dtype]
        return "storage", kind, key, "cpu", value.tensor.numel(), None


def write_archive(path: Path, directory: str, files: Mapping[str, bytes]) -> None:
    """Writes a .tar.gz with one directory. It records no time, no owner and no name of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        path.open("wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for name, content in files.items():
            member = tarfile.TarInfo(f"{directory}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
