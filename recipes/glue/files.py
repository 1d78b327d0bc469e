"""GLUE's files, where its download script puts them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from roberta_flax.datasets import tables
from roberta_flax.datasets.layouts import LAYOUTS
from roberta_flax.errors import InputError, did_you_mean

# In the order of fairseq's README, which leaves out WNLI: fairseq has a task of its own for it (examples/roberta/wsc).
FOLDERS = {
    "mnli": "MNLI",
    "qnli": "QNLI",
    "qqp": "QQP",
    "rte": "RTE",
    "sst-2": "SST-2",
    "mrpc": "MRPC",
    "cola": "CoLA",
    "sts-b": "STS-B",
}


class TaskFiles(NamedTuple):
    """The files of a task: one to train on, one that chooses the best model, and MNLI's mismatched rows."""

    train: Path
    dev: Path
    mismatched: Path | None = None


def files_of(data: Path, task: str) -> TaskFiles:
    """Returns the paths of a task's files under the directory of GLUE's download script."""
    folder = data / FOLDERS[task]
    if task == "mnli":
        return TaskFiles(folder / "train.tsv", folder / "dev_matched.tsv", folder / "dev_mismatched.tsv")
    return TaskFiles(folder / "train.tsv", folder / "dev.tsv")


def chosen_tasks(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the tasks with these names, or all, with MNLI first. Raises InputError for a name of no task."""
    by_letters = {name.replace("-", ""): name for name in FOLDERS}
    chosen = []
    for name in names:
        if (task := by_letters.get(name.casefold().replace("-", "").replace("_", ""))) is None:
            left_out = "; fairseq's README has no figure for WNLI" if name.casefold() == "wnli" else ""
            close = did_you_mean(name, FOLDERS)
            raise InputError(f"{name!r} is none of GLUE's tasks {', '.join(FOLDERS)}{left_out}{close}")
        chosen.append(task)
    return tuple(task for task in FOLDERS if task in chosen or not chosen)


def check_files(data: Path, tasks: Sequence[str]) -> None:
    """Raises InputError, in one line, if a file of these tasks is missing or lacks a column."""
    paths = {path: task for task in tasks for path in files_of(data, task) if path is not None}
    if missing := [str(path.relative_to(data)) for path in paths if not path.is_file()]:
        raise InputError(
            f"{data} lacks {', '.join(missing)}; expected the folders that GLUE's download script makes; give the "
            "directory that has them, or name with --task the tasks that are there"
        )
    for path, task in paths.items():
        _check_columns(path, task)


def _check_columns(path: Path, task: str) -> None:
    layout = LAYOUTS[task]
    names = tables.column_names(path, None if layout.header else False, "tsv") or []
    if absent := [name for name in (*layout.texts, layout.label) if name not in names]:
        raise InputError(
            f"{path} has no column {', '.join(map(repr, absent))}, expected those of GLUE's {FOLDERS[task]}; its "
            f"columns are {', '.join(map(repr, names)) or '(none)'}"
        )
