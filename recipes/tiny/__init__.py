"""The embedded model, roberta_flax/data/roberta.tiny.tar.gz, and how to train it: python -m recipes.tiny

It is a RoBERTa of 4 layers and 160 units. It is trained on sentences that this package generates from its own lexicon
and grammar, and on nothing else. Nobody else's text is in it, so the weights belong to this project. Training takes
about 15 minutes on two cores, from fixed seeds, and gives the same file, byte for byte, on one kind of machine with one
version of jax (another version rounds sums differently). Its accuracy is measured on 90 pairs that were written by hand
before the model was trained, tests/data/held_out_pairs.tsv:

  roberta-flax evaluate tests/data/held_out_pairs.tsv --task mnli -m roberta_flax/data/roberta.tiny.tar.gz
"""

from recipes.tiny.fairseq_archive import train_bpe

__all__ = ["train_bpe"]
