"""Reads BERT's network as one of this family, under a tokenizer that gives all tokens the same type.

The layers are the same. BERT numbers positions from 0, and RoBERTa from its padding id + 1, so the table of positions
begins that many rows later. BERT's head of sentences is its pooler and a matrix, which is RoBERTa's head. The embedding
of token type 0 is added to every token, as in RoBERTa; this family's tokenizers know no other type.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from roberta_flax.checkpoint.tensors import LazyTensor
from roberta_flax.convert.hf_tokenizer import TOKENIZER_CONFIG_FILE, TokenizerFiles
from roberta_flax.convert.names import HF_POSITIONS, HF_TOKEN_TYPES
from roberta_flax.convert.source import integer, interpret, read_json
from roberta_flax.convert.views import below_zeros
from roberta_flax.errors import CheckpointError
from roberta_flax.text.huggingface_tokenizer import EFFECTIVE_FILE, SETTINGS_FILE, parse

MODEL_TYPE = "bert"
TOKENIZER_CLASS = "BertTokenizer"  # which AutoTokenizer takes where no file names a class
NEXT_SENTENCE = "cls.seq_relationship."
# The classes that give a model no token types (model_input_names)
_WITHOUT_TOKEN_TYPES = (
    "RobertaTokenizer", "XLMRobertaTokenizer", "CamembertTokenizer", "BartTokenizer", "LongformerTokenizer",
    "T5Tokenizer", "PhobertTokenizer", "BertweetTokenizer", "DistilBertTokenizer",
)  # fmt: skip
_TEXT = "a"  # any text: the types of special tokens show

Tensors = Mapping[str, tuple[str, LazyTensor]]  # by modern name: the name in the file, and the tensor


def padding_id(source_name: str, files: TokenizerFiles | None, settings: Mapping[str, Any], notes: list[str]) -> int:
    """The id of padding, which BERT leaves to the tokenizer: its network does not depend on pad_token_id.

    Args:
      source_name: the name of the source, for messages.
      files: the tokenizer's files in a converted directory; None if the source has no tokenizer that can be read.
      settings: the content of config.json, with Transformers' defaults.
      notes: a list to which messages for the user are appended.
    """
    content = None if files is None else files.get(SETTINGS_FILE)
    found = json.loads(content).get("pad_id") if isinstance(content, str | bytes) else None
    if isinstance(found, int):
        return found
    given = interpret(source_name, lambda: integer(settings["pad_token_id"]))
    notes.append(f"{source_name} has no tokenizer that says which id pads: {given}, its pad_token_id, is taken")
    return given


def check_token_types(source_name: str, files: TokenizerFiles, tokenizer_class: str, modern: Tensors) -> None:
    """Raises CheckpointError if the tokenizer gives tokens a type whose embedding differs from that of type 0.

    Args:
      source_name: the name of the source, for messages.
      files: the tokenizer's files in a converted directory.
      tokenizer_class: config.json's; BERT's own if it has none.
      modern: the model's tensors.
    """
    config_file = files.get(TOKENIZER_CONFIG_FILE)
    config = read_json(config_file) if isinstance(config_file, Path) else {}
    class_name = str(config.get("tokenizer_class") or tokenizer_class).removesuffix("Fast")
    inputs = config.get("model_input_names")
    if "token_type_ids" not in inputs if isinstance(inputs, list) else class_name in _WITHOUT_TOKEN_TYPES:
        return
    tokenizer = parse(str(files[EFFECTIVE_FILE]))
    types = {each for texts in ((_TEXT,), (_TEXT, _TEXT)) for each in tokenizer.encode(*texts).type_ids}
    if HF_TOKEN_TYPES not in modern or len(modern[HF_TOKEN_TYPES][1].shape) != 2:
        return
    embedding = modern[HF_TOKEN_TYPES][1].read()
    for each in sorted(types):
        if each < len(embedding) and not np.array_equal(embedding[each], embedding[0]):
            raise CheckpointError(
                f"{source_name} is a BERT whose tokenizer, {class_name}, gives the second text of a pair token type "
                f"{each}, which has an embedding of its own; this family's network has one type of token. Only a BERT "
                "under a tokenizer without token types can be converted, or one to which you bring token ids of single "
                "texts (--no-tokenizer)"
            )


def with_positions_after(pad_id: int, modern: Tensors) -> dict[str, tuple[str, LazyTensor]]:
    """The tensors, with the table of positions as a network has it that numbers them from `pad_id` + 1."""
    if HF_POSITIONS not in modern or len(modern[HF_POSITIONS][1].shape) != 2:
        return dict(modern)
    source, table = modern[HF_POSITIONS]
    return {**modern, HF_POSITIONS: (source, below_zeros(table, pad_id + 1))}


def with_sentence_head(modern: Tensors) -> dict[str, tuple[str, LazyTensor]]:
    """The tensors of a BertForSequenceClassification by their names in RobertaForSequenceClassification."""
    names = {"roberta.pooler.dense.": "classifier.dense.", "classifier.": "classifier.out_proj."}
    renamed = {}
    for name, tensor in modern.items():
        old = next((old for old in names if name.startswith(old)), None)
        renamed[name if old is None else names[old] + name.removeprefix(old)] = tensor
    return renamed
