"""roberta-flax demo: the main job, end to end, on the small model inside the package."""

from __future__ import annotations

import importlib.resources
import importlib.util
import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from roberta_flax.cli.options import Json, print_json

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


def command(as_json: Json = False) -> None:
    """Unpack, convert, load and run the small model inside the package; compare it with torch where there is one.

    Exits with status 1 where torch disagrees. The model knows simple English of some 1,400 words, learned from
    sentences that a program made: its answers show what is asked of a RoBERTa, not what the released ones can do.
    """
    with tempfile.TemporaryDirectory(prefix="roberta-flax-demo-") as temporary:
        result = run(Path(temporary))
    if as_json:
        print_json(result)
    else:
        show(result)
    if result["torch"] is not None and not result["torch"]["agree"]:
        raise typer.Exit(1)


def run(folder: Path) -> dict[str, Any]:
    """Does it all in `folder`; returns what was found and how long each step took."""
    seconds: dict[str, float] = {}

    @contextmanager
    def step(name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        seconds[name] = round(time.perf_counter() - begin, 3)

    import jax
    import numpy as np

    from roberta_flax.checkpoint.download import extract_archive
    from roberta_flax.convert import convert
    from roberta_flax.hub import load
    from roberta_flax.nn.config import MNLI_LABELS
    from roberta_flax.text.batching import collate_tokens

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
    import numpy as np
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


def show(result: dict[str, Any]) -> None:
    """Prints the result for a person."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    seconds = result["seconds"]
    table = Table(title=f"roberta-flax on {result['device']}", title_justify="left", show_lines=True)
    table.add_column("step", style="bold")
    table.add_column("result", overflow="fold")
    table.add_column("seconds", justify="right")
    table.add_row(
        "unpack, convert",
        f"{result['model']}, in fairseq's released form",
        _sum(seconds, "unpack", "convert"),
    )
    table.add_row("load", "the converted directory", _sum(seconds, "load"))
    table.add_row("encode", escape(f"{TEXT!r} -> {' '.join(map(str, result['tokens']))}"), "")
    table.add_row("features", escape(f"float32 {result['features']}"), _sum(seconds, "features"))
    answers = "\n".join(f"{pair['premise']} {pair['hypothesis']}\n-> {_answer(pair)}" for pair in result["mnli"])
    table.add_row("mnli", escape(answers), _sum(seconds, "mnli"))
    fills = "\n".join(f"{fill['probability']:.4f} {fill['token']!r}" for fill in result["fill_mask"])
    table.add_row("fill-mask", escape(f"{MASKED}\n{fills}"), _sum(seconds, "fill-mask"))
    compared = result["torch"]
    if compared is None:
        missing = "not installed, so nothing to compare with (pip install 'roberta-flax[convert]')"
        table.add_row("torch", escape(missing), "")
    else:
        differences = ", ".join(f"{name} {value:.1e}" for name, value in compared["largest_difference"].items())
        verdict = "[green]agrees[/green]" if compared["agree"] else "[red]DISAGREES[/red]"
        allowed = f"(allowed {compared['tolerance']:.0e})"
        text = f"torch {compared['version']} {verdict}: largest differences {differences} {allowed}"
        table.add_row("torch", text, _sum(seconds, "torch"))
    console.print(table)
    console.print("[yellow]This model is a toy:[/yellow] it has learned simple sentences of some 1,400 words.")
    console.print(
        "Seconds include compilation. Next: roberta-flax mnli PREMISE HYPOTHESIS (downloads roberta.large.mnli)"
    )


def _answer(pair: dict[str, Any]) -> str:
    return f"{pair['label']}, {math.exp(max(pair['log_probabilities'])):.0%}"


def _sum(seconds: dict[str, float], *steps: str) -> str:
    return f"{sum(seconds[step] for step in steps):.2f}"
