"""The table of results beside the published scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recipes.glue.files import FOLDERS
from recipes.glue.runs import Suite, write_json, write_text
from roberta_flax.datasets.recipes import PublishedScore

_TITLES = {**FOLDERS, "mnli": "MNLI-m", "mnli-mm": "MNLI-mm"}
_HEADER = ("task", "metric", "median", "lowest", "highest", "seeds", "published", "where")


def write_table(suite: Suite, settings: Mapping[str, Any]) -> str:
    """Writes table.json and table.md, of all seeds that have ended, into a suite's directory. Returns the latter."""
    rows = [row for task in FOLDERS for row in suite.rows(task)]
    write_json(suite.output / "table.json", {"model": suite.model.model, **settings, "rows": rows})
    text = to_markdown(suite.model.model, settings, rows)
    write_text(suite.output / "table.md", text)
    return text


def to_markdown(model: str, settings: Mapping[str, Any], rows: list[dict[str, Any]]) -> str:
    """Returns the page of table.md for rows of Suite.rows."""
    lines = [
        f"# GLUE's dev sets, fine-tuned from {model}",
        "",
        "100 times each metric: the median, the lowest and the highest of the seeds, beside the published score. WNLI "
        "is left out, as in fairseq's README.",
        "",
        *(f"- {name}: {value}" for name, value in settings.items() if value not in (None, False)),
        "",
        _line(_HEADER),
        _line(["---"] * len(_HEADER)),
        *(_line(_cells(row)) for row in rows),
    ]
    return "\n".join(lines) + "\n"


def _cells(row: Mapping[str, Any]) -> list[str]:
    values = row["values"].values()
    published = None if row["published"] is None else PublishedScore(**row["published"])
    return [
        _TITLES[row["task"]],
        row["metric"],
        *(f"{100 * value:.2f}" for value in (row["median"], min(values), max(values))),
        str(len(values)),
        *(("-", "-") if published is None else (str(published.percent), f"{published.source}, {published.model}")),
    ]


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"
