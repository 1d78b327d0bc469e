"""How a computation rounds: what the arithmetic of a dtype, a precision and a backend does to an operation's result."""

from __future__ import annotations

from dataclasses import dataclass

from roberta_flax.errors import InputError

# half of the distance between 1 and the next larger number: 2^-p for p bits of significand (IEEE 754; bfloat16: 8 bits,
# TF32: 11)
_UNITS = {"float64": 2.0**-53, "float32": 2.0**-24, "tf32": 2.0**-11, "float16": 2.0**-11, "bfloat16": 2.0**-8}
# half of the smallest number above zero, where it is large enough to matter
_SMALLEST = {"float16": 2.0**-25}
# "high" on TPU: three products of bfloat16, which keep 16 bits of an operand; on GPU: TF32
_BFLOAT16_3X = 2.0**-16

DTYPES = ("float64", "float32", "bfloat16", "float16", "int8")
BACKENDS = ("cpu", "gpu", "tpu")


@dataclass(frozen=True)
class Rounding:
    """What one operation is off by, relative to its result.

    Attributes:
      result: the unit roundoff of results and of everything between two products.
      operand: that of a product's operands; 0 where they are taken as they are.
      smallest: what an operand is off by at least, absolutely.
      int8: whether the layers' products take steps of 1/127 of the largest number.
    """

    result: float
    operand: float = 0.0
    smallest: float = 0.0
    int8: bool = False

    @property
    def name(self) -> str:
        """By which a recording knows it."""
        kind = "int8" if self.int8 else f"{self.operand:g}"
        return f"{self.result:g}/{kind}"


def rounding_of(dtype: str, precision: str | None = None, backend: str = "cpu") -> Rounding:
    """The arithmetic of a computation.

    Args:
      dtype: one of DTYPES.
      precision: of matrix products, as in jax.lax.Precision; it matters for float32 on GPU and TPU.
      backend: one of BACKENDS.

    Raises:
      InputError: a dtype that there is not.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if dtype in ("bfloat16", "float16"):
        return Rounding(_UNITS["float32"], _UNITS[dtype], _SMALLEST.get(dtype, 0.0))
    operand = 0.0
    if dtype != "float64" and backend != "cpu" and (precision or "default").lower() != "highest":
        high = (precision or "default").lower() == "high"
        operand = _UNITS["tf32"] if backend == "gpu" else _BFLOAT16_3X if high else _UNITS["bfloat16"]
    return Rounding(_UNITS["float64" if dtype == "float64" else "float32"], operand, int8=dtype == "int8")


def spacing_exponent(dtype: str) -> int:
    """p: numbers of a dtype between 2^e and 2^(e+1) are 2^(e+1-p) apart; of int8's results, float32."""
    return {"float64": 53, "bfloat16": 8, "float16": 11}.get(dtype, 24)
