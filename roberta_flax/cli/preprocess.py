"""roberta-flax preprocess TEXT [MORE ...] -o DATA.bin --model M"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from roberta_flax.cli.options import BpeDir, CacheDir, CheckpointFile, Json, print_json

if TYPE_CHECKING:
    from roberta_flax.text.tokenizer import Tokenizer

SourceModel = Annotated[
    str | None,
    typer.Option("--model", "-m", help="A released name, a fairseq directory, .tar.gz or .pt, a converted one."),
]
TokenizerDir = Annotated[
    Path | None,
    typer.Option(
        "--tokenizer", metavar="DIR", help="Where dict.txt, encoder.json and vocab.bpe are, if not a model's."
    ),
]
_SECONDS_BETWEEN_LINES = 10.0


def command(
    texts: Annotated[
        list[Path],
        typer.Argument(metavar="TEXT...", help="A sentence or paragraph a line, an empty line between documents."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to make.")],
    model: SourceModel = None,
    tokenizer: TokenizerDir = None,
    threads: Annotated[int | None, typer.Option(help="That encode. [default: one a processor]")] = None,
    checkpoint_file: CheckpointFile = "model.pt",
    bpe_dir: BpeDir = None,
    cache_dir: CacheDir = None,
    as_json: Json = False,
) -> None:
    """Encode text files (also .gz) into one binary file of token ids, for pretrain and perplexity."""
    from dataclasses import asdict

    from roberta_flax.train import corpus

    encoder = tokenizer_of(model, tokenizer, checkpoint_file=checkpoint_file, bpe_dir=bpe_dir, cache_dir=cache_dir)
    begin = time.monotonic()
    header = corpus.write(texts, output, encoder, threads=threads, progress=_progress(begin))
    if as_json:
        print_json({"output": str(output), **asdict(header)})
        return
    seconds = time.monotonic() - begin
    print(
        f"{output}: {header.documents} documents, {header.lines} lines, {header.tokens} tokens; "
        f"{header.size} bytes in {seconds:.1f} s, {header.tokens / max(seconds, 1e-9):.0f} tokens/s"
    )


def tokenizer_of(
    model: str | None,
    directory: Path | None,
    *,
    checkpoint_file: str,
    bpe_dir: Path | None,
    cache_dir: Path | None,
) -> Tokenizer:
    """The tokenizer of a model, or in a directory, whichever of the two is given."""
    from roberta_flax.errors import InputError
    from roberta_flax.hub import load_tokenizer
    from roberta_flax.text.tokenizer import Tokenizer

    if directory is not None and model is None:
        return Tokenizer.from_directory(directory)
    if model is not None and directory is None:
        return load_tokenizer(model, checkpoint_file=checkpoint_file, bpe_dir=bpe_dir, cache_dir=cache_dir)
    raise InputError("say whose tokenizer encodes: either --model, or --tokenizer and the directory of its files")


def _progress(begin: float) -> Callable[[int, int], None]:
    """A line on stderr now and then."""
    last = begin

    def show(lines: int, tokens: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            print(f"{lines} lines, {tokens} tokens, {tokens / (now - begin):.0f} tokens/s", file=sys.stderr)

    return show
