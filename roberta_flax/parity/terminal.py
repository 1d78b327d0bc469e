"""A report as tables in a terminal: 80 columns are enough, and colors only repeat what the words say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from roberta_flax.parity.comparison import MARGIN
from roberta_flax.parity.points import GRADIENTS
from roberta_flax.parity.reference import SAMPLES
from roberta_flax.parity.report import DecisionResult, Place, PointResult, Report, Run, described, failures, values

EXPLANATION = (
    f"A bound is {MARGIN:g} times the largest error (more where few numbers tell) of {SAMPLES} computations in float64 "
    "of the same network on the same inputs, in which every operation has a random error of the size that this "
    "arithmetic makes. "
    "An error's part of it is of the maximum or of the root mean square, the larger, of any batch."
)
_INDENT = "  "
_SHORTEST = 8  # characters that a name has in any case
_COSINE_ERROR = 1e-15  # of the sums that a cosine is made of


def print_report(report: Report, console: Console, *, all_points: bool = False) -> None:
    """Prints a table a dtype, its decisions, and where it diverges.

    Args:
      report: what was found.
      console: where to.
      all_points: whether every point has its line. Else a layer has one for its output, and one for whichever of its
        points takes up most of its bound; its gradients have the latter.
    """

    def line(text: str, style: str = "") -> None:
        console.print(Text(text, style=style), soft_wrap=False)

    model, reference = report.model, report.reference
    line(f"{report.source}: {model['layers']} layers of {model['hidden_size']}, {model['parameters']:,} parameters")
    line(f"reference: {reference['name']} in float64 ({reference['version']}; parameters: {reference['parameters']})")
    lengths = [length for batch in report.inputs["lengths"] for length in batch]
    kind = "built-in rows" if report.inputs["built_in"] else "rows"
    line(f"inputs: {len(lengths)} {kind} of {min(lengths)} to {max(lengths)} tokens")
    for run in report.runs:
        console.print()
        line(f"{computation(run)}: {verdict(run.passed)}", "bold" if run.passed else "bold red")
        console.print(_points(run, all_points, console.width))
        if run.not_compared:
            more = f" and {len(run.not_compared) - 4} more" if len(run.not_compared) > 4 else ""
            line(f"not compared, as one side does not show them: {', '.join(run.not_compared[:4])}{more}")
        if run.decisions:
            console.print()
            console.print(_decisions(run.decisions))
        for block in divergences(run):
            console.print()
            for text in block:
                line(text)
    console.print()
    line(EXPLANATION, "dim")


def computation(run: Run) -> str:
    """What a run computes in: "float32 on cpu, precision highest"."""
    chosen = {"precision": run.precision, "attention": run.attention}
    return ", ".join([f"{run.dtype} on {run.backend}", *(f"{name} {value}" for name, value in chosen.items() if value)])


def verdict(passed: bool) -> str:
    """In the words of the tables."""
    return "pass" if passed else "FAIL"


def divergences(run: Run) -> Iterator[list[str]]:
    """What does not hold of a run: lines about its first point over its bound, and about decisions that differ."""
    over = failures(run)
    if over:
        first = over[0]
        yield [
            f"{run.dtype} diverges first at {first.point} ({len(over)} of {len(run.points)} points are over)",
            *_place(first.furthest_over),
            f"{_INDENT}largest error {first.max_abs:.3g}, bound {first.bound_max:.3g}; "
            f"root mean square {first.rms:.3g}, bound {first.bound_rms:.3g}",
            f"{_INDENT}in one batch {first.of_bound:.3g} times its bound",
        ]
        if first.not_finite:
            yield [f"{_INDENT}{first.not_finite} of its {first.count} numbers are NaN or infinite"]
    for decision in run.decisions:
        if not decision.passed:
            differ = decision.count - decision.agreed - decision.ties
            yield [
                f"{differ} of {decision.count} decisions ({decision.decision}) of {decision.point} differ, where "
                f"margins are over {decision.flips_at:.3g}",
                *(text for place in decision.places for text in _place(place)),
            ]


def _place(place: Place | None) -> list[str]:
    return [f"{_INDENT}{described(place)}", f"{_INDENT}{values(place)}"] if place else []


def number(value: float) -> str:
    """Two digits, in seven characters at most: 1.2e-7."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def ulps(value: float) -> str:
    """Units in the last place, in five characters at most."""
    return f"{value:.1f}" if value < 1000 else number(value)


def part(value: float) -> str:
    """A part of a bound: 31%, 12x."""
    if not math.isfinite(value):
        return f"{value:g}"
    if value < 9.995:
        return f"{value:.0%}"
    return f"{value:.0f}x" if value < 9999.5 else f"{number(value)}x"


def from_one(cosine: float) -> str:
    """How far a cosine is from 1: two digits of that say more than those of the cosine."""
    return f"<{_COSINE_ERROR:.0e}" if 1 - cosine < _COSINE_ERROR else number(1 - cosine)


def _points(run: Run, all_points: bool, width: int) -> Table:
    header = ("max", "mean", "rel.", "ulps", "1-cos", "bound", "part", "")
    rows: list[tuple[str, PointResult | None]] = []
    for group, points in _groups(run.points):
        output = next((point for point in points if point.point == f"{group}.output"), None)
        worst = max(points, key=lambda point: point.of_bound)
        shown = [output or worst, *([worst] if output and worst is not output else [])]
        if all_points and len(points) > 1:
            rows.append((group, None))
            shown = points
        for point in shown:
            inside = len(points) > 1 and (point is not shown[0] or shown is points)
            rows.append((_INDENT + point.point[len(group) + 1 :] if inside else point.point, point))
    cells = [_cells(point) if point else [] for _, point in rows]
    widths = (max(map(len, map(str, column))) for column in zip(header, *filter(None, cells), strict=True))
    left = max(width - sum(each + 1 for each in widths), _SHORTEST)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("point", overflow="fold")
    for name in header:
        table.add_column(name, justify="right", no_wrap=True)
    for (name, found), numbers in zip(rows, cells, strict=True):
        table.add_row(Text(_broken(name, left), style="bold red" if found and not found.passed else ""), *numbers)
    return table


def _broken(name: str, width: int) -> str:
    """A name that is too long goes on in another line, after a dot or else an underscore."""
    if len(name) <= width:
        return name
    for separator in "._":
        if (end := name.rfind(separator, 0, width) + 1) > 0:
            return f"{name[:end]}\n{_broken(2 * _INDENT + name[end:], width)}"
    return name


def _groups(points: Sequence[PointResult]) -> list[tuple[str, list[PointResult]]]:
    """The points of each layer, and the gradients of each layer, head or table; others by themselves. In order."""
    groups: dict[str, list[PointResult]] = {}
    for point in points:
        gradients = GRADIENTS if point.point.startswith(GRADIENTS) else ""
        parts = point.point.removeprefix(gradients).split(".")
        group = point.point
        if parts[0] == "layers" or gradients:
            group = gradients + ".".join(parts[: 2 if parts[0] in ("layers", "heads") else 1])
        groups.setdefault(group, []).append(point)
    return list(groups.items())


def _cells(point: PointResult) -> list[str | Text]:
    failed = "" if point.passed else "bold red"
    numbers = (point.max_abs, point.mean_abs, point.relative)
    return [
        *map(number, numbers),
        ulps(point.max_ulps),
        from_one(point.cosine),
        number(point.bound_max),
        Text(part(point.of_bound), style=failed),
        Text(verdict(point.passed), style=failed or "green"),
    ]


def _decisions(decisions: Sequence[DecisionResult]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("decisions", overflow="fold")
    table.add_column("of", no_wrap=True)
    for name in ("agree", "ties", "least margin", "flips at", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for each in decisions:
        failed = "" if each.passed else "bold red"
        table.add_row(
            Text(each.point, style=failed),
            each.decision,
            f"{each.agreed}/{each.count}",
            str(each.ties),
            number(each.smallest_margin),
            number(each.flips_at),
            Text(verdict(each.passed), style=failed or "green"),
        )
    return table
