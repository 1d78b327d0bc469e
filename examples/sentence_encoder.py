# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # A sentence encoder
#
# Contrastive fine-tuning with in-batch negatives: the texts of a pair should be closer to each other than to the texts
# of all other pairs. `roberta-flax train-encoder` does this for files; here it is a loop of your own.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import optax

import roberta_flax
from roberta_flax import SentenceEncoder, train
from roberta_flax.train.encoder_losses import SentenceLoss, sentence_encoder_loss

roberta = roberta_flax.load("roberta.base")
pairs = [
    ("A man is playing a guitar.", "Someone makes music."),
    ("Two dogs run in the grass.", "Animals are outside."),
    ("A woman slices an onion.", "Somebody is cooking."),
    ("The children are sleeping.", "The kids are in bed."),
]

# %% [markdown]
# A batch has the token ids of each pair, [batch, texts, time]. No text may be there twice: it would be its own
# negative.

# %%
sequences = [roberta.encode(text) for pair in pairs for text in pair]
tokens = roberta_flax.collate_tokens(sequences, roberta.config.pad_id, max_positions=roberta.max_positions)
batch = {"tokens": tokens.reshape(len(pairs), 2, -1)}

# %% [markdown]
# The loss pools the features by their mean. `matryoshka_dims` trains the first 16 values of a vector, too, and
# `mini_batch_size` encodes two pairs at a time, so that a batch of any size fits into memory.

# %%
loss = sentence_encoder_loss(
    SentenceLoss(matryoshka_dims=(roberta.config.hidden_size, 16)), config=roberta.config, mini_batch_size=2
)
step = train.make_train_step(loss, optax.adamw(1e-3), freeze=["embeddings", "lm_head", "heads"])
params = jax.tree.map(jnp.copy, roberta.params)
opt_state = step.init(params)
losses = []
for number in range(8):
    params, opt_state, metrics = step(params, opt_state, batch, jax.random.fold_in(jax.random.key(1), number))
    losses.append(float(metrics["loss"]))
print(" ".join(f"{value:.3f}" for value in losses))

# %% [markdown]
# A SentenceEncoder takes the trained parameters.

# %%
roberta.params = params
encoder = SentenceEncoder(roberta, truncate_dim=16)
first, second = (encoder.encode([pair[side] for pair in pairs]) for side in (0, 1))
similarities = encoder.similarity(first, second)
print(np.round(similarities, 2))
assert losses[-1] < losses[0]
