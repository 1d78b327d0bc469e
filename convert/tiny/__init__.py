"""The embedded default, roberta_flax/data/roberta.tiny.tar.gz, and how it is made: python -m convert.tiny

A RoBERTa of 4 layers and 160 units, trained on sentences that this package makes from its own lexicon and grammar, and
on nothing else: no text of anybody's, so that its weights are the project's. It takes some 15 minutes of two cores; on one
machine the same bytes come out. tests/data/held_out_pairs.tsv, 90 pairs written by hand before it was trained, measure it:

  roberta-flax evaluate tests/data/held_out_pairs.tsv --task mnli -m roberta_flax/data/roberta.tiny.tar.gz
"""

from convert.tiny.released import train_bpe

__all__ = ["train_bpe"]
