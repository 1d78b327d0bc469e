"""fairseq itself: models of random weights, checkpoints as its trainer writes them, of today or of 2019, and its hub.

Arguments are those of fairseq's own architectures, not what roberta_flax.convert.export writes: a reference shares no
code with what it is compared with.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from fairseq.data import Dictionary
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models.roberta import RobertaModel
from fairseq.models.roberta import model as fairseq_roberta
from omegaconf import OmegaConf

LABELS = 3
PADDING = 1  # Dictionary.pad()
SMALL = {
    "encoder_layers": 3, "encoder_embed_dim": 36, "encoder_attention_heads": 3, "encoder_ffn_embed_dim": 50,
    "tokens_per_sample": 77, "max_positions": 77, "vocab": 131,
}  # fmt: skip


def arguments(architecture: str = "roberta_base", **changes: Any) -> argparse.Namespace:
    """A masked-LM training's arguments: an architecture's, with changes."""
    args = argparse.Namespace(
        arch=architecture,
        task="masked_lm",
        criterion="masked_lm",
        data=".",
        tokens_per_sample=512,
        max_positions=512,
    )
    vars(args).update({name: value for name, value in changes.items() if name != "vocab"})
    name = architecture if architecture.startswith("roberta_") else f"{architecture}_"
    getattr(fairseq_roberta, f"{name.rstrip('_')}_architecture")(args)
    return args


def dictionary(vocab: int) -> Dictionary:
    """The specials, numbers from 0 on as BPE ids, and <mask>: `vocab` symbols."""
    symbols = Dictionary()
    for i in range(vocab - 5):
        symbols.add_symbol(str(i))
    symbols.add_symbol("<mask>")
    return symbols


def build(
    architecture: str = "roberta_base",
    *,
    vocab: int = 50265,
    heads: dict[str, int] | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **changes: Any,
) -> RobertaModel:
    """A fairseq RoBERTa in eval mode, random: no bias zero, no LayerNorm scale one, no row of padding zero.

    fairseq's gelu computes in float32 whatever it is given (fairseq/modules/gelu.py: x.float()); for float64 it is
    replaced by the function that it calls, torch's own.
    """
    torch.manual_seed(seed)
    task = argparse.Namespace(source_dictionary=dictionary(vocab), max_positions=lambda: 512)
    with without_initialization():
        model = RobertaModel.build_model(arguments(architecture, **changes), task)
        for name, classes in (heads or {"mnli": LABELS}).items():
            model.register_classification_head(name, num_classes=classes)
    model = model.to(dtype).eval()
    with torch.no_grad():  # in the model's dtype, so that float64 weights are not float32 numbers
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.02)
                if name.endswith(("embed_tokens.weight", "embed_positions.weight")):
                    parameter[PADDING] /= 20  # zero in fairseq's initialization, and small in released models
            else:
                parameter.normal_(mean=1.0 if name.endswith("weight") else 0.0, std=0.1)
    if dtype == torch.float64 and model.args.activation_fn == "gelu":
        for layer in model.encoder.sentence_encoder.layers:
            layer.activation_fn = F.gelu
        model.encoder.lm_head.activation_fn = F.gelu
    return model


@contextmanager
def without_initialization() -> Iterator[None]:
    """Leaves parameters as they are allocated: fairseq and torch draw each five times over, half a minute for large."""
    with ExitStack() as patched:
        for name in ("kaiming_uniform_", "normal_", "uniform_", "xavier_uniform_"):
            patched.enter_context(mock.patch.object(torch.nn.init, name, lambda tensor, *_, **__: tensor))
        patched.enter_context(mock.patch.object(fairseq_roberta, "init_bert_params", return_value=None))
        yield


def write(model: RobertaModel, folder: Path, bpe: Path, style: str = "main") -> Path:
    """Writes a fairseq directory: model.pt in one of `styles`, dict.txt, and the BPE files found in `bpe`."""
    folder.mkdir(parents=True)
    vocab = model.encoder.sentence_encoder.embed_tokens.num_embeddings
    (folder / "dict.txt").write_text("".join(f"{i} 1\n" for i in range(vocab - 5)))
    for name in ("encoder.json", "vocab.bpe"):
        shutil.copy(bpe / name, folder / name)
    state = model.state_dict()
    checkpoint: dict[str, Any] = {
        "args": model.args, "cfg": None, "model": state,
        "criterion": None, "optimizer_history": [
            {"criterion_name": "MaskedLmLoss", "optimizer_name": "FairseqAdam",
             "lr_scheduler_state": {"best": np.float64(1)}, "num_updates": 1}
        ],
        "task_state": {}, "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
        "last_optimizer_state": {"state": {0: {"exp_avg": torch.zeros(3)}}},
    }  # fmt: skip
    if style == "2019":
        checkpoint["model"] = in_the_names_of_2019(state)
    elif style == "cfg":  # what fairseq main writes: trainer.py, state_dict
        cfg = convert_namespace_to_omegaconf(model.args)
        checkpoint |= {"args": None, "cfg": OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)}
    elif style == "omegaconf":
        checkpoint |= {"args": None, "cfg": convert_namespace_to_omegaconf(model.args)}
    torch.save(checkpoint, folder / "model.pt", _use_new_zipfile_serialization=style != "2019")
    return folder


def load(folder: Path) -> Any:
    """fairseq's own object for users, a RobertaHubInterface in eval mode, from a directory; nothing is downloaded."""
    bpe = {"gpt2_encoder_json": str(folder / "encoder.json"), "gpt2_vocab_bpe": str(folder / "vocab.bpe")}
    # fairseq leaves weights_only to torch's default, by which torch >= 2.6 refuses its checkpoints
    with mock.patch.object(torch, "load", partial(torch.load, weights_only=False)):
        return RobertaModel.from_pretrained(str(folder), **bpe).eval()


STYLES = ("main", "2019", "cfg", "omegaconf")


def in_the_names_of_2019(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What fairseq's upgrade_state_dict_named undoes: decoder., emb_layer_norm, fused in_proj_weight."""
    old: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if name.endswith("version"):
            continue
        name = name.replace("encoder.", "decoder.", 1) if name.startswith("encoder.") else name
        name = name.replace(".layernorm_embedding.", ".emb_layer_norm.")
        if "self_attn.q_proj." in name:
            parts = [
                tensor,
                *(state[name.replace("decoder.", "encoder.", 1).replace("q_proj", p)] for p in ("k_proj", "v_proj")),
            ]
            old[name.replace("q_proj.", "in_proj_")] = torch.cat(parts)
        elif "self_attn.k_proj." not in name and "self_attn.v_proj." not in name:
            old[name] = tensor
    return old


def random_tokens(lengths: list[int], vocab: int, seed: int = 0) -> npt.NDArray[np.int32]:
    """A padded batch with rows of these lengths: <s>, anything but padding (all other specials too), </s>."""
    random = np.random.default_rng(seed)
    batch = np.ones((len(lengths), max(lengths)), np.int32)
    for row, length in zip(batch, lengths, strict=True):
        ids = random.integers(0, vocab - 1, length)
        row[:length] = np.where(ids >= 1, ids + 1, ids)  # 0, 2, 3, ..., vocab - 1
        row[0] = 0
        if length > 1:
            row[length - 1] = 2
    return batch


def all_hidden(model: RobertaModel, tokens: npt.NDArray[np.int32]) -> tuple[list[npt.NDArray[Any]], npt.NDArray[Any]]:
    """Every hidden state, and the features, [batch, time, hidden] each."""
    with torch.no_grad():
        features, extra = model(torch.from_numpy(tokens).long(), features_only=True, return_all_hiddens=True)
    return [state.transpose(0, 1).numpy() for state in extra["inner_states"]], features.numpy()
