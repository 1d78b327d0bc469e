"""RoBERTa in torch, from the paper and fairseq's names, as something independent to compare with.

It reads the checkpoint with torch.load and computes on the state dict as it stands, so that neither our reader of
checkpoints, nor the table of names, nor the Flax network is taken on trust. Post-norm networks with tied weights: the
released ones. For others, compare with fairseq itself (tests/parity).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class TorchReference:
    """A released checkpoint in torch, evaluation only, float32."""

    def __init__(self, checkpoint: Path) -> None:
        """Reads a checkpoint that holds `args`; weights_only, so that nothing in it is executed."""
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(checkpoint, map_location="cpu", weights_only=True)
        self.args: Any = loaded["args"]
        prefix = "decoder." if any(name.startswith("decoder.") for name in loaded["model"]) else "encoder."
        self.state: dict[str, Tensor] = {name.removeprefix(prefix): t.float() for name, t in loaded["model"].items()}

    def features(self, tokens: Tensor) -> Tensor:
        """The last layer's features: [batch, time, hidden] from token ids [batch, time]."""
        is_padding = tokens == 1
        positions = torch.cumsum(~is_padding, dim=1) * ~is_padding + 1
        x = self.state["sentence_encoder.embed_tokens.weight"][tokens]
        x = x + self.state["sentence_encoder.embed_positions.weight"][positions]
        x = self._layer_norm("sentence_encoder.emb_layer_norm", x)
        x = x * ~is_padding[..., None]
        for i in range(self.args.encoder_layers):
            layer = f"sentence_encoder.layers.{i}"
            x = self._layer_norm(
                f"{layer}.self_attn_layer_norm", x + self._attention(f"{layer}.self_attn", x, is_padding)
            )
            fed = self._linear(f"{layer}.fc2", F.gelu(self._linear(f"{layer}.fc1", x)))
            x = self._layer_norm(f"{layer}.final_layer_norm", x + fed)
        return x

    def lm_logits(self, tokens: Tensor) -> Tensor:
        """Masked-LM logits: [batch, time, vocab]."""
        x = self._layer_norm("lm_head.layer_norm", F.gelu(self._linear("lm_head.dense", self.features(tokens))))
        return x @ self.state["sentence_encoder.embed_tokens.weight"].T + self.state["lm_head.bias"]

    def head_logits(self, head: str, tokens: Tensor) -> Tensor:
        """A classification head's logits: [batch, classes]."""
        x = torch.tanh(self._linear(f"classification_heads.{head}.dense", self.features(tokens)[:, 0]))
        return self._linear(f"classification_heads.{head}.out_proj", x)

    def _attention(self, name: str, x: Tensor, is_padding: Tensor) -> Tensor:
        batch, time, hidden = x.shape
        fused = F.linear(x, self.state[f"{name}.in_proj_weight"], self.state[f"{name}.in_proj_bias"])
        split = fused.view(batch, time, 3, self.args.encoder_attention_heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = split[0], split[1], split[2]
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        weights = scores.masked_fill(is_padding[:, None, None, :], float("-inf")).softmax(-1)
        return self._linear(f"{name}.out_proj", (weights @ value).transpose(1, 2).reshape(batch, time, hidden))

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def _layer_norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return F.layer_norm(x, (x.shape[-1],), weight, bias, eps=1e-5)
