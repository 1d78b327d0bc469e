"""Labeled pairs of sentences to fine-tune on before SICK."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from recipes.sick import wordnet
from recipes.sick.words import is_negated, words
from recipes.tiny.pairs import generate_pairs
from roberta_flax.nn.config import MNLI_LABELS

SEED = 2015
VALIDATION_PAIRS = 1000
# The largest number of WordNet's pairs of each label. There are fewer contradictions.
MAX_WORDNET_PAIRS = {"contradiction": 10_000, "neutral": 10_000, "entailment": 15_000}
GENERATED_PAIRS, UNRELATED_PAIRS = 50_000, 30_000


def write_pairs(wordnet_folder: Path, output: Path) -> None:
    """Writes train.tsv and valid.tsv in MNLI's columns: pairs from WordNet, from recipes.tiny, and unrelated ones.

    As in SICK, sentences contradict each other by a negation or by antonyms. A dog and a cat are no contradiction,
    because both may be there.
    """
    output.mkdir(parents=True, exist_ok=True)
    synsets = wordnet.read_synsets(wordnet_folder)
    rng = random.Random(SEED)
    pairs = _limit_by_label(wordnet.make_pairs(synsets, rng))
    pairs += itertools.islice(_generated_pairs(), GENERATED_PAIRS)
    sentences = [pair.premise for pair in pairs] + [text for synset in synsets.values() for text in synset.examples]
    pairs += itertools.islice(unrelated_pairs(sentences, rng), UNRELATED_PAIRS)
    rng.shuffle(pairs)
    for name, part in (("valid", pairs[:VALIDATION_PAIRS]), ("train", pairs[VALIDATION_PAIRS:])):
        lines = ["sentence1\tsentence2\tgold_label", *map("\t".join, part)]
        (output / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(json.dumps({"file": f"{name}.tsv", **Counter(pair.label for pair in part)}))


def _limit_by_label(pairs: Sequence[wordnet.Pair]) -> list[wordnet.Pair]:
    """Returns the first MAX_WORDNET_PAIRS pairs of each label, in their order."""
    counts: Counter[str] = Counter()
    kept = []
    for pair in pairs:
        counts[pair.label] += 1
        if counts[pair.label] <= MAX_WORDNET_PAIRS[pair.label]:
            kept.append(pair)
    return kept


def _generated_pairs() -> Iterator[wordnet.Pair]:
    """Yields pairs of recipes.tiny without end, except contradictions without a negation on exactly one side."""
    for pair in generate_pairs(SEED):
        label = MNLI_LABELS[pair.label]
        if label != "contradiction" or is_negated(pair.premise) != is_negated(pair.hypothesis):
            yield wordnet.Pair(pair.premise, pair.hypothesis, label)


def unrelated_pairs(sentences: Sequence[str], rng: random.Random) -> Iterator[wordnet.Pair]:
    """Yields neutral pairs without end: sentences that share a word, sometimes several, but say different things."""
    bags = [set(words(text)) for text in sentences]
    numbers_by_word: dict[str, list[int]] = {}
    for number, bag in enumerate(bags):
        for word in sorted(bag):
            numbers_by_word.setdefault(word, []).append(number)

    while True:
        first = rng.randrange(len(sentences))
        if not bags[first]:
            continue
        candidates = rng.choices(numbers_by_word[rng.choice(sorted(bags[first]))], k=rng.choice((1, 20)))
        second = max(candidates, key=lambda number: _jaccard(bags[first], bags[number]))
        if not (bags[first] <= bags[second] or bags[second] <= bags[first]):
            yield wordnet.Pair(sentences[first], sentences[second], "neutral")


def _jaccard(first: set[str], second: set[str]) -> float:
    return len(first & second) / len(first | second)
