# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Integrated gradients
#
# Which tokens does a prediction depend on? Integrated gradients (Sundararajan et al., 2017) integrate the gradient of
# a score with respect to the embeddings, along the line from a baseline to the input. The attributions of all tokens
# add up to the difference between the two scores.

# %%
import jax
import jax.numpy as jnp
import numpy as np

import roberta_flax
from roberta_flax import forward

roberta = roberta_flax.load("roberta.large.mnli")
tokens = roberta.encode("A man is playing a guitar.", "Nobody is making music.")[None]
label = int(roberta.predict("mnli", tokens).argmax())

# %% [markdown]
# The score is a function of the embeddings: `inputs_embeds` takes the place of the rows of the table. The baseline has
# the embedding of `<mask>` in place of every token that is not special.

# %%
table = roberta.params["embeddings"]["token"]["embedding"]
is_special = np.isin(tokens, [roberta.tokenizer.bos_id, roberta.tokenizer.eos_id])
embeds, baseline = table[tokens], table[np.where(is_special, tokens, roberta.tokenizer.mask_id)]


def score(embeds):
    logits = forward.head_logits(
        roberta.params, tokens, head="mnli", inputs_embeds=embeds, config=roberta.config, numerics=roberta.numerics
    )
    return logits[0, label]


# %% [markdown]
# The integral, by Gauss-Legendre quadrature: 16 gradients, one after the other.

# %%
nodes, weights = np.polynomial.legendre.leggauss(16)
gradient = jax.jit(jax.grad(score))
points = [baseline + (1 + node) / 2 * (embeds - baseline) for node in nodes]
integral = sum(weight / 2 * gradient(point) for weight, point in zip(weights, points, strict=True))
attributions = ((embeds - baseline) * integral).sum(axis=-1)[0]

# %%
for token, value in zip(tokens[0].tolist(), attributions.tolist(), strict=True):
    print(f"{value:+.4f}  {roberta.tokenizer.token_text(token)!r}")

# %% [markdown]
# Completeness: they add up to the difference, within what the quadrature leaves.

# %%
difference = float(score(embeds) - score(baseline))
error = abs(float(attributions.sum()) - difference)
print(f"sum {float(attributions.sum()):.4f}, difference {difference:.4f}")
assert error < 0.05 * float(jnp.abs(attributions).sum())
