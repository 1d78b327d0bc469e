"""Time `from roberta_flax import load` and `import jax, flax.nnx` in new processes: python -m benchmarks.import_time"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial

from benchmarks.measurement import median_seconds

ROUNDS = 7
STATEMENTS = ("import jax, flax.nnx", "from roberta_flax import load")


def import_in_fresh_process(statement: str) -> None:
    subprocess.run([sys.executable, "-c", statement], check=True)


def main() -> None:
    """Measures and prints the medians and their ratio."""
    functions = {statement: partial(import_in_fresh_process, statement) for statement in STATEMENTS}
    median_seconds(1, functions)  # reads the files into the cache of the disk
    medians = median_seconds(ROUNDS, functions)
    ratio = medians[STATEMENTS[1]] / medians[STATEMENTS[0]]
    print(json.dumps({**{name: round(median, 3) for name, median in medians.items()}, "ratio": round(ratio, 3)}))


if __name__ == "__main__":
    main()
