"""roberta-flax evaluate FILE --head NAME"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from roberta_flax.cli import batch
from roberta_flax.cli.options import (
    BpeDir,
    CacheDir,
    CheckpointFile,
    Dtype,
    Json,
    Loading,
    Model,
    Precision,
    Quantize,
    print_json,
)

if TYPE_CHECKING:
    from roberta_flax.config import HeadConfig
    from roberta_flax.evaluation import Evaluation, Task
    from roberta_flax.inference import Predictor


def command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file with gold labels, dev_matched.tsv say.")],
    head: Annotated[str | None, typer.Option(help="The head's name. [default: the only one]")] = None,
    task: Annotated[
        str | None,
        typer.Option(help="mnli, qnli, rte, sst-2, cola, sts-b, ...: the columns. [default: by FILE's path]"),
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="The head's classes in order, as FILE calls them, with commas between.")
    ] = None,
    on_long: batch.OnLong = "truncate",
    strategy: batch.Strategy = None,
    tokens_per_batch: batch.TokensPerBatch = None,
    tensor_parallel: batch.TensorParallel = 1,
    model: Model = "roberta.large.mnli",
    dtype: Dtype = "float32",
    precision: Precision = None,
    quantize: Quantize = None,
    checkpoint_file: CheckpointFile = "model.pt",
    bpe_dir: BpeDir = None,
    cache_dir: CacheDir = None,
    as_json: Json = False,
) -> None:
    """Accuracy with a confidence interval and a confusion matrix, or the task's own metrics, of a head on a file."""
    from roberta_flax import evaluation
    from roberta_flax.cli.predict import head_of
    from roberta_flax.errors import InputError
    from roberta_flax.inference import Classify, Predictor

    if not file.is_file():
        raise InputError(f"{file} is no file; give one with gold labels, as GLUE has them")
    layout = evaluation.task_of(task or file)
    roberta = Loading(model, dtype, precision, quantize, checkpoint_file, bpe_dir, cache_dir).load()
    chosen = head_of(roberta.config, model, head)
    if chosen.kind != "sentence" or (chosen.problem == "regression") != (layout.problem == "regression"):
        raise InputError(
            f"head {chosen.name!r} is of kind {chosen.kind}, {chosen.problem}; {layout.name} is {layout.problem}"
        )
    predictor = Predictor(
        roberta,
        Classify(chosen.name, logits=True),
        on_long=cast(Any, on_long),  # checked there
        strategy=cast(Any, strategy),
        tokens_per_batch=tokens_per_batch,
        tensor_parallel=tensor_parallel,
    )
    judge = _values if layout.problem == "regression" else _classes
    result, skipped = judge(file, layout, predictor, chosen, labels.split(",") if labels else None)
    if as_json:
        print_json({"task": layout.name, "head": chosen.name, "skipped": skipped, **result.to_json()})
        return
    print(result.to_text())
    cut = f"; {predictor.stats.cut} were too long (--on-long {on_long})" if predictor.stats.cut else ""
    if skipped or cut:
        print(f"{skipped} rows without a gold label or a text were left out{cut}")


def _judged(file: Path, layout: Task, predictor: Predictor, gold_of: Any) -> Iterator[tuple[list[Any], list[Any], int]]:
    """For each window of rows that have a gold label: their outputs, their gold, and how many rows were left out."""
    from itertools import islice

    from roberta_flax import tables
    from roberta_flax.errors import InputError
    from roberta_flax.inference import WINDOW, Rejected

    header = None if layout.header else False
    format = "tsv" if file.suffix == ".txt" else None  # a line of text has no gold label
    rows = tables.read_rows(file, layout.texts, keep=(layout.label,), header=header, format=format)
    waiting: list[tuple[list[Any], int]] = []

    def windows() -> Iterator[list[Any]]:
        while some := list(islice(rows, WINDOW)):
            good = [row for row in some if isinstance(row, tables.Row)]
            judged = [row for row in good if str(row.values[-1]) not in layout.unlabelled]
            golds = []
            for row in judged:
                if (gold := gold_of(str(row.values[-1]))) is None:
                    raise InputError(
                        f"{file}, line {row.line}: {row.values[-1]!r} is no label of {layout.name}; "
                        "name the head's classes in order with --labels"
                    )
                golds.append(gold)
            waiting.append((golds, len(some) - len(judged)))
            yield [row.values[:-1] for row in judged]

    for results in predictor.windows(windows()):
        golds, skipped = waiting.pop(0)
        for result in results:
            if isinstance(result, Rejected):
                raise InputError(f"{file}: {result.reason}")
        yield results, golds, skipped


def _classes(
    file: Path, layout: Task, predictor: Predictor, head: HeadConfig, given: Sequence[str] | None
) -> tuple[Evaluation, int]:
    import numpy as np

    from roberta_flax.evaluation import ClassCounts, class_of, resolve_labels

    names = resolve_labels(layout, head.label_names, head.num_classes, given)
    counts, skipped = ClassCounts(names), 0
    for results, golds, left_out in _judged(file, layout, predictor, lambda gold: class_of(gold, names)):
        if results:
            counts.add(np.array([result.argmax() for result in results]), np.array(golds))
        skipped += left_out
    return counts.evaluation(layout.metrics), skipped


def _values(
    file: Path, layout: Task, predictor: Predictor, head: HeadConfig, given: Sequence[str] | None
) -> tuple[Evaluation, int]:
    import numpy as np

    from roberta_flax.evaluation import evaluate_values

    predicted: list[float] = []
    gold: list[float] = []
    skipped = 0
    for results, golds, left_out in _judged(file, layout, predictor, _number):
        predicted += [float(result[0]) for result in results]
        gold += golds
        skipped += left_out
    return evaluate_values(np.array(predicted), np.array(gold), layout.metrics), skipped


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
