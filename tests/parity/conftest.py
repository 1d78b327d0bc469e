"""fairseq's own object for users, beside ours."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def fairseq_loads():
    """fairseq's own from_pretrained, offline; torch >= 2.6 needs to be told that the checkpoint is trusted."""
    from tests.references import RobertaModel, torch

    load = torch.load

    def from_pretrained(folder):
        return RobertaModel.from_pretrained(
            str(folder),
            gpt2_encoder_json=str(folder / "encoder.json"),
            gpt2_vocab_bpe=str(folder / "vocab.bpe"),
        ).eval()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "load", lambda *args, **options: load(*args, **{**options, "weights_only": False}))
        yield from_pretrained
