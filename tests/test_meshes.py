"""Meshes of every kind: explicit axes, a user's own names, jax.set_mesh around, jax.shard_map; eight devices and one."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from roberta_flax import InputError, forward, sharding
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from tests.params import random_params

# Runs in a process with eight CPU devices. In float64: devices add in another order, and nothing else differs.
PROGRAM = """
import json
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
jax.config.update("jax_enable_x64", True)
import roberta_flax
from roberta_flax import Numerics, forward, sharding, train
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from tests.params import random_params

config = RobertaConfig(
    vocab_size=600, num_layers=1, hidden_size=64, num_heads=4, intermediate_size=256, max_positions=62,
    heads=(HeadConfig("mnli", 3, 64),),
)
params = random_params(config, np.float64)
tokens = np.random.default_rng(0).integers(4, 600, (8, 24)).astype(np.int32)
options = {"config": config, "numerics": Numerics("float64")}
mesh = jax.make_mesh((4, 2), ("batch", "tp"))
auto = jax.make_mesh((4, 2), ("batch", "tp"), axis_types=(AxisType.Auto,) * 2)
assert mesh.axis_types == (AxisType.Explicit,) * 2
rules = sharding.rules(model="tp")

def report(name, found, expected):
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    print(json.dumps({"name": name, "difference": max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)}))

key = jax.random.key(1)

def results(params, tokens):
    return (
        forward.features(params, tokens, **options, key=key),
        forward.hidden_states(params, tokens, **options),
        forward.lm_logits(params, tokens, np.zeros((8, 2), np.int32), **options),
        forward.head_log_probs(params, tokens, head="mnli", **options),
        forward.pooled_features(params, tokens, pooling="mean", **options),
    )

def gradients(params, tokens, numerics=Numerics("float64")):
    of = lambda params: (forward.head_logits(params, tokens, head="mnli", config=config, numerics=numerics) ** 2).sum()
    return jax.grad(of)(params)

expected, expected_gradients = results(params, tokens), gradients(params, tokens)
placed = {on: sharding.place(params, config, on, rules=rules) for on in (mesh, auto)}
rows = {on: sharding.place_rows(tokens, on, "batch") for on in (mesh, auto)}
found = results(placed[mesh], rows[mesh])
assert all(x.sharding.spec[0] == "batch" for x in jax.tree.leaves(found))
report("explicit", found, expected)
with_gradients = jax.jit(gradients)(placed[mesh], rows[mesh])
report("gradients on explicit axes", with_gradients, expected_gradients)
same = jax.tree.map(lambda g, x: g.sharding.is_equivalent_to(x.sharding, x.ndim), with_gradients, placed[mesh])
assert all(jax.tree.leaves(same))
report("parameters alone on explicit axes", results(placed[mesh], tokens), expected)
with jax.set_mesh(mesh):
    report("within set_mesh, explicit", results(params, tokens), expected)
    report("arrays on another mesh than set_mesh's", results(placed[auto], rows[auto]), expected)
with jax.set_mesh(auto):
    report("within set_mesh, auto", results(params, tokens), expected)
    report("explicit arrays within another mesh's set_mesh", results(placed[mesh], rows[mesh]), expected)

# the module itself, evaluated and trained, and what it keeps of its random numbers
modules = [forward.network(tree, config, Numerics("float64")) for tree in (params, placed[mesh])]

@nnx.jit
def of_module(module, tokens):
    features = module(tokens)
    return features, module.lm_logits(features[:, 0]), module.head_logits("mnli", features)

def gradients_of_module(module, tokens):
    return nnx.grad(lambda module: (module.head_logits("mnli", module(tokens)) ** 2).sum())(module)

divided = of_module(modules[1], rows[mesh])
assert all(x.sharding.spec[0] == "batch" for x in divided)
report("module on explicit axes", divided, of_module(modules[0], tokens))
pair = [nnx.jit(gradients_of_module)(*each) for each in zip(modules, (tokens, rows[mesh]), strict=True)]
report("module's gradients on explicit axes", *(nnx.to_pure_dict(nnx.state(each)) for each in reversed(pair)))
for module in modules:
    module.train(nnx.Rngs(dropout=3))
call = nnx.jit(lambda module, tokens: module(tokens))
trained = [[call(module, of), call(module, of)] for module, of in zip(modules, (tokens, rows[mesh]), strict=True)]
assert float(jnp.abs(trained[0][0] - trained[0][1]).max()) > 1e-3
report("module in train mode on explicit axes", *reversed(trained))

whole = jax.make_mesh((8,), ("batch",))
everywhere = jax.device_put(params, NamedSharding(whole, P()))
for dtype in ("float64", "bfloat16"):
    numerics = Numerics(dtype)
    mapped = jax.shard_map(lambda p, t: gradients(p, t, numerics), mesh=whole, in_specs=(P(), P("batch")), out_specs=P())
    found = jax.jit(mapped)(everywhere, jax.device_put(tokens, NamedSharding(whole, P("batch"))))
    report(f"shard_map, {dtype}", found, gradients(params, tokens, numerics))

def updates(params, place_batch, accumulate, fully_sharded=False):
    optimizer = train.adam(1e-3, config=config, clip_norm=1.0)
    train_step = train.make_train_step(train.head_loss("mnli", **options), optimizer, accumulate=accumulate)
    opt_state = train.init_optimizer(optimizer, params)
    on = {str(x.sharding.device_set) for x in jax.tree.leaves((params, opt_state))}
    assert len(on) == 1, on  # which is where they are after a step too: it is compiled once
    for update in range(2):
        random, shape = np.random.default_rng(update), (accumulate, 8)[accumulate == 1:]
        batch = {
            "tokens": random.integers(4, 600, (*shape, 24)).astype(np.int32),
            "targets": random.integers(0, 3, shape).astype(np.int32),
            "weights": np.broadcast_to(np.array([1.0] * 7 + [0.0]), shape),
        }
        params, opt_state, metrics = train_step(params, opt_state, place_batch(batch), jax.random.key(update))
    return params, metrics["gradient_norm"]

def copy(params):  # what is placed may share memory with what it was placed from, and a step is given it for good
    return jax.tree.map(jnp.copy, params)

for accumulate in (1, 2):
    one = updates(copy(params), dict, accumulate)
    of_rows = lambda batch: sharding.place_batch(batch, mesh, axis=accumulate - 1, data="batch")
    divided = sharding.place(copy(params), config, mesh, rules=rules, fully_sharded=accumulate == 1, data="batch")
    report(f"updates on explicit axes, {accumulate}", updates(divided, of_rows, accumulate), one)
with jax.set_mesh(mesh):
    report("updates within set_mesh", updates(jax.device_put(copy(params), NamedSharding(mesh, P())), dict, 2), one)
    roberta = roberta_flax.load(TINY)
    inside = list(roberta_flax.Predictor(roberta, roberta_flax.Classify("mnli"))([("A man.", "A dog.")] * 5))
    one_row = np.asarray(roberta.predict("mnli", roberta.encode("A man.", "A dog.")))
report("load and Predictor within set_mesh", inside, [one_row[0]] * 5)
with jax.set_mesh(jax.make_mesh((1,), ("batch",))):
    few = list(roberta_flax.Predictor(roberta_flax.load(TINY), roberta_flax.Classify("mnli"))([("A man.", "A dog.")] * 5))
report("Predictor on all devices within a mesh of one", few, inside)
"""

CONFIG = RobertaConfig(
    vocab_size=600, num_layers=1, hidden_size=32, num_heads=4, intermediate_size=64, max_positions=62,
    heads=(HeadConfig("mnli", 3, 32),),
)  # fmt: skip


@pytest.mark.slow
def test_eight_devices_agree_with_one_on_meshes_of_every_kind(eight_devices, tiny_directory):
    lines = eight_devices(PROGRAM.replace("TINY", repr(str(tiny_directory)))).splitlines()
    found = {line["name"]: line["difference"] for line in map(json.loads, lines)}
    assert len(found) == 17
    in_16_bits = found.pop("shard_map, bfloat16")
    # each device's gradients are those of its rows: sums of float32 in another order, beside gradients of size one
    assert in_16_bits < 1e-4
    # float64, but for the last two, in float32: of each text in another row of another batch
    bounds = {"load and Predictor within set_mesh": 1e-5, "Predictor on all devices within a mesh of one": 1e-5}
    assert {name: difference for name, difference in found.items() if difference > bounds.get(name, 1e-9)} == {}


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG)


def test_arrays_on_a_mesh_of_explicit_axes_give_the_same_result_divided_as_the_tokens(params):
    mesh = jax.make_mesh((1,), ("batch",))
    tokens = np.random.default_rng(0).integers(4, 600, (2, 9)).astype(np.int32)
    placed = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    rows = sharding.place_rows(tokens, mesh, "batch")
    features = forward.features(placed, rows, config=CONFIG)
    assert jax.typeof(features).sharding.spec == PartitionSpec("batch", None, None)
    np.testing.assert_allclose(features, forward.features(params, tokens, config=CONFIG), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "the mesh has the axes 'batch', 'tp', and not 'model'; name yours by rules="),
        ({"rules": sharding.rules("tp"), "fully_sharded": True}, "and not 'data'"),
        ({"rules": sharding.rules("tp"), "fully_sharded": True, "data": "rows"}, "and not 'rows'"),
    ],
)
def test_axes_that_a_mesh_does_not_have_are_refused_in_one_line(params, options, message):
    mesh = jax.make_mesh((1, 1), ("batch", "tp"))
    with pytest.raises(InputError, match=message):
        sharding.place(params, CONFIG, mesh, **options)


def test_rules_of_ones_own_divide_what_they_name(params):
    mesh = jax.make_mesh((1, 1), ("batch", "tp"))
    rules = ((r"layers\.\d+\.feed_forward\.output\.kernel", ("tp", None)),)
    placed = sharding.place(params, CONFIG, mesh, rules=rules)["layers"]["0"]["feed_forward"]
    assert placed["output"]["kernel"].sharding.spec == PartitionSpec("tp", None)
    assert placed["intermediate"]["kernel"].sharding.spec == PartitionSpec()
