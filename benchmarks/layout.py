"""Measure what batching.estimated_cost estimates, the costs of attention and of packing: python -m benchmarks.layout

A few layers of base's sizes run over batches of 1,024 tokens in rows of 32 to 512 tokens, and in packed rows of 256
that hold sequences of 28 and of 64 tokens. All take turns. Times are those of the
process on all cores, which other programs disturb least. Each line gives the median and the smallest, relative to rows
of 32 tokens. The last line of each dtype has the two constants by least squares: how much slower an operation
of attention is than one of a layer's products, and what packing adds to a slot.

  python -m benchmarks.layout [--rounds N] [--layers N]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from benchmarks.measurement import print_record
from roberta_flax import HeadConfig, Numerics, RobertaConfig, forward
from roberta_flax.text import batching

TOKENS = 1024
HEAD = "mnli"


def plain(length: int) -> list[np.ndarray[Any, Any]]:
    """Rows of one sequence each."""
    return [np.random.default_rng(0).integers(5, 900, (TOKENS // length, length)).astype(np.int32)]


def packed(length: int) -> list[np.ndarray[Any, Any]]:
    """Packed rows of sequences of this length: tokens, segments and starts."""
    sequences = [np.full(length, 7, np.int32)] * (TOKENS // length)
    (batch,) = batching.lay_out(sequences, tokens_per_batch=TOKENS, pad_id=1, max_positions=512, strategy="packing")
    return [array for array in (batch.tokens, batch.segments, batch.starts) if array is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--layers", type=int, default=4)
    options = parser.parse_args()
    config = RobertaConfig(vocab_size=1000, num_layers=options.layers, heads=(HeadConfig(HEAD, 3, 768),))
    params = forward.init_params(config, jax.random.key(0))
    cases = {f"{TOKENS // n} x {n}": plain(n) for n in (32, 64, 128, 256, 512)}
    cases |= {f"packed, {n} tokens each": packed(n) for n in (28, 64)}
    functions: dict[tuple[str, str], Callable[[], Any]] = {}
    for dtype in ("float32", "bfloat16"):
        numerics = Numerics(dtype)
        operands = forward.operands(params, numerics.dtype)
        predict = partial(forward.head_log_probs, head=HEAD, config=config, numerics=numerics)
        functions |= {(dtype, name): partial(predict, operands, *arrays) for name, arrays in cases.items()}
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in functions}
    for number in range(options.rounds + 1):
        for key, function in functions.items():
            begin = time.process_time()
            jax.block_until_ready(function())
            if number:  # the first compiles
                seconds[key].append(time.process_time() - begin)
    for dtype in ("float32", "bfloat16"):
        medians = {name: statistics.median(seconds[dtype, name]) for name in cases}
        fewest = {name: min(seconds[dtype, name]) for name in cases}
        first = next(iter(cases))
        for name in cases:
            relative = {"median": medians[name] / medians[first], "smallest": fewest[name] / fewest[first]}
            print_record(dtype=dtype, batch=name, **relative)
        print_record(dtype=dtype, **fit(fewest, config))


def fit(seconds: dict[str, float], config: RobertaConfig) -> dict[str, float]:
    """The constants that explain the times best: seconds = slot * (1 + slowness * share * length + packing)."""
    share = 1 / (2 * config.hidden_size + config.intermediate_size)
    lengths = [int(name.split()[-1]) if " x " in name else batching.PACK_LENGTH for name in seconds]
    is_packed = [" x " not in name for name in seconds]
    terms = np.stack([np.ones(len(lengths)), share * np.array(lengths), is_packed], axis=1)
    slot, attention, packing = np.linalg.lstsq(terms, np.array([*seconds.values()]), rcond=None)[0]
    return {"attention_slowness": float(attention / slot), "packing_cost": float(packing / slot)}


if __name__ == "__main__":
    main()
