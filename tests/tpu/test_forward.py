"""roberta.large, compiled for TPU v5e on a machine without one: what its program computes, holds and sends."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import jax
import numpy as np
import pytest

from references.tpu import FAST, V5E_BYTES, Operation, Program, collectives, figures, products, reshapes

pytestmark = pytest.mark.slow

ONE = Program("v5e:1x1")
LONG = Program("v5e:1x1", wanted="features", rows=16, length=512)
# of fewer layers, which compile sooner; they hold less than those above
SHALLOW = Program("v5e:1x1", num_layers=3)
INT8 = Program("v5e:1x1", dtype="int8", num_layers=3)
DATA_PARALLEL = Program("v5e:2x2", num_layers=3)
TENSOR_PARALLEL = Program("v5e:2x2", tensor_parallel=4, num_layers=3)
SLICE = Program("v5e:4x4", tensor_parallel=4, rows=256, num_layers=3)
INT8_TENSOR_PARALLEL = Program("v5e:2x2", tensor_parallel=4, dtype="int8", num_layers=3)
PROGRAMS = {
    "one chip": ONE,
    "one chip, 512 tokens a row": LONG,
    "one chip, int8": INT8,
    "data parallel": DATA_PARALLEL,
    "tensor parallel": TENSOR_PARALLEL,
    "tensor and data parallel": SLICE,
    "tensor parallel, int8": INT8_TENSOR_PARALLEL,
}
each_program = pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)


def shapes(program: Program) -> set[tuple[int, ...]]:
    """Of the parameters that are matrices: whole."""
    return {leaf.shape for leaf in jax.tree.leaves(program.params()) if len(leaf.shape) > 1}


def numbers(operation: Operation) -> int:
    return int(np.prod(operation.shape))


@each_program
def test_a_chip_holds_it_and_computes_nothing_twice_and_multiplies_no_float32(program, compiled, record_property):
    """One test, since two of a program could run in two of xdist's workers, which would both compile it."""
    counted = figures(compiled(program))
    for name, value in counted.items():
        record_property(name, value)  # --junit-xml writes them
    assert counted["peak_bytes"] + counted["program_bytes"] < V5E_BYTES

    # the network's matrix products by hand, divided among the devices, and at most 3 % for all that stands between
    assert 1.0 < counted["flops"] / program.hand_count() < 1.03

    found = products(compiled(program))
    assert len(found) >= 8 * (program.num_layers - 1)
    assert {dtype for product in found for dtype in product.operands} <= {"bf16", "s8"}


def test_the_products_of_every_layer_are_in_int8(compiled):
    """Six a layer, and the attention's two in bfloat16; of the last layer they are those of one query a row."""
    assert Counter(product.operands[0] for product in products(compiled(INT8)))["s8"] == 6 * INT8.num_layers


def test_int8_holds_the_layers_in_half_the_memory(compiled):
    of_layers = INT8.num_layers * 12 * INT8.config.hidden_size**2
    saved = figures(compiled(SHALLOW))["argument_bytes"] - figures(compiled(INT8))["argument_bytes"]
    assert saved == pytest.approx(of_layers, rel=0.01)


def test_data_parallel_devices_do_not_communicate(compiled):
    assert collectives(compiled(DATA_PARALLEL)) == []


def test_a_device_of_four_does_a_quarter(compiled):
    whole = figures(compiled(SHALLOW))
    for program in (DATA_PARALLEL, TENSOR_PARALLEL):
        assert figures(compiled(program))["flops"] == pytest.approx(whole["flops"] / 4, rel=0.01)


def test_tensor_parallel_devices_hold_a_quarter_of_the_matrices(compiled):
    whole, part = (figures(compiled(program))["argument_bytes"] for program in (DATA_PARALLEL, TENSOR_PARALLEL))
    replicated = 2**20 * (2 + 2)  # bytes: the positions' table and the head's dense layer; the vectors are little
    assert part == pytest.approx((whole - replicated) / 4 + replicated, rel=0.02)


@pytest.mark.parametrize("program", [TENSOR_PARALLEL, SLICE, INT8_TENSOR_PARALLEL], ids=["2x2", "4x4", "int8"])
def test_no_parameters_are_sent(program, compiled):
    """What is sent are activations: whole rows of tokens, or first tokens."""
    found = collectives(compiled(program))
    matrices = shapes(program)
    assert found
    assert not [str(operation) for operation in found if operation.shape in matrices]
    rows = program.rows * program.tensor_parallel // program.mesh.size
    assert {operation.shape[0] for operation in found} <= {rows, rows * program.length}


@pytest.mark.parametrize("program", [TENSOR_PARALLEL, SLICE], ids=["2x2", "4x4"])
def test_a_layer_sums_twice_over_the_devices(program, compiled):
    """After each of its two blocks (Shoeybi et al., 2019, figure 3), and sends bfloat16 where it gathers.

    The residual stream is divided by columns, as the embedding's table is: so a sum leaves each device its columns, and
    LayerNorm's mean and variance, two numbers a token, are summed too.
    """
    found = collectives(compiled(program))
    hidden = program.config.hidden_size
    sums = [operation for operation in found if operation.kind == "all-reduce" and operation.shape[-1] == hidden]
    assert len(sums) == 2 * program.num_layers
    others = [operation for operation in found if operation not in sums]
    assert all(operation.operands == ("bf16",) for operation in others if operation.kind == "all-gather")
    tokens = max(numbers(operation) for operation in found) // hidden
    assert all(numbers(operation) <= tokens for operation in others if operation.kind != "all-gather")


def test_int8_activations_are_sent_as_int8(compiled):
    gathered = [
        operation for operation in collectives(compiled(INT8_TENSOR_PARALLEL)) if operation.kind == "all-gather"
    ]
    hidden = max(numbers(operation) for operation in gathered)
    assert {operation.dtype for operation in gathered if numbers(operation) == hidden} == {"s8"}


@pytest.mark.parametrize(
    ("topology", "rows", "tensor_parallel"), [("v5e:1x1", 1, 1), ("v5e:2x2", 4, 1), ("v5e:2x2", 1, 4)], ids=str
)
def test_rows_of_8192_tokens_take_no_memory_for_scores(topology, rows, tensor_parallel):
    """Each chip runs the kernel on its own rows and heads. The kernel counts its exponentials too, 1.2 % of its products."""
    program = Program(topology, tensor_parallel, rows, 8192, "features", num_layers=2, max_positions=8192)
    compiled = program.compiled(FAST)
    counted = figures(compiled)
    assert counted["temporary_bytes"] < 2**30
    assert 1.0 < counted["flops"] / program.hand_count() < 1.03
    assert len(re.findall(r"custom_call_target=\"tpu_custom_call\"", compiled.as_text())) == program.num_layers
    kinds = {operation.kind for operation in collectives(compiled)}
    assert kinds == (set() if tensor_parallel == 1 else {"all-reduce", "all-gather"})


def test_at_full_effort_the_layers_of_long_rows_leave_nothing_behind():
    """Of 8 layers it is 239 MiB, of 4 233. Left to itself, the compiler keeps 32 MiB a layer more, and of two 326."""
    program = Program("v5e:1x1", 1, 1, 8192, "features", num_layers=2, max_positions=8192)
    assert figures(program.compiled())["temporary_bytes"] < 280 * 2**20


def test_at_full_effort_it_takes_fewer_cycles_than_transformers_and_does_not_move_numbers_to_divide_heads():
    """Of two layers, whose scores fit into the chip's vector memory; of 24 see `python -m benchmarks.tpu`."""
    program = Program("v5e:1x1", wanted="features", rows=4, length=512, num_layers=2)
    ours = program.compiled()
    theirs = 2.03e6  # by flax_compiled(program), which takes as long again
    assert figures(ours)["estimated_cycles"] < 0.76 * theirs
    config = program.config
    activations, depth = program.rows * program.length * config.hidden_size, config.hidden_size // config.num_heads
    moved = [operation for operation in reshapes(ours) if numbers(operation) >= activations]
    assert not [str(operation) for operation in moved if depth in operation.shape]


def test_beside_transformers_flax_model(compiled, compiled_of_transformers):
    """As many products for the features of every token; fewer for a head: of three layers, nearly one less."""
    for program, most in ((LONG, 1.0), (ONE, 0.75)):
        program = replace(program, num_layers=3)
        ours, theirs = (figures(of(program)) for of in (compiled, compiled_of_transformers))
        assert ours["flops"] < most * theirs["flops"]
