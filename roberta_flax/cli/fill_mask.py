"""roberta-flax fill-mask TEXT; or of a file: fill-mask INPUT -o OUTPUT"""

from __future__ import annotations

from typing import Annotated

from roberta_flax.cli import jobs
from roberta_flax.cli.groups import grouped
from roberta_flax.cli.options import TOPK, BatchingOptions, InferenceOptions, Json, Text, print_json, print_line
from roberta_flax.errors import InputError


@grouped
def command(
    inputs: jobs.Inputs = None,
    text: Text = None,
    topk: Annotated[int, TOPK] = 5,
    input: jobs.InputOptions = jobs.InputOptions(),
    output: jobs.OutputOptions = jobs.OutputOptions(),
    batching: BatchingOptions = BatchingOptions(),
    devices: jobs.JobDevices = jobs.JobDevices(),
    engine: jobs.EngineOptions = jobs.EngineOptions(),
    model: InferenceOptions = InferenceOptions(),
    as_json: Json = False,
) -> None:
    """Fill in the <mask> of each row of a file, or of one text: the likeliest tokens, with probabilities.

    Rerun the command to resume a run over a file.
    """
    file, texts = jobs.file_or_texts(inputs, text, input.format)
    if file is not None:
        from roberta_flax.tasks.fill_mask import FillMask

        options = jobs.JobOptions(input, output, batching, devices, engine, model)
        jobs.run(file, lambda _: FillMask(topk), options, as_json=as_json)
        return
    if len(texts) != 1:
        raise InputError(f"a mask is filled in one text, got {len(texts)}")
    filled = model.load().fill_mask(texts[0], topk)
    if as_json:
        print_json([{"text": text, "probability": probability, "token": token} for text, probability, token in filled])
        return
    for filled_text, probability, token in filled:
        print_line(f"{probability:.4f}  {token!r}  {filled_text}")
