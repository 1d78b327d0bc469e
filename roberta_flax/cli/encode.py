"""roberta-flax encode TEXT [TEXT ...]"""

from __future__ import annotations

from typing import Annotated

import typer

from roberta_flax.cli.groups import grouped
from roberta_flax.cli.options import Json, TokenizerOptions, print_result


@grouped
def command(
    texts: Annotated[list[str], typer.Argument(metavar="TEXT...", help="Text, or several texts of one input.")],
    no_separator: Annotated[bool, typer.Option(help="Put one </s> between texts, not two.")] = False,
    model: TokenizerOptions = TokenizerOptions(),
    as_json: Json = False,
) -> None:
    """Print the token ids of a text, or of several.

    A text is <s> a </s>, a pair <s> a </s></s> b </s>.
    """
    ids = model.tokenizer().encode(*texts, no_separator=no_separator).tolist()
    print_result({"tokens": ids}, [" ".join(map(str, ids))], as_json=as_json)
