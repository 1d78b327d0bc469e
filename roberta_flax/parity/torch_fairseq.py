"""fairseq's own RoBERTa as a reference: built by it, and watched by hooks."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from roberta_flax.convert.export import fairseq_arguments
from roberta_flax.convert.names import TRANSPOSE, from_fairseq
from roberta_flax.errors import CheckpointError, InputError
from roberta_flax.extras import imported
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.parity.torch_hooks import OR_BUILTIN, Hook, watched
from roberta_flax.parity.torch_network import OnValue

# of a layer: its modules, and the points that their outputs are
_OUTPUTS = {
    "self_attn_layer_norm": "attention_layer_norm",
    "fc1": "feed_forward.intermediate",
    "fc2": "feed_forward.output",
    "final_layer_norm": "feed_forward_layer_norm",
}


class Fairseq:
    """A torch_hooks.Model: fairseq.models.roberta.RobertaModel, in float64 and in eval mode.

    Its attention shows neither scores nor weights: torch.nn.functional.multi_head_attention_forward computes them.

    Args:
      state: the parameters under the names that fairseq writes today, float64.
      config: the model's.
      parameters: where they came from.
    """

    def __init__(self, state: Mapping[str, Tensor], config: RobertaConfig, parameters: str) -> None:
        with _logging_as_it_is():
            fairseq, roberta = (
                imported(module, "the reference fairseq", "the README's commands (Tests)", OR_BUILTIN)
                for module in ("fairseq", "fairseq.models.roberta")
            )
        if config.type_vocab_size or any(head.kind != "sentence" for head in config.heads):
            raise InputError("fairseq's RoBERTa has no token types and sentence heads only; take --reference builtin")
        self.description: Mapping[str, str] = {
            "name": "fairseq",
            "version": fairseq.__version__,
            "parameters": parameters,
        }
        self._config = config
        args = fairseq_arguments(config, config.heads)
        roberta.model.base_architecture(args)
        task = argparse.Namespace(source_dictionary=_Dictionary(config))
        self._model = roberta.RobertaModel.build_model(args, task)
        for head in config.heads:
            self._model.register_classification_head(head.name, head.num_classes, head.inner_size)
        self._model = self._model.double().eval()
        # without a version, a pre-norm network's last LayerNorm would be dropped (TransformerEncoderBase)
        given = {"encoder.sentence_encoder.version": torch.tensor([3.0]), **state}
        if config.lm_head and config.tie_word_embeddings:
            given["encoder.lm_head.weight"] = given["encoder.sentence_encoder.embed_tokens.weight"]
        try:
            self._model.load_state_dict(given)
        except RuntimeError as error:
            raise CheckpointError(
                f"fairseq does not take these parameters: {' '.join(str(error).split())[:500]}"
            ) from None
        self._encoder = self._model.encoder.sentence_encoder
        if config.activation == "gelu":  # fairseq/modules/gelu.py computes in float32, whatever it is given
            for layer in self._encoder.layers:
                layer.activation_fn = F.gelu
            if config.lm_head:
                self._model.encoder.lm_head.activation_fn = F.gelu

    def state(self) -> dict[str, Tensor]:
        """Its parameters by their names."""
        return {name: parameter.detach() for name, parameter in self._model.named_parameters()}

    def parameters(self) -> dict[str, tuple[Tensor, bool]]:
        """See Model."""
        found = {}
        for name, parameter in self._model.named_parameters():
            place = from_fairseq(name)
            assert place is not None, name
            found[place.path] = (parameter, place.transform is TRANSPOSE)
        return found

    def run(self, tokens: Tensor, positions: Tensor, on_value: OnValue) -> dict[str, Tensor]:
        """See Model."""
        with watched(self._hooks(on_value)):
            features, _ = self._model(tokens, features_only=True)
            on_value("features", features)
            outputs = {}
            if self._config.lm_head:
                selected = torch.take_along_dim(features, positions[..., None], 1)
                outputs[""] = self._model.encoder.lm_head(selected)
            for head in self._config.heads:
                outputs[head.name] = self._model.classification_heads[head.name](features)
        return outputs

    def _hooks(self, on_value: OnValue) -> Iterator[tuple[nn.Module, Hook]]:
        """The modules, and what their outputs or inputs are. Inside the encoder values are [time, batch, ...]."""

        def output(point: str, transpose: bool = True) -> Hook:
            return lambda inputs, output: on_value(point, output.transpose(0, 1) if transpose else output)

        def first_input(point: str, transpose: bool = True) -> Hook:
            return lambda inputs, output: on_value(point, inputs[0].transpose(0, 1) if transpose else inputs[0])

        encoder = self._encoder
        if encoder.layernorm_embedding is not None:
            yield encoder.layernorm_embedding, first_input("embeddings.sum", transpose=False)
        yield encoder.layers[0], first_input("embeddings.output")
        for i, layer in enumerate(encoder.layers):
            point = f"layers.{i}"
            for name, part in _OUTPUTS.items():
                yield getattr(layer, name), output(f"{point}.{part}")
            yield layer.fc2, first_input(f"{point}.feed_forward.activation")
            yield layer.self_attn, partial(_show_attention, on_value, f"{point}.attention", layer.self_attn)
            yield layer, partial(_show_layer, on_value, f"{point}.output")
        if self._config.lm_head:
            yield self._model.encoder.lm_head.layer_norm, output("lm_head.layer_norm", transpose=False)
        for head in self._config.heads:
            module = self._model.classification_heads[head.name].out_proj
            yield module, first_input(f"heads.{head.name}.dense", transpose=False)


def _show_layer(on_value: OnValue, point: str, inputs: Any, output: Any) -> None:
    on_value(point, (output[0] if isinstance(output, tuple) else output).transpose(0, 1))


def _show_attention(on_value: OnValue, point: str, attention: Any, inputs: Any, output: Any) -> None:
    """What its projections make of its input: it hands their weights to torch, and does not call them."""
    for part in ("query", "key", "value"):
        on_value(f"{point}.{part}", getattr(attention, f"{part[0]}_proj")(inputs[0]).transpose(0, 1))
    on_value(f"{point}.output", output[0].transpose(0, 1))


@contextmanager
def _logging_as_it_is() -> Iterator[None]:
    """Importing fairseq sets the root logger up, to print all that anybody logs."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


class _Dictionary:
    """As much of fairseq's Dictionary as a model is built from."""

    def __init__(self, config: RobertaConfig) -> None:
        self._size, self._pad = config.vocab_size, config.pad_id

    def __len__(self) -> int:
        return self._size

    def pad(self) -> int:
        """The id of padding."""
        return self._pad
