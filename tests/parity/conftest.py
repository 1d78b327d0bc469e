"""fairseq's own object for users, beside ours."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def fairseq_loads():
    """fairseq's own from_pretrained, offline."""
    from tests.references import load

    return load
