"""The hyperparameters that fairseq publishes for RoBERTa: a Recipe for each fine-tuning task, and one for pretraining.

And those that sentence-transformers publishes for sentence encoders and cross-encoders; and the scores that fairseq
publishes for the fine-tuned models.

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


@dataclass(frozen=True)
class PublishedScore:
    """A score that fairseq publishes for a model and a task.

    Attributes:
      model: the released model from which fine-tuning began.
      task: the task's name, as readers.task_name() returns it; or "mnli-mm" for MNLI's mismatched rows.
      metric: the metric, in roberta_flax.metrics.
      percent: 100 times the metric, as published. Those of GLUE are medians of five seeds (Liu et al., 2019, section
        5.1).
      rows: the rows that it is of.
      source: where it is published.
    """

    model: str
    task: str
    metric: str
    percent: float
    rows: str = "dev set"
    source: str = "fairseq's README"

    def to_text(self) -> str:
        """Returns the score in a few words: fairseq's README: 86.6 for roberta.large on the dev set."""
        return f"{self.source}: {self.percent} for {self.model} on the {self.rows}"


# fairseq/examples/roberta/README.md, "Results". Every task of GLUE is trained from the released model itself, RTE,
# MRPC and STS-B too (facebookresearch/fairseq, issues 1166 and 1332). The README names no metrics. STS-B's is Pearson's
# correlation (issue 1561) and CoLA's Matthews', as in the papers that the README's figures were compared with (Yang et
# al., 2019, table 5); the others' is what fairseq's recipes choose the best model by.
_GLUE_TASKS = ("mnli", "qnli", "qqp", "rte", "sst-2", "mrpc", "cola", "sts-b")
_GLUE_METRICS = {"cola": "matthews", "sts-b": "pearson"}
_GLUE_PERCENTS = {
    "roberta.base": (87.6, 92.8, 91.9, 78.7, 94.8, 90.2, 63.6, 91.2),
    "roberta.large": (90.2, 94.7, 92.2, 86.6, 96.4, 90.9, 68.0, 92.4),
    "roberta.large.mnli": (90.2,),  # which is fine-tuned already
}
_AFTER_MNLI = "issue 1166 of fairseq"  # where its authors give the scores of models that were trained on MNLI before
_PUBLISHED = (
    *(
        PublishedScore(model, task, _GLUE_METRICS.get(task, "accuracy"), percent)
        for model, percents in _GLUE_PERCENTS.items()
        for task, percent in zip(_GLUE_TASKS, percents, strict=False)
    ),
    PublishedScore("roberta.large", "mnli-mm", "accuracy", 90.2, source="Liu et al. (2019), table 5"),
    PublishedScore("roberta.large.mnli", "mrpc", "accuracy", 91.42, source=_AFTER_MNLI),
    PublishedScore("roberta.large.mnli", "rte", "accuracy", 90.97, source=_AFTER_MNLI),
    PublishedScore("roberta.large.mnli", "sts-b", "pearson", 92.63, source=_AFTER_MNLI),
    PublishedScore("roberta.large", "race", "accuracy", 83.2, rows="test set"),
    PublishedScore("roberta.large", "commonsenseqa", "accuracy", 72.1, rows="test set"),
)
PUBLISHED = {(score.model, score.task): score for score in _PUBLISHED}


def published_score(model: str | None, task: str) -> PublishedScore | None:
    """Returns the score that fairseq publishes for a released model and a task; None if there is none."""
    return None if model is None else PUBLISHED.get((model, task))


def recipe_of(task: str) -> Recipe:
    """Returns the recipe of a task in layouts.LAYOUTS, "race" or "commonsenseqa"; CUSTOM for any other name."""
    return RECIPES.get(task, CUSTOM)
