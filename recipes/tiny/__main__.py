"""python -m recipes.tiny: trains the embedded model anew and writes it where the package has it."""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import roberta_flax
from recipes.tiny import training
from recipes.tiny.pairs import pairs
from recipes.tiny.released import Merges, model_file, state_dict, tokenizer_files, train_bpe, write_archive
from roberta_flax.text.tokenizer import Tokenizer

NAME = "roberta.tiny"
ARCHIVE = Path(roberta_flax.__file__).parent / "data" / f"{NAME}.tar.gz"
MERGES, MERGES_PAIRS, MERGES_SEED = 3000, 20_000, 0


def merges() -> Merges:
    """The BPE of the embedded model."""
    some = itertools.islice(pairs(MERGES_SEED), MERGES_PAIRS)
    return train_bpe((text for pair in some for text in (pair.premise, pair.hypothesis)), MERGES)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.tiny", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=ARCHIVE, help=f"default: {ARCHIVE.name} in the package")
    parser.add_argument("--steps", "--updates", type=int, default=training.STEPS, help=f"default: {training.STEPS}")
    options = parser.parse_args()
    tokenizer = tokenizer_files(merges())
    with tempfile.TemporaryDirectory() as folder:
        for name, content in tokenizer.items():
            (Path(folder) / name).write_bytes(content)
        params = training.train(Tokenizer.from_directory(Path(folder)), options.steps, Progress(options.steps))
        sizes = training.config(Tokenizer.from_directory(Path(folder)).vocab_size)
    model = model_file(state_dict(params), sizes, options.steps)
    write_archive(options.output, NAME, {"model.pt": model, **tokenizer})
    print(f"{options.output}: {options.output.stat().st_size} bytes")


class Progress:
    """Prints the mean loss of every hundred steps."""

    def __init__(self, steps: int) -> None:
        self.steps, self.begin, self.sum = steps, time.perf_counter(), 0.0

    def __call__(self, step: int, metrics: Mapping[str, Any]) -> None:
        self.sum += metrics["loss"]
        if step % 100 == 0 or step == self.steps:
            seconds = time.perf_counter() - self.begin
            print(f"{step}/{self.steps} loss {float(self.sum) / 100:.4f} {seconds:.0f} s", file=sys.stderr)
            self.sum = 0.0


if __name__ == "__main__":
    main()
