"""Measure memory and speed of conversion and loading at the size of roberta.large: python -m benchmarks.convert

Every measurement is a fresh process. Peak resident memory is that of the process (VmHWM in Linux's /proc, imports
included), as a ratio to the size of the model's float32 parameters. The files are warm (read once before). The peer is
FlaxRobertaModel.from_pretrained(from_pt=True) of transformers 4.57, the only other way into Flax. Needs torch,
transformers and about 12 GB of disk. Prints lines of JSON.

  python -m benchmarks.convert [--directory DIR] [--repeat N] [--small]
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measurement import medians, peak_memory, run_in_fresh_process

HIDDEN, LAYERS, INTERMEDIATE, VOCAB = 1024, 24, 4096, 50265


def state_dict(torch, layers: int):
    """Returns random tensors of the shapes of roberta.large, under the names that fairseq writes today."""
    torch.manual_seed(0)
    encoder = "encoder.sentence_encoder"
    state = {
        f"{encoder}.embed_tokens.weight": torch.randn(VOCAB, HIDDEN),
        f"{encoder}.embed_positions.weight": torch.randn(514, HIDDEN),
        "encoder.lm_head.bias": torch.randn(VOCAB),
    }
    linears = {"encoder.lm_head.dense": (HIDDEN, HIDDEN)}
    norms = [f"{encoder}.layernorm_embedding", "encoder.lm_head.layer_norm"]
    for i in range(layers):
        layer = f"{encoder}.layers.{i}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linears[f"{layer}.self_attn.{part}"] = (HIDDEN, HIDDEN)
        linears |= {f"{layer}.fc1": (INTERMEDIATE, HIDDEN), f"{layer}.fc2": (HIDDEN, INTERMEDIATE)}
        norms += [f"{layer}.self_attn_layer_norm", f"{layer}.final_layer_norm"]
    for name, (outputs, inputs) in linears.items():
        state |= {f"{name}.weight": torch.randn(outputs, inputs), f"{name}.bias": torch.randn(outputs)}
    for name in norms:
        state |= {f"{name}.weight": torch.ones(HIDDEN), f"{name}.bias": torch.zeros(HIDDEN)}
    return {**state, "encoder.lm_head.weight": state[f"{encoder}.embed_tokens.weight"]}


def write_checkpoints(folder: Path, layers: int) -> int:
    """Writes one model in the formats "zip", "legacy" and "optimizer"; returns the bytes of its float32 parameters."""
    import torch

    state = state_dict(torch, layers)
    args = argparse.Namespace(
        arch="roberta_large",
        encoder_layers=layers,
        encoder_attention_heads=16,
        tokens_per_sample=512,
        max_positions=512,
    )
    parameters = list({tensor.data_ptr(): tensor for tensor in state.values()}.values())
    for name in ("zip", "legacy", "optimizer"):
        directory = folder / name
        directory.mkdir()
        saved = {"args": args, "model": state, "last_optimizer_state": None}
        if name == "optimizer":
            saved["last_optimizer_state"] = optimizer_state(torch, parameters)
        options = {"_use_new_zipfile_serialization": False} if name == "legacy" else {}
        torch.save(saved, directory / "model.pt", **options)
        write_tokenizer(directory)
    return sum(tensor.numel() * 4 for tensor in parameters)


def optimizer_state(torch, parameters: list) -> dict[str, Any]:
    moments = {
        i: {"step": 1, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        for i, p in enumerate(parameters)
    }
    return {"state": moments, "param_groups": []}


def write_tokenizer(directory: Path) -> None:
    """Writes the files of a small BPE beside the weights."""
    from recipes.tiny import train_bpe
    from roberta_flax.text.fairseq_tokenizer import byte_alphabet

    merges = train_bpe("a small text to train a few merges on, for a tokenizer beside the weights " * 4, 20)
    pieces = [*sorted(byte_alphabet()), *(left + right for left, right in merges)]
    (directory / "dict.txt").write_text("".join(f"{i} 1\n" for i in range(VOCAB - 5)))
    (directory / "encoder.json").write_text(json.dumps({piece: i for i, piece in enumerate(dict.fromkeys(pieces))}))
    (directory / "vocab.bpe").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))


def run_read(path: str) -> None:
    """Reads the bytes of a file into memory, which is the least that a loader does."""
    from roberta_flax.convert import convert  # noqa: F401 -- so that all runs import the same

    begin = time.perf_counter()
    Path(path).read_bytes()
    print_measurement(time.perf_counter() - begin)


def run_convert(source: str, destination: str) -> None:
    from roberta_flax.convert import convert

    begin = time.perf_counter()
    convert(source, destination)
    print_measurement(time.perf_counter() - begin)


def run_load(directory: str) -> None:
    import jax

    from roberta_flax.checkpoint import converted

    jax.devices()  # starts the backend before the clock, as for the peer
    begin = time.perf_counter()
    jax.block_until_ready(converted.read(Path(directory))[1])
    print_measurement(time.perf_counter() - begin)


def run_transformers(directory: str) -> None:
    import jax
    from transformers import FlaxRobertaModel

    jax.devices()
    begin = time.perf_counter()
    model = FlaxRobertaModel.from_pretrained(directory, from_pt=True, add_pooling_layer=False)
    jax.block_until_ready(model.params)
    print_measurement(time.perf_counter() - begin)


def print_measurement(seconds: float) -> None:
    print(json.dumps({"seconds": seconds, "peak": peak_memory()}))


RUNS = {"convert": run_convert, "load": run_load, "transformers": run_transformers, "read": run_read}


def measure(name: str, *arguments: Path, repeat: int = 1) -> dict[str, float]:
    """Returns the medians of some runs in fresh processes."""
    runs = []
    for _ in range(repeat):
        if name == "convert":
            shutil.rmtree(arguments[1], ignore_errors=True)  # the destination of the run before
        runs.append(
            run_in_fresh_process("benchmarks.convert", "--run", name, *map(str, arguments), JAX_PLATFORMS="cpu")
        )
    return medians(runs)


def compare(folder: Path, parameters: int, repeat: int) -> None:
    """Measures conversion and loading, and the peer, and prints a line for each.

    Args:
      folder: the directory with the checkpoints, for all other files too.
      parameters: bytes of the float32 parameters.
      repeat: number of runs of each measurement.
    """

    def print_result(what: str, result: dict[str, float], **more: float) -> None:
        ratio = result["peak"] / parameters
        numbers = {"seconds": result["seconds"], "peak_over_parameters": ratio, **more}
        print(json.dumps({"what": what, **{key: round(value, 3) for key, value in numbers.items()}}), flush=True)

    converted = folder / "converted"
    for name in ("zip", "legacy", "optimizer"):
        size = (folder / name / "model.pt").stat().st_size
        result = measure("convert", folder / name, converted, repeat=repeat)
        print_result(f"convert, {name}", result, gigabytes=size / 1e9)
    rounds = [  # in turn, because the speed of the machine drifts
        (measure("read", converted / "model.safetensors"), measure("load", converted)) for _ in range(2 * repeat + 1)
    ]
    read, loaded = (medians([pair[i] for pair in rounds]) for i in range(2))
    print_result("read the file", read)
    print_result("load", loaded, over_reading_the_file=loaded["seconds"] / read["seconds"])

    from roberta_flax.convert import export

    exported = export(converted, folder / "transformers", to="huggingface")
    peer = measure("transformers", exported, repeat=repeat)
    print_result("transformers, FlaxRobertaModel.from_pretrained(from_pt=True)", peer)
    result = measure("convert", exported, converted, repeat=repeat)
    both = {"seconds": result["seconds"] + loaded["seconds"], "peak": max(result["peak"], loaded["peak"])}
    print_result("the same files, convert and load", both, over_transformers=both["seconds"] / peer["seconds"],
                 peak_over_transformers=both["peak"] / peer["peak"])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", help="directory for the checkpoints, which are removed at the end")
    parser.add_argument("--repeat", type=int, default=3, help="number of runs of each measurement")
    parser.add_argument("--small", action="store_true", help="use two layers, to try the benchmark")
    parser.add_argument("--run", nargs="+", help=argparse.SUPPRESS)  # measures in this process
    options = parser.parse_args()
    if options.run:
        RUNS[options.run[0]](*options.run[1:])
        return
    folder = Path(tempfile.mkdtemp(prefix="benchmark-convert-", dir=options.directory))
    try:
        compare(folder, write_checkpoints(folder, 2 if options.small else LAYERS), options.repeat)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
