"""roberta-flax pretrain --data D.bin --valid V.bin -o DIR"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from roberta_flax.cli.options import (
    BpeDir,
    CacheDir,
    CheckpointFile,
    Dtype,
    Json,
    Loading,
    Precision,
    keep_programs,
    print_json,
)
from roberta_flax.cli.preprocess import SourceModel, TokenizerDir
from roberta_flax.cli.training import (
    DataParallel,
    Distributed,
    FullySharded,
    Plot,
    Remat,
    TensorBoard,
    TensorParallel,
    mesh_of,
)
from roberta_flax.nn.numerics import Numerics
from roberta_flax.train.progress import is_first_process
from roberta_flax.train.samples import Samples

if TYPE_CHECKING:
    from roberta_flax.nn.config import RobertaConfig
    from roberta_flax.nn.forward import Params
    from roberta_flax.text.tokenizer import Tokenizer

BreakMode = Annotated[
    str, typer.Option(help="What a sample is: complete, complete_doc, eos (sentences, one) or none (tokens).")
]
TokensPerSample = Annotated[
    int | None, typer.Option(help="Of the longest sample, <s> included. [default: the model's positions]")
]
MaskProb = Annotated[float, typer.Option(help="The share of tokens, or words, that are predicted.")]
LeaveUnmaskedProb = Annotated[float, typer.Option(help="Of these, the share that stays as it is.")]
RandomTokenProb = Annotated[float, typer.Option(help="Of these, the share that becomes another token.")]
WholeWords = Annotated[bool, typer.Option("--mask-whole-words", help="Mask words, not tokens.")]
BatchSize = Annotated[int, typer.Option(help="Samples that all devices together work on at a time.")]


def command(
    data: Annotated[Path, typer.Option(help="Training tokens, of preprocess.")],
    valid: Annotated[Path, typer.Option(help="Validation tokens, of preprocess.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The run's directory; OUTPUT/best is the model.")],
    model: SourceModel = None,
    tokenizer: TokenizerDir = None,
    size: Annotated[str, typer.Option(help="From scratch: base or large, and of it other than:")] = "base",
    layers: Annotated[int | None, typer.Option(help="Layers.")] = None,
    hidden: Annotated[int | None, typer.Option(help="Width of the features.")] = None,
    heads: Annotated[int | None, typer.Option(help="Attention heads.")] = None,
    intermediate: Annotated[int | None, typer.Option(help="Width of the feed-forward layers.")] = None,
    max_positions: Annotated[int | None, typer.Option(help="Longest sequence.")] = None,
    dropout: Annotated[float | None, typer.Option(help="[default: the model's; 0.1]")] = None,
    attention_dropout: Annotated[float | None, typer.Option(help="[default: the model's; 0.1]")] = None,
    sample_break_mode: BreakMode = "complete",
    tokens_per_sample: TokensPerSample = None,
    mask_prob: MaskProb = 0.15,
    leave_unmasked_prob: LeaveUnmaskedProb = 0.1,
    random_token_prob: RandomTokenProb = 0.1,
    mask_whole_words: WholeWords = False,
    lr: Annotated[float, typer.Option(help="The highest learning rate.")] = 0.0005,
    warmup_steps: Annotated[
        int, typer.Option("--warmup-steps", "--warmup-updates", help="Steps until it is reached.")
    ] = 10_000,
    steps: Annotated[
        int, typer.Option("--steps", "--max-update", help="Steps, at the end of which it is 0.")
    ] = 125_000,
    batch_size: BatchSize = 16,
    update_freq: Annotated[int, typer.Option(help="Batches in a step.")] = 16,
    weight_decay: Annotated[float, typer.Option(help="Adam's.")] = 0.01,
    adam_betas: Annotated[tuple[float, float], typer.Option(help="Adam's.")] = (0.9, 0.98),
    adam_eps: Annotated[float, typer.Option(help="Adam's.")] = 1e-6,
    clip_norm: Annotated[float, typer.Option(help="The largest norm of gradients; 0 for any.")] = 0.0,
    validate_every: Annotated[int, typer.Option(help="Steps between validations.")] = 1000,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 1000,
    keep: Annotated[int, typer.Option(help="Checkpoints that stay, the newest.")] = 3,
    log_every: Annotated[int, typer.Option(help="Steps that a line of metrics.jsonl is of.")] = 100,
    patience: Annotated[int | None, typer.Option(help="Stop after so many validations without a better one.")] = None,
    seed: Annotated[int, typer.Option(help="Of initialisation, order, masks and dropout.")] = 1,
    dtype: Dtype = "float32",
    precision: Precision = None,
    remat: Remat = False,
    data_parallel: DataParallel = None,
    tensor_parallel: TensorParallel = 1,
    fully_sharded: FullySharded = False,
    distributed: Distributed = False,
    plot: Plot = False,
    tensorboard: TensorBoard = False,
    checkpoint_file: CheckpointFile = "model.pt",
    bpe_dir: BpeDir = None,
    cache_dir: CacheDir = None,
    as_json: Json = False,
) -> None:
    """Pretrain a RoBERTa on masked tokens. The same command again goes on where it stopped.

    Either from scratch, with --tokenizer and sizes, or on from --model. Defaults are those of fairseq's base.yaml.
    """
    from roberta_flax.nn import sharding
    from roberta_flax.train import (
        adam,
        init_optimizer,
        make_eval_step,
        make_train_step,
        masked_lm_loss,
        polynomial_decay,
    )
    from roberta_flax.train import directory as layout
    from roberta_flax.train.loop import Plan, run
    from roberta_flax.train.pretraining import mean_loss, training_batches

    mesh = mesh_of(batch_size, tensor_parallel, data_parallel=data_parallel, distributed=distributed)
    keep_programs(cache_dir)
    sizes = given(
        num_layers=layers,
        hidden_size=hidden,
        num_heads=heads,
        intermediate_size=intermediate,
        max_positions=max_positions,
    )
    loading = Loading(model or "", dtype, precision, None, checkpoint_file, bpe_dir, cache_dir)
    start = _from_model(loading, tokenizer, sizes) if model else _from_scratch(tokenizer, size, sizes, seed)
    config = replace(start.config, **given(dropout=dropout, attention_dropout=attention_dropout))
    samples = Samples(
        sample_break_mode, tokens_per_sample, mask_prob, leave_unmasked_prob, random_token_prob, mask_whole_words, seed
    )
    accumulate = update_freq if update_freq > 1 else None
    trained, data_note = samples.batches(data, start.tokenizer, config, batch_size, accumulate)
    validated, valid_note = samples.batches(valid, start.tokenizer, config, batch_size)
    schedule = polynomial_decay(lr, warmup_steps=warmup_steps, total_steps=steps)
    optimizer = adam(
        schedule, config=config, betas=adam_betas, eps=adam_eps, weight_decay=weight_decay, clip_norm=clip_norm
    )
    loss = masked_lm_loss(config=config, numerics=Numerics(dtype=dtype, precision=precision, remat=remat))
    eval_step = make_eval_step(masked_lm_loss(config=config, numerics=Numerics(dtype=dtype, precision=precision)))
    params = start.params
    if mesh is not None:
        params = sharding.place(params, config, mesh, fully_sharded=fully_sharded)
    best = output / layout.BEST
    outcome = run(
        make_train_step(loss, optimizer, accumulate=update_freq),
        params,
        init_optimizer(optimizer, params),
        training_batches(trained),
        plan=Plan(steps, validate_every, save_every, keep, log_every, patience, seed=seed),
        directory=output,
        config_note={
            "data": data_note,
            "valid": valid_note,
            "start": start.note,
            "config": json.loads(config.to_json()),
            "samples": asdict(samples),
            "batch_size": batch_size,
            "optimizer": [lr, warmup_steps, weight_decay, *adam_betas, adam_eps, clip_norm],
            "dtype": dtype,
            "precision": precision,
        },
        schedule=schedule,
        validate=lambda params: mean_loss(eval_step, params, validated.in_order(), mesh),
        save_best=lambda params: layout.save_best(output, config, params, start.tokenizer),
        mesh=mesh,
        accumulate=update_freq,
        tokens_of=lambda batch: int((batch["tokens"] != config.pad_id).sum()),
        tensorboard=tensorboard,
        plot=plot,
    )
    summary = {
        "model": str(best),
        "steps": outcome.steps,
        "stopped": outcome.stopped,
        "best_step": outcome.best_step,
        "loss": outcome.best,
        "perplexity": None if outcome.best is None else math.exp(outcome.best),
        "steps_per_epoch": trained.steps_per_epoch,
    }
    if not is_first_process():
        return
    layout.write_summary(output, summary)
    if as_json:
        print_json(summary)
    elif outcome.best is None:
        print(f"{output}: {outcome.steps} steps; no validation gave a number")
    else:
        print(
            f"{best}: validation loss {outcome.best:.4f}, perplexity {summary['perplexity']:.2f}, after "
            f"{outcome.best_step} of {outcome.steps} steps"
        )


@dataclass(frozen=True)
class _Start:
    """What a run begins with, and what tells it from other beginnings."""

    config: RobertaConfig
    params: Params
    tokenizer: Tokenizer
    note: Any


def _from_model(loading: Loading, tokenizer: Path | None, sizes: dict[str, Any]) -> _Start:
    """A model without its heads, which nothing trains here."""
    from roberta_flax.errors import InputError

    if tokenizer is not None or sizes:
        raise InputError("--model has a tokenizer and sizes of its own; leave out --tokenizer, --layers and the like")
    roberta = loading.load()
    params = {name: tree for name, tree in roberta.params.items() if name != "heads"}
    return _Start(replace(roberta.config, heads=()), params, roberta.tokenizer, loading.note())


def _from_scratch(tokenizer: Path | None, size: str, sizes: dict[str, Any], seed: int) -> _Start:
    """A model in fairseq's initial distributions."""
    import jax

    from roberta_flax.errors import InputError
    from roberta_flax.nn import forward
    from roberta_flax.nn.config import RobertaConfig
    from roberta_flax.text.tokenizer import Tokenizer

    presets = {"base": RobertaConfig.base, "large": RobertaConfig.large}
    if tokenizer is None:
        raise InputError("say where to begin: --model to go on from one, or --tokenizer and the directory of its files")
    if size not in presets:
        raise InputError(f"--size is one of {', '.join(presets)}, got {size!r}; --layers and the like change it")
    encoder = Tokenizer.from_directory(tokenizer)
    config = presets[size](vocab_size=encoder.vocab_size, **sizes)
    return _Start(config, forward.init_params(config, jax.random.key(seed)), encoder, "from scratch")


def given(**options: Any) -> dict[str, Any]:
    """Those of the options that are not None."""
    return {name: value for name, value in options.items() if value is not None}
