"""Our tokenizer against fairseq's own encoder, dictionary and hub: identical ids, and identical text back."""

from __future__ import annotations

import itertools
import json
import random
import sys
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roberta_flax.text.encoding import encode_batch
from roberta_flax.text.fairseq_tokenizer import ByteLevelBPE, byte_alphabet
from roberta_flax.text.tokenizer import Tokenizer
from tests.references import torch

from fairseq.data import Dictionary as FairseqDictionary  # isort: skip
from fairseq.data.encoders.gpt2_bpe import GPT2BPE, GPT2BPEConfig  # isort: skip
from fairseq.data.encoders.gpt2_bpe_utils import Encoder  # isort: skip
from fairseq.models.roberta.hub_interface import RobertaHubInterface  # isort: skip

ROOT = Path(__file__).parent.parent.parent
AWKWARD = [
    "", " ", "  ", "\n", "a", " a", "a ", "Hello world!", "Hello world", " world", "world", "<mask>", "</s>", "<s> a </s>",
    "I'm, you're, he'd, she'll, we've, it's, don't, 'S 'LL 'tis ''s", "1234567890 3.14 1,000 ²³ ½ Ⅷ ١٢٣ 一二三",
    "tabs\tand\nnew\r\nlines \x0b\x0c   runs    of \u00a0 spaces\u2003\u3000\u2028\u2029\u0085end ", "trailing   ",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪 ☃️ 🧑🏿‍🚀x", "שלום עולם مرحبا بالعالم \u202eabc\u202c", "漢字かな交じり文 한국어 ไทย हिन्दी தமிழ்",
    "e\u0301 a\u0308\u0323 Z\u0351\u036b\u0343 n\u0303o", "\x00\x01\x1b[0m\x7f\x1c\x1d\x1e\x1f\x80\x9f\u180e\u200b\u2060\ufeff",
    "def f(x):\n    return {'a': [x**2 for _ in range(10)]}  # ok\n\n\n", "\ufffd\ufffe\uffff\U0010ffff\ue000",
    "ﬁ ǅ ß İ ı ſ K Å", "a" * 1000, " " * 1000, " " * 1000 + "a", "\n " * 300 + "x", "https://example.org/?q=a%20b&c=d#e_f-g",
]  # fmt: skip


@pytest.fixture(scope="module")
def fairseq_hub(gpt2_bpe):
    """fairseq's hub interface around its own BPE and dictionary, without a network."""
    bpe = GPT2BPE(
        GPT2BPEConfig(gpt2_encoder_json=str(gpt2_bpe / "encoder.json"), gpt2_vocab_bpe=str(gpt2_bpe / "vocab.bpe"))
    )
    dictionary = FairseqDictionary.load(str(gpt2_bpe / "dict.txt"))
    dictionary.add_symbol("<mask>")
    hub = SimpleNamespace(bpe=bpe, task=SimpleNamespace(source_dictionary=dictionary))
    hub.encode = lambda *texts, **options: RobertaHubInterface.encode(hub, *texts, **options).tolist()
    hub.decode = lambda ids: RobertaHubInterface.decode(hub, torch.tensor(ids))
    # hub.encode of one text without its tensor, which fairseq fills token by token: half of its time
    hub.ids = lambda text: [0, *(dictionary.index(piece) for piece in bpe.encode(text).split()), 2]
    return hub


def random_texts(count: int, seed: int) -> list[str]:
    """Random unicode of several kinds: any character, one script, and mixes with spaces, digits and apostrophes."""
    generate = random.Random(seed)
    assigned = [chr(c) for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)) not in ("Cs", "Cn")]
    spaces = [chr(c) for c in range(0x3100) if chr(c).isspace()] + ["\u200b", "\u180e", "\ufeff"]
    anything = [c for c in range(sys.maxunicode + 1) if not 0xD800 <= c < 0xE000]
    texts = []
    for i in range(count):
        length = generate.randrange(1, 24)
        kind = i % 5
        if kind == 0:
            texts.append("".join(chr(generate.choice(anything)) for _ in range(length)))
        elif kind == 1:
            texts.append("".join(generate.choices(assigned, k=length)))
        elif kind == 2:
            start = generate.randrange(0x20, 0x2FA00)
            near = [chr(c) for c in range(start, start + 60) if not 0xD800 <= c < 0xE000]
            texts.append("".join(generate.choices(near or ["a"], k=length)))
        elif kind == 3:
            mix = [" ", "  ", "'s", "'t", "'ll", "12", "a", "É", ".", "\n", "—", generate.choice(assigned)]
            texts.append("".join(generate.choices(mix, k=length)))
        else:
            texts.append("".join(generate.choices([*spaces, *spaces, "a", "1", "!", "\u0301"], k=length)))
    return texts


@pytest.mark.slow
def test_ids_are_fairseqs_on_over_100000_strings(gpt2_tokenizer, fairseq_hub, sick_pairs):
    code = [
        line
        for folder in ("roberta_flax", "tests", "benchmarks")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line in path.read_text().splitlines()
    ]
    texts = [*AWKWARD, *(text for pair in sick_pairs for text in pair), *code]
    texts += random_texts(110_000 - len(texts), seed=7)
    assert len(texts) >= 100_000
    wrong = [text for text in texts if gpt2_tokenizer.encode(text).tolist() != fairseq_hub.ids(text)]
    assert wrong == []
    sample = [*AWKWARD, *texts[::50]]
    assert [fairseq_hub.encode(text) for text in sample] == [fairseq_hub.ids(text) for text in sample]


@pytest.mark.slow
def test_every_character_alone_and_between_letters_has_fairseqs_ids(gpt2_tokenizer, fairseq_hub):
    # 16 a text. Of plane 2 on only ideographs, tags and private use are assigned, each range of one category; of these, and
    # of what is not assigned, every 31st takes part, and the first of each range.
    ranges = (
        range(0x20000, 0x40000, 31),
        range(0x40000, 0xE0000, 97),
        range(0xE0000, 0xE0200),
        range(0xE0200, 0x110000, 31),
    )
    code_points = (*range(0xD800), *range(0xE000, 0x20000), *itertools.chain(*ranges))
    characters = [chr(c) for c in code_points]
    for i in range(0, len(characters), 16):
        text = " ".join(f"a{c}1{c}" for c in characters[i : i + 16])
        assert gpt2_tokenizer.encode(text).tolist() == fairseq_hub.ids(text), text


def test_pairs_and_more_are_joined_as_fairseq_does(gpt2_tokenizer, fairseq_hub, sick_pairs):
    for texts in [
        *sick_pairs[:500],
        ("a", "b", " c", ""),
        ("", ""),
        *zip(AWKWARD, reversed(AWKWARD), strict=True),
    ]:
        for no_separator in (False, True):
            ours = gpt2_tokenizer.encode(*texts, no_separator=no_separator).tolist()
            assert ours == fairseq_hub.encode(*texts, no_separator=no_separator)
            assert gpt2_tokenizer.decode(ours) == fairseq_hub.decode(ours)


def test_batch_inference_gives_pairs_the_ids_that_fairseq_gives_them(gpt2_tokenizer, fairseq_hub, sick_pairs):
    awkward = zip(AWKWARD, reversed(AWKWARD), strict=True)
    items = [*sick_pairs[:500], *awkward, ("a", "b", " c", ""), ["", ""], *AWKWARD]
    for item, (sequence,) in zip(items, encode_batch(gpt2_tokenizer, items, 10_000, "error"), strict=True):
        assert sequence.ids.tolist() == fairseq_hub.encode(*([item] if isinstance(item, str) else item))


def test_text_comes_back(gpt2_tokenizer, fairseq_hub):
    for text in [*AWKWARD, *random_texts(3000, seed=8)]:
        ids = gpt2_tokenizer.encode(text)
        assert gpt2_tokenizer.decode(ids) == fairseq_hub.decode(ids.tolist()) == text


@pytest.mark.slow
def test_any_ids_decode_as_fairseq_decodes_them(gpt2_tokenizer, fairseq_hub):
    generate = random.Random(3)
    # fairseq's decode stops with an error at <pad> and at the three filler words
    decodable = [
        i for i, s in enumerate(gpt2_tokenizer.backend.dictionary.symbols) if s.isdigit() or s in ("<unk>", "<mask>")
    ]
    for _ in range(3000):
        ids = generate.choices([0, 2, 2, 2, *generate.choices(decodable, k=8)], k=generate.randrange(1, 14))
        assert gpt2_tokenizer.decode(ids) == fairseq_hub.decode(ids)
    assert [gpt2_tokenizer.decode([i]) for i in decodable] == [fairseq_hub.decode([i]) for i in decodable]


def test_gpt2s_merges_are_reachable_as_the_code_takes_for_granted(gpt2_tokenizer):
    bpe = gpt2_tokenizer.backend.bpe
    assert bpe._every_merge_is_reachable(list(bpe._pair_rank))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_list_of_merges_is_followed_as_fairseq_follows_it(data):
    """Not only trained ones: merges that a trained BPE never has, in any order, with repeats."""
    alphabet = byte_alphabet()
    pieces = ["a", "b", "c", alphabet[ord(" ")]]
    pairs = []
    for _ in range(data.draw(st.integers(1, 12))):
        pair = (data.draw(st.sampled_from(pieces)), data.draw(st.sampled_from(pieces)))
        pairs.append(pair)
        pieces.append("".join(pair))
    merges = data.draw(st.permutations(pairs))
    encoder = {piece: i for i, piece in enumerate(dict.fromkeys([*alphabet, *pieces]))}
    theirs = Encoder(encoder, merges)
    byte_of = {character: bytes([byte]) for byte, character in enumerate(alphabet)}
    ours = ByteLevelBPE(encoder, [tuple(b"".join(byte_of[c] for c in half) for half in pair) for pair in merges])
    for text in data.draw(st.lists(st.text("abc \n", max_size=30), max_size=30)):
        assert [ours.bpe_ids[i] for i in ours.encode(text)] == theirs.encode(text)


def test_long_runs_of_whitespace_are_split_alike_where_merges_are_walked():
    alphabet = byte_alphabet()
    merges = [("b", "c"), ("a", "b")]  # abc never becomes the second
    encoder = {piece: i for i, piece in enumerate([*alphabet, "bc", "ab"])}
    ours = ByteLevelBPE(encoder, [(b"b", b"c"), (b"a", b"b"), (b"a", b"b")])
    assert ours._tiktoken is None
    for text in ("a" + " " * 150_000 + "abc" + "\n" * 120_000, " " * 100_000 + "ab", " " * 100_001):
        assert [ours.bpe_ids[i] for i in ours.encode(text)] == Encoder(encoder, merges).encode(text)


def test_another_models_vocabulary_is_followed_as_fairseq_follows_it(tiny_source, sick_pairs):
    ours = Tokenizer.from_directory(tiny_source)
    bpe = GPT2BPE(
        GPT2BPEConfig(
            gpt2_encoder_json=str(tiny_source / "encoder.json"), gpt2_vocab_bpe=str(tiny_source / "vocab.bpe")
        )
    )
    dictionary = FairseqDictionary.load(str(tiny_source / "dict.txt"))
    dictionary.add_symbol("<mask>")
    assert (ours.vocab_size, ours.mask_id) == (len(dictionary), dictionary.index("<mask>"))
    for text in [*AWKWARD, *(pair[0] for pair in sick_pairs[:1000])]:
        expected = dictionary.encode_line(bpe.encode(text), append_eos=False, add_if_not_exist=False).tolist()
        assert ours.encode_text(text).tolist() == expected


def test_a_dictionary_of_some_pieces_gives_unk_for_the_others(tmp_path, gpt2_bpe):
    pieces = json.loads((gpt2_bpe / "encoder.json").read_text())
    (tmp_path / "dict.txt").write_text(f"{pieces['Hello']} 5\n{pieces['!']} 4\n")
    ours = Tokenizer.from_files(tmp_path / "dict.txt", gpt2_bpe / "encoder.json", gpt2_bpe / "vocab.bpe")
    assert ours.encode("Hello world!").tolist() == [0, 4, 3, 5, 2]
    assert (ours.vocab_size, ours.mask_id, ours.decode([0, 4, 3, 6, 2])) == (7, 6, "Hello<unk><mask>")
