"""roberta-flax verify DIR --against SOURCE"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from roberta_flax.cli.options import BpeDir, CacheDir, Json, print_json


def command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A converted directory.")],
    against: Annotated[str, typer.Option(help="What it came from, or what export made of it.")],
    checkpoint_file: Annotated[
        str | None,
        typer.Option(help="The checkpoint's name in a fairseq directory. [default: as it was converted, from fairseq]"),
    ] = None,
    head_name: Annotated[
        str | None, typer.Option(help="What the head of a transformers model is called. [default: as DIR's only head]")
    ] = None,
    bpe_dir: BpeDir = None,
    cache_dir: CacheDir = None,
    as_json: Json = False,
) -> None:
    """Read the source again and compare every tensor. Exit status 1 where anything differs."""
    from roberta_flax.convert import verify
    from roberta_flax.errors import CheckpointError

    result = verify(
        directory,
        against,
        checkpoint_file=checkpoint_file,
        bpe_dir=bpe_dir,
        cache_dir=cache_dir,
        head_name=head_name,
    )
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
            f"{same} of {len(result.comparisons)} tensors are the source's, bit for bit (after rounding, where it was)"
        )
    if result.problems:
        more = f"; and {len(result.problems) - 20} more" if len(result.problems) > 20 else ""
        raise CheckpointError(f"{directory} is not what {against} makes: {'; '.join(result.problems[:20])}{more}")


def _result(identical: bool, difference: float) -> str:
    if not identical:
        return f"DIFFERS by {difference:.3g}"
    return f"rounded by {difference:.3g}" if difference else "identical"
