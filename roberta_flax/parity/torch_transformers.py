"""transformers' own RoBERTa as a reference: loaded by it, and watched by hooks."""

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
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.parity.torch_hooks import OR_BUILTIN, Hook, watched
from roberta_flax.parity.torch_network import OnValue

# of a layer: its modules, and the points that their outputs are
_OUTPUTS = {
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


class Transformers:
    """A torch_hooks.Model: transformers' RobertaFor... classes, in float64 and in eval mode.

    Where the model is transformers' own it is loaded as it is; else what export() makes of it, a model for each head.
    Attention scores before the softmax are not shown.

    Args:
      source: the model, as it was named.
      directory: the same, converted.
      config: its configuration.
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
            raise InputError("the reference transformers is for post-norm models; take builtin or fairseq")
        self._config = config
        self._models: dict[str, Any] = {}
        native = _native(source, directory, cache_dir)
        with tempfile.TemporaryDirectory(prefix="roberta-flax-parity-") as temporary:
            named = [head for head in config.heads if head.kind != "pooler"]
            if native is not None:
                self._models[named[0].name if named else ""] = self._load(transformers, native)
            else:
                wanted: dict[str, list[str]] = {"": []} if config.lm_head or not named else {}
                for name, heads in (wanted | {head.name: [head.name] for head in named}).items():
                    exported = export(directory, Path(temporary) / (name or "lm"), to="huggingface", heads=heads)
                    self._models[name] = self._load(transformers, exported)
        how = "transformers' own files" if native is not None else "the converted model's, exported"
        self.description: Mapping[str, str] = {
            "name": "transformers",
            "version": transformers.__version__,
            "parameters": how,
        }

    def _load(self, transformers: Any, folder: Path) -> Any:
        config = transformers.AutoConfig.from_pretrained(folder)
        name = (config.architectures or ["RobertaModel"])[0]
        verbosity = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()  # it warns of what the model's class has no use for
        try:
            found, loading = getattr(transformers, name).from_pretrained(
                folder, dtype=torch.float64, attn_implementation="eager", output_loading_info=True
            )
        finally:
            transformers.logging.set_verbosity(verbosity)
        if missing := [key for key in loading["missing_keys"] if "position_ids" not in key]:
            raise CheckpointError(f"transformers does not find {', '.join(missing[:10])} in {folder}")
        return found.eval()

    def parameters(self) -> dict[str, tuple[Tensor, bool]]:
        """See Model; none, since heads are in models of their own."""
        return {}

    def run(self, tokens: Tensor, positions: Tensor, on_value: OnValue) -> dict[str, Tensor]:
        """See Model."""
        mask = (tokens != self._config.pad_id).long()
        outputs: dict[str, Tensor] = {}
        for number, (name, model) in enumerate(self._models.items()):
            body = getattr(model, model.base_model_prefix, model)
            shows = on_value if number == 0 else lambda point, value: None
            with watched(self._hooks(body, shows)):
                features = body(input_ids=tokens, attention_mask=mask, output_attentions=True).last_hidden_state
            shows("features", features)
            head = next((head for head in self._config.heads if head.name == name), None)
            if head is None and self._config.lm_head:
                selected = torch.take_along_dim(features, positions[..., None], 1)
                with watched([(model.lm_head.layer_norm, _output(on_value, "lm_head.layer_norm"))]):
                    outputs[""] = model.lm_head(selected)
            elif head is not None and head.kind == "sentence":
                with watched([(model.classifier.out_proj, _first_input(on_value, f"heads.{name}.dense"))]):
                    outputs[name] = model.classifier(features)
            elif head is not None and head.kind == "choice":
                pooled = body.pooler(features)
                on_value(f"heads.{name}.dense", pooled)
                outputs[name] = model.classifier(pooled)
            elif head is not None:
                outputs[name] = (model.classifier if head.kind == "token" else model.qa_outputs)(features)
            for pooler in self._config.heads:
                if pooler.kind == "pooler" and pooler.name not in outputs and getattr(body, "pooler", None) is not None:
                    outputs[pooler.name] = body.pooler(features)
                    on_value(f"heads.{pooler.name}.dense", outputs[pooler.name])
        return outputs

    def _hooks(self, body: Any, on_value: OnValue) -> Iterator[tuple[nn.Module, Hook]]:
        yield body.embeddings.LayerNorm, _first_input(on_value, "embeddings.sum")
        yield body.embeddings, _output(on_value, "embeddings.output")
        for i, layer in enumerate(body.encoder.layer):
            for name, part in _OUTPUTS.items():
                yield layer.get_submodule(name), _output(on_value, f"layers.{i}.{part}")
            yield layer.attention.self, _attention(on_value, f"layers.{i}.attention")
            yield layer, _output(on_value, f"layers.{i}.output")


def _output(on_value: OnValue, point: str) -> Hook:
    return lambda inputs, output: on_value(point, output[0] if isinstance(output, tuple) else output)


def _first_input(on_value: OnValue, point: str) -> Hook:
    return lambda inputs, output: on_value(point, inputs[0])


def _attention(on_value: OnValue, point: str) -> Hook:
    def show(inputs: Any, output: Any) -> None:
        on_value(f"{point}.context", output[0])
        on_value(f"{point}.weights", output[1])

    return show


def _native(source: str | os.PathLike[str], directory: Path, cache_dir: str | os.PathLike[str] | None) -> Path | None:
    """The directory that transformers itself would load, where the source is one."""
    is_directory = os.path.isdir(source) and Path(source).resolve() != directory.resolve()
    if not is_directory and not str(source).startswith(HUB_PREFIX):
        return None
    with open_source(source, "model.pt", cache_dir) as source_files:
        return source_files.weights[0].parent if source_files.kind == "huggingface" else None
