"""Simulated rounding: float64 arithmetic with random errors of the size that another arithmetic makes.

Every operation of the torch reference adds a random error of the size that the operation makes in the arithmetic to be
simulated (Monte Carlo arithmetic: Parker, 1997). So nobody has to estimate how errors grow, cancel and travel through
the layers: the network itself computes it, with its own weights, on the same inputs, forward and backward.

The errors of an operation are as follows, where u is the unit roundoff of results, and w that of the operands of a
product (Higham, 2002, chapters 2 to 4):

  operands of a product  Uniform within w of their size, because they are rounded to the compute dtype. This includes
                         gradients.
  a sum of n terms       Normal with standard deviation u sqrt(n) (|terms| / sqrt(6) + |sum| / 3): each partial sum is
                         rounded to within u of its size, and partial sums grow like a random walk plus a line. This
                         holds for a sequential sum, which is the least exact order. If the sum begins with a bias,
                         every partial sum is as large, which adds u sqrt(n) |bias| / sqrt(3).
  anything else          Uniform within u of the result, or within 4 u for a library function. The error of an
                         activation function is relative to x if x is larger, because it computes x (1 + erf). In
                         16 bits, its derivative is evaluated at a rounded argument (roberta_flax.nn.residuals).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod, sqrt
from typing import Any

import torch
from torch import Tensor

from roberta_flax.parity.rounding import Rounding
from roberta_flax.parity.torch_network import FUNCTION_UNITS, Arithmetic

_INT8_STEPS = 127  # as in roberta_flax.nn.quantize


class SimulatedRounding(Arithmetic):
    """Arithmetic in float64 that simulates the rounding errors of another one.

    Args:
      rounding: the rounding to simulate.
      seed: seed of the random errors.
    """

    def __init__(self, rounding: Rounding, seed: int) -> None:
        self.rounding = rounding
        self._generator = torch.Generator().manual_seed(seed)

    def product(
        self, equation: str, left: Tensor, right: Tensor, bias: Tensor | None = None, *, in_layer: bool = False
    ) -> Tensor:
        """Returns the einsum plus the bias, with errors of operands and sums in the result and in the gradients."""
        result: Tensor = _Product.apply(self, equation, in_layer, left, right, bias)  # type: ignore[no-untyped-call]
        return result

    def sum(self, x: Tensor) -> Tensor:
        """Returns the sum over the last axis, with the error of a sum."""
        total = x.sum(-1, keepdim=True)
        return total + self.sum_error(total, x.norm(dim=-1, keepdim=True), x.shape[-1])

    def round(self, x: Tensor, units: float = 1.0) -> Tensor:
        """Returns `x` with a relative error; its gradient gets a relative error too."""
        result: Tensor = _Round.apply(self, x, units)  # type: ignore[no-untyped-call]
        return result

    def activate(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Applies an activation function, with the error of a library function in the result and in the derivative."""
        result: Tensor = _Activate.apply(self, function, x)  # type: ignore[no-untyped-call]
        return result

    def broadcast(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """Repeats a vector for every token. Its gradient is a sum over the tokens, with the error of a sum."""
        result: Tensor = _Broadcast.apply(self, x, tuple(shape))  # type: ignore[no-untyped-call]
        return result

    def lookup(self, table: Tensor, ids: Tensor) -> Tensor:
        """Looks up rows of a table. The gradient of a row is a sum over its uses, with the error of a sum."""
        result: Tensor = _Lookup.apply(self, table, ids)  # type: ignore[no-untyped-call]
        return result

    def relative_error(self, x: Tensor, units: float = 1.0) -> Tensor:
        """Returns random errors, uniform within `units` units of roundoff of `x`."""
        return x.detach().abs() * self._uniform(x) * (units * self.rounding.result)

    def sum_error(self, total: Tensor, norm: Tensor, terms: Tensor | int, bias: Tensor | None = None) -> Tensor:
        """Returns random errors of sums.

        Args:
          total: the sums.
          norm: the norms of their terms.
          terms: the numbers of their terms.
          bias: the numbers that the sums begin with.
        """
        size = norm.detach() / sqrt(6) + total.detach().abs() / 3
        size = size if bias is None else size + bias.detach().abs() / sqrt(3)
        noise = torch.randn(total.shape, dtype=total.dtype, generator=self._generator)
        return noise * size * (terms**0.5 * self.rounding.result)

    def einsum(self, equation: str, left: Tensor, right: Tensor, in_layer: bool, bias: Tensor | None = None) -> Tensor:
        """Returns the einsum plus the bias, with errors of operands and sums."""
        operands, result_axes = equation.split("->")
        left_axes, right_axes = operands.split(",")
        summed_axes = [axis for axis in left_axes if axis not in result_axes]
        left = self._round_operand_of_layer(left, [left_axes.index(axis) for axis in summed_axes], in_layer)
        right = self._round_operand_of_layer(right, [right_axes.index(axis) for axis in summed_axes], in_layer)
        total = torch.einsum(equation, left, right)
        norm = torch.einsum(equation, left**2, right**2).sqrt()
        terms = prod(left.shape[left_axes.index(axis)] for axis in summed_axes)
        total = total + self.sum_error(total, norm, terms, bias)
        return total if bias is None else total + bias

    def round_operand(self, x: Tensor) -> Tensor:
        """Returns `x` with the error of rounding to the dtype of operands."""
        if not self.rounding.operand:
            return x
        return x + self._uniform(x) * (x.abs() * self.rounding.operand + self.rounding.underflow)

    def _round_operand_of_layer(self, x: Tensor, summed_axes: Sequence[int], in_layer: bool) -> Tensor:
        if self.rounding.int8 and in_layer:  # rounds to the nearest of evenly spaced numbers
            return x + self._uniform(x) * x.abs().amax(tuple(summed_axes), keepdim=True) / (2 * _INT8_STEPS)
        return self.round_operand(x)

    def _uniform(self, like: Tensor) -> Tensor:
        return torch.empty(like.shape, dtype=like.dtype).uniform_(-1, 1, generator=self._generator)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        arithmetic: SimulatedRounding,
        equation: str,
        in_layer: bool,
        left: Tensor,
        right: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(left, right)
        ctx.arithmetic, ctx.equation, ctx.in_layer, ctx.has_bias = arithmetic, equation, in_layer, bias is not None
        return arithmetic.einsum(equation, left, right, in_layer, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None, Tensor, Tensor, Tensor | None]:
        left, right = ctx.saved_tensors
        operands, result_axes = ctx.equation.split("->")
        left_axes, right_axes = operands.split(",")
        left_gradient = ctx.arithmetic.einsum(f"{result_axes},{right_axes}->{left_axes}", gradient, right, ctx.in_layer)
        right_gradient = ctx.arithmetic.einsum(f"{left_axes},{result_axes}->{right_axes}", left, gradient, ctx.in_layer)
        return None, None, None, left_gradient, right_gradient, gradient if ctx.has_bias else None


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, arithmetic: SimulatedRounding, x: Tensor, units: float) -> Tensor:
        ctx.arithmetic, ctx.units = arithmetic, units
        return x + arithmetic.relative_error(x, units)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        return None, gradient + ctx.arithmetic.relative_error(gradient, ctx.units), None


class _Activate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, arithmetic: SimulatedRounding, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.arithmetic, ctx.function = arithmetic, function
        value = function(x)
        return value + arithmetic.relative_error(torch.maximum(value.abs(), x.abs()), FUNCTION_UNITS)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, Tensor]:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = ctx.arithmetic.round_operand(x.detach()).requires_grad_(True)
            (x_gradient,) = torch.autograd.grad(ctx.function(x), x, gradient)
        error = ctx.arithmetic.relative_error(torch.maximum(x_gradient.abs(), gradient.abs()), FUNCTION_UNITS)
        return None, None, x_gradient + error


class _Broadcast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, arithmetic: SimulatedRounding, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        ctx.arithmetic = arithmetic
        return x.expand(*shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        tokens = gradient.reshape(-1, gradient.shape[-1])
        total = tokens.sum(0)
        return None, total + ctx.arithmetic.sum_error(total, tokens.norm(dim=0), len(tokens)), None


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, arithmetic: SimulatedRounding, table: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.arithmetic, ctx.shape = arithmetic, table.shape
        return table[ids]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        (ids,) = ctx.saved_tensors
        rows, ids = gradient.reshape(-1, gradient.shape[-1]), ids.reshape(-1)
        zeros = gradient.new_zeros(ctx.shape)
        total, squares = zeros.index_add(0, ids, rows), zeros.index_add(0, ids, rows**2)
        uses = gradient.new_zeros(ctx.shape[0]).index_add(0, ids, gradient.new_ones(len(ids)))
        return None, total + ctx.arithmetic.sum_error(total, squares.sqrt(), uses[:, None]), None
