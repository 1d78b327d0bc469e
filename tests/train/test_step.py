"""An update against fairseq's own: its criteria, its Adam, its schedule, its clipping, in the order of its Trainer."""

from __future__ import annotations

import dataclasses
import math
import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roberta_flax.convert.names import TRANSPOSE, from_fairseq
from roberta_flax.errors import InputError
from roberta_flax.nn import forward
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from roberta_flax.nn.model import dropout
from roberta_flax.nn.numerics import Numerics
from roberta_flax.nn.products import product
from roberta_flax.nn.tree import flatten
from roberta_flax.train import (
    adam,
    head_loss,
    init_optimizer,
    make_eval_step,
    make_train_step,
    masked_lm_loss,
    polynomial_decay,
)
from tests.marks import slow_but
from tests.params import random_params
from tests.parity.test_network import converted
from tests.references import SMALL, build, random_tokens, torch  # skips where there is no fairseq

# isort: split
from fairseq.criterions.masked_lm import MaskedLmLoss
from fairseq.criterions.sentence_prediction import SentencePredictionCriterion
from fairseq.criterions.sentence_ranking import SentenceRankingCriterion
from fairseq.optim.adam import FairseqAdam, FairseqAdamConfig
from fairseq.optim.lr_scheduler.polynomial_decay_schedule import (
    PolynomialDecayLRSchedule,
    PolynomialDecayLRScheduleConfig,
)

VOCAB, PAD, MASK, UPDATES = SMALL["vocab"], 1, SMALL["vocab"] - 1, 20
NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0}
# 20 updates of parameters of size 1, each from gradients that agree within 1e-9 of their size (tests/parity): what is
# asked, and seven digits under what a wrong eps, rate or bias correction makes of a parameter.
TOLERANCE = 1e-9


@pytest.fixture
def losses_in_float64(monkeypatch):
    """fairseq's criteria ask log_softmax for float32 whatever they are given; in float64 they get float64."""
    exact = torch.nn.functional.log_softmax
    monkeypatch.setattr(torch.nn.functional, "log_softmax", lambda x, dim, dtype=None: exact(x, dim=dim))
    # of a regression too, and the norm that gradients are clipped by
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    norm = torch.norm
    monkeypatch.setattr(torch, "norm", lambda x, p=2, dtype=None: norm(x, p=p))


class FairseqTrainer:
    """What fairseq's Trainer.train_step does with one worker, around fairseq's own parts."""

    def __init__(self, model: Any, criterion: Any, *, rate: float, clip: float, decay: float, warmup: int, total: int):
        parameters = [p for p in model.parameters() if p.requires_grad]
        config = FairseqAdamConfig(adam_betas="(0.9, 0.98)", adam_eps=1e-6, weight_decay=decay, lr=[rate])
        schedule = PolynomialDecayLRScheduleConfig(warmup_updates=warmup, total_num_update=total, lr=[rate])
        self.model, self.criterion, self.clip = model, criterion, clip
        self.optimizer = FairseqAdam(config, parameters)
        self.schedule = PolynomialDecayLRSchedule(schedule, self.optimizer)
        self.schedule.step_update(0)
        self.updates = 0

    def update(self, samples: list[dict[str, Any]]) -> tuple[float, float]:
        """The mean loss, and the norm of the gradients before clipping."""
        self.model.train()
        self.optimizer.zero_grad()
        total, size = 0.0, 0
        for sample in samples:
            loss, sample_size, _ = self.criterion(self.model, sample)
            self.optimizer.backward(loss)
            total, size = total + loss.item(), size + int(sample_size)
        self.optimizer.multiply_grads(1 / size)
        norm = self.optimizer.clip_grad_norm(self.clip)
        self.optimizer.step()
        self.updates += 1
        self.schedule.step_update(self.updates)
        return total / size, float(norm)


def criterion(kind: type, model: Any, **options: Any) -> Any:
    """One of fairseq's criteria, with a head for every name."""
    made = kind.__new__(kind)
    torch.nn.Module.__init__(made)
    defaults = {
        "padding_idx": PAD, "tpu": False, "classification_head_name": "task", "regression_target": False,
        "keep_pred_and_targ": False, "report_mcc": False, "report_acc_and_f1": False,
        "report_pearson_and_spearman": False, "ranking_head_name": "task", "prediction_h": None,
    }  # fmt: skip
    made.__dict__.update({**defaults, **options})
    return made


def assert_same_parameters(model: Any, params: Any, tolerance: float = TOLERANCE) -> None:
    ours = flatten(params)
    for name, parameter in model.named_parameters():
        place = from_fairseq(name)
        mine = np.asarray(ours.pop(place.path))
        mine = mine.T if place.transform is TRANSPOSE else mine
        assert np.abs(mine - parameter.detach().numpy()).max() <= tolerance, name
    assert not ours


def sample(tokens: np.ndarray, target: np.ndarray) -> dict[str, Any]:
    tensor = torch.from_numpy(tokens).long()
    return {
        "net_input": {"src_tokens": tensor, "src_lengths": (tensor != PAD).sum(1)},
        "target": torch.from_numpy(target), "ntokens": 1, "nsentences": len(tokens),
    }  # fmt: skip


def classification(random: np.random.Generator, seed: int) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    tokens, targets = random_tokens([9, 30, 2, 21], VOCAB, seed=seed), random.integers(0, 3, 4)
    # a row of padding, as a last batch has them
    padded = np.concatenate([tokens, np.full((1, tokens.shape[1]), PAD, tokens.dtype)])
    batch = {"tokens": padded, "targets": np.append(targets, 0).astype(np.int32), "weights": np.array([1.0] * 4 + [0])}
    return batch, [sample(tokens, targets)]


def regression(random: np.random.Generator, seed: int) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    tokens, targets = random_tokens([9, 30, 2, 21], VOCAB, seed=seed), random.uniform(0, 1, 4).astype(np.float32)
    return {"tokens": tokens, "targets": targets.astype(np.float64), "weights": np.ones(4)}, [sample(tokens, targets)]


def ranking(random: np.random.Generator, seed: int) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    rows = random_tokens([9, 30, 2, 21, 14, 8], VOCAB, seed=seed)
    tokens, targets = rows.reshape(2, 3, -1), random.integers(0, 3, 2)
    inputs = {f"net_input{i + 1}": sample(tokens[:, i], targets)["net_input"] for i in range(3)}
    theirs = {**inputs, "target": torch.from_numpy(targets), "ntokens": 1}
    return {"tokens": tokens, "targets": targets.astype(np.int32), "weights": np.ones(2)}, [theirs]


def masked_lm(random: np.random.Generator, seed: int) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    tokens = random_tokens([9, 30, 25], VOCAB, seed=seed)
    masked, target = tokens.copy(), np.full_like(tokens, PAD)
    positions, targets, weights = np.zeros((3, 6), np.int32), np.zeros((3, 6), np.int32), np.zeros((3, 6))
    for row in range(3):
        chosen = np.sort(random.choice(np.flatnonzero(tokens[row] != PAD), 2 + row, replace=False))
        positions[row, : len(chosen)], targets[row, : len(chosen)] = chosen, tokens[row, chosen]
        weights[row, : len(chosen)], target[row, chosen] = 1, tokens[row, chosen]
        masked[row, chosen] = MASK
    batch = {"tokens": masked, "positions": positions, "targets": targets, "weights": weights}
    return batch, [sample(masked, target.astype(np.int64))]


# and a norm that gradients are clipped to in some updates and not in all
KINDS = {
    "classification": (classification, 3, SentencePredictionCriterion, {}, 0.7),
    "regression": (regression, 1, SentencePredictionCriterion, {"regression_target": True}, 1.2),
    "ranking": (ranking, 1, SentenceRankingCriterion, {"num_classes": 3}, 0.007),
    "masked LM": (masked_lm, 3, MaskedLmLoss, {}, 3.0),
}


@pytest.mark.usefixtures("x64", "losses_in_float64")
@pytest.mark.parametrize("accumulate", slow_but([3], [1, 3]))
@pytest.mark.parametrize("kind", slow_but(["masked LM"], KINDS))
def test_twenty_updates_agree_with_fairseqs_trainer_in_float64(kind, accumulate, tmp_path, tiny_source):
    make, classes, criterion_class, options, clip = KINDS[kind]
    size = {**SMALL, "encoder_layers": 2 if kind == "masked LM" else 1}
    model = build(**size, **NO_DROPOUT, heads={"task": classes}, dtype=torch.float64)
    roberta = converted(model, tmp_path, tiny_source, dtype="float64", param_dtype="float64")
    # a rate that moves parameters of size 0.02 by their own size
    recipe = {"rate": 1e-3, "clip": clip if accumulate == 1 else 0.0, "decay": 0.1, "warmup": 5, "total": 18}
    trainer = FairseqTrainer(model, criterion(criterion_class, model, **options), **recipe)

    schedule = polynomial_decay(1e-3, warmup_steps=5, total_steps=18)
    optimizer = adam(schedule, config=roberta.config, clip_norm=recipe["clip"])
    arguments = {"config": roberta.config, "numerics": Numerics("float64")}
    loss = masked_lm_loss(**arguments) if kind == "masked LM" else head_loss("task", **arguments)
    train_step = make_train_step(loss, optimizer, accumulate=accumulate)
    params, opt_state = roberta.params, init_optimizer(optimizer, roberta.params)

    random, norms = np.random.default_rng(0), []
    for update in range(UPDATES):
        pairs = [make(random, seed=100 * update + i) for i in range(accumulate)]
        expected_loss, norm = trainer.update([one for _, samples in pairs for one in samples])
        batches = [batch for batch, _ in pairs]
        batch = batches[0] if accumulate == 1 else jax.tree.map(lambda *arrays: np.stack(arrays), *batches)
        params, opt_state, metrics = train_step(params, opt_state, batch, jax.random.key(update))
        assert float(metrics["loss"]) == pytest.approx(expected_loss, rel=TOLERANCE)
        assert float(metrics["gradient_norm"]) == pytest.approx(norm, rel=TOLERANCE)
        assert_same_parameters(model, params)
        norms.append(norm)
    if recipe["clip"]:
        assert min(norms) < recipe["clip"] < max(norms)


@pytest.mark.parametrize(("warmup", "total", "end", "power"), [(0, 7, 0.0, 1.0), (5, 20, 0.0, 1.0), (4, 9, 1e-6, 2.0)])
def test_the_schedule_is_fairseqs_before_within_and_after(warmup, total, end, power):
    optimizer = FairseqAdam(
        FairseqAdamConfig(lr=[3e-5], adam_betas="(0.9, 0.98)"), [torch.nn.Parameter(torch.zeros(1))]
    )
    options = {"end_learning_rate": end, "power": power}
    config = PolynomialDecayLRScheduleConfig(warmup_updates=warmup, total_num_update=total, lr=[3e-5], **options)
    theirs = PolynomialDecayLRSchedule(config, optimizer)
    ours = polynomial_decay(3e-5, warmup_steps=warmup, total_steps=total, **options)
    for update in range(total + 3):
        # float32: a few of its units in the last place, of the highest rate
        assert float(ours(update)) == pytest.approx(theirs.step_update(update), rel=1e-6, abs=1e-11)


# the rest needs no fairseq

CONFIG = RobertaConfig(
    vocab_size=VOCAB, num_layers=2, hidden_size=36, num_heads=3, intermediate_size=50, max_positions=77,
    heads=(
        HeadConfig("sentence", 3, 36),
        HeadConfig("several", 3, 36, problem="multi_label"),
        HeadConfig("values", 2, 36, problem="regression"),
        HeadConfig("token", 4, 0, kind="token"),
        HeadConfig("span", 2, 0, kind="span"),
        HeadConfig("choice", 1, 36, kind="choice"),
        HeadConfig("pooler", 36, 36, kind="pooler"),
    ),
)  # fmt: skip
STILL = {"dropout": 0.0, "attention_dropout": 0.0}


# of one layer, and of one head too, where their number says nothing
ONE_LAYER = dataclasses.replace(CONFIG, num_layers=1)
SHALLOW = dataclasses.replace(ONE_LAYER, heads=CONFIG.heads[:1], lm_head=False)


@pytest.fixture(scope="module")
def params() -> Any:
    return random_params(CONFIG, deviation=0.02)


@pytest.fixture(scope="module")
def one_layer() -> Any:
    return random_params(ONE_LAYER, deviation=0.02)


@pytest.fixture(scope="module")
def shallow() -> Any:
    return random_params(SHALLOW, deviation=0.02)


def copy_of(params: Any) -> Any:
    return jax.device_put(jax.tree.map(np.array, params))


def sentence_batch(rows: int = 4) -> dict[str, np.ndarray]:
    tokens = random_tokens([9, 30, 2, 21][:rows], VOCAB)
    return {"tokens": tokens, "targets": np.arange(rows, dtype=np.int32) % 3, "weights": np.ones(rows, np.float32)}


@pytest.mark.slow
def test_losses_of_other_heads_are_torchs_functions_of_their_logits(one_layer):
    tokens = random_tokens([9, 30, 2, 21], VOCAB)
    is_token = tokens != PAD
    functional, tensor = torch.nn.functional, lambda x: torch.from_numpy(np.array(x))

    def logits(head: str) -> Any:
        return tensor(forward.head_logits(one_layer, tokens, head=head, config=ONE_LAYER))

    random = np.random.default_rng(1)
    labels = random.integers(0, 2, (4, 3)).astype(np.float32)
    values = random.normal(size=(4, 2)).astype(np.float32)
    tags = random.integers(0, 4, tokens.shape).astype(np.int32)
    spans = np.array([[0, 3], [7, 29], [1, 1], [20, 20]], np.int32)
    rows = np.array([1.0, 0.0, 1.0, 1.0], np.float32)
    tag_weights = (is_token & (random.random(tokens.shape) < 0.7)).astype(np.float32)
    span_scores = logits("span").masked_fill(~tensor(is_token)[..., None], -torch.inf)
    several = functional.binary_cross_entropy_with_logits(logits("several"), tensor(labels), reduction="none")
    tagged = functional.cross_entropy(logits("token").transpose(1, 2), tensor(tags).long(), reduction="none")
    starts, ends = (
        functional.cross_entropy(span_scores[..., i], tensor(spans[:, i]).long(), reduction="none") for i in (0, 1)
    )
    expected = {
        "several": (labels, rows, (several.sum(1) * tensor(rows)).sum()),
        "values": (values, rows, ((logits("values") - tensor(values)).square().mean(1) * tensor(rows)).sum()),
        "token": (tags, tag_weights, (tagged * tensor(tag_weights)).sum()),
        "span": (spans, rows, ((starts + ends) / 2 * tensor(rows)).sum()),
    }
    for head, (targets, weights, value) in expected.items():
        batch = {"tokens": tokens, "targets": targets, "weights": weights}
        total, size = make_eval_step(head_loss(head, config=ONE_LAYER))(one_layer, batch)
        assert float(size) == weights.sum()
        # float32, sums of some forty numbers of size one
        assert float(total) == pytest.approx(value.item(), rel=1e-5), head


def test_a_choice_head_scores_rows_and_compares_them(one_layer):
    tokens = random_tokens([9, 30, 2, 21, 5, 6], VOCAB).reshape(2, 3, -1)
    batch = {"tokens": tokens, "targets": np.array([2, 0], np.int32), "weights": np.ones(2, np.float32)}
    scores = np.asarray(forward.head_logits(one_layer, tokens.reshape(6, -1), head="choice", config=ONE_LAYER)).reshape(
        2, 3
    )
    expected = np.log(np.exp(scores).sum(1)) - scores[[0, 1], [2, 0]]
    total, _ = make_eval_step(head_loss("choice", config=ONE_LAYER))(one_layer, batch)
    assert float(total) == pytest.approx(expected.sum(), rel=1e-5)


@pytest.mark.slow
def test_a_choice_of_padding_alone_is_none(one_layer):
    tokens = random_tokens([9, 30, 5, 6], VOCAB).reshape(2, 2, -1)
    nothing = np.full((2, 1, tokens.shape[-1]), ONE_LAYER.pad_id)
    batch = {"tokens": tokens, "targets": np.array([1, 0], np.int32), "weights": np.ones(2, np.float32)}
    padded = {**batch, "tokens": np.concatenate([tokens, nothing], 1)}
    loss = head_loss("choice", config=ONE_LAYER)
    gradients = jax.jit(jax.grad(lambda params, batch: loss(params, batch, None)[0]))
    with_two, with_three = (gradients(one_layer, some) for some in (batch, padded))
    # the same sums, over more rows: float32, rounded otherwise
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max() + 1e-7), with_two, with_three
    )
    judged = [make_eval_step(loss)(one_layer, some)[0] for some in (batch, padded)]
    assert float(judged[0]) == pytest.approx(float(judged[1]), rel=1e-6)


@pytest.mark.slow
def test_layers_that_are_computed_again_give_the_same_update(shallow):
    results = []
    for remat in (False, True):
        optimizer = adam(1e-3, config=SHALLOW)
        train_step = make_train_step(head_loss("sentence", config=SHALLOW, numerics=Numerics(remat=remat)), optimizer)
        copy = copy_of(shallow)
        results.append(train_step(copy, init_optimizer(optimizer, copy), sentence_batch(), jax.random.key(7))[0])
    # the same operations on the same numbers, dropout included; fused otherwise, so rounded otherwise
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), *results)


@pytest.mark.parametrize("normalize_before", [False, True], ids=["post-norm", "pre-norm"])
def test_of_a_layer_that_is_computed_again_the_last_product_is_not(normalize_before):
    """A layer has 8 products, of which each has two gradients."""

    def products(layers: int) -> int:
        config = dataclasses.replace(SHALLOW, num_layers=layers, normalize_before=normalize_before)
        loss = head_loss("sentence", config=config, numerics=Numerics(remat=True))
        params = forward.abstract_params(config)
        gradient = jax.jit(jax.grad(lambda params: loss(params, sentence_batch(), jax.random.key(1))[0]))
        return gradient.lower(params).as_text().count("stablehlo.dot_general")

    assert products(3) - products(2) == 8 + 7 + 2 * 8


def test_no_product_of_an_update_in_bfloat16_has_a_float32_operand(params):
    loss = head_loss("sentence", config=CONFIG, numerics=Numerics(dtype="bfloat16"))
    gradient = jax.grad(lambda p: loss(p, sentence_batch(), jax.random.key(0))[0])
    lowered = jax.jit(gradient).lower(params).as_text()
    dtype = r"tensor<(?:\d+x)*(\w+)>"
    found = re.findall(rf"stablehlo\.dot_general .* : \({dtype}, {dtype}\) -> {dtype}", lowered)
    # 6 + 2 products a layer forwards, the same twice backwards, and the head's two thrice
    assert len(found) == 3 * (8 * CONFIG.num_layers + 2)
    assert set(found) == {("bf16", "bf16", "f32")}


def test_the_cpu_compiler_takes_a_kernels_gradient_from_bfloat16_too():
    def compiled(function: Any, *shapes: tuple[int, int]) -> str:
        arrays = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes)
        text: str = jax.jit(function).lower(*arrays).compile().as_text()
        return text

    multiply = partial(product, "ti,io->to", dtype="bfloat16")
    if "f32[256,64]" in compiled(multiply, (256, 64), (64, 128)):
        pytest.skip("this CPU has no product of bfloat16")

    def gradient(x: Any, of_result: Any) -> Any:
        kernel = jnp.zeros((64, 128), jnp.bfloat16)
        return jax.vjp(partial(multiply, x), kernel)[1](of_result.astype(jnp.float32))

    assert "f32[256," not in compiled(gradient, (256, 64), (256, 128))


@pytest.mark.slow
def test_an_update_in_bfloat16_keeps_16_bits_of_what_stands_between_products():
    """Of each further layer as many bytes as a count by hand."""
    rows, time, hidden, heads, inner = 4, 128, 64, 4, 256
    batch = {
        "tokens": jax.ShapeDtypeStruct((rows, time), jnp.int32),
        "targets": jax.ShapeDtypeStruct((rows,), jnp.int32),
        "weights": jax.ShapeDtypeStruct((rows,), jnp.float32),
    }

    def temporaries(layers: int) -> int:
        config = RobertaConfig(
            vocab_size=VOCAB, num_layers=layers, hidden_size=hidden, num_heads=heads, intermediate_size=inner,
            max_positions=time, heads=(HeadConfig("sentence", 3, hidden),),
        )  # fmt: skip
        optimizer = adam(1e-3, config=config)
        params = forward.abstract_params(config)
        state = jax.eval_shape(lambda: init_optimizer(optimizer, params))
        loss = head_loss("sentence", config=config, numerics=Numerics(dtype="bfloat16"))
        lowered = make_train_step(loss, optimizer).lower(params, state, batch, jax.random.key(0))
        size: int = lowered.compile().memory_analysis().temp_size_in_bytes
        return size

    # a token's: operands of products (six of the hidden size; the activation's argument and result), two LayerNorms'
    # inputs in float32, two dropout masks
    of_a_token = 2 * (6 * hidden + 2 * inner) + 4 * 2 * hidden + 2 * hidden
    # a pair of tokens': the numerators of the softmax, its mask, and what dropout leaves of them as an operand
    of_a_pair = heads * (2 + 1 + 2)
    kernels = 2 * (4 * hidden**2 + 2 * hidden * inner)
    by_hand = rows * time * (of_a_token + time * of_a_pair) + kernels
    # a tenth for how buffers fit together
    assert temporaries(3) - temporaries(2) < 1.1 * by_hand


@pytest.mark.slow
def test_gradients_in_bfloat16_are_near_those_in_float32(one_layer):
    def gradient(dtype: str) -> Any:
        loss = head_loss("sentence", config=ONE_LAYER, numerics=Numerics(dtype=dtype))
        return jax.jit(jax.grad(lambda p: loss(p, sentence_batch(), None)[0]))(one_layer)

    exact, rounded = gradient("float32"), gradient("bfloat16")
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(rounded))
    # 8 bits of mantissa, through some twenty products one after the other: a few hundredths of the whole
    pairs = list(zip(*(map(np.asarray, jax.tree.leaves(tree)) for tree in (exact, rounded)), strict=True))
    distance = sum(np.square(a - b).sum() for a, b in pairs) / sum(np.square(a).sum() for a, _ in pairs)
    assert 1e-4 < distance**0.5 < 0.05


@pytest.mark.slow
def test_dropout_is_drawn_at_its_rate_and_anew_in_each_update(one_layer):
    draws = 200_000
    for rate in (0.1, 0.37):
        dropped = np.asarray(dropout(jnp.ones(draws), rate, jax.random.key(3)))
        # a binomial share, within 5 standard deviations; what is left is scaled to keep the mean
        assert abs((dropped == 0).mean() - rate) < 5 * (rate * (1 - rate) / draws) ** 0.5
        np.testing.assert_allclose(dropped[dropped != 0], 1 / (1 - rate), rtol=1e-6)
    loss = jax.jit(lambda key: head_loss("sentence", config=ONE_LAYER)(one_layer, sentence_batch(), key)[0])
    assert float(loss(jax.random.key(0))) != float(loss(jax.random.key(1)))
    assert float(loss(jax.random.key(0))) == float(loss(jax.random.key(0)))


@pytest.mark.slow
def test_what_is_frozen_stays_and_takes_no_moments(params):
    freeze = ("embeddings", r"layers\.0\.")
    optimizer = adam(1e-3, config=CONFIG)
    train_step = make_train_step(head_loss("sentence", config=CONFIG), optimizer, freeze=freeze)
    copy = copy_of(params)
    opt_state = init_optimizer(optimizer, copy, freeze)
    moments = set(flatten(opt_state[0].mean))
    after, *_ = train_step(copy, opt_state, sentence_batch(), jax.random.key(0))
    for path, value in flatten(params).items():
        frozen = path.startswith(("embeddings.", "layers.0."))
        if frozen or path.startswith(("layers.1.", "heads.sentence.")):
            assert np.array_equal(value, flatten(after)[path]) == frozen, path
        assert (path in moments) == (not frozen)


@pytest.mark.slow
def test_what_a_loss_does_not_read_is_not_decayed(one_layer):
    optimizer = adam(1e-3, config=ONE_LAYER)
    copy = copy_of(one_layer)
    train_step = make_train_step(head_loss("sentence", config=ONE_LAYER), optimizer)
    after = flatten(train_step(copy, init_optimizer(optimizer, copy), sentence_batch(), jax.random.key(0))[0])
    for path, value in flatten(one_layer).items():
        unread = path.startswith("lm_head.") or (path.startswith("heads.") and not path.startswith("heads.sentence."))
        zero = not np.any(value) and path.endswith("key.bias")  # its gradient is rounding, far under Adam's eps
        assert np.array_equal(value, after[path]) == unread or zero, path


@pytest.mark.slow
def test_layer_decay_scales_updates_by_depth(params):
    config = CONFIG
    gradients = jax.tree.map(np.ones_like, params)
    updates = {}
    for decay in (1.0, 0.5):
        optimizer = adam(1e-3, config=config, layer_decay=decay)
        update = jax.jit(lambda g, p, optimizer=optimizer: optimizer.update(g, optimizer.init(p), p)[0])
        updates[decay] = flatten(update(gradients, params))
    expected = {"embeddings.": 0.125, "layers.0.": 0.25, "layers.1.": 0.5, "heads.": 1.0, "lm_head.": 1.0}
    for path, plain in updates[1.0].items():
        factor = next(value for prefix, value in expected.items() if path.startswith(prefix))
        np.testing.assert_allclose(updates[0.5][path], factor * np.asarray(plain), rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: polynomial_decay(1e-3, warmup_steps=9, total_steps=8), "warmup_steps must be from 0"),
        (lambda: polynomial_decay(0.0, warmup_steps=1, total_steps=8), "learning_rate and power must be over 0"),
        (lambda: adam(1e-3, config=CONFIG, betas=(1.0, 0.9)), "betas must be from 0 to under 1"),
        (lambda: polynomial_decay(math.nan, warmup_steps=1, total_steps=8), "over 0 and finite.*got nan"),
        (lambda: polynomial_decay(math.inf, warmup_steps=1, total_steps=8), "over 0 and finite.*got inf"),
        (lambda: adam(1e-3, config=CONFIG, eps=0.0), "eps must be over 0"),
        (lambda: adam(1e-3, config=CONFIG, eps=math.nan), "eps must be over 0.*got nan"),
        (lambda: adam(1e-3, config=CONFIG, weight_decay=math.nan), "all finite"),
        (lambda: adam(1e-3, config=CONFIG, layer_decay=1.5), "layer_decay must be over 0 and at most 1, got 1.5"),
        (lambda: head_loss("nothing", config=CONFIG), "no head called 'nothing'"),
        (lambda: head_loss("pooler", config=CONFIG), "'pooler' is a pooler: it has no loss to train with"),
        (
            lambda: head_loss("sentence", config=CONFIG, numerics=Numerics(dtype="float16")),
            "float16 has too small a range of exponents",
        ),
        (lambda: masked_lm_loss(config=RobertaConfig(lm_head=False)), "no masked-LM head"),
        (
            lambda: make_train_step(head_loss("token", config=CONFIG), adam(1.0, config=CONFIG), accumulate=0),
            "1 or more",
        ),
    ],
)
def test_what_cannot_be_trained_is_one_line(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    ("freeze", "message"), [(("layer0",), "no parameter's path begins with 'layer0'"), (("",), "no parameter to train")]
)
def test_freezing_nothing_or_everything_is_one_line(freeze, message, params):
    with pytest.raises(InputError, match=message):
        init_optimizer(adam(1e-3, config=CONFIG), params, freeze)
