"""What users see is compared too: sentence vectors, scores, entities and answers."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from roberta_flax import InputError, parity
from roberta_flax.convert import sentence_transformers as repositories
from roberta_flax.nn.sentence import ACTIVATIONS, POOLING_MODES, Pooling
from roberta_flax.parity import tensor_comparison
from roberta_flax.parity.subject import Subject
from tests.conftest import skip_or_fail

try:
    from references.sentence_transformers import HIDDEN_SIZE, body, edit, repository, sparse_repository, torch
except ImportError as error:
    skip_or_fail(f"the references cannot be imported ({error}); the README's test command installs them")

# Three rows, and eight: the tests share their programs
TEXTS = ("A man is playing a guitar.", "Two dogs are running across a field of grass.", "a")
TOKENS = np.random.default_rng(0).integers(5, 300, (8, 26)).tolist()
LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
VECTOR, SCORE = "sentence_vector", "heads.sentence_classification_head.score"


def pooled(*modes: str) -> Callable:
    names = {"cls": "cls_token", "max": "max_tokens", "mean": "mean_tokens", "lasttoken": "lasttoken"}
    names |= {"mean_sqrt_len_tokens": "mean_sqrt_len_tokens", "weightedmean": "weightedmean_tokens"}
    flags = {f"pooling_mode_{name}": mode in modes for mode, name in names.items()}
    return lambda m: m.Pooling(HIDDEN_SIZE, **flags)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    """Repositories, by what they are for."""
    folder = tmp_path_factory.mktemp("sources")
    network, masked_lm = body(folder / "body"), body(folder / "masked lm", "RobertaForMaskedLM")

    def dense(m, inputs: int) -> list:
        return [m.Dense(inputs, 24, activation_function=torch.nn.Tanh()), m.LayerNorm(24), m.Normalize()]

    names = {"num_labels": len(LABELS), "id2label": dict(enumerate(LABELS))}
    return {
        "vectors": repository(folder / "mean", network, lambda m: [pooled("mean")(m), *dense(m, HIDDEN_SIZE)]),
        "vectors of all poolings": repository(
            folder / "all", network, lambda m: [pooled(*POOLING_MODES)(m), *dense(m, 6 * HIDDEN_SIZE)]
        ),
        "sparse vectors": sparse_repository(folder / "max", masked_lm),
        "sums of sparse vectors": sparse_repository(folder / "sum", masked_lm, "sum", "log1p_relu"),
        "scores": body(folder / "scores", "RobertaForSequenceClassification", num_labels=1),
        "entities": body(folder / "entities", "RobertaForTokenClassification", **names),
        "answers": body(folder / "answers", "RobertaForQuestionAnswering"),
    }  # fmt: skip


FAST = ("pooled by cls", "another score")
OUTPUTS = {
    "vectors": VECTOR, "vectors of all poolings": VECTOR, "sparse vectors": VECTOR, "sums of sparse vectors": VECTOR,
    "scores": SCORE,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["builtin", "sentence-transformers"])
@pytest.mark.parametrize("name", OUTPUTS)
def test_vectors_and_scores_agree_within_their_tolerances(name, reference, sources):
    dtypes = ("float64", "float32", "bfloat16")
    only = ("features", OUTPUTS[name])
    report = parity.compare(sources[name], texts=TEXTS, dtypes=dtypes, reference=reference, only=only)
    assert report.passed
    assert report.reference["name"] == reference
    for run in report.runs:
        assert [tensor.name for tensor in run.tensors] == list(only)
        assert run.tensor(OUTPUTS[name]).max_abs > 0
    assert report.run("float64").tensor(OUTPUTS[name]).max_abs_tolerance < 1e-12


def test_vectors_are_compared_with_a_recording(sources, tmp_path):
    recorded = parity.compare(sources["vectors"], texts=TEXTS, record=tmp_path / "recording", only=[VECTOR])
    replayed = parity.compare(sources["vectors"], replay=tmp_path / "recording", only=[VECTOR])
    assert recorded.passed
    assert replayed.runs[0].tensors == recorded.runs[0].tensors


def changed(patch: pytest.MonkeyPatch, change: Callable[[Subject], None]) -> None:
    """Makes the Flax side wrong, after it has been read."""
    read = Subject.__init__

    def read_and_change(self, *args, **kwargs) -> None:
        read(self, *args, **kwargs)
        change(self)

    patch.setattr(Subject, "__init__", read_and_change)


def without(subject: Subject, place: int) -> None:
    embedding, params = subject.usage.embedding, list(subject.usage.module_params)
    del params[place]
    modules = (*embedding.modules[:place], *embedding.modules[place + 1 :])
    embedding = dataclasses.replace(embedding, modules=modules)
    subject.usage = dataclasses.replace(subject.usage, embedding=embedding, module_params=tuple(params))


def with_module(subject: Subject, place: int, module) -> None:
    modules = list(subject.usage.embedding.modules)
    modules[place] = module
    embedding = dataclasses.replace(subject.usage.embedding, modules=tuple(modules))
    subject.usage = dataclasses.replace(subject.usage, embedding=embedding)


def with_activation(subject: Subject, activation: str) -> None:
    scoring = dataclasses.replace(subject.usage.scoring, activation=activation)
    subject.usage = dataclasses.replace(subject.usage, scoring=scoring)


MUTATIONS: dict[str, tuple[str, Callable[[Subject], None]]] = {
    "pooled by cls": ("vectors", lambda s: with_module(s, 0, Pooling(("cls",)))),
    "pooled by weights": ("vectors", lambda s: with_module(s, 0, Pooling(("weightedmean",)))),
    "another activation": (
        "vectors", lambda s: with_module(s, 1, dataclasses.replace(s.usage.embedding.modules[1], activation="identity")),
    ),
    "no LayerNorm": ("vectors", lambda s: without(s, 2)),
    "not normalized": ("vectors", lambda s: without(s, 3)),
    "a sum for a maximum": (
        "sparse vectors", lambda s: with_module(s, 0, dataclasses.replace(s.usage.embedding.modules[0], strategy="sum")),
    ),
    "two logarithms for one": (
        "sparse vectors",
        lambda s: with_module(s, 0, dataclasses.replace(s.usage.embedding.modules[0], activation="log1p_relu")),
    ),
    "another score": ("scores", lambda s: with_activation(s, "tanh")),
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in MUTATIONS]
)
def test_a_wrong_vector_or_score_is_found_there_and_not_before(name, sources, monkeypatch):
    source, change = MUTATIONS[name]
    changed(monkeypatch, change)
    (run,) = parity.compare(sources[source], texts=TEXTS, dtypes=["bfloat16"], only=("features", "*")).runs
    assert run.diverges_at == OUTPUTS[source]


def test_a_setting_that_is_read_wrong_is_found_by_sentence_transformers(sources, monkeypatch, tmp_path):
    """The builtin reference takes the settings from the converted model."""
    source = shutil.copytree(sources["vectors"], tmp_path / "repository")
    edit(source / "config_sentence_transformers.json", prompts={"query": "query: "})  # converted anew, not cached
    monkeypatch.setitem(repositories._READERS, "Pooling", lambda folder, settings, size: Pooling(("cls",)))
    found = {
        reference: parity.compare(source, texts=TEXTS, reference=reference, only=("features", VECTOR))
        for reference in ("builtin", "sentence-transformers")
    }
    assert found["builtin"].passed
    assert found["sentence-transformers"].runs[0].diverges_at == VECTOR


def test_the_activations_are_those_of_torch():
    from roberta_flax.parity.torch_network import Arithmetic
    from roberta_flax.parity.torch_sentence import activate

    x = torch.linspace(-4, 4, 41, dtype=torch.float64)[None]
    for name, function in ACTIVATIONS.items():
        torch.testing.assert_close(
            activate(name, x, Arithmetic()).float(),
            torch.tensor(function(x.numpy().astype("float32"))),
            rtol=0,
            atol=2e-6,
        )


# Entities and answers


def decisions(report: parity.Report) -> dict[str, parity.DecisionResult]:
    return {decision.decision: decision for run in report.runs for decision in run.decisions}


@pytest.mark.parametrize("reference", ["builtin", "transformers"])
@pytest.mark.parametrize(("source", "decision"), [("entities", "entities"), ("answers", "answer")])
def test_entities_and_answers_are_compared(source, decision, reference, sources):
    report = parity.compare(sources[source], tokens=TOKENS, reference=reference, only=["heads.*.logits"])
    assert report.passed
    found = decisions(report)[decision]
    assert (found.count, found.agreed) == (len(TOKENS), len(TOKENS))


def test_entities_that_run_together_are_found_though_all_labels_agree(sources, monkeypatch):
    def groups(labels):
        tags = [label[2:] for label in labels]
        begins = [i for i in range(len(tags)) if i == 0 or tags[i] != tags[i - 1]]
        return [slice(begin, end) for begin, end in zip(begins, [*begins[1:], len(tags)], strict=True)]

    monkeypatch.setattr(tensor_comparison, "label_groups", groups)
    report = parity.compare(sources["entities"], tokens=TOKENS, only=["heads.*.logits"])
    assert not report.passed
    assert report.runs[0].diverges_at is None
    assert decisions(report)["argmax"].passed
    assert decisions(report)["entities"].disagreements


def test_answers_of_another_maximum_length_are_found_though_all_logits_agree(sources, monkeypatch):
    right = tensor_comparison.likeliest_spans
    monkeypatch.setattr(
        tensor_comparison,
        "likeliest_spans",
        lambda starts, ends, allowed, count, _: right(starts, ends, allowed, count, 2),
    )
    report = parity.compare(sources["answers"], tokens=TOKENS, only=["heads.*.logits"])
    assert not report.passed
    assert report.runs[0].diverges_at is None
    assert decisions(report)["answer"].disagreements


def test_a_model_without_vectors_and_scores_has_no_reference_in_sentence_transformers(sources):
    with pytest.raises(InputError, match="neither a sentence encoder nor a cross-encoder"):
        parity.compare(sources["answers"], texts=TEXTS, reference="sentence-transformers")
