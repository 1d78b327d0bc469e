"""Training: losses, fairseq's optimizer and a training step as plain functions over optax."""

from roberta_flax.train.losses import Batch, Loss, head_loss, masked_lm_loss
from roberta_flax.train.optimizer import adam, polynomial_decay
from roberta_flax.train.step import TrainStep, init_optimizer, make_eval_step, make_train_step

__all__ = [
    "Batch",
    "Loss",
    "TrainStep",
    "adam",
    "head_loss",
    "init_optimizer",
    "make_eval_step",
    "make_train_step",
    "masked_lm_loss",
    "polynomial_decay",
]
