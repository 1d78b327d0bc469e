"""How good a sentence encoder's vectors or a cross-encoder's scores are, on rows of texts (datasets.text_rows)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from roberta_flax import metrics
from roberta_flax.errors import InputError
from roberta_flax.metrics import RANKING_METRICS, Evaluation
from roberta_flax.tasks.similarity import pairwise_similarities, similarities

METRICS = {"correlation": ("spearman", "pearson"), "retrieval": RANKING_METRICS}  # the main one first
_QUERIES_AT_ONCE = 256

Numbers = npt.NDArray[np.int32]
Values = npt.NDArray[Any]


def evaluation_name(name: str | None, is_labeled: bool) -> str:
    """Returns a key of METRICS: the one that is given, or else correlation for rows with labels.

    Raises:
      InputError: there is no such evaluation, or it needs labels that are not there.
    """
    chosen = name or ("correlation" if is_labeled else "retrieval")
    if chosen not in METRICS:
        raise InputError(f"evaluation must be one of {', '.join(METRICS)}, got {name!r}")
    if chosen == "correlation" and not is_labeled:
        raise InputError("a correlation is one with labels; name their column with --label-column")
    return chosen


def evaluate_vectors(
    vectors: Values, places: Numbers, numbers: Numbers, labels: Values, evaluation: str, similarity: str
) -> Evaluation:
    """Judges vectors by how similar they are.

    Args:
      vectors: float [vectors, size].
      places: int [rows, columns]: the index in `vectors` of each row's texts: a query, a relevant document and any
        others, or two texts.
      numbers: int [rows, columns]: a number for each text, the same for the same text in any column.
      labels: float [rows, labels]; only the first counts.
      evaluation: "correlation" of the similarity of the first two texts with the label, as sentence-transformers'
        EmbeddingSimilarityEvaluator computes it. Or "retrieval": without labels, each first text is a query for which
        all others of the file are ranked, as by its InformationRetrievalEvaluator (but not the query's own text, unless
        it is relevant); with labels, only the second texts of its own rows, whose relevances the labels are.
      similarity: one of checkpoint.usage.SIMILARITIES.

    Raises:
      InputError: as in metrics.evaluate_values and metrics.evaluate_rankings.
    """
    if evaluation == "retrieval" and not labels.shape[1]:
        return metrics.evaluate_rankings(_rankings(vectors, places, numbers, similarity))
    scores = pairwise_similarities(vectors[places[:, 0]], vectors[places[:, 1]], similarity)
    return evaluate_scores(scores[:, None], numbers[:, :2], labels, evaluation)


def evaluate_scores(scores: Values, numbers: Numbers, labels: Values, evaluation: str) -> Evaluation:
    """Judges scores of pairs of a row's first text and each other one.

    Args:
      scores: float [rows, columns - 1].
      numbers: int [rows, columns]: each row's texts.
      labels: float [rows, labels]; only the first counts.
      evaluation: as in evaluate_vectors. A retrieval ranks each query's documents of all its rows: with labels those
        in the second column, otherwise the positive, in the second, among the negatives, in the others.

    Raises:
      InputError: as in evaluate_vectors; or there are neither labels nor negatives.
    """
    if evaluation == "correlation":
        return metrics.evaluate_values(scores[:, 0], labels[:, 0], METRICS[evaluation])
    if labels.shape[1]:
        scores, numbers, relevance = scores[:, :1], numbers[:, :2], labels[:, :1]
    elif numbers.shape[1] > 2:
        relevance = np.zeros(scores.shape)
        relevance[:, 0] = 1
    else:
        raise InputError(
            "rows of a query and a relevant document rank nothing; name a column of labels (--label-column), or one "
            "more column of documents (--text-column)"
        )
    queries: dict[int, dict[int, tuple[float, float]]] = {}
    for (query, *documents), row_scores, row_relevance in zip(numbers.tolist(), scores, relevance, strict=True):
        found = queries.setdefault(query, {})
        for document, score, value in zip(documents, row_scores, row_relevance, strict=True):
            found[document] = (score, max(value, found.get(document, (score, value))[1]))
    pairs = (zip(*found.values(), strict=True) for found in queries.values())
    return metrics.evaluate_rankings((list(each), list(values)) for each, values in pairs)


def _rankings(vectors: Values, places: Numbers, numbers: Numbers, similarity: str) -> Iterator[tuple[Values, Values]]:
    """Yields the scores and relevances of all documents for each query."""
    queries, first = np.unique(numbers[:, 0], return_index=True)
    query_vectors = vectors[places[first, 0]]
    documents, first = np.unique(numbers[:, 1:], return_index=True)
    document_vectors = vectors[places[:, 1:].ravel()[first]]
    index_of = {document: i for i, document in enumerate(documents.tolist())}
    relevant: dict[int, list[int]] = {}
    for query, document in numbers[:, :2].tolist():
        relevant.setdefault(query, []).append(index_of[document])
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        chosen = queries[start : start + _QUERIES_AT_ONCE].tolist()
        scores_of = similarities(query_vectors[start : start + _QUERIES_AT_ONCE], document_vectors, similarity)
        for query, scores in zip(chosen, scores_of, strict=True):
            relevance = np.zeros(len(documents))
            relevance[relevant[query]] = 1
            own = index_of.get(query)
            if own is not None and not relevance[own]:
                scores, relevance = np.delete(scores, own), np.delete(relevance, own)
            yield scores, relevance
