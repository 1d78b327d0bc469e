"""Pairs from WordNet's files, for the recipe in docs/sick.md, compared with hand-worked ones. See wndb(5) for the files."""

from __future__ import annotations

from random import Random

import pytest

from recipes.sick.wordnet import Synset, Synsets, make_documents, make_pairs, read_synsets

LICENSE = "  1 This software and database is being provided to you ...\n"
FILES = {
    "noun": """\
00000010 05 n 01 animal 0 001 ~ 00000020 n 0000 | a living thing that moves; "animals eat"
00000020 05 n 02 dog 0 domestic_dog 0 001 @ 00000010 n 0000 | a friend of people; "the dog barked all night"
00000030 05 n 01 cat 0 001 @ 00000010 n 0000 | a friend of its own
""",
    "verb": """\
00000040 29 v 02 rise 0 arise 0 002 ! 00000050 v 0101 @ 00000060 v 0000 | get up; "He rose early"; "an idea is rising."
00000050 29 v 01 lie_down 0 001 ! 00000040 v 0101 00 | assume a reclining position; "lie down on the bed until you feel well"
00000060 29 v 01 move 0 000 00 | change place
""",
    "adj": """\
00000070 00 a 01 hot 0 001 ! 00000080 a 0101 | of high temperature; "a hot stove"
00000080 00 a 02 cold 0 icy(p) 0 001 ! 00000070 a 0101 | of low temperature; "a cold stove"
""",
    "adv": "00000090 02 r 01 early 0 000 | before the usual time\n",
}


@pytest.fixture
def synsets(tmp_path) -> Synsets:
    for part, lines in FILES.items():
        (tmp_path / f"data.{part}").write_text(LICENSE + lines, encoding="utf-8")
    return read_synsets(tmp_path)


def test_synsets_have_words_definitions_examples_hypernyms_and_antonyms(synsets):
    assert len(synsets) == 9
    assert synsets["verb", "00000040"] == Synset(
        ["rise", "arise"], 29, "get up", ["He rose early.", "An idea is rising."],
        [("verb", "00000060")], [(0, ("verb", "00000050"), 0)],
    )  # fmt: skip
    assert synsets["adj", "00000080"].words == ["cold", "icy"]
    assert list(make_documents(synsets))[1] == [
        "dog, domestic dog: a friend of people.",
        "dog is a kind of animal.",
        "The dog barked all night.",
    ]


def test_labels_follow_from_the_relation_of_the_replaced_words(synsets):
    """Over many seeds, these synsets give all of these pairs and no other."""
    found = {pair for seed in range(300) for pair in make_pairs(synsets, Random(seed))}
    from_examples = {pair for pair in found if "all night" in pair.premise or "early" in pair.premise}
    synonyms = [
        ("The dog barked all night.", "The domestic dog barked all night."),
        ("He rose early.", "He arose early."),
    ]
    hypernyms = [
        ("The dog barked all night.", "The animal barked all night."),
        ("He rose early.", "He moved early."),
    ]
    assert from_examples == {
        *((a, b, "entailment") for a, b in synonyms), *((b, a, "entailment") for a, b in synonyms),
        *((a, b, "entailment") for a, b in hypernyms), *((b, a, "neutral") for a, b in hypernyms),
    }  # fmt: skip
    assert {
        ("A hot stove.", "A cold stove.", "contradiction"),
        ("A cold stove.", "An icy stove.", "entailment"),
    } <= found
    things = {pair for pair in found if "is lying on the grass" in pair.premise}
    grass = "{} is lying on the grass."
    dogs = grass.format("A dog"), grass.format("A domestic dog")
    animal, cat = grass.format("An animal"), grass.format("A cat")
    assert things == {
        (*dogs, "entailment"), (*dogs[::-1], "entailment"),
        *((kind, animal, "entailment") for kind in (*dogs, cat)), *((animal, kind, "neutral") for kind in (*dogs, cat)),
        *((dog, cat, "neutral") for dog in dogs), *((cat, dog, "neutral") for dog in dogs),
    }  # fmt: skip


def test_nobody_reverses_the_relation_with_a_hypernym(synsets):
    found = {pair for seed in range(300) for pair in make_pairs(synsets, Random(seed)) if "Nobody" in pair.premise}
    behind = "Nobody is sitting behind {}."
    assert (behind.format("an animal"), behind.format("a dog"), "entailment") in found
    assert (behind.format("a dog"), behind.format("an animal"), "neutral") in found
    assert (behind.format("a dog"), behind.format("an animal"), "entailment") not in found


def test_the_same_seed_gives_the_same_pairs(synsets):
    assert make_pairs(synsets, Random(7)) == make_pairs(synsets, Random(7))
