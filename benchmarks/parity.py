"""Measure how far base or large is from PyTorch in each dtype, and how far rounding may move it.

Prints the numbers of docs/parity.md. The benchmark writes a fairseq model with random weights (no bias is zero, no
scale is one), converts it, and compares every named tensor with fairseq itself, on the built-in rows of 1 to 512
tokens. It prints a line of JSON for each dtype: errors of some tensors, the largest ratio of an error to its tolerance,
and the decisions that agree.

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

from benchmarks.measurement import print_record
from references.fairseq import build, write
from roberta_flax.parity import Report, Run, compare
from roberta_flax.parity.rounding import DTYPES

SHOWN_TENSORS = ("embeddings.output", "layers.0.output", "features", "lm_head.logits", "heads.mnli.log_probabilities")


def print_run(report: Report, run: Run) -> None:
    worst = max(run.tensors, key=lambda tensor: tensor.tolerance_ratio)
    shown = {name: run.tensor(name) for name in SHOWN_TENSORS}
    gradients = [tensor for tensor in run.tensors if tensor.name.startswith("gradients.")]
    print_record(
        dtype=run.dtype,
        passed=run.passed,
        tensors=len(run.tensors),
        max_abs={name: float(f"{tensor.max_abs:.3g}") for name, tensor in shown.items()},
        relative={name: float(f"{tensor.relative:.3g}") for name, tensor in shown.items()},
        tolerance={name: float(f"{tensor.max_abs_tolerance:.3g}") for name, tensor in shown.items()},
        cosine_of_features=shown["features"].cosine,
        largest_tolerance_ratio=worst.tolerance_ratio,
        at=worst.name,
        largest_tolerance_ratio_of_gradients=max((tensor.tolerance_ratio for tensor in gradients), default=None),
        decisions={each.tensor: f"{each.agreed} of {each.count}, {each.ties} ties" for each in run.decisions},
        seconds=run.seconds,
        reference=report.reference["name"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bpe_dir", type=Path, help="directory with dict.txt, encoder.json and vocab.bpe")
    parser.add_argument("--size", choices=("base", "large"), default="base")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES, help="compute dtypes of the Flax model")
    parser.add_argument("--reference", default="fairseq", help="reference to compare with")
    parser.add_argument("--gradients", action="store_true", help="compare gradients too")
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
            print_run(report, run)
        print_record(size=options.size, passed=report.passed, total_seconds=time.perf_counter() - begin)


if __name__ == "__main__":
    main()
