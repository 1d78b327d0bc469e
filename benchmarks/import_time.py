"""`from roberta_flax import load` beside `import jax, flax.nnx`, each in a fresh process, in turn.

python -m benchmarks.import_time
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

ROUNDS = 7
STATEMENTS = ("import jax, flax.nnx", "from roberta_flax import load")


def main() -> None:
    """Measures and prints medians, and their ratio."""
    seconds: dict[str, list[float]] = {statement: [] for statement in STATEMENTS}
    for _ in range(ROUNDS + 1):
        for statement in STATEMENTS:
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-c", statement], check=True)
            seconds[statement].append(time.perf_counter() - begin)
    medians = {statement: statistics.median(times[1:]) for statement, times in seconds.items()}
    ratio = medians[STATEMENTS[1]] / medians[STATEMENTS[0]]
    print(json.dumps({**{name: round(median, 3) for name, median in medians.items()}, "ratio": round(ratio, 3)}))


if __name__ == "__main__":
    main()
