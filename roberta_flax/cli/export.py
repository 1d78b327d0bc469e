"""roberta-flax export DIR DEST --to fairseq|huggingface|sentence-transformers|stablehlo"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from roberta_flax.cli.groups import grouped
from roberta_flax.cli.options import Dtype, Json, Precision, Quantize, print_result
from roberta_flax.errors import InputError


@grouped
def command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Converted directory.")],
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="Directory to make.")],
    to: Annotated[
        str,
        typer.Option(
            metavar="fairseq|huggingface|sentence-transformers|stablehlo", help="Format to write. fairseq needs torch."
        ),
    ],
    heads: Annotated[
        list[str] | None,
        typer.Option("--head", help="Head to export. Repeat it for several, to fairseq.", show_default="all"),
    ] = None,
    no_heads: Annotated[bool, typer.Option(help="Export no head.")] = False,
    dtype: Dtype = None,
    precision: Precision = None,
    quantize: Quantize = None,
    platforms: Annotated[
        list[str] | None,
        typer.Option(
            "--platform",
            metavar="cpu|cuda|rocm|tpu",
            help="Platform of StableHLO programs. Repeat it for several.",
            show_default="cpu, cuda and tpu",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a model as a checkpoint for fairseq, transformers or sentence-transformers, or as StableHLO programs.

    Parameters are kept bit for bit. --dtype, --precision, --quantize and --platform are for StableHLO programs.
    """
    chosen = [] if no_heads else heads or None
    options = {"dtype": dtype, "precision": precision, "quantize": quantize, "platforms": platforms}
    given: dict[str, Any] = {name: value for name, value in options.items() if value}
    if to == "stablehlo":
        from roberta_flax.checkpoint import stablehlo

        stablehlo.export(directory, dest, heads=chosen, **given)
    else:
        from roberta_flax.convert.export import FORMATS, export

        if to not in FORMATS:
            raise InputError(f"models are exported to {', '.join(FORMATS)} or stablehlo, got {to!r}")
        if given:
            raise InputError("--dtype, --precision, --quantize and --platform are for --to stablehlo")
        export(directory, dest, to=to, heads=chosen)
    files = sorted(str(file.relative_to(dest)) for file in dest.rglob("*") if file.is_file())
    result = {"directory": str(dest), "to": to, "files": files}
    print_result(result, [f"{dest}: {', '.join(files)}"], as_json=as_json)
