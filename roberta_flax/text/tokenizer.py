"""Text <-> token ids, exactly as fairseq: a BPE, then the fairseq dictionary.

Three steps, each from its source in fairseq:

1. `ByteLevelBPE`  text -> BPE pieces (fairseq/data/encoders/gpt2_bpe_utils.py, class Encoder); or
   `SentencePiece` text -> sentencepiece's pieces, of XLM-R and CamemBERT (fairseq/data/encoders/sentencepiece_bpe.py)
2. `Dictionary`    piece, as a word -> token id (fairseq/data/dictionary.py, class Dictionary)
3. `Tokenizer`     `<s> a </s></s> b </s>` and back (fairseq/models/roberta/hub_interface.py)

The merging of byte-level BPE is done by tiktoken. Its regular-expression engine carries its own Unicode tables,
and fairseq splits with the `regex` package; so the character classes of the installed `regex` are spelled out,
range by range, in the pattern that tiktoken compiles, and both split alike whatever Unicode version each was
built for.
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

DICTIONARY_FILE = "dict.txt"
ENCODER_FILE = "encoder.json"
MERGES_FILE = "vocab.bpe"
SENTENCEPIECE_FILE = "sentencepiece.bpe.model"
BYTE_LEVEL_FILES = (DICTIONARY_FILE, ENCODER_FILE, MERGES_FILE)
SENTENCEPIECE_FILES = (DICTIONARY_FILE, SENTENCEPIECE_FILE)

BOS, PAD, EOS, UNK, MASK = "<s>", "<pad>", "</s>", "<unk>", "<mask>"
BOS_ID, PAD_ID, EOS_ID, UNK_ID = 0, 1, 2, 3  # Dictionary.__init__ adds these four first

WORD_BOUNDARY = "\u2581"  # what sentencepiece writes for a space
MERGES_HEADER = "#version: 0.2\n"  # vocab.bpe's first line
_NO_ID = -1  # of a BPE piece that encoder.json does not have

# Merges known to be reachable (see ByteLevelBPE), so that checking them at every load is not needed:
# GPT-2's own vocab.bpe, from dl.fbaipublicfiles.com/fairseq/gpt2_bpe/.
_REACHABLE_MERGES_SHA256 = frozenset({"1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"})

# Bytes compared in that check, at most: a piece is gone through as often as it is long. GPT-2's take 2.5 million, and a
# million pieces some 50. Beyond it the merges are not known to be reachable, which is right, and slower.
_MAX_CHECKED = 1 << 26

# A regex engine that backtracks keeps a state for every character of a whitespace run that it may give back,
# and tiktoken's gives up at a million of them. Longer runs than this are cut beforehand.
_LONG_WHITESPACE_RUN = 100_000


def byte_alphabet() -> list[str]:
    """The printable character that stands for each of the 256 bytes in GPT-2's files (bytes_to_unicode)."""
    printable = {
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    }
    stand_ins = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(stand_ins)) for byte in range(256)]


class Dictionary:
    """fairseq's Dictionary as its masked-LM task builds it: four specials, the file's symbols, `<mask>`.

    Attributes:
      symbols: every symbol, in the order of its id.
      index: symbol -> id.
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
        """Reads dict.txt: one `symbol count` a line, `#fairseq:overwrite` after it where a symbol comes twice.

        Raises:
          CheckpointError: the file is missing, is not UTF-8, or has a line of another form.
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
                    "fairseq takes a second one only with '#fairseq:overwrite' after it"
                )
            seen.add(symbol)
            symbols.append(symbol)
        return cls(symbols)

    def to_text(self) -> str:
        """dict.txt, as `read` reads it and fairseq's Dictionary.load; the counts, which are of no use, are 0."""
        seen = {BOS, PAD, EOS, UNK}
        lines = []
        for symbol in self.symbols[len(seen) :]:
            lines.append(f"{symbol} 0 #fairseq:overwrite\n" if symbol in seen else f"{symbol} 0\n")
            seen.add(symbol)
        return "".join(lines)


class BPE(Protocol):
    """How a model cuts text into the symbols of its dictionary."""

    @property
    def symbols(self) -> set[str]:
        """Its pieces, as a dictionary has them."""
        ...

    def token_ids(self, index: Mapping[str, int]) -> list[int]:
        """The token id of each of its pieces, by a dictionary's index."""
        ...

    def bind(self, index: Mapping[str, int]) -> Callable[[str], list[int]]:
        """A function from text to the numbers of its pieces: places in `token_ids`.

        Where it looks a symbol up that is none of the pieces, it gives `len(token_ids)` and the symbol's token id more.
        """
        ...

    def bytes_of(self, symbol: str) -> bytes:
        """A symbol as it stands in text."""
        ...

    def text_of(self, joined: bytes) -> str:
        """The text of several symbols' bytes."""
        ...

    def text_of_one(self, symbol: str) -> str:
        """The text of a symbol inside a sentence, with the space before it that it may bring."""
        ...

    def spans(self, text: str) -> npt.NDArray[np.int64]:
        """Of each piece of `text`, its first character there and the one after its last: [pieces, 2]."""
        ...

    def files(self) -> dict[str, bytes]:
        """What `Tokenizer.from_directory` makes it of again: content by file name."""
        ...

    def rules(self, index: Mapping[str, int]) -> tuple[Any, ...]:
        """What the function that `bind` gives depends on."""
        ...


class ByteLevelBPE:
    """GPT-2's byte-level BPE from encoder.json (piece -> BPE id) and vocab.bpe (merges, best first).

    fairseq merges by a list of pairs; tiktoken merges any two neighbours whose concatenation is in the
    vocabulary. The two agree if every merge is reachable: encoded alone, the bytes of its result end as that
    one piece. (Merges inside a span do not depend on what surrounds it unless one crosses its border, and the
    last state before the whole piece is then the pair that the list names.) Trained vocabularies are reachable.
    For any other, `merge` walks the list of pairs as fairseq does, slower.
    """

    def __init__(self, encoder: dict[str, int], merges: Sequence[tuple[bytes, bytes]], reachable: bool = False) -> None:
        """Builds the encoder.

        Args:
          encoder: piece, in GPT-2's byte alphabet -> BPE id.
          merges: pairs of pieces, as bytes, in order of rank.
          reachable: true where the merges are known to be reachable; they are checked otherwise.
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
        self._encode: Callable[[str], list[int]] = self._tiktoken.encode_ordinary if self._tiktoken else self._walk

    @classmethod
    def read(cls, encoder_json: str | os.PathLike[str], vocab_bpe: str | os.PathLike[str]) -> ByteLevelBPE:
        """Reads encoder.json and vocab.bpe.

        Raises:
          CheckpointError: a file is missing or is not what its name says.
        """
        encoder = _read_encoder_json(Path(encoder_json))
        text = _read_text(Path(vocab_bpe))
        # get_encoder: the first line is a version, and what follows the last line break is not read
        lines = text.split("\n")[1:-1]
        byte_of = _byte_of()
        merges = []
        for number, line in enumerate(lines, start=2):
            pair = line.split()
            if len(pair) != 2 or not all(character in byte_of for character in line.replace(" ", "")):
                raise CheckpointError(f"{vocab_bpe}, line {number}: expected two BPE pieces, got {line[:80]!r}")
            merges.append((bytes(byte_of[c] for c in pair[0]), bytes(byte_of[c] for c in pair[1])))
        if not merges:
            raise CheckpointError(f"{vocab_bpe}: no merges in it; expected GPT-2's vocab.bpe format")
        digest = hashlib.sha256(text.encode()).hexdigest()
        return cls(encoder, merges, reachable=digest in _REACHABLE_MERGES_SHA256)

    def encode(self, text: str) -> list[int]:
        """The pieces of `text`, as indices into `pieces`."""
        if len(text) <= _LONG_WHITESPACE_RUN:
            return self._encode(text)
        return [i for part in _cut_long_whitespace(text) for i in self._encode(part)]

    def _walk(self, text: str) -> list[int]:
        pieces = _split_pattern().findall(text)
        return [self._rank[merged] for piece in pieces for merged in self.merge(piece.encode())]

    def merge(self, piece: bytes) -> tuple[bytes, ...]:
        """The BPE of one piece of split text, by the list of pairs (Encoder.bpe)."""
        if piece in self._merged:
            return self._merged[piece]
        parts = [bytes([byte]) for byte in piece]
        while len(parts) > 1:
            best = min(itertools.pairwise(parts), key=lambda pair: self._pair_rank.get(pair, math.inf))
            if best not in self._pair_rank:
                break
            parts = _merge_pair(parts, best)
        if len(self._merged) < 100_000:
            self._merged[piece] = tuple(parts)
        return tuple(parts)

    def bind(self, index: Mapping[str, int]) -> Callable[[str], list[int]]:
        missing = {number for number, i in enumerate(self.bpe_ids) if i is None}
        if not missing:
            return self.encode

        def numbers(text: str) -> list[int]:
            pieces = self.encode(text)
            if not missing.isdisjoint(pieces):
                piece = next(self.pieces[number] for number in pieces if number in missing)
                raise InputError(f"text needs the BPE piece {piece!r}, which this model's {ENCODER_FILE} does not have")
            return pieces

        return numbers

    def rules(self, index: Mapping[str, int]) -> tuple[Any, ...]:
        return list(self._pair_rank), self.token_ids(index)

    def token_ids(self, index: Mapping[str, int]) -> list[int]:
        return [_NO_ID if i is None else index.get(str(i), UNK_ID) for i in self.bpe_ids]

    def bytes_of(self, symbol: str) -> bytes:
        piece = self._piece_of.get(symbol)
        if piece is None or any(character not in _byte_of() for character in piece):
            return symbol.encode()
        return bytes(_byte_of()[character] for character in piece)

    def text_of(self, joined: bytes) -> str:
        return joined.decode("utf-8", errors="replace")

    def text_of_one(self, symbol: str) -> str:
        return self.text_of(self.bytes_of(symbol))

    def spans(self, text: str) -> npt.NDArray[np.int64]:
        lengths = np.array([len(self.pieces[number]) for number in self.encode(text)], np.int64)
        ends = np.cumsum(lengths)
        begins_character = (np.frombuffer(text.encode(), np.uint8) & 0xC0) != 0x80
        character_of = np.cumsum(begins_character) - 1  # of each byte of UTF-8
        return np.stack([character_of[ends - lengths], character_of[ends - 1] + 1], axis=1)

    def files(self) -> dict[str, bytes]:
        alphabet = byte_alphabet()
        merges = (" ".join("".join(alphabet[byte] for byte in piece) for piece in pair) for pair in self._pair_rank)
        return {
            ENCODER_FILE: json.dumps(self._encoder, ensure_ascii=False).encode(),
            MERGES_FILE: "".join([MERGES_HEADER, *(f"{pair}\n" for pair in merges)]).encode(),
        }

    @property
    def symbols(self) -> set[str]:
        """The BPE ids, as a dictionary has them."""
        return set(self._piece_of)

    @cached_property
    def _piece_of(self) -> dict[str, str]:
        return {str(i): piece for piece, i in self._encoder.items()}

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
    """A sentencepiece model; its pieces are the dictionary's symbols."""

    def __init__(self, model: bytes) -> None:
        """Loads a serialized sentencepiece model; ValueError where it is none."""
        import sentencepiece

        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
            self.pieces: list[str] = [self._processor.IdToPiece(i) for i in range(self._processor.GetPieceSize())]
        except (RuntimeError, OSError) as error:
            raise ValueError(str(error).strip() or "it cannot be parsed") from None
        if not self.pieces:
            raise ValueError("it has no pieces")
        # dictionary.encode_line splits at whitespace, which no piece of a model trained with the defaults has in it
        self._one_word_each = all(piece.split() == [piece] for piece in self.pieces)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> SentencePiece:
        """Reads sentencepiece.bpe.model.

        Raises:
          CheckpointError: it is missing or not a sentencepiece model.
        """
        try:
            return cls(Path(path).read_bytes())
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
        except ValueError as error:
            raise CheckpointError(f"{path} is not a sentencepiece model: {error}") from None

    def bind(self, index: Mapping[str, int]) -> Callable[[str], list[int]]:
        unknown = self._processor.unk_id()
        beyond = len(self.pieces)

        def numbers(text: str) -> list[int]:
            pieces: list[int] = self._processor.Encode(text, out_type=int)
            if self._one_word_each and unknown not in pieces:
                return pieces
            # an unknown piece stands for itself in the text, and is looked up as such
            words = " ".join(self._processor.Encode(text, out_type=str)).split()
            return [beyond + index.get(word, UNK_ID) for word in words]

        return numbers

    def rules(self, index: Mapping[str, int]) -> tuple[Any, ...]:
        return self._processor.serialized_model_proto(), self.token_ids(index)

    def token_ids(self, index: Mapping[str, int]) -> list[int]:
        return [index.get(piece, UNK_ID) for piece in self.pieces]

    def bytes_of(self, symbol: str) -> bytes:
        return symbol.replace(" ", "").replace(WORD_BOUNDARY, " ").encode()

    def text_of(self, joined: bytes) -> str:
        return joined.decode().strip()

    def text_of_one(self, symbol: str) -> str:
        # RobertaHubInterface.fill_mask: decode() has stripped the space
        space = " " if symbol.startswith(WORD_BOUNDARY) else ""
        return space + self.text_of(self.bytes_of(symbol))

    def spans(self, text: str) -> npt.NDArray[np.int64]:
        offsets = self._processor.Encode(text, out_type="offset_mapping")["offsets"]
        return np.array(offsets, np.int64).reshape(-1, 2)

    def files(self) -> dict[str, bytes]:
        return {SENTENCEPIECE_FILE: self._processor.serialized_model_proto()}

    @property
    def symbols(self) -> set[str]:
        """The pieces."""
        return set(self.pieces)


class Tokenizer:
    """A model's tokenizer: text to the token ids that index its embedding, and back.

    Attributes:
      dictionary: symbols and their ids.
      vocab_size: number of token ids, specials and `<mask>` included.
      bos_id, pad_id, eos_id, unk_id, mask_id: ids of `<s>`, `<pad>`, `</s>`, `<unk>`, `<mask>` in encoded text. (0, 1,
        2, 3 but in CamemBERT, whose dictionary has `<s>` and `</s>` a second time.)
    """

    pad_id = PAD_ID
    unk_id = UNK_ID

    def __init__(self, dictionary: Dictionary, bpe: BPE) -> None:
        self.dictionary = dictionary
        self.bpe = bpe
        self.vocab_size = len(dictionary)
        self.bos_id, self.eos_id, self.mask_id = (dictionary.index[symbol] for symbol in (BOS, EOS, MASK))
        self._numbers = bpe.bind(dictionary.index)
        of_pieces = bpe.token_ids(dictionary.index)
        # int32 [pieces + vocab_size]: token ids by the numbers that `pieces` gives; beyond them each stands for itself
        self._id_of = np.array([*of_pieces, *range(self.vocab_size)], np.int32)
        self._bos, self._eos = len(of_pieces) + self.bos_id, len(of_pieces) + self.eos_id
        self._one_eos, self._two_eos = (self._eos,), (self._eos, self._eos)
        self._bytes = [
            b"" if symbol in (BOS, PAD, EOS) else symbol.encode() if symbol in (UNK, MASK) else bpe.bytes_of(symbol)
            for symbol in dictionary.symbols
        ]

    @classmethod
    def from_files(
        cls,
        dictionary: str | os.PathLike[str],
        encoder_json: str | os.PathLike[str],
        vocab_bpe: str | os.PathLike[str],
    ) -> Tokenizer:
        """Reads a model's dict.txt and its BPE's encoder.json and vocab.bpe.

        Raises:
          CheckpointError: a file is missing or malformed, or the dictionary is not one over this BPE.
        """
        return cls._of(dictionary, encoder_json, ByteLevelBPE.read(encoder_json, vocab_bpe))

    @classmethod
    def from_sentencepiece(cls, dictionary: str | os.PathLike[str], model: str | os.PathLike[str]) -> Tokenizer:
        """Reads a model's dict.txt and its sentencepiece model; raises CheckpointError as `from_files`."""
        return cls._of(dictionary, model, SentencePiece.read(model))

    @classmethod
    def _of(
        cls,
        dictionary: str | os.PathLike[str],
        bpe_file: str | os.PathLike[str],
        bpe: ByteLevelBPE | SentencePiece,
    ) -> Tokenizer:
        symbols = Dictionary.read(dictionary)
        if bpe.symbols.isdisjoint(symbols.symbols[4:]):
            raise CheckpointError(
                f"{dictionary} has no piece of {bpe_file} among its {len(symbols)} symbols: it is the dictionary "
                "of another tokenizer; give the files of one model together"
            )
        return cls(symbols, bpe)

    @classmethod
    def from_directory(cls, directory: str | os.PathLike[str]) -> Tokenizer:
        """Reads a tokenizer's files from `directory`; raises CheckpointError as `from_files`."""
        folder = Path(directory)
        if (folder / SENTENCEPIECE_FILE).is_file():
            return cls.from_sentencepiece(*(folder / name for name in SENTENCEPIECE_FILES))
        return cls.from_files(*(folder / name for name in BYTE_LEVEL_FILES))

    def files(self) -> dict[str, bytes]:
        """The files that `from_directory` reads: content by name."""
        return {DICTIONARY_FILE: self.dictionary.to_text().encode(), **self.bpe.files()}

    def is_same_as(self, other: Tokenizer) -> bool:
        """Whether the two give every text the same ids, and all ids the same text, from whichever files."""
        return self._definition() == other._definition()

    def fingerprint(self) -> str:
        """A SHA-256 in hex, the same for tokenizers that are (is_same_as); files of token ids name theirs by it."""
        return hashlib.sha256(repr(self._definition()).encode()).hexdigest()

    def _definition(self) -> tuple[Any, ...]:
        specials = (self.bos_id, self.eos_id, self.mask_id)
        return type(self.bpe).__name__, specials, self._bytes, self.bpe.rules(self.dictionary.index)

    def encode(self, text: str, *more: str, no_separator: bool = False) -> npt.NDArray[np.int32]:
        """Encodes a sentence, or several, as fairseq's hub does.

        `<s> a </s>` for one; `<s> a </s></s> b </s>` for two, and so on; with no_separator, `<s> a </s> b </s>`.
        BPE pieces begin with their space, so 'world' and ' world' differ. Text is text: the characters
        `<mask>` or `</s>` in it become ordinary pieces. The length is not limited here.

        Returns:
          int32 [length].

        Raises:
          InputError: something that is not a str, or text with lone surrogates, which has no UTF-8 form.
        """
        sentences = [self.pieces(text)]
        if more:
            sentences += map(self.pieces, more)
        return self.join(sentences, no_separator=no_separator)

    def encode_text(self, text: str) -> npt.NDArray[np.int32]:
        """Token ids of `text` alone, with no special tokens: int32 [length]. Raises as `encode`."""
        return self._id_of.take(np.array(self.pieces(text), np.intp))

    def pieces(self, text: str) -> list[int]:
        """The pieces of `text`, one for each of its token ids, as numbers that `join` takes. Raises as `encode`."""
        if not isinstance(text, str):
            raise InputError(f"expected text as str, got {type(text).__name__}: {str(text)[:60]!r}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"text has the lone surrogate U+{ord(text[error.start]):04X} at character {error.start}, which has "
                "no UTF-8 form; decode the source with errors='replace' first"
            ) from None
        return self._numbers(text)

    def spans(self, text: str) -> npt.NDArray[np.int64]:
        """Which characters of `text` each of its tokens, as of `encode_text`, stands for.

        A space that a token brings is one of its characters. Where a character is several tokens, each stands for it.

        Returns:
          int64 [length, 2]: the first character, and the one after the last.

        Raises:
          InputError: as `encode`; or the text has a piece that is no single token, as with sentencepiece may be.
        """
        count = len(self.pieces(text))
        spans = self.bpe.spans(text)
        if len(spans) != count:
            raise InputError(f"text has pieces with whitespace inside, which are several tokens: {text[:60]!r}")
        return spans

    def join(self, sentences: Sequence[list[int]], *, no_separator: bool = False) -> npt.NDArray[np.int32]:
        """The token ids of one sentence or more, given by their `pieces`, as `encode` joins them: int32 [length]."""
        return self.join_all([sentences], no_separator=no_separator)[0]

    def join_all(
        self, inputs: Iterable[Sequence[list[int]]], *, no_separator: bool = False
    ) -> list[npt.NDArray[np.int32]]:
        """`join` of each of several inputs: views, [length] each, of one array.

        One look-up for all: what numpy costs a call is a good part of what BPE costs a short sentence.
        """
        separator = self._one_eos if no_separator else self._two_eos
        numbers: list[int] = []
        borders = [0]
        for first, *others in inputs:
            numbers.append(self._bos)
            numbers += first
            for sentence in others:
                numbers += separator
                numbers += sentence
            numbers.append(self._eos)
            borders.append(len(numbers))
        ids = self._id_of.take(numbers) if numbers else np.empty(0, np.int32)
        return [ids[begin:end] for begin, end in itertools.pairwise(borders)]

    def decode(self, tokens: npt.ArrayLike) -> str | list[str]:
        """The text of one sequence of token ids, [length]; a list of texts where `</s></s>` separates several.

        `<s>`, `</s>` and padding have no text; `<unk>` and `<mask>` come back as those characters. Bytes that
        are not UTF-8 become U+FFFD. (fairseq's own decode stops with an error at padding and at the
        dictionary's filler words; here a padded row decodes, and a filler word is its own name.)

        Raises:
          InputError: not one non-empty sequence of integers, or an id outside the vocabulary.
        """
        ids = np.asarray(tokens)
        if ids.ndim != 1 or ids.size == 0:
            raise InputError(f"decode takes one sequence of token ids, [length]; got shape {ids.shape}")
        check_token_ids(ids, self.vocab_size)
        if ids[0] in (BOS_ID, self.bos_id):
            ids = ids[1:]
        is_eos = (ids == EOS_ID) | (ids == self.eos_id)
        borders = (is_eos[1:] & is_eos[:-1]).nonzero()[0] + 1
        sentences = [self._text(sentence) for sentence in np.split(ids, borders)]
        return sentences[0] if len(sentences) == 1 else sentences

    def token_text(self, token_id: int) -> str:
        """What one token adds to a text, with the space before it that it may bring."""
        symbol = self.dictionary.symbols[token_id]
        return symbol if symbol in (UNK, MASK) else self.bpe.text_of_one(symbol)

    def _text(self, ids: npt.NDArray[Any]) -> str:
        return self.bpe.text_of(b"".join(self._bytes[i] for i in ids.tolist()))


def check_token_ids(ids: npt.NDArray[Any], vocab_size: int) -> None:
    """Raises InputError unless `ids` are integers in [0, vocab_size): JAX would clamp an index silently."""
    if not np.issubdtype(ids.dtype, np.integer):
        raise InputError(f"token ids must be integers, got {ids.dtype}; encode text with encode()")
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        wrong = int(ids.min()) if ids.min() < 0 else int(ids.max())
        raise InputError(f"token id {wrong} is outside the vocabulary of {vocab_size} (0 to {vocab_size - 1})")


def _read_encoder_json(path: Path) -> dict[str, int]:
    """Reads encoder.json, BPE piece -> BPE id; raises CheckpointError where it is not that."""
    try:
        encoder = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    if not isinstance(encoder, dict) or not all(type(i) is int for i in encoder.values()):
        raise CheckpointError(f"{path}: expected one JSON object, BPE piece -> id")
    return encoder


def _read_text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is missing; a model's tokenizer needs {', '.join(BYTE_LEVEL_FILES)}, or "
            f"{', '.join(SENTENCEPIECE_FILES)}"
        ) from None
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None


def _is_integer(text: str) -> bool:
    try:
        int(text)
    except ValueError:
        return False
    return True


@lru_cache(maxsize=1)
def _byte_of() -> dict[str, int]:
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
    """The pattern by which fairseq splits text before merging (Encoder.pat)."""
    return regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


@lru_cache(maxsize=1)
def _tiktoken_pattern() -> str:
    """The same language as `_split_pattern`, for tiktoken: explicit classes, and possessive where that is equal.

    `\\s+(?!\\S)|\\s+` takes a run of whitespace whole at the end of the text, else all but its last character,
    else a lone character: the last three alternatives.
    """
    letter, number, space = (_ranges(name) for name in (r"\p{L}", r"\p{N}", r"\s"))
    return (
        f"'(?:[stmd]|re|ve|ll)| ?[{letter}]++| ?[{number}]++| ?[^{space}{letter}{number}]++"
        f"|[{space}]++$|[{space}]+(?![^{space}])|[{space}]"
    )


def _ranges(character_class: str) -> str:
    """The code points of one of the `regex` package's classes, as the inside of a bracket expression."""
    runs = regex.finditer(f"{character_class}+", _all_characters())
    return "".join(rf"\x{{{ord(run[0][0]):X}}}-\x{{{ord(run[0][-1]):X}}}" for run in runs)


def _all_characters() -> str:
    code_points = np.arange(0x110000, dtype="<u4")
    return code_points[(code_points < 0xD800) | (code_points > 0xDFFF)].tobytes().decode("utf-32-le")


def _cut_long_whitespace(text: str) -> list[str]:
    """Cuts `text` before the last character of every very long whitespace run: there `_split_pattern` splits too."""
    run = rf"(?<!\s)\s{{{_LONG_WHITESPACE_RUN},}}+(?=\S)"
    cuts = [match.end() - 1 for match in regex.finditer(run, text)]
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
