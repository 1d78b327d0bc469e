"""Writes the tokenizer of a Hugging Face model as fairseq's files: dict.txt and those of its BPE.

Token ids stay the same. Transformers took the ids of RoBERTa, XLM-R and CamemBERT from fairseq's dictionaries, and a
tokenizer trained for such a model has its special tokens in the same places, so a dict.txt can be written for it. BPE
ids are numbered as GPT-2's are, so that RoBERTa's vocabulary translates back to RoBERTa's own dict.txt.

A tokenizer that gives ordinary text other ids than fairseq's rules would is refused. If only unusual text would get
other ids, the user gets a note.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import json
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from roberta_flax.convert.source import padded_dictionary
from roberta_flax.errors import CheckpointError, shortened
from roberta_flax.files import read_text
from roberta_flax.text.fairseq_tokenizer import (
    BOS,
    DICTIONARY_FILE,
    ENCODER_FILE,
    EOS,
    MASK,
    MERGES_FILE,
    MERGES_HEADER,
    PAD,
    SENTENCEPIECE_FILE,
    UNK,
    WORD_BOUNDARY,
    SentencePiece,
    byte_alphabet,
)
from roberta_flax.text.huggingface_tokenizer import HuggingFaceTokenizer

_SPECIALS = (BOS, PAD, EOS, UNK)
_SENTENCEPIECE_SPECIALS = (UNK, BOS, EOS)  # the first three pieces of a SentencePiece model
# CamembertTokenizer's names for the special tokens, some of which its dictionary contains twice
_CAMEMBERT_SPECIALS = ("<s>NOTUSED", PAD, "</s>NOTUSED", UNK, "<unk>NOTUSED")
# The token id of a SentencePiece model's fourth piece: CamemBERT's dictionary repeats the first three, XLM-R's does not
_FOURTH_PIECE = {"CamemBERT": 7, "XLM-R": 4}
TOKENIZER_CLASSES = {"CamemBERT": "CamembertTokenizer", "XLM-R": "XLMRobertaTokenizer"}
_FILLER = re.compile("madeupword[0-9]+")  # Dictionary.pad_to_multiple_
# Settings of the tokenizers package's models, and the values with which they tokenize as fairseq does
_ACCEPTED_SETTINGS: dict[str, tuple[Any, ...]] = {
    "dropout": (None, 0),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "byte_fallback": (None, False),
    "ignore_merges": (None, False),
}


def translate(tokenizer: HuggingFaceTokenizer, notes: list[str]) -> dict[str, str | bytes]:
    """Translates the tokenizer of a Hugging Face model to fairseq's files.

    Args:
      tokenizer: the tokenizer.
      notes: a list to which messages for the user are appended.

    Returns:
      File name -> content.

    Raises:
      CheckpointError: it tokenizes differently from RoBERTa's, XLM-R's and CamemBERT's, or its special tokens have
        other ids than theirs.
    """
    with _naming_the_tokenizer():
        whole = json.loads(tokenizer.content)
        model, vocab_size = whole["model"], tokenizer.vocab_size
        added = {token["content"]: token["id"] for token in whole["added_tokens"]}
        pre_tokenizers = [step.get("type") for step in _steps(whole.get("pre_tokenizer"), "pretokenizers")]
        is_byte_level = model.get("type") == "BPE" and "ByteLevel" in pre_tokenizers
        _check_behavior(whole, added, is_byte_level, notes)
        if is_byte_level:
            specials = {token: i for token, i in added.items() if token in (*_SPECIALS, MASK)}
            return _byte_level_files({**specials, **model["vocab"]}, _merges_text(model), vocab_size)
        return _sentencepiece_files(whole, tokenizer.source_files.get(SENTENCEPIECE_FILE), vocab_size)


def merges_text(path: Path) -> str:
    """The text of a merges.txt in the form of vocab.bpe, with a version line first and a line break at the end."""
    text = read_text(path)
    return (text if text.startswith("#version") else MERGES_HEADER + text).rstrip("\n") + "\n"


@contextmanager
def _naming_the_tokenizer() -> Iterator[None]:
    """Turns the exceptions that malformed content raises in the block into a CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, struct.error) as error:
        raise CheckpointError(f"fairseq cannot have this model's tokenizer ({shortened(repr(error))})") from None


def _list_some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(shortened(name) for name in names[:5]) + more


# Comparison with fairseq's way to split text


def _check_behavior(whole: Mapping[str, Any], added: Mapping[str, int], byte_level: bool, notes: list[str]) -> None:
    """Raises CheckpointError if ordinary text would get other ids, and adds notes if only some texts would."""
    if unsupported := _unsupported_behavior(whole, byte_level):
        expected = "ByteLevel alone" if byte_level else "SentencePiece's normalizer and Metaspace"
        raise CheckpointError(
            f"fairseq cannot split text as this model's tokenizer does: it has {_list_some(unsupported)}; expected "
            f"{expected}, as in RoBERTa's. Export the model to huggingface"
        )
    steps = _steps(whole.get("pre_tokenizer"), "pretokenizers")
    if byte_level and any(step.get("add_prefix_space") for step in steps):
        notes.append("this model's tokenizer adds a space before each text, but fairseq does not: add it to your texts")
    if not _adds_expected_specials(whole.get("post_processor")):
        notes.append(
            "this model's tokenizer does not encode texts as <s> a </s> and <s> a </s></s> b </s>, as fairseq does"
        )
    if others := [token for token in added if token not in (*_SPECIALS, MASK, *_CAMEMBERT_SPECIALS)]:
        notes.append(f"fairseq splits the {len(others)} tokens that were added ({_list_some(others)}) into pieces")


def _unsupported_behavior(tokenizer: Mapping[str, Any], byte_level: bool) -> list[str]:
    """Describes each part of a tokenizer.json that fairseq has nothing for."""
    model, kind = tokenizer["model"], str(tokenizer["model"].get("type"))[:40]
    unsupported = [] if kind in ("BPE", "Unigram") else [f"a model of type {kind}"]
    unsupported += [
        f"the normalizer {str(step.get('type'))[:40]}"
        for step in _steps(tokenizer.get("normalizer"), "normalizers")
        if byte_level or not _is_sentencepiece_normalizer(step)
    ]
    pre_tokenizers = _steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    kinds = [str(step.get("type"))[:40] for step in pre_tokenizers]
    if kinds not in ([["ByteLevel"]] if byte_level else [["Metaspace"], ["WhitespaceSplit", "Metaspace"]]):
        unsupported.append(f"the pre-tokenizer {_list_some(kinds) or None}")
    for step in pre_tokenizers:
        if not step.get("use_regex", True):
            unsupported.append("use_regex=False")
        if step.get("type") == "Metaspace" and not _is_plain_metaspace(step):
            unsupported.append("a Metaspace that does not add \u2581 before each text")
    return unsupported + [
        f"{key}={str(model[key])[:40]}"
        for key, accepted in _ACCEPTED_SETTINGS.items()
        if model.get(key) not in accepted
    ]


def _steps(chain: Any, key: str) -> list[dict[str, Any]]:
    """The steps of a normalizer, pre-tokenizer or post-processor in order, with sequences flattened.

    Args:
      chain: the object in tokenizer.json.
      key: the key under which a Sequence of this kind lists its steps.
    """
    remaining, steps = [chain], []
    while remaining:
        step = remaining.pop()
        if step is None:
            continue
        if not isinstance(step, dict):
            raise TypeError(f"expected an object, got {type(step).__name__}")
        if step.get("type") == "Sequence":
            remaining += reversed(step[key])
        else:
            steps.append(step)
    return steps


def _is_sentencepiece_normalizer(normalizer: Mapping[str, Any]) -> bool:
    """Whether a normalizer is one that replaces SentencePiece's own (transformers/convert_slow_tokenizer.py)."""
    match normalizer:
        case {"type": "Precompiled"} | {"type": "Strip"}:
            return True
        case {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " " | "\u2581"}:
            return True
    return False


def _is_plain_metaspace(step: Mapping[str, Any]) -> bool:
    """Whether a Metaspace adds ▁ before each text and for each space. prepend_scheme was once add_prefix_space."""
    scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
    return (scheme, step.get("replacement", WORD_BOUNDARY)) == ("always", WORD_BOUNDARY)


def _adds_expected_specials(post_processor: Any) -> bool:
    match [step for step in _steps(post_processor, "processors") if step.get("type") != "ByteLevel"]:
        case [{"type": "RobertaProcessing", "cls": [cls, _], "sep": [sep, _]}]:
            return (cls, sep) == (BOS, EOS)
        case [{"type": "TemplateProcessing", "single": [*single], "pair": [*pair]}]:
            names = [[part["id"] for each in template for part in each.values()] for template in (single, pair)]
            return names == [[BOS, "A", EOS], [BOS, "A", EOS, EOS, "B", EOS]]
    return False


# Byte-level BPE


def _merges_text(model: Mapping[str, Any]) -> str:
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return "".join([MERGES_HEADER, *(f"{pair}\n" for pair in merges)])


def _byte_level_files(vocab: Mapping[str, int], merges: str, vocab_size: int) -> dict[str, str | bytes]:
    """Writes a dictionary like RoBERTa's, whose symbols are the BPE ids of pieces, `<mask>`, and filler words."""
    _check_specials([vocab.get(special) for special in _SPECIALS])
    by_id = {i: piece for piece, i in vocab.items() if i < vocab_size}
    mask = vocab.get(MASK, -1)
    if not 4 <= mask < vocab_size:
        raise CheckpointError(f"fairseq masks with {MASK}, which this model's tokenizer does not have")
    encoder = _bpe_ids(merges)
    for i in sorted(by_id.keys() - {0, 1, 2, 3, mask}):
        if not _FILLER.fullmatch(by_id[i]):
            encoder.setdefault(by_id[i], len(encoder))
    fillers = (word for word in map("madeupword{:04d}".format, itertools.count()) if word not in vocab)
    symbols = []
    for i in range(len(_SPECIALS), vocab_size):
        piece = MASK if i == mask else by_id.get(i) or next(fillers)
        symbols.append(str(encoder[piece]) if piece in encoder and i != mask else piece)
    return {
        DICTIONARY_FILE: padded_dictionary(symbols, vocab_size),
        ENCODER_FILE: json.dumps(encoder, ensure_ascii=False),
        MERGES_FILE: merges,
    }


def _bpe_ids(merges: str) -> dict[str, int]:
    """Piece -> BPE id, numbered as in GPT-2's encoder.json: bytes in the order of their characters, then merges."""
    pieces = dict.fromkeys(sorted(byte_alphabet()))
    alphabet = {*pieces, " "}
    for line in merges.split("\n")[1:-1]:
        pair = line.split()
        if len(pair) != 2 or not alphabet.issuperset(line):
            raise CheckpointError(f"fairseq's BPE merges two pieces of bytes; this model's merges {line[:80]!a}")
        pieces["".join(pair)] = None
    return {piece: i for i, piece in enumerate(pieces)}


def _check_specials(ids: Sequence[Any]) -> None:
    if ids != [0, 1, 2, 3]:
        found = ", ".join(f"{special} {i}" for special, i in zip(_SPECIALS, ids, strict=True))
        raise CheckpointError(
            f"fairseq's special tokens have the ids 0, 1, 2 and 3; this model's tokenizer has {found}"
        )


# SentencePiece


def dictionary_symbols(pieces: Sequence[str], layout: str) -> list[str]:
    """The symbols of fairseq's dictionary after the four special ones, for a SentencePiece model's pieces.

    XLM-R's dictionary leaves out the model's own three special pieces, and CamemBERT's repeats them.
    """
    return [*(pieces if layout == "CamemBERT" else pieces[3:]), MASK]


def _sentencepiece_files(whole: Mapping[str, Any], source: bytes | None, vocab_size: int) -> dict[str, str | bytes]:
    """Writes a dictionary like XLM-R's or CamemBERT's, and the source's SentencePiece model or one that is made."""
    vocab = whole["model"]["vocab"]
    names = [piece for piece, _ in vocab] if isinstance(vocab, list) else sorted(vocab, key=vocab.__getitem__)
    layout = "CamemBERT" if tuple(names[: len(_CAMEMBERT_SPECIALS)]) == _CAMEMBERT_SPECIALS else "XLM-R"
    if layout == "XLM-R":
        _check_specials([names.index(special) if special in names else None for special in _SPECIALS])
    if source is None and not isinstance(vocab, list):
        raise CheckpointError("fairseq needs the SentencePiece model of a BPE, which this model does not have")
    if source is None:
        pieces = [(piece, score) for piece, score in vocab[_FOURTH_PIECE[layout] :] if piece != MASK]
        source = _sentencepiece_model(pieces, _charsmap(whole.get("normalizer")))
    return {DICTIONARY_FILE: _sentencepiece_dictionary(source, layout, names, vocab_size), SENTENCEPIECE_FILE: source}


def _sentencepiece_dictionary(model: bytes, layout: str, names: Sequence[str], vocab_size: int) -> str:
    pieces = SentencePiece(model).pieces
    if tuple(pieces[:3]) != _SENTENCEPIECE_SPECIALS or pieces[3:] != names[_FOURTH_PIECE[layout] :][: len(pieces) - 3]:
        raise CheckpointError(
            f"the pieces of {SENTENCEPIECE_FILE} are not those of this model's tokenizer, or not in the order that "
            f"{layout} gives them"
        )
    # Dictionary.load opens dict.txt with universal newlines
    if (multiline := next((piece for piece in pieces if "\n" in piece or "\r" in piece), None)) is not None:
        raise CheckpointError(
            f"this model's tokenizer has the piece {multiline[:80]!a}: fairseq's {DICTIONARY_FILE} has one symbol per "
            "line and cannot represent a line break"
        )
    symbols = dictionary_symbols(pieces, layout)
    if 4 + len(symbols) > vocab_size:
        raise CheckpointError(f"its tokenizer has {len(symbols) - 1} pieces, but the model embeds {vocab_size} ids")
    return padded_dictionary(symbols, vocab_size)


def _charsmap(normalizer: Any) -> bytes:
    """SentencePiece's normalization table, wherever it is in the chain of normalizers; empty if it is not there."""
    try:
        return b"".join(
            base64.b64decode(step["precompiled_charsmap"] or "", validate=True)
            for step in _steps(normalizer, "normalizers")
            if step.get("type") == "Precompiled"
        )
    except binascii.Error as error:
        raise ValueError(f"precompiled_charsmap: {error}") from None


def _sentencepiece_model(pieces: Sequence[tuple[str, float]], charsmap: bytes) -> bytes:
    """Serializes a SentencePiece model (sentencepiece_model.proto) of Unigram pieces and their scores.

    Fields: ModelProto.pieces = 1 (piece = 1, score = 2, type = 3: 2 unknown, 3 control), trainer_spec = 2 (model_type =
    3: 1 unigram; unk_id = 40, bos_id = 41, eos_id = 42, pad_id = 43), normalizer_spec = 3 (precompiled_charsmap = 2).
    """
    entries = [(UNK, 0.0, 2), (BOS, 0.0, 3), (EOS, 0.0, 3), *((piece, score, 1) for piece, score in pieces)]
    proto = b"".join(
        _bytes_field(1, _bytes_field(1, piece.encode()) + b"\x15" + struct.pack("<f", score) + _varint_field(3, kind))
        for piece, score, kind in entries
    )
    trainer = (
        _varint_field(3, 1) + _varint_field(40, 0) + _varint_field(41, 1) + _varint_field(42, 2) + _varint_field(43, -1)
    )
    return proto + _bytes_field(2, trainer) + _bytes_field(3, _bytes_field(2, charsmap))


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _varint_field(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes_field(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content
