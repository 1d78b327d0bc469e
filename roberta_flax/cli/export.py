"""roberta-flax export DIR --to fairseq|huggingface|stablehlo DEST"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from roberta_flax.cli.options import Json, print_json


def command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A converted directory.")],
    dest: Annotated[Path, typer.Argument(help="The directory to make.")],
    to: Annotated[str, typer.Option(help="fairseq (needs torch), huggingface or stablehlo.")],
    head: Annotated[
        list[str] | None, typer.Option(help="A head to take; more than one to fairseq. [default: all]")
    ] = None,
    no_heads: Annotated[bool, typer.Option("--no-heads", help="Take none.")] = False,
    dtype: Annotated[
        str | None, typer.Option(help="stablehlo: of the computation, float32, bfloat16, float16. [default: float32]")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="stablehlo: of products, default, high, highest.")] = None,
    quantize: Annotated[str | None, typer.Option(help="stablehlo: int8 for the layers' products in int8.")] = None,
    platform: Annotated[
        list[str] | None, typer.Option(help="stablehlo: cpu, cuda, rocm, tpu; several are. [default: cpu cuda tpu]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a model as a checkpoint that fairseq, or transformers, loads, or as StableHLO programs.

    Weights are kept bit for bit.
    """
    from roberta_flax.convert.export import FORMATS, export
    from roberta_flax.errors import InputError

    heads = [] if no_heads else head or None
    options = {"dtype": dtype, "precision": precision, "quantize": quantize, "platforms": platform}
    given: dict[str, Any] = {name: value for name, value in options.items() if value}
    if to == "stablehlo":
        from roberta_flax.checkpoint import stablehlo

        stablehlo.export(directory, dest, heads=heads, **given)
    elif to not in FORMATS:
        raise InputError(f"models are exported to {', '.join(FORMATS)} or stablehlo, got {to!r}")
    elif given:
        raise InputError("--dtype, --precision, --quantize and --platform are for --to stablehlo")
    else:
        export(directory, dest, to=to, heads=heads)
    files = sorted(str(file.relative_to(dest)) for file in dest.rglob("*") if file.is_file())
    if as_json:
        print_json({"directory": str(dest), "to": to, "files": files})
    else:
        print(f"{dest}: {', '.join(files)}")
