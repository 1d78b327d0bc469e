"""What the documentation says is what the code does."""

from __future__ import annotations

import ast
import inspect
import pkgutil
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import roberta_flax
from roberta_flax import cli, hub
from roberta_flax.convert.parameters import markdown
from tests.conftest import ROOT

PATHS = {
    path.name: path
    for path in (
        *(ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING")),
        *sorted((ROOT / "docs").glob("*.md")),
    )
}
PAGES = {name: path.read_text(encoding="utf-8") for name, path in PATHS.items()}
README, USAGE = PAGES["README.md"], PAGES["usage.md"]
PROGRAM = typer.main.get_command(cli.app)
each_page = pytest.mark.parametrize("page", PAGES)

# Options that the pages name and that other programs have
OTHERS_OPTIONS = {
    "--help": "every program",
    "--after-mnli": "recipes.glue",
    "--cache-clear": "pytest",
    "--config-name": "fairseq-hydra-train",
    "--lora": "benchmarks.train",
    "--keep-empty": "fairseq's multiprocessing_bpe_encoder.py",
    "--generator": "benchmarks.tpu",
    "--gpus": "docker",
    "--privileged": "docker",
    "--layers": "benchmarks.compilation, benchmarks.tpu",
    "--length": "benchmarks.compilation",
    "--mixed": "benchmarks.inference",
    "--network": "the tests",
    "--no-compile": "pip",
    "--operations": "benchmarks.tpu",
    "--pairs": "benchmarks.forward, benchmarks.inference",
    "--rounds": "the benchmarks",
    "--rows": "benchmarks.compilation",
    "--shapes": "benchmarks.train",
    "--sweep": "benchmarks.inference",
    "--tokenizing": "benchmarks.encoders, benchmarks.inference",
}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def prose(text: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def inline(text: str) -> list[str]:
    """What stands between backticks in the prose, a line break in it as a space."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(text))]


def test_the_page_of_parameters_is_what_the_code_writes():
    assert PAGES["parameters.md"] == markdown()


@each_page
def test_links_lead_to_files_and_headings_that_exist(page):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", PAGES[page]):
        linked = PATHS[page].parent / target if target else PATHS[page]
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(PAGES[linked.name]), f"{target}#{anchor}"


def anchors(text: str) -> set[str]:
    """Those that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "usage.md"])
def test_the_first_examples_run(page, tiny_directory, monkeypatch, tmp_path):
    """Every line of them, on the embedded model in the place of released ones."""
    monkeypatch.setattr(hub, "resolve", lambda *_, **__: tiny_directory)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for example in blocks(PAGES[page], "python"):
        exec(example, names)  # noqa: S102 -- the page's own text
    assert names["roberta"].config.head("mnli").num_classes == 3


def test_the_readme_is_short_and_begins_with_the_two_commands():
    assert len(README.split()) < 900
    assert re.findall(r"^## (.*)$", README, re.MULTILINE)[:2] == ["Run the demo", "Run the tests"]


@each_page
def test_python_examples_import_what_there_is_and_call_it_with_arguments_that_it_takes(page):
    """Calls of what an example imports from this package; what it calls on objects, only a run can tell."""
    for example in blocks(PAGES[page], "python"):
        tree = ast.parse(example)
        names: dict[str, Any] = {"roberta_flax": roberta_flax}
        imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom) and is_here(node)]
        exec(compile(ast.Module(imports, []), page, "exec"), names)  # noqa: S102 -- import statements alone
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            function = imported(call.func, names)
            if function is not None and function.__module__.startswith("roberta_flax"):
                keywords = dict.fromkeys(keyword.arg for keyword in call.keywords)
                inspect.signature(function).bind(*call.args, **keywords)  # TypeError where they do not fit


def is_here(node: ast.Import | ast.ImportFrom) -> bool:
    """Whether an import is not of a package that only the environment of tests/engines has."""
    module = node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name
    return module.partition(".")[0] not in ("apache_beam", "pyspark")


def imported(node: ast.expr, names: dict[str, Any]) -> Any:
    """What a dotted name stands for; None where it begins with no import."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute) and (owner := imported(node.value, names)) is not None:
        return getattr(owner, node.attr)
    return None


@each_page
def test_dotted_names_can_be_imported(page):
    for name in sorted(set(re.findall(r"\broberta_flax(?:\.[A-Za-z_]\w*)+", PAGES[page]))):
        pkgutil.resolve_name(name)  # ImportError or AttributeError where there is none


@each_page
def test_command_lines_have_arguments_that_the_commands_take(page):
    commands = typer.main.get_command(cli.app).commands
    for name, *arguments in command_lines(PAGES[page]):
        if any(name in parameter.opts for parameter in PROGRAM.params):
            continue
        assert name in commands, f"roberta-flax {name}"
        if arguments:  # without any, a command is only named
            try:
                commands[name].make_context(name, list(arguments))
            except Exception as error:  # a UsageError, of click or of the copy that typer has
                pytest.fail(f"roberta-flax {shlex.join([name, *arguments])}: {error!r}")


def command_lines(text: str) -> Iterator[list[str]]:
    """The words after `roberta-flax`, wherever a page has it in a block for the shell or between backticks."""
    lines = [line for block in blocks(text, "sh") for line in block.replace("\\\n", " ").splitlines()]
    for line in [*lines, *inline(text)]:
        for command in line.split(" && ") if "roberta-flax " in line else ():
            words = shlex.split(command, comments=True)
            if words and Path(words[0]).name == "roberta-flax":
                yield words[1:]


@each_page
def test_options_between_backticks_are_those_of_a_command(page):
    commands = typer.main.get_command(cli.app).commands.values()
    known = {option for command in (*commands, PROGRAM) for parameter in command.params for option in parameter.opts}
    named = {word for code in inline(PAGES[page]) for word in code.split() if re.fullmatch(r"--[a-z][\w-]*", word)}
    assert not named - known - OTHERS_OPTIONS.keys()


@each_page
def test_files_of_the_repository_that_a_page_names_are_there(page):
    for name in re.findall(r"\b(?:roberta_flax|tests|benchmarks|recipes)/[\w/.]*\w", PAGES[page]):
        assert (ROOT / name).exists(), name


@each_page
def test_programs_of_the_repository_that_a_page_runs_are_there(page):
    for name in re.findall(r"python -m ((?:roberta_flax|tests|benchmarks|recipes)[.\w]*)", PAGES[page]):
        path = ROOT.joinpath(*name.split("."))
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), name


def test_usage_md_lists_the_arguments_of_load():
    for name in hub.load.__kwdefaults__:
        assert f"`{name}`" in USAGE, name


def test_usage_md_shows_every_command_and_conversion_md_every_option_of_convert():
    for command in cli.app.registered_commands:
        assert re.search(rf"roberta-flax {command.name}\b", USAGE), command.name
    for name in inspect.signature(cli.convert.command).parameters:
        if name not in ("source", "dest", "as_json"):
            assert f"`--{name.replace('_', '-')}`" in PAGES["conversion.md"], name


def test_the_reference_has_every_public_name():
    shown = set(re.findall(r"^::: roberta_flax\.(\w+)", PAGES["reference.md"], re.MULTILINE))
    assert shown == set(roberta_flax.__all__)
