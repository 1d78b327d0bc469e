"""The forward pass on a CPU beside torch's, fairseq's, onnxruntime's and FlaxRoberta's: python -m benchmarks.forward

One model with random weights, in every peer; features of all tokens from token ids, no padding; one process, rounds in
turn, medians. A JSON line for each shape, dtype and runner, with its speed over each peer's. Then, on SICK's pairs, how
near bfloat16 and int8 are to float32: the cosine of features, and how often the MNLI head (random too) says the same.
Needs the extra benchmarks.

  python -m benchmarks.forward BPE_DIR SICK_FILE [--size base|large] [--dtypes D ...] [--shapes BxT ...] [--rounds N]
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from benchmarks.inference import fairseq_hub, in_turn, line, sick_pairs
from references.fairseq import torch
from roberta_flax import collate_tokens, load
from roberta_flax.convert import convert, export
from roberta_flax.nn import forward

SHAPES = ("1x32", "8x128", "4x512", "32x64")
DTYPES = ("float32", "bfloat16", "int8")
Run = Callable[[npt.NDArray[np.int32]], Any]


def ours(directory: Path, dtype: str) -> dict[str, Run]:
    """The features, and an MNLI head, which needs the last layer for the first token only."""
    quantize, compute = ("int8", "bfloat16") if dtype == "int8" else (None, dtype)
    roberta = load(directory, dtype=compute, quantize=quantize)
    params = forward.operands(roberta.params, compute)

    def run(function: Any, tokens: npt.NDArray[np.int32], **more: Any) -> Any:
        return jax.block_until_ready(function(params, tokens, config=roberta.config, numerics=roberta.numerics, **more))

    return {
        "roberta-flax": partial(run, forward.features),
        "roberta-flax, MNLI head": partial(run, forward.head_logits, head="mnli"),
    }


def transformers_torch(directory: Path, dtype: str) -> Run:
    from transformers import RobertaModel

    model = RobertaModel.from_pretrained(directory, add_pooling_layer=False, dtype=getattr(torch, dtype)).eval()

    def run(tokens: npt.NDArray[np.int32]) -> Any:
        with torch.inference_mode():
            return model(torch.from_numpy(tokens).long()).last_hidden_state

    return run


def fairseq(hub: Any) -> Run:
    def run(tokens: npt.NDArray[np.int32]) -> Any:
        with torch.inference_mode():
            return hub.extract_features(torch.from_numpy(tokens).long())

    return run


def flax_roberta(directory: Path, dtype: str) -> Run:
    from transformers import FlaxRobertaModel

    model = FlaxRobertaModel.from_pretrained(directory, from_pt=True, dtype=dtype, add_pooling_layer=False)
    params = model.to_bf16(model.params) if dtype == "bfloat16" else model.params
    apply = jax.jit(lambda params, tokens: model(tokens, params=params).last_hidden_state)
    return lambda tokens: jax.block_until_ready(apply(params, tokens))


def onnxruntime_session(directory: Path, folder: Path, quantized: bool) -> Run:
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


def peers(dtype: str, directory: Path, folder: Path, hub: Any) -> dict[str, Run]:
    """What is compared with, in its best form of that dtype."""
    if dtype == "int8":
        return {"onnxruntime": onnxruntime_session(directory, folder, quantized=True)}
    runs = {
        "transformers, torch": transformers_torch(directory, dtype),
        "fairseq": fairseq(hub.to(getattr(torch, dtype))),
        "transformers, FlaxRoberta": flax_roberta(directory, dtype),
    }
    return runs | ({"onnxruntime": onnxruntime_session(directory, folder, False)} if dtype == "float32" else {})


def compare(dtype: str, shapes: Sequence[str], rounds: int, own: dict[str, Run], others: dict[str, Run]) -> None:
    random = np.random.default_rng(0)
    for shape in shapes:
        batch, length = map(int, shape.split("x"))
        tokens = random.integers(10, 50000, (batch, length)).astype(np.int32)
        runs = {name: partial(run, tokens) for name, run in (own | others).items()}
        seconds = in_turn(rounds, runs, steady=True)  # the first calls compile
        for name, median in seconds.items():
            ratios = {f"over {peer}": seconds[peer] / median for peer in others} if name in own else {}
            line(shape=shape, dtype=dtype, runner=name, sequences_per_second=batch / median, **ratios)


def nearness(directory: Path, pairs: Sequence[tuple[str, str]], dtypes: Sequence[str]) -> None:
    """Cosine of every token's features, and agreement of labels, with float32's."""

    def answers(dtype: str) -> tuple[Any, Any]:
        features, labels = [], []
        runs = ours(directory, dtype)
        for start in range(0, len(pairs), 16):
            rows = [roberta.encode(*pair) for pair in pairs[start : start + 16]]
            tokens = collate_tokens(rows)
            states = np.asarray(runs["roberta-flax"](tokens), np.float64)
            features += [state[: len(row)] for state, row in zip(states, rows, strict=True)]
            labels += np.asarray(runs["roberta-flax, MNLI head"](tokens)).argmax(-1).tolist()
        return np.concatenate(features), np.array(labels)

    roberta = load(directory)
    exact, labels = answers("float32")
    for dtype in dtypes:
        if dtype != "float32":
            near, said = answers(dtype)
            cosines = (exact * near).sum(-1) / np.linalg.norm(exact, axis=-1) / np.linalg.norm(near, axis=-1)
            line(
                dtype=dtype,
                cosine_mean=float(cosines.mean()),
                cosine_1st_percentile=float(np.percentile(cosines, 1)),
                cosine_min=float(cosines.min()),
                same_label=float((labels == said).mean()),
                pairs=len(pairs),
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bpe_dir", type=Path)
    parser.add_argument("sick", type=Path)
    parser.add_argument("--size", choices=("base", "large"), default="base")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--pairs", type=int, default=64, help="of SICK, for nearness")
    options = parser.parse_args()

    logging.disable(logging.WARNING)  # fairseq and hydra say much
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="benchmark-forward-") as temporary:
        folder = Path(temporary)
        hub = fairseq_hub(folder / "fairseq", options.bpe_dir, f"roberta_{options.size}")
        directory = convert(folder / "fairseq", folder / "converted")
        export(directory, folder / "transformers", to="huggingface")
        for dtype in options.dtypes:
            others = peers(dtype, folder / "transformers", folder, hub)
            compare(dtype, options.shapes, options.rounds, ours(directory, dtype), others)
        if options.pairs:
            nearness(directory, sick_pairs(options.sick, options.pairs), options.dtypes)


if __name__ == "__main__":
    main()
