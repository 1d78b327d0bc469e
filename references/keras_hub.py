"""KerasHub's RobertaBackbone on JAX: its features, and programs of it for TPUs that are not there.

Needs the extra "keras-hub". Keras takes its backend from KERAS_BACKEND when it is first imported; here that is JAX.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from references.tpu import HEAD, Program, Update

os.environ.setdefault("KERAS_BACKEND", "jax")

# Of the backbone. By default Keras computes in float32 and draws dropout of 0.1 when it trains. With dropout in the
# network, attention is computed step by step, in inference too; without, by jax.nn.dot_product_attention.
DEFAULT: dict[str, Any] = {}
BEST: dict[str, Any] = {"dtype": "bfloat16", "dropout": 0.0}
BEST_TO_TRAIN: dict[str, Any] = {"dtype": "mixed_bfloat16"}  # parameters and moments are float32


def features_function(directory: Path, **settings: Any) -> Callable[[Any], Any]:
    """Returns a jitted function of token ids without padding, int32 [batch, time], to features [batch, time, hidden].

    Args:
      directory: a Hugging Face model.
      settings: of the backbone, as above.
    """
    import keras_hub

    backbone = keras_hub.models.RobertaBackbone.from_preset(str(directory), **settings)
    run = jax.jit(_features(backbone))
    variables = _values(backbone)
    return lambda tokens: run(*variables, tokens)


def compiled(program: Program, settings: dict[str, Any], options: dict[str, Any] | None = None) -> jax.stages.Compiled:
    """Compiles the features or the head of a backbone of these settings, or an update, for one chip."""
    import keras
    import keras_hub

    config = program.config
    backbone = keras_hub.models.RobertaBackbone(
        vocabulary_size=config.vocab_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        hidden_dim=config.hidden_size,
        intermediate_dim=config.intermediate_size,
        max_sequence_length=config.max_positions,
        **settings,
    )

    def placed(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: program.placed(leaf.shape, leaf.dtype, PartitionSpec()), tree)

    if program.wanted == "features":
        lowered = jax.jit(_features(backbone)).lower(*placed(_values(backbone)), program.tokens())
        return lowered.compile(compiler_options=options)
    classifier = keras_hub.models.RobertaTextClassifier(backbone, num_classes=config.head(HEAD).num_classes)
    if not isinstance(program, Update):
        lowered = jax.jit(_features(classifier)).lower(*placed(_values(classifier)), program.tokens())
        return lowered.compile(compiler_options=options)
    classifier.compile(
        optimizer=keras.optimizers.AdamW(1e-5, weight_decay=0.1, beta_2=0.98, epsilon=1e-6),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    classifier.optimizer.build(classifier.trainable_variables)
    state = (
        *_values(classifier),
        [variable.value for variable in classifier.optimizer.variables],
        [variable.value for variable in classifier.metrics_variables],
    )
    batch = program.batch()
    inputs = _inputs(batch["tokens"], program.placed((program.rows, program.length), jnp.int32, PartitionSpec()))
    data = (inputs, batch["targets"], batch["weights"])
    # the function that Keras' fit compiles
    step = jax.jit(classifier.train_step, donate_argnums=0)
    return step.lower(placed(state), data).compile(compiler_options=options)


def _inputs(tokens: Any, mask: Any) -> dict[str, Any]:
    return {"token_ids": tokens, "padding_mask": mask}


def _values(model: Any) -> tuple[list[Any], list[Any]]:
    """The arrays of a Keras model: those to train, and the others."""
    return (
        [variable.value for variable in model.trainable_variables],
        [variable.value for variable in model.non_trainable_variables],
    )


def _features(model: Any) -> Callable[[Any, Any, Any], Any]:
    """A pure function of a model's arrays and token ids to its outputs."""

    def run(trained: Any, others: Any, tokens: Any) -> Any:
        inputs = _inputs(tokens, tokens != 1)
        return model.stateless_call(trained, others, inputs, training=False)[0]

    return run
