"""The text to pretrain on, and its tokenizer."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

from recipes.sick import wordnet
from recipes.tiny.fairseq_archive import tokenizer_files
from recipes.tiny.pairs import generate_pairs

SEED = 2014
_DOCUMENTS_PER_VALIDATION_DOCUMENT = 100


def write_text(wordnet_folder: Path, output: Path) -> None:
    """Writes train.txt and valid.txt: documents in random order, each followed by an empty line.

    The documents are the synsets of WordNet, and pairs of sentences without their labels. The two sentences of a pair
    differ by a word or two, so a word that is masked in one is often still in the other: to predict it, the model has
    to compare sentences.
    """
    output.mkdir(parents=True, exist_ok=True)
    synsets = wordnet.read_synsets(wordnet_folder)
    documents = list(wordnet.make_documents(synsets))
    documents += [[pair.premise, pair.hypothesis] for pair in wordnet.make_pairs(synsets, random.Random(SEED))]
    generated = itertools.islice(generate_pairs(SEED), len(documents) // 4)
    documents += [[pair.premise, pair.hypothesis] for pair in generated]
    random.Random(SEED).shuffle(documents)
    valid_count = len(documents) // _DOCUMENTS_PER_VALIDATION_DOCUMENT
    for name, part in (("valid", documents[:valid_count]), ("train", documents[valid_count:])):
        text = "".join("\n".join(lines) + "\n\n" for lines in part)
        (output / f"{name}.txt").write_text(text, encoding="utf-8")
        print(json.dumps({"file": f"{name}.txt", "documents": len(part), "words": len(text.split())}))


def write_tokenizer(text: Path, output: Path, vocab_size: int) -> None:
    """Trains a byte-level BPE with Hugging Face's tokenizers, and writes it under fairseq's file names."""
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train([str(text)], vocab_size=vocab_size, min_frequency=2, show_progress=False)
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    output.mkdir(parents=True, exist_ok=True)
    for name, content in tokenizer_files(merges).items():
        (output / name).write_bytes(content)
    print(json.dumps({"directory": str(output), "merges": len(merges)}))
