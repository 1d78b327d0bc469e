"""The functions of roberta_flax.forward as StableHLO programs: traced once, for every shape and several platforms.

  config.json, model.safetensors, ...   the converted directory's own files
  stablehlo/NAME.jax                    a program, as jax.export serializes it
  stablehlo/NAME.mlirbc                 the same program as portable StableHLO bytecode, for compilers outside JAX
  stablehlo/programs.json               the inputs and outputs of each program, and the sha256 of its files

Parameters are arguments, not constants, so that programs are small and the weights are stored once. `batch` (from 1),
`time` (from 1 to max_positions) and `masked` are symbols: one program takes every shape. To run a program, you need
neither the network's code nor the devices that it was traced for. Programs contain no gradients and no dropout.

The StableHLO function `main` takes, in this order: the index of the platform (int32, []) if there are several
platforms, every parameter in the order of programs.json, and the inputs. It contains `shape_assertion` custom calls
and, for the cumulative sum that numbers the positions, `stablehlo.dynamic_reduce_window`. XLA's shape refinement
replaces both.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial, reduce
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import export as jax_export

from roberta_flax.checkpoint import converted
from roberta_flax.checkpoint.tensors import LazyTensor
from roberta_flax.errors import CheckpointError, InputError
from roberta_flax.files import new_directory, write_bytes
from roberta_flax.nn import forward
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.nn.forward import Params
from roberta_flax.nn.numerics import DTypeLike, Numerics, PrecisionLike
from roberta_flax.nn.quantize import METHODS, check_method
from roberta_flax.nn.quantize import quantize as quantized
from roberta_flax.nn.tree import flatten, unflatten
from roberta_flax.remote import to_path
from roberta_flax.text import batching

__all__ = [
    "DTYPES",
    "KNOWN_PLATFORMS",
    "PLATFORMS",
    "Program",
    "Signature",
    "export",
    "load",
    "signatures",
]

DIRECTORY = "stablehlo"  # in the converted directory
PROGRAMS_FILE = "programs.json"
JAX_SUFFIX, BYTECODE_SUFFIX = ".jax", ".mlirbc"
PLATFORMS = ("cpu", "cuda", "tpu")
KNOWN_PLATFORMS = (*PLATFORMS, "rocm")  # the platforms that JAX can lower this network for
DTYPES = ("float32", "bfloat16", "float16")  # float64 would depend on jax_enable_x64, at export and at load


@dataclass(frozen=True)
class Signature:
    """The function that a program computes, and its inputs besides the parameters.

    Attributes:
      function: the name of the function in roberta_flax.forward.
      static: the arguments that are fixed in the program, such as the name of a head.
      inputs: the names of the other arguments, in order. They are int32 arrays: "tokens" [batch, time] and "positions"
        [batch, masked].
    """

    function: str
    static: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[str, ...] = ("tokens",)

    @property
    def name(self) -> str:
        """The function's name, the fixed arguments, and the inputs other than tokens, joined with dots."""
        return ".".join((self.function, *self.static.values(), *self.inputs[1:]))


def signatures(config: RobertaConfig, heads: Sequence[str] | None = None) -> dict[str, Signature]:
    """Returns the signatures of a model's programs, by name.

    Args:
      config: the model's configuration.
      heads: the names of the heads to include; all by default.

    Raises:
      InputError: the model has no head of that name.
    """
    chosen = config.heads if heads is None else [config.head(name) for name in dict.fromkeys(heads)]
    all_signatures = [
        Signature("features"),
        *(Signature("pooled_features", {"pooling": pooling}) for pooling in forward.POOLINGS),
        Signature("hidden_states"),
        *([Signature("lm_logits"), Signature("lm_logits", inputs=("tokens", "positions"))] if config.lm_head else []),
        *(Signature(f, {"head": head.name}) for head in chosen for f in ("head_logits", "head_log_probs")),
    ]
    return {signature.name: signature for signature in all_signatures}


def export(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    heads: Sequence[str] | None = None,
    dtype: DTypeLike = jnp.float32,
    precision: PrecisionLike = None,
    quantize: str | None = None,
    platforms: Sequence[str] = PLATFORMS,
) -> Path:
    """Exports a converted model and its functions as programs, to a converted directory that `load` also reads.

    The export computes nothing, and needs no device of the platforms.

    Args:
      source: a converted directory.
      destination: the directory to create. It must not exist, and it appears only when it is complete.
      heads: the heads to write programs for; all by default. The parameters of all heads are kept in any case.
      dtype: the dtype of the computation's operands: float32, bfloat16 or float16.
      precision: the precision of matrix products, as in jax.lax.Precision; "highest" for float32 parity on TPU and GPU.
      quantize: "int8" to compute the layers' products in int8 (roberta_flax.nn.quantize). model.safetensors stays
        unquantized: `load` quantizes it, and so must any other program that runs the export.
      platforms: the platforms to lower for, from KNOWN_PLATFORMS.

    Returns:
      The destination.

    Raises:
      InputError: the model has no such head, or the dtype, precision, quantize or platform is unknown.
      CheckpointError: the source is not a complete converted directory, or the destination exists or cannot be written.
    """
    source, destination = Path(to_path(source)), to_path(destination)
    numerics = _numerics(dtype, precision)
    if quantize is not None:
        check_method(quantize)
    platforms = tuple(dict.fromkeys(platforms))
    if not platforms or not set(platforms) <= set(KNOWN_PLATFORMS):
        raise InputError(f"platforms must be among {', '.join(KNOWN_PLATFORMS)}; got {', '.join(platforms) or 'none'}")

    config, stored = converted.read_stored(source)
    chosen = signatures(config, heads)
    param_dtype = _param_dtype(stored)
    params = forward.abstract_params(config, param_dtype)
    params = params if quantize is None else jax.eval_shape(partial(quantized, method=quantize), params)
    trace = partial(_trace, config=config, params=params, numerics=numerics, platforms=platforms)
    with new_directory(destination) as directory:
        for name in converted.file_names(source):
            shutil.copyfile(source / name, directory / name)
        (directory / DIRECTORY).mkdir()
        programs = {
            name: _write_program(directory / DIRECTORY, signature, trace(signature))
            for name, signature in chosen.items()
        }
        manifest = {
            "versions": converted.versions(),
            "platforms": platforms,
            "dtype": numerics.dtype.name,
            "precision": None if numerics.precision is None else numerics.precision.name.lower(),
            "param_dtype": param_dtype,
            "quantize": quantize,
            "symbols": {"batch": [1, None], "time": [1, config.max_positions], "masked": [1, None]},
            "arguments": [*(["platform_index"] if len(platforms) > 1 else []), "parameters", "inputs"],
            "parameters": _describe_arrays(flatten(params)),
            "programs": programs,
        }
        text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        write_bytes(directory / DIRECTORY / PROGRAMS_FILE, text.encode("utf-8"))
    return destination


@dataclass(frozen=True, eq=False)
class Program:
    """A program together with the parameters of the directory that `load` read it from.

    Attributes:
      signature: the function that it computes, and its inputs.
      config: the model's configuration.
      params: the parameter tree that the functions of roberta_flax.forward take.
      exported: the jax.export.Exported, with `call`, `mlir_module`, `platforms`, `in_avals` and so on. Its arguments
        are a dict of the parameters by their dotted names in model.safetensors, and the inputs.
    """

    signature: Signature
    config: RobertaConfig
    params: Params
    exported: jax_export.Exported

    def __call__(self, tokens: npt.ArrayLike, positions: npt.ArrayLike | None = None) -> Any:
        """Checks the inputs and runs the program. Each new shape is compiled.

        Args:
          tokens: token ids, [time] or [batch, time].
          positions: [batch, masked], if the program takes positions.

        Returns:
          The results of the function in roberta_flax.forward, with the same shapes and dtypes.

        Raises:
          InputError: the model does not accept the token ids (see batching.check_tokens), or the positions are missing,
            unexpected, of another shape, or outside the rows.
        """
        ids = batching.check_tokens(tokens, self.config.vocab_size, self.config.max_positions)
        takes_positions = "positions" in self.signature.inputs
        if takes_positions != (positions is not None):
            given = "none were given" if positions is None else "they were given"
            raise InputError(f"{self.signature.name} takes {'' if takes_positions else 'no '}positions, but {given}")
        return self.apply(self.params, ids, *([_check_positions(positions, ids)] if takes_positions else []))

    def apply(self, params: Params, *inputs: Any) -> Any:
        """Runs the program without checks: a pure function, for jit and other transformations.

        Args:
          params: a tree with the shapes and dtypes of `self.params`.
          inputs: int32 arrays, in the order of `signature.inputs`.
        """
        return self._compiled(flatten(params), *inputs)

    @cached_property
    def _compiled(self) -> Any:
        return jax.jit(self.exported.call)


def load(directory: str | os.PathLike[str]) -> dict[str, Program]:
    """Loads the programs that `export` wrote.

    A program is code. JAX runs it, not the host, but load only programs that you trust: checksums detect damage, not
    tampering.

    Args:
      directory: a directory that `export` wrote.

    Returns:
      The programs by name (see `signatures`), all with the same parameters.

    Raises:
      CheckpointError: a file is missing or damaged, the files come from different exports, or this JAX does not read
        their version.
      InputError: the programs were not exported for the platform that JAX uses here.
    """
    directory = Path(to_path(directory))
    manifest = _read_manifest(directory)
    config, params = converted.read(directory, manifest.param_dtype)
    if manifest.quantize is not None:
        params = quantized(params, manifest.quantize)
    known = signatures(config)
    if _describe_arrays(flatten(params)) != manifest.parameters or not manifest.sha256.keys() <= known.keys():
        raise CheckpointError(f"{directory / DIRECTORY} does not belong to the model beside it; export it again")
    return {
        name: Program(known[name], config, params, _read_program(directory / DIRECTORY, known[name], sha256))
        for name, sha256 in manifest.sha256.items()
    }


def _numerics(dtype: DTypeLike, precision: PrecisionLike) -> Numerics:
    with suppress(TypeError):  # not a dtype: Numerics refuses it
        if (name := jnp.dtype(dtype).name) not in DTYPES:
            raise InputError(f"programs compute in {', '.join(DTYPES)}; got {name}")
    # "xla", because every other implementation of attention needs to know the shapes or the platform
    return Numerics(dtype, precision=precision, attention="xla")


def _param_dtype(stored: Mapping[str, LazyTensor]) -> str:
    """The name of the narrowest dtype that holds every tensor's values; float32 instead of float64, as elsewhere."""
    widest = reduce(jnp.promote_types, (tensor.dtype for tensor in stored.values())).name
    return widest if widest in DTYPES else "float32"


def _trace(
    signature: Signature, *, config: RobertaConfig, params: Params, numerics: Numerics, platforms: Sequence[str]
) -> jax_export.Exported:
    function = partial(
        getattr(forward, signature.function),
        **signature.static,
        config=config,
        numerics=numerics,
    )

    def call(leaves: Mapping[str, jax.Array], *inputs: jax.Array) -> Any:
        arguments = dict(zip(signature.inputs, inputs, strict=True))
        return function(unflatten(leaves, params), **arguments)

    # jax.export assumes that every symbol is at least 1, and checks it
    time_limit = f"time <= {config.max_positions}"
    batch, time, masked = jax_export.symbolic_shape("batch, time, masked", constraints=[time_limit])
    shapes = {"tokens": (batch, time), "positions": (batch, masked)}
    inputs = [jax.ShapeDtypeStruct(shapes[name], jnp.int32) for name in signature.inputs]  # type: ignore[no-untyped-call]
    with jax.enable_x64(False), _without_source_paths():
        # unused parameters are kept, so that all programs take the same parameters
        traced = jax_export.export(jax.jit(call, keep_unused=True), platforms=platforms)
        return traced(flatten(params), *inputs)


@contextmanager
def _without_source_paths() -> Iterator[None]:
    """Keeps the exporting machine's file names and line numbers out of programs, which would differ by them."""
    name = "jax_traceback_in_locations_limit"
    limit = getattr(jax.config, name)
    jax.config.update(name, 0)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        jax.config.update(name, limit)  # type: ignore[no-untyped-call]


def _write_program(directory: Path, signature: Signature, program: jax_export.Exported) -> dict[str, Any]:
    """Writes a program's two files, and returns its entry in programs.json."""
    contents = {JAX_SUFFIX: bytes(program.serialize()), BYTECODE_SUFFIX: program.mlir_module_serialized}
    files = {}
    for suffix, content in contents.items():
        path = _program_file(directory, signature, suffix)
        write_bytes(path, content)
        files[suffix] = {"file": path.name, "sha256": hashlib.sha256(content).hexdigest()}
    return {
        "function": signature.function,
        "static": dict(signature.static),
        "inputs": _describe_arrays(
            dict(zip(signature.inputs, program.in_avals[-len(signature.inputs) :], strict=True))
        ),
        "results": [_shape_and_dtype(result) for result in program.out_avals],
        "calling_convention_version": program.calling_convention_version,
        "jax_export": files[JAX_SUFFIX],
        "stablehlo": files[BYTECODE_SUFFIX],
    }


def _program_file(directory: Path, signature: Signature, suffix: str) -> Path:
    return directory / (quote(signature.name, safe=" ") + suffix)  # heads may have any name


def _describe_arrays(arrays: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Describes arrays in the order of their names, which is the order of a flattened dict."""
    return [{"name": name, **_shape_and_dtype(arrays[name])} for name in sorted(arrays)]


def _shape_and_dtype(array: Any) -> dict[str, Any]:
    shape = [size if isinstance(size, int) else str(size) for size in array.shape]
    return {"shape": shape, "dtype": array.dtype.name}


@dataclass(frozen=True)
class _Manifest:
    """The parts of programs.json that `load` needs. `sha256` maps the name of a program to its checksum."""

    param_dtype: str
    quantize: str | None
    parameters: list[dict[str, Any]]
    sha256: dict[str, str]


def _read_manifest(directory: Path) -> _Manifest:
    path = directory / DIRECTORY / PROGRAMS_FILE
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        sha256 = {name: program["jax_export"]["sha256"] for name, program in fields["programs"].items()}
        manifest = _Manifest(fields["param_dtype"], fields["quantize"], fields["parameters"], sha256)
        if manifest.param_dtype not in DTYPES or manifest.quantize not in (None, *METHODS):
            raise ValueError(f"unknown param_dtype or quantize: {manifest.param_dtype!r}, {manifest.quantize!r}")
    except OSError as error:
        raise CheckpointError(
            f"cannot read {path}: {error.strerror or error}; create it with `roberta-flax export --to stablehlo`"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({type(error).__name__}: {error}); export it again") from None
    return manifest


def _read_program(directory: Path, signature: Signature, sha256: str) -> jax_export.Exported:
    path = _program_file(directory, signature, JAX_SUFFIX)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}; export it again") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise CheckpointError(f"{path} is damaged: its sha256 differs from the one in {PROGRAMS_FILE}; export it again")
    try:
        program = jax_export.deserialize(bytearray(content))
    except (ValueError, NotImplementedError) as error:
        raise CheckpointError(f"JAX {jax.__version__} does not read {path}: {error}; export it again") from None
    if (platform := jax_export.default_export_platform()) not in program.platforms:
        raise InputError(f"{path} was exported for {', '.join(program.platforms)}, and JAX computes on {platform} here")
    return program


def _check_positions(positions: Any, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    try:
        given = np.asarray(positions)
    except ValueError:
        given = np.asarray(None)
    batch, time = ids.shape
    if given.ndim != 2 or len(given) != batch or given.size == 0 or not np.issubdtype(given.dtype, np.integer):
        raise InputError(
            f"positions must be integers, [batch, masked] with a batch of {batch}; got {given.dtype} of shape "
            f"{given.shape}"
        )
    if given.min() < 0 or given.max() >= time:
        raise InputError(f"positions must be from 0 to {time - 1}; got {given.min()} to {given.max()}")
    return given.astype(np.int32)


def __dir__() -> list[str]:
    return __all__
