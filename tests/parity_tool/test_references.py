"""The torch references of a parity comparison agree with each other: the builtin one with fairseq, and with transformers."""

from __future__ import annotations

import numpy as np
import pytest

from roberta_flax import InputError
from roberta_flax.checkpoint import converted
from roberta_flax.convert import convert
from roberta_flax.parity import inputs, points
from roberta_flax.parity.comparison import PointSums, ValuePair
from roberta_flax.parity.rounding import rounding_of
from roberta_flax.parity.torch_side import TorchSide, torch_side
from tests.parity import test_huggingface as huggingface
from tests.parity.test_huggingface import tokenizers  # noqa: F401  (a fixture)
from tests.parity.test_network import SMALL_VARIANTS
from tests.references import SMALL, build, random_tokens, torch, write

LENGTHS = [1, 2, 30, 77]
# what fairseq's and transformers' attention do not show
FAIRSEQS_OWN = ("attention.scores", "attention.weights", "attention.context")
TRANSFORMERS_OWN = ("attention.scores",)


def sides(source, directory, reference: str, gradients: bool) -> tuple[TorchSide, TorchSide, list[str]]:
    config = converted.read_config(directory)
    tokens = random_tokens(LENGTHS, config.vocab_size)
    batches = inputs.of_tokens([row[:length] for row, length in zip(tokens, LENGTHS, strict=True)], config)
    names = points.all_points(config, gradients)
    both = (torch_side(source, directory, name, batches, names) for name in (reference, "builtin"))
    return *both, names


def assert_the_same(theirs: TorchSide, ours: TorchSide, directory, names: list[str]) -> set[str]:
    """Every value that both show, within what float64's rounding explains; the names of those that one does not."""
    config, shown = converted.read_config(directory), set()
    for number, (their, our) in enumerate(zip(theirs.observations(), ours.observations(), strict=True)):
        spreads = our.spreads(rounding_of("float64"))
        assert set(our.values) == set(names)
        for point, values in their.values.items():
            sums = PointSums(point, "float64")
            counted = points.counted(point, our.batch, config)
            sums.add(ValuePair(point, number, our.batch, our.values[point], values, spreads[point], counted))
            assert sums.result().passed, sums.result()
            assert sums.result().reference_max > 0, point
            shown.add(point)
    return set(names) - shown


@pytest.mark.parametrize("variant", SMALL_VARIANTS)
def test_the_builtin_reference_is_fairseqs_network(variant, tmp_path, tiny_source):
    changes = {**SMALL, **SMALL_VARIANTS[variant]}
    model = build(**changes, heads={"mnli": 3, "rte": 2, "stsb": 1}, dtype=torch.float64)
    source = write(model, tmp_path / "source", tiny_source)
    directory = convert(source, tmp_path / "converted")
    theirs, ours, names = sides(source, directory, "fairseq", gradients=True)
    assert theirs.description["parameters"] == ours.description["parameters"] == "torch.load of the checkpoint"
    missing = assert_the_same(theirs, ours, directory, names)
    without_norm = changes.get("layernorm_embedding") is False or changes.get("architecture") == "roberta_prenorm"
    assert {name for name in missing if not name.endswith(FAIRSEQS_OWN)} == (
        {"embeddings.sum"} if without_norm else set()
    )


@pytest.mark.parametrize(
    "variant", [name for name, (of, _) in huggingface.VARIANTS.items() if "XL" not in of and "Pre" not in of]
)
def test_the_builtin_reference_is_transformers_network(variant, tmp_path, tokenizers, sentencepiece_model):  # noqa: F811
    class_name, changes = huggingface.VARIANTS[variant]
    model = huggingface.build(class_name, huggingface.vocab_size(class_name, sentencepiece_model), **changes)
    source = huggingface.write(model, tmp_path / "source", tokenizers)
    directory = convert(source, tmp_path / "converted")
    theirs, ours, names = sides(source, directory, "transformers", gradients=False)
    assert theirs.description["parameters"] == "transformers' own files"
    assert ours.description["parameters"] == "the converted model's"
    missing = assert_the_same(theirs, ours, directory, names)
    assert all(name.endswith(TRANSFORMERS_OWN) for name in missing), missing


def test_a_converted_model_gives_what_its_checkpoint_gives(tiny_source, tiny_directory):
    names = points.all_points(converted.read_config(tiny_directory))
    batches = inputs.of_tokens([[0, 5, 9, 2], [0, 2]], converted.read_config(tiny_directory))
    of_checkpoint, of_directory = (
        next(torch_side(source, tiny_directory, "builtin", batches, names).observations())
        for source in (tiny_source, tiny_directory)
    )
    for name in names:
        np.testing.assert_array_equal(of_checkpoint.values[name], of_directory.values[name])


def test_a_checkpoint_that_torch_does_not_take_is_read_by_us_and_that_is_said(tmp_path, tiny_source, caplog):
    source = write(build(**SMALL), tmp_path / "source", tiny_source, "omegaconf")
    directory = convert(source, tmp_path / "converted")
    side = torch_side(source, directory, "builtin", [], [])
    assert side.description["parameters"] == "the converted model's"
    assert "torch.load does not take" in caplog.text


def test_what_a_reference_cannot_do_is_said_in_one_line(tmp_path, tiny_source, tiny_directory):
    config = converted.read_config(tiny_directory)
    with pytest.raises(InputError, match="gradients are compared with the builtin"):
        torch_side(tiny_source, tiny_directory, "transformers", [], points.all_points(config, True))
    model = build(**{**SMALL, "architecture": "roberta_prenorm"})
    source = write(model, tmp_path / "source", tiny_source)
    directory = convert(source, tmp_path / "converted")
    with pytest.raises(InputError, match="transformers is for post-norm models"):
        torch_side(source, directory, "transformers", [], [])
