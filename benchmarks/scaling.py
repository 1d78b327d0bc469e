"""Show whether an update of XLM-R XXL fits on a slice of TPUs, and what it sends: python -m benchmarks.scaling v5e:4x4

Needs libtpu (the extra "tpu-tests"), but no TPU. Compiles a fully sharded update of some of the 48 layers for each
number in --layers, and prints a line of JSON for each: what one chip holds and computes, and the number of its
collectives by kind, dtype and shape. The last line is on the line through the first two numbers, at all layers, with
what each layer adds. For a third number, "error_at_N" is the share by which the line misses it.

  JAX_PLATFORMS=cpu python -m benchmarks.scaling TOPOLOGY [--rows-per-chip N] [--length N] [--tensor-parallel N]
                                                 [--layers A B [C]] [--all-layers N] [--wanted head|lm] [--dropout]

Two layers of XXL take three minutes of CPU time, or so. If "loops" is not 0, what is in a loop is counted once.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections import Counter
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from references.tpu import ARCHITECTURES, Update, collectives, devices, figures

HELD = ("argument_bytes", "peak_bytes", "program_bytes")


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
    """Compiles an update and returns the figures of one chip and the number of each collective, "kind dtype[shape]".

    The shape is that of the whole array: of the result, or for a reduce-scatter of the operand.
    """
    compiled = update.compiled()
    counted = figures(compiled)
    found = Counter(f"{each.kind} {each.dtype}{list(each.shape)}" for each in collectives(compiled))
    return {
        **{name: counted[name] for name in HELD},
        "flops": counted["flops"],
        "hand_count": update.hand_count(),
        "loops": compiled.as_text().count(" while("),
        **dict(found.most_common()),
    }


def at(layers: int, first: tuple[int, dict[str, float]], second: tuple[int, dict[str, float]]) -> dict[str, float]:
    """The figures at a number of layers, on the line through those of two numbers."""
    (a, of_a), (b, of_b) = first, second
    names = dict.fromkeys((*of_a, *of_b))
    return {
        name: of_a.get(name, 0) + (of_b.get(name, 0) - of_a.get(name, 0)) / (b - a) * (layers - a) for name in names
    }


def sent(found: dict[str, float]) -> float:
    """The bytes that a chip sends in collectives: of an array that is summed for all chips, twice its size."""
    total = 0.0
    for name, number in found.items():
        if collective := re.fullmatch(r"(\S+) ([a-z]+)(\d*)\[(.*)\]", name):
            kind, _, bits, shape = collective.groups()
            size = int(bits or 8) // 8 * prod(map(int, filter(None, shape.split(", "))))
            total += number * size * (2 if kind == "all-reduce" else 1)
    return total


def derived(found: dict[str, float], chip: Chip) -> dict[str, Any]:
    """Whether it fits, and by hand the seconds of its products and of what it sends, if nothing else limits them."""
    held = found["peak_bytes"] + found["program_bytes"]
    return {
        "GiB_held": round(held / 2**30, 2),
        "GiB_of_chip": chip.memory / 2**30,
        "flops_over_hand_count": round(found["flops"] / found["hand_count"], 4),
        "GB_sent": round(sent(found) / 1e9, 3),
        "seconds_of_products": round(found["hand_count"] / chip.flops, 4),
        "seconds_of_collectives": round(sent(found) / chip.sent, 4),
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
    parser.add_argument("--dropout", action="store_true", help="compile dropout too, in three times the time")
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
        record = {**setting, "layers": number, **derived(found, chip), **found, "seconds_to_compile": seconds}
        print(json.dumps(record), flush=True)
    if len(measured) < 2:
        return
    (first, second), others = measured[:2], measured[2:]
    all_layers = at(arguments.all_layers, first, second)
    record = {**setting, "layers": arguments.all_layers, "from_layers": arguments.layers[:2]}
    record |= {**derived(all_layers, chip), **{name: all_layers[name] for name in HELD}}
    one, none = at(1, first, second), at(0, first, second)
    record["a_layer_adds"] = {name: one[name] - none[name] for name in one if one[name] != none[name]}
    record |= {
        f"error_at_{number}": {name: round(at(number, first, second)[name] / found[name] - 1, 4) for name in HELD}
        for number, found in others
    }
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
