"""Builds a tokenizer of the tokenizers package from the files of a vocabulary, as transformers does.

Transformers converts the vocabularies of its slow tokenizers where there is no tokenizer.json
(transformers/convert_slow_tokenizer.py); each function here is one of its converters. PhoBERT's and BERTweet's
tokenizers have none there, and run in Python (models/phobert/tokenization_phobert.py); here they become BPE models.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roberta_flax.convert.source import read_json
from roberta_flax.errors import CheckpointError
from roberta_flax.files import read_text, reading

Settings = Mapping[str, Any]
_METASPACE = "\u2581"
_WORD_END = "</w>"  # of the last piece of a word in PhoBERT's bpe.codes
_CONTINUED = "@@"  # of every other piece in its vocab.txt


@dataclass(frozen=True)
class Built:
    """A tokenizer without special tokens, and what puts them around texts.

    Attributes:
      tokenizer: a tokenizers.Tokenizer.
      post_processor: makes its post-processor, once all tokens have ids.
      known_ids: the number of ids that the vocabulary gives; pieces with larger ids are unknown tokens. None if all
        pieces have ids of their own.
    """

    tokenizer: Any
    post_processor: Callable[[Any, Mapping[str, str]], Any]
    known_ids: int | None = None


def byte_level(paths: Sequence[Path], settings: Settings, vocab_size: int) -> Built:
    """RobertaConverter: vocab.json and merges.txt."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    vocab_file, merges_file = paths
    vocab = read_json(vocab_file)
    # as RobertaTokenizer: the first line is a version, whatever it says
    merges = [tuple(line.split()) for line in read_text(merges_file).split("\n")[1:-1]]
    if wrong := next((pair for pair in merges if len(pair) != 2), None):
        raise CheckpointError(f"{merges_file} should contain merges of two BPE pieces, got {' '.join(wrong)[:80]!a}")
    prefix_space = bool(settings.get("add_prefix_space", False))
    tokenizer = Tokenizer(models.BPE(vocab, merges, continuing_subword_prefix="", end_of_word_suffix=""))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()

    def post_processor(tokenizer: Any, roles: Mapping[str, str]) -> Any:
        sep, cls = ((roles[role], tokenizer.token_to_id(roles[role])) for role in ("sep_token", "cls_token"))
        return processors.RobertaProcessing(sep, cls, trim_offsets=True, add_prefix_space=prefix_space)

    return Built(tokenizer, post_processor)


def wordpiece(paths: Sequence[Path], settings: Settings, vocab_size: int) -> Built:
    """BertConverter: vocab.txt."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocab = {token: i for i, token in enumerate(_lines(paths[0]))}
    unknown = settings.get("unk_token")
    basic = settings.get("do_basic_tokenize", True)
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=unknown if isinstance(unknown, str) else "[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(basic and settings.get("tokenize_chinese_chars", True)),
        strip_accents=settings.get("strip_accents") if basic else False,
        lowercase=bool(basic and settings.get("do_lower_case", True)),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")

    def post_processor(tokenizer: Any, roles: Mapping[str, str]) -> Any:
        cls, sep = roles["cls_token"], roles["sep_token"]
        return _template(tokenizer, [cls, "$A", sep], [cls, "$A", sep, "$B:1", f"{sep}:1"])

    return Built(tokenizer, post_processor)


def xlm_roberta(paths: Sequence[Path], settings: Settings, vocab_size: int) -> Built:
    """XLMRobertaConverter: sentencepiece.bpe.model, whose first three pieces give way to four special tokens."""
    model = SentencePieceModel.read(paths[0])
    specials = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    pieces = [*specials, *((piece, score) for piece, score, _ in model.pieces[3:]), ("<mask>", 0.0)]
    return _sentencepiece(model, pieces, 3, "always", _roberta_template)


def camembert(paths: Sequence[Path], settings: Settings, vocab_size: int) -> Built:
    """CamembertConverter: sentencepiece.bpe.model after five special tokens, which repeat some of its pieces."""
    model = SentencePieceModel.read(paths[0])
    specials = [("<s>NOTUSED", 0.0), ("<pad>", 0.0), ("</s>NOTUSED", 0.0), ("<unk>", 0.0), ("<unk>NOTUSED", -100.0)]
    pieces = [*specials, *((piece, score) for piece, score, _ in model.pieces[1:]), ("<mask>", 0.0)]
    return _sentencepiece(model, pieces, 3, "always", _roberta_template)


def t5(paths: Sequence[Path], settings: Settings, vocab_size: int) -> Built:
    """T5Converter: spiece.model, whose ids are the model's, and extra ids after them."""
    model = SentencePieceModel.read(paths[0])
    extra_ids = settings.get("extra_ids", 100)
    extra = [(f"<extra_id_{i}>", 0.0) for i in reversed(range(extra_ids if type(extra_ids) is int else 0))]
    pieces = [*((piece, score) for piece, score, _ in model.pieces), *extra]
    if settings.get("add_prefix_space", True) is False:
        prepend_scheme = "never"
    else:
        prepend_scheme = "first" if settings.get("legacy") is False else "always"

    def post_processor(tokenizer: Any, roles: Mapping[str, str]) -> Any:
        return _template(tokenizer, ["$A", "</s>"], ["$A", "</s>", "$B", "</s>"])

    return _sentencepiece(model, pieces, model.unk_id, prepend_scheme, post_processor)


def words_of_pieces(paths: Sequence[Path], settings: Settings, vocab_size: int) -> Built:
    """PhobertTokenizer and BertweetTokenizer: vocab.txt and bpe.codes.

    A word's pieces are looked up in vocab.txt once they are merged: the last as it is, the others with "@@". Those
    that it lacks are unknown tokens; here they have ids from `vocab_size` on, so that they can be merged.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    if settings.get("normalization"):
        raise CheckpointError(
            f"{paths[0].parent} normalizes tweets before it splits them (normalization in tokenizer_config.json): this "
            "is not supported; normalize the texts yourself, and remove the setting"
        )
    vocab_file, codes_file = paths
    ids = {str(settings.get(role, default)): i for i, (role, default) in enumerate(_PHOBERT_SPECIALS.items())}
    for line in _lines(vocab_file):
        word, separator, _ = line.strip().rpartition(" ")
        if not separator:
            raise CheckpointError(f"{vocab_file} should contain lines of `piece count`, got {line[:80]!a}")
        ids[word] = len(ids)
    mask = str(settings.get("mask_token", "<mask>"))
    known = len(ids)
    ids.setdefault(mask, known)
    merges = [tuple(line.split()[:-1]) for line in read_text(codes_file).split("\n")[:-1]]
    merges = [pair for pair in merges if len(pair) == 2]

    pieces: dict[str, int | None] = {}
    for word, i in ids.items():
        is_special = i < len(_PHOBERT_SPECIALS) or word == mask
        pieces[word if is_special else word[:-2] if word.endswith(_CONTINUED) else word + _WORD_END] = i
    for left, right in merges:
        for piece in (left, right, left + right):
            pieces.setdefault(piece, None)
    spare = iter(range(max(vocab_size, known + 1), 1 << 31))
    vocab = {piece: next(spare) if i is None else i for piece, i in pieces.items()}
    unknown = next(word for word, i in ids.items() if i == 3)
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token=unknown, end_of_word_suffix=_WORD_END))
    # re.findall(r"\S+\n?", text), with the whitespace of Python's re
    spaces = "".join(rf"\x{{{ord(c):X}}}" for c in map(chr, range(0x3001)) if c.isspace())
    words = Regex(rf"[^{spaces}]+\n?")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(words, behavior="removed", invert=True)
    tokenizer.decoder = decoders.BPEDecoder(suffix=_WORD_END)

    def post_processor(tokenizer: Any, roles: Mapping[str, str]) -> Any:
        cls, sep = roles["cls_token"], roles["sep_token"]
        return _template(tokenizer, [cls, "$A", sep], [cls, "$A", sep, sep, "$B", sep])

    return Built(tokenizer, post_processor, known_ids=known)


_PHOBERT_SPECIALS = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


def _lines(path: Path) -> list[str]:
    return read_text(path).removesuffix("\n").split("\n")


def _template(tokenizer: Any, single: Sequence[str], pair: Sequence[str]) -> Any:
    """A post-processor from templates, whose items other than $A and $B are tokens."""
    from tokenizers import processors

    names = {item.removesuffix(":1") for item in pair if not item.startswith("$")}
    return processors.TemplateProcessing(
        list(single), list(pair), [(name, tokenizer.token_to_id(name)) for name in names]
    )


def _roberta_template(tokenizer: Any, roles: Mapping[str, str]) -> Any:
    return _template(tokenizer, ["<s>", "$A", "</s>"], ["<s>", "$A", "</s>", "</s>", "$B", "</s>"])


# SentencePiece


@dataclass(frozen=True)
class SentencePieceModel:
    """What a sentencepiece model's file says (sentencepiece_model.proto).

    Attributes:
      pieces: the text, the score and the type of each piece.
      is_bpe: whether it is a BPE model; otherwise a unigram model.
      unk_id: the id of the unknown piece.
      charsmap: the compiled normalization.
    """

    pieces: list[tuple[str, float, int]]
    is_bpe: bool
    unk_id: int
    charsmap: bytes

    CONTROL, USER_DEFINED = 3, 4

    @classmethod
    def read(cls, path: Path) -> SentencePieceModel:
        """Reads a file. Raises CheckpointError if it is not a sentencepiece model of one of the two kinds."""
        with reading(path):
            content = path.read_bytes()
        try:
            return cls._parse(content)
        except (ValueError, IndexError, struct.error) as error:
            raise CheckpointError(f"{path} is not a sentencepiece model: {error}") from None

    @classmethod
    def _parse(cls, content: bytes) -> SentencePieceModel:
        pieces: list[tuple[str, float, int]] = []
        trainer: dict[int, Any] = {}
        normalizer: dict[int, Any] = {}
        for field, value in _fields(content):
            if field == 1:
                piece = dict(_fields(_message(value)))
                score = struct.unpack("<f", piece.get(2, bytes(4)))[0]
                pieces.append((_message(piece.get(1, b"")).decode(), score, piece.get(3, 1)))
            elif field == 2:
                trainer = dict(_fields(_message(value)))
            elif field == 3:
                normalizer = dict(_fields(_message(value)))
        kind = trainer.get(3, 1)
        if not pieces or kind not in (1, 2):
            raise ValueError("it has no pieces, or is neither a unigram nor a BPE model")
        return cls(pieces, kind == 2, trainer.get(40, 0), _message(normalizer.get(2, b"")))


def _message(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a field of another type")
    return value


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yields the number and the value of each field of a message of Protocol Buffers: int, or bytes."""
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = message[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
            if shift > 63:
                raise ValueError("a number that is too long")

    while position < len(message):
        tag = varint()
        kind = tag & 7
        if kind == 0:
            yield tag >> 3, varint()
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"a field of type {kind}")
        length = varint() if kind == 2 else {1: 8, 5: 4}[kind]
        if position + length > len(message):
            raise ValueError("it is cut short")
        yield tag >> 3, message[position : position + length]
        position += length


def _sentencepiece(
    model: SentencePieceModel,
    pieces: list[tuple[str, float]],
    unk_id: int,
    prepend_scheme: str,
    post_processor: Callable[[Any, Mapping[str, str]], Any],
) -> Built:
    """SpmConverter, for a model's pieces as a subclass numbers them."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    if model.is_bpe:
        vocab = {piece: i for i, (piece, _) in enumerate(pieces)}
        unknown = model.pieces[model.unk_id][0]
        tokenizer = Tokenizer(models.BPE(vocab, _merges(model, dict(pieces)), unk_token=unknown, fuse_unk=True))
    else:
        tokenizer = Tokenizer(models.Unigram(pieces, unk_id, False))
    tokenizer.add_tokens(
        [
            AddedToken(piece, normalized=False, special=kind == model.CONTROL)
            for piece, _, kind in model.pieces
            if kind in (model.CONTROL, model.USER_DEFINED)
        ]
    )
    precompiled = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    steps = [*precompiled, normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), _METASPACE)]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_METASPACE, prepend_scheme=prepend_scheme)
    tokenizer.decoder = decoders.Metaspace(replacement=_METASPACE, prepend_scheme=prepend_scheme)
    return Built(tokenizer, post_processor)


def _merges(model: SentencePieceModel, scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """The merges of a BPE model, which its file does not list (generate_merges): best score first."""
    ids = {piece: i for i, (piece, _, _) in enumerate(model.pieces)}
    merges = []
    for piece, score in scores.items():
        halves = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        found = [(left, right, score) for left, right in halves if left in ids and right in ids]
        merges += sorted(found, key=lambda merge: (ids[merge[0]], ids[merge[1]]))
    merges.sort(key=lambda merge: (merge[2], len(merge[0]), len(merge[1])), reverse=True)
    return [(left, right) for left, right, _ in merges]
