"""Beside transformers 5: what it writes is read here, and what is exported here is read there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers

import roberta_flax
from roberta_flax import HeadConfig, Roberta, RobertaConfig
from roberta_flax.convert import convert, export, hf_tokenizer
from roberta_flax.convert.conversion import write_files
from roberta_flax.nn import forward
from roberta_flax.text.encoding import encode_batch
from roberta_flax.text.tokenizer import Tokenizer
from tests.parity import layouts
from tests.parity.layouts import assert_same_ids, auto

TOLERANCE = 1e-5  # logits of a few units, float32, two layers
MASKED = ("A man is <mask> the guitar.", "<mask> dogs", "a<mask>", "un <mask>  <mask> chaud")


# Tokenizers

LAYOUTS = (  # the others become the same as one of these when version 5 writes them
    "byte_level", "byte_level_vocabulary_alone", "prefix_space", "added_tokens", "other_special_tokens", "normalizer",
    "tokenizer_json_without_special_tokens", "wordpiece_cased", "wordpiece_uncased", "xlm_roberta", "xlm_roberta_of_bpe",
    "camembert", "japanese_t5", "phobert",
)  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ids_of_what_version_5_writes_are_autotokenizers_on_10000_strings(layout, tmp_path):
    auto(layouts.LAYOUTS[layout](tmp_path / "made")).save_pretrained(tmp_path / "source")
    theirs, notes = auto(tmp_path / "source"), list[str]()
    files = hf_tokenizer.read([tmp_path / "source"], "roberta", max(theirs.get_vocab().values()) + 1, notes)
    assert not notes
    (tmp_path / "converted").mkdir()
    write_files(files, tmp_path / "converted")
    ours = Tokenizer.from_directory(tmp_path / "converted")
    assert_same_ids(theirs, ours, 10_000)
    backend, names = ours.backend, ("pad_token_id", "unk_token_id", "mask_token_id")
    assert (backend.pad_id, backend.unk_id, backend.mask_id) == tuple(getattr(theirs, name) for name in names)


# Exports


def fairseq_vocabulary(folder: Path, write: Callable[[list[str]], str]) -> Tokenizer:
    """A sentencepiece model and the dictionary that fairseq has beside it."""
    import sentencepiece

    folder.mkdir()
    model = layouts.sentencepiece()
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    (folder / "sentencepiece.bpe.model").write_bytes(model)
    (folder / "dict.txt").write_text(write([processor.IdToPiece(i) for i in range(processor.GetPieceSize())]))
    return Tokenizer.from_sentencepiece(folder / "dict.txt", folder / "sentencepiece.bpe.model")


def xlmr_dictionary(pieces: list[str]) -> str:
    return "".join(f"{piece} 1\n" for piece in pieces[3:])


def camembert_dictionary(pieces: list[str]) -> str:
    return "".join(f"{piece} 1 #fairseq:overwrite\n" for piece in pieces[:3]) + xlmr_dictionary(pieces)


PRE_NORM = {"normalize_before": True, "layernorm_embedding": False}
FAMILY: dict[str, tuple[Callable[[list[str]], str] | None, dict[str, Any]]] = {
    "RoBERTa": (None, {}),
    "XLM-R": (xlmr_dictionary, {}),
    "XLM-R XL": (xlmr_dictionary, PRE_NORM),
    "CamemBERT": (camembert_dictionary, {}),
}


def random_model(tokenizer: Tokenizer, **settings: Any) -> Roberta:
    """A small model, no parameter of which is zero or one."""
    config = RobertaConfig(
        vocab_size=tokenizer.vocab_size, num_layers=2, hidden_size=16, num_heads=2, intermediate_size=24,
        max_positions=62, pad_id=tokenizer.pad_id, **settings,
    )  # fmt: skip
    params = forward.init_params(config, jax.random.key(0))
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    shaken = [leaf + 0.2 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return Roberta(config, jax.tree.unflatten(structure, shaken), tokenizer)


@pytest.fixture(scope="module", params=FAMILY)
def exported(request, tmp_path_factory, tiny_directory) -> tuple[str, Roberta, Path]:
    """A model with fairseq's tokenizer and an untied LM head, and its export to Transformers."""
    folder = tmp_path_factory.mktemp("export")
    write_dictionary, settings = FAMILY[request.param]
    tokenizer = (
        roberta_flax.load_tokenizer(tiny_directory)
        if write_dictionary is None
        else fairseq_vocabulary(folder / "source", write_dictionary)
    )
    roberta = random_model(tokenizer, tie_word_embeddings=False, **settings)
    roberta.save(folder / "saved")
    return request.param, roberta, export(folder / "saved", folder / "exported", to="huggingface")


def ids_of(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [sequence.ids.tolist() for (sequence,) in encode_batch(tokenizer, texts, 100_000, "error")]


def test_an_export_has_the_ids_of_version_4(exported, tmp_path):
    """Of Transformers 4.57, whose rules are those of a conversion; tests/parity compares the two.

    XLMRobertaTokenizer and CamembertTokenizer of version 5 split at whitespace before anything else, whatever
    tokenizer.json says, and U+0085 is whitespace there; sentencepiece does not know it.
    """
    name, _, directory = exported
    theirs, ours = auto(directory), roberta_flax.load_tokenizer(convert(directory, tmp_path / "again"))
    texts = layouts.texts(10_000)
    differing = [
        text for text, a, b in zip(texts, theirs(texts)["input_ids"], ids_of(ours, texts), strict=True) if a != b
    ]
    assert all("\x85" in text for text in differing)
    assert bool(differing) == (name in ("XLM-R", "CamemBERT"))
    assert (theirs.pad_token_id, theirs.mask_token_id) == (ours.pad_id, ours.mask_id)


def test_masks_of_an_export_are_those_of_the_model(exported):
    _, roberta, directory = exported
    assert [auto(directory)(text)["input_ids"] for text in MASKED] == [
        roberta.tokenizer.encode_masked(text)[0].tolist() for text in MASKED
    ]


def test_an_export_computes_what_the_model_does(exported):
    """The logits of an untied LM head, and the features: of a pre-norm network, after the final LayerNorm."""
    _, roberta, directory = exported
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(directory).eval()
    ids = roberta.encode("A man is playing a guitar on the stage")[None].astype(np.int64)
    with torch.no_grad():
        outputs = theirs(torch.from_numpy(ids), output_hidden_states=True)
    logits = forward.lm_logits(roberta.params, ids, config=roberta.config)
    np.testing.assert_allclose(outputs.logits.numpy(), logits, rtol=0, atol=TOLERANCE)
    features = roberta.extract_features(ids)
    np.testing.assert_allclose(outputs.hidden_states[-1].numpy(), features, rtol=0, atol=TOLERANCE)


def test_what_version_5_writes_again_is_the_same_model(exported, tmp_path):
    _, roberta, directory = exported
    transformers.AutoModelForMaskedLM.from_pretrained(directory).save_pretrained(tmp_path / "written")
    auto(directory).save_pretrained(tmp_path / "written")
    settings = json.loads((tmp_path / "written" / "config.json").read_text())
    assert ("dtype" in settings, "torch_dtype" in settings) == (True, False)
    assert not (tmp_path / "written" / "vocab.json").exists()
    again = roberta_flax.load(convert(tmp_path / "written", tmp_path / "converted"))
    assert again.config == roberta.config
    assert jax.tree.all(jax.tree.map(np.array_equal, again.params, roberta.params))
    theirs, texts = auto(tmp_path / "written"), layouts.texts(1000)
    assert ids_of(again.tokenizer, texts) == theirs(texts)["input_ids"]


def test_a_model_in_float16_stays_in_float16_on_both_sides(tmp_path, tiny_directory):
    random_model(roberta_flax.load_tokenizer(tiny_directory)).save(tmp_path / "saved")
    first = export(tmp_path / "saved", tmp_path / "exported", to="huggingface")
    transformers.AutoModelForMaskedLM.from_pretrained(first).half().save_pretrained(tmp_path / "half")
    auto(first).save_pretrained(tmp_path / "half")
    converted = convert(tmp_path / "half", tmp_path / "converted")
    again = export(converted, tmp_path / "again", to="huggingface")
    assert transformers.AutoModelForMaskedLM.from_pretrained(again).dtype == torch.float16


# Heads


@pytest.mark.parametrize(
    "kind", ["SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice"]
)
@pytest.mark.parametrize("family", ["Roberta", "XLMRobertaXL"])
def test_heads_that_version_5_writes_give_its_logits(family, kind, tmp_path):
    auto(layouts.byte_level(tmp_path / "tokenizer")).save_pretrained(tmp_path / "written")
    model_class = getattr(transformers, f"{family}For{kind}")
    config = model_class.config_class(
        vocab_size=layouts.VOCAB_SIZE, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=64, layer_norm_eps=1e-5, type_vocab_size=1, num_labels=2,
    )  # fmt: skip
    theirs = model_class(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    theirs.save_pretrained(tmp_path / "written")
    ours = roberta_flax.load(convert(tmp_path / "written", tmp_path / "converted"))
    head: HeadConfig = ours.config.heads[0]
    ids = np.tile(ours.encode("A man is playing a guitar")[None], (2, 1)).astype(np.int64)
    ids[1, 2:5] = ids[0, 4:7]
    with torch.no_grad():
        outputs = theirs(torch.from_numpy(ids[None] if head.kind == "choice" else ids))
    logits = np.asarray(forward.head_logits(ours.params, ids, head=head.name, config=ours.config))
    if head.kind == "span":
        expected = torch.stack([outputs.start_logits, outputs.end_logits], dim=-1)
    else:
        expected = outputs.logits.reshape(logits.shape)
    np.testing.assert_allclose(logits, expected.numpy(), rtol=0, atol=TOLERANCE)
