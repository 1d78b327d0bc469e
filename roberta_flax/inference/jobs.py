"""Batch jobs: run() reads a file of texts and writes a file of results, and resumes where an earlier run stopped.

The rows of the input are processed in parts of a fixed size. The results of a part depend on its rows alone. While a
job runs, its state is kept beside OUTPUT:

  OUTPUT.parts/job.json        the settings of the job, and the SHA-256 of the input's and the model's files; only a run
                               with the same settings and the same contents resumes it
  OUTPUT.parts/00000007.json   the counts of part 7
  OUTPUT.parts/00000007.rejects.jsonl   its rejected rows, with reasons
  OUTPUT.parts/00000007.part   its results, written last: if this file exists, the part is complete

At the end the parts are joined to OUTPUT, which appears only when it is complete. A job that was killed and resumed
therefore produces the same bytes as one that was not. Several processes can share a job: with N processes, each takes
every Nth part, and the last one to finish joins the parts.

Locks keep other runs out. At a URL, where there are none, a run looks at job.json before each part, and stops if it is
another run's. Two runs of one share do the same work twice, and write the same bytes.

Whatever can be checked is checked before anything is written. Parts without a single result bind nobody: a run with
other settings removes them.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import shutil
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import filelock
import numpy as np

from roberta_flax.checkpoint import checksums
from roberta_flax.datasets import tables
from roberta_flax.errors import InputError, require_positive
from roberta_flax.files import Contents, differences, reading, replacing
from roberta_flax.inference.predictor import Predictor, Results
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from roberta_flax.remote import RemotePath, read_all, to_path
from roberta_flax.tasks.answers import Answer
from roberta_flax.tasks.base import Task, TaskOfModel, sequences_per_input
from roberta_flax.tasks.choose import Choose
from roberta_flax.tasks.classify import Classify, distinct_names, label_scores, predicted_labels
from roberta_flax.tasks.embed import Embed
from roberta_flax.tasks.entities import Tag
from roberta_flax.tasks.fill_mask import FillMask
from roberta_flax.tasks.multi_vector import MultiVectorEmbedding
from roberta_flax.tasks.rank import Rank
from roberta_flax.tasks.sentence_embedding import SentenceEmbedding, SparseEmbedding
from roberta_flax.tasks.sentence_scores import SentenceScores
from roberta_flax.tasks.zero_shot import ZeroShot
from roberta_flax.text.encoding import Rejected
from roberta_flax.text.tokenizer import Tokenizer

ROWS_PER_PART = 8192  # of one sequence each
Rows = Sequence[tables.Row | tables.BadRow]
Schema = dict[str, tables.Kind]

_PARTS_SUFFIX, _REJECTS_SUFFIX = ".parts", ".rejects.jsonl"
_REJECTS_SCHEMA: Schema = {"row": "integer", "line": "integer", "reason": "text"}
_ROW, _FEATURES = "row", "features"  # columns of the output
_KEPT_PREFIX = "input_"  # of a kept column that has the name of a result column
METADATA = "roberta_flax"  # the key of the job's settings in a Parquet file's metadata
_INPUT, _MODEL = "input", "model"  # keys of the settings whose values are Contents
_CONFIG_FILE, _JOB_LOCK = "job.json", "job.lock"
_COUNTS = ("rows", "rejected", "truncated")


@dataclass(frozen=True)
class Job:
    """The settings of a batch job.

    Attributes:
      input: a file that tables.read_rows reads.
      output: a .jsonl, .csv, .tsv or .parquet file to write; for features also .npy.
      text_columns: the columns with text, one or several that form one input.
      keep: the columns to copy to the output (see kept_names).
      header, format: as in tables.read_rows.
      model: the files of the model (model_contents), which the results depend on; None if nobody changes them.
      rows_per_part: number of rows in a part, which is either complete or absent.
      strict: whether to stop at the first rejected row.
      share: (index of this process, number of processes).
    """

    input: Path
    output: Path
    text_columns: tuple[str, ...]
    keep: tuple[str, ...] = ()
    header: bool | None = None
    format: str | None = None
    model: Contents | None = None
    rows_per_part: int = ROWS_PER_PART
    strict: bool = False
    share: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        object.__setattr__(self, "input", to_path(self.input))
        object.__setattr__(self, "output", to_path(self.output))
        require_positive(rows_per_part=self.rows_per_part)
        if not 0 <= self.share[0] < self.share[1]:
            raise InputError(f"share must be (index, number of processes), with index from 0; got {self.share}")

    @property
    def parts(self) -> Path:
        """The directory of the parts."""
        return self.output.with_name(self.output.name + _PARTS_SUFFIX)

    @property
    def rejects(self) -> Path:
        """The file of rejected rows."""
        return self.output.with_name(self.output.name + _REJECTS_SUFFIX)


def model_contents(name: str, directory: Path) -> Contents:
    """What the files of a converted model contain. Reading them takes about a second for two gigabytes.

    Args:
      name: what the user calls the model.
      directory: the converted directory. conversion.json, which says where the model came from, does not count.
    """
    files = sorted(path for path in directory.iterdir() if path.is_file() and path.name != checksums.CONVERSION_FILE)
    return Contents.of(name, files)


def settings_of(predictor: Predictor, model: Contents | None) -> dict[str, Any]:
    """Everything that the results of inputs depend on, for json.dumps.

    Args:
      predictor: a predictor for a task whose results can be written (result_format).
      model: the files of its model, or None if they are not known.
    """
    return {
        _MODEL: None if model is None else asdict(model),
        "task": [type(predictor.task).__name__, _settings_of_task(predictor.task)],
        "version": importlib.metadata.version("roberta-flax"),
        **predictor.describe(),
    }


def _settings_of_task(task: Any) -> dict[str, Any]:
    describe = getattr(task, "describe", None)
    settings: dict[str, Any] = asdict(task) if describe is None else describe()
    return settings


def rows_per_part(task: Task | TaskOfModel) -> int:
    """The default number of rows in a part: fewer if a task makes several sequences of each."""
    return max(1, ROWS_PER_PART // sequences_per_input(task))


def kept_names(keep: Sequence[str], results: Collection[str]) -> dict[str, str]:
    """The name in the output of each kept column: its own, or with the prefix "input_" if a result column has that."""
    names, used = {}, {*keep, *results}
    for column in keep:
        name = column
        if column in results:
            while name in used:
                name = _KEPT_PREFIX + name
            used.add(name)
        names[column] = name
    return names


def check(job: Job) -> None:
    """Checks a job's files as far as that needs no model. Call it before loading one.

    Raises:
      InputError: the input or a column of it cannot be read, OUTPUT exists, or its suffix names no format.
    """
    if job.output.suffix != ".npy":
        tables.output_format(job.output)
    _read(job)
    if not (job.parts / _CONFIG_FILE).is_file():
        _require_no_output(job)


def _require_no_output(job: Job) -> None:
    if existing := next((path for path in (job.output, job.rejects) if path.exists()), None):
        raise InputError(f"{existing} exists already; remove it or choose another name")


def _read(job: Job, start: int = 0) -> Iterator[tables.Row | tables.BadRow]:
    return tables.read_rows(
        job.input, job.text_columns, keep=job.keep, header=job.header, format=job.format, start=start
    )


def read_documents(
    path: Path, column: str | None = None, *, header: bool | None = None, format: str | None = None
) -> tuple[str, ...]:
    """Reads the documents that Rank takes, one in each row of a file.

    Args:
      path: a file that tables.read_rows reads.
      column: the column with the documents; by default the usual one.
      header, format: as in tables.read_rows.

    Raises:
      InputError: the file cannot be read, a row has no document, or there are none. Rows are not left out, because
        results give their numbers.
    """
    columns = (column,) if column is not None else tables.usual_columns(path, header, format)
    if len(columns) != 1:
        raise InputError(f"{path} has several columns of texts ({', '.join(columns)}); name that of the documents")
    documents = []
    for row in tables.read_rows(path, columns, header=header, format=format):
        if isinstance(row, tables.BadRow):
            raise InputError(f"{path}, line {row.line}: {row.reason}")
        documents.append(row.values[0])
    if not documents:
        raise InputError(f"{path} has no documents")
    return tuple(documents)


class Progress(Protocol):
    """A function that is told how far a run is."""

    def __call__(self, rows: int, predictor: Predictor) -> None:
        """Reports progress.

        Args:
          rows: how many rows of this process's share the devices have finished. Not all of them need be in a file yet.
          predictor: the predictor, with its stats.
        """


def run(job: Job, predictor: Predictor, progress: Progress | None = None) -> dict[str, Any]:
    """Runs a job, or the part of it that is not done yet.

    Args:
      job: the settings.
      predictor: a predictor for a task whose results can be written (result_format), over the model that job.model
        describes.
      progress: called at the beginning, after each batch and after each part.

    Returns:
      A summary. It has the counts of the whole job (rows, rejected, truncated) and those of this run ("this_run").
      "joined" is true if OUTPUT has been written, and false if parts of other processes are missing; the counts are
      then those of the parts there are.

    Raises:
      InputError: a file cannot be read or written, OUTPUT exists, there are parts of a different job, the input changes
        during the run, every row was rejected or, with `strict`, one was. Completed parts are kept.
    """
    begin = time.perf_counter()
    check(job)
    source = _Input(job)
    config = _run_config(job, predictor, source.contents)
    parts = _PartFiles(job, source, _make_writer(job, predictor, {METADATA: json.dumps(config, sort_keys=True)}))
    with ExitStack() as until_the_end:
        with _job_lock(job):
            parts.open(config)
            until_the_end.enter_context(_share_lock(job))
        return _run(job, parts, predictor, progress, begin)


def _run(job: Job, parts: _PartFiles, predictor: Predictor, progress: Progress | None, begin: float) -> dict[str, Any]:
    numbers = sorted(parts.done)
    resumed = dict(zip(numbers, parts.counts(numbers), strict=True))
    process, processes = job.share
    rows_before = sum(counts["rows"] for number, counts in resumed.items() if number % processes == process)
    texts_before = predictor.stats.texts
    unwritten: deque[tuple[int, Rows]] = deque()

    def windows() -> Iterator[list[Any]]:
        for number, rows in parts.unfinished():
            unwritten.append((number, rows))
            yield [_input_of(row, len(job.text_columns)) for row in rows]

    def report() -> None:
        if progress is not None:
            progress(rows_before + predictor.stats.texts - texts_before, predictor)

    done = Counter(dict.fromkeys(_COUNTS, 0))
    for counts in resumed.values():
        done.update(counts)
    report()
    for results in predictor.windows(windows(), report):
        number, rows = unwritten.popleft()
        done.update(parts.write(number, rows, results))
        report()
    joined = parts.join()
    counts = joined or dict(done)
    this_run = {"parts_resumed": len(resumed), **predictor.stats.to_json()}
    seconds = round(time.perf_counter() - begin, 3)
    files = {"output": str(job.output), "rejects": str(job.rejects) if job.rejects.exists() else None}
    return {**files, "joined": joined is not None, **counts, "seconds": seconds, "this_run": this_run}


def _input_of(row: tables.Row | tables.BadRow, num_texts: int) -> Any:
    """The input that the predictor takes for a row: a text, several texts, or a Rejected."""
    if isinstance(row, tables.BadRow):
        return Rejected(row.reason)
    return row.values[0] if num_texts == 1 else row.values[:num_texts]


def rows_in(job: Job) -> int | None:
    """Counts the rows in this process's share of a job, or returns None if that would take long."""
    try:
        rows = tables.count_rows(job.input, job.header, job.format)
    except (OSError, ImportError, ValueError):
        return None  # reading the rows will raise an error with a better message
    if rows is None:
        return None
    process, processes = job.share
    whole_parts, rest = divmod(rows, job.rows_per_part)
    own_parts = len(range(process, whole_parts, processes))
    return own_parts * job.rows_per_part + (rest if whole_parts % processes == process else 0)


class _Input:
    """The files of a job's input.

    Attributes:
      contents: what was in them when the run began.
    """

    def __init__(self, job: Job) -> None:
        self._name, self._files = job.input.name, tables.input_files(job.input)
        self._stats = self._stat()
        self.contents = Contents.of(self._name, self._files)

    def require_unchanged(self) -> None:
        """Raises InputError if the files have other contents by now. They are read only if their times differ."""
        if (stats := self._stat()) == self._stats:
            return
        if changes := Contents.of(self._name, self._files).differences(self.contents):
            raise InputError(
                f"the input changed while it was read ({changes}); rerun the command when nobody writes it"
            )
        self._stats = stats

    def _stat(self) -> list[tuple[int, ...]]:
        with reading(self._files[0], InputError):
            stats = [path.stat() for path in self._files]
        return [(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats]


class _PartFiles:
    """The parts of a job on disk.

    Attributes:
      job: the settings of the job.
      source: the files that its rows come from.
      writer: writes the results of a part, and joins them.
      done: numbers of the complete parts.
      total: number of parts; None until the input has been read to its end.
    """

    def __init__(self, job: Job, source: _Input, writer: _Writer) -> None:
        self.job = job
        self.source = source
        self.writer = writer
        self.done: set[int] = set()
        self.total: int | None = None
        self._config = b""

    def open(self, run_config: dict[str, Any]) -> None:
        """Finds the parts of a run that was stopped, or begins anew. The caller holds the lock of the job."""
        job, config_file = self.job, self.job.parts / _CONFIG_FILE
        text = json.dumps(run_config, indent=2, sort_keys=True) + "\n"
        self._config = text.encode()
        try:
            if not isinstance(job.parts, RemotePath):
                shutil.rmtree(_joined_parts(job), ignore_errors=True)
            files = list(job.parts.iterdir())
            self.done = {int(file.stem) for file in files if file.suffix == ".part" and file.stem.isdecimal()}
            if config_file.is_file():
                changes = _changes(_parsed(config_file.read_bytes()), json.loads(text))
                if changes is None:
                    return
                if self._has_results():
                    raise InputError(
                        f"{job.parts} has parts of a different job ({changes}); remove that directory to start "
                        "over, or choose another output"
                    )
                _require_nobody(job)
            _require_no_output(job)
            for file in files:
                if file.name != _JOB_LOCK:
                    file.unlink()
            self.done = set()
            with replacing(config_file) as content:
                content.write(self._config)
        except (OSError, ValueError) as error:
            raise _unwritable(job.parts, error) from None

    def _has_results(self) -> bool:
        """Whether a row of a complete part has a result."""
        return any(counts["rows"] > counts["rejected"] for counts in self.counts(self.done))

    def unfinished(self) -> Iterator[tuple[int, Rows]]:
        """Yields the number and the rows of each part of this process's share that is not complete."""
        process, processes = self.job.share
        first = next(i for i in itertools.count() if i not in self.done) if processes == 1 else 0
        size = self.job.rows_per_part
        rows = _read(self.job, start=first * size)
        for number in itertools.count(first):
            part = list(itertools.islice(rows, size))
            if not part:
                self.total = number
                return
            if number % processes == process and number not in self.done:
                yield number, part

    def write(self, number: int, rows: Rows, results: Results) -> dict[str, int]:
        """Writes a part: its rejected rows and its counts, then its results. Returns the counts."""
        job = self.job
        rejects = [
            {"row": row.number, "line": row.line, "reason": result.reason}
            for row, result in zip(rows, results, strict=True)
            if isinstance(result, Rejected)
        ]
        if job.strict and rejects:
            first = rejects[0]
            raise InputError(f"{job.input}, line {first['line']}: {first['reason']}. Stopped, because strict is set")
        self.source.require_unchanged()
        self._require_own_parts()
        tables.write_part(self._file(number, _REJECTS_SUFFIX), rejects, _REJECTS_SCHEMA, format="jsonl")
        counts = {"rows": len(rows), "rejected": len(rejects), "truncated": len(results.truncated)}
        with replacing(self._file(number, ".json")) as file:
            file.write(json.dumps(counts).encode() + b"\n")
        self.writer.write(self._file(number, ".part"), rows, results)
        self.done.add(number)
        return counts

    def _require_own_parts(self) -> None:
        """Raises InputError if another run has begun anew at the same URL. Elsewhere a lock keeps it from doing so."""
        if isinstance(self.job.parts, RemotePath):
            with reading(self.job.parts, InputError):
                config = (self.job.parts / _CONFIG_FILE).read_bytes() if self._is_open() else None
            if config != self._config:
                raise InputError(
                    f"{self.job.parts} is no longer that of this run: another one has begun or ended there; let one "
                    "run at a time write it"
                )

    def _is_open(self) -> bool:
        """Whether the parts are still to be joined."""
        return (self.job.parts / _CONFIG_FILE).is_file()

    def counts(self, numbers: Collection[int]) -> list[dict[str, int]]:
        """The counts of complete parts, as `write` recorded them."""
        try:
            return [json.loads(content) for content in read_all([self._file(number, ".json") for number in numbers])]
        except (OSError, ValueError) as error:
            raise _unwritable(Path(getattr(error, "filename", None) or self.job.parts), error) from None

    def join(self) -> dict[str, int] | None:
        """Joins all parts to OUTPUT and removes them.

        Returns:
          The counts of the whole job; {} if another process has joined the parts; None, and nothing is done, if
          parts are missing.

        Raises:
          InputError: every row was rejected. There is no OUTPUT then, and the parts stay.
        """
        job = self.job
        assert self.total is not None, "the input has been read to its end"
        numbers = range(self.total)
        try:
            with _join_lock(job):
                if not self._is_open():  # another process has joined them
                    return {} if job.output.exists() else None
                there = {file.name for file in job.parts.iterdir()}
                if not all(self._file(number, ".part").name in there for number in numbers):
                    return None
                part_counts = self.counts(numbers)
                counts = {key: sum(part[key] for part in part_counts) for key in _COUNTS}
                if counts["rejected"] == counts["rows"] > 0:
                    raise self._all_rejected(counts["rows"])
                self._write_output(numbers, any_rejects=counts["rejected"] > 0)
                _remove_parts(job)
        except (OSError, InputError) as error:
            if isinstance(job.parts, RemotePath) and not self._is_open() and job.output.exists():
                return {}  # another process has joined them meanwhile
            raise _unwritable(job.output, error) from None
        return counts

    def _all_rejected(self, rows: int) -> InputError:
        with self._file(0, _REJECTS_SUFFIX).open("rb") as file:
            first = json.loads(file.readline())
        return InputError(
            f"all {rows} rows of {self.job.input} were rejected, so {self.job.output} was not written; the first, line "
            f"{first['line']}: {first['reason']}; all reasons are in {self.job.parts}"
        )

    def _write_output(self, numbers: Sequence[int], *, any_rejects: bool) -> None:
        if any_rejects:
            rejects = [self._file(number, _REJECTS_SUFFIX) for number in numbers]
            tables.join_parts(rejects, self.job.rejects, _REJECTS_SCHEMA, format="jsonl")
        self.writer.join([self._file(number, ".part") for number in numbers], self.job.output)

    def _file(self, number: int, suffix: str) -> Path:
        return self.job.parts / f"{number:08d}{suffix}"


def _remove_parts(job: Job) -> None:
    """Removes joined parts. A run that is killed meanwhile is either to be joined again or done."""
    if isinstance(job.parts, RemotePath):
        (job.parts / _CONFIG_FILE).unlink()  # what is left after that is nobody's
        job.parts.remove_tree()
        return
    joined = _joined_parts(job)
    job.parts.rename(joined)  # atomic
    shutil.rmtree(joined)


def _joined_parts(job: Job) -> Path:
    """The directory that holds parts after they have been joined, until they are removed."""
    return job.parts.with_name(job.parts.name + ".done")


@contextmanager
def _share_lock(job: Job) -> Iterator[None]:
    """Keeps other processes from running the same share of the same job. The lock ends with the process."""
    if isinstance(job.parts, RemotePath):
        yield
        return
    lock = filelock.FileLock(job.parts / f"share-{job.share[0]}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise _busy(job) from None
    except OSError as error:
        raise _unwritable(job.parts, error) from None
    try:
        yield
    finally:
        with suppress(OSError):  # the directory may be gone
            lock.release()


def _require_nobody(job: Job) -> None:
    """Raises InputError if a process is running a share of the job."""
    for path in job.parts.glob("share-*.lock"):
        try:
            with filelock.FileLock(path, timeout=0):
                pass
        except filelock.Timeout:
            raise _busy(job) from None


def _busy(job: Job) -> InputError:
    return InputError(f"another process is already writing {job.output}; wait for it or stop it")


@contextmanager
def _job_lock(job: Job) -> Iterator[None]:
    """Lets one process at a time look at the parts and decide whether it may write such parts too."""
    if isinstance(job.parts, RemotePath):
        yield
        return
    try:
        job.parts.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(job.parts / _JOB_LOCK)
        lock.acquire()
    except OSError as error:
        raise _unwritable(job.parts, error) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _join_lock(job: Job) -> Iterator[None]:
    """Lets one process at a time join the parts."""
    if isinstance(job.parts, RemotePath):
        yield
        return
    path = job.parts.with_name(job.parts.name + ".lock")
    try:
        with filelock.FileLock(path):
            yield
    finally:
        with suppress(OSError):
            path.unlink()


def _run_config(job: Job, predictor: Predictor, contents: Contents) -> dict[str, Any]:
    """Everything that the bytes of a part depend on."""
    return {
        **settings_of(predictor, job.model),
        _INPUT: asdict(contents),
        "texts": list(job.text_columns),
        "keep": list(job.keep),
        "header": job.header,
        "format": tables.input_format(job.input, job.format),
        "output_format": job.output.suffix,
        "rows_per_part": job.rows_per_part,
    }


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None


def _changes(before: Any, now: Mapping[str, Any]) -> str | None:
    """Describes how the settings of a job differ from those of earlier parts; None if they do not."""
    if not isinstance(before, dict):
        return "its job.json is damaged"
    found: list[str | None] = []
    for what in (_INPUT, _MODEL):
        old, new = before.get(what), now[what]
        if isinstance(old, dict) and isinstance(new, dict):
            found.append(Contents(**new).differences(Contents(new["name"], old.get("sha256") or {})))
        elif old != new:
            found.append(f"the {what} is another")
    others = [{key: value for key, value in config.items() if key not in (_INPUT, _MODEL)} for config in (before, now)]
    found.append(differences(*others))
    return ", ".join(filter(None, found)) or None


def _unwritable(path: Path, error: Exception) -> InputError:
    if isinstance(error, InputError):
        return error
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return InputError(f"cannot write {path}: {reason}; completed parts are kept, rerun the command to resume")


# The format of the results of each task.


class _Writer(Protocol):
    def write(self, path: Path, rows: Rows, results: Sequence[Any]) -> None:
        """Writes the results of a part. The file is complete or absent."""

    def join(self, parts: Sequence[Path], output: Path) -> None:
        """Joins all parts to the output. The file is complete or absent."""


def _make_writer(job: Job, predictor: Predictor, metadata: Mapping[str, str]) -> _Writer:
    if job.output.suffix == ".npy":
        width = _vector_size(predictor)
        if width is None or job.keep:
            raise InputError(
                f"{job.output}: a .npy file holds one vector per row and nothing else; choose .parquet or .jsonl"
            )
        return _NpyWriter(width)
    return _TableWriter(job, predictor, metadata)


def _vector_size(predictor: Predictor) -> int | None:
    """The width of a result that is one vector; None for any other result."""
    match predictor.task:
        case SparseEmbedding() | MultiVectorEmbedding():
            return None
        case SentenceEmbedding(embedding):
            return embedding.vector_size(predictor.config.hidden_size)
        case Embed(pooling) if pooling != "tokens":
            return predictor.config.hidden_size
    return None


class _TableWriter:
    """Writes a record for each row that was not rejected: its number, the columns to keep, and the result."""

    def __init__(self, job: Job, predictor: Predictor, metadata: Mapping[str, str]) -> None:
        self._format, self._metadata = tables.output_format(job.output), metadata
        schema, self._to_record = result_format(predictor)
        names = kept_names(job.keep, {_ROW, *schema})
        kinds = tables.kept_kinds(job.input, job.keep, job.format)
        self._kept_names, self._num_texts = [names[column] for column in job.keep], len(job.text_columns)
        self._schema: Schema = {_ROW: "integer", **{names[column]: kinds[column] for column in job.keep}, **schema}

    def write(self, path: Path, rows: Rows, results: Sequence[Any]) -> None:
        records = (
            {_ROW: row.number, **self._kept(row), **self._to_record(result)}
            for row, result in zip(rows, results, strict=True)
            if isinstance(row, tables.Row) and not isinstance(result, Rejected)
        )
        tables.write_part(path, records, self._schema, format=self._format)

    def join(self, parts: Sequence[Path], output: Path) -> None:
        tables.join_parts(parts, output, self._schema, format=self._format, metadata=self._metadata)

    def _kept(self, row: tables.Row) -> dict[str, Any]:
        return dict(zip(self._kept_names, row.values[self._num_texts :], strict=True))


class Described(Protocol):
    """What the format of results depends on; a Predictor has it."""

    @property
    def task(self) -> Task: ...
    @property
    def config(self) -> RobertaConfig: ...
    @property
    def tokenizer(self) -> Tokenizer: ...


def result_format(predictor: Described) -> tuple[Schema, Callable[[Any], dict[str, Any]]]:
    """How the results of a predictor are written to a file.

    Args:
      predictor: a Predictor, or what else has its task, its model's configuration and tokenizer.

    Returns:
      The columns with the kind of each, and a function that converts a result to a record of these columns.

    Raises:
      InputError: the results of this task cannot be written to a file.
    """
    match predictor.task:
        case Embed("tokens") | MultiVectorEmbedding():
            return {_FEATURES: "vectors"}, lambda features: {_FEATURES: features}
        case SparseEmbedding():
            token_name = predictor.tokenizer.token_name
            return {"weights": "scores"}, lambda weights: {
                "weights": {token_name(token_id): weight for token_id, weight in weights.items()}
            }
        case Embed() | SentenceEmbedding():
            return {_FEATURES: "floats"}, lambda features: {_FEATURES: features}
        case SentenceScores(head):
            return _score_format(predictor.config.head(head))
        case Tag(aggregation=aggregation):
            return _entities_format(aggregation)
        case Answer(top_k=top_k):
            return _answer_format(top_k)
        case ZeroShot(labels):
            return _zero_shot_format(labels)
        case Rank():
            return {"ranking": _RANKED}, _ranking_record
        case Choose():
            return {"choice": "integer", "score": "float", "log_probabilities": "floats"}, _choice_record
        case FillMask():
            return {"texts": "texts", "tokens": "texts", "probabilities": "floats"}, _filled_record
        case Classify(head, logits):
            return _classification_format(predictor.config.head(head), logits)
    raise InputError(f"results of {type(predictor.task).__name__} cannot be written to a file")


_SPAN: tuple[tuple[str, tables.Kind], ...] = (("start", "integer"), ("end", "integer"))
_ANSWER: Schema = {"answer": "text", "score": "float", "start": "integer", "end": "integer"}
_RANKED = tables.Records((("document", "integer"), ("score", "float")))


def _entities_format(aggregation: str) -> tuple[Schema, Callable[[Any], dict[str, Any]]]:
    name = "entity" if aggregation == "none" else "entity_group"
    index: tuple[tuple[str, tables.Kind], ...] = (("index", "integer"),) if aggregation == "none" else ()
    fields = tables.Records(((name, "text"), ("score", "float"), *index, ("word", "text"), *_SPAN))
    return {"entities": fields}, lambda entities: {"entities": _in_float32(entities)}


def _answer_format(top_k: int) -> tuple[Schema, Callable[[Any], dict[str, Any]]]:
    if top_k > 1:
        fields = tables.Records(tuple(_ANSWER.items()))
        return {"answers": fields}, lambda answers: {"answers": _in_float32(answers)}
    return _ANSWER, lambda answers: dict(_in_float32(answers)[0]) if answers else {}


def _in_float32(scored: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The same with scores of the precision that they were computed in."""
    return [{**each, "score": np.float32(each["score"])} for each in scored]


def _zero_shot_format(labels: Sequence[str]) -> tuple[Schema, Callable[[Any], dict[str, Any]]]:
    schema: Schema = {"label": "text", "score": "float", "probabilities": tables.Named(distinct_names(labels))}

    def to_record(probabilities: Any) -> dict[str, Any]:
        best = int(probabilities.argmax())
        return {"label": labels[best], "score": probabilities[best], "probabilities": probabilities}

    return schema, to_record


def _score_format(head: HeadConfig) -> tuple[Schema, Callable[[Any], dict[str, Any]]]:
    if head.num_classes == 1:
        return {"score": "float"}, lambda scores: {"score": scores[0]}
    return {"scores": tables.Named(distinct_names(head.label_names))}, lambda scores: {"scores": scores}


def _ranking_record(ranking: Sequence[tuple[int, float]]) -> dict[str, Any]:
    return {"ranking": [{"document": number, "score": np.float32(score)} for number, score in ranking]}


def _choice_record(log_probabilities: Any) -> dict[str, Any]:
    best = int(log_probabilities.argmax())
    score = np.exp(log_probabilities[best])
    return {"choice": best, "score": score, "log_probabilities": log_probabilities}


def _filled_record(filled: Sequence[tuple[str, float, str]]) -> dict[str, Any]:
    return {
        "texts": [text for text, _, _ in filled],
        "tokens": [token for _, _, token in filled],
        "probabilities": np.array([probability for _, probability, _ in filled], np.float32),
    }


def _classification_format(head: HeadConfig, logits: bool) -> tuple[Schema, Callable[[Any], dict[str, Any]]]:
    names = tables.Named(distinct_names(head.label_names), several=head.kind == "token")
    if head.problem == "regression":
        return {"values": names}, lambda values: {"values": values}
    outputs = "logits" if logits else "log_probabilities"
    several = head.kind == "token" or head.problem == "multi_label"
    label, score = ("labels", "scores") if several else ("label", "score")
    schema: Schema = {label: "texts" if several else "text", score: "floats" if several else "float", outputs: names}

    def to_record(values: Any) -> dict[str, Any]:
        return {
            label: predicted_labels(head, values, logits=logits),
            score: label_scores(head, values, logits=logits)[()],  # of an array of no axes, its number
            outputs: values,
        }

    return schema, to_record


class _NpyWriter:
    """Writes float32 [rows, hidden], for np.load(mmap_mode="r"). A row without a result is NaN."""

    def __init__(self, width: int) -> None:
        self._width = width

    def write(self, path: Path, rows: Rows, results: Sequence[Any]) -> None:
        vectors = np.full((len(results), self._width), np.nan, np.float32)
        for vector, result in zip(vectors, results, strict=True):
            if not isinstance(result, Rejected):
                vector[:] = result
        with replacing(path) as file:
            file.write(vectors.data)

    def join(self, parts: Sequence[Path], output: Path) -> None:
        size = sum(part.stat().st_size for part in parts)
        shape = (size // (4 * self._width), self._width)
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        with replacing(output) as file:
            np.lib.format.write_array_header_2_0(file, header)
            for part in parts:
                with part.open("rb") as content:
                    shutil.copyfileobj(content, file, 1 << 20)
