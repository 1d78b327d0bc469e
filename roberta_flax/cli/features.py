"""roberta-flax features TEXT [MORE ...] -o FILE"""

from __future__ import annotations

from pathlib import Path
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
    text: Annotated[str, typer.Argument(help="A sentence.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A .npy file, or .npz for tokens and features.")],
    more: Annotated[list[str] | None, typer.Argument(help="Further sentences of the same input.")] = None,
    all_layers: Annotated[
        bool, typer.Option(help="The embedding's and every layer's output, not just the last.")
    ] = False,
    model: Model = "roberta.base",
    dtype: Dtype = "float32",
    precision: Precision = None,
    checkpoint_file: CheckpointFile = "model.pt",
    bpe_dir: BpeDir = None,
    cache_dir: CacheDir = None,
    as_json: Json = False,
) -> None:
    """Write a text's features, float32: [1, time, hidden], or with --all-layers [layers + 1, 1, time, hidden]."""
    import numpy as np

    from roberta_flax.errors import InputError
    from roberta_flax.hub import load

    if output.suffix not in (".npy", ".npz"):
        raise InputError(f"{output}: the output file must end in .npy or .npz")
    roberta = load(
        model,
        dtype=dtype,
        precision=precision,
        checkpoint_file=checkpoint_file,
        bpe_dir=bpe_dir,
        cache_dir=cache_dir,
    )
    tokens = roberta.encode(text, *(more or []))
    found = roberta.extract_features(tokens, True) if all_layers else roberta.extract_features(tokens)
    features = np.asarray(found, np.float32)
    try:
        with output.open("wb") as file:
            if output.suffix == ".npy":
                np.save(file, features)
            else:
                np.savez(file, tokens=tokens, features=features)
    except OSError as error:
        raise InputError(f"cannot write {output}: {error.strerror}") from None
    if as_json:
        print_json(
            {
                "output": str(output),
                "tokens": tokens.tolist(),
                "shape": list(features.shape),
                "dtype": "float32",
            }
        )
    else:
        print(f"{output}: float32 {list(features.shape)}")
