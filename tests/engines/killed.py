"""What the tests of engines send to workers, which import this module."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roberta_flax import Classify
from roberta_flax.text.encoding import EncodedInput, OnLong
from roberta_flax.text.tokenizer import Tokenizer

FATAL = "the last words of a worker"
KILLED = "killed"


@dataclass(frozen=True)
class KilledOnce(Classify):
    """Classify. The first process that meets the text FATAL is killed; every process leaves a file of its id.

    Attributes:
      folder: where, and where a file KILLED says that it has happened.
    """

    folder: str = ""

    def encode(
        self, tokenizer: Tokenizer, inputs: Sequence[Any], max_length: int, on_long: OnLong
    ) -> list[EncodedInput]:
        Path(self.folder, str(os.getpid())).touch()
        if any(given[1] == FATAL for given in inputs):
            try:
                Path(self.folder, KILLED).touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(tokenizer, inputs, max_length, on_long)


def pids(folder: Path) -> set[int]:
    """The processes that worked."""
    return {int(file.name) for file in folder.iterdir() if file.name != KILLED}


def rows(pairs: Sequence[tuple[str, str]], count: int) -> list[tuple[int, str | None, str]]:
    """Rows of an id, a premise and a hypothesis; in each hundredth the premise is missing, and one is FATAL."""
    some = [(i, *pairs[i]) if i % 100 else (i, None, "x") for i in range(count)]
    some[count // 2 + 1] = (count // 2 + 1, pairs[0][0], FATAL)
    return some
