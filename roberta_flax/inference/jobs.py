"""run(): a file of texts in, a file of results out, through a Predictor; stopped at any moment, it goes on from there.

Rows are taken in parts of a fixed number. A part's results depend on its rows alone, and are written beside OUTPUT:

  OUTPUT.parts/job.json        what was asked; another run goes on only with the same
  OUTPUT.parts/00000007.json   what part 7 has: counts
  OUTPUT.parts/00000007.rejects.jsonl   its rows that have no result, and why
  OUTPUT.parts/00000007.part   its results; there when the two others are

At the end the parts are joined to OUTPUT, which appears when it is whole. So a run that was killed and started again
ends with the bytes of one that was not. Several processes may share the work: each takes every n-th part, and whichever
is the last joins them.
"""

from __future__ import annotations

import itertools
import json
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import filelock
import numpy as np
import numpy.typing as npt

from roberta_flax.datasets import tables
from roberta_flax.errors import InputError
from roberta_flax.files import differences, replacing
from roberta_flax.inference.predictor import Predictor
from roberta_flax.nn.config import HeadConfig
from roberta_flax.tasks.classify import Classify, labels_of
from roberta_flax.tasks.embed import Embed
from roberta_flax.tasks.fill_mask import FillMask
from roberta_flax.text.encoding import Rejected

ROWS_PER_PART = 8192
_PARTS_SUFFIX, _REJECTS_SUFFIX = ".parts", ".rejects.jsonl"
_REJECT_SCHEMA: dict[str, tables.Kind] = {"row": "integer", "line": "integer", "reason": "text"}
_FEATURES = "features"
# of the fields that `answers` gives, and the row's number
RESULT_NAMES = frozenset(
    ("row", _FEATURES, "label", "labels", "values", "log_probabilities", "logits", "texts", "tokens", "probabilities")
)
_COUNTS = ("rows", "rejected", "truncated")


@dataclass(frozen=True)
class Job:
    """What is asked of a run.

    Attributes:
      input: a file that tables.read_rows reads.
      output: .jsonl, .csv, .tsv or .parquet; of features .npy too.
      texts: the columns of the texts, one or several of one input.
      keep: columns that are passed through.
      header, format: as in tables.read_rows.
      model: what the results depend on and the others do not say: the model's files, dtype, ...; kept in job.json.
      rows_per_part: the rows that are done or not done together.
      strict: a row without a result stops the run.
      share: (this process, of how many).
    """

    input: Path
    output: Path
    texts: tuple[str, ...]
    keep: tuple[str, ...] = ()
    header: bool | None = None
    format: str | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    rows_per_part: int = ROWS_PER_PART
    strict: bool = False
    share: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        if isinstance(self.rows_per_part, bool) or not isinstance(self.rows_per_part, int) or self.rows_per_part < 1:
            raise InputError(f"rows_per_part must be a positive integer, got {self.rows_per_part!r}")
        if not 0 <= self.share[0] < self.share[1]:
            raise InputError(f"share must be (process, of how many) from 0 on, got {self.share}")
        check_kept(self.keep)

    @property
    def parts(self) -> Path:
        return self.output.with_name(self.output.name + _PARTS_SUFFIX)

    @property
    def rejects(self) -> Path:
        return self.output.with_name(self.output.name + _REJECTS_SUFFIX)


def check_kept(columns: Iterable[str]) -> None:
    """Raises InputError for a column that is to be kept and has the name of a result."""
    if clash := RESULT_NAMES.intersection(columns):
        raise InputError(f"column {min(clash)!r} cannot be kept: a result is called so; rename it")


class Progress(Protocol):
    """Is told how far a run is."""

    def __call__(self, rows: int, predictor: Predictor) -> None:
        """Of this process's share, `rows` are done: by the devices, not yet in a file all of them."""


def run(job: Job, predictor: Predictor, progress: Progress | None = None) -> dict[str, Any]:
    """Runs a job, or what is left of it.

    Args:
      job: what is asked.
      predictor: of Classify, Embed or FillMask, over the model that job.model describes.
      progress: called at the beginning, after each batch, and after each part.

    Returns:
      A summary: rows, rejected, truncated, tokens, seconds, ... of the whole job, and what this run did of it; "joined"
      tells whether OUTPUT is there, or waits for parts of other processes.

    Raises:
      InputError: a file that cannot be read or written, OUTPUT exists, parts of another run are there, or with `strict`
        a row that has no result. What was done is kept.
    """
    begin = time.perf_counter()
    parts = _Parts(job, _writer_of(job, predictor))
    parts.begin(_asked(job, predictor))
    with _alone(job):
        return _run(job, parts, predictor, progress, begin)


def _run(job: Job, parts: _Parts, predictor: Predictor, progress: Progress | None, begin: float) -> dict[str, Any]:
    resumed = {number: parts.counts(number)["rows"] for number in sorted(parts.done)}
    mine, of = job.share
    begun_with = sum(rows for number, rows in resumed.items() if number % of == mine) - predictor.stats.texts
    truncated = predictor.stats.truncated
    waiting: deque[tuple[int, Sequence[tables.Row | tables.BadRow]]] = deque()

    def windows() -> Iterator[list[Any]]:
        for number, rows in parts.to_do():
            waiting.append((number, rows))
            yield [
                Rejected(row.reason) if isinstance(row, tables.BadRow) else _item(row, len(job.texts)) for row in rows
            ]

    def report() -> None:
        if progress is not None:
            progress(begun_with + predictor.stats.texts, predictor)

    rows_done = sum(resumed.values())
    report()
    for results in predictor.windows(windows(), report):
        number, rows = waiting.popleft()
        parts.write(number, rows, results, predictor.stats.truncated - truncated)
        truncated = predictor.stats.truncated
        rows_done += len(rows)
        report()
    joined = parts.join()
    counts = joined or {"rows": rows_done}
    this_run = {"parts_resumed": len(resumed), **predictor.stats.to_json()}
    seconds = round(time.perf_counter() - begin, 3)
    files = {"output": str(job.output), "rejects": str(job.rejects) if counts.get("rejected") else None}
    return {**files, "joined": joined is not None, **counts, "seconds": seconds, "this_run": this_run}


def _item(row: tables.Row, texts: int) -> Any:
    """What the predictor takes: a text, or several of one input."""
    return row.values[0] if texts == 1 else row.values[:texts]


def rows_in(job: Job) -> int | None:
    """About how many rows this process's share of a job has, done or not; None where that cannot be told quickly."""
    rows = _lines_in(job.input)
    if rows is None:
        return None
    mine, of = job.share
    whole, rest = divmod(rows, job.rows_per_part)
    return len(range(mine, whole, of)) * job.rows_per_part + (rest if whole % of == mine else 0)


def _lines_in(path: Path) -> int | None:
    try:
        if path.suffix == ".parquet" and path.is_file():
            import pyarrow.parquet

            return int(pyarrow.parquet.read_metadata(path).num_rows)
        if path.is_file() and path.suffix != ".gz":
            with path.open("rb") as file:
                return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    except (OSError, ImportError, ValueError):
        pass  # reading says what is wrong, in its own words
    return None


class _Parts:
    """A job's parts on disk."""

    def __init__(self, job: Job, writer: _Writer) -> None:
        self.job = job
        self.writer = writer
        self.done: set[int] = set()
        self.total: int | None = None  # known when the input has been read to its end

    def begin(self, asked: dict[str, Any]) -> None:
        """Makes the directory of parts, or finds those of a run that was stopped."""
        job, marker = self.job, self.job.parts / "job.json"
        text = json.dumps(asked, indent=2, sort_keys=True) + "\n"
        try:
            shutil.rmtree(_trash(job), ignore_errors=True)
            if marker.is_file():
                _require_same(job, json.loads(marker.read_text(encoding="utf-8")), json.loads(text))
            elif job.output.exists() or job.rejects.exists():
                there = job.output if job.output.exists() else job.rejects
                raise InputError(f"{there} exists already; remove it or choose another name")
            else:
                job.parts.mkdir(parents=True, exist_ok=True)
                own = job.parts / f"job.{job.share[0]}.json"  # processes may begin at one moment
                _write_text(own, text)
                own.replace(marker)
            self.done = {int(file.stem) for file in job.parts.glob("*.part") if file.stem.isdecimal()}
        except (OSError, ValueError) as error:
            raise _unwritable(job.parts, error) from None

    def to_do(self) -> Iterator[tuple[int, Sequence[tables.Row | tables.BadRow]]]:
        """The rows of each part of this process's share that is not done yet, by its number."""
        mine, of = self.job.share
        first = next(i for i in itertools.count() if i not in self.done) if of == 1 else 0
        job, size = self.job, self.job.rows_per_part
        rows = tables.read_rows(
            job.input, job.texts, keep=job.keep, header=job.header, format=job.format, start=first * size
        )
        for number in itertools.count(first):
            some = list(itertools.islice(rows, size))
            if not some:
                self.total = number
                return
            if number % of == mine and number not in self.done:
                yield number, some

    def write(
        self, number: int, rows: Sequence[tables.Row | tables.BadRow], results: Sequence[Any], truncated: int
    ) -> None:
        """Writes a part: its rejects and counts, then its results."""
        job = self.job
        rejects = [
            {"row": row.number, "line": row.line, "reason": result.reason}
            for row, result in zip(rows, results, strict=True)
            if isinstance(result, Rejected)
        ]
        if job.strict and rejects:
            first = rejects[0]
            raise InputError(f"{job.input}, line {first['line']}: {first['reason']}. Stopped, as strict asks")
        tables.write_part(self._file(number, _REJECTS_SUFFIX), rejects, _REJECT_SCHEMA, format="jsonl")
        counts = {"rows": len(rows), "rejected": len(rejects), "truncated": truncated}
        _write_text(self._file(number, ".json"), json.dumps(counts) + "\n")
        self.writer.write(self._file(number, ".part"), rows, results)
        self.done.add(number)

    def counts(self, number: int) -> dict[str, int]:
        """What `write` noted of a part."""
        try:
            counts: dict[str, int] = json.loads(self._file(number, ".json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise _unwritable(self._file(number, ".json"), error) from None
        return counts

    def join(self) -> dict[str, int] | None:
        """Makes OUTPUT of all parts and removes them; None, and nothing, where some are not there yet."""
        job = self.job
        assert self.total is not None, "the input has been read to its end"
        numbers = range(self.total)
        try:
            with filelock.FileLock(job.parts.with_name(job.parts.name + ".lock")):
                if not job.parts.is_dir():  # another process has joined them
                    return {} if job.output.exists() else None
                if not all(self._file(number, ".part").is_file() for number in numbers):
                    return None
                counts = [self.counts(number) for number in numbers]
                total = {key: sum(each[key] for each in counts) for key in _COUNTS}
                if not job.output.exists():
                    if total["rejected"]:
                        rejects = [self._file(number, _REJECTS_SUFFIX) for number in numbers]
                        tables.join_parts(rejects, job.rejects, _REJECT_SCHEMA, format="jsonl")
                    self.writer.join([self._file(number, ".part") for number in numbers], job.output)
                trash = _trash(job)
                job.parts.rename(trash)  # so that a run which is killed here is either to be joined or done
                shutil.rmtree(trash)
        except OSError as error:
            raise _unwritable(job.output, error) from None
        finally:
            with suppress(OSError):
                job.parts.with_name(job.parts.name + ".lock").unlink()
        return total

    def _file(self, number: int, suffix: str) -> Path:
        return self.job.parts / f"{number:08d}{suffix}"


def _trash(job: Job) -> Path:
    """Where parts that have been joined are, until they are removed."""
    return job.parts.with_name(job.parts.name + ".done")


@contextmanager
def _alone(job: Job) -> Iterator[None]:
    """Lets no other process run the same share of the same job; the lock goes with the process."""
    lock = filelock.FileLock(job.parts / f"share-{job.share[0]}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise InputError(f"another process is writing {job.output} already; wait for it, or stop it") from None
    except OSError as error:
        raise _unwritable(job.parts, error) from None
    try:
        yield
    finally:
        with suppress(OSError):  # the directory may be gone
            lock.release()


def _asked(job: Job, predictor: Predictor) -> dict[str, Any]:
    """What a part's bytes depend on."""
    stat = job.input.stat() if job.input.exists() else None  # reading says what is wrong
    return {
        "input": str(job.input.resolve()),
        "input_size": stat and stat.st_size,
        "input_changed": stat and stat.st_mtime_ns,
        "texts": list(job.texts),
        "keep": list(job.keep),
        "header": job.header,
        "format": job.format,
        "output": job.output.name,
        "rows_per_part": job.rows_per_part,
        "work": [type(predictor.work).__name__, asdict(predictor.work)],  # type: ignore[call-overload]
        **predictor.describe(),
        **job.model,
    }


def _require_same(job: Job, before: Any, now: dict[str, Any]) -> None:
    if (changes := differences(before, now)) is not None:
        raise InputError(
            f"{job.parts} has parts of another run ({changes}); remove it to begin anew, or name another output"
        )


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode())


def _unwritable(path: Path, error: Exception) -> InputError:
    if isinstance(error, InputError):
        return error
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return InputError(f"cannot write {path}: {reason}; finished parts are kept; rerun the command to resume")


# what is written of each kind of work


class _Writer(Protocol):
    def write(self, path: Path, rows: Sequence[tables.Row | tables.BadRow], results: Sequence[Any]) -> None:
        """Writes a part; complete or absent."""

    def join(self, parts: Sequence[Path], output: Path) -> None:
        """Makes the output of all parts; complete or absent."""


def _writer_of(job: Job, predictor: Predictor) -> _Writer:
    work = predictor.work
    if job.output.suffix == ".npy":
        if not isinstance(work, Embed) or work.pooling == "tokens" or job.keep:
            raise InputError(
                f"{job.output}: a .npy file takes one vector a row and nothing else; choose .parquet or .jsonl"
            )
        return _NpyWriter(predictor.config.hidden_size)
    return _TableWriter(job, predictor)


class _TableWriter:
    """A record for each row that has a result: its number, what is kept of it, and what the model says."""

    def __init__(self, job: Job, predictor: Predictor) -> None:
        self._format = tables.output_format(job.output)
        self._keep, self._texts = job.keep, len(job.texts)
        fields, self._say = answers(predictor)
        self._schema: dict[str, tables.Kind] = {"row": "integer", **dict.fromkeys(job.keep, "scalar"), **fields}

    def write(self, path: Path, rows: Sequence[tables.Row | tables.BadRow], results: Sequence[Any]) -> None:
        records = (
            {"row": row.number, **dict(zip(self._keep, row.values[self._texts :], strict=True)), **self._say(result)}
            for row, result in zip(rows, results, strict=True)
            if isinstance(row, tables.Row) and not isinstance(result, Rejected)
        )
        tables.write_part(path, records, self._schema, format=self._format)

    def join(self, parts: Sequence[Path], output: Path) -> None:
        tables.join_parts(parts, output, self._schema, format=self._format)


def answers(predictor: Predictor) -> tuple[dict[str, tables.Kind], Callable[[Any], dict[str, Any]]]:
    """The fields of a predictor's results, and a function that takes one apart.

    Raises:
      InputError: work of a kind that is not known here.
    """
    match predictor.work:
        case Embed("tokens"):
            return {_FEATURES: "vectors"}, lambda features: {_FEATURES: features}
        case Embed():
            return {_FEATURES: "floats"}, lambda features: {_FEATURES: features}
        case FillMask():
            fields: dict[str, tables.Kind] = {"texts": "texts", "tokens": "texts", "probabilities": "floats"}
            return fields, lambda filled: {
                "texts": [text for text, _, _ in filled],
                "tokens": [token for _, _, token in filled],
                "probabilities": np.array([probability for _, probability, _ in filled], np.float32),
            }
        case Classify(head, logits):
            return _classes(predictor.config.head(head), logits)
    raise InputError(
        f"{type(predictor.work).__name__} is no work that a file can hold; expected Classify, Embed or FillMask"
    )


def _classes(
    head: HeadConfig, logits: bool
) -> tuple[dict[str, tables.Kind], Callable[[npt.NDArray[Any]], dict[str, Any]]]:
    if head.problem == "regression":
        return {"values": "floats"}, lambda values: {"values": values}
    scores = "logits" if logits else "log_probabilities"
    several = head.kind == "token" or head.problem == "multi_label"
    label, kind = ("labels", "texts") if several else ("label", "text")
    fields = {label: kind, scores: "vectors" if head.kind == "token" else "floats"}
    return cast(dict[str, tables.Kind], fields), lambda found: {
        label: labels_of(head, found, logits=logits), scores: found,
    }  # fmt: skip


class _NpyWriter:
    """float32 [rows, hidden] for np.load(mmap_mode="r"); a row without a result is NaN."""

    def __init__(self, width: int) -> None:
        self._width = width

    def write(self, path: Path, rows: Sequence[tables.Row | tables.BadRow], results: Sequence[Any]) -> None:
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
