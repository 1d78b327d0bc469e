"""roberta-flax verify DIR [--against SOURCE]"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from roberta_flax.cli.groups import grouped
from roberta_flax.cli.options import BaseModel, FileOptions, HeadName, Json, print_json, print_line
from roberta_flax.errors import CheckpointError, printable

if TYPE_CHECKING:
    from roberta_flax.convert.verification import Verification


@grouped
def command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Converted directory.")],
    against: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="What it was converted from, or what export made of it.",
            show_default="the checksums in its conversion.json",
        ),
    ] = None,
    head_name: HeadName = None,
    base_model: BaseModel = None,
    files: FileOptions = FileOptions(),
    as_json: Json = False,
) -> None:
    """Compare every file with its checksum, or with --against every tensor with the model's source.

    The exit status is 1 where anything differs. Without --checkpoint-file, the source's is the one that was converted.
    """
    from roberta_flax.convert import verify

    result = verify(directory, against, head_name=head_name, base_model=base_model, **files.files())
    if as_json:
        _print_json(result)
    elif against is None:
        _print_files(result)
    else:
        _print_tensors(result)
    if result.problems:
        more = f"; and {len(result.problems) - 20} more" if len(result.problems) > 20 else ""
        what = "what was written" if against is None else f"what {against} makes"
        raise CheckpointError(f"{directory} is not {what}: {'; '.join(result.problems[:20])}{more}")


def _print_json(result: Verification) -> None:
    compared = result.files or result.comparisons
    print_json(
        {
            "identical": len(compared) - _differing(result),
            "files" if result.files else "tensors": [dataclasses.asdict(each) for each in compared],
            "problems": result.problems,
        }
    )


def _differing(result: Verification) -> int:
    return sum(file.problem is not None for file in result.files) + sum(
        not comparison.identical for comparison in result.comparisons
    )


def _print_files(result: Verification) -> None:
    rows = [
        (file.name, "" if file.size is None else str(file.size), file.problem or "identical") for file in result.files
    ]
    _print_table(("file", "bytes", "result"), rows)
    same = len(result.files) - _differing(result)
    print_line(f"{same} of {len(result.files)} files are those that were written, byte for byte")


def _print_tensors(result: Verification) -> None:
    rows = [
        (
            each.path,
            "x".join(map(str, each.shape)),
            each.dtype,
            each.source_dtype,
            _result(each.identical, each.largest_difference),
            each.source,
        )
        for each in result.comparisons
    ]
    _print_table(("tensor", "shape", "dtype", "source's", "result", "source"), rows)
    same = len(result.comparisons) - _differing(result)
    print_line(
        f"{same} of {len(result.comparisons)} tensors are the source's, bit for bit (after rounding to the dtype in "
        "which they are stored)"
    )


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    shown = [header, *(list(map(printable, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        print_line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _result(identical: bool, difference: float) -> str:
    if not identical:
        return f"DIFFERS by {difference:.3g}"
    return f"rounded by {difference:.3g}" if difference else "identical"
