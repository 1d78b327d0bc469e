"""Tests for an environment of their own, with transformers 5 and sentence-transformers 6 (constraints-newest.txt)."""

from importlib.metadata import version

if int(version("transformers").split(".")[0]) < 5:
    collect_ignore_glob = ["test_*.py"]
