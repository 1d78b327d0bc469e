"""Pairs of English sentences with their relation, without end: all that the embedded model is trained on.

A sentence says a scene; a second scene is made from the first by steps whose effect is known (leave a fact out, say it
more generally, add one, exchange one for another that excludes it), and their relation is computed from the facts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from random import Random

from recipes.tiny.families import FAMILIES, Pair
from recipes.tiny.words import CONTRADICTION, ENTAILMENT, NEUTRAL, NOUNS, unknown_name

# The model has to see that a word it does not know is the same word in both sentences.
_NOUN_FORMS = {form: form for form in NOUNS.parents} | {plural: word for word, plural in NOUNS.plurals.items()}


def with_an_unknown_word(pair: Pair, random: Random) -> Pair:
    """The pair with a noun of both sentences exchanged for one that does not exist, where that changes nothing."""
    texts = pair.premise, pair.hypothesis
    first, second = (re.findall("[a-z]+", text) for text in texts)
    nouns = [word for word in (*first, *second) if word in _NOUN_FORMS]
    candidates = []
    for word in sorted(set(nouns)):
        single = _NOUN_FORMS[word]
        kin = [n for n in nouns if n != word and set(NOUNS.path(single)) & set(NOUNS.path(_NOUN_FORMS[n]))]
        if (
            first.count(word) == second.count(word) == 1
            and not kin
            and word[0] not in "aeiou"
            and single in NOUNS.parents
        ):
            candidates.append(word)
    if not candidates:
        return pair
    word = random.choice(candidates)
    new = unknown_name(random).lower()
    new += "s" if word != _NOUN_FORMS[word] else ""
    premise, hypothesis = (re.sub(rf"\b{word}\b", new, text) for text in texts)
    return Pair(premise, hypothesis, pair.label)


def casual(text: str, random: Random) -> str:
    """As people type: now and then no full stop, or no capital."""
    if random.random() < 0.08:
        text = text[:-1]
    if random.random() < 0.05:
        text = text[0].lower() + text[1:]
    return text


def pairs(seed: int) -> Iterator[Pair]:
    """Pairs without end, the three labels in turn; the same for the same seed."""
    random = Random(seed)
    families = [family for family, weight in FAMILIES.items() for _ in range(weight)]
    while True:
        for label in (CONTRADICTION, NEUTRAL, ENTAILMENT):
            made = None
            while made is None or (made.premise == made.hypothesis and random.random() < 0.9):
                made = random.choice(families)(random, label)
            if random.random() < 0.06:
                made = with_an_unknown_word(made, random)
            yield Pair(casual(made.premise, random), casual(made.hypothesis, random), label)
