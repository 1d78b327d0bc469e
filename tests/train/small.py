"""A run that takes a moment: a linear model with dropout and Adam, on a shuffled grain dataset.

Its train_step stands for the network's: what the loop does around it is the same. Run as a program it trains in the
directory that it is given.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint  # noqa: F401  (imported here for processes that are forked)

from roberta_flax.errors import RobertaFlaxError
from roberta_flax.train import loop

ROWS, WIDTH, BATCH = 64, 6, 8
PLAN = {"total_steps": 60, "validate_every": 6, "save_every": 4, "log_every": 5}


def rows() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    inputs = random.normal(size=(ROWS, WIDTH)).astype(np.float32)
    return inputs, (inputs @ np.arange(WIDTH) + random.normal(size=ROWS)).astype(np.float32)


def batches(seed: int = 7, batch: int = BATCH, bad: int | None = None, accumulate: int = 1) -> grain.DatasetIterator:
    """Batches of the rows, each epoch in another order; row `bad` is not a number."""
    inputs, targets = rows()
    if bad is not None:
        targets[bad] = np.nan

    def row(index: int) -> dict[str, np.ndarray]:
        return {"row": np.int32(index), "tokens": inputs[index], "targets": targets[index], "weights": np.float32(1)}

    @cache
    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng((seed, epoch)).permutation(ROWS)

    def shuffled(number: int) -> dict[str, np.ndarray]:
        epoch, place = divmod(number, ROWS)
        return row(int(order(epoch)[place]))

    data = grain.MapDataset.range(sys.maxsize).map(shuffled).batch(batch)
    if accumulate > 1:
        data = data.batch(accumulate)
    return iter(data.to_iter_dataset())


def schedule(update: Any) -> Any:
    return 0.1 / (1 + 0.1 * jnp.asarray(update))


OPTIMIZER = optax.chain(optax.clip_by_global_norm(5.0), optax.adam(schedule))


def params(dtype: Any = jnp.float32) -> dict[str, Any]:
    return {"layer": {"kernel": jnp.zeros((WIDTH,), dtype), "bias": jnp.zeros((), dtype)}}


def loss(params: Any, batch: Mapping[str, jax.Array], key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Squared error with a tenth of the inputs dropped: its mean, and the number of rows."""
    tokens = batch["tokens"].reshape(-1, WIDTH)
    kept = jax.random.bernoulli(key, 0.9, tokens.shape)
    error = jnp.where(kept, tokens / 0.9, 0) @ params["layer"]["kernel"] + params["layer"]["bias"]
    weights = batch["weights"].reshape(-1)
    size = weights.sum()
    return (weights * (error - batch["targets"].reshape(-1)) ** 2).sum() / size, size


@jax.jit(donate_argnums=(0, 1))
def train_step(params: Any, opt_state: Any, batch: Any, key: jax.Array) -> tuple[Any, Any, dict[str, jax.Array]]:
    (value, size), gradients = jax.value_and_grad(loss, has_aux=True)(params, batch, key)
    updates, opt_state = OPTIMIZER.update(gradients, opt_state, params)
    metrics = {"loss": value, "size": size, "gradient_norm": optax.tree.norm(gradients)}
    return optax.apply_updates(params, updates), opt_state, {name: x.astype(jnp.float32) for name, x in metrics.items()}


def validate(params: Any) -> dict[str, float]:
    inputs, targets = rows()
    answers = inputs @ np.asarray(params["layer"]["kernel"]) + np.asarray(params["layer"]["bias"])
    return {
        "loss": float(np.mean((answers - targets) ** 2)),
        "correlation": float(np.corrcoef(answers + 1e-9 * targets, targets)[0, 1]),
    }


def train(directory: Path, plan: Mapping[str, Any] | None = None, **options: Any) -> loop.Outcome:
    """A run in `directory`; `best` there has the best parameters."""

    def save_best(params: Any) -> None:
        aside = directory / "best.new"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        np.savez(aside / "model.npz", **{name: np.asarray(leaf) for name, leaf in params["layer"].items()})
        shutil.rmtree(directory / "best", ignore_errors=True)
        aside.rename(directory / "best")

    begin = options.pop("params", None)
    begin = params() if begin is None else begin
    given = {
        "plan": loop.Plan(**{**PLAN, **(plan or {})}),
        "batches": batches(),
        "config_note": {"data": "small"},
        "schedule": schedule,
        "validate": validate,
        "save_best": save_best,
        "progress": False,
        "train_step": train_step,
        **options,
    }
    step = given.pop("train_step")
    return loop.run(step, begin, OPTIMIZER.init(begin), given.pop("batches"), directory=directory, **given)


def in_a_process(directory: Path, started: Any = None, plan: Mapping[str, Any] | None = None) -> None:
    """As `train`, for a process of its own: tells when it has compiled, and leaves the last parameters in a file."""
    if started is not None:  # a process that will be killed: what it compiles is for those that come after it too
        jax.config.update("jax_compilation_cache_dir", str(directory.parent / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    taken = itertools.count(1)

    class Told:
        def __init__(self, data: grain.DatasetIterator) -> None:
            self.data, self.get_state, self.set_state = data, data.get_state, data.set_state

        def __next__(self) -> Any:
            if next(taken) == 3 and started is not None:
                started.set()
            return next(self.data)

    outcome = train(directory, plan, batches=Told(batches()))
    np.savez(directory / "last.npz", **{name: np.asarray(leaf) for name, leaf in outcome.params["layer"].items()})


if __name__ == "__main__":
    try:
        options = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
        train(Path(sys.argv[1]), options.pop("plan", None), **options)
    except RobertaFlaxError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)
