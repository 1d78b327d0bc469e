"""The program: its commands, one module each."""

from __future__ import annotations

from typing import Annotated

import typer

import roberta_flax
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
    train_encoder,
    train_reranker,
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
    "train-encoder": train_encoder,
    "train-reranker": train_reranker,
    "preprocess": preprocess,
    "pretrain": pretrain,
    "perplexity": perplexity,
    "encode": encode,
    "decode": decode,
    "demo": demo,
}
EXAMPLES = {  # without the program's name
    "convert": "convert roberta.large.mnli.tar.gz mnli/",
    "export": "export mnli/ mnli-hf/ --to huggingface",
    "verify": "verify mnli/ --against roberta.large.mnli.tar.gz",
    "parity": "parity mnli/ --dtype float32 --dtype bfloat16 -o report/",
    "predict": "predict pairs.jsonl -o predictions.jsonl --model mnli/",
    "evaluate": "evaluate glue_data/MNLI/dev_matched.tsv --model mnli/",
    "mnli": 'mnli "A man is sleeping." "Nobody is awake."',
    "zero-shot": 'zero-shot "The Moon pulls the water." --label astronomy --label baking',
    "tag": "tag texts.jsonl -o entities.parquet --model hf:org/ner",
    "answer": "answer questions.jsonl -o answers.jsonl --model hf:deepset/roberta-base-squad2",
    "rank": "rank queries.jsonl --documents documents.jsonl -o ranked.jsonl --model hf:BAAI/bge-reranker-v2-m3",
    "features": "features texts.parquet -o vectors.npy --model hf:intfloat/multilingual-e5-base",
    "fill-mask": 'fill-mask "The capital of France is <mask>."',
    "disambiguate": 'disambiguate "The trophy would not fit in the suitcase because [it] was too big."',
    "finetune": "finetune RTE/train.tsv --valid RTE/dev.tsv --task rte --model roberta.large -o runs/rte",
    "train-encoder": "train-encoder pairs.tsv --valid dev.tsv --model roberta.base -o runs/encoder",
    "train-reranker": "train-reranker scored.tsv --valid dev.tsv --model roberta.base -o runs/reranker",
    "preprocess": "preprocess wiki.train.raw -o train.bin --tokenizer gpt2_bpe/",
    "pretrain": "pretrain train.bin --valid valid.bin -o run/ --tokenizer gpt2_bpe/",
    "perplexity": "perplexity valid.bin --model run/best",
    "encode": 'encode "Hello world!"',
    "decode": "decode 0 31414 232 328 2",
    "demo": "demo",
}
_PANELS = {
    "Models": ("convert", "export", "verify", "parity"),
    "Answers, of a file or of one text": (
        "predict", "evaluate", "mnli", "zero-shot", "tag", "answer", "rank", "features", "fill-mask", "disambiguate",
    ),
    "Training": (
        "finetune", "train-encoder", "train-reranker", "preprocess", "pretrain", "perplexity",
    ),
    "Tokens and demo": ("encode", "decode", "demo"),
}  # fmt: skip
_BY_TOKENS = "Batches are laid out by tokens: use --tokens-per-batch."

app = typer.Typer(
    name="roberta-flax",
    help="RoBERTa in JAX: convert checkpoints, classify, tag, answer and rank, extract features, fill masks, fine-tune "
    "and pretrain.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"roberta-flax {roberta_flax.__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


for _panel, _names in _PANELS.items():
    for _name in _names:
        groups.add(
            app,
            _name,
            COMMANDS[_name].command,
            f"roberta-flax {EXAMPLES[_name]}",
            panel=_panel,
            defaults=getattr(COMMANDS[_name], "shown_defaults", None),
            hints={"--batch-size": _BY_TOKENS},  # of a command that has it, it is no unknown option
        )
