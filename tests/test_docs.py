"""What the documentation says is what the code does."""

from __future__ import annotations

import inspect
import re

from roberta_flax import cli, hub
from roberta_flax.convert.parameters import markdown
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_page_of_parameters_is_what_the_code_writes():
    assert (ROOT / "docs" / "parameters.md").read_text(encoding="utf-8") == markdown()


def test_files_that_the_documentation_links_to_exist():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readmes_python_runs(tiny, monkeypatch, tmp_path):
    """Every line of its examples, on the embedded model in the place of the released one."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.setattr("roberta_flax.load", lambda *_, **__: tiny)
    monkeypatch.chdir(tmp_path)
    exec("".join(blocks), {})  # noqa: S102 -- the README's own text
    assert "new_task" in tiny.params["heads"]


def test_the_readme_lists_the_arguments_of_load():
    for name in hub.load.__kwdefaults__:
        assert f"`{name}`" in README, name


def test_the_readme_shows_every_command_and_conversion_md_every_option_of_convert():
    page = (ROOT / "docs" / "conversion.md").read_text(encoding="utf-8")
    for command in cli.app.registered_commands:
        assert re.search(rf"roberta-flax {command.name}\b", README), command.name
    for name in inspect.signature(cli.convert.command).parameters:
        if name not in ("source", "dest", "as_json"):
            assert f"`--{name.replace('_', '-')}`" in page, name
