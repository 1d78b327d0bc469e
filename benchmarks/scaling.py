"""Show whether an update of XLM-R XXL fits on a slice of TPUs, and what it sends: python -m benchmarks.scaling v5e:4x4

Needs libtpu (the extra "tpu-tests"), but no TPU. Compiles a fully sharded update of some of the 48 layers for each
number in --layers, and prints a line of JSON for each: what one chip holds and computes, and its collectives. Figures
grow linearly with the layers, so the last line draws a line through the first two numbers and prints it at all layers.
If there is a third number, "error_at_N" is the share by which the line misses it.

  JAX_PLATFORMS=cpu python -m benchmarks.scaling TOPOLOGY [--rows-per-chip N] [--length N] [--tensor-parallel N]
                                                 [--layers A B [C]] [--all-layers N] [--wanted head|lm] [--dropout]

The compiler is asked for less effort (references.tpu.FAST). Its products, memory and collectives are within a few
percent of those of full effort; its estimate of cycles means nothing and is not printed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from references.tpu import ARCHITECTURES, FAST, Update, collectives, devices, figures

FIGURES = ("flops", "argument_bytes", "temporary_bytes", "peak_bytes", "program_bytes")


@dataclass(frozen=True)
class Chip:
    """What Google Cloud's documentation says of a chip ("TPU v5e", "TPU v5p").

    Attributes:
      memory: bytes.
      flops: a second, in bfloat16.
      sent: bytes a second that it can send over all its links; the documentation counts both directions.
    """

    memory: int
    flops: float
    sent: float


CHIPS = {"v5e": Chip(16 * 2**30, 197e12, 400e9 / 2), "v5p": Chip(95 * 2**30, 459e12, 1200e9 / 2)}


def measure(update: Update) -> dict[str, float]:
    """Compiles an update and returns the figures of one chip, with the number and bytes of each kind of collective.

    The bytes of a collective are those of its whole array: of the result, or for a reduce-scatter of the operand.
    """
    compiled = update.compiled(FAST)
    counted = figures(compiled)
    numbers: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for operation in collectives(compiled):
        kind = f"{operation.kind} {operation.dtype}"
        numbers[kind] += 1
        sizes[kind] += prod(operation.shape) * _itemsize(operation.dtype)
    return {
        **{name: counted[name] for name in FIGURES},
        "hand_count": update.hand_count(),
        **{f"number of {kind}": number for kind, number in numbers.items()},
        **{f"bytes of {kind}": size for kind, size in sizes.items()},
    }


def _itemsize(dtype: str) -> int:
    return {"pred": 1, "bf16": 2}.get(dtype) or int("".join(filter(str.isdigit, dtype))) // 8


def at(layers: int, first: tuple[int, dict[str, float]], second: tuple[int, dict[str, float]]) -> dict[str, float]:
    """The figures at a number of layers, on the line through those of two numbers."""
    (a, of_a), (b, of_b) = first, second
    names = dict.fromkeys((*of_a, *of_b))
    return {
        name: of_a.get(name, 0) + (of_b.get(name, 0) - of_a.get(name, 0)) / (b - a) * (layers - a) for name in names
    }


def derived(found: dict[str, float], chip: Chip) -> dict[str, Any]:
    """Whether it fits, and on paper the seconds of its products and of what it sends if nothing else limits them.

    Of an array that is gathered each chip receives nearly the whole, and twice that of one that is summed for all.
    """
    held = found["peak_bytes"] + found["program_bytes"]
    sent = sum(size * (2 if "all-reduce" in name else 1) for name, size in found.items() if name.startswith("bytes of"))
    return {
        "GiB_of_chip": chip.memory / 2**30,
        "GiB_held": round(held / 2**30, 2),
        "fits": held < chip.memory,
        "flops_over_hand_count": round(found["flops"] / found["hand_count"], 4),
        "seconds_of_products": round(found["hand_count"] / chip.flops, 4),
        "seconds_of_collectives": round(sent / chip.sent, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("topology", help='"v5e:16x16", "v5p:4x4x4" and the like')
    parser.add_argument("--architecture", choices=tuple(ARCHITECTURES), default="xlmr.xxl")
    parser.add_argument("--rows-per-chip", type=int, default=4, help="with tensor parallelism, of all chips on average")
    parser.add_argument("--length", type=int, default=512, help="tokens of a row")
    parser.add_argument("--tensor-parallel", type=int, default=1, help="number of chips that share each layer")
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4], help="numbers of layers to compile")
    parser.add_argument("--all-layers", type=int, default=48, help="number of layers of the network")
    parser.add_argument("--wanted", choices=("head", "lm"), default="head", help="the loss: of a head or masked LM")
    parser.add_argument("--dropout", action="store_true", help="with it the same takes three times as long to compile")
    arguments = parser.parse_args()
    chip = CHIPS[arguments.topology.partition(":")[0]]
    update = Update(
        arguments.topology,
        arguments.tensor_parallel,
        arguments.rows_per_chip * len(devices(arguments.topology)),
        arguments.length,
        arguments.wanted,
        fully_sharded=True,
        architecture=arguments.architecture,
        dropout=arguments.dropout,
    )
    setting = {name: value for name, value in vars(arguments).items() if name not in ("layers", "all_layers")}
    measured = []
    for number in arguments.layers:
        begin = time.perf_counter()
        found = measure(replace(update, num_layers=number))
        measured.append((number, found))
        seconds = round(time.perf_counter() - begin, 1)
        record = {**setting, "layers": number, **found, **derived(found, chip), "seconds_to_compile": seconds}
        print(json.dumps(record), flush=True)
    if len(measured) < 2:
        return
    whole = at(arguments.all_layers, *measured[:2])
    record = {**setting, "layers": arguments.all_layers, "from_layers": arguments.layers[:2], **whole}
    record |= derived(whole, chip)
    for number, found in measured[2:]:
        expected = at(number, *measured[:2])
        errors = {name: round(expected[name] / found[name] - 1, 4) for name in FIGURES}
        record[f"error_at_{number}"] = errors
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
