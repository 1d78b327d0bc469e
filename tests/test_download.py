"""Downloads from a server on this machine that breaks in every way."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import multiprocessing
import os
import threading
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from roberta_flax import CheckpointError, DownloadError, InputError
from roberta_flax.checkpoint import download

CONTENT = b"\x1f\x8b" + bytes(range(256)) * 4000  # which begins as a .tar.gz does
CUT = 300_000  # bytes after which a transfer is cut short


@dataclass
class Script:
    """What the server does, and what it saw."""

    content: bytes = CONTENT
    etag: str | None = '"one"'
    ranges: bool = True  # whether Range is understood
    cut_after: list[int | None] = field(default_factory=list)  # for each request in turn: break after so many bytes
    statuses: list[int] = field(default_factory=list)  # answers of the first requests
    headers: dict[str, str | None] = field(default_factory=dict)  # that replace the server's own; None removes one
    part_etag: str | None = None  # of an answer that is a part, where it is another
    chunked: bool = False
    pieces: int | None = None  # bytes of an answer that is a part, at most
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
            body = script.content[start:][: script.pieces if start else None]
            if start and not body:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(script.content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            headers = {"ETag": (start and script.part_etag) or script.etag, "Content-Length": str(len(body))}
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(script.content) - 1}/{len(script.content)}"
            if script.chunked:
                headers |= {"Content-Length": None, "Transfer-Encoding": "chunked"}
            for name, value in {**headers, **script.headers}.items():
                if value:
                    self.send_header(name, value)
            self.end_headers()
            cut = script.cut_after.pop(0) if script.cut_after else None
            script.sent += len(body if cut is None else body[:cut])
            if script.chunked:
                body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
            self.wfile.write(body if cut is None else body[:cut])

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, args=[0.01], daemon=True).start()
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


def test_a_part_whose_answer_names_another_file_is_not_spliced(server, tmp_path):
    """A server, or a cache before it, that heeds Range and not If-Range."""
    server.cut_after, server.part_etag = [CUT], '"two"'
    download.fetch(f"{server.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT
    kept = CUT // download._CHUNK * download._CHUNK
    assert [asked for _, asked in server.requests] == [None, f"bytes={kept}-", None]


@pytest.mark.parametrize(
    "content_range", ["bytes 0-5/6", "bytes 262144-262143/1024002", "bytes 262144-262145/*", "items 1-2/3", "", None]
)
def test_a_part_that_is_another_than_was_asked_for_is_not_spliced(server, tmp_path, content_range):
    server.cut_after, server.headers = [CUT], {"Content-Range": content_range}
    download.fetch(f"{server.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert server.requests[-1][1] is None


def test_a_part_that_ends_early_by_its_own_account_is_gone_on_with(server, tmp_path):
    """Its Content-Length is what came, and the total of its Content-Range is more: a proxy that sends a piece each."""
    server.cut_after = [CUT]
    server.pieces = 100_000
    download.fetch(f"{server.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert len(server.requests) > 5


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


@pytest.mark.parametrize("cut", [CUT, None])
def test_without_a_length_a_transfer_is_whole_where_the_server_says_that_nothing_is_left(server, tmp_path, cut):
    server.headers, server.cut_after = {"Content-Length": None}, [cut]
    download.fetch(f"{server.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT
    asked = [int(asked.removeprefix("bytes=").removesuffix("-")) for _, asked in server.requests if asked]
    assert asked == [len(CONTENT) if cut is None else cut]


@pytest.mark.parametrize("cut", [CUT, None])
def test_without_a_length_or_a_name_of_the_file_a_transfer_is_not_known_to_be_whole(server, tmp_path, cut):
    server.headers, server.etag, server.cut_after = {"Content-Length": None}, None, [cut]
    with pytest.raises(DownloadError, match="does not give its length, so there is no telling whether it is complete"):
        download.fetch(f"{server.url}/f", tmp_path / "f")
    assert list(tmp_path.iterdir()) == []
    digest = hashlib.sha256(CONTENT).hexdigest()
    download.fetch(f"{server.url}/f", tmp_path / "f", sha256=digest)  # which tells
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_chunks_mark_their_end(server, tmp_path):
    server.chunked, server.cut_after = True, [CUT]
    download.fetch(f"{server.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert len(server.requests) > 1


@pytest.mark.parametrize("length", ["many", "-5", "1e9", "5, 6", "9" * 30])
def test_a_length_that_is_no_number_is_one_line(server, tmp_path, length):
    server.headers = {"Content-Length": length}
    with pytest.raises(DownloadError, match="cannot download") as error:
        download.fetch(f"{server.url}/f", tmp_path / "f")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"<!DOCTYPE html><title>Log in</title>", b"", b"\x1f", b"\x1fx"])
def test_a_page_is_not_kept_as_an_archive(server, tmp_path, content):
    server.content = content
    with pytest.raises(DownloadError, match=r"cannot download .*roberta.base.tar.gz"):
        download.fetch_model_archive("roberta.base", tmp_path)
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == ["roberta.base.tar.gz.lock"]


def test_a_page_in_the_cache_is_downloaded_again(server, tmp_path):
    path = tmp_path / "downloads" / "roberta.base.tar.gz"
    path.parent.mkdir()
    path.write_bytes(b"<!DOCTYPE html>")
    assert download.fetch_model_archive("roberta.base", tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("length", [True, False])
def test_a_body_has_a_limit(server, tmp_path, length):
    server.chunked = not length
    with pytest.raises(DownloadError, match="the limit of 500000"):
        download.fetch(f"{server.url}/f", tmp_path / "f", limit=500_000)
    assert list(tmp_path.iterdir()) == []
    assert server.requests == [("/f", None)]


def test_a_vocabulary_that_never_ends_is_given_up_on(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_MAX_VOCABULARY", 500_000)
    with pytest.raises(DownloadError, match=r"encoder.json: it has 1024002 bytes, over the limit of 500000.* copy"):
        download.fetch_gpt2_bpe(tmp_path)


@pytest.mark.parametrize(
    ("encoding", "encode"), [("gzip", gzip.compress), ("x-gzip", gzip.compress), ("deflate", zlib.compress)]
)
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_encoded_unasked_is_decoded_with_a_limit(
    server, tmp_path, monkeypatch, encoding, encode, chunked
):
    server.content, server.headers, server.chunked = encode(CONTENT), {"Content-Encoding": encoding}, chunked
    server.cut_after = [100]  # of what is encoded; ranges are of that, and it begins anew
    download.fetch(f"{server.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert {asked for _, asked in server.requests} == {None}

    monkeypatch.setattr(download, "_MAX_DECODED", 1 << 20)
    server.content = encode(bytes(1 << 26))
    with pytest.raises(DownloadError, match="exceeds the limit of 1048576 bytes"):
        download.fetch(f"{server.url}/g", tmp_path / "g")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("encoding", ["gzip, gzip", "br", "zstd", "x" * 5000])
def test_other_encodings_and_several_on_top_of_each_other_are_refused(server, tmp_path, encoding):
    server.headers = {"Content-Encoding": encoding}
    with pytest.raises(DownloadError, match="although it was asked not to") as error:
        download.fetch(f"{server.url}/f", tmp_path / "f")
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip"])
def test_an_archive_that_is_said_to_be_encoded_is_kept_as_it_is(server, tmp_path, encoding):
    """As servers that go by the file's name say of a .tar.gz; going on where it stopped too."""
    server.content, server.headers = gzip.compress(os.urandom(600_000)), {"Content-Encoding": encoding}
    server.cut_after = [CUT]
    assert download.fetch_model_archive("roberta.base", tmp_path).read_bytes() == server.content
    assert server.requests[-1][1] is not None


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


def test_a_server_whose_file_is_another_with_each_part_is_given_up_on(server, tmp_path):
    server.cut_after, server.part_etag = [CUT, None] * 20, '"two"'
    server.headers = {"Content-Length": str(len(CONTENT) + 1)}
    with pytest.raises(DownloadError, match="cannot download"):
        download.fetch(f"{server.url}/f", tmp_path / "f")
    assert len(server.requests) < 20


def test_a_wrong_sha256_deletes_the_file(server, tmp_path):
    with pytest.raises(DownloadError, match="expected 00; it was deleted"):
        download.fetch(f"{server.url}/f", tmp_path / "f", sha256="00")
    assert list(tmp_path.iterdir()) == []


def test_the_vocabulary_is_checked_against_its_known_sha256(server, tmp_path):
    with pytest.raises(DownloadError, match=r"encoder.json has sha256 .* expected 19613966"):
        download.fetch_gpt2_bpe(tmp_path)


def test_a_vocabulary_in_the_cache_that_was_damaged_is_downloaded_again(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "GPT2_BPE_SHA256", {"encoder.json": hashlib.sha256(CONTENT).hexdigest()})
    (tmp_path / "gpt2_bpe").mkdir()
    (tmp_path / "gpt2_bpe" / "encoder.json").write_bytes(CONTENT[:-1])
    for _ in range(2):
        assert (download.fetch_gpt2_bpe(tmp_path) / "encoder.json").read_bytes() == CONTENT
    assert len(server.requests) == 1


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


@pytest.mark.parametrize(
    "url",
    ["https://[bad", "https://host:port/f", "https://host:99999/f", "https:///f", "https://", "https://[::1", "http://[x]/f",
     "https://a" + "b" * 300 + ".org/f", "https://\u2100.org/f", "https://ex ample.org/f", "https://.org/f", "https://a..b/f",
     "https://%zz/f", "https://user@:1/f"],
)  # fmt: skip
def test_an_address_that_is_none_is_one_line(url, tmp_path):
    with pytest.raises((InputError, DownloadError)) as error:
        download.fetch(url, tmp_path / "f")
    assert url[:20] in str(error.value)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "location", ["https://[bad", "https://host:port/", "//[", "https:///", "http://" + "a" * 60_000 + "/"]
)
def test_a_redirect_to_an_address_that_is_none_is_one_line(server, tmp_path, location):
    server.statuses, server.location = [302], location
    with pytest.raises(DownloadError) as error:
        download.fetch(f"{server.url}/f", tmp_path / "f")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("url", ["http://example.org/f", "ftp://127.0.0.1/f", "file:///etc/passwd", "bad"])
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
