"""Compare a training step with that of transformers' torch RoBERTa and AdamW: python -m benchmarks.train

Both train a model with random weights and a head of three classes, with dropout, on the same batch of token ids of one
length. In bfloat16, both keep float32 parameters and compute in bfloat16 (torch by autocast). Each runs in a process of
its own, as users run them, because in one process the threads and the memory of either would disturb the other. The
processes take turns for several rounds. A process measures the median time of the steps after the first, which
compiles, and its peak resident memory (VmHWM in Linux's /proc, imports included). Prints lines of JSON: the medians of
the rounds, and the seconds of every round.

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

from benchmarks.measurement import medians, peak_memory, print_record, run_in_fresh_process
from roberta_flax import RobertaConfig
from roberta_flax.nn import forward
from roberta_flax.nn.config import HeadConfig
from roberta_flax.nn.numerics import Numerics
from roberta_flax.train import adam, head_loss, init_optimizer, make_train_step, polynomial_decay

SHAPES = ("32x32", "16x128", "4x512")
LEARNING_RATE, WARMUP_STEPS, TOTAL_STEPS = 1e-5, 10, 1000
TIMED_STEPS = 5  # in a process

Step = Callable[[str], float]  # takes a training step on a batch of a shape, and returns the loss


def make_batch(shape: str) -> dict[str, np.ndarray]:
    rows, length = map(int, shape.split("x"))
    random = np.random.default_rng(0)
    return {
        "tokens": random.integers(10, 50000, (rows, length)).astype(np.int32),
        "targets": random.integers(0, 3, rows).astype(np.int32),
        "weights": np.ones(rows, np.float32),
    }


def roberta_flax_step(size: str, dtype: str, remat: bool = False) -> Step:
    base_config = getattr(RobertaConfig, size)()
    config = base_config.with_head(HeadConfig("mnli", 3, base_config.hidden_size))
    schedule = polynomial_decay(LEARNING_RATE, warmup_steps=WARMUP_STEPS, total_steps=TOTAL_STEPS)
    optimizer = adam(schedule, config=config)
    train_step = make_train_step(
        head_loss("mnli", config=config, numerics=Numerics(dtype=dtype, remat=remat)), optimizer
    )
    params = forward.init_params(config, jax.random.key(0))
    opt_state, steps = init_optimizer(optimizer, params), 0

    def step(shape: str) -> float:
        nonlocal params, opt_state, steps
        params, opt_state, metrics = train_step(params, opt_state, make_batch(shape), jax.random.key(steps))
        jax.block_until_ready(params)
        steps += 1
        return float(metrics["loss"])

    return step


def torch_step(size: str, dtype: str) -> Step:
    import torch
    from transformers import RobertaForSequenceClassification

    from references.transformers import configuration

    model = RobertaForSequenceClassification(configuration(getattr(RobertaConfig, size)(), num_labels=3)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1)

    def step(shape: str) -> float:
        batch = {name: torch.from_numpy(array).long() for name, array in make_batch(shape).items()}
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = model(batch["tokens"], labels=batch["targets"]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


RUNNERS = ("roberta-flax", "transformers, torch")


def measure_in_this_process(runner: str, size: str, dtype: str, shape: str, remat: bool) -> None:
    """Takes some training steps, and prints their median time and the peak memory of this process."""
    step = roberta_flax_step(size, dtype, remat) if runner == "roberta-flax" else torch_step(size, dtype)
    losses, seconds = [step(shape)], []
    for _ in range(TIMED_STEPS):
        begin = time.perf_counter()
        losses.append(step(shape))
        seconds.append(time.perf_counter() - begin)
    assert np.isfinite(losses).all()
    if runner == "roberta-flax":
        assert "torch" not in sys.modules, "the memory of torch would count"
    print(json.dumps({"seconds": statistics.median(seconds), "peak_bytes": peak_memory()}))


def compare(size: str, dtype: str, shape: str, rounds: int, remat: bool) -> None:
    """Measures both runners in fresh processes in turn, and prints their medians and ratios."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in RUNNERS}
    for _ in range(rounds):
        for name in RUNNERS:
            arguments = ["--runner", name, "--size", size, "--dtypes", dtype, "--shapes", shape]
            arguments += ["--remat"] if remat else []
            runs[name].append(run_in_fresh_process("benchmarks.train", *arguments))
    results = {name: medians(measurements) for name, measurements in runs.items()}
    for name, measurements in runs.items():
        seconds = [round(measurement["seconds"], 3) for measurement in measurements]
        print_record(shape=shape, dtype=dtype, runner=name, **results[name], rounds=seconds)
    ours, theirs = (results[name] for name in RUNNERS)
    speed, memory = theirs["seconds"] / ours["seconds"], ours["peak_bytes"] / theirs["peak_bytes"]
    print_record(shape=shape, dtype=dtype, **{"speed over torch": speed, "memory over torch": memory})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("base", "large"), default="base")
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=("float32", "bfloat16"))
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="batch size x length")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--remat", action="store_true", help="rematerialize the layers in roberta-flax")
    parser.add_argument("--runner", choices=RUNNERS, help=argparse.SUPPRESS)  # measures in this process
    options = parser.parse_args()
    if options.runner:
        measure_in_this_process(options.runner, options.size, options.dtypes[0], options.shapes[0], options.remat)
        return
    for dtype in options.dtypes:
        for shape in options.shapes:
            compare(options.size, dtype, shape, options.rounds, options.remat)


if __name__ == "__main__":
    main()
