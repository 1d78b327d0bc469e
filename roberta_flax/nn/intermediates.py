"""Values inside the network by name, in the order in which it computes them. docs/parity.md lists what they are.

They are what the network's methods return (nnx.capture), and the scores and weights that attention records.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

import jax
from flax import nnx

from roberta_flax.errors import InputError
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from roberta_flax.nn.model import RobertaModel

if TYPE_CHECKING:
    from jaxtyping import Array

_CAPTURE_LOCK = threading.Lock()  # nnx.capture replaces methods of classes as long as it runs
_ATTENTION = tuple(f"attention.{part}" for part in ("query", "key", "value", "scores", "weights", "context", "output"))
_FEED_FORWARD = tuple(f"feed_forward.{part}" for part in ("intermediate", "activation", "output"))


def intermediate_names(config: RobertaConfig) -> list[str]:
    """The names of all values of a network."""
    norms = ("attention_layer_norm",), ("feed_forward_layer_norm",)
    if config.normalize_before:
        layer = (*norms[0], *_ATTENTION, *norms[1], *_FEED_FORWARD, "output")
    else:
        layer = (*_ATTENTION, *norms[0], *_FEED_FORWARD, *norms[1], "output")
    names = ["embeddings.sum", "embeddings.output"]
    names += [f"layers.{i}.{part}" for i in range(config.num_layers) for part in layer]
    names += ["features"]
    if config.lm_head:
        names += ["lm_head.layer_norm", "lm_head.logits"]
    return names + [f"heads.{head.name}.{part}" for head in config.heads for part in _parts(head)]


def check_names(config: RobertaConfig, names: Collection[str] | None) -> tuple[str, ...]:
    """The names in the order of computation; all without `names`.

    Raises:
      InputError: there is no value of such a name.
    """
    known = intermediate_names(config)
    if isinstance(names, str):
        raise InputError(f"names must be a list of names, got the text {names!r}")
    if unknown := sorted(set(names or ()) - set(known)):
        raise InputError(
            f"no value is called {unknown[0]!r}; this network's are {', '.join(known[:12])}, ...; "
            "forward.intermediate_names(config) lists them"
        )
    return tuple(known if names is None else [name for name in known if name in names])


def values(model: RobertaModel, run: Callable[[RobertaModel], None], names: Collection[str]) -> dict[str, Array]:
    """The values of these names that a run of the model computes, once each."""
    with _CAPTURE_LOCK:
        _remove_copies_of_inherited_methods(model)
        _, captured = nnx.capture(run, nnx.Intermediate, method_outputs=nnx.Intermediate)(model)
    outputs = {
        ".".join(str(part.key) for part in path[:-1]): value  # the last part numbers the calls, of which there is one
        for path, value in jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(captured))[0]
    }
    return {name: outputs[_captured_as(name)] for name in names if _captured_as(name) in outputs}


def _remove_copies_of_inherited_methods(model: RobertaModel) -> None:
    """Restores what nnx.tabulate changes for good: it gives each class its inherited methods as its own.

    nnx.capture replaces a class's own methods. With `sow` among them, which the replacements call, it would never end.
    (Seen in flax 0.12.8.)
    """
    for cls in {type(module) for _, module in nnx.iter_modules(model)}:
        inherited = {name: value for base in reversed(cls.__mro__[1:]) for name, value in vars(base).items()}
        for name, value in [*vars(cls).items()]:
            if not name.startswith("__") and callable(value) and inherited.get(name) is value:
                delattr(cls, name)


def _captured_as(name: str) -> str:
    """The path and method, as nnx.capture names them, whose output is the named value."""
    module, _, part = name.rpartition(".")
    if part in ("sum", "context", "scores", "weights", "activation", "features"):
        return name
    if part == "output" and not module.endswith((".attention", ".feed_forward")):  # a layer's, or the embeddings'
        return f"{module}.__call__"
    if part == "dense":  # a head's, activated
        return f"{module}.activation"
    if part == "logits":
        return f"{module}.__call__"
    return f"{name}.__call__"


def _parts(head: HeadConfig) -> list[str]:
    return ["dense", "logits"] if head.has_dense else ["logits"]
