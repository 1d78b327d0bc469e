"""roberta-flax parity SOURCE [--dtype D ...] [-o DIR]"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from roberta_flax.cli.options import BpeDir, CacheDir, CheckpointFile, Json, keep_programs
from roberta_flax.files import new_directory, write_bytes

if TYPE_CHECKING:
    from roberta_flax.parity import Report
    from roberta_flax.parity.model_comparison import Progress

_REPORT = "report.json"
_PAGE = "report.html"

Precision = Literal["default", "high", "highest"]
Backend = Literal["cpu", "gpu", "tpu"]
Reference = Literal["builtin", "fairseq", "transformers"]


def _known(dtypes: list[str] | None) -> list[str] | None:
    """Wrong usage where one of them is none."""
    from roberta_flax.parity.rounding import DTYPES

    for dtype in dtypes or ():
        if dtype not in DTYPES:
            raise typer.BadParameter(f"{dtype!r} is not one of {', '.join(DTYPES)}")
    return dtypes


def command(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A model, by any name or path that load takes.")],
    texts: Annotated[
        Path | None,
        typer.Option(
            help="A text a line, two with a tab between them; or a .jsonl, .csv, .tsv or .parquet file. "
            "By default built-in rows of 1 to max_positions tokens."
        ),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option("--column", "-c", help="Of such a file: a column with text; twice for pairs."),
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(
            callback=_known,
            help="Of the Flax side: float64, float32, bfloat16, float16, int8; may be given several times; by "
            "default float32.",
        ),
    ] = None,
    precision: Annotated[
        Precision | None, typer.Option(help="Of matrix products: highest for float32 parity on TPU and GPU.")
    ] = None,
    attention: Annotated[str | None, typer.Option(help="xla, chunked or cudnn; by default by the device.")] = None,
    backend: Annotated[Backend | None, typer.Option(help="Where the Flax side runs; by default JAX's choice.")] = None,
    reference: Annotated[Reference | None, typer.Option(help="The torch side, in float64; by default builtin.")] = None,
    gradients: Annotated[
        bool, typer.Option("--gradients", help="Compare the gradients by every parameter, too.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Points to compare, 'layers.*.output'; may be given several times."),
    ] = None,
    record: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Make this directory, with the torch side, to be replayed.")
    ] = None,
    replay: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Such a directory, in the place of torch, which is not needed.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help=f"Write {_REPORT} and {_PAGE} there; replaces a report."),
    ] = None,
    all_points: Annotated[
        bool, typer.Option("--all-points", help="A line for every point, not for every layer.")
    ] = False,
    checkpoint_file: CheckpointFile = "model.pt",
    bpe_dir: BpeDir = None,
    cache_dir: CacheDir = None,
    as_json: Json = False,
) -> None:
    """Run the same inputs through torch and through Flax, and compare every named value.

    Exit status 0 where every error is within what rounding explains, and decisions agree; 1 where not.
    """
    from rich.console import Console

    from roberta_flax import parity
    from roberta_flax.errors import ParityError
    from roberta_flax.parity.report import divergence
    from roberta_flax.parity.report_terminal import print_report

    if columns and texts is None:
        raise typer.BadParameter("it says which columns of --texts hold text; give --texts too", param_hint="--column")
    if replay is not None and (texts is not None or record is not None or reference is not None or gradients):
        raise typer.BadParameter(
            "the recording has the inputs, the reference and the gradients: give no --texts, --record, --reference or "
            "--gradients with it",
            param_hint="--replay",
        )
    if output is not None:
        _check_output(output)
    keep_programs(cache_dir)
    with _progress() as progress:
        report = parity.compare(
            source,
            texts=None if texts is None else _read(texts, columns),
            dtypes=tuple(dtype or ("float32",)),
            precision=precision,
            attention=attention,
            backend=backend,
            reference=reference or "builtin",
            gradients=gradients,
            only=tuple(only or ()),
            record=record,
            replay=replay,
            checkpoint_file=checkpoint_file,
            bpe_dir=bpe_dir,
            cache_dir=cache_dir,
            progress=progress,
        )
    if output is not None:
        _write(report, output)
    if as_json:
        sys.stdout.write(report.to_json())
    else:
        print_report(report, Console(), all_tensors=all_points)
    if not report.passed:
        raise ParityError("; ".join(line for run in report.runs if (line := divergence(run)) is not None))


def _read(path: Path, columns: list[str] | None) -> list[tuple[str, ...]]:
    """The texts of a file, one or two a row; InputError, naming the line, where a row has none."""
    from roberta_flax.datasets import tables
    from roberta_flax.errors import InputError

    lines = not columns and path.suffix.lower() not in (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
    names = ("text",) if lines else tuple(columns or tables.usual_columns(path))
    if len(names) > 2:
        raise InputError(f"a row has one or two texts, got {len(names)} columns: {', '.join(names)}")
    rows = []
    for row in tables.read_rows(path, names, format="txt" if lines else None):
        if isinstance(row, tables.BadRow):
            raise InputError(f"{path}, line {row.line}: {row.reason}")
        texts = tuple(row.values[0].split("\t")) if lines else row.values
        if len(texts) > 2:
            raise InputError(f"{path}, line {row.line}: one text, or two with a tab between them; got {len(texts)}")
        rows.append(texts)
    return rows


def _check_output(output: Path) -> None:
    """Before anything is computed: there is nothing at `output`, or a report, which may be replaced."""
    from roberta_flax.errors import InputError

    try:
        found = {path.name for path in output.iterdir()}
        if not found:
            return
        is_report = found <= {_REPORT, _PAGE} and "schema" in json.loads((output / _REPORT).read_text("utf-8"))
    except FileNotFoundError:
        if not output.exists() and not output.is_symlink():
            return
        is_report = False
    except (OSError, ValueError, TypeError):
        is_report = False
    if not is_report:
        raise InputError(f"{output} exists and is no report; remove it or choose another name")


def _write(report: Report, output: Path) -> None:
    """Both files, in the place of those that were there; without matplotlib a line on stderr and report.json alone."""
    from roberta_flax.errors import InputError
    from roberta_flax.parity import report_html

    with new_directory(output, replace=True) as folder:
        write_bytes(folder / _REPORT, report.to_json().encode())
        try:
            page = report_html.render(report)
        except InputError as error:
            print(f"{output / _PAGE} was not written, {_REPORT} was: {error}", file=sys.stderr)
        else:
            write_bytes(folder / _PAGE, page.encode("utf-8", "backslashreplace"))


@contextmanager
def _progress() -> Iterator[Progress | None]:
    """On a terminal a line on stderr that says which batch is computed by what; else nothing."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console

    with Console(stderr=True).status("reading the model") as status:
        yield lambda batch, batches, what: status.update(f"batch {batch} of {batches}: {what}")
