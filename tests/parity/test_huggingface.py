"""Models that transformers saved, through the converter, and back: outputs and bits beside transformers' own."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import roberta_flax
from roberta_flax import CheckpointError
from roberta_flax.convert import convert, export, verify
from roberta_flax.nn import forward
from roberta_flax.nn.numerics import Numerics
from tests.conftest import skip_or_fail
from tests.parity.test_network import FLOAT64, outputs
from tests.references import random_tokens, torch

if find_spec("transformers") is None:
    skip_or_fail("transformers, the reference, is not installed; the README's test command installs it")
    pytest.skip("no transformers", allow_module_level=True)

SIZES = {
    "hidden_size": 36, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 50,
    "max_position_embeddings": 79, "layer_norm_eps": 1e-5, "attn_implementation": "eager",
}  # fmt: skip
LABELS = ("no", "perhaps", "yes")
CLASSES: dict[str, dict[str, Any]] = {
    "RobertaModel": {},
    "RobertaForMaskedLM": {},
    "RobertaForSequenceClassification": {"id2label": dict(enumerate(LABELS))},
    "RobertaForTokenClassification": {"id2label": dict(enumerate("ABCDE"))},
    "RobertaForQuestionAnswering": {},
    "RobertaForMultipleChoice": {},
    "XLMRobertaForMaskedLM": {},
    "XLMRobertaForSequenceClassification": {"num_labels": 2},
    "CamembertForMaskedLM": {},
    "CamembertForTokenClassification": {"num_labels": 4},
    "XLMRobertaXLForMaskedLM": {},
    "XLMRobertaXLForSequenceClassification": {"num_labels": 3},
    "XLMRobertaXLModel": {},
    "RobertaPreLayerNormForMaskedLM": {},
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, changes) for name, changes in CLASSES.items()},
    "multi-label": (
        "RobertaForSequenceClassification",
        {"num_labels": 4, "problem_type": "multi_label_classification"},
    ),
    "regression": ("RobertaForSequenceClassification", {"num_labels": 1}),
    "untied": ("RobertaForMaskedLM", {"tie_word_embeddings": False}),
    "two token types": ("RobertaForMaskedLM", {"type_vocab_size": 2}),
    "epsilon 1e-12": ("RobertaModel", {"layer_norm_eps": 1e-12}),
    "relu": ("RobertaForMaskedLM", {"hidden_act": "relu"}),
    "gelu_new": ("RobertaForMaskedLM", {"hidden_act": "gelu_new"}),
    "no pooler, odd dropouts": (
        "RobertaForSequenceClassification",
        {"hidden_dropout_prob": 0.2, "classifier_dropout": 0.3, "num_labels": 2},
    ),
}


def perturb(model: torch.nn.Module) -> None:
    """Adds noise to every parameter, after the change of dtype, so that float64 weights are not float32 numbers."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1 if parameter.dim() == 1 else 1e-3)


def build(class_name: str, vocab: int, dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    """A transformers model in eval mode, random: no bias zero, no LayerNorm scale one."""
    import transformers

    torch.manual_seed(0)
    model_class = getattr(transformers, class_name)
    config = model_class.config_class(
        **{**SIZES, "vocab_size": vocab, "pad_token_id": 1, "type_vocab_size": 1, **changes}
    )
    model = model_class(config).to(dtype).eval()
    perturb(model)
    if dtype == torch.float64:
        model.config.torch_dtype = dtype
    return model


def write(model: Any, folder: Path, tokenizers: dict[str, Path], **options: Any) -> Path:
    """save_pretrained, and the tokenizer's files beside it."""
    model.save_pretrained(folder, **options)
    kind = "byte-level" if model.config.model_type.startswith("roberta") else "sentencepiece"
    for file in tokenizers[kind].iterdir():
        shutil.copy(file, folder / file.name)
    return folder


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory, tiny_source, sentencepiece_model) -> dict[str, Path]:
    """transformers' tokenizer files: of the embedded model's BPE, and of a sentencepiece model."""
    byte_level = tmp_path_factory.mktemp("byte-level")
    encoder = json.loads((tiny_source / "encoder.json").read_text())
    by_id = {i: piece for piece, i in encoder.items()}
    lines = [line.split()[0] for line in (tiny_source / "dict.txt").read_text().splitlines()]
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *(by_id[int(line)] for line in lines), "<mask>"]
    (byte_level / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    shutil.copy(tiny_source / "vocab.bpe", byte_level / "merges.txt")
    sentencepiece = tmp_path_factory.mktemp("sentencepiece")
    (sentencepiece / "sentencepiece.bpe.model").write_bytes(sentencepiece_model)
    return {"byte-level": byte_level, "sentencepiece": sentencepiece}


def vocab_size(class_name: str, sentencepiece_model: bytes) -> int:
    if class_name.startswith("Roberta"):
        return 581
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model).GetPieceSize()
    return pieces + (5 if class_name.startswith("Camembert") else 2)


def largest_difference(theirs: Any, ours: Any, mask: np.ndarray | None = None) -> float:
    theirs, ours = theirs.detach().numpy(), np.asarray(ours)
    assert theirs.shape == ours.shape
    assert np.isfinite(ours if mask is None else ours[mask]).all()
    difference = np.abs(theirs - ours)
    return float((difference if mask is None else difference[mask]).max())


def assert_same_outputs(model: Any, roberta: roberta_flax.Roberta, tokens: np.ndarray, tolerance: float) -> None:
    """Every hidden state, and what the model's class puts out; of padding transformers gives other numbers."""
    real = tokens != 1
    inputs = {"input_ids": torch.from_numpy(tokens).long(), "attention_mask": torch.from_numpy(real).long()}
    heads = {head.kind: head for head in roberta.config.heads}
    if "choice" in heads:
        inputs = {name: value[None] for name, value in inputs.items()}
    with torch.no_grad():
        theirs = model(**inputs, output_hidden_states=True)
    states = list(theirs.hidden_states)
    ours = outputs(roberta.params, tokens, roberta.config, roberta.numerics)
    our_states = list(ours["states"])
    if model.config.model_type == "xlm-roberta-xl":  # the final LayerNorm is in the last of them
        our_states[-1] = ours["features"]
    assert len(our_states) == len(states)
    for state, our_state in zip(states, our_states, strict=True):
        assert largest_difference(state, our_state, real) <= tolerance
    kind = next((head for head in heads if head != "pooler"), None)
    if kind is not None:
        predicted = ours["head_logits"][heads[kind].name]
    if kind == "choice":
        predicted = roberta.predict(heads[kind].name, tokens, return_logits=True)
    if kind == "span":
        assert largest_difference(theirs.start_logits, predicted[..., 0], real) <= tolerance
        assert largest_difference(theirs.end_logits, predicted[..., 1], real) <= tolerance
    elif kind is not None:
        assert largest_difference(theirs.logits, predicted, real if kind == "token" else None) <= tolerance
    elif roberta.config.lm_head:
        assert largest_difference(theirs.logits, ours["lm_logits"], real) <= tolerance
    if "pooler" in heads:
        assert largest_difference(theirs.pooler_output, ours["head_log_probs"]["pooler"]) <= tolerance


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_class_agrees_and_goes_back_bit_for_bit(variant, tmp_path, tokenizers, sentencepiece_model):
    class_name, changes = VARIANTS[variant]
    vocab = vocab_size(class_name, sentencepiece_model)
    tokens = random_tokens([1, 2, 30, 77], vocab)
    layers = 2 if variant in CLASSES else 1
    model = build(class_name, vocab, num_hidden_layers=layers, **changes)
    source = write(model, tmp_path / "source", tokenizers)
    directory = convert(source, tmp_path / "converted")
    roberta = roberta_flax.load(directory, dtype="float64", param_dtype="float64")
    assert_same_outputs(model, roberta, tokens, FLOAT64)
    assert not verify(directory, source).problems

    back = export(directory, tmp_path / "exported", to="huggingface")
    again = type(model).from_pretrained(back, attn_implementation="eager", dtype=torch.float64)
    assert type(again).__name__ == json.loads((back / "config.json").read_text())["architectures"][0]
    expected, state = model.state_dict(), again.state_dict()
    assert state.keys() == expected.keys()
    for tensor_name, tensor in expected.items():
        assert torch.equal(state[tensor_name], tensor), tensor_name
    for key in ("id2label", "problem_type", "layer_norm_eps", "hidden_act", "type_vocab_size", "tie_word_embeddings"):
        if key != "problem_type" or model.config.problem_type:
            assert getattr(again.config, key) == getattr(model.config, key), key
    with torch.no_grad():
        inputs = torch.from_numpy(tokens[2:3, :30]).long()
        inputs = inputs[None] if "MultipleChoice" in class_name else inputs
        assert largest_difference(model(inputs)[0], again(inputs)[0]) <= FLOAT64


@pytest.fixture
def of_flax(monkeypatch) -> Any:
    """transformers, whose Flax models begin with zeros: by itself, it compiles a program for each small operation."""
    import transformers

    def zeros(init: Any) -> Any:
        def init_weights(self: Any, key: jax.Array, input_shape: tuple[int, ...]) -> Any:
            shapes = jax.eval_shape(lambda key: init(self, key, input_shape), key)
            return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)

        return init_weights

    for base in (transformers.FlaxRobertaModel.__base__, transformers.FlaxXLMRobertaModel.__base__):
        monkeypatch.setattr(base, "init_weights", zeros(base.init_weights))
    return transformers


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        "safetensors",
        "sharded",
        "bin",
        "sharded bin",
        "legacy bin",
        "flax",
        "sharded flax",
        "gamma and beta",
        "no model_type",
    ],
)
def test_every_file_layout_gives_the_same_directory(layout, tmp_path, tokenizers, request):
    model = build("RobertaForSequenceClassification", 581, torch.float32, id2label=dict(enumerate(LABELS)))
    expected = convert(write(model, tmp_path / "plain", tokenizers), tmp_path / "expected")
    options = {
        "sharded": {"max_shard_size": "40KB"},
        "bin": {"safe_serialization": False},
        "sharded bin": {"safe_serialization": False, "max_shard_size": "40KB"},
    }.get(layout, {})
    source = write(model, tmp_path / "source", tokenizers, **options)
    if layout in ("legacy bin", "gamma and beta"):
        state = model.state_dict()
        if layout == "gamma and beta":
            state = {
                name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
                for name, tensor in state.items()
            }
        torch.save(state, source / "pytorch_model.bin", _use_new_zipfile_serialization=False)
        (source / "model.safetensors").unlink()
    if "flax" in layout:
        flax_class = request.getfixturevalue("of_flax").FlaxRobertaForSequenceClassification
        flax_model = flax_class.from_pretrained(tmp_path / "plain", from_pt=True)
        flax_model.save_pretrained(source, max_shard_size="40KB" if "sharded" in layout else "5GB")
        for file in source.glob("model*.safetensors*"):
            file.unlink()
    if layout == "no model_type":  # as of transformers 2.1
        config = json.loads((source / "config.json").read_text())
        del config["model_type"]
        (source / "config.json").write_text(json.dumps(config))
    assert ("sharded" in layout) == (len(list(source.glob("*-of-*"))) > 1)
    directory = convert(source, tmp_path / "converted")
    assert (directory / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
    assert (directory / "config.json").read_text() == (expected / "config.json").read_text()
    assert not verify(directory, source).problems


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "class_name",
    ["FlaxRobertaModel", "FlaxRobertaForMaskedLM", "FlaxRobertaForTokenClassification", "FlaxRobertaForQuestionAnswering",
     "FlaxRobertaForMultipleChoice", "FlaxXLMRobertaForMaskedLM"],
)  # fmt: skip
def test_flax_models_of_transformers_4_agree(class_name, of_flax, tmp_path, tokenizers, sentencepiece_model):
    """Its parameters, random; compared with its own outputs, not with torch's."""
    model_class = getattr(of_flax, class_name)
    vocab = vocab_size(class_name.removeprefix("Flax"), sentencepiece_model)
    sizes = {name: value for name, value in SIZES.items() if name != "attn_implementation"} | {"num_hidden_layers": 2}
    config = model_class.config_class(**sizes, vocab_size=vocab, pad_token_id=1, type_vocab_size=1)
    model = model_class(config, seed=0, dtype=jnp.dtype("float64"))
    random = np.random.default_rng(0)
    model.params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: random.normal(1.0 if path[-1].key == "scale" else 0.0, 0.05, leaf.shape), model.params
    )
    source = tmp_path / "source"
    model.save_pretrained(source)
    for file in tokenizers["sentencepiece" if "XLM" in class_name else "byte-level"].iterdir():
        shutil.copy(file, source / file.name)
    roberta = roberta_flax.load(convert(source, tmp_path / "converted"), dtype="float64", param_dtype="float64")
    tokens = random_tokens([9, 30, 77], vocab)
    real = tokens != 1
    given = (tokens[None], real[None].astype(int)) if "MultipleChoice" in class_name else (tokens, real.astype(int))
    outputs = model(*given)
    kinds = {head.kind: head.name for head in roberta.config.heads if head.kind != "pooler"}
    if roberta.config.lm_head:
        ours = forward.lm_logits(roberta.params, tokens, config=roberta.config, numerics=Numerics("float64"))
    elif kinds:
        ours = roberta.predict(next(iter(kinds.values())), tokens, return_logits=True)
    else:
        ours = roberta.extract_features(tokens)
    theirs = np.stack([outputs.start_logits, outputs.end_logits], -1) if "span" in kinds else np.asarray(outputs[0])
    mask = real if theirs.shape[:2] == real.shape else slice(None)
    assert np.abs(theirs - np.asarray(ours))[mask].max() <= FLOAT64


def test_labels_are_kept_and_named_by_predict(tmp_path, tokenizers):
    model = build("RobertaForSequenceClassification", 581, torch.float32, id2label=dict(enumerate(LABELS)))
    directory = convert(write(model, tmp_path / "source", tokenizers), tmp_path / "converted", head_name="answer")
    roberta = roberta_flax.load(directory)
    assert roberta.config.head("answer").labels == LABELS
    tokens = random_tokens([30, 20], 581)
    mask = torch.from_numpy((tokens != 1).astype(int))
    best = model(torch.from_numpy(tokens).long(), attention_mask=mask).logits.argmax(-1)
    assert roberta.predict_labels("answer", tokens) == [LABELS[i] for i in best]


def test_ids_are_those_of_transformers_tokenizers(tmp_path, tokenizers, sentencepiece_model, sick_pairs):
    import transformers

    texts = [text for pair in sick_pairs[:300] for text in pair]
    texts += [
        "",
        " ",
        "Ünïcödé — ça va?",
        "日本語 テキスト",
        "emoji 👩‍👩‍👧 ok",
        "a  b\tc\nd",
        "\u3000x\u00a0y",
        "ﬁ ① ½",
    ]
    for class_name, tokenizer_class in (
        ("RobertaModel", "RobertaTokenizer"),
        ("XLMRobertaModel", "XLMRobertaTokenizer"),
        ("CamembertModel", "CamembertTokenizer"),
    ):
        model = build(class_name, vocab_size(class_name, sentencepiece_model), torch.float32)
        source = write(model, tmp_path / class_name, tokenizers)
        theirs = getattr(transformers, tokenizer_class).from_pretrained(source)
        ours = roberta_flax.load_tokenizer(convert(source, tmp_path / f"{class_name}-converted"))
        assert (ours.bos_id, ours.pad_id, ours.eos_id, ours.mask_id) == (
            theirs.bos_token_id, theirs.pad_token_id, theirs.eos_token_id, theirs.mask_token_id,
        )  # fmt: skip
        for text in texts:
            assert ours.encode(text).tolist() == theirs(text)["input_ids"], (class_name, text)
        assert ours.encode(texts[0], texts[1]).tolist() == theirs(texts[0], texts[1])["input_ids"]


@pytest.mark.parametrize("class_name", ["RobertaModel", "XLMRobertaModel", "CamembertModel"])
def test_tokenizer_json_alone_gives_the_same_ids(class_name, tmp_path, tokenizers, sentencepiece_model, sick_pairs):
    """What the tokenizers package writes, and all that transformers 5 saves."""
    import transformers

    model = build(class_name, vocab_size(class_name, sentencepiece_model), torch.float32)
    source = write(model, tmp_path / "source", tokenizers)
    expected = roberta_flax.load_tokenizer(convert(source, tmp_path / "expected"))
    fast = getattr(transformers, class_name.replace("Model", "TokenizerFast")).from_pretrained(source)
    for name in ("vocab.json", "merges.txt", "sentencepiece.bpe.model"):
        (source / name).unlink(missing_ok=True)
    fast.backend_tokenizer.save(str(source / "tokenizer.json"))
    ours = roberta_flax.load_tokenizer(convert(source, tmp_path / "converted"))
    for text in [text for pair in sick_pairs[:300] for text in pair] + ["", "Ünïcödé ﬁ ① ½", "日本語", "a  b"]:
        assert ours.encode(text).tolist() == expected.encode(text).tolist(), text


def test_exported_tokenizers_give_transformers_the_same_ids(tmp_path, tokenizers, sentencepiece_model, sick_pairs):
    import transformers

    for class_name in ("RobertaModel", "XLMRobertaModel", "CamembertModel"):
        model = build(class_name, vocab_size(class_name, sentencepiece_model), torch.float32)
        source = write(model, tmp_path / class_name, tokenizers)
        directory = convert(source, tmp_path / f"{class_name}-converted")
        exported = export(directory, tmp_path / f"{class_name}-exported", to="huggingface")
        theirs = transformers.AutoTokenizer.from_pretrained(exported)
        ours = roberta_flax.load_tokenizer(directory)
        for text in [text for pair in sick_pairs[:50] for text in pair]:
            assert ours.encode(text).tolist() == theirs(text)["input_ids"], class_name
        assert not verify(directory, exported).problems


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        ({"problem_type": "multi_label_classification", "num_labels": 4}, "is a multi-label head"),
        ({"problem_type": "regression", "num_labels": 2}, "is a regression of several values"),
        ({"problem_type": "regression", "num_labels": 1}, None),
        ({"problem_type": "single_label_classification", "num_labels": 2}, None),
    ],
)
def test_a_head_that_fairseq_takes_for_classes_is_told(change, warning, tmp_path, tokenizers, caplog):
    """RobertaHubInterface.predict gives log_softmax of it, unless it is asked for the logits."""
    model = build("RobertaForSequenceClassification", 581, torch.float32, **change)
    directory = convert(write(model, tmp_path / "source", tokenizers), tmp_path / "converted", head_name="answer")
    caplog.clear()
    export(directory, tmp_path / "exported", to="fairseq")
    told = [record.getMessage() for record in caplog.records if "log_softmax" in record.getMessage()]
    assert len(told) == (warning is not None)
    assert warning is None or told[0].startswith(f"head 'answer' {warning}: ")


def test_labels_of_one_name_are_told_and_go_back_as_transformers_has_them(tmp_path, tokenizers, caplog):
    import transformers

    labels = {0: "A", 1: "B", 2: "A"}
    model = build("RobertaForSequenceClassification", 581, torch.float32, id2label=labels)
    directory = convert(write(model, tmp_path / "source", tokenizers), tmp_path / "converted")
    caplog.clear()
    config = json.loads((export(directory, tmp_path / "exported", to="huggingface") / "config.json").read_text())
    assert "has several labels with the same name (A)" in caplog.text
    again = transformers.AutoConfig.from_pretrained(tmp_path / "exported")
    assert (again.id2label, again.num_labels) == (labels, 3)
    assert config["label2id"] == dict(zip(labels.values(), labels.keys(), strict=True)) == {"A": 2, "B": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "electra"}, "a model of type 'electra', not a RoBERTa: expected roberta, xlm-roberta"),
        ({"is_decoder": True}, "is_decoder=True"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type=relative_key"),
        ({"pad_token_id": 0}, "pad_token_id=0"),
        ({"hidden_act": "silu"}, "hidden_act must be one of"),
        ({"num_hidden_layers": 4}, "config.json declares 4 layers, but the model has 3"),
        ({"num_attention_heads": 5}, "multiple of num_heads"),
        ({"num_attention_heads": "many"}, "arguments that do not describe a RoBERTa"),
        ({"layer_norm_eps": 1e400}, "arguments that do not describe a RoBERTa"),
    ],
)  # fmt: skip
def test_settings_that_mean_another_network_are_refused(change, message, tmp_path, tokenizers):
    source = write(build("RobertaForMaskedLM", 581, torch.float32), tmp_path / "source", tokenizers)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError, match=message):
        convert(source, tmp_path / "converted")


def test_files_that_are_missing_are_named(tmp_path, tokenizers):
    model = build("RobertaForMaskedLM", 581, torch.float32)
    source = write(model, tmp_path / "source", tokenizers, max_shard_size="40KB")
    part = sorted(source.glob("model-0*"))[1]
    part.rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=part.name):
        convert(source, tmp_path / "converted")
    (tmp_path / "elsewhere").rename(part)
    (source / "vocab.json").unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer in .*: put tokenizer.json, or vocab.json and merges.txt;"):
        convert(source, tmp_path / "converted")
    convert(source, tmp_path / "converted", bpe_dir=tokenizers["byte-level"])


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "/etc/passwd", "..", "a\\b"])
def test_an_index_cannot_lead_out_of_its_directory(name, tmp_path, tokenizers):
    source = write(build("RobertaForMaskedLM", 581, torch.float32), tmp_path / "source", tokenizers)
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="should list the weights files beside it"):
        convert(source, tmp_path / "converted")
