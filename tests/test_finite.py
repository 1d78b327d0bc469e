"""Outputs that are NaN or infinite are no answers: whoever asks is told, and a model says at load that it is not finite."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import roberta_flax
from roberta_flax import Classify, Embed, FillMask, HeadConfig, InputError, Predictor, hub
from roberta_flax.datasets.readers import Columns
from roberta_flax.inference.answers import answer, entailment
from roberta_flax.inference.evaluation import evaluate
from roberta_flax.inference.features import text_features
from roberta_flax.tasks import pronouns
from roberta_flax.text.encoding import Rejected
from roberta_flax.train import corpus
from roberta_flax.train.pretraining import perplexity
from roberta_flax.train.samples import Samples
from tests.params import random_params

REFUSED = "outputs are NaN or infinite"
HEADS = (
    HeadConfig("sentence", 3, 64, labels=("a", "b", "c")),
    HeadConfig("several", 3, 64, problem="multi_label"),
    HeadConfig("value", 1, 64, problem="regression"),
    HeadConfig("tags", 3, 0, "token"),
    HeadConfig("span", 2, 0, "span"),
    HeadConfig("choice", 1, 64, "choice"),
)
QUESTIONS = {
    "sentence": ["a dog"], "several": ["a dog"], "value": ["a dog"], "tags": ["a dog"],
    "span": ["who?", "a dog"], "choice": ["a", "b", "c"],
}  # fmt: skip


def with_value(roberta: roberta_flax.Roberta, value: float, index: Any = 0) -> roberta_flax.Roberta:
    """The model with one element of a kernel of its last layer set."""
    last = str(roberta.config.num_layers - 1)
    params = jax.tree.map(lambda leaf: leaf, roberta.params)
    kernel = params["layers"][last]["feed_forward"]["intermediate"]["kernel"]
    params["layers"][last]["feed_forward"]["intermediate"]["kernel"] = kernel.at[index, index].set(value)
    roberta.params = params
    return roberta


@pytest.fixture
def broken(shallow) -> roberta_flax.Roberta:
    """A model of every kind of head, with a NaN."""
    config = shallow.config
    for head in HEADS:
        config = config.with_head(head)
    heads = random_params(config)["heads"]
    return with_value(
        roberta_flax.Roberta(config, {**shallow.params, "heads": heads | shallow.params["heads"]}, shallow.tokenizer),
        np.nan,
    )


@pytest.fixture
def overflowing(one_layer, tmp_path) -> Path:
    """A model with a parameter that float32 holds and float16 does not."""
    with_value(roberta_flax.load(one_layer), 1e6).save(tmp_path / "overflowing")
    return tmp_path / "overflowing"


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.name)
def test_no_head_answers_where_its_scores_are_nan(broken, head):
    with pytest.raises(InputError, match=REFUSED):
        answer(broken, QUESTIONS[head.name], head.name)


@pytest.mark.slow
def test_no_method_makes_a_name_or_a_text_of_nan(broken):
    tokens = broken.encode("a dog")
    for ask in (
        lambda: broken.predict_labels("sentence", tokens),
        lambda: broken.predict_labels("tags", tokens),
        lambda: broken.fill_mask("a <mask>"),
        lambda: entailment(broken, "a dog", "a cat"),
        lambda: text_features(broken, ["a dog"]),
        lambda: text_features(broken, ["a dog"], all_layers=True),
        lambda: pronouns.disambiguate(
            broken, "The trophy and [it].", ["trophy", "suitcase"], nlp=lambda text: pytest.fail("not needed")
        ),
    ):
        with pytest.raises(InputError, match=REFUSED):
            ask()


@pytest.mark.slow
@pytest.mark.parametrize("task", [Classify("mnli"), Classify("tags"), Embed("mean"), Embed("tokens"), FillMask(2)])
@pytest.mark.parametrize("strategy", ["buckets", "packing"])
def test_a_predictor_rejects_what_has_nan_and_stops_where_results_alone_are_asked_for(broken, task, strategy):
    predictor = Predictor(broken, task, strategy=strategy)
    ((rejected, unreadable),) = predictor.windows([["a <mask>", 5]])
    assert isinstance(rejected, Rejected)
    assert REFUSED in rejected.reason
    assert "got" in unreadable.reason
    assert (predictor.stats.texts, predictor.stats.rejected) == (2, 2)
    with pytest.raises(InputError, match=f"input 0: .*{REFUSED}"):
        list(predictor(["a <mask>"]))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["buckets", "packing"])
@pytest.mark.parametrize("task", [Classify("mnli"), Embed("mean"), Embed("tokens")])
def test_one_input_that_overflows_does_not_take_the_others_with_it(shallow, strategy, task):
    """An embedding that only one text has is too large for float32's sums; packing puts dozens of texts in its row."""
    expected = list(Predictor(shallow, task)(["a dog", "a cat"]))
    token = min(
        set(shallow.encode("a horse").tolist()) - {*shallow.encode("a dog").tolist(), *shallow.encode("a cat").tolist()}
    )
    table = shallow.params["embeddings"]["token"]["embedding"]
    shallow.params = {
        **shallow.params,
        "embeddings": {**shallow.params["embeddings"], "token": {"embedding": table.at[token].set(3e38)}},
    }
    predictor = Predictor(shallow, task, strategy=strategy)
    (results,) = predictor.windows([["a dog"] * 60 + ["a horse"] + ["a cat"] * 60])
    assert [number for number, result in enumerate(results) if isinstance(result, Rejected)] == [60]
    for number, result in enumerate(results):
        if number != 60:
            assert np.abs(result - expected[number > 60]).max() <= 5e-5
    assert (predictor.stats.texts, predictor.stats.rejected) == (121, 1)


def test_windows_of_a_long_text_have_a_log_probability_where_the_probability_is_zero():
    """log(mean(exp(x))) is minus infinity where exp(x) is 0 in float32."""
    results = [np.array([-200, 0], np.float32), np.array([-202, 0], np.float32)]
    config = roberta_flax.RobertaConfig(heads=(HeadConfig("h", 2, 4),))

    class Model:
        pass

    Model.config = config
    merged = Classify("h").result("", [None, None], results, Model)
    assert merged == pytest.approx([np.logaddexp(-200, -202) - np.log(2), 0], rel=1e-6)
    assert merged.dtype == np.float32


def test_labels_of_a_file_are_not_judged_where_scores_are_nan(broken, tmp_path):
    gold = tmp_path / "gold.tsv"
    gold.write_text("sentence\tlabel\na dog\ta\na cat\tb\n")
    columns = Columns(label=("label",))
    with pytest.raises(InputError, match=rf"gold.tsv, line 2: .*{REFUSED}"):
        evaluate(broken, gold, "sentence", task="custom", columns=columns)
    words = tmp_path / "words.jsonl"
    words.write_text(json.dumps({"words": ["a", "dog"], "tags": ["0", "1"]}) + "\n")
    with pytest.raises(InputError, match=REFUSED):
        evaluate(broken, words, "tags")
    choices = tmp_path / "choices.jsonl"
    choices.write_text(json.dumps({"text": "a", "choices": ["b", "c"], "label": 0}) + "\n")
    with pytest.raises(InputError, match=REFUSED):
        evaluate(broken, choices, "choice")


def test_no_perplexity_is_made_of_nan_or_of_nothing(broken, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("a dog runs over a field of grass\n" * 20)
    corpus.write([text], tmp_path / "tokens", broken.tokenizer)
    samples = Samples(tokens_per_sample=64)
    with pytest.raises(InputError, match=REFUSED):
        perplexity(broken, tmp_path / "tokens", samples, batch_size=2)
    with pytest.raises(InputError, match="no token was masked, so there is no loss; raise mask_prob"):
        perplexity(broken, tmp_path / "tokens", replace(samples, mask_prob=1e-9), batch_size=2)


# at load


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_a_model_that_is_finite_loads_without_a_word(one_layer, caplog):
    roberta_flax.load(one_layer)
    roberta_flax.load(one_layer, dtype="bfloat16", param_dtype="bfloat16")
    roberta_flax.load(one_layer, dtype="float16")
    roberta_flax.load(one_layer, quantize="int8")
    assert warnings(caplog) == []


@pytest.mark.parametrize(("value", "counted"), [(np.nan, "1 NaN"), (-np.inf, "1 infinite")])
def test_loading_names_the_parameters_that_are_not_finite_once(one_layer, tmp_path, caplog, value, counted):
    with_value(roberta_flax.load(one_layer), value).save(tmp_path / "broken")
    caplog.clear()
    for options in ({}, {"dtype": jnp.bfloat16}, {"quantize": "int8"}):
        roberta_flax.load(tmp_path / "broken", **options)
        (warning,) = warnings(caplog)
        assert f"intermediate.kernel ({counted})" in warning
        caplog.clear()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_the_largest_magnitude_is_that_of_numpy(dtype, x64):
    random = np.random.default_rng(0)
    for values in (
        random.normal(size=(7, 5)), -np.abs(random.normal(size=9)), np.zeros((0, 3)), np.zeros(2), -np.zeros(2),
        [1.0, -np.inf], [-2.0, np.inf], [3.0, -1.0],
    ):  # fmt: skip
        array = jnp.asarray(values, dtype)
        assert hub._largest(array) == np.abs(np.asarray(array, np.float64)).max(initial=0)
    for nan in (np.nan, -np.nan):
        assert np.isnan(hub._largest(jnp.asarray([np.inf, nan, -np.inf], dtype)))


def test_loading_names_the_parameters_that_a_cast_makes_infinite(overflowing, caplog):
    roberta_flax.load(overflowing)
    assert warnings(caplog) == []
    for options in ({"dtype": "float16"}, {"param_dtype": "float16"}):
        caplog.clear()
        roberta = roberta_flax.load(overflowing, **options)
        (warning,) = warnings(caplog)
        assert "intermediate.kernel (1 too large for the dtype)" in warning
        with pytest.raises(InputError, match=REFUSED):
            roberta.predict_labels("mnli", roberta.encode("a dog"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ("predict", "--text", "a man", "--text", "a dog", "--head", "mnli"),
        ("mnli", "a man", "a dog"),
        ("fill-mask", "a <mask>"),
        ("features", "a dog", "-o", "f.npy"),
        ("disambiguate", "The trophy and [it].", "--candidate", "trophy"),
    ],
    ids=lambda command: command[0],
)
def test_a_command_ends_with_status_1_and_prints_no_answer(run, overflowing, monkeypatch, tmp_path, command):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(*command, "-m", overflowing, "--dtype", "float16")
    assert (status, out) == (1, "")
    assert REFUSED in err.splitlines()[-1]
    assert not Path("f.npy").exists()
