"""Reads files of texts, and writes files of predictions, for batch jobs.

Rows are read one by one, and a file is never held in memory as a whole. A row that cannot be used is returned as a
BadRow with the reason, and reading continues. Files are written in parts, so that a stopped job can resume. A part is
complete or absent, and the joined file depends only on the content of the parts.

  .jsonl .ndjson   one object per line; blank lines are not rows
  .csv             RFC 4180, as the csv module reads it in strict mode; blank lines are not rows
  .tsv             tabs between columns and no quoting, as in GLUE's files; quotes and backslashes are plain characters
  .txt             one text per line, which may be empty; the column is "text"
  .parquet         a file, or a directory of files in the order of their names

All of them except Parquet may be compressed by gzip, whether the name says so (.jsonl.gz) or not. Text is UTF-8, with
or without a byte order mark. Lines end in \\n or \\r\\n. Parquet needs pyarrow, which is imported only for Parquet.

What is no file of rows is refused before any row is read: pipes and devices, and files whose first bytes are those of
UTF-16 text, of another compression, an archive or a workbook, whatever their names.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import logging
import math
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

import numpy as np

from roberta_flax.errors import InputError
from roberta_flax.extras import require
from roberta_flax.files import reading, replacing, require_rereadable
from roberta_flax.remote import is_url, to_path


@dataclass(frozen=True)
class Named:
    """The type of a field with a float for each of several names; in Parquet a struct.

    Attributes:
      names: the names, all different. A value is an array [names].
      several: whether the field is a list of these. A value is then an array [n, names].
    """

    names: tuple[str, ...]
    several: bool = False


@dataclass(frozen=True)
class Records:
    """The type of a field with any number of records; in Parquet a list of structs.

    Attributes:
      fields: the name and the kind of each field of a record. A value is a list of dicts.
    """

    fields: tuple[tuple[str, Kind], ...]


Kind: TypeAlias = (
    Literal["text", "integer", "float", "double", "boolean", "floats", "vectors", "texts", "scores", "scalar"]
    | Named
    | Records
)
"""The type of a field. Every field may also be None.

  text, integer, float, double, boolean   one value; a float is float32, a double float64
  floats, vectors                 float32 [n], [m, n]
  texts                           list of str
  scores                          dict of str to float
  scalar                          any of the first five, which may differ by row, as in a kept column (text in Parquet)
"""

logger = logging.getLogger(__name__)

_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".txt": "txt", ".parquet": "parquet"}
INPUT_FORMATS = tuple(dict.fromkeys(_SUFFIXES.values()))
_MAX_LINE = 16 << 20  # maximum number of bytes in a line or a CSV row, with its line ending
_BLOCK = 1 << 20  # bytes read at a time
_BATCH = 1024  # rows of Parquet in memory
_BOM = b"\xef\xbb\xbf"
_MAX_NAMES = 50  # maximum number of columns to name in a message
_MAX_QUOTED = 40  # maximum number of characters of a value to quote in a message
# Common names of text columns. The first entry whose columns all exist is used.
_USUAL_COLUMNS = (
    ("text",), ("sentence1", "sentence2"), ("premise", "hypothesis"), ("sentence_A", "sentence_B"),
    ("text_a", "text_b"), ("question1", "question2"), ("question", "sentence"), ("question", "context"),
    ("query", "document"), ("query", "passage"), ("sentence",), ("query",), ("document",), ("passage",),
)  # fmt: skip
_PARQUET = b"PAR1\x15"
_UTF16 = ("UTF-16 text", "convert it to UTF-8, for example with iconv -f UTF-16 -t UTF-8")
_UTF32 = ("UTF-32 text", "convert it to UTF-8, for example with iconv -f UTF-32 -t UTF-8")
# What other files begin with, what they are, and what to do.
_SIGNATURES = {
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", "decompress it, or compress it with gzip"),
    b"\xfd7zXZ\x00": ("compressed by xz", "decompress it, or compress it with gzip"),
    **{
        b"BZh%d1AY&SY" % level: ("compressed by bzip2", "decompress it, or compress it with gzip")
        for level in range(1, 10)
    },
    b"\x04\x22\x4d\x18": ("compressed by lz4", "decompress it, or compress it with gzip"),
    b"\x1f\x8b": ("a gzip file", "decompress it"),
    b"PK\x03\x04": ("a ZIP archive or an Excel workbook", "extract it, or export it as CSV"),
    b"PK\x05\x06": ("an empty ZIP archive", "name a file of rows"),
    b"7z\xbc\xaf\x27\x1c": ("a 7-Zip archive", "extract it"),
    b"Rar!\x1a\x07": ("a RAR archive", "extract it"),
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": ("an old Excel or Word file", "export it as CSV"),
    _PARQUET: ("a Parquet file", "let its name end in .parquet, or give the format parquet"),
    b"ARROW1\x00\x00": ("an Arrow file", "convert it to Parquet"),
    b"Obj\x01": ("an Avro file", "convert it to Parquet"),
    b"SQLite format 3\x00": ("an SQLite database", "export a table as CSV"),
    b"\x93NUMPY": ("a NumPy array", "write its texts to a file of rows"),
    b"%PDF-": ("a PDF document", "extract its text"),
    b"\xff\xfe\x00\x00": _UTF32,
    b"\x00\x00\xfe\xff": _UTF32,
    b"\xff\xfe": _UTF16,
    b"\xfe\xff": _UTF16,
}
# Which of the first four bytes are zero in text without a byte order mark (RFC 4627, section 3).
_ZEROS = {"x0x0": _UTF16, "0x0x": _UTF16, "x000": _UTF32, "000x": _UTF32}
_GZIP = b"\x1f\x8b"
_SNIFFED = 512  # bytes at the start of a file that tell what it is
_TSV_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


@dataclass(frozen=True, slots=True)
class Row:
    """A row with the requested columns.

    Attributes:
      number: the row's number in the file, from 0. Bad rows count, headers do not.
      line: the line of the file where the row begins, from 1; in Parquet, number + 1.
      values: one value for each of `columns`, then one for each of `keep`.
    """

    number: int
    line: int
    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used, numbered like a Row, and the reason: one short line."""

    number: int
    line: int
    reason: str


class _Bad(Exception):  # noqa: N818
    """The reason why a row cannot be used."""


# A row before its values are extracted: a line without its ending, the fields of a CSV row, or why it cannot be used.
_Record: TypeAlias = bytes | list[str] | _Bad


def read_rows(
    path: str | os.PathLike[str],
    columns: Sequence[str],
    *,
    keep: Sequence[str] = (),
    header: bool | None = None,
    format: str | None = None,
    start: int = 0,
) -> Iterator[Row | BadRow]:
    """Reads columns of a file, row by row.

    Args:
      path: a file, or a directory of Parquet files. The suffix determines the format.
      columns: the text columns. A row in which one is missing, null or not text is a BadRow. In CSV and TSV, a column
        that the header does not name may be given by its number, from 0.
      keep: the kept columns, which are passed through: text, number, true, false or null (in CSV and TSV always text).
      header: whether the first line of CSV and TSV names the columns; by default it does.
      format: one of INPUT_FORMATS, to override the suffix: for a .txt file with tabs, for example.
      start: number of rows to skip. The numbers of the remaining rows do not change.

    Raises:
      InputError: before the first row, if the format, a column or its type cannot be read, or if JSONL has objects of
        which none has the column; at any time, if the file is missing, truncated or damaged.
    """
    path = to_path(path)
    format, named = _input_format(path, header, format)
    if start < 0:
        raise InputError(f"start must be 0 or more rows, got {start}")
    if format == "parquet":
        files = _parquet_files(path)
        for file in files:
            _check_parquet(file, columns, keep)
        return _parquet_rows(files, columns, keep, start)
    if format == "jsonl":
        _check_json(path, (*columns, *keep))
        return _text_rows(path, format, lambda record: _pick_json(record, columns, keep), start)
    names = _first_names(path, format, named)
    if names is None and named:
        raise InputError(f"{path} is empty; expected a line that names the columns {_quoted([*columns, *keep])}")
    indices = [_column_index(path, names, name) for name in (*columns, *keep)]
    width = len(names or ())
    return _text_rows(path, format, lambda record: _pick_fields(record, format, width, indices), start, int(named))


def read_objects(path: str | os.PathLike[str]) -> Iterator[Row | BadRow]:
    """Reads the objects of a JSONL file, whatever their fields. A Row has one value, a dict.

    Raises:
      InputError: as in `read_rows`, or the file has another format.
    """
    path = to_path(path)
    format, _ = _input_format(path, None, None)
    if format != "jsonl":
        raise InputError(f"{path}: expected a .jsonl or .ndjson file, whose rows can contain lists and objects")
    return _text_rows(path, format, lambda record: (_json_object(record),), 0)


def column_names(
    path: str | os.PathLike[str], header: bool | None = None, format: str | None = None
) -> list[str] | None:
    """Returns the names of a file's columns, as `read_rows` accepts them.

    For JSONL they are the keys of the first object. For CSV and TSV without a header they are numbers.

    Returns:
      The names; None if the file has no row.

    Raises:
      InputError: as in `read_rows`.
    """
    path = to_path(path)
    format, named = _input_format(path, header, format)
    if format == "parquet":
        with _parquet_file(_parquet_files(path)[0]) as file:
            return list(file.schema_arrow.names)
    return _first_names(path, format, named)


def input_files(path: str | os.PathLike[str]) -> list[Path]:
    """The files that `read_rows` reads, in order: the file, or those in a directory of Parquet files."""
    return _parquet_files(to_path(path))


def input_format(path: str | os.PathLike[str], format: str | None = None) -> str:
    """The format in which `read_rows` reads a file, by its name or as given. Raises InputError as it does."""
    return _input_format(to_path(path), None, format)[0]


def count_rows(path: str | os.PathLike[str], header: bool | None = None, format: str | None = None) -> int | None:
    """Counts the records of a file without reading them, or returns None where that would take as long as reading.

    A line break between quotes of a CSV file ends no record. Empty lines of JSONL count. Errors are those of read_rows.
    """
    path = to_path(path)
    format, named = _input_format(path, header, format)
    if format == "parquet":
        return sum(_parquet_row_count(file) for file in _parquet_files(path))
    if is_url(path) or path.suffix.lower() == ".gz" or is_gzip(path):
        return None
    lines, last, quoted = 0, b"\n", False
    for block in _blocks(path):
        last = block[-1:]
        parts = block.split(b'"') if format == "csv" else [block]
        lines += sum(part.count(b"\n") for part in parts[quoted::2])
        quoted ^= len(parts) % 2 == 0
    return max(lines + (last != b"\n") - named, 0)


def kept_kinds(path: str | os.PathLike[str], keep: Sequence[str], format: str | None = None) -> dict[str, Kind]:
    """The kind of each kept column: in Parquet that of its type, if all files agree; elsewhere "scalar".

    Raises:
      InputError: as in `read_rows`.
    """
    if input_format(path, format) != "parquet":
        return dict.fromkeys(keep, "scalar")
    found: dict[str, set[Kind]] = {name: set() for name in keep}
    for file in input_files(path):
        _check_parquet(file, (), keep)
        with _parquet_file(file) as opened:
            for name in keep:
                found[name].add(_kind_of(opened.schema_arrow.field(name).type))
    return {name: kinds.pop() if len(kinds) == 1 else "scalar" for name, kinds in found.items()}


def usual_columns(
    path: str | os.PathLike[str], header: bool | None = None, format: str | None = None
) -> tuple[str, ...]:
    """Finds the one or two text columns of a file: the first common names that occur, or else the only column.

    Raises:
      InputError: as in column_names; or no text column was found. The message lists the columns.
    """
    names = column_names(path, header, format) or []
    found = next((columns for columns in _USUAL_COLUMNS if set(columns) <= set(names)), None)
    if found is None and len(names) == 1:
        found = (names[0],)
        if header is not False and _input_format(to_path(path), header, format)[1]:
            logger.info(
                "%s: the only column, %r, holds the texts; if that is a text and no name, say that there is no header "
                "(--no-header)",
                path, names[0],
            )  # fmt: skip
    if found is None:
        shown = ", ".join(map(repr, names[:20])) or "none"
        raise InputError(f"{path} has the columns {shown}; say which hold text with --text-column (-c)")
    return found


def is_named_as_input(text: str) -> bool:
    """Whether a text names an input for `read_rows`: it has the suffix of one, is a directory, or a URL of a store."""
    if is_url(text) and not text.startswith("http"):  # which texts may begin with
        return True
    path = Path(text)
    compressed = path.suffix.lower() == ".gz"
    suffix = (path.with_suffix("") if compressed else path).suffix.lower()
    return suffix in _SUFFIXES or os.path.isdir(text)


def output_format(path: str | os.PathLike[str]) -> str:
    """Returns the format of a file of predictions from its suffix: "jsonl", "csv", "tsv" or "parquet".

    Raises:
      InputError: another suffix.
    """
    format = _SUFFIXES.get(to_path(path).suffix.lower())
    if format is None or format == "txt":
        raise InputError(
            f"{path}: predictions are written to .jsonl, .ndjson, .csv, .tsv or .parquet; name such a file"
        )
    return format


def write_part(path: Path, records: Iterable[Mapping[str, Any]], schema: Mapping[str, Kind], *, format: str) -> None:
    """Writes rows as one part of a file, for `join_parts`. `path` is replaced only when the part is complete.

    Floats are written with the fewest digits that give the same float32. NaN and infinity are null in JSON, and empty
    in CSV and TSV. Lists and dicts in CSV and TSV are JSON. TSV writes tab, newline, carriage return and backslash as
    \\t, \\n, \\r and \\\\.

    Args:
      path: the part, which may have any name.
      records: for each row, a mapping of fields to values: str, int, float, bool, a list or dict of these, a numpy
        array of any float type, [n] or [m, n] (see Kind), or None. A missing field is None.
      schema: the fields to write, in order, and their types.
      format: a format that `output_format` returns.

    Raises:
      InputError: the file cannot be written, or in Parquet a value has another type than its field.
    """
    with replacing(path) as file:
        if format == "parquet":
            table = arrow_table(path, records, schema)
            _write_tables(file, table.schema, [table])
        else:
            line = _LINES[format]
            for record in records:
                file.write(line({field: _by_name(record.get(field), kind) for field, kind in schema.items()}).encode())


def plain_record(record: Mapping[str, Any], schema: Mapping[str, Kind]) -> dict[str, Any]:
    """A record of values that any library takes.

    Args:
      record: as in `write_part`.
      schema: the fields and their kinds.

    Returns:
      A dict of str, int, float, bool, None, and lists and dicts of these, as `write_part` writes them to JSONL: a Named
      field is a dict of its names. Only "floats" and "vectors" are float32 arrays, [n] and [m, n].
    """
    arrays = ("floats", "vectors")
    values = {field: _by_name(record.get(field), kind) for field, kind in schema.items()}
    return {field: value if schema[field] in arrays else _plain(value) for field, value in values.items()}


def join_parts(
    parts: Sequence[Path],
    destination: Path,
    schema: Mapping[str, Kind],
    *,
    format: str,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Joins the parts that `write_part` wrote into one file. `destination` is replaced only when the file is complete.

    CSV and TSV begin with a line that names the fields. Without parts, the file has no rows. Parquet has the metadata
    in its schema; the other formats have no place for it.

    Raises:
      InputError: a part cannot be read, or the file cannot be written.
    """
    with replacing(destination) as file:
        if format == "parquet":
            arrow = _arrow_schema(schema).with_metadata(dict(metadata) if metadata else None)
            _write_tables(file, arrow, (table for part in parts for table in _part_tables(part, arrow)))
            return
        if format != "jsonl":
            file.write(_LINES[format]({field: field for field in schema}).encode())
        for part in parts:
            for block in _blocks(part):
                file.write(block)


# Text files


def _input_format(path: Path, header: bool | None, given: str | None) -> tuple[str, bool]:
    """Returns the format of an input file, and whether its first line names the columns."""
    if given is not None and given not in INPUT_FORMATS:
        raise InputError(f"format must be one of {', '.join(INPUT_FORMATS)}, got {given!r}")
    require_rereadable(path)
    compressed = path.suffix.lower() == ".gz"
    format = given or _SUFFIXES.get((path.with_suffix("") if compressed else path).suffix.lower())
    with reading(path, InputError):
        is_directory = path.is_dir()
    if is_directory:
        format = "parquet"
    if format is None or (compressed and format == "parquet"):
        raise InputError(
            f"{path}: expected a file that ends in .jsonl, .ndjson, .csv, .tsv or .txt (each also with .gz after it) or"
            " .parquet, or a directory of .parquet files"
        )
    if header and format not in ("csv", "tsv"):
        raise InputError(f"{path}: only CSV and TSV have a line that names the columns; leave out header=True")
    return format, format in ("csv", "tsv") and header is not False


@contextmanager
def _reading(path: Path) -> Iterator[io.BufferedReader]:
    """Opens a file for reading. Errors while it is open become InputErrors."""
    try:
        with path.open("rb") as file:
            yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is not a whole gzip file ({error}); copy or compress it again") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None


@contextmanager
def _text_file(path: Path) -> Iterator[IO[bytes]]:
    """Opens a text file for reading, and decompresses it if necessary. Raises InputError if it is no text."""
    with _reading(path) as raw:
        start = raw.peek(_SNIFFED)[:_SNIFFED]
        if path.suffix.lower() != ".gz" and not start.startswith(_GZIP):
            _require_rows(path, start, "UTF-8 text")
            yield raw
            return
        if not start:
            raise EOFError("it is empty")  # GzipFile would read it as an empty text
        with io.BufferedReader(gzip.GzipFile(fileobj=raw), _BLOCK) as file:
            _require_rows(path, file.peek(_SNIFFED)[:_SNIFFED], "UTF-8 text")
            yield file


def is_gzip(path: Path) -> bool:
    """Whether a file begins as gzip's do."""
    with _reading(path) as file:
        return file.read(len(_GZIP)) == _GZIP


def _require_rows(path: Path, start: bytes, expected: str) -> None:
    """Raises InputError, naming what it is, if the bytes that a file starts with are those of something else."""
    found = next((known for signature, known in _SIGNATURES.items() if start.startswith(signature)), None)
    if start[257:262] == b"ustar" and b"\0" in start[:257]:  # after a name that is padded with zeros
        found = ("a tar archive", "extract it")
    found = found or _ZEROS.get("".join("x" if byte else "0" for byte in start[:4]))
    if found is not None:
        what, advice = found
        raise InputError(f"{path} is {what}, not {expected}; {advice}")


def _text_rows(
    path: Path, format: str, pick: Callable[[_Record], tuple[Any, ...]], start: int, headers: int = 0
) -> Iterator[Row | BadRow]:
    """Yields the rows of a text file, from number `start`. The first `headers` records are not rows."""
    with _text_file(path) as file:
        for number, (line, record) in enumerate(islice(_records(file, format), headers + start, None), start):
            try:
                yield Row(number, line, pick(record))
            except _Bad as bad:
                yield BadRow(number, line, str(bad))


def _records(file: IO[bytes], format: str) -> Iterator[tuple[int, _Record]]:
    """Yields the records of a text file, each with the number of its first line."""
    if format == "csv":
        yield from _csv_records(file)
        return
    for number, line in enumerate(_lines(file), 1):
        if line is None:
            yield number, _too_long()
        elif format != "jsonl" or not line.isspace():
            yield number, line[:-1].removesuffix(b"\r") if line.endswith(b"\n") else line


def _lines(file: IO[bytes]) -> Iterator[bytes | None]:
    """Yields the lines of a file with their endings; None for a line over _MAX_LINE bytes."""
    line = file.readline(_MAX_LINE + 1).removeprefix(_BOM)
    while line:
        if len(line) > _MAX_LINE:
            while line and not line.endswith(b"\n"):
                line = file.readline(_BLOCK)
            yield None
        else:
            yield line
        line = file.readline(_MAX_LINE + 1)


def _too_long() -> _Bad:
    return _Bad(f"longer than {_MAX_LINE} bytes")


class _CsvLines:
    """Iterates over the lines of a CSV file for the csv module, and keeps the first decoding error of the row."""

    def __init__(self, file: IO[bytes]) -> None:
        self._lines = _lines(file)
        self.number = 0
        self.begin_row()

    def begin_row(self) -> None:
        self._size = 0
        self.bad: _Bad | None = None

    def __iter__(self) -> _CsvLines:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.number += 1
        if line is None or self._size + len(line) > _MAX_LINE:  # an unclosed quote continues to the end of the file
            raise _too_long()
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            self.bad = self.bad or _invalid_utf8(self._size + error.start)
            return line.decode(errors="replace")
        finally:
            self._size += len(line)


def _csv_records(file: IO[bytes]) -> Iterator[tuple[int, _Record]]:
    """Yields the records of a CSV file. It raises the process's field size limit to _MAX_LINE."""
    csv.field_size_limit(max(csv.field_size_limit(), _MAX_LINE))
    lines = _CsvLines(file)
    reader = csv.reader(lines, strict=True)
    while True:
        lines.begin_row()
        line = lines.number + 1
        record: _Record
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            record = _Bad(f"not CSV: {str(error).partition(' - ')[0]}")  # the rest is advice for programmers
        except _Bad as bad:
            record = bad
        if record:
            yield line, lines.bad or record


def _invalid_utf8(position: int) -> _Bad:
    return _Bad(f"invalid UTF-8 at byte {position + 1}")


def _decode(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise _invalid_utf8(error.start) from None


def _fields(record: _Record, format: str) -> list[str]:
    """Returns the fields of a record from CSV, TSV or plain text."""
    if isinstance(record, _Bad):
        raise record
    if isinstance(record, list):
        return record
    text = _decode(record)
    return text.split("\t") if format == "tsv" else [text]


def _first_names(path: Path, format: str, named: bool) -> list[str] | None:
    """Returns the names of a text file's columns, from its first usable record; None if there is none."""
    with _text_file(path) as file:
        if format == "txt":
            return ["text"]
        for _, record in _records(file, format):
            try:
                if format == "jsonl":
                    return list(_json_object(record))
                fields = _fields(record, format)
                return fields if named else [str(i) for i in range(len(fields))]
            except _Bad as bad:
                if named:
                    raise InputError(f"{path}: cannot read the line that names the columns: {bad}") from None
    return None


def _check_json(path: Path, columns: Sequence[str]) -> None:
    """Raises InputError if a JSONL file has objects, and a column is in none of them. Reads until it has seen all."""
    missing = dict.fromkeys(columns)
    names: dict[str, None] = {}
    with _text_file(path) as file:
        for _, record in _records(file, "jsonl"):
            try:
                found = _json_object(record)
            except _Bad:
                continue
            for name in found:
                missing.pop(name, None)
                if len(names) <= _MAX_NAMES:
                    names[name] = None
            if not missing:
                return
    if names and missing:
        raise _no_column(path, next(iter(missing)), list(names))


def _column_index(path: Path, names: list[str] | None, name: str) -> int:
    """Returns a column's index, given its name or number. Without names, as in an empty file, any number will do."""
    number = int(name) if name.isascii() and name.isdigit() else None
    if names is None and number is not None:
        return number
    names = names or []
    if names.count(name) > 1:
        raise InputError(f"{path} has {names.count(name)} columns {name!r}; give the number of the one meant, from 0")
    if name in names:
        return names.index(name)
    if number is not None and number < len(names):
        return number
    raise _no_column(path, name, names)


def _no_column(path: Path, name: str, names: Sequence[str]) -> InputError:
    return InputError(f"{path} has no column {name!r}; its columns are {_quoted(names)}")


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_MAX_NAMES])) + (", ..." if len(names) > _MAX_NAMES else "")


def _pick_fields(record: _Record, format: str, width: int, indices: Sequence[int]) -> tuple[str, ...]:
    fields = _fields(record, format)
    if len(fields) != width:
        raise _Bad(f"{len(fields)} column{'s' * (len(fields) != 1)}, expected {width}")
    return tuple([fields[i] for i in indices])


def _pick_json(record: _Record, columns: Sequence[str], keep: Sequence[str]) -> tuple[Any, ...]:
    values = _json_object(record)
    try:
        return (*[_text(name, values[name]) for name in columns], *[_scalar(name, values[name]) for name in keep])
    except KeyError as error:
        raise _Bad(f"column {error.args[0]!r} is missing") from None


def _json_object(record: _Record) -> dict[str, Any]:
    if isinstance(record, _Bad):
        raise record
    assert isinstance(record, bytes)
    try:
        value = json.loads(_decode(record))
    except json.JSONDecodeError as error:
        raise _Bad(f"not JSON: {error.msg} at character {error.pos + 1}") from None
    except ValueError:
        raise _Bad("not JSON: a number with thousands of digits") from None
    except RecursionError:
        raise _Bad("not JSON: nested too deeply") from None
    if not isinstance(value, dict):
        raise _Bad(f"{_describe(value)}, expected an object")
    return value


# Values


def _text(name: str, value: Any) -> str:
    """The value of a column of texts, if it is one."""
    if isinstance(value, bytes):
        return _decode(value)
    if not isinstance(value, str):
        raise _Bad(f"column {name!r} is {_describe(value)}" + ", expected text" * (value is not None))
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can escape it
        raise _Bad(f"column {name!r} has a lone surrogate (\\u{ord(value[error.start]):04x})") from None
    return value


def _scalar(name: str, value: Any) -> Any:
    """Returns the value of a kept column; raises _Bad for a list or object."""
    if isinstance(value, (dict, list)):
        raise _Bad(f"column {name!r} is {_describe(value)}, expected text, a number, true, false or null")
    return _text(name, value) if isinstance(value, (str, bytes)) else value


def _describe(value: Any) -> str:
    """Describes a JSON value in a few words: "a number (5)"."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    shown = json.dumps(value)
    if value is None or isinstance(value, bool):
        return shown
    quoted = shown[:_MAX_QUOTED] + "..." * (len(shown) > _MAX_QUOTED)
    return f"{'text' if isinstance(value, str) else 'a number'} ({quoted})"


def _plain(value: Any) -> Any:
    """Converts a value of a record for JSON: NaN and infinity become None, and floats have the fewest digits."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode(errors="backslashreplace").decode()
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain_array(np.asarray(value))
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _by_name(value: Any, kind: Kind) -> Any:
    """Converts an array of a Named field to a dict, or to a list of dicts, with the fewest digits; nothing else."""
    if value is None or not isinstance(kind, Named):
        return value
    rows = [dict(zip(kind.names, row, strict=True)) for row in _plain_array(np.atleast_2d(np.asarray(value)))]
    return rows if kind.several else rows[0]


def _plain_array(array: np.ndarray[Any, Any]) -> Any:
    if array.dtype.kind in "biuU":
        return array.tolist()
    if array.dtype != np.float64:
        array = array.astype(np.float32)
    if array.ndim > 1:
        return [_plain_array(row) for row in array]
    digits = array.astype("U").tolist()  # numpy writes the fewest digits that give the same value in its dtype
    values = [float(text) for text in np.atleast_1d(digits)]
    if not np.isfinite(array).all():
        values = [value if math.isfinite(value) else None for value in values]  # type: ignore[misc]
    return values if array.ndim else values[0]


# Lines of the text formats


def _json_line(values: dict[str, Any]) -> str:
    return json.dumps(_plain(values), ensure_ascii=False) + "\n"


def _csv_line(values: dict[str, Any]) -> str:
    line = io.StringIO()
    csv.writer(line).writerow([_cell(value) for value in values.values()])  # quotes \r only where lines end in \r\n
    return line.getvalue()[:-2] + "\n"


def _tsv_line(values: dict[str, Any]) -> str:
    return "\t".join(_cell(value).translate(_TSV_ESCAPES) for value in values.values()) + "\n"


def _cell(value: Any) -> str:
    plain = _plain(value)
    if plain is None:
        return ""
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)


_LINES: dict[str, Callable[[dict[str, Any]], str]] = {"jsonl": _json_line, "csv": _csv_line, "tsv": _tsv_line}


def _blocks(path: Path) -> Iterator[bytes]:
    with _reading(path) as file:
        while block := file.read(_BLOCK):
            yield block


# Parquet


def _pyarrow() -> Any:
    """Imports pyarrow, with pyarrow.parquet."""
    pyarrow = require("pyarrow", "parquet")
    require("pyarrow.parquet", "parquet")
    return pyarrow


def _parquet_files(path: Path) -> list[Path]:
    with reading(path, InputError):
        return _files_of(path)


def _files_of(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    if nested := next((file for file in path.glob("*/**/*.parquet") if not _is_hidden(file.relative_to(path))), None):
        raise InputError(f"{path} has Parquet files in directories below it, such as {nested}; name one of these")
    visible = sorted(file for file in path.iterdir() if not _is_hidden(Path(file.name)))
    files = [file for file in visible if file.suffix.lower() == ".parquet"]
    if other := next((file for file in visible if file.suffix.lower() != ".parquet" and _is_parquet(file)), None):
        raise InputError(f"{other} is a Parquet file; rename it to end in .parquet, or move it away")
    if not files:
        raise InputError(f"{path} is a directory without .parquet files; name a Parquet file or a directory of them")
    return files


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def _is_parquet(path: Path) -> bool:
    if not path.is_file():
        return False
    with _reading(path) as file:
        return file.read(len(_PARQUET)) == _PARQUET


@contextmanager
def _parquet_file(path: Path) -> Iterator[Any]:
    """Opens a pyarrow.parquet.ParquetFile. Errors while it is open become InputErrors."""
    pyarrow = _pyarrow()
    require_rereadable(path)
    with _reading(path) as file:
        if not (start := file.peek(_SNIFFED)[:_SNIFFED]).startswith(_PARQUET):
            _require_rows(path, start, "Parquet")
    try:
        with ExitStack() as stack:
            source = stack.enter_context(path.open("rb")) if is_url(path) else path
            yield stack.enter_context(pyarrow.parquet.ParquetFile(source, buffer_size=_BLOCK, pre_buffer=False))
    except (OSError, pyarrow.ArrowException) as error:
        if isinstance(error, OSError) and error.errno:
            raise InputError(f"cannot read {path}: {error.strerror or os.strerror(error.errno)}") from None
        problem = (str(error).splitlines() or ["?"])[0]
        raise InputError(f"{path} is not a whole Parquet file ({problem}); copy or write it again") from None


def _parquet_row_count(path: Path) -> int:
    with _parquet_file(path) as file:
        return int(file.metadata.num_rows)


def _check_parquet(path: Path, columns: Sequence[str], keep: Sequence[str]) -> None:
    """Raises InputError unless each column exists, once, with a type that can be read."""
    with _parquet_file(path) as file:
        schema = file.schema_arrow
    types = _pyarrow().types
    texts = (types.is_string, types.is_large_string, types.is_string_view)
    scalars = (*texts, types.is_integer, types.is_floating, types.is_boolean, types.is_null)
    for name in (*columns, *keep):
        accepted, expected = (texts, "text") if name in columns else (scalars, "text, numbers or true and false")
        if name not in schema.names:
            raise _no_column(path, name, schema.names)
        if schema.names.count(name) > 1:
            raise InputError(f"{path} has {schema.names.count(name)} columns {name!r}; rename all but one")
        type = schema.field(name).type
        value_type = type.value_type if types.is_dictionary(type) else type
        if not any(accepts(value_type) for accepts in accepted):
            raise InputError(f"{path}: column {name!r} is {type}, expected {expected}; convert or leave out the column")


def _kind_of(type: Any) -> Kind:
    """The kind that holds every value of an Arrow type that _check_parquet accepts for a kept column."""
    types = _pyarrow().types
    value_type = type.value_type if types.is_dictionary(type) else type
    if types.is_integer(value_type) and not types.is_uint64(value_type):
        return "integer"
    if types.is_floating(value_type):
        return "double"
    if types.is_boolean(value_type):
        return "boolean"
    return "scalar" if types.is_null(value_type) or types.is_uint64(value_type) else "text"


def _parquet_rows(
    paths: Sequence[Path], columns: Sequence[str], keep: Sequence[str], start: int
) -> Iterator[Row | BadRow]:
    wanted = list(dict.fromkeys((*columns, *keep)))
    number = 0
    for path in paths:
        with _parquet_file(path) as file:
            for group in range(file.num_row_groups):
                end = number + file.metadata.row_group(group).num_rows
                if number <= end <= start:
                    number = end
                    continue
                for batch in file.iter_batches(_BATCH, row_groups=[group], columns=wanted, use_threads=False):
                    skipped = min(max(0, start - number), batch.num_rows)
                    yield from _batch_rows(batch.slice(skipped), columns, keep, number + skipped)
                    number += batch.num_rows
                if number != end:
                    raise OSError("the number of rows differs from its footer")


def _batch_rows(batch: Any, columns: Sequence[str], keep: Sequence[str], start: int) -> Iterator[Row | BadRow]:
    checks = [*[(_text, name) for name in columns], *[(_scalar, name) for name in keep]]
    values = [_pylist(batch.column(name)) for _, name in checks]
    for number, row in enumerate(zip(*values, strict=True), start):
        try:
            yield Row(number, number + 1, tuple([check(name, v) for (check, name), v in zip(checks, row, strict=True)]))
        except _Bad as bad:
            yield BadRow(number, number + 1, str(bad))


def _pylist(array: Any) -> list[Any]:
    """Converts an Arrow array to a list. If a text is not UTF-8, all of them are bytes."""
    try:
        return list(array.to_pylist())
    except UnicodeDecodeError:
        texts = (getattr(scalar, "value", scalar) for scalar in array)  # a scalar of a dictionary array wraps its text
        return [text.as_buffer().to_pybytes() if text is not None and text.is_valid else None for text in texts]


def _arrow_schema(schema: Mapping[str, Kind]) -> Any:
    pa = _pyarrow()
    types = {
        "text": pa.string(),
        "integer": pa.int64(),
        "float": pa.float32(),
        "double": pa.float64(),
        "boolean": pa.bool_(),
        "floats": pa.list_(pa.float32()),
        "vectors": pa.list_(pa.list_(pa.float32())),
        "texts": pa.list_(pa.string()),
        "scores": pa.map_(pa.string(), pa.float32()),
        "scalar": pa.string(),
    }

    def arrow_type(kind: Kind) -> Any:
        if isinstance(kind, Records):
            return pa.list_(pa.struct([(name, arrow_type(field)) for name, field in kind.fields]))
        if not isinstance(kind, Named):
            return types[kind]
        struct = pa.struct([(_plain(name), pa.float32()) for name in kind.names])
        return pa.list_(struct) if kind.several else struct

    return pa.schema([(field, arrow_type(kind)) for field, kind in schema.items()])


def arrow_table(what: object, records: Iterable[Mapping[str, Any]], schema: Mapping[str, Kind]) -> Any:
    """Converts records to a pyarrow.Table; raises InputError, naming the field, if a value has another type."""
    pa = _pyarrow()
    arrow, rows, columns = _arrow_schema(schema), list(records), []
    for field, kind in schema.items():
        try:
            values = [_arrow_value(record.get(field), kind) for record in rows]
            columns.append(pa.array(values, arrow.field(field).type))
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            problem = (str(error).splitlines() or ["?"])[0]
            wanted = {Named: "a float for each name", Records: "a list of records"}.get(type(kind), kind)
            raise InputError(f"cannot write {what}: field {field!r} is not {wanted} in every row: {problem}") from None
    return pa.table(columns, schema=arrow)


def _arrow_value(value: Any, kind: Kind) -> Any:
    """Converts a value to what pyarrow expects for its type."""
    if value is None:
        return None
    if isinstance(kind, Records):
        return [{name: _arrow_value(record[name], field) for name, field in kind.fields} for record in value]
    if kind == "floats":
        return np.asarray(value, np.float32)
    if kind == "vectors":
        return [np.asarray(vector, np.float32) for vector in value]
    if kind == "scores":
        return [(_plain(key), float(item)) for key, item in value.items()]
    if isinstance(kind, Named):
        rows = [
            dict(zip(map(_plain, kind.names), row, strict=True))
            for row in np.atleast_2d(np.asarray(value, np.float32)).tolist()
        ]
        return rows if kind.several else rows[0]
    if kind == "scalar":
        return None if _plain(value) is None else _cell(value)
    return _plain(value) if kind in ("text", "texts") else value


def _write_tables(file: IO[bytes], schema: Any, tables: Iterable[Any]) -> None:
    """Writes Parquet with one row group per table. Its bytes depend only on the tables and the version of pyarrow."""
    with _pyarrow().parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        for table in tables:
            if table.num_rows:
                writer.write_table(table, row_group_size=table.num_rows)


def _part_tables(path: Path, schema: Any) -> Iterator[Any]:
    with _parquet_file(path) as file:
        if file.schema_arrow != schema:
            raise InputError(f"{path} has other fields than the output; remove it and rerun the command")
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, use_threads=False)
