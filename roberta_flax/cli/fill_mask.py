"""roberta-flax fill-mask TEXT"""

from __future__ import annotations

from typing import Annotated

import typer

from roberta_flax.cli.options import (
    BpeDir,
    CacheDir,
    CheckpointFile,
    Dtype,
    Json,
    Model,
    Precision,
    print_json,
)


def command(
    text: Annotated[str, typer.Argument(help="Text with one <mask> in it.")],
    topk: Annotated[int, typer.Option("--topk", "-k", help="How many tokens, likeliest first.")] = 5,
    model: Model = "roberta.base",
    dtype: Dtype = "float32",
    precision: Precision = None,
    checkpoint_file: CheckpointFile = "model.pt",
    bpe_dir: BpeDir = None,
    cache_dir: CacheDir = None,
    as_json: Json = False,
) -> None:
    """Print the likeliest tokens for the <mask> in a text: probability, token, and the text with it."""
    from roberta_flax.hub import load

    roberta = load(
        model,
        dtype=dtype,
        precision=precision,
        checkpoint_file=checkpoint_file,
        bpe_dir=bpe_dir,
        cache_dir=cache_dir,
    )
    filled = roberta.fill_mask(text, topk)
    if as_json:
        print_json([{"text": text, "probability": probability, "token": token} for text, probability, token in filled])
        return
    for filled_text, probability, token in filled:
        print(f"{probability:.4f}  {token!r}  {filled_text}")
