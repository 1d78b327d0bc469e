"""Fine-tune a model on GLUE by fairseq's recipes, and write the results beside the scores of fairseq's README.

python -m recipes.glue GLUE_DIRECTORY -o runs/glue --model roberta.large --dtype bfloat16
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from roberta_flax.cli import run
from roberta_flax.cli.groups import grouped
from roberta_flax.cli.options import MeshOptions, ModelOptions, print_line


@grouped
def command(
    data: Annotated[
        Path,
        typer.Argument(metavar="GLUE", help="Directory of GLUE's files: MNLI/train.tsv, CoLA/train.tsv and so on."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Directory of the runs, and of the table.")
    ],
    tasks: Annotated[
        list[str] | None, typer.Option("--task", help="Task to run. Repeat it for several.", show_default="all eight")
    ] = None,
    seeds: Annotated[
        list[int] | None, typer.Option("--seed", help="Seed. Repeat it for one run each.", show_default="1 to 5")
    ] = None,
    after_mnli: Annotated[
        bool, typer.Option("--after-mnli", help="Train RTE, MRPC and STS-B from the MNLI model of the same seed.")
    ] = False,
    steps: Annotated[
        int | None, typer.Option(help="Number of steps of each run, for a rehearsal.", show_default="the recipe's")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Examples computed together. A step has as many as the recipe's in any case.",
            show_default="the recipe's",
        ),
    ] = None,
    remat: Annotated[
        bool,
        typer.Option("--remat", help="Recompute layers for their gradients: less memory, a third more computation."),
    ] = False,
    devices: MeshOptions = MeshOptions(),
    model: ModelOptions = ModelOptions(model="roberta.large"),
) -> None:
    """Fine-tune a model on GLUE by fairseq's recipes, once for each seed, and write table.md and table.json.

    Rerun the command to resume. Runs that have ended are not run again.
    """
    from recipes.glue.files import check_files, chosen_tasks
    from recipes.glue.runs import Suite
    from recipes.glue.table import write_table
    from roberta_flax.errors import InputError, require_positive
    from roberta_flax.extras import require
    from roberta_flax.remote import is_url
    from roberta_flax.train.directory import open_run

    for module in ("grain", "orbax.checkpoint"):
        require(module, "train")
    if is_url(output):
        raise InputError(f"the runs need a directory of this machine, got {output}")
    require_positive(
        **{name: value for name, value in (("steps", steps), ("batch_size", batch_size)) if value is not None}
    )
    chosen = chosen_tasks(tasks or ())
    check_files(data, chosen)
    suite = Suite(data, output, model, devices, tuple(seeds or (1, 2, 3, 4, 5)), after_mnli, steps, batch_size, remat)
    suite.check(chosen)
    settings = suite.settings()
    with open_run(output, settings, "glue.json"):
        for task in chosen:
            suite.run(task)
            text = write_table(suite, settings)
    for line in text.splitlines():
        print_line(line)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(command)


def main() -> None:
    run(app, "python -m recipes.glue")


if __name__ == "__main__":
    main()
