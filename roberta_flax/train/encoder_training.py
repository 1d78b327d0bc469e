"""Trains sentence encoders and cross-encoders, and saves the best model for both libraries.

>>> roberta = roberta_flax.load("roberta.base")
>>> training = SentenceEncoderTraining.of_files(roberta, SentenceLoss("cosent"), "train.tsv", "dev.tsv")
>>> training.run(roberta, Path("runs/sts"), seed=1).evaluation.metrics
{"spearman": 0.86, "pearson": 0.85}
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh
from scipy.special import expit

from roberta_flax import hub
from roberta_flax.checkpoint.usage import Embedding, Scoring, Usage
from roberta_flax.convert.export import export
from roberta_flax.datasets import text_rows
from roberta_flax.datasets.readers import Columns
from roberta_flax.datasets.recipes import ENCODER, Recipe
from roberta_flax.datasets.text_rows import TextRows
from roberta_flax.errors import CheckpointError, InputError, printable
from roberta_flax.files import PathLike
from roberta_flax.hub import Roberta
from roberta_flax.metrics import Evaluation
from roberta_flax.nn import sharding
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from roberta_flax.nn.forward import Params
from roberta_flax.nn.meshes import on_mesh_of_arguments, own_mesh, with_own_mesh
from roberta_flax.nn.sentence import Pooling, vector_size
from roberta_flax.remote import called
from roberta_flax.tasks import ranking
from roberta_flax.tasks.base import check_finite
from roberta_flax.tasks.sentence_embedding import SentenceEmbedding
from roberta_flax.tasks.sentence_scores import SentenceScores
from roberta_flax.text.encoding import resolve_max_length
from roberta_flax.train import directory as run_directory
from roberta_flax.train.devices import place
from roberta_flax.train.encoder_batches import EncodedRows, RowBatches, sequence_batches
from roberta_flax.train.encoder_losses import (
    MODULES,
    ScoreLoss,
    SentenceLoss,
    cross_encoder_loss,
    encoder_vectors,
    pair_scores,
    sentence_encoder_loss,
)
from roberta_flax.train.finetuning import trained_part
from roberta_flax.train.losses import NetworkLoss
from roberta_flax.train.mirror import Mirror, as_given
from roberta_flax.train.progress import is_first_process, report
from roberta_flax.train.step import make_train_step
from roberta_flax.train.training_job import RunLength, TrainingJob, best_metric, frozen_paths

EXPORTED = "sentence-transformers"  # the best model in a run's directory, as that library writes it


@dataclass(frozen=True, kw_only=True)
class EncoderTraining(TrainingJob["Result"]):
    """A training job of an encoder: the data, the loss and the hyperparameters (see TrainingJob).

    A run saves its best model in `best`, as all commands read it, and in `sentence-transformers`, as that library does.

    Attributes:
      loss: the loss.
      training, validation: the rows of both files.
      evaluation: what validations measure, a key of tasks.ranking.METRICS.
      max_length: the maximum length of a sequence, in tokens.
      mini_batch_size: number of rows that are encoded at a time (see encoder_losses.sentence_encoder_loss); None for a
        whole batch.
    """

    loss: Any
    training: EncodedRows
    validation: EncodedRows
    evaluation: str
    max_length: int
    mini_batch_size: int | None = None

    @with_own_mesh
    def _run(
        self,
        roberta: Roberta,
        directory: Path,
        seed: int,
        *,
        mesh: Mesh | None = None,
        fully_sharded: bool = False,
        mirror: Mirror | None = None,
        **options: Any,
    ) -> Result:
        recipe, note = self.recipe, self._note(roberta, seed)
        config, params = self._trained(roberta, seed)
        untrained = self._untrained(roberta)
        placed = place(params, config, mesh, fully_sharded)
        schedule, optimizer = self._optimizer(config)
        validation = _Validation(
            self.validation, self._outputs(config), self._judge, config.pad_id, config.max_positions,
            recipe.batch_size, mesh,
        )  # fmt: skip
        before = validation.evaluate(placed)

        def save_best(params: Params) -> None:
            body = {name: tree for name, tree in params.items() if name != MODULES}
            run_directory.save_best(
                directory, self._saved_config(roberta, config), {**body, **untrained}, roberta.tokenizer,
                usage=self._usage(roberta, params),
            )  # fmt: skip

        train_step = make_train_step(self._loss(config), optimizer, accumulate=recipe.update_freq, freeze=self.freeze)
        steps, stopped, best_step = self._loop(
            train_step,
            placed,
            train_step.init(placed),
            _batches(self.training, recipe, config, seed, no_duplicates=self._is_in_batch),
            pad_id=config.pad_id,
            seed=seed,
            directory=directory,
            config_note=note,
            schedule=schedule,
            validate=lambda params: validation.evaluate(params).metrics,
            save_best=save_best,
            check_best=lambda: run_directory.check_best(directory),
            mesh=mesh,
            mirror=mirror,
            **options,
        )
        best = hub.load(directory / run_directory.BEST)
        after = validation.evaluate(place(self._trained(best, seed)[1], config, mesh, fully_sharded))
        where = as_given(directory, mirror)
        result = Result(where, steps, stopped, best_step, self.best, before, after)
        if is_first_process():
            _export(directory, where)
            run_directory.write_summary(directory, {**self.to_json(), **result.to_json()})
        return result

    def to_json(self) -> dict[str, Any]:
        """Returns the job and the counts of its files' rows, for json.dumps."""
        return {"loss": asdict(self.loss), "evaluation": self.evaluation, **super().to_json()}

    def to_text(self) -> str:
        """Describes the job in lines: the rows of both files, and the length of a run."""
        size = self.recipe.batch_size * self.recipe.update_freq
        return "\n".join(
            (
                self.training.tally.to_text(),
                self.validation.tally.to_text(),
                f"{self.loss.name}: {self.total_steps} steps of {size} rows, {self.warmup_steps} of them warmup; "
                f"validation by {self.evaluation}",
            )
        )

    def _note(self, roberta: Roberta, seed: int) -> dict[str, Any]:
        return {
            **super()._note(roberta, seed),
            "loss": asdict(self.loss),
            "evaluation": self.evaluation,
            "mini_batch_size": self.mini_batch_size,
            "max_length": self.max_length,
        }

    @property
    def _is_in_batch(self) -> bool:
        """Whether texts of other rows are negatives, so that a batch must have each once."""
        return False

    @abstractmethod
    def _trained(self, roberta: Roberta, seed: int) -> tuple[RobertaConfig, Params]:
        """Returns the part of a model to train, with the recipe's dropout."""

    @abstractmethod
    def _untrained(self, roberta: Roberta) -> Params:
        """Returns the parts of a model that are saved as they are."""

    @abstractmethod
    def _loss(self, config: RobertaConfig) -> NetworkLoss:
        """Returns the loss of the parameters."""

    @abstractmethod
    def _outputs(self, config: RobertaConfig) -> Callable[[Params, Any], Any]:
        """Returns the function of parameters and tokens, [batch, time], whose outputs are judged."""

    @abstractmethod
    def _judge(self, outputs: npt.NDArray[Any]) -> Evaluation:
        """Judges the outputs for all sequences of the validation file."""

    @abstractmethod
    def _saved_config(self, roberta: Roberta, config: RobertaConfig) -> RobertaConfig:
        """Returns the configuration of the saved model."""

    @abstractmethod
    def _usage(self, roberta: Roberta, params: Params) -> Usage:
        """Returns how the saved model is used."""


@dataclass(frozen=True, kw_only=True)
class SentenceEncoderTraining(EncoderTraining):
    """A training job of a sentence encoder (see EncoderTraining).

    Attributes:
      loss: an encoder_losses.SentenceLoss.
      embedding: how vectors are made, in training and of the saved model.
      vector_size: the number of values of a vector in training.
    """

    loss: SentenceLoss
    embedding: Embedding
    vector_size: int

    @classmethod
    def of_files(
        cls,
        roberta: Roberta,
        loss: SentenceLoss,
        training: PathLike,
        validation: PathLike,
        *,
        columns: Columns = Columns(),
        validation_columns: Columns | None = None,
        label_range: tuple[float, float] | None = None,
        evaluation: str | None = None,
        prompts: Sequence[str] = (),
        pooling: str | None = None,
        max_length: int | None = None,
        **options: Any,
    ) -> Self:
        """Reads both files.

        Args:
          roberta: the model to train. It is not changed. Vectors are made as its repository says, or else by the mean
            of its features.
          loss: the loss. The saved model compares vectors as the loss does.
          training, validation: the files.
          columns: the text and label columns (text_rows.with_usual_columns).
          validation_columns: those of the validation file; by default the same names, or its usual columns.
          label_range: the labels of both files that stand for 0 and 1; None keeps labels as they are.
          evaluation: a key of tasks.ranking.METRICS; by default correlation if the loss takes labels, or a label column
            of the validation file is named.
          prompts: the text to put before each text: none, one for all columns, or one for each; or two, for the first
            column and for all others. The saved model has the first as its prompt "query" and the second as "document".
          pooling: one of nn.sentence.POOLING_MODES, in place of the model's vectors.
          max_length: the maximum length of a text in tokens; by default the model's.
          options: recipe, epochs, steps, warmup_steps, best, validate_every, save_every and freeze as in
            FineTuning.of_files, and other attributes of this class.

        Raises:
          InputError: the options contradict each other or do not match the files, or a file cannot be read.
        """
        recipe, length = options.pop("recipe", None) or ENCODER, _length(options)
        embedding = roberta.usage.embedding or Embedding(prompts={"query": "", "document": ""})
        if pooling is not None:
            modules = (Pooling((pooling,)),)
            embedding = dataclasses.replace(embedding, modules=modules, similarity=loss.compared_by)
        if embedding.is_sparse:
            raise InputError("a sparse encoder cannot be trained here; give pooling (--pooling) to train dense vectors")
        if embedding.is_multi_vector:
            raise InputError(
                "a multi-vector encoder cannot be trained here; give pooling (--pooling) to train one vector a text"
            )
        embedding = dataclasses.replace(embedding, similarity=loss.compared_by)
        size = vector_size(embedding.modules, roberta.config.hidden_size)
        loss.check_size(size)
        columns, validation_columns = _columns(
            loss, training, validation, columns, validation_columns, evaluation, recipe.batch_size
        )
        limit = resolve_max_length(roberta.config, max_length or roberta.usage.max_length)
        if any(prompts):
            if not all(module.include_prompt for module in embedding.modules if isinstance(module, Pooling)):
                raise InputError("prompts are for models whose pooling includes them; this one's does not")
            embedding = _with_prompts(embedding, prompts)

        def encoded(path: PathLike, columns: Columns) -> EncodedRows:
            rows = text_rows.read(path, columns, label_range=label_range)
            given = _prompts_of_columns(prompts, len(columns.texts))
            tasks = [SentenceEmbedding(embedding, prompt) for prompt in given]
            return EncodedRows.of_texts(rows, tasks, roberta.tokenizer, limit)

        rows, validation_rows = encoded(training, columns), encoded(validation, validation_columns)
        _require_range(rows.rows, loss)
        return cls(
            loss=loss,
            embedding=embedding,
            vector_size=size,
            max_length=limit,
            **_common(
                roberta,
                rows,
                validation_rows,
                recipe,
                length,
                evaluation,
                no_duplicates=loss.is_in_batch,
                options=options,
            ),
        )

    def to_text(self) -> str:
        """Describes the job in lines, as EncoderTraining does, and warns of vectors that are only trained in part."""
        dims, size = self.loss.matryoshka_dims, self.vector_size
        if not dims or size in dims:
            return super().to_text()
        return (
            f"{super().to_text()}\nwarning: a vector has {size} values, and matryoshka_dims trains the first "
            f"{', '.join(map(str, dims))} alone; add {size} to train the whole vector too"
        )

    @property
    def _is_in_batch(self) -> bool:
        return self.loss.is_in_batch

    def _note(self, roberta: Roberta, seed: int) -> dict[str, Any]:
        note = super()._note(roberta, seed)
        digest = hashlib.sha256()
        for params in roberta.usage.module_params:
            for name, value in sorted(params.items()):
                digest.update(name.encode() + np.asarray(value).tobytes())
        return {**note, "embedding": repr(self.embedding), "modules": digest.hexdigest()[:16]}

    def _trained(self, roberta: Roberta, seed: int) -> tuple[RobertaConfig, Params]:
        config = self.recipe.with_dropout(dataclasses.replace(roberta.config, lm_head=False, heads=()))
        params = {name: part for name, part in roberta.params.items() if name not in ("lm_head", "heads")}
        dtype = params["embeddings"]["token"]["embedding"].dtype
        own = {
            str(number): {name: jax.device_put(np.asarray(value, dtype)) for name, value in values.items()}
            for number, values in enumerate(roberta.usage.module_params[: len(self.embedding.modules)])
            if values
        }
        return config, {**params, MODULES: own} if own else params

    def _untrained(self, roberta: Roberta) -> Params:
        kept = {name: roberta.params[name] for name in ("lm_head",) if name in roberta.params}
        poolers = {head.name: roberta.params["heads"][head.name] for head in _poolers(roberta.config)}
        return {**kept, "heads": poolers} if poolers else kept

    def _loss(self, config: RobertaConfig) -> NetworkLoss:
        return sentence_encoder_loss(
            self.loss, modules=self.embedding.modules, config=config, numerics=self.numerics,
            mini_batch_size=self.mini_batch_size,
        )  # fmt: skip

    def _outputs(self, config: RobertaConfig) -> Callable[[Params, Any], Any]:
        numerics = dataclasses.replace(self.numerics, remat=False)
        return lambda params, tokens: encoder_vectors(
            params, tokens, modules=self.embedding.modules, config=config, numerics=numerics
        )

    def _judge(self, outputs: npt.NDArray[Any]) -> Evaluation:
        rows, size = self.validation, self.embedding.truncate_dim
        return ranking.evaluate_vectors(
            outputs[:, :size], rows.numbers, rows.rows.numbers, rows.rows.labels, self.evaluation,
            self.embedding.similarity,
        )  # fmt: skip

    def _saved_config(self, roberta: Roberta, config: RobertaConfig) -> RobertaConfig:
        return dataclasses.replace(config, lm_head=roberta.config.lm_head, heads=_poolers(roberta.config))

    def _usage(self, roberta: Roberta, params: Params) -> Usage:
        own = params.get(MODULES, {})
        return Usage(
            max_length=self.max_length,
            embedding=self.embedding,
            module_params=tuple(
                {name: np.asarray(value) for name, value in own.get(str(number), {}).items()}
                for number in range(len(self.embedding.modules))
            ),
        )


@dataclass(frozen=True, kw_only=True)
class CrossEncoderTraining(EncoderTraining):
    """A training job of a cross-encoder (see EncoderTraining).

    Attributes:
      loss: an encoder_losses.ScoreLoss.
      head: the sentence head to train, with one output.
    """

    loss: ScoreLoss
    head: HeadConfig

    @classmethod
    def of_files(
        cls,
        roberta: Roberta,
        loss: ScoreLoss,
        training: PathLike,
        validation: PathLike,
        *,
        columns: Columns = Columns(),
        validation_columns: Columns | None = None,
        label_range: tuple[float, float] | None = None,
        evaluation: str | None = None,
        head: str | None = None,
        max_length: int | None = None,
        **options: Any,
    ) -> Self:
        """Reads both files.

        Args:
          roberta: the model to train. It is not changed. If its only sentence head has one output, that head is trained
            further; otherwise a new one is initialized.
          loss, training, validation, columns, validation_columns, label_range, evaluation: as in
            SentenceEncoderTraining.of_files.
          head: the head's name; by default that of the head that is trained further, or "score".
          max_length: the maximum length of a pair in tokens; by default the model's.
          options: as in SentenceEncoderTraining.of_files.

        Raises:
          InputError: as in SentenceEncoderTraining.of_files.
        """
        recipe, length = options.pop("recipe", None) or ENCODER, _length(options)
        columns, validation_columns = _columns(
            loss, training, validation, columns, validation_columns, evaluation, recipe.batch_size
        )
        chosen = _score_head(roberta.config, head)
        task = SentenceScores(chosen.name)
        limit = resolve_max_length(roberta.config, max_length or roberta.usage.max_length)

        def encoded(path: PathLike, columns: Columns) -> EncodedRows:
            rows = text_rows.read(path, columns, label_range=label_range)
            return EncodedRows.of_pairs(rows, task, roberta.tokenizer, limit)

        rows, validation_rows = encoded(training, columns), encoded(validation, validation_columns)
        _require_range(rows.rows, loss)
        return cls(
            loss=loss,
            head=chosen,
            max_length=limit,
            **_common(roberta, rows, validation_rows, recipe, length, evaluation, no_duplicates=False, options=options),
        )

    def _note(self, roberta: Roberta, seed: int) -> dict[str, Any]:
        return {**super()._note(roberta, seed), "head": asdict(self.head)}

    def _trained(self, roberta: Roberta, seed: int) -> tuple[RobertaConfig, Params]:
        return trained_part(roberta, self.head, self.recipe, seed)

    def _untrained(self, roberta: Roberta) -> Params:
        return {name: roberta.params[name] for name in ("lm_head",) if name in roberta.params}

    def _loss(self, config: RobertaConfig) -> NetworkLoss:
        return cross_encoder_loss(
            self.loss, self.head.name, config=config, numerics=self.numerics, mini_batch_size=self.mini_batch_size
        )

    def _outputs(self, config: RobertaConfig) -> Callable[[Params, Any], Any]:
        numerics = dataclasses.replace(self.numerics, remat=False)
        return lambda params, tokens: pair_scores(params, tokens, head=self.head.name, config=config, numerics=numerics)

    def _judge(self, outputs: npt.NDArray[Any]) -> Evaluation:
        rows = self.validation
        if self.loss.activation == "sigmoid":  # the scores that the saved model gives
            outputs = expit(outputs)
        return ranking.evaluate_scores(outputs[rows.numbers], rows.rows.numbers, rows.rows.labels, self.evaluation)

    def _saved_config(self, roberta: Roberta, config: RobertaConfig) -> RobertaConfig:
        return dataclasses.replace(config, lm_head=roberta.config.lm_head)

    def _usage(self, roberta: Roberta, params: Params) -> Usage:
        return Usage(max_length=self.max_length, scoring=Scoring(self.head.name, self.loss.activation))


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
      directory: the run's directory.
      steps: number of steps done.
      stopped: "done" after the last step, "patience" if the run stopped early.
      best_step: number of steps after which the model was best.
      best_metric: the metric that selected it.
      before: the initial model's validation metrics.
      evaluation: those of the best model, as it is on disk.
    """

    directory: Path
    steps: int
    stopped: str
    best_step: int
    best_metric: str
    before: Evaluation
    evaluation: Evaluation

    def to_json(self) -> dict[str, Any]:
        """Returns the fields by name, for json.dumps."""
        return {
            "steps": self.steps,
            "stopped": self.stopped,
            "best_step": self.best_step,
            "best_metric": self.best_metric,
            "best": self.evaluation.metrics[self.best_metric],
            "best_model": str(self.directory / run_directory.BEST),
            "before": self.before.to_json()["metrics"],
            **self.evaluation.to_json(),
        }

    def to_text(self) -> str:
        """Returns lines for a terminal."""
        ended = "" if self.stopped == "done" else ", stopped early"
        before = ", ".join(f"{name} {value:.4f}" for name, value in self.before.metrics.items())
        return "\n".join(
            (
                f"{printable(str(self.directory / run_directory.BEST))}: best model, from step {self.best_step} of "
                f"{self.steps}{ended}",
                f"before: {before}",
                self.evaluation.to_text(),
            )
        )


class _Validation:
    """Computes the outputs for all sequences of a file, and judges them."""

    def __init__(
        self,
        encoded: EncodedRows,
        outputs: Callable[[Params, Any], Any],
        judge: Callable[[npt.NDArray[Any]], Evaluation],
        pad_id: int,
        max_positions: int,
        batch_size: int,
        mesh: Mesh | None,
    ) -> None:
        self._encoded, self._judge, self._mesh = encoded, judge, mesh
        self._sizes = {"batch_size": batch_size, "pad_id": pad_id, "max_positions": max_positions}
        whole = None if mesh is None else sharding.everywhere(mesh)
        self._compute = jax.jit(on_mesh_of_arguments(outputs), out_shardings=whole)

    def evaluate(self, params: Params) -> Evaluation:
        """Returns the metrics. Raises InputError if outputs are NaN or infinite."""
        found: npt.NDArray[Any] | None = None
        for numbers, tokens in sequence_batches(self._encoded, **self._sizes):
            with own_mesh(self._mesh):
                batch = {"tokens": tokens}
                placed = jax.device_put(batch) if self._mesh is None else sharding.place_batch(batch, self._mesh)
                outputs = np.asarray(jax.device_get(self._compute(params, placed["tokens"])), np.float64)
            check_finite(outputs)
            if found is None:
                found = np.empty((self._encoded.count, *outputs.shape[1:]))
            found[numbers] = outputs[: len(numbers)]
        assert found is not None, "a file has rows"
        return self._judge(found)


def _export(directory: Path, where: Path) -> None:
    """Writes a run's best model for sentence-transformers, if that library can represent it; messages say `where`."""
    destination = directory / EXPORTED
    shutil.rmtree(destination, ignore_errors=True)  # of a run that ended before
    try:
        with called(directory, where):
            export(directory / run_directory.BEST, destination, to="sentence-transformers")
    except CheckpointError as error:
        report(f"{where / EXPORTED} is not written: {error}")


def _columns(
    loss: SentenceLoss | ScoreLoss,
    training: PathLike,
    validation: PathLike,
    columns: Columns,
    validation_columns: Columns | None,
    evaluation: str | None,
    batch_size: int,
) -> tuple[Columns, Columns]:
    """Returns the columns of both files: those that are named, or else the usual ones of each file."""
    if not loss.is_labeled and columns.label:
        raise InputError(
            f"the loss {loss.name} takes no label column, got {', '.join(columns.label)}; name a label column of the "
            "validation file by itself (--valid-label-column)"
        )
    found = text_rows.with_usual_columns(training, columns, labeled=loss.is_labeled)
    loss.check(found.texts, found.label, batch_size)
    given = validation_columns or Columns()
    given = dataclasses.replace(
        given, texts=given.texts or columns.texts, label=given.label or columns.label, header=columns.header
    )
    labeled = loss.is_labeled or bool(given.label) or evaluation == "correlation"
    return found, text_rows.with_usual_columns(validation, given, labeled=labeled)


def _prompts_of_columns(prompts: Sequence[str], columns: int) -> tuple[str, ...]:
    """Returns the prompt of each text column."""
    if len(prompts) < 2:
        return (*(prompts or ("",)),) * columns
    if len(prompts) == 2:
        return (prompts[0], *[prompts[1]] * (columns - 1))
    if len(prompts) != columns:
        raise InputError(
            f"give one prompt for all columns, two for the first and the others, or one for each of {columns} columns; "
            f"got {len(prompts)}"
        )
    return tuple(prompts)


def _with_prompts(embedding: Embedding, prompts: Sequence[str]) -> Embedding:
    first, second = prompts[0], prompts[min(1, len(prompts) - 1)]
    named = {**embedding.prompts, "query": first, "document": second}
    return dataclasses.replace(
        embedding, prompts=named, default_prompt="query" if len(set(prompts)) == 1 else embedding.default_prompt
    )


def _require_range(rows: TextRows, loss: SentenceLoss | ScoreLoss) -> None:
    if loss.label_range is not None:
        low, high = loss.label_range
        text_rows.require_labels_in(rows, low, high, loss.name)


def _poolers(config: RobertaConfig) -> tuple[HeadConfig, ...]:
    return tuple(head for head in config.heads if head.kind == "pooler")


def _score_head(config: RobertaConfig, name: str | None) -> HeadConfig:
    """Returns the head to train: the model's, if it has one output, or else a new one."""
    heads = [head for head in config.heads if head.kind == "sentence" and head.num_classes == 1]
    chosen = [head for head in heads if name in (None, head.name)]
    if len(chosen) == 1:
        return chosen[0]
    return HeadConfig(name or "score", 1, config.hidden_size, "sentence", "regression")


def _length(options: dict[str, Any]) -> RunLength:
    """Takes a run's length out of the options of `of_files`."""
    return RunLength(**{field.name: options.pop(field.name, None) for field in dataclasses.fields(RunLength)})


def _common(
    roberta: Roberta,
    training: EncodedRows,
    validation: EncodedRows,
    recipe: Recipe,
    length: RunLength,
    evaluation: str | None,
    *,
    no_duplicates: bool,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Returns the attributes of EncoderTraining that both kinds derive in the same way."""
    mini_batch_size = options.get("mini_batch_size")
    if mini_batch_size is not None and (mini_batch_size < 1 or recipe.batch_size % mini_batch_size):
        raise InputError(f"mini_batch_size must divide batch_size, {recipe.batch_size}, got {mini_batch_size}")
    batches = _batches(training, recipe, roberta.config, 1, no_duplicates=no_duplicates)
    if no_duplicates and batches.batches_per_epoch == len(training) and training.numbers.shape[1] == 2:
        raise InputError(
            f"{training.tally.path}: every two rows have a text in common, so a batch without duplicates is one row "
            "and its positive has no negatives; give more rows, or a column of negatives"
        )
    chosen = ranking.evaluation_name(evaluation, bool(validation.rows.labels.shape[1]))
    return {
        "recipe": recipe,
        "training": training,
        "validation": validation,
        "evaluation": chosen,
        "best": best_metric(options.pop("best", None), ranking.METRICS[chosen]),
        **length.attributes(recipe, -(-batches.batches_per_epoch // recipe.update_freq)),
        "freeze": frozen_paths(options.pop("freeze", ()), roberta.config),
        **options,
    }


def _batches(rows: EncodedRows, recipe: Recipe, config: RobertaConfig, seed: int, *, no_duplicates: bool) -> RowBatches:
    return RowBatches(
        rows, batch_size=recipe.batch_size, update_freq=recipe.update_freq, no_duplicates=no_duplicates,
        pad_id=config.pad_id, max_positions=config.max_positions, seed=seed,
    )  # fmt: skip
