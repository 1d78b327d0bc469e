"""Options that several subcommands share, and how results are printed."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from roberta_flax.convert.cache import resolve

if TYPE_CHECKING:
    from roberta_flax.hub import Roberta
    from roberta_flax.nn.config import RobertaConfig

CacheDir = Annotated[
    Path | None,
    typer.Option(help="Where downloads and conversions are kept. [default: ROBERTA_FLAX_CACHE, or the user's cache]"),
]
CheckpointFile = Annotated[str, typer.Option(help="The checkpoint's name in a fairseq directory or archive.")]
BpeDir = Annotated[
    Path | None,
    typer.Option(help="Where encoder.json and vocab.bpe are, if not beside the checkpoint and not GPT-2's."),
]
Model = Annotated[
    str,
    typer.Option("--model", "-m", help="A released name, a fairseq directory, .tar.gz or .pt, or a converted one."),
]
Dtype = Annotated[str, typer.Option(help="Of the computation: float32, bfloat16, float16.")]
Precision = Annotated[
    str | None,
    typer.Option(help="Of matrix products: default, high, highest (float32 parity on TPU and GPU)."),
]
Quantize = Annotated[
    str | None, typer.Option(help="int8: the layers' products in int8, which takes a quarter of their memory.")
]
MaxLength = Annotated[
    int | None, typer.Option(help="Tokens of an input of a file, at most, from 8. [default: the model's]")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@dataclass(frozen=True)
class Loading:
    """The options that say which model is loaded, and how."""

    model: str
    dtype: str
    precision: str | None
    quantize: str | None
    checkpoint_file: str
    bpe_dir: Path | None
    cache_dir: Path | None

    def load(self) -> Roberta:
        """The model. Programs that are compiled for it are kept in the cache, so that the next run starts at once."""
        from roberta_flax import hub

        keep_programs(self.cache_dir)
        return hub.load(self.directory(), dtype=self.dtype, precision=self.precision, quantize=self.quantize)

    def note(self) -> dict[str, Any]:
        """Which model it is, and that it has not changed, for a job that may be stopped and go on."""
        from roberta_flax.checkpoint import converted

        stat = (self.directory() / converted.PARAMS_FILE).stat()
        return {"model": self.model, "parameters": [stat.st_size, stat.st_mtime_ns]}

    def config(self) -> RobertaConfig:
        """The model's sizes and heads."""
        from roberta_flax.checkpoint import converted

        return converted.read_config(self.directory())

    def directory(self) -> Path:
        """The converted model's."""

        return resolve(self.model, checkpoint_file=self.checkpoint_file, bpe_dir=self.bpe_dir, cache_dir=self.cache_dir)


def keep_programs(cache_dir: Path | None) -> None:
    """Has JAX keep the programs that it compiles in the cache, for later runs."""
    import jax

    from roberta_flax.checkpoint import download

    settings = {
        "jax_compilation_cache_dir": str(download.cache_dir(cache_dir) / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0.2,
    }
    for name, value in settings.items():
        jax.config.update(name, value)  # type: ignore[no-untyped-call]


def print_json(result: Any) -> None:
    """One JSON value on stdout; text stays readable in any script."""
    json.dump(result, sys.stdout, ensure_ascii=False)
    sys.stdout.write("\n")
