"""The embedded default, roberta_flax/data/roberta.tiny.tar.gz, and how it is made: python -m convert.tiny"""

from convert.tiny.released import train_bpe

__all__ = ["train_bpe"]
