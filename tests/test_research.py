"""docs/research.md and examples/: what they show runs, and is so."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import roberta_flax
from roberta_flax import HeadConfig, InputError, Numerics, RobertaConfig, RobertaModel, forward, train
from tests.conftest import ROOT
from tests.params import random_params

PAGE = (ROOT / "docs" / "research.md").read_text(encoding="utf-8")
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
CONFIG = RobertaConfig(
    vocab_size=131, num_layers=1, hidden_size=24, num_heads=3, intermediate_size=40, max_positions=60,
    heads=(HeadConfig("mnli", 3, 24), HeadConfig("tags", 4, 0, kind="token")),
)  # fmt: skip
TOKENS = np.random.default_rng(1).integers(2, 131, (3, 9)).astype(np.int32)


@pytest.fixture
def params() -> Any:
    return random_params(CONFIG)


LAYERS_MATTER = {"custom_head", "probing_layers"}  # of these examples


@pytest.fixture
def loaded(monkeypatch):
    """Has a model loaded, whatever name is asked for."""

    def loaded(model: Path) -> None:
        roberta = roberta_flax.load(model)
        monkeypatch.setattr(roberta_flax, "load", lambda *name, **options: roberta)

    return loaded


@pytest.mark.slow
def test_the_page_on_research_runs_from_its_beginning_to_its_end(loaded, one_layer, tmp_path):
    loaded(one_layer)
    program = tmp_path / "research.py"
    program.write_text("\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)))
    names = runpy.run_path(str(program))
    np.testing.assert_allclose(names["features"], names["loaded"](names["tokens"]), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(example: Path, loaded, one_layer, tiny_directory):
    loaded(tiny_directory if example.stem in LAYERS_MATTER else one_layer)
    runpy.run_path(str(example))


# NNX


@pytest.fixture
def module(params) -> RobertaModel:
    return forward.network(params, CONFIG, Numerics())


@pytest.mark.slow
def test_a_module_in_train_mode_draws_dropout_from_its_rngs_and_none_in_eval_mode(module, params):
    features = forward.features(params, TOKENS, config=CONFIG)
    features_of = nnx.jit(lambda module: module(TOKENS))
    np.testing.assert_allclose(features_of(module), features, rtol=0, atol=1e-5)
    module.train(nnx.Rngs(dropout=3))
    one, other = features_of(module), features_of(module)
    assert (np.asarray(one) != np.asarray(other)).any()
    module.train(nnx.Rngs(dropout=3))
    np.testing.assert_array_equal(features_of(module), one)
    module.eval()
    np.testing.assert_allclose(features_of(module), features, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_nnx_optimizer_and_jit_take_the_step_that_optax_takes_of_a_tree(module, params):
    def loss(model: Any) -> jax.Array:
        return (model.head_logits("mnli", model(TOKENS)) ** 2).mean()

    @nnx.jit
    def step(module: RobertaModel, optimizer: nnx.Optimizer[RobertaModel]) -> None:
        optimizer.update(module, nnx.grad(loss)(module))

    step(module, nnx.Optimizer(module, optax.sgd(0.1), wrt=nnx.Param))
    of_tree = jax.jit(jax.grad(lambda p: (forward.head_logits(p, TOKENS, head="mnli", config=CONFIG) ** 2).mean()))
    expected = jax.tree.map(lambda p, g: np.asarray(p) - np.float32(0.1) * np.asarray(g), params, of_tree(params))
    features = forward.features(expected, TOKENS, config=CONFIG)
    # the state as it is, with integer numbers of layers
    found = forward.features(nnx.state(module, nnx.Param), TOKENS, config=CONFIG)
    np.testing.assert_allclose(found, features, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_values_inside_are_there_after_nnx_tabulate_too(module, params):
    """It leaves methods in classes, among them one that capturing the values would replace by a call of itself."""
    nnx.tabulate(module, TOKENS, depth=1)
    found = forward.intermediates(params, TOKENS[:2], names=["features"], config=CONFIG)
    np.testing.assert_allclose(found["features"], module(TOKENS[:2]), rtol=0, atol=1e-5)


def test_a_part_of_the_network_says_what_turns_its_dropout_on(module):
    with pytest.raises(InputError, match=r"call train\(\) of the RobertaModel, or pass key="):
        module.layers[0].train()


# loops


def test_batches_of_like_lengths_have_one_shape():
    lengths = {
        roberta_flax.collate_tokens([[0] * n, [0] * 3], max_positions=60).shape[1] for n in range(17, 49)
    }  # compiled once each
    assert lengths == {24, 32, 48}
    assert roberta_flax.collate_tokens([[0] * 50], max_positions=60).shape == (1, 60)
    with pytest.raises(InputError, match="61 tokens exceed the model's maximum length of 60"):
        roberta_flax.collate_tokens([[0] * 61], max_positions=60)


@pytest.mark.parametrize("head", ["mnli", "tags"])
def test_without_weights_all_items_count_but_padding(head, params):
    tokens = TOKENS.copy()
    tokens[0, 6:] = CONFIG.pad_id
    targets = np.array([0, 1, 2], np.int32) if head == "mnli" else (tokens % 4).astype(np.int32)
    weights = np.ones(3, np.float32) if head == "mnli" else (tokens != CONFIG.pad_id).astype(np.float32)
    loss, batch = train.head_loss(head, config=CONFIG), {"tokens": tokens, "targets": targets}
    evaluate = train.make_eval_step(loss)
    np.testing.assert_allclose(evaluate(params, batch), evaluate(params, {**batch, "weights": weights}), rtol=1e-6)


@pytest.mark.slow
def test_a_step_makes_the_state_of_what_it_trains_and_says_what_was_donated(params):
    optimizer = train.adam(1e-3, config=CONFIG)
    step = train.make_train_step(train.head_loss("mnli", config=CONFIG), optimizer, freeze=["embeddings"])
    state, batch = step.init(params), {"tokens": TOKENS, "targets": np.zeros(3, np.int32)}
    assert jax.tree.structure(state) == jax.tree.structure(train.init_optimizer(optimizer, params, ["embeddings"]))
    before = np.array(params["embeddings"]["token"]["embedding"])
    updated, state, _ = step(params, state, batch, jax.random.key(0))
    np.testing.assert_array_equal(updated["embeddings"]["token"]["embedding"], before)
    with pytest.raises(InputError, match="were donated to an earlier step, which has their memory: pass those that it"):
        step(params, state, batch, jax.random.key(1))
    step(jax.tree.map(jnp.copy, updated), state, batch, jax.random.key(1))
