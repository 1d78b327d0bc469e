"""assert_parity(): a comparison as one line of a test."""

from __future__ import annotations

import os
from typing import Any

from roberta_flax.parity.model_comparison import compare
from roberta_flax.parity.report import Report, Run, divergence, failures


def assert_parity(source: str | os.PathLike[str], **options: Any) -> Report:
    """Compares a model with torch, and fails if they differ by more than rounding explains.

    Args:
      source: a model, as roberta_flax.load takes it.
      options: options of roberta_flax.parity.compare.

    Returns:
      The report.

    Raises:
      AssertionError: a run does not pass. The message has two or three lines for each dtype: the first tensor over its
        tolerance, with the position and both values; the number of tensors over theirs; the decisions that differ.
      InputError, CheckpointError, DownloadError: as in `compare`.
    """
    __tracebackhide__ = True  # pytest then shows the line of the test, and not this one
    report = compare(source, **options)
    if not report.passed:
        lines = [line for run in report.runs if not run.passed for line in _describe_failures(run)]
        raise AssertionError("\n".join([f"{report.source} and {report.reference['name']} differ:", *lines]))
    return report


def _describe_failures(run: Run) -> list[str]:
    """Describes the failures of a run that does not pass."""
    failed = failures(run)
    decisions = [decision for decision in run.decisions if not decision.passed]
    lines = [f"  {divergence(run)}"]
    if failed:
        lines.append(f"  {run.dtype}: {len(failed)} of {len(run.tensors)} tensors exceed their tolerance")
    else:
        decisions = decisions[1:]  # `divergence` describes the first
    lines += [
        f"  {run.dtype}: {decision.differing} of {decision.count} decisions of {decision.tensor} differ"
        for decision in decisions
    ]
    return lines
