"""The tokenizer's files of a directory that transformers wrote, as the files of a converted directory.

The ids are the same: transformers took RoBERTa's, XLM-R's and CamemBERT's from fairseq's dictionaries, and a tokenizer
trained for such a model has its special tokens in the same places. So dict.txt can be written for it.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convert.source import padded_dictionary, read_json
from convert.torch_file import shortened
from roberta_flax.errors import CheckpointError
from roberta_flax.tokenizer import (
    BOS,
    DICTIONARY_FILE,
    ENCODER_FILE,
    EOS,
    MASK,
    MERGES_FILE,
    PAD,
    SENTENCEPIECE_FILE,
    UNK,
    SentencePiece,
)

VOCAB_FILE = "vocab.json"
HF_MERGES_FILE = "merges.txt"
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
FILES = (VOCAB_FILE, HF_MERGES_FILE, SENTENCEPIECE_FILE, TOKENIZER_FILE, TOKENIZER_CONFIG_FILE, "added_tokens.json")
_SPECIALS = (BOS, PAD, EOS, UNK)
_SENTENCEPIECE_SPECIALS = (UNK, BOS, EOS)  # a sentencepiece model's first three pieces
# CamembertTokenizer's names for what its dictionary has twice
_CAMEMBERT_SPECIALS = ("<s>NOTUSED", PAD, "</s>NOTUSED", UNK, "<unk>NOTUSED")
_MERGES_HEADER = "#version: 0.2\n"

TokenizerFiles = dict[str, Path | str | bytes]


def read(folders: Sequence[Path], model_type: str, vocab_size: int, notes: list[str]) -> TokenizerFiles:
    """The converted directory's tokenizer files.

    Args:
      folders: where to look, first to last.
      model_type: transformers' name of the kind of model.
      vocab_size: rows of its token embedding; the dictionary is filled up to it.
      notes: what the user should hear of is added.

    Raises:
      CheckpointError: there are none, they are damaged, or their special tokens are not where RoBERTa's are.
    """
    for folder in folders:
        settings = read_json(folder / TOKENIZER_CONFIG_FILE) if (folder / TOKENIZER_CONFIG_FILE).is_file() else {}
        if (folder / SENTENCEPIECE_FILE).is_file():
            model = folder / SENTENCEPIECE_FILE
            pieces = SentencePiece.read(model).pieces
            camembert = "camembert" in str(settings.get("tokenizer_class", model_type)).lower()
            return _over_sentencepiece(model, model, pieces, camembert, vocab_size)
        if (folder / VOCAB_FILE).is_file() and (folder / HF_MERGES_FILE).is_file():
            vocab, merges = read_json(folder / VOCAB_FILE), merges_text(folder / HF_MERGES_FILE)
            if settings.get("add_prefix_space"):
                notes.append(f"{folder} adds a space before each text; encode() here does not: write it yourself")
            return _over_byte_level(folder / VOCAB_FILE, vocab, merges, vocab_size, {**settings, **_added(folder)})
        if (folder / TOKENIZER_FILE).is_file():
            return _over_tokenizer_json(folder / TOKENIZER_FILE, vocab_size, notes)
    raise CheckpointError(
        f"no tokenizer in {' or '.join(map(str, folders))}: put {VOCAB_FILE} and {HF_MERGES_FILE}, "
        f"{SENTENCEPIECE_FILE}, or {TOKENIZER_FILE} there, or name the directory that has them with bpe_dir (--bpe-dir)"
    )


def merges_text(path: Path) -> str:
    """merges.txt as vocab.bpe: with the line of a version at the front and a line break at the end."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    return (text if text.startswith("#version") else _MERGES_HEADER + text).rstrip("\n") + "\n"


def _added(folder: Path) -> dict[str, Any]:
    path = folder / "added_tokens.json"
    return {"added_tokens": read_json(path)} if path.is_file() else {}


def _mask_id(vocab: Mapping[str, int], settings: Mapping[str, Any]) -> int:
    """Where `<mask>` is: in the vocabulary, among the tokens added to it, or after it, where transformers adds it."""
    if MASK in vocab:
        return vocab[MASK]
    added = settings.get("added_tokens")
    if isinstance(added, dict) and type(added.get(MASK)) is int:
        return int(added[MASK])
    decoder = settings.get("added_tokens_decoder")
    for key, token in decoder.items() if isinstance(decoder, dict) else ():
        if isinstance(token, dict) and token.get("content") == MASK and str(key).isdecimal():
            return int(key)
    return max(vocab.values()) + 1


def _over_byte_level(
    path: Path, vocab: Mapping[str, Any], merges: str, vocab_size: int, settings: Mapping[str, Any]
) -> TokenizerFiles:
    """A dictionary in which the piece of BPE id n is token n: its symbols are the BPE ids themselves."""
    if not vocab or not all(type(i) is int and 0 <= i < vocab_size for i in vocab.values()):
        raise CheckpointError(f"{path} should map pieces to ids under the {vocab_size} that the model embeds")
    _check_specials(path, [vocab.get(special) for special in _SPECIALS])
    mask = _mask_id(vocab, settings)
    if not 4 <= mask < vocab_size or len(set(vocab.values())) != len(vocab):
        raise CheckpointError(f"{path} has two pieces of one id, or its {MASK} (id {mask}) is outside the model's ids")
    by_id = {i: piece for piece, i in vocab.items()}
    symbols = [
        MASK if i == mask else str(i) if i in by_id else f"madeupword{i:04d}" for i in range(4, max(*by_id, mask) + 1)
    ]
    return {
        DICTIONARY_FILE: padded_dictionary(symbols, vocab_size),
        ENCODER_FILE: json.dumps(vocab, ensure_ascii=False),
        MERGES_FILE: merges,
    }


def _check_specials(path: Path, ids: Sequence[Any]) -> None:
    if ids != [0, 1, 2, 3]:
        found = ", ".join(f"{special} {i}" for special, i in zip(_SPECIALS, ids, strict=True))
        raise CheckpointError(f"{path} has its special tokens elsewhere than RoBERTa: {found}; expected 0, 1, 2, 3")


def _over_sentencepiece(
    path: Path, model: Path | bytes, pieces: Sequence[str], camembert: bool, vocab_size: int
) -> TokenizerFiles:
    """fairseq's dictionaries: XLM-R's leaves out the model's own three specials, CamemBERT's has them once more."""
    if tuple(pieces[:3]) != _SENTENCEPIECE_SPECIALS:
        raise CheckpointError(
            f"{path} begins with {', '.join(pieces[:3])}; a RoBERTa's begins with {', '.join(_SENTENCEPIECE_SPECIALS)}"
        )
    symbols = [*(pieces if camembert else pieces[3:]), MASK]
    if 4 + len(symbols) > vocab_size:
        raise CheckpointError(f"{path} has {len(symbols) - 1} pieces, over the {vocab_size} that the model embeds")
    return {DICTIONARY_FILE: padded_dictionary(symbols, vocab_size), SENTENCEPIECE_FILE: model}


def _over_tokenizer_json(path: Path, vocab_size: int, notes: list[str]) -> TokenizerFiles:
    """tokenizer.json alone, of the tokenizers package: byte-level BPE, or a Unigram, made a sentencepiece model."""
    whole = read_json(path)
    model = whole.get("model")
    if not isinstance(model, dict):
        raise CheckpointError(f"{path} is damaged: it has no model")
    kind = model.get("type", "BPE")
    try:
        if kind == "BPE" and "ByteLevel" in json.dumps(whole.get("pre_tokenizer")):
            if whole.get("normalizer"):
                notes.append(f"{path} normalizes text before it cuts it; encode() here does not")
            merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
            added = {token["content"]: token["id"] for token in whole.get("added_tokens") or []}
            vocab = {**{k: v for k, v in added.items() if k in (*_SPECIALS, MASK)}, **model["vocab"]}
            text = "".join([_MERGES_HEADER, *(f"{pair}\n" for pair in merges)])
            return _over_byte_level(path, vocab, text, vocab_size, {})
        if kind == "Unigram":
            scored = [(str(piece), float(score)) for piece, score in model["vocab"]]
            names = [piece for piece, _ in scored]
            camembert = tuple(names[: len(_CAMEMBERT_SPECIALS)]) == _CAMEMBERT_SPECIALS
            if not camembert:
                _check_specials(path, [names.index(special) if special in names else None for special in _SPECIALS])
            first = len(_CAMEMBERT_SPECIALS) + 2 if camembert else len(_SPECIALS)
            pieces = [(piece, score) for piece, score in scored[first:] if piece != MASK]
            proto = _sentencepiece_model(pieces, _charsmap(whole.get("normalizer")))
            return _over_sentencepiece(path, proto, SentencePiece(proto).pieces, camembert, vocab_size)
    except (KeyError, TypeError, ValueError, AttributeError, struct.error) as error:
        raise CheckpointError(f"{path} is damaged ({shortened(repr(error))})") from None
    raise CheckpointError(
        f"{path} is neither byte-level BPE nor Unigram ({str(kind)[:40]}), which RoBERTa and XLM-R have"
    )


def _charsmap(normalizer: Any) -> bytes:
    """sentencepiece's table of normalization, wherever in the chain of normalizers it stands; empty where it is not."""
    if isinstance(normalizer, dict):
        if normalizer.get("type") == "Precompiled":
            try:
                return base64.b64decode(normalizer["precompiled_charsmap"], validate=True)
            except binascii.Error as error:
                raise ValueError(f"precompiled_charsmap: {error}") from None
        return b"".join(map(_charsmap, (normalizer.get("normalizers") or [])[:16]))
    return b""


def _sentencepiece_model(pieces: Sequence[tuple[str, float]], charsmap: bytes) -> bytes:
    """A serialized sentencepiece model (sentencepiece_model.proto) of Unigram pieces and their scores.

    Fields: ModelProto.pieces = 1 (piece = 1, score = 2, type = 3: 2 unknown, 3 control), trainer_spec = 2 (model_type =
    3: 1 unigram; unk_id = 40, bos_id = 41, eos_id = 42, pad_id = 43), normalizer_spec = 3 (precompiled_charsmap = 2).
    """
    entries = [(UNK, 0.0, 2), (BOS, 0.0, 3), (EOS, 0.0, 3), *((piece, score, 1) for piece, score in pieces)]
    proto = b"".join(
        _field(1, _field(1, piece.encode()) + b"\x15" + struct.pack("<f", score) + _number(3, kind))
        for piece, score, kind in entries
    )
    trainer = _number(3, 1) + _number(40, 0) + _number(41, 1) + _number(42, 2) + _number(43, -1)
    return proto + _field(2, trainer) + _field(3, _field(2, charsmap))


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _field(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content
