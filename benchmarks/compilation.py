"""Show what a TPU's first run spends on compiling, and what scanning over stacked layers would change.

`python -m benchmarks.compilation programs` compiles roberta.large.mnli for one TPU v5e chip (as benchmarks.tpu does,
without a TPU), with its layers one after the other and as a scan over one stack of them, and prints CPU seconds, the
compiler's estimate of cycles, and bytes of the program. In "scan, one kernel sliced" the second feed-forward kernel is
copied out of the stack before its product; in "scan, all sliced" every parameter is.

`python -m benchmarks.compilation run` lays out a million rows of random lengths for a TPU as Predictor does. It prints
for each distribution of lengths the number of shapes, the seconds of computing that these estimates imply at 1.5 GHz,
and the share of compiling in the whole, in sequence and several at once.

  JAX_PLATFORMS=cpu python -m benchmarks.compilation programs [--layers N] [--rows N] [--length N]
  JAX_PLATFORMS=cpu python -m benchmarks.compilation run [--seconds S] [--megacycles M]
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from flax import nnx
from jax import lax

from benchmarks.measurement import print_record
from references.tpu import HEAD, Program, figures
from roberta_flax import Numerics
from roberta_flax.inference.predictor import COMPILED_AT_ONCE, LENGTH_MULTIPLE, TOKENS_PER_BATCH, WINDOW
from roberta_flax.nn import forward
from roberta_flax.nn.model import FIRST_TOKEN, FeedForward, attention_mask
from roberta_flax.text import batching

HERTZ = 1.5e9
NUMERICS = Numerics("bfloat16")


def head_logits_by_scan(params: Any, tokens: Any, program: Program, sliced: tuple[str, ...] | None) -> Any:
    """forward.head_logits of a tree in which `layers` are one stack of all layers but the last, which is `last`."""
    stack, one = params["layers"], dataclasses.replace(program.config, num_layers=1)
    network = forward.network(
        {name: node for name, node in params.items() if name != "last"} | {"layers": {"0": params["last"]}},
        one,
        NUMERICS,
    )
    last = network.layers[0]
    graphdef, _ = nnx.split(last)
    mask = attention_mask(tokens == one.pad_id, None)

    def run(x: Any, layer: Any) -> tuple[Any, None]:
        if sliced is None:
            layer = lax.optimization_barrier(layer)
        elif sliced:
            block, name, leaf = sliced
            layer[block][name][leaf] = lax.optimization_barrier(layer[block][name][leaf])
        return nnx.merge(graphdef, layer)(x, mask, None), None

    x, _ = lax.scan(run, network.embeddings(tokens, None, None), stack)
    return network.head_logits(HEAD, last(x, mask, None, FIRST_TOKEN))


def feed_forward_with_barrier(self: FeedForward, x: Any, key: Any) -> Any:
    """Within a scan, the compiler would make one slow operation of both products."""
    activated = self.activation(self.intermediate(x)).astype(jnp.bfloat16)
    return self.output(lax.optimization_barrier(activated))


def stacked(params: Any, layers: int) -> Any:
    all_but_last = [params["layers"][str(i)] for i in range(layers - 1)]
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *all_but_last)
    return params | {"layers": stack, "last": params["layers"][str(layers - 1)]}


def cycles(compiled: jax.stages.Compiled, layers: int) -> int:
    """Of the main computation, and of a scan's body once for each of its layers."""
    text = compiled.as_text()
    total = int(figures(compiled)["estimated_cycles"])
    for body in set(re.findall(r"body=%?([^\s,]+)", text)):
        lines = text.split(f"\n%{body} ")[1].split("\n}")[0]
        total += (layers - 1) * sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', lines)))
    return total


def compile_programs(program: Program) -> None:
    layers, whole = program.num_layers, FeedForward.__call__
    for form in ("layer by layer", "scan", "scan, one kernel sliced", "scan, all sliced"):
        if form == "layer by layer":
            lowered = forward.head_logits.lower(
                program.params(), program.tokens(), head=HEAD, config=program.config, numerics=NUMERICS
            )
        else:
            sliced = {"scan": (), "scan, all sliced": None}.get(form, ("feed_forward", "output", "kernel"))
            params = jax.eval_shape(lambda tree: stacked(tree, layers), program.params())
            FeedForward.__call__ = feed_forward_with_barrier  # type: ignore[method-assign]
            try:
                function = jax.jit(
                    lambda params, tokens, kept=sliced: head_logits_by_scan(params, tokens, program, kept)
                )
                lowered = function.lower(
                    jax.tree.map(lambda leaf: program.placed(leaf.shape, leaf.dtype, jax.P()), params), program.tokens()
                )
            finally:
                FeedForward.__call__ = whole  # type: ignore[method-assign]
        begin = time.process_time()
        compiled = lowered.compile()
        print_record(
            form=form,
            layers=layers,
            rows=program.rows,
            length=program.length,
            cpu_seconds=round(time.process_time() - begin, 1),
            estimated_cycles=cycles(compiled, layers),
            program_bytes=figures(compiled)["program_bytes"],
        )


def row_lengths(rows: int) -> Iterator[tuple[str, npt.NDArray[np.int64]]]:
    """Numbers of tokens, up to 512."""
    random = np.random.default_rng(0)

    def lognormal(median: float, sigma: float) -> npt.NDArray[np.int64]:
        return np.clip(random.lognormal(math.log(median), sigma, rows), 5, 512).astype(np.int64)

    yield "pairs of sentences: log-normal, median 40", lognormal(40, 0.5)
    yield "log-uniform, 5 to 512", np.exp(random.uniform(math.log(5), math.log(512), rows)).astype(np.int64)
    yield "reviews: log-normal, median 150", lognormal(150, 0.8)


def first_run(rows: int, seconds: float, megacycles: float) -> None:
    """Prints what the first run of so many rows would spend on compiling.

    Args:
      rows: number of rows, of which every 8th window is laid out.
      seconds: CPU seconds to compile one program.
      megacycles: estimated cycles of 32 rows of 128 tokens, in millions.
    """
    attention = batching.relative_attention_cost(1024, 4096)
    cycles_per_unit = megacycles * 1e6 / batching.estimated_cost([(32, 128, False)], attention)
    for name, lengths in row_lengths(rows):
        for multiple in (8, LENGTH_MULTIPLE["tpu"]):
            shapes = []
            for start in range(0, rows, 8 * WINDOW):
                sequences = [np.zeros(length, np.int32) for length in lengths[start : start + WINDOW]]
                sizes = {"tokens_per_batch": TOKENS_PER_BATCH["tpu"], "pad_id": 1, "max_positions": 512}
                batches = batching.lay_out(sequences, length_multiple=multiple, **sizes)
                shapes += [batch.tokens.shape for batch in batches]
            units = batching.estimated_cost([(*shape, False) for shape in shapes], attention)
            computing = 8 * units * cycles_per_unit / HERTZ
            in_sequence = len(set(shapes)) * seconds
            at_once = math.ceil(len(set(shapes)) / COMPILED_AT_ONCE["tpu"]) * seconds
            print_record(
                lengths=name,
                multiples_of=multiple,
                shapes=len(set(shapes)),
                computing_seconds=round(computing),
                share_in_sequence=round(in_sequence / (in_sequence + computing), 3),
                share_at_once=round(at_once / (at_once + computing), 3),
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("programs", "run"))
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--rows", type=int, default=32, help="of a batch")
    parser.add_argument("--length", type=int, default=128, help="of a batch's rows")
    parser.add_argument("--seconds", type=float, default=28.0, help="CPU seconds to compile a program")
    parser.add_argument("--megacycles", type=float, default=23.6, help="of 32 rows of 128 tokens")
    options = parser.parse_args()
    if options.what == "run":
        first_run(1_000_000, options.seconds, options.megacycles)
    else:
        compile_programs(Program("v5e:1x1", rows=options.rows, length=options.length, num_layers=options.layers))


if __name__ == "__main__":
    main()
