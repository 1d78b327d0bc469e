"""Numerical parity with PyTorch: run the same inputs through torch and through Flax, and compare every named tensor."""

from roberta_flax.parity.assertion import assert_parity
from roberta_flax.parity.model_comparison import compare, compare_subject
from roberta_flax.parity.report import DecisionResult, Element, Report, Run, TensorResult, TokenError, read_report

__all__ = [
    "DecisionResult",
    "Element",
    "Report",
    "Run",
    "TensorResult",
    "TokenError",
    "assert_parity",
    "compare",
    "compare_subject",
    "read_report",
]


def __dir__() -> list[str]:
    return __all__
