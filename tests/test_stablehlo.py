"""roberta_flax.stablehlo: programs give what roberta_flax.forward gives, for every shape, and are whole or refused."""

from __future__ import annotations

import dataclasses
import glob
import io
import json
import os
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import roberta_flax
from roberta_flax import CheckpointError, HeadConfig, InputError, RobertaConfig
from roberta_flax.checkpoint import converted, stablehlo
from roberta_flax.nn import forward
from roberta_flax.nn.numerics import Numerics
from roberta_flax.nn.quantize import quantize
from roberta_flax.nn.tree import flatten
from tests import processes
from tests.params import random_params

HEADS = (
    HeadConfig("mnli", 3, 36),
    HeadConfig("tags/of words", 5, 0, kind="token"),
    HeadConfig("span", 2, 0, kind="span"),
    HeadConfig("choice", 1, 36, kind="choice"),
    HeadConfig("topics", 4, 36, problem="multi_label"),
)
CONFIG = RobertaConfig(
    vocab_size=581, num_layers=1, hidden_size=36, num_heads=3, intermediate_size=50, max_positions=512, heads=HEADS
)
SMALL = dataclasses.replace(CONFIG, heads=HEADS[::2][:2])
# float32 sums of at most 512 terms, in another order than those of the program for this very shape; outputs of order one
FLOAT32 = 5e-5
SHAPES = {"one token": (1, 1), "a row": (1, 7), "ragged": (5, 33), "the longest": (2, 512)}


def ragged_tokens(batch: int, length: int) -> np.ndarray:
    """Rows of every length, the first the longest; padding after them."""
    random = np.random.default_rng(batch * length)
    tokens = random.integers(4, CONFIG.vocab_size, (batch, length))
    lengths = np.concatenate([[length], random.integers(1, length + 1, batch - 1)])
    tokens[np.arange(length) >= lengths[:, None]] = CONFIG.pad_id
    return tokens.astype(np.int32)


def expected(program: stablehlo.Program, *inputs: np.ndarray, **options):
    """What roberta_flax.forward gives, traced for this shape."""
    function = getattr(forward, program.signature.function)
    named = dict(zip(program.signature.inputs, inputs, strict=True))
    return function(program.params, **named, **program.signature.static, config=program.config, **options)


@pytest.fixture(scope="module")
def model(tiny_directory, tmp_path_factory):
    """A converted directory with every kind of head, noise on every parameter."""
    return saved(CONFIG, tiny_directory, tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def small(tiny_directory, tmp_path_factory):
    """One with two heads, for what neither their number nor their kinds say anything about."""
    return saved(SMALL, tiny_directory, tmp_path_factory.mktemp("small") / "model")


def saved(config, tokenizer, directory):
    roberta_flax.Roberta(config, random_params(config), roberta_flax.load_tokenizer(tokenizer)).save(directory)
    return directory


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    return stablehlo.export(model, tmp_path_factory.mktemp("exported") / "exported")


@pytest.fixture(scope="module")
def small_exported(small, tmp_path_factory):
    return stablehlo.export(small, tmp_path_factory.mktemp("exported") / "small")


@pytest.fixture(scope="module")
def programs(exported):
    return stablehlo.load(exported)


@pytest.mark.slow
def test_every_public_function_and_head_has_a_program_for_the_three_platforms(programs):
    of_heads = {f"{function}.{head.name}" for head in HEADS for function in ("head_logits", "head_log_probs")}
    assert programs.keys() == of_heads | {
        "features", "pooled_features.first", "pooled_features.mean", "hidden_states", "lm_logits", "lm_logits.positions",
    }  # fmt: skip
    for program in programs.values():
        assert program.exported.platforms == ("cpu", "cuda", "tpu")
        assert str(program.exported.in_avals[-1].shape[0]) == "batch"
        assert not program.exported.has_vjp()


def check(program: stablehlo.Program, batch: int, length: int) -> None:
    tokens = ragged_tokens(batch, length)
    positions = np.stack([np.zeros(batch, np.int32), np.full(batch, length - 1, np.int32)], axis=1)
    inputs = (tokens, positions)[: len(program.signature.inputs)]
    found, wanted = program(*inputs), expected(program, *inputs)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        # relative: padding's log-probability of a span is the lowest float32
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=FLOAT32, err_msg=program.signature.name)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["features", "lm_logits.positions", "head_log_probs.mnli"])
def test_one_program_gives_forwards_results_for_every_shape(programs, name, shape):
    check(programs[name], *SHAPES[shape])


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["pooled", "hidden", "lm_logits", "head_logits", "head_log_probs"])
def test_programs_of_all_functions_give_forwards_results(programs, prefix):
    for name, program in programs.items():
        if name.startswith(prefix):
            check(program, 3, 12)


@pytest.mark.slow
def test_padding_does_not_change_what_a_program_gives(programs):
    tokens = ragged_tokens(1, 9)
    padded = np.pad(tokens, ((0, 3), (0, 4)), constant_values=CONFIG.pad_id)
    np.testing.assert_allclose(programs["features"](padded)[:1, :9], programs["features"](tokens), atol=FLOAT32)


@pytest.mark.slow
def test_a_program_is_a_pure_function_of_parameters_by_their_names_in_the_file(programs, exported):
    """As somebody without this package calls it: jax.export's file, and safetensors' dict of arrays."""
    from safetensors.numpy import load_file

    tokens = ragged_tokens(2, 8)
    plain = jax.export.deserialize(bytearray((exported / "stablehlo" / "head_logits.mnli.jax").read_bytes()))
    found = plain.call(load_file(exported / "model.safetensors"), tokens)
    np.testing.assert_allclose(found, expected(programs["head_logits.mnli"], tokens), atol=FLOAT32)
    program = programs["features"]
    halved = jax.tree.map(lambda leaf: np.asarray(leaf) / 2, program.params)
    found = jax.jit(lambda params, tokens: program.apply(params, tokens) + 1)(halved, tokens)
    np.testing.assert_allclose(found, forward.features(halved, tokens, config=CONFIG) + 1, atol=FLOAT32)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_half_precision_program_gives_what_forward_gives_in_it(small, dtype, tmp_path):
    """Two units in the last place: operands are rounded alike, and sums of float32 are in another order."""
    programs = stablehlo.load(stablehlo.export(small, tmp_path / "half", dtype=dtype, heads=["mnli"]))
    tokens = ragged_tokens(3, 20)
    assert "head_logits.span" not in programs
    found, wanted = programs["features"](tokens), expected(programs["features"], tokens, numerics=Numerics(dtype))
    assert found.dtype == wanted.dtype == dtype
    unit = float(jnp.finfo(dtype).eps)
    found, wanted = (np.asarray(x, np.float32) for x in (found, wanted))
    np.testing.assert_allclose(found, wanted, rtol=2 * unit, atol=2 * unit * float(np.abs(wanted).max()))


@pytest.mark.slow
def test_an_int8_program_gives_what_quantised_parameters_give(small, tmp_path):
    exported = stablehlo.export(small, tmp_path / "int8", quantize="int8")
    assert (exported / "model.safetensors").read_bytes() == (small / "model.safetensors").read_bytes()
    program = stablehlo.load(exported)["head_logits.mnli"]
    tokens = ragged_tokens(3, 20)
    params = quantize(converted.read(small)[1])
    assert program.params["layers"]["0"]["attention"]["query"]["kernel"].dtype == jnp.int8
    wanted = forward.head_logits(params, tokens, head="mnli", config=SMALL)
    # a float32 sum in another order can move an activation by one of 127 steps
    np.testing.assert_allclose(program(tokens), wanted, atol=0.02 * float(np.abs(wanted).max()))


@pytest.mark.slow
@pytest.mark.parametrize(("stored", "taken"), [("bfloat16", "bfloat16"), ("float64", "float32")])
def test_parameters_are_taken_in_the_dtype_that_they_are_stored_in_but_not_in_float64(small, stored, taken, tmp_path):
    roberta_flax.load(small).save(tmp_path / "stored", dtype=stored)
    program = stablehlo.load(stablehlo.export(tmp_path / "stored", tmp_path / "exported", heads=[]))["features"]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(program.params)} == {taken}
    tokens = ragged_tokens(2, 9)
    wanted = roberta_flax.load(tmp_path / "stored").extract_features(tokens)
    np.testing.assert_allclose(program(tokens), wanted, atol=FLOAT32)


@pytest.mark.slow
def test_the_bytecode_is_portable_stablehlo_whose_main_takes_what_programs_json_says(exported):
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import stablehlo as dialect

    manifest = json.loads((exported / "stablehlo" / "programs.json").read_text())
    assert manifest["arguments"] == ["platform_index", "parameters", "inputs"]
    context = ir.Context()
    dialect.register_dialect(context)
    names = {"int32": "i32", "float32": "f32"}
    assert len(manifest["programs"]) == 16
    for program in manifest["programs"].values():
        content = (exported / "stablehlo" / program["stablehlo"]["file"]).read_bytes()
        module = dialect.deserialize_portable_artifact(context, content)
        with context:
            (main,) = (f for f in module.body if ir.StringAttr(f.attributes["sym_name"]).value == "main")
            taken = [str(argument.type) for argument in main.regions[0].blocks[0].arguments]
        said = [
            "x".join([*("?" if isinstance(size, str) else str(size) for size in each["shape"]), names[each["dtype"]]])
            for each in [*manifest["parameters"], *program["inputs"]]
        ]
        assert taken == ["tensor<i32>", *(f"tensor<{each}>" for each in said)]
        assert len(content) < 60_000, "parameters are no constants"


@pytest.mark.slow
def test_the_bytecode_of_one_platform_runs_in_stablehlos_reference_interpreter(small, tmp_path):
    """Without jax.export and XLA's backends: shapes are given, XLA's refinement makes all others of them."""
    from jax._src.lib import _jax
    from jaxlib.mlir import ir, passmanager
    from jaxlib.mlir.dialects import stablehlo as dialect

    exported = stablehlo.export(small, tmp_path / "cpu", platforms=["cpu"], heads=["mnli"])
    manifest = json.loads((exported / "stablehlo" / "programs.json").read_text())
    assert manifest["arguments"] == ["parameters", "inputs"]
    program = stablehlo.load(exported)["head_logits.mnli"]
    leaves, tokens = flatten(program.params), ragged_tokens(3, 7)
    arguments = [*(np.asarray(leaves[each["name"]]) for each in manifest["parameters"]), tokens]
    types = [
        f"tensor<{'x'.join(map(str, array.shape))}x{'i32' if array.dtype == np.int32 else 'f32'}>"
        for array in arguments
    ]
    dialect.register_stablehlo_passes()
    context = ir.Context()
    dialect.register_dialect(context)
    module = dialect.deserialize_portable_artifact(
        context, (exported / "stablehlo" / "head_logits.mnli.mlirbc").read_bytes()
    )
    with context:
        # erf is a composite, whose decomposition the program has with it
        refine = (
            "builtin.module(func.func(stablehlo-legalize-composite-to-call),"
            f"stablehlo-refine-arguments{{types={','.join(types)}}})"
        )
        passmanager.PassManager.parse(refine).run(module.operation)
        bytecode = io.BytesIO()
        module.operation.write_bytecode(bytecode)
        refined = ir.Module.parse(
            _jax.mlir.refine_polymorphic_shapes(
                bytecode.getvalue(), enable_shape_assertions=True, validate_static_shapes=True
            )
        )
        assert "custom_call" not in str(refined)
        (found,) = dialect.eval_module(refined, [ir.DenseElementsAttr.get(np.ascontiguousarray(a)) for a in arguments])
        found = np.array(found)
    np.testing.assert_allclose(found, expected(program, tokens), atol=FLOAT32)


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["tpu", "cuda", "rocm"])
def test_an_export_for_another_platform_needs_none_and_is_not_run_here(small, platform, tmp_path):
    exported = stablehlo.export(small, tmp_path / platform, platforms=[platform], heads=[])
    assert json.loads((exported / "stablehlo" / "programs.json").read_text())["platforms"] == [platform]
    with pytest.raises(InputError, match=f"was exported for {platform}, and JAX computes on cpu here"):
        stablehlo.load(exported)


@pytest.mark.slow
def test_a_model_of_more_layers_and_without_lm_head_has_no_program_of_it(tiny_directory, tmp_path):
    config = dataclasses.replace(SMALL, num_layers=2, lm_head=False, normalize_before=True, heads=())
    model = saved(config, tiny_directory, tmp_path / "model")
    programs = stablehlo.load(stablehlo.export(model, tmp_path / "exported"))
    assert programs.keys() == {"features", "pooled_features.first", "pooled_features.mean", "hidden_states"}
    tokens = ragged_tokens(2, 9)
    np.testing.assert_allclose(programs["features"](tokens), expected(programs["features"], tokens), atol=FLOAT32)


@pytest.mark.slow
def test_neither_x64_nor_who_calls_changes_what_is_written(small, small_exported, tmp_path):
    with jax.enable_x64(True):
        again = stablehlo.export(small, tmp_path / "x64")
    for file in (small_exported / "stablehlo").iterdir():
        assert (again / "stablehlo" / file.name).read_bytes() == file.read_bytes(), file.name
        assert b".py" not in file.read_bytes(), "paths of the machine that it was made on"


def test_a_program_gives_the_same_under_x64(exported, programs):
    tokens = ragged_tokens(2, 9)
    with jax.enable_x64(True):
        found = stablehlo.load(exported)["features"](tokens.astype(np.int64))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected(programs["features"], tokens), atol=FLOAT32)


@pytest.mark.slow
def test_a_fresh_process_loads_and_runs_it_without_torch_convert_or_tracing_the_network(exported, programs):
    program = f"""
import sys
sys.modules["torch"] = None
import numpy as np
from roberta_flax.checkpoint import stablehlo
from roberta_flax.nn import model
def never(*_, **__): raise AssertionError("traced")
model.RobertaModel.features = model.RobertaModel.hidden_states = never
programs = stablehlo.load({str(exported)!r})
print(np.asarray(programs["head_log_probs.mnli"]([0, 5, 6, 2]))[0].tolist())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    wanted = programs["head_log_probs.mnli"]([0, 5, 6, 2])[0]
    np.testing.assert_allclose(json.loads(done.stdout), wanted, atol=FLOAT32)


# what is refused


@pytest.mark.parametrize(
    ("name", "inputs", "message"),
    [
        ("features", ([5] * 513,), "513 tokens exceed the model's maximum length of 512"),
        ("features", ([0, 581, 2],), "token id 581 is outside the vocabulary"),
        ("features", ([0, -1, 2],), "outside the vocabulary"),
        ("features", ([0.5, 2.0],), "integers"),
        ("features", ([],), "no token ids"),
        ("features", ([[[5]]],), "got shape (1, 1, 1)"),
        ("features", ([5, 6], [[0]]), "features takes no positions, but they were given"),
        ("lm_logits.positions", ([5, 6],), "lm_logits.positions takes positions, but none were given"),
        ("lm_logits.positions", ([5, 6], [0]), "[batch, masked] with a batch of 1; got int64 of shape (1,)"),
        ("lm_logits.positions", ([5, 6], [[0], [1]]), "with a batch of 1"),
        ("lm_logits.positions", ([5, 6], [[0], [1, 2]]), "positions must be integers"),
        ("lm_logits.positions", ([5, 6], [[0, 2]]), "from 0 to 1; got 0 to 2"),
        ("lm_logits.positions", ([5, 6], [[-1]]), "from 0 to 1; got -1 to -1"),
    ],
)
def test_inputs_that_the_model_cannot_take_are_one_line(programs, name, inputs, message):
    with pytest.raises(InputError) as caught:
        programs[name](*inputs)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def _damage(name):
    def damage(directory):
        content = bytearray((directory / name).read_bytes())
        content[len(content) // 2] ^= 1
        (directory / name).write_bytes(content)

    return damage


def _remove(name):
    return lambda directory: (directory / name).unlink()


def _change(**fields):
    def change(directory):
        path = directory / "stablehlo" / "programs.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def _another_config(directory):
    config = json.loads((directory / "config.json").read_text())
    config["heads"][0]["name"] = "other"
    (directory / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_damage("stablehlo/features.jax"), "features.jax is damaged"),
        (lambda d: (d / "stablehlo/features.jax").write_bytes(b""), "features.jax is damaged"),
        (_remove("stablehlo/features.jax"), "features.jax: No such file"),
        (_remove("stablehlo/programs.json"), "create it with `roberta-flax export --to stablehlo`"),
        (lambda d: (d / "stablehlo/programs.json").write_text("{"), "programs.json is damaged"),
        (lambda d: (d / "stablehlo/programs.json").write_bytes(b"\xff"), "programs.json is damaged"),
        (_change(programs=None), "programs.json is damaged"),
        (_change(programs={"features": {}}), "programs.json is damaged"),
        (_change(param_dtype="int4"), "programs.json is damaged"),
        (_change(quantize="int4"), "programs.json is damaged"),
        (_change(quantize=["int8"]), "programs.json is damaged"),
        (_change(param_dtype=[]), "programs.json is damaged"),
        (_change(programs={"../../features": {"jax_export": {"sha256": "0"}}}), "does not belong to the model"),
        (_change(quantize="int8"), "does not belong to the model"),
        (_another_config, "model.safetensors does not contain the parameters"),
        (_remove("model.safetensors"), "lacks model.safetensors"),
        (lambda d: os.truncate(d / "model.safetensors", 10_000), "model.safetensors is damaged or cut short"),
    ],
)
def test_what_is_damaged_or_missing_is_refused_in_one_line(exported, harm, message, tmp_path):
    copy = shutil.copytree(exported, tmp_path / "copy")
    harm(copy)
    with pytest.raises(CheckpointError) as caught:
        stablehlo.load(copy)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_program_of_a_version_that_jax_does_not_read_is_refused_in_one_line(exported, monkeypatch):
    def refuse(_):
        raise ValueError("calling convention version 1 is not supported")

    monkeypatch.setattr(stablehlo.jax_export, "deserialize", refuse)
    with pytest.raises(CheckpointError, match=r"does not read .*features.jax: calling convention"):
        stablehlo.load(exported)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"platforms": ["tpu", "abacus"]}, "platforms must be among cpu, cuda, tpu, rocm; got tpu, abacus"),
        ({"platforms": []}, "got none"),
        ({"dtype": "float64"}, "programs compute in float32, bfloat16, float16; got float64"),
        ({"dtype": "int8"}, "got int8"),
        ({"dtype": "real"}, "not a dtype or precision that JAX knows"),
        ({"precision": "great"}, "not a dtype or precision that JAX knows"),
        ({"quantize": "int4"}, "quantize must be one of int8"),
        ({"heads": ["sst"]}, "no head called 'sst'"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_anything_is_written(model, arguments, message, tmp_path):
    with pytest.raises(InputError) as caught:
        stablehlo.export(model, tmp_path / "out", **arguments)
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_an_existing_destination_and_a_source_that_is_none_are_refused(model, exported, tmp_path):
    before = sorted(file.name for file in exported.rglob("*"))
    with pytest.raises(CheckpointError, match="exists already"):
        stablehlo.export(model, exported)
    assert sorted(file.name for file in exported.rglob("*")) == before
    with pytest.raises(CheckpointError, match="is not a converted model: it lacks"):
        stablehlo.export(tmp_path, tmp_path / "out")


def test_an_export_is_a_converted_model_too(small_exported, tmp_path):
    assert roberta_flax.load(small_exported).config == SMALL
    again = stablehlo.export(small_exported, tmp_path / "again", heads=[])
    assert not list(again.glob("stablehlo/head_*"))


@pytest.mark.slow
@pytest.mark.parametrize("after", ["model.safetensors", "stablehlo/features.jax", "stablehlo/head_logits.span.jax"])
def test_an_export_that_is_killed_leaves_nothing_that_loads(forked, small, after, tmp_path):
    destination = tmp_path / "out"
    worker = forked.Process(target=processes.export_stablehlo, args=(small, destination))
    worker.start()
    try:
        while worker.is_alive() and not (left := glob.glob(f"{tmp_path}/.out-*.partial/{after}")):
            time.sleep(0.001)
    finally:
        worker.kill()
        worker.join()
    assert left
    assert not destination.exists()
    (partial,) = tmp_path.iterdir()
    with pytest.raises(CheckpointError):
        stablehlo.load(partial)
    with pytest.raises(CheckpointError):
        roberta_flax.load(partial)
