"""Archives of a model, and archives not to be unpacked."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import pytest

from roberta_flax import CheckpointError
from roberta_flax.checkpoint import archive as archives
from roberta_flax.checkpoint.archive import extract_archive


def archive(path: Path, *members: tarfile.TarInfo, content: bytes = b"content") -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for member in members:
            if member.isreg():
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content) if member.isreg() else None)
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "hostile",
    [
        member("/tmp/roberta-flax-escaped"), member("../escaped"), member("m/../../escaped"),
        member("m/link", tarfile.SYMTYPE, "/etc/passwd"), member("m/link", tarfile.SYMTYPE, "model.pt"),
        member("m/link", tarfile.LNKTYPE, "../../outside"), member("m/device", tarfile.CHRTYPE),
        member("m/device", tarfile.BLKTYPE), member("m/pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda info: f"{info.name}-{info.type!r}",
)  # fmt: skip
def test_an_archive_that_leads_out_is_refused_and_leaves_nothing(hostile, tmp_path):
    path = archive(tmp_path / "a.tar.gz", member("m/model.pt"), hostile)
    with pytest.raises(CheckpointError, match="is not safe to unpack"):
        extract_archive(path, tmp_path / "out" / "in")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.tar.gz", "out"]
    assert not Path("/tmp/roberta-flax-escaped").exists()


def test_an_archive_that_expands_without_bound_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_MAX_EXPANSION_FLOOR", 1 << 20)
    path = archive(tmp_path / "a.tar.gz", member("model.pt"), content=bytes(1 << 24))
    with pytest.raises(CheckpointError, match="expands to over"):
        extract_archive(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_archive_that_is_cut_short_or_none_is_refused(tmp_path):
    whole = archive(tmp_path / "a.tar.gz", member("model.pt"), content=os.urandom(100_000)).read_bytes()
    for content in (
        whole[:50_000],
        whole[:5],
        b"",
        b"not an archive",
        gzip.compress(b"not a tar file" * 100),
    ):
        (tmp_path / "b.tar.gz").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"is not a complete .tar.gz"):
            extract_archive(tmp_path / "b.tar.gz", tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("prefix", ["", "roberta.base/", "./"])
def test_an_archive_with_and_without_a_directory_unpacks(prefix, tmp_path):
    path = archive(tmp_path / "a.tar.gz", member(f"{prefix}model.pt"), member(f"{prefix}dict.txt"))
    extract_archive(path, tmp_path / "out")
    assert (tmp_path / "out" / prefix / "model.pt").read_bytes() == b"content"


def header(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0) -> bytes:
    """A header whose size is what is said, whatever follows it."""
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"%011o\0" % size if 0 <= size < 1 << 33 else b"\xff" * 4 + struct.pack(">q", size)
    if size >= 1 << 33:
        block[124:128] = b"\x80\0\0\0"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def record(key: str, value: str) -> bytes:
    """A line of a pax header."""
    line = f" {key}={value}\n".encode()
    length = next(n for n in range(len(line), len(line) + 20) if n == len(line) + len(str(n)))
    return str(length).encode() + line


def packed(path: Path, blocks: Iterable[bytes]) -> Path:
    with gzip.GzipFile(path, "wb", compresslevel=1) as file:
        for block in blocks:
            file.write(block)
    return path


def refused(path: Path, memory: int = 8 << 20) -> str:
    """The one line with which an archive is refused, in bounded memory, and nothing is left."""
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as error:
            extract_archive(path, path.parent / "out")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < memory, f"{peak} bytes"
    assert not (path.parent / "out").exists()
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000
    return str(error.value)


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K", b"X"])
@pytest.mark.parametrize("size", [1 << 21, 2 << 30, 1 << 60, -1])
def test_a_header_of_gigabytes_is_refused_before_it_is_read(tmp_path, kind, size):
    blocks = (block for part in ([header("x", kind, size)], [bytes(1 << 20)] * 3) for block in part)
    assert "a header of" in refused(packed(tmp_path / "a.tar.gz", blocks))


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_very_many_small_headers_are_refused(tmp_path, kind):
    """tarfile, which reads them one inside the other, runs out of stack."""
    one = header("x", kind, 20_000) + padded(b"1" * 20_000 if kind in (b"L", b"K") else record("a", "b" * 19_990))
    assert "its headers together exceed 8388608 bytes" in refused(
        packed(tmp_path / "a.tar.gz", (one for _ in range(1000)))
    )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("", tarfile.DIRTYPE), ("", tarfile.REGTYPE), ("/a" * 40, tarfile.DIRTYPE)])
def test_very_many_members_are_refused(tmp_path, name, kind):
    """Empty ones of 70 bytes each, those with forty folders of their own among them."""
    path = packed(tmp_path / "a.tar.gz", (header(f"{i}{name}", kind) for i in range(5001)))
    assert "has over 5000 files and folders" in refused(path, memory=16 << 20)


def test_folders_very_deep_inside_each_other_are_refused(tmp_path):
    content = record("path", "/".join("a" * 2000))
    blocks = [header("x", b"x", len(content)), padded(content), header("m"), bytes(1024)]
    assert "is 2000 folders deep" in refused(packed(tmp_path / "a.tar.gz", blocks))


@pytest.mark.parametrize(
    "content", [b"5 a=b", b"9999 a=b\n", b"a", b"-5 a=b\n", b"0 a=b\n", b"11111111111111111111 a=b\n", b" a=b\n"]
)
def test_attributes_that_cannot_be_read_are_damage(tmp_path, content):
    blocks = [header("x", b"x", len(content)), padded(content), header("m"), bytes(1024)]
    assert "a malformed extended header" in refused(packed(tmp_path / "a.tar.gz", blocks))


def test_digits_that_no_attribute_follows_are_read_once(tmp_path):
    """A regular expression would begin anew from each of them."""
    content = b"1" * 65_000
    blocks = [block for _ in range(100) for block in (header("x", b"x", len(content)), padded(content))]
    assert "a malformed extended header" in refused(packed(tmp_path / "a.tar.gz", blocks))


def test_members_of_a_size_that_is_none_are_damage(tmp_path):
    for size in ("-1", "1e3", "9" * 30, ""):
        content = record("size", size)
        blocks = [header("x", b"x", len(content)), padded(content), header("m"), bytes(1024)]
        assert "it has a file of" in refused(packed(tmp_path / "a.tar.gz", blocks))
    assert "it has a file of -5" in refused(packed(tmp_path / "a.tar.gz", [header("m", size=-5)]))
    assert "expands to over" in refused(packed(tmp_path / "a.tar.gz", [header("m", size=1 << 62)]))
    assert "in the middle of a file" in refused(packed(tmp_path / "a.tar.gz", [header("m", size=1 << 20), bytes(512)]))


@pytest.mark.parametrize("name", ["a" * 5000, "b/" * 400 + "c", "a\0b"])
def test_names_that_no_file_can_have(tmp_path, name):
    content = record("path", name)
    refused(packed(tmp_path / "a.tar.gz", [header("x", b"x", len(content)), padded(content), header("m"), bytes(1024)]))


def test_a_file_in_a_file_is_refused(tmp_path):
    assert "cannot unpack" in refused(packed(tmp_path / "a.tar.gz", [header("m"), header("m/m"), bytes(1024)]))


def test_a_sparse_file_is_refused_and_said_to_be_one(tmp_path):
    content = record("GNU.sparse.major", "1")
    pax = [header("x", b"x", len(content)), padded(content), header("m"), bytes(1024)]
    for blocks in (pax, [header("m", tarfile.GNUTYPE_SPARSE), bytes(1024)]):
        assert "the sparse file 'm': pack it again without --sparse" in refused(packed(tmp_path / "a.tar.gz", blocks))


def test_what_follows_an_archive_is_checked_too(tmp_path, monkeypatch):
    """gzip's checksum is at the very end; and what is there has a limit."""
    path = archive(tmp_path / "a.tar.gz", member("m/model.pt"), content=os.urandom(1000))
    whole = path.read_bytes()
    path.write_bytes(whole[:-8] + bytes(4) + whole[-4:])
    assert "CRC check failed" in refused(path)
    monkeypatch.setattr(archives, "_MAX_EXPANSION_FLOOR", 1 << 20)
    assert "expands to over" in refused(packed(path, [header("m"), bytes(1024), *[bytes(1 << 20)] * 30]))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("long", [50, 99, 150, 250, 2000])
def test_archives_of_every_form_unpack_as_tarfile_unpacks_them(tmp_path, form, long):
    """Short, split, long and odd names, empty files, those over a block, attributes, a header for all, folders."""
    if form == tarfile.USTAR_FORMAT and long > 200:
        return
    folder = "/".join(["d" * 90] * (long // 90)) or "d"
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz", format=form, pax_headers={"comment": "made by hand"}) as tar:
        for name, size in (
            (f"{folder}/{'f' * (long % 90)}", 5),
            ("m/empty", 0),
            ("m/naïve", 512),
            ("m/block", 100_000),
        ):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = size, 1.5
            if form == tarfile.PAX_FORMAT:
                info.pax_headers = {"SCHILY.xattr.user.a": "b" * 300}
            tar.addfile(info, io.BytesIO(os.urandom(size)))
        tar.addfile(member("m/folder", tarfile.DIRTYPE))
    extract_archive(path, tmp_path / "ours")
    with tarfile.open(path) as tar:
        tar.extractall(tmp_path / "theirs", filter="data")
    ours, theirs = (
        {
            str(each.relative_to(tmp_path / side)): each.read_bytes()
            for each in (tmp_path / side).rglob("*")
            if each.is_file()
        }
        for side in ("ours", "theirs")
    )
    assert ours == theirs
    assert len(ours) == 4
