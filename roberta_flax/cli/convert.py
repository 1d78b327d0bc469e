"""roberta-flax convert SOURCE DEST"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from roberta_flax.cli.groups import grouped
from roberta_flax.cli.options import BaseModel, FileOptions, HeadName, Json, print_result


@grouped
def command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Fairseq directory, .tar.gz of one, checkpoint file, transformers directory, adapter, or hf:ORG/NAME.",
        ),
    ],
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="Directory to make.")],
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="float32|bfloat16|float16", help="Dtype to store parameters in.", show_default="the source's"
        ),
    ] = None,
    strict: Annotated[bool, typer.Option(help="Refuse parameters that are not finite.")] = False,
    head_name: HeadName = None,
    base_model: BaseModel = None,
    no_tokenizer: Annotated[
        bool, typer.Option(help="Leave the tokenizer out: the model takes token ids only.")
    ] = False,
    sha256: Annotated[
        str | None, typer.Option(metavar="HEX", help="SHA-256 that SOURCE must have.", show_default="not checked")
    ] = None,
    files: FileOptions = FileOptions(),
    as_json: Json = False,
) -> None:
    """Convert a checkpoint to a Flax parameter tree, once.

    No torch is needed, and nothing in the file is executed.
    """
    from roberta_flax.checkpoint import converted
    from roberta_flax.convert import convert

    begin = time.perf_counter()
    convert(
        source,
        dest,
        sha256=sha256,
        dtype=dtype,
        strict=strict,
        head_name=head_name,
        base_model=base_model,
        with_tokenizer=not no_tokenizer,
        **files.files(),
    )
    seconds = time.perf_counter() - begin
    config = converted.read_config(dest)
    size = (dest / converted.PARAMS_FILE).stat().st_size
    heads = [head.name for head in config.heads]
    result = {"directory": str(dest), "bytes": size, "heads": heads, "seconds": round(seconds, 3)}
    line = (
        f"{dest}: {config.num_layers} layers, hidden size {config.hidden_size}, {config.vocab_size} tokens, "
        f"heads: {', '.join(heads) or 'none'}; {size / 1e6:.1f} MB in {seconds:.1f} s"
    )
    print_result(result, [line], as_json=as_json)
