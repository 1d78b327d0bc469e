"""Repositories of sentence-transformers beside sentence-transformers 5.1 itself: sentence encoders and cross-encoders."""

from __future__ import annotations

import itertools
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import roberta_flax
from roberta_flax import CheckpointError, CrossEncoder, InputError, SentenceEncoder
from roberta_flax.convert import convert, export
from roberta_flax.nn import forward, sentence
from roberta_flax.nn.sentence import SpladePooling, sentence_vectors
from roberta_flax.tasks.sentence_scores import kept_lengths
from tests.conftest import skip_or_fail
from tests.marks import slow_but

if find_spec("sentence_transformers") is None:
    skip_or_fail("sentence-transformers, the reference, is not installed; the README's test command installs it")

import sentence_transformers
import torch

from references.sentence_transformers import HIDDEN_SIZE, TEXTS, body, edit, repository, sparse_repository

TOLERANCES = {"float32": 1e-5, "float64": 1e-10}
ROUNDING = 1e-6  # the same weights in torch twice: its sums depend on where an array begins in memory
each_dtype = pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "float64"])


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    return body(tmp_path_factory.mktemp("body") / "network")


@contextmanager
def precision(dtype: str) -> Iterator[dict[str, str]]:
    """The options of a model that computes in this dtype."""
    with jax.enable_x64(dtype == "float64"):
        yield {"dtype": dtype, "param_dtype": dtype}


def modules_of_version_6(path: Path) -> None:
    """Rewrites the files of version 5.1 as version 6.2 writes them, but for the version: tests/newest reads its own."""
    classes = {
        "Transformer": "base.modules.transformer", "Pooling": "sentence_transformer.modules.pooling",
        "Dense": "base.modules.dense", "Normalize": "base.modules.normalize",
    }  # fmt: skip
    entries = json.loads((path / "modules.json").read_text())
    for entry in entries:
        kind = entry["type"].rpartition(".")[2]
        entry["type"] = f"sentence_transformers.{classes[kind]}.{kind}"
        settings = path / entry["path"] / "config.json"
        if kind == "Pooling":
            old = json.loads(settings.read_text())
            names = {"cls_token": "cls", "max_tokens": "max", "mean_tokens": "mean", "lasttoken": "lasttoken"}
            modes = [mode for key, mode in names.items() if old[f"pooling_mode_{key}"]]
            new = {"embedding_dimension": old["word_embedding_dimension"], "include_prompt": old["include_prompt"]}
            settings.write_text(json.dumps({**new, "pooling_mode": modes[0] if len(modes) == 1 else modes}))
        elif kind == "Dense":
            edit(settings, module_input_name="sentence_embedding", module_output_name="sentence_embedding")
        elif kind == "Normalize":
            names = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}
            settings.write_text(json.dumps(names))
    (path / "modules.json").write_text(json.dumps(entries))
    old = json.loads((path / "sentence_bert_config.json").read_text())
    text = {"method": "forward", "method_output_name": "last_hidden_state"}
    new = {"transformer_task": "feature-extraction", "modality_config": {"text": text}}
    (path / "sentence_bert_config.json").write_text(json.dumps({**new, "module_output_name": "token_embeddings"}))
    edit(path / "tokenizer_config.json", model_max_length=old["max_seq_length"])


def modules_of_version_2(path: Path) -> None:
    """Takes out what version 2 did not write yet."""
    edit(
        path / "1_Pooling" / "config.json",
        pooling_mode_weightedmean_tokens=None, pooling_mode_lasttoken=None, include_prompt=None,
    )  # fmt: skip
    (path / "config_sentence_transformers.json").write_text(
        json.dumps({"__version__": {"sentence_transformers": "2.0.0"}})
    )


def modules_of_version_0(path: Path) -> None:
    """Puts the Transformer into a folder of its own."""
    folder = path / "0_Transformer"
    folder.mkdir()
    kept = ("modules.json", "config_sentence_transformers.json")
    for file in [file for file in path.iterdir() if file.is_file() and file.name not in kept]:
        file.rename(folder / file.name)
    (folder / "sentence_bert_config.json").rename(folder / "sentence_roberta_config.json")
    entries = json.loads((path / "modules.json").read_text())
    entries[0]["path"] = "0_Transformer"
    (path / "modules.json").write_text(json.dumps(entries))
    (path / "config_sentence_transformers.json").rename(path / "config.json")


def drop_modules(path: Path) -> None:
    (path / "modules.json").unlink()


@dataclass(frozen=True)
class Layout:
    """A repository, and how it is asked for vectors.

    Attributes:
      modules: those after the Transformer.
      rewrite: changes the files after 5.1 has read them.
      options: arguments of SentenceTransformer and of SentenceEncoder.
      encode: arguments of encode().
      more: arguments of references.sentence_transformers.repository.
    """

    modules: Callable[[Any], Sequence[Any]]
    rewrite: Callable[[Path], None] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    encode: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)


def pooled(*modes: str, **options: Any) -> Callable[[Any], list[Any]]:
    names = {"cls": "cls_token", "max": "max_tokens", "mean": "mean_tokens", "lasttoken": "lasttoken"}
    names |= {"mean_sqrt_len_tokens": "mean_sqrt_len_tokens", "weightedmean": "weightedmean_tokens"}
    flags = {f"pooling_mode_{name}": mode in modes for mode, name in names.items()}
    return lambda models: [models.Pooling(HIDDEN_SIZE, **flags, **options)]


def mean_and(make: Callable[[Any], list[Any]]) -> Callable[[Any], list[Any]]:
    return lambda models: [models.Pooling(HIDDEN_SIZE, "mean"), *make(models)]


ALL_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
PROMPTS = {"query": "query: ", "passage": "passage: "}
DENSE = mean_and(lambda m: [m.Dense(HIDDEN_SIZE, 24, activation_function=torch.nn.Tanh()), m.Normalize()])
LAYOUTS = {
    **{mode: Layout(pooled(mode)) for mode in ALL_MODES},
    "three poolings": Layout(pooled("cls", "max", "lasttoken")),
    "six poolings": Layout(pooled(*ALL_MODES)),
    "cls, normalized": Layout(lambda m: [m.Pooling(HIDDEN_SIZE, "cls"), m.Normalize()]),
    "mean, normalized": Layout(mean_and(lambda m: [m.Normalize()])),
    "Dense with tanh": Layout(DENSE),
    "Dense without bias and activation": Layout(
        mean_and(lambda m: [m.Dense(HIDDEN_SIZE, 40, bias=False, activation_function=torch.nn.Identity())])
    ),
    "two Dense": Layout(
        mean_and(
            lambda m: [
                m.Dense(HIDDEN_SIZE, 24, activation_function=torch.nn.GELU()),
                m.Dense(24, 16, activation_function=torch.nn.LeakyReLU()),
            ]
        )
    ),
    "Dense in pytorch_model.bin": Layout(DENSE, more={"safe_serialization": False}),
    "LayerNorm": Layout(mean_and(lambda m: [m.LayerNorm(HIDDEN_SIZE)])),
    "Dropout": Layout(mean_and(lambda m: [m.Dropout(0.5), m.Normalize()])),
    "max_seq_length": Layout(pooled("mean"), more={"transformer": {"max_seq_length": 9}}),
    "the tokenizer's maximum length": Layout(
        pooled("mean"), more={"transformer": {"tokenizer_args": {"model_max_length": 11}}}
    ),
    "do_lower_case": Layout(pooled("mean"), more={"transformer": {"do_lower_case": True}}),
    "a default prompt": Layout(pooled("mean"), more={"prompts": PROMPTS, "default_prompt_name": "passage"}),
    "a named prompt": Layout(pooled("mean"), more={"prompts": PROMPTS}, encode={"prompt_name": "query"}),
    "a prompt that is not pooled": Layout(
        pooled("max", "mean", "weightedmean", "lasttoken", include_prompt=False), encode={"prompt": "Represent this: "}
    ),
    "a prompt of the first tokens, which is not pooled": Layout(
        pooled("mean_sqrt_len_tokens", include_prompt=False),
        encode={"prompt": "A man"},
        more={"transformer": {"max_seq_length": 9}},
    ),
    "truncated vectors, normalized": Layout(
        mean_and(lambda m: [m.Normalize()]), options={"truncate_dim": 7}, encode={"normalize_embeddings": True}
    ),
    "truncated in one call": Layout(pooled("cls"), encode={"truncate_dim": 9}),
    "version 6": Layout(DENSE, modules_of_version_6, more={"transformer": {"max_seq_length": 9}}),
    "three poolings of version 6": Layout(pooled("cls", "max", "mean"), modules_of_version_6),
    "version 2": Layout(mean_and(lambda m: [m.Normalize()]), modules_of_version_2),
    "a Transformer in a folder": Layout(
        mean_and(lambda m: [m.Normalize()]), modules_of_version_0, more={"transformer": {"max_seq_length": 9}}
    ),
    "no modules.json": Layout(pooled("mean"), drop_modules),
}  # fmt: skip


def made(name: str, network: Path, folder: Path) -> tuple[Path, sentence_transformers.SentenceTransformer]:
    """The repository of a layout, and the reference that read it."""
    layout = LAYOUTS[name]
    path = repository(folder / "repository", network, layout.modules, **layout.more)
    if layout.rewrite is drop_modules:
        layout.rewrite(path)
    theirs = sentence_transformers.SentenceTransformer(str(path), device="cpu", **layout.options)
    if layout.rewrite not in (None, drop_modules):
        layout.rewrite(path)
    return path, theirs


@each_dtype
@pytest.mark.parametrize("name", slow_but([*LAYOUTS][::6], LAYOUTS))
def test_vectors_are_those_of_sentence_transformers(name, dtype, network, tmp_path):
    path, theirs = made(name, network, tmp_path)
    layout = LAYOUTS[name]
    if dtype == "float64":
        theirs.double()
    expected = theirs.encode(TEXTS, **layout.encode)
    with precision(dtype) as numerics:
        ours = SentenceEncoder(path, **layout.options, **numerics)
        found = ours.encode(TEXTS, **layout.encode)
        assert found.dtype == dtype
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCES[dtype])
        assert ours.get_sentence_embedding_dimension() == theirs.get_sentence_embedding_dimension()
        assert ours.max_seq_length == theirs.max_seq_length
        if dtype == "float64":  # a batch of another shape, and so another program
            assert ours.encode(TEXTS[1], **layout.encode).shape == found[1].shape
        ours.save(tmp_path / "saved")
        shutil.rmtree(path)
        again = SentenceEncoder(tmp_path / "saved", **numerics).encode(TEXTS, **layout.encode)
        np.testing.assert_array_equal(again, found)


@pytest.mark.parametrize("name", ["six poolings", "Dense with tanh", "LayerNorm", "do_lower_case", "a default prompt"])
def test_an_exported_sentence_encoder_has_the_same_vectors_in_sentence_transformers(name, network, tmp_path):
    path, theirs = made(name, network, tmp_path)
    converted = convert(path, tmp_path / "converted")
    exported = export(converted, tmp_path / "exported", to="sentence-transformers")
    again = sentence_transformers.SentenceTransformer(str(exported), device="cpu")
    np.testing.assert_allclose(again.encode(TEXTS), theirs.encode(TEXTS), rtol=0, atol=ROUNDING)
    assert (again.prompts, again.default_prompt_name) == (theirs.prompts, theirs.default_prompt_name)
    assert again.max_seq_length == theirs.max_seq_length


def test_prompts_are_chosen_as_in_sentence_transformers(network, tmp_path):
    prompts = {"query": "query: ", "passage": "passage: "}
    path = repository(tmp_path / "repository", network, pooled("mean"), prompts=prompts)
    theirs = sentence_transformers.SentenceTransformer(str(path), device="cpu")
    ours = SentenceEncoder(path)
    assert ours.prompts == theirs.prompts
    for method in ("encode_query", "encode_document"):
        expected = getattr(theirs, method)(TEXTS)
        np.testing.assert_allclose(getattr(ours, method)(TEXTS), expected, rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="there is no prompt 'other'; there are: 'query', 'document', 'passage'"):
        ours.encode(TEXTS, prompt_name="other")
    with pytest.raises(InputError, match="there is no prompt 'other'"):
        SentenceEncoder(ours.roberta, default_prompt_name="other")


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
def test_similarities_are_those_of_sentence_transformers(name, network, tmp_path):
    path = repository(tmp_path / "repository", network, pooled("mean"), similarity_fn_name=name)
    theirs = sentence_transformers.SentenceTransformer(str(path), device="cpu")
    ours = SentenceEncoder(path)
    vectors = ours.encode(TEXTS)
    assert ours.similarity_fn_name == name
    expected = theirs.similarity(vectors, vectors[:2])
    np.testing.assert_allclose(ours.similarity(vectors, vectors[:2]), expected, rtol=1e-5, atol=1e-5)
    expected = theirs.similarity_pairwise(vectors[:2], vectors[1:3])
    np.testing.assert_allclose(ours.similarity_pairwise(vectors[:2], vectors[1:3]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["int8", "uint8", "binary", "ubinary"])
def test_quantized_vectors_are_those_of_sentence_transformers(name, network, tmp_path):
    path = repository(tmp_path / "repository", network, pooled("mean"))
    vectors = SentenceEncoder(path).encode(TEXTS)
    found = SentenceEncoder(path).encode(TEXTS, precision=name)
    expected = sentence_transformers.quantization.quantize_embeddings(vectors, precision=name)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_token_embeddings_are_those_of_sentence_transformers(network, tmp_path):
    path = repository(tmp_path / "repository", network, pooled("mean"), transformer={"max_seq_length": 9})
    theirs = sentence_transformers.SentenceTransformer(str(path), device="cpu")
    found = SentenceEncoder(path).encode(TEXTS, output_value="token_embeddings")
    for ours, expected in zip(found, theirs.encode(TEXTS, output_value="token_embeddings"), strict=True):
        np.testing.assert_allclose(ours, expected.numpy(), rtol=0, atol=1e-5)


def test_a_model_that_does_not_say_how_it_is_pooled_gets_the_mean_and_a_warning(tiny, caplog):
    with caplog.at_level(logging.WARNING):
        ours = SentenceEncoder(tiny)
    assert "does not say how its sentence vectors are made: mean pooling is used" in caplog.text
    features = np.asarray(tiny.extract_features(tiny.encode("a dog"))[0])
    np.testing.assert_allclose(ours.encode("a dog"), features.mean(axis=0), rtol=0, atol=1e-5)


def test_tokens_have_the_weights_and_the_vectors_of_bge_m3(network, tmp_path):
    """As FlagEmbedding computes them: BGEM3ForInference, _process_token_weights and _process_colbert_vecs."""
    path = repository(tmp_path / "repository", network, pooled("cls"))
    torch.manual_seed(0)
    heads = {"sparse": torch.nn.Linear(HIDDEN_SIZE, 1), "colbert": torch.nn.Linear(HIDDEN_SIZE, HIDDEN_SIZE)}
    for name, head in heads.items():
        torch.save(head.state_dict(), path / f"{name}_linear.pt")
    theirs = sentence_transformers.SentenceTransformer(str(path), device="cpu")
    model = SentenceEncoder(path)
    assert model.roberta.usage.token_params.keys() == heads.keys()
    model.save(tmp_path / "saved")
    for ours in (model, SentenceEncoder(tmp_path / "saved")):
        weights = ours.encode(TEXTS, output_value="lexical_weights")
        rows = ours.encode_sparse(TEXTS).toarray()
        vectors = ours.encode_multi_vector(TEXTS)
        for number, features in enumerate(theirs.encode(TEXTS, output_value="token_embeddings")):
            ids = theirs.tokenize([TEXTS[number]])["input_ids"][0].tolist()
            with torch.no_grad():
                values = torch.relu(heads["sparse"](features))[:, 0].tolist()
                expected = torch.nn.functional.normalize(heads["colbert"](features[1:]), dim=-1).numpy()
            highest = {i: max(value for other, value in zip(ids, values, strict=True) if other == i) for i in ids}
            highest = {i: value for i, value in highest.items() if value > 0 and i not in (0, 1, 2, 3)}
            assert weights[number] == pytest.approx(highest, abs=1e-5)
            assert {i: rows[number, i] for i in np.flatnonzero(rows[number])} == pytest.approx(highest, abs=1e-5)
            np.testing.assert_allclose(vectors[number], expected, rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="the model has no sparse_linear.pt, as BGE-M3's repository has"):
        SentenceEncoder(network).encode(TEXTS, output_value="lexical_weights")
    torch.save({"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}, path / "sparse_linear.pt")
    with pytest.raises(CheckpointError, match="should have a weight of 32 columns and a bias"):
        convert(path, tmp_path / "converted")


# Sparse encoders


@pytest.fixture(scope="module")
def masked_lm(tmp_path_factory) -> Path:
    return body(tmp_path_factory.mktemp("masked lm") / "network", "RobertaForMaskedLM")


def sparse_modules_of_version_6(path: Path) -> None:
    """Rewrites the files of version 5.1 as version 6.2 writes them."""
    entries = json.loads((path / "modules.json").read_text())
    entries[0]["type"] = "sentence_transformers.base.modules.transformer.Transformer"
    entries[1]["type"] = "sentence_transformers.sparse_encoder.modules.splade_pooling.SpladePooling"
    (path / "modules.json").write_text(json.dumps(entries))
    pooling = path / "1_SpladePooling" / "config.json"
    size = json.loads(pooling.read_text())["word_embedding_dimension"]
    edit(pooling, word_embedding_dimension=None, embedding_dimension=size)
    text = {"method": "forward", "method_output_name": "logits"}
    new = {"transformer_task": "fill-mask", "modality_config": {"text": text}}
    (path / "sentence_bert_config.json").write_text(json.dumps({**new, "module_output_name": "token_embeddings"}))
    edit(path / "config_sentence_transformers.json", max_active_dims=20)


SPARSE: dict[str, tuple[dict[str, Any], dict[str, Any], Callable[[Path], None] | None]] = {
    # arguments of references.sentence_transformers.sparse_repository and of encode(), changes after 5.1 has read the files
    "max": ({}, {}, None),
    "sum": ({"strategy": "sum"}, {}, None),
    "max, two logarithms": ({"activation": "log1p_relu"}, {}, None),
    "sum, two logarithms": ({"strategy": "sum", "activation": "log1p_relu"}, {}, None),
    "max_seq_length": ({"transformer": {"max_seq_length": 9}}, {}, None),
    "a prompt, lowercased": (
        {"transformer": {"do_lower_case": True}, "prompts": {"query": "query: "}}, {"prompt_name": "query"}, None,
    ),
    "the highest weights": ({}, {"max_active_dims": 5}, None),
    "version 6": ({}, {"max_active_dims": 20}, sparse_modules_of_version_6),
    "no modules.json": ({}, {}, drop_modules),
}  # fmt: skip


@pytest.mark.slow
@each_dtype
@pytest.mark.parametrize("name", SPARSE)
def test_sparse_vectors_are_those_of_sentence_transformers(name, dtype, masked_lm, tmp_path):
    built, options, rewrite = SPARSE[name]
    path = sparse_repository(tmp_path / "repository", masked_lm, **built)
    theirs = sentence_transformers.SparseEncoder(str(path), device="cpu")
    if dtype == "float64":
        theirs.double()
    expected = theirs.encode(TEXTS, convert_to_sparse_tensor=False, **options).numpy()
    if rewrite is not None:
        rewrite(path)
        options = {} if name == "version 6" else options  # which has the number in its files
    with precision(dtype) as numerics:
        ours = SentenceEncoder(path, **numerics)
        found = ours.encode_sparse(TEXTS, **options)
        assert found.dtype == dtype
        tolerance = TOLERANCES[dtype]  # of one token's weight; a sum over tokens rounds in its own last place
        np.testing.assert_allclose(found.toarray(), expected, rtol=tolerance, atol=tolerance)
        assert found.nnz == np.count_nonzero(expected)
        assert ours.max_seq_length == theirs.max_seq_length
        if rewrite is not drop_modules:
            assert ours.get_sentence_embedding_dimension() == theirs.get_sentence_embedding_dimension()
            assert ours.similarity_fn_name == theirs.similarity_fn_name == "dot"
            np.testing.assert_allclose(ours.similarity(found, found), expected @ expected.T, rtol=1e-5)
        ours.save(tmp_path / "saved")
        if rewrite is not drop_modules:
            again = SentenceEncoder(tmp_path / "saved", **numerics).encode_sparse(TEXTS, **options)
            np.testing.assert_array_equal(again.toarray(), found.toarray())


def test_sparse_vectors_are_decoded_as_in_sentence_transformers(masked_lm, tmp_path):
    path = sparse_repository(tmp_path / "repository", masked_lm)
    theirs = sentence_transformers.SparseEncoder(str(path), device="cpu")
    ours = SentenceEncoder(path)
    expected = theirs.decode(theirs.encode(TEXTS[:2]), top_k=6)
    found = ours.decode(ours.encode_sparse(TEXTS[:2]), top_k=6)
    assert [[token for token, _ in each] for each in found] == [[token for token, _ in each] for each in expected]
    weights = [[weight for _, weight in each] for each in found]
    np.testing.assert_allclose(weights, [[weight for _, weight in each] for each in expected], rtol=0, atol=1e-5)


def test_an_exported_sparse_encoder_has_the_same_vectors_in_sentence_transformers(masked_lm, tmp_path):
    path = sparse_repository(tmp_path / "repository", masked_lm, "sum", prompts={"query": "query: "})
    theirs = sentence_transformers.SparseEncoder(str(path), device="cpu")
    exported = export(convert(path, tmp_path / "converted"), tmp_path / "exported", to="sentence-transformers")
    again = sentence_transformers.SparseEncoder(str(exported), device="cpu")
    assert (again.prompts, again.similarity_fn_name) == (theirs.prompts, theirs.similarity_fn_name)
    expected = theirs.encode(TEXTS, convert_to_sparse_tensor=False)
    found = again.encode(TEXTS, convert_to_sparse_tensor=False)
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("strategy", ["max", "sum"])
def test_the_logits_of_a_batch_are_not_there_all_at_once(strategy):
    """A sequence of 512 tokens and a vocabulary of 50,000 have 100 MB of them."""
    config = roberta_flax.RobertaConfig(num_layers=1, hidden_size=8, num_heads=1, intermediate_size=8)
    params = forward.abstract_params(config)
    tokens = jax.ShapeDtypeStruct((16, 512), np.int32)
    modules = (SpladePooling(config.vocab_size, strategy),)
    program = sentence_vectors.lower(params, ({},), tokens, modules=modules, config=config).compile()
    assert program.memory_analysis().temp_size_in_bytes < 4 * 16 * 512 * config.vocab_size / 2


@pytest.mark.slow
def test_weights_in_parts_are_those_at_once(masked_lm, monkeypatch):
    ours = SentenceEncoder(masked_lm)
    for settings in itertools.product(("max", "sum"), ("relu", "log1p_relu")):
        modules = (SpladePooling(ours.roberta.config.vocab_size, *settings),)
        tokens = np.full((2, 11), ours.roberta.tokenizer.pad_id)
        tokens[0], tokens[1, :7] = np.arange(11) + 2, np.arange(7) + 20
        found = []
        for limit in (1 << 26, 2 * 420 * 4):
            monkeypatch.setattr(sentence, "_LOGITS_AT_ONCE", limit)
            found.append(
                sentence_vectors(ours.roberta.params, ({},), tokens, modules=modules, config=ours.roberta.config)
            )
            jax.clear_caches()  # so that it is traced again
        np.testing.assert_allclose(*found, rtol=1e-6)


def test_a_file_of_texts_gets_the_weights_of_its_tokens(masked_lm, run, tmp_path):
    path = sparse_repository(tmp_path / "repository", masked_lm)
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    arguments = ("features", tmp_path / "texts.jsonl", "--model", path, "-o")
    status, _, err = run(*arguments, tmp_path / "weights.jsonl")
    assert status == 0, err
    model = SentenceEncoder(path)
    expected = [dict(pairs) for pairs in model.decode(model.encode_sparse(TEXTS))]
    rows = [json.loads(line) for line in (tmp_path / "weights.jsonl").read_text().splitlines()]
    assert [row["weights"] for row in rows] == [pytest.approx(weights, abs=1e-5) for weights in expected]
    status, _, err = run(*arguments, tmp_path / "weights.npy")
    assert status == 1
    assert "a .npy file holds one vector per row" in err


def test_vectors_of_another_form_are_refused(network, masked_lm, tmp_path):
    sparse = SentenceEncoder(sparse_repository(tmp_path / "sparse", masked_lm))
    with pytest.raises(InputError, match="this model is a sparse encoder: use encode_sparse"):
        sparse.encode(TEXTS)
    with pytest.raises(InputError, match="this model makes no sparse vectors"):
        SentenceEncoder(network).encode_sparse(TEXTS)
    with pytest.raises(InputError, match="the model has no colbert_linear.pt"):
        sparse.encode_multi_vector(TEXTS)
    with pytest.raises(InputError, match=r"the vectors have the shape \(2, 3\), expected \[n, "):
        sparse.decode(np.zeros((2, 3)))


def test_late_interaction_is_that_of_colbert():
    """By hand: each of the query's vectors takes the most similar of the document's."""
    query = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    documents = [np.array([[0.5, 0.1], [0.2, 0.3]], np.float32), np.array([[-1.0, 0.0]], np.float32)]
    np.testing.assert_allclose(roberta_flax.maxsim([query], documents), [[0.8, -1.0]], rtol=1e-6)
    np.testing.assert_allclose(roberta_flax.maxsim([query], documents, mean=True), [[0.4, -0.5]], rtol=1e-6)
    with pytest.raises(InputError, match=r"maxsim takes lists of arrays \[tokens, size\] of one size"):
        roberta_flax.maxsim(query, documents)


# Cross-encoders

PAIRS = [
    ("who lives in Berlin", "Berlin has people"),
    ("a man", "a dog runs"),
    ("The children are playing outside in the yard, and " * 2, "Two dogs are running across a field of grass " * 3),
    ("a", "The children are playing outside in the yard, and " * 3),
    ("", ""),
]


def cross_encoder_of_version_6(path: Path) -> None:
    """Rewrites the files of version 5.1 as version 6.2 writes them."""
    name = json.loads((path / "config.json").read_text())["sentence_transformers"]["activation_fn"]
    edit(path / "config.json", sentence_transformers=None)
    entry = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
    (path / "modules.json").write_text(json.dumps([entry]))
    settings = {"model_type": "CrossEncoder", "prompts": {}, "default_prompt_name": None, "activation_fn": name}
    (path / "config_sentence_transformers.json").write_text(json.dumps(settings))
    text = {"method": "forward", "method_output_name": "logits"}
    new = {"transformer_task": "sequence-classification", "modality_config": {"text": text}}
    (path / "sentence_bert_config.json").write_text(json.dumps({**new, "module_output_name": "scores"}))


IDENTITY = "torch.nn.modules.linear.Identity"
CROSS_ENCODERS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], Callable[[Path], None] | None]] = {
    # the network's settings, changes of config.json, arguments of predict(), changes after 5.1 has read the files
    "one output": ({"num_labels": 1}, {}, {}, None),
    "a regression": ({"num_labels": 1}, {"problem_type": "regression"}, {}, None),
    "one output without activation": (
        {"num_labels": 1}, {"sentence_transformers": {"activation_fn": IDENTITY, "version": "5.1.2"}}, {}, None,
    ),
    "an activation of version 3": ({"num_labels": 1}, {"sbert_ce_default_activation_function": IDENTITY}, {}, None),
    "another activation": (
        {"num_labels": 1}, {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}}, {}, None,
    ),
    "three outputs": ({"num_labels": 3}, {}, {}, None),
    "three outputs and the softmax": ({"num_labels": 3}, {}, {"apply_softmax": True}, None),
    "version 6": (
        {"num_labels": 1}, {"sentence_transformers": {"activation_fn": IDENTITY, "version": "5.1.2"}}, {},
        cross_encoder_of_version_6,
    ),
}  # fmt: skip


@each_dtype
@pytest.mark.parametrize("name", CROSS_ENCODERS)
def test_scores_are_those_of_sentence_transformers(name, dtype, tmp_path):
    settings, changes, options, rewrite = CROSS_ENCODERS[name]
    path = body(tmp_path / "repository", "RobertaForSequenceClassification", **settings)
    edit(path / "config.json", **changes)
    edit(path / "tokenizer_config.json", model_max_length=21)
    theirs = sentence_transformers.CrossEncoder(str(path), device="cpu")
    if rewrite is not None:
        rewrite(path)
    if dtype == "float64":
        theirs.model.double()
    expected = [score.numpy() for score in theirs.predict(PAIRS, convert_to_numpy=False, **options)]
    with precision(dtype) as numerics:
        ours = CrossEncoder(path, **numerics)
        found = ours.predict(PAIRS, **options)
        assert found.dtype == dtype
        np.testing.assert_allclose(found, np.stack(expected), rtol=0, atol=TOLERANCES[dtype])
        assert (ours.num_labels, ours.max_length) == (theirs.num_labels, theirs.max_length)
        if dtype == "float64":  # a batch of another shape, and so another program
            assert np.shape(ours.predict(PAIRS[0], **options)) == np.shape(found)[1:]
        ours.save(tmp_path / "saved")
        np.testing.assert_array_equal(CrossEncoder(tmp_path / "saved", **numerics).predict(PAIRS, **options), found)


def test_documents_are_ranked_as_in_sentence_transformers(tmp_path):
    path = body(tmp_path / "repository", "RobertaForSequenceClassification", num_labels=1)
    theirs = sentence_transformers.CrossEncoder(str(path), device="cpu").rank("a dog", TEXTS, 3, return_documents=True)
    ours = CrossEncoder(path).rank("a dog", TEXTS, top_k=3, return_documents=True)
    assert [list(result) for result in ours] == [list(result) for result in theirs]
    for key in ("corpus_id", "text"):
        assert [result[key] for result in ours] == [result[key] for result in theirs]
    expected = [float(result["score"]) for result in theirs]
    np.testing.assert_allclose([result["score"] for result in ours], expected, rtol=0, atol=1e-5)


def test_an_exported_cross_encoder_has_the_same_scores_in_sentence_transformers(tmp_path):
    path = body(tmp_path / "repository", "RobertaForSequenceClassification", num_labels=1)
    edit(path / "config.json", sentence_transformers={"activation_fn": IDENTITY, "version": "5.1.2"})
    theirs = sentence_transformers.CrossEncoder(str(path), device="cpu")
    converted = convert(path, tmp_path / "converted")
    exported = export(converted, tmp_path / "exported", to="sentence-transformers")
    again = sentence_transformers.CrossEncoder(str(exported), device="cpu")
    np.testing.assert_allclose(again.predict(PAIRS), theirs.predict(PAIRS), rtol=0, atol=ROUNDING)
    assert again.max_length == theirs.max_length


def test_pairs_are_truncated_as_the_tokenizers_package_does(tmp_path):
    from references.sentence_transformers import tokenizer

    fast = tokenizer(tmp_path / "tokenizer")
    for first in range(12):
        for second in range(12):
            for room in range(1, 8):
                ids = fast([(" a" * first, " a" * second)], truncation=True, max_length=room + 4)
                kept = [ids.sequence_ids(0).count(text) for text in (0, 1)]
                assert kept == list(kept_lengths(first, second, room)), (first, second, room)


def test_the_activation_is_that_of_the_repositorys_head_alone(tmp_path):
    path = body(tmp_path / "repository", "RobertaForSequenceClassification", num_labels=1)
    roberta = roberta_flax.load(path)
    roberta.register_classification_head("new", num_classes=1, seed=0)
    (value,) = roberta_flax.Predictor(roberta, roberta_flax.Classify("new"))(["a dog"])
    np.testing.assert_allclose(value, roberta.predict("new", roberta.encode("a dog"))[0], rtol=0, atol=1e-6)


# What is kept, and what is refused


def test_a_conversion_records_what_was_read_of_a_repository_and_what_was_not(network, tmp_path):
    path = repository(tmp_path / "repository", network, DENSE)
    for name in ("README.md", "onnx/model.onnx", "training_args.bin", "modeling.py", "strange.json"):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text("{}")
    convert(path, tmp_path / "converted")
    recorded = json.loads((tmp_path / "converted" / "conversion.json").read_text())["repository"]
    assert {"modules.json", "1_Pooling/config.json", "2_Dense/model.safetensors"} <= set(recorded["read"])
    assert recorded["not read"]["README.md"] == "documentation"
    assert recorded["not read"]["strange.json"] == "nothing here reads it"
    files = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    assert {*recorded["read"], *recorded["not read"]} == files


def put_module(path: Path, kind: str, folder: str = "", place: int | None = None) -> None:
    entries = json.loads((path / "modules.json").read_text())
    entries.insert(len(entries) if place is None else place, {"idx": 9, "name": "9", "path": folder, "type": kind})
    (path / "modules.json").write_text(json.dumps(entries))


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "an unknown module": (lambda p: put_module(p, "sentence_transformers.models.CNN"), "a module CNN that nothing here"),
    "code": (lambda p: put_module(p, "custom_st.Transformer"), "of its own code, custom_st.Transformer, which is never"),
    "a path outside": (
        lambda p: put_module(p, "sentence_transformers.models.Dense", "../2_Dense"), "is not a folder of the repository",
    ),
    "two poolings": (lambda p: put_module(p, "sentence_transformers.models.Pooling", "1_Pooling"), "a module Pooling"),
    "layers before the pooling": (
        lambda p: put_module(p, "sentence_transformers.models.WeightedLayerPooling", place=1), "should have a Pooling",
    ),
    "a kind": (
        lambda p: edit(p / "config_sentence_transformers.json", model_type="AudioEncoder"), "is a AudioEncoder of",
    ),
    "a pooling of a multi-vector encoder": (
        lambda p: edit(p / "config_sentence_transformers.json", model_type="MultiVectorEncoder"), "a module Pooling that",
    ),
    "a similarity": (
        lambda p: edit(p / "config_sentence_transformers.json", similarity_fn_name="maxsim"), "similarity must be one of",
    ),
    "a prompt": (
        lambda p: edit(p / "config_sentence_transformers.json", default_prompt_name="x"), "there is no prompt 'x'",
    ),
    "an argument": (
        lambda p: edit(p / "sentence_bert_config.json", tokenizer_args={"padding_side": "left"}),
        "has tokenizer_args.padding_side, which is not supported",
    ),
    "arguments that are none": (
        lambda p: edit(p / "sentence_bert_config.json", model_args=[1]), "has model_args, which is not supported",
    ),
    "a modality": (
        lambda p: edit(p / "sentence_bert_config.json", modality_config=5), "has modality_config, which is not supported",
    ),
    "a number as pooling": (lambda p: edit(p / "1_Pooling" / "config.json", pooling_mode=5), "1_Pooling/config.json: "),
    "a text as width": (lambda p: edit(p / "2_Dense" / "config.json", out_features="wide"), "outputs must be a positive"),
    "prompts that are none": (
        lambda p: edit(p / "config_sentence_transformers.json", prompts=["query: "]), "config_sentence_transformers.json: ",
    ),
    "a setting": (
        lambda p: edit(p / "sentence_bert_config.json", query_length=32), "has query_length, which is not supported",
    ),
    "an activation": (
        lambda p: edit(p / "2_Dense" / "config.json", activation_function="os.system"),
        "the activation os.system is not supported",
    ),
    "a width": (
        lambda p: edit(p / "1_Pooling" / "config.json", word_embedding_dimension=16), "takes vectors of 16 numbers, but gets",
    ),
    "a pooling": (lambda p: edit(p / "1_Pooling" / "config.json", pooling_mode="median"), "pooling must be one or several"),
    "missing weights": (lambda p: (p / "2_Dense" / "model.safetensors").unlink(), "has no weights"),
    "weights of another width": (
        lambda p: edit(p / "2_Dense" / "config.json", out_features=12), "expected floating point of shape",
    ),
    "an adapter without tensors": (
        lambda p: (p / "adapter_config.json").write_text('{"peft_type": "LORA"}'), "not adapter_model.safetensors",
    ),
    "an encoder without inference": (
        lambda p: put_module(p, "sentence_transformers.models.Router", place=0), "a module Router that nothing here",
    ),
    "static weights": (
        lambda p: put_module(p, "sentence_transformers.sparse_encoder.models.SparseStaticEmbedding", place=0),
        "a module SparseStaticEmbedding that nothing here",
    ),
    "an autoencoder": (
        lambda p: put_module(p, "sentence_transformers.sparse_encoder.models.SparseAutoEncoder"),
        "a module SparseAutoEncoder that nothing here",
    ),
    "two ways of pooling": (
        lambda p: put_module(p, "sentence_transformers.sparse_encoder.models.SpladePooling", "1_Pooling"),
        "should have a SpladePooling after the Transformer",
    ),
    "SPLADE without a masked LM": (
        lambda p: put_module(p, "sentence_transformers.sparse_encoder.models.SpladePooling", "1_Pooling", 1),
        "has a SpladePooling, but this model has no masked-LM head",
    ),
    "no settings of pooling": (
        lambda p: (p / "1_Pooling" / "config.json").unlink(), "config.json is missing, which says what Pooling does",
    ),
    "no list": (lambda p: (p / "modules.json").write_text("{}"), "modules"),
    "a maximum length": (lambda p: edit(p / "sentence_bert_config.json", max_seq_length="long"), "a positive number"),
}  # fmt: skip


@pytest.fixture(scope="module")
def with_dense(network, tmp_path_factory) -> Path:
    return repository(tmp_path_factory.mktemp("dense") / "repository", network, DENSE)


@pytest.mark.parametrize("name", REFUSED)
def test_what_nothing_here_computes_is_refused_by_name(name, with_dense, tmp_path):
    change, message = REFUSED[name]
    path = shutil.copytree(with_dense, tmp_path / "repository")
    change(path)
    with pytest.raises(CheckpointError, match=message):
        convert(path, tmp_path / "converted")


@pytest.mark.parametrize("name", ["usage.json", "modules.safetensors"])
def test_a_damaged_file_of_a_converted_model_is_one_line(name, with_dense, tmp_path):
    converted = convert(with_dense, tmp_path / "converted")
    (converted / name).write_bytes(b'{"embedding": {"modules": [{"type": "Magic"}]}}')
    with pytest.raises(CheckpointError, match="damaged"):
        roberta_flax.load(converted)


def test_a_change_of_a_module_is_a_new_conversion_in_the_cache(with_dense, tmp_path):
    path = shutil.copytree(with_dense, tmp_path / "repository")
    before = SentenceEncoder(path).encode(TEXTS)
    edit(path / "2_Dense" / "config.json", activation_function=IDENTITY)
    assert np.abs(SentenceEncoder(path).encode(TEXTS) - before).max() > 1e-3


# The command line and the tasks


def test_features_of_a_file_are_the_repositorys_vectors(run, with_dense, tmp_path):
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    theirs = sentence_transformers.SentenceTransformer(str(with_dense), device="cpu")
    for number, (options, prompt) in enumerate([((), None), (("--prompt", "query: "), "query: ")]):
        output = tmp_path / f"{number}.npy"
        status, _, err = run("features", tmp_path / "texts.jsonl", "-o", output, "--model", with_dense, *options)
        assert status == 0, err
        np.testing.assert_allclose(np.load(output), theirs.encode(TEXTS, prompt=prompt), rtol=0, atol=1e-5)
    arguments = ("features", tmp_path / "texts.jsonl", "-o", tmp_path / "o.npy", "--model", with_dense)
    for options, message in (
        (("--prompt-name", "other"), "there is no prompt 'other'"),
        (("--pooling", "mean", "--prompt", "a"), "a prompt is for the vectors that a model's repository defines"),
        (("--on-long", "window"), "a sentence encoder truncates long texts"),
    ):
        status, _, err = run(*arguments, *options)
        assert status == 1
        assert message in err


@pytest.mark.slow
def test_predict_gives_the_score_of_a_cross_encoder_but_a_regressions_value(run, tmp_path):
    path = body(tmp_path / "repository", "RobertaForSequenceClassification", num_labels=1)
    theirs = sentence_transformers.CrossEncoder(str(path), device="cpu")
    identity = torch.nn.Identity()
    for problem_type, expected in (
        (None, theirs.predict(PAIRS)),
        ("regression", theirs.predict(PAIRS, activation_fn=identity)),
    ):
        edit(path / "config.json", problem_type=problem_type)
        status, out, _ = run("predict", "--text", PAIRS[0][0], "--text", PAIRS[0][1], "--model", path, "--json")
        assert status == 0
        assert list(json.loads(out)["values"].values()) == pytest.approx([float(expected[0])], abs=1e-5)
        roberta = roberta_flax.load(path)
        predictor = roberta_flax.Predictor(roberta, roberta_flax.Classify(roberta.config.heads[0].name))
        np.testing.assert_allclose(np.stack(list(predictor(PAIRS)))[:, 0], expected, rtol=0, atol=1e-5)
