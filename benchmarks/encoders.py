"""Compare embedding and zero-shot classification with torch's libraries: python -m benchmarks.encoders

sentence-transformers embeds and transformers' pipeline classifies. The model is base with random weights: a sentence
encoder with mean pooling, and a classifier of entailment. All run from text to result in one process and take turns;
the benchmark prints medians as lines of JSON. Each peer has its best of several batch sizes, and sentence-transformers
sorts texts by length. Workloads are a mix of lengths (log-normal, median 40 tokens, from 5 to 500), texts of 32 tokens
each, and ten labels for some of the mixed texts. Every program is compiled before the first round. The ratios in CPU
time of all threads hold where other programs disturb the clock; set OMP_WAIT_POLICY=passive for these, as torch's
threads otherwise wait by spinning.

Before that, the benchmark times the tokenization of pairs that share a text, which is done once, and that of the same
pairs one at a time. (For questions, five about each context, of a hundred words.)

  python -m benchmarks.encoders BPE_DIR SICK_FILE [--tokenizing] [--texts N] [--classified N] [--rounds N]
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.inference import fairseq_hub, mixed_pairs, sick_pairs
from benchmarks.measurement import elapsed_and_cpu_seconds, median_seconds, print_record
from references.fairseq import torch
from roberta_flax import Answer, SentenceEncoder, Tokenizer, ZeroShot, load_tokenizer, pipeline
from roberta_flax.convert import convert, export
from roberta_flax.tasks.sentence_scores import SentenceScores

BATCH_SIZES = (8, 32)
EQUAL_LENGTH = 32  # tokens, <s> and </s> included
LABELS = (
    "politics", "sports", "science and technology", "music", "food and drink", "travel", "health", "business",
    "animals and nature", "family life",
)  # fmt: skip


def equal_texts(tokenizer: Tokenizer, source: Sequence[str], count: int) -> list[str]:
    """Texts of EQUAL_LENGTH tokens each, cut out of the source's words."""
    words = [word for text in source for word in text.split()]
    texts, start = [], 0
    while len(texts) < count:
        end = start + 1
        while len(tokenizer.encode(" ".join(words[start:end]))) < EQUAL_LENGTH:
            end += 1
        text = " ".join(words[start:end])
        if len(tokenizer.encode(text)) == EQUAL_LENGTH:
            texts.append(text)
        start = end
    return texts


def compare(
    what: str, workload: str, dtype: str, count: int, rounds: int, runners: dict[str, Callable[[], Any]]
) -> None:
    """Times all runners, of which the first is ours, and prints their speeds."""
    for run in runners.values():
        run()
    elapsed, busy = elapsed_and_cpu_seconds(rounds, runners)
    print_record(
        what=what,
        workload=workload,
        dtype=dtype,
        texts_per_second={name: round(count / statistics.median(seconds), 2) for name, seconds in elapsed.items()},
        over_best_peer=over_best_peer(elapsed),
        over_best_peer_in_cpu_time=over_best_peer(busy),
    )


def over_best_peer(seconds: dict[str, list[float]]) -> float:
    """How many times as fast the first runner is as the fastest of the others, by medians."""
    ours, *others = map(statistics.median, seconds.values())
    return min(others) / ours


def compare_embedding(directory: Path, workloads: dict[str, list[str]], dtype: str, rounds: int) -> None:
    import sentence_transformers
    from sentence_transformers import models

    transformer = models.Transformer(str(directory), max_seq_length=512)
    pooling = models.Pooling(transformer.get_word_embedding_dimension(), "mean")
    theirs = sentence_transformers.SentenceTransformer(modules=[transformer, pooling], device="cpu")
    saved = directory.with_name(f"encoder-{dtype}")
    theirs.save(str(saved), create_model_card=False)
    ours = SentenceEncoder(saved, dtype=dtype, cache_dir=directory.with_name("cache"))
    theirs.to(dtype=getattr(torch, dtype))
    for workload, texts in workloads.items():
        runners = {
            "roberta-flax": partial(ours.encode, texts),
            **{
                f"sentence-transformers, batches of {n}": partial(theirs.encode, texts, batch_size=n)
                for n in BATCH_SIZES
            },
        }
        compare("embedding", workload, dtype, len(texts), rounds, runners)
        cosines = ours.similarity_pairwise(ours.encode(texts), theirs.encode(texts))
        print_record(what="embedding", workload=workload, dtype=dtype, smallest_cosine=float(cosines.min()))


def compare_zero_shot(directory: Path, texts: list[str], dtype: str, rounds: int) -> None:
    import transformers

    name = "zero-shot-classification"
    theirs = transformers.pipeline(name, model=str(directory), device="cpu", dtype=getattr(torch, dtype))
    ours = pipeline(name, model=directory, dtype=dtype, cache_dir=directory.with_name("cache"))
    labels = list(LABELS)
    runners = {
        "roberta-flax": partial(ours, texts, labels),
        **{
            f"transformers' pipeline, batches of {n}": partial(theirs, texts, labels, batch_size=n) for n in BATCH_SIZES
        },
    }
    compare("zero-shot, 10 labels", "mixed lengths", dtype, len(texts), rounds, runners)
    pairs = zip(ours(texts, labels), theirs(texts, labels), strict=True)
    agreement = float(np.mean([one["labels"][0] == other["labels"][0] for one, other in pairs]))
    print_record(what="zero-shot, 10 labels", dtype=dtype, same_first_label=agreement)


def time_shared_sides(tokenizer: Tokenizer, sentences: Sequence[str], texts: list[str]) -> None:
    """Times the tokenization of pairs that share a text, together and one at a time, and prints the ratios."""
    scores, zero_shot, answer = SentenceScores("mnli"), ZeroShot(LABELS), Answer()
    pairs = [(sentences[0], text) for text in texts]
    labeled = [(text, f"This example is {label}.") for text in texts for label in LABELS]
    contexts = [" ".join(sentences[i : i + 10]) for i in range(0, 200, 10)]
    questions = [(sentences[300 + i], context) for context in contexts for i in range(5)]

    def alone(task: Any, inputs: Sequence[Any]) -> None:
        for given in inputs:
            tokenizer.backend._encoded_side.cache_clear()
            task.encode(tokenizer, [given], 384, task.on_long if task is answer else "truncate")

    functions: dict[str, Callable[[], Any]] = {
        "a query and documents": partial(scores.encode, tokenizer, pairs, 384, "truncate"),
        "a query and documents, one at a time": partial(alone, scores, pairs),
        "texts and 10 labels": partial(zero_shot.encode, tokenizer, texts, 384, "truncate"),
        "texts and 10 labels, one at a time": partial(alone, scores, labeled),
        "questions and contexts": partial(answer.encode, tokenizer, questions, 384, "window"),
        "questions and contexts, one at a time": partial(alone, answer, questions),
    }
    medians = median_seconds(15, functions)
    for name in list(functions)[::2]:
        print_record(what="tokenization", pairs=name, speedup=medians[f"{name}, one at a time"] / medians[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bpe_dir", type=Path, help="directory with dict.txt, encoder.json and vocab.bpe")
    parser.add_argument("sick", type=Path, help="SICK's file of pairs")
    parser.add_argument("--texts", type=int, default=128, help="number of texts to embed in each workload")
    parser.add_argument("--classified", type=int, default=12, help="number of texts to classify")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokenizing", action="store_true", help="only time tokenization")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    options = parser.parse_args()

    logging.disable(logging.WARNING)  # fairseq and hydra log a lot
    warnings.simplefilter("ignore")
    tokenizer = Tokenizer.from_directory(options.bpe_dir)
    sick = sick_pairs(options.sick, None)
    count = max(options.texts, options.classified)
    pairs = mixed_pairs(sick, count, lambda text: len(tokenizer.encode_text(text)))
    mixed = [f"{first} {second}" for first, second in pairs]
    workloads = {
        "mixed lengths": mixed[: options.texts],
        "equal lengths": equal_texts(tokenizer, [text for pair in sick for text in pair], options.texts),
    }
    with tempfile.TemporaryDirectory(prefix="benchmark-encoders-") as temporary:
        folder = Path(temporary)
        fairseq_hub(folder / "fairseq", options.bpe_dir)
        directory = export(convert(folder / "fairseq", folder / "converted"), folder / "transformers", to="huggingface")
        sentences = [sentence for pair in sick for sentence in pair]
        time_shared_sides(load_tokenizer(directory, cache_dir=folder / "cache"), sentences, mixed)
        if options.tokenizing:
            return
        for dtype in options.dtypes:
            compare_embedding(directory, workloads, dtype, options.rounds)
            compare_zero_shot(directory, mixed[: options.classified], dtype, options.rounds)


if __name__ == "__main__":
    main()
