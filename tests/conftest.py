"""Fixtures and options. The torch references themselves are in references/."""

from __future__ import annotations

import dataclasses
import gc
import io
import multiprocessing
import os
import pty
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache, partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if version("jaxlib").startswith("0.10."):  # a jaxlib that does not know a flag ends the process
    # Most of a test's time is the compilation of programs that run once. With these flags XLA's CPU backend compiles in
    # a fifth of the time (a gradient of two layers: 0.6 s, not 3.0), to slower code of the same operations. Run the
    # tests with XLA_FLAGS="" for the code that users get. The last two have LLVM see a program as one module, which takes
    # a fifth less than the 32 that would be compiled in parallel.
    os.environ.setdefault(
        "XLA_FLAGS",
        "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
        "--xla_cpu_parallel_codegen_split_count=1 --xla_llvm_force_inline_before_split=false",
    )

if (
    find_spec("libtpu")
    and not find_spec("jax_plugins")
    and not [*Path("/dev").glob("accel*"), *Path("/dev").glob("vfio/[0-9]*")]
):
    # libtpu is there to compile (references.tpu). Of a machine without TPU JAX would ask it for one, in every process, which
    # takes a moment and writes to stderr.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
import typer

import roberta_flax
from roberta_flax.checkpoint import converted, download
from roberta_flax.checkpoint.archive import extract_archive
from roberta_flax.convert import convert
from roberta_flax.text.tokenizer import Tokenizer
from tests import processes

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
TINY = ROOT / "tests" / "data" / "roberta.random.tar.gz"  # tests.random_model writes it
# the environment of a process that has them
EIGHT_DEVICES = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"}

# Fixtures whose tests start processes that compile for themselves.
SLOW_FIXTURES = {"eight_devices", "two_hosts"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--network", action="store_true", help="run the tests that download released models")


def pytest_configure(config: pytest.Config) -> None:
    """Has Python and JAX keep what they compile, for other processes and the next run; --cache-clear removes it."""
    # Each of xdist's workers takes its share of the cores: torch's threads wait by spinning, and slow the others down.
    workers = config.getoption("numprocesses", None) or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

    if sys.dont_write_bytecode and config.pluginmanager.hasplugin("cacheprovider"):
        # The environment wants none beside the sources. But every process that a test starts would compile the package.
        sys.dont_write_bytecode, sys.pycache_prefix = False, str(config.cache.mkdir("bytecode"))
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix

    folder = jax.config.jax_compilation_cache_dir
    if folder is None and config.pluginmanager.hasplugin("cacheprovider"):
        folder = str(config.cache.mkdir("programs"))
        if not hasattr(config, "workerinput"):  # xdist's workers have it
            remove_old(Path(folder))
    keep_programs(folder)


def pytest_collectstart() -> None:
    """Of what is imported now little is garbage, and to look through it again and again takes a fifth of the time."""
    gc.disable()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Has the garbage collector pass over what is imported by now: to look through it takes a twentieth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    gc.enable()


def remove_old(folder: Path) -> None:
    """Removes programs of last month's code."""
    for file in folder.iterdir():
        if file.stat().st_mtime < time.time() - 30 * 24 * 3600:
            file.unlink()


def keep_programs(folder: str | None) -> None:
    """However fast they are compiled; without a folder, none."""
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("network") and not config.getoption("--network"):
            item.add_marker(pytest.mark.skip(reason="downloads a released model; run with --network"))
        if SLOW_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


def skip_or_fail(reason: str) -> None:
    """Skips, or fails where ROBERTA_FLAX_REQUIRE_REFERENCES is set: CI must not pass by skipping."""
    if os.environ.get("ROBERTA_FLAX_REQUIRE_REFERENCES"):
        pytest.fail(reason)
    pytest.skip(reason, allow_module_level=True)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test sees or changes the user's cache, or reaches the network by accident."""
    monkeypatch.setenv(download.CACHE_VARIABLE, str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv(download.MIRROR_VARIABLE, "http://127.0.0.1:9/nothing-listens-here")
    monkeypatch.setattr(download, "BACKOFF_SECONDS", 0.0)
    folder = jax.config.jax_compilation_cache_dir
    yield
    keep_programs(folder)  # the command line, in this process, keeps its own elsewhere


# Modules whose tests run as research code may set JAX: neither ranks nor dtypes are promoted implicitly. (Flax models of
# other libraries promote both, and optax promotes dtypes; of training see test_strictness.)
STRICT = ("test_forward", "test_inference", "test_products", "test_quantize")


@pytest.fixture(scope="module", autouse=True)
def _strict(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.module.__name__.removeprefix("tests.") in STRICT:
        with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
            yield
    else:
        yield


@pytest.fixture(scope="module", autouse=True)
def _no_programs_left() -> Iterator[None]:
    """Frees a module's compiled programs: each holds memory mappings, of which a process may have some 65,000."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def gpt2_bpe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with GPT-2's encoder.json and vocab.bpe and RoBERTa's dict.txt."""
    candidates = [SHARED / "gpt2_bpe", download.cache_dir() / "gpt2_bpe"]
    if configured := os.environ.get("ROBERTA_FLAX_GPT2_BPE"):
        candidates.insert(0, Path(configured))
    for folder in candidates:
        if all((folder / name).is_file() for name in ("dict.txt", "encoder.json", "vocab.bpe")):
            return folder
    skip_or_fail(
        f"no dict.txt, encoder.json and vocab.bpe in {', '.join(map(str, candidates))}; "
        "set ROBERTA_FLAX_GPT2_BPE to the directory that has them"
    )
    raise AssertionError


@pytest.fixture(scope="session")
def gpt2_tokenizer(gpt2_bpe: Path) -> Tokenizer:
    return Tokenizer.from_directory(gpt2_bpe)


@pytest.fixture(scope="session")
def sick_pairs() -> list[tuple[str, str]]:
    """Real English sentence pairs."""
    path = SHARED / "sick" / "SICK_train.txt"
    if not path.is_file():
        skip_or_fail(f"{path} is not there")
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    return [(row[1], row[2]) for row in rows]


@pytest.fixture(scope="session")
def sentencepiece_model(sick_pairs: list[tuple[str, str]]) -> bytes:
    """A small sentencepiece model, trained with the defaults, as XLM-R's and CamemBERT's were."""
    import sentencepiece

    texts = [text for pair in sick_pairs[:2000] for text in pair]
    texts += ["Ça va très bien, naïve Zoë?", "Größe und Übermut", "l'été à la forêt", "日本語 テキスト"] * 20
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=400, minloglevel=2
    )
    return model.getvalue()


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random model, unpacked: a fairseq directory with its own BPE files."""
    folder = tmp_path_factory.mktemp("source") / "unpacked"
    extract_archive(TINY, folder)
    return folder / "roberta.random"


@pytest.fixture(scope="session")
def tiny_directory(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random model, converted."""
    return convert(tiny_source, tmp_path_factory.mktemp("converted") / "tiny")


@pytest.fixture(scope="session")
def one_layer(tiny_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random model's first layer alone, converted: what is compiled of it takes half the time."""
    tiny = roberta_flax.load(tiny_directory)
    params = {**tiny.params, "layers": {"0": tiny.params["layers"]["0"]}}
    directory = tmp_path_factory.mktemp("one_layer") / "model"
    converted.save(directory, dataclasses.replace(tiny.config, num_layers=1), params, tiny.tokenizer)
    return directory


@pytest.fixture
def tiny(tiny_directory: Path) -> roberta_flax.Roberta:
    """The random model, loaded anew for each test."""
    return roberta_flax.load(tiny_directory)


@pytest.fixture
def shallow(one_layer: Path) -> roberta_flax.Roberta:
    """The random model's first layer, loaded anew for each test that would be the same for any number of layers."""
    return roberta_flax.load(one_layer)


_command = cache(typer.main.get_command)  # all commands and their options: 40 ms, in every call of the program


@pytest.fixture
def run(capsys, monkeypatch):
    """Runs the program in this process: (exit status, stdout, stderr)."""
    from roberta_flax.cli import main

    monkeypatch.setattr(typer.main, "get_command", _command)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["roberta-flax", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def on_a_terminal():
    """Runs a program whose stderr is a terminal; gives what it shows there, without control sequences, and its stdout."""

    def run(arguments: list[object], **environment: str) -> tuple[str, str]:
        terminal, its_end = pty.openpty()
        process = subprocess.Popen(
            [*map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=its_end,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "TERM": "xterm", "COLUMNS": "160", **environment},
            cwd=ROOT,
            text=True,
        )
        os.close(its_end)
        shown = b""
        with suppress(OSError):  # which is how a terminal ends
            while block := os.read(terminal, 1 << 16):
                shown += block
        os.close(terminal)
        stdout, _ = process.communicate()
        assert process.returncode == 0, shown.decode()
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode()), stdout

    return run


@pytest.fixture
def x64():
    """float64 for the length of a test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def forked() -> multiprocessing.context.ForkServerContext:
    """Starts processes that have imported everything, and have not begun with JAX: in a moment, however often."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.processes", "tests.train.small", "roberta_flax.inference.jobs"])
    return context


class Started:
    """A process that was forked, under the names of subprocess.Popen; what it says is in files."""

    def __init__(self, process: multiprocessing.process.BaseProcess, said: Sequence[Path]) -> None:
        self.process, self.said = process, said

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    poll = returncode.fget

    def send_signal(self, number: int) -> None:
        os.kill(self.process.pid or 0, number)

    def kill(self) -> None:
        self.process.kill()

    def wait(self, timeout: float | None = None) -> int | None:
        self.process.join(timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Waits for its end; gives what it said on stdout and on stderr."""
        assert self.wait(timeout) is not None, "it has not ended"
        out, err = (path.read_text() for path in self.said)
        return out, err


@pytest.fixture(scope="session")
def start(forked, tmp_path_factory) -> Callable[..., Started]:
    """Calls a function in a forked process that has one CPU device, unless its environment says otherwise."""

    def start(
        function: Callable[..., None], *arguments: object, programs: Path | None = None, **environment: str
    ) -> Started:
        folder = tmp_path_factory.mktemp("started")
        said = [folder / "out", folder / "err"]
        changes = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
        kept = jax.config.jax_compilation_cache_dir if programs is None else str(programs)
        given = (said, changes, kept, function, *map(str, arguments))
        process = forked.Process(target=processes.begun, args=given)
        process.start()
        return Started(process, said)

    return start


@pytest.fixture(scope="session")
def in_a_process(start) -> Callable[..., str]:
    """Runs a program in a process of its own; gives what it prints. What it compiles is kept with that of the tests."""

    def run(program: str, **options: Any) -> str:
        started = start(processes.python, program, **options)
        out, err = started.communicate()
        assert started.returncode == 0, err[-3000:]
        return out

    return run


@pytest.fixture(scope="session")
def eight_devices(in_a_process) -> Callable[..., str]:
    """Runs a program in a process that has eight CPU devices; gives what it prints."""
    return partial(in_a_process, **EIGHT_DEVICES)


@pytest.fixture
def two_hosts(start):
    """Starts roberta-flax with some arguments in two processes that find each other as under SLURM, a CPU device each."""
    started: list[Started] = []

    def start_two(*arguments: object) -> list[Started]:
        with socket.create_server(("127.0.0.1", 0)) as free:
            # jax makes the coordinator's port of the job's number (jax/_src/clusters/slurm_cluster.py)
            job = free.getsockname()[1] % 2**12
        job_of = {"SLURM_JOB_ID": str(job), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
        hosts = [
            start(processes.program, *arguments, **job_of, SLURM_PROCID=str(host), SLURM_LOCALID=str(host))
            for host in range(2)
        ]
        started.extend(hosts)
        return hosts

    yield start_two
    for host in started:
        host.kill()
        host.wait()
