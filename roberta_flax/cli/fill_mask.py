"""roberta-flax fill-mask TEXT; or of a file: fill-mask INPUT -o OUTPUT"""

from __future__ import annotations

from typing import Annotated

from roberta_flax.cli import jobs
from roberta_flax.cli.groups import grouped
from roberta_flax.cli.options import TOPK, Json, Text, print_result
from roberta_flax.errors import InputError


@grouped
def command(
    inputs: jobs.Inputs = None,
    text: Text = None,
    topk: Annotated[int, TOPK] = 5,
    options: jobs.JobOptions = jobs.JobOptions(),
    as_json: Json = False,
) -> None:
    """Fill in the <mask> of each row of a file, or of one text: the likeliest tokens, with probabilities.

    Rerun the command to resume a run over a file.
    """
    file, texts = jobs.file_or_texts(inputs, text, options.input.format)
    if file is not None:
        from roberta_flax.tasks.fill_mask import FillMask

        jobs.run(file, lambda _: FillMask(topk), options, as_json=as_json)
        return
    if len(texts) != 1:
        raise InputError(f"a mask is filled in one text, got {len(texts)}")
    filled = options.model.load().fill_mask(texts[0], topk)
    result = [{"text": text, "probability": probability, "token": token} for text, probability, token in filled]
    lines = (f"{probability:.4f}  {token!r}  {text}" for text, probability, token in filled)
    print_result(result, lines, as_json=as_json)
