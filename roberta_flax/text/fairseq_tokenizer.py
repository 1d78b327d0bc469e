"""Text to token ids and back, exactly as in fairseq: a BPE followed by fairseq's dictionary.

There are three steps, each taken from its source in fairseq:

1. `ByteLevelBPE`   splits text into BPE pieces (fairseq/data/encoders/gpt2_bpe_utils.py, class Encoder), or
   `SentencePiece`  into sentencepiece's, for XLM-R and CamemBERT (fairseq/data/encoders/sentencepiece_bpe.py).
2. `Dictionary`     maps the symbol of each piece to a token id (fairseq/data/dictionary.py, class Dictionary).
3. `FairseqTokenizer` knows the special tokens of `<s> a </s></s> b </s>`, and decodes
   (fairseq/models/roberta/hub_interface.py).

tiktoken merges the pieces of byte-level BPE. Its regular-expression engine has Unicode tables of its own, while fairseq
splits text with the `regex` package. The pattern that tiktoken compiles therefore spells out the character classes of
the installed `regex`, range by range, so that both split alike whatever Unicode version each was built for.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import regex
import tiktoken

from roberta_flax.errors import CheckpointError, InputError
from roberta_flax.files import read_text, reading
from roberta_flax.text.truncation import longest_first
from roberta_flax.text.windows import TokenWindow, check_windows_advance, joined_window, window_ranges

DICTIONARY_FILE = "dict.txt"
ENCODER_FILE = "encoder.json"
MERGES_FILE = "vocab.bpe"
SENTENCEPIECE_FILE = "sentencepiece.bpe.model"
BYTE_LEVEL_FILES = (DICTIONARY_FILE, ENCODER_FILE, MERGES_FILE)
SENTENCEPIECE_FILES = (DICTIONARY_FILE, SENTENCEPIECE_FILE)

BOS, PAD, EOS, UNK, MASK = "<s>", "<pad>", "</s>", "<unk>", "<mask>"
BOS_ID, PAD_ID, EOS_ID, UNK_ID = 0, 1, 2, 3  # Dictionary.__init__ adds these four first
_SILENT = (BOS, PAD, EOS)  # symbols that have no text

WORD_BOUNDARY = "\u2581"  # sentencepiece's character for a space
MERGES_HEADER = "#version: 0.2\n"  # vocab.bpe's first line
_NO_ID = -1  # the token id of a BPE piece that is not in encoder.json

# Merges that are known to be reachable (see ByteLevelBPE), which saves checking them at every load: GPT-2's own
# vocab.bpe, from dl.fbaipublicfiles.com/fairseq/gpt2_bpe/.
_REACHABLE_MERGES_SHA256 = frozenset({"1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"})

# The most bytes that this check compares, since a piece is walked as many times as it has bytes. GPT-2's pieces take
# 2.5 million, a million pieces about 50 million. Beyond the limit, merges count as not reachable: correct, but slower.
_MAX_CHECKED = 1 << 26

# A backtracking regex engine keeps a state for every character of a whitespace run, and tiktoken's engine fails at a
# million states. Runs of at least this length are therefore split before the text is encoded.
_LONG_WHITESPACE_RUN = 100_000


def byte_alphabet() -> list[str]:
    """The printable character that GPT-2's files write for each of the 256 bytes (bytes_to_unicode)."""
    printable = {
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    }
    stand_ins = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(stand_ins)) for byte in range(256)]


class Dictionary:
    """fairseq's Dictionary as its masked-LM task builds it: four special symbols, those of the file, and `<mask>`.

    Attributes:
      symbols: all symbols, in the order of their ids.
      index: the id of each symbol; the higher one if a symbol occurs twice.
    """

    def __init__(self, symbols: Iterable[str] = ()) -> None:
        self.symbols: list[str] = []
        self.index: dict[str, int] = {}
        for symbol in (BOS, PAD, EOS, UNK, *symbols):
            self._add(symbol)
        if MASK not in self.index:  # fairseq/tasks/masked_lm.py: dictionary.add_symbol("<mask>")
            self._add(MASK)

    def __len__(self) -> int:
        return len(self.symbols)

    def _add(self, symbol: str) -> None:
        self.index[symbol] = len(self.symbols)
        self.symbols.append(symbol)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Dictionary:
        """Reads dict.txt: lines of `symbol count`, with `#fairseq:overwrite` after it if the symbol is a repeated one.

        Raises:
          CheckpointError: the file is missing or not UTF-8, or has a line of another form.
        """
        path = Path(path)
        symbols: list[str] = []
        seen = {BOS, PAD, EOS, UNK}
        for number, line in enumerate(_read_text(path).removesuffix("\n").split("\n"), start=1):
            symbol, _, field = line.rstrip().rpartition(" ")
            overwrite = field == "#fairseq:overwrite"
            if overwrite:
                symbol, _, field = symbol.rpartition(" ")
            if not symbol or not _is_integer(field):
                raise CheckpointError(f"{path}, line {number}: expected 'symbol count', got {line[:80]!r}")
            if symbol in seen and not overwrite:
                raise CheckpointError(
                    f"{path}, line {number}: {symbol!r} is in the dictionary already; "
                    "fairseq accepts a repeated symbol only with '#fairseq:overwrite' after it"
                )
            seen.add(symbol)
            symbols.append(symbol)
        return cls(symbols)

    def to_text(self) -> str:
        """The content of a dict.txt for `read` and fairseq's Dictionary.load. Counts are not used; all are 0."""
        seen = {BOS, PAD, EOS, UNK}
        lines = []
        for symbol in self.symbols[len(seen) :]:
            lines.append(f"{symbol} 0 #fairseq:overwrite\n" if symbol in seen else f"{symbol} 0\n")
            seen.add(symbol)
        return "".join(lines)


class BPE(Protocol):
    """The part of a tokenizer that splits text into pieces. Each piece has a symbol in the model's dictionary."""

    @property
    def symbols(self) -> set[str]:
        """The symbols of all pieces."""
        ...

    def token_ids(self, index: Mapping[str, int]) -> list[int]:
        """The token id of every piece, from a dictionary's index of symbols."""
        ...

    def piece_encoder(self, index: Mapping[str, int]) -> Callable[[str], list[int]]:
        """Makes the function that splits text into pieces, for a dictionary with this index of symbols.

        The function returns the number of each piece, its index in `token_ids`. If a part of the text is looked up in
        the dictionary directly, its number is its token id plus `len(token_ids)`.
        """
        ...

    def symbol_bytes(self, symbol: str) -> bytes:
        """The bytes that a symbol contributes to decoded text."""
        ...

    def decode_bytes(self, joined: bytes) -> str:
        """The text of the joined bytes of several symbols."""
        ...

    def symbol_text(self, symbol: str) -> str:
        """The text of a symbol inside a sentence, including the space before it if it has one."""
        ...

    def spans(self, text: str) -> npt.NDArray[np.int64]:
        """The begin (inclusive) and end (exclusive) of each piece of `text`, in characters: [pieces, 2]."""
        ...

    def words(self, text: str) -> npt.NDArray[np.int64]:
        """The number of the word of each piece of `text`: [pieces]."""
        ...

    def symbol_name(self, symbol: str) -> str:
        """A symbol as the BPE writes it, such as `Ġworld`."""
        ...

    def join_names(self, names: Sequence[str]) -> str:
        """The text of several symbols, given as `symbol_name` writes them."""
        ...

    def files(self) -> dict[str, bytes]:
        """The files that `FairseqTokenizer.from_directory` reads this BPE from: content by file name."""
        ...

    def definition(self, index: Mapping[str, int]) -> tuple[Any, ...]:
        """All that decides how text is encoded, given this index: BPEs with equal definitions encode alike."""
        ...


class ByteLevelBPE:
    """GPT-2's byte-level BPE, from encoder.json (piece -> BPE id) and vocab.bpe (merges, best first).

    fairseq merges pairs from a list; tiktoken merges any two neighbors whose concatenation is in the vocabulary. They
    agree if every merge is reachable, that is, if its result, encoded alone, becomes that one piece. (Merges inside a
    span do not depend on what surrounds it unless one crosses its border, and the last state before the whole piece is
    then the pair that is in the list.) Trained vocabularies are reachable. For any other, `merge` applies the list of
    pairs as fairseq does, which is slower.

    Attributes:
      pieces: the bytes of each piece, by its number: the 256 single bytes, then the result of each merge.
      bpe_ids: the BPE id of each piece; None if encoder.json lacks it.
    """

    def __init__(self, encoder: dict[str, int], merges: Sequence[tuple[bytes, bytes]], reachable: bool = False) -> None:
        """Builds the encoder.

        Args:
          encoder: the BPE id of each piece, which is written in GPT-2's byte alphabet.
          merges: pairs of pieces, as bytes, in the order of their rank.
          reachable: whether the merges are known to be reachable; if not, they are checked.
        """
        alphabet = byte_alphabet()
        self._encoder = encoder
        self._pair_rank = {pair: rank for rank, pair in enumerate(merges)}
        self._merged: dict[bytes, tuple[bytes, ...]] = {}
        pieces = [bytes([byte]) for byte in range(256)] + list(dict.fromkeys(a + b for a, b in merges))
        self._rank = {piece: rank for rank, piece in enumerate(pieces)}
        self.pieces: list[bytes] = pieces
        self.bpe_ids: list[int | None] = [encoder.get("".join(alphabet[byte] for byte in piece)) for piece in pieces]
        self._tiktoken: tiktoken.Encoding | None = None
        if reachable or self._every_merge_is_reachable(merges):
            self._tiktoken = tiktoken.Encoding(
                "byte-level-bpe", pat_str=_tiktoken_pattern(), mergeable_ranks=self._rank, special_tokens={}
            )
        self._encode: Callable[[str], list[int]] = (
            self._tiktoken.encode_ordinary if self._tiktoken else self._encode_by_pairs
        )

    @classmethod
    def read(cls, encoder_json: str | os.PathLike[str], vocab_bpe: str | os.PathLike[str]) -> ByteLevelBPE:
        """Reads encoder.json and vocab.bpe.

        Raises:
          CheckpointError: a file is missing or malformed.
        """
        encoder = _read_encoder_json(Path(encoder_json))
        text = _read_text(Path(vocab_bpe))
        # as in get_encoder: the first line is a version, and anything after the last line break is ignored
        lines = text.split("\n")[1:-1]
        byte_values = _byte_values()
        merges = []
        for number, line in enumerate(lines, start=2):
            pair = line.split()
            if len(pair) != 2 or not all(character in byte_values for character in line.replace(" ", "")):
                raise CheckpointError(f"{vocab_bpe}, line {number}: expected two BPE pieces, got {line[:80]!r}")
            merges.append((bytes(byte_values[c] for c in pair[0]), bytes(byte_values[c] for c in pair[1])))
        if not merges:
            raise CheckpointError(f"{vocab_bpe}: no merges in it; expected GPT-2's vocab.bpe format")
        digest = hashlib.sha256(text.encode()).hexdigest()
        return cls(encoder, merges, reachable=digest in _REACHABLE_MERGES_SHA256)

    def encode(self, text: str) -> list[int]:
        """The numbers of the pieces of `text`: indices into `pieces`."""
        if len(text) <= _LONG_WHITESPACE_RUN:
            return self._encode(text)
        return [number for part in _split_long_whitespace(text) for number in self._encode(part)]

    def _encode_by_pairs(self, text: str) -> list[int]:
        words = _split_pattern().findall(text)
        return [self._rank[piece] for word in words for piece in self.merge(word.encode())]

    def merge(self, word: bytes) -> tuple[bytes, ...]:
        """The pieces of one word of split text, from the list of pairs (Encoder.bpe)."""
        if word in self._merged:
            return self._merged[word]
        parts = [bytes([byte]) for byte in word]
        while len(parts) > 1:
            best = min(itertools.pairwise(parts), key=lambda pair: self._pair_rank.get(pair, math.inf))
            if best not in self._pair_rank:
                break
            parts = _merge_pair(parts, best)
        if len(self._merged) < 100_000:
            self._merged[word] = tuple(parts)
        return tuple(parts)

    def piece_encoder(self, index: Mapping[str, int]) -> Callable[[str], list[int]]:
        missing = {number for number, bpe_id in enumerate(self.bpe_ids) if bpe_id is None}
        if not missing:
            return self.encode

        def encode_and_check(text: str) -> list[int]:
            numbers = self.encode(text)
            if not missing.isdisjoint(numbers):
                piece = next(self.pieces[number] for number in numbers if number in missing)
                raise InputError(f"text needs the BPE piece {piece!r}, which this model's {ENCODER_FILE} does not have")
            return numbers

        return encode_and_check

    def definition(self, index: Mapping[str, int]) -> tuple[Any, ...]:
        return list(self._pair_rank), self.token_ids(index)

    def token_ids(self, index: Mapping[str, int]) -> list[int]:
        return [_NO_ID if bpe_id is None else index.get(str(bpe_id), UNK_ID) for bpe_id in self.bpe_ids]

    def symbol_bytes(self, symbol: str) -> bytes:
        piece = self._piece_by_symbol.get(symbol)
        if piece is None or any(character not in _byte_values() for character in piece):
            return symbol.encode()
        return bytes(_byte_values()[character] for character in piece)

    def decode_bytes(self, joined: bytes) -> str:
        return joined.decode("utf-8", errors="replace")

    def symbol_text(self, symbol: str) -> str:
        return self.decode_bytes(self.symbol_bytes(symbol))

    def spans(self, text: str) -> npt.NDArray[np.int64]:
        lengths = np.array([len(self.pieces[number]) for number in self.encode(text)], np.int64)
        ends = np.cumsum(lengths)
        begins_character = (np.frombuffer(text.encode(), np.uint8) & 0xC0) != 0x80
        character_of_byte = np.cumsum(begins_character) - 1
        return np.stack([character_of_byte[ends - lengths], character_of_byte[ends - 1] + 1], axis=1)

    def words(self, text: str) -> npt.NDArray[np.int64]:
        ends = np.cumsum([len(self.pieces[number]) for number in self.encode(text)], dtype=np.int64)
        word_ends = np.cumsum([len(word.encode()) for word in _split_pattern().findall(text)], dtype=np.int64)
        return np.asarray(np.searchsorted(word_ends, ends))

    def symbol_name(self, symbol: str) -> str:
        return self._piece_by_symbol.get(symbol, symbol)

    def join_names(self, names: Sequence[str]) -> str:
        values = _byte_values()
        return self.decode_bytes(
            b"".join(bytes([values[c]]) if c in values else c.encode() for name in names for c in name)
        )

    def files(self) -> dict[str, bytes]:
        alphabet = byte_alphabet()
        merges = (" ".join("".join(alphabet[byte] for byte in piece) for piece in pair) for pair in self._pair_rank)
        return {
            ENCODER_FILE: json.dumps(self._encoder, ensure_ascii=False).encode(),
            MERGES_FILE: "".join([MERGES_HEADER, *(f"{pair}\n" for pair in merges)]).encode(),
        }

    @property
    def symbols(self) -> set[str]:
        """The BPE ids in decimal, as fairseq's dictionary has them."""
        return set(self._piece_by_symbol)

    @cached_property
    def _piece_by_symbol(self) -> dict[str, str]:
        return {str(bpe_id): piece for piece, bpe_id in self._encoder.items()}

    def _every_merge_is_reachable(self, merges: Sequence[tuple[bytes, bytes]]) -> bool:
        known = set(self.pieces[:256])
        for left, right in merges:
            if left not in known or right not in known or left + right in known:
                return False
            known.add(left + right)
        if sum(len(piece) ** 2 for piece in self.pieces) > _MAX_CHECKED:
            return False
        return all(len(self.merge(piece)) == 1 for piece in self.pieces)


class SentencePiece:
    """A sentencepiece model, whose pieces are themselves the symbols of the dictionary.

    Attributes:
      pieces: all pieces, in the order of their ids in the model.
    """

    def __init__(self, model: bytes) -> None:
        """Loads a serialized sentencepiece model.

        Raises:
          ValueError: the bytes are not a sentencepiece model, or one without pieces.
        """
        import sentencepiece

        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
            self.pieces: list[str] = [self._processor.IdToPiece(i) for i in range(self._processor.GetPieceSize())]
        except (RuntimeError, OSError) as error:
            raise ValueError(str(error).strip() or "it cannot be parsed") from None
        if not self.pieces:
            raise ValueError("it has no pieces")
        # fairseq's dictionary.encode_line splits at whitespace, which the pieces of a model trained with defaults lack
        self._pieces_are_words = all(piece.split() == [piece] for piece in self.pieces)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> SentencePiece:
        """Reads sentencepiece.bpe.model.

        Raises:
          CheckpointError: the file is missing or not a sentencepiece model.
        """
        with reading(path):
            content = Path(path).read_bytes()
        try:
            return cls(content)
        except ValueError as error:
            raise CheckpointError(f"{path} is not a sentencepiece model: {error}") from None

    def piece_encoder(self, index: Mapping[str, int]) -> Callable[[str], list[int]]:
        unknown = self._processor.unk_id()
        first_token_number = len(self.pieces)

        def encode(text: str) -> list[int]:
            numbers: list[int] = self._processor.Encode(text, out_type=int)
            if self._pieces_are_words and unknown not in numbers:
                return numbers
            # fairseq looks up the text of each piece in the dictionary, that of unknown pieces too
            words = " ".join(self._processor.Encode(text, out_type=str)).split()
            return [first_token_number + index.get(word, UNK_ID) for word in words]

        return encode

    def definition(self, index: Mapping[str, int]) -> tuple[Any, ...]:
        return self._processor.serialized_model_proto(), self.token_ids(index)

    def token_ids(self, index: Mapping[str, int]) -> list[int]:
        return [index.get(piece, UNK_ID) for piece in self.pieces]

    def symbol_bytes(self, symbol: str) -> bytes:
        return symbol.replace(" ", "").replace(WORD_BOUNDARY, " ").encode()

    def decode_bytes(self, joined: bytes) -> str:
        return joined.decode().strip()

    def symbol_text(self, symbol: str) -> str:
        # as in RobertaHubInterface.fill_mask: decoding strips the space, which is put back
        space = " " if symbol.startswith(WORD_BOUNDARY) else ""
        return space + self.decode_bytes(self.symbol_bytes(symbol))

    def spans(self, text: str) -> npt.NDArray[np.int64]:
        offsets = self._processor.Encode(text, out_type="offset_mapping")["offsets"]
        return np.array(offsets, np.int64).reshape(-1, 2)

    def words(self, text: str) -> npt.NDArray[np.int64]:
        begins = [piece.startswith(WORD_BOUNDARY) for piece in self._processor.Encode(text, out_type=str)]
        return np.maximum(np.cumsum(begins, dtype=np.int64) - 1, 0)

    def symbol_name(self, symbol: str) -> str:
        return symbol

    def join_names(self, names: Sequence[str]) -> str:
        return "".join(names).replace(WORD_BOUNDARY, " ").removeprefix(" ")

    def files(self) -> dict[str, bytes]:
        return {SENTENCEPIECE_FILE: self._processor.serialized_model_proto()}

    @property
    def symbols(self) -> set[str]:
        """The symbols of all pieces: the pieces themselves."""
        return set(self.pieces)


class FairseqTokenizer:
    """A fairseq model's tokenizer: a backend of `Tokenizer`. Backend (text/tokenizer.py) says what each part does.

    Special tokens are not recognized in text: the characters `<mask>` or `</s>` become ordinary pieces.

    Attributes:
      dictionary: the symbols and their ids.
      bpe: what splits text into pieces.
    """

    pad_id = PAD_ID
    unk_id = UNK_ID
    mask_token = MASK
    marks_continuations = False
    continuation_mark = ""

    def __init__(self, dictionary: Dictionary, bpe: BPE) -> None:
        self.dictionary = dictionary
        self.bpe = bpe
        self.vocab_size = len(dictionary)
        self.bos_id, self.eos_id, self.mask_id = (dictionary.index[symbol] for symbol in (BOS, EOS, MASK))
        self.special_ids = frozenset({BOS_ID, PAD_ID, EOS_ID, UNK_ID})
        self._encode_pieces = bpe.piece_encoder(dictionary.index)
        piece_ids = bpe.token_ids(dictionary.index)
        # the token id of each piece number, followed by each token id itself
        self.id_of_number = np.array([*piece_ids, *range(self.vocab_size)], np.int32)
        self._bos_number, self._eos_number, self._mask_number = (
            len(piece_ids) + token_id for token_id in (self.bos_id, self.eos_id, self.mask_id)
        )
        self._bytes = [
            b"" if symbol in _SILENT else symbol.encode() if symbol in (UNK, MASK) else bpe.symbol_bytes(symbol)
            for symbol in dictionary.symbols
        ]

    @classmethod
    def from_files(
        cls,
        dictionary: str | os.PathLike[str],
        encoder_json: str | os.PathLike[str],
        vocab_bpe: str | os.PathLike[str],
    ) -> FairseqTokenizer:
        """Reads a model's dict.txt, and encoder.json and vocab.bpe of its BPE.

        Raises:
          CheckpointError: a file is missing or malformed, or the dictionary belongs to another BPE.
        """
        return cls._from_bpe(dictionary, encoder_json, ByteLevelBPE.read(encoder_json, vocab_bpe))

    @classmethod
    def from_sentencepiece(cls, dictionary: str | os.PathLike[str], model: str | os.PathLike[str]) -> FairseqTokenizer:
        """Reads a model's dict.txt and its sentencepiece model. Raises CheckpointError as `from_files` does."""
        return cls._from_bpe(dictionary, model, SentencePiece.read(model))

    @classmethod
    def _from_bpe(
        cls,
        dictionary: str | os.PathLike[str],
        bpe_file: str | os.PathLike[str],
        bpe: ByteLevelBPE | SentencePiece,
    ) -> FairseqTokenizer:
        symbols = Dictionary.read(dictionary)
        if bpe.symbols.isdisjoint(symbols.symbols[4:]):
            raise CheckpointError(
                f"none of the {len(symbols)} symbols of {dictionary} is a piece of {bpe_file}: it is the dictionary of "
                "another tokenizer; put the files of one model together"
            )
        return cls(symbols, bpe)

    @classmethod
    def from_directory(cls, directory: Path) -> FairseqTokenizer:
        """Reads a tokenizer's files from `directory`. Raises CheckpointError as `from_files` does."""
        if (directory / SENTENCEPIECE_FILE).is_file():
            return cls.from_sentencepiece(*(directory / name for name in SENTENCEPIECE_FILES))
        return cls.from_files(*(directory / name for name in BYTE_LEVEL_FILES))

    def files(self) -> dict[str, bytes]:
        return {DICTIONARY_FILE: self.dictionary.to_text().encode(), **self.bpe.files()}

    def definition(self) -> tuple[Any, ...]:
        specials = (self.bos_id, self.eos_id, self.mask_id)
        return type(self.bpe).__name__, specials, self._bytes, self.bpe.definition(self.dictionary.index)

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        return list(map(self._encode_pieces, texts))

    def around(self, count: int, no_separator: bool = False) -> list[tuple[int, ...]]:
        separator = (self._eos_number,) if no_separator else (self._eos_number, self._eos_number)
        return [(self._bos_number,), *[separator] * (count - 1), (self._eos_number,)]

    def joined_alone(self, texts: Sequence[str]) -> Sequence[str]:
        return texts

    def truncate(self, sentences: Sequence[list[int]], room: int) -> list[list[int]]:
        lengths = longest_first([len(sentence) for sentence in sentences], room)
        return [sentence[:length] for sentence, length in zip(sentences, lengths, strict=True)]

    def spans(self, text: str) -> npt.NDArray[np.int64]:
        count = len(self._encode_pieces(text))
        spans = self.bpe.spans(text)
        if len(spans) != count:
            raise InputError(f"a piece of the text contains whitespace, and so is several tokens: {text[:60]!r}")
        return spans

    def windows(self, texts: Sequence[str], max_length: int, stride: int) -> list[TokenWindow]:
        around = [self.id_of_number.take(numbers).tolist() for numbers in self.around(len(texts))]
        ids = [self.id_of_number.take(np.array(self._encode_pieces(text), np.intp)) for text in texts]
        spans = [_without_spaces(self.spans(text), text) for text in texts]
        words = [self.bpe.words(text) for text in texts]
        room = max_length - sum(map(len, around)) - sum(map(len, ids[:-1]))
        check_windows_advance(room, stride, max_length, len(texts))
        return [
            joined_window(around, *([*part[:-1], part[-1][begin:end]] for part in (ids, spans, words)))
            for begin, end in window_ranges(len(ids[-1]), room, stride)
        ]

    def token_name(self, token_id: int) -> str:
        return self.bpe.symbol_name(self.dictionary.symbols[token_id])

    def join_names(self, names: Sequence[str]) -> str:
        return self.bpe.join_names(names)

    def decode(self, ids: npt.NDArray[Any]) -> list[str]:
        if ids[0] in (BOS_ID, self.bos_id):
            ids = ids[1:]
        is_eos = (ids == EOS_ID) | (ids == self.eos_id)
        borders = (is_eos[1:] & is_eos[:-1]).nonzero()[0] + 1
        return [self._text(sentence) for sentence in np.split(ids, borders)]

    def is_silent(self, token_id: int) -> bool:
        return self.dictionary.symbols[token_id] in _SILENT

    def token_text(self, token_id: int) -> str:
        symbol = self.dictionary.symbols[token_id]
        return symbol if symbol in (UNK, MASK) else self.bpe.symbol_text(symbol)

    def word_begins(self) -> npt.NDArray[np.bool_]:
        pieces = self.bpe.symbols

        def begins(number: int, symbol: str) -> bool:
            if number in self.special_ids or symbol in (*_SILENT, UNK):
                return True
            return symbol != MASK and (symbol not in pieces or self.token_text(number).startswith(" "))

        return np.array([begins(number, symbol) for number, symbol in enumerate(self.dictionary.symbols)])

    def encode_masked(self, text: str) -> tuple[npt.NDArray[np.int32], list[int]]:
        """As RobertaHubInterface.fill_mask, which strips whitespace before the mask and at the end of the text."""
        first, *others = (self._encode_pieces(part.rstrip()) for part in text.split(MASK))
        numbers, positions = [self._bos_number, *first], []
        for part in others:
            positions.append(len(numbers))
            numbers += [self._mask_number, *part]
        return self.id_of_number.take([*numbers, self._eos_number]), positions

    def fill_mask(self, text: str, token_id: int) -> str:
        """As RobertaHubInterface.fill_mask, which replaces the space before the mask too."""
        replaced = f" {MASK}" if f" {MASK}" in text else MASK
        return text.replace(replaced, self.token_text(token_id))

    def named_token(self, name: str) -> int | None:
        return self._ids_of_names.get(name)

    @cached_property
    def _ids_of_names(self) -> dict[str, int]:
        return {self.token_name(token_id): token_id for token_id in range(self.vocab_size)}

    def plain_text(self, ids: Sequence[int], *, with_specials: bool) -> str:
        parts = []
        for is_special, run in itertools.groupby(ids, lambda token_id: token_id in self._without_text):
            if not is_special:
                parts.append(self._text(np.array([*run])))
            elif with_specials:
                parts += map(self.token_name, run)
        return "".join(parts)

    @cached_property
    def _without_text(self) -> frozenset[int]:
        return frozenset(i for i, symbol in enumerate(self.dictionary.symbols) if symbol in (*_SILENT, UNK, MASK))

    def _text(self, ids: npt.NDArray[Any]) -> str:
        return self.bpe.decode_bytes(b"".join(self._bytes[i] for i in ids.tolist()))


def _without_spaces(spans: npt.NDArray[np.int64], text: str) -> npt.NDArray[np.int64]:
    """The same without the spaces around what a token is of, as RoBERTa's tokenizers of Transformers give them."""
    trimmed = []
    for begin, end in spans.tolist():
        characters = text[begin:end]
        first = begin + len(characters) - len(characters.lstrip(" "))
        trimmed.append((first, max(end - len(characters) + len(characters.rstrip(" ")), first)))
    return np.array(trimmed, np.int64).reshape(-1, 2)


def _read_encoder_json(path: Path) -> dict[str, int]:
    """Reads encoder.json, the BPE id of each piece. Raises CheckpointError if it is something else."""
    try:
        encoder = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    if not isinstance(encoder, dict) or not all(type(i) is int for i in encoder.values()):
        raise CheckpointError(f"{path}: expected one JSON object that maps each BPE piece to its id")
    return encoder


def _read_text(path: Path) -> str:
    if not os.path.exists(path):
        raise CheckpointError(
            f"{path} is missing; a tokenizer needs {', '.join(BYTE_LEVEL_FILES)}, or {', '.join(SENTENCEPIECE_FILES)}"
        )
    return read_text(path)


def _is_integer(text: str) -> bool:
    try:
        int(text)
    except ValueError:
        return False
    return True


@lru_cache(maxsize=1)
def _byte_values() -> dict[str, int]:
    """The byte that each character of GPT-2's byte alphabet stands for."""
    return {character: byte for byte, character in enumerate(byte_alphabet())}


def _merge_pair(parts: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    merged: list[bytes] = []
    i = 0
    while i < len(parts):
        if i + 1 < len(parts) and (parts[i], parts[i + 1]) == pair:
            merged.append(pair[0] + pair[1])
            i += 2
        else:
            merged.append(parts[i])
            i += 1
    return merged


@lru_cache(maxsize=1)
def _split_pattern() -> regex.Pattern[str]:
    """The pattern that fairseq splits text with before it merges (Encoder.pat)."""
    return regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


@lru_cache(maxsize=1)
def _tiktoken_pattern() -> str:
    """A pattern for tiktoken that splits as `_split_pattern` does.

    Character classes are explicit, and quantifiers possessive where that matches the same. The last three alternatives
    stand for `\\s+(?!\\S)|\\s+`, which takes a run of whitespace as a whole at the end of the text, otherwise all of it
    but the last character, otherwise a single character.
    """
    letter, number, space = (_ranges(name) for name in (r"\p{L}", r"\p{N}", r"\s"))
    return (
        f"'(?:[stmd]|re|ve|ll)| ?[{letter}]++| ?[{number}]++| ?[^{space}{letter}{number}]++"
        f"|[{space}]++$|[{space}]+(?![^{space}])|[{space}]"
    )


def _ranges(character_class: str) -> str:
    """The code points of a character class of the `regex` package, as the inside of a bracket expression."""
    runs = regex.finditer(f"{character_class}+", _all_characters())
    return "".join(rf"\x{{{ord(run[0][0]):X}}}-\x{{{ord(run[0][-1]):X}}}" for run in runs)


def _all_characters() -> str:
    code_points = np.arange(0x110000, dtype="<u4")
    return code_points[(code_points < 0xD800) | (code_points > 0xDFFF)].tobytes().decode("utf-32-le")


def _split_long_whitespace(text: str) -> list[str]:
    """Splits `text` before the last character of every very long whitespace run, where `_split_pattern` splits too."""
    run = rf"(?<!\s)\s{{{_LONG_WHITESPACE_RUN},}}+(?=\S)"
    borders = [match.end() - 1 for match in regex.finditer(run, text)]
    return [text[begin:end] for begin, end in zip([0, *borders], [*borders, len(text)], strict=True)]
