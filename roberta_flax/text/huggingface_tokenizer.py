"""The tokenizer of a Hugging Face model, run by the package that writes tokenizer.json (`tokenizers`).

A conversion (convert/hf_tokenizer.py) applies the settings that transformers reads beside tokenizer.json, and writes
the result, EFFECTIVE_FILE, with SETTINGS_FILE, which says which ids are the special tokens'. The files of the source
are kept under their own names, for `export`; nothing here reads them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from roberta_flax.errors import CheckpointError, InputError, RobertaFlaxError, shortened
from roberta_flax.files import read_text, reading
from roberta_flax.text.truncation import longest_first, longest_first_of_two
from roberta_flax.text.windows import TokenWindow, check_windows_advance

EFFECTIVE_FILE = "effective_tokenizer.json"
SETTINGS_FILE = "tokenizer_settings.json"

_SIDES = 64  # texts of pairs that are kept encoded: several questions about a context follow each other in files
_MAX_VOCAB_SIZE = 1 << 24  # of ids; the largest vocabulary has a million
# One of them is at least one piece for any tokenizer of text.
_SOME_TEXTS = ("a", "A", "0", ".", "の", "的", "и", "ا")

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class HuggingFaceSettings:
    """The settings of a Hugging Face model's tokenizer that its EFFECTIVE_FILE does not have.

    Attributes:
      vocab_size: the number of ids that the model embeds.
      largest_id: the largest id of a token. Tokens whose ids the model does not embed are refused in text, unless
        is_python.
      bos_id, eos_id, pad_id, unk_id, mask_id: the ids of special tokens; None where the model has none.
      silent_ids: the ids of tokens that begin, separate, end or pad inputs, and have no text.
      is_python: whether transformers runs the tokenizer in Python, where pieces that have no ids are unknown tokens.
      split_special_tokens: whether special tokens are not recognized in text.
      truncation_side: "right" or "left": which end of a text that is too long is removed.
      cleans_up_spaces: whether transformers removes spaces before punctuation from text that it decodes.
      source_files: the names of the source's files, which are kept.
      model_type, tokenizer_class: config.json's, by which transformers chooses the tokenizer's class where the source's
        files do not name it; tokenizer_class is empty if config.json has none.
      has_tokenizer: false if the model was converted without its tokenizer.
    """

    vocab_size: int
    largest_id: int = -1
    bos_id: int | None = None
    eos_id: int | None = None
    pad_id: int | None = None
    unk_id: int | None = None
    mask_id: int | None = None
    silent_ids: tuple[int, ...] = ()
    is_python: bool = False
    split_special_tokens: bool = False
    truncation_side: str = "right"
    cleans_up_spaces: bool = field(default=False, compare=False, repr=False)  # no part of the tokenizer's definition
    source_files: tuple[str, ...] = ()
    model_type: str = ""
    tokenizer_class: str = ""
    has_tokenizer: bool = True

    @classmethod
    def read(cls, directory: Path) -> HuggingFaceSettings:
        """Reads SETTINGS_FILE of a directory. Raises CheckpointError if it is damaged."""
        path = directory / SETTINGS_FILE
        try:
            values = json.loads(read_text(path))
            given: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
            }
            settings = cls(**given)
            settings._check()
        except CheckpointError:
            raise
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path} is damaged ({shortened(str(error))}); convert the model again") from None
        return settings

    def _check(self) -> None:
        ids = [self.bos_id, self.eos_id, self.pad_id, self.unk_id, self.mask_id]
        if type(self.vocab_size) is not int or not 0 < self.vocab_size <= _MAX_VOCAB_SIZE:
            raise ValueError(f"vocab_size is {self.vocab_size!r}")
        if type(self.largest_id) is not int or not -1 <= self.largest_id < 2 * _MAX_VOCAB_SIZE:
            raise ValueError(f"largest_id is {self.largest_id!r}")
        given = [i for i in ids if i is not None]
        if not all(type(i) is int and 0 <= i < self.vocab_size for i in (*given, *self.silent_ids)):
            raise ValueError("a special token has no id")
        if not all(isinstance(name, str) and Path(name).name == name for name in self.source_files):
            raise ValueError("a source file has no name")

    def files(self) -> dict[str, bytes]:
        """SETTINGS_FILE, by name."""
        return {SETTINGS_FILE: (json.dumps(dataclasses.asdict(self), indent=2) + "\n").encode()}

    def file_names(self) -> tuple[str, ...]:
        """The names of all files of the tokenizer."""
        return (SETTINGS_FILE, *((EFFECTIVE_FILE, *self.source_files) if self.has_tokenizer else ()))


class HuggingFaceTokenizer:
    """A Hugging Face model's tokenizer: a backend of `Tokenizer`. Backend (text/tokenizer.py) says what each part does.

    Attributes:
      settings: what the file of the tokenizer does not say.
      content: the file of the tokenizer, a tokenizer.json.
      source_files: the files of the source: content by file name.
    """

    def __init__(self, settings: HuggingFaceSettings, content: str, source_files: Mapping[str, bytes]) -> None:
        """Builds the tokenizer. Raises ValueError if the file is none, or does not fit the settings."""
        self.settings, self.content, self.source_files = settings, content, source_files
        self._tokenizer = parse(content)
        self._tokenizer.encode_special_tokens = settings.split_special_tokens
        self.vocab_size = settings.vocab_size
        self.bos_id, self.eos_id, self.pad_id = settings.bos_id, settings.eos_id, settings.pad_id
        self.unk_id, self.mask_id = settings.unk_id, settings.mask_id
        specials = (self.bos_id, self.eos_id, self.pad_id, self.unk_id)
        self.special_ids = frozenset(token_id for token_id in specials if token_id is not None)
        beyond = max(0, settings.largest_id + 1 - self.vocab_size)
        self._may_refuse = beyond > 0 and not settings.is_python
        if settings.is_python and self.unk_id is None:
            raise ValueError("it has no unknown token")
        self.id_of_number = np.append(np.arange(self.vocab_size), [self.unk_id or 0] * beyond).astype(np.int32)
        self._around = _special_tokens(self._tokenizer)
        self._truncating: dict[tuple[int, int, int], Any] = {}

    @classmethod
    def from_directory(cls, directory: Path, settings: HuggingFaceSettings) -> HuggingFaceTokenizer:
        """Reads a tokenizer from a converted directory. Raises CheckpointError if a file is missing or damaged."""
        path = directory / EFFECTIVE_FILE
        content = read_text(path)
        with reading(directory):
            source_files = {name: (directory / name).read_bytes() for name in settings.source_files}
        try:
            return cls(settings, content, source_files)
        except ValueError as error:
            raise CheckpointError(f"{path} is damaged ({shortened(str(error))}); convert the model again") from None

    @property
    def mask_token(self) -> str | None:
        return None if self.mask_id is None else self._tokenizer.id_to_token(self.mask_id)

    def files(self) -> dict[str, bytes]:
        return {EFFECTIVE_FILE: self.content.encode(), **self.settings.files(), **self.source_files}

    def definition(self) -> tuple[Any, ...]:
        return self.content, dataclasses.replace(self.settings, source_files=(), model_type="", tokenizer_class="")

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        if len(texts) == 1:
            encodings = [self._tokenizer.encode(texts[0], add_special_tokens=False)]
        else:
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        sentences: list[list[int]] = [encoding.ids for encoding in encodings]
        if self._may_refuse:
            for sentence in sentences:
                self._check_embedded(sentence)
        return sentences

    def _check_embedded(self, numbers: Sequence[int]) -> None:
        if (largest := max(numbers, default=0)) >= self.vocab_size:
            raise InputError(
                f"text has the token {self._tokenizer.id_to_token(largest)!r} with id {largest}, but the model embeds "
                f"{self.vocab_size} ids"
            )

    def around(self, count: int, no_separator: bool = False) -> list[tuple[int, ...]]:
        if count not in self._around:
            raise InputError(f"the tokenizer of a Hugging Face model joins one or two texts, got {count}")
        before, *between, after = self._around[count]
        return [before, *([self._around[1][-1]] if no_separator and between else between), after]

    def joined_alone(self, texts: Sequence[str]) -> Sequence[str]:
        # as PreTrainedTokenizerFast._encode_plus, for which an empty second text is none
        return texts[:1] if len(texts) == 2 and texts[1] == "" and not self.settings.is_python else texts

    def truncate(self, sentences: Sequence[list[int]], room: int) -> list[list[int]]:
        strategy = longest_first if self.settings.is_python else longest_first_of_two
        lengths = strategy([len(sentence) for sentence in sentences], room)
        kept_at_end = self.settings.truncation_side == "left"
        return [
            sentence[len(sentence) - length :] if kept_at_end else sentence[:length]
            for sentence, length in zip(sentences, lengths, strict=True)
        ]

    def spans(self, text: str) -> npt.NDArray[np.int64]:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        spans = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        # a token that a normalizer made of nothing may have no place in the text; it gets that of the token before
        return np.maximum.accumulate(spans, axis=0)

    def windows(self, texts: Sequence[str], max_length: int, stride: int) -> list[TokenWindow]:
        sides = list(map(self._encoded_side, texts))
        others = sides[:-1]
        room = max_length - sum(map(len, self.around(len(texts)))) - sum(len(side.ids) for side in others)
        check_windows_advance(room, stride, max_length, len(texts))
        encoding = self._truncating_to(len(texts), max_length, stride).post_process(*sides)
        return [self._window(each) for each in (encoding, *encoding.overflowing)]

    @cached_property
    def _encoded_side(self) -> Callable[[str], Any]:
        """Encodes a text before it is truncated and joined; the last few are kept, since pairs often share a text."""
        tokenizer = parse(json.dumps({**json.loads(self.content), "post_processor": None}))
        tokenizer.encode_special_tokens = self.settings.split_special_tokens
        return lru_cache(maxsize=_SIDES)(partial(tokenizer.encode, add_special_tokens=False))

    def _truncating_to(self, count: int, max_length: int, stride: int) -> Any:
        """A tokenizer that truncates the last of `count` texts, and keeps what is truncated in windows."""
        key = count, max_length, stride
        if key not in self._truncating:
            tokenizer = parse(self.content)
            tokenizer.encode_special_tokens = self.settings.split_special_tokens
            strategy = "longest_first" if count == 1 else "only_second"
            tokenizer.enable_truncation(
                max_length, stride=stride, strategy=strategy, direction=self.settings.truncation_side
            )
            self._truncating[key] = tokenizer
        return self._truncating[key]

    def _window(self, encoding: Any) -> TokenWindow:
        if self._may_refuse:
            self._check_embedded(encoding.ids)
        return TokenWindow(
            self.id_of_number.take(np.array(encoding.ids, np.intp)),
            np.array([-1 if text is None else text for text in encoding.sequence_ids], np.int64),
            np.array(encoding.offsets, np.int64).reshape(-1, 2),
            np.array([-1 if word is None else word for word in encoding.word_ids], np.int64),
        )

    def token_name(self, token_id: int) -> str:
        name = str(self._tokenizer.id_to_token(token_id) or "")
        if not self.continuation_mark or token_id in self._added_tokens:
            return name
        return name.removesuffix(self._word_end) if name.endswith(self._word_end) else name + self.continuation_mark

    def named_token(self, name: str) -> int | None:
        if self.continuation_mark and name not in self._added_tokens.values():
            whole = not name.endswith(self.continuation_mark)
            name = name + self._word_end if whole else name.removesuffix(self.continuation_mark)
        token_id: int | None = self._tokenizer.token_to_id(name)
        return None if token_id is None or token_id >= self.vocab_size else token_id

    def join_names(self, names: Sequence[str]) -> str:
        if self.continuation_mark:
            return " ".join(names).replace(f"{self.continuation_mark} ", "").strip()
        decoder = self._tokenizer.decoder
        return " ".join(names) if decoder is None else str(decoder.decode(list(names)))

    def plain_text(self, ids: Sequence[int], *, with_specials: bool) -> str:
        if self.continuation_mark:
            kept = [token_id for token_id in ids if with_specials or token_id not in self._marked_special]
            text = self.join_names([self.token_name(token_id) for token_id in kept])
        else:
            text = str(self._tokenizer.decode(list(ids), skip_special_tokens=not with_specials))
        return _cleaned_up(text) if self.settings.cleans_up_spaces else text

    @property
    def continuation_mark(self) -> str:
        """What PhoBERT's and BERTweet's vocabularies write after a piece that does not end its word; else empty."""
        return "@@" if self.settings.is_python and self._word_end else ""

    @property
    def _word_end(self) -> str:
        """What the model writes after a piece that ends its word, if anything."""
        return str(getattr(self._tokenizer.model, "end_of_word_suffix", None) or "")

    @property
    def marks_continuations(self) -> bool:
        """Whether the vocabulary marks the tokens that continue a word, as WordPiece does."""
        return bool(getattr(self._tokenizer.model, "continuing_subword_prefix", None))

    def decode(self, ids: npt.NDArray[Any]) -> list[str]:
        numbers = ids.tolist()
        while numbers and numbers[-1] == self.pad_id:
            numbers.pop()
        before, after = map(list, self._around[1])
        if before and numbers[: len(before)] == before:
            numbers = numbers[len(before) :]
        if after and numbers[-len(after) :] == after:
            numbers = numbers[: -len(after)]
        return [self._text(sentence) for sentence in _split(numbers, list(self._around[2][1]))]

    def is_silent(self, token_id: int) -> bool:
        return token_id in self.settings.silent_ids or self._tokenizer.id_to_token(token_id) is None

    def token_text(self, token_id: int) -> str:
        if token_id in self._added_tokens:
            return self._added_tokens[token_id]
        if self._anchor is None:
            return self._text([token_id])
        return self._text([self._anchor, token_id])[len(self._text([self._anchor])) :]

    def word_begins(self) -> npt.NDArray[np.bool_]:
        model = self._tokenizer.model
        if getattr(model, "end_of_word_suffix", None):
            raise InputError(
                "the pieces of this model's tokenizer say where a word ends, not where it begins: whole words cannot "
                "be masked; mask tokens"
            )
        prefix = getattr(model, "continuing_subword_prefix", None)

        def begins(token_id: int) -> bool:
            token = self._tokenizer.id_to_token(token_id)
            if token is None or token_id in self._added_tokens:
                return token_id != self.mask_id
            return not token.startswith(prefix) if prefix else self.token_text(token_id).startswith(" ")

        return np.array([begins(token_id) for token_id in range(self.vocab_size)])

    def encode_masked(self, text: str) -> tuple[npt.NDArray[np.int32], list[int]]:
        before, after = self._around[1]
        ids = self.id_of_number.take([*before, *self.pieces([text])[0], *after])
        return ids, np.flatnonzero(ids == self.mask_id).tolist()

    def fill_mask(self, text: str, token_id: int) -> str:
        mask, token = self.mask_token or "", self.token_text(token_id)
        begin = text.index(mask)
        if text[:begin].endswith(" "):
            begin -= 1
        elif not self._pieces_have_spaces or not text[:begin].rstrip() or text[begin - 1].isspace():
            token = token.removeprefix(" ")
        return text[:begin] + token + text[text.index(mask) + len(mask) :]

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(
            [token_id for token_id in ids if token_id not in self.settings.silent_ids], skip_special_tokens=False
        )
        return text

    @cached_property
    def _pieces_have_spaces(self) -> bool:
        """Whether the space before a word is part of its first piece."""
        model = self._tokenizer.model
        return not getattr(model, "continuing_subword_prefix", None) and not getattr(model, "end_of_word_suffix", None)

    @cached_property
    def _marked_special(self) -> set[int]:
        """The ids of the added tokens that the file marks as special."""
        return {i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}

    @cached_property
    def _added_tokens(self) -> dict[int, str]:
        return {i: token.content for i, token in self._tokenizer.get_added_tokens_decoder().items()}

    @cached_property
    def _anchor(self) -> int | None:
        """The id of a word, after which the text of any other token can be seen; None if there is none."""
        for token_id in range(self.vocab_size):
            if token_id in self._added_tokens or not (text := self._text([token_id])).strip().isalnum():
                continue
            if self._text([token_id, token_id]) == f"{text} {text.strip()}":
                return token_id
        return None


def parse(content: str) -> Any:
    """Parses the text of a tokenizer.json, and returns a tokenizers.Tokenizer that neither truncates nor pads.

    Raises:
      ValueError: the text is none.
    """
    import tokenizers

    tokenizer = call(lambda: tokenizers.Tokenizer.from_str(content))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def call(function: Callable[[], _Result]) -> _Result:
    """Calls a function of the tokenizers package. Whatever it raises for damaged content is raised as a ValueError."""
    try:
        return function()
    except RobertaFlaxError:
        raise
    except Exception as error:
        raise ValueError(shortened(" ".join(str(error).split())) or type(error).__name__) from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # from Rust: not an Exception, and without a public class
            raise
        raise ValueError(shortened(" ".join(str(error).split()))) from None


def _cleaned_up(text: str) -> str:
    """Removes spaces as PreTrainedTokenizerBase.clean_up_tokenization does: before punctuation and contractions."""
    for end in (".", "?", "!", ","):
        text = text.replace(f" {end}", end)
    text = text.replace(" ' ", "'")
    for end in ("n't", "'m", "'s", "'ve", "'re"):
        text = text.replace(f" {end}", end)
    return text


def _special_tokens(tokenizer: Any) -> dict[int, list[tuple[int, ...]]]:
    """The special tokens that a tokenizer puts around one text and around two: before, between and after them.

    Raises ValueError if it puts texts in another order.
    """
    probe = next((text for text in _SOME_TEXTS if call(partial(_count, tokenizer, text))), None)
    if probe is None:
        raise ValueError("no text has a token")
    around = {}
    for count, given in ((1, (probe,)), (2, (probe, probe))):
        encoding = tokenizer.encode(*given)
        parts: list[list[int]] = [[]]
        texts: list[int] = []
        for token_id, text in zip(encoding.ids, encoding.sequence_ids, strict=True):
            if text is None:
                parts[-1].append(token_id)
            elif not texts or texts[-1] != text or parts[-1]:
                texts.append(text)
                parts.append([])
        if texts != list(range(count)) or len(encoding.ids) - sum(map(len, parts)) != count * _count(tokenizer, probe):
            raise ValueError("it does not put the first text before the second")
        around[count] = [tuple(part) for part in parts]
    return around


def _count(tokenizer: Any, text: str) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False).ids)


def _split(numbers: list[int], separator: list[int]) -> list[list[int]]:
    """Splits a list at every occurrence of a part of it; an empty separator occurs nowhere."""
    parts: list[list[int]] = [[]]
    i = 0
    while i < len(numbers):
        if separator and numbers[i : i + len(separator)] == separator:
            parts.append([])
            i += len(separator)
        else:
            parts[-1].append(numbers[i])
            i += 1
    return parts
