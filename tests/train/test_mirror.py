"""Training runs at a URL: what is there is always a run that resumes, and every file is the one that was saved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

pytest.importorskip("grain")
pytest.importorskip("orbax.checkpoint")

from roberta_flax.checkpoint import download
from roberta_flax.errors import InputError, StoppedError
from roberta_flax.remote import RemotePath, to_path
from roberta_flax.train import loop
from roberta_flax.train.mirror import Mirror, mirrored
from tests.stores import DirectoryStore
from tests.train import small

PLAN = {"total_steps": 12, "save_every": 4, "validate_every": 4, "log_every": 2}


@pytest.fixture
def url(tmp_path, monkeypatch) -> RemotePath:
    monkeypatch.setattr(DirectoryStore, "writes_left", None)
    monkeypatch.setenv(download.CACHE_VARIABLE, str(tmp_path / "cache"))
    return to_path(f"dirstore://{tmp_path}/store/run")


def write(folder: Path, files: dict[str, str]) -> None:
    """Makes these the files of a folder."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def content(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def downloaded(url: RemotePath, folder: Path) -> dict[str, str]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    Mirror(url, folder).download()
    return content(folder)


# files

OLD = {
    "run.json": "settings", "checkpoints/4/state": "4", "checkpoints/8/state": "8", "best/model": "best of 4",
    "best/config": "c", "metrics.jsonl": "4 8",
}  # fmt: skip
NEW = {
    "run.json": "settings", "checkpoints/8/state": "8", "checkpoints/12/state": "12", "best/model": "best of 12",
    "best/config": "c", "metrics.jsonl": "4 8 12", "summary.json": "{}",
}  # fmt: skip


def test_after_any_number_of_writes_the_url_has_all_old_files_or_all_new_ones(url, tmp_path):
    """A run is killed, or the store is gone, after each of the writes of an upload that replaces, adds and removes."""
    outcomes = []
    for writes in range(100):
        if url.exists():
            url.remove_tree()
        local = tmp_path / "local"
        write(local, OLD)
        mirror = Mirror(url, local)
        mirror.claim()
        mirror.save()
        mirror.finish()
        write(local, NEW)
        again = Mirror(url, local)
        again._there = mirror._there
        again.claim()
        DirectoryStore.writes_left = writes
        try:
            again.finish()
            failed = False
        except InputError as error:
            failed = True
            assert "the store is gone" in str(error)  # noqa: PT017
        DirectoryStore.writes_left = None
        found = downloaded(url, tmp_path / "elsewhere")
        assert found in (OLD, NEW), writes
        outcomes.append(found == NEW)
        # whoever goes on from there ends with the new files at their own places, and nothing else
        write(local, found)
        resumed = Mirror(url, local)
        resumed.download()
        resumed.claim()
        write(local, NEW)
        resumed.finish()
        assert {name: (url / name).read_text() for name in NEW} == NEW
        if not failed:
            break
    assert outcomes == sorted(outcomes)
    assert (outcomes[0], outcomes[-1]) == (False, True)
    assert sorted(set(url.files()) - set(NEW)) == ["mirror.json", "mirror.owner"]


def test_a_file_that_is_not_the_one_that_was_saved_is_named(url, tmp_path):
    write(tmp_path / "local", OLD)
    mirror = Mirror(url, tmp_path / "local")
    mirror.claim()
    mirror.finish()
    write(tmp_path / "other", {"state": "5"})
    (url / "checkpoints/8/state").put(tmp_path / "other" / "state")
    with pytest.raises(InputError, match="run/checkpoints/8/state is not the file that the run saved; put it back"):
        downloaded(url, tmp_path / "elsewhere")
    (url / "checkpoints/8/state").unlink()
    with pytest.raises(InputError, match="run/checkpoints/8/state is not the file that the run saved"):
        downloaded(url, tmp_path / "elsewhere")


@pytest.mark.parametrize("manifest", [b"{", b"{}", b'{"files": {"../a": {"sha256": "0"}}}', b'{"files": []}'])
def test_a_damaged_manifest_is_one_line(url, tmp_path, manifest):
    with (url / "mirror.json").replacing() as file:
        file.write(manifest)
    with pytest.raises(InputError, match=r"mirror.json is damaged \(.*\); choose another directory"):
        downloaded(url, tmp_path / "elsewhere")


def test_files_that_are_none_of_a_run_are_left_alone(url, tmp_path):
    with (url / "mine.txt").replacing() as file:
        file.write(b"mine")
    with pytest.raises(InputError, match="run/mine.txt exists already; remove it or choose another directory"):
        downloaded(url, tmp_path / "elsewhere")


def test_the_process_that_began_last_is_the_one_that_writes(url, tmp_path):
    write(tmp_path / "first", OLD)
    first = Mirror(url, tmp_path / "first")
    first.claim()
    first.save()
    write(tmp_path / "second", {})
    second = Mirror(url, tmp_path / "second")
    (tmp_path / "second").mkdir()
    first._wait()
    second.download()
    second.claim()
    write(tmp_path / "first", NEW)
    with pytest.raises(InputError, match="another process has begun to train in dirstore://.*/run, so this one stops"):
        first.finish()
    assert downloaded(url, tmp_path / "elsewhere") == OLD


# runs


class Kill(BaseException):
    """Stands for the end of the machine: nothing that the process would do after it is done."""


def train(url: RemotePath, kill_after: int | None = None, **options: Any) -> loop.Outcome:
    batches = small.batches()

    class Batches:
        taken = 0

        def __next__(self) -> Any:
            self.taken += 1
            if self.taken == kill_after:
                DirectoryStore.writes_left = 0
                raise Kill
            return next(batches)

        def get_state(self) -> Any:
            return batches.get_state()

        def set_state(self, state: Any) -> None:
            batches.set_state(state)

    with mirrored(url) as (local, mirror):
        return small.train(local, PLAN, batches=Batches(), mirror=mirror, **options)


def parameters(outcome: loop.Outcome) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(outcome.params)]


@pytest.mark.slow
@pytest.mark.parametrize("kill_after", [2, 7, 11])
def test_a_run_that_lost_its_machine_ends_on_another_with_the_bits_of_one_that_did_not(url, tmp_path, kill_after):
    whole = small.train(tmp_path / "whole", PLAN)
    with pytest.raises(Kill):
        train(url, kill_after)
    DirectoryStore.writes_left = None
    shutil.rmtree(tmp_path / "cache")
    resumed = train(url)
    assert parameters(resumed) == parameters(whole)
    assert (resumed.best, resumed.best_step, resumed.steps) == (whole.best, whole.best_step, whole.steps)
    assert (url / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert (url / "best/model.npz").read_bytes() == (tmp_path / "whole" / "best" / "model.npz").read_bytes()
    assert not list((tmp_path / "cache" / "runs").glob("*/run"))  # the local directory, which is of no more use


@pytest.mark.slow
def test_a_run_with_other_settings_is_refused_by_the_urls_name_and_does_not_stop_the_one_that_is_under_way(url):
    train(url)
    owner = (url / "mirror.owner").read_bytes()
    with pytest.raises(InputError) as error:
        train(url, config_note={"data": "other"})
    assert str(error.value).startswith(f"{url} has another run (data was 'small' and is 'other')")
    assert (url / "mirror.owner").read_bytes() == owner


@pytest.mark.slow
def test_a_run_that_a_signal_stops_says_that_its_steps_are_saved_at_the_url(url, monkeypatch):
    import signal

    from roberta_flax.train.signals import StopRequests

    monkeypatch.setattr(StopRequests, "received", lambda self, step: signal.SIGTERM if step == 6 else None)
    with pytest.raises(StoppedError, match=rf"stopped after 6 of 12 steps, which are saved in {url}; rerun"):
        train(url)
    assert "checkpoints/6/SHA256SUMS" in json.loads((url / "mirror.json").read_bytes())["files"]


def test_two_processes_of_a_machine_do_not_train_at_one_url(url):
    with mirrored(url), pytest.raises(InputError, match="another process is training in dirstore://.*/run already"):
        train(url)


def test_a_directory_of_this_machine_is_its_own(tmp_path):
    with mirrored(tmp_path) as (local, mirror):
        assert (local, mirror) == (tmp_path, None)


def test_several_processes_need_a_directory_that_they_share(url, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with (
        pytest.raises(InputError, match="several processes write the checkpoints of a run to a file system"),
        mirrored(url),
    ):
        pass
