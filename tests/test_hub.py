"""Roberta and load(): modes, heads, batches, the cache, and what they say of bad input."""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import roberta_flax
from roberta_flax import CheckpointError, DownloadError, InputError
from roberta_flax.checkpoint import download
from roberta_flax.nn.model import dropout
from roberta_flax.text import words
from roberta_flax.text.batching import collate_tokens
from tests.conftest import TINY
from tests.params import random_params

TEXTS = ("A man is playing a guitar.", "Nobody sleeps.")


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([0] * 513, "513 tokens exceed the model's maximum length of 512"),
        ([0, 581, 2], "token id 581 is outside the vocabulary of 581"),
        ([0, -1, 2], "token id -1 is outside"),
        ([0.0, 2.0], "must be integers, got float64"),
        ([True, False], "must be integers, got bool"),
        ([], "no token ids"),
        ([[]], "no token ids"),
        (np.zeros((0, 5), np.int32), "no token ids"),
        (np.zeros((1, 1, 5), np.int32), r"got shape \(1, 1, 5\)"),
        ([[0, 2], [0, 5, 2]], "collate_tokens"),
        (None, "one sequence or rows"),
    ],
)
def test_token_ids_that_the_model_cannot_take_are_refused_in_one_line(shallow, tokens, message):
    for use in (shallow.extract_features, lambda t: shallow.predict("mnli", t)):
        with pytest.raises(InputError, match=message) as error:
            use(tokens)
        assert "\n" not in str(error.value)


def test_lists_numpy_and_jax_arrays_of_one_and_two_axes_are_taken(shallow):
    tokens = shallow.encode(TEXTS[0])
    expected = np.asarray(shallow.extract_features(tokens))
    assert expected.shape == (1, len(tokens), 64)
    for same in (
        tokens.tolist(),
        [tokens.tolist()],
        tokens[None],
        jnp.asarray(tokens),
        tokens.astype(np.uint16),
    ):
        assert (np.asarray(shallow.extract_features(same)) == expected).all()


def test_longest_sequence_is_512_tokens(shallow):
    assert shallow.extract_features([0] * 512).shape == (1, 512, 64)
    assert shallow.max_positions == 512


def test_all_hidden_states_end_with_the_features(shallow):
    for length in (1, 16, 17, 300):
        states = shallow.extract_features([5] * length, return_all_hiddens=True)
        assert len(states) == 1 + shallow.config.num_layers
        assert (states[-1] == shallow.extract_features([5] * length)).all()


def test_words_of_any_tokenizer_have_features_and_need_no_spacy(shallow, monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    monkeypatch.setitem(sys.modules, "spacy.lang.en", None)
    words.english.cache_clear()
    text = "A man is playing a guitar."
    found = shallow.word_features(text, [(0, 1), (2, 8), (9, 26)])  # two words as one, and the rest
    assert found.words == ("<s>", "A", "man is", "playing a guitar.", "</s>")
    tokens = np.asarray(shallow.extract_features(shallow.encode(text)))[0]
    pieces = [shallow.tokenizer.token_text(i) for i in shallow.encode(text).tolist()[1:-1]]
    ends = np.cumsum([len(piece) for piece in pieces])
    borders = [0, *(int(np.searchsorted(ends, end)) + 1 for end in (1, 8, 26))]
    expected = [
        tokens[0],
        *(tokens[1:-1][a:b].sum(axis=0) for a, b in zip(borders, borders[1:], strict=False)),
        tokens[-1],
    ]
    np.testing.assert_allclose(found.features, expected, atol=1e-5)
    assert isinstance(found.features, jax.Array)
    assert shallow.word_features(text, [(0, 1)], return_all_hiddens=True).features.shape == (2, 3, 64)
    for use in (shallow.word_features, shallow.extract_features_aligned_to_words):
        with pytest.raises(InputError, match=r"needs spacy.lang.en .*pip install 'roberta-flax\[words\]'") as error:
            use(text)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a b " * 400, "exceed the model's maximum length of 512"),
        (None, "as str, got NoneType"),
        (["a"], "as str, got list"),
        ("\ud800", "lone surrogate"),
    ],
)
def test_text_whose_words_have_no_features_is_refused_in_one_line(shallow, text, message):
    for use in (shallow.word_features, shallow.extract_features_aligned_to_words):
        with pytest.raises(InputError, match=message) as error:
            use(text)
        assert "\n" not in str(error.value)


def test_words_features_have_the_models_dtype_and_a_docs_vectors_what_numpy_computes_with(one_layer):
    shallow = roberta_flax.load(one_layer, dtype="bfloat16").train(seed=1)
    first, second = (shallow.word_features("hello there").features for _ in range(2))
    assert first.dtype == jnp.bfloat16
    assert (first != second).any()  # dropout
    doc = shallow.eval().extract_features_aligned_to_words("hello there")
    assert [str(word) for word in doc] == ["<s>", "hello", "there", "</s>"]
    assert doc[1].vector.dtype == np.float32
    with pytest.warns(UserWarning, match="W007"):  # spaCy's own vectors are none
        similarity = doc[1].similarity(doc[2])
    cosine = np.dot(*(word.vector / np.linalg.norm(word.vector) for word in doc[1:3]))
    assert similarity == pytest.approx(cosine, abs=1e-6)


def test_unknown_head_is_refused_with_the_known_ones(shallow):
    with pytest.raises(InputError, match=r"no head called 'rte'; this model has: 'mnli'"):
        shallow.predict("rte", [0, 2])


@pytest.mark.slow
def test_a_registered_head_predicts_and_leaves_the_others_alone(shallow):
    tokens = roberta_flax.collate_tokens([shallow.encode(text) for text in TEXTS])
    before = np.asarray(shallow.predict("mnli", tokens))
    shallow.register_classification_head("new_task", num_classes=5, inner_dim=7)
    log_probabilities = np.asarray(shallow.predict("new_task", tokens))
    assert log_probabilities.shape == (2, 5)
    np.testing.assert_allclose(np.exp(log_probabilities).sum(1), 1, atol=1e-6)
    assert shallow.params["heads"]["new_task"]["dense"]["kernel"].shape == (64, 7)
    assert (np.asarray(shallow.predict("mnli", tokens)) == before).all()
    shallow.register_classification_head("new_task", num_classes=2)
    assert shallow.predict("new_task", tokens).shape == (2, 2)


@pytest.mark.parametrize(("name", "classes"), [("a.b", 3), ("", 3), ("x", 0), ("x", 2.0)])
def test_a_head_that_cannot_be_is_refused(shallow, name, classes):
    with pytest.raises(InputError):
        shallow.register_classification_head(name, classes)


def test_train_mode_drops_out_by_its_seed_and_eval_mode_does_not(shallow):
    tokens = shallow.encode(*TEXTS)
    evaluated = np.asarray(shallow.predict("mnli", tokens))
    assert not shallow.training
    first = [np.asarray(shallow.train(seed=5).predict("mnli", tokens))]
    first.append(np.asarray(shallow.predict("mnli", tokens)))
    assert shallow.training
    shallow.train(seed=5)
    again = [np.asarray(shallow.predict("mnli", tokens)) for _ in range(2)]
    assert (np.stack(first) == np.stack(again)).all()
    assert np.abs(first[0] - first[1]).max() > 0
    assert np.abs(first[0] - evaluated).max() > 0
    assert (np.asarray(shallow.eval().predict("mnli", tokens)) == evaluated).all()
    assert (np.asarray(shallow.train().train(False).predict("mnli", tokens)) == evaluated).all()


def test_fill_mask_never_uses_dropout(shallow):
    expected = shallow.fill_mask("a <mask> b")
    assert shallow.train().fill_mask("a <mask> b") == expected


def test_dropout_keeps_its_share_and_the_mean():
    dropped = np.asarray(dropout(jnp.ones(100_000), 0.3, jax.random.key(0)))
    # a binomial share's deviation here is 0.0014; five of them
    assert (dropped == 0).mean() == pytest.approx(0.3, abs=0.0073)
    assert np.unique(dropped) == pytest.approx([0, 1 / 0.7])


@pytest.mark.slow
@pytest.mark.parametrize("rate", ["dropout", "attention_dropout", "activation_dropout", "pooler_dropout"])
def test_each_dropout_acts_in_train_mode_and_where_it_belongs(shallow, rate):
    none = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout", "pooler_dropout"), 0.0)
    tokens = shallow.encode(*TEXTS)
    shallow.config = dataclasses.replace(shallow.config, **none)
    evaluated = [np.asarray(shallow.extract_features(tokens)), np.asarray(shallow.predict("mnli", tokens))]
    shallow.train()
    np.testing.assert_allclose(shallow.predict("mnli", tokens), evaluated[1], atol=1e-6)  # all rates are zero
    shallow.config = dataclasses.replace(shallow.config, **{rate: 0.5})
    features, predicted = np.asarray(shallow.extract_features(tokens)), np.asarray(shallow.predict("mnli", tokens))
    assert np.abs(predicted - evaluated[1]).max() > 1e-3
    # the pooler's is in the head alone; the other three change the features
    assert (np.abs(features - evaluated[0]).max() > 1e-3) == (rate != "pooler_dropout")


@pytest.mark.slow
def test_layer_drop_skips_layers_at_its_rate():
    config = roberta_flax.RobertaConfig(
        vocab_size=30, num_layers=4, hidden_size=8, num_heads=1, intermediate_size=4, max_positions=8,
        dropout=0.0, attention_dropout=0.0, layer_drop=0.25,
    )  # fmt: skip
    params, tokens = random_params(config), np.array([[0, 7, 2]])

    def skipped(**key) -> int:
        states = [*map(np.asarray, roberta_flax.forward.hidden_states(params, tokens, config=config, **key))]
        return sum(bool((a == b).all()) for a, b in zip(states, states[1:], strict=False))

    share = np.mean([skipped(key=jax.random.key(i)) / 4 for i in range(120)])
    assert share == pytest.approx(0.25, abs=0.08)  # a share of 480 has a deviation of 0.02; four of them
    assert skipped() == 0


def test_collate_pads_on_the_right(shallow):
    batch = roberta_flax.collate_tokens([[0, 5, 2], np.array([0, 2])])
    assert batch.dtype == np.int32
    assert batch.tolist() == [[0, 5, 2], [0, 2, 1]]
    for wrong in ([], [[0.5]], [[[1]]]):
        with pytest.raises(InputError):
            roberta_flax.collate_tokens(wrong)


@pytest.mark.parametrize(
    ("text", "topk", "message"),
    [
        ("no mask", 5, "exactly one <mask>"), ("<mask> <mask>", 5, "exactly one"), (None, 5, "exactly one"),
        ("a <mask>", 0, "topk"), ("a <mask>", 582, "topk"), ("a <mask>", 2.0, "topk"),
        ("x " * 600 + "<mask>", 5, "exceed the model's maximum length of 512"),
    ],
)  # fmt: skip
def test_fill_mask_says_what_is_wrong(shallow, text, topk, message):
    with pytest.raises(InputError, match=message):
        shallow.fill_mask(text, topk)


@pytest.mark.parametrize(
    "wrong",
    [
        {"dtype": "int8"},
        {"dtype": "float99"},
        {"precision": "best"},
        {"dtype": "float64"},
        {"param_dtype": "int32"},
        {"attention": "flash"},
        {"quantize": "int4"},
    ],
)
def test_a_dtype_or_precision_that_cannot_be_is_refused(tiny_directory, wrong):
    with pytest.raises(InputError):
        roberta_flax.load(tiny_directory, **wrong)


@pytest.mark.parametrize("form", ["archive", "directory", "checkpoint", "converted"])
def test_every_form_of_a_model_loads_and_answers_alike(form, tiny_source, tiny_directory, tiny, tmp_path):
    source = {
        "archive": TINY,
        "directory": tiny_source,
        "checkpoint": tiny_source / "model.pt",
        "converted": tiny_directory,
    }
    loaded = roberta_flax.load(str(source[form]), cache_dir=tmp_path)
    assert (loaded.predict("mnli", [0, 9, 2]) == tiny.predict("mnli", [0, 9, 2])).all()


def test_a_local_model_is_converted_once_and_again_when_it_changes(tiny_source, tmp_path, monkeypatch):
    from roberta_flax import convert

    calls = []
    real = convert.convert
    monkeypatch.setattr(convert, "convert", lambda *a, **k: (calls.append(a), real(*a, **k))[1])
    source = tmp_path / "source"
    shutil.copytree(tiny_source, source)
    for _ in range(3):
        roberta_flax.load(source, cache_dir=tmp_path / "cache")
    assert len(calls) == 1
    (source / "dict.txt").write_text((source / "dict.txt").read_text().replace(" ", " 1", 1))
    roberta_flax.load(source, cache_dir=tmp_path / "cache")
    assert len(calls) == 2


def test_a_converted_directory_needs_nothing_else(tiny_directory, tmp_path, tiny):
    moved = tmp_path / "elsewhere"
    shutil.copytree(tiny_directory, moved)
    loaded = roberta_flax.load(moved, cache_dir=tmp_path / "none")
    assert (loaded.predict("mnli", [0, 9, 2]) == tiny.predict("mnli", [0, 9, 2])).all()
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_a_model_that_is_saved_loads_as_it_is(shallow, tmp_path):
    shallow.params = jax.device_put(jax.tree.map(lambda x: np.asarray(x) + np.float32(0.01), shallow.params))
    shallow.register_classification_head("new", num_classes=2, inner_dim=5, seed=0)
    shallow.save(tmp_path / "saved")
    loaded = roberta_flax.load(tmp_path / "saved")
    assert loaded.config == shallow.config
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded.params, shallow.params))
    pair = shallow.encode("A man is sleeping.", "Nobody is awake, naïve 🙂")
    assert loaded.encode("A man is sleeping.", "Nobody is awake, naïve 🙂").tolist() == pair.tolist()
    assert (loaded.predict("new", pair) == shallow.predict("new", pair)).all()
    loaded.save(tmp_path / "half", dtype=jnp.bfloat16)
    size = (tmp_path / "saved" / "model.safetensors").stat().st_size
    assert (tmp_path / "half" / "model.safetensors").stat().st_size < 0.55 * size
    again = roberta_flax.load(tmp_path / "half", param_dtype="bfloat16")
    halved = jax.tree.map(lambda x: np.asarray(x).astype(jnp.bfloat16), shallow.params)
    assert jax.tree.all(jax.tree.map(np.array_equal, again.params, halved))


def test_saving_overwrites_nothing_and_says_what_does_not_fit(shallow, tmp_path, caplog):
    shallow.save(tmp_path / "saved")
    with pytest.raises(CheckpointError, match="exists already"):
        shallow.save(tmp_path / "saved")
    with pytest.raises(InputError, match="parameters are stored in float64, float32, float16, bfloat16; got 'int8'"):
        shallow.save(tmp_path / "other", dtype="int8")
    shallow.params["lm_head"]["bias"] = shallow.params["lm_head"]["bias"].at[:2].set(jnp.nan)
    shallow.save(tmp_path / "with-nan")
    assert caplog.messages == [f"{tmp_path / 'with-nan'}: lm_head.bias has values that are not finite: 2 NaN"]
    del shallow.params["lm_head"]["bias"]
    with pytest.raises(InputError, match=r"do not fit the configuration: missing: lm_head.bias \[581\]"):
        shallow.save(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_name_that_is_neither_a_file_nor_released_is_refused_with_those_that_are():
    with pytest.raises(
        CheckpointError, match=r"neither a file or directory, nor hf:org/name, nor a released model \(roberta.base"
    ):
        roberta_flax.load("roberta.huge")


@pytest.mark.parametrize(
    ("given", "close"),
    [
        ("robreta.base", "roberta.base"),
        ("roberta.lrage.mnli", "roberta.large.mnli"),
        ("XLM-Roberta-bse", "xlm-roberta-base"),
    ],
)
def test_a_misspelled_name_is_answered_with_the_one_that_is_meant(given, close):
    with pytest.raises(CheckpointError, match=re.escape(f"did you mean {close!r}?")):
        roberta_flax.load(given)


@pytest.mark.parametrize(
    ("given", "fetched"),
    [
        ("roberta-base", "hf:FacebookAI/roberta-base"),
        ("FacebookAI/roberta-base", "hf:FacebookAI/roberta-base"),
        ("org/name@v1", "hf:org/name@v1"),
        ("hf:org/name", "hf:org/name"),
    ],
)
def test_a_name_that_is_only_one_on_the_hub_needs_no_prefix(given, fetched, monkeypatch, tmp_path):
    def fetch(name: str, cache_dir: object = None) -> Path:
        raise DownloadError(f"cannot fetch {name}: no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("roberta_flax.convert.huggingface.fetch", fetch)
    with pytest.raises(DownloadError, match=f"cannot fetch {fetched}: no network") as error:
        roberta_flax.load(given, cache_dir=tmp_path)
    assert (f"{given!r} is no file or directory" in str(error.value)) == (given != fetched)


def test_a_path_below_a_directory_that_exists_is_no_name_on_the_hub(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    with pytest.raises(CheckpointError, match="'models/mnli' is neither a file or directory"):
        roberta_flax.load("models/mnli")


def test_texts_stand_for_their_token_ids(shallow):
    one = shallow.extract_features("A man is sleeping.")
    np.testing.assert_array_equal(one, shallow.extract_features(shallow.encode("A man is sleeping.")))
    texts = ["A man is sleeping.", "Nobody is awake at night."]
    rows = collate_tokens([shallow.encode(text) for text in texts])
    np.testing.assert_array_equal(shallow.predict("mnli", texts), shallow.predict("mnli", rows))
    pairs = [("A man is sleeping.", "Nobody is awake."), ("A dog runs.", "A dog is running.")]
    rows = collate_tokens([shallow.encode(*pair) for pair in pairs])
    np.testing.assert_array_equal(shallow.predict("mnli", pairs), shallow.predict("mnli", rows))
    filled = shallow.fill_mask("A man is <mask>.", topk=2)
    assert shallow.fill_mask("A man is <mask>.", top_k=2) == filled
    assert shallow.fill_mask(["A man is <mask>."], 2) == [filled]


def test_a_misspelled_head_or_attribute_is_answered_with_the_one_that_is_meant(shallow):
    with pytest.raises(InputError, match=r"did you mean 'mnli'\?"):
        shallow.predict("mlni", [0, 2])
    with pytest.raises(AttributeError, match=r"no attribute 'extract_feature'; did you mean 'extract_features'\?"):
        shallow.extract_feature("a")
    with pytest.raises(InputError, match=r"did you mean 'text-classification'\?"):
        roberta_flax.pipeline("text_clasification", shallow)
    with pytest.raises(InputError, match=r"did you mean 'bfloat16'\?"):
        roberta_flax.Numerics("bflot16")


def test_attributes_of_fairseqs_models_are_there_or_say_what_is_in_their_place(shallow):
    assert shallow.max_positions == shallow.config.max_positions
    for name, ours in (
        ("model", "roberta_flax.forward"),
        ("task", "roberta.tokenizer"),
        ("bpe", "encode_text"),
        ("cuda", "JAX_PLATFORMS"),
    ):
        assert not hasattr(shallow, name)
        with pytest.raises(AttributeError, match=ours):
            getattr(shallow, name)
    copied = pickle.loads(pickle.dumps(shallow))  # noqa: S301 -- our own bytes
    assert copied.config == shallow.config


@pytest.mark.parametrize(
    ("short", "dtype"), [("bf16", "bfloat16"), ("FP16", "float16"), ("fp32", "float32"), ("torch.bfloat16", "bfloat16")]
)
def test_dtypes_are_taken_by_their_short_names(short, dtype):
    assert roberta_flax.Numerics(short) == roberta_flax.Numerics(dtype)


def test_objects_show_what_they_are(tiny_directory):
    roberta = roberta_flax.load(tiny_directory)
    shown = repr(roberta)
    size = sum(leaf.size for leaf in jax.tree.leaves(roberta.params))
    for part in (
        str(tiny_directory)[:100],
        f"{roberta.config.num_layers} layers of {roberta.config.hidden_size}",
        "mnli (3)",
        f"{size / 1e6:.1f} M parameters in float32",
        "computes in float32 on cpu",
    ):
        assert part in shown
    assert "training" in repr(roberta.train())
    roberta.eval()
    assert repr(roberta.tokenizer) == f"<Tokenizer: FairseqTokenizer, {roberta.config.vocab_size} ids>"
    for text, parts in (
        (
            repr(roberta_flax.Predictor(roberta, roberta_flax.Classify("mnli"))),
            ("Classify(", "on_long truncate", "cpu"),
        ),
        (
            repr(roberta_flax.SentenceEncoder(roberta)),
            (f"vectors of {roberta.config.hidden_size}", "similarity cosine"),
        ),
        (repr(roberta_flax.CrossEncoder(roberta)), ("head 'mnli'", "num_labels 3")),
    ):
        for part in (*parts, shown):
            assert part in text


def test_without_network_a_released_name_says_which_file_to_put_where(tmp_path):
    with pytest.raises(DownloadError) as error:
        roberta_flax.load("roberta.large.mnli", cache_dir=tmp_path)
    message = str(error.value)
    assert "models/roberta.large.mnli.tar.gz" in message
    assert str(tmp_path / "downloads" / "roberta.large.mnli.tar.gz") in message
    assert "\n" not in message


def test_an_archive_put_into_the_cache_by_hand_is_loaded_by_its_released_name(tmp_path, tiny):
    (tmp_path / "downloads").mkdir()
    shutil.copy(TINY, tmp_path / "downloads" / "roberta.large.mnli.tar.gz")
    loaded = roberta_flax.load("roberta.large.mnli", cache_dir=tmp_path)
    assert (loaded.predict("mnli", [0, 9, 2]) == tiny.predict("mnli", [0, 9, 2])).all()
    shutil.rmtree(tmp_path / "downloads")
    roberta_flax.load("roberta.large.mnli", cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "archive", "url"),
    [
        ("xlmr.base", "xlmr.base", "/models/xlmr.base.tar.gz"),
        ("xlmr.xl", "xlmr.xl", "/models/xlmr/xlmr.xl.tar.gz"),
        ("camembert", "camembert-base", "/models/camembert-base.tar.gz"),
        ("camembert-base-oscar-4gb", "camembert-base-oscar-4gb", "/models/camembert-base-oscar-4gb.tar.gz"),
        ("gottbert-base", "gottbert-base", "https://dl.gottbert.de/fairseq/models/gottbert-base.tar.gz"),
    ],
)
def test_the_familys_released_names_are_fairseqs(tmp_path, tiny, name, archive, url, monkeypatch):
    monkeypatch.delenv(download.MIRROR_VARIABLE)
    assert download.model_url(name).removeprefix(download.BASE_URL) == url
    (tmp_path / "downloads").mkdir()
    shutil.copy(TINY, tmp_path / "downloads" / f"{archive}.tar.gz")
    loaded = roberta_flax.load(name, cache_dir=tmp_path)
    assert (loaded.predict("mnli", [0, 9, 2]) == tiny.predict("mnli", [0, 9, 2])).all()


def test_sha256_is_checked_at_the_first_load_and_after(tmp_path):
    import hashlib

    right = hashlib.sha256(TINY.read_bytes()).hexdigest()
    for _ in range(2):
        with pytest.raises(CheckpointError, match=f"sha256 {right}, expected 00"):
            roberta_flax.load(TINY, cache_dir=tmp_path, sha256="00")
        roberta_flax.load(TINY, cache_dir=tmp_path, sha256=right.upper())


def test_what_a_killed_conversion_left_in_the_cache_is_removed(tmp_path):
    roberta_flax.load(TINY, cache_dir=tmp_path)
    (directory,) = (path for path in (tmp_path / "converted").iterdir() if path.is_dir())
    directory.rename(directory.with_name(f".{directory.name}-abc.partial"))
    other = directory.with_name(f".{directory.name}.mnli-abc.partial")
    other.mkdir()
    roberta_flax.load(TINY, cache_dir=tmp_path)
    assert sorted(path for path in (tmp_path / "converted").iterdir() if path.is_dir()) == sorted([directory, other])


def _load_in_another_process(cache: Path) -> float:
    return float(roberta_flax.load(TINY, cache_dir=cache).predict("mnli", [0, 9, 2])[0, 0])


@pytest.mark.slow
def test_processes_that_load_at_once_do_not_disturb_each_other(forked, tmp_path):
    with forked.Pool(3) as pool:
        answers = pool.map(_load_in_another_process, [tmp_path] * 3)
    assert len(set(answers)) == 1
    assert [path.name for path in (tmp_path / "converted").iterdir() if path.is_dir()] != []
    assert not list((tmp_path / "converted").glob("*.partial"))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "conversion.json", "dict.txt", "vocab.bpe"])
def test_a_converted_directory_with_a_file_missing_or_cut_is_refused(name, tiny_directory, tmp_path):
    for number, change in enumerate(
        (lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:90]))
    ):
        copy = tmp_path / str(number)
        shutil.copytree(tiny_directory, copy)
        change(copy / name)
        with pytest.raises(CheckpointError) as error:
            roberta_flax.load(copy)
        assert "\n" not in str(error.value)


def test_parameters_that_do_not_fit_the_configuration_are_all_listed(tiny_directory, tmp_path):
    shutil.copytree(tiny_directory, tmp_path / "m")
    config = json.loads((tmp_path / "m/config.json").read_text())
    config["num_layers"] = 1
    config["intermediate_size"] = 100
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as error:
        roberta_flax.load(tmp_path / "m")
    assert "unexpected: layers.1.attention.key.bias" in str(error.value)
    assert "wrong shape: layers.0.feed_forward.intermediate.kernel is [64, 128], expected [64, 100]" in str(error.value)


def test_importing_and_loading_import_no_torch(tiny_directory):
    program = (
        "import sys, roberta_flax\n"
        "imported = {name.partition('.')[0] for name in sys.modules}\n"
        f"roberta_flax.load({str(tiny_directory)!r}).predict('mnli', [0, 2])\n"
        "assert not {'torch', 'transformers', 'tensorflow'} & set(sys.modules), 'a framework was imported'\n"
        "assert 'typer' not in imported, imported\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.network
def test_the_released_mnli_model_knows_its_readme_examples():
    roberta = roberta_flax.load("roberta.large.mnli")
    tokens = roberta.encode("Roberta is a heavily optimized version of BERT.", "Roberta is not very optimized.")
    assert roberta.predict("mnli", tokens).argmax() == 0  # contradiction
    tokens = roberta.encode("Roberta is a heavily optimized version of BERT.", "Roberta is based on BERT.")
    assert roberta.predict("mnli", tokens).argmax() == 2  # entailment
