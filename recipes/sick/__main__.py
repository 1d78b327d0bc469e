"""What docs/sick.md needs beside roberta-flax: text, a tokenizer, pairs to learn from, a division of SICK, a baseline.

  python -m recipes.sick text /usr/share/wordnet TEXT        TEXT/train.txt and TEXT/valid.txt, from WordNet
  python -m recipes.sick tokenizer TEXT/train.txt DIRECTORY  a byte-level BPE of it, under fairseq's names
  python -m recipes.sick pairs /usr/share/wordnet PAIRS      train.tsv and valid.tsv in MNLI's columns, made here
  python -m recipes.sick split SICK_train.txt DIRECTORY      train.tsv, valid.tsv and test.tsv
  python -m recipes.sick baseline DIRECTORY                  bags of words on these; a line of JSON each

The baseline is the best on valid.tsv of those below, by accuracy and by Pearson's correlation; of the others test.tsv
sees nothing. Needs scikit-learn, lemminflect, and tokenizers for the second.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipes.sick.wordnet import Pair, documents, pairs, read
from recipes.tiny import pairs as tiny_pairs
from recipes.tiny.released import tokenizer_files
from roberta_flax.nn.config import MNLI_LABELS

SEED = 2014
SPLIT = {"test": 1000, "valid": 500}  # pairs; the rest is train
VALID_SHARE = 100  # one document of a hundred
VALID_PAIRS = 1000
FROM_WORDNET = {"contradiction": 10_000, "neutral": 10_000, "entailment": 15_000}  # at most; the first has fewer
OWN, UNRELATED = 50_000, 30_000
NEGATIONS = {"no", "not", "nobody", "none", "without", "nothing", "n", "isn", "aren"}


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


# Text


def write_text(wordnet: Path, output: Path) -> None:
    """Writes documents in a random order, an empty line after each: WordNet's synsets, and pairs without their label.

    Two sentences that differ by a word or two, side by side: what is masked in one is to be found in the other, so that
    masked words teach to compare sentences.
    """
    output.mkdir(parents=True, exist_ok=True)
    table = read(wordnet)
    every = list(documents(table))
    every += [[pair.premise, pair.hypothesis] for pair in pairs(table, random.Random(SEED))]
    made = tiny_pairs.pairs(SEED)
    every += [[pair.premise, pair.hypothesis] for pair in itertools.islice(made, len(every) // 4)]
    random.Random(SEED).shuffle(every)
    cut = len(every) // VALID_SHARE
    for name, part in (("valid", every[:cut]), ("train", every[cut:])):
        text = "".join("\n".join(lines) + "\n\n" for lines in part)
        (output / f"{name}.txt").write_text(text, encoding="utf-8")
        print(json.dumps({"file": f"{name}.txt", "documents": len(part), "words": len(text.split())}))


def write_tokenizer(text: Path, output: Path, vocab_size: int) -> None:
    """Trains a byte-level BPE with Hugging Face's tokenizers and writes it under fairseq's names."""
    from tokenizers import ByteLevelBPETokenizer

    trained = ByteLevelBPETokenizer()
    trained.train([str(text)], vocab_size=vocab_size, min_frequency=2, show_progress=False)
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    output.mkdir(parents=True, exist_ok=True)
    for name, content in tokenizer_files(merges).items():
        (output / name).write_bytes(content)
    print(json.dumps({"directory": str(output), "merges": len(merges)}))


def write_pairs(wordnet: Path, output: Path) -> None:
    """Writes pairs in MNLI's columns, WordNet's, recipes.tiny's and unrelated ones: to learn from before SICK.

    As in SICK, sentences contradict each other where one says no, or by antonyms; a dog and a cat may both be there.
    """
    output.mkdir(parents=True, exist_ok=True)
    table = read(wordnet)
    rng = random.Random(SEED + 1)
    made: list[Pair] = []
    of_label: Counter[str] = Counter()
    for pair in pairs(table, rng):
        of_label[pair.label] += 1
        if of_label[pair.label] <= FROM_WORDNET[pair.label]:
            made.append(pair)
    own = (Pair(p.premise, p.hypothesis, MNLI_LABELS[p.label]) for p in tiny_pairs.pairs(SEED + 1))
    fits = (pair for pair in own if pair.label != "contradiction" or says_no(pair.premise) != says_no(pair.hypothesis))
    made += itertools.islice(fits, OWN)
    sentences = [pair.premise for pair in made] + [text for synset in table.values() for text in synset.examples]
    made += itertools.islice(unrelated(sentences, rng), UNRELATED)
    rng.shuffle(made)
    for name, part in (("valid", made[:VALID_PAIRS]), ("train", made[VALID_PAIRS:])):
        lines = ["sentence1\tsentence2\tgold_label", *map("\t".join, part)]
        (output / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(json.dumps({"file": f"{name}.tsv", **Counter(pair.label for pair in part)}))


def unrelated(sentences: Sequence[str], rng: random.Random) -> Iterator[Pair]:
    """Pairs without end of sentences that share a word, and now and then more, and say different things: neutral."""
    bags = [set(words(text)) for text in sentences]
    having: dict[str, list[int]] = {}
    for number, bag in enumerate(bags):
        for word in sorted(bag):
            having.setdefault(word, []).append(number)
    while True:
        first = rng.randrange(len(sentences))
        if not bags[first]:
            continue
        others = rng.choices(having[rng.choice(sorted(bags[first]))], k=rng.choice((1, 20)))
        second = max(others, key=lambda number: len(bags[first] & bags[number]) / len(bags[first] | bags[number]))
        if not (bags[first] <= bags[second] or bags[second] <= bags[first]):
            yield Pair(sentences[first], sentences[second], "neutral")


def says_no(text: str) -> bool:
    return bool(set(words(text)) & NEGATIONS)


# SICK


def split(source: Path, output: Path) -> None:
    """Divides SICK's pairs at random, the same at every run."""
    header, *rows = source.read_text(encoding="utf-8").splitlines()
    random.Random(SEED).shuffle(rows)
    output.mkdir(parents=True, exist_ok=True)
    for name, count in (*SPLIT.items(), ("train", len(rows) - sum(SPLIT.values()))):
        part, rows = rows[:count], rows[count:]
        (output / f"{name}.tsv").write_text("\n".join([header, *part]) + "\n", encoding="utf-8")
        print(json.dumps({"file": f"{name}.tsv", "pairs": len(part)}))


def read_pairs(path: Path) -> tuple[list[tuple[str, str]], list[str], np.ndarray]:
    """Pairs, entailment judgments and relatedness scores."""
    header, *rows = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines())
    first, second, score, judgment = map(
        header.index, ("sentence_A", "sentence_B", "relatedness_score", "entailment_judgment")
    )
    pairs = [(row[first], row[second]) for row in rows]
    return pairs, [row[judgment] for row in rows], np.array([float(row[score]) for row in rows])


def overlap(pair: tuple[str, str]) -> dict[str, float]:
    """How much two bags of words have in common, and where they say no."""
    a, b = map(words, pair)
    sets = set(a), set(b)
    shared, union = sets[0] & sets[1], sets[0] | sets[1]
    no = [bool(s & NEGATIONS) for s in sets]
    found = {
        "jaccard": len(shared) / len(union),
        "of first": len(shared) / len(sets[0]), "of second": len(shared) / len(sets[1]),
        "shared": len(shared), "only first": len(sets[0] - sets[1]), "only second": len(sets[1] - sets[0]),
        "longer": len(a) - len(b), "length": len(a) + len(b),
        "no first": no[0], "no second": no[1], "one no": no[0] != no[1], "both no": all(no),
    }  # fmt: skip
    for n in (2, 3):
        grams = [set(zip(*(s[i:] for i in range(n)), strict=False)) for s in (a, b)]
        found[f"shared {n}-grams"] = len(grams[0] & grams[1]) / max(1, len(grams[0] | grams[1]))
        chars = [{f" {' '.join(s)} "[i : i + n + 1] for i in range(len(" ".join(s)))} for s in (a, b)]
        found[f"shared {n + 1}-letters"] = len(chars[0] & chars[1]) / max(1, len(chars[0] | chars[1]))
    return {name: float(value) for name, value in found.items()}


def own_words(pair: tuple[str, str]) -> dict[str, float]:
    """The words of each sentence, those that one alone has, and those that both have."""
    a, b = (set(words(text)) for text in pair)
    parts = {"a": a, "b": b, "a-": a - b, "b-": b - a, "ab": a & b}
    return {f"{name} {word}": 1.0 for name, some in parts.items() for word in some}


def word_pairs(pair: tuple[str, str]) -> dict[str, float]:
    """Which word of one sentence alone stands beside which of the other alone: man beside woman."""
    a, b = (set(words(text)) for text in pair)
    return {f"{x} | {y}": 1.0 for x, y in itertools.product(a - b, b - a)}


def word_ngrams(pair: tuple[str, str]) -> dict[str, float]:
    """Bigrams of each sentence."""
    return {
        f"{name} {x} {y}": 1.0
        for name, text in zip("ab", pair, strict=True)
        for x, y in itertools.pairwise(words(text))
    }


Features = Callable[[tuple[str, str]], dict[str, float]]
FEATURES: dict[str, Sequence[Features]] = {
    "words": [own_words],
    "overlap": [overlap],
    "words, overlap": [own_words, overlap],
    "words, overlap, word pairs": [own_words, overlap, word_pairs],
    "words, bigrams, overlap, word pairs": [own_words, word_ngrams, overlap, word_pairs],
}


def baseline(folder: Path) -> None:
    from scipy.stats import spearmanr
    from sklearn.ensemble import (
        GradientBoostingClassifier,
        GradientBoostingRegressor,
        RandomForestClassifier,
        RandomForestRegressor,
    )
    from sklearn.feature_extraction import DictVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.preprocessing import MaxAbsScaler

    parts = {name: read_pairs(folder / f"{name}.tsv") for name in ("train", "valid", "test")}
    classifiers: dict[str, Callable[[], Any]] = {
        **{
            f"logistic regression, C={c}": lambda c=c: LogisticRegression(C=c, max_iter=2000)
            for c in (0.03, 0.1, 0.3, 1, 3)
        },
        "gradient boosting": lambda: GradientBoostingClassifier(
            n_estimators=300, max_depth=3, subsample=0.7, random_state=SEED
        ),
        "random forest": lambda: RandomForestClassifier(500, min_samples_leaf=2, random_state=SEED, n_jobs=2),
    }
    regressors: dict[str, Callable[[], Any]] = {
        **{f"ridge, alpha={alpha}": lambda alpha=alpha: Ridge(alpha=alpha) for alpha in (1, 3, 10, 30, 100)},
        "gradient boosting": lambda: GradientBoostingRegressor(
            n_estimators=300, max_depth=3, subsample=0.7, random_state=SEED
        ),
        "random forest": lambda: RandomForestRegressor(500, min_samples_leaf=2, random_state=SEED, n_jobs=2),
    }
    majority = max(set(parts["train"][1]), key=parts["train"][1].count)
    share = np.mean([label == majority for label in parts["test"][1]])
    print(json.dumps({"task": "sick", "model": f"always {majority}", "test_accuracy": round(float(share), 4)}))

    tried: dict[str, list[tuple[float, str, Any, Any]]] = {"sick": [], "sick-relatedness": []}
    for name, functions in FEATURES.items():
        vectors = DictVectorizer()
        scale = MaxAbsScaler()

        def rows(part: str, functions: Sequence[Features] = functions) -> list[dict[str, float]]:
            return [{k: v for function in functions for k, v in function(pair).items()} for pair in parts[part][0]]

        train = scale.fit_transform(vectors.fit_transform(rows("train")))
        valid, test = (scale.transform(vectors.transform(rows(part))) for part in ("valid", "test"))
        trees = train.shape[1] < 100
        for task, models, column in (("sick", classifiers, 1), ("sick-relatedness", regressors, 2)):
            for kind, make in models.items():
                if ("boosting" in kind or "forest" in kind) and not trees and name != "words, overlap":
                    continue
                model = make().fit(train, parts["train"][column])
                predicted, gold = model.predict(valid), parts["valid"][column]
                score = np.mean(predicted == gold) if task == "sick" else np.corrcoef(predicted, gold)[0, 1]
                tried[task].append((float(score), f"{kind} on {name}", model, test))
                print(json.dumps({"task": task, "model": f"{kind} on {name}", "valid": round(float(score), 4)}))
    for task, models in tried.items():
        score, name, model, test = max(models, key=lambda row: row[0])
        predicted = model.predict(test)
        if task == "sick":
            results = {"test_accuracy": np.mean(predicted == parts["test"][1])}
        else:
            gold = parts["test"][2]
            results = {
                "test_pearson": np.corrcoef(predicted, gold)[0, 1],
                "test_spearman": spearmanr(predicted, gold).statistic,
                "test_mse": np.mean((predicted - gold) ** 2),
            }
        rounded = {key: round(float(value), 4) for key, value in results.items()}
        print(json.dumps({"task": task, "best": name, "valid": round(score, 4), **rounded}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, arguments in (
        ("text", ("wordnet", "output")),
        ("tokenizer", ("text", "output")),
        ("pairs", ("wordnet", "output")),
        ("split", ("source", "output")),
        ("baseline", ("folder",)),
    ):
        command = commands.add_parser(name)
        for argument in arguments:
            command.add_argument(argument, type=Path)
    commands.choices["tokenizer"].add_argument("--vocab-size", type=int, default=8000)
    options = parser.parse_args()
    if options.command == "text":
        write_text(options.wordnet, options.output)
    elif options.command == "tokenizer":
        write_tokenizer(options.text, options.output, options.vocab_size)
    elif options.command == "pairs":
        write_pairs(options.wordnet, options.output)
    elif options.command == "split":
        split(options.source, options.output)
    else:
        baseline(options.folder)


if __name__ == "__main__":
    main()
