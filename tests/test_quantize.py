"""roberta_flax.quantize: int8 products are what they are said to be, and near the float ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import roberta_flax
from roberta_flax import Classify, InputError, Predictor
from roberta_flax.nn.quantize import QuantizedLinear, is_quantized, quantize

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
    for pair in sick_pairs[:20]:
        tokens = exact.encode(*pair)
        features = exact.extract_features(tokens), rough.extract_features(tokens)
        assert cosine(*features).min() > 0.999
        assert not np.array_equal(*map(np.asarray, features))
        np.testing.assert_allclose(exact.predict("mnli", tokens), rough.predict("mnli", tokens), atol=0.05)
    assert rough.fill_mask("The capital of France is <mask>.", topk=3)


@pytest.mark.slow
def test_a_predictor_runs_quantised_parameters_and_says_so(tiny_directory, sick_pairs):
    roberta = roberta_flax.load(tiny_directory, quantize="int8")
    predictor = Predictor(roberta, Classify("mnli"))
    for found, pair in zip(predictor(sick_pairs[:10]), sick_pairs, strict=False):
        np.testing.assert_allclose(found, roberta.predict("mnli", roberta.encode(*pair))[0], atol=1e-5)
    assert predictor.describe()["quantized"]


@pytest.mark.slow
def test_several_devices_share_quantised_layers(eight_devices, tiny_directory):
    program = f"""
import jax, numpy as np, roberta_flax
from roberta_flax import Classify, Predictor
roberta = roberta_flax.load({str(tiny_directory)!r}, quantize="int8")
texts = ["a word", "another word is here", "dog"] * 9
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
    with pytest.raises(InputError, match="quantized parameters cannot be saved"):
        roberta_flax.load(tiny_directory, quantize="int8").save(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    assert not is_quantized(tiny.params)
