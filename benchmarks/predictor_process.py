"""Run a Predictor once over pairs of texts, and print a line of JSON. benchmarks.inference starts this process.

  python -m benchmarks.predictor_process DIRECTORY PAIRS.json DTYPE STRATEGY CACHE_DIR

The process caches compiled programs under CACHE_DIR, as the command line does. It does not import torch, whose memory
would count.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax

from benchmarks.measurement import peak_memory
from roberta_flax import Classify, Predictor
from roberta_flax.cli.options import ModelOptions


def main() -> None:
    directory, pairs, dtype, strategy, cache = sys.argv[1:]
    roberta = ModelOptions(model=directory, dtype=dtype, cache_dir=Path(cache)).load()
    predictor = Predictor(roberta, Classify("mnli"), strategy=strategy)
    for _ in predictor(json.loads(Path(pairs).read_text(encoding="utf-8"))):
        pass
    peak, parameters = peak_memory(), sum(leaf.nbytes for leaf in jax.tree.leaves(roberta.params))
    assert "torch" not in sys.modules, "the memory of torch would count"
    print(json.dumps({"peak_bytes": peak, "peak_over_parameters": peak / parameters, **predictor.stats.to_json()}))


if __name__ == "__main__":
    main()
