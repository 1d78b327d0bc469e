"""roberta-flax fill-mask TEXT; or of a file: fill-mask --input FILE -o OUTPUT"""

from __future__ import annotations

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
    text: Annotated[str | None, typer.Argument(help="Text with one <mask> in it.")] = None,
    topk: Annotated[int, typer.Option("--topk", "-k", help="How many tokens, likeliest first.")] = 5,
    file: batch.Input = None,
    output: batch.Output = None,
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
    """Print the likeliest tokens for the <mask> in a text: probability, token, and the text with it.

    With --input, write those of every row of a file. A run that was stopped goes on with the same command.
    """
    from roberta_flax.errors import InputError

    if (file is None) == (text is None):
        raise InputError("give one text, or a file of texts with --input")
    loading = Loading(model, dtype, precision, quantize, checkpoint_file, bpe_dir, cache_dir)
    if file is not None:
        from roberta_flax.tasks.fill_mask import FillMask

        options = batch.Options(
            output, columns, keep, no_header, format, on_long, max_length, strategy, strict, rows_per_part,
            tokens_per_batch, tensor_parallel, share, distributed, as_json,
        )  # fmt: skip
        batch.run_job(loading, lambda _: FillMask(topk), file, options)
        return
    assert text is not None, "one of the two is given"
    roberta = loading.load()
    filled = roberta.fill_mask(text, topk)
    if as_json:
        print_json([{"text": text, "probability": probability, "token": token} for text, probability, token in filled])
        return
    for filled_text, probability, token in filled:
        print(f"{probability:.4f}  {token!r}  {filled_text}")
