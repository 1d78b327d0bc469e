"""roberta-flax disambiguate TEXT"""

from __future__ import annotations

from typing import Annotated

import typer

from roberta_flax.cli.groups import grouped
from roberta_flax.cli.options import InferenceOptions, Json, print_result
from roberta_flax.errors import InputError


@grouped
def command(
    text: Annotated[
        str,
        typer.Argument(
            metavar="TEXT",
            help="Sentence with its pronoun in [brackets], and optionally a query between _underscores_.",
        ),
    ],
    candidate: Annotated[
        list[str] | None,
        typer.Option(
            help="Phrase that the pronoun may refer to. Repeat it for several.",
            show_default="the noun phrases that spaCy finds",
        ),
    ] = None,
    parser: Annotated[
        str | None, typer.Option(help="spaCy pipeline that finds noun phrases.", show_default="en_core_web_lg")
    ] = None,
    model: InferenceOptions = InferenceOptions(model="roberta.large.wsc"),
    as_json: Json = False,
) -> None:
    """Find the noun phrase that a pronoun refers to.

    Print the phrase; or where the text has a query, True or False: whether it is the query. Beside it stand the
    log-probabilities of all phrases.
    """
    from roberta_flax.tasks import pronouns

    if candidate and parser is not None:
        raise InputError("--parser finds candidates; give --parser or --candidate, not both")
    # what is missing is said before a model is loaded
    pronouns.read_schema(text)
    nlp = None if candidate else pronouns.pipeline(parser)
    found = pronouns.disambiguate(model.load(), text, candidate or None, nlp)
    result = {"answer": found.answer, "query": found.query, "log_probabilities": found.scores}
    scores = ", ".join(f"{phrase} {score:.4f}" for phrase, score in found.scores.items())
    print_result(result, [f"{found.answer}  ({scores})"], as_json=as_json)
