"""Programs for TPUs that are not there: libtpu's compiler needs a topology's name and no device of it.

A compiled program is asked for what it counts itself (cost_analysis, memory_analysis: of one device, as the compiled
program is) and read for its matrix products and its collectives.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from roberta_flax import train
from roberta_flax.nn import forward, quantize, sharding
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from roberta_flax.nn.numerics import Numerics
from roberta_flax.nn.tree import path_name

V5E_BYTES = 16 * 2**30  # of memory, of one chip (Google Cloud TPU documentation, "TPU v5e")
HEAD = "mnli"
# Sizes by name. XLM-R XXL: "Larger-Scale Transformers for Multilingual Masked Language Modeling" (Goyal et al., 2021)
# and config.json of facebook/xlm-roberta-xxl, whose vocabulary is padded from 250,002 pieces.
ARCHITECTURES = {
    "roberta.large": {},
    "xlmr.xxl": {
        "vocab_size": 250880,
        "hidden_size": 4096,
        "num_heads": 32,
        "intermediate_size": 16384,
        "normalize_before": True,
        "layernorm_embedding": False,
    },
}

# A fifth of the time to compile, for the same products and collectives. Fusion and the layout in memory are coarser, so
# that bytes accessed and cycles are not those of a real run.
FAST = {"exec_time_optimization_effort": -1.0}

_OF_A_MACHINE_WITHOUT_TPU = {
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # this and the next are asked of the cloud's metadata server otherwise
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_LOG_DIR": "disabled",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # a second process to compile is stopped by the first one's lock otherwise
}


def large(**changes: Any) -> RobertaConfig:
    """roberta.large.mnli."""
    config = RobertaConfig.large(**changes)
    return config.with_head(HeadConfig(HEAD, num_classes=3, inner_size=config.hidden_size))


@cache
def devices(topology: str) -> tuple[jax.Device, ...]:
    """The devices of a topology such as "v5e:2x2"."""
    for name, value in _OF_A_MACHINE_WITHOUT_TPU.items():
        os.environ.setdefault(name, value)
    # a host has four chips or eight, or is asked for less
    bounds = {"chips_per_host_bounds": [1, 1, 1]} if topology.endswith(":1x1") else {}
    return tuple(topologies.get_topology_desc(platform="tpu", topology_name=topology, **bounds).devices)


@dataclass(frozen=True)
class Program:
    """A forward function of roberta.large, or of another architecture, for a topology.

    Attributes:
      topology: "v5e:2x2" and the like.
      tensor_parallel: devices along sharding.MODEL; the others are along sharding.DATA.
      rows, length: of the batch, over all devices.
      wanted: "features", of every token; "head", the outputs of an MNLI head; "lm", a logit of every token of every
        position.
      num_layers: of the network.
      dtype: "bfloat16", or "int8" for the layers' products in it and the others in bfloat16.
      max_positions: of the network; XLM-R models for long texts have 8,192.
      architecture: one of ARCHITECTURES, of which num_layers are compiled.
    """

    topology: str
    tensor_parallel: int = 1
    rows: int = 64
    length: int = 128
    wanted: str = "head"
    num_layers: int = 24
    dtype: str = "bfloat16"
    max_positions: int = 512
    architecture: str = "roberta.large"

    @property
    def config(self) -> RobertaConfig:
        sizes: dict[str, Any] = ARCHITECTURES[self.architecture]
        return large(num_layers=self.num_layers, max_positions=self.max_positions, **sizes)

    @property
    def mesh(self) -> jax.sharding.Mesh:
        return sharding.mesh(devices(self.topology), self.tensor_parallel)

    def params(self) -> forward.Params:
        """What Predictor holds: forward.operands, by sharding.RULES, without the numbers."""

        def held(params: forward.Params) -> forward.Params:
            return forward.operands(quantize.quantize(params) if self.dtype == "int8" else params, jnp.bfloat16)

        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: self.placed(leaf.shape, leaf.dtype, sharding.spec(path_name(path))),
            jax.eval_shape(held, forward.abstract_params(self.config)),
        )

    def tokens(self) -> jax.ShapeDtypeStruct:
        return self.placed((self.rows, self.length), jnp.int32, PartitionSpec(sharding.DATA))

    def placed(self, shape: tuple[int, ...], dtype: Any, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(self.mesh, spec))

    def compiled(self, options: dict[str, Any] | None = None) -> jax.stages.Compiled:
        function = {
            "features": forward.features,
            "head": partial(forward.head_logits, head=HEAD),
            "lm": forward.lm_logits,
        }[self.wanted]
        lower = getattr(function, "func", function).lower
        static = {"config": self.config, "numerics": Numerics("bfloat16"), **getattr(function, "keywords", {})}
        return lower(self.params(), self.tokens(), **static).compile(compiler_options=options)

    @property
    def selected(self) -> int:
        """The number of tokens of each row whose features are wanted."""
        return 1 if self.wanted == "head" else self.length

    def hand_count(self) -> float:
        """Floating point operations of the network's matrix products, by hand, and on one of the devices.

        The last layer's keys and values are of every token, and all else there of the selected ones.
        """
        config = self.config
        hidden, intermediate = config.hidden_size, config.intermediate_size
        projection, feed_forward = hidden**2, 2 * hidden * intermediate

        def layer(queries: int) -> int:
            of_tokens = self.rows * self.length * 2 * projection  # keys and values
            of_queries = self.rows * queries * (2 * projection + feed_forward)
            return of_tokens + of_queries + 2 * self.rows * queries * self.length * hidden

        multiply_adds = (self.num_layers - 1) * layer(self.length) + layer(self.selected)
        return 2 * multiply_adds / len(devices(self.topology)) + self.hand_count_of_head()

    def hand_count_of_head(self) -> float:
        """Of these, those after the layers."""
        config = self.config
        outputs = {"head": config.head(HEAD).num_classes, "lm": config.vocab_size}.get(self.wanted)
        tokens, hidden = self.rows * self.selected, config.hidden_size
        multiply_adds = 0 if outputs is None else tokens * (hidden**2 + hidden * outputs)
        return 2 * multiply_adds / len(devices(self.topology))


@dataclass(frozen=True)
class Update(Program):
    """An update of a network with an MNLI head by Adam, in bfloat16 with float32 parameters and moments.

    Its loss is the head's or, for wanted="lm", that of the masked tokens: 15 % of each row.

    Attributes:
      fully_sharded: whether sharding.DATA divides parameters and moments too.
      remat: whether layers' insides are computed again for their gradients.
      generator: of dropout's random numbers, as jax.random.key takes it.
      dropout: whether there is any. Without it the same compiles in a third of the time.
    """

    fully_sharded: bool = False
    remat: bool = True
    generator: str | None = None
    dropout: bool = True

    @property
    def config(self) -> RobertaConfig:
        config = super().config
        return config if self.dropout else dataclasses.replace(config, dropout=0.0, attention_dropout=0.0)

    def held(self, path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
        name = path_name(path)
        whole = sharding.spec(name)
        spec = sharding.fully_sharded_spec(name, leaf.shape, self.mesh) if self.fully_sharded else whole
        return self.placed(leaf.shape, leaf.dtype, spec)

    def params(self) -> forward.Params:
        return jax.tree_util.tree_map_with_path(self.held, forward.abstract_params(self.config))

    def compiled(self, options: dict[str, Any] | None = None) -> jax.stages.Compiled:
        optimizer = train.adam(train.polynomial_decay(1e-5, warmup_steps=10, total_steps=100), config=self.config)
        of_batch = train.masked_lm_loss if self.wanted == "lm" else partial(train.head_loss, HEAD)
        loss = of_batch(config=self.config, numerics=Numerics(dtype="bfloat16", remat=self.remat))
        params = self.params()
        adam, *others = jax.eval_shape(optimizer.init, params)
        moments = {"mean": params, "square": params}  # which init_optimizer divides as the parameters
        state = (adam._replace(**moments), *others)
        lowered = train.make_train_step(loss, optimizer).lower(params, state, self.batch(), self.key())
        return lowered.compile(compiler_options=options)

    @property
    def selected(self) -> int:
        return self.length * 15 // 100 if self.wanted == "lm" else super().selected

    def batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        rows = PartitionSpec(sharding.DATA)
        items = (self.rows, self.selected) if self.wanted == "lm" else (self.rows,)
        batch = {
            "tokens": self.tokens(),
            "targets": self.placed(items, jnp.int32, rows),
            "weights": self.placed(items, jnp.float32, rows),
        }
        return batch | ({"positions": self.placed(items, jnp.int32, rows)} if self.wanted == "lm" else {})

    def key(self) -> jax.ShapeDtypeStruct:
        key = jax.eval_shape(lambda: jax.random.key(0, impl=self.generator))
        return self.placed(key.shape, key.dtype, PartitionSpec())

    def hand_count(self) -> float:
        """Each product of the forward pass, and two for its gradients; with remat a layer's are computed twice.

        The last one is not: its result is kept, as a term of what the next layer reads.
        """
        forward, head = super().hand_count(), self.hand_count_of_head()
        tokens = self.rows * ((self.num_layers - 1) * self.length + self.selected)
        last = 2 * tokens * self.config.hidden_size * self.config.intermediate_size / len(devices(self.topology))
        return 3 * forward + (forward - head - last if self.remat else 0)


def figures(compiled: jax.stages.Compiled) -> dict[str, float]:
    """What the compiler counts of one device's program.

    estimated_cycles is its own guess, of the fusions of the main computation: not of collectives, of gathers, of copies
    and of kernels that are not its own.
    """
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    main = compiled.as_text().split("\nENTRY ")[1]
    return {
        "flops": cost["flops"],
        "bytes_accessed": cost["bytes accessed"],
        "estimated_cycles": sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', main))),
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "peak_bytes": memory.peak_memory_in_bytes,
        "program_bytes": memory.generated_code_size_in_bytes,
    }


def costs(compiled: jax.stages.Compiled) -> list[tuple[int, int, str]]:
    """Estimated cycles of the operations of the main computation, the costliest first.

    Those of all layers are one: (cycles in all, number, the operation's name in the traced program and its result).
    """
    main = compiled.as_text().split("\nENTRY ")[1]
    found: dict[str, list[int]] = {}
    for line in main.splitlines():
        if (cycles := re.search(r'"estimated_cycles":"(\d+)"', line)) and (instruction := _INSTRUCTION.match(line)):
            name = re.search(r'op_name="([^"]*)"', line)
            result = re.sub(r"\{[^}]*\}", "", instruction.group(2))
            what = f"{name.group(1) if name else ''} -> {result}"
            found.setdefault(what, []).append(int(cycles.group(1)))
    return sorted(((sum(each), len(each), what) for what, each in found.items()), reverse=True)


@dataclass(frozen=True)
class Operation:
    """An operation of a compiled program: kind, its result, and its operands' dtypes."""

    kind: str
    dtype: str
    shape: tuple[int, ...]
    operands: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.kind}({', '.join(self.operands)}) -> {self.dtype}{list(self.shape)}"


_PRODUCTS = ("convolution", "dot")  # the TPU's compiler makes the first of the second
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%(\S+) = (.+?) ([a-z][a-z0-9-]*)\((.*)$")
_ARRAY = re.compile(r"([a-z]+[0-9]*(?:e[0-9a-z]+)?)\[([0-9,]*)\]")


def products(compiled: jax.stages.Compiled) -> list[Operation]:
    return list(_operations(compiled.as_text(), _PRODUCTS))


def collectives(compiled: jax.stages.Compiled) -> list[Operation]:
    """One for each array of a collective of several. What runs beside other operations, in parts, is one."""
    return list(_operations(compiled.as_text(), _COLLECTIVES))


def reshapes(compiled: jax.stages.Compiled) -> list[Operation]:
    """Those that move numbers in memory; the others are bitcasts."""
    return list(_operations(compiled.as_text(), ("reshape",)))


def _operations(text: str, kinds: tuple[str, ...]) -> Iterator[Operation]:
    dtypes: dict[str, str] = {}  # of what the names of a computation stand for
    channels = set()
    for line in text.splitlines():
        if not line.startswith(" "):
            dtypes = {}
        if (found := _INSTRUCTION.match(line)) is None:
            continue
        name, result, kind, rest = found.groups()
        arrays = _ARRAY.findall(result)
        dtypes[name] = arrays[0][0] if len(arrays) == 1 else ""
        is_start, kind = kind.endswith("-start"), kind.removesuffix("-start")
        if kind not in kinds:
            continue
        if channel := re.search(r"channel_id=(\d+)", rest):
            if channel.group(1) in channels:
                continue
            channels.add(channel.group(1))
        operands = re.findall(r"%([^\s,)]+)", rest[: rest.index(")")])
        if is_start and kind in ("all-gather", "collective-permute"):  # the operands, the results, and handles
            arrays = arrays[len(operands) : 2 * len(operands)]
        for dtype, dimensions in arrays:
            shape = tuple(int(size) for size in dimensions.split(",") if size)
            yield Operation(kind, dtype, shape, tuple(dtypes[operand] for operand in operands))


def flax_compiled(program: Program, options: dict[str, Any] | None = None) -> jax.stages.Compiled:
    """The same of transformers' FlaxRobertaModel, ForSequenceClassification or ForMaskedLM, in bfloat16.

    An update is by optax's AdamW, of float32 parameters. ForMaskedLM computes the logits of every token, of which the
    loss takes those at the masked positions.
    """
    model = _flax_model(program)
    pad_id = program.config.pad_id

    @jax.jit
    def run(params: Any, tokens: Any) -> Any:
        return model(tokens, attention_mask=tokens != pad_id, params=params)[0]

    if isinstance(program, Update):
        return _flax_update(program, model).compile(compiler_options=options)
    params = _placed_tree(program, model.params_shape_tree, jnp.bfloat16)
    return run.lower(params, program.tokens()).compile(compiler_options=options)


def _flax_model(program: Program) -> Any:
    import transformers

    from references.transformers import configuration

    config = program.config
    theirs = configuration(config, num_labels=config.head(HEAD).num_classes)
    if program.wanted == "features":
        return transformers.FlaxRobertaModel(theirs, dtype=jnp.bfloat16, _do_init=False, add_pooling_layer=False)
    is_lm = program.wanted == "lm"
    kind = transformers.FlaxRobertaForMaskedLM if is_lm else transformers.FlaxRobertaForSequenceClassification
    remat = getattr(program, "remat", False)
    return kind(theirs, dtype=jnp.bfloat16, _do_init=False, gradient_checkpointing=remat)


def _flax_update(update: Update, model: Any) -> jax.stages.Lowered:
    pad_id = update.config.pad_id
    optimizer = optax.adamw(optax.linear_schedule(1e-5, 0.0, 100), b2=0.98, eps=1e-6, weight_decay=0.1)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, batch: Any, key: Any) -> Any:
        def loss(params: Any) -> Any:
            mask = batch["tokens"] != pad_id
            logits = model(batch["tokens"], attention_mask=mask, params=params, dropout_rng=key, train=True)[0]
            if "positions" in batch:
                logits = jnp.take_along_axis(logits, batch["positions"][..., None], axis=1)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), batch["targets"])
            return (losses * batch["weights"]).sum() / batch["weights"].sum()

        value, gradients = jax.value_and_grad(loss)(params)
        changes, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, changes), state, value

    params = _placed_tree(update, model.params_shape_tree, jnp.float32)
    state = jax.tree.map(
        lambda leaf: update.placed(leaf.shape, leaf.dtype, PartitionSpec()), jax.eval_shape(optimizer.init, params)
    )
    return step.lower(params, state, update.batch(), update.key())


def _placed_tree(program: Program, tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda leaf: program.placed(leaf.shape, dtype, PartitionSpec()), tree)
