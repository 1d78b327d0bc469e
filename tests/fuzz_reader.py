"""Coverage-guided fuzzing of the readers of untrusted files: python -m tests.fuzz_reader KIND [libFuzzer's options]

KIND is one of torch (torch.save's two layouts, and what fairseq.read makes of them), flax (flax_model.msgpack), safetensors,
tokenizer (tokenizer.json). A finding is an exception other than CheckpointError, a message of over one line, 1 GiB of memory
or 20 seconds. What it found is kept as cases in tests/test_hostile.py. Needs atheris (pip install atheris); Linux.

  python -m tests.fuzz_reader torch corpus/ -max_total_time=3600 -rss_limit_mb=1024 -timeout=20
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["pickle", "roberta_flax.convert", "roberta_flax.checkpoint"]):
    from roberta_flax.checkpoint.tensors import read_tensors
    from roberta_flax.convert import fairseq, hf_tokenizer, msgpack_file, torch_file
    from tests.random_model import files
from roberta_flax.errors import RobertaFlaxError

FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-"))
TINY = files()


def torch_zip(data: bytes) -> bytes:
    """A zip checkpoint whose pickle is `data`, with storages 0 to 3."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("m/data.pkl", data)
        for key in range(4):
            archive.writestr(f"m/data/{key}", bytes(4096))
    return content.getvalue()


def read_torch(data: bytes) -> None:
    kind, data = data[:1], data[1:]
    path = FOLDER / "model.pt"
    path.write_bytes(torch_zip(data) if kind == b"z" else data)
    loaded = torch_file.load(path)
    torch_file.plain(loaded)
    for name in ("dict.txt", "encoder.json", "vocab.bpe"):
        if not (FOLDER / name).exists():
            (FOLDER / name).write_bytes(TINY[name])
    source = fairseq.read([path])
    for parameter in source.parameters.values():
        parameter.read()


def read_flax(data: bytes) -> None:
    path = FOLDER / "flax_model.msgpack"
    path.write_bytes(data)
    for tensor in msgpack_file.tensors(path).values():
        tensor.read()


def read_safetensors(data: bytes) -> None:
    path = FOLDER / "model.safetensors"
    path.write_bytes(data)
    for tensor in read_tensors(path).values():
        tensor.read()


def read_tokenizer(data: bytes) -> None:
    folder = FOLDER / "tokenizer"
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_bytes(data)
    hf_tokenizer.read([folder], "roberta", 600, [])


KINDS: dict[str, Callable[[bytes], None]] = {
    "torch": read_torch, "flax": read_flax, "safetensors": read_safetensors, "tokenizer": read_tokenizer,
}  # fmt: skip


def main() -> None:
    read = KINDS[sys.argv.pop(1)]

    def one(data: bytes) -> None:
        try:
            read(data)
        except RobertaFlaxError as error:
            if "\n" in str(error) or len(str(error)) > 20_000:
                raise AssertionError("a message of over one line") from error

    atheris.Setup(sys.argv, one)
    try:
        atheris.Fuzz()
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)


if __name__ == "__main__":
    main()
