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
    Loading,
    Model,
    Precision,
    Quantize,
    print_json,
)


def command(
    premise: Annotated[str, typer.Argument(help="The sentence that is given.")],
    hypothesis: Annotated[str, typer.Argument(help="The sentence that may follow from it.")],
    model: Model = "roberta.large.mnli",
    dtype: Dtype = "float32",
    precision: Precision = None,
    quantize: Quantize = None,
    checkpoint_file: CheckpointFile = "model.pt",
    bpe_dir: BpeDir = None,
    cache_dir: CacheDir = None,
    as_json: Json = False,
) -> None:
    """Does the hypothesis follow from the premise? Prints contradiction, neutral or entailment, with probabilities."""
    import numpy as np

    from roberta_flax.errors import InputError
    from roberta_flax.nn.config import MNLI_LABELS

    roberta = Loading(model, dtype, precision, quantize, checkpoint_file, bpe_dir, cache_dir).load()
    heads = {head.name: head for head in roberta.config.heads if head.kind == "sentence"}
    head = heads.get("mnli") or (next(iter(heads.values())) if len(heads) == 1 else roberta.config.head("mnli"))
    if head.num_classes != len(MNLI_LABELS):
        raise InputError(
            f"the {head.name} head of {model} has {head.num_classes} classes, expected {', '.join(MNLI_LABELS)}"
        )
    labels = [name.lower() for name in head.labels] or MNLI_LABELS
    outputs = np.asarray(roberta.predict(head.name, roberta.encode(premise, hypothesis)), np.float64)[0]
    log_probabilities = dict(zip(labels, outputs.tolist(), strict=True))
    label = max(log_probabilities, key=log_probabilities.__getitem__)
    if as_json:
        print_json({"label": label, "log_probabilities": log_probabilities})
    else:
        print(f"{label}  ({', '.join(f'{name} {np.exp(value):.4f}' for name, value in log_probabilities.items())})")
