"""Files of texts and of predictions: what is a row, what is a bad one, and that a file is whole or absent."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from roberta_flax.datasets import tables
from roberta_flax.datasets.tables import (
    BadRow,
    Kind,
    Named,
    Row,
    column_names,
    join_parts,
    output_format,
    read_rows,
    write_part,
)
from roberta_flax.errors import InputError

AWKWARD = [
    "plain",
    "",
    " spaces ",
    'a "quoted" word, and a comma',
    "two\nlines",
    "carriage\rreturn",
    "both\r\n",
    "tab\tand \\ backslash \\t",
    "line\u2028separator",
    "next\x85line",
    "nul\x00character",
    "pile of 💩",
    "\ufeffbyte order mark",
    "null",
]
any_text = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(AWKWARD)
fixture_is_shared = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60
)


def file(folder: Path, name: str, content: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def values(path: Path, *columns: str, **options: Any) -> list[Any]:
    """The first value of each row; the reason of a bad one."""
    return [row.values[0] if isinstance(row, Row) else row for row in read_rows(path, columns, **options)]


def reasons(path: Path, *columns: str, **options: Any) -> list[str]:
    return [row.reason for row in read_rows(path, columns, **options) if isinstance(row, BadRow)]


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def parquet() -> tuple[Any, Any]:
    return pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")


# JSONL


@fixture_is_shared
@given(texts=st.lists(any_text), ascii=st.booleans(), end=st.sampled_from(["\n", "\r\n"]))
def test_texts_of_jsonl_are_read_as_json_wrote_them(tmp_path: Path, texts: list[str], ascii: bool, end: str) -> None:
    lines = [json.dumps({"text": text}, ensure_ascii=ascii) for text in texts]
    assert values(file(tmp_path, "a.jsonl", end.join(lines)), "text") == texts


def test_blank_lines_of_jsonl_are_not_rows_and_lines_count_them(tmp_path: Path) -> None:
    path = file(tmp_path, "a.ndjson", '\n{"text": "a"}\n  \n\r\n{"text": "b"}\n\n')
    assert list(read_rows(path, ["text"])) == [Row(0, 2, ("a",)), Row(1, 5, ("b",))]


@pytest.mark.parametrize(
    ("name", "content", "header"),
    [
        ("a.csv", 'text,id\n"two\nlines",1\n"a ""quoted\n"" word",2\nplain,3\n', None),
        ("a.csv", "a,b\nc,d", False),
        ("a.tsv", 'text\n"one quote\nno end', None),
        ("a.txt", "one\ntwo\n", None),
        ("a.jsonl", '{"text": "\\"a"}\n{"text": "b"}', None),
    ],
)
def test_rows_are_counted_as_they_are_read(tmp_path: Path, monkeypatch, name, content, header) -> None:
    (tmp_path / name).write_text(content)
    columns = ("0",) if header is False else ("text",)
    read = len(list(tables.read_rows(tmp_path / name, columns, header=header)))
    for size in (1, 7, 1 << 16):
        monkeypatch.setattr(tables, "_BLOCK", size)
        assert tables.count_rows(tmp_path / name, header) == read


def test_texts_come_before_what_is_passed_through(tmp_path: Path) -> None:
    path = file(tmp_path, "a.jsonl", '{"id": 7, "text": "a", "pair": "b", "gold": null, "ok": true, "more": [1]}')
    assert list(read_rows(path, ["text", "pair"], keep=["ok", "id", "gold"])) == [Row(0, 1, ("a", "b", True, 7, None))]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"other": "a"}', "column 'text' is missing"),
        (b'{"text": null}', "column 'text' is null"),
        (b'{"text": 5}', "column 'text' is a number (5), expected text"),
        (b'{"text": false}', "column 'text' is false, expected text"),
        (b'{"text": ["a"]}', "column 'text' is a list, expected text"),
        (b'{"text": "a", "id": {"b": 1}}', "column 'id' is an object, expected text, a number, true, false or null"),
        (b'{"text": "a"}', "column 'id' is missing"),
        (b'{"text": "\\ud800", "id": 1}', "column 'text' has a lone surrogate (\\ud800)"),
        (b'{"text": "a", "id": "\\udfff"}', "column 'id' has a lone surrogate (\\udfff)"),
        (b'{"text": "caf\xe9", "id": 1}', "invalid UTF-8 at byte 14"),
        (b'{"text": "\xed\xa0\x80", "id": 1}', "invalid UTF-8 at byte 11"),
        (b'{"text": "a", "id": 1', "not JSON: Expecting ',' delimiter at character 22"),
        (b'"text"', 'text ("text"), expected an object'),
        (b"null", "null, expected an object"),
        (b"[" * 100_000, "not JSON: nested too deeply"),
        (b"9" * 5000, "not JSON: a number with thousands of digits"),
        (b'{"text": ' + b"9" * 4000 + b"}", f"column 'text' is a number ({'9' * 40}...), expected text"),
    ],
)
def test_a_bad_row_says_why_and_the_rows_after_it_are_read(tmp_path: Path, line: bytes, reason: str) -> None:
    good = b'{"text": "a", "id": 1}'
    path = file(tmp_path, "a.jsonl", b"\n".join([good, line, good]))
    rows = list(read_rows(path, ["text"], keep=["id"]))
    assert rows == [Row(0, 1, ("a", 1)), BadRow(1, 2, reason), Row(2, 3, ("a", 1))]


# CSV


@fixture_is_shared
@given(
    rows=st.lists(st.tuples(any_text, any_text)),
    style=st.sampled_from([("\n", csv.QUOTE_ALL), ("\r\n", csv.QUOTE_ALL), ("\r\n", csv.QUOTE_MINIMAL)]),
)
def test_csv_is_read_as_the_csv_module_wrote_it(
    tmp_path: Path, rows: list[tuple[str, str]], style: tuple[str, Any]
) -> None:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator=style[0], quoting=style[1]).writerows([("text", "id"), *rows])
    path = file(tmp_path, "a.csv", buffer.getvalue())
    assert [row.values for row in read_rows(path, ["text"], keep=["id"]) if isinstance(row, Row)] == rows


def test_csv_is_read_as_arrow_reads_it(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from pyarrow import csv as arrow_csv

    path = file(tmp_path, "a.csv", 'text,id\r\n"two\r\nlines, ""quoted""",1\n\nplain,"2"\n"",\n')
    options = arrow_csv.ParseOptions(newlines_in_values=True)
    convert = arrow_csv.ConvertOptions(column_types={"text": "string", "id": "string"}, strings_can_be_null=False)
    expected = arrow_csv.read_csv(path, parse_options=options, convert_options=convert).to_pydict()
    rows = list(read_rows(path, ["text"], keep=["id"]))
    assert [row.values for row in rows if isinstance(row, Row)] == list(
        zip(expected["text"], expected["id"], strict=True)
    )
    assert [row.line for row in rows] == [2, 5, 6]


def test_invalid_utf8_in_a_quoted_field_is_the_fault_of_its_row_alone(tmp_path: Path) -> None:
    path = file(tmp_path, "a.csv", b'text,id\na,1\n"b\n\xff",2\nc,3\n')
    assert list(read_rows(path, ["text"])) == [
        Row(0, 2, ("a",)),
        BadRow(1, 3, "invalid UTF-8 at byte 4"),
        Row(2, 5, ("c",)),
    ]


def test_what_is_not_rfc_4180_is_a_bad_row_and_not_a_guess(tmp_path: Path) -> None:
    path = file(tmp_path, "a.csv", 'text,id\n"b" c,2\nd\re,3\nf,4\n"never closed,5\n')
    assert list(read_rows(path, ["text"])) == [
        BadRow(0, 2, """not CSV: ',' expected after '"'"""),
        BadRow(1, 3, "not CSV: new-line character seen in unquoted field"),
        Row(2, 4, ("f",)),
        BadRow(3, 5, "not CSV: unexpected end of data"),
    ]


def test_a_quote_that_is_never_closed_does_not_take_the_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_MAX_LINE", 100)
    path = file(tmp_path, "a.csv", 'text\n"never closed\n' + "row\n" * 100)
    first, *rest = read_rows(path, ["text"])
    assert first == BadRow(0, 2, "longer than 100 bytes")
    assert rest[0] == Row(1, 25, ("row",))
    assert rest[-1] == Row(len(rest), 102, ("row",))


def test_a_field_may_be_longer_than_the_csv_module_allows_by_itself(tmp_path: Path) -> None:
    path = file(tmp_path, "a.csv", "text\n" + "x" * 200_000 + "\n")
    assert values(path, "text") == ["x" * 200_000]


# TSV and plain text


def test_a_quote_in_a_tsv_is_a_character(tmp_path: Path) -> None:
    path = file(tmp_path, "a.tsv", 'sentence\tlabel\n"Open quote\t1\nmid"dle, \\n\t0\n')
    assert values(path, "sentence") == ['"Open quote', 'mid"dle, \\n']


@pytest.mark.parametrize(("name", "tab"), [("a.tsv", "\t"), ("a.csv", ",")])
def test_short_and_long_rows_are_bad(tmp_path: Path, name: str, tab: str) -> None:
    path = file(tmp_path, name, "a b c\n1 2\n1 2 3\n1 2 3 4\n1\n".replace(" ", tab))
    assert reasons(path, "a") == ["2 columns, expected 3", "4 columns, expected 3", "1 column, expected 3"]
    assert [row.number for row in read_rows(path, ["a"])] == [0, 1, 2, 3]


def test_columns_without_a_header_are_numbers(tmp_path: Path) -> None:
    path = file(tmp_path, "cola.tsv", "gj04\t1\t\tOur friends.\nks08\t0\t*\tThem it.\n")
    assert list(read_rows(path, ["3"], keep=["1", "2"], header=False)) == [
        Row(0, 1, ("Our friends.", "1", "")),
        Row(1, 2, ("Them it.", "0", "*")),
    ]
    with pytest.raises(InputError, match="no column '4'; its columns are '0', '1', '2', '3'"):
        read_rows(path, ["4"], header=False)
    with pytest.raises(InputError, match="no column 'sentence'"):
        read_rows(path, ["sentence"], header=False)


def test_a_name_in_the_header_goes_before_a_number(tmp_path: Path) -> None:
    path = file(tmp_path, "a.csv", "1,text\nfirst,second\n")
    assert values(path, "1") == ["first"]
    assert values(path, "0") == ["first"]


def test_every_line_of_plain_text_is_a_text(tmp_path: Path) -> None:
    path = file(tmp_path, "a.txt", b'one\n\n"three"\tx\r\nfo\xffur\n five\xc2\x85 \x0c')
    bad = BadRow(3, 4, "invalid UTF-8 at byte 3")
    assert values(path, "text") == ["one", "", '"three"\tx', bad, " five\x85 \x0c"]


# All text formats


ROWS = {
    ".jsonl": ['{"text": "é"}', "?", '{"text": "b"}', '{"text": "c"}'],
    ".csv": ["text,id", "é,1", "?", '"b",3', "c,4"],
    ".tsv": ["text\tid", "é\t1", "?", "b\t3", "c\t4"],
}


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("compressed", [False, True])
def test_line_ends_byte_order_marks_and_compression_do_not_matter(
    tmp_path: Path, suffix: str, bom: bytes, end: str, last: bool, compressed: bool
) -> None:
    content = bom + (end.join(ROWS[suffix]) + end * last).encode()
    path = file(tmp_path, "a" + suffix, content)
    if compressed:
        path = file(tmp_path, "a" + suffix.upper() + ".gz", gzip.compress(content[:9]) + gzip.compress(content[9:]))
    assert [value if isinstance(value, str) else None for value in values(path, "text")] == ["é", None, "b", "c"]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".txt"])
def test_a_line_that_is_too_long_is_a_bad_row(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_MAX_LINE", 40)
    rows = {".jsonl": '{{"text": "{}"}}\n', ".csv": "{}\n", ".tsv": "{}\n", ".txt": "{}\n"}[suffix]
    fits = "x" * (40 - len(rows.format("")))
    content = rows.format("text") if suffix in (".csv", ".tsv") else ""
    content += "".join(rows.format(text) for text in [fits, fits + "x", "y" * 1000, fits])
    numbers = [row.number for row in read_rows(file(tmp_path, "a" + suffix, content), ["text"]) if isinstance(row, Row)]
    assert numbers == [0, 3]
    assert reasons(tmp_path / ("a" + suffix), "text") == ["longer than 40 bytes"] * 2


def test_a_huge_line_and_a_long_file_take_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as out:
        out.write(b'{"text": "' + b"x" * (64 << 20) + b'"}\n')
        for _ in range(64):
            out.write((b'{"text": "' + b"y" * 1000 + b'"}\n') * 100)
    tracemalloc.start()
    kinds = [type(row) for row in read_rows(path, ["text"])]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert kinds == [BadRow] + [Row] * 6400
    assert peak < 40 << 20  # the limit of a line, and the pieces it is put together from


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
@pytest.mark.parametrize("start", [0, 1, 2, 3, 4, 5])
def test_start_is_a_slice_that_keeps_its_numbers(tmp_path: Path, suffix: str, start: int) -> None:
    path = tmp_path / ("a" + suffix)
    if suffix in ROWS:
        path.write_text("\n".join(ROWS[suffix]), encoding="utf-8")
    else:
        pa, pq = parquet()
        pq.write_table(pa.table({"text": ["é", None, "b", "c"]}), path, row_group_size=2)
    assert list(read_rows(path, ["text"], start=start)) == list(read_rows(path, ["text"]))[start:]


def test_start_is_not_negative(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="start must be 0 or more rows, got -1"):
        read_rows(file(tmp_path, "a.txt", "a"), ["text"], start=-1)


@pytest.mark.parametrize("content", ["", "\ufeff"])
def test_an_empty_file_has_no_rows_and_lacks_a_header(tmp_path: Path, content: str) -> None:
    assert values(file(tmp_path, "a.jsonl", content), "text") == []
    assert values(file(tmp_path, "a.txt", content), "text") == []
    assert values(file(tmp_path, "a.tsv", content), "3", header=False) == []
    assert column_names(tmp_path / "a.jsonl") is None
    with pytest.raises(InputError, match="is empty; expected a line that names the columns 'text'"):
        read_rows(file(tmp_path, "a.csv", content), ["text"])


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_header_alone_has_no_rows(tmp_path: Path, name: str) -> None:
    assert values(file(tmp_path, name, "text"), "text") == []


def test_column_names_are_the_header_or_the_first_objects_keys(tmp_path: Path) -> None:
    assert column_names(file(tmp_path, "a.csv", '\ufeff"a,b",c\r\n1,2\r\n')) == ["a,b", "c"]
    assert column_names(tmp_path / "a.csv", header=False) == ["0", "1"]
    assert column_names(file(tmp_path, "a.tsv", '"a\tc"\n')) == ['"a', 'c"']
    assert column_names(file(tmp_path, "a.jsonl", '\nbad\n{"b": 1, "a": 2}\n')) == ["b", "a"]
    assert column_names(file(tmp_path, "a.txt", "x")) == ["text"]


# Files that cannot be read


@pytest.mark.parametrize(
    ("name", "content", "column", "message"),
    [
        ("a.csv", "id,body\n1,a\n", "text", "a.csv has no column 'text'; its columns are 'id', 'body'"),
        ("a.csv", "text,text\n1,a\n", "text", "2 columns 'text'; give the number"),
        ("a.csv", b"t\xffxt\n", "text", "cannot read the line that names the columns: invalid UTF-8 at byte 2"),
        (
            "a.tsv",
            "text\n".encode("utf-16"),
            "text",
            "a.tsv is UTF-16 text, not UTF-8 text; convert it to UTF-8",
        ),
        ("a.csv", '"text\n', "text", "cannot read the line that names the columns: not CSV: unexpected end of data"),
        ("a.txt", "a\n", "body", "no column 'body'; its columns are 'text'"),
        ("a.xlsx", "", "text", "expected a file that ends in .jsonl, .ndjson, .csv, .tsv or .txt"),
        ("a.parquet.gz", "", "text", "expected a file that ends in"),
        ("a.gz", "", "text", "expected a file that ends in"),
        ("a.jsonl.gz", "", "text", "is not a whole gzip file (it is empty)"),
        ("a.jsonl.gz", '{"text": "a"}', "text", "is not a whole gzip file (Not a gzipped file"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error_before_any_row(
    tmp_path: Path, name: str, content: bytes | str, column: str, message: str
) -> None:
    path = file(tmp_path, name, content)
    with pytest.raises(InputError) as error:
        read_rows(path, [column])
    assert message in one_line(error)


GZIPPED = gzip.compress(b'{"text": "a"}\n')
OTHERS = {
    "UTF-16 text": ["text\n".encode("utf-16"), "text\n".encode("utf-16-le"), "text\n".encode("utf-16-be")],
    "UTF-32 text": ["text\n".encode("utf-32"), "text\n".encode("utf-32-le"), "text\n".encode("utf-32-be")],
    "compressed by bzip2": [bz2.compress(b"text\n", level) for level in (1, 9)],
    "compressed by xz": [lzma.compress(b"text\n")],
    "compressed by zstd": [b"\x28\xb5\x2f\xfd\x04\x58\x29\x00\x00text\n"],
    "a ZIP archive or an Excel workbook": [b"PK\x03\x04\x14\x00"],
    "an old Excel or Word file": [b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"],
    "a tar archive": [b"texts.csv".ljust(257, b"\0") + b"ustar\x0000"],
}


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".txt", ".jsonl.gz"])
def test_a_file_that_is_something_else_is_refused_in_one_line_by_what_it_is(
    tmp_path: Path, what: str, suffix: str
) -> None:
    for content in OTHERS[what]:
        path = file(tmp_path, "a" + suffix, gzip.compress(content) if suffix.endswith(".gz") else content)
        for read in (partial(read_rows, columns=["text"]), column_names):
            with pytest.raises(InputError) as error:
                read(path)
            assert one_line(error).startswith(f"{path} is {what}, not UTF-8 text; ")


def test_text_that_begins_like_something_else_is_text(tmp_path: Path) -> None:
    for text in ("BZhello", "PARis", "Obj", "a\0b", "7z", "ustar".rjust(262)):
        assert values(file(tmp_path, "a.txt", text), "text") == [text]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".txt"])
def test_a_gzip_file_is_read_whatever_its_name(tmp_path: Path, suffix: str) -> None:
    content = "\n".join(ROWS.get(suffix, ["é", "?"])).encode()
    plain = list(read_rows(file(tmp_path, "plain" + suffix, content), ["text"]))
    assert list(read_rows(file(tmp_path, "packed" + suffix, gzip.compress(content)), ["text"])) == plain


def test_a_gzip_file_in_a_gzip_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is a gzip file, not UTF-8 text; decompress it"):
        read_rows(file(tmp_path, "a.jsonl.gz", gzip.compress(GZIPPED)), ["text"])


def test_parquet_and_text_are_not_taken_for_each_other(tmp_path: Path) -> None:
    pa, pq = parquet()
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    renamed = file(tmp_path, "a.jsonl", (tmp_path / "a.parquet").read_bytes())
    with pytest.raises(InputError, match=r"a.jsonl is a Parquet file, not UTF-8 text; let its name end in .parquet"):
        read_rows(renamed, ["text"])
    assert values(renamed, "text", format="parquet") == ["a"]
    for content, what in ((GZIPPED, "a gzip file"), (lzma.compress(b"a"), "compressed by xz")):
        with pytest.raises(InputError, match=f"is {what}, not Parquet"):
            read_rows(file(tmp_path, "b.parquet", content), ["text"])


def test_a_pipe_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    """Opening it would wait for a writer; reading it twice would lose what was read first."""
    os.mkfifo(tmp_path / "a.jsonl")
    (tmp_path / "folder").mkdir()
    for read in (lambda: read_rows(tmp_path / "a.jsonl", ["text"]), lambda: column_names(tmp_path / "a.jsonl")):
        with pytest.raises(InputError, match="is a pipe, and an input is read more than once"):
            read()
    with pytest.raises(InputError, match="is a device"):
        read_rows("/dev/zero", ["text"], format="txt")
    parquet()
    os.mkfifo(tmp_path / "folder" / "a.parquet")
    with pytest.raises(InputError, match="is a pipe"):
        read_rows(tmp_path / "folder", ["text"])


def test_a_column_that_no_object_has_is_an_error_that_names_those_there_are(tmp_path: Path) -> None:
    path = file(tmp_path, "a.jsonl", '\nbad\n{"b": "x", "a": 2}\n{"c": "y"}\n')
    for columns, keep in ((["text"], []), (["b"], ["text"])):
        with pytest.raises(InputError) as error:
            read_rows(path, columns, keep=keep)
        assert one_line(error) == f"{path} has no column 'text'; its columns are 'b', 'a', 'c'"
    assert [type(row) for row in read_rows(path, ["b"], keep=["c"])] == [BadRow] * 3
    wide = file(tmp_path, "wide.jsonl", "".join(json.dumps({f"k{i}": i}) + "\n" for i in range(100)))
    with pytest.raises(InputError, match=r"'k49', \.\.\.$"):
        read_rows(wide, ["text"])
    assert reasons(file(tmp_path, "bad.jsonl", "bad\n[]\n"), "text") == [
        "not JSON: Expecting value at character 1", "a list, expected an object",
    ]  # fmt: skip


def test_a_column_named_twice_is_read_by_its_number(tmp_path: Path) -> None:
    path = file(tmp_path, "a.csv", "text,text,id\na,b,c\n")
    assert values(path, "1") == ["b"]
    assert values(path, "id") == ["c"]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".txt.gz", ".parquet"])
def test_a_missing_file_is_named(tmp_path: Path, suffix: str) -> None:
    if suffix == ".parquet":
        parquet()
    path = tmp_path / ("none" + suffix)
    for read in (lambda: read_rows(path, ["text"]), lambda: column_names(path)):
        with pytest.raises(InputError) as error:
            read()
        assert one_line(error) == f"cannot read {path}: No such file or directory"


def test_a_header_is_for_csv_and_tsv(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only CSV and TSV have a line that names the columns"):
        read_rows(file(tmp_path, "a.txt", "text\n"), ["text"], header=True)


def test_a_gzip_file_that_is_cut_short_is_an_error_after_its_rows(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    content = "".join(json.dumps({"text": random.bytes(100).hex()}) + "\n" for _ in range(30_000))
    whole = gzip.compress(content.encode(), 1)
    for damaged in (whole[:-4], whole[: len(whole) // 2], whole[:-1] + b"?", whole + b"trailing"):
        rows = read_rows(file(tmp_path, "a.jsonl.gz", damaged), ["text"])
        assert isinstance(next(rows), Row)
        with pytest.raises(InputError) as error:
            list(rows)
        assert "is not a whole gzip file" in one_line(error)


# Parquet to read


def test_parquet_rows_that_are_null_are_bad(tmp_path: Path) -> None:
    pa, pq = parquet()
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a", None, "💩"], "id": [1, 2, None], "blob": [b"", b"", b""]}), path)
    assert column_names(path) == ["text", "id", "blob"]
    assert list(read_rows(path, ["text"], keep=["id"])) == [
        Row(0, 1, ("a", 1)),
        BadRow(1, 2, "column 'text' is null"),
        Row(2, 3, ("💩", None)),
    ]


@pytest.mark.parametrize("name", ["string", "large_string", "string_view", "dictionary"])
def test_every_type_of_text_of_arrow_is_text(tmp_path: Path, name: str) -> None:
    pa, pq = parquet()
    type = pa.dictionary(pa.int32(), pa.string()) if name == "dictionary" else getattr(pa, name)()
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.array(["a", "b", None], pa.string()).cast(type)}), path)
    assert str(pq.ParquetFile(path).schema_arrow.field("text").type) == str(type)
    assert values(path, "text") == ["a", "b", BadRow(2, 3, "column 'text' is null")]


@pytest.mark.parametrize("name", ["string", "large_string", "string_view", "dictionary"])
def test_parquet_text_that_is_not_utf8_is_a_bad_row(tmp_path: Path, name: str) -> None:
    pa, pq = parquet()
    texts = pa.array([b"a", b"b\xff", None, "é".encode()], pa.binary()).view(pa.string())
    type = getattr(pa, name)() if name != "dictionary" else None
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": texts.cast(type) if type else texts.dictionary_encode()}), path)
    expected = ["a", BadRow(1, 2, "invalid UTF-8 at byte 2"), BadRow(2, 3, "column 'text' is null"), "é"]
    assert values(path, "text") == expected


def test_the_type_of_a_parquet_column_is_checked_before_any_row(tmp_path: Path) -> None:
    pa, pq = parquet()
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"text": ["a"], "id": [1], "score": [0.5], "list": [["a"]], "day": pa.array([1], pa.date32())}), path
    )
    with pytest.raises(InputError, match="column 'id' is int64, expected text"):
        read_rows(path, ["id"])
    with pytest.raises(InputError, match="column 'list' is list<.*>, expected text, numbers or true and false"):
        read_rows(path, ["text"], keep=["list"])
    with pytest.raises(InputError, match="column 'day' is date32"):
        read_rows(path, ["text"], keep=["day"])
    with pytest.raises(InputError, match="has no column 'body'; its columns are 'text', 'id'"):
        read_rows(path, ["body"])
    assert list(read_rows(path, ["text"], keep=["id", "score", "text"])) == [Row(0, 1, ("a", 1, 0.5, "a"))]


def test_a_directory_of_parquet_files_is_one_file_in_the_order_of_names(tmp_path: Path) -> None:
    pa, pq = parquet()
    texts = [f"text {i}" for i in range(25)]
    for name, some in (("part-10", texts[20:]), ("part-02", texts[7:20]), ("part-01", texts[:7]), ("part-03", [])):
        pq.write_table(pa.table({"text": pa.array(some, pa.string())}), tmp_path / f"{name}.parquet", row_group_size=3)
    file(tmp_path, "_metadata.parquet", "not Parquet")
    file(tmp_path, "README.txt", "not Parquet")
    assert column_names(tmp_path) == ["text"]
    for start in range(27):
        rows = [Row(i, i + 1, (texts[i],)) for i in range(start, 25)]
        assert list(read_rows(tmp_path, ["text"], start=start)) == rows


def test_parquet_files_in_directories_below_are_not_left_out_without_a_word(tmp_path: Path) -> None:
    pa, pq = parquet()
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    for hidden in ("_temporary/0", ".cache"):
        (tmp_path / hidden).mkdir(parents=True)
        pq.write_table(pa.table({"text": ["b"]}), tmp_path / hidden / "b.parquet")
    assert values(tmp_path, "text") == ["a"]
    (tmp_path / "day=1" / "hour=2").mkdir(parents=True)
    pq.write_table(pa.table({"text": ["c"]}), tmp_path / "day=1" / "hour=2" / "c.parquet")
    with pytest.raises(InputError, match=r"in directories below it, such as .*c.parquet; name one of these"):
        read_rows(tmp_path, ["text"])


def test_parquet_files_by_any_name_are_not_left_out_without_a_word(tmp_path: Path) -> None:
    pa, pq = parquet()
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["b"]}), tmp_path / "b.PARQUET")
    for name in ("README.md", "empty", ".hidden", "_metadata"):
        file(tmp_path, name, "PAR1\x15" if name.startswith((".", "_")) else "")
    assert values(tmp_path, "text") == ["a", "b"]
    pq.write_table(pa.table({"text": ["c"]}), tmp_path / "c.parq")
    with pytest.raises(InputError, match=r"c.parq is a Parquet file; rename it to end in .parquet, or move it away"):
        read_rows(tmp_path, ["text"])


def test_the_only_column_may_be_a_text_and_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    path = file(tmp_path, "a.csv", "I am the first text\nI am the second\n")
    assert tables.usual_columns(path) == ("I am the first text",)
    assert "the only column, 'I am the first text', holds the texts" in caplog.text
    caplog.clear()
    assert tables.usual_columns(path, header=False) == ("0",)
    assert tables.usual_columns(file(tmp_path, "b.csv", "text\na\n")) == ("text",)
    assert tables.usual_columns(file(tmp_path, "c.jsonl", '{"body": "a"}\n')) == ("body",)
    assert caplog.text == ""


def test_a_directory_without_parquet_files_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is a directory without .parquet files"):
        read_rows(tmp_path, ["text"])


def test_row_groups_before_start_are_not_read(tmp_path: Path) -> None:
    pa, pq = parquet()
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"text": ["a" * 50, "b" * 50]}),
        path,
        row_group_size=1,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
    )
    content = path.read_bytes()
    begin = content.index(b"a" * 50)
    path.write_bytes(content[: begin - 20] + b"\xff" * 60 + content[begin + 40 :])
    assert values(path, "text", start=1) == ["b" * 50]
    with pytest.raises(InputError, match="is not a whole Parquet file"):
        values(path, "text")


def test_a_damaged_parquet_file_gives_rows_or_one_line_of_error(tmp_path: Path) -> None:
    pa, pq = parquet()
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"text {i}" for i in range(100)], "id": range(100)}), path)
    content = path.read_bytes()
    for size in range(0, len(content), 29):
        file(tmp_path, "a.parquet", content[:size])
        with pytest.raises(InputError) as error:
            list(read_rows(path, ["text"]))
        assert "is not a whole Parquet file" in one_line(error)


def test_without_pyarrow_the_extra_to_install_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = file(tmp_path, "a.parquet", "")
    for use in (
        lambda: read_rows(path, ["text"]),
        lambda: column_names(path),
        lambda: write_part(path, [], {}, format="parquet"),
        lambda: join_parts([], path, {}, format="parquet"),
    ):
        with pytest.raises(InputError, match=r"pip install 'roberta-flax\[parquet\]'"):
            use()
    assert os.listdir(tmp_path) == ["a.parquet"]


def test_text_files_do_not_need_pyarrow_or_jax() -> None:
    code = """if True:
        import importlib.util, pathlib, sys, types
        root = pathlib.Path(sys.argv[1])
        package = types.ModuleType("roberta_flax")
        package.__path__ = [str(root)]  # not its __init__, which is the whole library
        sys.modules["roberta_flax"] = package
        import roberta_flax.datasets.tables
        assert not {"jax", "torch", "pyarrow"} & sys.modules.keys()
    """
    subprocess.run([sys.executable, "-c", code, str(Path(tables.__file__).parents[1])], check=True)


# Writing

SCHEMA: dict[str, Kind] = {
    "text": "text",
    "number": "integer",
    "score": "float",
    "sure": "boolean",
    "features": "floats",
    "tokens": "vectors",
    "words": "texts",
    "scores": "scores",
    "classes": Named(("no", "é")),
    "tags": Named(("no", "é"), several=True),
    "id": "scalar",
}
RECORD = {
    "text": 'a "b", \\c\td\r\né',
    "number": np.int64(3),
    "score": np.float32(0.1),
    "sure": True,
    "features": np.array([0.1, -1e-8, 3], np.float32),
    "tokens": np.array([[0.1, 0.2], [0.3, 16777216]], np.float32),
    "words": ["x", "💩"],
    "scores": {"neutral": np.float32(0.7), "é": 1.0},
    "classes": np.array([0.1, -2], np.float32),
    "tags": np.array([[0.1, -2], [3, 4]], np.float32),
    "id": 12,
}
PLAIN = {
    **RECORD,
    "number": 3,
    "score": 0.1,
    "features": [0.1, -1e-8, 3.0],
    "tokens": [[0.1, 0.2], [0.3, 16777216.0]],
    "scores": {"neutral": 0.7, "é": 1.0},
    "classes": {"no": 0.1, "é": -2.0},
    "tags": [{"no": 0.1, "é": -2.0}, {"no": 3.0, "é": 4.0}],
}


def written(
    folder: Path, suffix: str, parts: Sequence[Sequence[Mapping[str, Any]]], schema: Mapping[str, Kind] = SCHEMA
) -> Path:
    """The joined file of some parts."""
    destination = folder / ("out" + suffix)
    paths = [folder / f"part-{i:05d}" for i in range(len(parts))]
    for path, records in zip(paths, parts, strict=True):
        write_part(path, records, schema, format=output_format(destination))
    join_parts(paths, destination, schema, format=output_format(destination))
    return destination


def unescaped(cell: str) -> str:
    """A cell of the TSV that is written, by its rule."""
    pieces = {"\\\\": "\\", "\\t": "\t", "\\n": "\n", "\\r": "\r"}
    result, i = "", 0
    while i < len(cell):
        width = 2 if cell[i] == "\\" else 1
        result += pieces.get(cell[i : i + width], cell[i : i + width])
        i += width
    return result


def test_jsonl_has_the_shortest_digits_of_float32(tmp_path: Path) -> None:
    path = written(tmp_path, ".jsonl", [[RECORD], [{}]])
    lines = path.read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[0]) == PLAIN
    assert '"score": 0.1,' in lines[0]
    assert "é" in lines[0]
    assert json.loads(lines[1]) == dict.fromkeys(SCHEMA)


@given(bits=st.lists(st.integers(0, 2**32 - 1), max_size=20))
def test_float32_is_the_same_after_json(bits: list[int]) -> None:
    array = np.array(bits, np.uint32).view(np.float32)
    again = json.loads(json.dumps(tables._plain(array), allow_nan=False))
    for value, back in zip(array, again, strict=True):
        assert (back is None) if not np.isfinite(value) else np.float32(back) == value
        assert back is None or len(repr(back)) <= len(repr(float(value)))
    assert tables._plain(list(array)) == tables._plain(array)


def test_other_floats_of_numpy_and_what_is_not_a_number(tmp_path: Path) -> None:
    records = [
        {"features": np.array([0.1], np.float64), "score": np.nan},
        {"features": np.array([0.5, np.inf], ml_dtypes.bfloat16), "score": np.float32(np.inf)},
        {"features": np.empty(0, np.float32), "tokens": np.empty((0, 4), np.float32), "scores": {"a": np.nan}},
    ]
    lines = [json.loads(line) for line in written(tmp_path, ".jsonl", [records]).read_text().splitlines()]
    assert [line["features"] for line in lines] == [[0.1], [0.5, None], []]
    assert [line["score"] for line in lines] == [None] * 3
    assert lines[2]["tokens"] == []
    assert lines[2]["scores"] == {"a": None}


def test_csv_is_what_the_csv_module_reads_back(tmp_path: Path) -> None:
    path = written(tmp_path, ".csv", [[RECORD], [], [{"number": 1, "score": float("nan")}]])
    with path.open(newline="", encoding="utf-8") as text:
        header, first, second = csv.reader(text, strict=True)
    assert header == list(SCHEMA)
    assert first[0] == RECORD["text"]
    assert [json.loads(cell) for cell in first[1:]] == list(PLAIN.values())[1:]
    assert second == ["", "1", *[""] * (len(SCHEMA) - 2)]


def test_tsv_has_a_line_a_row_and_undoes_its_escapes(tmp_path: Path) -> None:
    path = written(tmp_path, ".tsv", [[RECORD], [{}]])
    header, first, second, end = path.read_bytes().decode().split("\n")
    assert header.split("\t") == list(SCHEMA)
    cells = [unescaped(cell) for cell in first.split("\t")]
    assert cells[0] == RECORD["text"]
    assert [json.loads(cell) for cell in cells[1:]] == list(PLAIN.values())[1:]
    assert second == "\t" * (len(SCHEMA) - 1)
    assert end == ""


@fixture_is_shared
@given(rows=st.lists(st.tuples(any_text, any_text)))
def test_texts_written_are_texts_read(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    schema: dict[str, Kind] = {"text": "text", "id": "scalar"}
    records = [{"text": text, "id": id} for text, id in rows]
    for suffix in (".jsonl", ".csv", ".tsv"):
        path = written(tmp_path, suffix, [records[:3], records[3:]], schema)
        found = [row.values for row in read_rows(path, ["text"], keep=["id"]) if isinstance(row, Row)]
        if suffix == ".tsv":
            found = [tuple(map(unescaped, row)) for row in found]
        assert found == rows


def test_a_lone_surrogate_is_written_as_its_escape(tmp_path: Path) -> None:
    for suffix in (".jsonl", ".csv", ".tsv"):
        path = written(tmp_path, suffix, [[{"text": "a\ud800"}]], {"text": "text"})
        assert b"ud800" in path.read_bytes()
        path.read_bytes().decode()


def test_parquet_has_the_types_of_its_schema_and_a_row_group_a_part(tmp_path: Path) -> None:
    pa, pq = parquet()
    path = written(tmp_path, ".parquet", [[RECORD, {}], [], [RECORD] * 3])
    found = pq.ParquetFile(path)
    assert [found.metadata.row_group(i).num_rows for i in range(found.num_row_groups)] == [2, 3]
    assert found.schema_arrow.field("features").type == pa.list_(pa.float32())
    assert found.schema_arrow.field("tokens").type == pa.list_(pa.list_(pa.float32()))
    assert found.schema_arrow.field("classes").type == pa.struct([("no", pa.float32()), ("é", pa.float32())])
    first, second = found.read().to_pylist()[:2]
    np.testing.assert_array_equal(np.float32([*first["classes"].values()]), RECORD["classes"])
    np.testing.assert_array_equal(np.float32([[*tag.values()] for tag in first["tags"]]), RECORD["tags"])
    assert second == dict.fromkeys(SCHEMA)
    assert first["text"] == RECORD["text"]
    assert (first["number"], first["sure"], first["words"], first["id"]) == (3, True, ["x", "💩"], "12")
    assert np.float32(first["score"]) == np.float32(0.1)
    np.testing.assert_array_equal(np.float32(first["features"]), RECORD["features"])
    np.testing.assert_array_equal(np.float32(first["tokens"]), RECORD["tokens"])
    assert dict(first["scores"]) == {"neutral": float(np.float32(0.7)), "é": 1.0}


def test_parquet_takes_lists_other_dtypes_and_none_in_any_column(tmp_path: Path) -> None:
    _, pq = parquet()
    records = [
        {"features": [1, 2.5], "tokens": [[1.0], []], "number": None, "id": "a"},
        {"features": np.array([0.5, np.nan], ml_dtypes.bfloat16), "tokens": np.zeros((0, 3)), "id": True},
        {"score": 1, "sure": np.bool_(False), "scores": {}, "words": [], "tags": np.zeros((0, 2)), "id": float("nan")},
    ]
    rows = pq.read_table(written(tmp_path, ".parquet", [records])).to_pylist()
    assert rows[0]["features"] == [1, 2.5]
    assert rows[0]["tokens"] == [[1], []]
    assert rows[1]["features"][0] == 0.5
    assert np.isnan(rows[1]["features"][1])
    assert rows[1]["tokens"] == []
    assert (rows[2]["score"], rows[2]["sure"], rows[2]["scores"], rows[2]["words"]) == (1, False, [], [])
    assert rows[2]["tags"] == []
    assert [row["id"] for row in rows] == ["a", "true", None]


def test_a_value_that_is_not_of_its_kind_names_its_field(tmp_path: Path) -> None:
    parquet()
    for field, value in [
        ("number", "x"),
        ("number", 2**70),
        ("text", 5),
        ("features", ["x"]),
        ("scores", {"a": "x"}),
        ("classes", [1.0]),
    ]:
        with pytest.raises(InputError) as error:
            write_part(tmp_path / "part", [RECORD, {field: value}], SCHEMA, format="parquet")
        kind = "a float for each name" if field == "classes" else SCHEMA[field]
        assert f"field '{field}' is not {kind} in every row" in one_line(error)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_no_parts_or_no_rows_make_a_valid_file(tmp_path: Path, suffix: str) -> None:
    if suffix == ".parquet":
        _, pq = parquet()
    none, empty = written(tmp_path, suffix, []).read_bytes(), written(tmp_path, suffix, [[], []]).read_bytes()
    assert none == empty
    if suffix == ".parquet":
        table = pq.read_table(io.BytesIO(empty))
        assert table.num_rows == 0
        assert table.schema.names == list(SCHEMA)
    else:
        lines = empty.decode().splitlines()
        assert lines == ([] if suffix == ".jsonl" else [{".csv": ",", ".tsv": "\t"}[suffix].join(SCHEMA)])


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_the_joined_file_depends_on_the_parts_alone(tmp_path: Path, suffix: str) -> None:
    if suffix == ".parquet":
        parquet()
    contents = []
    for run in ("one", "two"):
        (tmp_path / run).mkdir()
        contents.append(written(tmp_path / run, suffix, [[RECORD] * 20, [{}], [RECORD]]).read_bytes())
    assert contents[0] == contents[1]


def test_a_part_may_have_any_name(tmp_path: Path) -> None:
    write_part(tmp_path / "part.gz", [{"text": "a"}], {"text": "text"}, format="jsonl")
    join_parts([tmp_path / "part.gz"], tmp_path / "out.jsonl", {"text": "text"}, format="jsonl")
    assert (tmp_path / "out.jsonl").read_text() == '{"text": "a"}\n'


def test_predictions_are_written_to_four_formats(tmp_path: Path) -> None:
    assert [output_format(f"a{suffix}") for suffix in (".jsonl", ".NDJSON", ".csv", ".tsv", ".parquet")] == [
        "jsonl", "jsonl", "csv", "tsv", "parquet",
    ]  # fmt: skip
    for name in ("a.txt", "a", "a.jsonl.gz", "a.xlsx"):
        with pytest.raises(InputError, match=f"{name}: predictions are written to"):
            output_format(name)


# Whole or absent


def failing() -> Iterator[dict[str, Any]]:
    yield RECORD
    raise KeyboardInterrupt


@pytest.mark.parametrize("format", ["jsonl", "csv", "tsv", "parquet"])
def test_a_part_that_was_stopped_is_absent_or_as_it_was(tmp_path: Path, format: str) -> None:
    if format == "parquet":
        parquet()
    path = file(tmp_path, "part", "as it was")
    with pytest.raises(KeyboardInterrupt):
        write_part(path, failing(), SCHEMA, format=format)
    assert path.read_text() == "as it was"
    assert [path.name for path in tmp_path.iterdir()] == ["part"]


def test_a_part_of_a_killed_job_is_absent_and_written_again(tmp_path: Path) -> None:
    code = """if True:
        import os, pathlib, signal, sys
        from roberta_flax.datasets.tables import write_part
        def rows():
            yield {"text": "x" * 100_000}
            os.kill(os.getpid(), signal.SIGKILL)
        write_part(pathlib.Path(sys.argv[1]), rows(), {"text": "text"}, format="jsonl")
    """
    path = tmp_path / "part"
    killed = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert killed.returncode == -9
    assert [path.name for path in tmp_path.iterdir()] == [".part.tmp"]
    write_part(path, [{"text": "a"}], {"text": "text"}, format="jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["part"]
    assert path.read_text() == '{"text": "a"}\n'


@pytest.mark.parametrize("format", ["jsonl", "csv", "parquet"])
def test_a_full_disk_is_one_line_of_error_and_leaves_nothing(tmp_path: Path, format: str) -> None:
    if format == "parquet":
        parquet()
    whole, other = tmp_path / "whole", tmp_path / "other"
    records = [{"text": np.random.default_rng(i).bytes(500).hex()} for i in range(400)]
    write_part(whole, records, {"text": "text"}, format=format)
    code = """if True:
        import json, pathlib, resource, sys
        from roberta_flax.errors import InputError
        from roberta_flax.datasets.tables import join_parts, write_part
        whole, other, format = sys.argv[1:]
        records = json.load(sys.stdin)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        for use in (lambda: write_part(pathlib.Path(other), records, {"text": "text"}, format=format),
                    lambda: join_parts([pathlib.Path(whole)], pathlib.Path(other), {"text": "text"}, format=format)):
            try:
                use()
            except InputError as error:
                print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", code, whole, other, format],
        input=json.dumps(records),
        text=True,
        capture_output=True,
        check=True,
    )
    assert done.stdout.splitlines() == [f"cannot write {other}: File too large"] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_what_cannot_be_written_or_read_is_named(tmp_path: Path, format: str) -> None:
    if format == "parquet":
        parquet()
    path = tmp_path / "none" / "part"
    with pytest.raises(InputError) as error:
        write_part(path, [RECORD], SCHEMA, format=format)
    assert one_line(error) == f"cannot write {path}: No such file or directory"
    with pytest.raises(InputError) as error:
        join_parts([path], tmp_path / "out", SCHEMA, format=format)
    assert one_line(error) == f"cannot read {path}: No such file or directory"
    (tmp_path / "directory").mkdir()
    with pytest.raises(InputError, match="directory: Is a directory"):
        write_part(tmp_path / "directory", [], SCHEMA, format=format)
    assert [path.name for path in tmp_path.iterdir()] == ["directory"]


def test_a_folder_or_file_without_permission_is_named() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others than root
        folder = Path(name)
        path = file(folder, "a.txt", "a")
        path.chmod(0)
        folder.chmod(0o555)
        user = os.geteuid()
        if user == 0:  # who may write anywhere
            os.seteuid(65534)
        try:
            with pytest.raises(InputError, match=r"cannot read .*a\.txt: Permission denied"):
                read_rows(path, ["text"])
            with pytest.raises(InputError, match=r"cannot write .*part: Permission denied"):
                write_part(folder / "part", [], SCHEMA, format="jsonl")
        finally:
            os.seteuid(user)
            folder.chmod(0o755)


def test_parts_of_other_fields_are_not_joined(tmp_path: Path) -> None:
    parquet()
    write_part(tmp_path / "part", [{"a": "x"}], {"a": "text"}, format="parquet")
    with pytest.raises(InputError, match="part has other fields than the output"):
        join_parts([tmp_path / "part"], tmp_path / "out.parquet", {"b": "text"}, format="parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["part"]
