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
    MaxLength,
    Model,
    Precision,
    Quantize,
    print_json,
)
from roberta_flax.datasets.layouts import task_of

if TYPE_CHECKING:
    from roberta_flax.datasets.layouts import Task
    from roberta_flax.inference.predictor import Predictor
    from roberta_flax.metrics import Evaluation
    from roberta_flax.nn.config import HeadConfig


_ROWS = 16  # of each device, where they are not laid out by their tokens


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
    text: Annotated[
        str | None, typer.Option(help="Of token and choice heads: FILE's key of the words, of what is given.")
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="Of token and choice heads: FILE's key of the tags, of the right choice.")
    ] = None,
    on_long: batch.OnLong = "truncate",
    max_length: MaxLength = None,
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
    from roberta_flax.cli.predict import head_of
    from roberta_flax.errors import InputError
    from roberta_flax.inference.predictor import Predictor
    from roberta_flax.tasks.classify import Classify

    if not file.is_file():
        raise InputError(f"{file} is no file; give one with gold labels, as GLUE has them")
    loading = Loading(model, dtype, precision, quantize, checkpoint_file, bpe_dir, cache_dir)
    chosen = head_of(loading.config(), model, head)
    if chosen.kind != "sentence":
        given = {"--on-long": on_long != "truncate", "--strategy": strategy, "--tokens-per-batch": tokens_per_batch}
        if option := next((option for option, value in {**given, "--quantize": quantize}.items() if value), None):
            raise InputError(f"{option} is for heads of kind sentence; {chosen.name!r} is of kind {chosen.kind}")
        _judge_examples(file, loading, chosen, task, (text, label, labels), max_length, tensor_parallel, as_json)
        return
    if text or label:
        raise InputError(f"--text and --label are for token and choice heads; {chosen.name!r} is of kind sentence")
    layout = task_of(task or file)
    if (chosen.problem == "regression") != (layout.problem == "regression"):
        raise InputError(f"head {chosen.name!r} is of {chosen.problem}; {layout.name} is {layout.problem}")
    roberta = loading.load()
    predictor = Predictor(
        roberta,
        Classify(chosen.name, logits=True),
        on_long=cast(Any, on_long),  # checked there
        strategy=cast(Any, strategy),
        tokens_per_batch=tokens_per_batch,
        tensor_parallel=tensor_parallel,
        max_length=max_length,
    )
    judge = _values if layout.problem == "regression" else _classes
    result, skipped = judge(file, layout, predictor, chosen, labels.split(",") if labels else None)
    if as_json:
        print_json({"task": layout.name, "head": chosen.name, "skipped": skipped, **result.to_json()})
        return
    print(result.to_text())
    truncated = predictor.stats.truncated
    too_long = f"; {truncated} were too long (--on-long {on_long})" if truncated else ""
    if skipped or too_long:
        print(f"{skipped} rows without a gold label or a text were left out{too_long}")


def _judge_examples(
    file: Path,
    loading: Loading,
    head: HeadConfig,
    task: str | None,
    named: tuple[str | None, str | None, str | None],
    max_length: int | None,
    tensor_parallel: int,
    as_json: bool,
) -> None:
    """As `finetune` reads and judges them; `named`: the keys of text and label, and the labels."""
    from roberta_flax.datasets import readers
    from roberta_flax.errors import InputError
    from roberta_flax.nn import sharding
    from roberta_flax.train.validation import Validation

    text, label, labels = named
    names = tuple(labels.split(",")) if labels else head.label_names if head.kind == "token" else ()
    name = readers.CUSTOM if task is None else readers.task_name(task)
    if len(names) not in (0, head.num_classes) or name not in (readers.CUSTOM, *readers.CHOICE_TASKS):
        raise InputError(
            f"head {head.name!r} is of kind {head.kind}, with {head.num_classes} outputs; got the task {name} and "
            f"{len(names)} labels"
        )
    roberta = loading.load()
    columns = readers.Columns((text,) if text else (), (label,) if label else (), names)
    kind = head.kind if name == readers.CUSTOM else None
    reader = readers.task_reader(
        name, file, roberta.config, roberta.tokenizer, kind=kind, columns=columns, head=head.name, max_length=max_length
    )
    examples = reader.read(file)
    mesh = sharding.mesh(tensor_parallel=tensor_parallel)
    validation = Validation(
        examples,
        head.name,
        config=roberta.config,
        tokenizer=roberta.tokenizer,
        labels=reader.labels,
        metrics=reader.metrics,
        batch_size=_ROWS * mesh.shape[sharding.DATA],
        numerics=roberta.numerics,
        mesh=mesh,
    )
    result, _ = validation.evaluate(sharding.place(roberta.params, roberta.config, mesh))
    if as_json:
        skipped = examples.tally.unusable + examples.tally.unlabelled
        print_json({"task": name, "head": head.name, "skipped": skipped, **result.to_json()})
    else:
        print(f"{result.to_text()}\n{examples.tally.to_text()}")


def _judged(file: Path, layout: Task, predictor: Predictor, gold_of: Any) -> Iterator[tuple[list[Any], list[Any], int]]:
    """For each window of rows that have a gold label: their outputs, their gold, and how many rows were left out."""
    from itertools import islice

    from roberta_flax.datasets import tables
    from roberta_flax.errors import InputError
    from roberta_flax.inference.predictor import WINDOW
    from roberta_flax.text.encoding import Rejected

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

    from roberta_flax.datasets.layouts import class_of, resolve_labels
    from roberta_flax.metrics import ClassCounts

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

    from roberta_flax.metrics import evaluate_values

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
