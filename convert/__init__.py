"""The one-time converter as a program of a checkout: `python -m convert SOURCE DEST`. See roberta_flax.convert."""
