"""An endless stream of labeled pairs of English sentences: all the text that the embedded model is trained on.

A sentence describes a scene. Edits with a known effect make a second scene from the first: they leave a fact out, make
it more general, add one, or replace one by another that excludes it. The label of the pair follows from the facts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from random import Random

from recipes.tiny.generators import GENERATORS, Pair
from recipes.tiny.morphology import unknown_name
from recipes.tiny.taxonomy import CONTRADICTION, ENTAILMENT, NEUTRAL, NOUNS

# The singular of each form of a noun.
_SINGULARS = {noun: noun for noun in NOUNS.parents} | {plural: noun for noun, plural in NOUNS.plurals.items()}


def replace_with_unknown_word(pair: Pair, random: Random) -> Pair:
    """Replaces a noun of both sentences with a made-up one if the label stays the same.

    The model has to learn that a word it does not know is the same word in both sentences.
    """
    candidates = _replaceable_nouns(pair)
    if not candidates:
        return pair
    word = random.choice(candidates)
    new = unknown_name(random).lower()
    new += "s" if word != _SINGULARS[word] else ""
    premise, hypothesis = (re.sub(rf"\b{word}\b", new, text) for text in (pair.premise, pair.hypothesis))
    return Pair(premise, hypothesis, pair.label)


def _replaceable_nouns(pair: Pair) -> list[str]:
    """Returns the nouns that occur once in both sentences and have no related noun in either, sorted."""
    premise, hypothesis = (re.findall("[a-z]+", text) for text in (pair.premise, pair.hypothesis))
    nouns = [word for word in (*premise, *hypothesis) if word in _SINGULARS]

    def is_replaceable(word: str) -> bool:
        singular = _SINGULARS[word]
        hypernyms = set(NOUNS.hypernyms(singular))
        has_relative = any(noun != word and hypernyms & set(NOUNS.hypernyms(_SINGULARS[noun])) for noun in nouns)
        return (
            premise.count(word) == hypothesis.count(word) == 1
            and not has_relative
            and word[0] not in "aeiou"
            and singular in NOUNS.parents
        )

    return [word for word in sorted(set(nouns)) if is_replaceable(word)]


def make_casual(text: str, random: Random) -> str:
    """Drops the period or the capital now and then, as people do when they type."""
    if random.random() < 0.08:
        text = text[:-1]
    if random.random() < 0.05:
        text = text[0].lower() + text[1:]
    return text


def generate_pairs(seed: int) -> Iterator[Pair]:
    """Yields pairs without end, of the three labels in turn. The same seed gives the same pairs."""
    random = Random(seed)
    generators = [generator for generator, weight in GENERATORS.items() for _ in range(weight)]
    while True:
        for label in (CONTRADICTION, NEUTRAL, ENTAILMENT):
            pair = None
            while pair is None or (pair.premise == pair.hypothesis and random.random() < 0.9):
                pair = random.choice(generators)(random, label)
            if random.random() < 0.06:
                pair = replace_with_unknown_word(pair, random)
            yield Pair(make_casual(pair.premise, random), make_casual(pair.hypothesis, random), label)
