"""Compare encoding speed with fairseq's and with tiktoken's, in one process: python -m benchmarks.tokenizer BPE_DIR

BPE_DIR holds dict.txt, encoder.json and vocab.bpe. The text is Python source, line by line: this project's and that of
the standard library. Rounds are interleaved. Prints a line of JSON for each encoder: the median speed in MB/s, and its
ratio to that of fairseq's hub. "fairseq, BPE alone" stops at BPE ids: no dictionary, no special tokens, no tensor.
"""

from __future__ import annotations

import argparse
import json
import sysconfig
from collections.abc import Callable
from functools import partial
from pathlib import Path

import tiktoken
from fairseq.data import Dictionary
from fairseq.data.encoders.gpt2_bpe import GPT2BPE, GPT2BPEConfig

from benchmarks.measurement import median_seconds
from roberta_flax import Tokenizer

ROUNDS, LINES = 5, 40_000


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bpe_dir", type=Path, help="directory with dict.txt, encoder.json and vocab.bpe")
    folder = parser.parse_args().bpe_dir

    lines = source_lines()
    megabytes = sum(len(line.encode()) for line in lines) / 1e6

    def encode_lines(encode: Callable[[str], object]) -> None:
        for line in lines:
            encode(line)

    functions = {name: partial(encode_lines, encode) for name, encode in make_encoders(folder).items()}
    median_seconds(1, functions)  # fills caches
    medians = median_seconds(ROUNDS, functions)
    for name, median in medians.items():
        ratio = medians["fairseq"] / median
        print(json.dumps({"encoder": name, "MB/s": round(megabytes / median, 2), "vs fairseq": round(ratio, 2)}))


def source_lines() -> list[str]:
    sources = [*Path(__file__).parent.parent.rglob("*.py"), *sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))]
    texts = [path.read_text(encoding="utf-8", errors="ignore") for path in sources]
    return [line for text in texts for line in text.splitlines()][:LINES]


def make_encoders(folder: Path) -> dict[str, Callable[[str], object]]:
    tokenizer = Tokenizer.from_directory(folder)
    raw: tiktoken.Encoding = tokenizer.backend.bpe._tiktoken
    bpe = GPT2BPE(
        GPT2BPEConfig(gpt2_encoder_json=str(folder / "encoder.json"), gpt2_vocab_bpe=str(folder / "vocab.bpe"))
    )
    dictionary = Dictionary.load(str(folder / "dict.txt"))
    dictionary.add_symbol("<mask>")

    def fairseq_encode(line: str) -> object:  # as RobertaHubInterface.encode
        text = f"<s> {bpe.encode(line)} </s>"
        return dictionary.encode_line(text, append_eos=False, add_if_not_exist=False).long()

    return {
        "fairseq": fairseq_encode,
        "fairseq, BPE alone": bpe.bpe.encode,
        "roberta-flax": tokenizer.encode,
        "tiktoken, raw": raw.encode_ordinary,
    }


if __name__ == "__main__":
    main()
