"""A report as tables in a terminal. The tables fit into 80 columns, and colors only repeat what the words say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from roberta_flax.errors import printable
from roberta_flax.parity.reference import SIMULATED_RUNS
from roberta_flax.parity.report import (
    DecisionResult,
    Element,
    Report,
    Run,
    TensorResult,
    describe_position,
    describe_values,
    failures,
)
from roberta_flax.parity.tensor_comparison import MIN_TOLERANCE_FACTOR
from roberta_flax.parity.tensor_names import GRADIENTS

EXPLANATION = (
    f"The tolerance is {MIN_TOLERANCE_FACTOR:g} times the largest deviation (more for small tensors) of "
    f"{SIMULATED_RUNS} runs with simulated rounding: the same network on the same inputs, in float64, with a random "
    "error in every operation, of the size that this arithmetic makes. "
    "The ratio is the largest error over its tolerance or the root mean square over its own, whichever is larger, in "
    "any batch."
)
_INDENT = "  "
_MIN_NAME_WIDTH = 8  # characters
_COSINE_ERROR = 1e-15  # rounding error of the sums in a cosine
_MAX_NOT_COMPARED = 4  # names of tensors in a line


def print_report(report: Report, console: Console, *, all_tensors: bool = False) -> None:
    """Prints for each dtype a table of tensors, a table of decisions, and where the run diverges.

    Args:
      report: the report.
      console: the console to print to.
      all_tensors: whether to print a row for every tensor. By default, a layer has a row for its output and one for the
        tensor with the largest ratio to its tolerance, and its gradients have only the latter.
    """

    def print_line(text: str, style: str = "") -> None:
        console.print(Text(printable(text), style=style), soft_wrap=False)

    for line in _header(report):
        print_line(line)
    for run in report.runs:
        console.print()
        print_line(f"{describe_computation(run)}: {verdict(run.passed)}", "bold" if run.passed else "bold red")
        console.print(_tensor_table(run, all_tensors, console.width))
        if run.not_compared:
            more = len(run.not_compared) - _MAX_NOT_COMPARED
            names = ", ".join(run.not_compared[:_MAX_NOT_COMPARED]) + (f" and {more} more" if more > 0 else "")
            print_line(f"not compared, because one side does not expose them: {names}")
        if run.decisions:
            console.print()
            console.print(_decision_table(run.decisions))
        for lines in describe_failures(run):
            console.print()
            for line in lines:
                print_line(line)
    console.print()
    print_line(EXPLANATION, "dim")


def _header(report: Report) -> Iterator[str]:
    """Yields lines about the model, the reference and the inputs."""
    model = report.model
    lengths = [length for batch in report.inputs["lengths"] for length in batch]
    kind = "built-in rows" if report.inputs["built_in"] else "rows"
    yield f"{report.source}: {model['layers']} layers of {model['hidden_size']}, {model['parameters']:,} parameters"
    yield f"reference: {describe_reference(report)}"
    yield f"inputs: {len(lengths)} {kind} of {min(lengths)} to {max(lengths)} tokens"


def describe_reference(report: Report) -> str:
    """Describes the torch side, such as "builtin in float64 (torch 2.13), its parameters: torch.load of the ..."."""
    reference = report.reference
    parameters = {"the converted model's": "those of the converted model, as roberta-flax read them"}
    whose = parameters.get(reference["parameters"], reference["parameters"])
    return f"{reference['name']} in float64 ({reference['version']}); its parameters: {whose}"


def describe_computation(run: Run) -> str:
    """Describes how a run computes, such as "float32 on cpu, precision highest"."""
    options = {"precision": run.precision, "attention": run.attention}
    parts = [f"{run.dtype} on {run.backend}", *(f"{name} {value}" for name, value in options.items() if value)]
    return ", ".join(parts)


def verdict(passed: bool) -> str:
    """Returns the word for a result in the tables."""
    return "pass" if passed else "FAIL"


def describe_failures(run: Run) -> Iterator[list[str]]:
    """Yields groups of lines about a run: its first tensor over its tolerance, and decisions that differ."""
    failed = failures(run)
    if failed:
        first = failed[0]
        yield [
            f"{run.dtype} diverges first at {first.name} "
            f"({len(failed)} of {len(run.tensors)} tensors exceed their tolerance)",
            *_describe_element(first.worst_by_ratio),
            f"{_INDENT}largest error {first.max_abs:.3g}, tolerance {first.max_abs_tolerance:.3g}; "
            f"root mean square {first.rms:.3g}, tolerance {first.rms_tolerance:.3g}",
            f"{_INDENT}{first.tolerance_ratio:.3g} times the tolerance in one batch",
        ]
        if first.not_finite:
            yield [f"{_INDENT}{first.not_finite} of its {first.count} elements are NaN or infinite"]
    for decision in run.decisions:
        if not decision.passed:
            yield [
                f"{decision.differing} of {decision.count} decisions ({decision.decision}) of {decision.tensor} "
                f"differ, with margins over {decision.tie_margin:.3g}",
                *(line for element in decision.disagreements for line in _describe_element(element)),
            ]


def _describe_element(element: Element | None) -> list[str]:
    if element is None:
        return []
    return [f"{_INDENT}{describe_position(element)}", f"{_INDENT}{describe_values(element)}"]


def format_number(value: float) -> str:
    """Formats a number with two digits, in seven characters at most: 1.2e-7."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def format_ulps(value: float) -> str:
    """Formats units in the last place, in five characters for a value under 1000."""
    return f"{value:.1f}" if value < 1000 else format_number(value)


def format_ratio(value: float) -> str:
    """Formats the ratio of an error to its tolerance: 31%, 12x."""
    if not math.isfinite(value):
        return f"{value:g}"
    if value < 9.995:
        return f"{value:.0%}"
    return f"{value:.0f}x" if value < 9999.5 else f"{format_number(value)}x"


def format_cosine_distance(cosine: float) -> str:
    """Formats 1 - cosine, of which two digits say more than two digits of the cosine."""
    return f"<{_COSINE_ERROR:.0e}" if 1 - cosine < _COSINE_ERROR else format_number(1 - cosine)


def _tensor_table(run: Run, all_tensors: bool, width: int) -> Table:
    header = ("max", "mean", "rel.", "ulps", "1-cos", "tol.", "ratio", "")
    rows = _tensor_rows(run.tensors, all_tensors)
    cells = [_tensor_cells(tensor) if tensor else [] for _, tensor in rows]
    widths = (max(map(len, map(str, column))) for column in zip(header, *filter(None, cells), strict=True))
    name_width = max(width - sum(column_width + 1 for column_width in widths), _MIN_NAME_WIDTH)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("tensor", overflow="fold")
    for name in header:
        table.add_column(name, justify="right", no_wrap=True)
    for (name, tensor), row_cells in zip(rows, cells, strict=True):
        style = "bold red" if tensor and not tensor.passed else ""
        table.add_row(Text(_wrap_name(printable(name), name_width), style=style), *row_cells)
    return table


def _tensor_rows(tensors: Sequence[TensorResult], all_tensors: bool) -> list[tuple[str, TensorResult | None]]:
    """Returns the rows of the table: a label and a tensor, or None for the heading of a group."""
    rows: list[tuple[str, TensorResult | None]] = []
    for group, members in _group_tensors(tensors):
        output = next((tensor for tensor in members if tensor.name == f"{group}.output"), None)
        worst = max(members, key=lambda tensor: tensor.tolerance_ratio)
        shown = [output or worst, *([worst] if output and worst is not output else [])]
        if all_tensors and len(members) > 1:
            rows.append((group, None))
            shown = members
        for tensor in shown:
            is_indented = len(members) > 1 and (tensor is not shown[0] or shown is members)
            rows.append((_INDENT + tensor.name[len(group) + 1 :] if is_indented else tensor.name, tensor))
    return rows


def _wrap_name(name: str, width: int) -> str:
    """Breaks a long name into lines, after a dot if there is one, or else after an underscore."""
    if len(name) <= width:
        return name
    for separator in "._":
        if (end := name.rfind(separator, 0, width) + 1) > 0:
            return f"{name[:end]}\n{_wrap_name(2 * _INDENT + name[end:], width)}"
    return name


def _group_tensors(tensors: Sequence[TensorResult]) -> list[tuple[str, list[TensorResult]]]:
    """Groups the tensors of a layer, and the gradients of a layer, of a head or of a table; keeps their order."""
    groups: dict[str, list[TensorResult]] = {}
    for tensor in tensors:
        gradients = GRADIENTS if tensor.name.startswith(GRADIENTS) else ""
        parts = tensor.name.removeprefix(gradients).split(".")
        group = tensor.name
        if parts[0] == "layers" or gradients:
            group = gradients + ".".join(parts[: 2 if parts[0] in ("layers", "heads") else 1])
        groups.setdefault(group, []).append(tensor)
    return list(groups.items())


def _tensor_cells(tensor: TensorResult) -> list[str | Text]:
    style = "" if tensor.passed else "bold red"
    return [
        *map(format_number, (tensor.max_abs, tensor.mean_abs, tensor.relative)),
        format_ulps(tensor.max_ulps),
        format_cosine_distance(tensor.cosine),
        format_number(tensor.max_abs_tolerance),
        Text(format_ratio(tensor.tolerance_ratio), style=style),
        Text(verdict(tensor.passed), style=style or "green"),
    ]


def _decision_table(decisions: Sequence[DecisionResult]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("decisions", overflow="fold")
    table.add_column("kind", no_wrap=True)
    for name in ("agree", "ties", "min. margin", "tie margin", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for decision in decisions:
        style = "" if decision.passed else "bold red"
        table.add_row(
            Text(printable(decision.tensor), style=style),
            Text(printable(decision.decision)),
            f"{decision.agreed}/{decision.count}",
            str(decision.ties),
            format_number(decision.smallest_margin),
            format_number(decision.tie_margin),
            Text(verdict(decision.passed), style=style or "green"),
        )
    return table
