"""Comparisons of the random model on a few short texts, run once for all tests of reports."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest

from roberta_flax import parity
from roberta_flax.parity.subject import Subject

TEXTS = (("Hello world!",), ("A man plays.", "A man sleeps."))
ONLY = ("embeddings.*", "layers.*.attention.context", "layers.*.output", "features", "*.logits", "*.loss")
BROKEN = "layers.1.attention.context"  # the first wrong tensor; see `broken_flax_model`


@pytest.fixture(scope="session")
def report(tiny_source: Path) -> parity.Report:
    """A report in float32 and bfloat16 that passes."""
    return parity.compare(tiny_source, texts=TEXTS, dtypes=("float32", "bfloat16"), only=ONLY)


@pytest.fixture(scope="session")
def failing_report(tiny_source: Path) -> parity.Report:
    """A report in float32 of a Flax model with a mistake."""
    with pytest.MonkeyPatch.context() as patch:
        break_flax_model(patch)
        return parity.compare(tiny_source, texts=TEXTS, only=ONLY)


@pytest.fixture(scope="session")
def recording(tiny_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, parity.Report]:
    """A recording of the converted model, and the report of the comparison that recorded it."""
    folder = tmp_path_factory.mktemp("recorded") / "recording"
    return folder, parity.compare(tiny_directory, texts=TEXTS, only=ONLY, record=folder)


@pytest.fixture
def broken_flax_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adds 0.01 to one element of a tensor of the Flax model, and permutes the logits of its head."""
    break_flax_model(monkeypatch)


def break_flax_model(patch: pytest.MonkeyPatch) -> None:
    observe = Subject.observe

    @functools.wraps(observe)
    def observe_wrong_values(self, *arguments, **options):
        values = observe(self, *arguments, **options)
        values[BROKEN] = values[BROKEN].copy()
        values[BROKEN][1, 2, 3] += 0.01
        if "heads.mnli.logits" in values:  # missing if no tensor to compare needs them
            values["heads.mnli.logits"] = np.roll(values["heads.mnli.logits"], 1, axis=-1)
        return values

    patch.setattr(Subject, "observe", observe_wrong_values)


@pytest.fixture
def run(run):
    """Runs `roberta-flax parity` in this process; returns (exit status, stdout, stderr)."""
    return functools.partial(run, "parity")
