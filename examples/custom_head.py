# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # A head and a loss of your own
#
# Contrastive fine-tuning: texts of a pair should be closer to each other than to other texts of the batch. The head is
# a projection of the mean of the features. The embeddings and the first layer stay frozen.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import optax

import roberta_flax
from roberta_flax import forward, train

roberta = roberta_flax.load("roberta.base")
pairs = [
    ("A man is playing a guitar.", "Someone makes music."),
    ("Two dogs run in the grass.", "Animals are outside."),
    ("A woman slices an onion.", "Somebody is cooking."),
    ("The children are sleeping.", "The kids are in bed."),
]

# %% [markdown]
# Texts are padded to one of a few lengths, so that few programs are compiled.


# %%
def collate(texts):
    sequences = [roberta.encode(text) for text in texts]
    return roberta_flax.collate_tokens(sequences, roberta.config.pad_id, max_positions=roberta.max_positions)


batch = {"tokens": np.stack([collate([pair[side] for pair in pairs]) for side in (0, 1)])}


# %%
def vectors(params, tokens, key):
    pooled = forward.pooled_features(params["body"], tokens, pooling="mean", config=roberta.config, key=key)
    projected = pooled @ params["projection"]
    return projected / jnp.linalg.norm(projected, axis=-1, keepdims=True)


def loss(params, batch, key):
    """The negative log-probability of a text's partner among all partners, at a temperature of 0.05."""
    keys = (None, None) if key is None else jax.random.split(key)
    left, right = (vectors(params, tokens, key) for tokens, key in zip(batch["tokens"], keys, strict=True))
    losses = optax.softmax_cross_entropy_with_integer_labels(left @ right.T / 0.05, jnp.arange(len(left)))
    return losses.sum(), jnp.float32(len(left))


# %% [markdown]
# The step donates what it is given, so it gets a copy of the model's parameters.

# %%
params = {
    "body": jax.tree.map(jnp.copy, roberta.params),
    "projection": jax.random.normal(jax.random.key(0), (roberta.config.hidden_size, 16)) * 0.1,
}
step = train.make_train_step(
    loss, optax.adamw(1e-3), freeze=["body.embeddings", r"body.layers\.0\.", "body.(lm_head|heads)"]
)
opt_state = step.init(params)
losses = []
for number in range(8):
    params, opt_state, metrics = step(params, opt_state, batch, jax.random.fold_in(jax.random.key(1), number))
    losses.append(float(metrics["loss"]))
print(" ".join(f"{value:.3f}" for value in losses))
assert min(losses[-2:]) < losses[0]
