"""The plots of a report, which matplotlib draws as SVG in the colors of the page."""

from __future__ import annotations

import html
import io
import logging
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from roberta_flax.errors import InputError, printable
from roberta_flax.extras import require
from roberta_flax.parity.report import Report, Run
from roberta_flax.parity.tensor_names import GRADIENTS

logger = logging.getLogger(__name__)

# Colors of Okabe and Ito, which most people can tell apart, limited to those that contrast with both white and black.
# Dashes distinguish the dtypes too.
_STYLES = {
    "float64": ("#009e73", "-"),
    "float32": ("#2a8fd0", "-"),
    "bfloat16": ("#d55e00", "--"),
    "float16": ("#cc79a7", "-."),
    "int8": ("#8466d6", ":"),
}
_INK = "#010203"  # a placeholder for the text color of the page
_DARK, _LIGHT = "#1b1f24", "#e3e8ee"  # those of the page
_NAMESPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
_WIDTH, _HEIGHT = 7.0, 3.3  # inches: labels of 9 points can still be read where a phone shrinks them
_MAX_LABELS = 50  # that fit on an axis, if they are vertical
_MAX_HORIZONTAL_LABELS = 8
_MAX_LABEL = 20  # characters; vertical ones would take the room of the plot
_MAX_MARKERS = 60  # on a line
_MAX_HISTOGRAMS = 4
_TOLERANCE_OPACITY = 0.22


@dataclass(frozen=True)
class Plot:
    """A plot with its text.

    Attributes:
      title: what the plot shows, in a few words.
      caption: how to read it.
      svg: an <svg> element without external references.
    """

    title: str
    caption: str
    svg: str

    @property
    def file_name(self) -> str:
        """The name of the plot as a file."""
        return f"{_hyphenated(self.title)}.svg"

    def to_file(self) -> str:
        """Returns the plot as a document of its own, with dark text, or light text in dark mode."""
        dark_mode = f"@media (prefers-color-scheme: dark) {{ svg {{ color: {_LIGHT} }} }}"
        style = f"<style>svg {{ color: {_DARK} }} {dark_mode}</style>"
        begin, end = self.svg.split(">", 1)
        return f"{begin} {_NAMESPACES}>{style}{end}"


def draw_plots(report: Report) -> list[Plot]:
    """Returns plots of the errors by layer, by tensor and of gradients, and histograms. Leaves out those without data.

    A plot that cannot be drawn is left out with a warning: it must not lose the report.

    Raises:
      InputError: matplotlib is not installed.
    """
    require("matplotlib.figure", "parity")
    tolerance = "The shaded line is the tolerance in the same dtype: rounding explains an error below it."
    outputs_caption = "Root mean square error of the output of the embeddings and of each layer."
    tensors_caption = "Root mean square error of every tensor of the network, in the order of computation."
    gradients_caption = "Root mean square error of the gradient of each parameter, in the order of the backward pass."
    plots: dict[str, Callable[[], Plot | None]] = {
        title: partial(_plot_errors, report, title, f"{caption} {tolerance}", is_shown, markers=markers)
        for title, caption, is_shown, markers in (
            ("Error by layer", outputs_caption, _is_output, True),
            ("Error by tensor", tensors_caption, lambda name: not _is_gradient(name), False),
            ("Error of gradients", gradients_caption, _is_gradient, False),
        )
    }
    plots["Histogram of errors"] = partial(_plot_histograms, report)
    with require("matplotlib", "parity").rc_context({"text.parse_math": False}):  # a $ in a head's name is no formula
        drawn = [_drawn(title, draw) for title, draw in plots.items()]
    return [plot for plot in drawn if plot is not None]


def _drawn(title: str, draw: Callable[[], Plot | None]) -> Plot | None:
    try:
        return draw()
    except InputError:
        raise
    except Exception as error:
        logger.warning("the plot %r is left out of the report: %s: %s", title, type(error).__name__, error)
        return None


def _is_output(name: str) -> bool:
    return name == "embeddings.output" or re.fullmatch(r"layers\.\d+\.output", name) is not None


def _is_gradient(name: str) -> bool:
    return name.startswith(GRADIENTS)


def _plot_errors(
    report: Report, title: str, caption: str, is_shown: Callable[[str], bool], *, markers: bool = False
) -> Plot | None:
    """Plots the errors and the tolerances of the tensors that are shown; returns None for fewer than two."""
    names = [name for name in _tensor_names(report) if is_shown(name)]
    if len(names) < 2:
        return None
    figure, (axes,) = _figure(1)
    for run in report.runs:
        color, dashes = _STYLES[run.dtype]
        tensors = {tensor.name: tensor for tensor in run.tensors}
        x = [position for position, name in enumerate(names) if name in tensors]
        shown = [tensors[names[position]] for position in x]
        errors = [_nan_if_not_drawable(tensor.rms) for tensor in shown]
        tolerances = [_nan_if_not_drawable(tensor.rms_tolerance) for tensor in shown]
        axes.plot(x, tolerances, color=color, linewidth=7, alpha=_TOLERANCE_OPACITY, solid_capstyle="round")
        marker = "o" if markers and len(names) <= _MAX_MARKERS else None
        axes.plot(x, errors, color=color, linestyle=dashes, linewidth=1.6, marker=marker, markersize=4, label=run.dtype)
        failed = [
            (position, error) for position, tensor, error in zip(x, shown, errors, strict=True) if not tensor.passed
        ]
        if failed:
            axes.plot(*zip(*failed, strict=True), "x", color=color, markersize=9, markeredgewidth=2.2)
    axes.set_yscale("log")
    _label_powers_of_ten(axes.yaxis)
    axes.set_ylabel("rms error")
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_xticks(*_ticks(names), rotation=0 if len(names) <= _MAX_HORIZONTAL_LABELS else 90)
    caption += " A cross marks a tensor over its tolerance; a gap is an error of zero or infinity."
    return Plot(title, caption, _svg(figure, title))


def _tensor_names(report: Report) -> list[str]:
    """Returns the names of the tensors of all runs, without duplicates, in order."""
    return list(dict.fromkeys(tensor.name for run in report.runs for tensor in run.tensors))


def _ticks(names: Sequence[str]) -> tuple[list[int], list[str]]:
    """Returns positions and labels of ticks, at the first tensor of a layer or head and far enough from one another."""
    positions: list[int] = []
    labels: list[str] = []
    seen = set()
    for x, name in enumerate(names):
        parts = name.removeprefix(GRADIENTS).split(".")
        label = ".".join(parts[:2]) if parts[0] in ("layers", "heads") else parts[0]
        if label not in seen and (not positions or x - positions[-1] >= len(names) / _MAX_LABELS):
            positions.append(x)
            labels.append(label)
        seen.add(label)
    layer = "" if len(labels) > _MAX_HORIZONTAL_LABELS else "layer "
    shown = [printable(label).replace("layers.", layer) for label in labels]
    return positions, [label if len(label) <= _MAX_LABEL else f"{label[: _MAX_LABEL - 1]}…" for label in shown]


def _plot_histograms(report: Report) -> Plot | None:
    """Plots histograms of the errors of the features and of logits; returns None if none were compared."""
    names = [name for name in _tensor_names(report) if name == "features" or name.endswith(".logits")]
    names = names[:_MAX_HISTOGRAMS]
    if not names:
        return None
    figure, panels = _figure(len(names))
    for name, axes in zip(names, panels, strict=True):
        for run in report.runs:
            _draw_histogram(axes, run, name)
        axes.set_xscale("log")
        _label_powers_of_ten(axes.xaxis)
        axes.set_title(printable(name), fontsize=10, loc="left")
        axes.set_ylabel("share of elements")
    panels[-1].set_xlabel("absolute error")
    caption = (
        "The share of elements with an error of each size. A bar goes from one power of two to the next; elements "
        "without an error are in the bar of the smallest, 2^-60. A vertical line is the tolerance of the largest error "
        "in the same dtype."
    )
    return Plot("Histogram of errors", caption, _svg(figure, "Histogram of errors"))


def _draw_histogram(axes: Any, run: Run, name: str) -> None:
    tensor = next((tensor for tensor in run.tensors if tensor.name == name), None)
    if tensor is None or not tensor.histogram:
        return
    color, dashes = _STYLES[run.dtype]
    exponents = range(min(tensor.histogram), max(tensor.histogram) + 1)
    shares = [tensor.histogram.get(exponent, 0) / tensor.count for exponent in exponents]
    edges = [2.0**exponent for exponent in (*exponents, exponents[-1] + 1)]
    axes.stairs(shares, edges, fill=True, color=color, alpha=_TOLERANCE_OPACITY)
    axes.stairs(shares, edges, color=color, linestyle=dashes, linewidth=1.4, label=run.dtype)
    if 0 < tensor.max_abs_tolerance < math.inf:
        axes.axvline(tensor.max_abs_tolerance, color=color, linestyle=dashes, linewidth=1.4, alpha=0.7)


def _label_powers_of_ten(axis: Any) -> None:
    """Labels a logarithmic axis 1e-03, 1e-02, ...; matplotlib's default is formulas, which are not parsed here."""
    formatter = require("matplotlib.ticker", "parity").LogFormatter
    axis.set_major_formatter(formatter())
    axis.set_minor_formatter(formatter())  # labels where there are few powers of ten


def _figure(panels: int) -> tuple[Any, Sequence[Any]]:
    figure = require("matplotlib.figure", "parity").Figure(
        figsize=(_WIDTH, _HEIGHT if panels == 1 else 2.1 * panels + 0.5), layout="constrained"
    )
    figure.patch.set_visible(False)
    panel_axes = list(figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0])
    for axes in panel_axes:
        axes.patch.set_visible(False)
        axes.grid(color=_INK, alpha=0.15, linewidth=0.6)
        axes.tick_params(colors=_INK, labelsize=9)
        for spine in axes.spines.values():
            spine.set_color(_INK)
            spine.set_alpha(0.5)
    return figure, panel_axes


def _svg(figure: Any, title: str) -> str:
    """Returns the figure as an <svg> element for a page, with unique ids and in the text color of the page."""
    text = io.StringIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": title, "text.color": _INK, "axes.labelcolor": _INK}
    with require("matplotlib", "parity").rc_context(settings):
        for axes in figure.axes:
            for label in (axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label):
                label.set_color(_INK)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=len(_STYLES), frameon=False, labelcolor=_INK)
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return _embeddable(text.getvalue(), title)


def _embeddable(svg: str, title: str) -> str:
    """Turns an SVG document into an element of a page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)  # HTML needs no namespace for <svg>
    prefix = _hyphenated(title)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = svg.replace("url(#", f"url(#{prefix}-").replace('href="#', f'href="#{prefix}-')
    svg = svg.replace(_INK, "currentColor")
    svg = re.sub(r'(<svg [^>]*?)\swidth="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?)\sheight="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)


def _hyphenated(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower())


def _nan_if_not_drawable(value: float) -> float:
    """Returns NaN, which leaves a gap, for zero and infinity, which a logarithmic axis cannot show."""
    return value if 0 < value < math.inf else math.nan
