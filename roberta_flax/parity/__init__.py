"""Numerical parity with PyTorch: the same inputs through torch and through Flax, compared at every named value."""

from roberta_flax.parity.report import DecisionResult, Place, PointResult, Report, Run, TokenError
from roberta_flax.parity.run import compare

__all__ = ["DecisionResult", "Place", "PointResult", "Report", "Run", "TokenError", "compare"]
