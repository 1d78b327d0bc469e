"""How a computation rounds: the errors that the arithmetic of a dtype, a precision and a backend makes."""

from __future__ import annotations

from dataclasses import dataclass

from roberta_flax.errors import InputError

# The unit roundoff: half of the distance between 1 and the next larger number, which is 2^-p for a significand of p
# bits (IEEE 754; bfloat16 has 8 bits, TF32 has 11).
_UNIT_ROUNDOFF = {
    "float64": 2.0**-53,
    "float32": 2.0**-24,
    "tf32": 2.0**-11,
    "float16": 2.0**-11,
    "bfloat16": 2.0**-8,
}
# Half of the smallest positive number, for dtypes in which it is large enough to matter.
_UNDERFLOW = {"float16": 2.0**-25}
# "high" precision on TPU: three products in bfloat16, which keep 16 bits of an operand. On GPU, "high" is TF32.
_BFLOAT16_3X = 2.0**-16

DTYPES = ("float64", "float32", "bfloat16", "float16", "int8")
BACKENDS = ("cpu", "gpu", "tpu")


@dataclass(frozen=True)
class Rounding:
    """The error of one operation, relative to its result.

    Attributes:
      result: the unit roundoff of results, and of everything between two products.
      operand: the unit roundoff of the operands of a product; 0 if they are not rounded.
      underflow: the least absolute error of an operand.
      int8: whether the products in the layers round to steps of 1/127 of the largest number.
    """

    result: float
    operand: float = 0.0
    underflow: float = 0.0
    int8: bool = False

    @property
    def name(self) -> str:
        """The key of this rounding in a recording."""
        kind = "int8" if self.int8 else f"{self.operand:g}"
        return f"{self.result:g}/{kind}"


def rounding_of(dtype: str, precision: str | None = None, backend: str = "cpu") -> Rounding:
    """Returns the rounding of a computation.

    Args:
      dtype: one of DTYPES.
      precision: precision of matrix products, as in jax.lax.Precision. It matters for float32 on GPU and TPU.
      backend: one of BACKENDS.

    Raises:
      InputError: the dtype is unknown.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if dtype in ("bfloat16", "float16"):
        return Rounding(_UNIT_ROUNDOFF["float32"], _UNIT_ROUNDOFF[dtype], _UNDERFLOW.get(dtype, 0.0))
    operand = 0.0
    if dtype != "float64" and backend != "cpu" and (precision or "default").lower() != "highest":
        is_high = (precision or "default").lower() == "high"
        operand = (
            _UNIT_ROUNDOFF["tf32"] if backend == "gpu" else _BFLOAT16_3X if is_high else _UNIT_ROUNDOFF["bfloat16"]
        )
    return Rounding(_UNIT_ROUNDOFF["float64" if dtype == "float64" else "float32"], operand, int8=dtype == "int8")


def significand_bits(dtype: str) -> int:
    """Returns the bits p of the significand: numbers of a dtype from 2^e to 2^(e+1) are 2^(e+1-p) apart.

    The results of int8 products are float32.
    """
    return {"float64": 53, "bfloat16": 8, "float16": 11}.get(dtype, 24)
