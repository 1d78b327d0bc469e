"""English sentences that describe a scene."""

from __future__ import annotations

import re
from random import Random

from recipes.tiny.morphology import article, inflect, verb_phrase
from recipes.tiny.scenes import ACTION_SYNONYMS, Activity, Scene, Subject, Thing, verb_of, with_subject
from recipes.tiny.taxonomy import NAMES, NOUNS, PLACES, adjectives_of

# Tenses, as often as they are to be drawn.
TENSES = ("progressive",) * 12 + ("past progressive",) * 2 + ("past", "present")
NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def thing_phrase(thing: Thing, random: Random) -> str:
    """Returns a noun phrase for a thing."""
    synonyms = NOUNS.synonyms.get(thing.noun, [thing.noun])
    noun = synonyms[0] if random.random() < 0.7 else random.choice(synonyms)
    adjective = f"{random.choice(adjectives_of(thing.noun).synonyms(thing.adjective))} " if thing.adjective else ""
    if thing.noun in NOUNS.mass_nouns:
        determiners = ["some ", "the "] if thing.noun not in NOUNS.hyponyms("sport") else []
        return random.choice(["", "", *determiners]) + adjective + noun
    if thing.plural:
        return random.choice(["", "", "some ", "the "]) + adjective + NOUNS.plurals[noun]
    indefinite = article(adjective + noun)
    return random.choice([indefinite, indefinite, f"the {adjective}{noun}"])


def action_phrase(activity: Activity, random: Random) -> str:
    """Returns the verb phrase of an activity in its base form: play a guitar."""
    synonyms = ACTION_SYNONYMS[activity.action]
    action = synonyms[0] if random.random() < 0.6 else random.choice(synonyms)
    if "{" not in action:
        return action
    assert activity.thing is not None
    if action.startswith("have ") and not NOUNS.is_a(activity.thing.noun, "meal"):
        action = synonyms[0]
    return re.sub(r"{\w+}", lambda _: thing_phrase(activity.thing, random), action)  # type: ignore[arg-type]


def subject_phrase(subject: Subject, random: Random, definite: bool | None = None) -> tuple[str, bool]:
    """Returns a noun phrase for a subject, and whether its verb is plural."""
    if subject.noun in NAMES:
        return subject.noun, False
    synonyms = NOUNS.synonyms[subject.noun]
    noun = synonyms[0] if random.random() < 0.75 else random.choice(synonyms)
    table = adjectives_of(subject.noun)
    adjectives = "".join(f"{random.choice(table.synonyms(adjective))} " for adjective in subject.adjectives)
    garment = _garment_phrase(subject, random)
    if definite is None:
        definite = random.random() < 0.25
    if subject.count == 1:
        if subject.noun == "person" and not adjectives and not definite and random.random() < 0.6:
            return random.choice(["someone", "somebody", "one person"][: 3 if not garment else 2]) + garment, False
        return (f"the {adjectives}{noun}" if definite else article(adjectives + noun)) + garment, False
    plural = f"{adjectives}{NOUNS.plurals[noun]}{garment}"
    if subject.count == "group":
        return f"{'the' if definite else 'a'} group of {plural}", random.random() < 0.5
    if subject.count == "some":
        return random.choice(["the " if definite else "some ", "some ", ""]) + plural, True
    count = NUMBER_WORDS[subject.count] if isinstance(subject.count, int) else subject.count
    return f"{'the ' if definite and isinstance(subject.count, int) else ''}{count} {plural}", True


def _garment_phrase(subject: Subject, random: Random) -> str:
    """Returns the words after a noun that say what the subject wears, with a leading space; "" for nothing."""
    if not subject.garment:
        return ""
    color, noun = subject.garment
    garment = article(f"{color} {noun}" if color else noun)
    phrase = random.choice([f" in {garment}", f" wearing {garment}", f" with {garment}", f" who is wearing {garment}"])
    return phrase if subject.count == 1 else phrase.replace("who is", "who are")


def predicate_phrase(scene: Scene, random: Random, tense: str, plural: bool, negated: bool = False) -> str:
    """Returns the verb phrase of a scene with its place and its adverbial."""
    phrase = action_phrase(scene.activity, random)
    place = f" {random.choice(PLACES.synonyms[scene.place])}" if scene.place else ""
    adverbial = f" {scene.adverbial}" if scene.adverbial else ""
    return conjugate(phrase, tense, plural, negated, random) + place + adverbial


def conjugate(phrase: str, tense: str, plural: bool, negated: bool, random: Random) -> str:
    """Conjugates a verb phrase in its base form to one of TENSES: play chess -> is not playing chess."""
    contracted = random.random() < 0.3
    if tense.endswith("progressive") or phrase.startswith("be "):
        be = ("were" if plural else "was") if tense.startswith("past") else ("are" if plural else "is")
        no = ("n't" if contracted else " not") if negated else ""
        return f"{be}{no} " + (phrase[3:] if phrase.startswith("be ") else verb_phrase(phrase, "ing"))
    if negated:
        do = "did" if tense == "past" else "do" if plural else "does"
        return f"{do}{'n' + chr(39) + 't' if contracted else ' not'} {phrase}"
    return verb_phrase(phrase, "past" if tense == "past" else "base" if plural else "third")


def to_sentence(text: str) -> str:
    """Returns the text with a capital at the beginning and a period at the end."""
    return text[0].upper() + text[1:] + "."


PRONOUNS = {"man": "he", "boy": "he", "woman": "she", "girl": "she"}


def scene_sentence(
    scene: Scene, random: Random, tense: str = "progressive", *, negated: bool = False, after: Scene | None = None
) -> str:
    """Returns a sentence that describes a scene.

    Args:
      scene: the scene.
      random: the source of random choices.
      tense: one of TENSES.
      negated: whether the sentence denies that the subject does it.
      after: the scene of the sentence before, which is about the same people.
    """
    subject, activity = scene.subject, scene.activity
    variant = random.random()
    is_single_and_plain = subject.count == 1 and not subject.adjectives and not subject.garment
    pronoun = NAMES.get(subject.noun, PRONOUNS.get(subject.noun))
    if after and after.subject.count == 1 and is_single_and_plain and pronoun and variant < 0.06:
        return to_sentence(f"{pronoun} {predicate_phrase(scene, random, tense, False, negated)}")
    # The subject of a negated sentence is known.
    definite = True if negated else None if not after else random.random() < 0.4
    who, plural = subject_phrase(subject, random, definite)
    if tense == "progressive" and not negated and subject.noun not in NAMES and not who.startswith("the "):
        predicate = predicate_phrase(scene, random, tense, plural)
        if variant > 0.9:
            return to_sentence(f"there {'are' if plural else 'is'} {who} {predicate.split(' ', 1)[1]}")
        if variant > 0.86:
            return to_sentence(f"there {'are' if plural else 'is'} {who} who {predicate}")
        if variant > 0.85 and scene.place and not scene.adverbial:
            *_, place = [place for place in PLACES.synonyms[scene.place] if predicate.endswith(f" {place}")]
            return to_sentence(f"{place}, {who} {predicate.removesuffix(f' {place}')}")
    if variant < 0.14 and activity.thing and re.fullmatch(r"\w+ {\w+}", activity.action) and not scene.adverbial:
        return _passive_sentence(scene, who, random, tense, negated)
    return to_sentence(f"{who} {predicate_phrase(scene, random, tense, plural, negated)}")


def _passive_sentence(scene: Scene, who: str, random: Random, tense: str, negated: bool) -> str:
    """Returns a sentence in the passive: a guitar is being played by a man."""
    assert scene.activity.thing is not None
    thing = scene.activity.thing
    participle = inflect(verb_of(scene.activity.action), "participle")
    be = ("were" if thing.plural else "was") if tense.startswith("past") else ("are" if thing.plural else "is")
    being = "being " if tense.endswith("progressive") else ""
    by = "" if scene.subject == Subject("person") else f" by {who}"
    place = f" {random.choice(PLACES.synonyms[scene.place])}" if scene.place else ""
    return to_sentence(f"{thing_phrase(thing, random)} {be}{' not' if negated else ''} {being}{participle}{by}{place}")


def nobody_sentence(scene: Scene, random: Random, tense: str) -> str:
    """Returns a sentence that says that a scene is true of nobody."""
    is_anybody = scene.subject == Subject("person")
    scene = with_subject(scene, count=1)
    there = {"progressive": "there is ", "past progressive": "there was "}.get(tense)
    if is_anybody and random.random() < 0.8:
        who, plural = random.choice(["nobody", "no one"]), False
    else:
        plural = random.random() < 0.4
        who, _ = subject_phrase(with_subject(scene, count=2 if plural else 1).subject, random, definite=True)
        who = re.sub("^the (two )?", "no ", who)
    predicate = predicate_phrase(scene, random, tense, plural)
    if there and random.random() < 0.4:
        there = there.replace("is", "are").replace("was", "were") if plural else there
        return to_sentence(f"{there}{who} {predicate.split(' ', 1)[1]}")
    return to_sentence(f"{who} {predicate}")
