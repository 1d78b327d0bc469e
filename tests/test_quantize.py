"""roberta_flax.quantize: int8 products are what they are said to be, and near the float ones."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import roberta_flax
from roberta_flax import Classify, InputError, Numerics, Predictor, RobertaConfig
from roberta_flax.nn import forward
from roberta_flax.nn.model import Linear
from roberta_flax.nn.quantize import QuantizedLinear, is_quantized, quantize
from tests.params import random_params

LINEAR = ("attention", "query"), ("attention", "output"), ("feed_forward", "intermediate"), ("feed_forward", "output")


def cosine(a, b):
    a, b = (np.asarray(x, np.float64).reshape(-1, x.shape[-1]) for x in (a, b))
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def test_a_product_by_hand():
    """Weights [[1, 0], [-0.5, 2]]: steps of 1/127 and 2/127; activations [3, -1.5]: steps of 3/127."""
    linear = QuantizedLinear(2, 2, jnp.dtype("float32"), jnp.dtype("float32"))
    linear.kernel[...] = jnp.array([[127, 0], [-64, 127]], jnp.int8)  # -63.5 to the even neighbor
    linear.kernel_scale[...] = jnp.array([1 / 127, 2 / 127])
    linear.bias[...] = jnp.array([0.25, 0.0])
    rounded = np.array([127, -64])  # -63.5 to the even neighbor
    expected = np.array([rounded @ [127, -64] * 3 / 127 / 127 + 0.25, rounded @ [0, 127] * 3 / 127 * 2 / 127])
    np.testing.assert_allclose(linear(jnp.array([[3.0, -1.5]]))[0], expected, rtol=1e-6)
    np.testing.assert_array_equal(linear(jnp.zeros((1, 2)))[0], [0.25, 0.0])


def test_weights_are_within_half_a_step_of_what_they_were_and_nothing_else_changes(tiny):
    quantized = quantize(tiny.params)
    assert is_quantized(quantized)
    assert not is_quantized(tiny.params)
    for layer in tiny.params["layers"]:
        for block, name in LINEAR:
            before, after = tiny.params["layers"][layer][block][name], quantized["layers"][layer][block][name]
            assert after["kernel"].dtype == jnp.int8
            step = np.abs(np.asarray(before["kernel"])).max(axis=0) / 127
            np.testing.assert_allclose(after["kernel_scale"], step, rtol=1e-6)
            error = np.abs(np.asarray(after["kernel"]) * np.asarray(after["kernel_scale"]) - before["kernel"])
            assert (error <= step / 2 * (1 + 1e-5)).all()
            assert after["bias"] is before["bias"]
    for name in ("embeddings", "lm_head", "heads"):
        leaves = zip(jax.tree.leaves(quantized[name]), jax.tree.leaves(tiny.params[name]), strict=True)
        assert all(after is before for after, before in leaves)


def test_a_channel_of_zeros_and_the_smallest_numbers_are_quantised():
    kernel = jnp.array([[0.0, 1e-38, 1e-30], [0.0, 0.0, -1e-30]])
    linear = {"kernel": kernel, "bias": jnp.zeros(3)}
    layer = {
        "attention": dict.fromkeys(("query", "key", "value", "output"), linear),
        "feed_forward": dict.fromkeys(("intermediate", "output"), linear),
    }
    after = quantize({"layers": {0: layer}})["layers"]["0"]["attention"]["query"]
    back = np.asarray(after["kernel"]) * np.asarray(after["kernel_scale"])
    assert np.isfinite(back).all()
    np.testing.assert_allclose(back[:, [0, 2]], kernel[:, [0, 2]], atol=1e-32)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_features_and_answers_stay_near_the_float_ones(tiny_directory, sick_pairs, dtype):
    """A step is 1/127 of the largest; rounding is off by at most half of it. 0.999 is what is asked of real text."""
    exact = roberta_flax.load(tiny_directory)
    rough = roberta_flax.load(tiny_directory, quantize="int8", dtype=dtype)
    tokens = roberta_flax.collate_tokens([exact.encode(*pair) for pair in sick_pairs[:20]])
    rows = zip(exact.extract_features(tokens), rough.extract_features(tokens), strict=True)
    for row, pair_of_features in zip(tokens, rows, strict=True):
        features = [np.asarray(each)[row != exact.tokenizer.pad_id] for each in pair_of_features]
        assert cosine(*features).min() > 0.999
        assert not np.array_equal(*features)
    np.testing.assert_allclose(exact.predict("mnli", tokens), rough.predict("mnli", tokens), atol=0.05)
    assert rough.fill_mask("The capital of France is <mask>.", topk=3)


@pytest.mark.slow
def test_a_predictor_runs_quantised_parameters_and_says_so(tiny_directory, sick_pairs):
    roberta = roberta_flax.load(tiny_directory, quantize="int8")
    predictor = Predictor(roberta, Classify("mnli"))
    for found, pair in zip(predictor(sick_pairs[:10]), sick_pairs, strict=False):
        np.testing.assert_allclose(found, roberta.predict("mnli", roberta.encode(*pair))[0], atol=1e-5)
    assert predictor.describe()["quantized"]


def with_outlier(params, feature=3, ratio=300.0):
    """The network with one large feature after every LayerNorm, which its readers make small again."""

    def scaled(path, leaf):
        *block, name = (part.key for part in path)
        leaf = np.array(leaf)
        if block[-1].endswith("layer_norm") and name == "bias":
            leaf[feature] = ratio
        if block[-1] in ("query", "key", "value", "intermediate") and name == "kernel":
            leaf[feature] /= ratio
        return leaf

    return jax.tree_util.tree_map_with_path(scaled, params)


@pytest.mark.slow
def test_smoothing_keeps_int8_near_the_float_network_where_one_feature_is_300_times_the_others(tiny):
    """What is left of the distance is less than a fifth; on trained weights see `python -m benchmarks.int8`."""
    params, config = with_outlier(tiny.params), tiny.config
    tokens = roberta_flax.collate_tokens([tiny.encode("a dog runs over a field"), tiny.encode("cats")])

    def others(params, dtype="float32"):
        numerics = Numerics(dtype)
        return np.delete(forward.features(params, tokens, config=config, numerics=numerics), 3, axis=-1)

    expected = others(params)
    largest = forward.largest_inputs(params, tokens, config=config)
    plain, smoothed = quantize(params), quantize(params, largest_inputs=largest)
    distances = [np.abs(others(each) - expected).mean() for each in (plain, smoothed)]
    assert distances[1] < distances[0] / 5
    assert cosine(others(smoothed, "bfloat16"), expected).min() > 0.999
    # the kernels that the smoothed network stands for, by its own numbers, are those of the float network
    for layer, before in params["layers"].items():
        for block, name in LINEAR:
            after = smoothed["layers"][layer][block]
            factors = after["smoothing"] if name == "query" else after[name]["smoothing"]
            step = np.asarray(after[name]["kernel_scale"]) * np.asarray(factors)[:, None]
            back = np.asarray(after[name]["kernel"]) * step
            assert (np.abs(back - before[block][name]["kernel"]) <= step / 2 * (1 + 1e-4)).all()


@pytest.mark.slow
@pytest.mark.parametrize("normalize_before", [False, True], ids=["post-norm", "pre-norm"])
def test_the_largest_inputs_are_those_that_the_linear_maps_read(normalize_before, monkeypatch):
    config = RobertaConfig(
        vocab_size=20, num_layers=2, hidden_size=8, num_heads=2, intermediate_size=12, normalize_before=normalize_before
    )
    params = random_params(config, deviation=1.0)
    tokens = np.array([[0, 5, 6, 2], [0, 7, 2, config.pad_id]])
    read = []

    def recording(self, x, call=Linear.__call__):
        jax.debug.callback(read.append, x, ordered=True)
        return call(self, x)

    monkeypatch.setattr(Linear, "__call__", recording)
    features = jax.jit(partial(forward.features.__wrapped__, config=config, numerics=Numerics()))
    jax.block_until_ready(features(params, tokens))
    jax.effects_barrier()
    monkeypatch.undo()
    found = forward.largest_inputs(params, tokens, config=config)
    assert len(read) == 2 * 6
    places = ("attention",) * 3 + ("attention.output", "feed_forward.intermediate", "feed_forward.output")
    for number, x in enumerate(read):
        expected = np.abs(np.concatenate([x[0], x[1, :3]])).max(axis=0)
        layer, place = divmod(number, 6)
        np.testing.assert_allclose(found[f"layers.{layer}.{places[place]}"], expected, rtol=1e-5)


@pytest.mark.slow
def test_several_devices_share_quantised_layers(eight_devices, tiny_directory):
    program = f"""
import jax, numpy as np, roberta_flax
from roberta_flax import Classify, Predictor, forward
exact = roberta_flax.load({str(tiny_directory)!r})
texts = ["a word", "another word is here", "dog"] * 9
largest = forward.largest_inputs(exact.params, exact.encode(texts[1])[None], config=exact.config)
for largest_inputs in (None, largest):
    params = forward.quantize(exact.params, largest_inputs=largest_inputs)
    roberta = roberta_flax.Roberta(exact.config, params, exact.tokenizer)
    one = list(Predictor(roberta, Classify("mnli"), devices=jax.devices()[:1])(texts))
    for tensor_parallel in (1, 4):
        for a, b in zip(one, Predictor(roberta, Classify("mnli"), tensor_parallel=tensor_parallel)(texts), strict=True):
            assert np.abs(a - b).max() <= 1e-5
print("the same")
"""
    assert eight_devices(program) == "the same\n"


def test_what_cannot_be_is_refused_in_one_line(tiny, tiny_directory, tmp_path):
    with pytest.raises(InputError, match="quantize must be one of int8, got 'int4'"):
        roberta_flax.load(tiny_directory, quantize="int4")
    with pytest.raises(InputError, match="quantized already"):
        quantize(quantize(tiny.params))
    largest = forward.largest_inputs(tiny.params, np.array([[0, 5, 2]]), config=tiny.config)
    with pytest.raises(InputError, match=r"keys that forward\.largest_inputs gives; 'layers\.0\.attention' differs"):
        quantize(tiny.params, largest_inputs={name: x for name, x in largest.items() if name != "layers.0.attention"})
    with pytest.raises(InputError, match=r"of layers\.1\.attention\.output must be \[64\], got \[3\]"):
        quantize(tiny.params, largest_inputs=largest | {"layers.1.attention.output": np.ones(3)})
    with pytest.raises(InputError, match="quantized parameters cannot be saved"):
        roberta_flax.load(tiny_directory, quantize="int8").save(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    assert not is_quantized(tiny.params)
