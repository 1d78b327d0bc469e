"""How a model is used, as the files beside its weights say: prompts, pooling, maximum length, activation.

A converted directory keeps it in two files; a model whose source says nothing, as fairseq's do not, has neither.

  usage.json            the settings of `Usage`
  modules.safetensors   the parameters of its Dense and LayerNorm modules: `2.kernel` is the kernel of the third module
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from roberta_flax.checkpoint.tensors import Values, read_tensors, write_tensors
from roberta_flax.errors import CheckpointError, InputError, require_positive, shortened
from roberta_flax.files import read_text, write_bytes
from roberta_flax.nn.config import NO_LM_HEAD, RobertaConfig
from roberta_flax.nn.sentence import (
    MODULES,
    Module,
    ModuleParams,
    MultiVectorMask,
    Pooling,
    QueryExpansion,
    SpladePooling,
    check_activation,
    param_shapes,
    vector_size,
)

USAGE_FILE = "usage.json"
MODULES_FILE = "modules.safetensors"
TOKEN_HEADS = ("sparse", "colbert")  # of BGE-M3: linear layers over each token's features
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")  # sentence_transformers.SimilarityFunction
MULTI_VECTOR_SIMILARITIES = ("maxsim", "meanmaxsim")  # MultiVectorEncoder.SUPPORTED_SIMILARITY_FN_NAMES


@dataclass(frozen=True)
class Embedding:
    """How sentence vectors are made, or those of a text's tokens.

    Attributes:
      modules: a Pooling, a SpladePooling or a MultiVectorMask, and then any modules of nn.sentence.
      lower_case: whether texts are lowercased before they are encoded.
      prompts: the text to put before each text, by name.
      default_prompt: the name of the prompt to use if none is chosen.
      similarity: how two vectors are compared, one of SIMILARITIES; or two texts' vectors, one of
        MULTI_VECTOR_SIMILARITIES.
      truncate_dim: how many numbers of each vector are kept; None for all.
      max_active_dims: how many weights of a sparse vector are kept, the highest; None for all.
      strip: whether whitespace at both ends of a text is removed before it is encoded.
    """

    modules: tuple[Module, ...] = (Pooling(),)
    lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    similarity: str = "cosine"
    truncate_dim: int | None = None
    max_active_dims: int | None = None
    strip: bool = True

    def __post_init__(self) -> None:
        firsts = Pooling | SpladePooling | MultiVectorMask
        if not self.modules or not isinstance(self.modules[0], firsts):
            raise InputError(
                "the first module of a sentence encoder must be a Pooling, a SpladePooling or a MultiVectorMask"
            )
        if any(isinstance(module, firsts) for module in self.modules[1:]):
            raise InputError("a sentence encoder has one pooling")
        if self.default_prompt is not None and self.default_prompt not in self.prompts:
            raise InputError(f"there is no prompt {self.default_prompt!r}; there are: {', '.join(self.prompts)}")
        if not all(isinstance(text, str) for text in (*self.prompts, *self.prompts.values())):
            raise InputError("prompts must be texts by name")
        if self.truncate_dim is not None:
            require_positive(truncate_dim=self.truncate_dim)
            if self.is_multi_vector:
                raise InputError("truncate_dim is for one vector a text; a multi-vector encoder keeps all numbers")
        if self.max_active_dims is not None:
            require_positive(max_active_dims=self.max_active_dims)
        known = MULTI_VECTOR_SIMILARITIES if self.is_multi_vector else SIMILARITIES
        if self.similarity not in known:
            raise InputError(f"similarity must be one of {', '.join(known)}, got {self.similarity!r}")

    @property
    def is_sparse(self) -> bool:
        """Whether a vector has a weight for each token of the vocabulary, most of which are zero."""
        return isinstance(self.modules[0], SpladePooling)

    @property
    def is_multi_vector(self) -> bool:
        """Whether a text has a vector for each of its tokens."""
        return isinstance(self.modules[0], MultiVectorMask)

    def prompt(self, prompt: str | None = None, name: str | None = None) -> str:
        """The text to put before each text: `prompt`, or the prompt called `name`, or else the default one.

        Raises:
          InputError: there is no prompt of this name.
        """
        if prompt is not None:
            return prompt
        if name is None:
            name = self.default_prompt
        if name is not None and name not in self.prompts:
            raise InputError(f"there is no prompt {name!r}; there are: {', '.join(map(repr, self.prompts)) or 'none'}")
        return "" if name is None else self.prompts[name]

    def vector_size(self, hidden_size: int) -> int:
        """The width of the vectors that are made of features of `hidden_size`."""
        size = vector_size(self.modules, hidden_size)
        return size if self.truncate_dim is None else min(size, self.truncate_dim)


@dataclass(frozen=True)
class Scoring:
    """How the outputs of a sentence head become scores.

    Attributes:
      head: name of the head.
      activation: the one that the source names for a cross-encoder, of nn.sentence.ACTIVATIONS; None if it names none.
      is_regression: whether the source calls the head a regression (problem_type), whose values are no scores.
    """

    head: str
    activation: str | None = None
    is_regression: bool = False

    def __post_init__(self) -> None:
        if self.activation is not None:
            check_activation(self.activation)


@dataclass(frozen=True)
class Usage:
    """How a model is used, as its source says.

    Attributes:
      max_length: maximum length of an input in tokens; None if the source gives none.
      embedding: how sentence vectors are made; None if the source does not say.
      scoring: how outputs become scores; None if the source does not say.
      module_params: for each module of `embedding` its parameters by name.
      token_params: for each of TOKEN_HEADS that there is, its "kernel" [hidden, size] and "bias".
    """

    max_length: int | None = None
    embedding: Embedding | None = None
    scoring: Scoring | None = None
    module_params: tuple[ModuleParams, ...] = field(default=(), compare=False, repr=False)
    token_params: Mapping[str, ModuleParams] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.max_length is not None:
            require_positive(max_length=self.max_length)
        if self.embedding is not None and not self.module_params:
            object.__setattr__(self, "module_params", ({},) * len(self.embedding.modules))

    def scoring_of(self, head: str) -> Scoring | None:
        """How the outputs of the head called `head` become scores; None if the source does not say."""
        return self.scoring if self.scoring is not None and self.scoring.head == head else None

    def check(self, config: RobertaConfig) -> None:
        """Raises InputError unless the network and the parameters are there that the modules need."""
        pooling = None if self.embedding is None else self.embedding.modules[0]
        if isinstance(pooling, SpladePooling):
            if not config.lm_head:
                raise InputError(f"a SpladePooling is over the logits of a masked LM, but {NO_LM_HEAD}")
            if pooling.vocab_size != config.vocab_size:
                raise InputError(
                    f"a SpladePooling of {pooling.vocab_size} tokens does not fit a vocabulary of {config.vocab_size}"
                )
        expansion = pooling.expansion if isinstance(pooling, MultiVectorMask) else None
        if expansion is not None and expansion.length > config.max_positions:
            raise InputError(
                f"queries are expanded to {expansion.length} tokens, over the model's {config.max_positions}"
            )
        hidden_size = config.hidden_size
        expected = [] if self.embedding is None else param_shapes(self.embedding.modules, hidden_size)
        found = [{name: tuple(value.shape) for name, value in each.items()} for each in self.module_params]
        if found != expected:
            raise InputError(f"the parameters of the modules have the shapes {found}, expected {expected}")
        for head, params in self.token_params.items():
            shapes = {name: tuple(value.shape) for name, value in params.items()}
            size = shapes.get("bias", (0,))[0]
            if head not in TOKEN_HEADS or shapes != {"kernel": (hidden_size, size), "bias": (size,)}:
                raise InputError(f"the head {head!r} of tokens has parameters of the shapes {shapes}")


def write(usage: Usage, directory: Path) -> None:
    """Writes both files into `directory`; neither for a Usage that says nothing."""
    if usage == Usage() and not usage.token_params:
        return
    settings = dataclasses.asdict(dataclasses.replace(usage, module_params=(), token_params={}))
    del settings["module_params"], settings["token_params"]
    settings["token_heads"] = list(usage.token_params)
    if usage.embedding is not None:
        settings["embedding"]["modules"] = [
            {"type": type(module).__name__, **dataclasses.asdict(module)} for module in usage.embedding.modules
        ]
    write_bytes(directory / USAGE_FILE, (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode())
    parts = {**{str(number): params for number, params in enumerate(usage.module_params)}, **usage.token_params}
    tensors = {f"{part}.{name}": Values(value) for part, params in parts.items() for name, value in params.items()}
    if tensors:
        write_tensors(directory / MODULES_FILE, tensors)


def read(directory: Path, config: RobertaConfig) -> Usage:
    """Reads what `write` wrote. Raises CheckpointError if the files are damaged."""
    path = directory / USAGE_FILE
    if not path.is_file():
        return Usage()
    try:
        settings = json.loads(read_text(path))
        usage = _parse(settings)
        shapes = param_shapes(usage.embedding.modules, config.hidden_size) if usage.embedding is not None else []
        heads = settings.get("token_heads", [])
        stored = read_tensors(directory / MODULES_FILE) if any(shapes) or heads else {}

        def parameters(part: str | int, names: Iterable[str]) -> ModuleParams:
            return {name: np.array(stored[f"{part}.{name}"].read()) for name in names}

        usage = dataclasses.replace(
            usage,
            module_params=tuple(parameters(number, names) for number, names in enumerate(shapes)),
            token_params={head: parameters(head, ("kernel", "bias")) for head in heads},
        )
        usage.check(config)
    except CheckpointError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({shortened(repr(error))}); convert the model again") from None
    return usage


def _parse(settings: dict[str, Any]) -> Usage:
    embedding, scoring = settings.get("embedding"), settings.get("scoring")
    if embedding is not None:
        modules = []
        for module in embedding["modules"]:
            values = {key: value for key, value in module.items() if key != "type"}
            if values.get("expansion") is not None:
                values["expansion"] = QueryExpansion(**values["expansion"])
            modules.append(MODULES[module["type"]](**values))
        embedding = Embedding(**{**embedding, "modules": tuple(modules)})
    return Usage(settings.get("max_length"), embedding, None if scoring is None else Scoring(**scoring))
