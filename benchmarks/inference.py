"""Compare the speed from text to label with fairseq's loop and transformers' pipeline: python -m benchmarks.inference

The model is base with random weights and an MNLI head. All runs share one process and take turns; the benchmark prints
medians as lines of JSON. The workloads are SICK's pairs in the order of the file, and a mix of lengths (log-normal,
median 40 tokens, from 5 to 500). Every program is compiled before its first round. fairseq's and transformers' batches
follow the order of the file and are padded to their longest text.

Before that, the benchmark times two other things. First, tokenization alone, in one thread: what the threads of a
Predictor do (encode_batch), compared with tiktoken's encode_ordinary on the same texts. Second, each workload in fresh
processes without torch: peak resident memory (VmHWM in Linux's /proc, imports included), and the number and the seconds
of compilations, with an empty cache of programs ("cold") and with the cache that this run filled ("warm").

  python -m benchmarks.inference BPE_DIR SICK_FILE [--pairs N] [--mixed N] [--rounds N] [--tokenizing | --sweep]
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measurement import median_seconds, print_record, run_in_fresh_process
from references.fairseq import build, torch, write
from references.fairseq import load as load_fairseq
from roberta_flax import Classify, Predictor, Tokenizer, load
from roberta_flax.convert import convert, export
from roberta_flax.inference.predictor import TEXTS_PER_CHUNK, Stats
from roberta_flax.text.encoding import encode_batch

FAIRSEQ_BATCH_SIZE = 32
PIPELINE_BATCH_SIZES = (1, 8, 32)
STRATEGIES = ("auto", "buckets", "packing")
# All of SICK, and as many mixed pairs as take some hundredths of a second in a round.
TOKENIZING_ROUNDS, TOKENIZING_MIXED = 15, 2000
SHOWN_STATISTICS = (
    "peak_bytes", "peak_over_parameters", "seconds", "texts_per_second", "shapes", "compilations",
    "compilations_from_cache", "compilation_seconds",
)  # fmt: skip
Pairs = Sequence[tuple[str, str]]


def fairseq_hub(folder: Path, bpe_dir: Path, architecture: str = "roberta_base") -> Any:
    """Writes a model with random weights to `folder`, and loads it with fairseq's own from_pretrained."""
    write(build(architecture), folder, bpe_dir)
    shutil.copy(bpe_dir / "dict.txt", folder / "dict.txt")
    return load_fairseq(folder)


def sick_pairs(path: Path, count: int | None) -> Pairs:
    """Returns the first pairs of SICK; all if `count` is None."""
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    return [(row[1], row[2]) for row in rows][:count]


def mixed_pairs(sick: Pairs, count: int, length_of: Callable[[str], int]) -> Pairs:
    """Returns pairs of log-normally distributed lengths, made of SICK's sentences strung together."""
    random = np.random.default_rng(0)
    lengths = np.clip(np.exp(random.normal(np.log(40), 0.8, count)), 5, 500).astype(int)
    sentences = [sentence for pair in sick for sentence in pair]
    order = iter(random.integers(0, len(sentences), 100 * count).tolist())
    pairs = []
    for length in lengths:
        first, second = "", sentences[next(order)].split(" ")[0]
        while length_of(first) + length_of(second) + 4 < length:
            sentence = sentences[next(order)]
            max_words = max(1, int((length - length_of(first) - length_of(second) - 4) / 1.2))
            first = f"{first} {' '.join(sentence.split(' ')[:max_words])}".strip()
        pairs.append((first or "A", second))
    return pairs


def fairseq_loop(hub: Any, pairs: Pairs, batch_size: int) -> list[int]:
    """Runs the loop of fairseq's README, with collate_tokens for batches as in its example of batched prediction."""
    from fairseq.data.data_utils import collate_tokens

    labels: list[int] = []
    with torch.no_grad():
        for start in range(0, len(pairs), batch_size):
            tokens = [hub.encode(*pair) for pair in pairs[start : start + batch_size]]
            labels += hub.predict("mnli", collate_tokens(tokens, pad_idx=1)).argmax(dim=1).tolist()
    return labels


def transformers_pipeline(directory: Path, dtype: Any) -> Any:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=dtype).eval()
    return pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(directory))


def time_tokenization(tokenizer: Tokenizer, workloads: dict[str, Pairs]) -> None:
    """Times encode_batch and tiktoken alone, and prints a line for each workload."""
    raw = tokenizer.backend.bpe._tiktoken.encode_ordinary

    def tiktoken_raw(pairs: Pairs) -> None:
        for first, second in pairs:
            raw(first)
            raw(second)

    def encode_in_batches(pairs: Pairs) -> None:
        for start in range(0, len(pairs), TEXTS_PER_CHUNK):
            encode_batch(tokenizer, pairs[start : start + TEXTS_PER_CHUNK], 512, "error")

    for workload, pairs in workloads.items():
        megabytes = sum(len(text.encode()) for pair in pairs for text in pair) / 1e6
        functions: dict[str, Callable[[], Any]] = {
            "tiktoken, raw": partial(tiktoken_raw, pairs),
            "encode_batch": partial(encode_in_batches, pairs),
        }
        medians = median_seconds(TOKENIZING_ROUNDS, functions)
        rates: dict[str, Any] = {}
        for name, seconds in medians.items():
            rates[f"{name}, MB/s"] = megabytes / seconds
            rates[f"{name}, texts/s"] = round(2 * len(pairs) / seconds)
        ratio = medians["encode_batch"] / medians["tiktoken, raw"]
        print_record(what="tokenization alone", workload=workload, **rates, time_over_tiktoken=ratio)


def sweep_batch_sizes(directory: Path, workloads: dict[str, Pairs]) -> None:
    """Tries numbers of tokens per batch and all strategies, and prints a line for each."""
    for dtype in ("float32", "bfloat16"):
        roberta = load(directory, dtype=dtype)
        for workload, pairs in workloads.items():
            for strategy in STRATEGIES:
                for tokens in (512, 1024, 2048, 4096):
                    options = {"strategy": strategy, "tokens_per_batch": tokens}
                    list(Predictor(roberta, Classify("mnli"), **options)(pairs))  # compiles
                    predictor = Predictor(roberta, Classify("mnli"), **options)
                    list(predictor(pairs))
                    stats = predictor.stats.to_json()
                    shown = {key: stats[key] for key in ("texts_per_second", "padding_share", "shapes")}
                    print_record(dtype=dtype, workload=workload, **options, **shown)


def run_in_fresh_processes(workload: str, pairs: Pairs, dtype: str, directory: Path) -> None:
    """Runs a workload without torch, with a cold and then a warm cache of programs, and prints memory and time."""
    for strategy in STRATEGIES:
        with tempfile.TemporaryDirectory(prefix="benchmark-inference-cache-") as cache:
            file = Path(cache) / "pairs.json"
            file.write_text(json.dumps(pairs), encoding="utf-8")
            for state in ("cold", "warm"):
                result = run_in_fresh_process(
                    "benchmarks.predictor_process", str(directory), str(file), dtype, strategy, cache
                )
                shown = {key: result[key] for key in SHOWN_STATISTICS}
                print_record(workload=workload, dtype=dtype, strategy=strategy, cache=state, **shown)


def compare_throughput(workload: str, pairs: Pairs, dtype: str, roberta: Any, hub: Any, pipe: Any, rounds: int) -> None:
    """Times all runners on a workload, and prints their speeds and how many labels agree with fairseq's."""
    predictors = {strategy: Predictor(roberta, Classify("mnli"), strategy=strategy) for strategy in STRATEGIES}
    labels: dict[str, list[int]] = {}

    def run_predictor(strategy: str) -> None:
        predictors[strategy].stats = Stats()
        labels[strategy] = [int(result.argmax()) for result in predictors[strategy](pairs)]

    def run_fairseq(batch_size: int) -> None:
        labels[f"fairseq {batch_size}"] = fairseq_loop(hub, pairs, batch_size)

    def run_pipeline(batch_size: int) -> None:
        pipe([{"text": first, "text_pair": second} for first, second in pairs], batch_size=batch_size)

    for strategy in predictors:
        run_predictor(strategy)  # compiles
    functions: dict[str, Callable[[], Any]] = {
        **{f"roberta-flax, {strategy}": partial(run_predictor, strategy) for strategy in STRATEGIES},
        "fairseq, batches of 32": partial(run_fairseq, FAIRSEQ_BATCH_SIZE),
        "fairseq, one at a time": partial(run_fairseq, 1),
        **{f"transformers' pipeline, batches of {n}": partial(run_pipeline, n) for n in PIPELINE_BATCH_SIZES},
    }
    medians = median_seconds(rounds, functions)
    baseline = medians["fairseq, batches of 32"]
    for name, seconds in medians.items():
        rate = len(pairs) / seconds
        print_record(
            workload=workload, dtype=dtype, runner=name, pairs_per_second=rate, over_fairseq_batches=baseline / seconds
        )
    for strategy, predictor in predictors.items():
        agreement = float(np.mean(np.array(labels[strategy]) == np.array(labels[f"fairseq {FAIRSEQ_BATCH_SIZE}"])))
        stats = predictor.stats.to_json()
        print_record(workload=workload, dtype=dtype, strategy=strategy, agreement_with_fairseq=agreement, **stats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bpe_dir", type=Path, help="directory with dict.txt, encoder.json and vocab.bpe")
    parser.add_argument("sick", type=Path, help="SICK's file of pairs")
    parser.add_argument("--pairs", type=int, default=512, help="number of SICK's pairs")
    parser.add_argument("--mixed", type=int, default=192, help="number of pairs of mixed lengths")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokenizing", action="store_true", help="only time tokenization")
    parser.add_argument("--sweep", action="store_true", help="only try numbers of tokens per batch, and all strategies")
    options = parser.parse_args()

    logging.disable(logging.WARNING)  # fairseq and hydra log a lot
    tokenizer = Tokenizer.from_directory(options.bpe_dir)

    def make_workloads(pairs: int | None, mixed: int) -> dict[str, Pairs]:
        sick = sick_pairs(options.sick, pairs)
        return {
            "SICK": sick,
            "mixed lengths": mixed_pairs(sick, mixed, lambda text: len(tokenizer.encode_text(text))),
        }

    if not options.sweep:
        time_tokenization(tokenizer, make_workloads(None, TOKENIZING_MIXED))
    if options.tokenizing:
        return
    workloads = make_workloads(options.pairs, options.mixed)
    with tempfile.TemporaryDirectory(prefix="benchmark-inference-") as temporary:
        folder = Path(temporary)
        hub = fairseq_hub(folder / "fairseq", options.bpe_dir)
        directory = convert(folder / "fairseq", folder / "converted")
        if options.sweep:
            sweep_batch_sizes(directory, workloads)
            return
        for dtype in ("float32", "bfloat16"):  # before this process takes an accelerator
            for workload, pairs in workloads.items():
                run_in_fresh_processes(workload, pairs, dtype, directory)
        export(directory, folder / "transformers", to="huggingface")
        for dtype in ("float32", "bfloat16"):
            roberta = load(directory, dtype=dtype)
            hub.model.to(getattr(torch, dtype))
            pipe = transformers_pipeline(folder / "transformers", getattr(torch, dtype))
            for workload, pairs in workloads.items():
                compare_throughput(workload, pairs, dtype, roberta, hub, pipe, options.rounds)


if __name__ == "__main__":
    main()
