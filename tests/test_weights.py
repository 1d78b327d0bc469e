"""Weights in other forms than Transformers' own: each gives the directory that the plain form gives, or says what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from roberta_flax import CheckpointError, InputError
from roberta_flax.convert import cache, convert, verify
from tests.conftest import skip_or_fail

if find_spec("transformers") is None or find_spec("sentence_transformers") is None:
    skip_or_fail("transformers and sentence-transformers, the references, are not installed")
    pytest.skip("no transformers", allow_module_level=True)

import torch
import transformers
from safetensors.torch import load_file, save_file

from references.sentence_transformers import body

State = dict[str, Any]


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """A directory as save_pretrained() writes it."""
    return body(tmp_path_factory.mktemp("plain"), "RobertaForSequenceClassification", num_labels=3, num_hidden_layers=1)


@pytest.fixture(scope="module")
def expected(plain, tmp_path_factory) -> Path:
    return convert(plain, tmp_path_factory.mktemp("expected") / "converted")


@pytest.fixture
def source(plain, tmp_path) -> Path:
    """A copy of it, to change."""
    return shutil.copytree(plain, tmp_path / "source")


def state_of(source: Path) -> State:
    """The model's tensors, whose file is removed."""
    state = dict(load_file(source / "model.safetensors"))
    (source / "model.safetensors").unlink()
    return state


def assert_converts_to(expected: Path, source: Path, tmp_path: Path) -> dict[str, Any]:
    """The conversion.json of a source that gives the expected directory."""
    directory = convert(source, tmp_path / "converted")
    assert (directory / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
    assert (directory / "config.json").read_text() == (expected / "config.json").read_text()
    assert not verify(directory, source).problems
    return json.loads((directory / "conversion.json").read_text())


def refusal(source: Path, tmp_path: Path, **options: Any) -> str:
    with pytest.raises(CheckpointError) as error:
        convert(source, tmp_path / "refused", **options)
    assert not (tmp_path / "refused").exists()
    return str(error.value)


class Callback:
    """A user's class, as a trainer pickles it beside the weights."""

    def __init__(self) -> None:
        self.best = torch.ones(2)


# Names


def compiled_layers(name: str) -> str:
    return name.replace("encoder.layer.0.", "encoder.layer.0._orig_mod.")


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    ("rename", "prefix"),
    [
        ("model.{}".format, "model."),
        ("module.{}".format, "module."),
        ("_orig_mod.{}".format, ""),
        ("base_model.model.{}".format, "base_model.model."),
        ("module.model._orig_mod.{}".format, "module.model."),
        ("model._forward_module.net.{}".format, "model.net."),
        ("_fsdp_wrapped_module.roberta_classifier.{}".format, "roberta_classifier."),
        (compiled_layers, ""),
    ],
)
def test_prefixes_of_wrappers_are_removed(source, expected, tmp_path, rename, prefix, file):
    state = {rename(name): tensor for name, tensor in state_of(source).items()}
    save_file(state, source / file) if file.endswith("safetensors") else torch.save(state, source / file)
    assert assert_converts_to(expected, source, tmp_path)["repository"].get("prefix", "") == prefix


@pytest.mark.parametrize("name", ["criterion.weight", "model.loss_fn.weight", "loss.weight"])
def test_tensors_of_a_loss_are_left_out(source, expected, tmp_path, name):
    prefix = "model." if name.startswith("model.") else ""
    state = {f"{prefix}{each}": tensor for each, tensor in state_of(source).items()}
    torch.save({**state, name: torch.ones(3)}, source / "pytorch_model.bin")
    assert assert_converts_to(expected, source, tmp_path)["tensors"][name] == "of a loss"


def test_a_network_that_wraps_another_of_the_same_name_is_found(plain, expected, tmp_path):
    """The attribute that holds a model may have the name that a part of the model has."""
    source = shutil.copytree(plain, tmp_path / "source")
    state = {f"roberta.{name}": tensor for name, tensor in state_of(source).items()}
    torch.save(state, source / "pytorch_model.bin")
    assert assert_converts_to(expected, source, tmp_path)["repository"]["prefix"] == "roberta."


def test_two_networks_in_a_file_are_refused(source, tmp_path):
    state = state_of(source)
    torch.save(
        {**{f"student.{n}": t for n, t in state.items()}, **{f"teacher.{n}": t for n, t in state.items()}},
        source / "pytorch_model.bin",
    )
    message = refusal(source, tmp_path)
    assert "several networks ('student.', 'teacher.')" in message
    assert "save_pretrained()" in message


def test_a_head_that_is_no_part_of_the_network_is_refused(source, tmp_path):
    """self.bert = AutoModel...; self.classifier = Linear(...): what it sees is in code."""
    state = {
        name.replace("roberta.", "bert."): tensor
        for name, tensor in state_of(source).items()
        if not name.startswith("classifier")
    }
    torch.save({**state, "classifier.weight": torch.ones(3, 32)}, source / "pytorch_model.bin")
    message = refusal(source, tmp_path)
    assert "tensors beside the network 'bert.'" in message
    assert "(classifier.weight)" in message


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.roberta.encoder.layer.0.attention.self.query.lora_A.default.weight",
        "base_model.model.roberta.encoder.layer.0.attention.self.query.base_layer.weight",
        "base_model.model.classifier.modules_to_save.default.dense.weight",
        "roberta.encoder.layer.0.attention.self.query.lora_magnitude_vector",
    ],
)
def test_an_adapter_among_the_weights_is_refused(source, tmp_path, name):
    state = {f"base_model.model.{key}": tensor for key, tensor in state_of(source).items()}
    torch.save({**state, name: torch.ones(2, 32)}, source / "pytorch_model.bin")
    message = refusal(source, tmp_path)
    assert f"adapter of PEFT that is not merged into the network ({name})" in message
    assert "merge_and_unload()" in message


# Checkpoints of trainers


def lightning(state: State, **others: Any) -> dict[str, Any]:
    return {
        "epoch": 3,
        "global_step": 1000,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {f"model.{name}": tensor for name, tensor in state.items()},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-5}]}],
        "lr_schedulers": [],
        "callbacks": {"Callback": Callback(), "ModelCheckpoint{'monitor': 'loss'}": {"best": torch.tensor(0.5)}},
        "hyper_parameters": {"loss": torch.nn.CrossEntropyLoss(), "model": "roberta-base"},
        **others,
    }


@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_of_lightning_is_read_and_what_is_beside_the_weights_is_not(source, expected, tmp_path, legacy):
    checkpoint = lightning(state_of(source))
    checkpoint["state_dict"]["criterion.weight"] = torch.ones(3)
    torch.save(checkpoint, source / "last.ckpt", _use_new_zipfile_serialization=not legacy)
    conversion = assert_converts_to(expected, source, tmp_path)
    repository = conversion["repository"]
    assert (conversion["checkpoint_file"], repository["entry"], repository["prefix"]) == (
        "last.ckpt", "state_dict", "model.",
    )  # fmt: skip
    assert set(repository["entries not read"]) == checkpoint.keys() - {"state_dict"}
    assert conversion["tensors"]["criterion.weight"] == "of a loss"


@pytest.mark.parametrize("entry", ["model_state_dict", "model", "module", "net"])
def test_a_state_dict_is_found_whatever_its_entry_is_called(source, expected, tmp_path, entry):
    checkpoint = {entry: state_of(source), "loss": torch.tensor(0.1), "optimizer": {"state": {}}, "epoch": 1}
    torch.save(checkpoint, source / "pytorch_model.bin")
    assert assert_converts_to(expected, source, tmp_path)["repository"]["entry"] == entry


def test_several_state_dicts_are_refused(source, tmp_path):
    state = state_of(source)
    torch.save({"model": state, "ema": dict(state)}, source / "pytorch_model.bin")
    assert "pytorch_model.bin has several state dicts (model, ema)" in refusal(source, tmp_path)


def test_a_class_of_the_user_is_an_error_only_where_it_is_read(source, expected, tmp_path):
    state = state_of(source)
    torch.save({"state_dict": state, "trainer": Callback()}, source / "pytorch_model.bin")
    assert_converts_to(expected, source, tmp_path)
    name = "classifier.dense.bias"
    torch.save({"state_dict": {**state, name: Callback()}}, source / "pytorch_model.bin")
    message = refusal(source, tmp_path)
    assert f"{name} is no tensor: it requests tests.test_weights.Callback" in message
    assert "none of its code was run" in message


def test_a_pickled_model_is_refused_by_its_class(source, tmp_path):
    model = transformers.RobertaModel(transformers.RobertaConfig.from_pretrained(source))
    state_of(source)
    torch.save(model, source / "pytorch_model.bin")
    message = refusal(source, tmp_path)
    assert "pytorch_model.bin: it requests transformers.models.roberta.modeling_roberta.RobertaModel" in message


# Files


@pytest.mark.parametrize("name", ["best.pt", "model.pt", "weights.safetensors", "pytorch_model_v2.bin", "a.pth"])
def test_the_only_weights_file_is_the_model_whatever_its_name_is(source, expected, tmp_path, name):
    state = state_of(source)
    save_file(state, source / name) if name.endswith("safetensors") else torch.save(state, source / name)
    for other in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "random_states_0.pkl"):
        torch.save({"state": {}}, source / other)
    assert assert_converts_to(expected, source, tmp_path)["checkpoint_file"] == name


def test_several_weights_files_are_refused_and_one_that_is_named_is_taken(source, expected, tmp_path):
    state = state_of(source)
    torch.save(state, source / "epoch_1.pt")
    torch.save({name: tensor + 1 for name, tensor in state.items()}, source / "epoch_2.pt")
    assert "several files that may be the model (epoch_1.pt, epoch_2.pt); name one of them as the source" in refusal(
        source, tmp_path
    )
    assert_converts_to(expected, source / "epoch_1.pt", tmp_path)
    directory = convert(source, tmp_path / "second", checkpoint_file="epoch_2.pt")
    assert (directory / "model.safetensors").read_bytes() != (expected / "model.safetensors").read_bytes()


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}])
@pytest.mark.parametrize("safe", [True, False])
def test_a_variant_is_read_if_there_is_nothing_else(source, tmp_path, options, safe):
    model = transformers.RobertaForSequenceClassification.from_pretrained(source).half()
    expected = convert(source, tmp_path / "expected", dtype="float16")
    state_of(source)
    model.save_pretrained(source, variant="fp16", safe_serialization=safe, **options)
    assert len(list(source.glob("*fp16*"))) == (1 if not options else len(list(source.glob("*-of-*"))) + 1)
    directory = convert(source, tmp_path / "converted")
    assert (directory / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
    assert not verify(directory, source).problems
    read = json.loads((directory / "conversion.json").read_text())["repository"]["read"]
    assert {path.name for path in source.glob("*fp16*")} <= set(read)
    if options:
        (index,) = source.glob("*.index.fp16.json")
        again = convert(index, tmp_path / "again")
        assert (again / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()


def test_of_one_variant_in_two_forms_safetensors_is_read(source, tmp_path):
    model = transformers.RobertaForSequenceClassification.from_pretrained(source).half()
    state_of(source)
    for safe in (False, True):
        model.save_pretrained(source, variant="fp16", safe_serialization=safe)
    directory = convert(source, tmp_path / "converted")
    assert json.loads((directory / "conversion.json").read_text())["checkpoint_file"] == "model.fp16.safetensors"


def test_a_fairseq_checkpoint_beside_a_configuration_of_transformers_is_still_fairseqs(plain, tiny_source, tmp_path):
    expected = convert(tiny_source, tmp_path / "expected")
    source = shutil.copytree(tiny_source, tmp_path / "source")
    shutil.copy(plain / "config.json", source)
    assert json.loads((convert(source, tmp_path / "converted") / "conversion.json").read_text())["kind"] == "fairseq"
    assert (tmp_path / "converted" / "config.json").read_text() == (expected / "config.json").read_text()


def without_config(source: Path) -> Path:
    (source / "config.json").unlink()
    return source


def tensorflow(source: Path) -> Path:
    state_of(source)
    (source / "tf_model.h5").write_bytes(b"x")
    return source


def runs(source: Path) -> Path:
    """What a Trainer leaves: models in folders."""
    for step in (500, 1000):
        shutil.copytree(source, source / f"checkpoint-{step}", ignore=lambda *_: ["checkpoint-500"])
    (source / "eval").mkdir()
    (source / "lora").mkdir()
    (source / "lora" / "adapter_config.json").write_text("{}")
    state_of(source)
    return source


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (without_config, ("found: model.safetensors", "no config.json", "copy its config.json")),
        (
            lambda s: without_config(s) / "model.safetensors",
            ("model.safetensors is a state dict of Transformers without a config.json",),
        ),
        (tensorflow, ("tf_model.h5 is TensorFlow's", "save_pretrained()")),
        (runs, ("in its folders checkpoint-1000, checkpoint-500, lora; name one of them",)),
    ],
)
def test_weights_that_are_not_read_are_named_with_what_to_do(
    source, tmp_path, change: Callable[[Path], Path], messages
):
    message = refusal(change(source), tmp_path)
    for each in messages:
        assert each in message


def test_a_state_dict_alone_says_that_its_configuration_is_missing(source, tmp_path):
    torch.save(state_of(source), source / "pytorch_model.bin")
    message = refusal(without_config(source) / "pytorch_model.bin", tmp_path)
    assert "a state dict of Transformers" in message
    assert "copy the config.json" in message


def test_a_checkpoint_that_changes_is_converted_again(source, tmp_path):
    """The cache's key covers weights by any name."""
    state = state_of(source)
    torch.save(state, source / "last.ckpt")
    first = cache.resolve(source, cache_dir=tmp_path / "cache")
    torch.save({name: tensor + 1 for name, tensor in state.items()}, source / "last.ckpt")
    second = cache.resolve(source, cache_dir=tmp_path / "cache")
    assert (first / "model.safetensors").read_bytes() != (second / "model.safetensors").read_bytes()


@pytest.mark.parametrize("kind", ["Transformer", "RoBERTa"])
def test_the_network_of_early_sentence_encoders_has_a_folder_of_its_own(plain, expected, tmp_path, kind):
    source = tmp_path / "source"
    shutil.copytree(plain, source / f"0_{kind}")
    (source / f"0_{kind}" / "sentence_roberta_config.json").write_text('{"max_seq_length": 20, "do_lower_case": true}')
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text('{"word_embedding_dimension": 32}')
    modules = [(f"0_{kind}", kind), ("1_Pooling", "Pooling")]
    (source / "modules.json").write_text(
        json.dumps([{"path": path, "type": f"sentence_transformers.models.{name}"} for path, name in modules])
    )
    assert_converts_to(expected, source, tmp_path)
    usage = json.loads((tmp_path / "converted" / "usage.json").read_text())
    assert usage["max_length"] == 20


def test_a_base_model_is_for_adapters(source, tmp_path):
    with pytest.raises(InputError, match="--base-model"):
        convert(source, tmp_path / "converted", base_model=source)


def test_a_head_that_the_configuration_does_not_name_is_told(source, tmp_path, caplog):
    """A trainer's own classifier beside a network whose config.json is that of a masked LM."""
    state = {name: tensor for name, tensor in state_of(source).items() if not name.startswith("classifier")}
    torch.save({**state, "classifier.weight": torch.ones(2, 32), "classifier.bias": torch.ones(2)}, source / "a.pt")
    convert(source, tmp_path / "converted")
    assert "config.json is that of a RobertaForSequenceClassification" in caplog.text
    assert "it is taken to classify tokens" in caplog.text
    assert "config.json names 3 labels, but the head has 2 classes" in caplog.text
