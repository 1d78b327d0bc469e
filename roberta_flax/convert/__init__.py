"""Conversion of fairseq and Transformers checkpoints to Flax parameter trees, and back.

Reading needs no torch. Checkpoints are parsed here, and nothing in them is executed (see convert.torch_file).
"""

from roberta_flax.convert.adapter_files import load_adapter, save_adapter
from roberta_flax.convert.conversion import convert
from roberta_flax.convert.export import export
from roberta_flax.convert.verification import Comparison, Verification, verify

__all__ = ["Comparison", "Verification", "convert", "export", "load_adapter", "save_adapter", "verify"]


def __dir__() -> list[str]:
    return __all__
