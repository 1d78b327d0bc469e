"""Scenes: who does what, how many of them, what they look like, and where. Relations of scenes follow from their facts.

The facts give the labels, as in the natural logic of MacCartney and Manning (2007). Contradiction has the meaning of
SNLI: both sentences are about one scene, so somebody who sleeps does not run.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from recipes.tiny import lexicon
from recipes.tiny.lexicon import parse_cells, parse_rows
from recipes.tiny.taxonomy import (
    AGE_AND_SEX_NOUNS,
    COLORS,
    COMMON_SUBJECTS,
    CONTRADICTION,
    ENTAILMENT,
    NAMES,
    NEUTRAL,
    NOUNS,
    PERSON_NOUNS,
    PLACES,
    SPOTS,
    Adjectives,
    Relation,
    adjectives_of,
    noun_relation,
    place_relation,
)

# Actions


@dataclass(frozen=True)
class Action:
    """A row of the lexicon's table of actions.

    Attributes:
      name: the verb and its complement, such as "play {instrument}".
      manner: the manner; some manners exclude each other.
      parent: the name of the more general action, or "".
      agents: the kinds of nouns that can do it.
    """

    name: str
    manner: str
    parent: str
    agents: tuple[str, ...]

    @property
    def kind(self) -> str | None:
        """The kind of noun in its complement, if any."""
        match = re.search(r"{(\w+)}", self.name)
        return match and match[1]


def _parse_actions(table: str) -> tuple[dict[str, Action], dict[str, list[str]]]:
    """Returns the actions by name, and the synonyms of each, itself first."""
    actions: dict[str, Action] = {}
    synonyms: dict[str, list[str]] = {}
    for row in parse_rows(table):
        if "=" in row:
            synonym, name = parse_cells(row, "=")
            synonyms[name if name in synonyms else "eat {food}"].append(synonym)
        else:
            name, manner, parent, agents = parse_cells(row)
            actions[name] = Action(name, manner, parent, tuple(agents.split()))
            synonyms[name] = [name]
    return actions, synonyms


ACTIONS, ACTION_SYNONYMS = _parse_actions(lexicon.ACTIONS)
_COMPATIBLE_MANNERS = {
    frozenset((row.partition(":")[0], other))
    for row in parse_rows(lexicon.COMPATIBLE_MANNERS)
    for other in row.partition(":")[2].split()
}
# So general that they describe nearly anything: whether they exclude other actions is a matter of opinion.
_VAGUE_ACTIONS = {"move", "make noise", "rest", "work", "talk", "exercise", "prepare food", "make art", "play"}
_VAGUE_ACTIONS |= {name for name in ACTIONS if name.endswith(" something")} | {"work in the garden"}


def action_hypernyms(name: str) -> list[str]:
    """Returns the action, the more general one, and so on."""
    path = [name]
    while parent := ACTIONS[path[-1]].parent:
        path.append(parent)
    return path


def verb_of(name: str) -> str:
    return name.split()[0]


def action_relation(first: Activity, second: Activity) -> Relation:
    """Returns the label of the second activity as a hypothesis about somebody who does the first."""
    a, b = ACTIONS[first.action], ACTIONS[second.action]
    if a == b:
        return thing_relation(first.thing, second.thing) if first.thing and second.thing else ENTAILMENT
    if b.name in action_hypernyms(a.name):
        return ENTAILMENT
    if a.name in action_hypernyms(b.name):
        return NEUTRAL
    if "be awake" in (a.name, b.name):
        if "sleep" in action_hypernyms(a.name) + action_hypernyms(b.name):
            return CONTRADICTION
        return ENTAILMENT if b.name == "be awake" and a.manner not in ("resting", "posture", "state") else NEUTRAL
    if verb_of(a.name) == verb_of(b.name) and a.name not in _VAGUE_ACTIONS and b.name not in _VAGUE_ACTIONS:
        if first.thing and second.thing:
            return thing_relation(first.thing, second.thing)
        return CONTRADICTION
    if frozenset((a.manner, b.manner)) in _COMPATIBLE_MANNERS:
        return NEUTRAL
    if "move" in (a.name, b.name) and {a.manner, b.manner} & {"posture", "resting"}:
        return CONTRADICTION
    if a.name in _VAGUE_ACTIONS or b.name in _VAGUE_ACTIONS:
        return None
    shared = set(action_hypernyms(a.name)) & set(action_hypernyms(b.name))
    return None if shared - {"move"} else CONTRADICTION


# Scenes


@dataclass(frozen=True)
class Thing:
    """The object of an action."""

    noun: str
    plural: bool = False
    adjective: str | None = None


@dataclass(frozen=True)
class Activity:
    """An action and its object."""

    action: str
    thing: Thing | None = None


@dataclass(frozen=True)
class Subject:
    """Who does something.

    Attributes:
      noun: the noun, or a name.
      count: a number, or "some", "several", "many" or "group".
      adjectives: the adjectives.
      garment: the color, or None, and the noun of what the subject wears.
    """

    noun: str
    count: int | str = 1
    adjectives: tuple[str, ...] = ()
    garment: tuple[str | None, str] | None = None


@dataclass(frozen=True)
class Scene:
    """A subject, an activity, and maybe a place and an adverbial (an adverb or a reason)."""

    subject: Subject
    activity: Activity
    place: str | None = None
    adverbial: str | None = None

    def relation(self, other: Scene) -> Relation:
        """Returns the label of `other` as a hypothesis about this scene, with the same people at the same time."""
        return combine_relations(subject_relation(self.subject, other.subject), self.predicate_relation(other))

    def predicate_relation(self, other: Scene) -> Relation:
        """Returns the label of the activity, the place and the adverbial of `other`."""
        place = optional_relation(self.place, other.place, place_relation)
        return combine_relations(
            action_relation(self.activity, other.activity),
            place,
            optional_relation(self.adverbial, other.adverbial, adverbial_relation),
        )


def combine_relations(*relations: Relation) -> Relation:
    """Returns the label of several facts together: the lowest of their labels, or None if one of them is unknown."""
    known = [relation for relation in relations if relation is not None]
    return min(known) if len(known) == len(relations) else None


def optional_relation(first: str | None, second: str | None, relation: Callable[[str, str], Relation]) -> Relation:
    """Returns the label of an optional fact: to leave it out is safe, to add it is not."""
    if second is None:
        return ENTAILMENT
    return NEUTRAL if first is None else relation(first, second)


# In both directions: quickly -> slowly, slowly -> quickly.
_OPPOSITE_ADVERBS = {a: b for pair in parse_cells(lexicon.ADVERBS) for a, b in (pair.split(), pair.split()[::-1])}
ADVERBS = list(_OPPOSITE_ADVERBS)
REASONS = [reason for line in parse_rows(lexicon.REASONS) for reason in parse_cells(line)]


def adverbial_relation(first: str, second: str) -> Relation:
    if first == second:
        return ENTAILMENT
    return CONTRADICTION if _OPPOSITE_ADVERBS.get(first) == second else NEUTRAL


def adjective_relation(first: Sequence[str], second: Sequence[str], table: Adjectives) -> Relation:
    relations: list[Relation] = [ENTAILMENT]
    for adjective in second:
        if adjective in first:
            continue
        relations.append(CONTRADICTION if set(table.alternatives(adjective)) & set(first) else NEUTRAL)
    return combine_relations(*relations)


def thing_relation(first: Thing, second: Thing) -> Relation:
    noun = noun_relation(first.noun, second.noun)
    if noun is None and NOUNS.hypernyms(first.noun)[-1] == NOUNS.hypernyms(second.noun)[-1]:
        noun = CONTRADICTION
    adjectives, hypothesis_adjectives = ([thing.adjective] if thing.adjective else [] for thing in (first, second))
    return combine_relations(noun, adjective_relation(adjectives, hypothesis_adjectives, adjectives_of(first.noun)))


_MINIMUM_COUNTS = {"some": 2, "several": 3, "group": 3, "many": 4}


def count_relation(first: int | str, second: int | str) -> Relation:
    if first == second or second == 1:
        return ENTAILMENT
    if isinstance(first, int) and isinstance(second, int):
        return CONTRADICTION
    if isinstance(second, int):
        return NEUTRAL if first in ("some", "several") else None
    if isinstance(first, int):
        return None if first == 1 or second in ("many", "group") or first < _MINIMUM_COUNTS[second] else ENTAILMENT
    return ENTAILMENT if second == "some" else NEUTRAL if first == "some" else None


def subject_relation(first: Subject, second: Subject) -> Relation:
    garment: Relation = ENTAILMENT
    if second.garment is not None:
        garment = NEUTRAL
        if first.garment is not None:
            color = optional_relation(
                first.garment[0], second.garment[0], lambda a, b: ENTAILMENT if a == b else CONTRADICTION
            )
            same = NOUNS.relation(first.garment[1], second.garment[1])
            garment = color if same == ENTAILMENT else NEUTRAL
    return combine_relations(
        noun_relation(first.noun, second.noun),
        count_relation(first.count, second.count),
        adjective_relation(first.adjectives, second.adjectives, adjectives_of(first.noun)),
        garment,
    )


# Sampling scenes


def sample_thing(random: Random, kind: str, excluded: str | None = None) -> Thing:
    if kind == "thing":
        kind = random.choice(lexicon.THING_KINDS.split())
    nouns = [noun for noun in NOUNS.hyponyms(kind) if noun != excluded] or [kind]
    noun = random.choice(nouns)
    adjective = None
    if random.random() < 0.2 and noun not in NOUNS.mass_nouns:
        adjective = adjectives_of(noun).sample(random)
    return Thing(noun, noun not in NOUNS.mass_nouns and random.random() < 0.15, adjective)


def can_do(noun: str, action: Action) -> bool:
    path = ["person"] if noun in NAMES else NOUNS.hypernyms(noun)
    return any(agent in path for agent in action.agents)


@functools.cache
def actions_of(noun: str) -> list[Action]:
    return [action for action in ACTIONS.values() if can_do(noun, action)]


def sample_activity(random: Random, noun: str) -> Activity:
    action = random.choice(actions_of(noun))
    return Activity(action.name, sample_thing(random, action.kind, noun) if action.kind else None)


def sample_place(random: Random, activity: Activity) -> str | None:
    if activity.action in ("swim", "be in the water"):
        return None
    if ACTIONS[activity.action].manner in ("posture", "resting", "gaze") and random.random() < 0.4:
        return random.choice(SPOTS)
    return random.choice(list(PLACES.parents))


def sample_garment(random: Random) -> tuple[str | None, str]:
    return random.choice([None, *COLORS]) if random.random() < 0.7 else None, random.choice(
        NOUNS.hyponyms("garment")[1:]
    )


def sample_adverbial(random: Random) -> str:
    return random.choice(ADVERBS) if random.random() < 0.4 else random.choice(REASONS)


_PLURAL_COUNTS: list[int | str] = [2, 2, 3, 4, 5, "some", "some", "several", "many", "group"]


def sample_subject(random: Random) -> Subject:
    if random.random() < 0.08:
        return Subject(random.choice(list(NAMES)))
    noun = (
        random.choice(COMMON_SUBJECTS)
        if random.random() < 0.6
        else random.choice(NOUNS.hyponyms("person") + NOUNS.hyponyms("animal"))
    )
    count: int | str = 1
    if random.random() < 0.3:
        count = random.choice(_PLURAL_COUNTS)
    table = adjectives_of(noun)
    adjectives = (table.sample(random),) if random.random() < 0.3 else ()
    is_person = NOUNS.is_a(noun, "person") and noun != "baby"
    return Subject(noun, count, adjectives, sample_garment(random) if is_person and random.random() < 0.12 else None)


def sample_scene(random: Random) -> Scene:
    subject = sample_subject(random)
    activity = sample_activity(random, subject.noun)
    place = sample_place(random, activity) if random.random() < 0.5 else None
    return Scene(subject, activity, place, sample_adverbial(random) if random.random() < 0.12 else None)


# Edits of a scene. Each returns a changed scene, or the scene itself if the edit does not apply.


def broaden_subject(scene: Scene, random: Random) -> Scene:
    subject = scene.subject
    if subject.noun in NAMES:
        return dataclasses.replace(scene, subject=Subject("person"))
    path = NOUNS.hypernyms(subject.noun)
    noun = random.choice(path[1:] or path)
    kept_adjectives = subject.adjectives if adjectives_of(noun) is adjectives_of(subject.noun) else ()
    return with_subject(scene, noun=noun, adjectives=kept_adjectives)


def narrow_subject(scene: Scene, random: Random) -> Scene:
    noun = scene.subject.noun
    if noun in NAMES:
        return scene
    kinds = [kind for kind in NOUNS.hyponyms(noun) if kind != noun]
    if NOUNS.is_a(noun, "person") and noun in ("man", "woman", "adult"):
        kinds += [kind for kind in PERSON_NOUNS if kind not in AGE_AND_SEX_NOUNS]
    return with_subject(scene, noun=random.choice(kinds or [noun]))


def replace_subject(scene: Scene, random: Random) -> Scene:
    kinds = [kind for kind in NOUNS.parents if noun_relation(scene.subject.noun, kind) == CONTRADICTION]
    return with_subject(scene, noun=random.choice(kinds)) if kinds else scene


def with_subject(scene: Scene, **changes: object) -> Scene:
    return dataclasses.replace(scene, subject=dataclasses.replace(scene.subject, **changes))  # type: ignore[arg-type]


def drop_appearance(scene: Scene, random: Random) -> Scene:
    return with_subject(scene, adjectives=(), garment=None)


def add_adjective(scene: Scene, random: Random) -> Scene:
    if scene.subject.noun in NAMES or scene.subject.adjectives:
        return scene
    return with_subject(scene, adjectives=(adjectives_of(scene.subject.noun).sample(random),))


def replace_adjective(scene: Scene, random: Random) -> Scene:
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
    return with_subject(scene, garment=sample_garment(random)) if subject.garment is None else scene


def replace_garment_color(scene: Scene, random: Random) -> Scene:
    garment = scene.subject.garment
    if garment is None or garment[0] is None:
        return scene
    return with_subject(scene, garment=(random.choice([c for c in COLORS if c != garment[0]]), garment[1]))


def broaden_count(scene: Scene, random: Random) -> Scene:
    count = scene.subject.count
    if count == 1:
        return scene
    wider = [c for c in (1, "some", "several") if count_relation(count, c) == ENTAILMENT]
    return with_subject(scene, count=random.choice(wider))


def replace_count(scene: Scene, random: Random) -> Scene:
    count = scene.subject.count
    if scene.subject.noun in NAMES or not isinstance(count, int):
        return scene
    return with_subject(scene, count=random.choice([n for n in range(2, 7) if n != count]))


def narrow_count(scene: Scene, random: Random) -> Scene:
    count = scene.subject.count
    return with_subject(scene, count=random.choice([3, 4, 5, "many"])) if count in ("some", "several") else scene


def broaden_action(scene: Scene, random: Random) -> Scene:
    activity = scene.activity
    wider = [Activity(name) for name in action_hypernyms(activity.action)[1:] if not ACTIONS[name].kind]
    if activity.thing:
        nouns = NOUNS.hypernyms(activity.thing.noun)[1:]
        nouns = nouns[: nouns.index(kind) + 1] if (kind := ACTIONS[activity.action].kind) in nouns else []
        wider += [
            Activity(activity.action, dataclasses.replace(activity.thing, noun=noun, adjective=None)) for noun in nouns
        ]
        if activity.thing.adjective:
            wider.append(Activity(activity.action, dataclasses.replace(activity.thing, adjective=None)))
    if any(action == "move" for action in (w.action for w in wider)) and random.random() < 0.6:
        wider = [w for w in wider if w.action != "move"]
    return dataclasses.replace(scene, activity=random.choice(wider)) if wider else scene


def narrow_action(scene: Scene, random: Random) -> Scene:
    activity = scene.activity
    narrower = []
    for action in ACTIONS.values():
        if (
            action.parent
            and activity.action in action_hypernyms(action.name)[1:]
            and can_do(scene.subject.noun, action)
        ):
            narrower.append(
                Activity(action.name, sample_thing(random, action.kind, scene.subject.noun) if action.kind else None)
            )
    if activity.thing:
        nouns = [noun for noun in NOUNS.hyponyms(activity.thing.noun) if noun != activity.thing.noun]
        narrower += [Activity(activity.action, dataclasses.replace(activity.thing, noun=noun)) for noun in nouns]
        if not activity.thing.adjective and activity.thing.noun not in NOUNS.mass_nouns:
            adjective = adjectives_of(activity.thing.noun).sample(random)
            narrower += [Activity(activity.action, dataclasses.replace(activity.thing, adjective=adjective))] * 2
    return dataclasses.replace(scene, activity=random.choice(narrower)) if narrower else scene


def replace_action(scene: Scene, random: Random) -> Scene:
    return dataclasses.replace(scene, activity=sample_activity(random, scene.subject.noun))


def replace_thing(scene: Scene, random: Random) -> Scene:
    activity = scene.activity
    kind = ACTIONS[activity.action].kind
    if activity.thing is None or kind is None or kind == "thing":
        return scene
    if activity.thing.adjective and random.random() < 0.5:
        others = adjectives_of(activity.thing.noun).alternatives(activity.thing.adjective)
        thing = dataclasses.replace(activity.thing, adjective=random.choice(others)) if others else activity.thing
    else:
        thing = dataclasses.replace(activity.thing, noun=random.choice(NOUNS.hyponyms(kind)))
    return dataclasses.replace(scene, activity=Activity(activity.action, thing))


def broaden_place(scene: Scene, random: Random) -> Scene:
    path = PLACES.hypernyms(scene.place)[1:] if scene.place else []
    return dataclasses.replace(scene, place=random.choice([None, *path]))


def narrow_place(scene: Scene, random: Random) -> Scene:
    if scene.place is None:
        return dataclasses.replace(scene, place=sample_place(random, scene.activity))
    kinds = [place for place in PLACES.hyponyms(scene.place) if place != scene.place]
    return dataclasses.replace(scene, place=random.choice(kinds)) if kinds else scene


def replace_place(scene: Scene, random: Random) -> Scene:
    if scene.place is None:
        return scene
    others = [place for place in PLACES.parents if place_relation(scene.place, place) == CONTRADICTION]
    return dataclasses.replace(scene, place=random.choice(others)) if others else scene


def drop_adverbial(scene: Scene, random: Random) -> Scene:
    return dataclasses.replace(scene, adverbial=None)


def add_adverbial(scene: Scene, random: Random) -> Scene:
    return dataclasses.replace(scene, adverbial=sample_adverbial(random)) if scene.adverbial is None else scene


def replace_adverbial(scene: Scene, random: Random) -> Scene:
    return dataclasses.replace(scene, adverbial=_OPPOSITE_ADVERBS.get(scene.adverbial or "", scene.adverbial))


Edit = Callable[[Scene, Random], Scene]
EDITS: dict[int, list[Edit]] = {
    ENTAILMENT: [
        broaden_subject, drop_appearance, broaden_count, broaden_action, broaden_action, broaden_place, drop_adverbial,
    ],
    NEUTRAL: [
        narrow_subject, narrow_subject, add_adjective, add_garment, narrow_count, narrow_action, narrow_action,
        narrow_place, narrow_place, add_adverbial, replace_action,
    ],
    CONTRADICTION: [
        replace_subject, replace_adjective, replace_garment_color, replace_count, replace_action, replace_action,
        replace_action, replace_thing, replace_thing, replace_place, replace_place, replace_adverbial,
    ],
}  # fmt: skip


def edit_scene(scene: Scene, label: int, random: Random) -> Scene:
    """Returns a scene after an edit that tends to `label`, and some edits that leave facts out.

    The caller has to check the relation, because an edit may have another effect or none.
    """
    edited = scene
    if label != ENTAILMENT or random.random() < 0.9:
        edited = random.choice(EDITS[label])(edited, random)
    while random.random() < 0.45:
        edited = random.choice(EDITS[ENTAILMENT])(edited, random)
    return edited
