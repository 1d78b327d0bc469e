"""The binary file of token ids, and its blocks, which are fairseq's."""

from __future__ import annotations

import dataclasses
import gzip
import json
import re
import sys
import tracemalloc
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from roberta_flax.errors import InputError
from roberta_flax.text.tokenizer import Tokenizer
from roberta_flax.train import corpus
from roberta_flax.train.corpus import BREAK_MODES, Corpus, block_slices

TEXT = """\
 A man is playing a guitar.\t
The man's guitar, isn't it?

\u00a0
Größe und Übermut: 日本語 🙂
a\u2028b  c
<mask> and </s> are text
"""


@pytest.fixture(scope="module")
def tokenizer(tiny_source) -> Tokenizer:
    return Tokenizer.from_directory(tiny_source)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def sample(text, tmp_path, tokenizer) -> Corpus:
    corpus.write([text], tmp_path / "data.bin", tokenizer)
    return Corpus(tmp_path / "data.bin")


def lines_of(made: Corpus) -> list[list[int]]:
    return [made.tokens[a:b].tolist() for a, b in zip(made.offsets[:-1], made.offsets[1:], strict=True)]


# The file


@pytest.mark.parametrize("which", ["tiny", "gpt2"])
def test_lines_are_what_fairseqs_encoder_and_dictionary_make_of_them(which, tiny_source, request, text, tmp_path):
    pytest.importorskip("fairseq")
    from fairseq.data import Dictionary
    from fairseq.data.encoders.gpt2_bpe_utils import get_encoder

    folder = tiny_source if which == "tiny" else request.getfixturevalue("gpt2_bpe")
    made = tmp_path / "made.bin"
    header = corpus.write([text], made, Tokenizer.from_directory(folder))
    encoder = get_encoder(str(folder / "encoder.json"), str(folder / "vocab.bpe"))
    dictionary = Dictionary.load(str(folder / "dict.txt"))
    with text.open(encoding="utf-8") as file:
        # MultiprocessingEncoder.encode_lines with --keep-empty, then what fairseq-preprocess calls
        encoded = [" ".join(map(str, encoder.encode(line.strip()))) for line in file]
    expected = [dictionary.encode_line(line, add_if_not_exist=False).tolist() for line in encoded]
    assert lines_of(Corpus(made)) == expected
    assert (header.lines, header.documents, header.tokens) == (7, 2, sum(map(len, expected)))


def test_the_smallest_integers_that_hold_the_vocabulary(tokenizer, sample, sentencepiece_model):
    assert sample.tokens.dtype == np.uint16
    for size, dtype in ((1 << 16, np.uint16), ((1 << 16) + 1, np.uint32), (250_002, np.uint32)):
        assert dataclasses.replace(sample.header, vocab_size=size).dtype == dtype


def test_a_vocabulary_beyond_uint16_keeps_its_ids(tmp_path):
    symbols = "".join(f"{i} 1\n" for i in range(70_000))
    encoder = {chr(c): i for i, c in enumerate(range(33, 127))} | {"Ġ": 69_999}
    (tmp_path / "dict.txt").write_text(symbols)
    (tmp_path / "encoder.json").write_text(json.dumps(encoder, ensure_ascii=False))
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\na b\n")
    (tmp_path / "t.txt").write_text("a b\n")
    corpus.write([tmp_path / "t.txt"], tmp_path / "d.bin", Tokenizer.from_directory(tmp_path))
    assert lines_of(Corpus(tmp_path / "d.bin")) == [[4 + 64, 4 + 69_999, 4 + 65, 2]]


def test_the_bytes_do_not_depend_on_threads_compression_or_how_often(text, tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(corpus, "_CHUNK", 20)
    packed = tmp_path / "packed.raw.gz"
    packed.write_bytes(gzip.compress(text.read_bytes()))
    windows = tmp_path / "windows.raw"
    windows.write_bytes(b"\xef\xbb\xbf" + text.read_bytes().replace(b"\n", b"\r\n"))
    made = set()
    for source, threads in ((text, 1), (text, 3), (packed, 2), (windows, None)):
        corpus.write([source], tmp_path / "d.bin", tokenizer, threads=threads)
        made.add((tmp_path / "d.bin").read_bytes())
    assert len(made) == 1


def test_files_are_documents_of_their_own(tmp_path, tokenizer):
    for name, content in (("a", "one\ntwo"), ("b", "three\n\n"), ("c", "four\n"), ("d", "\nfive\n")):
        (tmp_path / f"{name}.txt").write_text(content)
    header = corpus.write([tmp_path / f"{name}.txt" for name in "abcd"], tmp_path / "d.bin", tokenizer)
    made = Corpus(tmp_path / "d.bin")
    empty = [len(line) == 1 for line in lines_of(made)]
    # a file that ends with an empty line gets no other one
    assert empty == [False, False, True, False, True, False, True, True, False]
    assert (header, header.documents, header.lines) == (made.header, 4, 9)


def test_a_model_saved_and_loaded_has_the_tokenizer_of_before(sample, tiny, tmp_path, gpt2_tokenizer):
    tiny.save(tmp_path / "saved")
    sample.check_tokenizer(Tokenizer.from_directory(tmp_path / "saved"))
    with pytest.raises(InputError, match="was encoded with another tokenizer, with 581 ids; the model's has 50265"):
        sample.check_tokenizer(gpt2_tokenizer)


def test_every_changed_byte_and_every_length_is_noticed(sample, tmp_path):
    whole = sample.path.read_bytes()
    damaged = tmp_path / "damaged.bin"
    places = [
        *range(0, 40),
        corpus.HEADER_SIZE - 1,
        corpus.HEADER_SIZE,
        len(whole) // 2,
        *range(len(whole) - 20, len(whole)),
    ]
    for place in places:
        damaged.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(
            InputError, match="is not a complete file from roberta-flax preprocess: .*; create it again"
        ):
            Corpus(damaged)
    for size in (0, 5, 12, 16, 100, corpus.HEADER_SIZE, len(whole) - 1):
        damaged.write_bytes(whole[:size])
        with pytest.raises(InputError, match="is not a complete file"):
            Corpus(damaged)
    damaged.write_bytes(whole + b"\0")
    with pytest.raises(InputError, match=f"it has {len(whole) + 1} bytes of {len(whole)}; create it again"):
        Corpus(damaged)


def test_other_files_are_refused_in_one_line(sample, text, tmp_path):
    for path, message in (
        (text, "it has another format"),
        (tmp_path, "cannot read .*: Is a directory"),
        (tmp_path / "none.bin", "cannot read .*none.bin: No such file"),
    ):
        with pytest.raises(InputError, match=message):
            Corpus(path)
    header = dataclasses.replace(sample.header, version=2).to_bytes()
    (tmp_path / "new.bin").write_bytes(header + sample.path.read_bytes()[corpus.HEADER_SIZE :])
    with pytest.raises(InputError, match="its version is 2, and this program reads 1"):
        Corpus(tmp_path / "new.bin")


def test_texts_that_are_none_are_refused_and_nothing_is_left(text, tmp_path, tokenizer):
    (tmp_path / "latin.txt").write_bytes(b"fine\ncaf\xe9\n")
    (tmp_path / "blank.txt").write_text("\n \n\n")
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(TEXT.encode() * 100)[:-9])
    (tmp_path / "rows.jsonl.gz").write_bytes(b"")
    for texts, message in (
        ([], "no texts to encode"),
        (["latin.txt"], r"latin.txt, line 2: invalid UTF-8 at byte 4; correct or remove the line"),
        (["blank.txt"], "there is no sentence in .*blank.txt; nothing was written"),
        (["text.txt", "none.txt"], "cannot read .*none.txt: No such file"),
        (["cut.txt.gz"], "is not a whole gzip file"),
        (["rows.jsonl.gz"], "rows.jsonl.gz is jsonl; expected plain text"),
        (["."], "is a directory; expected plain text"),
    ):
        with pytest.raises(InputError, match=message):
            corpus.write([tmp_path / name for name in texts], tmp_path / "d.bin", tokenizer)
        assert not list(tmp_path.glob("d.bin*"))
    with pytest.raises(InputError, match=re.escape(f"cannot write {tmp_path / 'no' / 'd.bin'}: No such file")):
        corpus.write([text], tmp_path / "no" / "d.bin", tokenizer)
    before = text.read_bytes()
    with pytest.raises(InputError, match="would be replaced by its own tokens"):
        corpus.write([text], text, tokenizer)
    assert text.read_bytes() == before


def test_a_failure_leaves_the_file_of_before(sample, tmp_path, tokenizer):
    before = sample.path.read_bytes()
    (tmp_path / "bad.txt").write_bytes(b"a\n" * 1000 + b"\xff\n")
    with pytest.raises(InputError, match="line 1001"):
        corpus.write([tmp_path / "bad.txt"], sample.path, tokenizer)
    assert sample.path.read_bytes() == before


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text(tmp_path, tokenizer):
    def peak(lines: int) -> int:
        source = tmp_path / "t.txt"
        with source.open("w") as file:
            for number in range(lines):
                file.write(f"A man number {number} is playing a guitar.\n" + "\n" * (number % 7 == 0))
        tracemalloc.start()
        try:
            corpus.write([source], tmp_path / "d.bin", tokenizer, threads=1)
            made = Corpus(tmp_path / "d.bin")
            made.blocks("eos", 512, bos_id=0)[0]
            return tracemalloc.get_traced_memory()[1] - 3 * 8 * len(made.offsets)  # the blocks' places are in memory
        finally:
            tracemalloc.stop()

    few, many = peak(20_000), peak(80_000)
    assert many < few * 1.1 + 100_000


# Blocks


def fast_slices(sizes: np.ndarray, break_mode: str, block_size: int, document_sep_len: int) -> np.ndarray:
    """_get_slice_indices_fast of fairseq/data/token_block_utils_fast.pyx, line by line."""
    at = index = size = 0
    slices = []
    if break_mode == "none":
        total = int(sizes.sum())
        return np.array([(a, min(a + block_size, total)) for a in range(0, total, block_size)])
    if break_mode == "eos":
        ends = sizes.cumsum()
        return np.stack([ends - sizes, ends], axis=1)
    documents, least = break_mode == "complete_doc", int(break_mode == "complete_doc")
    while index < len(sizes):
        ends_document = documents and sizes[index] == document_sep_len
        if (size + sizes[index] <= block_size or size == 0) and not ends_document:
            size += sizes[index]
            index += 1
        else:
            if not documents or size > least:
                slices.append((at, at + size))
            at += size
            size = 0
            if ends_document:
                at += sizes[index]
                index += 1
    if size > least:
        slices.append((at, at + size))
    return np.array(slices, np.int64).reshape(-1, 2)


def slow_block_places(sizes: np.ndarray, slices: np.ndarray) -> np.ndarray:
    """_get_block_to_dataset_index_fast: first line, where in it, last line."""
    line_of = np.repeat(np.arange(len(sizes)), sizes)
    begins = np.cumsum(sizes) - sizes
    return np.array([(line_of[a], a - begins[line_of[a]], line_of[b - 1]) for a, b in slices], np.int64)


@pytest.fixture
def fairseqs_blocks(monkeypatch):
    """fairseq's TokenBlockDataset under PrependTokenDataset, as its masked_lm task builds them: lists of ids.

    With fairseq's compiled code where it is built, otherwise with the above in its place.
    """
    torch = pytest.importorskip("torch")
    pytest.importorskip("fairseq")
    from fairseq.data import PrependTokenDataset, TokenBlockDataset

    try:
        import fairseq.data.token_block_utils_fast  # noqa: F401
    except ImportError:
        module = ModuleType("fairseq.data.token_block_utils_fast")
        module._get_slice_indices_fast = fast_slices
        module._get_block_to_dataset_index_fast = slow_block_places
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(np, "compat", SimpleNamespace(long=np.int64), raising=False)  # of numpy 1, in mode eos

    def blocks(lines: list[list[int]], break_mode: str, tokens_per_sample: int) -> list[list[int]]:
        sizes = np.array(list(map(len, lines)))
        made = TokenBlockDataset(
            [torch.tensor(line) for line in lines], sizes, tokens_per_sample - 1, pad=1, eos=2, break_mode=break_mode
        )
        made = PrependTokenDataset(made, 0)
        return [made[index].tolist() for index in range(len(made))]

    return blocks


def corpus_of(lines: list[list[int]]) -> Corpus:
    made = Corpus.__new__(Corpus)
    made.tokens = np.array([i for line in lines for i in line], np.uint16)
    made.offsets = np.cumsum([0, *map(len, lines)])
    made.path = "corpus"
    return made


def random_lines(seed: int, longest: int) -> list[list[int]]:
    """Documents of lines of 1 to `longest` ids and </s>, with empty lines in any number, also first and last."""
    random = np.random.default_rng(seed)
    lines = []
    for _ in range(random.integers(1, 60)):
        length = 0 if random.random() < 0.3 else random.integers(1, longest)
        lines.append([*random.integers(4, 500, length).tolist(), 2])
    return lines if any(len(line) > 1 for line in lines) else [*lines, [5, 2]]


@pytest.mark.slow
@pytest.mark.parametrize("break_mode", BREAK_MODES)
def test_blocks_are_fairseqs(break_mode, fairseqs_blocks):
    for seed in range(150):
        lines = random_lines(seed, longest=(4, 12, 40)[seed % 3])
        for tokens_per_sample in (2, 3, 10, 33, 5000):
            expected = fairseqs_blocks(lines, break_mode, tokens_per_sample)
            fitting = [block for block in expected if len(block) <= tokens_per_sample]
            if not fitting:
                continue
            made = corpus_of(lines).blocks(break_mode, tokens_per_sample, bos_id=0)
            assert [block.tolist() for block in made] == fitting
            assert made.dropped == len(expected) - len(fitting)
            assert made.lengths.tolist() == list(map(len, fitting))


def test_the_corpus_that_was_written_has_fairseqs_blocks(sample, fairseqs_blocks):
    for break_mode in BREAK_MODES:
        expected = fairseqs_blocks(lines_of(sample), break_mode, 64)
        assert [block.tolist() for block in sample.blocks(break_mode, 64, bos_id=0)] == expected
        assert sample.blocks(break_mode, 64, bos_id=0)[0].dtype == np.int32


# Two documents, of lines of 3, 2 and 4 and of 9 and 2 tokens, </s> included; blocks of at most 6
HAND = [3, 2, 4, 1, 9, 2, 1, 1]


@pytest.mark.parametrize(
    ("break_mode", "expected"),
    [
        ("none", [(0, 6), (6, 12), (12, 18), (18, 23)]),
        # 3 + 2 fit; 4 + the empty line; 9 alone, though it is too long; 2 and both empty lines
        ("complete", [(0, 5), (5, 10), (10, 19), (19, 23)]),
        # the empty lines, at 9, 21 and 22, are in no block
        ("complete_doc", [(0, 5), (5, 9), (10, 19), (19, 21)]),
        ("eos", [(0, 3), (3, 5), (5, 9), (9, 10), (10, 19), (19, 21), (21, 22), (22, 23)]),
    ],
)
def test_blocks_hand_worked(break_mode, expected):
    starts, ends = block_slices(np.cumsum([0, *HAND]), break_mode, 6)
    assert list(zip(starts.tolist(), ends.tolist(), strict=True)) == expected
    assert list(map(tuple, fast_slices(np.array(HAND), break_mode, 6, 1).tolist())) == expected


def test_documents_are_found_wherever_the_scan_is_cut(monkeypatch):
    offsets = np.cumsum([0, *HAND, *HAND, 1, 1, *HAND])
    whole = [block_slices(offsets, "complete_doc", size) for size in (1, 6, 100)]
    for scan in (1, 2, 3, 8, 9):
        monkeypatch.setattr(corpus, "_SCAN", scan)
        for size, expected in zip((1, 6, 100), whole, strict=True):
            np.testing.assert_array_equal(block_slices(offsets, "complete_doc", size), expected)


def test_modes_and_sizes_that_are_none_are_refused(sample):
    with pytest.raises(InputError, match="must be one of none, complete, complete_doc, eos, got 'doc'"):
        sample.blocks("doc", 64, bos_id=0)
    with pytest.raises(InputError, match="tokens_per_sample must be 2 or more, <s> and one token, got 1"):
        sample.blocks("none", 1, bos_id=0)
    with pytest.raises(InputError, match="has no block of at most 3 tokens in break mode 'complete_doc'"):
        sample.blocks("complete_doc", 3, bos_id=0)
