"""The forms of words: articles, inflected verbs, and made-up nouns."""

from __future__ import annotations

import re
from functools import cache
from random import Random

from recipes.tiny import lexicon
from recipes.tiny.lexicon import parse_cells, parse_rows


def article(phrase: str) -> str:
    """Returns the phrase with "a" or "an" before it."""
    vowel = phrase[0] in "aeio" or (phrase[0] == "u" and not phrase.startswith(("uni", "use")))
    return f"{'an' if vowel else 'a'} {phrase}"


_IRREGULAR = {cell.split()[0]: cell.split()[1:] for row in parse_rows(lexicon.IRREGULAR) for cell in parse_cells(row)}
_DOUBLED = set(lexicon.DOUBLED.split())  # verbs that double their last letter: running


@cache
def inflect(verb: str, form: str) -> str:
    """Returns a form of a verb: "base", "third" (person singular), "ing", "past" or "participle"."""
    if form == "base":
        return verb
    if form == "third":
        if verb in ("be", "have"):
            return {"be": "is", "have": "has"}[verb]
        if verb.endswith(("s", "sh", "ch", "x", "o")):
            return verb + "es"
        return verb[:-1] + "ies" if re.search("[^aeiou]y$", verb) else verb + "s"
    if form == "ing":
        if verb in ("lie", "tie", "die"):
            return verb[:-2] + "ying"
        if verb in _DOUBLED:
            return verb + verb[-1] + "ing"
        return verb[:-1] + "ing" if re.search("[^eoy]e$", verb) and verb != "be" else verb + "ing"
    if verb in _IRREGULAR:
        return _IRREGULAR[verb][form == "participle"]
    if verb.endswith("e"):
        return verb + "d"
    if verb in _DOUBLED:
        return verb + verb[-1] + "ed"
    return verb[:-1] + "ied" if re.search("[^aeiou]y$", verb) else verb + "ed"


def verb_phrase(phrase: str, form: str) -> str:
    """Inflects the first word of a phrase: open the door -> opened the door."""
    verb, _, rest = phrase.partition(" ")
    return f"{inflect(verb, form)} {rest}".strip()


_SYLLABLES = [
    "ba", "co", "da", "fi", "go", "hu", "ka", "le", "mi", "no", "pa", "ro", "su", "ta", "ve", "wi", "bra", "dro", "gle",
    "kra", "plo", "sti", "tru", "bel", "dan", "gar", "mur", "pin", "ron", "sal", "tor",
]  # fmt: skip


def unknown_name(random: Random) -> str:
    """Returns a made-up name of two or three syllables."""
    return "".join(random.choice(_SYLLABLES) for _ in range(random.randint(2, 3))).capitalize()
