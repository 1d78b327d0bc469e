"""Forward hooks that observe the inputs and outputs of torch modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from roberta_flax.parity.torch_network import OnValue

OR_BUILTIN = "use --reference builtin"  # what to do if a reference is not installed

Hook = Callable[[Any, Any], None]  # called with the inputs and the output of a module


@contextmanager
def forward_hooks(hooks: Iterable[tuple[nn.Module, Hook]]) -> Iterator[None]:
    """Calls each hook with the inputs of its module, positional ones before keyword ones, and with its output."""
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


def output_hook(on_value: OnValue, name: str, transform: Callable[[Tensor], Tensor] = lambda x: x) -> Hook:
    """Returns a hook that passes the output of a module to `on_value`, or the first if there are several."""
    return lambda inputs, output: on_value(name, transform(output[0] if isinstance(output, tuple) else output))


def input_hook(on_value: OnValue, name: str, transform: Callable[[Tensor], Tensor] = lambda x: x) -> Hook:
    """Returns a hook that passes the first input of a module to `on_value`."""
    return lambda inputs, output: on_value(name, transform(inputs[0]))
