"""roberta-flax parity SOURCE [--dtype D ...] [-o DIR]"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from roberta_flax.cli.accelerators import open_devices
from roberta_flax.cli.groups import Formerly, grouped
from roberta_flax.cli.options import TEXT_COLUMN, Attention, FileOptions, Json, Precision, keep_programs
from roberta_flax.errors import printable

if TYPE_CHECKING:
    from roberta_flax.parity.model_comparison import Progress

Backend = Literal["cpu", "gpu", "tpu"]
Reference = Literal["builtin", "fairseq", "transformers", "sentence-transformers"]


def _known(dtypes: list[str] | None) -> list[str] | None:
    """Wrong usage where one of them is none."""
    from roberta_flax.parity.rounding import DTYPES

    for dtype in dtypes or ():
        if dtype not in DTYPES:
            raise typer.BadParameter(f"{dtype!r} is not one of {', '.join(DTYPES)}")
    return dtypes


@grouped
def command(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Model: any name or path that roberta_flax.load takes.")
    ],
    texts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Inputs: one text a line, or two separated by a tab; or a .jsonl, .csv, .tsv or .parquet file.",
            show_default="built-in sequences of 1 to the maximum number of tokens",
        ),
    ] = None,
    text_column: Annotated[list[str] | None, TEXT_COLUMN, Formerly(("--column",))] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(
            callback=_known,
            metavar="float64|float32|bfloat16|float16|int8",
            help="Dtype of the Flax side. Repeat it for several.",
            show_default="float32",
        ),
    ] = None,
    precision: Precision = None,
    attention: Attention = None,
    backend: Annotated[
        Backend | None, typer.Option(help="Where the Flax side runs.", show_default="JAX's default")
    ] = None,
    reference: Annotated[
        Reference | None, typer.Option(help="The torch side, which computes in float64.", show_default="builtin")
    ] = None,
    gradients: Annotated[
        bool, typer.Option("--gradients", help="Compare the gradients by every parameter, too.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Activations to compare, such as 'layers.*.output'. Repeat it for several.",
            show_default="all",
        ),
    ] = None,
    record: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Record the torch side in this directory, to be replayed.")
    ] = None,
    replay: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Compare with a recorded torch side. torch is not needed.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Write report.json and report.html there, in place of a report."
        ),
    ] = None,
    all_tensors: Annotated[
        bool, typer.Option(help="Print one line for each tensor, not for each layer."), Formerly(("--all-points",))
    ] = False,
    files: FileOptions = FileOptions(),
    as_json: Json = False,
) -> None:
    """Run the same inputs through torch and Flax, and compare every activation.

    The exit status is 0 where rounding explains every difference and all decisions agree; otherwise 1.
    """
    from rich.console import Console

    from roberta_flax import parity
    from roberta_flax.errors import ParityError
    from roberta_flax.parity.inputs import read_texts
    from roberta_flax.parity.output import PAGE, REPORT, check_destination, write
    from roberta_flax.parity.report import divergence
    from roberta_flax.parity.report_terminal import print_report

    if text_column and texts is None:
        raise typer.BadParameter("it names columns of --texts; give --texts too", param_hint="--text-column")
    if replay is not None and (texts is not None or record is not None or reference is not None or gradients):
        raise typer.BadParameter(
            "the recording has the inputs, the reference and the gradients; leave out --texts, --record, "
            "--reference and --gradients",
            param_hint="--replay",
        )
    if output is not None:
        check_destination(output)
    keep_programs(files.cache_dir)
    open_devices()
    with _progress() as progress:
        report = parity.compare(
            source,
            texts=None if texts is None else read_texts(texts, text_column or ()),
            dtypes=tuple(dtype or ("float32",)),
            precision=precision,
            attention=attention,
            backend=backend,
            reference=reference or "builtin",
            gradients=gradients,
            only=tuple(only or ()),
            record=record,
            replay=replay,
            progress=progress,
            **files.files(),
        )
    if output is not None and (problem := write(report, output)) is not None:
        print(printable(f"{output / PAGE} was not written, {REPORT} was: {problem}"), file=sys.stderr)
    if as_json:
        sys.stdout.write(report.to_json())
    else:
        print_report(report, Console(), all_tensors=all_tensors)
    if not report.passed:
        raise ParityError("; ".join(line for run in report.runs if (line := divergence(run)) is not None))


@contextmanager
def _progress() -> Iterator[Progress | None]:
    """On a terminal a line on stderr that says which batch is computed by what; else nothing."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status("reading the model") as status:
        yield lambda batch, batches, what: status.update(Text(f"batch {batch} of {batches}: {printable(what)}"))
