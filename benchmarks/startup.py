"""Time the first answer of `roberta-flax mnli` in fresh processes: python -m benchmarks.startup BPE_DIR

A process imports, loads, compiles and runs a converted model with random weights, whose files are in the cache of the
disk. Cold means that nothing is compiled yet; warm, that an earlier run left its programs in the cache. The peer is
FlaxRobertaForSequenceClassification of transformers (4.57), whose programs JAX caches in the same way. Prints medians.

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

from benchmarks.inference import fairseq_hub
from benchmarks.measurement import print_record
from roberta_flax.convert import convert, export

PAIR = ("A man is sleeping.", "Nobody is awake.")
PEER_PROGRAM = """
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
    parser.add_argument("bpe_dir", type=Path, help="directory with dict.txt, encoder.json and vocab.bpe")
    parser.add_argument("--size", choices=("base", "large"), default="base")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="benchmark-startup-") as temporary:
        folder = Path(temporary)
        fairseq_hub(folder / "fairseq", options.bpe_dir, f"roberta_{options.size}")
        model = convert(folder / "fairseq", folder / "converted")
        program = str(Path(sys.executable).parent / "roberta-flax")
        commands = {
            "roberta-flax mnli": [program, "mnli", *PAIR, "--model", str(model)],
            "transformers, FlaxRoberta": [
                sys.executable,
                "-c",
                PEER_PROGRAM,
                str(export_for_flax(model, folder)),
                *PAIR,
            ],
        }
        seconds: dict[tuple[str, str], list[float]] = {}
        for _ in range(options.rounds):
            for name, command in commands.items():
                for state, elapsed in time_cold_and_warm(command, folder / "cache").items():
                    seconds.setdefault((name, state), []).append(elapsed)
        for (name, state), times in seconds.items():
            median = statistics.median(times)
            print_record(what=name, size=options.size, compiled_programs=state, seconds=round(median, 2))


def export_for_flax(model: Path, folder: Path) -> Path:
    """Exports a converted model in the format of transformers' Flax classes."""
    from transformers import FlaxRobertaForSequenceClassification

    exported = export(model, folder / "transformers", to="huggingface")
    FlaxRobertaForSequenceClassification.from_pretrained(exported, from_pt=True).save_pretrained(exported)
    return exported


def time_cold_and_warm(command: list[str], cache: Path) -> dict[str, float]:
    """Returns the seconds that a command takes with an empty cache of programs, and then with the cache it filled."""
    shutil.rmtree(cache, ignore_errors=True)
    environment = {
        "ROBERTA_FLAX_CACHE": str(cache),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PLATFORMS": "cpu",
    }
    seconds = {}
    for state in ("cold", "warm"):
        begin = time.perf_counter()
        subprocess.run(command, check=True, env={**os.environ, **environment}, capture_output=True)
        seconds[state] = time.perf_counter() - begin
    return seconds


if __name__ == "__main__":
    main()
