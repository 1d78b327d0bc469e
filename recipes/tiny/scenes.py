"""Scenes: who, how many, of what look, doing what, where. What one says of another follows from the facts of both.

Labels come from facts, as in MacCartney and Manning's natural logic (2007). "Contradiction" is meant as in SNLI: both
sentences are about one scene, so that one who sleeps does not run.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from recipes.tiny import lexicon
from recipes.tiny.words import (
    COLORS,
    COMMON,
    CONTRADICTION,
    ENTAILMENT,
    NAMES,
    NEUTRAL,
    NOUNS,
    PERSONS,
    PLACES,
    SHAPED,
    SPOTS,
    Adjectives,
    Relation,
    adjectives_of,
    cells,
    noun_relation,
    place_relation,
    rows,
)

# Actions


@dataclass(frozen=True)
class Action:
    name: str  # as in the table: "play {instrument}"
    manner: str
    parent: str
    agents: tuple[str, ...]

    @property
    def kind(self) -> str | None:
        """The kind of noun that it takes, if any."""
        found = re.search(r"{(\w+)}", self.name)
        return found and found[1]


ACTIONS: dict[str, Action] = {}
ACTION_WAYS: dict[str, list[str]] = {}
for _line in rows(lexicon.ACTIONS):
    if "=" in _line:
        _way, _name = cells(_line, "=")
        ACTION_WAYS[_name if _name in ACTION_WAYS else "eat {food}"].append(_way)
    else:
        _name, _manner, _parent, _agents = cells(_line)
        ACTIONS[_name] = Action(_name, _manner, _parent, tuple(_agents.split()))
        ACTION_WAYS[_name] = [_name]
_TOGETHER = {
    frozenset((row.partition(":")[0], other))
    for row in rows(lexicon.TOGETHER)
    for other in row.partition(":")[2].split()
}
# Wide enough to be said of nearly anything that one does: whether they exclude each other is a matter of opinion.
_VAGUE = {"move", "make noise", "rest", "work", "talk", "exercise", "prepare food", "make art", "play"}
_VAGUE |= {name for name in ACTIONS if name.endswith(" something")} | {"work in the garden"}


def action_path(name: str) -> list[str]:
    found = [name]
    while parent := ACTIONS[found[-1]].parent:
        found.append(parent)
    return found


def verb_of(name: str) -> str:
    return name.split()[0]


def action_relation(first: Doing, second: Doing) -> Relation:
    """What holds of the second action where somebody does the first."""
    a, b = ACTIONS[first.action], ACTIONS[second.action]
    if a == b:
        return thing_relation(first.thing, second.thing) if first.thing and second.thing else ENTAILMENT
    if b.name in action_path(a.name):
        return ENTAILMENT
    if a.name in action_path(b.name):
        return NEUTRAL
    if "be awake" in (a.name, b.name):
        if "sleep" in action_path(a.name) + action_path(b.name):
            return CONTRADICTION
        return ENTAILMENT if b.name == "be awake" and a.manner not in ("resting", "posture", "state") else NEUTRAL
    if verb_of(a.name) == verb_of(b.name) and a.name not in _VAGUE and b.name not in _VAGUE:
        if first.thing and second.thing:
            return thing_relation(first.thing, second.thing)
        return CONTRADICTION
    if frozenset((a.manner, b.manner)) in _TOGETHER:
        return NEUTRAL
    if "move" in (a.name, b.name) and {a.manner, b.manner} & {"posture", "resting"}:
        return CONTRADICTION
    if a.name in _VAGUE or b.name in _VAGUE:
        return None
    shared = set(action_path(a.name)) & set(action_path(b.name))
    return None if shared - {"move"} else CONTRADICTION


# Scenes


@dataclass(frozen=True)
class Thing:
    """What an action is done to."""

    noun: str
    plural: bool = False
    adjective: str | None = None


@dataclass(frozen=True)
class Doing:
    action: str
    thing: Thing | None = None


@dataclass(frozen=True)
class Subject:
    """Who does it. `count` is a number, or some, several, many or group; `garment` is (color or None, noun)."""

    noun: str
    count: int | str = 1
    adjectives: tuple[str, ...] = ()
    garment: tuple[str | None, str] | None = None


@dataclass(frozen=True)
class Scene:
    subject: Subject
    doing: Doing
    place: str | None = None
    extra: str | None = None

    def relation(self, other: Scene) -> Relation:
        """What holds of `other` where this scene is true, both being of the same people at the same time."""
        return both(subject_relation(self.subject, other.subject), self.predicate_relation(other))

    def predicate_relation(self, other: Scene) -> Relation:
        """The same of what is done, where and how."""
        place = fact_relation(self.place, other.place, place_relation)
        return both(
            action_relation(self.doing, other.doing), place, fact_relation(self.extra, other.extra, extra_relation)
        )


def both(*relations: Relation) -> Relation:
    """The relation of facts that are all asserted: the least of them, if all are known."""
    known = [relation for relation in relations if relation is not None]
    return min(known) if len(known) == len(relations) else None


def fact_relation(first: str | None, second: str | None, relation: Callable[[str, str], Relation]) -> Relation:
    """Of a fact that may be left out: leaving out is safe, and adding is not."""
    if second is None:
        return ENTAILMENT
    return NEUTRAL if first is None else relation(first, second)


_OPPOSITE_ADVERBS = {
    a: b for pair in cells(lexicon.ADVERBS) for a, b in (pair.split(), pair.split()[::-1])
}  # quickly -> slowly, slowly -> quickly
ADVERBS = list(_OPPOSITE_ADVERBS)
REASONS = [reason for line in rows(lexicon.REASONS) for reason in cells(line)]


def extra_relation(first: str, second: str) -> Relation:
    if first == second:
        return ENTAILMENT
    return CONTRADICTION if _OPPOSITE_ADVERBS.get(first) == second else NEUTRAL


def adjective_relation(first: Sequence[str], second: Sequence[str], table: Adjectives) -> Relation:
    relations: list[Relation] = [ENTAILMENT]
    for adjective in second:
        if adjective in first:
            continue
        relations.append(CONTRADICTION if set(table.alternatives(adjective)) & set(first) else NEUTRAL)
    return both(*relations)


def thing_relation(first: Thing, second: Thing) -> Relation:
    noun = noun_relation(first.noun, second.noun)
    if noun is None and NOUNS.path(first.noun)[-1] == NOUNS.path(second.noun)[-1]:
        noun = CONTRADICTION
    mine, theirs = ([thing.adjective] if thing.adjective else [] for thing in (first, second))
    return both(noun, adjective_relation(mine, theirs, adjectives_of(first.noun)))


_LEAST = {"some": 2, "several": 3, "group": 3, "many": 4}


def count_relation(first: int | str, second: int | str) -> Relation:
    if first == second or second == 1:
        return ENTAILMENT
    if isinstance(first, int) and isinstance(second, int):
        return CONTRADICTION
    if isinstance(second, int):
        return NEUTRAL if first in ("some", "several") else None
    if isinstance(first, int):
        return None if first == 1 or second in ("many", "group") or first < _LEAST[second] else ENTAILMENT
    return ENTAILMENT if second == "some" else NEUTRAL if first == "some" else None


def subject_relation(first: Subject, second: Subject) -> Relation:
    garment: Relation = ENTAILMENT
    if second.garment is not None:
        garment = NEUTRAL
        if first.garment is not None:
            color = fact_relation(
                first.garment[0], second.garment[0], lambda a, b: ENTAILMENT if a == b else CONTRADICTION
            )
            same = NOUNS.relation(first.garment[1], second.garment[1])
            garment = color if same == ENTAILMENT else NEUTRAL
    return both(
        noun_relation(first.noun, second.noun),
        count_relation(first.count, second.count),
        adjective_relation(first.adjectives, second.adjectives, adjectives_of(first.noun)),
        garment,
    )


# Making scenes


def pick_thing(random: Random, kind: str, excluded: str | None = None) -> Thing:
    if kind == "thing":
        kind = random.choice(lexicon.THINGS.split())
    nouns = [noun for noun in NOUNS.of(kind) if noun != excluded] or [kind]
    noun = random.choice(nouns)
    adjective = None
    if random.random() < 0.2 and noun not in NOUNS.mass:
        adjective = adjectives_of(noun).pick(random)
    return Thing(noun, noun not in NOUNS.mass and random.random() < 0.15, adjective)


def doable(noun: str, action: Action) -> bool:
    path = ["person"] if noun in NAMES else NOUNS.path(noun)
    return any(agent in path for agent in action.agents)


def pick_doing(random: Random, noun: str) -> Doing:
    action = random.choice([action for action in ACTIONS.values() if doable(noun, action)])
    return Doing(action.name, pick_thing(random, action.kind, noun) if action.kind else None)


def pick_place(random: Random, doing: Doing) -> str | None:
    if doing.action in ("swim", "be in the water"):
        return None
    if ACTIONS[doing.action].manner in ("posture", "resting", "gaze") and random.random() < 0.4:
        return random.choice(SPOTS)
    return random.choice(list(PLACES.parents))


def pick_garment(random: Random) -> tuple[str | None, str]:
    return random.choice([None, *COLORS]) if random.random() < 0.7 else None, random.choice(NOUNS.of("garment")[1:])


def pick_extra(random: Random) -> str:
    return random.choice(ADVERBS) if random.random() < 0.4 else random.choice(REASONS)


_COUNTS: list[int | str] = [2, 2, 3, 4, 5, "some", "some", "several", "many", "group"]


def pick_subject(random: Random) -> Subject:
    if random.random() < 0.08:
        return Subject(random.choice(list(NAMES)))
    noun = random.choice(COMMON) if random.random() < 0.6 else random.choice(NOUNS.of("person") + NOUNS.of("animal"))
    count: int | str = 1
    if random.random() < 0.3:
        count = random.choice(_COUNTS)
    table = adjectives_of(noun)
    adjectives = (table.pick(random),) if random.random() < 0.3 else ()
    is_person = NOUNS.is_a(noun, "person") and noun != "baby"
    return Subject(noun, count, adjectives, pick_garment(random) if is_person and random.random() < 0.12 else None)


def pick_scene(random: Random) -> Scene:
    subject = pick_subject(random)
    doing = pick_doing(random, subject.noun)
    place = pick_place(random, doing) if random.random() < 0.5 else None
    return Scene(subject, doing, place, pick_extra(random) if random.random() < 0.12 else None)


# Steps from one scene to another. Each returns a changed scene, or the scene itself where it does not apply.


def broaden_subject(scene: Scene, random: Random) -> Scene:
    subject = scene.subject
    if subject.noun in NAMES:
        return dataclasses.replace(scene, subject=Subject("person"))
    path = NOUNS.path(subject.noun)
    noun = random.choice(path[1:] or path)
    keep = subject.adjectives if adjectives_of(noun) is adjectives_of(subject.noun) else ()
    return with_subject(scene, noun=noun, adjectives=keep)


def narrow_subject(scene: Scene, random: Random) -> Scene:
    noun = scene.subject.noun
    if noun in NAMES:
        return scene
    kinds = [kind for kind in NOUNS.of(noun) if kind != noun]
    if NOUNS.is_a(noun, "person") and noun in ("man", "woman", "adult"):
        kinds += [kind for kind in PERSONS if kind not in SHAPED]
    return with_subject(scene, noun=random.choice(kinds or [noun]))


def exchange_subject(scene: Scene, random: Random) -> Scene:
    kinds = [kind for kind in NOUNS.parents if noun_relation(scene.subject.noun, kind) == CONTRADICTION]
    return with_subject(scene, noun=random.choice(kinds)) if kinds else scene


def with_subject(scene: Scene, **changes: object) -> Scene:
    return dataclasses.replace(scene, subject=dataclasses.replace(scene.subject, **changes))  # type: ignore[arg-type]


def drop_look(scene: Scene, random: Random) -> Scene:
    return with_subject(scene, adjectives=(), garment=None)


def add_adjective(scene: Scene, random: Random) -> Scene:
    if scene.subject.noun in NAMES or scene.subject.adjectives:
        return scene
    return with_subject(scene, adjectives=(adjectives_of(scene.subject.noun).pick(random),))


def exchange_adjective(scene: Scene, random: Random) -> Scene:
    subject = scene.subject
    if not subject.adjectives:
        return scene
    others = adjectives_of(subject.noun).alternatives(subject.adjectives[0])
    return with_subject(scene, adjectives=(random.choice(others),)) if others else scene


def add_garment(scene: Scene, random: Random) -> Scene:
    subject = scene.subject
    if subject.noun in NAMES or not NOUNS.is_a(subject.noun, "person"):
        return scene
    if subject.garment is not None and subject.garment[0] is None:
        return with_subject(scene, garment=(random.choice(COLORS), subject.garment[1]))
    return with_subject(scene, garment=pick_garment(random)) if subject.garment is None else scene


def exchange_garment_color(scene: Scene, random: Random) -> Scene:
    garment = scene.subject.garment
    if garment is None or garment[0] is None:
        return scene
    return with_subject(scene, garment=(random.choice([c for c in COLORS if c != garment[0]]), garment[1]))


def fewer(scene: Scene, random: Random) -> Scene:
    count = scene.subject.count
    if count == 1:
        return scene
    wider = [c for c in (1, "some", "several") if count_relation(count, c) == ENTAILMENT]
    return with_subject(scene, count=random.choice(wider))


def exchange_count(scene: Scene, random: Random) -> Scene:
    count = scene.subject.count
    if scene.subject.noun in NAMES or not isinstance(count, int):
        return scene
    return with_subject(scene, count=random.choice([n for n in range(2, 7) if n != count]))


def say_how_many(scene: Scene, random: Random) -> Scene:
    count = scene.subject.count
    return with_subject(scene, count=random.choice([3, 4, 5, "many"])) if count in ("some", "several") else scene


def broaden_action(scene: Scene, random: Random) -> Scene:
    doing = scene.doing
    wider = [Doing(name) for name in action_path(doing.action)[1:] if not ACTIONS[name].kind]
    if doing.thing:
        nouns = NOUNS.path(doing.thing.noun)[1:]
        nouns = nouns[: nouns.index(kind) + 1] if (kind := ACTIONS[doing.action].kind) in nouns else []
        wider += [Doing(doing.action, dataclasses.replace(doing.thing, noun=noun, adjective=None)) for noun in nouns]
        if doing.thing.adjective:
            wider.append(Doing(doing.action, dataclasses.replace(doing.thing, adjective=None)))
    if any(action == "move" for action in (w.action for w in wider)) and random.random() < 0.6:
        wider = [w for w in wider if w.action != "move"]
    return dataclasses.replace(scene, doing=random.choice(wider)) if wider else scene


def narrow_action(scene: Scene, random: Random) -> Scene:
    doing = scene.doing
    narrower = []
    for action in ACTIONS.values():
        if action.parent and doing.action in action_path(action.name)[1:] and doable(scene.subject.noun, action):
            narrower.append(
                Doing(action.name, pick_thing(random, action.kind, scene.subject.noun) if action.kind else None)
            )
    if doing.thing:
        nouns = [noun for noun in NOUNS.of(doing.thing.noun) if noun != doing.thing.noun]
        narrower += [Doing(doing.action, dataclasses.replace(doing.thing, noun=noun)) for noun in nouns]
        if not doing.thing.adjective and doing.thing.noun not in NOUNS.mass:
            adjective = adjectives_of(doing.thing.noun).pick(random)
            narrower += [Doing(doing.action, dataclasses.replace(doing.thing, adjective=adjective))] * 2
    return dataclasses.replace(scene, doing=random.choice(narrower)) if narrower else scene


def exchange_action(scene: Scene, random: Random) -> Scene:
    return dataclasses.replace(scene, doing=pick_doing(random, scene.subject.noun))


def exchange_thing(scene: Scene, random: Random) -> Scene:
    doing = scene.doing
    kind = ACTIONS[doing.action].kind
    if doing.thing is None or kind is None or kind == "thing":
        return scene
    if doing.thing.adjective and random.random() < 0.5:
        others = adjectives_of(doing.thing.noun).alternatives(doing.thing.adjective)
        thing = dataclasses.replace(doing.thing, adjective=random.choice(others)) if others else doing.thing
    else:
        thing = dataclasses.replace(doing.thing, noun=random.choice(NOUNS.of(kind)))
    return dataclasses.replace(scene, doing=Doing(doing.action, thing))


def broaden_place(scene: Scene, random: Random) -> Scene:
    path = PLACES.path(scene.place)[1:] if scene.place else []
    return dataclasses.replace(scene, place=random.choice([None, *path]))


def narrow_place(scene: Scene, random: Random) -> Scene:
    if scene.place is None:
        return dataclasses.replace(scene, place=pick_place(random, scene.doing))
    kinds = [place for place in PLACES.of(scene.place) if place != scene.place]
    return dataclasses.replace(scene, place=random.choice(kinds)) if kinds else scene


def exchange_place(scene: Scene, random: Random) -> Scene:
    if scene.place is None:
        return scene
    others = [place for place in PLACES.parents if place_relation(scene.place, place) == CONTRADICTION]
    return dataclasses.replace(scene, place=random.choice(others)) if others else scene


def drop_extra(scene: Scene, random: Random) -> Scene:
    return dataclasses.replace(scene, extra=None)


def add_extra(scene: Scene, random: Random) -> Scene:
    return dataclasses.replace(scene, extra=pick_extra(random)) if scene.extra is None else scene


def exchange_extra(scene: Scene, random: Random) -> Scene:
    return dataclasses.replace(scene, extra=_OPPOSITE_ADVERBS.get(scene.extra or "", scene.extra))


Step = Callable[[Scene, Random], Scene]
STEPS: dict[int, list[Step]] = {
    ENTAILMENT: [broaden_subject, drop_look, fewer, broaden_action, broaden_action, broaden_place, drop_extra],
    NEUTRAL: [
        narrow_subject, narrow_subject, add_adjective, add_garment, say_how_many, narrow_action, narrow_action,
        narrow_place, narrow_place, add_extra, exchange_action,
    ],
    CONTRADICTION: [
        exchange_subject, exchange_adjective, exchange_garment_color, exchange_count, exchange_action, exchange_action,
        exchange_action, exchange_thing, exchange_thing, exchange_place, exchange_place, exchange_extra,
    ],
}  # fmt: skip


def change(scene: Scene, label: int, random: Random) -> Scene:
    """A scene made by steps that tend to `label`; the first one always, and some that leave facts out."""
    changed = scene
    if label != ENTAILMENT or random.random() < 0.9:
        changed = random.choice(STEPS[label])(changed, random)
    while random.random() < 0.45:
        changed = random.choice(STEPS[ENTAILMENT])(changed, random)
    return changed
