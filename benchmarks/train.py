"""Compare a training step with one in torch, or with one of adapters: python -m benchmarks.train

In torch it is transformers' RoBERTa with AdamW. Both train a model with random weights and a head of three classes,
with dropout, on the same batch of token ids of one length. In bfloat16, both keep float32 parameters and compute in
bfloat16 (torch by autocast). Each runs in a process of its own, as users run them, because in one process the threads
and the memory of either would disturb the other. The processes take turns for several rounds. A process measures the
median time of the steps after the first, which compiles, and its peak resident memory (VmHWM in Linux's /proc, imports
included). Prints lines of JSON: the medians of the rounds, and the seconds of every round.

With --lora, it compares a step of the whole network with one of adapters of this rank beside the frozen network, on
the queries and values of all layers. `program_bytes` is what the compiler counts for a step: parameters, moments, batch
and temporaries.

  python -m benchmarks.train [--size base|large] [--dtypes D ...] [--shapes BxT ...] [--rounds N] [--remat]
      [--lora RANK]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.measurement import medians, peak_memory, print_record, run_in_fresh_process
from roberta_flax import RobertaConfig
from roberta_flax.nn import forward
from roberta_flax.nn.adapters import LoRA, joined
from roberta_flax.nn.config import HeadConfig
from roberta_flax.nn.numerics import Numerics
from roberta_flax.train import adam, head_loss, make_train_step, polynomial_decay

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


class RobertaFlaxStep:
    """A step of the whole network or, with a rank, of adapters beside it. Called with a shape it returns the loss."""

    def __init__(self, size: str, dtype: str, remat: bool, rank: int | None) -> None:
        base_config = getattr(RobertaConfig, size)()
        config = base_config.with_head(HeadConfig("mnli", 3, base_config.hidden_size))
        schedule = polynomial_decay(LEARNING_RATE, warmup_steps=WARMUP_STEPS, total_steps=TOTAL_STEPS)
        lora = None if rank is None else LoRA(rank)
        loss = head_loss("mnli", config=config, numerics=Numerics(dtype=dtype, remat=remat), lora=lora)
        self._train_step = make_train_step(loss, adam(schedule, config=config))
        params, self._frozen = forward.init_params(config, jax.random.key(0)), None
        if lora is not None:
            self._frozen = {name: part for name, part in params.items() if name != "heads"}
            params = joined(lora.init(self._frozen, config, jax.random.key(1)), {"heads": params["heads"]})
        self._state = params, self._train_step.init(params)
        self._steps = 0
        self._compiled: dict[str, jax.stages.Compiled] = {}

    def _arguments(self, shape: str) -> tuple[Any, ...]:
        frozen = () if self._frozen is None else (self._frozen,)
        return *self._state, make_batch(shape), jax.random.key(self._steps), *frozen

    def compiled(self, shape: str) -> jax.stages.Compiled:
        if shape not in self._compiled:
            self._compiled[shape] = self._train_step.lower(*self._arguments(shape)).compile()
        return self._compiled[shape]

    def __call__(self, shape: str) -> float:
        params, opt_state, metrics = self.compiled(shape)(*self._arguments(shape))
        self._state = jax.block_until_ready((params, opt_state))
        self._steps += 1
        return float(metrics["loss"])

    def program_bytes(self, shape: str) -> int:
        """What the compiler counts: arguments, among them the donated ones, results and temporaries."""
        sizes = self.compiled(shape).memory_analysis()
        results = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
        return int(sizes.argument_size_in_bytes + results + sizes.temp_size_in_bytes)


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


OURS, TORCH, ADAPTERS = "roberta-flax", "transformers, torch", "roberta-flax, adapters"


def measure_in_this_process(runner: str, size: str, dtype: str, shape: str, remat: bool, rank: int | None) -> None:
    """Takes some training steps, and prints their median time and the peak memory of this process."""
    step = (
        torch_step(size, dtype)
        if runner == TORCH
        else RobertaFlaxStep(size, dtype, remat, rank if runner == ADAPTERS else None)
    )
    losses, seconds = [step(shape)], []
    for _ in range(TIMED_STEPS):
        begin = time.perf_counter()
        losses.append(step(shape))
        seconds.append(time.perf_counter() - begin)
    assert np.isfinite(losses).all()
    found: dict[str, float] = {"seconds": statistics.median(seconds), "peak_bytes": peak_memory()}
    if isinstance(step, RobertaFlaxStep):
        assert "torch" not in sys.modules, "the memory of torch would count"
        found["program_bytes"] = step.program_bytes(shape)
    print(json.dumps(found))


def compare(size: str, dtype: str, shape: str, rounds: int, remat: bool, rank: int | None) -> None:
    """Measures two runners in fresh processes in turn, and prints their medians and ratios."""
    runners = (OURS, TORCH) if rank is None else (ADAPTERS, OURS)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name in runners:
            arguments = ["--runner", name, "--size", size, "--dtypes", dtype, "--shapes", shape]
            arguments += ["--remat"] if remat else []
            arguments += [] if rank is None else ["--lora", str(rank)]
            runs[name].append(run_in_fresh_process("benchmarks.train", *arguments))
    results = {name: medians(measurements) for name, measurements in runs.items()}
    for name, measurements in runs.items():
        seconds = [round(measurement["seconds"], 3) for measurement in measurements]
        print_record(shape=shape, dtype=dtype, runner=name, **results[name], rounds=seconds)
    ours, other = (results[name] for name in runners)
    ratios = {"speed": other["seconds"] / ours["seconds"], "memory": ours["peak_bytes"] / other["peak_bytes"]}
    if rank is not None:
        ratios["program memory"] = ours["program_bytes"] / other["program_bytes"]
    over = "torch" if rank is None else "the whole network"
    print_record(shape=shape, dtype=dtype, **{f"{name} over {over}": ratio for name, ratio in ratios.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("base", "large"), default="base")
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=("float32", "bfloat16"))
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="batch size x length")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--remat", action="store_true", help="rematerialize the layers in roberta-flax")
    parser.add_argument("--lora", type=int, metavar="RANK", help="compare with adapters of this rank, not with torch")
    parser.add_argument("--runner", choices=(OURS, TORCH, ADAPTERS), help=argparse.SUPPRESS)  # measures in this process
    options = parser.parse_args()
    if options.runner:
        measure_in_this_process(
            options.runner, options.size, options.dtypes[0], options.shapes[0], options.remat, options.lora
        )
        return
    for dtype in options.dtypes:
        for shape in options.shapes:
            compare(options.size, dtype, shape, options.rounds, options.remat, options.lora)


if __name__ == "__main__":
    main()
