"""Tests for an environment of their own (constraints-newest.txt).

Transformers 5, sentence-transformers 6, Beam and Spark cannot be installed beside what the other tests compare with.
"""

from importlib.metadata import version

if int(version("transformers").split(".")[0]) < 5:
    collect_ignore_glob = ["test_*.py"]
