"""Translates the tokenizer files of a Transformers model to those of a converted directory.

Token ids stay the same. Transformers took the ids of RoBERTa, XLM-R and CamemBERT from fairseq's dictionaries, and a
tokenizer trained for such a model has its special tokens in the same places, so a dict.txt can be written for it. BPE
ids are numbered as GPT-2's are, so that RoBERTa's vocabulary translates back to RoBERTa's own dict.txt.

The settings in the files are compared with the way encode() tokenizes. A tokenizer that would give ordinary text other
ids is refused. If only unusual text would get other ids, the user gets a note.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import json
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roberta_flax.convert.source import padded_dictionary, read_json
from roberta_flax.errors import CheckpointError, shortened
from roberta_flax.files import read_text
from roberta_flax.text.tokenizer import (
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

VOCAB_FILE = "vocab.json"
HF_MERGES_FILE = "merges.txt"
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
ADDED_TOKENS_FILE = "added_tokens.json"
FILES = (VOCAB_FILE, HF_MERGES_FILE, SENTENCEPIECE_FILE, TOKENIZER_FILE, TOKENIZER_CONFIG_FILE, ADDED_TOKENS_FILE)
_SPECIALS = (BOS, PAD, EOS, UNK)
_SENTENCEPIECE_SPECIALS = (UNK, BOS, EOS)  # the first three pieces of a SentencePiece model
# CamembertTokenizer's names for the special tokens, some of which its dictionary contains twice
_CAMEMBERT_SPECIALS = ("<s>NOTUSED", PAD, "</s>NOTUSED", UNK, "<unk>NOTUSED")
# The token id of a SentencePiece model's fourth piece: CamemBERT's dictionary repeats the first three, XLM-R's does not
_FOURTH_PIECE = {"CamemBERT": 7, "XLM-R": 4}
TOKENIZER_CLASSES = {"CamemBERT": "CamembertTokenizer", "XLM-R": "XLMRobertaTokenizer"}
_FILLER = re.compile("madeupword[0-9]+")  # Dictionary.pad_to_multiple_
# Settings of the tokenizers package's models, and the values with which they tokenize as encode() does
_ACCEPTED_SETTINGS: dict[str, tuple[Any, ...]] = {
    "dropout": (None, 0),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "byte_fallback": (None, False),
    "ignore_merges": (None, False),
}
# Tokenizer classes of Transformers that tokenize as fairseq does, or as tokenizer.json specifies
_KNOWN_CLASSES = re.compile("(Roberta|XLMRoberta|Camembert|PreTrained|TokenizersBackend|SentencePieceBackend)")

TokenizerFiles = dict[str, Path | str | bytes]


def read(folders: Sequence[Path], model_type: str, vocab_size: int, notes: list[str]) -> TokenizerFiles:
    """Reads the tokenizer of a Transformers model.

    Args:
      folders: the folders to search, in order.
      model_type: the model_type of Transformers.
      vocab_size: the number of rows of the token embedding, to which the dictionary is padded.
      notes: a list to which messages for the user are appended.

    Returns:
      The tokenizer's files in a converted directory: file name -> a file to copy, or the content to write.

    Raises:
      CheckpointError: no tokenizer was found, its files are damaged, it tokenizes differently from RoBERTa's, or its
        special tokens have other ids than RoBERTa's.
    """
    for folder in folders:
        config = _TokenizerConfig.read(folder)
        if (folder / SENTENCEPIECE_FILE).is_file():
            _check_behavior(config, byte_level=False, notes=notes)
            return _from_sentencepiece(config, model_type, vocab_size)
        if (folder / VOCAB_FILE).is_file() and (folder / HF_MERGES_FILE).is_file():
            _check_behavior(config, byte_level=True, notes=notes)
            return _from_vocab_and_merges(config, vocab_size)
        if config.tokenizer is not None:
            return _from_tokenizer_json(config, config.tokenizer, vocab_size, notes)
    raise CheckpointError(
        f"no tokenizer in {' or '.join(map(str, folders))}: put {VOCAB_FILE} and {HF_MERGES_FILE}, "
        f"{SENTENCEPIECE_FILE}, or {TOKENIZER_FILE} there, or pass their directory as bpe_dir (--bpe-dir)"
    )


def merges_text(path: Path) -> str:
    """The text of a merges.txt in the form of vocab.bpe, with a version line first and a line break at the end."""
    text = read_text(path)
    return (text if text.startswith("#version") else MERGES_HEADER + text).rstrip("\n") + "\n"


@dataclass(frozen=True)
class _TokenizerConfig:
    """The settings of a tokenizer, apart from its vocabulary.

    Attributes:
      folder: the folder that contains the files.
      settings: the content of tokenizer_config.json; empty if there is no such file.
      tokenizer: the content of tokenizer.json; None if there is no such file.
      added: the tokens that were added to the vocabulary, and their ids, from all files.
    """

    folder: Path
    settings: Mapping[str, Any]
    tokenizer: Mapping[str, Any] | None
    added: Mapping[str, int]

    @classmethod
    def read(cls, folder: Path) -> _TokenizerConfig:
        settings, tokenizer, added = (
            read_json(folder / name) if (folder / name).is_file() else None
            for name in (TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, ADDED_TOKENS_FILE)
        )
        with _naming_damaged_file(folder / TOKENIZER_FILE):
            found = [(token["content"], token["id"]) for token in (tokenizer or {}).get("added_tokens") or []]
        decoder = (settings or {}).get("added_tokens_decoder")
        for key, token in decoder.items() if isinstance(decoder, dict) else ():
            if isinstance(token, dict) and re.fullmatch("[0-9]{1,9}", key):
                found.append((token.get("content"), int(key)))
        found += (added or {}).items()
        return cls(
            folder,
            settings or {},
            tokenizer,
            {token: i for token, i in found if isinstance(token, str) and type(i) is int},
        )

    @property
    def tokenizer_file(self) -> Path:
        return self.folder / TOKENIZER_FILE


@contextmanager
def _naming_damaged_file(path: Path) -> Iterator[None]:
    """Turns the exceptions that malformed content raises in the block into a CheckpointError that names the file."""
    try:
        yield
    except CheckpointError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, struct.error) as error:
        raise CheckpointError(f"{path} is damaged ({shortened(repr(error))})") from None


def _list_some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(shortened(name) for name in names[:5]) + more


# Comparison with the way encode() tokenizes


def _check_behavior(config: _TokenizerConfig, byte_level: bool, notes: list[str]) -> None:
    """Raises CheckpointError if ordinary text would get other ids, and adds notes if only some texts would."""
    prefix_space = bool(config.settings.get("add_prefix_space"))
    if config.tokenizer is not None:
        with _naming_damaged_file(config.tokenizer_file):
            if unsupported := _unsupported_behavior(config.tokenizer, byte_level):
                expected = "ByteLevel alone" if byte_level else "SentencePiece's normalizer and Metaspace"
                raise CheckpointError(
                    f"{config.tokenizer_file} tokenizes in a way that encode() does not support: it has "
                    f"{_list_some(unsupported)}; expected {expected}, as in RoBERTa's. If the model was not trained "
                    "with it, pass another tokenizer as bpe_dir (--bpe-dir)"
                )
            if "add_prefix_space" not in config.settings:  # which takes precedence over tokenizer.json
                pre_tokenizers = _steps(config.tokenizer.get("pre_tokenizer"), "pretokenizers")
                prefix_space = any(step.get("add_prefix_space") for step in pre_tokenizers)
            if not _adds_expected_specials(config.tokenizer.get("post_processor")):
                notes.append(
                    f"{config.tokenizer_file} does not encode texts as <s> a </s> and <s> a </s></s> b </s>, as "
                    "encode() does"
                )
    if byte_level and prefix_space:
        notes.append(f"{config.folder} adds a space before each text, but encode() does not: add it to your texts")
    if others := [token for token in config.added if token not in (*_SPECIALS, MASK, *_CAMEMBERT_SPECIALS)]:
        notes.append(
            f"{config.folder} adds {len(others)} tokens to the vocabulary ({_list_some(others)}); encode() splits them "
            "into pieces"
        )
    named = config.settings.get("tokenizer_class")
    if isinstance(named, str) and not _KNOWN_CLASSES.match(named):
        notes.append(f"{config.folder} is for {shortened(named)}; encode() does what RobertaTokenizer does")


def _unsupported_behavior(tokenizer: Mapping[str, Any], byte_level: bool) -> list[str]:
    """Describes each part of a tokenizer.json that encode() does not support."""
    model, kind = tokenizer["model"], _model_kind(tokenizer["model"])
    unsupported = [] if kind == "BPE" or (kind == "Unigram" and not byte_level) else [f"a model of type {kind}"]
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


def _model_kind(model: Mapping[str, Any]) -> str:
    """The type of a model, which early versions of the tokenizers package did not write."""
    return str(model.get("type") or ("Unigram" if isinstance(model.get("vocab"), list) else "BPE"))[:40]


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


def _from_vocab_and_merges(config: _TokenizerConfig, vocab_size: int) -> TokenizerFiles:
    path, merges_path = config.folder / VOCAB_FILE, config.folder / HF_MERGES_FILE
    vocab, merges = read_json(path), merges_text(merges_path)
    files = _byte_level_files(path, vocab, merges_path, merges, vocab_size, config.added)
    if config.tokenizer is not None:
        with _naming_damaged_file(config.tokenizer_file):
            model = config.tokenizer["model"]
            _check_same_pieces(config, model, path, {i: piece for piece, i in vocab.items() if i >= len(_SPECIALS)})
            if _merges_text(model).partition("\n")[2] != merges.partition("\n")[2]:
                raise _disagreement(config, merges_path, "merges")
    return files


def _merges_text(model: Mapping[str, Any]) -> str:
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return "".join([MERGES_HEADER, *(f"{pair}\n" for pair in merges)])


def _byte_level_files(
    path: Path, vocab: Mapping[str, Any], merges_path: Path, merges: str, vocab_size: int, added: Mapping[str, int]
) -> TokenizerFiles:
    """Writes a dictionary like RoBERTa's, whose symbols are the BPE ids of pieces, `<mask>`, and filler words."""
    if not vocab or not all(type(i) is int and 0 <= i < vocab_size for i in vocab.values()):
        raise CheckpointError(f"{path} should map pieces to ids under the {vocab_size} that the model embeds")
    _check_is_text(path, vocab)
    _check_specials(path, [vocab.get(special) for special in _SPECIALS])
    by_id = {i: piece for piece, i in vocab.items()}
    mask = _mask_id(vocab, added)
    if not 4 <= mask < vocab_size or by_id.get(mask, MASK) != MASK or len(by_id) != len(vocab):
        raise CheckpointError(
            f"{path} has two pieces with one id, or its {MASK} (id {mask}) is outside the model's ids"
        )
    encoder = _bpe_ids(merges_path, merges)
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


def _bpe_ids(path: Path, merges: str) -> dict[str, int]:
    """Piece -> BPE id, numbered as in GPT-2's encoder.json: bytes in the order of their characters, then merges."""
    pieces = dict.fromkeys(sorted(byte_alphabet()))
    alphabet = {*pieces, " "}
    for line in merges.split("\n")[1:-1]:
        pair = line.split()
        if len(pair) != 2 or not alphabet.issuperset(line):
            raise CheckpointError(f"{path} should contain merges of two BPE pieces, got {line[:80]!a}")
        pieces["".join(pair)] = None
    return {piece: i for i, piece in enumerate(pieces)}


def _mask_id(vocab: Mapping[str, int], added: Mapping[str, int]) -> int:
    """The id of `<mask>`: from the vocabulary, from the added tokens, or the next id, which Transformers gives it."""
    if MASK in vocab:
        return vocab[MASK]
    return added[MASK] if MASK in added else max(vocab.values()) + 1


def _check_is_text(path: Path, pieces: Iterable[str]) -> None:
    for piece in pieces:
        try:
            piece.encode()
        except UnicodeEncodeError as error:
            raise CheckpointError(
                f"{path} has the lone surrogate U+{ord(piece[error.start]):04X} in the piece {piece[:80]!a}, which has "
                "no UTF-8 form: the file is damaged; copy or download it again"
            ) from None


def _check_specials(path: Path, ids: Sequence[Any]) -> None:
    if ids != [0, 1, 2, 3]:
        found = ", ".join(f"{special} {i}" for special, i in zip(_SPECIALS, ids, strict=True))
        raise CheckpointError(f"{path} gives special tokens other ids than RoBERTa: {found}; expected 0, 1, 2, 3")


# SentencePiece


def _from_sentencepiece(config: _TokenizerConfig, model_type: str, vocab_size: int) -> TokenizerFiles:
    path = config.folder / SENTENCEPIECE_FILE
    pieces = SentencePiece.read(path).pieces
    layout = _layout(config.settings, model_type)
    _check_layout(config, path, len(pieces), layout, vocab_size)
    files = _sentencepiece_files(path, path, pieces, layout, vocab_size)
    if config.tokenizer is not None:
        with _naming_damaged_file(config.tokenizer_file):
            _check_same_pieces(
                config, config.tokenizer["model"], path, dict(enumerate(pieces[3:], _FOURTH_PIECE[layout]))
            )
    return files


def _layout(settings: Mapping[str, Any], model_type: str) -> str:
    """The numbering of a SentencePiece model's ids, by the tokenizer's class or the model type."""
    named = str(settings.get("tokenizer_class"))
    by_class = named if named.startswith(("Camembert", "XLMRoberta")) else model_type
    return "CamemBERT" if by_class.lower().startswith("camembert") else "XLM-R"


def _check_layout(config: _TokenizerConfig, path: Path, pieces: int, layout: str, vocab_size: int) -> None:
    """Raises CheckpointError if the embedding has the other numbering's size and added tokens do not explain it."""
    sizes = {name: first + pieces - 3 + 1 for name, first in _FOURTH_PIECE.items()}  # `<mask>` is the last
    other = next(name for name in sizes if name != layout)
    added = {i for token, i in config.added.items() if token != MASK}
    explained = sizes[layout] < vocab_size and added.issuperset(range(sizes[layout], vocab_size))
    if vocab_size == sizes[other] and not explained:
        raise CheckpointError(
            f"{path} has {pieces} pieces and the model embeds {vocab_size} tokens, as {other} would; {layout}, which "
            f"tokenizer_class or model_type implies, would embed {sizes[layout]}: write tokenizer_class "
            f"{TOKENIZER_CLASSES[other]} in {TOKENIZER_CONFIG_FILE}, or list added tokens in {ADDED_TOKENS_FILE}"
        )


def dictionary_symbols(pieces: Sequence[str], layout: str) -> list[str]:
    """The symbols of fairseq's dictionary after the four special ones, for a SentencePiece model's pieces.

    XLM-R's dictionary leaves out the model's own three special pieces, and CamemBERT's repeats them.
    """
    return [*(pieces if layout == "CamemBERT" else pieces[3:]), MASK]


def _sentencepiece_files(
    path: Path, model: Path | bytes, pieces: Sequence[str], layout: str, vocab_size: int
) -> TokenizerFiles:
    if tuple(pieces[:3]) != _SENTENCEPIECE_SPECIALS:
        raise CheckpointError(
            f"{path} begins with {_list_some(pieces[:3])}; expected {', '.join(_SENTENCEPIECE_SPECIALS)}"
        )
    # Dictionary.load opens dict.txt with universal newlines
    if (multiline := next((piece for piece in pieces if "\n" in piece or "\r" in piece), None)) is not None:
        raise CheckpointError(
            f"{path} has the piece {multiline[:80]!a}: fairseq's {DICTIONARY_FILE} has one symbol per line and cannot "
            "represent a line break; use a tokenizer without that piece"
        )
    symbols = dictionary_symbols(pieces, layout)
    if 4 + len(symbols) > vocab_size:
        raise CheckpointError(f"{path} has {len(symbols) - 1} pieces, but the model embeds only {vocab_size} tokens")
    return {DICTIONARY_FILE: padded_dictionary(symbols, vocab_size), SENTENCEPIECE_FILE: model}


# tokenizer.json


def _check_same_pieces(
    config: _TokenizerConfig, model: Mapping[str, Any], path: Path, pieces: Mapping[int, str]
) -> None:
    """Raises CheckpointError unless tokenizer.json, which Transformers prefers, has the pieces of `path`, by id."""
    vocab = model["vocab"]
    ids = {i: piece for piece, i in vocab.items()} if isinstance(vocab, dict) else dict(enumerate(p for p, _ in vocab))
    first = min(pieces, default=0)
    json_pieces = {i: piece for i, piece in ids.items() if i >= first and piece != MASK}
    if json_pieces != {i: piece for i, piece in pieces.items() if piece != MASK}:
        raise _disagreement(config, path, "pieces")


def _disagreement(config: _TokenizerConfig, path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{config.tokenizer_file} and {path.name} beside it have different {what}, or a different order: they belong "
        "to two tokenizers; remove the one that the model was not trained with"
    )


def _from_tokenizer_json(
    config: _TokenizerConfig, tokenizer: Mapping[str, Any], vocab_size: int, notes: list[str]
) -> TokenizerFiles:
    """Translates a tokenizer.json alone: byte-level BPE, or a Unigram model, which becomes a SentencePiece model."""
    path = config.tokenizer_file
    with _naming_damaged_file(path):
        model = tokenizer["model"]
        pre_tokenizers = [step.get("type") for step in _steps(tokenizer.get("pre_tokenizer"), "pretokenizers")]
        kind = _model_kind(model)
        if kind == "BPE" and "ByteLevel" in pre_tokenizers:
            _check_behavior(config, byte_level=True, notes=notes)
            specials = {token: i for token, i in config.added.items() if token in (*_SPECIALS, MASK)}
            vocab = {**specials, **model["vocab"]}
            return _byte_level_files(path, vocab, path, _merges_text(model), vocab_size, {})
        if kind == "Unigram":
            _check_behavior(config, byte_level=False, notes=notes)
            return _unigram_files(path, tokenizer, vocab_size)
    raise CheckpointError(f"{path} is neither byte-level BPE nor Unigram ({kind}), which RoBERTa and XLM-R have")


def _unigram_files(path: Path, tokenizer: Mapping[str, Any], vocab_size: int) -> TokenizerFiles:
    scored = [(str(piece), float(score)) for piece, score in tokenizer["model"]["vocab"]]
    names = [piece for piece, _ in scored]
    _check_is_text(path, names)
    layout = "CamemBERT" if tuple(names[: len(_CAMEMBERT_SPECIALS)]) == _CAMEMBERT_SPECIALS else "XLM-R"
    if layout == "XLM-R":
        _check_specials(path, [names.index(special) if special in names else None for special in _SPECIALS])
    pieces = [(piece, score) for piece, score in scored[_FOURTH_PIECE[layout] :] if piece != MASK]
    proto = _sentencepiece_model(pieces, _charsmap(tokenizer.get("normalizer")))
    return _sentencepiece_files(path, proto, SentencePiece(proto).pieces, layout, vocab_size)


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
