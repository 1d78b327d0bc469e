"""The hyperparameters that fairseq publishes for RoBERTa: a Recipe for each fine-tuning task, and one for pretraining.

Where a file has its texts and labels, and what a task is judged by, is in layouts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from roberta_flax.errors import require_positive
from roberta_flax.nn.config import RobertaConfig

_GLUE = "fairseq/examples/roberta/config/finetuning/"
# Of a task's published steps; with fewer in `epochs` of a file, that file is smaller than the task's.
_SAME_FILE = 0.75


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of a run; the defaults are those that fairseq's fine-tuning recipes have in common.

    A batch here is always of `batch_size` examples; fairseq's GLUE recipes also end one at 4,400 tokens.

    Attributes:
      source: the file of fairseq's that they are from.
      learning_rate: the peak, after the warm-up.
      end_learning_rate: after the last step.
      total_steps: published for the task's own training file; None where epochs alone say how long to train.
      warmup_steps: of total_steps.
      warmup_share: the share of all steps that are warm-up, where no number is published.
      epochs: at most so many.
      batch_size: examples that are computed together.
      update_freq: batches whose gradients make one step.
      adam_betas, adam_eps, weight_decay: of fairseq's Adam.
      clip_norm: of all gradients together; 0 does not clip.
      dropout, attention_dropout: as in RobertaConfig; None for the model's own.
      target_divisor: what a regression's gold values are divided by for training.

    Raises:
      InputError: numbers that are not positive where they must be. (Others are checked where they are used.)
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
        """A configuration with this recipe's dropouts."""
        return replace(
            config,
            dropout=config.dropout if self.dropout is None else self.dropout,
            attention_dropout=config.attention_dropout if self.attention_dropout is None else self.attention_dropout,
        )

    def steps(self, per_epoch: int, *, epochs: int | None = None, steps: int | None = None) -> tuple[int, int]:
        """How many steps are warm-up, and how many there are.

        The published numbers stand for the task's own file. `epochs` passes over a file with clearly fewer rows are
        fewer steps (where fairseq would stop too, in the middle of its schedule): then the schedule is over these,
        with the published share of warm-up.

        Args:
          per_epoch: steps that one pass over the training file takes.
          epochs: how many passes, whatever is published.
          steps: how many steps, whatever is published.
        """
        total = steps or (epochs or self.epochs) * per_epoch
        if self.total_steps is None or self.warmup_steps is None:
            return round(self.warmup_share * total), total
        if not steps and not epochs and total >= _SAME_FILE * self.total_steps:
            total = self.total_steps
        return round(self.warmup_steps / self.total_steps * total), total


# The classification of fairseq's README for data of one's own (IMDB there), which has 8 x 4 examples a step.
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
    # 1 example, 8 batches and 2 GPUs a step there; a learning rate that neither rises nor falls
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
    """The recipe of a task, by its name in layouts.LAYOUTS, "race" or "commonsenseqa"; CUSTOM of any other."""
    return RECIPES.get(task, CUSTOM)
