"""SICK's files: split them, and read the parts."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import NamedTuple

import numpy as np

SEED = 2014
PART_SIZES = {"test": 1000, "valid": 500}  # pairs; the rest is train


class Part(NamedTuple):
    """A part of SICK.

    Attributes:
      pairs: pairs of sentences.
      judgments: their entailment judgments.
      scores: their relatedness scores, float64 [pairs].
    """

    pairs: list[tuple[str, str]]
    judgments: list[str]
    scores: np.ndarray


def split(source: Path, output: Path) -> None:
    """Splits a file of pairs at random, in the same way every time."""
    header, *rows = source.read_text(encoding="utf-8").splitlines()
    random.Random(SEED).shuffle(rows)
    output.mkdir(parents=True, exist_ok=True)
    for name, count in (*PART_SIZES.items(), ("train", len(rows) - sum(PART_SIZES.values()))):
        part, rows = rows[:count], rows[count:]
        (output / f"{name}.tsv").write_text("\n".join([header, *part]) + "\n", encoding="utf-8")
        print(json.dumps({"file": f"{name}.tsv", "pairs": len(part)}))


def read_part(path: Path) -> Part:
    header, *rows = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines())
    first, second, score, judgment = map(
        header.index, ("sentence_A", "sentence_B", "relatedness_score", "entailment_judgment")
    )
    return Part(
        [(row[first], row[second]) for row in rows],
        [row[judgment] for row in rows],
        np.array([float(row[score]) for row in rows]),
    )
