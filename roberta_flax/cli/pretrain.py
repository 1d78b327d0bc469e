"""roberta-flax pretrain INPUT --valid V.bin -o DIR"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from roberta_flax.cli.groups import Formerly, Group, grouped
from roberta_flax.cli.options import (
    AdapterOptions,
    Json,
    ModelOptions,
    NumericsOptions,
    RunDirectory,
    RunOptions,
    SampleOptions,
    Seed,
    TrainingDevices,
    TrainingOptions,
    Valid,
    VocabularyOptions,
    keep_programs,
    print_result,
)
from roberta_flax.datasets.recipes import PRETRAINING
from roberta_flax.errors import InputError

if TYPE_CHECKING:
    from roberta_flax.hub import Roberta


@dataclass(frozen=True)
class SizeOptions(Group, panel="Size of a model from scratch"):
    """How large a model is."""

    size: Annotated[
        str, typer.Option(metavar="base|large", help="Size, of which the options below change something.")
    ] = "base"
    layers: Annotated[int | None, typer.Option(help="Number of layers.", show_default="the size's")] = None
    hidden: Annotated[int | None, typer.Option(help="Hidden size.", show_default="the size's")] = None
    heads: Annotated[int | None, typer.Option(help="Number of attention heads.", show_default="the size's")] = None
    intermediate: Annotated[
        int | None, typer.Option(help="Width of the feed-forward layers.", show_default="the size's")
    ] = None
    max_positions: Annotated[
        int | None, typer.Option(help="Maximum length of a sequence in tokens.", show_default="the size's")
    ] = None

    def sizes(self) -> dict[str, int]:
        """What is changed, by RobertaConfig's fields."""
        names = ("num_layers", "hidden_size", "num_heads", "intermediate_size", "max_positions")
        values = (self.layers, self.hidden, self.heads, self.intermediate, self.max_positions)
        return {name: value for name, value in zip(names, values, strict=True) if value is not None}


@grouped
def command(
    data: Annotated[
        Path,
        typer.Argument(metavar="INPUT", help="File of token ids to train on, made by preprocess."),
        Formerly(("--data",)),
    ],
    valid: Valid,
    output: RunDirectory,
    vocabulary: VocabularyOptions = VocabularyOptions(),
    size: SizeOptions = SizeOptions(),
    samples: SampleOptions = SampleOptions(),
    seed: Seed = 1,
    training: TrainingOptions = TrainingOptions.of(PRETRAINING),
    adapters: AdapterOptions = AdapterOptions(),
    run: RunOptions = RunOptions(validate_every=1000, save_every=1000, log_every=100),
    numerics: NumericsOptions = NumericsOptions(),
    devices: TrainingDevices = TrainingDevices(),
    as_json: Json = False,
) -> None:
    """Pretrain a RoBERTa on masked tokens, from scratch with --tokenizer, or further from --model.

    Defaults are those of fairseq's base.yaml. Rerun the command to resume.
    """
    from roberta_flax.train.pretraining import Pretraining
    from roberta_flax.train.progress import is_first_process

    recipe, lora = training.recipe(PRETRAINING), adapters.lora()
    if lora is not None and vocabulary.model is None:
        raise InputError("adapters are for a network that is trained already: give --model, or leave out --lora-rank")
    mesh = devices.mesh(recipe.batch_size)
    keep_programs(vocabulary.cache_dir)
    roberta = _start(vocabulary, numerics, size, seed)
    pretraining = Pretraining(
        data,
        valid,
        training.steps,
        training.warmup_steps,
        samples.samples(seed),
        recipe,
        keep=run.keep_checkpoints,
        numerics=numerics.numerics(remat=training.remat),
        lora=lora,
        lora_apart=adapters.lora_apart,
        **run.given("validate_every", "save_every", "log_every", "patience"),
    )
    result = pretraining.run(
        roberta, output, mesh=mesh, fully_sharded=devices.fully_sharded, tensorboard=run.tensorboard, plot=run.plot
    )
    if is_first_process():
        print_result(result.to_json(), [result.to_text()], as_json=as_json)


def _start(vocabulary: VocabularyOptions, numerics: NumericsOptions, size: SizeOptions, seed: int) -> Roberta:
    """The model that a run begins with."""
    from roberta_flax.train.pretraining import new_model

    if vocabulary.model is not None:
        if vocabulary.tokenizer is not None or size != SizeOptions():
            raise InputError(
                "--model has a tokenizer and sizes of its own; leave out --tokenizer, --layers and the like"
            )
        model = ModelOptions(**vars(numerics), **{k: v for k, v in vars(vocabulary).items() if k != "tokenizer"})
        return model.load()
    if vocabulary.tokenizer is None:
        raise InputError("say where to begin: --model to go on from one, or --tokenizer and the directory of its files")
    return new_model(vocabulary.read(), size.size, seed=seed, **size.sizes())
