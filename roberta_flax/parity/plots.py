"""A report's plots, as SVG that takes its page's colors; matplotlib draws them."""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from roberta_flax.extras import require
from roberta_flax.parity.points import GRADIENTS
from roberta_flax.parity.report import PointResult, Report, Run

# Okabe and Ito's, which most people can tell apart, those that both white and black are far from; dashes tell them too
_STYLES = {
    "float64": ("#009e73", "-"),
    "float32": ("#2a8fd0", "-"),
    "bfloat16": ("#d55e00", "--"),
    "float16": ("#cc79a7", "-."),
    "int8": ("#8466d6", ":"),
}
_INK = "#010203"  # is the page's text color in the end
_WIDTH, _HEIGHT = 9.0, 3.6  # inches
_LABELS = 50  # of an axis, one beside the other on end
_WORDS = 8  # side by side
_SHADE = 0.22  # opacity of a bound


@dataclass(frozen=True)
class Plot:
    """A picture.

    Attributes:
      title: what it shows, in a few words.
      caption: how to read it.
      svg: an <svg> element without references to anything outside of it.
    """

    title: str
    caption: str
    svg: str


def plots(report: Report) -> list[Plot]:
    """Error by depth, layer by layer and point by point, of gradients, and the histograms; those that there are.

    Raises:
      InputError: matplotlib is not installed.
    """
    require("matplotlib.figure", "parity")
    bound = "The shaded line is the bound of the same dtype; an error below its shaded line is explained by rounding."
    outputs = "Root mean square error of the embeddings' and of each layer's output."
    every = "Root mean square error of every value of the network, in the order in which it is computed."
    of_gradients = "Root mean square error of the gradient by each parameter, in the order of the backward pass."
    found = [
        _depth(report, "Error by layer", f"{outputs} {bound}", _is_output, markers=True),
        _depth(report, "Error by point", f"{every} {bound}", lambda name: not name.startswith(GRADIENTS)),
        _depth(report, "Error of gradients", f"{of_gradients} {bound}", lambda name: name.startswith(GRADIENTS)),
        _histograms(report),
    ]
    return [plot for plot in found if plot is not None]


def _is_output(name: str) -> bool:
    return name == "embeddings.output" or re.fullmatch(r"layers\.\d+\.output", name) is not None


def _depth(report: Report, title: str, caption: str, wanted: Any, *, markers: bool = False) -> Plot | None:
    names = list(dict.fromkeys(point.point for run in report.runs for point in run.points if wanted(point.point)))
    if len(names) < 2:
        return None
    figure, (axes,) = _figure(1)
    for run in report.runs:
        color, dashes = _STYLES[run.dtype]
        points = {point.point: point for point in run.points}
        at = [x for x, name in enumerate(names) if name in points]
        chosen = [points[names[x]] for x in at]
        errors = [_drawable(point.rms) for point in chosen]
        bounds = [_drawable(point.bound_rms) for point in chosen]
        axes.plot(at, bounds, color=color, linewidth=7, alpha=_SHADE, solid_capstyle="round")
        marker = "o" if markers and len(names) <= 60 else None
        axes.plot(
            at, errors, color=color, linestyle=dashes, linewidth=1.6, marker=marker, markersize=4, label=run.dtype
        )
        failed = [(x, error) for x, point, error in zip(at, chosen, errors, strict=True) if not point.passed]
        if failed:
            axes.plot(*zip(*failed, strict=True), "x", color=color, markersize=9, markeredgewidth=2.2)
    axes.set_yscale("log")
    axes.set_ylabel("rms error")
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_xticks(*_ticks(names), rotation=0 if len(names) <= _WORDS else 90)
    return Plot(
        title, caption + " A cross is a point over its bound, a gap an error of zero or infinity.", _svg(figure, title)
    )


def _ticks(names: Sequence[str]) -> tuple[list[int], list[str]]:
    """Where an axis of points has labels: where a layer or a head begins, unless that is too near to the last label."""
    places: list[int] = []
    labels: list[str] = []
    seen = set()
    for x, name in enumerate(names):
        parts = name.removeprefix(GRADIENTS).split(".")
        label = ".".join(parts[:2]) if parts[0] in ("layers", "heads") else parts[0]
        if label not in seen and (not places or x - places[-1] >= len(names) / _LABELS):
            places.append(x)
            labels.append(label)
        seen.add(label)
    short = "" if len(labels) > _WORDS else "layer "
    return places, [label.replace("layers.", short) for label in labels]


def _histograms(report: Report) -> Plot | None:
    names = [
        name
        for name in dict.fromkeys(point.point for run in report.runs for point in run.points)
        if name == "features" or name.endswith(".logits")
    ][:4]
    if not names:
        return None
    figure, panels = _figure(len(names))
    for name, axes in zip(names, panels, strict=True):
        for run in report.runs:
            _histogram(axes, run, name)
        axes.set_xscale("log")
        axes.set_title(name, fontsize=10, loc="left")
        axes.set_ylabel("share of numbers")
    panels[-1].set_xlabel("absolute error")
    caption = (
        "How many numbers have an error of this size, each bar from a power of two to the next; exact ones are in the "
        "bar of the smallest, 2^-60. A vertical line is the bound of the largest error of the same dtype."
    )
    return Plot("Histogram of errors", caption, _svg(figure, "Histogram of errors"))


def _histogram(axes: Any, run: Run, name: str) -> None:
    point: PointResult | None = next((point for point in run.points if point.point == name), None)
    if point is None or not point.histogram:
        return
    color, dashes = _STYLES[run.dtype]
    exponents = range(min(point.histogram), max(point.histogram) + 1)
    shares = [point.histogram.get(exponent, 0) / point.count for exponent in exponents]
    edges = [2.0**exponent for exponent in (*exponents, exponents[-1] + 1)]
    axes.stairs(shares, edges, fill=True, color=color, alpha=_SHADE)
    axes.stairs(shares, edges, color=color, linestyle=dashes, linewidth=1.4, label=run.dtype)
    if 0 < point.bound_max < math.inf:
        axes.axvline(point.bound_max, color=color, linestyle=dashes, linewidth=1.4, alpha=0.7)


def _figure(panels: int) -> tuple[Any, Sequence[Any]]:
    figure = require("matplotlib.figure", "parity").Figure(
        figsize=(_WIDTH, _HEIGHT if panels == 1 else 2.1 * panels + 0.5), layout="constrained"
    )
    figure.patch.set_visible(False)
    axes = list(figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0])
    for each in axes:
        each.patch.set_visible(False)
        each.grid(color=_INK, alpha=0.15, linewidth=0.6)
        each.tick_params(colors=_INK, labelsize=9)
        for spine in each.spines.values():
            spine.set_color(_INK)
            spine.set_alpha(0.5)
    return figure, axes


def _svg(figure: Any, title: str) -> str:
    """The figure as an element of a page: its ids are its own, its ink is the page's text color."""
    text = io.StringIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": title, "text.color": _INK, "axes.labelcolor": _INK}
    with require("matplotlib", "parity").rc_context(settings):
        for axes in figure.axes:
            for label in (axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label):
                label.set_color(_INK)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=len(_STYLES), frameon=False, labelcolor=_INK)
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)  # HTML knows what an <svg> is
    mark = re.sub(r"\W+", "-", title.lower())
    svg = re.sub(r'\bid="', f'id="{mark}-', svg)
    svg = svg.replace("url(#", f"url(#{mark}-").replace('href="#', f'href="#{mark}-').replace(_INK, "currentColor")
    svg = re.sub(r'(<svg [^>]*?)\swidth="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?)\sheight="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)


def _drawable(value: float) -> float:
    """On a logarithmic axis zero and infinity have no place: a gap."""
    return value if 0 < value < math.inf else math.nan
