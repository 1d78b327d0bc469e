"""Pairs of English sentences with their relation, and text: what the embedded model is trained on. All of it is made here.

A scene is a few facts: who, how many, of what look, doing what, where. A second scene is made from it by steps whose
effect is known (leave a fact out, say it more generally, add one, exchange one for another that excludes it), and the
relation of the two is computed from the facts, not from the steps (`Scene.relation`). Sentences then say a scene in one
of several ways. Smaller families (comparatives, quantifiers, opposites, what somebody said or tried) have their own
rules. The words are convert.tiny.lexicon's. The idea of deriving labels from facts is MacCartney and Manning's natural
logic (2007); "contradiction" is meant as in SNLI: both sentences are about one scene, so that one who sleeps does not run.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from random import Random

from convert.tiny import lexicon

# As MNLI_LABELS: the class is the index.
CONTRADICTION, NEUTRAL, ENTAILMENT = 0, 1, 2
Relation = int | None  # None: people would not agree


@dataclass(frozen=True)
class Pair:
    premise: str
    hypothesis: str
    label: int


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
PLACES.exclusive |= {"outdoors", "indoors"}
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
NAMES = {name: "she" for name in lexicon.FEMALE_NAMES.split()} | {name: "he" for name in lexicon.MALE_NAMES.split()}


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


def _verb(name: str) -> str:
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
    if _verb(a.name) == _verb(b.name) and a.name not in _VAGUE and b.name not in _VAGUE:
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
        place = fact_relation(self.place, other.place, PLACES.relation)
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
        return random.choice(
            [place for place in PLACES.parents if f"\n{place}\n" in lexicon.SPOTS.replace(" = ", "\n")]
        )
    return random.choice(list(PLACES.parents))


def pick_garment(random: Random) -> tuple[str | None, str]:
    return random.choice([None, *COLORS]) if random.random() < 0.7 else None, random.choice(NOUNS.of("garment")[1:])


def pick_extra(random: Random) -> str:
    return random.choice(ADVERBS) if random.random() < 0.4 else random.choice(REASONS)


def pick_subject(random: Random) -> Subject:
    if random.random() < 0.08:
        return Subject(random.choice(list(NAMES)))
    noun = random.choice(COMMON) if random.random() < 0.6 else random.choice(NOUNS.of("person") + NOUNS.of("animal"))
    count: int | str = 1
    if random.random() < 0.3:
        count = random.choice([2, 2, 3, 4, 5, "some", "some", "several", "many", "group"])
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
    return _with_subject(scene, noun=noun, adjectives=keep)


def narrow_subject(scene: Scene, random: Random) -> Scene:
    noun = scene.subject.noun
    if noun in NAMES:
        return scene
    kinds = [kind for kind in NOUNS.of(noun) if kind != noun]
    if NOUNS.is_a(noun, "person") and noun in ("man", "woman", "adult"):
        kinds += [kind for kind in PERSONS if kind not in SHAPED]
    return _with_subject(scene, noun=random.choice(kinds or [noun]))


def exchange_subject(scene: Scene, random: Random) -> Scene:
    kinds = [kind for kind in NOUNS.parents if noun_relation(scene.subject.noun, kind) == CONTRADICTION]
    return _with_subject(scene, noun=random.choice(kinds)) if kinds else scene


def _with_subject(scene: Scene, **changes: object) -> Scene:
    return dataclasses.replace(scene, subject=dataclasses.replace(scene.subject, **changes))  # type: ignore[arg-type]


def drop_look(scene: Scene, random: Random) -> Scene:
    return _with_subject(scene, adjectives=(), garment=None)


def add_adjective(scene: Scene, random: Random) -> Scene:
    if scene.subject.noun in NAMES or scene.subject.adjectives:
        return scene
    return _with_subject(scene, adjectives=(adjectives_of(scene.subject.noun).pick(random),))


def exchange_adjective(scene: Scene, random: Random) -> Scene:
    subject = scene.subject
    if not subject.adjectives:
        return scene
    others = adjectives_of(subject.noun).alternatives(subject.adjectives[0])
    return _with_subject(scene, adjectives=(random.choice(others),)) if others else scene


def add_garment(scene: Scene, random: Random) -> Scene:
    subject = scene.subject
    if subject.noun in NAMES or not NOUNS.is_a(subject.noun, "person"):
        return scene
    if subject.garment is not None and subject.garment[0] is None:
        return _with_subject(scene, garment=(random.choice(COLORS), subject.garment[1]))
    return _with_subject(scene, garment=pick_garment(random)) if subject.garment is None else scene


def exchange_garment_color(scene: Scene, random: Random) -> Scene:
    garment = scene.subject.garment
    if garment is None or garment[0] is None:
        return scene
    return _with_subject(scene, garment=(random.choice([c for c in COLORS if c != garment[0]]), garment[1]))


def fewer(scene: Scene, random: Random) -> Scene:
    count = scene.subject.count
    if count == 1:
        return scene
    wider = [c for c in (1, "some", "several") if count_relation(count, c) == ENTAILMENT]
    return _with_subject(scene, count=random.choice(wider))


def exchange_count(scene: Scene, random: Random) -> Scene:
    count = scene.subject.count
    if scene.subject.noun in NAMES or not isinstance(count, int):
        return scene
    return _with_subject(scene, count=random.choice([n for n in range(2, 7) if n != count]))


def say_how_many(scene: Scene, random: Random) -> Scene:
    count = scene.subject.count
    return _with_subject(scene, count=random.choice([3, 4, 5, "many"])) if count in ("some", "several") else scene


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
    others = [place for place in PLACES.parents if PLACES.relation(scene.place, place) == CONTRADICTION]
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


# Saying scenes

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
    """A sentence that says the scene, or with `negated` that the subject does not; `after` another of the same people."""
    subject, doing = scene.subject, scene.doing
    way = random.random()
    if (
        after
        and after.subject.count == subject.count == 1
        and way < 0.06
        and not subject.adjectives
        and not subject.garment
    ):
        if pronoun := NAMES.get(subject.noun, PRONOUNS.get(subject.noun)):
            return sentence(f"{pronoun} {say_predicate(scene, random, tense, False, negated)}")
    # what is said not to happen is said of somebody known
    who, plural = say_subject(
        subject, random, definite=(True if negated else None if not after else random.random() < 0.4)
    )
    if tense == "progressive" and not negated and subject.noun not in NAMES and not who.startswith("the "):
        predicate = say_predicate(scene, random, tense, plural)
        if way > 0.9:
            return sentence(f"there {'are' if plural else 'is'} {who} {predicate.split(' ', 1)[1]}")
        if 0.86 < way:
            return sentence(f"there {'are' if plural else 'is'} {who} who {predicate}")
        if 0.85 < way and scene.place and not scene.extra:
            *_, place = [way for way in PLACES.ways[scene.place] if predicate.endswith(f" {way}")]
            return sentence(f"{place}, {who} {predicate.removesuffix(f' {place}')}")
    if way < 0.14 and doing.thing and re.fullmatch(r"\w+ {\w+}", doing.action) and not scene.extra:
        return _say_passive(scene, who, random, tense, negated)
    return sentence(f"{who} {say_predicate(scene, random, tense, plural, negated)}")


def _say_passive(scene: Scene, who: str, random: Random, tense: str, negated: bool) -> str:
    assert scene.doing.thing is not None
    thing = scene.doing.thing
    done = inflect(_verb(scene.doing.action), "participle")
    be = ("were" if thing.plural else "was") if tense.startswith("past") else ("are" if thing.plural else "is")
    being = "being " if tense.endswith("progressive") else ""
    by = "" if scene.subject == Subject("person") else f" by {who}"
    place = f" {random.choice(PLACES.ways[scene.place])}" if scene.place else ""
    return sentence(f"{say_thing(thing, random)} {be}{' not' if negated else ''} {being}{done}{by}{place}")


def say_none(scene: Scene, random: Random, tense: str) -> str:
    """That there is nobody of whom the scene is true."""
    bare = scene.subject == Subject("person")
    scene = _with_subject(scene, count=1)
    there = {"progressive": "there is ", "past progressive": "there was "}.get(tense)
    if bare and random.random() < 0.8:
        who, plural = random.choice(["nobody", "no one"]), False
    else:
        plural = random.random() < 0.4
        who, _ = say_subject(_with_subject(scene, count=2 if plural else 1).subject, random, definite=True)
        who = re.sub("^the (two )?", "no ", who)
    predicate = say_predicate(scene, random, tense, plural)
    if there and random.random() < 0.4:
        there = there.replace("is", "are").replace("was", "were") if plural else there
        return sentence(f"{there}{who} {predicate.split(' ', 1)[1]}")
    return sentence(f"{who} {predicate}")


# Families of pairs. Each makes a pair of the label that is asked for, or None where it did not come to one.


def scenes(random: Random, label: int) -> Pair | None:
    first = pick_scene(random)
    second = change(first, label, random)
    if first.relation(second) != label:
        return None
    tense = random.choice(TENSES)
    return Pair(say(first, random, tense), say(second, random, tense, after=first), label)


def negations(random: Random, label: int) -> Pair | None:
    """One of the two sentences, or both, deny that the subject does it."""
    first, tense = pick_scene(random), random.choice(TENSES)
    if random.random() < 0.5:
        wanted = {ENTAILMENT: CONTRADICTION, CONTRADICTION: ENTAILMENT, NEUTRAL: NEUTRAL}[label]
        second = change(first, wanted, random)
        if subject_relation(first.subject, second.subject) not in (
            ENTAILMENT,
            NEUTRAL if label == NEUTRAL else ENTAILMENT,
        ):
            return None
        if first.subject.count != second.subject.count or first.predicate_relation(second) != wanted:
            return None
        return Pair(say(first, random, tense), say(second, random, tense, negated=True), label)
    # of the premise's denial only what is narrower is known
    second = change(first, NEUTRAL if label != NEUTRAL else random.choice(list(STEPS)), random)
    second = dataclasses.replace(second, subject=first.subject)
    narrower = second.predicate_relation(first)
    if random.random() < 0.15:
        second, narrower = first, ENTAILMENT
    if narrower is None or (narrower == ENTAILMENT) != (label != NEUTRAL):
        return None
    negated = label == ENTAILMENT or (label == NEUTRAL and random.random() < 0.5)
    return Pair(
        say(first, random, tense, negated=True), say(second, random, tense, negated=negated, after=first), label
    )


def nobody(random: Random, label: int) -> Pair | None:
    """Nobody, no man, there is no one who."""
    first, tense = _with_subject(pick_scene(random), count=1), random.choice(TENSES)
    if first.subject.noun in NAMES:
        return None
    if random.random() < 0.6:
        first = _with_subject(first, adjectives=(), garment=None)
    if label != ENTAILMENT and random.random() < 0.5:
        second = change(
            first, ENTAILMENT if label == CONTRADICTION else random.choice([NEUTRAL, CONTRADICTION]), random
        )
        relation = first.relation(second)
        if relation is None or (relation == ENTAILMENT) != (label == CONTRADICTION):
            return None
        return Pair(say(first, random, tense), say_none(second, random, tense), label)
    second = change(first, ENTAILMENT if label != NEUTRAL else random.choice([NEUTRAL, CONTRADICTION]), random)
    if first.relation(second) != ENTAILMENT:
        if label != NEUTRAL or first.relation(second) is None:
            return None
        affirmed = random.random() < 0.5
        return Pair(
            say_none(first, random, tense),
            say(second, random, tense) if affirmed else say_none(second, random, tense),
            label,
        )
    # nobody who does the wider thing does the narrower one
    if label == ENTAILMENT:
        return Pair(say_none(second, random, tense), say_none(first, random, tense), label)
    return Pair(say_none(second, random, tense), say(first, random, tense, after=second), label)


def asleep_or_awake(random: Random, label: int) -> Pair | None:
    """The one complementary pair among the actions: who is not awake sleeps."""
    first = dataclasses.replace(pick_scene(random), extra=None)
    first, second = (dataclasses.replace(first, doing=Doing(name)) for name in random.sample(["sleep", "be awake"], 2))
    second = drop_look(second, random) if random.random() < 0.5 else second
    if label == NEUTRAL:
        return None
    negated = random.random() < 0.5
    hypothesis = say(second, random, negated=negated != (label == ENTAILMENT), after=first)
    return Pair(say(first, random, negated=negated), hypothesis, label)


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
    scene = dataclasses.replace(pick_scene(random), extra=None)
    if scene.subject.noun in NAMES:
        return None
    noun = NOUNS.plurals[scene.subject.noun]
    if random.random() < 0.25 and NOUNS.is_a(scene.subject.noun, "person"):
        verb = random.choice(rows(lexicon.OPPOSITE_VERBS))
        return _quantified_opposites(noun, cells(verb), random, label)
    first, second = random.choice([pair for pair, relation in _QUANTIFIER_RELATIONS.items() if relation == label])
    other = scene
    if random.random() < 0.4 and (second in (_MOST, _SOME) or (first, second) == (_NONE, _NONE)):
        wider = change(scene, ENTAILMENT, random)
        wider = dataclasses.replace(wider, subject=scene.subject)
        if scene.predicate_relation(wider) == ENTAILMENT:
            scene, other = (wider, scene) if first == _NONE else (scene, wider)
        if label == CONTRADICTION:
            other = scene
    tense = random.choice(("progressive", "past progressive", "past"))
    texts = []
    for quantifier, said in ((first, scene), (second, other)):
        who = random.choice(QUANTIFIERS[quantifier]).format(noun)
        if noun == "people" and quantifier == _ALL and random.random() < 0.7:
            texts.append(
                sentence(f"{random.choice(['everyone', 'everybody'])} {say_predicate(said, random, tense, False)}")
            )
        else:
            texts.append(sentence(f"{who} {say_predicate(said, random, tense, True)}"))
    return Pair(texts[0], texts[1], label)


def _quantified_opposites(noun: str, verbs: list[str], random: Random, label: int) -> Pair:
    one, other = (verb_phrase(verb, "past") for verb in random.sample(verbs, 2))
    every, some = (random.choice(QUANTIFIERS[q]).format(noun) for q in (_ALL, _SOME))
    if label == CONTRADICTION:
        return Pair(sentence(f"{every} {one}"), sentence(f"{random.choice([every, some])} {other}"), label)
    if label == ENTAILMENT:
        none = random.choice(QUANTIFIERS[_NONE]).format(noun)
        return Pair(sentence(f"{every} {one}"), sentence(f"{none} {other}"), label)
    return Pair(sentence(f"{some} {one}"), sentence(f"{random.choice([every, some])} {other}"), label)


def counts(random: Random, label: int) -> Pair | None:
    """Only two, more than two, at least two, fewer than five."""
    scene = drop_look(_with_subject(pick_scene(random), count=2), random)
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
    second = f"{way} {NUMBERS[other]} {who} {say_predicate(scene, random, 'progressive', other > 1)}"
    if label == NEUTRAL:
        if way in ("at least", "more than") and other < 2:
            return None
        return Pair(
            sentence(f"some {nouns} {say_predicate(scene, random, 'progressive', True)}"), sentence(second), label
        )
    first = f"{NUMBERS[number]} {nouns} {say_predicate(scene, random, 'progressive', True)}"
    return Pair(sentence(first), sentence(second), label)


STATES = [
    (cells(line)[0].split(), [[way.rstrip("* ") for way in cells(cell, "=")] for cell in cells(line)[1:]], "*" in line)
    for line in rows(lexicon.STATES)
]
INTENSIFIERS = ("very", "very", "really", "extremely", "quite", "heavily", "highly")


def states(random: Random, label: int) -> Pair | None:
    """The door is open, the soup is very hot, a version that is optimized."""
    nouns, options, complementary = random.choice(STATES)
    noun = random.choice(nouns)
    if random.random() < 0.1:
        noun = random.choice(list(NAMES)) if noun in PERSONS else f"{random.choice(COLORS)} {noun}"
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
    return Pair(sentence(chosen[0]), sentence(chosen[1]), label)


_COMPARATIVES = [
    (*(tuple(cell.split(" ", 1)) for cell in cells(line)[:2]), cells(line)[2].split())
    for line in rows(lexicon.COMPARATIVES)
]


def comparatives(random: Random, label: int) -> Pair | None:
    (_, more), (_, less), kinds = random.choice(_COMPARATIVES)
    if random.random() < 0.5:
        more, less = less, more
    kind = random.choice(kinds)
    if kind == "person" and random.random() < 0.6:
        a, b, c = random.sample(list(NAMES), 3)
    else:
        nouns = [noun for noun in (NOUNS.of(kind) if kind in NOUNS.parents else [kind]) if noun != kind]
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
            (f"{a} {be} {more} than {b}", f"{a} {be} not as {less_of(less)} as {b}"),
            (f"{a} {be} much {more} than {b}", f"{a} {be} {more} than {b}"),
            (f"{a} {be} {more} than {b} and {b} {be} {more} than {c}", f"{a} {be} {more} than {c}"),
        ])  # fmt: skip
    elif label == CONTRADICTION:
        texts = random.choice([
            (f"{a} {be} {more} than {b}", f"{b} {be} {more} than {a}"),
            (f"{a} {be} {more} than {b}", f"{a} {be} {less} than {b}"),
            (f"{a} {be} {more} than {b}", f"{a} {be} not {more} than {b}"),
            (f"{a} {be} {more} than {b}", f"{a} and {b} {'are' if be == 'is' else 'were'} equally {less_of(more)}"),
            (f"{a} {be} as {less_of(more)} as {b}", f"{a} {be} {more} than {b}"),
        ])  # fmt: skip
    else:
        others = [row for row in _COMPARATIVES if kind in row[2] and more not in (row[0][1], row[1][1])] or [None]
        other = random.choice(others)
        if other is None:
            return None
        third = random.choice(other[:2])[1]
        texts = random.choice([
            (f"{a} {be} {more} than {b}", f"{a} {be} {third} than {b}"),
            (f"{a} {be} {more} than {b}", f"{b} {be} {third} than {a}"),
            (f"{a} {be} {more} than {b}", f"{a} {be} {more} than {c}"),
            (f"{a} {be} {more} than {b}", f"{a} {be} much {more} than {b}"),
            (f"{a} {be} not {more} than {b}", f"{a} {be} {less} than {b}"),
        ])  # fmt: skip
    return Pair(sentence(texts[0]), sentence(texts[1]), label)


_POSITIVE = {row[i][1]: row[i][0] for row in _COMPARATIVES for i in (0, 1)}


def less_of(comparative: str) -> str:
    """taller -> tall"""
    return _POSITIVE[comparative]


IMPLICATIVES = {  # what is known of a deed from what is said of it
    ENTAILMENT: ["managed to {}", "remembered to {}", "was able to {}", "helped to {}", "had to {} and did it", "finally {past}", "did {}"],
    CONTRADICTION: ["failed to {}", "forgot to {}", "refused to {}", "was not able to {}", "did not {}", "didn't {}", "never {past}", "was too tired to {}"],
    NEUTRAL: ["tried to {}", "wanted to {}", "hoped to {}", "planned to {}", "promised to {}", "decided to {}", "was asked to {}", "might {}", "wants to {}"],
}  # fmt: skip


def somebody(random: Random) -> str:
    if random.random() < 0.4:
        return random.choice([*NAMES, "he", "she"])
    if random.random() < 0.2:
        return f"my {random.choice(lexicon.RELATIVES.split())}"
    return f"the {random.choice(PERSONS[3:])}"


def implicatives(random: Random, label: int) -> Pair | None:
    who = somebody(random)
    if random.random() < 0.5:
        deed = random.choice(cells(random.choice(rows(lexicon.OPPOSITE_VERBS))))
    else:
        deed = say_action(pick_doing(random, "man"), random)
    if deed.startswith("be "):
        return None
    past = verb_phrase(deed, "past")

    def said(template: str) -> str:
        return sentence(f"{who} " + template.replace("{past}", past).replace("{}", deed))

    did, did_not = said("{past}"), said(random.choice(["did not {}", "didn't {}"]))
    if label == NEUTRAL:
        return Pair(said(random.choice(IMPLICATIVES[NEUTRAL])), random.choice([did, did, did_not]), label)
    deny = random.random() < 0.35  # the hypothesis says that it was not done
    known = {ENTAILMENT: CONTRADICTION, CONTRADICTION: ENTAILMENT}[label] if deny else label
    return Pair(said(random.choice(IMPLICATIVES[known])), did_not if deny else did, label)


def opposites(random: Random, label: int) -> Pair | None:
    """Verbs that exclude each other: who won did not lose."""
    one, other = random.sample(cells(random.choice(rows(lexicon.OPPOSITE_VERBS))), 2)
    who = somebody(random)
    place = random.choice(["", "", "", *(f" {extra}" for extra in REASONS)])
    one, not_other, other, not_one = (
        f"{who} {phrase}"
        for phrase in (verb_phrase(one, "past"), f"did not {other}", verb_phrase(other, "past"), f"did not {one}")
    )
    if label == ENTAILMENT:
        texts = random.choice(
            [(one + place, not_other), (one + place, one), (f"{one} but {not_other.removeprefix(who + ' ')}", one)]
        )
    elif label == CONTRADICTION:
        texts = random.choice([(one + place, other), (one + place, not_one), (not_one, one)])
    else:
        extra = random.choice(REASONS)
        someone_else = random.choice([name for name in NAMES if name != who])
        texts = random.choice(
            [
                (one, f"{one} {extra}"),
                (one, one.replace(who, someone_else, 1)),
                (not_one, f"{one.replace(who, someone_else, 1)}"),
            ]
        )
    return Pair(sentence(texts[0]), sentence(texts[1]), label)


def transfers(random: Random, label: int) -> Pair | None:
    """Giving and getting, selling and buying."""
    a, b, c = (
        random.sample(list(NAMES), 3) if random.random() < 0.6 else [f"the {n}" for n in random.sample(PERSONS[3:], 3)]
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
        texts = random.choice(
            [
                (seller, bought),
                (seller, bought),
                (bought, f"{a} {verb} {thing} to {b}"),
                (seller, f"{b} {back} {thing}"),
                (seller, f"{a} {verb} {thing}"),
            ]
        )
    elif label == CONTRADICTION:
        texts = random.choice(
            [
                (seller, f"{a} did not {base} {b} {thing}"),
                (seller, f"{b} {back} nothing from {a}"),
                (bought, f"{a} did not {base} {thing} to {b}"),
                (seller, f"nobody {verb} {thing} to {b}"),
            ]
        )
    else:
        texts = random.choice([
            (seller, f"{c} {back} {article(other)} from {a}"), (seller, f"{b} {verb} {article(other)} to {c}"),
            (bought, f"{b} {back} {article(random.choice(['new', 'cheap', 'big', 'red', 'good']) + ' ' + belonging)} from {a}"),
            (seller, f"{b} likes {thing}"), (f"{b} {back} {thing}", bought),
        ])  # fmt: skip
    return Pair(sentence(texts[0]), sentence(texts[1]), label)


POSITIONS = ("on", "under", "behind", "next to", "in front of", "near")
_SURFACES = "table chair bed couch desk shelf box house car tree fence door window bench"


def positions(random: Random, label: int) -> Pair | None:
    """Where things are, and whether there are any."""
    surface = random.choice(_SURFACES.split())
    animal = random.random() < 0.5
    noun = random.choice(
        NOUNS.of("animal")[1:]
        if animal
        else [
            n
            for n in NOUNS.of(random.choice("toy text container garment tool fruit key stone gift".split()))
            if n != surface
        ]
    )
    place = random.choice(POSITIONS)
    table = adjectives_of(noun)
    adjective = table.pick(random)
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
    wider = random.choice(NOUNS.path(noun)[1:] or [noun])
    wide = "some food" if wider == "food" else article(wider)
    if label == ENTAILMENT:
        texts = random.choice([
            (plain, exists), (f"{old} {verb} {where}", exists), (f"there is {old} {where}", plain), (plain, f"there is {wide} {where}"),
            (f"there is {it} and {article(random.choice(COLORS) + ' box')} {where}", exists), (f"there are {random.choice(NUMBERS[2:6])} {NOUNS.plurals[noun]} {where}", exists),
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
            (plain, none), (none, plain), (exists, none), (none, exists), (definite, f"the {noun} {verb} {opposite} the {surface}"), (definite, f"the {noun} is not {where}"),
            (f"the {noun} {where} is {adjective}", f"the {noun} {where} is {random.choice(others) if others else 'not ' + adjective}"), (plain, f"there is nothing {where}"),
            (f"there are two {NOUNS.plurals[noun]} {where}", f"there is only one {noun} {where}"),
        ])  # fmt: skip
    else:
        kinds = [kind for kind in NOUNS.of(noun) if kind != noun]
        texts = random.choice([
            (plain, f"{old} {verb} {where}"), (exists, f"there is {old} {where}"), (exists, f"there is {it} and {article(random.choice(COLORS) + ' box')} {where}"),
            (f"there is {wide} {where}" if wider != noun else exists, exists if wider != noun else f"there is {old} {where}"),
            (f"there is no {noun} {where}", f"there is no {wider} {where}") if wider != noun else (exists, f"there is {old} {where}"),
            (exists, f"there is {article(random.choice(kinds))} {where}") if kinds else (f"something is {where}", plain), (f"something is {where}", plain),
            (f"the {noun} is {adjective}", f"the {noun} is {where}"), (f"the {noun} is not {where}", f"the {noun} is {random.choice(POSITIONS)} the {'box' if surface != 'box' else 'desk'}"),
        ])  # fmt: skip
    return Pair(sentence(texts[0]), sentence(texts[1]), label)


def together(random: Random, label: int) -> Pair | None:
    """Two who do one thing, or one who does two things."""
    scene = dataclasses.replace(pick_scene(random), extra=None)
    if random.random() < 0.5:
        first, second = (
            dataclasses.replace(drop_look(scene, random), subject=Subject(noun))
            for noun in random.sample(["man", "woman", "boy", "girl", "dog", "child", "teacher", *list(NAMES)[:4]], 2)
        )
        if not all(doable(s.subject.noun, ACTIONS[scene.doing.action]) for s in (first, second)):
            return None
        (a, _), (b, _) = (say_subject(s.subject, random, False) for s in (first, second))
        premise = f"{a} and {b} {say_predicate(first, random, 'progressive', True)}"
        if label == CONTRADICTION:
            hypothesis = (
                say(second, random, negated=True)
                if random.random() < 0.5
                else say(change(second, CONTRADICTION, random), random)
            )
            if "not" not in hypothesis and "n't" not in hypothesis:
                return None
            return Pair(
                sentence(premise),
                hypothesis
                if random.random() < 0.7
                else say_none(_with_subject(second, noun="person"), random, "progressive"),
                label,
            )
        if label == NEUTRAL:
            third = say_subject(Subject(random.choice(["farmer", "nurse", "tourist", "soldier"])), random, False)[0]
            whole = sentence(premise)
            return random.choice(
                [
                    Pair(say(first, random), whole, label),
                    Pair(whole, sentence(f"{third} {say_predicate(first, random, 'progressive', False)}"), label),
                    Pair(whole, say(narrow_place(second, random), random), label)
                    if second.place is None
                    else Pair(say(second, random), whole, label),
                ]
            )
        broad = change(second, ENTAILMENT, random)
        if second.relation(broad) != ENTAILMENT:
            return None
        two = f"two people {say_predicate(first, random, 'progressive', True)}"
        persons = all(s.subject.noun in NAMES or NOUNS.is_a(s.subject.noun, "person") for s in (first, second))
        return Pair(
            sentence(premise), sentence(two) if persons and random.random() < 0.25 else say(broad, random), label
        )
    doing = pick_doing(random, scene.subject.noun)
    other = dataclasses.replace(scene, doing=doing)
    if action_relation(scene.doing, doing) != NEUTRAL or action_relation(doing, scene.doing) != NEUTRAL:
        return None
    who, plural = say_subject(scene.subject, random)
    two = " and ".join([
        say_predicate(dataclasses.replace(scene, place=None), random, "progressive", plural),
        say_predicate(other, random, "progressive", plural).split(" ", 1)[1],
    ])  # fmt: skip
    premise = sentence(f"{who} {two}")
    if label == NEUTRAL:
        return Pair(say(scene if random.random() < 0.5 else other, random), premise, label)
    half = random.choice([scene, other])
    changed = change(dataclasses.replace(half, place=None if half is scene else half.place), label, random)
    if changed.subject.count != scene.subject.count or half.relation(changed) != label:
        return None
    if label == CONTRADICTION:
        rest = other if half is scene else scene
        if rest.predicate_relation(changed) == ENTAILMENT or rest.predicate_relation(changed) is None:
            return None
    return Pair(premise, say(changed, random, after=scene), label)


def possessions(random: Random, label: int) -> Pair | None:
    """Has two brothers, owns no car."""
    who = somebody(random)
    person = random.random() < 0.5
    noun = random.choice((lexicon.RELATIVES if person else lexicon.BELONGINGS).split())
    plural = {"child": "children", "watch": "watches"}.get(noun, noun + "s")
    number, other = random.sample(range(2, 7), 2)
    adjective = (
        THING_ADJECTIVES.pick(random)
        if not person and noun != "child"
        else random.choice(["young", "tall", "older", "little"])
    )
    has, has_not = f"{who} has ", f"{who} does not have "
    one, some, old = article(noun), f"{NUMBERS[number]} {plural}", article(f"{adjective} {noun}")
    if label == ENTAILMENT:
        texts = random.choice(
            [
                (has + some, has + one),
                (has + old, has + one),
                (f"{has}no {plural}", has_not + one),
                (f"{has}no {noun}", f"{has}no {adjective} {noun}"),
                (has + some, f"{has}more than one {noun}"),
                (has + some, f"{has}some {plural}"),
                (f"{has}{one} and {article('bag')}", has + one),
            ]
        )
    elif label == CONTRADICTION:
        texts = random.choice(
            [
                (f"{has}no {plural}", has + some),
                (has + some, f"{has}no {plural}"),
                (has + one, has_not + one),
                (has + some, f"{has}only {NUMBERS[other]} {plural}"),
                (f"{has}no {noun}", has + old),
                (f"{has}no {plural}", has + one),
                (has + some, f"{has}only one {noun}"),
            ]
        )
    else:
        texts = random.choice(
            [
                (has + one, has + old),
                (f"{has}some {plural}", has + some),
                (f"{has}no {adjective} {noun}", f"{has}no {noun}"),
                (has + one, f"{has}{one} and {article('bag')}"),
                (has_not + old, has + one),
                (has + one, f"the {noun} is {adjective}"),
            ]
        )
    return Pair(sentence(texts[0]), sentence(texts[1]), label)


WEATHER = [[cells(cell, ";") for cell in cells(line)] for line in rows(lexicon.WEATHER)]


def weather(random: Random, label: int) -> Pair | None:
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
        scene = say(drop_extra(pick_scene(random), random), random)[:-1]
        texts = random.choice(
            [
                (f"if {first}, we will stay at home", first),
                (first, scene),
                (f"{random.choice(list(NAMES))} thinks that {first}", first),
                (first, elsewhere),
                (f"perhaps {first}", first),
            ]
        )
        if {"cold", "warm", "snow", "rain", "sun", "dark", "night"} & set(
            re.findall("cold|warm|snow|rain|sun|dark|night", texts[1])
        ) and texts[1] == elsewhere:
            return None
    return Pair(sentence(texts[0]), sentence(texts[1]), label)


REPORTS = {
    NEUTRAL: ["{} said that {}", "{} thinks that {}", "{} believes that {}", "{} hopes that {}", "perhaps {1}", "if {1}, {} will be surprised", "{} asked whether {1}", "{1} or {2}"],
    ENTAILMENT: ["{} knows that {}", "{} saw that {}", "it is true that {1}", "{} is happy that {1}", "{1} and {2}", "{2} and {1}", "{1} while {2}", "{1}, but {2}", "{1} because {2}"],
    CONTRADICTION: ["it is not true that {1}", "it is false that {1}"],
}  # fmt: skip


def reports(random: Random, label: int) -> Pair | None:
    """What somebody said or knows, two clauses in one."""
    first, other = (_clause(random) for _ in range(2))
    name = somebody(random)

    def said(kind: int) -> str:
        template = random.choice(REPORTS[kind])
        filled = template.replace("{} said", f"{name} said").replace("that {}", "that {1}").replace("{}", name)
        return sentence(filled.replace("{1}", first.said).replace("{2}", other.said))

    if label == NEUTRAL and random.random() < 0.3:
        return Pair(
            sentence(first.said),
            sentence(f"{first.said} {random.choice(['and', 'while', 'because'])} {other.said}"),
            label,
        )
    if label == CONTRADICTION and random.random() < 0.6:
        return Pair(said(ENTAILMENT), sentence(first.denied), label)
    return Pair(said(label), sentence(first.said), label)


@dataclass(frozen=True)
class _Clause:
    said: str
    denied: str


def _clause(random: Random) -> _Clause:
    if random.random() < 0.5:
        nouns, options, _ = random.choice(STATES)
        one, other = (
            (random.choice(way) for way in random.sample(options, 2)) if len(options) > 1 else (options[0][0], None)
        )
        the = f"the {random.choice(nouns)} is"
        return _Clause(f"{the} {one}", random.choice([f"{the} not {one}", f"{the} {other or 'not ' + one}"]))
    scene = dataclasses.replace(drop_look(pick_scene(random), random), extra=None)
    who, plural = say_subject(scene.subject, random, definite=True)
    predicate = say_predicate(scene, random, "progressive", plural)
    return _Clause(f"{who} {predicate}", f"{who} {predicate.replace(' ', ' not ', 1)}")


ROOMS = (
    "room house kitchen garden bus train pool shop classroom church library park street stage bar office gym".split()
)


def occupancy(random: Random, label: int) -> Pair | None:
    """An empty room, a room full of people, nobody in it."""
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
    scene = pick_scene(random)
    subject, noun = scene.subject, scene.subject.noun
    if noun in NAMES or not NOUNS.is_a(noun, "person"):
        subject, noun = Subject("person", subject.count), "person"
    who, plural = say_subject(dataclasses.replace(subject, garment=None), random, False)
    be = "are" if plural else "is"
    doing = say_action(scene.doing, random)
    full = [
        f"there {be} {who} {where}",
        f"{who} {be} {where}",
        f"the {room} is full of people",
        f"there are many people {where}",
        f"{who} {conjugate(doing, 'progressive', plural, False, random)} {where}",
    ]
    if label == CONTRADICTION:
        texts = (random.choice(empty), random.choice(full))
        texts = texts if random.random() < 0.5 else texts[::-1]
    elif label == ENTAILMENT:
        texts = random.choice([
            tuple(random.sample(empty, 2)), tuple(random.sample(empty, 2)), (random.choice(full), f"the {room} is not empty"), (random.choice(full), f"{random.choice(['someone', 'somebody'])} is {where}"),
            (random.choice(full), f"there is {random.choice(['someone', 'somebody'])} {where}"), (f"the {adjective}{room} is empty", f"there is no {noun} {where}"), (f"the {room} is not empty", f"there is {random.choice(['something', 'something', 'something'])} {where}"),
        ])  # fmt: skip
    else:
        texts = random.choice(
            [
                (f"someone is {where}", f"{who} {be} {where}"),
                (f"there are people {where}", f"the {room} is full of people"),
                (random.choice(empty), f"the {room} is {random.choice(['closed', 'big', 'cold', 'dark', 'new'])}"),
                (f"there is someone {where}", f"{random.choice(list(NAMES))} is {where}"),
                (f"there is no {noun} {where}", f"the {room} is empty")
                if noun != "person"
                else (f"someone is {where}", f"there are many people {where}"),
            ]
        )
        if noun == "person" and not subject.adjectives and subject.count == 1 and texts[1] == f"{who} {be} {where}":
            return None
    return Pair(sentence(texts[0]), sentence(texts[1]), label)


def presence(random: Random, label: int) -> Pair | None:
    """Who does something somewhere is there."""
    scene = pick_scene(random)
    place = re.fullmatch(r"(in|on|at) (the \w+)", scene.place or "")
    if not place or scene.subject.noun in NAMES:
        return None
    subject = Subject(scene.subject.noun, scene.subject.count)
    if label == NEUTRAL:
        subject = pick_subject(random)
        if subject.noun in NAMES or noun_relation(scene.subject.noun, subject.noun) is not None:
            return None
    elif label == ENTAILMENT and random.random() < 0.5:
        subject = broaden_subject(dataclasses.replace(scene, subject=subject), random).subject
    who, plural = say_subject(dataclasses.replace(subject, adjectives=(), garment=None), random, False)
    there = f"there {'are' if plural and subject.count != 'group' else 'is'} {who} {scene.place}"
    if label == CONTRADICTION:
        noun = random.choice(NOUNS.path(scene.subject.noun))
        none = [f"there is no {noun} {scene.place}", f"there are no {NOUNS.plurals[noun]} {scene.place}"]
        if NOUNS.is_a(scene.subject.noun, "person"):
            none += [f"there is {random.choice(['nobody', 'no one'])} {scene.place}", f"{place[2]} is empty"]
        there = random.choice(none)
    return Pair(say(scene, random), sentence(there), label)


def roles(random: Random, label: int) -> Pair | None:
    """Who somebody is."""
    who = random.choice(list(NAMES))
    jobs = [noun for noun in PERSONS if noun not in SHAPED]
    job, other = random.sample(jobs, 2)
    adjective = PERSON_ADJECTIVES.pick(random)
    doing = verb_phrase(say_action(pick_doing(random, "man"), random), "ing").replace("being ", "")
    wider = NOUNS.path(job)[1]
    if label == ENTAILMENT:
        texts = random.choice(
            [
                (
                    f"{who} is {article(job)}",
                    f"{who} is {article(wider)}" if wider != "person" else f"{who} is a person",
                ),
                (f"{who} is {article(adjective + ' ' + job)}", f"{who} is {article(job)}"),
                (f"{who} is {article(adjective + ' ' + job)}", f"{who} is {adjective}"),
                (f"{who}, {article(job)}, is {doing}", f"{who} is {article(job)}"),
                (f"the {job}, who is {adjective}, is {doing}", f"the {job} is {adjective}"),
            ]
        )
    elif label == CONTRADICTION:
        opposite = (PERSON_ADJECTIVES.alternatives(adjective) or ["dead"])[0]
        texts = random.choice(
            [
                (f"{who} is {article(job)}", f"{who} is not {article(job)}"),
                (f"{who} is not {article(job)}", f"{who} is {article(job)}"),
                (f"{who} is {article(adjective + ' ' + job)}", f"{who} is {opposite}"),
                (f"the {job}, who is {adjective}, is {doing}", f"the {job} is {opposite}"),
                (f"{who} is {article(adjective + ' ' + job)}", f"{who} is not {article(job)}"),
            ]
        )
    else:
        sex = random.choice(["a man", "a woman"])
        texts = random.choice(
            [
                (f"{who} is {article(job)}", f"{who} is {article(adjective + ' ' + job)}"),
                (f"{who} knows {article(job)}", f"{who} is {article(job)}"),
                (f"the {job} is {doing}", f"the {job} is {sex}"),
                (f"the {job} is {doing}", f"the {job} is {adjective}"),
                (f"the man is {doing}", f"the man is {article(job)}"),
                (f"the woman is {doing}", f"the woman is {article(adjective + ' ' + job)}"),
                (f"{who} is {doing}", f"{who} is {article(job)}"),
                (f"{who} is not {article(job)}", f"{who} is {article(other)}"),
            ]
        )
    return Pair(sentence(texts[0]), sentence(texts[1]), label)


def unrelated(random: Random, label: int) -> Pair | None:
    """Two sentences that have nothing to do with each other."""
    if label != NEUTRAL:
        return None
    first = say(pick_scene(random), random, random.choice(TENSES))
    made = random.choice([states, weather, positions, possessions])(random, random.choice([0, 1, 2]))
    if made is None:
        return None
    second = random.choice([made.premise, made.hypothesis])
    if set(first.lower()[:-1].split()) & set(second.lower()[:-1].split()) - {
        "the",
        "a",
        "an",
        "is",
        "are",
        "in",
        "on",
        "of",
        "not",
    }:
        return None
    return Pair(*random.sample([first, second], 2), label)


Family = Callable[[Random, int], Pair | None]
FAMILIES: dict[Family, int] = {
    scenes: 40, negations: 12, nobody: 8, asleep_or_awake: 2, quantifiers: 4, counts: 3, states: 8, comparatives: 4,
    implicatives: 3, opposites: 3, transfers: 3, positions: 6, together: 5, possessions: 3, weather: 3, reports: 5,
    occupancy: 3, presence: 2, roles: 4, unrelated: 3,
}  # fmt: skip

# Words that are in no table. The model has to see that a word it does not know is the same word in both sentences.
_SYLLABLES = "ba co da fi go hu ka le mi no pa ro su ta ve wi bra dro gle kra plo sti tru bel dan gar mur pin ron sal tor".split()
_NOUN_FORMS = {form: form for form in NOUNS.parents} | {plural: word for word, plural in NOUNS.plurals.items()}


def unknown_name(random: Random) -> str:
    return "".join(random.choice(_SYLLABLES) for _ in range(random.randint(2, 3))).capitalize()


def with_an_unknown_word(pair: Pair, random: Random) -> Pair:
    """The pair with a noun that both sentences have exchanged for one that does not exist, where that changes nothing."""
    first, second = (re.findall("[a-z]+", text) for text in (pair.premise, pair.hypothesis))
    nouns = [word for word in (*first, *second) if word in _NOUN_FORMS]
    candidates = []
    for word in sorted(set(nouns)):
        single = _NOUN_FORMS[word]
        kin = [n for n in nouns if n != word and set(NOUNS.path(single)) & set(NOUNS.path(_NOUN_FORMS[n]))]
        if (
            first.count(word) == second.count(word) == 1
            and not kin
            and word[0] not in "aeiou"
            and single in NOUNS.parents
        ):
            candidates.append(word)
    if not candidates:
        return pair
    word = random.choice(candidates)
    new = unknown_name(random).lower()
    new += "s" if word != _NOUN_FORMS[word] else ""
    return Pair(*(re.sub(rf"\b{word}\b", new, text) for text in (pair.premise, pair.hypothesis)), pair.label)


def casual(text: str, random: Random) -> str:
    """As people type: now and then no full stop, or no capital."""
    if random.random() < 0.08:
        text = text[:-1]
    if random.random() < 0.05:
        text = text[0].lower() + text[1:]
    return text


def pairs(seed: int) -> Iterator[Pair]:
    """Pairs without end, the three labels in turn; the same for the same seed."""
    random = Random(seed)
    families = [family for family, weight in FAMILIES.items() for _ in range(weight)]
    while True:
        for label in (CONTRADICTION, NEUTRAL, ENTAILMENT):
            made = None
            while made is None or made.premise == made.hypothesis and random.random() < 0.9:
                made = random.choice(families)(random, label)
            if random.random() < 0.06:
                made = with_an_unknown_word(made, random)
            yield Pair(casual(made.premise, random), casual(made.hypothesis, random), label)
