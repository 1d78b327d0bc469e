"""A package that is not installed is one line, which says how to install it."""

from __future__ import annotations

import sys
import tomllib

import pytest

import roberta_flax
from roberta_flax import Classify, InputError, extras, parity
from roberta_flax.convert import export
from roberta_flax.inference import beam, ray, spark
from tests.conftest import ROOT


def test_the_extras_that_errors_name_are_extras_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert extras._PURPOSES.keys() <= project["optional-dependencies"].keys()


@pytest.mark.parametrize(
    ("module", "use", "message"),
    [
        (
            "torch",
            lambda directory, other: export(directory, other, to="fairseq"),
            r"writing a fairseq checkpoint needs torch \(.*\); install it with: pip install 'roberta-flax\[convert\]'",
        ),
        (
            "huggingface_hub",
            lambda directory, other: roberta_flax.load("hf:org/name"),
            r"needs huggingface_hub \(.*\); install it with: pip install 'roberta-flax\[huggingface\]'",
        ),
        (
            "ray",
            lambda directory, other: ray.predict_parquet(directory, other),
            r"needs ray \(.*\); install it with: pip install 'roberta-flax\[ray\]'",
        ),
        (
            "apache_beam.ml.inference.base",
            lambda directory, other: beam.RobertaModelHandler(directory, Classify("mnli")),
            r"needs apache_beam.ml.inference.base \(.*\); install it with: pip install 'roberta-flax\[beam\]'",
        ),
        (
            "pyspark.ml.functions",
            lambda directory, other: spark.predict_udf(directory, Classify("mnli")),
            r"needs pyspark.ml.functions \(.*\); install it with: pip install 'roberta-flax\[spark\]'",
        ),
        (
            "torch",
            lambda directory, other: parity.compare(directory),
            r"needs torch \(.*\); .* 'roberta-flax\[parity\]', or replay what was recorded elsewhere",
        ),
        (
            "fairseq",
            lambda directory, other: parity.compare(directory, reference="fairseq"),
            r"the reference fairseq needs fairseq \(.*\); .*, or use --reference builtin",
        ),
        (
            "transformers",
            lambda directory, other: parity.compare(directory, reference="transformers"),
            r"the reference transformers needs transformers \(.*\); .*, or use --reference builtin",
        ),
    ],
    ids=["export", "hub", "ray", "beam", "spark", "parity", "fairseq", "transformers"],
)
def test_a_missing_package_is_one_line_that_says_how_to_install_it(
    module, use, message, tiny_directory, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=message) as error:
        use(tiny_directory, tmp_path / "other")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "command",
    [
        ("finetune", "--task", "rte"),
        ("pretrain", "--tokenizer", "unread"),
        ("train-encoder", "--loss", "cosent"),
        ("train-reranker",),
    ],
    ids=lambda command: command[0],
)
def test_what_training_needs_is_missed_before_anything_is_read(run, monkeypatch, tmp_path, command):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    name, *options = command
    model = () if "--tokenizer" in options else ("-m", tmp_path / "no-model")
    status, _, err = run(
        name, tmp_path / "no.tsv", "--valid", tmp_path / "no.tsv", "-o", tmp_path / "o", *options, *model
    )
    assert status == 1
    assert "training needs orbax.checkpoint (" in err
    assert err.endswith("install it with: pip install 'roberta-flax[train]'\n")
