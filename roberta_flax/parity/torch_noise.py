"""Arithmetic with errors put in on purpose: how far from the exact values a sound implementation may be.

After every operation of the torch reference a random error is added, of the size that this operation makes in the
arithmetic in question (Monte Carlo arithmetic: Parker, 1997). How errors travel through the layers, grow and cancel is
then not estimated but computed, by the network itself with its own weights on the same inputs; backwards too.

What one operation does (u: the unit roundoff of results, w: of a product's operands; Higham, 2002, chapters 2 to 4):

  a product's operands   uniform within w of their size: they are rounded to the computing dtype, a gradient too
  a sum of n terms       normal, of deviation u sqrt(n) (|terms| / sqrt(6) + |sum| / 3): each partial sum is rounded
                         within u of its size, and partial sums grow as a random walk and as a line do. That is for one
                         term after the other, the least exact order. A bias may come first, and then each partial sum
                         is as large: u sqrt(n) |bias| / sqrt(3) more
  anything else          uniform within u of the result, or 4 u where a library's function is called; of an activation,
                         x (1 + erf), relative to x where that is larger. In 16 bits its derivative is taken at a
                         rounded argument (roberta_flax.nn.residuals)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod, sqrt
from typing import Any

import torch
from torch import Tensor

from roberta_flax.parity.rounding import Rounding
from roberta_flax.parity.torch_network import FUNCTION_UNITS, Arithmetic

_INT8_STEPS = 127  # roberta_flax.nn.quantize


class Noise(Arithmetic):
    """Arithmetic in float64 with the errors of another.

    Args:
      rounding: whose errors.
      seed: of the random numbers.
    """

    def __init__(self, rounding: Rounding, seed: int) -> None:
        self.rounding = rounding
        self._generator = torch.Generator().manual_seed(seed)

    def product(
        self, equation: str, left: Tensor, right: Tensor, plus: Tensor | None = None, *, of_layer: bool = False
    ) -> Tensor:
        """The einsum, plus `plus`, with what rounding its operands and its sums does, here and in the gradients."""
        result: Tensor = _Product.apply(self, equation, of_layer, left, right, plus)  # type: ignore[no-untyped-call]
        return result

    def total(self, x: Tensor) -> Tensor:
        """The sum over the last axis."""
        total = x.sum(-1, keepdim=True)
        return total + self.sum_error(total, x.norm(dim=-1, keepdim=True), x.shape[-1])

    def rounded(self, x: Tensor, units: float = 1.0) -> Tensor:
        """`x` with an error relative to it; its gradient with one relative to that."""
        result: Tensor = _Rounded.apply(self, x, units)  # type: ignore[no-untyped-call]
        return result

    def activated(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """A function of each number, with the error of a library's; its derivative too."""
        result: Tensor = _Activated.apply(self, function, x)  # type: ignore[no-untyped-call]
        return result

    def repeated(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """A vector for every token; its gradient is a sum over them."""
        result: Tensor = _Repeated.apply(self, x, tuple(shape))  # type: ignore[no-untyped-call]
        return result

    def rows(self, table: Tensor, ids: Tensor) -> Tensor:
        """Rows of a table; a row's gradient is a sum over its uses."""
        result: Tensor = _Rows.apply(self, table, ids)  # type: ignore[no-untyped-call]
        return result

    def relative_error(self, x: Tensor, units: float = 1.0) -> Tensor:
        """Uniform within `units` units of roundoff of `x`."""
        return x.detach().abs() * self._uniform(x) * (units * self.rounding.result)

    def sum_error(self, total: Tensor, norm: Tensor, terms: Tensor | int, plus: Tensor | None = None) -> Tensor:
        """What sums of so many terms are off by, from their size, their terms' norms, and what they begin with."""
        size = norm.detach() / sqrt(6) + total.detach().abs() / 3
        size = size if plus is None else size + plus.detach().abs() / sqrt(3)
        noise = torch.randn(total.shape, dtype=total.dtype, generator=self._generator)
        return noise * size * (terms**0.5 * self.rounding.result)

    def einsum(self, equation: str, left: Tensor, right: Tensor, of_layer: bool, plus: Tensor | None = None) -> Tensor:
        """The einsum, plus `plus`, with its errors."""
        terms, of_result = equation.split("->")
        of_left, of_right = terms.split(",")
        summed = [index for index in of_left if index not in of_result]
        left = self._factor(left, [of_left.index(index) for index in summed], of_layer)
        right = self._factor(right, [of_right.index(index) for index in summed], of_layer)
        total = torch.einsum(equation, left, right)
        norm = torch.einsum(equation, left**2, right**2).sqrt()
        count = prod(left.shape[of_left.index(index)] for index in summed)
        total = total + self.sum_error(total, norm, count, plus)
        return total if plus is None else total + plus

    def operand(self, x: Tensor) -> Tensor:
        """`x` rounded to the operands' dtype."""
        if not self.rounding.operand:
            return x
        return x + self._uniform(x) * (x.abs() * self.rounding.operand + self.rounding.smallest)

    def _factor(self, x: Tensor, summed: Sequence[int], of_layer: bool) -> Tensor:
        if self.rounding.int8 and of_layer:  # the nearest of evenly spaced numbers
            return x + self._uniform(x) * x.abs().amax(tuple(summed), keepdim=True) / (2 * _INT8_STEPS)
        return self.operand(x)

    def _uniform(self, like: Tensor) -> Tensor:
        return torch.empty(like.shape, dtype=like.dtype).uniform_(-1, 1, generator=self._generator)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, noise: Noise, equation: str, of_layer: bool, left: Tensor, right: Tensor, plus: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(left, right)
        ctx.noise, ctx.equation, ctx.of_layer, ctx.has_more = noise, equation, of_layer, plus is not None
        return noise.einsum(equation, left, right, of_layer, plus)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None, Tensor, Tensor, Tensor | None]:
        left, right = ctx.saved_tensors
        terms, of_result = ctx.equation.split("->")
        of_left, of_right = terms.split(",")
        of_left_gradient = ctx.noise.einsum(f"{of_result},{of_right}->{of_left}", gradient, right, ctx.of_layer)
        of_right_gradient = ctx.noise.einsum(f"{of_left},{of_result}->{of_right}", left, gradient, ctx.of_layer)
        return None, None, None, of_left_gradient, of_right_gradient, gradient if ctx.has_more else None


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, noise: Noise, x: Tensor, units: float) -> Tensor:
        ctx.noise, ctx.units = noise, units
        return x + noise.relative_error(x, units)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        return None, gradient + ctx.noise.relative_error(gradient, ctx.units), None


class _Activated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, noise: Noise, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.noise, ctx.function = noise, function
        value = function(x)
        return value + noise.relative_error(torch.maximum(value.abs(), x.abs()), FUNCTION_UNITS)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, Tensor]:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = ctx.noise.operand(x.detach()).requires_grad_(True)
            (derived,) = torch.autograd.grad(ctx.function(x), x, gradient)
        error = ctx.noise.relative_error(torch.maximum(derived.abs(), gradient.abs()), FUNCTION_UNITS)
        return None, None, derived + error


class _Repeated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, noise: Noise, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        ctx.noise = noise
        return x.expand(*shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        tokens = gradient.reshape(-1, gradient.shape[-1])
        total = tokens.sum(0)
        return None, total + ctx.noise.sum_error(total, tokens.norm(dim=0), len(tokens)), None


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, noise: Noise, table: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.noise, ctx.shape = noise, table.shape
        return table[ids]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        (ids,) = ctx.saved_tensors
        rows, ids = gradient.reshape(-1, gradient.shape[-1]), ids.reshape(-1)
        zeros = gradient.new_zeros(ctx.shape)
        total, squares = zeros.index_add(0, ids, rows), zeros.index_add(0, ids, rows**2)
        uses = gradient.new_zeros(ctx.shape[0]).index_add(0, ids, gradient.new_ones(len(ids)))
        return None, total + ctx.noise.sum_error(total, squares.sqrt(), uses[:, None]), None
