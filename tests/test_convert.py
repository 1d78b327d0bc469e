"""What the converter refuses, each in one line, with nothing executed and nothing left behind."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import errno
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import uuid
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import roberta_flax
from roberta_flax import CheckpointError, DownloadError, InputError
from roberta_flax.convert import convert, torch_file, verify
from roberta_flax.convert.names import (
    TABLE,
    from_fairseq,
    from_huggingface,
    localize_huggingface,
    modernize_huggingface,
    to_fairseq,
    to_huggingface,
)
from roberta_flax.nn.tree import flatten
from tests.random_model import config, files, state_dict

torch = pytest.importorskip("torch")


@pytest.fixture
def source(tiny_source: Path, tmp_path: Path) -> Path:
    """A copy of the random model's directory, to spoil."""
    return Path(shutil.copytree(tiny_source, tmp_path / "source"))


def load_trusted(path: Path) -> dict:
    return torch.load(path, weights_only=False)


def refused(source: Path, tmp_path: Path, **options) -> str:
    """The one line with which conversion is refused."""
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError) as error:
        convert(source, tmp_path / "converted", **options)
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.iterdir()) == before, "something was left behind"
    return str(error.value)


def test_a_text_file_called_model_pt(source, tmp_path):
    (source / "model.pt").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "is not a PyTorch checkpoint: it begins with b'version http'" in refused(source, tmp_path)


def test_an_empty_file(source, tmp_path):
    (source / "model.pt").write_bytes(b"")
    assert "is empty" in refused(source, tmp_path)


@pytest.mark.parametrize("zip_format", [False, True])
@pytest.mark.parametrize("share", [0.0005, 0.01, 0.5, 0.999])
def test_a_file_cut_short_anywhere(source, tmp_path, zip_format, share):
    model = source / "model.pt"
    torch.save(load_trusted(model), model, _use_new_zipfile_serialization=zip_format)
    content = model.read_bytes()
    model.write_bytes(content[: int(len(content) * share)])
    message = refused(source, tmp_path)
    assert "cut short" in message or "damaged" in message


def test_bytes_changed_at_random_are_refused_or_change_only_values(source, tmp_path):
    model, generate = source / "model.pt", np.random.default_rng(0)
    content, messages = bytearray(model.read_bytes()), []
    for number in range(60):
        spoiled = bytearray(content)
        for position in generate.integers(0, 6000, 3):  # the pickle is at the front
            spoiled[position] = generate.integers(0, 256)
        model.write_bytes(spoiled)
        try:
            convert(source, tmp_path / f"converted{number}")
        except CheckpointError as error:
            messages.append(str(error))
    assert messages
    assert not any("\n" in message for message in messages)


class Hostile:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zip_format", [False, True])
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, ".system"), (subprocess.Popen, ".Popen"), (eval, ".eval"),
        (getattr, ".getattr"), (shutil.rmtree, "shutil.rmtree"), (torch.load, "torch"), (__import__, "__import__"),
    ],
)  # fmt: skip
def test_a_pickle_that_calls_something_is_refused_by_name_and_nothing_runs(
    source, tmp_path, function, name, zip_format
):
    proof = tmp_path / "source" / "it-ran"
    command = f"touch {proof}" if function is not eval else f"open({str(proof)!r}, 'w')"
    checkpoint = load_trusted(source / "model.pt")
    checkpoint["extra_state"] = Hostile(function, command)
    torch.save(checkpoint, source / "model.pt", _use_new_zipfile_serialization=zip_format)
    message = refused(source, tmp_path)
    assert name in message
    assert "none of its code was run" in message
    assert not proof.exists()


def test_a_class_that_pretends_to_be_fairseqs_is_inert(tmp_path):
    """An allowed package's name runs nothing either: no module of that name is imported."""
    raw = b"\x80\x02cfairseq.evil\nrun\n(U\x04argstR}U\x01xU\x01ysb."  # fairseq.evil.run('args'), then state {'x': 'y'}
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("m/data.pkl", raw)
    record = torch_file.load(tmp_path / "m.pt")
    assert isinstance(record, torch_file.Record)
    assert (record.class_name, record.arguments, record.state) == ("fairseq.evil.run", ("args",), {"x": "y"})
    assert "fairseq.evil" not in sys.modules


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [(0, (9,), (1,)), (5, (2, 2), (2, 1)), (0, (2, 2), (-1, 1)), (0, (1 << 40,), (1,))],
)
def test_a_tensor_that_reaches_past_its_storage_is_refused(tmp_path, offset, shape, strides):
    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Storage(), offset, shape, strides, False, {})

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, "0", "cpu", 8) if isinstance(value, Storage) else None

    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        with archive.open("m/data.pkl", "w") as data:
            Pickler(data, 2).dump({"model": Tensor()})
        archive.writestr("m/data/0", bytes(32))
    with pytest.raises(CheckpointError, match="damaged"):
        torch_file.load(tmp_path / "m.pt")


def leftovers() -> dict:
    """What a trainer's state may hold beside a model: values, of classes that do nothing."""
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.expert = True
    return {
        "when": datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=1))),
        "day": datetime.date(2020, 1, 1), "recent": collections.deque([1, 2], 5), "slice": slice(1, 2), "id": uuid.UUID(int=1),
        "price": decimal.Decimal("1.5"), "set": {1, 2}, "frozen": frozenset([1]), "array": np.ones(3), "parameter": parameter,
        "dtypes": [torch.float16, torch.uint16, torch.complex64],
    }  # fmt: skip


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("zip_format", [False, True])
def test_leftovers_of_training_that_only_hold_values_are_inert(source, tmp_path, protocol, zip_format):
    checkpoint = {**load_trusted(source / "model.pt"), "extra_state": leftovers()}
    if protocol == 5:
        del checkpoint["extra_state"]["array"]  # a buffer of its own there
    torch.save(checkpoint, source / "model.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=zip_format)
    convert(source, tmp_path / "converted")
    state = torch_file.load(source / "model.pt")["extra_state"]
    assert isinstance(state["when"], torch_file.Record)
    assert (state["recent"].class_name, state["recent"].items) == ("collections.deque", [1, 2])
    assert (state["price"].class_name, state["price"].arguments) == ("decimal.Decimal", ("1.5",))
    assert (state["parameter"].read() == 1).all()
    assert list(torch_file.plain(state["frozen"])) == [1]


@pytest.mark.parametrize("zip_format", [False, True])
def test_tensors_in_dtypes_that_parameters_never_have_are_read_and_refused_as_parameters(source, tmp_path, zip_format):
    whole = torch.arange(12).reshape(3, 4)
    tensors = {
        "uint16": whole.to(torch.uint16), "uint32": whole.to(torch.uint32)[1:, ::2], "fp8": whole.to(torch.float8_e4m3fn).T,
        "e5m2": whole.to(torch.float8_e5m2), "complex": whole.to(torch.complex64), "complex128": whole.to(torch.complex128),
    }  # fmt: skip
    torch.save(tensors, tmp_path / "t.pt", _use_new_zipfile_serialization=zip_format)
    loaded = torch_file.load(tmp_path / "t.pt")
    for name, tensor in tensors.items():
        values = loaded[name].read()
        assert values.shape == tuple(tensor.shape)
        assert (values.astype(np.complex128) == tensor.to(torch.complex128).numpy()).all(), name
    (tmp_path / "t.pt").unlink()
    name = "decoder.sentence_encoder.layers.0.fc1.bias"
    for dtype in (torch.uint16, torch.float8_e4m3fn, torch.complex64):
        spoil(source, lambda checkpoint, dtype=dtype: checkpoint["model"].update({name: torch.ones(128).to(dtype)}))
        assert f"wrong dtype: {name} is {str(dtype).removeprefix('torch.')}, expected floating" in refused(
            source, tmp_path
        )


def test_strided_shared_and_empty_tensors_read_as_torch_reads_them(tmp_path):
    whole = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tensors = {
        "whole": whole, "transposed": whole.T, "part": whole[1:3, ::2], "empty": torch.zeros(0, 3), "number": torch.tensor(3.5),
        "half": whole.half(), "bfloat16": whole.bfloat16(), "long": whole.long(), "bool": whole > 3,
        "parameter": torch.nn.Parameter(whole.clone()), "expanded": torch.ones(1, 3).expand(5, 3),
    }  # fmt: skip
    for zip_format in (False, True):
        torch.save(tensors, tmp_path / "t.pt", _use_new_zipfile_serialization=zip_format)
        loaded = torch_file.load(tmp_path / "t.pt")
        for name, tensor in tensors.items():
            values = loaded[name].read()
            assert values.shape == tuple(tensor.shape)
            assert (values.astype(np.float32) == tensor.detach().float().numpy()).all(), name


@pytest.mark.parametrize("zip_format", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64])
def test_views_that_turn_the_sign_read_as_torch_reads_them(tmp_path, dtype, zip_format):
    """A negative view, a conjugate one, and the imaginary part of a conjugate, where a negative view comes from."""
    whole = torch.arange(12).reshape(3, 4)
    conjugate = torch.complex(whole.float(), whole.float() + 1).conj()
    assert conjugate.imag.is_neg()
    assert conjugate.is_conj()
    for view in (
        torch._neg_view(whole.to(dtype)[1:, ::2]),
        torch._neg_view(whole.to(dtype).T),
        conjugate,
        conjugate.imag,
    ):
        torch.save({"view": view}, tmp_path / "t.pt", _use_new_zipfile_serialization=zip_format)
        values = torch_file.load(tmp_path / "t.pt")["view"].read()
        expected = view.resolve_conj().resolve_neg()
        assert values.dtype.name == str(view.dtype).removeprefix("torch.")
        assert (values.astype(np.complex128) == expected.to(torch.complex128).numpy()).all()


def test_views_of_dtypes_without_a_storage_of_their_own_that_turn_the_sign(tmp_path):
    """torch._utils._rebuild_tensor_v3. torch itself cannot resolve such a view, so the values are worked by hand."""
    torch.save(torch._neg_view(torch.tensor([1, 2, 3]).to(torch.uint16)), tmp_path / "t.pt")
    assert torch_file.load(tmp_path / "t.pt").read().tolist() == [65535, 65534, 65533]


def test_a_weight_that_is_a_negative_view_is_converted_with_its_sign(source, tmp_path):
    name, path = "decoder.sentence_encoder.layers.0.fc1.bias", "layers.0.feed_forward.intermediate.bias"
    values = torch.arange(1, 129, dtype=torch.float32)
    spoil(source, lambda checkpoint: checkpoint["model"].update({name: torch._neg_view(values)}))
    directory = convert(source, tmp_path / "converted")
    assert (load_file(directory / "model.safetensors")[path] == -values.numpy()).all()


def spoil(source: Path, change) -> None:
    checkpoint = load_trusted(source / "model.pt")
    change(checkpoint)
    torch.save(checkpoint, source / "model.pt")


def test_all_missing_unknown_and_misshapen_tensors_are_listed_together(source, tmp_path):
    def change(checkpoint):
        model = checkpoint["model"]
        del model["decoder.sentence_encoder.layers.1.fc1.bias"]
        model["decoder.sentence_encoder.adapter.weight"] = torch.zeros(2, 2)
        model["decoder.sentence_encoder.layers.0.fc2.weight"] = torch.zeros(64, 7)
        model["decoder.lm_head.dense.weight"] = torch.zeros(64)

    spoil(source, change)
    message = refused(source, tmp_path)
    assert "missing: layers.1.feed_forward.intermediate.bias [128]" in message
    assert "unknown: decoder.sentence_encoder.adapter.weight [2, 2]" in message
    assert "wrong shape: layers.0.feed_forward.output.kernel is [7, 64], expected [128, 64]" in message
    assert "wrong shape: decoder.lm_head.dense.weight is [64]" in message


def test_what_is_missing_is_listed_whole_when_sizes_are_read_from_it(source, tmp_path):
    def change(checkpoint):
        for name in ("embed_positions.weight", "layers.0.fc1.weight", "layers.1.fc2.bias"):
            del checkpoint["model"][f"decoder.sentence_encoder.{name}"]

    spoil(source, change)
    message = refused(source, tmp_path)
    assert message.endswith(
        "does not fit a RoBERTa: missing: embeddings.position.embedding [514, 64]; "
        "missing: layers.0.feed_forward.intermediate.kernel [64, 128]; missing: layers.1.feed_forward.output.bias [64]"
    )


def test_fewer_layers_than_the_arguments_say(source, tmp_path):
    spoil(source, lambda checkpoint: setattr(checkpoint["args"], "encoder_layers", 3))
    assert "its arguments declare 3 layers, but it has 2" in refused(source, tmp_path)


def test_layers_that_the_arguments_keep_of_a_deeper_network(source, tmp_path):
    spoil(source, lambda checkpoint: vars(checkpoint["args"]).update(encoder_layers=12, encoder_layers_to_keep="0,5"))
    assert roberta_flax.load(convert(source, tmp_path / "converted")).config.num_layers == 2


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zip_format", [False, True])
def test_every_pickle_protocol_and_numpys_numbers_are_read(source, tmp_path, protocol, zip_format):
    checkpoint = load_trusted(source / "model.pt")
    vars(checkpoint["args"]).update(encoder_attention_heads=np.int64(4), dropout=np.float64(0.25), seed=np.float32(1))
    torch.save(checkpoint, source / "model.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=zip_format)
    config = roberta_flax.load(convert(source, tmp_path / "converted")).config
    assert (config.num_heads, config.dropout) == (4, 0.25)


def test_a_tensor_that_is_stretched_from_one_number_is_not_unrolled(source, tmp_path):
    def change(checkpoint):
        name = "decoder.sentence_encoder.embed_positions.weight"
        checkpoint["model"][name] = torch.zeros(1, 1).expand(1 << 40, 64)

    spoil(source, change)
    assert "larger than its file: decoder.sentence_encoder.embed_positions.weight" in refused(source, tmp_path)


def test_an_lm_head_that_is_not_the_embedding_it_is_said_to_be(source, tmp_path):
    def change(checkpoint):
        checkpoint["model"]["decoder.lm_head.weight"] = checkpoint["model"]["decoder.lm_head.weight"] + 1

    spoil(source, change)
    assert "differs from encoder.sentence_encoder.embed_tokens.weight" in refused(source, tmp_path)


@pytest.mark.parametrize(
    "argument", [{"encoder_learned_pos": False}, {"adaptive_input": True}, {"no_scale_embedding": False}]
)
def test_arguments_that_mean_another_network(source, tmp_path, argument):
    spoil(source, lambda checkpoint: vars(checkpoint["args"]).update(argument))
    assert next(iter(argument)) in refused(source, tmp_path)


@pytest.mark.parametrize("name", ["sentence_encoder.embed_tokens", "sentence_encoder.embed_positions", "lm_head.dense"])
@pytest.mark.parametrize("shape", [(), (64,), (2, 2, 2)])
def test_a_tensor_with_another_number_of_axes(source, tmp_path, name, shape):
    def change(checkpoint):
        checkpoint["model"][f"decoder.{name}.weight"] = torch.zeros(shape)
        del checkpoint["model"]["decoder.lm_head.weight"]

    spoil(source, change)
    assert "wrong shape" in refused(source, tmp_path)


@pytest.mark.parametrize(
    "argument",
    [
        {"encoder_layers": "many"}, {"dropout": "much"}, {"activation_fn": "swish"}, {"layernorm_embedding": "perhaps"},
        {"untie_weights_roberta": 2}, {"encoder_attention_heads": "${model.heads}"},
    ],
)  # fmt: skip
def test_arguments_that_make_no_sense(source, tmp_path, argument):
    spoil(source, lambda checkpoint: vars(checkpoint["args"]).update(argument))
    assert "arguments that do not describe a RoBERTa" in refused(source, tmp_path)


def test_what_the_tensors_tell_need_not_be_in_the_arguments(source, tmp_path):
    """OmegaConf's interpolations are not resolved; the position table and the layers are there to be counted."""
    interpolated = {"max_positions": "${task.tokens_per_sample}", "encoder_layers": "${model.layers}"}
    spoil(source, lambda checkpoint: vars(checkpoint["args"]).update(interpolated))
    config = roberta_flax.load(convert(source, tmp_path / "converted")).config
    assert (config.max_positions, config.num_layers) == (512, 2)


def test_arguments_that_say_true_or_false_in_words(source, tmp_path):
    words = {"encoder_normalize_before": "False", "layernorm_embedding": "true", "untie_weights_roberta": "False"}
    spoil(source, lambda checkpoint: vars(checkpoint["args"]).update({**words, "encoder_learned_pos": "True"}))
    config = roberta_flax.load(convert(source, tmp_path / "converted")).config
    assert (config.normalize_before, config.layernorm_embedding, config.tie_word_embeddings) == (False, True, True)


@pytest.mark.parametrize(
    ("architecture", "heads"),
    [("roberta_large", 16), ("xlm", 16), ("model_parallel_roberta_large", 16), ("my_roberta", None), (None, None)],
)
def test_attention_heads_that_are_not_said_are_the_architectures_or_unknown(source, tmp_path, architecture, heads):
    def change(checkpoint):
        del checkpoint["args"].encoder_attention_heads
        checkpoint["args"].arch = architecture

    spoil(source, change)
    if heads is None:
        assert "does not give the number of attention heads" in refused(source, tmp_path)
    else:
        assert roberta_flax.load(convert(source, tmp_path / "converted")).config.num_heads == heads


def test_names_that_all_have_dataparallels_prefix(source, tmp_path, tiny_directory):
    def change(checkpoint):
        checkpoint["model"] = {f"module.{name}": tensor for name, tensor in checkpoint["model"].items()}

    spoil(source, change)
    directory = convert(source, tmp_path / "converted")
    assert (directory / "model.safetensors").read_bytes() == (tiny_directory / "model.safetensors").read_bytes()
    assert all(
        name.startswith("module.") for name in json.loads((directory / "conversion.json").read_text())["tensors"]
    )


@pytest.mark.parametrize("value", [5, 0, "many", None])
def test_attention_heads_that_do_not_divide_the_width(source, tmp_path, value):
    spoil(source, lambda checkpoint: setattr(checkpoint["args"], "encoder_attention_heads", value))
    if value is None:  # the architecture's own number, 12, which does not divide 64
        value = 12
    assert str(value) in refused(source, tmp_path)


@pytest.mark.parametrize(
    ("architecture", "names"),
    [
        (
            "bart_large",
            ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "encoder.layers.0.fc1.weight"],
        ),
        ("transformer_wmt_en_de", ["encoder.embed_tokens.weight", "decoder.output_projection.weight"]),
    ],
)
def test_a_checkpoint_of_another_architecture_is_named(source, tmp_path, architecture, names):
    checkpoint = {
        "args": argparse.Namespace(arch=architecture),
        "model": {name: torch.zeros(2, 2) for name in names},
    }
    torch.save(checkpoint, source / "model.pt")
    assert f"contains a model of architecture '{architecture}', not a RoBERTa" in refused(source, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"), [({"weight": 1}, "not a fairseq checkpoint"), ([1], "not a fairseq checkpoint")]
)
def test_a_pytorch_file_that_is_no_fairseq_checkpoint(source, tmp_path, content, message):
    torch.save(content, source / "model.pt")
    assert message in refused(source, tmp_path)


def test_a_checkpoint_without_arguments(source, tmp_path):
    spoil(source, lambda checkpoint: checkpoint.pop("args"))
    assert "neither 'args' nor 'cfg'" in refused(source, tmp_path)


def test_a_zip_file_that_is_no_checkpoint(source, tmp_path):
    with zipfile.ZipFile(source / "model.pt", "w") as archive:
        archive.writestr("a.txt", "a")
    assert "zip file but not a PyTorch checkpoint" in refused(source, tmp_path)


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31m", "{i}", "{head}", "a}"])
def test_a_heads_name_that_is_not_printable_or_has_braces(source, tmp_path, name):
    def change(checkpoint):
        model = checkpoint["model"]
        checkpoint["model"] = {key.replace("_heads.mnli", f"_heads.{name}"): tensor for key, tensor in model.items()}

    spoil(source, change)
    assert "a head's name is printable and has no braces in it" in refused(source, tmp_path)


@pytest.mark.parametrize("content", [b"[1, 2]", b"\xff\xfe", b"{", b"[" * 100_000, b"{}", b'{"learning_rate": 1}'])
def test_a_config_json_of_something_else_beside_a_fairseq_checkpoint(source, tmp_path, content):
    (source / "config.json").write_bytes(content)
    convert(source, tmp_path / "of directory")
    convert(source / "model.pt", tmp_path / "of file")
    roberta_flax.load(source)
    (source / "model.pt").unlink()
    message = refused(source, tmp_path)
    assert "no model.pt in" in message if content.startswith(b"{") and len(content) > 1 else "config.json" in message


def test_a_checkpoint_of_another_name_is_verified_by_the_name_that_was_recorded_or_is_given(source, tmp_path):
    (source / "model.pt").rename(source / "best.pth")
    directory = convert(source, tmp_path / "converted", checkpoint_file="best.pth")
    assert not verify(directory, source).problems
    assert not verify(directory, source, checkpoint_file="best.pth").problems
    shutil.copy(source / "best.pth", source / "model.pt")
    assert not verify(directory, source, checkpoint_file="model.pt").problems
    with pytest.raises(CheckpointError, match=r"no other\.pth in"):
        verify(directory, source, checkpoint_file="other.pth")


def test_a_checkpoint_in_a_folder_of_its_directory(source, tmp_path, tiny_directory):
    (source / "sub").mkdir()
    (source / "model.pt").rename(source / "sub" / "best.pt")
    directory = convert(source, tmp_path / "converted", checkpoint_file="sub/best.pt")
    assert json.loads((directory / "conversion.json").read_text())["checkpoint_file"] == "sub/best.pt"
    assert not verify(directory, source).problems
    assert roberta_flax.load(source, checkpoint_file="sub/best.pt").config == roberta_flax.load(tiny_directory).config
    (source / "dict.txt").rename(source / "sub" / "dict.txt")
    with (source / "sub" / "dict.txt").open("a") as file:  # which a conversion in the cache is not of
        file.write("999999 1\n")
    with pytest.raises(CheckpointError, match="embeds 581 tokens but its dictionary has 582"):
        roberta_flax.load(source, checkpoint_file="sub/best.pt")


def test_no_dictionary(source, tmp_path):
    (source / "dict.txt").unlink()
    assert "no dict.txt in" in refused(source, tmp_path)


def test_a_dictionary_of_another_size(source, tmp_path):
    with (source / "dict.txt").open("a") as file:
        file.write("999999 1\n")
    assert "embeds 581 tokens but its dictionary has 582" in refused(source, tmp_path)


def test_no_such_source_and_no_such_checkpoint(source, tmp_path):
    assert "does not exist" in refused(tmp_path / "nowhere", tmp_path)
    assert "no best.pt in" in refused(source, tmp_path, checkpoint_file="best.pt")


def test_a_wrong_sha256(source, tmp_path):
    assert "expected abc" in refused(source, tmp_path, sha256="ABC")


def test_a_file_that_is_no_sentencepiece_model(source, tmp_path):
    (source / "encoder.json").unlink()
    (source / "sentencepiece.bpe.model").write_bytes(b"x")
    assert "sentencepiece.bpe.model is not a sentencepiece model" in refused(source, tmp_path)


def test_a_dictionary_of_words_asks_for_the_sentencepiece_model(source, tmp_path):
    (source / "encoder.json").unlink()
    (source / "dict.txt").write_text("\u2581le 5\n\u2581de 4\n")
    assert "put the model's sentencepiece.bpe.model" in refused(source, tmp_path)


def test_bpe_files_that_are_nowhere_say_what_to_put_where(source, tmp_path):
    (source / "encoder.json").unlink()
    with pytest.raises(DownloadError) as error:
        convert(source, tmp_path / "converted", cache_dir=tmp_path / "cache")
    assert str(tmp_path / "cache" / "gpt2_bpe") in str(error.value)
    assert "bpe_dir" in str(error.value)
    assert not (tmp_path / "converted").exists()
    assert "no encoder.json in" in refused(source, tmp_path, bpe_dir=tmp_path)


def test_bpe_files_and_dictionary_may_be_elsewhere(source, tmp_path):
    (tmp_path / "bpe").mkdir()
    for name in ("dict.txt", "encoder.json", "vocab.bpe"):
        shutil.move(source / name, tmp_path / "bpe" / name)
    convert(source / "model.pt", tmp_path / "converted", bpe_dir=tmp_path / "bpe")
    roberta_flax.load(tmp_path / "converted")


def test_a_destination_that_exists_is_left_as_it_is(tiny_source, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("precious")
    with pytest.raises(CheckpointError, match="exists already"):
        convert(tiny_source, tmp_path / "there")
    assert (tmp_path / "there" / "mine").read_text() == "precious"


def test_a_destination_that_cannot_be_written(tiny_source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        convert(tiny_source, tmp_path / "file" / "converted")


@pytest.mark.parametrize("kind", ["missing", "file", "too long", "zero byte"])
def test_a_bpe_dir_that_is_no_directory(kind, source, tiny_directory, tmp_path):
    (tmp_path / "file").write_text("")
    bpe_dir = str(tmp_path / {"too long": "a" * 300, "zero byte": "a\0b"}.get(kind, kind))
    for use in (
        lambda: convert(source, tmp_path / "converted", bpe_dir=bpe_dir),
        lambda: verify(tiny_directory, source, bpe_dir=bpe_dir),
        lambda: roberta_flax.load(source, bpe_dir=bpe_dir),
        lambda: roberta_flax.load(tiny_directory, bpe_dir=bpe_dir),
        lambda: roberta_flax.load_tokenizer(source, bpe_dir=bpe_dir),
    ):
        with pytest.raises(InputError, match="bpe_dir should be a directory with the tokenizer's files"):
            use()
    assert not (tmp_path / "converted").exists()


LONG = "n" * 300


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda source, folder: convert(folder / LONG, folder / "x"), "nnn... does not exist; expected a fairseq"),
        (lambda source, folder: convert(source, folder / LONG), "cannot write .*nnn: File name too long"),
        (lambda source, folder: convert(source, folder / "a\0b"), "cannot write .*: embedded null byte"),
        (lambda source, folder: convert(source, folder / "x", checkpoint_file=LONG), "no nnn.* in .*/source"),
        (lambda source, folder: roberta_flax.load(folder / LONG), "nnn' is neither a file or directory"),
        (lambda source, folder: roberta_flax.load(source, checkpoint_file=LONG), "cannot read .*nnn: File name too long"),
        (lambda source, folder: verify(folder / LONG, source), "nnn... is not a converted model"),
    ],
)  # fmt: skip
def test_names_that_are_too_long(source, tmp_path, use, message):
    with pytest.raises(CheckpointError, match=message) as error:
        use(source, tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["n" * 255, "é" * 127])
def test_a_directory_with_the_longest_name_loads(source, tmp_path, name):
    roberta_flax.load_tokenizer(source.rename(tmp_path / name), cache_dir=tmp_path / "cache")


def test_models_of_different_names_on_the_hub_have_different_places_in_the_cache(tiny_directory, tmp_path, monkeypatch):
    names = ["hf:a/b", "hf:a--b", "hf:a-/b", "hf:a/b@main", f"hf:a/{LONG}", f"hf:a/{LONG}1"]
    monkeypatch.setattr(
        "roberta_flax.convert.convert", lambda source, directory, **_: shutil.copytree(tiny_directory, directory)
    )
    for name in names:
        roberta_flax.load_tokenizer(name, cache_dir=tmp_path)
    assert len([path for path in (tmp_path / "converted").iterdir() if path.is_dir()]) == len(names)


@pytest.mark.parametrize("named", [True, False])
def test_what_cannot_be_read_or_written_is_what_is_named(source, tmp_path, monkeypatch, named):
    """Of a source, or of the destination: a disk that is full names no file."""
    fault = str(source / "dict.txt")
    error = (
        PermissionError(errno.EACCES, "Permission denied", fault) if named else OSError(errno.ENOSPC, "No space left")
    )

    def fail(*_):
        raise error

    monkeypatch.setattr(shutil, "copyfile", fail)
    expected = (
        f"cannot read or write {fault}: Permission denied"
        if named
        else f"cannot write {tmp_path / 'converted'}: No space"
    )
    assert refused(source, tmp_path).startswith(expected)
    if named:
        directory = tmp_path / "another"
        monkeypatch.undo()
        convert(source, directory)
        monkeypatch.setattr(shutil, "copyfile", fail)
        with pytest.raises(CheckpointError, match=f"cannot read {re.escape(fault)}: Permission denied"):
            verify(directory, source)


@pytest.mark.slow
def test_conversion_needs_no_torch(tiny_source, tiny_directory, tmp_path):
    """Where torch is not installed, the same files come out, byte for byte."""
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from roberta_flax.convert import convert\n"
        f"convert({str(tiny_source)!r}, {str(tmp_path / 'converted')!r})\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    for file in tiny_directory.iterdir():
        assert (tmp_path / "converted" / file.name).read_bytes() == file.read_bytes(), file.name


def test_conversion_json_accounts_for_every_tensor_of_the_source(tiny_source, tiny_directory):
    conversion = json.loads((tiny_directory / "conversion.json").read_text())
    state = load_trusted(tiny_source / "model.pt")["model"]
    assert set(conversion["tensors"]) == set(state)
    paths = [path for went in conversion["tensors"].values() if isinstance(went, list) for path in went]
    params = flatten(roberta_flax.load(tiny_directory).params)
    assert sorted(paths) == sorted(params)


def test_the_table_of_names_reads_the_same_in_every_direction():
    for row in TABLE:
        path = row.path.format(i=7, head="mnli")
        if row.fairseq is not None:
            name = row.fairseq.format(i=7, head="mnli")
            assert (from_fairseq(name).path, to_fairseq(path).path) == (path, name)
            assert from_fairseq(name).transform == to_fairseq(path).transform == row.transform
        if row.huggingface is not None:
            name, kind = row.huggingface.format(i=7), row.kind or "sentence"
            place = from_huggingface(name, ("mnli", kind), "mnli" if kind == "pooler" else None)
            back = to_huggingface(path, {"mnli": kind})
            assert (place.path, back.path) == (path, name)
            assert place.transform == back.transform == row.transform
    assert from_fairseq("encoder.sentence_encoder.layers.7.fc3.weight") is None
    assert from_huggingface("roberta.encoder.layer.7.crossattention.self.query.weight") is None


@pytest.mark.parametrize("model_type", ["roberta", "xlm-roberta-xl", "roberta-prelayernorm"])
def test_names_of_every_model_type_come_back(model_type):
    for row in TABLE:
        if row.huggingface is not None:
            name = row.huggingface.format(i=7)
            assert modernize_huggingface(localize_huggingface(name, model_type), model_type) == name


def test_the_random_model_is_what_its_script_writes(tiny_source):
    for name, content in files().items():
        assert (tiny_source / name).read_bytes() == content, name


def test_torch_reads_the_random_model(tiny_source):
    """Its file is written by us, in a format of torch's."""
    written = load_trusted(tiny_source / "model.pt")
    expected = state_dict(config(len(written["model"]["decoder.lm_head.bias"])))
    assert list(written["model"]) == list(expected)
    assert all(torch.equal(written["model"][name], tensor) for name, tensor in expected.items())
    tied = (written["model"][f"decoder.{name}.weight"] for name in ("lm_head", "sentence_encoder.embed_tokens"))
    assert len({tensor.data_ptr() for tensor in tied}) == 1
