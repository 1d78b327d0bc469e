"""Tokenizers as repositories on the Hugging Face hub have them, with small vocabularies trained here, and texts for them.

Each layout is a directory that transformers wrote, or that holds the files that it reads; AutoTokenizer says which ids
are right.
"""

from __future__ import annotations

import functools
import io
import itertools
import json
import random
import sys
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
import transformers
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, processors, trainers

from roberta_flax.text.encoding import encode_batch
from roberta_flax.text.tokenizer import Tokenizer

CORPUS = [
    "A man is playing a guitar on the stage, and two dogs are running across a field of grass.",
    "Barack Obama was born in Hawaii; it's 12,345 metres high, isn't it? They're singing, we've heard.",
    "Ça va très bien, naïve Zoë? Größe und Übermut. L'été à la forêt, où est-elle allée?",
    "Tôi là sinh_viên trường đại_học Công_nghệ . Hà_Nội là thủ_đô của Việt_Nam .",
    "吾輩は猫である。名前はまだ無い。日本語のテキスト、東京都に住んでいます。",
    "Мама мыла раму. Привет, мир! Сколько стоит этот билет?",
    "SC has first two presumptive cases of coronavirus , DHEC confirms HTTPURL via @USER :cry: #covid",
    "def f(x):\n    return {'a': [x**2 for _ in range(10)]}  # ok\n",
]
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
BERT = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"]  # klue/roberta's order
VOCAB_SIZE = 900


def byte_level_vocabulary(folder: Path, specials: Sequence[str] = ROBERTA) -> Path:
    """vocab.json and merges.txt of a byte-level BPE."""
    folder.mkdir(parents=True, exist_ok=True)
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        CORPUS * 20, vocab_size=VOCAB_SIZE, min_frequency=1, show_progress=False, special_tokens=list(specials)
    )
    bpe.save_model(str(folder))
    return folder


def wordpiece_vocabulary(folder: Path, *, lowercase: bool) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    words = tokenizers.BertWordPieceTokenizer(lowercase=lowercase, strip_accents=None)
    words.train_from_iterator(
        CORPUS * 20, vocab_size=VOCAB_SIZE, min_frequency=1, show_progress=False, special_tokens=BERT
    )
    words.save_model(str(folder))
    return folder


def sentencepiece(vocab_size: int = 500, **options: Any) -> bytes:
    import sentencepiece as package

    model = io.BytesIO()
    package.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in CORPUS for line in text.splitlines()] * 20),
        model_writer=model,
        vocab_size=vocab_size,
        character_coverage=1.0,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


def sentencepiece_file(folder: Path, name: str, **options: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(sentencepiece(**options))
    return folder


def settings(folder: Path, **values: Any) -> Path:
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    return folder


def subword_files(folder: Path) -> Path:
    """PhoBERT's and BERTweet's vocab.txt and bpe.codes, as fastBPE learns them; rare pieces are not in vocab.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    words: dict[str, int] = {}
    for text in CORPUS:
        for word in text.split():
            words[word] = words.get(word, 0) + 1
    split = {word: (*word[:-1], f"{word[-1]}</w>") for word in words}
    codes = []
    for _ in range(300):
        pairs: dict[tuple[str, str], int] = {}
        for word, parts in split.items():
            for pair in itertools.pairwise(parts):
                pairs[pair] = pairs.get(pair, 0) + words[word]
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        codes.append(f"{best[0]} {best[1]} {pairs[best]}")
        split = {word: merged(parts, best) for word, parts in split.items()}
    counts: dict[str, int] = {}
    for word, parts in split.items():
        for part in parts:
            piece = part.removesuffix("</w>") if part.endswith("</w>") else f"{part}@@"
            counts[piece] = counts.get(piece, 0) + words[word]
    kept = sorted(counts, key=lambda piece: (-counts[piece], piece))[: len(counts) * 9 // 10]
    (folder / "vocab.txt").write_text("".join(f"{piece} {counts[piece]}\n" for piece in kept), encoding="utf-8")
    (folder / "bpe.codes").write_text("".join(f"{code}\n" for code in codes), encoding="utf-8")
    return folder


def merged(parts: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    result: list[str] = []
    for part in parts:
        if result and (result[-1], part) == pair:
            result[-1] += part
        else:
            result.append(part)
    return tuple(result)


def fast(name: str, folder: Path, **options: Any) -> Any:
    return getattr(transformers, f"{name}TokenizerFast").from_pretrained(folder, **options)


def saved(tokenizer: Any, folder: Path, *, without: Iterable[str] = ()) -> Path:
    tokenizer.save_pretrained(folder)
    for name in without:
        (folder / name).unlink()
    return folder


# Layouts


def byte_level(folder: Path) -> Path:
    return saved(fast("Roberta", byte_level_vocabulary(folder)), folder)


def byte_level_vocabulary_alone(folder: Path) -> Path:
    return byte_level_vocabulary(folder)


def byte_level_without_mask(folder: Path) -> Path:
    """RoBERTa's own vocab.json has a <mask>; others get one after the last piece."""
    return byte_level_vocabulary(folder, ROBERTA[:4])


def prefix_space(folder: Path) -> Path:
    return saved(fast("Roberta", byte_level_vocabulary(folder), add_prefix_space=True), folder)


def prefix_space_vocabulary_alone(folder: Path) -> Path:
    return settings(byte_level_vocabulary(folder), tokenizer_class="RobertaTokenizer", add_prefix_space=True)


def added_tokens(folder: Path) -> Path:
    tokenizer = fast("Roberta", byte_level_vocabulary(folder))
    tokenizer.add_special_tokens({"additional_special_tokens": ["[E1]", "[/E1]", "<encoder-only>"]})
    tokenizer.add_tokens(
        ["guitar", AddedToken("Hawaii", single_word=True), AddedToken("été", lstrip=True, rstrip=True)]
    )
    return saved(tokenizer, folder)


def added_tokens_of_a_slow_tokenizer(folder: Path) -> Path:
    tokenizer = transformers.RobertaTokenizer.from_pretrained(byte_level_vocabulary(folder))
    tokenizer.add_special_tokens({"additional_special_tokens": ["[E1]", "[/E1]"]})
    tokenizer.add_tokens(["guitar", AddedToken("Hawaii", rstrip=True)])
    return saved(tokenizer, folder)


def added_tokens_in_a_file_of_their_own(folder: Path) -> Path:
    byte_level_vocabulary(folder)
    size = len(json.loads((folder / "vocab.json").read_text()))
    (folder / "added_tokens.json").write_text(json.dumps({"[E1]": size, "guitar": size + 1}))
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"cls_token": "</s>", "additional_special_tokens": ["[E1]"], "mask_token": {"content": "<mask>"}})
    )
    return folder


def other_special_tokens(folder: Path) -> Path:
    """tokenizer_config.json alone names them."""
    byte_level_vocabulary(folder, ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"])
    names = {"bos_token": "[CLS]", "eos_token": "[SEP]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    others = {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
    return settings(folder, tokenizer_class="RobertaTokenizer", **names, **others)


def normalizer(folder: Path) -> Path:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace("metres", "m"), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        show_progress=False,
        special_tokens=ROBERTA,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(CORPUS * 20, trainer)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", "<s> $A </s> $B </s>", [("<s>", 0), ("</s>", 2)]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>"}
    return saved(
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", mask_token="<mask>", **names
        ),
        folder,
    )


def tokenizer_json_alone(folder: Path) -> Path:
    """What transformers 5 leaves out: vocab.json and merges.txt."""
    return saved(fast("Roberta", byte_level_vocabulary(folder)), folder, without=("vocab.json", "merges.txt"))


def tokenizer_json_without_special_tokens(folder: Path) -> Path:
    """As the tokenizers package trains it: the special tokens are pieces, and a post-processor is missing."""
    folder.mkdir(parents=True)
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator([*CORPUS, " ".join(ROBERTA[:3])] * 20, vocab_size=VOCAB_SIZE, show_progress=False)
    bpe.save(str(folder / "tokenizer.json"))
    return settings(folder, tokenizer_class="RobertaTokenizer")


def truncated_and_padded(folder: Path) -> Path:
    """tokenizer.json of a sentence embedder, which truncates and pads."""
    tokenizer = fast("Roberta", byte_level_vocabulary(folder))
    tokenizer.backend_tokenizer.enable_truncation(16)
    tokenizer.backend_tokenizer.enable_padding(length=16, pad_id=1, pad_token="<pad>")
    return saved(tokenizer, folder)


def wordpiece_cased(folder: Path) -> Path:
    return saved(fast("Bert", wordpiece_vocabulary(folder, lowercase=False), do_lower_case=False), folder)


def wordpiece_uncased(folder: Path) -> Path:
    return saved(fast("Bert", wordpiece_vocabulary(folder, lowercase=True)), folder)


def wordpiece_vocabulary_alone(folder: Path) -> Path:
    return settings(
        wordpiece_vocabulary(folder, lowercase=False),
        tokenizer_class="BertTokenizer",
        do_lower_case=False,
        tokenize_chinese_chars=False,
    )


def xlm_roberta(folder: Path) -> Path:
    return saved(fast("XLMRoberta", sentencepiece_file(folder, "sentencepiece.bpe.model")), folder)


def xlm_roberta_model_alone(folder: Path) -> Path:
    return settings(sentencepiece_file(folder, "sentencepiece.bpe.model"), tokenizer_class="XLMRobertaTokenizer")


def xlm_roberta_of_other_years(folder: Path) -> Path:
    """As E5 has it: whitespace splits words before Metaspace does, and nothing strips the end of a text."""
    tokenizer = fast("XLMRoberta", sentencepiece_file(folder, "sentencepiece.bpe.model"))
    backend = tokenizer.backend_tokenizer
    backend.normalizer = backend.normalizer[0]
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    return saved(tokenizer, folder)


def xlm_roberta_of_bpe(folder: Path) -> Path:
    sentencepiece_file(
        folder, "sentencepiece.bpe.model", model_type="bpe", user_defined_symbols=["Hawaii"], vocab_size=300
    )
    return settings(folder, tokenizer_class="XLMRobertaTokenizer")


def camembert(folder: Path) -> Path:
    return saved(fast("Camembert", sentencepiece_file(folder, "sentencepiece.bpe.model")), folder)


def camembert_model_alone(folder: Path) -> Path:
    return settings(sentencepiece_file(folder, "sentencepiece.bpe.model"), tokenizer_class="CamembertTokenizer")


def japanese_t5(folder: Path) -> Path:
    """As rinna/japanese-roberta-base: T5's tokenizer with BERT's special tokens."""
    sentencepiece_file(
        folder, "spiece.model", user_defined_symbols=["[PAD]", "[CLS]", "[SEP]", "[MASK]"], byte_fallback=True,
        vocab_size=800,
    )  # fmt: skip
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    return settings(folder, tokenizer_class="T5Tokenizer", extra_ids=0, additional_special_tokens=[], **names)


def japanese_t5_fast(folder: Path) -> Path:
    return saved(transformers.AutoTokenizer.from_pretrained(japanese_t5(folder)), folder)


def phobert(folder: Path) -> Path:
    return saved(transformers.PhobertTokenizer.from_pretrained(subword_files(folder)), folder)


def bertweet(folder: Path) -> Path:
    return settings(subword_files(folder), tokenizer_class="BertweetTokenizer")


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    layout.__name__: layout
    for layout in (
        byte_level, byte_level_vocabulary_alone, byte_level_without_mask, prefix_space, prefix_space_vocabulary_alone,
        added_tokens, added_tokens_of_a_slow_tokenizer, added_tokens_in_a_file_of_their_own, other_special_tokens, normalizer,
        tokenizer_json_alone, tokenizer_json_without_special_tokens, truncated_and_padded, wordpiece_cased,
        wordpiece_uncased, wordpiece_vocabulary_alone, xlm_roberta, xlm_roberta_model_alone, xlm_roberta_of_other_years,
        xlm_roberta_of_bpe, camembert, camembert_model_alone, japanese_t5, japanese_t5_fast, phobert, bertweet,
    )
}  # fmt: skip


# Texts

AWKWARD = [
    "", " ", "  ", "\n", "a", " a", "a ", "a man \n", "trailing   ", "\t\tA man\t", "<mask>", "A <mask> is", "A<mask>.",
    "<s> a </s>", "</s></s>", "<unk><pad>", "[CLS] a [SEP]", "[MASK] is a [MASK]", "a [MASK]", "<S> <MASK>", "< mask >",
    "[E1] a dog [/E1] runs", "a [E1]man[/E1].", "guitars and a guitar", "Hawaii Hawaiian", "un  été  chaud", "<encoder-only>a",
    "<extra_id_0>", "<s>NOTUSED", "▁a ▁▁ b", "##ing a##b", "a@@ b@@", "x</w> </w>", "Ġa Ċ", "I'm, they'll, don't 'S 'tis",
    "1234567890 3.14 ²³ ½ Ⅷ ١٢٣ 一二三", "tabs\tand\nnew\r\nlines \x0b\x0c \u00a0 \u2003\u3000\u2028\u2029\u0085end ",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪 ☃️ 🧑🏿‍🚀x", "שלום עולם مرحبا بالعالم \u202eabc\u202c", "漢字かな交じり文 한국어 ไทย हिन्दी தமிழ்",
    "e\u0301 a\u0308\u0323 Z\u0351\u036b\u0343 n\u0303o", "\x00\x01\x1b[0m\x7f\x1c\x1d\x1e\x1f\x80\x9f\u180e\u200b\u2060\ufeff",
    "\ufffd\ufffe\uffff\U0010ffff\ue000", "ﬁ ǅ ß İ ı ſ K Å Ａ＜mask＞", "a" * 1000, "é" * 300, "ab" * 200 + " c", " " * 300,
    "\n " * 100 + "x", "https://example.org/?q=a%20b&c=d#e_f-g", "Tôi là sinh_viên\n\nHà_Nội", "@USER HTTPURL :cry:",
]  # fmt: skip


@functools.cache
def assigned_characters() -> list[str]:
    return [chr(c) for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)) not in ("Cs", "Cn")]


def texts(count: int, seed: int = 0) -> list[str]:
    return list(_texts(count, seed))


@functools.cache
def _texts(count: int, seed: int) -> tuple[str, ...]:
    """Awkward texts, and random ones: of any characters, of one script, of words, and of special tokens among them."""
    generate = random.Random(seed)
    assigned = assigned_characters()
    spaces = [chr(c) for c in range(0x3100) if chr(c).isspace()] + ["\u200b", "\u180e", "\ufeff"]
    words = [word for text in CORPUS for word in text.split()]
    specials = [*ROBERTA, *BERT, "[E1]", "[/E1]", "<encoder-only>", "guitar", "Hawaii", "été", "<extra_id_1>"]
    characters = sorted({c for text in CORPUS for c in text})
    found = list(AWKWARD)
    for i in range(count - len(found)):
        length = generate.randrange(1, 16)
        match i % 6:
            case 0:
                found.append("".join(generate.choices(assigned, k=length)))
            case 1:
                start = generate.randrange(0x20, 0x2FA00)
                near = [chr(c) for c in range(start, start + 60) if not 0xD800 <= c < 0xE000]
                found.append("".join(generate.choices([*near, " "], k=length)))
            case 2:
                found.append(" ".join(generate.choices(words, k=length)))
            case 3:
                parts = generate.choices([*specials, *words, " ", "  ", "\n", ".", "▁"], k=length)
                found.append(generate.choice(["", " "]).join(parts))
            case 4:
                found.append("".join(generate.choices([*spaces, *spaces, "a", "1", "!", "\u0301", "é"], k=length)))
            case _:
                found.append("".join(generate.choices([*characters, " "], k=3 * length)))
    return tuple(found[:count])


# Beside transformers


def auto(folder: Path) -> Any:
    """AutoTokenizer's tokenizer; a directory without settings is a RoBERTa's."""
    if not any((folder / name).is_file() for name in ("tokenizer_config.json", "config.json")):
        (folder / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    return transformers.AutoTokenizer.from_pretrained(folder)


def assert_same_ids(theirs: Any, ours: Tokenizer, count: int) -> None:
    """One by one, and in batches, which are padded and truncated elsewhere; alone, and in pairs."""
    first, second = texts(count), texts(count, seed=1)[::-1]
    their_ids = functools.partial(theirs, return_attention_mask=False, return_token_type_ids=False)
    alone = [sequence.ids.tolist() for (sequence,) in encode_batch(ours, first, 100_000, "error")]
    assert alone == their_ids(first)["input_ids"]
    first, second = first[:500], second[:500]
    both = list(zip(first, second, strict=True))
    pairs = [sequence.ids.tolist() for (sequence,) in encode_batch(ours, both, 100_000, "error")]
    assert pairs == their_ids(first, second)["input_ids"]
    for a, b in both[:100]:
        assert ours.encode(a).tolist() == theirs(a)["input_ids"], a
        assert ours.encode(a, b).tolist() == theirs(a, b)["input_ids"], (a, b)
