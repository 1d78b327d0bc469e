"""Runs `roberta-flax convert`."""

from __future__ import annotations

import sys

from roberta_flax.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["convert"]
    main()
