"""roberta-flax disambiguate TEXT"""

from __future__ import annotations

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
    Quantize,
    print_json,
)


def command(
    text: Annotated[
        str, typer.Argument(help="A sentence with its pronoun in [brackets], and maybe a query between _underscores_.")
    ],
    candidate: Annotated[
        list[str] | None,
        typer.Option(help="What the pronoun may stand for; repeat it. [default: the noun phrases that spaCy finds]"),
    ] = None,
    parser: Annotated[
        str | None, typer.Option(help="The spaCy pipeline that finds noun phrases. [default: en_core_web_lg]")
    ] = None,
    model: Model = "roberta.large.wsc",
    dtype: Dtype = "float32",
    precision: Precision = None,
    quantize: Quantize = None,
    checkpoint_file: CheckpointFile = "model.pt",
    bpe_dir: BpeDir = None,
    cache_dir: CacheDir = None,
    as_json: Json = False,
) -> None:
    """Which noun phrase does the pronoun stand for? Prints it, or True or False of a query; and log-probabilities."""
    from roberta_flax.errors import InputError
    from roberta_flax.tasks import pronouns

    if candidate and parser is not None:
        raise InputError("--parser finds candidates; give it or --candidate")
    # what is missing is said before a model is loaded
    pronouns.read_schema(text)
    nlp = None if candidate else pronouns.pipeline(parser)
    roberta = Loading(model, dtype, precision, quantize, checkpoint_file, bpe_dir, cache_dir).load()
    found = pronouns.disambiguate(roberta, text, candidate or None, nlp)
    if as_json:
        print_json({"answer": found.answer, "query": found.query, "log_probabilities": found.scores})
    else:
        print(f"{found.answer}  ({', '.join(f'{phrase} {score:.4f}' for phrase, score in found.scores.items())})")
