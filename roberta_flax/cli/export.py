"""roberta-flax export DIR --to fairseq|huggingface DEST"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from roberta_flax.cli.options import Json, print_json


def command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A converted directory.")],
    dest: Annotated[Path, typer.Argument(help="The directory to make.")],
    to: Annotated[str, typer.Option(help="fairseq (needs torch) or huggingface.")],
    head: Annotated[
        list[str] | None, typer.Option(help="A head to take; more than one to fairseq. [default: all]")
    ] = None,
    no_heads: Annotated[bool, typer.Option("--no-heads", help="Take none.")] = False,
    as_json: Json = False,
) -> None:
    """Write a model as a checkpoint that fairseq, or transformers, loads; weights are kept bit for bit."""
    from convert import export

    export(directory, dest, to=to, heads=[] if no_heads else head or None)
    files = sorted(file.name for file in dest.iterdir())
    if as_json:
        print_json({"directory": str(dest), "to": to, "files": files})
    else:
        print(f"{dest}: {', '.join(files)}")
