"""roberta-flax parity SOURCE [--dtype D ...] [-o DIR]"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from roberta_flax.cli.accelerators import open_devices
from roberta_flax.cli.groups import ADVANCED, Formerly, grouped
from roberta_flax.cli.options import TEXT_COLUMN, Attention, FileOptions, Json, Precision, keep_programs, print_line
from roberta_flax.cli.progress import spoken
from roberta_flax.errors import InputError, ParityError, printable

if TYPE_CHECKING:
    from roberta_flax.parity.report import Report

Backend = Literal["cpu", "gpu", "tpu"]
Reference = Literal["builtin", "fairseq", "transformers", "sentence-transformers"]


@grouped
def command(
    source: Annotated[
        str | None, typer.Argument(metavar="SOURCE", help="Model: any name or path that roberta_flax.load takes.")
    ] = None,
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
            metavar="float64|float32|bfloat16|float16|int8",
            help="Dtype of the Flax side. Repeat it for several.",
            show_default="float32",
        ),
    ] = None,
    precision: Annotated[Precision, ADVANCED] = None,
    attention: Annotated[Attention, ADVANCED] = None,
    backend: Annotated[
        Backend | None,
        typer.Option(help="Where the Flax side runs.", show_default="JAX's default"),
        Formerly(("--device",)),
        ADVANCED,
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
        ADVANCED,
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Record the torch side in this directory, to be replayed."),
        ADVANCED,
    ] = None,
    replay: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Compare with a recorded torch side. torch is not needed."),
        ADVANCED,
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Write report.json, report.html and plots there, in place of a report.",
        ),
    ] = None,
    render: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Show a report.json; with -o, write its page. Nothing is compared."),
    ] = None,
    all_tensors: Annotated[
        bool,
        typer.Option(help="Print one line for each tensor, not for each layer."),
        Formerly(("--all-points",)),
        ADVANCED,
    ] = False,
    files: FileOptions = FileOptions(),
    as_json: Json = False,
) -> None:
    """Run the same inputs through torch and Flax, and compare every activation.

    The exit status is 0 where rounding explains every difference and all decisions agree; otherwise 1.
    """
    from roberta_flax import parity
    from roberta_flax.parity.inputs import read_texts
    from roberta_flax.parity.output import check_destination

    if (source is None) == (render is None):
        raise typer.BadParameter("give a model, or --render and a report.json", param_hint="SOURCE")
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
    if render is not None:
        _show(parity.read_report(render), output, all_tensors, as_json)
        return
    missing = False
    if output is not None:
        missing = _say_without_matplotlib(output)
    keep_programs(files.cache_dir)
    open_devices()
    with spoken("reading the model") as speak:
        report = parity.compare(
            str(source),
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
            progress=lambda batch, batches, what: speak(f"batch {batch} of {batches}: {what}"),
            **files.files(),
        )
    _show(report, output, all_tensors, as_json, said=missing)


def _say_without_matplotlib(output: Path) -> bool:
    """Says before the comparison that there will be no page, and what writes it later; whether it had to."""
    from roberta_flax.extras import require
    from roberta_flax.parity.output import PAGE, REPORT

    try:
        require("matplotlib.figure", "parity")
    except InputError as error:
        later = f"then run roberta-flax parity --render {output / REPORT} -o DIR"
        print(printable(f"{output / PAGE} will not be written, {REPORT} will: {error}; {later}"), file=sys.stderr)
        return True
    return False


def _show(report: Report, output: Path | None, all_tensors: bool, as_json: bool, said: bool = False) -> None:
    """Writes and prints a report; ParityError where it says that the two sides differ."""
    from rich.console import Console

    from roberta_flax.parity.output import PAGE, REPORT, write
    from roberta_flax.parity.report import divergence
    from roberta_flax.parity.report_terminal import print_report

    problem = None if output is None else write(report, output)
    if output is not None and problem is not None and not said:
        print(printable(f"{output / PAGE} was not written, {REPORT} was: {problem}"), file=sys.stderr)
    if as_json:
        sys.stdout.write(report.to_json())
    else:
        print_report(report, Console(), all_tensors=all_tensors)
        if output is not None and problem is None:
            print_line(f"{output / PAGE}: the full report, with plots")
    if not report.passed:
        raise ParityError("; ".join(line for run in report.runs if (line := divergence(run)) is not None))
