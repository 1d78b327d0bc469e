"""sentence-transformers itself as a reference: it loads the repository, and gives its sentence vectors and scores."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from roberta_flax.checkpoint.usage import Usage
from roberta_flax.convert.export import export
from roberta_flax.convert.sentence_transformers import repository_root
from roberta_flax.errors import InputError
from roberta_flax.extras import imported
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.parity.tensor_names import SENTENCE_VECTOR, cross_encoder_activation
from roberta_flax.parity.torch_hooks import OR_BUILTIN
from roberta_flax.parity.torch_model import TorchModel
from roberta_flax.parity.torch_network import OnValue
from roberta_flax.parity.torch_transformers import native_directory


class SentenceTransformersModel:
    """A torch_model.TorchModel: what users of sentence-transformers see, in float64 and in eval mode.

    Tensors inside the network are those of another model of the same parameters, and so are heads that the library
    does not have. Loads the source itself if it is a repository, or else what export() writes.

    Args:
      source: the model, as the caller named it.
      directory: the converted model.
      inside: the other model.
      config: configuration of the model.
      usage: what its repository makes of its outputs.
      cache_dir: as in convert().

    Raises:
      InputError: sentence-transformers is not installed, or the model is none of its.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        directory: Path,
        inside: TorchModel,
        config: RobertaConfig,
        usage: Usage,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        what, command = "the reference sentence-transformers", "pip install sentence-transformers"
        library = imported("sentence_transformers", what, command, OR_BUILTIN)
        self._inside, self._pad_id = inside, config.pad_id
        self._is_sparse = usage.embedding is not None and usage.embedding.is_sparse
        scored = [head.name for head in config.heads if cross_encoder_activation(head, usage)]
        self._scored = scored[0] if scored and usage.embedding is None else None
        if usage.embedding is not None and usage.embedding.is_multi_vector:
            raise InputError("the vectors of a multi-vector encoder are not compared here; use builtin or transformers")
        if usage.embedding is None and self._scored is None:
            raise InputError(
                "the model is neither a sentence encoder nor a cross-encoder of sentence-transformers; use builtin or "
                "transformers"
            )
        self._truncate_dim = None if usage.embedding is None else usage.embedding.truncate_dim
        native = native_directory(source, directory, cache_dir)
        with tempfile.TemporaryDirectory(prefix="roberta-flax-parity-") as temporary:
            if native is None:
                heads = None if self._scored is None else [self._scored]
                folder = export(directory, Path(temporary) / "exported", to="sentence-transformers", heads=heads)
            else:
                folder = repository_root(native)
            if usage.embedding is None:
                kind = library.CrossEncoder
            else:
                kind = library.SparseEncoder if self._is_sparse else library.SentenceTransformer
            self._model = kind(str(folder), device="cpu").double().eval()
        self.description: Mapping[str, str] = {
            "name": "sentence-transformers",
            "version": f"{library.__version__}; inside the network {inside.description['version']}",
            "parameters": "sentence-transformers' own files" if native else "the converted model's, exported",
        }

    def parameters(self) -> Mapping[str, tuple[Tensor, bool]]:
        """See TorchModel. Gradients are those of the other model."""
        return self._inside.parameters()

    def run(self, tokens: Tensor, positions: Tensor, on_value: OnValue) -> dict[str, Tensor]:
        """See TorchModel."""
        outputs = self._inside.run(tokens, positions, on_value)
        given: dict[str, Any] = {"input_ids": tokens, "attention_mask": (tokens != self._pad_id).long()}
        with torch.no_grad():
            if self._scored is not None:
                scores = self._model.activation_fn(self._model.model(**given).logits)
                on_value(f"heads.{self._scored}.score", scores)
            else:
                on_value(SENTENCE_VECTOR, self._model(given)["sentence_embedding"][:, : self._truncate_dim])
        return outputs
