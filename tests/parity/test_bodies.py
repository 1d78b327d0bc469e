"""Networks that Transformers has under other names and that compute the same: Data2Vec's for text, and BERT's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import roberta_flax
from roberta_flax import CheckpointError, SentenceEncoder
from roberta_flax.convert import convert, export, verify
from tests.parity.test_huggingface import (  # skips where transformers is missing
    assert_same_outputs,
    build,
    largest_difference,
    tokenizers,
    vocab_size,
    write,
)
from tests.parity.test_network import FLOAT64
from tests.references import random_tokens, torch

__all__ = ["tokenizers"]  # a fixture

TEXTS = ["A man is playing a guitar.", "two dogs  run", "", "naïve café №5 — ﬁn", "The children play outside. " * 3]
SIZES = {"num_hidden_layers": 2, "max_position_embeddings": 77, "type_vocab_size": 2}
BERT_CLASSES: dict[str, dict[str, Any]] = {
    "BertModel": {},
    "BertForMaskedLM": {"hidden_act": "gelu_new"},
    "BertForSequenceClassification": {"id2label": dict(enumerate(["no", "perhaps", "yes"]))},
    "BertForTokenClassification": {"num_labels": 4},
    "BertForQuestionAnswering": {},
    "BertForMultipleChoice": {},
}


def save_bert(folder: Path, tokenizers: dict[str, Path], model: Any, pad_token_id: int = 0) -> Path:
    """As multilingual-e5-small: under XLM-R's tokenizer, with the pad_token_id of BERT's own."""
    write(model, folder, tokenizers)
    config = json.loads((folder / "config.json").read_text())
    config |= {"pad_token_id": pad_token_id, "tokenizer_class": "XLMRobertaTokenizer"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("class_name", "changes"),
    [
        ("Data2VecTextModel", {}),
        ("Data2VecTextForMaskedLM", {}),
        ("Data2VecTextForSequenceClassification", {"num_labels": 3}),
        ("Data2VecTextForTokenClassification", {"num_labels": 4}),
        ("Data2VecTextForQuestionAnswering", {}),
        ("Data2VecTextForMultipleChoice", {}),
    ],
)
def test_every_class_of_data2vec_agrees(class_name, changes, tmp_path, tokenizers):
    model = build(class_name, 581, **changes)
    source = write(model, tmp_path / "source", {**tokenizers, "sentencepiece": tokenizers["byte-level"]})
    directory = convert(source, tmp_path / "converted")
    roberta = roberta_flax.load(directory, dtype="float64", param_dtype="float64")
    assert_same_outputs(model, roberta, random_tokens([1, 30, 77], 581), FLOAT64)
    assert not verify(directory, source).problems
    exported = export(directory, tmp_path / "exported", to="huggingface")
    assert json.loads((exported / "config.json").read_text())["model_type"] == "roberta"
    assert not verify(directory, exported).problems


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("class_name", BERT_CLASSES)
def test_every_class_of_bert_agrees_and_becomes_a_roberta(class_name, tmp_path, tokenizers, sentencepiece_model):
    import transformers

    vocab = vocab_size("XLMRobertaModel", sentencepiece_model)
    model = build(class_name, vocab, **{**SIZES, **BERT_CLASSES[class_name]})
    source = save_bert(tmp_path / "source", tokenizers, model)
    directory = convert(source, tmp_path / "converted")
    roberta = roberta_flax.load(directory, dtype="float64", param_dtype="float64")
    assert (roberta.config.pad_id, roberta.config.max_positions) == (1, 77)
    assert_same_outputs(model, roberta, random_tokens([1, 30, 77], vocab), FLOAT64)
    assert not verify(directory, source).problems
    if class_name == "BertForMaskedLM":  # RobertaForMaskedLM's head has gelu whatever the layers have
        with pytest.raises(CheckpointError, match="LM head uses gelu"):
            export(directory, tmp_path / "exported", to="huggingface")
        return
    exported = export(directory, tmp_path / "exported", to="huggingface")
    assert not verify(directory, exported).problems
    name = class_name.replace("Bert", "Roberta")
    again = getattr(transformers, name).from_pretrained(exported, dtype=torch.float64, attn_implementation="eager")
    inputs = torch.from_numpy(random_tokens([30], vocab)).long()
    inputs = inputs[None] if "MultipleChoice" in class_name else inputs
    with torch.no_grad():
        assert largest_difference(model(inputs)[0], again(inputs)[0]) <= FLOAT64


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_single_texts_and_pairs_of_a_bert_under_xlm_rs_tokenizer_agree(tmp_path, tokenizers, sentencepiece_model):
    """With all that its tokenizer gives it, which is no token types; and back, the tokenizer is the same."""
    import transformers

    model = build("BertModel", vocab_size("XLMRobertaModel", sentencepiece_model), **SIZES)
    source = save_bert(tmp_path / "source", tokenizers, model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    directory = convert(source, tmp_path / "converted")
    roberta = roberta_flax.load(directory, dtype="float64", param_dtype="float64")
    again = transformers.AutoTokenizer.from_pretrained(export(directory, tmp_path / "exported", to="huggingface"))
    for texts in [(text,) for text in TEXTS] + [(TEXTS[0], TEXTS[1])]:
        assert again(*texts)["input_ids"] == tokenizer(*texts)["input_ids"]
        with torch.no_grad():
            theirs = model(**tokenizer(*texts, return_tensors="pt")).last_hidden_state
        assert largest_difference(theirs, roberta.extract_features(roberta.encode(*texts))) <= FLOAT64


@pytest.mark.slow
def test_a_sentence_encoder_on_bert_gives_the_vectors_of_sentence_transformers(
    tmp_path, tokenizers, sentencepiece_model
):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = build("BertModel", vocab_size("XLMRobertaModel", sentencepiece_model), torch.float32, **SIZES)
    network = save_bert(tmp_path / "network", tokenizers, model)
    transformer = sentence_transformers.models.Transformer(str(network), max_seq_length=20)
    pooling = sentence_transformers.models.Pooling(model.config.hidden_size)
    theirs = sentence_transformers.SentenceTransformer(modules=[transformer, pooling], device="cpu")
    theirs.save(str(tmp_path / "source"))
    ours = SentenceEncoder(tmp_path / "source", cache_dir=tmp_path / "cache")
    np.testing.assert_allclose(ours.encode(TEXTS), theirs.encode(TEXTS), rtol=0, atol=1e-5)


def wordpiece(folder: Path, model: Any) -> Path:
    model.save_pretrained(folder)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij"]
    (folder / "vocab.txt").write_text("\n".join(pieces))
    return folder


def test_a_bert_whose_tokenizer_tells_two_texts_apart_is_refused(tmp_path):
    source = wordpiece(tmp_path / "source", build("BertModel", 15, torch.float32, **SIZES, pad_token_id=0))
    with pytest.raises(
        CheckpointError, match=r"BertTokenizer, gives the second text of a pair token type 1.*embedding"
    ):
        convert(source, tmp_path / "refused")
    convert(source, tmp_path / "ids", with_tokenizer=False)
    (source / "tokenizer_config.json").write_text('{"model_input_names": ["input_ids", "attention_mask"]}')
    convert(source, tmp_path / "converted")


def test_a_bert_whose_token_types_are_alike_takes_any_tokenizer(tmp_path):
    model = build("BertModel", 15, torch.float32, **SIZES, pad_token_id=0)
    with torch.no_grad():
        model.embeddings.token_type_embeddings.weight[1] = model.embeddings.token_type_embeddings.weight[0]
    source = wordpiece(tmp_path / "source", model)
    roberta = roberta_flax.load(convert(source, tmp_path / "converted"))
    assert (roberta.config.pad_id, roberta.encode("a b", "c").tolist()) == (0, [2, 5, 6, 3, 7, 3])


def test_without_its_tokenizers_files_a_berts_padding_is_the_configurations(tmp_path, tokenizers, caplog):
    import shutil

    source = tmp_path / "source"
    build("BertModel", 300, torch.float32, **SIZES, pad_token_id=3).save_pretrained(source)
    assert roberta_flax.load(convert(source, tmp_path / "ids", with_tokenizer=False)).config.pad_id == 3
    assert "3, its pad_token_id, is taken" in caplog.text
    for file in tokenizers["sentencepiece"].iterdir():
        shutil.copy(file, source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "tokenizer_class": "XLMRobertaTokenizer"}))
    caplog.clear()
    assert roberta_flax.load(convert(source, tmp_path / "files", with_tokenizer=False)).config.pad_id == 1
    assert "pad_token_id" not in caplog.text


@pytest.mark.parametrize("both", ["same", "different"])
def test_an_lm_head_with_its_bias_twice_has_the_one_that_transformers_bert_takes(both, tmp_path, tokenizers, caplog):
    import transformers
    from safetensors.torch import load_file, save_file

    model = build("BertForMaskedLM", 402, torch.float32, **SIZES)
    source = save_bert(tmp_path / "source", tokenizers, model)
    tensors = load_file(source / "model.safetensors")
    added = 0.0 if both == "same" else 1.0
    tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"] + added
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    theirs = transformers.BertForMaskedLM.from_pretrained(source).cls.predictions.decoder.bias.detach()
    ours = roberta_flax.load(convert(source, tmp_path / "converted")).params["lm_head"]["bias"]
    assert (np.asarray(ours) == theirs.numpy()).all()
    assert ("differ; the latter is used" in caplog.text) == (both == "different")


def test_the_prediction_of_the_next_sentence_is_left_out_with_a_warning(
    tmp_path, tokenizers, sentencepiece_model, caplog
):
    model = build("BertForPreTraining", vocab_size("XLMRobertaModel", sentencepiece_model), torch.float32, **SIZES)
    directory = convert(save_bert(tmp_path / "source", tokenizers, model), tmp_path / "converted")
    assert "prediction of the next sentence is left out" in caplog.text
    assert [head.kind for head in roberta_flax.load(directory).config.heads] == ["pooler"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type=relative_key"),
        ({"is_decoder": True}, "is_decoder=True"),
        ({"hidden_act": "silu"}, "hidden_act must be one of"),
        ({"pad_token_id": "first"}, "arguments that do not describe a RoBERTa"),
    ],
)
def test_a_bert_that_does_not_fold_is_refused_by_the_setting(
    change, message, tmp_path, tokenizers, sentencepiece_model
):
    model = build("BertModel", vocab_size("XLMRobertaModel", sentencepiece_model), torch.float32, **SIZES)
    source = save_bert(tmp_path / "source", tokenizers, model)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, **change}))
    if "pad_token_id" in change:  # else the tokenizer's is taken
        (source / "sentencepiece.bpe.model").unlink()
    with pytest.raises(CheckpointError, match=message):
        convert(source, tmp_path / "converted", with_tokenizer="pad_token_id" not in change)
