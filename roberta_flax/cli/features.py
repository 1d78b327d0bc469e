"""roberta-flax features TEXT [MORE ...] -o FILE; TEXT --words [-o FILE]; or of a file: --input FILE -o OUTPUT"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from roberta_flax.cli import batch
from roberta_flax.cli.options import (
    BpeDir,
    CacheDir,
    CheckpointFile,
    Dtype,
    Json,
    Loading,
    MaxLength,
    Model,
    Precision,
    Quantize,
    print_json,
)


def command(
    text: Annotated[str | None, typer.Argument(help="A sentence.")] = None,
    more: Annotated[list[str] | None, typer.Argument(help="Further sentences of the same input.")] = None,
    all_layers: Annotated[
        bool, typer.Option(help="The embedding's and every layer's output, not just the last.")
    ] = False,
    by_word: Annotated[
        bool,
        typer.Option(
            "--words",
            help="A vector a word, of spaCy's words; printed without --output: beginnings, with --json all.",
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Of a text .npy, or .npz with its tokens or words; of a file .parquet, .npy, .jsonl."
        ),
    ] = None,
    file: batch.Input = None,
    pooling: Annotated[str, typer.Option(help="Of a file: mean, first (token), or tokens, all of them.")] = "mean",
    columns: batch.Columns = None,
    keep: batch.Keep = None,
    no_header: batch.NoHeader = False,
    format: batch.Format = None,
    on_long: batch.OnLong = "error",
    max_length: MaxLength = None,
    strategy: batch.Strategy = None,
    strict: batch.Strict = False,
    rows_per_part: batch.RowsPerPart = 8192,
    tokens_per_batch: batch.TokensPerBatch = None,
    tensor_parallel: batch.TensorParallel = 1,
    share: batch.Share = None,
    distributed: batch.Distributed = False,
    model: Model = "roberta.base",
    dtype: Dtype = "float32",
    precision: Precision = None,
    quantize: Quantize = None,
    checkpoint_file: CheckpointFile = "model.pt",
    bpe_dir: BpeDir = None,
    cache_dir: CacheDir = None,
    as_json: Json = False,
) -> None:
    """Write features, float32: of one text [1, time, hidden], or with --all-layers [layers + 1, 1, time, hidden].

    With --words, of its words, <s> and </s> among them: [words, hidden], or [layers + 1, words, hidden].

    With --input, of every row of a file: a vector each, [rows, hidden] in a .npy file that np.load can map into memory,
    or with --pooling tokens one for each token. A run that was stopped goes on with the same command.
    """
    import numpy as np

    from roberta_flax.errors import InputError

    if (file is None) == (text is None):
        raise InputError("give one text, or a file of texts with --input")
    if output is None and not by_word:
        raise typer.BadParameter("give the file to write, or --words to print a vector a word", param_hint="--output")
    if by_word and file is not None:
        raise InputError("--words takes one text, not a file; of a file --pooling tokens writes a vector a token")
    loading = Loading(model, dtype, precision, quantize, checkpoint_file, bpe_dir, cache_dir)
    if file is not None:
        from roberta_flax.tasks.embed import Embed

        options = batch.Options(
            output, columns, keep, no_header, format, on_long, max_length, strategy, strict, rows_per_part,
            tokens_per_batch, tensor_parallel, share, distributed, as_json,
        )  # fmt: skip
        batch.run_job(loading, lambda _: Embed(pooling), file, options)
        return
    assert text is not None, "one of the two is given"
    if output is not None and output.suffix not in (".npy", ".npz"):
        raise InputError(f"{output}: the output file must end in .npy or .npz")
    if by_word and more:
        raise InputError(f"--words takes one text, got {1 + len(more)}")
    roberta = loading.load()
    if by_word:
        aligned = roberta.word_features(text, return_all_hiddens=all_layers)
        name, inputs, features = "words", np.array(aligned.words), np.asarray(aligned.features, np.float32)
    else:
        tokens = roberta.encode(text, *(more or []))
        found = roberta.extract_features(tokens, True) if all_layers else roberta.extract_features(tokens)
        name, inputs, features = "tokens", tokens, np.asarray(found, np.float32)
    if output is None:
        if as_json:
            print_json({name: inputs.tolist(), "features": features.tolist()})
        else:
            for place, word in enumerate(inputs.tolist()):
                print(f"{word!r:12} {' '.join(str(features[..., place, :5]).split())} (...)")
        return
    try:
        with output.open("wb") as saved:
            if output.suffix == ".npy":
                np.save(saved, features)
            else:
                np.savez(saved, allow_pickle=False, **{name: inputs}, features=features)
    except OSError as error:
        raise InputError(f"cannot write {output}: {error.strerror}") from None
    if as_json:
        print_json({"output": str(output), name: inputs.tolist(), "shape": list(features.shape), "dtype": "float32"})
    else:
        print(f"{output}: float32 {list(features.shape)}")
