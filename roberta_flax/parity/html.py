"""A report as one page, report.html: it needs nothing but itself, reads without scripts, prints, and is dark at night.

Whatever comes from a model or a text is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from html import escape

from roberta_flax.parity.plots import plots
from roberta_flax.parity.report import PointResult, Report, Run, divergence, failures
from roberta_flax.parity.terminal import (
    EXPLANATION,
    computation,
    divergences,
    from_one,
    number,
    part,
    ulps,
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
figure { margin: 1rem 0; } figure svg { display: block; width: 100%; min-width: 34rem; height: auto; }
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
  figure, tr, pre { break-inside: avoid; } figure svg { min-width: 0; } h2, h3, summary { break-after: avoid; }
  thead { display: table-header-group; } }
""".strip()

_SCRIPT = """
document.documentElement.classList.add("scripted");
const rows = [...document.querySelectorAll(".points tbody tr")];
const filter = document.getElementById("filter"), failing = document.getElementById("failing");
const show = () => rows.forEach(row => { row.hidden = !row.cells[0].textContent.includes(filter.value.trim()) ||
  failing.checked && !row.classList.contains("fails"); });
filter.addEventListener("input", show); failing.addEventListener("change", show); show();
const value = ({cells}, i) => "value" in cells[i].dataset ? +cells[i].dataset.value : cells[i].textContent;
document.querySelectorAll(".points").forEach(table => [...table.tHead.rows[0].cells].forEach((head, i) => {
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


def render(report: Report) -> str:
    """The page.

    Raises:
      InputError: matplotlib is not installed.
    """
    passed = verdict(report.passed)
    title = f"Parity of {report.source}: {passed}"
    body = "\n".join(_body(report))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_CSS}\n</style>\n</head>\n<body>\n{body}\n"
        f"<script>\n{_SCRIPT}\n</script>\n</body>\n</html>\n"
    )


def _body(report: Report) -> Iterator[str]:
    yield f"<header><h1>Parity of <code>{escape(report.source)}</code> with torch</h1></header>\n<main>"
    yield from _summary(report)
    drawn = plots(report)
    if drawn:
        yield "<h2>Errors</h2>"
    for plot in drawn:
        yield f"<figure>\n<h3>{escape(plot.title)}</h3>"
        yield f'<div class="wide" tabindex="0" role="region" aria-label="{escape(plot.title)}">{plot.svg}</div>'
        yield f"<figcaption>{escape(plot.caption)}</figcaption>\n</figure>"
    if any(run.worst_tokens for run in report.runs):
        yield "<h2>Worst tokens</h2>\n<p>Those whose features are furthest off, by their largest error.</p>"
        yield '<div class="side">'
        for run in report.runs:
            yield from _worst_tokens(run)
        yield "</div>"
    yield "<h2>Decisions</h2>" if any(run.decisions for run in report.runs) else ""
    yield from _decisions(report)
    yield f"<h2>Points</h2>\n<p>{escape(EXPLANATION)}</p>"
    yield (
        '<div class="controls"><label>Filter <input type="search" id="filter" placeholder="layers.0. or output">'
        '</label><label><input type="checkbox" id="failing"> only those that fail</label>'
        '<span class="quiet">A column\'s name sorts by it.</span></div>'
    )
    for run in report.runs:
        yield f"<details open><summary>{escape(computation(run))}</summary>"
        yield _table(
            ("point", "max", "mean", "rms", "relative", "max ulps", "mean ulps", "1 − cosine", "bound of max",
             "bound of rms", "part of bound", "not finite", "result"),
            (_point(point) for point in run.points),
            f"Points in {run.dtype}", "points",
        )  # fmt: skip
        if run.not_compared:
            yield f'<p class="quiet">Not compared, as one side does not show them: {_codes(run.not_compared)}</p>'
        yield "</details>"
    yield from _environment(report)
    yield "</main>"


def _summary(report: Report) -> Iterator[str]:
    lengths = [length for batch in report.inputs["lengths"] for length in batch]
    what = "All points and decisions agree" if report.passed else "They differ by more than rounding explains"
    lines = "".join(
        f"<div><code>{escape(line)}</code></div>" for run in report.runs if (line := divergence(run)) is not None
    )
    result = verdict(report.passed)
    yield f'<div class="verdict {result.lower()}" role="status">{result.upper()}<span>: {what}.</span>{lines}</div>'
    model, reference = report.model, report.reference
    heads = ", ".join(model["classification_heads"]) or "none"
    yield _list(
        {
            "model": f"{model['layers']} layers of {model['hidden_size']}, {model['heads']} attention heads, "
            f"{model['parameters']:,} parameters; classification heads: {heads}",
            "reference": f"{reference['name']} in float64 ({reference['version']}; {reference['parameters']})",
            "inputs": f"{len(lengths)} {'built-in ' if report.inputs['built_in'] else ''}rows of {min(lengths)} to "
            f"{max(lengths)} tokens, in {len(report.inputs['lengths'])} batches",
            "gradients": "compared" if report.gradients else "not compared",
        }
    )
    yield _table(
        ("computation", "points", "over their bound", "largest part of a bound", "decisions that differ",
         "diverges first at", "seconds", "result"),
        (_run(run) for run in report.runs), "Runs",
    )  # fmt: skip
    for run in report.runs:
        for block in divergences(run):
            text = escape("\n".join(block))
            yield f"<pre>{text}</pre>"


def _run(run: Run) -> str:
    differ = sum(each.count - each.agreed - each.ties for each in run.decisions)
    cells = [
        f'<th scope="row">{escape(computation(run))}</th>',
        f"<td>{len(run.points)}</td><td>{len(failures(run))}</td>",
        f"<td>{part(max(point.of_bound for point in run.points))}</td>",
        f"<td>{differ} of {sum(each.count for each in run.decisions)}</td>",
        f'<td class="left">{f"<code>{escape(run.diverges_at)}</code>" if run.diverges_at else "—"}</td>',
        f"<td>{run.seconds:.1f}</td>{_result(run.passed)}",
    ]
    return _row(cells, run.passed)


def _worst_tokens(run: Run) -> Iterator[str]:
    if not run.worst_tokens:
        return
    largest = max((token.error for token in run.worst_tokens if math.isfinite(token.error)), default=1.0)
    rows = []
    for token in run.worst_tokens:
        share = 100 * min(token.error / largest, 1.0)
        rows.append(
            _row(
                [
                    f'<th scope="row"><code>{escape(repr(token.text))}</code></th><td>{token.token_id}</td>',
                    f"<td>{token.batch}</td><td>{token.row}</td><td>{token.token}</td><td>{number(token.error)}</td>",
                    f'<td class="bar"><span style="width:{share:.1f}%"></span></td>',
                ]
            )
        )
    yield f"<div><h3>{escape(computation(run))}</h3>"
    yield _table(("token", "id", "batch", "row", "position", "error", ""), rows, f"Worst tokens in {run.dtype}")
    yield "</div>"


def _decisions(report: Report) -> Iterator[str]:
    rows = [
        _row(
            [
                f'<th scope="row">{escape(run.dtype)}</th><td class="left"><code>{escape(each.point)}</code></td>',
                f'<td class="left">{escape(each.decision)}</td><td>{each.count}</td><td>{each.agreed}</td>',
                f"<td>{each.ties}</td><td>{number(each.smallest_margin)}</td><td>{number(each.flips_at)}</td>",
                _result(each.passed),
            ],
            each.passed,
        )
        for run in report.runs
        for each in run.decisions
    ]
    if rows:
        yield (
            "<p>A decision passes where both sides agree, or where the reference itself decides by a margin that "
            "rounding may change: a tie. A margin is the distance of the last number that is chosen from the first "
            "that is not; it may flip where it is smaller than twice the logits' bound.</p>"
        )
        yield _table(
            ("dtype", "point", "decision", "count", "agree", "ties", "smallest margin", "flips at", "result"),
            rows, "Decisions",
        )  # fmt: skip


def _environment(report: Report) -> Iterator[str]:
    yield "<h2>Environment</h2>"
    yield _list({**report.versions, "reference": report.reference["version"]})
    yield '<p class="quiet">report.json beside this page has all of this as data.</p>'


def _point(point: PointResult) -> str:
    numbers = (point.max_abs, point.mean_abs, point.rms, point.relative)
    cells = [f'<th scope="row"><code>{escape(point.point)}</code></th>']
    cells += [_cell(value, number(value)) for value in numbers]
    cells += [_cell(point.max_ulps, ulps(point.max_ulps)), _cell(point.mean_ulps, ulps(point.mean_ulps))]
    cells += [_cell(1 - point.cosine, from_one(point.cosine))]
    cells += [_cell(value, number(value)) for value in (point.bound_max, point.bound_rms)]
    cells += [_cell(point.of_bound, part(point.of_bound)), _cell(point.not_finite, str(point.not_finite))]
    return _row([*cells, _result(point.passed)], point.passed)


def _cell(value: float, text: str) -> str:
    """A number that is sorted by what it is, and not by how it is shown; scripts call infinity by its whole name."""
    exact = repr(float(value)).replace("inf", "Infinity").replace("nan", "NaN")
    return f'<td data-value="{exact}">{escape(text)}</td>'


def _result(passed: bool) -> str:
    word = verdict(passed)
    return f'<td class="{word.lower()}">{word}</td>'


def _row(cells: Iterable[str], passed: bool = True) -> str:
    return f"<tr{'' if passed else ' class=fails'}>{''.join(cells)}</tr>"


def _table(header: Sequence[str], rows: Iterable[str], label: str, kind: str = "") -> str:
    words = ("computation", "point", "token", "dtype", "decision", "diverges first at")
    heads = "".join(f'<th scope="col"{" class=left" if name in words else ""}>{escape(name)}</th>' for name in header)
    body = "\n".join(rows)
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(label)}"><table class="{kind}">'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _list(pairs: dict[str, str]) -> str:
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in pairs.items())
    return f"<dl>{items}</dl>"


def _codes(names: Iterable[str]) -> str:
    return ", ".join(f"<code>{escape(name)}</code>" for name in names)
