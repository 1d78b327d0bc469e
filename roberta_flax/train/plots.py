"""Draws a run's curves from its records."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from roberta_flax.errors import InputError
from roberta_flax.extras import require
from roberta_flax.files import replacing

_VALIDATION_PREFIX = "valid_"
_COLUMNS = 2
_WIDTH, _HEIGHT = 5.2, 3.2  # size of a panel, in inches


def curves(metrics: Path, picture: Path) -> None:
    """Draws the loss, the validation metrics, the learning rate and the gradient norm against the steps.

    Args:
      metrics: a metrics.jsonl file (records.Records).
      picture: the PNG file to write.

    Raises:
      InputError: a file cannot be read or written, or matplotlib is not installed.
    """
    figure_module = require("matplotlib.figure", "train")
    ticker = require("matplotlib.ticker", "train")
    lines = _read_records(metrics)
    names = [
        "loss",
        *_validation_metrics(lines),
        *(n for n in ("learning_rate", "gradient_norm") if _points(lines, n)[0]),
    ]
    rows = -(-len(names) // _COLUMNS)
    figure = figure_module.Figure(figsize=(_WIDTH * _COLUMNS, _HEIGHT * rows), layout="constrained")
    panels = figure.subplots(rows, _COLUMNS, squeeze=False).flat
    best = max((line["step"] for line in lines if line.get("best")), default=None)
    for name, panel in zip(names, panels, strict=False):
        _draw(panel, lines, name, best)
        panel.xaxis.set_major_locator(ticker.MaxNLocator(nbins=6, integer=True))
        panel.yaxis.set_major_formatter(ticker.ScalarFormatter(useMathText=True))
        panel.ticklabel_format(axis="y", scilimits=(-3, 4))
    for panel in list(panels):
        panel.set_visible(False)
    with replacing(picture) as file:
        figure.savefig(file, format="png", dpi=150)


def _draw(panel: Any, lines: Sequence[dict[str, Any]], name: str, best: int | None) -> None:
    training, validation = _points(lines, name), _points(lines, _VALIDATION_PREFIX + name)
    if training[0]:
        panel.plot(*training, color="tab:blue", linewidth=1.2, label="training")
    if validation[0]:
        panel.plot(*validation, color="tab:orange", linewidth=1.2, marker="o", markersize=3.5, label="validation")
        if best is not None:
            panel.axvline(best, color="0.5", linewidth=1, linestyle="--", label=f"best ({best})")
    panel.set_title(name.replace("_", " "), fontsize=10)
    panel.set_xlabel("step", fontsize=9)
    panel.tick_params(labelsize=8)
    panel.grid(alpha=0.3)
    if validation[0]:
        panel.legend(fontsize=8, frameon=False)


def _read_records(metrics: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {metrics}: {error}") from None


def _validation_metrics(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the names of the validation metrics, except the loss and the size, in the order of the records."""
    names = dict.fromkeys(
        name.removeprefix(_VALIDATION_PREFIX) for line in lines for name in line if name.startswith(_VALIDATION_PREFIX)
    )
    return [name for name in names if name not in ("loss", "size")]


def _points(lines: Sequence[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Returns the steps and values recorded under a name, if they are numbers."""
    points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    return [step for step, _ in points], [value for _, value in points]
