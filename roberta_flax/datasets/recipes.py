"""The hyperparameters that fairseq publishes for RoBERTa: a Recipe for each fine-tuning task, and one for pretraining.

And those that sentence-transformers publishes for sentence encoders and cross-encoders.

The columns of each task's files and its metrics are in layouts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from roberta_flax.errors import require_positive
from roberta_flax.nn.config import RobertaConfig

_GLUE = "fairseq/examples/roberta/config/finetuning/"
# If `epochs` passes over a file take less than this share of the published steps, it is not the task's own file.
_SHARE_OF_OWN_FILE = 0.75


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of a run. The defaults are what fairseq's fine-tuning recipes have in common.

    A batch always has `batch_size` examples. fairseq's GLUE recipes also end a batch at 4,400 tokens.

    Attributes:
      source: where they are published: the file in fairseq's repository.
      learning_rate: the peak learning rate, at the end of the warmup.
      end_learning_rate: the learning rate after the last step.
      total_steps: the number of steps published for the task's own training file; None if only epochs are published.
      warmup_steps: the number of warmup steps among total_steps.
      warmup_share: the share of warmup steps if their number is not published.
      epochs: the maximum number of epochs.
      batch_size: number of examples that are computed together.
      update_freq: number of batches whose gradients make one step.
      adam_betas, adam_eps, weight_decay: parameters of fairseq's Adam.
      clip_norm: the maximum norm of all gradients together; 0 disables clipping.
      dropout, attention_dropout: as in RobertaConfig; None keeps the model's own.
      target_divisor: the gold values of a regression are divided by this for training.

    Raises:
      InputError: epochs, batch_size or update_freq is not positive. (The others are checked where they are used.)
    """

    source: str
    learning_rate: float = 1e-5
    end_learning_rate: float = 0.0
    total_steps: int | None = None
    warmup_steps: int | None = None
    warmup_share: float = 0.06
    epochs: int = 10
    batch_size: int = 32
    update_freq: int = 1
    adam_betas: tuple[float, float] = (0.9, 0.98)
    adam_eps: float = 1e-6
    weight_decay: float = 0.1
    clip_norm: float = 0.0
    dropout: float | None = 0.1
    attention_dropout: float | None = 0.1
    target_divisor: float = 1.0

    def __post_init__(self) -> None:
        require_positive(epochs=self.epochs, batch_size=self.batch_size, update_freq=self.update_freq)

    def with_dropout(self, config: RobertaConfig) -> RobertaConfig:
        """Returns the configuration with this recipe's dropout probabilities."""
        return replace(
            config,
            dropout=config.dropout if self.dropout is None else self.dropout,
            attention_dropout=config.attention_dropout if self.attention_dropout is None else self.attention_dropout,
        )

    def steps(self, per_epoch: int, *, epochs: int | None = None, steps: int | None = None) -> tuple[int, int]:
        """Returns the number of warmup steps and the total number of steps.

        The published numbers apply to the task's own file. On a file with clearly fewer rows, `epochs` passes take
        fewer steps (fairseq would stop there too, but in the middle of its schedule). The schedule then has this number
        of steps, with the published share of warmup.

        Args:
          per_epoch: number of steps in one pass over the training file.
          epochs: number of epochs, instead of the published length.
          steps: number of steps, instead of the published length.
        """
        total = steps or (epochs or self.epochs) * per_epoch
        if self.total_steps is None or self.warmup_steps is None:
            return round(self.warmup_share * total), total
        if not steps and not epochs and total >= _SHARE_OF_OWN_FILE * self.total_steps:
            total = self.total_steps
        return round(self.warmup_steps / self.total_steps * total), total


# From fairseq's README for classifying your own data (its example is IMDB), with 8 x 4 examples a step.
CUSTOM = Recipe("fairseq/examples/roberta/README.custom_classification.md", batch_size=8, update_freq=4)

PRETRAINING = Recipe(
    "fairseq/examples/roberta/config/pretraining/base.yaml",
    learning_rate=5e-4,
    total_steps=125_000,
    warmup_steps=10_000,
    batch_size=16,
    update_freq=16,
    weight_decay=0.01,
    dropout=None,
    attention_dropout=None,
)

# Of sentence encoders and cross-encoders: the arguments in the training overviews of sentence-transformers 5.1, for the
# rest the defaults of Transformers' TrainingArguments.
ENCODER = Recipe(
    "sentence-transformers' training overview",
    learning_rate=2e-5,
    warmup_share=0.1,
    epochs=1,
    batch_size=16,
    adam_betas=(0.9, 0.999),
    adam_eps=1e-8,
    weight_decay=0.0,
    clip_norm=1.0,
    dropout=None,
    attention_dropout=None,
)

RECIPES: dict[str, Recipe] = {
    "mnli": Recipe(_GLUE + "mnli.yaml", total_steps=123_873, warmup_steps=7_432),
    "qnli": Recipe(_GLUE + "qnli.yaml", total_steps=33_112, warmup_steps=1_986),
    "qqp": Recipe(_GLUE + "qqp.yaml", total_steps=113_272, warmup_steps=28_318),
    "rte": Recipe(_GLUE + "rte.yaml", learning_rate=2e-5, total_steps=2_036, warmup_steps=122, batch_size=16),
    "sst-2": Recipe(_GLUE + "sst_2.yaml", total_steps=20_935, warmup_steps=1_256),
    "mrpc": Recipe(_GLUE + "mrpc.yaml", total_steps=2_296, warmup_steps=137, batch_size=16),
    "cola": Recipe(_GLUE + "cola.yaml", total_steps=5_336, warmup_steps=320, batch_size=16),
    "sts-b": Recipe(
        _GLUE + "sts_b.yaml",
        learning_rate=2e-5,
        total_steps=3_598,
        warmup_steps=214,
        batch_size=16,
        target_divisor=5.0,  # fairseq/examples/roberta/preprocess_GLUE_tasks.sh
    ),
    # fairseq computes 1 example on each of 2 GPUs, and 8 such batches a step. The learning rate is constant.
    "race": Recipe(
        "fairseq/examples/roberta/README.race.md",
        end_learning_rate=1e-5,
        warmup_share=0.0,
        epochs=5,
        batch_size=2,
        update_freq=8,
        weight_decay=0.01,
    ),
    "commonsenseqa": Recipe(
        "fairseq/examples/roberta/commonsense_qa/README.md",
        total_steps=3_000,
        warmup_steps=150,
        batch_size=16,
        weight_decay=0.01,
    ),
}


def recipe_of(task: str) -> Recipe:
    """Returns the recipe of a task in layouts.LAYOUTS, "race" or "commonsenseqa"; CUSTOM for any other name."""
    return RECIPES.get(task, CUSTOM)
