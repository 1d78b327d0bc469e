"""Beside sentence-transformers 6: multi-vector encoders, its own and PyLate's, answer the same here and there."""

from __future__ import annotations

import json
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling, MultiVectorMask

from references.sentence_transformers import HIDDEN_SIZE, TEXTS, body, edit, shaken
from roberta_flax import CheckpointError, InputError, SentenceEncoder
from roberta_flax.convert import convert, export
from tests.parity import layouts

TOLERANCE = 1e-5  # of vectors of norm 1, float32, a layer
SIZE = 12
PUNCTUATION = list(string.punctuation)
PREFIXES = ("[Q] ", "[D] ")


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two small networks by the names of their families, the first with PyLate's two prefixes as added tokens."""
    roberta, xlm_r = (tmp_path_factory.mktemp("networks") / name for name in ("roberta", "xlm-r"))
    tokenizer = layouts.auto(body(roberta, vocab_size=450))
    tokenizer.add_tokens(list(PREFIXES))
    tokenizer.save_pretrained(roberta)
    body(xlm_r, "XLMRobertaModel", vocab_size=600)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        (xlm_r / name).unlink(missing_ok=True)
    layouts.xlm_roberta(xlm_r)
    return {"roberta": roberta, "xlm-r": xlm_r}


def dense(**settings: Any) -> Dense:
    arguments = {"bias": False, "activation_function": torch.nn.Identity(), "module_input_name": "token_embeddings"}
    return shaken(Dense(HIDDEN_SIZE, SIZE, **arguments | settings), 1)


def repository(folder: Path, network: Path, *modules: torch.nn.Module, **settings: Any) -> Any:
    """A multi-vector encoder that is saved in `folder`. Settings are the Transformer's, and prompts."""
    options = {name: settings.pop(name) for name in ("prompts", "similarity_fn_name") if name in settings}
    theirs = sentence_transformers.MultiVectorEncoder(
        modules=[Transformer(str(network), **settings), *modules], device="cpu", **options
    )
    theirs.save_pretrained(str(folder), create_model_card=False)
    return theirs


def of_pylate(folder: Path, network: Path, **settings: Any) -> Any:
    """The same, as PyLate writes it: two modules, and the rest in config_sentence_transformers.json."""
    repository(folder, network, dense())
    entries = json.loads((folder / "modules.json").read_text())
    entries[0]["type"], entries[1]["type"] = "sentence_transformers.models.Transformer", "pylate.models.Dense.Dense"
    (folder / "modules.json").write_text(json.dumps(entries))
    edit(folder / "1_Dense" / "config.json", module_input_name=None, module_output_name=None)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 40, "do_lower_case": False}))
    known = {"__version__": {"sentence_transformers": "4.0.2"}, "prompts": {}, "similarity_fn_name": "MaxSim"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(known | settings))
    return sentence_transformers.MultiVectorEncoder(str(folder), device="cpu")


def assert_same(theirs: Any, ours: SentenceEncoder) -> None:
    """The same vectors of the same tokens, as queries, as documents and as neither, and the same scores."""
    methods = {"encode_query": "encode_query", "encode_document": "encode_document", "encode": "encode_multi_vector"}
    for name, own in methods.items():
        for found, expected in zip(getattr(ours, own)(TEXTS), getattr(theirs, name)(TEXTS), strict=True):
            np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    pairs = [each.similarity_pairwise(each.encode_query(TEXTS), each.encode_document(TEXTS)) for each in (ours, theirs)]
    np.testing.assert_allclose(*pairs, rtol=0, atol=40 * TOLERANCE)
    first, second = (each.similarity(each.encode_query(TEXTS), each.encode_document(TEXTS)) for each in (ours, theirs))
    np.testing.assert_allclose(first, second, rtol=0, atol=40 * TOLERANCE)  # a sum over at most 40 tokens


LAYOUTS: dict[str, tuple[str, list[str], dict[str, Any]]] = {
    "tokens as they are": ("roberta", [], {}),
    "expansion that is not attended": (
        "roberta", PUNCTUATION,
        {"query_expansion": {"strategy": "fixed", "length": 16}, "document_length": 24, "query_length": 20},
    ),
    "attended expansion": (
        "xlm-r", PUNCTUATION, {"query_expansion": {"strategy": "fixed", "length": 32, "attend": True}},
    ),
    "expansion of short queries by another token": (
        "xlm-r", ["▁a", "of no vocabulary"],
        {"query_expansion": {"strategy": "min", "length": 12, "token": "</s>"}, "query_length": 20},
    ),
    "lengths": ("roberta", ["<s>"], {"query_length": 10, "document_length": 20, "max_seq_length": 30}),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_vectors_are_those_of_sentence_transformers_6(layout, networks, tmp_path, caplog):
    family, skiplist, settings = LAYOUTS[layout]
    prompts = {"query": "[Q] ", "document": "[D] "}
    modules = (dense(), MultiVectorMask(skiplist), Normalize("token_embeddings"))
    theirs = repository(tmp_path / "repository", networks[family], *modules, prompts=prompts, **settings)
    assert_same(theirs, SentenceEncoder(tmp_path / "repository"))
    noted = any("of the skiplist; left out are: 'of no vocabulary'" in message for message in caplog.messages)
    assert noted == ("of no vocabulary" in skiplist)


def test_what_is_exported_answers_the_same_there(networks, tmp_path):
    expansion = {"strategy": "min", "length": 12, "attend": True, "token": "</s>"}
    mask = MultiVectorMask(["Ġand"], skiplist_tasks=["query", "document"])
    theirs = repository(
        tmp_path / "repository", networks["roberta"], mask, dense(bias=True), prompts={"query": "find: "},
        query_expansion=expansion, document_length=20, similarity_fn_name="meanmaxsim",
    )  # fmt: skip
    ours = SentenceEncoder(tmp_path / "repository")
    assert_same(theirs, ours)
    ours.save(tmp_path / "saved")
    export(tmp_path / "saved", tmp_path / "exported", to="sentence-transformers")
    again = sentence_transformers.MultiVectorEncoder(str(tmp_path / "exported"), device="cpu")
    assert_same(again, ours)
    assert again.similarity_fn_name == "meanmaxsim"


PYLATE: dict[str, tuple[str, dict[str, Any]]] = {
    "prefixes that are tokens": (
        "roberta",
        {
            "model_type": "ColBERT", "query_prefix": "[Q] ", "document_prefix": "[D] ", "query_length": 16,
            "document_length": 24, "attend_to_expansion_tokens": False, "do_query_expansion": True,
            "skiplist_words": PUNCTUATION,
        },
    ),
    "prefixes that are text": (
        "xlm-r",
        {
            "model_type": "ColBERT", "query_prefix": "query: ", "document_prefix": "", "query_length": 12,
            "document_length": None, "do_query_expansion": False, "skiplist_words": [],
            "prompts": {"query": "query: find ", "document": "text: "},
        },
    ),
    "before it named its kind": (
        "roberta",
        {"query_prefix": "[Q] ", "document_prefix": "[D] ", "query_length": 32, "attend_to_expansion_tokens": True},
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", PYLATE)
def test_vectors_of_pylates_repositories_are_those_of_sentence_transformers_6(layout, networks, tmp_path):
    family, settings = PYLATE[layout]
    theirs = of_pylate(tmp_path / "repository", networks[family], **settings)
    assert_same(theirs, SentenceEncoder(tmp_path / "repository", strategy="packing"))


def test_a_file_of_texts_gets_the_vectors_of_its_tokens(whole, run, tmp_path):
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    arguments = ("features", tmp_path / "texts.jsonl", "--model", whole, "--prompt-name", "query", "-o")
    status, _, err = run(*arguments, tmp_path / "vectors.jsonl")
    assert status == 0, err
    rows = [json.loads(line) for line in (tmp_path / "vectors.jsonl").read_text().splitlines()]
    for row, expected in zip(rows, SentenceEncoder(whole).encode_query(TEXTS), strict=True):
        np.testing.assert_allclose(row["features"], expected, rtol=0, atol=TOLERANCE)
    status, _, err = run(*arguments, tmp_path / "vectors.npy")
    assert status == 1
    assert "a .npy file holds one vector per row" in err


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "token pooling": (
        lambda p: put(p, HierarchicalTokenPooling(2)), "a module HierarchicalTokenPooling that nothing here computes",
    ),
    "image tokens": (
        lambda p: edit(p / "2_MultiVectorMask" / "config.json", keep_only_token_ids=[4]),
        "the setting keep_only_token_ids is not supported",
    ),
    "sentence vectors": (
        lambda p: edit(p / "3_Normalize" / "config.json", module_input_name="sentence_embedding"),
        "module_input_name must be token_embeddings, got sentence_embedding",
    ),
    "a strategy": (
        lambda p: edit(p / "sentence_bert_config.json", query_expansion={"strategy": "max", "length": 9}),
        "the strategy of a query expansion must be one of fixed, min, got 'max'",
    ),
    "a length": (
        lambda p: edit(p / "sentence_bert_config.json", query_length=9, query_expansion={"strategy": "min", "length": 10}),
        "query_length 9 is below the 10 tokens of the query expansion",
    ),
    "too many tokens": (
        lambda p: edit(p / "sentence_bert_config.json", query_expansion={"strategy": "min", "length": 999}),
        "queries are expanded to 999 tokens, over the model's 128",
    ),
    "another order of tokens": (
        lambda p: edit(p / "sentence_bert_config.json", do_lower_case=True), "do_lower_case, which is not supported",
    ),
    "an expansion without a vector": (
        lambda p: (
            edit(p / "sentence_bert_config.json", query_expansion={"strategy": "min", "length": 9}), cut(p, "2_MultiVectorMask"),
        )[0],
        "query_expansion without attention needs a MultiVectorMask",
    ),
    "a prefix that is split": (
        lambda p: edit(p / "config_sentence_transformers.json", query_prefix="Ġand "), "the token 'Ġand' is split",
    ),
}  # fmt: skip


def put(folder: Path, module: Any) -> None:
    """Adds a module at the end."""
    (folder / "9_Module").mkdir()
    module.save(str(folder / "9_Module"))
    entries = json.loads((folder / "modules.json").read_text())
    kind = f"{type(module).__module__}.{type(module).__name__}"
    entries.append({"idx": 9, "name": "9", "path": "9_Module", "type": kind})
    (folder / "modules.json").write_text(json.dumps(entries))


def cut(folder: Path, module: str) -> None:
    """Removes a module."""
    entries = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([entry for entry in entries if entry["path"] != module]))


@pytest.fixture(scope="module")
def whole(networks: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with all three modules."""
    folder = tmp_path_factory.mktemp("whole") / "repository"
    modules = (dense(), MultiVectorMask(PUNCTUATION), Normalize("token_embeddings"))
    repository(folder, networks["roberta"], *modules, query_expansion={"strategy": "fixed", "length": 16})
    return folder


@pytest.mark.parametrize("name", REFUSED)
def test_what_nothing_here_computes_is_refused_by_name(name, whole, tmp_path):
    change, message = REFUSED[name]
    shutil.copytree(whole, tmp_path / "repository")
    change(tmp_path / "repository")
    with pytest.raises(CheckpointError, match=message):
        convert(tmp_path / "repository", tmp_path / "converted")


def test_vectors_of_another_form_are_refused_in_one_line(whole):
    model = SentenceEncoder(whole)
    with pytest.raises(InputError, match=r"this model is a multi-vector encoder: use encode_query\(\), encode_docu"):
        model.encode(TEXTS)
    with pytest.raises(InputError, match="this model makes no sparse vectors"):
        model.encode_sparse(TEXTS)
    with pytest.raises(InputError, match="the task of a text must be query or document, got 'passage'"):
        model.encode_multi_vector(TEXTS, task="passage")
    with pytest.raises(InputError, match="takes as many texts twice, got 1 and 2"):
        model.similarity_pairwise(model.encode_query(TEXTS[:1]), model.encode_query(TEXTS[:2]))
    with pytest.raises(InputError, match="truncate_dim is for one vector a text"):
        SentenceEncoder(model.roberta, truncate_dim=4)
    assert model.encode_query(TEXTS[0]).shape[1] == SIZE
    assert model.encode_query([]) == []
