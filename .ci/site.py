"""Hooks of the site (mkdocs.yml)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def on_files(files: Any, config: Any) -> Any:
    """Adds the README as the first page, and the two pages beside it."""
    from mkdocs.structure.files import File

    pages = (("README.md", "index.md"), ("CONTRIBUTING.md", "contributing.md"), ("CHANGELOG.md", "changelog.md"))
    for name, page in pages:
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
        text = text.replace("](CONTRIBUTING.md)", "](contributing.md)").replace("](CHANGELOG.md)", "](changelog.md)")
        text = re.sub(r"\]\(README\.md", "](index.md", text)
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Leads links to files beside docs/ to the pages that are made of them, and shows other files by name alone."""
    markdown = markdown.replace("](../README.md", "](index.md")
    return re.sub(r"\[([^]]*)\]\(\.\./[^)]*\)", r"\1", markdown)
