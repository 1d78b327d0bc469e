"""Text to token ids and back: one interface to the tokenizers of fairseq and to those of Hugging Face.

A model's ids are those of its own library. A fairseq model splits text by fairseq's rules (text/fairseq_tokenizer.py);
a model from Hugging Face by the package that wrote its tokenizer.json (text/huggingface_tokenizer.py). Both are
backends of `Tokenizer`, which checks texts and ids, and joins texts to inputs.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from roberta_flax.errors import InputError
from roberta_flax.text.fairseq_tokenizer import (
    BYTE_LEVEL_FILES,
    SENTENCEPIECE_FILE,
    SENTENCEPIECE_FILES,
    FairseqTokenizer,
)
from roberta_flax.text.huggingface_tokenizer import (
    EFFECTIVE_FILE,
    SETTINGS_FILE,
    HuggingFaceSettings,
    HuggingFaceTokenizer,
)
from roberta_flax.text.windows import TokenWindow

Ids = npt.NDArray[np.int32]

# All files that decide which tokenizer `Tokenizer.from_directory` reads; a directory has some of them
FILES = tuple(dict.fromkeys((SETTINGS_FILE, EFFECTIVE_FILE, *BYTE_LEVEL_FILES, *SENTENCEPIECE_FILES)))

_Value = TypeVar("_Value")


class Backend(Protocol):
    """What a tokenizer does in a way of its own. Texts are str without lone surrogates; ids are in the vocabulary.

    Text becomes pieces, which have numbers, and `id_of_number` gives the token id of each. Ids of many texts are thus
    looked up at once.
    """

    @property
    def vocab_size(self) -> int:
        """The number of token ids, special tokens included."""
        ...

    @property
    def bos_id(self) -> int | None:
        """The id of the token that begins an input: `<s>`, `[CLS]`."""
        ...

    @property
    def eos_id(self) -> int | None:
        """The id of the token that ends a text: `</s>`, `[SEP]`."""
        ...

    @property
    def pad_id(self) -> int | None:
        """The id of padding."""
        ...

    @property
    def unk_id(self) -> int | None:
        """The id of what is not in the vocabulary."""
        ...

    @property
    def mask_id(self) -> int | None:
        """The id of the mask."""
        ...

    @property
    def mask_token(self) -> str | None:
        """The mask as it is written in text."""
        ...

    @property
    def special_ids(self) -> frozenset[int]:
        """The ids that masked-LM training does not put in place of a token."""
        ...

    @property
    def id_of_number(self) -> Ids:
        """The token id of each piece number."""
        ...

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Splits texts into pieces, and returns the numbers of each text's."""
        ...

    def around(self, count: int, no_separator: bool = False) -> list[tuple[int, ...]]:
        """The numbers of the special tokens before the first of `count` texts, between any two, and after the last."""
        ...

    def joined_alone(self, texts: Sequence[str]) -> Sequence[str]:
        """The texts that `Tokenizer.encode` joins, of those that it is given."""
        ...

    def truncate(self, sentences: Sequence[list[int]], room: int) -> list[list[int]]:
        """Truncates the texts of an input, given as pieces, so that together they have at most `room`."""
        ...

    def spans(self, text: str) -> npt.NDArray[np.int64]:
        """The begin (inclusive) and end (exclusive) of each piece of `text`, in characters: [pieces, 2]."""
        ...

    @property
    def marks_continuations(self) -> bool:
        """Whether the vocabulary marks tokens that continue a word."""
        ...

    @property
    def continuation_mark(self) -> str:
        """What `token_name` ends in for a token that does not end its word, where the vocabulary marks these."""
        ...

    def windows(self, texts: Sequence[str], max_length: int, stride: int) -> list[TokenWindow]:
        """Windows over the last of one text or two, with the places of their tokens in the texts."""
        ...

    def token_name(self, token_id: int) -> str:
        """A token as the vocabulary writes it."""
        ...

    def join_names(self, names: Sequence[str]) -> str:
        """The text of tokens, given as `token_name` writes them."""
        ...

    def decode(self, ids: npt.NDArray[Any]) -> list[str]:
        """The texts of one sequence of ids, [length], which is not empty."""
        ...

    def is_silent(self, token_id: int) -> bool:
        """Whether an id has no text: it begins, ends or pads an input, or no token has it."""
        ...

    def token_text(self, token_id: int) -> str:
        """The text of one token inside a sentence, including the space before it if it has one."""
        ...

    def word_begins(self) -> npt.NDArray[np.bool_]:
        """Which ids begin a word, or are no piece of one: [vocab_size]."""
        ...

    def encode_masked(self, text: str) -> tuple[Ids, list[int]]:
        """Encodes a text with masks: token ids, [length], and the positions of the masks."""
        ...

    def fill_mask(self, text: str, token_id: int) -> str:
        """Puts the text of a token in place of the mask."""
        ...

    def named_token(self, name: str) -> int | None:
        """The id of the token that `token_name` gives this name, or None."""
        ...

    def plain_text(self, ids: Sequence[int], *, with_specials: bool) -> str:
        """The text of ids as the tokenizers of Transformers decode them."""
        ...

    def files(self) -> dict[str, bytes]:
        """The files that `Tokenizer.from_directory` reads: content by file name."""
        ...

    def definition(self) -> tuple[Any, ...]:
        """All that decides how text is encoded and ids are decoded."""
        ...


class Tokenizer:
    """A model's tokenizer, from text to the token ids that index the model's embedding, and back.

    Attributes:
      backend: the tokenizer of fairseq or of Hugging Face that this is.
      vocab_size: number of token ids, including special tokens and the mask.
      bos_id, pad_id, eos_id, unk_id, mask_id: ids of `<s>`, `<pad>`, `</s>`, `<unk>` and `<mask>` in encoded text, or
        of the tokens that take their places in a Hugging Face model. In fairseq the first four are 0, 1, 2 and 3,
        except in CamemBERT, whose dictionary contains `<s>` and `</s>` a second time.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.vocab_size = backend.vocab_size
        self._special_lengths: dict[tuple[int, bool], tuple[int, int, int]] = {}

    def __repr__(self) -> str:
        return f"<Tokenizer: {type(self.backend).__name__}, {self.vocab_size} ids>"

    @classmethod
    def from_files(
        cls,
        dictionary: str | os.PathLike[str],
        encoder_json: str | os.PathLike[str],
        vocab_bpe: str | os.PathLike[str],
    ) -> Tokenizer:
        """Reads a fairseq model's dict.txt, and encoder.json and vocab.bpe of its BPE.

        Raises:
          CheckpointError: a file is missing or malformed, or the dictionary belongs to another BPE.
        """
        return cls(FairseqTokenizer.from_files(dictionary, encoder_json, vocab_bpe))

    @classmethod
    def from_sentencepiece(cls, dictionary: str | os.PathLike[str], model: str | os.PathLike[str]) -> Tokenizer:
        """Reads a fairseq model's dict.txt and its sentencepiece model. Raises CheckpointError as `from_files` does."""
        return cls(FairseqTokenizer.from_sentencepiece(dictionary, model))

    @classmethod
    def from_directory(cls, directory: str | os.PathLike[str]) -> Tokenizer:
        """Reads a tokenizer's files from a converted directory, or fairseq's from any directory.

        Raises:
          CheckpointError: a file is missing or malformed.
        """
        folder = Path(directory)
        if not (folder / SETTINGS_FILE).is_file():
            return cls(FairseqTokenizer.from_directory(folder))
        settings = HuggingFaceSettings.read(folder)
        if not settings.has_tokenizer:
            return cls(NoTokenizer(settings))
        return cls(HuggingFaceTokenizer.from_directory(folder, settings))

    def files(self) -> dict[str, bytes]:
        """The files that `from_directory` reads: content by file name."""
        return self.backend.files()

    def is_same_as(self, other: Tokenizer) -> bool:
        """Whether both tokenizers encode every text to the same ids, and decode all ids to the same text.

        Their files may differ.
        """
        return self.backend.definition() == other.backend.definition()

    def fingerprint(self) -> str:
        """A SHA-256 in hex, equal for tokenizers that are the same (`is_same_as`). Files of token ids record it."""
        return hashlib.sha256(repr(self.backend.definition()).encode()).hexdigest()

    def encode(self, text: str, *more: str, no_separator: bool = False) -> Ids:
        """Encodes a sentence, or several, as the model's own library does.

        For a fairseq model the result is `<s> a </s>` for one sentence and `<s> a </s></s> b </s>` for two, or
        `<s> a </s> b </s>` with no_separator. A BPE piece includes the space before it, so 'world' and ' world' differ.
        Special tokens are not recognized in text: the characters `<mask>` or `</s>` become ordinary pieces.

        For a Hugging Face model the result is that of transformers' AutoTokenizer, for one sentence or two; where the
        second is empty, it is that of the first alone. Special and added tokens are recognized in text.

        The length is not limited here.

        Returns:
          int32 [length].

        Raises:
          InputError: an argument is not a str, or has a lone surrogate, which cannot be encoded as UTF-8; or the
            tokenizer does not join so many sentences.
        """
        sentences = self.pieces_of(self.backend.joined_alone((text, *more)))
        return self.join(sentences, no_separator=no_separator)

    def encode_text(self, text: str) -> Ids:
        """Encodes `text` alone, without special tokens: int32 [length]. Raises InputError as `encode` does."""
        return self.backend.id_of_number.take(np.array(self.pieces(text), np.intp))

    def pieces(self, text: str) -> list[int]:
        """Splits `text` into pieces and returns their numbers, one for each token id, as `join` accepts them.

        Raises InputError as `encode` does.
        """
        return self.pieces_of([text])[0]

    def pieces_of(self, texts: Sequence[str]) -> list[list[int]]:
        """Does what `pieces` does, for many texts at once, which may be faster. Raises InputError for any of them."""
        for text in texts:
            _check_text(text)
        return self.backend.pieces(texts)

    def spans(self, text: str) -> npt.NDArray[np.int64]:
        """The characters of `text` that each token of `encode_text` stands for.

        The space at the beginning of a token is one of its characters, unless the settings of a Hugging Face tokenizer
        leave it out. If a character is encoded as several tokens, each of them stands for it.

        Returns:
          int64 [length, 2], the begin (inclusive) and the end (exclusive) of each token.

        Raises:
          InputError: as `encode`, or a piece of the text is several tokens, which can happen with fairseq's
            sentencepiece.
        """
        _check_text(text)
        return self.backend.spans(text)

    def join(self, sentences: Sequence[list[int]], *, no_separator: bool = False) -> Ids:
        """Joins sentences, each given as its `pieces`, and returns token ids as `encode` does: int32 [length]."""
        return self.join_all([sentences], no_separator=no_separator)[0]

    def join_all(self, inputs: Iterable[Sequence[list[int]]], *, no_separator: bool = False) -> list[Ids]:
        """Joins each of several inputs as `join` does. The results, [length] each, are views of one array.

        All ids are looked up in one call of numpy, because the cost of a call is a good part of the cost of BPE on a
        short sentence.
        """
        frames: dict[int, list[tuple[int, ...]]] = {}
        numbers: list[int] = []
        borders = [0]
        for sentences in inputs:
            count = len(sentences)
            if count not in frames:
                frames[count] = self.backend.around(count, no_separator)
            frame = frames[count]
            for special, sentence in zip(frame, sentences, strict=False):
                numbers += special
                numbers += sentence
            numbers += frame[-1]
            borders.append(len(numbers))
        ids = self.backend.id_of_number.take(numbers) if numbers else np.empty(0, np.int32)
        return [ids[begin:end] for begin, end in itertools.pairwise(borders)]

    def special_lengths(self, count: int, *, no_separator: bool = False) -> tuple[int, int, int]:
        """The numbers of special tokens in an input of `count` texts: before the first, after the last, and in all.

        Raises:
          InputError: the tokenizer does not join so many texts.
        """
        key = count, no_separator
        if key not in self._special_lengths:
            lengths = list(map(len, self.backend.around(count, no_separator)))
            self._special_lengths[key] = lengths[0], lengths[-1], sum(lengths)
        return self._special_lengths[key]

    def truncate(self, sentences: Sequence[list[int]], room: int) -> list[list[int]]:
        """Truncates the texts of an input, each given as its `pieces`, so that together they have at most `room`.

        Tokens are removed from whichever text is longest, as by the model's own library.
        """
        return self.backend.truncate(sentences, room)

    def decode(self, tokens: npt.ArrayLike) -> str | list[str]:
        """Decodes one sequence of token ids, [length]: a text, or a list of texts if `</s></s>` separates several.

        `<s>`, `</s>` and padding have no text; `<unk>` and `<mask>` decode to those characters. Bytes that are not
        UTF-8 become U+FFFD. Unlike fairseq's decode, which fails at padding and at the dictionary's filler words, this
        one decodes padded rows, and a filler word to its name. For a Hugging Face model, the tokens that take these
        places do the same.

        Raises:
          InputError: the argument is not one non-empty sequence of integers, or an id is outside the vocabulary.
        """
        ids = np.asarray(tokens)
        if ids.ndim != 1 or ids.size == 0:
            raise InputError(f"decode takes one sequence of token ids, [length]; got shape {ids.shape}")
        check_token_ids(ids, self.vocab_size)
        sentences = self.backend.decode(ids)
        return sentences[0] if len(sentences) == 1 else sentences

    def token_text(self, token_id: int) -> str:
        """The text of one token inside a sentence, including the space before it if it has one."""
        return self.backend.token_text(token_id)

    def windows(self, *texts: str, max_length: int, stride: int = 0) -> list[TokenWindow]:
        """Encodes one text or two in windows, with the places of tokens in the texts, as Transformers' tokenizers do.

        Args:
          texts: the texts.
          max_length: maximum length of a window in tokens. Windows slide over the last text, each with the text before.
          stride: how many tokens two neighboring windows share.

        Raises:
          InputError: as `encode` or `spans`; or windows of this length cannot slide.
        """
        for text in texts:
            _check_text(text)
        return self.backend.windows(texts, max_length, stride)

    def token_name(self, token_id: int) -> str:
        """A token as the vocabulary writes it, such as `Ġworld`."""
        return self.backend.token_name(token_id)

    def join_names(self, names: Sequence[str]) -> str:
        """The text of tokens, given as `token_name` writes them."""
        return self.backend.join_names(names)

    def named_token(self, name: str) -> int | None:
        """The id of the token that the vocabulary writes so, or None."""
        return self.backend.named_token(name)

    def plain_text(self, ids: Sequence[int], *, with_specials: bool = False) -> str:
        """The text of token ids as the tokenizers of Transformers decode them, with special tokens or without them."""
        return self.backend.plain_text(ids, with_specials=with_specials)

    @property
    def continuation_mark(self) -> str:
        """What `token_name` ends in for a token that does not end its word, where the vocabulary marks these."""
        return self.backend.continuation_mark

    @property
    def marks_continuations(self) -> bool:
        """Whether the vocabulary marks tokens that continue a word."""
        return self.backend.marks_continuations

    def is_silent(self, token_id: int) -> bool:
        """Whether an id has no text: it begins, ends or pads an input, or no token has it."""
        return self.backend.is_silent(token_id)

    def word_begins(self) -> npt.NDArray[np.bool_]:
        """Which ids begin a word, or are no piece of one: bool [vocab_size].

        Raises:
          InputError: the pieces do not say where a word begins.
        """
        return self.backend.word_begins()

    def encode_masked(self, text: str) -> tuple[Ids, list[int]]:
        """Encodes a text that may contain masks, as the model's own library does for filling them.

        Returns:
          The token ids, int32 [length], and the positions of the masks among them.

        Raises:
          InputError: as `encode`.
        """
        _check_text(text)
        return self.backend.encode_masked(text)

    def fill_mask(self, text: str, token_id: int) -> str:
        """The text with that of a token in place of its one mask."""
        return self.backend.fill_mask(text, token_id)

    @property
    def special_ids(self) -> frozenset[int]:
        """The ids that masked-LM training does not put in place of a token."""
        return self.backend.special_ids

    @property
    def bos_id(self) -> int:
        return _required(self.backend.bos_id, "token that begins an input (cls_token or bos_token)")

    @property
    def eos_id(self) -> int:
        return _required(self.backend.eos_id, "token that ends a text (sep_token or eos_token)")

    @property
    def pad_id(self) -> int:
        return _required(self.backend.pad_id, "padding (pad_token)")

    @property
    def unk_id(self) -> int:
        return _required(self.backend.unk_id, "unknown token (unk_token)")

    @property
    def mask_id(self) -> int:
        return _required(self.backend.mask_id, "mask (mask_token)")

    @property
    def mask_token(self) -> str:
        """The mask as it is written in text."""
        return _required(self.backend.mask_token, "mask (mask_token)")


class NoTokenizer:
    """The backend of a model that was converted without its tokenizer: whatever needs one says so."""

    bos_id = eos_id = pad_id = unk_id = mask_id = mask_token = None
    special_ids: frozenset[int] = frozenset()
    marks_continuations = False
    continuation_mark = ""

    def __init__(self, settings: HuggingFaceSettings) -> None:
        self._settings = settings
        self.vocab_size = settings.vocab_size
        self.id_of_number = np.empty(0, np.int32)

    def files(self) -> dict[str, bytes]:
        return self._settings.files()

    def definition(self) -> tuple[Any, ...]:
        return "none", self.vocab_size

    def is_silent(self, token_id: int) -> bool:
        return False

    def token_text(self, token_id: int) -> str:
        return str(token_id)

    def _refuse(self, *arguments: Any, **options: Any) -> NoReturn:
        raise InputError(
            "this model was converted without its tokenizer (--no-tokenizer): pass token ids, or convert it with one"
        )

    pieces = around = joined_alone = truncate = spans = decode = word_begins = encode_masked = fill_mask = _refuse
    windows = token_name = join_names = named_token = plain_text = _refuse


def file_names(directory: Path) -> tuple[str, ...]:
    """The names of the files that `Tokenizer.from_directory` needs in `directory`, depending on what is there."""
    if (directory / SETTINGS_FILE).is_file():
        return HuggingFaceSettings.read(directory).file_names()
    return SENTENCEPIECE_FILES if (directory / SENTENCEPIECE_FILE).is_file() else BYTE_LEVEL_FILES


def check_token_ids(ids: npt.NDArray[Any], vocab_size: int) -> None:
    """Raises InputError unless `ids` are integers in [0, vocab_size). JAX would silently clamp others."""
    if not np.issubdtype(ids.dtype, np.integer):
        raise InputError(f"token ids must be integers, got {ids.dtype}; encode text with encode()")
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        wrong = int(ids.min()) if ids.min() < 0 else int(ids.max())
        raise InputError(f"token id {wrong} is outside the vocabulary of {vocab_size} (0 to {vocab_size - 1})")


def _required(value: _Value | None, what: str) -> _Value:
    """Returns the id or the text of a special token; raises InputError if the model has none."""
    if value is None:
        raise InputError(f"this model's tokenizer has no {what}")
    return value


def _check_text(text: Any) -> None:
    if not isinstance(text, str):
        raise InputError(f"expected text as str, got {type(text).__name__}: {str(text)[:60]!r}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"text has the lone surrogate U+{ord(text[error.start]):04X} at character {error.start}, which "
            "cannot be encoded as UTF-8; decode the source with errors='replace' first"
        ) from None
