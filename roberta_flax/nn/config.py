"""RobertaConfig: everything that a fairseq RoBERTa can vary, as one frozen, hashable value."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from roberta_flax.errors import CheckpointError, InputError, did_you_mean, require_positive

# fairseq.utils.get_available_activation_fns, and relu_squared, which get_activation_fn also takes
ACTIVATIONS = ("relu", "relu_squared", "gelu", "gelu_fast", "gelu_accurate", "tanh", "linear")


# label_map in fairseq/examples/roberta/README.md: for the head of roberta.large.mnli, whose checkpoint has no labels
MNLI_LABELS = ("contradiction", "neutral", "entailment")

# What a head sees and how it is built; see HeadConfig.
HEAD_KINDS = ("sentence", "token", "span", "choice", "pooler")
PROBLEMS = ("single_label", "multi_label", "regression")  # transformers' problem_type, less "_classification"

NO_LM_HEAD = "this model has no masked-LM head: it was converted from a checkpoint without one"


@dataclass(frozen=True)
class HeadConfig:
    """A head on the features.

    Kinds, by what they see and how they are built:
      sentence  first token; dense, activation, output: fairseq's and transformers' RobertaClassificationHead
      token     every token; output: RobertaForTokenClassification
      span      every token; output, of a start and an end: RobertaForQuestionAnswering
      choice    first token of each choice; dense, tanh, output of one score: RobertaForMultipleChoice
      pooler    first token; dense, tanh: RobertaPooler

    Attributes:
      name: the name that predict() takes.
      num_classes: number of outputs.
      inner_size: width of the dense layer; 0 where the kind has none.
      kind: one of HEAD_KINDS.
      problem: one of PROBLEMS, what the outputs of a sentence or token head are: classes of which exactly one applies,
        classes of which any number apply, or values. "" means regression for one output, single_label for more. One
        output of a sentence or token head cannot be single_label.
      labels: the names of the classes; may be empty.

    Raises:
      InputError: a value that is not allowed, or values that contradict each other.
    """

    name: str
    num_classes: int
    inner_size: int
    kind: str = "sentence"
    problem: str = ""
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name or "." in self.name:
            raise InputError(f"a head's name is non-empty and has no dot in it, got {str(self.name)[:80]!r}")
        if not self.name.isprintable() or set(self.name) & set("{}"):
            raise InputError(f"a head's name is printable and has no braces in it, got {self.name[:80]!r}")
        _require_positive(self, "num_classes", *(["inner_size"] if self.has_dense else []))
        if self.kind not in HEAD_KINDS:
            raise InputError(f"kind must be one of {', '.join(HEAD_KINDS)}, got {self.kind!r}")
        if not self.problem:
            object.__setattr__(self, "problem", "regression" if self.num_classes == 1 else "single_label")
        if self.problem not in PROBLEMS:
            raise InputError(f"problem must be one of {', '.join(PROBLEMS)}, got {self.problem!r}")
        object.__setattr__(self, "labels", tuple(self.labels))
        if self.labels and (
            len(self.labels) != self.num_classes or not all(isinstance(label, str) for label in self.labels)
        ):
            raise InputError(f"head {self.name!r} has {self.num_classes} classes and {len(self.labels)} labels")
        if self.kind in ("sentence", "token") and self.num_classes == 1 and self.problem == "single_label":
            raise InputError(
                f"head {self.name!r} has one output, and the probability of one class alone is always 1: its problem "
                "is regression or multi_label, not single_label"
            )
        fixed = {"span": 2, "choice": 1, "pooler": self.inner_size}.get(self.kind, self.num_classes)
        if self.num_classes != fixed:
            raise InputError(f"a head of kind {self.kind} has {fixed} outputs, got {self.num_classes}")

    @property
    def has_dense(self) -> bool:
        """Whether there is a dense layer before the output, `inner_size` wide."""
        return self.kind not in ("token", "span")

    @property
    def has_output(self) -> bool:
        """Whether there is an output layer; a pooler ends with its dense layer."""
        return self.kind != "pooler"

    @property
    def label_names(self) -> tuple[str, ...]:
        """`labels`; if empty, the class numbers."""
        return self.labels or tuple(map(str, range(self.num_classes)))


@dataclass(frozen=True)
class RobertaConfig:
    """Sizes and choices of a RoBERTa; the defaults are roberta.base as released.

    Attributes:
      vocab_size: rows of the token embedding.
      num_layers: transformer layers.
      hidden_size: width of the features.
      num_heads: attention heads; divides hidden_size.
      intermediate_size: width of the feed-forward layers.
      max_positions: longest sequence. The position table has max_positions + pad_id + 1 rows.
      pad_id: token id of padding.
      activation: of the feed-forward layers, one of ACTIVATIONS.
      lm_head_activation: of the LM head; in fairseq the same as `activation`, in transformers always gelu.
      pooler_activation: of the sentence heads, one of ACTIVATIONS.
      dropout: of the embeddings, and of the output of each attention and feed-forward block.
      attention_dropout: of the attention weights.
      activation_dropout: after the feed-forward activation.
      pooler_dropout: in the heads.
      layer_drop: probability that a layer is skipped in training (Fan et al., 2019).
      normalize_before: pre-norm layers and a final LayerNorm (fairseq's encoder_normalize_before).
      layernorm_embedding: a LayerNorm after the embeddings.
      layer_norm_epsilon: of every LayerNorm; 1e-5 in fairseq.
      type_vocab_size: rows of the token type embedding, of which row 0 is added to every token; 0 for no embedding.
      lm_head: whether there is a masked-LM head.
      tie_word_embeddings: whether the LM head projects onto the token embedding and has no matrix of its own.
      heads: the heads on the features.

    Raises:
      InputError: a value that is not allowed, or values that contradict each other.
    """

    vocab_size: int = 50265
    num_layers: int = 12
    hidden_size: int = 768
    num_heads: int = 12
    intermediate_size: int = 3072
    max_positions: int = 512
    pad_id: int = 1
    activation: str = "gelu"
    lm_head_activation: str = "gelu"
    pooler_activation: str = "tanh"
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    pooler_dropout: float = 0.0
    layer_drop: float = 0.0
    normalize_before: bool = False
    layernorm_embedding: bool = True
    layer_norm_epsilon: float = 1e-5
    type_vocab_size: int = 0
    lm_head: bool = True
    tie_word_embeddings: bool = True
    heads: tuple[HeadConfig, ...] = ()

    def __post_init__(self) -> None:
        _require_positive(
            self, "vocab_size", "num_layers", "hidden_size", "num_heads", "intermediate_size", "max_positions"
        )
        if self.hidden_size % self.num_heads:
            raise InputError(
                f"hidden_size must be a multiple of num_heads, got {self.hidden_size} and {self.num_heads}"
            )
        if not 0 <= self.pad_id < self.vocab_size:
            raise InputError(f"pad_id must be in the vocabulary of {self.vocab_size}, got {self.pad_id}")
        for field in ("activation", "lm_head_activation", "pooler_activation"):
            if getattr(self, field) not in ACTIVATIONS:
                raise InputError(f"{field} must be one of {', '.join(ACTIVATIONS)}, got {getattr(self, field)!r}")
        for field in ("dropout", "attention_dropout", "activation_dropout", "pooler_dropout", "layer_drop"):
            if not 0 <= getattr(self, field) < 1:
                raise InputError(f"{field} must be at least 0 and under 1, got {getattr(self, field)}")
        if not 0 < self.layer_norm_epsilon < 1:
            raise InputError(f"layer_norm_epsilon must be over 0 and under 1, got {self.layer_norm_epsilon}")
        if not isinstance(self.type_vocab_size, int) or self.type_vocab_size < 0:
            raise InputError(f"type_vocab_size must be an integer from 0, got {self.type_vocab_size!r}")
        names = [head.name for head in self.heads]
        if len(set(names)) != len(names):
            raise InputError(f"each head needs a name of its own, got {', '.join(names)}")

    @classmethod
    def base(cls, **changes: Any) -> Self:
        """roberta.base: 12 layers, 768 wide, 125 million parameters."""
        return cls(**changes)

    @classmethod
    def large(cls, **changes: Any) -> Self:
        """roberta.large: 24 layers, 1024 wide, 355 million parameters (fairseq's roberta_large_architecture)."""
        sizes = {"num_layers": 24, "hidden_size": 1024, "num_heads": 16, "intermediate_size": 4096}
        return cls(**{**sizes, **changes})

    def head(self, name: str) -> HeadConfig:
        """The head called `name`; raises InputError, which lists the heads there are, if there is none."""
        for head in self.heads:
            if head.name == name:
                return head
        known = ", ".join(repr(head.name) for head in self.heads) or "none"
        raise InputError(
            f"no head called {name!r}; this model has: {known}. register_classification_head() makes a new one"
            f"{did_you_mean(name, [head.name for head in self.heads])}"
        )

    def with_head(self, head: HeadConfig) -> Self:
        """This configuration with `head` added; it replaces a head of the same name."""
        others = tuple(other for other in self.heads if other.name != head.name)
        return dataclasses.replace(self, heads=(*others, head))

    def to_json(self) -> str:
        """The content of config.json: one object, the fields by name."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parses what `to_json` returned; raises CheckpointError for anything else."""
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"config.json is not JSON: {error}") from None
        known = {field.name: field.type for field in dataclasses.fields(cls)}
        if not isinstance(fields, Mapping) or set(fields) != set(known):
            given = set(fields) if isinstance(fields, Mapping) else set()
            raise CheckpointError(
                "config.json is not a RobertaConfig of this version"
                f" (missing: {sorted(set(known) - given)}, unknown: {sorted(given - set(known))}); convert it again"
            )
        heads = fields["heads"]
        wrong = [name for name, kind in known.items() if name != "heads" and not _is_of_type(fields[name], str(kind))]
        if wrong or not isinstance(heads, list):
            raise CheckpointError(f"config.json has values of a wrong type: {', '.join(wrong) or 'heads'}")
        try:
            return cls(**{**fields, "heads": tuple(HeadConfig(**head) for head in heads)})
        except (InputError, TypeError) as error:
            raise CheckpointError(f"config.json: {error}") from None


def _is_of_type(value: Any, kind: str) -> bool:
    if kind == "float":
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value).__name__ == kind


def _require_positive(config: Any, *fields: str) -> None:
    require_positive(**{field: getattr(config, field) for field in fields})
