"""A comparison of the random model on a few short texts, once for all tests of what is made of it."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest

from roberta_flax import parity
from roberta_flax.parity.observation import Subject

TEXTS = (("Hello world!",), ("A man plays.", "A man sleeps."))
ONLY = ("embeddings.*", "layers.*.attention.context", "layers.*.output", "features", "*.logits", "*.loss")
BROKEN = "layers.1.attention.context"  # from here on, see `broken`


@pytest.fixture(scope="session")
def report(tiny_source: Path) -> parity.Report:
    """In float32 and bfloat16; it passes."""
    return parity.compare(tiny_source, texts=TEXTS, dtypes=("float32", "bfloat16"), only=ONLY)


@pytest.fixture(scope="session")
def failing(tiny_source: Path) -> parity.Report:
    """In float32, with a mistake put into the Flax side."""
    with pytest.MonkeyPatch.context() as patch:
        break_the_flax_side(patch)
        return parity.compare(tiny_source, texts=TEXTS, only=ONLY)


@pytest.fixture(scope="session")
def recording(tiny_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, parity.Report]:
    """A recording of the converted model, and the report that was made with it."""
    folder = tmp_path_factory.mktemp("recorded") / "recording"
    return folder, parity.compare(tiny_directory, texts=TEXTS, only=ONLY, record=folder)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Flax side has a mistake of a hundredth in one row of one value, and wrong logits."""
    break_the_flax_side(monkeypatch)


def break_the_flax_side(patch: pytest.MonkeyPatch) -> None:
    observe = Subject.observe

    @functools.wraps(observe)
    def wrong(self, *arguments, **options):
        found = observe(self, *arguments, **options)
        found[BROKEN] = found[BROKEN].copy()
        found[BROKEN][1, 2, 3] += 0.01
        if "heads.mnli.logits" in found:  # not where no wanted point needs them
            found["heads.mnli.logits"] = np.roll(found["heads.mnli.logits"], 1, axis=-1)
        return found

    patch.setattr(Subject, "observe", wrong)


@pytest.fixture
def run(run):
    """Runs the command in this process: (exit status, stdout, stderr)."""
    return functools.partial(run, "parity")
