"""Released archives and vocabularies: their addresses, a cache, and downloads that resume."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import filelock
import platformdirs
import requests
import urllib3
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from roberta_flax.errors import CheckpointError, DownloadError, InputError, printable
from roberta_flax.remote import RemotePath

logger = logging.getLogger(__name__)

# From hub_models in fairseq/models/roberta/model.py, and fairseq/data/encoders/gpt2_bpe.py; here over https.
BASE_URL = "https://dl.fbaipublicfiles.com/fairseq"
# Released name -> archive under BASE_URL/models: the hub_models of model.py, model_xlmr.py, model_camembert.py and
# model_gottbert.py.
MODELS = {
    **{name: name for name in ("roberta.base", "roberta.large", "roberta.large.mnli", "roberta.large.wsc")},
    "xlmr.base": "xlmr.base",
    "xlmr.large": "xlmr.large",
    "xlmr.xl": "xlmr/xlmr.xl",
    "xlmr.xxl": "xlmr/xlmr.xxl",
    "camembert": "camembert-base",
    "camembert.v0": "camembert-base",
    **{
        name: name
        for name in (
            "camembert-base",
            "camembert-large",
            "camembert-base-ccnet",
            "camembert-base-ccnet-4gb",
            "camembert-base-wikipedia-4gb",
            "camembert-base-oscar-4gb",
        )
    },
    "gottbert-base": "https://dl.gottbert.de/fairseq/models/gottbert-base",  # on a host of its own
}
GPT2_BPE_SHA256 = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
MIRROR_VARIABLE = "ROBERTA_FLAX_MIRROR"
CACHE_VARIABLE = "ROBERTA_FLAX_CACHE"

ATTEMPTS = 5  # consecutive attempts without progress, after which a download fails
BACKOFF_SECONDS = 0.5  # the wait after the first attempt; doubled after each further one
TIMEOUT_SECONDS = (10, 60)  # to connect, and between two reads
_CHUNK = 1 << 16  # bytes; a broken connection loses at most this much

_MAX_ARCHIVE = 1 << 37  # bytes; the largest archive, xlmr.xxl, has about 40 GB
_MAX_VOCABULARY = 1 << 26  # bytes; GPT-2's encoder.json has 1 MB
_MAX_DECODED = 1 << 28  # bytes, decoded, of a body that a server encodes although it is asked not to
_ENCODINGS = ("gzip", "x-gzip", "deflate")  # supported content encodings; only one at a time
_GZIP = b"\x1f\x8b"  # the first bytes of a .tar.gz
_MAX_REASON = 300  # the most characters of a server's text in a message
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}


def cache_dir(override: str | os.PathLike[str] | None = None) -> Path:
    """The cache: `override`, the environment variable ROBERTA_FLAX_CACHE, or the platform's user cache."""
    chosen = override or os.environ.get(CACHE_VARIABLE)
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("roberta-flax")


def model_url(name: str) -> str:
    """The URL of a released model's archive. A mirror keeps all archives in one folder.

    Raises:
      InputError: no released model has this name; the message lists the names.
    """
    if name not in MODELS:
        raise InputError(f"no released model is called {name!r}; choose one of {', '.join(MODELS)}")
    archive = MODELS[name]
    if "://" in archive and MIRROR_VARIABLE not in os.environ:
        return f"{archive}.tar.gz"
    return f"{_base_url()}/models/{archive.rpartition('/models/')[2]}.tar.gz"


def archive_name(name: str) -> str:
    """The name of a released model's archive, which several released names may share."""
    return MODELS[name].rpartition("/")[2]


def fetch_model_archive(name: str, cache: Path, *, sha256: str | None = None) -> Path:
    """Returns the path of a released model's archive in the cache, and downloads it if necessary.

    Raises:
      InputError: no released model has this name.
      DownloadError: the download failed; the message says where to copy the file by hand.
      CheckpointError: the cached file does not have the expected sha256.
    """
    url, path = model_url(name), cache / "downloads" / f"{archive_name(name)}.tar.gz"
    with locked(path):
        if path.is_file() and not _begins_with(path, _GZIP):
            logger.warning("%s is not a .tar.gz; downloading it again", path)
            path.unlink()
        if path.is_file():
            if sha256 is not None and (found := _sha256(path)) != sha256.lower():
                raise CheckpointError(
                    f"{path} has sha256 {found}, expected {sha256.lower()}; remove it to download it again"
                )
            return path
        try:
            return fetch(url, path, sha256=sha256, limit=_MAX_ARCHIVE, magic=_GZIP)
        except DownloadError as error:
            raise DownloadError(f"{error}; without a network connection, copy {url} to {path}") from None


def fetch_gpt2_bpe(cache: Path) -> Path:
    """Returns the directory of the cache with GPT-2's encoder.json and vocab.bpe, and downloads them if necessary.

    Raises:
      DownloadError: the download failed; the message says where to copy the files by hand.
    """
    folder = cache / "gpt2_bpe"
    urls = {name: f"{_base_url()}/gpt2_bpe/{name}" for name in GPT2_BPE_SHA256}
    with locked(folder):
        for name, digest in GPT2_BPE_SHA256.items():
            try:
                if not (folder / name).is_file() or _sha256(folder / name) != digest:
                    fetch(urls[name], folder / name, sha256=digest, limit=_MAX_VOCABULARY)
            except DownloadError as error:
                raise DownloadError(
                    f"{error}; without a network connection, copy {' and '.join(urls.values())} to {folder}, or pass a "
                    "directory that contains them as bpe_dir (--bpe-dir)"
                ) from None
    return folder


def fetch(
    url: str, destination: Path, *, sha256: str | None = None, limit: int = _MAX_ARCHIVE, magic: bytes = b""
) -> Path:
    """Downloads `url` to `destination`, which appears only when it is complete.

    The bytes received so far are kept in `destination`.part. A later call resumes from there if the server still has
    the same file, by its ETag or Last-Modified. Broken connections and server errors are retried.

    Args:
      url: the address.
      destination: the file to create.
      sha256: the expected SHA-256, in hex.
      limit: the most bytes that the file may have.
      magic: the first bytes that the file must have.

    Raises:
      InputError: the URL is not https (http is accepted only for this machine itself), or not a URL.
      DownloadError: the file could not be fetched completely, could not be written, is larger than `limit`, begins with
        other bytes than `magic`, or has another sha256.
    """
    _require_secure(url)
    part = destination.with_name(destination.name + ".part")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        _fetch_part(_Transfer(url, part, sha256, limit, magic))
        if not _begins_with(part, magic):
            _discard_part(part)
            raise DownloadError(f"cannot download {url}: it should begin with {magic!r}, but does not")
        if sha256 is not None and (found := _sha256(part)) != sha256.lower():
            _discard_part(part)
            raise DownloadError(f"{url} has sha256 {found}, expected {sha256.lower()}; it was deleted")
        os.replace(part, destination)
        _validator_file(part).unlink(missing_ok=True)
    except DownloadError:
        raise
    except OSError as error:  # requests' own errors are handled where they arise
        raise DownloadError(f"cannot write {error.filename or part}: {error.strerror or error}") from None
    return destination


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock of `path`, so that one of several processes creates it and the others find it there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path.with_name(path.name + ".lock"))
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            logger.info("waiting for another process that is creating %s", path)
            lock.acquire()
    except OSError as error:
        raise DownloadError(f"cannot write {path.parent}: {error.strerror}; choose another cache directory") from None
    try:
        yield
    finally:
        lock.release()


def local_file(path: Path) -> Path:
    """Returns a file that can be mapped into memory: `path` itself or, if that is at a URL, its copy in the cache.

    The copy is used again as long as the store says that the file has the same version.

    Raises:
      OSError: the file cannot be read.
      DownloadError: the cache cannot be written.
    """
    if not isinstance(path, RemotePath):
        return path
    key = hashlib.sha256(f"{path} {path.stat()}".encode()).hexdigest()[:16]
    copy = cache_dir() / "remote" / key / path.name
    with locked(copy):
        if not copy.is_file():
            logger.info("copying %s to the cache", path)
            part = copy.with_name(f"{copy.name}.part")
            path.get(part)
            os.replace(part, copy)
    return copy


def _base_url() -> str:
    return os.environ.get(MIRROR_VARIABLE, BASE_URL).rstrip("/")


def _require_secure(url: str) -> None:
    what_to_do = f"set {MIRROR_VARIABLE} to an https address, or unset it"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise InputError(f"{url} is not a URL ({error}); {what_to_do}") from None
    if parts.scheme != "https" and not (parts.scheme == "http" and host in _LOOPBACK):
        raise InputError(f"{url} is not https; {what_to_do}")
    if not host:
        raise InputError(f"{url} is not a URL (it names no host); {what_to_do}")


@dataclass(frozen=True)
class _Transfer:
    """A file to download: its address, the partial file that receives it, and what it must satisfy."""

    url: str
    part: Path
    sha256: str | None
    limit: int
    magic: bytes


class _RetryableError(Exception):
    """The transfer ended early or the server was busy: another attempt may resume it."""


class _PermanentError(Exception):
    """The server does not send the file: another attempt would not get it either."""


def _fetch_part(transfer: _Transfer) -> None:
    failures, largest = 0, _size(transfer.part)
    while True:
        try:
            return _attempt(transfer)
        except (
            _RetryableError,
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
        ) as e:
            received = _size(transfer.part)
            failures, largest = 1 if received > largest else failures + 1, max(largest, received)
            if failures >= ATTEMPTS:
                raise DownloadError(f"cannot download {transfer.url}: {_innermost_reason(e)}") from None
            time.sleep(BACKOFF_SECONDS * 2 ** (failures - 1))
        except _PermanentError as error:
            _discard_part(transfer.part)
            raise DownloadError(f"cannot download {transfer.url}: {error}") from None
        except DownloadError:
            raise
        except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
            raise DownloadError(f"cannot download {transfer.url}: {_innermost_reason(error)}") from None


def _attempt(transfer: _Transfer) -> None:
    """Sends one request, for the bytes after those in `part`. Returns when `part` is complete."""
    part = transfer.part
    start, validator = _size(part), _read_validator(part)
    headers = {"Accept-Encoding": "identity"}
    if start and validator:
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    with (
        requests.Session() as session,
        session.get(
            transfer.url,
            headers=headers,
            stream=True,
            timeout=TIMEOUT_SECONDS,
            hooks={"response": _refuse_insecure_redirect},
        ) as response,
    ):
        if response.status_code == 416:
            _check_already_complete(part, response, start)
            return
        _check_status(transfer, response)
        encoded = _is_encoded(transfer, response)
        if response.status_code == 206:
            total = _total_size(part, response, start, validator)
            _receive(transfer, response, start, total)
            _check_complete(transfer, response, total)
        elif encoded:
            _discard_part(part)
            _receive_encoded(transfer, response)
        else:
            _discard_part(part)
            _write_validator(part, response.headers)
            size = _content_length(response)
            _receive(transfer, response, 0, size)
            _check_complete(transfer, response, size)


def _check_already_complete(part: Path, response: requests.Response, start: int) -> None:
    """Handles a 416 response, which says that the file has no bytes after `start`.

    `part` is complete if `start` is the file's size. Otherwise it belongs to another file, and is removed.
    """
    if response.headers.get("Content-Range", "").rpartition("/")[2] != str(start):
        _discard_part(part)
        raise _RetryableError("the file on the server has changed since the download began")


def _check_status(transfer: _Transfer, response: requests.Response) -> None:
    status = f"the server answers {response.status_code} {str(response.reason)[:_MAX_REASON]}"
    if response.status_code == 429 or response.status_code >= 500:
        raise _RetryableError(status)
    if response.status_code not in (200, 206):
        raise DownloadError(f"cannot download {transfer.url}: {status}")


def _total_size(part: Path, response: requests.Response, start: int, validator: str | None) -> int:
    """The size of the whole file, from a 206 response. If it is not the part requested, the download starts over."""
    named = re.fullmatch(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})", response.headers.get("Content-Range", ""))
    if named is None or not int(named[1]) == start <= int(named[2]) < int(named[3]):
        _discard_part(part)
        raise _RetryableError("the server sent a different part from the one requested")
    name = "ETag" if validator is not None and validator.startswith('"') else "Last-Modified"
    if validator is None or response.headers.get(name, validator) != validator:
        _discard_part(part)
        raise _RetryableError("the server sent part of a different file: it has changed since the download began")
    return int(named[3])


def _content_length(response: requests.Response) -> int | None:
    length = response.headers.get("Content-Length")
    if length is not None and not re.fullmatch("[0-9]{1,18}", length):
        raise _PermanentError(
            f"the server gives its length as {length[:_MAX_REASON]!r}, which is not a number of bytes"
        )
    return None if length is None else int(length)


def _is_encoded(transfer: _Transfer, response: requests.Response) -> bool:
    """Whether to decode the body. A .gz file that is labeled as gzip-encoded is mislabeled, and is kept as it is."""
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding in ("", "identity"):
        return False
    if encoding not in _ENCODINGS:
        raise _PermanentError(f"the server encodes it as {encoding[:_MAX_REASON]!r} although it was asked not to")
    if urlsplit(transfer.url).path.endswith(".gz") and encoding != "deflate":
        response.raw.headers.discard("Content-Encoding")  # urllib3 would decode the body otherwise
        return False
    return True


def _receive(transfer: _Transfer, response: requests.Response, start: int, size: int | None) -> None:
    """Appends the response's body to `part`, which has `start` bytes."""
    if size is not None and size > transfer.limit:
        raise _PermanentError(f"it has {size} bytes, over the limit of {transfer.limit}")
    with transfer.part.open("ab") as file, _progress(transfer.url, start, size) as advance:
        for chunk in response.iter_content(_CHUNK):
            if start < len(transfer.magic):
                _check_magic(transfer, start, chunk)
            start += len(chunk)
            if start > transfer.limit:
                raise _PermanentError(f"it exceeds the limit of {transfer.limit} bytes")
            file.write(chunk)
            advance(len(chunk))


def _check_magic(transfer: _Transfer, start: int, chunk: bytes) -> None:
    expected = transfer.magic[start : start + len(chunk)]
    if not chunk.startswith(expected):
        raise _PermanentError(f"it begins with {chunk[:20]!r} and is not the expected file; it may be a login page")


def _receive_encoded(transfer: _Transfer, response: requests.Response) -> None:
    """Receives and decodes an encoded body. It cannot be resumed, because ranges refer to the encoded form."""
    length = _content_length(response)
    try:
        _receive(dataclasses.replace(transfer, limit=min(transfer.limit, _MAX_DECODED)), response, 0, None)
        if not (_is_chunked(response) or response.raw.tell() == length or transfer.sha256):
            raise _RetryableError("the transfer ended early")
    except BaseException:
        _discard_part(transfer.part)
        raise


def _check_complete(transfer: _Transfer, response: requests.Response, size: int | None) -> None:
    """Raises _RetryableError unless `part`, whose transfer has ended, is known to be complete."""
    received = _size(transfer.part)
    if size is None and (_is_chunked(response) or transfer.sha256 is not None):  # chunks mark the end
        return
    if size is None and _read_validator(transfer.part) is None:
        raise _PermanentError("the server does not give its length, so there is no telling whether it is complete")
    if size is None:  # the response to a request for the next range will give it
        raise _RetryableError("the server does not give its length")
    if received > size:
        _discard_part(transfer.part)
    if received != size:
        raise _RetryableError(f"the transfer ended after {received} of {size} bytes")


def _is_chunked(response: requests.Response) -> bool:
    return "chunked" in response.headers.get("Transfer-Encoding", "").lower()


def _refuse_insecure_redirect(response: requests.Response, *_: Any, **__: Any) -> None:
    if response.is_redirect:
        target = response.headers["Location"]
        try:
            target = requests.compat.urljoin(response.url, target)
            _require_secure(target)
        except ValueError as error:  # InputError is a ValueError
            why = "which is not https" if "is not https" in str(error) else "which is not a URL"
            raise DownloadError(f"{response.url} redirects to {target[:_MAX_REASON]}, {why}") from None


@contextmanager
def _progress(url: str, start: int, total: int | None) -> Iterator[Any]:
    name = printable(url.rpartition("/")[2])
    if not sys.stderr.isatty():
        logger.info("downloading %s (%s bytes)", url, "unknown" if total is None else total)
        yield lambda _: None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=total, completed=start)
        yield lambda count: progress.advance(task, count)


def _validator_file(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _write_validator(part: Path, headers: Any) -> None:
    etag = headers.get("ETag")
    strong = etag if etag and not etag.startswith("W/") else None  # If-Range needs a strong one (RFC 9110, 13.1.5)
    if validator := strong or headers.get("Last-Modified"):
        _validator_file(part).write_text(json.dumps({"validator": validator}), encoding="utf-8")


def _read_validator(part: Path) -> str | None:
    try:
        validator = json.loads(_validator_file(part).read_text(encoding="utf-8"))["validator"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return validator if isinstance(validator, str) else None


def _discard_part(part: Path) -> None:
    part.unlink(missing_ok=True)
    _validator_file(part).unlink(missing_ok=True)


def _begins_with(path: Path, start: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(start)) == start


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _innermost_reason(error: BaseException) -> str:
    """The innermost reason of an error, in one line. requests and urllib3 wrap it several times."""
    wrapped = error.args[0] if error.args and isinstance(error.args[0], BaseException) else error.__context__
    if wrapped is not None:
        return _innermost_reason(wrapped)
    return " ".join(str(error).split())[:_MAX_REASON] or type(error).__name__
