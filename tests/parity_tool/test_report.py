"""Reports of a comparison: data, tables, a page, and the failure of a test."""

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
from roberta_flax.parity import report as report_module
from roberta_flax.parity import report_html, report_terminal
from tests.conftest import ROOT
from tests.parity_tool.conftest import BROKEN, ONLY, TEXTS

VOID_ELEMENTS = {"meta", "br", "input"}


def tables(report: parity.Report, width: int = 80, **options: bool) -> str:
    """The tables of a report without a terminal."""
    out = io.StringIO()
    report_terminal.print_report(report, Console(file=out, width=width), **options)
    return out.getvalue()


@pytest.mark.slow
def test_a_correct_model_passes(report):
    assert report.passed
    assert [run.dtype for run in report.runs] == ["float32", "bfloat16"]
    assert all(run.tensors and run.diverges_at is None for run in report.runs)


def test_the_report_locates_a_mistake_by_tensor_row_token_and_values(failing_report):
    run = failing_report.run("float32")
    assert not failing_report.passed
    assert run.diverges_at == BROKEN
    element = run.tensor(BROKEN).worst_by_ratio
    assert (element.batch, element.row, element.token, element.index) == (0, 1, 2, (1, 2, 3))
    assert element.error == pytest.approx(0.01, rel=1e-3)  # the mistake of 1e-2, and the error of float32, 1e-6
    assert element.actual - element.reference == pytest.approx(element.error)
    assert run.tensor("layers.1.output").passed  # the mistake is in the observed value, not in the computation


def test_a_report_survives_json(report, failing_report):
    for tested in (report, failing_report):
        assert parity.Report.from_json(tested.to_json()) == tested


def test_nan_and_infinity_survive_json(report):
    run = report.runs[0]
    tensor = dataclasses.replace(run.tensors[0], max_abs=math.inf, cosine=math.nan)
    changed = dataclasses.replace(report, runs=(dataclasses.replace(run, tensors=(tensor,)),))
    read = parity.Report.from_json(changed.to_json()).runs[0].tensors[0]
    assert read.max_abs == math.inf
    assert math.isnan(read.cosine)
    json.loads(changed.to_json(), parse_constant=pytest.fail)


def test_invalid_reports_and_other_schemas_are_refused_in_one_line(report, tmp_path):
    path = tmp_path / "report.json"
    older, newer = (report.to_json().replace('"schema": 2', f'"schema": {schema}') for schema in (1, 3))
    incomplete = report.to_json().replace('"passed"', '"passd"')
    for text, reason in (
        ("{", "not a report"),
        ("[]", "not a report"),
        (older, "the report has schema 1, but this version of roberta-flax reads schema 2; run the comparison again"),
        (newer, "the report has schema 3"),
        (incomplete, "'passed'"),
    ):
        path.write_text(text)
        with pytest.raises(errors.InputError, match=reason):
            parity.read_report(path)
    with pytest.raises(errors.InputError, match="cannot read"):
        parity.read_report(tmp_path / "absent.json")


def test_fields_of_a_later_version_are_ignored(report):
    newer = json.loads(report.to_json()) | {"weather": "fine"}
    assert parity.Report.from_json(json.dumps(newer)) == report


def test_every_field_of_the_report_is_documented():
    page = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8")
    for part in ("Report", "Run", "TensorResult", "DecisionResult", "TokenError", "Element"):
        section = re.search(rf"### {part}: .*?(?=\n### |\Z)", page, re.DOTALL)
        assert section, part
        named = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\|([^|]*)\|", section[0], re.MULTILINE))))
        fields = {field.name for field in dataclasses.fields(getattr(report_module, part))}
        assert named == fields | ({"schema"} if part == "Report" else set()), part


def test_tables_fit_80_columns_and_need_no_colors(report, failing_report):
    for tested in (report, failing_report):
        for all_tensors in (False, True):
            text = tables(tested, all_tensors=all_tensors)
            assert max(map(len, text.splitlines())) <= 80
            assert "\x1b" not in text
    assert "float32 on cpu: pass" in tables(report)
    assert "FAIL" not in tables(report)


def test_tables_have_rows_for_outputs_and_worst_tensors_of_layers_or_for_every_tensor(report):
    short, long = tables(report), tables(report, all_tensors=True)
    for layer in range(2):
        assert short.count(f"layers.{layer}.output") == len(report.runs)
        assert len(re.findall(rf"^layers\.{layer} *$", long, re.MULTILINE)) == len(report.runs)
    assert long.count("attention.context") == 2 * len(report.runs)


def test_tables_show_the_divergence_and_decisions_that_differ(failing_report):
    text = " ".join(tables(failing_report).split())
    assert f"float32 diverges first at {BROKEN}" in text
    assert "batch 0, row 1, token 2 (id" in text
    assert "index [1, 2, 3]" in text
    assert re.search(r"torch -?[\d.e-]+, Flax -?[\d.e-]+, error 0\.01", text)
    assert "2 of 2 decisions (argmax) of heads.mnli.logits differ" in text


class Page(HTMLParser):
    """Collects the open elements, the references, the ids, and the number of scripts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.scripts = 0
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag not in VOID_ELEMENTS:
            self.open.append(tag)
        self.scripts += tag == "script"
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "data", "action", "srcset"):
                self.references.append(value)
            if name == "id":
                self.ids.append(value)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID_ELEMENTS:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_valid_and_self_contained(report, failing_report):
    for tested in (report, failing_report):
        text = report_html.render(tested)
        page = Page(text)
        assert page.open == []
        assert all(reference.startswith("#") for reference in page.references)
        assert {reference[1:] for reference in page.references} <= set(page.ids)
        assert len(page.ids) == len(set(page.ids))
        assert not re.search(r"https?:|url\((?!#)|@import", text)
        assert page.scripts == 1


def test_the_page_shows_plots_tensors_decisions_tokens_and_the_divergence(failing_report):
    text = report_html.render(failing_report)
    for part in (
        "Error by layer",
        "Error by tensor",
        "Histogram of errors",
        "Worst tokens",
        "Decisions",
        "Environment",
    ):
        assert part in text
    for tensor in failing_report.runs[0].tensors:
        assert f"<code>{tensor.name}</code>" in text
    assert 'class="verdict fail"' in text
    assert "index [1, 2, 3]" in text


@pytest.mark.slow
def test_the_page_escapes_text_of_models_and_inputs(failing_report):
    run = failing_report.runs[0]
    hostile = '<script>alert("a")</script>\x00\u202e'
    tensors = tuple(
        dataclasses.replace(tensor, worst_by_ratio=dataclasses.replace(tensor.worst_by_ratio, text=hostile))
        for tensor in run.tensors
    )
    tokens = tuple(dataclasses.replace(token, text=hostile) for token in run.worst_tokens)
    hostile_run = dataclasses.replace(
        run, tensors=tensors, worst_tokens=tokens, not_compared=(hostile,), precision=hostile
    )
    model = {**failing_report.model, "classification_heads": [hostile]}
    decisions = tuple(dataclasses.replace(each, tensor=hostile, decision="[red]") for each in run.decisions)
    hostile_run = dataclasses.replace(hostile_run, decisions=decisions)
    hostile_report = dataclasses.replace(failing_report, source=hostile, model=model, runs=(hostile_run,))
    page = report_html.render(hostile_report)
    assert Page(page).scripts == 1
    assert "<script>alert" not in page
    console = Console(width=200, file=io.StringIO())
    report_terminal.print_report(hostile_report, console)
    text = console.file.getvalue()
    for shown in (page, text):
        assert not set("\x00\u202e") & set(shown)
        assert r"\x00\u202e" in shown
    assert "[red]" in text


def test_reports_show_errors_that_are_not_finite(failing_report):
    run = failing_report.runs[0]
    not_finite = {"max_abs": math.inf, "rms": math.inf, "cosine": math.nan, "tolerance_ratio": math.inf}
    tensors = tuple(dataclasses.replace(tensor, **not_finite, not_finite=1) for tensor in run.tensors)
    tokens = tuple(dataclasses.replace(token, error=math.inf) for token in run.worst_tokens)
    infinite = dataclasses.replace(
        failing_report, runs=(dataclasses.replace(run, tensors=tensors, worst_tokens=tokens),)
    )
    assert Page(report_html.render(infinite)).open == []
    assert "inf" in tables(infinite)


def test_assert_parity_returns_the_report_of_a_correct_model(tiny_source):
    report = parity.assert_parity(tiny_source, texts=TEXTS[:1], only=["features"])
    assert [tensor.name for tensor in report.run("float32").tensors] == ["features"]


@pytest.mark.usefixtures("broken_flax_model")
def test_assert_parity_fails_with_position_values_and_counts(tiny_source):
    with pytest.raises(AssertionError) as failure:
        parity.assert_parity(tiny_source, texts=TEXTS, only=ONLY)
    lines = str(failure.value).splitlines()
    assert len(lines) == 4
    assert re.search(rf"float32 diverges at {re.escape(BROKEN)} at batch 0, row 1, token 2 \(id \d+, .*\)", lines[1])
    assert "times its tolerance" in lines[1]
    assert "float32: 2 of " in lines[2]  # that tensor and the logits
    assert lines[3] == "  float32: 2 of 2 decisions of heads.mnli.logits differ"
