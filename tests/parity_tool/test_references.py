"""The torch references agree with one another: the builtin one with fairseq, and with transformers."""

from __future__ import annotations

import numpy as np
import pytest

from roberta_flax import InputError
from roberta_flax.checkpoint import converted
from roberta_flax.convert import convert
from roberta_flax.parity import inputs, tensor_names
from roberta_flax.parity.rounding import rounding_of
from roberta_flax.parity.tensor_comparison import TensorStatistics, ValuePair
from roberta_flax.parity.torch_reference import TorchReference, make_torch_reference
from tests.parity import test_huggingface as huggingface
from tests.parity.test_huggingface import tokenizers  # noqa: F401  (a fixture)
from tests.parity.test_network import SMALL_VARIANTS
from tests.references import SMALL, build, random_tokens, torch, write

LENGTHS = [1, 2, 30, 77]
# tensors that fairseq and transformers do not expose
HIDDEN_IN_FAIRSEQ = ("attention.scores", "attention.weights", "attention.context")
HIDDEN_IN_TRANSFORMERS = ("attention.scores",)


def references(source, directory, library: str, gradients: bool) -> tuple[TorchReference, TorchReference, list[str]]:
    """The library's reference, the builtin one, and the names of all tensors."""
    config = converted.read_config(directory)
    tokens = random_tokens(LENGTHS, config.vocab_size)
    batches = inputs.batches_from_tokens([row[:length] for row, length in zip(tokens, LENGTHS, strict=True)], config)
    names = tensor_names.all_names(config, gradients)
    both = (make_torch_reference(source, directory, name, batches, names) for name in (library, "builtin"))
    return *both, names


def assert_same_values(library: TorchReference, builtin: TorchReference, directory, names: list[str]) -> set[str]:
    """Compares every tensor that both expose, within rounding in float64; returns the names of the others."""
    config, exposed = converted.read_config(directory), set()
    for number, (expected, actual) in enumerate(zip(library.evaluate(), builtin.evaluate(), strict=True)):
        deviations = actual.deviations(rounding_of("float64"))
        assert set(actual.values) == set(names)
        for name, values in expected.values.items():
            statistics = TensorStatistics(name, "float64")
            compared = tensor_names.compared_mask(name, actual.batch, config)
            statistics.add(
                ValuePair(name, number, actual.batch, actual.values[name], values, deviations[name], compared)
            )
            assert statistics.result().passed, statistics.result()
            assert statistics.result().reference_max > 0, name
            exposed.add(name)
    return set(names) - exposed


@pytest.mark.slow
@pytest.mark.parametrize("variant", SMALL_VARIANTS)
def test_builtin_reference_agrees_with_fairseq(variant, tmp_path, tiny_source):
    # where LayerNorm stands is seen between two layers, and the rest in one
    changes = {**SMALL, "encoder_layers": 2 if "norm" in variant else 1, **SMALL_VARIANTS[variant]}
    model = build(**changes, heads={"mnli": 3, "rte": 2, "stsb": 1}, dtype=torch.float64)
    source = write(model, tmp_path / "source", tiny_source)
    directory = convert(source, tmp_path / "converted")
    fairseq, builtin, names = references(source, directory, "fairseq", gradients=True)
    assert fairseq.description["parameters"] == builtin.description["parameters"] == "torch.load of the checkpoint"
    missing = assert_same_values(fairseq, builtin, directory, names)
    without_norm = changes.get("layernorm_embedding") is False or changes.get("architecture") == "roberta_prenorm"
    assert {name for name in missing if not name.endswith(HIDDEN_IN_FAIRSEQ)} == (
        {"embeddings.sum"} if without_norm else set()
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant", [name for name, (of, _) in huggingface.VARIANTS.items() if "XL" not in of and "Pre" not in of]
)
def test_builtin_reference_agrees_with_transformers(variant, tmp_path, tokenizers, sentencepiece_model):  # noqa: F811
    class_name, changes = huggingface.VARIANTS[variant]
    model = huggingface.build(class_name, huggingface.vocab_size(class_name, sentencepiece_model), **changes)
    source = huggingface.write(model, tmp_path / "source", tokenizers)
    directory = convert(source, tmp_path / "converted")
    transformers, builtin, names = references(source, directory, "transformers", gradients=False)
    assert transformers.description["parameters"] == "transformers' own files"
    assert builtin.description["parameters"] == "the converted model's"
    missing = assert_same_values(transformers, builtin, directory, names)
    assert all(name.endswith(HIDDEN_IN_TRANSFORMERS) for name in missing), missing


def test_checkpoint_and_converted_model_have_the_same_values(tiny_source, tiny_directory):
    config = converted.read_config(tiny_directory)
    names = tensor_names.all_names(config)
    batches = inputs.batches_from_tokens([[0, 5, 9, 2], [0, 2]], config)
    from_checkpoint, from_directory = (
        next(make_torch_reference(source, tiny_directory, "builtin", batches, names).evaluate())
        for source in (tiny_source, tiny_directory)
    )
    for name in names:
        np.testing.assert_array_equal(from_checkpoint.values[name], from_directory.values[name])


def test_description_and_log_say_if_torch_refuses_the_checkpoint(tmp_path, tiny_source, caplog):
    source = write(build(**SMALL), tmp_path / "source", tiny_source, "omegaconf")
    directory = convert(source, tmp_path / "converted")
    reference = make_torch_reference(source, directory, "builtin", [], [])
    assert reference.description["parameters"] == "the converted model's"
    assert "torch.load refuses" in caplog.text


def test_transformers_refuses_gradients_and_pre_norm_models(tmp_path, tiny_source, tiny_directory):
    config = converted.read_config(tiny_directory)
    with pytest.raises(InputError, match="cannot be the reference for gradients"):
        make_torch_reference(tiny_source, tiny_directory, "transformers", [], tensor_names.all_names(config, True))
    model = build(**{**SMALL, "architecture": "roberta_prenorm"})
    source = write(model, tmp_path / "source", tiny_source)
    directory = convert(source, tmp_path / "converted")
    with pytest.raises(InputError, match="transformers supports post-norm models only"):
        make_torch_reference(source, directory, "transformers", [], [])
