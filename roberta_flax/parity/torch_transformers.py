"""transformers' own RoBERTa as a reference: transformers loads it, and hooks observe its tensors."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from roberta_flax.convert.conversion import open_source
from roberta_flax.convert.export import export
from roberta_flax.convert.huggingface import HUB_PREFIX
from roberta_flax.errors import CheckpointError, InputError
from roberta_flax.extras import imported
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from roberta_flax.parity.torch_hooks import OR_BUILTIN, Hook, forward_hooks, input_hook, output_hook
from roberta_flax.parity.torch_model import LM_HEAD
from roberta_flax.parity.torch_network import OnValue, ignore_value

# The modules of a layer, and the tensors that they output.
_LAYER_OUTPUTS = {
    "attention.self.query": "attention.query",
    "attention.self.key": "attention.key",
    "attention.self.value": "attention.value",
    "attention.output.dense": "attention.output",
    "attention.output.LayerNorm": "attention_layer_norm",
    "intermediate.dense": "feed_forward.intermediate",
    "intermediate": "feed_forward.activation",
    "output.dense": "feed_forward.output",
    "output.LayerNorm": "feed_forward_layer_norm",
}


class TransformersModel:
    """A torch_model.TorchModel: the RobertaFor... classes of transformers, in float64 and in eval mode.

    Loads the source itself if it has transformers' format, or else what export() writes: one model for each head. It
    exposes attention weights, but not the scores.

    Args:
      source: the model, as the caller named it.
      directory: the converted model.
      config: configuration of the model.
      cache_dir: as in convert().
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        directory: Path,
        config: RobertaConfig,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        transformers = imported("transformers", "the reference transformers", "pip install transformers", OR_BUILTIN)
        if config.normalize_before:
            raise InputError("the reference transformers supports post-norm models only; use builtin or fairseq")
        self._config = config
        native = native_directory(source, directory, cache_dir)
        heads = [head for head in config.heads if head.kind != "pooler"]
        if native is not None:
            self._models = {heads[0].name if heads else LM_HEAD: _load(transformers, native)}
        else:
            self._models = _export_and_load(transformers, directory, config, heads)
        self.description: Mapping[str, str] = {
            "name": "transformers",
            "version": transformers.__version__,
            "parameters": "transformers' own files" if native is not None else "the converted model's, exported",
        }

    def parameters(self) -> dict[str, tuple[Tensor, bool]]:
        """See TorchModel. There are none, since each head has a model of its own."""
        return {}

    def run(self, tokens: Tensor, positions: Tensor, on_value: OnValue) -> dict[str, Tensor]:
        """See TorchModel."""
        mask = (tokens != self._config.pad_id).long()
        outputs: dict[str, Tensor] = {}
        for number, (name, model) in enumerate(self._models.items()):
            body = getattr(model, model.base_model_prefix, model)
            on_body_value = on_value if number == 0 else ignore_value  # all models have the same body
            with forward_hooks(self._hooks(body, on_body_value)):
                features = body(input_ids=tokens, attention_mask=mask, output_attentions=True).last_hidden_state
            on_body_value("features", features)
            head = next((head for head in self._config.heads if head.name == name), None)
            if head is not None:
                outputs[name] = _run_head(head, model, body, features, on_value)
            elif self._config.lm_head:
                selected = torch.take_along_dim(features, positions[..., None], 1)
                with forward_hooks([(model.lm_head.layer_norm, output_hook(on_value, "lm_head.layer_norm"))]):
                    outputs[LM_HEAD] = model.lm_head(selected)
            for pooler in self._config.heads:
                if pooler.kind == "pooler" and pooler.name not in outputs and getattr(body, "pooler", None) is not None:
                    outputs[pooler.name] = body.pooler(features)
                    on_value(f"heads.{pooler.name}.dense", outputs[pooler.name])
        return outputs

    def _hooks(self, body: Any, on_value: OnValue) -> Iterator[tuple[nn.Module, Hook]]:
        """Yields modules and their hooks."""
        yield body.embeddings.LayerNorm, input_hook(on_value, "embeddings.sum")
        yield body.embeddings, output_hook(on_value, "embeddings.output")
        for i, layer in enumerate(body.encoder.layer):
            for module, name in _LAYER_OUTPUTS.items():
                yield layer.get_submodule(module), output_hook(on_value, f"layers.{i}.{name}")
            yield layer.attention.self, _attention_hook(on_value, f"layers.{i}.attention")
            yield layer, output_hook(on_value, f"layers.{i}.output")


def _export_and_load(
    transformers: Any, directory: Path, config: RobertaConfig, heads: list[HeadConfig]
) -> dict[str, Any]:
    """Exports and loads one model for each head, and one for the LM head; returns them by name of the head."""
    heads_by_model: dict[str, list[str]] = {LM_HEAD: []} if config.lm_head or not heads else {}
    heads_by_model |= {head.name: [head.name] for head in heads}
    with tempfile.TemporaryDirectory(prefix="roberta-flax-parity-") as temporary:
        return {
            name: _load(
                transformers, export(directory, Path(temporary) / (name or "lm"), to="huggingface", heads=names)
            )
            for name, names in heads_by_model.items()
        }


def _load(transformers: Any, folder: Path) -> Any:
    """Loads a directory with the class that its configuration names."""
    config = transformers.AutoConfig.from_pretrained(folder)
    name = (config.architectures or ["RobertaModel"])[0]
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # no warnings about parameters that the class does not use
    try:
        model, loading = getattr(transformers, name).from_pretrained(
            folder, dtype=torch.float64, attn_implementation="eager", output_loading_info=True
        )
    finally:
        transformers.logging.set_verbosity(verbosity)
    if missing := [key for key in loading["missing_keys"] if "position_ids" not in key]:
        raise CheckpointError(f"transformers does not find {', '.join(missing[:10])} in {folder}")
    return model.eval()


def _run_head(head: HeadConfig, model: Any, body: Any, features: Tensor, on_value: OnValue) -> Tensor:
    """Returns the outputs of a head for features [batch, time, hidden]."""
    if head.kind == "sentence":
        with forward_hooks([(model.classifier.out_proj, input_hook(on_value, f"heads.{head.name}.dense"))]):
            outputs: Tensor = model.classifier(features)
    elif head.kind == "choice":
        pooled = body.pooler(features)
        on_value(f"heads.{head.name}.dense", pooled)
        outputs = model.classifier(pooled)
    else:
        outputs = (model.classifier if head.kind == "token" else model.qa_outputs)(features)
    return outputs


def _attention_hook(on_value: OnValue, prefix: str) -> Hook:
    def hook(inputs: Any, output: Any) -> None:
        on_value(f"{prefix}.context", output[0])
        on_value(f"{prefix}.weights", output[1])

    return hook


def native_directory(
    source: str | os.PathLike[str], directory: Path, cache_dir: str | os.PathLike[str] | None
) -> Path | None:
    """Returns the directory that transformers itself would load, or None if the source has another format."""
    is_directory = os.path.isdir(source) and Path(source).resolve() != directory.resolve()
    if not is_directory and not str(source).startswith(HUB_PREFIX):
        return None
    with open_source(source, "model.pt", cache_dir) as source_files:
        return source_files.weights[0].parent if source_files.kind == "huggingface" else None
