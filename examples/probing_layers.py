# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Probing layers
#
# What does each layer know? A linear probe on the mean of each layer's features tells questions from statements. The
# network stays as it is; the probes are solved in closed form (ridge regression).

# %%
import jax
import jax.numpy as jnp
import numpy as np

import roberta_flax
from roberta_flax import forward

roberta = roberta_flax.load("roberta.base")
things = ["the dog", "a man", "the guitar", "her garden", "the book", "a child", "the train", "our house"]
texts = [f"Where is {thing}?" for thing in things] + [f"Here is {thing}." for thing in things]
labels = np.repeat([1.0, -1.0], len(things))

# %% [markdown]
# `intermediates` returns values inside the network by name. Here they are the outputs of all layers.

# %%
tokens = roberta_flax.collate_tokens([roberta.encode(text) for text in texts], roberta.config.pad_id)
names = ["embeddings.output", *(f"layers.{number}.output" for number in range(roberta.config.num_layers))]
found = forward.intermediates(roberta.params, tokens, names=names, config=roberta.config, numerics=roberta.numerics)
is_token = (tokens != roberta.config.pad_id)[..., None]
means = {name: (values * is_token).sum(axis=1) / is_token.sum(axis=1) for name, values in found.items()}

# %% [markdown]
# Leave one thing out, of both classes, fit on the others, and classify it.


# %%
@jax.jit
def held_out_scores(x):
    """The score of each text by the probe that was fitted without it and its twin."""
    thing = jnp.arange(len(texts)) % len(things)

    def of(number):
        fitted = (thing != number).astype(x.dtype)
        products = (x * fitted[:, None]) @ x.T * fitted[None, :]
        ridge = 0.1 * jnp.trace(x @ x.T) / len(texts) * jnp.eye(len(texts))
        weights = jnp.linalg.solve(products + ridge, labels * fitted) * fitted
        return x @ (x.T @ weights)

    scores = jax.vmap(of)(jnp.arange(len(things)))
    return scores[thing, jnp.arange(len(texts))]


accuracies = {}
for name, x in means.items():
    accuracies[name] = float((np.sign(held_out_scores(x - x.mean(axis=0))) == labels).mean())
    print(f"{name:20s} {accuracies[name]:.3f}")
assert all(0 <= accuracy <= 1 for accuracy in accuracies.values())
