"""roberta-flax demo: the main job, end to end, on the small model inside the package."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import typer

from roberta_flax.cli.groups import grouped
from roberta_flax.cli.options import Json, print_json


@grouped
def command(as_json: Json = False) -> None:
    """Convert and run the small model inside the package.

    It is compared with torch if that is installed. The exit status is 1 where torch disagrees. The model knows simple
    English of some 1,400 words, learned from generated sentences: its answers show how a RoBERTa is used, not what the
    released models can do.
    """
    from roberta_flax.cli.accelerators import open_devices
    from roberta_flax.parity import demo

    open_devices()
    with tempfile.TemporaryDirectory(prefix="roberta-flax-demo-") as temporary:
        result = demo.run(Path(temporary))
    if as_json:
        print_json(result)
    else:
        _show(result, demo.TEXT, demo.MASKED)
    if result["torch"] is not None and not result["torch"]["agree"]:
        raise typer.Exit(1)


def _show(result: dict[str, Any], text: str, masked: str) -> None:
    """Prints the result for a person."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    seconds = result["seconds"]
    table = Table(title=escape(f"roberta-flax on {result['device']}"), title_justify="left", show_lines=True)
    table.add_column("step", style="bold")
    table.add_column("result", overflow="fold")
    table.add_column("seconds", justify="right")
    table.add_row(
        "unpack, convert",
        f"{result['model']}, in fairseq's released form",
        _sum(seconds, "unpack", "convert"),
    )
    table.add_row("load", "the converted directory", _sum(seconds, "load"))
    table.add_row("encode", escape(f"{text!r} -> {' '.join(map(str, result['tokens']))}"), "")
    table.add_row("features", escape(f"float32 {result['features']}"), _sum(seconds, "features"))
    answers = "\n".join(f"{pair['premise']} {pair['hypothesis']}\n-> {_answer(pair)}" for pair in result["mnli"])
    table.add_row("mnli", escape(answers), _sum(seconds, "mnli"))
    fills = "\n".join(f"{fill['probability']:.4f} {fill['token']!r}" for fill in result["fill_mask"])
    table.add_row("fill-mask", escape(f"{masked}\n{fills}"), _sum(seconds, "fill-mask"))
    compared = result["torch"]
    if compared is None:
        missing = "not installed, so there is nothing to compare with (pip install 'roberta-flax[convert]')"
        table.add_row("torch", escape(missing), "")
    else:
        differences = ", ".join(f"{name} {value:.1e}" for name, value in compared["largest_difference"].items())
        verdict = "[green]agrees[/green]" if compared["agree"] else "[red]DISAGREES[/red]"
        compared_with = f"torch {compared['version']} {verdict}: largest differences {differences}"
        table.add_row("torch", f"{compared_with} (allowed {compared['tolerance']:.0e})", _sum(seconds, "torch"))
    console.print(table)
    console.print("[yellow]This model is a toy:[/yellow] it has learned simple sentences of some 1,400 words.")
    console.print(
        "Seconds include compilation. Next, try roberta-flax mnli PREMISE HYPOTHESIS (it downloads roberta.large.mnli)."
    )


def _answer(pair: dict[str, Any]) -> str:
    return f"{pair['label']}, {math.exp(max(pair['log_probabilities'])):.0%}"


def _sum(seconds: dict[str, float], *steps: str) -> str:
    return f"{sum(seconds[step] for step in steps):.2f}"
