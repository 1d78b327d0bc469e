"""roberta-flax rank QUERY DOCUMENT ...; or of a file: rank INPUT -o OUTPUT [--documents FILE]"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from roberta_flax.cli import jobs
from roberta_flax.cli.groups import grouped
from roberta_flax.cli.options import TOPK, Head, Json, Text, print_result
from roberta_flax.errors import InputError


@grouped
def command(
    inputs: jobs.Inputs = None,
    text: Text = None,
    documents: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File of documents, all of which are ranked for each query of INPUT. Without it, each row of INPUT is "
            "a query and a document.",
        ),
    ] = None,
    document_column: Annotated[
        str | None, typer.Option(help="Column of the documents.", show_default="text, document, or the only one")
    ] = None,
    topk: Annotated[int | None, TOPK] = None,
    head: Head = None,
    options: jobs.JobOptions = jobs.JobOptions(),
    as_json: Json = False,
) -> None:
    """Score each pair of query and document in a file, or rank documents for each query, with a cross-encoder.

    Rerun the command to resume a run over a file.
    """
    from roberta_flax.inference.jobs import read_documents
    from roberta_flax.tasks.rank import Rank
    from roberta_flax.tasks.sentence_scores import Score

    file, texts = jobs.file_or_texts(inputs, text, options.input.format)
    read = () if documents is None else read_documents(documents, document_column)
    if file is not None:
        if documents is None and topk is not None:
            raise InputError("--topk ranks the documents of --documents; without it, each row is a pair with a score")
        jobs.run(file, lambda _: Rank(read, topk, head) if read else Score(head), options, as_json=as_json)
        return
    query, *others = texts
    found = jobs.result_of(query, Rank((*read, *others), topk, head), options)
    named = [{"document": number, "score": score, "text": (*read, *others)[number]} for number, score in found]
    lines = (f"{each['score']:.4f}  {each['document']}  {each['text']}" for each in named)
    print_result(named, lines, as_json=as_json)
