"""roberta-flax perplexity INPUT --model M"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from roberta_flax.cli.groups import grouped
from roberta_flax.cli.options import Json, MeshOptions, ModelOptions, SampleOptions, Seed, print_result


@grouped
def command(
    data: Annotated[Path, typer.Argument(metavar="INPUT", help="File of token ids, made by preprocess.")],
    batch_size: Annotated[int, typer.Option(help="Number of samples in a batch, over all devices.")] = 16,
    seed: Seed = 1,
    samples: SampleOptions = SampleOptions(),
    devices: MeshOptions = MeshOptions(),
    model: ModelOptions = ModelOptions(),
    as_json: Json = False,
) -> None:
    """Measure how well a model predicts masked tokens.

    Print the loss in bits, as fairseq prints it, and the perplexity. Every sample is masked once. The masks depend on
    the seed alone.
    """
    from roberta_flax.train.pretraining import perplexity

    mesh = devices.mesh(batch_size)
    found = perplexity(model.load(), data, samples.samples(seed), batch_size=batch_size, mesh=mesh)
    tokens = int(found["size"])
    result = {"loss": found["bits"], "perplexity": found["perplexity"], "masked_tokens": tokens}
    line = f"loss {found['bits']:.3f} bits, perplexity {found['perplexity']:.2f}, of {tokens} masked tokens"
    print_result(result, [line], as_json=as_json)
