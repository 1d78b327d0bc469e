"""Downloads from a server on this machine that breaks in every way, and archives not to be unpacked."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import multiprocessing
import os
import tarfile
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from roberta_flax import CheckpointError, DownloadError, InputError
from roberta_flax.checkpoint import download

CONTENT = bytes(range(256)) * 4000


@dataclass
class Script:
    """What the server does, and what it saw."""

    content: bytes = CONTENT
    etag: str | None = '"one"'
    ranges: bool = True  # whether Range is understood
    cut_after: list[int | None] = field(default_factory=list)  # for each request in turn: break after so many bytes
    statuses: list[int] = field(default_factory=list)  # answers of the first requests
    missing_length: bool = False
    location: str | None = None
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # path and Range
    sent: int = 0


@pytest.fixture
def server(monkeypatch):
    script = Script()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            asked = self.headers.get("Range")
            script.requests.append((self.path, asked))
            if script.statuses:
                self.send_response(script.statuses.pop(0))
                if script.location:
                    self.send_header("Location", script.location)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start = 0
            if script.ranges and asked and self.headers.get("If-Range") == script.etag:
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
            body = script.content[start:]
            if start and not body:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(script.content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(script.content) - 1}/{len(script.content)}")
            if script.etag:
                self.send_header("ETag", script.etag)
            if not script.missing_length:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            cut = script.cut_after.pop(0) if script.cut_after else None
            body = body if cut is None else body[:cut]
            script.sent += len(body)
            self.wfile.write(body)

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    script.url = f"http://127.0.0.1:{listening.server_port}"
    monkeypatch.setenv(download.MIRROR_VARIABLE, script.url)
    yield script
    listening.shutdown()
    listening.server_close()


def test_a_download_is_whole_and_leaves_nothing_else(server, tmp_path):
    download.fetch(f"{server.url}/f", tmp_path / "f", sha256=hashlib.sha256(CONTENT).hexdigest())
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_broken_download_goes_on_where_it_stopped(server, tmp_path):
    server.cut_after = [300_000, 200_000]
    download.fetch(f"{server.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT
    kept = 300_000 // download._CHUNK * download._CHUNK
    kept_then = kept + 200_000 // download._CHUNK * download._CHUNK
    assert [asked for _, asked in server.requests] == [None, f"bytes={kept}-", f"bytes={kept_then}-"]
    assert server.sent < len(CONTENT) + 2 * download._CHUNK


def test_a_later_call_goes_on_where_an_earlier_one_gave_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    server.cut_after = [300_000]
    with pytest.raises(DownloadError, match="cannot download"):
        download.fetch(f"{server.url}/f", tmp_path / "f")
    assert not (tmp_path / "f").exists()
    download.fetch(f"{server.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert server.requests[-1][1] == f"bytes={300_000 // download._CHUNK * download._CHUNK}-"


def test_a_file_that_changed_on_the_server_is_not_spliced(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    server.cut_after = [300_000]
    with pytest.raises(DownloadError):
        download.fetch(f"{server.url}/f", tmp_path / "f")
    server.content, server.etag = CONTENT[::-1], '"two"'
    download.fetch(f"{server.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("change", [{"ranges": False}, {"etag": None}, {"etag": 'W/"weak"'}])
def test_where_resuming_is_not_safe_it_starts_over(server, tmp_path, change):
    for name, value in change.items():
        setattr(server, name, value)
    server.cut_after = [300_000]
    download.fetch(f"{server.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_part_that_is_whole_already_is_taken(server, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(DownloadError, match="No space left on device"):
        download.fetch(f"{server.url}/f", tmp_path / "f")
    monkeypatch.undo()
    sent = server.sent
    download.fetch(f"{server.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert server.sent == sent


def test_a_server_that_is_busy_is_asked_again_and_one_that_says_no_is_not(server, tmp_path):
    server.statuses = [503, 429, 500]
    download.fetch(f"{server.url}/f", tmp_path / "f")
    assert len(server.requests) == 4
    server.statuses = [404]
    with pytest.raises(DownloadError, match="the server answers 404"):
        download.fetch(f"{server.url}/g", tmp_path / "g")
    assert len(server.requests) == 5


def test_a_server_that_always_breaks_is_given_up_on(server, tmp_path):
    server.cut_after = [0] * 20
    with pytest.raises(DownloadError, match="cannot download"):
        download.fetch(f"{server.url}/f", tmp_path / "f")
    assert len(server.requests) == download.ATTEMPTS


def test_a_wrong_sha256_deletes_the_file(server, tmp_path):
    with pytest.raises(DownloadError, match="expected 00; it was deleted"):
        download.fetch(f"{server.url}/f", tmp_path / "f", sha256="00")
    assert list(tmp_path.iterdir()) == []


def test_the_vocabulary_is_checked_against_its_known_sha256(server, tmp_path):
    with pytest.raises(DownloadError, match=r"encoder.json has sha256 .* expected 19613966"):
        download.fetch_gpt2_bpe(tmp_path)


def test_failure_is_one_line_that_says_which_file_to_put_where(server, tmp_path):
    server.statuses = [404]
    with pytest.raises(DownloadError) as error:
        download.fetch_model_archive("roberta.base", tmp_path)
    expected = f"copy {server.url}/models/roberta.base.tar.gz to {tmp_path / 'downloads' / 'roberta.base.tar.gz'}"
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_a_cached_archive_is_not_downloaded_again(server, tmp_path):
    for _ in range(2):
        assert download.fetch_model_archive("roberta.base", tmp_path).read_bytes() == CONTENT
    assert len(server.requests) == 1
    with pytest.raises(CheckpointError, match="expected 00"):
        download.fetch_model_archive("roberta.base", tmp_path, sha256="00")


@pytest.mark.parametrize("url", ["http://example.org/f", "ftp://127.0.0.1/f", "file:///etc/passwd"])
def test_only_https_is_taken_from_elsewhere(url, tmp_path):
    with pytest.raises(InputError, match="is not https"):
        download.fetch(url, tmp_path / "f")


def test_a_redirect_away_from_https_is_not_followed(server, tmp_path):
    server.statuses, server.location = [302], "http://example.org/f"
    with pytest.raises(DownloadError, match="redirects to http://example.org/f, which is not https"):
        download.fetch(f"{server.url}/f", tmp_path / "f")


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(InputError, match="roberta.base, roberta.large, roberta.large.mnli, roberta.large.wsc"):
        download.model_url("roberta.huge")


def test_the_cache_is_the_argument_or_the_environment_or_the_platforms(monkeypatch, tmp_path):
    monkeypatch.setenv(download.CACHE_VARIABLE, str(tmp_path / "environment"))
    assert download.cache_dir(tmp_path / "argument") == tmp_path / "argument"
    assert download.cache_dir() == tmp_path / "environment"
    monkeypatch.delenv(download.CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert download.cache_dir().name == "roberta-flax"


def test_a_cache_that_cannot_be_written_says_so(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match="cannot write"):
        download.fetch_model_archive("roberta.base", tmp_path / "file")


def _fetch(cache: Path) -> bytes:
    return download.fetch_model_archive("roberta.base", cache).read_bytes()


def test_of_processes_that_want_the_same_file_one_downloads_it(server, tmp_path):
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert pool.map(_fetch, [tmp_path] * 3) == [CONTENT] * 3
    assert len(server.requests) == 1


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
        download.extract_archive(path, tmp_path / "out" / "in")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.tar.gz", "out"]
    assert not Path("/tmp/roberta-flax-escaped").exists()


def test_an_archive_that_expands_without_bound_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_MAX_EXPANSION_FLOOR", 1 << 20)
    path = archive(tmp_path / "a.tar.gz", member("model.pt"), content=bytes(1 << 24))
    with pytest.raises(CheckpointError, match="expands to over"):
        download.extract_archive(path, tmp_path / "out")
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
        with pytest.raises(CheckpointError, match=r"is not a whole .tar.gz"):
            download.extract_archive(tmp_path / "b.tar.gz", tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("prefix", ["", "roberta.base/", "./"])
def test_an_archive_with_and_without_a_directory_unpacks(prefix, tmp_path):
    path = archive(tmp_path / "a.tar.gz", member(f"{prefix}model.pt"), member(f"{prefix}dict.txt"))
    download.extract_archive(path, tmp_path / "out")
    assert (tmp_path / "out" / prefix / "model.pt").read_bytes() == b"content"
