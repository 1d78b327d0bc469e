"""Pretraining data: encodes text files into one binary file of token ids, and splits it into blocks as fairseq does.

A text file has the format of fairseq's README.pretraining.md: one sentence or paragraph per line, and an empty line
between documents. `write` does what multiprocessing_bpe_encoder.py --keep-empty and fairseq-preprocess do: it strips
each line and encodes it as its token ids and `</s>`. An empty line becomes `</s>` alone. `Corpus` maps the binary file
into memory, and its `blocks` are those of fairseq's TokenBlockDataset.

The binary file, little-endian:

  8 bytes  MAGIC
  4 bytes  CRC-32 of the rest of the header
  JSON     an object (Header), padded with spaces to byte HEADER_SIZE
  tokens   uint16, or uint32 if the vocabulary has more than 65,536 ids; padded with zeros to a multiple of 8 bytes
  offsets  int64 [lines + 1]: the start of each line in the tokens, and the end of the last
"""

from __future__ import annotations

import dataclasses
import json
import mmap
import os
import tempfile
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt

from roberta_flax.checkpoint import download
from roberta_flax.datasets import tables
from roberta_flax.errors import InputError
from roberta_flax.files import PathLike, replacing, require_rereadable
from roberta_flax.prefetch import computed_ahead
from roberta_flax.remote import is_url, to_path
from roberta_flax.text.tokenizer import Tokenizer

MAGIC = b"\x89RoBERTa"
HEADER_SIZE = 512
BREAK_MODES = ("none", "complete", "complete_doc", "eos")  # fairseq's SAMPLE_BREAK_MODE_CHOICES

_VERSION = 1
_CHUNK = 1 << 18  # characters encoded at a time; this and the longest line bound the memory
_BLOCK = 1 << 20  # bytes read or copied at a time
_SCAN = 1 << 20  # lines searched at a time


@dataclass(frozen=True)
class Header:
    """The header of a binary file.

    Attributes:
      tokens: number of tokens, including the `</s>` of every line.
      lines: number of lines, including empty ones.
      documents: number of documents: runs of lines that are not empty.
      vocab_size: the tokenizer's vocabulary size.
      tokenizer: the tokenizer's fingerprint (Tokenizer.fingerprint).
      crc32: CRC-32 of all bytes after the header.
      version: version of the format.
    """

    tokens: int
    lines: int
    documents: int
    vocab_size: int
    tokenizer: str
    crc32: int
    version: int = _VERSION

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the tokens."""
        return _dtype(self.vocab_size)

    @property
    def offsets_begin(self) -> int:
        """The offset of the first byte of the offsets."""
        end = HEADER_SIZE + self.tokens * self.dtype.itemsize
        return end + -end % 8

    @property
    def size(self) -> int:
        """The size of the whole file in bytes."""
        return self.offsets_begin + 8 * (self.lines + 1)

    def to_bytes(self) -> bytes:
        """Returns the first HEADER_SIZE bytes of the file."""
        text = json.dumps(dataclasses.asdict(self)).encode().ljust(HEADER_SIZE - len(MAGIC) - 4)
        return MAGIC + zlib.crc32(text).to_bytes(4, "little") + text

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Reads a header that `to_bytes` wrote; raises ValueError, which says what is wrong, for anything else."""
        if not content.startswith(MAGIC):
            raise ValueError("it has another format")
        crc32, text = content[len(MAGIC) :][:4], content[len(MAGIC) + 4 :]
        if len(content) < HEADER_SIZE or zlib.crc32(text).to_bytes(4, "little") != crc32:
            raise ValueError("its header is damaged")
        fields = json.loads(text)
        if fields.get("version") != _VERSION:
            raise ValueError(f"its version is {fields.get('version')!r}, and this program reads {_VERSION}")
        return cls(**fields)


def _dtype(vocab_size: int) -> np.dtype[Any]:
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def write(
    texts: Sequence[PathLike],
    destination: PathLike,
    tokenizer: Tokenizer,
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] = lambda lines, tokens: None,
) -> Header:
    """Encodes text files into one binary file, which `Corpus` reads.

    Each file begins a new document. The same texts give the same bytes, whatever the number of threads. The memory that
    it takes does not grow with the texts.

    Args:
      texts: UTF-8 files with one sentence or paragraph per line and an empty line between documents. Files whose names
        end in .gz are decompressed.
      destination: the file to create or replace. It appears only when it is complete.
      tokenizer: the tokenizer of the model to train.
      threads: number of tokenizer threads; the default is one per processor.
      progress: called from time to time with the number of lines and tokens written.

    Raises:
      InputError: there are no texts, one cannot be read or is not text (with its line), they contain no sentence, or
        the destination cannot be written.
    """
    files, destination = list(map(to_path, texts)), to_path(destination)
    _check_files(files, destination)
    rows = [tables.read_rows(file, ("text",), format="txt") for file in files]
    dtype, threads = _dtype(tokenizer.vocab_size), threads or os.cpu_count() or 1
    calls = (partial(_encode, tokenizer, chunk, dtype=dtype) for chunk in _chunks(_lines(files, rows)))
    with (
        replacing(destination) as content,
        tempfile.TemporaryFile(dir=None if is_url(destination) else destination.parent) as offsets,
        closing(computed_ahead(calls, threads=threads, ahead=2 * threads)) as encoded,
    ):
        writer = _Writer(content, offsets)
        for ids, lengths in encoded:
            writer.add(ids, lengths)
            progress(writer.lines, writer.tokens)
        if not writer.documents:
            raise InputError(f"there is no sentence in {', '.join(map(str, files))}; nothing was written")
        return writer.finish(tokenizer)


class _Writer:
    """Writes tokens to the file and offsets to a temporary one; at the end appends the offsets and writes the header.

    Attributes:
      tokens, lines, documents: the numbers written so far.
    """

    def __init__(self, content: IO[bytes], offsets: IO[bytes]) -> None:
        self.tokens = self.lines = self.documents = 0
        self._content, self._offsets = content, offsets
        self._crc32 = 0
        self._in_document = False
        content.write(bytes(HEADER_SIZE))
        offsets.write(bytes(8))

    def add(self, ids: npt.NDArray[Any], lengths: npt.NDArray[np.int64]) -> None:
        """Writes lines, given all their token ids, [tokens], and the number in each line, [lines]."""
        self._write(ids.tobytes())
        self._offsets.write((self.tokens + lengths.cumsum()).astype("<i8").tobytes())
        in_document = np.concatenate([[self._in_document], lengths > 1])
        self.documents += int((in_document[1:] > in_document[:-1]).sum())
        self._in_document = bool(in_document[-1])
        self.tokens += len(ids)
        self.lines += len(lengths)

    def finish(self, tokenizer: Tokenizer) -> Header:
        """Writes the padding and offsets after the tokens, and then the header."""
        self._write(bytes(-self._content.tell() % 8))
        self._offsets.seek(0)
        while block := self._offsets.read(_BLOCK):
            self._write(block)
        header = Header(
            self.tokens, self.lines, self.documents, tokenizer.vocab_size, tokenizer.fingerprint(), self._crc32
        )
        self._content.seek(0)
        self._content.write(header.to_bytes())
        return header

    def _write(self, content: bytes) -> None:
        self._crc32 = zlib.crc32(content, self._crc32)
        self._content.write(content)


def _check_files(files: Sequence[Path], destination: Path) -> None:
    """Raises InputError if there are no texts, or one has another format or would be replaced by the destination."""
    if not files:
        raise InputError("no texts to encode; name one file or more")
    for file in files:
        if what := "a directory" if file.is_dir() else _other_format(file):
            raise InputError(f"{file} is {what}; expected plain text, one sentence or paragraph per line")
        if file.exists() and destination.exists() and file.samefile(destination):
            raise InputError(f"{file} would be replaced by its own tokens; choose another output file")


def _other_format(file: Path) -> str | None:
    """Returns the format of a file according to its name; None for plain text."""
    format = (file.with_suffix("") if file.suffix.lower() == ".gz" else file).suffix.lower().removeprefix(".")
    return format if format in tables.INPUT_FORMATS and format != "txt" else None


def _lines(files: Sequence[Path], rows: Sequence[Iterator[tables.Row | tables.BadRow]]) -> Iterator[str]:
    """Yields the lines of all files, with an empty line between two files if there is none."""
    line = ""
    for file, lines in zip(files, rows, strict=True):
        if line:
            yield ""
        for row in lines:
            if isinstance(row, tables.BadRow):
                raise InputError(f"{file}, line {row.line}: {row.reason}; correct or remove the line")
            line = row.values[0].strip()
            yield line


def _chunks(lines: Iterable[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    size = 0
    for line in lines:
        chunk.append(line)
        size += len(line) + 1
        if size >= _CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _encode(
    tokenizer: Tokenizer, lines: Sequence[str], *, dtype: np.dtype[Any]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Returns the token ids of lines, each with its `</s>`, and the number of tokens in each line."""
    end = np.array([tokenizer.eos_id], np.int32)
    ids = [part for line in lines for part in (tokenizer.encode_text(line), end)]
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    return np.concatenate(ids).astype(dtype), lengths[::2] + 1


class Corpus:
    """A file that `write` made, mapped into memory.

    Attributes:
      path: the file.
      header: its header.
      tokens: uint16 or uint32 [tokens].
      offsets: int64 [lines + 1]: the start of each line in `tokens`, and the end of the last.
    """

    def __init__(self, path: PathLike) -> None:
        """Opens a file, and reads it once to check that it is complete.

        Raises:
          InputError: the file cannot be read, has another format, or is truncated or damaged.
        """
        self.path = to_path(path)
        require_rereadable(self.path)
        try:
            with download.local_file(self.path).open("rb") as file:
                self.header = _read_header(file)
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise InputError(f"cannot read {self.path}: {error.strerror or error}") from None
        except ValueError as error:
            raise InputError(
                f"{self.path} is not a complete file from roberta-flax preprocess: {error}; create it again"
            ) from None
        header = self.header
        self.tokens = np.frombuffer(content, header.dtype, header.tokens, HEADER_SIZE)
        self.offsets = np.frombuffer(content, "<i8", header.lines + 1, header.offsets_begin)

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raises InputError unless the file was encoded with this tokenizer."""
        if tokenizer.fingerprint() != self.header.tokenizer:
            raise InputError(
                f"{self.path} was encoded with another tokenizer, with {self.header.vocab_size} ids; the model's has "
                f"{tokenizer.vocab_size}; encode the texts with the model's tokenizer (roberta-flax preprocess)"
            )

    def blocks(self, break_mode: str, tokens_per_sample: int, *, bos_id: int) -> Blocks:
        """Splits the corpus into sequences for the model, as fairseq's masked_lm task does.

        Args:
          break_mode: one of BREAK_MODES:
            none          blocks of tokens_per_sample - 1 tokens, regardless of lines
            complete      as many whole lines as fit, from one or more documents
            complete_doc  as many whole lines from one document as fit, without empty lines
            eos           one line per block
          tokens_per_sample: maximum length of a sequence, including `<s>`.
          bos_id: the id of `<s>`, which is put before each block.

        Raises:
          InputError: the mode is unknown, tokens_per_sample is less than 2, or no block fits.
        """
        if tokens_per_sample < 2:
            raise InputError(f"tokens_per_sample must be 2 or more, <s> and one token, got {tokens_per_sample}")
        starts, ends = block_slices(self.offsets, break_mode, tokens_per_sample - 1)
        fits = ends - starts < tokens_per_sample
        if not fits.any():
            raise InputError(
                f"{self.path} has no block of at most {tokens_per_sample} tokens in break mode {break_mode!r}; use "
                "'none', or split its lines"
            )
        return Blocks(self.tokens, starts[fits], ends[fits], bos_id, int((~fits).sum()))


@dataclass(frozen=True, eq=False)
class Blocks(Sequence[npt.NDArray[np.int32]]):
    """Sequences of token ids that begin with `<s>`.

    Attributes:
      tokens: the tokens of the corpus.
      starts, ends: int64 [blocks], indices in `tokens`.
      bos_id: the id of `<s>`.
      dropped: number of blocks dropped because a single line exceeds tokens_per_sample. fairseq's trainer drops them
        too (FairseqTask.filter_indices_by_size).
    """

    tokens: npt.NDArray[Any]
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    bos_id: int
    dropped: int = 0

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """The number of tokens in each block, including `<s>`: int64 [blocks]."""
        return self.ends - self.starts + 1

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: Any) -> Any:
        """Returns one sequence, int32 [length]."""
        start, end = self.starts[index], self.ends[index]
        sequence = np.empty(end - start + 1, np.int32)
        sequence[0] = self.bos_id
        sequence[1:] = self.tokens[start:end]
        return sequence


def block_slices(
    offsets: npt.NDArray[np.int64], break_mode: str, block_size: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns the start and end of each block, as _get_slice_indices_fast in fairseq/data/token_block_utils_fast.pyx.

    Args:
      offsets: int64 [lines + 1]: the start of each line, and the end of the last. A line has at least one token; a line
        with a single token ends a document.
      break_mode: one of BREAK_MODES.
      block_size: maximum number of tokens in a block. In the modes "complete" and "complete_doc", a longer line is a
        block of its own. The mode "eos" ignores it.

    Returns:
      Starts and ends, int64 [blocks] each.

    Raises:
      InputError: the mode is unknown.
    """
    match break_mode:
        case "none":
            starts = np.arange(0, offsets[-1], block_size)
            return starts, np.minimum(starts + block_size, offsets[-1])
        case "eos":
            return offsets[:-1], offsets[1:]
        case "complete":
            return _whole_line_slices(offsets, [(0, len(offsets) - 1)], block_size)
        case "complete_doc":
            return _whole_line_slices(offsets, _documents(offsets), block_size)
    raise InputError(f"break mode must be one of {', '.join(BREAK_MODES)}, got {break_mode!r}")


def _documents(offsets: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yields the first line of each document, and one past its last line."""
    lines, first = len(offsets) - 1, 0
    for begin in range(0, lines, _SCAN):
        chunk = offsets[begin : begin + _SCAN + 1]
        for end in (begin + np.flatnonzero(np.diff(chunk) == 1)).tolist():
            if first < end:
                yield first, end
            first = end + 1
    if first < lines:
        yield first, lines


def _whole_line_slices(
    offsets: npt.NDArray[np.int64], documents: Iterable[tuple[int, int]], block_size: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Fills each block with as many lines of one document as fit, and at least one."""
    starts, ends = array("q"), array("q")
    for line, last in documents:
        while line < last:
            start = offsets[line]
            # A line has at least one token, so at most block_size lines fit.
            line_ends = offsets[line + 1 : min(line + block_size, last) + 1]
            line += max(1, int(line_ends.searchsorted(start + block_size, side="right")))
            starts.append(start)
            ends.append(offsets[line])
    return np.array(starts, np.int64), np.array(ends, np.int64)


def _read_header(file: IO[bytes]) -> Header:
    """Reads the header of a file; raises ValueError, which says what is wrong, unless the file is complete."""
    header = Header.from_bytes(file.read(HEADER_SIZE))
    size = os.fstat(file.fileno()).st_size
    if size != header.size:
        raise ValueError(f"it has {size} bytes of {header.size}")
    crc32 = 0
    while block := file.read(_BLOCK):
        crc32 = zlib.crc32(block, crc32)
    if crc32 != header.crc32:
        raise ValueError("its checksum is wrong")
    return header
