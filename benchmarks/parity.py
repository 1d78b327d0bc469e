"""How far base or large is from PyTorch in each dtype, and how far rounding may bring it.

The numbers of docs/parity.md. A fairseq model with random weights (no bias zero, no scale one) is written, converted,
and compared with fairseq itself at every named value, on the built-in rows of 1 to 512 tokens. A JSON line a dtype:
errors of some values, the largest part of its bound that any value takes up, and the decisions that agree.

  python -m benchmarks.parity BPE_DIR [--size large] [--dtypes float64 float32 ...] [--gradients]
"""

from __future__ import annotations

import argparse
import logging
import shutil
import tempfile
import time
import warnings
from pathlib import Path

from benchmarks.inference import line
from references.fairseq import build, write
from roberta_flax.parity import Report, Run, compare
from roberta_flax.parity.rounding import DTYPES

SHOWN = ("embeddings.output", "layers.0.output", "features", "lm_head.logits", "heads.mnli.log_probabilities")


def show(report: Report, run: Run) -> None:
    furthest = max(run.points, key=lambda point: point.of_bound)
    shown = {point: run.point(point) for point in SHOWN}
    gradients = [point for point in run.points if point.point.startswith("gradients.")]
    line(
        dtype=run.dtype,
        passed=run.passed,
        points=len(run.points),
        max_abs={name: float(f"{point.max_abs:.3g}") for name, point in shown.items()},
        relative={name: float(f"{point.relative:.3g}") for name, point in shown.items()},
        bound={name: float(f"{point.bound_max:.3g}") for name, point in shown.items()},
        cosine_of_features=shown["features"].cosine,
        largest_part_of_a_bound=furthest.of_bound,
        at=furthest.point,
        gradients_part_of_a_bound=max((point.of_bound for point in gradients), default=None),
        decisions={each.point: f"{each.agreed} of {each.count}, {each.ties} ties" for each in run.decisions},
        seconds=run.seconds,
        reference=report.reference["name"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bpe_dir", type=Path)
    parser.add_argument("--size", choices=("base", "large"), default="base")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--reference", default="fairseq")
    parser.add_argument("--gradients", action="store_true")
    options = parser.parse_args()

    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="benchmark-parity-") as temporary:
        source = Path(temporary) / "fairseq"
        write(build(f"roberta_{options.size}"), source, options.bpe_dir)
        shutil.copy(options.bpe_dir / "dict.txt", source / "dict.txt")
        begin = time.perf_counter()
        report = compare(
            source,
            dtypes=options.dtypes,
            reference=options.reference,
            gradients=options.gradients,
            cache_dir=Path(temporary) / "cache",
        )
        for run in report.runs:
            show(report, run)
        line(size=options.size, passed=report.passed, seconds_in_all=time.perf_counter() - begin)


if __name__ == "__main__":
    main()
