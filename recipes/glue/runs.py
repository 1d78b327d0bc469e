"""Fine-tunes a model on GLUE's tasks, once for each seed, and records what each task reached."""

from __future__ import annotations

import json
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
from roberta_flax.train.finetuning import FineTuning, SeedResults
from roberta_flax.train.progress import report

AFTER_MNLI = ("rte", "mrpc", "sts-b")  # Liu et al. (2019), section 5.1: for the submission to the leaderboard


@dataclass(frozen=True)
class Suite:
    """The runs of GLUE's tasks in one directory.

    OUTPUT/rte has the runs of RTE, as `roberta-flax finetune` leaves them, and OUTPUT/rte.json what they reached.

    Attributes:
      data: the directory of GLUE's files.
      output: the directory of the runs.
      model: the model to fine-tune, and how it computes.
      devices: the devices that share a batch.
      seeds: one run for each.
      after_mnli: whether to train AFTER_MNLI from the best MNLI model in the place of `model`.
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
        """Raises InputError if a task cannot begin: its MNLI model is not there, or its batches cannot be divided."""
        if "mnli" not in tasks and any(map(self._starts_from_mnli, tasks)):
            self._mnli_model()
        for task in tasks:
            self.recipe(task)

    def record(self, task: str) -> dict[str, Any] | None:
        """Returns what a task reached; None if it has not ended."""
        path = self._record_file(task)
        try:
            record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return record
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise InputError(f"cannot read {path}: {error}; remove it to evaluate the task again") from None

    def run(self, task: str) -> None:
        """Fine-tunes on a task, or resumes; a task that has ended with these seeds and files is not run again.

        Raises:
          InputError, DivergedError, StoppedError: as in FineTuning.run_seeds.
        """
        note = self._note(task)
        record = self.record(task)
        if record is not None and record["note"] == note:
            report(f"{FOLDERS[task]} has ended, as {self._record_file(task)} says")
            return
        results = self._train(task)
        rows = [self._row(task, [result.evaluation.metrics for result in results.results])]
        if (mismatched := files_of(self.data, task).mismatched) is not None:
            evaluations = [self._evaluate(results.model_of(seed), mismatched) for seed in self.seeds]
            rows.append(self._row("mnli-mm", evaluations))
        write_json(self._record_file(task), {"note": note, "best_model": str(results.best_model), "rows": rows})

    def _train(self, task: str) -> SeedResults:
        files, recipe = files_of(self.data, task), self.recipe(task)
        models = [self._load(task)]
        tuning = FineTuning.of_files(
            models[0], task, files.train, files.dev, recipe=recipe, steps=self.steps,
            numerics=self.model.numerics(remat=self.remat),
        )  # fmt: skip
        report(f"{FOLDERS[task]}\n{tuning.to_text()}")
        results = tuning.run_seeds(
            lambda: models.pop() if models else self._load(task),  # a run uses its model up
            self.output / task,
            self.seeds,
            mesh=self.devices.mesh(recipe.batch_size),
        )
        report(results.to_text())
        return results

    def _load(self, task: str) -> Roberta:
        """Loads the model that a task starts from."""
        if not self._starts_from_mnli(task):
            return self.model.load()
        keep_programs(self.model.cache_dir)
        open_devices()
        return hub.load(self._mnli_model(), **self.model.arguments())

    def _mnli_model(self) -> Path:
        if (record := self.record("mnli")) is None:
            raise InputError(f"{self.output} has no MNLI model; add --task mnli, or leave out --after-mnli")
        return Path(record["best_model"])

    def _evaluate(self, best: Path, file: Path) -> dict[str, float]:
        """Returns the metrics of a run's best model on another file of its task."""
        return evaluate(hub.load(best, **self.model.arguments()), file).evaluation.metrics

    def _row(self, task: str, evaluations: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        """Returns a row of the table, with the value of the main metric for each seed."""
        metric = LAYOUTS["mnli" if task == "mnli-mm" else task].metrics[0]
        values = [metrics[metric] for metrics in evaluations]
        published = self._published(task)
        return {
            "task": task,
            "metric": metric,
            "values": dict(zip(map(str, self.seeds), values, strict=True)),
            "median": statistics.median(values),
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

    def _note(self, task: str) -> dict[str, Any]:
        """Returns what the results of this task alone depend on, as a JSON object."""
        files = [path for path in files_of(self.data, task) if path is not None]
        return {"seeds": list(self.seeds), "files": {path.name: file_sha256(path) for path in files}}

    def _record_file(self, task: str) -> Path:
        return self.output / f"{task}.json"


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, whole or not at all, in the place of the one before."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file in the same way."""
    with replacing(path) as file:
        file.write(text.encode())
