"""The command line: `roberta-flax`. One module a subcommand; each imports what it needs when it runs.

Results go to stdout, progress and logs to stderr. Exit status: 0; 1 for an error that the user can mend, in one
line; 2 for wrong usage; 128 and the signal's number where a signal stopped a training run.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from roberta_flax.cli import (
    convert,
    decode,
    demo,
    disambiguate,
    encode,
    evaluate,
    export,
    features,
    fill_mask,
    finetune,
    groups,
    mnli,
    parity,
    perplexity,
    predict,
    preprocess,
    pretrain,
    verify,
)
from roberta_flax.errors import InputError, RobertaFlaxError, StoppedError

_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

COMMANDS = {
    "convert": convert,
    "export": export,
    "verify": verify,
    "parity": parity,
    "predict": predict,
    "evaluate": evaluate,
    "mnli": mnli,
    "features": features,
    "fill-mask": fill_mask,
    "disambiguate": disambiguate,
    "finetune": finetune,
    "preprocess": preprocess,
    "pretrain": pretrain,
    "perplexity": perplexity,
    "encode": encode,
    "decode": decode,
    "demo": demo,
}

app = typer.Typer(
    name="roberta-flax",
    help="RoBERTa in JAX: convert checkpoints, classify, extract features, fill masks, fine-tune and pretrain.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _name, _module in COMMANDS.items():
    groups.add(app, _name, _module.command)


def main() -> None:
    """Runs the program; the entry point of the console script."""
    run(app, "roberta-flax")


def run(app: typer.Typer, program: str) -> None:
    """Runs commands under a program's name, which usage and messages begin with."""
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    logging.getLogger("roberta_flax").setLevel(logging.INFO)
    try:
        with _output_written():
            app(prog_name=program)
    except StoppedError as stopped:
        print(f"{program}: {stopped}", file=sys.stderr)
        sys.exit(128 + stopped.signal)  # as a shell says it of a process that a signal ended
    except RobertaFlaxError as error:
        print(f"{program}: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"{program}: interrupted; rerun the command to resume a run over a file", file=sys.stderr)
        sys.exit(130)


@contextmanager
def _output_written() -> Iterator[None]:
    """Writes out what was printed; InputError where that cannot be, as on a full disk."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:
        if isinstance(error, RobertaFlaxError) or error.errno not in (*_CANNOT_WRITE, errno.EPIPE):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where Python's last flush goes
        if error.errno == errno.EPIPE:  # nobody reads any more: no fault
            sys.exit(1)
        raise InputError(f"cannot write the output: {error.strerror}") from None
