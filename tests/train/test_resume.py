"""What a run finds when it resumes: the files that it left, as it left them, and the same settings; or it says so."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

pytest.importorskip("grain")
pytest.importorskip("orbax.checkpoint")

from roberta_flax.errors import InputError
from roberta_flax.files import differences
from roberta_flax.train import directory, loop
from tests.train import small

PLAN = {"total_steps": 12, "save_every": 4, "validate_every": 4, "log_every": 2}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run with checkpoints after 4, 8 and 12 steps. To resume it before the last, a test removes that one."""
    path = tmp_path_factory.mktemp("finished") / "run"
    small.train(path, PLAN)
    return path


@pytest.fixture
def stopped(finished, tmp_path) -> Path:
    """The same run as if it had been killed after 10 steps: its newest checkpoint is 8."""
    path = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(path / "checkpoints" / "12")
    return path


def files_of(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(content)


def resume(path: Path, **options) -> loop.Outcome:
    return small.train(path, PLAN, **options)


def same_parameters(one: loop.Outcome, other: loop.Outcome) -> bool:
    pairs = zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


# checkpoints


@pytest.mark.slow
def test_a_bit_flipped_anywhere_in_a_checkpoint_is_named_or_changes_nothing(finished, stopped, tmp_path):
    """A bit of every file. What orbax writes about a checkpoint, and not of the run, may differ."""
    expected = resume(finished)
    random = np.random.default_rng(0)
    names = [path.relative_to(stopped) for path in files_of(stopped / "checkpoints" / "8")]
    assert any("state" in name.parts for name in names)
    found = 0
    for number, name in enumerate(names):
        path = shutil.copytree(stopped, tmp_path / str(number))
        flip(path / name, int(random.integers(0, 8 * (stopped / name).stat().st_size)))
        try:
            assert same_parameters(resume(path), expected), name
        except InputError as error:
            found += 1
            assert str(error).startswith(f"{path / 'checkpoints' / '8'} is damaged: "), error  # noqa: PT017
            assert str(error).endswith("; remove it to resume from step 4"), error  # noqa: PT017
    of_the_run = [name for name in names if name.name != "_CHECKPOINT_METADATA"]
    assert found >= len(of_the_run) - 1  # commit_success.txt beside them, which says that orbax has written them


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "damage"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "{} has other content than when it was saved"),
        (lambda file: file.write_bytes(b""), "{} has other content than when it was saved"),
        (lambda file: file.unlink(), "{} is missing"),
        (lambda file: shutil.copy(file, file.with_name("other")), "state/other is not one of its files"),
    ],
    ids=["truncated", "empty", "missing", "extra"],
)
def test_a_checkpoint_whose_files_are_others_is_named_and_the_one_before_is_used(
    finished, stopped, change: Callable[[Path], object], damage
):
    change(stopped / "checkpoints" / "8" / "state" / "manifest.ocdbt")
    with pytest.raises(InputError) as error:
        resume(stopped)
    newest = stopped / "checkpoints" / "8"
    named = damage.format("state/manifest.ocdbt")
    assert str(error.value) == f"{newest} is damaged: {named}; remove it to resume from step 4"
    shutil.rmtree(newest)
    assert same_parameters(resume(stopped), resume(finished))
    assert (stopped / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()


def test_checksums_that_are_gone_or_damaged_are_damage_too_and_the_only_checkpoint_is_to_be_removed(stopped):
    shutil.rmtree(stopped / "checkpoints" / "4")
    sums = stopped / "checkpoints" / "8" / "SHA256SUMS"
    content = sums.read_bytes()
    for changed in (content[:-1], content.replace(b"  ", b" ", 1)):
        sums.write_bytes(changed)
        with pytest.raises(InputError, match="damaged: SHA256SUMS has other content .*; remove it to start over"):
            resume(stopped)
    sums.unlink()
    with pytest.raises(InputError, match="damaged: SHA256SUMS is missing; remove it to start over"):
        resume(stopped)


@pytest.mark.slow
def test_no_older_checkpoint_is_deleted_before_the_newest_is_known_to_be_whole(finished, tmp_path):
    path = shutil.copytree(finished, tmp_path / "run")
    (path / "checkpoints" / "12" / "state" / "_METADATA").unlink()
    with pytest.raises(InputError, match="remove it to resume from step 8"):
        small.train(path, {**PLAN, "keep": 1})
    shutil.rmtree(path / "checkpoints" / "12")
    small.train(path, {**PLAN, "keep": 1})
    assert [step.name for step in (path / "checkpoints").iterdir()] == ["12"]


def test_a_finished_run_is_not_read_from_a_damaged_checkpoint_either(finished, tmp_path):
    path = shutil.copytree(finished, tmp_path / "run")
    (path / "checkpoints" / "12" / "state" / "_METADATA").unlink()
    with pytest.raises(InputError, match="12 is damaged: state/_METADATA is missing; remove it to resume from step 8"):
        resume(path)


def test_sha256sum_agrees_with_the_checksums(finished):
    if shutil.which("sha256sum") is None:
        pytest.skip("sha256sum is not installed")
    checked = subprocess.run(
        ["sha256sum", "-c", "SHA256SUMS"], cwd=finished / "checkpoints" / "12", capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout


@pytest.mark.slow
@pytest.mark.parametrize("stray", ["notes.txt", "old/40", "8.bak"])
def test_what_else_lies_beside_the_checkpoints_does_no_harm(finished, stopped, stray):
    path = stopped / "checkpoints" / stray
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    assert same_parameters(resume(stopped), resume(finished))


def test_a_checkpoint_that_orbax_cannot_read_though_it_is_whole_is_one_line(stopped, monkeypatch):
    import orbax.checkpoint as ocp

    def fail(*_, **__):  # as orbax does
        raise Exception("first line\nsecond line")

    monkeypatch.setattr(ocp.CheckpointManager, "restore", fail)
    with pytest.raises(InputError, match="cannot read .*/8: first line; remove it to resume from step 4") as error:
        resume(stopped)
    assert "second line" not in str(error.value)


# the other files


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "lost"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:100]), "lacks lines"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b'"step": 4', b'"step": 3')), "was changed"),
    ],
    ids=["gone", "cut", "edited"],
)
def test_records_that_are_not_those_of_the_run_are_noticed_when_it_resumes(stopped, change, lost):
    records = stopped / "metrics.jsonl"
    before = records.read_bytes()
    change(records)
    with pytest.raises(InputError) as error:
        resume(stopped, train_step=None)
    assert str(error.value) == (
        f"{records} {lost} since the run was saved; put it back as it was to resume, or choose another directory"
    )
    records.write_bytes(before)
    resume(stopped)


def test_records_that_are_gone_are_noticed_after_the_end_too(finished, tmp_path):
    path = shutil.copytree(finished, tmp_path / "run")
    (path / "metrics.jsonl").unlink()
    with pytest.raises(InputError, match="metrics.jsonl is missing since the run was saved"):
        resume(path)


def test_a_best_model_that_is_gone_is_noticed_when_the_run_resumes(stopped):
    def check() -> None:
        directory.check_best(stopped)

    (stopped / "best" / "model.npz").unlink()
    with pytest.raises(InputError, match=r"run/best, the best model so far, lacks config.json, .*; put it back"):
        resume(stopped, train_step=None, check_best=check)
    shutil.rmtree(stopped / "best")
    with pytest.raises(InputError, match=r"run/best, the best model so far, is gone; put it back to resume, or"):
        resume(stopped, train_step=None, check_best=check)


def test_a_run_that_ended_and_has_no_checkpoint_any_more_is_not_trained_again(finished, tmp_path):
    path = shutil.copytree(finished, tmp_path / "run")
    directory.write_summary(path, {})
    shutil.rmtree(path / "checkpoints")
    with pytest.raises(InputError, match="has the summary.json of a run that ended, but its checkpoints are gone"):
        resume(path, train_step=None)


@pytest.mark.slow
def test_a_run_says_where_it_resumes_or_that_it_starts_over(stopped, capsys):
    resume(stopped, progress=True)
    assert f"{stopped}: resuming after step 8 of 12\n" in capsys.readouterr().err
    shutil.rmtree(stopped / "checkpoints")
    resume(stopped, progress=True)
    assert f"{stopped} has no checkpoint yet; the run starts over\n" in capsys.readouterr().err


# the same settings


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("jax_default_prng_impl", "rbg", "jax.jax_default_prng_impl was 'threefry2x32' and is 'rbg'"),
        ("jax_threefry_partitionable", False, "jax.jax_threefry_partitionable was True and is False"),
        ("jax_random_seed_offset", 1, "jax.jax_random_seed_offset was 0 and is 1"),
        ("jax_enable_x64", True, "jax.jax_enable_x64 was False and is True"),
        ("jax_default_matmul_precision", "bfloat16", "jax.jax_default_matmul_precision was None and is 'bfloat16'"),
    ],
)
def test_a_setting_of_jax_that_changes_the_numbers_is_part_of_a_run(stopped, name, value, shown):
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        with pytest.raises(InputError) as error:
            resume(stopped, train_step=None)
    finally:
        jax.config.update(name, before)
    assert f"has another run ({shown}); pass the same options" in str(error.value)


@pytest.mark.slow
def test_a_refused_run_leaves_its_directory_unlocked(stopped):
    for seed in (2, 3):
        with pytest.raises(InputError, match=f"has another run .plan.seed was 1 and is {seed}"):
            small.train(stopped, {**PLAN, "seed": seed}, train_step=None)
    assert resume(stopped).steps == 12


def test_what_differs_is_named_alone_with_both_values():
    before = {"plan": {"seed": 1, "steps": 9, "best": "loss"}, "dtype": "float32", "columns": ["a"]}
    assert differences(before, json.loads(json.dumps(before))) is None
    assert differences(before, {**before, "plan": {**before["plan"], "steps": 8}}) == "plan.steps was 9 and is 8"
    assert differences(before, {**before, "columns": ["a", "b"]}) == "columns was ['a'] and is ['a', 'b']"
    without = {name: value for name, value in before.items() if name != "dtype"}
    assert differences(before, without) == "dtype was 'float32' and is not set"
    assert differences(without, before) == "dtype was not set and is 'float32'"
    other = {"plan": {"seed": 2, "steps": 8, "best": "f1"}, "dtype": "bfloat16", "columns": ["a"]}
    assert differences(before, other) == (
        "dtype was 'float32' and is 'bfloat16', plan.best was 'loss' and is 'f1', plan.seed was 1 and is 2, and 1 more"
    )
    assert differences("no dict", before) == differences({}, {}) == ""


def test_a_models_fingerprint_is_that_of_its_content(tiny):
    fingerprint = directory.model_fingerprint(tiny)
    copy = dataclasses.replace(tiny.config)
    parameters = jax.tree.map(np.array, tiny.params)
    same = type(tiny)(copy, parameters, tiny.tokenizer)
    assert directory.model_fingerprint(same) == fingerprint
    parameters["embeddings"]["token"]["embedding"][7, 3] += np.float32(1e-3)
    assert directory.model_fingerprint(same) != fingerprint
    other = dataclasses.replace(tiny.config, layer_norm_epsilon=1e-6)
    assert directory.model_fingerprint(type(tiny)(other, tiny.params, tiny.tokenizer)) != fingerprint
