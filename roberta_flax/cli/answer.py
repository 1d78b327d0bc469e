"""roberta-flax answer QUESTION CONTEXT; or of a file: answer INPUT -o OUTPUT"""

from __future__ import annotations

from typing import Annotated

import typer

from roberta_flax.cli import jobs
from roberta_flax.cli.groups import ADVANCED, grouped
from roberta_flax.cli.options import STRIDE, TOPK, Head, Json, Text, print_result
from roberta_flax.errors import InputError


@grouped
def command(
    inputs: jobs.Inputs = None,
    text: Text = None,
    topk: Annotated[int, TOPK] = 1,
    max_answer_length: Annotated[int, typer.Option(help="Maximum length of an answer in tokens."), ADVANCED] = 15,
    impossible: Annotated[
        bool, typer.Option("--impossible", help="No answer, the empty text, is an answer too.")
    ] = False,
    stride: Annotated[int | None, STRIDE, ADVANCED] = None,
    head: Head = None,
    options: jobs.JobOptions = jobs.JobOptions(),
    as_json: Json = False,
) -> None:
    """Answer the question of each row of a file from its context, or one question: text, score, and where it stands.

    The columns are the question and its context. A long context is split into windows.

    Rerun the command to resume a run over a file.
    """
    from roberta_flax.tasks.answers import Answer

    file, texts = jobs.file_or_texts(inputs, text, options.input.format)
    task = Answer(head, stride, topk, max_answer_length, impossible)
    if file is not None:
        jobs.run(file, lambda _: task, options, as_json=as_json)
        return
    if len(texts) != 2:
        raise InputError(f"give a question and its context, got {len(texts)} texts")
    answers = jobs.result_of(texts, task, options)
    lines = (f"{each['score']:.4f}  {each['answer']!r}  {each['start']}:{each['end']}" for each in answers)
    print_result(answers, lines, as_json=as_json)
