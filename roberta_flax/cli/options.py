"""Options that several subcommands share, and how results are printed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

CacheDir = Annotated[
    Path | None,
    typer.Option(help="Where downloads and conversions are kept. [default: ROBERTA_FLAX_CACHE, or the user's cache]"),
]
CheckpointFile = Annotated[str, typer.Option(help="The checkpoint's name in a fairseq directory or archive.")]
BpeDir = Annotated[
    Path | None,
    typer.Option(help="Where encoder.json and vocab.bpe are, if not beside the checkpoint and not GPT-2's."),
]
Model = Annotated[
    str,
    typer.Option("--model", "-m", help="A released name, a fairseq directory, .tar.gz or .pt, or a converted one."),
]
Dtype = Annotated[str, typer.Option(help="Of the computation: float32, bfloat16, float16.")]
Precision = Annotated[
    str | None,
    typer.Option(help="Of matrix products: default, high, highest (float32 parity on TPU and GPU)."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def print_json(result: Any) -> None:
    """One JSON value on stdout; text stays readable in any script."""
    json.dump(result, sys.stdout, ensure_ascii=False)
    sys.stdout.write("\n")
