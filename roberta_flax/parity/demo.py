"""The main job, end to end, on the small model inside the package: `roberta-flax demo`."""

from __future__ import annotations

import importlib.resources
import importlib.util
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from roberta_flax.checkpoint.archive import extract_archive
from roberta_flax.convert import convert
from roberta_flax.hub import load
from roberta_flax.nn.config import MNLI_LABELS
from roberta_flax.text.batching import collate_tokens

ARCHIVE = "roberta.tiny.tar.gz"
TEXT = "Hello world!"
PAIRS = (
    ("A man is playing a guitar.", "A man is playing an instrument."),
    ("A man is playing a guitar.", "The man is a famous musician."),
    ("A man is playing a guitar.", "A man is sleeping."),
    ("RoBERTa is a heavily optimized version of BERT.", "RoBERTa is not very optimized."),
)
MASKED = "A <mask> is barking."
# What float32 leaves between two ways of summing: some hundred products of numbers near one, a few layers deep.
TOLERANCE = 5e-5


def run(folder: Path) -> dict[str, Any]:
    """Unpacks, converts, loads and runs the model in `folder`; compares it with torch where there is one.

    Returns:
      model, device; tokens, features (their shape), mnli and fill_mask, as the model answers; torch, how far it is from
      torch, or None; and the seconds of each step.
    """
    seconds: dict[str, float] = {}

    @contextmanager
    def step(name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        seconds[name] = round(time.perf_counter() - begin, 3)

    with step("unpack"):
        archive = importlib.resources.files("roberta_flax") / "data" / ARCHIVE
        with importlib.resources.as_file(archive) as path:
            extract_archive(path, folder / "unpacked")
    source = folder / "unpacked" / "roberta.tiny"
    with step("convert"):
        convert(source, folder / "converted")
    with step("load"):
        roberta = load(folder / "converted")
    tokens = roberta.encode(TEXT)
    pairs = collate_tokens([roberta.encode(*pair) for pair in PAIRS])
    with step("features"):
        features = np.asarray(roberta.extract_features(tokens))
    with step("mnli"):
        logits = np.asarray(roberta.predict("mnli", pairs, return_logits=True))
        log_probabilities = np.asarray(roberta.predict("mnli", pairs))
    with step("fill-mask"):
        filled = roberta.fill_mask(MASKED, topk=3)
    result = {
        "model": ARCHIVE,
        "device": str(jax.devices()[0]),
        "tokens": tokens.tolist(),
        "features": list(features.shape),
        "mnli": [
            {
                "premise": premise,
                "hypothesis": hypothesis,
                "label": MNLI_LABELS[int(row.argmax())],
                "log_probabilities": row.tolist(),
            }
            for (premise, hypothesis), row in zip(PAIRS, log_probabilities, strict=True)
        ],
        "fill_mask": [
            {"text": text, "probability": probability, "token": token} for text, probability, token in filled
        ],
        "torch": None,
        "seconds": seconds,
    }
    if importlib.util.find_spec("torch") is not None:
        with step("torch"):
            result["torch"] = compare_with_torch(source / "model.pt", tokens, features, pairs, logits)
    return result


def compare_with_torch(checkpoint: Path, tokens: Any, features: Any, pairs: Any, logits: Any) -> dict[str, Any]:
    """The largest differences from torch, which reads the same checkpoint by itself."""
    import torch

    from roberta_flax.parity.torch_network import TorchRoberta

    reference = TorchRoberta.from_checkpoint(checkpoint)
    with torch.inference_mode():
        torch_features = reference.features(torch.from_numpy(tokens)[None].long()).numpy()
        pair_features = reference.features(torch.from_numpy(pairs).long())
        torch_logits = reference.head_logits("mnli", pair_features).numpy()
    differences = {
        "features": float(np.abs(features - torch_features).max()),
        "mnli_logits": float(np.abs(logits - torch_logits).max()),
    }
    agree = all(difference <= TOLERANCE for difference in differences.values())
    return {
        "version": torch.__version__,
        "tolerance": TOLERANCE,
        "largest_difference": differences,
        "agree": agree,
    }
