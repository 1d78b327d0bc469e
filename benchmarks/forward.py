"""Compare the forward pass on a CPU with torch, fairseq, onnxruntime and JAX's peers: python -m benchmarks.forward

All peers run one model with random weights: from token ids without padding to the features of all tokens. They share
one process and take turns; the benchmark prints medians. A line of JSON for each shape, dtype and runner has its speed
over that of each peer. Then the benchmark shows on SICK's pairs how close bfloat16 and int8 are to float32: the cosine
of features, and how often the MNLI head (random too) chooses the same label. Needs the extra "benchmarks"; KerasHub is
a peer where it is installed (the extra "keras-hub").

  python -m benchmarks.forward BPE_DIR SICK_FILE [--size base|large] [--dtypes D ...] [--shapes BxT ...] [--rounds N]
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from benchmarks.inference import fairseq_hub, sick_pairs
from benchmarks.measurement import median_seconds, print_record
from references import keras_hub
from references.fairseq import torch
from roberta_flax import collate_tokens, load
from roberta_flax.convert import convert, export
from roberta_flax.nn import forward

SHAPES = ("1x32", "8x128", "4x512", "32x64")
DTYPES = ("float32", "bfloat16", "int8")
Runner = Callable[[npt.NDArray[np.int32]], Any]  # of token ids [batch, time]


def roberta_flax_runners(directory: Path, dtype: str) -> dict[str, Runner]:
    """Returns runners for the features, and for an MNLI head, which needs the last layer for the first token only."""
    quantize, compute = ("int8", "bfloat16") if dtype == "int8" else (None, dtype)
    roberta = load(directory, dtype=compute, quantize=quantize)
    params = forward.operands(roberta.params, compute)

    def run(function: Any, tokens: npt.NDArray[np.int32], **more: Any) -> Any:
        return jax.block_until_ready(function(params, tokens, config=roberta.config, numerics=roberta.numerics, **more))

    return {
        "roberta-flax": partial(run, forward.features),
        "roberta-flax, MNLI head": partial(run, forward.head_logits, head="mnli"),
    }


def transformers_runner(directory: Path, dtype: str) -> Runner:
    from transformers import RobertaModel

    model = RobertaModel.from_pretrained(directory, add_pooling_layer=False, dtype=getattr(torch, dtype)).eval()

    def run(tokens: npt.NDArray[np.int32]) -> Any:
        with torch.inference_mode():
            return model(torch.from_numpy(tokens).long()).last_hidden_state

    return run


def fairseq_runner(hub: Any) -> Runner:
    def run(tokens: npt.NDArray[np.int32]) -> Any:
        with torch.inference_mode():
            return hub.extract_features(torch.from_numpy(tokens).long())

    return run


def flax_roberta_runner(directory: Path, dtype: str) -> Runner:
    from transformers import FlaxRobertaModel

    model = FlaxRobertaModel.from_pretrained(directory, from_pt=True, dtype=dtype, add_pooling_layer=False)
    params = model.to_bf16(model.params) if dtype == "bfloat16" else model.params
    apply = jax.jit(lambda params, tokens: model(tokens, params=params).last_hidden_state)
    return lambda tokens: jax.block_until_ready(apply(params, tokens))


def keras_hub_runners(directory: Path, dtype: str) -> dict[str, Runner]:
    """Returns KerasHub's RobertaBackbone as it is by default, and without dropout, which it then computes faster."""

    def runner(**settings: Any) -> Runner:
        function = keras_hub.features_function(directory, dtype=dtype, **settings)
        return lambda tokens: jax.block_until_ready(function(tokens))

    return {"KerasHub": runner(), "KerasHub, without dropout": runner(dropout=0.0)}


def onnxruntime_runner(directory: Path, folder: Path, quantized: bool) -> Runner:
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from transformers import RobertaModel

    path = folder / "model.onnx"
    if not path.exists():
        model = RobertaModel.from_pretrained(directory, add_pooling_layer=False).eval()
        axes = {name: {0: "batch", 1: "time"} for name in ("input_ids", "attention_mask", "last_hidden_state")}
        example = (torch.full((2, 8), 5), torch.ones((2, 8), dtype=torch.long))
        names = {"input_names": ["input_ids", "attention_mask"], "output_names": ["last_hidden_state"]}
        torch.onnx.export(model, example, path, **names, dynamic_axes=axes, dynamo=False, opset_version=17)
    if quantized:
        quantize_dynamic(path, folder / "int8.onnx", weight_type=QuantType.QInt8)
        path = folder / "int8.onnx"
    session = onnxruntime.InferenceSession(path)

    def run(tokens: npt.NDArray[np.int32]) -> Any:
        ids = tokens.astype(np.int64)
        return session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]

    return run


def peer_runners(dtype: str, directory: Path, folder: Path, hub: Any) -> dict[str, Runner]:
    """Returns the peers of a dtype, each in its fastest form."""
    if dtype == "int8":
        return {"onnxruntime": onnxruntime_runner(directory, folder, quantized=True)}
    runners = {
        "transformers, torch": transformers_runner(directory, dtype),
        "fairseq": fairseq_runner(hub.to(getattr(torch, dtype))),
        "transformers, FlaxRoberta": flax_roberta_runner(directory, dtype),
    }
    if find_spec("keras_hub"):
        runners |= keras_hub_runners(directory, dtype)
    if dtype == "float32":
        runners["onnxruntime"] = onnxruntime_runner(directory, folder, quantized=False)
    return runners


def compare_speed(
    dtype: str, shapes: Sequence[str], rounds: int, runners: dict[str, Runner], peers: dict[str, Runner]
) -> None:
    """Times all runners on random tokens of each shape, and prints a line for each."""
    random = np.random.default_rng(0)
    for shape in shapes:
        batch, length = map(int, shape.split("x"))
        tokens = random.integers(10, 50000, (batch, length)).astype(np.int32)
        functions = {name: partial(run, tokens) for name, run in (runners | peers).items()}
        seconds = median_seconds(rounds, functions, warm_up=True)  # the first calls compile
        for name, median in seconds.items():
            ratios = {f"over {peer}": seconds[peer] / median for peer in peers} if name in runners else {}
            print_record(shape=shape, dtype=dtype, runner=name, sequences_per_second=batch / median, **ratios)


def compare_accuracy(directory: Path, pairs: Sequence[tuple[str, str]], dtypes: Sequence[str]) -> None:
    """Prints the cosine of the features of every token, and the agreement of labels, with float32."""
    roberta = load(directory)

    def features_and_labels(dtype: str) -> tuple[Any, Any]:
        features, labels = [], []
        runners = roberta_flax_runners(directory, dtype)
        for start in range(0, len(pairs), 16):
            rows = [roberta.encode(*pair) for pair in pairs[start : start + 16]]
            tokens = collate_tokens(rows)
            padded = np.asarray(runners["roberta-flax"](tokens), np.float64)
            features += [row_features[: len(row)] for row_features, row in zip(padded, rows, strict=True)]
            labels += np.asarray(runners["roberta-flax, MNLI head"](tokens)).argmax(-1).tolist()
        return np.concatenate(features), np.array(labels)

    expected, expected_labels = features_and_labels("float32")
    for dtype in dtypes:
        if dtype != "float32":
            actual, labels = features_and_labels(dtype)
            dot_products = (expected * actual).sum(-1)
            cosines = dot_products / np.linalg.norm(expected, axis=-1) / np.linalg.norm(actual, axis=-1)
            print_record(
                dtype=dtype,
                cosine_mean=float(cosines.mean()),
                cosine_1st_percentile=float(np.percentile(cosines, 1)),
                cosine_min=float(cosines.min()),
                same_label=float((labels == expected_labels).mean()),
                pairs=len(pairs),
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bpe_dir", type=Path, help="directory with dict.txt, encoder.json and vocab.bpe")
    parser.add_argument("sick", type=Path, help="SICK's file of pairs")
    parser.add_argument("--size", choices=("base", "large"), default="base")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="batch size x length")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--pairs", type=int, default=64, help="number of SICK's pairs to compare accuracy on")
    options = parser.parse_args()

    logging.disable(logging.WARNING)  # fairseq and hydra log a lot
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="benchmark-forward-") as temporary:
        folder = Path(temporary)
        hub = fairseq_hub(folder / "fairseq", options.bpe_dir, f"roberta_{options.size}")
        directory = convert(folder / "fairseq", folder / "converted")
        export(directory, folder / "transformers", to="huggingface")
        for dtype in options.dtypes:
            peers = peer_runners(dtype, folder / "transformers", folder, hub)
            compare_speed(dtype, options.shapes, options.rounds, roberta_flax_runners(directory, dtype), peers)
        if options.pairs:
            compare_accuracy(directory, sick_pairs(options.sick, options.pairs), options.dtypes)


if __name__ == "__main__":
    main()
