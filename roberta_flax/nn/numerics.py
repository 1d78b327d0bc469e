"""Numerics: how a network computes, apart from what it computes, as one frozen, hashable value."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from roberta_flax.errors import InputError, did_you_mean
from roberta_flax.nn.attention import IMPLEMENTATIONS
from roberta_flax.nn.products import accumulation_dtype

DTypeLike = jax.typing.DTypeLike
PrecisionLike = str | lax.Precision | None
# Short names, as PyTorch, Transformers and command lines have them
DTYPE_NAMES = {
    "bf16": "bfloat16",
    "fp16": "float16", "f16": "float16", "half": "float16",
    "fp32": "float32", "f32": "float32",
    "fp64": "float64", "f64": "float64", "double": "float64",
}  # fmt: skip
_DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True, init=False)
class Numerics:
    """How a network computes; a static argument of the jitted functions.

    Takes every spelling that JAX takes, "bfloat16" or jnp.bfloat16, "highest" or Precision.HIGHEST, and "bf16" and the
    like. Equal settings compare equal however they were spelled.

    >>> Numerics("bfloat16").dtype
    dtype(bfloat16)

    Attributes:
      dtype: of the operands of matrix products, and of the features returned. Products accumulate in float32 at least.
      param_dtype: of newly initialized parameters.
      precision: of matrix products, as in jax.lax.Precision; "highest" for float32 parity on TPU and GPU.
      attention: one of attention.IMPLEMENTATIONS; None for the backend's default.
      remat: whether each layer's activations are recomputed for its gradient rather than kept (Chen et al., 2016).
      quantized: whether the layers' products are in int8. The functions of roberta_flax.forward set it from the
        parameters they are given.
      smoothed: whether features are multiplied by factors before they are rounded to int8. Set in the same way.
      observed: whether attention records its scores and weights, which no method returns, for nnx.capture. It does so
        where it computes all scores at once, as "xla" does.

    Raises:
      InputError: a dtype or precision that JAX does not know, a dtype that is not floating point, float64 without
        jax_enable_x64, or an attention that does not exist or does not compute in `dtype`.
    """

    dtype: jnp.dtype
    param_dtype: jnp.dtype
    precision: lax.Precision | None
    attention: str | None
    remat: bool
    quantized: bool
    smoothed: bool
    observed: bool

    def __init__(
        self,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        precision: PrecisionLike = None,
        attention: str | None = None,
        *,
        remat: bool = False,
        quantized: bool = False,
        smoothed: bool = False,
        observed: bool = False,
    ) -> None:
        try:
            dtype, param_dtype = _dtype(dtype), _dtype(param_dtype)
            precision = None if precision is None else lax.Precision(precision)
        except (TypeError, ValueError) as error:
            close = did_you_mean(str(dtype), _DTYPES)
            raise InputError(f"not a dtype or precision that JAX knows: {error}{close}") from None
        for given in (dtype, param_dtype):
            if not jnp.issubdtype(given, jnp.floating):
                raise InputError(f"dtype and param_dtype must be floating point (float32, bfloat16, ...), got {given}")
            if jax.dtypes.canonicalize_dtype(given) != given:
                raise InputError("float64 needs jax.config.update('jax_enable_x64', True) before anything is computed")
        if attention is not None and attention not in IMPLEMENTATIONS:
            raise InputError(f"attention must be one of {', '.join(IMPLEMENTATIONS)}, got {attention!r}")
        if attention == "cudnn" and dtype not in (jnp.bfloat16, jnp.float16):
            raise InputError(f"attention 'cudnn' computes in bfloat16 or float16, not in {dtype}")
        if attention == "flash" and dtype == jnp.float64:
            raise InputError("attention 'flash' computes in 32 or 16 bits, not in float64")
        fields = (dtype, param_dtype, precision, attention, remat, quantized, smoothed, observed)
        for field, value in zip(dataclasses.fields(self), fields, strict=True):
            object.__setattr__(self, field.name, value)

    @property
    def accumulation_dtype(self) -> jnp.dtype:
        """The dtype that products return, and of everything between them: float32, or float64 for a float64 `dtype`."""
        return accumulation_dtype(self.dtype)


def _dtype(name: DTypeLike) -> jnp.dtype:
    """A dtype by any of its names; "torch.bfloat16", a dtype of PyTorch, is one."""
    text = name if isinstance(name, str) else str(name) if type(name).__module__ == "torch" else None
    if text is None:
        return jnp.dtype(name)
    text = text.removeprefix("torch.").casefold()
    return jnp.dtype(DTYPE_NAMES.get(text, text))
