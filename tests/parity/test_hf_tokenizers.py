"""Tokenizers of Hugging Face models: ids beside AutoTokenizer's, and what becomes of them for fairseq."""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fairseq.data import Dictionary
from fairseq.data.encoders.gpt2_bpe import GPT2BPE

import roberta_flax
from roberta_flax import CheckpointError, InputError
from roberta_flax.convert import convert, export, fairseq_files, hf_tokenizer, verify
from roberta_flax.convert.conversion import write_files
from roberta_flax.text.encoding import encode_batch
from roberta_flax.text.tokenizer import Tokenizer
from tests.conftest import skip_or_fail
from tests.marks import slow_but
from tests.parity.test_huggingface import build
from tests.references import torch

try:
    import tokenizers
    from tokenizers import normalizers, pre_tokenizers, processors

    from tests.parity import layouts
    from tests.parity.layouts import assert_same_ids, auto
except ImportError as error:
    skip_or_fail(f"tokenizers, the reference, cannot be imported ({error}); the README's test command installs it")
    pytest.skip("no tokenizers", allow_module_level=True)

MODEL_TYPES = {"Roberta": "roberta", "XLMRoberta": "xlm-roberta", "Camembert": "camembert"}
VOCABULARY_FILES = ("vocab.json", "merges.txt", "sentencepiece.bpe.model")
TEXTS = ("A man is playing a guitar.", "Ünïcödé ﬁ ① ½", "日本語 テキスト", "a\tb\nc", "don't 12,345", "\u3000x\u00a0y")


@pytest.fixture(scope="module")
def sources(tmp_path_factory, tiny_source, sentencepiece_model) -> dict[str, Path]:
    """A vocabulary, and nothing else, for each family: the embedded model's, and a sentencepiece model."""
    folders = {family: tmp_path_factory.mktemp(family) for family in MODEL_TYPES}
    piece_of = {i: piece for piece, i in json.loads((tiny_source / "encoder.json").read_text()).items()}
    lines = (tiny_source / "dict.txt").read_text().splitlines()
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *(piece_of[int(line.split()[0])] for line in lines), "<mask>"]
    (folders["Roberta"] / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    shutil.copy(tiny_source / "vocab.bpe", folders["Roberta"] / "merges.txt")
    for family in ("XLMRoberta", "Camembert"):
        (folders[family] / "sentencepiece.bpe.model").write_bytes(sentencepiece_model)
    return folders


def theirs(family: str, source: Path, kind: str = "Fast") -> Any:
    import transformers

    return getattr(transformers, f"{family}Tokenizer{kind}").from_pretrained(source)


def saved(family: str, sources: dict[str, Path], folder: Path, *, alone: bool = False, **changes: Any) -> Path:
    """What save_pretrained makes of a fast tokenizer, with changes to its parts; tokenizer.json alone if asked for."""
    fast = theirs(family, sources[family])
    for name, value in changes.items():
        setattr(fast.backend_tokenizer, name, value)
    fast.save_pretrained(folder)
    for name in VOCABULARY_FILES if alone else ():
        (folder / name).unlink(missing_ok=True)
    return folder


def edit(path: Path, change: dict[str, Any]) -> None:
    """Changes a JSON file; "a.b" is the key b inside a."""
    whole = json.loads(path.read_text()) if path.is_file() else {}
    for name, value in change.items():
        *outer, last = name.split(".")
        inside = whole
        for key in outer:
            inside = inside[key]
        inside[last] = value
    path.write_text(json.dumps(whole))


def read(
    folder: Path, family: str, destination: Path, vocab_size: int | None = None, model_type: str | None = None
) -> tuple[Tokenizer, list[str]]:
    """The converted tokenizer, and what the user is told."""
    size = vocab_size or {"Roberta": 581, "XLMRoberta": 402, "Camembert": 405}[family]
    notes: list[str] = []
    files = hf_tokenizer.read([folder], model_type or MODEL_TYPES[family], size, notes)
    destination.mkdir()
    write_files(files, destination)
    return Tokenizer.from_directory(destination), notes


def for_fairseq(
    folder: Path, family: str, destination: Path, vocab_size: int | None = None
) -> tuple[Tokenizer, list[str]]:
    """The tokenizer as an export to fairseq writes it, and what the user is told."""
    backend = read(folder, family, destination.with_name(f"{destination.name} of transformers"), vocab_size)[0].backend
    notes: list[str] = []
    files = fairseq_files.translate(backend, notes)
    destination.mkdir()
    write_files(files, destination)
    return Tokenizer.from_directory(destination), notes


def refused(message: str, folder: Path, family: str, reader: Any = read, **options: Any) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        reader(folder, family, folder / "converted", **options)
    assert "\n" not in str(caught.value)


# AutoTokenizer


@pytest.fixture(scope="module")
def repositories(tmp_path_factory) -> Any:
    """Makes the directory of a layout, its tokenizer by transformers, and ours, once."""

    @functools.cache
    def made(layout: str) -> tuple[Path, Any, Tokenizer]:
        folder = layouts.LAYOUTS[layout](tmp_path_factory.mktemp(layout) / "source")
        theirs, notes = auto(folder), list[str]()
        files = hf_tokenizer.read([folder], "roberta", max(theirs.get_vocab().values()) + 1, notes, pad_id=None)
        assert not notes
        converted = tmp_path_factory.mktemp(layout)
        write_files(files, converted)
        return folder, theirs, Tokenizer.from_directory(converted)

    return made


@pytest.mark.parametrize("layout", slow_but([*layouts.LAYOUTS][::4], layouts.LAYOUTS))
def test_ids_are_autotokenizers(layout, repositories):
    _, theirs, ours = repositories(layout)
    assert_same_ids(theirs, ours, 200)
    backend, names = ours.backend, ("pad_token_id", "unk_token_id", "mask_token_id")
    assert (backend.pad_id, backend.unk_id, backend.mask_id) == tuple(getattr(theirs, name) for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_ids_are_autotokenizers_on_10000_strings(layout, repositories):
    _, theirs, ours = repositories(layout)
    assert_same_ids(theirs, ours, 10_000)


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_pairs_are_truncated_as_autotokenizer_truncates_them(layout, repositories):
    _, theirs, ours = repositories(layout)
    words = " ".join(layouts.CORPUS[:2]).split()
    for a, b, limit in itertools.product((1, 4, 5, 9, 30), (1, 4, 5, 9, 30), (10, 11, 16, 17)):
        pair = " ".join(words[:a]), " ".join(words[-b:])
        expected = theirs(*pair, truncation="longest_first", max_length=limit)["input_ids"]
        ((sequence,),) = encode_batch(ours, [pair], limit, "truncate")
        assert sequence.ids.tolist() == expected, (a, b, limit)


def test_the_end_of_a_text_is_kept_where_the_settings_say_so(tmp_path):
    folder = layouts.byte_level(tmp_path / "source")
    edit(folder / "tokenizer_config.json", {"truncation_side": "left"})
    theirs = auto(folder)
    ours, _ = read(folder, "Roberta", tmp_path / "converted", len(theirs))
    ((sequence,),) = encode_batch(ours, [layouts.CORPUS[0]], 10, "truncate")
    assert sequence.ids.tolist() == theirs(layouts.CORPUS[0], truncation=True, max_length=10)["input_ids"]


@pytest.mark.parametrize("layout", ["byte_level", "wordpiece_uncased", "camembert", "phobert", "japanese_t5"])
def test_text_comes_back_and_a_token_has_the_text_that_it_adds(layout, repositories):
    _, theirs, ours = repositories(layout)
    text = layouts.CORPUS[0] if layout != "japanese_t5" else layouts.CORPUS[4]
    ids = ours.encode(text)
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    padded = [*ours.encode("a man", "on grass").tolist(), ours.pad_id, ours.pad_id]
    assert ours.decode(padded) == [ours.decode(ours.encode(each)) for each in ("a man", "on grass")]
    if layout != "phobert":  # whose pieces have a space after them, or none
        assert "".join(ours.token_text(int(i)) for i in ours.encode_text(text)).strip() == ours.decode(ids)


@pytest.mark.parametrize("layout", ["byte_level", "prefix_space", "wordpiece_cased", "xlm_roberta", "camembert"])
def test_each_token_stands_for_the_characters_that_transformers_says(layout, repositories):
    _, theirs, ours = repositories(layout)
    for text in (*layouts.CORPUS[:3], "un  été  chaud", "日本語 ﬁ ½"):
        expected = theirs(text, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
        np.testing.assert_array_equal(ours.spans(text), np.array(expected).reshape(-1, 2))


@pytest.mark.parametrize("layout", ["byte_level", "other_special_tokens", "wordpiece_uncased", "xlm_roberta"])
def test_a_mask_is_encoded_as_autotokenizer_encodes_it_and_filled(layout, repositories):
    _, theirs, ours = repositories(layout)
    mask = theirs.mask_token
    for text in (f"A man is {mask} a guitar.", f"{mask} is singing", f"({mask})", f"a {mask}", f"They're {mask}ing."):
        ids, (position,) = ours.encode_masked(text)
        assert ids.tolist() == theirs(text)["input_ids"]
        assert ids[position] == theirs.mask_token_id
    word = int(ours.encode_text("A man is playing")[-1])
    filled = ours.fill_mask(f"A man is {mask} a guitar.", word)
    assert filled == f"A man is{ours.token_text(word)} a guitar."
    assert ours.is_silent(ours.bos_id)
    assert not ours.is_silent(word)


def test_whole_words_begin_where_the_pieces_say(repositories):
    for layout, text in (("byte_level", " dogs running"), ("wordpiece_cased", "dogs running")):
        _, _, ours = repositories(layout)
        begins, ids = ours.word_begins(), ours.encode_text(text)
        assert begins[ids].sum() == 2
        assert begins[ids[0]]
        assert not begins[ours.mask_id]
    with pytest.raises(InputError, match="whole words cannot be masked"):
        repositories("phobert")[2].word_begins()


def test_a_model_trains_on_no_special_token_in_place_of_another(repositories):
    for layout in ("wordpiece_cased", "japanese_t5"):
        _, theirs, ours = repositories(layout)
        given = {theirs.pad_token_id, theirs.unk_token_id, theirs.cls_token_id, theirs.sep_token_id}
        assert ours.special_ids == given


# what is kept, and what is said


def model_of(layout: str, tmp_path: Path, **settings: Any) -> tuple[Path, Any]:
    """A small model with the tokenizer of a layout; its directory, and AutoTokenizer's."""
    folder = layouts.LAYOUTS[layout](tmp_path / "source")
    theirs = auto(folder)
    padding = theirs.pad_token_id
    pad = {"pad_token_id": padding, "max_position_embeddings": 78 + padding, "num_hidden_layers": 1}
    size = max(theirs.get_vocab().values()) + 1
    build("RobertaForMaskedLM", size, torch.float32, **{**pad, **settings}).save_pretrained(folder)
    return folder, theirs


@pytest.mark.parametrize("layout", slow_but([*layouts.LAYOUTS][::6], layouts.LAYOUTS))
def test_files_go_back_byte_for_byte_and_autotokenizer_reads_them(layout, tmp_path):
    folder, theirs = model_of(layout, tmp_path)
    directory = convert(folder, tmp_path / "converted")
    roberta_flax.load(directory).save(tmp_path / "saved")
    exported = export(tmp_path / "saved", tmp_path / "exported", to="huggingface")
    names = {file.name for file in folder.iterdir()} - {"config.json", "generation_config.json", "model.safetensors"}
    for name in names:
        for copy in (directory, tmp_path / "saved", exported):
            assert (copy / name).read_bytes() == (folder / name).read_bytes(), name
    texts = layouts.texts(200)
    assert auto(exported)(texts)["input_ids"] == theirs(texts)["input_ids"]
    assert not verify(tmp_path / "saved", exported).problems
    again = roberta_flax.load_tokenizer(tmp_path / "saved")
    assert again.is_same_as(roberta_flax.load_tokenizer(directory))
    assert again.fingerprint() == roberta_flax.load_tokenizer(directory).fingerprint()


def test_another_padding_id_moves_the_positions(tmp_path):
    folder, theirs = model_of("japanese_t5", tmp_path)
    assert theirs.pad_token_id == 3
    roberta = roberta_flax.load(convert(folder, tmp_path / "converted"))
    assert (roberta.config.pad_id, roberta.tokenizer.pad_id) == (3, 3)
    import transformers

    model = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    inputs = theirs(layouts.CORPUS[3:5], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model.base_model(**inputs).last_hidden_state.numpy()
    found = np.asarray(roberta.extract_features(inputs["input_ids"].numpy()))
    real = inputs["attention_mask"].numpy() == 1
    np.testing.assert_allclose(found[real], expected[real], atol=1e-5)


def test_two_padding_ids_are_refused(tmp_path):
    folder, _ = model_of("wordpiece_cased", tmp_path)
    edit(folder / "config.json", {"pad_token_id": 3})
    with pytest.raises(CheckpointError, match=r"pad_token_id=3, but .* pads with '\[PAD\]', which is 1"):
        convert(folder, tmp_path / "converted")


def test_tokens_that_the_model_does_not_embed_are_told_and_refused_in_text(tmp_path):
    folder = layouts.added_tokens(tmp_path / "source")
    ours, notes = read(folder, "Roberta", tmp_path / "converted", len(auto(folder)) - 6)
    assert len(notes) == 1
    assert "6 tokens that the model" in notes[0]
    assert ours.encode("A man").tolist() == auto(folder)("A man")["input_ids"]
    (_,), rejected = encode_batch(ours, ["A man", "a [E1] man"], 100, "error")
    assert "'[E1]' with id" in rejected.reason
    with pytest.raises(InputError, match="but the model embeds"):
        ours.encode("a [E1] man")


def test_a_model_without_its_tokenizer_takes_ids_and_says_what_it_lacks(tmp_path, run):
    folder, _ = model_of("wordpiece_cased", tmp_path)
    for name in hf_tokenizer.FILES:
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match="--no-tokenizer"):
        convert(folder, tmp_path / "with")
    directory = tmp_path / "converted"
    assert run("convert", folder, directory, "--no-tokenizer")[0] == 0
    roberta = roberta_flax.load(directory)
    assert roberta.extract_features([0, 5, 6, 2]).shape == (1, 4, 36)
    for use in (lambda: roberta.encode("a"), lambda: roberta.decode([0, 2]), lambda: roberta.fill_mask("a <mask>")):
        with pytest.raises(InputError, match="tokenizer"):
            use()
    roberta.save(tmp_path / "saved")
    exported = export(tmp_path / "saved", tmp_path / "exported", to="huggingface")
    assert sorted(file.name for file in exported.iterdir()) == ["config.json", "model.safetensors"]
    assert not verify(directory, folder).problems


def test_a_tokenizer_that_is_not_supported_is_refused_in_a_line(tmp_path):
    folder = layouts.phobert(tmp_path / "source")
    edit(folder / "tokenizer_config.json", {"normalization": True})
    refused("normalizes tweets before", folder, "Roberta")
    edit(folder / "tokenizer_config.json", {"tokenizer_class": "BertJapaneseTokenizer"})
    refused("splits Japanese into words", folder, "Roberta")
    (folder / "bpe.codes").unlink()
    (folder / "vocab.txt").unlink()
    (folder / "spiece.model").write_bytes(layouts.sentencepiece(300))
    edit(folder / "tokenizer_config.json", {"tokenizer_class": "AlbertTokenizer"})
    _, notes = read(folder, "Roberta", tmp_path / "converted", 300)
    assert "is for AlbertTokenizer, but has the files of T5Tokenizer" in notes[0]
    (folder / "spiece.model").rename(folder / "sentencepiece.bpe.model")
    refused("name one of RobertaTokenizer", folder, "Roberta")


# RoBERTa's own vocabulary


@pytest.fixture(scope="module")
def released(tmp_path_factory, gpt2_bpe, gpt2_tokenizer) -> tuple[Path, Path, Tokenizer]:
    """A model with RoBERTa's own vocab.json and merges.txt, as transformers made them; converted; and its tokenizer."""
    encoder = json.loads((gpt2_bpe / "encoder.json").read_text())
    piece_of = {str(i): piece for piece, i in encoder.items()}
    symbols = gpt2_tokenizer.backend.dictionary.symbols
    folder = tmp_path_factory.mktemp("released") / "source"
    build("RobertaForMaskedLM", 50265, torch.float32, hidden_size=12, num_hidden_layers=1).save_pretrained(folder)
    vocab = {piece_of.get(symbol, symbol): i for i, symbol in enumerate(symbols)}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    shutil.copy(gpt2_bpe / "vocab.bpe", folder / "merges.txt")
    converted = convert(folder, folder.with_name("converted"))
    return folder, converted, roberta_flax.load_tokenizer(converted)


@pytest.mark.slow
def test_ids_of_a_released_vocabulary_are_autotokenizers(released):
    source, _, ours = released
    assert_same_ids(auto(source), ours, 1000)


@pytest.mark.slow
def test_a_released_vocabulary_is_the_same_from_either_library(released, gpt2_tokenizer, sick_pairs):
    _, _, ours = released
    for text in [text for pair in sick_pairs[:500] for text in pair] + ["", "🙂 naïve\n\n  x"]:
        assert ours.encode(text).tolist() == gpt2_tokenizer.encode(text).tolist()
        assert ours.decode(ours.encode(text)) == text


@pytest.mark.slow
def test_a_released_vocabulary_goes_to_fairseq_with_the_ids_of_gpt2s_bpe(
    released, tmp_path, gpt2_bpe, gpt2_tokenizer, sick_pairs
):
    """fairseq's default, bpe=gpt2, is GPT-2's own encoder.json, whatever is beside the model."""
    exported = export(released[1], tmp_path / "exported", to="fairseq")
    assert json.loads((exported / "encoder.json").read_text()) == json.loads((gpt2_bpe / "encoder.json").read_text())
    lines = [line.split()[0] for line in (exported / "dict.txt").read_text().splitlines()]
    assert lines == [line.split()[0] for line in (gpt2_bpe / "dict.txt").read_text().splitlines()] + ["<mask>"]

    bpe = GPT2BPE(
        argparse.Namespace(gpt2_encoder_json=str(gpt2_bpe / "encoder.json"), gpt2_vocab_bpe=str(gpt2_bpe / "vocab.bpe"))
    )
    dictionary = Dictionary.load(str(exported / "dict.txt"))
    for text in [text for pair in sick_pairs[:200] for text in pair] + list(TEXTS):
        ids = dictionary.encode_line(bpe.encode(text), append_eos=False, add_if_not_exist=False).tolist()
        assert ids == gpt2_tokenizer.encode_text(text).tolist(), text


def test_fillers_and_unreachable_pieces_keep_their_ids(sources, tmp_path):
    """Of a vocabulary with filler words in it, a piece that no merge makes, a gap, and a larger embedding."""
    vocab = json.loads((sources["Roberta"] / "vocab.json").read_text())
    del vocab["<mask>"]
    vocab |= {"madeupword0000": 580, "<mask>": 581, "Ġunreachable": 583}
    folder = shutil.copytree(sources["Roberta"], tmp_path / "source")
    (folder / "vocab.json").write_text(json.dumps(vocab))
    ours, _ = for_fairseq(folder, "Roberta", tmp_path / "converted", 600)
    slow = theirs("Roberta", folder, "")
    for text in TEXTS:
        assert ours.encode(text).tolist() == slow(text)["input_ids"]
    assert ours.vocab_size == len(set(ours.backend.dictionary.symbols)) == 600
    assert (ours.backend.dictionary.symbols[580], ours.mask_id) == ("madeupword0000", 581)
    assert ours.decode([583]) == " unreachable"
    dictionary = Dictionary.load(str(tmp_path / "converted" / "dict.txt"))
    assert dictionary.symbols == ours.backend.dictionary.symbols


# what transformers writes, for fairseq


@pytest.mark.parametrize("layout", ["fast", "fast, legacy", "slow", "tokenizer.json alone", "generic class"])
@pytest.mark.parametrize("family", MODEL_TYPES)
def test_what_transformers_saves_is_taken_without_a_word(family, layout, sources, tmp_path, sick_pairs):
    folder = tmp_path / "source"
    tokenizer = theirs(family, sources[family], "" if layout == "slow" else "Fast")
    tokenizer.save_pretrained(folder, **({"legacy_format": True} if layout == "fast, legacy" else {}))
    if layout == "tokenizer.json alone":
        for name in VOCABULARY_FILES:
            (folder / name).unlink(missing_ok=True)
    if layout == "generic class":
        edit(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    assert (folder / "tokenizer.json").is_file() == (layout not in ("slow", "fast, legacy"))
    ours, notes = for_fairseq(folder, family, tmp_path / "converted")
    assert not notes
    for text in [text for pair in sick_pairs[:100] for text in pair] + list(TEXTS):
        assert ours.encode(text).tolist() == tokenizer(text)["input_ids"], text


def collapse(by: str) -> normalizers.Normalizer:
    return normalizers.Replace(tokenizers.Regex(" {2,}"), by)


METASPACE = pre_tokenizers.Metaspace()
WORDS = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), METASPACE])


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "beside the model"])
@pytest.mark.parametrize("family", ["XLMRoberta", "Camembert"])
@pytest.mark.parametrize("by", [None, " ", "\u2581"])
@pytest.mark.parametrize("cut", [METASPACE, WORDS], ids=["Metaspace", "WhitespaceSplit and Metaspace"])
def test_tokenizers_of_released_models_are_taken(family, by, cut, alone, sources, tmp_path, sick_pairs):
    """The normalizers and pre-tokenizers of XLM-R's and CamemBERT's files of several years."""
    precompiled = theirs(family, sources[family]).backend_tokenizer.normalizer[0]
    normalizer = normalizers.Sequence([precompiled, collapse(by)]) if by else precompiled
    folder = saved(family, sources, tmp_path / "source", alone=alone, normalizer=normalizer, pre_tokenizer=cut)
    if alone:  # the tokenizers package wrote no types at first
        whole = json.loads((folder / "tokenizer.json").read_text())
        del whole["model"]["type"]
        (folder / "tokenizer.json").write_text(json.dumps(whole))
    reference = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    ours, notes = for_fairseq(folder, family, tmp_path / "converted")
    assert not notes
    for text in [text for pair in sick_pairs[:100] for text in pair] + list(TEXTS[:3]):
        assert ours.encode(text).tolist() == reference.encode(text).ids, text


def test_older_spellings_of_the_same_are_taken(sources, tmp_path):
    folder = saved("XLMRoberta", sources, tmp_path / "source")
    old = {"type": "Metaspace", "replacement": "\u2581", "str_rep": "\u2581", "add_prefix_space": True}
    edit(folder / "tokenizer.json", {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [old]}})
    assert not for_fairseq(folder, "XLMRoberta", tmp_path / "converted")[1]
    folder = saved("Roberta", sources, tmp_path / "byte-level", alone=True)
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["model"] = {key: whole["model"][key] for key in ("vocab", "merges")}
    whole["model"]["merges"] = [" ".join(pair) for pair in whole["model"]["merges"]]
    whole["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    whole["normalizer"] = {"type": "Sequence", "normalizers": []}
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    ours, notes = for_fairseq(folder, "Roberta", tmp_path / "byte-level converted")
    assert not notes
    assert ours.encode(TEXTS[0]).tolist() == theirs("Roberta", sources["Roberta"])(TEXTS[0])["input_ids"]


# what cuts text otherwise


BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)
OTHERWISE: dict[str, tuple[str, dict[str, Any], str]] = {
    "Lowercase": ("Roberta", {"normalizer": normalizers.Lowercase()}, "the normalizer Lowercase"),
    "NFKC inside": (
        "Roberta",
        {"normalizer": normalizers.Sequence([normalizers.Sequence([normalizers.NFKC()])])},
        "the normalizer NFKC",
    ),
    "WhitespaceSplit": (
        "Roberta",
        {"pre_tokenizer": pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), BYTE_LEVEL])},
        "the pre-tokenizer WhitespaceSplit, ByteLevel",
    ),
    "Metaspace": ("Roberta", {"pre_tokenizer": METASPACE}, "fairseq needs the SentencePiece model of a BPE"),
    "sentencepiece, Lowercase": ("XLMRoberta", {"normalizer": normalizers.Lowercase()}, "the normalizer Lowercase"),
    "sentencepiece, Replace": ("Camembert", {"normalizer": normalizers.Replace("a", "o")}, "the normalizer Replace"),
    "sentencepiece, never": (
        "XLMRoberta",
        {"pre_tokenizer": pre_tokenizers.Metaspace(prepend_scheme="never")},
        "a Metaspace that does not add",
    ),
    "sentencepiece, whitespace": ("XLMRoberta", {"pre_tokenizer": pre_tokenizers.Whitespace()}, "Whitespace"),
    "sentencepiece, ByteLevel": ("XLMRoberta", {"pre_tokenizer": BYTE_LEVEL}, "the pre-tokenizer ByteLevel"),
}


@pytest.mark.parametrize("case", OTHERWISE)
def test_a_tokenizer_that_cuts_text_otherwise_is_followed_and_refused_for_fairseq(case, sources, tmp_path):
    """Each of them gives other ids, in the tokenizers package itself."""
    family, changes, message = OTHERWISE[case]
    folder = saved(family, sources, tmp_path / "source", **changes)
    usual, other = theirs(family, sources[family]), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert any(usual(text)["input_ids"] != other.encode(text).ids for text in TEXTS)
    ours, _ = read(folder, family, tmp_path / "converted")
    assert [ours.encode(text).tolist() for text in TEXTS] == [other.encode(text).ids for text in TEXTS]
    refused(message, folder, family, for_fairseq)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("model.dropout", 0.1), ("model.ignore_merges", True), ("model.byte_fallback", True),
     ("model.continuing_subword_prefix", "##"), ("pre_tokenizer.use_regex", False)],
)  # fmt: skip
def test_a_model_with_settings_that_change_ids_is_refused_for_fairseq(setting, value, sources, tmp_path):
    folder = saved("Roberta", sources, tmp_path / "source")
    if setting == "model.continuing_subword_prefix":
        edit(folder / "tokenizer.json", {"model.merges": []})  # which would make pieces that are not there
    edit(folder / "tokenizer.json", {setting: value})
    refused(f"it has {setting.split('.')[1]}={value}; expected", folder, "Roberta", for_fairseq)


def test_a_score_that_no_float32_holds_is_refused_for_fairseq(sources, tmp_path):
    folder = saved("XLMRoberta", sources, tmp_path / "source", alone=True)
    entries = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    edit(folder / "tokenizer.json", {"model.vocab": [*entries[:-2], [entries[-2][0], 1e308], entries[-1]]})
    refused("this model's tokenizer .OverflowError", folder, "XLMRoberta", for_fairseq)


def test_a_tokenizer_json_of_another_vocabulary_is_used_and_told(sources, tmp_path):
    """transformers takes it before the other files."""
    folder = saved("Roberta", sources, tmp_path / "source")
    vocab = json.loads((folder / "vocab.json").read_text())
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (folder / "vocab.json").write_text(json.dumps(vocab))
    ours, notes = read(folder, "Roberta", tmp_path / "converted")
    assert ["vocab.json beside it give pieces different ids" in note for note in notes] == [True]
    assert ours.encode("abba").tolist() == auto(folder)("abba")["input_ids"]


# what fairseq does otherwise


def test_a_prefix_space_and_added_tokens_are_told_for_fairseq(tmp_path, sources):
    folder = saved("Roberta", sources, tmp_path / "prefix")
    edit(folder / "tokenizer_config.json", {"add_prefix_space": True})
    ours, notes = for_fairseq(folder, "Roberta", tmp_path / "converted")
    assert ["adds a space before each text" in note for note in notes] == [True]
    assert ours.encode(" A man").tolist() == auto(folder)("A man")["input_ids"]
    tokenizer = theirs("Roberta", sources["Roberta"])
    tokenizer.add_tokens([f"[E{i}]" for i in range(6)])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<user>"]})
    tokenizer.save_pretrained(tmp_path / "added")
    ours, notes = for_fairseq(tmp_path / "added", "Roberta", tmp_path / "added converted", len(tokenizer))
    assert ["the 7 tokens that were added" in note for note in notes] == [True]
    assert ours.encode(TEXTS[0]).tolist() == tokenizer(TEXTS[0])["input_ids"]
    assert ours.encode("[E1]").size > tokenizer("[E1]", return_tensors="np")["input_ids"].size


def test_other_special_tokens_around_texts_are_told_for_fairseq_and_other_classes_are(sources, tmp_path):
    for i, processor in enumerate((processors.ByteLevel(), processors.BertProcessing(("</s>", 2), ("<s>", 0)))):
        folder = saved("Roberta", sources, tmp_path / str(i), post_processor=processor)
        reference = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        assert (
            read(folder, "Roberta", tmp_path / f"{i} read")[0].encode("a", "b").tolist()
            == reference.encode("a", "b").ids
        )
        ours, notes = for_fairseq(folder, "Roberta", tmp_path / f"{i} converted")
        assert ours.encode("a", "b").tolist() != reference.encode("a", "b").ids
        assert ["does not encode texts as <s> a </s> and <s> a </s></s> b </s>" in note for note in notes] == [True]
    edit(folder / "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer"})
    assert any("is for CLIPTokenizer" in note for note in read(folder, "Roberta", tmp_path / "other")[1])


# XLM-R's ids and CamemBERT's


@pytest.mark.parametrize("tokenizer_class", [None, "PreTrainedTokenizerFast", "TokenizersBackend", "missing"])
@pytest.mark.parametrize("family", ["XLMRoberta", "Camembert"])
def test_a_tokenizer_class_that_names_neither_leaves_it_to_the_model_type(family, tokenizer_class, sources, tmp_path):
    folder = shutil.copytree(sources[family], tmp_path / "source")
    edit(folder / "tokenizer_config.json", {} if tokenizer_class == "missing" else {"tokenizer_class": tokenizer_class})
    ours, notes = read(folder, family, tmp_path / "converted")
    assert not notes
    assert [ours.encode(text).tolist() for text in TEXTS] == theirs(family, sources[family], "")(list(TEXTS))[
        "input_ids"
    ]


def test_a_tokenizer_class_that_names_one_decides(sources, tmp_path):
    """As it does for AutoTokenizer, whatever the model_type."""
    for family, other in (("XLMRoberta", "camembert"), ("Camembert", "xlm-roberta")):
        folder = shutil.copytree(sources[family], tmp_path / family)
        edit(folder / "tokenizer_config.json", {"tokenizer_class": f"{family}TokenizerFast"})
        ours, _ = read(folder, family, tmp_path / f"{family} converted", model_type=other)
        assert ours.encode(TEXTS[0]).tolist() == theirs(family, sources[family], "")(TEXTS[0])["input_ids"]


# what has no place in a file of text


def test_lone_surrogates_are_refused_with_the_file_that_has_them(sources, tmp_path):
    vocab = json.loads((sources["Roberta"] / "vocab.json").read_text())
    folder = shutil.copytree(sources["Roberta"], tmp_path / "vocab")
    (folder / "vocab.json").write_text(json.dumps({**vocab, "a\ud800": 581}))
    refused("vocab.json is damaged .*surrogate", folder, "Roberta", vocab_size=600)
    folder = saved("Roberta", sources, tmp_path / "BPE", alone=True)
    edit(folder / "tokenizer.json", {"model.vocab": {**vocab, "\udfff": 581}})
    refused("tokenizer.json is damaged", folder, "Roberta", vocab_size=600)
    folder = saved("XLMRoberta", sources, tmp_path / "Unigram", alone=True)
    entries = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    edit(folder / "tokenizer.json", {"model.vocab": [*entries[:-1], ["\ud800", -1.0], entries[-1]]})
    refused("tokenizer.json is damaged", folder, "XLMRoberta", vocab_size=403)


@pytest.mark.parametrize("line_break", ["\n", "\r", "\r\n"])
def test_a_piece_with_a_line_break_is_refused_for_fairseq_for_dict_txt_cannot_hold_it(line_break, sources, tmp_path):
    """fairseq reads dict.txt with universal newlines."""
    folder = saved("XLMRoberta", sources, tmp_path / "source", alone=True)
    entries = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    edit(folder / "tokenizer.json", {"model.vocab": [*entries[:-1], [f"a{line_break}b", -1.0], entries[-1]]})
    whole = json.loads((folder / "tokenizer.json").read_text())
    mask = next(token for token in whole["added_tokens"] if token["content"] == "<mask>")
    edit(folder / "tokenizer.json", {"added_tokens": [token for token in whole["added_tokens"] if token != mask]})
    refused(r"has the piece 'a.*: fairseq's dict.txt", folder, "XLMRoberta", for_fairseq, vocab_size=403)
    (tmp_path / "dict.txt").write_bytes(f"a{line_break}b 1\n".encode())
    with pytest.raises(ValueError, match="Incorrect dictionary format"):
        Dictionary.load(str(tmp_path / "dict.txt"))
