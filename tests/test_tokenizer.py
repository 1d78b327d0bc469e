"""What the tokenizer takes, and what it says of what it cannot take. Parity with fairseq: tests/parity."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from roberta_flax import CheckpointError, InputError, Tokenizer
from roberta_flax.text.fairseq_tokenizer import Dictionary, FairseqTokenizer, SentencePiece


@pytest.mark.parametrize(
    ("text", "ids"),
    [  # from shared/gpt2_bpe/README.md, checked against fairseq
        ("Hello world!", [0, 31414, 232, 328, 2]),
        ("Hello world", [0, 31414, 232, 2]),
        (" world", [0, 232, 2]),
        ("world", [0, 8331, 2]),
    ],
)
def test_the_ids_that_fairseqs_readme_gives(gpt2_tokenizer, text, ids):
    encoded = gpt2_tokenizer.encode(text)
    assert encoded.dtype == np.int32
    assert encoded.tolist() == ids
    assert gpt2_tokenizer.decode(ids) == text


def test_released_vocabulary_has_50265_ids_and_mask_is_the_last(gpt2_tokenizer):
    assert (gpt2_tokenizer.vocab_size, gpt2_tokenizer.mask_id) == (50265, 50264)


def test_the_files_of_a_tokenizer_are_those_that_it_was_read_from(gpt2_bpe, gpt2_tokenizer, tmp_path):
    files = gpt2_tokenizer.files()
    assert files["vocab.bpe"] == (gpt2_bpe / "vocab.bpe").read_bytes()
    assert json.loads(files["encoder.json"]) == json.loads((gpt2_bpe / "encoder.json").read_bytes())
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert Tokenizer.from_directory(tmp_path).backend.dictionary.symbols == gpt2_tokenizer.backend.dictionary.symbols
    assert Tokenizer.from_directory(tmp_path).is_same_as(gpt2_tokenizer)


@pytest.mark.parametrize("name", ["dict.txt", "encoder.json", "vocab.bpe"])
def test_a_tokenizer_with_two_lines_exchanged_is_another_one(tiny_source, tmp_path, name):
    for file in ("dict.txt", "encoder.json", "vocab.bpe"):
        shutil.copy(tiny_source / file, tmp_path / file)
    before = Tokenizer.from_directory(tmp_path)
    if name == "encoder.json":
        encoder = json.loads((tmp_path / name).read_text())
        encoder["a"], encoder["b"] = encoder["b"], encoder["a"]
        (tmp_path / name).write_text(json.dumps(encoder))
    else:
        lines = (tmp_path / name).read_text().splitlines(keepends=True)
        lines[1], lines[2] = lines[2], lines[1]
        (tmp_path / name).write_text("".join(lines))
    assert not Tokenizer.from_directory(tmp_path).is_same_as(before)


def test_special_tokens_written_in_text_are_ordinary_text(tiny):
    ids = tiny.encode("<mask></s><s><pad>")[1:-1]
    assert not {0, 1, 2, 3, tiny.tokenizer.mask_id} & set(ids.tolist())
    assert tiny.decode(ids) == "<mask></s><s><pad>"


def test_empty_text_is_two_specials(tiny):
    assert tiny.encode("").tolist() == [0, 2]
    assert tiny.decode([0, 2]) == ""


def test_ids_of_no_text_are_none_and_arrays_are_the_callers_own(tiny):
    none = tiny.tokenizer.encode_text("")
    assert (none.shape, none.dtype) == ((0,), np.int32)
    for encode in (tiny.encode, tiny.tokenizer.encode_text):
        first, again = encode("a man"), encode("a man")
        first[:] = 1
        assert again.tolist() == encode("a man").tolist() != first.tolist()


def test_text_that_needs_a_piece_which_encoder_json_lacks_is_refused_and_other_text_is_not(tiny_source, tmp_path):
    shutil.copytree(tiny_source, tmp_path / "t")
    before = Tokenizer.from_directory(tmp_path / "t")
    encoder = json.loads((tmp_path / "t/encoder.json").read_text())
    del encoder["q"]
    (tmp_path / "t/encoder.json").write_text(json.dumps(encoder))
    tokenizer = Tokenizer.from_directory(tmp_path / "t")
    assert tokenizer.encode("a man").tolist() == before.encode("a man").tolist()
    for texts in (["aqz"], ["a man", "aqz"]):
        with pytest.raises(InputError, match=r"BPE piece b'q', which this model's encoder.json does not have"):
            tokenizer.encode(*texts)


def test_every_id_decodes_to_something_and_padding_to_nothing(tiny):
    texts = [tiny.decode([i]) for i in range(tiny.tokenizer.vocab_size)]
    assert texts[:4] == ["", "", "", "<unk>"]
    assert texts[-1] == "<mask>"
    assert all(texts[4:])
    assert tiny.decode([*tiny.encode("a man"), 1, 1]) == "a man"


def test_filler_words_of_the_dictionary_decode_to_their_names(gpt2_tokenizer):
    fillers = [i for i, s in enumerate(gpt2_tokenizer.backend.dictionary.symbols) if s.startswith("madeupword")]
    assert [gpt2_tokenizer.decode([i]) for i in fillers] == [
        "madeupword0000",
        "madeupword0001",
        "madeupword0002",
    ]


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
def test_windows_give_each_token_its_characters_and_its_word(tiny, sentencepiece_model, kind):
    text = "A man is  playing the guitar and nobody listens"
    tokenizer = tiny.tokenizer
    if kind == "sentencepiece":
        bpe = SentencePiece(sentencepiece_model)
        tokenizer = Tokenizer(FairseqTokenizer(Dictionary(bpe.pieces[3:]), bpe))
    windows = tokenizer.windows("Who?", text, max_length=16, stride=2)
    whole = tokenizer.encode("Who?", text)
    question = int((windows[0].texts == 0).sum())
    assert len(windows) > 1
    contexts = [window.ids[window.texts == 1].tolist() for window in windows]
    assert sum(map(len, contexts)) - 2 * (len(windows) - 1) == len(whole) - question - 4
    for window in windows:
        np.testing.assert_array_equal(window.ids[: question + 3], whole[: question + 3])
        for word in np.unique(window.words[window.texts == 1]):
            tokens = (window.texts == 1) & (window.words == word)
            begin, end = window.spans[tokens, 0].min(), window.spans[tokens, 1].max()
            assert text[begin:end] == text[begin:end].strip()
            is_cut = word in window.words[[question + 3, -2]]
            assert is_cut or text[begin:end] in ("", *text.split())  # the second space between words is one
    (alone,) = tokenizer.windows(text, max_length=100)
    np.testing.assert_array_equal(alone.ids, tokenizer.encode(text))
    names = [tokenizer.token_name(token_id) for token_id in alone.ids[1:-1].tolist()]
    assert tokenizer.join_names(names).split() == text.split()


def test_a_million_spaces_are_split_as_ten_are(gpt2_tokenizer):
    many = gpt2_tokenizer.encode("a" + " " * 1_000_001 + "b" + " " * 1_000_000).tolist()
    assert gpt2_tokenizer.decode(many) == "a" + " " * 1_000_001 + "b" + " " * 1_000_000
    space_b = gpt2_tokenizer.encode(" b").tolist()[1]
    assert space_b in many


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "one sequence"),
        ([[0, 2]], r"shape \(1, 2\)"),
        ([0.0, 2.0], "integers, got float64"),
        ([-1], "token id -1 is outside the vocabulary of 581"),
        ([581], r"token id 581 is outside the vocabulary of 581 \(0 to 580\)"),
    ],
)
def test_decode_says_what_is_wrong_with_ids(tiny, tokens, message):
    with pytest.raises(InputError, match=message):
        tiny.decode(tokens)


@pytest.mark.parametrize(
    ("text", "message"),
    [(7, "got int: '7'"), (None, "got NoneType"), ("ab\ud800", r"U\+D800 at character 2")],
)
def test_encode_says_what_is_wrong_with_text(tiny, text, message):
    with pytest.raises(InputError, match=message) as error:
        tiny.encode(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("dict.txt", None, "dict.txt is missing"),
        ("dict.txt", b"5 1\nhello\n", "line 2: expected 'symbol count', got 'hello'"),
        ("dict.txt", b"5 1\n5 1\n", "line 2: '5' is in the dictionary already"),
        ("dict.txt", b"\xff\xfe", "not UTF-8"),
        ("dict.txt", "\u2581the 9\n".encode(), "dictionary of another tokenizer"),
        ("encoder.json", b"{", "is not JSON"),
        ("encoder.json", b"[1]", "maps each BPE piece to its id"),
        ("vocab.bpe", b"", "no merges"),
        ("vocab.bpe", b"#version\na b\nabc\n", "line 3: expected two BPE pieces, got 'abc'"),
    ],
)
def test_malformed_tokenizer_files_are_named_with_their_line(tiny_source, tmp_path, name, content, message):
    folder = tmp_path / "tokenizer"
    shutil.copytree(tiny_source, folder)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as error:
        Tokenizer.from_directory(folder)
    assert "\n" not in str(error.value)


def test_a_symbol_marked_overwrite_takes_the_later_id(tiny_source, tmp_path):
    shutil.copytree(tiny_source, tmp_path / "t")
    lines = (tmp_path / "t/dict.txt").read_text().splitlines()
    (tmp_path / "t/dict.txt").write_text("\n".join([*lines, f"{lines[0].split()[0]} 1 #fairseq:overwrite"]) + "\n")
    tokenizer = Tokenizer.from_directory(tmp_path / "t")
    assert tokenizer.vocab_size == len(lines) + 6
    assert tokenizer.backend.dictionary.index[lines[0].split()[0]] == len(lines) + 4
