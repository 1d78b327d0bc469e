"""Measure the memory of a run over many steps: python -m benchmarks.training_memory

Fine-tunes the embedded model in the loop of `roberta-flax finetune`, with validations, checkpoints and records, on
sentences of 4 to 60 words, so that all shapes are compiled within the first steps. Prints a line of JSON: the resident
memory of the process (VmRSS in Linux's /proc) after each tenth of the steps, and how many bytes a step the second half
of them added.

  python -m benchmarks.training_memory [--steps N]
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np

import roberta_flax
from benchmarks.measurement import print_record, resident_memory
from roberta_flax.datasets import readers
from roberta_flax.datasets.recipes import recipe_of
from roberta_flax.nn.forward import Params
from roberta_flax.train import directory, head_loss, init_optimizer, loop, make_train_step
from roberta_flax.train.batches import training_batches
from roberta_flax.train.finetuning import trained_part
from roberta_flax.train.optimizer import recipe_optimizer
from roberta_flax.train.validation import Validation

STEPS, SAMPLES = 2000, 10
TASK, ROWS = "sst-2", 256
WORDS = ("a", "man", "dog", "is", "playing", "sleeping", "in", "the", "garden", "and", "runs", "over", "grass")


def write_sentences(path: Path) -> Path:
    random = np.random.default_rng(0)
    lines = (f"{' '.join(random.choice(WORDS, random.integers(4, 60)))}\t{random.integers(2)}\n" for _ in range(ROWS))
    path.write_text("sentence\tlabel\n" + "".join(lines))
    return path


def memory_over_steps(steps: int, folder: Path) -> list[int]:
    """Fine-tunes for so many steps, and returns the resident memory in bytes at each validation."""
    archive = resources.files(roberta_flax) / "data" / "roberta.tiny.tar.gz"
    with resources.as_file(archive) as source:
        roberta = roberta_flax.load(source, cache_dir=folder / "cache")
    file = write_sentences(folder / "sentences.tsv")
    reader = readers.task_reader(TASK, file, roberta.config, roberta.tokenizer)
    examples, recipe = reader.read(file), replace(recipe_of(TASK), batch_size=8)
    config, params = trained_part(roberta, reader.head, recipe, seed=1)
    schedule, optimizer = recipe_optimizer(recipe, config=config, warmup_steps=0, total_steps=steps)
    validation = Validation(examples, TASK, config=config, tokenizer=roberta.tokenizer, labels=reader.labels)
    saved = replace(config, lm_head=False)
    found: list[int] = []

    def validate(params: Params) -> dict[str, float]:
        values = validation(params)
        found.append(resident_memory())
        return values

    loop.run(
        make_train_step(head_loss(TASK, config=config), optimizer),
        params,
        init_optimizer(optimizer, params),
        training_batches(examples, batch_size=8, pad_id=config.pad_id, max_positions=config.max_positions, seed=1),
        plan=loop.Plan(steps, validate_every=steps // SAMPLES, save_every=steps // (2 * SAMPLES)),
        directory=folder / "run",
        config_note={},
        schedule=schedule,
        validate=validate,
        save_best=lambda params: directory.save_best(folder / "run", saved, params, roberta.tokenizer),
        progress=False,
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = memory_over_steps(options.steps, Path(folder))
    added = (found[SAMPLES - 1] - found[SAMPLES // 2 - 1]) / (options.steps / 2)
    megabytes = [round(memory / 2**20, 1) for memory in found]
    print_record(steps=options.steps, megabytes=megabytes, bytes_per_step=round(added))


if __name__ == "__main__":
    main()
