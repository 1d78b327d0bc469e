"""roberta_flax.forward: what is not computed, what is cast beforehand and how attention is computed change no result."""

import dataclasses
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax import nnx
from jax._src.cudnn import fused_attention_stablehlo
from jax.experimental import pallas

import roberta_flax
from roberta_flax import InputError, RobertaConfig
from roberta_flax.nn import attention, forward
from roberta_flax.nn.attention import attend
from roberta_flax.nn.config import HeadConfig
from roberta_flax.nn.model import RobertaModel, dropout, tokens_at
from roberta_flax.nn.numerics import Numerics
from roberta_flax.nn.quantize import quantize
from tests.params import random_params

CONFIG = RobertaConfig(
    vocab_size=131,
    num_layers=2,
    hidden_size=36,
    num_heads=3,
    intermediate_size=50,
    max_positions=77,
    heads=(HeadConfig("mnli", 3, 36), HeadConfig("tags", 5, 0, kind="token")),
)
CONFIGS = {"post-norm": CONFIG, "pre-norm": dataclasses.replace(CONFIG, normalize_before=True)}


def padded_tokens(lengths=(1, 9, 40), time=40) -> np.ndarray:
    random = np.random.default_rng(1)
    tokens = np.ones((len(lengths), time), np.int32)
    for row, length in zip(tokens, lengths, strict=True):
        row[:length] = random.integers(2, 131, length)
    return tokens


# the last layer, of the wanted tokens only


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_a_head_on_the_first_token_has_the_same_logits_and_gradients_as_on_all_features(name, x64):
    """1e-12: float64 sums of at most 50 terms of order one, in another order, through two layers."""
    config = CONFIGS[name]
    params, tokens = random_params(config, np.float64), padded_tokens()
    options = {"config": config, "numerics": Numerics("float64")}

    def of_all_features(params):
        x = forward.features(params, tokens, **options)[:, 0]
        head = params["heads"]["mnli"]
        inner = jnp.tanh(x @ head["dense"]["kernel"] + head["dense"]["bias"][None])
        return inner @ head["output"]["kernel"] + head["output"]["bias"][None]

    def of_the_first(params):
        return forward.head_logits(params, tokens, head="mnli", **options)

    np.testing.assert_allclose(of_the_first(params), jax.jit(of_all_features)(params), rtol=0, atol=1e-12)
    weights = np.random.default_rng(2).standard_normal((3, 3))
    of_both = (of_the_first, of_all_features)
    gradients = [jax.jit(jax.grad(lambda p, f=f: (f(p) * weights).sum()))(params) for f in of_both]
    for a, b in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * max(1.0, float(np.abs(b).max())))


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_lm_logits_at_positions_are_those_of_all_tokens_there(name, x64):
    config = CONFIGS[name]
    params, tokens = random_params(config, np.float64), padded_tokens()
    positions = np.array([[0, 0], [8, 3], [39, 20]])
    options = {"config": config, "numerics": Numerics("float64")}
    everywhere = np.asarray(forward.lm_logits(params, tokens, **options))
    expected = np.take_along_axis(everywhere, positions[:, :, None], axis=1)
    np.testing.assert_allclose(
        forward.lm_logits(params, tokens, positions, **options), expected, rtol=0, atol=1e-11
    )  # of 131 logits of order ten


@pytest.mark.slow
def test_vectors_of_first_tokens_are_the_features_there(x64):
    params, tokens = random_params(CONFIG, np.float64), padded_tokens()
    options = {"config": CONFIG, "numerics": Numerics("float64")}
    features = forward.features(params, tokens, **options)
    pooled = forward.pooled_features(params, tokens, pooling="first", **options)
    np.testing.assert_allclose(pooled, features[:, 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("selected", [False, True])
def test_nothing_is_computed_that_is_not_needed(selected):
    """The compiled program's floating-point operations, beside a count by hand of products."""
    config = RobertaConfig(
        vocab_size=1000, num_layers=3, hidden_size=256, num_heads=4, intermediate_size=1024,
        heads=(HeadConfig("mnli", 3, 256), HeadConfig("tags", 3, 0, kind="token")),
    )  # fmt: skip
    batch, time, hidden, inner = 4, 128, 256, 1024
    tokens = jax.ShapeDtypeStruct((batch, time), jnp.int32)
    head = "mnli" if selected else "tags"
    lowered = forward.head_logits.lower(
        forward.abstract_params(config), tokens, head=head, config=config, numerics=Numerics(attention="xla")
    )
    flops = lowered.compile().cost_analysis()["flops"]
    all_tokens, last = batch * time, batch if selected else batch * time
    count = 0
    for queries in (all_tokens, all_tokens, last):
        products = 2 * all_tokens * hidden * hidden + 2 * queries * hidden * hidden + 2 * queries * hidden * inner
        count += 2 * (products + 2 * queries * time * hidden)
    # what stands between the products, softmax, gelu and LayerNorm, is a few operations a number, here under 5 %
    assert count <= flops <= 1.05 * count


def test_the_tokens_of_a_slice_are_those_at_its_positions():
    x = jnp.arange(3 * 7 * 2.0).reshape(3, 7, 2)
    positions = np.tile(np.arange(2, 5), (3, 1))
    np.testing.assert_array_equal(tokens_at(x, slice(2, 5)), tokens_at(x, positions))
    np.testing.assert_array_equal(tokens_at(x, positions[:, ::-1]), x[:, 4:1:-1])


# the module


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("quantized", [False, True])
def test_the_network_without_numbers_is_the_one_that_is_initialized(name, quantized):
    """Its layers are clones of one layer: their structure, their parameters and what they share, which is nothing."""
    config, numerics = CONFIGS[name], Numerics("bfloat16", quantized=quantized)
    graph, params = forward._abstract(config, numerics)
    initialized, state = nnx.split(nnx.eval_shape(lambda: RobertaModel(config, numerics, nnx.Rngs(0))))
    assert graph == initialized
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (params, nnx.to_pure_dict(state)))
    assert shapes[0] == shapes[1]


def test_logits_of_a_network_without_lm_head_are_refused_in_one_line():
    config = dataclasses.replace(CONFIG, lm_head=False)
    network = forward.network(random_params(config), config, Numerics())
    with pytest.raises(InputError, match="this model has no masked-LM head"):
        network.lm_logits(np.zeros((1, CONFIG.hidden_size), np.float32))


# attention


def by_hand(query, key, value, mask):
    """Softmax attention in float64, row by row and head by head; even where there is no key to see."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    context = np.zeros_like(query)
    for row, head in np.ndindex(query.shape[0], query.shape[2]):
        for q in range(query.shape[1]):
            seen = mask[row, 0 if mask.shape[1] == 1 else q]
            if not seen.any():
                context[row, q, head] = value[row, :, head].mean(axis=0)
                continue
            scores = key[row, seen, head] @ query[row, q, head]
            weights = np.exp(scores - scores.max())
            context[row, q, head] = weights @ value[row, seen, head] / weights.sum()
    return context


@pytest.mark.parametrize("implementation", [None, "xla", "chunked"])
@pytest.mark.parametrize("masked_by", ["padding", "segments"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_every_attention_is_that_by_hand(implementation, masked_by, dtype, x64, monkeypatch):
    """A row that is all padding included. Chunks of one head and of two: sizes are lowered so that there are any."""
    monkeypatch.setattr("roberta_flax.nn.attention._WHOLE_BYTES", 0)
    monkeypatch.setattr("roberta_flax.nn.attention._CHUNK_BYTES", 2 * 40 * 40 * 4)
    random = np.random.default_rng(0)
    query, key, value = (jnp.asarray(random.standard_normal((3, 40, 6, 8)), dtype) for _ in range(3))
    if masked_by == "padding":
        mask = (np.arange(40) < np.array([40, 7, 0])[:, None])[:, None]
    else:
        segments = np.sort(random.integers(0, 4, (3, 40)), axis=1)
        mask = segments[:, :, None] == segments[:, None, :]
    context = jax.jit(partial(attend, implementation=implementation))(query, key, value, jnp.asarray(mask))
    assert context.dtype == ("float64" if dtype == "float64" else "float32")
    # one rounding of each weight to the operands' dtype, and sums of 40 weighted values of order one
    tolerance = 4 * float(jnp.finfo(dtype).eps) * 4
    np.testing.assert_allclose(np.asarray(context), by_hand(query, key, value, mask), rtol=0, atol=tolerance)


@pytest.mark.parametrize("masked_by", ["padding", "segments"])
@pytest.mark.parametrize("queries", [1, 13, 40])
def test_chunks_of_queries_have_the_results_and_gradients_of_attention_at_once(masked_by, queries, x64, monkeypatch):
    """Where the scores of one head are too many. Sums may be in another order."""
    monkeypatch.setattr("roberta_flax.nn.attention._WHOLE_BYTES", 0)
    monkeypatch.setattr("roberta_flax.nn.attention._CHUNK_BYTES", queries * 40 * 8)
    *operands, mask = attention_operands("float64")
    if masked_by == "segments":
        segments = np.sort(np.random.default_rng(0).integers(0, 4, (3, 40)), axis=1)
        mask = jnp.asarray(segments[:, :, None] == segments[:, None, :])

    def result_and_gradients(implementation):
        def total(*operands):
            context = attend(*operands, mask, implementation=implementation)
            return (context**2).sum(), context

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(*operands)

    chunked, whole = result_and_gradients("chunked"), result_and_gradients("xla")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), chunked, whole)


def test_memory_of_long_rows_on_a_cpu_is_linear_in_their_length():
    """Of a layer's attention and its gradient, by the compiler: 16,384 tokens take twice as much as 8,192."""

    def temporaries(tokens: int) -> int:
        x = jax.ShapeDtypeStruct((1, tokens, 4, 16), jnp.float32)
        mask = jax.ShapeDtypeStruct((1, 1, tokens), jnp.bool_)
        gradient = jax.grad(lambda *args: attend(*args).sum(), argnums=(0, 1, 2))
        return jax.jit(gradient).lower(x, x, x, mask).compile().memory_analysis().temp_size_in_bytes

    shorter, longer = temporaries(8192), temporaries(16384)
    assert longer < 2.2 * shorter
    assert longer < 16384**2 * 4 / 8  # an eighth of one head's scores


@pytest.mark.slow
@pytest.mark.parametrize("masked_by", ["padding", "segments"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_for_long_rows_on_tpus_is_that_by_hand(masked_by, dtype, monkeypatch):
    """The kernel, interpreted. Rows of 200 tokens, which are no multiple of a block, and one that is all padding."""
    monkeypatch.setattr("roberta_flax.nn.attention._FLASH_BLOCK", 128)
    monkeypatch.setattr(pallas, "pallas_call", partial(pallas.pallas_call, interpret=True))
    random = np.random.default_rng(0)
    query, key, value = (jnp.asarray(random.standard_normal((3, 200, 2, 16)), dtype) for _ in range(3))
    mask = (np.arange(200) < np.array([200, 7, 0])[:, None])[:, None]
    if masked_by == "segments":
        segments = np.sort(random.integers(0, 4, (3, 200)), axis=1)
        mask = segments[:, :, None] == segments[:, None, :]

    def gradients(implementation):
        def total(*operands):
            return (attend(*operands, jnp.asarray(mask), implementation=implementation) ** 2).sum()

        return jax.jit(jax.grad(total, argnums=(0, 1, 2)))(query, key, value)

    context = jax.jit(partial(attend, implementation="flash"))(query, key, value, jnp.asarray(mask))
    found = gradients("flash")
    assert context.dtype == jnp.float32
    # scores of up to 16 are rounded, which makes weights of up to 16 units in the last place too much, of values of order four
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(context, by_hand(query, key, value, mask), rtol=0, atol=64 * eps)
    for ours, expected in zip(found, gradients("xla"), strict=True):
        scale = float(jnp.abs(expected.astype(jnp.float32)).max())
        np.testing.assert_allclose(
            *(np.asarray(x, np.float32) for x in (ours, expected)), rtol=0, atol=64 * eps * scale
        )


def test_attention_is_the_kernels_for_long_rows_on_tpus_alone(monkeypatch):
    def operations(tokens: int, queries: int | None = None, **options) -> str:
        query, key = (jax.ShapeDtypeStruct((1, n, 2, 64), jnp.bfloat16) for n in (queries or tokens, tokens))
        mask = jax.ShapeDtypeStruct((1, 1, tokens), jnp.bool_)
        return str(jax.make_jaxpr(partial(attend, **options))(query, key, key, mask))

    assert "pallas_call" not in operations(2048)  # this machine has no TPU
    monkeypatch.setattr(attention, "_is_for_tpu", lambda: True)
    assert "pallas_call" in operations(2048)
    assert "pallas_call" not in operations(2047)
    assert "pallas_call" not in operations(2048, queries=1)
    assert "pallas_call" not in operations(2048, implementation="xla")
    assert "pallas_call" not in operations(2048, precision=jax.lax.Precision.HIGHEST)
    assert "pallas_call" not in operations(2048, dropout=lambda weights: weights)


def test_long_scores_are_computed_in_chunks_on_a_cpu_and_short_ones_at_once():
    def loops(batch: int, time: int, implementation: str | None) -> int:
        x = jax.ShapeDtypeStruct((batch, time, 12, 64), jnp.float32)
        mask = jax.ShapeDtypeStruct((batch, 1, time), jnp.bool_)
        lowered = jax.jit(lambda *args: attend(*args, implementation=implementation)).lower(x, x, x, mask)
        return lowered.as_text().count("stablehlo.while")

    assert loops(4, 512, None) == 1
    assert loops(4, 512, "xla") == 0
    assert loops(8, 128, None) == 0


@pytest.fixture
def with_cudnn(monkeypatch):
    """As on a machine with an Ampere GPU, as far as tracing and lowering go."""
    monkeypatch.setattr(attention, "cudnn_is_available", lambda: True)
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)


def lowered_attention(platform: str, dtype: str, queries: int = 128, rows: int = 1, batch: int = 8, **options) -> str:
    query, key = (jax.ShapeDtypeStruct((batch, n, 12, 64), dtype) for n in (queries, 128))
    mask = jax.ShapeDtypeStruct((batch, rows, 128), jnp.bool_)
    traced = jax.jit(partial(attend, **options)).trace(query, key, key, mask)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_on_nvidia_gpus_attention_in_16_bits_is_cudnns(with_cudnn, dtype):
    """With the lengths of padded rows, and without them where several sequences share a row."""
    padded, packed = (lowered_attention("cuda", dtype, rows=rows) for rows in (1, 128))
    assert "__cudnn$fmha" in padded
    assert "PADDING" in padded
    assert "__cudnn$fmha" in packed
    assert "PADDING" not in packed


def test_cudnns_attention_takes_no_part_elsewhere(with_cudnn):
    """On other platforms, in float32, for some queries of a row, and if told so, and with dropout."""
    assert "cudnn" not in lowered_attention("cpu", "bfloat16")
    assert "cudnn" not in lowered_attention("tpu", "bfloat16")
    assert "cudnn" not in lowered_attention("cuda", "float32")
    assert "cudnn" not in lowered_attention("cuda", "bfloat16", queries=1)
    assert "cudnn" not in lowered_attention("cuda", "bfloat16", implementation="xla")
    assert "cudnn" not in lowered_attention("cuda", "bfloat16", dropout=lambda weights: weights)


def test_attention_on_nvidia_gpus_is_xlas_without_cudnn(monkeypatch, recwarn):
    monkeypatch.setattr(attention, "cudnn_is_available", attention.cudnn_is_available.__wrapped__)
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", _no_cudnn)
    assert "cudnn" not in lowered_attention("cuda", "bfloat16")
    assert not recwarn.list


def _no_cudnn() -> int:
    raise RuntimeError("cuDNN is not detected.")


@pytest.mark.parametrize(("capability", "expected"), [("7.5", False), ("8.0", True), ("8.6", True), ("12.0", True)])
def test_cudnns_attention_is_available_from_ampere_on(monkeypatch, capability, expected):
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(jax, "devices", lambda backend: [SimpleNamespace(compute_capability=capability)])
    assert attention.cudnn_is_available.__wrapped__() is expected


def attention_operands(dtype):
    """Queries, keys and values of a whole row, of one with padding and of one that is all padding; and the mask."""
    random = np.random.default_rng(0)
    operands = (jnp.asarray(random.standard_normal((3, 40, 4, 16)), dtype) for _ in range(3))
    return *operands, jnp.asarray(np.arange(40) < np.array([[40], [7], [0]]))[:, None]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_divided_after_the_product_give_the_mean_within_what_rounding_them_makes(dtype):
    """As TPUs compute attention in 16 bits. Each weight is off by half a unit in its last place at most."""
    query, key, value, mask = attention_operands(dtype)
    q, k, v = (np.asarray(x, np.float64) for x in (query, key, value))
    scores = np.where(np.asarray(mask)[:, None], np.einsum("bqhd,bkhd->bhqk", q, k), -1e30)
    weights = scipy.special.softmax(scores, axis=-1)
    bound = float(jnp.finfo(dtype).eps) / 2 * np.einsum("bhqk,bkhd->bqhd", weights, np.abs(v))
    result = attention._divided_last(query, key, value, mask, precision=None)
    assert result.dtype == jnp.float32
    errors = np.abs(np.asarray(result, np.float64) - np.einsum("bhqk,bkhd->bqhd", weights, v))
    assert (errors <= 1.01 * bound + 1e-6).all()  # and what float32 adds


def test_attention_on_tpus_has_the_gradients_of_attention_elsewhere():
    *operands, mask = attention_operands("bfloat16")

    def gradients(function):
        return jax.grad(lambda *x: (function(*x, mask, precision=None) ** 2).sum(), argnums=(0, 1, 2))(*operands)

    on_tpus, elsewhere = gradients(attention._divided_last), gradients(partial(attention._whole, dropout=None))
    jax.tree.map(np.testing.assert_array_equal, on_tpus, elsewhere)


def drop_a_third(x):
    return dropout(x, 0.3, jax.random.key(2))


def attention_with_dropout(query, key, value, mask):
    return attend(query, key, value, mask, dropout=drop_a_third)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_attention_with_dropout_in_16_bits_is_the_mean_of_the_values_by_the_weights_that_are_left(dtype):
    """A weight is rounded before it is dropped and as an operand, the result once: half a unit in the last place each."""
    query, key, value, mask = attention_operands(dtype)
    q, k, v = (np.asarray(x, np.float64) for x in (query, key, value))
    scores = np.where(np.asarray(mask)[:, None], np.einsum("bqhd,bkhd->bhqk", q, k), -1e30)
    left = scipy.special.softmax(scores, axis=-1) * np.asarray(drop_a_third(jnp.ones(scores.shape)), np.float64)
    expected, size = (np.einsum("bhqk,bkhd->bqhd", left, values) for values in (v, np.abs(v)))
    result = attention_with_dropout(query, key, value, mask)
    assert result.dtype == jnp.float32
    unit = float(jnp.finfo(dtype).eps) / 2
    errors = np.abs(np.asarray(result, np.float64) - expected)
    assert (errors <= 1.01 * unit * (2 * size + np.abs(expected)) + 1e-6).all()  # and what float32 adds


def test_attention_with_dropout_in_16_bits_has_the_derivatives_of_the_weights_that_are_left():
    """Backward and forward, beside those in float64, which are another program's; five roundings one after the other."""
    *operands, mask = attention_operands("bfloat16")
    tangents = [jnp.cos(jnp.arange(x.size)).reshape(x.shape) for x in operands]

    @partial(jax.jit, static_argnums=0)
    def derivatives(dtype):
        of = [x.astype(dtype) for x in operands]
        along = [x.astype(dtype) for x in tangents]
        result, backward = jax.vjp(lambda *x: attention_with_dropout(*x, mask), *of)
        forward = jax.jvp(lambda *x: attention_with_dropout(*x, mask), of, along)[1]
        return *backward(along[0].astype(result.dtype)), forward

    rounded = derivatives("bfloat16")
    with jax.enable_x64(True):
        exact = derivatives("float64")
    for found, expected in zip(rounded, exact, strict=True):
        distance = np.linalg.norm(np.float64(found) - np.float64(expected)) / np.linalg.norm(expected)
        assert distance < 5 * float(jnp.finfo("bfloat16").eps) / 2


def test_attention_divides_after_the_product_on_tpus_for_large_scores_in_16_bits_alone():
    assert "optimization_barrier" in lowered_attention("tpu", "bfloat16", batch=64)
    assert "optimization_barrier" not in lowered_attention("tpu", "bfloat16", batch=16)
    assert "optimization_barrier" not in lowered_attention("tpu", "float32", batch=64)
    assert "optimization_barrier" not in lowered_attention("cpu", "bfloat16", batch=64)


def test_attention_that_cannot_be_is_refused_in_one_line(tiny, tiny_directory):
    tokens = tiny.encode("a word")[None]
    with pytest.raises(InputError, match="attention must be one of xla, chunked, cudnn, flash, got 'sdpa'"):
        roberta_flax.load(tiny_directory, attention="sdpa")
    with pytest.raises(InputError, match="attention must be one of"):
        forward.features(tiny.params, tokens, config=tiny.config, numerics=Numerics(attention="sdpa"))
    with pytest.raises(InputError, match="'cudnn' computes in bfloat16 or float16, not in float32"):
        roberta_flax.load(tiny_directory, attention="cudnn")
    with pytest.raises(InputError, match="'flash' computes in 32 or 16 bits, not in float64"), jax.enable_x64(True):
        Numerics("float64", attention="flash")
    if jax.default_backend() != "tpu":
        with pytest.raises(InputError, match="'flash' needs a TPU"):
            roberta_flax.load(tiny_directory, attention="flash")
    if jax.default_backend() != "gpu":
        with pytest.raises(InputError, match="'cudnn' needs an NVIDIA GPU"):
            roberta_flax.load(tiny_directory, attention="cudnn", dtype="bfloat16")


# casts


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_operands_that_are_cast_beforehand_give_the_same_bits(one_layer, dtype):
    tiny = roberta_flax.load(one_layer)
    tokens = tiny.encode("A man is sleeping.", "Nobody is awake.")[None]
    cast = forward.operands(tiny.params, dtype)
    assert cast["layers"]["0"]["attention"]["query"]["kernel"].dtype == dtype
    assert cast["embeddings"]["token"]["embedding"].dtype == jnp.float32

    @jax.jit
    def results(params):
        options = {"config": tiny.config, "numerics": Numerics(dtype)}
        head_logits = forward.head_logits(params, tokens, head="mnli", **options)
        return forward.features(params, tokens, **options), forward.lm_logits(params, tokens, **options), head_logits

    jax.tree.map(np.testing.assert_array_equal, results(tiny.params), results(cast))


# JAX's strictness


@pytest.mark.slow
@pytest.mark.parametrize(
    "numerics", [Numerics(), Numerics("bfloat16"), Numerics("float16")], ids=lambda n: str(n.dtype)
)
@pytest.mark.parametrize("stored", ["float32", "int8"])
def test_nothing_is_broadcast_or_promoted_implicitly(numerics, stored):
    """By jax_numpy_rank_promotion and jax_numpy_dtype_promotion, which research code sets: JAX raises if something is."""
    config, tokens = dataclasses.replace(CONFIGS["pre-norm"], num_layers=1), padded_tokens()
    params, key = random_params(config), jax.random.key(0)
    params = quantize(params) if stored == "int8" else params
    options = {"config": config, "numerics": numerics}

    def every_result(params):
        return (
            forward.hidden_states(params, tokens, key=key, **options),
            forward.lm_logits(params, tokens, np.array([[0], [3], [5]]), **options),
            [forward.pooled_features(params, tokens, pooling=each, **options) for each in ("mean", "first")],
            [forward.head_log_probs(params, tokens, head=head.name, **options) for head in config.heads],
        )

    def loss(params):
        return sum(leaf.astype(jnp.float32).sum() for leaf in jax.tree.leaves(every_result(params)))

    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        jax.eval_shape(every_result, params)
        if stored == "float32":
            jax.eval_shape(jax.grad(loss), params)
