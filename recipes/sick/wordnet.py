"""Text and pairs of sentences from WordNet's data files (man wndb), for the recipe in docs/sick.md.

An example of WordNet belongs to one sense of its word. Another word of that sense in its place says the same; a more
general word says less, and follows; an antonym says the opposite. So the examples are a source of pairs whose relation
is known, in as many words as WordNet has. Needs lemminflect, for the forms of words.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

from lemminflect import getAllInflections

from roberta_flax.nn.config import MNLI_LABELS

CONTRADICTION, NEUTRAL, ENTAILMENT = MNLI_LABELS

PARTS = {"noun": "NOUN", "verb": "VERB", "adj": "ADJ", "adv": "ADV"}  # and their names in lemminflect
_FILES = {"n": "noun", "v": "verb", "a": "adj", "s": "adj", "r": "adv"}
THINGS = {5, 6, 8, 13, 17, 18, 20}  # lexnames: animals, artifacts, bodies, food, objects, people, plants
FRAMES = (
    "There is {a} near the house.",
    "A man is holding {a}.",
    "A woman is looking at {a} in the park.",
    "{A} is lying on the grass.",
    "Two children are standing beside {a}.",
    "A girl in a red shirt is drawing {a}.",
    "{A} is being carried by some people.",
    "Nobody is sitting behind {a}.",
)

Key = tuple[str, str]  # part of speech, offset in its file


class Synset(NamedTuple):
    """A sense: the words that have it, what it says, examples of use, what it is a kind of, and the antonyms."""

    words: list[str]
    file: int
    definition: str
    examples: list[str]
    kinds: list[Key]
    antonyms: list[tuple[int, Key, int]]  # which of words, and which word of which other synset


class Pair(NamedTuple):
    premise: str
    hypothesis: str
    label: str


def read(folder: Path) -> dict[Key, Synset]:
    """Every synset of the four data files of a WordNet folder, in their order."""
    found = {}
    for part in PARTS:
        for line in (folder / f"data.{part}").read_text(encoding="utf-8").splitlines():
            if line.startswith("  "):  # the licence
                continue
            data, _, gloss = line.partition(" | ")
            fields = data.split()
            count = int(fields[3], 16)
            words = [re.sub(r"\(\w+\)$", "", word).replace("_", " ") for word in fields[4 : 4 + 2 * count : 2]]
            after = fields[4 + 2 * count :]
            pointers = [after[1 + 4 * i : 5 + 4 * i] for i in range(int(after[0]))]
            examples = [text for example in re.findall(r'"([^"]+)"', gloss) if (text := example.strip())]
            found[part, fields[0]] = Synset(
                words,
                int(fields[1]),
                re.sub(r';?\s*"[^"]*"?', "", gloss).strip(" ;,"),
                [sentence(text) for text in examples],
                [(_FILES[pos], offset) for symbol, offset, pos, _ in pointers if symbol in ("@", "@i")],
                [
                    (int(ends[:2], 16) - 1, (_FILES[pos], offset), int(ends[2:], 16) - 1)
                    for symbol, offset, pos, ends in pointers
                    if symbol == "!"
                ],
            )
    return found


def sentence(text: str) -> str:
    """The text with a capital at its beginning and a mark at its end."""
    return text[0].upper() + text[1:] + ("" if text[-1] in ".?!" else ".")


def documents(table: dict[Key, Synset]) -> Iterator[list[str]]:
    """A document a synset, a sentence a line: what its words mean, what it is a kind of, and the examples."""
    for synset in table.values():
        lines = [f"{', '.join(synset.words)}: {synset.definition}."]
        lines += [f"{synset.words[0]} is a kind of {table[kind].words[0]}." for kind in synset.kinds]
        yield lines + synset.examples


def pairs(table: dict[Key, Synset], random: Random) -> list[Pair]:
    """Pairs of examples, and of sentences about things, with their relation, in a random order.

    The same state of `random` gives the same pairs.
    """
    kinds_of = defaultdict(list)
    for key, synset in table.items():
        for kind in synset.kinds:
            kinds_of[kind].append(key)
    made: list[Pair] = []
    for (part, _), synset in table.items():
        made += _of_examples(table, synset, part, random)
        if part == "noun" and synset.file in THINGS and synset.kinds:
            kind = random.choice(synset.kinds)
            made += _of_a_thing(synset, table[kind], table[random.choice(kinds_of[kind])], random)
    random.shuffle(made)
    return made


def _of_examples(table: dict[Key, Synset], synset: Synset, part: str, random: Random) -> Iterator[Pair]:
    """Each example beside itself with another word of its sense, with a more general one, and with an antonym."""
    for text in synset.examples:
        found = next(((word, form) for word in synset.words if (form := _find(text, word, part))), None)
        if found is None:
            continue
        word, form = found
        for other in synset.words:
            if other != word and (new := _exchanged(text, form, other, part)):
                yield Pair(*random.sample((text, new), 2), ENTAILMENT)
        for kind in synset.kinds:
            other = table[kind].words[0]
            if other != word and (new := _exchanged(text, form, other, part)):
                yield _one_way(text, new, random.random() < 0.5)
        for i, key, j in synset.antonyms:
            if synset.words[i] == word and (new := _exchanged(text, form, table[key].words[j], part)):
                yield Pair(*random.sample((text, new), 2), CONTRADICTION)


def _of_a_thing(synset: Synset, kind: Synset, sister: Synset, random: Random) -> Iterator[Pair]:
    """A sentence about a thing beside the same about itself by another word, its kind, and another of its kind.

    What holds of one of a kind may or may not hold of another: neutral.
    """
    others = random.choice(synset.words), kind.words[0], random.choice(sister.words)
    for other in dict.fromkeys(others):
        thing = random.choice(synset.words)
        if other == thing or thing != thing.lower() or other != other.lower():
            continue
        frame = random.choice(FRAMES)
        first, second = (frame.format(a=_article(w), A=sentence(_article(w))[:-1]) for w in (thing, other))
        if other in synset.words:
            yield Pair(first, second, ENTAILMENT)
        elif other == kind.words[0]:
            upwards = "Nobody" not in frame
            more, less = (first, second) if upwards else (second, first)
            yield _one_way(more, less, (random.random() < 0.5) == upwards)
        else:
            yield Pair(first, second, NEUTRAL)


def _one_way(more: str, less: str, forwards: bool) -> Pair:
    """From a sentence that says more follows one that says less; backwards nothing does."""
    return Pair(more, less, ENTAILMENT) if forwards else Pair(less, more, NEUTRAL)


def _forms(word: str, part: str) -> dict[str, str]:
    """Its forms by their tag: NN, NNS, VB, VBZ, VBG, VBD, VBN; itself alone where the inflections are not known."""
    known = getAllInflections(word, upos=PARTS[part])
    return {tag: forms[0] for tag, forms in known.items() if tag not in ("VBP", "JJR", "JJS", "RBR", "RBS")} or {
        "": word
    }


def _find(text: str, word: str, part: str) -> tuple[str, str] | None:
    """The form of the word that is in the text once, and its tag."""
    for tag, form in _forms(word, part).items():
        if len(re.findall(rf"\b{re.escape(form)}\b", text, re.IGNORECASE)) == 1:
            return form, tag
    return None


def _exchanged(text: str, found: tuple[str, str], other: str, part: str) -> str | None:
    """The text with another word in the same form, the article before it as that word wants it."""
    form, tag = found
    new = _forms(other, part).get(tag, other if tag in ("", "NN", "VB", "JJ", "RB") else None)
    if new is None:
        return None

    def put(match: re.Match[str]) -> str:
        article = match[1] or ""
        if article.lower() in ("a ", "an "):
            article = article[0] + ("n " if new[0].lower() in "aeiou" else " ")
        return article + (new[0].upper() + new[1:] if match[2][0].isupper() else new)

    return re.sub(rf"\b((?:an? )?)({re.escape(form)})\b", put, text, count=1, flags=re.IGNORECASE)


def _article(word: str) -> str:
    return f"a{'n' if word[0] in 'aeiou' else ''} {word}"
