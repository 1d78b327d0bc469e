"""Labeled data: reading tables, the layouts of GLUE and similar files, and tokenized examples for training."""

from typing import TYPE_CHECKING

from roberta_flax import lazy

if TYPE_CHECKING:
    from roberta_flax.datasets import readers, recipes

__all__ = ["readers", "recipes"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy.attach(__name__, __all__)
