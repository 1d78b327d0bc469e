"""run(): steps, validation, checkpoints, records, to the last step; stopped at any moment, it goes on from there.

  DIR/run.json        the run's configuration; a run resumes only with the same (directory)
  DIR/checkpoints/    parameters, the optimizer's state, where the run is and where in the data (checkpoints)
  DIR/metrics.jsonl   what each logged step and each validation gave; DIR/speed.jsonl, how long it took (records)

Everything that a step depends on is in a checkpoint or follows from the step's number, so that on one device a run
that was killed and started again computes the same bits as one that was not.

Nothing waits for a device but validations and checkpoints: what a step gave is fetched when the next one is on its
way.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from roberta_flax.errors import DivergedError, InputError, StoppedError, require_positive
from roberta_flax.extras import require
from roberta_flax.files import replacing
from roberta_flax.nn.forward import Params
from roberta_flax.nn.sharding import DATA, place_batch
from roberta_flax.train import directory as layout
from roberta_flax.train import plots
from roberta_flax.train.checkpoints import Checkpoints, open_checkpoints
from roberta_flax.train.losses import HostBatch
from roberta_flax.train.progress import Progress
from roberta_flax.train.progress import shown as progress_on_stderr
from roberta_flax.train.records import Records, Stopwatch
from roberta_flax.train.signals import StopRequests

# step.TrainStep, or a function like it
StepFunction: TypeAlias = Callable[[Params, Any, Any, jax.Array], tuple[Params, Any, Mapping[str, jax.Array]]]
_LAG = 1  # steps under way whose results are not waited for
_SUMS = ("loss", "size", "gradient_norm", "steps")  # of an interval
_SHOWN = 300  # characters of a position in the data
# what a run's numbers do not depend on, so that it may go on with others
_FREE = frozenset(("save_every", "keep"))


class Batches(Protocol):
    """Batches without end, in an order that their state determines; a grain.DatasetIterator is one."""

    def __next__(self) -> HostBatch: ...

    def get_state(self) -> dict[str, Any]:
        """Where it is, as JSON has it."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes there."""


@dataclass(frozen=True)
class Plan:
    """How long a run is, and what is done on the way.

    Attributes:
      total_steps: the steps of the whole run.
      validate_every: steps between validations; there is one after the last step too.
      save_every: steps between checkpoints; there is one at the end too.
      keep: the newest checkpoints that stay.
      log_every: steps that a line of metrics.jsonl is of.
      patience: the run ends after so many validations without a better one (fairseq's --patience); None: never.
      best: the validation metric that says which is better.
      maximize: whether more of it is better.
      seed: of dropout: step n, from 0, has the key jax.random.fold_in(jax.random.key(seed), n).

    Raises:
      InputError: a number that is not positive.
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
      steps: those done.
      best: the best value of the plan's metric, if there was a validation in which it was a number.
      best_step: the steps done then.
      stopped: "done" after the last step, "patience" before it.
      params: the parameters after the last step.
    """

    steps: int
    best: float | None
    best_step: int | None
    stopped: Literal["done", "patience"]
    params: Params = field(repr=False)


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
    mesh: Mesh | None = None,
    accumulate: int = 1,
    tokens_of: Callable[[HostBatch], int] = lambda batch: batch["tokens"].size,
    tensorboard: bool = False,
    plot: bool = False,
    progress: bool = True,
) -> Outcome:
    """Trains, or goes on with a run that was stopped.

    On several hosts (jax.distributed) every process calls it with the same arguments and the same, whole batches; the
    first writes the records, and calls save_best. All write checkpoints: `directory` must be one that all see.

    Args:
      train_step: (params, opt_state, batch, key) -> (params, opt_state, metrics) with the scalars "loss" (the mean),
        "size" (what it is the mean of) and "gradient_norm" in metrics; step.make_train_step makes one. It may take the
        buffers of params and opt_state, so they are not to be used after the call.
      params, opt_state: to begin with; on the devices, and divided over them, as they are to be.
      batches: of training, from the beginning; its state is set where a run goes on.
      plan: how long, and what on the way.
      directory: the run's.
      config_note: what the numbers depend on beside the plan (the data, the model, the optimizer, ...), as JSON has it.
      schedule: the learning rate by the steps done before, for the records.
      validate: metrics of parameters, the same on every process.
      save_best: keeps parameters that are the best so far. It may be called with the same ones again after a kill.
      mesh: devices whose DATA axis divides a batch's rows; without it a batch goes to the default device.
      accumulate: batches that a step is of; if more than one, a batch's arrays have a leading axis of that size.
      tokens_of: the tokens of a batch; if not given, padding is counted too.
      tensorboard: whether to write DIR/tensorboard.
      plot: whether to draw DIR/curves.png at the end.
      progress: whether to show how far the run is on stderr.

    Returns:
      How it ended. A run that has ended and is started again returns the same at once.

    Raises:
      InputError: another run is in the directory; a file cannot be written or read; batches that end, or do not divide
        over the mesh; a validation without the plan's metric.
      DivergedError: a loss, a gradient or the state is not finite. No such state is in a checkpoint.
      StoppedError: SIGINT or SIGTERM. The last step is finished and saved.
    """
    if plot:
        require("matplotlib.figure", "train")  # before hours of training
    if jax.process_count() > 1 and mesh is None:
        raise InputError("several processes train on one mesh of all their devices; give mesh")
    numbers = {name: value for name, value in asdict(plan).items() if name not in _FREE}
    run_config = {**config_note, "plan": {**numbers, "accumulate": accumulate}}
    first = jax.process_index() == 0
    with (
        layout.open_run(directory, run_config),
        open_checkpoints(directory / layout.CHECKPOINTS, plan.keep) as checkpoints,
    ):
        place = _Placement(mesh, accumulate)
        params, opt_state = place.everywhere((params, opt_state))
        latest = checkpoints.latest()
        state = _State()
        if latest is not None:
            params, opt_state, saved = checkpoints.restore(latest, params, opt_state)
            batches.set_state(saved.pop("data"))
            state = _State(**saved)
        if state.stopped is None:
            with ExitStack() as stack:
                recorder = shown = None
                if first:
                    recorder = stack.enter_context(Records(directory, state.step, tensorboard=tensorboard))
                if first and progress:
                    shown = stack.enter_context(progress_on_stderr(plan.total_steps, state.step))
                loop = _Loop(
                    train_step=train_step,
                    params=params,
                    opt_state=opt_state,
                    batches=batches,
                    state=state,
                    plan=plan,
                    directory=directory,
                    checkpoints=checkpoints,
                    records=recorder,
                    shown=shown,
                    validate=validate,
                    save_best=save_best,
                    inputs_of=_inputs_of(plan.seed, schedule, mesh),
                    place=place,
                    tokens_of=tokens_of,
                )
                loop.run(stack.enter_context(StopRequests()))
                params = loop.params
        if plot and first:
            plots.curves(directory / layout.METRICS_FILE, directory / layout.CURVES_FILE)
    assert state.stopped is not None, "the loop has ended"
    return Outcome(state.step, state.best, state.best_step, state.stopped, params)


@dataclass
class _State:
    """Where a run is: what a checkpoint has beside arrays and the position in the data.

    Attributes:
      step: those done, and in the records.
      tokens: trained on.
      best, best_step: as in Outcome.
      without_better: validations since then.
      stopped: why the run has ended, if it has.
      interval: sums over the steps since the last line of the records.
    """

    step: int = 0
    tokens: int = 0
    best: float | None = None
    best_step: int | None = None
    without_better: int = 0
    stopped: Literal["done", "patience"] | None = None
    interval: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_SUMS, 0.0))


@dataclass(frozen=True)
class _UnderWay:
    """A step that a device has been given.

    Attributes:
      step: its number, from 1.
      batch: what it is of.
      position: where the data was before it.
      metrics, learning_rate: what it gives, on the device.
    """

    step: int
    batch: HostBatch
    position: str
    metrics: Mapping[str, jax.Array]
    learning_rate: jax.Array | None


@dataclass
class _Loop:
    """A run under way.

    Attributes:
      state: where it is.
      records, shown: of the first process; None elsewhere, and where progress is not to be shown.
      inputs_of: as _inputs_of makes it.
      place: puts a batch on the devices.
      Others as in `run`.
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
    shown: Progress | None
    validate: Callable[[Params], Mapping[str, float]] | None
    save_best: Callable[[Params], None] | None
    inputs_of: Callable[[int], tuple[jax.Array, jax.Array | None]]
    place: _Placement
    tokens_of: Callable[[HostBatch], int]

    def __post_init__(self) -> None:
        self._under_way: deque[_UnderWay] = deque()
        self._watch = Stopwatch()

    def run(self, stops: StopRequests) -> None:
        """Steps until the last, or until the plan's patience ends or a signal comes (StoppedError)."""
        plan, state = self.plan, self.state
        for step in range(state.step + 1, plan.total_steps + 1):
            self._begin(step)
            if len(self._under_way) > _LAG:
                self._settle()
            signal = stops.received(step)
            last = step == plan.total_steps
            validates = self.validate is not None and (step % plan.validate_every == 0 or last)
            if not (validates or last or signal or step % plan.save_every == 0):
                continue
            while self._under_way:
                self._settle()
            with self._watch.stopped():
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

    def _begin(self, step: int) -> None:
        """Gives the devices a step to do."""
        position = json.dumps(self.batches.get_state())
        try:
            batch = next(self.batches)
        except StopIteration:
            raise InputError(f"the training data ended before step {step}; it should repeat without end") from None
        key, learning_rate = self.inputs_of(step - 1)
        self.params, self.opt_state, metrics = self.train_step(self.params, self.opt_state, self.place(batch), key)
        self._under_way.append(_UnderWay(step, batch, position, metrics, learning_rate))

    def _settle(self) -> None:
        """Waits for the oldest step under way, and takes what it gave into the records."""
        work = self._under_way.popleft()
        metrics, learning_rate = jax.device_get((dict(work.metrics), work.learning_rate))
        loss, size, norm = (float(metrics[name]) for name in ("loss", "size", "gradient_norm"))
        for what, value in (("loss", loss), ("gradient's norm", norm)):
            if not math.isfinite(value):
                raise self._diverged(work, what, value)
        tokens = self.tokens_of(work.batch)
        self._watch.count(tokens)
        self.state.step = work.step
        self.state.tokens += tokens
        for name, value in zip(_SUMS, (loss * size, size, norm, 1), strict=True):
            self.state.interval[name] += value
        if work.step % self.plan.log_every == 0 or work.step == self.plan.total_steps:
            self._log({} if learning_rate is None else {"learning_rate": float(learning_rate)})
        if self.shown is not None:
            self.shown(work.step, loss, None if learning_rate is None else float(learning_rate), tokens)

    def _log(self, learning_rate: Mapping[str, float]) -> None:
        sums, self.state.interval = self.state.interval, dict.fromkeys(_SUMS, 0.0)
        tokens, seconds = self._watch.take()
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
        """Validates, keeps the parameters if they are the best, and ends the run where patience ends."""
        assert self.validate is not None, "asked before"
        plan, state = self.plan, self.state
        values = {name: float(value) for name, value in self.validate(self.params).items()}
        if plan.best not in values:
            raise InputError(f"the validation has no {plan.best!r} to say which is best, only {', '.join(values)}")
        value = values[plan.best]
        better = math.isfinite(value) and (
            state.best is None or (value > state.best if plan.maximize else value < state.best)
        )
        if better:
            state.best, state.best_step, state.without_better = value, step, 0
            self._keep_best()
        else:
            state.without_better += 1
            if plan.patience is not None and state.without_better >= plan.patience and state.stopped is None:
                state.stopped = "patience"
        if self.records is not None:
            self.records.validation(step, values, best=better)

    def _keep_best(self) -> None:
        if self.save_best is None:
            return
        params = self.params
        if jax.process_count() > 1:  # the first has not all parts of them
            params = multihost_utils.process_allgather(params, tiled=True)
        if jax.process_index() == 0:
            self.save_best(params)
        if jax.process_count() > 1:  # others may read it then
            multihost_utils.sync_global_devices("best")

    def _save(self, step: int) -> None:
        if self.records is not None:
            self.records.sync()
        saved = {**asdict(self.state), "data": self.batches.get_state()}
        self.checkpoints.save(step, self.params, self.opt_state, json.loads(json.dumps(saved)))

    def _require_finite(self, step: int) -> None:
        """Raises DivergedError where the parameters or the optimizer's state are not finite, though the loss was."""
        if not _all_finite((self.params, self.opt_state)):
            raise DivergedError(
                f"after step {step} the parameters or the optimizer's state are not finite; {self._advice()}"
            )

    def _diverged(self, work: _UnderWay, what: str, value: float) -> DivergedError:
        file = self.directory / f"batch-{work.step}.npz"
        if self.records is not None:
            with replacing(file) as content:
                np.savez(content, **dict(work.batch))  # type: ignore[arg-type]  # of allow_pickle
        position = work.position if len(work.position) <= _SHOWN else work.position[:_SHOWN] + "..."
        return DivergedError(
            f"step {work.step}: the {what} is {value}; its batch is number {work.step}, at {position} in the "
            f"data, and is kept in {file}; {self._advice()}"
        )

    def _advice(self) -> str:
        with suppress(InputError):  # what could not be written is not the latest then
            self.checkpoints.wait()
        latest = self.checkpoints.latest()
        where = (
            "there is no checkpoint yet"
            if latest is None
            else (f"the last good checkpoint is {self.checkpoints.directory / str(latest)}")
        )
        return (
            f"{where}. The same command would diverge again: start in another directory with a lower learning rate, a "
            "longer warm-up, or clipped gradients"
        )


class _Placement:
    """Where arrays are: batches' rows divided over the mesh's DATA axis, others on all its devices."""

    def __init__(self, mesh: Mesh | None, accumulate: int) -> None:
        self._mesh = mesh
        self._axis = int(accumulate > 1)

    def __call__(self, batch: HostBatch) -> dict[str, jax.Array]:
        if self._mesh is None:
            placed: dict[str, jax.Array] = jax.device_put(dict(batch))
            return placed
        arrays = {name: np.asarray(array) for name, array in batch.items()}
        parts = self._mesh.shape[DATA]
        for name, array in arrays.items():
            if (rows := array.shape[self._axis]) % parts:
                raise InputError(
                    f"a batch's rows are divided over {parts} devices; {name} has {rows}: "
                    "choose a batch size that is a multiple"
                )
        return place_batch(arrays, self._mesh, self._axis)

    def everywhere(self, tree: Any) -> Any:
        """A tree whose arrays that are not on the mesh yet (an optimizer's count, say) are whole on all of it."""
        if self._mesh is None:
            return tree
        devices = set(self._mesh.devices.flat)
        whole = NamedSharding(self._mesh, PartitionSpec())  # type: ignore[no-untyped-call]

        def placed(leaf: jax.Array) -> jax.Array:
            if isinstance(leaf, jax.Array) and leaf.sharding.device_set == devices:
                return leaf
            values = np.asarray(leaf)
            return jax.make_array_from_callback(values.shape, whole, lambda index: values[index])

        return jax.tree.map(placed, tree)


def _inputs_of(
    seed: int, schedule: optax.Schedule | None, mesh: Mesh | None
) -> Callable[[int], tuple[jax.Array, jax.Array | None]]:
    """A function of the number of steps done: dropout's key, and the learning rate where there is a schedule."""

    def inputs(step: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        key = jax.random.fold_in(jax.random.key(seed), step)
        return key, None if schedule is None else jnp.asarray(schedule(step), jnp.float32)

    everywhere = None if mesh is None else NamedSharding(mesh, PartitionSpec())  # type: ignore[no-untyped-call]
    compiled = jax.jit(inputs, out_shardings=everywhere)
    return lambda step: compiled(np.int32(step))


@jax.jit
def _finite(tree: Any) -> jax.Array:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()


def _all_finite(tree: Any) -> bool:
    return bool(np.asarray(_finite(tree)))
