"""A report as a directory: report.json; report.html for people, and its plots as files."""

from __future__ import annotations

import json
from pathlib import Path

from roberta_flax.errors import InputError
from roberta_flax.files import new_directory, write_bytes
from roberta_flax.parity import report_html
from roberta_flax.parity.report import Report
from roberta_flax.parity.report_plots import draw_plots

REPORT, PAGE = "report.json", "report.html"


def check_destination(output: Path) -> None:
    """Raises InputError where there is something at `output` that is no report; a report may be replaced."""
    try:
        found = {path.name for path in output.iterdir()}
        if not found:
            return
        others = {name for name in found if not name.endswith(".svg")}  # plots
        is_report = others <= {REPORT, PAGE} and "schema" in json.loads((output / REPORT).read_text("utf-8"))
    except FileNotFoundError:
        if not output.exists() and not output.is_symlink():
            return
        is_report = False
    except (OSError, ValueError, TypeError):
        is_report = False
    if not is_report:
        raise InputError(f"{output} exists and is no report; remove it or choose another name")


def write(report: Report, output: Path) -> str | None:
    """Writes the files, in place of those that were there.

    Returns:
      Why there is no page, which needs matplotlib; None where there is one. report.json is
      written whatever is wrong with the page.
    """
    problem = None
    with new_directory(output, replace=True) as folder:
        write_bytes(folder / REPORT, report.to_json().encode())
        try:
            plots = draw_plots(report)
            page = report_html.render(report, plots)
        except InputError as error:
            problem = str(error)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        else:
            for name, text in {PAGE: page, **{plot.file_name: plot.to_file() for plot in plots}}.items():
                write_bytes(folder / name, text.encode("utf-8", "backslashreplace"))
    return problem
