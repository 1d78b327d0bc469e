"""The update on several devices: whichever way they share the work, the parameters come out as on one."""

from __future__ import annotations

import json

import pytest

# Runs in a process with eight CPU devices, in float64: devices add in another order, and nothing else differs.
PROGRAM = """
import json
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_enable_x64", True)
from roberta_flax.nn import sharding
from roberta_flax.nn.adapters import LoRA, joined
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from roberta_flax.nn.numerics import Numerics
from roberta_flax.train import adam, head_loss, init_optimizer, make_train_step
from tests.params import random_params

config = RobertaConfig(
    vocab_size=600, num_layers=1, hidden_size=64, num_heads=4, intermediate_size=256, max_positions=62,
    heads=(HeadConfig("mnli", 3, 64),),
)
params = random_params(config, np.float64)
lora = LoRA(4, 8, ("all-linear",), dropout=0.1, dora=True)
body = {name: part for name, part in params.items() if name != "heads"}
parts = {
    "network": (params, None),
    "adapters": (joined(lora.init(params, config, jax.random.key(1)), {"heads": params["heads"]}), body),
}

def updates(devices, tensor_parallel, fully_sharded, what):
    mesh = sharding.mesh(jax.devices()[:devices], tensor_parallel)

    def place(tree):
        return sharding.place(jax.tree.map(jnp.copy, tree), config, mesh, fully_sharded=fully_sharded)

    placed, frozen = (part and place(part) for part in parts[what])
    optimizer = adam(1e-3, config=config, clip_norm=1.0)
    settings = None if frozen is None else lora
    loss = head_loss("mnli", config=config, numerics=Numerics("float64"), lora=settings)
    train_step = make_train_step(loss, optimizer)
    opt_state = init_optimizer(optimizer, placed)
    shardings = jax.tree.map(lambda x: x.sharding, placed)
    for update in range(3):
        random = np.random.default_rng(update)
        batch = {
            "tokens": random.integers(4, 600, (8, 24)).astype(np.int32),
            "targets": random.integers(0, 3, 8).astype(np.int32),
            "weights": np.array([1.0] * 7 + [0.0]),
        }
        batch = {name: sharding.place_rows(array, mesh) for name, array in batch.items()}
        placed, opt_state, metrics = train_step(placed, opt_state, batch, jax.random.key(update), frozen)
    moments = opt_state[1].mean
    same = jax.tree.map(lambda s, x, m: s.is_equivalent_to(x.sharding, x.ndim) and s.is_equivalent_to(m.sharding, m.ndim),
                        shardings, placed, moments)
    assert all(jax.tree.leaves(same)), "the parameters or moments that came back are divided otherwise"
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves((placed, moments, frozen)))
    whole = sum(x.nbytes for x in jax.tree.leaves((placed, moments, frozen)))
    if frozen is not None:
        placed = lora.merge(frozen, placed)
    return jax.device_get(placed), held / whole

one = {what: updates(1, 1, False, what)[0] for what in parts}
for how in WAYS:
    several, share = updates(*how)
    differences = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), one[how[-1]], several)
    print(json.dumps({"how": how, "difference": max(jax.tree.leaves(differences)), "share": share}))
"""
# devices, tensor parallel, fully sharded, what is trained -> the share of parameters and moments that each device holds,
# at most: small ones, a third of so small a network, are whole on each unless tensor parallelism divides them
WAYS = {
    (8, 1, False, "network"): 1.0,
    (8, 1, True, "network"): 0.45,
    (8, 4, False, "network"): 0.5,
    (8, 2, True, "network"): 0.35,
    (8, 2, True, "adapters"): 0.5,
}


@pytest.fixture(scope="module")
def outcomes(eight_devices) -> dict[tuple, dict]:
    program = PROGRAM.replace("WAYS", repr([*WAYS]))
    lines = [json.loads(line) for line in eight_devices(program).splitlines() if line.startswith("{")]
    return {tuple(line["how"]): line for line in lines}


@pytest.mark.slow
@pytest.mark.parametrize("how", WAYS)
def test_devices_that_share_an_update_agree_with_one(how, outcomes):
    # float64, dropout on: the masks are one device's; sums of some thousand numbers in another order, and Adam's
    # division by moments that are as small as 1e-6
    assert outcomes[how]["difference"] <= 1e-9
    assert outcomes[how]["share"] <= WAYS[how]
