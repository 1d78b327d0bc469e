"""What is made of a comparison: data, a table, a page, and a test's failure."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from roberta_flax import errors, parity
from roberta_flax.parity import html, terminal
from roberta_flax.parity import report as report_module
from tests.conftest import ROOT
from tests.parity_tool.conftest import BROKEN, ONLY, TEXTS

VOID = {"meta", "br", "input"}


def table(report: parity.Report, width: int = 80, **options: bool) -> str:
    """What a pipe gets."""
    out = io.StringIO()
    terminal.print_report(report, Console(file=out, width=width), **options)
    return out.getvalue()


def test_a_sound_model_passes(report):
    assert report.passed
    assert [run.dtype for run in report.runs] == ["float32", "bfloat16"]
    assert all(run.points and run.diverges_at is None for run in report.runs)


def test_the_first_point_over_its_bound_is_that_of_the_mistake_with_its_row_token_and_values(failing):
    run = failing.run("float32")
    assert not failing.passed
    assert run.diverges_at == BROKEN
    place = run.point(BROKEN).furthest_over
    assert (place.batch, place.row, place.token, place.index) == (0, 1, 2, (1, 2, 3))
    assert place.error == pytest.approx(0.01, rel=1e-3)  # 1e-2, and float32's own 1e-6
    assert place.ours - place.reference == pytest.approx(place.error)
    assert run.point("layers.1.output").passed  # the mistake is in what is shown, and not in what is computed on


def test_a_report_comes_back_from_json_as_it_was(report, failing):
    for each in (report, failing):
        assert parity.Report.from_json(each.to_json()) == each


def test_numbers_that_json_has_not_come_back_too(report):
    run = report.runs[0]
    point = dataclasses.replace(run.points[0], max_abs=math.inf, cosine=math.nan)
    odd = dataclasses.replace(report, runs=(dataclasses.replace(run, points=(point,)),))
    again = parity.Report.from_json(odd.to_json()).runs[0].points[0]
    assert again.max_abs == math.inf
    assert math.isnan(again.cosine)
    json.loads(odd.to_json(), parse_constant=pytest.fail)


def test_what_is_no_report_is_refused_in_a_line(report, tmp_path):
    path = tmp_path / "report.json"
    newer = report.to_json().replace('"schema": 1', '"schema": 2')
    lacking = report.to_json().replace('"passed"', '"passd"')
    for text, reason in (("{", "no report"), ("[]", "no report"), (newer, "schema 2"), (lacking, "'passed'")):
        path.write_text(text)
        with pytest.raises(errors.InputError, match=reason):
            parity.read_report(path)
    with pytest.raises(errors.InputError, match="cannot read"):
        parity.read_report(tmp_path / "absent.json")


def test_a_field_of_a_later_version_is_passed_over(report):
    newer = json.loads(report.to_json()) | {"weather": "fine"}
    assert parity.Report.from_json(json.dumps(newer)) == report


def test_every_field_of_the_report_is_documented():
    page = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8")
    for part in ("Report", "Run", "PointResult", "DecisionResult", "TokenError", "Place"):
        section = re.search(rf"### {part}: .*?(?=\n### |\Z)", page, re.DOTALL)
        assert section, part
        named = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\|([^|]*)\|", section[0], re.MULTILINE))))
        fields = {field.name for field in dataclasses.fields(getattr(report_module, part))}
        assert named == fields | ({"schema"} if part == "Report" else set()), part


def test_the_table_fits_80_columns_and_says_the_same_without_colours(report, failing):
    for each in (report, failing):
        for all_points in (False, True):
            text = table(each, all_points=all_points)
            assert max(map(len, text.splitlines())) <= 80
            assert "\x1b" not in text
    assert "float32 on cpu: pass" in table(report)
    assert "FAIL" not in table(report)


def test_the_table_has_a_line_for_each_layers_output_and_its_worst_point_or_for_every_point(report):
    short, long = table(report), table(report, all_points=True)
    for layer in range(2):
        assert short.count(f"layers.{layer}.output") == len(report.runs)
        assert len(re.findall(rf"^layers\.{layer} *$", long, re.MULTILINE)) == len(report.runs)
    assert long.count("attention.context") == 2 * len(report.runs)


def test_the_table_shows_where_it_diverges_and_which_decisions_differ(failing):
    text = " ".join(table(failing).split())
    assert f"float32 diverges first at {BROKEN}" in text
    assert "batch 0, row 1, token 2 (id" in text
    assert "index [1, 2, 3]" in text
    assert re.search(r"torch -?[\d.e-]+, Flax -?[\d.e-]+, error 0\.01", text)
    assert "2 of 2 decisions (argmax) of heads.mnli.logits differ" in text


class Page(HTMLParser):
    """Elements that are open at the end, those that refer to something, and all scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.scripts = 0
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self.scripts += tag == "script"
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "data", "action", "srcset"):
                self.references.append(value)
            if name == "id":
                self.ids.append(value)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_refers_to_nothing_outside_of_it(report, failing):
    for each in (report, failing):
        text = html.render(each)
        page = Page(text)
        assert page.open == []
        assert all(reference.startswith("#") for reference in page.references)
        assert {reference[1:] for reference in page.references} <= set(page.ids)
        assert len(page.ids) == len(set(page.ids))
        assert not re.search(r"https?:|url\((?!#)|@import", text)
        assert page.scripts == 1


def test_the_page_shows_plots_points_decisions_tokens_and_where_it_diverges(failing):
    text = html.render(failing)
    for part in ("Error by layer", "Error by point", "Histogram of errors", "Worst tokens", "Decisions", "Environment"):
        assert part in text
    for point in failing.runs[0].points:
        assert f"<code>{point.point}</code>" in text
    assert 'class="verdict fail"' in text
    assert "index [1, 2, 3]" in text


def test_whatever_a_model_or_a_text_holds_is_escaped_on_the_page(failing):
    run = failing.runs[0]
    hostile = '<script>alert("a")</script>\x00\u202e'
    points = tuple(
        dataclasses.replace(point, furthest_over=dataclasses.replace(point.furthest_over, text=hostile))
        for point in run.points
    )
    tokens = tuple(dataclasses.replace(token, text=hostile) for token in run.worst_tokens)
    evil = dataclasses.replace(run, points=points, worst_tokens=tokens, not_compared=(hostile,), precision=hostile)
    model = {**failing.model, "classification_heads": [hostile]}
    page = html.render(dataclasses.replace(failing, source=hostile, model=model, runs=(evil,)))
    assert Page(page).scripts == 1
    assert "<script>alert" not in page


def test_errors_that_are_not_finite_have_a_page_too(failing):
    run = failing.runs[0]
    points = tuple(
        dataclasses.replace(point, max_abs=math.inf, rms=math.inf, cosine=math.nan, of_bound=math.inf, not_finite=1)
        for point in run.points
    )
    tokens = tuple(dataclasses.replace(token, error=math.inf) for token in run.worst_tokens)
    infinite = dataclasses.replace(failing, runs=(dataclasses.replace(run, points=points, worst_tokens=tokens),))
    assert Page(html.render(infinite)).open == []
    assert "inf" in table(infinite)


def test_assert_parity_gives_the_report_of_a_model_that_passes(tiny_source):
    report = parity.assert_parity(tiny_source, texts=TEXTS[:1], only=["features"])
    assert [point.point for point in report.run("float32").points] == ["features"]


@pytest.mark.usefixtures("broken")
def test_assert_parity_fails_with_place_values_and_counts_in_a_few_lines(tiny_source):
    with pytest.raises(AssertionError) as failure:
        parity.assert_parity(tiny_source, texts=TEXTS, only=ONLY)
    lines = str(failure.value).splitlines()
    assert len(lines) == 4
    assert re.search(rf"float32 diverges at {re.escape(BROKEN)} at batch 0, row 1, token 2 \(id \d+, .*\)", lines[1])
    assert "times its bound" in lines[1]
    assert "float32: 2 of " in lines[2]  # that value and the logits
    assert lines[3] == "  float32: 2 of 2 decisions of heads.mnli.logits differ"
