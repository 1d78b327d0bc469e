"""The recipes against the files that fairseq publishes them in, and how long they train."""

from __future__ import annotations

import ast
import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from roberta_flax.convert.cache import released_name
from roberta_flax.datasets.layouts import LAYOUTS
from roberta_flax.datasets.recipes import CUSTOM, PUBLISHED, RECIPES, Recipe, published_score, recipe_of
from roberta_flax.nn.config import RobertaConfig
from tests.conftest import skip_or_fail

GLUE = ("mnli", "qnli", "qqp", "rte", "sst-2", "mrpc", "cola", "sts-b")


@pytest.fixture(scope="module")
def published() -> Path:
    """fairseq's examples/roberta."""
    spec = find_spec("fairseq")
    folder = Path(spec.origin).parent / "examples" / "roberta" if spec and spec.origin else Path()
    if not (folder / "config" / "finetuning").is_dir():
        skip_or_fail("fairseq's examples are not installed")
    return folder


def options(readme: Path) -> dict[str, str]:
    """The shell variables and the options of a README's training command."""
    block = next(b for b in re.findall(r"```bash\n(.*?)```", readme.read_text(), re.DOTALL) if "fairseq-train" in b)
    variables = dict(re.findall(r"^([A-Z_]+)=(\S+)", block, re.MULTILINE))
    pairs = re.findall(r"--([a-z-]+) ('[^']*'|\"[^\"]*\"|[^\s-]\S*)", block.partition("fairseq-train")[2])
    return {**variables, **{name: variables.get(value.strip("$"), value.strip("'\"")) for name, value in pairs}}


@pytest.mark.parametrize("task", GLUE)
def test_glue_recipes_are_fairseqs_yaml_files(published, task):
    theirs = yaml.safe_load((published / "config" / "finetuning" / f"{task.replace('-', '_')}.yaml").read_text())
    ours = RECIPES[task]
    assert ours.source.endswith(f"config/finetuning/{task.replace('-', '_')}.yaml")
    assert [ours.learning_rate] == [float(rate) for rate in theirs["optimization"]["lr"]]
    assert ours.total_steps == theirs["optimization"]["max_update"]
    assert ours.epochs == theirs["optimization"]["max_epoch"]
    assert ours.clip_norm == theirs["optimization"]["clip_norm"]
    assert ours.warmup_steps == theirs["lr_scheduler"]["warmup_updates"]
    assert theirs["lr_scheduler"]["_name"] == "polynomial_decay"
    assert ours.end_learning_rate == 0.0
    assert ours.batch_size * ours.update_freq == theirs["dataset"]["batch_size"]
    assert ours.weight_decay == theirs["optimizer"]["weight_decay"]
    assert ours.adam_betas == ast.literal_eval(theirs["optimizer"]["adam_betas"])
    assert ours.adam_eps == float(theirs["optimizer"]["adam_eps"])
    assert ours.dropout == theirs["model"]["dropout"]
    assert ours.attention_dropout == theirs["model"]["attention_dropout"]
    classes = theirs["task"]["num_classes"]
    assert classes == (1 if LAYOUTS[task].problem == "regression" else len(LAYOUTS[task].labels))


@pytest.mark.parametrize(
    ("recipe", "readme", "devices"),
    [
        (CUSTOM, "README.custom_classification.md", 1),
        (RECIPES["race"], "README.race.md", 2),
        (RECIPES["commonsenseqa"], "commonsense_qa/README.md", 1),
    ],
)
def test_other_recipes_are_the_commands_of_fairseqs_readmes(published, recipe, readme, devices):
    theirs = options(published / readme)
    assert recipe.source.endswith(readme)
    assert recipe.learning_rate == float(theirs["lr"])
    assert recipe.weight_decay == float(theirs["weight-decay"])
    assert recipe.adam_betas == ast.literal_eval(theirs["adam-betas"])
    assert recipe.adam_eps == float(theirs["adam-eps"])
    assert recipe.clip_norm == float(theirs["clip-norm"])
    assert recipe.dropout == float(theirs["dropout"])
    assert recipe.attention_dropout == float(theirs["attention-dropout"])
    assert recipe.batch_size * recipe.update_freq == (
        int(theirs["batch-size"]) * int(theirs.get("update-freq", 1)) * devices
    )
    if theirs["lr-scheduler"] == "fixed":
        assert recipe.end_learning_rate == recipe.learning_rate
        assert recipe.steps(100) == (0, 500)
    else:
        assert recipe.end_learning_rate == 0.0
    if "max-epoch" in theirs:
        assert recipe.epochs == int(theirs["max-epoch"])


def test_imdbs_updates_in_fairseqs_readme_are_what_the_custom_recipe_gives_its_25000_rows(published):
    theirs = options(published / "README.custom_classification.md")
    warmup, total = CUSTOM.steps(-(-25_000 // (CUSTOM.batch_size * CUSTOM.update_freq)))
    assert total == pytest.approx(int(theirs["TOTAL_NUM_UPDATES"]), rel=2e-3)
    assert warmup == pytest.approx(int(theirs["WARMUP_UPDATES"]), rel=2e-3)


def test_commonsenseqas_updates_are_fairseqs(published):
    theirs = options(published / "commonsense_qa" / "README.md")
    recipe = RECIPES["commonsenseqa"]
    assert (recipe.total_steps, recipe.warmup_steps) == (int(theirs["max-update"]), int(theirs["warmup-updates"]))


def test_sts_b_scores_are_divided_as_fairseqs_script_does(published):
    script = (published / "preprocess_GLUE_tasks.sh").read_text()
    (divisor,) = set(re.findall(r"print \$1 / ([\d.]+)", script))
    assert RECIPES["sts-b"].target_divisor == float(divisor)
    assert {task for task in RECIPES if RECIPES[task].target_divisor != 1.0} == {"sts-b"}


# Rows of the training files: Wang et al., 2019, table 1 (sts-b: its train.tsv, which has 5,749).
@pytest.mark.parametrize(
    ("task", "rows"),
    [("mnli", 392_702), ("qqp", 363_846), ("qnli", 104_743), ("sst-2", 67_349), ("cola", 8_551), ("sts-b", 5_749),
     ("mrpc", 3_668), ("rte", 2_490)],
)  # fmt: skip
def test_a_tasks_own_file_is_trained_on_for_the_published_updates(task, rows):
    recipe = RECIPES[task]
    assert recipe.steps(-(-rows // recipe.batch_size)) == (recipe.warmup_steps, recipe.total_steps)


def test_a_smaller_file_is_trained_on_for_ten_epochs_with_the_published_share_of_warm_up():
    assert RECIPES["mnli"].steps(1000) == (600, 10_000)
    assert RECIPES["qqp"].steps(1000) == (2500, 10_000)
    assert CUSTOM.steps(1000) == (600, 10_000)


def test_a_larger_file_is_trained_on_for_the_published_updates():
    assert RECIPES["rte"].steps(100_000) == (122, 2_036)


def test_epochs_and_updates_that_are_given_count():
    assert RECIPES["mnli"].steps(1000, epochs=3) == (180, 3000)
    assert RECIPES["mnli"].steps(1000, steps=500) == (30, 500)
    assert CUSTOM.steps(7, steps=1) == (0, 1)


def test_tasks_without_a_published_recipe_have_the_custom_one():
    assert recipe_of("snli") is CUSTOM
    assert recipe_of("sick") is CUSTOM
    assert recipe_of("mnli") is RECIPES["mnli"]
    assert isinstance(recipe_of("anything"), Recipe)


def tables(readme: Path) -> dict[str, dict[str, dict[str, str]]]:
    """The tables of a README's results: the cells by the name of the benchmark, the row and the column."""
    found = {}
    for name, table in re.findall(
        r"^\*\*\[(.+?)[ (].*?\n\nModel \| (.*?)\n\n", readme.read_text(), re.DOTALL | re.MULTILINE
    ):
        header, _, *rows = table.split("\n")
        cells = [row.split(" | ") for row in rows]
        found[name] = {row[0].strip("` "): dict(zip(header.split(" | "), row[1:], strict=True)) for row in cells}
    return found


def test_the_published_scores_of_glue_are_those_of_fairseqs_readme(published):
    theirs = {
        (model, column.lower()): float(cell)
        for model, row in tables(published / "README.md")["GLUE"].items()
        for column, cell in row.items()
        if cell != "-"
    }
    ours = {key: score.percent for key, score in PUBLISHED.items() if score.source == "fairseq's README"}
    assert {key: percent for key, percent in ours.items() if key[1] in GLUE} == theirs
    assert all(PUBLISHED[key].rows == "dev set" for key in theirs)


def test_the_published_scores_of_multiple_choice_are_those_of_fairseqs_readme(published):
    text = (published / "README.md").read_text()
    race = published_score("roberta.large", "race")
    choice = published_score("roberta.large", "commonsenseqa")
    assert race is not None
    assert choice is not None
    assert race.rows == choice.rows == "test set"
    assert f"Model | Accuracy | Middle | High\n---|---|---|---\n`roberta.large` | {race.percent} |" in text
    assert f"`roberta.large` (single model) | {choice.percent}\n" in text


def test_a_published_score_is_of_a_tasks_main_metric():
    for (_, task), score in PUBLISHED.items():
        if task in LAYOUTS:
            assert score.metric == LAYOUTS[task].metrics[0]
    assert {task for (_, task), score in PUBLISHED.items() if score.metric != "accuracy"} == {"cola", "sts-b"}


def test_tasks_and_models_that_fairseq_has_no_score_for_have_none():
    assert published_score("roberta.large", "wnli") is None
    assert published_score("xlmr.large", "rte") is None
    assert published_score("roberta.large.mnli", "cola") is None
    assert published_score(None, "rte") is None


LARGE = RobertaConfig(num_layers=24, hidden_size=1024, num_heads=16, intermediate_size=4096)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("roberta.large", "roberta.large"),
        ("roberta-large", "roberta.large"),
        ("FacebookAI/roberta-large-mnli", "roberta.large.mnli"),
        ("hf:FacebookAI/roberta-base", "roberta.base"),
        ("models/roberta.large", "roberta.large"),
        ("models/roberta.large.mnli.tar.gz", "roberta.large.mnli"),
        ("models/roberta.base.tar.gz", None),  # of another size than this network
        ("models/my.roberta.large", None),
        ("xlmr.large", None),
        ("hf:someone/roberta-large", None),
        (None, None),
    ],
)
def test_a_released_model_is_known_by_its_name(source, name):
    assert released_name(source, LARGE) == name


def test_a_converted_directory_is_known_by_what_was_converted(tiny_directory, tmp_path):
    assert released_name(str(tiny_directory), LARGE) is None
    directory = tmp_path / "roberta.base"
    shutil.copytree(tiny_directory, directory)
    conversion = json.loads((directory / "conversion.json").read_text())
    for source, name in (("roberta.large.tar.gz", "roberta.large"), (None, None)):  # a run's best/ has no source
        (directory / "conversion.json").write_text(json.dumps({**conversion, "source": source}))
        assert released_name(str(directory), LARGE) == name
