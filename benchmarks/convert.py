"""Memory and speed of conversion and of loading, on checkpoints of roberta.large's size: python -m benchmarks.convert

Every measurement is a fresh process; peak resident memory is the process's own (VmHWM of Linux's /proc, imports and
all), as a ratio of the model's float32 parameters. The files are warm (read once before). Side by side with
transformers 4.57's FlaxRobertaModel.from_pretrained(from_pt=True), which is the only other way into Flax.
Needs torch, transformers and about 12 GB of disk; prints JSON lines.

  python -m benchmarks.convert [--directory DIR] [--repeat N] [--small]
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import fresh

HIDDEN, LAYERS, INTERMEDIATE, VOCAB = 1024, 24, 4096, 50265


def state_dict(torch, layers: int):
    """roberta.large's tensors under fairseq's names of today, random."""
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
    """zip, legacy and with-optimizer directories of one model; returns the bytes of its float32 parameters."""
    import torch

    from recipes.tiny import train_bpe

    state = state_dict(torch, layers)
    args = argparse.Namespace(
        arch="roberta_large",
        encoder_layers=layers,
        encoder_attention_heads=16,
        tokens_per_sample=512,
        max_positions=512,
    )
    parameters = {tensor.data_ptr(): tensor for tensor in state.values()}.values()
    merges = train_bpe("a small text to train a few merges on, for a tokenizer beside the weights " * 4, 20)
    from roberta_flax.text.tokenizer import byte_alphabet

    pieces = [*sorted(byte_alphabet()), *(left + right for left, right in merges)]
    for name, options in (("zip", {}), ("legacy", {"_use_new_zipfile_serialization": False}), ("optimizer", {})):
        directory = folder / name
        directory.mkdir()
        saved = {"args": args, "model": state, "last_optimizer_state": None}
        if name == "optimizer":
            moments = {
                i: {"step": 1, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                for i, p in enumerate(parameters)
            }
            saved["last_optimizer_state"] = {"state": moments, "param_groups": []}
        torch.save(saved, directory / "model.pt", **options)
        (directory / "dict.txt").write_text("".join(f"{i} 1\n" for i in range(VOCAB - 5)))
        (directory / "encoder.json").write_text(json.dumps({piece: i for i, piece in enumerate(dict.fromkeys(pieces))}))
        (directory / "vocab.bpe").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    return sum(tensor.numel() * 4 for tensor in parameters)


def read_the_file(path: str) -> None:
    """All that a loader must do at least: the file's bytes, in memory of the process's own."""
    from roberta_flax.convert import convert  # noqa: F401 -- the same imports as the others have

    begin = time.perf_counter()
    Path(path).read_bytes()
    report(time.perf_counter() - begin)


def run_convert(source: str, destination: str) -> None:
    from roberta_flax.convert import convert

    begin = time.perf_counter()
    convert(source, destination)
    report(time.perf_counter() - begin)


def run_load(directory: str) -> None:
    import jax

    from roberta_flax.checkpoint import converted

    jax.devices()  # the backend starts before the clock does, for the peer too
    begin = time.perf_counter()
    jax.block_until_ready(converted.read(Path(directory))[1])
    report(time.perf_counter() - begin)


def run_transformers(directory: str) -> None:
    import jax
    from transformers import FlaxRobertaModel

    jax.devices()
    begin = time.perf_counter()
    model = FlaxRobertaModel.from_pretrained(directory, from_pt=True, add_pooling_layer=False)
    jax.block_until_ready(model.params)
    report(time.perf_counter() - begin)


def report(seconds: float) -> None:
    print(json.dumps({"seconds": seconds, "peak": fresh.peak_memory()}))


def measured(
    name: str, *arguments: str, before: Callable[[], None] = lambda: None, repeat: int = 3
) -> dict[str, float]:
    """The medians of some runs in fresh processes."""
    runs = []
    for _ in range(repeat):
        before()
        runs.append(fresh.run("benchmarks.convert", "--run", name, *arguments, JAX_PLATFORMS="cpu"))
    return fresh.medians(runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", help="where the checkpoints go; removed afterwards")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="two layers, to try it")
    parser.add_argument("--run", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    runs = {"convert": run_convert, "load": run_load, "transformers": run_transformers, "read": read_the_file}
    if options.run:
        runs[options.run[0]](*options.run[1:])
        return

    folder = Path(tempfile.mkdtemp(prefix="benchmark-convert-", dir=options.directory))
    try:
        parameters = write_checkpoints(folder, 2 if options.small else LAYERS)

        def line(what: str, result: dict[str, float], **more: float) -> None:
            ratio = result["peak"] / parameters
            numbers = {"seconds": result["seconds"], "peak_over_parameters": ratio, **more}
            print(json.dumps({"what": what, **{key: round(value, 3) for key, value in numbers.items()}}), flush=True)

        converted = folder / "converted"
        for kind in ("zip", "legacy", "optimizer"):
            size = (folder / kind / "model.pt").stat().st_size
            result = measured(
                "convert", str(folder / kind), str(converted), repeat=options.repeat,
                before=lambda: shutil.rmtree(converted, ignore_errors=True),
            )  # fmt: skip
            line(f"convert, {kind}", result, gigabytes=size / 1e9)
        rounds = [  # in turn, since the machine's speed drifts
            (
                measured("read", str(converted / "model.safetensors"), repeat=1),
                measured("load", str(converted), repeat=1),
            )
            for _ in range(2 * options.repeat + 1)
        ]
        file, loaded = (fresh.medians([pair[i] for pair in rounds]) for i in range(2))
        line("read the file", file)
        line("load", loaded, over_reading_the_file=loaded["seconds"] / file["seconds"])

        from roberta_flax.convert import export

        export(converted, folder / "transformers", to="huggingface")
        peer = measured("transformers", str(folder / "transformers"), repeat=options.repeat)
        line("transformers, FlaxRobertaModel.from_pretrained(from_pt=True)", peer)
        shutil.rmtree(converted)
        ours = measured(
            "convert", str(folder / "transformers"), str(converted), repeat=options.repeat,
            before=lambda: shutil.rmtree(converted, ignore_errors=True),
        )  # fmt: skip
        both = {"seconds": ours["seconds"] + loaded["seconds"], "peak": max(ours["peak"], loaded["peak"])}
        line("the same files, convert and load", both, over_transformers=both["seconds"] / peer["seconds"],
             peak_over_transformers=both["peak"] / peer["peak"])  # fmt: skip
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
