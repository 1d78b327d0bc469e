"""Prepare what docs/sick.md needs: text, a tokenizer, pairs to fine-tune on, parts of SICK, and a baseline.

  python -m recipes.sick text /usr/share/wordnet TEXT        Write TEXT/train.txt and TEXT/valid.txt from WordNet
  python -m recipes.sick tokenizer TEXT/train.txt DIRECTORY  Train a byte-level BPE under fairseq's file names
  python -m recipes.sick pairs /usr/share/wordnet PAIRS      Write generated pairs as train.tsv and valid.tsv
  python -m recipes.sick split SICK_train.txt DIRECTORY      Split SICK into train.tsv, valid.tsv and test.tsv
  python -m recipes.sick baseline DIRECTORY                  Train bags of words on them; print lines of JSON

The pairs are in MNLI's columns. The baseline selects the best model of each task by accuracy or by Pearson's
correlation on valid.tsv, and measures only that one on test.tsv. Needs scikit-learn, lemminflect, and tokenizers for
`tokenizer`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from recipes.sick import baseline, corpus, dataset, nli_pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, arguments in (
        ("text", ("wordnet", "output")),
        ("tokenizer", ("text", "output")),
        ("pairs", ("wordnet", "output")),
        ("split", ("source", "output")),
        ("baseline", ("folder",)),
    ):
        command = commands.add_parser(name)
        for argument in arguments:
            command.add_argument(argument, type=Path)
    commands.choices["tokenizer"].add_argument("--vocab-size", type=int, default=8000)
    options = parser.parse_args()
    if options.command == "text":
        corpus.write_text(options.wordnet, options.output)
    elif options.command == "tokenizer":
        corpus.write_tokenizer(options.text, options.output, options.vocab_size)
    elif options.command == "pairs":
        nli_pairs.write_pairs(options.wordnet, options.output)
    elif options.command == "split":
        dataset.split(options.source, options.output)
    else:
        baseline.run_baseline(options.folder)


if __name__ == "__main__":
    main()
