"""roberta-flax decode ID [ID ...]"""

from __future__ import annotations

from typing import Annotated

import typer

from roberta_flax.cli.groups import grouped
from roberta_flax.cli.options import Json, TokenizerOptions, print_result


@grouped
def command(
    tokens: Annotated[list[int], typer.Argument(metavar="ID...", help="Token ids of one sequence.")],
    model: TokenizerOptions = TokenizerOptions(),
    as_json: Json = False,
) -> None:
    """Print the text of token ids.

    There is a line for each text of the input.
    """
    decoded = model.tokenizer().decode(tokens)
    texts = [decoded] if isinstance(decoded, str) else decoded
    print_result({"texts": texts}, texts, as_json=as_json)
