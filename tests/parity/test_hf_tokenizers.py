"""What transformers' tokenizer files say of how text is cut: beside transformers, the tokenizers package and fairseq."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fairseq.data import Dictionary
from fairseq.data.encoders.gpt2_bpe import GPT2BPE

from roberta_flax import CheckpointError
from roberta_flax.convert import convert, export, hf_tokenizer
from roberta_flax.convert.conversion import write_files
from roberta_flax.text.tokenizer import Tokenizer
from tests.conftest import skip_or_fail
from tests.parity.test_huggingface import build
from tests.references import torch

try:
    import tokenizers
    from tokenizers import normalizers, pre_tokenizers, processors
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


def refused(message: str, folder: Path, family: str, **options: Any) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        read(folder, family, folder / "converted", **options)
    assert "\n" not in str(caught.value)


# RoBERTa's own vocabulary


@pytest.mark.slow
def test_a_released_vocabulary_goes_to_fairseq_with_the_ids_of_gpt2s_bpe(
    tmp_path, gpt2_bpe, gpt2_tokenizer, sick_pairs
):
    """fairseq's default, bpe=gpt2, is GPT-2's own encoder.json, whatever is beside the model."""
    encoder = json.loads((gpt2_bpe / "encoder.json").read_text())
    piece_of = {str(i): piece for piece, i in encoder.items()}
    symbols = gpt2_tokenizer.dictionary.symbols
    source = tmp_path / "source"
    build("RobertaForMaskedLM", 50265, torch.float32, hidden_size=12, num_hidden_layers=1).save_pretrained(source)
    (source / "vocab.json").write_text(
        json.dumps({piece_of.get(symbol, symbol): i for i, symbol in enumerate(symbols)})
    )
    shutil.copy(gpt2_bpe / "vocab.bpe", source / "merges.txt")
    exported = export(convert(source, tmp_path / "converted"), tmp_path / "exported", to="fairseq")
    assert json.loads((exported / "encoder.json").read_text()) == encoder
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
    ours, _ = read(folder, "Roberta", tmp_path / "converted", 600)
    slow = theirs("Roberta", folder, "")
    for text in TEXTS:
        assert ours.encode(text).tolist() == slow(text)["input_ids"]
    assert ours.vocab_size == len(set(ours.dictionary.symbols)) == 600
    assert (ours.dictionary.symbols[580], ours.mask_id) == ("madeupword0000", 581)
    assert ours.decode([583]) == " unreachable"
    dictionary = Dictionary.load(str(tmp_path / "converted" / "dict.txt"))
    assert dictionary.symbols == ours.dictionary.symbols


# what transformers writes


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
    ours, notes = read(folder, family, tmp_path / "converted")
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
    ours, notes = read(folder, family, tmp_path / "converted")
    assert not notes
    for text in [text for pair in sick_pairs[:100] for text in pair] + list(TEXTS[:3]):
        assert ours.encode(text).tolist() == reference.encode(text).ids, text


def test_older_spellings_of_the_same_are_taken(sources, tmp_path):
    folder = saved("XLMRoberta", sources, tmp_path / "source")
    old = {"type": "Metaspace", "replacement": "\u2581", "str_rep": "\u2581", "add_prefix_space": True}
    edit(folder / "tokenizer.json", {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [old]}})
    assert not read(folder, "XLMRoberta", tmp_path / "converted")[1]
    folder = saved("Roberta", sources, tmp_path / "byte-level", alone=True)
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["model"] = {key: whole["model"][key] for key in ("vocab", "merges")}
    whole["model"]["merges"] = [" ".join(pair) for pair in whole["model"]["merges"]]
    whole["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    whole["normalizer"] = {"type": "Sequence", "normalizers": []}
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    ours, notes = read(folder, "Roberta", tmp_path / "byte-level converted")
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
    "Metaspace": ("Roberta", {"pre_tokenizer": METASPACE}, "the pre-tokenizer Metaspace"),
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


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "beside the vocabulary"])
@pytest.mark.parametrize("case", OTHERWISE)
def test_a_tokenizer_that_cuts_text_otherwise_is_refused(case, alone, sources, tmp_path):
    """Each of them gives other ids, in the tokenizers package itself."""
    family, changes, message = OTHERWISE[case]
    folder = saved(family, sources, tmp_path / "source", **changes)
    usual, other = theirs(family, sources[family]), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert any(usual(text)["input_ids"] != other.encode(text).ids for text in TEXTS)
    if alone:
        saved(family, sources, folder, alone=True, **changes)
    refused("neither byte-level BPE" if (case, alone) == ("Metaspace", True) else message, folder, family)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("model.dropout", 0.1), ("model.ignore_merges", True), ("model.byte_fallback", True),
     ("model.continuing_subword_prefix", "##"), ("model.end_of_word_suffix", "</w>"),
     ("pre_tokenizer.use_regex", False)],
)  # fmt: skip
def test_a_model_with_settings_that_change_ids_is_refused(setting, value, sources, tmp_path):
    folder = saved("Roberta", sources, tmp_path / "source")
    message = f"it has {setting.split('.')[1]}={value}; expected"
    edit(folder / "tokenizer.json", {setting: value})
    refused(message, folder, "Roberta")
    if setting == "model.byte_fallback":
        folder = saved("XLMRoberta", sources, tmp_path / "unigram", alone=True)
        edit(folder / "tokenizer.json", {setting: value})
        refused(message, folder, "XLMRoberta")


def test_a_score_that_no_float32_holds_is_refused(sources, tmp_path):
    folder = saved("XLMRoberta", sources, tmp_path / "source", alone=True)
    entries = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    edit(folder / "tokenizer.json", {"model.vocab": [*entries[:-2], [entries[-2][0], 1e308], entries[-1]]})
    refused("tokenizer.json is damaged .OverflowError", folder, "XLMRoberta")


def test_a_tokenizer_json_of_another_vocabulary_is_refused(sources, tmp_path):
    """transformers takes it before the other files."""
    folder = saved("Roberta", sources, tmp_path / "byte-level")
    vocab = json.loads((folder / "vocab.json").read_text())
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (folder / "vocab.json").write_text(json.dumps(vocab))
    refused("tokenizer.json and vocab.json beside it have different pieces", folder, "Roberta")
    folder = saved("Roberta", sources, tmp_path / "merges")
    header, first, second, *lines = (folder / "merges.txt").read_text().split("\n")
    (folder / "merges.txt").write_text("\n".join([f"{header} - of another year", first, second, *lines]))
    assert not read(folder, "Roberta", tmp_path / "converted")[1]
    (folder / "merges.txt").write_text("\n".join([header, second, first, *lines]))
    refused("tokenizer.json and merges.txt beside it have different merges", folder, "Roberta")
    folder = saved("Camembert", sources, tmp_path / "camembert")
    edit(folder / "tokenizer_config.json", {"tokenizer_class": "XLMRobertaTokenizer"})
    refused("tokenizer.json and sentencepiece.bpe.model beside it", folder, "Camembert", vocab_size=410)


# what is odd


@pytest.mark.parametrize("where", ["tokenizer_config.json", "tokenizer.json", "tokenizer.json alone"])
def test_a_prefix_space_is_told(where, sources, tmp_path):
    folder = saved("Roberta", sources, tmp_path / "source", alone=where.endswith("alone"))
    if where == "tokenizer_config.json":
        edit(folder / where, {"add_prefix_space": True})
        expected = theirs("Roberta", folder)("A man")["input_ids"]
    else:
        edit(folder / "tokenizer.json", {"pre_tokenizer.add_prefix_space": True})
        assert not read(folder, "Roberta", tmp_path / "not so")[1]  # tokenizer_config.json has False, and goes before
        assert theirs("Roberta", folder)("A man") == theirs("Roberta", sources["Roberta"])("A man")
        (folder / "tokenizer_config.json").unlink()
        expected = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode("A man").ids
    ours, notes = read(folder, "Roberta", tmp_path / "converted")
    assert notes == [f"{folder} adds a space before each text, but encode() does not: add it to your texts"]
    assert ours.encode(" A man").tolist() == expected != ours.encode("A man").tolist()


@pytest.mark.parametrize("kind", ["Fast", ""])
@pytest.mark.parametrize("family", MODEL_TYPES)
def test_added_tokens_are_told(family, kind, sources, tmp_path):
    tokenizer = theirs(family, sources[family], kind)
    tokenizer.add_tokens([f"[E{i}]" for i in range(6)])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<user>"]})
    tokenizer.save_pretrained(tmp_path / "source")
    ours, notes = read(tmp_path / "source", family, tmp_path / "converted", len(tokenizer))
    assert len(notes) == 1
    assert "adds 7 tokens to the vocabulary (" in notes[0]
    assert " and 2 more); encode() splits them into pieces" in notes[0]
    assert ours.encode(TEXTS[0]).tolist() == tokenizer(TEXTS[0])["input_ids"]
    assert ours.encode("[E1]").size > tokenizer("[E1]", return_tensors="np")["input_ids"].size


def test_other_special_tokens_around_texts_and_other_classes_are_told(sources, tmp_path):
    for i, processor in enumerate((processors.ByteLevel(), processors.BertProcessing(("</s>", 2), ("<s>", 0)))):
        folder = saved("Roberta", sources, tmp_path / str(i), post_processor=processor)
        reference = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        ours, notes = read(folder, "Roberta", tmp_path / f"{i} converted")
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


def test_an_embedding_of_the_other_ones_size_is_refused(sources, tmp_path):
    folder = shutil.copytree(sources["XLMRoberta"], tmp_path / "source")
    message = (
        "400 pieces and the model embeds 405 tokens, as CamemBERT would; XLM-R, .* embed 402: write tokenizer_class"
    )
    refused(message, folder, "XLMRoberta", vocab_size=405)
    refused("embeds 402 tokens, as XLM-R would; CamemBERT, .* XLMRobertaTokenizer", folder, "Camembert", vocab_size=402)
    for size in (402, 403, 404, 406, 448):
        read(folder, "XLMRoberta", tmp_path / str(size), size)
    tokenizer = theirs("XLMRoberta", folder, "")
    tokenizer.add_tokens(["[A]", "[B]", "[C]"])
    tokenizer.save_pretrained(tmp_path / "added")
    assert len(tokenizer) == 405
    ours, _ = read(tmp_path / "added", "XLMRoberta", tmp_path / "converted", 405)
    assert ours.encode(TEXTS[0]).tolist() == tokenizer(TEXTS[0])["input_ids"]


# what has no place in a file of text


def test_lone_surrogates_are_refused_with_the_file_that_has_them(sources, tmp_path):
    vocab = json.loads((sources["Roberta"] / "vocab.json").read_text())
    folder = shutil.copytree(sources["Roberta"], tmp_path / "vocab")
    (folder / "vocab.json").write_text(json.dumps({**vocab, "a\ud800": 581}))
    refused(r"vocab.json has the lone surrogate U\+D800 in the piece 'a\\ud800'", folder, "Roberta", vocab_size=600)
    folder = saved("Roberta", sources, tmp_path / "BPE", alone=True)
    edit(folder / "tokenizer.json", {"model.vocab": {**vocab, "\udfff": 581}})
    refused(r"tokenizer.json has the lone surrogate U\+DFFF", folder, "Roberta", vocab_size=600)
    edit(folder / "tokenizer.json", {"model.vocab": vocab, "model.merges": [["a", "\ud800"]]})
    refused(r"tokenizer.json should contain merges of two BPE pieces, got 'a \\ud800'", folder, "Roberta")
    folder = saved("XLMRoberta", sources, tmp_path / "Unigram", alone=True)
    entries = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    edit(folder / "tokenizer.json", {"model.vocab": [*entries[:-1], ["\ud800", -1.0], entries[-1]]})
    refused(r"tokenizer.json has the lone surrogate U\+D800", folder, "XLMRoberta", vocab_size=403)


@pytest.mark.parametrize("line_break", ["\n", "\r", "\r\n"])
def test_a_piece_with_a_line_break_is_refused_for_dict_txt_cannot_hold_it(line_break, sources, tmp_path):
    """fairseq reads dict.txt with universal newlines."""
    folder = saved("XLMRoberta", sources, tmp_path / "source", alone=True)
    entries = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    edit(folder / "tokenizer.json", {"model.vocab": [*entries[:-1], [f"a{line_break}b", -1.0], entries[-1]]})
    refused(r"source/tokenizer.json has the piece 'a.*: fairseq's dict.txt", folder, "XLMRoberta", vocab_size=403)
    (tmp_path / "dict.txt").write_bytes(f"a{line_break}b 1\n".encode())
    with pytest.raises(ValueError, match="Incorrect dictionary format"):
        Dictionary.load(str(tmp_path / "dict.txt"))
