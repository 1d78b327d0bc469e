"""The program: its commands, one module each."""

from __future__ import annotations

import typer

from roberta_flax.cli import (
    answer,
    convert,
    decode,
    demo,
    disambiguate,
    encode,
    evaluate,
    export,
    features,
    fill_mask,
    finetune,
    groups,
    mnli,
    parity,
    perplexity,
    predict,
    preprocess,
    pretrain,
    rank,
    tag,
    verify,
    zero_shot,
)

COMMANDS = {
    "convert": convert,
    "export": export,
    "verify": verify,
    "parity": parity,
    "predict": predict,
    "evaluate": evaluate,
    "mnli": mnli,
    "zero-shot": zero_shot,
    "tag": tag,
    "answer": answer,
    "rank": rank,
    "features": features,
    "fill-mask": fill_mask,
    "disambiguate": disambiguate,
    "finetune": finetune,
    "preprocess": preprocess,
    "pretrain": pretrain,
    "perplexity": perplexity,
    "encode": encode,
    "decode": decode,
    "demo": demo,
}

app = typer.Typer(
    name="roberta-flax",
    help="RoBERTa in JAX: convert checkpoints, classify, tag, answer and rank, extract features, fill masks, fine-tune "
    "and pretrain.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _name, _module in COMMANDS.items():
    groups.add(app, _name, _module.command)
