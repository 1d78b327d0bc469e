"""Generators of labeled pairs: of scenes, and of smaller topics such as comparatives, opposites and weather.

Each generator makes a pair with the wanted label, or returns None if an attempt does not lead to one.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from recipes.tiny import lexicon
from recipes.tiny.english import (
    NUMBER_WORDS,
    TENSES,
    action_phrase,
    conjugate,
    nobody_sentence,
    predicate_phrase,
    scene_sentence,
    subject_phrase,
    to_sentence,
)
from recipes.tiny.lexicon import parse_cells, parse_rows
from recipes.tiny.morphology import article, unknown_name, verb_phrase
from recipes.tiny.scenes import (
    ACTIONS,
    EDITS,
    REASONS,
    Activity,
    Subject,
    action_relation,
    broaden_subject,
    can_do,
    drop_adverbial,
    drop_appearance,
    edit_scene,
    narrow_place,
    sample_activity,
    sample_scene,
    sample_subject,
    subject_relation,
    with_subject,
)
from recipes.tiny.taxonomy import (
    AGE_AND_SEX_NOUNS,
    COLORS,
    CONTRADICTION,
    ENTAILMENT,
    NAMES,
    NEUTRAL,
    NOUNS,
    PERSON_ADJECTIVES,
    PERSON_NOUNS,
    THING_ADJECTIVES,
    adjectives_of,
    noun_relation,
)


@dataclass(frozen=True)
class Pair:
    """A premise, a hypothesis, and the label of the hypothesis."""

    premise: str
    hypothesis: str
    label: int


def scenes(random: Random, label: int) -> Pair | None:
    """Two scenes: a man is playing a guitar in the park, a person is making music."""
    first = sample_scene(random)
    second = edit_scene(first, label, random)
    if first.relation(second) != label:
        return None
    tense = random.choice(TENSES)
    return Pair(scene_sentence(first, random, tense), scene_sentence(second, random, tense, after=first), label)


def negations(random: Random, label: int) -> Pair | None:
    """Two scenes with one sentence or both negated: the man is not playing a guitar."""
    first, tense = sample_scene(random), random.choice(TENSES)
    if random.random() < 0.5:
        target = {ENTAILMENT: CONTRADICTION, CONTRADICTION: ENTAILMENT, NEUTRAL: NEUTRAL}[label]
        second = edit_scene(first, target, random)
        if subject_relation(first.subject, second.subject) not in (
            ENTAILMENT,
            NEUTRAL if label == NEUTRAL else ENTAILMENT,
        ):
            return None
        if first.subject.count != second.subject.count or first.predicate_relation(second) != target:
            return None
        return Pair(scene_sentence(first, random, tense), scene_sentence(second, random, tense, negated=True), label)
    # A negated premise says something only about narrower activities.
    second = edit_scene(first, NEUTRAL if label != NEUTRAL else random.choice(list(EDITS)), random)
    second = dataclasses.replace(second, subject=first.subject)
    narrower = second.predicate_relation(first)
    if random.random() < 0.15:
        second, narrower = first, ENTAILMENT
    if narrower is None or (narrower == ENTAILMENT) != (label != NEUTRAL):
        return None
    negated = label == ENTAILMENT or (label == NEUTRAL and random.random() < 0.5)
    return Pair(
        scene_sentence(first, random, tense, negated=True),
        scene_sentence(second, random, tense, negated=negated, after=first),
        label,
    )


def nobody(random: Random, label: int) -> Pair | None:
    """Two scenes with nobody in one of them: nobody is sleeping, no man is running, there is no one who ...."""
    first, tense = with_subject(sample_scene(random), count=1), random.choice(TENSES)
    if first.subject.noun in NAMES:
        return None
    if random.random() < 0.6:
        first = with_subject(first, adjectives=(), garment=None)
    if label != ENTAILMENT and random.random() < 0.5:
        second = edit_scene(
            first, ENTAILMENT if label == CONTRADICTION else random.choice([NEUTRAL, CONTRADICTION]), random
        )
        relation = first.relation(second)
        if relation is None or (relation == ENTAILMENT) != (label == CONTRADICTION):
            return None
        return Pair(scene_sentence(first, random, tense), nobody_sentence(second, random, tense), label)
    second = edit_scene(first, ENTAILMENT if label != NEUTRAL else random.choice([NEUTRAL, CONTRADICTION]), random)
    if first.relation(second) != ENTAILMENT:
        if label != NEUTRAL or first.relation(second) is None:
            return None
        affirmed = random.random() < 0.5
        return Pair(
            nobody_sentence(first, random, tense),
            scene_sentence(second, random, tense) if affirmed else nobody_sentence(second, random, tense),
            label,
        )
    # If nobody does the more general thing, nobody does the more specific one.
    if label == ENTAILMENT:
        return Pair(nobody_sentence(second, random, tense), nobody_sentence(first, random, tense), label)
    return Pair(nobody_sentence(second, random, tense), scene_sentence(first, random, tense, after=second), label)


def asleep_or_awake(random: Random, label: int) -> Pair | None:
    """The one complementary pair of actions: who is not awake sleeps."""
    first = dataclasses.replace(sample_scene(random), adverbial=None)
    first, second = (
        dataclasses.replace(first, activity=Activity(name)) for name in random.sample(["sleep", "be awake"], 2)
    )
    second = drop_appearance(second, random) if random.random() < 0.5 else second
    if label == NEUTRAL:
        return None
    negated = random.random() < 0.5
    hypothesis = scene_sentence(second, random, negated=negated != (label == ENTAILMENT), after=first)
    return Pair(scene_sentence(first, random, negated=negated), hypothesis, label)


QUANTIFIERS = {
    "all": ["all of the {}", "all the {}", "all {}"],
    "most": ["most of the {}", "most {}"],
    "some": ["some of the {}", "some {}"],
    "none": ["none of the {}", "no {}"],
    "not all": ["not all of the {}", "not all {}"],
}
_ALL, _MOST, _SOME, _NONE, _NOT_ALL = QUANTIFIERS
_QUANTIFIER_RELATIONS: dict[tuple[str, str], int] = {
    (_ALL, _ALL): 2, (_ALL, _MOST): 2, (_ALL, _SOME): 2, (_ALL, _NONE): 0, (_ALL, _NOT_ALL): 0,
    (_MOST, _ALL): 1, (_MOST, _MOST): 2, (_MOST, _SOME): 2, (_MOST, _NONE): 0, (_MOST, _NOT_ALL): 1,
    (_SOME, _ALL): 1, (_SOME, _MOST): 1, (_SOME, _SOME): 2, (_SOME, _NONE): 0, (_SOME, _NOT_ALL): 1,
    (_NONE, _ALL): 0, (_NONE, _MOST): 0, (_NONE, _SOME): 0, (_NONE, _NONE): 2, (_NONE, _NOT_ALL): 2,
    (_NOT_ALL, _ALL): 0, (_NOT_ALL, _MOST): 1, (_NOT_ALL, _SOME): 1, (_NOT_ALL, _NONE): 1, (_NOT_ALL, _NOT_ALL): 2,
}  # fmt: skip


def quantifiers(random: Random, label: int) -> Pair | None:
    """All, most, some, none and not all of the subjects of a scene."""
    scene = dataclasses.replace(sample_scene(random), adverbial=None)
    if scene.subject.noun in NAMES:
        return None
    noun = NOUNS.plurals[scene.subject.noun]
    if random.random() < 0.25 and NOUNS.is_a(scene.subject.noun, "person"):
        verb = random.choice(parse_rows(lexicon.OPPOSITE_VERBS))
        return _quantified_opposites(noun, parse_cells(verb), random, label)
    first, second = random.choice([pair for pair, relation in _QUANTIFIER_RELATIONS.items() if relation == label])
    other = scene
    if random.random() < 0.4 and (second in (_MOST, _SOME) or (first, second) == (_NONE, _NONE)):
        wider = edit_scene(scene, ENTAILMENT, random)
        wider = dataclasses.replace(wider, subject=scene.subject)
        if scene.predicate_relation(wider) == ENTAILMENT:
            scene, other = (wider, scene) if first == _NONE else (scene, wider)
        if label == CONTRADICTION:
            other = scene
    tense = random.choice(("progressive", "past progressive", "past"))
    texts = []
    for quantifier, described in ((first, scene), (second, other)):
        who = random.choice(QUANTIFIERS[quantifier]).format(noun)
        if noun == "people" and quantifier == _ALL and random.random() < 0.7:
            texts.append(
                to_sentence(
                    f"{random.choice(['everyone', 'everybody'])} {predicate_phrase(described, random, tense, False)}"
                )
            )
        else:
            texts.append(to_sentence(f"{who} {predicate_phrase(described, random, tense, True)}"))
    return Pair(texts[0], texts[1], label)


def _quantified_opposites(noun: str, verbs: list[str], random: Random, label: int) -> Pair:
    """All of the players won; none of the players lost."""
    one, other = (verb_phrase(verb, "past") for verb in random.sample(verbs, 2))
    every, some = (random.choice(QUANTIFIERS[q]).format(noun) for q in (_ALL, _SOME))
    if label == CONTRADICTION:
        return Pair(to_sentence(f"{every} {one}"), to_sentence(f"{random.choice([every, some])} {other}"), label)
    if label == ENTAILMENT:
        none = random.choice(QUANTIFIERS[_NONE]).format(noun)
        return Pair(to_sentence(f"{every} {one}"), to_sentence(f"{none} {other}"), label)
    return Pair(to_sentence(f"{some} {one}"), to_sentence(f"{random.choice([every, some])} {other}"), label)


def counts(random: Random, label: int) -> Pair | None:
    """Only two, more than two, at least two, fewer than five subjects of a scene."""
    scene = drop_appearance(with_subject(sample_scene(random), count=2), random)
    if scene.subject.noun in NAMES:
        return None
    nouns = NOUNS.plurals[scene.subject.noun]
    number, other = random.randint(2, 8), random.randint(1, 9)
    ways = {
        "more than": number > other, "at least": number >= other, "fewer than": number < other,
        "at most": number <= other, "exactly": number == other, "only": number == other,
    }  # fmt: skip
    way = random.choice([way for way, true in ways.items() if true == (label == ENTAILMENT)])
    who = nouns if other > 1 else scene.subject.noun
    second = f"{way} {NUMBER_WORDS[other]} {who} {predicate_phrase(scene, random, 'progressive', other > 1)}"
    if label == NEUTRAL:
        if way in ("at least", "more than") and other < 2:
            return None
        return Pair(
            to_sentence(f"some {nouns} {predicate_phrase(scene, random, 'progressive', True)}"),
            to_sentence(second),
            label,
        )
    first = f"{NUMBER_WORDS[number]} {nouns} {predicate_phrase(scene, random, 'progressive', True)}"
    return Pair(to_sentence(first), to_sentence(second), label)


def _parse_states() -> list[tuple[list[str], list[list[str]], bool]]:
    """Returns nouns, groups of synonymous predicates, and whether one of two predicates must be true."""
    states = []
    for row in parse_rows(lexicon.STATES):
        nouns, *predicates = parse_cells(row)
        groups = [[synonym.rstrip("* ") for synonym in parse_cells(cell, "=")] for cell in predicates]
        states.append((nouns.split(), groups, "*" in row))
    return states


STATES = _parse_states()
INTENSIFIERS = ("very", "very", "really", "extremely", "quite", "heavily", "highly")


def states(random: Random, label: int) -> Pair | None:
    """The door is open, the soup is very hot, a version that is optimized."""
    nouns, options, complementary = random.choice(STATES)
    noun = random.choice(nouns)
    if random.random() < 0.1:
        noun = random.choice(list(NAMES)) if noun in PERSON_NOUNS else f"{random.choice(COLORS)} {noun}"
    be = random.choice(["is", "is", "is", "was"])
    first, *others = random.sample(options, len(options)) if len(options) > 1 else (options[0],)
    one = random.choice(first)
    same, other = random.choice(first), random.choice(random.choice(others)) if others else None
    the = noun if noun in NAMES else f"the {noun}"
    very, no = random.choice(INTENSIFIERS), random.choice([" not", " not", "n't"])
    graded = not complementary
    is_, is_not = f"{the} {be} ", f"{the} {be}{no} "
    pairs: list[tuple[str, str]] = []
    if label == ENTAILMENT:
        pairs = [(is_ + one, is_ + same)]
        if other:
            pairs += [(is_ + one, is_not + other)] * 3
        if other and complementary:
            pairs += [(is_not + one, is_ + other), (is_ + one, is_not + other)] * 2
        if graded:
            pairs += [(f"{is_}{very} {one}", is_ + same)] * 2
            if other:
                pairs.append((f"{is_}{very} {one}", is_not + other))
        if noun not in NAMES and graded:
            pairs.append((f"there {be} {article(f'{one} {noun}')} in the picture", f"the {noun} {be} {same}"))
            pairs.append((f"this {be} {article(f'{very} {one} {noun}')}", f"this {noun} {be} {same}"))
    elif label == CONTRADICTION:
        pairs = [(is_ + one, is_not + same), (is_not + one, is_ + one)]
        if other:
            pairs += [(is_ + one, is_ + other)] * 4
        if graded:
            pairs += [(f"{is_}{very} {one}", is_not + same), (f"{is_}{very} {one}", f"{is_not}very {one}")] * 2
            if other:
                pairs += [(f"{is_}{very} {one}", f"{is_}{other}"), (is_ + one, f"{is_}{very} {other}")]
            if noun not in NAMES:
                it, model = (random.choice([unknown_name(random), "it", "this"]) for _ in range(2))
                pairs.append(
                    (
                        f"{it} {be} {article(f'{very} {one} {noun}')}",
                        f"{it} {be} not {random.choice(['', 'very '])}{one}",
                    )
                )
                quite = random.choice(["", f"{very} "])
                pairs.append(
                    (
                        f"{it} {be} {article(f'{quite}{one} {noun}')} of {model}",
                        f"{it} {be} not {random.choice(['', 'very '])}{one}",
                    )
                )
    else:
        unrelated = random.choice(
            random.choice([o for n, o, _ in STATES if noun in n and o is not options] or [[["nice"]]])
        )
        third = random.choice(unrelated)
        pairs = [(is_ + one, is_ + third), (is_ + one, is_not + third), (is_not + third, is_ + one)]
        if graded:
            pairs += [(is_ + one, f"{is_}{very} {same}"), (is_not + f"very {one}", is_ + same)]
            if other:
                pairs += [(is_not + one, is_ + other)]
        if noun not in NAMES:
            pairs += [(f"the {noun} {be} {one}", f"the {noun} {be} {one} {random.choice(REASONS[:6])}")]
            pairs += [(is_ + one, f"the {random.choice(COLORS)} {noun} {be} {same}")] if " " not in noun else []
    if not pairs:
        return None
    chosen = random.choice(pairs)
    return Pair(to_sentence(chosen[0]), to_sentence(chosen[1]), label)


def _parse_comparatives() -> list[tuple[list[str], list[str], list[str]]]:
    """Returns an adjective with its comparative, the opposite adjective with its comparative, and kinds of nouns."""
    comparatives = []
    for row in parse_rows(lexicon.COMPARATIVES):
        adjective, opposite, kinds = parse_cells(row)
        comparatives.append((adjective.split(" ", 1), opposite.split(" ", 1), kinds.split()))
    return comparatives


_COMPARATIVES = _parse_comparatives()


def comparatives(random: Random, label: int) -> Pair | None:
    """Tom is taller than Anna, Anna is shorter than Tom."""
    (_, more), (_, less), kinds = random.choice(_COMPARATIVES)
    if random.random() < 0.5:
        more, less = less, more
    kind = random.choice(kinds)
    if kind == "person" and random.random() < 0.6:
        a, b, c = random.sample(list(NAMES), 3)
    else:
        nouns = [noun for noun in (NOUNS.hyponyms(kind) if kind in NOUNS.parents else [kind]) if noun != kind]
        if len(nouns) < 3:
            nouns = [f"{adjective} {kind}" for adjective in COLORS]
        a, b, c = (f"the {noun}" for noun in random.sample(nouns, 3))
        if kind == "person" and random.random() < 0.4:
            b = f"{random.choice(['his', 'her'])} {random.choice(lexicon.RELATIVES.split())}"
    be = random.choice(["is", "is", "was"])
    if label == ENTAILMENT:
        texts = random.choice([
            (f"{a} {be} {more} than {b}", f"{b} {be} {less} than {a}"),
            (f"{a} {be} {more} than {b}", f"{b} {be} not {more} than {a}"),
            (f"{a} {be} {more} than {b}", f"{a} {be} not as {positive_form(less)} as {b}"),
            (f"{a} {be} much {more} than {b}", f"{a} {be} {more} than {b}"),
            (f"{a} {be} {more} than {b} and {b} {be} {more} than {c}", f"{a} {be} {more} than {c}"),
        ])  # fmt: skip
    elif label == CONTRADICTION:
        texts = random.choice([
            (f"{a} {be} {more} than {b}", f"{b} {be} {more} than {a}"),
            (f"{a} {be} {more} than {b}", f"{a} {be} {less} than {b}"),
            (f"{a} {be} {more} than {b}", f"{a} {be} not {more} than {b}"),
            (f"{a} {be} {more} than {b}",
             f"{a} and {b} {'are' if be == 'is' else 'were'} equally {positive_form(more)}"),
            (f"{a} {be} as {positive_form(more)} as {b}", f"{a} {be} {more} than {b}"),
        ])  # fmt: skip
    else:
        others = [row for row in _COMPARATIVES if kind in row[2] and more not in (row[0][1], row[1][1])]
        other = random.choice(others or _COMPARATIVES[:1])
        if not others:
            return None
        third = random.choice(other[:2])[1]
        texts = random.choice([
            (f"{a} {be} {more} than {b}", f"{a} {be} {third} than {b}"),
            (f"{a} {be} {more} than {b}", f"{b} {be} {third} than {a}"),
            (f"{a} {be} {more} than {b}", f"{a} {be} {more} than {c}"),
            (f"{a} {be} {more} than {b}", f"{a} {be} much {more} than {b}"),
            (f"{a} {be} not {more} than {b}", f"{a} {be} {less} than {b}"),
        ])  # fmt: skip
    return Pair(to_sentence(texts[0]), to_sentence(texts[1]), label)


_POSITIVE_FORMS = {row[i][1]: row[i][0] for row in _COMPARATIVES for i in (0, 1)}


def positive_form(comparative: str) -> str:
    """Returns the positive form of a comparative: taller -> tall."""
    return _POSITIVE_FORMS[comparative]


# What follows about an action from a phrase with it.
IMPLICATIVES = {
    ENTAILMENT: ["managed to {}", "remembered to {}", "was able to {}", "helped to {}", "had to {} and did it",
        "finally {past}", "did {}"],
    CONTRADICTION: ["failed to {}", "forgot to {}", "refused to {}", "was not able to {}", "did not {}", "didn't {}",
        "never {past}", "was too tired to {}"],
    NEUTRAL: ["tried to {}", "wanted to {}", "hoped to {}", "planned to {}", "promised to {}", "decided to {}",
        "was asked to {}", "might {}", "wants to {}"],
}  # fmt: skip


def person_phrase(random: Random) -> str:
    """Returns a noun phrase for a person: a name, he, my sister, the doctor."""
    if random.random() < 0.4:
        return random.choice([*NAMES, "he", "she"])
    if random.random() < 0.2:
        return f"my {random.choice(lexicon.RELATIVES.split())}"
    return f"the {random.choice(PERSON_NOUNS[3:])}"


def implicatives(random: Random, label: int) -> Pair | None:
    """Implicative verbs: who managed to win won, who tried to win may have lost."""
    who = person_phrase(random)
    if random.random() < 0.5:
        action = random.choice(parse_cells(random.choice(parse_rows(lexicon.OPPOSITE_VERBS))))
    else:
        action = action_phrase(sample_activity(random, "man"), random)
    if action.startswith("be "):
        return None
    past = verb_phrase(action, "past")

    def fill(template: str) -> str:
        return to_sentence(f"{who} " + template.replace("{past}", past).replace("{}", action))

    did, did_not = fill("{past}"), fill(random.choice(["did not {}", "didn't {}"]))
    if label == NEUTRAL:
        return Pair(fill(random.choice(IMPLICATIVES[NEUTRAL])), random.choice([did, did, did_not]), label)
    is_negated = random.random() < 0.35  # the hypothesis
    relation = {ENTAILMENT: CONTRADICTION, CONTRADICTION: ENTAILMENT}[label] if is_negated else label
    return Pair(fill(random.choice(IMPLICATIVES[relation])), did_not if is_negated else did, label)


def opposites(random: Random, label: int) -> Pair | None:
    """Verbs that exclude each other: who won did not lose."""
    one, other = random.sample(parse_cells(random.choice(parse_rows(lexicon.OPPOSITE_VERBS))), 2)
    who = person_phrase(random)
    place = random.choice(["", "", "", *(f" {extra}" for extra in REASONS)])
    one, not_other, other, not_one = (
        f"{who} {phrase}"
        for phrase in (verb_phrase(one, "past"), f"did not {other}", verb_phrase(other, "past"), f"did not {one}")
    )
    if label == ENTAILMENT:
        texts = random.choice([
            (one + place, not_other),
            (one + place, one),
            (f"{one} but {not_other.removeprefix(who + ' ')}", one),
        ])  # fmt: skip
    elif label == CONTRADICTION:
        texts = random.choice([(one + place, other), (one + place, not_one), (not_one, one)])
    else:
        extra = random.choice(REASONS)
        someone_else = random.choice([name for name in NAMES if name != who])
        texts = random.choice([
            (one, f"{one} {extra}"),
            (one, one.replace(who, someone_else, 1)),
            (not_one, f"{one.replace(who, someone_else, 1)}"),
        ])  # fmt: skip
    return Pair(to_sentence(texts[0]), to_sentence(texts[1]), label)


def transfers(random: Random, label: int) -> Pair | None:
    """Giving and getting, selling and buying."""
    a, b, c = (
        random.sample(list(NAMES), 3)
        if random.random() < 0.6
        else [f"the {n}" for n in random.sample(PERSON_NOUNS[3:], 3)]
    )
    belonging = random.choice(lexicon.BELONGINGS.split()[:-1])
    thing = random.choice([article(belonging), f"the {belonging}", f"the {random.choice(COLORS)} {belonging}"])
    other = random.choice([noun for noun in lexicon.BELONGINGS.split()[:-1] if noun != belonging])
    verb, back = random.choice(
        [
            ("sold", "bought"),
            ("sold", "bought"),
            ("gave", "got"),
            ("gave", "received"),
            ("lent", "borrowed"),
            ("sent", "received"),
        ]
    )
    own = random.choice(
        [
            thing,
            thing,
            thing,
            f"{NAMES.get(a, 'he').replace('she', 'her').replace('he', 'his').replace('hisr', 'her')} {belonging}",
        ]
    )
    seller = random.choice([f"{a} {verb} {own} to {b}", f"{a} {verb} {b} {own}"])
    base = {"sold": "sell", "gave": "give", "lent": "lend", "sent": "send"}[verb]
    bought = f"{b} {back} {thing} from {a}"
    if label == ENTAILMENT:
        texts = random.choice([
            (seller, bought),
            (seller, bought),
            (bought, f"{a} {verb} {thing} to {b}"),
            (seller, f"{b} {back} {thing}"),
            (seller, f"{a} {verb} {thing}"),
        ])  # fmt: skip
    elif label == CONTRADICTION:
        texts = random.choice([
            (seller, f"{a} did not {base} {b} {thing}"),
            (seller, f"{b} {back} nothing from {a}"),
            (bought, f"{a} did not {base} {thing} to {b}"),
            (seller, f"nobody {verb} {thing} to {b}"),
        ])  # fmt: skip
    else:
        looks = ["new", "cheap", "big", "red", "good"]
        texts = random.choice([
            (seller, f"{c} {back} {article(other)} from {a}"), (seller, f"{b} {verb} {article(other)} to {c}"),
            (bought, f"{b} {back} {article(f'{random.choice(looks)} {belonging}')} from {a}"),
            (seller, f"{b} likes {thing}"), (f"{b} {back} {thing}", bought),
        ])  # fmt: skip
    return Pair(to_sentence(texts[0]), to_sentence(texts[1]), label)


POSITIONS = ("on", "under", "behind", "next to", "in front of", "near")
_SURFACES = "table chair bed couch desk shelf box house car tree fence door window bench"


def positions(random: Random, label: int) -> Pair | None:
    """Where something is, and whether there is any: a dog is under the table."""
    surface = random.choice(_SURFACES.split())
    animal = random.random() < 0.5
    noun = random.choice(
        NOUNS.hyponyms("animal")[1:]
        if animal
        else [
            n
            for n in NOUNS.hyponyms(
                random.choice(["toy", "text", "container", "garment", "tool", "fruit", "key", "stone", "gift"])
            )
            if n != surface
        ]
    )
    place = random.choice(POSITIONS)
    table = adjectives_of(noun)
    adjective = table.sample(random)
    verb = (
        random.choice(["is", "is", "is lying", "is sitting", "is standing"])
        if animal
        else random.choice(["is", "is", "is lying"])
    )
    where = f"{place} the {surface}"
    it, old = article(noun), article(f"{adjective} {noun}")
    definite, plain = f"the {noun} {verb} {where}", f"{random.choice([it, 'the ' + noun])} {verb} {where}"
    exists, none = (
        f"there is {it} {where}",
        random.choice(
            [f"there is no {noun} {where}", f"there are no {NOUNS.plurals[noun]} {where}", f"no {noun} is {where}"]
        ),
    )
    wider = random.choice(NOUNS.hypernyms(noun)[1:] or [noun])
    wide = "some food" if wider == "food" else article(wider)
    if label == ENTAILMENT:
        texts = random.choice([
            (plain, exists),
            (f"{old} {verb} {where}", exists),
            (f"there is {old} {where}", plain),
            (plain, f"there is {wide} {where}"),
            (f"there is {it} and {article(random.choice(COLORS) + ' box')} {where}", exists),
            (f"there are {random.choice(NUMBER_WORDS[2:6])} {NOUNS.plurals[noun]} {where}", exists),
            (f"there is no {wider} {where}", f"there is no {noun} {where}"), (plain, f"something is {where}"),
        ])  # fmt: skip
    elif label == CONTRADICTION:
        opposite = {
            "on": "under",
            "under": "on",
            "behind": "in front of",
            "in front of": "behind",
            "next to": "on",
            "near": "far from",
        }[place]
        others = table.alternatives(adjective)
        texts = random.choice([
            (plain, none),
            (none, plain),
            (exists, none),
            (none, exists),
            (definite, f"the {noun} {verb} {opposite} the {surface}"),
            (definite, f"the {noun} is not {where}"),
            (f"the {noun} {where} is {adjective}",
             f"the {noun} {where} is {random.choice(others) if others else 'not ' + adjective}"),
            (plain, f"there is nothing {where}"),
            (f"there are two {NOUNS.plurals[noun]} {where}", f"there is only one {noun} {where}"),
        ])  # fmt: skip
    else:
        kinds = [kind for kind in NOUNS.hyponyms(noun) if kind != noun]
        texts = random.choice([
            (plain, f"{old} {verb} {where}"),
            (exists, f"there is {old} {where}"),
            (exists, f"there is {it} and {article(random.choice(COLORS) + ' box')} {where}"),
            (f"there is {wide} {where}", exists) if wider != noun else (exists, f"there is {old} {where}"),
            (f"there is no {noun} {where}", f"there is no {wider} {where}")
            if wider != noun else (exists, f"there is {old} {where}"),
            (exists, f"there is {article(random.choice(kinds))} {where}")
            if kinds else (f"something is {where}", plain),
            (f"something is {where}", plain),
            (f"the {noun} is {adjective}", f"the {noun} is {where}"),
            (f"the {noun} is not {where}",
             f"the {noun} is {random.choice(POSITIONS)} the {'box' if surface != 'box' else 'desk'}"),
        ])  # fmt: skip
    return Pair(to_sentence(texts[0]), to_sentence(texts[1]), label)


def together(random: Random, label: int) -> Pair | None:
    """Two subjects with one activity, or one subject with two activities."""
    scene = dataclasses.replace(sample_scene(random), adverbial=None)
    if random.random() < 0.5:
        first, second = (
            dataclasses.replace(drop_appearance(scene, random), subject=Subject(noun))
            for noun in random.sample(["man", "woman", "boy", "girl", "dog", "child", "teacher", *list(NAMES)[:4]], 2)
        )
        if not all(can_do(s.subject.noun, ACTIONS[scene.activity.action]) for s in (first, second)):
            return None
        (a, _), (b, _) = (subject_phrase(s.subject, random, False) for s in (first, second))
        premise = f"{a} and {b} {predicate_phrase(first, random, 'progressive', True)}"
        if label == CONTRADICTION:
            hypothesis = (
                scene_sentence(second, random, negated=True)
                if random.random() < 0.5
                else scene_sentence(edit_scene(second, CONTRADICTION, random), random)
            )
            if "not" not in hypothesis and "n't" not in hypothesis:
                return None
            return Pair(
                to_sentence(premise),
                hypothesis
                if random.random() < 0.7
                else nobody_sentence(with_subject(second, noun="person"), random, "progressive"),
                label,
            )
        if label == NEUTRAL:
            third = subject_phrase(Subject(random.choice(["farmer", "nurse", "tourist", "soldier"])), random, False)[0]
            whole = to_sentence(premise)
            return random.choice([
                Pair(scene_sentence(first, random), whole, label),
                Pair(whole, to_sentence(f"{third} {predicate_phrase(first, random, 'progressive', False)}"), label),
                Pair(whole, scene_sentence(narrow_place(second, random), random), label)
                if second.place is None else Pair(scene_sentence(second, random), whole, label),
            ])  # fmt: skip
        broad = edit_scene(second, ENTAILMENT, random)
        if second.relation(broad) != ENTAILMENT:
            return None
        two = f"two people {predicate_phrase(first, random, 'progressive', True)}"
        persons = all(s.subject.noun in NAMES or NOUNS.is_a(s.subject.noun, "person") for s in (first, second))
        return Pair(
            to_sentence(premise),
            to_sentence(two) if persons and random.random() < 0.25 else scene_sentence(broad, random),
            label,
        )
    activity = sample_activity(random, scene.subject.noun)
    other = dataclasses.replace(scene, activity=activity)
    if action_relation(scene.activity, activity) != NEUTRAL or action_relation(activity, scene.activity) != NEUTRAL:
        return None
    who, plural = subject_phrase(scene.subject, random)
    two = " and ".join([
        predicate_phrase(dataclasses.replace(scene, place=None), random, "progressive", plural),
        predicate_phrase(other, random, "progressive", plural).split(" ", 1)[1],
    ])  # fmt: skip
    premise = to_sentence(f"{who} {two}")
    if label == NEUTRAL:
        return Pair(scene_sentence(scene if random.random() < 0.5 else other, random), premise, label)
    half = random.choice([scene, other])
    changed = edit_scene(dataclasses.replace(half, place=None if half is scene else half.place), label, random)
    if changed.subject.count != scene.subject.count or half.relation(changed) != label:
        return None
    if label == CONTRADICTION:
        rest = other if half is scene else scene
        if rest.predicate_relation(changed) == ENTAILMENT or rest.predicate_relation(changed) is None:
            return None
    return Pair(premise, scene_sentence(changed, random, after=scene), label)


def possessions(random: Random, label: int) -> Pair | None:
    """What somebody has: two brothers, no car."""
    who = person_phrase(random)
    person = random.random() < 0.5
    noun = random.choice((lexicon.RELATIVES if person else lexicon.BELONGINGS).split())
    plural = {"child": "children", "watch": "watches"}.get(noun, noun + "s")
    number, other = random.sample(range(2, 7), 2)
    adjective = (
        THING_ADJECTIVES.sample(random)
        if not person and noun != "child"
        else random.choice(["young", "tall", "older", "little"])
    )
    has, has_not = f"{who} has ", f"{who} does not have "
    one, some, old = article(noun), f"{NUMBER_WORDS[number]} {plural}", article(f"{adjective} {noun}")
    if label == ENTAILMENT:
        texts = random.choice([
            (has + some, has + one),
            (has + old, has + one),
            (f"{has}no {plural}", has_not + one),
            (f"{has}no {noun}", f"{has}no {adjective} {noun}"),
            (has + some, f"{has}more than one {noun}"),
            (has + some, f"{has}some {plural}"),
            (f"{has}{one} and {article('bag')}", has + one),
        ])  # fmt: skip
    elif label == CONTRADICTION:
        texts = random.choice([
            (f"{has}no {plural}", has + some),
            (has + some, f"{has}no {plural}"),
            (has + one, has_not + one),
            (has + some, f"{has}only {NUMBER_WORDS[other]} {plural}"),
            (f"{has}no {noun}", has + old),
            (f"{has}no {plural}", has + one),
            (has + some, f"{has}only one {noun}"),
        ])  # fmt: skip
    else:
        texts = random.choice([
            (has + one, has + old),
            (f"{has}some {plural}", has + some),
            (f"{has}no {adjective} {noun}", f"{has}no {noun}"),
            (has + one, f"{has}{one} and {article('bag')}"),
            (has_not + old, has + one),
            (has + one, f"the {noun} is {adjective}"),
        ])  # fmt: skip
    return Pair(to_sentence(texts[0]), to_sentence(texts[1]), label)


WEATHER = [[parse_cells(cell, ";") for cell in parse_cells(row)] for row in parse_rows(lexicon.WEATHER)]


def weather(random: Random, label: int) -> Pair | None:
    """The weather: it is snowing, the ground is getting white."""
    line = random.choice(WEATHER)
    one, other = random.sample(line, 2)
    first = random.choice(one)
    if label == ENTAILMENT:
        texts = (
            (first, random.choice(one))
            if random.random() < 0.5
            else (f"{first} and {random.choice(random.choice(WEATHER[3:5])[0:1][0])}", first)
        )
    elif label == CONTRADICTION:
        second = random.choice(other)
        if " is " in first and random.random() < 0.3:
            second = first.replace(" is ", " is not ", 1)
        texts = (first, second)
    else:
        elsewhere = random.choice(random.choice(random.choice([row for row in WEATHER if row is not line])))
        scene = scene_sentence(drop_adverbial(sample_scene(random), random), random)[:-1]
        texts = random.choice([
            (f"if {first}, we will stay at home", first),
            (first, scene),
            (f"{random.choice(list(NAMES))} thinks that {first}", first),
            (first, elsewhere),
            (f"perhaps {first}", first),
        ])  # fmt: skip
        if {"cold", "warm", "snow", "rain", "sun", "dark", "night"} & set(
            re.findall("cold|warm|snow|rain|sun|dark|night", texts[1])
        ) and texts[1] == elsewhere:
            return None
    return Pair(to_sentence(texts[0]), to_sentence(texts[1]), label)


REPORTS = {
    NEUTRAL: ["{} said that {}", "{} thinks that {}", "{} believes that {}", "{} hopes that {}", "perhaps {1}",
        "if {1}, {} will be surprised", "{} asked whether {1}", "{1} or {2}"],
    ENTAILMENT: ["{} knows that {}", "{} saw that {}", "it is true that {1}", "{} is happy that {1}", "{1} and {2}",
        "{2} and {1}", "{1} while {2}", "{1}, but {2}", "{1} because {2}"],
    CONTRADICTION: ["it is not true that {1}", "it is false that {1}"],
}  # fmt: skip


def reports(random: Random, label: int) -> Pair | None:
    """What somebody said or knows, or two clauses in one sentence."""
    first, other = (_clause(random) for _ in range(2))
    name = person_phrase(random)

    def fill_template(relation: int) -> str:
        template = random.choice(REPORTS[relation])
        filled = template.replace("{} said", f"{name} said").replace("that {}", "that {1}").replace("{}", name)
        return to_sentence(filled.replace("{1}", first.affirmative).replace("{2}", other.affirmative))

    if label == NEUTRAL and random.random() < 0.3:
        return Pair(
            to_sentence(first.affirmative),
            to_sentence(f"{first.affirmative} {random.choice(['and', 'while', 'because'])} {other.affirmative}"),
            label,
        )
    if label == CONTRADICTION and random.random() < 0.6:
        return Pair(fill_template(ENTAILMENT), to_sentence(first.negated), label)
    return Pair(fill_template(label), to_sentence(first.affirmative), label)


@dataclass(frozen=True)
class _Clause:
    """A clause, and its negation."""

    affirmative: str
    negated: str


def _clause(random: Random) -> _Clause:
    """Returns a random clause about a state or a scene."""
    if random.random() < 0.5:
        nouns, options, _ = random.choice(STATES)
        one, other = (
            (random.choice(way) for way in random.sample(options, 2)) if len(options) > 1 else (options[0][0], None)
        )
        the = f"the {random.choice(nouns)} is"
        return _Clause(f"{the} {one}", random.choice([f"{the} not {one}", f"{the} {other or 'not ' + one}"]))
    scene = dataclasses.replace(drop_appearance(sample_scene(random), random), adverbial=None)
    who, plural = subject_phrase(scene.subject, random, definite=True)
    predicate = predicate_phrase(scene, random, "progressive", plural)
    return _Clause(f"{who} {predicate}", f"{who} {predicate.replace(' ', ' not ', 1)}")


ROOMS = [
    "room", "house", "kitchen", "garden", "bus", "train", "pool", "shop", "classroom", "church", "library", "park",
    "street", "stage", "bar", "office", "gym",
]  # fmt: skip


def _sample_two(texts: list[str], random: Random) -> tuple[str, str]:
    one, other = random.sample(texts, 2)
    return one, other


def occupancy(random: Random, label: int) -> Pair | None:
    """An empty room, a room full of people, nobody in the room."""
    room = random.choice(ROOMS)
    where = f"{'on' if room in ('bus', 'train', 'stage', 'street') else 'in'} the {room}"
    adjective = random.choice(["", "", "old ", "big ", "small ", "new "])
    empty = [
        f"the {adjective}{room} is empty",
        f"there is nobody {where}",
        f"there is no one {where}",
        f"nobody is {where}",
        f"no one is {where}",
    ]
    scene = sample_scene(random)
    subject, noun = scene.subject, scene.subject.noun
    if noun in NAMES or not NOUNS.is_a(noun, "person"):
        subject, noun = Subject("person", subject.count), "person"
    who, plural = subject_phrase(dataclasses.replace(subject, garment=None), random, False)
    be = "are" if plural else "is"
    activity = action_phrase(scene.activity, random)
    full = [
        f"there {be} {who} {where}",
        f"{who} {be} {where}",
        f"the {room} is full of people",
        f"there are many people {where}",
        f"{who} {conjugate(activity, 'progressive', plural, False, random)} {where}",
    ]
    if label == CONTRADICTION:
        texts = (random.choice(empty), random.choice(full))
        texts = texts if random.random() < 0.5 else texts[::-1]
    elif label == ENTAILMENT:
        texts = random.choice([
            _sample_two(empty, random), _sample_two(empty, random),
            (random.choice(full), f"the {room} is not empty"),
            (random.choice(full), f"{random.choice(['someone', 'somebody'])} is {where}"),
            (random.choice(full), f"there is {random.choice(['someone', 'somebody'])} {where}"),
            (f"the {adjective}{room} is empty", f"there is no {noun} {where}"),
            (f"the {room} is not empty", f"there is {random.choice(['something', 'something', 'something'])} {where}"),
        ])  # fmt: skip
    else:
        texts = random.choice([
            (f"someone is {where}", f"{who} {be} {where}"),
            (f"there are people {where}", f"the {room} is full of people"),
            (random.choice(empty), f"the {room} is {random.choice(['closed', 'big', 'cold', 'dark', 'new'])}"),
            (f"there is someone {where}", f"{random.choice(list(NAMES))} is {where}"),
            (f"there is no {noun} {where}", f"the {room} is empty")
            if noun != "person" else (f"someone is {where}", f"there are many people {where}"),
        ])  # fmt: skip
        if noun == "person" and not subject.adjectives and subject.count == 1 and texts[1] == f"{who} {be} {where}":
            return None
    return Pair(to_sentence(texts[0]), to_sentence(texts[1]), label)


def presence(random: Random, label: int) -> Pair | None:
    """Who does something somewhere is there."""
    scene = sample_scene(random)
    place = re.fullmatch(r"(in|on|at) (the \w+)", scene.place or "")
    if not place or scene.subject.noun in NAMES:
        return None
    subject = Subject(scene.subject.noun, scene.subject.count)
    if label == NEUTRAL:
        subject = sample_subject(random)
        if subject.noun in NAMES or noun_relation(scene.subject.noun, subject.noun) is not None:
            return None
    elif label == ENTAILMENT and random.random() < 0.5:
        subject = broaden_subject(dataclasses.replace(scene, subject=subject), random).subject
    who, plural = subject_phrase(dataclasses.replace(subject, adjectives=(), garment=None), random, False)
    there = f"there {'are' if plural and subject.count != 'group' else 'is'} {who} {scene.place}"
    if label == CONTRADICTION:
        noun = random.choice(NOUNS.hypernyms(scene.subject.noun))
        none = [f"there is no {noun} {scene.place}", f"there are no {NOUNS.plurals[noun]} {scene.place}"]
        if NOUNS.is_a(scene.subject.noun, "person"):
            none += [f"there is {random.choice(['nobody', 'no one'])} {scene.place}", f"{place[2]} is empty"]
        there = random.choice(none)
    return Pair(scene_sentence(scene, random), to_sentence(there), label)


def roles(random: Random, label: int) -> Pair | None:
    """Who somebody is: Anna is a doctor."""
    who = random.choice(list(NAMES))
    jobs = [noun for noun in PERSON_NOUNS if noun not in AGE_AND_SEX_NOUNS]
    job, other = random.sample(jobs, 2)
    adjective = PERSON_ADJECTIVES.sample(random)
    activity = verb_phrase(action_phrase(sample_activity(random, "man"), random), "ing").replace("being ", "")
    wider = NOUNS.hypernyms(job)[1]
    if label == ENTAILMENT:
        texts = random.choice([
            (f"{who} is {article(job)}", f"{who} is {article(wider)}" if wider != "person" else f"{who} is a person"),
            (f"{who} is {article(adjective + ' ' + job)}", f"{who} is {article(job)}"),
            (f"{who} is {article(adjective + ' ' + job)}", f"{who} is {adjective}"),
            (f"{who}, {article(job)}, is {activity}", f"{who} is {article(job)}"),
            (f"the {job}, who is {adjective}, is {activity}", f"the {job} is {adjective}"),
        ])  # fmt: skip
    elif label == CONTRADICTION:
        opposite = (PERSON_ADJECTIVES.alternatives(adjective) or ["dead"])[0]
        texts = random.choice([
            (f"{who} is {article(job)}", f"{who} is not {article(job)}"),
            (f"{who} is not {article(job)}", f"{who} is {article(job)}"),
            (f"{who} is {article(adjective + ' ' + job)}", f"{who} is {opposite}"),
            (f"the {job}, who is {adjective}, is {activity}", f"the {job} is {opposite}"),
            (f"{who} is {article(adjective + ' ' + job)}", f"{who} is not {article(job)}"),
        ])  # fmt: skip
    else:
        sex = random.choice(["a man", "a woman"])
        texts = random.choice([
            (f"{who} is {article(job)}", f"{who} is {article(adjective + ' ' + job)}"),
            (f"{who} knows {article(job)}", f"{who} is {article(job)}"),
            (f"the {job} is {activity}", f"the {job} is {sex}"),
            (f"the {job} is {activity}", f"the {job} is {adjective}"),
            (f"the man is {activity}", f"the man is {article(job)}"),
            (f"the woman is {activity}", f"the woman is {article(adjective + ' ' + job)}"),
            (f"{who} is {activity}", f"{who} is {article(job)}"),
            (f"{who} is not {article(job)}", f"{who} is {article(other)}"),
        ])  # fmt: skip
    return Pair(to_sentence(texts[0]), to_sentence(texts[1]), label)


def unrelated(random: Random, label: int) -> Pair | None:
    """Two sentences that have nothing to do with each other."""
    if label != NEUTRAL:
        return None
    first = scene_sentence(sample_scene(random), random, random.choice(TENSES))
    pair = random.choice([states, weather, positions, possessions])(random, random.choice([0, 1, 2]))
    if pair is None:
        return None
    second = random.choice([pair.premise, pair.hypothesis])
    shared = set(first.lower()[:-1].split()) & set(second.lower()[:-1].split())
    if shared - {"the", "a", "an", "is", "are", "in", "on", "of", "not"}:
        return None
    one, other = random.sample([first, second], 2)
    return Pair(one, other, label)


Generator = Callable[[Random, int], Pair | None]
GENERATORS: dict[Generator, int] = {
    scenes: 40, negations: 12, nobody: 8, asleep_or_awake: 2, quantifiers: 4, counts: 3, states: 8, comparatives: 4,
    implicatives: 3, opposites: 3, transfers: 3, positions: 6, together: 5, possessions: 3, weather: 3, reports: 5,
    occupancy: 3, presence: 2, roles: 4, unrelated: 3,
}  # fmt: skip
