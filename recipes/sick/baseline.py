"""A baseline on SICK: classifiers and regressors over bags of words."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recipes.sick.dataset import SEED, Part, read_part
from recipes.sick.words import NEGATIONS, words

TextPair = tuple[str, str]
Features = Callable[[TextPair], dict[str, float]]
TASKS = ("sick", "sick-relatedness")
_MAX_TREE_FEATURES = 100  # over which trees run only on _TREE_FEATURES
_TREE_FEATURES = "words, overlap"


def overlap(pair: TextPair) -> dict[str, float]:
    """Returns how much two bags of words have in common, and which sentences are negated."""
    a, b = map(words, pair)
    sets = set(a), set(b)
    shared, union = sets[0] & sets[1], sets[0] | sets[1]
    negated = [bool(s & NEGATIONS) for s in sets]
    features = {
        "jaccard": len(shared) / len(union),
        "of first": len(shared) / len(sets[0]), "of second": len(shared) / len(sets[1]),
        "shared": len(shared), "only first": len(sets[0] - sets[1]), "only second": len(sets[1] - sets[0]),
        "longer": len(a) - len(b), "length": len(a) + len(b),
        "no first": negated[0], "no second": negated[1], "one no": negated[0] != negated[1], "both no": all(negated),
    }  # fmt: skip
    for n in (2, 3):
        grams = [set(zip(*(s[i:] for i in range(n)), strict=False)) for s in (a, b)]
        features[f"shared {n}-grams"] = len(grams[0] & grams[1]) / max(1, len(grams[0] | grams[1]))
        chars = [{f" {' '.join(s)} "[i : i + n + 1] for i in range(len(" ".join(s)))} for s in (a, b)]
        features[f"shared {n + 1}-letters"] = len(chars[0] & chars[1]) / max(1, len(chars[0] | chars[1]))
    return {name: float(value) for name, value in features.items()}


def own_words(pair: TextPair) -> dict[str, float]:
    """Returns the words of each sentence, those of one sentence alone, and those of both."""
    a, b = (set(words(text)) for text in pair)
    groups = {"a": a, "b": b, "a-": a - b, "b-": b - a, "ab": a & b}
    return {f"{name} {word}": 1.0 for name, group in groups.items() for word in group}


def word_pairs(pair: TextPair) -> dict[str, float]:
    """Returns the pairs of a word of one sentence alone with a word of the other alone: man with woman."""
    a, b = (set(words(text)) for text in pair)
    return {f"{x} | {y}": 1.0 for x, y in itertools.product(a - b, b - a)}


def word_bigrams(pair: TextPair) -> dict[str, float]:
    """Returns the bigrams of each sentence."""
    return {
        f"{name} {x} {y}": 1.0
        for name, text in zip("ab", pair, strict=True)
        for x, y in itertools.pairwise(words(text))
    }


FEATURE_SETS: dict[str, Sequence[Features]] = {
    "words": [own_words],
    "overlap": [overlap],
    "words, overlap": [own_words, overlap],
    "words, overlap, word pairs": [own_words, overlap, word_pairs],
    "words, bigrams, overlap, word pairs": [own_words, word_bigrams, overlap, word_pairs],
}


class Candidate(NamedTuple):
    """A trained model, its score on valid.tsv, and the features of test.tsv for it."""

    score: float
    name: str
    model: Any
    test_features: Any


def run_baseline(folder: Path) -> None:
    """Trains all models on all feature sets; measures the best of each task by valid.tsv, and no other, on test.tsv."""
    parts = {name: read_part(folder / f"{name}.tsv") for name in ("train", "valid", "test")}
    _print_majority(parts)
    candidates: dict[str, list[Candidate]] = {task: [] for task in TASKS}
    for name, features in FEATURE_SETS.items():
        for task, candidate in _train_candidates(parts, name, features):
            candidates[task].append(candidate)
            print(json.dumps({"task": task, "model": candidate.name, "valid": round(candidate.score, 4)}))
    for task in TASKS:
        best = max(candidates[task], key=lambda candidate: candidate.score)
        metrics = _test_metrics(task, best.model.predict(best.test_features), parts["test"])
        rounded = {key: round(float(value), 4) for key, value in metrics.items()}
        print(json.dumps({"task": task, "best": best.name, "valid": round(best.score, 4), **rounded}))


def _print_majority(parts: Mapping[str, Part]) -> None:
    """Prints the accuracy of always choosing the most frequent judgment of the training pairs."""
    majority = max(set(parts["train"].judgments), key=parts["train"].judgments.count)
    accuracy = np.mean([judgment == majority for judgment in parts["test"].judgments])
    print(json.dumps({"task": "sick", "model": f"always {majority}", "test_accuracy": round(float(accuracy), 4)}))


def _train_candidates(
    parts: Mapping[str, Part], features_name: str, features: Sequence[Features]
) -> Iterator[tuple[str, Candidate]]:
    """Trains every model of every task on a feature set, and yields each with its task."""
    from sklearn.feature_extraction import DictVectorizer
    from sklearn.preprocessing import MaxAbsScaler

    vectorizer, scaler = DictVectorizer(), MaxAbsScaler()

    def feature_dicts(part: str) -> list[dict[str, float]]:
        return [{k: v for function in features for k, v in function(pair).items()} for pair in parts[part].pairs]

    train = scaler.fit_transform(vectorizer.fit_transform(feature_dicts("train")))
    valid, test = (scaler.transform(vectorizer.transform(feature_dicts(part))) for part in ("valid", "test"))
    trees_are_feasible = train.shape[1] < _MAX_TREE_FEATURES or features_name == _TREE_FEATURES
    for task, models in (("sick", _classifiers()), ("sick-relatedness", _regressors())):
        for model_name, make_model in models.items():
            if ("boosting" in model_name or "forest" in model_name) and not trees_are_feasible:
                continue
            model = make_model().fit(train, _targets(task, parts["train"]))
            score = _validation_score(task, model.predict(valid), parts["valid"])
            yield task, Candidate(score, f"{model_name} on {features_name}", model, test)


def _targets(task: str, part: Part) -> Any:
    return part.judgments if task == "sick" else part.scores


def _validation_score(task: str, predicted: Any, part: Part) -> float:
    """Returns the accuracy of judgments, or Pearson's correlation of relatedness scores."""
    if task == "sick":
        return float(np.mean(predicted == part.judgments))
    return float(np.corrcoef(predicted, part.scores)[0, 1])


def _test_metrics(task: str, predicted: Any, part: Part) -> dict[str, Any]:
    from scipy.stats import spearmanr

    if task == "sick":
        return {"test_accuracy": np.mean(predicted == part.judgments)}
    return {
        "test_pearson": np.corrcoef(predicted, part.scores)[0, 1],
        "test_spearman": spearmanr(predicted, part.scores).statistic,
        "test_mse": np.mean((predicted - part.scores) ** 2),
    }


def _classifiers() -> dict[str, Callable[[], Any]]:
    from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression

    return {
        **{
            f"logistic regression, C={c}": lambda c=c: LogisticRegression(C=c, max_iter=2000)
            for c in (0.03, 0.1, 0.3, 1, 3)
        },
        "gradient boosting": lambda: GradientBoostingClassifier(
            n_estimators=300, max_depth=3, subsample=0.7, random_state=SEED
        ),
        "random forest": lambda: RandomForestClassifier(500, min_samples_leaf=2, random_state=SEED, n_jobs=2),
    }


def _regressors() -> dict[str, Callable[[], Any]]:
    from sklearn.ensemble import GradientBoostingRegressor, RandomForestRegressor
    from sklearn.linear_model import Ridge

    return {
        **{f"ridge, alpha={alpha}": lambda alpha=alpha: Ridge(alpha=alpha) for alpha in (1, 3, 10, 30, 100)},
        "gradient boosting": lambda: GradientBoostingRegressor(
            n_estimators=300, max_depth=3, subsample=0.7, random_state=SEED
        ),
        "random forest": lambda: RandomForestRegressor(500, min_samples_leaf=2, random_state=SEED, n_jobs=2),
    }
