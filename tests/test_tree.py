"""Parameters are matched by their paths, in whatever form a tree comes."""

from __future__ import annotations

import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import FrozenDict, freeze
from flax.traverse_util import flatten_dict, unflatten_dict

import roberta_flax
from roberta_flax import HeadConfig, InputError, Numerics, RobertaConfig, forward, sharding
from roberta_flax.nn.quantize import quantize
from roberta_flax.nn.tree import flatten, to_dict
from roberta_flax.train import head_loss
from tests.params import random_params

# Twelve layers, so that "10" sorts before "2"; every layer differs from the others.
CONFIG = RobertaConfig(
    vocab_size=60, num_layers=12, hidden_size=16, num_heads=2, intermediate_size=24, max_positions=20,
    heads=(HeadConfig("mnli", 3, 16),),
)  # fmt: skip
TOKENS = np.array([[0, 5, 6, 7, 8, 2]], np.int32)


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG, deviation=0.4)


def logits(params, config=CONFIG):
    return np.asarray(forward.head_logits(params, TOKENS, head="mnli", config=config))


def with_integer_layers(tree):
    return {**tree, "layers": {int(number): layer for number, layer in tree["layers"].items()}}


def reversed_everywhere(tree):
    return {k: reversed_everywhere(tree[k]) if isinstance(tree[k], dict) else tree[k] for k in reversed(list(tree))}


def as_nnx_state(tree):
    return nnx.state(forward.network(tree, CONFIG, Numerics()))


FORMS = {
    "integer layers": with_integer_layers,
    "a list of layers": lambda tree: {**tree, "layers": [tree["layers"][str(i)] for i in range(12)]},
    "another order": reversed_everywhere,
    "FrozenDict": freeze,
    "nnx.State": as_nnx_state,
    "flatten_dict with a separator": lambda tree: unflatten_dict(flatten_dict(tree, sep="/"), sep="/"),
    "pickled": lambda tree: pickle.loads(pickle.dumps(jax.tree.map(np.asarray, tree))),  # noqa: S301
}


def assert_same_arrays(tree, expected):
    """Under the same names: what is computed of them is the same."""
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_tree_is_the_same_model(params, form, tmp_path):
    other, expected = FORMS[form](params), logits(params)
    np.testing.assert_array_equal(logits(other), expected)
    assert_same_arrays(quantize(other), quantize(params))
    mesh = sharding.mesh(jax.devices()[:1])
    placed, expected_places = (sharding.place(tree, CONFIG, mesh) for tree in (other, params))
    assert_same_arrays(placed, params)
    assert jax.tree.map(lambda x: x.sharding, placed) == jax.tree.map(lambda x: x.sharding, expected_places)
    for dtype in ("float32", "bfloat16"):
        assert_same_arrays(forward.operands(other, dtype), forward.operands(params, dtype))
    batch = {"tokens": TOKENS, "targets": np.array([1]), "weights": np.ones(1, np.float32)}
    losses = [float(head_loss("mnli", config=CONFIG)(tree, batch, None)[0]) for tree in (other, params)]
    assert losses[0] == losses[1]
    assert set(flatten(other)) == set(flatten(params))


@pytest.mark.slow
def test_a_tree_that_orbax_restored_without_a_template_is_the_same_model(params, tmp_path):
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "string keys", params)
        checkpointer.save(tmp_path / "integer keys", with_integer_layers(params))
        checkpointer.wait_until_finished()
        for name in ("string keys", "integer keys"):
            restored = jax.tree.map(np.asarray, checkpointer.restore(tmp_path / name))
            np.testing.assert_array_equal(logits(restored), logits(params))


def test_keys_are_strings_so_that_a_function_of_params_can_be_exported(params):
    assert all(isinstance(key, str) for path in flatten_dict(params) for key in path)
    function = jax.jit(lambda params, tokens: forward.features(params, tokens, config=CONFIG))
    exported = jax.export.export(function)(params, jax.ShapeDtypeStruct(TOKENS.shape, jnp.int32))
    assert len(exported.serialize()) > 1000


@pytest.mark.parametrize("form", ["FrozenDict", "nnx.State", "integer layers"])
def test_a_model_holds_and_saves_every_form(shallow, form, tmp_path):
    config = shallow.config
    forms = {**FORMS, "nnx.State": lambda tree: nnx.state(forward.network(tree, config, Numerics()))}
    model = roberta_flax.Roberta(config, forms[form](shallow.params), shallow.tokenizer)
    tokens = shallow.encode("A man.", "A dog.")
    np.testing.assert_array_equal(model.predict("mnli", tokens), shallow.predict("mnli", tokens))
    model.register_classification_head("new", num_classes=2, seed=0)
    model.save(tmp_path / "saved")
    saved = roberta_flax.load(tmp_path / "saved")
    np.testing.assert_array_equal(saved.predict("mnli", tokens), shallow.predict("mnli", tokens))


def change(tree, path, value):
    leaves = flatten(tree)
    if value is None:
        del leaves[path]
    else:
        leaves[path] = value
    return unflatten_dict(leaves, sep=".")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            lambda tree: change(tree, "layers.3.attention.key.bias", None),
            r"missing: layers\.3\.attention\.key\.bias \[16\]",
        ),
        (lambda tree: change(tree, "layers.3.more", np.ones(2)), r"unexpected: layers\.3\.more \[2\]"),
        (
            lambda tree: change(tree, "layers.3.attention.key.bias", np.ones(8)),
            r"wrong shape: layers\.3\.attention\.key\.bias is \[8\], expected \[16\]",
        ),
        (
            lambda tree: {**tree, "layers": {k: v for k, v in tree["layers"].items() if k != "11"}},
            r"missing: layers\.11\.",
        ),
        (
            lambda tree: {**tree, "layers": {str(int(k) + 1): v for k, v in tree["layers"].items()}},
            r"missing: layers\.0\..*unexpected: layers\.12\.",
        ),
        (lambda tree: [1, 2], "missing: "),
    ],
)
def test_a_tree_that_does_not_fit_is_one_line_with_its_paths(params, changed, message):
    for use in (logits, lambda tree: forward.features(tree, TOKENS, config=CONFIG)):
        with pytest.raises(InputError, match=message) as error:
            use(changed(params))
        assert "\n" not in str(error.value)


def test_another_number_of_layers_than_the_configurations_is_refused(params):
    import dataclasses

    for count in (11, 13):
        with pytest.raises(
            InputError,
            match=re.escape(f"layers.{min(count, 11) if count > 12 else 11}.") if count < 12 else "missing: layers",
        ):
            logits(params, dataclasses.replace(CONFIG, num_layers=count))


@pytest.mark.slow
def test_the_gradient_through_int8_is_that_of_float32_but_for_rounding(shallow):
    tokens = jnp.asarray(shallow.encode("A man is sleeping.", "Nobody is awake.")[None])

    def gradient(params):
        def score(table):
            embeddings = {**params["embeddings"], "token": {"embedding": table}}
            return forward.head_logits(
                {**params, "embeddings": embeddings}, tokens, head="mnli", config=shallow.config
            )[0, 0]

        @jax.jit
        def derivatives(table):
            return jax.jvp(score, (table,), (jnp.ones_like(table),))[1], jax.grad(score)(table)

        slope, gradient = derivatives(params["embeddings"]["token"]["embedding"])
        np.testing.assert_allclose(slope, gradient.sum(), rtol=1e-3, atol=1e-4)  # forward and reverse mode agree
        return np.asarray(gradient[tokens[0]])

    exact, rough = gradient(shallow.params), gradient(quantize(shallow.params))
    assert (exact * rough).sum() / np.linalg.norm(exact) / np.linalg.norm(rough) > 0.95


def test_threads_that_share_a_model_in_train_mode_draw_different_keys(shallow):
    from concurrent.futures import ThreadPoolExecutor

    shallow.train(seed=0)
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: jax.random.key_data(shallow._next_key()).tobytes(), range(200)))
    assert len(set(keys)) == 200


def test_what_is_no_tree_is_refused_by_name(params):
    with pytest.raises(InputError, match="expected a parameter tree .* got ndarray"):
        to_dict(np.ones(3))
    with pytest.raises(InputError, match="two keys of the same name: '3', 3"):
        to_dict({"layers": {"3": {}, 3: {}}})


def test_frozen_dicts_are_converted_whole():
    assert to_dict(FrozenDict({"a": {"b": 1}})) == {"a": {"b": 1}}
