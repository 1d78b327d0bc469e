"""The embedded model: the sentences it is trained on, its training, and its answers to pairs written by hand."""

from __future__ import annotations

import collections
import csv
import itertools
from pathlib import Path
from random import Random

import jax
import numpy as np
import pytest

import roberta_flax
from recipes.tiny import training
from recipes.tiny.__main__ import ARCHIVE, NAME, merges
from recipes.tiny.english import scene_sentence
from recipes.tiny.fairseq_archive import model_file, state_dict, tokenizer_files, train_bpe
from recipes.tiny.generators import GENERATORS
from recipes.tiny.morphology import inflect
from recipes.tiny.pairs import generate_pairs
from recipes.tiny.scenes import Activity, Scene, Subject, Thing
from recipes.tiny.taxonomy import CONTRADICTION, ENTAILMENT, NEUTRAL
from roberta_flax import HeadConfig, RobertaConfig
from roberta_flax.checkpoint.archive import extract_archive
from roberta_flax.nn.config import MNLI_LABELS
from roberta_flax.text.tokenizer import Tokenizer

HELD_OUT = Path(__file__).parent / "data" / "held_out_pairs.tsv"


def scene(noun: str, action: str, thing: str | None = None, place: str | None = None, **subject: object) -> Scene:
    return Scene(Subject(noun, **subject), Activity(action, Thing(thing) if thing else None), place)  # type: ignore[arg-type]


MAN_WITH_GUITAR = scene("man", "play {instrument}", "guitar", "in the park")


@pytest.mark.parametrize(
    ("first", "second", "relation"),
    [
        (MAN_WITH_GUITAR, scene("person", "make music", place="outdoors"), ENTAILMENT),
        (MAN_WITH_GUITAR, scene("man", "play {instrument}", "instrument"), ENTAILMENT),
        (scene("man", "play {instrument}", "instrument"), MAN_WITH_GUITAR, NEUTRAL),
        (MAN_WITH_GUITAR, scene("musician", "play {instrument}", "guitar"), NEUTRAL),
        (MAN_WITH_GUITAR, scene("man", "play {instrument}", "piano"), CONTRADICTION),
        (MAN_WITH_GUITAR, scene("woman", "play {instrument}", "guitar"), CONTRADICTION),
        (MAN_WITH_GUITAR, scene("man", "play {instrument}", "guitar", "in the kitchen"), CONTRADICTION),
        (MAN_WITH_GUITAR, scene("man", "sleep"), CONTRADICTION),
        (MAN_WITH_GUITAR, scene("man", "sing"), NEUTRAL),
        (MAN_WITH_GUITAR, scene("man", "be awake"), ENTAILMENT),
        (scene("dog", "run", count=3), scene("animal", "move", count="some"), ENTAILMENT),
        (scene("dog", "run", count=3), scene("dog", "run", count=2), CONTRADICTION),
        (scene("dog", "run", count="some"), scene("dog", "run", count=2), NEUTRAL),
        (scene("girl", "read {text}", "book", adjectives=("young",)), scene("girl", "read {text}", "book", adjectives=("old",)), CONTRADICTION),
        (scene("girl", "read {text}", "book"), scene("girl", "read {text}", "book", adjectives=("old",)), NEUTRAL),
        (scene("doctor", "sleep"), scene("nurse", "sleep"), None),
    ],
)  # fmt: skip
def test_relation_of_two_scenes_follows_from_their_facts(first, second, relation):
    assert first.relation(second) == relation


def test_sentences_describe_a_scene_in_english():
    sentences = {scene_sentence(MAN_WITH_GUITAR, Random(seed)) for seed in range(300)}
    assert {"A man is playing a guitar in the park.", "There is a man playing a guitar in the park."} <= sentences
    negated = {scene_sentence(MAN_WITH_GUITAR, Random(seed), "past", negated=True) for seed in range(100)}
    assert {"The man did not play the guitar in the park.", "The man didn't play a guitar in the park."} <= negated


@pytest.mark.parametrize(
    ("verb", "forms"),
    [
        ("run", "run runs running ran run"), ("lie", "lie lies lying lay lain"), ("carry", "carry carries carrying carried carried"),
        ("watch", "watch watches watching watched watched"), ("play", "play plays playing played played"), ("be", "be is being was been"),
        ("hug", "hug hugs hugging hugged hugged"), ("ski", "ski skis skiing skied skied"), ("bake", "bake bakes baking baked baked"),
    ],
)  # fmt: skip
def test_verbs_are_inflected(verb, forms):
    assert [inflect(verb, form) for form in ("base", "third", "ing", "past", "participle")] == forms.split()


def test_pairs_are_reproducible_and_have_the_three_labels_in_turn():
    first, again, other = (list(itertools.islice(generate_pairs(seed), 300)) for seed in (5, 5, 6))
    assert first == again != other
    assert [pair.label for pair in first] == [CONTRADICTION, NEUTRAL, ENTAILMENT] * 100
    for text in itertools.chain.from_iterable((pair.premise, pair.hypothesis) for pair in first):
        assert "{" not in text
        assert "  " not in text


def test_every_generator_makes_pairs_of_its_labels():
    labels_made = collections.Counter()
    for number, (generator, label) in enumerate(itertools.product(GENERATORS, range(3))):
        random = Random(number)
        labels_made[generator.__name__] += any(generator(random, label) for _ in range(60))
    assert labels_made.pop("unrelated") == 1
    assert labels_made.pop("asleep_or_awake") == 2
    assert set(labels_made.values()) == {3}


@pytest.mark.slow
def test_held_out_pairs_are_not_among_the_training_pairs():
    with HELD_OUT.open(newline="") as file:
        held_out = {(row["sentence1"], row["sentence2"]) for row in csv.DictReader(file, delimiter="\t")}
    assert len(held_out) == 90
    training_pairs = {
        (pair.premise, pair.hypothesis) for pair in itertools.islice(generate_pairs(training.PAIR_SEED), 5000)
    }
    assert not held_out & training_pairs


@pytest.fixture(scope="module")
def embedded_model(tmp_path_factory) -> Path:
    """The directory of the embedded model, unpacked."""
    folder = tmp_path_factory.mktemp("embedded")
    extract_archive(ARCHIVE, folder / "unpacked")
    return folder / "unpacked" / NAME


@pytest.mark.slow
def test_embedded_model_is_small_and_the_recipe_reproduces_all_but_its_weights(embedded_model):
    assert ARCHIVE.stat().st_size <= 4_000_000
    roberta = roberta_flax.load(embedded_model)
    assert roberta.config == training.config(Tokenizer.from_directory(embedded_model).vocab_size)
    model = model_file(state_dict(roberta.params), roberta.config, training.STEPS)
    for name, content in {"model.pt": model, **tokenizer_files(merges())}.items():
        assert (embedded_model / name).read_bytes() == content, name


@pytest.mark.slow
def test_training_is_reproducible_and_learns(tmp_path, monkeypatch):
    def small_config(vocab_size: int) -> RobertaConfig:
        return RobertaConfig(
            vocab_size=vocab_size, num_layers=1, hidden_size=32, num_heads=2, intermediate_size=32, max_positions=128,
            heads=(HeadConfig("mnli", 3, 32),),
        )  # fmt: skip

    for name, value in {"config": small_config, "ROWS": 16, "WINDOW": 2, "WARMUP_STEPS": 2}.items():
        monkeypatch.setattr(training, name, value)
    bpe_pairs = itertools.islice(generate_pairs(0), 500)
    for name, content in tokenizer_files(train_bpe((pair.premise for pair in bpe_pairs), 100)).items():
        (tmp_path / name).write_bytes(content)
    tokenizer = Tokenizer.from_directory(tmp_path)
    batches = training.batches
    of_runs = []

    def one_again_and_again(*args):  # so that there is one shape to compile
        of_runs.append(list(itertools.islice(batches(*args), 3)))
        return itertools.repeat(of_runs[-1][0])

    monkeypatch.setattr(training, "batches", one_again_and_again)
    losses: list[float] = []
    first, second = (
        training.train(tokenizer, 10, lambda _, metrics: losses.append(float(metrics["loss"]))) for _ in range(2)
    )
    jax.tree.map(np.testing.assert_array_equal, *of_runs)
    assert losses[:10] == losses[10:]
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), first, second))
    assert np.mean(losses[8:10]) < np.mean(losses[:2]) - 0.1


@pytest.mark.slow
def test_embedded_model_classifies_pairs_written_by_hand(embedded_model):
    roberta = roberta_flax.load(embedded_model)
    with HELD_OUT.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    predicted = [
        MNLI_LABELS[int(roberta.predict("mnli", roberta.encode(row["sentence1"], row["sentence2"])).argmax())]
        for row in rows
    ]
    correct = collections.Counter(
        row["gold_label"] for row, label in zip(rows, predicted, strict=True) if label == row["gold_label"]
    )
    assert correct.total() >= 70
    assert min(correct[label] for label in MNLI_LABELS) >= 20


def test_embedded_model_fills_masks_with_fitting_words(embedded_model):
    roberta = roberta_flax.load(embedded_model)
    assert roberta.fill_mask("A <mask> is barking.", topk=1)[0][2] == " dog"
    people = {token.strip() for _, _, token in roberta.fill_mask("Two <mask> are playing soccer.", topk=5)}
    assert people & {"boys", "girls", "children", "men", "women"}
