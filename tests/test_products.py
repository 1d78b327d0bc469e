"""roberta_flax.nn.products: the derivatives of 16-bit products, which are written out, are those of an einsum."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roberta_flax.nn.products import product

PRODUCTS = {
    "linear": "ti,io->to",
    "linear of rows": "bti,io->bto",
    "tied embedding": "th,vh->tv",
    "scores": "bqhd,bkhd->bhqk",
    "weighted values": "bhqk,bkhd->bqhd",
    "scores of some heads": "hqd,hkd->hqk",
    "weighted values of some heads": "hqk,hkd->hqd",
}


@pytest.mark.parametrize("width", [10, 15, 11], ids=["even", "odd", "prime"])
@pytest.mark.parametrize("subscripts", PRODUCTS.values(), ids=PRODUCTS)
def test_gradients_of_a_product_in_bfloat16_are_exact_where_its_sums_are(subscripts, width):
    """Small integers, which bfloat16 holds and float32 adds exactly, against numpy's einsum in float64."""
    left, right, result = re.split(",|->", subscripts)
    sizes = dict.fromkeys("bqkhdto", 6) | {"k": 7, "i": width, "v": width}
    random = np.random.default_rng(0)
    x, y, gradient = (
        random.integers(-3, 4, [sizes[axis] for axis in axes]).astype(np.float64) for axes in (left, right, result)
    )
    value, backward = jax.vjp(
        partial(product, subscripts, dtype="bfloat16"), *(jnp.asarray(each, jnp.float32) for each in (x, y))
    )
    of_x, of_y = jax.jit(backward)(jnp.asarray(gradient, jnp.float32))
    np.testing.assert_array_equal(value, np.einsum(subscripts, x, y))
    np.testing.assert_array_equal(of_x, np.einsum(f"{result},{right}->{left}", gradient, y))
    np.testing.assert_array_equal(of_y, np.einsum(f"{left},{result}->{right}", x, gradient))
    assert value.dtype == of_x.dtype == of_y.dtype == jnp.float32


@pytest.mark.parametrize("subscripts", PRODUCTS.values(), ids=PRODUCTS)
def test_tangents_and_mapped_axes_of_a_product_in_bfloat16_are_exact_where_its_sums_are(subscripts):
    left, right, _ = re.split(",|->", subscripts)
    sizes = dict.fromkeys("bqkhdtoiv", 4)
    random = np.random.default_rng(0)
    x, y, x_dot, y_dot = (
        random.integers(-3, 4, [3, *(sizes[axis] for axis in axes)]).astype(np.float32) for axes in (left, right) * 2
    )
    of_bfloat16 = partial(product, subscripts, dtype="bfloat16")
    _, tangent = jax.jvp(of_bfloat16, (x[0], y[0]), (x_dot[0], y_dot[0]))
    einsum = partial(np.einsum, subscripts)
    np.testing.assert_array_equal(tangent, einsum(x_dot[0], y[0]) + einsum(x[0], y_dot[0]))
    for axes, operands, expected in (
        ((0, 0), (x, y), [einsum(*each) for each in zip(x, y, strict=True)]),
        ((0, None), (x, y[0]), [einsum(each, y[0]) for each in x]),
        ((None, -1), (x[0], np.moveaxis(y, 0, -1)), [einsum(x[0], each) for each in y]),
    ):
        np.testing.assert_array_equal(jax.vmap(of_bfloat16, axes)(*operands), np.stack(expected))


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_a_kernels_gradient_splits_an_axis_on_cpus_alone(platform):
    def gradient(x, kernel, of_result):
        return jax.vjp(partial(product, "...i,io->...o", dtype="bfloat16"), x, kernel)[1](of_result)

    shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((4, 64, 64), (64, 128), (4, 64, 128)))
    program = jax.jit(gradient).trace(*shapes).lower(lowering_platforms=(platform,)).as_text()
    assert ("tensor<256x2x32xbf16>" in program) == (platform == "cpu")
