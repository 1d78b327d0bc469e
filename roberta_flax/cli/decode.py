"""roberta-flax decode ID [ID ...]"""

from __future__ import annotations

from typing import Annotated

import typer

from roberta_flax.cli.options import BpeDir, CacheDir, CheckpointFile, Json, Model, print_json


def command(
    tokens: Annotated[list[int], typer.Argument(help="Token ids of one sequence.")],
    model: Model = "roberta.base",
    checkpoint_file: CheckpointFile = "model.pt",
    bpe_dir: BpeDir = None,
    cache_dir: CacheDir = None,
    as_json: Json = False,
) -> None:
    """Print the text of token ids: a line a sentence."""
    from roberta_flax.hub import load_tokenizer

    tokenizer = load_tokenizer(model, checkpoint_file=checkpoint_file, bpe_dir=bpe_dir, cache_dir=cache_dir)
    decoded = tokenizer.decode(tokens)
    texts = [decoded] if isinstance(decoded, str) else decoded
    if as_json:
        print_json({"texts": texts})
    else:
        print(*texts, sep="\n")
