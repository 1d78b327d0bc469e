"""Numerical parity with PyTorch: the same inputs through torch and through Flax, compared at every named value."""

from roberta_flax.parity.check import assert_parity
from roberta_flax.parity.report import DecisionResult, Place, PointResult, Report, Run, TokenError, read_report
from roberta_flax.parity.run import compare, compare_subject

__all__ = [
    "DecisionResult",
    "Place",
    "PointResult",
    "Report",
    "Run",
    "TokenError",
    "assert_parity",
    "compare",
    "compare_subject",
    "read_report",
]


def __dir__() -> list[str]:
    return __all__
