"""Sentence encoders and cross-encoders are trained on rows of texts: files, batches, commands, and what is saved."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import roberta_flax
from roberta_flax import CrossEncoder, InputError, RobertaConfig, SentenceEncoder, forward
from roberta_flax.checkpoint.usage import Embedding, Usage
from roberta_flax.datasets import text_rows
from roberta_flax.datasets.readers import Columns
from roberta_flax.inference.encoder_evaluation import evaluate_encoder
from roberta_flax.nn.sentence import MultiVectorMask, Pooling
from roberta_flax.nn.tree import flatten
from roberta_flax.remote import to_path
from roberta_flax.tasks.ranking import evaluate_vectors
from roberta_flax.tasks.sentence_embedding import SentenceEmbedding
from roberta_flax.tasks.sentence_scores import SentenceScores
from roberta_flax.train.encoder_batches import EncodedRows, RowBatches, without_duplicates
from roberta_flax.train.encoder_losses import (
    ScoreLoss,
    SentenceLoss,
    cosent,
    cross_encoder_loss,
    multiple_negatives_ranking,
    sentence_encoder_loss,
    triplet,
)
from roberta_flax.train.encoder_training import SentenceEncoderTraining

NOUNS = ("dog", "cat", "man", "woman", "table", "house", "garden", "train")


def written(path: Path, *rows: Any) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def pairs(tmp_path) -> Path:
    return written(
        tmp_path / "pairs.tsv", "anchor\tpositive", *(f"the {noun} is good\ta good {noun}" for noun in NOUNS)
    )


@pytest.fixture
def scored(tmp_path) -> Path:
    rows = [f"the {a}\tthe {b}\t{5 if a == b else 1 + i % 3}" for i, a in enumerate(NOUNS[:4]) for b in NOUNS[:4]]
    return written(tmp_path / "scored.tsv", "sentence1\tsentence2\tscore", *rows)


# --- files ------------------------------------------------------------------------------------------------------------


def test_the_usual_columns_are_found(tmp_path):
    def usual(header: str, **options: Any) -> Columns:
        return text_rows.with_usual_columns(written(tmp_path / "a.tsv", header, "x"), Columns(), **options)

    triplets = usual("id\tnegative_2\tquery\tpositive\tnegative_1")
    assert triplets.texts == ("query", "positive", "negative_2", "negative_1")
    assert usual("sentence1\tsentence2\tscore") == Columns(("sentence1", "sentence2"), ("score",))
    assert usual("sentence1\tsentence2\tscore", labeled=False).label == ()
    with pytest.raises(InputError, match="has the columns a, b|say which hold text"):
        usual("a\tb")


def test_rows_are_read_with_equal_texts_under_one_number_and_labels_in_their_range(tmp_path):
    path = written(
        tmp_path / "a.csv", "a,b,y", "one,two,1", "two,one,5", "three,,3", "one,three,", "one,four,x", "one,one,3"
    )
    rows = text_rows.read(path, Columns(("a", "b"), ("y",)), label_range=(1, 5))
    assert rows.texts[:2] == ("one", "two")
    assert_array_equal(rows.numbers[[0, 1, -1]], [[0, 1], [1, 0], [0, 0]])
    assert_array_equal(rows.labels[[0, 1, -1], 0], np.float32([0, 1, 0.5]))
    assert (len(rows), rows.tally.unlabeled, rows.tally.unusable) == (3, 1, 2)
    assert "line 4: a text is empty" in rows.tally.first
    with pytest.raises(InputError, match="label_range must be two numbers, the lower first, got 5 and 1"):
        text_rows.read(path, Columns(("a", "b"), ("y",)), label_range=(5, 1))


def test_a_column_may_be_anchor_and_positive(shallow, pairs):
    job = SentenceEncoderTraining.of_files(shallow, SentenceLoss(), pairs, pairs, columns=Columns(("anchor", "anchor")))
    assert_array_equal(job.training.numbers, [[i, i] for i in range(8)])


def test_rows_that_all_share_a_text_have_no_negatives(shallow, tmp_path):
    path = written(tmp_path / "a.tsv", "anchor\tpositive", "one\ttwo", "one\tthree", "four\tone")
    with pytest.raises(InputError, match="every two rows have a text in common"):
        SentenceEncoderTraining.of_files(shallow, SentenceLoss(), path, path)


def test_a_label_outside_the_range_of_a_loss_is_an_error(shallow, scored):
    message = "the loss cosine takes labels from -1 to 1, but 10 are not; the first is 5; scale them with label_range"
    with pytest.raises(InputError, match=message):
        SentenceEncoderTraining.of_files(shallow, SentenceLoss("cosine"), scored, scored)


def test_the_validation_file_may_have_columns_of_its_own(shallow, pairs, scored):
    job = SentenceEncoderTraining.of_files(
        shallow, SentenceLoss(), pairs, scored, validation_columns=Columns(("sentence1", "sentence2"), ("score",))
    )
    assert (job.evaluation, job.best, job.training.rows.labels.shape) == ("correlation", "spearman", (8, 0))
    job = SentenceEncoderTraining.of_files(shallow, SentenceLoss(), pairs, scored, evaluation="correlation")
    assert_array_equal(job.validation.rows.labels[:2], [[5], [1]])
    job = SentenceEncoderTraining.of_files(shallow, SentenceLoss("cosent"), scored, scored, evaluation="retrieval")
    assert (job.evaluation, job.best) == ("retrieval", "ndcg@10")
    assert job.validation.rows.labels.shape == (16, 1)


def test_a_multi_vector_encoder_has_no_vector_of_a_text_to_train_or_evaluate(shallow, pairs, scored):
    usage = Usage(embedding=Embedding((MultiVectorMask(),), similarity="maxsim"))
    model = roberta_flax.Roberta(
        shallow.config, shallow.params, shallow.tokenizer, numerics=shallow.numerics, usage=usage
    )
    with pytest.raises(InputError, match=r"a multi-vector encoder cannot be trained here; give pooling \(--pooling\)"):
        SentenceEncoderTraining.of_files(model, SentenceLoss(), pairs, pairs)
    job = SentenceEncoderTraining.of_files(model, SentenceLoss(), pairs, pairs, pooling="mean")
    assert (job.embedding.modules, job.embedding.similarity) == ((Pooling(("mean",)),), "cosine")
    with pytest.raises(InputError, match="a multi-vector encoder is not evaluated here"):
        evaluate_encoder(model, scored)


def test_a_run_warns_of_a_vector_that_is_only_trained_in_part(shallow, pairs):
    def text(*dims: int) -> str:
        return SentenceEncoderTraining.of_files(shallow, SentenceLoss(matryoshka_dims=dims), pairs, pairs).to_text()

    assert "warning: a vector has 64 values, and matryoshka_dims trains the first 32, 8 alone" in text(32, 8)
    assert "warning" not in text(64, 8)


@pytest.mark.parametrize(
    ("settings", "similarity"),
    [
        ({}, "cosine"),
        ({"similarity": "dot"}, "dot"),
        ({"name": "margin-mse"}, "dot"),
        ({"name": "margin-mse", "matryoshka_dims": (8,)}, "cosine"),
        ({"name": "triplet"}, "euclidean"),
    ],
)
def test_vectors_are_compared_as_in_the_loss(settings, similarity):
    assert SentenceLoss(**settings).compared_by == similarity


# --- losses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "texts", "labels", "message"),
    [
        ("triplet", "ab", "", "takes an anchor, a positive and a negative, and no label; got 2 text columns"),
        ("cosent", "ab", "", "takes two texts and a label; got 2 text columns .a, b. and no label columns"),
        ("margin-mse", "abcd", "x", "a margin for each negative"),
        ("kl-divergence", "abc", "x", "a score for each"),
        ("multiple-negatives-ranking", "ab", "x", "and no label; got"),
    ],
)
def test_a_loss_says_which_columns_it_takes(name, texts, labels, message):
    with pytest.raises(InputError, match=message):
        SentenceLoss(name).check(texts, labels, 8)


def test_a_batch_of_one_has_no_negatives_and_no_order():
    for name, columns in (("multiple-negatives-ranking", ("ab", "")), ("cosent", ("ab", "x"))):
        with pytest.raises(InputError, match="compares the rows of a batch, so batch_size must be 2 or more, got 1"):
            SentenceLoss(name).check(*columns, 1)
    SentenceLoss().check("abc", "", 1)  # the negative is in the row


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"name": "cosentt"},
            "the loss must be one of multiple-negatives-ranking, .*; got 'cosentt'; did you mean 'cosent'",
        ),
        ({"name": "CachedMultipleNegativesRankingLoss"}, "any loss is cached with mini_batch_size"),
        ({"margin": 1.0}, "margin is for the loss triplet, not for multiple-negatives-ranking"),
        ({"scale": 0.0}, "scale must be over 0 and finite, got 0.0"),
        ({"similarity": "euclidean"}, "similarity must be one of cosine, dot, got 'euclidean'"),
        ({"matryoshka_dims": (8, 8)}, "must be different numbers from 1"),
        ({"matryoshka_dims": (8, 4), "matryoshka_weights": (1.0,)}, "one for each of 2 matryoshka_dims, got 1"),
    ],
)
def test_settings_that_a_loss_does_not_have_are_errors(settings, message):
    with pytest.raises(InputError, match=message):
        SentenceLoss(**settings)


def test_losses_are_named_as_in_sentence_transformers():
    assert SentenceLoss("CosineSimilarityLoss") == SentenceLoss("cosine")
    assert ScoreLoss("BinaryCrossEntropyLoss").name == "binary-cross-entropy"
    with pytest.raises(InputError, match="one of binary-cross-entropy, mse, margin-mse"):
        ScoreLoss("cosent")


def test_rows_of_weight_zero_are_no_negatives_and_have_no_gradient():
    vectors = jax.random.normal(jax.random.key(0), (4, 3, 8))
    vectors = vectors.at[2:].set(0)  # of which the norm has no derivative
    weights, labels = jnp.float32([1, 1, 0, 0]), jnp.float32([[0.2], [0.9], [0.4], [0.1]])
    losses = (SentenceLoss(), SentenceLoss("triplet"), SentenceLoss("margin-mse"))

    @jax.jit
    def sums(vectors: Any, labels: Any, weights: Any) -> Any:
        return jnp.stack(
            [loss(vectors, labels, weights)[0] for loss in losses]
            + [cosent(vectors[:, 0, 0], labels[:, 0], weights)[0]]
        )

    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        gradients = jax.jit(jax.jacrev(sums))(vectors, labels, weights)
    assert_allclose(sums(vectors, labels, weights), sums(vectors[:2], labels[:2], weights[:2]), rtol=1e-5)
    assert_array_equal(gradients[:, 2:], 0)
    assert np.isfinite(gradients).all()


def test_the_loss_of_two_pairs_by_hand():
    anchors = np.float32([[1, 0], [0, 2]])
    vectors = np.stack([anchors, anchors * 3], axis=1)  # each positive has the direction of its anchor
    total, rows = jax.jit(partial(multiple_negatives_ranking, scale=2.0))(vectors, np.ones(2, np.float32))
    assert_allclose(total / rows, np.log1p(np.exp(-2)), rtol=1e-6)
    of_triplet = jax.jit(jax.value_and_grad(lambda v: triplet(v, np.ones(1, np.float32), margin=0.5)[0]))
    loss, _ = of_triplet(np.float32([[[0, 0], [3, 4], [0, 1]]]))
    assert_allclose(loss, 5 - 1 + 0.5)  # the positive is farther than the negative
    assert_array_equal(of_triplet(np.zeros((1, 3, 2), np.float32))[1], 0)


@pytest.mark.slow
def test_a_batch_in_parts_has_the_gradient_of_the_whole_and_dropout_of_its_own(shallow):
    tokens = np.stack([shallow.encode(f"the {a} {b}")[:5] for a in NOUNS[:4] for b in ("sleeps", "eats")]).reshape(
        4, 2, -1
    )
    batch = {"tokens": tokens}
    losses = [sentence_encoder_loss(SentenceLoss(), config=shallow.config, mini_batch_size=size) for size in (None, 2)]
    whole, parts = (
        jax.jit(jax.value_and_grad(lambda p, loss=loss: loss(p, batch, None)[0]))(shallow.params) for loss in losses
    )
    assert_allclose(whole[0], parts[0], rtol=1e-5)
    for path, gradient in flatten(whole[1]).items():
        assert_allclose(flatten(parts[1])[path], gradient, rtol=0, atol=1e-4, err_msg=path)
    with pytest.raises(InputError, match="mini_batch_size must divide the 4 rows of a batch, got 3"):
        sentence_encoder_loss(SentenceLoss(), config=shallow.config, mini_batch_size=3)(shallow.params, batch, None)


@pytest.mark.slow
def test_a_batch_in_parts_takes_the_memory_of_a_part():
    config = RobertaConfig(
        vocab_size=50, num_layers=1, hidden_size=32, num_heads=2, intermediate_size=64, max_positions=32
    )
    params = forward.abstract_params(config)
    batch = {"tokens": jax.ShapeDtypeStruct((64, 2, 32), jnp.int32)}

    def memory(mini_batch_size: int | None) -> int:
        loss = sentence_encoder_loss(SentenceLoss(), config=config, mini_batch_size=mini_batch_size)
        compiled = jax.jit(jax.grad(lambda p, b: loss(p, b, None)[0])).lower(params, batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(8) < memory(None) / 4  # an eighth, and the vectors and gradients


def test_a_cross_encoder_has_one_output(shallow):
    with pytest.raises(InputError, match="is trained with one output; head 'mnli' has 3"):
        cross_encoder_loss(ScoreLoss(), "mnli", config=shallow.config)


# --- batches ----------------------------------------------------------------------------------------------------------


def encoded(shallow: roberta_flax.Roberta, path: Path, **columns: Any) -> EncodedRows:
    rows = text_rows.read(path, text_rows.with_usual_columns(path, Columns(**columns)))
    tasks = [SentenceEmbedding(Embedding())] * rows.numbers.shape[1]
    return EncodedRows.of_texts(rows, tasks, shallow.tokenizer, shallow.max_positions)


def batches_of(shallow: roberta_flax.Roberta, rows: EncodedRows, **options: Any) -> RowBatches:
    sizes = {"batch_size": 3, "pad_id": shallow.config.pad_id, "max_positions": shallow.max_positions, "seed": 1}
    return RowBatches(rows, **{**sizes, **options})


def test_a_batch_is_filled_up_with_rows_of_weight_zero_and_its_texts_are_the_rows(shallow, pairs):
    rows = encoded(shallow, pairs)
    batches = batches_of(shallow, rows)
    epoch = [next(batches) for _ in range(batches.batches_per_epoch)]
    assert [batch["weights"].tolist() for batch in epoch] == [[1, 1, 1], [1, 1, 1], [1, 1, 0]]
    texts = {
        tuple(shallow.decode(text[text != shallow.config.pad_id]) for text in row)
        for batch in epoch
        for row, weight in zip(batch["tokens"], batch["weights"], strict=True)
        if weight
    }
    assert texts == {(f"the {noun} is good", f"a good {noun}") for noun in NOUNS}
    assert_array_equal(epoch[-1]["tokens"][2], epoch[-1]["tokens"][0])


def test_batches_go_on_from_a_saved_position_and_epochs_differ(shallow, pairs):
    rows = encoded(shallow, pairs)
    first, again = (batches_of(shallow, rows, no_duplicates=True, update_freq=2) for _ in range(2))
    for _ in range(2):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    rest = [next(first) for _ in range(3)]
    again.set_state(state)
    for batch in rest:
        for name, array in next(again).items():
            assert_array_equal(array, batch[name])
    assert rest[0]["tokens"].shape[:3] == (2, 3, 2)
    order = batches_of(shallow, rows)
    one, two = ([next(order)["tokens"] for _ in range(3)] for _ in range(2))
    assert any((a != b).any() for a, b in zip(one, two, strict=True))


def test_no_two_rows_of_a_batch_share_a_text():
    rows = [(0, 1), (0, 2), (3, 1), (4, 5), (5, 6), (7, 7)]
    assert list(without_duplicates(range(6), rows, 3)) == [[0, 3, 5], [1, 2, 4]]
    assert list(without_duplicates(range(3), [(0, 1)] * 3, 8)) == [[0], [1], [2]]


def test_a_prompt_is_put_before_each_text_of_its_column(shallow, pairs):
    rows = text_rows.read(pairs, Columns(("anchor", "positive")))
    tasks = [SentenceEmbedding(Embedding(), prompt) for prompt in ("query: ", "passage: ")]
    found = EncodedRows.of_texts(rows, tasks, shallow.tokenizer, shallow.max_positions)
    assert [shallow.decode(ids) for ids in found.sequences(found.numbers[0])] == [
        "query: the dog is good",
        "passage: a good dog",
    ]


def test_a_pair_is_encoded_as_a_cross_encoder_encodes_it(shallow, pairs):
    rows = text_rows.read(pairs, Columns(("anchor", "positive")))
    found = EncodedRows.of_pairs(rows, SentenceScores("score"), shallow.tokenizer, shallow.max_positions)
    (ids,) = found.sequences(found.numbers[3])
    assert_array_equal(ids, shallow.encode("the woman is good", "a good woman"))


# --- evaluation -------------------------------------------------------------------------------------------------------


def test_a_text_is_not_ranked_for_itself_unless_it_is_relevant():
    numbers = np.int32([[0, 1], [1, 2]])  # 1 is a query too
    vectors = np.float32([[1, 0], [0.8, 0.6], [-1, 0.1]])
    found = evaluate_vectors(vectors, numbers, numbers, np.zeros((2, 0)), "retrieval", "cosine")
    assert found.metrics == {"ndcg@10": 1.0, "mrr@10": 1.0}  # for 1 only 2 is left
    numbers = np.int32([[0, 0], [1, 2]])
    vectors = np.float32([[1, 0], [1, 0], [0, 1]])
    found = evaluate_vectors(vectors, numbers, numbers, np.zeros((2, 0)), "retrieval", "cosine")
    assert_allclose(found.metrics["mrr@10"], (1 + 1 / 2) / 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": Columns(labels=("a", "b"))}, "labels .--labels. name the classes of a head"),
        ({"task": "sick-relatedness"}, "has no column 'sentence_A'"),
        ({"evaluation": "accuracy"}, "evaluation must be one of correlation, retrieval, got 'accuracy'"),
        ({"columns": Columns(("anchor",))}, "evaluated on two or more text columns, got anchor"),
        ({"on_long": "window"}, "on_long .--on-long. window is not for them"),
        ({"on_long": "error", "max_length": 8, "prompts": ("a long prompt before each text: ",)}, "tokens"),
        ({"prompts": ("a", "b", "c")}, "or two for the first and the others; got 3"),
        ({"truncate_dim": 0}, "truncate_dim must be a positive integer"),
        ({"head": "none"}, "none"),
    ],
)
def test_what_an_encoder_cannot_be_evaluated_on_is_said(shallow, pairs, options, message):
    with pytest.raises(InputError, match=message):
        evaluate_encoder(shallow, pairs, **options)


# --- commands ---------------------------------------------------------------------------------------------------------

FAST = ("--lr", "2e-3", "--dropout", "0", "--attention-dropout", "0", "--batch-size", "8", "--steps", "12", "--json")


@pytest.mark.slow
def test_a_sentence_encoder_learns_from_pairs_and_all_commands_take_it(run, one_layer, pairs, tmp_path):
    options = ("--matryoshka-dims", "64,16", "--mini-batch-size", "4", "--prompt", "query: ", "--prompt", "passage: ")
    status, out, err = run(
        "train-encoder",
        pairs,
        "--valid",
        pairs,
        "--model",
        one_layer,
        "-o",
        tmp_path / "o",
        *FAST,
        *options,
    )
    assert status == 0, err
    summary = json.loads(out)
    assert summary["metrics"]["mrr@10"] == 1.0 > summary["before"]["mrr@10"]
    assert (summary["loss"]["name"], summary["evaluation"]) == ("multiple-negatives-ranking", "retrieval")
    best = tmp_path / "o" / "best"
    status, out, err = run("evaluate", pairs, "--model", best, "--json")  # with the prompts of the training
    assert (status, json.loads(out)["metrics"]) == (0, summary["metrics"]), err
    status, out, err = run("evaluate", pairs, "--model", best, "--truncate-dim", "16", "--json")
    assert status == 0, err
    short = SentenceEncoder(best, truncate_dim=16)
    queries, documents = zip(*(row.split("\t") for row in pairs.read_text().splitlines()[1:]), strict=True)
    similarities = short.similarity(short.encode_query(queries), short.encode_document(documents))
    ranks = (similarities >= np.diagonal(similarities)[:, None]).sum(axis=1)
    assert json.loads(out)["metrics"]["mrr@10"] == pytest.approx((1 / ranks).mean())
    encoder = SentenceEncoder(best)
    assert encoder.prompts["query"] == "query: "
    written_for = SentenceEncoder(tmp_path / "o" / "sentence-transformers")
    texts = ["the dog", "a garden"]
    assert_allclose(written_for.encode_query(texts), encoder.encode_query(texts), rtol=0, atol=1e-6)
    status, _, err = run("features", pairs, "-o", tmp_path / "v.npy", "-c", "anchor", "--model", best)
    assert status == 0, err


@pytest.mark.slow
def test_rows_and_run_may_be_at_urls(run, one_layer, pairs, tmp_path):
    fsspec.filesystem("memory").rm("/", recursive=True)
    bucket = to_path("memory://encoders")
    (bucket / "pairs.tsv").put(pairs)
    for file, directory in ((pairs, tmp_path / "run"), (bucket / "pairs.tsv", bucket / "run")):
        arguments = (file, "--valid", file, "-o", directory, "--model", one_layer, *FAST, "--steps", "2")
        status, _, err = run("train-encoder", *arguments)
        assert status == 0, err
    for name in ("best/model.safetensors", "sentence-transformers/model.safetensors"):
        assert (bucket / "run" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    assert json.loads((bucket / "run" / "summary.json").read_bytes())["best_model"] == "memory://encoders/run/best"


@pytest.mark.slow
def test_a_cross_encoder_learns_from_scores(run, one_layer, scored, tmp_path):
    arguments = (
        scored,
        "--valid",
        scored,
        "--model",
        one_layer,
        "-o",
        tmp_path / "o",
        *FAST,
        "--label-range",
        "1",
        "5",
    )
    status, out, err = run("train-reranker", *arguments)
    assert status == 0, err
    summary = json.loads(out)
    assert summary["metrics"]["spearman"] > summary["before"]["spearman"]
    best = CrossEncoder(tmp_path / "o" / "best")
    assert (best.num_labels, best.activation_fn) == (1, "sigmoid")
    written_for = CrossEncoder(tmp_path / "o" / "sentence-transformers")
    given = [("the dog", "the cat"), ("the man", "the man")]
    assert_allclose(written_for.predict(given), best.predict(given), rtol=0, atol=1e-6)
    status, out, err = run(
        "evaluate", scored, "--model", tmp_path / "o" / "best", "--evaluation", "correlation", "--json"
    )
    assert status == 0, err
    assert json.loads(out)["metrics"]["spearman"] == pytest.approx(summary["metrics"]["spearman"], abs=1e-5)
    ranked = evaluate_encoder(roberta_flax.load(tmp_path / "o" / "best"), scored, evaluation="retrieval")
    assert ranked.evaluation.count == 4


@pytest.mark.slow
def test_a_run_that_was_stopped_computes_the_same_bits(one_layer, scored, tmp_path):
    def train(directory: Path) -> None:
        roberta = roberta_flax.load(one_layer)
        job = SentenceEncoderTraining.of_files(
            roberta, SentenceLoss("cosent"), scored, scored, steps=6, save_every=3, validate_every=6, pooling="cls",
            best="pearson",
        )  # fmt: skip
        job.run(roberta, directory, seed=3, progress=False)

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(whole)
    shutil.copytree(whole, stopped)
    shutil.rmtree(stopped / "checkpoints" / "6")
    shutil.rmtree(stopped / "best")
    (stopped / "summary.json").unlink()
    train(stopped)
    once, twice = (roberta_flax.load(folder / "best") for folder in (whole, stopped))
    assert once.usage.embedding is not None
    assert once.usage.embedding.modules == (Pooling(("cls",)),)
    for path, array in flatten(once.params).items():
        assert_array_equal(flatten(twice.params)[path], array, err_msg=path)
    assert (stopped / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--loss", "cosent", "-c", "anchor", "-c", "positive"),
            "the loss cosent takes two texts and a label; got 2 text columns",
        ),
        (("--label-column", "positive"), "the loss multiple-negatives-ranking takes no label column, got positive"),
        (("--batch-size", "1"), "batch_size must be 2 or more, got 1"),
        (("-c", "anchor", "-c", "other"), "other"),
        (("--matryoshka-dims", "64,x"), "--matryoshka-dims takes numbers separated by commas, such as 768,256,64"),
        (("--matryoshka-dims", "64.5"), "such as 768,256,64; got '64.5'"),
        (("--matryoshka-dims", "65"), "must be at most the 64 values of a vector"),
        (("--mini-batch-size", "3"), "mini_batch_size must divide batch_size, 16, got 3"),
        (("--evaluation", "correlation"), "name their column with --label-column"),
        (("--best-metric", "spearman"), "the best metric must be one of ndcg@10, mrr@10, got 'spearman'"),
        (("--prompt", "a", "--prompt", "b", "--prompt", "c"), "one for each of 2 columns; got 3"),
    ],
)
def test_what_cannot_be_trained_is_said_in_one_line(run, tiny_directory, pairs, tmp_path, arguments, message):
    status, out, err = run(
        "train-encoder", pairs, "--valid", pairs, "--model", tiny_directory, "-o", tmp_path / "o", *arguments
    )
    assert (status, out) == (1, "")
    assert message in err.splitlines()[-1]
    assert not (tmp_path / "o").exists()


SHARDED = """
import json
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_enable_x64", True)
from roberta_flax.nn import sharding
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.nn.meshes import on_mesh_of_arguments
from roberta_flax.nn.numerics import Numerics
from roberta_flax.train.encoder_losses import SentenceLoss, sentence_encoder_loss
from tests.params import random_params

config = RobertaConfig(vocab_size=90, num_layers=1, hidden_size=16, num_heads=2, intermediate_size=32, max_positions=30)
params = random_params(config, np.float64)
tokens = np.random.default_rng(0).integers(4, 90, (16, 2, 12)).astype(np.int32)

def gradient(devices, tensor_parallel, mini_batch_size):
    mesh = sharding.mesh(jax.devices()[:devices], tensor_parallel)
    loss = sentence_encoder_loss(
        SentenceLoss(), config=config, numerics=Numerics("float64"), mini_batch_size=mini_batch_size
    )
    batch = {"tokens": sharding.place_rows(tokens, mesh)}
    function = on_mesh_of_arguments(jax.value_and_grad(lambda p, b: loss(p, b, jax.random.key(1))[0]))
    return jax.device_get(jax.jit(function)(sharding.place(params, config, mesh), batch))

for mini_batch_size in (None, 8):
    one = gradient(1, 1, mini_batch_size)
    differences = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), one, gradient(8, 2, mini_batch_size))
    print(json.dumps(max(jax.tree.leaves(differences))))
"""


def test_devices_that_share_a_batch_have_all_of_its_negatives(eight_devices):
    differences = [json.loads(line) for line in eight_devices(SHARDED).splitlines() if line[0].isdigit()]
    assert len(differences) == 2
    assert max(differences) < 1e-12  # float64, sums of some hundred numbers
