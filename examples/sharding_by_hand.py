# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Sharding by hand
#
# A mesh of your own, with axes of your own names. Its axes are Explicit, as `jax.make_mesh` makes them: the type of an
# array says how it is divided. All devices share the rows of a batch here; with more of them, give `tp` a size.

# %%
import jax
import numpy as np

import roberta_flax
from roberta_flax import forward, sharding

roberta = roberta_flax.load("roberta.large.mnli")
mesh = jax.make_mesh((jax.device_count(), 1), ("rows", "tp"))
params = sharding.place(roberta.params, roberta.config, mesh, rules=sharding.rules(model="tp"))
print(jax.typeof(params["layers"]["0"]["attention"]["query"]["kernel"]))

# %%
texts = [f"There are {number} dogs in the garden." for number in range(2 * jax.device_count())]
tokens = roberta_flax.collate_tokens([roberta.encode(text) for text in texts], roberta.config.pad_id)
placed = sharding.place_rows(tokens, mesh, data="rows")
log_probs = forward.head_log_probs(params, placed, head="mnli", config=roberta.config, numerics=roberta.numerics)
print(jax.typeof(log_probs))
np.testing.assert_allclose(log_probs, roberta.predict("mnli", tokens), atol=1e-4)

# %% [markdown]
# `jax.shard_map` runs a function on each device's part alone.

# %%
P = jax.sharding.PartitionSpec
whole = jax.device_put(roberta.params, jax.sharding.NamedSharding(mesh, P()))
of_part = jax.shard_map(
    lambda params, tokens: forward.features(params, tokens, config=roberta.config),
    mesh=mesh, in_specs=(P(), P("rows")), out_specs=P("rows"),
)  # fmt: skip
print(jax.typeof(of_part(whole, placed)))
