"""Released archives and vocabularies: where they are, a cache, downloads that resume, and safe unpacking."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import tarfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import filelock
import platformdirs
import requests
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

ATTEMPTS = 5  # in a row without a byte gained
BACKOFF_SECONDS = 0.5  # doubled after each attempt
TIMEOUT_SECONDS = (10, 60)  # to connect, and between two reads
_CHUNK = 1 << 16  # what a broken connection loses at most

# Weights hardly compress, text to about a third. Only a bomb expands a hundredfold.
_MAX_EXPANSION = 100
_MAX_EXPANSION_FLOOR = 1 << 30
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
        if path.is_file():
            if sha256 is not None and (found := _sha256(path)) != sha256.lower():
                raise CheckpointError(
                    f"{path} has sha256 {found}, expected {sha256.lower()}; remove it to load it anew"
                )
            return path
        try:
            return fetch(url, path, sha256=sha256)
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
                if not (folder / name).is_file():
                    fetch(urls[name], folder / name, sha256=digest)
            except DownloadError as error:
                raise DownloadError(
                    f"{error}; without network, copy {' and '.join(urls.values())} to {folder}, or name a directory "
                    "that has them with bpe_dir (--bpe-dir)"
                ) from None
    return folder


def fetch(url: str, destination: Path, *, sha256: str | None = None) -> Path:
    """Downloads `url` to `destination`, which appears only when it is whole.

    What has come is kept in `destination`.part and a later call goes on from there, if the server still has the
    same file (by its ETag or Last-Modified). Broken connections and server errors are retried.

    Raises:
      InputError: a URL that is not https (http only for this machine itself).
      DownloadError: it could not be fetched whole, could not be written, or has another sha256.
    """
    _require_secure(url)
    part = destination.with_name(destination.name + ".part")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        _fetch_part(url, part)
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


def extract_archive(archive: Path, destination: Path) -> None:
    """Unpacks a model's .tar.gz into `destination`, which must not exist.

    Only files and directories inside `destination` are written. Archives with links, devices or paths that lead
    out, and archives that expand more than a hundredfold (and over 1 GiB), are refused.

    Raises:
      CheckpointError: such an archive, or one that is damaged or cut short; nothing of it is left behind.
    """
    limit = max(_MAX_EXPANSION_FLOOR, _MAX_EXPANSION * archive.stat().st_size)
    destination.mkdir(parents=True)
    try:
        with tarfile.open(archive, "r:gz") as tar:
            total = 0
            for member in tar:
                if not (member.isreg() or member.isdir()):
                    raise CheckpointError(f"{archive} is not safe to unpack: {member.name!r} is a link or a device")
                if member.name.startswith("/") or ".." in Path(member.name).parts:
                    raise CheckpointError(f"{archive} is not safe to unpack: {member.name!r} leads out of it")
                total += member.size
                if total > limit:
                    raise CheckpointError(f"{archive} is not safe to unpack: it expands to over {limit} bytes")
                tar.extract(member, destination, filter="data")
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        shutil.rmtree(destination, ignore_errors=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise CheckpointError(f"cannot unpack {archive}: {error.strerror}") from None
        raise CheckpointError(f"{archive} is not a whole .tar.gz ({error}); copy or download it again") from None
    except BaseException:
        shutil.rmtree(destination, ignore_errors=True)
        raise


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
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise InputError(f"{url} is not https; set {MIRROR_VARIABLE} to an https address, or unset it")


class _TryAgainError(Exception):
    """The transfer ended early or the server was busy: another attempt may go on from here."""


def _fetch_part(url: str, part: Path) -> None:
    failures = 0
    while True:
        before = _size(part)
        try:
            return _attempt(url, part)
        except (
            _TryAgainError,
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
        ) as e:
            failures = 1 if _size(part) > before else failures + 1
            if failures >= ATTEMPTS:
                raise DownloadError(f"cannot download {url}: {_reason(e)}") from None
            time.sleep(BACKOFF_SECONDS * 2 ** (failures - 1))
        except requests.RequestException as error:
            raise DownloadError(f"cannot download {url}: {_reason(error)}") from None


def _attempt(url: str, part: Path) -> None:
    """One request, from where `part` ends; returns when `part` is whole."""
    start, validator = _size(part), _read_validator(part)
    headers = {"Accept-Encoding": "identity"}
    if start and validator:
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    with (
        requests.Session() as session,
        session.get(
            url,
            headers=headers,
            stream=True,
            timeout=TIMEOUT_SECONDS,
            hooks={"response": _refuse_insecure_redirect},
        ) as response,
    ):
        status = response.status_code
        if status == 416:  # nothing is left after `start`: whole if that is the size, and of no use if not
            total = response.headers.get("Content-Range", "").rpartition("/")[2]
            if total == str(start):
                return
            _forget(part)
            raise _TryAgainError("the server has another file than the one begun")
        if status == 429 or status >= 500:
            raise _TryAgainError(f"the server answers {status} {response.reason}")
        if status not in (200, 206):
            raise DownloadError(f"cannot download {url}: the server answers {status} {response.reason}")
        if status == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            _forget(part)
            raise _TryAgainError("the server sent another part than the one asked for")
        if status == 200:
            _forget(part)
            start = 0
            _write_validator(part, response.headers)
        length = response.headers.get("Content-Length")
        total_size = start + int(length) if length is not None else None
        with part.open("ab") as file, _progress(url, start, total_size) as advance:
            for chunk in response.iter_content(_CHUNK):
                file.write(chunk)
                advance(len(chunk))
    if total_size is not None and _size(part) != total_size:
        raise _TryAgainError(f"the transfer ended after {_size(part)} of {total_size} bytes")


def _refuse_insecure_redirect(response: requests.Response, *_: Any, **__: Any) -> None:
    if response.is_redirect:
        target = requests.compat.urljoin(response.url, response.headers["Location"])
        try:
            _require_secure(target)
        except InputError as error:
            raise DownloadError(f"{response.url} redirects to {target}, which is not https") from error


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
    return _reason(wrapped) if wrapped is not None else " ".join(str(error).split()) or type(error).__name__
