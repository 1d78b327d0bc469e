"""roberta-flax encode TEXT [MORE ...]"""

from __future__ import annotations

from typing import Annotated

import typer

from roberta_flax.cli.options import BpeDir, CacheDir, CheckpointFile, Json, Model, print_json


def command(
    text: Annotated[str, typer.Argument(help="A sentence.")],
    more: Annotated[list[str] | None, typer.Argument(help="Further sentences of the same input.")] = None,
    no_separator: Annotated[bool, typer.Option(help="One </s> between sentences, not two.")] = False,
    model: Model = "roberta.base",
    checkpoint_file: CheckpointFile = "model.pt",
    bpe_dir: BpeDir = None,
    cache_dir: CacheDir = None,
    as_json: Json = False,
) -> None:
    """Print the token ids of a text: <s> a </s>, or <s> a </s></s> b </s>."""
    from roberta_flax.hub import load_tokenizer

    tokenizer = load_tokenizer(model, checkpoint_file=checkpoint_file, bpe_dir=bpe_dir, cache_dir=cache_dir)
    ids = tokenizer.encode(text, *(more or []), no_separator=no_separator).tolist()
    if as_json:
        print_json({"tokens": ids})
    else:
        print(*ids)
