"""The Flax network against fairseq's, through the converter: what fairseq wrote is read, converted, loaded and run."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import roberta_flax
from roberta_flax import RobertaConfig
from roberta_flax.convert import convert
from roberta_flax.convert.names import TRANSPOSE, from_fairseq
from roberta_flax.nn import forward
from roberta_flax.nn.numerics import Numerics
from roberta_flax.nn.tree import flatten
from tests.marks import slow_but
from tests.references import SMALL, STYLES, all_hidden, build, random_tokens, torch, write

# float64: a unit in the last place is 2e-16 of numbers of size 1 to 10; sums of up to 3072 products over 12 layers
# leave about 1e-13. A wrong constant anywhere (an epsilon, erf by tanh, a scale) shows at 1e-6 or more.
FLOAT64 = 1e-10
# float32: a unit in the last place is 6e-8; the same sums, 12 or 24 layers deep, on features of size up to 5.
FLOAT32 = 5e-5

SMALL_VARIANTS = {
    "post-norm": {},
    "pre-norm": {"architecture": "roberta_prenorm"},
    "pre-norm with layernorm_embedding": {"encoder_normalize_before": True},
    "no layernorm_embedding": {"layernorm_embedding": False},
    "untied": {"untie_weights_roberta": True},
    "one head, one layer": {"encoder_attention_heads": 1, "encoder_layers": 1},
    **{
        f"activation {name}": {"activation_fn": name}
        for name in ("relu", "gelu_fast", "gelu_accurate", "tanh", "linear")
    },
    "pooler activation relu": {"pooler_activation_fn": "relu"},
}


def converted_directory(model, folder: Path, bpe: Path) -> Path:
    return convert(write(model, folder / "source", bpe), folder / "converted")


def converted(model, folder: Path, bpe: Path, **options) -> roberta_flax.Roberta:
    return roberta_flax.load(converted_directory(model, folder, bpe), **options)


def largest_difference(a, b) -> float:
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    assert np.isfinite(a).all()
    assert np.isfinite(b).all()
    return float(np.abs(a - b).max())


@partial(jax.jit, static_argnames=("config", "numerics"))
def outputs(params: forward.Params, tokens: np.ndarray, config: RobertaConfig, numerics: Numerics) -> dict[str, Any]:
    """What every function of `forward` gives, in one program: what they share is compiled once."""
    options = {"config": config, "numerics": numerics}
    found = {
        "states": forward.hidden_states(params, tokens, **options),
        "features": forward.features(params, tokens, **options),
        "head_logits": {
            head.name: forward.head_logits(params, tokens, head=head.name, **options) for head in config.heads
        },
        "head_log_probs": {
            head.name: forward.head_log_probs(params, tokens, head=head.name, **options) for head in config.heads
        },
    }
    if config.lm_head:
        found["lm_logits"] = forward.lm_logits(params, tokens, **options)
        found["lm_logits_at_the_ends"] = forward.lm_logits(params, tokens, ends(tokens), **options)
    return found


def ends(tokens: np.ndarray) -> np.ndarray:
    """The first position and the last of each row."""
    return np.array([[0, tokens.shape[1] - 1]] * len(tokens))


def assert_same_network(model, roberta: roberta_flax.Roberta, tokens: np.ndarray, tolerance: float) -> None:
    """Features of every layer, LM logits at all and at given positions, and head logits."""
    ours = outputs(roberta.params, tokens, roberta.config, roberta.numerics)
    states, features = all_hidden(model, tokens)
    assert len(ours["states"]) == len(states)
    for state, our_state in zip(states, ours["states"], strict=True):
        assert largest_difference(state, our_state) <= tolerance
    assert largest_difference(features, ours["features"]) <= tolerance

    with torch.no_grad():
        lm_logits = model(torch.from_numpy(tokens).long())[0].numpy()
    assert largest_difference(lm_logits, ours["lm_logits"]) <= tolerance
    some = np.take_along_axis(lm_logits, ends(tokens)[..., None], 1)
    assert largest_difference(some, ours["lm_logits_at_the_ends"]) <= tolerance

    for head in model.classification_heads:
        with torch.no_grad():
            logits = model(torch.from_numpy(tokens).long(), classification_head_name=head)[0]
        assert largest_difference(logits, ours["head_logits"][head]) <= tolerance
        assert largest_difference(logits.log_softmax(-1), ours["head_log_probs"][head]) <= tolerance


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("variant", slow_but(["post-norm", "pre-norm", "one head, one layer"], SMALL_VARIANTS))
def test_every_choice_of_network_agrees_in_float64(variant, tmp_path, tiny_source):
    model = build(**{**SMALL, **SMALL_VARIANTS[variant]}, heads={"mnli": 3, "rte": 2}, dtype=torch.float64)
    roberta = converted(model, tmp_path, tiny_source, dtype="float64", param_dtype="float64")
    assert_same_network(model, roberta, random_tokens([1, 2, 30, 77], 131), FLOAT64)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_style_and_dtype_of_checkpoint_converts_bit_for_bit(style, dtype, tmp_path, tiny_source):
    model = build(**SMALL, dtype=dtype)
    directory = convert(write(model, tmp_path / "source", tiny_source, style), tmp_path / "converted")
    from safetensors.torch import load_file

    stored = load_file(directory / "model.safetensors")
    for name, parameter in model.named_parameters():
        place = from_fairseq(name)
        value = stored.pop(place.path)
        assert value.dtype == dtype
        assert torch.equal(value.T if place.transform is TRANSPOSE else value, parameter), name
    assert not stored
    config = roberta_flax.RobertaConfig.from_json((directory / "config.json").read_text())
    assert (config.num_layers, config.num_heads, config.max_positions) == (3, 3, 77)


@pytest.fixture(scope="module")
def base_model():
    return build(dtype=torch.float64)


@pytest.fixture(scope="module")
def base_directory(base_model, tmp_path_factory, tiny_source):
    return converted_directory(base_model, tmp_path_factory.mktemp("base"), tiny_source)


@pytest.fixture(scope="module")
def loaded_base(base_directory):
    with jax.enable_x64(True):
        return roberta_flax.load(base_directory, dtype="float64", param_dtype="float64")


@pytest.fixture
def base_float64(x64, loaded_base):
    return loaded_base


@pytest.mark.slow
def test_base_agrees_in_float64(base_model, base_float64):
    assert_same_network(base_model, base_float64, random_tokens([1, 13, 60], 50265), FLOAT64)
    tokens = random_tokens([512], 50265, seed=1)
    assert largest_difference(all_hidden(base_model, tokens)[1], base_float64.extract_features(tokens)) <= FLOAT64


@pytest.mark.slow
def test_gradients_of_base_agree_in_float64(base_model, base_float64):
    """Of the sum of two losses, by which every parameter has one."""
    tokens = random_tokens([1, 9, 24], 50265)
    labels = np.array([0, 2, 1])
    targets = np.array([[5, 0], [7, 50264], [2, 31]])
    positions = np.array([[0, 0], [3, 8], [1, 23]])
    options = {"config": base_float64.config, "numerics": Numerics("float64")}

    def loss(params):
        mnli = -forward.head_log_probs(params, tokens, head="mnli", **options)[np.arange(3), labels].mean()
        logits = forward.lm_logits(params, tokens, positions, **options)
        masked_lm = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1).mean()
        return mnli + masked_lm

    base_model.zero_grad()
    features = base_model(torch.from_numpy(tokens).long(), features_only=True)[0]
    logits = base_model.encoder.lm_head(features[torch.arange(3)[:, None], torch.from_numpy(positions)])
    expected = torch.nn.functional.cross_entropy(
        base_model.classification_heads["mnli"](features), torch.from_numpy(labels)
    ) + torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten())
    expected.backward()
    value, gradient = jax.jit(jax.value_and_grad(loss))(base_float64.params)
    assert abs(float(value) - expected.item()) <= FLOAT64
    ours = flatten(gradient)
    for name, parameter in base_model.named_parameters():
        place = from_fairseq(name)
        mine = np.asarray(ours.pop(place.path))
        mine = mine.T if place.transform is TRANSPOSE else mine
        theirs = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        # A key's bias shifts all scores of a row alike: its gradient is zero, and what is there is rounding.
        scale_of = re.sub("k_proj.bias", "q_proj.bias", name)
        scale_gradient = base_model.get_parameter(scale_of).grad
        scale = 0.0 if scale_gradient is None else scale_gradient.abs().max().item()
        assert np.abs(mine - theirs.numpy()).max() <= 1e-9 * scale, name
    assert not ours


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_a_padded_row_is_what_it_is_alone_at_every_length(tmp_path, tiny_source):
    model = build(**{**SMALL, "max_positions": 512, "tokens_per_sample": 512}, dtype=torch.float64)
    roberta = converted(model, tmp_path, tiny_source, dtype="float64", param_dtype="float64")
    lengths = [1, 2, 3, 15, 16, 17, 63, 64, 65, 200, 256, 257, 384, 511, 512]
    tokens = random_tokens(lengths, 131)
    together = np.asarray(roberta.extract_features(tokens))
    logits = np.asarray(roberta.predict("mnli", tokens))
    for row, length in enumerate(lengths):
        alone = tokens[row, :length]
        assert largest_difference(together[row, :length], roberta.extract_features(alone)[0]) <= FLOAT64
        assert largest_difference(logits[row], roberta.predict("mnli", alone)[0]) <= FLOAT64
        assert largest_difference(all_hidden(model, alone[None])[1][0], together[row, :length]) <= FLOAT64


def test_a_row_of_nothing_but_padding_gives_no_nan(tiny):
    tokens = np.ones((2, 5), np.int32)
    tokens[0, :3] = [0, 10, 2]
    assert np.isfinite(tiny.extract_features(tokens)).all()
    assert largest_difference(tiny.extract_features(tokens)[0, :3], tiny.extract_features(tokens[0, :3])[0]) < FLOAT32


@pytest.mark.slow
def test_base_agrees_in_float32(tmp_path, tiny_source):
    model = build(seed=3)
    roberta = converted(model, tmp_path, tiny_source)
    for lengths in ([1, 20, 64], [512]):
        tokens = random_tokens(lengths, 50265)
        states, _ = all_hidden(model, tokens)
        for state, ours in zip(states, roberta.extract_features(tokens, return_all_hiddens=True), strict=True):
            assert largest_difference(state, ours) <= FLOAT32


@pytest.mark.slow
def test_large_agrees_in_float32(tmp_path, tiny_source):
    model = build("roberta_large")
    roberta = converted(model, tmp_path, tiny_source)
    tokens = random_tokens([1, 7, 25], 50265)
    states, _ = all_hidden(model, tokens)
    assert len(states) == 25
    for state, ours in zip(states, roberta.extract_features(tokens, return_all_hiddens=True), strict=True):
        assert largest_difference(state, ours) <= FLOAT32
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens).long(), classification_head_name="mnli")[0].log_softmax(-1)
    assert largest_difference(expected, roberta.predict("mnli", tokens)) <= FLOAT32


def test_every_line_of_fairseqs_readme_runs(tmp_path, gpt2_bpe):
    model = build(**{**SMALL, "vocab": 50265})
    source = write(model, tmp_path / "source", gpt2_bpe, "2019")
    (source / "dict.txt").write_bytes((gpt2_bpe / "dict.txt").read_bytes())
    roberta = roberta_flax.load(source, cache_dir=tmp_path / "cache")
    roberta.eval()
    tokens = roberta.encode("Hello world!")
    assert tokens.tolist() == [0, 31414, 232, 328, 2]
    assert roberta.decode(tokens) == "Hello world!"
    last_layer_features = roberta.extract_features(tokens)
    assert last_layer_features.shape == (1, 5, SMALL["encoder_embed_dim"])
    all_layers = roberta.extract_features(tokens, return_all_hiddens=True)
    assert len(all_layers) == 1 + SMALL["encoder_layers"]
    # two programs, each rounded in its own way
    assert largest_difference(all_layers[-1], last_layer_features) <= FLOAT32

    pairs = [
        ["Roberta is a heavily optimized version of BERT.", "Roberta is not very optimized."],
        ["Roberta is a heavily optimized version of BERT.", "Roberta is based on BERT."],
        ["potatoes are awesome.", "I like to run."],
    ]
    batch = roberta_flax.collate_tokens([roberta.encode(pair[0], pair[1]) for pair in pairs], pad_idx=1)
    log_probabilities = roberta.predict("mnli", batch)
    with torch.no_grad():
        expected = model(torch.from_numpy(batch).long(), classification_head_name="mnli")[0].log_softmax(-1)
    assert largest_difference(expected, log_probabilities) <= FLOAT32
    assert log_probabilities.argmax(1).tolist() == expected.argmax(1).tolist()
    assert largest_difference(all_hidden(model, batch)[1], roberta.extract_features(batch)) <= FLOAT32

    roberta.register_classification_head("new_task", num_classes=3)
    assert np.exp(roberta.predict("new_task", tokens)).sum() == pytest.approx(1, abs=1e-6)
    assert len(roberta.fill_mask("The first Star wars movie came out in <mask>", topk=3)) == 3
    roberta.train()
    assert largest_difference(roberta.predict("mnli", tokens), roberta.predict("mnli", tokens)) > 0


def test_bfloat16_is_near_float32(tmp_path, tiny_source):
    model = build(**SMALL)
    source = write(model, tmp_path / "source", tiny_source)
    directory = convert(source, tmp_path / "converted")
    tokens = random_tokens([5, 77], 131)
    features = np.asarray(roberta_flax.load(directory).extract_features(tokens))
    half = roberta_flax.load(directory, dtype="bfloat16", param_dtype="bfloat16")
    low = half.extract_features(tokens)
    assert low.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(half.params))
    # bfloat16 keeps 8 bits: 2^-9 relative an operand, and errors of three layers add up
    assert largest_difference(features, np.asarray(low, np.float32)) <= 3 * 16 * 2.0**-9
    assert np.isfinite(half.predict("mnli", tokens)).all()


@pytest.mark.slow
def test_in_float64_nothing_is_computed_in_less(base_model, base_float64):
    tokens = random_tokens([6], 50265)
    program = forward.features.trace(
        base_float64.params, tokens, config=base_float64.config, numerics=Numerics("float64")
    ).jaxpr
    assert "f32" not in str(program)
