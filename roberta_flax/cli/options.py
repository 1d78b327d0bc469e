"""The options of all commands, each declared once: in a group, or alone where it is of no group."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from roberta_flax.cli.groups import ADVANCED, Formerly, Group
from roberta_flax.datasets.recipes import Recipe
from roberta_flax.errors import InputError, is_printable, printable
from roberta_flax.extras import require

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from roberta_flax.datasets.readers import Columns
    from roberta_flax.hub import Roberta
    from roberta_flax.nn.adapters import LoRA
    from roberta_flax.nn.numerics import Numerics
    from roberta_flax.text.tokenizer import Tokenizer
    from roberta_flax.train.samples import Samples

logger = logging.getLogger(__name__)


def _use_device(kind: str | None) -> str | None:
    """Has JAX use devices of this kind alone, from before it opens any."""
    if kind is not None:
        platform = {"gpu": "cuda"}.get(kind, kind)
        os.environ["JAX_PLATFORMS"] = platform
        if "jax" in sys.modules:
            import jax

            jax.config.update("jax_platforms", platform)  # type: ignore[no-untyped-call]
    return kind


# What several groups or commands have, with types of their own

MODEL = typer.Option(
    "--model",
    "-m",
    help="Released name, hf:ORG/NAME, or directory, .tar.gz file, .pt file or URL of a model.",
)
OUTPUT = typer.Option(
    "--output",
    "-o",
    help="File to write, also at a URL: .jsonl, .csv, .tsv or .parquet; or of features .npy or .npz.",
)
TEXT_COLUMN = typer.Option(
    "--text-column",
    "-c",
    help="Column with text. Repeat it for several. With token heads: the words.",
    show_default="the task's, or text and such",
)
TASK = typer.Option(
    help="Task, which says how files are laid out: mnli, snli, qnli, qqp, rte, wnli, sst-2, mrpc, cola, sts-b, sick, "
    "sick-relatedness, race, commonsenseqa, or custom.",
    show_default="the one that the model was fine-tuned on, or by INPUT's path",
)
LABEL_COLUMN_HELP = "Column with the label, or the tags. Repeat it for several."
EVALUATION = typer.Option(
    metavar="correlation|retrieval",
    help="Of an encoder: correlation of similarities or scores with labels, or ranks of relevant texts.",
    show_default="correlation if there are labels",
)


def LOSS(names: str) -> Any:  # noqa: N802
    """The option of the losses that a command has."""
    return typer.Option(metavar=names, help="Loss.")


TENSOR_PARALLEL = typer.Option(help="Number of devices that share each layer. The others share the batch.")
DISTRIBUTED = typer.Option(
    "--distributed", help="This process is one of several hosts (jax.distributed), as on a TPU pod or under SLURM."
)

STRIDE = typer.Option(
    help="With windows: number of tokens that two neighbors share.", show_default="128, or half of a window"
)
TOPK = typer.Option("--topk", "-k", help="Number of tokens, answers or documents, the best first.")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Text = Annotated[
    list[str] | None,
    typer.Option(
        "--text",
        help="Text, in place of INPUT. Repeat it for a pair; for a choice head, first the question, then each choice.",
    ),
]
Head = Annotated[str | None, typer.Option(help="Name of the head.", show_default="the only one, or the task's name")]
BaseModel = Annotated[
    str | None,
    typer.Option(
        metavar="SOURCE",
        help="Model that an adapter is for: a transformers or converted directory, or hf:ORG/NAME.",
        show_default="the one that the adapter names",
    ),
]
HeadName = Annotated[
    str | None,
    typer.Option(
        help="Name to give the head of a transformers model.", show_default="by its kind; to verify, as in DIR"
    ),
]
RunDirectory = Annotated[
    Path,
    typer.Option("--output", "-o", metavar="DIR", help="Directory of the run. best/ in it is the best model."),
]
Valid = Annotated[
    Path,
    typer.Option("--valid", metavar="FILE", help="Validation file, laid out as INPUT."),
    Formerly(("--validation", "--validation-file", "--valid-file", "--dev")),
]
Seed = Annotated[int, typer.Option(help="Random seed of initialization, order, masks and dropout.")]
Epochs = Annotated[
    int | None,
    typer.Option(help="Passes over INPUT, in place of --steps.", show_default="the recipe's"),
    Formerly(("--num-epochs", "--num-train-epochs", "--max-epoch")),
]
Freeze = Annotated[
    list[str] | None,
    typer.Option(
        help="What to leave as it is: embeddings; a number N for these and the first N layers; or a pattern of "
        "parameter paths. Repeat it for several.",
        show_default="nothing",
    ),
    ADVANCED,
]
LayerDecay = Annotated[float, typer.Option(help="Learning rate of each layer, relative to the one above."), ADVANCED]
Dtype = Annotated[
    str | None,
    typer.Option(
        metavar="float32|bfloat16|float16|float64", help="Dtype of the computation's operands.", show_default="float32"
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        metavar="default|high|highest",
        help="Precision of matrix products. highest gives float32 parity on TPU and GPU.",
        show_default="JAX's",
    ),
]
Attention = Annotated[
    str | None,
    typer.Option(metavar="xla|chunked|cudnn|flash", help="Implementation of attention.", show_default="by the device"),
]
Device = Annotated[
    str | None,
    typer.Option(
        callback=_use_device,
        metavar="cpu|gpu|cuda|tpu",
        help="Kind of device to compute on.",
        show_default="$JAX_PLATFORMS, or the fastest",
    ),
]
Quantize = Annotated[
    str | None,
    typer.Option(metavar="int8", help="Compute the layers' products in int8, in a quarter of float32's memory."),
]


# The model


@dataclass(frozen=True)
class FileOptions(Group, panel="Files of the model", advanced=True):
    """The files of a model, and where what is made of them is kept."""

    checkpoint_file: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Checkpoint in a fairseq directory or archive.", show_default="model.pt"),
    ] = None
    bpe_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Directory with encoder.json and vocab.bpe.",
            show_default="beside the checkpoint, or else GPT-2's",
        ),
    ] = None
    cache_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Directory for downloads, conversions and compiled programs.",
            show_default="$ROBERTA_FLAX_CACHE, or the user's cache",
        ),
    ] = None

    def files(self) -> dict[str, Any]:
        """The same as arguments of load, convert and the like."""
        return self.given("checkpoint_file", "bpe_dir", "cache_dir")


@dataclass(frozen=True)
class TokenizerOptions(FileOptions, panel="Model"):
    """A model of which the tokenizer is needed."""

    model: Annotated[str, MODEL] = "roberta.base"

    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        from roberta_flax.hub import load_tokenizer

        return load_tokenizer(self.model, **self.files())


@dataclass(frozen=True)
class NumericsOptions(Group, panel="Computation", advanced=True):
    """How a network computes."""

    dtype: Dtype = None
    precision: Precision = None
    attention: Attention = None
    device: Device = None

    def numerics(self, **others: Any) -> Numerics:
        """The same as a value."""
        from roberta_flax.nn.numerics import Numerics

        return Numerics(**self.given("dtype", "precision", "attention"), **others)


@dataclass(frozen=True)
class ModelOptions(TokenizerOptions, NumericsOptions):
    """A model, and how it computes."""

    def load(self) -> Roberta:
        """The model. Programs compiled for it are kept in the cache, so that the next run starts at once."""
        from roberta_flax import hub
        from roberta_flax.cli.accelerators import open_devices

        keep_programs(self.cache_dir)
        open_devices()
        roberta = hub.load(self.directory(), **self.arguments())
        roberta.source = self.model  # and not where the cache has it
        return roberta

    def arguments(self) -> dict[str, Any]:
        """Those of roberta_flax.load, without the model."""
        return self.given("dtype", "precision", "attention")

    def directory(self) -> Path:
        """The directory of the converted model, which is made if there is none."""
        from roberta_flax.convert.cache import resolve

        return resolve(self.model, **self.files())


@dataclass(frozen=True)
class QuantizeOptions(Group, panel="Computation", advanced=True):
    """How a network may compute that is not trained."""

    quantize: Quantize = None


@dataclass(frozen=True)
class InferenceOptions(ModelOptions, QuantizeOptions):
    """A model that is not trained, and how it computes."""

    def arguments(self) -> dict[str, Any]:
        """Those of roberta_flax.load, without the model."""
        return self.given("dtype", "precision", "attention", "quantize")


@dataclass(frozen=True)
class VocabularyOptions(FileOptions, panel="Model"):
    """A model, or the files of a tokenizer."""

    model: Annotated[str | None, MODEL] = None
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Directory with dict.txt, encoder.json and vocab.bpe, where there is no --model yet."
        ),
    ] = None

    def read(self) -> Tokenizer:
        """The tokenizer of the model or in the directory, whichever is given."""
        from roberta_flax.hub import load_tokenizer
        from roberta_flax.text.tokenizer import Tokenizer

        if self.tokenizer is not None and self.model is None:
            return Tokenizer.from_directory(self.tokenizer)
        if self.model is not None and self.tokenizer is None:
            return load_tokenizer(self.model, **self.files())
        raise InputError("say whose tokenizer encodes: give --model, or --tokenizer and the directory of its files")


def keep_programs(cache_dir: Path | None) -> None:
    """Has JAX keep the programs that it compiles in the cache, for later runs; where it cannot, says so once."""
    import jax

    from roberta_flax.checkpoint import download

    folder = download.cache_dir(cache_dir) / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        logger.warning("compiled programs are not kept, because %s cannot be written: %s", folder, error.strerror)
        return
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.2,
    }
    for name, value in settings.items():
        jax.config.update(name, value)  # type: ignore[no-untyped-call]


# Files of text


@dataclass(frozen=True)
class TextOptions(Group, panel="Input"):
    """Where a file has its texts, and how long they may be."""

    text_column: Annotated[list[str] | None, TEXT_COLUMN, Formerly(("--column",))] = None
    no_header: Annotated[
        bool,
        typer.Option("--no-header", help="CSV and TSV files have no header: columns are numbers, from 0."),
        ADVANCED,
    ] = False
    max_length: Annotated[
        int | None, typer.Option(help="Maximum length of an input in tokens, at least 8.", show_default="the model's")
    ] = None


@dataclass(frozen=True)
class LabeledOptions(TextOptions):
    """Where a file has its texts and labels."""

    text_column: Annotated[list[str] | None, TEXT_COLUMN, Formerly(("--column", "--text"))] = None
    label_column: Annotated[
        list[str] | None,
        typer.Option("--label-column", help=LABEL_COLUMN_HELP, show_default="the task's"),
        Formerly(("--label",)),
    ] = None
    labels: Annotated[
        str | None,
        typer.Option(
            help="Classes in the order of the head, as INPUT spells them, separated by commas.",
            show_default="the task's",
        ),
        ADVANCED,
    ] = None
    choices: Annotated[
        str, typer.Option(help="With --task custom and a choice head: the key of the choices."), ADVANCED
    ] = "choices"

    def columns(self) -> Columns:
        """The same as a value."""
        from roberta_flax.datasets.readers import Columns

        labels = self.labels.split(",") if self.labels else ()
        return Columns(
            tuple(self.text_column or ()),
            tuple(self.label_column or ()),
            tuple(labels),
            self.choices,
            not self.no_header,
        )


@dataclass(frozen=True)
class LongTextOptions(Group, panel="Input", advanced=True):
    """What to do about texts that are too long."""

    on_long: Annotated[
        str, typer.Option(metavar="error|truncate|window", help="How to handle inputs over the maximum length.")
    ] = "truncate"


@dataclass(frozen=True)
class BatchingOptions(Group, panel="Batching", advanced=True):
    """How texts are laid out in batches."""

    strategy: Annotated[
        str | None,
        typer.Option(
            metavar="auto|buckets|packing|fixed",
            help="Rows of one text each, in a few lengths (buckets); rows of several short texts (packing); whichever "
            "should be faster (auto); or rows of one text each in full batches, so that no result depends on other "
            "texts (fixed).",
            show_default="by the device",
        ),
    ] = None
    tokens_per_batch: Annotated[
        int | None,
        typer.Option(help="Approximate number of tokens in a batch, on each device.", show_default="by the device"),
    ] = None


# Devices


@dataclass(frozen=True)
class LayerDevices(Group, panel="Devices", advanced=True):
    """How many devices share a layer."""

    tensor_parallel: Annotated[int, TENSOR_PARALLEL] = 1


@dataclass(frozen=True)
class MeshOptions(LayerDevices):
    """The devices that share batches and layers."""

    data_parallel: Annotated[
        int | None,
        typer.Option(
            help="Number of devices that share a batch's rows.", show_default="all, but for --tensor-parallel"
        ),
    ] = None

    def mesh(self, batch_size: int) -> Mesh | None:
        """These devices."""
        from roberta_flax.cli.accelerators import open_devices
        from roberta_flax.train.devices import mesh_for

        distributed = {"distributed": True} if getattr(self, "distributed", False) else {}
        if not distributed:  # several hosts find each other before JAX opens any device
            open_devices()
        return mesh_for(
            batch_size, data_parallel=self.data_parallel, tensor_parallel=self.tensor_parallel, **distributed
        )


@dataclass(frozen=True)
class TrainingDevices(MeshOptions):
    """The devices that share a training run."""

    fully_sharded: Annotated[
        bool,
        typer.Option("--fully-sharded", help="Shard parameters, too, over the devices that share the batch."),
    ] = False
    distributed: Annotated[bool, DISTRIBUTED] = False


# Training

_HYPERPARAMETERS = (
    "learning_rate", "end_learning_rate", "batch_size", "update_freq", "adam_betas", "adam_eps", "weight_decay",
    "clip_norm", "dropout", "attention_dropout",
)  # fmt: skip


@dataclass(frozen=True)
class TrainingOptions(Group, panel="Training"):
    """Hyperparameters, as far as they differ from a recipe."""

    steps: Annotated[
        int | None,
        typer.Option(help="Number of steps.", show_default="the recipe's"),
        Formerly(("--updates", "--max-update", "--max-steps", "--num-steps")),
    ] = None
    warmup_steps: Annotated[
        int | None,
        typer.Option(help="Number of steps over which the learning rate rises.", show_default="the recipe's"),
        Formerly(("--warmup-updates",)),
        ADVANCED,
    ] = None
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", "--lr", help="Peak learning rate.", show_default="the recipe's")
    ] = None
    end_learning_rate: Annotated[
        float | None, typer.Option(help="Learning rate after the last step.", show_default="the recipe's"), ADVANCED
    ] = None
    batch_size: Annotated[
        int | None,
        typer.Option(help="Examples or samples in a batch, over all devices.", show_default="the recipe's"),
    ] = None
    update_freq: Annotated[
        int | None,
        typer.Option(help="Number of batches whose gradients make one step.", show_default="the recipe's"),
        ADVANCED,
    ] = None
    adam_betas: Annotated[
        tuple[float, float] | None, typer.Option(help="Adam's decay rates.", show_default="the recipe's"), ADVANCED
    ] = None
    adam_eps: Annotated[float | None, typer.Option(help="Adam's epsilon.", show_default="the recipe's"), ADVANCED] = (
        None
    )
    weight_decay: Annotated[
        float | None, typer.Option(help="Adam's weight decay.", show_default="the recipe's"), ADVANCED
    ] = None
    clip_norm: Annotated[
        float | None,
        typer.Option(help="Maximum norm of all gradients; 0 for no clipping.", show_default="the recipe's"),
        ADVANCED,
    ] = None
    dropout: Annotated[
        float | None,
        typer.Option(
            help="Dropout of the embeddings and of each block's output.",
            show_default="the recipe's, or else the model's",
        ),
        ADVANCED,
    ] = None
    attention_dropout: Annotated[
        float | None,
        typer.Option(help="Dropout of the attention weights.", show_default="the recipe's, or else the model's"),
        ADVANCED,
    ] = None
    remat: Annotated[
        bool,
        typer.Option("--remat", help="Recompute layers for their gradients: less memory, a quarter more computation."),
        ADVANCED,
    ] = False

    @classmethod
    def of(cls, recipe: Recipe) -> Self:
        """A recipe's values, to be shown as defaults."""
        shown = {name: getattr(recipe, name) for name in _HYPERPARAMETERS}
        return cls(steps=recipe.total_steps, warmup_steps=recipe.warmup_steps, **shown)

    def recipe(self, base: Recipe) -> Recipe:
        """A recipe with these hyperparameters; an InputError if what training needs is not installed.

        Every command that trains begins with this, before it reads any data.
        """
        require("orbax.checkpoint", "train")
        return replace(base, **self.given(*_HYPERPARAMETERS))


@dataclass(frozen=True)
class AdapterOptions(Group, panel="Adapters (LoRA)", advanced=True):
    """Adapters that are trained in the place of the network."""

    lora_rank: Annotated[
        int | None,
        typer.Option(
            help="Train adapters of this rank, and the head, in place of the network.", show_default="no adapters"
        ),
        Formerly(("--lora-r",)),
    ] = None
    lora_alpha: Annotated[float, typer.Option(help="Scale the adapters by this number, divided by the rank.")] = 16.0
    lora_targets: Annotated[
        str,
        typer.Option(
            help="Linear maps that get adapters, separated by commas: query, key, value, attention.output, "
            "feed_forward.intermediate, feed_forward.output, all-linear, or patterns of their paths.",
        ),
        Formerly(("--lora-target-modules",)),
    ] = "query,value"
    lora_dropout: Annotated[float, typer.Option(help="Dropout of the adapters' inputs.")] = 0.0
    rslora: Annotated[
        bool, typer.Option("--rslora", help="Divide --lora-alpha by the square root of the rank (rank-stabilized).")
    ] = False
    dora: Annotated[
        bool, typer.Option("--dora", help="Train the norms of the weights of each output, too (weight-decomposed).")
    ] = False
    lora_apart: Annotated[
        bool,
        typer.Option("--lora-apart", help="Save the adapter alone, in PEFT's files, in place of a merged model."),
    ] = False

    def lora(self) -> LoRA | None:
        """The same as a value; None without a rank."""
        from roberta_flax.nn.adapters import LoRA

        if self.lora_rank is None:
            if self != AdapterOptions():
                raise InputError("options of adapters need their rank: give --lora-rank, or leave them out")
            return None
        targets = tuple(target.strip() for target in self.lora_targets.split(",") if target.strip())
        return LoRA(self.lora_rank, self.lora_alpha, targets, self.lora_dropout, self.rslora, self.dora)


@dataclass(frozen=True)
class RunOptions(Group, panel="Run", advanced=True):
    """What a run leaves on its way, and when it ends before its last step."""

    validate_every: Annotated[
        int | None, typer.Option(help="Validate every N steps.", metavar="N", show_default="an epoch's")
    ] = None
    save_every: Annotated[
        int | None,
        typer.Option(
            help="Save a checkpoint every N steps.", metavar="N", show_default="an epoch's, but from 100 to 1000"
        ),
    ] = None
    keep_checkpoints: Annotated[
        int, typer.Option(help="Number of checkpoints to keep, the newest."), Formerly(("--keep",))
    ] = 3
    log_every: Annotated[int, typer.Option(help="Log metrics every N steps.", metavar="N")] = 10
    patience: Annotated[
        int | None,
        typer.Option(help="Stop after N validations without a better one.", metavar="N", show_default="never"),
    ] = None
    plot: Annotated[bool, typer.Option("--plot", help="Draw curves.png at the end.")] = False
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard files.")] = False


@dataclass(frozen=True)
class SampleOptions(Group, panel="Samples", advanced=True):
    """How a corpus becomes samples, and what is masked."""

    sample_break_mode: Annotated[
        str,
        typer.Option(
            metavar="complete|complete_doc|eos|none",
            help="What a sample is: whole lines, whole lines of one document, one line, or tokens.",
        ),
    ] = "complete"
    tokens_per_sample: Annotated[
        int | None,
        typer.Option(help="Maximum length of a sample in tokens, <s> included.", show_default="the model's"),
    ] = None
    mask_prob: Annotated[float, typer.Option(help="Share of tokens, or of words, to predict.")] = 0.15
    leave_unmasked_prob: Annotated[float, typer.Option(help="Share of these to leave as they are.")] = 0.1
    random_token_prob: Annotated[float, typer.Option(help="Share of these to replace by a random token.")] = 0.1
    mask_whole_words: Annotated[
        bool, typer.Option("--mask-whole-words", help="Mask whole words in place of tokens.")
    ] = False

    def samples(self, seed: int) -> Samples:
        """The same as a value."""
        from roberta_flax.train.samples import Samples

        return Samples(
            self.sample_break_mode,
            self.tokens_per_sample,
            self.mask_prob,
            self.leave_unmasked_prob,
            self.random_token_prob,
            self.mask_whole_words,
            seed,
        )


def print_line(text: str) -> None:
    """One line on stdout, in which text of models, files and users cannot do anything but be read."""
    print(printable(text))


def print_result(result: Any, lines: Iterable[str], *, as_json: bool) -> None:
    """A command's result on stdout: one JSON value, or lines for a person."""
    if as_json:
        print_json(result)
        return
    for line in lines:
        print_line(line)


def print_json(result: Any) -> None:
    """One JSON value on stdout; text stays readable in any script that stdout can encode."""
    text = json.dumps(result, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8", "surrogatepass")
    except UnicodeEncodeError:
        text = json.dumps(result)
    print("".join(c if is_printable(c) else json.dumps(c)[1:-1] for c in text))
