"""assert_parity(): a comparison as a line of somebody's own tests."""

from __future__ import annotations

import os
from typing import Any

from roberta_flax.parity.report import Report, Run, divergence, failures
from roberta_flax.parity.run import compare


def assert_parity(source: str | os.PathLike[str], **options: Any) -> Report:
    """Compares a model with torch, and fails where they differ by more than rounding explains.

    Args:
      source: a model, as roberta_flax.load takes it.
      options: of roberta_flax.parity.compare.

    Returns:
      The report.

    Raises:
      AssertionError: a run does not pass. Two or three lines for each dtype: the first point over its bound, with its
        place and both values; how many points are over; which decisions differ.
      InputError, CheckpointError, DownloadError: as of compare.
    """
    __tracebackhide__ = True  # pytest shows the test's line, and not this one
    report = compare(source, **options)
    if not report.passed:
        found = [line for run in report.runs if not run.passed for line in _lines(run)]
        raise AssertionError("\n".join([f"{report.source} and {report.reference['name']} differ:", *found]))
    return report


def _lines(run: Run) -> list[str]:
    """What is wrong with a run that does not pass."""
    over, differing = failures(run), [decision for decision in run.decisions if not decision.passed]
    lines = [f"  {divergence(run)}"]
    if over:
        lines.append(f"  {run.dtype}: {len(over)} of {len(run.points)} points are over their bounds")
    for decision in differing if over else differing[1:]:  # the divergence names the first
        count = decision.count - decision.agreed - decision.ties
        lines.append(f"  {run.dtype}: {count} of {decision.count} decisions of {decision.point} differ")
    return lines
