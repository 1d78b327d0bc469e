"""The interface of a torch network that serves as a reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from roberta_flax.parity.torch_network import OnValue

LM_HEAD = ""  # the key of the LM head's outputs; other heads have names


class TorchModel(Protocol):
    """A network in torch, in float64 and in eval mode.

    Attributes:
      description: its name, its version, and where its parameters came from.
    """

    description: Mapping[str, str]

    def run(self, tokens: Tensor, positions: Tensor, on_value: OnValue) -> dict[str, Tensor]:
        """Runs the network and all heads.

        Args:
          tokens: int64 [batch, time].
          positions: int64 [batch, selected], where to evaluate the LM head.
          on_value: called with the name and the value of each tensor that the network exposes, in the shapes listed in
            roberta_flax.parity.tensor_names. The features and the dense layers of heads are always among them.

        Returns:
          The outputs of each head by name, and under LM_HEAD the logits at the positions.
        """

    def parameters(self) -> Mapping[str, tuple[Tensor, bool]]:
        """Returns the parameters to compute gradients for, by tree path, and whether the tree has them transposed."""
