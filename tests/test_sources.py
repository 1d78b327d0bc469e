"""Sources whose meaning is not all in their files: beside fairseq and transformers themselves."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import roberta_flax
from roberta_flax import CheckpointError
from roberta_flax.checkpoint import converted
from roberta_flax.convert import convert, export, huggingface, verify
from roberta_flax.inference.answers import answer
from tests.conftest import skip_or_fail
from tests.references import build as build_fairseq
from tests.references import dictionary, random_tokens, torch
from tests.references import write as write_fairseq

try:
    from fairseq.models.transformer import TransformerEncoder
    from fairseq.models.transformer.transformer_config import EncDecBaseConfig, TransformerConfig
except ImportError as error:
    skip_or_fail(f"fairseq, the reference, cannot be imported ({error})")
    pytest.skip("no fairseq", allow_module_level=True)
if find_spec("transformers") is None:
    skip_or_fail("transformers, the other reference, is not installed")
    pytest.skip("no transformers", allow_module_level=True)

FLOAT32 = 5e-5  # as in tests/parity/test_network.py
VOCAB = 581
SIZES = {
    "vocab_size": VOCAB, "hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 50,
    "max_position_embeddings": 79, "layer_norm_eps": 1e-5, "pad_token_id": 1, "type_vocab_size": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def pieces(tiny_source, tmp_path_factory) -> Path:
    """transformers' vocab.json and merges.txt of the embedded model's BPE."""
    folder = tmp_path_factory.mktemp("pieces")
    by_id = {i: piece for piece, i in json.loads((tiny_source / "encoder.json").read_text()).items()}
    lines = [line.split()[0] for line in (tiny_source / "dict.txt").read_text().splitlines()]
    symbols = ["<s>", "<pad>", "</s>", "<unk>", *(by_id[int(line)] for line in lines), "<mask>"]
    (folder / "vocab.json").write_text(json.dumps({symbol: i for i, symbol in enumerate(symbols)}))
    shutil.copy(tiny_source / "vocab.bpe", folder / "merges.txt")
    return folder


@pytest.fixture
def saved(tmp_path, pieces):
    """Saves a random transformers model; `without` are settings that its config.json then lacks."""
    import transformers

    def save(class_name: str, without: tuple[str, ...] = (), **changes: Any) -> tuple[Any, Path]:
        torch.manual_seed(0)
        model_class = getattr(transformers, class_name)
        model = model_class(model_class.config_class(**{**SIZES, **changes})).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        folder = tmp_path / "source"
        model.save_pretrained(folder)
        for file in pieces.iterdir():
            shutil.copy(file, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({key: config[key] for key in config.keys() - {*without}}))
        return model, folder

    return save


def change_tensors(folder: Path, change) -> None:
    """Writes model.safetensors anew, with a change to its tensors."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


# transformers


@pytest.mark.parametrize("model_type", huggingface.MODEL_TYPES)
def test_what_config_json_does_not_say_is_what_transformers_takes_it_for(model_type):
    import transformers

    theirs = transformers.CONFIG_MAPPING[model_type]()
    ours = huggingface.DEFAULTS[model_type]
    assert ours == {key: getattr(theirs, key) for key in ours}


@pytest.mark.parametrize(
    ("class_name", "changes"),
    [
        ("XLMRobertaXLForMaskedLM", {"hidden_size": 96, "num_attention_heads": 32}),
        ("RobertaForMaskedLM", {"num_attention_heads": 12, "layer_norm_eps": 1e-12}),
    ],
)
def test_a_model_with_fewer_settings_computes_what_transformers_does(saved, tmp_path, class_name, changes):
    import transformers

    without = (
        "num_attention_heads",
        "layer_norm_eps",
        "hidden_act",
        "hidden_dropout_prob",
        "hidden_size",
        "vocab_size",
    )
    _, folder = saved(class_name, without, **changes)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**settings, "hidden_size": changes.get("hidden_size", 36), "vocab_size": VOCAB})
    )
    theirs = getattr(transformers, class_name).from_pretrained(folder).eval()
    roberta = roberta_flax.load(convert(folder, tmp_path / "converted"))
    tokens = random_tokens([30], VOCAB)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens).long(), output_hidden_states=True)
    np.testing.assert_allclose(roberta.extract_features(tokens), expected.hidden_states[-1], atol=FLOAT32)


def test_a_head_of_multiple_choice_where_nothing_says_so(saved, tmp_path, caplog):
    model, folder = saved("RobertaForMultipleChoice", ("architectures",))
    roberta = roberta_flax.load(convert(folder, tmp_path / "converted"))
    assert [(head.name, head.kind) for head in roberta.config.heads] == [("multiple_choice", "choice")]
    assert any("is taken to be multiple choice" in message for message in caplog.messages)
    tokens = random_tokens([20, 20], VOCAB)
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens).long()[None]).logits
    np.testing.assert_allclose(roberta.predict("multiple_choice", tokens, True), expected, atol=FLOAT32)
    more = np.concatenate([tokens, np.full_like(tokens[:1], roberta.config.pad_id)])  # a question with fewer choices
    two, three = (np.asarray(roberta.predict("multiple_choice", rows)) for rows in (tokens, more))
    np.testing.assert_allclose(three, [[*two[0], -np.inf]], atol=FLOAT32)


@pytest.mark.parametrize("labels", [1, 4])
def test_a_head_on_tokens_where_nothing_says_so(saved, tmp_path, caplog, labels):
    _, folder = saved("RobertaForTokenClassification", ("architectures",), num_labels=labels)
    (head,) = roberta_flax.load(convert(folder, tmp_path / "converted")).config.heads
    assert (head.kind, head.num_classes, caplog.messages) == ("token", labels, [])


@pytest.mark.parametrize("both", ["same", "different"])
def test_an_lm_head_with_its_bias_twice_has_the_one_that_transformers_takes(saved, tmp_path, caplog, both):
    import transformers

    _, folder = saved("RobertaForMaskedLM")
    added = 0.0 if both == "same" else 1.0
    change_tensors(folder, lambda t: t.update({"lm_head.decoder.bias": t["lm_head.bias"] + added}))
    theirs = transformers.RobertaForMaskedLM.from_pretrained(folder).lm_head.decoder.bias.detach()
    directory = convert(folder, tmp_path / "converted")
    assert (np.asarray(roberta_flax.load(directory).params["lm_head"]["bias"]) == theirs.numpy()).all()
    assert any("lm_head.decoder.bias differ" in message for message in caplog.messages) == (both == "different")
    went = json.loads((directory / "conversion.json").read_text())["tensors"]
    kept, left = ("lm_head.bias", "lm_head.decoder.bias")[:: 1 if both == "same" else -1]
    assert went[kept] == ["lm_head.bias"]
    assert "the same as" in went[left]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.int16, torch.uint8, torch.int8, torch.bool])
def test_buffers_of_integers_are_left_out(saved, tmp_path, dtype):
    _, folder = saved("RobertaForMaskedLM")
    expected = convert(folder, tmp_path / "expected")
    name = "roberta.embeddings.position_ids"
    change_tensors(folder, lambda t: t.update({name: torch.arange(79).to(dtype)[None]}))
    directory = convert(folder, tmp_path / "converted")
    assert (directory / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
    change_tensors(folder, lambda t: t.update({"lm_head.bias": torch.zeros(VOCAB, dtype=dtype)}))
    with pytest.raises(CheckpointError, match="wrong dtype: lm_head.bias is"):
        convert(folder, tmp_path / "refused")


@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_dataparallels_prefix_before_transformers_names(saved, tmp_path, form):
    model, folder = saved("RobertaForMaskedLM")
    expected = convert(folder, tmp_path / "expected")
    if form == "bin":
        (folder / "model.safetensors").unlink()
        torch.save({f"module.{name}": t for name, t in model.state_dict().items()}, folder / "pytorch_model.bin")
    else:
        change_tensors(folder, lambda t: t.update({f"module.{name}": t.pop(name) for name in list(t)}))
    directory = convert(folder, tmp_path / "converted")
    assert (directory / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()


def test_an_index_that_names_a_file_too_long(saved, tmp_path):
    _, folder = saved("RobertaForMaskedLM")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "x" * 300}}))
    with pytest.raises(CheckpointError, match="index.json lists xxx.*, not found"):
        convert(folder, tmp_path / "converted")


# data2vec


def data2vec(folder: Path, bpe: Path, **transformer: Any) -> TransformerEncoder:
    """Writes what data2vec_text trains (examples/data2vec/models/data2vec_text.py), and gives its encoder.

    That module does not import on today's Python; its encoder is fairseq's TransformerEncoder, from TransformerConfig.
    """
    torch.manual_seed(0)
    encoder = EncDecBaseConfig(
        embed_dim=36, ffn_embed_dim=50, layers=2, attention_heads=4, learned_pos=True, layerdrop=0.1
    )
    config = TransformerConfig(
        encoder=encoder,
        **{"activation_fn": "relu", "layernorm_embedding": True, "no_scale_embedding": True, "max_source_positions": 77}
        | transformer,
    )
    model = TransformerEncoder(config, dictionary(VOCAB), torch.nn.Embedding(VOCAB, 36, 1)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    folder.mkdir()
    for file in ("dict.txt", "encoder.json", "vocab.bpe"):
        shutil.copy(bpe / file, folder)
    settings = {
        key: value for key, value in dataclasses.asdict(config).items() if isinstance(value, str | int | float | dict)
    }
    cfg = {
        "_name": "data2vec_text",
        "max_positions": "${task.tokens_per_sample}",
        "head_layers": 1,
        "transformer": settings,
    }
    state = {f"encoder.sentence_encoder.{name}": tensor for name, tensor in model.state_dict().items()}
    state |= {"encoder.regression_head.0.weight": torch.zeros(36, 36), "encoder._ema": torch.zeros(3)}
    torch.save({"args": None, "cfg": {"model": cfg}, "model": state}, folder / "model.pt")
    return model


def test_data2vecs_nested_settings_are_those_of_the_network(tmp_path, tiny_source):
    model = data2vec(tmp_path / "source", tiny_source, attention_dropout=0.2, activation_dropout=0.3)
    roberta = roberta_flax.load(convert(tmp_path / "source", tmp_path / "converted"))
    config = roberta.config
    assert (config.num_heads, config.activation, config.max_positions) == (4, "relu", 77)
    rates = (config.dropout, config.attention_dropout, config.activation_dropout, config.layer_drop)
    assert rates == (0.1, 0.2, 0.3, 0.1)
    tokens = random_tokens([5, 77], VOCAB)
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens).long())["encoder_out"][0].transpose(0, 1)
    np.testing.assert_allclose(roberta.extract_features(tokens), expected, atol=FLOAT32)


def test_data2vecs_settings_are_refused_where_they_make_another_network(tmp_path, tiny_source):
    data2vec(tmp_path / "source", tiny_source, no_scale_embedding=False)
    with pytest.raises(CheckpointError, match="was trained with no_scale_embedding=False"):
        convert(tmp_path / "source", tmp_path / "converted")


def test_data2vecs_settings_without_the_attention_heads(tmp_path, tiny_source):
    data2vec(tmp_path / "source", tiny_source)
    saved = torch.load(tmp_path / "source" / "model.pt", weights_only=False)
    del saved["cfg"]["model"]["transformer"]["encoder"]["attention_heads"]
    torch.save(saved, tmp_path / "source" / "model.pt")
    with pytest.raises(CheckpointError, match="does not give the number of attention heads"):
        convert(tmp_path / "source", tmp_path / "converted")


@pytest.mark.parametrize("architecture", ["roberta_prenorm", "roberta_base", "roberta_large", "xlm"])
def test_attention_heads_that_a_checkpoint_does_not_say_are_those_of_fairseqs_architecture(
    architecture, tmp_path, tiny_source
):
    sizes = {"encoder_layers": 1, "encoder_embed_dim": 48, "encoder_ffn_embed_dim": 20, "vocab": VOCAB}
    model = build_fairseq(architecture, **sizes)
    folder = write_fairseq(model, tmp_path / "source", tiny_source)
    shutil.copy(tiny_source / "dict.txt", folder)
    saved = torch.load(folder / "model.pt", weights_only=False)
    saved["args"] = argparse.Namespace(
        **{key: value for key, value in vars(saved["args"]).items() if key != "encoder_attention_heads"}
    )
    torch.save(saved, folder / "model.pt")
    heads = roberta_flax.load(convert(folder, tmp_path / "converted")).config.num_heads
    assert heads == model.args.encoder_attention_heads


# verify, of what export wrote


def test_the_only_head_is_called_the_same_in_what_export_wrote(tiny_directory, tmp_path):
    exported = export(tiny_directory, tmp_path / "exported", to="huggingface")
    assert not verify(tiny_directory, exported).problems
    problems = verify(tiny_directory, exported, head_name="other").problems
    assert "config.json has a head 'mnli', which is not in the source" in problems
    assert "the source has a head 'other', which is not in config.json" in problems


def test_token_types_that_export_folds_into_the_positions_are_said_to_be(saved, tmp_path):
    directory = convert(saved("RobertaForMaskedLM")[1], tmp_path / "converted")
    exported = export(directory, tmp_path / "exported", to="fairseq")
    (problem,) = verify(directory, exported).problems
    assert problem.startswith(
        "embeddings.token_type.embedding is not in the source: its row 0 is added to the source's"
    )
    state = torch.load(exported / "model.pt", weights_only=False)
    state["model"]["encoder.sentence_encoder.embed_positions.weight"][5] += 1
    torch.save(state, exported / "model.pt")
    problems = verify(directory, exported).problems
    assert [problem.split(" ")[0] for problem in problems] == [
        "config.json", "embeddings.token_type.embedding", "embeddings.position.embedding"
    ]  # fmt: skip


def test_settings_without_effect_and_settings_that_are_lost(saved, tmp_path):
    labels = {0: "no", 1: "yes"}
    directory = convert(
        saved("RobertaForSequenceClassification", hidden_act="relu", id2label=labels)[1], tmp_path / "c"
    )
    assert converted.read_config(directory).lm_head_activation == "gelu"
    first, second = verify(directory, export(directory, tmp_path / "exported", to="fairseq")).problems
    assert first == "config.json has labels ('no', 'yes') of head 'sentence_classification_head', the source ()"
    assert second.startswith("embeddings.token_type.embedding is not in the source")


def test_a_setting_of_the_lm_head_has_an_effect_where_there_is_one(saved, tmp_path):
    directory = convert(saved("RobertaForMaskedLM")[1], tmp_path / "converted")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "lm_head_activation": "relu"}))
    assert verify(directory, tmp_path / "source").problems == [
        "config.json has lm_head_activation 'relu', the source 'gelu'"
    ]


# the names of classes


MNLI = ("contradiction", "neutral", "entailment")


@pytest.fixture
def first_class(saved):
    """A model of three classes without names that always chooses the first."""
    _, folder = saved("RobertaForSequenceClassification", num_labels=3)

    def change(tensors: dict[str, Any]) -> None:
        tensors["classifier.out_proj.weight"].zero_()
        tensors["classifier.out_proj.bias"].copy_(torch.tensor([5.0, 0.0, 0.0]))

    change_tensors(folder, change)
    return folder


def test_three_classes_without_names_are_not_given_fairseqs(run, first_class, tmp_path):
    """Even where the head is called mnli: GLUE's order is the reverse of fairseq's."""
    directory = convert(first_class, tmp_path / "converted", head_name="mnli")
    for model in (first_class, directory):
        status, out, err = run("mnli", "a", "b", "--model", model)
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert "have no names, and their order differs from model to model; give it with labels (--labels)" in err
        given = run("mnli", "a", "b", "--model", model, "--labels", "entailment,neutral,contradiction")
        assert given[1].startswith("entailment ")
        assert run("predict", "--text", "a", "--text", "b", "--model", model)[1].startswith("label\t0\n")
    for labels in ("a,b", "a,b,b"):
        assert "should name three different classes" in run("mnli", "a", "b", "-m", directory, "--labels", labels)[2]
    assert roberta_flax.load(directory).predict_labels("mnli", [[0, 5, 2]]) == ["0"]


def test_a_model_in_glues_order_is_not_judged_in_fairseqs(run, first_class, tmp_path):
    (tmp_path / "MNLI").mkdir()
    dev = tmp_path / "MNLI" / "dev_matched.tsv"
    dev.write_text("sentence1\tsentence2\tgold_label\na\tb\tentailment\nc\td\tentailment\n")
    status, out, err = run("evaluate", dev, "--model", first_class)
    assert (status, out) == (1, "")
    assert "have no names, so it is not known which of them are mnli's" in err
    command = ("evaluate", dev, "--model", first_class, "--labels", "entailment,neutral,contradiction", "--json")
    assert json.loads(run(*command)[1])["metrics"]["accuracy"] == 1


def test_fairseqs_mnli_head_keeps_the_names_of_its_readme(tiny_directory, tmp_path, caplog):
    """label_map in fairseq/examples/roberta/README.md; export writes them, and directories of older versions have them."""
    assert json.loads((tiny_directory / "config.json").read_text())["heads"][0]["labels"] == list(MNLI)
    exported = export(tiny_directory, tmp_path / "hf", to="huggingface")
    config = json.loads((exported / "config.json").read_text())
    assert config["id2label"] == dict(zip("012", MNLI, strict=True))
    assert verify(tiny_directory, export(tiny_directory, tmp_path / "fairseq", to="fairseq")).problems == []
    assert caplog.messages == []
    for kind, labels in (("fairseq", MNLI), ("saved", ()), ("huggingface", ())):
        older = Path(shutil.copytree(tiny_directory, tmp_path / f"older-{kind}"))
        for name, change in (("config.json", {}), ("conversion.json", {"kind": kind})):
            values = {**json.loads((older / name).read_text()), **change}
            values.pop("checksums", None)
            if name == "config.json":
                values["heads"][0]["labels"] = []
            (older / name).write_text(json.dumps(values))
        assert roberta_flax.load(older).config.head("mnli").labels == labels


def test_the_one_output_of_a_single_label_head_is_the_sigmoid_that_transformers_gives(run, saved):
    from transformers import TextClassificationPipeline

    model, folder = saved("RobertaForSequenceClassification", num_labels=1, problem_type="single_label_classification")
    roberta = roberta_flax.load(folder)
    texts = ("A man is playing.", "Two dogs run.", "nothing")
    scores = []
    for text in texts:
        logits = model(torch.tensor([roberta.encode(text).tolist()])).logits
        pipeline = TextClassificationPipeline.__new__(TextClassificationPipeline)
        pipeline.model, pipeline.framework = model, "pt"  # its own choice of a function, without a tokenizer
        scores.append(pipeline.postprocess({"logits": logits.detach()})["score"])
    ours = [answer(roberta, [text])["values"]["0"] for text in texts]
    np.testing.assert_allclose(ours, scores, atol=FLOAT32)
    assert len({round(score, 4) for score in ours}) == 3
    (folder / "config.json").write_text((folder / "config.json").read_text().replace("single_label_", "no_"))
    assert "problem_type must be one of regression, " in run("encode", "a", "--model", folder)[2]


def test_the_one_output_of_a_token_head_is_a_value(saved):
    model, folder = saved("RobertaForTokenClassification", num_labels=1)
    roberta = roberta_flax.load(folder)
    tokens = roberta.encode("A man is playing.").tolist()
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits.numpy()
    np.testing.assert_allclose(roberta.predict("token_classification", tokens), logits, atol=FLOAT32)


@pytest.mark.parametrize("kind", ["sentence", "token"])
def test_a_class_of_one_is_refused(kind):
    with pytest.raises(roberta_flax.InputError, match="the probability of one class alone is always 1"):
        roberta_flax.HeadConfig("x", 1, 8, kind, "single_label")
