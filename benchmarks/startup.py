"""Seconds to the first answer of `roberta-flax mnli` in fresh processes: python -m benchmarks.startup BPE_DIR

Import, load, compile and run, of a converted model with random weights whose files are in the disk's cache; cold, with
nothing compiled yet, and warm, with the programs that an earlier run left in the cache. Beside it the same from
transformers' FlaxRobertaForSequenceClassification (4.57), its programs kept by JAX in the same way. Medians.

  python -m benchmarks.startup BPE_DIR [--size base|large] [--rounds N]
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.inference import fairseq_hub, line
from roberta_flax.convert import convert, export

PAIR = ("A man is sleeping.", "Nobody is awake.")
PEER = """
import sys, jax
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
from transformers import AutoTokenizer, FlaxRobertaForSequenceClassification
model = FlaxRobertaForSequenceClassification.from_pretrained(sys.argv[1])
inputs = AutoTokenizer.from_pretrained(sys.argv[1])(*sys.argv[2:], return_tensors="np")
print(jax.jit(lambda params, inputs: model(**inputs, params=params).logits)(model.params, dict(inputs)))
"""


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bpe_dir", type=Path)
    parser.add_argument("--size", choices=("base", "large"), default="base")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="benchmark-startup-") as temporary:
        folder = Path(temporary)
        fairseq_hub(folder / "fairseq", options.bpe_dir, f"roberta_{options.size}")
        model = convert(folder / "fairseq", folder / "converted")
        from transformers import FlaxRobertaForSequenceClassification

        hf = export(model, folder / "hf", to="huggingface")
        FlaxRobertaForSequenceClassification.from_pretrained(hf, from_pt=True).save_pretrained(hf)  # its own format

        program = str(Path(sys.executable).parent / "roberta-flax")
        commands = {
            "roberta-flax mnli": [program, "mnli", *PAIR, "--model", str(model)],
            "transformers, FlaxRoberta": [sys.executable, "-c", PEER, str(hf), *PAIR],
        }
        seconds: dict[tuple[str, str], list[float]] = {}
        for _ in range(options.rounds):
            for name, command in commands.items():
                cache = folder / "cache"
                shutil.rmtree(cache, ignore_errors=True)
                own = {
                    "ROBERTA_FLAX_CACHE": str(cache),
                    "JAX_COMPILATION_CACHE_DIR": str(cache),
                    "JAX_PLATFORMS": "cpu",
                }
                for state in ("cold", "warm"):
                    begin = time.perf_counter()
                    subprocess.run(command, check=True, env={**os.environ, **own}, capture_output=True)
                    seconds.setdefault((name, state), []).append(time.perf_counter() - begin)
        for (name, state), times in seconds.items():
            median = statistics.median(times)
            line(what=name, size=options.size, compiled_programs=state, seconds=round(median, 2))


if __name__ == "__main__":
    main()
