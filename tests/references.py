"""references.fairseq for tests: where fairseq is not installed, the modules that import this are skipped."""

from __future__ import annotations

from tests.conftest import skip_or_fail

try:
    from references.fairseq import (
        SMALL,
        STYLES,
        RobertaModel,
        all_hidden,
        build,
        dictionary,
        in_the_names_of_2019,
        load,
        random_tokens,
        torch,
        write,
    )
except ImportError as error:
    skip_or_fail(f"fairseq, the reference, cannot be imported ({error}); the README's test command installs it")

__all__ = [
    "SMALL",
    "STYLES",
    "RobertaModel",
    "all_hidden",
    "build",
    "dictionary",
    "in_the_names_of_2019",
    "load",
    "random_tokens",
    "torch",
    "write",
]
