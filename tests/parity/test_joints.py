"""What research code attaches to a network: embeddings in place of tokens, head masks, attention weights, values inside."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import roberta_flax
from roberta_flax import InputError, Numerics, forward
from tests.parity.test_huggingface import build, tokenizers, write  # noqa: F401 (a fixture)
from tests.parity.test_network import FLOAT64
from tests.references import random_tokens, torch

TOKENS = random_tokens([9, 14, 5], 581)
REAL = TOKENS != 1


@pytest.fixture(scope="module")
def theirs() -> Any:
    return build("RobertaForSequenceClassification", 581, type_vocab_size=2, num_labels=3)


@pytest.fixture(scope="module")
def ours(theirs, tmp_path_factory, tokenizers) -> Any:  # noqa: F811
    folder = write(theirs, tmp_path_factory.mktemp("joints"), tokenizers)
    with jax.enable_x64(True):
        return roberta_flax.load(folder, dtype="float64", param_dtype="float64")


def run(ours: Any, function: Any, *arrays: Any, **options: Any) -> Any:
    return function(ours.params, *arrays, config=ours.config, numerics=ours.numerics, **options)


def of_torch(theirs: Any, **inputs: Any) -> Any:
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in inputs.items()}
    with torch.no_grad():
        return theirs(**tensors, output_attentions=True, output_hidden_states=True)


def assert_same(found: Any, expected: Any, where: np.ndarray | None = None) -> None:
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    difference = np.abs(found - expected)
    assert (difference if where is None else difference[where]).max() < FLOAT64


@pytest.mark.usefixtures("x64")
def test_attention_weights_and_values_inside_are_transformers(theirs, ours):
    expected = of_torch(theirs, input_ids=np.int64(TOKENS), attention_mask=np.int64(REAL))
    weights = [f"layers.{i}.attention.weights" for i in range(3)]
    names = [*weights[:2], "layers.1.output", weights[2], f"heads.{ours.config.heads[0].name}.logits"]
    found = run(ours, forward.intermediates, TOKENS, names=names[::-1])
    assert [*found] == names  # in the order of computation
    for name, attention in zip(weights, expected.attentions, strict=True):
        assert_same(found[name], attention, np.repeat(REAL[:, None], 3, axis=1))
    assert_same(found["layers.1.output"], expected.hidden_states[2], REAL)
    assert_same(found[names[-1]], expected.logits)


@pytest.mark.usefixtures("x64")
def test_embeddings_in_place_of_tokens_token_types_and_head_masks_are_transformers(theirs, ours):
    """Transformers has sequential positions for embeddings; so have ours without tokens beside them."""
    random, head = np.random.default_rng(0), ours.config.heads[0].name
    embeds = random.standard_normal((3, 8, ours.config.hidden_size))
    types = random.integers(0, 2, (3, 8)).astype(np.int32)
    head_mask = random.uniform(0, 1, (3, 3))
    expected = of_torch(theirs, inputs_embeds=embeds, token_type_ids=np.int64(types), head_mask=head_mask)
    inputs = {"inputs_embeds": embeds, "token_types": types, "head_mask": head_mask}
    for found, wanted in zip(run(ours, forward.hidden_states, None, **inputs), expected.hidden_states, strict=True):
        assert_same(found, wanted)
    assert_same(run(ours, forward.features, None, **inputs), expected.hidden_states[-1])
    assert_same(run(ours, forward.head_logits, None, head=head, **inputs), expected.logits)
    of_rows = np.repeat(head_mask[:, None], 3, axis=1)
    assert_same(run(ours, forward.head_logits, None, head=head, **inputs | {"head_mask": of_rows}), expected.logits)
    pooled = run(ours, forward.pooled_features, None, pooling="mean", **inputs)
    assert_same(pooled, np.asarray(expected.hidden_states[-1]).mean(axis=1))


@pytest.mark.usefixtures("x64")
def test_tokens_that_none_attends_to_have_positions_and_features_as_in_transformers(theirs, ours):
    seen = REAL & (np.arange(TOKENS.shape[1]) % 3 != 1)
    expected = of_torch(theirs, input_ids=np.int64(TOKENS), attention_mask=np.int64(seen))
    found = run(ours, forward.features, TOKENS, attention_mask=seen)
    assert_same(found, expected.hidden_states[-1], REAL)
    assert not np.allclose(found[REAL], run(ours, forward.features, TOKENS)[REAL], atol=1e-3)
    with pytest.raises(InputError, match="attention_mask is for one sequence a row, and segments were given too"):
        run(ours, forward.features, TOKENS, np.zeros_like(TOKENS), attention_mask=seen)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_a_tokens_own_embedding_is_the_token(ours):
    """With the tokens beside it, which say what is padding; in the masked LM too, and in its gradient."""
    table = ours.params["embeddings"]["token"]["embedding"]
    embeds = table[TOKENS]
    with_tokens, with_embeds = ({}, {"inputs_embeds": embeds})
    for function, options in ((forward.features, {}), (forward.head_log_probs, {"head": ours.config.heads[0].name})):
        a, b = (run(ours, function, TOKENS, **options, **inputs) for inputs in (with_tokens, with_embeds))
        np.testing.assert_array_equal(a, b)

    def total(table: Any, inputs: dict[str, Any]) -> jax.Array:
        embeddings = {**ours.params["embeddings"], "token": {"embedding": table}}
        params = {**ours.params, "embeddings": embeddings}
        options = {"config": ours.config, "numerics": ours.numerics, "head": ours.config.heads[0].name}
        return forward.head_logits(params, TOKENS, **options, **inputs)[:, 0].sum()

    of_table = jax.grad(total)(table, {})
    of_embeds = jax.grad(lambda embeds: total(table, {"inputs_embeds": embeds}))(embeds)
    # a row of the table has the sum of its tokens' gradients
    np.testing.assert_allclose(jnp.zeros_like(table).at[TOKENS].add(of_embeds), of_table, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_the_first_layers_are_a_network_of_fewer(ours):
    params, config = forward.first_layers(ours.params, ours.config, 2)
    assert config.num_layers == 2
    states = run(ours, forward.hidden_states, TOKENS)
    features = forward.features(params, TOKENS, config=config, numerics=ours.numerics)
    np.testing.assert_array_equal(features, states[2])
    for count in (0, 4):
        with pytest.raises(InputError, match=f"the network has 3 layers; got {count}"):
            forward.first_layers(ours.params, ours.config, count)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"inputs_embeds": np.zeros((3, 14, 7))}, r"inputs_embeds must be \[3, 14, 36\] here, got \[3, 14, 7\]"),
        ({"token_types": np.zeros((3, 2), np.int32)}, r"token_types must be \[3, 14\] here, got \[3, 2\]"),
        ({"attention_mask": np.ones(14)}, r"attention_mask must be \[3, 14\] here, got \[14\]"),
        ({"head_mask": np.ones(3)}, r"head_mask must be \[3, 3\] or \[3, 3, 3\] here, got \[3\]"),
    ],
)
def test_inputs_of_other_shapes_are_refused_in_one_line(ours, inputs, message):
    with pytest.raises(InputError, match=message):
        forward.features(ours.params, TOKENS, config=ours.config, **inputs)


def test_token_types_that_a_model_does_not_have_are_refused_in_one_line(tiny):
    with pytest.raises(InputError, match="the model has 0 token types, so there are none to choose"):
        forward.features(tiny.params, TOKENS, config=tiny.config, token_types=np.zeros_like(TOKENS))


def test_nothing_instead_of_tokens_is_refused_in_one_line(tiny):
    with pytest.raises(InputError, match="give tokens or inputs_embeds, got neither"):
        forward.features(tiny.params, None, config=tiny.config)


def test_one_sequence_without_a_batch_axis_is_refused_in_one_line(tiny):
    with pytest.raises(
        InputError, match=r"tokens must be \[batch, time\], got \[4\]; pass one sequence as tokens\[None\]"
    ):
        forward.features(tiny.params, np.array([0, 5, 6, 2]), config=tiny.config)


def test_values_that_a_network_does_not_have_are_refused_in_one_line(tiny):
    with pytest.raises(InputError, match=r"no value is called 'layers.9.output'; this network's are embeddings.sum"):
        forward.intermediates(tiny.params, TOKENS, names=["layers.9.output"], config=tiny.config)
    with pytest.raises(InputError, match="names must be a list of names, got the text"):
        forward.intermediates(tiny.params, TOKENS, names="features", config=tiny.config)


@pytest.mark.slow
def test_a_gradient_with_respect_to_head_masks_is_the_difference_that_a_head_makes(tiny):
    """In bfloat16 too, and with remat: to first order."""
    tokens = tiny.encode("A man is sleeping.")[None]
    ones = np.ones((tiny.config.num_layers, tiny.config.num_heads), np.float32)

    def total(head_mask: Any, numerics: Numerics) -> jax.Array:
        options = {"head": "mnli", "config": tiny.config, "numerics": numerics, "head_mask": head_mask}
        return forward.head_logits(tiny.params, tokens, **options)[0, 0]

    exact, rough = (jax.grad(total)(ones, Numerics(dtype, remat=True)) for dtype in ("float32", "bfloat16"))
    step = np.zeros_like(ones)
    step[0, 1] = 1e-2
    quotient = (total(ones + step, Numerics()) - total(ones - step, Numerics())) / 2e-2
    assert exact[0, 1] == pytest.approx(float(quotient), rel=1e-2, abs=1e-4)
    np.testing.assert_allclose(rough, exact, rtol=0, atol=0.1 * float(np.abs(exact).max()))
