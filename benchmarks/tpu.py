"""What the TPU's compiler counts of roberta.large, beside transformers' Flax model: python -m benchmarks.tpu

Needs no TPU, but libtpu (the extra tpu-tests). JSON lines, of one device's program: floating point operations, and
their ratio to the network's matrix products counted by hand; bytes accessed, of arguments and of temporaries; cycles,
as the compiler guesses them, and the share of the matrix units' peak that the guess comes to.

  JAX_PLATFORMS=cpu python -m benchmarks.tpu [--fast] [--layers N] [--only programs|rows|attention]

All of it takes a quarter of an hour or more on two cores. --fast asks the compiler for less effort, as tests/tpu does:
a fifth of the time, for the same products; its cycles then mean nothing. --layers N compiles that many of 24 layers.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.flash_attention import SegmentIds, flash_attention
from jax.sharding import PartitionSpec

from references.tpu import FAST, Program, figures, flax_compiled
from roberta_flax.nn.attention import attend

# 4 units of 128 x 128 multiply-adds (Google Cloud TPU documentation, "TPU v5e"): 197 TFLOP/s at 1.5 GHz.
V5E_FLOPS_A_CYCLE = 2 * 4 * 128 * 128

PROGRAMS = (
    Program("v5e:1x1"),
    Program("v5e:1x1", wanted="features", rows=16, length=512),
    Program("v5e:1x1", dtype="int8"),
    Program("v5e:2x2"),
    Program("v5e:2x2", tensor_parallel=4),
    Program("v5e:4x4", tensor_parallel=4, rows=256),
)
OF_TRANSFORMERS = (PROGRAMS[0], PROGRAMS[1], PROGRAMS[3])
ROWS = ((8, 128), (16, 128), (32, 128), (64, 128), (128, 128), (4, 512), (16, 512))  # and length, on one chip
ATTENTION = ((64, 128), (16, 512))  # rows and length


def line(compiled: Callable[[], jax.stages.Compiled], program: Program, **what: Any) -> None:
    begin = time.perf_counter()
    counted = figures(compiled())
    seconds = time.perf_counter() - begin
    share = program.hand_count() / counted["estimated_cycles"] / V5E_FLOPS_A_CYCLE
    ratio = counted["flops"] / program.hand_count()
    print(
        json.dumps(
            {**what, **counted, "flops_over_hand_count": round(ratio, 4), "share_of_peak": round(share, 3)}
            | {"seconds_to_compile": round(seconds, 1)}
        ),
        flush=True,
    )


def attentions(rows: int, length: int) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Of projected queries, keys and values [rows, length, heads, depth], queries scaled, in bfloat16."""

    def of_the_model(query: Any, key: Any, value: Any, mask: Any) -> Any:
        return attend(query, key, value, mask[:, None], implementation="xla").astype(jnp.bfloat16)

    def of_jax(query: Any, key: Any, value: Any, mask: Any) -> Any:
        return jax.nn.dot_product_attention(query, key, value, mask=mask[:, None, None], scale=1.0)

    def flash(query: Any, key: Any, value: Any, mask: Any) -> Any:
        segments = SegmentIds(q=jnp.ones((rows, length), jnp.int32), kv=mask.astype(jnp.int32))
        query, key, value = (x.transpose(0, 2, 1, 3) for x in (query, key, value))
        return flash_attention(query, key, value, segment_ids=segments).transpose(0, 2, 1, 3)

    # not "chunked": the compiler counts a loop's body once
    yield "xla", of_the_model
    yield "jax.nn.dot_product_attention", of_jax
    yield "pallas flash attention", flash


def attention(rows: int, length: int, options: dict[str, Any] | None) -> None:
    program = Program("v5e:1x1", rows=rows, length=length)
    heads = program.config.num_heads
    depth = program.config.hidden_size // heads
    operand = program.placed((rows, length, heads, depth), jnp.bfloat16, PartitionSpec())
    mask = program.placed((rows, length), jnp.bool_, PartitionSpec())
    for name, function in attentions(rows, length):
        compiled = jax.jit(function).lower(operand, operand, operand, mask).compile(compiler_options=options)
        hand_count = 4 * rows * length**2 * heads * depth
        counted = {"hand_count": hand_count, **figures(compiled)}
        print(json.dumps({"attention": name, "rows": rows, "length": length, **counted}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--only", choices=("programs", "rows", "attention"))
    arguments = parser.parse_args()
    options = FAST if arguments.fast else None
    logging.disable(logging.WARNING)  # transformers says that its Flax classes are deprecated

    if arguments.only in (None, "attention"):
        for rows, length in ATTENTION:
            attention(rows, length, options)
    if arguments.only in (None, "programs"):
        for program in (replace(program, num_layers=arguments.layers) for program in PROGRAMS):
            line(partial(program.compiled, options), program, model="roberta-flax", **asdict(program))
        for program in (replace(program, num_layers=arguments.layers) for program in OF_TRANSFORMERS):
            line(partial(flax_compiled, program, options), program, model="transformers", **asdict(program))
    if arguments.only in (None, "rows"):
        for rows, length in ROWS:
            program = Program("v5e:1x1", rows=rows, length=length, num_layers=arguments.layers)
            line(partial(program.compiled, options), program, model="roberta-flax", **asdict(program))


if __name__ == "__main__":
    main()
