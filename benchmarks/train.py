"""A training step beside transformers' torch RoBERTa with AdamW: python -m benchmarks.train

A model with random weights and a head of three classes, dropout on, token ids of one length, the same batch for both.
In bfloat16 both keep float32 parameters and compute in bfloat16, torch by autocast. Each in a process of its own, as
users have them (in one process either's threads and memory are in the other's way), in turn, several rounds: the median
of a process's steps after the first, which compiles, and its peak resident memory (VmHWM of Linux's /proc, imports
too). JSON lines: medians of the rounds, and every round's seconds.

  python -m benchmarks.train [--size base|large] [--dtypes D ...] [--shapes BxT ...] [--rounds N] [--remat]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import jax
import numpy as np

from benchmarks import fresh
from roberta_flax import RobertaConfig
from roberta_flax.nn import forward
from roberta_flax.nn.config import HeadConfig
from roberta_flax.nn.numerics import Numerics
from roberta_flax.train import adam, head_loss, init_optimizer, make_train_step, polynomial_decay

SHAPES = ("32x32", "16x128", "4x512")
RATE, WARMUP, TOTAL = 1e-5, 10, 1000
STEPS = 5  # that are timed, in a process


def batch_of(shape: str) -> dict[str, np.ndarray]:
    rows, length = map(int, shape.split("x"))
    random = np.random.default_rng(0)
    return {
        "tokens": random.integers(10, 50000, (rows, length)).astype(np.int32),
        "targets": random.integers(0, 3, rows).astype(np.int32),
        "weights": np.ones(rows, np.float32),
    }


def ours(size: str, dtype: str, remat: bool = False) -> Callable[[str], float]:
    """Runs a step on a batch of that shape; gives the loss."""
    plain = getattr(RobertaConfig, size)()
    config = plain.with_head(HeadConfig("mnli", 3, plain.hidden_size))
    optimizer = adam(polynomial_decay(RATE, warmup_steps=WARMUP, total_steps=TOTAL), config=config)
    train_step = make_train_step(
        head_loss("mnli", config=config, numerics=Numerics(dtype=dtype, remat=remat)), optimizer
    )
    params = forward.init_params(config, jax.random.key(0))
    opt_state, steps = init_optimizer(optimizer, params), 0

    def run(shape: str) -> float:
        nonlocal params, opt_state, steps
        params, opt_state, metrics = train_step(params, opt_state, batch_of(shape), jax.random.key(steps))
        jax.block_until_ready(params)
        steps += 1
        return float(metrics["loss"])

    return run


def torchs(size: str, dtype: str) -> Callable[[str], float]:
    import torch
    from transformers import RobertaForSequenceClassification

    from references.transformers import configuration

    model = RobertaForSequenceClassification(configuration(getattr(RobertaConfig, size)(), num_labels=3)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1)

    def run(shape: str) -> float:
        batch = {name: torch.from_numpy(array).long() for name, array in batch_of(shape).items()}
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = model(batch["tokens"], labels=batch["targets"]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return run


RUNNERS = {"roberta-flax": ours, "transformers, torch": torchs}


def alone(runner: str, size: str, dtype: str, shape: str, remat: bool) -> None:
    """Some steps, and the peak of this process."""
    step = ours(size, dtype, remat) if runner == "roberta-flax" else torchs(size, dtype)
    losses, seconds = [step(shape)], []
    for _ in range(STEPS):
        begin = time.perf_counter()
        losses.append(step(shape))
        seconds.append(time.perf_counter() - begin)
    assert np.isfinite(losses).all()
    if runner == "roberta-flax":
        assert "torch" not in sys.modules, "its memory would count"
    print(json.dumps({"seconds": statistics.median(seconds), "peak_bytes": fresh.peak_memory()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("base", "large"), default="base")
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=("float32", "bfloat16"))
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--remat", action="store_true", help="ours computes layers again for their gradients")
    parser.add_argument("--alone", choices=RUNNERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        alone(options.alone, options.size, options.dtypes[0], options.shapes[0], options.remat)
        return
    from benchmarks.inference import line  # brings torch, whose memory would count above

    for dtype in options.dtypes:
        for shape in options.shapes:
            runs: dict[str, list[dict[str, float]]] = {name: [] for name in RUNNERS}
            for _ in range(options.rounds):
                for name in RUNNERS:
                    arguments = ["--alone", name, "--size", options.size, "--dtypes", dtype, "--shapes", shape]
                    remat = ["--remat"] if options.remat else []
                    runs[name].append(fresh.run("benchmarks.train", *arguments, *remat))
            medians = {name: fresh.medians(results) for name, results in runs.items()}
            our, their = medians["roberta-flax"], medians["transformers, torch"]
            for name, results in runs.items():
                rounds = [round(result["seconds"], 3) for result in results]
                line(shape=shape, dtype=dtype, runner=name, **medians[name], rounds=rounds)
            speed, memory = their["seconds"] / our["seconds"], our["peak_bytes"] / their["peak_bytes"]
            line(shape=shape, dtype=dtype, **{"speed over torch's": speed, "memory over torch's": memory})


if __name__ == "__main__":
    main()
