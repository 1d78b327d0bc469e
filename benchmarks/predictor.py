"""One run of a Predictor over pairs, of which benchmarks.inference starts a fresh process each; prints a line of JSON.

  python -m benchmarks.predictor DIRECTORY PAIRS.json DTYPE STRATEGY CACHE_DIR

Programs are kept under CACHE_DIR as the command line keeps them. Without torch, whose memory would count.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax

from benchmarks import fresh
from roberta_flax import Classify, Predictor
from roberta_flax.cli.options import ModelOptions


def main() -> None:
    directory, pairs, dtype, strategy, cache = sys.argv[1:]
    roberta = ModelOptions(model=directory, dtype=dtype, cache_dir=Path(cache)).load()
    predictor = Predictor(roberta, Classify("mnli"), strategy=strategy)
    for _ in predictor(json.loads(Path(pairs).read_text(encoding="utf-8"))):
        pass
    peak, parameters = fresh.peak_memory(), sum(leaf.nbytes for leaf in jax.tree.leaves(roberta.params))
    assert "torch" not in sys.modules, "its memory would count"
    print(json.dumps({"peak_bytes": peak, "peak_over_parameters": peak / parameters, **predictor.stats.to_json()}))


if __name__ == "__main__":
    main()
