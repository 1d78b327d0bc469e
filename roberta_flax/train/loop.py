"""The training loop: run() does steps, validations, checkpoints and records, and resumes a run stopped at any moment.

  DIR/run.json        the run's configuration, which must be the same to resume (module directory)
  DIR/checkpoints/    parameters, the optimizer's state, and the position in the run and in the data (checkpoints)
  DIR/metrics.jsonl   metrics of logged steps and of validations; DIR/speed.jsonl, the time they took (records)

Everything that a step depends on is in a checkpoint or follows from the step's number. On one device, a run that was
killed and resumed therefore computes the same bits as an uninterrupted one.

Only validations and checkpoints wait for the devices. The results of a step are fetched while the next one runs.
"""

from __future__ import annotations

import ctypes
import json
import math
import operator
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from roberta_flax.errors import DivergedError, InputError, StoppedError, require_positive
from roberta_flax.extras import require
from roberta_flax.files import replacing
from roberta_flax.nn.forward import Params
from roberta_flax.nn.meshes import with_own_mesh
from roberta_flax.nn.sharding import DATA, everywhere, place_batch, replicated
from roberta_flax.remote import to_path
from roberta_flax.train import directory as run_directory
from roberta_flax.train import plots
from roberta_flax.train.checkpoints import Checkpoints, open_checkpoints
from roberta_flax.train.losses import HostBatch
from roberta_flax.train.mirror import Mirror, as_given
from roberta_flax.train.progress import Progress, report
from roberta_flax.train.progress import shown as show_progress
from roberta_flax.train.records import Recorded, Records, Stopwatch
from roberta_flax.train.signals import StopRequests

# step.TrainStep, or a function with the same signature.
StepFunction: TypeAlias = Callable[[Params, Any, Any, jax.Array], tuple[Params, Any, Mapping[str, jax.Array]]]
_MAX_PENDING_STEPS = 1  # dispatched steps whose results have not been fetched
_INTERVAL_SUMS = ("loss", "size", "gradient_norm", "steps")  # summed over the steps between two records
_MAX_QUOTED = 300  # maximum number of characters of a data position in a message
# Options that do not affect a run's numbers, so that it may be resumed with other values.
_CHANGEABLE_OPTIONS = frozenset(("save_every", "keep"))
# JAX's own settings that change a run's random numbers, dtypes or products.
_JAX_SETTINGS = (
    "jax_default_prng_impl", "jax_threefry_partitionable", "jax_random_seed_offset", "jax_enable_x64",
    "jax_default_matmul_precision", "jax_numpy_dtype_promotion",
)  # fmt: skip


class Batches(Protocol):
    """An endless iterator of batches whose state can be saved and restored, such as a grain.DatasetIterator."""

    def __next__(self) -> HostBatch: ...

    def get_state(self) -> dict[str, Any]:
        """Returns the position as a JSON object."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Moves to a position that get_state() returned."""


@dataclass(frozen=True)
class Plan:
    """The length of a run, and the intervals of its validations, checkpoints and records.

    Attributes:
      total_steps: number of steps in the whole run.
      validate_every: validate every N steps, and after the last step.
      save_every: save a checkpoint every N steps, and at the end.
      keep: number of checkpoints to keep, the newest ones.
      log_every: log metrics every N steps.
      patience: stop after N validations in a row without improvement (fairseq's --patience); None never stops early.
      best: the validation metric that selects the best model.
      maximize: whether a larger value is better.
      seed: seed of dropout. Step n, from 0, has the key jax.random.fold_in(jax.random.key(seed), n).

    Raises:
      InputError: a number is not positive.
    """

    total_steps: int
    validate_every: int
    save_every: int
    keep: int = 3
    log_every: int = 10
    patience: int | None = None
    best: str = "loss"
    maximize: bool = False
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("total_steps", "validate_every", "save_every", "keep", "log_every", "patience"):
            if name != "patience" or self.patience is not None:
                require_positive(**{name: getattr(self, name)})


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
      steps: number of steps done.
      best: the best value of the plan's metric; None if it was not a finite number in any validation.
      best_step: number of steps done at that validation.
      stopped: "done" after the last step, "patience" if the run stopped early.
      params: the parameters after the last step done.
    """

    steps: int
    best: float | None
    best_step: int | None
    stopped: Literal["done", "patience"]
    params: Params = field(repr=False)


@with_own_mesh
def run(
    train_step: StepFunction,
    params: Params,
    opt_state: Any,
    batches: Batches,
    *,
    plan: Plan,
    directory: Path,
    config_note: Mapping[str, Any],
    schedule: optax.Schedule | None = None,
    validate: Callable[[Params], Mapping[str, float]] | None = None,
    save_best: Callable[[Params], None] | None = None,
    check_best: Callable[[], None] | None = None,
    mesh: Mesh | None = None,
    accumulate: int = 1,
    tokens_of: Callable[[HostBatch], int] = lambda batch: batch["tokens"].size,
    tensorboard: bool = False,
    plot: bool = False,
    progress: bool = True,
    mirror: Mirror | None = None,
) -> Outcome:
    """Trains a model, or resumes a run that was stopped.

    On several hosts (jax.distributed), every process calls it with the same arguments and the same whole batches. The
    first process writes the records and calls save_best. All processes write checkpoints, so they must share
    `directory`.

    Args:
      train_step: a function (params, opt_state, batch, key) -> (params, opt_state, metrics), such as that of
        step.make_train_step. Its metrics are the scalars "loss" (a mean), "size" (the sum of weights that it was
        divided by) and "gradient_norm". It may donate params and opt_state, so do not use them after the call.
      params, opt_state: the initial state, already on the devices and sharded.
      batches: training batches from the beginning. If a run is resumed, their state is restored.
      plan: the length of the run and its intervals.
      directory: the run's directory.
      config_note: everything else that the run's numbers depend on (data, model, optimizer, ...), as a JSON object.
      schedule: the learning rate as a function of the number of steps before, for the records.
      validate: returns the metrics of parameters, the same on every process.
      save_best: saves the best parameters so far. After a kill it may be called again with the same ones.
      check_best: raises InputError if what save_best saved is gone. The first process calls it when a run resumes.
      mesh: devices whose DATA axis divides a batch's rows; without it, batches are on the default device.
      accumulate: number of batches in a step. If more than 1, a batch's arrays have a leading axis of that size.
      tokens_of: returns the number of tokens in a batch; by default padding is included.
      tensorboard: whether to write DIR/tensorboard.
      plot: whether to draw DIR/curves.png at the end.
      progress: whether to show progress on stderr.
      mirror: uploads `directory`, if that is the local one of a run at a URL (mirror.mirrored).

    Returns:
      How the run ended. If it had ended before, the same outcome is returned at once.

    Raises:
      InputError: another run is in the directory, a file cannot be written or read, a file of the run to resume is
        damaged or gone, the batches end or their rows do not divide over the mesh, or a validation lacks the plan's
        metric.
      DivergedError: a loss, a gradient or the state is not finite. Such a state is never saved in a checkpoint.
      StoppedError: SIGINT or SIGTERM was received. The current step has been finished and saved.
    """
    directory = Path(to_path(directory))  # one of this machine, also for a run at a URL
    if plot:
        require("matplotlib.figure", "train")  # fail before hours of training, not after
    if jax.process_count() > 1 and mesh is None:
        raise InputError("several processes need one mesh of all their devices; pass mesh")
    numbers = {name: value for name, value in asdict(plan).items() if name not in _CHANGEABLE_OPTIONS}
    run_config = {**config_note, "plan": {**numbers, "accumulate": accumulate}, "jax": _jax_settings()}
    first = jax.process_index() == 0
    with (
        run_directory.open_run(directory, run_config),
        open_checkpoints(directory / run_directory.CHECKPOINTS, plan.keep) as checkpoints,
    ):
        if mirror is not None:
            mirror.claim()
        placement = _Placement(mesh, accumulate)
        if mesh is not None:
            params, opt_state = replicated((params, opt_state), mesh)
        params, opt_state, state, recorded = _restored(directory, checkpoints, params, opt_state, batches, check_best)
        if progress and state.stopped is None and (directory / run_directory.METRICS_FILE).exists():
            done = f": resuming after step {state.step} of {plan.total_steps}"
            again = " has no checkpoint yet; the run starts over"
            report(f"{as_given(directory, mirror)}{done if state.step else again}")
        if state.stopped is None:
            with ExitStack() as stack:
                records = on_step = None
                if first:
                    records = stack.enter_context(Records(directory, state.step, recorded, tensorboard=tensorboard))
                if first and progress:
                    on_step = stack.enter_context(show_progress(plan.total_steps, state.step))
                loop = _Loop(
                    train_step=train_step,
                    params=params,
                    opt_state=opt_state,
                    batches=batches,
                    state=state,
                    plan=plan,
                    directory=directory,
                    checkpoints=checkpoints,
                    records=records,
                    on_step=on_step,
                    validate=validate,
                    save_best=save_best,
                    step_inputs=_make_step_inputs(plan.seed, schedule, mesh),
                    placement=placement,
                    tokens_of=tokens_of,
                    mirror=mirror,
                )
                loop.run(stack.enter_context(StopRequests()))
                params = loop.params
        if plot and first:
            plots.curves(directory / run_directory.METRICS_FILE, directory / run_directory.CURVES_FILE)
    assert state.stopped is not None, "the loop ended without a reason"
    return Outcome(state.step, state.best, state.best_step, state.stopped, params)


@dataclass
class _State:
    """The state of a run, which a checkpoint has in addition to arrays and the position in the data.

    Attributes:
      step: number of steps done and counted in the records.
      tokens: number of tokens trained on.
      best, best_step: as in Outcome.
      without_better: number of validations since the best one.
      stopped: why the run has ended; None if it has not.
      interval: sums over the steps since the last line in the records.
    """

    step: int = 0
    tokens: int = 0
    best: float | None = None
    best_step: int | None = None
    without_better: int = 0
    stopped: Literal["done", "patience"] | None = None
    interval: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_INTERVAL_SUMS, 0.0))


def _restored(
    directory: Path,
    checkpoints: Checkpoints,
    params: Params,
    opt_state: Any,
    batches: Batches,
    check_best: Callable[[], None] | None,
) -> tuple[Params, Any, _State, Recorded]:
    """Restores a run from its newest checkpoint, and checks that its other files are those that it left.

    Returns:
      The parameters, the optimizer's state, the state of the run, and what metrics.jsonl held; the given arrays and the
      state of a new run if there is no checkpoint.
    """
    latest = checkpoints.latest()
    if latest is None:
        run_directory.checked_by_first_process(lambda: run_directory.require_unfinished(directory))
        return params, opt_state, _State(), Recorded()
    params, opt_state, saved = checkpoints.restore(latest, params, opt_state)
    batches.set_state(saved.pop("data"))
    recorded = Recorded(**saved.pop("recorded"))
    state = _State(**saved)
    run_directory.checked_by_first_process(lambda: recorded.check(directory))
    if check_best is not None and state.best_step is not None:
        run_directory.checked_by_first_process(check_best)
    checkpoints.delete_old()  # now that the newest is known to be whole
    return params, opt_state, state, recorded


@dataclass(frozen=True)
class _PendingStep:
    """A step that has been dispatched to the devices, and whose results have not been fetched.

    Attributes:
      step: the step's number, from 1.
      batch: its batch.
      position: the position in the data before the batch.
      metrics, learning_rate: its results, on the device.
    """

    step: int
    batch: HostBatch
    position: str
    metrics: Mapping[str, jax.Array]
    learning_rate: jax.Array | None


@dataclass
class _Loop:
    """The loop of one process.

    Attributes:
      state: the state of the run.
      records: where the first process writes its records; None in the others.
      on_step: shows progress in the first process; None in the others, or if progress is off.
      step_inputs: a function of _make_step_inputs.
      placement: puts batches on the devices.
      The others are arguments of `run`.
    """

    train_step: StepFunction
    params: Params
    opt_state: Any
    batches: Batches
    state: _State
    plan: Plan
    directory: Path
    checkpoints: Checkpoints
    records: Records | None
    on_step: Progress | None
    validate: Callable[[Params], Mapping[str, float]] | None
    save_best: Callable[[Params], None] | None
    step_inputs: Callable[[int], tuple[jax.Array, jax.Array | None]]
    placement: _Placement
    tokens_of: Callable[[HostBatch], int]
    mirror: Mirror | None = None

    def __post_init__(self) -> None:
        self._pending: deque[_PendingStep] = deque()
        self._stopwatch = Stopwatch()

    def run(self, stops: StopRequests) -> None:
        """Does steps until the last one, until patience runs out, or until a signal arrives (StoppedError)."""
        plan, state = self.plan, self.state
        for step in range(state.step + 1, plan.total_steps + 1):
            self._dispatch(step)
            if len(self._pending) > _MAX_PENDING_STEPS:
                self._fetch_oldest()
            signal = stops.received(step)
            last = step == plan.total_steps
            validates = self.validate is not None and (step % plan.validate_every == 0 or last)
            if not (validates or last or signal or step % plan.save_every == 0):
                continue
            while self._pending:
                self._fetch_oldest()
            with self._stopwatch.stopped():
                self._require_finite(step)
                if last:
                    state.stopped = "done"
                if validates:
                    self._validate(step)
                if state.stopped or signal or step % plan.save_every == 0:
                    self._save(step)
            if state.stopped:
                return
            if signal:
                self.checkpoints.wait()
                raise StoppedError(
                    f"{signal.name}: stopped after {step} of {plan.total_steps} steps, which are saved in "
                    f"{self.directory}; rerun the command to resume",
                    signal,
                )

    def _dispatch(self, step: int) -> None:
        """Dispatches a step to the devices."""
        position = json.dumps(self.batches.get_state())
        try:
            batch = next(self.batches)
        except StopIteration:
            raise InputError(f"the training data ended before step {step}; it should repeat without end") from None
        key, learning_rate = self.step_inputs(step - 1)
        self.params, self.opt_state, metrics = self.train_step(
            self.params, self.opt_state, self.placement.place(batch), key
        )
        self._pending.append(_PendingStep(step, batch, position, metrics, learning_rate))

    def _fetch_oldest(self) -> None:
        """Waits for the oldest pending step, and adds its results to the state and the records."""
        pending = self._pending.popleft()
        metrics, learning_rate = jax.device_get((dict(pending.metrics), pending.learning_rate))
        loss, size, norm = (float(metrics[name]) for name in ("loss", "size", "gradient_norm"))
        for what, value in (("loss", loss), ("gradient's norm", norm)):
            if not math.isfinite(value):
                raise self._diverged(pending, what, value)
        tokens = self.tokens_of(pending.batch)
        self._stopwatch.count(tokens)
        self.state.step = pending.step
        self.state.tokens += tokens
        for name, value in zip(_INTERVAL_SUMS, (loss * size, size, norm, 1), strict=True):
            self.state.interval[name] += value
        if pending.step % self.plan.log_every == 0 or pending.step == self.plan.total_steps:
            self._log({} if learning_rate is None else {"learning_rate": float(learning_rate)})
        if self.on_step is not None:
            self.on_step(pending.step, loss, None if learning_rate is None else float(learning_rate), tokens)

    def _log(self, learning_rate: Mapping[str, float]) -> None:
        sums, self.state.interval = self.state.interval, dict.fromkeys(_INTERVAL_SUMS, 0.0)
        tokens, seconds = self._stopwatch.take()
        if self.records is None:
            return
        values = {
            "loss": sums["loss"] / sums["size"] if sums["size"] else 0.0,
            **learning_rate,
            "gradient_norm": sums["gradient_norm"] / sums["steps"],
            "size": sums["size"],
            "tokens": self.state.tokens,
        }
        self.records.training(self.state.step, values)
        self.records.speed(self.state.step, tokens, seconds)

    def _validate(self, step: int) -> None:
        """Validates, saves the parameters if they are the best so far, and ends the run if patience runs out."""
        assert self.validate is not None, "the caller checks this"
        plan, state = self.plan, self.state
        values = {name: float(value) for name, value in self.validate(self.params).items()}
        if plan.best not in values:
            raise InputError(
                f"the validation has no metric {plan.best!r} to select the best model, only {', '.join(values)}"
            )
        value = values[plan.best]
        better = math.isfinite(value) and (
            state.best is None or (value > state.best if plan.maximize else value < state.best)
        )
        if better:
            state.best, state.best_step, state.without_better = value, step, 0
            self._save_best()
        else:
            state.without_better += 1
            if plan.patience is not None and state.without_better >= plan.patience and state.stopped is None:
                state.stopped = "patience"
        if self.records is not None:
            self.records.validation(step, values, best=better)

    def _save_best(self) -> None:
        if self.save_best is None:
            return
        params = self.params
        if jax.process_count() > 1:  # the first process does not hold all shards
            params = multihost_utils.process_allgather(params, tiled=True)
        if jax.process_index() == 0:
            self.save_best(params)
        if jax.process_count() > 1:  # the others may read it from now on
            multihost_utils.sync_global_devices("best")

    def _save(self, step: int) -> None:
        recorded = Recorded() if self.records is None else self.records.sync()  # only the first process's is saved
        saved = {**asdict(self.state), "data": self.batches.get_state(), "recorded": asdict(recorded)}
        self.checkpoints.save(step, self.params, self.opt_state, json.loads(json.dumps(saved)))
        _return_freed_memory()
        if self.mirror is not None:
            self.checkpoints.wait()
            self.mirror.save()

    def _require_finite(self, step: int) -> None:
        """Raises DivergedError if the parameters or the optimizer's state are not finite, even if the loss was."""
        if not _all_finite((self.params, self.opt_state)):
            raise DivergedError(
                f"after step {step} the parameters or the optimizer's state are not finite; {self._advice()}"
            )

    def _diverged(self, pending: _PendingStep, what: str, value: float) -> DivergedError:
        """Saves the batch of a step that diverged, and returns the error that describes it."""
        file = self.directory / f"batch-{pending.step}.npz"
        if self.records is not None:
            with replacing(file) as content:
                np.savez(content, **dict(pending.batch))  # type: ignore[arg-type]  # of allow_pickle
        position = pending.position if len(pending.position) <= _MAX_QUOTED else pending.position[:_MAX_QUOTED] + "..."
        return DivergedError(
            f"step {pending.step}: the {what} is {value}; its batch, number {pending.step}, at position {position} in "
            f"the data, is saved in {file}; {self._advice()}"
        )

    def _advice(self) -> str:
        with suppress(InputError):  # a checkpoint that could not be written is not the latest
            self.checkpoints.wait()
        latest = self.checkpoints.latest()
        where = (
            "there is no checkpoint yet"
            if latest is None
            else (f"the last good checkpoint is {self.checkpoints.directory / str(latest)}")
        )
        return (
            f"{where}. The same command would diverge again; start in another directory with a lower learning rate, a "
            "longer warmup, or clipped gradients"
        )


def _return_freed_memory() -> None:
    """Has glibc return to the system what it keeps of freed memory, which grows with every checkpoint otherwise."""
    with suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _jax_settings() -> dict[str, Any]:
    return {name: getattr(jax.config, name) for name in _JAX_SETTINGS if hasattr(jax.config, name)}


class _Placement:
    """Puts batches on devices: their rows are divided over the mesh's DATA axis."""

    def __init__(self, mesh: Mesh | None, accumulate: int) -> None:
        self._mesh = mesh
        self._axis = int(accumulate > 1)

    def place(self, batch: HostBatch) -> dict[str, jax.Array]:
        """Puts a batch on the devices."""
        if self._mesh is None:
            placed: dict[str, jax.Array] = jax.device_put(dict(batch))
            return placed
        arrays = {name: np.asarray(array) for name, array in batch.items()}
        parts = self._mesh.shape[DATA]
        for name, array in arrays.items():
            if (rows := array.shape[self._axis]) % parts:
                raise InputError(
                    f"a batch's rows are divided over {parts} devices, and {name} has {rows} rows; choose a batch size "
                    f"that is a multiple of {parts}"
                )
        return place_batch(arrays, self._mesh, self._axis)


def _make_step_inputs(
    seed: int, schedule: optax.Schedule | None, mesh: Mesh | None
) -> Callable[[int], tuple[jax.Array, jax.Array | None]]:
    """Returns a function of the number of steps done that gives the dropout key, and the learning rate or None."""

    def inputs(step: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        key = jax.random.fold_in(jax.random.key(seed), step)
        return key, None if schedule is None else jnp.asarray(schedule(step), jnp.float32)

    whole = None if mesh is None else everywhere(mesh)
    compiled = jax.jit(inputs, out_shardings=whole)
    return lambda step: compiled(jax.device_put(np.int32(step), whole))


@jax.jit
def _are_finite(groups: Sequence[Sequence[jax.Array]]) -> jax.Array:
    return jnp.stack([reduce(operator.and_, map(jnp.isfinite, alike)).all() for alike in groups]).all()


def _all_finite(tree: Any) -> bool:
    """Reduces arrays of one shape and sharding together: a reduction for each takes six times as long to compile."""
    groups: dict[Any, list[jax.Array]] = {}
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            groups.setdefault((leaf.shape, getattr(leaf, "sharding", None)), []).append(leaf)
    return bool(np.asarray(_are_finite([*groups.values()])))
