"""What a run trains: all parameters, or adapters and a head beside a network that stays as it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import jax

from roberta_flax.convert import cache, huggingface
from roberta_flax.convert.adapter_files import load_adapter, save_adapter
from roberta_flax.datasets.readers import TrainedOn
from roberta_flax.errors import InputError
from roberta_flax.hub import Roberta
from roberta_flax.nn.adapters import LoRA, joined
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from roberta_flax.nn.forward import Params
from roberta_flax.text.huggingface_tokenizer import HuggingFaceTokenizer
from roberta_flax.train.step import TrainStep

if TYPE_CHECKING:
    from roberta_flax.train.loop import StepFunction

_NO_STEP = 2**32 - 1  # dropout has the keys that are folded in with a step's number


@dataclass(frozen=True)
class Trained:
    """The parameters of a run, in two trees.

    Attributes:
      params: those that it trains, on its devices: its optimizer has a state for them, and its checkpoints hold them.
      frozen: the others that its loss reads, on its devices; None if there are none.
      lora: the settings of the adapters that it trains; None if it trains the network.
      loaded: `frozen` as it was before it was divided over devices.
    """

    params: Params
    frozen: Params | None = None
    lora: LoRA | None = None
    loaded: Params | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls, params: Params, config: RobertaConfig, lora: LoRA | None, seed: int, place: Callable[[Params], Params]
    ) -> Self:
        """Divides parameters into those that are trained and the others.

        Args:
          params: of the network and of the head to train.
          config: the configuration of the network.
          lora: settings of adapters to train in the place of the network.
          seed: the seed that initializes the adapters.
          place: puts a tree on the run's devices.

        Raises:
          InputError: the adapters' targets or rank do not fit the network.
        """
        if lora is None:
            return cls(place(params))
        heads = {name: part for name, part in params.items() if name == "heads"}
        body = {name: part for name, part in params.items() if name != "heads"}
        adapters = lora.init(body, config, jax.random.fold_in(jax.random.key(seed), _NO_STEP))
        return cls(place(joined(adapters, heads)), place(body), lora, body)

    def step(self, train_step: TrainStep) -> StepFunction:
        """The step with the frozen parameters."""
        return train_step if self.frozen is None else partial(train_step, frozen=self.frozen)

    def merged(self, params: Params) -> Params:
        """All parameters, on the run's devices, with the adapters in `params` merged."""
        return params if self.lora is None else self.lora.merge(self.frozen, params)

    def merged_to_save(self, params: Params) -> Params:
        """All parameters, on one device or in memory, with the adapters in `params` merged."""
        return params if self.lora is None else self.lora.merge(self.loaded, jax.device_get(params))

    def to_text(self) -> str:
        """Describes in a line how many parameters are trained."""
        trained, others = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (self.params, self.frozen))
        return f"{trained:,} parameters are trained, and {others:,} stay as they are"


def check_apart(lora: LoRA | None, apart: bool) -> None:
    """Raises InputError if an adapter is to be kept apart, and there is none."""
    if lora is None and apart:
        raise InputError("there is no adapter to keep apart: give lora (--lora-rank), or leave out lora_apart")


def lora_note(lora: LoRA | None, apart: bool) -> dict[str, Any]:
    """Returns what a run's configuration says of its adapters, as a JSON object; nothing if it has none."""
    return {} if lora is None else {"lora": {**asdict(lora), "apart": apart}}


@dataclass(frozen=True)
class ApartAdapter:
    """An adapter that a run keeps apart from its network, in PEFT's files.

    Attributes:
      lora: its settings.
      config: the configuration of the network and the head.
      head: the head that is trained with it, if any.
      model_type: the network's in Transformers.
      base_model: the name or path of the network, if it is known.
    """

    lora: LoRA
    config: RobertaConfig
    head: HeadConfig | None
    model_type: str
    base_model: str | None

    @classmethod
    def of(cls, roberta: Roberta, lora: LoRA, config: RobertaConfig, head: HeadConfig | None) -> Self:
        """Raises CheckpointError if Transformers, for which PEFT loads adapters, has no such network or head."""
        if head is not None:
            huggingface.check_sentence_head(config, head)
        model_type = huggingface.model_type_of(config, roberta.tokenizer)
        return cls(lora, config, head, model_type, _base_model(roberta, model_type))

    def save(self, directory: Path, params: Params, trained_on: TrainedOn | None = None) -> None:
        """Writes the adapter, the head and what it is trained on, in place of a directory that exists."""
        save_adapter(
            directory, self.lora, jax.device_get(params), self.config, model_type=self.model_type, head=self.head,
            base_model=self.base_model, trained_on=trained_on, replace=True,
        )  # fmt: skip

    def load(self, directory: Path) -> dict[str, Any]:
        """Reads what `save` wrote: a tree of the adapter and the head."""
        return load_adapter(directory, self.config, self.head)[1]


def _base_model(roberta: Roberta, model_type: str) -> str | None:
    """The name or path by which a model is found again, if it is known.

    A network that is another one in Transformers, as a BERT is, has the names of a RoBERTa in its converted directory.
    """
    if roberta.source is None:
        return None
    name = cache.canonical(roberta.source)
    backend = roberta.tokenizer.backend
    if isinstance(backend, HuggingFaceTokenizer) and backend.settings.model_type not in ("", model_type):
        name = str(cache.resolve(name))
    return os.path.abspath(name) if os.path.exists(name) else name
