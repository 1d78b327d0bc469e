"""roberta-flax verify DIR --against SOURCE"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from roberta_flax.cli.groups import grouped
from roberta_flax.cli.options import FileOptions, HeadName, Json, print_json


@grouped
def command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Converted directory.")],
    against: Annotated[
        str, typer.Option(metavar="SOURCE", help="What it was converted from, or what export made of it.")
    ],
    head_name: HeadName = None,
    files: FileOptions = FileOptions(),
    as_json: Json = False,
) -> None:
    """Read a model's source again and compare every tensor. The exit status is 1 where anything differs.

    Without --checkpoint-file, the source's is the one that was converted.
    """
    from roberta_flax.convert import verify
    from roberta_flax.errors import CheckpointError

    result = verify(directory, against, head_name=head_name, **files.files())
    same = sum(comparison.identical for comparison in result.comparisons)
    if as_json:
        comparisons = [dataclasses.asdict(comparison) for comparison in result.comparisons]
        print_json({"identical": same, "tensors": comparisons, "problems": result.problems})
    else:
        header = ("tensor", "shape", "dtype", "source's", "result", "source")
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
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        for row in (header, *rows):
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        print(
            f"{same} of {len(result.comparisons)} tensors are the source's, bit for bit (after rounding to the dtype "
            "in which they are stored)"
        )
    if result.problems:
        more = f"; and {len(result.problems) - 20} more" if len(result.problems) > 20 else ""
        raise CheckpointError(f"{directory} is not what {against} makes: {'; '.join(result.problems[:20])}{more}")


def _result(identical: bool, difference: float) -> str:
    if not identical:
        return f"DIFFERS by {difference:.3g}"
    return f"rounded by {difference:.3g}" if difference else "identical"
