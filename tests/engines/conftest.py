"""Tests for an environment of their own, with Beam and Spark (constraints-engines.txt)."""

import os
from importlib.util import find_spec

import pytest

if not find_spec("apache_beam"):
    collect_ignore_glob = ["test_*.py"]

# Spark starts Java by a fork, in whose child the handlers of Beam's gRPC may fail before Java runs.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Spark first: it forks before Beam has threads."""
    items.sort(key=lambda item: item.path.name == "test_beam.py")
