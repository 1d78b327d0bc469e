"""Checkpoints of fairseq and transformers to Flax parameter trees, and back.

Reading needs no torch: checkpoints are parsed here, and nothing in them is executed (see convert.torch_file).
"""

from convert.conversion import convert
from convert.export import export
from convert.verification import Comparison, Verification, verify

__all__ = ["Comparison", "Verification", "convert", "export", "verify"]
