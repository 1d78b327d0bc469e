"""Sentences that say a scene."""

from __future__ import annotations

import re
from random import Random

from recipes.tiny.scenes import ACTION_WAYS, Doing, Scene, Subject, Thing, verb_of, with_subject
from recipes.tiny.words import NAMES, NOUNS, PLACES, adjectives_of, article, inflect, verb_phrase

TENSES = ("progressive",) * 12 + ("past progressive",) * 2 + ("past", "present")
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def say_thing(thing: Thing, random: Random) -> str:
    forms = NOUNS.ways.get(thing.noun, [thing.noun])
    noun = forms[0] if random.random() < 0.7 else random.choice(forms)
    words = f"{random.choice(adjectives_of(thing.noun).ways(thing.adjective))} " if thing.adjective else ""
    if thing.noun in NOUNS.mass:
        some = ["some ", "the "] if thing.noun not in NOUNS.of("sport") else []
        return random.choice(["", "", *some]) + words + noun
    if thing.plural:
        return random.choice(["", "", "some ", "the "]) + words + NOUNS.plurals[noun]
    return random.choice([article(words + noun), article(words + noun), f"the {words}{noun}"])


def say_action(doing: Doing, random: Random) -> str:
    """The phrase in its base form: play a guitar."""
    ways = ACTION_WAYS[doing.action]
    way = ways[0] if random.random() < 0.6 else random.choice(ways)
    if "{" not in way:
        return way
    assert doing.thing is not None
    if way.startswith("have ") and not NOUNS.is_a(doing.thing.noun, "meal"):
        way = ways[0]
    return re.sub(r"{\w+}", lambda _: say_thing(doing.thing, random), way)  # type: ignore[arg-type]


def say_subject(subject: Subject, random: Random, definite: bool | None = None) -> tuple[str, bool]:
    """The noun phrase, and whether its verb is plural."""
    if subject.noun in NAMES:
        return subject.noun, False
    forms = NOUNS.ways[subject.noun]
    noun = forms[0] if random.random() < 0.75 else random.choice(forms)
    table = adjectives_of(subject.noun)
    look = "".join(f"{random.choice(table.ways(adjective))} " for adjective in subject.adjectives)
    after = ""
    if subject.garment:
        color, garment = subject.garment
        worn = article(f"{color} {garment}" if color else garment)
        after = random.choice([f" in {worn}", f" wearing {worn}", f" with {worn}", f" who is wearing {worn}"])
        if subject.count != 1:
            after = after.replace("who is", "who are")
    if definite is None:
        definite = random.random() < 0.25
    if subject.count == 1:
        if subject.noun == "person" and not look and not definite and random.random() < 0.6:
            return random.choice(["someone", "somebody", "one person"][: 3 if not after else 2]) + after, False
        return (f"the {look}{noun}" if definite else article(look + noun)) + after, False
    plural = f"{look}{NOUNS.plurals[noun]}{after}"
    if subject.count == "group":
        return f"{'the' if definite else 'a'} group of {plural}", random.random() < 0.5
    if subject.count == "some":
        return random.choice(["the " if definite else "some ", "some ", ""]) + plural, True
    count = NUMBERS[subject.count] if isinstance(subject.count, int) else subject.count
    return f"{'the ' if definite and isinstance(subject.count, int) else ''}{count} {plural}", True


def say_predicate(scene: Scene, random: Random, tense: str, plural: bool, negated: bool = False) -> str:
    """Verb phrase, place and the rest."""
    phrase = say_action(scene.doing, random)
    rest = ""
    if scene.place:
        rest += f" {random.choice(PLACES.ways[scene.place])}"
    if scene.extra:
        rest += f" {scene.extra}"
    return conjugate(phrase, tense, plural, negated, random) + rest


def conjugate(phrase: str, tense: str, plural: bool, negated: bool, random: Random) -> str:
    """A verb phrase in its base form, in one of TENSES: play chess -> is not playing chess."""
    short = random.random() < 0.3
    if tense.endswith("progressive") or phrase.startswith("be "):
        be = ("were" if plural else "was") if tense.startswith("past") else ("are" if plural else "is")
        no = ("n't" if short else " not") if negated else ""
        return f"{be}{no} " + (phrase[3:] if phrase.startswith("be ") else verb_phrase(phrase, "ing"))
    if negated:
        do = "did" if tense == "past" else "do" if plural else "does"
        return f"{do}{'n' + chr(39) + 't' if short else ' not'} {phrase}"
    return verb_phrase(phrase, "past" if tense == "past" else "base" if plural else "third")


def sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


PRONOUNS = {"man": "he", "boy": "he", "woman": "she", "girl": "she"}


def say(
    scene: Scene, random: Random, tense: str = "progressive", *, negated: bool = False, after: Scene | None = None
) -> str:
    """A sentence that says the scene, or, `negated`, that the subject does not; `after` one about the same people."""
    subject, doing = scene.subject, scene.doing
    way = random.random()
    alone = subject.count == 1 and not subject.adjectives and not subject.garment
    pronoun = NAMES.get(subject.noun, PRONOUNS.get(subject.noun))
    if after and after.subject.count == 1 and alone and pronoun and way < 0.06:
        return sentence(f"{pronoun} {say_predicate(scene, random, tense, False, negated)}")
    # what is said not to happen is said of somebody known
    definite = True if negated else None if not after else random.random() < 0.4
    who, plural = say_subject(subject, random, definite)
    if tense == "progressive" and not negated and subject.noun not in NAMES and not who.startswith("the "):
        predicate = say_predicate(scene, random, tense, plural)
        if way > 0.9:
            return sentence(f"there {'are' if plural else 'is'} {who} {predicate.split(' ', 1)[1]}")
        if way > 0.86:
            return sentence(f"there {'are' if plural else 'is'} {who} who {predicate}")
        if way > 0.85 and scene.place and not scene.extra:
            *_, place = [way for way in PLACES.ways[scene.place] if predicate.endswith(f" {way}")]
            return sentence(f"{place}, {who} {predicate.removesuffix(f' {place}')}")
    if way < 0.14 and doing.thing and re.fullmatch(r"\w+ {\w+}", doing.action) and not scene.extra:
        return _say_passive(scene, who, random, tense, negated)
    return sentence(f"{who} {say_predicate(scene, random, tense, plural, negated)}")


def _say_passive(scene: Scene, who: str, random: Random, tense: str, negated: bool) -> str:
    assert scene.doing.thing is not None
    thing = scene.doing.thing
    done = inflect(verb_of(scene.doing.action), "participle")
    be = ("were" if thing.plural else "was") if tense.startswith("past") else ("are" if thing.plural else "is")
    being = "being " if tense.endswith("progressive") else ""
    by = "" if scene.subject == Subject("person") else f" by {who}"
    place = f" {random.choice(PLACES.ways[scene.place])}" if scene.place else ""
    return sentence(f"{say_thing(thing, random)} {be}{' not' if negated else ''} {being}{done}{by}{place}")


def say_none(scene: Scene, random: Random, tense: str) -> str:
    """That there is nobody of whom the scene is true."""
    bare = scene.subject == Subject("person")
    scene = with_subject(scene, count=1)
    there = {"progressive": "there is ", "past progressive": "there was "}.get(tense)
    if bare and random.random() < 0.8:
        who, plural = random.choice(["nobody", "no one"]), False
    else:
        plural = random.random() < 0.4
        who, _ = say_subject(with_subject(scene, count=2 if plural else 1).subject, random, definite=True)
        who = re.sub("^the (two )?", "no ", who)
    predicate = say_predicate(scene, random, tense, plural)
    if there and random.random() < 0.4:
        there = there.replace("is", "are").replace("was", "were") if plural else there
        return sentence(f"{there}{who} {predicate.split(' ', 1)[1]}")
    return sentence(f"{who} {predicate}")
