"""Show what the TPU's compiler counts for roberta.large and for transformers' Flax model: python -m benchmarks.tpu

Needs libtpu (the extra "tpu-tests"), but no TPU. Prints lines of JSON for the program of one device: floating point
operations, and their ratio to the matrix products of the network counted by hand; bytes accessed, of arguments and of
temporaries; cycles as the compiler estimates them, and the share of the matrix units' peak that this estimate implies.
A line for each program of a peer has our cycles, bytes and memory over the peer's. KerasHub is a peer of the programs
of one chip where it is installed (the extra "keras-hub"), in its default settings and in its fastest.

  JAX_PLATFORMS=cpu python -m benchmarks.tpu [--fast] [--layers N] [--operations] [--generator G] [--only PART]

A full run takes half an hour or more on two cores. --fast asks the compiler for less effort, as tests/tpu does: it
takes a fifth of the time for the same products, but its cycles mean nothing. --layers N compiles N of the 24 layers.
--operations adds lines for the operations that take the most cycles. --generator rbg draws dropout from the hardware's
generator, which the compiler counts as little and compiles faster.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from references import keras_hub
from references.tpu import FAST, Program, Update, costs, figures, flax_compiled
from roberta_flax.nn.attention import attend

# 4 units of 128 x 128 multiply-adds (Google Cloud TPU documentation, "TPU v5e"): 197 TFLOP/s at 1.5 GHz.
V5E_FLOPS_PER_CYCLE = 2 * 4 * 128 * 128

BOTH = (
    Program("v5e:1x1"),
    Program("v5e:1x1", wanted="features", rows=16, length=512),
    Program("v5e:1x1", rows=16),
    Program("v5e:2x2"),
)
OURS = (
    Program("v5e:1x1", dtype="int8"),
    Program("v5e:2x2", tensor_parallel=4),
    Program("v5e:4x4", tensor_parallel=4, rows=256),
)
# KerasHub recomputes nothing for its gradients
UPDATES = (
    Update("v5e:1x1", rows=32),
    Update("v5e:1x1", rows=32, wanted="lm"),
    Update("v5e:1x1", rows=32, remat=False),
)
BATCH_SHAPES = ((8, 128), (16, 128), (32, 128), (64, 128), (128, 128), (4, 512), (16, 512))  # rows, length; one chip
ATTENTION_SHAPES = ((64, 128), (16, 512), (1, 8192))  # rows, length
LONG = Program("v5e:1x1", wanted="features", rows=1, length=8192, max_positions=8192)
COMPARED = ("estimated_cycles", "bytes_accessed", "flops", "peak_bytes")


def print_figures(
    compile_program: Callable[[], jax.stages.Compiled], program: Program, model: str, operations: int
) -> dict[str, float]:
    """Compiles a program, prints what the compiler counts, and returns it."""
    begin = time.perf_counter()
    compiled = compile_program()
    seconds = time.perf_counter() - begin
    counted = figures(compiled)
    share = program.hand_count() / counted["estimated_cycles"] / V5E_FLOPS_PER_CYCLE
    ratio = counted["flops"] / program.hand_count()
    derived = {"flops_over_hand_count": round(ratio, 4), "share_of_peak": round(share, 3)}
    record = {"model": model, **asdict(program), **counted, **derived, "seconds_to_compile": round(seconds, 1)}
    print(json.dumps(record), flush=True)
    for cycles, number, operation in costs(compiled)[:operations]:
        print(json.dumps({"cycles": cycles, "number": number, "operation": operation}), flush=True)
    return counted


def peers(program: Program) -> dict[str, Callable[..., jax.stages.Compiled]]:
    """Returns what compiles the same program of each peer, given compiler options."""
    compilers = {"transformers": partial(flax_compiled, program)}
    is_update = isinstance(program, Update)
    if find_spec("keras_hub") and program.mesh.size == 1 and not getattr(program, "remat", False):
        best = keras_hub.BEST_TO_TRAIN if is_update else keras_hub.BEST
        compilers["KerasHub, float32, its default"] = partial(keras_hub.compiled, program, keras_hub.DEFAULT)
        compilers["KerasHub, bfloat16"] = partial(keras_hub.compiled, program, best)
    return compilers


def compare(program: Program, options: dict[str, Any] | None, operations: int) -> None:
    """Compiles a program of ours and of each peer, and prints what the compiler counts and the ratios."""
    ours = print_figures(partial(program.compiled, options), program, "roberta-flax", operations)
    for peer, compile_program in peers(program).items():
        theirs = print_figures(partial(compile_program, options=options), program, peer, operations)
        ratios = {f"{name}_over_peer": round(ours[name] / theirs[name], 3) for name in COMPARED}
        print(json.dumps({"peer": peer, **asdict(program), **ratios}), flush=True)


def attention_functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yields functions of bfloat16 queries (scaled), keys and values, [rows, length, heads, depth]."""

    def model_attention(query: Any, key: Any, value: Any, mask: Any, implementation: str) -> Any:
        return attend(query, key, value, mask[:, None], implementation=implementation).astype(jnp.bfloat16)

    def jax_attention(query: Any, key: Any, value: Any, mask: Any) -> Any:
        return jax.nn.dot_product_attention(query, key, value, mask=mask[:, None, None], scale=1.0)

    # "chunked" is missing because the compiler counts the body of a loop once.
    yield "xla", partial(model_attention, implementation="xla")
    yield "jax.nn.dot_product_attention", jax_attention
    yield "flash", partial(model_attention, implementation="flash")


def print_attention_figures(rows: int, length: int, options: dict[str, Any] | None) -> None:
    """Compiles each attention function for one chip, and prints what the compiler counts."""
    program = Program("v5e:1x1", rows=rows, length=length)
    heads = program.config.num_heads
    depth = program.config.hidden_size // heads
    operand = program.placed((rows, length, heads, depth), jnp.bfloat16, PartitionSpec())
    mask = program.placed((rows, length), jnp.bool_, PartitionSpec())
    for name, function in attention_functions():
        compiled = jax.jit(function).lower(operand, operand, operand, mask).compile(compiler_options=options)
        hand_count = 4 * rows * length**2 * heads * depth
        counted = {"hand_count": hand_count, **figures(compiled)}
        print(json.dumps({"attention": name, "rows": rows, "length": length, **counted}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="compile with less effort")
    parser.add_argument("--layers", type=int, default=24, help="number of layers to compile")
    parser.add_argument("--operations", action="store_true", help="print the costliest operations too")
    parser.add_argument("--generator", help="of dropout's random numbers in updates, as jax.random.key takes it")
    parser.add_argument("--only", choices=("programs", "rows", "attention", "long", "train"), help="the part to run")
    arguments = parser.parse_args()
    options = FAST if arguments.fast else None
    operations = 40 if arguments.operations else 0
    logging.disable(logging.WARNING)  # transformers warns that its Flax classes are deprecated

    def of_layers(programs: Iterable[Program]) -> list[Program]:
        return [replace(program, num_layers=arguments.layers) for program in programs]

    if arguments.only in (None, "attention"):
        for rows, length in ATTENTION_SHAPES:
            print_attention_figures(rows, length, options)
    if arguments.only in (None, "programs"):
        for program in of_layers(BOTH):
            compare(program, options, operations)
    if arguments.only in (None, "train"):
        for program in of_layers(replace(update, generator=arguments.generator) for update in UPDATES):
            compare(program, options, operations)
    ours_alone = [*(OURS if arguments.only in (None, "programs") else ())]
    if arguments.only in (None, "rows"):
        ours_alone += [Program("v5e:1x1", rows=rows, length=length) for rows, length in BATCH_SHAPES]
    if arguments.only in (None, "long"):
        ours_alone.append(LONG)
    for program in of_layers(ours_alone):
        print_figures(partial(program.compiled, options), program, "roberta-flax", operations)


if __name__ == "__main__":
    main()
