"""The embedded default, roberta_flax/data/roberta.tiny.tar.gz, and how it is made: python -m recipes.tiny

A RoBERTa of 4 layers and 160 units, trained on sentences that this package makes from a lexicon and a grammar of its
own, and on nothing else: there is no text of anybody's in it, so that its weights are the project's. It takes some 15
minutes of two cores, from fixed seeds, and gives the same file, byte for byte, on one kind of machine with one version
of jax (another rounds sums otherwise). What it can do is measured on 90 pairs that were written by hand before it was
trained, tests/data/held_out_pairs.tsv:

  roberta-flax evaluate tests/data/held_out_pairs.tsv --task mnli -m roberta_flax/data/roberta.tiny.tar.gz
"""

from recipes.tiny.released import train_bpe

__all__ = ["train_bpe"]
