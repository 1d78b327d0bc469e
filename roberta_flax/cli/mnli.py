"""roberta-flax mnli PREMISE HYPOTHESIS"""

from __future__ import annotations

from typing import Annotated

import typer

from roberta_flax.cli.options import (
    BpeDir,
    CacheDir,
    CheckpointFile,
    Dtype,
    Json,
    Model,
    Precision,
    print_json,
)

# fairseq/examples/roberta/README.md, label_map
LABELS = ("contradiction", "neutral", "entailment")


def command(
    premise: Annotated[str, typer.Argument(help="The sentence that is given.")],
    hypothesis: Annotated[str, typer.Argument(help="The sentence that may follow from it.")],
    model: Model = "roberta.large.mnli",
    dtype: Dtype = "float32",
    precision: Precision = None,
    checkpoint_file: CheckpointFile = "model.pt",
    bpe_dir: BpeDir = None,
    cache_dir: CacheDir = None,
    as_json: Json = False,
) -> None:
    """Does the hypothesis follow from the premise? Prints contradiction, neutral or entailment, with probabilities."""
    import numpy as np

    from roberta_flax.errors import InputError
    from roberta_flax.hub import load

    roberta = load(
        model,
        dtype=dtype,
        precision=precision,
        checkpoint_file=checkpoint_file,
        bpe_dir=bpe_dir,
        cache_dir=cache_dir,
    )
    head = roberta.config.head("mnli")
    if head.num_classes != len(LABELS):
        raise InputError(f"the mnli head of {model} has {head.num_classes} classes, expected {', '.join(LABELS)}")
    log_probabilities = np.asarray(roberta.predict("mnli", roberta.encode(premise, hypothesis)), np.float64)[0]
    probabilities = {label: float(np.exp(value)) for label, value in zip(LABELS, log_probabilities, strict=True)}
    label = LABELS[int(log_probabilities.argmax())]
    if as_json:
        print_json({"label": label, "log_probabilities": dict(zip(LABELS, log_probabilities.tolist(), strict=True))})
    else:
        print(f"{label}  ({', '.join(f'{name} {value:.4f}' for name, value in probabilities.items())})")
