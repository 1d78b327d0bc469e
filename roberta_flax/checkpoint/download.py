"""Released archives and vocabularies: where they are, a cache, and downloads that resume."""

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

from roberta_flax.errors import CheckpointError, DownloadError, InputError

logger = logging.getLogger(__name__)

# fairseq/models/roberta/model.py, hub_models, and fairseq/data/encoders/gpt2_bpe.py, over https
BASE_URL = "https://dl.fbaipublicfiles.com/fairseq"
# and those of model_xlmr.py, model_camembert.py and model_gottbert.py: name -> archive, under BASE_URL/models
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

ATTEMPTS = 5  # in a row without a byte more than there ever was
BACKOFF_SECONDS = 0.5  # doubled after each attempt
TIMEOUT_SECONDS = (10, 60)  # to connect, and between two reads
_CHUNK = 1 << 16  # what a broken connection loses at most

_MAX_ARCHIVE = 1 << 37  # bytes; the largest, xlmr.xxl, has some 40 GB
_MAX_VOCABULARY = 1 << 26  # GPT-2's encoder.json has 1 MB
_MAX_DECODED = 1 << 28  # of what a server encodes, which it is asked not to do
_ENCODINGS = ("gzip", "x-gzip", "deflate")  # those that are undone; one, not several on top of each other
_GZIP = b"\x1f\x8b"  # what a .tar.gz begins with
_MAX_REASON = 300  # of what a server says, in a message
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}


def cache_dir(override: str | os.PathLike[str] | None = None) -> Path:
    """The cache: `override`, else the environment's ROBERTA_FLAX_CACHE, else the platform's user cache."""
    chosen = override or os.environ.get(CACHE_VARIABLE)
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("roberta-flax")


def model_url(name: str) -> str:
    """The URL of a released model's archive; InputError, naming those there are, for another name.

    A mirror has all of them in one folder.
    """
    if name not in MODELS:
        raise InputError(f"no released model is called {name!r}; there are {', '.join(MODELS)}")
    archive = MODELS[name]
    if "://" in archive and MIRROR_VARIABLE not in os.environ:
        return f"{archive}.tar.gz"
    return f"{_base_url()}/models/{archive.rpartition('/models/')[2]}.tar.gz"


def archive_name(name: str) -> str:
    """The name of a released model's archive, which several released names may share."""
    return MODELS[name].rpartition("/")[2]


def fetch_model_archive(name: str, cache: Path, *, sha256: str | None = None) -> Path:
    """The archive of a released model, from the cache or downloaded into it.

    Raises:
      InputError: no such model.
      DownloadError: it could not be fetched; the message says which file to put where by hand.
      CheckpointError: the cached file does not have the sha256 asked for.
    """
    url, path = model_url(name), cache / "downloads" / f"{archive_name(name)}.tar.gz"
    with locked(path):
        if path.is_file() and not _begins_with(path, _GZIP):
            logger.warning("%s is not a .tar.gz; it is downloaded again", path)
            path.unlink()
        if path.is_file():
            if sha256 is not None and (found := _sha256(path)) != sha256.lower():
                raise CheckpointError(
                    f"{path} has sha256 {found}, expected {sha256.lower()}; remove it to load it anew"
                )
            return path
        try:
            return fetch(url, path, sha256=sha256, limit=_MAX_ARCHIVE, begins=_GZIP)
        except DownloadError as error:
            raise DownloadError(f"{error}; without network, copy {url} to {path}") from None


def fetch_gpt2_bpe(cache: Path) -> Path:
    """The directory with GPT-2's encoder.json and vocab.bpe, from the cache or downloaded into it.

    Raises:
      DownloadError: they could not be fetched; the message says which files to put where by hand.
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
                    f"{error}; without network, copy {' and '.join(urls.values())} to {folder}, or name a directory "
                    "that has them with bpe_dir (--bpe-dir)"
                ) from None
    return folder


def fetch(
    url: str, destination: Path, *, sha256: str | None = None, limit: int = _MAX_ARCHIVE, begins: bytes = b""
) -> Path:
    """Downloads `url` to `destination`, which appears only when it is whole.

    What has come is kept in `destination`.part and a later call goes on from there, if the server still has the
    same file (by its ETag or Last-Modified). Broken connections and server errors are retried.

    Args:
      url: the address.
      destination: the file to make.
      sha256: what it must hash to, in hex.
      limit: the most bytes that it may have.
      begins: what it must begin with.

    Raises:
      InputError: a URL that is not https (http only for this machine itself), or none at all.
      DownloadError: it could not be fetched whole, could not be written, is larger, begins otherwise, or has another
        sha256.
    """
    _require_secure(url)
    part = destination.with_name(destination.name + ".part")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        _fetch_part(_Wanted(url, part, sha256, limit, begins))
        if not _begins_with(part, begins):
            _forget(part)
            raise DownloadError(f"cannot download {url}: it does not begin with {begins!r}, as the file should")
        if sha256 is not None and (found := _sha256(part)) != sha256.lower():
            _forget(part)
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
    """Holds the lock that goes with `path`, so that of several processes one makes it and the others find it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path.with_name(path.name + ".lock"))
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            logger.info("waiting for another process that makes %s", path)
            lock.acquire()
    except OSError as error:
        raise DownloadError(f"cannot write {path.parent}: {error.strerror}; choose another cache directory") from None
    try:
        yield
    finally:
        lock.release()


def _base_url() -> str:
    return os.environ.get(MIRROR_VARIABLE, BASE_URL).rstrip("/")


def _require_secure(url: str) -> None:
    what_to_do = f"set {MIRROR_VARIABLE} to an https address, or unset it"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise InputError(f"{url} is no address ({error}); {what_to_do}") from None
    if parts.scheme != "https" and not (parts.scheme == "http" and host in _LOOPBACK):
        raise InputError(f"{url} is not https; {what_to_do}")
    if not host:
        raise InputError(f"{url} is no address (it names no host); {what_to_do}")


@dataclass(frozen=True)
class _Wanted:
    """A file to download: from where, to where, and what is known of it before."""

    url: str
    part: Path
    sha256: str | None
    limit: int
    begins: bytes


class _TryAgainError(Exception):
    """The transfer ended early or the server was busy: another attempt may go on from here."""


class _UselessError(Exception):
    """What comes is not the file: another attempt would not get it either."""


def _fetch_part(wanted: _Wanted) -> None:
    failures, most = 0, _size(wanted.part)
    while True:
        try:
            return _attempt(wanted)
        except (
            _TryAgainError,
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
        ) as e:
            received = _size(wanted.part)
            failures, most = 1 if received > most else failures + 1, max(most, received)
            if failures >= ATTEMPTS:
                raise DownloadError(f"cannot download {wanted.url}: {_reason(e)}") from None
            time.sleep(BACKOFF_SECONDS * 2 ** (failures - 1))
        except _UselessError as error:
            _forget(wanted.part)
            raise DownloadError(f"cannot download {wanted.url}: {error}") from None
        except DownloadError:
            raise
        except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
            raise DownloadError(f"cannot download {wanted.url}: {_reason(error)}") from None


def _attempt(wanted: _Wanted) -> None:
    """One request, from where `part` ends; returns when `part` is whole."""
    part = wanted.part
    start, validator = _size(part), _read_validator(part)
    headers = {"Accept-Encoding": "identity"}
    if start and validator:
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    with (
        requests.Session() as session,
        session.get(
            wanted.url,
            headers=headers,
            stream=True,
            timeout=TIMEOUT_SECONDS,
            hooks={"response": _refuse_insecure_redirect},
        ) as response,
    ):
        if response.status_code == 416:
            _check_nothing_is_left(part, response, start)
            return
        _check_status(wanted, response)
        encoded = _is_encoded(wanted, response)
        if response.status_code == 206:
            total = _size_of_all(part, response, start, validator)
            _receive(wanted, response, start, total)
            _check_whole(wanted, response, total)
        elif encoded:
            _forget(part)
            _receive_encoded(wanted, response)
        else:
            _forget(part)
            _write_validator(part, response.headers)
            size = _content_length(response)
            _receive(wanted, response, 0, size)
            _check_whole(wanted, response, size)


def _check_nothing_is_left(part: Path, response: requests.Response, start: int) -> None:
    """Of an answer that there are no bytes from `start` on: `part` is whole if that is the size, and no use if not."""
    if response.headers.get("Content-Range", "").rpartition("/")[2] != str(start):
        _forget(part)
        raise _TryAgainError("the server has another file than the one begun")


def _check_status(wanted: _Wanted, response: requests.Response) -> None:
    status = f"the server answers {response.status_code} {str(response.reason)[:_MAX_REASON]}"
    if response.status_code == 429 or response.status_code >= 500:
        raise _TryAgainError(status)
    if response.status_code not in (200, 206):
        raise DownloadError(f"cannot download {wanted.url}: {status}")


def _size_of_all(part: Path, response: requests.Response, start: int, validator: str | None) -> int:
    """The size of the file that a 206 answer is a part of; begins anew where it is not the part asked for."""
    named = re.fullmatch(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})", response.headers.get("Content-Range", ""))
    if named is None or not int(named[1]) == start <= int(named[2]) < int(named[3]):
        _forget(part)
        raise _TryAgainError("the server sent another part than the one asked for")
    name = "ETag" if validator is not None and validator.startswith('"') else "Last-Modified"
    if validator is None or response.headers.get(name, validator) != validator:
        _forget(part)
        raise _TryAgainError("the server sent a part of another file than the one begun")
    return int(named[3])


def _content_length(response: requests.Response) -> int | None:
    length = response.headers.get("Content-Length")
    if length is not None and not re.fullmatch("[0-9]{1,18}", length):
        raise _UselessError(f"the server says that its length is {length[:_MAX_REASON]!r}, which is no number of bytes")
    return None if length is None else int(length)


def _is_encoded(wanted: _Wanted, response: requests.Response) -> bool:
    """Whether the body is to be decoded. A .gz that is said to be encoded by gzip is only misnamed: it is kept so."""
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding in ("", "identity"):
        return False
    if encoding not in _ENCODINGS:
        raise _UselessError(f"the server encodes it as {encoding[:_MAX_REASON]!r}, which it was asked not to do")
    if urlsplit(wanted.url).path.endswith(".gz") and encoding != "deflate":
        response.raw.headers.discard("Content-Encoding")  # which urllib3 would go by
        return False
    return True


def _receive(wanted: _Wanted, response: requests.Response, start: int, size: int | None) -> None:
    """Adds the answer's body to `part`, which has `start` bytes."""
    if size is not None and size > wanted.limit:
        raise _UselessError(f"it has {size} bytes, over the {wanted.limit} that it may have")
    with wanted.part.open("ab") as file, _progress(wanted.url, start, size) as advance:
        for chunk in response.iter_content(_CHUNK):
            if start < len(wanted.begins):
                _check_begin(wanted, start, chunk)
            start += len(chunk)
            if start > wanted.limit:
                raise _UselessError(f"it has over the {wanted.limit} bytes that it may have")
            file.write(chunk)
            advance(len(chunk))


def _check_begin(wanted: _Wanted, start: int, chunk: bytes) -> None:
    expected = wanted.begins[start : start + len(chunk)]
    if not chunk.startswith(expected):
        raise _UselessError(
            f"it begins with {chunk[:20]!r} and is not the file that it should be; is it a page to log in on?"
        )


def _receive_encoded(wanted: _Wanted, response: requests.Response) -> None:
    """The body of an answer that is encoded, decoded; it is not gone on with, since ranges are of the encoded form."""
    length = _content_length(response)
    try:
        _receive(dataclasses.replace(wanted, limit=min(wanted.limit, _MAX_DECODED)), response, 0, None)
        if not (_is_chunked(response) or response.raw.tell() == length or wanted.sha256):
            raise _TryAgainError("the transfer ended early")
    except BaseException:
        _forget(wanted.part)
        raise


def _check_whole(wanted: _Wanted, response: requests.Response, size: int | None) -> None:
    """Raises _TryAgainError unless `part`, whose transfer has ended, is known to be whole."""
    received = _size(wanted.part)
    if size is None and (_is_chunked(response) or wanted.sha256 is not None):  # whose ends are marked
        return
    if size is None and _read_validator(wanted.part) is None:
        raise _UselessError("the server does not say how long it is, so that a part of it cannot be told from all")
    if size is None:  # an answer to the range after it says
        raise _TryAgainError("the server does not say how long it is")
    if received > size:
        _forget(wanted.part)
    if received != size:
        raise _TryAgainError(f"the transfer ended after {received} of {size} bytes")


def _is_chunked(response: requests.Response) -> bool:
    return "chunked" in response.headers.get("Transfer-Encoding", "").lower()


def _refuse_insecure_redirect(response: requests.Response, *_: Any, **__: Any) -> None:
    if response.is_redirect:
        target = response.headers["Location"]
        try:
            target = requests.compat.urljoin(response.url, target)
            _require_secure(target)
        except ValueError as error:  # InputError is one
            why = "which is not https" if "is not https" in str(error) else "which is no address"
            raise DownloadError(f"{response.url} redirects to {target[:_MAX_REASON]}, {why}") from None


@contextmanager
def _progress(url: str, start: int, total: int | None) -> Iterator[Any]:
    name = url.rpartition("/")[2]
    if not sys.stderr.isatty():
        logger.info("downloading %s (%s bytes)", url, "unknown" if total is None else total)
        yield lambda _: None
        return
    columns = (
        TextColumn("{task.description}"),
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
    strong = etag if etag and not etag.startswith("W/") else None  # If-Range takes no weak ones (RFC 9110, 13.1.5)
    if validator := strong or headers.get("Last-Modified"):
        _validator_file(part).write_text(json.dumps({"validator": validator}), encoding="utf-8")


def _read_validator(part: Path) -> str | None:
    try:
        validator = json.loads(_validator_file(part).read_text(encoding="utf-8"))["validator"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return validator if isinstance(validator, str) else None


def _forget(part: Path) -> None:
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


def _reason(error: BaseException) -> str:
    """The innermost reason, in one line: requests and urllib3 wrap it several times over."""
    wrapped = error.args[0] if error.args and isinstance(error.args[0], BaseException) else error.__context__
    if wrapped is not None:
        return _reason(wrapped)
    return " ".join(str(error).split())[:_MAX_REASON] or type(error).__name__
