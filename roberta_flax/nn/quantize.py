"""int8 for the linear maps of the transformer layers: a quarter of their memory, and a faster product on some devices.

Weights are quantized once, per output channel; activations as they are computed, per token. Both are symmetric, scaled
by the absolute maximum to 127 steps each way (as in Dettmers et al., 2022, section 2, without its outliers). Sums are
int32 and exact. Everything else stays floating point: embeddings, LayerNorm, attention's scores and softmax, heads.

Where one feature of every token is far larger than the others, as in many trained models, the steps of a token are too
large for its others. Smoothing (SmoothQuant; Xiao et al., 2022) moves a part of that into the kernels: features are
multiplied by factors before they are rounded, and the kernels' rows divided by them. It needs the largest features of
some real texts.

Derivatives pass straight through the rounding of activations: they are those of the network with the rounded weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.custom_derivatives import SymbolicZero

from roberta_flax.errors import InputError
from roberta_flax.nn.numerics import Numerics
from roberta_flax.nn.products import broadcast_like
from roberta_flax.nn.tree import Params, flatten, to_dict

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int8

METHODS = ("int8",)
_STEPS = 127  # not 128: the same number for both signs
_LINEAR_MAPS = {"attention": ("query", "key", "value", "output"), "feed_forward": ("intermediate", "output")}
# Whose features are smoothed together: three maps read the same ones.
_SMOOTHED = {
    "attention": ("query", "key", "value"),
    "attention.output": ("output",),
    "feed_forward.intermediate": ("intermediate",),
    "feed_forward.output": ("output",),
}


class QuantizedLinear(nnx.Module):
    """kernel int8 [inputs, outputs]; kernel_scale [outputs], the size of a step of each output; bias [outputs].

    With `smoothed`, also smoothing [inputs], what the features are multiplied by before they are rounded.
    """

    def __init__(
        self, inputs: int, outputs: int, dtype: jnp.dtype, param_dtype: jnp.dtype, smoothed: bool = False
    ) -> None:
        self.dtype = dtype  # of the result
        self.smoothing = smoothing(inputs) if smoothed else None
        self.kernel = nnx.Param(jnp.zeros((inputs, outputs), jnp.int8))
        self.kernel_scale = nnx.Param(jnp.ones(outputs, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(outputs, param_dtype))

    def __call__(self, x: Float[Array, "*tokens inputs"]) -> Float[Array, "*tokens outputs"]:
        """The result is in the accumulation dtype."""
        x = smooth(x.astype(self.dtype), self.smoothing)
        product = _int8_product(x, self.kernel[...], self.kernel_scale[...].astype(self.dtype))
        return product + broadcast_like(self.bias[...], product)


def smoothing(inputs: int) -> nnx.Param[Array]:
    """Factors of features, float32 [inputs]: of one."""
    return nnx.Param(jnp.ones(inputs, jnp.float32))


def smooth(x: Float[Array, "*tokens inputs"], factors: nnx.Param[Array] | None) -> Float[Array, "*tokens inputs"]:
    """Multiplies features by their factors, where there are any."""
    return x if factors is None else x * broadcast_like(factors[...], x)


def quantize(
    params: Params, method: str = "int8", *, largest_inputs: Mapping[str, Float[Array, " inputs"]] | None = None
) -> Params:
    """Converts the kernels of each layer's six linear maps to int8.

    Args:
      params: the parameter tree, in any float dtype.
      method: one of METHODS.
      largest_inputs: to smooth the features: the largest absolute values of what the linear maps read, as
        forward.largest_inputs finds them in some texts. None does not smooth.

    Returns:
      The tree with each such `kernel` in int8, [inputs, outputs], and a `kernel_scale`, float32 [outputs], beside it,
      for the functions of roberta_flax.forward and for Roberta. Smoothed, `attention`, `attention.output`,
      `feed_forward.intermediate` and `feed_forward.output` of each layer have a `smoothing` too, float32 [inputs].

    Raises:
      InputError: another method, parameters that are quantized, or largest_inputs of another network.
    """
    check_method(method)
    params = to_dict(params)
    if is_quantized(params):
        raise InputError("these parameters are quantized already")

    if largest_inputs is not None:
        params = _smoothed(params, largest_inputs)

    def quantize_block(block: dict[str, Any], linear_maps: tuple[str, ...]) -> dict[str, Any]:
        return block | {name: block[name] | _quantize_kernel(block[name]["kernel"]) for name in linear_maps}

    def quantize_layer(layer: dict[str, Any]) -> dict[str, Any]:
        return layer | {block: quantize_block(layer[block], names) for block, names in _LINEAR_MAPS.items()}

    return params | {"layers": {number: quantize_layer(layer) for number, layer in params["layers"].items()}}


def _smoothed(params: dict[str, Any], largest_inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The tree with factors of features, and with the kernels' rows divided by them: in floats, the same network."""
    expected = {f"layers.{number}.{place}" for number in params["layers"] for place in _SMOOTHED}
    if set(largest_inputs) != expected:
        some = sorted(expected ^ set(largest_inputs))[0]
        raise InputError(f"largest_inputs must have the keys that forward.largest_inputs gives; {some!r} differs")
    layers = {}
    for number, layer in params["layers"].items():
        layers[number] = layer | {block: dict(layer[block]) for block in _LINEAR_MAPS}
        for place, names in _SMOOTHED.items():
            block = layers[number][place.split(".")[0]]
            largest = jnp.asarray(largest_inputs[f"layers.{number}.{place}"], jnp.float32)
            kernels = {name: jnp.asarray(block[name]["kernel"], jnp.float32) for name in names}
            rows = jnp.stack([jnp.abs(kernel).max(axis=1) for kernel in kernels.values()]).max(axis=0)
            if largest.shape != rows.shape:
                raise InputError(
                    f"largest_inputs of layers.{number}.{place} must be {[*rows.shape]}, got {[*largest.shape]}"
                )
            both = (largest > 0) & (rows > 0)
            factors = jnp.where(both, jnp.sqrt(rows / jnp.where(both, largest, 1)), 1)
            for name, kernel in kernels.items():
                block[name] = block[name] | {"kernel": kernel / factors[:, None]}
            holder = block if place in _LINEAR_MAPS else block[names[0]]
            holder["smoothing"] = factors
    return params | {"layers": layers}


@jax.custom_jvp
def _int8_product(
    x: Float[Array, "*tokens inputs"], kernel: Int8[Array, "inputs outputs"], kernel_scale: Float[Array, " outputs"]
) -> Float[Array, "*tokens outputs"]:
    """x, rounded to int8, times kernel * kernel_scale.

    The derivative is the straight-through estimate (Bengio et al., 2013): that of the product without rounding x, since
    rounding itself has none but zero. The kernel, of integers, has no derivative.
    """
    rounded, scale = _round_to_int8(x, axis=-1)
    total = jnp.einsum("...i,io->...o", rounded, kernel, preferred_element_type=jnp.int32)
    scaled = total.astype(x.dtype) * scale
    return scaled * broadcast_like(kernel_scale, scaled)


def _int8_product_jvp(primals: tuple[Array, Array, Array], tangents: tuple[Any, Any, Any]) -> tuple[Array, Array]:
    x, kernel, kernel_scale = primals
    x_dot, _, kernel_scale_dot = tangents
    result = _int8_product(x, kernel, kernel_scale)
    weights = kernel.astype(x.dtype)
    tangent = jnp.zeros_like(result)
    if not isinstance(x_dot, SymbolicZero):
        tangent = (x_dot @ weights) * broadcast_like(kernel_scale, result)
    if not isinstance(kernel_scale_dot, SymbolicZero):
        tangent = tangent + (x @ weights) * broadcast_like(kernel_scale_dot, result)
    return result, tangent


_int8_product.defjvp(_int8_product_jvp, symbolic_zeros=True)


def check_method(method: str) -> None:
    """Raises InputError unless `method` is one of METHODS."""
    if method not in METHODS:
        raise InputError(f"quantize must be one of {', '.join(METHODS)}, got {method!r}")


def is_quantized(params: Params) -> bool:
    """Whether `quantize` returned this tree."""
    return any(name.endswith(".kernel_scale") for name in flatten(params))


def numerics_for(params: Params, numerics: Numerics) -> Numerics:
    """The numerics with `quantized` and `smoothed` as the parameters are."""
    smoothed = any(name.endswith(".smoothing") for name in flatten(params))
    return dataclasses.replace(numerics, quantized=is_quantized(params), smoothed=smoothed)


@jax.jit
def _quantize_kernel(kernel: Float[Array, "inputs outputs"]) -> dict[str, Array]:
    rounded, scale = _round_to_int8(kernel.astype(jnp.float32), axis=0)
    return {"kernel": rounded, "kernel_scale": scale[0]}


def _round_to_int8(x: Float[Array, "*axes"], axis: int) -> tuple[Int8[Array, "*axes"], Float[Array, "*#axes"]]:
    """x as a number of steps, and the size of a step, the same along `axis`. Zeros are zero steps."""
    largest = jnp.abs(x).max(axis=axis, keepdims=True)
    # The smallest step keeps its reciprocal finite; numbers below it vanish in the sum they are part of.
    scale = jnp.maximum(largest / _STEPS, float(np.finfo(np.float32).tiny) * _STEPS)
    return jnp.round(x / scale).astype(jnp.int8), scale
