"""The command line: results on stdout, one line on stderr for what the user can mend, and the exit status."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import roberta_flax
from roberta_flax.checkpoint import stablehlo
from roberta_flax.parity import demo
from roberta_flax.tasks import pronouns
from roberta_flax.text.batching import collate_tokens
from tests.conftest import TINY
from tests.params import random_params


def with_head(roberta: roberta_flax.Roberta, head: roberta_flax.HeadConfig) -> roberta_flax.Roberta:
    """The model with a fresh head in the place of its own."""
    config = dataclasses.replace(roberta.config, heads=(head,))
    heads = random_params(config)["heads"]
    return roberta_flax.Roberta(config, {**roberta.params, "heads": heads}, roberta.tokenizer)


def test_convert_writes_a_directory_that_loads(run, tmp_path):
    status, out, _ = run("convert", TINY, tmp_path / "m", "--json")
    assert status == 0
    assert json.loads(out)["heads"] == ["mnli"]
    assert run("encode", "a", "--model", tmp_path / "m")[0] == 0
    status, out, err = run("convert", TINY, tmp_path / "m")
    assert (status, out) == (1, "")
    assert err.strip().endswith("exists already; remove it or choose another name")


@pytest.mark.slow
def test_convert_stores_what_it_is_told_and_refuses_what_is_not_finite(run, tiny_source, tmp_path):
    status, out, _ = run("convert", TINY, tmp_path / "half", "--dtype", "bfloat16", "--json")
    assert (status, json.loads(out)["bytes"] < 400_000) == (0, True)
    torch = pytest.importorskip("torch")
    saved = torch.load(tiny_source / "model.pt", weights_only=False)
    saved["model"]["decoder.lm_head.bias"][3] = float("nan")
    source = shutil.copytree(tiny_source, tmp_path / "source")
    torch.save(saved, source / "model.pt")
    status, _, err = run("convert", source, tmp_path / "strict", "--strict")
    assert (status, err.count("\n")) == (1, 1)
    assert "decoder.lm_head.bias has 1 NaN. It was not converted, because strict was set" in err
    program = Path(sys.executable).parent / "roberta-flax"
    done = subprocess.run(
        [program, "convert", source, tmp_path / "lenient"], capture_output=True, text=True, check=True
    )
    assert done.stderr.count("\n") == 1
    assert "decoder.lm_head.bias has 1 NaN" in done.stderr


def test_verify_prints_a_table_and_fails_where_a_bit_differs(run, tiny_directory, tmp_path):
    status, out, _ = run("verify", tiny_directory, "--against", TINY)
    lines = out.splitlines()
    assert status == 0
    assert lines[0].split() == ["tensor", "shape", "dtype", "source's", "result", "source"]
    rows = [line.split()[:5] for line in lines]
    assert ["embeddings.token.embedding", "581x64", "float32", "float32", "identical"] in rows
    assert lines[-1].startswith("45 of 45 tensors are the source's")
    changed = shutil.copytree(tiny_directory, tmp_path / "changed")
    content = bytearray((changed / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (changed / "model.safetensors").write_bytes(content)
    status, out, err = run("verify", changed, "--against", TINY)
    assert status == 1
    assert "DIFFERS by" in out
    assert err.count("\n") == 1
    assert "is not what" in err
    result = json.loads(run("verify", changed, "--against", TINY, "--json")[1])
    assert (result["identical"], len(result["tensors"]), len(result["problems"])) == (44, 45, 1)


@pytest.mark.parametrize("to", ["fairseq", "huggingface"])
def test_export_writes_what_verify_finds_the_same(run, to, tiny_directory, tmp_path):
    status, out, _ = run("export", tiny_directory, tmp_path / "out", "--to", to, "--json")
    assert status == 0
    assert ("model.pt" in json.loads(out)["files"]) == (to == "fairseq")
    head = [] if to == "fairseq" else ["--head-name", "mnli"]
    assert run("verify", tiny_directory, "--against", tmp_path / "out", *head)[0] == 0
    status, _, err = run("export", tiny_directory, tmp_path / "out", "--to", to)
    assert (status, "exists already" in err) == (1, True)


@pytest.mark.slow
def test_export_writes_programs_that_load(run, one_layer, tmp_path):
    out = tmp_path / "out"
    options = ("--dtype", "bfloat16", "--quantize", "int8", "--platform", "cpu", "--platform", "tpu", "--head", "mnli")
    status, stdout, _ = run("export", one_layer, out, "--to", "stablehlo", *options, "--json")
    assert status == 0
    assert {"model.safetensors", "stablehlo/programs.json", "stablehlo/features.jax"} <= set(
        json.loads(stdout)["files"]
    )
    program = stablehlo.load(out)["head_log_probs.mnli"]
    assert program.exported.platforms == ("cpu", "tpu")
    roberta = roberta_flax.load(one_layer, dtype="bfloat16", quantize="int8")
    tokens = roberta.encode("a", "b")
    np.testing.assert_allclose(program(tokens), roberta.predict("mnli", tokens), atol=0.02)  # int8: a step of 127
    for arguments, message in (
        ((one_layer, out, "--to", "stablehlo"), "exists already"),
        ((one_layer, tmp_path / "x", "--to", "huggingface", "--dtype", "bfloat16"), "for --to stablehlo"),
        ((tmp_path, tmp_path / "x", "--to", "stablehlo"), "is not a converted model: it lacks config.json"),
    ):
        status, _, err = run("export", *arguments)
        assert (status, err.count("\n"), message in err) == (1, 1, True), err


def test_predict_shows_labels_by_name(run, one_layer, tmp_path):
    model = shutil.copytree(one_layer, tmp_path / "m")
    config = json.loads((model / "config.json").read_text())
    config["heads"][0]["labels"] = ["no", "perhaps", "yes"]
    (model / "config.json").write_text(json.dumps(config))
    roberta = roberta_flax.load(model)
    expected = np.exp(np.asarray(roberta.predict("mnli", roberta.encode("a", "b")))[0])
    status, out, _ = run("predict", "--text", "a", "--text", "b", "-m", model, "--json")
    assert status == 0
    result = json.loads(out)
    assert result["label"] == ["no", "perhaps", "yes"][expected.argmax()]
    assert list(result["probabilities"]) == ["no", "perhaps", "yes"]
    assert list(result["probabilities"].values()) == pytest.approx(expected.tolist(), abs=1e-6)
    assert run("predict", "--text", "a", "--text", "b", "-m", model)[1].startswith(f"label\t{result['label']}\n")
    assert "no head called 'sst'" in run("predict", "--text", "a", "--head", "sst", "-m", model)[2]


@pytest.mark.parametrize(
    ("head", "texts", "keys"),
    [
        (roberta_flax.HeadConfig("tags", 3, 0, "token", labels=("A", "B", "C")), ["a b"], ["head", "token"]),
        (
            roberta_flax.HeadConfig("span", 2, 0, "span"),
            ["who?", "a b c d"],
            ["head", "answer", "probability", "no_answer"],
        ),
        (
            roberta_flax.HeadConfig("best", 1, 64, "choice"),
            ["x", "a", "b c"],
            ["head", "label", "probabilities", "truncated"],
        ),
        (roberta_flax.HeadConfig("score", 1, 64), ["x"], ["head", "values"]),
        (roberta_flax.HeadConfig("topics", 3, 64, problem="multi_label"), ["x"], ["head", "label", "probabilities"]),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_predict_answers_with_every_kind_of_head(run, shallow, head, texts, keys, tmp_path):
    with_head(shallow, head).save(tmp_path / "m")
    arguments = [argument for text in texts for argument in ("--text", text)]
    status, out, err = run("predict", *arguments, "-m", tmp_path / "m", "--json")
    assert (status, err) == (0, "")
    result = json.loads(out)
    assert list(result) == keys
    if head.kind == "span":
        assert result["answer"] in "a b c d"
    if head.kind == "token":
        assert "".join(row["text"] for row in result["token"][1:-1]) == "a b"
    if head.kind == "choice":
        assert sum(result["probabilities"].values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("head", "option", "texts", "pairs"),
    [
        ("race", (), ["An article.", "It is _."], [("It is tea.", "An article."), ("It is a cat.", "An article.")]),
        ("best", ("--framing", "race"), ["An\n article.", "Is it?"], [("Is it? tea", "An article."), ("Is it? a cat", "An article.")]),
        ("commonsenseqa", (), ["Is it?"], [("Q: Is it?", "A: tea"), ("Q: Is it?", "A: a cat")]),
        ("race", ("--framing", "choice"), ["Is it?"], [("Is it?", "tea"), ("Is it?", "a cat")]),
    ],
)  # fmt: skip
def test_predict_frames_a_question_as_the_heads_task_does(run, shallow, head, option, texts, pairs, tmp_path):
    model = with_head(shallow, roberta_flax.HeadConfig(head, 1, 64, "choice"))
    model.save(tmp_path / "m")
    one = head == "commonsenseqa"
    rows = collate_tokens([model.encode(*pair, no_separator=one) for pair in pairs])
    arguments = [argument for text in (*texts, "tea", "a cat") for argument in ("--text", text)]
    status, out, err = run("predict", *arguments, *option, "-m", tmp_path / "m", "--json")
    assert (status, err) == (0, "")
    expected = np.exp(np.asarray(model.predict(head, rows)))[0]
    assert [*json.loads(out)["probabilities"].values()] == pytest.approx(expected.tolist(), abs=1e-6)
    assert json.loads(out)["truncated"] == 0
    status, _, err = run("predict", *arguments[: 2 * len(texts) + 2], *option, "-m", tmp_path / "m")
    assert (status, err.count("\n")) == (1, 1)
    assert f"and at least two choices, got {len(texts) + 1} texts" in err


def test_a_question_that_is_too_long_says_how_many_of_its_sequences_were_truncated(run, shallow, tmp_path):
    with_head(shallow, roberta_flax.HeadConfig("race", 1, 64, "choice")).save(tmp_path / "m")
    texts = ("--text", "word " * 600, "--text", "Is it?", "--text", "a", "--text", "b")
    status, out, _ = run("predict", *texts, "-m", tmp_path / "m", "--json")
    assert (status, json.loads(out)["truncated"]) == (0, 2)


def test_quantised_layers_answer_nearly_the_same(run, one_layer):
    ask = ("mnli", "A man is sleeping.", "Nobody is awake.", "--model", one_layer, "--json")
    exact, rough = (json.loads(run(*ask, *more)[1])["log_probabilities"] for more in ((), ("--quantize", "int8")))
    assert exact != rough
    assert rough == pytest.approx(exact, abs=0.05)


@pytest.mark.slow
def test_a_file_of_pairs_is_predicted_by_its_usual_columns(run, shallow, one_layer, tmp_path):
    rows = ["premise\thypothesis\tid", 'A "dog" runs.\tNobody runs.\tx1', "only one column", "a\tb\tx3"]
    (tmp_path / "in.tsv").write_text("\n".join(rows) + "\n")
    arguments = ["predict", tmp_path / "in.tsv", "-o", tmp_path / "out.jsonl", "-m", one_layer, "--keep", "id"]
    status, out, _ = run(*arguments, "--json")
    summary = json.loads(out)
    assert (status, summary["rows"], summary["rejected"]) == (0, 3, 1)
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["row"], row["id"]) for row in found] == [(0, "x1"), (2, "x3")]
    expected = np.asarray(shallow.predict("mnli", shallow.encode('A "dog" runs.', "Nobody runs.")))[0]
    assert np.abs(np.array(list(found[0]["log_probabilities"].values())) - expected).max() <= 5e-5
    assert found[0]["label"] == ["contradiction", "neutral", "entailment"][expected.argmax()]
    assert run(*arguments)[::2] == (
        1,
        f"roberta-flax: {tmp_path / 'out.jsonl'} exists already; remove it or choose another name\n",
    )
    shorter = ("--max-length", "8", "--json")
    summary = json.loads(run(*arguments[:3], tmp_path / "truncated.jsonl", *arguments[4:], *shorter)[1])
    assert (summary["rows"], summary["truncated"]) == (3, 1)
    status, _, err = run(*arguments[:3], tmp_path / "strict.jsonl", *arguments[4:], "--strict")
    assert (status, "in.tsv, line 3: " in err) == (1, True)


@pytest.mark.slow
def test_features_and_masks_of_a_file(run, shallow, one_layer, tmp_path):
    (tmp_path / "in.txt").write_text("a <mask> b\nc <mask>\n")
    assert (
        run("features", "-i", tmp_path / "in.txt", "-o", tmp_path / "f.npy", "-m", one_layer, "--pooling", "first")[0]
        == 0
    )
    expected = np.asarray(shallow.extract_features(shallow.encode("c <mask>")))[0, 0]
    assert np.abs(np.load(tmp_path / "f.npy")[1] - expected).max() <= 5e-5
    status, out, _ = run("fill-mask", "-i", tmp_path / "in.txt", "-o", tmp_path / "m.jsonl", "-k", 2, "-m", one_layer)
    assert status == 0
    assert re.search(r"padding [\d.]+%, 1 shapes, \d compiled \(\d from the cache\) in [\d.]+ s\n$", out)
    filled = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert filled[1]["tokens"] == [token for _, _, token in shallow.fill_mask("c <mask>", 2)]


@pytest.mark.slow
def test_evaluate_prints_accuracy_and_a_confusion_matrix(run, shallow, one_layer, tmp_path, sick_pairs):
    folder = tmp_path / "MNLI"
    folder.mkdir()
    labels = ("contradiction", "neutral", "entailment")
    predicted = [
        labels[int(np.asarray(shallow.predict("mnli", shallow.encode(*pair))).argmax())] for pair in sick_pairs[:30]
    ]
    gold = [label if i % 3 else labels[i % 2] for i, label in enumerate(predicted)]
    lines = [f"{a}\t{b}\t{label}" for (a, b), label in zip(sick_pairs, gold, strict=False)]
    (folder / "dev_matched.tsv").write_text("\n".join(["sentence1\tsentence2\tgold_label", *lines, "a\tb\t-"]) + "\n")
    status, out, _ = run("evaluate", folder / "dev_matched.tsv", "-m", one_layer, "--json")
    result = json.loads(out)
    right = sum(a == b for a, b in zip(predicted, gold, strict=True))
    assert (status, result["count"], result["skipped"]) == (0, 30, 1)
    assert result["metrics"]["accuracy"] == pytest.approx(right / 30)
    assert sum(map(sum, result["confusion"])) == 30
    text = run("evaluate", folder / "dev_matched.tsv", "-m", one_layer)[1]
    assert text.startswith(f"accuracy {right / 30:.4f} (95% interval ")
    assert "1 without a label left out" in text
    short = run("evaluate", folder / "dev_matched.tsv", "-m", one_layer, "--max-length", "10")[1]
    long = sum(len(shallow.encode(*pair)) > 10 for pair in sick_pairs[:30])
    assert long > 0
    assert f"; {long} truncated" in short
    refused = run("evaluate", folder / "dev_matched.tsv", "-m", one_layer, "--max-length", "1000")
    assert (refused[0], "max_length must be from 8 to the model's 512, got 1000" in refused[2]) == (1, True)
    (folder / "dev_matched.tsv").write_text("sentence1\tsentence2\tgold_label\na\tb\tmaybe\n")
    status, _, err = run("evaluate", folder / "dev_matched.tsv", "-m", one_layer)
    assert (status, "line 2: 'maybe' is not a label of mnli" in err) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "-m", TINY], "give INPUT, a file of texts, or one text with --text"),
        (["predict", "in.csv", "-m", TINY], "say where the results go with --output"),
        (["predict", "in.csv", "-o", "o.jsonl", "-m", TINY], "has the columns 'x', 'y'; say which hold text with --text-column"),
        (["predict", "in.csv", "-o", "o.jsonl", "-c", "z", "-m", TINY], "has no column 'z'"),
        (["predict", "in.csv", "-o", "o.xml", "-c", "x", "-m", TINY], "o.xml: predictions are written to"),
        (["predict", "in.csv", "-o", "o.csv", "-c", "x", "-m", TINY, "--share", "3/3"], "--share is I/N"),
        (["predict", "in.csv", "-o", "o.csv", "-c", "x", "-m", TINY, "--tensor-parallel", "3"], "must divide the number of devices"),
        (["fill-mask", "-m", TINY], "give INPUT, a file of texts, or one text with --text"),
        (["predict", "--text", "a", "--framing", "race", "-m", TINY], "framing (--framing) is for choice heads; 'mnli' is of kind sentence"),
        (["evaluate", "in.csv", "-m", TINY], "in.csv"),
        (["evaluate", "none.tsv", "-m", TINY], "none.tsv does not exist"),
    ],
)  # fmt: skip
def test_what_a_run_over_a_file_cannot_do_is_one_line(run, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.csv").write_text("x,y\na,b\n")
    status, out, err = run(*arguments)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert message in err


def test_mnli_prints_a_label_and_log_probabilities(run, shallow, one_layer):
    status, out, _ = run("mnli", "A man sleeps.", "Nobody sleeps.", "-m", one_layer, "--json")
    assert status == 0
    result = json.loads(out)
    expected = np.asarray(shallow.predict("mnli", shallow.encode("A man sleeps.", "Nobody sleeps.")))[0]
    assert list(result["log_probabilities"].values()) == pytest.approx(expected.tolist())
    assert result["label"] == ["contradiction", "neutral", "entailment"][expected.argmax()]
    assert run("mnli", "A man sleeps.", "Nobody sleeps.", "-m", one_layer)[1].startswith(result["label"])


@pytest.mark.parametrize(
    ("name", "flags", "shape"), [("f.npy", [], (1, 4, 64)), ("f.npz", ["--all-layers"], (3, 1, 4, 64))]
)
def test_features_are_written_as_numpy_files(run, tiny, tmp_path, name, flags, shape):
    status, out, _ = run("features", "a b", "-o", tmp_path / name, "-m", TINY, "--json", *flags)
    assert status == 0
    assert json.loads(out)["shape"] == list(shape)
    saved = np.load(tmp_path / name)
    features = saved if name.endswith("npy") else saved["features"]
    assert features.shape == shape
    assert (features.reshape(-1, *shape[-3:])[-1] == tiny.extract_features(tiny.encode("a b"))).all()


def test_features_of_words_are_printed_or_written(run, shallow, one_layer, tmp_path):
    text = "It's a naïve 😀"
    expected = shallow.word_features(text)
    status, out, _ = run("features", text, "--words", "-m", one_layer)
    assert status == 0
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == [repr(word) for word in expected.words]
    assert all(line.endswith("] (...)") for line in lines)
    result = json.loads(run("features", text, "--words", "-m", one_layer, "--json")[1])
    assert result["words"] == list(expected.words) == ["<s>", "It", "'s", "a", "naïve", "😀", "</s>"]
    assert (np.array(result["features"], np.float32) == expected.features).all()
    status, out, _ = run(
        "features", text, "--words", "--all-layers", "-o", tmp_path / "w.npz", "-m", one_layer, "--json"
    )
    assert (status, json.loads(out)["shape"]) == (0, [2, 7, 64])
    with np.load(tmp_path / "w.npz") as saved:
        assert saved["words"].tolist() == list(expected.words)
        assert np.abs(saved["features"][-1] - expected.features).max() <= 1e-6
    for arguments in (("a", "b"), ("-i", "in.txt")):
        status, _, err = run("features", *arguments, "--words", "-m", one_layer)
        assert (status, err.count("\n"), "--words takes one text" in err) == (1, 1, True)


def test_disambiguate_prints_the_phrase_or_whether_the_query_is_right(run, shallow, one_layer):
    query = "The _trophy_ was in the suitcase as [it] was big."
    for text in (query, query.replace("_", "")):
        ask = ("disambiguate", text, "--candidate", "the suitcase", "--candidate", "Tom", "-m", one_layer)
        found = pronouns.disambiguate(shallow, text, ["the suitcase", "Tom"])
        status, out, _ = run(*ask)
        assert (status, out.startswith(f"{found.answer}  (")) == (0, True)
        result = json.loads(run(*ask, "--json")[1])
        assert (result["answer"], result["query"]) == (found.answer, "trophy" if text is query else None)
        assert list(result["log_probabilities"]) == list(found.scores)
        assert list(result["log_probabilities"].values()) == pytest.approx(list(found.scores.values()))


def test_features_that_cannot_be_written_say_so(run, tmp_path):
    status, _, err = run("features", "a", "-o", tmp_path / "f.txt", "-m", TINY)
    assert (status, "must end in .npy or .npz" in err) == (1, True)
    status, _, err = run("features", "a", "-o", tmp_path / "none" / "f.npy", "-m", TINY)
    assert (status, "cannot write" in err) == (1, True)


def test_fill_mask_prints_what_the_object_returns(run, shallow, one_layer):
    status, out, _ = run("fill-mask", "a <mask> b", "-k", 2, "-m", one_layer, "--json")
    assert status == 0
    filled = [(row["text"], row["probability"], row["token"]) for row in json.loads(out)]
    assert [(text, token) for text, _, token in filled] == [
        (text, token) for text, _, token in shallow.fill_mask("a <mask> b", 2)
    ]
    assert len(run("fill-mask", "a <mask> b", "-k", 2, "-m", one_layer)[1].splitlines()) >= 2


def test_encode_and_decode_are_inverse(run, tiny):
    _, out, _ = run("encode", "a b", " c", "-m", TINY)
    assert out.split() == [str(i) for i in tiny.encode("a b", " c")]
    assert run("decode", *out.split(), "-m", TINY)[1] == "a b\n c\n"
    assert json.loads(run("decode", *out.split(), "-m", TINY, "--json")[1]) == {"texts": ["a b", " c"]}
    assert json.loads(run("encode", "a", "b", "--no-separator", "-m", TINY, "--json")[1])["tokens"].count(2) == 2


@pytest.mark.slow
def test_demo_answers_and_says_that_torch_agrees(run):
    status, out, _ = run("demo")
    assert status == 0
    assert "agrees" in out
    result = json.loads(run("demo", "--json")[1])
    assert [pair["label"] for pair in result["mnli"]] == ["entailment", "neutral", "contradiction", "contradiction"]
    assert result["torch"]["agree"] is True
    assert set(result["seconds"]) == {"unpack", "convert", "load", "features", "mnli", "fill-mask", "torch"}


def test_demo_without_torch_says_how_to_get_it(run, monkeypatch):
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda _: None)
    status, out, _ = run("demo")
    assert status == 0
    assert "roberta-flax[convert]" in out.replace("\n", "")


def test_demo_fails_where_torch_disagrees(run, monkeypatch):
    monkeypatch.setattr(demo, "TOLERANCE", -1.0)
    status, out, _ = run("demo")
    assert (status, "DISAGREES" in out) == (1, True)


@pytest.mark.parametrize("arguments", [["mnli", "one"], ["nothing"], ["decode", "x"], ["encode"], ["features", "a"]])
def test_wrong_usage_exits_with_2(run, arguments):
    assert run(*arguments)[0] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fill-mask", "no mask", "-m", TINY], "exactly one <mask>"),
        (["disambiguate", "It was big.", "-m", TINY], "mark one pronoun with [brackets]"),
        (["disambiguate", "[It] was big.", "-m", TINY], "python -m spacy download en_core_web_lg"),
        (["disambiguate", "[It] was big.", "--parser", "none", "-m", TINY], "cannot load the spaCy pipeline 'none'"),
        (["disambiguate", "[It]", "--parser", "x", "--candidate", "y", "-m", TINY], "--parser finds candidates"),
        (["decode", "581", "-m", TINY], "token id 581 is outside the vocabulary"),
        (["decode", str(10**30), "-m", TINY], "integers"),
        (["encode", "a", "-m", "nowhere"], "neither a file or directory, nor hf:org/name, nor a released model"),
        (["encode", "a", "-m", __file__], "is not a PyTorch checkpoint"),
        (["mnli", "a", "b"], "roberta.large.mnli.tar.gz to"),
        (["convert", "nowhere", "m"], "does not exist"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_status_1(run, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(*arguments)
    assert (status, out) == (1, "")
    assert err.startswith("roberta-flax: ")
    assert message in err
    assert err.count("\n") == 1


def test_the_console_script_is_installed():
    program = Path(sys.executable).parent / "roberta-flax"
    result = subprocess.run([program, "--help"], capture_output=True, text=True, check=True)
    for name in (
        "convert",
        "export",
        "verify",
        "predict",
        "evaluate",
        "mnli",
        "features",
        "fill-mask",
        "disambiguate",
        "encode",
        "decode",
        "demo",
    ):
        assert name in result.stdout
