"""A report as one page, report.html.

The page is self-contained, readable without scripts, printable, and dark in dark mode. All text that comes from a model
or an input is escaped.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Iterator, Sequence

from roberta_flax.errors import printable
from roberta_flax.parity.report import DecisionResult, Report, Run, TensorResult, TokenError, divergence, failures
from roberta_flax.parity.report_plots import Plot, draw_plots
from roberta_flax.parity.report_terminal import (
    EXPLANATION,
    describe_computation,
    describe_failures,
    describe_reference,
    format_cosine_distance,
    format_number,
    format_ratio,
    format_ulps,
    verdict,
)

_CSS = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --quiet: #59636e; --line: #d5dae0; --shade: #f4f6f8;
  --pass: #116329; --fail: #b3161d; --bar: #2a8fd0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e8ee; --paper: #14181d; --quiet: #9aa5b1; --line: #363d46;
  --shade: #1e242b; --pass: #5fd07f; --fail: #ff8078; --bar: #4aa8e6; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 70rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.3rem 0 .3rem; }
p, figcaption { max-width: 48rem; } figcaption, .quiet { color: var(--quiet); font-size: .875rem; }
code, pre { font-family: ui-monospace, monospace; font-size: .85em; overflow-wrap: anywhere; white-space: pre-wrap; }
.verdict { font-size: 1.05rem; padding: .6rem .9rem; margin: 1rem 0; border-left: .4rem solid; background: var(--shade);
  overflow-wrap: anywhere; }
.pass { color: var(--pass); } .fail { color: var(--fail); font-weight: 700; }
.verdict.pass, .verdict.fail { border-color: currentColor; } .verdict > * { color: var(--ink); font-weight: 400; }
pre { background: var(--shade); padding: .7rem .9rem; margin: .6rem 0; border-left: .25rem solid var(--fail); }
.wide { overflow-x: auto; max-width: 100%; }
table code { white-space: pre; }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 0 1.5rem; }
.side > div { min-width: 0; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .2rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; vertical-align: bottom; } thead th { background: var(--shade); white-space: normal; }
.left, tbody th { text-align: left; } tbody th { font-weight: 400; } td.break { white-space: normal; min-width: 14rem; }
tr.fails td, tr.fails th { background: color-mix(in srgb, var(--fail) 11%, transparent); }
figure { margin: 1rem 0; } figure svg { display: block; width: 100%; max-width: 52rem; height: auto; }
.bar { min-width: 5rem; width: 30%; } .bar span { display: block; height: .7rem; background: var(--bar); }
.controls { display: none; gap: 1rem; flex-wrap: wrap; align-items: center; margin: .5rem 0; }
.scripted .controls { display: flex; } input[type=search] { font: inherit; padding: .25rem .5rem; min-width: 16rem; }
th button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer;
  text-decoration: underline dotted; }
[aria-sort=ascending] button::after { content: " \\25b2"; } [aria-sort=descending] button::after { content: " \\25bc"; }
details > summary { cursor: pointer; font-weight: 600; margin: .8rem 0 .3rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: .5rem 0; }
dt { color: var(--quiet); } dd { margin: 0; overflow-wrap: anywhere; }
@media print { :root { --ink: #000; --paper: #fff; --quiet: #444; --line: #bbb; --shade: #f3f3f3; --pass: #116329;
  --fail: #b3161d; } body { max-width: none; padding: 0; font-size: 11pt; } .controls { display: none !important; }
  .wide { overflow: visible; } table { font-size: 7.5pt; } th, td { padding: .1rem .3rem; }
  figure, tr, pre { break-inside: avoid; } h2, h3, summary { break-after: avoid; }
  thead { display: table-header-group; } }
""".strip()

_SCRIPT = """
document.documentElement.classList.add("scripted");
const rows = [...document.querySelectorAll(".tensors tbody tr")];
const filter = document.getElementById("filter"), failing = document.getElementById("failing");
const show = () => rows.forEach(row => { row.hidden = !row.cells[0].textContent.includes(filter.value.trim()) ||
  failing.checked && !row.classList.contains("fails"); });
filter.addEventListener("input", show); failing.addEventListener("change", show); show();
const value = ({cells}, i) => "value" in cells[i].dataset ? +cells[i].dataset.value : cells[i].textContent;
document.querySelectorAll(".tensors").forEach(table => [...table.tHead.rows[0].cells].forEach((head, i) => {
  const button = document.createElement("button"), body = table.tBodies[0];
  button.append(...head.childNodes); button.type = "button"; head.append(button);
  button.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "descending" || i === 0 && !head.hasAttribute("aria-sort");
    [...table.tHead.rows[0].cells].forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "ascending" : "descending");
    const sorted = [...body.rows].sort((a, b) => { const x = value(a, i), y = value(b, i);
      return (x < y ? -1 : x > y ? 1 : 0) * (down ? 1 : -1); });
    body.append(...sorted);
  });
}));
""".strip()


def escape(text: str) -> str:
    """Text of a model or an input, as it is shown in a page."""
    return html.escape(printable(text))


def render(report: Report, plots: Sequence[Plot] | None = None) -> str:
    """Returns the page.

    Args:
      report: the report.
      plots: the plots in it; by default those of draw_plots.

    Raises:
      InputError: matplotlib is not installed.
    """
    title = f"Parity of {report.source}: {verdict(report.passed)}"
    body = "\n".join(_body(report, draw_plots(report) if plots is None else plots))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_CSS}\n</style>\n</head>\n<body>\n{body}\n"
        f"<script>\n{_SCRIPT}\n</script>\n</body>\n</html>\n"
    )


def _body(report: Report, plots: Sequence[Plot]) -> Iterator[str]:
    yield f"<header><h1>Parity of <code>{escape(report.source)}</code> with torch</h1></header>\n<main>"
    yield from _summary(report)
    yield from _plots(plots)
    yield from _worst_tokens(report)
    yield from _decisions(report)
    yield from _tensors(report)
    yield from _environment(report)
    yield "</main>"


def _summary(report: Report) -> Iterator[str]:
    yield _verdict(report)
    yield _description(report)
    yield _table(
        ("computation", "tensors", "over tolerance", "largest ratio", "decisions that differ", "diverges first at",
         "seconds", "result"),
        (_run_row(run) for run in report.runs), "Runs",
    )  # fmt: skip
    for run in report.runs:
        for lines in describe_failures(run):
            text = "\n".join(map(escape, lines))
            yield f"<pre>{text}</pre>"


def _verdict(report: Report) -> str:
    result = verdict(report.passed)
    what = "All tensors and decisions agree" if report.passed else "They differ by more than rounding explains"
    lines = "".join(
        f"<div><code>{escape(line)}</code></div>" for run in report.runs if (line := divergence(run)) is not None
    )
    return f'<div class="verdict {result.lower()}" role="status">{result.upper()}<span>: {what}.</span>{lines}</div>'


def _description(report: Report) -> str:
    model = report.model
    lengths = [length for batch in report.inputs["lengths"] for length in batch]
    heads = ", ".join(model["classification_heads"]) or "none"
    return _list(
        {
            "model": f"{model['layers']} layers of {model['hidden_size']}, {model['heads']} attention heads, "
            f"{model['parameters']:,} parameters; classification heads: {heads}",
            "reference": describe_reference(report),
            "inputs": f"{len(lengths)} {'built-in ' if report.inputs['built_in'] else ''}rows of {min(lengths)} to "
            f"{max(lengths)} tokens, in {len(report.inputs['lengths'])} batches",
            "gradients": "compared" if report.gradients else "not compared",
        }
    )


def _run_row(run: Run) -> str:
    differing = sum(decision.differing for decision in run.decisions)
    cells = [
        f'<th scope="row">{escape(describe_computation(run))}</th>',
        f"<td>{len(run.tensors)}</td><td>{len(failures(run))}</td>",
        f"<td>{format_ratio(max(tensor.tolerance_ratio for tensor in run.tensors))}</td>",
        f"<td>{differing} of {sum(decision.count for decision in run.decisions)}</td>",
        f'<td class="left">{f"<code>{escape(run.diverges_at)}</code>" if run.diverges_at else "—"}</td>',
        f"<td>{run.seconds:.1f}</td>{_result_cell(run.passed)}",
    ]
    return _row(cells, run.passed)


def _plots(plots: Sequence[Plot]) -> Iterator[str]:
    if plots:
        yield "<h2>Errors</h2>"
    for plot in plots:
        yield f"<figure>\n<h3>{escape(plot.title)}</h3>"
        yield f'<div class="wide" tabindex="0" role="region" aria-label="{escape(plot.title)}">{plot.svg}</div>'
        yield f"<figcaption>{escape(plot.caption)}</figcaption>\n</figure>"


def _worst_tokens(report: Report) -> Iterator[str]:
    if not any(run.worst_tokens for run in report.runs):
        return
    yield "<h2>Worst tokens</h2>\n<p>The tokens with the largest errors in their features.</p>"
    yield '<div class="side">'
    for run in report.runs:
        if run.worst_tokens:
            largest = max((token.error for token in run.worst_tokens if math.isfinite(token.error)), default=1.0)
            yield f"<div><h3>{escape(describe_computation(run))}</h3>"
            yield _table(
                ("token", "id", "batch", "row", "position", "error", ""),
                [_token_row(token, largest) for token in run.worst_tokens],
                f"Worst tokens in {run.dtype}",
            )
            yield "</div>"
    yield "</div>"


def _token_row(token: TokenError, largest: float) -> str:
    width = 100 * min(token.error / largest, 1.0)
    return _row(
        [
            f'<th scope="row"><code>{escape(repr(token.text))}</code></th><td>{token.token_id}</td>',
            f"<td>{token.batch}</td><td>{token.row}</td><td>{token.token}</td><td>{format_number(token.error)}</td>",
            f'<td class="bar"><span style="width:{width:.1f}%"></span></td>',
        ]
    )


def _decisions(report: Report) -> Iterator[str]:
    rows = [_decision_row(run, decision) for run in report.runs for decision in run.decisions]
    if rows:
        yield (
            "<h2>Decisions</h2>\n<p>A decision passes if both sides agree, or if it is a tie: if its margin in the "
            "reference is so small that rounding may change the decision. A margin is the difference between the last "
            "chosen logit and the first one not chosen. The tie margin is twice the tolerance of the logits.</p>"
        )
        yield _table(
            ("dtype", "tensor", "decision", "count", "agree", "ties", "smallest margin", "tie margin", "result"),
            rows, "Decisions",
        )  # fmt: skip


def _decision_row(run: Run, decision: DecisionResult) -> str:
    return _row(
        [
            f'<th scope="row">{escape(run.dtype)}</th><td class="left"><code>{escape(decision.tensor)}</code></td>',
            f'<td class="left">{escape(decision.decision)}</td><td>{decision.count}</td><td>{decision.agreed}</td>',
            f"<td>{decision.ties}</td><td>{format_number(decision.smallest_margin)}</td>",
            f"<td>{format_number(decision.tie_margin)}</td>",
            _result_cell(decision.passed),
        ],
        decision.passed,
    )


def _tensors(report: Report) -> Iterator[str]:
    yield f"<h2>Tensors</h2>\n<p>{escape(EXPLANATION)}</p>"
    yield (
        '<div class="controls"><label>Filter <input type="search" id="filter" placeholder="layers.0. or output">'
        '</label><label><input type="checkbox" id="failing"> failures only</label>'
        '<span class="quiet">Select the name of a column to sort by it.</span></div>'
    )
    for run in report.runs:
        yield f"<details open><summary>{escape(describe_computation(run))}</summary>"
        yield _table(
            ("tensor", "max", "mean", "rms", "relative", "max ulps", "mean ulps", "1 − cosine", "tolerance of max",
             "tolerance of rms", "ratio", "not finite", "result"),
            (_tensor_row(tensor) for tensor in run.tensors),
            f"Tensors in {run.dtype}", "tensors",
        )  # fmt: skip
        if run.not_compared:
            names = ", ".join(f"<code>{escape(name)}</code>" for name in run.not_compared)
            yield f'<p class="quiet">Not compared, because one side does not expose them: {names}</p>'
        yield "</details>"


def _tensor_row(tensor: TensorResult) -> str:
    cells = [f'<th scope="row"><code>{escape(tensor.name)}</code></th>']
    numbers = (tensor.max_abs, tensor.mean_abs, tensor.rms, tensor.relative)
    cells += [_number_cell(value, format_number(value)) for value in numbers]
    cells += [_number_cell(value, format_ulps(value)) for value in (tensor.max_ulps, tensor.mean_ulps)]
    cells += [_number_cell(1 - tensor.cosine, format_cosine_distance(tensor.cosine))]
    tolerances = (tensor.max_abs_tolerance, tensor.rms_tolerance)
    cells += [_number_cell(value, format_number(value)) for value in tolerances]
    cells += [_number_cell(tensor.tolerance_ratio, format_ratio(tensor.tolerance_ratio))]
    cells += [_number_cell(tensor.not_finite, str(tensor.not_finite))]
    return _row([*cells, _result_cell(tensor.passed)], tensor.passed)


def _environment(report: Report) -> Iterator[str]:
    yield "<h2>Environment</h2>"
    yield _list({**report.versions, "reference": report.reference["version"]})
    yield '<p class="quiet">report.json, beside this page, has all of these results as data.</p>'


def _number_cell(value: float, text: str) -> str:
    """Returns a cell that sorts by its exact value. JavaScript spells infinity in full."""
    exact = repr(float(value)).replace("inf", "Infinity").replace("nan", "NaN")
    return f'<td data-value="{exact}">{escape(text)}</td>'


def _result_cell(passed: bool) -> str:
    word = verdict(passed)
    return f'<td class="{word.lower()}">{word}</td>'


def _row(cells: Iterable[str], passed: bool = True) -> str:
    return f"<tr{'' if passed else ' class=fails'}>{''.join(cells)}</tr>"


def _table(header: Sequence[str], rows: Iterable[str], label: str, css_class: str = "") -> str:
    left_aligned = ("computation", "tensor", "token", "dtype", "decision", "diverges first at")
    heads = "".join(
        f'<th scope="col"{" class=left" if name in left_aligned else ""}>{escape(name)}</th>' for name in header
    )
    body = "\n".join(rows)
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(label)}"><table class="{css_class}">'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _list(pairs: dict[str, str]) -> str:
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in pairs.items())
    return f"<dl>{items}</dl>"
