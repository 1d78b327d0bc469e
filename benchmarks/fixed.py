"""Measure what the same bits in any batch cost, the strategy "fixed": python -m benchmarks.fixed

Classifies pairs of mixed lengths (those of benchmarks.inference) with 6 layers of 384 features and random weights, by
every strategy in turn, all in one process. A line of JSON for each strategy has its speed over that of "buckets",
elapsed and of CPU time, and its slots, which are tokens with padding, over those of "buckets". Every program is
compiled before the first round.

  python -m benchmarks.fixed BPE_DIR SICK_FILE [--texts N] [--rounds N] [--tokens-per-batch N]
"""

from __future__ import annotations

import argparse
import logging
import statistics
from functools import partial
from pathlib import Path

import jax

from benchmarks.inference import Pairs, mixed_pairs, sick_pairs
from benchmarks.measurement import elapsed_and_cpu_seconds, print_record
from roberta_flax import Classify, Predictor, Roberta, RobertaConfig, Tokenizer
from roberta_flax.nn import forward
from roberta_flax.nn.config import HeadConfig

STRATEGIES = ("buckets", "auto", "fixed")


def small(tokenizer: Tokenizer) -> Roberta:
    """Returns a classifier as large as a distilled sentence encoder, with random weights."""
    config = RobertaConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=384, num_layers=6, num_heads=12, intermediate_size=1536
    ).with_head(HeadConfig("mnli", 3, 384))
    return Roberta(config, forward.init_params(config, jax.random.key(0)), tokenizer)


def run(predictor: Predictor, pairs: Pairs) -> None:
    for _ in predictor(pairs):
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bpe_dir", type=Path, help="directory with dict.txt, encoder.json and vocab.bpe")
    parser.add_argument("sick", type=Path, help="SICK's file of pairs")
    parser.add_argument("--texts", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens-per-batch", type=int, help="default: what the Predictor chooses")
    options = parser.parse_args()

    logging.disable(logging.WARNING)  # fairseq's import has JAX log all that it compiles
    tokenizer = Tokenizer.from_directory(options.bpe_dir)
    sick = sick_pairs(options.sick, None)
    pairs = mixed_pairs(sick, options.texts, lambda text: len(tokenizer.encode_text(text)))
    roberta, task = small(tokenizer), Classify("mnli")
    chosen = {} if options.tokens_per_batch is None else {"tokens_per_batch": options.tokens_per_batch}
    predictors = {name: Predictor(roberta, task, strategy=name, **chosen) for name in STRATEGIES}
    runs = {name: partial(run, predictor, pairs) for name, predictor in predictors.items()}
    for compile_all in runs.values():
        compile_all()
    elapsed, busy = (
        {name: statistics.median(times) for name, times in seconds.items()}
        for seconds in elapsed_and_cpu_seconds(options.rounds, runs)
    )
    base_slots = predictors["buckets"].stats.slots
    for name, predictor in predictors.items():
        stats = predictor.stats
        print_record(
            strategy=name,
            speed_over_buckets=elapsed["buckets"] / elapsed[name],
            cpu_speed_over_buckets=busy["buckets"] / busy[name],
            slots_over_buckets=stats.slots / base_slots,
            padding_share=stats.padding,
            shapes=len(stats.shapes),
            texts=options.texts,
        )


if __name__ == "__main__":
    main()
