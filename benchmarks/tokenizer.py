"""Encoding speed beside fairseq's own and tiktoken's raw one, in one process: python -m benchmarks.tokenizer DIR

DIR holds dict.txt, encoder.json and vocab.bpe. Text is Python source, line by line: this project's and the standard
library's. Rounds are interleaved; a JSON line for each encoder: median MB/s, and the ratio to fairseq's hub.
"fairseq, BPE alone" stops at BPE ids: no dictionary, no specials, no tensor.
"""

from __future__ import annotations

import json
import statistics
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

import tiktoken
from fairseq.data import Dictionary
from fairseq.data.encoders.gpt2_bpe import GPT2BPE, GPT2BPEConfig

from roberta_flax import Tokenizer

ROUNDS, LINES = 5, 40_000


def main(folder: Path) -> None:
    """Measures and prints."""
    sources = [*Path(__file__).parent.parent.rglob("*.py"), *sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))]
    texts = [path.read_text(encoding="utf-8", errors="ignore") for path in sources]
    lines = [line for text in texts for line in text.splitlines()][:LINES]
    megabytes = sum(len(line.encode()) for line in lines) / 1e6

    ours = Tokenizer.from_directory(folder)
    raw: tiktoken.Encoding = ours.bpe._tiktoken
    bpe = GPT2BPE(
        GPT2BPEConfig(gpt2_encoder_json=str(folder / "encoder.json"), gpt2_vocab_bpe=str(folder / "vocab.bpe"))
    )
    dictionary = Dictionary.load(str(folder / "dict.txt"))
    dictionary.add_symbol("<mask>")

    def fairseq_encode(line: str) -> object:  # RobertaHubInterface.encode
        text = f"<s> {bpe.encode(line)} </s>"
        return dictionary.encode_line(text, append_eos=False, add_if_not_exist=False).long()

    encoders: dict[str, Callable[[str], object]] = {
        "fairseq": fairseq_encode,
        "fairseq, BPE alone": bpe.bpe.encode,
        "roberta-flax": ours.encode,
        "tiktoken, raw": raw.encode_ordinary,
    }
    seconds: dict[str, list[float]] = {name: [] for name in encoders}
    for _ in range(ROUNDS + 1):
        for name, encode in encoders.items():
            begin = time.perf_counter()
            for line in lines:
                encode(line)
            seconds[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}  # the first round fills caches
    for name, median in medians.items():
        ratio = medians["fairseq"] / median
        print(json.dumps({"encoder": name, "MB/s": round(megabytes / median, 2), "vs fairseq": round(ratio, 2)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
