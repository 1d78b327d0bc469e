"""fairseq checkpoints to Flax parameter trees.

Reading needs no torch: checkpoints are parsed here, and nothing in them is executed (see convert.torch_file).
"""

from convert.conversion import convert

__all__ = ["convert"]
