"""Derivatives of the network: forward and backward, first and second, in every dtype, under JAX's transformations."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roberta_flax.nn import forward
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from roberta_flax.nn.model import gelu
from roberta_flax.nn.numerics import Numerics
from roberta_flax.nn.residuals import with_low_precision_residual
from tests.params import random_params

CONFIG = RobertaConfig(
    vocab_size=131, num_layers=1, hidden_size=24, num_heads=3, intermediate_size=40, max_positions=30,
    heads=(HeadConfig("mnli", 3, 24),),
)  # fmt: skip
DTYPES = ["float32", "bfloat16", "float16"]
TOKENS = np.random.default_rng(1).integers(2, 131, (3, 9)).astype(np.int32)


def noise(like: Any, seed: int) -> Any:
    leaves, tree = jax.tree.flatten(like)
    random = np.random.default_rng(seed)
    return tree.unflatten(random.standard_normal(leaf.shape).astype(leaf.dtype) for leaf in leaves)


@pytest.fixture(scope="module")
def params() -> Any:
    return jax.tree.map(np.asarray, random_params(CONFIG))


@pytest.fixture(scope="module")
def direction(params) -> Any:
    return noise(params, 1)


def logits(params: Any, dtype: str, tokens: Any = TOKENS, **settings: Any) -> jax.Array:
    return forward.head_logits(params, tokens, head="mnli", config=CONFIG, numerics=Numerics(dtype, **settings))


def total(params: Any, dtype: str, **settings: Any) -> jax.Array:
    return logits(params, dtype, **settings).sum()


def inner(a: Any, b: Any) -> float:
    return sum(float((np.float64(x) * y).sum()) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def largest_difference(a: Any, b: Any) -> float:
    """Beside the size of the largest number of all."""
    pairs = [(np.float64(x), np.float64(y)) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)]
    return max(np.abs(x - y).max() for x, y in pairs) / max(np.abs(y).max() for _, y in pairs)


def rounding(dtype: str) -> float:
    """What ten or so products, one after the other, each of rounded operands, add up to; and as much again."""
    return 20 * float(jnp.finfo(dtype).eps)


@pytest.fixture(scope="module")
def quotient(params, direction) -> np.ndarray:
    """(f(p + h d) - f(p - h d)) / 2 h in float64; its error is h ** 2 and the third derivative."""
    with jax.enable_x64(True):
        h, of = 1e-5, partial(logits, dtype="float64")
        moved = (jax.tree.map(lambda p, d, h=h: np.float64(p) + h * d, params, direction) for h in (h, -h))
        up, down = (np.asarray(of(each)) for each in moved)
        return (up - down) / (2 * h)


@pytest.fixture(scope="module")
def quotient_of_gradients(params, direction) -> Any:
    """The same of the gradient of the sum of f."""
    with jax.enable_x64(True):
        h, gradient = 1e-5, jax.jit(jax.grad(partial(total, dtype="float64")))
        moved = (jax.tree.map(lambda p, d, h=h: np.float64(p) + h * d, params, direction) for h in (h, -h))
        up, down = map(gradient, moved)
        return jax.tree.map(lambda a, b: np.asarray((a - b) / (2 * h)), up, down)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_derivative_along_a_direction_is_the_difference_quotient(dtype, params, direction, quotient):
    of = partial(logits, dtype=dtype)
    tangent = jax.jit(lambda params, direction: jax.jvp(of, (params,), (direction,))[1])(params, direction)
    assert tangent.dtype == jnp.float32
    assert largest_difference(tangent, quotient) < rounding(dtype)
    _, linear = jax.linearize(of, params)
    np.testing.assert_allclose(linear(direction), tangent, rtol=1e-5, atol=1e-5)  # float32, fused in another order


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_are_of_the_parameters_dtype_and_have_the_derivative_along_a_direction(
    dtype, params, direction, quotient
):
    gradient = jax.grad(partial(total, dtype=dtype))(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {np.dtype("float32")}
    assert abs(inner(gradient, direction) - quotient.sum()) < rounding(dtype) * np.abs(quotient).sum()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("by", ["forward over reverse", "reverse over forward", "reverse over reverse"])
def test_second_derivatives_along_a_direction_are_the_difference_quotient_of_gradients(
    by, dtype, params, direction, quotient_of_gradients
):
    def product(params: Any, direction: Any, dtype: str) -> Any:
        of, gradient = partial(total, dtype=dtype), jax.grad(partial(total, dtype=dtype))
        if by == "forward over reverse":
            return jax.jvp(gradient, (params,), (direction,))[1]
        if by == "reverse over forward":
            return jax.grad(lambda params: jax.jvp(of, (params,), (direction,))[1])(params)
        dot = partial(jax.tree.map, lambda g, d: (g * d).sum())
        return jax.grad(lambda params: sum(jax.tree.leaves(dot(gradient(params), direction))))(params)

    found = jax.jit(partial(product, dtype=dtype))(params, direction)
    # twice as many products one after the other
    assert largest_difference(found, quotient_of_gradients) < 2 * rounding(dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_of_each_row_are_those_of_the_row_alone(dtype, params):
    """jax.vmap of jax.grad: what a mapped axis changes is the order of sums."""
    of_row = jax.jit(jax.grad(lambda params, row: logits(params, dtype, row[None]).sum()))
    of_rows = jax.jit(jax.vmap(of_row, (None, 0)))(params, TOKENS)
    for number, row in enumerate(TOKENS):
        alone = of_row(params, row)
        assert largest_difference(jax.tree.map(lambda x, n=number: x[n], of_rows), alone) < 1e-2 * rounding("bfloat16")


def test_a_jacobian_is_the_same_by_columns_and_by_rows(params):
    """In bfloat16, with respect to a bias of the first layer."""
    feed_forward = params["layers"]["0"]["feed_forward"]["intermediate"]

    def of_bias(bias: Any) -> jax.Array:
        changed = jax.tree.map(lambda x: x, params)
        changed["layers"]["0"]["feed_forward"]["intermediate"] = {**feed_forward, "bias": bias}
        return logits(changed, "bfloat16")

    by_columns, by_rows = (jacobian(of_bias)(feed_forward["bias"]) for jacobian in (jax.jacfwd, jax.jacrev))
    assert by_columns.shape == (3, 3, CONFIG.intermediate_size)
    assert largest_difference(by_columns, by_rows) < rounding("bfloat16")


@pytest.mark.slow
def test_layers_that_are_computed_again_have_the_same_derivatives(params, direction):
    def derivative(remat: bool) -> Any:
        gradient = jax.grad(partial(total, dtype="bfloat16", remat=remat))
        return jax.jit(lambda *args: jax.jvp(gradient, args[:1], args[1:])[1])(params, direction)

    kept, again = derivative(False), derivative(True)
    assert largest_difference(kept, again) < rounding("bfloat16")


def test_gradients_in_a_scan_are_those_outside(params):
    def add(sum_of_gradients: Any, row: jax.Array) -> tuple[Any, None]:
        gradient = jax.grad(lambda params: logits(params, "bfloat16", row[None]).sum())(params)
        return jax.tree.map(jnp.add, sum_of_gradients, gradient), None

    scanned, _ = jax.lax.scan(add, jax.tree.map(np.zeros_like, params), TOKENS)
    assert largest_difference(scanned, jax.grad(partial(total, dtype="bfloat16"))(params)) < rounding("bfloat16")


def test_a_gradient_is_exported_for_any_batch_and_length(params):
    batch, time = jax.export.symbolic_shape("batch, time")
    gradient = jax.jit(lambda params, tokens: jax.grad(lambda p: logits(p, "bfloat16", tokens).sum())(params))
    exported = jax.export.export(gradient)(params, jax.ShapeDtypeStruct((batch, time), jnp.int32))
    again = jax.export.deserialize(exported.serialize()).call(params, TOKENS)
    assert largest_difference(again, gradient(params, TOKENS)) < rounding("bfloat16")


def test_an_activation_in_16_bits_has_its_derivative_at_the_rounded_argument_and_keeps_no_more():
    x = jnp.linspace(-4, 4, 1001)
    activation = with_low_precision_residual(gelu, jnp.dtype("bfloat16"))
    np.testing.assert_array_equal(activation(x), gelu(x))
    expected = jax.vmap(jax.grad(gelu))(x.astype("bfloat16").astype("float32"))
    for derivative in (jax.vmap(jax.grad(activation))(x), jax.jvp(activation, (x,), (jnp.ones_like(x),))[1]):
        np.testing.assert_allclose(derivative, expected, rtol=0, atol=1e-6)  # float32
    _, pullback = jax.vjp(activation, x)
    assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(pullback)] == [((1001,), jnp.bfloat16)]
