"""roberta-flax predict INPUT -o OUTPUT --head NAME; or of one text: predict --text TEXT [--text TEXT]"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from roberta_flax.cli import batch
from roberta_flax.cli.options import (
    BpeDir,
    CacheDir,
    CheckpointFile,
    Dtype,
    Json,
    Loading,
    MaxLength,
    Model,
    Precision,
    Quantize,
    print_json,
)

if TYPE_CHECKING:
    from roberta_flax.hub import Roberta
    from roberta_flax.nn.config import HeadConfig, RobertaConfig
    from roberta_flax.tasks.classify import Classify


def command(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[INPUT]", help="A .jsonl, .csv, .tsv, .txt or .parquet file of texts or pairs."),
    ] = None,
    output: batch.Output = None,
    text: Annotated[
        list[str] | None,
        typer.Option(help="Instead of INPUT: a sentence; twice for a pair. A choice head: what is given, each choice."),
    ] = None,
    head: Annotated[str | None, typer.Option(help="The head's name. [default: the only one]")] = None,
    framing: Annotated[
        str | None,
        typer.Option(help="Of a choice head: choice, race, commonsenseqa. [default: the head's name, or choice]"),
    ] = None,
    logits: Annotated[bool, typer.Option("--logits", help="Of a file: logits, not log-probabilities.")] = False,
    columns: batch.Columns = None,
    keep: batch.Keep = None,
    no_header: batch.NoHeader = False,
    format: batch.Format = None,
    on_long: batch.OnLong = "error",
    max_length: MaxLength = None,
    strategy: batch.Strategy = None,
    strict: batch.Strict = False,
    rows_per_part: batch.RowsPerPart = 8192,
    tokens_per_batch: batch.TokensPerBatch = None,
    tensor_parallel: batch.TensorParallel = 1,
    share: batch.Share = None,
    distributed: batch.Distributed = False,
    engine: Annotated[
        str, typer.Option(help="local; or ray, a cluster: INPUT and OUTPUT are directories of Parquet files.")
    ] = "local",
    workers: Annotated[int | None, typer.Option(help="With --engine ray: how many load the model.")] = None,
    gpus_per_worker: Annotated[float, typer.Option(help="With --engine ray: what each worker needs.")] = 0,
    model: Model = "roberta.large.mnli",
    dtype: Dtype = "float32",
    precision: Precision = None,
    quantize: Quantize = None,
    checkpoint_file: CheckpointFile = "model.pt",
    bpe_dir: BpeDir = None,
    cache_dir: CacheDir = None,
    as_json: Json = False,
) -> None:
    """What a head says of every row of a file, or of one text: labels by name, with probabilities.

    A run over a file that was stopped goes on where it was: start it again with the same command.
    """
    from roberta_flax.errors import InputError

    if (file is None) == (not text):
        raise InputError("give a file of texts, or one text with --text")
    loading = Loading(model, dtype, precision, quantize, checkpoint_file, bpe_dir, cache_dir)
    if engine not in ("local", "ray"):
        raise InputError(f"engine must be local or ray, got {engine!r}")
    options = batch.Options(
        output, columns, keep, no_header, format, on_long, max_length, strategy, strict, rows_per_part,
        tokens_per_batch, tensor_parallel, share, distributed, as_json,
    )  # fmt: skip
    if file is not None and engine == "ray":
        batch.run_on_ray(loading, _work_on_ray(loading, head, logits), file, options, workers, gpus_per_worker)
        return
    if file is not None:
        from roberta_flax.tasks.classify import Classify

        batch.run_job(
            loading, lambda roberta: Classify(head_of(roberta.config, model, head).name, logits), file, options
        )
        return
    assert text is not None, "one of the two is given"
    roberta = loading.load()
    chosen = head_of(roberta.config, model, head)
    if framing is not None and chosen.kind != "choice":
        raise InputError(f"--framing is for choice heads; {chosen.name!r} is of kind {chosen.kind}")
    result = (
        _choice(roberta, chosen, text, framing)
        if chosen.kind == "choice"
        else _PREDICTIONS[chosen.kind](roberta, chosen, text)
    )
    if as_json:
        print_json({"head": chosen.name, **result})
        return
    for key, value in result.items():
        lines = value if isinstance(value, list) else [value]
        for line in lines:
            print(f"{key}\t{_shown(line)}")


def _work_on_ray(loading: Loading, head: str | None, logits: bool) -> Classify:
    """What each worker is to do; the model is converted here, once, before they load it."""
    from roberta_flax.tasks.classify import Classify

    return Classify(head_of(loading.config(), loading.model, head).name, logits)


def head_of(config: RobertaConfig, model: str, name: str | None) -> HeadConfig:
    """The head called `name`, or the only one; InputError, naming those there are, where that is none."""
    from roberta_flax.errors import InputError

    heads = [head for head in config.heads if head.kind != "pooler"]
    if name is None and len(heads) != 1:
        names = ", ".join(head.name for head in heads) or "none"
        raise InputError(f"{model} has these heads: {names}; say which with --head")
    chosen = heads[0] if name is None else config.head(name)
    if chosen.kind == "pooler":
        raise InputError(f"head {chosen.name!r} is a pooler, whose outputs are features; use `roberta-flax features`")
    return chosen


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{key} {_shown(part)}" for key, part in value.items())
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _sentence(roberta: Roberta, head: HeadConfig, texts: list[str]) -> dict[str, Any]:
    import numpy as np

    tokens = roberta.encode(*texts)
    outputs = np.asarray(roberta.predict(head.name, tokens), np.float64)[0]
    if head.problem == "regression":
        return {"values": dict(zip(_distinct(head.label_names), outputs.tolist(), strict=True))}
    label = roberta.predict_labels(head.name, tokens)[0]
    probabilities = dict(zip(_distinct(head.label_names), np.exp(outputs).tolist(), strict=True))
    return {"label": label if isinstance(label, str) else ", ".join(label) or "none", "probabilities": probabilities}


def _token(roberta: Roberta, head: HeadConfig, texts: list[str]) -> dict[str, Any]:
    import numpy as np

    tokens = roberta.encode(*texts)
    best = np.exp(np.asarray(roberta.predict(head.name, tokens), np.float64)[0].max(axis=-1)).tolist()
    labels = roberta.predict_labels(head.name, tokens)[0]
    pieces = [roberta.tokenizer.token_text(int(token)) for token in tokens]
    return {
        "token": [
            {"text": piece, "label": label, "probability": probability}
            for piece, label, probability in zip(pieces, labels, best, strict=True)
        ]
    }


def _span(roberta: Roberta, head: HeadConfig, texts: list[str]) -> dict[str, Any]:
    """The likeliest span of the last text: of a question and what it asks of, the second.

    "no_answer" is the probability of `<s>`, to which a head points where there is none (SQuAD 2.0).
    """
    import numpy as np

    from roberta_flax.errors import InputError
    from roberta_flax.tasks.spans import best_span

    tokens = roberta.encode(*texts)
    last = len(tokens) - 1 - len(roberta.tokenizer.encode_text(texts[-1]))
    whole = np.asarray(roberta.predict(head.name, tokens), np.float64)[0]
    scores = whole[last:-1]
    if not len(scores):
        raise InputError("an answer is a span of the last text, and that is empty")
    start, end = best_span(scores)
    answer = str(roberta.decode(tokens[last + start : last + end + 1])).strip()
    probability, no_answer = np.exp([scores[start, 0] + scores[end, 1], whole[0].sum()]).tolist()
    return {"answer": answer, "probability": probability, "no_answer": no_answer}


def _choice(roberta: Roberta, head: HeadConfig, texts: list[str], framing: str | None) -> dict[str, Any]:
    import numpy as np

    from roberta_flax.datasets.framing import FRAMINGS, choice_inputs, framing_of
    from roberta_flax.errors import InputError
    from roberta_flax.text.batching import collate_tokens

    framing = framing or (head.name if head.name in FRAMINGS else "choice")
    given = framing_of(framing).given
    choices = texts[len(given) :]
    if len(choices) < 2:
        raise InputError(
            f"the framing {framing} takes {' and '.join(given)}, and at least two choices, got {len(texts)} texts"
        )
    rows = choice_inputs(framing, texts[: len(given)], choices, roberta.tokenizer, roberta.config.max_positions)
    tokens = collate_tokens([ids for ids, _ in rows])
    probabilities = np.exp(np.asarray(roberta.predict(head.name, tokens), np.float64))[0].tolist()
    best = max(range(len(choices)), key=probabilities.__getitem__)
    return {
        "label": choices[best],
        "probabilities": dict(zip(_distinct(choices), probabilities, strict=True)),
        "cut": sum(cut for _, cut in rows),  # choices whose sequence lost tokens
    }


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, with its number behind each that comes more than once, so that they can be keys."""
    return [f"{name} ({i})" if names.count(name) > 1 else name for i, name in enumerate(names)]


_PREDICTIONS = {"sentence": _sentence, "token": _token, "span": _span}
