"""Fine-tunes a model on GLUE's tasks, once for each seed, and records what each task reached."""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from recipes.glue.files import FOLDERS, files_of
from roberta_flax import hub
from roberta_flax.checkpoint import converted
from roberta_flax.cli.accelerators import open_devices
from roberta_flax.cli.options import MeshOptions, ModelOptions, keep_programs
from roberta_flax.convert.cache import released_name
from roberta_flax.datasets.layouts import LAYOUTS
from roberta_flax.datasets.recipes import PublishedScore, Recipe, published_score, recipe_of
from roberta_flax.errors import InputError
from roberta_flax.files import file_sha256, replacing
from roberta_flax.hub import Roberta
from roberta_flax.inference.evaluation import evaluate
from roberta_flax.train.directory import BEST, CHECKPOINTS
from roberta_flax.train.finetuning import FineTuning
from roberta_flax.train.progress import report

AFTER_MNLI = ("rte", "mrpc", "sts-b")  # Liu et al. (2019), section 5.1: for the submission to the leaderboard


@dataclass(frozen=True)
class Suite:
    """The runs of GLUE's tasks in one directory.

    OUTPUT/rte/seed-1 is a run of RTE, as `roberta-flax finetune` leaves it, but without checkpoints once it has ended,
    and OUTPUT/rte/seed-1.json says what it reached.

    Attributes:
      data: the directory of GLUE's files.
      output: the directory of the runs.
      model: the model to fine-tune, and how it computes.
      devices: the devices that share a batch.
      seeds: one run for each.
      after_mnli: whether to train AFTER_MNLI from the MNLI model of the same seed in the place of `model`.
      steps: the number of steps of each run, in the place of the recipe's.
      batch_size: number of examples that are computed together, as many as the recipe's or fewer; a step has as many as
        the recipe's in any case.
      remat: whether to recompute layers for their gradients.
    """

    data: Path
    output: Path
    model: ModelOptions
    devices: MeshOptions
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    after_mnli: bool = False
    steps: int | None = None
    batch_size: int | None = None
    remat: bool = False

    def settings(self) -> dict[str, Any]:
        """Returns what the results of all tasks depend on, as a JSON object."""
        numerics = self.model.numerics()
        return {
            "sha256": file_sha256(self.model.directory() / converted.PARAMS_FILE),
            "after_mnli": self.after_mnli,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "dtype": numerics.dtype.name,
            "precision": None if numerics.precision is None else numerics.precision.name.lower(),
            "attention": numerics.attention,
        }

    def check(self, tasks: Sequence[str]) -> None:
        """Raises InputError for seeds that cannot be, and if a task cannot begin.

        It cannot if its MNLI model is not there, or if its batches cannot be divided over the devices.
        """
        if len(set(self.seeds)) != len(self.seeds) or not all(0 <= seed < 2**32 for seed in self.seeds):
            raise InputError(
                f"seeds must be distinct numbers from 0 to 2**32 - 1, got {', '.join(map(str, self.seeds))}"
            )
        for task in tasks:
            self.devices.mesh(self.recipe(task).batch_size)
            if self._starts_from_mnli(task) and "mnli" not in tasks:
                self._require_mnli()

    def rows(self, task: str) -> list[dict[str, Any]]:
        """Returns the rows of the table for a task's seeds that have ended; MNLI has two rows."""
        records = self._records(task)
        names = list(next(iter(records.values()))["metrics"]) if records else []
        return [self._row(name, {seed: record["metrics"][name] for seed, record in records.items()}) for name in names]

    def run(self, task: str) -> None:
        """Fine-tunes on a task with each seed, or resumes; seeds that have ended are not run again.

        Raises:
          InputError: the task's files have changed since a seed ended, or as in FineTuning.run.
          DivergedError, StoppedError: as in FineTuning.run.
        """
        sums = {path.name: file_sha256(path) for path in files_of(self.data, task) if path is not None}
        records = self._records(task)
        for seed, record in records.items():
            if record["files"] != sums:
                raise InputError(
                    f"{self._record_file(task, seed)} is of other files than those in {self.data / FOLDERS[task]}; "
                    "give the same files, or choose another directory"
                )
        left = [seed for seed in self.seeds if seed not in records]
        if not left:
            report(f"{FOLDERS[task]} has ended with these seeds, as {self.output / task} says")
            return
        first = [self._load(task, left[0])]
        tuning = self._tuning(task, first[0])
        report(f"{FOLDERS[task]}\n{tuning.to_text()}")
        for seed in left:
            roberta = first.pop() if first else self._load(task, seed)
            metrics = self._train(task, tuning, roberta, seed)
            write_json(self._record_file(task, seed), {"files": sums, "metrics": metrics})
            shutil.rmtree(self._directory(task, seed) / CHECKPOINTS, ignore_errors=True)  # gigabytes, not needed again

    def _tuning(self, task: str, roberta: Roberta) -> FineTuning:
        files = files_of(self.data, task)
        return FineTuning.of_files(
            roberta, task, files.train, files.dev, recipe=self.recipe(task), steps=self.steps, keep=1,
            numerics=self.model.numerics(remat=self.remat),
        )  # fmt: skip

    def _train(self, task: str, tuning: FineTuning, roberta: Roberta, seed: int) -> dict[str, dict[str, float]]:
        """Fine-tunes with one seed, or resumes. Returns the best model's metrics for each row of the table."""
        directory = self._directory(task, seed)
        result = tuning.run(roberta, directory, seed=seed, mesh=self.devices.mesh(tuning.recipe.batch_size))
        report(f"{FOLDERS[task]}, seed {seed}: {result.evaluation.to_text().splitlines()[0]}")
        metrics = {task: result.evaluation.metrics}
        if (mismatched := files_of(self.data, task).mismatched) is not None:
            best = hub.load(directory / BEST, **self.model.arguments())
            metrics["mnli-mm"] = evaluate(best, mismatched).evaluation.metrics
        return metrics

    def _load(self, task: str, seed: int) -> Roberta:
        """Loads the model that a run starts from."""
        if not self._starts_from_mnli(task):
            return self.model.load()
        self._require_mnli()
        keep_programs(self.model.cache_dir)
        open_devices()
        return hub.load(self._directory("mnli", seed) / BEST, **self.model.arguments())

    def _require_mnli(self) -> None:
        if missing := set(self.seeds) - self._records("mnli").keys():
            raise InputError(
                f"{self.output} has no MNLI model of seed {min(missing)}; add --task mnli, or leave out --after-mnli"
            )

    def _row(self, task: str, metrics: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
        """Returns a row of the table, with the value of the main metric for each seed."""
        metric = LAYOUTS["mnli" if task == "mnli-mm" else task].metrics[0]
        values = {str(seed): found[metric] for seed, found in metrics.items()}
        published = self._published(task)
        return {
            "task": task,
            "metric": metric,
            "values": values,
            "median": statistics.median(values.values()),
            "published": None if published is None else asdict(published),
        }

    def _published(self, task: str) -> PublishedScore | None:
        released = released_name(self.model.model, converted.read_config(self.model.directory()))
        if released is not None and self._starts_from_mnli(task):
            released = f"{released}.mnli"
        return published_score(released, task)

    def _starts_from_mnli(self, task: str) -> bool:
        return self.after_mnli and task in AFTER_MNLI

    def recipe(self, task: str) -> Recipe:
        """Returns fairseq's recipe, in batches of `batch_size`."""
        recipe = recipe_of(task)
        if self.batch_size is None or self.batch_size >= recipe.batch_size:
            return recipe
        batches, rest = divmod(recipe.batch_size, self.batch_size)
        if rest:
            raise InputError(
                f"--batch-size must divide the {recipe.batch_size} examples of a step, got {self.batch_size}"
            )
        return replace(recipe, batch_size=self.batch_size, update_freq=batches)

    def _directory(self, task: str, seed: int) -> Path:
        return self.output / task / f"seed-{seed}"

    def _record_file(self, task: str, seed: int) -> Path:
        return self.output / task / f"seed-{seed}.json"

    def _records(self, task: str) -> dict[int, dict[str, Any]]:
        """Returns what each seed that has ended reached, in the order of the seeds."""
        names = (path.stem.removeprefix("seed-") for path in (self.output / task).glob("seed-*.json"))
        seeds = sorted(int(name) for name in names if name.isdecimal())
        return {seed: self._read(self._record_file(task, seed)) for seed in seeds}

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"cannot read {path}: {error}; choose another directory") from None
        return record


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, whole or not at all, in the place of the one before."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file in the same way."""
    with replacing(path) as file:
        file.write(text.encode())
