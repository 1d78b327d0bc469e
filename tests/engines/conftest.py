"""Tests for an environment of their own, with Beam and Spark (constraints-engines.txt)."""

from importlib.util import find_spec

if not find_spec("apache_beam"):
    collect_ignore_glob = ["test_*.py"]
