"""Reads the tokenizer of a Transformers model: its files, and the tokenizer that AutoTokenizer makes of them.

Transformers does not run tokenizer.json as it is: tokenizer_config.json, special_tokens_map.json, added_tokens.json and
the defaults of a class add tokens and change steps (PreTrainedTokenizerBase._from_pretrained and the __init__ of
PreTrainedTokenizerFast and its subclasses, as of transformers 4.57). Here they do so once, at conversion. Where there
is no tokenizer.json, the tokenizer is built from the files of its vocabulary (convert/vocabularies.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from roberta_flax.convert import vocabularies
from roberta_flax.convert.source import read_json
from roberta_flax.convert.vocabularies import Built
from roberta_flax.errors import CheckpointError, shortened
from roberta_flax.files import read_text
from roberta_flax.text.huggingface_tokenizer import (
    EFFECTIVE_FILE,
    HuggingFaceSettings,
    HuggingFaceTokenizer,
    call,
    parse,
)

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
ADDED_TOKENS_FILE = "added_tokens.json"
VOCAB_FILE, MERGES_FILE = "vocab.json", "merges.txt"
_BPE_FILES = (VOCAB_FILE, MERGES_FILE)
_SENTENCEPIECE_FILES = ("sentencepiece.bpe.model",)
_T5_FILES = ("spiece.model",)
_WORDPIECE_FILES = ("vocab.txt",)
_PHOBERT_FILES = ("vocab.txt", "bpe.codes")
VOCABULARY_FILES = (*_BPE_FILES, *_SENTENCEPIECE_FILES, *_T5_FILES, *_PHOBERT_FILES)
FILES = (TOKENIZER_FILE, *VOCABULARY_FILES, TOKENIZER_CONFIG_FILE, SPECIAL_TOKENS_FILE, ADDED_TOKENS_FILE)

TokenizerFiles = dict[str, Path | str | bytes]

# SpecialTokensMixin.SPECIAL_TOKENS_ATTRIBUTES, in its order
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_ADDITIONAL = "additional_special_tokens"
_EXTRA = "extra_special_tokens"  # the same since transformers 5, as a list; before, more roles, as a dict
_ROBERTA_TOKENS = dict(zip(_ROLES, ("<s>", "</s>", "<unk>", "</s>", "<pad>", "<s>", "<mask>"), strict=True))
_BERT_TOKENS = {
    "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]",
}  # fmt: skip
_T5_TOKENS = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


@dataclass(frozen=True)
class _TokenizerClass:
    """A tokenizer class of transformers, the slow and the fast.

    Attributes:
      files: the names of its vocabulary's files.
      build: builds the tokenizer from them.
      tokens: its special tokens, by role.
      additional: its additional special tokens.
      mask: the settings of its mask token, if it is given as a string.
      is_python: whether transformers has no fast tokenizer of the class, and so does not read a tokenizer.json.
    """

    files: tuple[str, ...]
    build: Callable[[Sequence[Path], Mapping[str, Any], int], Built]
    tokens: Mapping[str, str]
    additional: tuple[str, ...] = ()
    mask: Mapping[str, bool] = field(default_factory=dict)
    is_python: bool = False


_ROBERTA = _TokenizerClass(
    _BPE_FILES, vocabularies.byte_level, _ROBERTA_TOKENS, mask={"lstrip": True, "normalized": False}
)
_BERT = _TokenizerClass(_WORDPIECE_FILES, vocabularies.wordpiece, _BERT_TOKENS)
_PHOBERT = _TokenizerClass(_PHOBERT_FILES, vocabularies.words_of_pieces, _ROBERTA_TOKENS, is_python=True)
_CLASSES = {
    "RobertaTokenizer": _ROBERTA,
    "BartTokenizer": _ROBERTA,
    "LongformerTokenizer": _ROBERTA,
    "XLMRobertaTokenizer": _TokenizerClass(
        _SENTENCEPIECE_FILES, vocabularies.xlm_roberta, _ROBERTA_TOKENS, mask={"lstrip": True, "normalized": True}
    ),
    "CamembertTokenizer": _TokenizerClass(
        _SENTENCEPIECE_FILES,
        vocabularies.camembert,
        _ROBERTA_TOKENS,
        ("<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"),
        {"lstrip": True, "special": True},
    ),
    "T5Tokenizer": _TokenizerClass(_T5_FILES, vocabularies.t5, _T5_TOKENS),
    "BertTokenizer": _BERT,
    "DistilBertTokenizer": _BERT,
    "ElectraTokenizer": _BERT,
    "PhobertTokenizer": _PHOBERT,
    "BertweetTokenizer": _PHOBERT,
}
# The class of a model_type if no file names one (TOKENIZER_MAPPING_NAMES); RobertaTokenizer for all others
_CLASS_OF_TYPE = {
    "xlm-roberta": "XLMRobertaTokenizer",
    "xlm-roberta-xl": "XLMRobertaTokenizer",
    "camembert": "CamembertTokenizer",
}
_GENERIC = ("PreTrainedTokenizer", "TokenizersBackend", "SentencePieceBackend")  # tokenizer.json says it all
_UNSUPPORTED = {"BertJapaneseTokenizer": "splits Japanese into words with MeCab, Sudachi or Juman++"}


def read(
    folders: Sequence[Path],
    model_type: str,
    vocab_size: int,
    notes: list[str],
    *,
    tokenizer_class: str | None = None,
    pad_id: int | None = None,
) -> TokenizerFiles:
    """Reads the tokenizer of a Transformers model.

    Args:
      folders: the folders to search, in order.
      model_type: the model_type of Transformers.
      vocab_size: the number of rows of the token embedding.
      notes: a list to which messages for the user are appended.
      tokenizer_class: config.json's tokenizer_class.
      pad_id: config.json's pad_token_id, which the tokenizer must pad with.

    Returns:
      The tokenizer's files in a converted directory: file name -> a file to copy, or the content to write. The files of
      the source are among them.

    Raises:
      CheckpointError: no tokenizer was found, its files are damaged, it is of a class that is not supported, or it pads
        with another id.
    """
    for folder in folders:
        source = _Source.read(folder, model_type, tokenizer_class)
        if source.has_vocabulary:
            return source.files(vocab_size, pad_id, notes)
    vocabulary_files = dict.fromkeys(" and ".join(rules.files) for rules in _CLASSES.values())
    raise CheckpointError(
        f"no tokenizer in {' or '.join(map(str, folders))}: put {TOKENIZER_FILE}, or {'; '.join(vocabulary_files)} "
        "there, pass their directory as bpe_dir (--bpe-dir), or convert without a tokenizer (--no-tokenizer)"
    )


def none(vocab_size: int) -> TokenizerFiles:
    """The files of a converted directory without a tokenizer."""
    return {**HuggingFaceSettings(vocab_size, has_tokenizer=False).files()}


@dataclass(frozen=True)
class _Source:
    """The files of a tokenizer as transformers reads them.

    Attributes:
      folder: the folder that contains them.
      settings: tokenizer_config.json, with what special_tokens_map.json adds.
      added: the tokens to add that files list with their ids, as AddedTokens.
      class_name: the name of the tokenizer's class without "Fast"; the name in the files, or that of the model_type.
      model_type, tokenizer_class: config.json's; tokenizer_class is empty if config.json has none.
    """

    folder: Path
    settings: Mapping[str, Any]
    added: Mapping[int, Any]
    class_name: str
    model_type: str
    tokenizer_class: str

    @classmethod
    def read(cls, folder: Path, model_type: str, tokenizer_class: str | None) -> _Source:
        settings, special_tokens, added_tokens = (
            read_json(folder / name) if (folder / name).is_file() else {}
            for name in (TOKENIZER_CONFIG_FILE, SPECIAL_TOKENS_FILE, ADDED_TOKENS_FILE)
        )
        named = settings.get("tokenizer_class") or tokenizer_class or _CLASS_OF_TYPE.get(model_type, "RobertaTokenizer")
        with _naming(folder / TOKENIZER_CONFIG_FILE):
            decoder = settings.get("added_tokens_decoder")
            if decoder is not None:  # as transformers writes it since 4.34; the other files say nothing else then
                added = {int(i): _added_token(token) for i, token in decoder.items()}
            else:
                settings = _with_special_tokens(settings, special_tokens)
                special = {_content(token) for token in _special_tokens(settings)}
                added = {
                    i: _added_token(token, normalized=token not in special, special=token in special)
                    for token, i in added_tokens.items()
                }
        return cls(folder, settings, added, re.sub("Fast$", "", str(named)), model_type, tokenizer_class or "")

    @property
    def has_vocabulary(self) -> bool:
        return (self.folder / TOKENIZER_FILE).is_file() or any(map(self._has_files, _CLASSES))

    def files(self, vocab_size: int, pad_id: int | None, notes: list[str]) -> TokenizerFiles:
        """The files in a converted directory. Arguments and errors are those of `read`."""
        if self.class_name in _UNSUPPORTED:
            raise CheckpointError(
                f"{self.folder} is for {self.class_name}, which {_UNSUPPORTED[self.class_name]}: it is not supported; "
                "bring token ids, and convert without a tokenizer (--no-tokenizer)"
            )
        class_name = self._class(notes)
        rules = _CLASSES.get(class_name)
        has_json = (self.folder / TOKENIZER_FILE).is_file() and not (rules and rules.is_python)
        path = self.folder / (TOKENIZER_FILE if has_json or rules is None else rules.files[0])
        with _naming(path):
            if has_json or rules is None:
                tokenizer, built = parse(read_text(path)), None
            else:
                built = call(
                    lambda: rules.build([self.folder / name for name in rules.files], self.settings, vocab_size)
                )
                tokenizer = built.tokenizer
            roles = self._add_tokens(tokenizer, rules, built is not None)
            if built is not None:
                tokenizer.post_processor = call(lambda: built.post_processor(tokenizer, roles))
            _change_steps(tokenizer, class_name, self.settings)
            settings = self._settings(tokenizer, roles, vocab_size, built)
            # scores change in the last digit when they are read for the first time, and not again
            content = parse(tokenizer.to_str()).to_str()
            HuggingFaceTokenizer(settings, content, {})  # raises ValueError if it cannot run
        self._check(settings, tokenizer, pad_id, path)
        self._note(settings, tokenizer, path, notes)
        return {
            EFFECTIVE_FILE: content,
            **settings.files(),
            **{name: self.folder / name for name in settings.source_files},
        }

    def _class(self, notes: list[str]) -> str:
        """The class whose rules hold: the named one, or where its files are not there, one whose files are."""
        has_json = (self.folder / TOKENIZER_FILE).is_file()
        if self.class_name in _CLASSES and (has_json or self._has_files(self.class_name)):
            return self.class_name
        if has_json:
            if not self.class_name.startswith(_GENERIC):
                notes.append(
                    f"{self.folder} is for {shortened(self.class_name)}, which is not known; {TOKENIZER_FILE} is used"
                )
            return self.class_name
        by_type = _CLASS_OF_TYPE.get(self.model_type, "RobertaTokenizer")
        if self._has_files(by_type):
            return by_type
        found = list(filter(self._has_files, reversed(_CLASSES)))
        if not found or found[0] == "CamembertTokenizer":  # or XLM-R's, whose files have the same name
            have = ", ".join(name for name in VOCABULARY_FILES if (self.folder / name).is_file())
            raise CheckpointError(
                f"{self.folder} is for {shortened(self.class_name)} and has {have}, but no {TOKENIZER_FILE}, which it "
                f"needs: save it with transformers' AutoTokenizer, or name one of {', '.join(_CLASSES)} as "
                f"tokenizer_class in {TOKENIZER_CONFIG_FILE}"
            )
        notes.append(
            f"{self.folder} is for {shortened(self.class_name)}, but has the files of {found[0]}, which is used"
        )
        return found[0]

    def _has_files(self, class_name: str) -> bool:
        return all((self.folder / name).is_file() for name in _CLASSES[class_name].files)

    def _add_tokens(self, tokenizer: Any, rules: _TokenizerClass | None, is_built: bool) -> dict[str, str]:
        """Adds all tokens that the tokenizer lacks, as PreTrainedTokenizerFast does; returns special tokens by role."""
        from tokenizers import AddedToken

        settings = {**(rules.tokens if rules else {}), **self.settings}
        if rules and _ADDITIONAL not in settings and not isinstance(settings.get(_EXTRA), list):
            settings[_ADDITIONAL] = list(rules.additional)
        if rules and rules.build is vocabularies.t5:
            settings[_ADDITIONAL] = _with_extra_ids(settings)
        added_before = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
        listed = {token.content: token for token in (*self.added.values(), *added_before.values())}
        roles, specials = {}, []
        for role in _ROLES:
            if (token := settings.get(role)) is None:
                continue
            token = listed.get(_content(token), token) if isinstance(token, str) else _added_token(token, special=True)
            if role == "mask_token" and isinstance(token, str) and rules and rules.mask:
                mask = {**rules.mask, **({"normalized": False} if is_built else {})}
                token = AddedToken(token, **mask)
            roles[role] = _content(token)
            specials.append(token)
        specials += _special_tokens({key: settings[key] for key in settings if key not in _ROLES})

        names = set(map(_content, specials))
        missing = [token for _, token in sorted(self.added.items())]
        missing += [token for token in specials if not (isinstance(token, str) and token in added_before)]
        for i, token in enumerate(missing):
            is_special = _content(token) in names or getattr(token, "special", False)
            if isinstance(token, str):
                missing[i] = AddedToken(token, special=is_special)
            else:
                token.special = is_special
        tokenizer.add_tokens(missing)
        return roles

    def _settings(
        self, tokenizer: Any, roles: Mapping[str, str], vocab_size: int, built: Built | None
    ) -> HuggingFaceSettings:
        found = {role: tokenizer.token_to_id(token) for role, token in roles.items()}
        ids = {role: i for role, i in found.items() if i is not None and i < vocab_size}
        bos, eos = ids.get("cls_token", ids.get("bos_token")), ids.get("sep_token", ids.get("eos_token"))
        silent = {ids.get(role) for role in ("bos_token", "cls_token", "eos_token", "sep_token", "pad_token")}
        return HuggingFaceSettings(
            vocab_size,
            max(tokenizer.get_vocab().values(), default=-1),
            bos, eos, ids.get("pad_token"), ids.get("unk_token"), ids.get("mask_token"),
            tuple(sorted(i for i in silent if i is not None)),
            is_python=built is not None and built.known_ids is not None,
            split_special_tokens=bool(self.settings.get("split_special_tokens", False)),
            truncation_side="left" if self.settings.get("truncation_side") == "left" else "right",
            cleans_up_spaces=bool(self.settings.get("clean_up_tokenization_spaces", False)),
            source_files=tuple(name for name in FILES if (self.folder / name).is_file()),
            model_type=self.model_type,
            tokenizer_class=self.tokenizer_class,
        )  # fmt: skip

    def _check(self, settings: HuggingFaceSettings, tokenizer: Any, pad_id: int | None, path: Path) -> None:
        if settings.pad_id is not None and pad_id is not None and settings.pad_id != pad_id:
            token = tokenizer.id_to_token(settings.pad_id)
            raise CheckpointError(
                f"config.json has pad_token_id={pad_id}, but {path} pads with {token!r}, which is {settings.pad_id}: "
                "the model would take a token of a text for padding; give both the id that the model was trained with"
            )

    def _note(self, settings: HuggingFaceSettings, tokenizer: Any, path: Path, notes: list[str]) -> None:
        if settings.largest_id >= settings.vocab_size and not settings.is_python:
            beyond = sorted((i, token) for token, i in tokenizer.get_vocab().items() if i >= settings.vocab_size)
            some = ", ".join(shortened(token, 40) for _, token in beyond[:5])
            notes.append(
                f"{path} has {len(beyond)} tokens that the model, with {settings.vocab_size} ids, does not embed "
                f"({some}{', ...' if len(beyond) > 5 else ''}): text with one of them will be refused"
            )
        if path.name == TOKENIZER_FILE and (vocab_file := self.folder / VOCAB_FILE).is_file():
            pieces, ours = read_json(vocab_file), tokenizer.get_vocab()
            if any(ours.get(piece) != i for piece, i in pieces.items()):
                notes.append(
                    f"{path} and {VOCAB_FILE} beside it give pieces different ids; {TOKENIZER_FILE} is used, as in "
                    "Transformers"
                )


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turns the exceptions that malformed content raises in the block into a CheckpointError that names the file."""
    try:
        yield
    except CheckpointError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({shortened(str(error)) or type(error).__name__})") from None


# Special and added tokens


def _content(token: Any) -> str:
    return token if isinstance(token, str) else str(token["content"] if isinstance(token, dict) else token.content)


def _added_token(token: Any, **settings: bool) -> Any:
    """An AddedToken from the object that stands for it in a file, or from its text and settings."""
    from tokenizers import AddedToken

    if isinstance(token, str):
        return AddedToken(token, **settings)
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    given = {flag: bool(token[flag]) for flag in flags if flag in token}
    return AddedToken(str(token["content"]), **{**given, **settings})


def _with_special_tokens(settings: Mapping[str, Any], special_tokens: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with special_tokens_map.json, which goes before tokenizer_config.json."""
    merged = dict(settings)
    for key, value in special_tokens.items():
        if key == _ADDITIONAL and isinstance(value, list):
            before = merged.get(_ADDITIONAL) or []
            known = {_content(token) for token in before}
            merged[key] = [*before, *(token for token in value if _content(token) not in known)]
        else:
            merged[key] = value
    return merged


def _special_tokens(settings: Mapping[str, Any]) -> list[Any]:
    """All special tokens that settings name, as strings and AddedTokens."""
    extra = settings.get(_EXTRA) or []
    tokens = [
        *(settings.get(role) for role in _ROLES),
        *(settings.get(_ADDITIONAL) or []),
        *(extra.values() if isinstance(extra, dict) else extra),
    ]
    return [
        token if isinstance(token, str) else _added_token(token, special=True) for token in tokens if token is not None
    ]


def _with_extra_ids(settings: Mapping[str, Any]) -> list[Any]:
    """T5's additional special tokens, which are `<extra_id_0>` and so on unless they are given."""
    given = list(settings.get(_ADDITIONAL) or [])
    if any("<extra_id_" in _content(token) for token in given):
        return given
    return [*given, *(f"<extra_id_{i}>" for i in range(settings.get("extra_ids", 100)))]


# Steps


def _change_steps(tokenizer: Any, class_name: str, settings: Mapping[str, Any]) -> None:
    """Changes the steps that transformers changes by settings: a prefix space, and what BERT's normalizer does."""
    from tokenizers import normalizers, pre_tokenizers

    if type(tokenizer.pre_tokenizer).__name__ == "ByteLevel":
        state = json.loads(tokenizer.pre_tokenizer.__getstate__())
        prefix_space = bool(settings.get("add_prefix_space", False))
        if state.pop("type") and state.get("add_prefix_space") != prefix_space:
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(**{**state, "add_prefix_space": prefix_space})
    if _CLASSES.get(class_name) is _BERT and type(tokenizer.normalizer).__name__ == "BertNormalizer":
        state = json.loads(tokenizer.normalizer.__getstate__())
        tokenizer.normalizer = normalizers.BertNormalizer(
            clean_text=state["clean_text"],
            handle_chinese_chars=bool(settings.get("tokenize_chinese_chars", True)),
            strip_accents=settings.get("strip_accents"),
            lowercase=bool(settings.get("do_lower_case", True)),
        )
