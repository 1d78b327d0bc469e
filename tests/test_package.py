"""What is installed and what is offered: the wheel's files, the public names, the converter as a program."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import typer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import roberta_flax
from roberta_flax import cli
from tests.conftest import ROOT, TINY

BUILD = """
import sys
from setuptools import build_meta
folder = sys.argv[1]  # setuptools puts arguments of its own in their place
build_meta.build_wheel(folder)
build_meta.build_sdist(folder)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the wheel and the source archive, built from a copy of the checkout without what tools left there."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("built")
    left = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, folder / "checkout", ignore=left)
    program = [sys.executable, "-c", BUILD, str(folder)]
    done = subprocess.run(program, cwd=folder / "checkout", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built) -> zipfile.ZipFile:
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as file:
        yield file


def in_package(names: list[str]) -> set[str]:
    return {name for name in names if name.startswith("roberta_flax/") and not name.endswith("/")}


def test_the_wheel_installs_roberta_flax_and_nothing_else(wheel):
    info = f"roberta_flax-{roberta_flax.__version__}.dist-info"
    assert {name.split("/")[0] for name in wheel.namelist()} == {"roberta_flax", info}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "roberta_flax").rglob("*.py")}
    data = {"roberta_flax/py.typed", "roberta_flax/data/roberta.tiny.tar.gz"}
    assert in_package(wheel.namelist()) == sources | data


def test_the_source_archive_has_what_the_wheel_is_built_from(built, wheel):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as file:
        names = [member.name.partition("/")[2] for member in file if member.isfile()]
    assert in_package(names) == in_package(wheel.namelist())
    folders = {name.split("/")[0] for name in names if "/" in name}
    assert folders == {"roberta_flax", "roberta_flax.egg-info"}


def test_the_map_shows_the_rooms_in_the_order_that_the_linter_holds():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = (each for each in project["tool"]["importlinter"]["contracts"] if "containers" in each)
    rooms = [name for layer in contract["layers"] for name in layer.split(" | ")]
    picture = re.findall(r'\["<b>(.*?)</b>', page)
    assert [name for node in picture for name in node.split(", ")] == rooms
    table = re.findall(r"^\| (`.*?`) \|", page.partition("## The rooms")[2].partition("\n## ")[0], re.MULTILINE)
    assert [re.sub(r"/|\.py", "", name) for row in table for name in re.findall("`(.*?)`", row)] == rooms


def test_the_oldest_versions_that_are_tested_are_those_that_the_package_admits():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
    pinned = {canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in lines[1:])}
    for requirement in map(Requirement, project["dependencies"]):
        (bound,) = requirement.specifier
        assert (bound.operator, Version(bound.version)) == (">=", pinned[canonicalize_name(requirement.name)]), bound


PROGRAM = """
import sys
from pathlib import Path
import roberta_flax

package = Path(roberta_flax.__file__).parent
for name in dir(roberta_flax):
    getattr(roberta_flax, name)
roberta = roberta_flax.load(package / "data" / "roberta.tiny.tar.gz", cache_dir=sys.argv[1])
label = roberta.predict("mnli", roberta.encode("A man is sleeping.", "Nobody is awake.")).argmax()
print(package, int(label))
"""


@pytest.mark.slow
def test_scripts_beside_a_users_program_may_have_any_of_the_checkouts_names(wheel, tmp_path):
    """convert.py beside a program broke the import, when the package installed a `convert` of its own."""
    wheel.extractall(tmp_path / "site")
    beside = tmp_path / "beside"
    beside.mkdir()
    for name in ("benchmarks", "convert", "examples", "recipes", "references", "tests"):
        (beside / f"{name}.py").write_text("raise RuntimeError('a script of the user was imported')")
    (beside / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(beside / "program.py"), str(tmp_path / "cache")]
    done = subprocess.run(command, env=environment, cwd=beside, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "site" / "roberta_flax"), "0"]  # contradiction


# What a user sees who types a name and a dot.
OFFERED = {
    "roberta_flax": """
        Answer CheckpointError Choose Classify CrossEncoder DownloadError Embed FillMask HeadConfig InputError Numerics
        Predictor Rank Rejected Roberta RobertaConfig RobertaFlaxError RobertaModel Score SentenceEncoder Tag Tokenizer
        ZeroShot beam collate_tokens convert datasets forward load load_tokenizer maxsim parity pipeline ray sharding
        spark stablehlo train
        """,
    "roberta_flax.convert": "Comparison Verification convert export load_adapter save_adapter verify",
    "roberta_flax.datasets": "readers recipes",
    "roberta_flax.forward": """
        MoreInputs Params abstract_params features first_layers head_log_probs head_logits head_outputs hidden_states
        init_params intermediate_names intermediates largest_inputs lm_logits network operands pooled_features quantize
        token_log_probs top_tokens
        """,
    "roberta_flax.parity": """
        DecisionResult Element Report Run TensorResult TokenError assert_parity compare compare_subject read_report
        """,
    "roberta_flax.beam": "RobertaModelHandler",
    "roberta_flax.ray": "Predict predict_parquet",
    "roberta_flax.spark": "predict_udf",
    "roberta_flax.sharding": "DATA MODEL RULES fully_sharded_spec mesh place place_batch place_rows rules spec",
    "roberta_flax.stablehlo": "DTYPES KNOWN_PLATFORMS PLATFORMS Program Signature export load signatures",
    "roberta_flax.train": """
        Batch LoRA Loss TrainStep adam batches corpus encoder_losses encoder_training finetuning head_loss
        init_optimizer loop make_eval_step make_train_step masked_lm_loss masking polynomial_decay pretraining training_job
        validation
        """,
}
COMPLETE = """
import json, rlcompleter, sys
import roberta_flax
complete = rlcompleter.Completer({"roberta_flax": roberta_flax})
completions = {name: complete.attr_matches(f"{name}.") for name in sys.argv[1:]}
print(json.dumps(completions))
"""


@pytest.mark.slow
def test_completion_offers_the_public_names():
    """As Python's own prompt completes, in a process that has imported nothing else."""
    done = subprocess.run(
        [sys.executable, "-c", COMPLETE, *OFFERED], capture_output=True, text=True, check=True, cwd=ROOT
    )
    for name, found in json.loads(done.stdout).items():
        names = {re.sub(r"\W*$", "", each.removeprefix(f"{name}.")) for each in found}  # a function's ends with "("
        assert {each for each in names if not each.startswith("__")} == set(OFFERED[name].split()), name


@pytest.mark.slow
def test_every_public_name_is_there_without_the_extras():
    extras = ["apache_beam", "fairseq", "grain", "huggingface_hub", "matplotlib", "orbax", "pyarrow", "pyspark", "ray"]
    extras += ["sacremoses", "spacy", "tensorboardX", "torch", "transformers"]
    program = (
        f"import sys\nsys.modules.update(dict.fromkeys({extras}))\n"
        "from roberta_flax import *\nfrom roberta_flax.train import *\nfrom roberta_flax.datasets import *\n"
        "print(stablehlo.__name__, loop.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout.split() == ["roberta_flax.checkpoint.stablehlo", "roberta_flax.train.loop"], done.stderr


def test_a_name_that_a_package_does_not_have_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'roberta_flax' has no attribute 'tokenizer'"):
        _ = roberta_flax.tokenizer
    with pytest.raises(ImportError, match="cannot import name 'recipe'"):
        from roberta_flax.train import recipe  # noqa: F401


@pytest.fixture
def python_m_convert(capsys, monkeypatch):
    """Runs the module as `python -m convert` does, in this process: (exit status, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_module("convert", run_name="__main__")
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    return run


def test_python_m_convert_is_the_converter_under_a_name_of_its_own(python_m_convert, tmp_path, tiny_directory):
    status, out, _ = python_m_convert(TINY, tmp_path / "converted", "--json")
    assert (status, json.loads(out)["heads"]) == (0, ["mnli"])
    for file in tiny_directory.iterdir():
        if file.name != "conversion.json":  # which names the source
            assert (tmp_path / "converted" / file.name).read_bytes() == file.read_bytes(), file.name
    status, out, err = python_m_convert(TINY, tmp_path / "converted")
    assert (status, out) == (1, "")
    assert re.fullmatch(r"python -m convert: .*exists already; .*\n", err)
    status, out, err = python_m_convert(TINY)
    assert (status, out) == (2, "")
    assert "Usage: python -m convert [OPTIONS]" in err
    assert "Try 'python -m convert --help' for help" in err


def test_python_m_convert_takes_the_options_of_roberta_flax_convert():
    import convert.__main__ as program

    ours = typer.main.get_command(program.app)
    (command,) = (each for each in cli.app.registered_commands if each.name == "convert")
    theirs = typer.main.get_command(cli.app).commands[command.name]
    assert [(each.name, each.opts) for each in ours.params] == [(each.name, each.opts) for each in theirs.params]
