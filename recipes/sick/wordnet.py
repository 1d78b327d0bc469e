"""Text and labeled pairs of sentences from WordNet's data files (man wndb), for the recipe in docs/sick.md.

An example in WordNet belongs to one sense of its word. If another word of that sense replaces it, the sentence says the
same. With a hypernym it says less, and follows from the example; with an antonym it says the opposite. So the examples
give pairs whose relation is known, with all of WordNet's vocabulary. Needs lemminflect, for the forms of words.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

from roberta_flax.nn.config import MNLI_LABELS

CONTRADICTION, NEUTRAL, ENTAILMENT = MNLI_LABELS

PARTS_OF_SPEECH = {"noun": "NOUN", "verb": "VERB", "adj": "ADJ", "adv": "ADV"}  # with their names in lemminflect
_PART_OF_SPEECH_BY_SYMBOL = {"n": "noun", "v": "verb", "a": "adj", "s": "adj", "r": "adv"}
# Lexicographer files (lexnames) of things: animals, artifacts, bodies, food, objects, people, plants.
THING_FILES = {5, 6, 8, 13, 17, 18, 20}
THING_TEMPLATES = (
    "There is {a} near the house.",
    "A man is holding {a}.",
    "A woman is looking at {a} in the park.",
    "{A} is lying on the grass.",
    "Two children are standing beside {a}.",
    "A girl in a red shirt is drawing {a}.",
    "{A} is being carried by some people.",
    "Nobody is sitting behind {a}.",
)

Key = tuple[str, str]  # part of speech, and offset in its data file


class Synset(NamedTuple):
    """A sense, and the words that have it.

    Attributes:
      words: the words.
      file: the number of the lexicographer file.
      definition: the definition.
      examples: sentences with one of the words.
      hypernyms: the more general synsets.
      antonyms: the index of a word, the key of another synset, and the index of the antonym there.
    """

    words: list[str]
    file: int
    definition: str
    examples: list[str]
    hypernyms: list[Key]
    antonyms: list[tuple[int, Key, int]]


Synsets = dict[Key, Synset]


class Pair(NamedTuple):
    premise: str
    hypothesis: str
    label: str


def read_synsets(folder: Path) -> Synsets:
    """Reads the synsets of the four data files of a WordNet folder, in the order of the files."""
    synsets = {}
    for part in PARTS_OF_SPEECH:
        for line in (folder / f"data.{part}").read_text(encoding="utf-8").splitlines():
            if not line.startswith("  "):  # which marks the license
                offset, synset = _parse_synset(line)
                synsets[part, offset] = synset
    return synsets


def _parse_synset(line: str) -> tuple[str, Synset]:
    """Returns the offset and the synset of a line of a data file (man wndb)."""
    data, _, gloss = line.partition(" | ")
    fields = data.split()
    count = int(fields[3], 16)
    words = [re.sub(r"\(\w+\)$", "", word).replace("_", " ") for word in fields[4 : 4 + 2 * count : 2]]
    pointer_fields = fields[4 + 2 * count :]
    pointers = [pointer_fields[1 + 4 * i : 5 + 4 * i] for i in range(int(pointer_fields[0]))]
    examples = [text for example in re.findall(r'"([^"]+)"', gloss) if (text := example.strip())]
    synset = Synset(
        words,
        int(fields[1]),
        re.sub(r';?\s*"[^"]*"?', "", gloss).strip(" ;,"),
        [_to_sentence(text) for text in examples],
        [(_PART_OF_SPEECH_BY_SYMBOL[pos], offset) for symbol, offset, pos, _ in pointers if symbol in ("@", "@i")],
        [
            (int(ends[:2], 16) - 1, (_PART_OF_SPEECH_BY_SYMBOL[pos], offset), int(ends[2:], 16) - 1)
            for symbol, offset, pos, ends in pointers
            if symbol == "!"
        ],
    )
    return fields[0], synset


def _to_sentence(text: str) -> str:
    """Returns the text with a capital at the beginning and a punctuation mark at the end."""
    return text[0].upper() + text[1:] + ("" if text[-1] in ".?!" else ".")


def make_documents(synsets: Synsets) -> Iterator[list[str]]:
    """Yields a document of lines for each synset: the definition, a line for each hypernym, and the examples."""
    for synset in synsets.values():
        lines = [f"{', '.join(synset.words)}: {synset.definition}."]
        lines += [f"{synset.words[0]} is a kind of {synsets[key].words[0]}." for key in synset.hypernyms]
        yield lines + synset.examples


def make_pairs(synsets: Synsets, random: Random) -> list[Pair]:
    """Returns pairs of examples, and of sentences about things, in random order.

    The same state of `random` gives the same pairs.
    """
    hyponyms = defaultdict(list)
    for key, synset in synsets.items():
        for hypernym in synset.hypernyms:
            hyponyms[hypernym].append(key)
    pairs: list[Pair] = []
    for (part, _), synset in synsets.items():
        pairs += _example_pairs(synsets, synset, part, random)
        if part == "noun" and synset.file in THING_FILES and synset.hypernyms:
            hypernym = random.choice(synset.hypernyms)
            sister = random.choice(hyponyms[hypernym])
            pairs += _thing_pairs(synset, synsets[hypernym], synsets[sister], random)
    random.shuffle(pairs)
    return pairs


def _example_pairs(synsets: Synsets, synset: Synset, part: str, random: Random) -> Iterator[Pair]:
    """Yields pairs of an example and the same sentence with a synonym, a hypernym or an antonym."""
    for text in synset.examples:
        matches = ((word, inflected) for word in synset.words if (inflected := _find_word(text, word, part)))
        match = next(matches, None)
        if match is None:
            continue
        word, inflected = match
        for synonym in synset.words:
            if synonym != word and (replaced := _replace_word(text, inflected, synonym, part)):
                yield Pair(*random.sample((text, replaced), 2), ENTAILMENT)
        for key in synset.hypernyms:
            hypernym = synsets[key].words[0]
            if hypernym != word and (replaced := _replace_word(text, inflected, hypernym, part)):
                yield _one_way_pair(text, replaced, random.random() < 0.5)
        for i, key, j in synset.antonyms:
            if synset.words[i] == word and (replaced := _replace_word(text, inflected, synsets[key].words[j], part)):
                yield Pair(*random.sample((text, replaced), 2), CONTRADICTION)


def _thing_pairs(synset: Synset, hypernym: Synset, sister: Synset, random: Random) -> Iterator[Pair]:
    """Yields pairs of a sentence about a thing and the same sentence with a synonym, a hypernym or a sister term.

    What is true of one kind may or may not be true of its sister, so that pair is neutral.
    """
    others = random.choice(synset.words), hypernym.words[0], random.choice(sister.words)
    for other in dict.fromkeys(others):
        thing = random.choice(synset.words)
        if other == thing or thing != thing.lower() or other != other.lower():
            continue
        template = random.choice(THING_TEMPLATES)
        first, second = (
            template.format(a=_with_article(word), A=_to_sentence(_with_article(word))[:-1]) for word in (thing, other)
        )
        if other in synset.words:
            yield Pair(first, second, ENTAILMENT)
        elif other == hypernym.words[0]:
            is_upward = "Nobody" not in template
            specific, general = (first, second) if is_upward else (second, first)
            yield _one_way_pair(specific, general, (random.random() < 0.5) == is_upward)
        else:
            yield Pair(first, second, NEUTRAL)


def _one_way_pair(specific: str, general: str, is_forward: bool) -> Pair:
    """Returns a pair: forward, the general sentence follows from the specific one; backward, nothing follows."""
    return Pair(specific, general, ENTAILMENT) if is_forward else Pair(general, specific, NEUTRAL)


def _inflect(word: str, part: str) -> dict[str, str]:
    """Returns the forms of a word by tag (NN, NNS, VB, VBZ, VBG, VBD, VBN); the word itself if they are not known."""
    from lemminflect import getAllInflections  # and spaCy with it, which takes half a second

    inflections = getAllInflections(word, upos=PARTS_OF_SPEECH[part])
    ignored_tags = ("VBP", "JJR", "JJS", "RBR", "RBS")
    return {tag: forms[0] for tag, forms in inflections.items() if tag not in ignored_tags} or {"": word}


def _find_word(text: str, word: str, part: str) -> tuple[str, str] | None:
    """Returns the form of a word that occurs exactly once in a text, and its tag."""
    for tag, form in _inflect(word, part).items():
        if len(re.findall(rf"\b{re.escape(form)}\b", text, re.IGNORECASE)) == 1:
            return form, tag
    return None


def _replace_word(text: str, inflected: tuple[str, str], other: str, part: str) -> str | None:
    """Returns the text with another word in the same form, and the article before it changed if needed."""
    form, tag = inflected
    new = _inflect(other, part).get(tag, other if tag in ("", "NN", "VB", "JJ", "RB") else None)
    if new is None:
        return None

    def replacement(match: re.Match[str]) -> str:
        article = match[1] or ""
        if article.lower() in ("a ", "an "):
            article = article[0] + ("n " if new[0].lower() in "aeiou" else " ")
        return article + (new[0].upper() + new[1:] if match[2][0].isupper() else new)

    return re.sub(rf"\b((?:an? )?)({re.escape(form)})\b", replacement, text, count=1, flags=re.IGNORECASE)


def _with_article(word: str) -> str:
    return f"a{'n' if word[0] in 'aeiou' else ''} {word}"
