"""The losses of sentence encoders and cross-encoders beside those of sentence-transformers 5.1, in float64."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pytest

import roberta_flax
from roberta_flax import train
from roberta_flax.nn.numerics import Numerics
from roberta_flax.tasks.ranking import evaluate_vectors
from roberta_flax.text.batching import pad_rows
from roberta_flax.train.encoder_batches import without_duplicates
from roberta_flax.train.encoder_losses import (
    MODULES,
    ScoreLoss,
    SentenceLoss,
    cross_encoder_loss,
    sentence_encoder_loss,
)
from roberta_flax.train.encoder_training import CrossEncoderTraining, SentenceEncoderTraining
from tests.conftest import skip_or_fail

if find_spec("sentence_transformers") is None:
    skip_or_fail("sentence-transformers, the reference, is not installed; the README's test command installs it")

import sentence_transformers
import torch
import transformers
from sentence_transformers import evaluation, losses, util
from sentence_transformers.cross_encoder import losses as cross_losses
from sentence_transformers.sampler import NoDuplicatesBatchSampler

from references.sentence_transformers import HIDDEN_SIZE, body, repository

STEPS, BATCH = 20, 4
WORDS = ("a man", "two dogs", "some children", "the woman", "nobody"), ("sees", "eats", "has"), ("a cat", "rice", "it")
RANDOM = np.random.default_rng(3)
TEXTS = [" ".join(RANDOM.choice(part) for part in WORDS) + "." * int(RANDOM.integers(1, 4)) for _ in range(96)]


def batches(columns: int, labels: int) -> list[tuple[list[list[str]], np.ndarray]]:
    """Columns of texts, and labels in [0, 1], [BATCH, labels], of which some are equal."""
    random = np.random.default_rng(columns + 10 * labels)
    return [
        (
            [[TEXTS[i] for i in random.choice(96, BATCH, replace=False)] for _ in range(columns)],
            random.choice([0.0, 0.25, 0.5, 1.0], (BATCH, labels)),
        )
        for _ in range(2)
    ]


class Case(NamedTuple):
    """A loss of sentence-transformers, ours, and what they take.

    Attributes:
      theirs: a function of the model.
      ours: arguments of SentenceLoss.
      columns, labels: numbers of text and label columns.
      mini_batch_size: of ours.
    """

    theirs: Any
    ours: dict[str, Any]
    columns: int = 2
    labels: int = 0
    mini_batch_size: int | None = None


def euclidean(a: Any, b: Any) -> Any:
    """What TripletDistanceMetric.EUCLIDEAN is meant to be; in 5.1 it is negative."""
    return -util.pairwise_euclidean_sim(a, b)


RANKING = {"name": "multiple-negatives-ranking"}
CASES = {
    "in-batch negatives": Case(losses.MultipleNegativesRankingLoss, RANKING),
    "hard negatives": Case(lambda model: losses.MultipleNegativesRankingLoss(model, scale=5.0), {**RANKING, "scale": 5.0}, columns=4),
    "dot product": Case(
        lambda model: losses.MultipleNegativesRankingLoss(model, 1.0, util.dot_score),
        {**RANKING, "scale": 1.0, "similarity": "dot"},
    ),
    "cached": Case(
        lambda model: losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=2), RANKING, columns=3, mini_batch_size=2
    ),
    "CoSENT": Case(losses.CoSENTLoss, {"name": "CoSENTLoss"}, labels=1),
    "cosine": Case(losses.CosineSimilarityLoss, {"name": "CosineSimilarityLoss"}, labels=1),
    "triplet": Case(lambda model: losses.TripletLoss(model, euclidean, 1.5), {"name": "triplet", "margin": 1.5}, columns=3),
    "triplet by the cosine": Case(
        lambda model: losses.TripletLoss(model, losses.TripletDistanceMetric.COSINE, 0.7),
        {"name": "triplet", "margin": 0.7, "distance": "cosine"},
        columns=3,
    ),
    "margin": Case(losses.MarginMSELoss, {"name": "MarginMSELoss"}, columns=3, labels=1),
    "scores of several negatives": Case(losses.MarginMSELoss, {"name": "margin-mse"}, columns=4, labels=3),
    "Kullback-Leibler": Case(
        lambda model: losses.DistillKLDivLoss(model, temperature=2.0), {"name": "DistillKLDivLoss", "temperature": 2.0}, columns=3, labels=2
    ),
    "Matryoshka": Case(
        lambda model: losses.MatryoshkaLoss(model, losses.MultipleNegativesRankingLoss(model), [24, 8, 3], [1, 0.5, 2]),
        {**RANKING, "matryoshka_dims": (24, 8, 3), "matryoshka_weights": (1.0, 0.5, 2.0)},
    ),
    "Matryoshka of CoSENT": Case(
        lambda model: losses.MatryoshkaLoss(model, losses.CoSENTLoss(model), [24, 8]),
        {"name": "cosent", "matryoshka_dims": (24, 8)},
        labels=1,
    ),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _float64() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # these networks are too small to share
    with jax.enable_x64(True):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    """A network of one layer, without dropout."""
    folder = tmp_path_factory.mktemp("network") / "body"
    return body(folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


@pytest.fixture(scope="module")
def encoder(network) -> Path:
    """A sentence encoder with parameters of its own after the pooling."""

    def modules(models: Any) -> Sequence[torch.nn.Module]:
        return [models.Pooling(HIDDEN_SIZE, "mean"), models.Dense(HIDDEN_SIZE, 24)]

    return repository(network.parent / "encoder", network, modules)


@pytest.fixture(scope="module")
def their_encoder(encoder) -> Any:
    return sentence_transformers.SentenceTransformer(str(encoder), device="cpu").double().train()


@pytest.fixture(scope="module")
def our_encoder(encoder) -> roberta_flax.Roberta:
    return roberta_flax.load(encoder, dtype="float64", param_dtype="float64")


def torch_updates(model: Any, loss: Any, inputs: Sequence[tuple[Any, Any]]) -> list[float]:
    """The losses of as many steps of AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    found = []
    for given in inputs:
        optimizer.zero_grad()
        value = loss(*given)
        value.backward()
        optimizer.step()
        found.append(value.item())
    return found


def flax_updates(loss: Any, params: Any, inputs: Sequence[dict[str, Any]]) -> tuple[list[float], Any]:
    """The losses of as many steps of AdamW, and the parameters after them."""
    step = train.make_train_step(loss, optax.adamw(1e-3, weight_decay=0.01))
    opt_state = step.init(params)
    found = []
    for batch in inputs:
        params, opt_state, metrics = step(params, opt_state, batch, jax.random.key(0))
        found.append(float(metrics["loss"]))
    return found, params


def twenty(found: list[Any]) -> list[Any]:
    return [found[number % len(found)] for number in range(STEPS)]


def tokens_of(roberta: Any, texts: Sequence[Any]) -> np.ndarray:
    """All of one length, so that one program is compiled."""
    sequences = [roberta.encode(*text) for text in texts]
    return pad_rows(sequences, (len(sequences), 20 * len(texts[0])), roberta.config.pad_id)


class Float64(torch.Tensor):
    """Labels that stay as they are where a loss would round them, and with them itself, to float32."""

    def float(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_twenty_updates_of_a_sentence_encoder_are_those_of_sentence_transformers(name, their_encoder, our_encoder):
    case, roberta, model = CASES[name], our_encoder, copy.deepcopy(their_encoder)
    given = batches(case.columns, case.labels)
    as_torch = [
        (
            [model.tokenize(column) for column in columns],
            torch.tensor(labels if labels.shape[1] > 1 else labels.ravel()),
        )
        for columns, labels in given
    ]
    theirs = torch_updates(model, case.theirs(model), twenty(as_torch))

    params = {**roberta.params, MODULES: {"1": dict(roberta.usage.module_params[1])}}
    params = jax.tree.map(lambda array: np.asarray(array, np.float64), params)
    loss = sentence_encoder_loss(
        SentenceLoss(**case.ours), modules=roberta.usage.embedding.modules, config=roberta.config,
        numerics=Numerics("float64"), mini_batch_size=case.mini_batch_size,
    )  # fmt: skip
    arrays = [
        {
            "tokens": tokens_of(roberta, [(text,) for column in columns for text in column])
            .reshape(case.columns, BATCH, -1)
            .swapaxes(0, 1),
            "labels": labels,
        }
        for columns, labels in given
    ]
    ours, params = flax_updates(loss, jax.device_put(params), twenty(arrays))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
    assert abs(ours[-1] - ours[0]) > 1e-3  # it moved
    kernel = model[2].linear.weight.detach().numpy().T
    np.testing.assert_allclose(params[MODULES]["1"]["kernel"], kernel, rtol=0, atol=1e-9)
    embeddings = model[0].auto_model.embeddings.word_embeddings.weight.detach().numpy()
    np.testing.assert_allclose(params["embeddings"]["token"]["embedding"], embeddings, rtol=0, atol=1e-9)


CROSS_CASES = {
    "binary cross-entropy": (cross_losses.BinaryCrossEntropyLoss, "BinaryCrossEntropyLoss", 2, 1, None),
    "mse": (cross_losses.MSELoss, "mse", 2, 1, 2),
    "margin": (cross_losses.MarginMSELoss, "MarginMSELoss", 4, 2, None),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CROSS_CASES)
def test_twenty_updates_of_a_cross_encoder_are_those_of_sentence_transformers(name, network, tmp_path):
    theirs_class, ours_name, columns, labels, mini_batch_size = CROSS_CASES[name]
    torch.manual_seed(0)  # of the new head
    config = transformers.AutoConfig.from_pretrained(network, num_labels=1)
    transformers.AutoModelForSequenceClassification.from_pretrained(network, config=config).save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(network).save_pretrained(tmp_path)
    model = sentence_transformers.CrossEncoder(str(tmp_path), device="cpu")
    model.model.double().train()
    given = batches(columns, labels)
    as_torch = [
        (texts, torch.tensor(gold if labels > 1 else gold.ravel()).as_subclass(Float64)) for texts, gold in given
    ]
    theirs = torch_updates(model.model, theirs_class(model), twenty(as_torch))

    roberta = roberta_flax.load(tmp_path, dtype="float64", param_dtype="float64")
    (head,) = (head for head in roberta.config.heads if head.kind == "sentence")
    loss = cross_encoder_loss(
        ScoreLoss(ours_name),
        head.name,
        config=roberta.config,
        numerics=Numerics("float64"),
        mini_batch_size=mini_batch_size,
    )
    arrays = [
        {
            "tokens": tokens_of(roberta, [pair for column in texts[1:] for pair in zip(texts[0], column, strict=True)])
            .reshape(columns - 1, BATCH, -1)
            .swapaxes(0, 1),
            "labels": gold,
        }
        for texts, gold in given
    ]
    ours, params = flax_updates(loss, roberta.params, twenty(arrays))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
    assert abs(ours[-1] - ours[0]) > 1e-3
    kernel = model.model.classifier.dense.weight.detach().numpy().T
    np.testing.assert_allclose(params["heads"][head.name]["dense"]["kernel"], kernel, rtol=0, atol=1e-9)


def test_retrieval_is_judged_as_by_sentence_transformers():
    random = np.random.default_rng(8)
    texts = [str(i) for i in range(60)]
    vectors = random.normal(size=(60, 5))
    pairs = [(i % 20, 20 + int(random.integers(40))) for i in range(30)]
    numbers = np.array(pairs, np.int32)
    relevant: dict[str, set[str]] = {}
    for query, document in pairs:
        relevant.setdefault(texts[query], set()).add(texts[document])
    documents = sorted({document for _, document in pairs})

    class Model:
        similarity_fn_name = "cosine"
        model_card_data = None

        def encode_query(self, sentences: list[str], **options: Any) -> torch.Tensor:
            return torch.tensor(vectors[[int(text) for text in sentences]])

        encode_document = encode_query

        def similarity(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return util.cos_sim(a, b)

    evaluator = evaluation.InformationRetrievalEvaluator(
        {text: text for text in relevant}, {texts[i]: texts[i] for i in documents}, relevant, write_csv=False
    )
    evaluator.store_metrics_in_model_card_data = lambda *arguments: None
    theirs = evaluator(Model())
    ours = evaluate_vectors(vectors, numbers, numbers, np.zeros((30, 0)), "retrieval", "cosine")
    assert ours.count == len(relevant)
    for name in ("ndcg@10", "mrr@10"):
        np.testing.assert_allclose(ours.metrics[name], theirs[f"cosine_{name}"], rtol=1e-12)


@pytest.mark.slow
def test_a_trained_encoder_is_one_of_sentence_transformers_with_the_same_vectors(one_layer, tmp_path):
    rows = "\n".join(f"{a}\t{b}\t{len(b) % 4}" for a in TEXTS[:4] for b in TEXTS[4:8])
    (tmp_path / "rows.tsv").write_text(f"sentence1\tsentence2\tscore\n{rows}\n")
    roberta = roberta_flax.load(one_layer)
    arguments = (tmp_path / "rows.tsv", tmp_path / "rows.tsv")
    SentenceEncoderTraining.of_files(roberta, SentenceLoss("cosent"), *arguments, steps=2, max_length=64).run(
        roberta, tmp_path / "encoder", seed=1, progress=False
    )
    texts = [*TEXTS[:6], "a man " * 80]  # over the maximum length
    theirs = sentence_transformers.SentenceTransformer(
        str(tmp_path / "encoder" / "sentence-transformers"), device="cpu"
    )
    assert theirs.max_seq_length == 64
    vectors = theirs.encode(texts)
    for folder in ("best", "sentence-transformers"):
        ours = roberta_flax.SentenceEncoder(tmp_path / "encoder" / folder)
        np.testing.assert_allclose(ours.encode(texts), vectors, rtol=0, atol=1e-5)
    roberta = roberta_flax.load(one_layer)
    CrossEncoderTraining.of_files(roberta, ScoreLoss(), *arguments, steps=2, label_range=(0, 3)).run(
        roberta, tmp_path / "reranker", seed=1, progress=False
    )
    pairs = [(TEXTS[0], TEXTS[1]), (TEXTS[2], TEXTS[3])]
    scores = sentence_transformers.CrossEncoder(
        str(tmp_path / "reranker" / "sentence-transformers"), device="cpu"
    ).predict(pairs)
    ours = roberta_flax.CrossEncoder(tmp_path / "reranker" / "best").predict(pairs)
    np.testing.assert_allclose(ours, scores, rtol=0, atol=1e-5)


def test_batches_without_duplicates_are_those_of_sentence_transformers():
    rows = [(int(a), int(b)) for a, b in np.random.default_rng(5).integers(0, 30, (100, 2))]

    class Dataset:
        column_names = ("anchor", "positive")

        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, index: int) -> dict[str, int]:
            return dict(zip(self.column_names, rows[index], strict=True))

    sampler = NoDuplicatesBatchSampler(Dataset(), 8, False, generator=torch.Generator(), seed=4)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(4)).tolist()
    found = list(without_duplicates(order, rows, 8))
    assert found == list(sampler)
    assert sorted(row for batch in found for row in batch) == list(range(len(rows)))
    assert max(map(len, found)) == 8
