"""roberta-flax preprocess INPUT [INPUT ...] -o DATA.bin --model M"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from roberta_flax.cli.groups import grouped
from roberta_flax.cli.options import Json, VocabularyOptions, print_result

_SECONDS_BETWEEN_LINES = 10.0


@grouped
def command(
    texts: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT...",
            help="Text files, also .gz: one sentence or paragraph a line, an empty line between documents.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="File to write.")],
    threads: Annotated[
        int | None, typer.Option(help="Number of tokenizer threads.", show_default="one per processor")
    ] = None,
    vocabulary: VocabularyOptions = VocabularyOptions(),
    as_json: Json = False,
) -> None:
    """Encode text files into one binary file of token ids, for pretrain and perplexity."""
    from dataclasses import asdict

    from roberta_flax.train import corpus

    tokenizer = vocabulary.read()
    begin = time.monotonic()
    header = corpus.write(texts, output, tokenizer, threads=threads, progress=_progress(begin))
    seconds = time.monotonic() - begin
    line = (
        f"{output}: {header.documents} documents, {header.lines} lines, {header.tokens} tokens; "
        f"{header.size} bytes in {seconds:.1f} s, {header.tokens / max(seconds, 1e-9):.0f} tokens/s"
    )
    print_result({"output": str(output), **asdict(header)}, [line], as_json=as_json)


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
