"""`roberta-flax convert`, with its options and under a name of its own."""

from __future__ import annotations

import typer

from roberta_flax.cli import run
from roberta_flax.cli.convert import command

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(command)

if __name__ == "__main__":
    run(app, "python -m convert")
