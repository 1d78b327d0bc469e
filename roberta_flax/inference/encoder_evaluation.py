"""Evaluates a sentence encoder or a cross-encoder on rows of texts: correlation with labels, or retrieval."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from roberta_flax.checkpoint.usage import Embedding
from roberta_flax.datasets import readers, text_rows
from roberta_flax.datasets.layouts import layout_of
from roberta_flax.datasets.readers import Columns
from roberta_flax.datasets.text_rows import TextRows
from roberta_flax.errors import InputError
from roberta_flax.files import PathLike
from roberta_flax.hub import Roberta
from roberta_flax.inference.evaluation import FileEvaluation
from roberta_flax.inference.predictor import Predictor
from roberta_flax.metrics import Evaluation
from roberta_flax.tasks import ranking
from roberta_flax.tasks.base import one_head
from roberta_flax.tasks.sentence_embedding import SentenceEmbedding
from roberta_flax.tasks.sentence_scores import Score
from roberta_flax.text.batching import Strategy
from roberta_flax.text.encoding import OnLong, Rejected

logger = logging.getLogger(__name__)


def is_encoder(roberta: Roberta) -> bool:
    """Whether a model makes sentence vectors and has no head that gives answers."""
    return roberta.usage.embedding is not None and all(head.kind == "pooler" for head in roberta.config.heads)


def evaluate_encoder(
    roberta: Roberta,
    path: PathLike,
    *,
    task: str | None = None,
    columns: Columns = Columns(),
    evaluation: str | None = None,
    prompts: Sequence[str] = (),
    truncate_dim: int | None = None,
    head: str | None = None,
    max_length: int | None = None,
    on_long: OnLong = "truncate",
    strategy: Strategy | None = None,
    tokens_per_batch: int | None = None,
    tensor_parallel: int = 1,
) -> FileEvaluation:
    """Evaluates a sentence encoder, or a cross-encoder if the model has a sentence head and no sentence vectors.

    >>> evaluate_encoder(roberta, "sts-dev.tsv", columns=Columns(("sentence1", "sentence2"), ("score",)))

    Args:
      roberta: the model. One that says neither makes vectors by the mean of its features.
      path: the file.
      task: the name of a task whose files have such columns ("sts-b", "sick-relatedness"), or "custom".
      columns: columns that differ from the task's; without one, the others are the usual ones
        (text_rows.with_usual_columns).
      evaluation: a key of tasks.ranking.METRICS; by default correlation if the file has a label column.
      prompts: of a sentence encoder: one for all text columns, or two for the first and the others. By default the
        model's: in a retrieval those for queries and documents, otherwise its default one.
      truncate_dim: of a sentence encoder: how many values of each vector to keep; by default as the model says.
      head: the cross-encoder's head, by default the only one with one output; a name makes it a cross-encoder.
      max_length, on_long, strategy, tokens_per_batch, tensor_parallel: as in Predictor.

    Raises:
      InputError: the file cannot be read, its columns do not fit the evaluation, or an option is invalid.
    """
    if columns.labels:
        raise InputError("labels (--labels) name the classes of a head; the labels of an encoder's rows are numbers")
    if task is not None and readers.task_name(task) != readers.CUSTOM:
        layout = layout_of(task)
        columns = columns.or_else(Columns(layout.texts, (layout.label,), header=layout.header))
    columns = text_rows.with_usual_columns(path, columns)
    if len(columns.texts) < 2:
        raise InputError(f"{path}: an encoder is evaluated on two or more text columns, got {', '.join(columns.texts)}")
    chosen = ranking.evaluation_name(evaluation, bool(columns.label))
    rows = text_rows.read(path, columns)
    options = {
        "max_length": max_length,
        "on_long": on_long,
        "strategy": strategy,
        "tokens_per_batch": tokens_per_batch,
        "tensor_parallel": tensor_parallel,
    }
    scorers = [each.name for each in roberta.config.heads if each.kind == "sentence" and each.num_classes == 1]
    if head is not None or (roberta.usage.embedding is None and len(scorers) == 1):
        if prompts or truncate_dim is not None:
            raise InputError("prompts and truncate_dim are for sentence encoders; this is a cross-encoder")
        name = one_head(roberta.config, "sentence", head or scorers[0]).name
        found, truncated = _of_scores(roberta, rows, name, chosen, options)
    else:
        name = ""
        found, truncated = _of_vectors(roberta, rows, _embedding(roberta, truncate_dim), chosen, prompts, options)
    return FileEvaluation(chosen, name, found, dataclasses.replace(rows.tally, truncated=truncated))


def _embedding(roberta: Roberta, truncate_dim: int | None) -> Embedding:
    embedding = roberta.usage.embedding
    if embedding is None:
        logger.warning("the model does not say how its sentence vectors are made: mean pooling is used")
        embedding = Embedding()
    if embedding.is_sparse:
        raise InputError("a sparse encoder is not evaluated here")
    if embedding.is_multi_vector:
        raise InputError(
            "a multi-vector encoder is not evaluated here; score its texts' vectors with roberta_flax.maxsim"
        )
    return embedding if truncate_dim is None else dataclasses.replace(embedding, truncate_dim=truncate_dim)


def _of_vectors(
    roberta: Roberta,
    rows: TextRows,
    embedding: Embedding,
    evaluation: str,
    prompts: Sequence[str],
    options: dict[str, Any],
) -> tuple[Evaluation, int]:
    if len(prompts) > 2:
        raise InputError(f"give one prompt for all columns, or two for the first and the others; got {len(prompts)}")
    first, others = (prompts[0], prompts[-1]) if prompts else _prompts(embedding, evaluation)
    inputs = rows.numbers.copy()
    inputs[:, 1:] += 0 if first == others else len(rows.texts)  # a text with another prompt is another
    used, places = np.unique(inputs, return_inverse=True)
    vectors: list[Any] = []
    truncated = 0
    for prompt, numbers in ((first, used[used < len(rows.texts)]), (others, used[used >= len(rows.texts)])):
        if len(numbers):
            task = SentenceEmbedding(embedding, prompt, roberta.usage.max_length)
            predictor = Predictor(roberta, task, **options)
            vectors += _usable(rows, predictor([rows.texts[number % len(rows.texts)] for number in numbers]))
            truncated += predictor.stats.truncated
    found = np.stack(vectors).astype(np.float64)
    return (
        ranking.evaluate_vectors(
            found,
            places.reshape(inputs.shape).astype(np.int32),
            rows.numbers,
            rows.labels,
            evaluation,
            embedding.similarity,
        ),
        truncated,
    )


def _prompts(embedding: Embedding, evaluation: str) -> tuple[str, str]:
    """The prompts of SentenceEncoder.encode_query and encode_document; or of encode, for both."""
    default = embedding.prompt()
    if evaluation == "correlation":
        return default, default
    document = next((name for name in ("document", "passage", "corpus") if name in embedding.prompts), None)
    return embedding.prompts.get("query", default), default if document is None else embedding.prompts[document]


def _of_scores(
    roberta: Roberta, rows: TextRows, head: str, evaluation: str, options: dict[str, Any]
) -> tuple[Evaluation, int]:
    predictor = Predictor(roberta, Score(head), **options)
    pairs = [(rows.texts[query], rows.texts[other]) for query, *others in rows.numbers.tolist() for other in others]
    scores = np.array(_usable(rows, predictor(pairs)), np.float64).reshape(len(rows), -1)
    return ranking.evaluate_scores(scores, rows.numbers, rows.labels, evaluation), predictor.stats.truncated


def _usable(rows: TextRows, results: Any) -> list[Any]:
    found = list(results)
    for result in found:
        if isinstance(result, Rejected):
            raise InputError(f"{rows.tally.path}: {result.reason}")
    return found
