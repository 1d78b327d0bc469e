"""The relations of words: which is a hyponym of which, which exclude each other, and which mean the same."""

from __future__ import annotations

from random import Random

from recipes.tiny import lexicon
from recipes.tiny.lexicon import parse_cells, parse_rows

# The labels, in the order of MNLI_LABELS.
CONTRADICTION, NEUTRAL, ENTAILMENT = 0, 1, 2
Relation = int | None  # a label, or None if people would not agree on it


class Taxonomy:
    """A hierarchy of words, parsed from a table of the lexicon.

    A row is `word < hypernym` or `synonym = word`. A `!` at its end says that the kinds of the word exclude each other.

    Attributes:
      parents: the hypernym of each word, or None.
      synonyms: the synonyms of each word, itself first.
      plurals: the plural of each word and synonym.
      mass_nouns: the words without article and plural.
      exclusive_kinds: the words whose kinds exclude each other.
    """

    def __init__(self, table: str) -> None:
        self.parents: dict[str, str | None] = {}
        self.synonyms: dict[str, list[str]] = {}
        self.plurals: dict[str, str] = {}
        self.mass_nouns: set[str] = set()
        self.exclusive_kinds: set[str] = set()
        for row in parse_rows(table):
            forms, _, word = (cell.strip() for cell in row.partition("="))
            if word:
                self._add_forms(forms)
                self.synonyms[word].append(self._name(forms))
                continue
            left, _, parent = (cell.strip() for cell in row.rstrip("!").partition("<"))
            word = self._name(left)
            self._add_forms(left)
            self.parents[word] = parent or None
            self.synonyms[word] = [word]
            if row.endswith("!"):
                self.exclusive_kinds.add(word)
        self._hypernyms = {word: self._path(word) for word in self.parents}
        self._hyponyms: dict[str, list[str]] = {}
        for word, path in self._hypernyms.items():
            for kind in path:
                self._hyponyms.setdefault(kind, []).append(word)

    @staticmethod
    def _name(forms: str) -> str:
        return forms.rstrip("~ ").partition("/")[0]

    def _add_forms(self, forms: str) -> None:
        word, _, plural = forms.rstrip("~ ").partition("/")
        self.plurals[word] = plural or word + "s"
        if forms.endswith("~"):
            self.mass_nouns.add(word)

    def _path(self, word: str) -> list[str]:
        path = [word]
        while (parent := self.parents.get(path[-1])) is not None:
            path.append(parent)
        return path

    def hypernyms(self, word: str) -> list[str]:
        """Returns the word, its hypernym, the hypernym of that, and so on."""
        return self._hypernyms.get(word, [word])

    def is_a(self, word: str, kind: str) -> bool:
        """Whether `kind` is the word itself or one of its hypernyms."""
        return kind in self.hypernyms(word)

    def hyponyms(self, kind: str) -> list[str]:
        """Returns every word that is a kind of `kind`, itself included."""
        return self._hyponyms.get(kind, [])

    def relation(self, first: str, second: str) -> Relation:
        """Returns the label of the hypothesis "it is a SECOND" for the premise "it is a FIRST"."""
        if self.is_a(first, second):
            return ENTAILMENT
        if self.is_a(second, first):
            return NEUTRAL
        common = next((kind for kind in self.hypernyms(first) if kind in self.hypernyms(second)), None)
        return CONTRADICTION if common in self.exclusive_kinds else None


NOUNS = Taxonomy(lexicon.NOUNS)
PLACES = Taxonomy(lexicon.PLACES + lexicon.SPOTS)
SPOTS = list(Taxonomy(lexicon.SPOTS).parents)
PERSON_NOUNS = NOUNS.hyponyms("person")
# Nouns that name a person by age or sex; the others name an occupation or a role.
AGE_AND_SEX_NOUNS = ("person", "adult", "child", "man", "woman", "boy", "girl", "baby")
# The most frequent subjects, some of them with a double chance.
COMMON_SUBJECTS = (
    "man", "man", "woman", "woman", "boy", "girl", "child", "person", "dog", "dog", "cat", "baby", "horse", "bird",
)  # fmt: skip
# Names, and their pronouns.
NAMES = dict.fromkeys(lexicon.FEMALE_NAMES.split(), "she") | dict.fromkeys(lexicon.MALE_NAMES.split(), "he")


def noun_relation(first: str, second: str) -> Relation:
    """Returns the relation of two nouns in the taxonomy.

    The occupation of a person says nothing about age and sex, nor about other occupations.
    """
    if first in NAMES or second in NAMES:
        if second == "person" or first == second:
            return ENTAILMENT
        return NEUTRAL if first == "person" or (first in NAMES and second in NAMES) else None
    if (
        NOUNS.is_a(first, "person")
        and NOUNS.is_a(second, "person")
        and (first in AGE_AND_SEX_NOUNS) != (second in AGE_AND_SEX_NOUNS)
    ):
        if "person" in (first, second):
            return NOUNS.relation(first, second)
        return None if "child" in NOUNS.hypernyms(first) + NOUNS.hypernyms(second) else NEUTRAL
    if (
        first not in AGE_AND_SEX_NOUNS
        and second not in AGE_AND_SEX_NOUNS
        and NOUNS.is_a(first, "person")
        and NOUNS.is_a(second, "person")
    ):
        return ENTAILMENT if NOUNS.is_a(first, second) else NEUTRAL if NOUNS.is_a(second, first) else None
    return NOUNS.relation(first, second)


def place_relation(first: str, second: str) -> Relation:
    """Returns the relation of two places in the taxonomy. What is outdoors is not indoors."""
    if {PLACES.hypernyms(place)[-1] for place in (first, second)} == {"outdoors", "indoors"}:
        return CONTRADICTION
    return PLACES.relation(first, second)


class Adjectives:
    """Groups of adjectives, parsed from a table of the lexicon.

    A thing has at most one adjective of a group (a row of the table). `=` joins synonyms.
    """

    def __init__(self, table: str) -> None:
        self.groups = [[parse_cells(cell, "=") for cell in parse_cells(row)] for row in parse_rows(table)]

    def alternatives(self, adjective: str) -> list[str]:
        """Returns the other adjectives of the group, one of each set of synonyms."""
        for group in self.groups:
            if any(adjective in synonyms for synonyms in group):
                return [synonyms[0] for synonyms in group if adjective not in synonyms]
        return []

    def synonyms(self, adjective: str) -> list[str]:
        """Returns the synonyms of an adjective, itself included."""
        return next((synonyms for group in self.groups for synonyms in group if adjective in synonyms), [adjective])

    def sample(self, random: Random) -> str:
        """Returns a random adjective."""
        return random.choice(random.choice(self.groups))[0]


PERSON_ADJECTIVES = Adjectives(lexicon.PERSON_ADJECTIVES)
ANIMAL_ADJECTIVES = Adjectives(lexicon.ANIMAL_ADJECTIVES)
THING_ADJECTIVES = Adjectives(lexicon.THING_ADJECTIVES)
COLORS = [synonyms[0] for synonyms in THING_ADJECTIVES.groups[0]]


def adjectives_of(noun: str) -> Adjectives:
    """Returns the adjectives that describe a noun."""
    if NOUNS.is_a(noun, "person"):
        return PERSON_ADJECTIVES
    return ANIMAL_ADJECTIVES if NOUNS.is_a(noun, "animal") else THING_ADJECTIVES
