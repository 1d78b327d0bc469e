"""export(): writes a converted directory as a checkpoint for fairseq, Transformers or sentence-transformers.

Values are kept bit for bit.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from roberta_flax.checkpoint import converted
from roberta_flax.checkpoint import usage as usages
from roberta_flax.checkpoint.tensors import LazyTensor, StoredTensor, Values, write_tensors
from roberta_flax.checkpoint.usage import Usage
from roberta_flax.convert import fairseq_files, hf_tokenizer, huggingface, remote_models, sentence_transformers, weights
from roberta_flax.convert.conversion import write_files
from roberta_flax.convert.names import (
    HF_DECODER_BIAS,
    HF_LM_HEAD_BIAS,
    HF_TOKEN_TYPES,
    LM_HEAD_WEIGHT,
    localize_huggingface,
    to_fairseq,
    to_huggingface,
    transformed,
)
from roberta_flax.errors import CheckpointError, InputError
from roberta_flax.extras import require
from roberta_flax.files import new_directory
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from roberta_flax.remote import to_path
from roberta_flax.text.fairseq_tokenizer import (
    BOS,
    DICTIONARY_FILE,
    ENCODER_FILE,
    EOS,
    MASK,
    MERGES_FILE,
    PAD,
    PAD_ID,
    SENTENCEPIECE_FILE,
    UNK,
    ByteLevelBPE,
    FairseqTokenizer,
    SentencePiece,
)
from roberta_flax.text.huggingface_tokenizer import EFFECTIVE_FILE, HuggingFaceTokenizer
from roberta_flax.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

FORMATS = ("fairseq", "huggingface", "sentence-transformers")
_UTF8_BYTES = {*range(0xC0), *range(0xC2, 0xF5)}  # other bytes never occur in text (RFC 3629, section 4)
_FAIRSEQ_EPSILON = 1e-5  # fairseq/modules/layer_norm.py
_FAIRSEQ_ENCODER_VERSION = 3.0  # TransformerEncoderBase: below 2, a pre-norm network's last LayerNorm is dropped
_PROBLEM_NAMES = {"multi_label": "a multi-label head", "regression": "a regression of several values"}
_HIDDEN_ACT = {  # roberta_flax.nn.config.ACTIVATIONS -> transformers/activations.py, ACT2FN
    "gelu": "gelu",
    "gelu_accurate": "gelu_new",
    "gelu_fast": "gelu_new",
    "relu": "relu",
    "relu_squared": "relu2",
    "tanh": "tanh",
    "linear": "linear",
}


@dataclass(frozen=True)
class _Model:
    """An open converted directory."""

    directory: Path
    config: RobertaConfig
    tensors: Mapping[str, StoredTensor]
    tokenizer: Tokenizer
    usage: Usage


def export(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    to: str,
    heads: Sequence[str] | None = None,
) -> Path:
    """Writes a converted model as a directory that fairseq, Transformers or sentence-transformers loads.

    A setting that the other library cannot represent but that has no effect in evaluation, such as LayerDrop, is left
    out with a warning. An export to fairseq needs torch, which writes the file.

    Args:
      source: a converted directory.
      destination: the directory to create. It must not exist.
      to: "fairseq" (model.pt, dict.txt and the BPE's files), "huggingface" (model.safetensors, config.json and the
        tokenizer's files) or "sentence-transformers" (the same, with the files that say how the model is used: as a
        sentence encoder, or with a sentence head as a cross-encoder).
      heads: the names of the heads to export. A fairseq model takes any number of sentence heads, a Transformers model
        one head of any kind. By default all heads, or of a sentence encoder the pooler; none if empty.

    Returns:
      The destination.

    Raises:
      InputError: the format is unknown, the model has no such head, or torch is needed but not installed.
      CheckpointError: the source is not a converted directory, or the other library cannot represent the model.
    """
    if to not in FORMATS:
        raise InputError(f"a model can be exported to {' or '.join(FORMATS)}; got {to!r}")
    model = _open(remote_models.local_copy(source))
    chosen = tuple(model.config.heads if heads is None else map(model.config.head, heads))
    destination = to_path(destination)
    with new_directory(destination) as directory:
        if model.usage.token_params:
            logger.warning("the heads of tokens are left out: %s", ", ".join(model.usage.token_params))
        if to == "fairseq":
            _to_fairseq(model, _fairseq_heads(chosen), directory)
        elif to == "huggingface":
            if model.usage.embedding is not None:
                logger.warning("the modules of the sentence encoder are left out: export to sentence-transformers")
            _to_huggingface(model, chosen, directory)
        else:
            _to_sentence_transformers(model, chosen, heads is None, directory)
    return destination


def _open(directory: Path) -> _Model:
    config, tensors = converted.read_stored(directory)
    usage = usages.read(directory, config)
    return _Model(directory, config, tensors, Tokenizer.from_directory(directory), usage)


def _to_sentence_transformers(model: _Model, heads: Sequence[HeadConfig], is_default: bool, directory: Path) -> None:
    """Writes a sentence encoder; or a cross-encoder, if the heads include one of sentences."""
    if is_default and model.usage.embedding is not None:
        heads = [head for head in heads if head.kind == "pooler"]
    if others := [head.name for head in heads if head.kind not in ("sentence", "pooler")]:
        raise CheckpointError(
            f"sentence-transformers has sentence heads only, got {', '.join(map(repr, others))}; name the heads to "
            "export with heads (--head NAME, or --no-heads)"
        )
    _to_huggingface(model, heads, directory)
    if any(head.kind == "sentence" for head in heads):
        return
    if model.usage.embedding is None:
        logger.warning("the model does not say how its sentence vectors are made: mean pooling is written")
    sentence_transformers.write(model.usage, directory, model.config)


# To fairseq


def _fairseq_heads(heads: Sequence[HeadConfig]) -> list[HeadConfig]:
    exported = [head for head in heads if head.kind == "sentence"]
    if unsupported := [head for head in heads if head.kind not in ("sentence", "pooler")]:
        names = ", ".join(f"{head.name!r} ({head.kind})" for head in unsupported)
        raise CheckpointError(
            f"fairseq's RoBERTa has sentence heads only, but this model has {names}; name the heads to export with "
            "heads (--head NAME, or --no-heads)"
        )
    for head in heads:
        if head.kind == "pooler":
            logger.warning("the pooler %r is left out: fairseq's RoBERTa has none", head.name)
        elif head.labels and head.labels != converted.fairseq_labels(head):
            logger.warning("the label names of head %r are left out: fairseq does not store them", head.name)
    for head in exported:
        # RobertaHubInterface.predict applies log_softmax, whatever the head was trained for
        if head.problem == "multi_label" or (head.problem == "regression" and head.num_classes > 1):
            logger.warning(
                "head %r is %s: fairseq does not store that, and its predict() returns log_softmax; call it with "
                "return_logits=True",
                head.name,
                _PROBLEM_NAMES[head.problem],
            )
    return exported


def _to_fairseq(model: _Model, heads: Sequence[HeadConfig], directory: Path) -> None:
    config = model.config
    if config.layer_norm_epsilon != _FAIRSEQ_EPSILON:
        raise CheckpointError(
            f"fairseq's LayerNorms have an epsilon of {_FAIRSEQ_EPSILON}; this model's have {config.layer_norm_epsilon}"
        )
    if config.lm_head and config.lm_head_activation != config.activation:
        raise CheckpointError(
            f"fairseq has one activation for the layers and the LM head; this model has {config.activation} and "
            f"{config.lm_head_activation}"
        )
    if config.pad_id != PAD_ID:
        raise CheckpointError(f"fairseq's padding has the id {PAD_ID}; this model's has {config.pad_id}")
    tokenizer_files = _fairseq_tokenizer_files(model)
    torch = require("torch", "convert")
    state: dict[str, Any] = {}
    for path, tensor in _fairseq_tensors(model, heads).items():
        place = to_fairseq(path)
        assert place is not None, path
        state[place.path] = _to_torch(torch, transformed(tensor, place.transform))
    if config.lm_head and config.tie_word_embeddings:
        state[LM_HEAD_WEIGHT] = state["encoder.sentence_encoder.embed_tokens.weight"]
    if not config.lm_head:
        # RobertaModel.upgrade_state_dict_named creates an LM head for a checkpoint that data2vec marked in this way
        state["encoder._ema"] = torch.zeros(0)
        logger.warning("this model has no masked-LM head: fairseq will create an untrained one")
    state["encoder.sentence_encoder.version"] = torch.tensor([_FAIRSEQ_ENCODER_VERSION])
    saved = {
        "args": fairseq_arguments(model.config, heads),
        "model": state,
        "optimizer_history": [{"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 0}],
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
        "last_optimizer_state": None,
    }
    _save(torch, saved, directory / "model.pt")
    write_files(tokenizer_files, directory)


def _fairseq_tokenizer_files(model: _Model) -> dict[str, Path | str | bytes]:
    backend = model.tokenizer.backend
    if isinstance(backend, FairseqTokenizer):
        return {name: model.directory / name for name in backend.files()}
    if not isinstance(backend, HuggingFaceTokenizer):
        raise CheckpointError(
            f"{model.directory} was converted without its tokenizer, and fairseq loads no model without a dictionary"
        )
    notes: list[str] = []
    files = fairseq_files.translate(backend, notes)
    for note in notes:
        logger.warning("%s", note)
    return {**files}


def _save(torch: Any, saved: Mapping[str, Any], path: Path) -> None:
    try:
        torch.save(saved, path)
    except RuntimeError as error:  # from torch's C++ writer, which does not say why it could not write
        reason = " ".join(str(error).split("\n", 1)[0].split())[:200]
        free = shutil.disk_usage(path.parent).free / 1e6
        raise CheckpointError(
            f"torch cannot write {path.name} ({reason}); {free:.1f} MB are free on its disk"
        ) from None


def _fairseq_tensors(model: _Model, heads: Sequence[HeadConfig]) -> dict[str, LazyTensor]:
    """The tensors to write for fairseq, by path of the tree."""
    names = {head.name for head in heads}
    tensors: dict[str, LazyTensor] = {
        path: tensor
        for path, tensor in model.tensors.items()
        if not path.startswith("heads.") or path.split(".")[1] in names
    }
    token_types = tensors.pop("embeddings.token_type.embedding", None)
    if token_types is not None:
        positions = tensors["embeddings.position.embedding"]
        tensors["embeddings.position.embedding"] = Values(
            (positions.read() + token_types.read()[:1]).astype(positions.dtype)
        )
        logger.warning(
            "fairseq has no token types: the embedding of type 0 was added to the position embeddings, and rounded"
        )
    return tensors


def _to_torch(torch: Any, tensor: LazyTensor) -> Any:
    values = np.array(tensor.read(), order="C")  # a copy in memory, which torch.save needs
    if values.dtype.name == "bfloat16":
        return torch.from_numpy(values.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(values)


def fairseq_arguments(config: RobertaConfig, heads: Sequence[HeadConfig]) -> argparse.Namespace:
    """The arguments from which fairseq builds a model and its masked-LM task."""
    return argparse.Namespace(
        arch="roberta_base", task="masked_lm", criterion="masked_lm", data=".", seed=1, no_seed_provided=False,
        sample_break_mode="complete", tokens_per_sample=config.max_positions, max_positions=config.max_positions,
        mask_prob=0.15, leave_unmasked_prob=0.1, random_token_prob=0.1, freq_weighted_replacement=False,
        mask_whole_words=False, encoder_layers=config.num_layers, encoder_embed_dim=config.hidden_size,
        encoder_ffn_embed_dim=config.intermediate_size, encoder_attention_heads=config.num_heads,
        activation_fn=config.activation, pooler_activation_fn=config.pooler_activation, dropout=config.dropout,
        attention_dropout=config.attention_dropout, activation_dropout=config.activation_dropout,
        pooler_dropout=config.pooler_dropout, encoder_layerdrop=config.layer_drop, encoder_layers_to_keep=None,
        encoder_normalize_before=config.normalize_before, layernorm_embedding=config.layernorm_embedding,
        untie_weights_roberta=not config.tie_word_embeddings,
        num_classes=heads[0].num_classes if heads else 2,
    )  # fmt: skip


# To Transformers


def _to_huggingface(model: _Model, heads: Sequence[HeadConfig], directory: Path) -> None:
    real_heads = [head for head in heads if head.kind != "pooler"]
    if len(real_heads) > 1:
        raise CheckpointError(
            f"a Transformers model has one head, but this one has {', '.join(repr(head.name) for head in real_heads)}; "
            "name the one to export with heads (--head NAME, or --no-heads)"
        )
    head = real_heads[0] if real_heads else None
    poolers = [each for each in heads if each.kind == "pooler"]
    model_type = huggingface.model_type_of(model.config, model.tokenizer)
    config = _huggingface_config(model, head, poolers, model_type)
    exported = [*([head] if head else []), *poolers[: 0 if head and head.kind == "choice" else 1]]
    kinds = {each.name: each.kind for each in exported}

    tensors: dict[str, LazyTensor] = {}
    for path, tensor in model.tensors.items():
        place = to_huggingface(path, kinds)
        if place is not None:
            tensors[localize_huggingface(place.path, model_type)] = transformed(tensor, place.transform)
    bias, decoder_bias = (localize_huggingface(name, model_type) for name in (HF_LM_HEAD_BIAS, HF_DECODER_BIAS))
    if bias in tensors:  # Transformers 4 reads either, and 5 the latter if the head is not tied
        tensors[decoder_bias] = tensors[bias]
    token_types = localize_huggingface(HF_TOKEN_TYPES, model_type)
    if token_types not in tensors:
        dtype = model.tensors["embeddings.token.embedding"].dtype
        tensors[token_types] = Values(np.zeros((1, model.config.hidden_size), dtype))
    write_tensors(directory / weights.WEIGHT_FILES[0], tensors, metadata={"format": "pt"})
    _write_json(directory / weights.CONFIG_FILE, config)
    _write_tokenizer(model, model_type, directory)
    sentence_transformers.write_limits(model.usage, directory, head, model.config.max_positions)
    for setting, value in (
        ("activation_dropout", model.config.activation_dropout),
        ("layer_drop", model.config.layer_drop),
    ):
        if value:
            logger.warning("%s (%s, in training) is left out: Transformers' RoBERTa has none", setting, value)


def _huggingface_config(
    model: _Model, head: HeadConfig | None, poolers: Sequence[HeadConfig], model_type: str
) -> dict[str, Any]:
    config, backend = model.config, model.tokenizer.backend
    if config.lm_head and config.lm_head_activation != "gelu":
        raise CheckpointError(f"Transformers' LM head uses gelu; this model's uses {config.lm_head_activation}")
    if head:
        huggingface.check_sentence_head(config, head)
    if len(poolers) > 1:
        raise CheckpointError("a Transformers model has one pooler, but this one has several; name the heads to export")
    suffix = huggingface.CLASS_SUFFIXES[head.kind] if head else "ForMaskedLM" if config.lm_head else "Model"
    result: dict[str, Any] = {
        "architectures": [huggingface.CLASS_PREFIXES[model_type] + suffix],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.intermediate_size,
        "hidden_act": _HIDDEN_ACT[config.activation],
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "classifier_dropout": config.pooler_dropout,
        "max_position_embeddings": config.max_positions + config.pad_id + 1,
        "type_vocab_size": config.type_vocab_size or 1,
        "layer_norm_eps": config.layer_norm_epsilon,
        "position_embedding_type": "absolute",
        "pad_token_id": config.pad_id,
        "bos_token_id": backend.bos_id,
        "eos_token_id": backend.eos_id,
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": model.tensors["embeddings.token.embedding"].dtype.name,
    }
    if isinstance(backend, HuggingFaceTokenizer) and backend.settings.tokenizer_class:
        result["tokenizer_class"] = backend.settings.tokenizer_class
    if head and head.kind in ("sentence", "token"):
        labels = head.labels or [f"LABEL_{i}" for i in range(head.num_classes)]
        result["id2label"] = {str(i): label for i, label in enumerate(labels)}
        result["label2id"] = {label: i for i, label in enumerate(labels)}
        if duplicates := sorted({label for label in labels if labels.count(label) > 1}):
            logger.warning(
                "head %r has several labels with the same name (%s): label2id, as in Transformers, keeps the last",
                head.name,
                ", ".join(duplicates[:5]),
            )
    if head and head.kind == "sentence":
        problems = {ours: theirs for theirs, ours in huggingface.PROBLEM_TYPES.items()}
        result["problem_type"] = problems[head.problem]
    return result


def _write_tokenizer(model: _Model, model_type: str, directory: Path) -> None:
    backend = model.tokenizer.backend
    if isinstance(backend, HuggingFaceTokenizer):
        write_files(backend.source_files, directory)
        if hf_tokenizer.TOKENIZER_FILE not in backend.source_files and not backend.settings.is_python:
            (directory / hf_tokenizer.TOKENIZER_FILE).write_text(backend.content, encoding="utf-8")
    elif isinstance(backend, FairseqTokenizer):
        _write_vocabulary(model, backend, directory)
        # as Transformers would make it, which from version 5 on reads nothing else of RoBERTa's
        files = hf_tokenizer.read([directory], model_type, model.config.vocab_size, [], pad_id=model.config.pad_id)
        (directory / hf_tokenizer.TOKENIZER_FILE).write_text(str(files[EFFECTIVE_FILE]), encoding="utf-8")
    else:
        logger.warning("no tokenizer is written, since the model was converted without one")


def _write_vocabulary(model: _Model, backend: FairseqTokenizer, directory: Path) -> None:
    """Writes the vocabulary of a fairseq model, and its settings, as Transformers' slow tokenizers read them."""
    settings: dict[str, Any] = {
        "model_max_length": model.config.max_positions,
        "bos_token": BOS, "eos_token": EOS, "sep_token": EOS, "cls_token": BOS, "unk_token": UNK, "pad_token": PAD,
        "mask_token": MASK,
    }  # fmt: skip
    symbols = backend.dictionary.symbols
    if isinstance(backend.bpe, SentencePiece):
        layout = "CamemBERT" if backend.bos_id != 0 else "XLM-R"
        tokenizer_class = fairseq_files.TOKENIZER_CLASSES[layout]
        expected = fairseq_files.dictionary_symbols(backend.bpe.pieces, layout)
        if symbols[4 : 4 + len(expected)] != expected:
            raise CheckpointError(
                f"{model.directory / DICTIONARY_FILE} is not in the order that {tokenizer_class} gives the pieces of "
                "its SentencePiece model: Transformers would give other token ids"
            )
        shutil.copyfile(model.directory / SENTENCEPIECE_FILE, directory / SENTENCEPIECE_FILE)
        settings["tokenizer_class"] = tokenizer_class
    else:
        _check_every_piece_has_an_id(model.directory, backend)
        encoder = json.loads((model.directory / ENCODER_FILE).read_text(encoding="utf-8"))
        piece_of = {str(i): piece for piece, i in encoder.items()}
        vocab = {piece_of.get(symbol, symbol): i for i, symbol in enumerate(symbols)}
        if len(vocab) != len(symbols):
            raise CheckpointError(
                f"{model.directory / DICTIONARY_FILE} contains a piece twice, which vocab.json cannot"
            )
        _write_json(directory / hf_tokenizer.VOCAB_FILE, vocab)
        shutil.copyfile(model.directory / MERGES_FILE, directory / hf_tokenizer.MERGES_FILE)
        settings |= {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": False}
    _write_json(directory / hf_tokenizer.TOKENIZER_CONFIG_FILE, settings)


def _check_every_piece_has_an_id(directory: Path, backend: FairseqTokenizer) -> None:
    """Raises CheckpointError if dict.txt lacks a piece that some text needs.

    fairseq encodes such a piece as `<unk>`. Transformers' fast tokenizer, which AutoTokenizer chooses, does not load if
    the result of a merge has no id, and drops a byte that has none. An id of its own would need a row of the embedding.
    """
    bpe = backend.bpe
    assert isinstance(bpe, ByteLevelBPE)
    needed = {*_UTF8_BYTES, *b"".join(bpe.pieces[256:])}
    missing = [
        repr(piece)
        for piece, i in zip(bpe.pieces, bpe.bpe_ids, strict=True)
        if (len(piece) > 1 or piece[0] in needed) and (i is None or str(i) not in backend.dictionary.index)
    ]
    if missing:
        raise CheckpointError(
            f"{directory / DICTIONARY_FILE} lacks {len(missing)} of the {len(bpe.pieces)} pieces of its BPE "
            f"({', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}), which fairseq encodes as <unk>; "
            "Transformers' fast tokenizer would not load without them: export the model to fairseq"
        )


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
