"""The recipes in examples/deploy: what linters say, and their commands on CPU devices, with stand-ins for a cluster's."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT

DEPLOY = ROOT / "examples" / "deploy"
SCRIPTS = (DEPLOY / "slurm.sbatch", DEPLOY / "tpu_vm.sh", ROOT / ".ci" / "run")

PROGRAM = """#!{python}
import sys
sys.path.insert(0, {root!r})
from roberta_flax.cli import main
main()
"""

# The machine from which a VM is made builds the package with what is installed here.
PYTHON = """#!/usr/bin/env bash
exec {python} "$@"
"""

# Two tasks on this machine. A signal is passed on to both, as srun does.
SRUN = """#!{python}
import os, signal, subprocess, sys
command = [each for each in sys.argv[1:]]
while command[0].startswith("--"):
    command.pop(0)
tasks = [
    subprocess.Popen(command, env={{**os.environ, "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)}})
    for task in range(2)
]
signal.signal(signal.SIGTERM, lambda *_: [task.send_signal(signal.SIGTERM) for task in tasks])
statuses = [task.wait() for task in tasks]
sys.exit(max(status if status >= 0 else 128 - status for status in statuses))
"""

SCONTROL = """#!/usr/bin/env bash
echo "$@" >> "$STAND_IN/scontrol"
"""

# A VM of two hosts, each with a home in $STAND_IN. The first command that it runs is ended by a preemption.
GCLOUD = """#!{python}
import os, pathlib, shutil, signal, subprocess, sys, time
folder = pathlib.Path(os.environ["STAND_IN"])
action, *arguments = sys.argv[4:]
state, log = folder / "state", folder / "log"
command = next((each.removeprefix("--command=") for each in arguments if each.startswith("--command=")), None)
what = "install" if command and "uv venv" in command else action
if action != "describe":
    with log.open("a") as file:
        print(what, *[each for each in arguments if each in ("--spot", "--worker=all")], file=file)
if action == "create":
    state.write_text("READY")
elif action == "describe":
    if not state.exists():
        sys.exit(1)
    print(state.read_text())
elif action == "delete":
    state.unlink()
elif what == "ssh":
    hosts = [
        subprocess.Popen(["bash", "-c", command], start_new_session=True, env={{
            **os.environ, "HOME": str(folder / f"host{{host}}"), "SLURM_PROCID": str(host), "SLURM_LOCALID": str(host)
        }})
        for host in range(2)
    ]
    preempted = folder / "preempted"
    if not preempted.exists():
        while not list(folder.glob("out.jsonl.parts/*.part")):
            assert None in [host.poll() for host in hosts], "they ended by themselves"
            time.sleep(0.01)
        for host in hosts:
            os.killpg(host.pid, signal.SIGKILL)
        preempted.touch()
        state.write_text("PREEMPTED")
    statuses = [host.wait() for host in hosts]
    sys.exit(1 if any(statuses) else 0)
"""


def linter(name: str) -> str:
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@pytest.fixture
def stand_ins(tmp_path) -> dict[str, str]:
    """The environment in which a cluster's programs are these stand-ins."""
    programs = {"roberta-flax": PROGRAM, "python3": PYTHON, "srun": SRUN, "scontrol": SCONTROL, "gcloud": GCLOUD}
    for folder in ("bin", "host0/venv/bin", "host1/venv/bin"):
        (tmp_path / folder).mkdir(parents=True)
        for name, text in programs.items():
            path = tmp_path / folder / name
            path.write_text(text if name == "scontrol" else text.format(python=sys.executable, root=str(ROOT)))
            path.chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as free:
        job = free.getsockname()[1] % 2**12  # of which jax makes the coordinator's port
    return {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "STAND_IN": str(tmp_path),
        "JAX_PLATFORMS": "cpu",
        "SLURM_JOB_ID": str(job),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "RETRY_SECONDS": "0",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads 0 as --no-build-isolation
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    done = subprocess.run([linter("shellcheck"), script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_hadolint_finds_nothing():
    done = subprocess.run([linter("hadolint"), DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.slow
def test_the_files_that_docker_copies_are_enough_to_build_the_package(tmp_path):
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    context = tmp_path / "src"
    context.mkdir()
    for name in (line.removeprefix("!") for line in lines if line.startswith("!")):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, context / name)
    program = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    done = subprocess.run([sys.executable, "-c", program], cwd=context, capture_output=True, text=True, check=True)
    assert (context / done.stdout.split()[-1]).is_file()


@pytest.mark.slow
def test_a_slurm_job_whose_time_is_up_saves_what_it_has_done_and_is_queued_again(stand_ins, one_layer, tmp_path):
    train = tmp_path / "train.tsv"
    nouns = ("dog", "cat", "man", "woman", "table", "house", "garden", "train")
    rows = [f"the {noun} is {word}\t{label}\n" for noun in nouns for word, label in (("good", 1), ("bad", 0))]
    train.write_text("sentence\tlabel\n" + "".join(rows))
    run, steps = tmp_path / "run", 2000
    command = ["bash", DEPLOY / "slurm.sbatch", "finetune", train, "--valid", train, "--task", "sst-2", "-o", run,
               "--model", one_layer, "--batch-size", "8", "--validate-every", steps, "--save-every", "4"]  # fmt: skip

    arguments = [*map(str, command), "--steps", str(steps)]
    job = subprocess.Popen(arguments, env=stand_ins, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while not (run / "checkpoints" / "4").exists():
        assert job.poll() is None, job.communicate()
        time.sleep(0.01)
    job.send_signal(signal.SIGUSR1)
    _, err = job.communicate(timeout=300)
    assert job.returncode == 128 + signal.SIGTERM, err
    assert "which are saved in" in err
    assert (tmp_path / "scontrol").read_text() == f"requeue {stand_ins['SLURM_JOB_ID']}\n"
    saved = max(int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdecimal())
    assert 4 <= saved < steps


@pytest.mark.parametrize("status", [0, 3])
def test_a_slurm_job_that_ends_by_itself_is_not_queued_again_and_has_the_commands_status(stand_ins, tmp_path, status):
    program = tmp_path / "bin" / "roberta-flax"
    program.write_text(f'#!/usr/bin/env bash\necho "$@"\nexit {status}\n')
    command = ["bash", DEPLOY / "slurm.sbatch", "predict", "two words.jsonl"]
    done = subprocess.run(command, env=stand_ins, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (status, "predict two words.jsonl --distributed\n" * 2)
    assert not (tmp_path / "scontrol").exists()


@pytest.mark.slow
def test_a_job_on_a_tpu_vm_that_is_preempted_ends_with_the_results_of_one_that_is_not(
    stand_ins, one_layer, shallow, tmp_path
):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"text": f"a dog and {i} cats"}) + "\n" for i in range(1200)))
    arguments = ("features", source, "-o", output, "-m", one_layer, "--rows-per-part", "50", "--distributed")
    done = subprocess.run(
        ["bash", DEPLOY / "tpu_vm.sh", "run", *map(str, arguments)],
        env=stand_ins, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "the TPU VM was preempted; creating it again to resume" in done.stderr
    once = ["create --spot", "scp --worker=all", "install --worker=all", "ssh --worker=all"]
    assert (tmp_path / "log").read_text().splitlines() == [*once, "delete", *once]
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["row"] for row in rows] == list(range(1200))
    expected = np.asarray(shallow.extract_features(shallow.encode("a dog and 1199 cats")))[0].mean(axis=0)
    assert np.abs(np.array(rows[-1]["features"]) - expected).max() <= 5e-5


@pytest.mark.slow
def test_an_error_of_the_command_is_not_taken_for_a_preemption(stand_ins, tmp_path):
    (tmp_path / "preempted").touch()
    (tmp_path / "state").write_text("READY")
    done = subprocess.run(
        ["bash", DEPLOY / "tpu_vm.sh", "run", "features", "none.jsonl", "-o", "out.npy"],
        env=stand_ins, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1
    assert "none.jsonl" in done.stderr
    assert (tmp_path / "log").read_text().splitlines() == ["ssh --worker=all"]
