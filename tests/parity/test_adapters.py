"""Adapters that PEFT wrote, merged at conversion: the numbers of PEFT's own model, which adds them in each layer."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import roberta_flax
from roberta_flax import CheckpointError, SentenceEncoder
from roberta_flax.convert import cache, convert, verify
from tests.conftest import skip_or_fail
from tests.parity.test_huggingface import (  # skips where transformers is missing
    assert_same_outputs,
    build,
    tokenizers,
    vocab_size,
    write,
)
from tests.parity.test_network import FLOAT64
from tests.references import random_tokens, torch

if find_spec("peft") is None:
    skip_or_fail("PEFT, the reference, is not installed")
    pytest.skip("no PEFT", allow_module_level=True)

__all__ = ["tokenizers"]  # a fixture

VOCAB = 581
SIZES = {"num_hidden_layers": 2}
CLASSIFIER = "RobertaForSequenceClassification"
LINEAR = ["query", "value", "dense"]

# The class of the network that is adapted, that of the network whose files are its own, and PEFT's settings.
VARIANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "classifier of a masked LM": (CLASSIFIER, "RobertaForMaskedLM", {"task_type": "SEQ_CLS"}),
    "rank-stabilized": (CLASSIFIER, CLASSIFIER, {"task_type": "SEQ_CLS", "use_rslora": True, "r": 5, "lora_alpha": 3}),
    "patterns": (
        CLASSIFIER, CLASSIFIER,
        {
            "task_type": "SEQ_CLS", "target_modules": ["query", "value", "output.dense"],
            "rank_pattern": {"query": 3, "^roberta.encoder.layer.1.output.dense": 1, r"layer\.\d\.attention\.self\.v.*": 2},
            "alpha_pattern": {"layer.0.attention.self.value": 5, "(?:query|key)": 7, r"layer\.1\.output\.dense": 11},
        },
    ),
    "all linear layers, biases of the adapter": (
        CLASSIFIER, CLASSIFIER,
        {"modules_to_save": ["classifier"], "target_modules": "all-linear", "lora_bias": True},
    ),
    "all biases": (CLASSIFIER, CLASSIFIER, {"task_type": "SEQ_CLS", "bias": "all"}),
    "biases of adapted layers": (CLASSIFIER, CLASSIFIER, {"task_type": "SEQ_CLS", "bias": "lora_only"}),
    "magnitudes": (
        CLASSIFIER, CLASSIFIER,
        {"task_type": "SEQ_CLS", "use_dora": True, "target_modules": [*LINEAR, "word_embeddings"]},
    ),
    "embeddings": (
        CLASSIFIER, CLASSIFIER,
        {"task_type": "SEQ_CLS", "target_modules": ["word_embeddings", "position_embeddings", "key"]},
    ),
    "one layer": (CLASSIFIER, CLASSIFIER, {"task_type": "SEQ_CLS", "layers_to_transform": [1], "target_modules": LINEAR}),
    "fan_in_fan_out": (CLASSIFIER, CLASSIFIER, {"task_type": "SEQ_CLS", "fan_in_fan_out": True}),
    "tokens": ("RobertaForTokenClassification", "RobertaForMaskedLM", {"task_type": "TOKEN_CLS"}),
    "questions": ("RobertaForQuestionAnswering", "RobertaModel", {"task_type": "QUESTION_ANS"}),
    "features": ("RobertaModel", "RobertaModel", {"task_type": "FEATURE_EXTRACTION", "target_modules": LINEAR}),
    "choices": ("RobertaForMultipleChoice", "RobertaForMultipleChoice", {"modules_to_save": ["classifier"]}),
    "masked LM": ("RobertaForMaskedLM", "RobertaForMaskedLM", {"target_modules": LINEAR}),
    "masked LM, token embedding": ("RobertaForMaskedLM", "RobertaForMaskedLM", {"target_modules": ["word_embeddings"]}),
    "masked LM, decoder": ("RobertaForMaskedLM", "RobertaForMaskedLM", {"target_modules": ["decoder", "query"]}),
    "pre-norm": (
        "RobertaPreLayerNormForSequenceClassification", "RobertaPreLayerNormForMaskedLM",
        {"task_type": "SEQ_CLS", "bias": "all", "target_modules": LINEAR},
    ),
    "data2vec": ("Data2VecTextForSequenceClassification", "Data2VecTextModel", {"task_type": "SEQ_CLS", "target_modules": LINEAR}),
    "BERT": (
        "BertForSequenceClassification", "BertModel",
        {"task_type": "SEQ_CLS", "target_modules": ["query", "dense"], "modules_to_save": ["classifier"]},
    ),
}  # fmt: skip


def save_base(folder: Path, tokenizers: dict[str, Path], class_name: str, dtype: torch.dtype) -> Path:
    labels = {"num_labels": 3} if class_name.endswith("ForSequenceClassification") else {}
    model = build(class_name, VOCAB, dtype, **SIZES, **labels)
    return write(model, folder, {**tokenizers, "sentencepiece": tokenizers["byte-level"]})


def tokenizer_of_bert(folder: Path) -> None:
    """RoBERTa's, which gives no token types."""
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "RobertaTokenizer"}')


def save_adapter(base: Path, folder: Path, class_name: str, safe: bool = True, **settings: Any) -> Path:
    """An adapter as if trained: none of its numbers are those that it began with."""
    import peft
    import transformers

    model_class = getattr(transformers, class_name)
    kind = {} if class_name == "RobertaModel" or "MaskedLM" in class_name else {"num_labels": 3}
    kind = {} if class_name.endswith(("MultipleChoice", "QuestionAnswering")) else kind
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        network = model_class.from_pretrained(base, dtype="auto", **kind)
        model = peft.get_peft_model(network, peft.LoraConfig(**{"target_modules": ["query", "value"], **settings}))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn_like(parameter)
        model.save_pretrained(folder, safe_serialization=safe)
    return folder


def with_peft(base: Path, adapter: Path, class_name: str) -> Any:
    """PEFT's model of an adapter's files."""
    import peft
    import transformers

    kind = (
        {} if class_name.endswith(("Model", "MaskedLM", "MultipleChoice", "QuestionAnswering")) else {"num_labels": 3}
    )
    network = getattr(transformers, class_name).from_pretrained(
        base, dtype=torch.float64, attn_implementation="eager", **kind
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(network, adapter).to(torch.float64).eval()


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_merged_adapter_gives_the_outputs_of_peft(variant, tmp_path, tokenizers):
    class_name, base_class, settings = VARIANTS[variant]
    base = save_base(tmp_path / "base", tokenizers, base_class, torch.float64)
    if base_class.startswith("Bert"):
        tokenizer_of_bert(base)
    adapter = save_adapter(base, tmp_path / "adapter", class_name, safe=variant != "all biases", **settings)
    model = with_peft(base, adapter, class_name)
    directory = convert(adapter, tmp_path / "converted")
    roberta = roberta_flax.load(directory, dtype="float64", param_dtype="float64")
    if variant == "features":  # PEFT keeps the pooler of the network
        assert [head.kind for head in roberta.config.heads] == ["pooler"]
    assert_same_outputs(model, roberta, random_tokens([1, 30, 77], VOCAB), FLOAT64)
    assert not verify(directory, adapter).problems
    conversion = json.loads((directory / "conversion.json").read_text())
    assert conversion["base_model"] == str(base)
    assert "model.safetensors" in conversion["repository"]["base model"]
    from safetensors.torch import load_file

    names = load_file(adapter / "adapter_model.safetensors") if variant != "all biases" else {}
    assert names.keys() <= conversion["tensors"].keys()


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tokenizers) -> tuple[Path, Path]:
    """A network, and an adapter for it."""
    folder = tmp_path_factory.mktemp("saved")
    base = save_base(folder / "base", tokenizers, "RobertaForMaskedLM", torch.float32)
    return base, save_adapter(base, folder / "adapter", CLASSIFIER, task_type="SEQ_CLS", r=2)


@pytest.fixture
def adapter(saved, tmp_path) -> Path:
    """A copy of the adapter, to change."""
    return shutil.copytree(saved[1], tmp_path / "adapter")


def edit(adapter: Path, **changes: Any) -> Path:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return adapter


def edit_tensors(adapter: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    from safetensors.torch import load_file, save_file

    tensors = load_file(adapter / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, adapter / "adapter_model.safetensors")
    return adapter


def test_the_network_of_an_adapter_is_the_one_that_is_named(saved, adapter, tmp_path):
    base, _ = saved
    expected = convert(adapter, tmp_path / "expected")
    moved = shutil.copytree(base, tmp_path / "moved")
    edit(adapter, base_model_name_or_path="/home/somebody/model")
    with pytest.raises(CheckpointError, match=r"adapter for /home/somebody/model, which is not here.*--base-model"):
        convert(adapter, tmp_path / "refused")
    directory = convert(adapter, tmp_path / "converted", base_model=moved)
    assert (directory / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
    assert not verify(directory, adapter).problems  # with the network that conversion.json names
    assert not verify(directory, adapter, base_model=base).problems
    assert verify(directory, adapter, base_model=changed(base, tmp_path)).problems
    edit(adapter, base_model_name_or_path=None)
    with pytest.raises(CheckpointError, match=r"no base_model_name_or_path: .*--base-model"):
        convert(adapter, tmp_path / "refused")
    with pytest.raises(CheckpointError, match="does not exist"):
        convert(adapter, tmp_path / "refused", base_model=tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="is an adapter itself"):
        convert(adapter, tmp_path / "refused", base_model=saved[1])


def changed(base: Path, tmp_path: Path) -> Path:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(base, tmp_path / "changed")
    tensors = {name: tensor + 1 for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_an_adapter_that_is_loaded_is_converted_again_where_its_network_changes(saved, adapter, tmp_path):
    base = shutil.copytree(saved[0], tmp_path / "base")
    edit(adapter, base_model_name_or_path=str(base))
    first = cache.resolve(adapter, cache_dir=tmp_path / "cache")
    assert cache.resolve(adapter, cache_dir=tmp_path / "cache") == first
    shutil.copy(changed(base, tmp_path) / "model.safetensors", base)
    assert cache.resolve(adapter, cache_dir=tmp_path / "cache") != first


def test_the_adapters_own_tokenizer_comes_before_that_of_its_network(saved, adapter, tmp_path):
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(saved[0] / name, adapter)
    (adapter / "tokenizer_config.json").write_text('{"tokenizer_class": "RobertaTokenizer", "add_prefix_space": true}')
    ours, networks = (
        roberta_flax.load_tokenizer(convert(source, tmp_path / name))
        for name, source in (("adapter-converted", adapter), ("base-converted", saved[0]))
    )
    assert ours.encode("a dog").tolist() == networks.encode(" a dog").tolist() != networks.encode("a dog").tolist()


@pytest.mark.parametrize("labels", [{"0": "yes", "1": "no"}, {"0": "a", "1": "b", "2": "c"}])
def test_labels_are_the_networks_where_their_number_is_that_of_the_classes(saved, adapter, tmp_path, labels, caplog):
    base = shutil.copytree(saved[0], tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "id2label": labels}))
    directory = convert(adapter, tmp_path / "converted", base_model=base)
    (head,) = json.loads((directory / "config.json").read_text())["heads"]
    assert (head["num_classes"], head["labels"]) == (3, ["a", "b", "c"] if len(labels) == 3 else [])
    assert ("names 2 labels, but the head has 3 classes" in caplog.text) == (len(labels) == 2)


def test_a_float16_network_is_merged_in_more_bits_and_rounded_once(saved, adapter, tmp_path):
    import transformers
    from safetensors.torch import load_file

    base = tmp_path / "half"
    shutil.copytree(saved[0], base)
    transformers.RobertaForMaskedLM.from_pretrained(saved[0]).half().save_pretrained(base)
    directory = convert(adapter, tmp_path / "converted", base_model=base)
    tensors, lora = load_file(base / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    name = "roberta.encoder.layer.0.attention.self.query"
    a, b = (lora[f"base_model.model.{name}.lora_{each}.weight"].double() for each in "AB")
    expected = (tensors[f"{name}.weight"].double() + 8 / 2 * b @ a).half()
    merged = load_file(directory / "model.safetensors")["layers.0.attention.query.kernel"]
    assert merged.dtype == torch.float16
    assert torch.equal(merged.T, expected)


LORA_A = "base_model.model.roberta.encoder.layer.0.attention.self.query.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type=IA3; only LORA is supported; where PEFT can merge it"),
        ({"peft_type": "PREFIX_TUNING"}, "peft_type=PREFIX_TUNING"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa, which changes the network's own weights"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights=loftq"),
        ({"task_type": "CAUSAL_LM"}, "task_type=CAUSAL_LM; supported are SEQ_CLS"),
        ({"task_type": ["SEQ_CLS"]}, "task_type=.*; supported are SEQ_CLS"),
        ({"rank_pattern": ["query"]}, "rank_pattern should be at most 1024 patterns"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices=.* is not supported"),
        ({"layer_replication": [[0, 1]]}, "layer_replication="),
        ({"use_qalora": True}, "use_qalora=True"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens="),
        ({"a_method_of_next_year": True}, "a_method_of_next_year=True, which is not supported"),
        ({"r": 3}, "the rank 3, but its tensors have 2"),
        ({"lora_alpha": "many"}, "alpha_pattern or lora_alpha"),
        ({"r": 1e400}, "rank_pattern or r"),
        ({"alpha_pattern": {"(a+)+": 1}}, r"the pattern \(a\+\)\+ is not supported in alpha_pattern"),
        ({"rank_pattern": {"(query": 1}}, "rank_pattern or r"),
        ({"use_dora": True}, "does not fit its network"),
    ],
)
def test_what_is_no_plain_lora_is_refused_by_name(adapter, tmp_path, change, message):
    with pytest.raises(CheckpointError, match=message):
        convert(edit(adapter, **change), tmp_path / "refused")


@pytest.mark.parametrize("how", [True, False, "gaussian", "orthogonal", "eva"])
def test_how_an_adapter_began_does_not_matter(adapter, tmp_path, how):
    expected = convert(adapter, tmp_path / "expected")
    directory = convert(edit(adapter, init_lora_weights=how), tmp_path / "converted")
    assert (directory / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()


def rename(old: str, new: str) -> Callable[[dict[str, Any]], Any]:
    return lambda tensors: tensors.update({new: tensors.pop(old)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(LORA_A), r"does not fit its network: .*query is \[36, 36\], but the adapter has .*lora_B"),
        (lambda t: t.update({LORA_A: torch.ones(2, 35)}), r"does not fit its network: .*\[2, 35\]"),
        (rename(LORA_A, LORA_A.replace("lora_A", "lora_C")), "lora_C.weight, which is none of the tensors of a LoRA"),
        (rename(LORA_A, "roberta.pooler.dense.weight"), "roberta.pooler.dense.weight, which is none of the tensors"),
        (
            lambda t: t.update({"base_model.model.roberta.adapter.lora_A.weight": torch.ones(2, 36)}),
            "adapts roberta.adapter, which its network does not have",
        ),
        (
            lambda t: t.update({"base_model.model.score.weight": torch.ones(2, 36)}),
            r"unknown: .*score.weight \[2, 36\]",
        ),
        (lambda t: t.update({LORA_A: torch.ones(2, 36, dtype=torch.int32)}), "is int32, expected floating point"),
    ],
)
def test_tensors_that_are_no_lora_of_the_network_are_named(adapter, tmp_path, change, message):
    with pytest.raises(CheckpointError, match=message):
        convert(edit_tensors(adapter, change), tmp_path / "refused")


def test_an_adapter_of_another_library_is_refused(adapter, tmp_path):
    """adapter-transformers has a file of the same name."""
    (adapter / "adapter_config.json").write_text('{"config": {"architecture": "lora"}, "model_type": "roberta"}')
    with pytest.raises(CheckpointError, match="has no peft_type, so it is not PEFT's; merge the adapter"):
        convert(adapter, tmp_path / "refused")


def test_an_adapter_without_its_tensors_says_which_file_is_missing(adapter, tmp_path):
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"not adapter_model.safetensors or adapter_model.bin: copy it there"):
        convert(adapter, tmp_path / "refused")


@pytest.mark.slow
def test_a_sentence_encoder_with_an_adapter_gives_the_vectors_of_sentence_transformers(
    tmp_path, tokenizers, sentencepiece_model
):
    import peft

    sentence_transformers = pytest.importorskip("sentence_transformers")
    vocab = vocab_size("XLMRobertaModel", sentencepiece_model)
    base = write(build("XLMRobertaForMaskedLM", vocab, torch.float32, **SIZES), tmp_path / "base", tokenizers)
    models = sentence_transformers.models
    transformer = models.Transformer(str(base), max_seq_length=20)
    transformer.auto_model.add_adapter(peft.LoraConfig(target_modules=LINEAR, r=3))
    torch.manual_seed(2)
    for name, parameter in transformer.auto_model.named_parameters():
        if "lora_" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    modules = [transformer, models.Pooling(36, pooling_mode="cls"), models.Normalize()]
    theirs = sentence_transformers.SentenceTransformer(modules=modules, device="cpu")
    theirs.save(str(tmp_path / "source"))
    assert not (tmp_path / "source" / "model.safetensors").exists()
    ours = SentenceEncoder(tmp_path / "source", cache_dir=tmp_path / "cache")
    texts = ["A man is playing a guitar.", "two dogs run", "naïve café"]
    np.testing.assert_allclose(ours.encode(texts), theirs.encode(texts), rtol=0, atol=1e-5)
