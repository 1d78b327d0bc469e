"""Beside sentence-transformers 6: what it writes answers the same here, and what is exported here the same there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sentence_transformers
import torch
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.sparse_encoder.modules import SpladePooling

from references.sentence_transformers import HIDDEN_SIZE, TEXTS, body, shaken
from roberta_flax import CrossEncoder, SentenceEncoder
from roberta_flax.convert import convert, export
from roberta_flax.parity import assert_parity

TOLERANCE = 1e-5
LIBRARY = {"texts": TEXTS[:2], "dtypes": ["float64"], "reference": "sentence-transformers"}
PAIRS = [("who lives in Berlin", "Berlin has people"), ("a man", "a dog runs"), ("", ""), (TEXTS[1], TEXTS[4])]


def exported(repository: Path, folder: Path) -> Path:
    return export(convert(repository, folder / "converted"), folder / "exported", to="sentence-transformers")


@pytest.mark.parametrize(
    ("network", "modes"), [("RobertaModel", ("max", "mean", "lasttoken")), ("XLMRobertaXLModel", ("mean",))]
)
def test_sentence_vectors_are_the_same_on_both_sides(network, modes, tmp_path):
    first = Transformer(str(body(tmp_path / "network", network)), processor_kwargs={"model_max_length": 21})
    dense = shaken(Dense(HIDDEN_SIZE * len(modes), 24, activation_function=torch.nn.Tanh()), 1)
    pooling = Pooling(HIDDEN_SIZE, modes, include_prompt=False)
    theirs = sentence_transformers.SentenceTransformer(
        modules=[first, pooling, dense, Normalize()],
        prompts={"query": "query: "},
        default_prompt_name="query",
        device="cpu",
    )
    theirs.save_pretrained(str(tmp_path / "repository"), create_model_card=False)
    expected = theirs.encode(TEXTS)
    ours = SentenceEncoder(tmp_path / "repository")
    np.testing.assert_allclose(ours.encode(TEXTS), expected, rtol=0, atol=TOLERANCE)
    assert_parity(tmp_path / "repository", only=["sentence_vector"], **LIBRARY)
    assert ours.prompts == theirs.prompts
    assert ours.max_seq_length == theirs.max_seq_length == 21
    again = sentence_transformers.SentenceTransformer(str(exported(tmp_path / "repository", tmp_path)), device="cpu")
    np.testing.assert_allclose(again.encode(TEXTS), expected, rtol=0, atol=TOLERANCE)
    assert (again.prompts, again.default_prompt_name) == (theirs.prompts, theirs.default_prompt_name)
    assert again.max_seq_length == theirs.max_seq_length


@pytest.mark.parametrize("labels", [1, 3])
def test_scores_are_the_same_on_both_sides(labels, tmp_path):
    network = body(tmp_path / "network", "RobertaForSequenceClassification", num_labels=labels)
    theirs = sentence_transformers.CrossEncoder(str(network), device="cpu", max_length=21)
    theirs.save_pretrained(str(tmp_path / "repository"), create_model_card=False)
    assert (tmp_path / "repository" / "modules.json").is_file()
    expected = theirs.predict(PAIRS)
    ours = CrossEncoder(tmp_path / "repository")
    np.testing.assert_allclose(ours.predict(PAIRS), expected, rtol=0, atol=TOLERANCE)
    if labels == 1:
        assert_parity(tmp_path / "repository", only=["heads.*.score"], **LIBRARY)
    assert ours.max_length == 21
    again = sentence_transformers.CrossEncoder(str(exported(tmp_path / "repository", tmp_path)), device="cpu")
    np.testing.assert_allclose(again.predict(PAIRS), expected, rtol=0, atol=TOLERANCE)
    assert again.max_length == 21


@pytest.mark.parametrize("strategy", ["max", "sum"])
def test_sparse_vectors_are_the_same_on_both_sides(strategy, tmp_path):
    network = str(body(tmp_path / "network", "RobertaForMaskedLM"))
    theirs = sentence_transformers.SparseEncoder(
        modules=[Transformer(network, transformer_task="fill-mask"), SpladePooling(strategy)],
        device="cpu",
        max_active_dims=30,
    )
    theirs.save_pretrained(str(tmp_path / "repository"), create_model_card=False)
    expected = theirs.encode(TEXTS, convert_to_sparse_tensor=False).numpy()
    found = SentenceEncoder(tmp_path / "repository").encode_sparse(TEXTS)
    np.testing.assert_allclose(found.toarray(), expected, rtol=TOLERANCE, atol=TOLERANCE)
    assert_parity(tmp_path / "repository", only=["sentence_vector"], **LIBRARY)
    again = sentence_transformers.SparseEncoder(str(exported(tmp_path / "repository", tmp_path)), device="cpu")
    vectors = again.encode(TEXTS, convert_to_sparse_tensor=False).numpy()
    np.testing.assert_allclose(vectors, expected, rtol=TOLERANCE, atol=TOLERANCE)
