"""Training as plain functions over optax: losses, fairseq's optimizer, a training step, and complete runs."""

from typing import TYPE_CHECKING

from roberta_flax import lazy
from roberta_flax.nn.adapters import LoRA
from roberta_flax.train.losses import Batch, Loss, head_loss, masked_lm_loss
from roberta_flax.train.optimizer import adam, polynomial_decay
from roberta_flax.train.step import TrainStep, init_optimizer, make_eval_step, make_train_step

if TYPE_CHECKING:
    from roberta_flax.train import (
        batches,
        corpus,
        encoder_losses,
        encoder_training,
        finetuning,
        loop,
        masking,
        pretraining,
        training_job,
        validation,
    )

__all__ = [
    "Batch",
    "LoRA",
    "Loss",
    "TrainStep",
    "adam",
    "batches",
    "corpus",
    "encoder_losses",
    "encoder_training",
    "finetuning",
    "head_loss",
    "init_optimizer",
    "loop",
    "make_eval_step",
    "make_train_step",
    "masked_lm_loss",
    "masking",
    "polynomial_decay",
    "pretraining",
    "training_job",
    "validation",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy.attach(__name__, __all__)
