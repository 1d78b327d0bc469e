"""Coverage-guided fuzzing of the readers of untrusted files: python -m tests.fuzz_reader KIND [libFuzzer's options]

KIND is one of
  torch          torch.save's two layouts, and what fairseq.read makes of them
  archive        a .tar.gz, by the tar file in it
  flax           flax_model.msgpack
  safetensors    model.safetensors
  tokenizer      tokenizer.json
  bpe            dict.txt, encoder.json and vocab.bpe, with a zero byte between them
  sentencepiece  sentencepiece.bpe.model
  conversion     conversion.json, with the checksums of a converted directory

Without atheris, or from tests/test_hostile.py, the same files are changed at random: `mutated(seed, random)`.

A finding is an exception other than this package's own, a message of over one line or over 20,000 characters, 512 MiB more
memory than before, files left behind, or 10 seconds, for inputs of 64 KiB at most. What it found is kept as cases in
tests/test_hostile.py and tests/test_archive.py. Needs atheris (pip install atheris); Linux.

  python -m tests.fuzz_reader torch corpus/ -max_total_time=3600
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import resource
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import msgpack
import numpy as np
import sentencepiece
import torch
from safetensors.numpy import save

try:
    import atheris
except ImportError:  # the readers and seeds here serve without
    atheris = None

with (
    nullcontext()
    if atheris is None
    else atheris.instrument_imports(include=["pickle", "roberta_flax.convert", "roberta_flax.checkpoint"])
):
    from roberta_flax.checkpoint import checksums
    from roberta_flax.checkpoint.archive import extract_archive
    from roberta_flax.checkpoint.tensors import read_tensors
    from roberta_flax.convert import fairseq, hf_tokenizer, msgpack_file, torch_file
    from roberta_flax.text.fairseq_tokenizer import BYTE_LEVEL_FILES, SentencePiece
    from roberta_flax.text.tokenizer import Tokenizer
    from tests.random_model import TEXT, files
from roberta_flax.errors import RobertaFlaxError

MAX_LENGTH = 65536  # bytes of a file
_NUMBERS = (
    b"\0",
    b"\xff",
    b"\xff\xff\xff\x7f",
    b"\xff" * 8,
    b"-1",
    b"0",
    b"1e999",
    b"9" * 40,
    b"null",
    b"NaN",
    b"{",
    b"[" * 99,
)
OPTIONS = (
    "-timeout=10",
    "-rss_limit_mb=0",
    f"-max_len={MAX_LENGTH}",
)  # where not given; of memory there is a limit of our own
MEMORY = 512 << 20  # bytes
FOLDER = Path(tempfile.gettempdir()) / f"fuzz-{os.getpid()}"  # where files are written to be read
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
    for name in BYTE_LEVEL_FILES:
        if not (FOLDER / name).exists():
            (FOLDER / name).write_bytes(TINY[name])
    loaded = torch_file.load(path)
    torch_file.plain(loaded)
    if isinstance(loaded, dict):
        for _, tensor in torch_file.tensors(loaded):
            if np.prod(tensor.shape, dtype=float) < 1e6:
                tensor.read()
    source = fairseq.read([path])
    for parameter in source.parameters.values():
        parameter.read()


def read_archive(data: bytes) -> None:
    path, folder = FOLDER / "a.tar.gz", FOLDER / "archive"
    path.write_bytes(gzip.compress(data, 1))
    try:
        extract_archive(path, folder)
    except RobertaFlaxError:
        assert not folder.exists()
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        assert {each.name for each in FOLDER.iterdir()} <= {"a.tar.gz"}


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


def read_bpe(data: bytes) -> None:
    folder = FOLDER / "bpe"
    folder.mkdir(exist_ok=True)
    for name, content in zip(BYTE_LEVEL_FILES, [*data.split(b"\0"), b"", b"", b""], strict=False):
        (folder / name).write_bytes(content)
    Tokenizer.from_directory(folder).encode("A man isn't playing 2 naïve games.")


def read_sentencepiece(data: bytes) -> None:
    path = FOLDER / "sentencepiece.bpe.model"
    path.write_bytes(data)
    SentencePiece.read(path).piece_encoder({})("A man isn't playing 2 naïve ﬁne games №5.")


def read_conversion(data: bytes) -> None:
    folder = FOLDER / "converted"
    folder.mkdir(exist_ok=True)
    (folder / "dict.txt").write_bytes(TINY["dict.txt"])
    (folder / "conversion.json").write_bytes(data)
    checksums.compare(folder, optional=BYTE_LEVEL_FILES)
    checksums.check(folder, by_size=(), editable=(), optional=BYTE_LEVEL_FILES)


def torch_seeds() -> Iterator[bytes]:
    model = {f"decoder.sentence_encoder.layers.{i}.fc1.bias": torch.ones(3) for i in range(2)}
    saved = {"args": argparse.Namespace(arch="roberta_base", encoder_layers=2, lr=[0.1]), "model": model}
    for zip_format in (True, False):
        content = io.BytesIO()
        torch.save(saved, content, _use_new_zipfile_serialization=zip_format)
        yield b"l" + content.getvalue()
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x08tQ"
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + b"K\x00K\x02K\x04\x86K\x04K\x01\x86\x89}X\x03\x00\x00\x00neg\x88stR"
    )
    for value in (
        tensor, b"ccollections\nOrderedDict\n((K\x01K\x02tltR", b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x06\x00\x00\x00latin1tR",
        b"cbuiltins\nset\n((K\x01K\x02ltR", b"cargparse\nNamespace\n)\x81}X\x01\x00\x00\x00xK\x01sb", b"\x80\x04\x8f(K\x01\x90\x94h\x00",
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(X\x02\x00\x00\x00f8K\x00K\x01tRC\x0812345678tR",
    ):  # fmt: skip
        yield b"z}X\x05\x00\x00\x00model}X\x01\x00\x00\x00a" + value + b"sX\x04\x00\x00\x00args" + value + b"us."


def archive_seeds() -> Iterator[bytes]:
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w", format=form) as tar:
            for name in ("m/model.pt", "m/" + "n" * 90 + "/" + "o" * 60):
                info = tarfile.TarInfo(name)
                info.size, info.mtime = 700, 1.5
                tar.addfile(info, io.BytesIO(bytes(700)))
        yield content.getvalue()[:8192]


def flax_seeds() -> Iterator[bytes]:
    def array(shape: list[int]) -> msgpack.ExtType:
        return msgpack.ExtType(1, msgpack.packb((shape, "float32", bytes(4 * int(np.prod(shape))))))

    chunks = {"__msgpack_chunked_array__": True, "shape": {"0": 4}, "chunks": {"0": array([2]), "1": array([2])}}
    yield msgpack.packb({"roberta": {"dense": {"kernel": array([2, 3]), "bias": array([3])}}, "lm_head": chunks})


def safetensors_seeds() -> Iterator[bytes]:
    yield save({"a": np.zeros((2, 3), np.float32), "b": np.zeros((), np.float16), "c": np.zeros((0, 3), np.int64)})


def tokenizer_seeds() -> Iterator[bytes]:
    vocab = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4, "b": 5, "ab": 6, "<mask>": 7}
    bpe = {"type": "BPE", "vocab": vocab, "merges": ["a b"], "dropout": None}
    added = [{"content": "<mask>", "id": 7}]
    processor = {"type": "RobertaProcessing", "cls": ["<s>", 0], "sep": ["</s>", 2]}
    yield json.dumps(
        {"pre_tokenizer": {"type": "ByteLevel"}, "model": bpe, "added_tokens": added, "post_processor": processor}
    ).encode()
    unigram = [["<s>", 0], ["<pad>", 0], ["</s>", 0], ["<unk>", 0], ["a", -1], ["b", -2.5], ["<mask>", 0]]
    normalizers = [{"type": "Precompiled", "precompiled_charsmap": ""}, {"type": "Strip"}]
    yield json.dumps(
        {"model": {"type": "Unigram", "vocab": unigram}, "pre_tokenizer": {"type": "Metaspace"},
         "normalizer": {"type": "Sequence", "normalizers": normalizers}}
    ).encode()  # fmt: skip


def bpe_seeds() -> Iterator[bytes]:
    yield b"\0".join(TINY[name] for name in BYTE_LEVEL_FILES)
    yield b'0 1\n1 1\n2 1\n\0{"a": 0, "b": 1, "ab": 2}\0#version\na b\n'


def sentencepiece_seeds() -> Iterator[bytes]:
    for rule in ("identity", "nmt_nfkc"):
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(TEXT.splitlines()), model_writer=model, vocab_size=80, normalization_rule_name=rule,
            minloglevel=2,
        )  # fmt: skip
        yield model.getvalue()[: 1 << 20]


def conversion_seeds() -> Iterator[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "dict.txt").write_bytes(TINY["dict.txt"])
        yield checksums.record(Path(folder), {"source": "x", "kind": "fairseq", "tensors": {}}).encode()


KINDS: dict[str, tuple[Callable[[bytes], None], Callable[[], Iterator[bytes]]]] = {
    "torch": (read_torch, torch_seeds), "archive": (read_archive, archive_seeds), "flax": (read_flax, flax_seeds),
    "safetensors": (read_safetensors, safetensors_seeds), "tokenizer": (read_tokenizer, tokenizer_seeds), "bpe": (read_bpe, bpe_seeds),
    "sentencepiece": (read_sentencepiece, sentencepiece_seeds), "conversion": (read_conversion, conversion_seeds),
}  # fmt: skip


def mutated(seed: bytes, random: np.random.Generator) -> bytes:
    """A file with a few changes: bytes flipped, cut out, repeated, or replaced by numbers that sizes and lengths have."""
    data = bytearray(seed)
    for _ in range(random.integers(1, 6)):
        begin = int(random.integers(0, len(data) + 1))
        end = min(len(data), begin + int(random.integers(1, 9)))
        change = random.integers(0, 5)
        if change == 0 and begin < len(data):
            data[begin] ^= 1 << int(random.integers(0, 8))
        elif change == 1:
            data[begin:end] = random.bytes(end - begin)
        elif change == 2:
            del data[begin:end]
        elif change == 3:
            data[begin:begin] = data[begin:end] * int(random.integers(1, 50))
        else:
            data[begin:end] = _NUMBERS[random.integers(0, len(_NUMBERS))]
    return bytes(data[:MAX_LENGTH])


def try_one(read: Callable[[bytes], None], data: bytes) -> None:
    """Reads one file. Raises whatever is a finding."""
    try:
        read(data)
    except RobertaFlaxError as error:
        if "\n" in str(error) or len(str(error)) > 20_000 or "more memory than there is" in str(error):
            raise AssertionError("a message of over one line, or memory that is not there") from error


def limit_memory() -> None:
    """Lets this process have so much more than it has: beyond it, a MemoryError is a finding, or ends the process."""
    status = Path("/proc/self/status").read_text().splitlines()
    used = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY, used + MEMORY))


def main() -> None:
    read, seeds = KINDS[sys.argv.pop(1)]
    folder = Path(tempfile.mkdtemp(prefix="seeds-"))
    FOLDER.mkdir()
    for number, seed in enumerate(seeds()):
        (folder / str(number)).write_bytes(seed)

    given = [option.split("=")[0] for option in sys.argv]
    defaults = [option for option in OPTIONS if option.split("=")[0] not in given]
    atheris.Setup([*sys.argv, *defaults, str(folder)], partial(try_one, read))
    limit_memory()
    try:
        atheris.Fuzz()
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
