"""Values inside a torch module, by forward hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor, nn

from roberta_flax.parity.torch_network import OnValue

OR_BUILTIN = "take --reference builtin"  # where a reference is not installed
Hook = Callable[[Any, Any], None]  # of a module's inputs and output


@contextmanager
def watched(hooks: Iterable[tuple[nn.Module, Hook]]) -> Iterator[None]:
    """Has each module's inputs, positional ones first and then those by name, and output given to its hook."""
    handles = [
        module.register_forward_hook(
            lambda _, args, kwargs, output, hook=hook: hook((*args, *kwargs.values()), output), with_kwargs=True
        )
        for module, hook in hooks
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Model(Protocol):
    """A reference: a network in torch, in float64 and in eval mode.

    Attributes:
      description: its name, its version, and where its parameters came from.
    """

    description: Mapping[str, str]

    def run(self, tokens: Tensor, positions: Tensor, on_value: OnValue) -> dict[str, Tensor]:
        """Computes everything and shows the values that it can show, features and dense layers among them.

        Args:
          tokens: int64 [batch, time].
          positions: int64 [batch, selected], where the LM head is asked.
          see: called with a point's name and value, in the shapes of roberta_flax.parity.points.

        Returns:
          The outputs of each head by name, and under "" the LM head's at the positions.
        """

    def parameters(self) -> Mapping[str, tuple[Tensor, bool]]:
        """The parameters that gradients are taken of, by path of the tree, and whether they are transposed there."""
