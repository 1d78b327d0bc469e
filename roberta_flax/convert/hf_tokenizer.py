"""The tokenizer's files of a directory that transformers wrote, as the files of a converted directory.

The ids are the same: transformers took RoBERTa's, XLM-R's and CamemBERT's from fairseq's dictionaries, and a tokenizer
trained for such a model has its special tokens in the same places. So dict.txt can be written for it. BPE ids are
numbered as GPT-2's are, so RoBERTa's own dict.txt comes back.

What the files say of how text is cut is compared with how it is cut here: refused where ordinary text would get other
ids, a note where it is only odd text that would.
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
_SENTENCEPIECE_SPECIALS = (UNK, BOS, EOS)  # a sentencepiece model's first three pieces
# CamembertTokenizer's names for what its dictionary has twice
_CAMEMBERT_SPECIALS = ("<s>NOTUSED", PAD, "</s>NOTUSED", UNK, "<unk>NOTUSED")
# The id of a sentencepiece model's fourth piece, in a dictionary with its first three once more and in one without
_FOURTH_PIECE = {"CamemBERT": 7, "XLM-R": 4}
TOKENIZER_CLASSES = {"CamemBERT": "CamembertTokenizer", "XLM-R": "XLMRobertaTokenizer"}
_FILLER = re.compile("madeupword[0-9]+")  # Dictionary.pad_to_multiple_
# Settings of the tokenizers package's models, and the values that leave them as they are here
_FIXED: dict[str, tuple[Any, ...]] = {
    "dropout": (None, 0),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "byte_fallback": (None, False),
    "ignore_merges": (None, False),
}
# Tokenizers of transformers that do as fairseq's, or that do as tokenizer.json says
_KNOWN_CLASSES = re.compile("(Roberta|XLMRoberta|Camembert|PreTrained|TokenizersBackend|SentencePieceBackend)")

TokenizerFiles = dict[str, Path | str | bytes]


def read(folders: Sequence[Path], model_type: str, vocab_size: int, notes: list[str]) -> TokenizerFiles:
    """The converted directory's tokenizer files.

    Args:
      folders: where to look, first to last.
      model_type: transformers' name of the kind of model.
      vocab_size: rows of its token embedding; the dictionary is filled up to it.
      notes: what the user should hear of is added.

    Raises:
      CheckpointError: there are none, they are damaged, they cut text otherwise than RoBERTa's do, or their special
        tokens are not where RoBERTa's are.
    """
    for folder in folders:
        config = _TokenizerConfig.read(folder)
        if (folder / SENTENCEPIECE_FILE).is_file():
            _check_behavior(config, byte_level=False, notes=notes)
            return _of_sentencepiece(config, model_type, vocab_size)
        if (folder / VOCAB_FILE).is_file() and (folder / HF_MERGES_FILE).is_file():
            _check_behavior(config, byte_level=True, notes=notes)
            return _of_vocab_and_merges(config, vocab_size)
        if config.tokenizer is not None:
            return _of_tokenizer_json(config, config.tokenizer, vocab_size, notes)
    raise CheckpointError(
        f"no tokenizer in {' or '.join(map(str, folders))}: put {VOCAB_FILE} and {HF_MERGES_FILE}, "
        f"{SENTENCEPIECE_FILE}, or {TOKENIZER_FILE} there, or name the directory that has them with bpe_dir (--bpe-dir)"
    )


def merges_text(path: Path) -> str:
    """merges.txt as vocab.bpe: with the line of a version at the front and a line break at the end."""
    text = read_text(path)
    return (text if text.startswith("#version") else MERGES_HEADER + text).rstrip("\n") + "\n"


@dataclass(frozen=True)
class _TokenizerConfig:
    """What a folder says of a tokenizer beside its vocabulary.

    Attributes:
      folder: the folder.
      settings: tokenizer_config.json; empty where there is none.
      tokenizer: tokenizer.json; None where there is none.
      added: the tokens that were added to the vocabulary, and their ids, of all files.
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
        with _well_formed(folder / TOKENIZER_FILE):
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
def _well_formed(path: Path) -> Iterator[None]:
    """What a block finds wrong with the form of a file, as a CheckpointError that names it."""
    try:
        yield
    except CheckpointError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, struct.error) as error:
        raise CheckpointError(f"{path} is damaged ({shortened(repr(error))})") from None


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(shortened(name) for name in names[:5]) + more


# how text is cut


def _check_behavior(config: _TokenizerConfig, byte_level: bool, notes: list[str]) -> None:
    """Raises CheckpointError where text is cut otherwise than here; adds notes of what only some texts meet."""
    prefix_space = bool(config.settings.get("add_prefix_space"))
    if config.tokenizer is not None:
        with _well_formed(config.tokenizer_file):
            if other := _other_behavior(config.tokenizer, byte_level):
                usual = "ByteLevel alone" if byte_level else "sentencepiece's normalizer and Metaspace"
                raise CheckpointError(
                    f"{config.tokenizer_file} cuts text in a way that encode() here cannot: it has {_some(other)}; "
                    f"expected {usual}, as RoBERTa's have. Name another tokenizer with bpe_dir (--bpe-dir) if the "
                    "model was not trained with it"
                )
            if "add_prefix_space" not in config.settings:  # transformers takes it before tokenizer.json's
                cutters = _steps(config.tokenizer.get("pre_tokenizer"), "pretokenizers")
                prefix_space = any(step.get("add_prefix_space") for step in cutters)
            if not _adds_our_specials(config.tokenizer.get("post_processor")):
                notes.append(
                    f"{config.tokenizer_file} does not make <s> a </s> and <s> a </s></s> b </s> of texts; encode() "
                    "does"
                )
    if byte_level and prefix_space:
        notes.append(f"{config.folder} adds a space before each text; encode() here does not: write it yourself")
    if others := [token for token in config.added if token not in (*_SPECIALS, MASK, *_CAMEMBERT_SPECIALS)]:
        notes.append(
            f"{config.folder} adds {len(others)} tokens to the vocabulary ({_some(others)}); encode() here cuts them "
            "into pieces"
        )
    named = config.settings.get("tokenizer_class")
    if isinstance(named, str) and not _KNOWN_CLASSES.match(named):
        notes.append(f"{config.folder} is for {shortened(named)}; encode() here does as RobertaTokenizer does")


def _other_behavior(tokenizer: Mapping[str, Any], byte_level: bool) -> list[str]:
    """What there is in tokenizer.json that encode() here does not do."""
    model, kind = tokenizer["model"], _kind(tokenizer["model"])
    other = [] if kind == "BPE" or (kind == "Unigram" and not byte_level) else [f"a model of type {kind}"]
    other += [
        f"the normalizer {str(step.get('type'))[:40]}"
        for step in _steps(tokenizer.get("normalizer"), "normalizers")
        if byte_level or not _is_of_sentencepiece(step)
    ]
    cutters = _steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    kinds = [str(step.get("type"))[:40] for step in cutters]
    if kinds not in ([["ByteLevel"]] if byte_level else [["Metaspace"], ["WhitespaceSplit", "Metaspace"]]):
        other.append(f"the pre-tokenizer {_some(kinds) or None}")
    for step in cutters:
        if not step.get("use_regex", True):
            other.append("use_regex=False")
        if step.get("type") == "Metaspace" and not _is_plain_metaspace(step):
            other.append("a Metaspace that does not put \u2581 before each text")
    return other + [
        f"{key}={str(model[key])[:40]}" for key, harmless in _FIXED.items() if model.get(key) not in harmless
    ]


def _kind(model: Mapping[str, Any]) -> str:
    """A model's type, which the tokenizers package did not write at first."""
    return str(model.get("type") or ("Unigram" if isinstance(model.get("vocab"), list) else "BPE"))[:40]


def _steps(chain: Any, inside: str) -> list[dict[str, Any]]:
    """The parts of a normalizer, pre-tokenizer or post-processor in order, those of sequences in their place."""
    left, steps = [chain], []
    while left:
        step = left.pop()
        if step is None:
            continue
        if not isinstance(step, dict):
            raise TypeError(f"expected an object, got {type(step).__name__}")
        if step.get("type") == "Sequence":
            left += reversed(step[inside])
        else:
            steps.append(step)
    return steps


def _is_of_sentencepiece(normalizer: Mapping[str, Any]) -> bool:
    """Whether it is one of those that stand for sentencepiece's own (transformers/convert_slow_tokenizer.py)."""
    match normalizer:
        case {"type": "Precompiled"} | {"type": "Strip"}:
            return True
        case {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " " | "\u2581"}:
            return True
    return False


def _is_plain_metaspace(step: Mapping[str, Any]) -> bool:
    """(prepend_scheme was add_prefix_space once.)"""
    scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
    return (scheme, step.get("replacement", WORD_BOUNDARY)) == ("always", WORD_BOUNDARY)


def _adds_our_specials(post_processor: Any) -> bool:
    match [step for step in _steps(post_processor, "processors") if step.get("type") != "ByteLevel"]:
        case [{"type": "RobertaProcessing", "cls": [cls, _], "sep": [sep, _]}]:
            return (cls, sep) == (BOS, EOS)
        case [{"type": "TemplateProcessing", "single": [*single], "pair": [*pair]}]:
            names = [[part["id"] for each in template for part in each.values()] for template in (single, pair)]
            return names == [[BOS, "A", EOS], [BOS, "A", EOS, EOS, "B", EOS]]
    return False


# byte-level BPE


def _of_vocab_and_merges(config: _TokenizerConfig, vocab_size: int) -> TokenizerFiles:
    path, merges_path = config.folder / VOCAB_FILE, config.folder / HF_MERGES_FILE
    vocab, merges = read_json(path), merges_text(merges_path)
    files = _over_byte_level(path, vocab, merges_path, merges, vocab_size, config.added)
    if config.tokenizer is not None:
        with _well_formed(config.tokenizer_file):
            model = config.tokenizer["model"]
            _check_same_pieces(config, model, path, {i: piece for piece, i in vocab.items() if i >= len(_SPECIALS)})
            if _merges_of(model).partition("\n")[2] != merges.partition("\n")[2]:
                raise _disagreement(config, merges_path, "merges")
    return files


def _merges_of(model: Mapping[str, Any]) -> str:
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return "".join([MERGES_HEADER, *(f"{pair}\n" for pair in merges)])


def _over_byte_level(
    path: Path, vocab: Mapping[str, Any], merges_path: Path, merges: str, vocab_size: int, added: Mapping[str, int]
) -> TokenizerFiles:
    """A dictionary over BPE ids, as RoBERTa's: its symbols are the ids of pieces, `<mask>`, and filler words."""
    if not vocab or not all(type(i) is int and 0 <= i < vocab_size for i in vocab.values()):
        raise CheckpointError(f"{path} should map pieces to ids under the {vocab_size} that the model embeds")
    _check_is_text(path, vocab)
    _check_specials(path, [vocab.get(special) for special in _SPECIALS])
    by_id = {i: piece for piece, i in vocab.items()}
    mask = _mask_id(vocab, added)
    if not 4 <= mask < vocab_size or by_id.get(mask, MASK) != MASK or len(by_id) != len(vocab):
        raise CheckpointError(f"{path} has two pieces of one id, or its {MASK} (id {mask}) is outside the model's ids")
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
    """Piece -> BPE id, as GPT-2's encoder.json numbers them: bytes by their characters, then what each merge makes."""
    pieces = dict.fromkeys(sorted(byte_alphabet()))
    alphabet = {*pieces, " "}
    for line in merges.split("\n")[1:-1]:
        pair = line.split()
        if len(pair) != 2 or not alphabet.issuperset(line):
            raise CheckpointError(f"{path} should have merges of two BPE pieces, and has {line[:80]!a}")
        pieces["".join(pair)] = None
    return {piece: i for i, piece in enumerate(pieces)}


def _mask_id(vocab: Mapping[str, int], added: Mapping[str, int]) -> int:
    """Where `<mask>` is: in the vocabulary, among the tokens added to it, or after it, where transformers adds it."""
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
                "no UTF-8 form: it is damaged; get it again"
            ) from None


def _check_specials(path: Path, ids: Sequence[Any]) -> None:
    if ids != [0, 1, 2, 3]:
        found = ", ".join(f"{special} {i}" for special, i in zip(_SPECIALS, ids, strict=True))
        raise CheckpointError(f"{path} has its special tokens elsewhere than RoBERTa: {found}; expected 0, 1, 2, 3")


# sentencepiece


def _of_sentencepiece(config: _TokenizerConfig, model_type: str, vocab_size: int) -> TokenizerFiles:
    path = config.folder / SENTENCEPIECE_FILE
    pieces = SentencePiece.read(path).pieces
    layout = _layout(config.settings, model_type)
    _check_layout(config, path, len(pieces), layout, vocab_size)
    files = _over_sentencepiece(path, path, pieces, layout, vocab_size)
    if config.tokenizer is not None:
        with _well_formed(config.tokenizer_file):
            _check_same_pieces(
                config, config.tokenizer["model"], path, dict(enumerate(pieces[3:], _FOURTH_PIECE[layout]))
            )
    return files


def _layout(settings: Mapping[str, Any], model_type: str) -> str:
    """Whose dictionary a sentencepiece model's is like, by the tokenizer's class, where that is one of the two."""
    named = str(settings.get("tokenizer_class"))
    by_class = named if named.startswith(("Camembert", "XLMRoberta")) else model_type
    return "CamemBERT" if by_class.lower().startswith("camembert") else "XLM-R"


def _check_layout(config: _TokenizerConfig, path: Path, pieces: int, layout: str, vocab_size: int) -> None:
    """Raises CheckpointError where the embedding is of the other dictionary's size, and no added tokens explain it."""
    sizes = {name: first + pieces - 3 + 1 for name, first in _FOURTH_PIECE.items()}  # `<mask>` is the last
    other = next(name for name in sizes if name != layout)
    added = {i for token, i in config.added.items() if token != MASK}
    explained = sizes[layout] < vocab_size and added.issuperset(range(sizes[layout], vocab_size))
    if vocab_size == sizes[other] and not explained:
        raise CheckpointError(
            f"{path} has {pieces} pieces and the model embeds {vocab_size} tokens, as {other} would; {layout}, the one "
            f"of tokenizer_class or model_type, would embed {sizes[layout]}: write tokenizer_class "
            f"{TOKENIZER_CLASSES[other]} in {TOKENIZER_CONFIG_FILE}, or tokens that were added in {ADDED_TOKENS_FILE}"
        )


def dictionary_symbols(pieces: Sequence[str], layout: str) -> list[str]:
    """What fairseq's dictionary has after its four specials, of a sentencepiece model's pieces.

    XLM-R's leaves out the model's own three specials, CamemBERT's has them once more.
    """
    return [*(pieces if layout == "CamemBERT" else pieces[3:]), MASK]


def _over_sentencepiece(
    path: Path, model: Path | bytes, pieces: Sequence[str], layout: str, vocab_size: int
) -> TokenizerFiles:
    if tuple(pieces[:3]) != _SENTENCEPIECE_SPECIALS:
        raise CheckpointError(
            f"{path} begins with {_some(pieces[:3])}; a RoBERTa's begins with {', '.join(_SENTENCEPIECE_SPECIALS)}"
        )
    # Dictionary.load opens dict.txt with universal newlines
    if (broken := next((piece for piece in pieces if "\n" in piece or "\r" in piece), None)) is not None:
        raise CheckpointError(
            f"{path} has the piece {broken[:80]!a}: fairseq's {DICTIONARY_FILE} has a symbol on each line and cannot "
            "hold a line break; a tokenizer without that piece is needed"
        )
    symbols = dictionary_symbols(pieces, layout)
    if 4 + len(symbols) > vocab_size:
        raise CheckpointError(f"{path} has {len(symbols) - 1} pieces, over the {vocab_size} that the model embeds")
    return {DICTIONARY_FILE: padded_dictionary(symbols, vocab_size), SENTENCEPIECE_FILE: model}


# tokenizer.json


def _check_same_pieces(
    config: _TokenizerConfig, model: Mapping[str, Any], path: Path, pieces: Mapping[int, str]
) -> None:
    """Raises CheckpointError unless tokenizer.json, which transformers takes first, has the pieces of `path`, by id."""
    vocab = model["vocab"]
    ids = {i: piece for piece, i in vocab.items()} if isinstance(vocab, dict) else dict(enumerate(p for p, _ in vocab))
    first = min(pieces, default=0)
    theirs = {i: piece for i, piece in ids.items() if i >= first and piece != MASK}
    if theirs != {i: piece for i, piece in pieces.items() if piece != MASK}:
        raise _disagreement(config, path, "pieces")


def _disagreement(config: _TokenizerConfig, path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{config.tokenizer_file} and {path.name} beside it have other {what}, or in another order: they are of two "
        "tokenizers; remove the one that the model was not trained with"
    )


def _of_tokenizer_json(
    config: _TokenizerConfig, tokenizer: Mapping[str, Any], vocab_size: int, notes: list[str]
) -> TokenizerFiles:
    """tokenizer.json alone, of the tokenizers package: byte-level BPE, or a Unigram, made a sentencepiece model."""
    path = config.tokenizer_file
    with _well_formed(path):
        model = tokenizer["model"]
        cutters = [step.get("type") for step in _steps(tokenizer.get("pre_tokenizer"), "pretokenizers")]
        kind = _kind(model)
        if kind == "BPE" and "ByteLevel" in cutters:
            _check_behavior(config, byte_level=True, notes=notes)
            specials = {token: i for token, i in config.added.items() if token in (*_SPECIALS, MASK)}
            vocab = {**specials, **model["vocab"]}
            return _over_byte_level(path, vocab, path, _merges_of(model), vocab_size, {})
        if kind == "Unigram":
            _check_behavior(config, byte_level=False, notes=notes)
            return _over_unigram(path, tokenizer, vocab_size)
    raise CheckpointError(f"{path} is neither byte-level BPE nor Unigram ({kind}), which RoBERTa and XLM-R have")


def _over_unigram(path: Path, tokenizer: Mapping[str, Any], vocab_size: int) -> TokenizerFiles:
    scored = [(str(piece), float(score)) for piece, score in tokenizer["model"]["vocab"]]
    names = [piece for piece, _ in scored]
    _check_is_text(path, names)
    layout = "CamemBERT" if tuple(names[: len(_CAMEMBERT_SPECIALS)]) == _CAMEMBERT_SPECIALS else "XLM-R"
    if layout == "XLM-R":
        _check_specials(path, [names.index(special) if special in names else None for special in _SPECIALS])
    pieces = [(piece, score) for piece, score in scored[_FOURTH_PIECE[layout] :] if piece != MASK]
    proto = _sentencepiece_model(pieces, _charsmap(tokenizer.get("normalizer")))
    return _over_sentencepiece(path, proto, SentencePiece(proto).pieces, layout, vocab_size)


def _charsmap(normalizer: Any) -> bytes:
    """sentencepiece's table of normalization, wherever in the chain of normalizers it stands; empty where it is not."""
    try:
        return b"".join(
            base64.b64decode(step["precompiled_charsmap"] or "", validate=True)
            for step in _steps(normalizer, "normalizers")
            if step.get("type") == "Precompiled"
        )
    except binascii.Error as error:
        raise ValueError(f"precompiled_charsmap: {error}") from None


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
