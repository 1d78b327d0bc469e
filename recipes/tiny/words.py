"""What the lexicon's tables say: which word is a kind of which, which exclude each other, and the forms of words."""

from __future__ import annotations

import re
from functools import cache
from random import Random

from recipes.tiny import lexicon

# As MNLI_LABELS: the class is the index.
CONTRADICTION, NEUTRAL, ENTAILMENT = 0, 1, 2
Relation = int | None  # None: people would not agree


def rows(text: str) -> list[str]:
    """The lines of a table that have something in them."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def cells(line: str, mark: str = "|") -> list[str]:
    return [cell.strip() for cell in line.split(mark)]


# What is a kind of what


class Kinds:
    """A hierarchy of words: `word < kind`, `other way to say it = word`, and `!` where kinds exclude each other."""

    def __init__(self, table: str) -> None:
        self.parents: dict[str, str | None] = {}
        self.ways: dict[str, list[str]] = {}
        self.plurals: dict[str, str] = {}
        self.mass: set[str] = set()
        self.exclusive: set[str] = set()
        for line in rows(table):
            forms, _, word = (cell.strip() for cell in line.partition("="))
            if word:
                self._forms(forms)
                self.ways[word].append(self._name(forms))
                continue
            left, _, parent = (cell.strip() for cell in line.rstrip("!").partition("<"))
            word = self._name(left)
            self._forms(left)
            self.parents[word] = parent or None
            self.ways[word] = [word]
            if line.endswith("!"):
                self.exclusive.add(word)

    @staticmethod
    def _name(forms: str) -> str:
        return forms.rstrip("~ ").partition("/")[0]

    def _forms(self, forms: str) -> None:
        word, _, plural = forms.rstrip("~ ").partition("/")
        self.plurals[word] = plural or word + "s"
        if forms.endswith("~"):
            self.mass.add(word)

    def path(self, word: str) -> list[str]:
        """The word, what it is a kind of, and so on."""
        found = [word]
        while (parent := self.parents.get(found[-1])) is not None:
            found.append(parent)
        return found

    def is_a(self, word: str, kind: str) -> bool:
        return kind in self.path(word)

    def of(self, kind: str) -> list[str]:
        """Every word of a kind, itself included."""
        return [word for word in self.parents if self.is_a(word, kind)]

    def relation(self, first: str, second: str) -> Relation:
        """What holds of "it is a SECOND" where "it is a FIRST" holds."""
        if self.is_a(first, second):
            return ENTAILMENT
        if self.is_a(second, first):
            return NEUTRAL
        common = next((kind for kind in self.path(first) if kind in self.path(second)), None)
        return CONTRADICTION if common in self.exclusive else None


NOUNS = Kinds(lexicon.NOUNS)
PLACES = Kinds(lexicon.PLACES + lexicon.SPOTS)
SPOTS = list(Kinds(lexicon.SPOTS).parents)
PERSONS = NOUNS.of("person")
SHAPED = (
    "person",
    "adult",
    "child",
    "man",
    "woman",
    "boy",
    "girl",
    "baby",
)  # kinds of persons by age and sex; others by job
COMMON = (
    "man",
    "man",
    "woman",
    "woman",
    "boy",
    "girl",
    "child",
    "person",
    "dog",
    "dog",
    "cat",
    "baby",
    "horse",
    "bird",
)
NAMES = dict.fromkeys(lexicon.FEMALE_NAMES.split(), "she") | dict.fromkeys(lexicon.MALE_NAMES.split(), "he")


def noun_relation(first: str, second: str) -> Relation:
    """Kinds.relation; a person's job says nothing of age and sex, nor of other jobs."""
    if first in NAMES or second in NAMES:
        if second == "person" or first == second:
            return ENTAILMENT
        return NEUTRAL if first == "person" or (first in NAMES and second in NAMES) else None
    if NOUNS.is_a(first, "person") and NOUNS.is_a(second, "person") and (first in SHAPED) != (second in SHAPED):
        if "person" in (first, second):
            return NOUNS.relation(first, second)
        return None if "child" in NOUNS.path(first) + NOUNS.path(second) else NEUTRAL
    if first not in SHAPED and second not in SHAPED and NOUNS.is_a(first, "person") and NOUNS.is_a(second, "person"):
        return ENTAILMENT if NOUNS.is_a(first, second) else NEUTRAL if NOUNS.is_a(second, first) else None
    return NOUNS.relation(first, second)


def place_relation(first: str, second: str) -> Relation:
    """Kinds.relation of places; what is outdoors is not indoors."""
    if {PLACES.path(place)[-1] for place in (first, second)} == {"outdoors", "indoors"}:
        return CONTRADICTION
    return PLACES.relation(first, second)


class Adjectives:
    """Lines of adjectives of which one thing has at most one; `=` joins those that say the same."""

    def __init__(self, table: str) -> None:
        self.lines = [[cells(cell, "=") for cell in cells(line)] for line in rows(table)]

    def alternatives(self, adjective: str) -> list[str]:
        for line in self.lines:
            if any(adjective in same for same in line):
                return [same[0] for same in line if adjective not in same]
        return []

    def ways(self, adjective: str) -> list[str]:
        return next((same for line in self.lines for same in line if adjective in same), [adjective])

    def pick(self, random: Random) -> str:
        return random.choice(random.choice(self.lines))[0]


PERSON_ADJECTIVES = Adjectives(lexicon.PERSON_ADJECTIVES)
ANIMAL_ADJECTIVES = Adjectives(lexicon.ANIMAL_ADJECTIVES)
THING_ADJECTIVES = Adjectives(lexicon.THING_ADJECTIVES)
COLORS = [same[0] for same in THING_ADJECTIVES.lines[0]]


def adjectives_of(noun: str) -> Adjectives:
    if NOUNS.is_a(noun, "person"):
        return PERSON_ADJECTIVES
    return ANIMAL_ADJECTIVES if NOUNS.is_a(noun, "animal") else THING_ADJECTIVES


# Forms of words


def article(phrase: str) -> str:
    """The phrase with a or an before it."""
    vowel = phrase[0] in "aeio" or (phrase[0] == "u" and not phrase.startswith(("uni", "use")))
    return f"{'an' if vowel else 'a'} {phrase}"


_IRREGULAR = {row.split()[0]: row.split()[1:] for line in rows(lexicon.IRREGULAR) for row in cells(line)}
_DOUBLED = set(lexicon.DOUBLED.split())


@cache
def inflect(verb: str, form: str) -> str:
    """A verb's form: base, third, ing, past or participle."""
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
    """The first word of a phrase in another form: open the door -> opened the door."""
    verb, _, rest = phrase.partition(" ")
    return f"{inflect(verb, form)} {rest}".strip()


_SYLLABLES = [
    "ba",
    "co",
    "da",
    "fi",
    "go",
    "hu",
    "ka",
    "le",
    "mi",
    "no",
    "pa",
    "ro",
    "su",
    "ta",
    "ve",
    "wi",
    "bra",
    "dro",
    "gle",
    "kra",
    "plo",
    "sti",
    "tru",
    "bel",
    "dan",
    "gar",
    "mur",
    "pin",
    "ron",
    "sal",
    "tor",
]


def unknown_name(random: Random) -> str:
    return "".join(random.choice(_SYLLABLES) for _ in range(random.randint(2, 3))).capitalize()
