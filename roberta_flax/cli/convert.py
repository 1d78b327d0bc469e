"""roberta-flax convert SOURCE DEST"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from roberta_flax.cli.options import BpeDir, CacheDir, CheckpointFile, Json, print_json


def command(
    source: Annotated[
        str,
        typer.Argument(
            help="A fairseq directory, a .tar.gz of one, a checkpoint file; a directory that transformers wrote, or "
            "hf:org/name."
        ),
    ],
    dest: Annotated[Path, typer.Argument(help="The directory to make.")],
    checkpoint_file: CheckpointFile = "model.pt",
    bpe_dir: BpeDir = None,
    dtype: Annotated[
        str | None, typer.Option(help="To store in: float32, bfloat16, float16. [default: the source's own]")
    ] = None,
    strict: Annotated[bool, typer.Option(help="Refuse weights that are not finite.")] = False,
    head_name: Annotated[str | None, typer.Option(help="What the head of a transformers model is called.")] = None,
    sha256: Annotated[str | None, typer.Option(help="What SOURCE must hash to, in hex.")] = None,
    cache_dir: CacheDir = None,
    as_json: Json = False,
) -> None:
    """Convert a checkpoint to a Flax parameter tree, once. Needs no torch; executes nothing in the file."""
    from roberta_flax.checkpoint import converted
    from roberta_flax.convert import convert

    begin = time.perf_counter()
    convert(
        source,
        dest,
        checkpoint_file=checkpoint_file,
        bpe_dir=bpe_dir,
        cache_dir=cache_dir,
        sha256=sha256,
        dtype=dtype,
        strict=strict,
        head_name=head_name,
    )
    seconds = time.perf_counter() - begin
    config = converted.read_config(dest)
    size = (dest / converted.PARAMS_FILE).stat().st_size
    heads = [head.name for head in config.heads]
    if as_json:
        print_json({"directory": str(dest), "bytes": size, "heads": heads, "seconds": round(seconds, 3)})
    else:
        print(
            f"{dest}: {config.num_layers} layers, {config.hidden_size} wide, {config.vocab_size} tokens, "
            f"heads: {', '.join(heads) or 'none'}; {size / 1e6:.1f} MB in {seconds:.1f} s"
        )
