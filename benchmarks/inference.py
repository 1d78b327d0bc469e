"""Pairs a second from text to label, beside fairseq's loop and transformers' pipeline: python -m benchmarks.inference

One model (base, random weights, an MNLI head), one process, rounds in turn, medians. Work is SICK's pairs in file
order, and a mix of lengths (log-normal, median 40 tokens, from 5 to 500). Every program is compiled before its first
round; fairseq's and transformers' batches are in the order of the file, padded to their longest. JSON lines.

Before that, tokenising alone, in one thread: what a Predictor's threads do (encoding.encode_batch), beside tiktoken's
encode_ordinary alone on the same texts. And each work in fresh processes, without torch: peak resident memory (VmHWM of
Linux's /proc, imports too), and compilations and their seconds, with an empty cache of programs ("cold") and with what
that left in it ("warm").

  python -m benchmarks.inference BPE_DIR SICK_FILE [--pairs N] [--mixed N] [--rounds N] [--tokenising | --sweep]

--tokenising does nothing else. --sweep tries tokens a batch, and both strategies, and compares nothing.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import fresh
from references.fairseq import build, torch, write
from references.fairseq import load as load_fairseq
from roberta_flax import Classify, Predictor, Tokenizer, load
from roberta_flax.convert import convert, export
from roberta_flax.inference.predictor import TEXTS_PER_CHUNK, Stats
from roberta_flax.text.encoding import encode_batch

FAIRSEQ_BATCH = 32
PIPELINE_BATCHES = (1, 8, 32)
# All of SICK, and as many mixed pairs as give a round some hundredths of a second.
TOKENISING_ROUNDS, TOKENISING_MIXED = 15, 2000
FRESH = (
    "peak_bytes", "peak_over_parameters", "seconds", "texts_per_second", "shapes", "compilations",
    "compilations_from_cache", "compilation_seconds",
)  # fmt: skip
Pairs = Sequence[tuple[str, str]]


def fairseq_hub(folder: Path, bpe_dir: Path, architecture: str = "roberta_base") -> Any:
    """fairseq's own from_pretrained, of a model of this size with random weights, written to `folder`."""
    write(build(architecture), folder, bpe_dir)
    shutil.copy(bpe_dir / "dict.txt", folder / "dict.txt")
    return load_fairseq(folder)


def sick_pairs(path: Path, count: int | None) -> Pairs:
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    return [(row[1], row[2]) for row in rows][:count]


def mixed_pairs(sick: Pairs, count: int, length_of: Callable[[str], int]) -> Pairs:
    """Pairs of SICK's sentences strung together, of about the lengths asked for."""
    random = np.random.default_rng(0)
    lengths = np.clip(np.exp(random.normal(np.log(40), 0.8, count)), 5, 500).astype(int)
    sentences = [sentence for pair in sick for sentence in pair]
    order = iter(random.integers(0, len(sentences), 100 * count).tolist())
    pairs = []
    for length in lengths:
        first, second = "", sentences[next(order)].split(" ")[0]
        while length_of(first) + length_of(second) + 4 < length:
            words = sentences[next(order)]
            room = max(1, int((length - length_of(first) - length_of(second) - 4) / 1.2))
            first = f"{first} {' '.join(words.split(' ')[:room])}".strip()
        pairs.append((first or "A", second))
    return pairs


def fairseq_loop(hub: Any, pairs: Pairs, batch: int) -> list[int]:
    """The loop of fairseq's README; with batches, its collate_tokens too (its own example of batched prediction)."""
    from fairseq.data.data_utils import collate_tokens

    labels: list[int] = []
    with torch.no_grad():
        for start in range(0, len(pairs), batch):
            tokens = [hub.encode(*pair) for pair in pairs[start : start + batch]]
            labels += hub.predict("mnli", collate_tokens(tokens, pad_idx=1)).argmax(dim=1).tolist()
    return labels


def transformers_pipeline(directory: Path, dtype: Any) -> Any:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=dtype).eval()
    return pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(directory))


def in_turn(rounds: int, runs: dict[str, Callable[[], Any]], *, steady: bool = False) -> dict[str, float]:
    """Median seconds of each, in turn; with `steady` of second calls in a row, when threads and caches are its own."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            if steady:
                time.sleep(0.2)  # until the threads of the one before stop spinning, as torch's and onnxruntime's do
                run()
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(times) for name, times in seconds.items()}


def line(**values: Any) -> None:
    print(
        json.dumps({key: round(value, 4) if isinstance(value, float) else value for key, value in values.items()}),
        flush=True,
    )


def tokenising(tokenizer: Tokenizer, works: dict[str, Pairs]) -> None:
    raw = tokenizer.bpe._tiktoken.encode_ordinary

    def tiktoken_raw(pairs: Pairs) -> None:
        for first, second in pairs:
            raw(first)
            raw(second)

    def ours(pairs: Pairs) -> None:
        for start in range(0, len(pairs), TEXTS_PER_CHUNK):
            encode_batch(tokenizer, pairs[start : start + TEXTS_PER_CHUNK], 512, "error")

    for work, pairs in works.items():
        megabytes = sum(len(text.encode()) for pair in pairs for text in pair) / 1e6
        runs: dict[str, Callable[[], Any]] = {
            "tiktoken, raw": partial(tiktoken_raw, pairs),
            "encode_batch": partial(ours, pairs),
        }
        medians = in_turn(TOKENISING_ROUNDS, runs)
        rates: dict[str, Any] = {}
        for name, seconds in medians.items():
            rates[f"{name}, MB/s"] = megabytes / seconds
            rates[f"{name}, texts/s"] = round(2 * len(pairs) / seconds)
        ratio = medians["encode_batch"] / medians["tiktoken, raw"]
        line(what="tokenising alone", work=work, **rates, times_tiktokens_time=ratio)


def sweep(directory: Path, works: dict[str, Pairs]) -> None:
    for dtype in ("float32", "bfloat16"):
        roberta = load(directory, dtype=dtype)
        for what, pairs in works.items():
            for strategy in ("buckets", "packing"):
                for tokens in (512, 1024, 2048, 4096):
                    options = {"strategy": strategy, "tokens_per_batch": tokens}
                    list(Predictor(roberta, Classify("mnli"), **options)(pairs))
                    predictor = Predictor(roberta, Classify("mnli"), **options)
                    list(predictor(pairs))
                    stats = predictor.stats.to_json()
                    line(
                        dtype=dtype,
                        work=what,
                        **options,
                        **{k: stats[k] for k in ("texts_per_second", "padding_share", "shapes")},
                    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bpe_dir", type=Path)
    parser.add_argument("sick", type=Path)
    parser.add_argument("--pairs", type=int, default=512)
    parser.add_argument("--mixed", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokenising", action="store_true")
    parser.add_argument("--sweep", action="store_true")
    options = parser.parse_args()

    logging.disable(logging.WARNING)  # fairseq and hydra say much
    tokenizer = Tokenizer.from_directory(options.bpe_dir)

    def works_of(pairs: int | None, mixed: int) -> dict[str, Pairs]:
        sick = sick_pairs(options.sick, pairs)
        return {
            "SICK": sick,
            "mixed lengths": mixed_pairs(sick, mixed, lambda text: len(tokenizer.encode_text(text))),
        }

    if not options.sweep:
        tokenising(tokenizer, works_of(None, TOKENISING_MIXED))
    if options.tokenising:
        return
    works = works_of(options.pairs, options.mixed)
    with tempfile.TemporaryDirectory(prefix="benchmark-inference-") as temporary:
        folder = Path(temporary)
        hub = fairseq_hub(folder / "fairseq", options.bpe_dir)
        directory = convert(folder / "fairseq", folder / "converted")
        if options.sweep:
            sweep(directory, works)
            return
        for dtype in ("float32", "bfloat16"):  # before this process takes an accelerator
            for work, pairs in works.items():
                in_fresh_processes(work, pairs, dtype, directory)
        export(directory, folder / "transformers", to="huggingface")
        for dtype in ("float32", "bfloat16"):
            roberta = load(directory, dtype=dtype)
            hub.model.to(getattr(torch, dtype))
            pipe = transformers_pipeline(folder / "transformers", getattr(torch, dtype))
            for work, pairs in works.items():
                compare(work, pairs, dtype, roberta, hub, pipe, options.rounds)


def compare(work: str, pairs: Pairs, dtype: str, roberta: Any, hub: Any, pipe: Any, rounds: int) -> None:
    predictors = {s: Predictor(roberta, Classify("mnli"), strategy=s) for s in ("buckets", "packing")}
    labels: dict[str, list[int]] = {}

    def ours(strategy: str) -> None:
        predictors[strategy].stats = Stats()
        labels[strategy] = [int(result.argmax()) for result in predictors[strategy](pairs)]

    def theirs(batch: int) -> None:
        labels[f"fairseq {batch}"] = fairseq_loop(hub, pairs, batch)

    def pipeline(batch: int) -> None:
        pipe([{"text": a, "text_pair": b} for a, b in pairs], batch_size=batch)

    for strategy in predictors:
        ours(strategy)  # compiles
    runs: dict[str, Callable[[], Any]] = {
        "roberta-flax, buckets": partial(ours, "buckets"),
        "roberta-flax, packing": partial(ours, "packing"),
        "fairseq, batches of 32": partial(theirs, FAIRSEQ_BATCH),
        "fairseq, one at a time": partial(theirs, 1),
        **{f"transformers' pipeline, batches of {n}": partial(pipeline, n) for n in PIPELINE_BATCHES},
    }
    medians = in_turn(rounds, runs)
    baseline = medians["fairseq, batches of 32"]
    for name, seconds in medians.items():
        rate = len(pairs) / seconds
        line(work=work, dtype=dtype, runner=name, pairs_per_second=rate, over_fairseq_batches=baseline / seconds)
    for strategy, predictor in predictors.items():
        agree = float(np.mean(np.array(labels[strategy]) == np.array(labels["fairseq 32"])))
        line(work=work, dtype=dtype, strategy=strategy, agree_with_fairseq=agree, **predictor.stats.to_json())


def in_fresh_processes(work: str, pairs: Pairs, dtype: str, directory: Path) -> None:
    for strategy in ("buckets", "packing"):
        with tempfile.TemporaryDirectory(prefix="benchmark-inference-cache-") as cache:
            file = Path(cache) / "pairs.json"
            file.write_text(json.dumps(pairs), encoding="utf-8")
            for state in ("cold", "warm"):
                result = fresh.run("benchmarks.predictor", str(directory), str(file), dtype, strategy, cache)
                line(work=work, dtype=dtype, strategy=strategy, cache=state, **{key: result[key] for key in FRESH})


if __name__ == "__main__":
    sys.exit(main())
