"""Train the embedded model and write its archive into the package: python -m recipes.tiny"""

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
from recipes.tiny.fairseq_archive import Merges, model_file, state_dict, tokenizer_files, train_bpe, write_archive
from recipes.tiny.pairs import generate_pairs
from roberta_flax.text.tokenizer import Tokenizer

NAME = "roberta.tiny"
ARCHIVE = Path(roberta_flax.__file__).parent / "data" / f"{NAME}.tar.gz"
NUM_MERGES, MERGES_PAIRS, MERGES_SEED = 3000, 20_000, 0
STEPS_PER_LINE = 100


def merges() -> Merges:
    """Trains the BPE of the embedded model."""
    pairs = itertools.islice(generate_pairs(MERGES_SEED), MERGES_PAIRS)
    return train_bpe((text for pair in pairs for text in (pair.premise, pair.hypothesis)), NUM_MERGES)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.tiny", description=__doc__)
    parser.add_argument(
        "-o", "--output", type=Path, default=ARCHIVE, help=f"archive to write (default: {ARCHIVE.name} in the package)"
    )
    parser.add_argument(
        "--steps", "--updates", type=int, default=training.STEPS, help="number of steps (default: %(default)s)"
    )
    options = parser.parse_args()
    files = tokenizer_files(merges())
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        tokenizer = Tokenizer.from_directory(Path(folder))
        params = training.train(tokenizer, options.steps, Progress(options.steps))
        config = training.config(tokenizer.vocab_size)
    model = model_file(state_dict(params), config, options.steps)
    write_archive(options.output, NAME, {"model.pt": model, **files})
    print(f"{options.output}: {options.output.stat().st_size} bytes")


class Progress:
    """Prints the mean loss of every STEPS_PER_LINE steps."""

    def __init__(self, steps: int) -> None:
        self.steps, self.begin, self.total_loss = steps, time.perf_counter(), 0.0

    def __call__(self, step: int, metrics: Mapping[str, Any]) -> None:
        self.total_loss += metrics["loss"]
        if step % STEPS_PER_LINE == 0 or step == self.steps:
            seconds = time.perf_counter() - self.begin
            loss = float(self.total_loss) / STEPS_PER_LINE
            print(f"{step}/{self.steps} loss {loss:.4f} {seconds:.0f} s", file=sys.stderr)
            self.total_loss = 0.0


if __name__ == "__main__":
    main()
