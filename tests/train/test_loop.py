"""The loop: it goes on from any moment with the same bits, keeps no state that is not finite, and says what happened."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import struct
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("grain")
pytest.importorskip("orbax.checkpoint")

from roberta_flax import cli
from roberta_flax.cli import program
from roberta_flax.errors import DivergedError, InputError, StoppedError
from roberta_flax.train import loop, plots
from tests import processes
from tests.conftest import ROOT, Started
from tests.train import small

RUN = [sys.executable, "-m", "tests.train.small"]
SHORT = {"total_steps": 24, "save_every": 2}
PLAN = {"total_steps": 30}  # nearly four epochs


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def steps(directory: Path) -> list[int]:
    return sorted(int(path.name) for path in (directory / "checkpoints").iterdir() if path.name.isdecimal())


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def leaves(params) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(params)]


def assert_same_run(one: Path, other: Path) -> None:
    """The same records, best model and last parameters, byte for byte."""
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    assert (one / "best" / "model.npz").read_bytes() == (other / "best" / "model.npz").read_bytes()
    assert steps(one)[-1] == steps(other)[-1]
    saved = [restored(path, steps(path)[-1]) for path in (one, other)]
    assert saved[0][1] == saved[1][1]
    for a, b in zip(leaves(saved[0][0]), leaves(saved[1][0]), strict=True):
        assert a.tobytes() == b.tobytes()


def restored(directory: Path, step: int) -> tuple[dict, dict]:
    """A checkpoint's arrays and the rest of it, read by orbax without the loop."""
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(directory.resolve() / "checkpoints") as manager:
        args = ocp.args.Composite(state=ocp.args.StandardRestore(), progress=ocp.args.JsonRestore())
        saved = manager.restore(step, args=args)
    return saved.state, saved.progress


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("undisturbed") / "run"
    small.train(directory, PLAN)
    return directory


# what a run computes and records


@pytest.mark.slow
def test_a_run_computes_what_its_definition_says(tmp_path):
    """The same updates, written out: each batch once, in order, with the key of its number."""
    outcome = small.train(tmp_path / "run", PLAN)
    params, state = small.params(), small.OPTIMIZER.init(small.params())
    data, losses, norms = small.batches(), [], []
    for update in range(30):
        key = jax.random.fold_in(jax.random.key(1), update)
        params, state, metrics = small.train_step(params, state, next(data), key)
        losses.append(float(metrics["loss"]))
        norms.append(float(metrics["gradient_norm"]))
    for found, expected in zip(leaves(outcome.params), leaves(params), strict=True):
        assert found.tobytes() == expected.tobytes()
    records = lines(tmp_path / "run" / "metrics.jsonl")
    training = [line for line in records if "loss" in line]
    assert [line["step"] for line in training] == list(range(5, 31, 5))
    for line in training:
        last = line["step"]
        assert line["loss"] == pytest.approx(np.mean(losses[last - 5 : last]), rel=1e-6)
        assert line["gradient_norm"] == pytest.approx(np.mean(norms[last - 5 : last]), rel=1e-6)
        assert line["learning_rate"] == pytest.approx(0.1 / (1 + 0.1 * (last - 1)), rel=1e-6)
        assert (line["size"], line["tokens"]) == (5 * small.BATCH, last * small.BATCH * small.WIDTH)
    validations = [line for line in records if "valid_loss" in line]
    assert [line["step"] for line in validations] == list(range(6, 31, 6))
    best = min(validations, key=lambda line: line["valid_loss"])
    assert (outcome.steps, outcome.stopped, outcome.best_step) == (30, "done", best["step"])
    assert outcome.best == pytest.approx(best["valid_loss"], rel=1e-6)
    assert steps(tmp_path / "run") == [24, 28, 30]
    speed = lines(tmp_path / "run" / "speed.jsonl")
    assert [line["step"] for line in speed] == list(range(5, 31, 5))
    assert all(line["tokens"] == 5 * small.BATCH * small.WIDTH and line["seconds"] > 0 for line in speed)


@pytest.mark.slow
def test_two_runs_of_one_command_have_the_same_bytes_and_a_finished_one_is_not_run_again(undisturbed, tmp_path):
    first = small.train(tmp_path / "run", PLAN)
    assert_same_run(tmp_path / "run", undisturbed)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.npz")}
    again = small.train(tmp_path / "run", PLAN, train_step=None)
    assert dataclass_without_params(again) == dataclass_without_params(first)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(leaves(again.params), leaves(first.params), strict=True))
    assert {path: path.stat().st_mtime_ns for path in before} == before


def dataclass_without_params(outcome: loop.Outcome) -> tuple:
    return outcome.steps, outcome.best, outcome.best_step, outcome.stopped


class Scalar:
    """A number on a device: says when it is waited for."""

    def __init__(self, events: list[str], update: int, value: float) -> None:
        self.events, self.update, self.value = events, update, value

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        if (event := f"wait {self.update}") not in self.events:
            self.events.append(event)
        return np.float32(self.value)


@pytest.mark.slow
def test_nothing_is_waited_for_before_the_next_update_is_on_its_way(tmp_path):
    events: list[str] = []

    def step(params, opt_state, batch, key):
        update = sum(event.startswith("update") for event in events) + 1
        events.append(f"update {update}")
        return params, opt_state, {n: Scalar(events, update, 1.0) for n in ("loss", "size", "gradient_norm")}

    small.train(tmp_path / "run", {"total_steps": 8, "save_every": 4}, train_step=step, validate=None)
    order = "update 1 update 2 wait 1 update 3 wait 2 update 4 wait 3 wait 4"  # a checkpoint after 4, and 8
    order += " update 5 update 6 wait 5 update 7 wait 6 update 8 wait 7 wait 8"
    assert " ".join(events) == order


@pytest.mark.slow
def test_the_best_is_kept_and_patience_ends_a_run(tmp_path):
    series = iter([0.5, 0.6, float("nan"), 0.7, 0.7, 0.6, 0.9])
    kept: list[float] = []
    values: list[float] = []

    def validate(params) -> dict[str, float]:
        values.append(next(series))
        return {"accuracy": values[-1]}

    plan = {"total_steps": 100, "validate_every": 2, "best": "accuracy", "maximize": True, "patience": 2}
    options = {"validate": validate, "save_best": lambda params: kept.append(values[-1])}
    outcome = small.train(tmp_path / "run", plan, **options)
    assert dataclass_without_params(outcome) == (12, 0.7, 8, "patience")
    assert kept == [0.5, 0.6, 0.7]  # an equal one is not better
    records = [line for line in lines(tmp_path / "run" / "metrics.jsonl") if "best" in line]
    assert [line["best"] for line in records] == [True, True, False, True, False, False]
    assert records[2]["valid_accuracy"] is None
    assert steps(tmp_path / "run")[-1] == 12
    assert dataclass_without_params(small.train(tmp_path / "run", plan, **options)) == (12, 0.7, 8, "patience")
    with pytest.raises(InputError, match="the validation has no metric 'f1' to select the best model, only accuracy"):
        small.train(tmp_path / "f1", {**plan, "best": "f1"}, validate=lambda params: {"accuracy": 0.5})


# killed, stopped


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(forked, tmp_path):
    """kill -9 at random moments, ten times or more over a few runs; with saves this close, most are during one."""
    small.in_a_process(tmp_path / "whole", plan=SHORT)
    expected = arrays(tmp_path / "whole" / "last.npz")
    random = np.random.default_rng(0)
    kills, during_a_save, runs = 0, 0, 0
    while kills < 10 or (during_a_save < 5 and kills < 40):
        directory = tmp_path / f"run{runs}"
        runs += 1
        while True:
            started = forked.Event()
            process = forked.Process(target=small.in_a_process, args=(directory, started, SHORT))
            process.start()
            while process.is_alive() and not started.wait(0.05):  # it may have but an update or two to do
                pass
            process.join(random.uniform(0, 0.4))
            if process.exitcode is not None:
                break
            process.kill()
            process.join()
            kills += 1
            during_a_save += any("tmp" in path.name for path in (directory / "checkpoints").iterdir())
        assert process.exitcode == 0
        assert_same_run(directory, tmp_path / "whole")
        assert len(steps(directory)) <= 3
        assert not [path for path in (directory / "checkpoints").iterdir() if not path.name.isdecimal()]
        last = arrays(directory / "last.npz")
        assert all(last[name].tobytes() == expected[name].tobytes() for name in expected)
    assert during_a_save >= 5


@pytest.mark.slow
def test_what_a_kill_left_beyond_the_newest_few_is_deleted_when_the_run_is_opened(undisturbed, tmp_path):
    """Killed between its last checkpoint and the deletion of the oldest, a run has nothing more to save."""
    shutil.copytree(undisturbed, tmp_path / "run")
    for left in ("16", "20"):
        shutil.copytree(tmp_path / "run" / "checkpoints" / "24", tmp_path / "run" / "checkpoints" / left)
    small.train(tmp_path / "run", PLAN)
    assert steps(tmp_path / "run") == [24, 28, 30]
    assert_same_run(tmp_path / "run", undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_after_the_update_and_the_same_command_goes_on(undisturbed, tmp_path, number):
    def step(params, opt_state, batch, key):
        if next(count) == 13:
            os.kill(os.getpid(), number)
        return small.train_step(params, opt_state, batch, key)

    count = iter(range(1, 100))
    before = signal.getsignal(number)
    with pytest.raises(StoppedError) as stopped:
        small.train(tmp_path / "run", PLAN, train_step=step)
    assert signal.getsignal(number) == before
    assert str(stopped.value) == (
        f"{number.name}: stopped after 13 of 30 steps, which are saved in {tmp_path / 'run'}; "
        "rerun the command to resume"
    )
    assert steps(tmp_path / "run")[-1] == 13
    small.train(tmp_path / "run", PLAN)
    assert_same_run(tmp_path / "run", undisturbed)


@pytest.mark.slow
def test_a_network_that_is_stopped_twice_ends_with_the_same_bits(one_layer, sick_pairs, tmp_path):
    """A layer of the embedded model, with dropout, frozen embeddings and fairseq's optimizer."""
    import grain

    import roberta_flax
    from roberta_flax import train

    roberta = roberta_flax.load(one_layer)
    examples = [np.asarray(roberta.encode(*pair)) for pair in sick_pairs[:40]]

    def row(index: int) -> dict[str, np.ndarray]:
        tokens = np.full(96, roberta.config.pad_id, np.int32)
        tokens[: len(examples[index])] = examples[index]
        return {"tokens": tokens, "targets": np.int32(index % 3), "weights": np.float32(1)}

    schedule = train.polynomial_decay(1e-3, warmup_steps=2, total_steps=8)
    optimizer = train.adam(schedule, config=roberta.config, clip_norm=1.0)
    update = train.make_train_step(train.head_loss("mnli", config=roberta.config), optimizer, freeze=("embeddings",))

    def run(directory: Path, stop_at: int) -> loop.Outcome:
        def step(*arguments):
            if next(count) == stop_at:
                os.kill(os.getpid(), signal.SIGINT)
            return update(*arguments)

        count = iter(range(100))
        params = jax.tree.map(jnp.copy, roberta.params)
        data = grain.MapDataset.source(np.random.default_rng(1).permutation(40)).repeat().map(row).batch(4)
        return loop.run(
            step, params, train.init_optimizer(optimizer, params, ("embeddings",)), iter(data.to_iter_dataset()),
            plan=loop.Plan(total_steps=8, validate_every=4, save_every=3, log_every=1),
            directory=directory, config_note={}, schedule=schedule, progress=False,
        )  # fmt: skip

    whole = run(tmp_path / "whole", -1)
    for stop_at in (1, 2):  # of each process's own
        with pytest.raises(StoppedError):
            run(tmp_path / "parts", stop_at)
    parts = run(tmp_path / "parts", -1)
    for one, other in zip(leaves(whole.params), leaves(parts.params), strict=True):
        assert one.tobytes() == other.tobytes()
    records = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "parts")]
    assert records[0] == records[1]
    assert np.array_equal(leaves(parts.params["embeddings"])[0], leaves(roberta.params["embeddings"])[0])
    assert not np.array_equal(leaves(parts.params["heads"])[0], leaves(roberta.params["heads"])[0])


@pytest.mark.slow
def test_a_run_outside_the_main_thread_takes_no_signals(undisturbed, tmp_path):
    thread = threading.Thread(target=small.train, args=(tmp_path / "run", PLAN))
    thread.start()
    thread.join()
    assert_same_run(tmp_path / "run", undisturbed)


def test_the_command_line_ends_with_the_signals_number(monkeypatch, capsys):
    def app(**_: object) -> None:
        raise StoppedError("SIGTERM: stopped", signal.SIGTERM)

    monkeypatch.setattr(program, "app", app)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 143
    assert capsys.readouterr().err == "roberta-flax: SIGTERM: stopped\n"


@pytest.mark.slow
def test_a_run_goes_on_only_with_what_was_asked_first(tmp_path):
    small.train(tmp_path / "run", {"total_steps": 8})
    with pytest.raises(
        InputError, match=r"has another run \(data was 'small' and is 'other', plan.seed was 1 and is 2\)"
    ):
        small.train(tmp_path / "run", {"total_steps": 8, "seed": 2}, config_note={"data": "other"})
    small.train(tmp_path / "run", {"total_steps": 8, "save_every": 1, "keep": 1})
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "run.json").unlink()
    with pytest.raises(InputError, match=r"run.best exists already; remove it or choose another directory"):
        small.train(tmp_path / "run")


@pytest.mark.slow
def test_two_runs_do_not_train_in_one_directory_at_once(tmp_path):
    told: list[str] = []

    def validate(params) -> dict[str, float]:
        with pytest.raises(InputError) as error:
            small.train(tmp_path / "run")
        told.append(str(error.value))
        return small.validate(params)

    small.train(tmp_path / "run", {"total_steps": 6}, validate=validate)
    assert told == [f"another process is training in {tmp_path / 'run'} already; wait for it, or stop it"]


# numbers that are none


@pytest.mark.slow
@pytest.mark.parametrize(("bad", "accumulate"), [(3, 1), (40, 1), (3, 2)])
def test_a_nan_loss_names_the_update_the_batch_and_the_last_good_checkpoint(tmp_path, bad, accumulate):
    data, update = small.batches(accumulate=accumulate), 0
    while True:
        update += 1
        position, batch = data.get_state(), next(data)
        if bad in batch["row"]:
            break
    plan = {"total_steps": 60, "save_every": 2, "validate_every": 100}
    options = {"batches": small.batches(bad=bad, accumulate=accumulate), "accumulate": accumulate}
    good = (update - 1) // 2 * 2
    with pytest.raises(DivergedError) as error:
        small.train(tmp_path / "run", plan, **options)
    text = str(error.value)
    assert text.startswith(
        f"step {update}: the loss is nan; its batch, number {update}, at position {json.dumps(position)} "
    )
    last = f"the last good checkpoint is {tmp_path / 'run' / 'checkpoints' / str(good)}"
    assert (f"; {last}. " if good else "; there is no checkpoint yet. ") in text
    assert "\n" not in text
    kept = arrays(tmp_path / "run" / f"batch-{update}.npz")
    assert kept.keys() == batch.keys()
    assert np.array_equal(kept["row"], batch["row"])
    assert steps(tmp_path / "run")[-1:] == [good][: good // 2]
    for step in steps(tmp_path / "run"):
        assert all(np.isfinite(leaf).all() for leaf in leaves(restored(tmp_path / "run", step)[0]))


@pytest.mark.slow
@pytest.mark.parametrize("broken", range(1, 6))
def test_a_state_that_is_not_finite_is_never_saved(tmp_path, broken):
    """The loss and the gradient of the update are finite, what comes of it is not."""
    count = iter(range(1, 100))

    def step(params, opt_state, batch, key):
        params, opt_state, metrics = small.train_step(params, opt_state, batch, key)
        factor = jnp.inf if next(count) == broken else 1.0
        layer = params["layer"]  # one array of many, and not the first
        return {"layer": {**layer, "kernel": layer["kernel"] * factor}}, opt_state, metrics

    with pytest.raises(DivergedError, match=r"the loss is|not finite") as error:
        small.train(tmp_path / "run", {"save_every": 1 if broken % 2 else 3}, train_step=step, save_best=None)
    for saved in steps(tmp_path / "run"):
        assert saved < broken
        assert all(np.isfinite(leaf).all() for leaf in leaves(restored(tmp_path / "run", saved)[0]))
    if broken == 1:
        assert "there is no checkpoint yet" in str(error.value)


# disks


@pytest.mark.slow
def test_a_disk_that_is_full_ends_in_one_line_and_the_run_goes_on_when_there_is_room(start, undisturbed, tmp_path):
    """RLIMIT_FSIZE stands for the disk: writing past it fails as a full disk does."""
    program = """
import jax, resource, signal, sys
jax.config.update("jax_compilation_cache_dir", None)  # of which it could not write a file either
from pathlib import Path
from roberta_flax.errors import InputError
from tests.train import small
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    small.train(Path(sys.argv[1]), {"total_steps": int(sys.argv[3])})
except InputError as error:
    print(error, file=sys.stderr)
    sys.exit(1)
"""
    directory = tmp_path / "checkpoint"
    process = start(processes.python, program, directory, 1000, PLAN["total_steps"])  # bytes of a file, steps
    _, err = process.communicate()
    assert process.returncode == 1
    message = (
        r"cannot write {}: {}; saved checkpoints are kept; make room or fix the cause, and rerun the command to resume"
    )
    assert re.fullmatch(message.format(directory / "checkpoints", ".*File too large.*") + "\n", err), err
    assert steps(directory) == []
    small.train(directory, PLAN)
    assert_same_run(directory, undisturbed)
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "speed.jsonl").symlink_to("/dev/full")
    with pytest.raises(
        InputError, match=message.format(tmp_path / "records" / "speed.jsonl", "No space left on device")
    ):
        small.train(tmp_path / "records", PLAN)
    (tmp_path / "records" / "speed.jsonl").unlink()
    small.train(tmp_path / "records", PLAN)
    assert_same_run(tmp_path / "records", undisturbed)


@pytest.mark.slow
def test_directories_that_cannot_be_written_or_read_say_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*: (Not a directory|File exists); choose another directory"):
        small.train(tmp_path / "file" / "run")
    with pytest.raises(InputError, match=r"cannot write .*: (Not a directory|File exists); choose another directory"):
        small.train(tmp_path / "file")
    small.train(tmp_path / "run", {"total_steps": 8})
    for path in (tmp_path / "run" / "checkpoints" / "8" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(
        InputError, match=r"checkpoints/8 is damaged: state/.* has other content .*; remove it to resume from step 4"
    ) as error:
        small.train(tmp_path / "run", {"total_steps": 8})
    assert "\n" not in str(error.value)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "8")
    assert small.train(tmp_path / "run", {"total_steps": 8}).steps == 8


def test_plans_and_data_that_cannot_be_used_say_so(tmp_path):
    for name, value in (("total_steps", 0), ("save_every", 1.5), ("patience", -1), ("keep", True)):
        with pytest.raises(InputError, match=f"{name} must be a positive integer, got {value}"):
            loop.Plan(**{**small.PLAN, name: value})

    class Ends:
        def __next__(self):
            raise StopIteration

        def get_state(self):
            return {}

    with pytest.raises(InputError, match="the training data ended before step 1; it should repeat without end"):
        small.train(tmp_path / "run", batches=Ends())


def test_without_the_extra_one_line_says_what_to_install(tmp_path, monkeypatch):
    for module, options in (
        ("orbax.checkpoint", {}),
        ("matplotlib.figure", {"plot": True}),
        ("tensorboardX", {"tensorboard": True}),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            with pytest.raises(
                InputError, match=rf"training needs {module} .*; install it with: pip install 'roberta-flax\[train\]'"
            ):
                small.train(tmp_path / module, **options)


# how far it is, curves, TensorBoard


@pytest.mark.slow
def test_a_terminal_shows_loss_learning_rate_speed_and_the_time_left(on_a_terminal, tmp_path):
    text, stdout = on_a_terminal([*RUN, tmp_path / "run", json.dumps({"plan": PLAN, "progress": True})])
    assert stdout == ""
    found = re.findall(r"(\d+)/30 loss [\d.]+ lr [\d.e-]+ \d+ tokens/s \d:\d\d:\d\d left", text)
    assert found[-1] == "30"
    assert "WARNING" not in text


@pytest.mark.slow
def test_a_file_gets_lines_instead_of_a_bar(tmp_path, capsys):
    small.train(tmp_path / "run", {"total_steps": 8}, progress=True)
    assert re.fullmatch(r"8 of 8 steps, loss [\d.]+ lr [\d.e-]+ \d+ tokens/s 0:00:00 left\n", capsys.readouterr().err)


@pytest.mark.slow
def test_curves_are_drawn_of_the_records(tmp_path):
    pytest.importorskip("matplotlib")
    small.train(tmp_path / "run", {"total_steps": 12}, plot=True)
    picture = (tmp_path / "run" / "curves.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", picture[16:24])
    assert (width, height) == (1560, 960)  # loss, correlation, learning rate, norm: two rows of two panels
    records = [
        {"step": 1, "loss": 2, "size": 9},
        {"step": 1, "valid_loss": 1, "valid_perplexity": 3, "valid_size": 9},
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    plots.curves(tmp_path / "m.jsonl", tmp_path / "p.png")
    assert struct.unpack(">II", (tmp_path / "p.png").read_bytes()[16:24]) == (1560, 480)  # loss and perplexity alone
    with pytest.raises(InputError, match=r"cannot read .*none.jsonl"):
        plots.curves(tmp_path / "none.jsonl", tmp_path / "p.png")


@pytest.mark.slow
def test_tensorboard_files_have_the_records(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    small.train(tmp_path / "run", PLAN, tensorboard=True)
    found: dict[str, dict[int, float]] = {}
    for path in (tmp_path / "run" / "tensorboard").iterdir():
        content = path.read_bytes()
        while content:  # length, its checksum, an event, its checksum
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    records = lines(tmp_path / "run" / "metrics.jsonl")
    for tag, name in (("train/loss", "loss"), ("train/learning_rate", "learning_rate"), ("valid/loss", "valid_loss")):
        expected = {line["step"]: line[name] for line in records if name in line}
        assert found[tag] == pytest.approx(expected, rel=1e-6)
    assert len(found["speed/tokens_per_second"]) == 6


# several devices, several processes


@pytest.mark.slow
def test_eight_devices_and_one_agree(eight_devices, tmp_path):
    """Rows divided over the devices, parameters whole or divided too; in float64, so that only a mistake is seen."""
    output = eight_devices(f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import jax, jax.numpy as jnp, numpy as np
from pathlib import Path
from jax.sharding import Mesh, NamedSharding, PartitionSpec
jax.config.update("jax_enable_x64", True)
from roberta_flax.nn import sharding
from roberta_flax.errors import InputError
from tests.train import small
small.WIDTH = 8
mesh = sharding.mesh()
seen = set()

def step(params, opt_state, batch, key):
    seen.update(x.addressable_shards[0].data.shape for x in (batch["tokens"], batch["weights"]))
    return small.train_step(params, opt_state, batch, key)

def run(name, spec, **options):
    begin = small.params(jnp.float64)
    if spec is not None:
        begin["layer"]["kernel"] = jax.device_put(begin["layer"]["kernel"], NamedSharding(mesh, spec))
        begin["layer"]["bias"] = jax.device_put(begin["layer"]["bias"], NamedSharding(mesh, PartitionSpec()))
    plan = {{"total_steps": 20, "save_every": 20}}
    outcome = small.train(Path({str(tmp_path)!r}) / name, plan, params=begin, train_step=step, **options)
    return outcome.params["layer"]["kernel"]

for accumulate in (1, 3):
    def given():
        return {{"batches": small.batches(accumulate=accumulate), "accumulate": accumulate}}
    one = run(f"one{{accumulate}}", None, **given())
    seen.clear()
    whole = run(f"whole{{accumulate}}", PartitionSpec(), mesh=mesh, **given())
    divided = run(f"divided{{accumulate}}", PartitionSpec("data"), mesh=mesh, **given())
    assert len(divided.sharding.device_set) == 8 and divided.addressable_shards[0].data.shape == (1,)
    assert np.abs(one).max() > 0.5
    for other in (whole, divided):
        assert np.abs(np.asarray(one) - np.asarray(other)).max() < 1e-9
    rows = (1, 8) if accumulate == 1 else (3, 1, 8)
    assert seen == {{rows, rows[:-1]}}, seen
try:
    run("bad", PartitionSpec(), mesh=mesh, batches=small.batches(batch=12))
except InputError as error:
    print(error)
""")
    assert output == (
        "a batch's rows are divided over 8 devices, and row has 12 rows; choose a batch size that is a multiple of 8\n"
    )


DISTRIBUTED = """
import sys, jax
from pathlib import Path
port, host, directory, total = sys.argv[1:]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(host))
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from roberta_flax.nn import sharding
from roberta_flax.errors import RobertaFlaxError
from tests.train import small
mesh = sharding.mesh(jax.devices())

def put(array, spec):
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, NamedSharding(mesh, spec), lambda index: array[index])

begin = {"layer": {"kernel": put(np.zeros(small.WIDTH, np.float32), PartitionSpec("data")), "bias": put(np.float32(0), PartitionSpec())}}

def validate(params):
    from jax.experimental import multihost_utils
    return small.validate(multihost_utils.process_allgather(params, tiled=True))

plan = {"total_steps": int(total), "validate_every": 6 if int(total) < 100 else int(total), "save_every": 4 if int(total) < 100 else 10**6}
try:
    outcome = small.train(Path(directory), plan, params=begin, mesh=mesh, validate=validate)
    print(jax.process_count(), outcome.steps)
except RobertaFlaxError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def distributed(start):
    """Starts two processes that train in a directory together."""

    def distributed(directory: Path, total: int) -> list[Started]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        return [start(processes.python, DISTRIBUTED, port, host, directory, total) for host in range(2)]

    return distributed


def told(hosts: list[Started]) -> list[str]:
    """What each says at the end; gloo, which joins CPUs, says something too."""
    return [host.communicate(timeout=200)[0].splitlines()[-1] for host in hosts]


@pytest.mark.slow
def test_two_processes_train_as_one_does(distributed, undisturbed, tmp_path):
    for _ in range(2):  # the second time it has ended
        assert told(distributed(tmp_path / "run", 30)) == ["2 30", "2 30"]
    found, expected = (arrays(path / "best" / "model.npz") for path in (tmp_path / "run", undisturbed))
    for name in expected:
        assert np.abs(found[name] - expected[name]).max() < 1e-5
    here, there = lines(tmp_path / "run" / "metrics.jsonl"), lines(undisturbed / "metrics.jsonl")
    assert [line["step"] for line in here] == [line["step"] for line in there]
    assert here[-1]["valid_loss"] == pytest.approx(there[-1]["valid_loss"], rel=1e-4)
    assert steps(tmp_path / "run") == [24, 28, 30]
    for line in told(distributed(tmp_path / "run", 29)):
        assert re.match(r"InputError .* has another run \(plan.total_steps was 30 and is 29\)", line)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_after_the_same_update(distributed, tmp_path):
    hosts = distributed(tmp_path / "run", 10**6)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not metrics.exists() or not metrics.stat().st_size:
        assert all(host.poll() is None for host in hosts)
        threading.Event().wait(0.1)
    hosts[1].send_signal(signal.SIGINT)
    text, other = told(hosts)
    assert text == other
    stopped = re.match(r"StoppedError SIGTERM: stopped after (\d+) of 1000000 steps", text)
    assert stopped, text
    assert steps(tmp_path / "run") == [int(stopped[1])]
