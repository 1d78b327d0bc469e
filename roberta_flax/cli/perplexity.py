"""roberta-flax perplexity DATA.bin --model M"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from roberta_flax.cli.options import (
    BpeDir,
    CacheDir,
    CheckpointFile,
    Dtype,
    Json,
    Loading,
    Model,
    Precision,
    print_json,
)
from roberta_flax.cli.pretrain import (
    BatchSize,
    BreakMode,
    LeaveUnmaskedProb,
    MaskProb,
    RandomTokenProb,
    TokensPerSample,
    WholeWords,
)
from roberta_flax.cli.training import DataParallel, TensorParallel, mesh_of
from roberta_flax.nn.numerics import Numerics
from roberta_flax.train.samples import Samples


def command(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Tokens, of preprocess.")],
    sample_break_mode: BreakMode = "complete",
    tokens_per_sample: TokensPerSample = None,
    mask_prob: MaskProb = 0.15,
    leave_unmasked_prob: LeaveUnmaskedProb = 0.1,
    random_token_prob: RandomTokenProb = 0.1,
    mask_whole_words: WholeWords = False,
    batch_size: BatchSize = 16,
    seed: Annotated[int, typer.Option(help="Of the masks.")] = 1,
    data_parallel: DataParallel = None,
    tensor_parallel: TensorParallel = 1,
    model: Model = "roberta.base",
    dtype: Dtype = "float32",
    precision: Precision = None,
    checkpoint_file: CheckpointFile = "model.pt",
    bpe_dir: BpeDir = None,
    cache_dir: CacheDir = None,
    as_json: Json = False,
) -> None:
    """How well a model predicts masked tokens: the loss in bits, as fairseq prints it, and perplexity, 2 to that.

    Each of all the samples has one mask, which depends on the seed alone.
    """
    from roberta_flax.nn import sharding
    from roberta_flax.train import make_eval_step, masked_lm_loss
    from roberta_flax.train.pretraining import mean_loss

    mesh = mesh_of(batch_size, tensor_parallel, data_parallel=data_parallel)
    roberta = Loading(model, dtype, precision, None, checkpoint_file, bpe_dir, cache_dir).load()
    config = roberta.config
    samples = Samples(
        sample_break_mode, tokens_per_sample, mask_prob, leave_unmasked_prob, random_token_prob, mask_whole_words, seed
    )
    batches, _ = samples.batches(data, roberta.tokenizer, config, batch_size)
    params = roberta.params if mesh is None else sharding.place(roberta.params, config, mesh)
    step = make_eval_step(masked_lm_loss(config=config, numerics=Numerics(dtype=dtype, precision=precision)))
    found = mean_loss(step, params, batches.in_order(), mesh)
    bits = found["loss"] / math.log(2)
    if as_json:
        print_json({"loss": bits, "perplexity": found["perplexity"], "masked_tokens": int(found["size"])})
    else:
        print(f"loss {bits:.3f} bits, perplexity {found['perplexity']:.2f}, of {int(found['size'])} masked tokens")
