"""RunInference with a RobertaModelHandler on Beam's DirectRunner, in one process and in two of which one is killed."""

from __future__ import annotations

import json
import pickle
from typing import Any

import apache_beam as beam
import jax
import numpy as np
import pytest
from apache_beam.ml.inference.base import KeyedModelHandler, PredictionResult, RunInference
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that

from roberta_flax import Classify, Embed, InputError
from roberta_flax.inference.beam import RobertaModelHandler
from tests.engines import killed

ROWS = 200


def pipeline(**options: Any) -> beam.Pipeline:
    # Otherwise the DirectRunner would first look for Prism, a runner of one process that it downloads.
    return beam.Pipeline(
        options=PipelineOptions(flags=[], runner="DirectRunner", allow_unsafe_triggers=True, **options)
    )


def as_line(keyed: tuple[int, PredictionResult]) -> str:
    return json.dumps({"id": keyed[0], **keyed[1].inference})


@pytest.mark.slow
def test_a_pipeline_that_loses_a_worker_writes_nothing_and_when_rerun_every_row_once(
    tiny, tiny_directory, sick_pairs, tmp_path, monkeypatch
):
    """The DirectRunner repeats nothing, so the pipeline fails; runners of clusters repeat the batches of a worker."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir or "")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    (processes := tmp_path / "processes").mkdir()
    task = killed.KilledOnce("mnli", folder=str(processes))
    handler = RobertaModelHandler(tiny_directory, task, batch_tokens=1000, strategy="packing")
    rows = killed.rows(sick_pairs, ROWS)

    def run() -> None:
        with pipeline(direct_running_mode="multi_processing", direct_num_workers=2) as p:
            results = (
                p
                | beam.Create([(number, pair) for number, *pair in rows])
                | beam.Reshuffle()
                | RunInference(KeyedModelHandler(handler))
            )
            results | beam.Map(as_line) | beam.io.WriteToText(str(tmp_path / "out"))

    with pytest.raises(RuntimeError):
        run()
    assert (processes / killed.KILLED).exists()
    assert not list(tmp_path.glob("out*-of-*"))
    before = killed.pids(processes)
    run()
    assert len(killed.pids(processes) - before) == 2
    lines = [line for file in tmp_path.glob("out*-of-*") for line in file.read_text().splitlines()]
    found = sorted(map(json.loads, lines), key=lambda row: row["id"])
    assert [row["id"] for row in found] == list(range(ROWS))
    for number, premise, hypothesis in rows[:: ROWS // 10]:
        row = found[number]
        if premise is None:
            assert row["label"] is None
            assert "NoneType" in row["rejected"]
        else:
            expected = np.asarray(tiny.predict("mnli", tiny.encode(premise, hypothesis)))[0]
            assert np.abs(np.array(list(row["log_probabilities"].values())) - expected).max() <= 5e-5
            assert row["label"] == max(row["log_probabilities"], key=row["log_probabilities"].get)
            assert (row["rejected"], row["truncated"]) == (None, False)


def test_batches_hold_as_many_elements_as_there_is_room_for_tokens(tiny_directory, tiny):
    handler = RobertaModelHandler(tiny_directory, Classify("mnli"), batch_tokens=40)
    texts = ["a b c", "a man " * 8, "a", *["dogs"] * 60, "a man " * 100, "x", None]
    lengths = {text: min(40, len(tiny.tokenizer.pieces(text))) if text else 1 for text in texts}

    def greedy(batches: list[list[Any]]) -> None:
        batches = [batch for batch in batches if batch]
        assert [text for batch in batches for text in batch] == texts
        sizes = [sum(lengths[text] for text in batch) for batch in batches]
        assert max(sizes) <= 40
        # Beam ends the second batch of a bundle at the size of the first, whose time it does not count.
        assert all(size + lengths[after[0]] > 40 for size, after in zip(sizes[2:], batches[3:], strict=False))
        assert len(batches) > 4

    with pipeline() as p:
        assert_that(
            p | beam.Create([texts]) | beam.FlatMap(list) | beam.BatchElements(**handler.batch_elements_kwargs()),
            greedy,
        )


def test_results_are_in_the_order_of_the_elements_and_vectors_are_arrays(tiny_directory, tiny):
    pickled = pickle.dumps(RobertaModelHandler(tiny_directory, Embed("first"), max_length=16))
    handler = pickle.loads(pickled)  # noqa: S301
    texts = ["a man", "w " * 40, None, "dogs"]
    results = handler.run_inference(texts, handler.load_model())
    assert [result.example for result in results] == texts
    assert {result.model_id for result in results} == {str(tiny_directory)}
    assert [result.inference["truncated"] for result in results] == [False, True, False, False]
    assert [result.inference["rejected"] is None for result in results] == [True, True, False, True]
    for text in ("a man", "dogs"):
        expected = np.asarray(tiny.extract_features(tiny.encode(text)))[0, 0]
        found = results[texts.index(text)].inference["features"]
        assert found.dtype == np.float32
        assert np.abs(found - expected).max() <= 5e-5


def test_processes_that_share_a_large_model_get_its_results(tiny_directory):
    handler = RobertaModelHandler(tiny_directory, Classify("mnli"), large_model=True)
    with pipeline() as p:
        results = p | beam.Create([("a", "b"), ("c", "d")]) | RunInference(handler)
        labels = results | beam.Map(lambda result: result.inference["rejected"])
        assert_that(labels, lambda found: pytest.fail(str(found)) if found != [None, None] else None)


def test_a_handler_refuses_options_that_do_not_exist(tiny_directory):
    with pytest.raises(InputError, match="Predictor has no option 'on_lng'.*; did you mean 'on_long'"):
        RobertaModelHandler(tiny_directory, Classify("mnli"), on_lng="error")
    with pytest.raises(InputError, match="load has no option 'dtyp'.*; did you mean 'dtype'"):
        RobertaModelHandler(tiny_directory, Classify("mnli"), load={"dtyp": "bfloat16"})
    with pytest.raises(InputError, match="batch_tokens must be a positive integer, got 0"):
        RobertaModelHandler(tiny_directory, Classify("mnli"), batch_tokens=0)
    with pytest.raises(InputError, match="there are no inference_args, got {'topk': 1}"):
        RunInference(RobertaModelHandler(tiny_directory, Classify("mnli")), inference_args={"topk": 1}).expand(None)
